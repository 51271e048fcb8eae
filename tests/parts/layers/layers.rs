//! Holds the rooms of the house to their rule: dependencies point one way, and what is dangerous stands where it may.
//!
//! It is a package of its own, for it reads `src/` as text and links nothing of it. Comments and string literals are blanked first, so prose may name any room;
//! code under `#[cfg(test)]` may look anywhere. The rules are the tables at the top; each is tried on a bad
//! snippet at the bottom, so a checker that stopped seeing would fail too.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

mod allowed;
mod cycles;
mod docs;
mod lumps;
mod tables;
mod web;

use allowed::BARE_LOG_CALLS;

/// The ground floor: every room may look at these, and they see nothing above them.
const GROUND: &[&str] = &[
    "limits",
    "error",
    "time",
    "command",
    "mem",
    "journal",
    "password",
    "log_limiter",
    "flight",
    "small_file",
    "token_bucket",
    "fields",
];

/// What each room may see besides the ground floor and itself; `a::b` allows only that part of a room.
const SEES: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("limits", &[]),
    ("error", &[]),
    ("time", &[]),
    ("command", &[]),
    ("mem", &[]),
    ("journal", &[]),
    ("password", &[]),
    ("log_limiter", &[]),
    ("flight", &[]),
    ("small_file", &[]),
    ("token_bucket", &[]),
    ("fields", &[]),
    ("config", &[]),
    ("wire", &[]),
    ("session", &["wire"]),
    ("broker", &["wire::field", "wire::props", "wire::Writer", "wire::Full"]),
    ("store", &[]),
    ("restore", &["broker", "store"]),
    ("requests", &["broker", "wire::field", "wire::props", "wire::Writer", "wire::Full"]),
    ("tls", &["config"]),
    ("bridge", &["wire", "config"]),
    ("engine", &["wire", "session", "broker", "store", "restore", "requests", "config", "tls", "bridge"]),
    ("tool", EVERYONE),
    ("bench", &["wire", "config", "tool::options", "tool::json"]),
    ("host", EVERYONE),
    ("main", EVERYONE),
    ("lib", EVERYONE),
    ("program", EVERYONE),
];

/// Folders that hold rooms. Code names a room by its own name, wherever it is.
const PACKAGES: &[&str] = &["rooms/base/", "rooms/", "operator/"];

/// Rooms that are a package each: `crate` is the room itself there, with the rooms that it sees beside its files.
const OWN_PACKAGES: &[&str] = &[
    "tool", "wire", "session", "broker", "store", "restore", "fields", "config", "tls", "bridge", "requests",
    "engine",
];

/// Packages that a call up the stairs does not compile in, for these are all of ours that each depends on.
const DEPENDS_ON: &[(&str, &[&str])] = &[
    ("src/rooms/base", &[]),
    ("src/rooms/wire", &["leveret-base"]),
    ("src/rooms/session", &["leveret-base", "leveret-wire"]),
    ("src/rooms/broker", &["leveret-base", "leveret-wire"]),
    ("src/rooms/store", &["leveret-base"]),
    ("src/rooms/restore", &["leveret-base", "leveret-broker", "leveret-store"]),
    ("src/operator/fields", &[]),
    ("src/operator/config", &["leveret-base", "leveret-fields"]),
    ("src/operator/tls", &["leveret-base", "leveret-config"]),
    ("src/operator/bridge", &["leveret-base", "leveret-wire", "leveret-config"]),
    ("src/operator/requests", &["leveret-base", "leveret-wire", "leveret-broker", "leveret-fields"]),
    ("src/engine", BELOW_THE_ENGINE),
];

/// The packages of all floors below the loop.
const BELOW_THE_ENGINE: &[&str] = &[
    "leveret-base",
    "leveret-wire",
    "leveret-session",
    "leveret-broker",
    "leveret-store",
    "leveret-restore",
    "leveret-fields",
    "leveret-config",
    "leveret-tls",
    "leveret-bridge",
    "leveret-requests",
];

/// Marks a room that may see all others.
const EVERYONE: &[&str] = &["*"];

/// What begins a package or builds one, and is no room.
const NO_ROOMS: &[&str] = &["lib", "main", "program", "base"];

/// Rooms that are handed bytes and time, and never reach for them.
const CORE: &[&str] = &[
    "limits",
    "error",
    "time",
    "command",
    "mem",
    "journal",
    "password",
    "log_limiter",
    "flight",
    "small_file",
    "token_bucket",
    "fields",
    "wire",
    "session",
    "bridge",
    "broker",
    "store",
    "restore",
    "engine",
];

