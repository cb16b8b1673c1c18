//! A picture for graphviz.

use std::fmt::Write;

use super::picture::{Picture, PictureEdge, Shape, Way};

pub(super) fn write(picture: &Picture) -> String {
    let mut out = String::from("digraph flows {\n  rankdir=LR;\n");
    let title = std::iter::once(&picture.summary).chain(&picture.notices);
    let title: Vec<String> = title.map(|line| escape(line)).collect();
    let _ = writeln!(out, "  label=\"{}\";", title.join("\\l") + "\\l");
    out.push_str("  node [shape=box, style=rounded, fontname=\"sans-serif\"];\n");
    out.push_str("  edge [fontname=\"sans-serif\", fontsize=10];\n");
    for (n, group) in picture.groups.iter().enumerate() {
        let _ = writeln!(out, "  subgraph cluster_{n} {{\n    label=\"{}\";", escape(group));
        nodes(&mut out, picture, Some(n), "    ");
        out.push_str("  }\n");
    }
    nodes(&mut out, picture, None, "  ");
    for edge in &picture.edges {
        let (label, more) = (escape(&edge.label), tooltip(&edge.more));
        let _ = writeln!(
            out,
            "  n{} -> n{} [label=\"{label}\", tooltip=\"{more}\", {}];",
            edge.from,
            edge.to,
            style(edge)
        );
    }
    out.push_str("}\n");
    out
}

fn nodes(out: &mut String, picture: &Picture, group: Option<usize>, indent: &str) {
    for (n, node) in picture.nodes.iter().enumerate().filter(|(_, node)| node.group == group) {
        let name = match node.detail.as_str() {
            "" => escape(&node.name),
            detail => format!("{}\\n{}", escape(&node.name), escape(detail)),
        };
        let style = if node.shape == Shape::Workload { "" } else { ", style=\"rounded,dashed\"" };
        let _ = writeln!(out, "{indent}n{n} [label=\"{name}\", tooltip=\"{}\"{style}];", tooltip(&node.more));
    }
}

fn tooltip(lines: &[String]) -> String {
    lines.iter().map(|line| escape(line)).collect::<Vec<_>>().join("\\n")
}

/// A tunnel is a double line, plaintext a dotted one, what was refused a dashed one with a bar.
fn style(edge: &PictureEdge) -> &'static str {
    match (edge.way, edge.refused) {
        (Way::Direct, false) => "color=\"#33628f\"",
        (Way::Tunnel, false) => "color=\"#1a7f52:#1a7f52\"",
        (Way::Passthrough, false) => "color=\"#7a5d10\", style=dotted",
        (Way::Tunnel, true) => {
            "color=\"#c62828:#c62828\", fontcolor=\"#c62828\", style=dashed, arrowhead=tee"
        }
        (Way::Direct | Way::Passthrough, true) => {
            "color=\"#c62828\", fontcolor=\"#c62828\", style=dashed, arrowhead=tee"
        }
    }
}

/// As part of a quoted string: graphviz knows escapes with a backslash, and those of HTML.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '&' => out.push_str("&amp;"),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}
