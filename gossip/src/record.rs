//! Records: what owners say about themselves, and the bytes they sign.
//!
//! A *node record* introduces an owner: where it listens, the certificate chain that proves it,
//! and the anchor of its lease. An *instance record* says that the owner serves something. A
//! *renewal* prolongs the lease. Owners state facts about themselves only, so no record names
//! another owner.
//!
//! Order among one owner's records is `(incarnation, version)`: an incarnation is one life of the
//! node, a version grows with every record the owner seals in it. Signatures are made and checked
//! in [`crate::signature`]; what a record may do is decided in [`crate::catalogue`].

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use crate::identity::{NodeName, ServiceName, SpiffeId};
use crate::limits::{
    ADDRESSES_MAX, CAPABILITIES_MAX, CERTIFICATE_BYTES_MAX, CHAIN_CERTIFICATES_MAX, LABEL_BYTES_MAX,
    LEASE_LINKS_MAX, LEASE_MILLIS_MAX, LEASE_MILLIS_MIN, TAGS_MAX,
};
use crate::wire::COUNTER_MAX;

/// Whose record it is: an identity at a node. Several nodes may share an identity (replicas), and
/// a hostile member may claim another's node name, but never another's identity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Owner {
    /// The identity that signs.
    pub identity: SpiffeId,
    /// The node it runs on.
    pub node: NodeName,
}

/// Orders one owner's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// One life of the node; later lives are greater. Owners use milliseconds since 1970.
    pub incarnation: u64,
    /// Grows with every record sealed in this life.
    pub version: u64,
}

/// Anything an owner may sign.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// Introduces the owner.
    Node(NodeRecord),
    /// Something the owner serves.
    Instance(InstanceRecord),
}

/// Introduces an owner: how to reach it, and how to believe it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Who speaks.
    pub owner: Owner,
    /// When it was said.
    pub version: Version,
    /// Where the node listens (UDP), best first.
    pub addresses: Vec<SocketAddr>,
    /// Where the node stands.
    pub locality: Locality,
    /// What the node can do beyond the first protocol version; unknown ones are ignored.
    pub capabilities: Vec<Label>,
    /// The program's version, for people.
    pub program: Label,
    /// The certificate chain, leaf first, DER. The leaf's key signs all records of the owner.
    pub chain: Vec<Vec<u8>>,
    /// How long the owner counts as present, and what proves a renewal.
    pub lease: Lease,
    /// The life that this one continues under a new key (a rotated certificate): its instances
    /// stand until they are said anew. `None` after a restart, whose earlier instances are gone.
    pub continues: Option<u64>,
    /// The owner has left for good: its instances are gone with this record.
    pub left: bool,
}

/// A promise to be present, renewed by showing the next link of a hash chain (see
/// [`crate::lease`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// How long after a renewal others may believe in the owner.
    pub length_millis: u32,
    /// How often the owner means to renew.
    pub renew_millis: u32,
    /// The end of the hash chain: link 0.
    pub anchor: [u8; 32],
}

/// Proof that the owner was alive: link `counter` of the chain anchored in its node record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    /// The life it belongs to.
    pub incarnation: u64,
    /// Which link; 1 is the first renewal.
    pub counter: u32,
    /// The link.
    pub link: [u8; 32],
}

/// Something an owner serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRecord {
    /// Who speaks.
    pub owner: Owner,
    /// When it was said.
    pub version: Version,
    /// Names the instance among its owner's.
    pub id: Label,
    /// What it says of the instance; `None` withdraws it.
    pub instance: Option<Instance>,
}

/// One workload serving a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// What it serves.
    pub service: ServiceName,
    /// How it speaks.
    pub protocol: Protocol,
    /// The workload's version, if it has one.
    pub version: Option<Label>,
    /// Free labels for routing.
    pub tags: BTreeMap<Label, Label>,
    /// Its share among its service's instances; 0 takes no new work.
    pub weight: u16,
    /// What its node's probes say.
    pub health: Health,
    /// Since when that is so, milliseconds since 1970 by the owner's calendar; for people only.
    pub since_unix_millis: u64,
}

/// How a workload speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1 and cleartext HTTP/2, detected: also gRPC and WebSocket.
    Http,
    /// Opaque bytes.
    Tcp,
}

/// Whether an instance should get work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Not probed yet.
    Unknown,
    /// Takes work.
    Healthy,
    /// Its probes fail.
    Unhealthy,
    /// Finishes what it has; takes nothing new.
    Draining,
}

