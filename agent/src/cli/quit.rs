//! `culvert quit`: asks the agent to stop, and waits for that.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use http::Method;
use tokio::net::UnixStream;

use super::args::SocketArgs;
use super::client;

/// How often it is looked whether the agent is gone.
const LOOK: Duration = Duration::from_millis(50);

/// `culvert quit`.
#[derive(Args, Debug)]
pub(super) struct QuitArgs {
    #[command(flatten)]
    socket: SocketArgs,
    /// How long to wait, in seconds; 0: not at all
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    timeout: u64,
}

/// Asks, and waits.
pub(super) async fn run(args: &QuitArgs) -> Result<()> {
    let socket = client::socket(args.socket.instance.as_deref())?;
    let agent = answers(&socket).await.unwrap_or_default();
    client::ask(&socket, Method::POST, "/quitquitquit").await?;
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    while is_there(&socket, agent).await {
        if args.timeout == 0 {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!(
                "the agent (process {agent}) still waits for open tunnels after {} s: it goes when the last one has ended, or when \
                 its --drain is over; SIGTERM cuts them now",
                args.timeout
            );
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// The process that answers at the socket; 0 when it is out of sight, in another PID namespace.
async fn answers(socket: &Path) -> Option<i32> {
    let stream = UnixStream::connect(socket).await.ok()?;
    Some(stream.peer_cred().ok().and_then(|peer| peer.pid()).unwrap_or_default())
}

/// Whether the agent answers, or runs still. One that was started meanwhile is another.
async fn is_there(socket: &Path, agent: i32) -> bool {
    answers(socket).await.is_some_and(|now| now == agent) || (agent != 0 && runs(agent))
}

/// A process that nobody has waited for yet has ended all the same (proc_pid_stat(5)).
fn runs(process: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    !(state.is_empty() || state.starts_with(['Z', 'X']))
}

#[cfg(test)]
mod tests {
    use super::runs;

    #[test]
    fn a_process_runs_until_it_has_ended_even_when_nobody_waits() {
        assert!(runs(i32::try_from(std::process::id()).unwrap()));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let process = i32::try_from(child.id()).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while runs(process) {
            assert!(std::time::Instant::now() < deadline);
        }
        child.wait().unwrap();
        assert!(!runs(process));
    }
}
