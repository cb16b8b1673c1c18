//! The promises.

use std::net::IpAddr;

use culvert::control::{Object, Problem, Update};
use culvert::identity::SpiffeId;
use culvert::model::{Settings, World};
use culvert::policy::evaluate::{Question, evaluate};
use culvert::policy::{AuthorizationPolicy, Interner, PeerAuthentication, compile};

/// Ports that policies like to name, and one that they do not.
const PORTS: [u16; 5] = [1, 80, 81, 8080, 65535];
/// Workloads and peers beyond this only take time.
const MOST: usize = 8;

/// Each problem says where it is and what is wrong.
pub(crate) fn problems(problems: &[Problem]) {
    assert!(!problems.is_empty(), "refused without a reason");
    for problem in problems {
        assert_eq!(problem.file, crate::FILE);
        assert!(!problem.message.is_empty(), "{problem:?}");
    }
}

/// A problem inside an object that is well-formed text names the object and the field.
pub(crate) fn written_objects_are_named(problems: &[Problem], text: &str) {
    for problem in problems {
        assert!(!problem.object.is_empty() && !problem.field.is_empty(), "{problem:?}\n{text}");
        assert!(problem.line > 0, "{problem:?}\n{text}");
    }
}

/// What is valid compiles, and the rows decide as the reference does.
pub(crate) fn rows_decide_as_the_reference(objects: Vec<Object>) {
    let mut world = World::default();
    world.apply(objects.into_iter().map(Update::Upsert).collect());
    let (trust_domain, root_namespace) = ("td".to_owned(), "root".to_owned());
    let settings = Settings { trust_domain, root_namespace, ..Settings::default() };
    let mesh = world.resolve(&settings);
    let compiled = compile(&mesh, &mut Interner::new());
    let policies: Vec<AuthorizationPolicy> = mesh.policies.iter().map(|p| p.as_ref().clone()).collect();
    let authn: Vec<PeerAuthentication> =
        mesh.peer_authentications.iter().map(|p| p.as_ref().clone()).collect();
    let strangers = [SpiffeId::new("other", "a", "x"), SpiffeId::new("td", "zz", "zz")];
    let peers = compiled.identities.keys().take(MOST).chain(&strangers).map(Some).chain([None]);
    let sources = ["10.0.0.1", "192.168.0.1", "fd00::1"].map(|ip| ip.parse::<IpAddr>());
    let enrolled = mesh.workloads.iter().enumerate().filter(|(_, w)| w.enrolled).take(MOST);
    for (peer, (n, workload)) in peers.flat_map(|peer| enrolled.clone().map(move |w| (peer, w))) {
        let (namespace, labels, settings) = (workload.namespace.as_str(), &workload.labels, &settings);
        let behind = &workload.behind[..];
        let from = sources.iter().flatten().flat_map(|ip| PORTS.map(|port| (*ip, port)));
        for ((source, port), destination) in
            from.flat_map(|from| workload.addresses.iter().map(move |ip| (from, *ip)))
        {
            let question = Question { settings, namespace, labels, behind, peer, source, destination, port };
            let class = compiled.class_of(n, destination);
            let decision = class.map(|class| compiled.decide(class, peer, source, port));
            let reference = evaluate(&question, &policies, &authn);
            let answer = decision.and_then(|decision| compiled.in_words(decision));
            assert_eq!(answer, Some(reference), "{question:?}\n{policies:#?}\n{authn:#?}");
        }
    }
}
