//! The gossip core's link over a network whose every whim is drawn from the seed.
//!
//! It keeps what [`Link`] demands of identity: a message for a member reaches nobody else, one for
//! a connection needs a connection, and who has none pays for a handshake. It carries messages, not
//! packets; what loss does to a message is decided in [`fate`], who reaches whom in [`partition`], who is connected in
//! [`connection`], how often the unreachable are dialled in [`dial`]; what all that costs on the wire says [`quic`].

pub mod connection;
pub mod dial;
pub mod fate;
pub mod partition;
pub mod quic;
pub mod traffic;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use starling_gossip::identity::SpiffeId;
use starling_gossip::kind::MessageKind;
use starling_gossip::link::{Delivery, Destination, Link, Received};
use starling_gossip::record::Owner;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::scenario::Conditions;
use crate::trace::{Event, Trace};
use connection::{Connections, IDLE_TIMEOUT};
use dial::Dials;
use partition::{Partition, Partitions};
use quic::{FRAME_BYTES, PACKET_OVERHEAD_BYTES};
use traffic::Traffic;

/// Messages on their way to one host; more are dropped, the newest first.
const ON_THE_WAY_MAX: usize = 8192;

/// Messages that a tapped host keeps.
const TAPPED_MAX: usize = 256;

/// Where addresses begin; a host that moves listens on the next port.
const PORT: u16 = 7400;

/// How one host differs from others.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Handicap {
    /// The share of packets to it that are lost.
    pub loss_in: f64,
    /// The share of packets from it that are lost.
    pub loss_out: f64,
    /// What taking in a message costs it.
    pub slow: Duration,
}

/// All hosts of a simulation.
pub struct Network {
    trace: Arc<Trace>,
    state: Mutex<State>,
}

struct State {
    rng: StdRng,
    /// By site, from and to.
    paths: Vec<Vec<Conditions>>,
    hosts: BTreeMap<usize, Host>,
    connections: Connections,
    dials: Dials,
    partitions: Partitions,
    /// Pairs that have nothing to do with each other, and until when.
    shunning: BTreeMap<[usize; 2], Instant>,
    traffic: Traffic,
    queue_max: usize,
    sequence: u64,
}

struct Host {
    identity: SpiffeId,
    address: SocketAddr,
    site: usize,
    handicap: Handicap,
    paused_since: Option<Instant>,
    /// Who it is, if it passes nothing on.
    withholds: Option<Owner>,
    /// What it heard lately, if somebody wants to hear it again.
    tapped: Option<VecDeque<Vec<u8>>>,
    /// When what it has sent so far will have left, if its bandwidth is bounded.
    sends_at: Instant,
    /// When it is done with the last message it took in.
    takes_at: Instant,
    /// By arrival; the number keeps those of one moment in the order of sending.
    on_the_way: BTreeMap<(Instant, u64), Received>,
    news: Arc<Notify>,
}

/// What lies between two hosts that are there.
struct Way {
    from: usize,
    target: usize,
    conditions: Conditions,
    /// The share of packets that are lost, handicaps included; and of those that go back.
    loss: f64,
    loss_back: f64,
}

/// One host's end of the network.
pub struct HostLink {
    network: Arc<Network>,
    host: usize,
    address: SocketAddr,
    identity: SpiffeId,
    news: Arc<Notify>,
}

impl Network {
    /// An empty network; `paths` says by site, from and to, how messages fare.
    pub fn new(paths: Vec<Vec<Conditions>>, seed: u64, trace: Arc<Trace>) -> Arc<Self> {
        let state = State {
            rng: StdRng::seed_from_u64(seed),
            paths,
            hosts: BTreeMap::new(),
            connections: Connections::default(),
            dials: Dials::default(),
            partitions: Partitions::default(),
            shunning: BTreeMap::new(),
            traffic: Traffic::default(),
            queue_max: 0,
            sequence: 0,
        };
        Arc::new(Self { trace, state: Mutex::new(state) })
    }

    /// Host number `host`, which stands at `site`, listens at `address` and proves `identity`.
    pub fn plug(
        self: &Arc<Self>,
        host: usize,
        site: usize,
        address: SocketAddr,
        identity: SpiffeId,
    ) -> Arc<HostLink> {
        let news = Arc::new(Notify::new());
        let plugged = Host {
            identity: identity.clone(),
            address,
            site,
            handicap: Handicap::default(),
            paused_since: None,
            withholds: None,
            tapped: None,
            sends_at: Instant::now(),
            takes_at: Instant::now(),
            on_the_way: BTreeMap::new(),
            news: news.clone(),
        };
        self.state().hosts.insert(host, plugged);
        Arc::new(HostLink { network: self.clone(), host, address, identity, news })
    }

