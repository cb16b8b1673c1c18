//! The way of an object through Culvert: parser, world, mesh, compiled policy. Only this file calls the policy engine.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use culvert::control::{Kind, ObjectRef, Update, manifests};
use culvert::identity::SpiffeId;
use culvert::model::{Mesh, Settings, World};
use culvert::policy::evaluate::{self, evaluate};
use culvert::policy::{Compiled, Interner, compile};
use culvert_common::{Decision, Reason};

use crate::case::{Answer, MeshSettings, Question};

/// A mesh that is given objects.
pub(crate) struct Scene {
    settings: Settings,
    world: World,
    interner: Interner,
}

/// What its objects mean at a moment.
pub(crate) struct Picture {
    mesh: Mesh,
    compiled: Compiled,
}

impl Scene {
    pub(crate) fn new(mesh: &MeshSettings) -> Self {
        let settings = Settings {
            node: "n1".to_owned(),
            trust_domain: mesh.trust_domain.clone(),
            root_namespace: mesh.root_namespace.clone(),
            cluster_domain: "cluster.local".to_owned(),
        };
        Self { settings, world: World::default(), interner: Interner::new() }
    }

    /// Takes in manifests. `Err`: the fields that the parser refuses, with its words.
    pub(crate) fn apply(&mut self, text: &str) -> Result<(), Vec<(String, String)>> {
        let objects = manifests::parse(Path::new("case.yaml"), text.as_bytes()).map_err(|problems| {
            problems.into_iter().map(|p| (p.field.clone(), p.to_string())).collect::<Vec<_>>()
        })?;
        self.world.apply(objects.into_iter().map(Update::Upsert).collect());
        Ok(())
    }

    /// Removes a policy, `Kind namespace/name`.
    pub(crate) fn remove(&mut self, object: &str) -> Result<()> {
        let named = object.split_once(' ').and_then(|(kind, name)| {
            let (namespace, name) = name.split_once('/')?;
            Some(ObjectRef::new(Kind::of("security.istio.io/v1", kind)?, namespace, name))
        });
        let named = named.with_context(|| format!("{object:?} is not a policy"))?;
        anyhow::ensure!(self.world.apply(vec![Update::Remove(named)]), "there is no {object}");
        Ok(())
    }

    pub(crate) fn picture(&mut self) -> Picture {
        let mesh = self.world.resolve(&self.settings);
        let compiled = compile(&mesh, &mut self.interner);
        Picture { mesh, compiled }
    }
}

impl Picture {
    /// What of the policies is not enforced as written.
    pub(crate) fn findings(&self) -> BTreeSet<String> {
        let code = |finding: &culvert::policy::Finding| {
            serde_json::to_value(finding.code).ok().and_then(|code| code.as_str().map(str::to_owned))
        };
        self.compiled.findings.iter().filter_map(code).collect()
    }

    /// What the compiled rows say, and what the reference says.
    pub(crate) fn answers(&self, question: &Question) -> Result<[Answer; 2]> {
        let workload = self.mesh.workloads.iter().find(|w| w.full_name() == question.to);
        let workload = workload.with_context(|| format!("no pod {}", question.to))?;
        let peer: Option<SpiffeId> =
            question.from.as_ref().map(|id| format!("spiffe://{id}").parse()).transpose()?;
        let class = self.compiled.class_of.get(&workload.uid);
        let class = *class.with_context(|| format!("{} is not enrolled", question.to))?;
        let decision = self.compiled.decide(class, peer.as_ref(), question.port);
        let asked = evaluate::Question {
            root_namespace: &self.mesh.settings.root_namespace,
            namespace: &workload.namespace,
            labels: &workload.labels,
            peer: peer.as_ref(),
            port: question.port,
        };
        let policies: Vec<_> = self.mesh.policies.iter().map(|p| p.as_ref().clone()).collect();
        let authn: Vec<_> = self.mesh.peer_authentications.iter().map(|p| p.as_ref().clone()).collect();
        Ok([self.decided(decision)?, evaluated(evaluate(&asked, &policies, &authn))])
    }

    fn decided(&self, decision: Decision) -> Result<Answer> {
        let reason = match decision.reason {
            Reason::Allowed => "allowed",
            Reason::DeniedByPolicy => "denied",
            Reason::NoPolicy => "no-policy",
            Reason::NotAllowed => "not-allowed",
            Reason::StrictPlaintext => "strict",
            other => return Err(anyhow!("the rows say {other:?}")),
        };
        let name = self.compiled.policy_names.iter().find(|(_, index)| **index == decision.policy);
        Ok(Answer {
            allowed: decision.allowed(),
            reason: reason.to_owned(),
            policy: name.map(|(name, _)| name.clone()),
            notes: None,
        })
    }
}

fn evaluated(answer: evaluate::Answer) -> Answer {
    use evaluate::Answer as Given;
    let (allowed, reason, policy) = match answer {
        Given::Allowed(policy) => (true, "allowed", Some(policy)),
        Given::Denied(policy) => (false, "denied", Some(policy)),
        Given::NoPolicy => (true, "no-policy", None),
        Given::NotAllowed(policy) => (false, "not-allowed", Some(policy)),
        Given::Strict(policy) => (false, "strict", Some(policy)),
    };
    Answer { allowed, reason: reason.to_owned(), policy, notes: None }
}
