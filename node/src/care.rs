//! Tells gossip whom this node sends work to: when others doubt one of them, gossip looks for itself at once.
//!
//! Whom it depends on is computed from the route table ([`depended_on`]); that a doubt changes nothing but
//! a rank is the routes' business.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use starling_gossip::clock::{Clock, Instant};
use starling_gossip::handle::Gossip;
use starling_gossip::record::Owner;
use tokio::sync::watch;

use crate::config::Config;
use crate::live::{LiveRoute, LiveTable};
use crate::route::Route;

/// How often whom this node uses is looked at. A service that is called for the first time is cared for
/// within this; calls that fail tell sooner.
const LOOK_PERIOD: Duration = Duration::from_secs(3);

/// A service that has had no work for so long is not in use: longer than a program that polls every minute.
const USED_WITHIN: Duration = Duration::from_secs(300);

/// Tells gossip for as long as it is polled, whenever it is somebody else.
pub(crate) async fn follow(
    gossip: Gossip,
    table: Arc<ArcSwap<LiveTable>>,
    running: watch::Receiver<Arc<Config>>,
    clock: Clock,
) {
    let mut told = BTreeSet::new();
    loop {
        let named: BTreeSet<String> =
            running.borrow().outbounds.iter().map(|outbound| outbound.route_name()).collect();
        // The table is let go of before the pause: with it go the connections that its endpoints keep.
        let owners = owners_used(&table.load(), &named, &gossip, clock.now());
        if owners != told {
            gossip.care_for(owners.clone()).await;
            told = owners;
        }
        tokio::time::sleep_until(clock.next_beat(LOOK_PERIOD)).await;
    }
}

/// Whom this node depends on by `table`, but for itself.
fn owners_used(
    table: &LiveTable,
    named: &BTreeSet<String>,
    gossip: &Gossip,
    now: Instant,
) -> BTreeSet<Owner> {
    let uses = table.routes().map(|(name, live)| Use::of(name, live, now));
    depended_on(uses, named).filter(|owner| *owner != gossip.owner()).cloned().collect()
}

/// How a service, or a part of it, is used here.
struct Use<'t> {
    name: &'t str,
    route: &'t Route,
    /// How long ago work was last begun with any of its endpoints.
    last: Option<Duration>,
}

impl<'t> Use<'t> {
    fn of(name: &'t str, live: &'t LiveRoute, now: Instant) -> Self {
        let ages = live.endpoints.iter().filter_map(|endpoint| endpoint.last_attempt_age(now));
        Self { name, route: &live.route, last: ages.min() }
    }
}

/// The owners of all candidates of the services in `named`, and of those that have been used lately.
fn depended_on<'t>(
    services: impl Iterator<Item = Use<'t>>,
    named: &BTreeSet<String>,
) -> impl Iterator<Item = &'t Owner> {
    let used =
        services.filter(|one| named.contains(one.name) || one.last.is_some_and(|age| age < USED_WITHIN));
    used.flat_map(|one| &one.route.candidates).map(|candidate| &candidate.target.owner)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use starling_gossip::identity::ServiceName;
    use starling_gossip::record::{Health, Locality};
    use starling_gossip::snapshot::Snapshot;

    use super::*;
    use crate::route::compute;
    use crate::route::tests::{offered, owner};

    #[test]
    fn a_node_cares_for_what_it_names_and_what_it_has_used_lately() {
        let name = |text: &str| text.parse::<ServiceName>().expect("a name");
        let services = BTreeMap::from([
            (name("named"), vec![offered("one", |_, _, _| {}), offered("two", |_, _, _| {})]),
            (
                name("used"),
                vec![
                    offered("three", |_, _, _| {}),
                    offered("gone", |_, instance, _| instance.health = Health::Draining),
                ],
            ),
            (name("once"), vec![offered("four", |_, _, _| {})]),
            (name("never"), vec![offered("five", |_, _, _| {})]),
        ]);
        let table = compute(&Snapshot { services, ..Snapshot::default() }, &Locality::default());
        let used = |(service, route)| {
            let last = match ServiceName::as_str(service) {
                "used" => Some(USED_WITHIN / 2),
                "once" => Some(USED_WITHIN),
                _ => None,
            };
            Use { name: service.as_str(), route, last }
        };
        let named = ["named".to_owned(), "unknown".to_owned()].into();
        let found: BTreeSet<&Owner> = depended_on(table.routes.iter().map(used), &named).collect();
        assert_eq!(found, [&owner("one"), &owner("two"), &owner("three")].into());
    }
}
