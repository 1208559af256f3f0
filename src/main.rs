//! The `deltarun` command.

use std::process::ExitCode;

/// Activations and gradients come and go with every step; the system's allocator would give their pages
/// back each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    deltarun::cli::main()
}
