//! The loaded program, on the running kernel, with tables as the agent writes them. Needs root.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use culvert_common::{Admission, FlowEvent, HOST_IDENTITY, Tuple, Verdict};
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::*;
use crate::bpf::{EventStream, Kernel, Scratch, Trial};
use crate::model::desired;

/// Random worlds; each is asked a few thousand questions.
const WORLDS: usize = 60;

/// A question to the program, and what the reference has to say.
struct Asked {
    about: String,
    answer: Answer,
    note: Option<String>,
    /// Where the program left its verdict, if it did not tell it.
    left: Option<Admission>,
}

async fn events(stream: &mut EventStream, count: usize) -> Vec<FlowEvent> {
    let mut found = Vec::new();
    while found.len() < count {
        let read = stream.read(|event| found.push(event));
        tokio::time::timeout(Duration::from_secs(5), read).await.expect("events arrive").unwrap();
    }
    found
}

/// Asks the program everything about every pod; the tables are those of `mesh`.
fn ask(kernel: &Kernel, mesh: &Mesh, compiled: &Compiled) -> Vec<Asked> {
    let policies: Vec<_> = mesh.policies.iter().map(|p| p.as_ref().clone()).collect();
    let authn: Vec<_> = mesh.peer_authentications.iter().map(|p| p.as_ref().clone()).collect();
    let peers: Vec<_> = compiled.identities.iter().map(Some).chain([None]).collect();
    let mut asked = Vec::new();
    for workload in mesh.workloads.iter() {
        for (peer, destination) in
            peers.iter().flat_map(|p| workload.addresses.iter().map(move |ip| (*p, *ip)))
        {
            let sources = match destination {
                IpAddr::V4(_) => ["10.0.0.1", "10.0.9.9", "192.168.0.1"],
                IpAddr::V6(_) => ["fd00::1", "fd00::9", "2001:db8::1"],
            };
            for (source, port) in sources.iter().flat_map(|ip| [1, 80, 8080].map(|port| (*ip, port))) {
                let source: IpAddr = source.parse().unwrap();
                let (namespace, labels) = (workload.namespace.as_str(), &workload.labels);
                let behind = &workload.behind[..];
                let identity = peer.map(|(_, number)| *number);
                let peer = peer.map(|(identity, _)| identity);
                let settings = &mesh.settings;
                let question =
                    Question { settings, namespace, labels, behind, peer, source, destination, port };
                let tuple = Tuple::new(
                    SocketAddr::new(source, 40000).into(),
                    SocketAddr::new(destination, port).into(),
                );
                let Trial { let_in, admission, .. } = kernel.try_syn(&tuple, identity, 1).unwrap();
                let answer = evaluate(&question, &policies, &authn);
                let about = format!("{question:?} {policies:#?} {authn:#?}");
                assert_eq!(let_in, answer.allowed(), "{about}");
                let note = expected_note(&question, &policies, &authn, &answer);
                let left = admission.filter(|_| let_in);
                asked.push(Asked { about, answer, note, left });
            }
        }
    }
    asked
}

/// Reference = the verdict of the loaded program, and the reason, the policy and the note in its events and admissions.
#[tokio::test]
async fn the_loaded_program_decides_as_the_reference_does() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: loading programs needs root");
        return;
    }
    let scratch = Scratch::new("reference").unwrap();
    let kernel = Kernel::load(&scratch.config()).unwrap();
    let mut stream = EventStream::open(&kernel).unwrap();
    let mut interner = Interner::new();
    let mut runner = TestRunner::default();
    let mut total = 0;
    for _ in 0..WORLDS {
        let policies = policies().new_tree(&mut runner).unwrap().current();
        let authn = authn().new_tree(&mut runner).unwrap().current();
        // The pods name no node, and neither do the settings: all are local.
        let settings = Settings { node: String::new(), ..settings() };
        let mesh = mesh_with(&settings, pods(), &policies, &authn);
        // One interner and the same maps throughout: each world is a change of the one before.
        let compiled = compile(&mesh, &mut interner);
        let serving: HashSet<String> = mesh.workloads.iter().map(|w| w.uid.clone()).collect();
        let desired = desired(&mesh, &compiled, &serving, &mut interner);
        kernel.maps.sync_before(&desired).unwrap();
        kernel.maps.sync_after(&desired).unwrap();
        let asked = ask(&kernel, &mesh, &compiled);
        let told = asked.iter().filter(|asked| asked.left.is_none()).count();
        let events = events(&mut stream, told).await;
        assert_eq!(events.len(), told);
        total += asked.len();
        let mut events = events.iter();
        for Asked { about, answer, note, left } in asked {
            let said = left.map_or_else(
                || {
                    events
                        .next()
                        .map(|event| (event.verdict, event.reason, event.policy, event.note))
                        .unwrap()
                },
                |left| (Verdict::Allowed as u32, left.reason, left.policy, left.note),
            );
            let reason = Reason::from_u32(said.1).unwrap();
            let allowed = said.0 == Verdict::Allowed as u32;
            let verdict = if allowed { Decision::allow(reason) } else { Decision::refuse(reason) };
            let decision = Decision { policy: said.2, ..verdict };
            assert_eq!(compiled.in_words(decision), Some(answer), "{about}");
            assert_eq!(compiled.notes.text(said.3), note, "{about}");
        }
    }
    println!("{total} SYNs in {WORLDS} worlds: verdict, reason, policy and note as the reference has them");
    node_processes_pass(&kernel);
}

