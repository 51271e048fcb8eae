//! JSON that others send, read without a tree of it: objects by the names of their fields, and what has parts
//! stays the text that it is until somebody asks for them.
//!
//! Why it exists: as a tree, a text takes a hundred times its length. No derived deserialisers either: one for
//! each kind of thing would make the program larger by all of them, for what happens once.
//!
//! Always true: a text has at most [`NODES_MAX`] values that are looked at, at most [`DEPTH_MAX`] deep, so
//! that reading takes no more than [`READING_BYTES`]; of fields that have one name the last one counts; a
//! field that is missing or of another kind is named in the error.

#![warn(clippy::unwrap_used)]

use core::fmt;
use std::borrow::Cow;

use serde_json::value::RawValue;
use serde_json::{Deserializer, Number};

/// Values that one thing may have: the fields of objects and the elements of lists, all of them together.
pub const NODES_MAX: usize = 2048;
/// How deep they may be nested, which is as deep as the protocol's tables.
pub const DEPTH_MAX: usize = 32;
/// What reading one body, or one thing of a file of definitions, takes besides the body: its fields while
/// their list grows, a thing of a file, and what becomes of it.
pub const READING_BYTES: usize = 288 << 10;

/// UTF-8's byte-order mark. Some editors put it at the beginning of a file; it is skipped there.
pub const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// One value.
#[derive(Clone, PartialEq, Debug)]
pub enum Value<'b> {
    /// Null, or not there.
    Null,
    /// True or false.
    Bool(bool),
    /// A number.
    Number(Number),
    /// A text.
    String(Cow<'b, str>),
    /// A list, as its text.
    Array(&'b str),
    /// An object, as its text.
    Object(&'b str),
}

impl<'b> Value<'b> {
    /// Out of a whole text, which may begin with a byte-order mark.
    ///
    /// # Errors
    /// It is no JSON.
    pub fn parse(text: &'b [u8]) -> Result<Self, String> {
        let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
        let text = core::str::from_utf8(text).map_err(|error| error.to_string())?;
        Self::of(serde_json::from_str::<&RawValue>(text).map_err(|error| error.to_string())?.get())
    }

    /// Out of a text that is sound.
    ///
    /// # Errors
    /// It is a number that is out of range, or a text that is none.
    fn of(text: &'b str) -> Result<Self, String> {
        Ok(match text.as_bytes().first() {
            None | Some(b'n') => Self::Null,
            Some(b't') => Self::Bool(true),
            Some(b'f') => Self::Bool(false),
            Some(b'"') => Self::String(letters(text)?),
            Some(b'[') => Self::Array(text),
            Some(b'{') => Self::Object(text),
            Some(_) => Self::Number(text.parse().map_err(|error: serde_json::Error| error.to_string())?),
        })
    }

    /// Whether it is null, or not there.
    pub fn is_null(&self) -> bool {
        *self == Self::Null
    }

    /// RabbitMQ writes "nothing" as an empty list or an empty object.
    pub fn holds_something(&self) -> bool {
        match self {
            Self::Null => false,
            Self::Array(text) | Self::Object(text) => parts(text).next().is_some(),
            _ => true,
        }
    }

    /// A text.
    pub fn as_str(&self) -> Option<&str> {
        if let Self::String(text) = self { Some(text) } else { None }
    }

    /// A number.
    pub const fn as_number(&self) -> Option<&Number> {
        if let Self::Number(number) = self { Some(number) } else { None }
    }

    /// A whole number.
    pub fn as_i64(&self) -> Option<i64> {
        self.as_number()?.as_i64()
    }

    /// One that is not below 0.
    pub fn as_u64(&self) -> Option<u64> {
        self.as_number()?.as_u64()
    }

    /// The same value without spaces, an object's fields in the order of their names.
    ///
    /// # Errors
    /// It has too many parts, or they are nested too deep.
    pub fn compact(&self) -> Result<String, String> {
        let mut json = String::new();
        self.put(&mut json, &mut Bounds::default())?;
        Ok(json)
    }

    fn put(&self, json: &mut String, bounds: &mut Bounds) -> Result<(), String> {
        let comma = |json: &mut String| json.extend((!json.ends_with(['[', '{'])).then_some(','));
        match self {
            Self::String(text) => put_text(json, text),
            Self::Array(list) => {
                bounds.enter()?;
                json.push('[');
                for value in items(list) {
                    bounds.take()?;
                    comma(json);
                    value?.put(json, bounds)?;
                }
                json.push(']');
                bounds.close();
            }
            Self::Object(object) => {
                json.push('{');
                for (name, value) in bounds.open(object)?.iter() {
                    comma(json);
                    put_text(json, name);
                    json.push(':');
                    value.put(json, bounds)?;
                }
                json.push('}');
                bounds.close();
            }
            scalar => json.push_str(&scalar.to_string()),
        }
        Ok(())
    }
}

fn put_text(json: &mut String, text: &str) {
    // A text is JSON always.
    json.push_str(&serde_json::to_string(text).unwrap_or_default());
}

/// As JSON.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(truth) => truth.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::String(text) => {
                let mut json = String::new();
                put_text(&mut json, text);
                f.write_str(&json)
            }
            Self::Array(text) | Self::Object(text) => f.write_str(text),
        }
    }
}

