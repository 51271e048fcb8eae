//! TOML, read key by key into what a source says.
//!
//! Each key says itself how its value is written ([`Readable`]); [`read`] walks the tables and gives every
//! key to the section it stands in. No derived deserialisers: together they were a twenty-fifth of the
//! program.
//!
//! Always true: a key that is not known, and was not in older versions either, or a value that does not fit is told with its place in the text, and
//! then nothing of the text is taken.

use std::fmt;
use std::path::PathBuf;

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
        impl$(<$param: TryFrom<u64>>)? $crate::read::Readable for $kind$(<$param>)? {
            fn read(
                value: &$crate::read::Value<'_>,
            ) -> Result<Self, $crate::read::Wrong> {
                let text = $crate::read::written(value)?;
                text.parse().map_err(|bad: BadValue| $crate::read::Wrong::value(value, bad))
            }
        }
    )*};
}
pub(super) use read_from_text;

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

        impl $crate::read::Section for $layer {
            fn keys(&self) -> &'static [&'static str] {
                Self::KEYS
            }

            fn take(
                &mut self,
                key: &str,
                value: &$crate::read::Value<'_>,
            ) -> Result<$crate::read::Taken<'_>, $crate::read::Wrong> {
                use $crate::read::{Readable, Taken};
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
