//! Local HTTP connections that hold a place and do nothing with it: a request's head that does not
//! come to its end, silence for an hour, and a client that has ended its half and may be gone.
//!
//! A client that says no more may still listen (`nc -N` and simple programs do), and one that has closed
//! its connection looks the same until it is written to. hyper drops the request of either at once, or, with `half_close`, waits for the answer
//! however long the workload takes, on which the work of clients that gave up would pile up. So hyper
//! keeps its default and hears of the end late: when the answer has gone, or [`HALF_CLOSED_LOOKS_MAX`]
//! looks later. A body cut short is told as late.
//!
//! One look a second at all of them, so that a request costs two stores and no timer. It closes
//! nothing; whoever serves the connection waits for [`Watch::overdue`]. Bodies may be as slow as
//! they like: what they hold is bounded by windows.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use starling_gossip::clock::Clock;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use crate::proxy::one_piece;

/// One look at all connections.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// Looks that a head may take from its first byte: ten seconds. Heads fit a few packets.
const HEAD_LOOKS_MAX: u64 = 10;

/// Looks without a request before a connection goes: an hour, as in Envoy. Sooner would race with
/// clients that keep connections for long.
const IDLE_LOOKS_MAX: u64 = 3600;

/// Looks that a request under way has left once its client says no more: five seconds. Most answers
/// come sooner, and a client that has gone costs its workload no more than that.
const HALF_CLOSED_LOOKS_MAX: u64 = 5;

/// How a cleartext HTTP/2 connection begins (RFC 9113, section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// It began otherwise.
const NO_PREFACE: usize = usize::MAX;

/// What is wrong with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Overdue {
    /// It began a request and does not go on.
    Head,
    /// It has asked nothing for long.
    Idle,
}

/// All watched connections of a node; cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Watches {
    shared: Arc<All>,
}

#[derive(Default)]
struct All {
    /// Looks so far, the clock of everything here.
    looks: AtomicU64,
    connections: Mutex<BTreeMap<u64, Arc<State>>>,
    next: AtomicU64,
}

/// One connection while it is watched.
pub(crate) struct Watch {
    number: u64,
    state: Arc<State>,
}

/// Counts a request of a connection as long as it lives.
pub(crate) struct Busy {
    state: Arc<State>,
    /// The end of the connection is the end of its answer, as HTTP/1.0 has it.
    pub(crate) ends_with_connection: bool,
}

/// A connection that can end as broken, so that what it carried does not look whole.
pub(crate) trait BreakOff {
    /// It ends so when it is dropped.
    fn break_off(&self);
}

struct State {
    /// It is one of these, as long as its [`Watch`] lives.
    all: Arc<All>,
    /// The look before which the head under way began, plus one; 0 without one.
    head_since: AtomicU64,
    idle_since: AtomicU64,
    requests: AtomicUsize,
    /// Bytes of [`HTTP2_PREFACE`] that it began with so far, or [`NO_PREFACE`].
    preface_bytes: AtomicUsize,
    is_overdue: Notify,
    /// The look before which the client ended its half, plus one; 0 before.
    ended_since: AtomicU64,
    /// Who reads on, to be told of that end.
    reader: Mutex<Option<Waker>>,
    /// An answer whose end is the connection's has not come to its end.
    is_broken: AtomicBool,
}

/// A connection's bytes, seen as they come.
pub(crate) struct Watched<S: BreakOff> {
    io: S,
    state: Arc<State>,
}

impl Watches {
    /// Looks at all connections for as long as it is polled.
    pub(crate) async fn look(self, clock: Clock) {
        loop {
            tokio::time::sleep_until(clock.next_beat(LOOK_PERIOD)).await;
            let now = self.shared.looks.fetch_add(1, Ordering::Relaxed) + 1;
            for state in self.shared.lock().values().filter(|state| state.overdue(now).is_some()) {
                state.is_overdue.notify_one();
            }
            self.shared.lock().values().for_each(|state| state.wake_reader());
        }
    }

    /// Watches the connection `io`.
    pub(crate) fn watch<S: BreakOff>(&self, io: S) -> (Watched<S>, Watch) {
        let all = self.shared.clone();
        let number = all.next.fetch_add(1, Ordering::Relaxed);
        let state = Arc::new(State::new(all));
        state.all.lock().insert(number, state.clone());
        (Watched { io, state: state.clone() }, Watch { number, state })
    }
}

