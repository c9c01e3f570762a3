//! The one async loop of gossip, driven alike by the node and the simulator.
//!
//! It joins the state machines to the repair path: what the [`Publisher`] says goes into the
//! node's own map and catalogue, what changes in anybody's map is offered to the [`Catalogue`],
//! and a changed catalogue becomes the next [`Snapshot`]. All decisions are the machines'; this
//! file only carries and keeps time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use metrics::{counter, gauge};
use rand::rngs::StdRng;
use rand::seq::IteratorRandom as _;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::{mpsc, watch};
use tracing::{debug, error, info, warn};

use crate::catalogue::{Applied, Catalogue, Rejected};
use crate::clock::{Clock, Instant};
use crate::codec;
use crate::handle::{Command, MemberView, News, Setup};
use crate::link::Link;
use crate::memory::{LEASE_KEY, NODE_KEY, instance_key};
use crate::publisher::{Publisher, Said};
use crate::record::{Owner, Renewal};
use crate::remembering::Remembering;
use crate::replica::{AddressBook, Change, Replica, ReplicaError, ReplicaSettings, from_text, to_text};
use crate::snapshot::{Member, Presence, Snapshot};
use crate::svid::ChainError;
use crate::told::tell_changes;

/// Peers told at once when this node has something new to say. Three, as in a regular round.
pub const TOLD_AT_ONCE: usize = 3;

/// Changes taken in before other work gets a turn: each may cost a signature check (0.1 ms).
const CHANGES_PER_TURN_MAX: usize = 16;

/// How often a seed is asked again once the mesh is known, so that halves of a mesh that lost
/// each other meet again.
pub const SEED_PERIOD: Duration = Duration::from_secs(10);

/// How often seeds are asked while nobody is known.
const JOIN_PERIOD: Duration = Duration::from_millis(250);

/// Rounds in which a leaving node tells its peers, and the time between them.
const LEAVE_ROUNDS: usize = 3;
const LEAVE_PERIOD: Duration = Duration::from_millis(150);

/// Two nodes that share an identity and a name would outlive each other forever; this often.
const OUTLIVE_PERIOD: Duration = Duration::from_secs(10);

/// Others' false versions of this node's map are outdone with each renewal, and when they are noticed;
/// then at most this often, for the whole map is said again.
const ANEW_PERIOD: Duration = Duration::from_secs(1);

/// How often records that could not be used, but may be later, are tried again.
const RETRY_PERIOD: Duration = Duration::from_secs(30);

/// How often it is said that the calendar makes this node refuse others.
const CALENDAR_WARNED_PERIOD: Duration = Duration::from_secs(60);

/// The loop itself; see [`crate::handle::Gossip::start`].
pub struct GossipLoop {
    publisher: Publisher,
    catalogue: Catalogue,
    remembering: Remembering,
    replica: Replica,
    replica_settings: ReplicaSettings,
    link: Arc<dyn Link>,
    book: AddressBook,
    clock: Clock,
    rng: StdRng,
    inbox: mpsc::Receiver<Command>,
    snapshot_out: watch::Sender<Arc<Snapshot>>,
    /// What this node's own map must hold. Any member can overwrite it; then it is said again.
    spoken: BTreeMap<String, String>,
    next_seed: Instant,
    next_outlive: Instant,
    /// Something was heard that others may not know yet.
    has_news: bool,
    news: News,
    next_news: Instant,
    /// Something was refused or set aside that may be welcome later.
    missed: bool,
    next_retry: Instant,
    /// Somebody used up the versions of this node's map.
    map_exhausted: bool,
    next_anew: Instant,
    next_calendar_warning: Instant,
}

