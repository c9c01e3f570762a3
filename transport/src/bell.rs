//! STATE MACHINE: what is polled only when it was itself woken.
//!
//! A task that carries a request waits for several things at once, and each wakes it; then it polls all of them. A read of
//! a stream that has nothing takes its connection's lock, looks the stream up and leaves a waker again, four times
//! for each answer that comes. With a bell of its own, a thing that did not wake is known to have nothing new.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};

/// See the module. It belongs to one thing, and that is polled through it alone.
pub struct Bell {
    cord: Arc<Cord>,
    /// Rings the bell.
    waker: Waker,
    /// Who is told, as the cord has it: so that a task that polls again, and most do, needs no look there.
    told: Waker,
}

/// Whether it was rung, and whom to tell.
struct Cord {
    has_rung: AtomicBool,
    /// It stays when it is woken: who is told once is told the next time as well.
    outer: Mutex<Waker>,
}

impl Default for Bell {
    /// A bell that has rung: the first look is always taken.
    fn default() -> Self {
        let told = Waker::noop().clone();
        let cord = Arc::new(Cord { has_rung: AtomicBool::new(true), outer: Mutex::new(told.clone()) });
        Self { waker: Waker::from(cord.clone()), cord, told }
    }
}

impl Bell {
    /// What `poll` says; or pending, if it said so last and was not woken since. Whoever asks last is woken.
    pub fn poll<T>(
        &mut self,
        context: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        // Before the look, so that a ring in between is not lost: it tells whom it finds.
        if !self.told.will_wake(context.waker()) {
            self.told = context.waker().clone();
            // Dropped when it is no longer held: what goes with it may ring.
            let _before = std::mem::replace(&mut *self.cord.outer(), context.waker().clone());
        }
        // Most polls end with a look, which no other processor has to hear of.
        if !self.cord.has_rung.load(Ordering::Acquire) || !self.cord.has_rung.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        let polled = poll(&mut Context::from_waker(&self.waker));
        if polled.is_ready() {
            // There may be more, and nobody wakes for what is there.
            self.cord.has_rung.store(true, Ordering::Release);
        }
        polled
    }
}

/// Bells that one hand rings: of many things that wait for the same, each is told by the bell that it has anyway. Who
/// waits registers once, and not with each wait.
#[derive(Default)]
pub(crate) struct Ropes {
    ropes: Vec<Weak<Cord>>,
    /// When it has so many, those whose bell is gone are left out.
    sweep_at: usize,
}

/// Fewer ropes are not worth a look at each.
const ROPES_LEAST: usize = 16;

impl Ropes {
    /// `bell` is rung with the others from now on, until it is dropped.
    pub(crate) fn add(&mut self, bell: &Bell) {
        if self.ropes.len() >= self.sweep_at {
            self.ropes.retain(|rope| rope.strong_count() > 0);
            // Twice as many as are left: each look at all is paid for by as many that were added.
            self.sweep_at = (2 * self.ropes.len()).max(ROPES_LEAST);
        }
        self.ropes.push(Arc::downgrade(&bell.cord));
    }

    /// Rings all.
    pub(crate) fn ring(&self) {
        self.ropes.iter().filter_map(Weak::upgrade).for_each(Cord::wake);
    }
}

