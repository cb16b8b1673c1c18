use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::*;
use crate::control::{Object, Update, objects};
use crate::model::{Settings, World};
use crate::policy::evaluate::{Answer, Question, evaluate, evaluate_dry_run, matching};
use crate::policy::*;

mod kernel;
mod large;

fn settings() -> Settings {
    let (node, trust_domain, root_namespace) = ("n1".to_owned(), "td".to_owned(), "root".to_owned());
    Settings { node, trust_domain, root_namespace, ..Settings::default() }
}

fn pod(namespace: &str, account: &str, n: usize, labels: BTreeMap<String, String>) -> objects::Pod {
    let mut pod = objects::Pod::default();
    pod.metadata.name = format!("{account}-{n}");
    pod.metadata.namespace = namespace.to_owned();
    pod.metadata.labels = labels;
    pod.metadata.labels.insert("istio.io/dataplane-mode".to_owned(), "ambient".to_owned());
    pod.spec.service_account_name = account.to_owned();
    let (a, b, c) = (n >> 16, (n >> 8) & 255, n & 255);
    pod.status.pod_ips = [format!("10.{a}.{b}.{c}"), format!("fd00::{a:x}:{b:x}:{c:x}")]
        .map(|ip| objects::PodIp { ip })
        .to_vec();
    pod
}

fn mesh(pods: Vec<objects::Pod>, policies: &[AuthorizationPolicy], authn: &[PeerAuthentication]) -> Mesh {
    mesh_with(&settings(), pods, policies, authn)
}

fn mesh_with(
    settings: &Settings,
    pods: Vec<objects::Pod>,
    policies: &[AuthorizationPolicy],
    authn: &[PeerAuthentication],
) -> Mesh {
    let mut world = World::default();
    let pods = pods.into_iter().map(|p| Object::Pod(Arc::new(p)));
    let policies = policies.iter().map(|p| Object::AuthorizationPolicy(Arc::new(p.clone())));
    let authn = authn.iter().map(|p| Object::PeerAuthentication(Arc::new(p.clone())));
    world.apply(pods.chain(policies).chain(authn).map(Update::Upsert).collect());
    world.resolve(settings)
}

/// The class of a pod's IPv4 address.
fn class_of(mesh: &Mesh, compiled: &Compiled, uid: &str) -> u32 {
    let (n, pod) = mesh.workloads.iter().enumerate().find(|(_, w)| w.uid == uid).unwrap();
    compiled.class_of(n, pod.addresses[0]).unwrap()
}

/// What the reference has to say beside the verdict.
fn expected_note(
    question: &Question<'_>,
    policies: &[AuthorizationPolicy],
    authn: &[PeerAuthentication],
    answer: &Answer,
) -> Option<String> {
    let tried = |p: &AuthorizationPolicy| p.dry_run && p.action == Action::Deny;
    let wished = |p: &AuthorizationPolicy| p.dry_run && p.action == Action::Allow;
    let as_if = evaluate_dry_run(question, policies, authn);
    let would = (as_if.allowed() != answer.allowed())
        .then(|| Would { allow: as_if.allowed(), policy: as_if.policy().unwrap().to_owned() });
    let dry_run = [matching(question, policies, tried), matching(question, policies, wished)].concat();
    let audit = matching(question, policies, |p| p.action == Action::Audit && !p.dry_run);
    let note = Note { audit, dry_run, would };
    (!note.is_empty()).then(|| note.to_string())
}

/// Every peer from several addresses at every port of every address: reference = rows.
fn check(mesh: &Mesh, compiled: &Compiled) {
    let policies: Vec<_> = mesh.policies.iter().map(|p| p.as_ref().clone()).collect();
    let authn: Vec<_> = mesh.peer_authentications.iter().map(|p| p.as_ref().clone()).collect();
    let foreign =
        [SpiffeId::new("other", "a", "x"), SpiffeId::new("td", "zz", "zz"), SpiffeId::new("td", "", "")];
    let peers: Vec<_> = compiled.identities.keys().chain(&foreign).map(Some).chain([None]).collect();
    let sources = ["10.0.0.1", "10.0.9.9", "192.168.0.1", "fd00::1"].map(|ip| ip.parse::<IpAddr>().unwrap());
    for (n, workload) in mesh.workloads.iter().enumerate() {
        for (peer, destination) in
            peers.iter().flat_map(|p| workload.addresses.iter().map(move |ip| (*p, *ip)))
        {
            let class = compiled.class_of(n, destination).unwrap();
            for (source, port) in sources.iter().flat_map(|ip| [1, 80, 8080, 9090].map(|port| (*ip, port))) {
                let (namespace, labels) = (workload.namespace.as_str(), &workload.labels);
                let behind = &workload.behind[..];
                let settings = &mesh.settings;
                let question =
                    Question { settings, namespace, labels, behind, peer, source, destination, port };
                let decision = compiled.decide(class, peer, source, port);
                let expected = evaluate(&question, &policies, &authn);
                let context = || format!("{question:?} {policies:#?} {authn:#?}");
                assert_eq!(compiled.in_words(decision).as_ref(), Some(&expected), "{}", context());
                let note = compiled.notes.text(decision.note);
                assert_eq!(note, expected_note(&question, &policies, &authn, &expected), "{}", context());
            }
        }
    }
}

