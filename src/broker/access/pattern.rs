//! Patterns of names, as permissions have them.
//!
//! Why it exists: RabbitMQ matches with `re:run`, unanchored, and takes an empty pattern for `^$`. What
//! always holds: matching takes time in the length of the name, whatever the pattern; a pattern's memory is
//! bounded and known; what most people write (`.*` and nothing) costs neither.

use core::fmt;

use regex_lite::{Regex, RegexBuilder};

/// The longest pattern in bytes.
pub const PATTERN_BYTES_MAX: usize = 1024;

/// Bytes a compiled pattern may have, tried in this order: what it fits into is what it is taken for.
const PROGRAM_BYTES: [usize; 5] = [512, 1 << 10, 2 << 10, 4 << 10, 8 << 10];
/// Matching needs space of its own, in proportion.
const SPACE_TIMES: usize = 3;

/// A pattern of names.
pub(super) struct Pattern {
    text: Box<str>,
    matcher: Matcher,
    program_bytes: usize,
}

enum Matcher {
    Everything,
    /// The empty name only.
    Nothing,
    Some(Regex),
}

/// Why a pattern cannot be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct BadPattern(pub(super) String);

impl fmt::Display for BadPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Pattern {
    /// A pattern as somebody wrote it.
    pub(super) fn new(text: &str) -> Result<Self, BadPattern> {
        Self::expanded(text, text)
    }

    /// One that stands for another, with its variables filled in.
    pub(super) fn expanded(text: &str, meant: &str) -> Result<Self, BadPattern> {
        if text.len() > PATTERN_BYTES_MAX {
            return Err(BadPattern(format!("it is longer than {PATTERN_BYTES_MAX} bytes")));
        }
        let (matcher, program_bytes) = match meant {
            "" | "^$" => (Matcher::Nothing, 0),
            ".*" | "^.*" | ".*$" | "^.*$" => (Matcher::Everything, 0),
            _ => {
                let (regex, bytes) = compile(meant)?;
                (Matcher::Some(regex), bytes)
            }
        };
        Ok(Self { text: text.into(), matcher, program_bytes })
    }

    /// As it was written.
    pub(super) const fn text(&self) -> &str {
        &self.text
    }

    /// What it takes in memory, at most.
    pub(super) const fn bytes(&self) -> usize {
        self.text.len() + self.program_bytes * (1 + SPACE_TIMES)
    }

    pub(super) fn matches(&self, name: &str) -> bool {
        match &self.matcher {
            Matcher::Everything => true,
            Matcher::Nothing => name.is_empty(),
            Matcher::Some(regex) => regex.is_match(name),
        }
    }
}

fn compile(text: &str) -> Result<(Regex, usize), BadPattern> {
    let (text, mut last) = (with_plain_braces(text), String::new());
    for bytes in PROGRAM_BYTES {
        match RegexBuilder::new(&text).size_limit(bytes).nest_limit(32).build() {
            Ok(regex) => return Ok((regex, bytes)),
            Err(error) => last = error.to_string(),
        }
    }
    Err(BadPattern(last))
}

/// A brace that begins no repetition stands for itself, as for RabbitMQ.
fn with_plain_braces(text: &str) -> String {
    let mut plain = String::with_capacity(text.len() + 8);
    let mut rest = text.char_indices();
    while let Some((at, letter)) = rest.next() {
        match letter {
            '\\' => {
                plain.push(letter);
                let Some((at, escaped)) = rest.next() else { break };
                plain.push(escaped);
                // \\x{...} and the like.
                if "xuU".contains(escaped) && text[at + 1..].starts_with('{') {
                    plain.extend(rest.next().map(|(_, brace)| brace));
                }
            }
            '{' if !is_repetition(&text[at + 1..]) => plain.push_str(r"\{"),
            _ => plain.push(letter),
        }
    }
    plain
}

/// Whether this goes on as `3}`, `3,}` or `3,5}`.
fn is_repetition(text: &str) -> bool {
    let Some((inside, _)) = text.split_once('}') else { return false };
    let (least, most) = inside.split_once(',').unwrap_or((inside, ""));
    let is_number = |text: &str| text.bytes().all(|letter| letter.is_ascii_digit());
    !least.is_empty() && is_number(least) && is_number(most)
}

/// Text as a pattern that matches it alone.
pub(super) fn escaped(text: &str) -> String {
    regex_lite::escape(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, matching: &[&str], others: &[&str]) {
        let pattern = Pattern::new(pattern).unwrap();
        assert!(matching.iter().all(|name| pattern.matches(name)), "{}", pattern.text());
        assert!(!others.iter().any(|name| pattern.matches(name)), "{}", pattern.text());
    }

    #[test]
    fn patterns_mean_what_they_mean_to_rabbitmq() {
        check("", &[""], &["q", "amq.default"]);
        check("^$", &[""], &["q"]);
        check(".*", &["", "q", "é"], &[]);
        check("q", &["q", "the queue"], &["", "Q"]);
        check("^q", &["queue"], &["a q"]);
        check("^(a|b)-[0-9]+$", &["a-1", "b-22"], &["a-", "c-1", "a-1x"]);
        check("^a{2,3}$", &["aa", "aaa"], &["a", "aaaa"]);
        check("^a{2,}$", &["aaaa"], &["a"]);
        check("^{username}-{}$", &["{username}-{}"], &["username-"]);
        check(r"^\d\.\x{41}\{$", &["1.A{"], &["1xA{"]);
    }

    #[test]
    fn what_is_no_pattern_or_too_much_of_one_is_refused() {
        for bad in ["(", "[a", r"\", r"(a)\1", "(?!amq)", "((a{100}){100}){100}"] {
            assert!(Pattern::new(bad).is_err(), "{bad}");
        }
        assert!(Pattern::new(&"a".repeat(PATTERN_BYTES_MAX + 1)).is_err());
    }

    #[test]
    fn the_usual_ones_take_nothing_and_others_are_counted() {
        assert_eq!(Pattern::new(".*").unwrap().bytes(), 2);
        assert_eq!(Pattern::new("").unwrap().bytes(), 0);
        let (short, long) = (Pattern::new("^a").unwrap(), Pattern::new("^[a-z]{60}$").unwrap());
        assert!(short.bytes() >= 512 && long.bytes() > short.bytes());
    }

    #[test]
    fn text_stands_for_itself_when_escaped() {
        let name = "a.b*c{2}[d]";
        let pattern = Pattern::expanded("{username}", &format!("^{}$", escaped(name))).unwrap();
        assert!(pattern.matches(name) && !pattern.matches("axb*c{2}[d]"));
    }
}