impl All {
    /// So many so far.
    fn looks(&self) -> u64 {
        self.looks.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<State>>> {
        // Nothing panics while it is held.
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Of a connection that is idle since the last look at `all`.
    fn new(all: Arc<All>) -> Self {
        Self {
            idle_since: AtomicU64::new(all.looks()),
            all,
            head_since: AtomicU64::default(),
            requests: AtomicUsize::default(),
            preface_bytes: AtomicUsize::default(),
            is_overdue: Notify::default(),
            ended_since: AtomicU64::default(),
            reader: Mutex::default(),
            is_broken: AtomicBool::default(),
        }
    }

    fn overdue(&self, now: u64) -> Option<Overdue> {
        if self.requests.load(Ordering::Relaxed) > 0 {
            return None;
        }
        let head_since = self.head_since.load(Ordering::Relaxed);
        if head_since > 0 && now > head_since - 1 + HEAD_LOOKS_MAX {
            return Some(Overdue::Head);
        }
        let idle_since = self.idle_since.load(Ordering::Relaxed);
        (now > idle_since + IDLE_LOOKS_MAX).then_some(Overdue::Idle)
    }

    /// The client has ended its half: whether whoever reads is told so yet.
    fn may_hear_end(&self, now: u64) -> bool {
        if self.requests.load(Ordering::Relaxed) == 0 || self.speaks_http2() {
            return true;
        }
        let first = self.ended_since.compare_exchange(0, now + 1, Ordering::Relaxed, Ordering::Relaxed);
        first.is_err_and(|since| now > since - 1 + HALF_CLOSED_LOOKS_MAX)
    }

    /// Whoever was kept from hearing of the client's end asks again.
    fn wake_reader(&self) {
        if self.ended_since.load(Ordering::Relaxed) > 0
            && let Some(reader) = self.reader.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            reader.wake();
        }
    }

    fn speaks_http2(&self) -> bool {
        self.preface_bytes.load(Ordering::Relaxed) == HTTP2_PREFACE.len()
    }

    fn handle_bytes(&self, bytes: &[u8], now: u64) {
        if self.is_http2_with(bytes) {
            // Its requests have no heads of their own bytes, and it may wait long for the first.
            return self.head_since.store(0, Ordering::Relaxed);
        }
        if self.requests.load(Ordering::Relaxed) == 0 && self.head_since.load(Ordering::Relaxed) == 0 {
            self.head_since.store(now + 1, Ordering::Relaxed);
        }
    }

    /// Whether it speaks HTTP/2, by its first bytes, however many reads they take.
    fn is_http2_with(&self, bytes: &[u8]) -> bool {
        let before = self.preface_bytes.load(Ordering::Relaxed);
        let Some(rest) = HTTP2_PREFACE.get(before..).filter(|rest| !rest.is_empty()) else {
            return before != NO_PREFACE;
        };
        let count = rest.len().min(bytes.len());
        let after = if rest[..count] == bytes[..count] { before + count } else { NO_PREFACE };
        self.preface_bytes.store(after, Ordering::Relaxed);
        after == HTTP2_PREFACE.len()
    }
}

impl Watch {
    /// A request's head has come to its end.
    pub(crate) fn begin_request(&self) -> Busy {
        self.state.requests.fetch_add(1, Ordering::Relaxed);
        self.state.head_since.store(0, Ordering::Relaxed);
        Busy { state: self.state.clone(), ends_with_connection: false }
    }

    /// Whether a request is under way.
    pub(crate) fn is_busy(&self) -> bool {
        self.state.requests.load(Ordering::Relaxed) > 0
    }

