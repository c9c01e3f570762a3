//! Answering those who dial us, within bounds.
//!
//! Who may begin a handshake is decided by counting only; who they are is found out in it.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use quinn::{ConnectionError, Incoming, VarInt};
use rustls::crypto::CryptoProvider;

use crate::connection::Connection;
use crate::credentials::Credentials;
use crate::dial::{authenticated, canonical};
use crate::header::StreamKind;
use crate::limits::{
    CONNECTIONS_MAX, CONNECTIONS_PER_SOURCE_MAX, DIAL_TIMEOUT, HALF_OPEN_MAX, HALF_OPEN_UNPROVED_MAX,
};
use crate::pool::Pool;
use crate::supervise::{close_code, say};
use crate::telemetry::{self, Direction};
use crate::tls;
use crate::verify::Verdict;

/// Takes in connections until the endpoint is closed.
pub(crate) struct Acceptor {
    pub(crate) pool: Pool,
    pub(crate) credentials: Credentials,
    pub(crate) provider: Arc<CryptoProvider>,
    pub(crate) config: quinn::ServerConfig,
    pub(crate) half_open: Arc<AtomicUsize>,
}

/// What to do with somebody's first packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admission {
    /// Shake hands.
    Accept,
    /// Have it prove its address first (RFC 9000, section 8.1.2).
    Retry,
    /// Say no.
    Refuse,
}

/// Who there is already, when somebody knocks.
#[derive(Clone, Copy, Debug)]
struct Occupancy {
    half_open: usize,
    connections: usize,
    from_source: usize,
}

impl Acceptor {
    pub(crate) async fn run(self, endpoint: quinn::Endpoint) {
        while let Some(incoming) = endpoint.accept().await {
            let (connections, from_source) = self.pool.occupancy(source(&incoming));
            let half_open = self.half_open.load(Ordering::Relaxed);
            let occupancy = Occupancy { half_open, connections, from_source };
            match admit(occupancy, incoming.remote_address_validated()) {
                Admission::Accept => self.begin(incoming),
                Admission::Retry => {
                    telemetry::handshake(Direction::Inbound, "retry");
                    // Fails only for a source that proved itself, and this one did not.
                    let _ = incoming.retry();
                }
                Admission::Refuse => {
                    telemetry::handshake(Direction::Inbound, "overloaded");
                    incoming.refuse();
                }
            }
        }
    }

    fn begin(&self, incoming: Incoming) {
        let half_open = HalfOpen::new(&self.half_open);
        let source = source(&incoming);
        let (crypto, verdict) = tls::quic_server(&self.provider, &self.credentials);
        let mut config = self.config.clone();
        config.crypto = crypto;
        let (pool, credentials) = (self.pool.clone(), self.credentials.clone());
        tokio::spawn(async move {
            let shaken = shake_hands(incoming, config, &verdict, &credentials).await;
            drop(half_open);
            let outcome = match shaken {
                Ok(connection) => welcome(&pool, connection, source),
                Err(outcome) => outcome,
            };
            telemetry::handshake(Direction::Inbound, outcome);
        });
    }
}

/// Decides without looking at more than counts.
fn admit(occupancy: Occupancy, proved: bool) -> Admission {
    if occupancy.half_open >= HALF_OPEN_MAX
        || occupancy.connections >= CONNECTIONS_MAX
        || occupancy.from_source >= CONNECTIONS_PER_SOURCE_MAX
    {
        Admission::Refuse
    } else if occupancy.half_open >= HALF_OPEN_UNPROVED_MAX && !proved {
        Admission::Retry
    } else {
        Admission::Accept
    }
}

/// The connection, or the outcome's name in metrics.
async fn shake_hands(
    incoming: Incoming,
    config: quinn::ServerConfig,
    verdict: &Verdict,
    credentials: &Credentials,
) -> Result<Connection, &'static str> {
    let address = canonical(incoming.remote_address());
    let connecting = incoming.accept_with(Arc::new(config)).map_err(|_| "malformed")?;
    match tokio::time::timeout(DIAL_TIMEOUT, connecting).await {
        Ok(Ok(quinn)) => authenticated(quinn, verdict, credentials).ok_or("no_certificate"),
        Ok(Err(error)) => {
            let why = match verdict.get() {
                Some(Err(refusal)) => refusal.to_string(),
                _ => error.to_string(),
            };
            tracing::debug!(%address, %why, "handshake failed");
            Err(match (verdict.get(), error) {
                (Some(Err(_)), _) => "refused_identity",
                (_, ConnectionError::ConnectionClosed(_)) => "refused_by_peer",
                (_, ConnectionError::TransportError(_)) => "tls_failed",
                _ => "lost",
            })
        }
        Err(_) => Err("timed_out"),
    }
}

/// Takes the connection in, unless others were quicker to fill the last place.
fn welcome(pool: &Pool, connection: Connection, source: IpAddr) -> &'static str {
    let (connections, from_source) = pool.occupancy(source);
    if connections >= CONNECTIONS_MAX || from_source >= CONNECTIONS_PER_SOURCE_MAX {
        connection.quinn().close(VarInt::from_u32(close_code::OVERLOADED), b"too many connections");
        return "overloaded";
    }
    pool.adopt(connection.clone());
    tokio::spawn(say(connection, StreamKind::Welcome));
    "ok"
}

fn source(incoming: &Incoming) -> IpAddr {
    canonical(incoming.remote_address()).ip()
}

/// One handshake under way, counted while it lives.
struct HalfOpen(Arc<AtomicUsize>);

impl HalfOpen {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for HalfOpen {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_strangers_must_prove_their_address_and_too_many_are_refused() {
        let free = Occupancy { half_open: 0, connections: 0, from_source: 0 };
        assert_eq!(admit(free, false), Admission::Accept);
        let pressed = Occupancy { half_open: HALF_OPEN_UNPROVED_MAX, ..free };
        assert_eq!(admit(pressed, false), Admission::Retry);
        assert_eq!(admit(pressed, true), Admission::Accept);
        for full in [
            Occupancy { half_open: HALF_OPEN_MAX, ..free },
            Occupancy { connections: CONNECTIONS_MAX, ..free },
            Occupancy { from_source: CONNECTIONS_PER_SOURCE_MAX, ..free },
        ] {
            assert_eq!(admit(full, true), Admission::Refuse);
        }
    }
}
