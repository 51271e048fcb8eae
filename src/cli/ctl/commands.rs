//! All commands with their usage; the help; parsing of arguments; finding the control socket.

use super::changes::Argument::{Json, Text};
use super::changes::SelectedReply::{Status, Success};
use super::changes::{
    Change, NO_SUCH_PARAMETER, NO_SUCH_SHOVEL, NO_SUCH_USER, NO_SUCH_USER_OR_VHOST, NOT_FOUND, delete, post,
    put,
};
use super::client::{BAD_DATA, Client, Failure, NOT_PERMITTED, Reply, UNAVAILABLE, USAGE, heading};
use super::format::{self, Formatter};
use super::listings::{List, list, list_of};
use super::{access, backup, checks, definitions, limits, operations, policies, shovels};
use Action::Run;
use leveret_config::{Config, Layer};
use leveret_daemon::SOCKET_NAME;
use leveret_management::bridges::BridgeLinks;
use leveret_management::columns::{Channels, Connections, Consumers, Exchanges, Queues, Vhosts};
use leveret_management::definition_columns::{Bindings, Orphans};
use leveret_management::http::encode;
use leveret_management::mqtt::{MqttSessions, RetainedMessages};
use lexopt::Arg;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs};

/// One command.
pub(super) struct Command {
    pub(super) name: &'static str,
    /// The description, without its last full stop.
    pub(super) about: &'static str,
    pub(super) usage: &'static str,
    /// An example: what follows the name.
    example: &'static str,
    /// Minimum and maximum number of arguments.
    pub(super) args: (usize, usize),
    pub(super) action: Action,
}

/// The action of a command.
pub(super) enum Action {
    /// Calls a function.
    Run(fn(&Call) -> Result<(), Failure>),
    /// Lists objects.
    List(List),
    /// Changes something with one request.
    Change(Change),
}

impl Command {
    /// Runs the command. The number of arguments has been checked.
    pub(super) fn run(&self, call: &Call) -> Result<(), Failure> {
        match &self.action {
            Run(function) => function(call),
            Action::List(list) => list.run(call),
            Action::Change(change) => change.run(call),
        }
    }

    /// Returns the columns that a list can show, if it accepts any.
    pub(super) fn columns(&self) -> Option<Vec<&'static str>> {
        match &self.action {
            Action::List(list) => list.known_columns(),
            Run(_) | Action::Change(_) => None,
        }
    }
}

/// Width of the help in columns.
const HELP_COLUMNS: usize = 80;
/// The column in which the description of a command begins.
const ABOUT_COLUMN: usize = 33;
/// Any number of arguments.
const ANY: usize = usize::MAX;

/// The sections of the help, and the commands in each.
const SECTIONS: [(&str, &[&str]); 12] = [
    ("Help", &["help", "version"]),
    (
        "Broker",
        &[
            "await_startup",
            "cluster_status",
            "environment",
            "ping",
            "report",
            "set_cluster_name",
            "status",
            "stop",
        ],
    ),
    ("Feature flags", &["enable_feature_flag", "list_feature_flags"]),
    (
        "Checks",
        &[
            "check_alarms",
            "check_local_alarms",
            "check_port_connectivity",
            "check_port_listener",
            "check_protocol_listener",
            "check_running",
            "check_virtual_hosts",
            "is_booting",
            "is_running",
            "node_health_check",
        ],
    ),
    (
        "Monitoring",
        &[
            "list_alarms",
            "list_bindings",
            "list_channels",
            "list_connections",
            "list_consumers",
            "list_exchanges",
            "list_mqtt_sessions",
            "list_queues",
            "list_retained",
        ],
    ),
    (
        "Users",
        &[
            "add_user",
            "authenticate_user",
            "change_password",
            "clear_password",
            "clear_user_limits",
            "confirm_users",
            "delete_user",
            "eval",
            "hash_password",
            "list_users",
            "list_user_limits",
            "set_user_limits",
            "set_user_tags",
        ],
    ),
    (
        "Access Control",
        &[
            "clear_permissions",
            "clear_topic_permissions",
            "list_permissions",
            "list_topic_permissions",
            "list_user_permissions",
            "list_user_topic_permissions",
            "set_permissions",
            "set_topic_permissions",
        ],
    ),
    (
        "Virtual hosts",
        &[
            "add_vhost",
            "clear_vhost_limits",
            "delete_vhost",
            "disable_vhost_protection_from_deletion",
            "enable_vhost_protection_from_deletion",
            "list_vhosts",
            "list_vhost_limits",
            "set_vhost_limits",
            "trace_off",
            "trace_on",
            "update_vhost_metadata",
        ],
    ),
    (
        "Policies",
        &[
            "clear_operator_policy",
            "clear_policy",
            "list_operator_policies",
            "list_policies",
            "set_operator_policy",
            "set_policy",
        ],
    ),
    (
        "Parameters",
        &[
            "clear_global_parameter",
            "clear_parameter",
            "delete_shovel",
            "list_global_parameters",
            "list_parameters",
            "restart_shovel",
            "set_global_parameter",
            "set_parameter",
            "shovel_status",
        ],
    ),
    ("Definitions", &["backup", "export_definitions", "import_definitions"]),
    (
        "Operations",
        &[
            "acknowledge_damage",
            "adopt_orphan",
            "bridge_status",
            "close_all_connections",
            "close_all_user_connections",
            "close_connection",
            "delete_mqtt_session",
            "delete_orphan",
            "delete_queue",
            "delete_retained",
            "list_orphans",
            "pause_bridge",
            "purge_queue",
            "resume_bridge",
            "retry_parked",
        ],
    ),
];

/// Defines the table of commands. A row has the name, the usage after the name, and the minimum and maximum number of
/// arguments. Then come an example without the name (optional), the description without its last full stop, and the
/// action.
macro_rules! commands {
    ($($name:literal, $usage:literal, $least:literal..=$most:expr, $(example $example:literal,)? $about:literal,
        $action:expr;)*) => {
        /// All commands.
        pub(super) const COMMANDS: &[Command] = &[$(Command {
            name: $name,
            about: $about,
            usage: concat!($name, $usage),
            example: concat!($($example)?),
            args: ($least, $most),
            action: $action,
        }),*];
    };
}

