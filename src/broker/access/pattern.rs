//! Regular expressions for names, in permissions and policies.
//!
//! As in RabbitMQ, a pattern may match any part of a name unless it is anchored, and an empty pattern means
//! `^$`.
//!
//! # Invariants
//! - Matching takes time linear in the length of the name, whatever the pattern.
//! - The memory of a pattern is bounded and counted. Plain patterns (names and lists of names) need no
//!   compilation and take only the bytes of their text; neither does `.*`.

use core::fmt;

use leveret_core::mem::{ALLOCATION_BYTES, Class, HeapBytes, Memory, NAME_BYTES_MAX};
use leveret_core::topic::exchange_separators;
use leveret_core::work::Work;
use regex_lite::{Regex, RegexBuilder};

use crate::operator_fault::OperatorFault;

/// Maximum length of a pattern in bytes.
pub const PATTERN_BYTES_MAX: usize = 1024;

/// Size limits for a compiled pattern in bytes. The smallest limit with which it compiles is counted as its
/// size. The largest is enough for any pattern without counted repetitions.
const PROGRAM_BYTES: [usize; 8] = [512, 1 << 10, 2 << 10, 4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10];
/// Bytes that are counted in addition to a compiled pattern, as a multiple of its size. They are for the
/// working memory of a match (two sets of states and two tables of slots, small without captures), and for
/// unused capacity of the program's vectors.
const WORKING_MEMORY_FACTOR: usize = 3;
/// Divides (bytes of the name) × (bytes of the compiled pattern) to get units of work, because each byte of
/// the name is tested in every state of the program.
const PROGRAM_WORK_DIVISOR: usize = 256;
/// Divides (bytes of the name) × (bytes of the plain pattern) to get units of work.
const TEXT_WORK_DIVISOR: usize = 1024;
/// The error text of `regex_lite` for a compiled pattern that exceeds the size limit.
const TOO_LARGE: &str = "compiled regex exceeded size limit";

/// A pattern for names.
///
/// Most users have the pattern `.*`, and most others have plain patterns. So only the rest has a matcher besides its text.
pub(crate) enum Pattern {
    /// The pattern `.*`.
    Everything,
    /// A plain pattern without variables.
    Plain(Box<str>),
    Other(Box<OtherPattern>),
}

/// A pattern that is not matched as it is written.
pub(crate) struct OtherPattern {
    text: Box<str>,
    matcher: Matcher,
    program_bytes: usize,
}

enum Matcher {
    /// An anchored form of `.*`.
    Everything,
    /// A plain pattern with its variables expanded.
    Plain(Box<str>),
    Compiled(Regex),
    /// A pattern with the variable [`CLIENT_ID`], with the other variables expanded. It is expanded for each match.
    OfClient(Box<str>),
}

/// The variable for the client identifier of an MQTT client.
const CLIENT_ID: &str = "{client_id}";

/// Why a pattern is not valid.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct BadPattern(pub(super) String);

impl fmt::Display for BadPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Pattern {
    /// Compiles a pattern without variables. It may take at most `bytes_max` bytes.
    pub(crate) fn new(text: &str, bytes_max: usize) -> Result<Self, BadPattern> {
        Self::with_variables(text, text, bytes_max)
    }

    /// Compiles a pattern. `text` is the pattern as the operator wrote it, `expanded` the same with its
    /// variables replaced.
    pub(super) fn with_variables(text: &str, expanded: &str, bytes_max: usize) -> Result<Self, BadPattern> {
        if text.len() > PATTERN_BYTES_MAX {
            return Err(BadPattern(format!("it is longer than {PATTERN_BYTES_MAX} bytes")));
        }
        if text == expanded && text == ".*" {
            return Ok(Self::Everything);
        }
        if text == expanded && is_plain(text) && !text.contains(CLIENT_ID) {
            return Ok(Self::Plain(text.into()));
        }
        let (matcher, program_bytes) = match expanded {
            _ if expanded.contains(CLIENT_ID) => {
                let sample = expanded.replace(CLIENT_ID, "x");
                let bytes = if is_plain(&sample) { 0 } else { compile(&sample, bytes_max)?.1 };
                (Matcher::OfClient(expanded.into()), bytes)
            }
            ".*" | "^.*" | ".*$" | "^.*$" => (Matcher::Everything, 0),
            _ if is_plain(expanded) => (Matcher::Plain(expanded.into()), 0),
            _ => {
                let (regex, bytes) = compile(expanded, bytes_max)?;
                (Matcher::Compiled(regex), bytes)
            }
        };
        Ok(Self::Other(Box::new(OtherPattern { text: text.into(), matcher, program_bytes })))
    }

