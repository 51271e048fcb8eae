//! Rules of the sources that Cargo does not check, and the links of the README and the guide.
//!
//! - A package depends only on the packages that `DEPENDS_ON` lists for it.
//! - A package implements a trait of a package that it depends on only if the trait is in `UPWARD_TRAITS`. So a package
//!   calls one that depends on it only through these.
//! - In the packages of the broker, few files depend on each other in a circle (`CIRCLES_MAX`).
//! - No function takes more than five values (`signatures`).
//! - `unsafe` is used in one file only.
//! - The packages in `WITHOUT_CLOCK` neither read a clock nor open a socket; they receive time and bytes.
//! - Log lines that a peer can cause go through the limiter.
//!
//! The module `statements` checks the table of the statements of the MQTT specifications.
//!
//! The sources are read as text, without comments and without the tests at the end of a file.

use std::fs;
use std::path::{Path, PathBuf};

mod circles;
mod docs;
mod signatures;
mod statements;

/// Each package up to `server`, and all packages of the workspace that it may depend on. `daemon`, `cli` and `bench` may
/// depend on all.
const DEPENDS_ON: [(&str, &[&str]); 15] = [
    ("version", &[]),
    ("core", &[]),
    ("amqp", &["core"]),
    ("mqtt", &[]),
    ("json", &[]),
    ("storage", &["core"]),
    ("routing", &["amqp", "core", "storage"]),
    ("queues", &["amqp", "core", "routing", "storage"]),
    ("broker", &["amqp", "core", "mqtt", "queues", "routing", "storage"]),
    ("connection", &["amqp", "core", "mqtt"]),
    ("config", &["core", "json"]),
    ("tls", &["config", "core"]),
    ("bridge", &["amqp", "config", "core"]),
    ("management", &["amqp", "broker", "config", "core", "json", "queues", "storage"]),
    (
        "server",
        &[
            "amqp",
            "bridge",
            "broker",
            "config",
            "connection",
            "core",
            "json",
            "management",
            "queues",
            "storage",
            "tls",
        ],
    ),
];

/// Traits that another package implements, each with the package that has it.
const UPWARD_TRAITS: [(&str, &str); 10] = [
    // The names of virtual hosts, for definitions that are written.
    ("core", "VhostNames"),
    // Deliveries that are encoded one by one, without a copy.
    ("core", "Outbox"),
    // Routing marks queues, and the owner of the queues has the marks.
    ("routing", "RoutedQueues"),
    // Long answers of the management API, whose parts are read while they are sent.
    ("management", "RecordedEvents"),
    ("management", "Files"),
    ("management", "BridgeViews"),
    ("management", "Sockets"),
    // Where JSON is written to: a buffer of the server, or the output of a command.
    ("management", "Sink"),
    // The interface to the system, which tests replace.
    ("server", "Socket"),
    ("server", "Platform"),
];

const UNSAFE_FILE: &str = "core/mem/mapped.rs";

/// Packages that receive time and bytes. `tls` is not one of them, because it compares certificates with the clock; `config`
/// and `management` have types of addresses.
const WITHOUT_CLOCK: [&str; 11] = [
    "core/",
    "amqp/",
    "mqtt/",
    "json/",
    "storage/",
    "routing/",
    "queues/",
    "broker/",
    "connection/",
    "bridge/",
    "server/",
];
const CLOCKS_AND_SOCKETS: [&str; 3] = ["std::net", "Instant::now", "SystemTime"];

/// Packages that handle data of peers.
const OF_PEERS: [&str; 8] =
    ["queues/", "routing/", "broker/", "connection/", "tls/", "bridge/", "management/", "server/"];
const LOG_CALLS: [&str; 5] = ["log::error!", "log::warn!", "log::info!", "log::log!", "use log::"];
/// Files of these packages that may log without the limiter, because a peer can cause at most one line a
/// minute.
const LOG_FREELY: [&str; 10] = [
    "broker/recovery.rs",
    "tls/certificates.rs",
    "tls/verifier.rs",
    "tls/revoked.rs",
    "broker/access/users.rs",
    "broker/republish/",
    "queues/flow/page_in.rs",
    "queues/flow/push.rs",
    "server/stop.rs",
    "server/storage_driver.rs",
];

fn project() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../.."))
}

