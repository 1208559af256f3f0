//! Memory that earlier runs of a script left behind.

/// Gives the pages of freed buffers back to the system, those of all threads that kernels run on, so that
/// the next run's memory is its own. Does nothing where mimalloc is not the allocator.
pub(super) fn release() {
    // SAFETY: it frees what nobody holds, on the thread that calls it.
    let collect = || unsafe { libmimalloc_sys::mi_collect(true) };
    rayon::broadcast(|_| collect());
    collect();
}
