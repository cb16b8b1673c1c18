//! Numbers for what the kernel tables hold: given once, never changed, never given to anything else.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use culvert_common::{CLASS_BY_SOURCE, FIRST_IDENTITY, MAX_POLICY_ROWS, MAX_SOURCES, Name, ServiceKey};

use super::compile::Cache;
use super::matching::{Face, Peer, string_matches};
use super::notes::Notes;
use super::{ServiceAccountName, StringMatch};
use crate::identity::SpiffeId;

/// The longest text that a pinned name holds in full; a longer one was cut.
const PINNED_TEXT: usize = 254;

/// How much the kernel's tables can hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Policy rows.
    pub(super) rows: usize,
    /// Address blocks.
    pub(super) sources: usize,
}

impl Default for Room {
    fn default() -> Self {
        Self { rows: MAX_POLICY_ROWS, sources: MAX_SOURCES }
    }
}

/// Gives out identities, policy indexes, class ids and service ids.
#[derive(Default)]
pub struct Interner {
    identities: Arc<HashMap<SpiffeId, u32>>,
    identity_names: Arc<HashMap<u32, Name>>,
    peers: HashMap<u32, Peer>,
    by_principal: HashMap<String, u32>,
    by_namespace: HashMap<String, Vec<u32>>,
    by_account: HashMap<ServiceAccountName, Vec<u32>>,
    last_identity: u32,
    policies: Arc<HashMap<String, u32>>,
    policy_names: Arc<HashMap<u32, Name>>,
    last_policy: u32,
    last_class: u32,
    services: HashMap<ServiceKey, u32>,
    last_service: u32,
    last_serial: u64,
    notes: Arc<Notes>,
    room: Room,
    pub(super) cache: Cache,
}

impl Interner {
    /// An interner that has given out nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes over an identity that is pinned from an earlier run. Its number is never given to another one, even when
    /// the text is of no use (cut, or no SPIFFE id); returns whether it was.
    pub fn adopt_identity(&mut self, id: u32, text: &str) -> bool {
        self.last_identity = self.last_identity.max(id);
        match text.parse() {
            Ok(identity)
                if text.len() < PINNED_TEXT && id >= FIRST_IDENTITY && !self.peers.contains_key(&id) =>
            {
                self.insert_identity(identity, id);
                true
            }
            _ => false,
        }
    }

    /// Takes over a policy's index from an earlier run.
    pub fn adopt_policy(&mut self, index: u32, name: &str) {
        self.last_policy = self.last_policy.max(index);
        if index > 0 && name.len() < PINNED_TEXT {
            self.insert_policy(name, index);
        }
    }

    /// Takes over a service's id from an earlier run.
    pub fn adopt_service(&mut self, id: u32, key: ServiceKey) {
        self.last_service = self.last_service.max(id);
        self.services.entry(key).or_insert(id);
    }

    /// Numbers up to `highest` belong to identities of an earlier run, whether their names were kept or not.
    pub fn set_identity_floor(&mut self, highest: u32) {
        self.last_identity = self.last_identity.max(highest);
    }

    /// How many policy rows and address blocks the kernel's tables can hold; a class that needs more is closed.
    pub fn set_room(&mut self, rows: usize, sources: usize) {
        self.room = Room { rows, sources };
    }

    pub(super) fn room(&self) -> Room {
        self.room
    }

    /// New classes get ids above `highest`: those up to it may still be in pinned maps.
    pub fn set_class_floor(&mut self, highest: u32) {
        self.last_class = self.last_class.max(highest & !CLASS_BY_SOURCE);
    }

    /// New notes get numbers above `highest`.
    pub fn set_note_floor(&mut self, highest: u32) {
        self.notes.set_floor(highest);
    }

    /// The number of an identity, new or known.
    pub fn identity(&mut self, identity: &SpiffeId) -> u32 {
        if let Some(id) = self.identities.get(identity) {
            return *id;
        }
        let id = (self.last_identity + 1).max(FIRST_IDENTITY);
        self.last_identity = id;
        self.insert_identity(identity.clone(), id);
        id
    }

