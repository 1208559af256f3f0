//! The memory allocator of the process. Every step allocates and frees activations and gradients of many sizes. They
//! should be close together, and their pages should not be given back in between. Huge pages save the processor address
//! look-ups. glibc's allocator does all that when it is configured so; on other systems the allocator is used as it is.

mod kept;

pub use kept::with_kept;

use std::alloc::{GlobalAlloc, Layout, System};

/// The system's allocator, with large buffers aligned to cache lines.
pub struct Allocator;

/// The least size of a large buffer, in bytes.
const LARGE: usize = 64 << 10;

/// The alignment of large buffers, in bytes: a cache line. Storing a register across two lines costs as much as two
/// stores.
const LINE: usize = 64;

/// The layout of a large buffer with room to align it; `None` for other buffers. The system aligns it to 16 bytes
/// anyway, so there are at least 16 bytes before the next line, in which the distance is written.
fn with_room(layout: Layout) -> Option<Layout> {
    let is_large = layout.size() >= LARGE && layout.align() <= LINE;
    let size = layout.size().checked_add(LINE).filter(|_| is_large)?;
    Layout::from_size_align(size, 16).ok()
}

/// The first line boundary in a buffer from [`with_room`]. Its distance from `start` is written before it.
///
/// # Safety
/// `start` was allocated with a layout of [`with_room`], or is null.
unsafe fn first_line(start: *mut u8) -> *mut u8 {
    if start.is_null() {
        return start;
    }
    let distance = LINE - start as usize % LINE;
    let place = start.add(distance);
    place.cast::<usize>().sub(1).write(distance);
    heap::ask_for_huge_pages();
    place
}

// SAFETY: every buffer comes from the system's allocator. A large buffer lies within a larger one from it.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match with_room(layout) {
            Some(whole) => first_line(System.alloc(whole)),
            None => kept::take(layout).unwrap_or_else(|| System.alloc(kept::rounded(layout))),
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match with_room(layout) {
            Some(whole) => first_line(System.alloc_zeroed(whole)),
            None => System.alloc_zeroed(kept::rounded(layout)),
        }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let new = Layout::from_size_align_unchecked(size, layout.align());
        let is_small = with_room(layout).is_none() && with_room(new).is_none();
        if is_small && !(kept::keeps(layout) || kept::keeps(new)) {
            return System.realloc(place, kept::rounded(layout), kept::rounded(new).size());
        }
        let moved = self.alloc(new);
        if !moved.is_null() {
            moved.copy_from_nonoverlapping(place, layout.size().min(size));
            self.dealloc(place, layout);
        }
        moved
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        match with_room(layout) {
            Some(whole) => {
                let distance = place.cast::<usize>().sub(1).read();
                System.dealloc(place.sub(distance), whole);
            }
            None if kept::keep(place, layout) => {}
            None => System.dealloc(place, kept::rounded(layout)),
        }
    }
}

/// Prepares the process for training. Must be called before there is another thread.
pub fn prepare() {
    heap::prepare();
}

