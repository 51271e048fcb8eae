//! The build script: prepares the files of the web page in `web`, which the package embeds.
//!
//! The scripts are modules that import from each other. They are joined into one file, so that a browser needs only one
//! request for them. Each module stands behind those that it imports. Import statements and the word `export` are left
//! out. All files are compressed as they are sent.
//!
//! # Invariants
//! - The same sources give the same bytes: no name and no time is written.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use miniz_oxide::deflate::compress_to_vec;

/// The files, except the modules that the script imports.
const FILES: [&str; 4] = ["index.html", "style.css", "icon.svg", "app.js"];
/// The highest level of the compressor.
const LEVEL: u8 = 10;
/// Header of a gzip file: deflate, no name, no time, best compression, unknown system.
const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2, 0xff];

fn main() -> io::Result<()> {
    let folder = Path::new("web");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", folder.display());
    let out = PathBuf::from(env::var("OUT_DIR").map_err(io::Error::other)?);
    for name in FILES {
        let text = match name.strip_suffix(".js") {
            Some(module) => joined(folder, module, &mut BTreeSet::new())?,
            None => fs::read_to_string(folder.join(name))?,
        };
        fs::write(out.join(format!("{name}.gz")), gzip(text.as_bytes()))?;
    }
    Ok(())
}

/// Returns the modules that a module imports, unless they are in `seen`, and then the module itself.
fn joined(folder: &Path, module: &str, seen: &mut BTreeSet<String>) -> io::Result<String> {
    if !seen.insert(module.to_string()) {
        return Ok(String::new());
    }
    let path = folder.join(format!("{module}.js"));
    let text = fs::read_to_string(&path)?;
    let (mut before, mut own, mut is_import) = (String::new(), String::new(), false);
    for line in text.lines() {
        is_import |= line.starts_with("import ");
        if !is_import {
            own += line.strip_prefix("export ").unwrap_or(line);
            own.push('\n');
        } else if let Some(statement) = line.strip_suffix(".js';") {
            let (_, imported) = statement.rsplit_once("'./").ok_or_else(|| {
                io::Error::other(format!("{}: this import cannot be joined: {line}", path.display()))
            })?;
            before += &joined(folder, imported, seen)?;
            is_import = false;
        }
    }
    Ok(before + &own)
}

/// Returns bytes in the format of gzip (RFC 1952).
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut file = GZIP_HEADER.to_vec();
    file.extend(compress_to_vec(bytes, LEVEL));
    file.extend(crc32fast::hash(bytes).to_le_bytes());
    file.extend((bytes.len() as u32).to_le_bytes());
    file
}
