//! The commands that ask how it goes, or do something.

use std::io::{self, Write};

use serde_json::Value;

use crate::admin::http::encode;

use super::args::Call;
use super::client::Reply;
use super::failure::{Failure, UNAVAILABLE, USAGE, heading, tell};
use super::find::connect;
use super::format::Formatter;

pub(super) fn ping(call: &Call) -> Result<(), Failure> {
    tell(call, "Will ping the broker. This checks that it turns and answers on its socket.")?;
    overview(call)?;
    writeln!(io::stdout(), "Ping succeeded")?;
    Ok(())
}

pub(super) fn version(_: &Call) -> Result<(), Failure> {
    writeln!(io::stdout(), "{}", env!("CARGO_PKG_VERSION"))?;
    Ok(())
}

pub(super) fn status(call: &Call) -> Result<(), Failure> {
    let overview = overview(call)?;
    if call.formatter() == Formatter::Json {
        writeln!(io::stdout(), "{overview}")?;
        return Ok(());
    }
    let text = |key: &str| overview.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
    let number = |key: &str| overview.get(key).and_then(Value::as_u64).unwrap_or_default();
    let list = |key: &str| {
        let items = overview.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
        items.iter().filter_map(Value::as_str).map(str::to_string).collect::<Vec<_>>()
    };
    let none = |items: Vec<String>| if items.is_empty() { "(none)".to_string() } else { items.join("\n") };
    tell(call, "Status of the broker ...")?;
    let pid = number("pid");
    let resident =
        resident_bytes(pid).map_or_else(|| "unknown".to_string(), |bytes| format!("{bytes} bytes"));
    let listeners: Vec<String> = list("listeners")
        .iter()
        .filter_map(|listener| listener.split_once(' '))
        .map(|(protocol, place)| listener(protocol, place))
        .collect();
    let sections = [
        (
            "Runtime",
            format!(
                "OS PID: {pid}\nOS: Linux\nUptime (seconds): {}\nLeveret version: {}\nAnnounced as: {} {}",
                number("uptime_ms") / 1000,
                text("leveret_version"),
                text("product_name"),
                text("product_version")
            ),
        ),
        ("Data directory", format!("Node data directory: {}", text("data_dir"))),
        ("Alarms", none(list("alarms"))),
        ("Memory", format!("Resident: {resident}\nMemory limit: {} bytes", number("memory_limit"))),
        (
            "Totals",
            format!(
                "Connection count: {}\nChannel count: {}\nQueue count: {}\nExchange count: {}\n\
                 Binding count: {}\nConsumer count: {}\nVirtual host count: {}\n\
                 Handshakes evicted: {}\nNewcomers dropped: {}",
                number("connections"),
                number("channels"),
                number("queues"),
                number("exchanges"),
                number("bindings"),
                number("consumers"),
                number("vhosts"),
                number("handshakes_evicted"),
                number("newcomers_dropped")
            ),
        ),
        ("Listeners", none(listeners)),
    ];
    let shown: Vec<String> =
        sections.iter().map(|(title, body)| format!("{}\n\n{body}", heading(title))).collect();
    writeln!(io::stdout(), "{}", shown.join("\n\n"))?;
    Ok(())
}

/// Where the broker listens, in rabbitmqctl's words.
fn listener(protocol: &str, place: &str) -> String {
    let purpose = if protocol == "amqp/ssl" { "AMQP 0-9-1 over TLS" } else { "AMQP 0-9-1" };
    match place.rsplit_once(':') {
        Some((host, port)) if !place.starts_with('/') => {
            format!("Interface: {host}, port: {port}, protocol: {protocol}, purpose: {purpose}")
        }
        _ => format!("Interface: {place}, protocol: {protocol}, purpose: {purpose}"),
    }
}

/// What the kernel says of the process.
fn resident_bytes(pid: u64) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

fn overview(call: &Call) -> Result<Value, Failure> {
    let reply = connect(call)?.ask("GET", "/api/overview", "", "")?;
    if reply.status == 200 { Ok(reply.body) } else { Err(Failure::refused(&reply)) }
}

pub(super) fn environment(call: &Call) -> Result<(), Failure> {
    tell(call, "Configuration of the broker ...")?;
    let reply = connect(call)?.ask("GET", "/api/ctl/environment", "", "")?;
    match reply.body.as_str().filter(|_| reply.status == 200) {
        Some(text) if call.formatter() == Formatter::Json => writeln!(io::stdout(), "{}", Value::from(text))?,
        Some(text) => writeln!(io::stdout(), "{text}")?,
        None => return Err(Failure::refused(&reply)),
    }
    Ok(())
}

pub(super) fn alarms(call: &Call) -> Result<(), Failure> {
    tell(call, "Listing alarms ...")?;
    let reply = connect(call)?.ask("GET", "/api/ctl/alarms", "", "")?;
    if reply.status != 200 {
        return Err(Failure::refused(&reply));
    }
    if call.formatter() == Formatter::Json {
        writeln!(io::stdout(), "{}", reply.body)?;
        return Ok(());
    }
    let alarms = reply.body.as_array().cloned().unwrap_or_default();
    for alarm in alarms.iter().filter_map(Value::as_str) {
        writeln!(io::stdout(), "{alarm}")?;
    }
    if alarms.is_empty() {
        tell(call, "(none)")?;
    }
    Ok(())
}

