//! Small writes of an HTTP/2 connection, put together: what one turn of it writes leaves in one system call.
//!
//! h2 writes each DATA frame of 256 bytes or more by itself, so that who answers twenty requests in one turn would make
//! twenty system calls. Here they are copied together as far as they are small, and leave when the turn is over
//! ([`Turns`]): nothing waits for a clock, or for another. HTTP/1.1 has one answer at a time, and passes as it is.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::proxy::overdue::{BreakOff, Watched};

/// What has been put together leaves before it is more than this: fifteen answers of 1 KiB. A connection whose other end
/// does not read holds as much, and h2 another 16 KiB for it.
const GATHERED_BYTES_MAX: usize = 16 * 1024;

/// A longer write goes by itself: fewer than four would go together.
const SMALL_BYTES_MAX: usize = GATHERED_BYTES_MAX / 4;

thread_local! {
    /// Room for what a turn writes. A connection has it from its first write to the end of its turn, and longer only if
    /// its other end does not read.
    static ROOM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A connection's bytes. They must be written within the turns of [`Turns`].
pub(crate) struct Gathered<S: BreakOff> {
    /// Until it is known to speak HTTP/2.
    direct: Option<Watched<S>>,
    http2: Arc<OnceLock<Mutex<Socket<S>>>>,
}

/// The turns of a connection whose bytes are [`Gathered`]. `connection` is polled through it only.
pub(crate) struct Turns<'c, C, S: BreakOff> {
    connection: Pin<&'c mut C>,
    http2: Writer<S>,
}

/// Writes at the end of a turn.
pub(crate) struct Writer<S: BreakOff>(Arc<OnceLock<Mutex<Socket<S>>>>);

/// One that speaks HTTP/2.
struct Socket<S: BreakOff> {
    io: Watched<S>,
    gathered: Vec<u8>,
    /// How much of it has been written.
    written: usize,
    /// What a write at the end of a turn failed with.
    failure: Option<io::ErrorKind>,
}

impl<S: BreakOff> Gathered<S> {
    /// Of `io`.
    pub(crate) fn new(io: Watched<S>) -> (Self, Writer<S>) {
        let http2 = Arc::new(OnceLock::new());
        (Self { direct: Some(io), http2: http2.clone() }, Writer(http2))
    }

    /// The connection itself, if it speaks HTTP/1.1.
    pub(crate) fn direct(&self) -> Option<&S> {
        self.direct.as_ref().map(Watched::get_ref)
    }

    fn socket(&self) -> MutexGuard<'_, Socket<S>> {
        lock(self.http2.get().expect("a connection that is not passed directly speaks HTTP/2"))
    }
}

/// Never contended: a connection, and who writes at the end of its turn, are one task.
fn lock<S: BreakOff>(socket: &Mutex<Socket<S>>) -> MutexGuard<'_, Socket<S>> {
    socket.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: AsyncWrite + BreakOff + Unpin> Socket<S> {
    fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.ok()?;
        let bytes = slices.iter().map(|slice| slice.len()).sum();
        if bytes > SMALL_BYTES_MAX {
            ready!(self.poll_write_out(context))?;
            return Pin::new(&mut self.io).poll_write_vectored(context, slices);
        }
        if self.gathered.len() + bytes > GATHERED_BYTES_MAX {
            ready!(self.poll_write_out(context))?;
        }
        if self.gathered.capacity() == 0 {
            self.gathered = ROOM.take();
            self.gathered.reserve_exact(GATHERED_BYTES_MAX);
        }
        slices.iter().for_each(|slice| self.gathered.extend_from_slice(slice));
        Poll::Ready(Ok(bytes))
    }

    /// Ready when nothing is left of what has been put together.
    fn poll_write_out(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ok()?;
        while self.written < self.gathered.len() {
            let left = &self.gathered[self.written..];
            match ready!(Pin::new(&mut self.io).poll_write(context, left)) {
                Ok(0) => return Poll::Ready(Err(self.fail(io::ErrorKind::WriteZero))),
                Ok(written) => self.written += written,
                Err(error) => return Poll::Ready(Err(self.fail(error.kind()))),
            }
        }
        self.written = 0;
        self.gathered.clear();
        if self.gathered.capacity() > 0 {
            ROOM.set(std::mem::take(&mut self.gathered));
        }
        Poll::Ready(Ok(()))
    }

    fn ok(&self) -> io::Result<()> {
        self.failure.map_or(Ok(()), |kind| Err(kind.into()))
    }

    fn fail(&mut self, kind: io::ErrorKind) -> io::Error {
        self.failure = Some(kind);
        (self.gathered, self.written) = (Vec::new(), 0);
        kind.into()
    }
}

