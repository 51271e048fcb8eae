//! The links of the README, the changelog and the guide have valid targets, and the top folder has no unexpected entries.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::project;

const GUIDE: &str = "systemd/guide";
/// Allowed entries of the top folder, besides files whose names begin with a dot.
const TOP: &[&str] =
    &["Cargo.lock", "Cargo.toml", "LICENSE", "README.md", "boards", "cross.toml", "src", "systemd", "tests"];

/// Returns the README, the changelog and the guide.
fn texts() -> Vec<(PathBuf, String)> {
    let guide = fs::read_dir(project().join(GUIDE)).unwrap().map(|file| file.unwrap().path());
    let guide = guide.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let all: Vec<PathBuf> = ["README.md", "systemd/CHANGELOG.md"]
        .map(|name| project().join(name))
        .into_iter()
        .chain(guide)
        .collect();
    assert!(all.len() > 5, "the guide is there");
    all.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

/// Returns the anchors of the headings of a text.
fn anchors(text: &str) -> Vec<String> {
    let titles = text.lines().filter_map(|line| line.strip_prefix('#'));
    let name = |title: &str| {
        let kept = title.trim_start_matches('#').trim().to_lowercase();
        let kept = kept.chars().filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
        kept.map(|letter| if letter == ' ' { '-' } else { letter }).collect()
    };
    titles.map(name).collect()
}

/// Returns the targets of the local links of a text.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let ends = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    ends.map(|(link, _)| link).filter(|link| !link.contains("://"))
}

#[test]
fn every_link_has_a_valid_file_and_heading() {
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
fn the_readme_links_to_the_guide() {
    let readme = fs::read_to_string(project().join("README.md")).unwrap();
    assert!(links(&readme).any(|link| link.starts_with(GUIDE)));
}

#[test]
fn the_top_folder_has_no_unexpected_entries() {
    let listed =
        Command::new("git").arg("-C").arg(project()).args(["ls-files"]).output().expect("git is there");
    let files = String::from_utf8(listed.stdout).unwrap();
    for file in files.lines() {
        let top = file.split('/').next().unwrap();
        assert!(top.starts_with('.') || TOP.contains(&top), "{file}");
    }
}
