//! File descriptors: as many as the system allows, shared out before they run out.
//!
//! Gossip and peers' traffic need one for all of them, so a node without descriptors still routes
//! and answers; what must be refused is local connections, and calls that need a new connection to
//! the workload.

use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::debug;

use crate::admin;
use crate::config::{Config, ProbeQuestion};
use crate::proxy::refusal::REFUSALS_MAX;

/// Kept back for what every node needs besides: gossip's socket, the store, files that are read
/// again, the log, the runtime's own.
const RESERVED: usize = 32;

/// An `exec` probe reads two pipes and waits for its process; every other asks over one connection.
const PROBE_MAX: usize = 3;

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
    /// By the process's limit, with `reserved` kept back.
    pub(crate) fn now(reserved: usize) -> Self {
        Self::of(getrlimit(Resource::Nofile).current.unwrap_or(WANTED), reserved)
    }

    fn of(limit: u64, reserved: usize) -> Self {
        let total = limit.saturating_sub(reserved as u64).max(SHARE_MIN);
        let total = usize::try_from(total).unwrap_or(usize::MAX);
        Self { total, each: total / 4 * 3 }
    }
}

/// How many descriptors are kept back for what is neither a local program's connection nor one to a
/// workload: the admin API, answers to those that are refused, listeners, probes. Instances that are
/// registered later are not foreseen; their probes wait while none is left.
pub(crate) fn reserved(config: &Config) -> usize {
    let admin = admin::CONNECTIONS_MAX + 1 + usize::from(config.admin.socket.is_some());
    let listeners = config.outbounds.len() + usize::from(config.http_proxy.is_some());
    let questions = config.services.iter().filter_map(|service| service.probe.as_ref());
    let probes = questions.map(|probe| match probe.question {
        ProbeQuestion::Exec { .. } => PROBE_MAX,
        ProbeQuestion::Http { .. } | ProbeQuestion::Tcp | ProbeQuestion::Grpc { .. } => 1,
    });
    RESERVED + admin + REFUSALS_MAX + listeners + probes.sum::<usize>()
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
        assert_eq!(Shares::of(1024, 160), Shares { total: 864, each: 648 });
        assert_eq!(Shares::of(0, 160).total, SHARE_MIN as usize);
    }

    #[test]
    fn what_is_kept_back_grows_with_the_configuration() {
        let reserved = |text: &str| {
            let none: [(String, String); 0] = [];
            let config = Config::parse(text, std::path::Path::new("starling.toml"), none);
            reserved(&config.expect("a configuration"))
        };
        let service = |number: u16, probe: &str| {
            let name = format!("name = \"web\"\nid = \"i{number}\"\naddress = \"127.0.0.1:{number}\"");
            format!("[[service]]\n{name}\n[service.probe]\n{probe}\n")
        };
        let bare = reserved("");
        assert!(bare > RESERVED + admin::CONNECTIONS_MAX + REFUSALS_MAX, "{bare}");
        let probed = service(1, "tcp = true") + &service(2, "exec = [\"/bin/true\"]");
        assert_eq!(reserved(&probed), bare + 1 + PROBE_MAX);
        let listening = "[http_proxy]\nlisten = \"127.0.0.1:8080\"\n\
                         [[outbound]]\nservice = \"db\"\nlisten = \"127.0.0.1:5432\"";
        assert_eq!(reserved(listening), bare + 2);
    }
}
