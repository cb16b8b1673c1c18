//! What one compilation leaves for the next, so that a change costs what it changes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use culvert_common::{CLASS_BY_SOURCE, PolicyKey, PolicyRow};
use ipnet::IpNet;

use super::class::{ANYWHERE, Class, source_key};
use super::{Classes, Compiled, Known, SourceBlock};
use crate::model::{Mesh, Workload};
use crate::policy::intern::Room;
use crate::policy::lower::{L4Policy, lower};
use crate::policy::{
    Applicable, Attachment, AuthorizationPolicy, Code, Finding, Interner, PeerAuthentication, Strictness,
};

/// See the module.
#[derive(Default)]
pub(in crate::policy) struct Cache {
    /// By the place of the object that they come from.
    policies: HashMap<usize, Lowered>,
    authn: Vec<Arc<PeerAuthentication>>,
    groups: Groups,
    by_content: HashMap<ClassKey, u32>,
    classes: HashMap<u32, CachedClass>,
    /// Classes whose rows are not in the tables yet.
    fresh: Vec<u32>,
    tables: Tables,
}

/// What the policies of a workload depend on: its namespace, its labels, and the waypoints that it is behind.
type Selected<'a> = (&'a str, &'a BTreeMap<String, String>, &'a [Arc<str>]);

struct Lowered {
    /// With a serial number, which stands for its content.
    policy: Option<(u64, Arc<L4Policy>)>,
    findings: Vec<Finding>,
    /// As long as it lives, nothing else can be in its place.
    object: Arc<AuthorizationPolicy>,
}

/// Workloads by namespace, labels and waypoints: those of a group are selected by the same policies.
#[derive(Default)]
struct Groups {
    workloads: Arc<Vec<Workload>>,
    /// The first workload of each group.
    first: Vec<usize>,
    /// The group of each workload; `None` when it is not enrolled.
    of: Vec<Option<usize>>,
    /// The classes of each workload's addresses.
    classes: Vec<Classes>,
}

/// Serial numbers of the policies in the order of their names, the STRICT setting, and what the policies' tests of the
/// destination's address say.
#[derive(PartialEq, Eq, Hash)]
struct ClassKey {
    policies: Vec<u64>,
    strictness: Strictness,
    destination: Vec<bool>,
}

struct CachedClass {
    id: u32,
    class: Arc<Class>,
    /// How many identities there were: more of them may need more rows.
    identities: usize,
    /// The classes that have the rows: one, or one for each group of client addresses.
    parts: Vec<Part>,
    sources: Vec<(SourceBlock, u32)>,
    rows: HashMap<PolicyKey, PolicyRow>,
}

/// A class with rows, for clients that no policy tells from `source`.
#[derive(Clone, Copy)]
struct Part {
    id: u32,
    source: IpNet,
}

/// The rows of all classes in use.
#[derive(Clone, Default)]
struct Tables {
    rows: Arc<HashMap<PolicyKey, PolicyRow>>,
    sources: Arc<HashMap<SourceBlock, u32>>,
    classes: Arc<HashMap<u32, Known>>,
}

/// The workloads that a change may concern.
enum Concerned {
    All,
    Namespaces(HashSet<String>),
}

impl Concerned {
    fn has(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Namespaces(names) => names.contains(namespace),
        }
    }
}

