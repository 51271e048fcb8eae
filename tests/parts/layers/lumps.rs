//! No type is a lump: how many fields it has, over how many files its methods are spread, and how many of those
//! files call each other in a circle may only become less.
//!
//! Paths do not show such a circle, for each of the files only names the type. So calls are read here: of a method on
//! `self` or on a parameter of the type, and of a function that takes the type by reference, which is a method by
//! another name. Where two files of a type have functions of one name, a call of it is one of both.

use std::collections::{BTreeMap, BTreeSet};

use super::{Code, is_within, test_only_files};

/// How large a type is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Size {
    fields: usize,
    /// Files with methods of it.
    files: usize,
    /// Files of the largest circle; 0 where no file calls one that calls it.
    circle: usize,
}

/// What no type is larger than.
const GOAL: Size = Size { fields: 15, files: 8, circle: 2 };

/// The types that this is asked of: each owns a part.
const KEPT: [(&str, &str); 13] = [
    ("Broker", "rooms/broker/"),
    ("Access", "rooms/broker/access/"),
    ("Policies", "rooms/broker/policy/"),
    ("Parameters", "rooms/broker/parameters/"),
    ("Topology", "rooms/broker/topology/"),
    ("Records", "rooms/broker/queue/"),
    ("Queues", "rooms/broker/queues/"),
    ("Consumers", "rooms/broker/consumers/"),
    ("Post", "rooms/broker/letters/"),
    ("Recovery", "rooms/broker/recovery/"),
    ("Views", "rooms/broker/views/"),
    ("Engine", "engine/"),
    ("Log", "rooms/store/"),
];

/// What is lent to a part that lies deeper, which may have functions for it: they count with that part, and not here.
const LENT: [(&str, &str, &str); 1] = [("Shared", "engine/", "engine/bridges/")];

/// Fields that a record of the broker has at most, but for these: whoever makes one smaller writes it here.
const RECORD_FIELDS_MAX: usize = 25;
const LARGE_RECORDS: [(&str, usize); 0] = [];

/// Every type that is not as large as the table says.
pub(super) fn check(sources: &BTreeMap<String, String>) -> Vec<String> {
    let mut complaints = large_records(&codes(sources, "rooms/broker/"));
    let kept = KEPT.iter().map(|(name, folder)| (*name, *folder, codes(sources, folder)));
    let lent = LENT.iter().map(|(name, folder, to)| {
        let mut codes = codes(sources, folder);
        codes.retain(|path, _| !path.starts_with(to));
        (*name, *folder, codes)
    });
    for (name, folder, codes) in kept.chain(lent) {
        let found = Size::of(name, &codes);
        if found.files == 0 {
            complaints.push(format!("{folder}: there is no {name} any more: its row may go"));
        } else if found.is_more_than(GOAL) {
            complaints.push(format!("{folder}: {name} became a lump: {found:?}, more than {GOAL:?}"));
        }
    }
    complaints
}

/// Every record with more fields than one is to have.
fn large_records(codes: &BTreeMap<String, Code>) -> Vec<String> {
    let mut found = BTreeMap::new();
    for code in codes.values() {
        for (at, _) in code.text.match_indices("struct ") {
            let rest = &code.text[at + "struct ".len()..];
            let end = rest.find(|letter: char| !(letter.is_alphanumeric() || letter == '_')).unwrap_or(0);
            let fields = fields_of(&rest[..end], &code.text);
            if fields > RECORD_FIELDS_MAX {
                found.insert(rest[..end].to_string(), fields);
            }
        }
    }
    let known: BTreeMap<String, usize> =
        LARGE_RECORDS.iter().map(|(name, fields)| ((*name).to_string(), *fields)).collect();
    if found == known {
        Vec::new()
    } else {
        vec![format!("records with many fields: {found:?}, not {known:?}")]
    }
}

/// The code of a folder without its tests.
fn codes(sources: &BTreeMap<String, String>, folder: &str) -> BTreeMap<String, Code> {
    let test_files = test_only_files(sources);
    sources
        .iter()
        .filter(|(path, _)| path.starts_with(folder))
        .filter(|(path, _)| !test_files.iter().any(|prefix| is_within(path, prefix)))
        .map(|(path, text)| (path.clone(), Code::of(text, false)))
        .collect()
}

impl Size {
    const fn is_more_than(self, most: Self) -> bool {
        self.fields > most.fields || self.files > most.files || self.circle > most.circle
    }

