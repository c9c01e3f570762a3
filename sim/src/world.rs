//! Nodes of the real gossip loop on one virtual clock, and the loop that lets time pass.
//!
//! It starts, stops and watches; which of that makes a scenario is decided elsewhere.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use starling_gossip::clock::{Clock, Instant};
use starling_gossip::handle::{Gossip, Setup};
use starling_gossip::publisher::NodeDescription;
use starling_gossip::record::{Health, Instance, Locality, Owner, Protocol};
use starling_gossip::snapshot::{Presence, Snapshot};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout_at};

use crate::check::{Checker, Violation};
use crate::keys::{Authority, WALL_AT_START};
use crate::network::{Conditions, Network, address_of};
use crate::trace::{Event, Trace};

/// The id of every node's one instance.
pub const INSTANCE_ID: &str = "main";

/// Hosts that everybody is told of.
const SEEDS: usize = 3;

/// Snapshots on their way to the checker; a full queue makes the watchers wait, and loses nothing.
const OBSERVATIONS_QUEUED_MAX: usize = 1024;

/// What makes one run; equal settings make equal runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many nodes.
    pub nodes: usize,
    /// Where all chance comes from.
    pub seed: u64,
    /// How the network treats messages.
    pub conditions: Conditions,
    /// How often a node reconciles with three others.
    pub interval: Duration,
    /// How long others believe in a silent node.
    pub lease: Duration,
    /// How often a node renews its lease.
    pub renew: Duration,
}

/// A mesh in one process.
pub struct World {
    settings: Settings,
    rng: StdRng,
    authority: Authority,
    clock: Clock,
    trace: Arc<Trace>,
    network: Arc<Network>,
    checker: Checker,
    nodes: Vec<Node>,
    observed: mpsc::Receiver<Observation>,
    observations: mpsc::Sender<Observation>,
}

struct Node {
    gossip: Gossip,
    running: JoinHandle<()>,
    newest: Arc<Snapshot>,
}

/// A node published a snapshot.
pub struct Observation {
    /// When.
    pub at: Instant,
    /// Which node.
    pub observer: usize,
    /// What it knows.
    pub snapshot: Arc<Snapshot>,
}

