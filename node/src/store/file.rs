//! One redb file with all entries: opened, read, written, and set aside when it is damaged.
//!
//! redb was chosen over SQLite (C code and a query language for what is one map), LMDB (C code, a
//! memory map that a damaged file turns into a crash), sled (its rewrite is unfinished) and fjall (a
//! log-structured tree with threads of its own, for a few megabytes). Its commits are atomic and
//! synced, and it verifies every page when told to.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use redb::{
    Builder, Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, TableDefinition,
    TableHandle as _,
};
use starling_gossip::clock::WallTime;
use starling_gossip::limits::MEMORY_VALUE_BYTES_MAX;
use starling_gossip::memory::LIFE_KEY;

use super::directory::FILE_MODE;
use super::{STORE_BYTES_MAX, about};

const FILE_NAME: &str = "store.redb";

/// What it is called while it is made. Nobody else makes one: the directory is locked ([`super::directory::Lock`]).
const NEW_FILE_NAME: &str = "store.redb.new";

/// The layout of the tables and of what gossip writes into them. A program that meets another
/// number sets the file aside: what it holds can be learned again.
const FORMAT: u64 = 1;

const FORMATS: TableDefinition<'_, &str, u64> = TableDefinition::new("format");
const ENTRIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("entries");
const FORMAT_KEY: &str = "format";

/// redb's cache. The entries are in memory already; this only saves reading a tree's upper pages.
const CACHE_BYTES: usize = 1024 * 1024;

/// Damaged files kept for whoever wants to know why: the newest.
const SET_ASIDE_MAX: usize = 3;

/// An open store file.
pub(super) struct StoreFile {
    database: Database,
    path: PathBuf,
    /// Which file it is, to notice when another one, or none, is at its path.
    inode: (u64, u64),
}

/// Why a file cannot be used.
#[derive(Debug)]
pub(super) enum FileError {
    /// It is not a store of ours, or not whole: no use trying again.
    Damaged(String),
    /// The disk does not do as it should; it may later.
    Disk(String),
}

/// A change: a value, or `None` to delete.
pub(super) type Changes<'c> = BTreeMap<&'c str, Option<&'c [u8]>>;

impl StoreFile {
    /// Opens the file in `directory`, or makes one; verifies and reads all of it.
    pub(super) fn open(directory: &Path) -> Result<(Self, BTreeMap<String, Vec<u8>>), FileError> {
        let path = directory.join(FILE_NAME);
        // A damaged file can make redb panic, which must not end the node.
        catch_unwind(AssertUnwindSafe(|| {
            make(directory, &path)?;
            open_and_read(&path)
        }))
        .unwrap_or_else(|_| Err(FileError::Damaged("reading it made redb panic".to_owned())))
    }

    /// Writes `changes`, all or nothing; they survive a crash when this returns.
    pub(super) fn write(&self, changes: &Changes<'_>) -> Result<(), FileError> {
        if inode_of(&self.path).ok() != Some(self.inode) {
            return Err(FileError::Disk(format!("{} has vanished", self.path.display())));
        }
        let written = catch_unwind(AssertUnwindSafe(|| -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            {
                let mut table = transaction.open_table(ENTRIES)?;
                for (key, value) in changes {
                    match value {
                        Some(value) => drop(table.insert(*key, *value)?),
                        None => drop(table.remove(*key)?),
                    }
                }
            }
            Ok(transaction.commit()?)
        }));
        written
            .unwrap_or_else(|_| Err(redb::Error::Corrupted("writing it made redb panic".to_owned())))
            .map_err(|error| classify(&self.path, error))
    }
}

/// Moves the file out of the way under a name that says when, and keeps few of those. Returns the
/// name.
pub(super) fn set_aside(directory: &Path, wall: WallTime) -> io::Result<PathBuf> {
    let aside = directory.join(format!("{FILE_NAME}.damaged-{:015}", wall.unix_millis));
    fs::rename(directory.join(FILE_NAME), &aside)?;
    let mut all: Vec<PathBuf> = fs::read_dir(directory)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains(".damaged-")))
        .filter(|path| *path != aside)
        .collect();
    // Names sort by time; the one just set aside stays even if the calendar went back.
    all.sort();
    for oldest in all.iter().take(all.len().saturating_sub(SET_ASIDE_MAX - 1)) {
        fs::remove_file(oldest)?;
    }
    Ok(aside)
}

