//! How many entries each map has room for: the defaults, and what `--map-entries` says instead.

use std::collections::BTreeMap;
use std::str::FromStr;

use culvert_common::*;

/// Nobody needs more, and some of the maps take their memory at once.
const MOST: u32 = 1 << 24;

/// What a map's entries are to those who make room for more or less of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Content {
    /// Only the agent writes it: another map with the same entries does as well.
    Agent,
    /// Programs write it for as long as connections are open.
    Connections,
    /// Programs write it for the moment in which a connection opens, or as a hint that can be done without.
    Moment,
}

/// A map whose size can be chosen.
pub(super) struct Sized {
    pub(super) name: &'static str,
    pub(super) content: Content,
    entries: usize,
}

const fn sized(name: &'static str, entries: usize, content: Content) -> Sized {
    Sized { name, content, entries }
}

/// All maps with entries that come and go.
pub(super) const SIZED: [Sized; 16] = [
    sized("pods", MAX_PODS, Content::Agent),
    sized("guards", MAX_PODS, Content::Agent),
    sized("workloads", MAX_WORKLOADS, Content::Agent),
    sized("services", MAX_SERVICES, Content::Agent),
    sized("backends", MAX_BACKENDS, Content::Agent),
    sized("members", MAX_BACKENDS, Content::Agent),
    sized("affinity", MAX_AFFINITY, Content::Moment),
    sized("policy", MAX_POLICY_ROWS, Content::Agent),
    sized("sources", MAX_SOURCES, Content::Agent),
    sized("notes", MAX_NOTES, Content::Moment),
    sized("policy_names", MAX_POLICIES, Content::Agent),
    sized("identities", MAX_IDENTITIES, Content::Agent),
    sized("admitted", MAX_ADMITTED, Content::Moment),
    sized("connections", MAX_CONNECTIONS, Content::Connections),
    sized("original_dst", MAX_HANDOVERS, Content::Moment),
    sized("original_src", MAX_HANDOVERS, Content::Moment),
];

/// One `--map-entries NAME=N`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapEntries {
    map: &'static str,
    entries: u32,
}

impl FromStr for MapEntries {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, number) = text
            .split_once('=')
            .ok_or_else(|| format!("{text:?}: write NAME=N, for example workloads=500000"))?;
        let map = SIZED.iter().map(|map| map.name).find(|known| *known == name).ok_or_else(|| {
            let names: Vec<_> = SIZED.iter().map(|map| map.name).collect();
            format!("{name:?} is no map whose size can be chosen; those are {}", names.join(", "))
        })?;
        let entries = number.parse().ok().filter(|entries| (1..=MOST).contains(entries));
        let entries = entries.ok_or_else(|| format!("{name}={number}: the number is from 1 to {MOST}"))?;
        Ok(Self { map, entries })
    }
}

/// The room of every map in [`SIZED`], by name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Capacities(BTreeMap<&'static str, u32>);

impl Default for Capacities {
    /// Those of `culvert_common`.
    fn default() -> Self {
        Self(SIZED.iter().map(|map| (map.name, u32::try_from(map.entries).unwrap_or(MOST))).collect())
    }
}

impl Capacities {
    /// The defaults with what `chosen` says; of two words on one map the later counts.
    pub fn with(chosen: &[MapEntries]) -> Self {
        let mut all = Self::default();
        for MapEntries { map, entries } in chosen {
            all.set(map, *entries);
        }
        all
    }

    /// The room of a map; 0 for one that has none to choose.
    pub fn of(&self, map: &str) -> usize {
        self.0.get(map).map_or(0, |entries| *entries as usize)
    }

    pub(super) fn set(&mut self, map: &'static str, entries: u32) {
        self.0.insert(map, entries);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static str, u32)> {
        self.0.iter().map(|(name, entries)| (*name, *entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_a_known_name_and_a_number() {
        let chosen: Vec<MapEntries> =
            ["workloads=5", "admitted=16777216", "workloads=7"].iter().map(|t| t.parse().unwrap()).collect();
        let all = Capacities::with(&chosen);
        assert_eq!((all.of("workloads"), all.of("admitted"), all.of("pods")), (7, 1 << 24, MAX_PODS));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |text: &str| text.parse::<MapEntries>().unwrap_err();
        assert!(error("workloads").contains("write NAME=N"));
        assert!(
            error("workload=5").contains("\"workload\" is no map")
                && error("events=5").contains("workloads, services")
        );
        for number in ["0", "16777217", "-1", "many", ""] {
            assert!(error(&format!("pods={number}")).contains("from 1 to 16777216"), "{number}");
        }
    }
}
