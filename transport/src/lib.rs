//! How authenticated bytes move between Starling nodes: QUIC (RFC 9000) with TLS 1.3 at both ends.
//!
//! One [`endpoint::Endpoint`] per node, on one UDP port. [`pool::Pool`] finds or dials
//! [`connection::Connection`]s; a [`stream::MeshStream`] on one carries a call;
//! [`gossip_link::GossipLink`] carries the gossip core's messages. Who a peer is says its
//! certificate alone; what it may do is the node's business, not decided here.
//!
//! IO is at the rim. [`header`], [`silence`], [`backoff`], `datagram`, `retirement`, `shunned` and
//! `admission` are pure: they take bytes, counters and `now`, and are tested without a network.

mod accept;
mod admission;
pub mod answer;
pub mod backoff;
pub mod bell;
pub mod connection;
pub mod credential_files;
pub mod credentials;
mod datagram;
pub mod dial;
pub mod endpoint;
pub mod gossip_link;
pub mod header;
pub mod incoming;
mod knock;
pub mod limits;
mod packet_size;
mod permits;
pub mod pool;
mod registry;
mod retirement;
mod serve;
mod shunned;
pub mod silence;
pub mod stream;
mod supervise;
mod telemetry;
pub mod tls;
pub mod verify;
mod waiting;

#[cfg(test)]
mod tests;
