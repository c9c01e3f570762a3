//! What is done to a mesh and when, and how long others take to notice.
//!
//! A course is written down by the real run and followed by the simulated ones, so that on both
//! sides nodes begin their rounds and renewals at the same moments and are hit at the same moments
//! between them. Left to chance on both are whom a node gossips with, and how long a message takes.

use std::collections::BTreeMap;
use std::time::Duration;

use starling_tests::log::Notice;

/// The mesh, and what is done to it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Course {
    /// When each node's gossip began, since the first one's.
    pub starts: Vec<Duration>,
    /// Changes, each over before the next.
    pub changes: Vec<Change>,
    /// Ends without a word.
    pub crashes: Vec<Crash>,
}

/// A node says something new of its instance.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Change {
    /// When, since the first start.
    pub at: Duration,
    /// Which node.
    pub node: usize,
    /// What its instance weighs from now on, and none did before.
    pub weight: u16,
}

/// A node ends without a word.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Crash {
    /// When, since the first start.
    pub at: Duration,
    /// Which node.
    pub node: usize,
    /// How long after its last renewal: others count from that one. A node that once waited for a
    /// processor renews at other moments than its start tells.
    pub since_renewal: Duration,
}

/// Who noticed what about whom, and when, since the first start: by observer, subject and notice.
pub type Noticed = BTreeMap<(usize, usize, Notice), Vec<Duration>>;

/// Milliseconds from an event until another node noticed it, one for each event and node.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Delays {
    /// From a change until a node knew it.
    pub known: Vec<f64>,
    /// From a crash until a node suspected it.
    pub suspect: Vec<f64>,
    /// From a crash until a node gave it up.
    pub expired: Vec<f64>,
}

impl Delays {
    /// All measures of all runs.
    pub fn concat(runs: &[Self]) -> Self {
        let all = |of: fn(&Self) -> &Vec<f64>| runs.iter().flat_map(of).copied().collect();
        Self { known: all(|it| &it.known), suspect: all(|it| &it.suspect), expired: all(|it| &it.expired) }
    }
}

impl Course {
    /// When a node that is never late has to end for `crash` to come as long after its last renewal.
    pub fn crash_in_time(&self, crash: &Crash, renew: Duration) -> Duration {
        let start = self.starts[crash.node];
        let renewals = crash.at.saturating_sub(start + crash.since_renewal).div_duration_f64(renew);
        start + renew * renewals.round() as u32 + crash.since_renewal
    }

    /// How long after each event those noticed who lived to notice it.
    ///
    /// # Panics
    ///
    /// If a node that lives to the end never did.
    pub fn delays(&self, noticed: &Noticed) -> Delays {
        let changes = self.changes.iter();
        let crashed = |notice| {
            let each = self.crashes.iter().map(move |crash| (crash.at, crash.node, notice));
            each.flat_map(|event| self.delays_of(noticed, event)).collect()
        };
        let changed = changes.map(|change| (change.at, change.node, Notice::Weight(change.weight)));
        Delays {
            known: changed.flat_map(|event| self.delays_of(noticed, event)).collect(),
            suspect: crashed(Notice::Suspect),
            expired: crashed(Notice::Expired),
        }
    }

    fn delays_of(&self, noticed: &Noticed, (at, subject, notice): (Duration, usize, Notice)) -> Vec<f64> {
        let others = (0..self.starts.len()).filter(|observer| *observer != subject);
        let delay = |observer| {
            let times = noticed.get(&(observer, subject, notice)).into_iter().flatten();
            let first = times.copied().find(|time| *time >= at);
            let ends = self.crashes.iter().any(|crash| crash.node == observer);
            assert!(first.is_some() || ends, "node {observer} never noticed {notice:?} of node {subject}");
            first.map(|time| (time - at).as_secs_f64() * 1000.0)
        };
        others.filter_map(delay).collect()
    }
}
