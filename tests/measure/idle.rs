//! What a node costs that nobody calls: it gossips, and asks its one workload how it is.

use starling_gossip::clock::{Clock, Instant};
use starling_tests::Node;
use starling_tests::process::{anonymous_bytes, processor_time, resident_bytes};

use crate::figure::{Figure, Unit};
use crate::mesh::{Stage, say};

const RESIDENT_MAX: f64 = 15.0 * 1024.0 * 1024.0;
const PERCENT_MAX: f64 = 0.5;
/// What a hundred nodes may send.
const SENT_MAX: f64 = 4_000.0;

pub const RESIDENT: &str = "idle: resident memory";
pub const PROCESSOR: &str = "idle: processor";
pub const SENT: &str = "idle: gossip sent";

/// What one node cost.
pub struct Cost {
    pub resident: f64,
    pub anonymous: f64,
    pub percent: f64,
    pub sent_per_second: f64,
}

pub async fn run(stage: &Stage) -> Vec<Figure> {
    tokio::time::sleep(stage.plan.settles).await;
    say(&format!("nobody does anything for {:?}", stage.plan.idle));
    let mut sent_before = Vec::new();
    for node in &stage.nodes {
        sent_before.push(sent(node).await);
    }
    let used_before: Vec<_> = stage.nodes.iter().map(|node| (now(), processor_time(node.pid()))).collect();
    tokio::time::sleep(stage.plan.idle).await;
    let mut costs = Vec::new();
    // Being asked costs a node something, so that comes last.
    for (node, (then, used)) in stage.nodes.iter().zip(used_before) {
        let used = processor_time(node.pid()) - used;
        costs.push(Cost {
            resident: resident_bytes(node.pid()) as f64,
            anonymous: anonymous_bytes(node.pid()) as f64,
            percent: used.as_secs_f64() / (now() - then).as_secs_f64() * 100.0,
            sent_per_second: 0.0,
        });
    }
    for ((node, cost), (then, before)) in stage.nodes.iter().zip(&mut costs).zip(sent_before) {
        let (now, after) = sent(node).await;
        cost.sent_per_second = (after - before) / (now - then).as_secs_f64();
    }
    figures(&costs, [Some(RESIDENT_MAX), Some(PERCENT_MAX), Some(SENT_MAX)])
}

/// The same figures for all that cost something.
pub fn figures(costs: &[Cost], [resident, percent, sent]: [Option<f64>; 3]) -> Vec<Figure> {
    let all = |of: fn(&Cost) -> f64| costs.iter().map(of).collect::<Vec<_>>();
    let figures = |what, unit, measures: Vec<f64>, most| {
        Figure::of(what, unit, &measures, [("p50", None), ("max", most)])
    };
    [
        figures(RESIDENT, Unit::Bytes, all(|cost| cost.resident), resident),
        figures("idle: not shared of it", Unit::Bytes, all(|cost| cost.anonymous), None),
        figures(PROCESSOR, Unit::Percent, all(|cost| cost.percent), percent),
        figures(SENT, Unit::BytesPerSecond, all(|cost| cost.sent_per_second), sent),
    ]
    .concat()
}

/// Bytes of the gossip messages that a node has sent since it started; QUIC's own are not counted.
async fn sent(node: &Node) -> (Instant, f64) {
    let metrics = node.admin().get("/metrics").await.text;
    let is_it = |line: &&str| {
        line.starts_with("starling_gossip_bytes_total{") && line.contains("direction=\"outbound\"")
    };
    let counts = metrics.lines().filter(is_it).filter_map(|line| line.rsplit(' ').next());
    (now(), counts.map(|count| count.parse::<f64>().expect("a number")).sum())
}

fn now() -> Instant {
    Clock::System.now()
}
