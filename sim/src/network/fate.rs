//! PURE: what becomes of one message on its way.
//!
//! A message is a QUIC stream, so a lost packet is late and not gone: it is sent again when its loss
//! is noticed (RFC 9002, sections 6.1 and 6.2), each time after twice as long, until the message is
//! given up. What is simplified: a message's packets leave at once, and congestion does not slow them.

use std::time::Duration;

use rand::Rng;

use crate::scenario::Conditions;

/// Bytes of a message in one packet; quinn begins with datagrams of 1,200 bytes.
const PACKET_BYTES: usize = 1150;

/// What a transport adds to each packet: IP and UDP headers, QUIC's own, the seal of encryption.
pub const PACKET_OVERHEAD_BYTES: usize = 28 + 22 + 16;

/// A link gives a message up after so long, as `transport` does.
pub const GIVEN_UP: Duration = Duration::from_secs(10);

/// Acknowledgements may be delayed by so much (quinn's `max_ack_delay`).
const ACK_DELAY: Duration = Duration::from_millis(25);

/// How long a reordered message is held back at most.
const HELD_BACK: Duration = Duration::from_millis(500);

/// How many packets a message takes.
pub fn packets(bytes: usize) -> usize {
    bytes.div_ceil(PACKET_BYTES).max(1)
}

/// How long a message of `bytes` takes, or `None` if it never arrives. `loss` is that of the whole way.
pub fn travel(conditions: &Conditions, loss: f64, bytes: usize, rng: &mut impl Rng) -> Option<Duration> {
    // Always the same number of draws, so that one message's luck does not change all others'.
    let (luck, late, held): (f64, f64, f64) = (rng.random(), rng.random(), rng.random());
    let is_held = rng.random_bool(conditions.reorder);
    let latency = conditions.latency.0;
    let mut delay = latency + conditions.jitter.0.mul_f64(late);
    let sent_again = latency * 3;
    let mut timeout = sent_again.max(latency * 2 + ACK_DELAY);
    let mut rounds = rounds(loss, packets(bytes), luck)?;
    while rounds > 1 && delay < GIVEN_UP {
        delay += timeout;
        timeout *= 2;
        rounds -= 1;
    }
    if is_held {
        delay += HELD_BACK.mul_f64(held);
    }
    (delay < GIVEN_UP).then_some(delay)
}

/// How often packets are sent until all have arrived: the least `rounds` for which
/// `(1 - loss^rounds)^packets` reaches `luck`.
fn rounds(loss: f64, packets: usize, luck: f64) -> Option<u32> {
    /// More and the message has been given up, whatever the latency.
    const ROUNDS_MAX: u32 = 16;
    let packets = i32::try_from(packets).unwrap_or(i32::MAX);
    (1..=ROUNDS_MAX).find(|rounds| (1.0 - loss.powi(*rounds as i32)).powi(packets) > luck)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;
    use crate::scenario::Span;

    fn lossy() -> Conditions {
        Conditions { latency: Span::millis(40), jitter: Span::millis(10), ..Conditions::default() }
    }

    #[test]
    fn loss_makes_late_and_only_a_dead_way_loses() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut mean = |loss: f64, bytes: usize| {
            let times: Vec<_> = (0..4000).map(|_| travel(&lossy(), loss, bytes, &mut rng)).collect();
            let arrived = times.iter().flatten().count();
            let sum: Duration = times.iter().flatten().sum();
            (arrived, sum.as_secs_f64() * 1000.0 / arrived.max(1) as f64)
        };
        let (arrived, calm) = mean(0.0, 100);
        assert_eq!(arrived, 4000);
        assert!((44.0..46.0).contains(&calm), "{calm}");
        let (arrived, one) = mean(0.2, 100);
        assert!(arrived > 3990, "{arrived}");
        assert!((calm + 20.0..calm + 60.0).contains(&one), "{one}");
        let (_, many) = mean(0.2, 60_000);
        assert!(many > one * 3.0, "many packets are later than one: {many} {one}");
        assert_eq!(mean(1.0, 100).0, 0);
    }
}
