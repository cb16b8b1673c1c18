//! The L4 verdict: compiled rows in, verdict and reason out.

use bytemuck::{Pod, Zeroable};

use crate::{HOST_IDENTITY, OWN_IDENTITY, Reason, Verdict, assert_size};

/// In a [`PolicyKey`]: any port that has no row of its own.
pub const ANY_PORT: u16 = 0;
/// In a [`PolicyKey`]: any identity that has no row of its own.
pub const ANY_IDENTITY: u32 = u32::MAX;

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

/// What the row says: a [`Verdict`], its [`Reason`] and the index of the policy that decided (0: none).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct PolicyRow {
    verdict: u32,
    reason: u32,
    policy: u32,
}
assert_size!(PolicyRow, 12);

impl PolicyRow {
    /// A row. `policy` is an index of `policy_names`, 0 when no policy decided.
    #[inline(always)]
    pub const fn new(decision: Decision) -> Self {
        Self { verdict: decision.verdict as u32, reason: decision.reason as u32, policy: decision.policy }
    }

    /// The decision that the row stands for. A row with unknown numbers (a newer agent's) refuses.
    #[inline(always)]
    pub const fn decision(&self) -> Decision {
        match Reason::from_u32(self.reason) {
            Some(reason) if self.verdict == Verdict::Allowed as u32 => {
                Decision { verdict: Verdict::Allowed, reason, policy: self.policy }
            }
            Some(reason) => Decision { verdict: Verdict::Refused, reason, policy: self.policy },
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
}

impl Decision {
    /// A refusal that no policy named.
    #[inline(always)]
    pub const fn refuse(reason: Reason) -> Self {
        Self { verdict: Verdict::Refused, reason, policy: 0 }
    }

    /// An allowance that no policy named.
    #[inline(always)]
    pub const fn allow(reason: Reason) -> Self {
        Self { verdict: Verdict::Allowed, reason, policy: 0 }
    }

    /// Whether the connection may go on.
    #[inline(always)]
    pub const fn allowed(&self) -> bool {
        matches!(self.verdict, Verdict::Allowed)
    }
}

/// Where the rows are: the `policy` map in the kernel, a hash map in the agent and in tests.
pub trait PolicyTable {
    /// The row with exactly this key.
    fn row(&self, key: &PolicyKey) -> Option<PolicyRow>;
}

/// May `identity` connect to `port` of a workload of `class`?
///
/// At most four lookups whatever the number of policies, the most specific row first: (identity, port), (identity,
/// any port), (any identity, port), (any, any). The compiler writes the rows so that the first one found is the answer.
/// This node's own processes are always let in (kubelet probes, as in Istio), and so is the pod itself. No row at all refuses.
#[inline(always)]
pub fn decide<T: PolicyTable>(table: &T, class: u32, identity: u32, port: u16) -> Decision {
    if identity == HOST_IDENTITY {
        return Decision::allow(Reason::NodeProcess);
    }
    if identity == OWN_IDENTITY {
        return Decision::allow(Reason::OwnPod);
    }
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

    impl PolicyTable for Table {
        fn row(&self, key: &PolicyKey) -> Option<PolicyRow> {
            self.0.get(key).copied()
        }
    }

    fn table(rows: &[(u32, u16, Decision)]) -> Table {
        Table(rows.iter().map(|&(id, port, d)| (PolicyKey::new(7, id, port), PolicyRow::new(d))).collect())
    }

    #[test]
    fn an_empty_table_refuses() {
        assert_eq!(decide(&table(&[]), 7, 20, 80), Decision::refuse(Reason::NoPolicyState));
    }

    #[test]
    fn the_most_specific_row_decides() {
        let t = table(&[
            (ANY_IDENTITY, ANY_PORT, Decision::refuse(Reason::NotAllowed)),
            (ANY_IDENTITY, 80, Decision::allow(Reason::Allowed)),
            (20, ANY_PORT, Decision { verdict: Verdict::Refused, reason: Reason::DeniedByPolicy, policy: 3 }),
            (20, 80, Decision { verdict: Verdict::Allowed, reason: Reason::Allowed, policy: 4 }),
        ]);
        assert_eq!(decide(&t, 7, 20, 80).policy, 4);
        assert_eq!(decide(&t, 7, 20, 81).policy, 3);
        assert!(decide(&t, 7, 21, 80).allowed());
        assert_eq!(decide(&t, 7, 21, 81).reason, Reason::NotAllowed);
        assert_eq!(decide(&t, 8, 21, 81).reason, Reason::NoPolicyState);
    }

    #[test]
    fn node_processes_are_let_in_and_unknown_peers_are_not_mistaken_for_them() {
        let t = table(&[(ANY_IDENTITY, ANY_PORT, Decision::refuse(Reason::NotAllowed))]);
        assert!(decide(&t, 7, HOST_IDENTITY, 80).allowed());
        assert!(!decide(&t, 7, crate::UNKNOWN_IDENTITY, 80).allowed());
    }

    #[test]
    fn a_row_with_unknown_numbers_refuses() {
        let row: PolicyRow = bytemuck::cast([1_u32, 9999, 0]);
        assert!(!row.decision().allowed());
    }
}