#[test]
fn the_sources_keep_their_rules() {
    let source = project().join("src");
    let mut complaints = Vec::new();
    for (package, allowed) in DEPENDS_ON {
        let manifest = fs::read_to_string(source.join(package).join("Cargo.toml")).expect("a manifest");
        complaints.extend(wrong_dependencies(package, &manifest, allowed));
    }
    let mut files = 0;
    for path in rust_files(&source) {
        let name = path.strip_prefix(&source).expect("it lies below").to_string_lossy().into_owned();
        complaints.extend(wrong_lines(&name, &fs::read_to_string(&path).expect("UTF-8")));
        files += 1;
    }
    assert!(files > 100, "only {files} files were read");
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

/// Returns the names of the traits that a text defines for other packages.
fn defined_traits(text: &str) -> impl Iterator<Item = &str> {
    let names = text.lines().filter_map(|line| line.strip_prefix("pub trait "));
    names.filter_map(|rest| rest.split(|letter: char| !letter.is_alphanumeric()).next())
}

/// Returns the names of the traits that a text implements. A path and parameters are left out.
fn implemented_traits(text: &str) -> impl Iterator<Item = &str> {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let heads = code.lines().filter(|line| line.starts_with("impl"));
    let paths =
        heads.filter_map(|line| line.split_once(" for ")?.0.rsplit_once([' ', '>']).map(|(_, path)| path));
    paths.filter_map(|path| path.rsplit("::").next())
}

#[test]
fn a_package_is_called_from_below_only_through_named_traits() {
    let source = project().join("src");
    let mut all = Vec::new();
    for path in rust_files(&source) {
        let name = path.strip_prefix(&source).expect("it lies below").to_string_lossy().into_owned();
        if let Some((package, file)) = name.split_once('/').filter(|(_, file)| !file.ends_with("tests.rs")) {
            all.push((package.to_string(), file.to_string(), fs::read_to_string(&path).expect("UTF-8")));
        }
    }
    let defined: Vec<(&str, &str)> = all
        .iter()
        .flat_map(|(package, _, text)| defined_traits(text).map(move |name| (package.as_str(), name)))
        .collect();
    let mut found = Vec::new();
    for (package, file, text) in &all {
        for name in implemented_traits(text) {
            let owners = defined.iter().filter(|(owner, defined)| owner != package && *defined == name);
            let is_own = defined.contains(&(package, name));
            for &(owner, name) in owners.filter(|_| !is_own) {
                assert!(
                    UPWARD_TRAITS.contains(&(owner, name)),
                    "{package}/{file}: implements {name} of {owner}"
                );
                found.push((owner, name));
            }
        }
    }
    for named in UPWARD_TRAITS {
        assert!(found.contains(&named), "no package implements {named:?} any more");
    }
}

#[test]
fn implemented_traits_are_recognized() {
    let text = "impl<P: Platform> RecordedEvents for PlatformEvents<'_, P> {\nimpl leveret_server::Socket for Socket {\n\
                impl ring::Objects for It {\nimpl Own {\n#[cfg(test)]\nmod tests {\nimpl Disk for Fake {";
    assert_eq!(Vec::from_iter(implemented_traits(text)), ["RecordedEvents", "Socket", "Objects"]);
    assert_eq!(Vec::from_iter(defined_traits("pub trait Socket: Read {\ntrait Own {")), ["Socket"]);
}

/// Returns the workspace packages that a package depends on and must not. Dependencies of its tests do not
/// count.
fn wrong_dependencies(package: &str, manifest: &str, allowed: &[&str]) -> Vec<String> {
    let manifest = manifest.split("[dev-dependencies]").next().unwrap_or_default();
    let names =
        manifest.lines().filter_map(|line| line.strip_prefix("leveret-")?.split([' ', '=', '.']).next());
    let wrong = names.filter(|name| !allowed.contains(name));
    wrong.map(|name| format!("{package}/Cargo.toml: depends on leveret-{name}")).collect()
}

/// Returns the lines of a file, named relative to `src/`, that break a rule.
fn wrong_lines(name: &str, text: &str) -> Vec<String> {
    if name.ends_with("tests.rs") || name.contains("/tests/") {
        return Vec::new();
    }
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let is_in = |places: &[&str]| places.iter().any(|place| name.starts_with(place));
    let mut forbidden: Vec<&str> = Vec::new();
    if name != UNSAFE_FILE {
        forbidden.extend(["unsafe {", "unsafe fn", "unsafe impl", "allow(unsafe_code)"]);
    }
    if is_in(&WITHOUT_CLOCK) {
        forbidden.extend(CLOCKS_AND_SOCKETS);
    }
    if is_in(&OF_PEERS) && !is_in(&LOG_FREELY) {
        forbidden.extend(LOG_CALLS);
    }
    let lines =
        code.lines().enumerate().map(|(at, line)| (at + 1, line.split("//").next().unwrap_or_default()));
    let found = lines.flat_map(|(at, line)| {
        let words = forbidden.iter().filter(move |word| line.contains(**word));
        words.map(move |word| format!("{name}:{at}: `{word}`"))
    });
    found.collect()
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let (folders, files): (Vec<PathBuf>, Vec<PathBuf>) = entries.partition(|path| path.is_dir());
    let files = files.into_iter().filter(|path| path.extension().is_some_and(|ending| ending == "rs"));
    files.chain(folders.iter().flat_map(|folder| rust_files(folder))).collect()
}

#[test]
fn a_broken_rule_is_found() {
    let manifest =
        "[dependencies]\nleveret-core = { path = \"../core\" }\nleveret-storage.workspace = true\n";
    assert_eq!(wrong_dependencies("p", manifest, &["core"]), ["p/Cargo.toml: depends on leveret-storage"]);
    let tests_only = "[dependencies]\n[dev-dependencies]\nleveret-storage = { path = \"../storage\" }\n";
    assert!(wrong_dependencies("p", tests_only, &[]).is_empty());
    for (name, text) in [
        ("broker/queue.rs", "fn f() { std::time::Instant::now(); }"),
        ("server/turn.rs", "use std::net::TcpStream;"),
        ("daemon/a.rs", "unsafe fn f() {}"),
        ("server/turn.rs", "#[cfg(test)]\nmod tests;\nfn f() { log::warn!(\"x\") }"),
    ] {
        assert_eq!(wrong_lines(name, text).len(), 1, "{name}: {text}");
    }
    for (name, text) in [
        ("daemon/a.rs", "use std::net::TcpStream; fn f() { log::warn!(\"x\") }"),
        ("server/turn.rs", "// Instant::now\n#[cfg(test)]\nmod tests {\n    use std::net::TcpStream;\n}"),
        (UNSAFE_FILE, "unsafe fn f() {}"),
        ("server/stop.rs", "fn f() { log::warn!(\"x\") }"),
        ("server/turn.rs", "fn f() { log::debug!(\"x\") }"),
    ] {
        assert!(wrong_lines(name, text).is_empty(), "{name}: {text}");
    }
}
