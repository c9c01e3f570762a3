//! HTTP to a peer's sidecar: in messages of our own where it takes them, else, and for what messages cannot say, in HTTP.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::header::UPGRADE;
use http::{Method, Request};
use http_body::Body as _;

use super::connect::MeshConnect;
use crate::proxy::body::RequestBody;
use crate::proxy::forward::Underway;
use crate::proxy::spare::Spare;
use crate::upstream::messages::{BODY_BYTES_MAX, MessagePool};
use crate::upstream::{Answered, HttpUpstream, HttpVersion, SendError, SendFailure, UpstreamLimits};

/// Everything that is kept open to one instance.
pub(super) struct PeerUpstream {
    http: HttpUpstream<MeshConnect>,
    http1_messages: Arc<MessagePool>,
    http2_messages: Arc<MessagePool>,
    /// Until its node says that it does not know what messages are.
    takes_messages: AtomicBool,
}

impl PeerUpstream {
    /// Nothing is open yet.
    pub(super) fn new(connect: MeshConnect, limits: UpstreamLimits) -> Self {
        let messages = |version| MessagePool::new(version, limits.idle_max);
        Self {
            http: HttpUpstream::new(connect, limits),
            http1_messages: messages(HttpVersion::Http1),
            http2_messages: messages(HttpVersion::Http2),
            takes_messages: AtomicBool::new(true),
        }
    }

    /// Opens streams to the same place.
    pub(super) fn connector(&self) -> &MeshConnect {
        self.http.connector()
    }

    /// Sends `request`. When the node has fallen silent and `give_up` says so, its answer is waited for no longer. What may
    /// be sent twice is left in `spare`.
    pub(super) async fn send(
        &self,
        mut request: Underway,
        version: HttpVersion,
        spare: &mut Option<Spare>,
        give_up: impl Fn() -> bool + Send + Sync,
    ) -> Result<Answered, SendError> {
        if self.takes_messages.load(Ordering::Relaxed) && is_message(&mut request) {
            let pool = match version {
                HttpVersion::Http1 => &self.http1_messages,
                HttpVersion::Http2 => &self.http2_messages,
            };
            match pool.send(self.http.connector(), request, spare, &give_up).await {
                Err(SendError { failure: SendFailure::Connect(failure), unsent: Some(unsent) })
                    if failure.is_other_version() =>
                {
                    // Its program is older than messages are (`gossip::versions`).
                    self.takes_messages.store(false, Ordering::Relaxed);
                    request = unsent;
                }
                sent => return sent,
            }
        }
        *spare = Spare::of(&request);
        // On the heap: no message needs room for it.
        Box::pin(self.http.send(request, version, give_up)).await
    }

    /// The node has begun anew, with another program perhaps.
    pub(super) fn forget_program(&self) {
        self.takes_messages.store(true, Ordering::Relaxed);
    }

    /// Closes what nobody has used since the last sweep.
    pub(super) fn sweep(&self) {
        self.http.sweep();
        self.http1_messages.sweep();
        self.http2_messages.sweep();
    }
}

/// Whether `request` goes as a message: it switches no protocols, its caller holds nothing back, and it is short. A
/// longer body goes in HTTP: nobody may come to read it, and then many fill HTTP/2's window, and not the one of the
/// connection, that the beginnings of all others need.
fn is_message(request: &mut Request<RequestBody>) -> bool {
    request.method() != Method::CONNECT
        && !matches!(request.body(), RequestBody::Expected(_))
        && !request.headers().contains_key(UPGRADE)
        && is_short(request.body_mut())
}

fn is_short(body: &mut RequestBody) -> bool {
    let is_short =
        |body: &RequestBody| body.size_hint().upper().is_some_and(|bytes| bytes <= BODY_BYTES_MAX as u64);
    if is_short(body) {
        return true;
    }
    // A call of gRPC does not say how long it is, but is there as a whole, as a rule.
    body.look_for_end();
    is_short(body)
}
