//! STATE MACHINE: when to repair, with whom, and at what cost.
//!
//! With each talk a node says in eight bytes what it knows. Nodes that know the same have nothing to
//! exchange, so in calm the repair path is silent, whatever the mesh's size. Who goes on knowing something else
//! for longer than news takes exchanges with one of those it differs from, rather near than far, within its
//! budget.
//!
//! An exchange that changes nothing on either side will not the next time either: a peer may say of itself what is not
//! so, or chitchat may take for known what is not. So such a peer is left alone for longer each time, and asked for
//! everything instead.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rand::Rng;
use rand::seq::IteratorRandom as _;

use crate::allowance::Allowance;
use crate::clock::Instant;
use crate::handle::{Budget, Convergence};

/// How long a difference is left to the news that is under way.
pub const SETTLE: Duration = Duration::from_millis(1500);

/// The time between two exchanges that this node begins.
const EXCHANGE_PERIOD: Duration = Duration::from_secs(1);

/// What a node knew lately counts as knowing the same: somebody may be that far behind, and is told by others.
const LATELY: Duration = Duration::from_secs(5);

/// What it knew lately, at most so many times.
const LATELY_MAX: usize = 256;

/// What a peer said longer ago says nothing: neighbours say something every few seconds, and who does not is no
/// neighbour.
const TOLD_LASTS: Duration = Duration::from_secs(30);

/// A difference is acted on only while the peer's word is as new as this: with each second others say more.
const FRESH: Duration = Duration::from_secs(3);

/// Who has spoken within so long is there.
const HEARD_LATELY: Duration = Duration::from_secs(3);

/// Peers whose word is kept.
const TOLD_MAX: usize = 4096;

/// The repair path's share of the budget, and how many seconds of it may be spent at once.
const SHARE: f64 = 0.5;
const BURST_SECONDS: f64 = 30.0;

/// After so many exchanges that changed nothing everything is asked for.
const FRUITLESS_MAX: u32 = 2;

/// The time between fruitless exchanges with one peer grows up to [`SETTLE`] times two to the power of this: 26 minutes.
const DOUBLINGS_MAX: u32 = 10;

/// One exchange in so many is with somebody chosen by chance and not the nearest.
const FAR_ONE_IN: u32 = 4;

/// See the module.
pub(crate) struct Mending {
    /// What this node knows, and knew lately, the newest last.
    own: VecDeque<(u64, Instant)>,
    told: BTreeMap<u64, Told>,
    allowance: Allowance,
    next: Instant,
}

struct Told {
    knows: u64,
    at: Instant,
    distance: u8,
    differs_since: Option<Instant>,
    /// When an exchange is due, unless it has agreed by then.
    due: Option<Instant>,
    /// What both knew when they last exchanged, and when that was.
    exchanged: Option<(u64, u64, Instant)>,
    /// How many exchanges in a row have changed nothing.
    fruitless: u32,
}

/// With whom to repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Repair {
    pub(crate) peer: u64,
    /// An exchange would be in vain: it is to be asked for all that it knows.
    pub(crate) is_of_everything: bool,
}

impl Mending {
    pub(crate) fn new(budget: Budget, now: Instant) -> Self {
        let per_second = f64::from(budget.bytes_per_second) * SHARE;
        // An exchange of a large mesh must fit in a burst, or it would never be had.
        let allowance = Allowance::new(per_second, per_second * BURST_SECONDS, now);
        Self { own: VecDeque::new(), told: BTreeMap::new(), allowance, next: now }
    }

    /// This node knows `knows` from now on.
    pub(crate) fn handle_own(&mut self, knows: u64, now: Instant) {
        if self.own.back().is_none_or(|(newest, _)| *newest != knows) {
            if let Some((_, until)) = self.own.back_mut() {
                *until = now;
            }
            self.own.push_back((knows, now));
        }
        while self.own.len() > LATELY_MAX || self.own.len() > 1 && self.own[0].1 + LATELY < now {
            self.own.pop_front();
        }
        for told in self.told.values_mut() {
            if told.knows == knows {
                (told.differs_since, told.due) = (None, None);
            }
        }
    }