    fn of(name: &str, codes: &BTreeMap<String, Code>) -> Self {
        let parts: BTreeMap<&str, Part<'_>> = codes
            .iter()
            .map(|(path, code)| (path.as_str(), Part::of(name, code)))
            .filter(|(_, part)| !part.functions.is_empty())
            .collect();
        let calls = |part: &Part<'_>, other: &Part<'_>| {
            part.functions.iter().any(|function| {
                other.functions.iter().any(|called| function.calls(called.name, called.is_method))
            })
        };
        let graph: BTreeMap<&str, BTreeSet<&str>> = parts
            .iter()
            .map(|(path, part)| {
                let others = parts.iter().filter(|(other, _)| *other != path);
                (*path, others.filter(|(_, other)| calls(part, other)).map(|(other, _)| *other).collect())
            })
            .collect();
        let fields = codes.values().map(|code| fields_of(name, &code.text)).max().unwrap_or(0);
        Self { fields, files: parts.len(), circle: largest_circle(&graph) }
    }
}

/// What of a type stands in a file.
struct Part<'c> {
    functions: Vec<Function<'c>>,
}

/// A method of the type, or a function that takes it by reference.
struct Function<'c> {
    name: &'c str,
    is_method: bool,
    body: &'c str,
    /// What the type is called in it: `self`, or the parameter's name.
    receiver: &'c str,
}

impl<'c> Part<'c> {
    fn of(name: &str, code: &'c Code) -> Self {
        let mut functions = Vec::new();
        let blocks: Vec<&str> = blocks_of(name, &code.text);
        for block in &blocks {
            for (name, signature, body) in functions_in(block) {
                if signature.contains("self") {
                    functions.push(Function { name, is_method: true, body, receiver: "self" });
                }
            }
        }
        for (function, signature, body) in functions_in(&code.text) {
            if let Some(receiver) = taken_by_reference(name, signature) {
                functions.push(Function { name: function, is_method: false, body, receiver });
            }
        }
        Self { functions }
    }
}

impl Function<'_> {
    /// Whether its body has a call of that.
    fn calls(&self, name: &str, is_method: bool) -> bool {
        let words = self.body.match_indices(name).filter(|(at, _)| {
            let before = self.body[..*at].chars().next_back().unwrap_or(' ');
            let after = &self.body[at + name.len()..];
            !(before.is_alphanumeric() || before == '_') && after.trim_start_matches("::<").starts_with('(')
        });
        words.into_iter().any(|(at, _)| {
            let before = self.body[..at].trim_end();
            match before.strip_suffix('.') {
                Some(before) => is_method && before.trim_end().ends_with(self.receiver),
                None => !is_method,
            }
        })
    }
}

/// The insides of every `impl` block of the type itself.
fn blocks_of<'t>(name: &str, text: &'t str) -> Vec<&'t str> {
    let starts = text.match_indices("\nimpl").filter_map(|(at, _)| {
        let open = at + text[at..].find('{')?;
        let head = &text[at + 5..open];
        let own = behind_generics(head).trim();
        (!head.contains(" for ") && own.split('<').next() == Some(name)).then_some(open)
    });
    starts.map(|open| braced(text, open)).collect()
}

/// The head of an `impl` without the parameters that stand right behind the word.
fn behind_generics(head: &str) -> &str {
    let mut depth = 0_usize;
    for (at, letter) in head.char_indices() {
        match letter {
            '<' => depth += 1,
            '>' => depth -= 1,
            _ if depth == 0 => return &head[at..],
            _ => {}
        }
    }
    head
}

/// Name, signature and body of each function in a text.
fn functions_in(text: &str) -> Vec<(&str, &str, &str)> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("fn ") {
        if text[..at].chars().next_back().is_some_and(|before| before.is_alphanumeric() || before == '_') {
            continue;
        }
        let rest = &text[at + 3..];
        let end =
            rest.find(|letter: char| !(letter.is_alphanumeric() || letter == '_')).unwrap_or(rest.len());
        let Some(open) = rest.find(['{', ';']) else { continue };
        if end == 0 || rest.as_bytes()[open] == b';' {
            continue;
        }
        found.push((&rest[..end], &rest[end..open], braced(rest, open)));
    }
    found
}

/// The parameter through which a function takes the type by reference.
fn taken_by_reference<'t>(name: &str, signature: &'t str) -> Option<&'t str> {
    let is_word = |letter: char| letter.is_alphanumeric() || letter == '_';
    let at = ["&mut ", "&"].iter().find_map(|by| {
        let wanted = format!(": {by}{name}");
        let found: Vec<usize> = signature.match_indices(&wanted).map(|(at, _)| at).collect();
        found.into_iter().find(|at| !signature[at + wanted.len()..].starts_with(is_word))
    })?;
    signature[..at].rsplit(|letter: char| !is_word(letter)).next()
}

