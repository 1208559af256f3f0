//! The `deltarun` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    deltarun::cli::main()
}
