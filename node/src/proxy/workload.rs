//! The local workload: how to reach it, and what it serves.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use starling_gossip::identity::{ServiceName, SpiffeId};
use starling_gossip::record::Protocol;
use tokio::net::{TcpStream, UnixStream};
use tokio_util::either::Either;

use crate::config::WorkloadAddress;
use crate::telemetry::exchange::{Direction, Meter};
use crate::upstream::{Connect, ConnectFailure, HttpUpstream, HttpVersion, NextHop};

/// A workload on this machine answers in microseconds, one in the same pod or host network in
/// milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Callers with metrics of their own; the rest share one series.
const PEERS_METERED_MAX: usize = 256;

/// One local instance.
pub(crate) struct Workload {
    /// What it serves.
    pub(crate) service: ServiceName,
    /// How it speaks.
    pub(crate) protocol: Protocol,
    /// How it is reached.
    pub(crate) upstream: HttpUpstream<WorkloadConnect>,
    meters: Mutex<BTreeMap<SpiffeId, Arc<Meter>>>,
    rest: Arc<Meter>,
}

/// Opens connections to a local workload.
pub(crate) struct WorkloadConnect {
    address: WorkloadAddress,
}

impl Workload {
    /// A workload at `address`.
    pub(crate) fn new(
        service: ServiceName,
        protocol: Protocol,
        address: WorkloadAddress,
        idle_max: usize,
    ) -> Self {
        Self {
            rest: Meter::new(Direction::Inbound, Some(&service), "other"),
            upstream: HttpUpstream::new(WorkloadConnect::new(address), idle_max),
            meters: Mutex::default(),
            protocol,
            service,
        }
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
    /// For the workload at `address`.
    pub(crate) fn new(address: WorkloadAddress) -> Self {
        Self { address }
    }

    /// Connects to the workload.
    pub(crate) async fn open(&self) -> Result<Either<TcpStream, UnixStream>, ConnectFailure> {
        let failed = |why: &dyn std::fmt::Display| {
            ConnectFailure::Unreachable(format!("the workload at {} does not accept: {why}", self.address))
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, connect(&self.address)).await {
            Ok(connected) => connected.map_err(|error| failed(&error)),
            Err(_elapsed) => Err(failed(&"no answer within 2 s")),
        }
    }
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

impl Connect for WorkloadConnect {
    type Io = Either<TcpStream, UnixStream>;

    async fn connect(&self, _version: HttpVersion) -> Result<(Self::Io, NextHop), ConnectFailure> {
        Ok((self.open().await?, NextHop::Workload))
    }
}
