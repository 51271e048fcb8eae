//! Checks for scripts: whether the broker runs, listens and has no alarm. Also the commands about the
//! cluster, which consists of this node.
//!
//! Output and exit codes are those of `rabbitmqctl` and `rabbitmq-diagnostics`.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use super::client::{
    Failure, UNAVAILABLE, USAGE, heading, misused, print_done, print_info, print_json, print_message, shown,
};
use super::commands::Call;
use super::format::{Formatter, print_rows};
use super::operations::{alarm_json, listener_json, listener_line, listener_parts, overview};

/// Time limit for connecting to a listener.
const CONNECT: Duration = Duration::from_secs(5);

/// A feature flag of RabbitMQ.
struct FeatureFlag {
    name: &'static str,
    about: &'static str,
    /// Whether Leveret has the feature.
    is_supported: bool,
}

const fn flag(name: &'static str, is_supported: bool, about: &'static str) -> FeatureFlag {
    FeatureFlag { name, about, is_supported }
}

/// The feature flags of RabbitMQ 3.10.
const FLAGS: [FeatureFlag; 7] = [
    flag("classic_mirrored_queue_version", false, "Versions of mirrored classic queues"),
    flag("implicit_default_bindings", true, "Bindings to the default exchange are not stored"),
    flag("maintenance_mode_status", false, "Maintenance mode"),
    flag("quorum_queue", true, "Queues of type `quorum`, without replicas"),
    flag("stream_queue", false, "Queues of type `stream`"),
    flag("user_limits", true, "Limits of connections and channels for a user"),
    flag("virtual_host_metadata", true, "Description, tags and default queue type of a virtual host"),
];

/// The state of the broker that the checks need.
struct BrokerState {
    node: String,
    cluster_name: String,
    rabbitmq_version: String,
    leveret_version: String,
    alarms: Vec<String>,
    listeners: Vec<String>,
}

impl BrokerState {
    fn ask(call: &Call) -> Result<Self, Failure> {
        let overview = overview(call)?;
        let text = |key: &str| overview.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
        let list = |key: &str| {
            let items = overview.get(key).and_then(Value::as_array).into_iter().flatten();
            items.filter_map(Value::as_str).map(str::to_string).collect()
        };
        Ok(Self {
            node: text("node"),
            cluster_name: text("cluster_name"),
            rabbitmq_version: text("rabbitmq_version"),
            leveret_version: text("leveret_version"),
            alarms: list("alarms"),
            listeners: list("listeners"),
        })
    }

    fn listeners_json(&self) -> Vec<Value> {
        self.listeners.iter().map(|listener| listener_json(&self.node, listener)).collect()
    }

    /// Returns the ports and protocols that are reachable by network.
    fn ports(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        let parts = self.listeners.iter().map(|listener| listener_parts(listener));
        parts.filter(|[_, port, ..]| !port.is_empty()).map(|[host, port, protocol, _]| (host, port, protocol))
    }
}

/// Prints the result of a check: a line, or an object with `--formatter json`.
fn print_result(call: &Call, line: &str, object: Value) -> Result<(), Failure> {
    match call.formatter() {
        Formatter::Json => print_json(&object),
        _ => print_message(call, line),
    }
}

/// Returns the failure of a check: a text, or an object with `--formatter json`, which rabbitmqctl also writes to standard
/// error.
fn failed_check(call: &Call, failure: Failure, object: Value) -> Failure {
    match call.formatter() {
        Formatter::Json => Failure::new(UNAVAILABLE, object.to_string()),
        _ => failure,
    }
}

fn joined<'t>(words: impl Iterator<Item = &'t str>) -> String {
    let mut words: Vec<_> = words.collect();
    words.sort_unstable();
    words.dedup();
    words.join(", ")
}

