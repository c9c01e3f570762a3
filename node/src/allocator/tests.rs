use super::*;
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The system's allocator, which notes what it has given: a block comes back once, and with the layout that it had.
pub(super) struct Noting;

thread_local! {
    static GIVEN: RefCell<HashMap<usize, Layout>> = RefCell::default();
}

impl Noting {
    fn note(block: *mut u8, layout: Layout) -> *mut u8 {
        assert_eq!(GIVEN.with_borrow_mut(|given| given.insert(block as usize, layout)), None);
        block
    }

    fn forget(block: *mut u8, layout: Layout) {
        assert_eq!(GIVEN.with_borrow_mut(|given| given.remove(&(block as usize))), Some(layout));
    }
}

// SAFETY: it does what the system's does. (It panics and allocates, which a program's allocator must not; it is none.)
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::note(unsafe { std::alloc::System.alloc(layout) }, layout)
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::note(unsafe { std::alloc::System.alloc_zeroed(layout) }, layout)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        Self::forget(block, layout);
        unsafe { std::alloc::System.dealloc(block, layout) };
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::forget(block, layout);
        let new = Layout::from_size_align(size, layout.align()).expect("valid");
        Self::note(unsafe { std::alloc::System.realloc(block, layout, size) }, new)
    }
}

/// One test at a time: whether memory is short is the process's.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This thread keeps nothing any more, and all that it took from the system is given back.
fn end() {
    let_go();
    assert_eq!(KEPT.with(|kept| kept.bytes.get()), 0);
    assert_eq!(GIVEN.take(), HashMap::new());
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).expect("valid")
}

/// How many blocks this thread keeps of what holds so many bytes, and the bytes of all.
fn kept(bytes: usize) -> (usize, usize) {
    let size = Size::of(layout(bytes)).expect("kept");
    KEPT.with(|kept| (kept.stacks[size.0].height.get(), kept.bytes.get()))
}

/// Takes so many blocks, and frees them again. The test program's own allocator is another, so nobody else's
/// blocks are kept.
fn take_and_free(blocks: usize, bytes: usize) {
    let layout = layout(bytes);
    // SAFETY: not of zero bytes, and freed once.
    let taken: Vec<_> = (0..blocks).map(|_| unsafe { Allocator.alloc(layout) }).collect();
    for block in taken {
        assert!(!block.is_null());
        // SAFETY: as above.
        unsafe { Allocator.dealloc(block, layout) };
    }
}

#[test]
fn a_size_holds_what_is_asked_for_and_wastes_less_than_its_step() {
    for size in (1..Size::ALL).map(Size) {
        assert_eq!(Size::of(size.layout()).map(|same| same.0), Some(size.0.max(1)));
    }
    for bytes in 1..=8200 {
        let size = Size::of(layout(bytes)).expect("kept");
        assert!(
            size.bytes() >= bytes && (size.bytes() < bytes + 16 || size.bytes() == 24),
            "{bytes}: {size:?}"
        );
    }
    assert_eq!(Size::of(layout(8201)), None);
    let padded = Size::of(Layout::from_size_align(100, 32).expect("valid")).expect("kept");
    assert_eq!(padded.layout(), Layout::from_size_align(104, 128).expect("valid"));
    assert_eq!(Size::of(Layout::from_size_align(100, 256).expect("valid")), None);
    assert_eq!(Size::of(layout(isize::MAX as usize - 7)), None);
}

#[test]
fn a_block_serves_again_what_has_its_size() {
    let _alone = alone();
    keep();
    // SAFETY: not of zero bytes, and each is freed once, with its layout.
    unsafe {
        let first = Allocator.alloc(layout(100));
        let second = Allocator.alloc(layout(100));
        assert_ne!(first, second);
        Allocator.dealloc(first, layout(100));
        let larger = Allocator.alloc(layout(105));
        assert_ne!(larger, first);
        let again = Allocator.alloc(layout(90));
        assert_eq!(again, first);
        for (block, bytes) in [(again, 90), (second, 100), (larger, 105)] {
            Allocator.dealloc(block, layout(bytes));
        }
    }
    end();
}

#[test]
fn what_is_kept_has_bounds() {
    let _alone = alone();
    keep();
    take_and_free(KEPT_OF_A_SIZE_MAX + 10, 1000);
    assert_eq!(kept(1000), (KEPT_OF_A_SIZE_MAX, KEPT_OF_A_SIZE_MAX * 1000));
    let mut most = 0;
    for bytes in (1000..8200).step_by(16) {
        take_and_free(21, bytes);
        most = most.max(kept(bytes).1);
    }
    assert!(most <= KEPT_BYTES_MAX && most > KEPT_BYTES_MAX * 9 / 10, "{most}");
    end();
}

