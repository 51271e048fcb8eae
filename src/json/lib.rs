//! Bounded reading of JSON that others send.
//!
//! A text is read without building a tree: a tree takes a hundred times the memory of the text. An object is a
//! list of its fields' names and texts, and the parts of a value stay text until they are read. Derived
//! deserialisers are not used: one per kind of object would enlarge the program for code that rarely runs.
//!
//! # Invariants
//! - At most [`NODES_MAX`] values of a text are looked at, at most [`DEPTH_MAX`] deep, so reading takes no more
//!   memory than [`READING_BYTES`].
//! - If an object has several fields of one name, the last one counts.
//! - An error names the field that is missing or has the wrong type.

#![warn(clippy::unwrap_used)]

use core::fmt;
use std::borrow::Cow;

use serde_json::value::RawValue;
use serde_json::{Deserializer, Number};

/// Maximum number of values of one object: the fields of objects and the elements of lists, nested ones included.
pub const NODES_MAX: usize = 2048;
/// Maximum depth of nesting; field tables of AMQP have the same limit.
pub const DEPTH_MAX: usize = 32;
/// Memory in bytes for reading one body or one object of a definitions file, besides the text: the list of its
/// fields, and the definition that is made from it.
pub const READING_BYTES: usize = 288 << 10;

/// UTF-8's byte-order mark, which some editors put at the beginning of a file. It is skipped.
pub const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// One value.
#[derive(Clone, PartialEq, Debug)]
pub enum Value<'b> {
    /// Null or absent.
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
    /// Parses a whole text, which may begin with a byte-order mark.
    ///
    /// # Errors
    /// The text is not JSON.
    pub fn parse(text: &'b [u8]) -> Result<Self, String> {
        let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
        let text = core::str::from_utf8(text).map_err(|error| error.to_string())?;
        Self::of(serde_json::from_str::<&RawValue>(text).map_err(|error| error.to_string())?.get())
    }

    /// Parses a text that is known to be JSON.
    ///
    /// # Errors
    /// A number is out of range, or a string is invalid.
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

    /// Returns whether the value is null or absent.
    pub fn is_null(&self) -> bool {
        *self == Self::Null
    }

    /// Returns whether the value is empty: RabbitMQ writes "nothing" as an empty list or an empty object.
    pub fn holds_something(&self) -> bool {
        match self {
            Self::Null => false,
            Self::Array(text) | Self::Object(text) => parts(text).next().is_some(),
            _ => true,
        }
    }

    /// Returns a string.
    pub fn as_str(&self) -> Option<&str> {
        if let Self::String(text) = self { Some(text) } else { None }
    }

    /// Returns a number.
    pub const fn as_number(&self) -> Option<&Number> {
        if let Self::Number(number) = self { Some(number) } else { None }
    }

    /// Returns a whole number.
    pub fn as_i64(&self) -> Option<i64> {
        self.as_number()?.as_i64()
    }

    /// Returns a whole number that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        self.as_number()?.as_u64()
    }

    /// Returns the value without white space, with the fields of objects sorted by name.
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

/// Writes the value as JSON.
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

/// Returns the text between the quotes of a valid string.
fn letters(text: &str) -> Result<Cow<'_, str>, String> {
    if text.contains('\\') {
        return serde_json::from_str(text).map(Cow::Owned).map_err(|error| error.to_string());
    }
    Ok(Cow::Borrowed(text.trim_matches('"')))
}

/// Returns the texts of the elements of a list, or of the names and values of an object in turn. The text is
/// valid JSON.
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

/// Iterates over the elements of a list.
pub fn items(list: &str) -> impl Iterator<Item = Result<Value<'_>, String>> {
    parts(list).map(Value::of)
}

/// The remaining budget of values and depth for one object.
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
    /// Counts one more value.
    ///
    /// # Errors
    /// There are too many values.
    pub fn take(&mut self) -> Result<(), String> {
        let why =
            || format!("more than {NODES_MAX} values in one thing: leave some out, or make several of it");
        self.nodes = self.nodes.checked_sub(1).ok_or_else(why)?;
        Ok(())
    }

    /// Begins a list.
    ///
    /// # Errors
    /// It is nested too deep.
    pub fn enter(&mut self) -> Result<(), String> {
        let why = || format!("nested too deep: there may be {DEPTH_MAX} lists and objects in one another");
        self.depth = self.depth.checked_sub(1).ok_or_else(why)?;
        Ok(())
    }

    /// Begins an object.
    ///
    /// # Errors
    /// It is nested too deep, or has too many fields.
    pub fn open<'b>(&mut self, object: &'b str) -> Result<Fields<'b>, String> {
        self.enter()?;
        let mut fields = Fields::default();
        let mut parts = parts(object);
        while let (Some(name), Some(value)) = (parts.next(), parts.next()) {
            fields.take(self, name, value)?;
        }
        Ok(fields)
    }

    /// Ends a list or an object.
    pub const fn close(&mut self) {
        self.depth += 1;
    }
}

