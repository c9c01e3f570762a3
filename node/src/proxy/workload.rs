//! The local workloads: how to reach each, and what it serves.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use starling_gossip::clock::Clock;
use starling_gossip::identity::{ServiceName, SpiffeId};
use starling_gossip::record::Protocol;
use starling_transport::header::RefusalReason;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use crate::config::{Service, WorkloadAddress};
use crate::descriptors;
use crate::proxy::access::Access;
use crate::proxy::gate::{Gate, Pass};
use crate::proxy::proxy_protocol;
use crate::proxy::spoken::Spoken;
use crate::proxy::workload_tls::{HandshakeFailure, WorkloadHandshake};
use crate::retry::RetryBudget;
use crate::telemetry::exchange::{Direction, Meter};
use crate::upstream::{Connect, ConnectFailure, HttpUpstream, HttpVersion, NextHop, UpstreamLimits};

/// A workload on this machine answers in microseconds, one in the same pod or host network in
/// milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Callers with metrics of their own; the rest share one series.
const PEERS_METERED_MAX: usize = 256;

/// The local workloads by instance id, swapped as a whole; cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Workloads {
    table: Arc<ArcSwap<BTreeMap<String, Arc<Workload>>>>,
}

/// One local instance's workload: one service at one address. Another address is another workload.
pub(crate) struct Workload {
    /// What it serves.
    pub(crate) service: ServiceName,
    /// How it speaks.
    pub(crate) protocol: Protocol,
    /// Who may call it.
    pub(crate) access: Arc<Access>,
    /// How it is reached.
    pub(crate) upstream: HttpUpstream<LimitedConnect>,
    /// Which versions of HTTP it speaks.
    pub(crate) spoken: Spoken,
    /// Its work under way; drained when the instance is withdrawn or lives elsewhere.
    pub(crate) gate: Gate,
    /// How many requests may be sent to it twice.
    pub(crate) repeats: RetryBudget,
    described: ArcSwap<Service>,
    meters: Mutex<BTreeMap<SpiffeId, Arc<Meter>>>,
    rest: Arc<Meter>,
}

/// What connections to local workloads may take; cheap to clone.
#[derive(Clone)]
pub(crate) struct WorkloadLimits {
    /// Of each.
    pub(crate) upstream: UpstreamLimits,
    /// How many there are.
    pub(crate) connections: Gate,
    /// How many there are with those of local programs.
    pub(crate) descriptors: Gate,
}

/// Opens connections to a local workload.
pub(crate) struct WorkloadConnect {
    address: WorkloadAddress,
    /// Where the workload speaks TLS.
    handshake: Option<WorkloadHandshake>,
    /// Whether it is told who calls before anything else.
    takes_proxy_protocol: bool,
}

/// Whom a connection to a workload is for.
#[derive(Clone, Copy)]
pub(crate) struct CalledBy<'a> {
    /// The proved identity.
    pub(crate) peer: &'a SpiffeId,
    /// Where its packets come from.
    pub(crate) from: SocketAddr,
}

/// The same for calls: within limits, and a failure is evidence for the workload's prober. Probes
/// need no limits: a full node's workloads are still well.
pub(crate) struct LimitedConnect {
    connect: WorkloadConnect,
    limits: WorkloadLimits,
    /// Why the newest call that could not connect could not.
    refused: watch::Sender<Option<String>>,
}

/// Why there is no connection.
enum Failed {
    /// This node has nothing left to connect with.
    UsedUp(std::io::Error),
    /// The workload does not speak this version of HTTP.
    OtherVersion(HttpVersion),
    /// Anything else, for people.
    Told(String),
}

impl From<HandshakeFailure> for Failed {
    fn from(failure: HandshakeFailure) -> Self {
        match failure {
            HandshakeFailure::OtherVersion(version) => Self::OtherVersion(version),
            HandshakeFailure::Told(why) => Self::Told(why),
        }
    }
}

/// A connection to a workload.
pub(crate) type WorkloadIo = Either<Plain, Box<TlsStream<TcpStream>>>;

/// One without TLS; also what local programs connect by.
pub(crate) type Plain = Either<TcpStream, UnixStream>;

impl Workloads {
    /// The instance's workload.
    pub(crate) fn find(&self, instance: &str) -> Option<Arc<Workload>> {
        self.table.load().get(instance).cloned()
    }

    /// All there are now.
    pub(crate) fn set(&self, table: BTreeMap<String, Arc<Workload>>) {
        self.table.store(Arc::new(table));
    }

    /// Gives back connections that nobody uses.
    pub(crate) fn sweep(&self) {
        self.table.load().values().for_each(|workload| workload.upstream.sweep());
    }
}

