//! What a run measured, for people and as JSON.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// What a run measured. All but `wall_s` is virtual, and the same each time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Which scenario ran.
    pub scenario: &'static str,
    /// Its seed.
    pub seed: u64,
    /// How many nodes.
    pub nodes: usize,
    /// The hash of all events: equal hashes, equal runs.
    pub trace_hash: String,
    /// How many events that were.
    pub events: u64,
    /// From the first start until all catalogues were equal.
    pub converged_s: f64,
    /// From a change until another node knew it.
    pub known_ms: Percentiles,
    /// From a crash until another node suspected it.
    pub suspect_ms: Percentiles,
    /// From a crash until another node gave it up.
    pub expired_ms: Percentiles,
    /// Messages that each node sent, once converged.
    pub messages_per_node_s: f64,
    /// Bytes that each node sent, once converged, without what a transport adds.
    pub bytes_per_node_s: f64,
    /// How much virtual time passed.
    pub virtual_s: f64,
    /// How long that took.
    pub wall_s: f64,
}

/// How a measure is spread over the nodes, milliseconds, by nearest rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// The median.
    pub p50: f64,
    /// Nine of ten.
    pub p90: f64,
    /// All but one of a hundred.
    pub p99: f64,
    /// All.
    pub p100: f64,
}

impl Percentiles {
    /// Of any number of measures; of none, zeros.
    pub fn of(mut measures: Vec<Duration>) -> Self {
        measures.sort_unstable();
        let at = |percent: usize| {
            let rank = (measures.len() * percent).div_ceil(100).max(1);
            measures.get(rank - 1).map_or(0.0, |measure| seconds(*measure) * 1000.0)
        };
        Self { p50: at(50), p90: at(90), p99: at(99), p100: at(100) }
    }
}

/// Seconds with a fraction.
pub fn seconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e6
}

impl fmt::Display for Percentiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50, p90, p99, p100 } = self;
        write!(f, "{p50:>8.0} {p90:>8.0} {p99:>8.0} {p100:>8.0}")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} nodes, seed {}", self.scenario, self.nodes, self.seed)?;
        writeln!(f, "  equal catalogues after {:.1} s", self.converged_s)?;
        writeln!(f, "  milliseconds                 50 %     90 %     99 %    100 %")?;
        writeln!(f, "  a change is known        {}", self.known_ms)?;
        writeln!(f, "  a crash is suspected     {}", self.suspect_ms)?;
        writeln!(f, "  a crash ends the lease   {}", self.expired_ms)?;
        writeln!(
            f,
            "  each node sends {:.1} messages and {:.1} kB a second",
            self.messages_per_node_s,
            self.bytes_per_node_s / 1000.0
        )?;
        writeln!(f, "  {:.1} virtual seconds in {:.1}", self.virtual_s, self.wall_s)?;
        write!(f, "  trace {} of {} events", self.trace_hash, self.events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_measures_that_occurred() {
        let millis = |count: u64| (1..=count).map(Duration::from_millis).collect::<Vec<_>>();
        let of_200 = Percentiles::of(millis(200));
        assert_eq!(of_200, Percentiles { p50: 100.0, p90: 180.0, p99: 198.0, p100: 200.0 });
        assert_eq!(Percentiles::of(millis(1)).p50, 1.0);
        assert_eq!(Percentiles::of(Vec::new()), Percentiles::default());
    }
}
