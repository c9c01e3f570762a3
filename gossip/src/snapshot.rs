//! A frozen catalogue: what this node knows, immutable and shared.
//!
//! Readers (routes, admin, the gossip link's address book) hold an `Arc` of it; gossip publishes
//! the next one. It holds verified records only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::clock::Instant;
use crate::identity::{ServiceName, SpiffeId};
use crate::record::{Instance, Label, NodeRecord, Owner};

/// Whether an owner is there, as this node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Presence {
    /// Renews its lease.
    Alive,
    /// Has missed several renewals: ranked lower, removed by nothing but its lease.
    Suspect,
    /// Withdrew itself.
    Left,
    /// Its lease ran out.
    Expired,
}

/// All that is known at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Grows with every published snapshot of this node.
    pub generation: u64,
    /// Verified owners, the recently departed included.
    pub members: BTreeMap<Owner, Member>,
    /// What present owners serve.
    pub services: BTreeMap<ServiceName, Vec<ServiceInstance>>,
    /// Where present owners listen, and who may answer there: one identity, unless somebody claims
    /// another's address.
    pub addresses: BTreeMap<SocketAddr, BTreeSet<SpiffeId>>,
    /// The digest of all verified records; equal on nodes that know the same.
    pub digest: [u8; 32],
}

/// One verified owner.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its newest node record.
    pub record: Arc<NodeRecord>,
    /// Whether it is there.
    pub presence: Presence,
}

/// One instance of a service, with what a route needs of its node.
#[derive(Clone, Debug)]
pub struct ServiceInstance {
    /// Whose it is.
    pub owner: Owner,
    /// Its name among its owner's.
    pub id: Label,
    /// What its owner says of it.
    pub instance: Arc<Instance>,
    /// Its node.
    pub node: Arc<NodeRecord>,
    /// Whether its node is there; never `Left` or `Expired`.
    pub presence: Presence,
    /// When this node took in the newest word about it.
    pub learned_at: Instant,
}

impl Presence {
    /// Whether the owner still counts: its word stands, it may be dialled.
    pub fn is_present(self) -> bool {
        matches!(self, Self::Alive | Self::Suspect)
    }

    /// The word for it, as in tables and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Left => "left",
            Self::Expired => "expired",
        }
    }
}
