//! The loaded program, on the running kernel, with tables as the agent writes them. Needs root.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use culvert_common::{FlowEvent, HOST_IDENTITY, Tuple, Verdict};
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::*;
use crate::bpf::{EventStream, Kernel, KernelConfig};
use crate::model::desired;

/// Random worlds; each is asked a few thousand questions.
const WORLDS: usize = 60;

/// A cgroup and pins that go with the test.
struct Scratch {
    cgroup: PathBuf,
    pins: PathBuf,
}

impl Scratch {
    fn new() -> Self {
        crate::sys::mount_bpffs().unwrap();
        let name = format!("culvert-test-policy-{}", std::process::id());
        let cgroup = crate::sys::cgroup2_mount().unwrap().join(&name);
        std::fs::create_dir(&cgroup).unwrap();
        Self { cgroup, pins: Path::new("/sys/fs/bpf/culvert").join(name) }
    }

    fn load(&self) -> Kernel {
        Kernel::load(&KernelConfig {
            pins: self.pins.clone(),
            cgroup: self.cgroup.clone(),
            host_netns: 1,
            agent_cgroup: 1,
            same_node_tunnel: false,
        })
        .unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.pins.join("links"));
        let _ = std::fs::remove_dir_all(&self.pins);
        let _ = std::fs::remove_dir(&self.cgroup);
    }
}

/// A question to the program, and what the reference has to say.
struct Asked {
    about: String,
    answer: Answer,
    note: Option<String>,
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
                let identity = peer.map(|(_, number)| *number);
                let peer = peer.map(|(identity, _)| identity);
                let settings = &mesh.settings;
                let question = Question { settings, namespace, labels, peer, source, destination, port };
                let tuple = Tuple::new(
                    SocketAddr::new(source, 40000).into(),
                    SocketAddr::new(destination, port).into(),
                );
                let (let_in, _) = kernel.try_syn(&tuple, identity, 1).unwrap();
                let answer = evaluate(&question, &policies, &authn);
                let about = format!("{question:?} {policies:#?} {authn:#?}");
                assert_eq!(let_in, answer.allowed(), "{about}");
                let note = expected_note(&question, &policies, &authn, &answer);
                asked.push(Asked { about, answer, note });
            }
        }
    }
    asked
}

/// Reference = the verdict of the loaded program, and the reason, the policy and the note in its events.
#[tokio::test]
async fn the_loaded_program_decides_as_the_reference_does() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: loading programs needs root");
        return;
    }
    let scratch = Scratch::new();
    let kernel = scratch.load();
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
        let events = events(&mut stream, asked.len()).await;
        assert_eq!(events.len(), asked.len());
        total += asked.len();
        for (event, Asked { about, answer, note }) in events.iter().zip(asked) {
            let reason = Reason::from_u32(event.reason).unwrap();
            let allowed = event.verdict == Verdict::Allowed as u32;
            let verdict = if allowed { Decision::allow(reason) } else { Decision::refuse(reason) };
            let decision = Decision { policy: event.policy, ..verdict };
            assert_eq!(compiled.in_words(decision), Some(answer), "{about}");
            assert_eq!(compiled.notes.text(event.note), note, "{about}");
        }
    }
    println!("{total} SYNs in {WORLDS} worlds: verdict, reason, policy and note as the reference has them");
    node_processes_pass(&kernel);
}

/// kubelet's probes are let in whatever policy says.
fn node_processes_pass(kernel: &Kernel) {
    let end = |text: &str| text.parse::<SocketAddr>().unwrap().into();
    let tuple = Tuple::new(end("10.0.0.250:40000"), end("10.0.0.1:80"));
    assert!(kernel.try_syn(&tuple, Some(HOST_IDENTITY), 1).unwrap().0);
}
