//! Where the head of a `mod.rs` has a table of its files, each of them has its row.

use super::{project, read_sources};

/// Modules of a file with a table that the table does not name; those of tests, and of other folders, need no
/// row.
fn left_out(text: &str) -> Vec<&str> {
    let rows: String = text.lines().filter(|line| line.starts_with("//! |")).collect();
    if rows.is_empty() {
        return Vec::new();
    }
    let mut before = "";
    let mut modules = Vec::new();
    for line in text.lines() {
        let declared = line.strip_suffix(';').and_then(|line| line.rsplit_once("mod "));
        if let Some((_, name)) =
            declared.filter(|(visible, _)| visible.is_empty() || visible.starts_with("pub"))
            && !["#[cfg(test)]", "#[path"].iter().any(|mark| before.starts_with(mark))
        {
            modules.push(name);
        }
        before = line;
    }
    modules.retain(|name| !rows.contains(&format!("`{name}`")));
    modules
}

#[test]
fn every_file_has_a_row_in_the_table_of_its_folder() {
    let root = project();
    let sources = ["src", "tests"].map(|folder| read_sources(&root.join(folder)));
    let all = sources.iter().flatten();
    let missing = all.map(|(path, text)| (path, left_out(text))).filter(|(_, names)| !names.is_empty());
    let complaints: Vec<String> = missing
        .map(|(path, names)| format!("{path}: no row in its table for {}", names.join(", ")))
        .collect();
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn a_file_without_a_row() {
    let head = "//! | `here` | what it holds; `there` too |\n\nmod here;\npub(crate) mod there;\n";
    assert!(left_out(head).is_empty());
    assert_eq!(left_out(&format!("{head}mod lost;\npub mod gone;\n")), ["lost", "gone"]);
    assert!(left_out(&format!("{head}#[cfg(test)]\nmod tests;\n#[path = \"../x.rs\"]\nmod x;\n")).is_empty());
    assert!(left_out("//! No table.\n\nmod lost;\n").is_empty());
}