commands! {
    "help", " [<command>]", 0..=1, example "list_queues", "Displays usage information for a command", Run(help);
    "version", "", 0..=0, "Displays the version of this program", Run(operations::version);
    "ping", "", 0..=0, "Checks that the broker answers", Run(operations::ping);
    "await_startup", " [--timeout <timeout>]", 0..=0, example "--timeout 60",
        "Waits for the broker to answer, for five minutes unless a timeout is given", Run(format::await_startup);
    "report", " [--file <flight_recorder>]", 0..=0, example "> report.txt",
        "Displays a report to attach to a bug report: status, configuration, memory, users, connections, queues, \
         bridges, and the last events of this run and of earlier runs. It contains no message and no secret. If \
         the broker does not answer, only the events are displayed. With --file the events are read from that \
         file, and no broker is needed", Run(format::report);
    "status", " [--formatter json]", 0..=0, "Displays the status of the broker", Run(operations::status);
    "environment", "", 0..=0, "Displays the broker's configuration without secrets", Run(operations::environment);
    "cluster_status", " [--formatter json]", 0..=0, example "--formatter json",
        "Displays the cluster, which is this one node", Run(checks::cluster_status);
    "set_cluster_name", " <name>", 1..=1, example "plant-7",
        "Sets the cluster name, which clients and the management API are told",
        put("cluster-name", &[("name", Text(0))], "Setting cluster name to {0} ...", &[]);
    "list_feature_flags", " [--no-table-headers] [<column>, ...]", 0..=ANY, example "name state",
        "Lists RabbitMQ's feature flags, and which of these features the broker has", Run(checks::list_feature_flags);
    "enable_feature_flag", " <all | feature_flag>", 1..=1, example "all",
        "Checks that the broker has a feature; all features that it has are always enabled",
        Run(checks::enable_feature_flag);
    "is_running", "", 0..=0, "Checks that the broker runs", Run(checks::is_running);
    "is_booting", "", 0..=0, "Reports that the broker has started", Run(checks::is_booting);
    "check_running", "", 0..=0, "Checks that the broker runs", Run(checks::is_running);
    "check_alarms", "", 0..=0, "Checks that there is no alarm (see list_alarms)", Run(checks::check_alarms);
    "check_local_alarms", "", 0..=0, "Checks that there is no alarm (see list_alarms)", Run(checks::check_alarms);
    "check_port_connectivity", "", 0..=0, "Checks that each listener accepts connections",
        Run(checks::check_port_connectivity);
    "check_port_listener", " <port>", 1..=1, example "5672", "Checks that the broker listens on a port",
        Run(checks::check_port_listener);
    "check_protocol_listener", " <protocol>", 1..=1, example "amqp",
        "Checks that the broker listens for a protocol: amqp, amqp/ssl, mqtt, mqtt/ssl, http, https, http/prometheus",
        Run(checks::check_protocol_listener);
    "check_virtual_hosts", "", 0..=0, "Checks that the broker answers", Run(checks::check_virtual_hosts);
    "node_health_check", "", 0..=0, "Checks that the broker answers. Deprecated", Run(checks::node_health_check);
    "list_alarms", "", 0..=0, "Lists what needs the attention of an operator", Run(operations::alarms);
    "stop", "", 0..=0, "Stops the broker and waits until it has ended", Run(operations::stop);
    "list_queues", " [--vhost <vhost>] [--no-table-headers] [<column>, ...] [--timeout <timeout>]", 0..=ANY,
        example "-p plant name messages consumers", "Lists queues and their properties",
        list_of::<Queues>("queues/{vhost}", "Timeout: {timeout}.0 seconds ...\nListing queues for vhost {vhost} ...",
            &["name", "messages"]);
    "list_exchanges", " [--vhost <vhost>] [--no-table-headers] [<column> ...] [--timeout <timeout>]", 0..=ANY,
        example "name type durable", "Lists exchanges",
        list_of::<Exchanges>("exchanges/{vhost}", "Listing exchanges for vhost {vhost} ...", &["name", "type"]);
    "list_bindings", " [--vhost <vhost>] [--no-table-headers] [<column> ...] [--timeout <timeout>]", 0..=ANY,
        example "-p plant source_name routing_key destination_name", "Lists all bindings on a vhost",
        list_of::<Bindings>("bindings/{vhost}", "Listing bindings for vhost {vhost}...",
            &["source_name", "source_kind", "destination_name", "destination_kind", "routing_key", "arguments"]);
    "list_connections", " [--no-table-headers] [<column> ...] [--timeout <timeout>]", 0..=ANY,
        example "pid name user state", "Lists AMQP 0.9.1 connections",
        list_of::<Connections>("connections", "Listing connections ...",
            &["user", "peer_host", "peer_port", "state"]);
    "list_channels", " [--no-table-headers] [<column> ...]", 0..=ANY,
        example "pid number prefetch_count messages_unacknowledged", "Lists all channels",
        list_of::<Channels>("channels", "Listing channels ...",
            &["pid", "user", "consumer_count", "messages_unacknowledged"]);
    "list_consumers", " [--vhost <vhost>] [--no-table-headers] [<column> ...] [--timeout <timeout>]", 0..=ANY,
        example "-p plant queue_name channel_pid prefetch_count", "Lists all consumers for a vhost",
        list_of::<Consumers>("consumers/{vhost}", "Listing consumers in vhost {vhost} ...",
            &["queue_name", "channel_pid", "consumer_tag", "ack_required", "prefetch_count", "active", "arguments"]);
    "list_mqtt_sessions", " [--vhost <vhost>] [--no-table-headers] [<column> ...] [--timeout <timeout>]", 0..=ANY,
        example "client_id state messages_ready messages_dropped",
        "Lists MQTT sessions, also those whose clients are not connected",
        list_of::<MqttSessions>("leveret/mqtt-sessions/{vhost}", "Listing MQTT sessions in vhost {vhost} ...",
            &["client_id", "user", "state", "last_seen", "subscriptions", "messages_ready", "messages_dropped"]);
    "list_retained", " [--vhost <vhost>] [--no-table-headers] [<column> ...] [--timeout <timeout>]", 0..=ANY,
        example "topic payload_bytes", "Lists retained messages of MQTT",
        list_of::<RetainedMessages>("leveret/retained/{vhost}", "Listing retained messages in vhost {vhost} ...",
            &["topic", "qos", "payload_bytes", "age", "preview"]);
    "list_vhosts", " [--no-table-headers] [<column> ...]", 0..=ANY, example "name description", "Lists virtual hosts",
        list_of::<Vhosts>("vhosts", "Listing vhosts ...", &["name"]);
    "list_users", " [--no-table-headers] [--timeout <timeout>]", 0..=0, "List user names and tags",
        list("users", "Listing users ...", &["user", "tags"]);
    "add_user", " <username> [<password>]", 1..=2, example "meter < password-file",
        "Creates a new user. Without a password argument, the password is read from the terminal or from standard \
         input. Every user of the machine can see the arguments of a command", Run(access::add_user);
    "delete_user", " <username>", 1..=1, example "guest", "Removes a user",
        delete("users/{0}", "Deleting user \"{0}\" ...", NO_SUCH_USER);
    "change_password", " <username> [<password>]", 1..=2, example "meter",
        "Changes the user password. Without a password argument, it is read from the terminal or from standard input",
        Run(access::change_password);
    "clear_password", " <username>", 1..=1, example "meter",
        "Clears (resets) password and disables password login for a user", Run(access::clear_password);
    "hash_password", " [<cleartext_password>]", 0..=1, example "< password-file",
        "Prints the hash of a password in RabbitMQ's format, for definitions and the management API. Without an \
         argument, the password is read from the terminal or from standard input", Run(access::hash_password);
    "confirm_users", "", 0..=0,
        "Confirms that users, virtual hosts and permissions are correct after the store was damaged. Until then \
         every login is refused. Check list_users, list_permissions and list_topic_permissions first, and correct \
         them: missing entries were lost, and deleted entries may have come back",
        post("ctl/confirm-users", "Confirming users, virtual hosts and permissions as they are now ...", &[]);
    "authenticate_user", " <username> [<password>]", 1..=2, example "meter",
        "Attempts to authenticate a user. Exits with a non-zero code if authentication fails",
        Run(access::authenticate_user);
    "set_user_tags", " <username> <tag> [...]", 1..=ANY, example "meter monitoring", "Sets user tags",
        Run(access::set_user_tags);
    "list_permissions", " [--vhost <vhost>] [--no-table-headers] [--timeout <timeout>]", 0..=0, example "-p plant",
        "Lists user permissions in a virtual host",
        list("vhosts/{vhost}/permissions", "Listing permissions for vhost \"{vhost}\" ...",
            &["user", "configure", "write", "read"]);
    "list_user_permissions", " [--no-table-headers] <username> [--timeout <timeout>]", 1..=1, example "meter",
        "Lists permissions of a user across all virtual hosts",
        list("users/{0}/permissions", "Listing permissions for user \"{0}\" ...",
            &["vhost", "configure", "write", "read"]);
    "set_permissions", " [--vhost <vhost>] <username> <conf> <write> <read>", 4..=4,
        example r#"-p plant meter '^meter' '^(meter|amq\.default)$' '^meter'"#, "Sets user permissions for a vhost",
        put("permissions/{vhost}/{0}", &[("configure", Text(1)), ("write", Text(2)), ("read", Text(3))],
            "Setting permissions for user \"{0}\" in vhost \"{vhost}\" ...", NO_SUCH_USER_OR_VHOST);
    "clear_permissions", " [--vhost <vhost>] <username>", 1..=1, example "-p plant meter",
        "Revokes user permissions for a vhost",
        delete("permissions/{vhost}/{0}", "Clearing permissions for user \"{0}\" in vhost \"{vhost}\" ...",
            NO_SUCH_USER_OR_VHOST);
    "list_topic_permissions", " [--vhost <vhost>] [--no-table-headers] [--timeout <timeout>]", 0..=0,
        example "-p plant", "Lists topic permissions in a virtual host",
        list("vhosts/{vhost}/topic-permissions", "Listing topic permissions for vhost \"{vhost}\" ...",
            &["user", "exchange", "write", "read"]);
    "list_user_topic_permissions", " [--no-table-headers] <username> [--timeout <timeout>]", 1..=1, example "meter",
        "Lists user topic permissions",
        list("users/{0}/topic-permissions", "Listing topic permissions for user \"{0}\" ...",
            &["vhost", "exchange", "write", "read"]);
    "set_topic_permissions", " [--vhost <vhost>] <username> <exchange> <write> <read>", 4..=4,
        example r#"-p plant meter amq.topic '^{username}\.' '.*'"#, "Sets user topic permissions for an exchange",
        put("topic-permissions/{vhost}/{0}", &[("exchange", Text(1)), ("write", Text(2)), ("read", Text(3))],
            "Setting topic permissions on \"{1}\" for user \"{0}\" in vhost \"{vhost}\" ...", NO_SUCH_USER_OR_VHOST);
    "clear_topic_permissions", " [--vhost <vhost>] <username> [<exchange>]", 1..=2,
        example "-p plant meter amq.topic", "Clears user topic permissions for a vhost or exchange",
        delete("topic-permissions/{vhost}/{0}[/{1}]",
            "Clearing topic permissions[ on \"{1}\"] for user \"{0}\" in vhost \"{vhost}\" ...",
            NO_SUCH_USER_OR_VHOST);
    "eval", " <expression>", 1..=1,
        example r#"'rabbit_access_control:check_user_pass_login(list_to_binary("meter"), list_to_binary("secret")).'"#,
        "Checks a password: the only Erlang expression, which puppet's module uses", Run(access::eval);
    "add_vhost", " <vhost> [--description <text>] [--tags <tag,...>] [--default-queue-type <type>]", 1..=1,
        example r#"plant --description "Hall 3""#,
        "Creates a virtual host, or changes the metadata of one. Queues that are declared without a type get the \
         default queue type: classic or quorum", Run(access::add_vhost);
    "update_vhost_metadata", " <vhost> [--description <description>] [--tags \"<tag1>,<tag2>,<...>\"] \
        [--default-queue-type <quorum|classic|stream>]", 1..=1, example "plant --tags test",
        "Updates metadata (tags, description, default queue type) of a virtual host; options that are not given keep their values",
        Run(access::update_vhost_metadata);
    "enable_vhost_protection_from_deletion", " <vhost>", 1..=1, example "plant",
        "Protects a virtual host from deletion",
        post("vhosts/{0}/deletion/protection", "Protecting vhost \"{0}\" from deletion ...", &[]);
    "disable_vhost_protection_from_deletion", " <vhost>", 1..=1, example "plant",
        "Lifts the protection of a virtual host from deletion",
        delete("vhosts/{0}/deletion/protection", "Lifting the protection of vhost \"{0}\" from deletion ...", &[]);
    "delete_vhost", " <vhost>", 1..=1, example "plant", "Deletes a virtual host",
        delete("vhosts/{0}", "Deleting vhost \"{0}\" ...", &[(Status(412), BAD_DATA,
            "Cannot delete this virtual host: it is protected from deletion. To lift the protection, inspect and \
             update its metadata")]);
    "list_vhost_limits", " [--vhost <vhost>] [--global]", 0..=0, example "-p plant",
        "Displays configured virtual host limits", Run(limits::list_vhost_limits);
    "set_vhost_limits", " [--vhost <vhost>] <definition>", 1..=1, example r#"-p plant '{"max-queues": 100}'"#,
        "Sets virtual host limits: max-queues and max-connections, as JSON", Run(limits::set_vhost_limits);
    "clear_vhost_limits", " [--vhost <vhost>]", 0..=0, example "-p plant", "Clears virtual host limits",
        delete("vhost-limits/{vhost}", "Clearing vhost \"{vhost}\" limits ...", &[]);
    "trace_on", " [--vhost <vhost>]", 0..=0, example "-p plant",
        "Starts tracing: every message that is published or delivered in a virtual host is copied to its exchange \
         amq.rabbitmq.trace, with the routing key publish.EXCHANGE or deliver.QUEUE, until trace_off or a \
         restart. Every matching binding costs a copy of each message",
        put("ctl/trace/{vhost}", &[], "Starting tracing for vhost \"{vhost}\" ...",
            &[(Success, 0, "Trace enabled for vhost {vhost}"), NOT_FOUND]);
    "trace_off", " [--vhost <vhost>]", 0..=0, example "-p plant", "Stops tracing",
        delete("ctl/trace/{vhost}", "Stopping tracing for vhost \"{vhost}\" ...",
            &[(Success, 0, "Trace disabled for vhost {vhost}"), NOT_FOUND]);
    "list_user_limits", " [--user <username>] [--global]", 0..=0, example "--user meter",
        "Displays configured user limits", Run(limits::list_user_limits);
    "set_user_limits", " <username> <definition>", 2..=2, example r#"meter '{"max-connections": 4}'"#,
        "Sets user limits: max-connections and max-channels, as JSON", Run(limits::set_user_limits);
    "clear_user_limits", " <username> <limit_type> | all", 2..=2, example "meter max-connections",
        "Clears user connection/channel limits", Run(limits::clear_user_limits);
    "set_policy", " [--vhost <vhost>] [--priority <priority>] [--apply-to <apply-to>] <name> <pattern> \
         <definition>", 3..=3, example r#"--apply-to queues ring '^readings$' '{"max-length": 1000}'"#,
        "Sets or updates a policy", Run(policies::set);
    "clear_policy", " [--vhost <vhost>] <name>", 1..=1, example "ring", "Clears (removes) a policy",
        delete("policies/{vhost}/{0}", "Clearing policy \"{0}\" on vhost \"{vhost}\" ...", NO_SUCH_PARAMETER);
    "list_policies", " [--vhost <vhost>] [--no-table-headers] [--timeout <timeout>]", 0..=0, example "-p plant",
        "Lists all policies in a virtual host",
        list("policies/{vhost}", "Listing policies for vhost \"{vhost}\" ...",
            &["vhost", "name", "pattern", "apply-to", "definition", "priority"]);
    "set_operator_policy", " [--vhost <vhost>] [--priority <priority>] [--apply-to <apply-to>] <name> \
         <pattern> <definition>", 3..=3, example r#"all '.*' '{"max-length-bytes": 50000000}'"#,
        "Sets an operator policy that overrides a subset of arguments in user policies", Run(policies::set);
    "clear_operator_policy", " [--vhost <vhost>] <name>", 1..=1, example "all", "Clears an operator policy",
        delete("operator-policies/{vhost}/{0}", "Clearing operator policy \"{0}\" on vhost \"{vhost}\" ...",
            NO_SUCH_PARAMETER);
    "list_operator_policies", " [--vhost <vhost>] [--no-table-headers] [--timeout <timeout>]", 0..=0,
        example "-p plant", "Lists operator policy overrides for a virtual host",
        list("operator-policies/{vhost}", "Listing operator policy overrides for vhost \"{vhost}\" ...",
            &["vhost", "name", "pattern", "apply-to", "definition", "priority"]);
    "set_parameter", " [--vhost <vhost>] <component_name> <name> <value>", 3..=3,
        example r#"shovel up '{"src-uri": "amqp://", "src-queue": "q", "dest-uri": "amqp://u:p@host", "dest-queue": "q"}'"#,
        "Sets a runtime parameter, as JSON. The component is shovel: a bridge with RabbitMQ's keys",
        put("parameters/{0}/{vhost}/{1}", &[("value", Json(2))],
            "Setting runtime parameter \"{1}\" for component \"{0}\" to \"{2}\" in vhost \"{vhost}\" ...", &[]);
    "clear_parameter", " [--vhost <vhost>] <component_name> <name>", 2..=2, example "shovel up",
        "Clears a runtime parameter",
        delete("parameters/{0}/{vhost}/{1}",
            "Clearing runtime parameter \"{1}\" for component \"{0}\" on vhost \"{vhost}\" ...", NO_SUCH_PARAMETER);
    "list_parameters", " [--vhost <vhost>] [--no-table-headers] [--timeout <timeout>]", 0..=0, example "-p plant",
        "Lists runtime parameters for a virtual host, passwords in addresses included",
        list("parameters/{vhost}", "Listing runtime parameters for vhost \"{vhost}\" ...",
            &["component", "name", "value"]);
    "set_global_parameter", " <name> <value>", 2..=2, example r#"site '"hall 3"'"#,
        "Sets a global runtime parameter, as JSON",
        put("global-parameters/{0}", &[("value", Json(1))], "Setting global runtime parameter \"{0}\" to \"{1}\" ...",
            &[]);
    "clear_global_parameter", " <name>", 1..=1, example "site", "Clears a global runtime parameter",
        delete("global-parameters/{0}", "Clearing global runtime parameter \"{0}\" ...", NO_SUCH_PARAMETER);
    "list_global_parameters", " [--no-table-headers] [--timeout <timeout>]", 0..=0, "Lists global runtime parameters",
        list("global-parameters", "Listing global runtime parameters ...", &["name", "value"]);
    "shovel_status", " [--no-table-headers] [--timeout <timeout>]", 0..=0,
        "Displays status of shovels, and of bridges in the same columns; bridge_status displays more",
        Run(shovels::status);
    "restart_shovel", " [--vhost <vhost>] <name>", 1..=1, example "up",
        "Closes the connections of a shovel and opens them again",
        delete("shovels/vhost/{vhost}/{0}/restart",
            "Restarting dynamic Shovel {0} in virtual host {vhost} on node {node}", NO_SUCH_SHOVEL);
    "delete_shovel", " [--vhost <vhost>] <name>", 1..=1, example "up", "Deletes a shovel",
        delete("shovels/vhost/{vhost}/{0}", "Deleting shovel {0} in vhost {vhost}", NO_SUCH_SHOVEL);
    "export_definitions", " <file_path | \"-\"> [--timeout <timeout>]", 1..=1, example "all.json",
        "Exports definitions in JSON, as RabbitMQ does", Run(definitions::export);
    "import_definitions", " <file_path | \"-\"> [--timeout <timeout>]", 0..=1, example "all.json",
        "Imports definitions in JSON, as RabbitMQ exports them", Run(definitions::import);
    "backup", " <file_path | \"-\">", 1..=1, example "/media/stick/leveret.tar",
        "Writes a consistent copy of the store to a tar archive while the broker runs. leveret restore makes a \
         store from it", Run(backup::backup);
    "purge_queue", " <queue> [--vhost <vhost>]", 1..=1, example "readings -p plant",
        "Purges a queue (removes all messages in it)",
        delete("queues/{vhost}/{0}/contents", "Purging queue '{0}' in vhost '{vhost}' ...",
            &[(Status(404), UNAVAILABLE, "not_found\nThere is no queue {0:?} in vhost {vhost:?}")]);
    "delete_queue", " [--vhost <vhost>] <queue_name> [--if-empty|-e] [--if-unused|-u]", 1..=1,
        example "readings --if-empty", "Deletes a queue", Run(operations::delete_queue);
    "delete_mqtt_session", " [--vhost <vhost>] <client_id>", 1..=1, example "meter-7",
        "Ends an MQTT session with its subscriptions and messages. A client that is connected is disconnected",
        delete("leveret/mqtt-sessions/{vhost}/{0}", "Deleting MQTT session '{0}' on vhost '{vhost}' ...", &[]);
    "delete_retained", " [--vhost <vhost>] <topic>", 1..=1, example "plant/1/state",
        "Deletes the retained message of a topic",
        delete("leveret/retained/{vhost}/{0}", "Deleting retained message of '{0}' on vhost '{vhost}' ...", &[]);
    "acknowledge_damage", "", 0..=0,
        "Ends the alarm that parts of the store could not be read. Until then it is raised again after \
         each restart. Later damage raises it again",
        post("ctl/acknowledge-damage", "Acknowledging the damage that was reported ...", &[]);
    "list_orphans", " [--no-table-headers] [<column> ...] [--timeout <timeout>]", 0..=ANY,
        "Lists messages whose queue was lost, because the blocks with its definition are damaged. vhost and name \
         are empty if they are unknown",
        list_of::<Orphans>("ctl/orphans", "Listing orphans ...",
            &["incarnation", "messages", "message_bytes", "vhost", "name"]);
    "adopt_orphan", " [--vhost <vhost>] <incarnation> <queue>", 2..=2, example "4294967299 readings",
        "Creates a durable queue of that name from an orphan (see list_orphans), with all its messages in order",
        put("ctl/orphans/{0}/{vhost}/{1}", &[], "Adopting orphan {0} as queue '{1}' in vhost '{vhost}' ...",
            &[(Success, 0, "Queue was successfully declared with {messages} ready messages"), NOT_FOUND]);
    "delete_orphan", " <incarnation>", 1..=1, example "4294967299",
        "Deletes an orphan (see list_orphans) with all its messages",
        delete("ctl/orphans/{0}", "Deleting orphan {0} ...",
            &[(Success, 0, "Orphan was successfully deleted with {messages} messages"), NOT_FOUND]);
    "bridge_status", " [--no-table-headers] [<column> ...] [--timeout <timeout>]", 0..=ANY,
        example "name state backlog last_error",
        "Lists the links of bridges, one for each direction, and their state; times in seconds",
        list_of::<BridgeLinks>("ctl/bridges", "Listing bridges ...",
            &["name", "direction", "state", "upstream", "moved", "pending", "backlog", "parked", "last_error"]);
    "pause_bridge", " <bridge>", 1..=1, example "plant",
        "Closes the connections of a bridge after messages in flight are settled. It stays paused until \
         resume_bridge, also after a restart",
        post("ctl/bridges/{0}/pause", "Pausing bridge '{0}' ...", &[NOT_FOUND]);
    "resume_bridge", " <bridge>", 1..=1, example "plant",
        "Connects a bridge at once, whether it is paused, idle, or waiting for its next attempt",
        post("ctl/bridges/{0}/resume", "Resuming bridge '{0}' ...", &[NOT_FOUND]);
    "retry_parked", " <bridge>", 1..=1, example "plant",
        "Sends the parked messages of a bridge to their destination again. The column retried of bridge_status \
         has the result",
        post("ctl/bridges/{0}/retry", "Sending messages again that were parked by bridge '{0}' ...", &[NOT_FOUND]);
    "close_connection", " <connection pid> <explanation>", 2..=2, example r#""<leveret.7>" "maintenance""#,
        "Closes a connection, named by its pid (see list_connections pid name)",
        delete("connections/{0}?reason={1}", "Closing connection {0}, reason: {1}...",
            &[(Status(400), UNAVAILABLE, "Error:\n{reason}"), NOT_FOUND]);
    "close_all_user_connections", " <username> <explanation>", 2..=2, example r#"meter "maintenance""#,
        "Closes all connections of a user",
        delete("connections/username/{0}?reason={1}", "Closing connections of user {0}, reason: {1}...",
            &[NOT_FOUND]);
    "close_all_connections", " [--vhost <vhost>] [--global] <explanation>", 1..=1,
        example r#"-p plant "maintenance""#, "Closes all connections for a vhost, or all connections",
        Run(operations::close_all_connections);
}

