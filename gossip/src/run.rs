//! The one async loop of gossip, driven alike by the node and the simulator.
//!
//! It joins the state machines to the link. What the [`Publisher`] says goes into the node's own map and the
//! catalogue, and out as news; what peers say goes to the catalogue, and on, if it was new there; a changed
//! catalogue becomes the next [`Snapshot`]. All decisions are the machines'; this file only carries and keeps
//! time. What becomes of a message is in `hearing`, what time brings in `talking`.

mod hearing;
mod talking;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use metrics::{counter, gauge};
use rand::rngs::StdRng;
use rand::seq::IteratorRandom as _;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, error, info, warn};

use crate::allowance::Allowance;
use crate::catalogue::{Applied, Catalogue, Rejected};
use crate::clock::{Clock, Instant};
use crate::handle::{Command, MemberView, Setup};
use crate::identity::SpiffeId;
use crate::link::Link;
use crate::memory::{NODE_KEY, instance_key};
use crate::mending::Mending;
use crate::neighbours::{Neighbours, Peer};
use crate::post::Post;
use crate::publisher::{Publisher, Said};
use crate::record::{Locality, Owner};
use crate::remembering::Remembering;
use crate::renewing::Renewing;
use crate::repairing::{Repairing, is_talker};
use crate::replica::{AddressBook, ReplicaError, ReplicaSettings};
use crate::rumours::Rumours;
use crate::searching::Searching;
use crate::signature::SealedRecord;
use crate::snapshot::{Member, Presence, Snapshot};
use crate::svid::ChainError;
use crate::talk::{Filed, ReportedLease};
use crate::told::tell_changes;
use crate::watching::{SealedSighting, Seen, Sighting, Watching};
use crate::wire::MapId;

/// How often a seed is talked to once the mesh is known, so that halves of a mesh that lost
/// each other meet again.
pub const SEED_PERIOD: Duration = Duration::from_secs(10);

/// In a large mesh each node talks to a seed so much more seldom, for each member there is: a seed is everybody's, and
/// would be connected with all. A connection is kept for two minutes after, so these are thirty among all seeds.
const SEED_PERIOD_EACH: Duration = Duration::from_secs(4);

/// How often a node that knows nobody asks to join, and after how many times it also begins as members of an earlier
/// version did.
const JOIN_PERIOD: Duration = Duration::from_millis(400);
const JOINS_BEFORE_CLASSIC: u32 = 3;

/// How often a node asks that knows others already: they spoke to it first, or are of an earlier version.
const JOINS_MAX: u32 = 10;

/// How long a leaving node tells its peers.
const LEAVE_LASTS: Duration = Duration::from_millis(600);

/// Members of an earlier version that are told of news at once; and how many exchange with each in an interval.
const CLASSIC_TOLD: usize = 2;

/// Two nodes that share an identity and a name would outlive each other forever; this often.
const OUTLIVE_PERIOD: Duration = Duration::from_secs(10);

/// How often records that could not be used, but may be later, are tried again.
const RETRY_PERIOD: Duration = Duration::from_secs(30);

/// How often it is said that the calendar makes this node refuse others.
const CALENDAR_WARNED_PERIOD: Duration = Duration::from_secs(60);

/// A changed catalogue is published at most this often: a snapshot costs as much as the mesh is large, and a
/// thousand changes come at once when it starts.
const PUBLICATION_PERIOD: Duration = Duration::from_millis(20);

/// A node that is behind with what others have sent lets their time stand still for so long at most: what has come and
/// is not read may be their renewals.
const BEHIND_MAX: Duration = Duration::from_secs(60);

/// Who has not been up with them for so long is behind.
const BEHIND_AFTER: Duration = Duration::from_millis(500);

/// Messages taken in before other work gets a turn: each may cost signature checks (0.1 ms).
const MESSAGES_PER_TURN_MAX: usize = 16;

