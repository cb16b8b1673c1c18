//! Whether what came is what was expected, and in which words it is not.

use crate::lab::FlowRecord;
use crate::pod_process::Try;
use crate::scenario::{Count, Expect, OneOrMany, Text};

/// What a probe brought: its tries and the flow records of their connections.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// One for each `count`.
    pub tries: Vec<Try>,
    /// Records of these connections.
    pub flows: Vec<FlowRecord>,
    /// Clients as TCP servers saw them.
    pub accepted: Vec<std::net::SocketAddr>,
}

/// What a program printed.
#[derive(Clone, Debug, Default)]
pub struct Printed {
    /// Exit status; -1 when killed.
    pub exit: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Everything in which `seen` differs from what is expected; empty when nothing does.
pub fn probe(expect: &Expect, seen: &Observed) -> Vec<String> {
    let mut wrong = Vec::new();
    for (n, one) in seen.tries.iter().enumerate() {
        let found = one_try(expect, one);
        if !found.is_empty() {
            let which = if seen.tries.len() > 1 { format!("request {}: ", n + 1) } else { String::new() };
            wrong.extend(found.into_iter().map(|text| format!("{which}{text}")));
        }
        if wrong.len() >= 3 {
            wrong.push("…".to_owned());
            break;
        }
    }
    for (text, share) in &expect.bodies {
        wrong.extend(bodies(text, share, seen));
    }
    wrong.extend(flow_facts(expect, seen));
    if let Some(source) = &expect.source {
        wrong.extend(source_seen(source, seen));
    }
    wrong
}

fn one_try(expect: &Expect, one: &Try) -> Vec<String> {
    let mut wrong = Vec::new();
    let got =
        if one.error.is_empty() { format!("status {}", one.status) } else { format!("error {}", one.error) };
    match &expect.error {
        Some(wanted) if one.error.is_empty() || (wanted != "any" && *wanted != one.error) => {
            wrong.push(format!("expected error {wanted}, got {got}{}", shown_body(one)));
        }
        Some(_) => {}
        None if !one.error.is_empty() => wrong.push(format!("expected an answer, got {got}")),
        None => {}
    }
    if let Some(status) = &expect.status
        && !fits(status, &one.status)
    {
        wrong.push(format!("expected status {status:?}, got {got}{}", shown_body(one)));
    }
    if let Some(text) = &expect.body {
        wrong.extend(matches_text("body", text, &one.body));
    }
    if let Some(reply) = &expect.reply
        && *reply != one.body
    {
        wrong.push(format!("expected reply {reply:?}, got {:?} ({got})", one.body));
    }
    wrong
}

fn shown_body(one: &Try) -> String {
    if one.body.is_empty() { String::new() } else { format!(" with body {:?}", one.body) }
}

fn fits<T: PartialEq>(wanted: &OneOrMany<T>, got: &T) -> bool {
    match wanted {
        OneOrMany::One(one) => one == got,
        OneOrMany::Many(many) => many.contains(got),
    }
}

fn flow_facts(expect: &Expect, seen: &Observed) -> Vec<String> {
    let mut wrong = Vec::new();
    let records = || seen.flows.iter();
    if let Some(path) = &expect.path {
        let at = |side: &str| {
            records()
                .filter(|f| f.side == side && f.stage != "closed")
                .map(|f| f.path.clone())
                .collect::<Vec<_>>()
        };
        let mut got = at("source");
        if got.is_empty() {
            got = at("destination");
        }
        // Nothing in the mesh touched the connection.
        if got.is_empty() {
            got.push("passthrough".to_owned());
        }
        if got.iter().any(|p| p != path) {
            got.dedup();
            wrong.push(format!("expected path {path}, got {}", got.join(", ")));
        }
    }
    if let Some(peer) = &expect.peer {
        let mut got: Vec<&str> = records()
            .filter(|f| f.side == "destination" && f.stage != "closed")
            .map(|f| f.source.identity.as_str())
            .collect();
        got.dedup();
        if got.is_empty() || got.iter().any(|p| p != peer) {
            wrong.push(format!("expected peer {peer}, the destination saw {got:?}"));
        }
    }
    let refused: Vec<&FlowRecord> = records().filter(|f| f.stage == "refused").collect();
    let among = |label: &str, wanted: &Option<String>, holds: &dyn Fn(&FlowRecord, &str) -> bool| {
        let wanted = wanted.as_ref()?;
        let pool: Vec<&FlowRecord> = if refused.is_empty() { records().collect() } else { refused.clone() };
        if pool.iter().any(|f| holds(f, wanted)) {
            return None;
        }
        let got: Vec<String> =
            pool.iter().map(|f| format!("{:?} by {:?} {}", f.reason, f.policy, f.error)).collect();
        Some(format!(
            "expected {label} {wanted:?}, flow records say {}",
            if got.is_empty() { "nothing".to_owned() } else { got.join("; ") }
        ))
    };
    wrong.extend(among("reason", &expect.reason, &|f, w| f.reason.contains(w) || f.error.contains(w)));
    wrong.extend(among("policy", &expect.policy, &|f, w| f.policy == w));
    wrong
}

fn source_seen(source: &str, seen: &Observed) -> Vec<String> {
    let wanted = source.trim_matches(['[', ']']);
    let mut got: Vec<String> =
        seen.tries.iter().filter_map(|t| t.seen).map(|a| a.ip().to_canonical().to_string()).collect();
    got.extend(seen.accepted.iter().map(|a| a.ip().to_canonical().to_string()));
    got.sort();
    got.dedup();
    if got.len() == 1 && got[0] == wanted {
        Vec::new()
    } else {
        vec![format!("expected source {wanted}, the server saw {got:?}")]
    }
}

fn bodies(text: &str, share: &str, seen: &Observed) -> Vec<String> {
    let total = seen.tries.len().max(1);
    let hits = seen.tries.iter().filter(|t| t.error.is_empty() && t.body.contains(text)).count();
    #[expect(clippy::cast_precision_loss, reason = "counts of requests")]
    let percent = hits as f64 * 100.0 / total as f64;
    match share_holds(share, percent, hits) {
        Some(true) => Vec::new(),
        Some(false) => {
            vec![format!("expected {share} of bodies with {text:?}, got {percent:.0}% ({hits} of {total})")]
        }
        None => {
            vec![format!("bodies: {share:?} is no share: write \"70-90%\", \">=50%\", \"50%\" or a number")]
        }
    }
}

/// `70-90%`, `50%`, `>=50%`, or a number of answers.
fn share_holds(share: &str, percent: f64, hits: usize) -> Option<bool> {
    let Some(text) = share.trim().strip_suffix('%') else {
        return share.trim().parse::<usize>().ok().map(|wanted| wanted == hits);
    };
    for (sign, holds) in [
        (">=", (|a, b| a >= b) as fn(f64, f64) -> bool),
        ("<=", |a, b| a <= b),
        (">", |a, b| a > b),
        ("<", |a, b| a < b),
    ] {
        if let Some(bound) = text.strip_prefix(sign) {
            return bound.trim().parse().ok().map(|b| holds(percent, b));
        }
    }
    if let Some((low, high)) = text.split_once('-') {
        let (low, high): (f64, f64) =
            (low.trim().trim_end_matches('%').parse().ok()?, high.trim().parse().ok()?);
        return Some(low <= percent && percent <= high);
    }
    text.trim().parse::<f64>().ok().map(|wanted| (wanted - percent).abs() < 0.5)
}

/// As [`probe`], for a program.
pub fn printed(expect: &Expect, seen: &Printed) -> Vec<String> {
    let mut wrong = Vec::new();
    if let Some(exit) = expect.exit
        && exit != seen.exit
    {
        wrong.push(format!("expected exit {exit}, got {}", seen.exit));
    }
    for (label, text, got) in
        [("stdout", &expect.stdout, &seen.stdout), ("stderr", &expect.stderr, &seen.stderr)]
    {
        if let Some(text) = text {
            wrong.extend(matches_text(label, text, got));
        }
    }
    if !wrong.is_empty() {
        wrong.push(format!("stdout: {}", seen.stdout.trim_end()));
        wrong.push(format!("stderr: {}", seen.stderr.trim_end()));
    }
    wrong
}

/// As [`probe`], for a load.
pub fn load(expect: &Expect, requests: u64, failed: u64, errors: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for (label, wanted, got) in [("failed", &expect.failed, failed), ("requests", &expect.requests, requests)]
    {
        match wanted.as_ref().map(|w| count_holds(w, got)) {
            Some(Some(false)) => {
                wrong.push(format!("expected {label} {wanted:?}, got {got} of {requests} requests {errors}"))
            }
            Some(None) => wrong.push(format!("{label}: {wanted:?} is no count: write 5 or \">100\"")),
            Some(Some(true)) | None => {}
        }
    }
    wrong
}

fn count_holds(wanted: &Count, got: u64) -> Option<bool> {
    let text = match wanted {
        Count::Number(number) => return Some(*number == got),
        Count::Bound(text) => text.trim(),
    };
    for (sign, holds) in [
        (">=", (|a, b| a >= b) as fn(u64, u64) -> bool),
        ("<=", |a, b| a <= b),
        (">", |a, b| a > b),
        ("<", |a, b| a < b),
    ] {
        if let Some(bound) = text.strip_prefix(sign) {
            return bound.trim().parse().ok().map(|b| holds(got, b));
        }
    }
    text.parse::<u64>().ok().map(|n| n == got)
}

fn matches_text(label: &str, wanted: &Text, got: &str) -> Vec<String> {
    let list = |list: &Option<OneOrMany<String>>| match list {
        None => Vec::new(),
        Some(OneOrMany::One(one)) => vec![one.clone()],
        Some(OneOrMany::Many(many)) => many.clone(),
    };
    let (contains, not) = match wanted {
        Text::Plain(text) => (vec![text.clone()], Vec::new()),
        Text::Full(full) => (list(&full.contains), list(&full.not)),
    };
    let missing = contains.iter().filter(|t| !got.contains(t.as_str()));
    let mut wrong: Vec<String> =
        missing.map(|t| format!("expected {label} with {t:?}, got {got:?}")).collect();
    let present = not.iter().filter(|t| got.contains(t.as_str()));
    wrong.extend(present.map(|t| format!("expected {label} without {t:?}, got {got:?}")));
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_counts_are_understood() {
        for (share, percent, holds) in [
            ("70-90%", 80.0, true),
            ("70-90%", 91.0, false),
            (">=50%", 50.0, true),
            ("50%", 50.2, true),
            ("50%", 52.0, false),
            ("0%", 0.0, true),
        ] {
            assert_eq!(share_holds(share, percent, 0), Some(holds), "{share}");
        }
        assert_eq!(share_holds("7", 0.0, 7), Some(true));
        assert_eq!(share_holds("many", 0.0, 7), None);
        assert_eq!(count_holds(&Count::Bound(">100".into()), 101), Some(true));
        assert_eq!(count_holds(&Count::Bound(">100".into()), 100), Some(false));
        assert_eq!(count_holds(&Count::Bound("lots".into()), 100), None);
    }

    #[test]
    fn a_failure_that_nobody_expected_is_one() {
        let seen =
            Observed { tries: vec![Try { error: "reset".into(), ..Try::default() }], ..Observed::default() };
        assert_eq!(probe(&Expect::default(), &seen).len(), 1);
        let refused = Expect { error: Some("refused".into()), ..Expect::default() };
        assert_eq!(probe(&refused, &seen).len(), 1);
        let any = Expect { error: Some("any".into()), ..Expect::default() };
        assert!(probe(&any, &seen).is_empty());
    }

    #[test]
    fn a_connection_that_left_no_record_passed_through() {
        let seen = Observed { tries: vec![Try { status: 200, ..Try::default() }], ..Observed::default() };
        let path = |p: &str| Expect { path: Some(p.into()), ..Expect::default() };
        assert!(probe(&path("passthrough"), &seen).is_empty());
        assert_eq!(probe(&path("direct"), &seen).len(), 1);
    }
}
