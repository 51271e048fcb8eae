//! Cargo's build script of the program: what the linker can leave out of what is shipped.
//!
//! Why it exists: two things would cost a board 0.4 MB for nothing. The program aborts when it panics, so
//! nobody unwinds, yet the compiler writes the tables for it all the same, and the standard library comes
//! with its own; what a panic says is not in them. And a program that may lie anywhere in memory lists each
//! of its own addresses with 24 bytes, where a packed list has about one bit; a C library takes that from
//! 2022 on.
//!
//! Always true: builds that unwind (whatever is not `release`) keep their tables, and so do test programs.
//! The list is packed only for the machine that builds, whose C library says that it takes it.

use std::path::Path;
use std::process::Command;
use std::{env, fs, io};

const SCRIPT: &str = "SECTIONS { /DISCARD/ : { *(.eh_frame) *(.gcc_except_table .gcc_except_table.*) } }\n\
                      INSERT AFTER .text;\n";

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=src/build.rs");
    let out = env::var("OUT_DIR").map_err(io::Error::other)?;
    // target/[TARGET/]PROFILE/build/PACKAGE/out
    let profile = Path::new(&out).ancestors().nth(3).and_then(Path::file_name);
    if profile.is_some_and(|name| name == "release") {
        let script = Path::new(&out).join("no_unwind_tables.ld");
        fs::write(&script, SCRIPT)?;
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{}", script.display());
        if env::var("HOST") == env::var("TARGET") && takes_packed_addresses() {
            println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
        }
    }
    Ok(())
}

/// Whether the C library of this machine is glibc 2.36 or later. Others refuse such a program at its start.
fn takes_packed_addresses() -> bool {
    let Ok(answer) = Command::new("getconf").arg("GNU_LIBC_VERSION").output() else { return false };
    let text = String::from_utf8_lossy(&answer.stdout);
    let minor = text.trim().strip_prefix("glibc 2.").and_then(|minor| minor.split('.').next()?.parse().ok());
    minor.is_some_and(|minor: u32| minor >= 36)
}
