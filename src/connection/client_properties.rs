//! The properties that a client sends in connection.start-ok, as far as they are kept.
//!
//! Texts, numbers, Booleans and the table `capabilities` are kept, under whatever names. All connections share a
//! pool of [`BYTES_PER_CONNECTION`] for each that there may be. One connection gets at most half of what is free of
//! it; when that is too little, texts are cut, then all but the names of the program are left out. No login is
//! refused for it.

use leveret_amqp::field::{Table, TableWriter, Value};
use leveret_amqp::{Full, Writer};

/// Bytes of the pool for each connection that there may be.
pub(super) const BYTES_PER_CONNECTION: usize = 256;
/// The most bytes that one connection's properties take.
const BYTES_MAX: usize = 2_048;
/// Bytes to which texts are cut when there is no room for the whole.
const CUT_TEXT_BYTES: usize = 36;
/// What stands behind a text that was cut.
const ELLIPSIS: &str = "…";
/// What an operator knows a program by: kept when there is room for nothing else.
const NAMES: [&str; 3] = ["connection_name", "product", "version"];

/// The properties of one client, as the entries of a field table.
#[derive(Debug, Default)]
pub(super) struct ClientProperties {
    entries: Box<[u8]>,
}

/// The memory for the properties of all clients.
#[derive(Debug)]
pub(super) struct ClientPool {
    free_bytes: usize,
}

/// How much of the properties is kept.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    Whole,
    CutTexts,
    Names,
}

impl ClientPool {
    pub(super) const fn new(connections_max: usize) -> Self {
        Self { free_bytes: connections_max * BYTES_PER_CONNECTION }
    }

    /// Keeps the properties of a client, or as much of them as there is room for.
    pub(super) fn keep(&mut self, properties: Table<'_>) -> ClientProperties {
        let room = BYTES_MAX.min(self.free_bytes / 2);
        let mut bytes = [0; 4 + BYTES_MAX];
        for extent in [Extent::Whole, Extent::CutTexts, Extent::Names] {
            let mut writer = Writer::new(&mut bytes[..4 + room]);
            if writer.table(|table| write(table, properties, extent)).is_ok() {
                let entries: Box<[u8]> = writer.written().get(4..).unwrap_or_default().into();
                self.free_bytes -= entries.len();
                return ClientProperties { entries };
            }
        }
        ClientProperties::default()
    }

    /// Takes the memory of a client's properties back.
    pub(super) fn give_back(&mut self, properties: ClientProperties) {
        self.free_bytes += properties.entries.len();
    }
}

impl ClientProperties {
    pub(super) fn table(&self) -> Table<'_> {
        Table::trusted(&self.entries)
    }
}

fn write(table: &mut TableWriter<'_, '_>, properties: Table<'_>, extent: Extent) -> Result<(), Full> {
    for (name, value) in properties.iter() {
        if extent == Extent::Names && !NAMES.iter().any(|kept| kept.as_bytes() == name) {
            continue;
        }
        match value {
            Value::LongStr(_) => match value.as_str() {
                Some(text) if extent != Extent::Whole && text.len() > CUT_TEXT_BYTES => {
                    let room = CUT_TEXT_BYTES - ELLIPSIS.len();
                    let end = (0..=room).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
                    let cut = [&text[..end], ELLIPSIS].concat();
                    table.value(name, Value::LongStr(cut.as_bytes()))?;
                }
                Some(_) => table.value(name, value)?,
                None => {}
            },
            Value::Table(capabilities) if name == b"capabilities" => {
                table.table("capabilities", |inner| {
                    let known = capabilities.iter().filter(|(_, value)| matches!(value, Value::Bool(_)));
                    known.into_iter().try_for_each(|(name, value)| inner.value(name, value))
                })?;
            }
            Value::Table(_) | Value::Array(_) | Value::Binary(_) => {}
            _ => table.value(name, value)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Properties as a client library sends them, with a connection name of this length.
    fn properties(name_len: usize) -> Vec<u8> {
        let mut bytes = vec![0; 16 << 10];
        let mut writer = Writer::new(&mut bytes);
        let name = "é".repeat(name_len / 2);
        let written = writer.table(|table| {
            table.text("product", "Pika Python Client Library")?;
            table.table("capabilities", |inner| {
                inner.bool("basic.nack", true)?;
                inner.long("odd", 7)
            })?;
            table.text("connection_name", &name)?;
            table.long("answer", 42)?;
            table.bool("is_own", true)?;
            table.array("list", |array| array.int(1))?;
            table.value(b"secret", Value::Binary(b"\0"))
        });
        assert!(written.is_ok());
        writer.written()[4..].to_vec()
    }

    #[test]
    fn texts_numbers_booleans_and_capabilities_are_kept() {
        let mut pool = ClientPool::new(100);
        let bytes = properties(100);
        let kept = pool.keep(Table::trusted(&bytes));
        let names: Vec<_> =
            kept.table().iter().map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect();
        assert_eq!(names, ["product", "capabilities", "connection_name", "answer", "is_own"]);
        let capabilities =
            kept.table().get("capabilities").and_then(|value| value.as_table()).expect("a table");
        assert_eq!(capabilities.iter().count(), 1);
        assert_eq!(
            kept.table().get("connection_name").and_then(|value| value.as_str()).map(str::len),
            Some(100)
        );
        pool.give_back(kept);
        assert_eq!(pool.free_bytes, 100 * BYTES_PER_CONNECTION);
    }

    #[test]
    fn what_does_not_fit_is_cut_with_an_ellipsis_and_gives_everything_back() {
        let mut pool = ClientPool::new(4);
        let bytes = properties(1_000);
        let clients: Vec<_> = (0..40).map(|_| pool.keep(Table::trusted(&bytes))).collect();
        let name = |client: &ClientProperties| {
            client.table().get("connection_name").and_then(|value| value.as_str()).map(str::to_owned)
        };
        let first = name(&clients[0]).expect("there is room for the first");
        assert!(first.ends_with(ELLIPSIS) && first.len() <= CUT_TEXT_BYTES, "{first}");
        assert!(clients[0].table().get("answer").is_some() && clients[1].table().get("answer").is_some());
        assert!(
            clients.iter().any(|client| client.table().iter().count() == 2),
            "some have their names alone"
        );
        assert!(clients.last().is_some_and(|client| client.table().iter().count() == 0));
        clients.into_iter().for_each(|client| pool.give_back(client));
        assert_eq!(pool.free_bytes, 4 * BYTES_PER_CONNECTION);
    }
}
