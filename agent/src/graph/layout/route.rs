//! How far right everything is, and the lines.

use super::heights::{Heights, columns};
use super::ports::{Ports, Span, Turn};
use super::{Area, Layout, Line, Model};

/// Between the lines of a channel.
const TRACK: f64 = 8.0;
/// Left and right of the lines of a channel.
const SIDE: f64 = 9.0;
/// Left and right of a column: a group's border is in it.
const PAD: f64 = 16.0;
/// From a group's border to the label before it, and to the next channel.
const BORDER: f64 = 5.0;

/// The columns and channels.
struct Grid {
    /// Where each channel's first track is.
    channels: Vec<f64>,
    /// Where each column begins, and how wide it is.
    columns: Vec<(f64, f64)>,
    width: f64,
}

pub(super) fn draw(model: &Model, heights: &Heights) -> Layout {
    let mut ports = Ports::of(model, heights);
    straighten(&mut ports, model.plan.nodes.len());
    ports.separate();
    let (tracks, counts) = tracks(model, &ports);
    let grid = Grid::new(model, &counts);
    let area = |n: usize| {
        let item = model.items.get(n)?;
        let (x, width) = grid.columns.get(item.first).copied()?;
        Some(Area { x, y: heights.items.get(n).copied()?, width, height: item.height })
    };
    let group = |n: usize, (y, height): (f64, f64)| {
        let (first, last) = columns(model, n);
        let (x, _) = grid.columns.get(first).copied()?;
        let (end, width) = grid.columns.get(last).copied()?;
        Some(Area { x: x - PAD + BORDER, y, width: end + width - x + 2.0 * (PAD - BORDER), height })
    };
    let groups = heights.groups.iter().enumerate();
    Layout {
        nodes: (0..model.plan.nodes.len()).map(|n| area(n).unwrap_or_default()).collect(),
        groups: groups.map(|(n, place)| group(n, *place).unwrap_or_default()).collect(),
        edges: (0..model.plan.edges.len()).map(|n| line(model, &grid, &ports, &tracks, n)).collect(),
        width: grid.width,
        height: heights.total,
    }
}

/// Whole pixels; and steps of a few are none where the edge may also leave at the height at which it enters.
fn straighten(ports: &mut Ports, nodes: usize) {
    let wanted = |span: &Span| span.turn == Turn::Through && (span.y.0 - span.y.1).abs() <= 4.0;
    for span in &mut ports.spans {
        span.y = (span.y.0.round(), span.y.1.round());
    }
    let spans = ports.spans.clone();
    for span in ports.spans.iter_mut().filter(|span| wanted(span)) {
        let leaves = span.ends.0 < nodes;
        let free = spans.iter().all(|other| {
            other.edge == span.edge
                || other.channel != span.channel
                || other.ends.0 != span.ends.0
                || (other.y.0 - span.y.1).abs() > 4.0
        });
        if leaves && free {
            span.y.0 = span.y.1;
        }
    }
}

fn is_level(span: &Span) -> bool {
    span.y.0 == span.y.1
}

/// The track of each span, and how many each channel has. Lines in one track do not meet, and the order is the one in which edges
/// that need not cross do not.
fn tracks(model: &Model, ports: &Ports) -> (Vec<usize>, Vec<usize>) {
    let mut tracks = vec![0; ports.spans.len()];
    let mut counts = vec![0; model.columns + 1];
    for (channel, count) in counts.iter_mut().enumerate() {
        for turn in [Turn::Left, Turn::Through, Turn::Right] {
            let own = |span: &Span| span.channel == channel && span.turn == turn && !is_level(span);
            let mut spans: Vec<(usize, &Span)> =
                ports.spans.iter().enumerate().filter(|(_, s)| own(s)).collect();
            spans.sort_by(|(_, a), (_, b)| rank(a).total_cmp(&rank(b)).then(a.edge.cmp(&b.edge)));
            let mut taken: Vec<Vec<(f64, f64)>> = Vec::new();
            let mut places = Vec::new();
            for (n, span) in spans {
                let (top, bottom) = (span.y.0.min(span.y.1) - 5.0, span.y.0.max(span.y.1) + 5.0);
                let free = |track: &Vec<(f64, f64)>| track.iter().all(|(a, b)| bottom < *a || *b < top);
                // Not left of one before it that it meets: that order is what avoids crossings.
                let after = taken.iter().rposition(|track| !free(track)).map_or(0, |last| last + 1);
                if after == taken.len() {
                    taken.push(Vec::new());
                }
                taken.get_mut(after).into_iter().for_each(|track| track.push((top, bottom)));
                places.push((n, after));
            }
            for (n, place) in places {
                // What turns back to the right has its innermost line rightmost.
                let place = if turn == Turn::Right { taken.len() - 1 - place } else { place };
                tracks.get_mut(n).into_iter().for_each(|track| *track = *count + place);
            }
            *count += taken.len();
        }
    }
    (tracks, counts)
}

/// From left to right; what turns back, from the inside out.
fn rank(span: &Span) -> f64 {
    let (from, to) = span.y;
    match span.turn {
        Turn::Through if to > from => -from,
        Turn::Through => from,
        Turn::Left | Turn::Right => (to - from).abs(),
    }
}

impl Grid {
    fn new(model: &Model, counts: &[usize]) -> Self {
        let mut grid = Self { channels: Vec::new(), columns: Vec::new(), width: 0.0 };
        let mut x = 2.0;
        for (column, count) in counts.iter().enumerate() {
            let is_edge = column == 0 || column == model.columns;
            grid.channels.push(x + SIDE);
            x += match count {
                0 if is_edge => 0.0,
                count => 2.0 * SIDE + TRACK * (count.saturating_sub(1)) as f64,
            };
            if column == model.columns {
                break;
            }
            let here = |node: usize| model.at(node) == column;
            let labels = model.plan.edges.iter().filter(|edge| here(edge.to)).map(|edge| edge.label + 10.0);
            x += labels.fold(0.0, f64::max) + PAD;
            let nodes =
                model.plan.nodes.iter().enumerate().filter(|(n, _)| here(*n)).map(|(_, node)| node.width);
            let begins = |group: &usize| columns(model, *group).0 == column;
            let titles = (0..model.plan.groups.len()).filter(begins);
            let titles = titles.filter_map(|group| model.plan.groups.get(group)).copied();
            let width = nodes.chain(titles).fold(0.0, f64::max);
            grid.columns.push((x, width));
            x += width + PAD;
        }
        grid.width = x + 2.0;
        grid
    }
}

fn line(model: &Model, grid: &Grid, ports: &Ports, tracks: &[usize], edge: usize) -> Line {
    let Some(plan) = model.plan.edges.get(edge) else { return Line::default() };
    let column = |node: usize| grid.columns.get(model.at(node)).copied().unwrap_or_default();
    let (from, width) = column(plan.from);
    let (to, _) = column(plan.to);
    let mut points: Vec<(f64, f64)> = Vec::new();
    for (span, track) in ports.spans.iter().zip(tracks).filter(|(span, _)| span.edge == edge) {
        if points.is_empty() {
            points.push((from + width, span.y.0));
        }
        if !is_level(span) {
            let x = grid.channels.get(span.channel).copied().unwrap_or(0.0) + TRACK * *track as f64;
            points.extend([(x, span.y.0), (x, span.y.1)]);
        }
    }
    let last = ports.spans.iter().rev().find(|span| span.edge == edge).map_or(0.0, |span| span.y.1);
    points.push((to, last));
    Line { points, label: (to - PAD, last - 5.0) }
}
