//! Suggestions for mistyped keys, flags and board names. A suggestion is made only if it is likely.

/// Returns the known word that `said` was probably meant to be.
pub fn nearest<'a>(said: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let edits_max = (said.chars().count() / 3).clamp(1, 3);
    let candidates = known.into_iter().map(|word| (edits(said, word), word));
    candidates.filter(|(edits, _)| *edits <= edits_max).min().map(|(_, word)| word)
}

/// Returns the number of characters to insert, delete or change to turn one word into the other.
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (above, letter) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = above + 1;
        for (at, other) in to.iter().enumerate() {
            let changed = diagonal + usize::from(letter != *other);
            diagonal = row[at + 1];
            row[at + 1] = changed.min(row[at] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

/// Formats why a word is refused: with a suggestion, or with all known words.
pub fn describe_unknown(what: &str, said: &str, known: &[&str]) -> String {
    match nearest(said, known.iter().copied()) {
        Some(word) => format!("unknown {what} {said}; did you mean {word}?"),
        None => format!("unknown {what} {said}; there are {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_understood_and_another_word_is_not() {
        let known = ["memory_limit", "listen", "data_dir"];
        assert_eq!(nearest("memory_limt", known), Some("memory_limit"));
        assert_eq!(nearest("lisen", known), Some("listen"));
        assert_eq!(nearest("datadir", known), Some("data_dir"));
        assert_eq!(nearest("colour", known), None);
        assert_eq!(edits("", "abc"), 3);
        assert_eq!(edits("kitten", "sitting"), 3);
    }
}
