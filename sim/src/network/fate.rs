//! PURE: what becomes of one message on its way.
//!
//! A message that is to arrive is a QUIC stream, so a lost packet is late and not gone: it is sent again when
//! its loss is noticed (RFC 9002, sections 6.1 and 6.2), each time after twice as long, until the message is
//! given up. One that is sent once is a datagram (RFC 9221): lost is lost. What is simplified: a message's
//! packets leave at once, and congestion does not slow them.

use std::time::Duration;

use rand::Rng;
use starling_gossip::link::Delivery;

use super::quic::{ACK_DELAY, FRAME_BYTES};
use crate::scenario::Conditions;

/// Bytes of a message in one packet; quinn begins with datagrams of 1,200 bytes.
const PACKET_BYTES: usize = 1150;

/// A link gives a message up after so long, as `transport` does.
pub const GIVEN_UP: Duration = Duration::from_secs(10);

/// A handshake that takes longer is given up, as in `transport`.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// When the first packet of a handshake is repeated: three times the round trip that `transport` assumes.
const HANDSHAKE_SENT_AGAIN: Duration = Duration::from_millis(300);

/// Packets of a handshake's flights there, and back.
const FLIGHT_PACKETS: [usize; 2] = [2, 3];

/// Rounds after which a message has been given up, whatever the latency.
const ROUNDS_MAX: u32 = 16;

/// Packets that ask a peer that has fallen silent, until a message is given up: two at a time (RFC 9002,
/// section 6.2.4), about seven times in ten seconds.
const ASKING_PACKETS: f64 = 14.0;

/// How long a reordered message is held back at most.
const HELD_BACK: Duration = Duration::from_millis(500);

/// How many packets a message takes.
pub fn packets(bytes: usize) -> usize {
    (bytes + FRAME_BYTES).div_ceil(PACKET_BYTES).max(1)
}

/// How a message of `bytes` really travels: what fits no packet is no datagram.
pub fn delivery(wanted: Delivery, bytes: usize) -> Delivery {
    if packets(bytes) == 1 { wanted } else { Delivery::Reliable }
}

/// How long a message of `bytes` takes, or `None` if it never arrives. `loss` is that of the whole way.
pub fn travel(
    conditions: &Conditions,
    loss: f64,
    bytes: usize,
    delivery: Delivery,
    rng: &mut impl Rng,
) -> Option<Duration> {
    // Always the same number of draws, so that one message's luck does not change all others'.
    let (luck, late, held): (f64, f64, f64) = (rng.random(), rng.random(), rng.random());
    let is_held = rng.random_bool(conditions.reorder);
    let latency = conditions.latency.0;
    let mut delay = latency + conditions.jitter.0.mul_f64(late);
    let sent_again = latency * 3;
    let mut timeout = sent_again.max(latency * 2 + ACK_DELAY);
    let mut rounds = rounds(loss, packets(bytes), luck)?;
    if rounds > 1 && delivery == Delivery::Once {
        return None;
    }
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

/// How many packets of a message are sent again, on average.
pub fn sent_again(loss: f64, packets: usize, delivery: Delivery, has_arrived: bool) -> f64 {
    match delivery {
        Delivery::Once => 0.0,
        Delivery::Reliable if has_arrived && loss < 1.0 => packets as f64 * loss / (1.0 - loss),
        Delivery::Reliable => ASKING_PACKETS,
    }
}

/// How long a handshake takes until the first message can leave: a round trip (RFC 9001, section 4), more if
/// packets are lost; or `None` if it is given up. `losses` are those of the way there, and back.
pub fn handshake(conditions: &Conditions, losses: [f64; 2], rng: &mut impl Rng) -> Option<Duration> {
    let lucks: [f64; 2] = rng.random();
    let mut delay = conditions.latency.0 * 2;
    for ((loss, packets), luck) in losses.into_iter().zip(FLIGHT_PACKETS).zip(lucks) {
        let again = rounds(loss, packets, luck)? - 1;
        delay += HANDSHAKE_SENT_AGAIN * ((1 << again) - 1);
    }
    (delay < HANDSHAKE_TIMEOUT).then_some(delay)
}

/// How often packets are sent until all have arrived: the least `rounds` for which
/// `(1 - loss^rounds)^packets` reaches `luck`.
fn rounds(loss: f64, packets: usize, luck: f64) -> Option<u32> {
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
            let travel = |_| travel(&lossy(), loss, bytes, Delivery::Reliable, &mut rng);
            let times: Vec<_> = (0..4000).map(travel).collect();
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

    #[test]
    fn what_is_sent_once_is_lost_or_in_time() {
        let mut rng = StdRng::seed_from_u64(1);
        let travel = |_| travel(&lossy(), 0.2, 100, Delivery::Once, &mut rng);
        let times: Vec<Duration> = (0..4000).filter_map(travel).collect();
        assert!((3100..3300).contains(&times.len()), "{}", times.len());
        assert!(times.iter().all(|took| *took <= Duration::from_millis(50)));
        let large = PACKET_BYTES - FRAME_BYTES + 1;
        assert_eq!(delivery(Delivery::Once, large - 1), Delivery::Once);
        assert_eq!(delivery(Delivery::Once, large), Delivery::Reliable);
    }

    #[test]
    fn a_handshake_takes_a_round_trip_or_the_patience_of_its_timers() {
        let mut rng = StdRng::seed_from_u64(1);
        assert_eq!(handshake(&lossy(), [0.0; 2], &mut rng), Some(Duration::from_millis(80)));
        let times: Vec<_> = (0..4000).filter_map(|_| handshake(&lossy(), [0.2; 2], &mut rng)).collect();
        let at_once = times.iter().filter(|took| took.as_millis() == 80).count() as f64 / 4000.0;
        // Five packets, each with four chances of five.
        assert!((at_once - 0.8f64.powi(5)).abs() < 0.03, "{at_once}");
        assert!(times.len() > 3700 && handshake(&lossy(), [0.0, 1.0], &mut rng).is_none());
    }
}
