//! Suggestions for mistyped keys, flags and board names.

/// Returns the known word that is most similar to `word`; `None` if they all differ in more than a third of the
/// characters, or more than 3.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let edits_max = (word.chars().count() / 3).clamp(1, 3);
    let candidates = known.into_iter().map(|candidate| (edits(word, candidate), candidate));
    candidates.filter(|(edits, _)| *edits <= edits_max).min().map(|(_, candidate)| candidate)
}

/// Returns how many characters must be inserted, deleted or changed to turn one word into the other: the Levenshtein
/// distance. `row` has the distances of a prefix of `from` to each prefix of `to`.
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (above, character) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = above + 1;
        for (at, other) in to.iter().enumerate() {
            let changed = diagonal + usize::from(character != *other);
            diagonal = row[at + 1];
            row[at + 1] = changed.min(row[at] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

/// Returns the error for an unknown word, with a suggestion or else with all known words. `what` is the type of the word,
/// such as "key".
pub fn describe_unknown(what: &str, word: &str, known: &[&str]) -> String {
    match nearest(word, known.iter().copied()) {
        Some(suggestion) => format!("unknown {what} {word}; did you mean {suggestion}?"),
        None => format!("unknown {what} {word}; there are {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_similar_words_are_suggested() {
        let known = ["memory_limit", "listen", "data_dir"];
        assert_eq!(nearest("memory_limt", known), Some("memory_limit"));
        assert_eq!(nearest("lisen", known), Some("listen"));
        assert_eq!(nearest("datadir", known), Some("data_dir"));
        assert_eq!(nearest("colour", known), None);
        assert_eq!(edits("", "abc"), 3);
        assert_eq!(edits("kitten", "sitting"), 3);
    }
}
