//! Hostile members: what a node with a good certificate does that means ill.
//!
//! Beside an honest gossip loop, which makes it a member that hears everything, an [`Attacker`] sends
//! messages of its own making. Each way to attack is a `sight::Scheme` in a file of its own: it
//! decides what is said to whom; this file gives it time and eyes and sends. What a message must look
//! like is in `talk`, and for chitchat's part in `wire`. Nothing here is ever run by an honest node.

mod accuse;
mod equivocate;
mod flood;
mod forge;
mod lie;
mod outrun;
mod replay;
mod resurrect;
mod sight;
mod talk;
mod wire;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use starling_gossip::identity::ServiceName;
use starling_gossip::link::{Delivery, Link as _};
use starling_gossip::record::Owner;
use starling_gossip::snapshot::Snapshot;
use starling_gossip::svid::Svid;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::disk::Disk;
use crate::network::HostLink;
use crate::scenario::Attack;
use sight::{Scheme, Sight};

/// How often an attacker looks at what its node has heard.
const LOOK_PERIOD: Duration = Duration::from_millis(200);

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
    pub async fn run(mut self, attack: Attack, rate: u32) {
        // What withholds says nothing; the network asks `withheld`.
        let Some(mut scheme) = scheme(attack) else { return };
        let mut sight = Sight::new(self.svid.clone(), self.owner.clone(), self.service.clone());
        let mut ticks = interval(Duration::from_secs(1) / rate.max(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut next_look = Instant::now();
        loop {
            ticks.tick().await;
            if Instant::now() >= next_look {
                next_look = Instant::now() + LOOK_PERIOD;
                let snapshot = self.snapshots.borrow_and_update().clone();
                sight.look(&snapshot, &self.disk);
                sight.tapped = self.link.tapped();
            }
            if let Some((to, message)) = scheme.next(&mut sight, &mut self.rng) {
                self.link.send(to, message, Delivery::Reliable);
            }
        }
    }
}

fn scheme(attack: Attack) -> Option<Box<dyn Scheme>> {
    Some(match attack {
        Attack::Forge => Box::<forge::Forge>::default(),
        Attack::Replay => Box::<replay::Replay>::default(),
        Attack::Withhold => return None,
        Attack::Equivocate => Box::<equivocate::Equivocate>::default(),
        Attack::Flood => Box::<flood::Flood>::default(),
        Attack::Invent => Box::<flood::Invent>::default(),
        Attack::Accuse => Box::<accuse::Accuse>::default(),
        Attack::Resurrect => Box::<resurrect::Resurrect>::default(),
        Attack::Outrun => Box::<outrun::Outrun>::default(),
        Attack::Reset => Box::<outrun::Reset>::default(),
        Attack::Lie => Box::<lie::Lie>::default(),
        Attack::Overrun => Box::<lie::Overrun>::default(),
    })
}

/// A message of the node `own` at `address` without the news of others in it: what somebody sends who passes
/// nothing on. Its own word still goes out, so that nobody doubts it.
pub fn withheld(message: Vec<u8>, own: &Owner, address: SocketAddr) -> Vec<u8> {
    talk::own_news_only(&message, talk::number(own), address).unwrap_or(message)
}
