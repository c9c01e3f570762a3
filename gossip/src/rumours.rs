//! STATE MACHINE: what is news, and how often it is passed on.
//!
//! Whoever hears something for the first time passes it on at once, and again in a few rounds, each time to others of
//! its two dozen neighbours (rumour mongering; Demers et al., "Epidemic algorithms for replicated database maintenance",
//! 1987). Who has told it here since then knows it, and is not told: so the later rounds reach those of whom nothing was
//! heard, who may not have been told. Large records are offered, and asked for by whoever lacks them. One owner
//! cannot have more of its news passed on than its share; what exceeds it, the repair path carries.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::allowance::Allowance;
use crate::clock::Instant;
use crate::handle::News;
use crate::identity::SpiffeId;
use crate::record::{Renewal, Version};
use crate::talk::{Filed, Item, Key, WHOLE_BYTES_MAX};
use crate::watching::SealedSighting;

/// News at a time; more is left to the repair path. A whole mesh of a thousand that restarts at once fits.
const NEWS_MAX: usize = 4096;

/// Rounds in the smallest mesh: with two, one change in a hundred misses somebody by chance where packets are lost.
const ROUNDS_MIN: u32 = 3;

/// The time between two rounds of whatever news: what comes meanwhile goes together, so that a mesh that starts at
/// once sends batches and not a message for each of a thousand records.
const ROUND_GAP: Duration = Duration::from_millis(20);

/// One owner's news passed on: so many at once, and so many a second. A node agent that announces fifty
/// workloads at its start is not held up.
const ORIGIN_BURST: f64 = 64.0;
const ORIGIN_PER_SECOND: f64 = 2.0;

/// And that of all nodes of one identity together, for whoever holds its key may invent names by the hundred. A
/// hundred replicas that start at once are not held up.
const IDENTITY_BURST: f64 = 256.0;
const IDENTITY_PER_SECOND: f64 = 8.0;

/// Of what is told together, so much decides who of those that lack something comes first.
const WEIGHED_MAX: usize = 16;

/// Owners whose share is counted, and identities.
const ORIGINS_MAX: usize = 4096;

/// A record that was asked for is not asked for again for so long.
const WANT_PERIOD: Duration = Duration::from_millis(400);

/// Records asked for at a time, in all and of one peer: who offers what does not exist must not keep others' offers
/// from being taken.
const WANTS_MAX: usize = 1024;
const WANTS_PER_PEER_MAX: usize = 128;

/// What is news, and under which name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Record(u64, Key),
    /// A renewal that must not wait: the owner refutes a doubt.
    Renewal(u64),
    /// What one watcher says of one subject.
    Sighting(u64, u64),
}

struct Hot {
    said: Said,
    /// In the next round it travels whole, however large.
    is_whole: bool,
    rounds_left: u32,
    next: Instant,
    /// To whom it was told, which may have been lost.
    told: Vec<u64>,
    /// Who has told it here since it was news, and its origin.
    knowing: BTreeSet<u64>,
}

/// What is told at a time, and to whom.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Round {
    pub(crate) to: Vec<u64>,
    /// In datagrams.
    pub(crate) small: Vec<Item>,
    /// In streams.
    pub(crate) whole: Vec<Item>,
}

enum Said {
    Record(Version, Arc<[u8]>),
    Renewal(Renewal),
    Sighting(SealedSighting),
}

/// See the module.
pub(crate) struct Rumours {
    news: News,
    hot: BTreeMap<Subject, Hot>,
    origins: BTreeMap<u64, Allowance>,
    identities: BTreeMap<SpiffeId, Allowance>,
    wanted: Wanted,
    /// In how many rounds news is passed on.
    rounds: u32,
    /// The next round comes no sooner.
    next_round: Option<Instant>,
    /// Records that were news lately, by their signatures; and these in the order in which they were.
    known: BTreeMap<Signature, Subject>,
    known_since: VecDeque<Signature>,
}

/// What was asked for lately, and of whom.
#[derive(Default)]
struct Wanted {
    records: BTreeSet<Filed>,
    /// The first that were asked for come first.
    asked: VecDeque<(Instant, SocketAddr, Filed)>,
    by_peer: BTreeMap<SocketAddr, usize>,
}

/// The beginning of a record's signature: nobody makes another record with the same that passes for it.
type Signature = [u8; 16];

