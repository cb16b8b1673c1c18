//! The ratios as a picture: bars of direct, tunnel and peer against the raw network, with the targets marked.

use std::fmt::Write;

use super::plan::{Family, Kind, Leg, Workload};
use super::results::{Results, Row};

const LABELS: f64 = 200.0;
const PLOT: f64 = 400.0;
const GAP: f64 = 56.0;
const MARGIN: f64 = 28.0;
const BAR: f64 = 13.0;
const BETWEEN: f64 = 3.0;
/// Between workloads, and between their kinds.
const GROUP: f64 = 12.0;
const TOP: f64 = 132.0;
/// The axis ends here, or where the longest bar does.
const LEAST_END: f64 = 1.2;
const MOST_END: f64 = 2.5;

/// Colours of both themes, chosen to be told apart with any eyesight.
const STYLE: &str = "\
svg{background:#fff;font-family:system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}\
.title{font-size:19px;font-weight:600}.text{font-size:12px}.small{font-size:11px}.kind{font-size:12.5px;font-weight:600}\
.title,.text,.kind,.value{fill:#1b1f24}.small{fill:#59636e}.value{font-size:11px}\
.grid{stroke:#e2e6ea}.one{stroke:#59636e;stroke-width:1.3}.whisker{stroke:#1b1f24;stroke-opacity:.55;fill:none}\
.target{stroke:#c4320a;stroke-width:2.4}.paper{fill:#fff}\
.direct{fill:#2f7ed8}.tunnel{fill:#e0912f}.peer{fill:#8a94a0}\
@media(prefers-color-scheme:dark){svg{background:#0f1419}.paper{fill:#0f1419}\
.title,.text,.kind,.value{fill:#e6e9ec}.small{fill:#9aa4ae}.grid{stroke:#2a323b}.one{stroke:#9aa4ae}\
.whisker{stroke:#e6e9ec}.target{stroke:#ff7a50}.direct{fill:#4c9bf0}.tunnel{fill:#eda94f}.peer{fill:#6f7a86}}";

/// What is to be reached, in parts of raw.
fn target(workload: Workload, leg: Leg) -> Option<f64> {
    let far = match workload {
        Workload::Rr { size: 64, connections: 1 } => Some(0.52),
        Workload::Stream { write: 65536, flows: 1 } | Workload::Connect { parallel: 1 } => Some(0.45),
        _ => None,
    };
    match leg {
        Leg::Direct => Some(0.97),
        Leg::Tunnel => far,
        _ => None,
    }
}

/// The picture, as an SVG file.
pub(crate) fn draw(results: &Results) -> String {
    let families: Vec<Family> = [Family::V4, Family::V6]
        .into_iter()
        .filter(|family| results.groups().iter().any(|group| group.0 == *family))
        .collect();
    let end = axis_end(results);
    let mut chart = Chart { results, end, out: String::new() };
    let bottom = chart.bars(&families);
    let width = 2.0 * MARGIN + LABELS + families.len() as f64 * (PLOT + GAP);
    let height = bottom + 74.0;
    let bars = std::mem::take(&mut chart.out);
    chart.head(&families);
    chart.axes(&families, bottom);
    chart.out.push_str(&bars);
    chart.foot(bottom);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\">\n\
         <title>Culvert against the raw network</title>\n<style>{STYLE}</style>\n\
         <rect class=\"paper\" width=\"{width}\" height=\"{height}\"/>\n{}</svg>\n",
        chart.out
    )
}

fn axis_end(results: &Results) -> f64 {
    let rows = charted(results).flat_map(|(family, workload)| results.rows(family, workload));
    let longest = rows.filter_map(|row| row.ratio).map(|ratio| ratio.median).fold(0.0, f64::max);
    ((longest + 0.1) * 5.0).ceil().clamp(LEAST_END * 5.0, MOST_END * 5.0) / 5.0
}

/// Memory and first connections are no parts of raw.
fn charted(results: &Results) -> impl Iterator<Item = (Family, Workload)> {
    let rated = |workload: Workload| !matches!(workload.kind(), Kind::Idle | Kind::First);
    results.groups().into_iter().filter(move |(_, workload)| rated(*workload))
}

struct Chart<'a> {
    results: &'a Results,
    end: f64,
    out: String,
}

