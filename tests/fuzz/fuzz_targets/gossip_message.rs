//! Gossip messages as the link receives them, one after the other to one node: none may end
//! chitchat, whether by the check before it or by itself, or make the catalogue panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use starling_fuzz::{World, pieces};
use starling_gossip::fuzzing::passes;

/// Messages that are taken of one input.
const MESSAGES_MAX: usize = 8;

fuzz_target!(|input: &[u8]| {
    let mut listener = None;
    for message in pieces(input).take(MESSAGES_MAX) {
        if !passes(message) && listener.is_none() {
            continue;
        }
        let listener = listener.get_or_insert_with(|| starling_fuzz::listener(&World::new()));
        if let Some(answer) = listener.hear(message) {
            assert!(passes(&answer), "a node's own answer must pass with its peers");
        }
    }
});
