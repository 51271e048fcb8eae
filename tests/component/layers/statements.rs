//! The table of the normative statements of both MQTT specifications: every statement has tests, which exist, or a reason.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use super::project;

const FOLDER: &str = "tests/compatibility/mqtt";
/// The versions in their order, and the number of statements of each.
const STATEMENT_COUNTS: [(&str, usize); 2] = [("3.1.1", 141), ("5.0", 251)];
/// The most words of a paraphrase.
const WORDS_MAX: usize = 12;
/// The most tests of a statement.
const TESTS_MAX: usize = 3;

#[test]
fn every_statement_has_existing_tests_or_a_reason() {
    let text = fs::read_to_string(project().join(FOLDER).join("statements.tsv")).expect("the table");
    let cases = suite_cases();
    let mut complaints = wrong_rows(&text, |name| match name.strip_prefix("mqtt/") {
        Some(case) => cases.iter().any(|pattern| is_match(pattern, case)),
        None => is_cargo_test(name),
    });
    for (version, wanted) in STATEMENT_COUNTS {
        let count = rows(&text).filter(|(_, row)| row.split('\t').next() == Some(version)).count();
        if count != wanted {
            complaints.push(format!("{count} statements of version {version} instead of {wanted}"));
        }
    }
    complaints.extend(not_in_gate(&text));
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

/// Returns complaints about programs that the gate does not run as a whole. A test that is ignored counts as missing, so
/// the gate runs every test of the table.
fn not_in_gate(text: &str) -> Vec<String> {
    let steps = fs::read_to_string(project().join("tests/steps.toml")).expect("the steps");
    let named = rows(text)
        .filter_map(|(_, row)| row.split('\t').nth(3))
        .filter(|shown_by| !shown_by.starts_with('-'));
    let step_of = |name: &str| match name.split_once(':') {
        Some((program, _)) => format!("[cargo.{program}]"),
        None => format!("[suite.{}]", name.split('/').next().unwrap_or_default()),
    };
    let wanted: BTreeSet<String> = named.flat_map(|shown_by| shown_by.split(' ')).map(step_of).collect();
    let is_in_gate = |step: &String| {
        let block =
            steps.split_once(step.as_str()).map_or("", |(_, rest)| rest.split("\n\n").next().unwrap_or(""));
        block.lines().any(|line| line == "gate = true")
    };
    let missing = wanted.iter().filter(|step| !is_in_gate(step));
    missing.map(|step| format!("the gate does not run all of {step} in tests/steps.toml")).collect()
}

/// Returns the rows of the table with their line numbers.
fn rows(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(at, row)| (at + 1, row)).filter(|(_, row)| !row.starts_with('#'))
}

/// Returns what is wrong in the rows of a table. `exists` tells whether there is a test with a name.
fn wrong_rows(text: &str, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut earlier = (0, Vec::new());
    for (line, row) in rows(text) {
        let mut complain = |what: &str| complaints.push(format!("{FOLDER}/statements.tsv:{line}: {what}"));
        let columns: Vec<&str> = row.split('\t').collect();
        let [version, statement, about, shown_by] = columns[..] else {
            complain("a row without four columns");
            continue;
        };
        let version = STATEMENT_COUNTS.iter().position(|(known, _)| *known == version);
        let numbers = numbers_of(statement);
        let (Some(version), Some(numbers)) = (version, numbers) else {
            complain("an unknown version, or no statement");
            continue;
        };
        let place = (version, numbers);
        if place <= earlier {
            complain("a statement that is there twice, or not in its order");
        }
        earlier = place;
        if !(1..=WORDS_MAX).contains(&about.split_whitespace().count()) {
            complain("a paraphrase with too many words, or with none");
        }
        if shown_by.starts_with('?') {
            complain(shown_by);
        } else if let Some(reason) = shown_by.strip_prefix('-') {
            if reason.trim().is_empty() {
                complain("an empty reason");
            }
        } else {
            let names: Vec<&str> = shown_by.split(' ').collect();
            if names.len() > TESTS_MAX {
                complain("more than three tests");
            }
            for name in names.into_iter().filter(|name| !exists(name)) {
                complain(&format!("there is no test '{name}'"));
            }
        }
    }
    complaints
}

/// Returns the numbers of a statement such as `MQTT-3.1.2-24`.
fn numbers_of(statement: &str) -> Option<Vec<u32>> {
    let (section, number) = statement.strip_prefix("MQTT-")?.split_once('-')?;
    let numbers: Option<Vec<u32>> =
        section.split('.').chain([number]).map(|text| text.parse().ok()).collect();
    numbers.filter(|numbers| numbers.len() == 4)
}

