//! Checks for scripts: whether the broker runs, listens and has no alarm. Also the commands about the
//! cluster, which consists of this node.
//!
//! Output and exit codes are those of `rabbitmqctl` and `rabbitmq-diagnostics`.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use super::client::{Failure, UNAVAILABLE, USAGE, heading, print_info, shown};
use super::commands::Call;
use super::format::Formatter;
use super::operations::{listener_line, listener_parts, overview};

/// Time limit for connecting to a listener.
const CONNECT: Duration = Duration::from_secs(5);

/// Feature flags of RabbitMQ 3.10, and whether the feature exists in Leveret.
const FLAGS: [(&str, bool); 7] = [
    ("classic_mirrored_queue_version", false),
    ("implicit_default_bindings", true),
    ("maintenance_mode_status", false),
    ("quorum_queue", true),
    ("stream_queue", false),
    ("user_limits", true),
    ("virtual_host_metadata", false),
];

/// The state of the broker that the checks need.
struct BrokerState {
    node: String,
    version: String,
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
            version: format!("Leveret {}", text("leveret_version")),
            alarms: list("alarms"),
            listeners: list("listeners"),
        })
    }

    /// Returns the ports and protocols that are reachable by network.
    fn ports(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        let parts = self.listeners.iter().map(|listener| listener_parts(listener));
        parts.filter(|[_, port, ..]| !port.is_empty()).map(|[host, port, protocol, _]| (host, port, protocol))
    }
}

/// Prints the result of a command, even if informational messages are suppressed.
fn print_result(call: &Call, line: &str) -> Result<(), Failure> {
    writeln!(io::stdout(), "{}", shown(call, line))?;
    Ok(())
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
    print_result(call, &format!("RabbitMQ on node {} is fully booted and running", seen.node))
}

/// Prints that the broker has booted: a broker that replies has finished its start.
pub(super) fn is_booting(call: &Call) -> Result<(), Failure> {
    let node = BrokerState::ask(call)?.node;
    print_info(call, &format!("Asking node {node} for its boot status ..."))?;
    let rest = "is fully booted (check with is_running), stopped or has not started booting yet";
    print_result(call, &format!("RabbitMQ on node {node} {rest}"))
}

pub(super) fn check_alarms(call: &Call) -> Result<(), Failure> {
    let BrokerState { node, alarms, .. } = BrokerState::ask(call)?;
    print_info(call, &format!("Asking node {node} to report any local resource alarms ..."))?;
    if !alarms.is_empty() {
        let lines: Vec<_> = alarms.iter().map(|alarm| shown(call, alarm)).collect();
        return Err(Failure::new(UNAVAILABLE, format!("Node {node} reported alarms:\n{}", lines.join("\n"))));
    }
    print_result(
        call,
        &match &*call.command {
            "check_local_alarms" => format!("Node {node} reported no local alarms"),
            _ => format!("Node {node} reported no alarms, local or clusterwide"),
        },
    )
}

pub(super) fn check_virtual_hosts(call: &Call) -> Result<(), Failure> {
    let node = BrokerState::ask(call)?.node;
    print_info(call, &format!("Checking if all vhosts are running on node {node} ..."))?;
    print_result(call, &format!("Node {node} reported all vhosts as running"))
}

pub(super) fn check_port_listener(call: &Call) -> Result<(), Failure> {
    let (seen, wanted) = (BrokerState::ask(call)?, &call.args[0]);
    let node = &seen.node;
    print_info(call, &format!("Asking node {node} if there's an active listener on port {wanted} ..."))?;
    if seen.ports().any(|(_, port, _)| port == wanted) {
        return print_result(call, &format!("A listener for port {wanted} is running on node {node}."));
    }
    let found = joined(seen.ports().map(|(_, port, _)| port));
    let text = format!(
        "No listener for port {wanted} is active on node {node}. Found listeners that use the following \
         ports: {found}"
    );
    Err(Failure::new(UNAVAILABLE, text))
}

