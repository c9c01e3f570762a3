//! The port of the gossip core: bytes to and from authenticated peers.
//!
//! `transport` implements it over QUIC, `sim` over a virtual network. A link may lose, delay,
//! repeat and reorder messages; it never delivers one from a peer that has not proved an identity
//! of the trust domain.

use std::net::SocketAddr;

use async_trait::async_trait;

use crate::identity::SpiffeId;

/// Whom a message is for, and so whom a link may dial to deliver it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A verified node: dial its address if need be, and demand this identity.
    Member {
        /// Where its node record says it listens.
        address: SocketAddr,
        /// Who must answer there.
        identity: SpiffeId,
    },
    /// A configured seed, or an address that several members claim: dial if need be; anybody of
    /// the trust domain may answer.
    Seed(SocketAddr),
    /// The sender of an earlier message: use the connection it came by, and never dial.
    Connected(SocketAddr),
}

impl Destination {
    /// The address a message goes to.
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Member { address, .. } | Self::Seed(address) | Self::Connected(address) => *address,
        }
    }
}

/// One message from an authenticated peer.
#[derive(Clone, Debug)]
pub struct Received {
    /// Where replies go.
    pub from: SocketAddr,
    /// Who sent it.
    pub peer: SpiffeId,
    /// The message, at most [`crate::limits::MESSAGE_BYTES_MAX`] bytes.
    pub message: Vec<u8>,
}

/// Bytes to and from peers. Shared by the gossip loop's parts, so it takes `&self`.
#[async_trait]
pub trait Link: Send + Sync + 'static {
    /// Queues `message`. Never waits: a full queue or an unreachable peer drops it, counted by
    /// the link, for the next round repairs what one message missed.
    fn send(&self, to: Destination, message: Vec<u8>);

    /// The next message; `None` when the link has been closed for good.
    async fn recv(&self) -> Option<Received>;
}
