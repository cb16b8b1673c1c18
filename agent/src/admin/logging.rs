//! ztunnel's page for its log, which `istioctl ztunnel-config log` asks: `POST /logging?level=…`, `?level=…&reset`.

use super::query::Query;
use crate::telemetry::log::LogControl;

const HELP: &str = "\
usage: POST /logging                                  show what is logged
       POST /logging?level=LEVEL                      off, error, warn, info, debug or trace
       POST /logging?level=TARGET:LEVEL,TARGET:LEVEL  for parts, for example culvert::hbone:trace,access:off
       POST /logging?reset                            as at start
";

/// Shows or changes the filter; the answer is ztunnel's.
///
/// # Errors
///
/// What is wrong with the question, and what to write.
pub(super) fn answer(control: &LogControl, query: Option<&str>) -> Result<String, String> {
    let state = change(control, query).map_err(|why| format!("{why}\n{HELP}"))?;
    Ok(format!("current log level is {state}\n"))
}

fn change(control: &LogControl, query: Option<&str>) -> Result<String, String> {
    let query = Query::parse(query, &["level", "reset"])?;
    // istioctl names a level when it resets, too: the reset is meant.
    let state = match (query.get("reset"), query.get("level").filter(|level| !level.is_empty())) {
        (Some(_), _) => control.reset()?,
        (None, Some(level)) => control.set(&as_filter(level))?,
        (None, None) => control.state(),
    };
    Ok(state.filter)
}

/// `a::b:debug,info` is `a::b=debug,info`: the last single colon parts a target from its level.
fn as_filter(level: &str) -> String {
    let clause = |text: &str| match text.rsplit_once(':') {
        Some((target, level)) if !text.contains('=') && !target.ends_with(':') => {
            format!("{target}={}", word(level))
        }
        _ => match text.rsplit_once('=') {
            Some((target, level)) => format!("{target}={}", word(level)),
            None => word(text).to_owned(),
        },
    };
    level.split(',').map(clause).collect::<Vec<_>>().join(",")
}

/// istioctl's words for levels that are not Rust's.
fn word(level: &str) -> &str {
    match level {
        "warning" => "warn",
        "critical" => "error",
        level => level,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn istioctls_questions_are_understood() {
        let control = LogControl::new("info", |_| Ok(()));
        let says = |query: &str, filter: &str| {
            let answered = answer(&control, Some(query)).unwrap();
            assert_eq!(answered, format!("current log level is {filter}\n"), "{query}");
        };
        says("level=", "info");
        says("level=debug", "debug");
        says("", "debug");
        says("level=access:warning,info", "access=warn,info");
        says("level=culvert::hbone:trace,critical", "culvert::hbone=trace,error");
        says("level=culvert::hbone=debug", "info,culvert::hbone=debug");
        says("level=debug&reset", "info");
        says("level=off", "off");
        says("reset", "info");
        for wrong in ["level=loud", "level=a:", "level=culvert::hbone", "levle=debug"] {
            let why = answer(&control, Some(wrong)).unwrap_err();
            assert!(why.ends_with(HELP), "{wrong}: {why}");
        }
        assert_eq!(control.state().filter, "info");
    }
}