/// What a core room must not name.
const OUTSIDE_WORLD: &[&str] = &["std::net", "Instant::now", "SystemTime"];

/// Marks of unfinished work.
const UNFINISHED: &[&str] = &["todo!", "unimplemented!", "FIXME", "XXX"];

/// Rooms where peers are handled: what they cause is logged through the limiter.
const ROOMS_OF_PEERS: &[&str] =
    &["session", "broker", "restore", "host", "requests", "wire", "tls", "bridge", "engine"];

/// Calls that reach the log past the limiter. Debug and trace are the operator's own wish.
const BARE_LOG: &[&str] = &["log::error!", "log::warn!", "log::info!", "log::log!"];

/// Files that may have `unsafe` code.
const UNSAFE_FILES: &[&str] = &["rooms/base/mem/give_back.rs"];

/// The folder of the whole project.
fn project() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../.."))
}

#[test]
fn the_rooms_keep_their_rule() {
    let root = project();
    let sources = read_sources(&root.join("src"));
    assert!(sources.len() >= 3, "the checker found only {} files under src/", sources.len());
    let mut complaints = check_house(&sources);
    for (path, text) in read_sources(&root.join("tests")) {
        complaints.extend(check_opening(&format!("tests/{path}"), &text));
    }
    complaints.extend(check_map(&sources["lib.rs"]));
    for (package, most) in DEPENDS_ON {
        let text = fs::read_to_string(root.join(package).join("Cargo.toml")).expect("a package has one");
        complaints.extend(check_dependencies(package, &text, most));
    }
    complaints.extend(cycles::check(&sources));
    complaints.extend(lumps::check(&sources));
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

/// Packages of ours that one depends on, and may not.
fn check_dependencies(package: &str, manifest: &str, most: &[&str]) -> Vec<String> {
    // Tests may stand above what they test.
    let manifest = manifest.split("[dev-dependencies]").next().unwrap_or_default();
    let ours = manifest.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name.trim());
    let ours = ours.filter(|name| name.starts_with("leveret") && !most.contains(name));
    ours.map(|name| format!("{package}/Cargo.toml: it must not depend on {name}")).collect()
}

/// What the map in `lib.rs` says other than the table here.
fn check_map(lib: &str) -> Vec<String> {
    let rows = lib.lines().filter_map(|line| line.strip_prefix("//! | ")?.strip_suffix(" |"));
    let rows: Vec<Vec<&str>> = rows.map(|row| row.split(" | ").collect()).collect();
    let names_in = |cell: &str| -> Vec<String> {
        let quoted = cell.split('`').skip(1).step_by(2);
        quoted.map(str::to_string).collect()
    };
    let mut mapped = BTreeMap::new();
    for row in rows.iter().filter(|row| row.len() == 3 && row[0].contains('`')) {
        let seen = if row[2] == "everyone" { vec!["*".to_string()] } else { names_in(row[2]) };
        mapped.extend(names_in(row[0]).into_iter().map(|room| (room, seen.clone())));
    }
    let rooms = SEES.iter().filter(|(room, _)| !NO_ROOMS.contains(room));
    let enforced: BTreeMap<String, Vec<String>> = rooms
        .map(|(room, seen)| (room.to_string(), seen.iter().map(ToString::to_string).collect()))
        .collect();
    let differs = |room: &&String| mapped.get(*room) != enforced.get(*room);
    let rooms = mapped.keys().chain(enforced.keys().filter(|room| !mapped.contains_key(*room)));
    rooms
        .filter(differs)
        .map(|room| format!("lib.rs: its table says otherwise of {room} than the one that is enforced"))
        .collect()
}

/// All complaints about a set of files, given by path relative to `src/` and text.
fn check_house(sources: &BTreeMap<String, String>) -> Vec<String> {
    let mut complaints = Vec::new();
    let test_files = test_only_files(sources);
    for (path, text) in sources {
        let code = Code::of(text, test_files.iter().any(|prefix| is_within(path, prefix)));
        complaints.extend(check_opening(path, text));
        complaints.extend(check_words(path, text));
        complaints.extend(check_layers(path, &code, sources));
        complaints.extend(check_world(path, &code));
        complaints.extend(check_log_calls(path, &code));
        if !UNSAFE_FILES.contains(&path.as_str()) && code.words().any(|(_, word)| word == "unsafe") {
            complaints.push(format!("{path}: unsafe code, for which only {UNSAFE_FILES:?} are the place"));
        }
    }
    complaints
}

