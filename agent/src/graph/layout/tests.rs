use super::*;

/// A little xorshift: the same numbers every time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }
}

fn plan(seed: u64, nodes: usize, edges: usize, groups: usize) -> Plan {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let node = |dice: &mut Dice| PlanNode {
        width: 60.0 + dice.roll(120) as f64,
        height: 32.0 + dice.roll(2) as f64 * 12.0,
        group: (groups > 0 && dice.roll(8) > 0).then(|| dice.roll(groups)),
    };
    let mut plan = Plan { nodes: (0..nodes).map(|_| node(&mut dice)).collect(), ..Plan::default() };
    // Groups without nodes are not drawn.
    let mut used: Vec<usize> = plan.nodes.iter().filter_map(|node| node.group).collect();
    used.sort_unstable();
    used.dedup();
    for node in &mut plan.nodes {
        node.group = node.group.and_then(|group| used.binary_search(&group).ok());
    }
    plan.groups = used.iter().map(|_| 30.0 + dice.roll(150) as f64).collect();
    plan.edges = (0..edges)
        .map(|_| PlanEdge {
            from: dice.roll(nodes),
            to: dice.roll(nodes),
            label: 40.0 + dice.roll(160) as f64,
            weight: dice.roll(9) as u64,
        })
        .collect();
    plan
}

fn plans() -> impl Iterator<Item = (String, Plan)> {
    (1..60_u64).map(|seed| {
        let mut dice = Dice(seed * 77 + 1);
        let (nodes, edges, groups) = (1 + dice.roll(20), dice.roll(45), dice.roll(6));
        (
            format!("seed {seed}: {nodes} nodes, {edges} edges, {groups} groups"),
            plan(seed, nodes, edges, groups),
        )
    })
}

fn overlap(a: &Area, b: &Area) -> bool {
    a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height
}

/// The parts of a line, as thin areas.
fn parts(line: &Line) -> Vec<Area> {
    let pairs = line.points.windows(2);
    pairs
        .map(|pair| {
            let ((a, b), (c, d)) = (pair[0], pair[1]);
            assert!(a == c || b == d, "at right angles: {pair:?}");
            Area { x: a.min(c), y: b.min(d), width: (a - c).abs(), height: (b - d).abs() }
        })
        .collect()
}

fn label(plan: &Plan, layout: &Layout, edge: usize) -> Area {
    let (x, y) = layout.edges[edge].label;
    let width = plan.edges[edge].label;
    Area { x: x - width, y: y - 9.0, width, height: 11.0 }
}

#[test]
fn nothing_lies_on_anything_else() {
    for (what, plan) in plans() {
        let layout = lay_out(&plan);
        let labels: Vec<Area> = (0..plan.edges.len()).map(|edge| label(&plan, &layout, edge)).collect();
        let texts: Vec<&Area> = layout.nodes.iter().chain(&labels).collect();
        for (n, text) in texts.iter().enumerate() {
            assert!(text.x >= 0.0 && text.y >= 0.0, "{what}: {text:?}");
            assert!(text.x + text.width <= layout.width && text.y + text.height <= layout.height, "{what}");
            for other in texts.iter().skip(n + 1) {
                assert!(!overlap(text, other), "{what}: {text:?} {other:?}");
            }
        }
        for (edge, line) in layout.edges.iter().enumerate() {
            for part in parts(line) {
                for text in &texts {
                    assert!(!overlap(&part, text), "{what}: edge {edge} at {part:?} runs through {text:?}");
                }
            }
        }
    }
}

#[test]
fn groups_hold_their_own_and_nothing_else() {
    for (what, plan) in plans() {
        let layout = lay_out(&plan);
        for (n, area) in layout.groups.iter().enumerate() {
            let title = Area { x: area.x + 11.0, y: area.y + 6.0, width: plan.groups[n], height: 14.0 };
            assert!(title.x + title.width <= area.x + area.width, "{what}: the title fits");
            for (node, place) in plan.nodes.iter().zip(&layout.nodes) {
                assert!(!overlap(&title, place), "{what}");
                let inside = place.x >= area.x
                    && place.y >= area.y
                    && place.x + place.width <= area.x + area.width
                    && place.y + place.height <= area.y + area.height;
                assert_eq!(inside, node.group == Some(n), "{what}: {area:?} {place:?}");
                assert!(inside || !overlap(area, place), "{what}");
            }
            for other in layout.groups.iter().skip(n + 1) {
                assert!(!overlap(area, other), "{what}: {area:?} {other:?}");
            }
            for part in layout.edges.iter().flat_map(parts) {
                assert!(
                    !overlap(&part, &title),
                    "{what}: an edge at {part:?} runs through the title {title:?}"
                );
            }
        }
    }
}

#[test]
fn edges_run_from_their_client_to_their_server() {
    for (what, plan) in plans() {
        let layout = lay_out(&plan);
        for (edge, line) in plan.edges.iter().zip(&layout.edges) {
            let (from, to) = (layout.nodes[edge.from], layout.nodes[edge.to]);
            let (first, last) = (line.points[0], line.points[line.points.len() - 1]);
            assert_eq!((first.0, last.0), (from.x + from.width, to.x), "{what}");
            assert!(first.1 > from.y && first.1 < from.y + from.height, "{what}: {first:?} {from:?}");
            assert!(last.1 > to.y && last.1 < to.y + to.height, "{what}: {last:?} {to:?}");
        }
    }
}

#[test]
fn edges_do_not_run_along_each_other() {
    let (mut along, mut all) = (0, 0);
    for (_, plan) in plans() {
        let layout = lay_out(&plan);
        let lines: Vec<Vec<Area>> = layout.edges.iter().map(parts).collect();
        for (n, line) in lines.iter().enumerate() {
            for other in lines.iter().skip(n + 1) {
                all += 1;
                let meet = |a: &Area, b: &Area| {
                    let level = a.height == 0.0 && b.height == 0.0 && (a.y - b.y).abs() < 1.5;
                    let upright = a.width == 0.0 && b.width == 0.0 && (a.x - b.x).abs() < 1.5;
                    (level && a.x.max(b.x) + 3.0 < (a.x + a.width).min(b.x + b.width))
                        || (upright && a.y.max(b.y) + 3.0 < (a.y + a.height).min(b.y + b.height))
                };
                along += usize::from(line.iter().any(|a| other.iter().any(|b| meet(a, b))));
            }
        }
    }
    assert_eq!(along, 0, "of {all} pairs of edges so many run along each other");
}

#[test]
fn the_same_plan_gives_the_same_picture_whatever_its_size() {
    assert_eq!(lay_out(&Plan::default()).nodes.len(), 0);
    for edges in [0, 1, 300] {
        let plan = plan(5, 40, edges, 4);
        assert_eq!(lay_out(&plan), lay_out(&plan));
    }
}

#[test]
fn clients_are_left_of_their_servers_and_heavy_edges_lead_in_cycles() {
    let edge = |from, to, weight| PlanEdge { from, to, label: 50.0, weight };
    let node = PlanNode { width: 80.0, height: 32.0, group: None };
    let edges = vec![edge(0, 1, 5), edge(1, 2, 5), edge(2, 0, 1), edge(1, 1, 9)];
    let layout = lay_out(&Plan { nodes: vec![node; 3], edges, groups: Vec::new() });
    let left: Vec<f64> = layout.nodes.iter().map(|node| node.x).collect();
    assert!(left[0] < left[1] && left[1] < left[2], "{left:?}");
}
