//! Runs made up: a rumor that spreads by chance, so that reports look as real ones do, without the
//! gossip that makes real ones slow.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use starling_sim::report::{
    Checks, Failed, MembersAt, Percentiles, Pictures, Rate, Rates, Report, Run, Samples, Traffic, Word,
};

/// How long a round is.
pub const INTERVAL: Duration = Duration::from_millis(1000);
const SECONDS: usize = 120;

/// A made-up run of `nodes`; `slower` makes everything take longer by that factor.
pub fn run(seed: u64, nodes: usize, slower: f64) -> Run {
    let mut chance = StdRng::seed_from_u64(seed);
    let words: Vec<_> =
        (0..40).map(|at| word(&mut chance, nodes, slower, 4.0 + 2.7 * f64::from(at))).collect();
    let mut samples = Samples::default();
    for word in &words {
        word.known_ms
            .iter()
            .flatten()
            .filter(|millis| **millis > 0.0)
            .for_each(|known| samples.add("known", *known));
    }
    for _ in 0..4 * nodes {
        samples.add("suspect", slower * (2000.0 + 3000.0 * chance.random::<f64>().powi(2)));
        samples.add("unused", slower * (2400.0 + 4200.0 * chance.random::<f64>().powi(3)));
        samples.add("expired", slower * (20_000.0 + 12_000.0 * chance.random::<f64>()));
        samples.add("joined", slower * (300.0 + 2500.0 * chance.random::<f64>().powi(2)));
    }
    let took = |name: &str| Percentiles::of(samples.of(name));
    let traffic = traffic(&mut chance, nodes);
    Run {
        seed,
        trace_hash: format!("{seed:032x}{:032x}", slower.to_bits()),
        events: 120_000,
        checks: Checks { passed: 2400, failed: 0 },
        rejected: chance.random_range(0..4),
        known_ms: took("known"),
        took_ms: ["suspect", "unused", "expired", "joined"].map(|name| (name.to_owned(), took(name))).into(),
        bytes_per_node_s: traffic.steady.values().map(|rate| rate.bytes).sum(),
        traffic,
        suspicions_false: chance.random_range(0..3),
        stale_share: 0.004 * slower * chance.random::<f64>(),
        queue_max: chance.random_range(9..30),
        converged_s: 4.0 + 3.0 * chance.random::<f64>(),
        recovered_s: slower * (6.0 + 4.0 * chance.random::<f64>()),
        virtual_s: SECONDS as f64,
        wall_s: 0.02 * (nodes * nodes) as f64 / 50.0,
        memory_mib: 40.0 + nodes as f64 * 1.4,
        pictures: Some(pictures(&mut chance, nodes, words)),
        samples,
        ..Run::default()
    }
}

/// A report over `seeds` seeds.
pub fn report(nodes: usize, seeds: u64, slower: f64) -> Report {
    let expect = [
        ("known_ms_p99", 6000.0),
        ("unused_ms_p99", 8000.0),
        ("evictions_false", 0.0),
        ("bytes_per_node_s", 2500.0),
        ("rejected_min", 1.0),
        ("recovered_s", 11.0),
    ];
    let expect = expect.map(|(name, limit)| (name.to_owned(), limit)).into();
    let question =
        "How long are callers wrong when two sites cannot reach each other for 30 s, and how soon after?";
    let runs = (1..=seeds).map(|seed| run(seed, nodes, slower)).collect();
    Report::of("partition-two-way", question, nodes, INTERVAL, runs, &expect)
}

/// What a failed check looks like.
#[allow(dead_code, reason = "not every test that shares this module fails a check")]
pub fn failed(seed: u64) -> Failed {
    Failed {
        what: "a record that its owner did not sign is in a catalogue".to_owned(),
        at_s: 41.3,
        nodes: vec!["node-7".to_owned(), "<script>alert(1)</script>".to_owned()],
        history: (0..30).map(|at| format!("{}.{} s  node-7 -> node-{at}: delta, 412 B", 40, at)).collect(),
        replay: format!("starling-sim run partition-two-way --seed {seed} --nodes 50"),
    }
}

