//! The version of the running program. Only the program's own package knows the commit that it is built from. If each
//! package knew it, each would be compiled again after a commit.

use std::sync::OnceLock;

static BUILD: OnceLock<&str> = OnceLock::new();

/// Sets the version that [`build_version`] returns. Only the first call in a process has an effect; `main` makes it.
pub fn set_build_version(version: &'static str) {
    BUILD.get_or_init(|| version);
}

/// Returns the version of this build, such as `0.2.0~dev7+g0123abcd`. In programs that have set none, such as tests, it is
/// the version of the packages.
pub fn build_version() -> &'static str {
    BUILD.get().copied().unwrap_or(env!("CARGO_PKG_VERSION"))
}
