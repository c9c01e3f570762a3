//! What every Starling node knows, and how it comes to know it.
//!
//! The core holds state machines without IO; [`link::Link`] is its one port to the world, and
//! [`clock`] the only place that reads time. It opens no socket and knows no QUIC: `transport`
//! and `sim` are two adapters of the same port.

mod allowance;
pub mod catalogue;
mod chain;
pub mod clock;
pub mod codec;
mod doubts;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod guard;
pub mod handle;
pub mod health;
pub mod identity;
pub mod kind;
mod known;
pub mod lease;
pub mod limits;
pub mod link;
pub mod memory;
pub mod mending;
pub mod neighbours;
mod post;
mod proofs;
pub mod publisher;
pub mod record;
mod rejection;
mod remembering;
pub mod renewing;
mod repairing;
mod replica;
pub mod revocation;
mod rumours;
pub mod run;
mod searching;
pub mod signature;
pub mod snapshot;
pub mod svid;
mod talk;
mod told;
pub mod versions;
mod waiting;
mod watchers;
pub mod watching;
mod wire;

pub use replica::to_text;

// What tests of this library and of its users share names it as its users do.
#[cfg(test)]
extern crate self as starling_gossip;
#[cfg(test)]
#[path = "../tests/support/authority.rs"]
#[allow(dead_code, reason = "each user needs another part of it")]
mod authority;