/// Why a run ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Safety was broken: a defect of the product, or of the checker.
    #[error("safety: {0}")]
    Violation(#[from] Violation),
    /// Something that must come did not.
    #[error("progress: {what} did not come within {limit:?} of virtual time")]
    NotWithin {
        /// What was waited for.
        what: &'static str,
        /// How long.
        limit: Duration,
    },
    /// The world could not be built.
    #[error("set-up: {0:#}")]
    SetUp(#[from] anyhow::Error),
}

impl World {
    /// A world without nodes. Call it in a paused runtime.
    pub fn new(settings: Settings) -> Result<Self, Failure> {
        let mut rng = StdRng::seed_from_u64(settings.seed);
        let trace = Arc::new(Trace::new());
        let network = Network::new(settings.conditions, rng.random(), trace.clone());
        let (observations, observed) = mpsc::channel(OBSERVATIONS_QUEUED_MAX);
        Ok(Self {
            authority: Authority::new(&mut rng)?,
            clock: Clock::starting_at(WALL_AT_START),
            checker: Checker::default(),
            nodes: Vec::new(),
            settings,
            rng,
            trace,
            network,
            observed,
            observations,
        })
    }

    /// Starts all nodes within one interval of each other; each serves one instance of weight 1.
    pub async fn start_all(&mut self) -> Result<(), Failure> {
        let apart = self.settings.interval / self.settings.nodes.max(1) as u32;
        for _ in 0..self.settings.nodes {
            self.start().await?;
            sleep(apart).await;
        }
        Ok(())
    }

    async fn start(&mut self) -> Result<(), Failure> {
        let host = self.nodes.len();
        let svid = self.authority.svid(&service_of(host), &mut self.rng)?;
        let setup = Setup {
            description: self.description(host)?,
            interval: self.settings.interval,
            link: self.network.plug(host, svid.id().clone()),
            svid,
            bundle: self.authority.bundle(),
            clock: self.clock.clone(),
            random_seed: self.rng.random(),
            seeds: watch::channel((0..SEEDS.min(self.settings.nodes)).map(address_of).collect()).1,
            remembered: None,
        };
        self.trace.record(host, Event::Started);
        let (gossip, gossip_loop) = Gossip::start(setup).await.map_err(anyhow::Error::from)?;
        let watched = (gossip.snapshots(), self.trace.clone(), self.observations.clone());
        tokio::spawn(watch_node(host, watched.0, watched.1, watched.2));
        let running = tokio::spawn(gossip_loop.run());
        self.nodes.push(Node { gossip, running, newest: Arc::default() });
        self.announce(host, 1).await
    }

    fn description(&self, host: usize) -> Result<NodeDescription, Failure> {
        Ok(NodeDescription {
            name: format!("node-{host}").parse().map_err(anyhow::Error::from)?,
            addresses: vec![address_of(host)],
            locality: Locality::default(),
            program: env!("CARGO_PKG_VERSION").parse().map_err(anyhow::Error::from)?,
            lease: self.settings.lease,
            renew: self.settings.renew,
        })
    }

    /// Node `host` says that its instance has `weight`, which must grow.
    pub async fn announce(&mut self, host: usize, weight: u16) -> Result<(), Failure> {
        let gossip = self.nodes[host].gossip.clone();
        self.checker.signs(gossip.owner(), weight);
        self.trace.record(host, Event::Announced);
        let instance = Instance {
            service: service_of(host).parse().map_err(anyhow::Error::from)?,
            protocol: Protocol::Http,
            version: None,
            tags: BTreeMap::new(),
            weight,
            health: Health::Healthy,
            since_unix_millis: self.clock.wall().unix_millis,
        };
        let id = INSTANCE_ID.parse().map_err(anyhow::Error::from)?;
        gossip.set_instance(id, Some(instance)).await;
        Ok(())
    }

    /// Node `host` goes down without a word.
    pub fn crash(&mut self, host: usize) {
        self.trace.record(host, Event::Crashed);
        self.nodes[host].running.abort();
        self.network.unplug(host);
        self.checker.crashes(self.nodes[host].gossip.owner());
    }

    /// Lets time pass until `is_reached` says so, asked after every snapshot of any node. Every one
    /// is judged by the checker first.
    pub async fn run_until(
        &mut self,
        what: &'static str,
        limit: Duration,
        mut is_reached: impl FnMut(&Self, &Observation) -> bool,
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + limit;
        loop {
            let Ok(Some(observation)) = timeout_at(deadline, self.observed.recv()).await else {
                return Err(Failure::NotWithin { what, limit });
            };
            self.checker.observe(observation.observer, &observation.snapshot)?;
            self.nodes[observation.observer].newest = observation.snapshot.clone();
            if is_reached(self, &observation) {
                return Ok(());
            }
        }
    }

    /// Lets `time` pass.
    pub async fn run_for(&mut self, time: Duration) -> Result<(), Failure> {
        match self.run_until("time", time, |_, _| false).await {
            Err(Failure::NotWithin { .. }) => Ok(()),
            other => other,
        }
    }

    /// Whether all nodes know all nodes and instances, in equal catalogues.
    pub fn is_converged(&self) -> bool {
        let first = &self.nodes[0].newest;
        let is_whole = |snapshot: &Snapshot| {
            let instances: usize = snapshot.services.values().map(Vec::len).sum();
            snapshot.members.len() == self.nodes.len() && instances == self.nodes.len()
        };
        self.nodes.iter().all(|node| is_whole(&node.newest) && node.newest.digest == first.digest)
    }

    /// Who node `host` is.
    pub fn owner(&self, host: usize) -> &Owner {
        self.nodes[host].gossip.owner()
    }

    /// A host that chance chooses, other than `not`.
    pub fn any_host(&mut self, not: Option<usize>) -> usize {
        loop {
            let host = self.rng.random_range(0..self.settings.nodes);
            if Some(host) != not {
                return host;
            }
        }
    }

    /// What makes this run.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The network under it.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// What happened so far.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }
}

async fn watch_node(
    host: usize,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    trace: Arc<Trace>,
    observations: mpsc::Sender<Observation>,
) {
    while snapshots.changed().await.is_ok() {
        let snapshot = snapshots.borrow_and_update().clone();
        let alive = snapshot.members.values().filter(|it| it.presence == Presence::Alive).count();
        trace.record(host, Event::Knows { digest: &snapshot.digest, alive });
        let observation = Observation { at: Instant::now(), observer: host, snapshot };
        if observations.send(observation).await.is_err() {
            return;
        }
    }
}

fn service_of(host: usize) -> String {
    format!("svc-{host}")
}
