//! Patterns that are names or lists of names, matched as they are written.
//!
//! ```text
//! pattern  branch { "|" branch }
//! branch   [ "^" ] { piece | group } [ "$" ]
//! group    "(" [ "?:" ] { piece } { "|" { piece } } ")"
//! piece    a character | "\" and a mark | "." | ".*"
//! ```
//!
//! Why it exists: long patterns are lists of devices, and a compiled one of 1,024 bytes takes 128 KiB, which
//! is more than a small board has for all of them. Plain patterns take the bytes of their text.
//!
//! Always true: a plain pattern matches what the compiled pattern would (a test compares them); a match
//! allocates nothing and goes through the text once, whatever the name.

use leveret_core::mem::NAME_BYTES_MAX;

/// Characters that stand for themselves behind a backslash.
const MARKS: &str = r"\.+*?()|[]{}^$#&-~/";

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

/// The tokens of a text; `None` for one that only a compiled pattern can have.
fn tokens(text: &str) -> impl Iterator<Item = Option<Token>> {
    let mut rest = text;
    core::iter::from_fn(move || {
        let mut letters = rest.chars();
        let token = match letters.next()? {
            '^' => Some(Token::Start),
            '$' => Some(Token::End),
            '|' => Some(Token::Or),
            ')' => Some(Token::Close),
            '.' if rest.starts_with(".*") => {
                letters.next();
                Some(Token::AnyText)
            }
            '.' => Some(Token::AnyChar),
            '(' if rest.starts_with("(?:") => {
                letters.nth(1);
                Some(Token::Open)
            }
            // "(?" begins something else, whose question mark is refused later.
            '(' => Some(Token::Open),
            '\\' => letters.next().filter(|mark| MARKS.contains(*mark)).map(Token::Char),
            '*' | '+' | '?' | '{' | '}' | '[' | ']' => None,
            letter => Some(Token::Char(letter)),
        };
        rest = letters.as_str();
        Some(token)
    })
}

/// Whether a pattern is a plain one.
pub(super) fn is_plain(text: &str) -> bool {
    let (mut is_in_group, mut before) = (false, Some(Token::Or));
    for token in tokens(text) {
        let is_fine = match token {
            None => false,
            Some(Token::Start) => !is_in_group && before == Some(Token::Or),
            Some(Token::Or) => true,
            // Behind `$` only another branch or the end may come.
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

/// Places in a name where a match may have come to: one bit for each byte, and one for the end.
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

    /// The positions behind one character that is right.
    fn behind(self, name: &str, is_right: impl Fn(char) -> bool) -> Self {
        let mut all = Self::default();
        for at in self.iter() {
            let letter = name[at..].chars().next().filter(|letter| is_right(*letter));
            letter.into_iter().for_each(|letter| all.insert(at + letter.len_utf8()));
        }
        all
    }

    /// The positions behind any characters, or none.
    fn behind_any(self, name: &str) -> Self {
        let (mut all, mut is_open) = (self, false);
        for (at, letter) in name.char_indices() {
            is_open |= self.contains(at);
            is_open &= letter != '\n';
            if is_open {
                all.insert(at + letter.len_utf8());
            }
        }
        all
    }
}

/// Whether a plain pattern matches a name.
pub(super) fn matches(text: &str, name: &str) -> bool {
    if name.len() > NAME_BYTES_MAX {
        return false;
    }
    let anywhere = Positions::every(name);
    let (mut here, mut is_in_group) = (anywhere, false);
    let (mut before_group, mut behind_group) = (Positions::default(), Positions::default());
    for token in tokens(text).flatten() {
        here = match token {
            Token::Char(meant) => here.behind(name, |letter| letter == meant),
            Token::AnyChar => here.behind(name, |letter| letter != '\n'),
            Token::AnyText => here.behind_any(name),
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
    use regex_lite::Regex;

    use super::*;

    #[test]
    fn what_is_plain_and_what_is_not() {
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
    fn it_matches_what_the_compiled_pattern_matches() {
        let mut state = 7_u64;
        let mut below = |bound: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % bound
        };
        let parts = [
            "a", "b", "ab", "é", r"\.", ".", ".*", "|", "(", "(?:", ")", "^", "$", "|", "a", "(a|b)", "\n",
            "^", "$",
        ];
        let letters = ["a", "b", "é", ".", "\n"];
        let (mut plain, mut matching) = (0, 0);
        for _ in 0..60_000 {
            let text: String = (0..below(9)).map(|_| parts[below(parts.len())]).collect();
            if !is_plain(&text) {
                continue;
            }
            plain += 1;
            let compiled = Regex::new(&text).unwrap();
            for _ in 0..8 {
                let name: String = (0..below(6)).map(|_| letters[below(letters.len())]).collect();
                assert_eq!(matches(&text, &name), compiled.is_match(&name), "{text:?} and {name:?}");
                matching += usize::from(matches(&text, &name));
            }
        }
        assert!(plain > 5_000 && matching > 5_000, "{plain} patterns, {matching} matches");
    }

    #[test]
    fn the_longest_name_has_its_place() {
        let name = "a".repeat(NAME_BYTES_MAX);
        assert!(matches("a$", &name) && matches("^.*$", &name) && matches(&format!("^{name}$"), &name));
        assert!(!matches("^a$", &name) && !matches("a", &"a".repeat(NAME_BYTES_MAX + 1)));
    }
}
