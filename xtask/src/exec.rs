//! Running programs: silent while they work, their last lines when they do not.
//!
//! Output always goes to a file under target/xtask/. A pipe would do for capturing it, but a lab that cleans up
//! after Ctrl-C must be able to write when nobody reads any more.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::machine;

/// Lines of a failed command that are worth a screen.
const TAIL_LINES: usize = 60;
/// How often followed output is looked at.
const POLL: Duration = Duration::from_millis(50);

/// What a command's output is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Show {
    /// Only the log.
    Nothing,
    /// The terminal as it comes, and the log.
    Output,
}

/// A command that has ended.
pub(crate) struct Finished {
    /// Did it exit with 0?
    pub(crate) success: bool,
    /// Standard output and error, in the order they were written.
    pub(crate) output: String,
    /// The file that holds `output`.
    pub(crate) log: PathBuf,
}

impl Finished {
    /// The command's output, or an error that shows its end.
    pub(crate) fn ok(self, what: &str) -> Result<Self> {
        if self.success {
            return Ok(self);
        }
        bail!(
            "{what} failed; its output ends with:\n\n{}\n\nall of it: {}",
            self.tail(),
            machine::short(&self.log)
        )
    }

    /// The last lines of the output.
    pub(crate) fn tail(&self) -> String {
        let lines: Vec<&str> = self.output.trim_end().lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

/// Runs `command` to its end, with its output in `target/xtask/NAME.log`.
pub(crate) fn run(name: &str, command: &mut Command, show: Show) -> Result<Finished> {
    let folder = machine::log_dir()?;
    // Another xtask may run the same command now: each writes its own, and the last to end leaves the log.
    let writing = folder.join(format!("{name}.{}.log", std::process::id()));
    let log = folder.join(format!("{name}.log"));
    let file = File::create(&writing).with_context(|| format!("cannot write {}", writing.display()))?;
    let errors = file.try_clone().context("cannot share the log between two streams")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(errors)
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let status = match show {
        Show::Nothing => child.wait()?,
        Show::Output => {
            let mut reader = File::open(&writing)?;
            loop {
                let ended = child.try_wait()?;
                io::copy(&mut reader, &mut io::stdout())?;
                io::stdout().flush()?;
                match ended {
                    Some(status) => break status,
                    None => thread::sleep(POLL),
                }
            }
        }
    };
    let output = fs::read(&writing).with_context(|| format!("cannot read {}", writing.display()))?;
    fs::rename(&writing, &log).with_context(|| format!("cannot write {}", log.display()))?;
    Ok(Finished { success: status.success(), output: String::from_utf8_lossy(&output).into_owned(), log })
}

/// What `program` prints, if it exists and succeeds. For short questions.
pub(crate) fn ask<I: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = I>) -> Result<String> {
    let path = machine::program(program).ok_or_else(|| anyhow!("there is no program `{program}`"))?;
    let output = Command::new(path).args(args).stdin(Stdio::null()).output()?;
    if !output.status.success() {
        bail!("{program} ended with {} {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The cargo that runs us, at the workspace's top, building where the user builds.
pub(crate) fn cargo(verb: &str) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.arg(verb).current_dir(machine::root()).env("CARGO_TERM_COLOR", "never");
    forget_cargo(&mut command);
    command
}

/// Takes out of a child's environment what `cargo run` put in for xtask itself.
pub(crate) fn forget_cargo(command: &mut Command) {
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") || text == "LD_LIBRARY_PATH"
        {
            command.env_remove(&name);
        }
    }
    // What the user had set comes after what cargo put before it.
    let libraries = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let target = machine::target_dir();
    let own: Vec<PathBuf> = env::split_paths(&libraries)
        .filter(|path| {
            !path.starts_with(&target) && !path.iter().any(|part| part == "rustlib" || part == ".rustup")
        })
        .filter(|path| !path.as_os_str().is_empty())
        .collect();
    if let (false, Ok(joined)) = (own.is_empty(), env::join_paths(&own)) {
        command.env("LD_LIBRARY_PATH", joined);
    }
}

/// Becomes `command`; returns only when that fails.
pub(crate) fn become_command(command: &mut Command) -> anyhow::Error {
    let error = command.exec();
    anyhow!(error).context(format!("cannot start {}", command.get_program().display()))
}

/// `1.2 s`, `3 min 20 s`.
pub(crate) fn since(start: Instant) -> String {
    let seconds = start.elapsed().as_secs_f64();
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    let whole = start.elapsed().as_secs();
    format!("{} min {:02} s", whole / 60, whole % 60)
}
