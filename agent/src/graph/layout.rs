//! Where everything in a picture goes: columns from clients to servers, groups as boxes, edges at right angles.
//!
//! Columns and the gaps between them alternate. Going right a gap has a *channel*, where edges change their height, each in a track
//! of its own, and a *label zone*, where they run level towards the column behind it. Every node has its own stretch of height in its
//! column; a *wire*, the level part of an edge that passes columns by, has one too. So nothing runs through a name or a label.
//!
//! An edge against the direction (a cycle, an edge to itself) leaves to the right, runs back along a wire and enters from the left,
//! as every edge does. The same input gives the same picture.

mod columns;
mod heights;
mod order;
mod ports;
mod route;

/// A picture to be.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) nodes: Vec<PlanNode>,
    pub(super) edges: Vec<PlanEdge>,
    /// How wide the title of each group is.
    pub(super) groups: Vec<f64>,
}

/// A box with text.
#[derive(Debug, Clone, Copy)]
pub(super) struct PlanNode {
    pub(super) width: f64,
    pub(super) height: f64,
    pub(super) group: Option<usize>,
}

/// An arrow with a label.
#[derive(Debug, Clone, Copy)]
pub(super) struct PlanEdge {
    pub(super) from: usize,
    pub(super) to: usize,
    /// How wide the label is.
    pub(super) label: f64,
    /// The heavier one decides on the direction of a cycle.
    pub(super) weight: u64,
}

/// Left, top, width, height; all in pixels.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Area {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) width: f64,
    pub(super) height: f64,
}

/// A drawn edge.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Line {
    /// From the client's right side to the server's left one, level and upright by turns.
    pub(super) points: Vec<(f64, f64)>,
    /// Where the label ends, just above the line.
    pub(super) label: (f64, f64),
}

/// A picture.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Layout {
    pub(super) nodes: Vec<Area>,
    pub(super) groups: Vec<Area>,
    pub(super) edges: Vec<Line>,
    pub(super) width: f64,
    pub(super) height: f64,
}

/// A node, or the wire of an edge, with the columns that it takes.
#[derive(Debug, Clone, Copy)]
struct Item {
    first: usize,
    last: usize,
    height: f64,
    /// Kept free above and below.
    margin: f64,
    group: Option<usize>,
}

/// A plan with columns.
#[derive(Debug)]
struct Model<'a> {
    plan: &'a Plan,
    /// Of each node.
    column: Vec<usize>,
    columns: usize,
    /// The nodes, then the wires.
    items: Vec<Item>,
    /// Of each edge, its item.
    wires: Vec<Option<usize>>,
}

/// From one edge's label to the next one's.
const IN_PITCH: f64 = 20.0;
/// From one edge that leaves to the next.
const OUT_PITCH: f64 = 9.0;

/// Lays it out.
pub(super) fn lay_out(plan: &Plan) -> Layout {
    let model = Model::new(plan);
    let order = order::best(&model);
    let heights = heights::settle(&model, &order);
    route::draw(&model, &heights)
}

impl<'a> Model<'a> {
    fn new(plan: &'a Plan) -> Self {
        let column = columns::assign(plan);
        let columns = column.iter().max().map_or(0, |last| last + 1);
        let at = |node: usize| column.get(node).copied().unwrap_or(0);
        let mut items: Vec<Item> = plan
            .nodes
            .iter()
            .enumerate()
            .map(|(n, node)| {
                let ends =
                    |end: fn(&PlanEdge) -> usize| plan.edges.iter().filter(|e| end(e) == n).count() as f64;
                let ports = (ends(|e| e.to) * IN_PITCH + 6.0).max(ends(|e| e.from) * OUT_PITCH + 6.0);
                let height = node.height.max(ports);
                Item { first: at(n), last: at(n), height, margin: 8.0, group: node.group }
            })
            .collect();
        let group = |node: usize| plan.nodes.get(node).and_then(|node| node.group);
        let mut wires = Vec::new();
        for edge in &plan.edges {
            let (from, to) = (at(edge.from), at(edge.to));
            let (first, last) = if from < to { (from + 1, to - 1) } else { (to, from) };
            wires.push((first <= last).then_some(items.len()));
            if first <= last {
                let group = group(edge.from).filter(|own| group(edge.to) == Some(*own));
                items.push(Item { first, last, height: 6.0, margin: 3.0, group });
            }
        }
        Self { plan, column, columns, items, wires }
    }

    /// The column of a node.
    fn at(&self, node: usize) -> usize {
        self.column.get(node).copied().unwrap_or(0)
    }

    /// Whether the edge runs against the direction.
    fn is_back(&self, edge: &PlanEdge) -> bool {
        self.at(edge.from) >= self.at(edge.to)
    }
}

#[cfg(test)]
mod tests;
