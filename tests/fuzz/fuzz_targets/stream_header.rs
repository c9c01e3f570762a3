//! The first bytes of a stream, and the answer to it: what is read is what was written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use starling_transport::header::{Answer, PREAMBLE_BYTES, Preamble, StreamHeader};

fuzz_target!(|input: &[u8]| {
    let Some((first, rest)) = input.split_first_chunk::<PREAMBLE_BYTES>() else { return };
    let Ok(preamble) = Preamble::decode(*first) else { return };
    let Some(body) = rest.get(..preamble.body_bytes()) else { return };
    match StreamHeader::decode(preamble, body) {
        Ok(header) => {
            let bytes = header.encode().expect("what was read can be written");
            assert_eq!(bytes.as_slice()[PREAMBLE_BYTES - 2..], input[PREAMBLE_BYTES - 2..bytes.len()]);
        }
        Err(error) => drop(error.refusal().to_string()),
    }
    if let Ok(answer) = Answer::decode(preamble, body) {
        let bytes = answer.encode();
        let (first, body) = bytes.split_first_chunk().expect("a preamble");
        let again = Answer::decode(Preamble::decode(*first).expect("ours"), body);
        assert_eq!(again, Ok(answer));
    }
});
