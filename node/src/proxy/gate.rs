//! Counts work under way, and knows when a draining node has none left.
//!
//! It counts and says no; why the limit is what it is, and who is told, is its owners' business.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::{Notify, watch};

use crate::balance::mix;

/// Work under way on this node, of one kind, with a limit.
#[derive(Clone)]
pub(crate) struct Gate {
    shared: Arc<Shared>,
}

struct Shared {
    under_way: AtomicUsize,
    limit: AtomicUsize,
    /// Below the limit while memory is short.
    ceiling: AtomicUsize,
    entered: AtomicUsize,
    /// How often half of the work was cut off.
    cuts: watch::Sender<u32>,
    draining: AtomicBool,
    dismissed: AtomicBool,
    closed: AtomicBool,
    idle: Notify,
    dismissal: Notify,
    close_began: Notify,
}

/// One piece of work under way, as long as it lives.
pub(crate) struct Pass {
    shared: Arc<Shared>,
    number: usize,
}

/// The passes of one connection, and where it comes from; cheap to clone. HTTP lets go of a connection that
/// switches to another protocol: the tunnel holds them on.
#[derive(Clone)]
pub(crate) struct Held {
    passes: Arc<(Pass, Option<Pass>)>,
    source: Option<IpAddr>,
}

impl Gate {
    /// Lets at most `limit` pieces of work in at a time.
    pub(crate) fn new(limit: usize) -> Self {
        let shared = Shared {
            under_way: AtomicUsize::new(0),
            limit: AtomicUsize::new(limit),
            ceiling: AtomicUsize::new(usize::MAX),
            entered: AtomicUsize::new(0),
            cuts: watch::Sender::new(0),
            draining: AtomicBool::new(false),
            dismissed: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            idle: Notify::new(),
            dismissal: Notify::new(),
            close_began: Notify::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Lets one more in; `None` at the limit.
    pub(crate) fn enter(&self) -> Option<Pass> {
        let number = self.shared.entered.fetch_add(1, Ordering::Relaxed);
        let pass = Pass { shared: self.shared.clone(), number };
        // Counted first and taken back by the drop, so that the limit holds among many.
        let before = self.shared.under_way.fetch_add(1, Ordering::Relaxed);
        let ceiling = self.shared.ceiling.load(Ordering::Relaxed);
        (before < self.limit().min(ceiling)).then_some(pass)
    }

    /// Lets in less than the limit for now, or with `None` as much as the limit again.
    pub(crate) fn set_ceiling(&self, ceiling: Option<usize>) {
        self.shared.ceiling.store(ceiling.unwrap_or(usize::MAX), Ordering::Relaxed);
    }

    /// Cuts off half of what is under way. `false` where nothing here waits to be cut off: its
    /// connections are.
    pub(crate) fn cut_half(&self) -> bool {
        let is_heard = self.shared.cuts.receiver_count() > 0;
        if is_heard {
            self.shared.cuts.send_modify(|cuts| *cuts = cuts.wrapping_add(1));
        }
        is_heard
    }

    /// How much may be under way.
    pub(crate) fn limit(&self) -> usize {
        self.shared.limit.load(Ordering::Relaxed)
    }

    /// Lets at most `limit` in from now on; what is in stays.
    pub(crate) fn set_limit(&self, limit: usize) {
        self.shared.limit.store(limit, Ordering::Relaxed);
    }

    /// How much is under way.
    pub(crate) fn under_way(&self) -> usize {
        self.shared.under_way.load(Ordering::Relaxed)
    }

    /// How much has come so far.
    pub(crate) fn entered(&self) -> usize {
        self.shared.entered.load(Ordering::Relaxed)
    }

    /// Callers are asked to go elsewhere from now on, and still served.
    pub(crate) fn drain(&self) {
        self.shared.draining.store(true, Ordering::Relaxed);
    }

    /// Connections of many requests are ended from now on, each once its work has. Not as soon as it
    /// drains: a request may cross that word, so it is for callers who have not gone by themselves.
    pub(crate) fn dismiss(&self) {
        self.shared.dismissed.store(true, Ordering::Relaxed);
        self.shared.dismissal.notify_waiters();
    }

    /// Resolves when connections of many requests are ended.
    pub(crate) async fn dismissed(&self) {
        loop {
            let notified = self.shared.dismissal.notified();
            if self.shared.dismissed.load(Ordering::Relaxed) {
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
        self.shared.close_began.notify_waiters();
    }

    /// Resolves when nothing new is let in.
    pub(crate) async fn closed(&self) {
        loop {
            let notified = self.shared.close_began.notified();
            if self.is_closed() {
                return;
            }
            notified.await;
        }
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

impl Pass {
    /// Resolves when this piece of work must be given up.
    pub(crate) async fn cut(&self) {
        let mut cuts = self.shared.cuts.subscribe();
        while cuts.changed().await.is_ok() {
            // Each cut takes those whose number, stirred, has one more bit set, so two cuts take three quarters,
            // however many there were and whatever numbers are left.
            let bit = (*cuts.borrow_and_update()).wrapping_sub(1) % u64::BITS;
            if mix(self.number as u64) >> bit & 1 == 1 {
                return;
            }
        }
    }
}

impl Held {
    /// `pass` says when the connection is cut off; what is counted `beside` it ends with it.
    pub(crate) fn new(pass: Pass, beside: Option<Pass>) -> Self {
        Self { passes: Arc::new((pass, beside)), source: None }
    }

    /// The connection comes from `source`; `None` where that has no address.
    pub(crate) fn coming_from(self, source: Option<IpAddr>) -> Self {
        Self { source, ..self }
    }

    /// Where the connection comes from.
    pub(crate) fn source(&self) -> Option<IpAddr> {
        self.source
    }

    /// Resolves when the connection must be given up.
    pub(crate) async fn cut(&self) {
        self.passes.0.cut().await;
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.shared.under_way.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.shared.idle.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_newest_is_refused_at_the_limit_and_below_it_while_there_is_a_ceiling() {
        let gate = Gate::new(2);
        let passes = [gate.enter(), gate.enter()];
        assert!(passes.iter().all(Option::is_some) && gate.enter().is_none());
        drop(passes);
        gate.set_ceiling(Some(1));
        let one = gate.enter();
        assert!(one.is_some() && gate.enter().is_none());
        gate.set_ceiling(None);
        assert!(gate.enter().is_some());
    }

    /// Every task has had its turn; the runtime gives its own future one after 61 others.
    async fn settle() {
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn a_cut_that_nobody_waits_for_is_none() {
        let gate = Gate::new(1);
        let _pass = gate.enter();
        assert!(!gate.cut_half());
    }

    #[tokio::test]
    async fn a_cut_takes_half_and_a_second_one_half_of_the_rest() {
        let gate = Gate::new(1024);
        for earlier in [0, 30] {
            let mut tasks = tokio::task::JoinSet::new();
            {
                // Cuts of earlier troubles, which took everybody who was there.
                let _heard = gate.shared.cuts.subscribe();
                (0..earlier).for_each(|_| assert!(gate.cut_half()));
            }
            for _ in 0..512 {
                let pass = gate.enter().expect("room");
                tasks.spawn(async move { pass.cut().await });
            }
            for left in [256_usize, 128] {
                settle().await;
                assert!(gate.cut_half());
                settle().await;
                assert!(gate.under_way().abs_diff(left) < left / 4, "{} of {left}", gate.under_way());
            }
            drop(tasks);
            settle().await;
        }
    }
}