/// Gives the pages of freed buffers back to the system. Does nothing unless the allocator is glibc's.
pub fn release() {
    heap::release();
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod heap {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use libc::{M_ARENA_MAX, M_MMAP_MAX, M_TOP_PAD, M_TRIM_THRESHOLD};

    /// The number of bytes by which the heap grows beyond what is needed: whole huge pages. They take no memory until
    /// they are touched.
    const GROWTH: i32 = 64 << 20;

    /// The address up to which huge pages have been requested for the heap; 0 before [`prepare`].
    static ADVISED: AtomicUsize = AtomicUsize::new(0);

    /// Uses one heap for all threads and sizes, and keeps its pages: a page that was given back costs a page fault, and
    /// is zeroed, when it is touched again.
    pub(super) fn prepare() {
        // SAFETY: this only sets parameters of the allocator.
        unsafe {
            libc::mallopt(M_ARENA_MAX, 1);
            libc::mallopt(M_MMAP_MAX, 0);
            libc::mallopt(M_TRIM_THRESHOLD, -1);
            libc::mallopt(M_TOP_PAD, GROWTH);
        }
        ADVISED.store(end(), Relaxed);
    }

    /// The end of the heap: the program break.
    fn end() -> usize {
        // SAFETY: this only reads the program break; the heap does not grow.
        unsafe { libc::sbrk(0) as usize }
    }

    /// Requests huge pages for the part by which the heap has grown.
    pub(super) fn ask_for_huge_pages() {
        let advised = ADVISED.load(Relaxed);
        if advised == 0 {
            return;
        }
        let end = end();
        if end > advised {
            // SAFETY: this is advice about the process's own heap, which changes nothing that is read or written. The
            // range is whole pages, because the heap ends at a page boundary.
            unsafe { libc::madvise(advised as *mut _, end - advised, libc::MADV_HUGEPAGE) };
            ADVISED.store(end, Relaxed);
        }
    }

    pub(super) fn release() {
        // SAFETY: this gives back only memory that no buffer uses.
        unsafe { libc::malloc_trim(0) };
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
mod heap {
    pub(super) fn prepare() {}

    pub(super) fn ask_for_huge_pages() {}

    pub(super) fn release() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For sizes around [`LARGE`]: buffers begin at lines, keep what they hold when they grow and shrink, and are
    /// zeroed on request.
    #[test]
    fn buffers_begin_at_lines_and_keep_what_they_hold() {
        for size in [1, LARGE - 1, LARGE, LARGE + 1, 3 * LARGE] {
            for align in [1, 8, LINE, 4096] {
                let layout = Layout::from_size_align(size, align).expect("a layout");
                for (grown, shrunk) in [(size + 7, size / 2 + 1), (2 * LARGE, 1)] {
                    // SAFETY: each buffer is freed once, by its own layout, and written within its size.
                    unsafe { check(layout, grown, shrunk) };
                }
            }
        }
    }

    /// The same while the thread keeps small buffers, which are then used again.
    #[test]
    fn kept_buffers_are_used_again() {
        with_kept(|| {
            for size in [1, 15, 16, 17, 24, 100, 1000, 1008, 1009, LARGE] {
                let layout = Layout::from_size_align(size, 8).expect("a layout");
                // SAFETY: as above.
                unsafe {
                    check(layout, size + 9, size / 2 + 1);
                    let place = Allocator.alloc(layout);
                    Allocator.dealloc(place, layout);
                    let again = Allocator.alloc(layout);
                    assert!(again == place || size > 1008, "{size}");
                    Allocator.dealloc(again, layout);
                }
            }
        });
    }

    unsafe fn check(layout: Layout, grown: usize, shrunk: usize) {
        let is_in_place = |place: *mut u8, size: usize| {
            let least = if size >= LARGE { LINE } else { 1 };
            !place.is_null() && (place as usize).is_multiple_of(least.max(layout.align()))
        };
        let filled = |place: *mut u8, size: usize, with: u8| {
            std::slice::from_raw_parts(place, size)
                .iter()
                .all(|byte| *byte == with)
        };
        let size = layout.size();
        let place = Allocator.alloc_zeroed(layout);
        assert!(is_in_place(place, size) && filled(place, size, 0));
        place.write_bytes(7, size);
        let place = Allocator.realloc(place, layout, grown);
        assert!(is_in_place(place, grown) && filled(place, size.min(grown), 7));
        let layout = Layout::from_size_align(grown, layout.align()).expect("a layout");
        let place = Allocator.realloc(place, layout, shrunk);
        assert!(is_in_place(place, shrunk) && filled(place, size.min(shrunk), 7));
        let layout = Layout::from_size_align(shrunk, layout.align()).expect("a layout");
        Allocator.dealloc(place, layout);
    }
}