pub(super) fn is_running(call: &Call) -> Result<(), Failure> {
    let seen = BrokerState::ask(call)?;
    let question = match &*call.command {
        "check_running" => format!("Checking if RabbitMQ is running on node {} ...", seen.node),
        _ => format!("Asking node {} for its status ...", seen.node),
    };
    print_info(call, &question)?;
    let text = format!("RabbitMQ on node {} is fully booted and running", seen.node);
    let object = match &*call.command {
        "check_running" => json!({"message": text}),
        _ => json!({"message": text, "result": true}),
    };
    print_result(call, &text, object)
}

/// Prints that the broker has booted: a broker that replies has finished its start.
pub(super) fn is_booting(call: &Call) -> Result<(), Failure> {
    let node = BrokerState::ask(call)?.node;
    print_info(call, &format!("Asking node {node} for its boot status ..."))?;
    let rest = "is fully booted (check with is_running), stopped or has not started booting yet";
    let text = format!("RabbitMQ on node {node} {rest}");
    print_result(call, &text, json!({"message": text, "result": false}))
}

pub(super) fn check_alarms(call: &Call) -> Result<(), Failure> {
    let BrokerState { node, alarms, .. } = BrokerState::ask(call)?;
    print_info(call, &format!("Asking node {node} to report any local resource alarms ..."))?;
    if !alarms.is_empty() {
        let lines: Vec<_> = alarms.iter().map(|alarm| shown(call, alarm)).collect();
        let text = format!("Node {node} reported alarms:\n{}", lines.join("\n"));
        let object = match &*call.command {
            "check_local_alarms" => {
                let message = format!("Node {node} reported local alarms");
                json!({"local": alarms, "message": message, "result": "error"})
            }
            _ => {
                let message = format!("Node {node} reported alarms");
                json!({"global": [], "local": alarms, "message": message, "result": "error"})
            }
        };
        return Err(failed_check(call, Failure::new(UNAVAILABLE, text), object));
    }
    let text = match &*call.command {
        "check_local_alarms" => format!("Node {node} reported no local alarms"),
        _ => format!("Node {node} reported no alarms, local or clusterwide"),
    };
    print_result(call, &text, json!({"result": "ok"}))
}

pub(super) fn check_virtual_hosts(call: &Call) -> Result<(), Failure> {
    let node = BrokerState::ask(call)?.node;
    print_info(call, &format!("Checking if all vhosts are running on node {node} ..."))?;
    print_result(call, &format!("Node {node} reported all vhosts as running"), json!({"result": "ok"}))
}

pub(super) fn check_port_listener(call: &Call) -> Result<(), Failure> {
    let (seen, wanted) = (BrokerState::ask(call)?, &call.args[0]);
    let node = &seen.node;
    print_info(call, &format!("Asking node {node} if there's an active listener on port {wanted} ..."))?;
    if seen.ports().any(|(_, port, _)| port == wanted) {
        let text = format!("A listener for port {wanted} is running on node {node}.");
        return print_result(call, &text, json!({"node": node, "port": wanted, "result": "ok"}));
    }
    let found = joined(seen.ports().map(|(_, port, _)| port));
    let text = format!(
        "No listener for port {wanted} is active on node {node}. Found listeners that use the following \
         ports: {found}"
    );
    let ports: Vec<u16> = seen.ports().filter_map(|(_, port, _)| port.parse().ok()).collect();
    let listeners = seen.listeners_json();
    let object = json!({"listeners": listeners, "missing": wanted, "ports": ports, "result": "error"});
    Err(failed_check(call, Failure::new(UNAVAILABLE, text), object))
}

