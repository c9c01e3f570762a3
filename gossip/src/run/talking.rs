//! What time brings: talks, rounds of news, questions, repairs, joining.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use rand::Rng as _;
use rand::seq::IteratorRandom as _;

use super::{
    BEHIND_AFTER, BEHIND_MAX, GossipLoop, JOIN_PERIOD, JOINS_BEFORE_CLASSIC, JOINS_MAX, RETRY_PERIOD,
    SEED_PERIOD, SEED_PERIOD_EACH,
};
use crate::clock::Instant;
use crate::doubts::REPORTS_NEEDED;
use crate::link::{Delivery, Destination};
use crate::renewing::TALK_PEERS;
use crate::searching::Knock;
use crate::talk::{Item, Join, Message, STREAM_BYTES, TALK_BYTES, Talk, batches};

/// Who was asked for leases so long ago and has not answered is asked again: it may have been out of reach.
const ASKED_AGAIN: Duration = Duration::from_secs(1);

impl GossipLoop {
    pub(super) fn next_timeout(&self) -> Instant {
        let always = [self.publisher.poll_timeout(), self.next_talk, self.next_seed_or_join()];
        let machines = [
            self.catalogue.poll_timeout().map(|at| self.not_while_behind(at)),
            // News waits for somebody to tell.
            self.rumours.poll_timeout().filter(|_| !self.neighbours.is_empty()),
            self.watching.poll_timeout(),
            self.mending.poll_timeout(),
            self.searching.poll_timeout().filter(|_| !self.is_joining()),
            self.leaving.as_ref().map(|(until, _)| *until),
            self.catalogue.is_changed().then_some(self.next_publication),
        ];
        let next = always.into_iter().chain(machines.into_iter().flatten()).min();
        next.expect("some are always there").min(self.next_retry)
    }

    pub(super) async fn handle_timeout(&mut self) {
        let (now, wall) = (self.clock.now(), self.clock.wall());
        self.note_hearing(now);
        self.catalogue.handle_timeout(now.checked_sub(self.behind(now)).unwrap_or(now), wall);
        let rng = &mut self.rng;
        self.publisher.handle_timeout(now, || rng.random());
        if now >= self.next_talk {
            self.next_talk += self.own.interval;
            if self.next_talk <= now {
                self.next_talk = now + self.own.interval;
            }
            self.neighbours.choose(&self.peers, now, &mut self.rng);
            self.talk(now);
            if self.is_classic() {
                self.repairing.beat();
                if self.rng.random_bool(self.classic_share()) {
                    self.tell_classic().await;
                }
            }
            let snapshot = self.snapshot_out.borrow().clone();
            self.remembering.choose_acquaintances(&snapshot, &mut self.rng, now);
        }
        if now >= self.next_seed_or_join() {
            if self.is_joining() { self.ask_to_join(now).await } else { self.talk_to_a_seed(now).await }
        }
        if !self.is_joining() {
            self.knock(now);
        }
        self.ask_questions(now);
        self.mending.spend(self.post.take_repair_bytes(), now);
        if let Some(repair) = self.mending.poll_exchange(now, &mut self.rng)
            && let Some(address) = self.peers.get(&repair.peer).map(|peer| peer.address)
        {
            if repair.is_of_everything {
                self.join(address, false, now);
            } else {
                self.repairing.gossip_with(address, &self.catalogue, now).await;
            }
        }
        if now >= self.next_retry {
            self.next_retry = now + RETRY_PERIOD;
            if self.remembering.is_waiting() {
                self.remembering.retry(&mut self.catalogue, now, wall);
            }
        }
    }

    /// Notes whether all that has come is taken in.
    pub(super) fn note_hearing(&mut self, now: Instant) {
        if !self.link.is_behind() {
            self.heard_until = now;
        }
    }

    /// How far this node's time is behind for others, because it has not taken in what they sent.
    fn behind(&self, now: Instant) -> Duration {
        let behind = now.saturating_duration_since(self.heard_until);
        if behind < BEHIND_AFTER { Duration::ZERO } else { behind.min(BEHIND_MAX) }
    }

    /// `at`, or later: there is nothing to do before this node has caught up.
    fn not_while_behind(&self, at: Instant) -> Instant {
        let now = self.clock.now();
        if self.behind(now).is_zero() { at } else { at.max(now + BEHIND_AFTER) }
    }

