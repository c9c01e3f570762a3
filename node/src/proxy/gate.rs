//! Counts work under way, and knows when a draining node has none left.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Work under way on this node, of one kind, with a limit.
#[derive(Clone)]
pub(crate) struct Gate {
    shared: Arc<Shared>,
}

struct Shared {
    under_way: AtomicUsize,
    limit: usize,
    draining: AtomicBool,
    closed: AtomicBool,
    idle: Notify,
    drain_began: Notify,
}

/// One piece of work under way, as long as it lives.
pub(crate) struct Pass {
    shared: Arc<Shared>,
}

impl Gate {
    /// Lets at most `limit` pieces of work in at a time.
    pub(crate) fn new(limit: usize) -> Self {
        let shared = Shared {
            under_way: AtomicUsize::new(0),
            limit,
            draining: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            idle: Notify::new(),
            drain_began: Notify::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Lets one more in; `None` at the limit.
    pub(crate) fn enter(&self) -> Option<Pass> {
        let pass = Pass { shared: self.shared.clone() };
        // Counted first and taken back by the drop, so that the limit holds among many.
        let before = self.shared.under_way.fetch_add(1, Ordering::Relaxed);
        (before < self.shared.limit).then_some(pass)
    }

    /// How much may be under way.
    pub(crate) fn limit(&self) -> usize {
        self.shared.limit
    }

    /// How much is under way.
    pub(crate) fn under_way(&self) -> usize {
        self.shared.under_way.load(Ordering::Relaxed)
    }

    /// Callers are asked to go elsewhere from now on, and still served.
    pub(crate) fn drain(&self) {
        self.shared.draining.store(true, Ordering::Relaxed);
        self.shared.drain_began.notify_waiters();
    }

    /// Resolves when callers should go elsewhere.
    pub(crate) async fn draining(&self) {
        loop {
            let notified = self.shared.drain_began.notified();
            if self.is_draining() {
                return;
            }
            notified.await;
        }
    }

    /// Whether callers should go elsewhere.
    pub(crate) fn is_draining(&self) -> bool {
        self.shared.draining.load(Ordering::Relaxed)
    }

    /// Nothing new is let in from now on.
    pub(crate) fn close(&self) {
        self.shared.closed.store(true, Ordering::Relaxed);
    }

    /// Whether new work must be refused.
    pub(crate) fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::Relaxed)
    }

    /// Resolves when nothing is under way.
    pub(crate) async fn idle(&self) {
        loop {
            let notified = self.shared.idle.notified();
            if self.under_way() == 0 {
                return;
            }
            notified.await;
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.shared.under_way.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.shared.idle.notify_waiters();
        }
    }
}
