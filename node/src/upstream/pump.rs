//! The tasks in which hyper sends bodies over HTTP/2, and their end when nobody waits for an answer any more.
//!
//! A body has a task of its own, which waits for room at the other end and does not hear that an answer which
//! had begun is read no further. As long as it waits, its stream is not reset, and what the other end has not
//! read of the stream fills the window that all streams share. So a body learns which task sends it.

use std::sync::{Arc, OnceLock};

use futures_util::future::{AbortHandle, Abortable};
use hyper::rt::Executor;

tokio::task_local! {
    /// Ends the task that runs.
    static RUNNING: AbortHandle;
}

/// Runs a connection's tasks so that bodies in them can learn which they are in.
#[derive(Clone, Copy)]
pub(super) struct Pumps;

/// The task that sends one body, once it is known.
#[derive(Clone, Default)]
pub(super) struct Pump(Arc<OnceLock<AbortHandle>>);

impl<F> Executor<F> for Pumps
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        let (end, ended) = AbortHandle::new_pair();
        tokio::spawn(RUNNING.scope(end, Abortable::new(future, ended)));
    }
}

impl Pump {
    /// Takes the task that runs for the one that sends the body; `false` if it is none of [`Pumps`].
    pub(super) fn is_here(&self) -> bool {
        self.0.get().is_some() || RUNNING.try_with(|task| self.0.get_or_init(|| task.clone())).is_ok()
    }

    /// Ends it, and resets its stream, unless the stream has ended or somebody reads its answer.
    pub(super) fn abort(&self) {
        if let Some(task) = self.0.get() {
            task.abort();
        }
    }
}
