//! Lies about what the liar knows itself, which cost others exchanges; and more messages than a peer may send.

use std::net::SocketAddr;

use rand::RngCore as _;
use rand::rngs::StdRng;
use starling_gossip::link::Destination;

use super::sight::{Scheme, Shot, Sight};
use super::talk;

/// "I know something else", to everybody all the time, and "you are my neighbour".
#[derive(Default)]
pub(super) struct Lie;

impl Scheme for Lie {
    fn next(&mut self, sight: &mut Sight, rng: &mut StdRng) -> Option<Shot> {
        let (_, to) = sight.peer(rng)?;
        Some((to, talk::talk(rng.next_u64(), Vec::new())))
    }
}

/// All to one peer: to be endured, or shunned.
#[derive(Default)]
pub(super) struct Overrun {
    at: Option<(SocketAddr, Destination)>,
}

impl Scheme for Overrun {
    fn next(&mut self, sight: &mut Sight, rng: &mut StdRng) -> Option<Shot> {
        if self.at.is_none() {
            self.at = sight.peer(rng);
        }
        let (_, to) = self.at.clone()?;
        Some((to, talk::ping(rng.next_u64())))
    }
}
