//! The composition root: what is wired to what, and in which order it starts and stops.
//!
//! It decides nothing else. Everything it starts is bound before the first record is announced, so
//! a node that cannot serve is never heard of.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use starling_gossip::clock::{Clock, Instant};
use starling_gossip::handle::{Gossip, News, Setup};
use starling_gossip::memory::Remembered;
use starling_gossip::publisher::NodeDescription;
use starling_gossip::record::Label;
use starling_gossip::run::GossipLoop;
use starling_transport::credential_files::CredentialFiles;
use starling_transport::credentials::Credentials;
use starling_transport::endpoint::Endpoint as Transport;
use starling_transport::gossip_link::GossipLink;
use starling_transport::incoming::IncomingStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use crate::admin::{Admin, view};
use crate::balance::Chance;
use crate::calendar;
use crate::capacity::Capacity;
use crate::care;
use crate::config::Config;
use crate::config::files::Files;
use crate::descriptors;
use crate::drain::{Drain, Shutdown};
use crate::live::LiveTable;
use crate::local::LocalInstances;
use crate::memory;
use crate::notify::ServiceManager;
use crate::proxy::inbound::Inbound;
use crate::proxy::listeners::{Bound, Listeners};
use crate::proxy::outbound::{Newcomer, Outbound};
use crate::reload::{self, ConfigFile, Parts, Reloader};
use crate::router::Router;
use crate::seeds;
use crate::sockets::Sockets;
use crate::store::Store;
use crate::telemetry::Metrics;

/// Kept connections go after one to two of these without work. Longer than the pause between two
/// requests of a program that polls, shorter than what nginx (75 s) keeps one open.
const IDLE_SWEEP: Duration = Duration::from_secs(30);

/// The service manager's line changes at most this often.
const STATUS_PERIOD: Duration = Duration::from_secs(2);

/// How long a stopping node waits for its last bytes to be acknowledged.
const CLOSE_GRACE: Duration = Duration::from_secs(1);

/// A node that is set up: every port bound, nothing announced yet.
pub struct Node {
    config: Arc<Config>,
    capacity: Capacity,
    shown: Shown,
    gossip_loop: GossipLoop,
    streams: mpsc::Receiver<IncomingStream>,
    listeners: Listeners,
    bound: Bound,
    reloads: reload::Inbox,
    changes: watch::Sender<Arc<Config>>,
    admin: Admin,
    token: watch::Sender<Option<String>>,
    outbound: Arc<Outbound>,
    inbound: Arc<Inbound>,
    local: LocalInstances,
    seeds: watch::Sender<Vec<SocketAddr>>,
}

/// The state that parts of a node share to show it.
#[derive(Clone)]
pub(crate) struct Shown {
    pub(crate) gossip: Gossip,
    pub(crate) transport: Transport,
    pub(crate) credentials: Credentials,
    pub(crate) local: LocalInstances,
    pub(crate) table: Arc<ArcSwap<LiveTable>>,
    pub(crate) drain: Drain,
    pub(crate) metrics: Metrics,
    pub(crate) clock: Clock,
    pub(crate) started: Instant,
    pub(crate) address: SocketAddr,
    pub(crate) store: Option<Store>,
    pub(crate) reload: reload::Requests,
    /// The configuration that counts now.
    pub(crate) running: watch::Receiver<Arc<Config>>,
}

