//! The operating system's randomness, answered from the seed.
//!
//! chitchat and std's hash maps draw from `getrandom`, and neither takes a seed. This definition
//! of the symbol comes before libc's in the program it is linked into, and catches all of them. It
//! answers only the thread of a simulation; every other thread gets the system's.
//!
//! aws-lc draws by raw system call, past this file: simulated keys come from the seed instead, and
//! Ed25519 signatures need no chance.
#![expect(unsafe_code, reason = "the only way into libraries that take no seed: a C symbol of libc's")]

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

/// A simulation's generator, and how often it was asked.
#[derive(Clone, Copy)]
struct Seeded {
    state: u64,
    calls: u64,
}

thread_local! {
    static SEEDED: Cell<Option<Seeded>> = const { Cell::new(None) };
}

static IS_USED: AtomicBool = AtomicBool::new(false);

/// Runs `work` on a thread of its own, where all randomness comes from `seed`. The thread is new
/// because std and rand keep what they drew per thread. Once per process, because tokio mixes a
/// count of its runtimes into their seeds.
///
/// # Panics
///
/// If it is called again, or if nothing ever asked for randomness: then this file is not in
/// effect. In both cases no seed would repeat the run.
pub(crate) fn with_seed<T: Send>(seed: u64, work: impl FnOnce() -> T + Send) -> T {
    assert!(!IS_USED.swap(true, Ordering::Relaxed), "one process can repeat one run");
    let seeded = move || {
        SEEDED.set(Some(Seeded { state: seed, calls: 0 }));
        let result = work();
        let calls = SEEDED.take().map_or(0, |seeded| seeded.calls);
        assert!(calls > 0, "the seeded getrandom was never called: this build cannot repeat a run");
        result
    };
    std::thread::scope(|scope| match scope.spawn(seeded).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// libc's `getrandom`, for whoever links against it.
///
/// # Safety
///
/// As libc's: `buffer` points to `length` writable bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, flags: u32) -> isize {
    let Some(mut seeded) = SEEDED.get() else {
        // SAFETY: the caller's promise about `buffer` and `length` is the system call's own.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) as isize };
    };
    // A call for no bytes only asks whether the symbol is there.
    seeded.calls += u64::from(length > 0);
    for at in 0..length {
        // SAFETY: the caller promises `length` writable bytes at `buffer`, and `at` is below it.
        unsafe { buffer.add(at).write(seeded.next() as u8) };
    }
    SEEDED.set(Some(seeded));
    length as isize
}

impl Seeded {
    /// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): small, and good enough to choose peers.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }
}
