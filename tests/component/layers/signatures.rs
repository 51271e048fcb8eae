//! Functions with many values: more than `VALUES_MAX` in one signature are passed as a struct, whose fields have names
//! where the function is called.

use std::fs;

use super::{project, rust_files};

/// The most values of a function, without `self`. A tuple counts as its members.
const VALUES_MAX: usize = 5;

/// Returns the names of the functions in a text that take more than [`VALUES_MAX`] values.
fn functions_with_many_values(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("fn ") {
        let is_word =
            rest[..at].chars().next_back().is_none_or(|before| !before.is_alphanumeric() && before != '_');
        rest = &rest[at + 3..];
        let name: String =
            rest.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect();
        let after_name = &rest[name.len()..];
        if !is_word || name.is_empty() || !after_name.starts_with(['(', '<']) {
            continue;
        }
        let Some(parameters) = parameters_of(after_name) else { continue };
        if split(parameters).into_iter().map(values).sum::<usize>() > VALUES_MAX {
            found.push(name);
        }
    }
    found
}

/// Returns the text between the parentheses of the parameters, behind generic parameters.
fn parameters_of(text: &str) -> Option<&str> {
    let (mut angles, mut before) = (0_usize, ' ');
    let open = text.char_indices().find_map(|(at, letter)| {
        match letter {
            '<' => angles += 1,
            // The arrow of a function type is not a bracket.
            '>' if before != '-' => angles = angles.saturating_sub(1),
            '(' if angles == 0 => return Some(at),
            _ => {}
        }
        before = letter;
        None
    })?;
    let mut depth = 0;
    let close = text[open..].char_indices().find_map(|(at, letter)| {
        match letter {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        (depth == 0).then_some(open + at)
    })?;
    Some(&text[open + 1..close])
}

/// Splits a list at the commas that are in no brackets.
fn split(list: &str) -> Vec<&str> {
    let (mut depth, mut begin, mut parts, mut before) = (0_usize, 0, Vec::new(), ' ');
    for (at, letter) in list.char_indices() {
        match letter {
            '(' | '[' | '{' | '<' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            '>' if before != '-' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&list[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
        before = letter;
    }
    parts.push(&list[begin..]);
    parts.into_iter().map(str::trim).filter(|part| !part.is_empty()).collect()
}

/// Returns how many values a parameter is.
fn values(parameter: &str) -> usize {
    let is_self = parameter.split(':').next().is_some_and(|name| name.ends_with("self"));
    match parameter.strip_prefix('(').and_then(|pattern| pattern.split_once(')')) {
        _ if is_self => 0,
        Some((members, _)) => split(members).len(),
        None => 1,
    }
}

#[test]
fn no_function_takes_more_than_five_values() {
    let (mut file_count, mut found) = (0, Vec::new());
    for path in rust_files(&project().join("src")).into_iter().filter(|path| !path.ends_with("tests.rs")) {
        let text = fs::read_to_string(&path).expect("UTF-8");
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let names = functions_with_many_values(code).into_iter();
        found.extend(names.map(|name| format!("{}: {name}", path.display())));
        file_count += 1;
    }
    assert!(file_count > 100, "{file_count} files were read");
    assert!(found.is_empty(), "more than {VALUES_MAX} values, pass a struct: {found:#?}");
}

#[test]
fn a_tuple_counts_as_its_members() {
    let texts = [
        ("fn ok(&mut self, a: u8, (b, c): (u8, u8), d: u8, e: impl Fn(u8, u8) -> u8) {}", 0),
        ("fn many<F: Fn(u8) -> u8>(a: u8, (b, c): (u8, u8), d: Map<u8, u8>, e: F, f: u8) {}", 1),
        (
            "pub const fn six(a: u8, b: u8, c: u8, d: u8, e: u8, f: [u8; 2]) {}\nlet x: fn(u8, u8, u8, u8, u8, u8);",
            1,
        ),
    ];
    for (text, count) in texts {
        assert_eq!(functions_with_many_values(text).len(), count, "{text}");
    }
}
