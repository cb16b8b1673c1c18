//! The ambient walkthrough, told in the terminal on real traffic: two nodes, helloworld v1 and v2, curl, nginx.
//!
//! Every line of the story is measured, and checked: a demo that does not do what it tells fails.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cli::{self, new_id};
use crate::expect::{self, Observed};
use crate::lab::{Lab, Options};
use crate::runner;
use crate::scenario::{Expect, Probe, Scenario};

/// `culvert-lab demo`.
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// The culvert binary [default: beside this program]
    #[arg(long, env = "CULVERT_BIN")]
    pub culvert: Option<PathBuf>,
    /// Wait for Enter after each chapter
    #[arg(long)]
    pub step: bool,
    /// Keep the lab when all is told, for commands of your own, until Enter
    #[arg(long)]
    pub keep: bool,
}

const CLUSTER: &str = include_str!("demo/cluster.yaml");
const STORY: &str = include_str!("demo/story.yaml");

/// One chapter of the story.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Chapter {
    title: String,
    tell: String,
    #[serde(default)]
    apply: Option<String>,
    #[serde(default)]
    delete: Option<String>,
    calls: Vec<Call>,
}

/// Who calls helloworld, and what should come of it.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Call {
    from: String,
    expect: Expect,
}

/// Runs it.
///
/// # Errors
///
/// When something does not do what the story tells.
pub fn run(args: &DemoArgs, culvert: PathBuf) -> Result<()> {
    let ink = Ink { on: std::io::stdout().is_terminal() };
    let chapters: Vec<Chapter> =
        serde_saphyr::from_str(STORY).map_err(|e| anyhow::anyhow!("the demo's story: {e}"))?;
    let scenario = Scenario::parse(CLUSTER, "demo".as_ref())?;
    let begun = Instant::now();
    println!("{}", ink.bold("Culvert: an ambient mesh on two nodes, on this machine's own kernel"));
    println!("Nodes and pods are network namespaces; traffic, eBPF programs, TLS and manifests are real.\n");
    let mut lab =
        runner::start(&scenario, Options { culvert: Some(culvert), id: new_id(), ..Options::default() })?;
    introduce(&lab, begun.elapsed());
    let told = tell(&mut lab, &chapters, args, &ink).and_then(|()| look_inside(&lab, &ink));
    let told = told.and_then(|()| if args.keep { keep(&lab) } else { Ok(()) });
    let stopped = lab.stop();
    told?;
    stopped.context("removing the demo's lab")?;
    println!(
        "\nAll {} chapters did what they told, in {:.1} s. Nothing is left behind.",
        chapters.len(),
        begun.elapsed().as_secs_f64()
    );
    println!("Play with it:   cargo xtask demo --keep");
    Ok(())
}

fn keep(lab: &Lab) -> Result<()> {
    println!();
    cli::lend(lab)
}

fn introduce(lab: &Lab, took: Duration) {
    for node in lab.nodes() {
        let mut pods: Vec<String> = Vec::new();
        for (name, netns, ips) in lab.pods() {
            if netns.starts_with(&format!("clab-{}-{node}-", lab.id())) {
                pods.push(format!("{name} {}", ips.v4));
            }
        }
        println!("  {node}  {}", pods.join("   "));
    }
    println!("  built in {:.2} s, agents ready\n", took.as_secs_f64());
}

fn tell(lab: &mut Lab, chapters: &[Chapter], args: &DemoArgs, ink: &Ink) -> Result<()> {
    for (number, chapter) in chapters.iter().enumerate() {
        println!("{}", ink.bold(&format!("{}. {}", number + 1, chapter.title)));
        println!("   {}", chapter.tell.trim().replace('\n', "\n   "));
        if let Some(text) = &chapter.apply {
            lab.apply(text)?;
            show_objects("apply", text, ink);
        }
        if let Some(text) = &chapter.delete {
            lab.delete(text)?;
            show_objects("delete", text, ink);
        }
        for call in &chapter.calls {
            let begun = Instant::now();
            let seen = until_it_holds(lab, call)
                .with_context(|| format!("chapter {}: {}", number + 1, chapter.title))?;
            println!("{}", picture(call, &seen, begun.elapsed(), ink));
        }
        println!();
        if args.step {
            println!("   (Enter)");
            std::io::stdin().read_line(&mut String::new())?;
        }
    }
    Ok(())
}

