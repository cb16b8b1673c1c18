//! Where edges leave and enter their nodes, and what they then climb in the channels.

use super::heights::Heights;
use super::{IN_PITCH, Model, OUT_PITCH};

/// A change of height in a channel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) edge: usize,
    /// The channel left of this column.
    pub(super) channel: usize,
    /// From, to.
    pub(super) y: (f64, f64),
    /// The items there.
    pub(super) ends: (usize, usize),
    pub(super) turn: Turn,
}

/// From which side a span comes, and to which it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// From the left to the right.
    Through,
    /// From the left, and back there.
    Left,
    /// From the right, and back there.
    Right,
}

/// Levels nearer than this look like one.
const CLOSE: f64 = 2.5;

impl Span {
    /// The levels that reach it from the left.
    fn left(&self) -> impl Iterator<Item = f64> + use<> {
        let (from, to) = self.y;
        let levels = match self.turn {
            Turn::Through => [Some(from), None],
            Turn::Left => [Some(from), Some(to)],
            Turn::Right => [None, None],
        };
        levels.into_iter().flatten()
    }

    /// Those that reach it from the right.
    fn right(&self) -> impl Iterator<Item = f64> + use<> {
        let (from, to) = self.y;
        let levels = match self.turn {
            Turn::Through => [Some(to), None],
            Turn::Left => [None, None],
            Turn::Right => [Some(from), Some(to)],
        };
        levels.into_iter().flatten()
    }
}

/// All spans; one or two of an edge, in its direction.
#[derive(Debug)]
pub(super) struct Ports {
    pub(super) spans: Vec<Span>,
}

impl Ports {
    pub(super) fn of(model: &Model, heights: &Heights) -> Self {
        let edges = &model.plan.edges;
        let next = |n: usize, end: usize| model.wires.get(n).copied().flatten().unwrap_or(end);
        let mut leaving = vec![Vec::new(); model.plan.nodes.len()];
        let mut coming = leaving.clone();
        for (n, edge) in edges.iter().enumerate() {
            let key = |end: usize| (heights.middle(model, next(n, end)), n);
            leaving.get_mut(edge.from).into_iter().for_each(|list| list.push(key(edge.to)));
            coming.get_mut(edge.to).into_iter().for_each(|list| list.push(key(edge.from)));
        }
        let mut out = vec![0.0; edges.len()];
        let mut into = out.clone();
        for (lists, pitch, y) in [(leaving, OUT_PITCH, &mut out), (coming, IN_PITCH, &mut into)] {
            for (node, mut list) in lists.into_iter().enumerate() {
                list.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
                let first = heights.middle(model, node) - pitch * (list.len() as f64 - 1.0) / 2.0;
                // Labels are above their lines.
                let first = if pitch == IN_PITCH && list.len() > 1 { first + 3.0 } else { first };
                for (place, (_, n)) in list.into_iter().enumerate() {
                    if let Some(y) = y.get_mut(n) {
                        *y = first + place as f64 * pitch;
                    }
                }
            }
        }
        let mut spans = Vec::with_capacity(edges.len() * 2);
        for (n, (edge, (out, into))) in edges.iter().zip(out.into_iter().zip(into)).enumerate() {
            let (leave, enter) = (model.at(edge.from) + 1, model.at(edge.to));
            let Some(wire) = model.wires.get(n).copied().flatten() else {
                let ends = (edge.from, edge.to);
                spans.push(Span { edge: n, channel: leave, y: (out, into), ends, turn: Turn::Through });
                continue;
            };
            let level = heights.middle(model, wire);
            let (first, second) =
                if model.is_back(edge) { (Turn::Left, Turn::Right) } else { (Turn::Through, Turn::Through) };
            spans.push(Span {
                edge: n,
                channel: leave,
                y: (out, level),
                ends: (edge.from, wire),
                turn: first,
            });
            spans.push(Span {
                edge: n,
                channel: enter,
                y: (level, into),
                ends: (wire, edge.to),
                turn: second,
            });
        }
        Self { spans }
    }

    /// Moves levels that would run along each other: one that ends in a channel, and another one that begins there.
    pub(super) fn separate(&mut self) {
        for _ in 0..4 {
            let spans = self.spans.clone();
            for a in &spans {
                for b in spans.iter().filter(|b| b.channel == a.channel && b.edge != a.edge) {
                    for left in a.left() {
                        let near = |right: &f64| (left - right).abs() < CLOSE;
                        if let Some(right) = b.right().find(near) {
                            let by = if left < right { -CLOSE } else { CLOSE };
                            let _ = self.shift(a.edge, left, by) || self.shift(b.edge, right, -by);
                        }
                    }
                }
            }
        }
    }

    /// Moves a level of an edge, unless it has a label.
    fn shift(&mut self, edge: usize, level: f64, by: f64) -> bool {
        let own = self.spans.iter().rposition(|span| span.edge == edge);
        let enters = own.and_then(|last| self.spans.get(last)).is_none_or(|last| last.y.1 == level);
        if !enters {
            for span in self.spans.iter_mut().filter(|span| span.edge == edge) {
                for y in [&mut span.y.0, &mut span.y.1].into_iter().filter(|y| **y == level) {
                    *y += by;
                }
            }
        }
        !enters
    }

    /// Of all spans.
    pub(super) fn length(&self) -> f64 {
        self.spans.iter().map(|span| (span.y.0 - span.y.1).abs()).sum()
    }

    /// How many spans of one channel cross.
    pub(super) fn crossings(&self) -> usize {
        let pairs = self.spans.iter().enumerate().flat_map(|(n, a)| {
            self.spans.iter().skip(n + 1).filter(|b| a.channel == b.channel).map(move |b| (a, b))
        });
        pairs.filter(|(a, b)| cross(a, b)).count()
    }
}

fn cross(a: &Span, b: &Span) -> bool {
    let within = |y: f64, span: &Span| y > span.y.0.min(span.y.1) && y < span.y.0.max(span.y.1);
    match (a.turn, b.turn) {
        (Turn::Through, Turn::Through) => (a.y.0 < b.y.0) != (a.y.1 < b.y.1),
        (Turn::Left, Turn::Through) => within(b.y.0, a),
        (Turn::Through, Turn::Left) => within(a.y.0, b),
        (Turn::Right, Turn::Through) => within(b.y.1, a),
        (Turn::Through, Turn::Right) => within(a.y.1, b),
        (Turn::Left, Turn::Left) | (Turn::Right, Turn::Right) => within(a.y.0, b) != within(a.y.1, b),
        _ => false,
    }
}
