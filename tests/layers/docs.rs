//! The README is short, its links and those of the guide lead somewhere, and nothing new stands at the top.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A newcomer reads it once.
const README_LINES_MAX: usize = 250;
const COLUMNS_MAX: usize = 120;
const GUIDE: &str = "systemd/packages/guide";
/// What may stand at the top, besides files whose names begin with a dot.
const TOP: &[&str] =
    &["Cargo.lock", "Cargo.toml", "LICENSE", "README.md", "boards", "cross.toml", "src", "systemd", "tests"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The README and the guide.
fn texts() -> Vec<(PathBuf, String)> {
    let guide = fs::read_dir(root().join(GUIDE)).unwrap().map(|file| file.unwrap().path());
    let all: Vec<PathBuf> = [root().join("README.md")].into_iter().chain(guide).collect();
    assert!(all.len() > 5, "the guide is there");
    all.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

/// The part of a link to a heading that names it.
fn anchors(text: &str) -> Vec<String> {
    let titles = text.lines().filter_map(|line| line.strip_prefix('#'));
    let name = |title: &str| {
        let kept = title.trim_start_matches('#').trim().to_lowercase();
        let kept = kept.chars().filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
        kept.map(|letter| if letter == ' ' { '-' } else { letter }).collect()
    };
    titles.map(name).collect()
}

/// Where the links of a text lead that are not of the network.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let ends = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    ends.map(|(link, _)| link).filter(|link| !link.contains("://"))
}

#[test]
fn every_link_leads_to_a_file_and_its_heading() {
    for (path, text) in texts() {
        for link in links(&text) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: {link} leads nowhere", path.display());
            if !anchor.is_empty() {
                let there = anchors(&fs::read_to_string(&target).unwrap());
                assert!(there.iter().any(|other| other == anchor), "{}: {link}: {there:?}", path.display());
            }
        }
    }
}

#[test]
fn the_readme_is_read_in_one_go() {
    for (path, text) in texts() {
        let is_readme = path.ends_with("README.md");
        assert!(!is_readme || text.lines().count() < README_LINES_MAX, "{} lines", text.lines().count());
        let is_wide = |line: &&str| line.chars().count() > COLUMNS_MAX && !line.starts_with('|');
        assert_eq!(text.lines().find(is_wide), None, "{}", path.display());
        assert!(!is_readme || links(&text).any(|link| link.starts_with(GUIDE)), "it leads to the guide");
    }
}

#[test]
fn nothing_new_stands_at_the_top() {
    let listed = Command::new("git").arg("-C").arg(root()).args(["ls-files"]).output().expect("git is there");
    let files = String::from_utf8(listed.stdout).unwrap();
    for file in files.lines() {
        let top = file.split('/').next().unwrap();
        assert!(top.starts_with('.') || TOP.contains(&top), "{file}");
    }
}
