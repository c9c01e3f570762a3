//! Stopping without dropping work.
//!
//! Announce draining, give callers time to hear it, finish what is under way, refuse the rest. The
//! records' withdrawal and the sockets' end are the composition root's.

use std::time::Duration;

use starling_gossip::clock::Clock;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::proxy::gate::Gate;

/// Callers hear of a draining instance within a gossip round or two; until then they are served.
pub(crate) const ANNOUNCE: Duration = Duration::from_millis(1500);

/// How a node stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Finish what is under way first.
    Drain,
    /// Withdraw at once; what is under way gets no time.
    Leave,
}

/// The progress of a node's end; cheap to clone.
#[derive(Clone)]
pub(crate) struct Drain {
    inbound: Gate,
    outbound: Gate,
    request: watch::Sender<Option<Shutdown>>,
}

impl Drain {
    /// Over the work in both directions.
    pub(crate) fn new(inbound: Gate, outbound: Gate) -> Self {
        Self { inbound, outbound, request: watch::Sender::new(None) }
    }

    /// Asks the node to stop.
    pub(crate) fn request(&self, shutdown: Shutdown) {
        self.request.send_replace(Some(shutdown));
    }

    /// Resolves when somebody asked for the end.
    pub(crate) async fn requested(&self) -> Shutdown {
        let mut request = self.request.subscribe();
        match request.wait_for(Option::is_some).await {
            Ok(shutdown) => shutdown.unwrap_or(Shutdown::Drain),
            Err(_closed) => std::future::pending().await,
        }
    }

    /// Whether new work should go elsewhere.
    pub(crate) fn is_draining(&self) -> bool {
        self.inbound.is_draining()
    }

    /// Work under way in both directions.
    pub(crate) fn under_way(&self) -> usize {
        self.inbound.under_way() + self.outbound.under_way()
    }

    /// Waits for callers to hear, then for work to end, `timeout` in all; refuses the rest.
    pub(crate) async fn finish(&self, shutdown: Shutdown, timeout: Duration, clock: &Clock) {
        self.inbound.drain();
        if shutdown == Shutdown::Drain {
            let end = clock.now() + timeout;
            info!(under_way = self.under_way(), ?timeout, "draining");
            let finished = tokio::time::timeout_at(end, async {
                tokio::time::sleep(ANNOUNCE).await;
                while self.under_way() > 0 {
                    self.inbound.idle().await;
                    self.outbound.idle().await;
                }
            });
            if finished.await.is_err() {
                warn!(under_way = self.under_way(), "drain timeout: what is under way is cut off");
            }
        }
        self.inbound.close();
    }
}
