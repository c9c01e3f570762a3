//! What becomes of a message from a peer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use metrics::counter;
use rand::Rng as _;
use rand::seq::IteratorRandom as _;
use tracing::{debug, warn};

use super::{Applied, GossipLoop, MESSAGES_PER_TURN_MAX, Rejected};
use crate::allowance::Allowance;
use crate::clock::Instant;
use crate::doubts::REPORTS_NEEDED;
use crate::identity::SpiffeId;
use crate::lease::hashes_of;
use crate::limits::{OWNERS_MAX, VAIN_SIGNATURE_HASHES};
use crate::link::{Delivery, Received};
use crate::record::{Renewal, Version};
use crate::repairing::Learned;
use crate::signature::SealedRecord;
use crate::snapshot::Presence;
use crate::talk::{
    Filed, Item, Join, Key, Message, STREAM_BYTES, TALK_BYTES, Talk, Welcome, batches, short_name,
};
use crate::watching::SealedSighting;
use crate::wire::Step;

/// What one peer may send: bytes and messages a second, and at once. A whole snapshot of a large mesh is a megabyte;
/// all news of a mesh that restarts at once comes from a dozen neighbours.
const BYTES_PER_SECOND: f64 = 512.0 * 1024.0;
const BYTES_AT_ONCE: f64 = 8.0 * 1024.0 * 1024.0;
const MESSAGES_PER_SECOND: f64 = 100.0;
const MESSAGES_AT_ONCE: f64 = 2_000.0;

/// How long this node has nothing to do with a peer that sent more.
const SHUNNED_FOR: Duration = Duration::from_secs(30);

/// What one peer is given on its asking by talks: records it wants, renewals. The news of forty nodes at once, and then
/// half of what a node may send for everything: small questions must not draw large answers for long.
const ANSWERED_BYTES_PER_SECOND: f64 = 4.0 * 1024.0;
const ANSWERED_BYTES_AT_ONCE: f64 = 64.0 * 1024.0;

/// How often one peer is welcomed. One that fails and starts again and again is let in; one that asks and asks makes
/// nobody send everything and everything.
const WELCOMES_PER_SECOND: f64 = 0.1;
const WELCOMES_AT_ONCE: f64 = 4.0;

/// Hashes spent on one peer's renewals that prove nothing: a far leap costs thousands (0.5 ms). Honest
/// peers pass on what they have checked.
const VAIN_HASHES_PER_SECOND: f64 = 4096.0;
const VAIN_HASHES_AT_ONCE: f64 = 16.0 * 4096.0;

/// Peers whose sending is counted.
const COUNTED_MAX: usize = 4096;

/// Snapshots given to newcomers, bytes a second and at once: the rest of a flash crowd is told to ask others. One
/// of a mesh of five hundred takes about 700 KiB.
pub(super) const WELCOME_BYTES_PER_SECOND: f64 = 4.0 * 1024.0 * 1024.0;
pub(super) const WELCOME_BYTES_AT_ONCE: f64 = 8.0 * 1024.0 * 1024.0;

/// Members named to a newcomer instead.
const REFERRED: usize = 4;

/// One part of a snapshot.
const WELCOME_BYTES_MAX: usize = 96 * 1024;

/// What a lease takes in it.
const LEASE_BYTES: usize = 64;

/// How long who was asked may take to welcome.
const WELCOME_WITHIN: Duration = Duration::from_secs(30);

/// How often an exchange begins with somebody who speaks and is not known. Mostly a newcomer whose record comes soon.
const STRANGER_PERIOD: Duration = Duration::from_secs(1);

/// Items answered to one message.
const ANSWERS_MAX: usize = 512;

/// What peers have sent lately.
#[derive(Default)]
pub(super) struct Heard {
    shares: BTreeMap<(SocketAddr, SpiffeId), Share>,
}

/// What one peer may still send, and make this node do.
struct Share {
    messages: Allowance,
    bytes: Allowance,
    answered_bytes: Allowance,
    welcomes: Allowance,
    vain_hashes: Allowance,
}

impl super::Joining {
    /// Who was asked too long ago is not expected to welcome any more, nor to go on with it.
    pub(super) fn forget_until(&mut self, now: Instant) {
        let Self { expected, pending, .. } = self;
        expected.retain(|_, at| now < *at + WELCOME_WITHIN);
        pending.retain(|from, _| expected.contains_key(from));
    }
}