/// What a file holds that can only be read, because its disk takes no writes.
pub(super) fn read_only(directory: &Path) -> Option<BTreeMap<String, Vec<u8>>> {
    let path = directory.join(FILE_NAME);
    let read = || {
        let database = Builder::new().set_cache_size(CACHE_BYTES).open_read_only(&path).ok()?;
        let transaction = database.begin_read().ok()?;
        let format = transaction.open_table(FORMATS).ok()?.get(FORMAT_KEY).ok()??.value();
        (format == FORMAT).then(|| entries(&transaction).ok())?
    };
    catch_unwind(AssertUnwindSafe(read)).ok()?
}

/// Makes the file if there is none, or an empty one. It has its name from the moment it is whole: redb takes one whose
/// making was cut short for damaged.
fn make(directory: &Path, path: &Path) -> Result<(), FileError> {
    let disk = |error: io::Error| FileError::Disk(about(path, &error));
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > 0 => return Ok(()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(disk(error)),
        _ => {}
    }
    let new = directory.join(NEW_FILE_NAME);
    // Emptied, for a kill may have left it; and made here, for redb would make it readable for others.
    OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(&new).map_err(disk)?;
    drop(open_and_read(&new)?);
    fs::rename(&new, path).map_err(disk)?;
    fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(disk)
}

fn open_and_read(path: &Path) -> Result<(StoreFile, BTreeMap<String, Vec<u8>>), FileError> {
    let disk = |error: redb::Error| classify(path, error);
    let database =
        Builder::new().set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true).create(path).map_err(
            |error| match error {
                DatabaseError::UpgradeRequired(version) => {
                    FileError::Damaged(format!("redb's file format {version} is too old"))
                }
                error => disk(error.into()),
            },
        )?;
    make_tables(&database).map_err(disk)?;
    let transaction = database.begin_read().map_err(|error| disk(error.into()))?;
    let format = (|| -> Result<Option<u64>, redb::Error> {
        Ok(transaction.open_table(FORMATS)?.get(FORMAT_KEY)?.map(|format| format.value()))
    })();
    match format.map_err(disk)? {
        Some(FORMAT) => {}
        other => {
            return Err(FileError::Damaged(format!("its format is {other:?}; this program reads {FORMAT}")));
        }
    }
    let entries = entries(&transaction).map_err(disk)?;
    let inode = inode_of(path).map_err(|error| FileError::Disk(about(path, &error)))?;
    Ok((StoreFile { database, path: path.to_owned(), inode }, entries))
}

/// Gives a file without any table its tables, and leaves every other alone.
fn make_tables(database: &Database) -> Result<(), redb::Error> {
    let names: Vec<String> =
        database.begin_read()?.list_tables()?.map(|table| table.name().to_owned()).collect();
    if !names.is_empty() {
        return Ok(());
    }
    let transaction = database.begin_write()?;
    transaction.open_table(FORMATS)?.insert(FORMAT_KEY, FORMAT)?;
    transaction.open_table(ENTRIES)?;
    Ok(transaction.commit()?)
}

fn entries(transaction: &redb::ReadTransaction) -> Result<BTreeMap<String, Vec<u8>>, redb::Error> {
    let mut entries = BTreeMap::new();
    let table = transaction.open_table(ENTRIES)?;
    // A full store takes a new life all the same: it is read whatever else is too much.
    if let Some(life) = table.get(LIFE_KEY)?.filter(|life| life.value().len() <= MEMORY_VALUE_BYTES_MAX) {
        entries.insert(LIFE_KEY.to_owned(), life.value().to_vec());
    }
    let mut bytes = 0;
    for entry in table.iter()? {
        let (key, value) = entry?;
        let (key, value) = (key.value(), value.value());
        bytes += key.len() + value.len();
        if bytes > STORE_BYTES_MAX {
            break;
        }
        if value.len() <= MEMORY_VALUE_BYTES_MAX {
            entries.insert(key.to_owned(), value.to_vec());
        }
    }
    Ok(entries)
}

/// Whether trying again can help.
fn classify(path: &Path, error: redb::Error) -> FileError {
    let is_damage = match &error {
        redb::Error::Io(error) => {
            matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
        }
        redb::Error::PreviousIo | redb::Error::DatabaseAlreadyOpen | redb::Error::DatabaseClosed => false,
        _ => true,
    };
    let told = format!("{}: {error}", path.display());
    if is_damage { FileError::Damaged(told) } else { FileError::Disk(told) }
}

fn inode_of(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}
