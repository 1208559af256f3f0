//! The `deltarun` command.

use std::process::ExitCode;

use deltarun::memory::Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> ExitCode {
    deltarun::memory::prepare();
    deltarun::cli::main()
}
