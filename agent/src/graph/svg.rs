//! A picture as SVG: one file without scripts and without anything from elsewhere, for light and dark.

use std::fmt::Write;

use super::layout::{Area, Layout, Line, Plan, PlanEdge, PlanNode, lay_out};
use super::picture::{Picture, PictureEdge, PictureNode, Shape, Way, shorten};

/// The fonts are of one width, so that room for text is known before it is drawn.
const STYLE: &str = include_str!("svg.css");
/// How wide a character is, as a part of the font's size.
const CHARACTER: f64 = 0.605;
const NAME_SIZE: f64 = 13.0;
const LABEL_SIZE: f64 = 11.0;
/// Longest texts, in characters; the whole ones are in the tooltips.
const LONGEST_NAME: usize = 32;
const LONGEST_LABEL: usize = 56;
const LONGEST_TITLE: usize = 30;
/// Around everything.
const MARGIN: f64 = 16.0;
/// Above the graph: the title.
const HEAD: f64 = 56.0;
/// The radius of corners.
const BEND: f64 = 5.0;
/// The legend's least width.
const LEGEND: f64 = 960.0;

/// Draws it.
pub(super) fn write(picture: &Picture) -> String {
    let layout = lay_out(&plan(picture));
    let widest = picture.notices.iter().chain([&picture.summary]).map(|text| width(text, LABEL_SIZE));
    let inner = layout.width.max(LEGEND).max(widest.fold(0.0, f64::max));
    let foot = HEAD + layout.height + 26.0;
    let lines = picture.notices.len() as f64;
    let (wide, high) = (inner + 2.0 * MARGIN, foot + 34.0 + 16.0 * lines + MARGIN);
    let mut out = String::new();
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{wide:.0}\" height=\"{high:.0}\" viewBox=\"0 0 {wide:.0} {high:.0}\" role=\"img\">\n\
         <title>Who talked to whom</title>\n<style>\n{STYLE}</style>\n<rect class=\"page\" width=\"100%\" height=\"100%\"/>\n"
    );
    text(&mut out, "title", (MARGIN, 28.0), "Who talked to whom");
    text(&mut out, "note", (MARGIN, 46.0), &picture.summary);
    let _ = writeln!(out, "<g transform=\"translate({MARGIN:.1} {HEAD:.1})\">");
    graph(&mut out, picture, &layout);
    out.push_str("</g>\n");
    let _ = writeln!(out, "<g transform=\"translate({MARGIN:.1} {foot:.1})\">");
    legend(&mut out);
    for (n, notice) in picture.notices.iter().enumerate() {
        text(&mut out, "note", (0.0, 40.0 + 16.0 * n as f64), notice);
    }
    out.push_str("</g>\n</svg>\n");
    out
}

fn plan(picture: &Picture) -> Plan {
    let node = |node: &PictureNode| PlanNode {
        width: width(&shorten(&node.name, LONGEST_NAME), NAME_SIZE)
            .max(width(&shorten(&node.detail, LONGEST_LABEL), LABEL_SIZE))
            + 22.0,
        height: if node.detail.is_empty() { 32.0 } else { 44.0 },
        group: node.group,
    };
    let edge = |edge: &PictureEdge| PlanEdge {
        from: edge.from,
        to: edge.to,
        label: width(&shorten(&edge.label, LONGEST_LABEL), LABEL_SIZE),
        weight: edge.weight,
    };
    Plan {
        nodes: picture.nodes.iter().map(node).collect(),
        edges: picture.edges.iter().map(edge).collect(),
        groups: picture
            .groups
            .iter()
            .map(|title| width(&shorten(title, LONGEST_TITLE), LABEL_SIZE))
            .collect(),
    }
}

/// Characters beyond Latin, Greek and Cyrillic may be twice as wide.
fn width(text: &str, size: f64) -> f64 {
    let cells: usize = text.chars().map(|c| if c < '\u{500}' || c == '…' || c == '·' { 1 } else { 2 }).sum();
    cells as f64 * size * CHARACTER
}

/// Boxes first: lines end on them, and words are on top.
fn graph(out: &mut String, picture: &Picture, layout: &Layout) {
    for (title, area) in picture.groups.iter().zip(&layout.groups) {
        rect(out, "group", area, 8.0);
        out.push_str("<g>");
        more(out, &[format!("namespace {title}")]);
        text(out, "group-title", (area.x + 11.0, area.y + 17.0), &shorten(title, LONGEST_TITLE));
        out.push_str("</g>\n");
    }
    for (edge, line) in picture.edges.iter().zip(&layout.edges) {
        let _ = write!(out, "<g class=\"{}\">", classes(edge.way, edge.refused));
        more(out, &edge.more);
        arrow(out, edge.way, edge.refused, &line.points);
        label(out, edge, line);
        out.push_str("</g>\n");
    }
    for (node, area) in picture.nodes.iter().zip(&layout.nodes) {
        out.push_str("<g>");
        more(out, &node.more);
        let (class, round) = match node.shape {
            Shape::Workload => ("node", 5.0),
            Shape::Service => ("node service", 16.0),
            Shape::Outside => ("node outside", 16.0),
        };
        rect(out, class, area, round);
        let (x, y) = (area.x + area.width / 2.0, area.y + area.height / 2.0);
        let name = shorten(&node.name, LONGEST_NAME);
        if node.detail.is_empty() {
            text(out, "name", (x, y + 4.5), &name);
        } else {
            text(out, "name", (x, y - 2.5), &name);
            text(out, "detail", (x, y + 13.0), &shorten(&node.detail, LONGEST_LABEL));
        }
        out.push_str("</g>\n");
    }
}

