//! The exchange itself: who sends what to whom, and which version each node then holds.
//!
//! One owner, any of the nodes, gives its map new versions; the rest is events in the order of time. A change is news, which whoever learns it tells on; a renewal is not.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::index;
use starling_gossip::handle::News;
use starling_gossip::run::{SEED_PERIOD, TOLD_AT_ONCE};

use crate::network::fate::travel;
use crate::scenario::Conditions;

use super::cost::{Traffic, ack_bytes, exchange_bytes};
use super::{PEERS_PER_ROUND, SEEDS, Settings};

/// Rounds within which everything must be known everywhere: several times what was ever seen, so
/// that a broken model ends.
const ROUNDS_MAX: u32 = 200;

/// Renewals before the one a crash follows, so that each node has heard some.
const RENEWALS_BEFORE: u32 = 2;

/// Microseconds since the start.
type Micros = u64;

/// What was to become known did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the model found no end within {0:?}; this is a defect of the model")]
pub struct NotWithin(Duration);

/// What came of a crash, microseconds.
pub(super) struct Crash {
    /// When each other node heard of the owner for the last time, from the crash on.
    pub(super) last_heard: Vec<i64>,
    /// What renewals took to each node.
    pub(super) renewals_took: Vec<i64>,
    /// How old the newest renewal of each node was at the crash.
    pub(super) ages: Vec<i64>,
    /// What was sent before.
    pub(super) traffic: Traffic,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The next regular round of a node.
    Round(u32),
    /// The next time that a node asks a seed.
    Seed(u32),
    /// A message arrives; it says which version its sender held.
    Message { kind: Kind, from: u32, to: u32, version: u32 },
    /// The owner gives its map another version.
    Speak,
    /// The owner goes down.
    Crash,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Syn,
    SynAck,
    Ack,
}

/// One owner's map in everybody's hands.
pub(super) struct Epidemic<'a> {
    settings: &'a Settings,
    rng: &'a mut StdRng,
    now: Micros,
    /// By time; the number keeps those of one moment in their order.
    queue: BinaryHeap<Reverse<(Micros, u64, Event)>>,
    sequence: u64,
    /// Whose map it is.
    owner: usize,
    /// By node: the version it holds.
    held: Vec<u32>,
    /// By node: since when.
    since: Vec<Micros>,
    /// The newest version that any node but the owner holds, and how many do.
    newest: (u32, usize),
    /// The version that is news, if one is.
    news: Option<u32>,
    /// By version: when the owner spoke.
    spoken: Vec<Micros>,
    renewals_took: Vec<i64>,
    owner_is_up: bool,
    /// The owner's messages that have not arrived.
    owners_on_the_way: usize,
    traffic: Traffic,
    digest_bytes: usize,
    conditions: Conditions,
    /// Of pairs that have to connect before they can talk.
    cold_share: f64,
}

impl<'a> Epidemic<'a> {
    /// A mesh in calm: all hold version 0.
    pub(super) fn new(settings: &'a Settings, rng: &'a mut StdRng) -> Self {
        let nodes = settings.nodes;
        let owner = rng.random_range(0..nodes);
        let mut this = Self {
            settings,
            rng,
            owner,
            now: 0,
            queue: BinaryHeap::with_capacity(nodes * 4),
            sequence: 0,
            held: vec![0; nodes],
            since: vec![0; nodes],
            newest: (0, nodes - 1),
            news: None,
            spoken: vec![0],
            renewals_took: Vec::new(),
            owner_is_up: true,
            owners_on_the_way: 0,
            traffic: Traffic::default(),
            digest_bytes: exchange_bytes(nodes),
            conditions: settings.path.conditions(),
            cold_share: settings.cold_share(),
        };
        for node in 0..nodes as u32 {
            let (round, seed) = (this.within(settings.interval), this.within(SEED_PERIOD));
            this.put(round, Event::Round(node));
            this.put(seed, Event::Seed(node));
        }
        this
    }

    /// What a change takes to each other node, microseconds.
    pub(super) fn change(mut self) -> Result<Vec<i64>, NotWithin> {
        // One round first, so that exchanges are under way.
        let at = self.settings.interval.as_micros() as Micros;
        self.news = Some(1);
        self.put(at, Event::Speak);
        self.run_until(|this| this.newest == (1, this.held.len() - 1))?;
        Ok(self.of_others(&self.since, |since| (since - at) as i64))
    }

    /// Renewals, and a crash at any moment between two.
    pub(super) fn crash(mut self) -> Result<Crash, NotWithin> {
        let renew = self.settings.renew.as_micros() as Micros;
        let first = self.within(self.settings.renew);
        let rounds = self.settings.interval.as_micros() as Micros * u64::from(RENEWALS_BEFORE);
        let before = u64::from(RENEWALS_BEFORE).max(rounds.div_ceil(renew));
        for nth in 0..=before {
            self.put(first + nth * renew, Event::Speak);
        }
        let crashed_at = first + before * renew + self.within(self.settings.renew);
        self.put(crashed_at, Event::Crash);
        self.run_until(|this| !this.owner_is_up)?;
        let traffic = Traffic { time: Duration::from_micros(crashed_at), ..self.traffic };
        let ages = self.of_others(&self.held, |held| (crashed_at - self.spoken[held as usize]) as i64);
        self.run_until(|this| this.owners_on_the_way == 0 && this.newest.1 == this.held.len() - 1)?;
        Ok(Crash {
            last_heard: self.of_others(&self.since, |since| since as i64 - crashed_at as i64),
            renewals_took: self.renewals_took,
            ages,
            traffic,
        })
    }

