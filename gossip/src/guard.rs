//! PURE: what of a message of the repair path is believed, and what chitchat gets to see of it.
//!
//! Any member's message can say anything about anybody's map. So its values are offered to the catalogue first,
//! which judges each as if its owner had said it, and a map's version is the version that its owner signed
//! ([`VERSIONS_PER_RECORD`]): chitchat is then given what the catalogue holds, never what a message says. Only maps of
//! members of an earlier version, which count otherwise, reach it as they came, within bounds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use crate::memory::{INSTANCE_PREFIX, LEASE_KEY, NODE_KEY};
use crate::wire::{Entry, Exchange, MapDelta, MapId, Value};

/// An owner's records are so many versions apart, and so is its map: renewals, which a map holds only for
/// members of an earlier version, count in between.
pub const VERSIONS_PER_RECORD: u64 = 1 << 20;

/// Records that came before one they follow, remembered for each map.
const AHEAD_MAX: usize = 64;

/// Lives of one owner of an earlier version whose maps are taken in at a time.
const LIVES_MAX: usize = 2;

/// Keys of one map of an earlier version: a node record, a lease, and as many instances as an owner may have.
const KEYS_MAX: usize = crate::limits::INSTANCES_PER_OWNER_MAX + 2;

/// Who an owner is, as far as its map goes.
#[derive(Clone, Debug)]
pub(crate) struct MapOwner {
    /// Whether it speaks as this program does.
    pub(crate) is_talker: bool,
    /// Its present life.
    pub(crate) incarnation: u64,
    /// Where it listens.
    pub(crate) addresses: Vec<SocketAddr>,
    /// Whether it has neither left nor expired.
    pub(crate) is_present: bool,
}

/// Who judges values.
pub(crate) trait Judge {
    /// Who `owner` is, if it is known.
    fn owner(&self, owner: u64) -> Option<MapOwner>;

    /// Takes in a value found in `map`; whether it is its owner's word, and its version the one that was signed.
    fn offer(&mut self, map: &MapId, value: &Value) -> bool;
}

/// What of each owner's map this node has without a gap.
#[derive(Default)]
pub(crate) struct Maps(BTreeMap<u64, MapState>);

#[derive(Default)]
struct MapState {
    generation: u64,
    through: u64,
    ahead: BTreeSet<u64>,
    is_changed: bool,
}

/// What became of a message.
pub(crate) struct Admitted {
    /// What chitchat gets.
    pub(crate) exchange: Exchange,
    /// What was left out, by reason.
    pub(crate) refused: BTreeMap<&'static str, u64>,
}

/// Judges `exchange`, as the node whose own map is `own`.
pub(crate) fn admit(exchange: Exchange, own: &MapId, judge: &mut impl Judge, maps: &mut Maps) -> Admitted {
    let mut refused = BTreeMap::new();
    let mut refuse = |reason: &'static str| *refused.entry(reason).or_insert(0) += 1;
    let mut delta = Vec::new();
    for map in exchange.delta {
        match admit_map(map, own, judge, maps, &mut refuse) {
            Ok(passed) => delta.extend(passed.filter(|map| !map.values.is_empty())),
            Err(reason) => refuse(reason),
        }
    }
    let mut lives: BTreeMap<u64, usize> = BTreeMap::new();
    let admit = |mut entry: Entry| match admit_entry(&entry, own, judge) {
        Ok(is_talker) => {
            if is_talker {
                // Who is alive, leases say.
                entry.heartbeat = 0;
            } else {
                let lives = lives.entry(entry.map.owner).or_default();
                *lives += 1;
                if *lives > LIVES_MAX {
                    refuse("too_many_lives");
                    return None;
                }
            }
            Some(entry)
        }
        Err(reason) => {
            refuse(reason);
            None
        }
    };
    let digest = exchange.digest.into_iter().filter_map(admit).collect();
    Admitted { exchange: Exchange { digest, delta, ..exchange }, refused }
}

/// Whether the entry is of a member of this version.
fn admit_entry(entry: &Entry, own: &MapId, judge: &impl Judge) -> Result<bool, &'static str> {
    if entry.map.owner == own.owner {
        return if entry.map == *own { Ok(true) } else { Err("another_life") };
    }
    let owner = judge.owner(entry.map.owner).ok_or("unknown_owner")?;
    if owner.is_talker && !is_its_map(&entry.map, &owner) {
        return Err("another_life");
    }
    Ok(owner.is_talker)
}

fn is_its_map(map: &MapId, owner: &MapOwner) -> bool {
    map.generation == owner.incarnation && owner.addresses.first() == Some(&map.address)
}