    /// Nothing leaves or reaches `host` any more.
    pub fn unplug(&self, host: usize) {
        let mut state = self.state();
        state.hosts.remove(&host);
        state.dials.forget(host);
        state.connections.cut(|one, other| one == host || other == host);
    }

    /// `host` stands still: it sends nothing, and messages wait for it.
    pub fn pause(&self, host: usize) {
        self.with_host(host, |host| host.paused_since = Some(Instant::now()));
    }

    /// `host` goes on. What waited for too long has been given up by its senders, and so have its connections.
    pub fn resume(&self, host: usize) {
        let now = Instant::now();
        let mut since = None;
        self.with_host(host, |host| {
            since = host.paused_since.take();
            host.on_the_way.retain(|(at, _), _| now < *at + fate::GIVEN_UP);
        });
        if since.is_some_and(|since| now >= since + IDLE_TIMEOUT) {
            self.state().connections.cut(|one, other| one == host || other == host);
        }
    }

    /// `host` differs from others from now on.
    pub fn set_handicap(&self, host: usize, handicap: Handicap) {
        self.with_host(host, |host| host.handicap = handicap);
    }

    /// `host`, which is the node `own`, passes on nothing that it heard, from now on; or no longer.
    pub fn set_withholding(&self, host: usize, own: Option<Owner>) {
        self.with_host(host, |host| host.withholds = own);
    }

    /// What reaches `host` from now on is kept for [`HostLink::tapped`].
    pub fn tap(&self, host: usize) {
        self.with_host(host, |host| host.tapped = Some(VecDeque::new()));
    }

    /// The network falls into parts; the number heals it.
    pub fn split(&self, partition: Partition) -> u64 {
        self.state().partitions.begin(partition, Instant::now())
    }

    /// What [`Self::split`] did is over.
    pub fn heal(&self, number: u64) {
        let mut state = self.state();
        let Some((since, partition)) = state.partitions.end(number) else { return };
        if Instant::now() >= since + IDLE_TIMEOUT {
            state.connections.cut(|one, other| partition.divides(one, other));
        }
    }

    /// By host, who reaches whom; see [`Partitions::components`].
    pub fn components(&self, is_up: &[bool]) -> Vec<u16> {
        self.state().partitions.components(is_up)
    }

    /// What was sent so far.
    pub fn traffic(&self) -> Traffic {
        let mut state = self.state();
        let State { connections, traffic, .. } = &mut *state;
        connections.settle(Instant::now(), traffic);
        traffic.clone()
    }

    /// By host that is plugged in: how many connections it has.
    pub fn connections(&self) -> BTreeMap<usize, usize> {
        let state = self.state();
        let mut counts: BTreeMap<usize, usize> = state.hosts.keys().map(|host| (*host, 0)).collect();
        for host in state.connections.pairs(Instant::now()).flat_map(|(one, other)| [one, other]) {
            counts.entry(host).and_modify(|count| *count += 1);
        }
        counts
    }

    /// The most messages that ever waited at one host.
    pub fn queue_max(&self) -> usize {
        self.state().queue_max
    }

