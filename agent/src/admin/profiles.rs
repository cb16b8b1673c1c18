//! `/debug/pprof/profile`: where processor time goes. `/debug/pprof/heap`: where memory goes.

use std::time::Duration;

use http::StatusCode;

use super::query::Query;
use super::reply::{Answer, reply, text};
use crate::profile::{self, CpuProfile, Form, HeapProfile, ProfileError};

/// ztunnel's bounds and defaults.
const LONGEST: u64 = 300;
const MOST_OFTEN: u64 = 1000;

/// Measures, then answers.
pub(super) async fn cpu(query: Option<&str>) -> Answer {
    match cpu_wanted(query) {
        Ok(wanted) => answer(profile::cpu(wanted).await, wanted.form),
        Err(why) => text(StatusCode::BAD_REQUEST, format!("{why}\n")),
    }
}

/// Watches, then answers; at once if the agent has watched from the start.
pub(super) async fn heap(query: Option<&str>) -> Answer {
    match heap_wanted(query) {
        Ok(wanted) => answer(profile::heap(wanted).await, wanted.form),
        Err(why) => text(StatusCode::BAD_REQUEST, format!("{why}\n")),
    }
}

fn answer(result: Result<Vec<u8>, ProfileError>, form: Form) -> Answer {
    match (result, form) {
        (Ok(file), Form::Pprof) => reply(StatusCode::OK, "application/octet-stream", file),
        (Ok(lines), Form::Folded) => text(StatusCode::OK, lines),
        (Err(error), _) => text(status(&error), format!("{error}\n")),
    }
}

fn status(error: &ProfileError) -> StatusCode {
    match error {
        ProfileError::Busy => StatusCode::SERVICE_UNAVAILABLE,
        ProfileError::NotFollowed | ProfileError::FollowedAlways => StatusCode::BAD_REQUEST,
        ProfileError::Kernel(_) => StatusCode::NOT_IMPLEMENTED,
        ProfileError::Abandoned | ProfileError::Write(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn cpu_wanted(query: Option<&str>) -> Result<CpuProfile, String> {
    let query = Query::parse(query, &["seconds", "frequency", "format"])?;
    let length = Duration::from_secs(within(&query, "seconds", LONGEST)?.unwrap_or(10));
    Ok(CpuProfile {
        length,
        frequency: within(&query, "frequency", MOST_OFTEN)?.unwrap_or(100),
        form: form(&query)?,
    })
}

fn heap_wanted(query: Option<&str>) -> Result<HeapProfile, String> {
    let query = Query::parse(query, &["seconds", "format"])?;
    Ok(HeapProfile {
        length: within(&query, "seconds", LONGEST)?.map(Duration::from_secs),
        form: form(&query)?,
    })
}

fn within(query: &Query, name: &str, most: u64) -> Result<Option<u64>, String> {
    match query.number(name)? {
        Some(number) if !(1..=most).contains(&number) => {
            Err(format!("{name}={number}: write a number from 1 to {most}"))
        }
        number => Ok(number),
    }
}

fn form(query: &Query) -> Result<Form, String> {
    match query.get("format").unwrap_or("pprof") {
        "pprof" => Ok(Form::Pprof),
        "folded" => Ok(Form::Folded),
        other => Err(format!("format={other:?}: write pprof or folded")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        let plain = cpu_wanted(None).unwrap();
        assert_eq!((plain.length.as_secs(), plain.frequency, plain.form), (10, 100, Form::Pprof));
        let own = cpu_wanted(Some("seconds=300&frequency=1000&format=folded")).unwrap();
        assert_eq!((own.length.as_secs(), own.frequency, own.form), (300, 1000, Form::Folded));
        for query in ["seconds=0", "seconds=301", "frequency=0", "frequency=1001", "format=svg", "second=1"] {
            assert!(cpu_wanted(Some(query)).is_err(), "{query}");
        }
        assert_eq!(heap_wanted(None).unwrap().length, None);
        let watched = heap_wanted(Some("seconds=3&format=folded")).unwrap();
        assert_eq!((watched.length, watched.form), (Some(Duration::from_secs(3)), Form::Folded));
        for query in ["seconds=0", "seconds=301", "frequency=100", "format=svg"] {
            assert!(heap_wanted(Some(query)).is_err(), "{query}");
        }
    }
}
