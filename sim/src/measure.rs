//! How long things took, and what they cost: what [`crate::report`] prints, gathered while a run goes.
//!
//! It decides nothing and breaks nothing off; a measure that never came is simply not there, and the
//! check for convergence says so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use starling::route;
use starling_gossip::clock::Instant;
use starling_gossip::identity::ServiceName;
use starling_gossip::record::Locality;
use starling_gossip::snapshot::{Presence, Snapshot};

use crate::check::{Checker, Sight};
use crate::network::partition::APART;
use crate::network::traffic::Traffic;
use crate::report::{MembersAt, Percentiles, Pictures, Rate, Rates, Samples, Word, millis};
use crate::truth::Truth;

/// Traffic within so long after something happened is a change's, not the steady state's.
const CHANGE_LASTS: Duration = Duration::from_secs(2);

/// Who could not be reached is suspected within so long, by two watchers and their word. A suspicion of somebody
/// who has been there for longer, for everybody, and was neither slow nor lossy, is false.
const SUSPECTED_WITHIN: Duration = Duration::from_secs(10);

/// Over so many seconds the peak of traffic is a mean.
const PEAK_SECONDS: usize = 10;

/// Words that the picture of who knows what shows at most.
const WORDS_SHOWN_MAX: usize = 120;

/// Measures of one run, as they come.
pub struct Measures {
    lease: Duration,
    samples: Samples,
    words: Vec<Spoken>,
    /// By host: its words here that not everybody may know yet.
    open: BTreeMap<usize, Vec<usize>>,
    joins: BTreeMap<usize, (Instant, BTreeSet<usize>)>,
    /// By host that came back: its first word after that, when, and who knows.
    rejoins: BTreeMap<usize, (u64, Instant, BTreeSet<usize>)>,
    crashes: BTreeMap<usize, Crash>,
    leaves: BTreeMap<usize, Instant>,
    suspicions_false: u64,
    evictions_false: u64,
    stale: u64,
    compared: u64,
    steady: Spent,
    change: Spent,
    /// By host: seconds in the steady state, and bytes that it sent in them.
    steady_by_host: BTreeMap<usize, (u32, u64)>,
    traffic_before: Traffic,
    peak: Peak,
    last_happened: Option<Instant>,
    members: Vec<MembersAt>,
    bytes: Vec<BTreeMap<String, u64>>,
}

/// A word that is measured.
struct Spoken {
    host: usize,
    number: u64,
    what: &'static str,
    at: Instant,
    known: BTreeMap<usize, f64>,
}

struct Crash {
    at: Instant,
    service: ServiceName,
    unused: BTreeSet<usize>,
    suspected: BTreeSet<usize>,
    /// Others serve the same.
    has_others: bool,
}

/// What was sent in one phase.
#[derive(Default)]
struct Spent {
    node_seconds: f64,
    by_kind: BTreeMap<&'static str, (u64, u64)>,
}

/// The most that was sent for a while, from when the mesh first agreed on.
#[derive(Default)]
struct Peak {
    is_counted: bool,
    /// The last seconds: bytes, and nodes that were up.
    window: VecDeque<(u64, usize)>,
    bytes_per_node_s: f64,
}

/// The figures of a run that are not measures of time.
pub struct Figures {
    /// See [`crate::report::Run`].
    pub suspicions_false: u64,
    /// See [`crate::report::Run`].
    pub evictions_false: u64,
    /// See [`crate::report::Run`].
    pub stale_share: f64,
    /// See [`crate::report::Run`].
    pub traffic: crate::report::Traffic,
    /// See [`crate::report::Run`].
    pub bytes_per_node_s: f64,
    /// See [`crate::report::Run`].
    pub bytes_per_node_s_max: f64,
    /// See [`crate::report::Run`].
    pub bytes_peak_per_node_s: f64,
}

impl Measures {
    /// For a mesh of such a lease.
    pub fn new(lease: Duration) -> Self {
        Self {
            lease,
            samples: Samples::default(),
            words: Vec::new(),
            open: BTreeMap::new(),
            joins: BTreeMap::new(),
            rejoins: BTreeMap::new(),
            crashes: BTreeMap::new(),
            leaves: BTreeMap::new(),
            suspicions_false: 0,
            evictions_false: 0,
            stale: 0,
            compared: 0,
            steady: Spent::default(),
            change: Spent::default(),
            steady_by_host: BTreeMap::new(),
            traffic_before: Traffic::default(),
            peak: Peak::default(),
            last_happened: None,
            members: Vec::new(),
            bytes: Vec::new(),
        }
    }

