//! What every Starling node knows, and how it comes to know it.
//!
//! The core holds state machines without IO; [`link::Link`] is its one port to the world, and
//! [`clock`] the only place that reads time. It opens no socket and knows no QUIC: `transport`
//! and `sim` are two adapters of the same port.

pub mod clock;
pub mod codec;
pub mod identity;
pub mod lease;
pub mod limits;
pub mod link;
pub mod record;
pub mod signature;
pub mod svid;
