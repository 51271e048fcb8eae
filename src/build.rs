//! The build script: options of the linker that make the released program smaller.
//!
//! - Tables for unwinding are discarded. The program aborts when it panics, but the compiler and the standard
//!   library include these tables, 0.4 MB together with the next item.
//! - Relative relocations are packed: about one bit per address instead of 24 bytes. C libraries from 2022 on
//!   support it.
//!
//! # Invariants
//! - Builds that unwind (all except `release`) and test programs keep their tables.
//! - Relocations are packed only for the machine that builds, if its C library supports it.

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
