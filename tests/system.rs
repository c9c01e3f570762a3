//! What needs root and the system's own tools: a disk that is full or read-only (`mount`, a small
//! tmpfs), a calendar that is wrong (libfaketime, Debian's `faketime`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use starling_gossip::clock::Clock;
use starling_tests::workload::Http;
use starling_tests::{Mesh, Node, eventually, get};

/// A tmpfs of its own, unmounted with its test.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Self {
        fs::create_dir_all(at).expect("a mount point");
        run("mount", &["-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", path(at)]);
        Self(at.to_owned())
    }

    fn remount(&self, options: &str) {
        run("mount", &["-o", &format!("remount,{options}"), path(&self.0)]);
    }

    /// Leaves no room for another byte.
    fn fill(&self) {
        let _full = fs::write(self.0.join("filler"), vec![0; 2 * 1024 * 1024]).expect_err("a full disk");
    }

    fn make_room(&self) {
        fs::remove_file(self.0.join("filler")).expect("removed");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l", path(&self.0)]).status();
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().expect(program);
    assert!(status.success(), "{program} {arguments:?}: {status}");
}

async fn store(node: &Node) -> Value {
    node.admin().get("/v1/node").await.json["store"].clone()
}

async fn until_store_is(node: &Node, healthy: bool) -> Value {
    eventually(&format!("{}'s store to be healthy: {healthy}", node.name()), async || {
        let store = store(node).await;
        (store["healthy"] == healthy).then_some(store)
    })
    .await
}

async fn metric(node: &Node, series: &str) -> f64 {
    let text = node.admin().get("/metrics").await.text;
    let line = text.lines().find(|line| line.starts_with(series)).unwrap_or_default();
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).unwrap_or_default()
}

/// A full disk, then a read-only one, while the node runs and when it starts: an alarm, never an
/// outage, and over by itself.
#[tokio::test]
async fn a_full_or_read_only_disk_is_an_alarm_and_not_an_outage() {
    let mesh = Mesh::new();
    let disk = SmallDisk::mount(&mesh.directory().join("disk"));
    let workload = Http::start(mesh.ip(), "web").await;
    let web = mesh.node("web-1").serves("web", workload.address()).start().await;
    let caller = mesh.node("caller").remembers_in(&disk.0.join("data"));
    let mut caller = caller.start().await;
    caller.finds("web", 1).await;
    until_store_is(&caller, true).await;

    disk.fill();
    // Something new to remember.
    let others = [mesh.node("late-1").start().await, mesh.node("late-2").start().await];
    let told = until_store_is(&caller, false).await;
    assert!(told["error"].as_str().is_some_and(|error| error.contains("No space left")), "{told}");
    assert_eq!(metric(&caller, "starling_store_healthy").await, 0.0);
    assert!(metric(&caller, "starling_store_errors_total{operation=\"write\"}").await >= 1.0);
    assert_eq!(get(caller.http_proxy(), "web.mesh", "/").await.status(), 200);
    assert_eq!(caller.log().matches("the store cannot be written").count(), 1, "one warning for one change");

    // A node that starts on a full disk serves as well.
    caller.kill().await;
    caller.restart().await;
    caller.finds("web", 1).await;
    assert_eq!(get(caller.http_proxy(), "web.mesh", "/").await.status(), 200);
    until_store_is(&caller, false).await;
    disk.make_room();
    until_store_is(&caller, true).await;
    assert_eq!(metric(&caller, "starling_store_healthy").await, 1.0);
    assert!(caller.log().contains("the store can be written again"));

    caller.kill().await;
    disk.remount("ro");
    caller.restart().await;
    let told = until_store_is(&caller, false).await;
    assert!(told["error"].as_str().is_some_and(|error| error.contains("Read-only")), "{told}");
    caller.finds("web", 1).await;
    assert_eq!(get(caller.http_proxy(), "web.mesh", "/").await.status(), 200);
    disk.remount("rw");
    until_store_is(&caller, true).await;
    drop((web, others));
}

/// Where Debian keeps the library, on any machine.
fn faketime() -> String {
    let all = fs::read_dir("/usr/lib").expect("a directory").flatten();
    let library = all.map(|one| one.path().join("faketime/libfaketime.so.1")).find(|path| path.exists());
    path(&library.expect("libfaketime is not installed; `.ci/run` says which packages are needed")).to_owned()
}