/// What chitchat gets of the map, if anything.
fn admit_map(
    mut map: MapDelta,
    own: &MapId,
    judge: &mut impl Judge,
    maps: &mut Maps,
    refuse: &mut impl FnMut(&'static str),
) -> Result<Option<MapDelta>, &'static str> {
    if map.map.owner == own.owner && map.map.generation <= own.generation {
        return Err("own_map");
    }
    map.values.retain(|value| value.status == 0 && is_key(&value.key));
    if map.values.len() > KEYS_MAX {
        return Err("too_many_keys");
    }
    // An owner's node record makes its others readable.
    for node in map.values.iter().filter(|value| value.key == NODE_KEY) {
        judge.offer(&map.map, node);
    }
    if map.map.owner == own.owner {
        // A later life of this node, signed with its key: it has to speak above it.
        return Err("own_map");
    }
    let owner = judge.owner(map.map.owner).ok_or("unknown_owner")?;
    if owner.is_talker && !is_its_map(&map.map, &owner) {
        return Err("another_life");
    }
    if !owner.is_present {
        return Err("departed");
    }
    let judged: Vec<bool> = map.values.iter().map(|value| judge.offer(&map.map, value)).collect();
    judged.iter().filter(|is_good| !**is_good).for_each(|_| refuse("value"));
    if !owner.is_talker {
        return Ok(Some(map));
    }
    let good = map.values.iter().zip(&judged).take_while(|(_, is_good)| **is_good);
    if let Some(last) = good.map(|(value, _)| value.version).last() {
        maps.handle_run(map.map.owner, owner.incarnation, map.after, last);
    }
    Ok(None)
}

fn is_key(key: &str) -> bool {
    key == NODE_KEY || key == LEASE_KEY || key.starts_with(INSTANCE_PREFIX)
}

impl Maps {
    /// All of `owner`'s map that follows `after` is known up to `through`.
    pub(crate) fn handle_run(&mut self, owner: u64, generation: u64, after: u64, through: u64) {
        let map = self.of(owner, generation);
        if after <= map.through && through > map.through {
            map.advance(through);
        }
    }

    /// The record of that version is known.
    pub(crate) fn handle_record(&mut self, owner: u64, generation: u64, version: u64) {
        let map = self.of(owner, generation);
        if version <= map.through {
            return;
        }
        if version.saturating_sub(VERSIONS_PER_RECORD) <= map.through {
            map.advance(version);
        } else if map.ahead.len() < AHEAD_MAX {
            map.ahead.insert(version);
        }
    }

    /// Those whose maps chitchat has not been given as they are now: owner, generation, through which version.
    pub(crate) fn take_changed(&mut self) -> Vec<(u64, u64, u64)> {
        let take = |(owner, map): (&u64, &mut MapState)| {
            std::mem::take(&mut map.is_changed).then_some((*owner, map.generation, map.through))
        };
        self.0.iter_mut().filter_map(take).collect()
    }

    /// chitchat begins anew, and has none of them.
    pub(crate) fn mark_all(&mut self) {
        self.0.values_mut().for_each(|map| map.is_changed = map.through > 0);
    }

    /// chitchat lacks something of `owner`'s.
    pub(crate) fn mark(&mut self, owner: u64) {
        if let Some(map) = self.0.get_mut(&owner) {
            map.is_changed = map.through > 0;
        }
    }

    /// Forgets those that `keep` does not hold for.
    pub(crate) fn retain(&mut self, keep: impl Fn(u64) -> bool) {
        self.0.retain(|owner, _| keep(*owner));
    }

    fn of(&mut self, owner: u64, generation: u64) -> &mut MapState {
        let map = self.0.entry(owner).or_default();
        if map.generation != generation {
            *map = MapState { generation, ..MapState::default() };
        }
        map
    }
}

