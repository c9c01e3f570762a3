//! The transport on real sockets: real certificates, UDP on loopback, no mocks.
//!
//! Tests wait for conditions, never for a guess at how long something takes.

mod counters;
mod gossip;
mod harness;
mod identity;
mod liveness;
mod once;
mod pool;
mod revocation;
mod rotation;
mod shunning;
mod strangers;
mod streams;
