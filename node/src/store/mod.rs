//! The disk's side of [`starling_gossip::memory`]: entries in `node.data_dir`, safe against a kill
//! at any moment.
//!
//! ```text
//! mod        the handle: takes entries in, says how the store is
//! writer     the thread that writes them, in batches, and recovers by itself
//! file       one redb file: opened, read, written, set aside when it is damaged
//! directory  where it lies: made, locked, checked
//! ```
//!
//! It knows neither records nor gossip: what an entry means is decided there. Nothing here ever
//! ends the node. Trouble with the disk is an alarm: one warning per change, a gauge, a counter,
//! and a line in `/v1/node`; what could not be written waits in memory, the newest of each key.

mod directory;
mod file;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use starling_gossip::clock::Clock;
use starling_gossip::limits::MEMORY_VALUE_BYTES_MAX;
use starling_gossip::memory::{Entry, LIFE_KEY, Memory, Remembered, Urgency};
use tokio::sync::oneshot;
use tracing::warn;

use directory::Lock;

pub(crate) use directory::check;

/// Everything that is remembered, keys and values: a thousand nodes with three instances each take
/// about 6 MiB. It is held in memory as well, so that a disk that was away is filled again.
const STORE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Forgotten keys that are known as such, for a disk that comes back with them: more than a store
/// holds owners. What is forgotten beyond that is only remembered once too often.
const FORGOTTEN_MAX: usize = 65_536;

/// How long a node waits for its incarnation to be safe before it speaks. A disk that takes longer
/// than a second for a few bytes is out of order, and the node goes on without.
const LIFE_LIMIT: Duration = Duration::from_secs(1);

/// How long a stopping node waits for the last batch.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// The store of one process. Cheap to clone; all clones are the same store.
#[derive(Clone)]
pub(crate) struct Store {
    shared: Arc<Shared>,
}

/// Why a store cannot be used at all: the one reason that ends a start.
#[derive(Debug, thiserror::Error)]
#[error(
    "node.data_dir: {} is in use by another process; give each node a directory of its own, or stop the \
     other one",
    .0.display()
)]
pub(crate) struct InUse(PathBuf);

/// How the store is, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Status {
    /// What is wrong, in words; `None` while entries can be written.
    pub(crate) error: Option<String>,
}

/// What the handle and the writer share.
struct Shared {
    directory: PathBuf,
    clock: Clock,
    state: Mutex<State>,
    /// Something in the state changed that the writer may be waiting for.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Everything that should be on disk.
    entries: BTreeMap<String, Vec<u8>>,
    bytes: usize,
    /// What was taken out since this process began: a disk that comes back shall lose it too.
    forgotten: BTreeSet<String>,
    /// The keys whose disk state may differ, and the most urgent of their wishes.
    dirty: BTreeMap<String, Urgency>,
    /// Who waits for the next batch.
    waiting: Vec<oneshot::Sender<()>>,
    status: Status,
    is_full: bool,
    stop: bool,
    writer: Option<JoinHandle<()>>,
}

/// Keys to be written with their urgency, the value of each, and who waits for them.
type Batch = (BTreeMap<String, Urgency>, Vec<Option<Vec<u8>>>, Vec<oneshot::Sender<()>>);

