//! Field tables out of JSON.
//!
//! Always true: what comes out is a table that the wire would take, of a bounded size.

use leveret_amqp::field::{ArrayWriter, Table, TableWriter};
use leveret_amqp::{Full, Writer};
use leveret_json::{Bounds, Value, items};

/// The longest arguments of a thing, in bytes of a field table.
const ARGUMENTS_BYTES_MAX: usize = 64 << 10;

const TOO_LARGE: &str = "arguments too large, or a name in them too long";

/// The arguments of a thing, as a field table without its length.
///
/// # Errors
/// They are no object, or one that no table can be made of.
pub fn table_of(value: &Value<'_>) -> Result<Vec<u8>, String> {
    if !value.holds_something() {
        return Ok(Vec::new());
    }
    let Value::Object(fields) = value else { return Err("arguments must be an object".to_string()) };
    // What is a digit and a comma in a list is nine bytes in a table; nothing grows more.
    let mut bytes = vec![0; ARGUMENTS_BYTES_MAX.min(5 * fields.len())];
    let mut writer = Writer::new(&mut bytes);
    let mut maker = Maker { bounds: Bounds::default(), why: None };
    if writer.table(|table| maker.put_all(table, fields)).is_err() {
        return Err(maker.why.unwrap_or_else(|| TOO_LARGE.to_string()));
    }
    let end = writer.at();
    bytes.truncate(end);
    // A table is written behind four bytes of its length.
    bytes.drain(..4);
    bytes.shrink_to_fit();
    Table::parse(&bytes).map_err(|_| "arguments nested too deep")?;
    Ok(bytes)
}

/// Makes one table.
struct Maker {
    bounds: Bounds,
    /// Why it cannot be made, unless it is too large.
    why: Option<String>,
}

impl Maker {
    fn put_all(&mut self, table: &mut TableWriter<'_, '_>, object: &str) -> Result<(), Full> {
        let fields = self.bounds.open(object);
        let fields = self.said(fields)?;
        fields.iter().try_for_each(|(name, value)| match value {
            Value::Null => table.void(name),
            Value::Bool(truth) => table.bool(name, truth),
            Value::Number(number) => match number.as_i64() {
                Some(number) => table.long(name, number),
                None => table.double(name, number.as_f64().unwrap_or_default()),
            },
            Value::String(text) => table.text(name, &text),
            Value::Array(list) => table.array(name, |array| self.put_items(array, list)),
            Value::Object(object) => table.table(name, |inner| self.put_all(inner, object)),
        })?;
        self.bounds.close();
        Ok(())
    }

    fn put_items(&mut self, array: &mut ArrayWriter<'_, '_>, list: &str) -> Result<(), Full> {
        let opened = self.bounds.enter();
        self.said(opened)?;
        for value in items(list) {
            let value = self.bounds.take().and(value);
            match self.said(value)? {
                Value::Null => array.void(),
                Value::Bool(truth) => array.bool(truth),
                Value::Number(number) => match number.as_i64() {
                    Some(number) => array.long(number),
                    None => array.double(number.as_f64().unwrap_or_default()),
                },
                Value::String(text) => array.text(&text),
                Value::Array(list) => array.array(|inner| self.put_items(inner, list)),
                Value::Object(object) => array.table(|inner| self.put_all(inner, object)),
            }?;
        }
        self.bounds.close();
        Ok(())
    }

    /// Keeps why something cannot be.
    fn said<T>(&mut self, read: Result<T, String>) -> Result<T, Full> {
        read.map_err(|why| {
            self.why = Some(why);
            Full
        })
    }
}
