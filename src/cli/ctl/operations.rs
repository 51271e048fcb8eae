//! Commands that print the state of the broker, `delete_queue`, and `close_all_connections`.

use std::io::{self, Write};

use serde_json::{Value, json};
use toml::de::{DeTable, DeValue};

use leveret_core::limits::Megabytes;
use leveret_core::version::build_version;
use leveret_management::http::encode;

use super::client::Reply;
use super::client::{
    Failure, SOFTWARE, USAGE, heading, print_done, print_info, print_json, print_message, print_value, shown,
};
use super::commands::{Call, NODE};
use super::commands::{ask, connect};
use super::format::Formatter;

pub(super) fn ping(call: &Call) -> Result<(), Failure> {
    print_info(
        call,
        "Will ping the broker. This checks that its event loop runs and answers on its socket.",
    )?;
    overview(call)?;
    print_message(call, "Ping succeeded")
}

/// Prints the version of this program. It needs no broker, so with `--formatter json` the node has its default name.
pub(super) fn version(call: &Call) -> Result<(), Failure> {
    let version = build_version();
    match call.formatter() {
        Formatter::Json => print_json(&json!({"node": NODE, "result": "ok", "value": {"version": version}})),
        _ => Ok(writeln!(io::stdout(), "{version}")?),
    }
}

pub(super) fn status(call: &Call) -> Result<(), Failure> {
    let overview = overview(call)?;
    if call.formatter() == Formatter::Json {
        return print_json(&status_json(overview));
    }
    let node = overview.get("node").and_then(Value::as_str).unwrap_or(NODE);
    print_info(call, &format!("Status of node {node} ..."))?;
    let sections: Vec<String> = status_sections(&overview)
        .into_iter()
        .map(|(title, lines)| {
            let lines: Vec<_> = lines.iter().map(|line| shown(call, line)).collect();
            let lines = if lines.is_empty() { "(none)".to_string() } else { lines.join("\n") };
            format!("{}\n\n{lines}", heading(title))
        })
        .collect();
    writeln!(io::stdout(), "{}", sections.join("\n\n"))?;
    Ok(())
}

/// Returns the broker's members of `status --formatter json`, and those that RabbitMQ has, with its names and types.
fn status_json(mut overview: Value) -> Value {
    let text = |key: &str| overview.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
    let number = |key: &str| overview.get(key).and_then(Value::as_u64).unwrap_or_default();
    let list = |key: &str| {
        let items = overview.get(key).and_then(Value::as_array).into_iter().flatten();
        items.filter_map(Value::as_str).map(str::to_string).collect::<Vec<_>>()
    };
    let node = text("node");
    let resident_bytes = resident_bytes(number("pid")).unwrap_or_default();
    let alarms: Vec<Value> = list("alarms").iter().map(|alarm| alarm_json(&node, alarm)).collect();
    let listeners: Vec<Value> =
        list("listeners").iter().map(|listener| listener_json(&node, listener)).collect();
    let members = json!({
        "active_plugins": [],
        "alarms": alarms,
        "config_files": list_of(text("configuration")),
        "data_directory": text("data_dir"),
        "file_descriptors": {
            "sockets_limit": number("fd_total"), "sockets_used": number("connections"),
            "total_limit": number("fd_total"), "total_used": number("fd_used"),
        },
        "is_under_maintenance": false,
        "listeners": listeners,
        "log_files": [],
        "memory": {
            "strategy": "rss",
            "total": {"allocated": resident_bytes, "erlang": 0, "rss": resident_bytes},
        },
        "os": "Linux",
        "processes": {"limit": 1, "used": 1},
        "run_queue": 0,
        "totals": {
            "connection_count": number("connections"), "queue_count": number("queues"),
            "virtual_host_count": number("vhosts"),
        },
        "uptime": number("uptime_ms") / 1000,
        "vm_memory_calculation_strategy": "rss",
        "vm_memory_high_watermark_limit": number("memory_limit"),
        "vm_memory_high_watermark_setting": {"absolute": number("memory_limit")},
    });
    if let (Value::Object(all), Value::Object(members)) = (&mut overview, members) {
        all.extend(members);
    }
    overview
}

