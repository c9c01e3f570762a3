//! File descriptors: as many as the system allows, shared out before they run out.
//!
//! Gossip and peers' traffic need one for all of them, so a node without descriptors still routes
//! and answers; what must be refused is local connections, and calls that need a new connection to
//! the workload.

use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::debug;

/// Kept back: listeners, the admin API's connections (64), probes, files that are read again, the
/// runtime's own.
const RESERVED: u64 = 160;

/// The least that a share is, however few there are: then the system refuses before we do.
const SHARE_MIN: u64 = 16;

/// More than a million descriptors is more than any limit here asks for.
const WANTED: u64 = 1 << 20;

/// Raises the process's limit as far as it may: the usual soft limit of 1024 is for programs that
/// use `select(2)`.
pub(crate) fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(WANTED).min(WANTED);
    if limit.current.is_some_and(|current| current < most) {
        let raised = Rlimit { current: Some(most), maximum: limit.maximum };
        let outcome = setrlimit(Resource::Nofile, raised);
        debug!(from = limit.current, to = most, ?outcome, "descriptors");
    }
}

/// How many connections to and from local programs there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shares {
    /// Of all kinds together.
    pub(crate) total: usize,
    /// Of one kind: neither callers nor workloads can shut the others out.
    pub(crate) each: usize,
}

impl Shares {
    /// By the process's limit.
    pub(crate) fn now() -> Self {
        Self::of(getrlimit(Resource::Nofile).current.unwrap_or(WANTED))
    }

    fn of(limit: u64) -> Self {
        let total = limit.saturating_sub(RESERVED).max(SHARE_MIN);
        let total = usize::try_from(total).unwrap_or(usize::MAX);
        Self { total, each: total / 4 * 3 }
    }
}

/// Whether an operation failed because this process, or the machine, has no descriptor, memory or
/// local port left. That says nothing about the other end.
pub(crate) fn or_the_like_are_used_up(error: &io::Error) -> bool {
    let errno = error.raw_os_error();
    USED_UP.iter().any(|used_up| errno == Some(used_up.raw_os_error()))
}

/// `ADDRNOTAVAIL` is what `connect(2)` says when all local ports towards an address are in use.
const USED_UP: [Errno; 5] = [Errno::MFILE, Errno::NFILE, Errno::ADDRNOTAVAIL, Errno::NOBUFS, Errno::NOMEM];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_ports_are_used_up_is_not_the_other_ends_fault() {
        let told =
            |errno: Errno| or_the_like_are_used_up(&io::Error::from_raw_os_error(errno.raw_os_error()));
        assert!(told(Errno::MFILE) && told(Errno::ADDRNOTAVAIL) && told(Errno::NOMEM));
        assert!(!told(Errno::CONNREFUSED) && !or_the_like_are_used_up(&io::Error::other("TLS")));
    }

    #[test]
    fn a_share_leaves_room_for_the_other_one() {
        assert_eq!(Shares::of(1024), Shares { total: 864, each: 648 });
        assert_eq!(Shares::of(0).total, SHARE_MIN as usize);
    }
}