impl GossipLoop {
    pub(crate) async fn new(
        setup: Setup,
        inbox: mpsc::Receiver<Command>,
        snapshot_out: watch::Sender<Arc<Snapshot>>,
    ) -> Result<Self, ReplicaError> {
        let Setup { description, interval, svid, bundle, link, clock, random_seed, seeds, remembered, news } =
            setup;
        let mut rng = StdRng::seed_from_u64(random_seed);
        let (now, wall) = (clock.now(), clock.wall());
        let own = Owner { identity: svid.id().clone(), node: description.name.clone() };
        let name = own.short_name();
        let mut catalogue = Catalogue::new(bundle.clone());
        let mut remembering = Remembering::begin(remembered, own, &mut catalogue, now, wall);
        let incarnation = remembering.first_life(wall).await;
        let acquaintances = remembering.acquaintances();
        let book = AddressBook { snapshots: snapshot_out.subscribe(), seeds, acquaintances };
        let replica_settings = ReplicaSettings {
            name,
            generation: incarnation,
            address: description.addresses[0],
            trust_domain: bundle.domain().to_string(),
            interval,
            dead_after: description.lease * 2,
        };
        debug!(incarnation, "gossip begins");
        let publisher = Publisher::new(svid, description, incarnation, rng.random(), now);
        let replica = Replica::start(replica_settings.clone(), link.clone(), book.clone()).await?;
        let mut this = Self {
            publisher,
            catalogue,
            remembering,
            replica,
            replica_settings,
            link,
            book,
            rng,
            inbox,
            snapshot_out,
            spoken: BTreeMap::new(),
            next_seed: now,
            next_outlive: now,
            has_news: false,
            news,
            next_news: now,
            missed: false,
            next_retry: now + RETRY_PERIOD,
            map_exhausted: false,
            next_anew: now,
            next_calendar_warning: now,
            clock,
        };
        // Routes from what is remembered are there before anything else is.
        this.publish();
        Ok(this)
    }

    /// Who speaks here.
    pub(crate) fn owner(&self) -> &Owner {
        self.publisher.owner()
    }

    /// Runs until the node leaves or every handle is gone.
    pub async fn run(mut self) {
        loop {
            self.spread().await;
            if self.map_exhausted {
                self.restart_replica().await;
            }
            self.publish();
            let timeout = self.next_timeout();
            tokio::select! {
                command = self.inbox.recv() => match command {
                    Some(Command::Leave(reply)) => {
                        self.leave().await;
                        let _ = reply.send(());
                        break;
                    }
                    Some(command) => self.handle_command(command).await,
                    None => break,
                },
                change = self.replica.changed() => match change {
                    Some(change) => self.handle_changes(change).await,
                    None => self.restart_replica().await,
                },
                () = tokio::time::sleep_until(timeout) => self.handle_timeout().await,
            }
        }
        self.replica.stop();
    }

    fn next_timeout(&self) -> Instant {
        let catalogue = self.catalogue.poll_timeout();
        let mut next = self.publisher.poll_timeout().min(self.next_seed);
        if self.has_news {
            next = next.min(self.next_news);
        }
        catalogue.map_or(next, |at| at.min(next))
    }

    async fn handle_command(&mut self, command: Command) {
        match command {
            Command::SetInstance { id, instance } => self.publisher.set_instance(id, instance),
            Command::Rotate(svid, bundle) => {
                let wall = self.clock.wall();
                self.catalogue.set_bundle(bundle, wall);
                self.publisher.rotate(svid, wall.unix_millis, self.rng.random());
                self.retry_all().await;
            }
            Command::Members(reply) => {
                let _ = reply.send(self.members());
            }
            Command::Pulse(reply) => {
                let _ = reply.send(());
            }
            Command::Leave(_) => unreachable!("the loop handles it"),
        }
    }

    async fn handle_timeout(&mut self) {
        let now = self.clock.now();
        self.catalogue.handle_timeout(now, self.clock.wall());
        let rng = &mut self.rng;
        self.publisher.handle_timeout(now, || rng.random());
        if now >= self.next_seed {
            self.gossip_with_a_seed(now);
        }
        self.pass_news_on(now);
        if now >= self.next_retry {
            self.next_retry = now + RETRY_PERIOD;
            if std::mem::take(&mut self.missed) || self.remembering.is_waiting() {
                self.retry_all().await;
            }
        }
        let snapshot = self.snapshot_out.borrow().clone();
        self.remembering.choose_acquaintances(&snapshot, &mut self.rng, now);
    }

    fn gossip_with_a_seed(&mut self, now: Instant) {
        let own = self.replica_settings.address;
        let seeds = self.book.seeds.borrow().clone();
        let alone = self.alive_peers().next().is_none();
        self.next_seed = now + if alone { JOIN_PERIOD } else { SEED_PERIOD };
        if alone {
            let snapshot = self.snapshot_out.borrow().clone();
            let remembered = self.remembering.ask_while_alone(&snapshot, &mut self.rng, now);
            let all: BTreeSet<_> = seeds.into_iter().chain(remembered).filter(|it| *it != own).collect();
            all.into_iter().for_each(|address| self.replica.gossip_with(address));
        } else if let Some(seed) = seeds.iter().filter(|seed| **seed != own).choose(&mut self.rng) {
            self.replica.gossip_with(*seed);
        }
    }

