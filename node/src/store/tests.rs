//! The store against damage, a second process, a disk that goes away, and kills at any moment.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::file::StoreFile;
use super::*;

/// Longer than two batches and a retry.
const PATIENCE: Duration = Duration::from_secs(10);

fn open(directory: &Path) -> (Store, BTreeMap<String, Vec<u8>>) {
    let (store, remembered) = Store::open(directory, Clock::System).expect("nobody else");
    (store, remembered.entries)
}

fn put(key: &str, value: &[u8]) -> Entry {
    Entry { key: key.to_owned(), value: Some(value.to_vec()), urgency: Urgency::Soon }
}

fn forget(key: &str) -> Entry {
    Entry { key: key.to_owned(), value: None, urgency: Urgency::Soon }
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waited).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn what_is_kept_is_there_again() {
    let place = tempfile::tempdir().expect("a directory");
    let directory = place.path().join("a/b");
    let (store, entries) = open(&directory);
    assert!(entries.is_empty());
    store.keep(put("x/n", b"one"));
    store.keep(put("y/n", b"two"));
    store.keep(put("x/n", b"three"));
    store.keep(forget("y/n"));
    store.keep(Entry { urgency: Urgency::Whenever, ..put("x/l", b"renewed") });
    assert_eq!(store.status(), Status::default());
    store.close().await;
    drop(store);

    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&directory), 0o700);
    assert_eq!(mode(&directory.join("store.redb")), 0o600);
    let (_store, entries) = open(&directory);
    let expected = [("x/l", "renewed"), ("x/n", "three")];
    assert_eq!(entries, expected.map(|(key, value)| (key.to_owned(), value.as_bytes().to_vec())).into());
}

#[tokio::test]
async fn a_second_process_is_told_which_key_to_change() {
    let place = tempfile::tempdir().expect("a directory");
    let (store, _) = open(place.path());
    let Err(refused) = Store::open(place.path(), Clock::System) else { panic!("two at once") };
    assert!(refused.to_string().starts_with("node.data_dir: "), "{refused}");
    store.close().await;
    drop(store);
    open(place.path());
}

/// Whatever is at the file's place: the start goes on, the file is kept for whoever wants to know,
/// and there are never many of those.
#[tokio::test]
async fn damage_is_set_aside_and_never_ends_a_start() {
    let place = tempfile::tempdir().expect("a directory");
    let file = place.path().join("store.redb");
    let mut rng = StdRng::seed_from_u64(1);
    for round in 0..40 {
        let (store, _) = open(place.path());
        assert_eq!(store.status(), Status::default(), "round {round}");
        for key in 0..50 {
            store.keep(put(&format!("{key}/n"), &[7; 500]));
        }
        store.close().await;
        drop(store);
        let mut bytes = fs::read(&file).expect("a file");
        match round % 4 {
            0 => bytes = b"this is no store".to_vec(),
            1 => bytes.truncate(rng.random_range(1..bytes.len())),
            2 => (0..200).for_each(|_| {
                let at = rng.random_range(0..bytes.len());
                bytes[at] ^= rng.random_range(1..=255_u8);
            }),
            _ => bytes[..512].fill(0),
        }
        fs::write(&file, bytes).expect("damage done");
    }
    let (store, _) = open(place.path());
    store.keep(put("z/n", b"fresh"));
    store.close().await;
    drop(store);
    assert_eq!(open(place.path()).1["z/n"], b"fresh");
    let aside = names(place.path()).into_iter().filter(|name| name.contains(".damaged-")).count();
    assert_eq!(aside, 3, "{:?}", names(place.path()));
}

#[tokio::test]
async fn another_format_is_set_aside() {
    let place = tempfile::tempdir().expect("a directory");
    let table: redb::TableDefinition<'_, &str, u64> = redb::TableDefinition::new("format");
    let database = redb::Database::create(place.path().join("store.redb")).expect("a file");
    let transaction = database.begin_write().expect("a transaction");
    transaction.open_table(table).expect("a table").insert("format", 2).expect("inserted");
    transaction.commit().expect("committed");
    drop(database);
    let (store, entries) = open(place.path());
    assert!(entries.is_empty() && store.status().error.is_none());
    assert!(names(place.path()).iter().any(|name| name.contains(".damaged-")));
}

#[tokio::test]
async fn a_directory_that_vanishes_comes_back_with_everything() {
    let place = tempfile::tempdir().expect("a directory");
    let directory = place.path().join("data");
    let (store, _) = open(&directory);
    store.begin_life(7).await;
    store.keep(put("x/n", b"before"));
    fs::remove_dir_all(&directory).expect("removed");
    store.keep(put("y/n", b"after"));
    until("it is written again", || directory.join("store.redb").exists() && store.status().error.is_none())
        .await;
    store.close().await;
    drop(store);
    let (_store, entries) = open(&directory);
    assert_eq!(entries.keys().collect::<Vec<_>>(), ["life", "x/n", "y/n"]);
}

