//! Reading TOML into the layer of one source.
//!
//! [`read`] walks through the tables of a text and passes every key to its [`Section`]. The type of a key determines how
//! its value is read ([`Readable`]). `serde` is not used: its derived code was 4 % of the program.
//!
//! # Invariants
//! - An unknown key or an invalid value is an error with its position in the text, and the whole text is refused. Keys of
//!   older versions ([`REMOVED_KEYS`]) cause only a warning.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use crate::first_user::{NO_LOOPBACK_USER, loopback_users_meant};
use leveret_json::BYTE_ORDER_MARK;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Keys of older versions, with an explanation for the warning. They are no error, so that a board starts with its old
/// file after an update.
pub(super) const REMOVED_KEYS: [(&str, &str); 36] = [
    ("assembly_bytes_max", SHARED),
    ("bindings_max", SHARED),
    ("body_bytes_max", SHARED),
    ("bridges_max", "bridges and shovels take memory when they are added"),
    (
        "channels_max",
        "all channels share the memory; channel_max limits those of one connection, set_user_limits those of a user",
    ),
    ("consumers_max", SHARED),
    ("exchanges_max", SHARED),
    ("handshakes_max", BUFFERS),
    ("index_bytes_max", BUFFERS),
    ("input_backlog_bytes_max", BUFFERS),
    ("input_buffer_bytes", BUFFERS),
    ("management_clients_max", BUFFERS),
    ("messages_max", SHARED),
    ("mqtt_session_bytes_max", "mqtt_session_messages_max limits the messages of a session"),
    (
        "mqtt_sessions_max",
        "all sessions share the memory; mqtt_session_expiry_max ends those of absent clients",
    ),
    ("mqtt_subscriptions_max", SHARED),
    ("names_bytes_max", SHARED),
    ("output_buffer_bytes", BUFFERS),
    ("parameters_max", SHARED),
    ("patterns_bytes_max", SHARED),
    ("permissions_max", SHARED),
    ("policies_max", SHARED),
    ("queue_entries_max", SHARED),
    (
        "queues_max",
        "all queues share the memory; set_vhost_limits limits those of a virtual host (max-queues)",
    ),
    ("replies_bytes_max", BUFFERS),
    ("retained_bytes_max", SHARED),
    ("retained_max", SHARED),
    (
        "socket_local_buffers_max",
        "the kernel's buffers of all sockets together take at most as much as memory_limit",
    ),
    ("spill_transient", "transient messages stay in memory, and publishers are blocked while it is full"),
    ("stash_bytes_max", BUFFERS),
    ("tls_connections_max", "connections_max counts connections with TLS, too"),
    ("tls_handshakes_max", BUFFERS),
    ("unacknowledged_max", SHARED),
    ("unsent_bytes_max", BUFFERS),
    ("users_max", SHARED),
    ("vhosts_max", SHARED),
];

/// Why a key that limited one pool was removed.
const SHARED: &str = "everything that clients use shares what memory_limit leaves (`leveret check` shows it)";
/// Why a key that sized a buffer was removed.
const BUFFERS: &str = "its size follows from memory_limit";

/// A value in the text.
pub(super) type Value<'a> = Spanned<DeValue<'a>>;

/// An error in a text, and its position.
#[derive(Debug)]
pub(super) struct ParseError {
    /// Position of the error, in bytes from the start of the text.
    pub(super) at: usize,
    /// What is wrong, in one sentence without the position.
    pub(super) why: String,
    /// Position of an earlier item that the erroneous one contradicts, such as a bridge of the same name.
    pub(super) earlier_at: Option<usize>,
}

impl ParseError {
    /// Returns an error at the position of a value.
    #[cold]
    pub(super) fn at(value: &Value<'_>, why: impl fmt::Display) -> Self {
        Self { at: value.span().start, why: why.to_string(), earlier_at: None }
    }

    /// Returns the error for a value of the wrong type. `expected` describes the right type.
    #[cold]
    pub(super) fn wrong_type(value: &Value<'_>, expected: &str) -> Self {
        let found = match value.get_ref() {
            DeValue::String(text) => format!("the text \"{text}\""),
            DeValue::Integer(number) => format!("the number {number}"),
            DeValue::Float(number) => format!("the number {number}"),
            DeValue::Boolean(truth) => truth.to_string(),
            DeValue::Datetime(_) => "a date or a time".to_string(),
            DeValue::Array(_) => "a list".to_string(),
            DeValue::Table(_) => "a section".to_string(),
        };
        Self::at(value, format_args!("there must be {expected}, not {found}"))
    }
}

