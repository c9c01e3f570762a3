//! What others truly said once, said again as if it were new: nobody may go back.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::seq::IteratorRandom as _;
use starling_gossip::codec;
use starling_gossip::memory::LEASE_KEY;
use starling_gossip::record::Owner;

use super::sight::{Scheme, Shot, Sight, Victim, Word};
use super::wire::MapName;

/// Old words kept of one owner, the newest: each is a few hundred bytes.
const WORDS_MAX: usize = 64;

/// Everything that was ever heard.
#[derive(Default)]
pub(super) struct Replay {
    heard: BTreeMap<Owner, Vec<Said>>,
    round: usize,
}

/// Something that an owner said, as it travelled.
#[derive(Clone, PartialEq, Eq)]
struct Said {
    /// The map of the life in which it was said.
    map: MapName,
    word: Word,
}

impl Replay {
    fn listen(&mut self, victims: &[Victim]) {
        for victim in victims {
            let heard = self.heard.entry(victim.owner.clone()).or_default();
            let renewal = victim.renewal.map(|renewal| (LEASE_KEY.to_owned(), codec::encode(&renewal)));
            for (key, bytes) in victim.sealed.clone().into_iter().chain(renewal) {
                let said = Said { map: victim.map.clone(), word: Word { key, bytes } };
                if !heard.contains(&said) {
                    heard.push(said);
                }
            }
            heard.drain(..heard.len().saturating_sub(WORDS_MAX));
        }
    }
}

impl Scheme for Replay {
    fn next(&mut self, sight: &mut Sight, rng: &mut StdRng) -> Option<Shot> {
        self.listen(&sight.victims);
        self.round += 1;
        if self.round.is_multiple_of(4)
            && let Some(message) = sight.tapped.iter().choose(rng)
        {
            // As it came, whatever it is: others' sightings, answers, snapshots, halves of exchanges.
            return Some((sight.peer(rng)?.1, message.clone()));
        }
        let victim = sight.victim(rng)?;
        let is_old = |Said { word, .. }: &&Said| {
            word.key == LEASE_KEY || victim.sealed.get(&word.key) != Some(&word.bytes)
        };
        let Said { map, word } = self.heard.get(&victim.owner)?.iter().filter(is_old).choose(rng)?.clone();
        // Into the map of the present life, or to bring the old one back.
        let is_new = !self.round.is_multiple_of(2);
        sight.tell(if is_new { map } else { victim.map }, &[word], is_new, rng)
    }
}