impl Heard {
    /// Whether `peer` may send as much as it does.
    fn admits(&mut self, received: &Received, now: Instant) -> bool {
        let share = self.of(received.from, &received.peer, now);
        share.messages.take(1.0, now) && share.bytes.take(received.message.len() as f64, now)
    }

    fn of(&mut self, from: SocketAddr, peer: &SpiffeId, now: Instant) -> &mut Share {
        let key = (from, peer.clone());
        if self.shares.len() >= COUNTED_MAX && !self.shares.contains_key(&key) {
            self.shares.retain(|_, share| !share.is_full(now));
        }
        self.shares.entry(key).or_insert_with(|| Share::new(now))
    }
}

impl Share {
    fn new(now: Instant) -> Self {
        Self {
            messages: Allowance::new(MESSAGES_PER_SECOND, MESSAGES_AT_ONCE, now),
            bytes: Allowance::new(BYTES_PER_SECOND, BYTES_AT_ONCE, now),
            answered_bytes: Allowance::new(ANSWERED_BYTES_PER_SECOND, ANSWERED_BYTES_AT_ONCE, now),
            welcomes: Allowance::new(WELCOMES_PER_SECOND, WELCOMES_AT_ONCE, now),
            vain_hashes: Allowance::new(VAIN_HASHES_PER_SECOND, VAIN_HASHES_AT_ONCE, now),
        }
    }

    fn is_full(&mut self, now: Instant) -> bool {
        let all = [
            &mut self.messages,
            &mut self.bytes,
            &mut self.answered_bytes,
            &mut self.welcomes,
            &mut self.vain_hashes,
        ];
        all.into_iter().all(|allowance| allowance.is_full(now))
    }
}

impl GossipLoop {
    pub(super) async fn handle_received(&mut self, first: Received) {
        self.handle_one(first).await;
        let link = self.link.clone();
        for _ in 1..MESSAGES_PER_TURN_MAX {
            // What is there already is taken in with it.
            let next = tokio::select! {
                biased;
                received = link.recv() => received,
                () = std::future::ready(()) => None,
            };
            let Some(received) = next else { break };
            self.handle_one(received).await;
        }
        self.note_hearing(self.clock.now());
        self.outlive_if_succeeded();
        self.meet_stranger();
        if let Some(address) = self.exchange_with.take()
            && self.mending.may_answer(self.clock.now())
        {
            self.publish();
            self.repairing.gossip_with(address, &self.catalogue, self.clock.now()).await;
        }
    }

    /// A member speaks to this node, which has never heard of it: there is a mesh beside the one it knows, as after all
    /// seeds have started anew at once and met only each other.
    fn meet_stranger(&mut self) {
        let now = self.clock.now();
        let Some(stranger) = self.stranger.take().filter(|_| now >= self.next_stranger) else { return };
        self.next_stranger = now + STRANGER_PERIOD;
        // What it said may have made it known.
        self.publish();
        if !self.names.contains_key(&stranger) {
            self.exchange_with.get_or_insert(stranger.0);
        }
    }

    async fn handle_one(&mut self, received: Received) {
        let now = self.clock.now();
        self.post.count_received(received.from, &received.message);
        if !self.heard.admits(&received, now) {
            counter!("starling_gossip_shunned_total").increment(1);
            warn!(peer = %received.peer, address = %received.from, "a peer sends more than it may; it is cut off for a while");
            return self.link.shun(&received.peer, received.from, SHUNNED_FOR);
        }
        self.watching.handle_heard(now);
        let Received { from, peer, message } = received;
        match Message::decode(&message) {
            Ok(Message::Talk(talk)) => self.handle_talk(from, &peer, talk, now),
            Ok(Message::Ping(number, is_urgent)) => {
                let delivery = if is_urgent { Delivery::Reliable } else { Delivery::Once };
                self.post.send(from, &Message::Pong(number), delivery);
            }
            Ok(Message::Pong(number)) => {
                // By its number, which nobody else knows: of two owners with one address and identity, one may be dead.
                let name = self.watching.asked_with(number).filter(|name| {
                    self.peers.get(name).is_some_and(|it| it.address == from && it.identity == peer)
                });
                let seen = name.and_then(|name| self.watching.handle_answer(name, number, now));
                seen.into_iter().for_each(|seen| self.handle_seen(seen));
            }
            Ok(Message::Join(join)) => self.handle_join(from, &peer, join, now),
            Ok(Message::Welcome(welcome)) => self.handle_welcome(from, &peer, welcome, now),
            Ok(Message::Repair(message)) => self.handle_repair(from, &peer, &message, now).await,
            Err(error) => {
                counter!("starling_gossip_malformed_total").increment(1);
                debug!(%peer, %error, "gossip message dropped");
            }
        }
    }

