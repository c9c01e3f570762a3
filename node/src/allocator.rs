//! The program's allocator: a block that was freed serves its thread again. Every block is the system's allocator's, and
//! goes back to it when there are enough.
//!
//! A request takes some thirty blocks, and a turn of the runtime frees a dozen requests'. glibc has seven freed blocks of
//! a size at hand for a thread (its *tcache*; only an environment variable makes them more). The others are joined with
//! their neighbours and cut from them again, at a hundred instructions and more: allocating was a tenth of what HTTP/1.1
//! costs, and a sixth of HTTP/2.
//!
//! It is no heap: what is large, or must lie at a rounder address, is the system's business alone. A thread that has not
//! said that it keeps blocks keeps none, so what ends with it is nobody's loss.
#![expect(
    unsafe_code,
    reason = "GlobalAlloc is an unsafe trait, and a freed block holds the address of the next"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr::{self, NonNull};

/// Blocks of one size that a thread keeps: what a turn of the runtime frees, and what the next takes.
const KEPT_OF_A_SIZE_MAX: usize = 64;

/// Bytes in all blocks that a thread keeps: what 128 requests in flight use in turn. With more, all of them go: what they
/// were wanted for is over.
const KEPT_BYTES_MAX: usize = 1024 * 1024;

/// The alignment of blocks that are kept: what malloc(3) gives without being asked, and what tokio wants for its tasks.
const ALIGNMENTS: [usize; 2] = [16, 128];

/// The largest block that is kept, in steps of sixteen bytes: 8,200 bytes, for the buffer that hyper reads an HTTP/1.1
/// connection into.
const STEPS_MAX: usize = 512;

/// To be named as the global allocator.
#[derive(Debug)]
pub struct Allocator;

/// This thread keeps blocks from now on.
pub(crate) fn keep() {
    KEPT.with(|kept| kept.of_a_size_max.set(KEPT_OF_A_SIZE_MAX));
}

/// This thread keeps none any more, and gives back those that it has.
pub(crate) fn let_go() {
    KEPT.with(|kept| {
        kept.of_a_size_max.set(0);
        kept.give_back();
    });
}

thread_local! {
    // Nothing to drop, so that it can be used as long as its thread runs, by what other thread-locals drop as well.
    static KEPT: Kept = const { Kept::new() };
}

/// How large a block is, in steps of sixteen bytes with eight above them (what glibc's blocks hold), and how it lies:
/// beyond `STEPS_MAX` at the second of `ALIGNMENTS`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Size(usize);

impl Size {
    const ALL: usize = STEPS_MAX * ALIGNMENTS.len() + 1;

    /// The smallest that holds such a value. `None` where none is kept.
    #[inline]
    fn of(layout: Layout) -> Option<Self> {
        // One step at least: less would not hold what is aligned to sixteen.
        let steps = (layout.size().saturating_add(7) / 16).max(1);
        if steps > STEPS_MAX || layout.align() > ALIGNMENTS[1] {
            None
        } else if layout.align() <= ALIGNMENTS[0] {
            Some(Self(steps))
        } else {
            Some(Self(STEPS_MAX + steps))
        }
    }

    #[inline]
    fn layout(self) -> Layout {
        let (steps, align) = match self.0.checked_sub(STEPS_MAX) {
            None | Some(0) => (self.0, ALIGNMENTS[0]),
            Some(steps) => (steps, ALIGNMENTS[1]),
        };
        // SAFETY: the alignment is a power of two, and the size far from the largest there can be.
        unsafe { Layout::from_size_align_unchecked(steps * 16 + 8, align) }
    }

    #[inline]
    fn bytes(self) -> usize {
        self.layout().size()
    }
}

/// What a thread keeps.
struct Kept {
    of_a_size_max: Cell<usize>,
    bytes: Cell<usize>,
    /// By [`Size`].
    stacks: [Stack; Size::ALL],
}

/// Freed blocks of one size, the last freed first: it is still in the processor's cache.
struct Stack {
    top: Cell<Option<NonNull<Freed>>>,
    height: Cell<usize>,
}

/// What a freed block begins with.
struct Freed {
    below: Option<NonNull<Self>>,
}

impl Kept {
    const fn new() -> Self {
        Self {
            of_a_size_max: Cell::new(0),
            bytes: Cell::new(0),
            stacks: [const { Stack { top: Cell::new(None), height: Cell::new(0) } }; Size::ALL],
        }
    }

