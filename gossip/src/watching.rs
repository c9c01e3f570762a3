//! STATE MACHINE: who watches whom, and what a watcher says.
//!
//! Each node is watched by [`WATCHERS`] others (`watchers`). A watcher asks every other second; after
//! several questions without an answer it says, signed, that it cannot reach the node, and later that it can. Its word
//! removes nobody: two watchers' words lower a rank, and the suspect renews its lease as soon as it
//! hears of it. A watcher that few answer doubts itself first (Dadgar, Phillips and Currey, "Lifeguard", 2018):
//! it waits longer, and one that hears nothing at all says nothing.
//!
//! The same questions serve a node that routes work to a suspect: what it sees itself outweighs what it is told.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Instant;
use crate::codec;
use crate::svid::{PublicKey, SIGNATURE_BYTES, Svid, TrustBundle};

/// How many watch one node: with three, the mesh knows of a crash although one of them crashed too.
pub const WATCHERS: usize = 3;

/// Watchers are believed up to this place in the order: nodes that learn of each other at different times do not
/// agree on the first three.
pub(crate) const WATCHERS_BELIEVED: usize = WATCHERS + 2;

/// How many watchers' words make a suspect.
pub const WATCHERS_NEEDED: usize = 2;

/// How often a watcher asks: a crash is known within five seconds, and asking costs each node three messages a second.
pub const QUESTION_PERIOD: Duration = Duration::from_secs(2);

/// Who has heard nothing for so long is deaf: everybody talks to somebody once a second.
const DEAF_AFTER: Duration = Duration::from_secs(2);

/// How long the first question waits for an answer: two round trips around the world.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);

/// How long each further question does.
const ANSWER_AGAIN_WITHIN: Duration = Duration::from_millis(450);

/// Questions in all before a watcher speaks.
const QUESTIONS: u32 = 5;

/// From a question that is not answered until the watcher says so, unless it doubts itself.
pub const UNANSWERED_AFTER: Duration =
    ANSWER_WITHIN.saturating_add(ANSWER_AGAIN_WITHIN.saturating_mul(QUESTIONS - 1));

/// The time between two accusations grows up to the period times two to the power of this.
const FAILURES_MAX: u32 = 4;

/// How far a watcher doubts itself at most: it waits so many times longer, and one.
const SELF_DOUBT_MAX: u32 = 8;

/// Keeps these signatures apart from everything else that the same key signs.
const CONTEXT: &[u8] = b"starling sighting\0";

/// What a watcher has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sighting {
    /// The short names of who saw, and of whom.
    pub(crate) watcher: u64,
    pub(crate) subject: u64,
    /// The life and the last renewal of the subject that the watcher knew: a later one refutes it.
    pub(crate) incarnation: u64,
    pub(crate) counter: u32,
    /// Grows with each word of the watcher.
    pub(crate) sequence: u64,
    /// Whether it answers.
    pub(crate) is_reachable: bool,
}

/// A sighting as it travels, with its watcher's signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SealedSighting {
    pub(crate) sighting: Sighting,
    signature: Vec<u8>,
}

impl SealedSighting {
    pub(crate) fn seal(sighting: Sighting, svid: &Svid) -> Self {
        Self { sighting, signature: svid.sign(&signed_bytes(&sighting)).to_vec() }
    }

    pub(crate) fn is_signed_by(&self, key: &PublicKey, bundle: &TrustBundle) -> bool {
        let signature = <&[u8; SIGNATURE_BYTES]>::try_from(self.signature.as_slice());
        signature.is_ok_and(|signature| bundle.verifies(key, &signed_bytes(&self.sighting), signature))
    }

    /// About what it takes in a talk.
    pub(crate) fn bytes(&self) -> usize {
        48 + self.signature.len()
    }
}

fn signed_bytes(sighting: &Sighting) -> Vec<u8> {
    [CONTEXT, &codec::encode(sighting)].concat()
}

/// Where `watcher` stands among those that may watch `subject`; the least come first.
pub(crate) fn place(watcher: u64, subject: u64) -> u64 {
    // Short names are hashes already; this only mixes two of them (the finisher of SplitMix64).
    let mut mixed = watcher ^ subject.rotate_left(32);
    for factor in [0xbf58_476d_1ce4_e5b9_u64, 0x94d0_49bb_1331_11eb] {
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(factor);
    }
    mixed ^ (mixed >> 31)
}

