//! The program's allocator: a block that was freed serves its thread again. Every block is the system's allocator's, and
//! goes back to it when there are enough.
//!
//! A request takes some thirty blocks, and a turn of the runtime frees a dozen requests'. glibc has seven freed blocks of
//! a size at hand for a thread (its *tcache*; only an environment variable makes them more). The others are joined with
//! their neighbours and cut from them again, at a hundred instructions and more: allocating was a tenth of what HTTP/1.1
//! costs, and a sixth of HTTP/2.
//!
//! It is no heap: what is large, or must lie at a rounder address, is the system's business alone. A thread that has not
//! said that it keeps blocks keeps none, so what ends with it is nobody's loss. While memory is short nobody keeps any:
//! what is kept cannot be given back to the system, nor can the pages that it lies in.
#![expect(
    unsafe_code,
    reason = "GlobalAlloc is an unsafe trait, and a freed block holds the address of the next"
)]

#[cfg(not(test))]
use std::alloc::System;
use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicUsize, Ordering};

#[cfg(test)]
use tests::Noting as System;

/// Blocks of one size that a thread keeps: what a turn of the runtime frees, and what the next takes.
const KEPT_OF_A_SIZE_MAX: usize = 64;

/// Bytes in all blocks that a thread keeps: what 128 requests in flight use in turn. Before there are more, all of them
/// go, for some may be of sizes that nobody asks for any more.
const KEPT_BYTES_MAX: usize = 1024 * 1024;

/// `KEPT_BYTES_MAX`, or nothing while memory is short.
static KEPT_BYTES: AtomicUsize = AtomicUsize::new(KEPT_BYTES_MAX);

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

/// Whether memory is short from now on. Then each thread gives back what it keeps when it next frees a block, and keeps no
/// other; one that frees none has what it had.
pub(crate) fn set_short(is_short: bool) {
    KEPT_BYTES.store(if is_short { 0 } else { KEPT_BYTES_MAX }, Ordering::Relaxed);
}

/// This thread keeps none any more, and gives back those that it has.
pub(crate) fn let_go() {
    KEPT.with(|kept| {
        kept.of_a_size_max.set(0);
        kept.give_back();
    });
}

/// Whether this thread keeps blocks.
#[cfg(test)]
pub(crate) fn keeps() -> bool {
    KEPT.with(|kept| kept.of_a_size_max.get() != 0)
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
        let bytes = self.bytes.get() + size.bytes();
        if bytes > KEPT_BYTES.load(Ordering::Relaxed) {
            self.give_back();
            return false;
        }
        if height >= self.of_a_size_max.get() {
            return false;
        }
        let block = block.cast::<Freed>();
        // SAFETY: each size has room for an address, and each block lies where one may lie.
        unsafe { block.write(Freed { below: stack.top.get() }) };
        stack.top.set(Some(block));
        stack.height.set(height + 1);
        self.bytes.set(bytes);
        true
    }

    #[cold]
    #[inline(never)]
    fn give_back(&self) {
        if self.bytes.get() == 0 {
            return;
        }
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
mod tests;
