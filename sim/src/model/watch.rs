//! How a crash is noticed: by watchers that ask, and whose word spreads as a rumour.

use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::index;

use super::spread::{Mesh, Micros, micros};
use starling_gossip::watching::{QUESTION_PERIOD, UNANSWERED_AFTER, WATCHERS, WATCHERS_NEEDED};

/// When each node holds `crashed` for suspect, from its crash on.
pub(super) fn suspected(mesh: &Mesh<'_>, crashed: usize, rng: &mut StdRng) -> Vec<Micros> {
    let others = mesh.nodes() - 1;
    let watchers = index::sample(rng, others, WATCHERS.min(others));
    let words: Vec<Vec<Micros>> = watchers
        .into_iter()
        .map(|watcher| {
            let watcher = watcher + usize::from(watcher >= crashed);
            let says_at = rng.random_range(0..micros(QUESTION_PERIOD)) + micros(UNANSWERED_AFTER);
            mesh.rumour(watcher, Some(crashed), rng).into_iter().map(|took| says_at + took).collect()
        })
        .collect();
    let believed = |node: usize| {
        let mut heard: Vec<Micros> = words.iter().map(|word| word[node]).collect();
        heard.sort_unstable();
        heard[WATCHERS_NEEDED.min(heard.len()) - 1]
    };
    (0..mesh.nodes()).map(believed).collect()
}