impl Node {
    /// Binds everything a node needs. Errors say what to do; nothing is left behind.
    pub async fn bind(
        config: Config,
        files: Files,
        mut sockets: Sockets,
        clock: Clock,
        metrics: Metrics,
    ) -> anyhow::Result<Self> {
        // Everything random that need not be secret follows from this one seed.
        let mut rng = StdRng::from_os_rng();
        let started = clock.now();
        let credentials = Credentials::new(files.svid, files.trust_bundle, clock.clone())?;
        let capacity = Capacity::new(&config.limits, descriptors::reserved(&config));
        let transport_rng = StdRng::seed_from_u64(rng.random());
        let (own, windows) = (credentials.clone(), capacity.windows);
        let (transport, incoming) = match sockets.udp(config.node.listen, "node.listen") {
            Some(passed) => Transport::on_socket(passed, own, windows, transport_rng)?,
            None => Transport::bind(config.node.listen, own, windows, transport_rng)?,
        };
        let address = advertised(&config, transport.local_addr())?;
        let (store, remembered) = open_store(&config, &clock).await?.unzip();
        let (seeds, seed_addresses) = watch::channel(Vec::new());
        let current = credentials.current();
        let (gossip, gossip_loop) = Gossip::start(Setup {
            description: describe(&config, address),
            interval: config.gossip.interval,
            svid: current.svid().clone(),
            bundle: current.bundle().clone(),
            link: Arc::new(GossipLink::new(transport.pool().clone(), incoming.gossip)),
            clock: clock.clone(),
            random_seed: rng.random(),
            seeds: seed_addresses,
            remembered,
            news: News::default(),
            budget: config.gossip.budget,
        })
        .await?;
        let local = local_instances(&config, &capacity, gossip.clone(), &clock, rng.random());
        let outbound = Arc::new(outbound(&config, &capacity, &clock, rng.random()));
        let inbound = Arc::new(inbound(&capacity, &clock, &local));
        let listeners = Listeners::new(outbound.clone(), capacity.clients.clone());
        let bound = listeners.bind(&config, &mut sockets).await?;
        let (reload, reloads) = reload::channel();
        let config = Arc::new(config);
        let (changes, running) = watch::channel(config.clone());
        let shown = Shown {
            gossip,
            transport,
            credentials,
            local: local.clone(),
            table: outbound.table.clone(),
            drain: Drain::new(
                inbound.gate.clone(),
                outbound.gate.clone(),
                capacity.clients.connections.clone(),
            ),
            metrics,
            clock,
            started,
            address,
            store,
            reload,
            running,
        };
        let (token, shown_token) = watch::channel(files.token);
        let admin = Admin::bind(&config, shown_token, shown.clone(), &mut sockets).await?;
        sockets.finish()?;
        let streams = incoming.streams;
        Ok(Self {
            config,
            capacity,
            shown,
            gossip_loop,
            streams,
            listeners,
            bound,
            reloads,
            changes,
            admin,
            token,
            outbound,
            inbound,
            local,
            seeds,
        })
    }

    /// Runs, following `file`, until a `signal` or an action of the admin API asks for the end, then
    /// drains, withdraws and closes. Another signal, or being told to leave, ends a drain at once.
    pub async fn run(mut self, file: ConfigFile, manager: &ServiceManager, mut signal: impl AsyncFnMut()) {
        let mut tasks = JoinSet::new();
        self.spawn_upkeep(&mut tasks, manager);
        let Shown { gossip, transport, credentials, drain, clock, started, store, running, .. } = self.shown;
        let gossip_loop = tokio::spawn(self.gossip_loop.run());
        tasks.spawn(seeds::follow(running.clone(), self.seeds));
        tasks.spawn(accept_streams(self.streams, self.inbound.clone()));
        self.listeners.take(self.bound);
        if let Err(reason) = self.local.apply(&self.config.services) {
            error!(%reason, "the services cannot be announced");
        }
        let parts = Parts {
            running: self.changes,
            credentials: credentials.clone(),
            token: self.token,
            listeners: self.listeners,
            local: self.local.clone(),
            outbound: self.outbound.clone(),
            capacity: self.capacity,
            manager: manager.clone(),
            clock: clock.clone(),
        };
        tasks.spawn(Reloader::new(file, parts, self.reloads).run());
        tasks.spawn(self.admin.run());
        info!(
            node = %self.config.node.name, identity = %credentials.id(),
            listen = %transport.local_addr(), ready_after = ?(clock.now() - started), "ready"
        );
        manager.ready();

        let shutdown = tokio::select! {
            () = signal() => Shutdown::Drain,
            shutdown = drain.requested() => shutdown,
        };
        info!(?shutdown, "stopping");
        manager.stopping();
        let drain_timeout = running.borrow().node.drain_timeout;
        let end = drain.begin(shutdown, drain_timeout, &clock);
        self.local.drain();
        let withdrawn = async {
            drain.finish_inbound(end).await;
            self.local.withdraw().await;
            gossip.leave().await;
            drain.finish_outbound(end).await;
        };
        let impatience = async {
            signal().await;
            info!("told again: leaving at once");
            drain.request(Shutdown::Leave);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = withdrawn => {}
            () = impatience => {}
        }
        // Kept streams are nobody's work: the end waits for others only.
        self.outbound.table.store(Arc::default());
        transport.close(CLOSE_GRACE).await;
        tasks.shutdown().await;
        let _ = gossip_loop.await;
        if let Some(store) = store {
            store.close().await;
        }
        info!("stopped");
    }

