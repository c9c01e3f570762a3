//! The port of the gossip core: bytes to and from authenticated peers.
//!
//! `transport` implements it over QUIC, `sim` over a virtual network. A link may lose, delay,
//! repeat and reorder messages; it never delivers one from a peer that has not proved an identity
//! of the trust domain.

use std::net::SocketAddr;
use std::time::Duration;

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

/// How a message travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Sent again until it arrives or is given up (a QUIC stream, RFC 9000). For what is large, and for
    /// what its receiver waits for.
    Reliable,
    /// Sent once, in one packet (a QUIC datagram, RFC 9221). For what others say as well, or what is said
    /// again soon. A message that fits no packet goes as [`Delivery::Reliable`].
    Once,
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
    fn send(&self, to: Destination, message: Vec<u8>, delivery: Delivery);

    /// The next message; `None` when the link has been closed for good. Cancel-safe.
    async fn recv(&self) -> Option<Received>;

    /// Whether messages have come that [`Self::recv`] has not returned yet.
    fn is_behind(&self) -> bool;

    /// Has nothing to do with `peer`, as reached at `address`, for `span`: closes its connection and takes
    /// no new one from it, nor dials it. For a peer that sends more than it may.
    fn shun(&self, peer: &SpiffeId, address: SocketAddr, span: Duration);
}
