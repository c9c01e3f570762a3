//! What happened, in order: as one hash, so that two runs with equal hashes were the same run; the
//! last of it in words, for a run that failed; and all of it in words around a moment, for `replay`.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use starling_gossip::kind::MessageKind;
use starling_gossip::snapshot::Presence;
use tokio::time::Instant;

/// Turning points that are kept in words for a failure.
const TURNS_KEPT: usize = 2048;

/// Lines that a replay keeps at most.
const LINES_MAX: usize = 1_000_000;

/// The trace of one run. Shared by all its parts.
pub struct Trace {
    start: Instant,
    recorded: Mutex<Recorded>,
}

/// Which part of a run is to be kept in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// From this moment of virtual time.
    pub from: Duration,
    /// Until this one.
    pub until: Duration,
    /// Only what concerns this host.
    pub host: Option<usize>,
}

struct Recorded {
    context: Context,
    events: u64,
    turns: VecDeque<(Duration, Turn)>,
    window: Option<Window>,
    lines: Vec<String>,
}

/// Something that happened at a host.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// It sent a message to another host.
    Sent {
        /// To whom.
        to: usize,
        /// What.
        message: &'a [u8],
        /// Whether the network loses it.
        is_lost: bool,
    },
    /// A message reached it.
    Received {
        /// From whom.
        from: usize,
    },
    /// It published a snapshot of its catalogue.
    Knows {
        /// The snapshot's digest.
        digest: &'a [u8; 32],
        /// How many members count as alive.
        alive: usize,
    },
    /// A turning point.
    Turn(Turn),
}

/// A turning point: few enough to keep, and what people ask about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The host came up.
    Started(usize),
    /// It went down without a word.
    Crashed(usize),
    /// It began to leave.
    Leaving(usize),
    /// It stands still.
    Paused(usize),
    /// It goes on.
    Continued(usize),
    /// It said something new, under this number.
    Said(usize, u64),
    /// Its calendar was set by so many seconds.
    Calendar(usize, i64),
    /// Its links or its machine got worse, or well again.
    Degraded(usize, bool),
    /// It began to attack, or stopped.
    Attacks(usize, bool),
    /// The network fell into so many parts.
    Split(usize),
    /// It healed.
    Healed,
    /// The first host sees the second so from now on; `None`: not at all.
    Sees(usize, usize, Option<Presence>),
    /// All catalogues were equal.
    Converged,
}

impl Trace {
    /// An empty trace that begins now; what `window` covers is kept in words.
    pub fn new(window: Option<Window>) -> Self {
        let recorded = Recorded {
            context: Context::new(&SHA256),
            events: 0,
            turns: VecDeque::new(),
            window,
            lines: Vec::new(),
        };
        Self { start: Instant::now(), recorded: Mutex::new(recorded) }
    }

    /// Adds what happens at `host` now.
    pub fn record(&self, host: usize, event: Event<'_>) {
        let at = self.start.elapsed();
        let mut recorded = self.recorded();
        recorded.events += 1;
        recorded.number(at.as_micros() as u64);
        recorded.number(host as u64);
        recorded.hash(&event);
        if let Event::Turn(turn) = event {
            if recorded.turns.len() == TURNS_KEPT {
                recorded.turns.pop_front();
            }
            recorded.turns.push_back((at, turn));
        }
        recorded.put_into_words(at, host, &event);
    }

    /// Adds a turning point.
    pub fn turn(&self, turn: Turn) {
        self.record(turn.hosts().0.unwrap_or(0), Event::Turn(turn));
    }