pub(super) fn stop(call: &Call) -> Result<(), Failure> {
    tell(call, "Stopping the broker ...")?;
    let mut client = connect(call)?;
    let reply = client.ask("POST", "/api/ctl/stop", "", "")?;
    if reply.status != 204 {
        return Err(Failure::refused(&reply));
    }
    client.wait_for_end();
    Ok(())
}

pub(super) fn purge_queue(call: &Call) -> Result<(), Failure> {
    let queue = &call.args[0];
    tell(call, &format!("Purging queue '{queue}' in vhost '{}' ...", call.vhost()))?;
    let path = format!("/api/queues/{}/{}/contents", encode(call.vhost()), encode(queue));
    let reply = connect(call)?.ask("DELETE", &path, "", "")?;
    match reply.status {
        200 => Ok(()),
        404 => Err(Failure::error(UNAVAILABLE, "not_found")),
        _ => Err(Failure::refused(&reply)),
    }
}

pub(super) fn pause_bridge(call: &Call) -> Result<(), Failure> {
    order_bridge(call, "Pausing", "pause")
}

pub(super) fn resume_bridge(call: &Call) -> Result<(), Failure> {
    order_bridge(call, "Resuming", "resume")
}

pub(super) fn retry_parked(call: &Call) -> Result<(), Failure> {
    order_bridge(call, "Sending back what was set aside by", "retry")
}

fn order_bridge(call: &Call, doing: &str, order: &str) -> Result<(), Failure> {
    let bridge = &call.args[0];
    tell(call, &format!("{doing} bridge '{bridge}' ..."))?;
    let reply =
        connect(call)?.ask("POST", &format!("/api/ctl/bridges/{}/{order}", encode(bridge)), "", "")?;
    if reply.status == 204 { Ok(()) } else { Err(Failure::refused(&reply)) }
}

pub(super) fn adopt_orphan(call: &Call) -> Result<(), Failure> {
    let [incarnation, queue] = call.args.as_slice() else { return Ok(()) };
    tell(call, &format!("Adopting orphan {incarnation} as queue '{queue}' in vhost '{}' ...", call.vhost()))?;
    let path = format!("/api/ctl/orphans/{}/{}/{}", encode(incarnation), encode(call.vhost()), encode(queue));
    let count = orphan_done(&connect(call)?.ask("PUT", &path, "", "")?)?;
    writeln!(io::stdout(), "Queue was successfully declared with {count} ready messages")?;
    Ok(())
}

pub(super) fn delete_orphan(call: &Call) -> Result<(), Failure> {
    let incarnation = &call.args[0];
    tell(call, &format!("Deleting orphan {incarnation} ..."))?;
    let path = format!("/api/ctl/orphans/{}", encode(incarnation));
    let count = orphan_done(&connect(call)?.ask("DELETE", &path, "", "")?)?;
    writeln!(io::stdout(), "Orphan was successfully deleted with {count} messages")?;
    Ok(())
}

/// How many messages it was about.
fn orphan_done(reply: &Reply) -> Result<u64, Failure> {
    let count = reply.body.get("messages").and_then(Value::as_u64).filter(|_| reply.status == 200);
    count.ok_or_else(|| Failure::refused(reply))
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
    tell(call, &format!("Deleting queue '{queue}' on vhost '{}'{condition} ...", call.vhost()))?;
    let path = format!(
        "/api/queues/{}/{}?if-empty={if_empty}&if-unused={if_unused}",
        encode(call.vhost()),
        encode(queue)
    );
    let reply = connect(call)?.ask("DELETE", &path, "", "")?;
    match reply.status {
        200 => {
            let ready = reply.body.get("messages").and_then(Value::as_u64).unwrap_or_default();
            writeln!(io::stdout(), "Queue was successfully deleted with {ready} ready messages")?;
            Ok(())
        }
        404 => Err(Failure::error(USAGE, "Queue not found")),
        412 => Err(Failure::error(USAGE, why_kept(&reply))),
        _ => Err(Failure::refused(&reply)),
    }
}

/// What keeps a queue from being deleted, in rabbitmqctl's words.
fn why_kept(reply: &Reply) -> &'static str {
    if reply.reason().ends_with("in use") { "Queue is in use" } else { "Queue is not empty" }
}

pub(super) fn close_connection(call: &Call) -> Result<(), Failure> {
    let (pid, reason) = (&call.args[0], &call.args[1]);
    tell(call, &format!("Closing connection {pid}, reason: {reason}..."))?;
    let path = format!("/api/connections/{}?reason={}", encode(pid), encode(reason));
    let reply = connect(call)?.ask("DELETE", &path, "", "")?;
    match reply.status {
        204 => Ok(()),
        400 => Err(Failure::error(UNAVAILABLE, format_args!("Error:\n{}", reply.reason()))),
        _ => Err(Failure::refused(&reply)),
    }
}

pub(super) fn close_all_connections(call: &Call) -> Result<(), Failure> {
    let reason = &call.args[0];
    let path = if call.has("global") {
        tell(call, &format!("Closing all connections to the broker, reason: {reason}..."))?;
        format!("/api/connections?reason={}", encode(reason))
    } else {
        tell(call, &format!("Closing all connections in vhost {}, reason: {reason}...", call.vhost()))?;
        format!("/api/connections/vhost/{}?reason={}", encode(call.vhost()), encode(reason))
    };
    let reply = connect(call)?.ask("DELETE", &path, "", "")?;
    let closed = reply.body.get("closed").and_then(Value::as_u64).filter(|_| reply.status == 200);
    let closed = closed.ok_or_else(|| Failure::refused(&reply))?;
    tell(call, &format!("Closed {closed} connections"))
}
