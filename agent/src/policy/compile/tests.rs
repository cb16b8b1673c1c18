use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::*;
use crate::control::{Object, Update, objects};
use crate::model::{Settings, World};
use crate::policy::evaluate::{Answer, Question, evaluate};
use crate::policy::*;

fn settings() -> Settings {
    let text = str::to_owned;
    Settings {
        node: text("n1"),
        trust_domain: text("td"),
        root_namespace: text("root"),
        cluster_domain: text("cluster.local"),
    }
}

fn pod(namespace: &str, account: &str, n: usize, labels: BTreeMap<String, String>) -> objects::Pod {
    let mut pod = objects::Pod::default();
    pod.metadata.name = format!("{account}-{n}");
    pod.metadata.namespace = namespace.to_owned();
    pod.metadata.labels = labels;
    pod.metadata.labels.insert("istio.io/dataplane-mode".to_owned(), "ambient".to_owned());
    pod.spec.service_account_name = account.to_owned();
    pod.status.pod_ip = Some(format!("10.{}.{}.{}", n >> 16, (n >> 8) & 255, n & 255));
    pod
}

fn mesh(pods: Vec<objects::Pod>, policies: &[AuthorizationPolicy], authn: &[PeerAuthentication]) -> Mesh {
    let mut world = World::default();
    let pods = pods.into_iter().map(|p| Object::Pod(Arc::new(p)));
    let policies = policies.iter().map(|p| Object::AuthorizationPolicy(Arc::new(p.clone())));
    let authn = authn.iter().map(|p| Object::PeerAuthentication(Arc::new(p.clone())));
    world.apply(pods.chain(policies).chain(authn).map(Update::Upsert).collect());
    world.resolve(&settings())
}

fn answer(compiled: &Compiled, decision: Decision) -> Answer {
    let name =
        compiled.policy_names.iter().find(|(_, n)| **n == decision.policy).map(|(name, _)| name.clone());
    assert_eq!(
        decision.allowed(),
        matches!(decision.reason, Reason::Allowed | Reason::NoPolicy),
        "{decision:?}"
    );
    match decision.reason {
        Reason::Allowed => Answer::Allowed(name.unwrap()),
        Reason::DeniedByPolicy => Answer::Denied(name.unwrap()),
        Reason::NotAllowed => Answer::NotAllowed(name.unwrap()),
        Reason::StrictPlaintext => Answer::Strict(name.unwrap()),
        Reason::NoPolicy => Answer::NoPolicy,
        other => panic!("{other:?}"),
    }
}

