//! The L4 verdict: compiled rows in, verdict and reason out.

use bytemuck::{Pod, Zeroable};

use crate::{HOST_IDENTITY, Ip, OWN_IDENTITY, Reason, Verdict, assert_size};

/// In a [`PolicyKey`]: any port that has no row of its own.
pub const ANY_PORT: u16 = 0;
/// In a [`PolicyKey`]: any identity that has no row of its own.
pub const ANY_IDENTITY: u32 = u32::MAX;
/// Set in the number of a class whose verdicts depend on the client's address. Such a class has no rows of its own:
/// the `sources` map leads from it and the address to the class that has them.
pub const CLASS_BY_SOURCE: u32 = 1 << 31;

/// Who asks, of whom, at which port.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct PolicyKey {
    class: u32,
    identity: u32,
    port: u32,
}
assert_size!(PolicyKey, 12);

impl PolicyKey {
    /// The key of one row; `port` in host order.
    #[inline(always)]
    pub const fn new(class: u32, identity: u32, port: u16) -> Self {
        Self { class, identity, port: port as u32 }
    }

    /// The destination's policy class.
    pub const fn class(&self) -> u32 {
        self.class
    }

    /// The source's identity, or [`ANY_IDENTITY`].
    pub const fn identity(&self) -> u32 {
        self.identity
    }

    /// The destination port, or [`ANY_PORT`].
    pub const fn port(&self) -> u16 {
        self.port as u16
    }
}

/// A client's address as a class sees it: the key of the `sources` map, a longest-prefix match in which the class
/// must match in full.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct SourceKey {
    class: u32,
    ip: Ip,
}
assert_size!(SourceKey, 20);

impl SourceKey {
    /// Bits of the key in front of the address.
    pub const CLASS_BITS: u32 = 32;
    /// All bits: the prefix length to look an address up with.
    pub const BITS: u32 = Self::CLASS_BITS + 128;

    /// The key of an address (or of the first address of a block).
    #[inline(always)]
    pub const fn new(class: u32, ip: Ip) -> Self {
        Self { class, ip }
    }

    /// The class, with [`CLASS_BY_SOURCE`].
    pub const fn class(&self) -> u32 {
        self.class
    }

    /// The address.
    pub const fn ip(&self) -> Ip {
        self.ip
    }
}

/// What the row says: a [`Verdict`], its [`Reason`], the index of the policy that decided (0: none) and what else is to
/// be noted (0: nothing).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct PolicyRow {
    verdict: u32,
    reason: u32,
    policy: u32,
    note: u32,
}
assert_size!(PolicyRow, 16);

impl PolicyRow {
    /// A row. `policy` is an index of `policy_names`, 0 when no policy decided.
    #[inline(always)]
    pub const fn new(decision: Decision) -> Self {
        Self {
            verdict: decision.verdict as u32,
            reason: decision.reason as u32,
            policy: decision.policy,
            note: decision.note,
        }
    }

    /// The decision that the row stands for. A row with unknown numbers (a newer agent's) refuses.
    #[inline(always)]
    pub const fn decision(&self) -> Decision {
        match Reason::from_u32(self.reason) {
            Some(reason) if self.verdict == Verdict::Allowed as u32 => {
                Decision { verdict: Verdict::Allowed, reason, policy: self.policy, note: self.note }
            }
            Some(reason) => {
                Decision { verdict: Verdict::Refused, reason, policy: self.policy, note: self.note }
            }
            None => Decision::refuse(Reason::NoPolicyState),
        }
    }
}

/// A verdict with what led to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Decision {
    /// Allowed or refused.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// Index of the policy that decided; 0 when none did.
    pub policy: u32,
    /// Number of what AUDIT and dry-run policies say beside it; 0 when they say nothing.
    pub note: u32,
}

impl Decision {
    /// A refusal that no policy named.
    #[inline(always)]
    pub const fn refuse(reason: Reason) -> Self {
        Self { verdict: Verdict::Refused, reason, policy: 0, note: 0 }
    }

    /// An allowance that no policy named.
    #[inline(always)]
    pub const fn allow(reason: Reason) -> Self {
        Self { verdict: Verdict::Allowed, reason, policy: 0, note: 0 }
    }

    /// Whether the connection may go on.
    #[inline(always)]
    pub const fn allowed(&self) -> bool {
        matches!(self.verdict, Verdict::Allowed)
    }
}

/// Where the rows are: the `policy` and `sources` maps in the kernel, hash maps in the agent and in tests.
pub trait PolicyTable {
    /// The row with exactly this key.
    fn row(&self, key: &PolicyKey) -> Option<PolicyRow>;
    /// The class of the longest block around this key's address.
    fn class_at(&self, key: &SourceKey) -> Option<u32>;
}