const NAMESPACES: [&str; 3] = ["a", "b", "root"];

fn text(options: &'static [&'static str]) -> impl Strategy<Value = Vec<StringMatch>> {
    vec(prop::sample::select(options).prop_map(StringMatch::from), 0..2)
}

fn ports() -> impl Strategy<Value = Vec<u16>> {
    vec(prop::sample::select(&[80_u16, 81, 8080][..]), 0..3)
}

fn blocks() -> impl Strategy<Value = Vec<IpNet>> {
    const BLOCKS: &[&str] = &[
        "10.0.0.0/8",
        "10.0.0.0/24",
        "10.0.0.1/32",
        "10.0.0.4/31",
        "0.0.0.0/0",
        "192.168.0.1/16",
        "fd00::/16",
        "fd00::1/128",
        "::/0",
    ];
    let none = Just(Vec::new());
    let some = vec(prop::sample::select(BLOCKS).prop_map(|text| text.parse().unwrap()), 1..4);
    prop_oneof![3 => none, 1 => some]
}

fn source() -> impl Strategy<Value = Source> {
    const PRINCIPALS: &[&str] = &["td/ns/a/sa/x", "td/ns/b/*", "*/sa/y", "*", "other/*", "td/ns/root/sa/x"];
    const SPACES: &[&str] = &["a", "b", "*", "ro*", "*t", "zz"];
    let accounts = || {
        vec(prop::sample::select(&[("a", "x"), ("b", "y")][..]), 0..2).prop_map(|list| {
            let name = |(namespace, name): (&str, &str)| ServiceAccountName {
                namespace: namespace.into(),
                name: name.into(),
            };
            list.into_iter().map(name).collect()
        })
    };
    let identity = (text(PRINCIPALS), text(PRINCIPALS), text(SPACES), text(SPACES));
    let blocks = (blocks(), blocks());
    let accounts = (accounts(), accounts());
    (identity, accounts, blocks, prop::bool::weighted(0.1)).prop_map(|(texts, (yes, no), ips, blind)| {
        Source {
            principals: texts.0,
            not_principals: texts.1,
            namespaces: texts.2,
            not_namespaces: texts.3,
            service_accounts: yes,
            not_service_accounts: no,
            ip_blocks: ips.0,
            not_ip_blocks: ips.1,
            remote_ip_blocks: if blind { vec!["10.0.0.0/8".parse().unwrap()] } else { Vec::new() },
            ..Source::default()
        }
    })
}