/// A type that the value of a key can have.
pub(super) trait Readable: Sized {
    /// Converts a value.
    ///
    /// # Errors
    /// The value is of another type, or out of range.
    fn read(value: &Value<'_>) -> Result<Self, ParseError>;
}

/// Sets `field` if a layer has a value for it.
pub(super) fn set_if_some<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

/// Returns the text of a string or a number, for types that are parsed from text.
///
/// # Errors
/// The value is of another type.
pub(super) fn text_of(value: &Value<'_>) -> Result<String, ParseError> {
    match value.get_ref() {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) => {
            let number = i64::from_str_radix(number.as_str(), number.radix());
            number
                .map(|number| number.to_string())
                .map_err(|_| ParseError::at(value, "the number is too large"))
        }
        // The key `version` may be written without quotes: 3.13. Types of whole numbers refuse the text.
        DeValue::Float(number) => Ok(number.as_str().to_string()),
        _ => Err(ParseError::wrong_type(value, "a number or a text in quotes")),
    }
}

/// Implements [`Readable`] by `FromStr`, which command-line flags use as well.
macro_rules! read_from_text {
    ($($kind:ident $(<$param:ident>)?;)*) => {$(
        impl$(<$param: TryFrom<u64>>)? $crate::file::Readable for $kind$(<$param>)? {
            fn read(
                value: &$crate::file::Value<'_>,
            ) -> Result<Self, $crate::file::ParseError> {
                let text = $crate::file::text_of(value)?;
                text.parse().map_err(|bad: BadValue| $crate::file::ParseError::at(value, bad))
            }
        }
    )*};
}

impl Readable for bool {
    fn read(value: &Value<'_>) -> Result<Self, ParseError> {
        value.get_ref().as_bool().ok_or_else(|| ParseError::wrong_type(value, "true or false"))
    }
}

impl Readable for String {
    fn read(value: &Value<'_>) -> Result<Self, ParseError> {
        value
            .get_ref()
            .as_str()
            .map(Self::from)
            .ok_or_else(|| ParseError::wrong_type(value, "a text in quotes"))
    }
}

impl Readable for PathBuf {
    fn read(value: &Value<'_>) -> Result<Self, ParseError> {
        value
            .get_ref()
            .as_str()
            .map(Self::from)
            .ok_or_else(|| ParseError::wrong_type(value, "a path in quotes"))
    }
}

impl<T: Readable> Readable for Vec<T> {
    fn read(value: &Value<'_>) -> Result<Self, ParseError> {
        match value.get_ref() {
            DeValue::Array(list) => list.iter().map(T::read).collect(),
            // A value without brackets is a list of one.
            DeValue::String(_) => T::read(value).map(|one| vec![one]),
            _ => Err(ParseError::wrong_type(value, "a list in square brackets")),
        }
    }
}

/// The keys that one layer sets in a section of the file, or at its top level.
pub(super) trait Section {
    /// Returns all keys of the section, including the names of the sections inside it.
    fn keys(&self) -> &'static [&'static str];

    /// Reads the value of a key, unless the key is unknown or the name of a section inside this one.
    ///
    /// # Errors
    /// The value is invalid.
    fn take(&mut self, key: &str, value: &Value<'_>) -> Result<Taken<'_>, ParseError>;
}

/// The result of passing a key to a section.
pub(super) enum Taken<'a> {
    /// The value was read.
    Value,
    /// The key is the name of this section; the caller reads its table.
    Section(&'a mut dyn Section),
    /// The key is unknown.
    Unknown,
}