    /// Something happens: traffic counts as a change's for a while.
    pub fn happens(&mut self, now: Instant) {
        self.last_happened = Some(now);
    }

    /// The mesh agrees for the first time: from now on it is measured how much is sent at most.
    pub fn agrees(&mut self, now: Instant) {
        self.happens(now);
        self.peak.is_counted = true;
    }

    /// `host` says `what` as word `number`; how soon others know is measured.
    pub fn says(&mut self, host: usize, number: u64, what: &'static str, now: Instant) {
        self.open.entry(host).or_default().push(self.words.len());
        self.words.push(Spoken { host, number, what, at: now, known: BTreeMap::new() });
    }

    /// `host` is new.
    pub fn joins(&mut self, host: usize, now: Instant) {
        self.joins.insert(host, (now, BTreeSet::new()));
    }

    /// `host` is back since `now`, and said word `number` first.
    pub fn rejoins(&mut self, host: usize, number: u64, now: Instant) {
        self.rejoins.insert(host, (number, now, BTreeSet::new()));
    }

    /// `host` crashes, which served `service`, perhaps with others.
    pub fn crashes(&mut self, host: usize, service: ServiceName, has_others: bool, now: Instant) {
        let (unused, suspected) = <(BTreeSet<_>, BTreeSet<_>)>::default();
        self.crashes.insert(host, Crash { at: now, service, unused, suspected, has_others });
    }

    /// `host` is up again.
    pub fn comes_back(&mut self, host: usize) {
        self.crashes.remove(&host);
    }

    /// `host` begins to leave.
    pub fn leaves(&mut self, host: usize, now: Instant) {
        self.leaves.insert(host, now);
    }

    /// `observer` sees somebody otherwise than before.
    pub fn handle_sight(&mut self, truth: &Truth, observer: usize, sight: &Sight, now: Instant) {
        let Sight { subject, before, after } = *sight;
        if observer == subject {
            return;
        }
        let is_present = after.presence.is_some_and(Presence::is_present);
        let known = match after.shown {
            0 if is_present => truth.host(subject).withdrawn_after(before.shown),
            0 => None,
            shown => (shown > before.shown).then_some(shown),
        };
        if let Some(number) = known {
            self.handle_known(truth, observer, subject, number, now);
        }
        // Nobody is wrong to doubt a liar.
        if after.presence == before.presence || truth.host(subject).is_hostile {
            return;
        }
        match after.presence {
            Some(Presence::Suspect) => self.handle_suspected(truth, observer, subject, now),
            Some(Presence::Expired) => self.handle_expired(truth, observer, subject, now),
            Some(Presence::Left) => {
                if let Some(at) =
                    self.leaves.get(&subject).filter(|at| truth.together(observer, observer, **at))
                {
                    self.samples.add("left", millis(now - *at));
                }
            }
            _ => {}
        }
    }

    fn handle_known(&mut self, truth: &Truth, observer: usize, subject: usize, number: u64, now: Instant) {
        for word in self.open.get(&subject).into_iter().flatten() {
            let word = &mut self.words[*word];
            if word.number <= number
                && !word.known.contains_key(&observer)
                && truth.together(observer, subject, word.at)
            {
                let took = millis(now - word.at);
                word.known.insert(observer, took);
                self.samples.add("known", took);
            }
        }
        if let Some((at, knowing)) = self.joins.get_mut(&subject)
            && truth.together(observer, subject, *at)
            && knowing.insert(observer)
        {
            self.samples.add("joined", millis(now - *at));
        }
        if let Some((first, at, knowing)) = self.rejoins.get_mut(&subject)
            && *first <= number
            && truth.together(observer, subject, *at)
            && knowing.insert(observer)
        {
            self.samples.add("rejoined", millis(now - *at));
        }
    }

    fn handle_suspected(&mut self, truth: &Truth, observer: usize, subject: usize, now: Instant) {
        match self.crashes.get_mut(&subject) {
            // A renewal from just before the crash may end a suspicion once more.
            Some(crash) => {
                if truth.together(observer, observer, crash.at) && crash.suspected.insert(observer) {
                    self.samples.add("suspect", millis(now - crash.at));
                }
            }
            None => {
                // Who hardly answers, or whom its watchers in another part could not reach, is rightly doubted.
                let since = now - SUSPECTED_WITHIN;
                let is_false = truth.together(observer, subject, since)
                    && truth.with_everybody(subject, since)
                    && truth.host(subject).is_well(since);
                self.suspicions_false += u64::from(is_false);
            }
        }
    }