impl Workload {
    /// The workload that `service` describes, with connections as `limits` allow.
    pub(crate) fn new(service: &Service, limits: &WorkloadLimits) -> Self {
        let access = Access::new(service.name.clone(), service.allow.clone());
        Self::with_access(service, limits, access)
    }

    /// The same instance as `service` describes it now: another workload. Streams that callers of
    /// this one keep open obey the next one's list.
    pub(crate) fn succeeded_by(&self, service: &Service, limits: &WorkloadLimits) -> Self {
        if self.service != service.name {
            // Nobody would tell the old list of a change.
            self.access.end();
            return Self::new(service, limits);
        }
        self.access.replace(&service.allow);
        Self::with_access(service, limits, self.access.clone())
    }

    fn with_access(service: &Service, limits: &WorkloadLimits, access: Arc<Access>) -> Self {
        Self {
            rest: Meter::new(Direction::Inbound, Some(&service.name), "other"),
            upstream: HttpUpstream::new(LimitedConnect::new(service, limits), limits.upstream),
            // The node's own gate sets the limit; this one only counts.
            gate: Gate::new(usize::MAX),
            spoken: Spoken::default(),
            repeats: RetryBudget::new(Clock::System.now()),
            meters: Mutex::default(),
            access,
            protocol: service.protocol,
            service: service.name.clone(),
            described: ArcSwap::from_pointee(service.clone()),
        }
    }

    /// The instance is gone: callers are sent away, and what is left of tunnels ends.
    pub(crate) fn withdraw(&self) {
        self.gate.drain();
        self.gate.dismiss();
        self.gate.close();
        self.access.end();
    }

    /// Whether a stream that was let in to this one may send its next request to `now`, found under
    /// the same id: the instance may have been withdrawn meanwhile and come back with another list,
    /// which has never been asked about the stream's caller.
    pub(crate) fn continues_in(&self, now: &Self) -> bool {
        let same_kind = now.service == self.service && now.protocol == self.protocol;
        same_kind && Arc::ptr_eq(&now.access, &self.access) && !now.gate.is_closed()
    }

    /// Everything that is said of it at this moment: what can change while it stays the same
    /// workload is read here, each time.
    pub(crate) fn service_now(&self) -> Arc<Service> {
        self.described.load_full()
    }

    /// Something else is said of the same workload.
    pub(crate) fn set_service(&self, service: &Service) {
        self.described.store(Arc::new(service.clone()));
        self.access.replace(&service.allow);
    }

    /// Counts calls of those who get no metrics of their own, such as who is denied.
    pub(crate) fn meter_of_the_rest(&self) -> &Arc<Meter> {
        &self.rest
    }

    /// Counts `peer`'s calls. Asked once per stream, not per request.
    pub(crate) fn meter(&self, peer: &SpiffeId) -> Arc<Meter> {
        let mut meters = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(meter) = meters.get(peer) {
            return meter.clone();
        }
        if meters.len() == PEERS_METERED_MAX {
            return self.rest.clone();
        }
        let meter = Meter::new(Direction::Inbound, Some(&self.service), peer.as_str());
        meters.insert(peer.clone(), meter.clone());
        meter
    }
}

impl WorkloadConnect {
    /// For the workload that `service` describes.
    pub(crate) fn new(service: &Service) -> Self {
        let handshake = service.tls.as_ref().map(WorkloadHandshake::new);
        let takes_proxy_protocol = service.proxy_protocol;
        Self { address: service.address.clone(), handshake, takes_proxy_protocol }
    }

    /// What to call the workload in a request of our own.
    pub(crate) fn host(&self) -> String {
        self.address.host_port().map_or("localhost".to_owned(), ToString::to_string)
    }

    /// Connects to the workload, for anything but HTTP; without a caller, for the node itself.
    pub(crate) async fn open(&self, caller: Option<CalledBy<'_>>) -> Result<WorkloadIo, ConnectFailure> {
        self.open_for(None, caller).await
    }

    /// Connects to the workload, for HTTP of `version`.
    pub(crate) async fn open_http(&self, version: HttpVersion) -> Result<WorkloadIo, ConnectFailure> {
        self.open_for(Some(version), None).await
    }

    async fn open_for(
        &self,
        version: Option<HttpVersion>,
        caller: Option<CalledBy<'_>>,
    ) -> Result<WorkloadIo, ConnectFailure> {
        let failed = |why: &dyn std::fmt::Display| {
            ConnectFailure::Unreachable(format!("the workload at {} does not accept: {why}", self.address))
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, self.connect(version, caller)).await {
            Ok(Err(Failed::UsedUp(error))) => {
                let detail = format!("this node has nothing left to connect to the workload with: {error}");
                Err(ConnectFailure::Refused(RefusalReason::Overloaded, detail))
            }
            Ok(Err(Failed::OtherVersion(version))) => Err(ConnectFailure::other_version(version)),
            Ok(Err(Failed::Told(why))) => Err(failed(&why)),
            Ok(Ok(io)) => Ok(io),
            Err(_elapsed) => Err(failed(&"no answer within 2 s")),
        }
    }