/// Returns an alarm as RabbitMQ describes one. `reason` has the whole text, which begins with the alarm's name.
pub(super) fn alarm_json(node: &str, alarm: &str) -> Value {
    let name = alarm.split_once(':').map_or(alarm, |(name, _)| name);
    json!({"node": node, "resource": name, "type": "resource_limit", "reason": alarm})
}

/// Returns a listener as RabbitMQ describes one.
pub(super) fn listener_json(node: &str, listener: &str) -> Value {
    let [interface, port, protocol, purpose] = listener_parts(listener);
    let port = port.parse::<u16>().ok();
    json!({"node": node, "interface": interface, "port": port, "protocol": protocol, "purpose": purpose})
}

/// The counters of `status`, and the broker's names for them.
const TOTALS: [(&str, &str); 11] = [
    ("Connection count", "connections"),
    ("Channel count", "channels"),
    ("Queue count", "queues"),
    ("Exchange count", "exchanges"),
    ("Binding count", "bindings"),
    ("Consumer count", "consumers"),
    ("Virtual host count", "vhosts"),
    ("Messages ready", "messages_ready"),
    ("Messages unacknowledged", "messages_unacknowledged"),
    ("Handshakes evicted", "handshakes_evicted"),
    ("Messages dropped with their publishers", "publisher_messages_dropped"),
];

