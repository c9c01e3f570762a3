//! The node's own gossip in virtual time.
//!
//! [`converge`] is the scenario there is; it runs in a [`world`] of real gossip loops over a
//! simulated [`network`], is judged by [`check`], and leaves a [`trace`] whose hash tells two runs
//! apart. Nothing here opens a socket, reads a clock or touches a file.
//!
//! Chance comes from the seed alone. Libraries that ask the operating system for it are answered
//! by `entropy.rs`, which is linked into the program but not into this library: who calls
//! [`converge::run`] without it gets a true run that no seed repeats.

pub mod check;
pub mod converge;
pub mod keys;
pub mod network;
pub mod report;
pub mod trace;
pub mod world;