fn rule() -> impl Strategy<Value = Rule> {
    let operation =
        (ports(), ports(), prop::bool::weighted(0.1)).prop_map(|(ports, not_ports, blind)| Operation {
            ports,
            not_ports,
            methods: if blind { vec!["GET".into()] } else { Vec::new() },
            ..Operation::default()
        });
    let when = prop_oneof![
        ports().prop_map(|values| ConditionKey::DestinationPort { values, not_values: vec![9090] }),
        text(&["a", "*"]).prop_map(|v| ConditionKey::SourceNamespace { not_values: Vec::new(), values: v }),
        text(&["td/*"]).prop_map(|v| ConditionKey::SourcePrincipal { values: Vec::new(), not_values: v }),
        (blocks(), blocks()).prop_map(|(values, not_values)| ConditionKey::SourceIp { values, not_values }),
        (blocks(), blocks())
            .prop_map(|(values, not_values)| ConditionKey::DestinationIp { values, not_values }),
        Just(ConditionKey::Other { values: vec!["v".into()], not_values: Vec::new() }),
    ];
    // Empty ones are refused before they get here.
    let given = |test: &ConditionKey| match test {
        ConditionKey::DestinationIp { values, not_values }
        | ConditionKey::SourceIp { values, not_values } => !values.is_empty() || !not_values.is_empty(),
        ConditionKey::SourceNamespace { values, .. } => !values.is_empty(),
        ConditionKey::SourcePrincipal { not_values, .. } => !not_values.is_empty(),
        ConditionKey::DestinationPort { .. } | ConditionKey::Other { .. } => true,
    };
    let when = when.prop_filter("empty", given).prop_map(|test| Condition { key: "k".into(), test });
    (vec(source(), 0..3), vec(operation, 0..2), vec(when, 0..2)).prop_map(|(mut from, mut to, when)| {
        // Empty ones are refused before they get here.
        from.retain(|source| *source != Source::default());
        to.retain(|operation| *operation != Operation::default());
        Rule { from, to, when }
    })
}

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    btree_map(Just("app".to_owned()), prop::sample::select(&["x", "y"][..]).prop_map(str::to_owned), 0..2)
}

fn policies() -> impl Strategy<Value = Vec<AuthorizationPolicy>> {
    let action = prop_oneof![
        4 => Just(Action::Allow),
        4 => Just(Action::Deny),
        1 => Just(Action::Audit),
        1 => Just(Action::Custom),
    ];
    let attachment = prop_oneof![Just(Attachment::All), labels().prop_map(Attachment::Selector)];
    let one = (0..3_usize, action, attachment, vec(rule(), 0..3), prop::bool::weighted(0.2));
    vec(one, 0..5).prop_map(|list| {
        let policy = |(n, (space, action, attachment, rules, dry_run))| AuthorizationPolicy {
            namespace: str::to_owned(NAMESPACES[space]),
            name: format!("p{n}"),
            action,
            attachment,
            dry_run,
            rules,
        };
        list.into_iter().enumerate().map(policy).collect()
    })
}

fn authn() -> impl Strategy<Value = Vec<PeerAuthentication>> {
    let mode = || {
        prop::sample::select(
            &[MtlsMode::Unset, MtlsMode::Strict, MtlsMode::Permissive, MtlsMode::Disable][..],
        )
    };
    let port_modes = btree_map(prop::sample::select(&[80_u16, 8080][..]), mode(), 0..3);
    let one = (0..3_usize, prop::option::of(labels()), mode(), port_modes, prop::option::of(0..3_u8));
    vec(one, 0..5).prop_map(|list| {
        let policy =
            |(n, (space, selector, mode, port_modes, created)): (usize, (usize, _, _, _, Option<u8>))| {
                PeerAuthentication {
                    namespace: NAMESPACES[space].to_owned(),
                    name: format!("m{n}"),
                    created: created.map(|day| format!("2026-01-0{}T00:00:00Z", day + 1)),
                    selector,
                    mode,
                    port_modes,
                }
            };
        list.into_iter().enumerate().map(policy).collect()
    })
}

