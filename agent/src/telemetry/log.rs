//! What the agent logs, and how to have it log something else while it runs.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use serde::Serialize;
use tokio::sync::watch;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::reload::Handle;

use crate::cli::LogFormat;

/// The target of lines that the kernel's hooks write, all at the debug level.
pub const KERNEL: &str = "culvert::kernel";

/// The filter of a running agent's log. A restarted agent begins with `--log` again.
pub struct LogControl {
    start: String,
    current: Mutex<String>,
    reload: Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>,
    kernel: watch::Sender<bool>,
}

/// What `culvert log` shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LogState {
    /// In force.
    pub filter: String,
    /// As given at start.
    pub start: String,
}

/// Log lines go to stderr from now on, those that `filter` lets through.
///
/// # Errors
///
/// It is not a filter.
pub fn init(filter: &str, format: LogFormat) -> Result<LogControl> {
    let parsed =
        EnvFilter::try_new(filter).with_context(|| format!("--log {filter:?} is not a log filter"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(parsed).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => {
            let builder = builder.with_ansi(false).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            Ok(LogControl::new(filter, through(handle)))
        }
        LogFormat::Json => {
            let builder = builder.json().with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            Ok(LogControl::new(filter, through(handle)))
        }
    }
}

fn through<S: 'static>(
    handle: Handle<EnvFilter, S>,
) -> impl Fn(EnvFilter) -> Result<(), String> + Send + Sync {
    move |filter| handle.reload(filter).map_err(|error| error.to_string())
}

impl LogControl {
    /// `reload` puts a filter in force.
    pub fn new(
        start: &str,
        reload: impl Fn(EnvFilter) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        Self {
            start: start.to_owned(),
            current: Mutex::new(start.to_owned()),
            reload: Box::new(reload),
            kernel: watch::Sender::new(tells_of_kernel()),
        }
    }

    /// Whether lines of [`KERNEL`] are let through: while not, nobody need write any.
    pub fn kernel(&self) -> watch::Receiver<bool> {
        self.kernel.subscribe()
    }

    /// What is logged now.
    pub fn state(&self) -> LogState {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        LogState { filter: current.clone(), start: self.start.clone() }
    }

    /// Logs what `filter` says from now on.
    ///
    /// # Errors
    ///
    /// It is no filter, and what one looks like.
    pub fn set(&self, filter: &str) -> Result<LogState, String> {
        let text = complete(filter, &self.start)?;
        self.put(text)
    }

    /// Logs what it did at start.
    ///
    /// # Errors
    ///
    /// The subscriber is gone: never, while the agent runs.
    pub fn reset(&self) -> Result<LogState, String> {
        self.put(self.start.clone())
    }

    fn put(&self, text: String) -> Result<LogState, String> {
        let filter = EnvFilter::try_new(&text).map_err(|error| format!("{text:?}: {error}"))?;
        (self.reload)(filter)?;
        self.kernel.send_replace(tells_of_kernel());
        tracing::info!(filter = text, "the log has another filter");
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = text;
        Ok(self.state())
    }
}

fn tells_of_kernel() -> bool {
    tracing::enabled!(target: KERNEL, tracing::Level::DEBUG)
}

/// Checks the clauses of `filter`. One without a level for everything changes only the targets that it names: the rest is as at
/// `start`.
fn complete(filter: &str, start: &str) -> Result<String, String> {
    let clauses: Vec<&str> = filter.split(',').map(str::trim).collect();
    let mut has_default = false;
    for clause in &clauses {
        let (target, level) = clause.split_once('=').map_or((None, *clause), |(t, level)| (Some(t), level));
        let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-');
        if level.parse::<u8>().is_ok() || level.parse::<LevelFilter>().is_err() || level.is_empty() {
            return Err(format!(
                "{level:?} is no level: write off, error, warn, info, debug or trace, or TARGET=LEVEL for a part, \
                 for example culvert::hbone=trace,info"
            ));
        }
        match target {
            None => has_default = true,
            Some(target) if !target.is_empty() && target.chars().all(named) => {}
            Some(target) => {
                return Err(format!("{target:?} is no target: write culvert, culvert::hbone, access, h2"));
            }
        }
    }
    Ok(if has_default { clauses.join(",") } else { format!("{start},{}", clauses.join(",")) })
}

#[cfg(test)]
mod tests {
    use super::complete;

    #[test]
    fn what_is_not_named_stays_as_it_was_at_start() {
        assert_eq!(complete("debug", "info").as_deref(), Ok("debug"));
        assert_eq!(
            complete("culvert::hbone=trace, warn", "info").as_deref(),
            Ok("culvert::hbone=trace,warn")
        );
        assert_eq!(
            complete("culvert::hbone=trace", "info,h2=warn").as_deref(),
            Ok("info,h2=warn,culvert::hbone=trace")
        );
    }

    #[test]
    fn what_is_no_filter_is_refused_with_what_to_write() {
        for filter in ["", "dbug", "culvert=loud", "culvert=", "info,,debug", "culvert::hbone", "3"] {
            let error = complete(filter, "info").unwrap_err();
            assert!(
                error.contains("write off, error, warn, info, debug or trace, or TARGET=LEVEL"),
                "{filter}: {error}"
            );
        }
        for filter in ["=debug", "a b=debug", "[span]=debug"] {
            assert!(complete(filter, "info").unwrap_err().contains("is no target"), "{filter}");
        }
    }
}
