//! `/debug/pprof/profile`: where processor time goes. `/debug/pprof/heap`: how to find out where memory goes.
//!
//! The agent has no heap profiler of its own: one that may be switched on must be the allocator from the start. See
//! `docs/admin.md` for what that would cost.

use std::time::Duration;

use http::StatusCode;

use super::query::Query;
use super::reply::{Answer, reply, text};
use crate::profile::{self, CpuProfile, Form, ProfileError};

/// ztunnel's bounds and defaults.
const LONGEST: u64 = 300;
const MOST_OFTEN: u64 = 1000;

/// Measures, then answers.
pub(super) async fn cpu(query: Option<&str>) -> Answer {
    let wanted = match wanted(query) {
        Ok(wanted) => wanted,
        Err(why) => return text(StatusCode::BAD_REQUEST, format!("{why}\n")),
    };
    match (profile::cpu(wanted).await, wanted.form) {
        (Ok(file), Form::Pprof) => reply(StatusCode::OK, "application/octet-stream", file),
        (Ok(lines), Form::Folded) => text(StatusCode::OK, lines),
        (Err(error), _) => {
            let status = match error {
                ProfileError::Busy => StatusCode::SERVICE_UNAVAILABLE,
                ProfileError::Kernel(_) => StatusCode::NOT_IMPLEMENTED,
                ProfileError::Abandoned | ProfileError::Write(_) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            text(status, format!("{error}\n"))
        }
    }
}

/// What to do instead.
pub(super) fn heap() -> Answer {
    text(
        StatusCode::NOT_IMPLEMENTED,
        "this agent has no heap profiler. Start it with an allocator that has one (Debian: libjemalloc2, libjemalloc-dev):\n  \
         LD_PRELOAD=libjemalloc.so.2 MALLOC_CONF=prof:true,lg_prof_interval:26,prof_final:true,prof_prefix:/run/culvert/heap \
         culvert agent ...\nand read what it writes:\n  jeprof --text /usr/local/bin/culvert /run/culvert/heap.*.heap\n",
    )
}

fn wanted(query: Option<&str>) -> Result<CpuProfile, String> {
    let query = Query::parse(query, &["seconds", "frequency", "format"])?;
    let within = |name: &str, default: u64, most: u64| match query.number(name)?.unwrap_or(default) {
        number if (1..=most).contains(&number) => Ok(number),
        number => Err(format!("{name}={number}: write a number from 1 to {most}")),
    };
    let form = match query.get("format").unwrap_or("pprof") {
        "pprof" => Form::Pprof,
        "folded" => Form::Folded,
        other => return Err(format!("format={other:?}: write pprof or folded")),
    };
    let length = Duration::from_secs(within("seconds", 10, LONGEST)?);
    Ok(CpuProfile { length, frequency: within("frequency", 100, MOST_OFTEN)?, form })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        let plain = wanted(None).unwrap();
        assert_eq!((plain.length.as_secs(), plain.frequency, plain.form), (10, 100, Form::Pprof));
        let own = wanted(Some("seconds=300&frequency=1000&format=folded")).unwrap();
        assert_eq!((own.length.as_secs(), own.frequency, own.form), (300, 1000, Form::Folded));
        for query in ["seconds=0", "seconds=301", "frequency=0", "frequency=1001", "format=svg", "second=1"] {
            assert!(wanted(Some(query)).is_err(), "{query}");
        }
    }
}
