//! What a process costs, as the system counts it.

use std::fs;
use std::time::Duration;

use rustix::process::Pid;

/// Of `/proc/PID/stat`: what Linux tells user space, whatever the kernel's own tick is.
const TICKS_PER_SECOND: u64 = 100;

/// Its resident memory.
pub fn resident_bytes(pid: Pid) -> u64 {
    status_bytes(pid, "VmRSS:")
}

/// The most that this has been since somebody last wrote 5 to its `clear_refs`.
pub fn peak_bytes(pid: Pid) -> u64 {
    status_bytes(pid, "VmHWM:")
}

/// What of its resident memory is its own, and not a file's pages, which processes of one program share.
pub fn anonymous_bytes(pid: Pid) -> u64 {
    status_bytes(pid, "RssAnon:")
}

/// The processor time that it has used, in steps of ten milliseconds.
pub fn processor_time(pid: Pid) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).expect("a running process");
    // The program's name, in brackets, may hold anything.
    let (_, fields) = stat.rsplit_once(')').expect("a name");
    // The 14th and 15th of all, the 12th and 13th after the name.
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
    Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND)
}

fn status_bytes(pid: Pid, key: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()));
    let status = status.expect("a running process");
    let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("its memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}
