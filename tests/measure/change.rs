//! From a registration by the admin API until other nodes know it.

use std::time::Duration;

use serde_json::json;
use starling_tests::Node;
use starling_tests::log::Notice;

use crate::figure::{Figure, Unit};
use crate::mesh::{Event, Stage, millis, moment, name, say};

const P99_MAX: f64 = 500.0;
const MAX_MAX: f64 = 1_000.0;

pub const KNOWN: &str = "change: known by another node";

/// Between two changes: each is over before the next, and comes at another moment of the rounds.
const PERIOD: Duration = Duration::from_millis(1_917);

/// Instances have another by default.
const WEIGHT_MIN: usize = 2;

pub async fn run(stage: &Stage) -> Vec<Figure> {
    let nodes = stage.plan.alone();
    say(&format!("{} changes", stage.plan.changes));
    let mut events = Vec::new();
    for change in 0..stage.plan.changes {
        // Seven is a prime, so all take turns unless they are seven.
        let node = nodes[change * 7 % nodes.len()];
        let weight = u16::try_from(WEIGHT_MIN + change).expect("few changes");
        events.push(Event { at: moment(), node, notice: Notice::Weight(weight) });
        announce(&stage.nodes[node], &name(node), weight).await;
        tokio::time::sleep(PERIOD).await;
    }
    let delays = millis(KNOWN, &stage.delays(&events), P99_MAX);
    Figure::of(KNOWN, Unit::Millis, &delays, [("p50", None), ("p99", Some(P99_MAX)), ("max", Some(MAX_MAX))])
}

async fn announce(node: &Node, service: &str, weight: u16) {
    // Nobody calls it, and nobody asks whether it is there.
    let instance =
        json!({ "service": service, "address": "127.0.0.1:9", "weight": weight, "probe": { "off": true } });
    let (admin, socket) = (node.admin(), node.socket());
    let answer = admin.send_by_socket(&socket, "PUT", "/v1/instances/main", &instance.to_string()).await;
    assert!(answer.status.is_success(), "{}", answer.text);
}
