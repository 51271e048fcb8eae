//! Cargo's build script of the program: leaves the tables for unwinding out of what is shipped.
//!
//! Why it exists: the program aborts when it panics, so nobody unwinds, yet the compiler writes the tables
//! all the same, and the standard library comes with its own: 0.3 MB that a board would carry for nothing.
//! Only the linker can drop both. What a panic says is not in them.
//!
//! Always true: builds that unwind (whatever is not `release`) keep theirs, and so do all test programs.

use std::path::Path;
use std::{env, fs, io};

const SCRIPT: &str = "SECTIONS { /DISCARD/ : { *(.eh_frame) *(.gcc_except_table .gcc_except_table.*) } }\n\
                      INSERT AFTER .text;\n";

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=src/link.rs");
    let out = env::var("OUT_DIR").map_err(io::Error::other)?;
    // target/[TARGET/]PROFILE/build/PACKAGE/out
    let profile = Path::new(&out).ancestors().nth(3).and_then(Path::file_name);
    if profile.is_some_and(|name| name == "release") {
        let script = Path::new(&out).join("no_unwind_tables.ld");
        fs::write(&script, SCRIPT)?;
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{}", script.display());
    }
    Ok(())
}
