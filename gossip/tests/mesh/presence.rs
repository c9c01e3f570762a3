//! Joining, news, leaving, crashing, partitions: what all nodes come to know, and when.

use std::sync::Arc;
use std::time::Duration;

use starling_gossip::clock::Instant;
use starling_gossip::snapshot::{Presence, Snapshot};
use tokio::time::sleep;

use crate::authority::{Authority, KeyKind, bundle};
use crate::world::{
    INTERVAL, LEASE, RENEW, SPREAD, SUSPECT_AFTER, World, address, alive, equal, presence, weight,
};

const NODES: usize = 10;

#[tokio::test(start_paused = true)]
async fn a_change_reaches_everybody() {
    let world = World::converged(NODES).await;
    world.announce(3, 77).await;
    let known = |all: &[Arc<Snapshot>]| all.iter().all(|it| weight(it, 3) == Some(77));
    world.wait_for("the change", SPREAD, known).await;
    assert!(equal(&world.snapshots()));
}

#[tokio::test(start_paused = true)]
async fn a_latecomer_learns_everything() {
    let mut world = World::converged(NODES).await;
    sleep(LEASE * 3).await;
    assert!(world.snapshots().iter().all(|it| alive(it) == NODES), "renewals keep all alive");
    world.add().await;
    world.wait_for("one more", SPREAD, |all| all.iter().all(|it| alive(it) == NODES + 1)).await;
    world.wait_for("equal catalogues", SPREAD, equal).await;
}

#[tokio::test(start_paused = true)]
async fn a_leave_removes_a_node_everywhere_and_for_good() {
    let mut world = World::converged(NODES).await;
    world.nodes[4].gossip.leave().await;
    world.network.unplug(address(4));
    world.nodes.remove(4);
    let gone = |all: &[Arc<Snapshot>]| {
        all.iter().all(|it| presence(it, 4) == Some(Presence::Left) && weight(it, 4).is_none())
    };
    world.wait_for("the leave", SPREAD, gone).await;
    sleep(LEASE * 2).await;
    assert!(gone(&world.snapshots()));
    assert!(equal(&world.snapshots()));
}

#[tokio::test(start_paused = true)]
async fn a_crash_is_suspected_then_expires_and_never_earlier() {
    let mut world = World::converged(NODES).await;
    world.crash(2);
    let crashed = Instant::now();
    let mut suspected = [None; NODES];
    let mut expired = [None; NODES];
    while crashed.elapsed() < LEASE + SPREAD {
        for (observer, snapshot) in world.snapshots().iter().enumerate().filter(|(it, _)| *it != 2) {
            for member in (0..NODES).filter(|member| *member != 2) {
                assert_eq!(presence(snapshot, member), Some(Presence::Alive), "{observer} sees {member}");
            }
            let seen = match presence(snapshot, 2) {
                Some(Presence::Suspect) => &mut suspected[observer],
                Some(Presence::Expired) => &mut expired[observer],
                _ => continue,
            };
            seen.get_or_insert(crashed.elapsed());
        }
        sleep(Duration::from_millis(10)).await;
    }
    for observer in (0..NODES).filter(|it| *it != 2) {
        // Two watchers ask for a second and a half before they speak; without them its silence would tell.
        let suspected = suspected[observer].expect("a doubt");
        assert!(
            (Duration::from_millis(1500)..SUSPECT_AFTER).contains(&suspected),
            "{observer}: {suspected:?}"
        );
        let expired = expired[observer].expect("an end");
        assert!(expired + RENEW >= LEASE && expired <= LEASE + SPREAD, "{observer}: {expired:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_partition_heals_and_brings_everything_back() {
    const HALF: usize = 3;
    // Shorter than the repair path keeps a silent node's map, and much longer.
    for length in [LEASE, LEASE * 4] {
        let world = World::converged(HALF * 2).await;
        world.network.partition((HALF..HALF * 2).map(address));
        let divided = |all: &[Arc<Snapshot>]| all.iter().all(|it| alive(it) == HALF);
        world.wait_for("two halves", LEASE + SPREAD, divided).await;
        world.announce(1, 21).await;
        world.announce(HALF, 22).await;
        sleep(length).await;
        assert_eq!(weight(&world.snapshots()[0], HALF), None, "nothing crosses");

        world.network.partition([]);
        let healed = |all: &[Arc<Snapshot>]| {
            all.iter()
                .all(|it| alive(it) == HALF * 2 && weight(it, 1) == Some(21) && weight(it, HALF) == Some(22))
        };
        // Halves that forgot each other meet again at the seed.
        world.wait_for("one mesh again", Duration::from_secs(10) + SPREAD, healed).await;
        world.wait_for("equal catalogues", SPREAD, equal).await;
    }
}

#[tokio::test(start_paused = true)]
async fn news_is_quick() {
    let world = World::converged(NODES).await;
    let mut slowest = Duration::ZERO;
    for news in 0..20 {
        world.announce(news % NODES, 100 + news as u16).await;
        let known =
            |all: &[Arc<Snapshot>]| all.iter().all(|it| weight(it, news % NODES) == Some(100 + news as u16));
        slowest = slowest.max(world.wait_for("news", SPREAD, known).await);
    }
    assert!(slowest < INTERVAL * 8, "{slowest:?}");
}

#[tokio::test(start_paused = true)]
async fn a_node_of_a_new_root_is_known_once_the_bundles_are_rotated() {
    let mut world = World::converged(4).await;
    let next = Authority::new();
    let both = bundle(&format!("{}{}", world.authority.pem, next.pem));
    let svid = next.svid("spiffe://acme/svc/svc-4", KeyKind::Ed25519);
    world.add_as(svid, both.clone(), vec![address(4)]).await;
    sleep(SPREAD).await;
    assert!(world.snapshots()[..4].iter().all(|it| presence(it, 4).is_none()), "its root is not believed");

    for node in &world.nodes[..4] {
        node.gossip.rotate(node.svid.clone(), both.clone()).await;
    }
    let known = |all: &[Arc<Snapshot>]| all.iter().all(|it| weight(it, 4) == Some(1) && alive(it) == 5);
    world.wait_for("the node of the new root", SPREAD, known).await;
}