/// The loop itself; see [`crate::handle::Gossip::start`].
pub struct GossipLoop {
    publisher: Publisher,
    svid: Arc<crate::svid::Svid>,
    catalogue: Catalogue,
    remembering: Remembering,
    repairing: Repairing,
    rumours: Rumours,
    renewing: Renewing,
    neighbours: Neighbours,
    mending: Mending,
    searching: Searching,
    watching: Watching,
    link: Arc<dyn Link>,
    post: Arc<Post>,
    book: AddressBook,
    clock: Clock,
    rng: StdRng,
    inbox: mpsc::Receiver<Command>,
    snapshot_out: watch::Sender<Arc<Snapshot>>,
    own: Own,
    /// Everybody else who is present.
    peers: BTreeMap<u64, Peer>,
    /// By where they listen and who they are.
    names: BTreeMap<(SocketAddr, SpiffeId), u64>,
    /// Whom this node sends work to, and whom of them it looks at.
    cared_for: BTreeSet<Owner>,
    looked_at: BTreeSet<u64>,
    joining: Joining,
    heard: hearing::Heard,
    /// All that had come by then has been taken in.
    heard_until: Instant,
    next_talk: Instant,
    next_publication: Instant,
    next_seed: Instant,
    next_outlive: Instant,
    next_retry: Instant,
    next_calendar_warning: Instant,
    sequence: u64,
    /// The latest life in which somebody has spoken in this node's name.
    later_life: u64,
    /// Somebody speaks to this node whom it does not know.
    stranger: Option<(SocketAddr, SpiffeId)>,
    next_stranger: Instant,
    /// Somebody is back who may know what this node does not.
    exchange_with: Option<SocketAddr>,
    /// Its next renewal is news.
    is_refuting: bool,
    leaving: Option<(Instant, oneshot::Sender<()>)>,
}

/// What does not change about this node.
struct Own {
    name: u64,
    address: SocketAddr,
    locality: Locality,
    interval: Duration,
}

/// How far this node has come to know the others.
struct Joining {
    asked: u32,
    /// Those that were asked, and may welcome.
    expected: BTreeMap<SocketAddr, Instant>,
    next_ask: Instant,
    /// Leases of owners whose records come with a later part.
    pending: BTreeMap<SocketAddr, Vec<ReportedLease>>,
    /// Somebody has told it everything.
    is_welcomed: bool,
    /// Who was asked had no time, and named others to ask.
    is_referred: bool,
    /// How many more are to say how old leases are.
    reports_wanted: usize,
    welcomes: Allowance,
}