/// Where a signature stands in a sealed record: after its format.
const SIGNATURE_AT: usize = 1;

/// Records remembered as known: each comes a dozen times within half a second.
const KNOWN_MAX: usize = 8192;

impl Rumours {
    pub(crate) fn new(news: News) -> Self {
        Self {
            news,
            hot: BTreeMap::new(),
            origins: BTreeMap::new(),
            identities: BTreeMap::new(),
            wanted: Wanted::default(),
            next_round: None,
            rounds: news.rounds.max(1),
            known: BTreeMap::new(),
            known_since: VecDeque::new(),
        }
    }

    /// A record is new here; `identity` is its owner's.
    pub(crate) fn handle_record(
        &mut self,
        identity: &SpiffeId,
        filed: Filed,
        bytes: Arc<[u8]>,
        now: Instant,
    ) {
        let Filed { owner, key, version } = filed;
        if self.has_share(identity, now) {
            self.put(owner, Subject::Record(owner, key), Said::Record(version, bytes), false, now);
        }
    }

    /// This node itself says it: nobody else has it yet, so that a first few get it whole.
    pub(crate) fn handle_own(&mut self, filed: Filed, bytes: Arc<[u8]>, now: Instant) {
        let Filed { owner, key, version } = filed;
        self.put(owner, Subject::Record(owner, key), Said::Record(version, bytes), true, now);
    }

    /// `owner` renewed its lease because somebody doubts it.
    pub(crate) fn handle_renewal(&mut self, owner: u64, renewal: Renewal, now: Instant) {
        self.put(owner, Subject::Renewal(owner), Said::Renewal(renewal), false, now);
    }

    /// A watcher's word is new here; `identity` is the watcher's.
    pub(crate) fn handle_sighting(&mut self, identity: &SpiffeId, sealed: SealedSighting, now: Instant) {
        let (watcher, subject) = (sealed.sighting.watcher, sealed.sighting.subject);
        if self.has_share(identity, now) {
            self.put(watcher, Subject::Sighting(watcher, subject), Said::Sighting(sealed), false, now);
        }
    }

    /// Takes one from the share of all nodes of `identity`.
    fn has_share(&mut self, identity: &SpiffeId, now: Instant) -> bool {
        if self.identities.len() >= ORIGINS_MAX && !self.identities.contains_key(identity) {
            self.identities.retain(|_, allowance| !allowance.is_full(now));
        }
        let allowance = self
            .identities
            .entry(identity.clone())
            .or_insert_with(|| Allowance::new(IDENTITY_PER_SECOND, IDENTITY_BURST, now));
        let has_share = allowance.take(1.0, now);
        if !has_share {
            metrics::counter!("starling_gossip_news_left_to_repair_total").increment(1);
        }
        has_share
    }

    /// Whether these bytes were news lately: then nothing of them needs to be read.
    pub(crate) fn is_known(&self, bytes: &[u8]) -> bool {
        signature(bytes).is_some_and(|signature| self.known.contains_key(&signature))
    }

    /// Some of what is known was forgotten.
    pub(crate) fn forget_known(&mut self) {
        self.known.clear();
        self.known_since.clear();
    }

    /// `peer` has said `item` here.
    pub(crate) fn handle_told(&mut self, item: &Item, peer: u64) {
        let subject = match item {
            Item::Record(bytes) => signature(bytes).and_then(|signature| self.known.get(&signature).cloned()),
            Item::Offer(filed) => Some(Subject::Record(filed.owner, filed.key.clone())),
            Item::Refutation(owner, _) => Some(Subject::Renewal(*owner)),
            Item::Sighting(sealed) => {
                Some(Subject::Sighting(sealed.sighting.watcher, sealed.sighting.subject))
            }
            Item::Want(_) | Item::Renewal(..) | Item::Ask(..) => None,
        };
        let hot = subject.and_then(|subject| self.hot.get_mut(&subject));
        if let Some(hot) = hot.filter(|hot| hot.said.is_said_by(item)) {
            hot.knowing.insert(peer);
        }
    }

