//! Facts of Istio's behaviour as tables, and random policies against the reference.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::compile::{Compiled, Interner, compile};
use super::reference;
use super::select::PolicySet;
use crate::control::objects::*;
use crate::control::{Object, Update};
use crate::identity::SpiffeId;
use crate::model::{Mesh, Settings, Snapshot, World};

const ROOT: &str = "istio-system";

fn settings() -> Settings {
    Settings {
        node: "n1".into(),
        trust_domain: "cluster.local".into(),
        cluster_domain: "cluster.local".into(),
        root_namespace: ROOT.into(),
    }
}

fn meta(namespace: &str, name: &str) -> Meta {
    Meta {
        name: name.into(),
        namespace: namespace.into(),
        uid: format!("{namespace}/{name}"),
        ..Meta::default()
    }
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn pod(namespace: &str, name: &str, account: &str, app: &str, last: u8) -> Object {
    let mut metadata = meta(namespace, name);
    metadata.labels = labels(&[("app", app), ("istio.io/dataplane-mode", "ambient")]);
    let spec = PodSpec { node_name: "n1".into(), service_account_name: account.into(), ..PodSpec::default() };
    let status = PodStatus { pod_ip: Some([10, 244, 1, last].into()), ..PodStatus::default() };
    Object::Pod(Resource { metadata, spec, status })
}

fn authorization(namespace: &str, name: &str, spec: AuthorizationPolicySpec) -> Object {
    Object::AuthorizationPolicy(Resource { metadata: meta(namespace, name), spec, status: Empty {} })
}

fn authentication(namespace: &str, name: &str, spec: PeerAuthenticationSpec) -> Object {
    Object::PeerAuthentication(Resource { metadata: meta(namespace, name), spec, status: Empty {} })
}

fn yaml(text: &str) -> AuthorizationPolicySpec {
    serde_saphyr::from_str(text).unwrap()
}

fn peer_yaml(text: &str) -> PeerAuthenticationSpec {
    serde_saphyr::from_str(text).unwrap()
}

fn world(objects: Vec<Object>) -> World {
    let mut world = World::default();
    world.apply(objects.into_iter().map(|o| Update::Upsert(Box::new(o))).collect());
    world
}

fn compiled(world: &World) -> (Mesh, Compiled) {
    let mesh = world.resolve(&settings());
    let set = PolicySet::of(world, ROOT);
    let compiled = compile(&mesh, &set, &mut Interner::adopt(Vec::new(), Vec::new(), 0));
    (mesh, compiled)
}

fn id(namespace: &str, account: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", namespace, account)
}

/// A destination `hello/server` and clients; the verdict and the policy that is named.
fn ask(policies: Vec<Object>, peer: Option<SpiffeId>, port: u16) -> (bool, String) {
    let mut objects = vec![
        pod("hello", "server", "server", "server", 2),
        pod("test", "curl", "default", "curl", 3),
        pod("web", "nginx", "default", "nginx", 4),
    ];
    objects.extend(policies);
    let world = world(objects);
    let (mesh, compiled) = compiled(&world);
    let snapshot = Snapshot::new(mesh, compiled);
    let decision = snapshot.decide([10, 244, 1, 2].into(), port, peer.as_ref());
    let name = snapshot.compiled.policy_names.get(&decision.policy).cloned().unwrap_or_default();
    (decision.allowed(), name)
}

#[test]
fn without_policy_everybody_is_let_in() {
    assert_eq!(ask(vec![], None, 80), (true, String::new()));
    assert_eq!(ask(vec![], Some(id("test", "default")), 80), (true, String::new()));
}

#[test]
fn strict_refuses_plaintext_and_names_the_policy() {
    for (namespace, spec) in [
        (ROOT, "mtls: {mode: STRICT}"),
        ("hello", "mtls: {mode: STRICT}"),
        ("hello", "{selector: {matchLabels: {app: server}}, mtls: {mode: STRICT}}"),
    ] {
        let policy = || vec![authentication(namespace, "default", peer_yaml(spec))];
        assert_eq!(ask(policy(), None, 80), (false, format!("{namespace}/default")), "{spec}");
        assert!(ask(policy(), Some(id("test", "default")), 80).0, "{spec}");
    }
}

#[test]
fn permissive_below_overrides_strict_above_and_unset_inherits() {
    let strict = || authentication(ROOT, "default", peer_yaml("mtls: {mode: STRICT}"));
    let below = |spec| vec![strict(), authentication("hello", "default", peer_yaml(spec))];
    assert!(ask(below("mtls: {mode: PERMISSIVE}"), None, 80).0);
    assert!(ask(below("mtls: {mode: DISABLE}"), None, 80).0);
    assert!(!ask(below("mtls: {mode: UNSET}"), None, 80).0);
    assert!(!ask(below("{}"), None, 80).0);
}

#[test]
fn port_level_settings_follow_istios_golden_cases() {
    // mesh mode, workload mode and ports -> is plaintext refused on 8080, on 9090, on 1?
    let cases = [
        ("PERMISSIVE", "mtls: {mode: STRICT}", [true, true, true]),
        ("PERMISSIVE", "portLevelMtls: {9090: {mode: STRICT}}", [false, true, false]),
        (
            "PERMISSIVE",
            "{mtls: {mode: DISABLE}, portLevelMtls: {9090: {mode: STRICT}}}",
            [false, true, false],
        ),
        ("PERMISSIVE", "{mtls: {mode: STRICT}, portLevelMtls: {9090: {mode: DISABLE}}}", [true, false, true]),
        (
            "PERMISSIVE",
            "{mtls: {mode: STRICT}, portLevelMtls: {9090: {mode: STRICT}, 8080: {mode: PERMISSIVE}}}",
            [false, true, true],
        ),
        ("STRICT", "portLevelMtls: {9090: {mode: PERMISSIVE}}", [true, false, true]),
        ("STRICT", "portLevelMtls: {9090: {mode: PERMISSIVE}, 8080: {mode: STRICT}}", [true, false, true]),
        ("PERMISSIVE", "portLevelMtls: {9090: {mode: PERMISSIVE}}", [false, false, false]),
        ("PERMISSIVE", "portLevelMtls: {8080: {mode: STRICT}, 9090: {mode: STRICT}}", [true, true, false]),
    ];
    for (mesh, spec, refused) in cases {
        let mut workload = peer_yaml(spec);
        workload.selector = Some(WorkloadSelector { match_labels: labels(&[("app", "server")]) });
        for (port, refused) in [8080, 9090, 1].into_iter().zip(refused) {
            let mesh = authentication(ROOT, "default", peer_yaml(&format!("mtls: {{mode: {mesh}}}")));
            let policies = vec![mesh, authentication("hello", "w", workload.clone())];
            assert_eq!(!ask(policies, None, port).0, refused, "{spec} port {port}");
        }
    }
}

#[test]
fn allow_policies_close_everything_else_and_deny_comes_first() {
    let allow = || {
        authorization(
            "hello",
            "allow",
            yaml("rules: [{from: [{source: {principals: [cluster.local/ns/test/sa/default]}}]}]"),
        )
    };
    assert_eq!(ask(vec![allow()], Some(id("test", "default")), 80), (true, "hello/allow".into()));
    assert_eq!(ask(vec![allow()], Some(id("web", "default")), 80), (false, "hello/allow".into()));
    assert!(!ask(vec![allow()], None, 80).0);
    let deny =
        authorization("hello", "deny", yaml("{action: DENY, rules: [{to: [{operation: {ports: ['80']}}]}]}"));
    assert_eq!(
        ask(vec![allow(), deny.clone()], Some(id("test", "default")), 80),
        (false, "hello/deny".into())
    );
    assert!(ask(vec![allow(), deny], Some(id("test", "default")), 81).0);
}

#[test]
fn an_empty_spec_denies_all_and_another_policy_makes_a_hole() {
    let deny_all = || authorization("hello", "deny-all", yaml("{}"));
    assert_eq!(ask(vec![deny_all()], Some(id("test", "default")), 80), (false, "hello/deny-all".into()));
    let hole = authorization(
        "hello",
        "hole",
        yaml(
            "{selector: {matchLabels: {app: server}}, rules: [{from: [{source: {serviceAccounts: [test/default]}}]}]}",
        ),
    );
    assert!(ask(vec![deny_all(), hole.clone()], Some(id("test", "default")), 80).0);
    assert!(!ask(vec![deny_all(), hole], Some(id("web", "default")), 80).0);
    let all = authorization("hello", "all", yaml("rules: [{}]"));
    assert!(ask(vec![deny_all(), all], None, 80).0);
}

#[test]
fn policies_apply_by_scope() {
    let elsewhere = authorization("web", "deny-all", yaml("{}"));
    assert!(ask(vec![elsewhere], None, 80).0);
    let other = authorization("hello", "other", yaml("selector: {matchLabels: {app: nginx}}"));
    assert!(ask(vec![other], None, 80).0);
    assert!(!ask(vec![authorization(ROOT, "mesh", yaml("{}"))], None, 80).0);
    let root_selector = authorization(ROOT, "mesh", yaml("selector: {matchLabels: {app: server}}"));
    assert!(!ask(vec![root_selector], None, 80).0);
    let attached = authorization("hello", "l7", yaml("targetRefs: [{kind: Service, group: '', name: x}]"));
    assert!(ask(vec![attached], None, 80).0);
}

#[test]
fn what_l4_cannot_decide_fails_safe() {
    let peer = || Some(id("test", "default"));
    let allow = authorization(
        "hello",
        "get",
        yaml("rules: [{from: [{source: {namespaces: [test]}}], to: [{operation: {methods: [GET]}}]}]"),
    );
    assert_eq!(ask(vec![allow], peer(), 80), (false, "hello/get".into()));
    let deny = authorization(
        "hello",
        "deny",
        yaml("{action: DENY, rules: [{to: [{operation: {paths: [/x], ports: ['80']}}]}]}"),
    );
    assert!(!ask(vec![deny.clone()], peer(), 80).0);
    assert!(ask(vec![deny], peer(), 81).0);
}

#[test]
fn a_peer_that_no_object_tells_of_is_judged_by_the_same_policies() {
    let allow =
        || authorization("hello", "allow", yaml("rules: [{from: [{source: {namespaces: ['far*']}}]}]"));
    assert!(ask(vec![allow()], Some(id("faraway", "x")), 80).0);
    assert!(!ask(vec![allow()], Some(id("near", "x")), 80).0);
}

#[test]
fn a_changed_policy_is_a_new_class_and_equal_content_is_one() {
    let mut interner = Interner::adopt(Vec::new(), Vec::new(), 7);
    let mut classes = |spec: &str| {
        let world = world(vec![
            pod("hello", "a", "a", "server", 2),
            pod("hello", "b", "b", "server", 3),
            authorization("hello", "p", yaml(spec)),
        ]);
        let compiled = compile(&world.resolve(&settings()), &PolicySet::of(&world, ROOT), &mut interner);
        (compiled.class_of["hello/a"], compiled.class_of["hello/b"])
    };
    assert_eq!(classes("{}"), (8, 8));
    assert_eq!(classes("{}"), (8, 8));
    assert_eq!(classes("rules: [{}]"), (9, 9));
}

fn names() -> impl Strategy<Value = String> {
    prop_oneof![Just("a"), Just("b"), Just("ab"), Just("c")].prop_map(str::to_owned)
}

fn principal() -> impl Strategy<Value = String> {
    prop_oneof![
        (names(), names()).prop_map(|(n, s)| format!("cluster.local/ns/{n}/sa/{s}")),
        names().prop_map(|n| format!("cluster.local/ns/{n}*")),
        names().prop_map(|s| format!("*/sa/{s}")),
        Just("*".to_owned()),
        Just("other.domain/ns/a/sa/a".to_owned()),
    ]
}

fn pattern() -> impl Strategy<Value = String> {
    prop_oneof![
        names(),
        names().prop_map(|n| format!("{n}*")),
        names().prop_map(|n| format!("*{n}")),
        Just("*".to_owned())
    ]
}

fn few<T: std::fmt::Debug + Clone>(s: impl Strategy<Value = T> + 'static) -> impl Strategy<Value = Vec<T>> {
    prop_oneof![3 => Just(Vec::new()), 2 => prop::collection::vec(s, 1..3)]
}

fn port_text() -> impl Strategy<Value = String> {
    prop_oneof![Just("80".to_owned()), Just("81".to_owned()), Just("443".to_owned())]
}

fn source() -> impl Strategy<Value = Source> {
    let account = prop_oneof![names(), (names(), names()).prop_map(|(n, s)| format!("{n}/{s}"))];
    let not_account = prop_oneof![names(), (names(), names()).prop_map(|(n, s)| format!("{n}/{s}"))];
    let l7 = few(Just("10.0.0.0/8".to_owned()));
    (few(principal()), few(principal()), few(pattern()), few(pattern()), few(account), few(not_account), l7)
        .prop_map(
            |(
                principals,
                not_principals,
                namespaces,
                not_namespaces,
                service_accounts,
                not_service_accounts,
                l7,
            )| Source {
                principals,
                not_principals,
                namespaces,
                not_namespaces,
                service_accounts,
                not_service_accounts,
                remote_ip_blocks: if l7.len() > 1 { l7 } else { Vec::new() },
                ..Source::default()
            },
        )
}

fn rule() -> impl Strategy<Value = Rule> {
    let operation = (few(port_text()), few(port_text()), few(Just("GET".to_owned()))).prop_map(
        |(ports, not_ports, m)| To {
            operation: Operation {
                ports,
                not_ports,
                methods: if m.len() > 1 { m } else { Vec::new() },
                ..Operation::default()
            },
        },
    );
    (few(source().prop_map(|source| From { source })), few(operation)).prop_map(|(from, to)| Rule {
        from,
        to,
        when: Vec::new(),
    })
}

fn selector() -> impl Strategy<Value = Option<WorkloadSelector>> {
    prop_oneof![
        Just(None),
        names().prop_map(|app| Some(WorkloadSelector {
            match_labels: BTreeMap::from([("app".to_owned(), app)])
        }))
    ]
}

fn scope() -> impl Strategy<Value = String> {
    prop_oneof![4 => names(), 1 => Just(ROOT.to_owned())]
}

fn policy() -> impl Strategy<Value = (String, AuthorizationPolicySpec)> {
    let action = prop_oneof![Just(Action::Allow), Just(Action::Deny)];
    (scope(), selector(), action, prop::collection::vec(rule(), 0..3)).prop_map(
        |(namespace, selector, action, rules)| {
            let action = if rules.is_empty() { Action::Allow } else { action };
            (
                namespace,
                AuthorizationPolicySpec { selector, action, rules, ..AuthorizationPolicySpec::default() },
            )
        },
    )
}

fn mode() -> impl Strategy<Value = Mtls> {
    prop_oneof![
        Just(MtlsMode::Unset),
        Just(MtlsMode::Disable),
        Just(MtlsMode::Permissive),
        Just(MtlsMode::Strict)
    ]
    .prop_map(|mode| Mtls { mode })
}

fn peer_policy() -> impl Strategy<Value = (String, PeerAuthenticationSpec)> {
    let port = prop_oneof![Just(80_u16), Just(81), Just(443)];
    (scope(), selector(), mode(), prop::collection::btree_map(port, mode(), 0..3)).prop_map(
        |(namespace, selector, mtls, ports)| {
            // Istio reads port settings only with a selector; the reference assumes it.
            let port_level_mtls = if selector.is_some() { ports } else { BTreeMap::new() };
            (namespace, PeerAuthenticationSpec { selector, mtls, port_level_mtls })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn compiled_rows_answer_as_the_reference(
        pods in prop::collection::vec((names(), names(), names()), 1..6),
        policies in prop::collection::vec(policy(), 0..5),
        peers in prop::collection::vec(peer_policy(), 0..4),
    ) {
        let mut objects = Vec::new();
        for (i, (namespace, account, app)) in pods.iter().enumerate() {
            objects.push(pod(namespace, &format!("p{i}"), account, app, i as u8 + 2));
        }
        for (i, (namespace, spec)) in policies.into_iter().enumerate() {
            objects.push(authorization(&namespace, &format!("p{i}"), spec));
        }
        for (i, (namespace, spec)) in peers.into_iter().enumerate() {
            objects.push(authentication(&namespace, &format!("m{i}"), spec));
        }
        let world = world(objects);
        let (mesh, compiled) = compiled(&world);
        let mut asking: Vec<Option<SpiffeId>> = mesh.workloads.iter().map(|w| Some(w.identity.clone())).collect();
        asking.extend([None, Some(id("c", "never-seen")), Some(SpiffeId::new("other.domain", "a", "a"))]);
        for to in &mesh.workloads {
            let class = compiled.class_of[&to.uid];
            for peer in &asking {
                for port in [80, 81, 443, 7] {
                    let got = compiled.decide(class, peer.as_ref(), port);
                    let want = reference::allowed(&world, ROOT, to, peer.as_ref(), port);
                    prop_assert_eq!(got.allowed(), want, "{:?} -> {} port {}: {:?}", peer, to.full_name(), port, got);
                }
            }
        }
    }
}
