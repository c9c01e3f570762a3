//! The first bytes of a workload that is spoken to in HTTP/2: whether it does the same.
//!
//! A server's first frame is SETTINGS (RFC 9113, section 3.4), sent at once. One of HTTP/1.1 answers the
//! client's preface with an error, or hangs up. Nothing is sent to it before that is known, so that
//! a request can still be told in its version.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use super::NextHop;
use crate::proxy::one_piece;

/// Who says nothing for so long is taken for a busy server of HTTP/2: what becomes of the request is
/// for its own time limits.
const PATIENCE: Duration = Duration::from_secs(2);

/// A frame's head (RFC 9113, section 4.1).
const FRAME_HEAD_BYTES: usize = 9;

/// A connection whose first bytes are looked at as they come.
pub(crate) struct Greeted<S> {
    io: S,
    looking: Option<Looking>,
}

struct Looking {
    head: [u8; FRAME_HEAD_BYTES],
    count: usize,
    tell: oneshot::Sender<Beginning>,
}

/// How the other end begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beginning {
    /// Like a server of HTTP/2.
    Settings,
    /// Otherwise.
    Other,
    /// Not at all: it ended the connection before it had said enough.
    Nothing,
}

/// Resolves to how the other end begins.
pub(super) struct Greeting(oneshot::Receiver<Beginning>);

impl<S> Greeted<S> {
    /// Looks at what `io` says first.
    fn new(io: S) -> (Self, Greeting) {
        let (tell, told) = oneshot::channel();
        let looking = Looking { head: [0; FRAME_HEAD_BYTES], count: 0, tell };
        (Self { io, looking: Some(looking) }, Greeting(told))
    }

    /// Looks at what a workload says first; a peer's sidecar is known to speak what it is asked in.
    pub(super) fn of(io: S, next_hop: &NextHop) -> (Self, Option<Greeting>) {
        match next_hop {
            NextHop::Peer(_) => (Self::unwatched(io), None),
            NextHop::Workload { .. } => {
                let (io, greeting) = Self::new(io);
                (io, Some(greeting))
            }
        }
    }

    /// What is looked at.
    pub(crate) fn get_ref(&self) -> &S {
        &self.io
    }

    /// Looks at nothing: its other end is known.
    fn unwatched(io: S) -> Self {
        Self { io, looking: None }
    }

    fn look_at(&mut self, bytes: &[u8]) {
        let Some(looking) = &mut self.looking else { return };
        let place = &mut looking.head[looking.count..];
        let taken = place.len().min(bytes.len());
        place[..taken].copy_from_slice(&bytes[..taken]);
        looking.count += taken;
        let beginning = if !begins_settings(&looking.head[..looking.count]) {
            Beginning::Other
        } else if looking.count == FRAME_HEAD_BYTES {
            Beginning::Settings
        } else if bytes.is_empty() {
            Beginning::Nothing
        } else {
            return;
        };
        if let Some(looking) = self.looking.take() {
            // Who asked may have gone.
            let _ = looking.tell.send(beginning);
        }
    }
}

impl Greeting {
    /// Waits for it, within reason.
    pub(super) async fn beginning(&mut self) -> Beginning {
        match tokio::time::timeout(PATIENCE, &mut self.0).await {
            Ok(Ok(beginning)) => beginning,
            // The connection broke before it said anything.
            Ok(Err(_)) => Beginning::Nothing,
            Err(_elapsed) => Beginning::Settings,
        }
    }

    /// What has been seen of it so far.
    pub(super) fn so_far(&mut self) -> Beginning {
        self.0.try_recv().unwrap_or(Beginning::Nothing)
    }
}

/// Whether these could be the first bytes of SETTINGS that acknowledge nothing.
fn begins_settings(head: &[u8]) -> bool {
    const SETTINGS: u8 = 4;
    const ACK: u8 = 1;
    head.iter().enumerate().all(|(at, byte)| match at {
        // A server has not been allowed frames of more than 16 KiB yet.
        0 => *byte == 0,
        3 => *byte == SETTINGS,
        4 => byte & ACK == 0,
        5..FRAME_HEAD_BYTES => *byte == 0,
        _ => true,
    })
}

impl<S: AsyncRead + Unpin> AsyncRead for Greeted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (before, has_room) = (buffer.filled().len(), buffer.remaining() > 0);
        ready!(Pin::new(&mut self.io).poll_read(context, buffer))?;
        if self.looking.is_some() && has_room {
            self.look_at(&buffer.filled()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Greeted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        one_piece::poll_write(Pin::new(&mut self.io), context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    async fn judged(pieces: &[&[u8]]) -> Beginning {
        let (mut server, client) = duplex(64);
        let (mut greeted, mut greeting) = Greeted::new(client);
        let reading = tokio::spawn(async move { greeted.read_to_end(&mut Vec::new()).await });
        for piece in pieces {
            server.write_all(piece).await.expect("written");
            tokio::task::yield_now().await;
        }
        drop(server);
        let beginning = greeting.beginning().await;
        reading.await.expect("no panic").expect("read");
        beginning
    }

    #[tokio::test]
    async fn a_server_of_http2_begins_with_its_settings() {
        let whole = judged(&[b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64"]).await;
        assert_eq!(whole, Beginning::Settings);
        assert_eq!(judged(&[b"\0\0", b"\0\x04\0\0", b"\0\0\0"]).await, Beginning::Settings, "in pieces");
        for nothing in [b"".as_slice(), b"\0\0\0\x04"] {
            assert_eq!(judged(&[nothing]).await, Beginning::Nothing, "{nothing:?}");
        }
        for other in [
            b"HTTP/1.1 400 Bad Request\r\n\r\n".as_slice(),
            b"\0\0\0\x04\x01\0\0\0\0",
            b"\0\0\x08\x07\0\0\0\0\0",
            b"+PONG\r\n",
        ] {
            assert_eq!(judged(&[other]).await, Beginning::Other, "{other:?}");
        }
    }
}