    /// Resolves when the connection should be closed, and says why.
    pub(crate) async fn overdue(&self) -> Overdue {
        loop {
            self.state.is_overdue.notified().await;
            if let Some(overdue) = self.state.overdue(self.state.all.looks()) {
                return overdue;
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.state.all.lock().remove(&self.number);
    }
}

impl Busy {
    /// The request's answer does not come to its end.
    pub(crate) fn handle_broken_answer(&self) {
        if self.ends_with_connection {
            self.state.is_broken.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.state.idle_since.store(self.state.all.looks(), Ordering::Relaxed);
        self.state.requests.fetch_sub(1, Ordering::Relaxed);
        self.state.wake_reader();
    }
}

impl<S: BreakOff> Watched<S> {
    /// The connection itself.
    pub(crate) fn get_ref(&self) -> &S {
        &self.io
    }

    /// Whether it has begun like HTTP/2. Of one that does so, that is known before anything is written.
    pub(crate) fn speaks_http2(&self) -> bool {
        self.state.speaks_http2()
    }
}

impl<S: BreakOff> Drop for Watched<S> {
    fn drop(&mut self) {
        if self.state.is_broken.load(Ordering::Relaxed) {
            self.io.break_off();
        }
    }
}

impl<S: AsyncRead + BreakOff + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let has_room = buffer.remaining() > 0;
        ready!(Pin::new(&mut self.io).poll_read(context, buffer))?;
        let bytes = &buffer.filled()[before..];
        let now = self.state.all.looks();
        if !bytes.is_empty() {
            self.state.handle_bytes(bytes, now);
        } else if has_room && !self.state.may_hear_end(now) {
            let mut reader = self.state.reader.lock().unwrap_or_else(PoisonError::into_inner);
            *reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + BreakOff + Unpin> AsyncWrite for Watched<S> {
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
    use super::*;

    impl BreakOff for () {
        fn break_off(&self) {}
    }

    #[test]
    fn a_head_that_does_not_end_is_overdue_and_a_request_is_not() {
        let watches = Watches::default();
        let (_io, watch) = watches.watch(());
        let state = watch.state.clone();
        assert_eq!(state.overdue(HEAD_LOOKS_MAX + 5), None, "nothing has begun");
        state.handle_bytes(b"GET / HT", 3);
        state.handle_bytes(b"T", 8);
        assert_eq!(state.overdue(3 + HEAD_LOOKS_MAX), None);
        assert_eq!(state.overdue(4 + HEAD_LOOKS_MAX), Some(Overdue::Head));
        let busy = watch.begin_request();
        state.handle_bytes(b"a slow body", 50);
        assert_eq!(state.overdue(50 + IDLE_LOOKS_MAX * 2), None, "bodies may be slow");
        drop(busy);
        assert_eq!(state.overdue(HEAD_LOOKS_MAX * 3), None, "it waits for its next request");
        state.handle_bytes(b"G", 60);
        assert_eq!(state.overdue(61 + HEAD_LOOKS_MAX), Some(Overdue::Head));
    }

    #[test]
    fn who_comes_late_has_as_long_as_who_came_early() {
        let watches = Watches::default();
        let now = 2 * IDLE_LOOKS_MAX;
        watches.shared.looks.store(now, Ordering::Relaxed);
        let (_io, watch) = watches.watch(());
        assert_eq!(watch.state.overdue(now + IDLE_LOOKS_MAX), None);
        assert_eq!(watch.state.overdue(now + IDLE_LOOKS_MAX + 1), Some(Overdue::Idle));
    }

    #[test]
    fn a_body_that_outlives_its_answer_is_no_head() {
        let watches = Watches::default();
        let (_io, watch) = watches.watch(());
        let (busy, upload) = (watch.begin_request(), watch.begin_request());
        drop(busy);
        watch.state.handle_bytes(b"more of it", 7);
        assert_eq!(watch.state.overdue(7 + IDLE_LOOKS_MAX * 2), None);
        drop(upload);
        assert_eq!(watch.state.overdue(9 + HEAD_LOOKS_MAX), None, "it waits for its next request");
    }

    #[test]
    fn an_http2_connection_may_wait_for_its_first_request() {
        let watches = Watches::default();
        let (_io, watch) = watches.watch(());
        watch.state.handle_bytes(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0);
        assert_eq!(watch.state.overdue(IDLE_LOOKS_MAX), None);
        assert_eq!(watch.state.overdue(IDLE_LOOKS_MAX + 1), Some(Overdue::Idle));
    }

    #[test]
    fn an_http2_connection_may_begin_in_pieces() {
        let watches = Watches::default();
        let (_io, watch) = watches.watch(());
        watch.state.handle_bytes(b"PRI * HT", 0);
        assert_eq!(watch.state.overdue(HEAD_LOOKS_MAX + 1), Some(Overdue::Head), "it does not go on");
        watch.state.handle_bytes(b"TP/2.0\r\n\r\nSM", 1);
        watch.state.handle_bytes(b"\r\n\r\n", 2);
        assert_eq!(watch.state.overdue(IDLE_LOOKS_MAX), None);
        let (_io, watch) = watches.watch(());
        watch.state.handle_bytes(b"PR", 0);
        watch.state.handle_bytes(b"OPFIND / HTTP/1.1", 1);
        assert_eq!(watch.state.overdue(HEAD_LOOKS_MAX + 1), Some(Overdue::Head));
    }

    #[test]
    fn a_client_that_says_no_more_is_waited_for_a_while() {
        let watches = Watches::default();
        let (_io, watch) = watches.watch(());
        assert!(watch.state.may_hear_end(0), "nothing is under way");
        let busy = watch.begin_request();
        assert!(!watch.state.may_hear_end(3));
        assert!(!watch.state.may_hear_end(3 + HALF_CLOSED_LOOKS_MAX));
        assert!(watch.state.may_hear_end(4 + HALF_CLOSED_LOOKS_MAX), "it may be gone");
        drop(busy);
        assert!(watch.state.may_hear_end(4), "it has its answer");
        let (_io, watch) = watches.watch(());
        watch.state.handle_bytes(HTTP2_PREFACE, 0);
        let _busy = watch.begin_request();
        assert!(watch.state.may_hear_end(0), "HTTP/2 has no halves");
    }

    #[test]
    fn a_connection_is_watched_as_long_as_it_lives() {
        let watches = Watches::default();
        let (_io, watch) = watches.watch(());
        assert_eq!(watches.shared.lock().len(), 1);
        drop(watch);
        assert!(watches.shared.lock().is_empty());
    }
}