    /// Returns the pattern as the operator wrote it.
    pub(crate) const fn text(&self) -> &str {
        match self {
            Self::Everything => ".*",
            Self::Plain(text) => text,
            Self::Other(other) => &other.text,
        }
    }

    /// Returns the bytes of memory that are counted for the pattern.
    pub(crate) fn bytes(&self) -> usize {
        let other = match self {
            Self::Everything => return 0,
            Self::Plain(text) => return text.len() + ALLOCATION_BYTES,
            Self::Other(other) => other,
        };
        let expanded = match &other.matcher {
            Matcher::Plain(text) | Matcher::OfClient(text) => text.len() + ALLOCATION_BYTES,
            Matcher::Everything | Matcher::Compiled(_) => 0,
        };
        let itself = size_of::<OtherPattern>() + other.text.len() + 2 * ALLOCATION_BYTES;
        itself + expanded + other.program_bytes * (1 + WORKING_MEMORY_FACTOR)
    }

    /// Returns whether the pattern matches a name or a part of it, and charges the work.
    pub(crate) fn matches(&self, work: &mut Work, name: &str) -> bool {
        let other = match self {
            Self::Everything => return true,
            Self::Plain(text) => return matches_plain(work, text, name),
            Self::Other(other) => other,
        };
        match &other.matcher {
            Matcher::Everything => true,
            Matcher::Plain(text) => matches_plain(work, text, name),
            Matcher::Compiled(regex) => {
                work.charge(other.program_bytes * (name.len() + 1) / PROGRAM_WORK_DIVISOR);
                regex.is_match(name)
            }
            Matcher::OfClient(text) => other.matches_of_client(work, text, name, None),
        }
    }

    /// Like [`Self::matches`], for a name that an MQTT client with this identifier uses. A client of AMQP has none, and
    /// RabbitMQ then compares the variable as it is written.
    ///
    /// The identifier is compared with topic levels, so its separators are exchanged as those of topics. An identifier
    /// with a wildcard would permit a filter that matches the topics of other clients. Therefore a pattern with the
    /// variable does not match for it.
    pub(crate) fn matches_of(&self, work: &mut Work, name: &str, client_id: Option<&str>) -> bool {
        match self {
            Self::Other(other) => match &other.matcher {
                Matcher::OfClient(text) => other.matches_of_client(work, text, name, client_id),
                _ => self.matches(work, name),
            },
            _ => self.matches(work, name),
        }
    }
}

impl OtherPattern {
    /// See [`Pattern::matches_of`]. `text` is the pattern with the variable.
    fn matches_of_client(&self, work: &mut Work, text: &str, name: &str, client_id: Option<&str>) -> bool {
        let client_id = match client_id {
            None => CLIENT_ID.to_string(),
            Some(client_id) if client_id.contains(['*', '#', '+']) => return false,
            Some(client_id) => match exchange_separators(client_id) {
                Some(client_id) => client_id.to_string(),
                None => return false,
            },
        };
        let expanded = text.replace(CLIENT_ID, &escaped(&client_id));
        if is_plain(&expanded) {
            return matches_plain(work, &expanded, name);
        }
        // Compiling takes about as long as matching a name of a kilobyte.
        work.charge(self.program_bytes * (name.len() + 1 + 1024) / PROGRAM_WORK_DIVISOR);
        compile(&expanded, usize::MAX).is_ok_and(|(regex, _)| regex.is_match(name))
    }
}

