//! Pictures of who talked to whom: [`Pairs`] as SVG, Mermaid, DOT or JSON.
//!
//! A pair has at most two arrows: for what was let in, and for what was not. The same pairs give the same picture.

mod dot;
mod json;
mod layout;
mod mermaid;
mod picture;
mod svg;
pub(crate) mod words;

use std::cmp::Reverse;
use std::collections::BTreeMap;

use clap::ValueEnum;

use crate::telemetry::pairs::{Key, Kind, Node, Pair, Pairs};
use picture::{Picture, PictureEdge, PictureNode, Shape, Way};

/// How it is written.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// A picture for browsers and documents.
    Svg,
    /// A flowchart for Markdown.
    Mermaid,
    /// For graphviz.
    Dot,
    /// Nodes and edges, with every figure.
    Json,
}

/// What is drawn as one arrow.
#[derive(Clone, Copy)]
struct Edge<'a> {
    key: &'a Key,
    pair: &'a Pair,
    refused: bool,
}

impl Edge<'_> {
    fn connections(&self) -> u64 {
        if self.refused { self.pair.refusals() } else { self.pair.connections }
    }
}

/// The busiest edges, and the rest in figures.
struct Selection<'a> {
    pairs: &'a Pairs,
    /// In the order of names.
    edges: Vec<Edge<'a>>,
    left_out: LeftOut,
}

/// What is not drawn.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
struct LeftOut {
    edges: u64,
    connections: u64,
    refused: u64,
}

/// Draws the `top` busiest edges, and says how many are left out.
///
/// # Errors
///
/// Only JSON can fail, and does not.
pub fn draw(pairs: &Pairs, top: usize, form: Form) -> Result<String, serde_json::Error> {
    let selection = Selection::new(pairs, top);
    Ok(match form {
        Form::Svg => svg::write(&selection.picture()),
        Form::Mermaid => mermaid::write(&selection.picture()),
        Form::Dot => dot::write(&selection.picture()),
        Form::Json => json::write(&selection)?,
    })
}

impl<'a> Selection<'a> {
    fn new(pairs: &'a Pairs, top: usize) -> Self {
        let both =
            pairs.iter().flat_map(|(key, pair)| [false, true].map(|refused| Edge { key, pair, refused }));
        let mut edges: Vec<(usize, Edge)> = both.filter(|edge| edge.connections() > 0).enumerate().collect();
        edges.sort_by_key(|(n, edge)| (Reverse(edge.connections()), *n));
        let mut left_out = LeftOut::default();
        for (_, edge) in edges.drain(top.min(edges.len())..) {
            left_out.edges += 1;
            *(if edge.refused { &mut left_out.refused } else { &mut left_out.connections }) +=
                edge.connections();
        }
        edges.sort_by_key(|(n, _)| *n);
        Self { pairs, edges: edges.into_iter().map(|(_, edge)| edge).collect(), left_out }
    }

    /// The nodes of the edges, in the order of their names.
    fn nodes(&self) -> BTreeMap<&'a Node, usize> {
        let mut nodes: BTreeMap<&Node, usize> =
            self.edges.iter().flat_map(|edge| [&edge.key.from, &edge.key.to]).map(|node| (node, 0)).collect();
        nodes.values_mut().enumerate().for_each(|(n, place)| *place = n);
        nodes
    }

    fn seconds(&self) -> f64 {
        self.pairs.span().map_or(0.0, |(first, last)| (last - first) as f64 / 1000.0)
    }

    fn picture(&self) -> Picture {
        let nodes = self.nodes();
        let mut groups: Vec<&str> = nodes.keys().filter_map(|node| boxed(node)).collect();
        groups.dedup();
        let node =
            |node: &&Node| self.node(node, boxed(node).and_then(|space| groups.binary_search(&space).ok()));
        let edge = |edge: &Edge| PictureEdge {
            from: nodes.get(&edge.key.from).copied().unwrap_or(0),
            to: nodes.get(&edge.key.to).copied().unwrap_or(0),
            way: match edge.key.path {
                "direct" => Way::Direct,
                "tunnel" => Way::Tunnel,
                _ => Way::Passthrough,
            },
            refused: edge.refused,
            weight: edge.connections(),
            label: words::label(edge.pair, edge.refused, self.seconds()),
            more: words::more(edge.key, edge.pair, edge.refused),
        };
        Picture {
            summary: words::summary(self.pairs),
            notices: words::notices(self.pairs, &self.left_out),
            nodes: nodes.keys().map(node).collect(),
            edges: self.edges.iter().map(edge).collect(),
            groups: groups.into_iter().map(str::to_owned).collect(),
        }
    }

    fn node(&self, node: &Node, group: Option<usize>) -> PictureNode {
        let addresses = json::addresses(&self.edges, node);
        let (name, shape) = match node.kind {
            Kind::Clients | Kind::Servers => ("outside the mesh", Shape::Outside),
            Kind::Service => (node.name.as_str(), Shape::Service),
            // All of a namespace.
            Kind::Workload if node.name.is_empty() => (node.namespace.as_str(), Shape::Workload),
            Kind::Workload => (node.name.as_str(), Shape::Workload),
        };
        let detail = match (node.kind, addresses.len()) {
            (Kind::Service, _) => "service".to_owned(),
            (_, 0) => String::new(),
            (_, 1) => addresses.first().map(ToString::to_string).unwrap_or_default(),
            (_, count) => format!("{count} addresses"),
        };
        let mut more = vec![node.full()];
        more.extend(addresses.iter().map(ToString::to_string));
        PictureNode { name: name.to_owned(), detail, shape, group, more }
    }
}

/// The namespace whose box it is in; who is a whole namespace is in none.
fn boxed(node: &Node) -> Option<&str> {
    (!node.namespace.is_empty() && !node.name.is_empty()).then_some(node.namespace.as_str())
}

#[cfg(test)]
mod tests;
