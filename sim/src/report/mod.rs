//! What runs measured: the plain data that the terminal, JSON, the page and `compare` read.
//!
//! [`Run`] is one seed's; [`Report`] sums several up. Both are stable: people script against their
//! names. How they are shown is not decided here.

pub(crate) mod columns;
pub mod figures;
pub mod page;
mod percentiles;
mod summary;
mod table;
pub mod thresholds;
pub(crate) mod words;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use percentiles::{Percentiles, millis, seconds};

/// All that one scenario measured over one or several seeds. With one seed it is that run's; with
/// several, samples are pooled, rates are means, counts are sums, times until something are the
/// longest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Which scenario ran.
    pub scenario: String,
    /// Which question it answers.
    pub question: String,
    /// The first seed.
    pub seed: u64,
    /// How many nodes began; events may bring more.
    pub nodes: usize,
    /// The hash of all events: equal hashes, equal runs. With several seeds, of their hashes.
    pub trace_hash: String,
    /// The checks of all runs.
    pub checks: Checks,
    /// Records that catalogues refused.
    pub rejected: u64,
    /// From something said until another node knew it.
    pub known_ms: Percentiles,
    /// The other measures of how long something took, by name; see [`Samples`].
    pub took_ms: BTreeMap<String, Percentiles>,
    /// `known_ms` in rounds (intervals), and the bound of an ideal push epidemic.
    pub rounds: Rounds,
    /// Bytes that each node sent, those that QUIC adds included, in the steady state if the scenario has one,
    /// else overall.
    pub bytes_per_node_s: f64,
    /// The same of the node that sent most while nothing happened.
    #[serde(default)]
    pub bytes_per_node_s_max: f64,
    /// The most that nodes sent on average in ten seconds, from when the mesh first agreed on.
    #[serde(default)]
    pub bytes_peak_per_node_s: f64,
    /// The most connections that one node had in the end.
    #[serde(default)]
    pub connections_max: u64,
    /// How many half of the nodes had at most.
    #[serde(default)]
    pub connections_median: u64,
    /// What each node sent, by phase and kind of message.
    pub traffic: Traffic,
    /// A node that was up and reachable was suspected.
    pub suspicions_false: u64,
    /// A node that was up and reachable was given up.
    pub evictions_false: u64,
    /// Of what nodes route by, sampled each second: the share of words that were not the newest.
    pub stale_share: f64,
    /// The most messages that waited at one node.
    pub queue_max: u64,
    /// From the first start until all catalogues were equal, seconds.
    pub converged_s: f64,
    /// From the end of the last event until all catalogues and route tables were equal again.
    pub recovered_s: f64,
    /// Virtual time that passed.
    pub virtual_s: f64,
    /// How long that took.
    pub wall_s: f64,
    /// The most memory of one run's process, MiB.
    pub memory_mib: f64,
    /// What the scenario demands, and whether it holds.
    pub thresholds: Vec<Threshold>,
    /// Each seed's, in order.
    pub runs: Vec<Run>,
}

/// Checks that were made: safety of every snapshot, convergence at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checks {
    /// How often one held.
    pub passed: u64,
    /// How often one did not: the first ends a run.
    pub failed: u64,
}

/// Propagation in rounds against theory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rounds {
    /// Half of the nodes know.
    pub p50: f64,
    /// All know.
    pub p100: f64,
    /// `log2 N + ln N`: the rounds that push gossip with a fan-out of one needs for all (Pittel, "On
    /// spreading a rumor", SIAM Journal on Applied Mathematics 1987).
    pub bound: f64,
    /// How long a round is, milliseconds.
    pub interval_ms: f64,
}

/// What a node sends, per second.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    /// While nothing had happened for a while.
    pub steady: Rates,
    /// While something had just happened.
    pub change: Rates,
}

/// By kind of message. What QUIC adds has kinds of its own: `quic` (headers, acknowledgements, packets sent again),
/// `handshake` and `keep-alive`.
pub type Rates = BTreeMap<String, Rate>;

/// Per node and second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// Bytes.
    pub bytes: f64,
    /// Messages; what QUIC adds has none.
    pub messages: f64,
}

/// One bound that the scenario sets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Threshold {
    /// The key in the scenario's `[expect]`.
    pub name: String,
    /// The most (or, for names that end in `_min`, the least) it may be.
    pub limit: f64,
    /// What it was; `None` if it was not measured at all, which fails.
    pub measured: Option<f64>,
    /// Whether that is within the limit.
    pub passed: bool,
}

