//! Nodes of the real gossip loop on one virtual clock, and the loop that lets time pass.
//!
//! It starts, stops and watches; which of that makes a scenario is [`crate::play`]'s business.

mod host;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use starling_gossip::clock::{Clock, Instant};
use starling_gossip::handle::{Budget, Gossip, News, Setup};
use starling_gossip::memory::Remembered;
use starling_gossip::publisher::NodeDescription;
use starling_gossip::record::{Health, Locality, Owner};
use starling_gossip::snapshot::{Presence, Snapshot};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout_at;

use crate::check::{Checker, INSTANCE_ID, Violation};
use crate::disk::Writer;
use crate::hostile::Attacker;
use crate::keys::{Authority, WALL_AT_START};
use crate::measure::Measures;
use crate::network::{Handicap, Network, address_of};
use crate::play::Request;
use crate::scenario::{self, Attack, Conditions, Do, Memory, Scenario};
use crate::trace::{Event, Trace, Turn};
use crate::truth::{Saying, Truth};
use host::{Brake, Host, Process};

/// Snapshots on their way to the checker; a full queue makes the watchers wait, and loses nothing.
const OBSERVATIONS_QUEUED_MAX: usize = 4096;

/// How long a leaving node's process may take to end; it says so in three rounds of 150 ms.
const LEAVES_WITHIN: Duration = Duration::from_secs(1);

/// A way that takes no longer delays nobody's renewal by much.
const SOON: Duration = Duration::from_millis(500);

/// A mesh in one process.
pub struct World {
    scenario: Arc<Scenario>,
    rng: StdRng,
    authority: Authority,
    network: Arc<Network>,
    hosts: Vec<Host>,
    trace: Arc<Trace>,
    /// What is really so.
    pub truth: Truth,
    /// What nodes have shown.
    pub checker: Checker,
    /// What was measured.
    pub measures: Measures,
    next_second: Instant,
    start: Instant,
    seeds: watch::Sender<Vec<SocketAddr>>,
    observed: mpsc::Receiver<Observation>,
    observations: mpsc::Sender<Observation>,
    pulse: Arc<AtomicU64>,
}

struct Observation {
    host: usize,
    life: u64,
    snapshot: Arc<Snapshot>,
}

