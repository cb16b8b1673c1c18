//! Two runs side by side.

use std::fmt::Write;

use super::results::{Results, Row};
use super::table::figure;

/// What both have measured: before, now, and the difference. Differences of ratios say more than those of figures: the machine
/// may have been a faster one.
pub(crate) fn text(before: &Results, now: &Results) -> String {
    let mut text = format!("\nbefore: {}\n", before.machine.line());
    let _ = writeln!(
        text,
        "{:42} {:10} {:>12} {:>12} {:>8}   {:>6} {:>6} {:>8}   {:>8} {:>8}",
        "", "leg", "before", "now", "", "of raw", "now", "", "CPU", "now"
    );
    for (family, workload) in now.groups() {
        let title = format!("{} {workload}, {}", short(workload.kind().title()), family.name());
        let mut title = Some(title);
        for new in now.rows(family, workload) {
            let Some(old) = before.row(family, workload, new.leg) else { continue };
            let leg = new.leg.name(now.peer.as_deref().unwrap_or_default());
            let _ = write!(text, "{:42} {leg:10} ", title.take().unwrap_or_default());
            line(&mut text, &old, &new, workload.unit());
        }
    }
    text
}

fn short(title: &str) -> &str {
    title.split([',', ':']).next().unwrap_or(title)
}

fn line(text: &mut String, old: &Row, new: &Row, unit: &str) {
    let values = [old, new].map(|row| row.value.median);
    let _ = write!(text, "{:>12} {:>12} {:>8}   ", figure(values[0]), figure(values[1]), change(values));
    if let (Some(old), Some(new)) = (old.ratio, new.ratio) {
        let ratios = [old.median, new.median];
        let _ = write!(text, "{:>6.2} {:>6.2} {:>8}   ", ratios[0], ratios[1], change(ratios));
    } else {
        let _ = write!(text, "{:>6} {:>6} {:>8}   ", "", "", "");
    }
    if let (Some(old), Some(new)) = (old.cost, new.cost) {
        let _ = write!(text, "{old:>8.3} {new:>8.3}");
    }
    text.truncate(text.trim_end().len());
    let _ = writeln!(text, "  {unit}");
}

/// `+12.3 %`.
fn change([old, new]: [f64; 2]) -> String {
    let change = (new - old) / old.abs() * 100.0;
    if change.is_finite() { format!("{change:+.1} %") } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::results::tests::example;

    #[test]
    fn what_became_faster_has_a_plus() {
        let (before, mut now) = (example(0.5), example(0.6));
        now.samples.retain(|sample| sample.round != 3);
        let text = text(&before, &now);
        let tunnel = text.lines().find(|line| line.contains(" tunnel ")).unwrap();
        let words = tunnel.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words, "tunnel 5,000 6,600 +32.0 % 0.50 0.60 +20.0 % 0.500 0.500 /s");
        assert!(text.contains("request/response 64 B x1, IPv4"), "{text}");
    }

    #[test]
    fn what_was_not_measured_before_is_left_out() {
        let (mut before, now) = (example(0.5), example(0.6));
        before.samples.retain(|sample| sample.leg.near());
        assert!(!text(&before, &now).contains(" tunnel "));
        assert_eq!(change([0.0, 1.0]), "");
    }
}