impl Cache {
    pub(super) fn compile(&mut self, mesh: &Mesh, interner: &mut Interner) -> Compiled {
        let namespaces = self.lower_all(mesh, interner);
        let regrouped = self.group(mesh, interner);
        let same = |(a, b): (&Arc<PeerAuthentication>, &Arc<PeerAuthentication>)| Arc::ptr_eq(a, b);
        let authn = &mesh.peer_authentications;
        let kept = self.authn.len() == authn.len() && self.authn.iter().zip(authn).all(same);
        self.authn.clone_from(authn);
        let concerned = if regrouped || !kept || namespaces.contains(&mesh.settings.root_namespace) {
            Concerned::All
        } else {
            Concerned::Namespaces(namespaces)
        };
        self.classify(mesh, &concerned, interner);
        self.tabulate();
        let mut findings = self.findings(mesh);
        findings.extend(self.closed(interner.room()));
        Compiled {
            rows: self.tables.rows.clone(),
            sources: self.tables.sources.clone(),
            identities: interner.identities().clone(),
            policy_names: interner.policies().clone(),
            findings,
            notes: interner.notes().clone(),
            classes_of: self.groups.classes.clone(),
            classes: self.tables.classes.clone(),
        }
    }

    /// Lowers the policies that are new, and forgets those that are gone; returns the namespaces of both.
    fn lower_all(&mut self, mesh: &Mesh, interner: &mut Interner) -> HashSet<String> {
        let mut concerned = HashSet::new();
        for policy in &mesh.policies {
            if self.policies.contains_key(&place(policy)) {
                continue;
            }
            concerned.insert(reach(policy, &mesh.settings.root_namespace));
            let (lowered, findings) = lower(policy, &mesh.settings);
            if let Some(lowered) = &lowered {
                interner.policy(&lowered.name);
            }
            let numbered = lowered.map(|lowered| (interner.new_serial(), Arc::new(lowered)));
            let lowered = Lowered { policy: numbered, findings, object: policy.clone() };
            self.policies.insert(place(policy), lowered);
        }
        if self.policies.len() > mesh.policies.len() {
            let present: HashSet<_> = mesh.policies.iter().map(place).collect();
            let gone = self.policies.extract_if(|place, _| !present.contains(place));
            concerned.extend(gone.map(|(_, lowered)| reach(&lowered.object, &mesh.settings.root_namespace)));
        }
        concerned
    }

    fn findings(&self, mesh: &Mesh) -> Vec<Finding> {
        let lowered = mesh.policies.iter().filter_map(|p| self.policies.get(&place(p)));
        let authn = mesh.peer_authentications.iter();
        let authn = authn.flat_map(|p| p.findings(&mesh.settings.root_namespace));
        lowered.flat_map(|l| l.findings.iter().cloned()).chain(authn).collect()
    }

    /// Numbers the identities and groups the workloads; false: they are those of the last time.
    fn group(&mut self, mesh: &Mesh, interner: &mut Interner) -> bool {
        if Arc::ptr_eq(&self.groups.workloads, &mesh.workloads) {
            return false;
        }
        let mut groups = Groups { workloads: mesh.workloads.clone(), ..Groups::default() };
        let mut known: HashMap<Selected<'_>, usize> = HashMap::new();
        for (n, workload) in mesh.workloads.iter().enumerate() {
            if !workload.enrolled {
                groups.of.push(None);
                continue;
            }
            interner.identity(&workload.identity);
            let group: Selected<'_> = (&workload.namespace, &workload.labels, &workload.behind);
            let group = known.entry(group).or_insert_with(|| {
                groups.first.push(n);
                groups.first.len() - 1
            });
            groups.of.push(Some(*group));
        }
        groups.classes = vec![Classes::default(); groups.of.len()];
        self.groups = groups;
        true
    }

    /// Finds the classes of the workloads that are concerned.
    fn classify(&mut self, mesh: &Mesh, concerned: &Concerned, interner: &mut Interner) {
        let root = &mesh.settings.root_namespace;
        let near = |p: &&Arc<AuthorizationPolicy>| {
            p.namespace == *root
                || concerned.has(&p.namespace)
                || matches!(p.attachment, Attachment::Behind(_))
        };
        let policies = mesh.policies.iter().filter(near);
        let applicable = Applicable::new(root, policies, &mesh.peer_authentications);
        let mut groups = std::mem::take(&mut self.groups);
        let mut resolved: Vec<Option<Group>> = Vec::with_capacity(groups.first.len());
        for workload in groups.first.iter().filter_map(|n| mesh.workloads.get(*n)) {
            let group = concerned.has(&workload.namespace);
            resolved.push(group.then(|| self.resolve(workload, &applicable, interner)));
        }
        let each = groups.classes.iter_mut().zip(mesh.workloads.iter()).zip(&groups.of);
        for ((classes, workload), group) in each {
            let Some(group) = group.and_then(|g| resolved.get(g)?.as_ref()) else { continue };
            for ip in &workload.addresses {
                *classes.at(*ip) = group.class.unwrap_or_else(|| {
                    self.class_id(&group.policies, &group.strictness, Some(*ip), interner)
                });
            }
        }
        self.groups = groups;
    }