/// Where a node stands, from wide to narrow.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Locality {
    /// For instance `eu-west`.
    pub region: Option<Label>,
    /// For instance `eu-west-1a`.
    pub zone: Option<Label>,
    /// Nodes of one site reach each other directly; for instance `aws`.
    pub site: Option<Label>,
}

/// A short printable text: 1 to 63 characters without spaces or control characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label(Arc<str>);

/// Why a text is no label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a label: 1 to {LABEL_BYTES_MAX} visible ASCII characters without spaces")]
pub struct LabelError(String);

/// A bound that a well-formed record still breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BoundError(&'static str);

impl Record {
    /// Who speaks.
    pub fn owner(&self) -> &Owner {
        match self {
            Self::Node(node) => &node.owner,
            Self::Instance(instance) => &instance.owner,
        }
    }

    /// When it was said.
    pub fn version(&self) -> Version {
        match self {
            Self::Node(node) => node.version,
            Self::Instance(instance) => instance.version,
        }
    }

    /// Checks the bounds that types alone do not keep.
    pub fn check_bounds(&self) -> Result<(), BoundError> {
        if self.version().version >= COUNTER_MAX {
            return Err(BoundError("a version that nobody could speak above"));
        }
        match self {
            Self::Node(node) => node.check_bounds(),
            Self::Instance(InstanceRecord { instance: Some(instance), .. })
                if instance.tags.len() > TAGS_MAX =>
            {
                Err(BoundError("more tags than an instance may have"))
            }
            Self::Instance(_) => Ok(()),
        }
    }
}

impl NodeRecord {
    fn check_bounds(&self) -> Result<(), BoundError> {
        let lease = &self.lease;
        let rules = [
            (self.addresses.is_empty(), "a node without an address"),
            (self.addresses.len() > ADDRESSES_MAX, "more addresses than a node may have"),
            (self.capabilities.len() > CAPABILITIES_MAX, "more capabilities than a node may have"),
            (self.chain.is_empty(), "a node without a certificate"),
            (self.chain.len() > CHAIN_CERTIFICATES_MAX, "more certificates than a chain may have"),
            (self.chain.iter().any(|one| one.len() > CERTIFICATE_BYTES_MAX), "a certificate too large"),
            (!(LEASE_MILLIS_MIN..=LEASE_MILLIS_MAX).contains(&lease.length_millis), "a lease out of bounds"),
            (
                lease.renew_millis == 0 || lease.renew_millis > lease.length_millis / 2,
                "a lease renewed too seldom",
            ),
        ];
        match rules.iter().find(|(broken, _)| *broken) {
            Some((_, rule)) => Err(BoundError(rule)),
            None => Ok(()),
        }
    }
}

impl Owner {
    /// A short name, the same on every node: 16 hexadecimal digits of a hash of identity and node
    /// name. It is what the repair path calls the owner, where every byte is sent again each round.
    pub fn short_name(&self) -> String {
        format!("{:016x}", self.number())
    }

    /// The short name as a number.
    pub(crate) fn number(&self) -> u64 {
        let text = [self.identity.as_str(), self.node.as_str()].join("\0");
        let hash = digest(&SHA256, text.as_bytes());
        let (first, _) = hash.as_ref().split_first_chunk().expect("a SHA-256 has more than 8 bytes");
        u64::from_be_bytes(*first)
    }
}

impl Renewal {
    /// Whether the counter is one that a chain can have.
    pub fn is_in_bounds(&self) -> bool {
        (1..=LEASE_LINKS_MAX).contains(&self.counter)
    }
}

impl Locality {
    /// How far apart two nodes stand: 0 the same in all, 1 the same zone, 2 the same region, 3
    /// elsewhere. A level that neither names counts as the same.
    pub fn distance(&self, other: &Self) -> u8 {
        if self.region != other.region {
            3
        } else if self.zone != other.zone {
            2
        } else if self.site != other.site {
            1
        } else {
            0
        }
    }
}

impl Label {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Label {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        if text.is_empty() || text.len() > LABEL_BYTES_MAX || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(LabelError(text.chars().take(LABEL_BYTES_MAX + 1).collect()));
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for Label {
    type Error = LabelError;
    fn try_from(text: String) -> Result<Self, LabelError> {
        text.parse()
    }
}

impl From<Label> for String {
    fn from(label: Label) -> String {
        label.0.as_ref().to_owned()
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.identity, self.node)
    }
}

impl Health {
    /// The word for it, as in JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Draining => "draining",
        }
    }
}

impl Protocol {
    /// The word for it, as in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tcp => "tcp",
        }
    }
}
