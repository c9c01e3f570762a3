//! STATE MACHINE: has a peer gone silent?
//!
//! The rule: something that must be acknowledged is under way, and nothing at all arrived for
//! the longer of three probe timeouts (RFC 9002, section 6.2.1) and 300 ms. Whatever arrives makes
//! the peer responsive again. A peer from which we merely wait for an answer is asked with a probe,
//! so that the rule can tell; an idle connection is neither watched nor asked.
//!
//! A peer that stays silent while work is under way is gone in the end: soon if its host says that nobody
//! listens there, else when nothing that lives would be silent for so long.
//!
//! All connections to one process live and die with it. When one falls silent, the others that the same process
//! had and that have said nothing since get no new work until they say something, for which they are asked at once.
//!
//! Counters go in, decisions come out; it sends nothing and reads no clock. Silence is this
//! node's own evidence and steers only its own calls.

use std::time::Duration;

use starling_gossip::clock::Instant;

use crate::limits::{
    ACK_DELAY, PROBE_AFTER, PROBE_AFTER_QUIET, PROBE_EAGERLY, PROBE_WHILE_SILENT, REFUSAL_END, SILENCE_END,
    SILENCE_MIN, SILENCE_PTOS, SILENCE_TICK,
};

/// What a connection's counters say at one moment. Counts grow from the connection's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// UDP datagrams received from the peer.
    pub datagrams_received: u64,
    /// Frames sent that the peer must acknowledge (RFC 9002, section 2), path MTU probes excepted:
    /// those may get lost on a healthy path.
    pub eliciting_frames_sent: u64,
    /// Stream frames, both ways.
    pub stream_frames: u64,
    /// The current estimate of the round trip.
    pub rtt: Duration,
    /// Whether any stream or message is under way.
    pub busy: bool,
    /// Whether the connection was used since the last sample; quinn may not have sent yet what was written.
    pub touched: bool,
    /// Whether the peer's host has said since the last sample that nobody listens there.
    pub refused: bool,
    /// What another connection to the same place has shown since the last sample.
    pub doubt: Option<Doubt>,
}

/// What speaks against the other connections to a peer when one has fallen silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// When the silent one last heard the peer, at the earliest: a connection that stood by then was one of the same process.
    pub last_heard: Instant,
    /// Since when the silent one has waited.
    pub unanswered_since: Instant,
}

/// What to do about a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the peer answers, as far as can be told.
    pub responsive: bool,
    /// Whether another connection of the peer's process has fallen silent, and nothing was heard on this one since.
    pub doubted: bool,
    /// Whether to send something the peer must acknowledge.
    pub probe: bool,
    /// Whether the peer is gone, and with it what is under way.
    pub gone: bool,
}

/// What is known of one peer's silence.
#[derive(Clone, Debug)]
pub struct Silence {
    last: Sample,
    began: Instant,
    /// When the next sample is due; a much later one means that we ourselves were held up.
    due: Option<Instant>,
    looked: Instant,
    heard: Instant,
    /// When that was at the earliest: at the look before.
    heard_after: Instant,
    streamed: Instant,
    /// Since when something has been under way with nothing heard.
    unanswered_since: Option<Instant>,
    /// Since when the peer's host says that nobody listens there, with nothing heard.
    refused_since: Option<Instant>,
    probed: Option<Instant>,
    responsive: bool,
    doubted: bool,
}

impl Silence {
    /// A peer heard just now.
    pub fn new(first: Sample, now: Instant) -> Self {
        Self {
            last: first,
            began: now,
            due: None,
            looked: now,
            heard: now,
            heard_after: now,
            streamed: now,
            unanswered_since: None,
            refused_since: None,
            probed: None,
            responsive: true,
            doubted: false,
        }
    }