    /// What goes on beside the traffic until the node has ended.
    fn spawn_upkeep(&self, tasks: &mut JoinSet<()>, manager: &ServiceManager) {
        let Shown { gossip, transport, credentials, drain, metrics, clock, .. } = &self.shown;
        let table = &self.outbound.table;
        let (pool, seed_addresses) = (transport.pool().clone(), self.seeds.subscribe());
        tasks.spawn(seeds::explain_loneliness(gossip.clone(), pool, seed_addresses));
        let router = Router {
            table: table.clone(),
            pool: transport.pool().clone(),
            own: self.config.node.name.clone(),
            locality: self.config.node.locality.clone(),
            limits: self.capacity.upstream,
            clock: clock.clone(),
        };
        tasks.spawn(router.run(gossip.clone(), self.shown.running.clone()));
        tasks.spawn(care::follow(gossip.clone(), table.clone(), self.shown.running.clone(), clock.clone()));
        if let Some(bytes_max) = self.capacity.memory_max {
            tasks.spawn(memory::keep_below(bytes_max, self.capacity.gates(), clock.clone()));
        }
        tasks.spawn(self.capacity.clients.watches.clone().look(clock.clone()));
        tasks.spawn(sweep_idle(table.clone(), self.inbound.clone()));
        tasks.spawn(credential_files(&self.config).follow(credentials.clone()));
        tasks.spawn(speak_as(credentials.clone(), gossip.clone()));
        tasks.spawn(calendar::watch(credentials.clone(), clock.clone()));
        tasks.spawn(metrics.clone().upkeep());
        tasks.spawn(keep_watchdog(manager.clone(), gossip.clone(), drain.clone()));
        tasks.spawn(tell_status(manager.clone(), gossip.clone(), drain.clone()));
    }
}

/// The store, if one is configured, and what it held. Only another process in its place ends a start.
async fn open_store(config: &Config, clock: &Clock) -> anyhow::Result<Option<(Store, Remembered)>> {
    let Some(directory) = config.node.data_dir.clone() else { return Ok(None) };
    let clock = clock.clone();
    let opened = tokio::task::spawn_blocking(move || Store::open(&directory, clock)).await?;
    Ok(Some(opened?))
}

fn local_instances(
    config: &Config,
    capacity: &Capacity,
    gossip: Gossip,
    clock: &Clock,
    seed: u64,
) -> LocalInstances {
    let limits = capacity.workloads.clone();
    LocalInstances::new(gossip, clock.clone(), limits, config.node.drain_timeout, seed)
}

fn outbound(config: &Config, capacity: &Capacity, clock: &Clock, seed: u64) -> Outbound {
    Outbound {
        table: Arc::default(),
        gate: capacity.outbound.clone(),
        windows: capacity.upstream.windows,
        attempts_max: AtomicUsize::new(config.limits.attempts_max as usize),
        chance: Chance::new(seed),
        clock: clock.clone(),
        newcomer: Newcomer { started: (!config.mesh.seeds.is_empty()).then(|| clock.now()) },
        unknown: Outbound::unknown_meter(),
    }
}

fn inbound(capacity: &Capacity, clock: &Clock, local: &LocalInstances) -> Inbound {
    Inbound {
        workloads: local.workloads(),
        gate: capacity.inbound.clone(),
        streams: capacity.streams.clone(),
        windows: capacity.upstream.windows,
        denials: Mutex::default(),
        clock: clock.clone(),
    }
}