pub(super) fn check_protocol_listener(call: &Call) -> Result<(), Failure> {
    let (seen, wanted) = (BrokerState::ask(call)?, &call.args[0]);
    let node = &seen.node;
    print_info(call, &format!("Asking node {node} if there's an active listener for protocol {wanted} ..."))?;
    if seen.ports().any(|(.., protocol)| protocol == wanted) {
        let text = format!("A listener for protocol {wanted} is running on node {node}.");
        return print_result(call, &text, json!({"node": node, "protocol": wanted, "result": "ok"}));
    }
    let found = joined(seen.ports().map(|(.., protocol)| protocol));
    let text = format_args!(
        "No listener for protocol {wanted} is active on node {node}. Found listeners for the following \
         protocols: {found}"
    );
    let protocols: Vec<&str> = seen.ports().map(|(.., protocol)| protocol).collect();
    let listeners = seen.listeners_json();
    let object =
        json!({"listeners": listeners, "missing": wanted, "protocols": protocols, "result": "error"});
    Err(failed_check(call, Failure::error(UNAVAILABLE, text), object))
}

/// Checks that each listener accepts connections.
pub(super) fn check_port_connectivity(call: &Call) -> Result<(), Failure> {
    let seen = BrokerState::ask(call)?;
    let node = &seen.node;
    print_info(call, &format!("Testing TCP connections to all active listeners on node {node} ..."))?;
    let is_deaf = |(host, port, _): &(&str, &str, &str)| {
        let host = host.replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]");
        let address = format!("{host}:{port}").parse::<SocketAddr>();
        !address.is_ok_and(|address| TcpStream::connect_timeout(&address, CONNECT).is_ok())
    };
    let deaf = joined(seen.ports().filter(is_deaf).map(|(_, port, _)| port));
    let listeners = seen.listeners_json();
    if !deaf.is_empty() {
        let text = format!("Connection to ports of the following listeners on node {node} failed: {deaf}");
        let object = json!({"listeners": listeners, "failures": deaf, "node": node, "result": "error"});
        return Err(failed_check(call, Failure::new(UNAVAILABLE, text), object));
    }
    let ports = joined(seen.ports().map(|(_, port, _)| port));
    let object = json!({"listeners": listeners, "node": node, "result": "ok"});
    print_result(call, &format!("Successfully connected to ports {ports} on node {node}."), object)
}

/// The alarms that [`node_health_check`] reports, as RabbitMQ's reports its resource alarms: publishers or clients cannot
/// go on.
const RESOURCE_ALARMS: [&str; 5] = ["memory:", "room:", "store:", "disk:", "connections:"];

/// Runs the check that RabbitMQ has deprecated in favour of the others.
pub(super) fn node_health_check(call: &Call) -> Result<(), Failure> {
    let BrokerState { node, alarms, .. } = BrokerState::ask(call)?;
    print_info(
        call,
        &format!(
            "This command is DEPRECATED and will be removed in a future version.\nIt performs intrusive, \
             opinionated health checks and requires a fully booted node.\nUse one of the options covered in \
             https://www.rabbitmq.com/monitoring.html#health-checks instead.\nTimeout: 70 seconds ...\n\
             Checking health of node {node} ..."
        ),
    )?;
    if let Some(alarm) =
        alarms.iter().find(|alarm| RESOURCE_ALARMS.iter().any(|name| alarm.starts_with(name)))
    {
        let text = format_args!("healthcheck failed. Message: {}", shown(call, alarm));
        return Err(Failure::error(UNAVAILABLE, text));
    }
    print_message(call, "Health check passed")
}

/// The columns of `list_feature_flags`.
const FLAG_COLUMNS: [&str; 6] = ["name", "state", "stability", "provided_by", "desc", "doc_url"];

impl FeatureFlag {
    const fn state(&self) -> &'static str {
        if self.is_supported { "enabled" } else { "unavailable" }
    }

    /// Returns the values of [`FLAG_COLUMNS`].
    fn cells(&self) -> [Value; 6] {
        [self.name, self.state(), "stable", "rabbit", self.about, ""].map(Value::from)
    }
}

