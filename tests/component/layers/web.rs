//! The web page in the binary equals its sources, and stays small for metered links.

use std::fs;
use std::process::Command;

use super::project;

/// Maximum size of all files of the page together, compressed, in bytes.
const BYTES_MAX: u64 = 60_000;
/// Maximum number of files of the page: each needs a request before the page is shown.
const FILES_MAX: usize = 6;
/// Entries of the folder that are not part of the page.
const TOOLS: &[&str] = &["compress"];

#[test]
fn the_embedded_page_equals_its_sources_and_stays_small() {
    let root = project();
    let folder = root.join("src/management/web");
    let table = fs::read_to_string(root.join("src/management/web_page.rs")).unwrap();
    let names = fs::read_dir(&folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let (packed, sources): (Vec<String>, Vec<String>) =
        names.filter(|name| !TOOLS.contains(&name.as_str())).partition(|name| name.ends_with(".gz"));
    assert_eq!(packed.len(), sources.len(), "each has its compressed file: run src/management/web/compress");
    assert!(sources.len() <= FILES_MAX, "{sources:?}");
    let mut bytes = 0;
    for name in &sources {
        let compressed = folder.join(format!("{name}.gz"));
        let source = fs::read(folder.join(name)).unwrap();
        let read_back = Command::new("gzip").args(["--decompress", "--stdout"]).arg(&compressed).output();
        let is_same = read_back.expect("gzip is there").stdout == source;
        assert!(
            is_same,
            "src/management/web/{name}.gz is of another {name}: run src/management/web/compress"
        );
        assert!(table.contains(&format!("web/{name}.gz")), "{name} is not embedded");
        bytes += fs::metadata(&compressed).unwrap().len();
    }
    assert!(bytes <= BYTES_MAX, "{bytes} bytes compressed");
}
