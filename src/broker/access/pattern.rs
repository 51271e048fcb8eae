//! Patterns of names, as permissions have them.
//!
//! Why it exists: RabbitMQ matches with `re:run`, unanchored, and takes an empty pattern for `^$`. Always
//! true: matching takes time in the length of the name, whatever the pattern; a pattern's memory is bounded
//! and known; what most people write (`.*`, names and lists of names) takes its text and no more.

use core::fmt;

use regex_lite::{Regex, RegexBuilder};

use super::plain_pattern;
use crate::work::Work;

/// The longest pattern in bytes.
pub const PATTERN_BYTES_MAX: usize = 1024;

/// Sizes, in bytes, that a compiled pattern may have; the smallest that suffices is what the pattern counts
/// for. The last is enough for any pattern without counted repetitions.
const PROGRAM_BYTES: [usize; 8] = [512, 1 << 10, 2 << 10, 4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10];
/// Bytes of a compiled pattern and its matching space, as a multiple of the program: two sets of states and
/// two tables of slots, few as long as nothing is captured, and room that a grown program does not use.
const SPACE_TIMES: usize = 3;
/// Bytes of a name times bytes of a program that are as much work as one step: each byte is looked at with all
/// states that the program may be in.
const PROGRAM_PER_UNIT: usize = 256;
/// Bytes of a name times bytes of a plain pattern that are as much work as one step.
const TEXT_PER_UNIT: usize = 1024;
/// The compiler's error for a program that is too large.
const TOO_LARGE: &str = "compiled regex exceeded size limit";

/// A pattern of names.
pub(crate) struct Pattern {
    text: Box<str>,
    matcher: Matcher,
    program_bytes: usize,
}

enum Matcher {
    Everything,
    /// A plain pattern: its text, with variables filled in.
    Plain(Box<str>),
    Compiled(Regex),
}

/// Why a pattern is not valid.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct BadPattern(pub(super) String);

impl fmt::Display for BadPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Pattern {
    /// A pattern as somebody wrote it, of at most `bytes_max` bytes.
    pub(crate) fn new(text: &str, bytes_max: usize) -> Result<Self, BadPattern> {
        Self::expanded(text, text, bytes_max)
    }

    /// A pattern written as `text` that means `meant`, with its variables filled in.
    pub(super) fn expanded(text: &str, meant: &str, bytes_max: usize) -> Result<Self, BadPattern> {
        if text.len() > PATTERN_BYTES_MAX {
            return Err(BadPattern(format!("it is longer than {PATTERN_BYTES_MAX} bytes")));
        }
        let (matcher, program_bytes) = match meant {
            "" => (Matcher::Plain("^$".into()), 0),
            ".*" | "^.*" | ".*$" | "^.*$" => (Matcher::Everything, 0),
            _ if plain_pattern::is_plain(meant) => (Matcher::Plain(meant.into()), 0),
            _ => {
                let (regex, bytes) = compile(meant, bytes_max)?;
                (Matcher::Compiled(regex), bytes)
            }
        };
        Ok(Self { text: text.into(), matcher, program_bytes })
    }

    /// The pattern as the operator wrote it.
    pub(crate) const fn text(&self) -> &str {
        &self.text
    }

    /// Bytes of memory that the pattern takes at most.
    pub(crate) fn bytes(&self) -> usize {
        let plain = if let Matcher::Plain(text) = &self.matcher { text.len() } else { 0 };
        self.text.len() + plain + self.program_bytes * (1 + SPACE_TIMES)
    }

    /// Whether the pattern matches somewhere in this name; the work is charged.
    pub(crate) fn matches(&self, work: &mut Work, name: &str) -> bool {
        let places = name.len() + 1;
        match &self.matcher {
            Matcher::Everything => true,
            Matcher::Plain(text) => {
                work.charge(text.len() * places / TEXT_PER_UNIT);
                plain_pattern::matches(text, name)
            }
            Matcher::Compiled(regex) => {
                work.charge(self.program_bytes * places / PROGRAM_PER_UNIT);
                regex.is_match(name)
            }
        }
    }
}

