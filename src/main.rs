//! The `leveret` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    leveret::tool::program::main()
}