#[tokio::test]
async fn a_place_that_cannot_be_used_is_an_alarm_and_heals() {
    let place = tempfile::tempdir().expect("a directory");
    let directory = place.path().join("data");
    fs::write(&directory, "a file is in the way").expect("written");
    let (store, entries) = open(&directory);
    assert!(entries.is_empty());
    assert!(store.status().error.is_some_and(|error| error.contains("not a directory")));
    let asked = tokio::time::timeout(LIFE_LIMIT / 2, store.begin_life(7)).await;
    assert!(asked.is_ok(), "nobody waits for a disk that is known to be away");
    store.keep(put("x/n", b"waits"));
    fs::remove_file(&directory).expect("removed");
    until("it heals", || store.status().error.is_none()).await;
    store.close().await;
    drop(store);
    assert_eq!(open(&directory).1.keys().collect::<Vec<_>>(), ["life", "x/n"]);
}

/// A disk that is mounted late: the node has begun without it, and it may know of a later life.
#[tokio::test]
async fn a_disk_that_comes_late_keeps_what_it_holds() {
    let place = tempfile::tempdir().expect("a directory");
    let (directory, away) = (place.path().join("data"), place.path().join("away"));
    let (store, _) = open(&directory);
    store.begin_life(9).await;
    for key in ["known/n", "forgotten/n", "only-there/n"] {
        store.keep(put(key, b"before"));
    }
    store.close().await;
    drop(store);

    fs::rename(&directory, &away).expect("the disk goes");
    fs::write(&directory, "no disk").expect("written");
    let (store, entries) = open(&directory);
    assert!(entries.is_empty());
    store.begin_life(1).await;
    store.keep(put("known/n", b"after"));
    store.keep(forget("forgotten/n"));
    fs::remove_file(&directory).expect("removed");
    fs::rename(&away, &directory).expect("the disk comes");
    until("it is written again", || store.status().error.is_none()).await;
    store.begin_life(2).await;
    store.close().await;
    drop(store);

    let (_store, entries) = open(&directory);
    let life = 9_u64.to_be_bytes();
    let expected: [(&str, &[u8]); 3] = [("known/n", b"after"), ("life", &life), ("only-there/n", b"before")];
    assert_eq!(entries, expected.map(|(key, value)| (key.to_owned(), value.to_vec())).into());
}