    async fn handle_repair(&mut self, from: SocketAddr, peer: &SpiffeId, message: &[u8], now: Instant) {
        self.mending.spend(self.post.take_repair_bytes(), now);
        // What was begun is brought to its end: half an exchange is paid for and repairs nothing.
        let goes_on = Step::of(message).is_some_and(|step| self.post.take_open(from, step));
        if !goes_on && !self.is_classic() && !self.mending.may_answer(now) {
            return counter!("starling_gossip_over_budget_total").increment(1);
        }
        let own = self.own.name;
        let vain_hashes = &mut self.heard.of(from, peer, now).vain_hashes;
        let heard = self
            .repairing
            .handle_message(from, message, &mut self.catalogue, &self.clock, vain_hashes, |owner| {
                owner == own
            })
            .await;
        match heard {
            Ok(learned) => {
                let mut is_news = false;
                for learned in learned {
                    match learned {
                        Learned::Record(filed, bytes) => {
                            is_news = true;
                            self.handle_accepted(filed, bytes, now);
                        }
                        Learned::OwnWord(bytes) => self.handle_own_word(&bytes),
                        Learned::Renewal(owner, renewal) => {
                            counter!("starling_gossip_records_total").increment(1);
                            self.renewing.handle_renewal(owner, renewal);
                            self.repairing.handle_renewal(owner);
                            self.watching.handle_renewal(owner);
                        }
                    }
                }
                if is_news && self.is_classic() && self.rng.random_bool(self.classic_share()) {
                    self.tell_classic().await;
                }
            }
            Err(error) => {
                counter!("starling_gossip_malformed_total").increment(1);
                debug!(%peer, %error, "gossip message dropped");
            }
        }
    }

    fn handle_talk(&mut self, from: SocketAddr, peer: &SpiffeId, talk: Talk, now: Instant) {
        let sender = self.names.get(&(from, peer.clone())).copied();
        if let Some(name) = sender {
            let distance = self.peers.get(&name).map_or(3, |peer| peer.distance);
            self.mending.handle_told(name, talk.knows, distance, now);
            self.neighbours.handle_heard(name);
            if talk.is_chosen {
                self.neighbours.handle_chosen(name, now);
            }
        }
        let mut answers = Vec::new();
        if sender.is_none() {
            // Expired here, or not heard of yet: its own renewal or record would tell.
            match self.ask_of_stranger(from, peer) {
                Some(ask) => answers.push(ask),
                None => self.stranger = Some((from, peer.clone())),
            }
        }
        for item in talk.items {
            let answer = self.handle_item(&item, from, peer, now);
            if let Some(name) = sender {
                self.rumours.handle_told(&item, name);
            }
            let Some(answer) = answer.filter(|_| answers.len() < ANSWERS_MAX) else { continue };
            if self.heard.of(from, peer, now).answered_bytes.take(answer.bytes() as f64, now) {
                answers.push(answer);
            } else {
                counter!("starling_gossip_over_budget_total").increment(1);
            }
        }
        if answers.is_empty() {
            return;
        }
        let knows = self.catalogue.knows();
        for talk in batches(knows, answers, STREAM_BYTES) {
            self.post.send(from, &Message::Talk(talk), Delivery::Reliable);
        }
    }

    /// Takes in one thing that `peer` said; what to answer.
    fn handle_item(&mut self, item: &Item, from: SocketAddr, peer: &SpiffeId, now: Instant) -> Option<Item> {
        match item {
            Item::Record(bytes) => self.take_record(bytes, from, now),
            Item::Offer(filed) => self.handle_offer(filed.clone(), from, now),
            Item::Want(filed) => self.catalogue.record(filed).map(|bytes| Item::Record(bytes.to_vec())),
            Item::Renewal(owner, renewal) => {
                self.handle_renewal((*owner, renewal, false), from, peer, now);
                None
            }
            Item::Refutation(owner, renewal) => {
                self.handle_renewal((*owner, renewal, true), from, peer, now);
                None
            }
            Item::Ask(owner, incarnation, counter) => self
                .catalogue
                .renewal_of(*owner)
                .filter(|held| (held.incarnation, held.counter) > (*incarnation, *counter))
                .map(|held| Item::Renewal(*owner, held)),
            Item::Sighting(sealed) => {
                self.handle_sighting(sealed, from, peer, now);
                None
            }
        }
    }

