//! Errors and remarks about objects of a definition file, with equal ones together.
//!
//! A broker that lacks a virtual host or reaches a limit refuses thousands of objects for one reason.
//!
//! # Invariants
//! - The memory is bounded, whatever the file contains.

use leveret_core::limits::grouped;
use leveret_json::{Fields, Value};

use super::read::At;

/// The most different texts that are kept.
const TEXTS_MAX: usize = 64;
/// The number of objects that are named for each text.
const NAMED_MAX: u64 = 3;
/// The longest text that is kept, in bytes.
const TEXT_BYTES_MAX: usize = 600;
/// The fields with the names of an object, which the text about it repeats.
const NAMES: [&str; 7] = ["name", "vhost", "user", "exchange", "source", "destination", "routing_key"];

/// Findings with one text.
#[derive(Debug)]
struct Group {
    /// The list and the text, without the names of objects.
    kind: String,
    /// The first findings, each with its position and its text.
    named: Vec<String>,
    count: u64,
}

/// The errors of one import, or its remarks.
#[derive(Debug, Default)]
pub struct Findings {
    groups: Vec<Group>,
    count: u64,
    /// The number of findings with further texts than [`TEXTS_MAX`].
    ungrouped_count: u64,
}

impl Findings {
    /// Adds a finding about an object, given as JSON.
    pub fn add(&mut self, at: At, object: &str, why: &str) {
        self.count += 1;
        let kind = kind_of(at, object, why);
        let known = self.groups.iter().position(|group| group.kind == kind);
        if known.is_none() && self.groups.len() == TEXTS_MAX {
            self.ungrouped_count += 1;
            return;
        }
        let place = known.unwrap_or_else(|| {
            self.groups.push(Group { kind, named: Vec::new(), count: 0 });
            self.groups.len() - 1
        });
        let group = &mut self.groups[place];
        group.count += 1;
        if group.count <= NAMED_MAX {
            group.named.push(cut(format!("{at}: {why}"), TEXT_BYTES_MAX));
        }
    }

    /// Returns the number of findings.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Returns the lines that describe all findings: the first ones with each text, and how many there are like them.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        let groups = self.groups.iter().flat_map(|group| {
            let others = group.count.saturating_sub(NAMED_MAX);
            let more = (others > 0).then(|| format!("… and {} like it", grouped(others)));
            group.named.iter().cloned().chain(more)
        });
        let rest = self.ungrouped_count;
        groups.chain((rest > 0).then(|| format!("… and {} others", grouped(rest))))
    }
}

/// Returns the list and the text, without the names that the object itself has.
fn kind_of(at: At, object: &str, why: &str) -> String {
    let fields = Fields::parse(object.as_bytes()).unwrap_or_default();
    let mut names: Vec<_> = NAMES
        .iter()
        .filter_map(|key| match fields.get(key)? {
            Value::String(name) if !name.is_empty() => Some(name),
            _ => None,
        })
        .collect();
    // A name may be a part of another one.
    names.sort_by_key(|name| core::cmp::Reverse(name.len()));
    let kind = names.iter().fold(why.to_string(), |why, name| {
        ['\'', '"'].iter().fold(why, |why, quote| why.replace(&format!("{quote}{name}{quote}"), "''"))
    });
    cut(format!("{} {kind}", at.section), TEXT_BYTES_MAX)
}

/// Cuts a text behind a character, so that it has at most this number of bytes.
pub(crate) fn cut(mut text: String, bytes_max: usize) -> String {
    let end = (0..=bytes_max.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or(0));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_with_one_text_are_counted() {
        let mut findings = Findings::default();
        for index in 0..1571 {
            let object = format!(r#"{{"name":"q{index}","vhost":"v"}}"#);
            let why = format!("queue 'q{index}' in vhost 'v': there is no vhost 'v'");
            findings.add(At { section: "queues", index }, &object, &why);
        }
        let at = At { section: "bindings", index: 3 };
        findings.add(at, r#"{"vhost":"v"}"#, "missing field `source`");
        let lines: Vec<String> = findings.lines().collect();
        assert_eq!(findings.count(), 1572);
        assert_eq!(
            lines,
            [
                "queues[0]: queue 'q0' in vhost 'v': there is no vhost 'v'",
                "queues[1]: queue 'q1' in vhost 'v': there is no vhost 'v'",
                "queues[2]: queue 'q2' in vhost 'v': there is no vhost 'v'",
                "… and 1,568 like it",
                "bindings[3]: missing field `source`"
            ]
        );
    }

    #[test]
    fn a_file_of_different_errors_is_described_in_bounded_space() {
        let mut findings = Findings::default();
        for index in 0..5000 {
            findings.add(At { section: "users", index }, "{", &format!("{index} {}", "é".repeat(2000)));
        }
        let lines: Vec<String> = findings.lines().collect();
        assert_eq!(lines.len(), TEXTS_MAX + 1);
        assert!(lines.iter().all(|line| line.len() <= TEXT_BYTES_MAX));
        assert_eq!(lines.last().map(String::as_str), Some("… and 4,936 others"));
    }
}
