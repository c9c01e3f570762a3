//! STATE MACHINE: the few members that this node gossips with.
//!
//! A mesh in which everybody talks to everybody has as many connections as pairs. So each node chooses a dozen
//! by chance, half of them near, and exchanges one now and then; with those that chose it, that is some two
//! dozen connections whatever the mesh's size, and news still doubles its hearers with each step, for a graph
//! of random choices is an expander.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use rand::Rng;
use rand::seq::{IteratorRandom as _, SliceRandom as _};

use crate::clock::Instant;
use crate::identity::SpiffeId;

/// How many a node chooses.
pub const NEIGHBOURS: usize = 12;

/// How many of them are near, if there are as many.
const NEAR: usize = NEIGHBOURS / 2;

/// How often one is exchanged for another.
const CHANGE_PERIOD: Duration = Duration::from_secs(30);

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
    chosen: Vec<u64>,
    next_change: Instant,
}

impl Neighbours {
    /// Of at most `connections_max` connections, others choose as many as this node does, and watchers need some.
    pub(crate) fn new(connections_max: usize, now: Instant) -> Self {
        let count = (connections_max / 4).clamp(2, NEIGHBOURS);
        Self { count, chosen: Vec::new(), next_change: now + CHANGE_PERIOD }
    }

    /// Lets go of those that are gone or doubted, and chooses others in their places.
    pub(crate) fn choose(&mut self, peers: &BTreeMap<u64, Peer>, now: Instant, rng: &mut impl Rng) {
        let is_good = |peer: &&Peer| peer.is_talker && peer.is_alive;
        self.chosen.retain(|name| peers.get(name).as_ref().is_some_and(is_good));
        if now >= self.next_change {
            self.next_change = now + CHANGE_PERIOD;
            if self.chosen.len() >= self.count {
                self.chosen.swap_remove(rng.random_range(0..self.chosen.len()));
            }
        }
        let Some(lacking) = self.count.checked_sub(self.chosen.len()).filter(|lacking| *lacking > 0) else {
            return;
        };
        let nearest = peers.values().filter(is_good).map(|peer| peer.distance).min();
        let near_held =
            self.chosen.iter().filter(|name| peers.get(name).map(|it| it.distance) == nearest).count();
        let near_lacking = NEAR.saturating_sub(near_held).min(lacking);
        let open = |chosen: &[u64], name: &u64, peer: &Peer| is_good(&peer) && !chosen.contains(name);
        let near = peers
            .iter()
            .filter(|(name, peer)| open(&self.chosen, name, peer) && Some(peer.distance) == nearest);
        let near: Vec<u64> = near.map(|(name, _)| *name).choose_multiple(rng, near_lacking);
        self.chosen.extend(near);
        let lacking = self.count - self.chosen.len();
        let any = peers.iter().filter(|(name, peer)| open(&self.chosen, name, peer));
        let any: Vec<u64> = any.map(|(name, _)| *name).choose_multiple(rng, lacking);
        self.chosen.extend(any);
    }

    /// Whether there is nobody.
    pub(crate) fn is_empty(&self) -> bool {
        self.chosen.is_empty()
    }

    /// `count` of them, by chance.
    pub(crate) fn some(&self, count: usize, rng: &mut impl Rng) -> Vec<u64> {
        let mut some = self.chosen.clone();
        let (some, _) = some.partial_shuffle(rng, count);
        some.to_vec()
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
        let mut neighbours = Neighbours::new(64, now);
        neighbours.choose(&all, now, &mut rng);
        let near = neighbours.chosen.iter().filter(|name| all[name].distance == 0).count();
        assert_eq!(neighbours.chosen.len(), NEIGHBOURS);
        assert!(near >= NEAR, "{near}");
        let doubted = neighbours.chosen[3];
        all.get_mut(&doubted).expect("there").is_alive = false;
        neighbours.choose(&all, now, &mut rng);
        assert!(!neighbours.chosen.contains(&doubted) && neighbours.chosen.len() == NEIGHBOURS);
        let before = neighbours.chosen.clone();
        neighbours.choose(&all, now + CHANGE_PERIOD, &mut rng);
        let kept = before.iter().filter(|name| neighbours.chosen.contains(name)).count();
        assert!((NEIGHBOURS - 1..=NEIGHBOURS).contains(&kept), "{kept}");
    }

    #[test]
    fn a_small_mesh_is_all_neighbours() {
        let (all, now) = (peers(5), Instant::now());
        let mut rng = StdRng::seed_from_u64(1);
        let mut neighbours = Neighbours::new(64, now);
        neighbours.choose(&all, now, &mut rng);
        neighbours.chosen.sort_unstable();
        assert_eq!(neighbours.chosen, [0, 1, 2, 3, 4]);
        assert_eq!(neighbours.some(3, &mut rng).len(), 3);
        assert_eq!(neighbours.some(9, &mut rng).len(), 5);
    }
}