#[test]
fn while_memory_is_short_nothing_is_kept() {
    let _alone = alone();
    keep();
    take_and_free(10, 100);
    take_and_free(10, 5000);
    set_short(true);
    assert_eq!(kept(100), (10, 10 * 104 + 10 * 5000));
    take_and_free(1, 300);
    assert_eq!(kept(300), (0, 0), "and what was kept is given back");
    assert_eq!(GIVEN.with_borrow(HashMap::len), 0);
    set_short(false);
    take_and_free(10, 100);
    assert_eq!(kept(100), (10, 1040));
    end();
}

#[test]
fn a_thread_that_has_not_said_so_keeps_nothing() {
    let _alone = alone();
    take_and_free(10, 100);
    assert_eq!(kept(100), (0, 0));
    keep();
    take_and_free(10, 100);
    assert_eq!(kept(100).0, 10);
    std::thread::spawn(|| {
        take_and_free(10, 100);
        assert_eq!(kept(100), (0, 0));
    })
    .join()
    .expect("it does not panic");
    let_go();
    take_and_free(10, 100);
    assert_eq!(kept(100), (0, 0));
}

#[derive(Debug, Clone)]
enum Step {
    Take(usize, usize, bool),
    Free(usize),
    Resize(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let size = || prop_oneof![1..200usize, 1..10_000usize, Just(8200), Just(8201), Just(100_000)];
    prop_oneof![
        3 => (size(), 0..=8u32, any::<bool>())
            .prop_map(|(size, align, zeroed)| Step::Take(size, 1 << align, zeroed)),
        2 => any::<usize>().prop_map(Step::Free),
        2 => (any::<usize>(), size()).prop_map(|(which, size)| Step::Resize(which, size)),
    ]
}

/// A block that is somebody's, and the byte that it is full of.
struct Taken {
    block: *mut u8,
    layout: Layout,
    full_of: u8,
}

impl Taken {
    /// SAFETY, for this and the next: it is this test's, and holds its layout.
    fn fill(&self) {
        assert_eq!(self.block as usize % self.layout.align(), 0);
        unsafe { self.block.write_bytes(self.full_of, self.layout.size()) };
    }

    fn holds(&self, bytes: usize) -> bool {
        let read = unsafe { std::slice::from_raw_parts(self.block, bytes) };
        read.iter().all(|byte| *byte == self.full_of)
    }
}

proptest! {
    /// No two blocks overlap, whatever is taken, freed and resized: each still holds what it was filled with.
    #[test]
    fn blocks_are_their_owners_alone(steps in proptest::collection::vec(step(), 1..200)) {
        let _alone = alone();
        keep();
        let mut all: Vec<Taken> = Vec::new();
        for (full_of, step) in (1..=u8::MAX).cycle().zip(steps) {
            match step {
                Step::Take(size, align, zeroed) => {
                    let layout = Layout::from_size_align(size, align).expect("valid");
                    // SAFETY: no size is zero.
                    let block = unsafe {
                        if zeroed { Allocator.alloc_zeroed(layout) } else { Allocator.alloc(layout) }
                    };
                    let mut taken = Taken { block, layout, full_of: 0 };
                    prop_assert!(!zeroed || taken.holds(size));
                    taken.full_of = full_of;
                    taken.fill();
                    all.push(taken);
                }
                Step::Free(which) if !all.is_empty() => {
                    let taken = all.swap_remove(which % all.len());
                    prop_assert!(taken.holds(taken.layout.size()));
                    // SAFETY: it is forgotten here.
                    unsafe { Allocator.dealloc(taken.block, taken.layout) };
                }
                Step::Resize(which, size) if !all.is_empty() => {
                    let which = which % all.len();
                    let taken = &mut all[which];
                    // SAFETY: the old address is forgotten here.
                    taken.block = unsafe { Allocator.realloc(taken.block, taken.layout, size) };
                    prop_assert!(taken.holds(taken.layout.size().min(size)));
                    taken.layout = Layout::from_size_align(size, taken.layout.align()).expect("valid");
                    taken.fill();
                }
                Step::Free(_) | Step::Resize(..) => {}
            }
        }
        for taken in all {
            prop_assert!(taken.holds(taken.layout.size()));
            // SAFETY: it is forgotten here.
            unsafe { Allocator.dealloc(taken.block, taken.layout) };
        }
        end();
    }
}
