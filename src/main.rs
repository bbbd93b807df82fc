//! The `nico-rewrap` program; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    nico_rewrap::cli::main()
}
