//! How a rumour, and a renewal, get from one node to all others.
//!
//! Nodes tell neighbours, whom they chose by chance; what each tells is a datagram, which may be lost. A rumour goes on
//! at once, in a few rounds; a renewal with the next talk. Who was missed by all is late, not left out: digests
//! differ, and whoever misses a renewal asks for it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _, index};
use starling_gossip::handle::News;
use starling_gossip::link::Delivery;

use crate::network::fate::travel;
use crate::scenario::Conditions;

use starling_gossip::neighbours::NEIGHBOURS;
use starling_gossip::renewing::TALK_PEERS;

use super::{ASKED_AFTER, REPAIRED_AFTER, Settings, TALK_PERIOD};

/// Microseconds since somebody spoke.
pub(super) type Micros = u64;

/// Nodes and whom they tell.
pub(super) struct Mesh<'a> {
    settings: &'a Settings,
    conditions: Conditions,
    /// By node, so many for each.
    neighbours: Vec<u32>,
    degree: usize,
}

/// What is yet to happen, by time.
type Queue = BinaryHeap<Reverse<(Micros, Event)>>;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A node hears it.
    Heard(u32),
    /// A node that has heard a renewal talks.
    Talk(u32),
    /// A node that has missed a renewal asks for it.
    Ask(u32),
}

impl<'a> Mesh<'a> {
    /// Neighbours by chance.
    pub(super) fn new(settings: &'a Settings, rng: &mut StdRng) -> Self {
        let others = settings.nodes - 1;
        let degree = NEIGHBOURS.min(others);
        let mut neighbours = Vec::with_capacity(settings.nodes * degree);
        for node in 0..settings.nodes {
            let chosen = index::sample(rng, others, degree).into_iter();
            neighbours.extend(chosen.map(|other| (other + usize::from(other >= node)) as u32));
        }
        Self { settings, conditions: settings.path.conditions(), neighbours, degree }
    }

    /// How many nodes.
    pub(super) fn nodes(&self) -> usize {
        self.settings.nodes
    }

    /// When each node hears a rumour of `origin`'s; `down` hears nothing and tells nobody.
    pub(super) fn rumour(&self, origin: usize, down: Option<usize>, rng: &mut StdRng) -> Vec<Micros> {
        let News { told, rounds, period } = News::default();
        let mut heard: Vec<Option<Micros>> = vec![None; self.nodes()];
        let mut queue = Queue::from([Reverse((0, Event::Heard(origin as u32)))]);
        while let Some(Reverse((now, Event::Heard(node)))) = queue.pop() {
            if heard[node as usize].is_some() || down == Some(node as usize) {
                continue;
            }
            heard[node as usize] = Some(now);
            let mut neighbours = self.neighbours_of(node).to_vec();
            neighbours.shuffle(rng);
            for (round, told) in neighbours.chunks(told).take(rounds as usize).enumerate() {
                let now = now + micros(period) * round as Micros;
                told.iter().for_each(|to| self.tell(*to, now, &mut queue, rng));
            }
        }
        let missed = |heard: Option<Micros>| {
            let differing = rng.random_range(0..micros(TALK_PERIOD));
            let exchange = micros(self.settings.path.rtt) * 3 / 2;
            heard.unwrap_or(micros(REPAIRED_AFTER) + differing + exchange)
        };
        heard.into_iter().map(missed).collect()
    }

    /// When each node hears a renewal of `owner`'s, and when the owner first talked of it.
    pub(super) fn renewal(&self, owner: usize, rng: &mut StdRng) -> (Vec<Micros>, Micros) {
        let (talk, renew) = (micros(TALK_PERIOD), micros(self.settings.renew));
        // By node: when in a second it talks.
        let phases: Vec<Micros> = (0..self.nodes()).map(|_| rng.random_range(0..talk)).collect();
        let next_talk = |node: u32, now: Micros| {
            let phase = phases[node as usize];
            phase + now.saturating_sub(phase).div_ceil(talk) * talk
        };
        let mut heard: Vec<Option<Micros>> = vec![None; self.nodes()];
        let mut queue = Queue::from([Reverse((0, Event::Heard(owner as u32)))]);
        let missed_at = (self.settings.renew.mul_f64(ASKED_AFTER - 1.0)).as_micros() as Micros;
        queue.extend(
            (0..self.nodes() as u32).map(|node| Reverse((next_talk(node, missed_at), Event::Ask(node)))),
        );
        while let Some(Reverse((now, event))) = queue.pop() {
            match event {
                Event::Heard(node) if heard[node as usize].is_none() => {
                    heard[node as usize] = Some(now);
                    queue.push(Reverse((next_talk(node, now), Event::Talk(node))));
                }
                Event::Talk(node) => {
                    let told = self.neighbours_of(node).choose_multiple(rng, TALK_PEERS);
                    told.for_each(|to| self.tell(*to, now, &mut queue, rng));
                }
                Event::Ask(node) if heard[node as usize].is_none() && now < renew => {
                    queue.push(Reverse((now + talk, Event::Ask(node))));
                    let asked = self.neighbours_of(node).choose(rng).copied();
                    let question = self.travels(rng);
                    let knows = asked.filter(|asked| heard[*asked as usize].is_some());
                    if let (Some(_), Some(there)) = (knows, question) {
                        self.tell(node, now + there, &mut queue, rng);
                    }
                }
                _ => {}
            }
        }
        // Who has it by no means has the next one.
        let heard = heard.into_iter().map(|heard| heard.unwrap_or(renew)).collect();
        (heard, phases[owner])
    }

    fn neighbours_of(&self, node: u32) -> &[u32] {
        &self.neighbours[node as usize * self.degree..][..self.degree]
    }

    fn tell(&self, to: u32, now: Micros, queue: &mut Queue, rng: &mut StdRng) {
        queue.extend(self.travels(rng).map(|took| Reverse((now + took, Event::Heard(to)))));
    }

    /// How long one datagram takes, if it arrives.
    fn travels(&self, rng: &mut StdRng) -> Option<Micros> {
        travel(&self.conditions, self.conditions.loss, 0, Delivery::Once, rng).map(micros)
    }
}

/// As microseconds.
pub(super) fn micros(duration: Duration) -> Micros {
    duration.as_micros() as Micros
}