    /// How much virtual time has passed.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// How many events there were, and their hash in hexadecimal.
    pub fn finish(&self) -> (u64, String) {
        let recorded = self.recorded();
        let hash = recorded.context.clone().finish();
        let hex = hash.as_ref().iter().fold(String::with_capacity(64), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        (recorded.events, hex)
    }

    /// The last turning points that concern one of `hosts` or everybody, oldest first.
    pub fn history(&self, hosts: &[usize], count: usize) -> Vec<String> {
        let recorded = self.recorded();
        let concerns = |turn: &Turn| match turn.hosts() {
            (None, _) => true,
            (Some(one), other) => hosts.contains(&one) || other.is_some_and(|other| hosts.contains(&other)),
        };
        let all: Vec<_> = recorded.turns.iter().filter(|(_, turn)| concerns(turn)).collect();
        let last = all.len().saturating_sub(count);
        all[last..].iter().map(|(at, turn)| line(*at, turn)).collect()
    }

    /// All turning points that were kept.
    pub fn turns(&self) -> Vec<(Duration, Turn)> {
        self.recorded().turns.iter().copied().collect()
    }

    /// What the window kept.
    pub fn take_lines(&self) -> Vec<String> {
        std::mem::take(&mut self.recorded().lines)
    }

    fn recorded(&self) -> MutexGuard<'_, Recorded> {
        // Whoever panicked with it ends the simulation; until then the hash is as good as before.
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn line(at: Duration, what: &impl fmt::Display) -> String {
    format!("{:>10.3} s  {what}", at.as_secs_f64())
}

impl Recorded {
    fn hash(&mut self, event: &Event<'_>) {
        match event {
            Event::Sent { to, message, is_lost } => {
                self.number(3);
                self.number(*to as u64);
                self.number((*is_lost).into());
                self.number(message.len() as u64);
                self.context.update(message);
            }
            Event::Received { from } => {
                self.number(4);
                self.number(*from as u64);
            }
            Event::Knows { digest, alive } => {
                self.number(5);
                self.number(*alive as u64);
                self.context.update(*digest);
            }
            Event::Turn(turn) => {
                let text = turn.to_string();
                self.number(6);
                self.number(text.len() as u64);
                self.context.update(text.as_bytes());
            }
        }
    }

    /// Every number takes eight bytes, so that no two sequences of events read the same.
    fn number(&mut self, number: u64) {
        self.context.update(&number.to_be_bytes());
    }

    fn put_into_words(&mut self, at: Duration, host: usize, event: &Event<'_>) {
        let Some(window) = &self.window else { return };
        let concerns = |asked: usize| match event {
            Event::Sent { to, .. } => host == asked || *to == asked,
            Event::Received { from } => host == asked || *from == asked,
            Event::Knows { .. } => host == asked,
            Event::Turn(turn) => match turn.hosts() {
                (None, _) => true,
                (one, other) => one == Some(asked) || other == Some(asked),
            },
        };
        let is_in = at >= window.from && at <= window.until && window.host.is_none_or(concerns);
        if is_in && self.lines.len() < LINES_MAX {
            self.lines.push(match event {
                Event::Turn(turn) => line(at, turn),
                event => line(at, &AtHost { host, event }),
            });
        }
    }
}

struct AtHost<'a> {
    host: usize,
    event: &'a Event<'a>,
}

impl fmt::Display for AtHost<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.host;
        match self.event {
            Event::Sent { to, message, is_lost } => {
                let kind = MessageKind::of(message).as_str();
                let lost = if *is_lost { ", lost" } else { "" };
                write!(f, "node-{host} -> node-{to}  {kind}, {} bytes{lost}", message.len())
            }
            Event::Received { from } => write!(f, "node-{host} <- node-{from}"),
            Event::Knows { digest, alive } => {
                write!(
                    f,
                    "node-{host} knows {alive} alive, catalogue {:02x}{:02x}{:02x}{:02x}",
                    digest[0], digest[1], digest[2], digest[3]
                )
            }
            Event::Turn(turn) => turn.fmt(f),
        }
    }
}

impl Turn {
    /// Whom it concerns; nobody in particular is everybody.
    pub fn hosts(self) -> (Option<usize>, Option<usize>) {
        match self {
            Self::Started(host)
            | Self::Crashed(host)
            | Self::Leaving(host)
            | Self::Paused(host)
            | Self::Continued(host)
            | Self::Said(host, _)
            | Self::Calendar(host, _)
            | Self::Degraded(host, _)
            | Self::Attacks(host, _) => (Some(host), None),
            Self::Sees(observer, subject, _) => (Some(observer), Some(subject)),
            Self::Split(_) | Self::Healed | Self::Converged => (None, None),
        }
    }

    /// Whether it is the scenario's doing, and not what nodes made of it.
    pub fn is_act(self) -> bool {
        !matches!(self, Self::Sees(..) | Self::Converged)
    }
}

impl fmt::Display for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started(host) => write!(f, "node-{host} starts"),
            Self::Crashed(host) => write!(f, "node-{host} crashes"),
            Self::Leaving(host) => write!(f, "node-{host} leaves"),
            Self::Paused(host) => write!(f, "node-{host} stands still"),
            Self::Continued(host) => write!(f, "node-{host} goes on"),
            Self::Said(host, number) => write!(f, "node-{host} says word {number}"),
            Self::Calendar(host, seconds) => write!(f, "node-{host}'s calendar is set by {seconds} s"),
            Self::Degraded(host, true) => write!(f, "node-{host} gets slow or loses packets"),
            Self::Degraded(host, false) => write!(f, "node-{host} is well again"),
            Self::Attacks(host, true) => write!(f, "node-{host} attacks"),
            Self::Attacks(host, false) => write!(f, "node-{host} stops its attack"),
            Self::Split(parts) => write!(f, "the network falls into {parts} parts"),
            Self::Healed => write!(f, "the network heals"),
            Self::Sees(observer, subject, Some(presence)) => {
                write!(f, "node-{observer} sees node-{subject} as {}", presence.as_str())
            }
            Self::Sees(observer, subject, None) => write!(f, "node-{observer} forgets node-{subject}"),
            Self::Converged => write!(f, "all catalogues are equal"),
        }
    }
}