    fn handle_expired(&mut self, truth: &Truth, observer: usize, subject: usize, now: Instant) {
        match self.crashes.get(&subject) {
            Some(crash) if truth.together(observer, observer, crash.at) => {
                self.samples.add("expired", millis(now - crash.at));
            }
            Some(_) => {}
            None => self.evictions_false += u64::from(truth.together(observer, subject, now - self.lease)),
        }
    }

    /// Whether the routes of `observer` still prefer somebody who has crashed.
    pub fn handle_routes(&mut self, truth: &Truth, observer: usize, snapshot: &Snapshot, now: Instant) {
        let samples = &mut self.samples;
        for (host, crash) in &mut self.crashes {
            let is_asked = crash.has_others && !crash.unused.contains(&observer);
            if is_asked
                && truth.together(observer, observer, crash.at)
                && !is_preferred(truth, *host, &crash.service, observer, snapshot)
            {
                crash.unused.insert(observer);
                samples.add("unused", millis(now - crash.at));
            }
        }
    }

    /// To be called each second: what was sent, who believes what, how old that is.
    pub fn handle_second(
        &mut self,
        truth: &Truth,
        checker: &Checker,
        traffic: Traffic,
        elapsed: Duration,
        now: Instant,
    ) {
        let up: Vec<usize> =
            (0..truth.components().len()).filter(|it| truth.components()[*it] != APART).collect();
        let is_change = self.last_happened.is_some_and(|at| now < at + CHANGE_LASTS);
        let spent = if is_change { &mut self.change } else { &mut self.steady };
        spent.node_seconds += up.len() as f64;
        let mut bytes = BTreeMap::new();
        for (kind, (messages, all)) in &traffic.by_kind {
            let (messages_before, before) =
                self.traffic_before.by_kind.get(kind).copied().unwrap_or_default();
            let sum = spent.by_kind.entry(*kind).or_default();
            sum.0 += messages - messages_before;
            sum.1 += all - before;
            bytes.insert((*kind).to_owned(), all - before);
        }
        if !is_change {
            for host in &up {
                let sent = |traffic: &Traffic| traffic.by_host.get(host).copied().unwrap_or_default();
                let sum = self.steady_by_host.entry(*host).or_default();
                *sum = (sum.0 + 1, sum.1 + sent(&traffic) - sent(&self.traffic_before));
            }
        }
        // What an attacker sends is its own cost; what it makes others send is not.
        let honest = up.iter().filter(|host| !truth.host(**host).is_hostile);
        let sent = |traffic: &Traffic, host: &usize| traffic.by_host.get(host).copied().unwrap_or_default();
        let spent = honest.clone().map(|host| sent(&traffic, host) - sent(&self.traffic_before, host)).sum();
        self.peak.second(spent, honest.count());
        self.traffic_before = traffic;
        self.bytes.push(bytes);
        self.look_around(truth, checker, &up, elapsed, now);
    }

    fn look_around(
        &mut self,
        truth: &Truth,
        checker: &Checker,
        up: &[usize],
        elapsed: Duration,
        now: Instant,
    ) {
        let components = truth.components();
        let mut believed: Vec<usize> = Vec::new();
        for observer in up.iter().copied().filter(|host| !truth.host(*host).is_hostile) {
            let seen = checker.seen_by(observer);
            believed.push(seen.iter().filter(|it| it.presence.is_some_and(Presence::is_present)).count());
            let mut oldest = None;
            for subject in up.iter().copied().filter(|it| components[*it] == components[observer]) {
                let host = truth.host(subject);
                if host.is_hostile || host.words.is_empty() || host.should_be_shown() == 0 {
                    continue;
                }
                self.compared += 1;
                let shown = seen.get(subject).map_or(0, |it| it.shown);
                if shown < host.newest() {
                    self.stale += 1;
                    let lacking = host.word(shown + 1).map(|word| word.at);
                    oldest = [oldest, lacking].into_iter().flatten().min();
                }
            }
            self.samples.add("stale", oldest.map_or(0.0, |at| millis(now - at)));
        }
        believed.sort_unstable();
        if let (Some(min), Some(max)) = (believed.first(), believed.last()) {
            self.members.push(MembersAt {
                at_s: elapsed.as_secs_f64(),
                up: up.len(),
                seen_min: *min,
                seen_median: believed[believed.len() / 2],
                seen_max: *max,
            });
        }
    }

    /// All measures of time.
    pub fn samples(&self) -> &Samples {
        &self.samples
    }