    fn note(&mut self, subject: &Subject, said: &Said) {
        let Said::Record(_, bytes) = said else { return };
        let Some(signature) = signature(bytes) else { return };
        if self.known.insert(signature, subject.clone()).is_none() {
            self.known_since.push_back(signature);
        }
        if self.known_since.len() > KNOWN_MAX
            && let Some(oldest) = self.known_since.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    fn put(&mut self, origin: u64, subject: Subject, said: Said, is_own: bool, now: Instant) {
        self.note(&subject, &said);
        if self.origins.len() >= ORIGINS_MAX && !self.origins.contains_key(&origin) {
            self.origins.retain(|_, allowance| !allowance.is_full(now));
        }
        let allowance = self
            .origins
            .entry(origin)
            .or_insert_with(|| Allowance::new(ORIGIN_PER_SECOND, ORIGIN_BURST, now));
        let has_room = self.hot.len() < NEWS_MAX || self.hot.contains_key(&subject);
        if has_room && allowance.take(1.0, now) {
            let hot = Hot {
                said,
                is_whole: is_own,
                rounds_left: self.rounds,
                next: now,
                told: Vec::new(),
                knowing: BTreeSet::from([origin]),
            };
            self.hot.insert(subject, hot);
        } else {
            metrics::counter!("starling_gossip_news_left_to_repair_total").increment(1);
        }
    }

    /// The mesh has so many members: in a small one each tells everybody itself in fewer rounds.
    pub(crate) fn set_members(&mut self, members: usize) {
        let needed = members.saturating_sub(1).div_ceil(self.news.told.max(1));
        let needed = u32::try_from(needed).unwrap_or(u32::MAX).max(ROUNDS_MIN);
        self.rounds = self.news.rounds.min(needed).max(1);
    }

    /// When the next round is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let due = self.hot.values().map(|hot| hot.next).min()?;
        Some(self.next_round.map_or(due, |next| next.max(due)))
    }

    /// What is due to be passed on now, and to whom of `among`, which are in an order of chance.
    pub(crate) fn take_round(&mut self, now: Instant, mut among: Vec<u64>) -> Round {
        let (mut items, mut whole) = (Vec::new(), Vec::new());
        let (period, gap) = (self.news.period, ROUND_GAP.min(self.news.period / 2));
        self.next_round = Some(now + gap);
        // What is due soon goes along.
        let is_due = |hot: &Hot| hot.next <= now + gap / 2;
        let due: Vec<&Hot> = self.hot.values().filter(|hot| is_due(hot)).collect();
        among.retain(|name| due.iter().any(|hot| !hot.knowing.contains(name)));
        let weighed = &due[..due.len().min(WEIGHED_MAX)];
        // First whoever was told something least often that it may lack: what it knows, however much of that there
        // is, puts it behind nobody.
        let times_told = |name: &u64| {
            let lacked = weighed.iter().filter(|hot| !hot.knowing.contains(name));
            let times = lacked.map(|hot| hot.told.iter().filter(|told| *told == name).count());
            (times.clone().min().unwrap_or(usize::MAX), times.sum::<usize>())
        };
        among.sort_by_cached_key(times_told);
        among.truncate(self.news.told);
        self.hot.retain(|subject, hot| {
            if !is_due(hot) {
                return true;
            }
            hot.told.extend(&among);
            if std::mem::take(&mut hot.is_whole) && hot.said.is_large() {
                whole.extend(hot.said.whole());
            } else {
                items.push(hot.said.item(subject));
            }
            hot.next = now.max(hot.next) + period;
            hot.rounds_left -= 1;
            hot.rounds_left > 0
        });
        Round { to: among, small: items, whole }
    }

    /// Whether to ask `peer` for a record that it offers and this node lacks.
    pub(crate) fn wants(&mut self, filed: &Filed, peer: SocketAddr, now: Instant) -> bool {
        self.wanted.forget_until(now);
        let of_peer = self.wanted.by_peer.get(&peer).copied().unwrap_or_default();
        if self.wanted.records.len() >= WANTS_MAX
            || of_peer >= WANTS_PER_PEER_MAX
            || !self.wanted.records.insert(filed.clone())
        {
            return false;
        }
        self.wanted.by_peer.insert(peer, of_peer + 1);
        self.wanted.asked.push_back((now, peer, filed.clone()));
        true
    }
}

fn signature(bytes: &[u8]) -> Option<Signature> {
    bytes.get(SIGNATURE_AT..)?.first_chunk().copied()
}