impl MapState {
    fn advance(&mut self, through: u64) {
        self.through = through;
        self.is_changed = true;
        while let Some(next) = self.ahead.first().copied() {
            if next.saturating_sub(VERSIONS_PER_RECORD) > self.through {
                break;
            }
            self.ahead.pop_first();
            self.through = self.through.max(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Step;

    const STEP: u64 = VERSIONS_PER_RECORD;

    struct Known(BTreeMap<u64, MapOwner>);

    impl Judge for Known {
        fn owner(&self, owner: u64) -> Option<MapOwner> {
            self.0.get(&owner).cloned()
        }

        fn offer(&mut self, map: &MapId, value: &Value) -> bool {
            if value.key == NODE_KEY && value.text == "introduces" {
                self.0.insert(map.owner, talker());
            }
            value.text != "forged"
        }
    }

    fn address() -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 9], 7400))
    }

    fn talker() -> MapOwner {
        MapOwner { is_talker: true, incarnation: 7, addresses: vec![address()], is_present: true }
    }

    fn map(owner: u64) -> MapId {
        MapId { owner, generation: 7, address: address() }
    }

    fn value(key: &str, text: &str, record: u64) -> Value {
        Value { key: key.to_owned(), text: text.to_owned(), version: record * STEP, status: 0 }
    }

    fn said(owner: u64, after: u64, values: Vec<Value>) -> Exchange {
        let delta = vec![MapDelta { map: map(owner), after: after * STEP, values }];
        Exchange { step: Step::Ack, cluster: String::new(), digest: Vec::new(), delta }
    }

    fn known() -> Known {
        let old = MapOwner { is_talker: false, ..talker() };
        let gone = MapOwner { is_present: false, ..talker() };
        Known([(1, talker()), (2, old), (3, gone)].into())
    }

    fn judged(exchange: Exchange, maps: &mut Maps) -> Admitted {
        admit(exchange, &map(9), &mut known(), maps)
    }

    #[test]
    fn a_map_goes_on_only_without_a_gap_and_up_to_the_first_forgery() {
        let mut maps = Maps::default();
        let values = vec![value("n", "good", 1), value("i/a", "good", 2), value("i/b", "forged", 3)];
        let admitted = judged(said(1, 0, values), &mut maps);
        assert!(admitted.exchange.delta.is_empty() && admitted.refused == [("value", 1)].into());
        assert_eq!(maps.take_changed(), [(1, 7, 2 * STEP)]);
        judged(said(1, 5, vec![value("i/a", "good", 6)]), &mut maps);
        assert!(maps.take_changed().is_empty(), "what lies between is lacking");
        judged(said(1, 2, vec![value("i/a", "good", 6)]), &mut maps);
        assert_eq!(maps.take_changed(), [(1, 7, 6 * STEP)]);
    }

    #[test]
    fn records_that_come_as_news_join_up() {
        let mut maps = Maps::default();
        for record in [2, 4, 1] {
            maps.handle_record(1, 7, record * STEP);
        }
        assert_eq!(maps.take_changed(), [(1, 7, 2 * STEP)]);
        maps.handle_record(1, 7, 3 * STEP);
        assert_eq!(maps.take_changed(), [(1, 7, 4 * STEP)]);
        maps.handle_record(1, 8, STEP);
        assert_eq!(maps.take_changed(), [(1, 8, STEP)], "another life begins anew");
    }

    #[test]
    fn nobody_is_created_by_being_named() {
        let mut maps = Maps::default();
        let refused = |exchange, maps: &mut Maps| judged(exchange, maps).refused;
        assert_eq!(
            refused(said(5, 0, vec![value("n", "forged", 1)]), &mut maps),
            [("unknown_owner", 1)].into()
        );
        assert!(refused(said(6, 0, vec![value("n", "introduces", 1)]), &mut maps).is_empty());
        assert_eq!(refused(said(9, 0, vec![value("n", "good", 1)]), &mut maps), [("own_map", 1)].into());
        assert_eq!(refused(said(3, 0, vec![value("n", "good", 1)]), &mut maps), [("departed", 1)].into());
        let entry = |map: MapId| Entry { map, heartbeat: 900, cleared: 0, newest: 5 };
        let other_life = MapId { generation: 8, ..map(1) };
        let digest = [map(1), map(2), map(5), map(9), other_life].map(entry).to_vec();
        let exchange = Exchange { step: Step::Syn, cluster: "acme".to_owned(), digest, delta: Vec::new() };
        let admitted = judged(exchange, &mut maps);
        let left: Vec<_> =
            admitted.exchange.digest.iter().map(|entry| (entry.map.owner, entry.heartbeat)).collect();
        assert_eq!(left, [(1, 0), (2, 900), (9, 0)]);
        assert_eq!(admitted.refused, [("unknown_owner", 1), ("another_life", 1)].into());
    }

    #[test]
    fn maps_of_the_version_before_are_handed_on() {
        let mut maps = Maps::default();
        let values = vec![value("n", "good", 1), value("x", "good", 2), value("l", "good", 3)];
        let admitted = judged(said(2, 0, values), &mut maps);
        let keys = admitted.exchange.delta[0].values.iter().map(|value| value.key.as_str());
        assert_eq!(keys.collect::<Vec<_>>(), ["n", "l"]);
    }
}