/// Every peer at every port of every workload: reference = rows.
fn check(mesh: &Mesh, compiled: &Compiled) {
    let policies: Vec<_> = mesh.policies.iter().map(|p| p.as_ref().clone()).collect();
    let authn: Vec<_> = mesh.peer_authentications.iter().map(|p| p.as_ref().clone()).collect();
    let foreign =
        [SpiffeId::new("other", "a", "x"), SpiffeId::new("td", "zz", "zz"), SpiffeId::new("td", "", "")];
    let peers = compiled.identities.keys().chain(&foreign).map(Some).chain([None]);
    for (peer, workload) in peers.flat_map(|p| mesh.workloads.iter().map(move |w| (p, w))) {
        for port in [1, 80, 81, 8080, 9090] {
            let (namespace, labels) = (workload.namespace.as_str(), &workload.labels);
            let question = Question { root_namespace: "root", namespace, labels, peer, port };
            let decision = compiled.decide(compiled.class_of[&workload.uid], peer, port);
            assert_eq!(
                answer(compiled, decision),
                evaluate(&question, &policies, &authn),
                "{question:?} {policies:#?} {authn:#?}"
            );
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
    (identity, accounts(), accounts(), prop::bool::weighted(0.1)).prop_map(|(texts, yes, no, blind)| Source {
        principals: texts.0,
        not_principals: texts.1,
        namespaces: texts.2,
        not_namespaces: texts.3,
        service_accounts: yes,
        not_service_accounts: no,
        ip_blocks: if blind { vec!["10.0.0.0/8".parse().unwrap()] } else { Vec::new() },
        ..Source::default()
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
        Just(ConditionKey::Other { values: vec!["v".into()], not_values: Vec::new() }),
    ];
    let when = when.prop_map(|test| Condition { key: "k".into(), test });
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
    let action = prop_oneof![4 => Just(Action::Allow), 4 => Just(Action::Deny), 1 => Just(Action::Audit)];
    let attachment = prop_oneof![Just(Attachment::All), labels().prop_map(Attachment::Selector)];
    let one = (0..3_usize, action, attachment, vec(rule(), 0..3), prop::bool::weighted(0.1));
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
    ) {
        let mut interner = Interner::new();
        let before = mesh(pods(), &first, &strict);
        check(&before, &compile(&before, &mut interner));
        // The same interner, so that what it remembers must not be wrong; and a peer that is new.
        let mut more = pods();
        more.push(pod("b", "x-new", 9, BTreeMap::new()));
        let after = mesh(more, &second, &stricter);
        check(&after, &compile(&after, &mut interner));
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
    let first = compile(&mesh(pods(), &old, &[]), &mut interner);
    let class = first.class_of["a/x-0"];
    assert!(class > 40);
    assert_eq!(class, first.class_of["a/y-1"]);
    let mut more = pods();
    more.push(pod("b", "new", 9, BTreeMap::new()));
    let second = compile(&mesh(more, &old, &[]), &mut interner);
    assert_eq!(second.class_of["a/x-0"], class);
    assert!(first.rows.iter().all(|(key, row)| second.rows.get(key) == Some(row)));
    assert!(second.rows.len() > first.rows.len());
    let third = compile(&mesh(pods(), &[allow_from("a", "p", "td/ns/b/*")], &[]), &mut interner);
    assert_ne!(third.class_of["a/x-0"], class);
    assert_eq!(third.class_of["b/x-2"], first.class_of["b/x-2"]);
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

#[test]
fn a_thousand_policies_and_ten_thousand_workloads_compile_quickly() {
    let policies: Vec<_> = (0..1000)
        .map(|n| {
            allow_from(
                &format!("ns{}", n % 100),
                &format!("p{n}"),
                &format!("td/ns/ns{}/sa/sa{}", n % 97, n % 10),
            )
        })
        .collect();
    let pods = (0..10_000).map(|n| {
        let labels = BTreeMap::from([("app".to_owned(), format!("app{n}"))]);
        pod(&format!("ns{}", n % 100), &format!("sa{}", (n / 100) % 10), n, labels)
    });
    let mesh = mesh(pods.collect(), &policies, &[]);
    let start = std::time::Instant::now();
    let compiled = compile(&mesh, &mut Interner::new());
    let took = start.elapsed();
    println!("{} rows, {took:?}", compiled.rows.len());
    assert!(took < std::time::Duration::from_secs(2), "{took:?}");
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
        let refused =
            [8080, 9090, 1].map(|p| !compiled.decide(compiled.class_of["a/x-0"], None, p).allowed());
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
        let class = *compiled.class_of.values().next().unwrap();
        let got = [None, Some(&own), Some(&other)].map(|peer| compiled.decide(class, peer, 8080).allowed());
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
    let ask = |uid: &str| answer(&compiled, compiled.decide(compiled.class_of[uid], Some(&peer), 80));
    assert_eq!(ask("a/x-0"), Answer::NotAllowed("a/deny-all".into()));
    assert_eq!(ask("b/x-2"), Answer::Denied("b/deny".into()));
    assert_eq!(ask("root/x-4"), Answer::NoPolicy);
    let codes: Vec<_> = compiled.findings.iter().map(|f| f.code).collect();
    assert_eq!(codes, [Code::DenyRuleWidened, Code::AllowRuleNeverMatches]);
}
