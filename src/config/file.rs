//! TOML, read key by key into what a source says.
//!
//! Each key says itself how its value is written ([`Readable`]); [`read`] walks the tables and gives every
//! key to the section it stands in. No derived deserialisers: together they were a twenty-fifth of the
//! program.
//!
//! Always true: a key that is not known, and was not in older versions either, or a value that does not fit is told with its place in the text, and
//! then nothing of the text is taken.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use leveret_json::BYTE_ORDER_MARK;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Keys of older versions, and what holds in their place. They are passed over with a warning, so that a board starts with
/// its old file after an update.
pub(super) const REMOVED_KEYS: [(&str, &str); 1] =
    [("spill_transient", "transient messages stay in memory, and their publishers wait when it is full")];

/// A value as it stands in the text.
pub(super) type Value<'a> = Spanned<DeValue<'a>>;

/// What is wrong in a text, and where.
#[derive(Debug)]
pub(super) struct Wrong {
    /// Bytes from the start of the text.
    pub(super) at: usize,
    /// One sentence, without the place.
    pub(super) why: String,
    /// Where the first is that it does not go together with.
    pub(super) first: Option<usize>,
}

impl Wrong {
    /// At the place of a value.
    #[cold]
    pub(super) fn value(value: &Value<'_>, why: impl fmt::Display) -> Self {
        Self { at: value.span().start, why: why.to_string(), first: None }
    }

    /// A value of another kind than the key takes.
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

/// What a key's value is made from.
pub(super) trait Readable: Sized {
    /// The value, or why it does not fit.
    fn read(value: &Value<'_>) -> Result<Self, Wrong>;
}

/// Sets what was said.
pub(super) fn put<T>(place: &mut T, said: Option<T>) {
    if let Some(value) = said {
        *place = value;
    }
}

/// What is written as a text in quotes or as a bare number, before it is understood.
pub(super) fn written(value: &Value<'_>) -> Result<String, Wrong> {
    match value.get_ref() {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) => {
            let number = i64::from_str_radix(number.as_str(), number.radix());
            number
                .map(|number| number.to_string())
                .map_err(|_| Wrong::value(value, "the number is too large"))
        }
        // So a version may do without quotes; what takes whole numbers says so.
        DeValue::Float(number) => Ok(number.as_str().to_string()),
        _ => Err(Wrong::kind(value, "a number or a text in quotes")),
    }
}

/// Reads the types that a flag on the command line takes too: by the same `FromStr`.
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
            // One without brackets is a list of one.
            DeValue::String(_) => T::read(value).map(|one| vec![one]),
            _ => Err(Wrong::kind(value, "a list in square brackets")),
        }
    }
}

/// What stands under one heading, or above all of them.
pub(super) trait Section {
    /// The keys it knows, the sections below it included.
    fn keys(&self) -> &'static [&'static str];

    /// Takes the value of a key; the section of that name instead, if the key is one; or says that it knows
    /// no such key.
    fn take(&mut self, key: &str, value: &Value<'_>) -> Result<Taken<'_>, Wrong>;
}

/// What a section makes of a key.
pub(super) enum Taken<'a> {
    /// Its value is taken.
    Value,
    /// It is the name of this section.
    Section(&'a mut dyn Section),
    /// The key is not known.
    Unknown,
}

/// Declares what stands under a heading: its keys, each with how its value is written, and the
/// sections below it. Each key is a field that is `None` until it is said.
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
            /// The keys, the sections below included.
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

/// Reads a whole text into `top`; `unknown` says why a key is refused, given those that would be known there.
pub(super) fn read(
    text: &str,
    top: &mut dyn Section,
    unknown: fn(&str, &[&str]) -> String,
) -> Result<(), Wrong> {
    let table = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start.min(text.len()));
        let why = match error.message() {
            // The library points at the key, but does not say it.
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

// Reading a text file that an operator wrote: bounded, and never waiting for anybody.

/// Reads a text file of the operator's, without the byte-order mark that it may begin with. `None`: it has more than
/// `bytes_max` bytes.
///
/// # Errors
/// It cannot be read, is no regular file, or is not UTF-8.
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

// `${hostname}`, `${machine_id}` and `${env:NAME}` in values: one file for a whole fleet.
//
// Always true: what stands for nothing is refused, never left empty; what was filled in is not looked into
// again.

/// Where a machine's own id stands.
const MACHINE_ID: &str = "/etc/machine-id";

/// The text with its variables filled in.
///
/// # Errors
/// Which variable has no value, or what is wrong with how it is written.
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

// Why there is no configuration, in a sentence that says what to change.

/// Why there is no configuration.
#[derive(Debug)]
pub enum ConfigError {
    /// The file cannot be read.
    Unreadable {
        /// The file as it was named.
        file: PathBuf,
        /// What the system says.
        why: io::Error,
    },
    /// The file says something that cannot be.
    Refused {
        /// The file as it was named.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// Two keys do not go together.
    Contradiction(String),
    /// No profile has this name; what there is instead.
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