/// One seed's run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Its seed.
    pub seed: u64,
    /// The hash of all its events.
    pub trace_hash: String,
    /// How many events that were.
    pub events: u64,
    /// See [`Report::checks`].
    pub checks: Checks,
    /// What was violated, if anything.
    pub violation: Option<Failed>,
    /// See [`Report::rejected`].
    pub rejected: u64,
    /// See [`Report::rejected`]; by reason.
    pub rejected_by: BTreeMap<String, u64>,
    /// See [`Report::known_ms`].
    pub known_ms: Percentiles,
    /// See [`Report::took_ms`].
    pub took_ms: BTreeMap<String, Percentiles>,
    /// See [`Report::bytes_per_node_s`].
    pub bytes_per_node_s: f64,
    /// See [`Report::bytes_per_node_s_max`].
    #[serde(default)]
    pub bytes_per_node_s_max: f64,
    /// See [`Report::bytes_peak_per_node_s`].
    #[serde(default)]
    pub bytes_peak_per_node_s: f64,
    /// See [`Report::connections_max`].
    #[serde(default)]
    pub connections_max: u64,
    /// See [`Report::connections_median`].
    #[serde(default)]
    pub connections_median: u64,
    /// See [`Report::traffic`].
    pub traffic: Traffic,
    /// See [`Report::suspicions_false`].
    pub suspicions_false: u64,
    /// See [`Report::evictions_false`].
    pub evictions_false: u64,
    /// See [`Report::stale_share`].
    pub stale_share: f64,
    /// See [`Report::queue_max`].
    pub queue_max: u64,
    /// See [`Report::converged_s`].
    pub converged_s: f64,
    /// See [`Report::recovered_s`].
    pub recovered_s: f64,
    /// See [`Report::virtual_s`].
    pub virtual_s: f64,
    /// See [`Report::wall_s`].
    pub wall_s: f64,
    /// See [`Report::memory_mib`].
    pub memory_mib: f64,
    /// Every measure, for pooling; left out of what is printed.
    #[serde(default, skip_serializing_if = "Samples::is_empty")]
    pub samples: Samples,
    /// What the pictures show; only when a page was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pictures: Option<Pictures>,
}

/// Measures of how long something took, milliseconds, by name: `known`, `joined` (a new node known by
/// another), `rejoined` (a restarted one known again), `suspect`, `unused` (the routes of a node no longer prefer it; a caller with traffic stops within a second, on evidence of its own that is not simulated), `expired` (after a crash), `left` (after
/// a graceful leave), `stale` (how old the news was that a node did not know when sampled).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Samples(pub BTreeMap<String, Vec<f64>>);

/// A check that did not hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failed {
    /// Which, in words.
    pub what: String,
    /// When, virtual seconds.
    pub at_s: f64,
    /// Which nodes it is about.
    pub nodes: Vec<String>,
    /// What happened before, oldest first.
    pub history: Vec<String>,
    /// The command that repeats it.
    pub replay: String,
}

/// What the pictures of one run show.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pictures {
    /// Each second: who was up, and how many the nodes believed to be.
    pub members: Vec<MembersAt>,
    /// Each second: bytes that all nodes sent, by kind of message.
    pub bytes: Vec<BTreeMap<String, u64>>,
    /// What happened when: virtual seconds, and in words.
    pub events: Vec<(f64, String)>,
    /// Who knew what when.
    pub words: Vec<Word>,
    /// The nodes' names, in the order that `Word::known_ms` uses.
    pub nodes: Vec<String>,
}

/// One moment of the picture of members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MembersAt {
    /// Virtual seconds.
    pub at_s: f64,
    /// How many nodes were up.
    pub up: usize,
    /// Of those, the fewest members that one believed to be present.
    pub seen_min: usize,
    /// The median.
    pub seen_median: usize,
    /// The most.
    pub seen_max: usize,
}

/// Something said, and how long it took each node to know it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Word {
    /// Who said it, as an index of [`Pictures::nodes`].
    pub by: usize,
    /// In words.
    pub what: String,
    /// When, virtual seconds.
    pub at_s: f64,
    /// By node, milliseconds; `None` if it never knew, or was not there.
    pub known_ms: Vec<Option<f64>>,
}

impl Samples {
    /// Whether there are none at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds one measure.
    pub fn add(&mut self, name: &str, millis: f64) {
        match self.0.get_mut(name) {
            Some(samples) => samples.push(millis),
            None => drop(self.0.insert(name.to_owned(), vec![millis])),
        }
    }

    /// Those called `name`.
    pub fn of(&self, name: &str) -> &[f64] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }
}
