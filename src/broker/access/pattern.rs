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
    let mut last = String::new();
    for bytes in PROGRAM_BYTES {
        match RegexBuilder::new(text).size_limit(bytes).nest_limit(32).build() {
            Ok(regex) => return Ok((regex, bytes)),
            Err(error) => last = error.to_string(),
        }
    }
    Err(BadPattern(last))
}

/// Text as a pattern that matches it alone.
pub(super) fn escaped(text: &str) -> String {
    regex_lite::escape(text)
}