fn label(out: &mut String, edge: &PictureEdge, line: &Line) {
    text(out, "label", line.label, &shorten(&edge.label, LONGEST_LABEL));
}

fn classes(way: Way, refused: bool) -> String {
    let way = match way {
        Way::Direct => "direct",
        Way::Tunnel => "tunnel",
        Way::Passthrough => "passthrough",
    };
    format!("edge {way}{}", if refused { " refused" } else { "" })
}

/// A line with rounded corners, a second one inside it where it is a tunnel, and a head.
fn arrow(out: &mut String, way: Way, refused: bool, points: &[(f64, f64)]) {
    let Some((tip, y)) = points.last().copied() else { return };
    let mut points = points.to_vec();
    if let Some(last) = points.last_mut() {
        last.0 = tip - if refused { 11.0 } else { 8.0 };
    }
    let path = rounded(&points);
    let _ = write!(out, "<path class=\"line\" d=\"{path}\"/>");
    if way == Way::Tunnel {
        let _ = write!(out, "<path class=\"hollow\" d=\"{path}\"/>");
    }
    let _ = if refused {
        let (a, b) = (tip - 11.0, tip - 2.0);
        let (up, down) = (y - 4.5, y + 4.5);
        write!(
            out,
            "<path class=\"cross\" d=\"M{a:.1} {up:.1}L{b:.1} {down:.1}M{a:.1} {down:.1}L{b:.1} {up:.1}\"/>"
        )
    } else {
        let (base, up, down) = (tip - 9.0, y - 4.0, y + 4.0);
        write!(out, "<path class=\"head\" d=\"M{base:.1} {up:.1}L{tip:.1} {y:.1}L{base:.1} {down:.1}Z\"/>")
    };
}

fn rounded(points: &[(f64, f64)]) -> String {
    let mut path = String::new();
    for (n, (x, y)) in points.iter().copied().enumerate() {
        let before = n.checked_sub(1).and_then(|n| points.get(n)).copied();
        let _ = match (before, points.get(n + 1).copied()) {
            (None, _) => write!(path, "M{x:.1} {y:.1}"),
            (Some(_), None) => write!(path, "L{x:.1} {y:.1}"),
            (Some(before), Some(after)) => {
                let (from, to) = (towards((x, y), before), towards((x, y), after));
                write!(path, "L{:.1} {:.1}Q{x:.1} {y:.1} {:.1} {:.1}", from.0, from.1, to.0, to.1)
            }
        };
    }
    path
}

/// A little way, at most half of it.
fn towards((x, y): (f64, f64), (a, b): (f64, f64)) -> (f64, f64) {
    let length = (a - x).abs() + (b - y).abs();
    let part = if length > 0.0 { (BEND / length).min(0.5) } else { 0.0 };
    (x + (a - x) * part, y + (b - y) * part)
}

fn legend(out: &mut String) {
    let samples = [
        (Way::Direct, false, "direct"),
        (Way::Tunnel, false, "tunnel (HBONE)"),
        (Way::Passthrough, false, "passthrough (plaintext)"),
        (Way::Direct, true, "refused"),
    ];
    let mut x = 0.0;
    for (way, refused, word) in samples {
        let _ = write!(out, "<g class=\"{}\">", classes(way, refused));
        arrow(out, way, refused, &[(x, 10.0), (x + 44.0, 10.0)]);
        out.push_str("</g>");
        text(out, "note", (x + 52.0, 14.0), word);
        x += 52.0 + width(word, LABEL_SIZE) + 24.0;
    }
    text(out, "note", (x, 14.0), "labels: connections · a second · bytes a second");
    out.push('\n');
}

fn rect(out: &mut String, class: &str, area: &Area, round: f64) {
    let Area { x, y, width, height } = area;
    let _ = write!(
        out,
        "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"{round:.0}\"/>"
    );
}

fn text(out: &mut String, class: &str, (x, y): (f64, f64), words: &str) {
    let _ = write!(out, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escape(words));
}

/// What is shown when the pointer rests on it.
fn more(out: &mut String, lines: &[String]) {
    if !lines.is_empty() {
        let _ = write!(out, "<title>{}</title>", escape(&lines.join("\n")));
    }
}

/// As text of XML, which has no room for most control characters at all.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' => out.push('\n'),
            '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests;
