//! The gossip core's link over a network of latency, jitter and loss, all drawn from the seed.
//!
//! It keeps what [`Link`] demands of identity: a message for a member reaches nobody else, one for
//! a connection needs a connection. It models messages, not packets: a message is lost, late or
//! overtaken as a whole, and bandwidth costs nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use starling_gossip::identity::SpiffeId;
use starling_gossip::link::{Destination, Link, Received};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::trace::{Event, Trace};

/// Messages on their way to one host; more are dropped, the newest first.
const ON_THE_WAY_MAX: usize = 4096;

/// How the network treats messages.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// What every message takes.
    pub latency: Duration,
    /// What it may take on top, evenly spread; messages overtake each other by it.
    pub jitter: Duration,
    /// The share of messages that are lost, 0 to 1.
    pub loss: f64,
}

/// What was sent so far, all hosts together; lost messages included.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    /// Messages.
    pub messages: u64,
    /// Their bytes, without what a real transport adds.
    pub bytes: u64,
}

/// All hosts of a simulation.
pub struct Network {
    conditions: Conditions,
    trace: Arc<Trace>,
    state: Mutex<State>,
}

struct State {
    rng: StdRng,
    hosts: BTreeMap<usize, Host>,
    connections: BTreeSet<(usize, usize)>,
    traffic: Traffic,
    sequence: u64,
}

struct Host {
    identity: SpiffeId,
    /// By arrival; the number keeps those of one moment in the order of sending.
    on_the_way: BTreeMap<(Instant, u64), Received>,
    news: Arc<Notify>,
}

/// One host's end of the network.
pub struct HostLink {
    network: Arc<Network>,
    host: usize,
    identity: SpiffeId,
    news: Arc<Notify>,
}

impl Network {
    /// An empty network.
    pub fn new(conditions: Conditions, seed: u64, trace: Arc<Trace>) -> Arc<Self> {
        let state = State {
            rng: StdRng::seed_from_u64(seed),
            hosts: BTreeMap::new(),
            connections: BTreeSet::new(),
            traffic: Traffic::default(),
            sequence: 0,
        };
        Arc::new(Self { conditions, trace, state: Mutex::new(state) })
    }

    /// Host number `host`, which proves `identity`.
    pub fn plug(self: &Arc<Self>, host: usize, identity: SpiffeId) -> Arc<HostLink> {
        let news = Arc::new(Notify::new());
        let plugged = Host { identity: identity.clone(), on_the_way: BTreeMap::new(), news: news.clone() };
        self.state().hosts.insert(host, plugged);
        Arc::new(HostLink { network: self.clone(), host, identity, news })
    }

    /// Nothing leaves or reaches `host` any more.
    pub fn unplug(&self, host: usize) {
        let mut state = self.state();
        state.hosts.remove(&host);
        state.connections.retain(|(one, other)| *one != host && *other != host);
    }

    /// What was sent so far.
    pub fn traffic(&self) -> Traffic {
        self.state().traffic
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whoever panicked with it ends the simulation.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, from: &HostLink, to: &Destination, message: Vec<u8>) {
        let Some(target) = host_of(to.address()) else { return };
        let mut state = self.state();
        if !state.hosts.contains_key(&from.host) || !state.may_go(from.host, target, to) {
            return;
        }
        state.traffic.messages += 1;
        state.traffic.bytes += message.len() as u64;
        let is_lost = state.rng.random_bool(self.conditions.loss);
        let delay = self.conditions.latency + self.conditions.jitter.mul_f64(state.rng.random::<f64>());
        self.trace.record(from.host, Event::Sent { to: target, message: &message, is_lost });
        state.connections.extend([(from.host, target), (target, from.host)]);
        if !is_lost {
            let received = Received { from: address_of(from.host), peer: from.identity.clone(), message };
            state.put_on_the_way(target, Instant::now() + delay, received);
        }
    }

    /// What has arrived at `host`, or when the next message will.
    fn arrived(&self, host: usize) -> Result<Received, Option<Instant>> {
        let mut state = self.state();
        let on_the_way = &mut state.hosts.get_mut(&host).ok_or(None)?.on_the_way;
        let first = on_the_way.first_entry().ok_or(None)?;
        let (at, _) = *first.key();
        if at > Instant::now() { Err(Some(at)) } else { Ok(first.remove()) }
    }
}

impl State {
    fn may_go(&self, from: usize, target: usize, to: &Destination) -> bool {
        let Some(host) = self.hosts.get(&target) else { return false };
        match to {
            Destination::Member { identity, .. } => *identity == host.identity,
            Destination::Seed(_) => true,
            Destination::Connected(_) => self.connections.contains(&(from, target)),
        }
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

/// Where host number `host` listens: 10.x.y.z with its number plus one.
pub fn address_of(host: usize) -> SocketAddr {
    let [_, high, middle, low] = (host as u32 + 1).to_be_bytes();
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, high, middle, low)), 7400)
}

fn host_of(address: SocketAddr) -> Option<usize> {
    let IpAddr::V4(ip) = address.ip() else { return None };
    let [_, high, middle, low] = ip.octets();
    (u32::from_be_bytes([0, high, middle, low]) as usize).checked_sub(1)
}
