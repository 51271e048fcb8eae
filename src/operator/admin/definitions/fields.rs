//! The fields of a JSON object, taken out by name.
//!
//! No derived deserialisers: one for each kind of thing would make the program larger by all of them, for
//! what happens once.
//!
//! Always true: a field that is missing or of another kind is named in the error.

use serde_json::{Map, Value};

/// The fields of a JSON object that have not been read yet.
#[derive(Debug)]
pub struct Fields(Map<String, Value>);

impl Fields {
    /// The fields of an object.
    ///
    /// # Errors
    /// The value is no object.
    pub fn of(value: Value) -> Result<Self, String> {
        match value {
            Value::Object(fields) => Ok(Self(fields)),
            other => Err(format!("there must be an object, not {other}")),
        }
    }

    /// The same out of its text.
    ///
    /// # Errors
    /// It is no JSON, or no object.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let text = core::str::from_utf8(text).map_err(|error| error.to_string())?;
        Self::of(text.parse::<Value>().map_err(|error| error.to_string())?)
    }

    /// Whatever it is; null when it is not there.
    pub fn value(&mut self, name: &str) -> Value {
        self.0.remove(name).unwrap_or_default()
    }

    /// A text that must be there.
    ///
    /// # Errors
    /// It is not there, or no text.
    pub fn text(&mut self, name: &str) -> Result<String, String> {
        self.text_if_said(name)?.ok_or_else(|| missing(name))
    }

    /// A text, or null.
    ///
    /// # Errors
    /// The field is neither a text nor null.
    pub fn text_if_said(&mut self, name: &str) -> Result<Option<String>, String> {
        match self.value(name) {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text)),
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

    /// The names of the fields that nobody has read.
    pub fn into_names(self) -> impl Iterator<Item = String> {
        self.0.into_iter().map(|(name, _)| name)
    }

    /// What must be the case at the end where nothing else may be said.
    ///
    /// # Errors
    /// A field is left.
    pub fn nothing_else(self) -> Result<(), String> {
        self.0.keys().next().map_or(Ok(()), |name| Err(format!("unknown field `{name}`")))
    }
}

fn missing(name: &str) -> String {
    format!("missing field `{name}`")
}

/// Why a value does not fit its field.
pub(super) fn unfit(name: &str, wanted: &str, value: &Value) -> String {
    format!("`{name}` must be {wanted}, not {value}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_are_taken_once_and_named_when_they_do_not_fit() {
        let mut fields = Fields::of(json!({"a": "x", "b": true, "c": -3, "d": null, "e": 1.5})).unwrap();
        assert_eq!(fields.text("a"), Ok("x".to_string()));
        assert_eq!(fields.text("a"), Err("missing field `a`".to_string()));
        assert_eq!((fields.truth("b"), fields.truth("b")), (Ok(true), Ok(false)));
        assert_eq!(fields.number_if_said("c"), Ok(Some(-3)));
        assert_eq!(fields.number_if_said("d"), Ok(None));
        assert_eq!(fields.number_if_said("e"), Err("`e` must be a whole number, not 1.5".to_string()));
        assert!(fields.nothing_else().is_ok());
        let mut fields = Fields::of(json!({"a": 1, "b": 0, "c": {}})).unwrap();
        assert_eq!(fields.text("a"), Err("`a` must be a text, not 1".to_string()));
        assert_eq!(fields.truth("b"), Err("`b` must be true or false, not 0".to_string()));
        assert_eq!(fields.nothing_else(), Err("unknown field `c`".to_string()));
        assert_eq!(Fields::parse(b"[1]").unwrap_err(), "there must be an object, not [1]");
        assert!(Fields::parse(b"{").unwrap_err().contains("EOF"));
    }
}
