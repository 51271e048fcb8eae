//! Commands about runtime parameters, global parameters, and shovels. Columns, texts and exit codes are
//! rabbitmqctl's. `shovel_status` shows no password, because the broker does not return any.

use std::io::{self, Write};

use serde_json::{Map, Value, json};

use super::access::done;
use super::client::{Failure, UNAVAILABLE, no_json, print_info};
use super::commands::Call;
use super::commands::{ask, connect};
use super::format::Printer;

/// Checks that a value is JSON. Returns the body of the request.
fn checked_json(value: &str) -> Result<String, Failure> {
    match value.parse::<Value>() {
        Ok(value) => Ok(json!({ "value": value }).to_string()),
        Err(error) => Err(no_json("value", &error)),
    }
}

pub(super) fn set(call: &Call) -> Result<(), Failure> {
    let [component, name, value] = call.args.as_slice() else { return Ok(()) };
    let vhost = call.vhost();
    print_info(
        call,
        &format!(
            "Setting runtime parameter \"{name}\" for component \"{component}\" to \"{value}\" in vhost \
             \"{vhost}\" ..."
        ),
    )?;
    let body = checked_json(value)?;
    done(&ask(call, "PUT", &["parameters", component, vhost, name], &body)?)
}

pub(super) fn clear(call: &Call) -> Result<(), Failure> {
    let [component, name] = call.args.as_slice() else { return Ok(()) };
    let vhost = call.vhost();
    let what = format!("\"{name}\" for component \"{component}\" on vhost \"{vhost}\"");
    print_info(call, &format!("Clearing runtime parameter {what} ..."))?;
    clear_at(call, &["parameters", component, vhost, name])
}

fn clear_at(call: &Call, path: &[&str]) -> Result<(), Failure> {
    let reply = ask(call, "DELETE", path, "")?;
    match reply.status {
        404 => Err(Failure::error(UNAVAILABLE, "Parameter does not exist")),
        _ => done(&reply),
    }
}

pub(super) fn set_global(call: &Call) -> Result<(), Failure> {
    let [name, value] = call.args.as_slice() else { return Ok(()) };
    print_info(call, &format!("Setting global runtime parameter \"{name}\" to \"{value}\" ..."))?;
    let body = checked_json(value)?;
    done(&ask(call, "PUT", &["global-parameters", name], &body)?)
}

pub(super) fn clear_global(call: &Call) -> Result<(), Failure> {
    let name = &call.args[0];
    print_info(call, &format!("Clearing global runtime parameter \"{name}\" ..."))?;
    clear_at(call, &["global-parameters", name])
}

// ---- shovels

/// The name of the node, where rabbitmqctl shows one.
const NODE: &str = "leveret";

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

pub(super) fn restart(call: &Call) -> Result<(), Failure> {
    let (name, vhost) = (&call.args[0], call.vhost());
    print_info(call, &format!("Restarting dynamic Shovel {name} in virtual host {vhost} on node {NODE}"))?;
    order(call, &["shovels", "vhost", vhost, name, "restart"])
}

pub(super) fn delete(call: &Call) -> Result<(), Failure> {
    let (name, vhost) = (&call.args[0], call.vhost());
    print_info(call, &format!("Deleting shovel {name} in vhost {vhost}"))?;
    order(call, &["shovels", "vhost", vhost, name])
}

fn order(call: &Call, path: &[&str]) -> Result<(), Failure> {
    let reply = ask(call, "DELETE", path, "")?;
    match reply.status {
        404 => Err(Failure::error(
            UNAVAILABLE,
            format_args!(
                "Shovel with the given name was not found on the target node '{NODE}' and / or virtual host \
                 '{}'",
                call.vhost()
            ),
        )),
        _ => done(&reply),
    }
}
