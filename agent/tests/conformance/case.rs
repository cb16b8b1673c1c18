//! The form of a case file.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::json;

/// What the peer is called that proves no identity.
pub(crate) const PLAINTEXT: &str = "plaintext";
/// The AuthorizationPolicy that a case's `spec` belongs to.
const OWN_POLICY: &str = "ns1/p";

/// A file: cases, and what they have in common.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct CaseFile {
    #[serde(default)]
    mesh: MeshSettings,
    #[serde(default)]
    pods: Vec<Pod>,
    /// Where the behaviour is defined.
    origin: String,
    cases: Vec<Case>,
}

/// A case: objects, and what they lead to.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Case {
    /// A sentence.
    #[serde(rename = "case")]
    pub(crate) name: String,
    /// The file's when unset; so `mesh` and `pods`.
    #[serde(default)]
    pub(crate) origin: String,
    pub(crate) mesh: Option<MeshSettings>,
    pub(crate) pods: Option<Vec<Pod>>,
    /// What the engine does instead: the case is known to fail, and must until the engine is mended.
    pub(crate) wrong: Option<String>,
    /// The rules of `ns1/p`, for two cases: an ALLOW policy and a DENY policy.
    rule: Option<String>,
    /// One case for each entry, with `${key}` replaced by its value.
    #[serde(default)]
    each: Vec<BTreeMap<String, String>>,
    /// What is there at first.
    #[serde(flatten)]
    pub(crate) first: Step,
    /// What is changed then.
    #[serde(default)]
    pub(crate) then: Vec<Step>,
    /// The objects are refused, because of this field.
    pub(crate) invalid: Option<String>,
    /// The codes of all findings.
    pub(crate) findings: Option<Vec<String>>,
}

/// Objects, and questions that are asked once they are there.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Step {
    /// `spec` of the AuthorizationPolicy `ns1/p`.
    spec: Option<String>,
    #[serde(default)]
    policies: Vec<Written>,
    #[serde(default)]
    authn: Vec<Written>,
    /// Any manifests.
    #[serde(default)]
    objects: String,
    /// `Kind namespace/name`.
    #[serde(default)]
    pub(crate) remove: Vec<String>,
    #[serde(default)]
    pub(crate) ask: Vec<Ask>,
}

/// An AuthorizationPolicy or a PeerAuthentication.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    /// `namespace/name`.
    name: String,
    spec: String,
    #[serde(default)]
    dry_run: Option<String>,
    created: Option<String>,
}

/// The settings of the mesh.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct MeshSettings {
    pub(crate) trust_domain: String,
    pub(crate) trust_domain_aliases: Vec<String>,
    pub(crate) root_namespace: String,
    /// `fail-safe` or `istio`.
    pub(crate) l7_deny: String,
    pub(crate) auto_allow_waypoint: bool,
}

impl Default for MeshSettings {
    fn default() -> Self {
        Self {
            trust_domain: "td".to_owned(),
            trust_domain_aliases: Vec::new(),
            root_namespace: "istio-system".to_owned(),
            l7_deny: "fail-safe".to_owned(),
            auto_allow_waypoint: false,
        }
    }
}

/// An enrolled pod.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Pod {
    /// `namespace/name`.
    pub(crate) pod: String,
    #[serde(default)]
    sa: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    ip: OneOrMany<IpAddr>,
}

/// Questions: every combination of peer, addresses, destination and port has the same answer.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Ask {
    /// `plaintext` or an identity without `spiffe://`.
    pub(crate) from: OneOrMany<String>,
    from_ip: Option<OneOrMany<IpAddr>>,
    /// `namespace/name`; every pod of the case when unset.
    to: Option<OneOrMany<String>>,
    /// The pod's first address when unset.
    to_ip: Option<OneOrMany<IpAddr>>,
    port: OneOrMany<u16>,
    /// `allowed` or `refused`; with `rule`, `matches` or `misses`.
    expect: String,
    /// `allowed`, `no-policy`, `denied`, `not-allowed`, `strict`, `nobody-to-ask`; `allowed` may be left out.
    reason: Option<String>,
    /// `namespace/name` of the policy that decides; `ns1/p` when unset and the reason is not `no-policy`.
    policy: Option<String>,
    /// What is recorded beside the verdict; not looked at when unset.
    pub(crate) notes: Option<Notes>,
}