/// Returns whether a plain pattern matches a name, and charges the work.
fn matches_plain(work: &mut Work, text: &str, name: &str) -> bool {
    work.charge(text.len() * (name.len() + 1) / TEXT_WORK_DIVISOR);
    // In RabbitMQ an empty pattern matches the empty name only.
    if text.is_empty() { name.is_empty() } else { matches(text, name) }
}

fn compile(text: &str, bytes_max: usize) -> Result<(Regex, usize), BadPattern> {
    let text = rewrite_for_compiler(text);
    let mut last = TOO_LARGE.to_string();
    for bytes in PROGRAM_BYTES.into_iter().filter(|bytes| bytes * (1 + WORKING_MEMORY_FACTOR) <= bytes_max) {
        match RegexBuilder::new(&text).size_limit(bytes).nest_limit(32).build() {
            Ok(regex) => return Ok((regex, bytes)),
            Err(error) => last = error.to_string(),
        }
    }
    if last == TOO_LARGE {
        last =
            "it is too large when compiled: lists of names, (a|b|c), need no compilation, counted repetitions \
             need most memory, and all patterns share the memory for definitions"
                .to_string();
    }
    Err(BadPattern(last))
}

/// Rewrites a pattern for the compiler. A brace that does not begin a repetition is escaped, because it is a
/// literal in RabbitMQ. Groups become non-capturing, because captures would need memory in every state.
fn rewrite_for_compiler(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    let mut rest = text.char_indices();
    // Inside a bracketed class: the position where its content starts.
    let mut class: Option<usize> = None;
    while let Some((at, character)) = rest.next() {
        let behind = &text[at + character.len_utf8()..];
        match character {
            '\\' => {
                out.push(character);
                let Some((at, escaped)) = rest.next() else { break };
                out.push(escaped);
                // The brace of an escape like `\x{...}` is copied unchanged.
                if "xuU".contains(escaped) && text[at + escaped.len_utf8()..].starts_with('{') {
                    out.extend(rest.next().map(|(_, brace)| brace));
                }
                continue;
            }
            '{' if !is_repetition(behind) => out.push('\\'),
            '[' if class.is_none() => class = Some(at + 1 + usize::from(behind.starts_with('^'))),
            '[' if behind.starts_with(':') => {
                // The name of a class like [:alpha:] ends with its own bracket.
                let length = behind.find(":]").map_or(0, |end| end + 2);
                out.push(character);
                out.push_str(&behind[..length]);
                rest.by_ref().take(behind[..length].chars().count()).for_each(drop);
                continue;
            }
            // A closing bracket directly after the opening one is a member of the class.
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
        out.push(character);
    }
    out
}

/// Returns whether a text begins with a repetition after its opening brace: `3}`, `3,}` or `3,5}`.
fn is_repetition(text: &str) -> bool {
    let Some((inside, _)) = text.split_once('}') else { return false };
    let (least, most) = inside.split_once(',').unwrap_or((inside, ""));
    let is_number = |text: &str| text.bytes().all(|character| character.is_ascii_digit());
    !least.is_empty() && is_number(least) && is_number(most)
}

/// Returns a pattern that matches only this text.
pub(super) fn escaped(text: &str) -> String {
    regex_lite::escape(text)
}

/// The bytes that all patterns of permissions and policies take together, and their maximum.
pub(crate) struct PatternBytes {
    used: HeapBytes,
    max: usize,
}

impl PatternBytes {
    /// Creates a counter with the value 0 and the limit `max`.
    pub(crate) fn with_max(max: usize, memory: &Memory) -> Self {
        Self { used: HeapBytes::with_gaps(memory, Class::Definitions), max }
    }

    /// Returns the limit.
    pub(crate) const fn max(&self) -> usize {
        self.max
    }

    /// Adds the `bytes` of new patterns and subtracts the `freed` bytes of patterns that they replace.
    ///
    /// # Errors
    /// The new patterns take more bytes than the replaced ones, and the limit would be exceeded.
    pub(crate) fn replace(&mut self, bytes: usize, freed: usize) -> Result<(), OperatorFault> {
        let used = self.used.used();
        assert!(freed <= used, "patterns that go were taken");
        if bytes > freed && (used - freed + bytes > self.max || bytes - freed > self.used.free()) {
            return Err(OperatorFault::NoCapacity("another pattern"));
        }
        if bytes > freed {
            self.used.add(bytes - freed);
        } else {
            self.used.subtract(freed - bytes);
        }
        Ok(())
    }

    /// Subtracts the bytes of deleted patterns.
    pub(crate) fn subtract(&mut self, bytes: usize) {
        assert!(bytes <= self.used.used(), "patterns that go were taken");
        self.used.subtract(bytes);
    }
}

/// Characters that a backslash makes literal in a plain pattern.
const ESCAPABLE: &str = r"\.+*?()|[]{}^$#&-~/";

/// A token of a pattern's text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Token {
    Char(char),
    /// `.`: any one character.
    AnyChar,
    /// `.*`: any characters, or none.
    AnyText,
    Open,
    Or,
    Close,
    Start,
    End,
}