    fn with_host(&self, host: usize, change: impl FnOnce(&mut Host)) {
        if let Some(host) = self.state().hosts.get_mut(&host) {
            change(host);
            host.news.notify_one();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whoever panicked with it ends the simulation.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, from: &HostLink, to: &Destination, message: Vec<u8>, delivery: Delivery) {
        let Some(target) = host_of(to.address()) else { return };
        let mut state = self.state();
        let Some(sender) = state.hosts.get(&from.host).filter(|it| it.address == from.address) else {
            return;
        };
        if sender.paused_since.is_some() {
            return;
        }
        let message = match &sender.withholds {
            Some(own) => crate::hostile::withheld(message, own, sender.address),
            None => message,
        };
        let Some(way) = state.connect(from.host, target, to) else { return };
        let arrivals = state.arrivals(&way, &message, delivery);
        let is_lost = arrivals.is_empty();
        self.trace.record(from.host, Event::Sent { to: target, message: &message, is_lost });
        let received = Received { from: from.address, peer: from.identity.clone(), message };
        for at in arrivals {
            state.put_on_the_way(target, at, received.clone());
        }
    }

    fn shun(&self, host: usize, other: usize, span: Duration) {
        let mut state = self.state();
        state.shunning.insert([host, other], Instant::now() + span);
        state.connections.cut(|one, two| (one, two) == (host.min(other), host.max(other)));
        for (at, from) in [(host, other), (other, host)] {
            if let Some(host) = state.hosts.get_mut(&at) {
                host.on_the_way.retain(|_, received| host_of(received.from) != Some(from));
            }
        }
    }

    fn has_arrivals(&self, host: usize) -> bool {
        let arrived = ..=(Instant::now(), u64::MAX);
        self.state().hosts.get(&host).is_some_and(|host| host.on_the_way.range(arrived).next().is_some())
    }

    /// What has arrived at `host`, or when the next message will.
    fn arrived(&self, host: usize) -> Result<Received, Option<Instant>> {
        let mut state = self.state();
        let now = Instant::now();
        let plugged = state.hosts.get_mut(&host).filter(|host| host.paused_since.is_none()).ok_or(None)?;
        let waiting = plugged.on_the_way.range(..=(now, u64::MAX)).take(ON_THE_WAY_MAX).count();
        let takes_at = plugged.takes_at;
        let first = plugged.on_the_way.first_entry().ok_or(None)?;
        let at = first.key().0.max(takes_at);
        if at > now {
            return Err(Some(at));
        }
        let received = first.remove();
        plugged.takes_at = now + plugged.handicap.slow;
        if let Some(tapped) = &mut plugged.tapped {
            tapped.push_back(received.message.clone());
            tapped.drain(..tapped.len().saturating_sub(TAPPED_MAX));
        }
        state.queue_max = state.queue_max.max(waiting);
        Ok(received)
    }
}

impl State {
    /// The way for a message, with a connection if there can be one; else the sender may dial in vain.
    fn connect(&mut self, from: usize, target: usize, to: &Destination) -> Option<Way> {
        let now = Instant::now();
        let is_connected = self.is_connected(from, target);
        let way = self.way(from, target).filter(|_| self.is_named(target, to));
        let way = way.filter(|_| !self.is_shunned(from, target, now));
        if is_connected && way.is_some() {
            return way;
        }
        if matches!(to, Destination::Connected(_)) {
            return None;
        }
        let way = way.filter(|_| self.can_connect(from, target));
        let took = way
            .as_ref()
            .and_then(|way| fate::handshake(&way.conditions, [way.loss, way.loss_back], &mut self.rng));
        let Some(took) = took else {
            if self.dials.fails(from, target, now) {
                self.traffic.failed_dial(from);
            }
            return None;
        };
        self.dials.succeeds(from, target);
        self.connections.open(from, target, now, now + took);
        self.traffic.handshake([from, target]);
        way
    }

    fn way(&self, from: usize, target: usize) -> Option<Way> {
        let (sender, receiver) = (self.hosts.get(&from)?, self.hosts.get(&target)?);
        let conditions = self.paths[sender.site][receiver.site].clone();
        let back = &self.paths[receiver.site][sender.site];
        let lost = |conditions: &Conditions, from: &Handicap, to: &Handicap| {
            1.0 - (1.0 - conditions.loss) * (1.0 - from.loss_out) * (1.0 - to.loss_in)
        };
        Some(Way {
            from,
            target,
            loss: lost(&conditions, &sender.handicap, &receiver.handicap),
            loss_back: lost(back, &receiver.handicap, &sender.handicap),
            conditions,
        })
    }

    /// Whether the host is whom a message is for.
    fn is_named(&self, target: usize, to: &Destination) -> bool {
        self.hosts.get(&target).is_some_and(|host| {
            let is_right = !matches!(to, Destination::Member { identity, .. } if *identity != host.identity);
            host.address == to.address() && is_right
        })
    }

    fn is_shunned(&self, one: usize, other: usize, now: Instant) -> bool {
        let shuns = |by, whom| self.shunning.get(&[by, whom]).is_some_and(|until| now < *until);
        shuns(one, other) || shuns(other, one)
    }

    /// Whether the two have a connection that still works, or does as far as they know.
    fn is_connected(&self, one: usize, other: usize) -> bool {
        let now = Instant::now();
        let still_since = [one, other].map(|host| self.hosts.get(&host).and_then(|host| host.paused_since));
        let divided_since = self.partitions.divided_since(one, other);
        let mut silent_since = still_since.into_iter().chain([divided_since]).flatten();
        self.connections.has(one, other, now) && silent_since.all(|since| now < since + IDLE_TIMEOUT)
    }

    /// Whether packets pass both ways, so that a handshake comes to its end.
    fn can_connect(&self, one: usize, other: usize) -> bool {
        let is_awake = |host: &usize| self.hosts.get(host).is_some_and(|host| host.paused_since.is_none());
        [one, other].iter().all(is_awake) && self.partitions.divided_since(one, other).is_none()
    }