impl GossipLoop {
    pub(crate) async fn new(
        setup: Setup,
        inbox: mpsc::Receiver<Command>,
        snapshot_out: watch::Sender<Arc<Snapshot>>,
    ) -> Result<Self, ReplicaError> {
        let Setup {
            description,
            interval,
            svid,
            bundle,
            link,
            clock,
            random_seed,
            seeds,
            remembered,
            news,
            budget,
        } = setup;
        let mut rng = StdRng::seed_from_u64(random_seed);
        let (now, wall) = (clock.now(), clock.wall());
        let owner = Owner { identity: svid.id().clone(), node: description.name.clone() };
        let name = owner.number();
        let mut catalogue = Catalogue::new(bundle.clone());
        let mut remembering = Remembering::begin(remembered, owner, &mut catalogue, now, wall);
        let incarnation = remembering.first_life(wall).await;
        let acquaintances = remembering.acquaintances();
        let book = AddressBook { snapshots: snapshot_out.subscribe(), seeds, acquaintances };
        let own =
            Own { name, address: description.addresses[0], locality: description.locality.clone(), interval };
        let post = Post::new(link.clone(), book.clone(), own.address);
        let settings = ReplicaSettings {
            own: MapId { owner: name, generation: incarnation, address: own.address },
            trust_domain: bundle.domain().to_string(),
            interval,
        };
        debug!(incarnation, "gossip begins");
        let publisher = Publisher::new(svid.clone(), description, incarnation, rng.random(), now);
        let mut this = Self {
            repairing: Repairing::start(settings, post.clone(), now).await?,
            // Talks of nodes that start together are spread over the interval.
            next_talk: now + interval.mul_f64(rng.random()),
            neighbours: Neighbours::new(budget.connections_max, rng.random(), now),
            mending: Mending::new(budget, now),
            rumours: Rumours::new(news),
            renewing: Renewing::default(),
            searching: Searching::default(),
            watching: Watching::default(),
            joining: Joining::new(now),
            heard: hearing::Heard::default(),
            sequence: wall.unix_millis,
            later_life: 0,
            exchange_with: None,
            stranger: None,
            next_stranger: now,
            is_refuting: false,
            publisher,
            svid,
            catalogue,
            remembering,
            link,
            post,
            book,
            rng,
            inbox,
            snapshot_out,
            own,
            peers: BTreeMap::new(),
            names: BTreeMap::new(),
            cared_for: BTreeSet::new(),
            looked_at: BTreeSet::new(),
            heard_until: now,
            next_publication: now,
            next_seed: now,
            next_outlive: now,
            next_retry: now + RETRY_PERIOD,
            next_calendar_warning: now,
            leaving: None,
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
        // Its own hands: the link is read while the rest of the loop is borrowed.
        let link = self.link.clone();
        loop {
            self.spread().await;
            if self.clock.now() >= self.next_publication {
                self.publish();
            }
            self.tell_news();
            let timeout = self.next_timeout();
            tokio::select! {
                command = self.inbox.recv() => match command {
                    Some(command) => self.handle_command(command).await,
                    None => break,
                },
                received = link.recv() => match received {
                    Some(received) => self.handle_received(received).await,
                    // The link is closed: the node is stopping.
                    None => break,
                },
                () = self.repairing.ended() => {
                    error!("the repair path ended unexpectedly and is started again");
                    counter!("starling_gossip_restarts_total").increment(1);
                    self.begin_repair_anew().await;
                }
                () = tokio::time::sleep_until(timeout) => self.handle_timeout().await,
            }
            if self.leaving.as_ref().is_some_and(|(until, _)| self.clock.now() >= *until) {
                break;
            }
        }
        self.repairing.stop();
        if let Some((_, reply)) = self.leaving.take() {
            info!(owner = %self.publisher.owner(), "left the mesh");
            let _ = reply.send(());
        }
    }

    async fn handle_command(&mut self, command: Command) {
        match command {
            Command::SetInstance { id, instance } => self.publisher.set_instance(id, instance),
            Command::Rotate(svid, bundle) => {
                let (now, wall) = (self.clock.now(), self.clock.wall());
                let has_forgotten = self.catalogue.set_bundle(bundle, wall);
                self.svid = svid.clone();
                self.publisher.rotate(svid, wall.unix_millis, self.rng.random());
                self.remembering.retry(&mut self.catalogue, now, wall);
                if has_forgotten {
                    // They may be believed again one day, and then are news.
                    self.rumours.forget_known();
                    self.begin_repair_anew().await;
                }
            }
            Command::Members(reply) => {
                let _ = reply.send(self.members());
            }
            Command::Convergence(reply) => {
                let _ = reply.send(self.mending.convergence(self.catalogue.present(), self.clock.now()));
            }
            Command::Care(owners) => {
                self.cared_for = owners;
                self.look_after();
            }
            Command::Pulse(reply) => {
                let _ = reply.send(());
            }
            Command::Leave(reply) => {
                self.publisher.leave();
                self.leaving = Some((self.clock.now() + LEAVE_LASTS, reply));
            }
        }
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

    fn outlive_if_succeeded(&mut self) {
        let (heard, now) = (self.later_life, self.clock.now());
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

    async fn begin_repair_anew(&mut self) {
        self.repairing.begin_anew(&self.catalogue).await;
        if self.is_classic() {
            // Members of an earlier version count this life's heartbeats on, and take the new ones for a dead node's.
            self.publisher.outlive(self.publisher.incarnation(), self.rng.random());
        }
    }

    /// Carries what the publisher said into the catalogue and the map, and makes it news.
    async fn spread(&mut self) {
        self.remembering.begin_life(self.publisher.incarnation()).await;
        let mut is_news = false;
        while let Some(said) = self.publisher.poll_said() {
            self.repairing.begin_life(self.publisher.incarnation()).await;
            let (now, wall) = (self.clock.now(), self.clock.wall());
            let (key, sealed) = match said {
                Said::Renewal(renewal) => {
                    debug!(counter = renewal.counter, "lease renewed");
                    let name = self.publisher.owner().short_name();
                    // Its own, so it is good.
                    let _ = self.catalogue.apply_renewal(&name, &renewal, now, wall);
                    if std::mem::take(&mut self.is_refuting) {
                        self.rumours.handle_renewal(self.own.name, renewal, now);
                    }
                    self.renewing.handle_renewal(self.own.name, renewal);
                    if self.is_classic() {
                        self.repairing.say_renewal(&renewal).await;
                    }
                    continue;
                }
                Said::Node(record) => (NODE_KEY.to_owned(), record),
                Said::Instance(id, record) => (instance_key(&id), record),
            };
            is_news = true;
            self.say(key, &sealed, now).await;
        }
        if is_news && self.is_classic() {
            self.tell_classic().await;
        }
    }

    async fn say(&mut self, key: String, sealed: &SealedRecord, now: Instant) {
        let bytes = sealed.to_bytes();
        let Ok(record) = sealed.unverified() else { return };
        let filed = Filed::of(&record);
        if let Err(rejected) = self.catalogue.apply_record(sealed, record, now, self.clock.wall()) {
            error!(key, reason = %rejected, "this node's own record is refused; nobody will accept it");
        }
        self.repairing.say(key, filed.version.version, &bytes).await;
        self.rumours.handle_own(filed, bytes.into(), now);
    }

    /// Whether a member of an earlier version is present.
    fn is_classic(&self) -> bool {
        self.peers.values().any(|peer| !peer.is_talker)
    }

    /// How likely this node is to exchange with a member of an earlier version, for each of them to hear from
    /// [`CLASSIC_TOLD`] at a time, however many others there are.
    fn classic_share(&self) -> f64 {
        let classic = self.peers.values().filter(|peer| !peer.is_talker).count();
        let talkers = self.peers.len() - classic + 1;
        ((CLASSIC_TOLD * classic) as f64 / talkers as f64).min(1.0)
    }

    /// Tells members of an earlier version of news, as they would.
    async fn tell_classic(&mut self) {
        let now = self.clock.now();
        let classic = self.peers.values().filter(|peer| !peer.is_talker && peer.is_alive);
        let classic = classic.map(|peer| peer.address).choose_multiple(&mut self.rng, CLASSIC_TOLD);
        for address in classic {
            self.repairing.gossip_with(address, &self.catalogue, now).await;
        }
    }

    fn publish(&mut self) {
        self.remembering.carry_notes(&mut self.catalogue);
        let Some(snapshot) = self.catalogue.poll_snapshot() else { return };
        let now = self.clock.now();
        self.next_publication = now + PUBLICATION_PERIOD;
        let present = snapshot.members.values().filter(|member| member.presence.is_present()).count();
        gauge!("starling_catalogue_members").set(present as f64);
        gauge!("starling_catalogue_services").set(snapshot.services.len() as f64);
        self.remembering.choose_acquaintances(&snapshot, &mut self.rng, now);
        tell_changes(&self.snapshot_out.borrow(), &snapshot);
        self.follow_members(&snapshot, now);
        self.mending.handle_own(self.catalogue.knows(), now);
        self.snapshot_out.send_replace(Arc::new(snapshot));
    }

    /// Chooses anew whom to talk to and whom to watch.
    fn follow_members(&mut self, snapshot: &Snapshot, now: Instant) {
        let others = snapshot.members.iter().filter(|(owner, _)| **owner != *self.publisher.owner());
        let present = others.filter(|(_, member)| member.presence.is_present());
        let peer = |(owner, member): (&Owner, &Member)| {
            let peer = Peer {
                address: member.record.addresses[0],
                identity: owner.identity.clone(),
                distance: self.own.locality.distance(&member.record.locality),
                is_talker: is_talker(&member.record),
                is_alive: member.presence == Presence::Alive,
            };
            (self.catalogue.name_of(owner).unwrap_or_default(), peer)
        };
        self.peers = present.map(peer).collect();
        self.rumours.set_members(self.peers.len() + 1);
        let named = |(name, peer): (&u64, &Peer)| ((peer.address, peer.identity.clone()), *name);
        self.names = self.peers.iter().map(named).collect();
        let talkers = self.peers.values().filter(|peer| peer.is_talker).map(|peer| peer.address).collect();
        self.post.set_talkers(talkers);
        self.repairing.set_classic(self.is_classic());
        self.neighbours.choose(&self.peers, now, &mut self.rng);
        self.mending.forget_unless(|peer| self.peers.contains_key(&peer));
        self.search_for(snapshot, now);
        self.look_after();
    }

    /// Looks for those who are gone, and for members at seeds where it knows none.
    fn search_for(&mut self, snapshot: &Snapshot, now: Instant) {
        let others = snapshot.members.iter().filter(|(owner, _)| **owner != *self.publisher.owner());
        let lost = others.filter(|(_, it)| it.presence == Presence::Expired && is_talker(&it.record));
        let lost: BTreeSet<_> =
            lost.map(|(owner, it)| (it.record.addresses[0], owner.identity.clone())).collect();
        let is_lost = |seed: &SocketAddr| lost.iter().any(|(address, _)| address == seed);
        let mut strange = self.book.seeds.borrow().clone();
        strange.retain(|seed| !snapshot.addresses.contains_key(seed) && !is_lost(seed));
        let is_back = |one: &(SocketAddr, SpiffeId)| self.names.contains_key(one);
        self.searching.set(self.peers.len() + 1, lost, is_back, strange.into_iter(), now, &mut self.rng);
    }

    /// Watches whom it is to watch, and looks at whom it cares for and others doubt.
    fn look_after(&mut self) {
        let now = self.clock.now();
        let talks = |name: &u64| self.peers.get(name).is_some_and(|peer| peer.is_talker);
        let watched: Vec<u64> = self.catalogue.watched_by(self.own.name).into_iter().filter(talks).collect();
        let accused: BTreeSet<u64> = self.catalogue.accused(self.cared_for.iter()).filter(talks).collect();
        for subject in self.looked_at.difference(&accused).copied().collect::<Vec<_>>() {
            self.catalogue.apply_own_sight(subject, None, now);
        }
        let rng = &mut self.rng;
        self.watching.set(watched.into_iter(), accused.iter().copied(), now, || rng.random());
        self.looked_at = accused;
    }

    /// What became clear to this node of somebody.
    fn handle_seen(&mut self, seen: Seen) {
        let now = self.clock.now();
        if self.looked_at.contains(&seen.subject) {
            self.catalogue.apply_own_sight(seen.subject, Some(seen.is_reachable), now);
        }
        if !seen.is_news {
            return;
        }
        let Some((_, node, _)) = self.catalogue.node_of(seen.subject) else { return };
        let incarnation = node.version.incarnation;
        self.sequence = (self.sequence + 1).max(self.clock.wall().unix_millis);
        let sighting = Sighting {
            watcher: self.own.name,
            subject: seen.subject,
            incarnation,
            counter: self.catalogue.counter_of(seen.subject),
            sequence: self.sequence,
            is_reachable: seen.is_reachable,
        };
        let sealed = SealedSighting::seal(sighting, &self.svid);
        if self.catalogue.apply_sighting(&sealed, now).is_ok() {
            self.rumours.handle_sighting(self.svid.id(), sealed, now);
        }
    }

    fn members(&self) -> Vec<MemberView> {
        let now = self.clock.now();
        let snapshot = self.snapshot_out.borrow().clone();
        let view = |(owner, member): (&Owner, &Member)| MemberView {
            owner: owner.clone(),
            member: member.clone(),
            heard: self.catalogue.heard(owner, now),
            doubt: self.catalogue.doubt_of(owner),
            traffic: self.post.traffic_with(member.record.addresses[0]),
        };
        snapshot.members.iter().map(view).collect()
    }
}

impl Joining {
    fn new(now: Instant) -> Self {
        Self {
            asked: 0,
            expected: BTreeMap::new(),
            pending: BTreeMap::new(),
            next_ask: now,
            is_welcomed: false,
            is_referred: false,
            reports_wanted: 0,
            welcomes: Allowance::new(hearing::WELCOME_BYTES_PER_SECOND, hearing::WELCOME_BYTES_AT_ONCE, now),
        }
    }
}