    /// When the next sample is wanted; `None` while the connection is idle. A write may call
    /// for one earlier.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// Judges the counters read at `now`.
    pub fn handle_sample(&mut self, sample: Sample, now: Instant) -> Verdict {
        let sent = sample.eliciting_frames_sent != self.last.eliciting_frames_sent;
        if sample.stream_frames != self.last.stream_frames || (sample.busy && !self.last.busy) {
            self.streamed = now;
        }
        if sample.datagrams_received != self.last.datagrams_received {
            // Which came first, the last datagram or our last frame? If the frame was later and
            // gets lost, quinn repeats it after one probe timeout, and we see that.
            (self.heard, self.heard_after) = (now, self.looked);
            (self.unanswered_since, self.refused_since) = (None, None);
            (self.responsive, self.doubted) = (true, false);
        } else if sent {
            self.unanswered_since.get_or_insert(now);
        }
        if self.was_held_up(now) {
            self.leave_out(self.due.map_or(Duration::ZERO, |due| now.saturating_duration_since(due)), now);
        }
        if self.unanswered_since.is_some_and(|since| now >= since + patience(sample.rtt)) {
            self.responsive = false;
        }
        let newly_doubted = sample.doubt.is_some_and(|doubt| self.is_doubted_by(&doubt));
        self.doubted |= newly_doubted;
        let gone = sample.busy && self.is_gone(sample.refused, now);
        let probe = newly_doubted || self.wants_probe(&sample, now);
        if probe {
            self.probed = Some(now);
        }
        (self.last, self.looked) = (sample, now);
        self.due = self.next_look(&sample, sent || probe, now);
        Verdict { responsive: self.responsive, doubted: self.doubted, probe, gone }
    }

    /// What this connection's silence says about the peer's others.
    pub fn doubt(&self) -> Option<Doubt> {
        let unanswered_since = self.unanswered_since.filter(|_| !self.responsive)?;
        Some(Doubt { last_heard: self.heard_after, unanswered_since })
    }

    fn is_doubted_by(&self, doubt: &Doubt) -> bool {
        self.began <= doubt.last_heard && self.heard_after < doubt.unanswered_since
    }

    /// A node that did not run cannot say who was silent meanwhile.
    fn was_held_up(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| now > due + 3 * SILENCE_TICK)
    }

    /// Time in which this node did not run is nobody's silence.
    fn leave_out(&mut self, time: Duration, now: Instant) {
        if self.responsive {
            self.unanswered_since = self.unanswered_since.map(|_| now);
        } else {
            self.unanswered_since = self.unanswered_since.map(|since| since + time);
            self.refused_since = self.refused_since.map(|since| since + time);
        }
    }

    fn is_gone(&mut self, refused: bool, now: Instant) -> bool {
        let for_long = |since: Option<Instant>, end| since.is_some_and(|since| now >= since + end);
        if self.responsive {
            return false;
        }
        if refused {
            self.refused_since.get_or_insert(now);
        }
        (refused && for_long(self.refused_since, REFUSAL_END)) || for_long(self.unanswered_since, SILENCE_END)
    }

    fn wants_probe(&self, sample: &Sample, now: Instant) -> bool {
        if !self.responsive {
            return self.probed.is_none_or(|probed| now >= probed + PROBE_WHILE_SILENT);
        }
        sample.busy && self.unanswered_since.is_none() && now >= self.probe_at(now)
    }

    fn probe_at(&self, now: Instant) -> Instant {
        let eager = now < self.streamed + PROBE_EAGERLY;
        let asked = self.probed.unwrap_or(self.heard).max(self.heard);
        asked + if eager { PROBE_AFTER } else { PROBE_AFTER_QUIET }
    }

    fn next_look(&self, sample: &Sample, sent: bool, now: Instant) -> Option<Instant> {
        if !self.responsive {
            return Some(now + PROBE_WHILE_SILENT);
        }
        // An idle connection that was asked something is watched until it answers; one in doubt has been asked, though
        // quinn may not have sent that yet.
        if sent || sample.touched || self.doubted || self.unanswered_since.is_some() {
            return Some(now + SILENCE_TICK);
        }
        sample.busy.then(|| self.probe_at(now).max(now + SILENCE_TICK))
    }
}

