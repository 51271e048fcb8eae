//! No file needs one that needs it: whoever reads one reads it without what stands above it.
//!
//! What a file needs is what the paths in its code lead to: from the crate's root, from the folder above, or
//! into its own children; a name that a file only passes on counts as the file's where it stands. So a
//! `mod.rs` that passes names on is no reason for a circle, and one that its children need things of is.
//! Methods are not followed: which file has the one that a call means, the text alone does not say.

use std::collections::{BTreeMap, BTreeSet};

use super::{Code, OWN_PACKAGES, expand, folder_of_children, in_package, is_within, test_only_files};

/// Every circle of files that need each other.
pub(super) fn check(sources: &BTreeMap<String, String>) -> Vec<String> {
    let told = |cycle: BTreeSet<String>| {
        let files: Vec<String> = cycle.into_iter().collect();
        format!("{}: in a circle of files that need each other: {}", files[0], files.join(", "))
    };
    cycles(&needs(sources)).into_iter().map(told).collect()
}

/// Which files each file needs.
fn needs(sources: &BTreeMap<String, String>) -> BTreeMap<String, BTreeSet<String>> {
    let test_files = test_only_files(sources);
    let codes: BTreeMap<&String, Code> = sources
        .iter()
        .filter(|(path, _)| !test_files.iter().any(|prefix| is_within(path, prefix)))
        .map(|(path, text)| (path, Code::of(text, false)))
        .collect();
    let modules: Modules<'_> = codes.keys().map(|path| (module_of(path), path.as_str())).collect();
    let paths: BTreeMap<&str, Vec<Found>> =
        codes.iter().map(|(path, code)| (path.as_str(), paths_in(path, code, &modules))).collect();
    let needed = |path: &&String| {
        let targets = paths[path.as_str()].iter().filter_map(|found| resolve(&modules, &paths, &found.path));
        targets.filter(|target| target != path).map(ToString::to_string).collect()
    };
    codes.keys().map(|path| (path.to_string(), needed(path))).collect()
}

/// Files by the modules that they are.
type Modules<'m> = BTreeMap<Vec<String>, &'m str>;

/// A path from the crate's root that a file has in its code.
struct Found {
    path: Vec<String>,
    /// The file passes the name on.
    is_passed_on: bool,
}

/// The module that a file is: `broker::queue` for `rooms/broker/queue.rs`.
fn module_of(path: &str) -> Vec<String> {
    let folder = folder_of_children(in_package(path));
    folder.split('/').filter(|part| !part.is_empty()).map(ToString::to_string).collect()
}

/// Every path in a file, from the crate's root.
fn paths_in(path: &str, code: &Code, modules: &Modules<'_>) -> Vec<Found> {
    let module = module_of(path);
    let mut found = Vec::new();
    for (at, word) in code.words() {
        let before = code.text[..at].trim_end();
        let Some(rest) = code.text[at + word.len()..].trim_start().strip_prefix("::") else { continue };
        // The rest of a path; and whom something is shown to.
        if before.ends_with("::") || before.ends_with("(in") {
            continue;
        }
        let mut child = module.clone();
        child.push(word.to_string());
        let (mut base, mut rest) = match word {
            "crate" => (Vec::new(), rest),
            "self" => (module.clone(), rest),
            "super" => (module[..module.len().saturating_sub(1)].to_vec(), rest),
            _ if modules.contains_key(&child) => (child, rest),
            _ => continue,
        };
        while let Some(above) = rest.trim_start().strip_prefix("super::") {
            base.pop();
            rest = above;
        }
        let statement = before.rsplit([';', '}']).next().unwrap_or_default().trim();
        let is_passed_on = statement.starts_with("pub") && statement.ends_with("use");
        for target in expand(rest.trim_start()) {
            let mut path = if word == "crate" { crate_of(&module, &target, modules) } else { base.clone() };
            path.extend(target.split("::").map(ToString::to_string));
            found.push(Found { path, is_passed_on });
        }
    }
    found
}

/// What `crate` stands for ahead of `target`: a room that is a package of its own has the rooms that it sees under
/// their names beside its own files.
fn crate_of(module: &[String], target: &str, modules: &Modules<'_>) -> Vec<String> {
    let Some(room) = module.first().filter(|room| OWN_PACKAGES.contains(&room.as_str())) else {
        return Vec::new();
    };
    let first = target.split("::").next().unwrap_or_default();
    let own = vec![room.clone(), first.to_string()];
    if modules.contains_key(&own) { own[..1].to_vec() } else { Vec::new() }
}