impl Store {
    /// Opens the store in `directory`, making both if need be, and reads it. Blocks for as long as
    /// the disk does. Damage is set aside, other trouble is retried later; both are told.
    pub(crate) fn open(directory: &Path, clock: Clock) -> Result<(Self, Remembered), InUse> {
        let lock = match directory::prepare(directory) {
            Ok(()) => Lock::acquire(directory).map_err(|_| InUse(directory.to_owned()))?,
            Err(error) => Lock::Missing(error),
        };
        let shared = Arc::new(Shared {
            directory: directory.to_owned(),
            clock,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let opened = writer::open(&shared, lock);
        if opened.is_whole() {
            shared.set_status("open", None);
        }
        {
            let mut state = shared.lock();
            state.bytes = opened.entries.iter().map(|(key, value)| key.len() + value.len()).sum();
            state.entries.clone_from(&opened.entries);
        }
        let (store, entries) = (Self { shared: shared.clone() }, opened.entries.clone());
        match std::thread::Builder::new().name("store".to_owned()).spawn(move || writer::run(&shared, opened))
        {
            Ok(writer) => store.shared.lock().writer = Some(writer),
            Err(error) => store.shared.set_status("spawn", Some(format!("no thread to write with: {error}"))),
        }
        let remembered = Remembered { memory: Arc::new(store.clone()), entries };
        Ok((store, remembered))
    }

    /// How it is now.
    pub(crate) fn status(&self) -> Status {
        self.shared.lock().status.clone()
    }

    /// Writes what waits and ends the writer; gives up after a moment if the disk hangs.
    pub(crate) async fn close(&self) {
        let writer = {
            let mut state = self.shared.lock();
            state.stop = true;
            state.writer.take()
        };
        self.shared.changed.notify_all();
        let Some(writer) = writer else { return };
        let ended = tokio::task::spawn_blocking(move || writer.join());
        if tokio::time::timeout(CLOSE_LIMIT, ended).await.is_err() {
            warn!("the store does not end: the disk hangs; leaving it");
        }
    }
}

#[async_trait]
impl Memory for Store {
    async fn begin_life(&self, incarnation: u64) {
        let (written, is_written) = oneshot::channel();
        {
            let mut state = self.shared.lock();
            // A disk that came back may know of a later one.
            let life = incarnation.max(state.entries.get(LIFE_KEY).map_or(0, |life| life_of(life)));
            state.put(LIFE_KEY.to_owned(), Some(life.to_be_bytes().to_vec()), Urgency::Soon);
            if state.status.error.is_some() || state.writer.is_none() {
                return;
            }
            state.waiting.push(written);
        }
        self.shared.changed.notify_all();
        if tokio::time::timeout(LIFE_LIMIT, is_written).await.is_err() {
            warn!("this node's incarnation is not on disk yet: the disk is slow; speaking all the same");
        }
    }

    fn keep(&self, entry: Entry) {
        let mut state = self.shared.lock();
        if !state.put(entry.key, entry.value, entry.urgency) {
            metrics::counter!("starling_store_dropped_total").increment(1);
            if !std::mem::replace(&mut state.is_full, true) {
                warn!(STORE_BYTES_MAX, "the store is full; what is new is not remembered");
            }
        }
        drop(state);
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete before anything that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an error of `operation` if there is one, and tells a change of health once.
    fn set_status(&self, operation: &'static str, error: Option<String>) {
        if error.is_some() {
            metrics::counter!("starling_store_errors_total", "operation" => operation).increment(1);
        }
        metrics::gauge!("starling_store_healthy").set(if error.is_none() { 1.0 } else { 0.0 });
        let mut state = self.lock();
        let directory = self.directory.display();
        match (&state.status.error, &error) {
            (None, Some(error)) => warn!(
                %directory, operation, error,
                "the store cannot be written: the node goes on, and remembers nothing new until that is mended"
            ),
            (Some(_), None) => tracing::info!(%directory, "the store can be written again"),
            _ => {}
        }
        state.status = Status { error };
    }
}

impl State {
    /// Returns whether there was room for it.
    fn put(&mut self, key: String, value: Option<Vec<u8>>, urgency: Urgency) -> bool {
        match &value {
            Some(_) => _ = self.forgotten.remove(&key),
            None if self.forgotten.len() < FORGOTTEN_MAX => _ = self.forgotten.insert(key.clone()),
            None => {}
        }
        let held = self.entries.get(&key);
        if held == value.as_ref() {
            return true;
        }
        let freed = held.map_or(0, |held| key.len() + held.len());
        let Some(value) = value else {
            self.bytes -= freed;
            self.entries.remove(&key);
            self.mark(key, urgency);
            return true;
        };
        let bytes = self.bytes - freed + key.len() + value.len();
        if value.len() > MEMORY_VALUE_BYTES_MAX || (bytes > STORE_BYTES_MAX && key != LIFE_KEY) {
            return false;
        }
        self.bytes = bytes;
        self.entries.insert(key.clone(), value);
        self.mark(key, urgency);
        true
    }

    /// What is to be written, and who waits for exactly that.
    fn take_batch(&mut self) -> Batch {
        let dirty = std::mem::take(&mut self.dirty);
        let values = dirty.keys().map(|key| self.entries.get(key).cloned()).collect();
        (dirty, values, std::mem::take(&mut self.waiting))
    }

    /// Makes this and the file that holds `found` agree: this process knows better, but for what it
    /// never heard of.
    fn join(&mut self, found: BTreeMap<String, Vec<u8>>) {
        for key in self.entries.keys().cloned().collect::<Vec<_>>() {
            self.mark(key, Urgency::Soon);
        }
        for (key, value) in found {
            let is_later_life = |held: &Vec<u8>| key == LIFE_KEY && life_of(&value) > life_of(held);
            if self.forgotten.contains(&key) {
                self.mark(key, Urgency::Soon);
            } else if self.entries.get(&key).is_none_or(is_later_life) {
                // Without room it stays on the disk, where it bothers nobody.
                self.put(key, Some(value), Urgency::Soon);
            }
        }
    }

    fn mark(&mut self, key: String, urgency: Urgency) {
        let marked = self.dirty.entry(key).or_insert(urgency);
        *marked = urgency.max(*marked);
    }

    /// The most urgent wish; `None` when there is nothing to write.
    fn urgency(&self) -> Option<Urgency> {
        self.dirty.values().max().copied()
    }
}

/// The incarnation in an entry; 0, which none is below, where there is none.
fn life_of(value: &[u8]) -> u64 {
    value.try_into().map_or(0, u64::from_be_bytes)
}

/// An error in words that name what it was about.
fn about(what: &Path, error: &io::Error) -> String {
    format!("{}: {error}", what.display())
}

#[cfg(test)]
mod tests;
