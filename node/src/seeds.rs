//! Where to find the mesh: the configured seeds' addresses, asked of the resolver again and again.
//!
//! Seeds are needed only to join, so trouble with them is a warning and never an end.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{debug, warn};

use crate::config::HostPort;

/// How often names are resolved. A headless service's answer changes with every pod.
const RESOLVE_PERIOD: Duration = Duration::from_secs(15);

/// How often while no seed has an address.
const RETRY_PERIOD: Duration = Duration::from_secs(1);

/// Addresses that one name may stand for.
const ADDRESSES_PER_NAME_MAX: usize = 64;

/// Keeps `addresses` current until nobody reads them.
pub(crate) async fn follow(seeds: Vec<HostPort>, addresses: watch::Sender<Vec<SocketAddr>>) {
    loop {
        let resolved = resolve(&seeds).await;
        let period = if resolved.is_empty() && !seeds.is_empty() { RETRY_PERIOD } else { RESOLVE_PERIOD };
        addresses.send_if_modified(|held| {
            let changed = *held != resolved;
            *held = resolved;
            changed
        });
        tokio::select! {
            () = tokio::time::sleep(period) => {}
            () = addresses.closed() => return,
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