/// Somebody to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    /// The short name of whom.
    pub(crate) subject: u64,
    /// What the answer must repeat.
    pub(crate) number: u64,
    /// Whether an earlier one was not answered: this one should arrive.
    pub(crate) is_urgent: bool,
}

/// What became clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The short name of whom.
    pub(crate) subject: u64,
    pub(crate) is_reachable: bool,
    /// It is for others to hear; else this node asked for itself alone.
    pub(crate) is_news: bool,
}

/// All that this node watches or looks at.
#[derive(Default)]
pub(crate) struct Watching {
    asked: BTreeMap<u64, Asked>,
    self_doubt: u32,
    /// When this node last heard anybody.
    heard: Option<Instant>,
}

struct Asked {
    /// This node is one of its watchers.
    is_watched: bool,
    /// It routes work to it, and looks for itself.
    is_cared_for: bool,
    /// The number of the question that is open, since when, and the how manieth it is.
    open: Option<(u64, Instant, u32)>,
    next: Instant,
    /// What was last clear.
    is_reachable: Option<bool>,
    /// Its last questions were left unanswered.
    is_silent: bool,
    /// How often in a row they were.
    failures: u32,
}

impl Asked {
    /// It answered until now, and has left a question unanswered.
    fn is_asked_again(&self) -> bool {
        self.is_reachable == Some(true) && self.open.is_some_and(|(_, _, count)| count > 1)
    }
}

impl Watching {
    /// This node watches `watched`, and looks at `cared_for` for itself.
    pub(crate) fn set(
        &mut self,
        watched: impl Iterator<Item = u64>,
        cared_for: impl Iterator<Item = u64>,
        now: Instant,
        mut chance: impl FnMut() -> u64,
    ) {
        let watched: BTreeSet<u64> = watched.collect();
        let cared_for: BTreeSet<u64> = cared_for.collect();
        self.asked.retain(|subject, _| watched.contains(subject) || cared_for.contains(subject));
        for subject in watched.union(&cared_for) {
            let (is_watched, is_cared_for) = (watched.contains(subject), cared_for.contains(subject));
            let asked = self.asked.entry(*subject).or_insert_with(|| {
                // Who is watched is asked some time within the first period.
                let next = now + QUESTION_PERIOD.mul_f64(chance() as f64 / u64::MAX as f64);
                Asked {
                    is_watched,
                    is_cared_for: false,
                    open: None,
                    next,
                    is_reachable: None,
                    is_silent: false,
                    failures: 0,
                }
            });
            if is_cared_for && !asked.is_cared_for {
                // At once.
                asked.next = now;
            }
            (asked.is_watched, asked.is_cared_for) = (is_watched, is_cared_for);
        }
    }

