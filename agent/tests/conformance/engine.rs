//! The way of an object through Culvert: parser, world, mesh, compiled policy. Only this file calls the policy engine.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use culvert::control::{Kind, ObjectRef, Update, manifests};
use culvert::identity::SpiffeId;
use culvert::model::{Mesh, Settings, World};
use culvert::policy::evaluate::{self, evaluate, evaluate_dry_run, matching};
use culvert::policy::{Action, Compiled, Interner, L7Deny, compile};
use culvert_common::Decision;

use crate::case::{Answer, MeshSettings, Notes, Question};

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
    pub(crate) fn new(mesh: &MeshSettings) -> Result<Self> {
        let settings = Settings {
            node: "n1".to_owned(),
            trust_domain: mesh.trust_domain.clone(),
            trust_domain_aliases: mesh.trust_domain_aliases.clone(),
            root_namespace: mesh.root_namespace.clone(),
            l7_deny: match mesh.l7_deny.as_str() {
                "fail-safe" => L7Deny::FailSafe,
                "istio" => L7Deny::Istio,
                other => return Err(anyhow!("l7Deny {other:?} is neither fail-safe nor istio")),
            },
            auto_allow_waypoint: mesh.auto_allow_waypoint,
            ..Settings::default()
        };
        Ok(Self { settings, world: World::default(), interner: Interner::new() })
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
        let mut workloads = self.mesh.workloads.iter().enumerate();
        let (n, workload) = workloads
            .find(|(_, w)| w.full_name() == question.to)
            .with_context(|| format!("no pod {}", question.to))?;
        let peer: Option<SpiffeId> =
            question.from.as_ref().map(|id| format!("spiffe://{id}").parse()).transpose()?;
        let class = self.compiled.class_of(n, question.to_ip);
        let class = class.with_context(|| format!("{} has no class at {}", question.to, question.to_ip))?;
        let decision = self.compiled.decide(class, peer.as_ref(), question.from_ip, question.port);
        let asked = evaluate::Question {
            settings: &self.mesh.settings,
            namespace: &workload.namespace,
            labels: &workload.labels,
            behind: &workload.behind,
            peer: peer.as_ref(),
            source: question.from_ip,
            destination: question.to_ip,
            port: question.port,
        };
        Ok([self.decided(decision)?, self.evaluated(&asked)])
    }

    fn decided(&self, decision: Decision) -> Result<Answer> {
        let answer = self.compiled.in_words(decision);
        let answer = answer.with_context(|| format!("the rows say {decision:?}"))?;
        Ok(put(&answer, notes(&self.compiled.notes.text(decision.note).unwrap_or_default())))
    }

    fn evaluated(&self, asked: &evaluate::Question<'_>) -> Answer {
        let policies: Vec<_> = self.mesh.policies.iter().map(|p| p.as_ref().clone()).collect();
        let authn: Vec<_> = self.mesh.peer_authentications.iter().map(|p| p.as_ref().clone()).collect();
        let answer = evaluate(asked, &policies, &authn);
        let otherwise = evaluate_dry_run(asked, &policies, &authn).allowed();
        let notes = Notes {
            audit: matching(asked, &policies, |p| p.action == Action::Audit && !p.dry_run),
            dry_run: [Action::Deny, Action::Allow]
                .map(|action| matching(asked, &policies, |p| p.dry_run && p.action == action))
                .concat(),
            would: (otherwise != answer.allowed())
                .then(|| if otherwise { "allowed" } else { "refused" }.to_owned()),
        };
        put(&answer, notes)
    }
}

fn put(answer: &evaluate::Answer, notes: Notes) -> Answer {
    let reason = match answer {
        evaluate::Answer::Allowed(_) => "allowed",
        evaluate::Answer::Denied(_) => "denied",
        evaluate::Answer::NoPolicy => "no-policy",
        evaluate::Answer::NobodyToAsk(_) => "nobody-to-ask",
        evaluate::Answer::NotAllowed(_) => "not-allowed",
        evaluate::Answer::Strict(_) => "strict",
    };
    let policy = answer.policy().map(str::to_owned);
    Answer { allowed: answer.allowed(), reason: reason.to_owned(), policy, notes }
}

/// What a note says, read back from its words.
fn notes(text: &str) -> Notes {
    let mut notes = Notes::default();
    let names = |list: &str| list.split(", ").map(str::to_owned).collect();
    for part in text.split("; ") {
        if let Some(list) = part.strip_prefix("audit: ") {
            notes.audit = names(list);
        } else if let Some(would) = part.strip_prefix("dry run: would be ") {
            notes.would = would.split(' ').next().map(str::to_owned);
        } else if let Some(list) =
            part.strip_prefix("dry run: ").and_then(|rest| rest.strip_suffix(" matches"))
        {
            notes.dry_run = names(list);
        }
    }
    notes
}