/// Handles `help [<command>]`.
pub(super) fn help(call: &Call) -> Result<(), Failure> {
    let Some(name) = call.args.first() else {
        writeln!(io::stdout(), "{}", overview())?;
        return Ok(());
    };
    match COMMANDS.iter().find(|command| command.name == name) {
        Some(command) => help_for(command),
        None => Err(Failure::error(USAGE, format_args!("\nCommand '{name}' not found."))),
    }
}

/// Prints the usage of a command.
pub(super) fn help_for(command: &Command) -> Result<(), Failure> {
    let columns =
        command.columns().map_or_else(String::new, |columns| format!(" Columns: {}.", columns.join(", ")));
    let about = wrapped(&format!("{}.{columns}", command.about), 0);
    let text = format!(
        "\n{}\n\nleveretctl {}\n\n{about}\n\n{}\n\n{}\n\n{}",
        heading("Usage"),
        command.usage,
        heading("Example"),
        format!("leveretctl {} {}", command.name, command.example).trim_end(),
        general_options()
    );
    writeln!(io::stdout(), "{text}")?;
    Ok(())
}

/// Returns the text of `help`.
pub(super) fn overview() -> String {
    let mut text = format!(
        "\n{}\n\nleveretctl [--timeout <timeout>] [--quiet] <command> [<command options>]\n\n\
         Available commands:\n",
        heading("Usage")
    );
    for (section, names) in SECTIONS {
        text += &format!("\n{}:\n\n", heading(section));
        for name in names {
            let about = COMMANDS.iter().find(|command| command.name == *name).map_or("", |found| found.about);
            let name = format!("   {name}");
            // A long name has a line of its own.
            let gap = if name.len() < ABOUT_COLUMN { " " } else { "\n" };
            let indent = if gap == " " { ABOUT_COLUMN - name.len() - 1 } else { ABOUT_COLUMN };
            let about = wrapped(about, ABOUT_COLUMN);
            text += &format!("{name}{gap}{:indent$}{about}\n", "");
        }
    }
    text + "\nUse 'leveretctl help <command>' to learn more about a specific command"
}

