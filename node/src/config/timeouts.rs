//! How long calls may take: keys that `[[outbound]]` and `[http_proxy]` have in common.

use std::time::Duration;

use super::limits::{IDLE_TIMEOUT, TIMEOUT};
use super::section::Section;
use super::value::{duration, show_duration};

/// A request of which nothing moves in either direction holds its place for so long, as in Envoy:
/// longer than people wait, and than servers let a stream be silent that they watch.
const IDLE_OF_REQUESTS: Duration = Duration::from_secs(300);

/// Connections are kept by pools that use them seldom; an hour is Envoy's, too.
const IDLE_OF_CONNECTIONS: Duration = Duration::from_secs(3600);

/// How long one call may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From a request's head to its answer's end; `None` is as long as it takes, for an answer may be
    /// a stream. A gRPC client's own deadline counts where it is shorter. Not for TCP, nor for what
    /// has switched to another protocol.
    pub total: Option<Duration>,
    /// From sending a request to one instance to its answer's head. A request that may be sent twice
    /// goes to another instance then. Longer than a good answer takes at its slowest.
    pub attempt: Option<Duration>,
    /// While nothing moves in either direction; `None` is five minutes for requests and an hour for
    /// connections, zero is for ever. Longer than the pauses of what is watched or kept.
    pub idle: Option<Duration>,
}

impl Timeouts {
    /// How long a request may stand still.
    pub(crate) fn idle_of_requests(&self) -> Option<Duration> {
        Some(self.idle.unwrap_or(IDLE_OF_REQUESTS)).filter(|idle| !idle.is_zero())
    }

    /// How long a connection may: TCP, or what has switched to another protocol.
    pub(crate) fn idle_of_connections(&self) -> Option<Duration> {
        Some(self.idle.unwrap_or(IDLE_OF_CONNECTIONS)).filter(|idle| !idle.is_zero())
    }
}

/// Reads the keys out of `section`, which may have others.
pub(super) fn read(section: &mut Section<'_>) -> Timeouts {
    let timeouts = Timeouts {
        total: section.optional("timeout", duration(TIMEOUT)),
        attempt: section.optional("attempt_timeout", duration(TIMEOUT)),
        idle: section.optional("idle_timeout", duration(IDLE_TIMEOUT)),
    };
    if let (Some(total), Some(attempt)) = (timeouts.total, timeouts.attempt)
        && attempt > total
    {
        section.report().add(
            &section.path_of("attempt_timeout"),
            format!(
                "one attempt may take {} and all together {}",
                show_duration(attempt),
                show_duration(total)
            ),
            "make it shorter than timeout, or leave it out",
        );
    }
    timeouts
}
