//! Bytes of one connection on their way to another, both ways at once.
//!
//! A connection that waits holds no memory here: what comes is read into a buffer that all
//! connections of a thread share, and given on in the same turn. Only what the other side does not
//! take just then is kept, and nothing more is read in that direction until it has been taken. It
//! knows neither who speaks nor what is said.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::proxy::timer::Moved;

/// Read at once, and so the most that is kept of one direction of one connection. As much as leaves in
/// one system call over QUIC, and small enough to be still in the processor's cache when it is given on.
const READ_BYTES_MAX: usize = 64 * 1024;

/// Carried in one direction before others have their turn: a third of a millisecond of work.
const TURN_BYTES_MAX: usize = 4 * READ_BYTES_MAX;

thread_local! {
    /// Nobody's between two turns.
    static READ_INTO: Cell<Box<[u8]>> = Cell::default();
}

/// Both directions of one connection, and what has been carried so far.
#[derive(Debug, Default)]
pub(crate) struct Carriage {
    up: Way,
    down: Way,
}

/// One direction.
#[derive(Debug, Default)]
struct Way {
    stage: Stage,
    kept: Kept,
    /// Given to the other side and not flushed yet.
    is_unflushed: bool,
    carried: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Carrying,
    /// The one side has ended; the other is being told.
    Ending,
    Ended,
}

/// Read and not taken by the other side yet.
#[derive(Debug, Default)]
struct Kept {
    bytes: Box<[u8]>,
    taken: usize,
}

impl Carriage {
    /// Bytes that the side that serves took.
    pub(crate) fn carried_up(&self) -> u64 {
        self.up.carried
    }

    /// Bytes that the side that asked took.
    pub(crate) fn carried_down(&self) -> u64 {
        self.down.carried
    }

    /// Copies in both directions, each side's end of stream passed on as such (half-close), until
    /// both have ended or one has failed. Notes in `moved` that something has.
    pub(crate) async fn carry<D, U>(
        &mut self,
        down: &mut D,
        up: &mut U,
        moved: Option<&Moved>,
    ) -> io::Result<()>
    where
        D: AsyncRead + AsyncWrite + Unpin,
        U: AsyncRead + AsyncWrite + Unpin,
    {
        std::future::poll_fn(|context| self.poll(context, down, up, moved)).await
    }

    fn poll<D, U>(
        &mut self,
        context: &mut Context<'_>,
        down: &mut D,
        up: &mut U,
        moved: Option<&Moved>,
    ) -> Poll<io::Result<()>>
    where
        D: AsyncRead + AsyncWrite + Unpin,
        U: AsyncRead + AsyncWrite + Unpin,
    {
        let mut buffer = READ_INTO.take();
        if buffer.is_empty() {
            buffer = vec![0; READ_BYTES_MAX].into();
        }
        let before = (self.up.stage, self.up.carried, self.down.stage, self.down.carried);
        let went_up = self.up.poll(context, down, up, &mut buffer);
        let went_down = self.down.poll(context, up, down, &mut buffer);
        READ_INTO.set(buffer);
        if before != (self.up.stage, self.up.carried, self.down.stage, self.down.carried) {
            moved.into_iter().for_each(Moved::note);
        }
        match (went_up?, went_down?) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    }
}

impl Way {
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        buffer: &mut [u8],
    ) -> Poll<io::Result<()>> {
        let turn_ends = self.carried + TURN_BYTES_MAX as u64;
        while self.stage == Stage::Carrying {
            ready!(self.poll_kept(context, to))?;
            if self.carried >= turn_ends {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let mut read = ReadBuf::new(buffer);
            match Pin::new(&mut *from).poll_read(context, &mut read)? {
                Poll::Ready(()) if read.filled().is_empty() => self.stage = Stage::Ending,
                Poll::Ready(()) => self.give(context, to, read.filled())?,
                Poll::Pending => {
                    ready!(self.poll_flush(context, to))?;
                    return Poll::Pending;
                }
            }
        }
        if self.stage == Stage::Ending {
            ready!(Pin::new(to).poll_shutdown(context))?;
            self.stage = Stage::Ended;
        }
        Poll::Ready(Ok(()))
    }

    /// Gives on what was read, and keeps what is not taken at once.
    fn give(
        &mut self,
        context: &mut Context<'_>,
        to: &mut (impl AsyncWrite + Unpin),
        mut bytes: &[u8],
    ) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.poll_write(context, to, bytes)? {
                Poll::Ready(taken) => bytes = &bytes[taken..],
                Poll::Pending => {
                    self.kept = Kept { bytes: bytes.into(), taken: 0 };
                    break;
                }
            }
        }
        Ok(())
    }

    fn poll_kept(
        &mut self,
        context: &mut Context<'_>,
        to: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<()>> {
        while self.kept.taken < self.kept.bytes.len() {
            let Kept { bytes, taken } = std::mem::take(&mut self.kept);
            let polled = self.poll_write(context, to, &bytes[taken..]);
            let now_taken = if let Poll::Ready(Ok(count)) = polled { taken + count } else { taken };
            if now_taken < bytes.len() {
                self.kept = Kept { bytes, taken: now_taken };
            }
            ready!(polled)?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        to: &mut (impl AsyncWrite + Unpin),
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let taken = ready!(Pin::new(to).poll_write(context, bytes))?;
        if taken == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.carried += taken as u64;
        self.is_unflushed = true;
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(
        &mut self,
        context: &mut Context<'_>,
        to: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<()>> {
        if self.is_unflushed {
            ready!(Pin::new(to).poll_flush(context))?;
            self.is_unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}
