//! The course in virtual time: the simulator's own world and network, told nothing of reality but
//! when nodes began and when they were hit.

use std::sync::Arc;
use std::time::Duration;

use starling_gossip::clock::Instant;
use starling_gossip::record::Health;
use starling_sim::play::Request;
use starling_sim::scenario::{Scenario, parse};
use starling_sim::world::{Failure, World};

use crate::course::{Course, Delays};
use crate::{INTERVAL, LATE, LEASE, RENEW, SEEDS, apart, identity, name};

/// Runs it with the chance of `seed`; no two runs are the same, for libraries draw from the system.
pub fn run(course: &Course, seed: u64) -> Delays {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(follow(course, seed)).expect("a run that breaks nothing")
}

#[derive(Clone, Copy)]
enum Step {
    Join,
    Change(usize),
    Crash(usize),
}

async fn follow(course: &Course, seed: u64) -> Result<Delays, Failure> {
    let mut world =
        World::new(Arc::new(scenario(course.starts.len())), &Request { seed, ..Request::default() })?;
    let joins = course.starts.iter().map(|at| (*at, Step::Join));
    let changes = course.changes.iter().map(|change| (change.at, Step::Change(change.node)));
    // A renewal is told with the next round, which is another time ahead after each; a crash before that takes it
    // along. A real node's rounds drift, so how far ahead is chance: here each run's crashes come a renewal later than
    // the last one's.
    let later = RENEW * seed as u32;
    let crash = |it| later + course.crash_in_time(it, RENEW);
    let crashes = course.crashes.iter().map(|it| (crash(it), Step::Crash(it.node)));
    let mut steps: Vec<_> = joins.chain(changes).chain(crashes).collect();
    steps.sort_by_key(|(at, _)| *at);
    let begin = Instant::now();
    let mut last = begin;
    for (at, step) in steps {
        last = begin + at;
        world.run_until(last).await?;
        match step {
            Step::Join => {
                let index = world.join(world.hosts()).await?;
                let owner = &world.truth.host(index).owner;
                let expected = (name(index), identity(index));
                assert_eq!((owner.node.to_string(), owner.identity.to_string()), expected, "the same names");
            }
            Step::Change(node) => world.say(node, Some("change"), Some(Health::Healthy)).await,
            Step::Crash(node) => world.crash(node),
        }
    }
    world.run_until(last + LEASE + LATE).await?;
    let measured = |name: &str| world.measures.samples().0.get(name).cloned().unwrap_or_default();
    Ok(Delays { known: measured("known"), suspect: measured("suspect"), expired: measured("expired") })
}

/// Every node stands at a place of its own, so far from the others as their relays make it.
fn scenario(nodes: usize) -> Scenario {
    let millis = |duration: Duration| format!("\"{}ms\"", duration.as_millis());
    let (interval, lease, renew) = (millis(INTERVAL), millis(LEASE), millis(RENEW));
    let mut text = format!(
        "question = \"How soon do others notice?\"\n\
         [mesh]\nnodes = {nodes}\nreplicas = 1\nseeds = {SEEDS}\n\
         interval = {interval}\nlease = {lease}\nrenew = {renew}\n\
         [network]\njitter = \"0s\"\n"
    );
    for node in 0..nodes {
        text += &format!("[[site]]\nname = \"place-{node}\"\n");
        for other in 0..node {
            let latency = millis(apart(node, other));
            text +=
                &format!("[[path]]\nfrom = \"place-{node}\"\nto = \"place-{other}\"\nlatency = {latency}\n");
        }
    }
    parse("truth", &text).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}
