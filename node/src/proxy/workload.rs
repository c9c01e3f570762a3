//! The local workloads: how to reach each, and what it serves.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use starling_gossip::identity::{ServiceName, SpiffeId};
use starling_gossip::record::Protocol;
use starling_transport::header::RefusalReason;
use tokio::net::{TcpStream, UnixStream};
use tokio_util::either::Either;

use crate::config::{Service, WorkloadAddress};
use crate::descriptors;
use crate::proxy::access::Access;
use crate::proxy::gate::{Gate, Pass};
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
    /// Its work under way; drained when the instance is withdrawn or lives elsewhere.
    pub(crate) gate: Gate,
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
}

/// The same, within limits. Probes need none: a full node's workloads are still well.
pub(crate) struct LimitedConnect {
    connect: WorkloadConnect,
    limits: WorkloadLimits,
}

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
            meters: Mutex::default(),
            access,
            protocol: service.protocol,
            service: service.name.clone(),
            described: ArcSwap::from_pointee(service.clone()),
        }
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
        Self { address: service.address.clone() }
    }

    /// Connects to the workload.
    pub(crate) async fn open(&self) -> Result<Either<TcpStream, UnixStream>, ConnectFailure> {
        let failed = |why: &dyn std::fmt::Display| {
            ConnectFailure::Unreachable(format!("the workload at {} does not accept: {why}", self.address))
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, connect(&self.address)).await {
            Ok(Err(error)) if descriptors::are_used_up(&error) => Err(no_descriptors()),
            Ok(connected) => connected.map_err(|error| failed(&error)),
            Err(_elapsed) => Err(failed(&"no answer within 2 s")),
        }
    }
}

fn no_descriptors() -> ConnectFailure {
    let detail = "this node has as many connections to workloads as it may";
    ConnectFailure::Refused(RefusalReason::Overloaded, detail.to_owned())
}

async fn connect(address: &WorkloadAddress) -> std::io::Result<Either<TcpStream, UnixStream>> {
    match address {
        WorkloadAddress::Tcp(host_port) => {
            let stream = TcpStream::connect(host_port.to_string()).await?;
            stream.set_nodelay(true)?;
            Ok(Either::Left(stream))
        }
        WorkloadAddress::Unix(path) => Ok(Either::Right(UnixStream::connect(path).await?)),
    }
}

impl LimitedConnect {
    fn new(service: &Service, limits: &WorkloadLimits) -> Self {
        Self { connect: WorkloadConnect::new(service), limits: limits.clone() }
    }

    /// Connects to the workload; the connection counts as long as the passes live.
    pub(crate) async fn open(&self) -> Result<(Either<TcpStream, UnixStream>, [Pass; 2]), ConnectFailure> {
        let passes = (self.limits.connections.enter(), self.limits.descriptors.enter());
        let (Some(connection), Some(descriptor)) = passes else { return Err(no_descriptors()) };
        Ok((self.connect.open().await?, [connection, descriptor]))
    }
}

impl Connect for LimitedConnect {
    type Io = Either<TcpStream, UnixStream>;

    async fn connect(&self, _version: HttpVersion) -> Result<(Self::Io, NextHop), ConnectFailure> {
        let (io, passes) = self.open().await?;
        Ok((io, NextHop::Workload { _counted: Arc::new(passes) }))
    }
}
