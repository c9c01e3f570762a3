//! The real gossip loop of several nodes over a network in memory, on a paused clock.
//!
//! Time is virtual and nothing sleeps. Which peers the repair path chooses is the operating
//! system's chance here, so every bound holds for any choice; runs that replay from a seed are the
//! simulator's business.

#[path = "../support/authority.rs"]
mod authority;
mod hostile;
mod link;
mod presence;
mod remembering;
mod world;
