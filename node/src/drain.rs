//! Stopping without dropping work.
//!
//! First what others ask of this node: announce draining, give callers time to hear it, finish what
//! is under way, refuse the rest. Then what local programs ask of others, which are served
//! all the while: accept nothing more, and finish what was accepted. The records' withdrawal and the
//! sockets' end are the composition root's.

use std::time::Duration;

use starling_gossip::clock::{Clock, Instant};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::proxy::gate::Gate;

/// Callers hear of a draining instance within a gossip round or two; until then they are served.
/// Local programs' connections end in this time too, each with an answer that says so.
pub(crate) const ANNOUNCE: Duration = Duration::from_millis(1500);

/// Who still calls has not heard yet. An instance that nobody has called for so long is refused to
/// nobody.
const QUIET: Duration = Duration::from_millis(300);

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
    local: Gate,
    request: watch::Sender<Option<Shutdown>>,
}

impl Drain {
    /// Over the work in both directions, and local programs' connections.
    pub(crate) fn new(inbound: Gate, outbound: Gate, local: Gate) -> Self {
        Self { inbound, outbound, local, request: watch::Sender::new(None) }
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

    /// Begins, and says when all must have ended.
    pub(crate) fn begin(&self, shutdown: Shutdown, timeout: Duration, clock: &Clock) -> Instant {
        self.inbound.drain();
        self.local.drain();
        match shutdown {
            Shutdown::Drain => {
                info!(under_way = self.under_way(), ?timeout, "draining");
                clock.now() + timeout
            }
            Shutdown::Leave => clock.now(),
        }
    }

    /// Waits for callers to hear, then for their work to end; refuses the rest.
    pub(crate) async fn finish_inbound(&self, end: Instant) {
        let finished = tokio::time::timeout_at(end, async {
            tokio::time::sleep(ANNOUNCE).await;
            quiet(&self.inbound).await;
        });
        if finished.await.is_err() && self.inbound.under_way() > 0 {
            self.warn_of_cut();
        }
        self.inbound.close();
    }

    /// Accepts no more of local programs, and waits for their work to end.
    pub(crate) async fn finish_outbound(&self, end: Instant) {
        self.local.close();
        let finished = tokio::time::timeout_at(end, async {
            while self.outbound.under_way() + self.local.under_way() > 0 {
                self.outbound.idle().await;
                self.local.idle().await;
            }
        });
        if finished.await.is_err() && self.outbound.under_way() > 0 {
            self.warn_of_cut();
        }
    }

    fn warn_of_cut(&self) {
        warn!(under_way = self.under_way(), "drain timeout: what is under way is cut off");
    }
}

/// Resolves when nothing is under way and nothing new comes.
async fn quiet(work: &Gate) {
    loop {
        work.idle().await;
        let entered = work.entered();
        tokio::time::sleep(QUIET).await;
        if work.entered() == entered {
            return;
        }
    }
}
