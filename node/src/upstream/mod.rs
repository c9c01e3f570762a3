//! HTTP to the next hop: to a peer's sidecar over the mesh, or to the local workload.
//!
//! Both hops need the same things: HTTP/1.1 connections kept alive and lent to one request at a
//! time, one HTTP/2 connection shared by many, and an honest word on whether a failed request was
//! sent. How bytes reach the next hop is [`Connect`]'s; which hop it is, the caller's.

pub(crate) mod greeting;
pub(crate) mod hop;
mod http1;
pub(crate) mod http2;
mod lent;
pub(crate) mod messages;
mod pump;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use h2::Reason;
use http::Response;
use starling_transport::connection::Connection;
use starling_transport::header::RefusalReason;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::proxy::failure::Flag;
use crate::proxy::forward::Underway;
use crate::proxy::gate::Pass;
use crate::proxy::headers::{FLAGS, UNSENT};
use crate::proxy::heads::{HEAD_BYTES_MAX, HEADERS_MAX, PASSED_HEAD_BYTES_MAX};
use crate::proxy::own_headers;

use hop::{HopBody, HopError};
use http1::Reuse;

pub(crate) use http1::LentSender;

/// How often a request that waits for a silent peer asks whether it should go elsewhere.
const GIVE_UP_STEP: Duration = Duration::from_millis(50);

/// A request that cannot go elsewhere waits so long for a peer that has fallen silent. Longer than
/// a route that flaps and a handover between radio cells; a caller that waits for a dead peer
/// learns it within this.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// How an HTTP message is framed on a hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HttpVersion {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 without TLS of its own, with prior knowledge (RFC 9113, section 3.3).
    Http2,
}

impl HttpVersion {
    /// What a received message came by.
    pub(crate) fn of(version: http::Version) -> Self {
        if version == http::Version::HTTP_2 { Self::Http2 } else { Self::Http1 }
    }

    /// As messages say it.
    pub(crate) fn spoken(self) -> http::Version {
        match self {
            Self::Http1 => http::Version::HTTP_11,
            Self::Http2 => http::Version::HTTP_2,
        }
    }

    /// The one that it is not.
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Http1 => Self::Http2,
            Self::Http2 => Self::Http1,
        }
    }
}

impl fmt::Display for HttpVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Http1 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        })
    }
}

/// Opens byte streams to the next hop.
pub(crate) trait Connect: Send + Sync + 'static {
    /// A byte stream.
    type Io: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// Opens one on which `version` will be spoken.
    fn connect(
        &self,
        version: HttpVersion,
    ) -> impl Future<Output = Result<(Self::Io, NextHop), ConnectFailure>> + Send;
}

/// The other end of a hop, as far as its liveness goes.
#[derive(Clone)]
pub(crate) enum NextHop {
    /// A peer across the network, which may fall silent.
    Peer(Connection),
    /// The workload on this machine: the kernel says when it is gone. Its descriptors are counted
    /// as long as this lives.
    Workload { _counted: Arc<[Pass; 2]> },
}

/// Why no byte stream could be opened. Nothing was sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConnectFailure {
    /// Nobody answers there.
    #[error("{0}")]
    Unreachable(String),
    /// A workload took the connection and ended it before it had said anything: it stops just then, or
    /// does not speak what it was asked in.
    #[error("the workload ended the connection before it said anything")]
    HungUp,
    /// A peer answers and refuses.
    #[error("{1}")]
    Refused(RefusalReason, String),
}

impl ConnectFailure {
    /// A workload answers, and not in `version`.
    pub(crate) fn other_version(version: HttpVersion) -> Self {
        Self::Refused(RefusalReason::UnsupportedKind, format!("the workload does not speak {version}"))
    }

    /// Whether it is that.
    pub(crate) fn is_other_version(&self) -> bool {
        matches!(self, Self::Refused(RefusalReason::UnsupportedKind, _))
    }
}

