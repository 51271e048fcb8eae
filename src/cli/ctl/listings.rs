//! Commands that list objects.

use std::io::{self, IsTerminal, Write};

use serde_json::Value;

use leveret_management::bridges::BridgeLinks;
use leveret_management::columns::{
    Channels, Connections, Consumers, Exchanges, ListedKind, Queues, TYPED, Vhosts,
};
use leveret_management::definition_columns::Bindings;
use leveret_management::definition_columns::DEFINITION_TEXT;
use leveret_management::definition_columns::Orphans;
use leveret_management::definition_columns::VALUE_TEXT;
use leveret_management::http::encode;
use leveret_management::mqtt::{MqttSessions, RetainedMessages};

use super::client::{BAD_DATA, Failure, misused, no_such_user, print_info};
use super::commands;
use super::commands::Call;
use super::commands::connect;
use super::format::{Formatter, Printer};

/// The source of rows.
pub(super) struct RowSource<'a> {
    /// The path of the listing.
    pub(super) path: String,
    /// The message printed before the rows.
    pub(super) banner: String,
    /// The columns to show.
    pub(super) columns: Vec<&'a str>,
    /// The rows arrive together. A table without rows is then printed as an empty line.
    pub(super) is_whole: bool,
    /// rabbitmqctl prints no header for this listing.
    pub(super) is_headless: bool,
}

pub(super) fn queues(call: &Call) -> Result<(), Failure> {
    let seconds = call.timeout.unwrap_or(commands::TIMEOUT).as_secs();
    let banner = format!("Timeout: {seconds}.0 seconds ...\nListing queues for vhost {} ...", call.vhost());
    in_vhost::<Queues>(call, "queues", banner, &["name", "messages"])
}

pub(super) fn exchanges(call: &Call) -> Result<(), Failure> {
    let banner = format!("Listing exchanges for vhost {} ...", call.vhost());
    in_vhost::<Exchanges>(call, "exchanges", banner, &["name", "type"])
}

pub(super) fn bindings(call: &Call) -> Result<(), Failure> {
    let banner = format!("Listing bindings for vhost {}...", call.vhost());
    let columns =
        ["source_name", "source_kind", "destination_name", "destination_kind", "routing_key", "arguments"];
    in_vhost::<Bindings>(call, "bindings", banner, &columns)
}

pub(super) fn consumers(call: &Call) -> Result<(), Failure> {
    let banner = format!("Listing consumers in vhost {} ...", call.vhost());
    let columns = [
        "queue_name",
        "channel_pid",
        "consumer_tag",
        "ack_required",
        "prefetch_count",
        "active",
        "arguments",
    ];
    in_vhost::<Consumers>(call, "consumers", banner, &columns)
}

pub(super) fn mqtt_sessions(call: &Call) -> Result<(), Failure> {
    let banner = format!("Listing MQTT sessions in vhost {} ...", call.vhost());
    let columns = ["client_id", "user", "state", "subscriptions", "messages_ready", "messages_dropped"];
    in_vhost::<MqttSessions>(call, "leveret/mqtt-sessions", banner, &columns)
}

pub(super) fn retained(call: &Call) -> Result<(), Failure> {
    let banner = format!("Listing retained messages in vhost {} ...", call.vhost());
    in_vhost::<RetainedMessages>(call, "leveret/retained", banner, &["topic", "qos", "payload_bytes"])
}

pub(super) fn connections(call: &Call) -> Result<(), Failure> {
    let columns = ["user", "peer_host", "peer_port", "state"];
    everywhere::<Connections>(call, "/api/connections".into(), "Listing connections ...", &columns)
}

pub(super) fn channels(call: &Call) -> Result<(), Failure> {
    let columns = ["pid", "user", "consumer_count", "messages_unacknowledged"];
    everywhere::<Channels>(call, "/api/channels".into(), "Listing channels ...", &columns)
}

pub(super) fn vhosts(call: &Call) -> Result<(), Failure> {
    everywhere::<Vhosts>(call, "/api/vhosts".into(), "Listing vhosts ...", &["name"])
}

pub(super) fn orphans(call: &Call) -> Result<(), Failure> {
    let columns = ["incarnation", "messages", "message_bytes", "vhost", "name"];
    everywhere::<Orphans>(call, "/api/ctl/orphans".into(), "Listing orphans ...", &columns)
}

pub(super) fn bridges(call: &Call) -> Result<(), Failure> {
    let columns =
        ["name", "direction", "state", "upstream", "moved", "pending", "backlog", "parked", "last_error"];
    everywhere::<BridgeLinks>(call, "/api/ctl/bridges".into(), "Listing bridges ...", &columns)
}

