//! Where to find the mesh: the configured seeds' addresses, asked of the resolver again and again.
//!
//! Seeds are needed only to join, so trouble with them is a warning and never an end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use starling_gossip::handle::Gossip;
use starling_gossip::snapshot::Presence;
use starling_transport::pool::Pool;
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::config::{Config, HostPort};

/// How often names are resolved. A headless service's answer changes with every pod.
const RESOLVE_PERIOD: Duration = Duration::from_secs(15);

/// How often while no seed has an address.
const RETRY_PERIOD: Duration = Duration::from_secs(1);

/// How often a node that is alone looks for the reason.
const LONELY_PERIOD: Duration = Duration::from_secs(3);

/// Addresses that one name may stand for.
const ADDRESSES_PER_NAME_MAX: usize = 64;

/// Keeps `addresses` current until nobody reads them.
pub(crate) async fn follow(
    mut config: watch::Receiver<Arc<Config>>,
    addresses: watch::Sender<Vec<SocketAddr>>,
) {
    loop {
        let seeds = config.borrow_and_update().mesh.seeds.clone();
        let resolved = resolve(&seeds).await;
        let period = if resolved.is_empty() && !seeds.is_empty() { RETRY_PERIOD } else { RESOLVE_PERIOD };
        addresses.send_if_modified(|held| {
            let changed = *held != resolved;
            *held = resolved;
            changed
        });
        tokio::select! {
            () = tokio::time::sleep(period) => {}
            Ok(()) = config.changed() => {}
            () = addresses.closed() => return,
        }
    }
}

/// Says why this node stays alone, as long as it does: a foreign authority, a wrong port, a
/// firewall. Once for each reason.
pub(crate) async fn explain_loneliness(
    gossip: Gossip,
    pool: Pool,
    addresses: watch::Receiver<Vec<SocketAddr>>,
) {
    let mut told = BTreeMap::new();
    loop {
        tokio::time::sleep(LONELY_PERIOD).await;
        let own = gossip.owner();
        let snapshot = gossip.snapshots().borrow().clone();
        // Remembered members are suspect until they are heard, and no company.
        let is_alone =
            !snapshot.members.iter().any(|(owner, it)| owner != own && it.presence == Presence::Alive);
        if !is_alone {
            told.clear();
            continue;
        }
        for address in addresses.borrow().iter() {
            let Some(error) = pool.last_failure(*address) else { continue };
            let reason = error.to_string();
            if told.get(address) != Some(&reason) {
                warn!(seed = %address, reason, "alone in the mesh: a seed does not take this node in; trying again");
                told.insert(*address, reason);
            }
        }
    }
}

async fn resolve(seeds: &[HostPort]) -> Vec<SocketAddr> {
    let mut all = BTreeSet::new();
    for seed in seeds {
        match tokio::net::lookup_host(seed.to_string()).await {
            Ok(found) => all.extend(found.take(ADDRESSES_PER_NAME_MAX)),
            Err(error) => warn!(%seed, %error, "a seed's name does not resolve; trying again"),
        }
    }
    debug!(?all, "seeds resolved");
    all.into_iter().collect()
}
