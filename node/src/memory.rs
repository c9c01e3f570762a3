//! What memory this process uses and may use, as the system says, and keeping the one below the
//! other. What to do about it is [`crate::pressure`]'s to decide.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::Duration;

use starling_gossip::clock::{Clock, Instant};
use tracing::{info, warn};

use crate::allocator;
use crate::allowance::ALLOWANCE;
use crate::pressure::{self, Pressure, SAMPLE_PERIOD};
use crate::proxy::gate::Gate;
use crate::surplus;

/// How often free memory is given back while memory is short, at most.
const GIVE_BACK_PERIOD: Duration = Duration::from_millis(250);

/// And in so many times as long as it took: nobody gets memory meanwhile.
const GIVE_BACK_PAUSE: u32 = 20;

/// When a node has started, and its start's code is used no more.
const STARTED_AFTER: Duration = Duration::from_secs(5);

/// Work of one kind, which can be refused and cut off.
struct Watched {
    what: &'static str,
    gate: Gate,
    pressure: Pressure,
}

/// Keeps the process below `bytes_max` by refusing work at the `gates` and by what [`ALLOWANCE`] grants, for as long as
/// this lives.
///
/// It looks from a thread of its own: behind a thousand tasks that fill their buffers it would look too late.
pub(crate) async fn keep_below(bytes_max: u64, gates: Vec<(&'static str, Gate)>, clock: Clock) {
    let is_ended = Arc::new(AtomicBool::new(false));
    let seen = is_ended.clone();
    let look = move || look_until(&seen, bytes_max, gates, &clock);
    match std::thread::Builder::new().name("memory".to_owned()).spawn(look) {
        Ok(thread) => {
            let _life = Life { is_ended, thread: thread.thread().clone() };
            std::future::pending().await
        }
        Err(why) => warn!(%why, "memory is not looked after: no thread can be had"),
    }
}

/// As long as it lives, memory is looked at.
struct Life {
    is_ended: Arc<AtomicBool>,
    thread: Thread,
}

impl Drop for Life {
    fn drop(&mut self) {
        self.is_ended.store(true, Ordering::Relaxed);
        self.thread.unpark();
    }
}

fn look_until(is_ended: &AtomicBool, bytes_max: u64, gates: Vec<(&'static str, Gate)>, clock: &Clock) {
    let watched = |(what, gate)| Watched { what, gate, pressure: Pressure::new(bytes_max) };
    let mut all: Vec<Watched> = gates.into_iter().map(watched).collect();
    let mut was_short = false;
    let mut next_give_back = clock.now();
    let mut next_look = clock.now();
    let mut started_at = Some(clock.now() + STARTED_AFTER);
    let kernel = KernelShare::find();
    let mut of_kernel = 0;
    metrics::gauge!("starling_memory_max_bytes").set(bytes_max as f64);
    ALLOWANCE.look_from_here();
    while !is_ended.load(Ordering::Relaxed) {
        let is_due = clock.now() >= next_look;
        if started_at.take_if(|at| clock.now() >= *at).is_some() {
            surplus::give_back_code();
        }
        if is_due && was_short && clock.now() >= next_give_back {
            let began = clock.now();
            surplus::give_back();
            let now = clock.now();
            next_give_back = now + GIVE_BACK_PERIOD.max((now - began) * GIVE_BACK_PAUSE);
        }
        // With a probe beside it the last that is known counts: what comes and goes would be taken for growth.
        if let (true, Some(known)) = (is_due, kernel.as_ref().and_then(KernelShare::bytes)) {
            of_kernel = known;
        }
        let bytes = used().map(|bytes| bytes + of_kernel);
        // A look before its time is for those who wait, and grants them nothing if there is no room.
        let is_roomy = bytes.is_none_or(|bytes| pressure::is_roomy(bytes_max, bytes));
        if is_due || (is_roomy && ALLOWANCE.is_used_up()) {
            ALLOWANCE.grant(bytes.map_or(u64::MAX, |bytes| pressure::allowance(bytes_max, bytes)));
        }
        if let (true, Some(bytes)) = (is_due, bytes) {
            metrics::gauge!("starling_memory_used_bytes").set(bytes as f64);
            let now = clock.now();
            all.iter_mut().for_each(|watched| watched.handle_sample(bytes, now));
            let is_short = all.iter().any(|watched| watched.pressure.is_short());
            allocator::set_short(is_short);
            match (std::mem::replace(&mut was_short, is_short), is_short) {
                (false, true) => warn!(bytes, bytes_max, "memory is short: new work is refused"),
                (true, false) => info!(bytes, bytes_max, "memory suffices again"),
                _ => {}
            }
        }
        if is_due {
            let period = all.iter().map(|watched| watched.pressure.sample_period()).min();
            next_look = clock.now() + period.unwrap_or(SAMPLE_PERIOD);
        }
        std::thread::park_timeout(next_look.saturating_duration_since(clock.now()));
    }
    ALLOWANCE.grant(u64::MAX);
    allocator::set_short(false);
}

impl Watched {
    fn handle_sample(&mut self, bytes: u64, now: Instant) {
        let under_way = self.gate.under_way();
        let order = self.pressure.handle_sample(bytes, under_way, now);
        self.gate.set_ceiling(order.ceiling);
        if order.cut && self.gate.cut_half() {
            warn!(bytes, what = self.what, under_way, "memory is critical: half is cut off");
        }
    }
}

/// What the node may use when nobody says: what its control group may, else half of the machine's.
/// `None` where the system does not tell.
pub(crate) fn default_max() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = limit_files(&groups).into_iter().filter_map(|file| limit_in(&file)).min();
    max_within(group, total_of_machine())
}

/// A group's limit above the `machine`'s memory is none.
fn max_within(group: Option<u64>, machine: Option<u64>) -> Option<u64> {
    let group = group.filter(|group| machine.is_none_or(|machine| *group < machine));
    group.or(machine.map(|machine| machine / 2))
}

/// The files that may hold a limit of ours, by the lines of `/proc/self/cgroup` (cgroups(7)): of
/// version 2 `0::/path`, of version 1 `N:memory:/path`. Inside a container the path's own root is
/// mounted.
fn limit_files(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, name) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        // Every group above limits us as well.
        let path = Path::new(path.trim_start_matches('/'));
        files.extend(path.ancestors().map(|path| Path::new(root).join(path).join(name)));
    }
    files
}

