//! Restarts with and without a memory, seeds that are gone, calendars that are wrong.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use starling_gossip::clock::{Clock, WallTime};
use starling_gossip::limits::DEPARTED_SHOWN;
use starling_gossip::memory::{self, Entry, LIFE_KEY, Memory, Remembered};
use starling_gossip::snapshot::{Presence, Snapshot};
use tokio::time::sleep;

use crate::authority::{KeyKind, WALL};
use crate::world::{LEASE, SPREAD, World, address, alive, presence, weight};

const MONTH: Duration = Duration::from_secs(31 * 86_400);
const MONTH_MILLIS: i64 = MONTH.as_millis() as i64;

/// A disk that never fails.
#[derive(Default)]
struct Disk(Mutex<BTreeMap<String, Vec<u8>>>);

#[async_trait]
impl Memory for Disk {
    async fn begin_life(&self, incarnation: u64) {
        self.0.lock().expect("whole").insert(LIFE_KEY.to_owned(), incarnation.to_be_bytes().to_vec());
    }

    fn keep(&self, entry: Entry) {
        let mut entries = self.0.lock().expect("whole");
        match entry.value {
            Some(value) => entries.insert(entry.key, value),
            None => entries.remove(&entry.key),
        };
    }
}

fn remembered(disk: &Arc<Disk>) -> Option<Remembered> {
    let entries = disk.0.lock().expect("whole").clone();
    Some(Remembered { memory: disk.clone(), entries })
}

/// Four nodes, of which the last has a disk.
async fn world_with_a_disk() -> (World, Arc<Disk>) {
    let mut world = World::converged(4).await;
    let disk = Arc::new(Disk::default());
    world.crash(3);
    world.restart(3, |setup| setup.remembered = remembered(&disk)).await;
    world.wait_for("all know all", SPREAD, |all| all.iter().all(|it| alive(it) == 4)).await;
    (world, disk)
}

fn incarnation(snapshot: &Snapshot, index: usize) -> u64 {
    let name = format!("node-{index}");
    let (_, member) =
        snapshot.members.iter().find(|(owner, _)| owner.node.as_str() == name).expect("a member");
    member.record.version.incarnation
}

