//! `GET` of a path over HTTP/1.1, on a connection of its own.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::{CONNECTION, HOST, USER_AGENT};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use starling_gossip::clock::Instant;

use super::Answer;

/// A health check's head; a larger one is no answer to this question.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Of the body so much is read, so that the workload sees its answer taken, and no more: somebody
/// may probe a page that never ends.
const BODY_BYTES_MAX: usize = 16 * 1024;

/// For so long the body is read: one that trickles (server-sent events, a log that is followed) is
/// as good as one that ends.
const BODY_GRACE: Duration = Duration::from_millis(100);

/// Any 2xx or 3xx that comes before `end` is good. The connection ends with the question.
pub(super) async fn ask(
    io: impl AsyncRead + AsyncWrite + Unpin,
    host: &str,
    path: &str,
    end: Instant,
) -> Answer {
    let broken = |error: hyper::Error| format!("the workload did not answer in HTTP: {error}");
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .handshake(TokioIo::new(io))
        .await
        .map_err(broken)?;
    let request = Request::get(path)
        .header(HOST, host)
        .header(USER_AGENT, "starling-probe")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        if !status.is_success() && !status.is_redirection() {
            return Err(format!("it answered {status}"));
        }
        let body = tokio::time::timeout_at(end, take_body(response.into_body()));
        let _ = tokio::time::timeout(BODY_GRACE, body).await;
        Ok(())
    };
    // The connection lives in this future, so that whoever drops it closes the socket.
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        biased;
        answer = exchange.as_mut() => answer,
        ended = connection => match ended {
            // What it has received is still to be read.
            Ok(()) => exchange.await,
            Err(error) => Err(broken(error)),
        },
    }
}

/// The status has answered the question; how the body ends does not matter.
async fn take_body(mut body: Incoming) {
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        bytes += frame.data_ref().map_or(0, Bytes::len);
        if bytes >= BODY_BYTES_MAX {
            return;
        }
    }
}
