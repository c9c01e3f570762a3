//! A stream through the mesh, as tokio's `AsyncRead` and `AsyncWrite`.
//!
//! Its one promise beyond quinn's: an end of file means that the peer ended it. A half that is
//! dropped before its clean end resets or stops its direction, so that a truncated transfer never
//! looks whole; quinn alone would finish it. It knows nothing of what it carries.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use quinn::{ReadError, RecvStream, SendStream, VarInt, WriteError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::answer::{AnswerError, AnswerReader};
use crate::bell::Bell;
use crate::connection::{Connection, WorkGuard};
use crate::limits::FIRST_WRITE_TIMEOUT;

/// Codes with which a direction of a stream ends early (RFC 9000, section 20.2).
pub(crate) mod stream_code {
    /// Its owner dropped it.
    pub(crate) const ABANDONED: u32 = 1;
    /// The stream was refused; the answer says why.
    pub(crate) const REFUSED: u32 = 2;
}

/// Both directions of a stream. Shutting down the writer ends our direction and leaves the
/// peer's open, as with TCP.
pub struct MeshStream {
    send: SendHalf,
    recv: RecvHalf,
}

/// Why a stream's first bytes, a header or an answer, could not be written.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// The stream or its connection is gone.
    #[error("the stream is lost: {0}")]
    Lost(#[from] WriteError),
    /// The peer had no room for them for [`FIRST_WRITE_TIMEOUT`].
    #[error("the peer took nothing in for {} s", FIRST_WRITE_TIMEOUT.as_secs())]
    Stalled,
}

/// The direction from us. Ends cleanly by `shutdown`; dropped before, it is reset.
pub struct SendHalf {
    stream: SendStream,
    finished: bool,
    is_reset: bool,
    /// There until the half is dropped; then it moves to whoever waits for the acknowledgement.
    work: Option<WorkGuard>,
}

/// The direction to us. Dropped before its end of file, the peer is told to stop.
pub struct RecvHalf {
    stream: RecvStream,
    /// Rings when there is something to read.
    bell: Bell,
    /// The callee's answer, while it is awaited.
    answer: Option<AnswerReader>,
    _work: WorkGuard,
}

impl MeshStream {
    /// The dialler's end: the callee's answer comes first.
    pub(crate) fn dialled(send: SendStream, recv: RecvStream, work: WorkGuard) -> Self {
        Self::new(send, recv, work, Some(AnswerReader::default()))
    }

    /// The callee's end.
    pub(crate) fn called(send: SendStream, recv: RecvStream, work: WorkGuard) -> Self {
        Self::new(send, recv, work, None)
    }

    fn new(send: SendStream, recv: RecvStream, work: WorkGuard, answer: Option<AnswerReader>) -> Self {
        let recv_work = work.share();
        let recv = RecvHalf { stream: recv, bell: Bell::default(), answer, _work: recv_work };
        Self { send: SendHalf::new(send, work), recv }
    }

    /// Waits for the callee's answer. Waits as long as the callee does: bound it. Reading does
    /// the same unasked, and then a refusal is an error of kind `ConnectionRefused`.
    pub async fn accepted(&mut self) -> Result<(), AnswerError> {
        self.recv.accepted().await
    }

    /// The connection that carries the stream.
    pub fn connection(&self) -> &Connection {
        self.recv._work.connection()
    }

    /// Both directions, each to be owned by another task; no lock is between them.
    pub fn into_split(self) -> (SendHalf, RecvHalf) {
        (self.send, self.recv)
    }

    /// Writes what the stream begins with, within [`FIRST_WRITE_TIMEOUT`].
    pub(crate) async fn write_first(&mut self, bytes: &[u8]) -> Result<(), BeginError> {
        self.send.write_first(bytes).await
    }

    /// Ends both directions after a refusal was written.
    pub(crate) fn end_refused(&mut self) {
        self.send.finish();
        let _ = self.recv.stream.stop(VarInt::from_u32(stream_code::REFUSED));
    }
}

impl SendHalf {
    pub(crate) fn new(stream: SendStream, work: WorkGuard) -> Self {
        Self { stream, finished: false, is_reset: false, work: Some(work) }
    }

    pub(crate) async fn write_first(&mut self, bytes: &[u8]) -> Result<(), BeginError> {
        match tokio::time::timeout(FIRST_WRITE_TIMEOUT, self.stream.write_all(bytes)).await {
            Ok(written) => Ok(written?),
            Err(_) => Err(BeginError::Stalled),
        }
    }

    /// Writes `bytes` without copying them.
    pub async fn write_chunk(&mut self, bytes: Bytes) -> io::Result<()> {
        self.touch();
        self.stream.write_chunk(bytes).await.map_err(write_error)
    }

    /// Writes all of `chunks` without copying them, and leaves them empty.
    pub async fn write_chunks(&mut self, chunks: &mut [Bytes]) -> io::Result<()> {
        self.touch();
        self.stream.write_all_chunks(chunks).await.map_err(write_error)
    }

    /// Ends the direction early, and lets the peer see why by `code` ([`reset_code`]). What it has not read of the
    /// direction is lost.
    pub fn reset(mut self, code: u32) {
        let _ = self.stream.reset(VarInt::from_u32(code));
        self.is_reset = true;
    }

    fn touch(&self) {
        if let Some(work) = &self.work {
            work.connection().touch();
        }
    }

    /// Ends the direction cleanly: the peer sees an end of file.
    pub fn finish(&mut self) {
        if !self.finished {
            self.touch();
            // It fails when the peer stopped the stream, and then there is nothing to end.
            let _ = self.stream.finish();
            self.finished = true;
        }
    }
}

