//! HTTP/1.1 connections kept alive, each lent to one request at a time.
//!
//! Last in, first out: a connection used a moment ago is the least likely to be closed by its
//! other end meanwhile.

use std::sync::{Arc, Mutex, PoisonError};

use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::task::AbortHandle;
use tracing::debug;

use super::greeting::{Beginning, Greeted, Greeting};
use super::hop::HopBody;
use super::{Answered, Connect, ConnectFailure, HttpVersion, NextHop, SendError, SendFailure};
use crate::proxy::body::RequestBody;
use crate::proxy::forward::Underway;

pub(super) struct Http1Pool {
    idle: Mutex<Vec<Kept>>,
    idle_max: usize,
}

struct Kept {
    sender: SendRequest<RequestBody>,
    next_hop: NextHop,
    /// Ends the connection.
    connection: AbortHandle,
    /// Whether a request has it whose answer has not come to its end.
    is_lent: bool,
    /// Idle since before the last sweep.
    swept: bool,
    /// Whether it has carried an answer to its end: one that was only opened early has not.
    has_answered: bool,
    /// How a workload began, until it has answered.
    greeting: Option<Greeting>,
}

/// Whether a kept connection will do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reuse {
    Allowed,
    Refused,
}

/// A connection on loan until its answer's body has ended.
pub(crate) struct LentSender {
    kept: Kept,
    pool: Arc<Http1Pool>,
}

impl Http1Pool {
    pub(super) fn new(idle_max: usize) -> Arc<Self> {
        Arc::new(Self { idle: Mutex::default(), idle_max })
    }

    pub(super) async fn send<C: Connect>(
        self: &Arc<Self>,
        connect: &C,
        mut request: Underway,
        give_up: impl Fn() -> bool + Send + Sync,
        reuse: Reuse,
    ) -> Result<Answered, SendError> {
        // Each turn uses up one idle connection or ends, so there are at most `idle_max` + 1.
        loop {
            let idle = (reuse == Reuse::Allowed).then(|| self.take()).flatten();
            let (mut kept, was_idle) = match idle {
                Some(kept) => (kept, true),
                // On the heap, for it is seldom and large, and every request's future would have room for it.
                None => match Box::pin(open(connect)).await {
                    Ok(kept) => (kept, false),
                    Err(failure) => return Err(SendError { failure: failure.into(), unsent: Some(request) }),
                },
            };
            let was_used = kept.has_answered;
            kept.is_lent = true;
            let sent = tokio::select! {
                biased;
                sent = kept.sender.try_send_request(*request) => sent,
                () = kept.next_hop.given_up(&give_up) => {
                    return Err(SendError { failure: SendFailure::Silent, unsent: None });
                }
            };
            match sent {
                Ok(response) => {
                    let sender = Some(LentSender { kept, pool: self.clone() });
                    let response = response.map(HopBody::from);
                    return Ok(Answered { response, sender, stream: None });
                }
                Err(mut error) => match error.take_message().map(Box::new) {
                    unsent if kept.speaks_http2() => {
                        let failure = ConnectFailure::other_version(HttpVersion::Http1).into();
                        return Err(SendError { failure, unsent });
                    }
                    // It had been closed while idle; that says nothing about the next hop.
                    Some(unsent) if was_idle => request = unsent,
                    unsent if was_used => {
                        let failure = kept.next_hop.explain(SendFailure::Stale(error.into_error().into()));
                        return Err(SendError { failure, unsent });
                    }
                    unsent => {
                        let failure = kept.next_hop.explain(SendFailure::Broken(error.into_error().into()));
                        return Err(SendError { failure, unsent });
                    }
                },
            }
        }
    }

    pub(super) async fn warm<C: Connect>(&self, connect: &C) -> Result<(), ConnectFailure> {
        let mut kept = match self.take() {
            Some(kept) => kept,
            None => Box::pin(open(connect)).await?,
        };
        // Until its task has run, it takes no request, and the next would open another.
        let _ = kept.sender.ready().await;
        self.put(kept);
        Ok(())
    }

    /// The idle connection used last that can take a request now. One whose earlier request is
    /// still being uploaded, although its answer has ended, is passed over.
    fn take(&self) -> Option<Kept> {
        let mut idle = self.lock();
        let can_send = |kept: &Kept| kept.sender.is_ready() && kept.next_hop.is_usable();
        match idle.iter().rposition(can_send) {
            Some(index) => Some(idle.remove(index)),
            None => {
                idle.retain(|kept| !kept.sender.is_closed());
                None
            }
        }
    }

    /// Closes connections that were idle since the last sweep, and marks the others.
    pub(super) fn sweep(&self) {
        self.lock().retain_mut(|kept| !std::mem::replace(&mut kept.swept, true));
    }

    fn put(&self, mut kept: Kept) {
        kept.swept = false;
        let mut idle = self.lock();
        if idle.len() < self.idle_max && !kept.sender.is_closed() {
            idle.push(kept);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Kept>> {
        // Nothing panics while it is held; a poisoned list is still a list of connections.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Whether it began like a server of HTTP/2, before it heard anything.
    fn speaks_http2(&mut self) -> bool {
        self.greeting.as_mut().is_some_and(|greeting| greeting.so_far() == Beginning::Settings)
    }
}

impl Drop for Kept {
    /// Nobody waits for the answer any more. hyper looks at neither body while the other end takes no more of
    /// the request, and would keep both windows full for nobody.
    fn drop(&mut self) {
        if self.is_lent {
            self.connection.abort();
        }
    }
}

impl LentSender {
    /// The answer came to its proper end: the next request may use the connection.
    pub(crate) fn give_back(mut self) {
        self.kept.has_answered = true;
        self.kept.is_lent = false;
        self.kept.greeting = None;
        self.pool.put(self.kept);
    }
}

async fn open<C: Connect>(connect: &C) -> Result<Kept, ConnectFailure> {
    let (io, next_hop) = connect.connect(HttpVersion::Http1).await?;
    let (io, greeting) = Greeted::of(io, &next_hop);
    let mut builder = Builder::new();
    builder.max_buf_size(next_hop.head_bytes_max());
    if let Some(headers_max) = next_hop.headers_max() {
        builder.max_headers(headers_max);
    }
    let handshake = builder.handshake(TokioIo::new(io)).await;
    let (sender, connection) = handshake.map_err(|error| ConnectFailure::Unreachable(error.to_string()))?;
    let connection = tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            debug!(%error, "HTTP/1.1 connection ended");
        }
    });
    let connection = connection.abort_handle();
    Ok(Kept { sender, next_hop, connection, is_lent: false, swept: false, has_answered: false, greeting })
}