/// The opening of a file.
fn check_opening(path: &str, text: &str) -> Option<String> {
    (!text.starts_with("//!")).then(|| format!("{path}:1: a file opens with //! and why it exists"))
}

/// Marks of unfinished work, in code and in comments.
fn check_words(path: &str, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for word in UNFINISHED.iter().filter(|word| line.contains(**word)) {
            complaints.push(format!("{path}:{}: {word} marks unfinished work", number + 1));
        }
    }
    complaints
}

/// The paths that lead out of a room.
fn check_layers(path: &str, code: &Code, sources: &BTreeMap<String, String>) -> Vec<String> {
    let room = room_of(path);
    let Some((_, seen)) = SEES.iter().find(|(name, _)| *name == room) else {
        return vec![format!(
            "{path}: the room {room} has no line in the table of who sees whom (tests/parts/layers)"
        )];
    };
    if *seen == EVERYONE {
        return Vec::new();
    }
    let is_own_package = OWN_PACKAGES.contains(&room);
    let mut complaints = Vec::new();
    for (line, target) in code.paths_out(path) {
        let other = target.split("::").next().unwrap_or_default();
        // There the root has its own files beside the rooms that it sees.
        let folder = &path[..path.find(&format!("{room}/")).unwrap_or_default() + room.len()];
        let is_file =
            [".rs", "/mod.rs"].iter().any(|end| sources.contains_key(&format!("{folder}/{other}{end}")));
        let is_own_file = is_own_package && (is_file || SEES.iter().all(|(name, _)| *name != other));
        let allowed = other == room
            || is_own_file
            || GROUND.contains(&other)
            || seen.iter().any(|part| target == *part || target.starts_with(&format!("{part}::")));
        if !allowed {
            complaints.push(format!("{path}:{line}: {room} must not see {target}"));
        }
    }
    complaints
}

/// Clocks and sockets in rooms that are handed both.
fn check_world(path: &str, code: &Code) -> Vec<String> {
    if !CORE.contains(&room_of(path)) {
        return Vec::new();
    }
    let mut complaints = Vec::new();
    for name in OUTSIDE_WORLD {
        for at in code.find(name) {
            complaints
                .push(format!("{path}:{}: {name} in a room that is handed time and bytes", code.line_of(at)));
        }
    }
    complaints
}

/// Log calls past the limiter in rooms of peers: only in files where no peer can cause them.
fn check_log_calls(path: &str, code: &Code) -> Vec<String> {
    if !ROOMS_OF_PEERS.contains(&room_of(path)) || BARE_LOG_CALLS.iter().any(|(file, _)| *file == path) {
        return Vec::new();
    }
    let imports = code.find("use log::").into_iter().map(|at| (at, "an import of log calls"));
    let calls =
        BARE_LOG.iter().flat_map(|call| code.find(call)).map(|at| (at, "a log call past the limiter"));
    let told = |(at, what): (usize, &str)| {
        let line = code.line_of(at);
        format!(
            "{path}:{line}: {what}; what a peer causes goes through log_limiter (tests/parts/layers/allowed.rs)"
        )
    };
    imports.chain(calls).map(told).collect()
}

/// The path without the folder of its package; what begins the ground floor is `base/mod.rs`.
fn in_package(path: &str) -> &str {
    let inside = |folder: &&str| path.strip_prefix(*folder).filter(|inside| *inside != "mod.rs");
    PACKAGES.iter().find_map(inside).unwrap_or(path)
}

/// The room a file belongs to: its folder under `src/` or in a package there, or its own name at the top.
fn room_of(path: &str) -> &str {
    in_package(path).split('/').next().unwrap_or(path).trim_end_matches(".rs")
}

/// Whether `path` is the module `prefix` (a path without `.rs`) or lies inside it.
fn is_within(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

/// The modules declared as `#[cfg(test)] mod name;`, as paths without `.rs`.
fn test_only_files(sources: &BTreeMap<String, String>) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in sources {
        let code = blank(text);
        for (at, _) in code.match_indices("#[cfg(test)]") {
            let rest = code[at + "#[cfg(test)]".len()..].trim_start();
            let rest = rest.strip_prefix("pub(crate) ").or_else(|| rest.strip_prefix("pub ")).unwrap_or(rest);
            let Some((name, _)) = rest.strip_prefix("mod ").and_then(|rest| rest.split_once(';')) else {
                continue;
            };
            if name.chars().all(|letter| letter.is_alphanumeric() || letter == '_') {
                found.push(format!("{}{name}", folder_of_children(path)));
            }
        }
    }
    found
}

