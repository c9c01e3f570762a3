//! Bytes in both directions until both ends are done: opaque TCP, and HTTP that switched to
//! another protocol.

use hyper::Response;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tracing::debug;

use crate::proxy::body::{AnswerBody, AnswerGuard};
use crate::telemetry::exchange::Exchange;

/// Bytes on their way in one direction of one connection.
const BUFFER_BYTES: usize = 32 * 1024;

/// Copies in both directions, each side's end of stream passed on as such (half-close), until both
/// have ended or one has failed. `down` is the side that asked, `up` the one that serves.
pub(crate) async fn carry<D, U>(mut down: D, mut up: U, exchange: &mut Exchange) -> std::io::Result<()>
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let copied =
        tokio::io::copy_bidirectional_with_sizes(&mut down, &mut up, BUFFER_BYTES, BUFFER_BYTES).await?;
    exchange.add_request_bytes(copied.0);
    exchange.add_response_bytes(copied.1 as usize);
    Ok(())
}

/// Joins both halves of an exchange whose server agreed to switch protocols (101). `guard` lasts
/// as long as the tunnel.
pub(crate) fn join_upgrade(
    down: OnUpgrade,
    answer: &mut Response<hyper::body::Incoming>,
    guard: AnswerGuard,
) {
    let up = hyper::upgrade::on(answer);
    tokio::spawn(async move {
        let mut guard = guard;
        let (Ok(down), Ok(up)) = tokio::join!(down, up) else {
            return debug!("a switch of protocols was agreed and not made");
        };
        if let Some(exchange) = &mut guard.exchange {
            let ended = carry(TokioIo::new(down), TokioIo::new(up), exchange).await;
            debug!(?ended, "switched connection ended");
        }
    });
}

/// Lets the other end see a reset, and not an orderly end, when the connection is dropped.
pub(crate) fn reset(stream: &TcpStream) {
    // A socket that is gone already needs no reset.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// An empty body in place of one that a tunnel has taken over.
pub(crate) fn no_body() -> AnswerBody {
    AnswerBody::own(String::new())
}
