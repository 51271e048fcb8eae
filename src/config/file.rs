//! Reading TOML into the layer of one source.
//!
//! Each key defines how its value is read ([`Readable`]). [`read`] walks the tables and passes every key to its
//! section. Derived deserialisers are not used: they were 4 % of the program.
//!
//! # Invariants
//! - An unknown key, or a value that does not fit, is an error with its place in the text. Nothing of the text is
//!   used then. Keys of older versions ([`REMOVED_KEYS`]) cause only a warning.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use leveret_json::BYTE_ORDER_MARK;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Keys of older versions, and what replaces them. They cause only a warning, so a board starts with its old file
/// after an update.
pub(super) const REMOVED_KEYS: [(&str, &str); 1] =
    [("spill_transient", "transient messages stay in memory, and their publishers wait when it is full")];

/// A value in the text.
pub(super) type Value<'a> = Spanned<DeValue<'a>>;

/// An error in a text, and its place.
#[derive(Debug)]
pub(super) struct Wrong {
    /// Offset in bytes from the start of the text.
    pub(super) at: usize,
    /// One sentence, without the place.
    pub(super) why: String,
    /// Offset of the earlier occurrence that it contradicts.
    pub(super) first: Option<usize>,
}

impl Wrong {
    /// Makes an error at a value.
    #[cold]
    pub(super) fn value(value: &Value<'_>, why: impl fmt::Display) -> Self {
        Self { at: value.span().start, why: why.to_string(), first: None }
    }

    /// Makes an error for a value of the wrong type.
    #[cold]
    pub(super) fn kind(value: &Value<'_>, wanted: &str) -> Self {
        let found = match value.get_ref() {
            DeValue::String(text) => format!("the text \"{text}\""),
            DeValue::Integer(number) => format!("the number {number}"),
            DeValue::Float(number) => format!("the number {number}"),
            DeValue::Boolean(truth) => truth.to_string(),
            DeValue::Datetime(_) => "a date or a time".to_string(),
            DeValue::Array(_) => "a list".to_string(),
            DeValue::Table(_) => "a section".to_string(),
        };
        Self::value(value, format_args!("there must be {wanted}, not {found}"))
    }
}

/// The type of a key's value.
pub(super) trait Readable: Sized {
    /// Reads the value, or returns why it does not fit.
    fn read(value: &Value<'_>) -> Result<Self, Wrong>;
}

/// Sets `place` if the key was set.
pub(super) fn put<T>(place: &mut T, said: Option<T>) {
    if let Some(value) = said {
        *place = value;
    }
}

/// Returns the text of a string or a number before it is parsed.
pub(super) fn written(value: &Value<'_>) -> Result<String, Wrong> {
    match value.get_ref() {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) => {
            let number = i64::from_str_radix(number.as_str(), number.radix());
            number
                .map(|number| number.to_string())
                .map_err(|_| Wrong::value(value, "the number is too large"))
        }
        // A version number may be written without quotes. Types that need an integer refuse it.
        DeValue::Float(number) => Ok(number.as_str().to_string()),
        _ => Err(Wrong::kind(value, "a number or a text in quotes")),
    }
}

/// Reads types that are also used by command-line flags, with the same `FromStr`.
macro_rules! read_from_text {
    ($($kind:ident $(<$param:ident>)?;)*) => {$(
        impl$(<$param: TryFrom<u64>>)? $crate::file::Readable for $kind$(<$param>)? {
            fn read(
                value: &$crate::file::Value<'_>,
            ) -> Result<Self, $crate::file::Wrong> {
                let text = $crate::file::written(value)?;
                text.parse().map_err(|bad: BadValue| $crate::file::Wrong::value(value, bad))
            }
        }
    )*};
}

impl Readable for bool {
    fn read(value: &Value<'_>) -> Result<Self, Wrong> {
        value.get_ref().as_bool().ok_or_else(|| Wrong::kind(value, "true or false"))
    }
}

impl Readable for String {
    fn read(value: &Value<'_>) -> Result<Self, Wrong> {
        value.get_ref().as_str().map(Self::from).ok_or_else(|| Wrong::kind(value, "a text in quotes"))
    }
}

