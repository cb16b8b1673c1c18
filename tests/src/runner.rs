//! Plays a scenario step by step; a failed step explains its connection.

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::expect::{self, Observed, Printed};
use crate::lab::{FlowRecord, Lab, Options};
use crate::pod_process::{Ask, Order, Try};
use crate::scenario::{Expect, Load, Probe, Scenario, Step};

const WITHIN: Duration = Duration::from_secs(5);
const TRY_TIMEOUT: Duration = Duration::from_secs(3);
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(60);
/// Flow records come through a ring buffer and a socket: a moment after the connection.
const FLOW_PATIENCE: Duration = Duration::from_millis(300);

/// A failed step shows that many flow records.
const SHOWN_FLOWS: usize = 12;

/// How a scenario ended.
pub struct Outcome {
    /// The scenario's name.
    pub name: String,
    /// What happened, for people.
    pub report: String,
    /// Steps that held.
    pub passed: usize,
    /// Why it failed, if it did.
    pub failure: Option<String>,
    /// How long it took.
    pub took: Duration,
}

/// Runs a scenario in a lab of its own.
pub fn run(scenario: &Scenario, options: Options, echo: bool) -> Outcome {
    let begun = Instant::now();
    let mut report = Report { text: String::new(), echo };
    let mut passed = 0;
    let failure = play(scenario, options, &mut report, &mut passed).err().map(|e| format!("{e:#}"));
    Outcome { name: scenario.name.clone(), report: report.text, passed, failure, took: begun.elapsed() }
}

struct Report {
    text: String,
    echo: bool,
}

impl Report {
    fn line(&mut self, line: &str) {
        if self.echo {
            println!("{line}");
        }
        let _ = writeln!(self.text, "{line}");
    }
}

fn play(scenario: &Scenario, options: Options, report: &mut Report, passed: &mut usize) -> Result<()> {
    let mut lab = start(scenario, options)?;
    report.line(&format!("  lab {} ready", lab.id()));
    for (number, step) in scenario.steps.iter().enumerate() {
        let begun = Instant::now();
        let title = describe(step);
        match lab.step(step) {
            Ok(()) => {
                report.line(&format!(
                    "  ok   {:>2} {title} ({} ms)",
                    number + 1,
                    begun.elapsed().as_millis()
                ));
                *passed += 1;
            }
            Err(error) => {
                report.line(&format!(
                    "  FAIL {:>2} {title} ({} ms)",
                    number + 1,
                    begun.elapsed().as_millis()
                ));
                let logs = lab.agent_logs(15);
                let stopped = lab.stop();
                let mut text = format!("step {} ({title}): {error:#}\n{logs}", number + 1);
                if let Err(error) = stopped {
                    let _ = writeln!(text, "and the lab could not be removed: {error:#}");
                }
                bail!("{text}");
            }
        }
    }
    lab.stop().context("removing the lab")
}

/// Builds the scenario's lab with its objects, pods and agents.
///
/// # Errors
///
/// When something cannot be made.
pub fn start(scenario: &Scenario, mut options: Options) -> Result<Lab> {
    options.nodes = scenario.nodes.clone();
    options.agent_args.extend(scenario.agent.args.iter().cloned());
    let mut lab = Lab::new(options, scenario.placements())?;
    for text in scenario.manifest_texts()? {
        let text = lab.substitute(&text)?;
        lab.apply(&text).with_context(|| format!("{}: manifests", scenario.file.display()))?;
    }
    lab.declare_missing_pods()?;
    lab.start_agents()?;
    Ok(lab)
}

