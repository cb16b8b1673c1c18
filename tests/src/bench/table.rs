//! The results as text.

use std::fmt::Write;

use super::plan::{Kind, Workload};
use super::results::{Results, Row};
use super::stats::Spread;

/// All groups, by kind of workload.
pub(crate) fn text(results: &Results) -> String {
    let mut text = format!(
        "\nMedians of {} round(s) of {} ms. \"of raw\" is to the raw leg of the same round, with the least and the most of the rounds.\n",
        results.rounds, results.duration_ms
    );
    if results.pods + results.policies > 0 {
        let _ = writeln!(text, "{} more enrolled pods on n1, {} policies.", results.pods, results.policies);
    }
    let mut last = None;
    for (family, workload) in results.groups() {
        if last != Some((family, workload.kind())) {
            last = Some((family, workload.kind()));
            head(&mut text, &format!("{}, {}", workload.kind().title(), family.name()), workload);
        }
        for (n, row) in results.rows(family, workload).iter().enumerate() {
            let name = if n == 0 { workload.to_string() } else { String::new() };
            line(&mut text, &name, row, workload, results.peer.as_deref().unwrap_or_default());
        }
    }
    tail(&mut text, results);
    text
}

fn head(text: &mut String, title: &str, workload: Workload) {
    let columns = match workload.kind() {
        Kind::Rr | Kind::Connect | Kind::Storm => {
            format!("{:>8} {:>8} {:>8} {:>12}", "p50", "p99", "p99.9", "CPU s/10k")
        }
        Kind::Stream => format!("{:>8} {:>8} {:>8} {:>12}", "", "", "", "CPU s/GiB"),
        Kind::Idle => format!("{:>17}", "PSS then"),
        Kind::First => format!("{:>17}", "second"),
    };
    let _ = writeln!(text, "\n{title}\n{:18} {:10} {:>16}  {:<22} {columns}", "", "leg", "median", "of raw");
}

fn line(text: &mut String, name: &str, row: &Row, workload: Workload, peer: &str) {
    let value = format!("{} {}", figure(row.value.median), workload.unit());
    // What has no ratio shows by how much it varied.
    let ratio = match row.ratio {
        Some(Spread { median, min, max }) => format!("{median:.2}  ({min:.2} to {max:.2})"),
        None => format!("      {}", percent(&row.value)),
    };
    let _ = write!(text, "{name:18} {:10} {value:>16}  {ratio:<22} ", row.leg.name(peer));
    match workload.kind() {
        Kind::Rr | Kind::Connect | Kind::Storm | Kind::Stream => {
            let of = |get: fn(&super::load::Latency) -> f64| {
                row.latency.as_ref().map(get).map_or(String::new(), time)
            };
            let cost = row.cost.map_or(String::new(), |cost| format!("{cost:.3}"));
            let _ =
                write!(text, "{:>8} {:>8} {:>8} {cost:>12}", of(|l| l.p50), of(|l| l.p99), of(|l| l.p999));
        }
        Kind::Idle => {
            let held = row.memory.map_or(String::new(), |memory| mib(memory.pss));
            let _ = write!(text, "{held:>17}");
        }
        Kind::First => {
            let second = row.second.map_or(String::new(), |second| format!("{} ms", figure(second.median)));
            let _ = write!(text, "{second:>17}");
        }
    }
    if row.failures > 0 {
        let _ = write!(text, "  {} FAILED", row.failures);
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
}

fn tail(text: &mut String, results: &Results) {
    let [before, after] = results.agents;
    let _ = writeln!(
        text,
        "\nboth agents: PSS {}, RSS {} when ready; PSS {}, RSS {} at the end",
        mib(before.pss),
        mib(before.rss),
        mib(after.pss),
        mib(after.rss)
    );
    for problem in &results.problems {
        let _ = writeln!(text, "WRONG  {problem}");
    }
}

/// Three digits that count, with thousands set apart: `16,500`, `6.21`, `0.47`.
pub(crate) fn figure(value: f64) -> String {
    let digits = match value.abs() {
        large if large >= 100.0 => 0,
        middle if middle >= 10.0 => 1,
        small if small >= 0.095 => 2,
        _ => 3,
    };
    let plain = format!("{value:.digits$}");
    let whole = plain.split('.').next().unwrap_or_default().trim_start_matches('-').len();
    let mut text = String::new();
    for (n, c) in plain.trim_start_matches('-').chars().enumerate() {
        if n > 0 && n < whole && (whole - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(c);
    }
    if value < 0.0 { format!("-{text}") } else { text }
}

/// `±7 %`: half of what lies between the least and the most, in parts of the median.
fn percent(spread: &Spread) -> String {
    let Spread { median, min, max } = spread;
    if *median == 0.0 || max <= min {
        String::new()
    } else {
        format!("±{:.0} %", (max - min) / median.abs() * 50.0)
    }
}

/// Microseconds in fitting words.
fn time(micros: f64) -> String {
    if micros >= 1000.0 {
        format!("{} ms", figure(micros / 1000.0))
    } else {
        format!("{} µs", figure(micros))
    }
}

pub(crate) fn mib(bytes: u64) -> String {
    format!("{} MiB", figure(bytes as f64 / f64::from(1 << 20)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::results::tests::example;

    #[test]
    fn figures_have_three_digits_that_count() {
        for (value, text) in [
            (16_512.3, "16,512"),
            (1_234_567.0, "1,234,567"),
            (999.6, "1,000"),
            (58.25, "58.2"),
            (6.214, "6.21"),
            (0.0213, "0.021"),
            (-1200.0, "-1,200"),
            (0.0, "0.000"),
        ] {
            assert_eq!(figure(value), text);
        }
    }

    #[test]
    fn a_person_finds_what_they_look_for() {
        let mut results = example(0.5);
        results.problems.push("something broke".to_owned());
        let text = text(&results);
        let lines: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        for line in [
            "request/response, IPv4",
            "64 B x1 raw-near 11,000 /s ±20 % 58.2 µs 120 µs 1.50 ms",
            "tunnel 5,000 /s 0.50 (0.50 to 0.50) 58.2 µs 120 µs 1.50 ms 0.500",
            "2000 tunnel 31,000 B each 90.0 MiB",
            "first tunnel 3.50 ms 0.20 ms",
            "both agents: PSS 40.0 MiB, RSS 60.0 MiB when ready; PSS 44.0 MiB, RSS 64.0 MiB at the end",
            "WRONG something broke",
        ] {
            assert!(lines.iter().any(|found| found == line), "{line:?} is missing in:\n{text}");
        }
    }
}