/// Push gossip with a fan-out of one, until all know; a third of the nodes is cut off for a while.
fn word(chance: &mut StdRng, nodes: usize, slower: f64, at_s: f64) -> Word {
    let by = chance.random_range(0..nodes);
    let cut = (42.0..72.0).contains(&at_s);
    let side = |node: usize| node < nodes / 3;
    let phases: Vec<f64> = (0..nodes).map(|_| 1000.0 * chance.random::<f64>()).collect();
    let mut known = vec![None; nodes];
    known[by] = Some(0.0);
    for round in 0..40 {
        for node in 0..nodes {
            let now = slower * (f64::from(round) * 1000.0 + phases[node]);
            if known[node].is_none_or(|since| since > now) {
                continue;
            }
            let to = chance.random_range(0..nodes);
            let open = !cut || side(node) == side(to) || at_s + now / 1000.0 > 74.0;
            if open && known[to].is_none() {
                known[to] = Some(now + 20.0 + 40.0 * chance.random::<f64>());
            }
        }
    }
    if at_s > 90.0 {
        known[nodes - 1] = None;
    }
    Word { by, what: format!("node-{by} became unhealthy"), at_s, known_ms: known }
}

fn traffic(chance: &mut StdRng, nodes: usize) -> Traffic {
    let mut rates = |factor: f64| -> Rates {
        let kinds = [("syn", 12.0, 1.0), ("syn-ack", 16.0, 1.0), ("ack", 4.0, 1.0), ("rumor", 2.0, 3.0)];
        let noise = 1.0 + 0.04 * chance.random::<f64>();
        kinds
            .map(|(kind, bytes, messages)| {
                let bytes = factor * noise * bytes * nodes as f64;
                (kind.to_owned(), Rate { bytes, messages: messages * factor })
            })
            .into()
    };
    Traffic { steady: rates(1.0), change: rates(1.7) }
}

fn pictures(chance: &mut StdRng, nodes: usize, words: Vec<Word>) -> Pictures {
    let said = |at: f64, words: &str| (at, words.to_owned());
    let events = vec![
        said(44.0, "sites east and west are cut off from each other"),
        said(74.0, "the partition heals"),
        said(90.0, "node-49 crashes"),
        said(90.5, "node-12 flaps <b>"),
    ];
    Pictures {
        members: (0..=SECONDS).map(|at| members(at, nodes)).collect(),
        bytes: (0..=SECONDS).map(|at| bytes(chance, at, nodes)).collect(),
        events,
        words,
        nodes: (0..nodes).map(|node| format!("node-{node}")).collect(),
    }
}

fn members(at: usize, nodes: usize) -> MembersAt {
    let up = if at >= 90 { nodes - 1 } else { nodes };
    let (seen_min, seen_median, seen_max) = match at {
        0..4 => (nodes * at / 4, nodes * (at + 1) / 5, up),
        44..76 => (nodes - (nodes / 3) * (at - 44).min(10) / 10, up, up),
        90..98 => (up, nodes, nodes),
        98..106 => (up, up, nodes),
        _ => (up, up, up),
    };
    MembersAt { at_s: at as f64, up, seen_min, seen_median, seen_max }
}

fn bytes(chance: &mut StdRng, at: usize, nodes: usize) -> BTreeMap<String, u64> {
    let factor = match at {
        0..4 => 3.0,
        44..76 => 0.7,
        76..80 => 2.2,
        _ => 1.0,
    };
    let pairs = (nodes * nodes) as f64;
    [("syn", 12.0), ("syn-ack", 16.0), ("ack", 4.0), ("rumor", 2.0)]
        .map(|(kind, each)| {
            let noise = 0.9 + 0.2 * chance.random::<f64>();
            (kind.to_owned(), (factor * noise * each * pairs) as u64)
        })
        .into()
}