/// Returns the tokens of a pattern. An item is `None` if it is not allowed in a plain pattern; then the
/// pattern must be compiled.
///
/// Plain patterns are names or lists of names, matched without compilation:
///
/// ```text
/// pattern  branch { "|" branch }
/// branch   [ "^" ] { piece | group } [ "$" ]
/// group    "(" [ "?:" ] { piece } { "|" { piece } } ")"
/// piece    a character | "\" and a character of ESCAPABLE | "." | ".*"
/// ```
///
/// Long patterns are usually lists of devices. Compiled, a list of 1,024 bytes takes 128 KiB, more than a
/// small board has for all patterns; as a plain pattern it takes the bytes of its text. A plain pattern
/// matches the same names as when compiled (a test compares both). A match allocates no memory and passes
/// over the pattern once.
fn tokens(text: &str) -> impl Iterator<Item = Option<Token>> {
    let mut rest = text;
    core::iter::from_fn(move || {
        let mut chars = rest.chars();
        let token = match chars.next()? {
            '^' => Some(Token::Start),
            '$' => Some(Token::End),
            '|' => Some(Token::Or),
            ')' => Some(Token::Close),
            '.' if rest.starts_with(".*") => {
                chars.next();
                Some(Token::AnyText)
            }
            '.' => Some(Token::AnyChar),
            '(' if rest.starts_with("(?:") => {
                chars.nth(1);
                Some(Token::Open)
            }
            // "(?" without ":" begins another construct. The "?" is not allowed in a plain pattern, so the
            // next item is `None`.
            '(' => Some(Token::Open),
            '\\' => chars.next().filter(|mark| ESCAPABLE.contains(*mark)).map(Token::Char),
            '*' | '+' | '?' | '{' | '}' | '[' | ']' => None,
            character => Some(Token::Char(character)),
        };
        rest = chars.as_str();
        Some(token)
    })
}

/// Returns whether a pattern is a plain one.
pub(super) fn is_plain(text: &str) -> bool {
    let (mut is_in_group, mut before) = (false, Some(Token::Or));
    for token in tokens(text) {
        let is_fine = match token {
            None => false,
            Some(Token::Start) => !is_in_group && before == Some(Token::Or),
            Some(Token::Or) => true,
            // After `$` only `|` or the end of the pattern may follow.
            Some(_) if before == Some(Token::End) => false,
            Some(Token::Open) => !core::mem::replace(&mut is_in_group, true),
            Some(Token::Close) => core::mem::replace(&mut is_in_group, false),
            Some(Token::End) => !is_in_group,
            Some(Token::Char(_) | Token::AnyChar | Token::AnyText) => true,
        };
        if !is_fine {
            return false;
        }
        before = token;
    }
    !is_in_group
}

/// A set of positions in a name that a match may have reached: one bit per byte of the longest name, and one
/// for its end.
#[derive(Clone, Copy, Default)]
struct Positions([u64; (NAME_BYTES_MAX + 1) / 64]);

impl Positions {
    const fn one(at: usize) -> Self {
        let mut all = Self([0; (NAME_BYTES_MAX + 1) / 64]);
        all.insert(at);
        all
    }

    fn every(name: &str) -> Self {
        let mut all = Self::one(name.len());
        name.char_indices().for_each(|(at, _)| all.insert(at));
        all
    }

