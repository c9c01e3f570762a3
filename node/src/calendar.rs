//! Watches this machine's calendar: whether it leaps, and whether this node's own certificate is
//! valid by it.
//!
//! It changes nothing: certificates are judged where they are used. It says why nobody can be
//! reached, to whoever reads the log.

use std::time::Duration;

use starling_gossip::clock::{Clock, Instant, WallTime};
use starling_gossip::svid::Usage;
use starling_transport::credentials::Credentials;
use tracing::{info, warn};

/// How often to look. A leap matters to people, who need minutes to act on it.
const LOOK_PERIOD: Duration = Duration::from_secs(5);

/// Leaps below this are the work of a time service, and harm nobody.
const LEAP_MIN: Duration = Duration::from_secs(60);

/// What the two clocks said at the last look.
struct Look {
    now: Instant,
    wall: WallTime,
}

/// How far the calendar leapt between two looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leap {
    Forward(Duration),
    Back(Duration),
}

/// Looks until it is dropped.
pub(crate) async fn watch(credentials: Credentials, clock: Clock) {
    let mut last = Look { now: clock.now(), wall: clock.wall() };
    let mut was_valid = true;
    loop {
        tokio::time::sleep_until(clock.next_beat(LOOK_PERIOD)).await;
        let look = Look { now: clock.now(), wall: clock.wall() };
        match leap(&last, &look) {
            Some(Leap::Forward(by)) => warn!(?by, "this machine's calendar leapt forward"),
            Some(Leap::Back(by)) => warn!(?by, "this machine's calendar leapt back"),
            None => {}
        }
        was_valid = tell_validity(&credentials, look.wall, was_valid);
        last = look;
    }
}

/// The difference between what the calendar did and what time did.
fn leap(last: &Look, look: &Look) -> Option<Leap> {
    let expected =
        last.wall.unix_millis as i128 + look.now.saturating_duration_since(last.now).as_millis() as i128;
    let by = i128::from(look.wall.unix_millis) - expected;
    let size = Duration::from_millis(by.unsigned_abs() as u64);
    match size >= LEAP_MIN {
        true if by > 0 => Some(Leap::Forward(size)),
        true => Some(Leap::Back(size)),
        false => None,
    }
}

/// Tells a change; returns whether the certificate is valid now.
fn tell_validity(credentials: &Credentials, wall: WallTime, was_valid: bool) -> bool {
    let current = credentials.current();
    let judged = current.bundle().verify(current.svid().chain(), Usage::Client, wall);
    metrics::gauge!("starling_certificate_valid").set(if judged.is_ok() { 1.0 } else { 0.0 });
    match judged {
        Err(reason) if was_valid => warn!(
            %reason,
            "this node's own certificate is not valid now: nobody takes it in; check this machine's clock and the \
             certificate's rotation"
        ),
        Ok(_) if !was_valid => info!("this node's certificate is valid again"),
        _ => return judged.is_ok(),
    }
    !was_valid
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const MONTH: Duration = Duration::from_secs(31 * 86_400);
    const WALL: WallTime = WallTime { unix_millis: 1_800_000_000_000 };

    #[test]
    fn only_what_time_does_not_explain_is_a_leap() {
        let now = Clock::System.now();
        let last = Look { now, wall: WALL };
        let later = |wall: WallTime| Look { now: now + MINUTE, wall };
        let at = |millis: u64| WallTime { unix_millis: WALL.unix_millis + millis };
        let month = MONTH.as_millis() as u64;
        assert_eq!(leap(&last, &later(at(60_000))), None, "a minute passed");
        assert_eq!(leap(&last, &later(at(30_000))), None, "a time service slews");
        assert_eq!(leap(&last, &later(at(60_000 + month))), Some(Leap::Forward(MONTH)));
        assert_eq!(leap(&last, &later(WALL.earlier(MONTH))), Some(Leap::Back(MONTH + MINUTE)));
    }
}
