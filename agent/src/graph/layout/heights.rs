//! How far down everything is, given what is above what.

use super::order::{Block, Order};
use super::ports::{Ports, Span};
use super::{Item, Model};

/// Above what is in a group: its title.
const TITLE: f64 = 26.0;
/// Below it.
const FOOT: f64 = 8.0;
/// Between groups.
const BETWEEN: f64 = 9.0;

/// From the top.
#[derive(Clone, Debug, Default)]
pub(super) struct Heights {
    /// Of each item.
    pub(super) items: Vec<f64>,
    /// Of each group, with its height.
    pub(super) groups: Vec<(f64, f64)>,
    /// Of all.
    pub(super) total: f64,
}

/// What takes room in some columns.
#[derive(Clone, Copy)]
struct Piece {
    first: usize,
    last: usize,
    height: f64,
    margin: f64,
}

impl From<&Item> for Piece {
    fn from(item: &Item) -> Self {
        Self { first: item.first, last: item.last, height: item.height, margin: item.margin }
    }
}

/// Stacks pieces, each as high up as those before it let it; how far down each is, and where the last one ends.
fn stack(columns: usize, pieces: &[Piece]) -> (Vec<f64>, f64) {
    let mut bottom = vec![0.0_f64; columns];
    let mut tops = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let taken = bottom.get_mut(piece.first..=piece.last).unwrap_or_default();
        let top = taken.iter().copied().fold(0.0, f64::max) + piece.margin;
        taken.fill(top + piece.height + piece.margin);
        tops.push(top);
    }
    (tops, bottom.into_iter().fold(0.0, f64::max))
}

fn items(model: &Model, group: &[usize]) -> Vec<Piece> {
    group.iter().filter_map(|item| model.items.get(*item)).map(Piece::from).collect()
}

/// The columns of a group.
pub(super) fn columns(model: &Model, group: usize) -> (usize, usize) {
    let own = model.items.iter().filter(|item| item.group == Some(group));
    own.fold((usize::MAX, 0), |(first, last), item| (first.min(item.first), last.max(item.last)))
}

fn blocks(model: &Model, order: &Order, inside: &[f64]) -> Vec<Piece> {
    let piece = |block: &Block| match block {
        Block::Item(item) => model.items.get(*item).map(Piece::from),
        Block::Group(group) => {
            let (first, last) = columns(model, *group);
            let height = inside.get(*group).copied().unwrap_or(0.0);
            Some(Piece { first, last, height, margin: BETWEEN })
        }
    };
    order.blocks.iter().filter_map(piece).collect()
}

/// As high up as it can be.
pub(super) fn pack(model: &Model, order: &Order) -> Heights {
    let mut heights = Heights { items: vec![0.0; model.items.len()], groups: Vec::new(), total: 0.0 };
    for group in &order.groups {
        let (tops, end) = stack(model.columns, &items(model, group));
        put(&mut heights.items, group, &tops, TITLE);
        heights.groups.push((0.0, TITLE + end + FOOT));
    }
    let inside: Vec<f64> = heights.groups.iter().map(|(_, height)| *height).collect();
    let (tops, total) = stack(model.columns, &blocks(model, order, &inside));
    for (block, top) in order.blocks.iter().zip(tops) {
        heights.shift(order, *block, top);
    }
    heights.total = total;
    heights
}

fn put(heights: &mut [f64], items: &[usize], tops: &[f64], above: f64) {
    for (item, top) in items.iter().zip(tops) {
        if let Some(height) = heights.get_mut(*item) {
            *height = above + top;
        }
    }
}

impl Heights {
    fn shift(&mut self, order: &Order, block: Block, by: f64) {
        let mut shift = |item: &usize| {
            if let Some(top) = self.items.get_mut(*item) {
                *top += by;
            }
        };
        match block {
            Block::Item(item) => shift(&item),
            Block::Group(group) => {
                order.groups.get(group).into_iter().flatten().for_each(shift);
                if let Some((top, _)) = self.groups.get_mut(group) {
                    *top += by;
                }
            }
        }
    }

