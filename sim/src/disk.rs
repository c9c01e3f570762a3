//! A node's disk, as far as gossip sees it: what `node::store` promises, without a file.
//!
//! A new life is safe at once; everything else half a second later, so a crash loses what was newer.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use starling_gossip::memory::{Entry, LIFE_KEY, Memory};
use tokio::time::Instant;

/// How long an entry waits to be written, as in `node::store`.
const WRITTEN_AFTER: Duration = Duration::from_millis(500);

/// Entries by key.
pub type Image = BTreeMap<String, Vec<u8>>;

/// One node's disk; it outlives the node's processes.
#[derive(Default)]
pub struct Disk(Mutex<Contents>);

#[derive(Default)]
struct Contents {
    written: Image,
    waiting: VecDeque<(Instant, Entry)>,
}

impl Disk {
    /// What a process finds that starts now, after a crash if `crashed`: then what was not yet
    /// written is lost.
    pub fn found(&self, crashed: bool) -> Image {
        let mut contents = self.contents();
        let until = if crashed { Instant::now() } else { Instant::now() + WRITTEN_AFTER };
        contents.write(until);
        contents.waiting.clear();
        contents.written.clone()
    }

    /// What would be found now.
    pub fn image(&self) -> Image {
        let mut contents = self.contents();
        contents.write(Instant::now());
        contents.written.clone()
    }

    /// Puts another image in its place.
    pub fn restore(&self, image: Image) {
        *self.contents() = Contents { written: image, waiting: VecDeque::new() };
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Contents {
    fn write(&mut self, now: Instant) {
        while self.waiting.front().is_some_and(|(at, _)| *at + WRITTEN_AFTER <= now) {
            let Some((_, Entry { key, value, .. })) = self.waiting.pop_front() else { return };
            match value {
                Some(value) => drop(self.written.insert(key, value)),
                None => drop(self.written.remove(&key)),
            }
        }
    }
}

/// The port that gossip writes to.
pub struct Writer(pub Arc<Disk>);

#[async_trait]
impl Memory for Writer {
    async fn begin_life(&self, incarnation: u64) {
        self.0.contents().written.insert(LIFE_KEY.to_owned(), incarnation.to_be_bytes().to_vec());
    }

    fn keep(&self, entry: Entry) {
        let mut contents = self.0.contents();
        contents.write(Instant::now());
        contents.waiting.push_back((Instant::now(), entry));
    }
}
