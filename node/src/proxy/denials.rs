//! STATE MACHINE: denied calls -> which of them get a line in the log.
//!
//! A caller that is denied will call again, as often as it can. Each gets a line when it is first
//! denied and then one a minute, which says how many there were; callers beyond the table share one.
//! The access log and the metrics have every call.

use std::collections::BTreeMap;
use std::time::Duration;

use starling_gossip::clock::Instant;
use starling_gossip::identity::{ServiceName, SpiffeId};

/// Callers, by service, with lines of their own. All together write about a line a second, 20 MB a
/// day.
const CALLERS_MAX: usize = 64;

/// Between two lines about the same caller.
const PERIOD: Duration = Duration::from_secs(60);

/// What was said last, and what was not said since.
#[derive(Debug, Default)]
pub(crate) struct Denials {
    callers: BTreeMap<(ServiceName, SpiffeId), Told>,
    others: Option<Told>,
}

#[derive(Debug)]
struct Told {
    at: Instant,
    unsaid: u64,
}

impl Denials {
    /// `peer` was denied `service`. If that is to be said: how many denials the line stands for.
    pub(crate) fn handle_denial(
        &mut self,
        service: &ServiceName,
        peer: &SpiffeId,
        now: Instant,
    ) -> Option<u64> {
        let caller = (service.clone(), peer.clone());
        if let Some(told) = self.callers.get_mut(&caller) {
            return told.handle_denial(now);
        }
        if self.callers.len() >= CALLERS_MAX {
            self.callers.retain(|_, told| !told.is_over(now));
        }
        if self.callers.len() < CALLERS_MAX {
            self.callers.insert(caller, Told { at: now, unsaid: 0 });
            return Some(1);
        }
        match &mut self.others {
            Some(told) => told.handle_denial(now),
            None => {
                self.others = Some(Told { at: now, unsaid: 0 });
                Some(1)
            }
        }
    }
}

impl Told {
    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) >= PERIOD
    }

    fn handle_denial(&mut self, now: Instant) -> Option<u64> {
        self.unsaid += 1;
        self.is_over(now).then(|| {
            self.at = now;
            std::mem::take(&mut self.unsaid)
        })
    }
}

#[cfg(test)]
mod tests {
    use starling_gossip::clock::Clock;

    use super::*;

    fn service() -> ServiceName {
        "web".parse().expect("a name")
    }

    fn peer(number: usize) -> SpiffeId {
        format!("spiffe://acme/svc/caller-{number}").parse().expect("an identity")
    }

    #[test]
    fn a_caller_that_goes_on_gets_a_line_a_minute() {
        let (mut denials, start) = (Denials::default(), Clock::System.now());
        assert_eq!(denials.handle_denial(&service(), &peer(1), start), Some(1));
        for second in 1..60 {
            assert_eq!(
                denials.handle_denial(&service(), &peer(1), start + Duration::from_secs(second)),
                None
            );
        }
        assert_eq!(denials.handle_denial(&service(), &peer(2), start + PERIOD / 2), Some(1), "somebody else");
        assert_eq!(denials.handle_denial(&service(), &peer(1), start + PERIOD), Some(60));
    }

    #[test]
    fn many_callers_write_no_more_than_the_table_has_places() {
        let (mut denials, start) = (Denials::default(), Clock::System.now());
        let lines = |denials: &mut Denials, now| {
            let said =
                (0..10_000).filter(|number| denials.handle_denial(&service(), &peer(*number), now).is_some());
            said.count()
        };
        assert_eq!(lines(&mut denials, start), CALLERS_MAX + 1);
        assert_eq!(lines(&mut denials, start + PERIOD / 2), 0);
        assert_eq!(lines(&mut denials, start + PERIOD), CALLERS_MAX + 1);
        assert_eq!(denials.callers.len(), CALLERS_MAX);
    }
}
