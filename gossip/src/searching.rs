//! STATE MACHINE: knocking at the doors of those who are gone.
//!
//! A part of the mesh that was cut off for longer than a lease is expired for the others, and they for it: nobody talks
//! to anybody across, and after the network has healed all would wait until one of them happens to talk to a seed in
//! another part. So all who are present knock where somebody listened whose lease has run out, together twice a second,
//! for as long as the departed are shown. Whoever opens renews and is renewed, and asks for the leases of the rest; and
//! asks once more a little later, for the first that come back know little of each other.
//!
//! A newcomer knocks at those of its seeds that no member it knows listens at: whoever let it in may have told it of
//! nobody but itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use rand::Rng;
use rand::seq::{IndexedRandom as _, IteratorRandom as _};

use crate::clock::Instant;
use crate::identity::SpiffeId;

/// How often all who are present knock, taken together: each so much more seldom as there are of them. The pause between
/// dials in vain to one address (ten seconds at most) bounds what a small mesh spends on a single one.
const KNOCK_PERIOD: Duration = Duration::from_millis(500);

/// How often a seed is asked that no known member listens at: there may be nobody, or a member by another address.
const SEED_ASKED_MAX: u32 = 2;

/// How long after somebody is back leases are asked for, and how often, as long as anybody is lost.
const BACK_ASKED_AFTER: Duration = Duration::from_millis(300);
const BACK_ASKED: u32 = 4;

/// See the module.
#[derive(Default)]
pub(crate) struct Searching {
    lost: BTreeSet<(SocketAddr, SpiffeId)>,
    /// Some are back: when somebody is asked for the leases of the others, and how often that was done.
    asks: Option<(Instant, u32)>,
    /// Seeds at which no known member listens, and how often they were asked.
    strange: BTreeMap<SocketAddr, u32>,
    period: Duration,
    next: Option<Instant>,
}

/// Where to knock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Knock {
    /// Somebody whose lease has run out listened there.
    Lost(SocketAddr, SpiffeId),
    /// A seed, to be asked for everything.
    Seed(SocketAddr),
    /// Anybody who is there, to be asked for everybody's lease.
    Leases,
}

impl Searching {
    /// `present` members are there, this node included; those of `lost` are not, and no member listens at the seeds
    /// `strange`. `is_back` says of those lost before whether they are there again.
    pub(crate) fn set(
        &mut self,
        present: usize,
        lost: BTreeSet<(SocketAddr, SpiffeId)>,
        is_back: impl Fn(&(SocketAddr, SpiffeId)) -> bool,
        strange: impl Iterator<Item = SocketAddr>,
        now: Instant,
        rng: &mut impl Rng,
    ) {
        let asked = std::mem::take(&mut self.strange);
        self.strange = strange.map(|seed| (seed, asked.get(&seed).copied().unwrap_or_default())).collect();
        if self.asks.is_none() && self.lost.iter().any(|one| !lost.contains(one) && is_back(one)) {
            self.asks = Some((now + BACK_ASKED_AFTER, 0));
        }
        self.lost = lost;
        if self.lost.is_empty() {
            self.asks = None;
        }
        self.period = KNOCK_PERIOD.saturating_mul(u32::try_from(present).unwrap_or(u32::MAX));
        if self.is_idle() {
            self.next = None;
        } else {
            // Those who miss the same do so at the same time, and must not knock in step. Who waits for long because
            // many were there knocks sooner when they are not.
            let soonest = now + self.period.mul_f64(rng.random());
            self.next = Some(self.next.map_or(soonest, |next| next.min(now + self.period)));
        }
    }

    fn is_idle(&self) -> bool {
        self.lost.is_empty() && self.open_seeds().next().is_none()
    }

    fn open_seeds(&self) -> impl Iterator<Item = SocketAddr> {
        self.strange.iter().filter(|(_, asked)| **asked < SEED_ASKED_MAX).map(|(seed, _)| *seed)
    }