    #[inline]
    fn take(&self, size: Size) -> Option<NonNull<u8>> {
        let stack = &self.stacks[size.0];
        let block = stack.top.get()?;
        // SAFETY: `keep` wrote it, and nobody but this thread has known of the block since.
        stack.top.set(unsafe { block.read() }.below);
        stack.height.set(stack.height.get() - 1);
        self.bytes.set(self.bytes.get() - size.bytes());
        Some(block.cast())
    }

    /// `false` if it is not kept.
    ///
    /// # Safety
    /// The block is the system's allocator's, of this size's layout, and nobody else's any more.
    #[inline]
    unsafe fn keep(&self, block: NonNull<u8>, size: Size) -> bool {
        let stack = &self.stacks[size.0];
        let height = stack.height.get();
        if height >= self.of_a_size_max.get() {
            return false;
        }
        let block = block.cast::<Freed>();
        // SAFETY: each size has room for an address, and each block lies where one may lie.
        unsafe { block.write(Freed { below: stack.top.get() }) };
        stack.top.set(Some(block));
        stack.height.set(height + 1);
        let bytes = self.bytes.get() + size.bytes();
        self.bytes.set(bytes);
        if bytes > KEPT_BYTES_MAX {
            self.give_back();
        }
        true
    }

    #[cold]
    #[inline(never)]
    fn give_back(&self) {
        for size in (1..Size::ALL).map(Size) {
            while let Some(block) = self.take(size) {
                // SAFETY: `keep` was promised that it is the system's, of this layout.
                unsafe { System.dealloc(block.as_ptr(), size.layout()) };
            }
        }
    }
}

// SAFETY: each block comes from the system's allocator with the layout of its size, which holds the layout that was
// asked for, or with just that layout if it has no size; which of the two follows from the layout alone, so it is given
// back as it was got. What is kept belongs to one thread, and nothing here panics or allocates.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(size) = Size::of(layout) else {
            // SAFETY: the caller's promise.
            return unsafe { System.alloc(layout) };
        };
        match KEPT.with(|kept| kept.take(size)) {
            Some(block) => block.as_ptr(),
            // SAFETY: no size is zero.
            None => unsafe { System.alloc(size.layout()) },
        }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some(size) = Size::of(layout) else {
            // SAFETY: the caller's promise, and `alloc` made it so.
            return unsafe { System.dealloc(block, layout) };
        };
        // SAFETY: the caller's promise: it is a block of `alloc`'s, which made it with this size's layout.
        let kept = KEPT.with(|kept| unsafe { kept.keep(NonNull::new_unchecked(block), size) });
        if !kept {
            // SAFETY: as above.
            unsafe { System.dealloc(block, size.layout()) };
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if Size::of(layout).is_none() {
            // SAFETY: the caller's promise.
            return unsafe { System.alloc_zeroed(layout) };
        }
        // SAFETY: the caller's promise.
        let block = unsafe { self.alloc(layout) };
        if !block.is_null() {
            // SAFETY: it holds as much as was asked for.
            unsafe { ptr::write_bytes(block, 0, layout.size()) };
        }
        block
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (Size::of(layout), Size::of(wanted)) {
            (Some(is), Some(wanted)) if is == wanted => block,
            // SAFETY: the caller's promise, and `alloc` made it so.
            (None, None) => unsafe { System.realloc(block, layout, size) },
            // SAFETY: the caller's promise; both blocks hold what is copied.
            _ => unsafe {
                let new = self.alloc(wanted);
                if !new.is_null() {
                    ptr::copy_nonoverlapping(block, new, layout.size().min(size));
                    self.dealloc(block, layout);
                }
                new
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
        let_go();
        assert_eq!(kept(100), (0, 0));
    }

    #[test]
    fn what_is_kept_has_bounds() {
        keep();
        take_and_free(KEPT_OF_A_SIZE_MAX + 10, 1000);
        assert_eq!(kept(1000), (KEPT_OF_A_SIZE_MAX, KEPT_OF_A_SIZE_MAX * 1000));
        let mut most = 0;
        for bytes in (1000..8200).step_by(16) {
            take_and_free(21, bytes);
            most = most.max(kept(bytes).1);
        }
        assert!(most <= KEPT_BYTES_MAX && most > KEPT_BYTES_MAX * 9 / 10, "{most}");
        let_go();
        assert_eq!(kept(1000), (0, 0));
    }

    #[test]
    fn a_thread_that_has_not_said_so_keeps_nothing() {
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
            let_go();
        }
    }
}
