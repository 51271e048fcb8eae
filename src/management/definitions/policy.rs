//! A policy out of JSON: of a file of definitions, or of the management API.
//!
//! Always true: what is wrong with it is said in RabbitMQ's words.

use leveret_broker::{ApplyTo, NewPolicy, PolicyKind};
use leveret_json::{Fields, Value};

use super::tables::table_of;

/// A policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Whose it is.
    pub kind: PolicyKind,
    /// The virtual host.
    pub vhost: String,
    /// Its name.
    pub name: String,
    /// Of which names it speaks.
    pub pattern: String,
    /// Of what.
    pub apply_to: ApplyTo,
    /// Of several the one with the highest counts.
    pub priority: i32,
    /// The bytes of a field table.
    pub definition: Vec<u8>,
}

impl<'a> From<&'a Policy> for NewPolicy<'a> {
    fn from(it: &'a Policy) -> Self {
        Self {
            kind: it.kind,
            name: &it.name,
            pattern: &it.pattern,
            apply_to: it.apply_to,
            priority: it.priority,
            definition: &it.definition,
        }
    }
}

impl Policy {
    /// Out of an object; what else stands in it changes nothing.
    ///
    /// # Errors
    /// Something is missing, or cannot be, in RabbitMQ's words.
    pub fn read(mut fields: Fields<'_>, kind: PolicyKind, vhost: &str, name: &str) -> Result<Self, String> {
        Self::take(&mut fields, kind, vhost.to_string(), name.to_string())
    }

    /// The same, of an object in which it says where it is, too.
    pub(super) fn take(
        fields: &mut Fields<'_>,
        kind: PolicyKind,
        vhost: String,
        name: String,
    ) -> Result<Self, String> {
        let invalid = |why: String| format!("Validation failed\n\n{why}\n");
        let pattern = match fields.value("pattern") {
            Value::Null => return Err("[{key_missing,pattern}]".to_string()),
            Value::String(text) => text.into_owned(),
            other => return Err(invalid(format!("pattern should be a binary but was {other}"))),
        };
        let definition = match fields.value("definition") {
            Value::Null => return Err("[{key_missing,definition}]".to_string()),
            definition @ (Value::Object(_) | Value::Array(_)) => table_of(&definition)?,
            other => return Err(invalid(format!("definition should be an object but was {other}"))),
        };
        let priority = match fields.value("priority") {
            Value::Null => 0,
            value => value.as_i64().and_then(|number| i32::try_from(number).ok()).ok_or_else(|| {
                let shown = value.as_str().map_or_else(|| value.to_string(), |text| format!("<<{text:?}>>"));
                invalid(format!("priority should be a number, actually was {shown}"))
            })?,
        };
        let apply_to = fields.text_if_said("apply-to")?.map_or(Ok(ApplyTo::All), |text| {
            let why = format!("apply-to '{text}' unrecognised; should be 'queues', 'exchanges' or 'all'");
            ApplyTo::from_name(&text).ok_or_else(|| invalid(why))
        })?;
        Ok(Self { kind, vhost, name, pattern, apply_to, priority, definition })
    }
}