    fn of_others<T: Copy>(&self, all: &[T], measure: impl Fn(T) -> i64) -> Vec<i64> {
        let others = all.iter().enumerate().filter(|(node, _)| *node != self.owner);
        others.map(|(_, value)| measure(*value)).collect()
    }

    fn run_until(&mut self, is_reached: impl Fn(&Self) -> bool) -> Result<(), NotWithin> {
        let limit = self.settings.interval * ROUNDS_MAX + self.settings.renew * ROUNDS_MAX;
        while !is_reached(self) {
            let Some(Reverse((at, _, event))) = self.queue.pop() else { return Err(NotWithin(limit)) };
            if u128::from(at) > limit.as_micros() {
                return Err(NotWithin(limit));
            }
            self.now = at;
            self.handle(event);
        }
        Ok(())
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Round(node) => {
                self.tell(node, PEERS_PER_ROUND);
                self.put(self.settings.interval.as_micros() as Micros, Event::Round(node));
            }
            Event::Seed(node) => {
                // The first hosts are the seeds; one that draws itself asks nobody, rarely enough.
                let seed = self.rng.random_range(0..SEEDS) as u32;
                if seed != node {
                    self.send(Kind::Syn, node, seed);
                }
                self.put(SEED_PERIOD.as_micros() as Micros, Event::Seed(node));
            }
            Event::Message { kind, from, to, version } => self.receive(kind, from, to, version),
            Event::Speak => self.speak(),
            Event::Crash => self.owner_is_up = false,
        }
    }

    fn receive(&mut self, kind: Kind, from: u32, to: u32, version: u32) {
        self.owners_on_the_way -= usize::from(from as usize == self.owner);
        if !self.is_up(to) {
            return;
        }
        // What the sender held is in its digest; what the receiver lacks of it came in the delta.
        let lacks = version < self.held[to as usize];
        match kind {
            Kind::Syn => {
                self.traffic.renewals += u64::from(lacks);
                self.send(Kind::SynAck, to, from);
            }
            Kind::SynAck => {
                self.learn(to, version);
                self.traffic.renewals += u64::from(lacks);
                self.send(Kind::Ack, to, from);
            }
            Kind::Ack => self.learn(to, version),
        }
    }

    fn speak(&mut self) {
        let version = self.spoken.len() as u32;
        self.spoken.push(self.now);
        self.held[self.owner] = version;
        if self.news == Some(version) {
            self.tell(self.owner as u32, TOLD_AT_ONCE);
        }
    }

    fn learn(&mut self, node: u32, version: u32) {
        let held = self.held[node as usize];
        if version <= held {
            return;
        }
        self.held[node as usize] = version;
        self.since[node as usize] = self.now;
        if version > self.newest.0 {
            self.newest = (version, 0);
        }
        self.newest.1 += usize::from(version == self.newest.0);
        if self.news.is_some_and(|news| held < news && news <= version) {
            self.tell(node, News::default().told);
        } else if self.news.is_none() {
            self.renewals_took.push((self.now - self.spoken[version as usize]) as i64);
        }
    }

    /// Begins an exchange with `count` others, all different.
    fn tell(&mut self, node: u32, count: usize) {
        let others = self.held.len() - 1;
        for other in index::sample(self.rng, others, count.min(others)) {
            let peer = if other >= node as usize { other + 1 } else { other };
            self.send(Kind::Syn, node, peer as u32);
        }
    }

    fn send(&mut self, kind: Kind, from: u32, to: u32) {
        if !self.is_up(from) {
            return;
        }
        let (count, bytes) = match kind {
            Kind::Syn => (&mut self.traffic.syns, self.digest_bytes),
            Kind::SynAck => (&mut self.traffic.syn_acks, self.digest_bytes),
            Kind::Ack => (&mut self.traffic.acks, ack_bytes()),
        };
        *count += 1;
        let version = self.held[from as usize];
        let Some(travelled) = travel(&self.conditions, self.conditions.loss, bytes, self.rng) else { return };
        let connects = kind == Kind::Syn && self.rng.random_bool(self.cold_share);
        let connecting = if connects { self.conditions.latency.0 * 2 } else { Duration::ZERO };
        self.owners_on_the_way += usize::from(from as usize == self.owner);
        let after = (connecting + travelled).as_micros() as Micros;
        self.put(after, Event::Message { kind, from, to, version });
    }

    fn is_up(&self, node: u32) -> bool {
        self.owner_is_up || node as usize != self.owner
    }

    fn within(&mut self, period: Duration) -> Micros {
        self.rng.random_range(0..period.as_micros().max(1) as Micros)
    }

    fn put(&mut self, after: Micros, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse((self.now + after, self.sequence, event)));
    }
}