/// Declares a section: its keys with their types, and under `sections` the sections inside it. Each key becomes a field
/// that is `None` until it is set.
macro_rules! section {
    (
        $(#[$doc:meta])* $vis:vis struct $layer:ident {
            $($(#[$about:meta])* $key_vis:vis $key:ident: $kind:ty,)*
        }
        $(sections { $($section_vis:vis $section:ident: $inner:ident,)* })?
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        $vis struct $layer {
            $($(#[$about])* $key_vis $key: Option<$kind>,)*
            $($($section_vis $section: $inner,)*)?
        }

        impl $layer {
            /// All keys, including the names of the sections inside it.
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
            ) -> Result<$crate::file::Taken<'_>, $crate::file::ParseError> {
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

const LOOPBACK_USERS: &str = "loopback_users";

/// Returns whether the line at this position is `loopback_users = none` without quotes, as in RabbitMQ's file. It is no
/// TOML, so it never becomes a value.
#[cold]
fn has_bare_none(text: &str, at: usize) -> bool {
    let start = text.as_bytes()[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let line = text.get(start..).and_then(|rest| rest.lines().next()).unwrap_or_default();
    let line = line.split_once('#').map_or(line, |(before, _)| before);
    line.split_once('=')
        .is_some_and(|(key, value)| key.trim() == LOOPBACK_USERS && value.trim() == NO_LOOPBACK_USER)
}

/// Reads a whole text into the layer `top`. `unknown` returns the error for an unknown key, given the known keys of its
/// section. Returns the keys of older versions, with their positions.
///
/// # Errors
/// The first error in the text.
pub(super) fn read(
    text: &str,
    top: &mut dyn Section,
    unknown: fn(&str, &[&str]) -> String,
) -> Result<Vec<(usize, &'static str)>, ParseError> {
    let table = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start.min(text.len()));
        let why = match error.message() {
            // The library's error contains the position of the key, but not its name.
            "duplicate key" => {
                let key = error.span().and_then(|span| text.get(span)).unwrap_or_default();
                format!("the key {key} occurs twice")
            }
            _ if has_bare_none(text, at) => format!("{LOOPBACK_USERS}: {}", loopback_users_meant(&[])),
            message => message.to_string(),
        };
        ParseError { at, why, earlier_at: None }
    })?;
    let mut removed = Vec::new();
    fill(top, table.get_ref(), unknown, &mut removed)?;
    Ok(removed)
}

/// Reads a table into `section`. See [`read`].
pub(super) fn fill(
    section: &mut dyn Section,
    table: &DeTable<'_>,
    unknown: fn(&str, &[&str]) -> String,
    removed: &mut Vec<(usize, &'static str)>,
) -> Result<(), ParseError> {
    for (key, value) in table {
        let known = section.keys();
        let (name, name_span) = (&**key.get_ref(), key.span());
        let named = |wrong: ParseError| ParseError { why: format!("{name}: {}", wrong.why), ..wrong };
        match section.take(name, value).map_err(named)? {
            Taken::Value => {}
            Taken::Section(inner) => match value.get_ref().as_table() {
                Some(table) => fill(inner, table, unknown, removed)?,
                None => return Err(named(ParseError::wrong_type(value, "a section"))),
            },
            Taken::Unknown => {
                // All of them were in sections.
                let is_in_section = !known.contains(&"limits");
                let old = REMOVED_KEYS.iter().find(|(key, _)| is_in_section && *key == name);
                if let Some((key, _)) = old {
                    removed.push((name_span.start, key));
                    continue;
                }
                return Err(ParseError { at: key.span().start, why: unknown(name, known), earlier_at: None });
            }
        }
    }
    Ok(())
}

/// Reads a text file of at most `bytes_max` bytes. Returns the text without a byte-order mark; `None` if the file is
/// larger.
///
/// # Errors
/// The file cannot be read, is not a regular file, or is not UTF-8.
pub(super) fn read_text_file(file: &Path, bytes_max: u64) -> io::Result<Option<String>> {
    // Without this flag, opening a named pipe would wait for a process that writes to the pipe.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let opened = File::options().read(true).custom_flags(nonblocking).open(file)?;
    if !opened.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
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

/// Replaces `${hostname}`, `${machine_id}` and `${env:NAME}` by their values, so that all devices of a fleet can have the
/// same file. Values are not expanded again.
///
/// # Errors
/// A variable is unknown or has no value, or a `${` has no `}`.
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

/// Returns the value of a variable.
#[cold]
fn value_of(name: &str) -> Result<String, String> {
    let value = match name {
        "hostname" => rustix::system::uname().nodename().to_str().ok().map(str::to_string),
        "machine_id" => fs::read_to_string(MACHINE_ID).ok().map(|text| text.trim().to_string()),
        _ => match name.strip_prefix("env:") {
            Some(variable) => std::env::var(variable).ok(),
            None => {
                return Err(format!(
                    "the variable ${{{name}}} is unknown; there are ${{hostname}}, ${{machine_id}} and ${{env:NAME}}"
                ));
            }
        },
    };
    let value = value.filter(|value| !value.is_empty());
    value.ok_or_else(|| format!("${{{name}}} has no value on this machine"))
}

/// Why the configuration could not be loaded, as a sentence that contains what to change.
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
    /// There is no board profile of the configured name. The text suggests others.
    UnknownBoard(String),
    /// The profile with this name contains the key `board`.
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
                write!(
                    f,
                    "the profile {name} contains the key board; remove it: a profile cannot refer to another profile"
                )
            }
        }
    }
}

impl Error for ConfigError {}

#[cfg(test)]
mod variables_tests {
    use super::*;

    #[test]
    fn variables_are_expanded_or_refused() {
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
            let why = expand(text).expect_err("an invalid variable");
            assert!(why.contains(part), "{why}");
        }
    }
}
