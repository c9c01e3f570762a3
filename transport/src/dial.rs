//! One dial: from an address to an authenticated connection whose peer accepted us, or to the
//! reason why not.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::time::Duration;

use quinn::{ConnectionError, VarInt};
use rustls::crypto::CryptoProvider;

use crate::connection::{CLOSED, Connection, PeerIdentity, WELCOMED};
use crate::credentials::Credentials;
use crate::endpoint::Transport;
use crate::limits::IDLE_TIMEOUT;
use crate::supervise::close_code;
use crate::tls;
use crate::verify::{Expected, IdentityRefusal, Verdict};

/// Why there is no connection. Nothing of ours changed but the address's backoff.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// Our own certificate is of no use; no packet was sent.
    #[error("our own certificate has expired; check why it was not rotated")]
    BadCredentials,
    /// Whoever answered is not whom we want.
    #[error("{address} proved no acceptable identity: {why}")]
    RefusedIdentity {
        /// Who answered.
        address: SocketAddr,
        /// What was wrong.
        why: IdentityRefusal,
    },
    /// The peer does not want us.
    #[error("{address} refused us: {why}; its trust bundle may lack our root, or its clock be wrong")]
    RefusedByPeer {
        /// Who refused.
        address: SocketAddr,
        /// What it says.
        why: String,
    },
    /// Nobody answered in time.
    #[error("{address} did not answer within {} s", patience.as_secs())]
    TimedOut {
        /// Who did not.
        address: SocketAddr,
        /// How long it had.
        patience: Duration,
    },
    /// Dials failed a moment ago; no packet was sent.
    #[error(
        "{address} is not dialled for another {retry_in:?} after {failures} failed attempts; the last: {last}"
    )]
    BackingOff {
        /// Which address.
        address: SocketAddr,
        /// When it will be again.
        retry_in: Duration,
        /// Failures in a row.
        failures: u32,
        /// What happened last.
        last: Box<ConnectError>,
    },
    /// We have nothing to do with whoever is there, as the gossip core has decided.
    #[error("{address} is shunned for another {retry_in:?}: it sent more than it may")]
    Shunned {
        /// Which address.
        address: SocketAddr,
        /// When it will be dialled again.
        retry_in: Duration,
    },
    /// The address cannot be dialled from here.
    #[error("{address} cannot be reached: {why}")]
    Unreachable {
        /// Which address.
        address: SocketAddr,
        /// What the system or the peer says.
        why: String,
    },
    /// A limit of ours is reached.
    #[error("too many connections or dials already")]
    Overloaded,
    /// The endpoint is closed.
    #[error("this node is stopping")]
    Closed,
}

/// What every dial needs.
#[derive(Clone)]
pub(crate) struct Dialler {
    pub(crate) endpoint: quinn::Endpoint,
    pub(crate) provider: Arc<CryptoProvider>,
    pub(crate) transport: Transport,
}

/// A name for rustls, which wants one; it is neither sent nor checked.
const NO_NAME: &str = "starling.invalid";

impl ConnectError {
    /// The outcome's name in metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::BadCredentials => "bad_credentials",
            Self::RefusedIdentity { .. } => "refused_identity",
            Self::RefusedByPeer { .. } => "refused_by_peer",
            Self::TimedOut { .. } => "timed_out",
            Self::BackingOff { .. } => "backing_off",
            Self::Shunned { .. } => "shunned",
            Self::Unreachable { .. } => "unreachable",
            Self::Overloaded => "overloaded",
            Self::Closed => "closed",
        }
    }
}

impl Dialler {
    /// Shakes hands with `address`. `serve` is called once the peer is authenticated, and must
    /// see to it that the peer's welcome is read. Gives up after `patience`.
    pub(crate) async fn dial(
        &self,
        credentials: &Credentials,
        address: SocketAddr,
        expected: Expected,
        patience: Duration,
        serve: impl FnOnce(&Connection),
    ) -> Result<Connection, ConnectError> {
        if credentials.current().svid().not_after() < credentials.clock().wall() {
            return Err(ConnectError::BadCredentials);
        }
        let (crypto, verdict) = tls::quic_client(&self.provider, credentials, expected);
        let mut config = quinn::ClientConfig::new(crypto);
        config.transport_config(self.transport.to(address));
        let connecting =
            self.endpoint.connect_with(config, address, NO_NAME).map_err(|error| match error {
                quinn::ConnectError::EndpointStopping => ConnectError::Closed,
                error => ConnectError::Unreachable { address, why: error.to_string() },
            })?;
        let handshake = async {
            let quinn = connecting.await.map_err(|error| explain(address, &verdict, error))?;
            let connection = authenticated(quinn, &verdict, credentials)
                .ok_or(ConnectError::Unreachable { address, why: "no certificate was shown".into() })?;
            serve(&connection);
            let abandoned = AbandonedDial(Some(connection.clone()));
            connection.reached(WELCOMED | CLOSED).await;
            abandoned.defuse();
            match connection.quinn().close_reason() {
                Some(error) => Err(explain(address, &verdict, error)),
                None => Ok(connection),
            }
        };
        tokio::time::timeout(patience, handshake)
            .await
            .unwrap_or(Err(ConnectError::TimedOut { address, patience }))
    }
}

/// The connection whose handshake is complete, with what the verifier found.
pub(crate) fn authenticated(
    quinn: quinn::Connection,
    verdict: &Verdict,
    credentials: &Credentials,
) -> Option<Connection> {
    let identity = verdict.get()?.as_ref().ok()?;
    let peer = PeerIdentity {
        id: identity.id.clone(),
        address: canonical(quinn.remote_address()),
        key_fingerprint: identity.public_key.fingerprint(),
    };
    Some(Connection::new(quinn, peer, credentials.id().clone()))
}

/// A dual-stack socket shows IPv4 peers as IPv6 addresses (RFC 4291, section 2.5.5.2).
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    match (address.ip().to_canonical(), address) {
        (IpAddr::V6(ip), SocketAddr::V6(v6)) => SocketAddrV6::new(ip, v6.port(), 0, v6.scope_id()).into(),
        (ip, address) => SocketAddr::new(ip, address.port()),
    }
}

fn explain(address: SocketAddr, verdict: &Verdict, error: ConnectionError) -> ConnectError {
    if let Some(Err(why)) = verdict.get() {
        return ConnectError::RefusedIdentity { address, why: why.clone() };
    }
    match error {
        ConnectionError::TimedOut => ConnectError::TimedOut { address, patience: IDLE_TIMEOUT },
        ConnectionError::LocallyClosed => ConnectError::Closed,
        ConnectionError::ConnectionClosed(close) => {
            ConnectError::RefusedByPeer { address, why: close.to_string() }
        }
        ConnectionError::ApplicationClosed(close) => {
            ConnectError::RefusedByPeer { address, why: close.to_string() }
        }
        error => ConnectError::Unreachable { address, why: error.to_string() },
    }
}

/// Closes a connection whose dial was given up before the peer's welcome.
struct AbandonedDial(Option<Connection>);

impl AbandonedDial {
    fn defuse(mut self) {
        self.0 = None;
    }
}

impl Drop for AbandonedDial {
    fn drop(&mut self) {
        if let Some(connection) = &self.0 {
            connection.quinn().close(VarInt::from_u32(close_code::ABANDONED), b"no welcome");
        }
    }
}