    fn resolve(
        &mut self,
        workload: &Workload,
        applicable: &Applicable<'_>,
        interner: &mut Interner,
    ) -> Group {
        if workload.native_tunnel {
            let class = Some(self.class_id(&[], &Strictness::default(), None, interner));
            return Group { policies: Vec::new(), strictness: Strictness::default(), class };
        }
        let (namespace, labels) = (workload.namespace.as_str(), &workload.labels);
        let lowered = |p: &Arc<AuthorizationPolicy>| self.policies.get(&place(p))?.policy.clone();
        let applied = applicable.policies(namespace, labels, &workload.behind);
        let policies: Vec<_> = applied.into_iter().filter_map(lowered).collect();
        let strictness = applicable.strictness(namespace, labels);
        let anywhere = !policies.iter().any(|(_, p)| p.alternatives().any(|a| !a.destinations.is_empty()));
        let class = anywhere.then(|| self.class_id(&policies, &strictness, None, interner));
        Group { policies, strictness, class }
    }

    fn class_id(
        &mut self,
        policies: &[(u64, Arc<L4Policy>)],
        strictness: &Strictness,
        destination: Option<IpAddr>,
        interner: &mut Interner,
    ) -> u32 {
        let key = ClassKey {
            policies: policies.iter().map(|(serial, _)| *serial).collect(),
            strictness: strictness.clone(),
            destination: destination.map(|ip| tests_of(policies, ip)).unwrap_or_default(),
        };
        let known = self.by_content.get(&key).and_then(|id| self.classes.get(id));
        let class = match known {
            Some(cached) if cached.identities == interner.count() => return cached.id,
            Some(cached) => cached.with_more_identities(interner),
            None => {
                CachedClass::new(Arc::new(Class::new(policies, strictness, destination, interner)), interner)
            }
        };
        let id = class.id;
        self.by_content.insert(key, id);
        self.classes.insert(id, class);
        self.fresh.push(id);
        id
    }

    /// Brings the tables up to date with the classes that are in use.
    fn tabulate(&mut self) {
        let fresh = std::mem::take(&mut self.fresh);
        let used: HashSet<u32> = self.groups.classes.iter().flat_map(|of| [of.v4, of.v6]).collect();
        let gone: Vec<_> = self.classes.extract_if(|id, _| !used.contains(id)).collect();
        if fresh.is_empty() && gone.is_empty() {
            return;
        }
        self.by_content.retain(|_, id| used.contains(id));
        let rows = Arc::make_mut(&mut self.tables.rows);
        let sources = Arc::make_mut(&mut self.tables.sources);
        let classes = Arc::make_mut(&mut self.tables.classes);
        for (id, old) in &gone {
            for key in old.rows.keys() {
                rows.remove(key);
            }
            for (block, _) in &old.sources {
                sources.remove(block);
            }
            classes.remove(id);
        }
        for new in fresh.iter().filter_map(|id| self.classes.get(id)) {
            rows.extend(&new.rows);
            sources.extend(new.sources.iter().copied());
            let blocks = new.sources.iter().map(|(block, _)| *block).collect();
            classes.insert(new.id, Known { class: new.class.clone(), blocks });
        }
    }

