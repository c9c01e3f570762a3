//! QUIC's socket and timers upon tokio, for a process that mostly waits: quinn's own serve, and wake it several times
//! as often as it has anything to do, which is most of what an idle node costs.
//!
//! A socket's room is asked for when there was none, not whenever a packet has left. A timer that is put off for long
//! is begun anew; tokio would keep the earlier time and wake for nothing.

use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, UdpPoller};
use starling_gossip::clock::Clock;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Sleep, sleep_until};

/// A timer put off by less than this keeps its place: under load that happens with each packet, and has to be cheap.
const PUT_OFF_LONG: Duration = Duration::from_millis(200);

/// Errors in a row that a socket may report of packets sent; beyond that it is broken, and so is the endpoint.
const RECEIVE_ERRORS_MAX: u32 = 1_000;

/// What quinn runs on.
#[derive(Debug)]
pub(crate) struct Waiting;

#[derive(Debug)]
struct Timer(Pin<Box<Sleep>>);

#[derive(Debug)]
struct Socket {
    state: UdpSocketState,
    socket: AsyncFd<UdpSocket>,
    outlet: Arc<Outlet>,
}

/// The socket as a sender sees it.
#[derive(Debug)]
struct Outlet {
    /// By a descriptor of its own, to wait for room with.
    socket: Arc<UdpSocket>,
    is_full: AtomicBool,
    /// There while somebody waits.
    room: Mutex<Weak<AsyncFd<Arc<UdpSocket>>>>,
}

/// One connection's wait for room.
struct Room {
    outlet: Arc<Outlet>,
    waits: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>>,
}

impl Runtime for Waiting {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        Box::pin(Timer(Box::pin(sleep_until(at.into()))))
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        tokio::spawn(future);
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        socket.set_nonblocking(true)?;
        Ok(Arc::new(Socket {
            state: UdpSocketState::new((&socket).into())?,
            outlet: Arc::new(Outlet::new(socket.try_clone()?)),
            socket: register(socket, Interest::READABLE)?,
        }))
    }

    fn now(&self) -> Instant {
        Clock::System.now().into_std()
    }
}

impl AsyncTimer for Timer {
    fn reset(mut self: Pin<&mut Self>, at: Instant) {
        let at = at.into();
        if at > self.0.deadline() + PUT_OFF_LONG {
            self.0.set(sleep_until(at));
        } else {
            self.0.as_mut().reset(at);
        }
    }

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        Future::poll(self.0.as_mut(), context)
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Room { outlet: self.outlet.clone(), waits: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.outlet.try_send(|socket| self.state.send(socket.into(), transmit))
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut errors = 0;
        loop {
            let mut guard = ready!(self.socket.poll_read_ready(context))?;
            let received = guard.try_io(|socket| self.state.recv(socket.get_ref().into(), buffers, meta));
            match received {
                Ok(Ok(count)) => return Poll::Ready(Ok(count)),
                // An error is that of a packet sent, which its own connection notices; but not so many.
                Ok(Err(error)) if errors == RECEIVE_ERRORS_MAX => return Poll::Ready(Err(error)),
                Ok(Err(_)) => errors += 1,
                // Nothing is there after all; the next look waits for it.
                Err(_would_block) => {}
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.get_ref().local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }
}

impl Outlet {
    fn new(socket: UdpSocket) -> Self {
        Self { socket: Arc::new(socket), is_full: AtomicBool::new(false), room: Mutex::default() }
    }

    fn try_send(&self, send: impl FnOnce(&UdpSocket) -> io::Result<()>) -> io::Result<()> {
        // While somebody waits, what is known of the room has to stay true for all.
        let room = self.room().upgrade();
        let sent = match room {
            Some(room) => room.try_io(Interest::WRITABLE, |socket| send(socket)),
            None => send(&self.socket),
        };
        if sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            self.is_full.store(true, Ordering::Relaxed);
        }
        sent
    }

    /// Ends when there is room again; all who wait share one registration.
    fn wait_for_room(&self) -> io::Result<impl Future<Output = io::Result<()>> + Send + Sync + use<>> {
        let mut shared = self.room();
        let room = match shared.upgrade() {
            Some(room) => room,
            None => {
                let room = Arc::new(register(self.socket.clone(), Interest::WRITABLE)?);
                *shared = Arc::downgrade(&room);
                room
            }
        };
        Ok(async move { room.writable().await.map(|mut guard| guard.retain_ready()) })
    }

    fn room(&self) -> MutexGuard<'_, Weak<AsyncFd<Arc<UdpSocket>>>> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[expect(
    deprecated,
    reason = "what replaces it is unsafe to call, for types whose descriptor may change; a socket's does not"
)]
fn register<T: AsRawFd>(socket: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(socket, interest)
}

impl UdpPoller for Room {
    fn poll_writable(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { outlet, waits } = &mut *self;
        let wait = match waits {
            Some(wait) => wait,
            None if !outlet.is_full.load(Ordering::Relaxed) => return Poll::Ready(Ok(())),
            None => waits.insert(Box::pin(outlet.wait_for_room()?)),
        };
        let result = ready!(wait.as_mut().poll(context));
        *waits = None;
        outlet.is_full.store(false, Ordering::Relaxed);
        Poll::Ready(result)
    }
}

impl std::fmt::Debug for Room {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Room").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// Sends until there is no room; says how many that took.
    fn fill(outlet: &Outlet) -> usize {
        let is_sent = |_: &usize| match outlet.try_send(|socket| socket.send(&[0; 1_000]).map(drop)) {
            Ok(()) => true,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                false
            }
        };
        (0..100_000).take_while(is_sent).count()
    }

    #[tokio::test]
    async fn all_who_found_a_socket_full_hear_of_room_again_and_again() {
        // Loopback always has room for UDP; the kernel's own sockets have not.
        let (own, peer) = UnixDatagram::pair().expect("two sockets");
        own.set_nonblocking(true).expect("it can");
        let outlet = Arc::new(Outlet::new(OwnedFd::from(own).into()));
        let mut all: Vec<_> =
            (0..2).map(|_| Box::pin(Room { outlet: outlet.clone(), waits: None })).collect();
        for round in 0..3 {
            let sent = fill(&outlet);
            assert!((1..10_000).contains(&sent), "{sent}");
            for room in &mut all {
                let now = poll_fn(|context| Poll::Ready(room.as_mut().poll_writable(context))).await;
                assert!(now.is_pending(), "round {round}");
            }
            for _ in 0..sent {
                peer.recv(&mut [0; 2_000]).expect("what was sent");
            }
            for room in &mut all {
                let there = poll_fn(|context| room.as_mut().poll_writable(context));
                tokio::time::timeout(PATIENCE, there).await.expect("room").expect("no error");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_ends_when_it_was_last_told_to() {
        let (start, millis) = (Clock::System.now(), Duration::from_millis);
        let mut timer = Waiting.new_timer((start + millis(50)).into_std());
        for later in [60, 10_000, 9_990, 40] {
            let at = start + millis(later);
            timer.as_mut().reset(at.into_std());
            let now = poll_fn(|context| Poll::Ready(timer.as_mut().poll(context))).await;
            assert!(now.is_pending(), "{later}");
        }
        poll_fn(|context| timer.as_mut().poll(context)).await;
        assert_eq!(Clock::System.now() - start, millis(40));
    }
}