/// Breaks a text into lines of at most [`HELP_COLUMNS`] columns. Lines after the first begin with `indent` spaces.
fn wrapped(text: &str, indent: usize) -> String {
    let mut lines = String::new();
    let mut column = indent;
    for word in text.split(' ') {
        if column > indent && column + 1 + word.chars().count() > HELP_COLUMNS {
            lines += &format!("\n{:indent$}", "");
            column = indent;
        } else if column > indent {
            lines.push(' ');
            column += 1;
        }
        lines += word;
        column += word.chars().count();
    }
    lines
}

/// The options of all commands: names, value, and description.
pub(super) const GENERAL_OPTIONS: &[(&str, &str, &str)] = &[
    ("-p, --vhost", "<vhost>", "virtual host to use, for commands that use one; default /"),
    ("-t, --timeout", "<n>", "time limit for an answer in seconds"),
    ("-q, --quiet", "", "suppress informational messages"),
    ("-s, --silent", "", "suppress informational messages and the table header row"),
    ("--formatter", "<name>", "table, json, csv or pretty_table, for commands that list"),
    ("--data-dir", "<folder>", "the broker's data directory, which has its control socket"),
    ("--config", "<file>", "the broker's configuration, which names its data directory"),
    ("--socket", "<file>", "the control socket; also set by LEVERET_SOCKET"),
    ("-n, --node", "<node>", "ignored; accepted for existing scripts"),
];

