//! An EVENT MODEL of the gossip: how one rumour, one renewal and one crash get known to thousands of nodes.
//!
//! The full simulation runs the node's own code. This model keeps one moment per node (when it heard) and plays
//! the same protocol around it: a rumour told to three of twelve neighbours at once and in three more rounds
//! (`spread`), a renewal told with the next talk (`spread`), three watchers that ask and say so (`watch`). What a
//! node sends in calm is added up (`cost`), not played. What differs from the product:
//!
//! - All nodes know each other, are connected to their neighbours, and stand equally far apart.
//! - One thing at a time: neither batches nor budgets ever bind. Computing costs no time.
//! - Neighbours stay who they are. Who is missed by all tellers is repaired after a fixed time.
//!
//! It is not the source of truth: `sim/tests/model.rs` holds it against full runs. It needs no runtime
//! and no entropy but its seed's, and is the same in each run.

mod cost;
mod path;
mod percentiles;
mod spread;
mod watch;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde::Serialize;
use starling_gossip::limits::{DIGEST_BYTES_MAX, entry_bytes};
use starling_gossip::mending::SETTLE;
use starling_gossip::renewing::SILENCE_TENTHS;
use starling_gossip::watching::WATCHERS;

pub use cost::{Calm, calm};
pub use path::Path;
pub use percentiles::Percentiles;

use spread::{Mesh, Micros, micros};

/// How often a node talks of what needs no haste: the default.
pub const TALK_PERIOD: Duration = Duration::from_secs(1);

/// After so many renewal periods without a word of an owner, a node asks for it.
pub const ASKED_AFTER: f64 = SILENCE_TENTHS as f64 / 10.0;

/// Who was missed by a rumour is repaired after so long, and after the next talk.
pub const REPAIRED_AFTER: Duration = SETTLE.saturating_add(Duration::from_millis(500));

/// Fewest nodes that can be modelled: one, and its watchers.
pub const NODES_MIN: usize = WATCHERS + 1;

/// Most nodes that are modelled. About 100 bytes each; it is time that grows.
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
    /// Bytes that each node sends in calm, those that QUIC adds included.
    pub bytes_per_node_s: f64,
}

/// How many maps the repair path's digest has room for, with addresses of IPv4.
pub fn nodes_max() -> usize {
    /// Of an owner's name in a digest.
    const SHORT_NAME_BYTES: usize = 16;
    let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    DIGEST_BYTES_MAX / entry_bytes(SHORT_NAME_BYTES, address)
}

impl Settings {
    /// How often one seed should play a change, and a crash.
    pub fn repeats(&self) -> usize {
        (MEASURES_PER_SEED / self.nodes).clamp(1, REPEATS_MAX)
    }
}

/// Plays `repeats` changes and crashes with the chance of `seed`; see [`Settings::repeats`].
pub fn run(settings: &Settings, seed: u64, repeats: usize) -> Measured {
    let mut rng = StdRng::seed_from_u64(seed);
    let part = 1.0 / repeats as f64;
    // Crashes evenly over the time between two renewals, each at any moment of its part.
    let mut at = |nth: usize| (nth as f64 + rng.random::<f64>()) * part;
    let moments: Vec<f64> = (0..repeats).map(&mut at).collect();
    let all: Vec<_> = moments.into_iter().map(|at| once(settings, at, &mut rng)).collect();
    Measured::mean(&all)
}

/// A change; and a crash when such a share of the time between two renewals has passed.
fn once(settings: &Settings, crashed_at: f64, rng: &mut StdRng) -> Measured {
    let mesh = Mesh::new(settings, rng);
    let owner = rng.random_range(0..settings.nodes);
    let known = mesh.rumour(owner, None, rng);
    let (renewal, talked_at) = mesh.renewal(owner, rng);
    let suspected = watch::suspected(&mesh, owner, rng);
    // Before the owner has talked of its last renewal, nobody has heard it.
    let renew = micros(settings.renew) as i64;
    let crashed_at = (renew as f64 * crashed_at) as i64;
    let is_unheard = crashed_at < talked_at as i64;
    let last_heard = |heard: i64| heard - crashed_at - if is_unheard { renew } else { 0 };
    let age = |heard: i64| crashed_at + if is_unheard || heard > crashed_at { renew } else { 0 };
    let of_others = |all: &[Micros], measure: &dyn Fn(i64) -> i64| {
        let others = all.iter().enumerate().filter(|(node, _)| *node != owner);
        Percentiles::of(others.map(|(_, heard)| measure(*heard as i64)).collect())
    };
    let calm = calm(settings);
    Measured {
        known_ms: of_others(&known, &|heard| heard),
        renewal_ms: of_others(&renewal, &|heard| heard),
        renewal_age_ms: of_others(&renewal, &age),
        suspect_ms: of_others(&suspected, &|heard| heard),
        expired_ms: of_others(&renewal, &|heard| last_heard(heard) + micros(settings.lease) as i64),
        messages_per_node_s: calm.messages,
        bytes_per_node_s: calm.bytes,
    }
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