impl Wanted {
    /// What was asked for too long ago may be asked for again.
    fn forget_until(&mut self, now: Instant) {
        while let Some((_, peer, filed)) = self.asked.pop_front_if(|(at, ..)| now >= *at + WANT_PERIOD) {
            self.records.remove(&filed);
            if let Some(count) = self.by_peer.get_mut(&peer) {
                *count -= 1;
                if *count == 0 {
                    self.by_peer.remove(&peer);
                }
            }
        }
    }
}

impl Said {
    /// Whether `item` is the same word.
    fn is_said_by(&self, item: &Item) -> bool {
        match (self, item) {
            (Self::Record(_, bytes), Item::Record(said)) => signature(bytes) == signature(said),
            (Self::Record(version, _), Item::Offer(filed)) => *version == filed.version,
            (Self::Renewal(renewal), Item::Refutation(_, said)) => renewal == said,
            (Self::Sighting(sealed), Item::Sighting(said)) => sealed == said,
            _ => false,
        }
    }

    fn is_large(&self) -> bool {
        matches!(self, Self::Record(_, bytes) if bytes.len() > WHOLE_BYTES_MAX)
    }

    fn whole(&self) -> Option<Item> {
        let Self::Record(_, bytes) = self else { return None };
        Some(Item::Record(bytes.to_vec()))
    }