    /// What to ask somebody who talks and is not present here.
    fn ask_of_stranger(&self, from: SocketAddr, peer: &SpiffeId) -> Option<Item> {
        let snapshot = self.snapshot_out.borrow();
        let expired = snapshot.members.iter().find(|(owner, member)| {
            owner.identity == *peer
                && member.record.addresses[0] == from
                && member.presence == Presence::Expired
        });
        let (owner, member) = expired?;
        let owner = self.catalogue.name_of(owner)?;
        Some(Item::Ask(owner, member.record.version.incarnation, self.catalogue.counter_of(owner)))
    }

    fn handle_offer(&mut self, filed: Filed, from: SocketAddr, now: Instant) -> Option<Item> {
        let lacks = self.catalogue.version_filed(&filed).is_none_or(|held| held < filed.version);
        (lacks && self.rumours.wants(&filed, from, now)).then_some(Item::Want(filed))
    }

    /// Takes in a record that came as news; what to ask for, if it cannot be judged without.
    pub(super) fn take_record(&mut self, bytes: &[u8], from: SocketAddr, now: Instant) -> Option<Item> {
        if self.rumours.is_known(bytes) {
            return None;
        }
        let read = SealedRecord::from_bytes(bytes).and_then(|sealed| Ok((sealed.unverified()?, sealed)));
        let (record, sealed) = match read {
            Ok(read) => read,
            Err(error) => {
                self.refuse(&Rejected::from(error), from);
                return None;
            }
        };
        let filed = Filed::of(&record);
        if filed.owner == self.own.name {
            self.handle_own_word(bytes);
            return None;
        }
        if self.catalogue.version_filed(&filed).is_some_and(|held| held >= filed.version) {
            return None;
        }
        match self.catalogue.apply_record(&sealed, record, now, self.clock.wall()) {
            Ok(Applied::Accepted) => {
                self.handle_accepted(filed, bytes.into(), now);
                None
            }
            Ok(Applied::Waiting) => {
                let node = Filed {
                    key: Key::Node,
                    version: Version { incarnation: filed.version.incarnation, version: 0 },
                    ..filed
                };
                self.rumours.wants(&node, from, now).then_some(Item::Want(node))
            }
            Err(rejected) => {
                self.refuse(&rejected, from);
                None
            }
        }
    }

    fn handle_accepted(&mut self, filed: Filed, bytes: Arc<[u8]>, now: Instant) {
        counter!("starling_gossip_records_total").increment(1);
        self.repairing.handle_record(&filed);
        self.notice_life(&filed, now);
        let Some((owner, ..)) = self.catalogue.node_of(filed.owner) else { return };
        let identity = owner.identity.clone();
        // Instances that waited for their owner's node record came with it.
        if filed.key == Key::Node {
            for (key, version, sealed) in
                self.catalogue.shared(filed.owner).map(|it| it.records).unwrap_or_default()
            {
                let other = Filed { owner: filed.owner, key, version };
                if other.key != Key::Node && other.version.incarnation == filed.version.incarnation {
                    self.repairing.handle_record(&other);
                    self.rumours.handle_record(&identity, other, sealed, now);
                }
            }
        }
        self.rumours.handle_record(&identity, filed, bytes, now);
    }

    /// An owner's node record is new here, and may begin another life.
    fn notice_life(&mut self, filed: &Filed, now: Instant) {
        if filed.key == Key::Node {
            self.watching.handle_life(filed.owner, now);
        }
    }

    fn refuse(&mut self, rejected: &Rejected, from: SocketAddr) {
        counter!("starling_gossip_rejected_total", "reason" => rejected.reason()).increment(1);
        self.warn_of_calendar(rejected);
        debug!(%from, reason = %rejected, "record refused");
    }