fn general_options() -> String {
    let mut text = format!("{}\n", heading("General Options"));
    for (names, value, about) in GENERAL_OPTIONS {
        let left = format!("{names} {value}");
        text += &format!("\n{left:<21} {}", wrapped(about, 22));
    }
    text
}

/// A parsed command line of `leveretctl`: a command, its arguments, and options in any place.
#[derive(Clone, Debug, Default)]
pub(super) struct Call {
    /// The command; empty if there is none.
    pub(super) command: String,
    /// The usage of the command, for errors about arguments; empty until the command is known.
    pub(super) usage: &'static str,
    /// The arguments of the command.
    pub(super) args: Vec<String>,
    /// All arguments as given, for error texts.
    pub(super) given: String,
    /// The virtual host, if given.
    pub(super) vhost: Option<String>,
    /// Time limit for a reply, if given.
    pub(super) timeout: Option<Duration>,
    /// Informational messages are suppressed.
    pub(super) quiet: bool,
    /// Informational messages and table headers are suppressed.
    pub(super) silent: bool,
    /// Table headers are suppressed.
    pub(super) no_headers: bool,
    /// The format of rows, if given.
    pub(super) formatter: Option<Formatter>,
    /// Options of single commands without a value, such as `if-empty`.
    pub(super) flags: Vec<String>,
    /// Options with a value.
    pub(super) values: Vec<(String, String)>,
    /// The command is a part of `report`, whose output is for people even if it is not a terminal.
    pub(super) in_report: bool,
    /// The control socket, if given.
    pub(super) socket: Option<PathBuf>,
    /// The broker's data directory, if given.
    pub(super) data_dir: Option<PathBuf>,
    /// The broker's configuration, if given.
    pub(super) config: Option<PathBuf>,
    /// Help was requested.
    pub(super) help: bool,
    /// The first invalid argument, if any.
    pub(super) bad: Option<String>,
}