    fn item(&self, subject: &Subject) -> Item {
        match (self, subject) {
            (Self::Record(version, bytes), Subject::Record(owner, key)) if bytes.len() > WHOLE_BYTES_MAX => {
                Item::Offer(Filed { owner: *owner, key: key.clone(), version: *version })
            }
            (Self::Record(_, bytes), _) => Item::Record(bytes.to_vec()),
            (Self::Renewal(renewal), Subject::Renewal(owner)) => Item::Refutation(*owner, *renewal),
            (Self::Renewal(_), _) => unreachable!("a renewal is filed under its owner"),
            (Self::Sighting(sealed), _) => Item::Sighting(sealed.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(owner: u64, version: u64) -> Filed {
        Filed { owner, key: Key::Node, version: Version { incarnation: 1, version } }
    }

    fn told(rumours: &mut Rumours, now: Instant) -> (Vec<Item>, Vec<Item>) {
        let round = rumours.take_round(now, vec![]);
        (round.small, round.whole)
    }

    fn identity() -> SpiffeId {
        "spiffe://acme/svc/web".parse().expect("an identity")
    }

    #[test]
    fn news_is_passed_on_at_once_and_in_a_few_rounds() {
        let now = Instant::now();
        let news = News::default();
        let mut rumours = Rumours::new(news);
        rumours.handle_record(&identity(), node(1, 1), vec![1; 100].into(), now);
        rumours.handle_record(&identity(), node(2, 1), vec![2; 5_000].into(), now);
        let mut rounds = Vec::new();
        while let Some(due) = rumours.poll_timeout() {
            rounds.push((due - now, rumours.take_round(due, vec![]).small.len()));
        }
        let expected: Vec<_> = (0..news.rounds).map(|round| (news.period * round, 2)).collect();
        assert_eq!(rounds, expected);
    }

    #[test]
    fn nobody_is_told_anything_twice_while_others_were_not_told() {
        let now = Instant::now();
        let mut rumours = Rumours::new(News::default());
        rumours.set_members(100);
        rumours.handle_record(&identity(), node(1, 1), vec![1; 100].into(), now);
        let mut all = Vec::new();
        let mut has_other = false;
        while let Some(due) = rumours.poll_timeout() {
            // Something else is told between.
            if !std::mem::replace(&mut has_other, true) {
                rumours.handle_record(&identity(), node(13, 1), vec![2; 100].into(), now + ROUND_GAP * 2);
            }
            let round = rumours.take_round(due, (1..=13).collect());
            if round.small.contains(&Item::Record(vec![1; 100])) {
                all.extend(round.to);
            } else {
                assert!(!round.to.contains(&13), "its own word");
            }
        }
        all.sort_unstable();
        assert_eq!(all, (2..=13).collect::<Vec<u64>>());
    }

    #[test]
    fn who_has_told_it_is_told_last_and_who_knows_everything_not_at_all() {
        let now = Instant::now();
        let mut rumours = Rumours::new(News::default());
        rumours.set_members(100);
        let (small, large) = (Item::Record(vec![1; 100]), Item::Offer(node(2, 1)));
        rumours.handle_record(&identity(), node(1, 1), vec![1; 100].into(), now);
        for peer in 3..=8 {
            rumours.handle_told(&small, peer);
        }
        rumours.handle_told(&Item::Record(vec![2; 100]), 9);
        let told = |rumours: &mut Rumours| {
            let due = rumours.poll_timeout().expect("a round");
            let mut to = rumours.take_round(due, (1..=9).collect()).to;
            to.sort_unstable();
            to
        };
        assert_eq!(told(&mut rumours), [2, 9], "of these alone nobody has heard it");
        rumours.handle_record(&identity(), node(2, 1), vec![2; 5_000].into(), now);
        rumours.handle_told(&Item::Offer(node(2, 2)), 3);
        for peer in 4..=8 {
            rumours.handle_told(&large, peer);
        }
        assert_eq!(told(&mut rumours), [1, 3, 9], "3 has offered another word of it");
        assert_eq!(told(&mut rumours), [2, 9], "the first again, and still nobody else");
    }

    #[test]
    fn a_newer_word_takes_the_older_ones_place_and_the_large_are_offered() {
        let now = Instant::now();
        let mut rumours = Rumours::new(News::default());
        rumours.handle_record(&identity(), node(1, 1), vec![1; 100].into(), now);
        rumours.handle_record(&identity(), node(1, 2), vec![1; 5_000].into(), now);
        let offered = node(1, 2);
        assert_eq!(told(&mut rumours, now), (vec![Item::Offer(offered.clone())], vec![]));
        rumours.handle_own(node(1, 3), vec![1; 5_000].into(), now);
        assert_eq!(told(&mut rumours, now), (vec![], vec![Item::Record(vec![1; 5_000])]), "whole, once");
        let peer = |port| SocketAddr::from(([192, 0, 2, 1], port));
        assert!(rumours.wants(&offered, peer(1), now) && !rumours.wants(&offered, peer(1), now));
        assert!(rumours.wants(&offered, peer(1), now + WANT_PERIOD));
    }

    #[test]
    fn who_offers_what_there_is_not_keeps_nobody_elses_offers_away() {
        let now = Instant::now();
        let mut rumours = Rumours::new(News::default());
        let peer = |port| SocketAddr::from(([192, 0, 2, 1], port));
        let taken = (0..5000).filter(|name| rumours.wants(&node(*name, 1), peer(1), now)).count();
        assert_eq!(taken, WANTS_PER_PEER_MAX);
        assert!(rumours.wants(&node(9999, 1), peer(2), now));
        assert!(rumours.wants(&node(9998, 1), peer(1), now + WANT_PERIOD), "and its own count again later");
    }

    #[test]
    fn invented_names_of_one_identity_share_what_it_has() {
        let now = Instant::now();
        let mut rumours = Rumours::new(News::default());
        for name in 0..1000 {
            rumours.handle_record(&identity(), node(name, 1), vec![1; 100].into(), now);
        }
        assert_eq!(told(&mut rumours, now).0.len(), IDENTITY_BURST as usize);
        rumours.handle_own(node(1000, 1), vec![1; 100].into(), now);
        assert_eq!(told(&mut rumours, now).0.len(), 1, "a node's own word is not held up by its replicas");
    }

    #[test]
    fn no_owner_has_more_than_its_share_passed_on() {
        let now = Instant::now();
        let mut rumours = Rumours::new(News::default());
        let flood = |rumours: &mut Rumours, now| {
            for id in 0..1000 {
                let key = Key::Instance(format!("{id}").parse().expect("a label"));
                rumours.handle_record(&identity(), Filed { key, ..node(1, 1) }, vec![1; 100].into(), now);
            }
            let due = told(rumours, now).0.len();
            while let Some(next) = rumours.poll_timeout() {
                told(rumours, next);
            }
            due
        };
        assert_eq!(flood(&mut rumours, now), ORIGIN_BURST as usize);
        let other = "spiffe://acme/svc/other".parse().expect("an identity");
        rumours.handle_record(&other, node(2, 1), vec![1; 100].into(), now);
        assert_eq!(told(&mut rumours, now).0.len(), 1, "others have their own");
    }
}