fn pods() -> Vec<objects::Pod> {
    let app = |value: &str| BTreeMap::from([("app".to_owned(), value.to_owned())]);
    let spots = NAMESPACES.iter().flat_map(|ns| ["x", "y"].map(|account| (*ns, account)));
    spots.enumerate().map(|(n, (ns, account))| pod(ns, account, n, app(account))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rows_decide_as_the_reference_does(
        first in policies(), second in policies(), strict in authn(), stricter in authn(),
        istio: bool, aliases: bool,
    ) {
        let settings = Settings {
            l7_deny: if istio { L7Deny::Istio } else { L7Deny::FailSafe },
            trust_domain_aliases: if aliases { vec!["other".to_owned()] } else { Vec::new() },
            ..settings()
        };
        let mut interner = Interner::new();
        let before = mesh_with(&settings, pods(), &first, &strict);
        let old = compile(&before, &mut interner);
        check(&before, &old);
        // The same interner, so that what it remembers must not be wrong; and a peer that is new.
        let mut more = pods();
        more.push(pod("b", "x-new", 9, BTreeMap::new()));
        let after = mesh_with(&settings, more, &second, &stricter);
        let new = compile(&after, &mut interner);
        check(&after, &new);
        // The kernel may hold both at once: no row and no block changes its meaning.
        prop_assert!(old.rows.iter().all(|(key, row)| new.rows.get(key).is_none_or(|now| now == row)));
        prop_assert!(old.sources.iter().all(|(key, class)| new.sources.get(key).is_none_or(|now| now == class)));
    }

    /// Policies come and go one by one among objects that stay: what is remembered is never wrong.
    #[test]
    fn step_by_step_is_as_all_at_once(first in policies(), changes in vec(policies(), 1..4), strict in authn()) {
        let mut interner = Interner::new();
        let mut world = World::default();
        let pods = pods().into_iter().map(|p| Object::Pod(Arc::new(p)));
        let authn = strict.iter().map(|p| Object::PeerAuthentication(Arc::new(p.clone())));
        world.apply(pods.chain(authn).map(Update::Upsert).collect());
        for (n, policies) in std::iter::once(first).chain(changes).enumerate() {
            let upserts = policies.iter().map(|p| Object::AuthorizationPolicy(Arc::new(p.clone())));
            world.apply(upserts.map(Update::Upsert).collect());
            if let Some(gone) = policies.first().filter(|_| n % 2 == 1) {
                world.apply(vec![Update::Remove(Object::AuthorizationPolicy(Arc::new(gone.clone())).key())]);
            }
            let mesh = world.resolve(&settings());
            let compiled = compile(&mesh, &mut interner);
            check(&mesh, &compiled);
            prop_assert_eq!(compiled.rows.len(), compile(&mesh, &mut Interner::new()).rows.len());
        }
    }
}

fn allow_from(namespace: &str, name: &str, principal: &str) -> AuthorizationPolicy {
    let from = vec![Source { principals: vec![principal.into()], ..Source::default() }];
    AuthorizationPolicy {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        action: Action::Allow,
        attachment: Attachment::All,
        dry_run: false,
        rules: vec![Rule { from, ..Rule::default() }],
    }
}

#[test]
fn a_class_stays_while_its_content_does_and_new_identities_only_add_rows() {
    let mut interner = Interner::new();
    interner.set_class_floor(40);
    let old = [allow_from("a", "p", "td/ns/*")];
    let world = mesh(pods(), &old, &[]);
    let first = compile(&world, &mut interner);
    let class = class_of(&world, &first, "a/x-0");
    assert!(class > 40);
    assert_eq!(class, class_of(&world, &first, "a/y-1"));
    let mut more = pods();
    more.push(pod("b", "new", 9, BTreeMap::new()));
    // The same objects: what is equal keeps its class.
    let mut grown = mesh(more, &[], &[]);
    grown.policies = world.policies.clone();
    let second = compile(&grown, &mut interner);
    assert_eq!(class_of(&grown, &second, "a/x-0"), class);
    assert!(first.rows.iter().all(|(key, row)| second.rows.get(key) == Some(row)));
    assert!(second.rows.len() > first.rows.len());
    let changed = mesh(pods(), &[allow_from("a", "p", "td/ns/b/*")], &[]);
    let third = compile(&changed, &mut interner);
    assert_ne!(class_of(&changed, &third, "a/x-0"), class);
    assert_eq!(class_of(&changed, &third, "b/x-2"), class_of(&world, &first, "b/x-2"));
}

#[test]
fn adopted_numbers_are_kept_and_cut_texts_are_not_believed() {
    let mut interner = Interner::new();
    assert!(interner.adopt_identity(30, "spiffe://td/ns/a/sa/x"));
    assert!(!interner.adopt_identity(31, &format!("spiffe://td/ns/a/sa/{}", "x".repeat(240))));
    interner.adopt_policy(7, "a/p");
    assert_eq!(interner.identity(&SpiffeId::new("td", "a", "x")), 30);
    assert_eq!(interner.identity(&SpiffeId::new("td", "a", "y")), 32);
    assert_eq!((interner.policy("a/p"), interner.policy("a/q")), (7, 8));
}

/// Most identities fit the pattern: the rows are those of the few that do not.
#[test]
fn a_pattern_that_fits_nearly_everybody_needs_few_rows() {
    let pods: Vec<_> = (0..1000).map(|n| pod("a", &format!("sa{n}"), n, BTreeMap::new())).collect();
    let mut stranger = pod("b", "x", 2000, BTreeMap::new());
    stranger.metadata.labels.remove("app");
    let everybody = [pods, vec![stranger]].concat();
    let world = mesh(everybody, &[allow_from("a", "p", "td/ns/a/*")], &[]);
    let compiled = compile(&world, &mut Interner::new());
    assert!(compiled.rows.len() < 10, "{}", compiled.rows.len());
    let class = class_of(&world, &compiled, "a/sa0-0");
    let from = |id: &SpiffeId| compiled.decide(class, Some(id), "10.0.0.1".parse().unwrap(), 80).allowed();
    assert!(from(&SpiffeId::new("td", "a", "sa7")));
    assert!(!from(&SpiffeId::new("td", "b", "x")));
    assert!(!from(&SpiffeId::new("td", "c", "nobody")));
    assert!(!compiled.decide(class, None, "10.0.0.1".parse().unwrap(), 80).allowed());
}

/// A thousand blocks that mean the same need one set of rows, and every address finds the longest block around it.
#[test]
fn blocks_are_grouped_by_what_they_decide() {
    let block = |n: usize| format!("10.{}.{}.0/24", n / 250, n % 250).parse().unwrap();
    let from = vec![Source {
        ip_blocks: (0..1000).map(block).collect(),
        not_ip_blocks: vec!["10.0.7.128/25".parse().unwrap()],
        ..Source::default()
    }];
    let policy =
        AuthorizationPolicy { rules: vec![Rule { from, ..Rule::default() }], ..allow_from("a", "p", "x") };
    let world = mesh(pods(), &[policy], &[]);
    let compiled = compile(&world, &mut Interner::new());
    assert_eq!(compiled.sources.len(), 1003);
    assert!(compiled.rows.len() < 12, "{}", compiled.rows.len());
    let class = class_of(&world, &compiled, "a/x-0");
    let peer = SpiffeId::new("td", "a", "y");
    let from = |ip: &str| compiled.decide(class, Some(&peer), ip.parse().unwrap(), 80).allowed();
    assert!(from("10.3.249.255") && from("10.0.7.127") && from("::ffff:10.0.7.127"));
    assert!(!from("10.0.7.128") && !from("10.9.0.1") && !from("fd00::1"));
}

/// istio: `pilot/pkg/serviceregistry/ambient/testdata/peer-authn-*`: which of the ports 8080, 9090, 1 are STRICT.
#[test]
fn peer_authentication_is_inherited_as_in_istio() {
    use MtlsMode::{Disable as D, Permissive as P, Strict as S, Unset as U};
    type Ports = &'static [(u16, MtlsMode)];
    type Case = (MtlsMode, MtlsMode, Option<MtlsMode>, Ports, [bool; 3]);
    let cases: &[Case] = &[
        (U, U, None, &[], [false; 3]),
        (D, U, None, &[], [false; 3]),
        (S, U, None, &[], [true; 3]),
        (S, D, None, &[], [false; 3]),
        (U, U, Some(S), &[], [true; 3]),
        (U, U, Some(S), &[(8080, S)], [true; 3]),
        (U, U, Some(D), &[(9090, S)], [false, true, false]),
        (U, U, Some(P), &[(9090, S), (8080, P)], [false, true, false]),
        (U, U, Some(U), &[(8080, S)], [true, false, false]),
        (U, U, Some(S), &[(9090, P)], [true, false, true]),
        (U, U, Some(S), &[(9090, D)], [true, false, true]),
        (U, U, Some(S), &[(9090, S), (8080, P)], [false, true, true]),
        (P, P, Some(U), &[(9090, S), (8080, S)], [true, true, false]),
        (P, U, Some(U), &[(9090, P)], [false; 3]),
        (P, S, Some(U), &[(9090, P)], [true, false, true]),
        (P, U, Some(U), &[(9090, S), (8080, P)], [false, true, false]),
        (S, P, Some(U), &[(9090, S)], [false, true, false]),
        (S, U, Some(U), &[(9090, P)], [true, false, true]),
        (S, U, Some(U), &[(9090, P), (8080, S)], [true, false, true]),
    ];
    for (mesh_mode, local, own, port_modes, strict) in cases {
        let policy = |namespace: &str, mode: MtlsMode| PeerAuthentication {
            namespace: namespace.to_owned(),
            name: "default".to_owned(),
            created: None,
            selector: None,
            mode,
            port_modes: BTreeMap::new(),
        };
        let mut authn = vec![policy("root", *mesh_mode), policy("a", *local)];
        let labels = BTreeMap::from([("app".to_owned(), "x".to_owned())]);
        if let Some(mode) = own {
            authn.push(PeerAuthentication {
                selector: Some(labels.clone()),
                name: "own".to_owned(),
                port_modes: port_modes.iter().copied().collect(),
                ..policy("a", *mode)
            });
        }
        let mesh = mesh(vec![pod("a", "x", 0, labels)], &[], &authn);
        let compiled = compile(&mesh, &mut Interner::new());
        let class = class_of(&mesh, &compiled, "a/x-0");
        let refused = [8080, 9090, 1]
            .map(|port| !compiled.decide(class, None, Ipv4Addr::LOCALHOST.into(), port).allowed());
        assert_eq!(refused, *strict, "{authn:#?}");
        check(&mesh, &compiled);
    }
}

/// ztunnel: `src/rbac.rs`: one field against no identity, its own, another one.
#[test]
fn single_fields_match_as_in_ztunnel() {
    let source = |field: &str| {
        let account = || vec![ServiceAccountName { namespace: "namespace".into(), name: "account".into() }];
        let mut s = Source::default();
        match field {
            "namespaces" => s.namespaces = vec!["namespace".into()],
            "notNamespaces" => s.not_namespaces = vec!["namespace".into()],
            "principals" => s.principals = vec!["td/ns/namespace/sa/account".into()],
            "notPrincipals" => s.not_principals = vec!["td/ns/namespace/sa/account".into()],
            "serviceAccounts" => s.service_accounts = account(),
            "notServiceAccounts" => s.not_service_accounts = account(),
            "presence" => s.principals = vec!["*".into()],
            "notPresence" => s.not_principals = vec!["*".into()],
            _ => unreachable!(),
        }
        s
    };
    for (field, expected) in [
        ("namespaces", [false, true, false]),
        ("notNamespaces", [true, false, true]),
        ("principals", [false, true, false]),
        ("notPrincipals", [true, false, true]),
        ("serviceAccounts", [false, true, false]),
        ("notServiceAccounts", [true, false, true]),
        ("presence", [false, true, true]),
        ("notPresence", [true, false, false]),
    ] {
        let rule = Rule { from: vec![source(field)], ..Rule::default() };
        let policy = AuthorizationPolicy { rules: vec![rule], ..allow_from("namespace", "p", "x") };
        let mesh = mesh(vec![pod("namespace", "account", 0, BTreeMap::new())], &[policy], &[]);
        let compiled = compile(&mesh, &mut Interner::new());
        let own = SpiffeId::new("td", "namespace", "account");
        let other = SpiffeId::new("td-alt", "ns-alt", "sa-alt");
        let class = class_of(&mesh, &compiled, "namespace/account-0");
        let got = [None, Some(&own), Some(&other)]
            .map(|peer| compiled.decide(class, peer, Ipv4Addr::LOCALHOST.into(), 8080).allowed());
        assert_eq!(got, expected, "{field}");
    }
}

#[test]
fn refusals_name_the_policy_and_l7_fails_safe() {
    let deny_all = AuthorizationPolicy { rules: Vec::new(), ..allow_from("a", "deny-all", "x") };
    let l7 = Operation { methods: vec!["GET".into()], ..Operation::default() };
    let rule = Rule { to: vec![l7], ..Rule::default() };
    let deny = AuthorizationPolicy {
        action: Action::Deny,
        rules: vec![rule.clone()],
        ..allow_from("b", "deny", "x")
    };
    let allow = AuthorizationPolicy { rules: vec![rule], ..allow_from("root", "only-get", "x") };
    let mesh = mesh(
        pods(),
        &[
            deny_all,
            deny,
            AuthorizationPolicy {
                attachment: Attachment::Selector(BTreeMap::from([("app".into(), "none".into())])),
                ..allow
            },
        ],
        &[],
    );
    let compiled = compile(&mesh, &mut Interner::new());
    let peer = SpiffeId::new("td", "b", "x");
    let ask = |uid: &str| {
        let class = class_of(&mesh, &compiled, uid);
        compiled.in_words(compiled.decide(class, Some(&peer), Ipv4Addr::LOCALHOST.into(), 80)).unwrap()
    };
    assert_eq!(ask("a/x-0"), Answer::NotAllowed("a/deny-all".into()));
    assert_eq!(ask("b/x-2"), Answer::Denied("b/deny".into()));
    assert_eq!(ask("root/x-4"), Answer::NoPolicy);
    let codes: Vec<_> = compiled.findings.iter().map(|f| f.code).collect();
    assert_eq!(codes, [Code::DenyRuleWidened, Code::AllowRuleNeverMatches]);
}