impl Readable for PathBuf {
    fn read(value: &Value<'_>) -> Result<Self, Wrong> {
        value.get_ref().as_str().map(Self::from).ok_or_else(|| Wrong::kind(value, "a path in quotes"))
    }
}

impl<T: Readable> Readable for Vec<T> {
    fn read(value: &Value<'_>) -> Result<Self, Wrong> {
        match value.get_ref() {
            DeValue::Array(list) => list.iter().map(T::read).collect(),
            // A value without brackets is a list of one.
            DeValue::String(_) => T::read(value).map(|one| vec![one]),
            _ => Err(Wrong::kind(value, "a list in square brackets")),
        }
    }
}

/// A section, or the top level.
pub(super) trait Section {
    /// Returns its keys, the names of sections below it included.
    fn keys(&self) -> &'static [&'static str];

    /// Reads the value of a key. Returns the section if the key is the name of one, or that the key is unknown.
    fn take(&mut self, key: &str, value: &Value<'_>) -> Result<Taken<'_>, Wrong>;
}

/// The result of passing a key to a section.
pub(super) enum Taken<'a> {
    /// The value was read.
    Value,
    /// The key is the name of this section.
    Section(&'a mut dyn Section),
    /// The key is unknown.
    Unknown,
}

/// Declares a section: its keys with their types, and the sections below it. Each key is a field that is `None`
/// until it is set.
macro_rules! section {
    (
        $(#[$doc:meta])* $vis:vis struct $layer:ident {
            $($(#[$about:meta])* $key_vis:vis $key:ident: $kind:ty,)*
        }
        $(above { $($section_vis:vis $section:ident: $inner:ident,)* })?
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        $vis struct $layer {
            $($(#[$about])* $key_vis $key: Option<$kind>,)*
            $($($section_vis $section: $inner,)*)?
        }

        impl $layer {
            /// The keys, the names of sections below included.
            pub(super) const KEYS: &'static [&'static str] =
                &[$(stringify!($key),)* $($(stringify!($section),)*)?];
        }

        impl $crate::file::Section for $layer {
            fn keys(&self) -> &'static [&'static str] {
                Self::KEYS
            }

            fn take(
                &mut self,
                key: &str,
                value: &$crate::file::Value<'_>,
            ) -> Result<$crate::file::Taken<'_>, $crate::file::Wrong> {
                use $crate::file::{Readable, Taken};
                match key {
                    $(stringify!($key) => self.$key = Some(Readable::read(value)?),)*
                    $($(stringify!($section) => return Ok(Taken::Section(&mut self.$section)),)*)?
                    _ => return Ok(Taken::Unknown),
                }
                Ok(Taken::Value)
            }
        }
    };
}

pub(super) use read_from_text;
pub(super) use section;

/// Reads a whole text into `top`. `unknown` explains why a key is refused, given the keys of its section.
pub(super) fn read(
    text: &str,
    top: &mut dyn Section,
    unknown: fn(&str, &[&str]) -> String,
) -> Result<(), Wrong> {
    let table = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start.min(text.len()));
        let why = match error.message() {
            // The library gives the place of the key, but not its name.
            "duplicate key" => {
                let key = error.span().and_then(|span| text.get(span)).unwrap_or_default();
                format!("{key} stands there twice")
            }
            message => message.to_string(),
        };
        Wrong { at, why, first: None }
    })?;
    fill(top, table.get_ref(), unknown)
}

pub(super) fn fill(
    section: &mut dyn Section,
    table: &DeTable<'_>,
    unknown: fn(&str, &[&str]) -> String,
) -> Result<(), Wrong> {
    for (key, value) in table {
        let known = section.keys();
        let name = key.get_ref();
        let named = |wrong: Wrong| Wrong { why: format!("{name}: {}", wrong.why), ..wrong };
        match section.take(name, value).map_err(named)? {
            Taken::Value => {}
            Taken::Section(inner) => match value.get_ref().as_table() {
                Some(table) => fill(inner, table, unknown)?,
                None => return Err(named(Wrong::kind(value, "a section"))),
            },
            Taken::Unknown if REMOVED_KEYS.iter().any(|(key, _)| *key == &**name) => {}
            Taken::Unknown => {
                return Err(Wrong { at: key.span().start, why: unknown(name, known), first: None });
            }
        }
    }
    Ok(())
}

