//! Hostile members: what a node with a good certificate does that means ill.

use std::sync::Arc;

use rand::rngs::StdRng;
use starling_gossip::identity::ServiceName;
use starling_gossip::record::Owner;
use starling_gossip::snapshot::Snapshot;
use starling_gossip::svid::Svid;
use tokio::sync::watch;

use crate::disk::Disk;
use crate::network::HostLink;
use crate::scenario::Attack;

/// A hostile member at work, beside the honest node that hears for it.
pub struct Attacker {
    /// Its good certificate and key.
    pub svid: Arc<Svid>,
    /// Who it is.
    pub owner: Owner,
    /// What it may announce.
    pub service: ServiceName,
    /// Its way to others.
    pub link: Arc<HostLink>,
    /// Whom its node knows.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Every sealed record and renewal that its node heard (see `gossip::memory`).
    pub disk: Arc<Disk>,
    /// Its chance.
    pub rng: StdRng,
}

impl Attacker {
    /// Attacks until it is stopped, so many messages a second.
    pub async fn run(self, _attack: Attack, _rate: u32) {}
}

/// A message without the news in it: what somebody sends who passes nothing on.
pub fn withheld(message: Vec<u8>) -> Vec<u8> {
    message
}