/// Who begins a life while a batch is on its way to the disk waits for the next one.
#[test]
fn a_batch_releases_only_those_whose_entries_are_in_it() {
    let mut state = State::default();
    let (early, mut is_written) = oneshot::channel();
    state.waiting.push(early);
    let (_, _, waiting) = state.take_batch();
    let (late, mut is_late_written) = oneshot::channel();
    state.waiting.push(late);
    drop(waiting);
    assert_eq!(is_written.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    assert_eq!(is_late_written.try_recv(), Err(oneshot::error::TryRecvError::Empty));
}

#[test]
fn checking_says_what_is_in_the_way_and_leaves_nothing() {
    let place = tempfile::tempdir().expect("a directory");
    assert_eq!(check(&place.path().join("not/there/yet")), Ok(()));
    assert_eq!(check(place.path()), Ok(()));
    assert!(names(place.path()).is_empty());
    fs::write(place.path().join("file"), "").expect("written");
    for inside in ["file", "file/data"] {
        let wrong = check(&place.path().join(inside)).expect_err("a file is in the way");
        assert!(wrong.ends_with("file is not a directory"), "{wrong}");
    }
    let wrong = check(Path::new("/proc/starling")).expect_err("nobody writes there");
    assert!(wrong.starts_with("/proc cannot be written: "), "{wrong}");
}

#[test]
fn a_full_store_takes_a_life_but_nothing_else() {
    let mut state = State::default();
    let value = || Some(vec![0; MEMORY_VALUE_BYTES_MAX - 16]);
    let mut taken = 0;
    while state.put(format!("{taken}"), value(), Urgency::Soon) {
        taken += 1;
    }
    assert_eq!(taken, STORE_BYTES_MAX / MEMORY_VALUE_BYTES_MAX);
    assert!(state.put("0".to_owned(), value(), Urgency::Soon), "the same again is nothing new");
    assert!(state.put(LIFE_KEY.to_owned(), Some(vec![0; 8]), Urgency::Soon));
    assert!(state.put("1".to_owned(), None, Urgency::Soon));
    assert!(state.put("new".to_owned(), value(), Urgency::Soon), "what is forgotten makes room");
    assert!(!state.put("large".to_owned(), Some(vec![0; MEMORY_VALUE_BYTES_MAX + 1]), Urgency::Soon));
}

#[test]
fn a_life_is_read_from_a_store_that_is_too_full() {
    let place = tempfile::tempdir().expect("a directory");
    let (file, _) = StoreFile::open(place.path()).expect("a new file");
    let value = vec![7; MEMORY_VALUE_BYTES_MAX];
    let names: Vec<String> = (0..=STORE_BYTES_MAX / value.len()).map(|nth| format!("{nth:08}")).collect();
    let mut changes: file::Changes<'_> =
        names.iter().map(|name| (name.as_str(), Some(value.as_slice()))).collect();
    changes.insert(LIFE_KEY, Some(b"12345678"));
    file.write(&changes).expect("written");
    drop(file);
    let (_, entries) = StoreFile::open(place.path()).expect("it is there");
    assert_eq!(entries.get(LIFE_KEY).map(Vec::as_slice), Some(&b"12345678"[..]));
    assert!(entries.len() - 1 < names.len(), "and not all of the rest");
}

/// Kills a writer with SIGKILL at random moments and opens what it left.
const KILLS: u64 = 60;

const WRITES_HERE: &str = "STARLING_STORE_TEST_WRITES_HERE";

/// Not a test by itself: the process that [`kills_lose_nothing_but_the_newest`] kills.
#[tokio::test]
#[ignore = "runs only as a child of the test that kills it"]
async fn writer_that_is_killed() {
    let Some(directory) = std::env::var_os(WRITES_HERE) else { return };
    let (store, entries) = open(Path::new(&directory));
    let mut life =
        entries.get(LIFE_KEY).map_or(0, |value| u64::from_be_bytes(value[..].try_into().expect("eight")));
    loop {
        life += 1;
        // Of one step, and so of one batch: gossip notes a record and its lease together.
        for key in 0..20 {
            let value = [life.to_be_bytes().repeat(100), vec![key]].concat();
            store.keep(put(&format!("{}/n", (u64::from(key) * life) % 97), &value));
        }
        store.begin_life(life).await;
        println!("safe {life}");
        std::io::stdout().flush().expect("a pipe");
    }
}

fn start_writer(directory: &Path) -> Child {
    Command::new(std::env::current_exe().expect("this test"))
        .args(["--ignored", "--exact", "--nocapture", "store::tests::writer_that_is_killed"])
        .env(WRITES_HERE, directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a writer")
}

/// As soon as there is anything of it: redb writes the first bytes of its file last.
#[test]
fn a_kill_while_the_file_is_made_leaves_no_damaged_one() {
    for kill in 0..KILLS / 2 {
        let place = tempfile::tempdir().expect("a directory");
        let mut writer = start_writer(place.path());
        let has_begun = |entry: io::Result<fs::DirEntry>| {
            entry.is_ok_and(|entry| {
                entry.file_name().to_string_lossy().starts_with("store.redb")
                    && entry.metadata().is_ok_and(|metadata| metadata.len() > 0)
            })
        };
        while !fs::read_dir(place.path()).expect("a directory").any(has_begun) {
            assert!(matches!(writer.try_wait(), Ok(None)), "the writer goes on");
        }
        writer.kill().expect("SIGKILL");
        writer.wait().expect("its end");
        let opened = StoreFile::open(place.path());
        assert!(opened.is_ok(), "kill {kill}: {:?}", opened.err());
        assert_eq!(names(place.path()), ["lock", "store.redb"]);
    }
}

#[test]
fn kills_lose_nothing_but_the_newest() {
    let place = tempfile::tempdir().expect("a directory");
    let mut rng = StdRng::seed_from_u64(2);
    let mut survived = 0;
    for kill in 0..KILLS {
        let mut writer = start_writer(place.path());
        let told = BufReader::new(writer.stdout.take().expect("a pipe"));
        let reader = std::thread::spawn(move || {
            let safe = told
                .lines()
                .map_while(Result::ok)
                .filter_map(|line| line.strip_prefix("safe ")?.parse().ok());
            safe.last()
        });
        std::thread::sleep(Duration::from_micros(rng.random_range(1_000..150_000)));
        writer.kill().expect("SIGKILL");
        writer.wait().expect("its end");
        let safe: Option<u64> = reader.join().expect("a reader");

        let opened = file::StoreFile::open(place.path());
        let (_, entries) = opened.unwrap_or_else(|why| panic!("kill {kill}: {why:?}"));
        let life =
            entries.get(LIFE_KEY).map_or(0, |value| u64::from_be_bytes(value[..].try_into().expect("eight")));
        assert!(safe.is_none_or(|safe| life >= safe), "kill {kill}: {safe:?} was safe, {life} is there");
        survived += usize::from(life > 0);
        for (key, value) in entries.iter().filter(|(key, _)| *key != LIFE_KEY) {
            let whole = value.len() == 801 && value[..800].chunks(8).all(|chunk| chunk == &value[..8]);
            assert!(whole, "kill {kill}: {key} is torn");
        }
    }
    assert!(names(place.path()).iter().all(|name| !name.contains("damaged")), "{:?}", names(place.path()));
    assert!(survived > KILLS as usize / 2, "most kills came while something was written: {survived}");
}
