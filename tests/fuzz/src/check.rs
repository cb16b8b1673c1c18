//! The promises.

use culvert::control::{Object, Problem, Update};
use culvert::identity::SpiffeId;
use culvert::model::{Settings, World};
use culvert::policy::evaluate::{Answer, Question, evaluate};
use culvert::policy::{AuthorizationPolicy, Compiled, Interner, PeerAuthentication, compile};
use culvert_common::{Decision, Reason};

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
    let settings = Settings {
        node: "n1".to_owned(),
        trust_domain: "td".to_owned(),
        root_namespace: "root".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
    };
    let mesh = world.resolve(&settings);
    let compiled = compile(&mesh, &mut Interner::new());
    let policies: Vec<AuthorizationPolicy> = mesh.policies.iter().map(|p| p.as_ref().clone()).collect();
    let authn: Vec<PeerAuthentication> =
        mesh.peer_authentications.iter().map(|p| p.as_ref().clone()).collect();
    let strangers = [SpiffeId::new("other", "a", "x"), SpiffeId::new("td", "zz", "zz")];
    let peers = compiled.identities.keys().take(MOST).chain(&strangers).map(Some).chain([None]);
    let enrolled = mesh.workloads.iter().filter(|w| w.enrolled).take(MOST);
    for (peer, workload) in peers.flat_map(|peer| enrolled.clone().map(move |w| (peer, w))) {
        for port in PORTS {
            let (namespace, labels) = (workload.namespace.as_str(), &workload.labels);
            let question = Question { root_namespace: "root", namespace, labels, peer, port };
            let decision = compiled.decide(compiled.class_of[&workload.uid], peer, port);
            let reference = evaluate(&question, &policies, &authn);
            assert_eq!(
                answer(&compiled, decision),
                Some(reference),
                "{question:?}\n{policies:#?}\n{authn:#?}"
            );
        }
    }
}

/// A decision in the reference's words; `None`: it has no such words.
fn answer(compiled: &Compiled, decision: Decision) -> Option<Answer> {
    let named =
        |index: u32| compiled.policy_names.iter().find(|(_, n)| **n == index).map(|(name, _)| name.clone());
    let allowed = matches!(decision.reason, Reason::Allowed | Reason::NoPolicy);
    assert_eq!(decision.allowed(), allowed, "{decision:?}");
    Some(match decision.reason {
        Reason::Allowed => Answer::Allowed(named(decision.policy)?),
        Reason::DeniedByPolicy => Answer::Denied(named(decision.policy)?),
        Reason::NotAllowed => Answer::NotAllowed(named(decision.policy)?),
        Reason::StrictPlaintext => Answer::Strict(named(decision.policy)?),
        Reason::NoPolicy => Answer::NoPolicy,
        _ => return None,
    })
}