/// The file in which what a path names stands.
fn resolve<'m>(
    modules: &Modules<'m>,
    paths: &BTreeMap<&str, Vec<Found>>,
    path: &[String],
) -> Option<&'m str> {
    let mut module: Vec<String> = Vec::new();
    for name in path {
        let file = *modules.get(&module)?;
        module.push(name.clone());
        if modules.contains_key(&module) {
            continue;
        }
        let passed_on =
            paths[file].iter().find(|found| found.is_passed_on && found.path.last() == Some(name));
        // A name that its file passes on to itself would never end.
        return match passed_on.filter(|found| found.path != path) {
            Some(found) => resolve(modules, paths, &found.path),
            None => Some(file),
        };
    }
    modules.get(&module).copied()
}

/// The circles: files each of which is reached from each other.
fn cycles(needs: &BTreeMap<String, BTreeSet<String>>) -> Vec<BTreeSet<String>> {
    let reached = |from: &String| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(file) = next.pop() {
            next.extend(needs[file].iter().filter(|other| seen.insert((*other).clone())));
        }
        seen
    };
    let reached: BTreeMap<&String, BTreeSet<String>> =
        needs.keys().map(|file| (file, reached(file))).collect();
    let mut cycles: Vec<BTreeSet<String>> = Vec::new();
    for (file, from_it) in &reached {
        if from_it.contains(*file) && !cycles.iter().any(|cycle| cycle.contains(*file)) {
            cycles.push(from_it.iter().filter(|other| reached[other].contains(*file)).cloned().collect());
        }
    }
    cycles
}

mod the_checker_sees {
    use super::*;

    fn circles(files: &[(&str, &str)]) -> Vec<String> {
        let root = ("lib.rs", "mod a;");
        let sources = files.iter().chain([&root]).map(|(path, text)| (path.to_string(), text.to_string()));
        check(&sources.collect())
    }

    #[test]
    fn two_that_need_each_other_whichever_way_they_say_so() {
        for (one, two) in [
            ("use super::two::Two;", "use super::one::One;"),
            ("use crate::a::two::Two;", "fn f() -> super::one::One {}"),
            ("use super::{Two, three};", "fn f() { crate::a::one::f() }"),
        ] {
            let found = circles(&[
                ("a/mod.rs", "mod one;\nmod two;\nmod three;\npub use two::{Two, Other};"),
                ("a/one.rs", one),
                ("a/two.rs", two),
                ("a/three.rs", ""),
            ]);
            assert_eq!(found.len(), 1, "{one} {two}: {found:?}");
            assert!(found[0].contains("a/one.rs, a/two.rs"), "{found:?}");
        }
    }

    #[test]
    fn a_folder_and_what_is_in_it() {
        let found =
            circles(&[("a/mod.rs", "mod one;\nuse one::One;\nstruct All;"), ("a/one.rs", "use super::All;")]);
        assert_eq!(found, ["a/mod.rs: in a circle of files that need each other: a/mod.rs, a/one.rs"]);
        let passes_on = circles(&[
            ("a/mod.rs", "mod all;\nmod one;\npub use all::All;\npub use one::One;"),
            ("a/all.rs", "pub struct All;"),
            ("a/one.rs", "use super::All;\npub(in crate::a) fn f() {}"),
        ]);
        assert_eq!(passes_on, [""; 0]);
    }

    #[test]
    fn long_ways_round_and_the_ground_floor() {
        let found = circles(&[
            ("a.rs", "use crate::b::B;"),
            ("b.rs", "use crate::c::{self, C};"),
            ("c.rs", "use crate::a;\nfn f() -> a::A {}"),
            ("d.rs", "use crate::{a, b, c};"),
        ]);
        assert_eq!(found, ["a.rs: in a circle of files that need each other: a.rs, b.rs, c.rs"]);
        let apart = [
            ("rooms/a.rs", "use crate::b::B;"),
            ("rooms/b/mod.rs", "mod c;\npub use c::B;"),
            ("rooms/b/c.rs", "fn f() -> crate::a::A {}"),
        ];
        assert!(circles(&apart)[0].contains("rooms/a.rs, rooms/b/c.rs"), "packages are no wall");
        let tests =
            [("a.rs", "use crate::b::B;"), ("b.rs", "#[cfg(test)]\nmod t {\n    use crate::a::A;\n}")];
        assert_eq!(circles(&tests), [""; 0]);
    }
}