pub(super) fn check_protocol_listener(call: &Call) -> Result<(), Failure> {
    let (seen, wanted) = (BrokerState::ask(call)?, &call.args[0]);
    let node = &seen.node;
    print_info(call, &format!("Asking node {node} if there's an active listener for protocol {wanted} ..."))?;
    if seen.ports().any(|(.., protocol)| protocol == wanted) {
        return print_result(call, &format!("A listener for protocol {wanted} is running on node {node}."));
    }
    let found = joined(seen.ports().map(|(.., protocol)| protocol));
    let text = format_args!(
        "No listener for protocol {wanted} is active on node {node}. Found listeners for the following \
         protocols: {found}"
    );
    Err(Failure::error(UNAVAILABLE, text))
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
    if !deaf.is_empty() {
        let text = format!("Connection to ports of the following listeners on node {node} failed: {deaf}");
        return Err(Failure::new(UNAVAILABLE, text));
    }
    let ports = joined(seen.ports().map(|(_, port, _)| port));
    print_result(call, &format!("Successfully connected to ports {ports} on node {node}."))
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
    print_result(call, "Health check passed")
}

const fn state(is_there: bool) -> &'static str {
    if is_there { "enabled" } else { "unavailable" }
}

pub(super) fn cluster_status(call: &Call) -> Result<(), Failure> {
    let seen = BrokerState::ask(call)?;
    let node = &seen.node;
    if call.formatter() == Formatter::Json {
        let listeners = seen.listeners.iter().map(|listener| listener_parts(listener));
        let listeners: Vec<_> = listeners
            .map(|[interface, port, protocol, purpose]| {
                let port = port.parse::<u16>().ok();
                json!({
                    "node": node, "interface": interface, "port": port, "protocol": protocol,
                    "purpose": purpose,
                })
            })
            .collect();
        let flags = FLAGS.map(|(name, is_there)| json!({"name": name, "state": state(is_there)}));
        let status = json!({
            "cluster_name": node, "disk_nodes": [node], "ram_nodes": [], "running_nodes": [node],
            "versions": {node: {"rabbitmq_name": "Leveret", "rabbitmq_version": seen.version}},
            "maintenance_status": {node: "not under maintenance"}, "alarms": seen.alarms, "partitions": {},
            "listeners": {node: listeners}, "feature_flags": flags,
        });
        writeln!(io::stdout(), "{status}")?;
        return Ok(());
    }
    print_info(call, &format!("Cluster status of node {node} ..."))?;
    let flags = FLAGS.iter().map(|(name, is_there)| format!("Flag: {name}, state: {}", state(*is_there)));
    let listeners = seen.listeners.iter().map(|listener| format!("Node: {node}, {}", uncapital(listener)));
    let sections = [
        ("Basics", vec![format!("Cluster name: {node}")]),
        ("Disk Nodes", vec![node.clone()]),
        ("Running Nodes", vec![node.clone()]),
        ("Versions", vec![format!("{node}: {}", seen.version)]),
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
    if call.formatter() == Formatter::Json {
        let flags = FLAGS.map(|(name, is_there)| json!({"name": name, "state": state(is_there)}));
        writeln!(io::stdout(), "{}", Value::from(flags.to_vec()))?;
        return Ok(());
    }
    if !call.silent && !call.no_headers {
        writeln!(io::stdout(), "name\tstate")?;
    }
    FLAGS.iter().try_for_each(|(name, is_there)| writeln!(io::stdout(), "{name}\t{}", state(*is_there)))?;
    Ok(())
}

/// Succeeds for an existing feature, because it is always enabled. Others cannot be enabled.
pub(super) fn enable_feature_flag(call: &Call) -> Result<(), Failure> {
    let (node, flag) = (BrokerState::ask(call)?.node, &call.args[0]);
    if flag == "all" {
        return print_info(call, "Enabling all feature flags ...");
    }
    print_info(call, &format!("Enabling feature flag \"{flag}\" ..."))?;
    if FLAGS.contains(&(flag, true)) {
        return Ok(());
    }
    Err(Failure::error(USAGE, format_args!("This feature flag is not supported by node {node}")))
}