impl<'c, C, S: BreakOff> Turns<'c, C, S> {
    /// Of `connection`, whose bytes `writer` writes.
    pub(crate) fn new(connection: Pin<&'c mut C>, writer: Writer<S>) -> Self {
        Self { connection, http2: writer }
    }

    /// The connection, to be told something; what it does about that is another turn.
    pub(crate) fn connection(&mut self) -> Pin<&mut C> {
        self.connection.as_mut()
    }
}

impl<C: Future, S: AsyncWrite + BreakOff + Unpin> Future for Turns<'_, C, S> {
    type Output = C::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<C::Output> {
        let ended = self.connection.as_mut().poll(context);
        if let Some(socket) = self.http2.0.get()
            && let Poll::Ready(Err(_)) = lock(socket).poll_write_out(context)
            && ended.is_pending()
        {
            // It hears of that when it is asked to write, or to have written.
            context.waker().wake_by_ref();
        }
        ended
    }
}

impl<S: AsyncRead + BreakOff + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let Some(io) = &mut this.direct else {
            return Pin::new(&mut this.socket().io).poll_read(context, buffer);
        };
        ready!(Pin::new(&mut *io).poll_read(context, buffer))?;
        if io.speaks_http2()
            && let Some(io) = this.direct.take()
        {
            let socket = Socket { io, gathered: Vec::new(), written: 0, failure: None };
            let _ = this.http2.set(Mutex::new(socket));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + BreakOff + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.direct {
            Some(io) => Pin::new(io).poll_write(context, bytes),
            None => self.socket().poll_write(context, &[io::IoSlice::new(bytes)]),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.direct {
            Some(io) => Pin::new(io).poll_write_vectored(context, slices),
            None => self.socket().poll_write(context, slices),
        }
    }

    /// It is h2 that asks, once for each write; it need not wait for the turn's end.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.direct {
            Some(io) => Pin::new(io).poll_flush(context),
            None => Poll::Ready(self.socket().ok()),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.direct {
            Some(io) => Pin::new(io).poll_shutdown(context),
            None => {
                let mut socket = self.socket();
                ready!(socket.poll_write_out(context))?;
                Pin::new(&mut socket.io).poll_shutdown(context)
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.direct {
            Some(io) => io.is_write_vectored(),
            None => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::Waker;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::proxy::overdue::Watches;

    /// The other end of a socket.
    #[derive(Clone, Default)]
    struct Other(Arc<Mutex<End>>);

    #[derive(Default)]
    struct End {
        /// What arrived, each write by itself.
        writes: Vec<Vec<u8>>,
        /// How much more it takes.
        room: usize,
        failure: Option<io::ErrorKind>,
    }

    /// A socket with something to read, in pieces.
    struct Fake {
        read: Vec<&'static [u8]>,
        other: Other,
    }

    impl BreakOff for Fake {
        fn break_off(&self) {}
    }

    impl AsyncRead for Fake {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            buffer.put_slice(self.read.remove(0));
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Fake {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let mut end = self.other.end();
            if let Some(kind) = end.failure {
                return Poll::Ready(Err(kind.into()));
            }
            let written = bytes.len().min(end.room);
            if written == 0 {
                return Poll::Pending;
            }
            end.room -= written;
            end.writes.push(bytes[..written].to_vec());
            Poll::Ready(Ok(written))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl Other {
        fn end(&self) -> MutexGuard<'_, End> {
            self.0.lock().expect("no panic")
        }

        fn lengths(&self) -> Vec<usize> {
            self.end().writes.iter().map(Vec::len).collect()
        }

        fn all(&self) -> Vec<u8> {
            self.end().writes.concat()
        }
    }

    /// A connection that begins with `pieces`, which have been read.
    async fn begun(pieces: &[&'static [u8]]) -> (Other, Gathered<Fake>, Writer<Fake>) {
        let other = Other::default();
        other.end().room = usize::MAX;
        let fake = Fake { read: pieces.to_vec(), other: other.clone() };
        let (mut io, writer) = Gathered::new(Watches::default().watch(fake).0);
        let mut read = [0; 64];
        for piece in pieces {
            assert_eq!(io.read(&mut read).await.expect("something"), piece.len());
        }
        (other, io, writer)
    }

    /// One turn of a connection that does `work`.
    fn turn<F: Future>(work: Pin<&mut F>, writer: Writer<Fake>) -> (Poll<F::Output>, Writer<Fake>) {
        let mut turns = Turns::new(work, writer);
        let ended = Pin::new(&mut turns).poll(&mut Context::from_waker(Waker::noop()));
        (ended, turns.http2)
    }

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    #[tokio::test]
    async fn what_a_turn_writes_leaves_at_once_in_http2_only() {
        let in_pieces: &[&[u8]] = &[b"P", b"RI * HTTP/2.0\r\n\r\nSM\r\n\r\n"];
        let http1: &[&[u8]] = &[b"P", b"ROPFIND / HTTP/1.1\r\n"];
        for (pieces, expected) in
            [(&[PREFACE][..], vec![20 * 300]), (in_pieces, vec![20 * 300]), (http1, vec![300; 20])]
        {
            let (other, mut io, writer) = begun(pieces).await;
            let work = pin!(async {
                for number in 0..20 {
                    io.write_all(&[number; 300]).await.expect("written");
                    io.flush().await.expect("flushed");
                }
                std::future::pending::<()>().await;
            });
            assert!(turn(work, writer).0.is_pending());
            assert_eq!(other.lengths(), expected);
        }
    }

    #[tokio::test]
    async fn order_is_kept_and_what_is_large_or_too_much_does_not_wait() {
        let (other, mut io, writer) = begun(&[PREFACE]).await;
        let sizes = [100, SMALL_BYTES_MAX + 1, 10, SMALL_BYTES_MAX, 20];
        let small = vec![SMALL_BYTES_MAX; GATHERED_BYTES_MAX / SMALL_BYTES_MAX + 1];
        let sizes: Vec<usize> = sizes.into_iter().chain(small).collect();
        let expected: Vec<u8> =
            sizes.iter().zip(0..).flat_map(|(size, number)| vec![number; *size]).collect();
        let work = pin!(async {
            for (size, number) in sizes.iter().zip(0..) {
                io.write_all(&vec![number; *size]).await.expect("written");
            }
        });
        assert!(turn(work, writer).0.is_ready());
        assert!(other.all() == expected);
        assert!(other.lengths().iter().all(|bytes| *bytes <= GATHERED_BYTES_MAX));
        assert!(other.lengths().len() < sizes.len());
    }

    #[tokio::test]
    async fn who_does_not_read_is_waited_for_and_loses_nothing() {
        let (other, mut io, mut writer) = begun(&[PREFACE]).await;
        other.end().room = 1_000;
        let mut work = pin!(async {
            for number in 0..100 {
                io.write_all(&[number; 1_000]).await.expect("written");
            }
            poll_fn(|context| Pin::new(&mut io).poll_shutdown(context)).await.expect("ended");
        });
        let mut turns = 0;
        loop {
            let (ended, again) = turn(work.as_mut(), writer);
            writer = again;
            let held = lock(writer.0.get().expect("HTTP/2")).gathered.len();
            assert!(held <= GATHERED_BYTES_MAX, "{held}");
            if ended.is_ready() {
                break;
            }
            turns += 1;
            other.end().room = 2_500;
        }
        assert!((30..60).contains(&turns), "{turns}");
        assert!(other.all() == (0..100).flat_map(|number| vec![number; 1_000]).collect::<Vec<u8>>());
    }

    #[tokio::test]
    async fn a_failure_at_the_end_of_a_turn_is_told_in_the_next() {
        let (other, mut io, writer) = begun(&[PREFACE]).await;
        other.end().failure = Some(io::ErrorKind::BrokenPipe);
        let mut work = pin!(async {
            io.write_all(b"an answer").await.expect("nobody knows yet");
            tokio::task::yield_now().await;
            assert_eq!(io.flush().await.expect_err("known").kind(), io::ErrorKind::BrokenPipe);
            assert!(io.write_all(b"another").await.is_err());
        });
        let (ended, writer) = turn(work.as_mut(), writer);
        assert!(ended.is_pending());
        assert!(turn(work.as_mut(), writer).0.is_ready());
    }
}