/// `max`, and version 1's enormous number, are no limit that matters.
fn limit_in(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// By sysinfo(2): `/proc/meminfo` is hidden from a unit with `ProcSubset=pid`.
fn total_of_machine() -> Option<u64> {
    let system = rustix::system::sysinfo();
    // A C long of 32 bits on some machines.
    #[allow(clippy::useless_conversion, reason = "it converts where a long has 32 bits")]
    let total = u64::from(system.totalram).saturating_mul(system.mem_unit.into());
    Some(total).filter(|bytes| *bytes > 0)
}

/// Memory that only this process can give back: its resident pages without those of files, which
/// the system drops by itself (proc_pid_statm(5): the second and third number are pages).
fn used() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = statm.split(' ').skip(1).map_while(|number| number.parse::<u64>().ok());
    let (resident, of_files) = (pages.next()?, pages.next()?);
    Some(resident.saturating_sub(of_files) * rustix::param::page_size() as u64)
}

/// The control group whose only process this is: what the kernel holds for it, no process is told.
struct KernelShare {
    group: PathBuf,
    file: &'static str,
}

impl KernelShare {
    /// Of version 1 a file says it, of version 2 some lines of another.
    const FILES: [&str; 2] = ["memory.kmem.usage_in_bytes", "memory.stat"];

    fn find() -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let limits = limit_files(&groups).into_iter();
        limits.filter_map(|limit| Some(limit.parent()?.to_owned())).find_map(|group| {
            let file = Self::FILES.into_iter().find(|file| group.join(file).is_file())?;
            Some(Self { group, file })
        })
    }

    /// Sockets, what waits in them, threads and page tables. `None` with others in the group: it may be theirs.
    fn bytes(&self) -> Option<u64> {
        let processes = fs::read_to_string(self.group.join("cgroup.procs")).ok()?;
        if processes.trim().parse() != Ok(std::process::id()) {
            return None;
        }
        kernel_bytes(&fs::read_to_string(self.group.join(self.file)).ok()?)
    }
}

/// The kernel's part of what a group uses: a number, or the lines of `memory.stat` that are not of processes or files.
fn kernel_bytes(told: &str) -> Option<u64> {
    const OF_KERNEL: [&str; 5] = ["sock", "slab", "kernel_stack", "pagetables", "percpu"];
    let line = |line: &str| {
        let (key, bytes) = line.split_once(' ')?;
        OF_KERNEL.contains(&key).then(|| bytes.parse::<u64>().ok())?
    };
    told.trim().parse().ok().or_else(|| told.lines().filter_map(line).reduce(|all, one| all + one))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_holds_is_a_number_or_some_lines() {
        assert_eq!(kernel_bytes("1257472\n"), Some(1_257_472));
        let lines = "anon 100\nfile 200\nkernel 15\nkernel_stack 1\npagetables 2\npercpu 4\nsock 8\n\
                     shmem 0\nslab_reclaimable 6\nslab 16\n";
        assert_eq!(kernel_bytes(lines), Some(31));
        assert_eq!(kernel_bytes("anon 100\n"), None);
    }

    #[test]
    fn limits_of_all_groups_above_are_looked_at() {
        let files = limit_files("12:memory:/pods/web\n3:cpu:/pods/web\n0::/pods/web\n");
        let names: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
        assert_eq!(
            names,
            [
                "/sys/fs/cgroup/memory/pods/web/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/pods/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                "/sys/fs/cgroup/pods/web/memory.max",
                "/sys/fs/cgroup/pods/memory.max",
                "/sys/fs/cgroup/memory.max",
            ]
        );
        assert!(limit_files("nonsense").is_empty());
    }

    #[test]
    fn the_groups_limit_counts_and_the_machines_half_where_there_is_none() {
        assert_eq!(max_within(Some(300), Some(1000)), Some(300));
        assert_eq!(max_within(Some(300), None), Some(300), "whatever is known of the machine");
        assert_eq!(max_within(Some(u64::MAX), Some(1000)), Some(500));
        assert_eq!(max_within(None, Some(1000)), Some(500));
        assert_eq!(max_within(None, None), None);
    }

    #[test]
    fn the_machines_memory_is_read() {
        let meminfo = fs::read_to_string("/proc/meminfo").expect("readable here");
        let told = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.strip_suffix(" kB"));
        let told: u64 = told.expect("a total").trim().parse().expect("a number");
        assert_eq!(total_of_machine(), Some(told * 1024));
        assert!(used().is_some_and(|bytes| bytes > 0));
        assert!(default_max().is_some_and(|bytes| bytes > used().unwrap_or(u64::MAX)));
    }
}