/// Options that are accepted for scripts written for rabbitmqctl, and have no effect.
const IGNORED: [&str; 4] = ["longnames", "online", "offline", "local"];
/// Options without a value that commands use.
const FLAGS: [&str; 4] = ["if-empty", "if-unused", "global", "skip-if-unchanged"];
/// Options with a value that commands use.
const VALUES: [&str; 10] = [
    "file",
    "user",
    "format",
    "description",
    "tags",
    "per-connection-delay",
    "limit",
    "default-queue-type",
    "priority",
    "apply-to",
];

impl Call {
    /// Returns the virtual host, `/` by default.
    pub(super) fn vhost(&self) -> &str {
        self.vhost.as_deref().unwrap_or("/")
    }

    /// Returns the value of an option, if given.
    pub(super) fn value(&self, option: &str) -> Option<&str> {
        self.values.iter().rev().find(|(name, _)| name == option).map(|(_, value)| value.as_str())
    }

    /// Returns the value of a name in a template: `vhost`, `node`, `timeout` in seconds, or an argument's number.
    pub(super) fn template_value(&self, name: &str) -> Option<String> {
        match name {
            "vhost" => Some(self.vhost().to_string()),
            "node" => Some(NODE.to_string()),
            "timeout" => Some(self.timeout.unwrap_or(TIMEOUT).as_secs().to_string()),
            number => self.args.get(number.parse::<usize>().ok()?).cloned(),
        }
    }

    /// Returns whether an option without a value was given.
    pub(super) fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|given| given == flag)
    }

    /// Returns whether informational messages are printed.
    pub(super) fn talks(&self) -> bool {
        !self.quiet && !self.silent && !matches!(self.formatter, Some(Formatter::Json | Formatter::Csv))
    }

    /// Returns the format of rows.
    pub(super) fn formatter(&self) -> Formatter {
        self.formatter.unwrap_or_default()
    }
}

/// Parses the arguments. An invalid argument is kept, so that the command can report it with its usage.
pub(super) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Call {
    let given: Vec<OsString> = arguments.into_iter().collect();
    let shown: Vec<_> = given.iter().map(|word| word.to_string_lossy()).collect();
    let mut call = Call { given: shown.join(" "), ..Call::default() };
    let mut parser = lexopt::Parser::from_args(given);
    loop {
        let word = match parser.next() {
            Ok(None) => return call,
            Ok(Some(Arg::Value(word))) => {
                call.take_word(word);
                continue;
            }
            Ok(Some(Arg::Short(letter))) => letter.to_string(),
            Ok(Some(Arg::Long(name))) => name.to_string(),
            Err(error) => {
                call.bad.get_or_insert(error.to_string());
                return call;
            }
        };
        if let Err(why) = call.take_option(&word, &mut parser) {
            let dashes = if word.chars().count() == 1 { "-" } else { "--" };
            call.bad.get_or_insert(format!("{dashes}{word} : {why}"));
        }
    }
}

impl Call {
    fn take_word(&mut self, word: OsString) {
        match word.into_string() {
            Ok(word) if self.command.is_empty() => self.command = word,
            Ok(word) => self.args.push(word),
            Err(word) => drop(self.bad.get_or_insert(format!("{} is not UTF-8", word.display()))),
        }
    }

    /// Parses an option by its name without dashes.
    fn take_option(&mut self, name: &str, parser: &mut lexopt::Parser) -> Result<(), String> {
        let mut value = || {
            let value = parser.value().map_err(|_| String::new())?;
            value.into_string().map_err(|_| "not UTF-8".to_string())
        };
        match name {
            "n" | "node" | "erlang-cookie" => drop(value()?),
            "l" => {}
            "q" | "quiet" => self.quiet = true,
            "s" | "silent" => self.silent = true,
            "no-table-headers" => self.no_headers = true,
            "p" | "vhost" => self.vhost = Some(value()?),
            "t" | "timeout" => {
                let seconds: u64 = value()?.parse().map_err(|_| "a whole number of seconds".to_string())?;
                self.timeout = Some(Duration::from_secs(seconds.max(1)));
            }
            "formatter" => self.formatter = Some(value()?.parse()?),
            "socket" => self.socket = Some(value()?.into()),
            "data-dir" => self.data_dir = Some(value()?.into()),
            "config" => self.config = Some(value()?.into()),
            "e" => self.flags.push("if-empty".to_string()),
            "u" => self.flags.push("if-unused".to_string()),
            "?" | "h" | "help" => self.help = true,
            name if IGNORED.contains(&name) => {}
            name if FLAGS.contains(&name) => self.flags.push(name.to_string()),
            name if VALUES.contains(&name) => self.values.push((name.to_string(), value()?)),
            _ => return Err(String::new()),
        }
        Ok(())
    }
}

