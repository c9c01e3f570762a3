//! A future beside another one, polled only when it was itself woken.
//!
//! A connection is polled several times for each request, and what might end it (memory that is
//! critical, an hour of silence, a node that stops) wakes it once in its life, if at all. Polled along with it,
//! those futures cost each request more than its route does.

use std::pin::Pin;
use std::task::{Context, Poll};

use starling_transport::bell::Bell;

/// See the module's words. Not to be polled once it has ended.
pub(crate) struct Aside<F> {
    future: Pin<Box<F>>,
    bell: Bell,
}

impl<F: Future> Aside<F> {
    /// `future` is polled once, and then whenever it was woken.
    pub(crate) fn new(future: F) -> Self {
        Self { future: Box::pin(future), bell: Bell::default() }
    }
}

impl<F: Future> Future for Aside<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Self { future, bell } = self.get_mut();
        bell.poll(context, |context| future.as_mut().poll(context))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn it_is_polled_when_it_was_woken_and_not_otherwise() {
        let (polls, end) = (AtomicUsize::new(0), Notify::new());
        let ended = end.notified();
        let mut ended = std::pin::pin!(ended);
        let mut aside = Aside::new(poll_fn(|context| {
            polls.fetch_add(1, Ordering::Relaxed);
            ended.as_mut().poll(context)
        }));
        for _ in 0..10 {
            let polled = poll_fn(|context| Poll::Ready(Pin::new(&mut aside).poll(context))).await;
            assert!(polled.is_pending());
        }
        assert_eq!(polls.load(Ordering::Relaxed), 1);
        end.notify_one();
        aside.await;
        assert_eq!(polls.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn the_task_that_polls_it_last_is_woken() {
        let end = Arc::new(Notify::new());
        let notified = end.clone();
        let mut aside = Aside::new(async move { notified.notified().await });
        // Polled here first, and then by another task.
        assert!(poll_fn(|context| Poll::Ready(Pin::new(&mut aside).poll(context))).await.is_pending());
        let waits = tokio::spawn(aside);
        tokio::task::yield_now().await;
        end.notify_one();
        waits.await.expect("it ends");
    }
}