    async fn handle_changes(&mut self, first: Change) {
        self.handle_change(first).await;
        for _ in 1..CHANGES_PER_TURN_MAX {
            match self.replica.try_changed() {
                Some(change) => self.handle_change(change).await,
                None => break,
            }
        }
        if self.replica.take_overflowed() {
            self.retry_all().await;
        }
        self.pass_news_on(self.clock.now());
        tokio::task::yield_now().await;
    }

    async fn handle_change(&mut self, change: Change) {
        if change.name == self.replica_settings.name && change.generation == self.replica_settings.generation
        {
            self.defend_own_map(&change).await;
            return;
        }
        match self.take_in(&change) {
            Ok(applied) => {
                self.has_news |= applied == Applied::Accepted && change.key != LEASE_KEY;
                counter!("starling_gossip_records_total").increment(1);
            }
            Err(rejected) => {
                counter!("starling_gossip_rejected_total", "reason" => rejected.reason()).increment(1);
                self.warn_of_calendar(&rejected);
                debug!(name = change.name, key = change.key, reason = %rejected, "record refused");
            }
        }
        self.outlive_if_succeeded();
    }

    /// Either this machine's calendar is wrong or the other's certificate is over: only a person can
    /// tell, so one is told.
    fn warn_of_calendar(&mut self, rejected: &Rejected) {
        let now = self.clock.now();
        if matches!(rejected, Rejected::Chain(ChainError::NotValidNow(_)))
            && now >= self.next_calendar_warning
        {
            self.next_calendar_warning = now + CALENDAR_WARNED_PERIOD;
            warn!(
                reason = %rejected, calendar_unix_millis = self.clock.wall().unix_millis,
                "a member's record is refused: its certificate is not valid now; check this machine's clock"
            );
        }
    }

    /// Offers the catalogue everything that the maps hold: chitchat tells of changes only, once.
    async fn retry_all(&mut self) {
        self.remembering.retry(&mut self.catalogue, self.clock.now(), self.clock.wall());
        for changes in self.replica.all_values().await.chunks(CHANGES_PER_TURN_MAX) {
            for change in changes {
                let _ = self.take_in(change);
            }
            tokio::task::yield_now().await;
        }
        self.hold_own_map().await;
        self.outlive_if_succeeded();
    }

    /// Any member's message can alter our own map; what we said stands, so it is said again.
    async fn defend_own_map(&mut self, change: &Change) {
        if self.spoken.get(&change.key) == Some(&change.value) {
            return;
        }
        let now = self.clock.now();
        let repaired = if now >= self.next_anew {
            self.next_anew = now + ANEW_PERIOD;
            self.say_own_map_anew().await
        } else {
            self.hold_own_map().await
        };
        if repaired > 0 {
            counter!("starling_gossip_overwritten_total").increment(1);
        }
    }

    /// Returns how many values were not as they should be.
    async fn hold_own_map(&mut self) -> usize {
        let held = self.replica.hold(&self.spoken).await;
        self.map_exhausted |= held.is_err();
        held.unwrap_or_default()
    }

    /// Returns how many values were not as they should be.
    async fn say_own_map_anew(&mut self) -> usize {
        let held = self.replica.hold_anew(&self.spoken).await;
        self.map_exhausted |= held.is_err();
        held.unwrap_or_default()
    }

    fn take_in(&mut self, change: &Change) -> Result<Applied, Rejected> {
        let taken_in = self.offer(change);
        self.missed |= match &taken_in {
            Ok(applied) => *applied == Applied::Waiting,
            Err(rejected) => rejected.may_heal(),
        };
        taken_in
    }

    fn offer(&mut self, change: &Change) -> Result<Applied, Rejected> {
        let bytes = from_text(&change.value).unwrap_or_default();
        let now = self.clock.now();
        if change.key == LEASE_KEY {
            let renewal =
                codec::decode::<Renewal, 64>(&bytes).map_err(|error| Rejected::Unreadable(error.into()))?;
            let applied = self.catalogue.apply_renewal(&change.name, &renewal, now, self.clock.wall());
            return applied.map(|()| Applied::Accepted);
        }
        self.catalogue.apply_filed(&change.name, &bytes, now, self.clock.wall())
    }

    fn outlive_if_succeeded(&mut self) {
        let heard =
            self.catalogue.version_of(self.publisher.owner()).map_or(0, |version| version.incarnation);
        let now = self.clock.now();
        if heard <= self.publisher.incarnation() || now < self.next_outlive {
            return;
        }
        self.next_outlive = now + OUTLIVE_PERIOD;
        warn!(
            owner = %self.publisher.owner(), heard, ours = self.publisher.incarnation(),
            "somebody spread a later life of this node: the calendar was set back, or another node \
             uses this identity and name; speaking above it"
        );
        self.publisher.outlive(heard, self.rng.random());
    }