    const fn insert(&mut self, at: usize) {
        self.0[at / 64] |= 1 << (at % 64);
    }

    const fn contains(&self, at: usize) -> bool {
        self.0[at / 64] >> (at % 64) & 1 == 1
    }

    fn is_empty(&self) -> bool {
        self.0 == [0; _]
    }

    fn add(&mut self, others: Self) {
        self.0.iter_mut().zip(others.0).for_each(|(own, other)| *own |= other);
    }

    fn iter(self) -> impl Iterator<Item = usize> {
        self.0.into_iter().enumerate().flat_map(|(word, mut bits)| {
            core::iter::from_fn(move || {
                let bit = (bits != 0).then(|| bits.trailing_zeros() as usize);
                bits &= bits.wrapping_sub(1);
                bit.map(|bit| word * 64 + bit)
            })
        })
    }

    /// Returns the positions after one more character, for which `is_match` returns `true`.
    fn after_char(self, name: &str, is_match: impl Fn(char) -> bool) -> Self {
        let mut all = Self::default();
        for at in self.iter() {
            let character = name[at..].chars().next().filter(|character| is_match(*character));
            character.into_iter().for_each(|character| all.insert(at + character.len_utf8()));
        }
        all
    }

    /// Returns the positions after any number of characters other than line feeds, including these positions.
    fn after_any_text(self, name: &str) -> Self {
        let (mut all, mut is_open) = (self, false);
        for (at, character) in name.char_indices() {
            is_open |= self.contains(at);
            is_open &= character != '\n';
            if is_open {
                all.insert(at + character.len_utf8());
            }
        }
        all
    }
}

/// Returns whether a plain pattern matches a name.
pub(super) fn matches(text: &str, name: &str) -> bool {
    if name.len() > NAME_BYTES_MAX {
        return false;
    }
    let anywhere = Positions::every(name);
    let (mut here, mut is_in_group) = (anywhere, false);
    let (mut before_group, mut behind_group) = (Positions::default(), Positions::default());
    for token in tokens(text).flatten() {
        here = match token {
            Token::Char(wanted) => here.after_char(name, |character| character == wanted),
            Token::AnyChar => here.after_char(name, |character| character != '\n'),
            Token::AnyText => here.after_any_text(name),
            Token::Open => {
                (is_in_group, before_group, behind_group) = (true, here, Positions::default());
                here
            }
            Token::Or if is_in_group => {
                behind_group.add(here);
                before_group
            }
            Token::Or if !here.is_empty() => return true,
            Token::Or => anywhere,
            Token::Close => {
                behind_group.add(here);
                is_in_group = false;
                behind_group
            }
            Token::Start => Positions::one(0),
            Token::End if here.contains(name.len()) => Positions::one(name.len()),
            Token::End => Positions::default(),
        };
    }
    !here.is_empty()
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

    /// Returns the units of work for matching this pattern with this name.
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
    fn invalid_and_oversized_patterns_are_refused() {
        for bad in ["(", "[a", r"\", r"(a)\1", "(?!amq)", "(?<=a)b", "(?<!a)b", "((a{100}){100}){100}"] {
            assert!(Pattern::new(bad, PLENTY).is_err(), "{bad}");
        }
        assert!(Pattern::new(&"a".repeat(PATTERN_BYTES_MAX + 1), PLENTY).is_err());
    }

    /// Patterns as written manually, or by a program from a list of devices.
    #[test]
    fn patterns_may_have_the_documented_length() {
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
        assert!(why.0.contains("share the memory"), "{why}");
    }

    #[test]
    fn plain_patterns_take_their_text_and_compiled_ones_are_charged() {
        assert_eq!(pattern(".*").bytes(), 0);
        assert_eq!(pattern("").bytes(), ALLOCATION_BYTES);
        assert_eq!(pattern("^meter").bytes(), 6 + ALLOCATION_BYTES);
        let (short, long) = (pattern("^a+"), pattern("^[a-z]{60}$"));
        assert!(short.bytes() >= 512 && long.bytes() > short.bytes());
    }

    /// Matching is charged by the size of the program, because a short text may have a large one, and of the
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
    fn the_client_identifier_is_expanded_for_each_client() {
        let is_match = |text: &str, client_id: Option<&str>, name: &str| {
            let pattern = Pattern::with_variables(text, text, PLENTY).unwrap();
            pattern.matches_of(&mut Work::default(), name, client_id)
        };
        // A plain pattern, and one that is compiled.
        for text in [r"^s\.{client_id}\.", r"^s\.{client_id}\.[a-z]+$"] {
            assert!(is_match(text, Some("meter"), "s.meter.x"));
            assert!(!is_match(text, Some("meter"), "s.meter2.x"));
            // The topics s/v1.5/x and s/a/b/x.
            assert!(is_match(text, Some("v1.5"), "s.v1/5.x"));
            assert!(!is_match(text, Some("v1.5"), "s.v1x5.x"));
            assert!(is_match(text, Some("a/b"), "s.a.b.x"));
            // Wildcards, and characters with a meaning in patterns.
            assert!(!is_match(text, Some("*"), "s.*.x"));
            assert!(!is_match(text, Some("#"), "s.#.x"));
            assert!(!is_match(text, Some(".*"), "s.other.x"));
            assert!(!is_match(text, Some("m|"), "s.other.x"));
            // AMQP.
            assert!(is_match(text, None, "s.{client_id}.x"));
            assert!(!is_match(text, None, "s.meter.x"));
        }
        assert!(Pattern::with_variables("{client_id}(", "{client_id}(", PLENTY).is_err());
    }

    #[test]
    fn escaped_text_matches_itself() {
        let name = "a.b*c{2}[d]";
        let pattern = Pattern::with_variables("{username}", &format!("^{}$", escaped(name)), PLENTY).unwrap();
        assert!(is_match(&pattern, name) && !is_match(&pattern, "axb*c{2}[d]"));
    }
}