    /// The percentiles of all but `known`.
    pub fn took(&self) -> BTreeMap<String, Percentiles> {
        let others = self.samples.0.iter().filter(|(name, _)| *name != "known");
        others.map(|(name, samples)| (name.clone(), Percentiles::of(samples))).collect()
    }

    /// Everything else.
    pub fn figures(&self) -> Figures {
        let phase = if self.steady.node_seconds > 0.0 { &self.steady } else { &self.change };
        let all: u64 = phase.by_kind.values().map(|(_, bytes)| bytes).sum();
        Figures {
            suspicions_false: self.suspicions_false,
            evictions_false: self.evictions_false,
            stale_share: self.stale as f64 / self.compared.max(1) as f64,
            traffic: crate::report::Traffic { steady: self.steady.rates(), change: self.change.rates() },
            bytes_per_node_s: all as f64 / phase.node_seconds.max(1.0),
            bytes_per_node_s_max: self.bytes_per_node_s_max(),
            bytes_peak_per_node_s: self.peak.bytes_per_node_s,
        }
    }

    /// Of hosts that were there long enough for a mean.
    fn bytes_per_node_s_max(&self) -> f64 {
        let long = self.steady_by_host.values().map(|(seconds, _)| *seconds).max().unwrap_or_default() / 2;
        let there = self.steady_by_host.values().filter(|(seconds, _)| *seconds > long);
        there.map(|(seconds, bytes)| *bytes as f64 / f64::from(*seconds)).fold(0.0, f64::max)
    }

    /// What the pictures show; `start` is when virtual time began.
    pub fn pictures(&self, truth: &Truth, events: Vec<(f64, String)>, start: Instant) -> Pictures {
        let nodes = truth.hosts().len();
        let word = |spoken: &Spoken| Word {
            by: spoken.host,
            what: format!("node-{} {}", spoken.host, spoken.what),
            at_s: (spoken.at - start).as_secs_f64(),
            known_ms: (0..nodes).map(|host| spoken.known.get(&host).copied()).collect(),
        };
        Pictures {
            members: self.members.clone(),
            bytes: self.bytes.clone(),
            events,
            words: self.words.iter().take(WORDS_SHOWN_MAX).map(word).collect(),
            nodes: truth.hosts().iter().map(|host| host.owner.node.to_string()).collect(),
        }
    }
}

impl Peak {
    /// What was sent in one more second.
    fn second(&mut self, bytes: u64, nodes: usize) {
        if !self.is_counted {
            return;
        }
        self.window.push_back((bytes, nodes));
        if self.window.len() > PEAK_SECONDS {
            self.window.pop_front();
        }
        if self.window.len() == PEAK_SECONDS {
            let (bytes, nodes) =
                self.window.iter().fold((0, 0), |sum, second| (sum.0 + second.0, sum.1 + second.1));
            self.bytes_per_node_s = self.bytes_per_node_s.max(bytes as f64 / nodes.max(1) as f64);
        }
    }
}

impl Spent {
    fn rates(&self) -> Rates {
        let per = |sum: u64| sum as f64 / self.node_seconds.max(1.0);
        let rate = |(messages, bytes): &(u64, u64)| Rate { bytes: per(*bytes), messages: per(*messages) };
        self.by_kind.iter().map(|(kind, sums)| ((*kind).to_owned(), rate(sums))).collect()
    }
}

/// Whether a caller at `observer` would be led to `host` first.
fn is_preferred(
    truth: &Truth,
    host: usize,
    service: &ServiceName,
    observer: usize,
    snapshot: &Snapshot,
) -> bool {
    let Some(offered) = snapshot.services.get(service) else { return false };
    let only = Snapshot { services: [(service.clone(), offered.clone())].into(), ..Snapshot::default() };
    let locality: &Locality = &truth.host(observer).locality;
    let table = route::compute(&only, locality);
    let Some(route) = table.routes.get(service) else { return false };
    let best = route.candidates.iter().map(|candidate| candidate.rank).min();
    let owner = &truth.host(host).owner;
    route.candidates.iter().any(|it| it.target.owner == *owner && Some(it.rank) == best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_a_mean_over_whole_windows_once_the_mesh_agrees() {
        let mut peak = Peak::default();
        peak.second(1_000_000, 2);
        peak.is_counted = true;
        (1..PEAK_SECONDS).for_each(|_| peak.second(100, 2));
        assert_eq!(peak.bytes_per_node_s, 0.0);
        peak.second(300, 2);
        assert_eq!(peak.bytes_per_node_s, 60.0);
        peak.second(0, 2);
        assert_eq!(peak.bytes_per_node_s, 60.0);
    }
}
