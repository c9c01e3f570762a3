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

    /// Asks the node to stop. To leave is the last word: it ends the waiting of a drain under way.
    pub(crate) fn request(&self, shutdown: Shutdown) {
        self.request.send_if_modified(|request| {
            let is_new = *request != Some(Shutdown::Leave);
            if is_new {
                *request = Some(shutdown);
            }
            is_new
        });
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
        let finished = self.within(end, async {
            tokio::time::sleep(ANNOUNCE).await;
            self.inbound.dismiss();
            quiet(&self.inbound).await;
        });
        if !finished.await && self.inbound.under_way() > 0 {
            self.warn_of_cut();
        }
        self.inbound.close();
    }

    /// Accepts no more of local programs, and waits for their work to end.
    pub(crate) async fn finish_outbound(&self, end: Instant) {
        self.local.close();
        let finished = self.within(end, async {
            while self.outbound.under_way() + self.local.under_way() > 0 {
                self.outbound.idle().await;
                self.local.idle().await;
            }
        });
        if !finished.await && self.outbound.under_way() > 0 {
            self.warn_of_cut();
        }
    }

    /// Whether `work` ended before `end`, and before somebody asked to leave at once.
    async fn within(&self, end: Instant, work: impl Future<Output = ()>) -> bool {
        let mut request = self.request.subscribe();
        tokio::select! {
            biased;
            () = work => true,
            () = tokio::time::sleep_until(end) => false,
            Ok(_) = request.wait_for(|request| *request == Some(Shutdown::Leave)) => false,
        }
    }

    fn warn_of_cut(&self) {
        let why = match *self.request.borrow() {
            Some(Shutdown::Leave) => "leaving at once",
            _ => "drain timeout",
        };
        warn!(under_way = self.under_way(), "{why}: what is under way is cut off");
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Work under way in both directions does not end, and the drain timeout is far away.
    #[tokio::test]
    async fn a_drain_ends_at_once_when_it_is_asked_to_leave() {
        let gates = [(); 3].map(|()| Gate::new(1));
        let _work = [gates[0].enter().expect("room"), gates[1].enter().expect("room")];
        let [inbound, outbound, local] = gates.clone();
        let drain = Drain::new(inbound, outbound, local);
        drain.request(Shutdown::Drain);
        let end = drain.begin(drain.requested().await, Duration::from_secs(3_600), &Clock::System);
        let waiting = drain.clone();
        let finished = tokio::spawn(async move {
            waiting.finish_inbound(end).await;
            waiting.finish_outbound(end).await;
        });
        drain.request(Shutdown::Drain);
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!finished.is_finished(), "to be told the same again changes nothing");
        drain.request(Shutdown::Leave);
        drain.request(Shutdown::Drain);
        tokio::time::timeout(Duration::from_secs(60), finished).await.expect("at once").expect("no panic");
    }
}
