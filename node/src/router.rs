//! Keeps the route table in step with the catalogue, off the request path.
//!
//! What goes into a table is decided in [`crate::route`] and its `retention`; this is the loop around them,
//! with the attempts to reach what is kept. An attempt is a connection of the pool's, with the endpoint's
//! identity demanded: one in use is an answer already, and nothing is sent to a workload.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use starling_gossip::clock::Clock;
use starling_gossip::handle::Gossip;
use starling_gossip::identity::{NodeName, ServiceName};
use starling_gossip::record::Locality;
use starling_gossip::snapshot::Snapshot;
use starling_transport::dial::ConnectError;
use starling_transport::pool::{Pool, Target as Peer};
use starling_transport::verify::Expected;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::config::{Config, Upstreams};
use crate::endpoint::Endpoint;
use crate::live::{LiveTable, Making};
use crate::route::retention::{Retention, Transition};
use crate::route::{self, Target};
use crate::upstream::UpstreamLimits;
use crate::usage::Usage;

/// Changes of the catalogue that come within this are computed into one route table: a health
/// flip waits no longer, and a flood of joins costs twenty tables a second.
const ROUTES_SETTLE: Duration = Duration::from_millis(50);

/// What tables are made with.
pub(crate) struct Router {
    pub(crate) table: Arc<ArcSwap<LiveTable>>,
    pub(crate) pool: Pool,
    pub(crate) own: NodeName,
    pub(crate) locality: Locality,
    pub(crate) limits: UpstreamLimits,
    pub(crate) clock: Clock,
}

impl Router {
    /// Computes the next table whenever the catalogue, or what is kept against it, has changed. Ends
    /// with the gossip.
    pub(crate) async fn run(self, gossip: Gossip, mut running: watch::Receiver<Arc<Config>>) {
        let mut snapshots = gossip.snapshots();
        let mut retention = Retention::new(gossip.owner().clone(), running.borrow().routing);
        let mut attempts = JoinSet::new();
        loop {
            let snapshot = snapshots.borrow_and_update().clone();
            let config = running.borrow_and_update().clone();
            retention.set_settings(config.routing, self.clock.now());
            retention.handle_snapshot(&snapshot, self.clock.now());
            self.publish(&snapshot, &config.upstreams, &mut retention);
            tokio::time::sleep(ROUTES_SETTLE).await;
            loop {
                while let Some(target) = retention.poll_attempt(self.clock.now()) {
                    attempts.spawn(attempt(self.pool.clone(), target));
                }
                let timeout = retention.poll_timeout();
                tokio::select! {
                    changed = snapshots.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                    Ok(()) = running.changed() => break,
                    Some(Ok((target, reached))) = attempts.join_next() => {
                        retention.handle_attempt(&target, reached, self.clock.now());
                        if retention.take_changed() {
                            break;
                        }
                    }
                    () = tokio::time::sleep_until(timeout.unwrap_or_else(|| self.clock.now())), if timeout.is_some() => {}
                }
            }
        }
    }

    fn publish(&self, snapshot: &Snapshot, upstreams: &Upstreams, retention: &mut Retention) {
        retention.take_changed();
        while let Some(transition) = retention.poll_transition() {
            tell(&transition);
        }
        let routes = route::compute_keeping(snapshot, retention.panics(), &self.locality);
        for (service, panic) in &routes.panics {
            let kept = metrics::gauge!("starling_route_retained_endpoints", "service" => service.to_string());
            kept.set(panic.instances.len() as f64);
        }
        let endpoint = |service: &ServiceName, target: &Target, usage: Arc<Usage>| {
            let (pool, clock) = (self.pool.clone(), self.clock.clone());
            Endpoint::new(target.clone(), service.clone(), usage, pool, self.limits, clock)
        };
        let making = Making { upstreams, own: &self.own, endpoint: &endpoint, clock: &self.clock };
        let next = self.table.load().next(routes, &making);
        self.table.store(Arc::new(next));
        metrics::counter!("starling_route_tables_total").increment(1);
    }
}

fn tell(transition: &Transition) {
    match transition {
        Transition::Began { service, lost, known } => warn!(
            %service, lost, known,
            "leases of most of a service ran out at once: its last known endpoints are kept until this node \
             has failed to reach them for routing.max_stale; is this node cut off?"
        ),
        Transition::Ended { service, lasted } => {
            metrics::gauge!("starling_route_retained_endpoints", "service" => service.to_string()).set(0.0);
            info!(%service, ?lasted, "none of the service's endpoints is kept any more against the catalogue");
        }
    }
}

async fn attempt(pool: Pool, target: Target) -> (Target, Option<bool>) {
    let expected = Expected::Exactly(target.owner.identity.clone());
    let reached = match pool.connect(&Peer { address: target.address, expected }).await {
        Ok(_) => Some(true),
        // Our own trouble says nothing about the other.
        Err(ConnectError::BadCredentials | ConnectError::Overloaded | ConnectError::Closed) => None,
        Err(_) => Some(false),
    };
    (target, reached)
}