/// One line for a step.
fn describe(step: &Step) -> String {
    if let Some(name) = &step.name {
        return name.clone();
    }
    let first =
        |text: &str| text.lines().map(str::trim).find(|l| l.starts_with("kind:")).unwrap_or("").to_owned();
    if let Some(probe) = &step.probe {
        let to = probe.url.as_ref().or(probe.tcp.as_ref()).cloned().unwrap_or_default();
        let times = if probe.count > 1 { format!(" x{}", probe.count) } else { String::new() };
        return format!("probe {} -> {to}{times}", probe.from);
    }
    if let Some(text) = &step.apply {
        return format!("apply {}", first(text));
    }
    if let Some(text) = &step.delete {
        return format!("delete {}", first(text));
    }
    if let Some(exec) = &step.exec {
        return format!("exec in {}: {}", exec.pod, exec.command.join(" "));
    }
    if let Some(run) = &step.run {
        return format!("run on {}: {}", run.on, run.command.join(" "));
    }
    if let Some(load) = &step.load {
        return format!("load {} from {}", load.id, load.from);
    }
    if let Some(agent) = &step.agent {
        return format!("agent of {}: {}", agent.on, agent.action);
    }
    match (&step.stop, step.sleep) {
        (Some(id), _) => format!("stop {id}"),
        (_, Some(sleep)) => format!("sleep {sleep:?}"),
        _ => String::new(),
    }
}

impl Lab {
    /// Does one step and checks what is expected of it.
    ///
    /// # Errors
    ///
    /// What differs, with the flow records of the connection.
    pub fn step(&mut self, step: &Step) -> Result<()> {
        let expect = match &step.expect {
            Some(expect) => self.substitute_expect(expect)?,
            None => Expect::default(),
        };
        if let Some(text) = &step.apply {
            let text = self.substitute(text)?;
            return self.apply(&text);
        }
        if let Some(text) = &step.delete {
            let text = self.substitute(text)?;
            return self.delete(&text);
        }
        if let Some(action) = &step.agent {
            return self.control_agent(&action.on, &action.action);
        }
        if let Some(load) = &step.load {
            return self.start_load(load);
        }
        if let Some(id) = &step.stop {
            return self.stop_load(id, &expect);
        }
        if let Some(sleep) = step.sleep {
            std::thread::sleep(sleep);
            return Ok(());
        }
        // Without an expectation a program must at least succeed.
        let expect = if step.expect.is_none() && step.probe.is_none() {
            Expect { exit: Some(0), ..Expect::default() }
        } else {
            expect
        };
        let check = |lab: &Self| -> Result<Vec<String>> {
            if let Some(probe) = &step.probe {
                return lab.check_probe(probe, &expect);
            }
            let output = if let Some(exec) = &step.exec {
                lab.exec(&exec.pod, &lab.substitute_all(&exec.command)?, PROGRAM_TIMEOUT)?
            } else if let Some(run) = &step.run {
                lab.run_on(&run.on, &lab.substitute_all(&run.command)?, PROGRAM_TIMEOUT)?
            } else {
                bail!("a step without an action");
            };
            let printed = Printed {
                exit: output.status.code().unwrap_or(-1),
                stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
                stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            };
            Ok(expect::printed(&expect, &printed))
        };
        let within = step.within.or(expect.within).unwrap_or(WITHIN);
        self.until(within, step.stays.or(expect.stays), check)
    }