/// The folder in which a file's child modules lie, with its slash; empty for the top.
fn folder_of_children(path: &str) -> String {
    match path {
        "lib.rs" | "main.rs" => String::new(),
        _ if path.ends_with("/mod.rs") => path.trim_end_matches("mod.rs").to_string(),
        _ => format!("{}/", path.trim_end_matches(".rs")),
    }
}

/// The text of a file without comments, literals and test code; every byte keeps its place.
struct Code {
    text: String,
}

impl Code {
    fn of(source: &str, is_test: bool) -> Self {
        let mut text = blank(source);
        if is_test {
            text = spaces(&text);
        }
        while let Some(at) = text.find("#[cfg(test)]") {
            let end = end_of_item(&text, at);
            let blanked = spaces(&text[at..end]);
            text.replace_range(at..end, &blanked);
        }
        Self { text }
    }

    fn line_of(&self, at: usize) -> usize {
        self.text.as_bytes()[..at.min(self.text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
    }

    fn find(&self, what: &str) -> Vec<usize> {
        self.text.match_indices(what).map(|(at, _)| at).collect()
    }

    /// Every word with its place.
    fn words(&self) -> impl Iterator<Item = (usize, &str)> {
        let is_word = |letter: char| letter.is_alphanumeric() || letter == '_';
        self.text.split(move |letter| !is_word(letter)).filter(|word| !word.is_empty()).map(|word| {
            let at = word.as_ptr() as usize - self.text.as_ptr() as usize;
            (at, word)
        })
    }

    /// Every path from the crate's root, with its line: `wire::frame` for `crate::wire::frame`.
    fn paths_out(&self, path: &str) -> Vec<(usize, String)> {
        let path = in_package(path);
        let is_room_root = !path.contains('/') || path.ends_with("/mod.rs");
        let roots: &[&str] = if is_room_root { &["crate", "super"] } else { &["crate", "super::super"] };
        let mut found = Vec::new();
        for root in roots {
            for at in self.find(root) {
                let before = self.text[..at].chars().next_back().unwrap_or(' ');
                let Some(rest) = self.text[at + root.len()..].trim_start().strip_prefix("::") else {
                    continue;
                };
                if before.is_alphanumeric() || before == '_' || before == ':' {
                    continue;
                }
                let line = self.line_of(at);
                found.extend(expand(rest.trim_start()).into_iter().map(|target| (line, target)));
            }
        }
        // A room that is a package, by the name of that.
        for (at, word) in self.words() {
            let Some(room) = word.strip_prefix("leveret_").filter(|room| OWN_PACKAGES.contains(room)) else {
                continue;
            };
            let rest = self.text[at + word.len()..].trim_start().strip_prefix("::");
            let targets = rest.map(|rest| expand(rest.trim_start())).unwrap_or_default();
            let line = self.line_of(at);
            found.extend(targets.into_iter().map(|target| (line, format!("{room}::{target}"))));
        }
        found
    }
}

/// The paths at the start of `text`, groups taken apart: `{a::b, c}` gives `a::b` and `c`.
fn expand(text: &str) -> Vec<String> {
    let end_of_word =
        text.find(|letter: char| !letter.is_alphanumeric() && letter != '_').unwrap_or(text.len());
    if let Some(group) = text.strip_prefix('{') {
        let inside = &group[..closing_brace(text, 0).saturating_sub(1).min(group.len())];
        return split_at_top(inside).iter().flat_map(|part| expand(part.trim())).collect();
    }
    let word = &text[..end_of_word];
    if word.is_empty() {
        return Vec::new();
    }
    match text[end_of_word..].trim_start().strip_prefix("::") {
        Some(rest) => {
            let deeper = expand(rest.trim_start());
            if deeper.is_empty() {
                return vec![word.to_string()];
            }
            deeper.into_iter().map(|path| format!("{word}::{path}")).collect()
        }
        None => vec![word.to_string()],
    }
}

/// Splits at the commas that are inside no braces.
fn split_at_top(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, letter) in text.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// The place of the brace that closes the one at `open`.
fn closing_brace(text: &str, open: usize) -> usize {
    let mut depth = 0;
    for (at, letter) in text[open..].char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 1 => return open + at,
            '}' => depth -= 1,
            _ => {}
        }
    }
    text.len()
}

