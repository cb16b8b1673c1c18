//! What the kernel's hooks do, in the agent's log, while its filter lets lines of `culvert::kernel` through.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use culvert_common::{Reason, SocketKind};
use log::{Log, Metadata, Record};
use tokio::sync::watch;

use crate::bpf::{Kernel, Witness};
use crate::model::Snapshot;
use crate::telemetry::flows::Names;
use crate::telemetry::log::KERNEL;

/// How soon pods that have joined are listened to.
const FOLLOW: Duration = Duration::from_millis(200);
/// Moments of a socket, as ebpf/log numbers them.
const MOMENTS: [&str; 4] = ["connect", "established", "accepted", "closed"];

/// Attaches the programs that tell while `wanted`, for as long as the process lives.
pub(super) async fn follow(
    kernel: Arc<Kernel>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    mut wanted: watch::Receiver<bool>,
) {
    loop {
        if wanted.wait_for(|wanted| *wanted).await.is_err() {
            return;
        }
        match tell(&kernel, &snapshots, &mut wanted).await {
            Ok(()) => tracing::info!("the kernel's hooks are no longer logged: their programs are detached"),
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "the kernel's hooks cannot be logged");
                // Asked for again, it is tried again.
                let _ = wanted.wait_for(|wanted| !wanted).await;
            }
        }
    }
}

async fn tell(
    kernel: &Kernel,
    snapshots: &watch::Receiver<Arc<Snapshot>>,
    wanted: &mut watch::Receiver<bool>,
) -> Result<()> {
    let mut witness = Witness::attach(kernel, Lines { names: snapshots.clone() })?;
    tracing::info!("the kernel's hooks are logged from now on");
    let mut tick = tokio::time::interval(FOLLOW);
    loop {
        tokio::select! {
            _ = wanted.wait_for(|wanted| !wanted) => return Ok(()),
            _ = tick.tick() => witness.follow(kernel)?,
            read = witness.read() => read.context("reading the programs' lines")?,
        }
    }
}

/// Lines of the programs, in words.
struct Lines {
    names: watch::Receiver<Arc<Snapshot>>,
}

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = in_words(&record.args().to_string(), &**self.names.borrow());
        tracing::debug!(target: KERNEL, "{line}");
    }

    fn flush(&self) {}
}

/// Names in the place of numbers.
fn in_words(line: &str, names: &impl Names) -> String {
    let mut words = String::with_capacity(line.len() + 64);
    for word in line.split(' ') {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let number = value.parse::<u32>().ok();
        let known = match (name, number) {
            ("kind", Some(kind)) => SocketKind::from_u32(kind).map(|kind| kind.as_str().to_owned()),
            ("reason", Some(reason)) => {
                Reason::from_u32(reason).map(|reason| format!("{:?}", reason.as_str()))
            }
            ("identity", Some(identity)) => names.identity(identity),
            ("moment", Some(moment)) => MOMENTS.get(moment as usize).map(|&moment| moment.to_owned()),
            _ => None,
        };
        let separator = if words.is_empty() { "" } else { " " };
        // A String takes everything.
        let _ = match known {
            Some(known) => write!(words, "{separator}{name}={known}"),
            None => write!(words, "{separator}{}", plain(word)),
        };
    }
    words
}

/// IPv4 as such: the programs have one form for both families.
fn plain(word: &str) -> String {
    match word.split_once("[::ffff:") {
        Some((name, rest)) => format!("{name}{}", rest.replacen(']', "", 1)),
        None => word.replace("=::ffff:", "="),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    struct Book;

    impl Names for Book {
        fn workload(&self, _: IpAddr) -> Option<String> {
            None
        }
        fn owner(&self, _: IpAddr) -> Option<String> {
            None
        }
        fn service(&self, _: IpAddr) -> Option<String> {
            None
        }
        fn identity(&self, id: u32) -> Option<String> {
            (id == 20).then(|| "spiffe://cluster.local/ns/a/sa/b".to_owned())
        }
        fn policy(&self, _: u32) -> Option<String> {
            None
        }
        fn note(&self, _: u32) -> Option<String> {
            None
        }
    }

    #[test]
    fn numbers_become_names_and_the_rest_stays() {
        for (line, words) in [
            (
                "connect netns=7 asked=[::ffff:10.0.0.9]:80 next=[fd00::2]:8080 kind=1 reason=1",
                "connect netns=7 asked=10.0.0.9:80 next=[fd00::2]:8080 kind=direct reason=\"NAME\"",
            ),
            (
                "socket moment=2 identity=20 kind=99",
                "socket moment=accepted identity=spiffe://cluster.local/ns/a/sa/b kind=99",
            ),
            (
                "spoofed source=::ffff:10.0.0.9 told=fd00::2 identity=21",
                "spoofed source=10.0.0.9 told=fd00::2 identity=21",
            ),
            ("syn reason=x=y", "syn reason=x=y"),
        ] {
            let reason = Reason::from_u32(1).map_or("", Reason::as_str);
            assert_eq!(in_words(line, &Book), words.replace("NAME", reason));
        }
    }
}
