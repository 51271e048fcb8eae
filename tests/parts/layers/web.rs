//! The web page that the binary carries is the one whose sources lie beside it, and stays small for a metered link.

use std::fs;
use std::process::Command;

use super::project;

/// All files of the page together, compressed, in bytes.
const BYTES_MAX: u64 = 60_000;
/// Files of the page: each is a request before anybody sees anything.
const FILES_MAX: usize = 6;
/// What lies there and is no file of the page.
const TOOLS: &[&str] = &["compress"];

#[test]
fn what_is_embedded_is_what_lies_beside_it_and_stays_small() {
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