    /// Tries until the expectation holds, then as long as it must stay.
    fn until(
        &self,
        within: Duration,
        stays: Option<Duration>,
        check: impl Fn(&Self) -> Result<Vec<String>>,
    ) -> Result<()> {
        let deadline = Instant::now() + within;
        let mut pause = Duration::from_millis(20);
        loop {
            let wrong = check(self)?;
            if wrong.is_empty() {
                break;
            }
            if Instant::now() + pause > deadline {
                bail!("{}", wrong.join("\n      "));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(250));
        }
        let Some(stays) = stays else { return Ok(()) };
        let end = Instant::now() + stays;
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
            let wrong = check(self)?;
            if !wrong.is_empty() {
                bail!("it held, but did not stay so for {stays:?}: {}", wrong.join("\n      "));
            }
        }
        Ok(())
    }

    fn check_probe(&self, probe: &Probe, expect: &Expect) -> Result<Vec<String>> {
        let seen = self.probe(probe, expect)?;
        let mut wrong = expect::probe(expect, &seen);
        if !wrong.is_empty() {
            wrong.push("flow records of the connection:".to_owned());
            if seen.flows.is_empty() {
                wrong.push("  (none: nothing in the mesh saw it)".to_owned());
            }
            wrong.extend(seen.flows.iter().take(SHOWN_FLOWS).map(|flow| format!("  {flow}")));
            if seen.flows.len() > SHOWN_FLOWS {
                wrong.push(format!("  … and {} more", seen.flows.len() - SHOWN_FLOWS));
            }
        }
        Ok(wrong)
    }

    /// Sends the request and gathers what everybody saw of it.
    ///
    /// # Errors
    ///
    /// When the pod does not exist or its process has gone. A failed request is no error.
    pub fn probe(&self, probe: &Probe, expect: &Expect) -> Result<Observed> {
        let ask = Ask {
            url: probe.url.as_ref().map(|u| self.substitute(u)).transpose()?,
            method: probe.method.clone(),
            headers: probe.headers.clone(),
            tcp: probe.tcp.as_ref().map(|t| self.substitute(t)).transpose()?,
            send: self.substitute(&probe.send)?,
            send_bytes: probe.send_bytes,
            count: probe.count,
            timeout_ms: u64::try_from(self.patience(probe).as_millis())?,
        };
        let target = ask.url.clone().or(ask.tcp.clone()).unwrap_or_default();
        let pod = self.pod(&probe.from)?;
        let _before = self.flows();
        if ask.tcp.is_some() {
            self.accepted()?;
        }
        let tries: Vec<Try> = pod.ask(&Order::Probe(ask.clone()))?;
        let mut seen = Observed { tries, ..Observed::default() };
        let deadline = Instant::now() + FLOW_PATIENCE;
        loop {
            let fresh =
                self.flows().into_iter().filter(|f| concerns(f, &pod.addresses, &target, &seen.tries));
            seen.flows.extend(fresh);
            if Instant::now() > deadline || flows_suffice(expect, &seen) {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        if ask.tcp.is_some() && expect.source.is_some() {
            seen.accepted = self.accepted()?;
        }
        Ok(seen)
    }

    fn patience(&self, probe: &Probe) -> Duration {
        // Big transfers take their time: 10 MB/s is slow for any of the paths.
        probe.timeout.unwrap_or(TRY_TIMEOUT + Duration::from_millis(probe.send_bytes / 10_000))
    }

    /// Clients that servers have accepted since the last call.
    fn accepted(&self) -> Result<Vec<std::net::SocketAddr>> {
        let mut all = Vec::new();
        let names: Vec<String> = self.pods().map(|(name, ..)| name.to_owned()).collect();
        for name in names {
            let pod = self.pod(&name)?;
            if pod.serves {
                all.extend(pod.ask::<Vec<std::net::SocketAddr>>(&Order::Accepted)?);
            }
        }
        Ok(all)
    }

    fn start_load(&self, load: &Load) -> Result<()> {
        let ask = Ask {
            url: load.url.as_ref().map(|u| self.substitute(u)).transpose()?,
            method: "GET".to_owned(),
            headers: std::collections::BTreeMap::new(),
            tcp: load.tcp.as_ref().map(|t| self.substitute(t)).transpose()?,
            send: load.send.clone(),
            send_bytes: 0,
            count: 1,
            timeout_ms: u64::try_from(TRY_TIMEOUT.as_millis())?,
        };
        let order = Order::LoadStart {
            id: load.id.clone(),
            ask,
            connections: load.connections,
            rate: load.rate,
            new_connection_each: load.new_connection_each,
        };
        self.pod(&load.from)?.ask(&order)
    }

    fn stop_load(&self, id: &str, expect: &Expect) -> Result<()> {
        let names: Vec<String> = self.pods().map(|(name, ..)| name.to_owned()).collect();
        for name in names {
            let answer: Value = self.pod(&name)?.ask(&Order::LoadStop { id: id.to_owned() })?;
            if answer["error"].is_string() {
                continue;
            }
            let count = |field: &str| answer[field].as_u64().unwrap_or(0);
            let wrong =
                expect::load(expect, count("requests"), count("failed"), &answer["errors"].to_string());
            if !wrong.is_empty() {
                bail!("{}", wrong.join("; "));
            }
            return Ok(());
        }
        bail!("no load {id:?} is running")
    }

    fn substitute_all(&self, texts: &[String]) -> Result<Vec<String>> {
        texts.iter().map(|text| self.substitute(text)).collect()
    }

    fn substitute_expect(&self, expect: &Expect) -> Result<Expect> {
        let mut expect = expect.clone();
        for text in
            [&mut expect.source, &mut expect.reply, &mut expect.reason, &mut expect.peer, &mut expect.policy]
                .into_iter()
                .flatten()
        {
            *text = self.substitute(text)?;
        }
        for text in [&mut expect.body, &mut expect.stdout, &mut expect.stderr].into_iter().flatten() {
            text.try_map(|part| self.substitute(part))?;
        }
        Ok(expect)
    }

    /// Replaces `${pod:ns/name}`, `${pod6:…}`, `${vip:…}`, `${vip6:…}`, `${node:…}`, `${node6:…}`. An IPv6 address gets
    /// brackets where a port follows or a URL's host begins.
    ///
    /// # Errors
    ///
    /// When a name is unknown.
    pub fn substitute(&self, text: &str) -> Result<String> {
        let mut out = String::new();
        let mut rest = text;
        while let Some(start) = rest.find("${") {
            let (before, after) = rest.split_at(start);
            let Some(end) = after.find('}') else { break };
            out.push_str(before);
            let Some((kind, name)) = after[2..end].split_once(':') else {
                out.push_str(&after[..=end]); // not one of ours: a shell's variable, perhaps
                rest = &after[end + 1..];
                continue;
            };
            rest = &after[end + 1..];
            let address = self.address_of(kind, name).with_context(|| format!("${{{kind}:{name}}}"))?;
            let bracketed = address.contains(':') && (rest.starts_with(':') || before.ends_with("://"));
            out.push_str(&if bracketed { format!("[{address}]") } else { address });
        }
        out.push_str(rest);
        Ok(out)
    }

    fn address_of(&self, kind: &str, name: &str) -> Result<String> {
        match kind {
            "pod" => Ok(self.pod_addresses(name)?.v4.to_string()),
            "pod6" => Ok(self.pod_addresses(name)?.v6.to_string()),
            "node" => Ok(self.node_addresses(name)?.v4.to_string()),
            "node6" => Ok(self.node_addresses(name)?.v6.to_string()),
            "vip" | "vip6" => {
                let (namespace, name) = name.split_once('/').context("write namespace/service")?;
                let service = self.store().get("Service", namespace, name).context("no such service")?;
                let ips =
                    service["spec"]["clusterIPs"].as_array().into_iter().flatten().filter_map(Value::as_str);
                let mut ips = ips.filter(|ip| ip.contains(':') == (kind == "vip6"));
                ips.next().map(str::to_owned).context("the service has no such virtual address")
            }
            _ => bail!("unknown: use pod, pod6, vip, vip6, node or node6"),
        }
    }
}

/// Whether a record is about one of these requests.
fn concerns(flow: &FlowRecord, client: &crate::net::Addresses, target: &str, tries: &[Try]) -> bool {
    let from_client = flow.source.address.parse().is_ok_and(|ip| client.contains(ip));
    let ports: Vec<u16> = tries.iter().filter_map(|t| t.local).map(|a| a.port()).collect();
    let known = ports.contains(&flow.source.port);
    // Refused inside connect(), or a client that never learned its port.
    let anonymous = flow.source.port == 0 || ports.len() < tries.len();
    from_client && (known || (anonymous && same_port(flow, target)))
}

fn same_port(flow: &FlowRecord, target: &str) -> bool {
    let authority = target.split("://").last().unwrap_or(target).split('/').next().unwrap_or("");
    let port = authority.rsplit_once(':').and_then(|(_, p)| p.parse::<u16>().ok()).unwrap_or(80);
    flow.requested.port == port || flow.destination.port == port
}

/// Whether waiting for more records is pointless.
fn flows_suffice(expect: &Expect, seen: &Observed) -> bool {
    let asked =
        expect.path.is_some() || expect.peer.is_some() || expect.reason.is_some() || expect.policy.is_some();
    if !asked {
        return true;
    }
    // "passthrough" may be the absence of records: only time tells.
    if expect.path.as_deref() == Some("passthrough") && seen.flows.is_empty() {
        return false;
    }
    expect::probe(expect, seen).is_empty()
}
