//! STATE MACHINE: the few members that this node gossips with.
//!
//! A mesh in which everybody talks to everybody has as many connections as pairs. So each node chooses a dozen, half
//! of them near, by a draw of its own in which all members take part whenever they came; and talks to those who have
//! chosen it too, so that nobody is left out by chance. That is some two dozen connections whatever the mesh's
//! size, and news still multiplies with each step, for a graph of random choices is an expander. Now and then one is
//! exchanged for another. Most are such as have spoken to this node themselves: one key can sign a hundred names, and
//! what is told to nobody reaches nobody.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use rand::Rng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};

use crate::clock::Instant;
use crate::identity::SpiffeId;
use crate::watching::place;

/// How many a node chooses.
pub const NEIGHBOURS: usize = 12;

/// How often one is exchanged for another: a new connection costs both ends some kilobytes.
pub const CHANGE_PERIOD: Duration = Duration::from_secs(120);

/// How many of the last that were exchanged are not chosen again.
const PASSED_OVER: usize = 4;

/// Who has chosen this node says so with each talk; who has not for so long has chosen somebody else.
const CHOSEN_LASTS: Duration = Duration::from_secs(30);

/// Choosers that are talked to: by chance a dozen choose one node, hardly ever twice as many.
const CHOOSERS_MAX: usize = 2 * NEIGHBOURS;

/// One in so many of the chosen may be somebody that this node has never heard: newcomers, which answer soon.
const UNHEARD_ONE_IN: usize = 4;

/// Somebody to talk to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Who must answer there.
    pub(crate) identity: SpiffeId,
    /// How far it stands: 0 near to 3 far.
    pub(crate) distance: u8,
    /// It speaks as this program does, and not as the one before.
    pub(crate) is_talker: bool,
    /// It is not doubted.
    pub(crate) is_alive: bool,
}

/// See the module.
pub(crate) struct Neighbours {
    count: usize,
    /// This node's own draw: whose mixture with it is least comes first.
    salt: u64,
    chosen: Vec<u64>,
    /// Those that were exchanged, and are not chosen again for a while.
    passed_over: VecDeque<u64>,
    /// Who has spoken to this node, ever: somebody is there.
    heard: BTreeSet<u64>,
    /// Who has chosen this node, and when it last said so.
    choosers: BTreeMap<u64, Instant>,
    next_change: Instant,
}

impl Neighbours {
    /// Of at most `connections_max` connections, others choose as many as this node does, and watchers need some.
    pub(crate) fn new(connections_max: usize, salt: u64, now: Instant) -> Self {
        let count = (connections_max / 4).clamp(2, NEIGHBOURS);
        Self {
            count,
            salt,
            chosen: Vec::new(),
            passed_over: VecDeque::new(),
            heard: BTreeSet::new(),
            choosers: BTreeMap::new(),
            next_change: now + CHANGE_PERIOD,
        }
    }

    /// Draws among `peers` anew: those that are gone or doubted are out, newcomers are in.
    pub(crate) fn choose(&mut self, peers: &BTreeMap<u64, Peer>, now: Instant, rng: &mut impl Rng) {
        if now >= self.next_change {
            self.next_change = now + CHANGE_PERIOD;
            if let Some(exchanged) = self.chosen.choose(rng) {
                self.passed_over.push_back(*exchanged);
            }
            if self.passed_over.len() > PASSED_OVER {
                self.passed_over.pop_front();
            }
        }
        let good = peers.iter().filter(|(_, peer)| peer.is_talker && peer.is_alive);
        let mut drawn: Vec<(u64, u64, u8)> =
            good.map(|(name, peer)| (place(*name, self.salt), *name, peer.distance)).collect();
        drawn.sort_unstable();
        let has_others = drawn.len() > self.count + PASSED_OVER;
        drawn.retain(|(_, name, _)| !has_others || !self.passed_over.contains(name));
        let nearest = drawn.iter().map(|(_, _, distance)| *distance).min();
        let near =
            drawn.iter().filter(|(_, _, distance)| Some(*distance) == nearest).map(|(_, name, _)| *name);
        let all = drawn.iter().map(|(_, name, _)| *name);
        let unheard_max = self.count / UNHEARD_ONE_IN;
        self.chosen.clear();
        self.take(near.clone(), self.count / 2, unheard_max);
        self.take(all.clone(), self.count, unheard_max);
        // There are no others.
        self.take(near, self.count / 2, self.count);
        self.take(all, self.count, self.count);
        let is_there = |name: &u64| peers.get(name).is_some_and(|peer| peer.is_talker);
        self.heard.retain(is_there);
        self.choosers.retain(|name, at| now < *at + CHOSEN_LASTS && is_there(name));
    }