/// Commands of `rabbitmqctl` and of `leveret` that users try here, with what to do instead.
const ADVICE: &[(&[&str], &str)] = &[
    (&["serve", "check", "inspect", "restore"], "That is a command of the program: {}"),
    (&["bench"], "That is a program of its own: leveret-bench"),
    (
        &["federation_status"],
        "There is no federation: use a [[bridge]] in the configuration file, or a shovel (set_parameter); \
         bridge_status shows its state",
    ),
    (
        &["set_vm_memory_high_watermark"],
        "Set memory_limit in the configuration file, for the whole process, and restart the broker",
    ),
    (
        &["set_disk_free_limit"],
        "Set disk_limit under [store] in the configuration file, and restart the broker",
    ),
    (
        &["set_log_level"],
        "The log goes to standard error, and so to the journal. Set log_level in the configuration file, and \
         reload it (systemctl reload leveret)",
    ),
    (
        &["rotate_logs"],
        "The log goes to standard error, and so to the journal, which rotates its own files (journalctl --rotate)",
    ),
    (&["start_app"], "The broker is one process: systemctl start leveret starts it"),
    (
        &["stop_app", "shutdown"],
        "The broker is one process: stop ends it and keeps its data; systemctl start leveret starts it again",
    ),
    (
        &["reset", "force_reset"],
        "No command empties the broker. To empty it deliberately, move its data directory away. The\n\
         package has it in /var/lib/leveret, unless data_dir in the configuration file names another:\n\n    \
         leveretctl backup /root/leveret-before-reset.tar\n    \
         systemctl stop leveret\n    \
         mv /var/lib/leveret /var/lib/leveret.old\n    \
         systemctl start leveret\n\n\
         All messages are lost, also those that a bridge has not moved yet. Queues, exchanges, bindings,\n\
         virtual hosts, policies, shovels, MQTT sessions and retained messages are lost. Users, passwords\n\
         and permissions are lost: the first user of the configuration exists again, by default guest.\n\
         Bridges of the configuration file and load_definitions remain",
    ),
    (
        &[
            "join_cluster",
            "forget_cluster_node",
            "change_cluster_node_type",
            "rename_cluster_node",
            "await_online_nodes",
            "sync_queue",
            "cancel_sync_queue",
            "force_boot",
            "update_cluster_nodes",
            "check_if_node_is_mirror_sync_critical",
            "check_if_node_is_quorum_critical",
            "schema_info",
        ],
        "There is one node and no cluster: status shows its state, and a bridge forwards messages to other \
         brokers",
    ),
    (&["memory_breakdown"], "leveret check prints the memory of each pool, and status the resident memory"),
    (
        &["enable_plugin", "plugins"],
        "There are no plug-ins: all features are always available, and the configuration file has their settings",
    ),
    (
        &["suspend_listeners", "resume_listeners"],
        "Listeners cannot be suspended: change their addresses in the configuration file and restart the broker",
    ),
    (
        &["restart_vhost"],
        "A virtual host cannot be restarted alone: systemctl restart leveret restarts all of them",
    ),
    (&["list_unresponsive_queues"], "The broker is one process: ping checks that it answers"),
    (&["force_gc"], "There is no garbage collection: the memory of deleted messages is free at once"),
    (
        &["check_certificate_expiration"],
        "The management API has this check: GET /api/health/checks/certificate-expiration/1/months",
    ),
    (
        &["encode", "decode"],
        "The configuration has no encrypted values: password_file of a bridge names a file with its password",
    ),
    (
        &["list_ciphers", "list_hashes"],
        "The pages of the guide on TLS and on users describe what Leveret supports",
    ),
    (&["list_node_auth_attempt_stats"], "Leveret does not count these; list_users lists the users"),
    (&["set_vhost_tags"], "Use update_vhost_metadata with the virtual host and --tags"),
    (&["wait"], "There is no PID file: use await_startup"),
    (
        &["autocomplete"],
        "The packages contain completions for bash, zsh and fish; leveret completions prints them",
    ),
    (
        &["exec", "eval_file", "remote_shell", "hipe_compile"],
        "There is no Erlang: report shows the state of the broker, and log_level = \"debug\" in the configuration \
         file logs more",
    ),
];

/// Words of a command's name that ask for a list or a state.
const LISTING_WORDS: [&str; 7] = ["list", "show", "get", "status", "state", "info", "all"];

/// Returns the command that lists bridges or shovels, for a name such as `list_bridges` or `shovels`. The number of
/// changed characters is no help: `list_bridges` is closer to `list_bindings` than to `bridge_status`.
pub(super) fn listing_of(name: &str) -> Option<&'static str> {
    let mut found = None;
    for word in name.split(['_', '-']) {
        let command = match word {
            "bridge" | "bridges" => "bridge_status",
            "shovel" | "shovels" => "shovel_status",
            _ if LISTING_WORDS.contains(&word) => continue,
            _ => return None,
        };
        if found.replace(command).is_some() {
            return None;
        }
    }
    found
}

/// Returns what to do instead of a command.
pub(super) fn find(name: &str) -> Option<&'static str> {
    ADVICE.iter().find(|(names, _)| names.contains(&name)).map(|(_, words)| *words)
}

/// Returns what to do instead of an unknown command, or how to find it.
pub(super) fn advice(name: &str) -> String {
    match find(name) {
        Some(words) => words.replace("{}", &format!("leveret {name}")),
        None => "'leveretctl help' lists the commands".to_string(),
    }
}

/// The data directory and the configuration of the packaged broker.
const PACKAGED_DATA_DIR: &str = "/var/lib/leveret";
const PACKAGED_CONFIG: &str = "/etc/leveret/leveret.toml";
/// The name of the node, where rabbitmqctl shows one.
pub(super) const NODE: &str = "leveret";
/// Default time limit for a reply.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Connects to the control socket that an option or `LEVERET_SOCKET` names, options first; without any, to the first
/// default socket that exists.
///
/// A relative default data directory is used only if it belongs to the caller. Otherwise another user could provide a
/// socket that receives passwords.
pub(super) fn connect(call: &Call) -> Result<Client, Failure> {
    let candidates = candidates(call, env::var_os("LEVERET_SOCKET"))?;
    let socket = candidates.iter().find(|socket| fs::symlink_metadata(socket).is_ok()).or(candidates.first());
    let Some(socket) = socket else {
        return Err(no_broker(&candidates, &io::ErrorKind::NotFound.into()));
    };
    let timeout = call.timeout.unwrap_or(TIMEOUT);
    Client::connect(socket, Some(timeout)).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => Failure::new(
            NOT_PERMITTED,
            format!(
                "Error: {} is for root and for the user the broker runs as; try sudo leveretctl",
                socket.display()
            ),
        ),
        _ => no_broker(&candidates, &error),
    })
}

/// Sends one request to the broker: method, path segments, and body.
pub(super) fn ask(call: &Call, verb: &str, path: &[&str], body: &str) -> Result<Reply, Failure> {
    let path: String = path.iter().map(|word| format!("/{}", encode(word))).collect();
    connect(call)?.ask(verb, &format!("/api{path}"), "", body)
}

/// Returns possible control sockets, the most likely first. Options take precedence over the socket that the
/// environment names.
fn candidates(call: &Call, of_environment: Option<OsString>) -> Result<Vec<PathBuf>, Failure> {
    if let Some(socket) = &call.socket {
        return Ok(vec![socket.clone()]);
    }
    let has_option = call.data_dir.is_some() || call.config.is_some();
    if let Some(socket) = of_environment.filter(|socket| !socket.is_empty() && !has_option) {
        return Ok(vec![socket.into()]);
    }
    data_dirs(call).map(|found| found.into_iter().map(|folder| folder.join(SOCKET_NAME)).collect())
}

/// Returns possible data directories, the most likely first.
pub(super) fn data_dirs(call: &Call) -> Result<Vec<PathBuf>, Failure> {
    if let Some(folder) = &call.data_dir {
        return Ok(vec![folder.clone()]);
    }
    let gather = |file: Option<&Path>| Config::gather(file, Layer::default());
    if let Some(file) = &call.config {
        let config = gather(Some(file)).map_err(|error| Failure::new(USAGE, format!("Error: {error}")))?;
        return Ok(vec![config.data_dir]);
    }
    let mut found = Vec::new();
    // Without a configuration file, there are no errors.
    if let Ok(config) = gather(None)
        && (config.data_dir.is_absolute() || is_own(&config.data_dir))
    {
        found.push(config.data_dir);
    }
    if let Ok(config) = gather(Some(Path::new(PACKAGED_CONFIG)))
        && config.data_dir.is_absolute()
    {
        found.push(config.data_dir);
    }
    found.push(PACKAGED_DATA_DIR.into());
    found.dedup();
    Ok(found)
}

