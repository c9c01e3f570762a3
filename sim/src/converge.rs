//! The scenario `converge`: nodes find each other, one changes, one crashes.

use std::collections::BTreeMap;
use std::time::Duration;

use starling_gossip::clock::Instant;
use starling_gossip::snapshot::{Presence, Snapshot};

use crate::report::{Percentiles, Report, seconds};
use crate::world::{Failure, Observation, Settings, World};

/// How long anything may take beyond what the lease says. Ten times what was ever measured: it
/// tells "late" from "never".
const PATIENCE: Duration = Duration::from_secs(120);

/// Quiet time before the change, so that it is measured alone.
const QUIET: Duration = Duration::from_secs(5);

/// The weight of the changed instance; all begin with 1.
const CHANGED_WEIGHT: u16 = 2;

/// Fewest nodes with one to change, one to crash, and one to watch.
pub const NODES_MIN: usize = 3;

/// Runs it on a paused clock of its own. `Report::wall_s` is left to the caller, who has a clock.
pub fn run(settings: Settings) -> Result<Report, Failure> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().map_err(anyhow::Error::from)?;
    runtime.block_on(converge(settings))
}

async fn converge(settings: Settings) -> Result<Report, Failure> {
    let start = Instant::now();
    let mut world = World::new(settings)?;
    world.start_all().await?;
    world.run_until("equal catalogues", PATIENCE, |world, _| world.is_converged()).await?;
    let converged = start.elapsed();
    let (traffic_then, then) = (world.network().traffic(), Instant::now());

    world.run_for(QUIET).await?;
    let changed = world.any_host(None);
    let known = change(&mut world, changed).await?;
    let crashed = world.any_host(Some(changed));
    let (suspect, expired) = crash(&mut world, crashed).await?;

    let traffic = world.network().traffic();
    let node_seconds = then.elapsed().as_secs_f64() * world.settings().nodes as f64;
    let (events, trace_hash) = world.trace().finish();
    Ok(Report {
        scenario: "converge",
        seed: world.settings().seed,
        nodes: world.settings().nodes,
        trace_hash,
        events,
        converged_s: seconds(converged),
        known_ms: Percentiles::of(known),
        suspect_ms: Percentiles::of(suspect),
        expired_ms: Percentiles::of(expired),
        messages_per_node_s: (traffic.messages - traffic_then.messages) as f64 / node_seconds,
        bytes_per_node_s: (traffic.bytes - traffic_then.bytes) as f64 / node_seconds,
        virtual_s: seconds(start.elapsed()),
        wall_s: 0.0,
    })
}

/// How long each other node takes to know that `host` changed.
async fn change(world: &mut World, host: usize) -> Result<Vec<Duration>, Failure> {
    let owner = world.owner(host).clone();
    let start = Instant::now();
    world.announce(host, CHANGED_WEIGHT).await?;
    let knows = |snapshot: &Snapshot| {
        let mut offered = snapshot.services.values().flatten();
        offered.any(|it| it.owner == owner && it.instance.weight == CHANGED_WEIGHT)
    };
    let others = world.settings().nodes - 1;
    let mut known = BTreeMap::new();
    let all_know = |_: &World, seen: &Observation| {
        if seen.observer != host && knows(&seen.snapshot) {
            known.entry(seen.observer).or_insert(seen.at - start);
        }
        known.len() == others
    };
    world.run_until("the change at every node", PATIENCE, all_know).await?;
    Ok(known.into_values().collect())
}

/// How long each other node takes to suspect the crashed `host`, and to give it up.
async fn crash(world: &mut World, host: usize) -> Result<(Vec<Duration>, Vec<Duration>), Failure> {
    let owner = world.owner(host).clone();
    let start = Instant::now();
    world.crash(host);
    let limit = world.settings().lease + PATIENCE;
    let others = world.settings().nodes - 1;
    let (mut suspect, mut expired) = (BTreeMap::new(), BTreeMap::new());
    let all_gave_up = |_: &World, seen: &Observation| {
        let moments = match seen.snapshot.members.get(&owner).map(|it| it.presence) {
            Some(Presence::Suspect) => &mut suspect,
            Some(Presence::Expired) => &mut expired,
            _ => return false,
        };
        if seen.observer != host {
            moments.entry(seen.observer).or_insert(seen.at - start);
        }
        expired.len() == others
    };
    world.run_until("the end of the crashed node's lease", limit, all_gave_up).await?;
    Ok((suspect.into_values().collect(), expired.into_values().collect()))
}
