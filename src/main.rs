//! The `deltarun` command.

use std::process::ExitCode;

/// Activations and gradients come and go with every step; the system's allocator would give their pages
/// back each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // A script tells the memory of each of its runs: the next one is not to inherit the last one's pages.
    if !std::env::args().any(|argument| argument.ends_with(".rhai")) {
        keep_pages();
    }
    deltarun::cli::main()
}

/// Tells the allocator to keep the pages of freed buffers for the next step: a page that was given back
/// costs a fault when it is touched again. The most memory that a run has does not depend on it.
fn keep_pages() {
    use libmimalloc_sys::{mi_option_set, mi_option_use_numa_nodes};
    // mimalloc.h: the option before that one, which the bindings do not name.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = mi_option_use_numa_nodes - 1;
    // SAFETY: sets one number of the allocator's, before any other thread is there.
    unsafe { mi_option_set(PURGE_DELAY, -1) };
}