/// How long an unanswered peer may be silent. quinn does not show the variance of its round
/// trips; half of the round trip stands for it.
fn patience(rtt: Duration) -> Duration {
    let probe_timeout = rtt + rtt / 2 + ACK_DELAY;
    (probe_timeout * SILENCE_PTOS).max(SILENCE_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use starling_gossip::clock::Clock;

    /// A connection whose counters the test moves, looked at whenever the machine asks.
    struct Bench {
        silence: Silence,
        sample: Sample,
        start: Instant,
        now: Instant,
        probes: usize,
        answers: bool,
        gone: bool,
    }

    fn bench(busy: bool) -> Bench {
        let now = Clock::System.now();
        let sample = Sample { rtt: Duration::from_millis(1), busy, ..Sample::default() };
        Bench {
            silence: Silence::new(sample, now),
            sample,
            start: now,
            now,
            probes: 0,
            answers: true,
            gone: false,
        }
    }

    impl Bench {
        fn look(&mut self) -> bool {
            let verdict = self.silence.handle_sample(self.sample, self.now);
            self.gone |= verdict.gone;
            if verdict.probe {
                self.probes += 1;
                self.sample.eliciting_frames_sent += 1;
                self.sample.datagrams_received += u64::from(self.answers);
            }
            verdict.responsive
        }

        /// Runs until `for_ms` passed or the verdict is `until`; says after how many ms.
        fn run(&mut self, for_ms: u64, until: Option<bool>) -> Option<u64> {
            let end = self.now + Duration::from_millis(for_ms);
            while let Some(due) = self.silence.poll_timeout().filter(|due| *due <= end) {
                self.now = due;
                let responsive = self.look();
                if until == Some(responsive) {
                    return Some((self.now - self.start).as_millis() as u64);
                }
            }
            self.now = end;
            None
        }
    }

    #[test]
    fn unanswered_data_is_silence_after_300_ms() {
        let mut bench = bench(true);
        bench.answers = false;
        bench.sample.eliciting_frames_sent += 1;
        assert!(bench.look());
        let after = bench.run(1_000, Some(false)).expect("silent");
        assert!((300..=350).contains(&after), "{after}");
        bench.sample.datagrams_received += 1;
        bench.now += SILENCE_TICK;
        assert!(bench.look(), "anything received ends it");
    }

    #[test]
    fn a_long_round_trip_is_given_three_probe_timeouts() {
        let mut bench = bench(true);
        bench.answers = false;
        bench.sample.rtt = Duration::from_millis(200);
        bench.sample.eliciting_frames_sent += 1;
        bench.look();
        let after = bench.run(5_000, Some(false)).expect("silent");
        assert!((975..=1_050).contains(&after), "{after}");
    }

    #[test]
    fn a_peer_we_only_wait_for_is_asked() {
        let mut bench = bench(true);
        bench.look();
        assert_eq!(bench.run(3_000, Some(false)), None);
        assert!(bench.probes >= 5, "{}", bench.probes);
        bench.answers = false;
        bench.start = bench.now;
        let after = bench.run(3_000, Some(false)).expect("silent");
        assert!(after <= 900, "{after}");
    }

    #[test]
    fn quiet_streams_are_asked_rarely_and_an_idle_connection_never() {
        let mut quiet = bench(true);
        quiet.look();
        quiet.run(20_000, None);
        let eager = quiet.probes;
        quiet.run(60_000, None);
        assert!(quiet.probes - eager <= 13, "{}", quiet.probes - eager);

        let mut idle = bench(false);
        idle.look();
        assert_eq!(idle.silence.poll_timeout(), None);
        assert_eq!(idle.probes, 0);
    }

    #[test]
    fn an_idle_connection_that_was_asked_is_watched_until_it_answers() {
        for answers in [true, false] {
            let mut bench = bench(false);
            bench.sample.touched = true;
            bench.look();
            bench.sample.touched = false;
            bench.sample.eliciting_frames_sent += 1;
            bench.sample.datagrams_received += u64::from(answers);
            assert_eq!(bench.run(1_000, Some(false)).is_none(), answers);
            assert_eq!(bench.silence.poll_timeout().is_none(), answers);
        }
    }

    /// How long a peer that says nothing any more is waited for, in milliseconds.
    fn end_of(bench: &mut Bench, for_ms: u64) -> Option<u64> {
        let start = bench.now;
        while (bench.now - start).as_millis() < u128::from(for_ms) {
            bench.run(50, None);
            if bench.gone {
                return Some((bench.now - start).as_millis() as u64);
            }
        }
        None
    }

    #[test]
    fn a_silent_peer_is_gone_in_the_end_if_there_is_work() {
        for (busy, refused, expected) in [
            (true, false, Some(10_000..=11_000)),
            (true, true, Some(1_300..=2_500)),
            (false, false, None),
            (false, true, None),
        ] {
            let mut bench = bench(busy);
            (bench.answers, bench.sample.refused) = (false, refused);
            bench.sample.eliciting_frames_sent += 1;
            bench.look();
            let end = end_of(&mut bench, 20_000);
            let is_expected = match (&expected, end) {
                (Some(expected), Some(end)) => expected.contains(&end),
                (expected, end) => expected.is_none() && end.is_none(),
            };
            assert!(is_expected, "{end:?}, not {expected:?}");
        }
    }

    #[test]
    fn a_peer_that_says_anything_is_not_gone() {
        let mut bench = bench(true);
        for turn in 0..10 {
            // Every other pause comes with a word of the host's, which one that answers shows to be wrong.
            bench.sample.refused = turn % 2 == 0;
            bench.answers = false;
            bench.sample.eliciting_frames_sent += 1;
            bench.look();
            bench.run(if turn % 2 == 0 { 1_000 } else { 9_000 }, None);
            bench.answers = true;
            bench.run(1_000, None);
            assert!(!bench.gone, "{turn}");
        }
    }

    #[test]
    fn doubt_is_of_the_same_process_and_lasts_until_something_is_heard() {
        // In seconds: this connection stands from 1 on, was looked at at 2 and 5, and heard the peer between.
        for (last_heard, unanswered_since, expected) in
            [(1, 4, true), (0, 4, false), (1, 2, false), (3, 3, true)]
        {
            let start = Clock::System.now();
            let at = |seconds| start + Duration::from_secs(seconds);
            let mut sample = Sample::default();
            let mut silence = Silence::new(sample, at(1));
            silence.handle_sample(sample, at(2));
            sample.datagrams_received += 1;
            silence.handle_sample(sample, at(5));
            let (last_heard, unanswered_since) = (at(last_heard), at(unanswered_since));
            sample.doubt = Some(Doubt { last_heard, unanswered_since });
            let verdict = silence.handle_sample(sample, at(6));
            assert_eq!((verdict.doubted, verdict.probe), (expected, expected));
            assert!(verdict.responsive, "what is under way goes on");
            sample.doubt = None;
            sample.datagrams_received += 1;
            assert!(!silence.handle_sample(sample, at(7)).doubted);
        }
    }

    #[test]
    fn doubt_that_nothing_answers_becomes_silence() {
        let mut bench = bench(false);
        bench.answers = false;
        bench.now += Duration::from_secs(1);
        bench.start = bench.now;
        bench.sample.doubt = Some(Doubt { last_heard: bench.now, unanswered_since: bench.now });
        bench.look();
        bench.sample.doubt = None;
        let after = bench.run(1_000, Some(false)).expect("silent");
        assert!((300..=350).contains(&after), "{after}");
        assert_eq!(bench.silence.doubt().map(|doubt| doubt.last_heard < bench.start), Some(true));
    }

    #[test]
    fn one_in_doubt_is_looked_at_though_the_question_leaves_late() {
        let mut bench = bench(false);
        bench.now += Duration::from_secs(1);
        bench.sample.doubt = Some(Doubt { last_heard: bench.now, unanswered_since: bench.now });
        let verdict = bench.silence.handle_sample(bench.sample, bench.now);
        assert!(verdict.doubted && verdict.probe);
        bench.sample.doubt = None;
        // The runtime is slow: nothing has been sent at the next looks.
        for _ in 0..3 {
            bench.now = bench.silence.poll_timeout().expect("another look");
            assert!(bench.silence.handle_sample(bench.sample, bench.now).doubted);
        }
        bench.sample.eliciting_frames_sent += 1;
        bench.sample.datagrams_received += 1;
        bench.now = bench.silence.poll_timeout().expect("another look");
        assert!(!bench.silence.handle_sample(bench.sample, bench.now).doubted);
    }

    #[test]
    fn our_own_pause_ends_nothing() {
        let mut bench = bench(true);
        bench.answers = false;
        bench.sample.eliciting_frames_sent += 1;
        bench.look();
        bench.run(5_000, None);
        bench.now += Duration::from_secs(60);
        bench.look();
        assert!(!bench.gone);
        assert!(end_of(&mut bench, 3_000).is_none());
        assert!(end_of(&mut bench, 3_000).is_some(), "the peer has been silent, too");
    }

    #[test]
    fn our_own_pause_is_not_the_peers_silence() {
        let mut bench = bench(true);
        bench.answers = false;
        bench.sample.eliciting_frames_sent += 1;
        bench.look();
        bench.now += Duration::from_secs(3);
        assert!(bench.look(), "we were the ones who did not run");
        assert!(bench.run(1_000, Some(false)).is_some());
    }
}