    fn top(&self, item: usize) -> f64 {
        self.items.get(item).copied().unwrap_or(0.0)
    }

    /// The height of a wire, or of the middle of a node.
    pub(super) fn middle(&self, model: &Model, item: usize) -> f64 {
        self.top(item) + model.items.get(item).map_or(0.0, |item| item.height / 2.0)
    }
}

/// As [`pack`], and then moved to where the edges are shorter, as far as there is room.
pub(super) fn settle(model: &Model, order: &Order) -> Heights {
    let mut best = pack(model, order);
    let mut least = Ports::of(model, &best).length();
    let mut heights = best.clone();
    for round in 0..16 {
        let inside: Vec<f64> = heights.groups.iter().map(|(_, height)| *height).collect();
        let pieces = blocks(model, order, &inside);
        let tops = order.blocks.iter().map(|block| match block {
            Block::Item(item) => heights.top(*item),
            Block::Group(group) => heights.groups.get(*group).map_or(0.0, |(top, _)| *top),
        });
        let tops: Vec<f64> = tops.collect();
        let ports = Ports::of(model, &heights);
        let wish = |place: usize| {
            let block = order.blocks.get(place)?;
            pull(&ports, |item| match block {
                Block::Item(own) => item == *own,
                Block::Group(group) => model.items.get(item).is_some_and(|item| item.group == Some(*group)),
            })
        };
        let moved = relax(&pieces, &tops, (0.0, heights.total), round % 2 == 1, wish);
        for ((block, before), after) in order.blocks.iter().zip(&tops).zip(moved) {
            heights.shift(order, *block, after - before);
        }
        for (number, group) in order.groups.iter().enumerate() {
            let Some((top, height)) = heights.groups.get(number).copied() else { continue };
            let tops: Vec<f64> = group.iter().map(|item| heights.top(*item)).collect();
            let ports = Ports::of(model, &heights);
            let wish = |place: usize| group.get(place).and_then(|own| pull(&ports, |item| item == *own));
            let room = (top + TITLE, top + height - FOOT);
            let moved = relax(&items(model, group), &tops, room, round % 2 == 1, wish);
            put(&mut heights.items, group, &moved, 0.0);
        }
        let length = Ports::of(model, &heights).length();
        if length < least {
            (least, best) = (length, heights.clone());
        }
    }
    best
}

/// By how much the edges of these items want them lower, in the mean.
fn pull(ports: &Ports, own: impl Fn(usize) -> bool) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0.0);
    for Span { ends: (a, b), y: (from, to), .. } in &ports.spans {
        match (own(*a), own(*b)) {
            (true, false) => sum += to - from,
            (false, true) => sum += from - to,
            _ => continue,
        }
        count += 1.0;
    }
    (count > 0.0).then(|| sum / count)
}

/// Moves each piece by what it wishes, between its neighbours.
fn relax(
    pieces: &[Piece],
    tops: &[f64],
    (ceiling, floor): (f64, f64),
    upwards: bool,
    wish: impl Fn(usize) -> Option<f64>,
) -> Vec<f64> {
    let mut tops = tops.to_vec();
    let places: Vec<usize> =
        if upwards { (0..tops.len()).rev().collect() } else { (0..tops.len()).collect() };
    for place in places {
        let (Some(own), Some(top), Some(by)) = (pieces.get(place), tops.get(place).copied(), wish(place))
        else {
            continue;
        };
        let beside = |other: &Piece| other.first <= own.last && own.first <= other.last;
        let (mut low, mut high) = (ceiling + own.margin, floor - own.height - own.margin);
        for (n, (other, y)) in pieces.iter().zip(&tops).enumerate().filter(|(_, (other, _))| beside(other)) {
            let gap = own.margin + other.margin;
            match n.cmp(&place) {
                std::cmp::Ordering::Less => low = low.max(y + other.height + gap),
                std::cmp::Ordering::Greater => high = high.min(y - gap - own.height),
                std::cmp::Ordering::Equal => {}
            }
        }
        if let Some(place) = tops.get_mut(place)
            && low <= high
        {
            *place = (top + by).clamp(low, high);
        }
    }
    tops
}
