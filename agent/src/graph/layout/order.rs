//! What is above what: short edges, few crossings, little height.

use super::Model;
use super::heights::{Heights, pack};
use super::ports::Ports;

/// A crossing is worth so many pixels of edge.
const CROSSING: f64 = 45.0;
/// A pixel of the picture's height.
const TALLER: f64 = 1.5;
/// How much is tried, in edges and items looked at: some tenths of a second.
const EFFORT: usize = 3_000_000;

/// What stands by itself in the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    Group(usize),
    Item(usize),
}

/// From the top down.
#[derive(Clone, Debug, Default)]
pub(super) struct Order {
    pub(super) blocks: Vec<Block>,
    /// The items of each group.
    pub(super) groups: Vec<Vec<usize>>,
}

/// The best that is found.
pub(super) fn best(model: &Model) -> Order {
    let mut order = first(model);
    let mut least = cost(model, &order);
    // Each to the mean height of its neighbours.
    let mut tried = order.clone();
    for _ in 0..12 {
        sort(model, &mut tried);
        let cost = cost(model, &tried);
        if cost < least {
            (least, order) = (cost, tried.clone());
        }
    }
    let size = model.items.len() + model.plan.edges.len() * (1 + model.plan.edges.len() / 8);
    let mut left = EFFORT / size.max(1);
    // One place up or down, and then farther, as long as that helps.
    loop {
        let before = least;
        for list in 0..=order.groups.len() {
            let count = length(&order, list);
            for place in 0..count {
                for by in [1, 2, 3, 5, 8, 13] {
                    for to in [place.checked_sub(by), Some(place + by)] {
                        let Some(to) = to.filter(|to| *to < count) else { continue };
                        if left == 0 {
                            return order;
                        }
                        left -= 1;
                        let mut tried = order.clone();
                        displace(&mut tried, list, place, to);
                        let cost = cost(model, &tried);
                        if cost < least {
                            (least, order) = (cost, tried);
                        }
                    }
                }
            }
        }
        if least >= before {
            return order;
        }
    }
}

fn first(model: &Model) -> Order {
    let mut order = Order { blocks: Vec::new(), groups: vec![Vec::new(); model.plan.groups.len()] };
    for (n, item) in model.items.iter().enumerate() {
        match item.group {
            None => order.blocks.push(Block::Item(n)),
            Some(group) => {
                if let Some(list) = order.groups.get_mut(group) {
                    if list.is_empty() {
                        order.blocks.push(Block::Group(group));
                    }
                    list.push(n);
                }
            }
        }
    }
    order
}

fn cost(model: &Model, order: &Order) -> f64 {
    let heights = pack(model, order);
    let ports = Ports::of(model, &heights);
    ports.length() + ports.crossings() as f64 * CROSSING + heights.total * TALLER
}

/// List 0 is the blocks, then the groups.
fn length(order: &Order, list: usize) -> usize {
    match list.checked_sub(1) {
        None => order.blocks.len(),
        Some(group) => order.groups.get(group).map_or(0, Vec::len),
    }
}

fn displace(order: &mut Order, list: usize, from: usize, to: usize) {
    fn one<T>(list: &mut Vec<T>, from: usize, to: usize) {
        let item = list.remove(from);
        list.insert(to, item);
    }
    match list.checked_sub(1) {
        None => one(&mut order.blocks, from, to),
        Some(group) => order.groups.get_mut(group).into_iter().for_each(|list| one(list, from, to)),
    }
}

fn sort(model: &Model, order: &mut Order) {
    let heights = pack(model, order);
    let ports = Ports::of(model, &heights);
    let group = |item: usize| model.items.get(item).and_then(|item| item.group);
    order.blocks.sort_by_cached_key(|block| match block {
        Block::Item(item) => rounded(wish(model, &heights, &ports, |n| n == *item)),
        Block::Group(wanted) => rounded(wish(model, &heights, &ports, |n| group(n) == Some(*wanted))),
    });
    for list in &mut order.groups {
        list.sort_by_cached_key(|item| rounded(wish(model, &heights, &ports, |n| n == *item)));
    }
}

fn rounded(y: f64) -> i64 {
    (y * 16.0) as i64
}

/// Where the neighbours of these items are, in the mean; without neighbours, where they are themselves.
fn wish(model: &Model, heights: &Heights, ports: &Ports, own: impl Fn(usize) -> bool) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for span in &ports.spans {
        match (own(span.ends.0), own(span.ends.1)) {
            (true, false) => sum += span.y.1,
            (false, true) => sum += span.y.0,
            _ => continue,
        }
        count += 1.0;
    }
    if count > 0.0 {
        return sum / count;
    }
    (0..model.items.len()).find(|n| own(*n)).map_or(0.0, |n| heights.middle(model, n))
}
