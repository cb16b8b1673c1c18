//! Whether a leg took the path that it claims, by the agents' own counters.

use super::load::Outcome;
use super::plan::Leg;
use crate::transfers::verdict::Counted;

/// What is wrong; `counted` is what the agents counted meanwhile.
pub(crate) fn wrong(leg: Leg, outcome: &Outcome, counted: &Counted) -> Option<String> {
    let Outcome { connections, bytes, .. } = *outcome;
    let Counted { direct, tunnel, passthrough, relayed, .. } = *counted;
    let expected = match leg {
        Leg::Direct => (connections, 0, 0),
        Leg::Tunnel => (0, connections, 0),
        Leg::RawNear | Leg::RawFar | Leg::Peer => (0, 0, 0),
    };
    // Each byte of a tunnel goes through two agents.
    let relay = if leg == Leg::Tunnel { relayed >= 2 * bytes } else { relayed == 0 };
    let taken = (direct, tunnel, passthrough) == expected && relay;
    (!taken).then(|| {
        format!(
            "not the path that it claims: of {connections} connections and {bytes} bytes the agents counted {direct} direct, \
             {tunnel} tunnelled, {passthrough} that left the mesh, and {relayed} bytes relayed"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_leg_has_its_path() {
        let outcome = Outcome { connections: 3, bytes: 100, ..Outcome::default() };
        let direct = Counted { direct: 3, ..Counted::default() };
        let tunnel = Counted { tunnel: 3, relayed: 200, ..Counted::default() };
        let good = |leg, counted: &Counted| wrong(leg, &outcome, counted).is_none();
        assert!(good(Leg::Direct, &direct) && good(Leg::Tunnel, &tunnel));
        for leg in [Leg::RawNear, Leg::RawFar, Leg::Peer] {
            assert!(good(leg, &Counted::default()));
            assert!(!good(leg, &direct) && !good(leg, &tunnel));
        }
        for (leg, counted) in [
            (Leg::Direct, tunnel),
            (Leg::Direct, Counted { relayed: 1, ..direct }),
            (Leg::Direct, Counted { direct: 2, passthrough: 1, ..direct }),
            (Leg::Tunnel, direct),
            (Leg::Tunnel, Counted { relayed: 199, ..tunnel }),
            (Leg::Tunnel, Counted { tunnel: 2, ..tunnel }),
        ] {
            assert!(!good(leg, &counted), "{leg:?} {counted:?}");
        }
    }
}
