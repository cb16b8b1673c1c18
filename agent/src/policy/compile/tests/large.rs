//! The most that an object of Kubernetes' 1.5 MiB can ask for.

use std::time::{Duration, Instant};

use super::*;

/// As quick as it must be on a busy machine, in a debug build.
const LONGEST: Duration = Duration::from_secs(15);

/// What `policy` compiles to in a mesh of `pods` pods, each of its own service account.
fn compiled(policy: AuthorizationPolicy, pods: usize) -> (Mesh, Compiled) {
    let pods = (0..pods).map(|n| pod("a", &format!("s{n}"), n, BTreeMap::new())).collect();
    let mesh = mesh(pods, &[policy], &[]);
    let start = Instant::now();
    let compiled = compile(&mesh, &mut Interner::new());
    let took = start.elapsed();
    println!("{} rows, {took:?}", compiled.rows.len());
    assert!(took < LONGEST, "{took:?}");
    (mesh, compiled)
}

fn policy(action: Action, from: Vec<Source>, to: Vec<Operation>) -> AuthorizationPolicy {
    let rules = vec![Rule { from, to, when: Vec::new() }];
    AuthorizationPolicy { action, rules, ..allow_from("a", "p", "x") }
}

fn principals(count: usize, text: impl Fn(usize) -> String) -> Vec<Source> {
    let principals = (0..count).map(|n| StringMatch::from(text(n).as_str())).collect();
    vec![Source { principals, ..Source::default() }]
}

fn exact(n: usize) -> String {
    format!("td/ns/a/sa/s{n}")
}

fn ports(count: u16) -> Vec<Operation> {
    vec![Operation { ports: (1..=count).collect(), ..Operation::default() }]
}

#[test]
fn as_many_principals_as_fit_an_object_compile() {
    assert_eq!(compiled(policy(Action::Allow, principals(70_000, exact), vec![]), 10_000).1.rows.len(), 2);
    let suffixes = principals(70_000, |n| format!("*b/sa/s{n}"));
    assert_eq!(compiled(policy(Action::Allow, suffixes, vec![]), 1000).1.rows.len(), 1);
    let each = (0..20_000).flat_map(|n| principals(1, |_| exact(n))).collect();
    assert_eq!(compiled(policy(Action::Deny, each, vec![]), 5000).1.rows.len(), 2);
}

#[test]
fn every_port_compiles() {
    assert_eq!(compiled(policy(Action::Allow, vec![], ports(u16::MAX)), 10).1.rows.len(), 65_536);
}

#[test]
fn a_class_without_room_is_closed_and_told() {
    for action in [Action::Allow, Action::Deny] {
        let (mesh, compiled) = compiled(policy(action, principals(2000, exact), ports(u16::MAX)), 2000);
        assert_eq!(compiled.rows.len(), 1);
        assert_eq!(compiled.findings[0].code, Code::TooManyRows);
        assert_eq!(compiled.findings[0].object, "AuthorizationPolicy a/p");
        let class = class_of(&mesh, &compiled, "a/s0-0");
        for peer in [None, Some(SpiffeId::new("td", "a", "s1")), Some(SpiffeId::new("other", "a", "s1"))] {
            let decision = compiled.decide(class, peer.as_ref(), Ipv4Addr::LOCALHOST.into(), 80);
            assert_eq!((decision.allowed(), decision.reason), (false, Reason::NoPolicyState));
        }
    }
}

#[test]
fn a_class_that_outgrows_the_map_gets_another_number() {
    let wide = policy(Action::Allow, principals(20, exact), ports(60_000));
    let pods = |count: usize| (0..count).map(|n| pod("a", &format!("s{n}"), n, BTreeMap::new())).collect();
    let mut interner = Interner::new();
    let few = mesh(pods(4), std::slice::from_ref(&wide), &[]);
    let policies = few.policies.clone();
    let more = |count| Mesh { policies: policies.clone(), ..mesh(pods(count), &[], &[]) };
    let open = compile(&few, &mut interner);
    let many = more(20);
    let closed = compile(&many, &mut interner);
    assert!(open.findings.is_empty() && open.rows.len() > 200_000);
    assert_eq!((closed.findings.len(), closed.rows.len()), (1, 1));
    let class = class_of(&many, &closed, "a/s0-0");
    assert_ne!(class_of(&few, &open, "a/s0-0"), class);
    let crowd = more(21);
    let still = compile(&crowd, &mut interner);
    assert_eq!(class_of(&crowd, &still, "a/s0-0"), class);
    assert_eq!(still.rows.len(), 1);
}

#[test]
fn as_many_address_blocks_as_fit_an_object_compile() {
    let block = |n: u32| format!("{}.{}.{}.0/25", 1 + (n >> 16), (n >> 8) & 255, n & 255).parse().unwrap();
    let from = vec![Source { ip_blocks: (0..70_000).map(block).collect(), ..Source::default() }];
    let (_, compiled) = compiled(policy(Action::Allow, from, vec![]), 1000);
    assert_eq!(compiled.sources.len(), 70_002);
    assert!(compiled.rows.len() < 10);
}