impl Chart<'_> {
    fn text(&mut self, class: &str, x: f64, y: f64, anchor: &str, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(
            self.out,
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
        );
    }

    fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        let _ = writeln!(
            self.out,
            "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
        );
    }

    fn rect(&mut self, class: &str, (x, y): (f64, f64), width: f64, height: f64) {
        let _ = writeln!(
            self.out,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"1.5\"/>"
        );
    }

    fn left(panel: usize) -> f64 {
        MARGIN + LABELS + panel as f64 * (PLOT + GAP)
    }

    fn x(&self, panel: usize, ratio: f64) -> f64 {
        Self::left(panel) + ratio.clamp(0.0, self.end) / self.end * PLOT
    }

    fn head(&mut self, families: &[Family]) {
        self.text("title", MARGIN, 38.0, "start", "Culvert against the raw network");
        let Results { rounds, duration_ms, .. } = self.results;
        let how = format!(
            "1.0: the raw network, same machine and round. Medians of {rounds} × {duration_ms} ms; thin lines: least to most."
        );
        self.text("small", MARGIN, 58.0, "start", &how);
        let mut keys = vec![
            ("direct", "direct (pods of one node)".to_owned()),
            ("tunnel", "tunnel (HBONE between nodes)".to_owned()),
        ];
        keys.extend(self.results.peer.iter().map(|peer| ("peer", peer.clone())));
        let mut x = MARGIN;
        for (class, name) in keys {
            self.rect(class, (x, 74.0), 12.0, 12.0);
            self.text("text", x + 18.0, 84.0, "start", &name);
            x += 46.0 + name.chars().count() as f64 * 6.4;
        }
        self.line("target", (x + 6.0, 73.0), (x + 6.0, 87.0));
        self.text("text", x + 16.0, 84.0, "start", "target");
        if families.len() > 1 {
            for (panel, family) in families.iter().enumerate() {
                self.text("kind", Self::left(panel), TOP - 24.0, "start", family.name());
            }
        }
    }

    fn axes(&mut self, families: &[Family], bottom: f64) {
        for panel in 0..families.len() {
            let mut tick = 0.0;
            while tick <= self.end + 1e-9 {
                let x = self.x(panel, tick);
                let class = if (tick - 1.0_f64).abs() < 1e-9 { "one" } else { "grid" };
                self.line(class, (x, TOP - 12.0), (x, bottom));
                self.text("small", x, bottom + 16.0, "middle", &format!("{tick:.1}"));
                tick += 0.2;
            }
        }
    }

    /// Returns where they end.
    fn bars(&mut self, families: &[Family]) -> f64 {
        let mut workloads: Vec<Workload> = Vec::new();
        for (_, workload) in charted(self.results) {
            if !workloads.contains(&workload) {
                workloads.push(workload);
            }
        }
        let (mut y, mut last) = (TOP, None);
        for workload in workloads {
            if last != Some(workload.kind()) {
                last = Some(workload.kind());
                self.text("kind", MARGIN, y + 10.0, "start", workload.kind().title());
                y += 24.0;
            }
            let rows = |family| {
                let rows = self.results.rows(family, workload).into_iter();
                rows.filter(|row| row.ratio.is_some()).collect::<Vec<_>>()
            };
            let panels: Vec<Vec<Row>> = families.iter().map(|family| rows(*family)).collect();
            let height = panels.iter().map(Vec::len).max().unwrap_or(0) as f64 * (BAR + BETWEEN);
            let middle = y + (height - BETWEEN) / 2.0 + 4.0;
            self.text("text", MARGIN + LABELS - 12.0, middle, "end", &workload.to_string().replace('x', "×"));
            for (panel, rows) in panels.iter().enumerate() {
                for (n, row) in rows.iter().enumerate() {
                    self.bar(panel, y + n as f64 * (BAR + BETWEEN), row, workload);
                }
            }
            y += height + GROUP;
        }
        y
    }

    fn bar(&mut self, panel: usize, y: f64, row: &Row, workload: Workload) {
        let Some(ratio) = row.ratio else { return };
        let left = Self::left(panel);
        let [x, least, most] = [ratio.median, ratio.min, ratio.max].map(|ratio| self.x(panel, ratio));
        self.rect(row.leg.name("peer"), (left, y), x - left, BAR);
        let middle = y + BAR / 2.0;
        self.line("whisker", (least, middle), (most, middle));
        for end in [least, most] {
            self.line("whisker", (end, middle - 3.0), (end, middle + 3.0));
        }
        if let Some(target) = target(workload, row.leg) {
            let target = self.x(panel, target);
            self.line("target", (target, y - 1.5), (target, y + BAR + 1.5));
        }
        // In a column of their own, where no line crosses them.
        self.text("value", left + PLOT + 38.0, y + BAR - 2.6, "end", &format!("{:.2}", ratio.median));
    }

    fn foot(&mut self, bottom: f64) {
        let machine = &self.results.machine;
        let day = machine.date.split('T').next().unwrap_or_default();
        let where_ = format!("{}, {} cores, Linux {}", machine.processor, machine.cores, machine.kernel);
        self.text("small", MARGIN, bottom + 42.0, "start", &where_);
        let mut what = format!("{day}, {}", machine.culvert);
        if self.results.pods + self.results.policies > 0 {
            let _ = write!(what, ", {} more pods, {} policies", self.results.pods, self.results.policies);
        }
        self.text("small", MARGIN, bottom + 58.0, "start", &what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::results::tests::example;

    #[test]
    fn every_ratio_has_its_bar_and_the_targets_are_marked() {
        let mut results = example(0.5);
        results.peer = Some("a<b".to_owned());
        let svg = draw(&results);
        let count = |text: &str| svg.matches(text).count();
        // One of each is the key.
        assert_eq!((count("class=\"direct\""), count("class=\"tunnel\"")), (3 + 1, 3 + 1));
        assert_eq!(count("class=\"target\""), 6 + 1);
        assert_eq!(count(">0.50<"), 3);
        assert_eq!(count(">0.99<"), 3);
        assert!(svg.contains("a&lt;b") && svg.contains("prefers-color-scheme:dark"));
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    }

    #[test]
    fn a_bar_that_is_longer_than_raw_has_room() {
        let svg = draw(&example(1.7));
        assert!(svg.contains(">1.8<"), "the axis goes beyond");
        assert!(!draw(&example(0.5)).contains(">1.4<"));
    }
}
