//! Figures in words, for labels, tooltips and tables.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::LeftOut;
use crate::telemetry::pairs::{Key, Pair, Pairs, Why};

/// `120 · 3.2/s · 1.2 kB/s`, or why it was refused.
pub(super) fn label(pair: &Pair, refused: bool, seconds: f64) -> String {
    if refused {
        return format!("{} refused · {}", pair.refusals(), main_reason(&pair.refused));
    }
    let bytes = pair.bytes_sent + pair.bytes_received;
    let mut parts = vec![pair.connections.to_string()];
    if seconds >= 1.0 {
        parts.push(format!("{}/s", number(pair.connections as f64 / seconds)));
    }
    match bytes {
        0 => {}
        _ if seconds >= 1.0 => parts.push(format!("{}/s", size(bytes as f64 / seconds))),
        _ => parts.push(size(bytes as f64)),
    }
    let cut: u64 = pair.cut.values().sum();
    for (count, word) in [(cut, "cut"), (pair.failed, "failed")] {
        if count > 0 {
            parts.push(format!("{count} {word}"));
        }
    }
    parts.join(" · ")
}

/// The policy or reason that refused most, and how many others there are.
pub(crate) fn main_reason(whys: &BTreeMap<Why, u64>) -> String {
    let most = whys.iter().max_by_key(|(why, count)| (**count, std::cmp::Reverse(*why)));
    let text =
        most.map_or("", |(why, _)| if why.policy.is_empty() { why.reason } else { why.policy.as_str() });
    match whys.len() {
        0 | 1 => text.to_owned(),
        count => format!("{text} +{}", count - 1),
    }
}

/// What else there is to know about an edge.
pub(super) fn more(key: &Key, pair: &Pair, refused: bool) -> Vec<String> {
    let mut lines = vec![format!("{} -> {} ({})", key.from.full(), key.to.full(), key.path)];
    let reasons = |lines: &mut Vec<String>, whys: &BTreeMap<Why, u64>, word: &str| {
        for (why, count) in whys {
            let by = if why.policy.is_empty() { String::new() } else { format!(" [{}]", why.policy) };
            lines.push(format!("{count} {word}: {}{by}", why.reason));
        }
    };
    if refused {
        reasons(&mut lines, &pair.refused, "refused");
    } else {
        let failed = if pair.failed > 0 { format!(", {} failed", pair.failed) } else { String::new() };
        lines.push(format!("{} connections, {} open{failed}", pair.connections, pair.open));
        reasons(&mut lines, &pair.cut, "cut");
        let (sent, received) = (size(pair.bytes_sent as f64), size(pair.bytes_received as f64));
        lines.push(format!("{sent} sent, {received} received"));
    }
    let ports: Vec<String> = pair.ports.iter().map(ToString::to_string).collect();
    lines.push(format!("to port {}", ports.join(", ")));
    if !pair.services.is_empty() {
        let services: Vec<&str> = pair.services.iter().map(String::as_str).collect();
        lines.push(format!("for {}", services.join(", ")));
    }
    lines.push(format!("{} to {}", moment(pair.first), moment(pair.last)));
    lines
}

/// How much, and of when.
pub(super) fn summary(pairs: &Pairs) -> String {
    let sum = |of: fn(&Pair) -> u64| pairs.iter().map(|(_, pair)| of(pair)).sum::<u64>();
    let (connections, refused) = (sum(|pair| pair.connections), sum(Pair::refusals));
    let bytes = size(sum(|pair| pair.bytes_sent + pair.bytes_received) as f64);
    let Some((first, last)) = pairs.span() else { return "no flows".to_owned() };
    let (from, to) = (clock(first), clock(last));
    // The day once.
    let to = match (from.split_once(' '), to.split_once(' ')) {
        (Some((day, _)), Some((same, time))) if day == same => time.to_owned(),
        _ => to,
    };
    format!("{connections} connections, {refused} refused, {bytes}, {from} to {to} UTC")
}

/// What is missing.
pub(super) fn notices(pairs: &Pairs, left_out: &LeftOut) -> Vec<String> {
    let mut notices = Vec::new();
    if left_out.edges > 0 {
        notices.push(format!(
            "{} more edges are left out ({} connections, {} refused): --top shows more",
            left_out.edges, left_out.connections, left_out.refused
        ));
    }
    if pairs.lost() > 0 {
        notices
            .push(format!("{} flow records are missing: they came faster than they were read", pairs.lost()));
    }
    notices
}

/// RFC 3339, of milliseconds since 1970.
pub(super) fn moment(ms: i64) -> String {
    Timestamp::from_millisecond(ms).map_or_else(|_| String::new(), |time| time.to_string())
}

fn clock(ms: i64) -> String {
    let time = Timestamp::from_millisecond(ms).unwrap_or_default();
    time.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// At most three digits that count; 0 is `0`.
pub(crate) fn number(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        v if v >= 99.95 => format!("{v:.0}"),
        v if v >= 9.995 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

/// Bytes, in powers of ten.
pub(crate) fn size(bytes: f64) -> String {
    let mut value = bytes;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.5 {
            return if unit == "B" { format!("{value:.0} B") } else { format!("{} {unit}", number(value)) };
        }
        value /= 1000.0;
    }
    format!("{} TB", number(value))
}