    /// Chooses the first of `drawn` until there are `count`, at most `unheard_max` of whom were never heard.
    fn take(&mut self, drawn: impl Iterator<Item = u64>, count: usize, unheard_max: usize) {
        let mut unheard = self.chosen.iter().filter(|name| !self.heard.contains(name)).count();
        for name in drawn {
            if self.chosen.len() >= count {
                return;
            }
            let is_heard = self.heard.contains(&name);
            if !self.chosen.contains(&name) && (is_heard || unheard < unheard_max) {
                self.chosen.push(name);
                unheard += usize::from(!is_heard);
            }
        }
    }

    /// `peer`, which is present, has spoken to this node.
    pub(crate) fn handle_heard(&mut self, peer: u64) {
        self.heard.insert(peer);
    }

    /// `peer` says that it has chosen this node.
    pub(crate) fn handle_chosen(&mut self, peer: u64, now: Instant) {
        if self.choosers.len() < CHOOSERS_MAX || self.choosers.contains_key(&peer) {
            self.choosers.insert(peer, now);
        }
    }

    /// Whether this node has chosen `peer`.
    pub(crate) fn has_chosen(&self, peer: u64) -> bool {
        self.chosen.contains(&peer)
    }

    /// Whether there is nobody.
    pub(crate) fn is_empty(&self) -> bool {
        self.chosen.is_empty() && self.choosers.is_empty()
    }

    /// `count` of those chosen and those who chose, by chance.
    pub(crate) fn some(&self, count: usize, rng: &mut impl Rng) -> Vec<u64> {
        let mut all: Vec<u64> = self.all().collect();
        let (some, _) = all.partial_shuffle(rng, count);
        some.to_vec()
    }

    /// All of them, in an order of chance.
    pub(crate) fn shuffled(&self, rng: &mut impl Rng) -> Vec<u64> {
        let mut all: Vec<u64> = self.all().collect();
        all.shuffle(rng);
        all
    }

