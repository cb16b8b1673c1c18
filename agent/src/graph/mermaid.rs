//! A picture as a Mermaid flowchart, as Markdown on many sites shows it.

use std::fmt::Write;

use super::picture::{Picture, PictureEdge, Shape, Way};

pub(super) fn write(picture: &Picture) -> String {
    let mut out = format!("---\ntitle: \"Who talked to whom: {}\"\n---\nflowchart LR\n", picture.summary);
    for (n, group) in picture.groups.iter().enumerate() {
        let _ = writeln!(out, "  subgraph g{n}[\"{}\"]", escape(group));
        nodes(&mut out, picture, Some(n), "    ");
        out.push_str("  end\n");
    }
    nodes(&mut out, picture, None, "  ");
    for edge in &picture.edges {
        let _ = writeln!(out, "  n{} {}|\"{}\"| n{}", edge.from, arrow(edge), escape(&edge.label), edge.to);
    }
    for (n, notice) in picture.notices.iter().enumerate() {
        let _ = writeln!(out, "  note{n}[\"{}\"]:::note", escape(notice));
    }
    styles(&mut out, picture);
    out
}

fn nodes(out: &mut String, picture: &Picture, group: Option<usize>, indent: &str) {
    for (n, node) in picture.nodes.iter().enumerate().filter(|(_, node)| node.group == group) {
        let name = match node.detail.as_str() {
            "" => escape(&node.name),
            detail => format!("{}<br/>{}", escape(&node.name), escape(detail)),
        };
        let (open, close) = if node.shape == Shape::Workload { ("[", "]") } else { ("([", "])") };
        let _ = writeln!(out, "{indent}n{n}{open}\"{name}\"{close}");
    }
}

fn arrow(edge: &PictureEdge) -> &'static str {
    match (edge.way, edge.refused) {
        (Way::Direct, false) => "-->",
        (Way::Direct, true) => "--x",
        (Way::Tunnel, false) => "==>",
        (Way::Tunnel, true) => "==x",
        (Way::Passthrough, false) => "-.->",
        (Way::Passthrough, true) => "-.-x",
    }
}

fn styles(out: &mut String, picture: &Picture) {
    let refused = picture.edges.iter().enumerate().filter(|(_, edge)| edge.refused);
    let refused: Vec<String> = refused.map(|(n, _)| n.to_string()).collect();
    if !refused.is_empty() {
        let _ = writeln!(
            out,
            "  linkStyle {} stroke:#c62828,color:#c62828,stroke-dasharray:8 4",
            refused.join(",")
        );
    }
    if !picture.notices.is_empty() {
        out.push_str("  classDef note fill:none,stroke:none\n");
    }
}

/// Whatever may mean something to Mermaid, Markdown or HTML, by its number.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            c if c.is_alphanumeric() => out.push(c),
            ' ' | '-' | '.' | '/' | ':' | ',' | '(' | ')' | '·' | '+' => out.push(c),
            c if c.is_control() => out.push('\u{fffd}'),
            c => {
                let _ = write!(out, "#{};", u32::from(c));
            }
        }
    }
    out
}
