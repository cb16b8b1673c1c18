//! A node's agent: its process, its socket, its flow records.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::Value;

use crate::net;
use crate::sys::{Place, put};

/// One end of a connection in a flow record.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the fields of the agent's records")]
pub struct FlowEnd {
    pub address: String,
    pub port: u16,
    pub workload: String,
    pub identity: String,
    pub service: String,
}

/// A flow record, as agents print it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the fields of the agent's records")]
pub struct FlowRecord {
    pub seq: u64,
    pub node: String,
    pub stage: String,
    pub verdict: String,
    pub path: String,
    pub side: String,
    pub reason: String,
    pub policy: String,
    pub error: String,
    pub source: FlowEnd,
    pub destination: FlowEnd,
    pub requested: FlowEnd,
    pub bytes_sent: u64,
    pub bytes_received: u64,
}

impl std::fmt::Display for FlowRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = |end: &FlowEnd| {
            let who = if end.workload.is_empty() { &end.address } else { &end.workload };
            format!("{who}:{}", end.port)
        };
        write!(
            f,
            "{} {} {} {} -> {} seen at {} ({}): {}",
            self.node,
            self.stage.to_uppercase(),
            self.path,
            name(&self.source),
            name(&self.destination),
            self.side,
            self.verdict,
            self.reason
        )?;
        for (label, value) in [
            ("policy", &self.policy),
            ("by", &self.source.identity),
            ("to", &self.destination.identity),
            ("error", &self.error),
        ] {
            if !value.is_empty() {
                write!(f, ", {label} {value}")?;
            }
        }
        Ok(())
    }
}

/// A running agent.
pub(super) struct Agent {
    node: String,
    socket: PathBuf,
    log: PathBuf,
    child: Mutex<Child>,
    seen: AtomicU64,
}

impl Agent {
    pub(super) fn start(
        binary: &Path,
        node: &str,
        instance: &str,
        dir: &Path,
        cgroup: &Path,
        netns: &str,
        extra: &[String],
    ) -> Result<Self> {
        let log = dir.join(format!("agent-{node}.log"));
        let output = File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new(binary);
        command.arg("agent").args(["--node", node, "--instance", instance]);
        command.arg("--manifests").arg(dir.join("manifests"));
        command.arg("--resolv-conf").arg(dir.join("resolv.conf"));
        if !extra.iter().any(|arg| arg.starts_with("--ca-address")) {
            command.arg("--ca-dir").arg(dir.join("ca"));
        }
        command.arg("--cgroup-root").arg(cgroup).args(extra);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let place = Place {
            netns: Some(net::netns_path(netns)),
            cgroup: Some(cgroup.join("agent")),
            dies_with_parent: true,
            ..Place::default()
        };
        put(&mut command, &place)?;
        let child = command.spawn().with_context(|| format!("starting {}", binary.display()))?;
        let socket = Path::new("/run/culvert").join(instance).join("admin.sock");
        Ok(Self { node: node.to_owned(), socket, log, child: Mutex::new(child), seen: AtomicU64::new(0) })
    }

    pub(super) fn wait_ready(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let mut last = String::from("it does not answer");
        while Instant::now() < deadline {
            let ended = self.child.lock().unwrap_or_else(|e| e.into_inner()).try_wait()?;
            if let Some(status) = ended {
                bail!("the agent of {} ended ({status}):\n{}", self.node, self.log_tail(20));
            }
            match self.get("/healthz/ready") {
                Ok((200, _)) => return Ok(()),
                Ok((_, body)) => last = body,
                Err(_) => {}
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!(
            "the agent of {} is not ready after {limit:?}: {}\n{}",
            self.node,
            last.trim(),
            self.log_tail(20)
        )
    }

    pub(super) fn has_pending_pods(&self) -> bool {
        let Ok((200, body)) = self.get("/dump") else { return true };
        let Ok(dump) = serde_json::from_str::<Value>(&body) else { return true };
        dump["pods"].as_array().is_some_and(|pods| pods.iter().any(|pod| pod["state"] == "pending"))
    }

    /// Records that no earlier call returned.
    pub(super) fn new_flows(&self) -> Vec<FlowRecord> {
        let since = self.seen.load(Ordering::Relaxed);
        let Ok((200, body)) = self.get(&format!("/flows?since={since}")) else { return Vec::new() };
        let records: Vec<FlowRecord> =
            body.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        if let Some(last) = records.last() {
            self.seen.store(last.seq, Ordering::Relaxed);
        }
        records
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.lock().unwrap_or_else(|e| e.into_inner()).id()
    }

    /// Series and values of `/metrics`.
    pub(super) fn metrics(&self) -> Result<BTreeMap<String, u64>> {
        let (status, text) =
            self.get("/metrics").with_context(|| format!("metrics of the agent of {}", self.node))?;
        anyhow::ensure!(status == 200, "the agent of {} answers {status} to /metrics", self.node);
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let series = lines.filter_map(|line| line.rsplit_once(' '));
        Ok(series.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect())
    }

    fn get(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: culvert\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).context("no HTTP status")?;
        Ok((status, body.to_owned()))
    }

    pub(super) fn end(self, signal: Signal) -> Result<()> {
        let mut child = self.child.into_inner().unwrap_or_else(|e| e.into_inner());
        if let Ok(pid) = i32::try_from(child.id()) {
            let _ = kill(Pid::from_raw(pid), signal); // it may have ended by itself
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while matches!(child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = child.kill();
                child.wait()?;
                bail!("the agent of {} did not end within 10 s of {signal}", self.node);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        child.wait()?;
        Ok(())
    }

    pub(super) fn log_tail(&self, lines: usize) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        let tail = &all[all.len().saturating_sub(lines)..];
        let mut out = format!("-- log of the agent of {} --\n", self.node);
        for line in tail {
            out.push_str(line);
            out.push('\n');
        }
        out
    }
}