    /// Passes news on, if a round of it is due.
    pub(super) fn tell_news(&mut self) {
        let now = self.clock.now();
        if self.neighbours.is_empty() || self.rumours.poll_timeout().is_none_or(|due| due > now) {
            return;
        }
        let round = self.rumours.take_round(now, self.neighbours.shuffled(&mut self.rng));
        let knows = self.catalogue.knows();
        let talks: Vec<_> = batches(knows, round.small, TALK_BYTES).into_iter().map(Message::Talk).collect();
        let whole: Vec<_> =
            batches(knows, round.whole, STREAM_BYTES).into_iter().map(Message::Talk).collect();
        for name in round.to {
            let Some(address) = self.peers.get(&name).map(|peer| peer.address) else { continue };
            talks.iter().for_each(|talk| self.post.send(address, talk, Delivery::Once));
            whole.iter().for_each(|talk| self.post.send(address, talk, Delivery::Reliable));
        }
    }

    /// Tells a few neighbours what was renewed and what this node knows, and asks one of them about the silent.
    fn talk(&mut self, now: Instant) {
        let knows = self.catalogue.knows();
        let renewals = self.renewing.take();
        let silent = self.catalogue.silent(self.own.name, now);
        let asks = self.renewing.ask(silent, now);
        let peers = self.some_neighbours(TALK_PEERS);
        // A question is waited for, so it should arrive, also at or from a node that hears badly: who has spoken lately
        // is there, while a neighbour may be cut off, or never have been.
        if let Some(address) = self.heard_lately(now).or(peers.first().map(|(address, _)| *address)) {
            for talk in batches(knows, asks, STREAM_BYTES) {
                self.post.send(address, &Message::Talk(talk), Delivery::Reliable);
            }
        }
        for (address, is_chosen) in peers {
            let mut talks = batches(knows, renewals.clone(), TALK_BYTES);
            if talks.is_empty() {
                talks.push(Talk { knows, ..Talk::default() });
            }
            for mut talk in talks {
                talk.is_chosen = is_chosen;
                self.post.send(address, &Message::Talk(talk), Delivery::Once);
            }
        }
    }

    /// Where somebody listens who has spoken lately.
    fn heard_lately(&mut self, now: Instant) -> Option<SocketAddr> {
        let names = self.mending.heard_lately(now);
        names.filter_map(|name| self.peers.get(&name)).map(|peer| peer.address).choose(&mut self.rng)
    }

    /// Where some neighbours listen, and whether they are of this node's own choice.
    fn some_neighbours(&mut self, count: usize) -> Vec<(SocketAddr, bool)> {
        let some = self.neighbours.some(count, &mut self.rng);
        let some = some.into_iter().filter_map(|name| Some((self.peers.get(&name)?.address, name)));
        some.map(|(address, name)| (address, self.neighbours.has_chosen(name))).collect()
    }

    fn ask_questions(&mut self, now: Instant) {
        let rng = &mut self.rng;
        let (questions, seen) = self.watching.handle_timeout(now, || rng.random());
        for question in questions {
            let Some(peer) = self.peers.get(&question.subject) else { continue };
            let delivery = if question.is_urgent { Delivery::Reliable } else { Delivery::Once };
            self.post.send(peer.address, &Message::Ping(question.number, question.is_urgent), delivery);
        }
        seen.into_iter().for_each(|seen| self.handle_seen(seen));
    }

    /// Others doubt this node: it says that it lives.
    pub(super) fn refute(&mut self, now: Instant) {
        self.publisher.refute(now);
        self.is_refuting = true;
    }

    fn next_seed_or_join(&self) -> Instant {
        if self.is_joining() { self.joining.next_ask } else { self.next_seed }
    }

    /// Whether this node knows nobody, or those it knows had no time to tell it everything.
    fn is_joining(&self) -> bool {
        let has_asked_enough = self.joining.is_welcomed || self.joining.asked >= JOINS_MAX;
        self.is_alone() || self.joining.is_referred || !has_asked_enough
    }

    fn is_alone(&self) -> bool {
        !self.peers.values().any(|peer| peer.is_alive)
    }

    async fn talk_to_a_seed(&mut self, now: Instant) {
        // All together talk to seeds as often, however many they are.
        let members = u32::try_from(self.peers.len()).unwrap_or(u32::MAX);
        self.next_seed = now + SEED_PERIOD.max(SEED_PERIOD_EACH * members);
        let seeds = self.book.seeds.borrow().clone();
        let Some(seed) = seeds.into_iter().filter(|seed| *seed != self.own.address).choose(&mut self.rng)
        else {
            return;
        };
        let items = self.own_renewal().into_iter().collect();
        let talk = Talk { knows: self.catalogue.knows(), is_chosen: false, items };
        self.post.send(seed, &Message::Talk(talk), Delivery::Reliable);
        if self.is_classic() || !self.peers.values().any(|peer| peer.address == seed) {
            // Nobody that is known: perhaps a member of an earlier version.
            self.repairing.gossip_with(seed, &self.catalogue, now).await;
        }
    }

