//! The thread that writes: one batch at a time, off the gossip loop and off every request's path.
//!
//! After trouble it opens the directory and the file anew (redb's handle is of no use after an
//! error), and then writes everything, for the file may be another one.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;
use std::time::Duration;

use starling_gossip::memory::Urgency;
use tracing::{error, warn};

use super::directory::{self, Lock};
use super::file::{self, Changes, FileError, StoreFile};
use super::{Shared, State};

/// How long changes gather before they are written: one sync for a whole mesh's start, and what a
/// kill can lose.
const BATCH_PERIOD: Duration = Duration::from_millis(500);

/// The same for renewals. Losing them costs little: an old renewal could be played back once.
const LEISURE_PERIOD: Duration = Duration::from_secs(30);

/// The first pause after an error, doubled with each until the last: a full disk is noticed soon
/// when it has room again, and not asked all the time.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LAST: Duration = Duration::from_secs(15);

/// What opening found.
pub(super) struct Opened {
    /// Its claim on the directory, kept for as long as the thread runs.
    lock: Option<Lock>,
    /// `None` is trouble, already told.
    file: Option<StoreFile>,
    /// What was remembered.
    pub(super) entries: BTreeMap<String, Vec<u8>>,
}

impl Opened {
    /// Whether entries can be written, as far as opening tells.
    pub(super) fn is_whole(&self) -> bool {
        self.file.is_some()
    }
}

/// Opens the file under `lock`. What is damaged is set aside, and a fresh one begun.
pub(super) fn open(shared: &Shared, lock: Lock) -> Opened {
    let directory = &shared.directory;
    if let Lock::Missing(why) = lock {
        shared.set_status("open", Some(why));
        return Opened { lock: None, file: None, entries: file::read_only(directory).unwrap_or_default() };
    }
    let mut opened = StoreFile::open(directory);
    if let Err(FileError::Damaged(why)) = &opened {
        match file::set_aside(directory, shared.clock.wall()) {
            Ok(aside) => {
                error!(why, set_aside = %aside.display(), "the store is damaged: set aside, and begun anew");
                metrics::counter!("starling_store_set_aside_total").increment(1);
                opened = StoreFile::open(directory);
            }
            Err(error) => opened = Err(FileError::Disk(super::about(directory, &error))),
        }
    }
    match opened {
        Ok((file, entries)) => Opened { lock: Some(lock), file: Some(file), entries },
        Err(FileError::Disk(why) | FileError::Damaged(why)) => {
            shared.set_status("open", Some(why));
            let entries = file::read_only(directory).unwrap_or_default();
            Opened { lock: Some(lock), file: None, entries }
        }
    }
}

/// Writes batches until it is told to stop, and then the last one.
pub(super) fn run(shared: &Shared, opened: Opened) {
    let Opened { mut lock, mut file, entries } = opened;
    // Others have their copies; this one would last as long as the node.
    drop(entries);
    let mut pause = RETRY_FIRST;
    loop {
        let stop = match &file {
            Some(_) => wait_for_work(shared),
            None => wait_before_retry(shared, pause),
        };
        if file.is_none() {
            (lock, file) = reopen(shared, lock);
        }
        match file.take().and_then(|open| write_batch(shared, open)) {
            Some(open) => {
                file = Some(open);
                pause = RETRY_FIRST;
            }
            None => {
                pause = (pause * 2).min(RETRY_LAST);
                // Whoever waits has its answer: it will not be written for now.
                shared.lock().waiting.clear();
            }
        }
        if stop {
            return;
        }
    }
}

/// Returns whether the thread shall stop after this batch.
fn wait_for_work(shared: &Shared) -> bool {
    let hurry = |state: &State| state.stop || !state.waiting.is_empty();
    let mut state = shared.lock();
    while state.urgency().is_none() && !hurry(&state) {
        state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
    if state.urgency() == Some(Urgency::Whenever) {
        let leisurely = |state: &mut State| state.urgency() == Some(Urgency::Whenever) && !hurry(state);
        let waited = shared.changed.wait_timeout_while(state, LEISURE_PERIOD, leisurely);
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
    let waited = shared.changed.wait_timeout_while(state, BATCH_PERIOD, |state| !hurry(state));
    waited.unwrap_or_else(PoisonError::into_inner).0.stop
}

/// Returns whether the thread shall stop.
fn wait_before_retry(shared: &Shared, pause: Duration) -> bool {
    let waited = shared.changed.wait_timeout_while(shared.lock(), pause, |state| !state.stop);
    waited.unwrap_or_else(PoisonError::into_inner).0.stop
}

/// Opens everything anew. What the file lacks is written with the next batch; what it holds beside
/// that was remembered on a disk that was away, and stays.
fn reopen(shared: &Shared, lock: Option<Lock>) -> (Option<Lock>, Option<StoreFile>) {
    // The old claim goes first: it may be on a file that is no more.
    drop(lock);
    let prepared = directory::prepare(&shared.directory).map(|()| Lock::acquire(&shared.directory));
    let lock = match prepared {
        Ok(Ok(lock)) => lock,
        Ok(Err(_)) => Lock::Missing("another process has taken node.data_dir meanwhile".to_owned()),
        Err(why) => Lock::Missing(why),
    };
    // Opening proves little on a full disk; the batch that follows says whether it is mended.
    let opened = open(shared, lock);
    if opened.is_whole() {
        shared.lock().join(opened.entries);
    }
    (opened.lock, opened.file)
}

/// Gives the file back if it is still good.
fn write_batch(shared: &Shared, file: StoreFile) -> Option<StoreFile> {
    // Whoever waits with this batch is released when it ends; who comes meanwhile waits for the next.
    let (dirty, values, _waiting) = shared.lock().take_batch();
    let changes: Changes<'_> =
        dirty.keys().map(String::as_str).zip(values.iter().map(Option::as_deref)).collect();
    match file.write(&changes) {
        Ok(()) => {
            shared.set_status("write", None);
            Some(file)
        }
        Err(FileError::Disk(why) | FileError::Damaged(why)) => {
            shared.set_status("write", Some(why));
            let mut state = shared.lock();
            for (key, urgency) in dirty {
                state.mark(key, urgency);
            }
            drop(state);
            if catch_unwind(AssertUnwindSafe(|| drop(file))).is_err() {
                warn!("closing the store after an error made redb panic");
            }
            None
        }
    }
}
