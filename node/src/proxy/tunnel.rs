//! Bytes in both directions until both ends are done: opaque TCP, and HTTP that switched to
//! another protocol.

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use socket2::SockRef;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::either::Either;
use tracing::debug;

use crate::patience::Allowance;
use crate::proxy::access::Admission;
use crate::proxy::body::{AnswerBody, AnswerGuard};
use crate::proxy::carry::Carriage;
use crate::proxy::failure::Flag;
use crate::proxy::gate::Held;
use crate::proxy::gathered::Gathered;
use crate::proxy::overdue::{BreakOff, Busy};
use crate::proxy::timer::{Moved, Timer};
use crate::proxy::workload::{Plain, WorkloadIo, tcp_under};
use crate::telemetry::exchange::Exchange;
use crate::upstream::greeting::Greeted;
use crate::upstream::hop::HopBody;

/// What one connection carries; dropped, it tells how much that was, however it ended.
struct Carrying<'a> {
    carriage: Carriage,
    exchange: &'a mut Exchange,
}

/// Copies in both directions, each side's end of stream passed on as such (half-close), until both
/// have ended or one has failed. `down` is the side that asked, `up` the one that serves.
pub(crate) async fn carry<D, U>(down: D, up: U, exchange: &mut Exchange) -> std::io::Result<()>
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    carry_noting(down, up, exchange, None).await
}

async fn carry_noting<D, U>(
    mut down: D,
    mut up: U,
    exchange: &mut Exchange,
    moved: Option<Moved>,
) -> std::io::Result<()>
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let mut carrying = Carrying { carriage: Carriage::default(), exchange };
    let carried = carrying.carriage.carry(&mut down, &mut up, moved.as_ref()).await;
    if carried.is_err() {
        carrying.exchange.set_flag(Flag::ConnectionEnded);
    }
    carried
}

impl Drop for Carrying<'_> {
    fn drop(&mut self) {
        self.exchange.add_request_bytes(self.carriage.carried_up());
        self.exchange.add_response_bytes(self.carriage.carried_down() as usize);
    }
}

/// [`carry`], for as long as something moves at least every `idle`.
pub(crate) async fn carry_moving<D, U>(
    down: D,
    up: U,
    exchange: &mut Exchange,
    idle: Option<Duration>,
) -> std::io::Result<()>
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let Some(idle) = idle else { return carry(down, up, exchange).await };
    let allowance = Allowance { idle: Some(idle), ..Allowance::default() };
    let mut timer = Timer::new(allowance, exchange.clock().now(), exchange.clock());
    let moved = timer.elsewhere();
    if let Ok(carried) = timer.limit(carry_noting(down, up, exchange, Some(moved))).await {
        return carried;
    }
    exchange.set_flag(Flag::TimedOut);
    Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "nothing has moved for longer than idle_timeout"))
}

/// [`carry`], for as long as the caller is let in.
pub(crate) async fn carry_admitted<D, U>(
    down: D,
    up: U,
    exchange: &mut Exchange,
    admission: &Admission,
) -> std::io::Result<()>
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let reason = tokio::select! {
        carried = carry(down, up, exchange) => return carried,
        reason = admission.revoked() => reason,
    };
    // That the instance was withdrawn is no word against the caller.
    exchange.set_flag(if admission.has_ended() { Flag::ConnectionEnded } else { Flag::Denied });
    Err(std::io::Error::new(std::io::ErrorKind::PermissionDenied, reason.as_str()))
}

/// [`carry`], for as long as the caller is let in, where that is asked, something moves, where that is,
/// and its connection is not cut off.
pub(crate) async fn carry_held<D, U>(
    down: D,
    up: U,
    exchange: &mut Exchange,
    admission: Option<&Admission>,
    idle: Option<Duration>,
    held: &Held,
) -> std::io::Result<()>
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let carried = async {
        match admission {
            Some(admission) => carry_admitted(down, up, exchange, admission).await,
            None => carry_moving(down, up, exchange, idle).await,
        }
    };
    tokio::select! {
        carried = carried => return carried,
        () = held.cut() => {}
    }
    exchange.set_flag(Flag::ConnectionEnded);
    Err(std::io::Error::other("cut off: memory is critical"))
}

/// The caller's half of a switch of protocols.
pub(crate) struct Switched {
    down: OnUpgrade,
    /// Its connection's work, where that lives on beside the tunnel.
    busy: Option<Arc<Busy>>,
}

impl Switched {
    /// That of whoever sent `request`.
    pub(crate) fn take<B>(request: &mut Request<B>) -> Self {
        let busy = request.extensions_mut().remove();
        Self { down: hyper::upgrade::on(request), busy }
    }

    /// The connection, once the switch is made; it counts as work as long as the other lives.
    pub(crate) async fn made(self) -> hyper::Result<(Upgraded, Option<Arc<Busy>>)> {
        Ok((self.down.await?, self.busy))
    }
}