    /// The index of a policy by its `namespace/name`, new or known.
    pub fn policy(&mut self, name: &str) -> u32 {
        if let Some(index) = self.policies.get(name) {
            return *index;
        }
        self.last_policy += 1;
        self.insert_policy(name, self.last_policy);
        self.last_policy
    }

    fn insert_policy(&mut self, name: &str, index: u32) {
        if let Entry::Vacant(vacant) = Arc::make_mut(&mut self.policies).entry(name.to_owned()) {
            vacant.insert(index);
            Arc::make_mut(&mut self.policy_names).insert(index, name.into());
        }
    }

    /// The id of a service's virtual address and port, new or known.
    pub fn service(&mut self, key: ServiceKey) -> u32 {
        *self.services.entry(key).or_insert_with(|| {
            self.last_service += 1;
            self.last_service
        })
    }

    pub(super) fn new_serial(&mut self) -> u64 {
        self.last_serial += 1;
        self.last_serial
    }

    pub(super) fn new_class(&mut self) -> u32 {
        self.last_class += 1;
        self.last_class
    }

    pub(super) fn identities(&self) -> &Arc<HashMap<SpiffeId, u32>> {
        &self.identities
    }

    /// The content of the `identities` map.
    pub(crate) fn identity_names(&self) -> &Arc<HashMap<u32, Name>> {
        &self.identity_names
    }

    /// The content of the `policy_names` map.
    pub(crate) fn policy_names(&self) -> &Arc<HashMap<u32, Name>> {
        &self.policy_names
    }

    pub(super) fn policies(&self) -> &Arc<HashMap<String, u32>> {
        &self.policies
    }

    pub(super) fn notes(&self) -> &Arc<Notes> {
        &self.notes
    }

    /// How many identities have a number.
    pub(super) fn count(&self) -> usize {
        self.peers.len()
    }

    pub(super) fn numbers(&self) -> impl Iterator<Item = u32> {
        self.peers.keys().copied()
    }

    pub(super) fn peer(&self, id: u32) -> Option<&Peer> {
        self.peers.get(&id)
    }

    fn insert_identity(&mut self, identity: SpiffeId, id: u32) {
        let face = Face::from(&identity);
        // Two numbers for one text: the first stays, the second still means the same peer in old rows.
        self.by_principal.entry(face.principal.clone()).or_insert(id);
        self.by_namespace.entry(face.account.namespace.clone()).or_default().push(id);
        self.by_account.entry(face.account.clone()).or_default().push(id);
        if let Entry::Vacant(vacant) = Arc::make_mut(&mut self.identities).entry(identity) {
            let name = Name::from(vacant.key().to_string().as_str());
            vacant.insert(id);
            Arc::make_mut(&mut self.identity_names).insert(id, name);
        }
        self.peers.insert(id, Peer::Known(face));
    }

    /// Adds the identities that may match `pattern` as a principal, unlike a peer that no policy names.
    pub(super) fn with_principal(&self, pattern: &StringMatch, found: &mut BTreeSet<u32>) {
        match pattern {
            StringMatch::Exact(text) => found.extend(self.by_principal.get(text)),
            StringMatch::Prefix(_) | StringMatch::Suffix(_) => {
                let matching = self.by_principal.iter().filter(|(text, _)| string_matches(pattern, text));
                found.extend(matching.map(|(_, id)| *id));
            }
            StringMatch::Present => {}
        }
    }

    /// Adds the identities whose namespace decides about `pattern` differently than a stranger's.
    pub(super) fn with_namespace(&self, pattern: &StringMatch, found: &mut BTreeSet<u32>) {
        let matching = |text: &&String| match pattern {
            // A stranger has a namespace, whatever it is; an identity may have an empty one.
            StringMatch::Present => text.is_empty(),
            _ => string_matches(pattern, text),
        };
        match pattern {
            StringMatch::Exact(text) => found.extend(self.by_namespace.get(text).into_iter().flatten()),
            _ => found
                .extend(self.by_namespace.iter().filter(|(text, _)| matching(text)).flat_map(|(_, ids)| ids)),
        }
    }

    /// Adds the identities of a service account, of any trust domain.
    pub(super) fn with_account(&self, account: &ServiceAccountName, found: &mut BTreeSet<u32>) {
        found.extend(self.by_account.get(account).into_iter().flatten());
    }
}