/// Returns the flight recorder's file, if a configuration names it.
pub(super) fn flight_recorder(call: &Call) -> Option<PathBuf> {
    let file = call.config.as_deref().unwrap_or(Path::new(PACKAGED_CONFIG));
    Config::gather(Some(file), Layer::default()).ok()?.flight_recorder
}

/// Returns whether a folder belongs to the caller.
fn is_own(folder: &Path) -> bool {
    fs::symlink_metadata(folder).is_ok_and(|found| found.uid() == rustix::process::geteuid().as_raw())
}

fn no_broker(candidates: &[PathBuf], error: &io::Error) -> Failure {
    let tried: Vec<String> = candidates.iter().map(|socket| socket.display().to_string()).collect();
    Failure::new(
        UNAVAILABLE,
        format!(
            "Error: no broker answers at {} ({error}).\n\n\
             Is it running? Try: systemctl status leveret\n\
             Does it keep its data elsewhere? Name the folder with --data-dir, or the socket with --socket \
             or LEVERET_SOCKET",
            tried.join(" nor at ")
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::super::template::filled;
    use super::*;

    impl Command {
        /// Returns the templates of the command that are filled before the broker replies.
        fn templates(&self) -> Vec<&'static str> {
            match &self.action {
                Run(_) => Vec::new(),
                Action::List(list) => vec![list.path, list.banner],
                Action::Change(change) => vec![change.path, change.banner],
            }
        }
    }

    #[test]
    fn every_command_is_in_the_help_once() {
        let shown: Vec<&str> = SECTIONS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        for command in COMMANDS {
            assert_eq!(shown.iter().filter(|name| **name == command.name).count(), 1, "{}", command.name);
            assert!(command.usage.starts_with(command.name));
        }
        assert_eq!(shown.len(), COMMANDS.len());
    }

    #[test]
    fn every_command_accepts_its_example() {
        for command in COMMANDS {
            // The shell removes quotes, and redirections with what follows.
            let words = command.example;
            let words = words.split(['<', '>']).next().filter(|_| !words.contains("\"<")).unwrap_or(words);
            let mut call = vec![OsString::from(command.name)];
            let mut quote = None;
            let mut word = String::new();
            for letter in words.chars().chain([' ']) {
                match quote {
                    Some(end) if letter == end => quote = None,
                    None if letter == '\'' || letter == '"' => quote = Some(letter),
                    None if letter == ' ' && word.is_empty() => {}
                    None if letter == ' ' => call.push(core::mem::take(&mut word).into()),
                    _ => word.push(letter),
                }
            }
            let call = parse(call);
            let (least, most) = command.args;
            assert!((least..=most).contains(&call.args.len()), "{}: {:?}", command.name, call.args);
            assert_eq!((call.bad, quote), (None, None), "{}", command.name);
        }
    }

    #[test]
    fn names_in_templates_have_values() {
        for command in COMMANDS {
            let (least, most) = command.args;
            for template in command.templates() {
                // Parts in brackets may use optional arguments.
                for (at, part) in template.split(['[', ']']).enumerate() {
                    let count = if at % 2 == 0 { least } else { most.min(9) };
                    let call = Call { args: vec!["x".to_string(); count], ..Call::default() };
                    filled(part, |name| {
                        assert!(
                            call.template_value(name).is_some(),
                            "{}: {name} in {template}",
                            command.name
                        );
                        call.template_value(name)
                    });
                }
            }
        }
    }

    #[test]
    fn the_help_has_at_most_eighty_columns() {
        for line in overview().lines() {
            assert!(line.chars().count() <= HELP_COLUMNS, "{line}");
        }
        assert_eq!(wrapped("aa bb", 77), format!("aa\n{:77}bb", ""));
    }
}

#[cfg(test)]
mod args_tests {
    use super::*;

    fn parsed(line: &str) -> Call {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn options_stand_anywhere() {
        let call = parsed("-q set_permissions -p v1 bob .* --timeout 5 .* -n rabbit@host .*");
        assert_eq!((call.command.as_str(), call.vhost()), ("set_permissions", "v1"));
        assert_eq!(call.args, ["bob", ".*", ".*", ".*"]);
        assert_eq!((call.timeout, call.quiet, call.bad), (Some(Duration::from_secs(5)), true, None));
        assert_eq!(parsed("add_user bob -- -x").args, ["bob", "-x"]);
        assert!(parsed("delete_queue -e --if-unused q").has("if-empty"));
    }

    #[test]
    fn what_makes_no_sense_is_kept() {
        assert_eq!(parsed("list_queues --bogus").bad.as_deref(), Some("--bogus : "));
        assert_eq!(parsed("list_queues -p").bad.as_deref(), Some("-p : "));
        assert!(parsed("list_queues --formatter nosuch").bad.unwrap().contains("table, json"));
        assert!(parsed("--dry-run delete_queue q").bad.is_some(), "rabbitmqctl would not delete it");
    }

    #[test]
    fn options_take_precedence_over_the_socket_of_the_environment() {
        let sockets = |call: &str| candidates(&parsed(call), Some("/env.sock".into())).ok().unwrap();
        assert_eq!(sockets("status"), [Path::new("/env.sock")]);
        assert_eq!(sockets("status --socket /a.sock"), [Path::new("/a.sock")]);
        assert_eq!(sockets("status --data-dir /data"), [Path::new("/data/ctl.sock")]);
    }

    #[test]
    fn machines_are_told_nothing_but_rows() {
        assert!(parsed("list_queues").talks());
        assert!(parsed("list_queues --formatter pretty_table").talks());
        assert!(!parsed("list_queues --formatter json").talks());
        assert!(!parsed("-s list_queues").talks());
    }
}

#[cfg(test)]
mod elsewhere_tests {
    use super::*;

    #[test]
    fn nothing_here_is_a_command() {
        for name in ADVICE.iter().flat_map(|(names, _)| *names) {
            assert!(super::super::COMMANDS.iter().all(|command| command.name != *name), "{name}");
        }
    }

    #[test]
    fn the_way_is_told() {
        assert!(advice("restore").ends_with("leveret restore"));
        assert!(advice("set_vm_memory_high_watermark").contains("memory_limit"));
        assert!(advice("frobnicate").contains("leveretctl help"));
    }

    #[test]
    fn names_for_lists_of_links_lead_to_their_status() {
        for name in ["list_bridges", "bridges", "bridge", "list_bridge", "show-bridges", "bridge_list"] {
            assert_eq!(listing_of(name), Some("bridge_status"), "{name}");
        }
        for name in ["list_shovels", "shovels", "shovel", "list_shovel_status", "shovels_status"] {
            assert_eq!(listing_of(name), Some("shovel_status"), "{name}");
        }
        for name in ["list_queues", "list", "pause_bridges", "delete_bridge", "bridges_shovels", ""] {
            assert_eq!(listing_of(name), None, "{name}");
        }
    }

    #[test]
    fn no_advice_for_a_reset_leads_to_a_stop_alone() {
        for name in ["reset", "force_reset"] {
            let words = advice(name);
            assert!(words.contains("mv /var/lib/leveret /var/lib/leveret.old"), "{words}");
            assert!(words.contains("backup") && words.contains("lost"), "{words}");
            assert!(!words.contains("use stop"), "{words}");
        }
        assert!(advice("start_app").contains("systemctl start") && !advice("start_app").contains("use stop"));
    }
}