/// The end of the item that starts at `at`: its closing brace, or its semicolon.
fn end_of_item(text: &str, at: usize) -> usize {
    let Some(found) = text[at..].find(['{', ';']) else {
        return text.len();
    };
    let open = at + found;
    let end = if text.as_bytes()[open] == b';' { open } else { closing_brace(text, open) };
    (end + 1).min(text.len())
}

/// As many blanks as `text` has bytes, its line ends kept.
fn spaces(text: &str) -> String {
    text.bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' }).collect()
}

/// The text with comments and literals replaced by blanks, byte for byte.
fn blank(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(letter) = rest.chars().next() {
        let previous = out.chars().next_back().unwrap_or(' ');
        let in_word = previous.is_alphanumeric() || previous == '_';
        let literal = match letter {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |at| at + 2),
            '"' => string_length(rest),
            'r' if !in_word || previous == 'b' => raw_string_length(rest),
            '\'' => char_length(rest),
            _ => 0,
        };
        let taken = if literal > 0 { literal } else { letter.len_utf8() };
        if literal > 0 || !letter.is_ascii() {
            out.push_str(&spaces(&rest[..taken]));
        } else {
            out.push(letter);
        }
        rest = &rest[taken..];
    }
    out
}

/// The length of the string literal at the start of `text`.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, letter) in text.char_indices().skip(1) {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of the raw string at the start of `text`; 0 when it is none.
fn raw_string_length(text: &str) -> usize {
    let hashes = text[1..].bytes().take_while(|byte| *byte == b'#').count();
    if !text[1 + hashes..].starts_with('"') {
        return 0;
    }
    let body = 2 + hashes;
    let close = format!("\"{}", "#".repeat(hashes));
    text[body..].find(&close).map_or(text.len(), |at| body + at + close.len())
}

/// The length of the character literal at the start of `text`; 0 when it is a lifetime.
fn char_length(text: &str) -> usize {
    let mut letters = text.char_indices().skip(1);
    match letters.next() {
        Some((_, '\\')) => {
            text[2..].char_indices().skip(1).find(|(_, l)| *l == '\'').map_or(0, |(at, _)| at + 3)
        }
        Some(_) => letters.next().filter(|(_, letter)| *letter == '\'').map_or(0, |(at, _)| at + 1),
        None => 0,
    }
}

/// Every Rust file under `folder`, by its path relative to it; programs of their own (fuzzing) left out.
fn read_sources(folder: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders: Vec<PathBuf> = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        let manifest = fs::read_to_string(next.join("Cargo.toml")).unwrap_or_default();
        if manifest.lines().any(|line| line == "[workspace]") {
            continue;
        }
        for entry in fs::read_dir(&next).expect("src/ and tests/ can be read") {
            let path = entry.expect("src/ and tests/ can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(folder).expect("it lies below").to_string_lossy().into_owned();
                found.insert(name, fs::read_to_string(&path).expect("source files are UTF-8"));
            }
        }
    }
    found
}

mod the_checker_sees {
    use super::*;

    /// The complaints about one file; the opening is added.
    fn complaints(path: &str, text: &str) -> Vec<String> {
        let text = format!("//! Why.\n{text}");
        check_house(&BTreeMap::from([(path.to_string(), text)]))
    }

    #[track_caller]
    fn complains(path: &str, text: &str, about: &str) {
        let found = complaints(path, text);
        assert!(found.iter().any(|line| line.contains(about)), "{found:?} does not complain of {about:?}");
    }

    #[track_caller]
    fn is_content(path: &str, text: &str) {
        assert_eq!(complaints(path, text), Vec::<String>::new());
    }

    #[test]
    fn a_package_that_depends_on_one_above_it() {
        let manifest = "[dependencies]\nleveret-base = { path = \"../base\" }\nlog = \"0.4\"\n";
        assert!(check_dependencies("store", manifest, &["leveret-base"]).is_empty());
        assert_eq!(check_dependencies("base", manifest, &[]).len(), 1);
        let tested = "[dependencies]\n[dev-dependencies]\nleveret-store = { path = \"../store\" }\n";
        assert!(check_dependencies("broker", tested, &[]).is_empty(), "its tests are not the package");
    }