    fn handle_renewal(
        &mut self,
        (owner, renewal, is_news): (u64, &Renewal, bool),
        from: SocketAddr,
        peer: &SpiffeId,
        now: Instant,
    ) {
        if !self.heard.of(from, peer, now).vain_hashes.has_some(now) {
            return counter!("starling_gossip_over_budget_total").increment(1);
        }
        let before = self.catalogue.counter_of(owner);
        let presence = self.catalogue.node_of(owner).map(|(_, _, presence)| presence);
        match self.catalogue.apply_renewal(&short_name(owner), renewal, now, self.clock.wall()) {
            Ok(()) => {
                counter!("starling_gossip_records_total").increment(1);
                self.watching.handle_renewal(owner);
                self.repairing.handle_renewal(owner);
                if is_news {
                    self.rumours.handle_renewal(owner, *renewal, now);
                } else {
                    self.renewing.handle_renewal(owner, *renewal);
                }
                if presence == Some(Presence::Expired) {
                    // A part of the mesh is back: its other members' leases are asked for.
                    self.ask_for_leases(from, now);
                    self.exchange_with = Some(from);
                }
            }
            Err(Rejected::Stale) => {}
            Err(rejected) => {
                if rejected == Rejected::BadRenewal {
                    let hashes = hashes_of(renewal, before);
                    self.heard.of(from, peer, now).vain_hashes.spend(hashes.into(), now);
                }
                counter!("starling_gossip_rejected_total", "reason" => rejected.reason()).increment(1);
            }
        }
    }

    fn handle_sighting(&mut self, sealed: &SealedSighting, from: SocketAddr, peer: &SpiffeId, now: Instant) {
        if !self.heard.of(from, peer, now).vain_hashes.has_some(now) {
            return counter!("starling_gossip_over_budget_total").increment(1);
        }
        match self.catalogue.apply_sighting(sealed, now) {
            Ok(()) => {
                if let Some((watcher, ..)) = self.catalogue.node_of(sealed.sighting.watcher) {
                    self.rumours.handle_sighting(&watcher.identity, sealed.clone(), now);
                }
                if sealed.sighting.subject == self.own.name && !sealed.sighting.is_reachable {
                    self.refute(now);
                }
                self.look_after();
            }
            Err(Rejected::Stale) => {}
            Err(rejected) => {
                // Somebody unknown here costs nothing, and may be known to whoever speaks.
                if rejected != Rejected::UnknownOwner {
                    self.heard.of(from, peer, now).vain_hashes.spend(VAIN_SIGNATURE_HASHES, now);
                }
                counter!("starling_gossip_rejected_total", "reason" => rejected.reason()).increment(1);
            }
        }
    }

    fn handle_join(&mut self, from: SocketAddr, peer: &SpiffeId, join: Join, now: Instant) {
        if !self.heard.of(from, peer, now).welcomes.take(1.0, now) {
            return counter!("starling_gossip_over_budget_total").increment(1);
        }
        let wants: Vec<Item> =
            join.records.iter().filter_map(|bytes| self.take_record(bytes, from, now)).collect();
        for talk in batches(0, wants, TALK_BYTES) {
            self.post.send(from, &Message::Talk(talk), Delivery::Once);
        }
        if !self.joining.welcomes.has_some(now) {
            counter!("starling_gossip_referred_total").increment(1);
            let message = Message::Welcome(self.referral(join.only_leases));
            return self.post.send(from, &message, Delivery::Reliable);
        }
        let mut part = Welcome { leases: self.catalogue.leases(now), ..Welcome::default() };
        let mut bytes = part.leases.len() * LEASE_BYTES;
        let mut all_bytes = bytes;
        let records = self.catalogue.everything().filter(|_| !join.only_leases);
        for owner in records.collect::<Vec<_>>() {
            let more: usize = owner.iter().map(|record| record.len() + 3).sum();
            if bytes + more > WELCOME_BYTES_MAX && bytes > 0 {
                self.post.send(from, &Message::Welcome(std::mem::take(&mut part)), Delivery::Reliable);
                bytes = 0;
            }
            bytes += more;
            all_bytes += more;
            part.records.extend(owner.iter().map(|record| record.to_vec()));
        }
        part.is_last = true;
        self.post.send(from, &Message::Welcome(part), Delivery::Reliable);
        self.joining.welcomes.spend(all_bytes as f64, now);
    }

