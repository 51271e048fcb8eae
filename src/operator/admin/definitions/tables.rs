//! Field tables out of JSON.
//!
//! Always true: what comes out is a table that the wire would take, of a bounded size.

use serde_json::Value;

use crate::wire::field::{ArrayWriter, Table, TableWriter};
use crate::wire::{Full, Writer};

/// The longest arguments of a thing, in bytes of a field table.
const ARGUMENTS_BYTES_MAX: usize = 64 << 10;

/// RabbitMQ writes "nothing" as an empty list or an empty object.
pub(super) fn holds_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Array(list) => !list.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        _ => true,
    }
}

/// The arguments of a thing, as a field table without its length.
///
/// # Errors
/// They are no object, or one that no table can be made of.
pub fn table_of(value: Value) -> Result<Vec<u8>, String> {
    if !holds_something(&value) {
        return Ok(Vec::new());
    }
    let Value::Object(fields) = value else { return Err("arguments must be an object".to_string()) };
    let mut bytes = vec![0; ARGUMENTS_BYTES_MAX];
    let mut writer = Writer::new(&mut bytes);
    let put = |table: &mut TableWriter<'_, '_>| put_all(table, &fields);
    writer.table(put).map_err(|_| "arguments too large, or a name in them too long")?;
    let end = writer.at();
    // A table is written behind four bytes of its length.
    let table = Table::parse(&bytes[4..end]).map_err(|_| "arguments nested too deep")?;
    Ok(table.as_bytes().to_vec())
}

fn put_all(table: &mut TableWriter<'_, '_>, fields: &serde_json::Map<String, Value>) -> Result<(), Full> {
    fields.iter().try_for_each(|(name, value)| match value {
        Value::Null => table.void(name),
        Value::Bool(truth) => table.bool(name, *truth),
        Value::Number(number) => match number.as_i64() {
            Some(number) => table.long(name, number),
            None => table.double(name, number.as_f64().unwrap_or_default()),
        },
        Value::String(text) => table.text(name, text),
        Value::Array(items) => table.array(name, |array| put_items(array, items)),
        Value::Object(fields) => table.table(name, |inner| put_all(inner, fields)),
    })
}

fn put_items(array: &mut ArrayWriter<'_, '_>, items: &[Value]) -> Result<(), Full> {
    items.iter().try_for_each(|value| match value {
        Value::Null => array.void(),
        Value::Bool(truth) => array.bool(*truth),
        Value::Number(number) => match number.as_i64() {
            Some(number) => array.long(number),
            None => array.double(number.as_f64().unwrap_or_default()),
        },
        Value::String(text) => array.text(text),
        Value::Array(items) => array.array(|inner| put_items(inner, items)),
        Value::Object(fields) => array.table(|inner| put_all(inner, fields)),
    })
}
