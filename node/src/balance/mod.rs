//! PURE: which of several endpoints takes the next piece of work.
//!
//! [`Group`] holds endpoints that are preferred alike and picks one of them by a [`Policy`]; what an
//! endpoint's state is, it asks a [`Field`]. [`Estimate`] is one endpoint's latency, and [`Reported`] what it says
//! of itself. Which endpoints there
//! are, and in which order of preference, is `route`'s; whether one works, `breaker`'s and `outlier`'s.

mod chance;
mod estimate;
mod group;
mod policy;
mod reported;
mod ring;
mod rotation;
mod shares;

pub(crate) use chance::{Chance, mix, stable_hash};
pub(crate) use estimate::Estimate;
pub(crate) use group::{Asked, Field, Group, Load};
pub use policy::{HashOn, Policy};
pub(crate) use reported::Reported;
