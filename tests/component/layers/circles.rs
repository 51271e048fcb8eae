//! Files of a package that depend on each other in a circle.
//!
//! The graph has an edge from a file to each file whose items it imports with `use`. A name that a `mod.rs` or `lib.rs`
//! passes on with `pub use` belongs to the file that has it. Methods are not followed: a file may call a method of a type
//! without importing anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::{project, rust_files};

/// The packages of the broker, and the most files in one circle. In `broker`, the files with methods of `Broker` also have
/// the types of its fields.
const CIRCLES_MAX: [(&str, usize); 3] = [("routing", 3), ("queues", 3), ("broker", 11)];

/// The sources of a package by module path, `a::b`; the root is empty.
type Sources = BTreeMap<String, String>;

fn sources_of(package: &str) -> Sources {
    let folder = project().join("src").join(package);
    let module_of = |path: &std::path::Path| {
        let name = path.strip_prefix(&folder).expect("it lies below").with_extension("");
        let mut parts: Vec<String> = name.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        parts.pop_if(|last| ["lib", "mod"].contains(&last.as_str()));
        parts.join("::")
    };
    let files = rust_files(&folder).into_iter().filter(|path| !path.ends_with("tests.rs"));
    files.map(|path| (module_of(&path), fs::read_to_string(&path).expect("UTF-8"))).collect()
}

/// Returns the paths that the text imports, and whether each is passed on with `pub`. Tests are left out.
fn imports(text: &str) -> Vec<(bool, String)> {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let code: String =
        code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    for statement in code.split(';') {
        let statement = statement.trim_start_matches(|letter| letter != '\n').trim();
        let statement = statement.rsplit("]\n").next().unwrap_or_default();
        let (visibility, path) = match statement.split_once("use ") {
            Some((visibility, path)) if visibility.is_empty() || visibility.starts_with("pub") => {
                (visibility, path)
            }
            _ => continue,
        };
        for path in expanded(&path.split_whitespace().collect::<String>()) {
            found.push((!visibility.is_empty(), path));
        }
    }
    found
}

/// Returns the single paths of a path with braces: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expanded(path: &str) -> Vec<String> {
    let Some((head, rest)) = path.split_once("::{") else { return vec![path.to_string()] };
    let (mut depth, mut item, mut paths) = (0, String::new(), Vec::new());
    for letter in rest.trim_end_matches('}').chars().chain([',']) {
        match letter {
            ',' if depth == 0 => {
                let item = std::mem::take(&mut item);
                paths.extend(expanded(&item).into_iter().map(|item| format!("{head}::{item}")));
                continue;
            }
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        item.push(letter);
    }
    paths.retain(|path| !path.ends_with("::"));
    paths
}

/// Returns the module that has the item of a path, seen from `module`; `None` for an item of another package.
fn owner(sources: &Sources, module: &str, path: &str, depth: u32) -> Option<String> {
    let mut at: Vec<&str> = module.split("::").filter(|part| !part.is_empty()).collect();
    let mut parts = path.split("::").peekable();
    match *parts.peek()? {
        "crate" => at.clear(),
        "super" => {}
        first => {
            let own = [&at[..], &[first]].concat().join("::");
            if !sources.contains_key(&own) {
                return None;
            }
        }
    }
    while let Some(part) = parts.next_if(|part| ["crate", "super"].contains(part)) {
        if part == "super" {
            at.pop();
        }
    }
    while let Some(part) = parts.peek() {
        let below = [&at[..], &[*part]].concat();
        if !sources.contains_key(&below.join("::")) {
            break;
        }
        at = below;
        parts.next();
    }
    let found = at.join("::");
    let item = parts.next()?;
    let passed_on = imports(&sources[&found]).into_iter().filter(|(is_public, _)| *is_public);
    let source = passed_on.map(|(_, path)| path).find(|path| path.rsplit("::").next() == Some(item));
    let of_source = source.filter(|_| depth < 4).and_then(|path| owner(sources, &found, &path, depth + 1));
    Some(of_source.unwrap_or(found))
}

/// Returns the modules that each module imports from.
fn graph(sources: &Sources) -> BTreeMap<String, BTreeSet<String>> {
    let edges = |(module, text): (&String, &String)| {
        let private = imports(text).into_iter().filter(|(is_public, _)| !is_public);
        let owners = private.filter_map(|(_, path)| owner(sources, module, &path, 0));
        (module.clone(), owners.filter(|other| other != module).collect())
    };
    sources.iter().map(edges).collect()
}

/// Returns the modules of the largest circle: each can be reached from each other.
fn largest_circle(graph: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<&str> {
    let reached = |from: &str| {
        let (mut found, mut to_visit) = (BTreeSet::new(), vec![from]);
        while let Some(module) = to_visit.pop() {
            for next in graph.get(module).into_iter().flatten() {
                if found.insert(next.as_str()) {
                    to_visit.push(next);
                }
            }
        }
        found
    };
    let all: BTreeMap<&str, BTreeSet<&str>> =
        graph.keys().map(|module| (module.as_str(), reached(module))).collect();
    let circle_of = |module: &&str| -> BTreeSet<&str> {
        let others = all[module].iter().copied();
        others.filter(|other| all.get(other).is_some_and(|back| back.contains(module))).collect()
    };
    all.keys().map(circle_of).max_by_key(BTreeSet::len).unwrap_or_default()
}

#[test]
fn circles_of_files_do_not_grow() {
    for (package, max) in CIRCLES_MAX {
        let sources = sources_of(package);
        let graph = graph(&sources);
        assert!(graph.values().map(BTreeSet::len).sum::<usize>() > 1, "{package}: no imports were found");
        let circle = largest_circle(&graph);
        let size = circle.len();
        assert!(size <= max, "{package}: {size} files depend on each other, {max} may: {circle:?}");
        assert!(size == max, "{package}: {size} files depend on each other: lower the {max} in CIRCLES_MAX");
    }
}

#[test]
fn a_circle_is_found_behind_a_name_that_is_passed_on() {
    let text = |text: &str| text.to_string();
    let sources = Sources::from([
        (text(""), text("mod a;\nmod b;\n\npub use a::{A, Other};\n")),
        (text("a"), text("use core::fmt;\n\nuse super::b::{self, c::C};\n\npub struct A;\n")),
        (
            text("b"),
            text("//! Uses `crate::A`;\n\nmod c;\n#[cfg(test)]\nmod tests {\n    use crate::A;\n}\n"),
        ),
        (text("b::c"), text("#![allow(x)]\n\nuse crate::A;\n\npub struct C;\n")),
    ]);
    let graph = graph(&sources);
    assert_eq!(Vec::from_iter(&graph["a"]), ["b", "b::c"]);
    assert_eq!(Vec::from_iter(largest_circle(&graph)), ["a", "b::c"]);
}