/// What AUDIT and dry-run policies say. Policies by `namespace/name`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Notes {
    /// The AUDIT policies that match.
    pub(crate) audit: Vec<String>,
    /// The dry-run policies that match.
    pub(crate) dry_run: Vec<String>,
    /// The verdict were they enforced, when it is another one: `allowed` or `refused`.
    pub(crate) would: Option<String>,
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    pub(crate) fn as_slice(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

/// One question of one case.
#[derive(Debug)]
pub(crate) struct Question {
    /// An identity without `spiffe://`; `None`: plaintext.
    pub(crate) from: Option<String>,
    pub(crate) from_ip: IpAddr,
    pub(crate) to: String,
    pub(crate) to_ip: IpAddr,
    pub(crate) port: u16,
}

/// A verdict, why, and whose it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Answer {
    pub(crate) allowed: bool,
    pub(crate) reason: String,
    pub(crate) policy: Option<String>,
    pub(crate) notes: Notes,
}

impl CaseFile {
    /// The file's cases, each complete.
    pub(crate) fn read(text: &str) -> Result<Vec<Case>> {
        let file: Self = serde_saphyr::from_str(text)?;
        let mut cases = Vec::new();
        for mut case in file.cases {
            if case.origin.is_empty() {
                case.origin.clone_from(&file.origin);
            }
            case.mesh.get_or_insert_with(|| file.mesh.clone());
            case.pods.get_or_insert_with(|| file.pods.clone());
            cases.extend(case.expanded().into_iter().flat_map(Case::with_actions));
        }
        for (n, case) in cases.iter().enumerate() {
            ensure!(!cases[..n].iter().any(|other| other.name == case.name), "two cases {:?}", case.name);
        }
        Ok(cases)
    }
}

impl Case {
    fn expanded(self) -> Vec<Self> {
        if self.each.is_empty() {
            return vec![self];
        }
        let fill = |values: &BTreeMap<String, String>| {
            let mut case = self.clone();
            let own = [&mut case.name, &mut case.first.objects].into_iter();
            let given = case.first.spec.iter_mut().chain(&mut case.rule).chain(&mut case.invalid);
            for text in own.chain(given).chain(&mut case.wrong) {
                for (key, value) in values {
                    *text = text.replace(&format!("${{{key}}}"), value);
                }
            }
            case
        };
        self.each.iter().map(fill).collect()
    }

    /// What a rule means is the same for every action; what follows from it is not.
    fn with_actions(mut self) -> Vec<Self> {
        let Some(rule) = self.rule.take() else {
            return vec![self];
        };
        let variant = |action: &str| {
            let mut case = self.clone();
            case.name = format!("{} ({action})", self.name);
            case.first.spec = Some(format!("{{action: {action}, rules: [{rule}]}}"));
            case.first.ask.iter_mut().for_each(|ask| ask.follow(action == "DENY"));
            case
        };
        ["ALLOW", "DENY"].map(variant).into()
    }

    pub(crate) fn pods(&self) -> &[Pod] {
        self.pods.as_deref().unwrap_or_default()
    }

    /// The peers of all questions that have an identity.
    pub(crate) fn peers(&self) -> impl Iterator<Item = &String> {
        let steps = std::iter::once(&self.first).chain(&self.then);
        let asked = steps.flat_map(|step| &step.ask).flat_map(|ask| ask.from.as_slice());
        asked.filter(|from| *from != PLAINTEXT)
    }
}

impl Step {
    /// The objects as one file of manifests.
    pub(crate) fn manifests(&self) -> Result<String> {
        let own = self.spec.iter().map(|spec| Written {
            name: OWN_POLICY.to_owned(),
            spec: spec.clone(),
            dry_run: None,
            created: None,
        });
        let mut documents = vec![self.objects.clone()];
        for policy in own.chain(self.policies.iter().cloned()) {
            documents.push(policy.manifest("AuthorizationPolicy")?);
        }
        for policy in &self.authn {
            documents.push(policy.manifest("PeerAuthentication")?);
        }
        Ok(documents.join("\n---\n"))
    }
}

