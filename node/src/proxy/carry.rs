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

use crate::allowance::ALLOWANCE;
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
            let polled = match ALLOWANCE.poll_some(context) {
                Poll::Ready(()) => Pin::new(&mut *from).poll_read(context, &mut read)?,
                Poll::Pending => Poll::Pending,
            };
            match polled {
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
                    ALLOWANCE.take(bytes.len());
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::task::JoinHandle;

    use super::*;

    /// A client and a workload, each behind so small a pipe, and what carries between them.
    fn carried(pipe_bytes: usize) -> (DuplexStream, DuplexStream, JoinHandle<(Carriage, io::Result<()>)>) {
        let ((client, mut down), (mut up, workload)) = (duplex(pipe_bytes), duplex(pipe_bytes));
        let carrying = tokio::spawn(async move {
            let mut carriage = Carriage::default();
            let ended = carriage.carry(&mut down, &mut up, None).await;
            (carriage, ended)
        });
        (client, workload, carrying)
    }

    fn bytes(count: usize) -> Vec<u8> {
        (0..count).map(|index| (index % 251) as u8).collect()
    }

    async fn read_all(mut from: impl AsyncRead + Unpin) -> Vec<u8> {
        let mut heard = Vec::new();
        from.read_to_end(&mut heard).await.expect("a clean end");
        heard
    }

    #[tokio::test]
    async fn every_byte_arrives_in_order_both_ways_through_pipes_of_any_size() {
        for pipe_bytes in [1, 7, 1000, READ_BYTES_MAX, 3 * READ_BYTES_MAX] {
            let (client, workload, carrying) = carried(pipe_bytes);
            let count = if pipe_bytes < 100 { 3_000 } else { 5 * TURN_BYTES_MAX };
            let talk = async |stream: DuplexStream, says: usize| {
                let (from, mut to) = tokio::io::split(stream);
                let saying = async {
                    to.write_all(&bytes(says)).await.expect("written");
                    to.shutdown().await.expect("ended");
                };
                tokio::join!(saying, read_all(from)).1
            };
            let (down, up) = tokio::join!(talk(client, count), talk(workload, count / 2));
            assert!(up == bytes(count) && down == bytes(count / 2), "through {pipe_bytes} bytes");
            let (carriage, ended) = carrying.await.expect("no panic");
            ended.expect("a clean end");
            assert_eq!((carriage.carried_up(), carriage.carried_down()), (count as u64, count as u64 / 2));
        }
    }

    #[tokio::test]
    async fn what_is_not_taken_is_kept_and_no_more_is_read_until_it_is() {
        let ((mut client, mut down), (mut up, mut workload)) = (duplex(1 << 20), duplex(10));
        client.write_all(&bytes(300_000)).await.expect("room");
        let mut carriage = Carriage::default();
        let carrying = carriage.carry(&mut down, &mut up, None);
        assert!(tokio::time::timeout(Duration::from_millis(50), carrying).await.is_err(), "nobody takes it");
        assert_eq!(carriage.up.kept.bytes.len(), READ_BYTES_MAX - 10, "what was read, and not more");
        let mut heard = vec![0; READ_BYTES_MAX];
        let hearing = workload.read_exact(&mut heard);
        tokio::select! {
            ended = carriage.carry(&mut down, &mut up, None) => panic!("{ended:?}"),
            heard = hearing => drop(heard.expect("read")),
        }
        assert!(heard == bytes(READ_BYTES_MAX), "other bytes");
    }

    #[tokio::test]
    async fn a_connection_that_waits_keeps_nothing() {
        let ((mut client, mut down), (mut up, mut workload)) = (duplex(64), duplex(8));
        let mut carriage = Carriage::default();
        let talking = async {
            for _ in 0..3 {
                client.write_all(&bytes(40)).await.expect("written");
                let mut heard = [0; 40];
                workload.read_exact(&mut heard).await.expect("read");
                assert_eq!(heard[..], bytes(40));
            }
        };
        tokio::select! {
            biased;
            ended = carriage.carry(&mut down, &mut up, None) => panic!("{ended:?}"),
            () = talking => {}
        }
        assert!(carriage.up.kept.bytes.is_empty() && carriage.down.kept.bytes.is_empty());
    }

    #[tokio::test]
    async fn an_end_is_told_after_the_last_byte_and_the_other_half_goes_on() {
        let (mut client, mut workload, carrying) = carried(16);
        client.write_all(b"last words").await.expect("written");
        client.shutdown().await.expect("ended");
        assert_eq!(read_all(&mut workload).await, b"last words");
        assert!(!carrying.is_finished(), "one half is open");
        workload.write_all(b"an answer").await.expect("written");
        drop(workload);
        assert_eq!(read_all(&mut client).await, b"an answer");
        carrying.await.expect("no panic").1.expect("a clean end");
    }

    #[tokio::test]
    async fn who_takes_no_more_ends_both_directions_with_an_error() {
        let (mut client, workload, carrying) = carried(16);
        drop(workload);
        let _ = client.write_all(&bytes(64)).await;
        let (_, ended) = carrying.await.expect("no panic");
        assert_eq!(ended.expect_err("a failure").kind(), io::ErrorKind::BrokenPipe);
    }

    /// Takes part in a turn no longer than it may, however much there is to carry.
    #[tokio::test]
    async fn a_connection_that_never_runs_dry_gives_way_to_others() {
        let (mut endless, mut bottomless) = (
            tokio::io::join(tokio::io::repeat(1), tokio::io::sink()),
            tokio::io::join(tokio::io::empty(), tokio::io::sink()),
        );
        let mut carriage = Carriage::default();
        let turn = std::future::poll_fn(|context| {
            Poll::Ready(carriage.poll(context, &mut endless, &mut bottomless, None).is_pending())
        });
        assert!(turn.await, "it goes on");
        let carried = carriage.carried_up();
        let turn = TURN_BYTES_MAX as u64;
        assert!((turn..turn + READ_BYTES_MAX as u64).contains(&carried), "{carried}");
    }
}
