//! PURE: which endpoints of a large service one caller uses.
//!
//! A thousand callers of a service with five thousand instances would keep five million connections. So
//! each caller uses a bounded share of them, which rendezvous hashing (Thaler and Ravishankar, 1998) draws by
//! the caller's name: callers' shares differ, one caller's stays the same, and an instance that comes or
//! goes changes at most one place of it. Every rank has a share of its own, so each zone that a call may
//! spill over to has enough.

use starling_gossip::identity::NodeName;

use super::{Candidate, Excluded, Exclusion, Route};
use crate::balance::stable_hash;

/// Leaves at most `most` candidates of each rank in `route`, as the node `own` draws them, and says so of
/// the others.
pub fn narrow(route: &mut Route, own: &NodeName, most: usize) {
    if route.candidates.len() <= most {
        return;
    }
    let mut kept = Vec::with_capacity(most);
    for same_rank in route.candidates.chunk_by(|a, b| a.rank == b.rank) {
        let mut scored: Vec<(u64, &Candidate)> =
            same_rank.iter().map(|candidate| (score(own, candidate), candidate)).collect();
        if scored.len() > most {
            // Names are unique, and so are almost all hashes; where two meet, the order decides.
            scored.select_nth_unstable_by(most, |(a, one), (b, other)| {
                (b, &other.target).cmp(&(a, &one.target))
            });
        }
        let left = scored.split_off(most.min(scored.len()));
        let left = left.into_iter().map(|(_, candidate)| candidate.target.clone());
        route.excluded.extend(left.map(|target| Excluded { target, reason: Exclusion::LeftToOthers }));
        kept.extend(scored.into_iter().map(|(_, candidate)| candidate.clone()));
    }
    kept.sort_by(|a, b| (a.rank, &a.target).cmp(&(b.rank, &b.target)));
    route.candidates = kept;
}

fn score(own: &NodeName, candidate: &Candidate) -> u64 {
    let target = &candidate.target;
    stable_hash(&[
        own.as_str().as_bytes(),
        target.owner.node.as_str().as_bytes(),
        target.instance.as_str().as_bytes(),
    ])
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use starling_gossip::record::Locality;
    use starling_gossip::snapshot::Snapshot;

    use super::super::tests::offered;
    use super::super::{Target, compute};
    use super::*;

    /// Of a service with instances on `near` nodes in the caller's zone and `far` in another.
    fn route(near: impl Iterator<Item = u32>, far: u32) -> Route {
        let zone =
            |zone: &str| Locality { zone: Some(zone.parse().expect("a label")), ..Locality::default() };
        let at = |name: String, place: &Locality| offered(&name, |_, _, node| node.locality = place.clone());
        let near = near.map(|index| at(format!("near-{index}"), &zone("a")));
        let far = (0..far).map(|index| at(format!("far-{index}"), &zone("b")));
        let service = "web".parse().expect("a name");
        let services = BTreeMap::from([(service, near.chain(far).collect())]);
        let mut table = compute(&Snapshot { services, ..Snapshot::default() }, &zone("a"));
        table.routes.pop_first().expect("a route").1
    }

    fn narrowed(mut route: Route, own: &str, most: usize) -> BTreeSet<Target> {
        let (all, before) = (route.candidates.len(), route.excluded.len());
        narrow(&mut route, &own.parse().expect("a name"), most);
        assert_eq!(route.candidates.len() + route.excluded.len() - before, all);
        assert!(route.candidates.is_sorted_by_key(|candidate| (candidate.rank, candidate.target.clone())));
        route.candidates.into_iter().map(|candidate| candidate.target).collect()
    }

    #[test]
    fn a_small_service_is_used_whole_and_each_rank_of_a_large_one_has_a_share() {
        assert_eq!(narrowed(route(0..100, 0), "me", 100).len(), 100);
        let share = narrowed(route(0..500, 300), "me", 100);
        let near = share.iter().filter(|target| target.owner.node.as_str().starts_with("near")).count();
        assert_eq!((near, share.len()), (100, 200));
    }

    #[test]
    fn an_instance_that_comes_or_goes_changes_one_place_at_most() {
        let before = narrowed(route(0..500, 0), "me", 100);
        for gone in 0..20 {
            let after = narrowed(route((0..500).filter(|index| *index != gone), 0), "me", 100);
            assert!(before.difference(&after).count() <= 1 && after.difference(&before).count() <= 1);
        }
        let after = narrowed(route(0..501, 0), "me", 100);
        assert!(before.difference(&after).count() <= 1);
    }

    #[test]
    fn callers_differ_and_together_use_all_alike() {
        let mut uses: BTreeMap<Target, u32> = BTreeMap::new();
        for caller in 0..400 {
            for target in narrowed(route(0..200, 0), &format!("caller-{caller}"), 20) {
                *uses.entry(target).or_default() += 1;
            }
        }
        assert_eq!(uses.len(), 200);
        // Forty each in the mean, six to one side or the other.
        assert!(uses.values().all(|count| (16..70).contains(count)), "{uses:?}");
    }

    /// cargo test --release -p starling --lib -- --ignored --nocapture measure_a_table
    #[test]
    #[ignore = "a measurement, for people"]
    fn measure_a_table_of_five_thousand_endpoints() {
        use std::time::Duration;

        use starling_gossip::clock::Clock;

        use crate::balance::{Group, HashOn, Policy};

        const ROUNDS: u32 = 20;
        let time = |what: &str, work: &mut dyn FnMut()| {
            let start = Clock::System.now();
            (0..ROUNDS).for_each(|_| work());
            let each: Duration = (Clock::System.now() - start) / ROUNDS;
            println!("{what}: {each:?}");
        };
        let instances: Vec<_> =
            (0..5_000).map(|index| offered(&format!("node-{index}"), |_, _, _| {})).collect();
        let services = BTreeMap::from([("web".parse().expect("a name"), instances)]);
        let snapshot = Snapshot { services, ..Snapshot::default() };
        time("route::compute", &mut || drop(compute(&snapshot, &Locality::default())));
        let own = "me".parse().expect("a name");
        time("compute and narrow to 100", &mut || {
            let mut route = compute(&snapshot, &Locality::default()).routes.pop_first().expect("a route").1;
            narrow(&mut route, &own, 100);
        });
        let members: Vec<(u64, u16)> = (0..5_000).map(|index| (index * 7_919, 100)).collect();
        for policy in [Policy::PeakEwma, Policy::RoundRobin, Policy::ConsistentHash(HashOn::Path)] {
            let what = format!("a group of all, {}", policy.as_str());
            time(&what, &mut || drop(Group::new(members.clone(), &policy, 0, None)));
        }
    }
}
