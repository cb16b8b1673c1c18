//! What becomes of entries that a full map has no room for. The rule: nothing that a reader does not find may let it do more.

use std::collections::{BTreeMap, HashMap, HashSet};

use culvert_common::{
    BackendKey, CLASS_BY_SOURCE, Ip, MAX_UNLISTED, Service, ServiceKey, SourceKey, Workload, flags,
};

use crate::policy::SourceBlock;

/// The class that never has rows: whoever is in it is refused.
pub(super) const CLOSED: u32 = 0;

/// Whole classes for which there is room, of those with rows to be written: (class, how many) → the classes that have none.
/// A class with a part of its rows could allow what the missing ones refuse.
pub(super) fn classes_without_room(fresh: impl Iterator<Item = u32>, mut room: usize) -> HashSet<u32> {
    let mut rows: BTreeMap<u32, usize> = BTreeMap::new();
    for class in fresh {
        *rows.entry(class).or_default() += 1;
    }
    // Small ones first: that closes the fewest.
    let mut classes: Vec<(usize, u32)> = rows.into_iter().map(|(class, rows)| (rows, class)).collect();
    classes.sort_unstable();
    let mut without = HashSet::new();
    for (rows, class) in classes {
        match room.checked_sub(rows) {
            Some(left) => room = left,
            None => _ = without.insert(class),
        }
    }
    without
}

/// Workloads in the order in which they get room: those of this node, whom programs must find to serve them, then those of the
/// mesh that are `known` to the map, then the others. One that is not enrolled and has no waypoint needs none: a program that does
/// not find it does the same.
pub(super) fn by_need(wanted: &HashMap<Ip, Workload>, known: impl Fn(&Ip) -> bool) -> Vec<(Ip, Workload)> {
    let enrolled = wanted.iter().filter(|(_, w)| w.flags & (flags::ENROLLED | flags::WAYPOINT) != 0);
    let mut needed: Vec<_> = enrolled.map(|(ip, w)| (*ip, *w)).collect();
    needed.sort_by_cached_key(|(ip, w)| (w.flags & flags::LOCAL == 0, !known(ip)));
    needed
}

/// Blocks of the `unlisted` map around addresses that have no room: each by itself as long as that can be, else wider. They
/// fill a third of the map, so that others fit in before these go.
pub(super) fn unlisted(addresses: &[Ip]) -> HashMap<SourceBlock, u32> {
    const LEVELS: [(u32, u32); 4] = [(128, 128), (96 + 24, 64), (96 + 16, 48), (0, 0)];
    for (v4, v6) in LEVELS {
        let blocks: HashMap<SourceBlock, u32> = addresses
            .iter()
            .map(|ip| block(*ip, if ip.v4_word().is_some() { v4 } else { v6 }))
            .map(|block| (block, 1))
            .collect();
        if blocks.len() <= MAX_UNLISTED / 3 {
            return blocks;
        }
    }
    HashMap::new() // the widest level has one block
}

fn block(ip: Ip, bits: u32) -> SourceBlock {
    let number = u128::from_be_bytes(bytemuck::cast(ip));
    let kept = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
    let first: Ip = bytemuck::cast((number & kept).to_be_bytes());
    (SourceKey::new(CLOSED, first), SourceKey::CLASS_BITS + bits)
}

/// Services with no more backends than are in the map: `missing` has no room.
pub(super) fn with_fewer_backends(
    services: &HashMap<ServiceKey, Service>,
    missing: &[BackendKey],
) -> HashMap<ServiceKey, Service> {
    let mut first_missing: HashMap<u32, u32> = HashMap::new();
    for BackendKey { service, slot } in missing {
        let first = first_missing.entry(*service).or_insert(*slot);
        *first = (*first).min(*slot);
    }
    let limited = |service: &Service| Service {
        backends: first_missing
            .get(&service.id)
            .map_or(service.backends, |first| service.backends.min(*first)),
        ..*service
    };
    services.iter().map(|(key, service)| (*key, limited(service))).collect()
}

/// The classes whose rows some entry leads to: `workloads`, and `sources` for those that judge by address.
pub(super) fn classes_in_use<'a>(
    workloads: impl Iterator<Item = &'a Workload>,
    sources: &HashMap<SourceBlock, u32>,
) -> HashSet<u32> {
    let mut used: HashSet<u32> = workloads.map(|w| w.class).collect();
    let parts: Vec<u32> =
        sources.iter().filter(|((key, _), _)| used.contains(&key.class())).map(|(_, part)| *part).collect();
    used.extend(parts);
    used
}