#[tokio::test(start_paused = true)]
async fn a_node_that_starts_cut_off_has_its_last_known_routes_at_once() {
    let (mut world, disk) = world_with_a_disk().await;
    world.crash(3);
    world.network.partition([address(3)]);
    world.restart(3, |setup| setup.remembered = remembered(&disk)).await;
    let all = world.snapshots();
    for other in 0..3 {
        assert_eq!(presence(&all[3], other), Some(Presence::Suspect), "{other}");
        assert_eq!(weight(&all[3], other), Some(1), "{other}");
    }
    sleep(LEASE * 3).await;
    assert!((0..3).all(|other| presence(&world.snapshots()[3], other) == Some(Presence::Expired)));
    // Its leases are over, its seed is gone: whom it knew it still may ask.
    world.crash(0);
    world.network.partition([]);
    world.wait_for("it is back", SPREAD * 2, |all| all[1..].iter().all(|it| alive(it) == 3)).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_rejoins_with_every_seed_gone() {
    let (mut world, disk) = world_with_a_disk().await;
    world.crash(3);
    world.crash(0);
    // Until the others have given it up and do not knock at its door any more.
    sleep(LEASE * 4 + DEPARTED_SHOWN).await;
    world.restart(3, |_| ()).await;
    sleep(SPREAD).await;
    assert_eq!(alive(&world.snapshots()[3]), 1, "without a memory it knows nobody to ask");
    world.crash(3);
    world.restart(3, |setup| setup.remembered = remembered(&disk)).await;
    world.wait_for("three together", SPREAD, |all| all[1..].iter().all(|it| alive(it) == 3)).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_without_memory_and_seeds_is_found_by_those_who_miss_it() {
    let mut world = World::converged(4).await;
    world.crash(3);
    world.crash(0);
    sleep(LEASE * 4).await;
    world.restart(3, |_| ()).await;
    world.wait_for("three together", SPREAD * 2, |all| all[1..].iter().all(|it| alive(it) == 3)).await;
}

/// As [`world_with_a_disk`], where certificates outlast a month either way.
async fn long_lived_world() -> (World, Arc<Disk>) {
    let mut world = World::empty();
    world.clock = Clock::starting_at(WallTime { unix_millis: WALL.unix_millis + MONTH_MILLIS as u64 });
    for index in 0..3 {
        let id = format!("spiffe://acme/svc/svc-{index}");
        let svid = world.authority.svid_until(&id, KeyKind::Ed25519, time::Duration::days(365));
        world.add_as(svid, world.authority.bundle(), vec![address(index)]).await;
    }
    let disk = Arc::new(Disk::default());
    world.crash(2);
    world.restart(2, |setup| setup.remembered = remembered(&disk)).await;
    world.wait_for("all know all", SPREAD, |all| all.iter().all(|it| alive(it) == 3)).await;
    (world, disk)
}

#[tokio::test(start_paused = true)]
async fn a_calendar_set_back_never_makes_a_life_lower_than_an_earlier_one() {
    let (mut world, disk) = long_lived_world().await;
    let before = incarnation(&world.snapshots()[0], 2);
    world.crash(2);
    let month_ago = Clock::starting_at(world.clock.wall().earlier(MONTH));
    world
        .restart(2, |setup| {
            setup.clock = month_ago.clone();
            setup.remembered = remembered(&disk);
        })
        .await;
    world.announce(2, 77).await;
    let heard = |all: &[Arc<Snapshot>]| all.iter().all(|it| weight(it, 2) == Some(77));
    world.wait_for("it is heard", SPREAD, heard).await;
    assert_eq!(
        incarnation(&world.snapshots()[0], 2),
        before + 1,
        "the next life, though the calendar is a month back"
    );
    let kept = disk.0.lock().expect("whole")[LIFE_KEY].clone();
    assert_eq!(memory::life(&kept), Some(before + 1));
}

#[tokio::test(start_paused = true)]
async fn without_a_memory_a_node_speaks_above_its_earlier_life_once_it_hears_of_it() {
    let (mut world, _) = long_lived_world().await;
    let before = incarnation(&world.snapshots()[0], 2);
    world.crash(2);
    let month_ago = Clock::starting_at(world.clock.wall().earlier(MONTH));
    world.restart(2, |setup| setup.clock = month_ago.clone()).await;
    world.announce(2, 78).await;
    let heard = |all: &[Arc<Snapshot>]| all.iter().all(|it| weight(it, 2) == Some(78));
    world.wait_for("it is heard", SPREAD * 3, heard).await;
    assert!(incarnation(&world.snapshots()[0], 2) > before);
}

/// Certificates fail closed by a wrong calendar, and everything heals when it is set right.
#[tokio::test(start_paused = true)]
async fn a_month_forward_refuses_newcomers_until_the_calendar_is_right_again() {
    let mut world = World::converged(3).await;
    let watch = Clock::starting_at(world.clock.wall());
    world.crash(2);
    world.restart(2, |setup| setup.clock = watch.clone()).await;
    world.wait_for("all know all", SPREAD, |all| all.iter().all(|it| alive(it) == 3)).await;

    watch.set_calendar_by(MONTH_MILLIS);
    world.add().await;
    world
        .wait_for("the others take it in", SPREAD, |all| {
            [0, 1, 3].iter().all(|it| presence(&all[*it], 3) == Some(Presence::Alive))
        })
        .await;
    sleep(LEASE * 2).await;
    let all = world.snapshots();
    assert_eq!(presence(&all[2], 3), None, "its certificate is not valid by this calendar");
    assert!((0..3).all(|other| presence(&all[2], other) == Some(Presence::Alive)), "whom it knows it keeps");

    watch.set_calendar_by(-MONTH_MILLIS);
    let healed = |all: &[Arc<Snapshot>]| all.iter().all(|it| alive(it) == 4);
    world.wait_for("it heals by itself", Duration::from_secs(40), healed).await;
}

/// A node that starts with a wrong calendar keeps what it cannot verify for a better one.
#[tokio::test(start_paused = true)]
async fn memories_wait_for_the_calendar_to_be_right() {
    let (mut world, disk) = world_with_a_disk().await;
    let entries = disk.0.lock().expect("whole").len();
    let watch = Clock::starting_at(world.clock.wall());
    watch.set_calendar_by(MONTH_MILLIS);
    world.crash(3);
    world.network.partition([address(3)]);
    world
        .restart(3, |setup| {
            setup.clock = watch.clone();
            setup.remembered = remembered(&disk);
        })
        .await;
    assert!((0..3).all(|other| presence(&world.snapshots()[3], other).is_none()));
    assert_eq!(disk.0.lock().expect("whole").len(), entries, "nothing is forgotten");
    watch.set_calendar_by(-MONTH_MILLIS);
    let known = |all: &[Arc<Snapshot>]| (0..3).all(|other| weight(&all[3], other) == Some(1));
    world.wait_for("they are believed", Duration::from_secs(40), known).await;
}