/// What stands between the quotes of a text that is sound.
fn letters(text: &str) -> Result<Cow<'_, str>, String> {
    if text.contains('\\') {
        return serde_json::from_str(text).map(Cow::Owned).map_err(|error| error.to_string());
    }
    Ok(Cow::Borrowed(text.trim_matches('"')))
}

/// The texts of the elements of a list, or of the names and values of an object by turns. It is sound.
fn parts(whole: &str) -> impl Iterator<Item = &str> {
    let mut rest = whole.get(1..).unwrap_or_default();
    core::iter::from_fn(move || {
        rest = rest.trim_start_matches([' ', '\t', '\r', '\n', ',', ':']);
        let mut values = Deserializer::from_str(rest).into_iter::<&RawValue>();
        let value = values.next()?.ok()?;
        rest = rest.get(values.byte_offset()..)?;
        Some(value.get())
    })
}

/// The elements of a list, one at a time.
pub fn items(list: &str) -> impl Iterator<Item = Result<Value<'_>, String>> {
    parts(list).map(Value::of)
}

/// What is left of what a thing may have.
#[derive(Debug)]
pub struct Bounds {
    nodes: usize,
    depth: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { nodes: NODES_MAX, depth: DEPTH_MAX }
    }
}

impl Bounds {
    /// One more value.
    ///
    /// # Errors
    /// There are too many.
    pub fn take(&mut self) -> Result<(), String> {
        let why =
            || format!("more than {NODES_MAX} values in one thing: leave some out, or make several of it");
        self.nodes = self.nodes.checked_sub(1).ok_or_else(why)?;
        Ok(())
    }

    /// A list begins.
    ///
    /// # Errors
    /// It is in too many others.
    pub fn enter(&mut self) -> Result<(), String> {
        let why = || format!("nested too deep: there may be {DEPTH_MAX} lists and objects in one another");
        self.depth = self.depth.checked_sub(1).ok_or_else(why)?;
        Ok(())
    }

    /// An object begins.
    ///
    /// # Errors
    /// It is in too many others, or has too many fields.
    pub fn open<'b>(&mut self, object: &'b str) -> Result<Fields<'b>, String> {
        self.enter()?;
        let mut fields = Fields::default();
        let mut parts = parts(object);
        while let (Some(name), Some(value)) = (parts.next(), parts.next()) {
            fields.take(self, name, value)?;
        }
        Ok(fields)
    }

    /// A list or an object ends.
    pub const fn close(&mut self) {
        self.depth += 1;
    }
}

