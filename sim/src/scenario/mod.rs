//! Scenarios: which mesh, which network, what happens when, and what must come of it.
//!
//! A scenario is a TOML file; `starling-sim schema` prints its JSON Schema, made from these types and
//! their comments. Nothing here runs anything: [`crate::play`] does. Equal scenarios with equal
//! seeds are equal runs.

mod event;
mod library;
mod read;
mod span;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use event::{Attack, Do, Event, Memory, Pick, PickError};
pub use library::{LIBRARY, Listed, list};
pub use read::{Mistake, Mistakes, Override, load, parse, schema};
pub use span::{Span, SpanError};

/// The most nodes one run may have: chitchat's digest holds no more (see `gossip::wire`), and a
/// full-fidelity run of this size takes an hour. Beyond it there is the event model.
pub const NODES_MAX: usize = 1000;

/// One scenario.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Which question it answers, in one line.
    pub question: String,
    /// The nodes and how they gossip.
    #[serde(default)]
    pub mesh: Mesh,
    /// How the network treats every message, where no path says otherwise.
    #[serde(default)]
    pub network: Conditions,
    /// Where nodes stand. Without any, all stand together.
    #[serde(default)]
    pub site: Vec<Site>,
    /// How the network treats messages between two sites.
    #[serde(default)]
    pub path: Vec<Path>,
    /// What happens, and when.
    #[serde(default)]
    pub event: Vec<Event>,
    /// Bounds: a measure's name and the most it may be (the least, if the name ends in `_min`). A
    /// run that breaks one fails.
    #[serde(default)]
    pub expect: BTreeMap<String, f64>,
}

/// The nodes and how they gossip.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Mesh {
    /// How many nodes begin, 2 to 1000.
    pub nodes: usize,
    /// How many nodes serve the same service: 1, each its own; 3, each service has three instances.
    pub replicas: usize,
    /// The time over which they start, evenly; `"0s"` starts all at once.
    pub start_within: Span,
    /// How many of the first nodes everybody is given as seeds.
    pub seeds: usize,
    /// Seeds are a name that stands for so many nodes that are up, as a headless Service of Kubernetes; else
    /// they are fixed addresses.
    pub seeds_follow: bool,
    /// Whether nodes have a disk (`node.data_dir`) and remember what they knew.
    pub disks: bool,
    /// How often a node reconciles with three others (`gossip.interval`).
    pub interval: Span,
    /// How long others believe in a silent node.
    pub lease: Span,
    /// How often a node renews its lease; at most half of it.
    pub renew: Span,
    /// To how many peers a node passes news on at once; the product's own number if left out.
    pub news_told: Option<usize>,
    /// How often at most; the product's own if left out.
    pub news_period: Option<Span>,
    /// Quiet time between equal catalogues at the start and the first event's `at`. Traffic is
    /// measured as steady in it.
    pub quiet: Span,
    /// How long the run goes on at least, counted like an event's `at`.
    pub length: Span,
    /// How soon, once the mesh has started and once the last event is over, all live nodes that reach each
    /// other must hold equal catalogues and compute equal routes.
    pub converge_within: Span,
}

/// How the network treats messages. One that is to arrive travels as a QUIC stream: lost packets are sent
/// again, which costs time; it is given up after ten seconds. One that is sent once, and fits a packet, is lost with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Conditions {
    /// What every packet takes, one way.
    pub latency: Span,
    /// What it may take on top, evenly spread; messages overtake each other by it.
    pub jitter: Span,
    /// The share of packets that are lost, 0 to 1. At 1 nothing passes.
    pub loss: f64,
    /// The share of messages that arrive twice.
    pub duplicate: f64,
    /// The share of messages that are held back by up to half a second, so that later ones overtake them.
    pub reorder: f64,
    /// Bytes per second that each node can send; 0 is no bound. What does not fit waits its turn.
    pub bandwidth: u64,
}

/// A place where nodes stand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// Its name, unique.
    pub name: String,
    /// The region it belongs to; its own name if left out.
    pub region: Option<String>,
    /// Its share of the nodes, relative to the other sites' shares.
    #[serde(default = "one")]
    pub share: f64,
}

/// How the network treats messages from one site to another. Keys left out are as in `[network]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Path {
    /// A site.
    pub from: String,
    /// A site; the same one for messages within it.
    pub to: String,
    /// Only this direction. Otherwise both are alike.
    #[serde(default)]
    pub one_way: bool,
    /// See `[network]`.
    pub latency: Option<Span>,
    /// See `[network]`.
    pub jitter: Option<Span>,
    /// See `[network]`.
    pub loss: Option<f64>,
    /// See `[network]`.
    pub duplicate: Option<f64>,
    /// See `[network]`.
    pub reorder: Option<f64>,
}

fn one() -> f64 {
    1.0
}

impl Default for Mesh {
    fn default() -> Self {
        Self {
            nodes: 50,
            replicas: 2,
            start_within: Span::seconds(1),
            seeds: 3,
            seeds_follow: false,
            disks: false,
            interval: Span::seconds(1),
            lease: Span::seconds(30),
            renew: Span::seconds(5),
            news_told: None,
            news_period: None,
            quiet: Span::seconds(5),
            length: Span::default(),
            converge_within: Span::seconds(30),
        }
    }
}

impl Default for Conditions {
    fn default() -> Self {
        Self {
            latency: Span::millis(1),
            jitter: Span::millis(1),
            loss: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            bandwidth: 0,
        }
    }
}
