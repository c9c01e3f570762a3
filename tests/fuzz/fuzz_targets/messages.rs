//! Messages between sidecars: whatever a peer sends, and however it arrives in pieces, each message is read whole or not
//! at all, and says the same told anew.
#![no_main]

use libfuzzer_sys::fuzz_target;
use starling::fuzzing::messages;

fuzz_target!(|input: &[u8]| {
    let Some((first, stream)) = input.split_first() else { return };
    let (version_2, piece) = (first & 1 == 1, usize::from(first >> 1));
    let whole = messages(stream, version_2, usize::MAX);
    let in_pieces = messages(stream, version_2, piece.max(1));
    // The data of one that breaks off may have been passed on further.
    let is_same = |(one, other): (&(Vec<u8>, Vec<u8>), &(Vec<u8>, Vec<u8>))| {
        one.0 == other.0 && (one.1.starts_with(&other.1) || other.1.starts_with(&one.1))
    };
    assert!(whole.len() == in_pieces.len() && whole.iter().zip(&in_pieces).all(is_same));
});