    /// When a message arrives, each time it does.
    fn arrivals(&mut self, way: &Way, message: &[u8], delivery: Delivery) -> Vec<Instant> {
        let Way { from, target, ref conditions, loss, .. } = *way;
        let (now, bytes) = (Instant::now(), message.len());
        let (delivery, packets) = (fate::delivery(delivery, bytes), fate::packets(bytes));
        let travelled = fate::travel(conditions, loss, bytes, delivery, &mut self.rng);
        let travelled = travelled.filter(|_| !self.partitions.block(from, target));
        let is_twice = self.rng.random_bool(conditions.duplicate);
        let overhead = FRAME_BYTES + packets * PACKET_OVERHEAD_BYTES;
        let Some(sent) = self.leaves_at(way, bytes + overhead, now) else { return Vec::new() };
        let again = fate::sent_again(loss, packets, delivery, travelled.is_some());
        let again = again * (bytes + overhead) as f64 / packets as f64;
        self.traffic.message(from, MessageKind::of(message), bytes);
        self.traffic.overhead(from, overhead + again as usize);
        self.connections.use_for(from, target, sent, &mut self.traffic);
        let Some(travelled) = travelled else { return Vec::new() };
        let first = sent + travelled;
        self.connections.arrive((from, target), packets, first, &mut self.traffic);
        if is_twice { vec![first, first + conditions.latency.0] } else { vec![first] }
    }

    /// When a message has left its sender, handshake and bandwidth considered, if it ever does.
    fn leaves_at(&mut self, way: &Way, bytes_on_wire: usize, now: Instant) -> Option<Instant> {
        let sender = self.hosts.get_mut(&way.from)?;
        let free = match way.conditions.bandwidth {
            0 => now,
            bandwidth => {
                let takes = Duration::from_secs_f64(bytes_on_wire as f64 / bandwidth as f64);
                sender.sends_at.max(now) + takes
            }
        };
        if free > now + fate::GIVEN_UP {
            return None;
        }
        sender.sends_at = free;
        Some(self.connections.leaves_at(way.from, way.target, free))
    }

    fn put_on_the_way(&mut self, target: usize, at: Instant, received: Received) {
        self.sequence += 1;
        let Some(host) = self.hosts.get_mut(&target) else { return };
        if host.on_the_way.len() < ON_THE_WAY_MAX {
            host.on_the_way.insert((at, self.sequence), received);
            host.news.notify_one();
        }
    }
}

impl HostLink {
    /// Where this host listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What reached this host lately, if it is tapped.
    pub fn tapped(&self) -> Vec<Vec<u8>> {
        let state = self.network.state();
        let tapped = state.hosts.get(&self.host).and_then(|host| host.tapped.as_ref());
        tapped.into_iter().flatten().cloned().collect()
    }
}

#[async_trait]
impl Link for HostLink {
    fn send(&self, to: Destination, message: Vec<u8>, delivery: Delivery) {
        self.network.send(self, &to, message, delivery);
    }

    /// A host has one identity, so its number says whom it is about.
    fn shun(&self, _peer: &SpiffeId, address: SocketAddr, span: Duration) {
        if let Some(other) = host_of(address) {
            self.network.shun(self.host, other, span);
        }
    }

    fn is_behind(&self) -> bool {
        self.network.has_arrivals(self.host)
    }

    async fn recv(&self) -> Option<Received> {
        loop {
            let next = match self.network.arrived(self.host) {
                Ok(received) => {
                    let from = host_of(received.from)?;
                    self.network.trace.record(self.host, Event::Received { from });
                    return Some(received);
                }
                Err(next) => next,
            };
            match next {
                Some(at) => tokio::select! {
                    biased;
                    () = self.news.notified() => {}
                    () = sleep_until(at) => {}
                },
                None => self.news.notified().await,
            }
        }
    }
}

/// Where host number `host` listens once it has moved so often: 10.x.y.z with its number plus one.
pub fn address_of(host: usize, moves: u16) -> SocketAddr {
    let [_, high, middle, low] = (host as u32 + 1).to_be_bytes();
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, high, middle, low)), PORT + moves)
}

/// The host that listens, or once did, at `address`.
pub fn host_of(address: SocketAddr) -> Option<usize> {
    let IpAddr::V4(ip) = address.ip() else { return None };
    let [_, high, middle, low] = ip.octets();
    (u32::from_be_bytes([0, high, middle, low]) as usize).checked_sub(1)
}