/// A request that got no answer.
pub(crate) struct SendError {
    /// Why.
    pub(crate) failure: SendFailure,
    /// The request, if nothing of it was sent.
    pub(crate) unsent: Option<Underway>,
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendFailure {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectFailure),
    /// The connection ended before the answer.
    #[error("the connection ended before the answer: {0}")]
    Broken(HopError),
    /// A kept connection, which had carried other requests, ended before the answer: its other end
    /// may have closed it without a look at this one.
    #[error("the kept connection ended before the answer: {0}")]
    Stale(HopError),
    /// The next hop says that it did not process it (RFC 9113, section 8.7): it may be sent again,
    /// whatever it asks.
    #[error("refused unprocessed: {0}")]
    Unprocessed(HopError),
    /// The peer has fallen silent with the request outstanding.
    #[error("the peer has fallen silent")]
    Silent,
}

impl SendFailure {
    /// What an HTTP/2 connection's `error` means for a request that it failed.
    fn of_http2(error: hyper::Error) -> Self {
        let Some(cause) = hop::http2_cause(&error) else { return Self::Broken(error.into()) };
        let reason = cause.reason();
        // h2 gives the GOAWAY to the streams above its last stream identifier only. One with an error
        // may be our request's fault; the next connection need not die of it.
        let gone_away = cause.is_go_away() && reason == Some(Reason::NO_ERROR);
        let refused = cause.is_reset() && reason == Some(Reason::REFUSED_STREAM);
        if cause.is_remote() && (gone_away || refused) {
            return Self::Unprocessed(error.into());
        }
        Self::Broken(error.into())
    }

    /// The code with which the next hop reset the request's stream instead of answering, if it meant
    /// to say something to whoever asks.
    pub(crate) fn reset_code(&self) -> Option<Reason> {
        match self {
            Self::Broken(error) => error.reset_code(),
            _ => None,
        }
    }
}

/// An answer's head and body, and the connection that carries it.
pub(crate) struct Answered {
    pub(crate) response: Response<HopBody>,
    /// To be given back when the body has ended; `None` where connections are shared.
    pub(crate) sender: Option<LentSender>,
    /// Counts among its connection's streams, where they are.
    pub(crate) stream: Option<http2::Stream>,
}

/// What a callee's sidecar says in the head of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// Nothing: all of it is the workload's.
    Nothing,
    /// Something beside the workload's answer.
    Something,
    /// That its workload took nothing, and why.
    Refusal(Refusal),
}

/// Why a workload took nothing of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The caller may not call it.
    Denied,
    /// Its node takes nothing more on.
    Overloaded,
    /// Anything else, as that it does not accept connections.
    Other,
}

/// What connections to one place may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UpstreamLimits {
    /// Idle HTTP/1.1 connections kept for the next request.
    pub(crate) idle_max: usize,
    /// Unread bytes of an HTTP/2 connection.
    pub(crate) windows: http2::Windows,
}

/// HTTP connections to one place.
pub(crate) struct HttpUpstream<C> {
    connect: C,
    http1: std::sync::Arc<http1::Http1Pool>,
    http2: http2::Http2Pool,
}

impl Answered {
    /// What the callee's sidecar says; each call looks for it anew.
    pub(crate) fn word(&self) -> Word {
        let headers = self.response.headers();
        if !own_headers::has_any(headers) {
            return Word::Nothing;
        }
        if !headers.contains_key(&UNSENT) {
            return Word::Something;
        }
        let is = |flag: Flag| headers.get(&FLAGS).is_some_and(|flags| flags == flag.as_str());
        Word::Refusal(match () {
            () if is(Flag::Denied) => Refusal::Denied,
            () if is(Flag::Overflow) => Refusal::Overloaded,
            () => Refusal::Other,
        })
    }
}

impl<C: Connect> HttpUpstream<C> {
    /// No connection stands yet.
    pub(crate) fn new(connect: C, limits: UpstreamLimits) -> Self {
        let UpstreamLimits { idle_max, windows } = limits;
        Self { connect, http1: http1::Http1Pool::new(idle_max), http2: http2::Http2Pool::new(windows) }
    }

    /// Opens byte streams to the same place, for other protocols.
    pub(crate) fn connector(&self) -> &C {
        &self.connect
    }