fn compile(text: &str, bytes_max: usize) -> Result<(Regex, usize), BadPattern> {
    let text = prepared(text);
    let mut last = TOO_LARGE.to_string();
    for bytes in PROGRAM_BYTES.into_iter().filter(|bytes| bytes * (1 + SPACE_TIMES) <= bytes_max) {
        match RegexBuilder::new(&text).size_limit(bytes).nest_limit(32).build() {
            Ok(regex) => return Ok((regex, bytes)),
            Err(error) => last = error.to_string(),
        }
    }
    if last == TOO_LARGE {
        last =
            "compiled it is too large: a list of names, (a|b|c), is not compiled, a repetition that counts \
                takes most, and patterns_bytes_max is what all of them may take"
                .to_string();
    }
    Err(BadPattern(last))
}

/// A pattern for the compiler: a brace that begins no repetition stands for itself, as for RabbitMQ; and no
/// group captures anything, for each would need space in every state.
fn prepared(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    let mut rest = text.char_indices();
    // Where the content of a bracketed class began.
    let mut class: Option<usize> = None;
    while let Some((at, letter)) = rest.next() {
        let behind = &text[at + letter.len_utf8()..];
        match letter {
            '\\' => {
                out.push(letter);
                let Some((at, escaped)) = rest.next() else { break };
                out.push(escaped);
                // An escape with braces, like \\x{...}.
                if "xuU".contains(escaped) && text[at + escaped.len_utf8()..].starts_with('{') {
                    out.extend(rest.next().map(|(_, brace)| brace));
                }
                continue;
            }
            '{' if !is_repetition(behind) => out.push('\\'),
            '[' if class.is_none() => class = Some(at + 1 + usize::from(behind.starts_with('^'))),
            '[' if behind.starts_with(':') => {
                // The name of a class like [:alpha:] ends with a bracket of its own.
                let length = behind.find(":]").map_or(0, |end| end + 2);
                out.push(letter);
                out.push_str(&behind[..length]);
                rest.by_ref().take(behind[..length].chars().count()).for_each(drop);
                continue;
            }
            // A bracket that comes first in a class is a member of it.
            ']' if class.is_some_and(|from| at > from) => class = None,
            '(' if class.is_none() => {
                let name = ["?P<", "?<"].into_iter().find(|start| behind.starts_with(start));
                let name = name.filter(|start| !behind[start.len()..].starts_with(['=', '!']));
                let end = name.and_then(|_| behind.find('>'));
                if !behind.starts_with('?') || end.is_some() {
                    out.push_str("(?:");
                    let skipped = end.map_or(0, |end| behind[..=end].chars().count());
                    rest.by_ref().take(skipped).for_each(drop);
                    continue;
                }
            }
            _ => {}
        }
        out.push(letter);
    }
    out
}

/// Whether this begins with the rest of a repetition: `3}`, `3,}` or `3,5}`.
fn is_repetition(text: &str) -> bool {
    let Some((inside, _)) = text.split_once('}') else { return false };
    let (least, most) = inside.split_once(',').unwrap_or((inside, ""));
    let is_number = |text: &str| text.bytes().all(|letter| letter.is_ascii_digit());
    !least.is_empty() && is_number(least) && is_number(most)
}

