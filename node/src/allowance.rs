//! How many bytes the node may still take in before memory is looked at again.
//!
//! What is let in goes on filling its buffers, faster than anybody looks. So bodies and connections draw on what the
//! last look found free, and wait for the next one when that is used up: memory never grows far unseen.
//! It does not know how much there is; [`crate::memory`] grants, by what [`crate::pressure`] says.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::Thread;

/// So many may wait for a grant. Those beyond go on without: there are never so many readers.
const WAITING_MAX: usize = 256 * 1024;

/// This process's. It is without end until somebody grants.
pub(crate) static ALLOWANCE: Allowance = Allowance::endless();

/// What is left of it, and who waits for more.
pub(crate) struct Allowance {
    left: AtomicI64,
    waiting: Mutex<Waiting>,
}

struct Waiting {
    readers: Vec<Waker>,
    /// Looks at memory, and grants.
    looker: Option<Thread>,
}

impl Allowance {
    const fn endless() -> Self {
        Self {
            left: AtomicI64::new(i64::MAX),
            waiting: Mutex::new(Waiting { readers: Vec::new(), looker: None }),
        }
    }

    /// Resolves when something may be taken in.
    pub(crate) fn poll_some(&self, context: &Context<'_>) -> Poll<()> {
        if self.is_used_up() { self.poll_grant(context) } else { Poll::Ready(()) }
    }

    #[cold]
    fn poll_grant(&self, context: &Context<'_>) -> Poll<()> {
        let mut waiting = self.lock();
        // Somebody may have granted since: under the lock.
        if !self.is_used_up() || waiting.readers.len() >= WAITING_MAX {
            return Poll::Ready(());
        }
        waiting.readers.push(context.waker().clone());
        if let (1, Some(looker)) = (waiting.readers.len(), &waiting.looker) {
            looker.unpark();
        }
        Poll::Pending
    }

    /// `bytes` were taken in; who reads in steps may take one step too many.
    pub(crate) fn take(&self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.left.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Whether nothing is left.
    pub(crate) fn is_used_up(&self) -> bool {
        self.left.load(Ordering::Relaxed) <= 0
    }

    /// The current thread is unparked when there is nothing left and somebody waits.
    pub(crate) fn look_from_here(&self) {
        self.lock().looker = Some(std::thread::current());
    }

    /// So much may be taken in from now on, whatever was left.
    pub(crate) fn grant(&self, bytes: u64) {
        let readers = {
            let mut waiting = self.lock();
            self.left.store(i64::try_from(bytes).unwrap_or(i64::MAX), Ordering::Relaxed);
            std::mem::take(&mut waiting.readers)
        };
        readers.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics while it is held.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;
    use std::time::Duration;

    use starling_gossip::clock::Clock;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn who_finds_it_used_up_has_the_looker_look_and_waits_for_the_next_grant() {
        let allowance = Allowance::endless();
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let context = Context::from_waker(&waker);
        allowance.take(1 << 60);
        assert!(allowance.poll_some(&context).is_ready(), "nobody has granted");
        allowance.look_from_here();
        allowance.grant(100);
        allowance.take(99);
        assert!(allowance.poll_some(&context).is_ready());
        allowance.take(99);
        assert!(allowance.is_used_up(), "and one step too many taken");
        assert!(allowance.poll_some(&context).is_pending() && allowance.poll_some(&context).is_pending());
        let parked = Clock::System.now();
        std::thread::park_timeout(Duration::from_secs(60));
        assert!(Clock::System.now() - parked < Duration::from_secs(60), "nobody has unparked this thread");
        assert_eq!(woken.0.load(Ordering::Relaxed), 0);
        allowance.grant(1);
        assert_eq!(woken.0.load(Ordering::Relaxed), 2);
        assert!(allowance.poll_some(&context).is_ready());
    }
}