/// Which classes cannot be judged with the blocks and rows that have room.
pub(super) fn incomplete<'a>(
    rows: HashSet<u32>,
    blocks: HashSet<u32>,
    sources: impl Iterator<Item = (&'a SourceBlock, &'a u32)>,
) -> HashSet<u32> {
    let led = sources.filter(|(_, part)| rows.contains(part)).map(|((key, _), _)| key.class());
    let mut all: HashSet<u32> = led.collect();
    all.extend(blocks);
    all.extend(rows.into_iter().filter(|class| class & CLASS_BY_SOURCE == 0));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Ip {
        text.parse::<std::net::IpAddr>().unwrap().into()
    }

    #[test]
    fn a_class_gets_all_of_its_rows_or_none() {
        let fresh = [7, 7, 7, 8, 9, 9];
        assert_eq!(classes_without_room(fresh.into_iter(), 6), HashSet::new());
        assert_eq!(classes_without_room(fresh.into_iter(), 5), HashSet::from([7]));
        assert_eq!(classes_without_room(fresh.into_iter(), 2), HashSet::from([7, 9]));
        assert_eq!(classes_without_room(fresh.into_iter(), 0), HashSet::from([7, 8, 9]));
    }

    #[test]
    fn a_class_by_address_is_closed_with_its_parts() {
        let by_source = 5 | CLASS_BY_SOURCE;
        let blocks = HashMap::from([(block(ip("10.0.0.1"), 128), 6)]);
        let blocks: HashMap<SourceBlock, u32> = blocks
            .into_iter()
            .map(|((key, bits), part)| ((SourceKey::new(by_source, key.ip()), bits), part))
            .collect();
        let closed = incomplete(HashSet::from([6, 9]), HashSet::new(), blocks.iter());
        assert_eq!(closed, HashSet::from([by_source, 6, 9]));
        let one = Workload { identity: 20, class: by_source, flags: flags::ENROLLED };
        assert_eq!(classes_in_use([one].iter(), &blocks), HashSet::from([by_source, 6]));
    }

    #[test]
    fn unlisted_addresses_are_covered_one_by_one_while_that_fits() {
        let few = [ip("10.1.2.3"), ip("fd00::5")];
        let covered = unlisted(&few);
        assert!(covered.contains_key(&(SourceKey::new(0, ip("10.1.2.3")), 160)) && covered.len() == 2);
        let many: Vec<Ip> =
            (0..3000_u32).map(|n| Ip::from(std::net::Ipv4Addr::from(0x0a01_0000 + n))).collect();
        let covered = unlisted(&many);
        assert_eq!(covered.len(), 12);
        assert!(covered.contains_key(&(SourceKey::new(0, ip("10.1.5.0")), 32 + 96 + 24)));
        let spread: Vec<Ip> = (0..3000_u32).map(|n| Ip::from(std::net::Ipv4Addr::from(n << 16))).collect();
        assert!(unlisted(&spread) == HashMap::from([((SourceKey::new(0, ip("::")), 32), 1)]));
    }

    #[test]
    fn a_service_counts_only_slots_that_are_there() {
        let key = ServiceKey { vip: culvert_common::Endpoint::new(ip("10.96.0.1"), 80) };
        let services = HashMap::from([(key, Service { id: 3, backends: 5, flags: 0, affinity: 9 })]);
        let missing = [4, 2].map(|slot| BackendKey { service: 3, slot });
        assert_eq!(
            with_fewer_backends(&services, &missing)[&key],
            Service { id: 3, backends: 2, flags: 0, affinity: 9 }
        );
        assert_eq!(with_fewer_backends(&services, &[]), services);
    }

    #[test]
    fn own_pods_come_first_and_strangers_not_at_all() {
        let workload = |flags| Workload { identity: 16, class: 1, flags };
        let wanted = HashMap::from([
            (ip("10.0.0.1"), workload(flags::ENROLLED)),
            (ip("10.0.0.2"), workload(0)),
            (ip("10.0.0.3"), workload(flags::ENROLLED | flags::LOCAL)),
            (ip("10.0.0.4"), workload(flags::ENROLLED)),
        ]);
        let order = |known: &str| -> Vec<Ip> {
            by_need(&wanted, |one| *one == ip(known)).into_iter().map(|(ip, _)| ip).collect()
        };
        assert_eq!(order("10.0.0.1"), [ip("10.0.0.3"), ip("10.0.0.1"), ip("10.0.0.4")]);
        assert_eq!(order("10.0.0.4"), [ip("10.0.0.3"), ip("10.0.0.4"), ip("10.0.0.1")]);
    }
}