/// While policies change one after the other, a connection that both the old and the new ones treat alike is never treated
/// otherwise, and one that they do not concern not at all.
#[test]
fn no_change_is_ever_half_in_force() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: loading programs needs root");
        return;
    }
    let scratch = Scratch::new("change").unwrap();
    let kernel = Kernel::load(&scratch.config()).unwrap();
    let mut interner = Interner::new();
    let mut world = World::default();
    world.apply(pods().into_iter().map(|p| Update::Upsert(Object::Pod(Arc::new(p)))).collect());
    let settings = Settings { node: String::new(), ..settings() };
    let mut enforce = |policies: Vec<AuthorizationPolicy>| {
        world.apply(
            policies.into_iter().map(|p| Update::Upsert(Object::AuthorizationPolicy(Arc::new(p)))).collect(),
        );
        let mesh = world.resolve(&settings);
        let compiled = compile(&mesh, &mut interner);
        let serving: HashSet<String> = mesh.workloads.iter().map(|w| w.uid.clone()).collect();
        let desired = desired(&mesh, &compiled, &serving, &mut interner);
        kernel.maps.sync_before(&desired).unwrap();
        kernel.maps.sync_after(&desired).unwrap();
        compiled
    };
    let compiled = enforce(vec![allow_from("a", "p", "td/ns/b/sa/x"), allow_from("root", "q", "td/ns/a/*")]);
    let number = |ns: &str, sa: &str| compiled.identities[&SpiffeId::new("td", ns, sa)];
    let (friend, stranger, own) = (number("b", "x"), number("b", "y"), number("a", "x"));
    let syn = |to: &str| {
        let end = |text: &str, port| SocketAddr::new(text.parse().unwrap(), port).into();
        Tuple::new(end("10.9.9.9", 40000), end(to, 80))
    };
    // The first pods of namespaces a and b: only the policies of a change.
    let (to_a, to_b) = (syn("10.0.0.0"), syn("10.0.0.2"));
    let done = tokio_util::sync::CancellationToken::new();
    let asked = std::thread::scope(|scope| {
        // Also when an assertion fails.
        let guard = done.clone().drop_guard();
        let asking = scope.spawn(|| {
            let mut asked = 0_u64;
            while !done.is_cancelled() {
                for (pod, tuple, identity, expected) in [
                    ("a", &to_a, Some(friend), true),
                    ("a", &to_a, Some(stranger), false),
                    ("a", &to_a, None, false),
                    ("b", &to_b, Some(own), true),
                    ("b", &to_b, Some(friend), false),
                    ("b", &to_b, None, false),
                ] {
                    let Trial { let_in, .. } = kernel.try_syn(tuple, identity, 1).unwrap();
                    assert_eq!(let_in, expected, "{identity:?} to {pod} after {asked}");
                    asked += 1;
                }
            }
            asked
        });
        for n in 0..400_usize {
            let mut policy = allow_from("a", "p", if n % 2 == 0 { "td/ns/b/sa/x" } else { "*/ns/b/sa/x" });
            match n % 4 {
                0 => {}
                1 => policy.rules.push(allow_from("a", "p", "td/ns/zz/sa/zz").rules.remove(0)),
                2 => policy.rules[0].from[0].ip_blocks = vec!["10.0.0.0/8".parse().unwrap()],
                _ => policy.rules[0].to = vec![Operation { not_ports: vec![81], ..Operation::default() }],
            }
            enforce(vec![policy]);
        }
        drop(guard);
        asking.join().unwrap()
    });
    println!("{asked} SYNs during 400 changes");
    assert!(asked > 1000, "{asked}");
}

/// kubelet's probes are let in whatever policy says.
fn node_processes_pass(kernel: &Kernel) {
    let end = |text: &str| text.parse::<SocketAddr>().unwrap().into();
    let tuple = Tuple::new(end("10.0.0.250:40000"), end("10.0.0.1:80"));
    assert!(kernel.try_syn(&tuple, Some(HOST_IDENTITY), 1).unwrap().let_in);
}