/// Joins both halves of an exchange whose server agreed to switch protocols (101). `guard` lasts
/// as long as the tunnel.
pub(crate) fn join_upgrade(down: Switched, answer: &mut Response<HopBody>, guard: Box<AnswerGuard>) {
    let up = hyper::upgrade::on(answer);
    tokio::spawn(async move {
        let mut guard = guard;
        let (Ok((down, _busy)), Ok(up)) = tokio::join!(down.made(), up) else {
            return debug!("a switch of protocols was agreed and not made");
        };
        let (Some(exchange), Some(held)) = (&mut guard.exchange, &guard.connection) else { return };
        let (mut down, mut up) = (TokioIo::new(down), TokioIo::new(up));
        let admission = guard.admission.as_deref();
        let carried = carry_held(&mut down, &mut up, exchange, admission, guard.tunnel_idle, held).await;
        if let Err(error) = carried {
            debug!(%error, "switched connection broken");
            reset_upgraded(down.into_inner());
            reset_upgraded(up.into_inner());
        }
    });
}

/// Lets the other end see a reset, and not an orderly end, when the connection is dropped, or this
/// process is killed, before [`end`]. What the system still holds of it is lost then.
pub(crate) fn reset_unless_ended(stream: &TcpStream) {
    // A socket that is gone already needs no reset.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Both directions have ended: what the system still holds is sent.
pub(crate) fn end(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(None);
}

impl BreakOff for Plain {
    fn break_off(&self) {
        reset_plain_unless_ended(self);
    }
}

/// Whoever switched to it cannot be told.
impl BreakOff for TokioIo<Upgraded> {
    fn break_off(&self) {}
}

/// [`reset_unless_ended`] for a local program's connection. A Unix socket has no reset; its end is all
/// there is.
pub(crate) fn reset_plain_unless_ended(stream: &Plain) {
    if let Either::Left(tcp) = stream {
        reset_unless_ended(tcp);
    }
}

/// [`end`] for a local program's connection.
pub(crate) fn end_plain(stream: &Plain) {
    if let Either::Left(tcp) = stream {
        end(tcp);
    }
}

/// [`reset_unless_ended`] for a connection that HTTP has handed over. A mesh stream resets itself when dropped.
pub(crate) fn reset_upgraded(connection: Upgraded) {
    let connection = match auto::upgrade::downcast::<TokioIo<Gathered<Plain>>>(connection) {
        Ok(parts) => {
            let client = parts.io.inner().direct();
            return client.into_iter().for_each(reset_plain_unless_ended);
        }
        Err(other) => other,
    };
    if let Ok(parts) = connection.downcast::<TokioIo<Greeted<WorkloadIo>>>() {
        tcp_under(parts.io.inner().get_ref()).into_iter().for_each(reset_unless_ended);
    }
}

/// An empty body in place of one that a tunnel has taken over.
pub(crate) fn no_body() -> AnswerBody {
    AnswerBody::own(String::new())
}

#[cfg(test)]
mod tests {
    use starling_gossip::clock::Clock;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;
    use crate::authz::Allow;
    use crate::proxy::access::Access;
    use crate::proxy::gate::Gate;
    use crate::telemetry::exchange::{Direction, Meter};

    #[tokio::test]
    async fn a_tunnel_ends_when_its_caller_is_let_in_no_longer() {
        let access = Access::new("db".parse().expect("a name"), Allow::Anybody);
        let peer = "spiffe://acme/svc/web".parse().expect("an identity");
        let admission = access.admit(&peer).expect("let in");
        let ((mut client, down), (up, mut workload)) = (duplex(64), duplex(64));
        let carrying = tokio::spawn(async move {
            let mut exchange = Meter::new(Direction::Inbound, None, "").start(&Clock::System);
            carry_admitted(down, up, &mut exchange, &admission).await
        });
        client.write_all(b"hello").await.expect("written");
        let mut heard = [0; 5];
        workload.read_exact(&mut heard).await.expect("carried");
        access.replace(&Allow::Listed(Vec::new()));
        let error = carrying.await.expect("no panic").expect_err("cut off");
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    }

    #[tokio::test]
    async fn what_a_broken_connection_carried_is_counted() {
        let ((mut client, down), (up, mut workload)) = (duplex(64), duplex(64));
        let carrying = tokio::spawn(async move {
            let mut exchange = Meter::new(Direction::Outbound, None, "").start(&Clock::System);
            let broken = tokio::time::timeout(Duration::from_millis(200), carry(down, up, &mut exchange));
            assert!(broken.await.is_err(), "cut off");
            (exchange.request_bytes(), exchange.response_bytes())
        });
        client.write_all(b"hello").await.expect("written");
        workload.write_all(b"hi").await.expect("written");
        assert_eq!(carrying.await.expect("no panic"), (5, 2));
    }

    #[tokio::test]
    async fn a_tunnel_is_counted_with_its_connection_and_cut_off_like_one() {
        let gate = Gate::new(2);
        let (_first, second) = (gate.enter(), gate.enter().expect("room"));
        let held = Held::new(second, None);
        let ((mut client, down), (up, mut workload)) = (duplex(64), duplex(64));
        let carrying = tokio::spawn(async move {
            let mut exchange = Meter::new(Direction::Outbound, None, "").start(&Clock::System);
            carry_held(down, up, &mut exchange, None, None, &held).await
        });
        client.write_all(b"hello").await.expect("written");
        let mut heard = [0; 5];
        workload.read_exact(&mut heard).await.expect("carried");
        assert_eq!(gate.under_way(), 2);
        assert!(gate.cut_half(), "it waits to be cut off");
        assert!(carrying.await.expect("no panic").is_err());
        assert_eq!(gate.under_way(), 1);
    }
}