impl Written {
    fn manifest(&self, kind: &str) -> Result<String> {
        let (namespace, name) = self.name.split_once('/').context("a policy is namespace/name")?;
        let mut metadata = json!({"namespace": namespace, "name": name});
        if let Some(value) = &self.dry_run {
            metadata["annotations"] = json!({"istio.io/dry-run": value});
        }
        if let Some(time) = &self.created {
            metadata["creationTimestamp"] = json!(time);
        }
        let spec = self.spec.replace('\n', "\n  ");
        Ok(format!("apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {metadata}\nspec:\n  {spec}\n"))
    }
}

impl Pod {
    /// The `n`th pod that only has an identity.
    pub(crate) fn with_identity(namespace: &str, account: &str, n: u8) -> Self {
        let ip = IpAddr::from([10, 99, 0, n]);
        Self {
            pod: format!("{namespace}/passer-by-{n}"),
            sa: account.to_owned(),
            labels: BTreeMap::new(),
            ip: OneOrMany::One(ip),
        }
    }

    pub(crate) fn manifest(&self) -> Result<String> {
        let (namespace, name) = self.pod.split_once('/').context("a pod is namespace/name")?;
        let mut labels = self.labels.clone();
        labels.insert("istio.io/dataplane-mode".to_owned(), "ambient".to_owned());
        let ips: Vec<_> = self.ip.as_slice().iter().map(|ip| json!({"ip": ip})).collect();
        let manifest = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "labels": labels},
            "spec": {"serviceAccountName": self.sa, "nodeName": "n1"},
            "status": {"podIPs": ips},
        });
        Ok(manifest.to_string())
    }
}

impl Ask {
    /// What is asked, and what the answer must be.
    pub(crate) fn questions(&self, pods: &[Pod]) -> Result<(Vec<Question>, Answer)> {
        let everybody: Vec<String> = pods.iter().map(|p| p.pod.clone()).collect();
        let to = self.to.as_ref().map_or(&everybody[..], OneOrMany::as_slice);
        let from_ips = self.from_ip.clone().unwrap_or(OneOrMany::One(IpAddr::from([10, 0, 0, 9])));
        let mut questions = Vec::new();
        for (from, to) in self.from.as_slice().iter().flat_map(|f| to.iter().map(move |t| (f, t))) {
            let pod = pods.iter().find(|p| p.pod == *to).with_context(|| format!("no pod {to}"))?;
            let own_ips = &pod.ip.as_slice()[..1];
            let to_ips = self.to_ip.as_ref().map_or(own_ips, OneOrMany::as_slice);
            for (from_ip, to_ip) in
                from_ips.as_slice().iter().flat_map(|f| to_ips.iter().map(move |t| (f, t)))
            {
                let from = (from != PLAINTEXT).then(|| from.clone());
                questions.extend(self.port.as_slice().iter().map(|port| Question {
                    from: from.clone(),
                    from_ip: *from_ip,
                    to: to.clone(),
                    to_ip: *to_ip,
                    port: *port,
                }));
            }
        }
        ensure!(!questions.is_empty(), "an `ask` without questions");
        Ok((questions, self.answer()?))
    }

    /// From what the rule does to what comes of the connection.
    fn follow(&mut self, deny: bool) {
        let (verdict, reason) = match (self.expect.as_str(), deny) {
            ("matches", false) => ("allowed", "allowed"),
            ("matches", true) => ("refused", "denied"),
            ("misses", false) => ("refused", "not-allowed"),
            ("misses", true) => ("allowed", "no-policy"),
            _ => return,
        };
        self.expect = verdict.to_owned();
        self.reason = Some(reason.to_owned());
    }

    fn answer(&self) -> Result<Answer> {
        let reason = match (&self.reason, self.expect.as_str()) {
            (Some(reason), "allowed" | "refused") => reason.clone(),
            (None, "allowed") => "allowed".to_owned(),
            _ => anyhow::bail!("expect is `allowed`, or `refused` with a reason"),
        };
        let allowed = self.expect == "allowed";
        ensure!(allowed == matches!(&reason[..], "allowed" | "no-policy"), "{:?} is no reason", reason);
        let policy = match &self.policy {
            None if reason == "no-policy" => None,
            None => Some(OWN_POLICY.to_owned()),
            Some(policy) => Some(policy.clone()),
        };
        Ok(Answer { allowed, reason, policy, notes: self.notes.clone().unwrap_or_default() })
    }
}