#[cfg(test)]
mod plain_pattern_tests {
    use regex_lite::Regex;

    use super::*;

    #[test]
    fn plain_patterns_are_recognized() {
        for text in ["", "^$", "a", "^a|b$", "^(a|b)$", r"^(?:a|b)\.(x|y).*", r"^meter\-1$", "(|a)", "|"] {
            assert!(is_plain(text), "{text}");
        }
        let others = [
            "a*", "a+", "(a)?", "a{2}", "[ab]", "((a))", "(a", "a)", "(?i)a", r"\d", r"\", "a^", "$a",
            "(^a)", ".*?", "^*", "(?P<n>a)", ".+", "$$", "^^",
        ];
        for text in others {
            assert!(!is_plain(text), "{text}");
        }
    }

    /// Compares random patterns and names, of few characters so that many match.
    #[test]
    fn a_plain_pattern_matches_what_the_compiled_one_matches() {
        let mut state = 7_u64;
        let mut below = |bound: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % bound
        };
        let parts = [
            "a", "b", "ab", "é", r"\.", ".", ".*", "|", "(", "(?:", ")", "^", "$", "|", "a", "(a|b)", "\n",
            "^", "$",
        ];
        let chars = ["a", "b", "é", ".", "\n"];
        let (mut plain, mut matching) = (0, 0);
        for _ in 0..60_000 {
            let text: String = (0..below(9)).map(|_| parts[below(parts.len())]).collect();
            if !is_plain(&text) {
                continue;
            }
            plain += 1;
            let compiled = Regex::new(&text).unwrap();
            for _ in 0..8 {
                let name: String = (0..below(6)).map(|_| chars[below(chars.len())]).collect();
                assert_eq!(matches(&text, &name), compiled.is_match(&name), "{text:?} and {name:?}");
                matching += usize::from(matches(&text, &name));
            }
        }
        assert!(plain > 5_000 && matching > 5_000, "{plain} patterns, {matching} matches");
    }

    #[test]
    fn the_longest_name_can_be_matched() {
        let name = "a".repeat(NAME_BYTES_MAX);
        assert!(matches("a$", &name) && matches("^.*$", &name) && matches(&format!("^{name}$"), &name));
        assert!(!matches("^a$", &name) && !matches("a", &"a".repeat(NAME_BYTES_MAX + 1)));
    }
}