    /// Knocks where somebody may be who is not known to be there.
    fn knock(&mut self, now: Instant) {
        match self.searching.poll_knock(now, &mut self.rng) {
            Some(Knock::Lost(address, identity)) => {
                let items = self.own_renewal().into_iter().collect();
                let talk = Talk { knows: self.catalogue.knows(), is_chosen: false, items };
                let to = Destination::Member { address, identity };
                self.post.send_to(to, &Message::Talk(talk), Delivery::Reliable);
            }
            Some(Knock::Seed(address)) if address != self.own.address => self.join(address, false, now),
            Some(Knock::Leases) => {
                if let Some(address) = self.heard_lately(now) {
                    self.ask_for_leases(address, now);
                }
            }
            Some(Knock::Seed(_)) | None => {}
        }
    }

    fn own_renewal(&self) -> Option<Item> {
        self.catalogue.renewal_of(self.own.name).map(|renewal| Item::Renewal(self.own.name, renewal))
    }

    /// Asks one of those it may know to let it in: for everything, or for how everybody is if it knows them.
    async fn ask_to_join(&mut self, now: Instant) {
        self.joining.next_ask = now + JOIN_PERIOD;
        self.joining.asked += 1;
        let seeds = self.book.seeds.borrow().clone();
        let snapshot = self.snapshot_out.borrow().clone();
        let remembered = self.remembering.ask_while_alone(&snapshot, &mut self.rng, now);
        let all: BTreeSet<_> =
            seeds.into_iter().chain(remembered).filter(|address| *address != self.own.address).collect();
        if self.joining.asked > JOINS_BEFORE_CLASSIC && self.is_alone() {
            for address in &all {
                self.repairing.gossip_with(*address, &self.catalogue, now).await;
            }
        }
        let referred: Vec<_> =
            self.peers.values().filter(|peer| peer.is_talker).map(|peer| peer.address).collect();
        let address = if self.joining.is_referred && !referred.is_empty() {
            referred.into_iter().choose(&mut self.rng)
        } else {
            // Nobody twice before each was asked: some of the seeds may be down.
            self.joining.forget_until(now);
            let (asked, others): (Vec<_>, Vec<_>) =
                all.into_iter().partition(|address| self.joining.expected.contains_key(address));
            let first = others.into_iter().choose(&mut self.rng);
            first.or_else(|| asked.into_iter().choose(&mut self.rng))
        };
        if let Some(address) = address {
            // Who knows the others' records needs to hear how they are, and now and then everything all the same.
            let knows_others = !self.joining.is_referred
                && self.joining.is_welcomed
                && self.catalogue.names().any(|name| name != self.own.name);
            self.join(address, knows_others && !self.joining.asked.is_multiple_of(4), now);
        }
        self.joining.reports_wanted = REPORTS_NEEDED - 1;
    }

    fn join(&mut self, address: SocketAddr, only_leases: bool, now: Instant) {
        let own = self.catalogue.shared(self.own.name).map(|shared| shared.records).unwrap_or_default();
        let records = own.into_iter().map(|(_, _, sealed)| sealed.to_vec()).collect();
        self.joining.expected.insert(address, now);
        self.post.send(address, &Message::Join(Join { records, only_leases }), Delivery::Reliable);
    }

    /// Asks further members how old everybody's lease is, other than those at `asked`.
    pub(super) fn ask_for_reports(&mut self, asked: &BTreeSet<SocketAddr>, now: Instant) {
        while self.joining.reports_wanted > 0 {
            self.joining.reports_wanted -= 1;
            let others = self.peers.values().filter(|peer| peer.is_talker && peer.is_alive);
            let open = others.filter(|peer| {
                !asked.contains(&peer.address) && !self.joining.expected.contains_key(&peer.address)
            });
            let Some(address) = open.map(|peer| peer.address).choose(&mut self.rng) else { return };
            self.join(address, true, now);
        }
    }

    /// Asks the member at `address` how everybody is.
    pub(super) fn ask_for_leases(&mut self, address: SocketAddr, now: Instant) {
        self.joining.forget_until(now);
        let asked = self.joining.expected.get(&address);
        if asked.is_none_or(|at| now >= *at + ASKED_AGAIN) {
            self.join(address, true, now);
        }
    }
}