/// Fields of a record.
fn fields_of(name: &str, text: &str) -> usize {
    let Some(at) = text.find(&format!("struct {name} {{")).or_else(|| text.find(&format!("struct {name}<")))
    else {
        return 0;
    };
    let Some(open) = text[at..].find('{') else { return 0 };
    let inside = braced(text, at + open);
    let is_field = |line: &&str| {
        let line = line.trim_start();
        let name = line.strip_prefix("pub").map_or(line, |rest| match rest.strip_prefix('(') {
            Some(rest) => rest.split_once(')').map_or("", |(_, rest)| rest),
            None => rest,
        });
        let name = name.trim_start();
        name.split_once(':').is_some_and(|(name, _)| {
            !name.is_empty() && name.chars().all(|letter| letter.is_alphanumeric() || letter == '_')
        })
    };
    inside.lines().filter(is_field).count()
}

/// What stands between the brace at `open` and the one that closes it.
fn braced(text: &str, open: usize) -> &str {
    let mut depth = 0_usize;
    for (at, letter) in text[open..].char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &text[open + 1..open + at];
        }
    }
    &text[open..]
}

/// How many files the largest circle has.
fn largest_circle(graph: &BTreeMap<&str, BTreeSet<&str>>) -> usize {
    let reached: BTreeMap<&str, BTreeSet<&str>> =
        graph.keys().map(|file| (*file, reached(graph, file))).collect();
    let circle = |file: &&str| reached[*file].iter().filter(|other| reached[**other].contains(*file)).count();
    reached.keys().map(circle).max().unwrap_or(0)
}

/// Every file that one calls, or that calls of it lead to.
fn reached<'f>(graph: &BTreeMap<&'f str, BTreeSet<&'f str>>, from: &str) -> BTreeSet<&'f str> {
    let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
    while let Some(file) = next.pop() {
        for other in &graph[file] {
            if seen.insert(*other) {
                next.push(other);
            }
        }
    }
    seen
}

mod the_checker_sees {
    use super::*;

    fn size(files: &[(&str, &str)]) -> Size {
        let codes =
            files.iter().map(|(path, text)| (path.to_string(), Code::of(&format!("\n{text}"), false)));
        Size::of("Broker", &codes.collect())
    }

    #[test]
    fn methods_that_call_each_other_across_files() {
        let state = ("state.rs", "pub struct Broker {\n    pub(super) one: u8,\n    two: Vec<u8>,\n}\n");
        let found = size(&[
            state,
            ("a.rs", "impl Broker {\n    fn a(&mut self) { self.b() }\n}\n"),
            ("b.rs", "impl Broker {\n    fn b(&mut self) { self\n        .c(1) }\n}\n"),
            (
                "c.rs",
                "impl Broker {\n    fn c(&mut self, x: u8) { if x > 0 { self.a() } }\n    fn d() {}\n}\n",
            ),
            ("d.rs", "impl Broker {\n    fn e(&mut self) { self.a() }\n}\n"),
        ]);
        assert_eq!(found, Size { fields: 2, files: 4, circle: 3 });
    }

    #[test]
    fn functions_that_take_it_are_methods_by_another_name() {
        let found = size(&[
            ("a.rs", "impl<P: Any<u8>> Broker<P> {\n    fn a(&mut self) { tidy(self, 1) }\n}\n"),
            ("b.rs", "pub fn tidy(broker: &mut Broker, much: u8) { broker.a() }\n"),
            ("c.rs", "pub fn other(broker: &Brokers) { broker.a() }\n"),
        ]);
        assert_eq!(found, Size { fields: 0, files: 2, circle: 2 });
    }

    #[test]
    fn calls_of_others_and_tests_do_not_count() {
        let found = size(&[
            ("a.rs", "impl Broker {\n    fn a(&mut self) { self.queue.b() }\n}\n"),
            (
                "b.rs",
                "impl Broker {\n    fn b(&mut self) { self.a() }\n}\nimpl Queue {\n    fn b(&self) {}\n}\n",
            ),
            (
                "c.rs",
                "#[cfg(test)]\nmod tests {\n    impl Broker {\n        fn c(&mut self) { self.a() }\n    }\n}\n",
            ),
        ]);
        assert_eq!(found, Size { fields: 0, files: 2, circle: 0 });
    }
}