impl Cord {
    /// Held for as long as it takes to wake a task, or to name another.
    fn outer(&self) -> MutexGuard<'_, Waker> {
        self.outer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Cord {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.has_rung.store(true, Ordering::Release);
        self.outer().wake_by_ref();
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use futures_util::FutureExt as _;
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_look_is_taken_after_a_ring_and_after_something_was_there() {
        let (sender, mut receiver) = mpsc::channel(4);
        let (mut bell, mut looks) = (Bell::default(), 0);
        let mut look = || {
            let polled = poll_fn(|context| {
                Poll::Ready(bell.poll(context, |context| {
                    looks += 1;
                    receiver.poll_recv(context)
                }))
            });
            let polled = polled.now_or_never().expect("it is ready");
            (polled, looks)
        };
        assert_eq!(look(), (Poll::Pending, 1));
        assert_eq!(look(), (Poll::Pending, 1));
        sender.try_send("a").expect("room");
        sender.try_send("b").expect("room");
        assert_eq!(look(), (Poll::Ready(Some("a")), 2));
        assert_eq!(look(), (Poll::Ready(Some("b")), 3));
        assert_eq!(look(), (Poll::Pending, 4));
        assert_eq!(look(), (Poll::Pending, 4));
    }

    #[tokio::test]
    async fn who_waits_is_rung_with_all_others_and_who_is_gone_is_forgotten() {
        let mut ropes = Ropes::default();
        let mut bell = Bell::default();
        ropes.add(&bell);
        let mut looks = 0;
        let mut look = |bell: &mut Bell| {
            let polled = poll_fn(|context| {
                Poll::Ready(bell.poll(context, |_| {
                    looks += 1;
                    Poll::<()>::Pending
                }))
            });
            assert_eq!(polled.now_or_never(), Some(Poll::Pending));
            looks
        };
        assert_eq!((look(&mut bell), look(&mut bell)), (1, 1));
        ropes.ring();
        assert_eq!((look(&mut bell), look(&mut bell)), (2, 2));
        (0..10 * ROPES_LEAST).for_each(|_| ropes.add(&Bell::default()));
        assert!(ropes.ropes.len() <= ROPES_LEAST, "{}", ropes.ropes.len());
        let all = [(); 4 * ROPES_LEAST].map(|()| Bell::default());
        all.iter().for_each(|bell| ropes.add(bell));
        let rung = ropes.ropes.iter().filter(|rope| rope.strong_count() > 0).count();
        assert_eq!(rung, 1 + all.len(), "nobody who waits is left out");
        ropes.ring();
        assert_eq!(look(&mut bell), 3);
    }

    /// It is rung from one thread, and polled on others, by one task after the other.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_ring_of_another_thread_is_lost() {
        const RINGS: usize = 5_000;
        /// What is waited for: a number that grows, and whom it wakes.
        #[derive(Default)]
        struct Shared {
            now: AtomicUsize,
            seen: AtomicUsize,
            waker: Mutex<Option<Waker>>,
        }
        let shared = Arc::new(Shared::default());
        let ringing = shared.clone();
        let ringing = std::thread::spawn(move || {
            for ring in 1..=RINGS {
                ringing.now.store(ring, Ordering::SeqCst);
                let waker = ringing.waker.lock().expect("no panic").take();
                waker.into_iter().for_each(Waker::wake);
                // Every other one comes while the last is still being looked at.
                while ring % 2 == 0 && ringing.seen.load(Ordering::SeqCst) < ring {
                    std::thread::yield_now();
                }
            }
        });
        let mut bell = Bell::default();
        let mut seen = 0;
        while seen < RINGS {
            let shared = shared.clone();
            let waiting = tokio::spawn(async move {
                let next = poll_fn(|context| {
                    bell.poll(context, |context| {
                        *shared.waker.lock().expect("no panic") = Some(context.waker().clone());
                        let now = shared.now.load(Ordering::SeqCst);
                        if now > seen { Poll::Ready(now) } else { Poll::Pending }
                    })
                });
                let now = next.await;
                shared.seen.store(now, Ordering::SeqCst);
                (bell, now)
            });
            let waited = tokio::time::timeout(Duration::from_secs(20), waiting).await;
            (bell, seen) = waited.expect("a ring was lost").expect("no panic");
        }
        ringing.join().expect("no panic");
    }

    #[tokio::test]
    async fn the_task_that_asked_last_is_woken() {
        let (sender, mut receiver) = mpsc::channel(1);
        let mut bell = Bell::default();
        // Here first, and then in another task.
        let first = poll_fn(|context| Poll::Ready(bell.poll(context, |context| receiver.poll_recv(context))));
        assert!(first.await.is_pending());
        let waits =
            tokio::spawn(poll_fn(move |context| bell.poll(context, |context| receiver.poll_recv(context))));
        tokio::task::yield_now().await;
        sender.send(1).await.expect("it listens");
        assert_eq!(waits.await.expect("it ends"), Some(1));
    }
}