    fn all(&self) -> impl Iterator<Item = u64> {
        let choosers = self.choosers.keys().copied().filter(|name| !self.has_chosen(*name));
        self.chosen.iter().copied().chain(choosers)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    fn peers(count: u64) -> BTreeMap<u64, Peer> {
        let peer = |name: u64| Peer {
            address: SocketAddr::from(([10, 0, (name / 256) as u8, name as u8], 7400)),
            identity: format!("spiffe://acme/svc/svc-{name}").parse().expect("an identity"),
            distance: if name.is_multiple_of(3) { 0 } else { 3 },
            is_talker: true,
            is_alive: true,
        };
        (0..count).map(|name| (name, peer(name))).collect()
    }

    #[test]
    fn half_are_near_and_the_doubted_are_replaced() {
        let (mut all, now) = (peers(300), Instant::now());
        let mut rng = StdRng::seed_from_u64(1);
        let mut neighbours = Neighbours::new(64, 7, now);
        neighbours.choose(&all, now, &mut rng);
        let near = neighbours.chosen.iter().filter(|name| all[name].distance == 0).count();
        assert_eq!(neighbours.chosen.len(), NEIGHBOURS);
        assert!(near >= NEIGHBOURS / 2, "{near}");
        let doubted = neighbours.chosen[3];
        all.get_mut(&doubted).expect("there").is_alive = false;
        neighbours.choose(&all, now, &mut rng);
        assert!(!neighbours.has_chosen(doubted) && neighbours.chosen.len() == NEIGHBOURS);
        let before = neighbours.chosen.clone();
        neighbours.choose(&all, now + CHANGE_PERIOD, &mut rng);
        let kept = before.iter().filter(|name| neighbours.has_chosen(**name)).count();
        assert_eq!(kept, NEIGHBOURS - 1);
    }

    #[test]
    fn who_never_speaks_takes_a_few_places_while_others_do() {
        let (all, now) = (peers(111), Instant::now());
        let mut rng = StdRng::seed_from_u64(1);
        let mut neighbours = Neighbours::new(64, 7, now);
        (0..11).for_each(|name| neighbours.handle_heard(name));
        neighbours.choose(&all, now, &mut rng);
        let unheard = neighbours.chosen.iter().filter(|name| **name >= 11).count();
        assert_eq!((neighbours.chosen.len(), unheard), (NEIGHBOURS, NEIGHBOURS / UNHEARD_ONE_IN));
        // Newcomers that answer make room for the next, until all are as the draw has it.
        let mut other = Neighbours::new(64, 7, now);
        other.choose(&all, now, &mut rng);
        for _ in 0..NEIGHBOURS {
            neighbours.chosen.clone().into_iter().for_each(|name| neighbours.handle_heard(name));
            neighbours.choose(&all, now, &mut rng);
        }
        assert_eq!(neighbours.chosen, other.chosen);
    }

    #[test]
    fn whoever_comes_last_is_chosen_as_often() {
        let (all, now) = (peers(200), Instant::now());
        let mut rng = StdRng::seed_from_u64(1);
        let mut times = BTreeMap::new();
        for salt in 0..200_u64 {
            let mut neighbours = Neighbours::new(64, place(salt, 1), now);
            // They come one after the other.
            for count in [3, 20, 100, 200] {
                let known = all.iter().take(count).map(|(name, peer)| (*name, peer.clone())).collect();
                neighbours.choose(&known, now, &mut rng);
            }
            neighbours.chosen.iter().for_each(|name| *times.entry(*name).or_insert(0) += 1);
        }
        let late: i32 = times.iter().filter(|(name, _)| **name >= 100).map(|(_, times)| *times).sum();
        assert!((1_100..1_300).contains(&late), "{late} of 2400 choices fell on the second half");
    }

    #[test]
    fn who_chooses_is_talked_to_while_it_says_so() {
        let (all, now) = (peers(100), Instant::now());
        let mut rng = StdRng::seed_from_u64(1);
        let mut neighbours = Neighbours::new(64, 7, now);
        neighbours.choose(&all, now, &mut rng);
        let chooser = all.keys().copied().find(|name| !neighbours.has_chosen(*name)).expect("most are not");
        neighbours.handle_chosen(chooser, now);
        assert!(neighbours.some(100, &mut rng).contains(&chooser));
        neighbours.choose(&all, now + CHOSEN_LASTS, &mut rng);
        assert!(!neighbours.some(100, &mut rng).contains(&chooser));
    }

    #[test]
    fn a_small_mesh_is_all_neighbours() {
        let (all, now) = (peers(5), Instant::now());
        let mut rng = StdRng::seed_from_u64(1);
        let mut neighbours = Neighbours::new(64, 7, now);
        neighbours.choose(&all, now, &mut rng);
        neighbours.chosen.sort_unstable();
        assert_eq!(neighbours.chosen, [0, 1, 2, 3, 4]);
        assert_eq!(neighbours.some(3, &mut rng).len(), 3);
        assert_eq!(neighbours.some(9, &mut rng).len(), 5);
    }
}