    /// Some members to ask instead of this busy one.
    fn referral(&mut self, only_leases: bool) -> Welcome {
        let peers = self.peers.iter().filter(|(_, peer)| peer.is_talker && peer.is_alive && !only_leases);
        let chosen = peers.map(|(name, _)| *name).choose_multiple(&mut self.rng, REFERRED);
        let node = |owner: u64| {
            let any = Version { incarnation: 0, version: 0 };
            self.catalogue.record(&Filed { owner, key: Key::Node, version: any })
        };
        let records = chosen.into_iter().filter_map(node).map(|record| record.to_vec()).collect();
        Welcome { records, leases: Vec::new(), is_last: true, is_referral: true }
    }

    /// Somebody has a record in this node's name. One of a later life that is truly signed must be spoken above; what it
    /// says is nobody's to believe, least of all here.
    fn handle_own_word(&mut self, bytes: &[u8]) {
        let later = self.catalogue.life_proved_by(bytes, self.clock.wall());
        self.later_life = self.later_life.max(later.unwrap_or_default());
    }

    fn handle_welcome(&mut self, from: SocketAddr, peer: &SpiffeId, welcome: Welcome, now: Instant) {
        self.joining.forget_until(now);
        if !self.joining.expected.contains_key(&from) {
            return counter!("starling_gossip_rejected_total", "reason" => "unasked").increment(1);
        }
        let wall = self.clock.wall();
        // Each owner's newest word that is known now: who welcomes tells all of an owner's records together.
        let mut newest: BTreeMap<u64, Filed> = BTreeMap::new();
        for bytes in &welcome.records {
            let read = SealedRecord::from_bytes(bytes).and_then(|sealed| Ok((sealed.unverified()?, sealed)));
            let Ok((record, sealed)) = read else { continue };
            let filed = Filed::of(&record);
            if filed.owner == self.own.name {
                self.handle_own_word(bytes);
                continue;
            }
            match self.catalogue.apply_record(&sealed, record, now, wall) {
                Ok(Applied::Accepted) => self.notice_life(&filed, now),
                Err(Rejected::Stale) if self.catalogue.version_filed(&filed) == Some(filed.version) => {}
                Ok(Applied::Waiting) | Err(Rejected::Stale) => continue,
                Err(rejected) => {
                    self.refuse(&rejected, from);
                    continue;
                }
            }
            let held = newest.entry(filed.owner).or_insert_with(|| filed.clone());
            if held.version < filed.version {
                *held = filed;
            }
        }
        newest.values().for_each(|filed| self.repairing.handle_all(filed));
        if welcome.is_last && !welcome.records.is_empty() {
            self.joining.is_referred = welcome.is_referral;
            self.joining.is_welcomed |= !welcome.is_referral;
        }
        // Leases come with the first part, and may be of owners who come with later ones.
        self.heard_leases(peer, from, welcome, now);
    }

    fn heard_leases(&mut self, peer: &SpiffeId, from: SocketAddr, welcome: Welcome, now: Instant) {
        let wall = self.clock.wall();
        self.publish();
        let pending = self.joining.pending.remove(&from).unwrap_or_default();
        let mut later = Vec::new();
        let identities: BTreeSet<_> = self.peers.values().map(|peer| &peer.identity).collect();
        let needed = identities.len().min(REPORTS_NEEDED);
        for lease in pending.into_iter().chain(welcome.leases) {
            if lease.owner == self.own.name {
                continue;
            }
            let vain_hashes = &mut self.heard.of(from, peer, now).vain_hashes;
            if !vain_hashes.has_some(now) {
                counter!("starling_gossip_over_budget_total").increment(1);
                break;
            }
            let before = self.catalogue.counter_of(lease.owner);
            match self.catalogue.apply_report(peer, &lease, needed, now, wall) {
                Ok(()) if self.catalogue.counter_of(lease.owner) > before => {
                    self.watching.handle_renewal(lease.owner);
                }
                Err(Rejected::UnknownOwner) => later.push(lease),
                Err(Rejected::BadRenewal) => {
                    vain_hashes.spend(hashes_of(&lease.renewal, before).into(), now);
                }
                Ok(()) | Err(_) => {}
            }
        }
        later.truncate(OWNERS_MAX);
        if !welcome.is_last {
            self.joining.pending.insert(from, later);
            return;
        }
        self.joining.expected.remove(&from);
        self.joining.reports_wanted = self.joining.reports_wanted.min(self.peers.len());
        self.ask_for_reports(&BTreeSet::from([from]), now);
    }
}