    async fn connect(
        &self,
        version: Option<HttpVersion>,
        caller: Option<CalledBy<'_>>,
    ) -> Result<WorkloadIo, Failed> {
        let told = |error: std::io::Error| match descriptors::or_the_like_are_used_up(&error) {
            true => Failed::UsedUp(error),
            false => Failed::Told(error.to_string()),
        };
        let host_port = match &self.address {
            WorkloadAddress::Tcp(at) | WorkloadAddress::Tls { at, .. } => at,
            WorkloadAddress::Unix(path) => {
                let mut stream = UnixStream::connect(path).await.map_err(told)?;
                self.introduce(&mut stream, caller, None).await.map_err(told)?;
                return Ok(Either::Left(Either::Right(stream)));
            }
        };
        let mut stream = TcpStream::connect(host_port.to_string()).await.map_err(told)?;
        stream.set_nodelay(true).map_err(told)?;
        let to = stream.peer_addr().ok();
        self.introduce(&mut stream, caller, to).await.map_err(told)?;
        match &self.handshake {
            None => Ok(Either::Left(Either::Left(stream))),
            Some(handshake) => Ok(Either::Right(Box::new(handshake.run(stream, version).await?))),
        }
    }

    /// Says who calls, where that is asked for: in the clear, before TLS too.
    async fn introduce(
        &self,
        stream: &mut (impl AsyncWrite + Unpin),
        caller: Option<CalledBy<'_>>,
        to: Option<SocketAddr>,
    ) -> std::io::Result<()> {
        match caller {
            _ if !self.takes_proxy_protocol => Ok(()),
            Some(caller) => stream.write_all(&proxy_protocol::header(caller.peer, caller.from, to)).await,
            None => stream.write_all(&proxy_protocol::FOR_PROBE).await,
        }
    }
}

fn no_descriptors() -> ConnectFailure {
    let detail = "this node has as many connections to workloads as it may";
    ConnectFailure::Refused(RefusalReason::Overloaded, detail.to_owned())
}

/// The socket under a connection, if it is TCP.
pub(crate) fn tcp_under(io: &WorkloadIo) -> Option<&TcpStream> {
    match io {
        Either::Left(Either::Left(tcp)) => Some(tcp),
        Either::Left(Either::Right(_unix)) => None,
        Either::Right(tls) => Some(tls.get_ref().0),
    }
}

impl LimitedConnect {
    fn new(service: &Service, limits: &WorkloadLimits) -> Self {
        Self {
            connect: WorkloadConnect::new(service),
            limits: limits.clone(),
            refused: watch::Sender::new(None),
        }
    }

    /// Connects to the workload for `caller`; the connection counts as long as the passes live.
    pub(crate) async fn open(&self, caller: CalledBy<'_>) -> Result<(WorkloadIo, [Pass; 2]), ConnectFailure> {
        let passes = self.enter()?;
        Ok((self.noted(self.connect.open(Some(caller)).await)?, passes))
    }

    /// Connects without limits and without telling the prober, who asks.
    pub(crate) fn for_probe(&self) -> &WorkloadConnect {
        &self.connect
    }

    /// Why a call could not connect, as soon as one cannot; earlier ones do not count.
    pub(crate) async fn refused(&self) -> String {
        let mut refused = self.refused.subscribe();
        loop {
            // The sender lives as long as `self`.
            let _ = refused.changed().await;
            if let Some(why) = refused.borrow_and_update().clone() {
                return why;
            }
        }
    }

    /// Tells the prober of a workload that cannot be reached. That this node is full says nothing
    /// about the workload.
    fn noted<T>(&self, opened: Result<T, ConnectFailure>) -> Result<T, ConnectFailure> {
        if let Err(ConnectFailure::Unreachable(why)) = &opened {
            self.refused.send_replace(Some(why.clone()));
        }
        opened
    }

    fn enter(&self) -> Result<[Pass; 2], ConnectFailure> {
        match (self.limits.connections.enter(), self.limits.descriptors.enter()) {
            (Some(connection), Some(descriptor)) => Ok([connection, descriptor]),
            _ => Err(no_descriptors()),
        }
    }
}

impl Connect for LimitedConnect {
    type Io = WorkloadIo;

    async fn connect(&self, version: HttpVersion) -> Result<(WorkloadIo, NextHop), ConnectFailure> {
        let passes = self.enter()?;
        Ok((
            self.noted(self.connect.open_http(version).await)?,
            NextHop::Workload { _counted: Arc::new(passes) },
        ))
    }
}
