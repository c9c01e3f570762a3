//! Where the store lies: made with the right permissions, locked, and checked before a start.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use tracing::{debug, warn};

use super::about;

/// The file whose lock says that a process uses the directory. Not the store's own file: that may
/// be set aside while the process runs.
const LOCK_FILE: &str = "lock";

/// Files are their owner's alone: who is in the mesh, and where, is nobody else's business.
pub(super) const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// This process's claim on the directory, for as long as it is held.
pub(super) enum Lock {
    /// Nobody else may use it.
    Held { _claim: Claim },
    /// It could not be made; the reason, in words.
    Missing(String),
}

/// The locked file. Let go of by name, and not by closing it: a child that another thread is starting holds a
/// copy until it runs its program, and would keep the directory taken for that long.
pub(super) struct Claim(File);

impl Drop for Claim {
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            debug!(%error, "node.data_dir is let go of when its lock is closed");
        }
    }
}

/// Another process holds the lock.
#[derive(Debug)]
pub(super) struct HeldByAnother;

/// Makes the directory if it is not there. One that an operator made keeps its permissions.
pub(super) fn prepare(directory: &Path) -> Result<(), String> {
    if !directory.exists() {
        let made = DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory);
        return made.map_err(|error| about(directory, &error));
    }
    let metadata = fs::metadata(directory).map_err(|error| about(directory, &error))?;
    if !metadata.is_dir() {
        return Err(format!("{} is not a directory", directory.display()));
    }
    if metadata.permissions().mode() & WRITABLE_BY_OTHERS != 0 {
        warn!(
            directory = %directory.display(),
            "others may write to node.data_dir, and so make this node forget; take that away: chmod 700"
        );
    }
    Ok(())
}

impl Lock {
    /// Claims `directory`. A disk that cannot hold a lock is trouble, but no second process.
    pub(super) fn acquire(directory: &Path) -> Result<Self, HeldByAnother> {
        let path = directory.join(LOCK_FILE);
        let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(FILE_MODE).open(&path);
        // A read-only disk has no room for a new lock; one that is there can be claimed.
        let file = match opened.or_else(|error| File::open(&path).map_err(|_| error)) {
            Ok(file) => file,
            Err(error) => return Ok(Self::Missing(about(&path, &error))),
        };
        match file.try_lock() {
            Ok(()) => Ok(Self::Held { _claim: Claim(file) }),
            Err(TryLockError::WouldBlock) => Err(HeldByAnother),
            Err(TryLockError::Error(error)) => Ok(Self::Missing(about(&path, &error))),
        }
    }
}

/// Whether a node could keep its store in `directory`, found without leaving anything behind.
pub(crate) fn check(directory: &Path) -> Result<(), String> {
    // What is not there yet is made inside its nearest parent that is.
    let mut existing = directory;
    while !existing.exists() {
        existing = match existing.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => return Err(format!("{} cannot be made", directory.display())),
        };
    }
    if !existing.is_dir() {
        return Err(format!("{} is not a directory", existing.display()));
    }
    tempfile::Builder::new()
        .prefix(".starling-check-")
        .tempfile_in(existing)
        .map(drop)
        .map_err(|error: io::Error| format!("{} cannot be written: {}", existing.display(), plain(&error)))
}

/// The system's words without the temporary name that tempfile adds.
fn plain(error: &io::Error) -> String {
    error
        .raw_os_error()
        .map_or_else(|| error.kind().to_string(), |code| io::Error::from_raw_os_error(code).to_string())
}