/// Returns the sections of `status`: titles, and lines under each.
fn status_sections(overview: &Value) -> [(&'static str, Vec<String>); 8] {
    let text = |key: &str| overview.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
    let number = |key: &str| overview.get(key).and_then(Value::as_u64).unwrap_or_default();
    let list = |key: &str| {
        let items = overview.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
        items.iter().filter_map(Value::as_str).map(str::to_string).collect::<Vec<_>>()
    };
    let pid = number("pid");
    let resident =
        resident_bytes(pid).map_or_else(|| "unknown".to_string(), |bytes| Megabytes(bytes).to_string());
    let size = |key: &str| Megabytes(number(key));
    let (used, usable) = (size("disk_used"), size("disk_usable"));
    let live = size("disk_live");
    let disk = format!(
        "Disk used: {used} of {usable} usable, {live} by messages; disk_limit is {}",
        size("disk_limit")
    );
    let syncs = match (number("is_over_sync_budget"), number("sync_budget_delayed_commits")) {
        (0, 0) => "Sync budget: no confirm has waited for it".to_string(),
        (is_now, count) => {
            let now = if is_now == 0 { "" } else { ", and do now" };
            format!("Sync budget: {count} commits have waited for syncs_per_second{now}")
        }
    };
    let wear = match text("wear") {
        wear if wear.is_empty() => "Disk written: there is no store".to_string(),
        wear => format!("Disk written: {wear}"),
    };
    let mut memory = vec![format!("Resident: {resident}"), format!("Memory limit: {}", size("memory_limit"))];
    memory.extend(classes(overview));
    [
        (
            "Runtime",
            vec![
                format!("OS PID: {pid}"),
                "OS: Linux".to_string(),
                format!("Uptime (seconds): {}", number("uptime_ms") / 1000),
                "Is under maintenance?: false".to_string(),
                // Scripts read the version of RabbitMQ whose commands they may use from this line.
                format!("RabbitMQ version: {}", text("rabbitmq_version")),
                format!("Node name: {}", text("node")),
                format!("Leveret version: {}", text("leveret_version")),
                format!("Announced as: {} {}", text("product_name"), text("product_version")),
            ],
        ),
        ("Data directory", vec![format!("Node data directory: {}", text("data_dir")), disk, syncs, wear]),
        ("Config files", list_of(text("configuration"))),
        ("Alarms", list("alarms")),
        ("Memory", memory),
        ("Totals", TOTALS.iter().map(|(name, key)| format!("{name}: {}", number(key))).collect()),
        ("Pools", pools(overview)),
        ("Listeners", list("listeners").iter().map(|listener| listener_line(listener)).collect()),
    ]
}

/// Returns what each class of the shared memory uses, and what uses most of it.
fn classes(overview: &Value) -> Vec<String> {
    let classes = overview.get("classes").and_then(Value::as_array).into_iter().flatten();
    let shown = classes.filter_map(|class| {
        let size = |key: &str| Some(Megabytes(class.get(key)?.as_u64()?));
        let line =
            format!("Shared, {}: {} of {}", class.get("name")?.as_str()?, size("used")?, size("limit")?);
        Some(line + &class.get("largest").and_then(holder).unwrap_or_default())
    });
    shown.collect()
}

fn holder(largest: &Value) -> Option<String> {
    let bytes = Megabytes(largest.get("bytes")?.as_u64()?);
    let text = |key: &str| largest.get(key).and_then(Value::as_str);
    let kind = text("kind")?;
    let who = match (text("name"), text("vhost"), text("user")) {
        // Clients choose these names.
        (Some(name), Some(vhost), _) => {
            format!("queue '{}' in virtual host '{}'", name.escape_debug(), vhost.escape_debug())
        }
        (Some(name), _, Some(user)) => format!("connection {name} of user '{}'", user.escape_debug()),
        _ => kind.to_string(),
    };
    Some(format!(", most by {who}: {bytes}"))
}

/// Returns how full each pool is.
fn pools(overview: &Value) -> Vec<String> {
    let pools = overview.get("pools").and_then(Value::as_object);
    let fills = pools.into_iter().flatten();
    let numbers = fills.filter_map(|(key, fill)| Some((key, fill.get(0)?.as_u64()?, fill.get(1)?.as_u64()?)));
    numbers
        .map(|(key, used, max)| format!("{key}: {used} of {max} ({} %)", used * 100 / max.max(1)))
        .collect()
}

pub(super) fn listener_line(listener: &str) -> String {
    let [interface, port, protocol, purpose] = listener_parts(listener);
    let port = if port.is_empty() { String::new() } else { format!(", port: {port}") };
    format!("Interface: {interface}{port}, protocol: {protocol}, purpose: {purpose}")
}

/// Returns a list with the text; an empty list for an empty text.
fn list_of(text: String) -> Vec<String> {
    if text.is_empty() { Vec::new() } else { vec![text] }
}

/// Splits a listener as rabbitmqctl shows it: interface, port if it has one, protocol, purpose.
pub(super) fn listener_parts(listener: &str) -> [&str; 4] {
    let (protocol, place) = listener.split_once(' ').unwrap_or_default();
    let purpose = match protocol {
        "amqp/ssl" => "AMQP 0-9-1 over TLS",
        "mqtt" => "MQTT",
        "mqtt/ssl" => "MQTT over TLS",
        "http" => "HTTP API",
        "https" => "HTTP API over TLS (HTTPS)",
        "http/prometheus" => "Prometheus exporter API over HTTP",
        _ => "AMQP 0-9-1",
    };
    match place.rsplit_once(':') {
        Some((host, port)) if !place.starts_with('/') => [host, port, protocol, purpose],
        _ => [place, "", protocol, purpose],
    }
}

/// Returns the resident memory of the process in bytes, from the kernel.
fn resident_bytes(pid: u64) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

pub(super) fn overview(call: &Call) -> Result<Value, Failure> {
    let reply = ask(call, "GET", &["overview"], "")?;
    if reply.status == 200 { Ok(reply.body) } else { Err(Failure::refused(&reply)) }
}

pub(super) fn environment(call: &Call) -> Result<(), Failure> {
    print_info(call, "Configuration of the broker ...")?;
    let reply = ask(call, "GET", &["ctl", "environment"], "")?;
    match reply.body.as_str().filter(|_| reply.status == 200) {
        Some(text) if call.formatter() == Formatter::Json => print_json(&environment_json(text)?)?,
        Some(text) => {
            let lines: Vec<_> = text.split('\n').map(|line| shown(call, line)).collect();
            writeln!(io::stdout(), "{}", lines.join("\n"))?;
        }
        None => return Err(Failure::refused(&reply)),
    }
    Ok(())
}

/// Returns the configuration as an object, in which a section is an object too.
fn environment_json(text: &str) -> Result<Value, Failure> {
    let table = DeTable::parse(text);
    let table =
        table.map_err(|error| Failure::new(SOFTWARE, format!("Error: the configuration: {error}")))?;
    Ok(members_json(table.get_ref()))
}

fn members_json(table: &DeTable<'_>) -> Value {
    let members = table.iter().map(|(key, value)| (key.get_ref().to_string(), value_json(value.get_ref())));
    Value::Object(members.collect())
}

/// Returns a value of the configuration as JSON. The configuration has no other types than these.
fn value_json(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => text.as_ref().into(),
        DeValue::Boolean(truth) => (*truth).into(),
        DeValue::Integer(number) => number.to_string().parse().unwrap_or_default(),
        DeValue::Float(number) => number.to_string().parse().unwrap_or_default(),
        DeValue::Datetime(time) => time.to_string().into(),
        DeValue::Array(items) => items.iter().map(|item| value_json(item.get_ref())).collect(),
        DeValue::Table(table) => members_json(table),
    }
}

