//! The course on real processes: `starling run` on loopback, real certificates, real QUIC, and a
//! [`relay`] in front of each.
//!
//! What a node knows is read from its log, where its gossip says what changed in the moment it does;
//! nobody is asked while the course runs, so that looking costs no processor time. All processes
//! share one clock.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use starling_gossip::clock::Clock;
use starling_sim::keys::TRUST_DOMAIN;
use starling_tests::log::{Line, Moment, Notice, lines};
use starling_tests::{Mesh, Node};

use crate::course::{Change, Course, Crash, Delays, Noticed};
use crate::relay::{self, Place};
use crate::{CHANGES, CRASHES, INTERVAL, LATE, LEASE, NODES, RENEW, SEEDS, identity, name, service};

/// From when all know all until the first change. Each pair talks every three seconds, so by then
/// nearly all have connected.
const SETTLES: Duration = Duration::from_secs(8);

/// Between two changes: each is over before the next, and comes at another moment of the rounds.
const CHANGE_PERIOD: Duration = Duration::from_millis(2_917);

/// Between two crashes, at another moment of the rounds and renewals each.
const CRASH_PERIOD: Duration = Duration::from_millis(2_731);

/// Runs it, and says what was done and how soon others noticed. The first to crash is `further` on than the seeds.
pub async fn run(further: usize) -> (Course, Delays) {
    let mesh = Mesh::of_domain(TRUST_DOMAIN);
    let mut nodes = start(&mesh).await;
    for (index, node) in nodes.iter().enumerate() {
        announce(node, index, 1).await;
    }
    for node in &nodes {
        for index in 0..NODES {
            node.finds(&service(index), 1).await;
        }
    }
    tokio::time::sleep(SETTLES).await;
    for change in 0..CHANGES {
        let (node, weight) = nth_change(change);
        announce(&nodes[node], node, weight).await;
        tokio::time::sleep(CHANGE_PERIOD).await;
    }
    let mut killed = Vec::new();
    // Each is another: three and the number of nodes have no divisor in common.
    for crash in 0..CRASHES {
        let node = (SEEDS + further + crash * 3) % NODES;
        killed.push((node, Moment::of_unix_millis(Clock::System.wall().unix_millis)));
        nodes[node].kill().await;
        tokio::time::sleep(CRASH_PERIOD).await;
    }
    tokio::time::sleep(LEASE + LATE).await;
    let logs: Vec<_> = nodes.iter().map(|node| lines(&node.log())).collect();
    read(&logs, &killed)
}

async fn start(mesh: &Mesh) -> Vec<Node> {
    let place = |_| Place { listens: mesh.free_address(), found: mesh.free_address() };
    let places: Arc<[Place]> = (0..NODES).map(place).collect();
    let seeds: Vec<_> = places[..SEEDS].iter().map(|place| place.found).collect();
    let millis = |duration: Duration| format!("\"{}ms\"", duration.as_millis());
    let gossip =
        format!("interval = {}\nlease = {}\nrenew = {}", millis(INTERVAL), millis(LEASE), millis(RENEW));
    let mut nodes = Vec::new();
    for (index, place) in places.iter().enumerate() {
        relay::start(places.clone(), index).await;
        let node = mesh.node(&name(index)).identity(&identity(index)).seeds(&seeds).gossip(&gossip);
        let node = node.environment("STARLING_NODE__ADVERTISE", &place.found.to_string());
        let node = node.environment("STARLING_LOG__LEVEL", "warn,starling_gossip=debug");
        nodes.push(node.environment("STARLING_LOG__FORMAT", "json").start_at(place.listens).await);
    }
    nodes
}

async fn announce(node: &Node, index: usize, weight: u16) {
    // Nobody calls it, and nobody asks whether it is there.
    let instance = json!({
        "service": service(index), "address": "127.0.0.1:9", "weight": weight, "probe": { "off": true },
    });
    let (admin, socket, body) = (node.admin(), node.socket(), instance.to_string());
    let answer = admin.send_by_socket(&socket, "PUT", "/v1/instances/main", &body).await;
    assert!(answer.status.is_success(), "{}", answer.text);
}

fn read(logs: &[Vec<Line>], killed: &[(usize, Moment)]) -> (Course, Delays) {
    let begun = |lines: &Vec<Line>| lines.iter().find(|line| line.is_begin()).expect("a beginning").at();
    // They were started in this order, so no other is earlier.
    let first = begun(&logs[0]);
    let mut noticed = Noticed::new();
    for (observer, lines) in logs.iter().enumerate() {
        for line in lines {
            if let Some((subject, notice)) = line.notice() {
                noticed.entry((observer, subject, notice)).or_default().push(line.at().since(first));
            }
        }
    }
    let change = |index| {
        let (node, weight) = nth_change(index);
        // A change begins when its own node knows it.
        let at = noticed.get(&(node, node, Notice::Weight(weight))).and_then(|times| times.first());
        Change { at: *at.expect("the node's own word"), node, weight }
    };
    let crash = |(node, at): &(usize, Moment)| {
        let at = at.since(first);
        let renewals = logs[*node].iter().filter(|line| line.is_renewal()).map(|line| line.at().since(first));
        let last = renewals.filter(|renewal| *renewal <= at).max();
        let since_renewal = at - last.expect("a node that renews its lease");
        Crash { at, node: *node, since_renewal }
    };
    let course = Course {
        starts: logs.iter().map(|lines| begun(lines).since(first)).collect(),
        changes: (0..CHANGES).map(change).collect(),
        crashes: killed.iter().map(crash).collect(),
    };
    let delays = course.delays(&noticed);
    (course, delays)
}

/// Whose instance changes, and what it weighs then: another node's each time, not in the order of
/// their starts.
fn nth_change(index: usize) -> (usize, u16) {
    ((index * 7 + 3) % NODES, index as u16 + 2)
}
