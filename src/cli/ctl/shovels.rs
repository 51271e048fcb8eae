//! `shovel_status`. Columns are rabbitmqctl's. It shows no password, because the broker does not return any.

use std::io::{self, Write};

use serde_json::{Map, Value};

use super::client::{Failure, print_info};
use super::commands::{Call, NODE, connect};
use super::format::Printer;

/// Columns of `shovel_status`, the broker's names for them, and whether a column is printed even if no shovel
/// has a value for it.
const COLUMNS: [(&str, &str, bool); 16] = [
    ("destination", "dest_uri", true),
    ("destination_exchange", "dest_exchange", false),
    ("destination_exchange_key", "dest_exchange_key", false),
    ("destination_protocol", "dest_protocol", true),
    ("destination_queue", "dest_queue", false),
    ("last_changed", "timestamp", true),
    ("name", "name", true),
    ("source", "src_uri", true),
    ("source_exchange", "src_exchange", false),
    ("source_exchange_key", "src_exchange_key", false),
    ("source_protocol", "src_protocol", true),
    ("source_queue", "src_queue", false),
    ("state", "state", true),
    ("termination_reason", "reason", true),
    ("type", "type", true),
    ("vhost", "vhost", true),
];

pub(super) fn status(call: &Call) -> Result<(), Failure> {
    let mut client = connect(call)?;
    print_info(call, &format!("Shovel status on node {NODE}"))?;
    let mut rows: Vec<Map<String, Value>> = Vec::new();
    let refused = client.rows("/api/shovels", &mut |row| {
        rows.extend(row.as_object().cloned());
        Ok(())
    })?;
    if let Some(reply) = refused {
        return Err(Failure::refused(&reply));
    }
    let has = |row: &Map<String, Value>, sent: &str| row.get(sent).is_some_and(|value| !value.is_null());
    let shown: Vec<_> = COLUMNS
        .into_iter()
        .filter(|(_, sent, is_always)| *is_always || rows.iter().any(|row| has(row, sent)))
        .collect();
    let columns: Vec<&str> = shown.iter().map(|(name, ..)| *name).collect();
    let mut out = io::stdout().lock();
    let mut printer = Printer::new(&mut out, call.formatter(), &columns, !call.silent && !call.no_headers)
        .for_report(call.in_report);
    for row in &rows {
        let cells: Vec<Value> = shown
            .iter()
            .map(|(_, sent, _)| row.get(*sent).filter(|it| !it.is_null()).cloned().unwrap_or("".into()))
            .collect();
        printer.row(&cells)?;
    }
    printer.end()?;
    out.flush().map_err(Failure::from)
}