    /// When [`Self::handle_timeout`] is to be called.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.asked.values().map(|asked| self.due(asked)).min()
    }

    /// Asks who is to be asked, and says of whom it has become clear that it does not answer.
    pub(crate) fn handle_timeout(
        &mut self,
        now: Instant,
        mut chance: impl FnMut() -> u64,
    ) -> (Vec<Question>, Vec<Seen>) {
        let (mut questions, mut seen) = (Vec::new(), Vec::new());
        let subjects: Vec<u64> = self
            .asked
            .iter()
            .filter(|(_, asked)| self.due(asked) <= now)
            .map(|(subject, _)| *subject)
            .collect();
        for subject in subjects {
            let others = self.asked.iter().filter(|(other, _)| **other != subject);
            let other_waits = others.map(|(_, asked)| asked).any(Asked::is_asked_again);
            let Some(asked) = self.asked.get_mut(&subject) else { continue };
            let count = match asked.open {
                None => 0,
                Some((_, _, count)) if count < QUESTIONS => count,
                Some(_) => {
                    // Clear, unless nobody answers at all: then something is wrong here.
                    asked.open = None;
                    // Who refutes it again and again is only slow: it is asked, and accused, ever less often.
                    asked.next = now + QUESTION_PERIOD * 2_u32.pow(asked.failures.min(FAILURES_MAX));
                    asked.failures += 1;
                    asked.is_silent = true;
                    let (is_watched, is_cared_for) = (asked.is_watched, asked.is_cared_for);
                    if is_watched && self.is_deaf(now) && self.nobody_answers() {
                        continue;
                    }
                    let asked = self.asked.get_mut(&subject).map(|asked| asked.is_reachable.replace(false));
                    let is_news = is_watched && asked.flatten() != Some(false);
                    if is_cared_for || is_news {
                        seen.push(Seen { subject, is_reachable: false, is_news });
                    }
                    continue;
                }
            };
            // One that is silent says nothing about this node, several at a time do; who never answered says nothing
            // at all: invented members, and those known to be gone.
            if count == 1 && asked.is_reachable == Some(true) && other_waits {
                self.self_doubt = (self.self_doubt + 1).min(SELF_DOUBT_MAX);
            }
            let number = chance();
            asked.open = Some((number, now, count + 1));
            questions.push(Question { subject, number, is_urgent: count > 0 });
        }
        (questions, seen)
    }

    /// Who was asked with `number`, and has not answered.
    pub(crate) fn asked_with(&self, number: u64) -> Option<u64> {
        let mut asked = self.asked.iter();
        let is_open = |asked: &Asked| asked.open.is_some_and(|(open, ..)| open == number);
        asked.find(|(_, asked)| is_open(asked)).map(|(subject, _)| *subject)
    }

    /// `subject` repeated `number`.
    pub(crate) fn handle_answer(&mut self, subject: u64, number: u64, now: Instant) -> Option<Seen> {
        let asked = self.asked.get_mut(&subject)?;
        let (expected, _, count) = asked.open?;
        if expected != number {
            return None;
        }
        asked.open = None;
        asked.next = now + QUESTION_PERIOD;
        asked.is_silent = false;
        asked.failures = 0;
        if count == 1 {
            self.self_doubt = self.self_doubt.saturating_sub(1);
        }
        let was_reachable = asked.is_reachable.replace(true);
        // Of whom all is well nobody needs to hear.
        let is_news = asked.is_watched && was_reachable == Some(false);
        (asked.is_cared_for || is_news).then_some(Seen { subject, is_reachable: true, is_news })
    }

    /// `subject` has begun another life: what its last one did counts no longer.
    pub(crate) fn handle_life(&mut self, subject: u64, now: Instant) {
        if let Some(asked) = self.asked.get_mut(&subject) {
            (asked.is_reachable, asked.is_silent, asked.failures) = (None, false, 0);
            asked.next = asked.next.min(now + QUESTION_PERIOD);
        }
    }

    /// `subject` has renewed its lease, which refutes what was said of it: if it still does not answer, that is said
    /// again.
    pub(crate) fn handle_renewal(&mut self, subject: u64) {
        if let Some(asked) = self.asked.get_mut(&subject).filter(|asked| asked.is_reachable == Some(false)) {
            asked.is_reachable = None;
        }
    }

    /// Somebody said something.
    pub(crate) fn handle_heard(&mut self, now: Instant) {
        self.heard = Some(now);
    }

    /// It has heard nothing for a while.
    fn is_deaf(&self, now: Instant) -> bool {
        self.heard.is_none_or(|at| now >= at + DEAF_AFTER)
    }

    /// Of two or more whom it watches, not one has answered its last question.
    fn nobody_answers(&self) -> bool {
        let watched = || self.asked.values().filter(|asked| asked.is_watched);
        let silent = |asked: &Asked| asked.is_silent || asked.open.is_some_and(|(_, _, count)| count > 1);
        watched().count() > 1 && watched().all(silent)
    }

    fn due(&self, asked: &Asked) -> Instant {
        match asked.open {
            None => asked.next,
            Some((_, at, 1)) => at + ANSWER_WITHIN * (1 + self.self_doubt),
            Some((_, at, _)) => at + ANSWER_AGAIN_WITHIN * (1 + self.self_doubt),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets time pass; `answers` says who does.
    fn pass(
        watching: &mut Watching,
        from: Instant,
        span: Duration,
        answers: impl Fn(u64) -> bool,
    ) -> Vec<(Duration, Seen)> {
        let mut number = 0;
        let mut all = Vec::new();
        let mut now = from;
        loop {
            now = watching.poll_timeout().expect("somebody is asked").max(now);
            if now >= from + span {
                return all;
            }
            let (questions, seen) = watching.handle_timeout(now, || {
                number += 1;
                number
            });
            all.extend(seen.into_iter().map(|seen| (now - from, seen)));
            for question in questions.into_iter().filter(|question| answers(question.subject)) {
                let seen = watching.handle_answer(question.subject, question.number, now);
                all.extend(seen.map(|seen| (now - from, seen)));
            }
            now += Duration::from_millis(1);
        }
    }

    fn watching(watched: &[u64], now: Instant) -> Watching {
        let mut watching = Watching::default();
        watching.set(watched.iter().copied(), std::iter::empty(), now, || u64::MAX / 2);
        watching
    }

    #[test]
    fn silence_is_told_once_within_five_seconds_and_so_is_its_end() {
        let now = Instant::now();
        let mut watching = watching(&[1, 2, 3], now);
        assert!(pass(&mut watching, now, Duration::from_secs(10), |_| true).is_empty());
        let later = now + Duration::from_secs(10);
        let told = pass(&mut watching, later, Duration::from_secs(20), |subject| subject != 2);
        let silent = Seen { subject: 2, is_reachable: false, is_news: true };
        assert!(
            matches!(told.as_slice(), [(at, seen)] if *seen == silent && *at < Duration::from_secs(5)),
            "{told:?}"
        );
        watching.handle_renewal(2);
        let again = pass(&mut watching, later + Duration::from_secs(20), Duration::from_secs(9), |subject| {
            subject != 2
        });
        assert!(matches!(again.as_slice(), [(_, seen)] if *seen == silent), "{again:?}");
        let later = later + Duration::from_secs(29);
        let told = pass(&mut watching, later, Duration::from_secs(40), |_| true);
        assert!(matches!(told.as_slice(), [(_, seen)] if seen.is_reachable && seen.subject == 2), "{told:?}");
    }

    #[test]
    fn who_hears_nobody_accuses_nobody() {
        let now = Instant::now();
        let mut watching = watching(&[1, 2, 3], now);
        assert!(pass(&mut watching, now, Duration::from_secs(60), |_| false).is_empty());
    }

    #[test]
    fn invented_members_delay_no_word_about_others() {
        let now = Instant::now();
        let names: Vec<u64> = (1..40).collect();
        let mut watching = watching(&names, now);
        let told = pass(&mut watching, now, Duration::from_secs(30), |subject| subject < 4);
        assert_eq!(told.len(), 36, "they are told of");
        let later = now + Duration::from_secs(30);
        let told = pass(&mut watching, later, Duration::from_secs(10), |subject| subject < 3);
        assert!(matches!(told.as_slice(), [(at, seen)] if seen.subject == 3 && *at < Duration::from_secs(5)));
    }

    #[test]
    fn who_cares_asks_at_once_and_hears_each_answer() {
        let now = Instant::now();
        let mut watching = watching(&[1, 2], now);
        watching.set([1, 2].into_iter(), [9].into_iter(), now, || 0);
        let told = pass(&mut watching, now, Duration::from_secs(3), |_| true);
        assert!(told.len() >= 2 && told[0].0 < Duration::from_millis(100), "{told:?}");
        assert!(told.iter().all(|(_, seen)| seen.subject == 9 && !seen.is_news && seen.is_reachable));
        let asked = watching.asked.get(&9).and_then(|asked| asked.open);
        assert!(watching.handle_answer(9, 12345, now).is_none(), "a number that was not asked: {asked:?}");
    }

    #[test]
    fn watchers_are_spread_evenly() {
        let names: Vec<u64> = (0..200_u64).map(|name| name.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        let mut load = BTreeMap::new();
        for subject in &names {
            let mut others: Vec<u64> = names.iter().copied().filter(|it| it != subject).collect();
            others.sort_by_key(|watcher| place(*watcher, *subject));
            others.iter().take(WATCHERS).for_each(|watcher| *load.entry(*watcher).or_insert(0) += 1);
        }
        assert!(load.values().all(|watched| *watched <= 12), "{:?}", load.values().max());
        assert!(load.len() > 170, "{} watch", load.len());
    }

    #[test]
    fn an_answer_is_known_by_its_number() {
        let now = Instant::now();
        let mut watching = watching(&[1, 2], now);
        let mut number = 40;
        let (questions, _) = watching.handle_timeout(now + QUESTION_PERIOD, || {
            number += 1;
            number
        });
        assert_eq!(questions.len(), 2);
        for question in questions {
            assert_eq!(watching.asked_with(question.number), Some(question.subject));
            watching.handle_answer(question.subject, question.number, now + QUESTION_PERIOD);
            assert_eq!(watching.asked_with(question.number), None, "once");
        }
    }
}
