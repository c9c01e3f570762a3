//! `[node]`, `[mesh]`, `[identity]` and `[gossip]`: who this node is, and how it meets the others.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use starling_gossip::handle::Budget;
use starling_gossip::identity::NodeName;
use starling_gossip::limits::{LEASE_MILLIS_MAX, LEASE_MILLIS_MIN, RENEWALS_MISSED_MAX};
use starling_gossip::record::Locality;

use super::address::{Host, HostPort};
use super::limits::{
    DRAIN_TIMEOUT, GOSSIP_BUDGET, GOSSIP_CONNECTIONS, GOSSIP_INTERVAL, GOSSIP_RENEW, SEEDS_MAX, WORKERS,
};
use super::mistake::Wrong;
use super::reader::Reader;
use super::relations::Claims;
use super::section::{Given, Section};
use super::value::{
    HOST_PORT, duration, label, listen_address, node_name, number, path, peer_address, show_duration, size,
    socket_address,
};

/// `[node]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Unique in the mesh; the host's name by default.
    pub name: NodeName,
    /// The one UDP port for gossip and traffic. Port 0 lets the kernel choose.
    pub listen: SocketAddr,
    /// Where others reach this node. `None`: `listen` does not say (every address, or any port), so
    /// ask the kernel once the socket is bound.
    pub advertise: Option<SocketAddr>,
    /// Where it keeps what it knows over its own end. `None`: nowhere.
    pub data_dir: Option<PathBuf>,
    /// Where it stands.
    pub locality: Locality,
    /// How long a stopping node lets work in flight finish. Keep it below the orchestrator's own
    /// grace period (30 s in Kubernetes, 90 s in systemd).
    pub drain_timeout: Duration,
    /// Threads that carry traffic. One does most with a core; more do more where one core is not enough
    /// and others are free.
    pub workers: u16,
}

/// `[mesh]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mesh {
    /// Nodes to ask first. Empty for the first node of a mesh.
    pub seeds: Vec<HostPort>,
}

/// `[identity]`: files that are watched and read again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityFiles {
    /// The X.509-SVID's chain, leaf first.
    pub certificate: PathBuf,
    /// The leaf's key.
    pub key: PathBuf,
    /// The roots of the trust domain.
    pub trust_bundle: PathBuf,
    /// Who is believed no more, if there is such a list.
    pub revoked: Option<PathBuf>,
}

/// `[gossip]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gossip {
    /// How often this node talks to three others while nothing changes. News does not wait for it.
    pub interval: Duration,
    /// How long after its last renewal others may believe in this node.
    pub lease: Duration,
    /// How often this node renews.
    pub renew: Duration,
    /// What gossip may cost.
    pub budget: Budget,
}

/// Renewals in one lease unless something else is said: three may be missed before it ends.
const RENEWALS_IN_A_LEASE: u32 = 4;

/// The port of a node when nothing else is said.
const DEFAULT_PORT: u16 = 7400;

pub(super) fn read_node(mut section: Section<'_>, base: &Path, claims: &mut Claims) -> Option<Node> {
    let uname = rustix::system::uname();
    let name = section.or_text("name", &uname.nodename().to_string_lossy(), node_name());
    let listen =
        section.or("listen", SocketAddr::from((Ipv4Addr::UNSPECIFIED, DEFAULT_PORT)), listen_address());
    claims.datagrams(&section, listen);
    let advertise = section.optional("advertise", Reader::text(HOST_PORT, advertised_address));
    let says_where = !listen.ip().is_unspecified() && listen.port() != 0;
    let advertise = advertise.or(says_where.then_some(listen));
    section.follows("advertise", advertise.as_ref());

    let data_dir = section.optional("data_dir", path(base));
    let mut place = section.section("locality");
    let locality = Locality {
        region: place.optional("region", label()),
        zone: place.optional("zone", label()),
        site: place.optional("site", label()),
    };
    place.finish();

    let drain_timeout = section.or("drain_timeout", Duration::from_secs(30), duration(DRAIN_TIMEOUT));
    let workers = section.or("workers", 1, number(WORKERS));
    section.finish();
    Some(Node { name: name?, listen, advertise, data_dir, locality, drain_timeout, workers })
}

fn advertised_address(given: Given<'_>) -> Result<SocketAddr, Wrong> {
    let address = socket_address(given)?;
    HostPort { host: Host::Ip(address.ip()), port: address.port() }.check_dialable()?;
    Ok(address)
}

pub(super) fn read_mesh(mut section: Section<'_>) -> Mesh {
    let seeds = section.list("seeds", peer_address());
    if seeds.len() > SEEDS_MAX {
        let problem = format!("{} seeds are more than anybody needs", seeds.len());
        section.report().add(
            "mesh.seeds",
            problem,
            format!("name at most {SEEDS_MAX}; one is enough to join"),
        );
    }
    section.finish();
    Mesh { seeds }
}

/// The defaults are the names that cert-manager and `kubernetes.io/tls` secrets use, beside the
/// configuration file.
pub(super) fn read_identity(mut section: Section<'_>, base: &Path) -> IdentityFiles {
    let files = IdentityFiles {
        certificate: section.or("certificate", base.join("tls.crt"), path(base)),
        key: section.or("key", base.join("tls.key"), path(base)),
        trust_bundle: section.or("trust_bundle", base.join("ca.crt"), path(base)),
        revoked: section.optional("revoked", path(base)),
    };
    section.finish();
    files
}

impl Default for Gossip {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(1),
            lease: Duration::from_secs(120),
            renew: Duration::from_secs(30),
            budget: Budget::default(),
        }
    }
}

pub(super) fn read_gossip(mut section: Section<'_>) -> Gossip {
    let default = Gossip::default();
    let lease_range =
        Duration::from_millis(LEASE_MILLIS_MIN.into())..=Duration::from_millis(LEASE_MILLIS_MAX.into());
    let interval = section.or("interval", default.interval, duration(GOSSIP_INTERVAL));
    let lease = section.or("lease", default.lease, duration(lease_range));
    // Who only shortens the lease means to be forgotten sooner, and not to be told to renew oftener.
    let renew = section.or("renew", default.renew.min(lease / RENEWALS_IN_A_LEASE), duration(GOSSIP_RENEW));
    let bytes_per_second = section.or("budget", default.budget.bytes_per_second.into(), size(GOSSIP_BUDGET));
    let connections_max =
        section.or("connections_max", default.budget.connections_max as u32, number(GOSSIP_CONNECTIONS));
    let budget =
        Budget { bytes_per_second: bytes_per_second as u32, connections_max: connections_max as usize };
    let gossip = Gossip { interval, lease, renew, budget };
    // A node must look suspect before it is gone, or one lost renewal too many drops it unseen.
    let suspect_after = gossip.renew * RENEWALS_MISSED_MAX;
    if gossip.lease <= suspect_after {
        let (lease, renew) = (show_duration(gossip.lease), show_duration(gossip.renew));
        section.report().add(
            "gossip.lease",
            format!(
                "a lease of {lease} ends before {RENEWALS_MISSED_MAX} renewals every {renew} can be missed"
            ),
            format!("make lease longer than {}, or renew more often", show_duration(suspect_after)),
        );
    }
    section.finish();
    gossip
}