impl Drop for SendHalf {
    fn drop(&mut self) {
        if self.is_reset {
            return;
        }
        if !self.finished {
            let _ = self.stream.reset(VarInt::from_u32(stream_code::ABANDONED));
            return;
        }
        // Until the peer has all of it, the connection is neither unwatched nor idle.
        let work = self.work.take();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let acknowledged = self.stream.stopped();
            runtime.spawn(async move {
                let _ = acknowledged.await;
                drop(work);
            });
        }
    }
}

impl AsyncWrite for SendHalf {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.touch();
        Pin::new(&mut self.stream).poll_write(cx, buf).map_err(write_error)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut written = 0;
        for buf in bufs.iter().filter(|buf| !buf.is_empty()) {
            match self.as_mut().poll_write(cx, buf) {
                Poll::Ready(Ok(bytes)) if bytes == buf.len() => written += bytes,
                Poll::Ready(Ok(bytes)) => return Poll::Ready(Ok(written + bytes)),
                // What was taken is taken; the next call meets the error or the full window.
                _ if written > 0 => break,
                other => return other,
            }
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish();
        Poll::Ready(Ok(()))
    }
}

impl RecvHalf {
    /// Waits for the callee's answer; see [`MeshStream::accepted`].
    pub async fn accepted(&mut self) -> Result<(), AnswerError> {
        poll_fn(|cx| self.poll_answer(cx)).await
    }

    /// The next bytes, at most `bytes_max`, without copying them; `None` at the clean end.
    pub async fn read_chunk(&mut self, bytes_max: usize) -> io::Result<Option<Bytes>> {
        self.accepted().await?;
        let Self { stream, bell, .. } = self;
        let chunk = poll_fn(|cx| bell.poll(cx, |cx| pin!(stream.read_chunk(bytes_max, true)).poll(cx)));
        Ok(chunk.await.map_err(read_error)?.map(|chunk| chunk.bytes))
    }

    /// Fills `bufs` with the next bytes, without copying them; `None` at the clean end.
    pub async fn read_chunks(&mut self, bufs: &mut [Bytes]) -> io::Result<Option<usize>> {
        self.accepted().await?;
        let Self { stream, bell, .. } = self;
        let chunks = poll_fn(|cx| bell.poll(cx, |cx| pin!(stream.read_chunks(bufs)).poll(cx)));
        chunks.await.map_err(read_error)
    }

    /// From now on, whoever asked last for something to read is also woken when [`Connection::is_responsive`] becomes
    /// false.
    pub fn ring_when_unresponsive(&self) {
        self._work.connection().ring_when_unresponsive(&self.bell);
    }

    /// Fills `chunks` with the next bytes, without copying them, and says how many it filled; 0 is the clean end.
    /// Where it says that there is nothing, whoever asked last is woken when there is.
    pub fn poll_chunks(&mut self, cx: &mut Context<'_>, chunks: &mut [Bytes]) -> Poll<io::Result<usize>> {
        if self.answer.is_some() {
            ready!(self.poll_answer(cx))?;
        }
        let Self { stream, bell, .. } = self;
        let read = ready!(bell.poll(cx, |cx| pin!(stream.read_chunks(chunks)).poll(cx)));
        Poll::Ready(read.map(Option::unwrap_or_default).map_err(read_error))
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), AnswerError>> {
        let Self { stream, bell, answer, .. } = self;
        let Some(answer) = answer else { return Poll::Ready(Ok(())) };
        ready!(bell.poll(cx, |cx| answer.poll(stream, cx)))?;
        self.answer = None;
        Poll::Ready(Ok(()))
    }
}

impl Drop for RecvHalf {
    fn drop(&mut self) {
        // Does nothing once the end of file was read.
        let _ = self.stream.stop(VarInt::from_u32(stream_code::ABANDONED));
    }
}

impl AsyncRead for RecvHalf {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.answer.is_some() {
            ready!(self.poll_answer(cx))?;
        }
        let Self { stream, bell, .. } = &mut *self;
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        bell.poll(cx, |cx| stream.poll_read_buf(cx, buf)).map_err(read_error)
    }
}

impl AsyncRead for MeshStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.recv).poll_read(cx, buf)
    }
}

impl AsyncWrite for MeshStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.send).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.send).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.send).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.send).poll_shutdown(cx)
    }
}

/// The code with which the peer reset its direction of a stream, if that is why reading failed.
pub fn reset_code(error: &io::Error) -> Option<u64> {
    match error.get_ref()?.downcast_ref::<ReadError>()? {
        ReadError::Reset(code) => Some(code.into_inner()),
        _ => None,
    }
}

/// A reset is `ConnectionReset`, so that it cannot be taken for an end of file.
pub(crate) fn read_error(error: ReadError) -> io::Error {
    let kind = match &error {
        ReadError::Reset(_) | ReadError::ConnectionLost(_) => io::ErrorKind::ConnectionReset,
        ReadError::ClosedStream => io::ErrorKind::NotConnected,
        ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

/// The peer that reads no more is `BrokenPipe`, as a closed socket would be.
fn write_error(error: WriteError) -> io::Error {
    let kind = match &error {
        WriteError::Stopped(_) => io::ErrorKind::BrokenPipe,
        WriteError::ConnectionLost(_) => io::ErrorKind::ConnectionReset,
        WriteError::ClosedStream => io::ErrorKind::NotConnected,
        WriteError::ZeroRttRejected => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}
