//! The `leveret-bench` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    leveret_bench::main(leveret_version::build_version!())
}
