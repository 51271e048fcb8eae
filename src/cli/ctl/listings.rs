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

/// A command that lists objects.
struct List {
    command: &'static str,
    /// The path of the listing, after `/api/`. `{vhost}` and `{0}`, the first argument, are replaced.
    path: &'static str,
    /// The message printed before the rows. `{timeout}`, in seconds, is replaced too.
    banner: &'static str,
    /// The columns that are shown.
    columns: &'static [&'static str],
    /// The columns that the arguments may name instead.
    choice: Option<Choice>,
}

/// The columns of a kind of object.
struct Choice {
    names: fn() -> Vec<&'static str>,
    /// Columns of RabbitMQ whose cells are empty.
    empty: &'static [&'static str],
}

macro_rules! lists {
    ($($command:literal $(of $kind:ty)?, $path:literal, $banner:literal, [$($column:literal),*];)*) => {
        const LISTS: &[List] = &[$(List {
            command: $command,
            path: $path,
            banner: $banner,
            columns: &[$($column),*],
            choice: lists!(choice $($kind)?),
        }),*];
    };
    (choice) => { None };
    (choice $kind:ty) => { Some(Choice { names: names_of::<$kind>, empty: <$kind>::WITHOUT_FIGURE }) };
}

lists! {
    "list_queues" of Queues, "queues/{vhost}",
        "Timeout: {timeout}.0 seconds ...\nListing queues for vhost {vhost} ...", ["name", "messages"];
    "list_exchanges" of Exchanges, "exchanges/{vhost}", "Listing exchanges for vhost {vhost} ...", ["name", "type"];
    "list_bindings" of Bindings, "bindings/{vhost}", "Listing bindings for vhost {vhost}...",
        ["source_name", "source_kind", "destination_name", "destination_kind", "routing_key", "arguments"];
    "list_consumers" of Consumers, "consumers/{vhost}", "Listing consumers in vhost {vhost} ...",
        ["queue_name", "channel_pid", "consumer_tag", "ack_required", "prefetch_count", "active", "arguments"];
    "list_mqtt_sessions" of MqttSessions, "leveret/mqtt-sessions/{vhost}",
        "Listing MQTT sessions in vhost {vhost} ...",
        ["client_id", "user", "state", "subscriptions", "messages_ready", "messages_dropped"];
    "list_retained" of RetainedMessages, "leveret/retained/{vhost}",
        "Listing retained messages in vhost {vhost} ...", ["topic", "qos", "payload_bytes"];
    "list_connections" of Connections, "connections", "Listing connections ...",
        ["user", "peer_host", "peer_port", "state"];
    "list_channels" of Channels, "channels", "Listing channels ...",
        ["pid", "user", "consumer_count", "messages_unacknowledged"];
    "list_vhosts" of Vhosts, "vhosts", "Listing vhosts ...", ["name"];
    "list_orphans" of Orphans, "ctl/orphans", "Listing orphans ...",
        ["incarnation", "messages", "message_bytes", "vhost", "name"];
    "bridge_status" of BridgeLinks, "ctl/bridges", "Listing bridges ...",
        ["name", "direction", "state", "upstream", "moved", "pending", "backlog", "parked", "last_error"];
    "list_users", "users", "Listing users ...", ["user", "tags"];
    "list_permissions", "vhosts/{vhost}/permissions", "Listing permissions for vhost \"{vhost}\" ...",
        ["user", "configure", "write", "read"];
    "list_user_permissions", "users/{0}/permissions", "Listing permissions for user \"{0}\" ...",
        ["vhost", "configure", "write", "read"];
    "list_topic_permissions", "vhosts/{vhost}/topic-permissions",
        "Listing topic permissions for vhost \"{vhost}\" ...", ["user", "exchange", "write", "read"];
    "list_user_topic_permissions", "users/{0}/topic-permissions",
        "Listing topic permissions for user \"{0}\" ...", ["vhost", "exchange", "write", "read"];
    "list_policies", "policies/{vhost}", "Listing policies for vhost \"{vhost}\" ...",
        ["vhost", "name", "pattern", "apply-to", "definition", "priority"];
    "list_operator_policies", "operator-policies/{vhost}",
        "Listing operator policy overrides for vhost \"{vhost}\" ...",
        ["vhost", "name", "pattern", "apply-to", "definition", "priority"];
    "list_parameters", "parameters/{vhost}", "Listing runtime parameters for vhost \"{vhost}\" ...",
        ["component", "name", "value"];
    "list_global_parameters", "global-parameters", "Listing global runtime parameters ...", ["name", "value"];
}

fn names_of<K: ListedKind>() -> Vec<&'static str> {
    K::COLUMNS.iter().map(|(name, _)| *name).collect()
}

fn list_of(command: &str) -> Option<&'static List> {
    LISTS.iter().find(|list| list.command == command)
}