/// The fields of a JSON object that have not been read yet.
#[derive(Debug, Default)]
pub struct Fields<'b>(Vec<(Cow<'b, str>, &'b str)>);

impl<'b> Fields<'b> {
    /// The fields of an object.
    ///
    /// # Errors
    /// The value is no object, or has too many fields.
    pub fn of(value: &Value<'b>) -> Result<Self, String> {
        match value {
            Value::Object(text) => Bounds::default().open(text),
            other => Err(format!("there must be an object, not {other}")),
        }
    }

    /// The same out of its text.
    ///
    /// # Errors
    /// It is no JSON, no object, or has too many fields.
    pub fn parse(text: &'b [u8]) -> Result<Self, String> {
        Self::of(&Value::parse(text)?)
    }

    /// The fields of a list of lists, each a name and a value; what else is in it is passed over.
    ///
    /// # Errors
    /// There are too many.
    pub fn of_pairs(list: &'b str) -> Result<Self, String> {
        let (mut fields, mut bounds) = (Self::default(), Bounds::default());
        for pair in parts(list).filter(|pair| pair.starts_with('[')) {
            let mut parts = parts(pair);
            if let (Some(name), Some(value)) = (parts.next().filter(|it| it.starts_with('"')), parts.next()) {
                fields.take(&mut bounds, name, value)?;
            }
        }
        Ok(fields)
    }

    fn take(&mut self, bounds: &mut Bounds, name: &'b str, value: &'b str) -> Result<(), String> {
        bounds.take()?;
        // Whoever asks for it later may be sure that it can be read.
        Value::of(value)?;
        self.put(letters(name)?, value);
        Ok(())
    }

    /// Says what a field is, whatever it was. The text is JSON.
    pub fn put(&mut self, name: Cow<'b, str>, value: &'b str) {
        match self.find(&name) {
            Ok(at) => self.0[at].1 = value,
            Err(at) => self.0.insert(at, (name, value)),
        }
    }

    fn find(&self, name: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(other, _)| (**other).cmp(name))
    }

    /// A field that stays; `None` when it is not there.
    pub fn get(&self, name: &str) -> Option<Value<'b>> {
        self.find(name).ok().and_then(|at| Value::of(self.0[at].1).ok())
    }

    /// Whatever it is; null when it is not there.
    pub fn value(&mut self, name: &str) -> Value<'b> {
        let found = self.find(name).ok().map(|at| self.0.remove(at).1);
        found.and_then(|text| Value::of(text).ok()).unwrap_or(Value::Null)
    }

    /// A text that must be there.
    ///
    /// # Errors
    /// It is not there, or no text.
    pub fn text(&mut self, name: &str) -> Result<String, String> {
        self.text_if_said(name)?.ok_or_else(|| format!("missing field `{name}`"))
    }

    /// A text, or null.
    ///
    /// # Errors
    /// The field is neither a text nor null.
    pub fn text_if_said(&mut self, name: &str) -> Result<Option<String>, String> {
        match self.value(name) {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text.into_owned())),
            other => Err(unfit(name, "a text", &other)),
        }
    }

    /// True or false; false when it is not there.
    ///
    /// # Errors
    /// The field is no boolean.
    pub fn truth(&mut self, name: &str) -> Result<bool, String> {
        match self.value(name) {
            Value::Null => Ok(false),
            Value::Bool(truth) => Ok(truth),
            other => Err(unfit(name, "true or false", &other)),
        }
    }

    /// A whole number, or null.
    ///
    /// # Errors
    /// The field is no whole number.
    pub fn number_if_said(&mut self, name: &str) -> Result<Option<i64>, String> {
        let value = self.value(name);
        match value.as_i64() {
            None if !value.is_null() => Err(unfit(name, "a whole number", &value)),
            number => Ok(number),
        }
    }

    /// Those that nobody has read, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Value<'b>)> {
        self.0.iter().map(|(name, text)| (&**name, Value::of(text).unwrap_or(Value::Null)))
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| &**name)
    }

    /// What must be the case at the end where nothing else may be said.
    ///
    /// # Errors
    /// A field is left.
    pub fn nothing_else(self) -> Result<(), String> {
        self.names().next().map_or(Ok(()), |name| Err(format!("unknown field `{name}`")))
    }
}

