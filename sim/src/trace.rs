//! What happened, in order, as one hash: two runs with equal hashes were the same run.

use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::digest::{Context, SHA256};
use tokio::time::Instant;

/// A hash that grows with every event. Shared by all parts of one simulation.
pub struct Trace {
    start: Instant,
    hashed: Mutex<Hashed>,
}

struct Hashed {
    context: Context,
    events: u64,
}

/// Something that happened at a node.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// It came up.
    Started,
    /// It went down without a word.
    Crashed,
    /// It said something new about itself.
    Announced,
    /// It sent a message to another node.
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
}

impl Trace {
    /// An empty trace that begins now.
    pub fn new() -> Self {
        let hashed = Hashed { context: Context::new(&SHA256), events: 0 };
        Self { start: Instant::now(), hashed: Mutex::new(hashed) }
    }

    /// Adds what happens at `node` now.
    pub fn record(&self, node: usize, event: Event<'_>) {
        let at = self.start.elapsed().as_micros() as u64;
        // Whoever panicked with it ends the simulation; until then the hash is as good as before.
        let mut hashed = self.hashed.lock().unwrap_or_else(PoisonError::into_inner);
        hashed.events += 1;
        hashed.number(at);
        hashed.number(node as u64);
        hashed.event(event);
    }

    /// How many events there were, and their hash in hexadecimal.
    pub fn finish(&self) -> (u64, String) {
        let hashed = self.hashed.lock().unwrap_or_else(PoisonError::into_inner);
        let hash = hashed.context.clone().finish();
        let hex = hash.as_ref().iter().fold(String::with_capacity(64), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        (hashed.events, hex)
    }
}

impl Default for Trace {
    fn default() -> Self {
        Self::new()
    }
}

impl Hashed {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Started => self.number(0),
            Event::Crashed => self.number(1),
            Event::Announced => self.number(2),
            Event::Sent { to, message, is_lost } => {
                self.number(3);
                self.number(to as u64);
                self.number(is_lost.into());
                self.number(message.len() as u64);
                self.context.update(message);
            }
            Event::Received { from } => {
                self.number(4);
                self.number(from as u64);
            }
            Event::Knows { digest, alive } => {
                self.number(5);
                self.number(alive as u64);
                self.context.update(digest);
            }
        }
    }

    /// Every number takes eight bytes, so that no two sequences of events read the same.
    fn number(&mut self, number: u64) {
        self.context.update(&number.to_be_bytes());
    }
}