/// Why a run ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Safety was broken: a defect of the product, or of the checker.
    #[error("safety: {0}")]
    Violation(#[from] Violation),
    /// Something that must come did not.
    #[error("progress: {what} within {within:?} of virtual time: {difference}")]
    NotWithin {
        /// What was waited for.
        what: &'static str,
        /// How long.
        within: Duration,
        /// What was lacking.
        difference: String,
        /// About whom.
        hosts: Vec<usize>,
    },
    /// The world could not be built.
    #[error("set-up: {0:#}")]
    SetUp(#[from] anyhow::Error),
}

impl World {
    /// A world without nodes. Call it in a paused runtime.
    pub fn new(scenario: Arc<Scenario>, request: &Request) -> Result<Self, Failure> {
        let mut rng = StdRng::seed_from_u64(request.seed);
        let trace = Arc::new(Trace::new(request.window.clone()));
        let network = Network::new(scenario.paths(), rng.random(), trace.clone());
        let (observations, observed) = mpsc::channel(OBSERVATIONS_QUEUED_MAX);
        let mesh = &scenario.mesh;
        let checker = Checker::new(mesh.lease.0, mesh.renew.0).hearing_all(scenario.loses_nothing());
        Ok(Self {
            authority: Authority::new(&mut rng)?,
            truth: Truth::default(),
            measures: Measures::new(mesh.lease.0),
            checker,
            hosts: Vec::new(),
            rng,
            trace,
            network,
            next_second: Instant::now() + Duration::from_secs(1),
            start: Instant::now(),
            seeds: watch::Sender::new(
                (0..mesh.seeds.min(mesh.nodes)).map(|seed| address_of(seed, 0)).collect(),
            ),
            observed,
            observations,
            pulse: request.pulse.clone(),
            scenario,
        })
    }

    /// A new host at `site`, with a node that starts at once. Returns its number.
    pub async fn join(&mut self, site: usize) -> Result<usize, Failure> {
        let number = self.hosts.len();
        let service = format!("svc-{}", number / self.scenario.mesh.replicas);
        let svid = self.authority.svid(&service, &mut self.rng)?;
        let locality = self.scenario.locality(site);
        let name = format!("node-{number}").parse().map_err(anyhow::Error::from)?;
        self.truth.add(Owner { identity: svid.id().clone(), node: name }, locality.clone());
        self.hosts.push(Host {
            site,
            locality,
            service: service.parse().map_err(anyhow::Error::from)?,
            svid,
            clock: Clock::starting_at(WALL_AT_START.later(self.trace.elapsed())),
            // What a node hears it writes down, and an attacker uses what its node wrote.
            disk: (self.scenario.mesh.disks || self.scenario.has_attacks()).then(Arc::default),
            old_image: None,
            moves: 0,
            life: 0,
            process: None,
            weight: 100,
        });
        self.start(number, false).await?;
        Ok(number)
    }

    async fn start(&mut self, number: usize, after_crash: bool) -> Result<(), Failure> {
        let description = self.description(number)?;
        let mesh = self.scenario.mesh.clone();
        let host = &mut self.hosts[number];
        host.life += 1;
        let link = self.network.plug(number, host.site, description.addresses[0], host.svid.id().clone());
        let remembered = host.disk.as_ref().map(|disk| Remembered {
            memory: Arc::new(Writer(disk.clone())),
            entries: disk.found(after_crash),
        });
        let truth = self.truth.host_mut(number);
        truth.addresses.push(description.addresses[0]);
        truth.has_left = false;
        truth.up_since = Some(Instant::now());
        self.checker.forget(number);
        let setup = Setup {
            description,
            interval: mesh.interval.0,
            link: link.clone(),
            svid: host.svid.clone(),
            bundle: self.authority.bundle(),
            clock: host.clock.clone(),
            random_seed: self.rng.random(),
            seeds: self.seeds.subscribe(),
            remembered,
            news: self.scenario.news(),
            budget: Budget::default(),
        };
        self.trace.turn(Turn::Started(number));
        let (gossip, gossip_loop) = Gossip::start(setup).await.map_err(anyhow::Error::from)?;
        let brake = Arc::new(Brake::default());
        let watched =
            watch_node(number, host.life, gossip.snapshots(), self.trace.clone(), self.observations.clone());
        let held = brake.clone();
        let tasks =
            vec![tokio::spawn(watched), tokio::spawn(async move { held.run(gossip_loop.run()).await })];
        host.process = Some(Process { gossip, link, brake, tasks, attacks: BTreeMap::new() });
        self.begin_epoch();
        self.measures.comes_back(number);
        self.say(number, None, Some(Health::Healthy)).await;
        Ok(())
    }

    fn description(&self, number: usize) -> Result<NodeDescription, Failure> {
        let (host, mesh) = (&self.hosts[number], &self.scenario.mesh);
        Ok(NodeDescription {
            name: self.truth.host(number).owner.node.clone(),
            addresses: vec![address_of(number, host.moves)],
            locality: host.locality.clone(),
            program: env!("CARGO_PKG_VERSION").parse().map_err(anyhow::Error::from)?,
            lease: mesh.lease.0,
            renew: mesh.renew.0,
        })
    }

    /// Host `number` says something new of its instance; `None` withdraws it. If `measured` names it,
    /// it is measured how soon others know.
    pub async fn say(&mut self, number: usize, measured: Option<&'static str>, health: Option<Health>) {
        let now = Instant::now();
        let Some(process) = self.hosts[number].process.as_ref().filter(|process| !process.brake.is_on())
        else {
            return;
        };
        let gossip = process.gossip.clone();
        let newest = self.truth.host(number).words.last();
        if health.is_none() && newest.is_none_or(|word| word.instance.is_none()) {
            // What is withdrawn cannot be withdrawn again: the node would say nothing.
            return;
        }
        let word = self.truth.host(number).newest() + 1;
        let instance = health.map(|health| self.hosts[number].instance(health, word));
        self.truth.host_mut(number).words.push(Saying { at: now, instance: instance.clone() });
        if let Some(what) = measured {
            self.measures.says(number, word, what, now);
        }
        self.trace.turn(Turn::Said(number, word));
        let id = INSTANCE_ID.parse().expect("a label");
        gossip.set_instance(id, instance).await;
    }

    /// Host `number` goes down without a word.
    pub fn crash(&mut self, number: usize) {
        let Some(process) = self.hosts[number].process.take() else { return };
        process.kill();
        self.trace.turn(Turn::Crashed(number));
        let service = self.hosts[number].service.clone();
        let others = self.hosts.iter().enumerate();
        let has_others = others
            .filter(|(other, host)| *other != number && host.service == service)
            .any(|(_, host)| host.process.is_some());
        self.measures.crashes(number, service, has_others, Instant::now());
        self.is_gone(number);
    }

    /// Host `number` comes back after a crash.
    pub async fn restart(&mut self, number: usize, memory: Memory, moved: bool) -> Result<(), Failure> {
        let host = &mut self.hosts[number];
        if host.process.is_some() {
            return Ok(());
        }
        host.moves += u16::from(moved);
        let memory = if self.scenario.mesh.disks { memory } else { Memory::Lost };
        match (memory, &host.disk) {
            (Memory::Lost, Some(disk)) => disk.restore(BTreeMap::new()),
            (Memory::Old, Some(disk)) => disk.restore(host.old_image.clone().unwrap_or_default()),
            _ => {}
        }
        let begins = Instant::now();
        self.start(number, true).await?;
        self.measures.rejoins(number, self.truth.host(number).newest(), begins);
        Ok(())
    }

    /// Host `number` withdraws itself, tells others, and ends.
    pub fn leave(&mut self, number: usize) {
        let Some(process) = &mut self.hosts[number].process else { return };
        self.trace.turn(Turn::Leaving(number));
        let gossip = process.gossip.clone();
        process.tasks.push(tokio::spawn(async move { gossip.leave().await }));
        self.measures.leaves(number, Instant::now());
        let own = self.checker.seen_by(number).get(number).and_then(|seen| seen.version);
        let truth = self.truth.host_mut(number);
        truth.has_left = true;
        truth.left_life = own.map(|version| version.incarnation);
    }

    /// Host `number`, which was leaving, is gone.
    pub fn has_left(&mut self, number: usize) {
        if let Some(process) = self.hosts[number].process.take() {
            process.kill();
            self.is_gone(number);
        }
    }

    fn is_gone(&mut self, number: usize) {
        self.network.unplug(number);
        self.truth.host_mut(number).up_since = None;
        self.begin_epoch();
    }

    /// Host `number` stands still, or goes on.
    pub fn set_paused(&mut self, number: usize, is_paused: bool) {
        let Some(process) = &self.hosts[number].process else { return };
        process.brake.set(is_paused);
        if is_paused {
            self.network.pause(number);
        } else {
            self.network.resume(number);
        }
        self.trace.turn(if is_paused { Turn::Paused(number) } else { Turn::Continued(number) });
        self.begin_epoch();
    }

    /// Host `number` gets worse, or with a handicap of nothing well again.
    pub fn set_handicap(&mut self, number: usize, handicap: Handicap) {
        let is_degraded = handicap != Handicap::default();
        self.trace.turn(Turn::Degraded(number, is_degraded));
        let host = self.truth.host_mut(number);
        (host.is_degraded, host.well_since) = (is_degraded, Some(Instant::now()));
        self.network.set_handicap(number, handicap);
    }

    /// Sets the calendar of host `number` by so many seconds.
    pub fn set_calendar(&mut self, number: usize, seconds: i64) {
        self.trace.turn(Turn::Calendar(number, seconds));
        self.hosts[number].clock.set_calendar_by(seconds.saturating_mul(1000));
    }

    /// Host `number` attacks the others, perhaps in several ways at once.
    pub fn begin_attack(&mut self, number: usize, attack: Attack, rate: u32) {
        let seed = self.rng.random();
        let host = &mut self.hosts[number];
        let Some(process) = &mut host.process else { return };
        self.trace.turn(Turn::Attacks(number, true));
        self.truth.host_mut(number).is_hostile = true;
        if attack == Attack::Withhold {
            self.network.set_withholding(number, Some(self.truth.host(number).owner.clone()));
        }
        if attack == Attack::Replay {
            self.network.tap(number);
        }
        let attacker = Attacker {
            svid: host.svid.clone(),
            owner: self.truth.host(number).owner.clone(),
            service: host.service.clone(),
            link: process.link.clone(),
            snapshots: process.gossip.snapshots(),
            disk: host.disk.clone().unwrap_or_default(),
            rng: StdRng::seed_from_u64(seed),
        };
        process.attacks.insert(attack, tokio::spawn(attacker.run(attack, rate)));
    }

    /// Host `number` stops attacking so; what it says of itself still binds nobody.
    pub fn end_attack(&mut self, number: usize, attack: Attack) {
        self.trace.turn(Turn::Attacks(number, false));
        if attack == Attack::Withhold {
            self.network.set_withholding(number, None);
        }
        let process = self.hosts[number].process.as_mut();
        if let Some(attack) = process.and_then(|process| process.attacks.remove(&attack)) {
            attack.abort();
        }
    }

    /// Who reaches whom has changed.
    pub fn begin_epoch(&mut self) {
        let up: Vec<bool> = self.hosts.iter().map(Host::is_awake).collect();
        let components = self.network.components(&up);
        self.truth.begin_epoch(Instant::now(), components);
        if self.scenario.mesh.seeds_follow {
            let addresses = self.awake().take(self.scenario.mesh.seeds);
            let addresses = addresses.map(|number| address_of(number, self.hosts[number].moves)).collect();
            self.seeds.send_replace(addresses);
        }
    }

    /// Remembers what all disks hold now, for `restart` with an old image.
    pub fn take_images(&mut self) {
        for host in &mut self.hosts {
            host.old_image = host.disk.as_ref().map(|disk| disk.image());
        }
    }

    /// Lets time pass until `deadline`. Every snapshot is judged.
    pub async fn run_until(&mut self, deadline: Instant) -> Result<(), Failure> {
        loop {
            self.pulse.fetch_add(1, Ordering::Relaxed);
            let until = deadline.min(self.next_second);
            match timeout_at(until, self.observed.recv()).await {
                Ok(Some(observation)) => self.observe(&observation)?,
                _ if until < deadline => self.each_second(),
                _ => return Ok(()),
            }
        }
    }

    fn each_second(&mut self) {
        self.next_second += Duration::from_secs(1);
        let (traffic, elapsed) = (self.network.traffic(), self.trace.elapsed());
        self.measures.handle_second(&self.truth, &self.checker, traffic, elapsed, Instant::now());
    }

    fn observe(&mut self, observation: &Observation) -> Result<(), Failure> {
        let Observation { host, life, snapshot } = observation;
        // What a hostile node believes is its own affair, and what a dead one believed, nobody's.
        if self.hosts[*host].life != *life
            || self.hosts[*host].process.is_none()
            || self.truth.host(*host).is_hostile
        {
            return Ok(());
        }
        let now = Instant::now();
        let sights = self.checker.observe(&self.truth, *host, now, snapshot)?;
        for sight in &sights {
            if sight.before.presence != sight.after.presence {
                self.trace.turn(Turn::Sees(*host, sight.subject, sight.after.presence));
            }
            self.measures.handle_sight(&self.truth, *host, sight, now);
        }
        self.measures.handle_routes(&self.truth, *host, snapshot, now);
        Ok(())
    }

    /// Hosts with a node that runs and does not stand still.
    pub fn awake(&self) -> impl Iterator<Item = usize> {
        self.hosts.iter().enumerate().filter(|(_, host)| host.is_awake()).map(|(number, _)| number)
    }

    /// The site of host `number`, as an index.
    pub fn site_of(&self, number: usize) -> usize {
        self.hosts[number].site
    }

    /// How many hosts there are or were.
    pub fn hosts(&self) -> usize {
        self.hosts.len()
    }

    /// The source of the scenario's chance.
    pub fn rng(&mut self) -> &mut StdRng {
        &mut self.rng
    }

    /// The network under it.
    pub fn network(&self) -> &Arc<Network> {
        &self.network
    }

    /// What happened so far.
    pub fn trace(&self) -> &Arc<Trace> {
        &self.trace
    }

    /// When virtual time began.
    pub fn start_of_time(&self) -> Instant {
        self.start
    }

    /// How long after [`Self::leave`] [`Self::has_left`] is due.
    pub fn leaves_within(&self) -> Duration {
        LEAVES_WITHIN
    }
}

impl Host {
    fn is_awake(&self) -> bool {
        self.process.as_ref().is_some_and(|process| !process.brake.is_on())
    }
}

impl Scenario {
    /// By site, from and to, how messages fare. Without sites there is one.
    pub fn paths(&self) -> Vec<Vec<Conditions>> {
        let sites = self.site.len().max(1);
        let index = |name: &str| self.site.iter().position(|site| site.name == name);
        let mut paths = vec![vec![self.network.clone(); sites]; sites];
        for path in &self.path {
            let (Some(from), Some(to)) = (index(&path.from), index(&path.to)) else { continue };
            paths[from][to] = self.network.along(path);
            if !path.one_way {
                paths[to][from] = self.network.along(path);
            }
        }
        paths
    }

    /// How nodes pass news on.
    pub fn news(&self) -> News {
        let own = News::default();
        let period = self.mesh.news_period.map_or(own.period, |period| period.0);
        News { told: self.mesh.news_told.unwrap_or(own.told), period, ..own }
    }

    /// Whether all that is sent arrives while its way is open, and soon.
    pub fn loses_nothing(&self) -> bool {
        let is_good = |it: &Conditions| it.loss == 0.0 && it.bandwidth == 0 && it.latency.0 <= SOON;
        let is_deaf =
            |attack| matches!(attack, Attack::Withhold | Attack::Overrun | Attack::Flood | Attack::Invent);
        let is_bad = |event: &scenario::Event| match event.what {
            Do::Degrade | Do::Calendar => true,
            Do::Attack => is_deaf(event.attack),
            _ => event.one_way,
        };
        self.paths().iter().flatten().all(is_good) && !self.event.iter().any(is_bad)
    }

    /// Whether anybody ever attacks.
    pub fn has_attacks(&self) -> bool {
        self.event.iter().any(|event| event.what == Do::Attack)
    }

    /// Where nodes of `site` stand.
    pub fn locality(&self, site: usize) -> Locality {
        let Some(site) = self.site.get(site) else { return Locality::default() };
        let label = |text: &str| text.parse().ok();
        Locality {
            region: label(site.region.as_ref().unwrap_or(&site.name)),
            zone: None,
            site: label(&site.name),
        }
    }
}

async fn watch_node(
    host: usize,
    life: u64,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    trace: Arc<Trace>,
    observations: mpsc::Sender<Observation>,
) {
    while snapshots.changed().await.is_ok() {
        let snapshot = snapshots.borrow_and_update().clone();
        let alive = snapshot.members.values().filter(|it| it.presence == Presence::Alive).count();
        trace.record(host, Event::Knows { digest: &snapshot.digest, alive });
        if observations.send(Observation { host, life, snapshot }).await.is_err() {
            return;
        }
    }
}