    /// The policies of closed classes.
    fn closed(&self, room: Room) -> BTreeSet<Finding> {
        let classes = self.classes.values().map(|cached| &cached.class).filter(|class| class.closed);
        let finding = |policy: &Arc<L4Policy>| Finding {
            code: Code::TooManyRows,
            object: format!("AuthorizationPolicy {}", policy.name),
            field: "spec.rules".to_owned(),
            message: format!(
                "the policies of a workload of this one need more than {} rows (identities times ports) or {} address \
                 blocks, so every connection to it is refused; name fewer ports or blocks, or give the maps more room \
                 (--map-entries policy=N,sources=N)",
                room.rows, room.sources
            ),
        };
        classes.flat_map(|class| class.policies().map(finding)).collect()
    }
}

/// The policies of a group, and its class unless that depends on the destination's address.
struct Group {
    policies: Vec<(u64, Arc<L4Policy>)>,
    strictness: Strictness,
    class: Option<u32>,
}

/// The namespace whose workloads a policy may be for; the root namespace: all of them.
fn reach(policy: &AuthorizationPolicy, root: &str) -> String {
    match policy.attachment {
        Attachment::Behind(_) => root.to_owned(),
        _ => policy.namespace.clone(),
    }
}

fn place(policy: &Arc<AuthorizationPolicy>) -> usize {
    Arc::as_ptr(policy).addr()
}

/// What each test of the destination's address says to `ip`.
fn tests_of(policies: &[(u64, Arc<L4Policy>)], ip: IpAddr) -> Vec<bool> {
    let alternatives = policies.iter().flat_map(|(_, policy)| policy.alternatives());
    let tests = alternatives.map(|a| &a.destinations).filter(|test| !test.is_empty());
    tests.map(|test| test.holds(|block| block.contains(&ip))).collect()
}

impl CachedClass {
    fn new(class: Arc<Class>, interner: &mut Interner) -> Self {
        let groups = class.sources();
        if groups.is_empty() {
            let id = interner.new_class();
            let parts = vec![Part { id, source: ANYWHERE }];
            return Self::with_rows(id, class, parts, Vec::new(), interner);
        }
        let id = interner.new_class() | CLASS_BY_SOURCE;
        let mut parts = Vec::with_capacity(groups.len());
        let mut sources = Vec::new();
        for blocks in groups {
            let part = interner.new_class();
            sources.extend(blocks.iter().map(|block| (source_key(id, block), part)));
            parts.extend(blocks.first().map(|source| Part { id: part, source: *source }));
        }
        Self::with_rows(id, class, parts, sources, interner)
    }

    fn with_rows(
        id: u32,
        class: Arc<Class>,
        parts: Vec<Part>,
        sources: Vec<(SourceBlock, u32)>,
        interner: &mut Interner,
    ) -> Self {
        let mut rows = HashMap::new();
        let fits = sources.len() <= interner.room().sources
            && parts.iter().all(|part| {
                let room = interner.room().rows.saturating_sub(rows.len());
                let part = class.rows(part.id, part.source, interner, room);
                part.map(|part| rows.extend(part)).is_some()
            });
        if fits {
            return Self { id, class, identities: interner.count(), parts, sources, rows };
        }
        let closed = Arc::new(class.without_room());
        let part = Part { id: interner.new_class(), source: ANYWHERE };
        Self::with_rows(part.id, closed, vec![part], Vec::new(), interner)
    }

    /// With the rows that new identities need. Where that would change one that is there, it is another class: rows do
    /// not change all at once.
    fn with_more_identities(&self, interner: &mut Interner) -> Self {
        let Self { id, class, parts, sources, .. } = self;
        let grown = Self::with_rows(*id, class.clone(), parts.clone(), sources.clone(), interner);
        let kept = self.rows.iter().all(|(key, row)| grown.rows.get(key) == Some(row));
        if grown.id != self.id || kept { grown } else { Self::new(class.clone(), interner) }
    }
}