/// Why a value does not fit its field.
pub fn unfit(name: &str, wanted: &str, value: &Value<'_>) -> String {
    format!("`{name}` must be {wanted}, not {value}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_taken_once_and_named_when_they_do_not_fit() {
        let mut fields = Fields::parse(br#" {"a": "x", "b" :true,"c": -3, "d": null, "e": 1.5} "#).unwrap();
        assert_eq!(fields.text("a"), Ok("x".to_string()));
        assert_eq!(fields.text("a"), Err("missing field `a`".to_string()));
        assert_eq!((fields.truth("b"), fields.truth("b")), (Ok(true), Ok(false)));
        assert_eq!(fields.number_if_said("c"), Ok(Some(-3)));
        assert_eq!(fields.number_if_said("d"), Ok(None));
        assert_eq!(fields.number_if_said("e"), Err("`e` must be a whole number, not 1.5".to_string()));
        assert!(fields.nothing_else().is_ok());
        let mut fields = Fields::parse(br#"{"a": 1, "b": 0, "c": {}}"#).unwrap();
        assert_eq!(fields.text("a"), Err("`a` must be a text, not 1".to_string()));
        assert_eq!(fields.truth("b"), Err("`b` must be true or false, not 0".to_string()));
        assert_eq!(fields.nothing_else(), Err("unknown field `c`".to_string()));
        assert_eq!(Fields::parse(b"[1]").unwrap_err(), "there must be an object, not [1]");
        assert!(Fields::parse(b"{").unwrap_err().contains("EOF"));
    }

    #[test]
    fn values_are_as_a_tree_would_have_them() {
        for text in [
            r#"{"b":{"y":[1,{"":[]}],"x":"\u00e4\"\\\n\u0001"},"a":1e3,"b":{"z":null,"":[ ] , "\u0061":0}}"#,
            "[1.50,-0,18446744073709551615,-9223372036854775808,12345678901234567890123,1e-400,true,\"\"]",
            " \"x\" ",
            "{\"\\\"\":\"\\\"\"}",
            "false",
        ] {
            let tree: serde_json::Value = text.parse().unwrap();
            assert_eq!(Value::parse(text.as_bytes()).unwrap().compact(), Ok(tree.to_string()));
        }
        for text in [
            "1e999",
            "{\"a\":1e999}",
            "[\"\\ud800\"]",
            "{\"\\ud800\":1}",
            "\"\n\"",
            "[1,]",
            "{} {}",
            "1\u{feff}",
        ] {
            assert!(text.parse::<serde_json::Value>().is_err(), "{text}");
            assert!(Value::parse(text.as_bytes()).and_then(|value| value.compact()).is_err(), "{text}");
        }
    }

    #[test]
    fn what_has_too_many_parts_or_is_too_deep_is_refused() {
        let list = |count: usize| format!("[{}]", vec!["0"; count].join(","));
        assert!(Value::parse(list(NODES_MAX).as_bytes()).unwrap().compact().is_ok());
        let why = Value::parse(list(NODES_MAX + 1).as_bytes()).unwrap().compact().unwrap_err();
        assert!(why.contains("more than 2048 values"), "{why}");
        let object: Vec<String> = (0..=NODES_MAX).map(|at| format!("\"{at}\":0")).collect();
        assert!(Fields::parse(format!("{{{}}}", object.join(",")).as_bytes()).is_err());
        let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(Value::parse(deep(DEPTH_MAX).as_bytes()).unwrap().compact().is_ok());
        let why = Value::parse(deep(DEPTH_MAX + 1).as_bytes()).unwrap().compact().unwrap_err();
        assert!(why.contains("nested too deep"), "{why}");
    }
}