/// May `identity`, connecting from `source`, have `port` of a workload of `class`?
///
/// Four lookups at most whatever the number of policies (five where a policy of the class asks for addresses), the most
/// specific row first: (identity, port), (identity, any port), (any identity, port), (any, any). The compiler writes the
/// rows so that the first one found is the answer. This node's own processes are always let in (kubelet probes, as in
/// Istio), and so is the pod itself. No row at all refuses.
#[inline(always)]
pub fn decide<T: PolicyTable>(table: &T, class: u32, identity: u32, source: Ip, port: u16) -> Decision {
    if identity == HOST_IDENTITY {
        return Decision::allow(Reason::NodeProcess);
    }
    if identity == OWN_IDENTITY {
        return Decision::allow(Reason::OwnPod);
    }
    let class = if class & CLASS_BY_SOURCE == 0 {
        class
    } else {
        match table.class_at(&SourceKey::new(class, source)) {
            Some(class) => class,
            None => return Decision::refuse(Reason::NoPolicyState),
        }
    };
    if let Some(row) = table.row(&PolicyKey::new(class, identity, port)) {
        return row.decision();
    }
    if let Some(row) = table.row(&PolicyKey::new(class, identity, ANY_PORT)) {
        return row.decision();
    }
    if let Some(row) = table.row(&PolicyKey::new(class, ANY_IDENTITY, port)) {
        return row.decision();
    }
    if let Some(row) = table.row(&PolicyKey::new(class, ANY_IDENTITY, ANY_PORT)) {
        return row.decision();
    }
    Decision::refuse(Reason::NoPolicyState)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    struct Table(HashMap<PolicyKey, PolicyRow>);

    const HERE: Ip = Ip::UNSPECIFIED;

    impl PolicyTable for Table {
        fn row(&self, key: &PolicyKey) -> Option<PolicyRow> {
            self.0.get(key).copied()
        }

        fn class_at(&self, key: &SourceKey) -> Option<u32> {
            (key.ip() == HERE).then_some(7)
        }
    }

    fn table(rows: &[(u32, u16, Decision)]) -> Table {
        Table(rows.iter().map(|&(id, port, d)| (PolicyKey::new(7, id, port), PolicyRow::new(d))).collect())
    }

    #[test]
    fn an_empty_table_refuses() {
        assert_eq!(decide(&table(&[]), 7, 20, HERE, 80), Decision::refuse(Reason::NoPolicyState));
    }

    #[test]
    fn the_most_specific_row_decides() {
        let t = table(&[
            (ANY_IDENTITY, ANY_PORT, Decision::refuse(Reason::NotAllowed)),
            (ANY_IDENTITY, 80, Decision::allow(Reason::Allowed)),
            (20, ANY_PORT, Decision { policy: 3, ..Decision::refuse(Reason::DeniedByPolicy) }),
            (20, 80, Decision { policy: 4, ..Decision::allow(Reason::Allowed) }),
        ]);
        assert_eq!(decide(&t, 7, 20, HERE, 80).policy, 4);
        assert_eq!(decide(&t, 7, 20, HERE, 81).policy, 3);
        assert!(decide(&t, 7, 21, HERE, 80).allowed());
        assert_eq!(decide(&t, 7, 21, HERE, 81).reason, Reason::NotAllowed);
        assert_eq!(decide(&t, 8, 21, HERE, 81).reason, Reason::NoPolicyState);
    }

    #[test]
    fn node_processes_are_let_in_and_unknown_peers_are_not_mistaken_for_them() {
        let t = table(&[(ANY_IDENTITY, ANY_PORT, Decision::refuse(Reason::NotAllowed))]);
        assert!(decide(&t, 7, HOST_IDENTITY, HERE, 80).allowed());
        assert!(!decide(&t, 7, crate::UNKNOWN_IDENTITY, HERE, 80).allowed());
    }

    #[test]
    fn a_class_by_source_is_the_class_of_the_address_or_refuses() {
        let t = table(&[(ANY_IDENTITY, ANY_PORT, Decision::allow(Reason::Allowed))]);
        assert!(decide(&t, CLASS_BY_SOURCE | 9, 20, HERE, 80).allowed());
        let elsewhere = Ip::from_words([1, 0, 0, 0]);
        assert_eq!(
            decide(&t, CLASS_BY_SOURCE | 9, 20, elsewhere, 80),
            Decision::refuse(Reason::NoPolicyState)
        );
        assert!(decide(&t, CLASS_BY_SOURCE | 9, HOST_IDENTITY, elsewhere, 80).allowed());
    }

    #[test]
    fn a_row_with_unknown_numbers_refuses() {
        let row: PolicyRow = bytemuck::cast([1_u32, 9999, 0, 0]);
        assert!(!row.decision().allowed());
    }
}