/// Text as a pattern that matches only that text.
pub(super) fn escaped(text: &str) -> String {
    regex_lite::escape(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLENTY: usize = 512 << 10;

    fn pattern(text: &str) -> Pattern {
        Pattern::new(text, PLENTY).unwrap()
    }

    fn is_match(pattern: &Pattern, name: &str) -> bool {
        pattern.matches(&mut Work::default(), name)
    }

    /// Units of work that it takes to match this pattern with this name.
    fn units(text: &str, name: &str) -> u32 {
        let mut work = Work::default();
        pattern(text).matches(&mut work, name);
        work.units()
    }

    #[track_caller]
    fn check(text: &str, matching: &[&str], others: &[&str]) {
        let pattern = pattern(text);
        assert!(matching.iter().all(|name| is_match(&pattern, name)), "{text}");
        assert!(!others.iter().any(|name| is_match(&pattern, name)), "{text}");
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
        check(r"^[](]+\(([[:digit:](]+)$", &["](](12(", "]((1"], &["x(1", "](", "]1"]);
        check("^(?P<name>a+)(?<other>b)(?i:C)*$", &["aabcC", "ab"], &["b", "abd"]);
        check(r"^[^]]{é}[\]{]?(é)$", &["x{é}]é", "x{é}é"], &["]{é}é", "x{é}é}"]);
    }

    #[test]
    fn what_is_no_pattern_or_too_much_of_one_is_refused() {
        for bad in ["(", "[a", r"\", r"(a)\1", "(?!amq)", "(?<=a)b", "(?<!a)b", "((a{100}){100}){100}"] {
            assert!(Pattern::new(bad, PLENTY).is_err(), "{bad}");
        }
        assert!(Pattern::new(&"a".repeat(PATTERN_BYTES_MAX + 1), PLENTY).is_err());
    }

    /// Patterns as written by hand, or by a program from a list of devices.
    #[test]
    fn patterns_may_be_as_long_as_is_promised() {
        let devices: Vec<_> = (0..100).map(|at| format!("meter-{at:02}")).collect();
        let list = format!("^({})$", devices.join("|"));
        assert!(list.len() > 900);
        for room in [PLENTY, 4 << 10] {
            let list = Pattern::new(&list, room).unwrap();
            assert!(devices.iter().all(|name| is_match(&list, name)));
            assert!(!["meter-100", "meter-", "ameter-01"].iter().any(|name| is_match(&list, name)));
            assert!(list.bytes() <= 2 * PATTERN_BYTES_MAX);
        }
        let full = |unit: &str| unit.repeat(PATTERN_BYTES_MAX / unit.len());
        for unit in ["a", "a*", "|", "a|", ".*", r"\W", "[^a]", "(a)", "(a|b)+", "é?", "()"] {
            let text = full(unit);
            let pattern = Pattern::new(&text, PLENTY).unwrap_or_else(|why| panic!("{unit}: {why}"));
            assert!(pattern.bytes() <= PLENTY);
        }
        let nested = format!("(?i)^(({})-[0-9]+)$", devices.join("|"));
        assert!(is_match(&pattern(&nested), "METER-42-7"));
        let why = Pattern::new(&nested, 16 << 10).err().unwrap();
        assert!(why.0.contains("patterns_bytes_max"), "{why}");
    }

    #[test]
    fn the_usual_ones_take_their_text_and_others_are_counted() {
        assert_eq!(pattern(".*").bytes(), 2);
        assert_eq!(pattern("").bytes(), 2);
        assert_eq!(pattern("^meter").bytes(), 12);
        let (short, long) = (pattern("^a+"), pattern("^[a-z]{60}$"));
        assert!(short.bytes() >= 512 && long.bytes() > short.bytes());
    }

    /// Matching is charged by the size of the program, for a short text may have a large one, and of the
    /// name.
    #[test]
    fn matching_is_charged_by_the_program_and_the_name() {
        let long = "a".repeat(255);
        assert_eq!(units(".*", &long), 0);
        assert!(units("^meter", "meter-1") <= 1);
        assert!(units("^meter-[0-9]+$", "meter-1") <= 20);
        assert!((100..400).contains(&units(&"a|".repeat(500), &long)));
        // Each match takes some millions of instructions.
        let hostile = units("^(a|aa|a*)*(a?){100}[0-9]*$", &long);
        assert!(hostile >= 4_000, "{hostile}");
        assert!(units("^(a|aa|a*)*(a?){100}[0-9]*$", "a") < hostile / 100);
    }

    #[test]
    fn text_stands_for_itself_when_escaped() {
        let name = "a.b*c{2}[d]";
        let pattern = Pattern::expanded("{username}", &format!("^{}$", escaped(name)), PLENTY).unwrap();
        assert!(is_match(&pattern, name) && !is_match(&pattern, "axb*c{2}[d]"));
    }
}
