//! Whatever a gRPC client says of its deadline, what is sent on is read as no more than it, and as hardly
//! less.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use starling::fuzzing::{grpc_timeout, grpc_timeout_of};

fuzz_target!(|input: &[u8]| {
    let Some(asked) = grpc_timeout(input) else { return };
    assert!((2..=9).contains(&input.len()) && input[..input.len() - 1].iter().all(u8::is_ascii_digit));
    let said = grpc_timeout_of(asked);
    let read = grpc_timeout(said.as_bytes()).expect("what we say can be read");
    // Zero, which some read as no limit, is said as the least there is.
    assert!(read <= asked.max(Duration::from_nanos(1)), "{asked:?} {said}");
    // Eight digits lose a hundred thousandth at most.
    assert!(asked - read.min(asked) <= asked / 100_000, "{asked:?} {said}");
});
