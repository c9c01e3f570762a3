//! Every maximum of a node that an operator may tune, and the bounds of what they may write, each
//! with its reason.
//!
//! Maxima of the gossip core, which nobody tunes, live in `starling_gossip::limits`.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::section::Section;
use super::value::{number, size};

/// `[limits]`: what one node takes on before it answers "overloaded" to the newest work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections of local workloads, over all listeners. Each costs a descriptor and some tens of
    /// KiB when busy; raise it together with `ulimit -n`, which must be more than twice as high.
    pub connections_max: u32,
    /// Requests and TCP streams under way at once, inbound and outbound each. Ten thousand is a
    /// second of queue at 10,000 requests a second; more waiting helps nobody.
    pub requests_in_flight_max: u32,
    /// Kept-alive streams waiting for the next request to one endpoint, of HTTP/1.1 and of HTTP/2 each. As many as
    /// requests usually overlap, or streams are closed and opened all the time; each costs a few KiB at both ends.
    pub idle_streams_per_endpoint_max: u32,
    /// Memory this process may use, in bytes; `None` is what its control group allows, else half of
    /// the machine's. Above four fifths of it new work is refused, above nine tenths work is cut off.
    /// One connection's unread bytes are an eighth of it at most. A node without work needs 16 MiB.
    pub memory_max: Option<u64>,
    /// Tries of one request, the first included. Two retries hide a crashed endpoint and a stale
    /// route; more multiply the load of a service that is failing already.
    pub attempts_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 10_000,
            requests_in_flight_max: 10_000,
            idle_streams_per_endpoint_max: 256,
            memory_max: None,
            attempts_max: 3,
        }
    }
}

pub(super) fn read(mut section: Section<'_>) -> Limits {
    let default = Limits::default();
    let limits = Limits {
        connections_max: section.or("connections_max", default.connections_max, number(1..=1_000_000)),
        requests_in_flight_max: section.or(
            "requests_in_flight_max",
            default.requests_in_flight_max,
            number(1..=1_000_000),
        ),
        // None at all is a choice: a fresh stream per request.
        idle_streams_per_endpoint_max: section.or(
            "idle_streams_per_endpoint_max",
            default.idle_streams_per_endpoint_max,
            number(0..=10_000),
        ),
        memory_max: section.optional("memory_max", size(MEMORY)),
        attempts_max: section.or("attempts_max", default.attempts_max, number(1..=10)),
    };
    section.finish();
    limits
}

/// Below this a node has no room for work; above this nobody has a machine.
pub(super) const MEMORY: RangeInclusive<u64> = 32 * 1024 * 1024..=64 * 1024 * 1024 * 1024 * 1024;

/// The configuration file itself. A node agent with 256 services fits ten times.
pub(super) const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// A certificate, key, bundle or token file. A bundle of 64 roots takes about 128 KiB.
pub(super) const IDENTITY_FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Roots of a workload's issuer. Distributions ship about 150 public ones.
pub(super) const WORKLOAD_ROOTS_MAX: usize = 512;

/// Certificates that this node shows a workload; paths of more than a few intermediates do not exist.
pub(super) const WORKLOAD_CHAIN_MAX: usize = 10;

/// Seeds are needed only to join; one that answers is enough.
pub(super) const SEEDS_MAX: usize = 64;

/// Each outbound is a listening socket.
pub(super) const OUTBOUNDS_MAX: usize = 1024;

/// Above 1000 parts nobody can tell shares apart.
pub(super) const WEIGHT_MAX: u16 = 1000;

/// Orchestrators kill after 10 to 90 seconds by default; nobody waits an hour.
pub(super) const DRAIN_TIMEOUT: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);

/// Each is a thread with buffers of its own; no machine that a sidecar shares has more cores to spare.
pub(super) const WORKERS: RangeInclusive<u16> = 1..=256;

/// Probing oftener than this is load; seldomer than this is no health check.
pub(super) const PROBE_INTERVAL: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(600);

/// As for the interval, which it may not exceed.
pub(super) const PROBE_TIMEOUT: RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_secs(600);

/// Probes in a row that change an opinion.
pub(super) const PROBE_STREAK: RangeInclusive<u32> = 1..=100;

/// How long a registered instance stands without a heartbeat. Shorter would be load, and a busy
/// machine would flap; who needs longer than a day needs none.
pub(super) const REGISTRATION_TTL: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(86_400);

/// A fully qualified gRPC service name; protobuf sets no bound, people do.
pub(super) const GRPC_SERVICE_BYTES_MAX: usize = 255;

/// Words a probe's program is given; more belong into a script.
pub(super) const EXEC_ARGUMENTS_MAX: usize = 64;

/// How often a node talks to three others in calm. A renewal takes about as many rounds as the mesh's
/// size has digits; above half a minute a lease would run out on the way.
pub(super) const GOSSIP_INTERVAL: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(30);

/// Every renewal goes through the whole mesh, about 50 bytes to each node and three times as much from it.
pub(super) const GOSSIP_RENEW: RangeInclusive<Duration> =
    Duration::from_millis(200)..=Duration::from_secs(600);

/// Bytes a second. With less than a kilobyte no renewal would get through in a mesh of a hundred; ten
/// megabytes are a whole line of 80 Mbit/s.
pub(super) const GOSSIP_BUDGET: RangeInclusive<u64> = 1_000..=10_000_000;

/// A node talks to twelve neighbours, watches three and is watched by three; above a thousand it would be
/// connected with everybody.
pub(super) const GOSSIP_CONNECTIONS: RangeInclusive<u32> = 16..=1_024;

/// Leases end at most an hour after the last renewal, so nothing is "at once" over a longer time.
pub(super) const PANIC_WINDOW: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

/// Below a second one lost packet would decide; who wants endpoints kept for longer than a day wants a
/// list of addresses.
pub(super) const MAX_STALE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86_400);

/// A call that takes a day is no call.
pub(super) const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(86_400);

/// The same for standing still; zero is for ever.
pub(super) const IDLE_TIMEOUT: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(86_400);

/// One for each service that is called; `"*"` is for the rest.
pub(super) const UPSTREAMS_MAX: usize = 1_024;

/// How long a newcomer is spared. Nothing warms up for an hour.
pub(super) const SLOW_START: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);

/// Endpoints of a service that one caller uses. With fewer than ten, the loss of one is felt.
pub(super) const ENDPOINTS_USED: RangeInclusive<u32> = 10..=100_000;

/// Work of one kind that is under way with one service.
pub(super) const UPSTREAM_WORK: RangeInclusive<u32> = 1..=1_000_000;

/// Errors in a row; 0 is never.
pub(super) const CONSECUTIVE_ERRORS: RangeInclusive<u32> = 0..=1_000;

/// Over less than this nothing can be compared, over more an endpoint has failed for too long already.
pub(super) const OUTLIER_INTERVAL: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(600);

/// Answers without which nothing is compared.
pub(super) const OUTLIER_REQUESTS: RangeInclusive<u32> = 1..=1_000_000;

/// How long an endpoint is left out. Who would wait for longer than a day is better told.
pub(super) const EJECTION_TIME: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(86_400);

/// A host's name: RFC 1035, section 2.3.4.
pub(super) const DNS_NAME_BYTES_MAX: usize = 253;

/// A socket's path: Linux, `unix(7)`: `sun_path` holds 108 bytes, the last of them zero.
pub(super) const UNIX_PATH_BYTES_MAX: usize = 107;