    #[test]
    fn a_path_up_the_stairs() {
        complains(
            "wire/frame.rs",
            "use crate::broker::Queue;",
            "wire/frame.rs:2: wire must not see broker::Queue",
        );
        complains("broker/queue.rs", "fn f() { crate::host::turn() }", "broker must not see host::turn");
        complains("broker/queue.rs", "use crate::wire::frame::Frame;", "must not see wire::frame::Frame");
        complains(
            "broker/queue.rs",
            "use crate::{\n    mem::Slab,\n    wire::{props, frame},\n};",
            "wire::frame",
        );
        complains("session/mod.rs", "use super::broker;", "session must not see broker");
        complains("session/disk.rs", "use super::super::broker;", "session must not see broker");
        complains("time.rs", "use crate::session;", "time must not see session");
        complains(
            "rooms/base/time.rs",
            "use super::session;",
            "rooms/base/time.rs:2: time must not see session",
        );
        complains("rooms/broker/queue.rs", "use crate::store::Log;", "broker must not see store::Log");
        complains("rooms/session/input.rs", "use crate::store::Log;", "session must not see store::Log");
        complains("rooms/session/input.rs", "use leveret_store::Log;", "session must not see store::Log");
        complains("operator/attic/mod.rs", "", "attic has no line");
        complains("attic/mod.rs", "", "attic has no line");
    }

    #[test]
    fn but_not_a_path_down_nor_prose_nor_tests() {
        is_content(
            "broker/queue.rs",
            "use crate::{mem::Slab, wire::props::Props, time};\nuse super::deliver;",
        );
        is_content("wire/frame.rs", "/// See [`crate::broker`].\nconst A: &str = \"crate::broker\";");
        is_content("wire/frame.rs", "#[cfg(test)]\nmod tests {\n    use crate::host::World;\n}");
        is_content("host/turn.rs", "use crate::{broker, session, store};");
        is_content("rooms/session/input.rs", "use crate::pending::Pending;\nuse leveret_wire::Method;");
        is_content("rooms/broker/queue.rs", "use super::deliver;\nuse crate::mem::Slab;");
        is_content("wire/props.rs", "fn f(c: char) -> bool { c == '\"' } // crate::broker \"");
    }

    #[test]
    fn a_module_that_only_tests_have() {
        let files = BTreeMap::from([
            ("wire/mod.rs".to_string(), "//! W.\n#[cfg(test)]\nmod tries;\n".to_string()),
            ("wire/tries.rs".to_string(), "//! T.\nuse crate::broker;\nfn f() { g().unwrap() }".to_string()),
        ]);
        assert_eq!(check_house(&files), Vec::<String>::new());
    }

    #[test]
    fn clocks_and_unsafe() {
        complains("session/heartbeat.rs", "use std::net::TcpStream;", "std::net");
        complains("broker/queue.rs", "fn f() { std::time::Instant::now(); }", "Instant::now");
        is_content("host/turn.rs", "fn f() { std::time::Instant::now(); }");
        complains("host/b.rs", "unsafe fn f() {}", "unsafe code");
        is_content("rooms/base/mem/give_back.rs", "unsafe fn f() {}");
        is_content("host/b.rs", "#![deny(unsafe_code)] // unsafe");
        assert!(check_opening("mem/slab.rs", "use a;").is_some());
    }

    #[test]
    fn a_map_that_is_not_the_table() {
        let lib = fs::read_to_string(project().join("src/lib.rs")).unwrap();
        assert_eq!(check_map(&lib), Vec::<String>::new());
        let says = |lib: &str, room: &str| check_map(lib).iter().any(|line| line.contains(room));
        assert!(says(
            &lib.replace("without its socket | `wire` |", "without its socket | nothing |"),
            "session"
        ));
        assert!(says(&lib.replace("[`tls`]", "[tls]"), "tls"));
        assert!(says(&format!("{lib}\n//! | `attic` | what is left | nothing |"), "attic"));
    }

    #[test]
    fn log_calls_past_the_limiter() {
        let complaint = "a log call past the limiter";
        complains("session/timers.rs", "fn f() { log::warn!(\"{}\", self.id) }", complaint);
        complains("broker/route.rs", "fn f() { log::log!(level, \"again\") }", complaint);
        complains("host/gate.rs", "use log::warn;", "an import of log calls");
        is_content("host/start.rs", "fn f() { log::info!(\"x\") }");
        is_content("session/timers.rs", "fn f() { log::debug!(\"{}\", self.id) }");
        is_content("tool/check.rs", "fn f() { log::warn!(\"x\") }");
    }

    #[test]
    fn unfinished_work() {
        for word in UNFINISHED {
            complains("mem/slab.rs", &format!("// {word}"), "unfinished work");
        }
    }
}