const MONTH_SECONDS: i64 = 31 * 86_400;

/// What libfaketime adds to the calendar, and to nothing else; it looks at the file each time.
fn calendar<'m>(node: starling_tests::NodeConfig<'m>, file: &Path) -> starling_tests::NodeConfig<'m> {
    node.environment("LD_PRELOAD", &faketime())
        .environment("FAKETIME_TIMESTAMP_FILE", path(file))
        .environment("FAKETIME_NO_CACHE", "1")
        .environment("FAKETIME_DONT_FAKE_MONOTONIC", "1")
}

fn set_calendar(file: &Path, seconds: i64) {
    let beside = file.with_extension("new");
    fs::write(&beside, format!("{seconds:+}\n")).expect("written");
    fs::rename(beside, file).expect("in place");
}

/// The calendar of a running node leaps a month, forward and back: nobody new is believed
/// meanwhile, the log says why, and it heals when the calendar is right, without a restart.
#[tokio::test]
async fn a_calendar_a_month_off_fails_closed_says_why_and_heals() {
    for leap in [MONTH_SECONDS, -MONTH_SECONDS] {
        let mesh = Mesh::new();
        let file = mesh.directory().join("calendar");
        set_calendar(&file, 0);
        let workload = Http::start(mesh.ip(), "web").await;
        let odd = calendar(mesh.node("odd"), &file).start().await;
        set_calendar(&file, leap);
        odd.logs("this node's own certificate is not valid now").await;
        odd.logs("this machine's calendar leapt").await;

        let web = mesh.node("web-1").seeds(&[odd.listen()]).serves("web", workload.address()).start().await;
        odd.logs("check both machines' clocks").await;
        assert_eq!(get(odd.http_proxy(), "web.mesh", "/").await.status(), 404, "nobody new is believed");
        assert_eq!(metric(&odd, "starling_certificate_valid").await, 0.0);

        set_calendar(&file, 0);
        let began = Clock::System.now();
        odd.finds("web", 1).await;
        web.sees("odd", "alive").await;
        assert_eq!(get(odd.http_proxy(), "web.mesh", "/").await.status(), 200);
        odd.logs("this node's certificate is valid again").await;
        println!("{leap:+} s: together {:?} after the calendar was set right", Clock::System.now() - began);
    }
}

/// A restart with the calendar a month back speaks above its earlier life: with a store at once,
/// without one as soon as it hears of that life.
#[tokio::test]
async fn a_restart_with_the_calendar_set_back_is_no_stale_life() {
    let mesh = Mesh::new();
    let caller = mesh.node("caller").start().await;
    caller.rotate(&mesh.issue_old("spiffe://acme/svc/caller"));
    caller.logs("took new credentials").await;
    for (name, remembers) in [("web", true), ("orders", false)] {
        let file = mesh.directory().join(format!("{name}-calendar"));
        set_calendar(&file, 0);
        let workload = Http::start(mesh.ip(), name).await;
        let node = calendar(mesh.node(name), &file).serves(name, workload.address());
        let node = if remembers { node.remembers() } else { node };
        let mut node = node.start().await;
        caller.finds(name, 1).await;
        let incarnation = async || {
            let members = caller.admin().get("/v1/members").await.json;
            members.as_array()?.iter().find(|it| it["node"] == name)?["incarnation"].as_u64()
        };
        let first = incarnation().await.expect("a member");
        // A calendar that makes its certificate invalid keeps a node from starting at all, and one that
        // makes its earlier record's invalid keeps it from hearing itself.
        node.rotate(&mesh.issue_old(&format!("spiffe://acme/svc/{name}")));
        let before = eventually("the life under the old certificate", async || {
            incarnation().await.filter(|it| *it > first)
        })
        .await;
        node.kill().await;
        set_calendar(&file, -MONTH_SECONDS);
        node.restart().await;
        eventually("its next life", async || (incarnation().await? > before).then_some(())).await;
        caller.finds(name, 1).await;
        assert_eq!(get(caller.http_proxy(), &format!("{name}.mesh"), "/").await.status(), 200);
        let told =
            if remembers { "the calendar stands before this node's earlier life" } else { "a later life" };
        assert!(node.log().contains(told), "it says why");
    }
}
