//! The `amend` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    amend::cli::main()
}