    /// `peer`, which stands at `distance`, says what it knows.
    pub(crate) fn handle_told(&mut self, peer: u64, knows: u64, distance: u8, now: Instant) {
        if self.told.len() >= TOLD_MAX && !self.told.contains_key(&peer) {
            self.told.retain(|_, told| now < told.at + TOLD_LASTS);
            if self.told.len() >= TOLD_MAX {
                return;
            }
        }
        let newest = self.own.back().map(|(newest, _)| *newest);
        let is_same = newest == Some(knows)
            || self.own.iter().any(|(own, until)| *own == knows && now < *until + LATELY);
        let before = self.told.get(&peer);
        let since = before.and_then(|told| told.differs_since);
        let differs_since = if is_same { None } else { since.or(Some(now)) };
        let exchanged = before.and_then(|told| told.exchanged);
        let has_changed = exchanged.is_none_or(|(own, its, _)| Some(own) != newest || its != knows);
        let fruitless = before.map_or(0, |told| told.fruitless);
        // The last exchange counts for one in vain until something changes.
        let (exchanged, fruitless) = if is_same || has_changed { (None, 0) } else { (exchanged, fruitless) };
        let patience = |(.., at): (u64, u64, Instant)| at + SETTLE * 2_u32.pow(fruitless.min(DOUBLINGS_MAX));
        let due = differs_since.map(|since| (since + SETTLE).max(now).max(exchanged.map_or(now, patience)));
        self.told.insert(peer, Told { knows, at: now, distance, differs_since, due, exchanged, fruitless });
    }

    /// Who has spoken lately, and so hears and answers.
    pub(crate) fn heard_lately(&self, now: Instant) -> impl Iterator<Item = u64> {
        let lately = self.told.iter().filter(move |(_, told)| now < told.at + HEARD_LATELY);
        lately.map(|(peer, _)| *peer)
    }

    /// `peer` is gone.
    pub(crate) fn forget_unless(&mut self, is_present: impl Fn(u64) -> bool) {
        self.told.retain(|peer, _| is_present(*peer));
    }

    /// Repairing cost so much.
    pub(crate) fn spend(&mut self, bytes: usize, now: Instant) {
        self.allowance.spend(bytes as f64, now);
    }

    /// Whether an exchange that somebody else began should be answered: a peer that begins too many is left alone.
    pub(crate) fn may_answer(&mut self, now: Instant) -> bool {
        self.allowance.has_some(now)
    }