/// Returns whether there is a Cargo test with this name: `PROGRAM:MODULE::FUNCTION`. Tests in the file of a package have
/// the module `tests` inside of that of the file.
fn is_cargo_test(name: &str) -> bool {
    let Some((program, path)) = name.split_once(':') else { return false };
    let folder = match program.strip_prefix("leveret-") {
        Some(package) => format!("src/{package}"),
        None => format!("tests/simulation/{program}"),
    };
    let Some((modules, function)) = path.rsplit_once("::") else { return false };
    let modules = modules.strip_suffix("::tests").unwrap_or(modules).replace("::", "/");
    let files: [PathBuf; 2] =
        [format!("{modules}.rs"), format!("{modules}/mod.rs")].map(|file| project().join(&folder).join(file));
    let texts = files.iter().filter_map(|file| fs::read_to_string(file).ok());
    let head = format!("fn {function}() {{");
    let is_test = |text: String| {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        lines.windows(2).any(|pair| pair == ["#[test]", &head])
    };
    texts.into_iter().any(is_test)
}

/// Returns the names of the suite's cases, each as the texts between its placeholders.
fn suite_cases() -> Vec<Vec<String>> {
    let files =
        fs::read_dir(project().join(FOLDER)).expect("a folder").map(|entry| entry.expect("an entry").path());
    let files = files.filter(|path| path.extension().is_some_and(|ending| ending == "py"));
    let texts = files.map(|path| fs::read_to_string(path).expect("UTF-8"));
    texts.flat_map(|text| cases_of(&text)).collect()
}

/// Returns the strings of the function `cases` of a module in Python, such as `f"paho-{version}"`.
fn cases_of(text: &str) -> Vec<Vec<String>> {
    let Some((_, function)) = text.split_once("\ndef cases(") else { return Vec::new() };
    // A documentation string has three quotation marks on each side.
    let strings = function.split('"').skip(1).step_by(2);
    let strings = strings.filter(|string| string.contains(|letter: char| letter.is_ascii_lowercase()));
    let parts = |string: &str| {
        let mut parts = string.split('{');
        let first = parts.next().unwrap_or_default();
        let others = parts.map(|part| part.split_once('}').map_or(part, |(_, behind)| behind));
        [first].into_iter().chain(others).map(str::to_owned).collect()
    };
    strings.map(parts).collect()
}

/// Returns whether a name has these parts, with at least a letter between each two of them.
fn is_match(parts: &[String], name: &str) -> bool {
    let [first, others @ ..] = parts else { return name.is_empty() };
    let Some(rest) = name.strip_prefix(&**first) else { return false };
    match others {
        [] => rest.is_empty(),
        _ => (1..=rest.len()).filter_map(|at| rest.get(at..)).any(|rest| is_match(others, rest)),
    }
}

#[test]
fn a_wrong_row_is_found() {
    let exists = |name: &str| ["p:m::f", "mqtt/c"].contains(&name);
    let right = "# a comment\n3.1.1\tMQTT-3.1.2-9\ta b\tp:m::f mqtt/c\n3.1.1\tMQTT-3.1.2-10\ta\t- a reason\n\
                 5.0\tMQTT-1.5.4-1\ta\tmqtt/c\n";
    assert_eq!(wrong_rows(right, exists), [""; 0]);
    for (from, to) in [
        ("\ta b\t", "\t"),
        ("5.0\t", "5.1\t"),
        ("MQTT-1.5.4-1", "MQTT-1.5.4"),
        ("3.1.2-10", "3.1.2-9"),
        ("3.1.2-10", "3.1.2-8"),
        ("\ta b\t", "\ta b c d e f g h i j k l m\t"),
        ("\ta b\t", "\t\t"),
        ("- a reason", "- "),
        ("- a reason", "?missing"),
        ("p:m::f ", "p:m::g "),
        ("p:m::f ", "p:m::f  "),
        ("p:m::f ", "p:m::f p:m::f p:m::f "),
    ] {
        assert_eq!(wrong_rows(&right.replacen(from, to, 1), exists).len(), 1, "{to}");
    }
    let cases = cases_of(
        "\ndef cases(kills):\n    \"\"\"Returns.\"\"\"\n    found[f\"p-{v}-qos-{q}\"] = \"plain\"\n",
    );
    let is_case = |name| cases.iter().any(|pattern| is_match(pattern, name));
    assert!(is_case("p-3.1.1-qos-1") && is_case("plain"));
    assert!(!is_case("p-3.1.1-qos-") && !is_case("plai") && !is_case("p-5-qo-1") && !is_case("plainly"));
    assert!(is_cargo_test("leveret-mqtt:topic::tests::invalid_filters_and_names_are_refused"));
    for name in [
        "leveret-mqtt:topic::tests::matches",
        "leveret-mqtt:packet::tests::invalid_filters_and_names_are_refused",
        "in_memory:mqtt::subscriber",
        "in_memory:none::f",
        "in_memory",
    ] {
        assert!(!is_cargo_test(name), "{name}");
    }
}