/// The fields of a JSON object that have not been read yet.
#[derive(Debug, Default)]
pub struct Fields<'b>(Vec<(Cow<'b, str>, &'b str)>);

impl<'b> Fields<'b> {
    /// Reads the fields of an object. An empty list is an object without fields, because RabbitMQ writes empty objects so.
    ///
    /// # Errors
    /// The value is not an object, or has too many fields.
    pub fn of(value: &Value<'b>) -> Result<Self, String> {
        match value {
            Value::Object(text) => Bounds::default().open(text),
            Value::Array(_) if !value.holds_something() => Ok(Self::default()),
            other => Err(format!("there must be an object, not {other}")),
        }
    }

    /// Parses a text and reads the fields of its object.
    ///
    /// # Errors
    /// The text is not JSON, not an object, or has too many fields.
    pub fn parse(text: &'b [u8]) -> Result<Self, String> {
        Self::of(&Value::parse(text)?)
    }

    /// Reads the fields of a list of `[name, value]` lists. Other elements are ignored.
    ///
    /// # Errors
    /// There are too many fields.
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
        // Checked here, so that reading it later cannot fail.
        Value::of(value)?;
        self.put(letters(name)?, value);
        Ok(())
    }

    /// Sets a field to `value`, which must be JSON.
    pub fn put(&mut self, name: Cow<'b, str>, value: &'b str) {
        match self.find(&name) {
            Ok(at) => self.0[at].1 = value,
            Err(at) => self.0.insert(at, (name, value)),
        }
    }

    fn find(&self, name: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(other, _)| (**other).cmp(name))
    }

    /// Returns a field without removing it, or `None` if it is absent.
    pub fn get(&self, name: &str) -> Option<Value<'b>> {
        self.find(name).ok().and_then(|at| Value::of(self.0[at].1).ok())
    }

    /// Removes a field and returns its value; null if it is absent.
    pub fn value(&mut self, name: &str) -> Value<'b> {
        let found = self.find(name).ok().map(|at| self.0.remove(at).1);
        found.and_then(|text| Value::of(text).ok()).unwrap_or(Value::Null)
    }

    /// Removes a string that must be present.
    ///
    /// # Errors
    /// The field is absent or not a string.
    pub fn text(&mut self, name: &str) -> Result<String, String> {
        self.text_if_said(name)?.ok_or_else(|| format!("missing field `{name}`"))
    }

    /// Removes a string or null.
    ///
    /// # Errors
    /// The field is neither a string nor null.
    pub fn text_if_said(&mut self, name: &str) -> Result<Option<String>, String> {
        match self.value(name) {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text.into_owned())),
            other => Err(unfit(name, "a text", &other)),
        }
    }

    /// Removes a boolean; false if it is absent.
    ///
    /// # Errors
    /// The field is not a boolean.
    pub fn truth(&mut self, name: &str) -> Result<bool, String> {
        match self.value(name) {
            Value::Null => Ok(false),
            Value::Bool(truth) => Ok(truth),
            other => Err(unfit(name, "true or false", &other)),
        }
    }

    /// Removes a whole number or null.
    ///
    /// # Errors
    /// The field is not a whole number.
    pub fn number_if_said(&mut self, name: &str) -> Result<Option<i64>, String> {
        let value = self.value(name);
        match value.as_i64() {
            None if !value.is_null() => Err(unfit(name, "a whole number", &value)),
            number => Ok(number),
        }
    }

    /// Returns the fields that were not read, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Value<'b>)> {
        self.0.iter().map(|(name, text)| (&**name, Value::of(text).unwrap_or(Value::Null)))
    }

    /// Returns the names of the fields that were not read.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| &**name)
    }

    /// Checks that every field was read.
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
        assert!(Fields::parse(b" [ ] ").unwrap().nothing_else().is_ok());
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