pub(super) fn cluster_status(call: &Call) -> Result<(), Failure> {
    let seen = BrokerState::ask(call)?;
    let node = &seen.node;
    if call.formatter() == Formatter::Json {
        let alarms: Vec<_> = seen.alarms.iter().map(|alarm| alarm_json(node, alarm)).collect();
        let flags = FLAGS.iter().map(FeatureFlag::cells).map(|cells| {
            let members = FLAG_COLUMNS.iter().zip(cells).map(|(column, cell)| (column.to_string(), cell));
            members.collect::<serde_json::Map<_, _>>()
        });
        let flags: Vec<_> = flags.collect();
        let status = json!({
            "cluster_name": seen.cluster_name, "disk_nodes": [node], "ram_nodes": [], "running_nodes": [node],
            "versions": {node: {
                "rabbitmq_name": "RabbitMQ", "rabbitmq_version": seen.rabbitmq_version,
                "leveret_version": seen.leveret_version,
            }},
            "maintenance_status": {node: "not under maintenance"}, "alarms": alarms, "partitions": {},
            "listeners": {node: seen.listeners_json()}, "feature_flags": flags,
        });
        return print_json(&status);
    }
    print_info(call, &format!("Cluster status of node {node} ..."))?;
    let flags = FLAGS.iter().map(|flag| format!("Flag: {}, state: {}", flag.name, flag.state()));
    let listeners = seen.listeners.iter().map(|listener| format!("Node: {node}, {}", uncapital(listener)));
    let sections = [
        ("Basics", vec![format!("Cluster name: {}", seen.cluster_name)]),
        ("Disk Nodes", vec![node.clone()]),
        ("Running Nodes", vec![node.clone()]),
        (
            "Versions",
            vec![format!("{node}: RabbitMQ {} by Leveret {}", seen.rabbitmq_version, seen.leveret_version)],
        ),
        ("Maintenance status", vec![format!("Node: {node}, status: not under maintenance")]),
        ("Alarms", seen.alarms.clone()),
        ("Network Partitions", Vec::new()),
        ("Listeners", listeners.collect()),
        ("Feature flags", flags.collect()),
    ];
    let sections = sections.map(|(title, lines)| {
        let lines: Vec<_> = lines.iter().map(|line| shown(call, line)).collect();
        let lines = if lines.is_empty() { "(none)".to_string() } else { lines.join("\n") };
        format!("{}\n\n{lines}", heading(title))
    });
    writeln!(io::stdout(), "{}", sections.join("\n\n"))?;
    Ok(())
}

fn uncapital(listener: &str) -> String {
    listener_line(listener).replacen("Interface", "interface", 1)
}

pub(super) fn list_feature_flags(call: &Call) -> Result<(), Failure> {
    BrokerState::ask(call)?;
    print_info(call, "Listing feature flags ...")?;
    let position = |word: &str| FLAG_COLUMNS.iter().position(|column| *column == word);
    let words = call.args.iter().flat_map(|words| words.split([' ', ','])).filter(|word| !word.is_empty());
    let (known, unknown): (Vec<&str>, Vec<&str>) = words.partition(|word| position(word).is_some());
    if !unknown.is_empty() {
        return Err(misused(call, &format!("Info key(s) {} are not supported", unknown.join(","))));
    }
    let columns = if known.is_empty() { vec!["name", "state"] } else { known };
    let rows = FLAGS.iter().map(|flag| {
        let cells = flag.cells();
        columns.iter().filter_map(|column| Some(cells[position(column)?].clone())).collect()
    });
    print_rows(call, &columns, rows)
}

/// Succeeds for an existing feature, because it is always enabled. Others cannot be enabled.
pub(super) fn enable_feature_flag(call: &Call) -> Result<(), Failure> {
    let (node, flag) = (BrokerState::ask(call)?.node, &call.args[0]);
    if flag == "all" {
        print_info(call, "Enabling all feature flags ...")?;
        return print_done(call);
    }
    print_info(call, &format!("Enabling feature flag \"{flag}\" ..."))?;
    if FLAGS.iter().any(|known| known.name == flag && known.is_supported) {
        return print_done(call);
    }
    Err(Failure::error(USAGE, format_args!("This feature flag is not supported by node {node}")))
}
