//! The node's own gossip in virtual time.
//!
//! A [`scenario`] says which mesh, which network, what happens and what must come of it. [`play`] plays it in a
//! [`world`] of real gossip loops over a simulated [`network`], with [`hostile`] members if the scenario has some.
//! Every snapshot of every node is held against the [`truth`] by [`check`]; [`measure`] keeps
//! what took how long; the [`trace`] has a hash that tells two runs apart; [`report`] is what comes out, and
//! [`compare`] holds two of those against each other.
//! Nothing of it opens a socket or reads a clock.
//!
//! Chance comes from the seed alone. Libraries that ask the operating system for it are answered
//! by `entropy.rs`, which is linked into the program but not into this library: who calls
//! [`play::play`] without it gets a true run that no seed repeats.

pub mod check;
pub mod compare;
pub mod disk;
pub mod estimate;
pub mod hostile;
pub mod keys;
pub mod measure;
pub mod model;
pub mod network;
pub mod play;
pub mod report;
pub mod scenario;
pub mod statistics;
pub mod trace;
pub mod truth;
pub mod world;