fn credential_files(config: &Config) -> CredentialFiles {
    let files = config.identity.clone();
    CredentialFiles {
        certificate: files.certificate,
        key: files.key,
        trust_bundle: files.trust_bundle,
        revoked: files.revoked,
    }
}

fn describe(config: &Config, address: SocketAddr) -> NodeDescription {
    let program = concat!("starling/", env!("CARGO_PKG_VERSION"));
    NodeDescription {
        name: config.node.name.clone(),
        addresses: vec![address],
        locality: config.node.locality.clone(),
        program: program.parse::<Label>().expect("a label"),
        lease: config.gossip.lease,
        renew: config.gossip.renew,
    }
}

/// What others are told to dial: what the configuration says, else what is listened on, else the
/// address the kernel would send from towards the first seed, or anywhere.
fn advertised(config: &Config, bound: SocketAddr) -> io::Result<SocketAddr> {
    if let Some(advertise) = config.node.advertise {
        return Ok(advertise);
    }
    if !bound.ip().is_unspecified() {
        return Ok(bound);
    }
    // Connecting a UDP socket sends nothing; it asks the kernel for a route. 192.0.2.1 stands for
    // "anywhere" (RFC 5737), 2001:db8::1 likewise (RFC 3849).
    let towards: &[&str] =
        if bound.is_ipv6() { &["[2001:db8::1]:9", "192.0.2.1:9"] } else { &["192.0.2.1:9"] };
    let towards =
        config.mesh.seeds.iter().map(ToString::to_string).chain(towards.iter().map(|s| (*s).to_owned()));
    let source = towards.filter_map(|to| source_towards(&to)).find(|ip| !ip.is_unspecified());
    let ip = source.unwrap_or(IpAddr::from([127, 0, 0, 1]));
    if source.is_none() {
        warn!(%ip, "no route to anywhere: advertising loopback; set node.advertise");
    }
    Ok(SocketAddr::new(ip, bound.port()))
}

fn source_towards(to: &str) -> Option<IpAddr> {
    let to: SocketAddr = to.parse().ok()?;
    let any: SocketAddr = if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" }.parse().ok()?;
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(to).ok()?;
    socket.local_addr().ok().map(|local| local.ip())
}

/// Tells the service manager that this node is alive while its gossip is. A loop that ended by a
/// bug is as good as hung; one that has left the mesh is not.
async fn keep_watchdog(manager: ServiceManager, gossip: Gossip, drain: Drain) {
    let pulse = || async {
        if !gossip.pulse().await && !drain.is_draining() {
            std::future::pending::<()>().await;
        }
    };
    manager.keep_watchdog(pulse).await;
}

/// Keeps the service manager's line about this node current, until it drains.
async fn tell_status(manager: ServiceManager, gossip: Gossip, drain: Drain) {
    let mut snapshots = gossip.snapshots();
    while manager.listens() && !drain.is_draining() {
        let line = view::summary(&snapshots.borrow_and_update());
        manager.status(&line);
        tokio::time::sleep(STATUS_PERIOD).await;
        if snapshots.changed().await.is_err() {
            return;
        }
    }
}

/// Gives back connections that nobody uses: their peers' memory, their workloads' descriptors.
async fn sweep_idle(table: Arc<ArcSwap<LiveTable>>, inbound: Arc<Inbound>) {
    loop {
        tokio::time::sleep(IDLE_SWEEP).await;
        table.load().endpoints().for_each(|endpoint| endpoint.sweep());
        inbound.workloads.sweep();
    }
}

async fn accept_streams(mut streams: mpsc::Receiver<IncomingStream>, inbound: Arc<Inbound>) {
    while let Some(incoming) = streams.recv().await {
        tokio::spawn(inbound.clone().handle(incoming));
    }
}

/// Signs with the rotated key, and believes the new bundle, as soon as they are there.
async fn speak_as(credentials: Credentials, gossip: Gossip) {
    let mut rotations = credentials.rotations();
    while rotations.changed().await.is_ok() {
        let current = credentials.current();
        gossip.rotate(current.svid().clone(), current.bundle().clone()).await;
    }
}