pub(super) fn alarms(call: &Call) -> Result<(), Failure> {
    print_info(call, "Listing alarms ...")?;
    let reply = ask(call, "GET", &["ctl", "alarms"], "")?;
    if reply.status != 200 {
        return Err(Failure::refused(&reply));
    }
    if call.formatter() == Formatter::Json {
        return print_json(&reply.body);
    }
    let alarms = reply.body.as_array().cloned().unwrap_or_default();
    for alarm in alarms.iter().filter_map(Value::as_str) {
        writeln!(io::stdout(), "{}", shown(call, alarm))?;
    }
    match alarms.is_empty() {
        true => print_info(call, "(none)"),
        false => print_info(call, "Each name is a heading in the guide: troubleshooting.md"),
    }
}

pub(super) fn stop(call: &Call) -> Result<(), Failure> {
    print_info(call, "Stopping the broker ...")?;
    let mut client = connect(call)?;
    let reply = client.ask("POST", "/api/ctl/stop", "", "")?;
    if reply.status != 204 {
        return Err(Failure::refused(&reply));
    }
    client.wait_for_end();
    print_done(call)
}

pub(super) fn delete_queue(call: &Call) -> Result<(), Failure> {
    let queue = &call.args[0];
    let (if_empty, if_unused) = (call.has("if-empty"), call.has("if-unused"));
    let condition = match (if_empty, if_unused) {
        (true, true) => " if queue is empty and if queue is unused",
        (true, false) => " if queue is empty",
        (false, true) => " if queue is unused",
        (false, false) => "",
    };
    print_info(call, &format!("Deleting queue '{queue}' on vhost '{}'{condition} ...", call.vhost()))?;
    let path = format!(
        "/api/queues/{}/{}?if-empty={if_empty}&if-unused={if_unused}",
        encode(call.vhost()),
        encode(queue)
    );
    let reply = connect(call)?.ask("DELETE", &path, "", "")?;
    match reply.status {
        200 => {
            let ready = reply.body.get("messages").and_then(Value::as_u64).unwrap_or_default();
            print_message(call, &format!("Queue was successfully deleted with {ready} ready messages"))
        }
        404 => Err(Failure::error(USAGE, "Queue not found")),
        412 => Err(Failure::error(USAGE, why_kept(&reply))),
        _ => Err(Failure::refused(&reply)),
    }
}

/// Returns why a queue is not deleted, with rabbitmqctl's text.
fn why_kept(reply: &Reply) -> &'static str {
    if reply.reason().ends_with("in use") { "Queue is in use" } else { "Queue is not empty" }
}

pub(super) fn close_all_connections(call: &Call) -> Result<(), Failure> {
    let reason = &call.args[0];
    let path = if call.has("global") {
        print_info(call, &format!("Closing all connections to the broker, reason: {reason}..."))?;
        format!("/api/connections?reason={}", encode(reason))
    } else {
        print_info(call, &format!("Closing all connections in vhost {}, reason: {reason}...", call.vhost()))?;
        format!("/api/connections/vhost/{}?reason={}", encode(call.vhost()), encode(reason))
    };
    let reply = connect(call)?.ask("DELETE", &path, "", "")?;
    let closed = reply.body.get("closed").and_then(Value::as_u64).filter(|_| reply.status == 200);
    let closed = closed.ok_or_else(|| Failure::refused(&reply))?;
    match call.formatter() {
        Formatter::Json => print_value(call, &format!("Closed {closed} connections")),
        _ => print_info(call, &format!("Closed {closed} connections")),
    }
}