    /// When [`Self::poll_exchange`] should be asked.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let first = self.told.values().filter_map(|told| told.due).min()?;
        Some(first.max(self.next))
    }

    /// With whom to exchange now, if with anybody.
    pub(crate) fn poll_exchange(&mut self, now: Instant, rng: &mut impl Rng) -> Option<Repair> {
        if now < self.next {
            return None;
        }
        self.told.retain(|_, told| now < told.at + TOLD_LASTS);
        for told in self.told.values_mut().filter(|told| told.due.is_some_and(|due| now >= due)) {
            if now > told.at + FRESH {
                told.due = None;
            }
        }
        let is_due = |told: &Told| told.due.is_some_and(|due| now >= due);
        let all = || self.told.iter().filter(|(_, told)| is_due(told));
        let nearest = all().map(|(_, told)| told.distance).min()?;
        self.next = now + EXCHANGE_PERIOD;
        if !self.allowance.has_some(now) {
            return None;
        }
        let is_far = rng.random_ratio(1, FAR_ONE_IN);
        let all = self.told.iter().filter(|(_, told)| is_due(told));
        let chosen =
            all.filter(|(_, told)| is_far || told.distance == nearest).map(|(peer, _)| *peer).choose(rng)?;
        let newest = self.own.back().map(|(newest, _)| *newest).unwrap_or_default();
        let told = self.told.get_mut(&chosen)?;
        // Until it says again what it knows, the difference is being repaired.
        told.due = None;
        told.exchanged = Some((newest, told.knows, now));
        told.fruitless += 1;
        Some(Repair { peer: chosen, is_of_everything: told.fruitless > FRUITLESS_MAX })
    }

    /// How far the mesh is, of which `members` are present, this node included.
    pub(crate) fn convergence(&self, members: usize, now: Instant) -> Convergence {
        let told = || self.told.values().filter(|told| now < told.at + TOLD_LASTS);
        let oldest = told().filter_map(|told| told.differs_since).min();
        Convergence {
            members,
            heard: 1 + told().count(),
            equal: 1 + told().filter(|told| told.differs_since.is_none()).count(),
            oldest_difference: oldest.map(|since| now - since),
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    fn after(millis: u64, now: Instant) -> Instant {
        now + Duration::from_millis(millis)
    }

    #[test]
    fn who_knows_the_same_exchanges_nothing() {
        let (now, mut rng) = (Instant::now(), StdRng::seed_from_u64(1));
        let mut mending = Mending::new(Budget::default(), now);
        mending.handle_own(5, now);
        mending.handle_own(6, now);
        mending.handle_told(1, 6, 0, now);
        mending.handle_told(2, 5, 0, now);
        assert_eq!(mending.poll_timeout(), None, "one is behind, and will hear");
        mending.handle_told(3, 7, 0, now);
        mending.handle_own(7, after(500, now));
        assert_eq!(mending.poll_exchange(after(5000, now), &mut rng), None, "one was ahead");
        assert_eq!(
            mending.convergence(9, after(500, now)),
            Convergence { members: 9, heard: 4, equal: 4, oldest_difference: None }
        );
    }

    #[test]
    fn a_difference_that_stays_is_repaired_rather_near() {
        let (now, mut rng) = (Instant::now(), StdRng::seed_from_u64(1));
        let mut mending = Mending::new(Budget::default(), now);
        mending.handle_own(5, now);
        let mut near = 0;
        for step in 0..100_u64 {
            let told = after(step * 10_000, now);
            mending.handle_told(1, 8, 0, told);
            mending.handle_told(2, 9, 3, told);
            let due = mending.poll_timeout().expect("a difference");
            assert_eq!(due, after(step * 10_000 + 1500, now));
            near += u32::from(mending.poll_exchange(due, &mut rng).map(|repair| repair.peer) == Some(1));
            mending.handle_told(1, 5, 0, due);
            mending.handle_told(2, 5, 3, due);
        }
        assert!((75..100).contains(&near), "{near}");
    }

    #[test]
    fn what_was_spent_must_be_saved_first() {
        let (now, mut rng) = (Instant::now(), StdRng::seed_from_u64(1));
        let mut mending = Mending::new(Budget { bytes_per_second: 1000, ..Budget::default() }, now);
        mending.handle_own(5, now);
        mending.handle_told(1, 8, 0, now);
        mending.spend(20_000, now);
        assert_eq!(mending.poll_exchange(after(2000, now), &mut rng), None);
        assert_eq!(
            mending.poll_exchange(after(20_000, now), &mut rng),
            None,
            "it may have caught up long ago"
        );
        mending.handle_told(1, 8, 0, after(30_000, now));
        let repair = Repair { peer: 1, is_of_everything: false };
        assert_eq!(mending.poll_exchange(after(30_001, now), &mut rng), Some(repair));
    }

    #[test]
    fn whom_exchanges_do_not_change_is_asked_for_everything_and_ever_more_seldom() {
        let (now, mut rng) = (Instant::now(), StdRng::seed_from_u64(1));
        let mut mending = Mending::new(Budget::default(), now);
        mending.handle_own(5, now);
        let mut repairs = Vec::new();
        for second in 0..600 {
            let at = after(second * 1000, now);
            mending.handle_told(1, 8, 0, at);
            let repair = mending.poll_exchange(after(second * 1000 + 500, now), &mut rng);
            repairs.extend(repair.map(|repair| repair.is_of_everything));
        }
        assert_eq!(repairs[..4], [false, false, true, true]);
        assert!(repairs.len() < 10, "{repairs:?}");
        mending.handle_told(1, 9, 0, after(600_000, now));
        let repair = mending.poll_exchange(after(600_001, now), &mut rng);
        assert_eq!(repair, Some(Repair { peer: 1, is_of_everything: false }), "it knows something else now");
    }
}
