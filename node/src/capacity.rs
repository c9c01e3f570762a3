//! What one node takes on: the configuration's limits, cut down to what the machine gives, as the
//! gates and windows that keep them. Who stands at a gate is the proxy's business.

use starling_transport::limits::Windows;
use tracing::{debug, warn};

use crate::config::Limits;
use crate::descriptors::Shares;
use crate::memory;
use crate::proxy::gate::Gate;
use crate::proxy::listener::Clients;
use crate::proxy::overdue::Watches;
use crate::proxy::refusal::REFUSALS_MAX;
use crate::proxy::workload::WorkloadLimits;
use crate::upstream::{UpstreamLimits, http2};

/// Streams of peers for each request that may be under way. Callers keep idle ones for their next
/// requests: with 500 callers of one service these are about as many as the requests.
const STREAMS_PER_REQUEST: usize = 4;

/// The gates and windows of one node.
pub(crate) struct Capacity {
    /// Memory, in bytes; `None` where the system does not tell.
    pub(crate) memory_max: Option<u64>,
    /// What a QUIC connection may hold.
    pub(crate) windows: Windows,
    /// What HTTP connections to one place may hold.
    pub(crate) upstream: UpstreamLimits,
    /// What connections to local workloads may take.
    pub(crate) workloads: WorkloadLimits,
    /// Local connections.
    pub(crate) clients: Clients,
    /// Requests and connections from local programs under way.
    pub(crate) outbound: Gate,
    /// Requests and connections from peers under way.
    pub(crate) inbound: Gate,
    /// Streams from peers, idle ones included.
    pub(crate) streams: Gate,
}

impl Capacity {
    /// By `limits`, and by what this machine gives; so many descriptors are `reserved` for others.
    pub(crate) fn new(limits: &Limits, reserved: usize) -> Self {
        let memory_max = limits.memory_max.or_else(memory::default_max);
        debug!(?memory_max, "memory this node keeps within");
        let shares = Shares::now(reserved);
        let descriptors = Gate::new(shares.total);
        let upstream = UpstreamLimits {
            idle_max: limits.idle_streams_per_endpoint_max as usize,
            windows: http2::Windows::within(memory_max),
        };
        let requests = limits.requests_in_flight_max as usize;
        Self {
            windows: Windows::within(memory_max),
            upstream,
            workloads: WorkloadLimits {
                upstream,
                connections: Gate::new(shares.each),
                descriptors: descriptors.clone(),
            },
            clients: Clients {
                connections: Gate::new(local_connections(limits.connections_max as usize, shares.each)),
                descriptors,
                watches: Watches::default(),
                refusals: Gate::new(REFUSALS_MAX),
            },
            outbound: Gate::new(requests),
            inbound: Gate::new(requests),
            streams: Gate::new(requests.saturating_mul(STREAMS_PER_REQUEST)),
            memory_max,
        }
    }

    /// Takes over what may change of `limits` while a node runs. What is in stays in.
    pub(crate) fn set_limits(&self, limits: &Limits, reserved: usize) {
        let connections = local_connections(limits.connections_max as usize, Shares::now(reserved).each);
        self.clients.connections.set_limit(connections);
        let requests = limits.requests_in_flight_max as usize;
        self.outbound.set_limit(requests);
        self.inbound.set_limit(requests);
        self.streams.set_limit(requests.saturating_mul(STREAMS_PER_REQUEST));
    }

    /// Everything that is refused while memory is short.
    pub(crate) fn gates(&self) -> Vec<(&'static str, Gate)> {
        vec![
            ("local connections", self.clients.connections.clone()),
            ("outbound work", self.outbound.clone()),
            ("inbound work", self.inbound.clone()),
            ("peers' streams", self.streams.clone()),
        ]
    }
}

fn local_connections(wanted: usize, share: usize) -> usize {
    if share < wanted {
        warn!(
            connections_max = share,
            configured = wanted,
            "too few descriptors for limits.connections_max; raise the limit of open files (ulimit -n, LimitNOFILE)"
        );
    }
    wanted.min(share)
}