/// Reads a text file of at most `bytes_max` bytes, without a byte-order mark at its beginning. Returns `None` if
/// the file is larger.
///
/// # Errors
/// It cannot be read, is not a regular file, or is not UTF-8.
pub(super) fn read_text_file(file: &Path, bytes_max: u64) -> io::Result<Option<String>> {
    // Opening a pipe must not wait for its writer.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let opened = File::options().read(true).custom_flags(nonblocking).open(file)?;
    if !opened.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut text = Vec::new();
    opened.take(bytes_max + 1).read_to_end(&mut text)?;
    if text.len() as u64 > bytes_max {
        return Ok(None);
    }
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&text).to_vec();
    String::from_utf8(text).map(Some).map_err(io::Error::other)
}

/// The file with the machine's identifier.
const MACHINE_ID: &str = "/etc/machine-id";

/// Expands `${hostname}`, `${machine_id}` and `${env:NAME}`, so that one file fits a whole fleet. A variable
/// without a value is an error, and inserted text is not expanded again.
///
/// # Errors
/// The variable without a value, or the syntax error.
#[cold]
pub(super) fn expand(text: &str) -> Result<String, String> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once("${") {
        let Some((name, after)) = behind.split_once('}') else {
            return Err(format!("\"{text}\" has a ${{ without its }}"));
        };
        expanded.push_str(before);
        expanded.push_str(&value_of(name)?);
        rest = after;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

#[cold]
fn value_of(name: &str) -> Result<String, String> {
    let value = match name {
        "hostname" => rustix::system::uname().nodename().to_str().ok().map(str::to_string),
        "machine_id" => fs::read_to_string(MACHINE_ID).ok().map(|text| text.trim().to_string()),
        _ => match name.strip_prefix("env:") {
            Some(variable) => std::env::var(variable).ok(),
            None => {
                return Err(format!(
                    "${{{name}}} is not known; there are ${{hostname}}, ${{machine_id}} and ${{env:NAME}}"
                ));
            }
        },
    };
    let value = value.filter(|value| !value.is_empty());
    value.ok_or_else(|| format!("${{{name}}} has no value on this machine"))
}

/// Why there is no configuration: a sentence that says what to change.
#[derive(Debug)]
pub enum ConfigError {
    /// The file cannot be read.
    Unreadable {
        /// The path of the file as given.
        file: PathBuf,
        /// The error of the system.
        why: io::Error,
    },
    /// The file contains an error.
    Refused {
        /// The path of the file as given.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// Two keys contradict each other.
    Contradiction(String),
    /// There is no profile of this name; the text suggests others.
    UnknownBoard(String),
    /// A profile names another profile.
    BoardInBoard(String),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { file, why } => {
                write!(f, "cannot read {}: {why}; name a readable TOML file", file.display())
            }
            Self::Refused { file, line, why } => write!(f, "{file}, line {line}: {why}"),
            Self::Contradiction(why) => f.write_str(why),
            Self::UnknownBoard(why) => write!(f, "{why} (or name a file by a path with a slash)"),
            Self::BoardInBoard(name) => {
                write!(f, "the profile {name} has the key board itself; take it out, a profile stands alone")
            }
        }
    }
}

impl Error for ConfigError {}

#[cfg(test)]
mod variables_tests {
    use super::*;

    #[test]
    fn what_is_filled_in_and_what_is_refused() {
        assert_eq!(expand("plain"), Ok("plain".to_string()));
        let path = std::env::var("PATH").expect("a PATH");
        assert_eq!(expand("a ${env:PATH} b"), Ok(format!("a {path} b")));
        let host = expand("${hostname}").expect("a machine has a name");
        assert_eq!(expand("x.${hostname}.${hostname}"), Ok(format!("x.{host}.{host}")));
        for (text, part) in [
            ("${nothing}", "there are ${hostname}"),
            ("${env:LEVERET_IS_NOT_SET}", "has no value"),
            ("${hostname", "without its }"),
        ] {
            let why = expand(text).expect_err("it is refused");
            assert!(why.contains(part), "{why}");
        }
    }
}
