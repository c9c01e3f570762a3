//! An EVENT MODEL of the gossip: how one record, and one lease, spread through thousands of nodes.
//!
//! The full simulation runs the node's own code, and its cost grows with the square of the nodes. This
//! model keeps one number per node (the newest version of *one* owner's map that the node holds) and
//! plays the same exchange around it: rounds with three peers, SYN, SYN-ACK and ACK with what each
//! side lacks, news passed on at once, seeds asked now and then. What differs from the product:
//!
//! - All nodes know each other and hold all maps. The product's digest has room for
//!   [`nodes_max`] maps; beyond that the model says what the same protocol would do with a larger one.
//! - One change at a time: the pause between two tellings (`News::period`) never binds.
//! - Bandwidth and computing cost no time; whether two nodes are still connected is drawn by chance.
//! - A crashed node stays a candidate for rounds; chitchat drops it after about eight.
//!
//! It is not the source of truth: `sim/tests/model.rs` holds it against full runs. It needs no runtime
//! and no entropy but its seed's, and is the same in each run.

mod cost;
mod delay;
mod epidemic;
mod percentiles;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::network::connection::UNUSED_CLOSE;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde::Serialize;
use starling_gossip::limits::{DIGEST_BYTES_MAX, RENEWALS_MISSED_MAX, entry_bytes};

pub use cost::{Traffic, exchange_bytes};
pub use delay::Path;
pub use epidemic::NotWithin;
pub use percentiles::Percentiles;

use epidemic::{Crash, Epidemic};

/// Peers of one regular round: `GOSSIP_COUNT` in chitchat 0.11's `server.rs`, which keeps it to
/// itself. The messages counted in a full run (`sim/tests/model.rs`) tell when it differs.
pub const PEERS_PER_ROUND: usize = 3;

/// Hosts that everybody is told of, as in the full simulation's worlds.
pub const SEEDS: usize = 3;

/// Fewest nodes that can be modelled: one to speak, and as many as one round asks.
pub const NODES_MIN: usize = PEERS_PER_ROUND + 1;

/// Most nodes that are modelled. About 30 bytes each; it is time that grows.
pub const NODES_MAX: usize = 100_000;

/// In a small mesh one change says little, so one seed plays several: until about so many moments are
/// measured, at most [`REPEATS_MAX`] times.
const MEASURES_PER_SEED: usize = 20_000;
const REPEATS_MAX: usize = 50;

/// The mesh that is modelled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// How many nodes, [`NODES_MIN`] to [`NODES_MAX`].
    pub nodes: usize,
    /// Between a node's rounds.
    pub interval: Duration,
    /// What lies between any two nodes.
    pub path: Path,
    /// How long others believe in a silent node.
    pub lease: Duration,
    /// How often a node renews its lease.
    pub renew: Duration,
}

/// What the model measured with one seed: means over its repeats of each percentile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Measured {
    /// From a change until another node knows it.
    pub known_ms: Percentiles,
    /// From the renewal of a lease until another node hears it.
    pub renewal_ms: Percentiles,
    /// The age of the newest renewal that a node has, at any moment.
    pub renewal_age_ms: Percentiles,
    /// From a crash until another node suspects it.
    pub suspect_ms: Percentiles,
    /// From a crash until another node gives it up.
    pub expired_ms: Percentiles,
    /// Messages that each node sends in calm.
    pub messages_per_node_s: f64,
    /// Bytes that each node sends in calm, without what QUIC and IP add.
    pub bytes_per_node_s: f64,
}

/// How many maps the product's digest has room for, with addresses of IPv4.
pub fn nodes_max() -> usize {
    DIGEST_BYTES_MAX / digest_entry_bytes()
}

/// One node's entry in a digest: an owner's short name of 16 digits, and an IPv4 address.
pub(crate) fn digest_entry_bytes() -> usize {
    const SHORT_NAME_BYTES: usize = 16;
    entry_bytes(SHORT_NAME_BYTES, SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0))
}

impl Settings {
    /// When a node that is not heard is suspected, from its last renewal on.
    pub fn suspect_after(&self) -> Duration {
        (self.renew * (RENEWALS_MISSED_MAX + 1)).min(self.lease)
    }

    /// The share of pairs that have not talked for so long that their connection is gone: nobody's
    /// rounds led to the other. Seeds and news, which connect a few more, are left out.
    pub fn cold_share(&self) -> f64 {
        let rounds = 2.0 * UNUSED_CLOSE.as_secs_f64() / self.interval.as_secs_f64();
        (1.0 - PEERS_PER_ROUND as f64 / (self.nodes - 1) as f64).max(0.0).powf(rounds)
    }

    /// How often one seed should play a change, and a crash.
    pub fn repeats(&self) -> usize {
        (MEASURES_PER_SEED / self.nodes).clamp(1, REPEATS_MAX)
    }
}

/// Plays `repeats` changes and crashes with the chance of `seed`; see [`Settings::repeats`].
pub fn run(settings: &Settings, seed: u64, repeats: usize) -> Result<Measured, NotWithin> {
    let mut rng = StdRng::seed_from_u64(seed);
    let all: Result<Vec<_>, _> = (0..repeats).map(|_| once(settings, &mut rng)).collect();
    Ok(Measured::mean(&all?))
}

fn once(settings: &Settings, rng: &mut StdRng) -> Result<Measured, NotWithin> {
    let known = Epidemic::new(settings, rng).change()?;
    let crash: Crash = Epidemic::new(settings, rng).crash()?;
    let silent = |after: Duration| {
        let moment = |heard: &i64| heard + after.as_micros() as i64;
        Percentiles::of(crash.last_heard.iter().map(moment).collect())
    };
    Ok(Measured {
        known_ms: Percentiles::of(known),
        renewal_ms: Percentiles::of(crash.renewals_took),
        renewal_age_ms: Percentiles::of(crash.ages),
        suspect_ms: silent(settings.suspect_after()),
        expired_ms: silent(settings.lease),
        messages_per_node_s: crash.traffic.messages_per_node_s(settings.nodes),
        bytes_per_node_s: crash.traffic.bytes_per_node_s(settings.nodes),
    })
}

impl Measured {
    /// The mean of each measure; of none, zeros.
    pub fn mean(all: &[Self]) -> Self {
        let of = |measure: fn(&Self) -> f64| mean(all.iter().map(measure));
        let percentiles = |measure: fn(&Self) -> Percentiles| {
            Percentiles::mean(&all.iter().map(measure).collect::<Vec<_>>())
        };
        Self {
            known_ms: percentiles(|it| it.known_ms),
            renewal_ms: percentiles(|it| it.renewal_ms),
            renewal_age_ms: percentiles(|it| it.renewal_age_ms),
            suspect_ms: percentiles(|it| it.suspect_ms),
            expired_ms: percentiles(|it| it.expired_ms),
            messages_per_node_s: of(|it| it.messages_per_node_s),
            bytes_per_node_s: of(|it| it.bytes_per_node_s),
        }
    }
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (count, sum) = values.fold((0u32, 0.0), |(count, sum), value| (count + 1, sum + value));
    sum / f64::from(count.max(1))
}
