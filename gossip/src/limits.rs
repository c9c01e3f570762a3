//! Every maximum of the gossip core, each with its reason.
//!
//! A name carries its unit. Nothing here is configuration: these bounds are what lets a node
//! parse a stranger's bytes; what an operator may tune lives in the node's configuration.

use std::time::Duration;

pub use crate::wire::{DIGEST_BYTES_MAX, entry_bytes};

/// One sealed record on the wire. A node record with a chain of three P-256 certificates takes
/// about 2.5 KiB; Vault and SPIRE chains stay under 6 KiB.
pub const RECORD_BYTES_MAX: usize = 16 * 1024;

/// One gossip message. chitchat cuts its deltas so that a message fits a UDP datagram (65,507
/// bytes); the envelope adds a little.
pub const MESSAGE_BYTES_MAX: usize = 128 * 1024;

/// Certificates in a chain: a leaf, and up to three intermediates.
pub const CHAIN_CERTIFICATES_MAX: usize = 4;

/// One certificate. Real leaves take 0.5 to 2 KiB.
pub const CERTIFICATE_BYTES_MAX: usize = 8 * 1024;

/// Trust anchors in a bundle. During a root rotation there are two; federations stay under ten.
pub const TRUST_ANCHORS_MAX: usize = 64;

/// Entries of a revocation list. Each certificate that is judged is looked up in it; who must
/// distrust more than this should replace a root.
pub const REVOCATIONS_MAX: usize = 4096;

/// SPIFFE sets this bound for an ID (SPIFFE-ID, section 2.3).
pub const SPIFFE_ID_BYTES_MAX: usize = 2048;

/// A node name. Long enough for a host name's first labels, short enough for a table's column.
pub const NODE_NAME_BYTES_MAX: usize = 63;

/// A service name: a DNS label, or two with a dot (RFC 1035, section 2.3.4).
pub const SERVICE_NAME_BYTES_MAX: usize = 127;

/// A tag's key, a tag's value, a version, a locality level, an instance id.
pub const LABEL_BYTES_MAX: usize = 63;

/// Tags of one instance.
pub const TAGS_MAX: usize = 16;

/// Addresses under which one node may be reached.
pub const ADDRESSES_MAX: usize = 8;

/// Capabilities one node may announce.
pub const CAPABILITIES_MAX: usize = 16;

/// Owners (nodes) one catalogue holds, departed ones included. Above what chitchat's digest can
/// carry (about 1,149), with room for restarts.
pub const OWNERS_MAX: usize = 4096;

/// Owners that share one identity, its replicas: one stolen key cannot fill the table by inventing
/// node names.
pub const OWNERS_PER_IDENTITY_MAX: usize = 1024;

/// Instances one owner may announce, withdrawn ones included: a node agent with hundreds of
/// workloads fits, a member that invents instances does not fill anybody's memory.
pub const INSTANCES_PER_OWNER_MAX: usize = 256;

/// Records that wait for their owner's node record. They are unverified, so they are few; what is
/// pushed out is offered again by the repair path.
pub const WAITING_RECORDS_MAX: usize = 1024;

/// Links of one lease chain, and so the most hashes one renewal can cost its receiver (about 1 ms). At a
/// renewal every 5 s a chain lasts 5.7 hours; then the node record carries a new anchor.
pub const LEASE_LINKS_MAX: u32 = 4096;

/// The shortest lease an owner may state: shorter than a repair round it would flap.
pub const LEASE_MILLIS_MIN: u32 = 1_000;

/// The longest lease an owner may state: a crashed node is forgotten within an hour.
pub const LEASE_MILLIS_MAX: u32 = 3_600_000;

/// Renewals that an owner may be ahead of what the time since its last one explains: an owner that
/// was paused and catches up, two that came in the wrong order, one that refuted doubts.
pub const RENEWALS_AHEAD_MAX: u32 = 64;

/// How often, for one owner, a renewal further ahead than that is checked all the same: this
/// machine may have been suspended. Five hundred owners' forged leaps cost about 5 % of a core.
pub const RENEWAL_LEAP_PERIOD: Duration = Duration::from_secs(10);

/// Renewals missed before a member is shown as suspect and ranked lower.
pub const RENEWALS_MISSED_MAX: u32 = 3;

/// What a signature that proves nothing costs, in hashes: one is checked, and before it who may say so is worked out.
pub(crate) const VAIN_SIGNATURE_HASHES: f64 = 512.0;

/// How long a departed member stays visible to people. Its versions are remembered until its
/// certificate ends, so that nobody can replay it.
pub const DEPARTED_SHOWN: Duration = Duration::from_secs(600);

/// Changed values waiting between chitchat's callback and the loop, the newest for each key. When
/// it overflows the loop reads everything again, so nothing is lost.
pub const CHANGES_QUEUED_MAX: usize = 8192;

/// Commands waiting for the gossip loop; a full queue makes the caller wait.
pub const COMMANDS_QUEUED_MAX: usize = 64;

/// One value that a node remembers over its end: a record, or the list of acquaintances.
pub const MEMORY_VALUE_BYTES_MAX: usize = ACQUAINTANCES_BYTES_MAX;

/// Members that a node remembers the addresses of, chosen at random: one that answers is enough to
/// rejoin, and of 64 chosen among many it would be strange if all had gone.
pub const ACQUAINTANCES_MAX: usize = 64;

/// Their encoding, each with the longest SPIFFE ID.
pub const ACQUAINTANCES_BYTES_MAX: usize = ACQUAINTANCES_MAX * (SPIFFE_ID_BYTES_MAX + 64);

/// How often a node chooses anew whom to remember.
pub const ACQUAINTANCES_PERIOD: Duration = Duration::from_secs(60);

/// Remembered members that a node asks while it is alone: so many, and this often. Hundreds of
/// nodes that restart at once find each other within seconds, and none of them floods anybody.
pub const REJOIN_ASKED: usize = 4;

/// See [`REJOIN_ASKED`].
pub const REJOIN_PERIOD: Duration = Duration::from_secs(1);

/// How long what a calendar refuses is kept: records whose certificates are over may be waiting
/// for a clock to be set right. Two months, for a calendar that is a month off.
pub const REFUSED_BY_CALENDAR_KEPT: Duration = Duration::from_secs(60 * 86_400);