/// Returns the columns that a command can show, if it accepts any.
pub(super) fn columns_of(command: &str) -> Option<Vec<&'static str>> {
    let choice = list_of(command)?.choice.as_ref()?;
    Some((choice.names)().into_iter().filter(|name| *name != TYPED).collect())
}

/// Lists the objects of the command that is called.
pub(super) fn list(call: &Call) -> Result<(), Failure> {
    let list = list_of(&call.command).expect("every list is in the table");
    let columns = match &list.choice {
        Some(choice) if !call.args.is_empty() => chosen(call, choice)?,
        _ => list.columns.to_vec(),
    };
    print(call, list, &columns)
}

/// Fills a template of the table. `write` writes a name.
fn filled(template: &str, call: &Call, write: fn(&str) -> String) -> String {
    let mut parts = template.split('{');
    let mut out = parts.next().unwrap_or_default().to_string();
    for (name, rest) in parts.filter_map(|part| part.split_once('}')) {
        match name {
            "vhost" => out += &write(call.vhost()),
            "timeout" => out += &call.timeout.unwrap_or(commands::TIMEOUT).as_secs().to_string(),
            _ => out += &write(&call.args[0]),
        }
        out += rest;
    }
    out
}

/// Returns the columns that the arguments name.
fn chosen<'a>(call: &'a Call, choice: &Choice) -> Result<Vec<&'a str>, Failure> {
    // Scripts write columns as "name messages" or as "name,messages".
    let asked: Vec<&str> = call.args.iter().flat_map(|word| word.split([' ', ',', '\t'])).collect();
    let asked: Vec<&str> = asked.into_iter().filter(|word| !word.is_empty()).collect();
    let names = (choice.names)();
    let is_known = |name: &&&str| {
        **name == "arguments" && names.contains(&TYPED)
            || **name != TYPED && names.contains(name)
            || choice.empty.contains(name)
    };
    let unknown: Vec<&str> = asked.iter().filter(|name| !is_known(name)).copied().collect();
    if unknown.is_empty() {
        return Ok(asked);
    }
    let why = format!("Info key(s) {} are not supported", unknown.join(", "));
    Err(misused(call, &why))
}

/// Requests rows and prints them.
fn print(call: &Call, list: &List, columns: &[&str]) -> Result<(), Failure> {
    let mut client = connect(call)?;
    print_info(call, &filled(list.banner, call, str::to_string))?;
    let stdout = io::stdout();
    let is_terminal = stdout.is_terminal();
    let mut out = io::BufWriter::new(stdout.lock());
    // rabbitmqctl prints no header for this one.
    let has_header = !call.silent && !call.no_headers && list.command != "list_user_topic_permissions";
    let printer = Printer::new(&mut out, call.formatter(), columns, has_header);
    let mut printer = printer.for_terminal(is_terminal).for_report(call.in_report);
    let sent = |name: &&str| match *name {
        "arguments" => TYPED.to_string(),
        "definition" => DEFINITION_TEXT.to_string(),
        "value" => VALUE_TEXT.to_string(),
        name => name.to_string(),
    };
    let asked: Vec<String> = columns.iter().map(sent).collect();
    let path = filled(list.path, call, encode);
    let path = format!("/api/{path}?columns={}", asked.join(","));
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
    // These rows arrive together. A table without rows is then printed as an empty line.
    match (rows, list.choice.is_none(), call.formatter()) {
        (0, true, Formatter::Table) => writeln!(out)?,
        (0, true, Formatter::Json) => writeln!(out, "[]")?,
        _ => printer.end()?,
    }
    out.flush().map_err(Failure::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_belongs_to_a_command_and_names_columns_of_its_kind() {
        for list in LISTS {
            let command = commands::COMMANDS.iter().find(|command| command.name == list.command);
            let command = command.unwrap_or_else(|| panic!("{} is no command", list.command));
            assert!(core::ptr::fn_addr_eq(command.run, self::list as fn(&Call) -> _), "{}", list.command);
            assert!(command.args.0 > 0 || !list.path.contains("{0}"), "{}", list.command);
            let names = list.choice.as_ref().map(|choice| (choice.names)());
            for column in list.columns {
                assert!(
                    names.as_ref().is_none_or(|names| names.contains(column)),
                    "{}: {column}",
                    list.command
                );
            }
        }
        let run = |command: &&commands::Command| {
            core::ptr::fn_addr_eq(command.run, self::list as fn(&Call) -> Result<(), Failure>)
        };
        assert_eq!(commands::COMMANDS.iter().filter(run).count(), LISTS.len());
    }

    #[test]
    fn names_in_a_template_are_not_templates() {
        let call = Call { args: vec!["{vhost}".into()], vhost: Some("{0}/".into()), ..Call::default() };
        let path = filled("users/{0}/in/{vhost}", &call, encode);
        assert_eq!(path, "users/%7Bvhost%7D/in/%7B0%7D%2F");
        assert_eq!(filled("of \"{0}\" in {vhost} ...", &call, str::to_string), "of \"{vhost}\" in {0}/ ...");
    }
}
