//! The scenarios that come with the program: the files of `sim/scenarios`, one line each.

use serde::Serialize;

use super::parse;

macro_rules! library {
    ($($name:literal),* $(,)?) => {
        /// Name and text of each, in the order they are listed.
        pub const LIBRARY: &[(&str, &str)] =
            &[$(($name, include_str!(concat!("../../scenarios/", $name, ".toml")))),*];
    };
}

library![
    "gossip-propagation",
    "gossip-loss",
    "gossip-steady",
    "gossip-steady-100",
    "gossip-crash",
    "gossip-half-deaf",
    "gossip-hostile",
    "gossip-flash-crowd",
    "gossip-rolling-restart",
    "gossip-partition",
    "gossip-pause",
    "converge",
    "steady",
    "distance",
    "loss",
    "unruly",
    "asymmetric",
    "narrow",
    "one-by-one",
    "flash-crowd",
    "leave",
    "withdraw",
    "health-flaps",
    "rolling-deploy",
    "rolling-restart",
    "blackout",
    "forgetful-restart",
    "old-image",
    "moved",
    "half-dies",
    "short-pause",
    "long-pause",
    "partition",
    "long-partition",
    "one-way",
    "flapping-partition",
    "half-deaf",
    "slow-node",
    "calendars",
    "churn",
    "hostile-forge",
    "hostile-replay",
    "hostile-withhold",
    "hostile-equivocate",
    "hostile-flood",
    "hostile-flood-join",
    "hostile-accuse",
    "hostile-resurrect",
    "hostile-outrun",
    "hostile-reset",
    "hostile-lie",
    "hostile-overrun",
];

/// A scenario as `list` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// Its name.
    pub name: &'static str,
    /// Which question it answers.
    pub question: String,
}

/// All of the library.
///
/// # Panics
///
/// If a scenario of the library cannot be read, which its test rules out.
pub fn list() -> Vec<Listed> {
    let listed = |(name, text): &(&'static str, &str)| {
        let scenario = parse(name, text).unwrap_or_else(|mistakes| panic!("the library: {mistakes}"));
        Listed { name, question: scenario.question }
    };
    LIBRARY.iter().map(listed).collect()
}
