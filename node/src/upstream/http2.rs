//! HTTP/2 connections, each shared by many requests.
//!
//! A peer's sidecar takes as many streams on one connection as it takes requests, so there is one.
//! A workload may take as few as a hundred (RFC 9113, section 6.5.2, advises no fewer), so there
//! may be several.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use tracing::debug;

use super::greeting::{Beginning, Greeted};
use super::hop::HopBody;
use super::lent::{self, LentBody};
use super::pump::{Pump, Pumps};
use super::{Answered, Connect, ConnectFailure, HttpVersion, NextHop, SendError, SendFailure};
use crate::proxy::forward::Underway;
use crate::proxy::heads::HEAD_BYTES_MAX;
use crate::proxy::kept::Before;

/// Received but unread bytes of one stream. On a path of 100 ms a stream gets 5 MB/s at this.
const STREAM_WINDOW_BYTES: u32 = 512 * 1024;
const STREAM_WINDOW_BYTES_MIN: u32 = 64 * 1024;

/// Of all streams together: five hundred that nobody reads stall a connection's others. As much as
/// QUIC carries on one connection without anybody reading.
const CONNECTION_WINDOW_BYTES: u32 = 256 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES_MIN: u32 = 1024 * 1024;

/// Streams on one connection to a workload before another is opened, and connections at most.
const STREAMS_PER_WORKLOAD_CONNECTION: u32 = 100;
const CONNECTIONS_MAX: usize = 16;

/// Asks whether the other end of a quiet TCP connection with streams on it is still there. (A mesh stream's
/// connection asks by itself.)
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Streams that any client of HTTP/2 may count on (RFC 9113, section 6.5.2).
const STREAMS_MIN: u32 = 100;

/// How many bytes others may send on an HTTP/2 connection before somebody reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Windows {
    /// On one stream.
    pub(crate) stream_bytes: u32,
    /// On all streams of one connection.
    pub(crate) connection_bytes: u32,
}

pub(super) struct Http2Pool {
    windows: Windows,
    connections: Mutex<Vec<Shared>>,
    /// Held while connecting, so that a burst of first requests opens one connection.
    connecting: tokio::sync::Mutex<()>,
    /// Counts attempts to connect that are over, so that all who waited for one share its outcome.
    attempts: AtomicU64,
    last_failure: Mutex<Option<ConnectFailure>>,
}

#[derive(Clone)]
pub(super) struct Shared {
    sender: SendRequest<LentBody>,
    next_hop: NextHop,
    streams: Arc<AtomicU32>,
    used: Arc<AtomicBool>,
    takes_websockets: bool,
}

/// Counts a stream of a connection as long as it lives. Dropped before the answer has ended, it resets the
/// stream, however far the request has come.
pub(crate) struct Stream {
    count: Arc<AtomicU32>,
    pump: Option<Pump>,
}

impl Windows {
    /// For a node that may use `memory_bytes`: one connection that nobody reads takes an eighth of
    /// it at most, and no fewer than eight streams fill that.
    pub(crate) fn within(memory_bytes: Option<u64>) -> Self {
        let eighth = u32::try_from(memory_bytes.unwrap_or(u64::MAX) / 8).unwrap_or(u32::MAX);
        Self {
            stream_bytes: (eighth / 64).clamp(STREAM_WINDOW_BYTES_MIN, STREAM_WINDOW_BYTES),
            connection_bytes: eighth.clamp(CONNECTION_WINDOW_BYTES_MIN, CONNECTION_WINDOW_BYTES),
        }
    }

    /// Streams of one connection whose heads, at their largest, take no more than what nobody reads of their bodies
    /// may.
    pub(crate) fn streams(&self) -> u32 {
        (self.connection_bytes / HEAD_BYTES_MAX as u32).max(STREAMS_MIN)
    }
}

impl Http2Pool {
    pub(super) fn new(windows: Windows) -> Self {
        Self {
            windows,
            connections: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
            attempts: AtomicU64::new(0),
            last_failure: Mutex::default(),
        }
    }

    pub(super) async fn send<C: Connect>(
        &self,
        connect: &C,
        mut request: Underway,
        give_up: impl Fn() -> bool + Send + Sync,
    ) -> Result<Answered, SendError> {
        // A connection that its other end is leaving takes nothing, and says nothing of the next hop.
        for _ in 0..CONNECTIONS_MAX {
            let (mut shared, mut stream) = match self.stream(connect).await {
                Ok(opened) => opened,
                Err(failure) => return Err(SendError { failure: failure.into(), unsent: Some(request) }),
            };
            let (lent, before) = lent::lend(*request);
            stream.pump = lent.body().pump();
            let error = match shared.send(lent, before, &give_up).await {
                Ok(response) => {
                    let response = response.map(HopBody::from);
                    return Ok(Answered { response, sender: None, stream: Some(stream) });
                }
                Err(error) => error,
            };
            match error {
                SendError { unsent: Some(unsent), .. } if shared.is_left() => request = unsent,
                error => return Err(error),
            }
        }
        let failure = ConnectFailure::Unreachable("it leaves every connection that is opened".into());
        Err(SendError { failure: failure.into(), unsent: Some(request) })
    }

    /// A place on a connection with room, opened if there is none.
    pub(super) async fn stream<C: Connect>(&self, connect: &C) -> Result<(Shared, Stream), ConnectFailure> {
        match self.with_room() {
            Some(place) => Ok(place),
            // On the heap, for it is seldom and large, and every request's future would have room for it.
            None => Box::pin(self.new_stream(connect)).await,
        }
    }

