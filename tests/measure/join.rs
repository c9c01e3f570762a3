//! From a new node's start until its first call through the mesh is answered, and the first call to it.

use std::net::SocketAddr;

use starling_gossip::clock::{Clock, Instant};
use starling_tests::workload::Http;
use starling_tests::{eventually, get};

use crate::figure::{Figure, Unit};
use crate::mesh::{Stage, name, say};

const MAX_MAX: f64 = 2_000.0;

pub async fn run(stage: &Stage) -> Vec<Figure> {
    say(&format!("{} nodes join", stage.plan.joins));
    let (mut calls, mut called) = (Vec::new(), Vec::new());
    for join in 0..stage.plan.joins {
        let newcomer = format!("join-{join}");
        let workload = Http::start(stage.mesh.ip(), &newcomer).await;
        let began = Clock::System.now();
        let node = stage.newcomer(&newcomer).serves(&newcomer, workload.address());
        let (callee, caller) = (name(join), &stage.nodes[join % stage.plan.callers]);
        let joins = async {
            let node = node.start().await;
            (answered(node.http_proxy(), &callee, began).await, node)
        };
        let ((first_call, mut node), first_to_it) =
            tokio::join!(joins, answered(caller.http_proxy(), &newcomer, began));
        calls.push(first_call);
        called.push(first_to_it);
        node.terminate();
        node.ended().await;
    }
    let which = [("p50", None), ("max", Some(MAX_MAX))];
    let figures = [("join: its first call answered", calls), ("join: first call to it answered", called)];
    figures.into_iter().flat_map(|(what, times)| Figure::of(what, Unit::Millis, &times, which)).collect()
}

/// Milliseconds since `began` when `service` first answers.
async fn answered(proxy: SocketAddr, service: &str, began: Instant) -> f64 {
    eventually(&format!("an answer of {service}"), async || {
        let reply = get(proxy, &format!("{service}.mesh"), "/seen").await;
        (reply.status() == 200).then_some(())
    })
    .await;
    (Clock::System.now() - began).as_secs_f64() * 1000.0
}
