//! Answering those who dial us, within bounds.
//!
//! Who may begin a handshake, [`crate::admission`] decides by counting only; who they are is found
//! out in it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quinn::{ConnectionError, Incoming};
use rustls::crypto::CryptoProvider;

use crate::admission::{Admission, HalfOpen, admit, source};
use crate::connection::Connection;
use crate::credentials::Credentials;
use crate::dial::{authenticated, canonical};
use crate::endpoint::Transport;
use crate::header::StreamKind;
use crate::limits::{DIAL_TIMEOUT_MAX, HALF_OPEN_FAILED_LINGER};
use crate::pool::{NotAdopted, Pool};
use crate::supervise::{SHUNNED_REASON, close_code, say};
use crate::telemetry::{self, Direction};
use crate::tls;
use crate::verify::Verdict;

/// Takes in connections until the endpoint is closed.
pub(crate) struct Acceptor {
    pub(crate) pool: Pool,
    pub(crate) credentials: Credentials,
    pub(crate) provider: Arc<CryptoProvider>,
    pub(crate) config: quinn::ServerConfig,
    pub(crate) transport: Transport,
    pub(crate) under_way: UnderWay,
}

impl Acceptor {
    pub(crate) async fn run(self, endpoint: quinn::Endpoint) {
        while let Some(incoming) = endpoint.accept().await {
            let ip = incoming.remote_address().ip();
            let occupancy = self.pool.occupancy(ip, None);
            match admit(self.under_way.half_open(ip), occupancy, incoming.remote_address_validated()) {
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
        let handshake = self.under_way.begin(&incoming);
        let (crypto, verdict) = tls::quic_server(&self.provider, &self.credentials);
        let mut config = self.config.clone();
        config.crypto = crypto;
        config.transport_config(self.transport.to(incoming.remote_address()));
        let (pool, credentials) = (self.pool.clone(), self.credentials.clone());
        tokio::spawn(async move {
            let shaken = shake_hands(incoming, config, &verdict, &credentials).await;
            let welcomed = shaken.and_then(|connection| welcome(&pool, connection));
            telemetry::handshake(Direction::Inbound, welcomed.err().unwrap_or("ok"));
            // A pool holds the socket, which must not outlive its endpoint's end.
            drop(pool);
            if welcomed.is_err() {
                // Its memory is not free yet, and who fails fast must not begin more for it.
                tokio::time::sleep(HALF_OPEN_FAILED_LINGER).await;
            }
            drop(handshake);
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
    match tokio::time::timeout(DIAL_TIMEOUT_MAX, connecting).await {
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

/// Takes the connection in, or says why not, to the peer in words and to us as the outcome's name.
fn welcome(pool: &Pool, connection: Connection) -> Result<(), &'static str> {
    match pool.adopt(&connection) {
        Ok(()) => {
            tokio::spawn(say(connection, StreamKind::Welcome));
            Ok(())
        }
        Err(NotAdopted::Overloaded) => {
            connection.close(close_code::OVERLOADED, "too many connections");
            Err("overloaded")
        }
        Err(NotAdopted::Shunned) => {
            connection.close(close_code::SHUNNED, SHUNNED_REASON);
            Err("shunned")
        }
    }
}

/// Handshakes under way.
#[derive(Clone, Default)]
pub(crate) struct UnderWay {
    counts: Arc<Mutex<Counts>>,
}

/// By source only those who have proved that they receive there.
#[derive(Default)]
struct Counts {
    all: usize,
    by_source: BTreeMap<SocketAddr, usize>,
}

/// One handshake under way, counted while it lives.
struct Handshake {
    under_way: UnderWay,
    proved: Option<SocketAddr>,
}

impl UnderWay {
    fn half_open(&self, ip: IpAddr) -> HalfOpen {
        let counts = self.counts();
        let from_source = counts.by_source.get(source(ip).start()).copied().unwrap_or_default();
        HalfOpen { all: counts.all, from_source }
    }

    fn begin(&self, incoming: &Incoming) -> Handshake {
        let ip = incoming.remote_address().ip();
        let proved = incoming.remote_address_validated().then(|| *source(ip).start());
        let mut counts = self.counts();
        counts.all += 1;
        if let Some(source) = proved {
            *counts.by_source.entry(source).or_default() += 1;
        }
        Handshake { under_way: self.clone(), proved }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut counts = self.under_way.counts();
        counts.all -= 1;
        let Some(source) = self.proved else { return };
        if let Some(count) = counts.by_source.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                counts.by_source.remove(&source);
            }
        }
    }
}
