//! Small buffers that a thread keeps when it frees them. A tokenizer allocates and frees many of them for each text, and on
//! one heap two threads that do so wait for each other most of the time. glibc's own threads keep seven buffers of a size.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr::null_mut;

/// The step of sizes, which is also the alignment of every buffer, in bytes.
const STEP: usize = 16;

/// The number of sizes.
const SIZES: usize = 64;

/// The most buffers of a size.
const MOST: usize = 1024;

/// The buffers of each size. The first bytes of a buffer hold the address of the next one.
struct Kept {
    first: [*mut u8; SIZES],
    count: [usize; SIZES],
}

thread_local! {
    /// What this thread keeps; null if it keeps nothing.
    static KEPT: Cell<*mut Kept> = const { Cell::new(null_mut()) };
}

/// Runs `work`, during which this thread keeps the small buffers that it frees.
pub fn with_kept<R>(work: impl FnOnce() -> R) -> R {
    /// Frees the buffers at the end, even if the work panics.
    struct Guard(*mut Kept);
    impl Drop for Guard {
        fn drop(&mut self) {
            KEPT.set(self.0);
        }
    }
    let mut kept = Kept {
        first: [null_mut(); SIZES],
        count: [0; SIZES],
    };
    let guard = Guard(KEPT.replace(&mut kept));
    let result = work();
    drop(guard);
    result
}

impl Drop for Kept {
    fn drop(&mut self) {
        for (size, first) in self.first.into_iter().enumerate() {
            let mut place = first;
            while !place.is_null() {
                // SAFETY: each buffer was allocated with this layout, and begins with the address of the next one.
                unsafe {
                    let next = place.cast::<*mut u8>().read();
                    System.dealloc(place, Layout::from_size_align_unchecked(size * STEP, STEP));
                    place = next;
                }
            }
        }
    }
}

/// A layout with the size of its kind: every small buffer has room for all that are kept as one size.
pub(super) fn rounded(layout: Layout) -> Layout {
    let size = layout.size().div_ceil(STEP);
    match size < SIZES && layout.align() <= STEP {
        // SAFETY: the size is small.
        true => unsafe { Layout::from_size_align_unchecked(size.max(1) * STEP, STEP) },
        false => layout,
    }
}

/// The size of a layout's buffers in steps; none if this thread does not keep such buffers.
fn size_of(layout: Layout) -> Option<usize> {
    let size = layout.size().div_ceil(STEP).max(1);
    (size < SIZES && layout.align() <= STEP && !KEPT.get().is_null()).then_some(size)
}

/// Whether this thread keeps such buffers.
pub(super) fn keeps(layout: Layout) -> bool {
    size_of(layout).is_some()
}

/// Takes a kept buffer.
pub(super) fn take(layout: Layout) -> Option<*mut u8> {
    let size = size_of(layout)?;
    // SAFETY: only this thread uses what it keeps, which lives as long as the pointer is set.
    let kept = unsafe { &mut *KEPT.get() };
    let place = kept.first[size];
    if place.is_null() {
        return None;
    }
    // SAFETY: a kept buffer begins with the address of the next one.
    kept.first[size] = unsafe { place.cast::<*mut u8>().read() };
    kept.count[size] -= 1;
    Some(place)
}

/// Keeps a buffer, if this thread keeps buffers and has room for it.
///
/// # Safety
/// The buffer was allocated with the [`rounded`] layout, and nothing uses it any more.
pub(super) unsafe fn keep(place: *mut u8, layout: Layout) -> bool {
    let Some(size) = size_of(layout) else {
        return false;
    };
    let kept = &mut *KEPT.get();
    if kept.count[size] == MOST {
        return false;
    }
    place.cast::<*mut u8>().write(kept.first[size]);
    kept.first[size] = place;
    kept.count[size] += 1;
    true
}
