//! The version of a build: a macro that asks Git while the program is compiled.
//!
//! | build                                                     | version                  |
//! |-----------------------------------------------------------|--------------------------|
//! | `LEVERET_VERSION` is set                                  | its value                |
//! | `HEAD` has the tag `vVERSION`                             | `VERSION`                |
//! | any other commit                                          | `VERSION~devN+gCOMMIT`   |
//! | a shallow clone, in which commits cannot be counted       | `VERSION~dev0+gCOMMIT`   |
//! | a Git checkout, but `git` is missing or refuses to answer | `VERSION~dev0`           |
//! | a source archive                                          | `VERSION`                |
//!
//! `VERSION` is the version in `Cargo.toml`, N the number of commits. For dpkg a later build has a greater version, and
//! the release is greater than each of its development builds.
//!
//! It is a macro and not a build script, because Cargo would compile each target of the package again after its build
//! script has run, test programs included. The expansion names the files that `git commit` changes, so the compiler
//! tells Cargo to compile only the programs that use the macro.

use std::env;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use proc_macro::TokenStream;

/// The variable with the version, for builds outside of a Git checkout and for releases.
const VARIABLE: &str = "LEVERET_VERSION";
/// Number of hexadecimal digits of the commit. It is fixed, because the shortest unique prefix differs among clones.
const COMMIT_DIGITS: usize = 8;

/// Expands to the version of this build, a `&'static str`. The package that uses it must be in the top folder.
#[proc_macro]
pub fn build_version(_: TokenStream) -> TokenStream {
    let (Ok(root), Ok(version)) = (env::var("CARGO_MANIFEST_DIR"), env::var("CARGO_PKG_VERSION")) else {
        return error("Cargo has set no CARGO_MANIFEST_DIR and CARGO_PKG_VERSION");
    };
    let root = Path::new(&root);
    let version = match env::var(VARIABLE) {
        Ok(said) if !said.is_empty() && !is_version(&said) => {
            return error(&format!(
                "{VARIABLE} is not a version such as 0.2.0 or 0.2.0~dev7+g0123abcd: {said}"
            ));
        }
        Ok(said) if !said.is_empty() => said,
        // A source archive may have been unpacked in another project's checkout.
        _ if root.join(".git").exists() => checked_out(root, &version),
        _ => version,
    };
    // `option_env!` makes the compiler note the variable, and `include_bytes!` the files. The constants are not used, so
    // they are not in the program.
    let mut code = format!("{{ const _: Option<&str> = option_env!({VARIABLE:?});");
    for file in watched_files(root) {
        // Writing into a String cannot fail.
        let _ = write!(code, "const _: &[u8] = include_bytes!({:?});", file.display().to_string());
    }
    let _ = write!(code, "{version:?} }}");
    code.parse().unwrap_or_else(|_| error("the version cannot be written as Rust"))
}

fn error(text: &str) -> TokenStream {
    format!("compile_error!({text:?})").parse().unwrap_or_default()
}

/// Returns whether dpkg accepts the text as an upstream version without a revision.
fn is_version(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_digit())
        && text.bytes().all(|octet| octet.is_ascii_alphanumeric() || b".+~".contains(&octet))
}

/// Returns the version of the commit that is checked out.
fn checked_out(root: &Path, version: &str) -> String {
    let Some(commit) = git(root, &["rev-parse", "HEAD"]) else { return format!("{version}~dev0") };
    let tags = git(root, &["tag", "--points-at", "HEAD"]).unwrap_or_default();
    if tags.lines().any(|tag| tag.strip_prefix('v') == Some(version)) {
        return version.to_string();
    }
    let is_whole =
        git(root, &["rev-parse", "--is-shallow-repository"]).is_some_and(|answer| answer == "false");
    let count =
        git(root, &["rev-list", "--count", "HEAD"]).filter(|_| is_whole).unwrap_or_else(|| "0".to_string());
    format!("{version}~dev{count}+g{}", commit.get(..COMMIT_DIGITS).unwrap_or(&commit))
}

/// Returns the files that change when another commit is checked out or the tag of the release is deleted. A missing file
/// is left out, because it cannot be included.
fn watched_files(root: &Path) -> Vec<PathBuf> {
    if !root.join(".git").exists() {
        return Vec::new();
    }
    let branch = git(root, &["symbolic-ref", "--quiet", "HEAD"]);
    let tag = env::var("CARGO_PKG_VERSION").ok().map(|version| format!("refs/tags/v{version}"));
    let names = ["HEAD", "logs/HEAD", "packed-refs"].map(str::to_string).into_iter().chain(branch).chain(tag);
    let files = names.filter_map(|name| git(root, &["rev-parse", "--git-path", &name]));
    files.map(|file| root.join(file)).filter(|file| file.is_file()).collect()
}

/// Returns the answer of Git without the line feed, or `None` if it fails.
fn git(root: &Path, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new("git");
    // A build that a hook of Git starts has variables that name another repository.
    for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR"] {
        command.env_remove(variable);
    }
    let output =
        command.arg("-C").arg(root).args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim_end().to_string())
}