fn in_vhost<K: ListedKind>(call: &Call, what: &str, banner: String, default: &[&str]) -> Result<(), Failure> {
    let path = format!("/api/{what}/{}", encode(call.vhost()));
    everywhere::<K>(call, path, &banner, default)
}

fn everywhere<K: ListedKind>(
    call: &Call,
    path: String,
    banner: &str,
    default: &[&str],
) -> Result<(), Failure> {
    let columns = columns::<K>(call, default)?;
    print(call, RowSource { path, banner: banner.to_string(), columns, is_whole: false, is_headless: false })
}

/// Returns the columns that a command can show, if it accepts any.
pub(super) fn columns_of(command: &str) -> Option<Vec<&'static str>> {
    fn of<K: ListedKind>() -> Vec<&'static str> {
        K::COLUMNS.iter().map(|(name, _)| *name).filter(|name| *name != TYPED).collect()
    }
    Some(match command {
        "list_queues" => of::<Queues>(),
        "list_exchanges" => of::<Exchanges>(),
        "list_bindings" => of::<Bindings>(),
        "list_consumers" => of::<Consumers>(),
        "list_mqtt_sessions" => of::<MqttSessions>(),
        "list_retained" => of::<RetainedMessages>(),
        "list_connections" => of::<Connections>(),
        "list_channels" => of::<Channels>(),
        "list_vhosts" => of::<Vhosts>(),
        "list_orphans" => of::<Orphans>(),
        "bridge_status" => of::<BridgeLinks>(),
        _ => return None,
    })
}

/// Returns the requested columns, or the default ones.
fn columns<'a, K: ListedKind>(call: &'a Call, default: &[&'a str]) -> Result<Vec<&'a str>, Failure> {
    if call.args.is_empty() {
        return Ok(default.to_vec());
    }
    // Scripts write columns as "name messages" or as "name,messages".
    let asked: Vec<&str> = call.args.iter().flat_map(|word| word.split([' ', ',', '\t'])).collect();
    let asked: Vec<&str> = asked.into_iter().filter(|word| !word.is_empty()).collect();
    let has_typed = K::COLUMNS.iter().any(|(name, _)| *name == TYPED);
    let is_known = |name: &&&str| {
        **name == "arguments" && has_typed
            || **name != TYPED && K::COLUMNS.iter().any(|(known, _)| known == *name)
            || K::WITHOUT_FIGURE.contains(*name)
    };
    let unknown: Vec<&str> = asked.iter().filter(|name| !is_known(name)).copied().collect();
    if unknown.is_empty() {
        return Ok(asked);
    }
    let why = format!("Info key(s) {} are not supported", unknown.join(", "));
    Err(misused(call, &why))
}

/// Requests rows and prints them.
pub(super) fn print(call: &Call, source: RowSource<'_>) -> Result<(), Failure> {
    let mut client = connect(call)?;
    print_info(call, &source.banner)?;
    let stdout = io::stdout();
    let is_terminal = stdout.is_terminal();
    let mut out = io::BufWriter::new(stdout.lock());
    let has_header = !call.silent && !call.no_headers && !source.is_headless;
    let printer = Printer::new(&mut out, call.formatter(), &source.columns, has_header);
    let mut printer = printer.for_terminal(is_terminal).for_report(call.in_report);
    let sent = |name: &&str| match *name {
        "arguments" => TYPED.to_string(),
        "definition" => DEFINITION_TEXT.to_string(),
        "value" => VALUE_TEXT.to_string(),
        name => name.to_string(),
    };
    let asked: Vec<String> = source.columns.iter().map(sent).collect();
    let path = format!("{}?columns={}", source.path, asked.join(","));
    let mut rows = 0_u64;
    let refused = client.rows(&path, &mut |row| {
        rows += 1;
        let cells: Vec<Value> =
            asked.iter().map(|name| row.get(name).cloned().unwrap_or(Value::Null)).collect();
        printer.row(&cells).map_err(Failure::from)
    })?;
    match refused {
        Some(reply) if reply.error() == "no_such_vhost" => {
            return Err(Failure::new(BAD_DATA, reply.reason()));
        }
        Some(reply) if reply.error() == "no_such_user" => {
            let user = call.args.first().map_or("", String::as_str);
            return Err(no_such_user(user));
        }
        Some(reply) => return Err(Failure::refused(&reply)),
        None => {}
    }
    match (rows, source.is_whole, call.formatter()) {
        (0, true, Formatter::Table) => writeln!(out)?,
        (0, true, Formatter::Json) => writeln!(out, "[]")?,
        _ => printer.end()?,
    }
    out.flush().map_err(Failure::from)
}