    /// Sends `request`, on a kept connection if there is one. When the next hop has fallen silent
    /// and `give_up` says so, the answer is waited for no longer.
    pub(crate) async fn send(
        &self,
        request: Underway,
        version: HttpVersion,
        give_up: impl Fn() -> bool + Send + Sync,
    ) -> Result<Answered, SendError> {
        match version {
            HttpVersion::Http1 => self.http1.send(&self.connect, request, give_up, Reuse::Allowed).await,
            // On the heap, and made there: the future of a request in HTTP/1.1 needs no room for it.
            HttpVersion::Http2 => {
                let room = Box::new_uninit();
                Box::into_pin(Box::write(room, self.http2.send(&self.connect, request, give_up))).await
            }
        }
    }

    /// Sends `request` a second time: not on another kept connection, which may be as stale as the
    /// one that failed it.
    pub(crate) async fn send_again(
        &self,
        request: Underway,
        version: HttpVersion,
    ) -> Result<Answered, SendError> {
        match version {
            HttpVersion::Http1 => self.http1.send(&self.connect, request, || false, Reuse::Refused).await,
            HttpVersion::Http2 => self.http2.send(&self.connect, request, || false).await,
        }
    }

    /// Whether the other end takes WebSockets in HTTP/2 (RFC 8441, section 3).
    pub(crate) async fn takes_websockets(&self) -> Result<bool, ConnectFailure> {
        let (shared, _stream) = self.http2.stream(&self.connect).await?;
        Ok(shared.takes_websockets())
    }

    /// Closes connections that nobody has used since the last sweep.
    pub(crate) fn sweep(&self) {
        self.http1.sweep();
        self.http2.sweep();
    }

    /// Makes sure that a connection for `version` stands, so that a refusal is known before
    /// anything is sent.
    pub(crate) async fn warm(&self, version: HttpVersion) -> Result<(), ConnectFailure> {
        match version {
            HttpVersion::Http1 => self.http1.warm(&self.connect).await,
            HttpVersion::Http2 => self.http2.stream(&self.connect).await.map(drop),
        }
    }
}

impl NextHop {
    /// The largest head of an answer that is taken from it.
    fn head_bytes_max(&self) -> usize {
        match self {
            Self::Peer(_) => PASSED_HEAD_BYTES_MAX,
            Self::Workload { .. } => HEAD_BYTES_MAX,
        }
    }

    /// How many headers an answer in HTTP/1.1 may have, if fewer than hyper reads.
    fn headers_max(&self) -> Option<usize> {
        match self {
            Self::Peer(_) => None,
            Self::Workload { .. } => Some(HEADERS_MAX),
        }
    }

    /// Whether it may get new work.
    pub(crate) fn is_usable(&self) -> bool {
        match self {
            Self::Peer(connection) => connection.is_usable(),
            Self::Workload { .. } => true,
        }
    }

    /// Whether it answers, as far as can be told.
    fn is_responsive(&self) -> bool {
        match self {
            Self::Peer(connection) => connection.is_responsive(),
            Self::Workload { .. } => true,
        }
    }

    /// What has become of a request that failed there with `failure`.
    fn explain(&self, failure: SendFailure) -> SendFailure {
        match self {
            // Its connection was ended here, and the request is not to blame.
            Self::Peer(connection) if connection.is_given_up() => SendFailure::Silent,
            _ => failure,
        }
    }

    /// Resolves when work that is outstanding there will not be answered soon, and `give_up` agrees
    /// not to wait for it, or has waited for [`SILENCE_MAX`].
    async fn given_up(&self, give_up: &impl Fn() -> bool) {
        let Self::Peer(connection) = self else { return std::future::pending().await };
        let mut silent = Duration::ZERO;
        loop {
            if connection.is_responsive() {
                connection.unresponsive().await;
                silent = Duration::ZERO;
            }
            if give_up() || silent >= SILENCE_MAX {
                return;
            }
            tokio::time::sleep(GIVE_UP_STEP).await;
            silent += GIVE_UP_STEP;
        }
    }
}
