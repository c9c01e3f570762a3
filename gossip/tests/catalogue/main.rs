//! The catalogue against the records of real publishers: order, refusals, leases, bounds.

#[path = "../support/authority.rs"]
mod authority;
mod bounds;
mod bytes;
mod leases;
mod orders;
mod proofs;
mod refusals;
mod restoring;
mod watched;