    async fn new_stream<C: Connect>(&self, connect: &C) -> Result<(Shared, Stream), ConnectFailure> {
        let before = self.attempts.load(Ordering::Acquire);
        let _only_one = self.connecting.lock().await;
        if let Some(place) = self.with_room() {
            return Ok(place);
        }
        if self.attempts.load(Ordering::Acquire) != before
            && let Some(failure) = self.last_failure().clone()
        {
            return Err(failure);
        }
        let opened = open(connect, self.windows).await;
        *self.last_failure() = opened.as_ref().err().cloned();
        self.attempts.fetch_add(1, Ordering::Release);
        let shared = opened?;
        let stream = shared.begin();
        self.connections().push(shared.clone());
        Ok((shared, stream))
    }

    /// Closes connections that nobody used since the last sweep.
    pub(super) fn sweep(&self) {
        self.connections().retain(|shared| {
            let in_use = shared.streams.load(Ordering::Relaxed) > 0;
            shared.used.swap(false, Ordering::Relaxed) || in_use
        });
    }

    /// A place on the least busy connection that stands, if it has room or there may be no other.
    /// Taken under the lock, so that a burst does not fill the same place twice.
    fn with_room(&self) -> Option<(Shared, Stream)> {
        let mut connections = self.connections();
        connections.retain(|shared| !shared.sender.is_closed() && shared.next_hop.is_usable());
        let least = connections.iter().min_by_key(|shared| shared.streams.load(Ordering::Relaxed))?;
        let has_room = match least.next_hop {
            NextHop::Peer(_) => true,
            NextHop::Workload { .. } => {
                least.streams.load(Ordering::Relaxed) < STREAMS_PER_WORKLOAD_CONNECTION
            }
        };
        (has_room || connections.len() >= CONNECTIONS_MAX).then(|| (least.clone(), least.begin()))
    }

    fn connections(&self) -> MutexGuard<'_, Vec<Shared>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last_failure(&self) -> MutexGuard<'_, Option<ConnectFailure>> {
        self.last_failure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    async fn send(
        &mut self,
        request: Request<LentBody>,
        before: Option<Before>,
        give_up: &(impl Fn() -> bool + Send + Sync),
    ) -> Result<Response<Incoming>, SendError> {
        tokio::select! {
            biased;
            sent = self.sender.try_send_request(request) => sent.map_err(|mut error| {
                let returned = error.take_message().map(|lent| Box::new(lent::returned(lent)));
                let failure = SendFailure::of_http2(error.into_error());
                let unsent = returned.or_else(|| match &failure {
                    SendFailure::Unprocessed(_) => before.and_then(Before::request),
                    _ => None,
                });
                SendError { failure: self.next_hop.explain(failure), unsent }
            }),
            () = self.next_hop.given_up(give_up) => {
                Err(SendError { failure: SendFailure::Silent, unsent: None })
            }
        }
    }

    /// Whether its other end has said that it takes WebSockets.
    pub(super) fn takes_websockets(&self) -> bool {
        self.takes_websockets
    }

    /// Whether its other end takes no more requests on it.
    fn is_left(&self) -> bool {
        self.sender.is_closed()
    }

    fn begin(&self) -> Stream {
        self.used.store(true, Ordering::Relaxed);
        self.streams.fetch_add(1, Ordering::Relaxed);
        Stream { count: self.streams.clone(), pump: None }
    }
}

impl Stream {
    /// The answer has come to its end. What is left of the request may be wanted all the same.
    pub(crate) fn handle_end(&mut self) {
        self.pump = None;
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        if let Some(pump) = &self.pump {
            pump.abort();
        }
    }
}

async fn open<C: Connect>(connect: &C, windows: Windows) -> Result<Shared, ConnectFailure> {
    let (io, next_hop) = connect.connect(HttpVersion::Http2).await?;
    let (io, greeting) = Greeted::of(io, &next_hop);
    let mut builder = Builder::new(Pumps);
    builder
        .timer(TokioTimer::new())
        .max_header_list_size(next_hop.head_bytes_max() as u32)
        .initial_stream_window_size(windows.stream_bytes)
        .initial_connection_window_size(windows.connection_bytes);
    if matches!(next_hop, NextHop::Workload { .. }) {
        builder.keep_alive_interval(KEEP_ALIVE);
    }
    let (sender, mut connection) = builder
        .handshake(TokioIo::new(io))
        .await
        .map_err(|error| ConnectFailure::Unreachable(error.to_string()))?;
    if let Some(mut greeting) = greeting {
        // What has been read has been acted on, too, when the connection waits again.
        let beginning = tokio::select! {
            biased;
            _ended = &mut connection => None,
            beginning = greeting.beginning() => Some(beginning),
        };
        let (beginning, ended) = (beginning.unwrap_or_else(|| greeting.so_far()), beginning.is_none());
        match (beginning, ended) {
            (Beginning::Settings, false) => {}
            (Beginning::Settings, true) => {
                let detail = "the workload speaks HTTP/2, and ended the connection at once";
                return Err(ConnectFailure::Unreachable(detail.to_owned()));
            }
            (Beginning::Other, _) => return Err(ConnectFailure::other_version(HttpVersion::Http2)),
            (Beginning::Nothing, _) => return Err(ConnectFailure::HungUp),
        }
    }
    let takes_websockets = connection.is_extended_connect_protocol_enabled();
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            debug!(%error, "HTTP/2 connection ended");
        }
    });
    let (streams, used) = (Arc::default(), Arc::new(AtomicBool::new(true)));
    Ok(Shared { sender, next_hop, streams, used, takes_websockets })
}
