//! Answering those who dial us, within bounds.
//!
//! Who may begin a handshake, [`crate::admission`] decides by counting only; who they are is found
//! out in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use quinn::{ConnectionError, Incoming, VarInt};
use rustls::crypto::CryptoProvider;

use crate::admission::{Admission, admit};
use crate::connection::Connection;
use crate::credentials::Credentials;
use crate::dial::{authenticated, canonical};
use crate::header::StreamKind;
use crate::limits::DIAL_TIMEOUT;
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

impl Acceptor {
    pub(crate) async fn run(self, endpoint: quinn::Endpoint) {
        while let Some(incoming) = endpoint.accept().await {
            let occupancy = self.pool.occupancy(incoming.remote_address().ip(), None);
            let half_open = self.half_open.load(Ordering::Relaxed);
            match admit(half_open, occupancy, incoming.remote_address_validated()) {
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
        let (crypto, verdict) = tls::quic_server(&self.provider, &self.credentials);
        let mut config = self.config.clone();
        config.crypto = crypto;
        let (pool, credentials) = (self.pool.clone(), self.credentials.clone());
        tokio::spawn(async move {
            let shaken = shake_hands(incoming, config, &verdict, &credentials).await;
            drop(half_open);
            let outcome = match shaken {
                Ok(connection) => welcome(&pool, connection),
                Err(outcome) => outcome,
            };
            telemetry::handshake(Direction::Inbound, outcome);
        });
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

/// Takes the connection in, unless there is no room for it.
fn welcome(pool: &Pool, connection: Connection) -> &'static str {
    if !pool.adopt(&connection) {
        connection.quinn().close(VarInt::from_u32(close_code::OVERLOADED), b"too many connections");
        return "overloaded";
    }
    tokio::spawn(say(connection, StreamKind::Welcome));
    "ok"
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