    /// When [`Self::poll_knock`] should be asked.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.asks.map(|(at, _)| at).into_iter().chain(self.next).min()
    }

    /// Where to knock now, if anywhere.
    pub(crate) fn poll_knock(&mut self, now: Instant, rng: &mut impl Rng) -> Option<Knock> {
        if let Some((_, before)) = self.asks.filter(|(at, _)| now >= *at) {
            self.asks = (before + 1 < BACK_ASKED).then_some((now + BACK_ASKED_AFTER, before + 1));
            return Some(Knock::Leases);
        }
        self.next.filter(|next| now >= *next)?;
        self.next = Some(now + self.period);
        let seeds: Vec<SocketAddr> = self.open_seeds().collect();
        if let Some(seed) = seeds.choose(rng) {
            self.strange.entry(*seed).and_modify(|asked| *asked += 1);
            return Some(Knock::Seed(*seed));
        }
        let lost =
            self.lost.iter().choose(rng).map(|(address, identity)| Knock::Lost(*address, identity.clone()));
        if lost.is_none() {
            self.next = None;
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    fn lost(count: u16) -> BTreeSet<(SocketAddr, SpiffeId)> {
        let identity: SpiffeId = "spiffe://acme/svc/web".parse().expect("an identity");
        (0..count).map(|port| (address(port), identity.clone())).collect()
    }

    #[test]
    fn all_together_knock_twice_a_second_and_out_of_step() {
        let (now, mut rng) = (Instant::now(), StdRng::seed_from_u64(1));
        let mut knocks = Vec::new();
        for _ in 0..20 {
            let mut searching = Searching::default();
            searching.set(20, lost(5), |_| false, [].into_iter(), now, &mut rng);
            while let Some(at) = searching.poll_timeout().filter(|at| *at < now + Duration::from_secs(60)) {
                assert_eq!(searching.poll_knock(at - Duration::from_millis(1), &mut rng), None);
                assert!(matches!(searching.poll_knock(at, &mut rng), Some(Knock::Lost(..))));
                knocks.push(at - now);
            }
        }
        assert!((110..=130).contains(&knocks.len()), "{}", knocks.len());
        let in_first_half = knocks.iter().filter(|at| **at < Duration::from_secs(5)).count();
        assert!((5..=15).contains(&in_first_half), "{in_first_half} of 20");
    }

    #[test]
    fn who_loses_many_knocks_sooner_and_who_loses_nobody_rests() {
        let (now, mut rng) = (Instant::now(), StdRng::seed_from_u64(1));
        let mut searching = Searching::default();
        searching.set(1000, lost(1), |_| false, [].into_iter(), now, &mut rng);
        searching.set(4, lost(997), |_| false, [].into_iter(), now, &mut rng);
        assert!(searching.poll_timeout() <= Some(now + KNOCK_PERIOD * 4));
        searching.set(1001, lost(0), |_| true, [].into_iter(), now, &mut rng);
        assert_eq!(searching.poll_timeout(), None);
    }

    #[test]
    fn when_some_are_back_the_others_leases_are_asked_for_a_few_times() {
        let (now, mut rng) = (Instant::now(), StdRng::seed_from_u64(1));
        let mut searching = Searching::default();
        searching.set(1000, lost(5), |_| true, [].into_iter(), now, &mut rng);
        assert_eq!(searching.poll_knock(now + BACK_ASKED_AFTER, &mut rng), None, "nobody is back");
        searching.set(1001, lost(4), |_| true, [].into_iter(), now, &mut rng);
        let mut asked = Vec::new();
        for step in 0..100 {
            let at = now + Duration::from_millis(100) * step;
            asked.extend(searching.poll_knock(at, &mut rng).map(|knock| (step, knock)));
        }
        assert_eq!(asked, [3, 6, 9, 12].map(|step| (step, Knock::Leases)));
    }

    #[test]
    fn a_seed_that_is_nobody_is_asked_first_and_not_for_ever() {
        let (now, mut rng) = (Instant::now(), StdRng::seed_from_u64(1));
        let mut searching = Searching::default();
        let mut seeds = Vec::new();
        for second in 0..60 {
            let now = now + Duration::from_secs(second);
            searching.set(2, lost(0), |_| false, [address(1), address(2)].into_iter(), now, &mut rng);
            seeds.extend(searching.poll_knock(now, &mut rng));
        }
        seeds.sort_by_key(|knock| format!("{knock:?}"));
        let expected = [address(1), address(1), address(2), address(2)].map(Knock::Seed);
        assert_eq!(seeds, expected);
        assert_eq!(searching.poll_timeout(), None);
    }
}