fn show_objects(verb: &str, text: &str, ink: &Ink) {
    for line in text.trim_end().lines() {
        println!("   {} {}", ink.dim(&format!("{verb:>6} |")), ink.dim(line));
    }
}

/// The story tells what is; the cluster may take a moment to get there.
fn until_it_holds(lab: &Lab, call: &Call) -> Result<Observed> {
    let probe = Probe {
        from: call.from.clone(),
        url: Some("http://helloworld.hello.svc.cluster.local:5000/hello".to_owned()),
        method: "GET".to_owned(),
        headers: std::collections::BTreeMap::new(),
        tcp: None,
        send: String::new(),
        send_bytes: 0,
        count: 1,
        timeout: None,
    };
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let seen = lab.probe(&probe, &call.expect)?;
        let wrong = expect::probe(&call.expect, &seen);
        if wrong.is_empty() {
            return Ok(seen);
        }
        if Instant::now() > deadline {
            bail!("{} -> helloworld: {}\n{}", call.from, wrong.join("; "), lab.agent_logs(10));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One line: who reaches helloworld, how, how fast, or why not.
fn picture(call: &Call, seen: &Observed, waited: Duration, ink: &Ink) -> String {
    let first = seen.tries.first().cloned().unwrap_or_default();
    let record = seen.flows.iter().find(|f| f.stage == "refused").or_else(|| seen.flows.first());
    let path = record.map_or("passthrough", |f| f.path.as_str());
    let arrow = match (first.error.is_empty(), path) {
        (false, _) => ink.red("────────✗ "),
        (true, "tunnel") => ink.green("══HBONE══▶"),
        (true, "direct") => ink.green("──direct─▶"),
        (true, _) => ink.yellow("┄┄plain┄┄▶"),
    };
    let mut line = format!("   {:<11} {arrow} helloworld  ", call.from);
    if first.error.is_empty() {
        line.push_str(&format!(
            "{} {:<18} {:>5.2} ms",
            first.status,
            first.body.trim(),
            first.micros as f64 / 1000.0
        ));
        if let Some(peer) =
            seen.flows.iter().find(|f| f.side == "destination" && !f.source.identity.is_empty())
        {
            line.push_str(&format!("  the pod sees {}", peer.source.identity));
        }
    } else {
        line.push_str(&format!("{:<22} {:>5.2} ms", ink.red(&first.error), first.micros as f64 / 1000.0));
        if let Some(record) = record {
            line.push_str(&format!("  {}", record.reason));
            if !record.policy.is_empty() {
                line.push_str(&format!(" [{}]", record.policy));
            }
        }
    }
    if waited > Duration::from_millis(500) {
        line.push_str(&format!("  (after {} ms)", waited.as_millis()));
    }
    line
}

/// The commands that a user would type next, with what they print here.
fn look_inside(lab: &Lab, ink: &Ink) -> Result<()> {
    println!("{}", ink.bold("Look inside, on node n1"));
    let pins = format!("/sys/fs/bpf/culvert/{}", lab.instance("n1"));
    let commands = [
        ("culvert workloads".to_owned(), 12),
        ("culvert policies".to_owned(), 8),
        ("culvert flows --verdict refused --last 3".to_owned(), 4),
        (format!("bpftool map dump pinned {pins}/policy"), 14),
        (format!("bpftool map dump pinned {pins}/identities"), 12),
    ];
    for (command, lines) in commands {
        let words: Vec<String> = command.split(' ').map(str::to_owned).collect();
        let output = lab.run_on("n1", &words, Duration::from_secs(10))?;
        if !output.status.success() {
            bail!("{command}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        println!("\n   $ {}", ink.bold(&command));
        let text = String::from_utf8_lossy(&output.stdout);
        for line in text.lines().take(lines) {
            println!("   {line}");
        }
        let more = text.lines().count().saturating_sub(lines);
        if more > 0 {
            println!("   {}", ink.dim(&format!("… {more} more lines")));
        }
    }
    Ok(())
}

/// Colours, on a terminal only.
struct Ink {
    on: bool,
}

impl Ink {
    fn paint(&self, code: &str, text: &str) -> String {
        if self.on { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    fn bold(&self, text: &str) -> String {
        self.paint("1", text)
    }

    fn dim(&self, text: &str) -> String {
        self.paint("2", text)
    }

    fn red(&self, text: &str) -> String {
        self.paint("31", text)
    }

    fn green(&self, text: &str) -> String {
        self.paint("32", text)
    }

    fn yellow(&self, text: &str) -> String {
        self.paint("33", text)
    }
}
