//! One HTTP/2 connection, shared by all requests to a place.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::Request;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tracing::debug;

use super::{Answered, Connect, ConnectFailure, HttpVersion, NextHop, SendError, SendFailure};
use crate::proxy::body::RequestBody;

/// Received but unread bytes of one stream, and of all together. On a path of 100 ms a stream
/// gets 10 MB/s at this.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// Asks whether the other end of an idle TCP connection is still there. (A mesh stream's
/// connection asks by itself.)
const KEEP_ALIVE: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(super) struct Http2Shared {
    current: Mutex<Option<Shared>>,
    /// Held while connecting, so that a burst of first requests opens one connection.
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
pub(super) struct Shared {
    sender: SendRequest<RequestBody>,
    next_hop: NextHop,
}

impl Http2Shared {
    pub(super) async fn send<C: Connect>(
        &self,
        connect: &C,
        request: Request<RequestBody>,
        give_up: impl Fn() -> bool + Send + Sync,
    ) -> Result<Answered, SendError> {
        let mut shared = match self.sender(connect).await {
            Ok(shared) => shared,
            Err(failure) => return Err(SendError { failure: failure.into(), unsent: Some(request) }),
        };
        tokio::select! {
            biased;
            sent = shared.sender.try_send_request(request) => match sent {
                Ok(response) => Ok(Answered { response, sender: None }),
                Err(mut error) => {
                    let unsent = error.take_message();
                    Err(SendError { failure: error.into_error().into(), unsent })
                }
            },
            () = shared.next_hop.given_up(&give_up) => {
                Err(SendError { failure: SendFailure::Silent, unsent: None })
            }
        }
    }

    /// The connection, opened if there is none that stands.
    pub(super) async fn sender<C: Connect>(&self, connect: &C) -> Result<Shared, ConnectFailure> {
        if let Some(shared) = self.current() {
            return Ok(shared);
        }
        let _only_one = self.connecting.lock().await;
        if let Some(shared) = self.current() {
            return Ok(shared);
        }
        let shared = open(connect).await?;
        *self.lock() = Some(shared.clone());
        Ok(shared)
    }

    fn current(&self) -> Option<Shared> {
        let current = self.lock().clone()?;
        (!current.sender.is_closed() && current.next_hop.is_usable()).then_some(current)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Shared>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn open<C: Connect>(connect: &C) -> Result<Shared, ConnectFailure> {
    let (io, next_hop) = connect.connect(HttpVersion::Http2).await?;
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    if matches!(next_hop, NextHop::Workload) {
        builder.keep_alive_interval(KEEP_ALIVE);
    }
    let (sender, connection) = builder
        .handshake(TokioIo::new(io))
        .await
        .map_err(|error| ConnectFailure::Unreachable(error.to_string()))?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            debug!(%error, "HTTP/2 connection ended");
        }
    });
    Ok(Shared { sender, next_hop })
}