    /// Carries what the publisher said into the catalogue and the map, and tells a few peers.
    async fn spread(&mut self) {
        self.remembering.begin_life(self.publisher.incarnation()).await;
        let (mut news, mut any) = (false, false);
        while let Some(said) = self.publisher.poll_said() {
            any = true;
            match &said {
                Said::Renewal(renewal) => debug!(counter = renewal.counter, "lease renewed"),
                Said::Node(_) | Said::Instance(..) => news = true,
            }
            let (key, bytes) = match &said {
                Said::Node(record) => (NODE_KEY.to_owned(), record.to_bytes()),
                Said::Instance(id, record) => (instance_key(id), record.to_bytes()),
                Said::Renewal(renewal) => (LEASE_KEY.to_owned(), codec::encode(renewal)),
            };
            let change = Change {
                name: self.replica_settings.name.clone(),
                generation: self.replica_settings.generation,
                key,
                value: to_text(&bytes),
            };
            if let Err(rejected) = self.take_in(&change) {
                error!(key = change.key, reason = %rejected, "this node's own record is refused; nobody will accept it");
            }
            self.spoken.insert(change.key, change.value);
        }
        if any {
            // With every renewal, so that also what somebody removed without a trace comes back.
            self.say_own_map_anew().await;
        }
        if news {
            self.tell_some(TOLD_AT_ONCE);
        }
    }

    fn pass_news_on(&mut self, now: Instant) {
        if self.has_news && now >= self.next_news {
            self.has_news = false;
            self.next_news = now + self.news.period;
            self.tell_some(self.news.told);
        }
    }

    fn tell_some(&mut self, count: usize) {
        let peers: Vec<_> = self.alive_peers().collect();
        for address in peers.into_iter().choose_multiple(&mut self.rng, count) {
            self.replica.gossip_with(address);
        }
    }

    fn alive_peers(&self) -> impl Iterator<Item = SocketAddr> + use<> {
        let own = self.publisher.owner().clone();
        let snapshot = self.snapshot_out.borrow().clone();
        let addresses: Vec<_> = snapshot
            .members
            .iter()
            .filter(|(owner, member)| **owner != own && member.presence == Presence::Alive)
            .map(|(_, member)| member.record.addresses[0])
            .collect();
        addresses.into_iter()
    }

    fn publish(&mut self) {
        self.remembering.carry_notes(&mut self.catalogue);
        if let Some(snapshot) = self.catalogue.poll_snapshot() {
            let present = snapshot.members.values().filter(|member| member.presence.is_present()).count();
            gauge!("starling_catalogue_members").set(present as f64);
            gauge!("starling_catalogue_services").set(snapshot.services.len() as f64);
            self.remembering.choose_acquaintances(&snapshot, &mut self.rng, self.clock.now());
            tell_changes(&self.snapshot_out.borrow(), &snapshot);
            self.snapshot_out.send_replace(Arc::new(snapshot));
        }
    }

    fn members(&self) -> Vec<MemberView> {
        let now = self.clock.now();
        let snapshot = self.snapshot_out.borrow().clone();
        let view = |(owner, member): (&Owner, &Member)| MemberView {
            owner: owner.clone(),
            member: member.clone(),
            heard: self.catalogue.heard(owner, now),
        };
        snapshot.members.iter().map(view).collect()
    }

    async fn leave(&mut self) {
        self.publisher.leave();
        for _ in 0..LEAVE_ROUNDS {
            self.spread().await;
            self.tell_some(TOLD_AT_ONCE);
            tokio::time::sleep(LEAVE_PERIOD).await;
        }
        info!(owner = %self.publisher.owner(), "left the mesh");
    }

    /// chitchat ended, by a fault of its own or a message that no honest peer sends. The catalogue
    /// stands; the map is built again in a new life.
    async fn restart_replica(&mut self) {
        error!("the repair path ended unexpectedly and is started again");
        counter!("starling_gossip_restarts_total").increment(1);
        self.replica = loop {
            tokio::time::sleep(JOIN_PERIOD).await;
            self.replica_settings.generation += 1;
            match Replica::start(self.replica_settings.clone(), self.link.clone(), self.book.clone()).await {
                Ok(replica) => break replica,
                Err(reason) => error!(%reason, "the repair path does not start; trying again"),
            }
        };
        self.map_exhausted = false;
        self.hold_own_map().await;
    }
}
