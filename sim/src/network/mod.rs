//! The gossip core's link over a network whose every whim is drawn from the seed.
//!
//! It keeps what [`Link`] demands of identity: a message for a member reaches nobody else, one for
//! a connection needs a connection, and who has none pays for a handshake. It carries messages, not
//! packets; what loss does to a message is decided in [`fate`], who reaches whom in [`partition`], who is connected in
//! [`connection`].

pub mod connection;
pub mod fate;
pub mod partition;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use starling_gossip::identity::SpiffeId;
use starling_gossip::kind::MessageKind;
use starling_gossip::link::{Destination, Link, Received};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::scenario::Conditions;
use crate::trace::{Event, Trace};
use connection::{Connections, IDLE_TIMEOUT};
use partition::{Partition, Partitions};

/// Messages on their way to one host; more are dropped, the newest first.
const ON_THE_WAY_MAX: usize = 8192;

/// Where addresses begin; a host that moves listens on the next port.
const PORT: u16 = 7400;

/// Messages and bytes by kind, all hosts together; lost messages included.
pub type Traffic = BTreeMap<MessageKind, (u64, u64)>;

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
    partitions: Partitions,
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
    withholds: bool,
    /// When what it has sent so far will have left, if its bandwidth is bounded.
    sends_at: Instant,
    /// When it is done with the last message it took in.
    takes_at: Instant,
    /// By arrival; the number keeps those of one moment in the order of sending.
    on_the_way: BTreeMap<(Instant, u64), Received>,
    news: Arc<Notify>,
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
            partitions: Partitions::default(),
            traffic: Traffic::new(),
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
            withholds: false,
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

    /// `host` passes on nothing that it heard, from now on or no longer.
    pub fn set_withholding(&self, host: usize, withholds: bool) {
        self.with_host(host, |host| host.withholds = withholds);
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
        self.state().traffic.clone()
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

    fn send(&self, from: &HostLink, to: &Destination, message: Vec<u8>) {
        let Some(target) = host_of(to.address()) else { return };
        let mut state = self.state();
        let Some(sender) = state.hosts.get(&from.host).filter(|it| it.address == from.address) else {
            return;
        };
        if sender.paused_since.is_some() || !state.may_go(from.host, target, to) {
            return;
        }
        let message =
            if sender.withholds { crate::hostile::withheld(message, sender.address) } else { message };
        let traffic = state.traffic.entry(MessageKind::of(&message)).or_default();
        traffic.0 += 1;
        traffic.1 += message.len() as u64;
        let arrivals = state.arrivals(from.host, target, message.len());
        let is_lost = arrivals.is_empty();
        self.trace.record(from.host, Event::Sent { to: target, message: &message, is_lost });
        let received = Received { from: from.address, peer: from.identity.clone(), message };
        for at in arrivals {
            state.put_on_the_way(target, at, received.clone());
        }
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
        state.queue_max = state.queue_max.max(waiting);
        Ok(received)
    }
}

impl State {
    fn may_go(&self, from: usize, target: usize, to: &Destination) -> bool {
        let Some(host) = self.hosts.get(&target) else { return false };
        let is_there = host.address == to.address();
        match to {
            Destination::Member { identity, .. } => is_there && *identity == host.identity,
            Destination::Seed(_) => is_there,
            Destination::Connected(_) => is_there && self.is_connected(from, target),
        }
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
    fn arrivals(&mut self, from: usize, target: usize, bytes: usize) -> Vec<Instant> {
        let now = Instant::now();
        let (Some(sender), Some(receiver)) = (self.hosts.get(&from), self.hosts.get(&target)) else {
            return Vec::new();
        };
        let conditions = self.paths[sender.site][receiver.site].clone();
        let passing =
            (1.0 - conditions.loss) * (1.0 - sender.handicap.loss_out) * (1.0 - receiver.handicap.loss_in);
        let sends_at = sender.sends_at.max(now);
        let is_connected = self.is_connected(from, target);
        let travelled = fate::travel(&conditions, 1.0 - passing, bytes, &mut self.rng);
        let is_twice = self.rng.random_bool(conditions.duplicate);
        if !is_connected && !self.can_connect(from, target) {
            return Vec::new();
        }
        let Some(travelled) = travelled.filter(|_| !self.partitions.block(from, target)) else {
            return Vec::new();
        };
        self.connections.touch(from, target, now);
        // A handshake takes a round trip before the first message leaves (RFC 9001, section 4).
        let handshake = if is_connected { Duration::ZERO } else { conditions.latency.0 * 2 };
        let sent = match conditions.bandwidth {
            0 => now,
            bandwidth => {
                let on_wire = bytes + fate::packets(bytes) * fate::PACKET_OVERHEAD_BYTES;
                sends_at + Duration::from_secs_f64(on_wire as f64 / bandwidth as f64)
            }
        };
        if sent > now + fate::GIVEN_UP {
            return Vec::new();
        }
        if let Some(sender) = self.hosts.get_mut(&from) {
            sender.sends_at = sent;
        }
        let first = sent + handshake + travelled;
        if is_twice { vec![first, first + conditions.latency.0] } else { vec![first] }
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
}

#[async_trait]
impl Link for HostLink {
    fn send(&self, to: Destination, message: Vec<u8>) {
        self.network.send(self, &to, message);
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
