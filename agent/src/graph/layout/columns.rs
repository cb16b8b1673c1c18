//! Which column a node is in: clients left of their servers, where there are no cycles.

use super::Plan;

/// The column of each node.
pub(super) fn assign(plan: &Plan) -> Vec<usize> {
    let forward = forward(plan);
    let mut column = vec![0_usize; plan.nodes.len()];
    // Each round moves servers behind their clients; without cycles there are at most as many as nodes.
    for _ in 0..plan.nodes.len() {
        let before = column.clone();
        for (from, to) in &forward {
            let after = get(&column, *from) + 1;
            if let Some(to) = column.get_mut(*to) {
                *to = after.max(*to);
            }
        }
        if column == before {
            break;
        }
    }
    // Who is nobody's server goes near the first one of its own.
    for node in 0..column.len() {
        if forward.iter().any(|(_, to)| *to == node) {
            continue;
        }
        let servers = forward.iter().filter(|(from, _)| *from == node).map(|(_, to)| get(&column, *to));
        if let (Some(first), Some(own)) = (servers.min(), column.get_mut(node)) {
            *own = first.saturating_sub(1);
        }
    }
    column
}

/// The edges without those that close a cycle; the heaviest are taken first.
fn forward(plan: &Plan) -> Vec<(usize, usize)> {
    let mut order: Vec<_> = plan.edges.iter().collect();
    order.sort_by_key(|edge| (std::cmp::Reverse(edge.weight), edge.from, edge.to));
    let mut servers = vec![Vec::new(); plan.nodes.len()];
    let mut taken = Vec::new();
    for edge in order {
        if edge.from == edge.to || leads(&servers, edge.to, edge.from) {
            continue;
        }
        if let Some(list) = servers.get_mut(edge.from) {
            list.push(edge.to);
        }
        taken.push((edge.from, edge.to));
    }
    taken
}

/// Whether there is a way.
fn leads(servers: &[Vec<usize>], from: usize, to: usize) -> bool {
    let (mut seen, mut next) = (vec![false; servers.len()], vec![from]);
    while let Some(node) = next.pop() {
        if node == to {
            return true;
        }
        if seen.get_mut(node).is_some_and(|seen| !std::mem::replace(seen, true)) {
            next.extend(servers.get(node).into_iter().flatten());
        }
    }
    false
}

fn get(column: &[usize], node: usize) -> usize {
    column.get(node).copied().unwrap_or(0)
}
