//! The table of all requests: the path of each, who may send it, and the function that answers it.
//!
//! Paths, fields and texts are those of RabbitMQ's management API where it has them. Requests that only the command
//! line needs are below `/api/ctl`. A row has the verb, the path, what it demands of the client, and the function that
//! answers.
//!
//! | way in | who may send the request |
//! |--------|--------------------------|
//! | `socket` | the operator, over the control socket |
//! | `network` | a user of the management API who meets the row's demand |
//! | `both` | either of them; the same function answers |
//! | `metrics` | a user over the network who meets the row's demand, and any client where metrics need no login |
//!
//! | tag | access |
//! |-----|--------|
//! | `management` | objects of the virtual hosts in which the user has permissions, and the user's own connections |
//! | `policymaker` | also sees and changes policies and parameters there |
//! | `monitoring` | like `management`; also the node, all connections, channels and consumers, names of virtual hosts |
//! | `administrator` | everything; changes users, virtual hosts and permissions |
//!
//! A row demands at least what RabbitMQ demands. `tests/compatibility/management` has RabbitMQ's answers, and
//! `tests/simulation/in_memory/management_rights` requests every path with every tag.
//! [`Audience`](super::listing::Audience) decides which rows a list shows: a list without a demand has the rows that
//! its user may see.
//!
//! # Invariants
//! - A request without a row is not found. The first row that matches answers.
//! - A change in a virtual host over the network needs the same permissions as the same change over AMQP.

use std::borrow::Cow;

use super::access;
use super::actions::ActingUser;
use super::alarms;
use super::bridges::BridgeLinks;
use super::columns::{Channels, Connections, Consumers, Exchanges, Queues, Vhosts};
use super::control;
use super::definition_columns::Orphans;
use super::definition_columns::{GlobalParameters, Parameters};
use super::definition_columns::{OperatorPolicies, Policies};
use super::definition_columns::{Permissions, TopicPermissions, Users};
use super::http::{Request, Status, Verb, has_tag};
use super::import;
use super::listing::{self, list, one};
use super::management;
use super::metrics;
use super::moving;
use super::mqtt::{self, MqttSessions, RetainedMessages};
use super::parameters;
use super::policies;
use super::request::RequestContext;
use super::request::{Answer, Answered, not_found, problem, request_too_large, unauthorized};
use super::request::{Call, Demand, NAMES_MAX, User};
use super::status;
use super::web_page;

use Handler::{Act, Change, Closed, Receive, Show};

/// The way by which a request arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Interface {
    /// The control socket.
    Socket,
    /// The management API's address.
    Network,
    /// The address where metrics need no login.
    Metrics,
}

/// The function that answers a request.
#[derive(Clone, Copy)]
enum Handler {
    /// Changes nothing. It can be called to find out whether the path names an existing object.
    Show(fn(&Call<'_>, &RequestContext<'_>) -> Answer),
    /// Changes something, or begins to.
    Change(fn(&Call<'_>, &mut RequestContext<'_>) -> Answered),
    /// Changes something with a body that may be longer than a request buffer.
    Receive(fn(&Call<'_>, &mut RequestContext<'_>) -> Answered),
    /// Acts in a virtual host for a user, as over AMQP.
    Act(fn(&mut ActingUser<'_, '_>) -> Answered),
    /// There is no such request. Only users who meet the row's demand learn that.
    Closed,
}

/// One request.
struct RequestRow {
    interfaces: &'static [Interface],
    /// `None`: every verb that no row above has.
    verb: Option<Verb>,
    /// The path: a word in braces stands for a name, `**` at the end for any number of segments.
    path: &'static str,
    /// The demand over the network.
    demand: Demand,
    handler: Handler,
}

/// Makes a row of each line: the way in, the verb (`any`: every verb that no row above has), the path, the demand
/// over the network, and the function that answers.
macro_rules! requests {
    ($($way:ident $verb:ident $path:literal $demand:ident $handler:expr;)*) => {
        const REQUESTS: &[RequestRow] = &[$(RequestRow {
            interfaces: way!($way), verb: verb!($verb), path: $path, demand: Demand::$demand, handler: $handler,
        }),*];
    };
}

macro_rules! way {
    (socket) => {
        &[Interface::Socket]
    };
    (network) => {
        &[Interface::Network]
    };
    (both) => {
        &[Interface::Socket, Interface::Network]
    };
    (metrics) => {
        &[Interface::Network, Interface::Metrics]
    };
}

macro_rules! verb {
    (any) => {
        None
    };
    ($verb:ident) => {
        Some(Verb::$verb)
    };
}

requests! {
    // The web page, and metrics.
    network Get "" NoLogin Show(show_page);
    metrics Get "metrics" Monitor Show(metrics::answer);
    metrics Get "metrics/per-object" Monitor Show(metrics::answer);
    metrics Get "metrics/detailed" Monitor Show(metrics::answer);
    network any "metrics/**" Monitor Closed;
    network Post "api/leveret/login" AnyTag Change(access::log_in);
    network Delete "api/leveret/login" AnyTag Change(access::log_out);
    // The node.
    network Get "api/whoami" AnyTag Show(management::whoami);
    socket Get "api/overview" Operator Show(control::overview);
    network Get "api/overview" AnyTag Show(management::overview);
    network Get "api/extensions" AnyTag Show(management::extensions);
    network Get "api/cluster-name" AnyTag Show(management::cluster_name);
    both Put "api/cluster-name" Administrator Change(parameters::put_cluster_name);
    network Get "api/auth" NoLogin Show(management::auth);
    network Get "api/nodes" Monitor Show(management::nodes);
    network Get "api/nodes/{node}" Monitor Show(management::node);
    network Get "api/nodes/{node}/memory" Monitor Show(management::node_memory);
    network Get "api/auth/attempts/{node}/**" Monitor Show(management::attempts);
    network Delete "api/auth/attempts/{node}/**" Monitor Change(management::reset_attempts);
    network Get "api/feature-flags" Administrator Show(management::feature_flags);
    network Get "api/deprecated-features" Administrator Show(|_, _| management::no_objects());
    network Get "api/deprecated-features/used" Administrator Show(|_, _| management::no_objects());
    network Put "api/feature-flags/{flag}/enable" Administrator Change(management::enable_feature_flag);
    network Post "api/rebalance/queues" Administrator Change(management::rebalance);
    network Get "api/leveret/memory" Monitor Show(management::memory);
    network Get "api/leveret/pools" Monitor Show(status::pools);
    network Get "api/leveret/log" Administrator Show(status::log);
    network Get "api/leveret/status" AnyTag Show(status::status);
    socket Get "api/ctl/environment" Operator Show(control::environment);
    socket Post "api/ctl/stop" Operator Change(control::stop);
    socket Post "api/ctl/backup" Operator Change(control::begin_backup);
    socket Get "api/ctl/backup" Operator Show(control::backup);
    socket Delete "api/ctl/backup" Operator Change(control::end_backup);
    // Health.
    socket Get "api/ctl/alarms" Operator Show(alarms::show);
    network Get "api/leveret/alarms" AnyTag Show(alarms::show);
    network Get "api/health/checks/alarms" AnyTag Show(alarms::alarms);
    network Get "api/health/checks/local-alarms" AnyTag Show(alarms::alarms);
    network Get "api/health/checks/virtual-hosts" AnyTag Show(|_, _| alarms::status_ok());
    network Get "api/health/checks/ready-to-serve-clients" AnyTag Show(|_, _| alarms::status_ok());
    network Get "api/health/checks/node-is-quorum-critical" AnyTag Show(alarms::single_node_check);
    network Get "api/health/checks/node-is-mirror-sync-critical" AnyTag Show(alarms::single_node_check);
    network Get "api/health/checks/certificate-expiration/{within}/{unit}" AnyTag Show(alarms::certificates);
    network Get "api/health/checks/port-listener/{port}" AnyTag Show(alarms::port);
    network Get "api/health/checks/protocol-listener/{protocol}" AnyTag Show(alarms::protocol);
    network Get "api/healthchecks/node" AnyTag Show(alarms::node);
    network Get "api/healthchecks/node/{node}" AnyTag Show(management::node_health);
    network Get "api/aliveness-test/{vhost}" Permissions Show(alarms::aliveness);
    // Definitions.
    both Get "api/definitions" Administrator Show(|_, _| listing::export());
    network Get "api/definitions/{vhost}" Administrator Show(listing::export_of);
    network Post "api/definitions" Administrator Receive(import::all);
    network Post "api/definitions/{vhost}" Administrator Receive(import::all);
    socket Post "api/ctl/import" Operator Change(import::lines);
    // Users, virtual hosts, and permissions.
    both Get "api/users" Administrator Show(list::<Users>);
    network Get "api/users/without-permissions" Administrator Show(listing::users_without_permissions);
    network Get "api/users/{user}" Administrator Show(one::<Users>);
    both Put "api/users/{user}" Administrator Change(access::put_user);
    both Delete "api/users/{user}" Administrator Change(access::delete_user);
    both Post "api/users/bulk-delete" Administrator Change(access::delete_users);
    both Get "api/users/{user}/permissions" Administrator Show(list::<Permissions>);
    both Get "api/users/{user}/topic-permissions" Administrator Show(list::<TopicPermissions>);
    both Get "api/vhosts" AnyTag Show(list::<Vhosts>);
    network Get "api/vhosts/{vhost}" Administrator Show(one::<Vhosts>);
    network Put "api/vhosts/{vhost}" Administrator Change(access::put_vhost);
    socket Put "api/vhosts/{vhost}" Operator Change(access::update_vhost);
    both Delete "api/vhosts/{vhost}" Administrator Change(access::delete_vhost);
    both Post "api/vhosts/{vhost}/deletion/protection" Administrator Change(access::protect_vhost);
    both Delete "api/vhosts/{vhost}/deletion/protection" Administrator Change(access::protect_vhost);
    both Get "api/vhosts/{vhost}/permissions" Administrator Show(list::<Permissions>);
    both Get "api/vhosts/{vhost}/topic-permissions" Administrator Show(list::<TopicPermissions>);
    network Get "api/vhosts/{vhost}/connections" Member Show(list::<Connections>);
    network Get "api/vhosts/{vhost}/channels" Member Show(list::<Channels>);
    network Get "api/permissions" Administrator Show(list::<Permissions>);
    network Get "api/permissions/{vhost}/{user}" Administrator Show(one::<Permissions>);
    both Put "api/permissions/{vhost}/{user}" Administrator Change(access::put_permissions);
    both Delete "api/permissions/{vhost}/{user}" Administrator Change(access::clear_permissions);
    network Get "api/topic-permissions" Administrator Show(list::<TopicPermissions>);
    network Get "api/topic-permissions/{vhost}/{user}" Administrator Show(access::topic_permissions);
    both Put "api/topic-permissions/{vhost}/{user}" Administrator Change(access::put_topic_permissions);
    both Delete "api/topic-permissions/{vhost}/{user}" Administrator Change(access::clear_topic_permissions);
    both Delete "api/topic-permissions/{vhost}/{user}/{exchange}" Administrator Change(access::clear_topic_permissions);
    network Get "api/vhost-limits" AnyTag Show(management::vhost_limits);
    network Get "api/vhost-limits/{vhost}" Watcher Show(management::vhost_limits);
    both Put "api/vhost-limits/{vhost}" Administrator Change(access::put_vhost_limits);
    both Delete "api/vhost-limits/{vhost}" Administrator Change(access::clear_vhost_limits);
    both Put "api/vhost-limits/{vhost}/{limit}" Administrator Change(access::change_vhost_limit);
    both Delete "api/vhost-limits/{vhost}/{limit}" Administrator Change(access::change_vhost_limit);
    network Get "api/user-limits" Monitor Show(management::user_limits);
    network Get "api/user-limits/{user}" Monitor Show(management::user_limits);
    both Put "api/user-limits/{user}" Administrator Change(access::put_user_limits);
    both Put "api/user-limits/{user}/{limit}" Administrator Change(access::put_user_limits);
    both Delete "api/user-limits/{user}/{limit}" Administrator Change(access::clear_user_limit);
    socket Post "api/ctl/confirm-users" Operator Change(access::confirm);
    socket Post "api/ctl/acknowledge-damage" Operator Change(control::acknowledge_damage);
    network any "api/users/**" Administrator Closed;
    network any "api/vhosts/{vhost}/**" Administrator Closed;
    network any "api/permissions/**" Administrator Closed;
    network any "api/topic-permissions/**" Administrator Closed;
    network any "api/definitions/**" Administrator Closed;
    network any "api/feature-flags/**" Administrator Closed;
    network any "api/nodes/**" Monitor Closed;
    network any "api/auth/attempts/**" Monitor Closed;
    // Policies and parameters.
    network Get "api/policies" AnyTag Show(list::<Policies>);
    both Get "api/policies/{vhost}" Member Show(list::<Policies>);
    network Get "api/policies/{vhost}/{policy}" PolicymakerInVhost Show(one::<Policies>);
    both Put "api/policies/{vhost}/{policy}" PolicymakerInVhost Change(policies::put);
    both Delete "api/policies/{vhost}/{policy}" PolicymakerInVhost Change(policies::clear);
    network Get "api/operator-policies" AnyTag Show(list::<OperatorPolicies>);
    both Get "api/operator-policies/{vhost}" Member Show(list::<OperatorPolicies>);
    network Get "api/operator-policies/{vhost}/{policy}" Administrator Show(one::<OperatorPolicies>);
    both Put "api/operator-policies/{vhost}/{policy}" Administrator Change(policies::put);
    both Delete "api/operator-policies/{vhost}/{policy}" Administrator Change(policies::clear);
    socket Get "api/parameters/{vhost}" Operator Show(list::<Parameters>);
    network Get "api/parameters" Policymaker Show(list::<Parameters>);
    network Get "api/parameters/{component}" Policymaker Show(list::<Parameters>);
    network Get "api/parameters/{component}/{vhost}" PolicymakerInVhost Show(list::<Parameters>);
    network Get "api/parameters/{component}/{vhost}/{name}" PolicymakerInVhost Show(one::<Parameters>);
    both Put "api/parameters/{component}/{vhost}/{name}" PolicymakerInVhost Change(parameters::put);
    both Delete "api/parameters/{component}/{vhost}/{name}" PolicymakerInVhost Change(parameters::clear);
    both Get "api/global-parameters" Policymaker Show(list::<GlobalParameters>);
    network Get "api/global-parameters/{name}" Policymaker Show(one::<GlobalParameters>);
    both Put "api/global-parameters/{name}" Policymaker Change(parameters::put);
    both Delete "api/global-parameters/{name}" Policymaker Change(parameters::clear);
    // Bridges, including shovels.
    socket Get "api/ctl/bridges" Operator Show(list::<BridgeLinks>);
    network Get "api/leveret/bridges" Monitor Show(list::<BridgeLinks>);
    socket Post "api/ctl/bridges/{bridge}/{order}" Operator Change(parameters::order_bridge);
    network Post "api/leveret/bridges/{bridge}/{order}" Administrator Change(parameters::order_bridge);
    both Get "api/shovels" Monitor Show(listing::shovels);
    network Get "api/shovels/{vhost}" Monitor Show(listing::shovels);
    network Get "api/shovels/vhost/{vhost}/{name}" Monitor Show(listing::shovel);
    both Delete "api/shovels/vhost/{vhost}/{name}" Administrator Change(parameters::delete_shovel);
    both Delete "api/shovels/vhost/{vhost}/{name}/restart" Administrator Change(parameters::restart_shovel);
    // Connections, channels and consumers.
    both Get "api/connections" AnyTag Show(list::<Connections>);
    network Get "api/connections/username/{user}" AnyTag Show(list::<Connections>);
    network Delete "api/connections/username/{user}" AnyTag Change(management::close_of_user);
    network Get "api/connections/{name}" AnyTag Show(one::<Connections>);
    network Delete "api/connections/{name}" AnyTag Change(management::close);
    socket Delete "api/connections" Operator Change(control::close_all);
    socket Delete "api/connections/vhost/{vhost}" Operator Change(control::close_all);
    socket Delete "api/connections/username/{user}" Operator Change(control::close_all);
    socket Delete "api/connections/{pid}" Operator Change(control::close);
    both Get "api/channels" AnyTag Show(list::<Channels>);
    network Get "api/channels/{name}" AnyTag Show(one::<Channels>);
    both Get "api/consumers" AnyTag Show(list::<Consumers>);
    both Get "api/consumers/{vhost}" AnyTag Show(list::<Consumers>);
    // Queues, exchanges, bindings, messages. The operator at the socket is not a user of the broker, so its requests
    // act for no user. Requests of a user act as over AMQP.
    both Get "api/queues" AnyTag Show(list::<Queues>);
    both Get "api/queues/{vhost}" Member Show(list::<Queues>);
    network Get "api/queues/{vhost}/{queue}" Member Show(one::<Queues>);
    network Put "api/queues/{vhost}/{queue}" Member Act(|acting| acting.put_queue());
    socket Delete "api/queues/{vhost}/{queue}" Operator Change(control::delete_queue);
    network Delete "api/queues/{vhost}/{queue}" Member Act(|acting| acting.delete_queue());
    socket Delete "api/queues/{vhost}/{queue}/contents" Operator Change(control::purge_queue);
    network Delete "api/queues/{vhost}/{queue}/contents" Member Act(|acting| acting.purge());
    network Post "api/queues/{vhost}/{queue}/actions" Administrator Act(|acting| acting.mirror());
    network Post "api/queues/{vhost}/{queue}/get" Member Act(|acting| acting.get());
    network Get "api/queues/{vhost}/{queue}/bindings" Member Show(listing::bindings);
    network Get "api/leveret/queues/{vhost}/{queue}/messages" Permissions Change(management::messages);
    network Post "api/leveret/queues/{vhost}/{queue}/messages/move" Permissions Change(moving::move_messages);
    network Post "api/leveret/exchanges/{vhost}/{exchange}/route" Member Change(moving::route);
    both Get "api/exchanges" AnyTag Show(list::<Exchanges>);
    both Get "api/exchanges/{vhost}" Member Show(list::<Exchanges>);
    network Get "api/exchanges/{vhost}/{exchange}" Member Show(one::<Exchanges>);
    network Put "api/exchanges/{vhost}/{exchange}" Member Act(|acting| acting.put_exchange());
    network Delete "api/exchanges/{vhost}/{exchange}" Member Act(|acting| acting.delete_exchange());
    network Post "api/exchanges/{vhost}/{exchange}/publish" Member
        Receive(|call, context| ActingUser::of(call, context)?.publish());
    network Get "api/exchanges/{vhost}/{source}/bindings/source" Member Show(listing::bindings);
    network Get "api/exchanges/{vhost}/{exchange}/bindings/destination" Member Show(listing::bindings);
    both Get "api/bindings" AnyTag Show(listing::bindings);
    both Get "api/bindings/{vhost}" Member Show(listing::bindings);
    network Get "api/bindings/{vhost}/e/{source}/q/{queue}" Member Show(listing::bindings);
    network Get "api/bindings/{vhost}/e/{source}/e/{exchange}" Member Show(listing::bindings);
    network Get "api/bindings/{vhost}/e/{source}/q/{queue}/{key}" Member Show(listing::binding);
    network Get "api/bindings/{vhost}/e/{source}/e/{exchange}/{key}" Member Show(listing::binding);
    network Post "api/bindings/{vhost}/e/{source}/q/{queue}" Member Act(|acting| acting.bind());
    network Post "api/bindings/{vhost}/e/{source}/e/{exchange}" Member Act(|acting| acting.bind());
    network Delete "api/bindings/{vhost}/e/{source}/q/{queue}/{key}" Member Act(|acting| acting.unbind());
    network Delete "api/bindings/{vhost}/e/{source}/e/{exchange}/{key}" Member Act(|acting| acting.unbind());
    // MQTT. Payloads are shown to administrators only: others need permissions for a topic to read its messages.
    both Get "api/leveret/mqtt-sessions" Monitor Show(list::<MqttSessions>);
    both Get "api/leveret/mqtt-sessions/{vhost}" Monitor Show(list::<MqttSessions>);
    network Get "api/leveret/mqtt-sessions/{vhost}/{client_id}" Monitor Show(one::<MqttSessions>);
    both Delete "api/leveret/mqtt-sessions/{vhost}/{client_id}" Administrator Change(mqtt::delete_session);
    both Get "api/leveret/retained" AnyTag Show(list::<RetainedMessages>);
    both Get "api/leveret/retained/{vhost}" Member Show(list::<RetainedMessages>);
    both Get "api/leveret/retained/{vhost}/{topic}" Administrator Show(mqtt::retained_message);
    both Delete "api/leveret/retained/{vhost}/{topic}" Administrator Change(mqtt::delete_retained);
    // Messages whose queue is lost.
    socket Get "api/ctl/orphans" Operator Show(list::<Orphans>);
    socket Put "api/ctl/orphans/{incarnation}/{vhost}/{queue}" Operator Change(control::adopt_orphan);
    socket Delete "api/ctl/orphans/{incarnation}" Operator Change(control::delete_orphan);
    socket Put "api/ctl/trace/{vhost}" Operator Change(access::put_trace);
    socket Delete "api/ctl/trace/{vhost}" Operator Change(access::put_trace);
    network Get "{file}" NoLogin Show(show_page);
}

/// Finds the row of a request.
fn find<'c>(
    request: &'c Request<'c>,
    user: Option<&'c User>,
    interface: Interface,
    verb: Verb,
) -> Option<(&'static RequestRow, Call<'c>)> {
    let path = match request.segments.as_slice() {
        path if interface == Interface::Socket => path,
        // A trailing slash is ignored.
        [path @ .., last] if last.is_empty() && path.first().is_some_and(|first| first == "api") => path,
        path => path,
    };
    let rows = REQUESTS.iter().filter(|row| row.interfaces.contains(&interface));
    let mut fitting = rows.filter(|row| row.verb.is_none_or(|own| own == verb));
    fitting.find_map(|row| Some((row, Call { request, user, names: names(row.path, path)? })))
}

/// Returns the words in braces of a pattern with the path segments in their places. Returns `None` if the path does
/// not match.
fn names<'c>(
    pattern: &'static str,
    path: &'c [Cow<'c, str>],
) -> Option<heapless::Vec<(&'static str, &'c str), NAMES_MAX>> {
    let mut names = heapless::Vec::new();
    let mut path = path.iter();
    for part in pattern.split('/') {
        if part == "**" {
            return Some(names);
        }
        let segment = path.next()?;
        match part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
            Some(word) => names.push((word, &**segment)).ok()?,
            None if part == segment => {}
            None => return None,
        }
    }
    path.next().is_none().then_some(names)
}

/// Answers a request of a known client: a user over the network, the operator at the control socket, or any client
/// where metrics need no login.
pub(super) fn answer(
    request: &Request<'_>,
    context: &mut RequestContext<'_>,
    interface: Interface,
    user: Option<&User>,
) -> Answer {
    // Without a user everything is allowed, so a request over the network must not get here without one.
    if interface == Interface::Network && user.is_none() {
        return unauthorized("Login failed");
    }
    let Some((row, call)) = find(request, user, interface, request.verb) else {
        return not_taken(request, context, interface, user);
    };
    let answered = call.allow(context, row.demand).and_then(|()| match row.handler {
        Receive(receive) => receive(&call, context),
        Closed => Err(not_taken(request, context, interface, user)),
        _ if !request.is_whole() => Err(request_too_large()),
        Show(show) => Ok(show(&call, context)),
        Change(change) => change(&call, context),
        Act(act) => ActingUser::of(&call, context).and_then(|mut acting| act(&mut acting)),
    });
    answered.unwrap_or_else(|refused| refused)
}

/// Answers a request over the network that needs no login. Returns `None` if there is no such request.
pub(super) fn answer_to_anybody(request: &Request<'_>, context: &RequestContext<'_>) -> Option<Answer> {
    if request.verb == Verb::Options {
        return Some(Answer::Verbs(Status::Ok, verbs(request)));
    }
    match find(request, None, Interface::Network, request.verb) {
        Some((RequestRow { demand: Demand::NoLogin, handler: Show(show), .. }, call)) => {
            Some(show(&call, context))
        }
        _ => None,
    }
}

/// Returns the verbs of a path, as a header has them. They do not tell whether an object exists.
fn verbs(request: &Request<'_>) -> String {
    let has = |verb: Verb| match find(request, None, Interface::Network, verb) {
        Some((row, _)) => !matches!(row.handler, Closed),
        None => false,
    };
    let known =
        [(Verb::Get, "HEAD, GET"), (Verb::Post, "POST"), (Verb::Put, "PUT"), (Verb::Delete, "DELETE")];
    let names = known.into_iter().filter(|(verb, _)| has(*verb)).map(|(_, name)| name);
    names.chain(["OPTIONS"]).collect::<Vec<_>>().join(", ")
}

/// Answers a request without a row: the path does not exist, or does not support the verb.
#[cold]
pub(super) fn not_taken(
    request: &Request<'_>,
    context: &RequestContext<'_>,
    interface: Interface,
    user: Option<&User>,
) -> Answer {
    let missing = || not_found("Not Found");
    if interface == Interface::Socket {
        return missing();
    }
    if interface == Interface::Metrics || request.segments.first().is_none_or(|first| *first != "api") {
        return match request.verb {
            Verb::Get => missing(),
            _ => Answer::Now(Status::MethodNotAllowed, problem("method_not_allowed", "only GET")),
        };
    }
    let Some((row, call)) = find(request, user, interface, Verb::Get).filter(|_| request.verb != Verb::Get)
    else {
        return missing();
    };
    match (call.allow(context, row.demand), row.handler) {
        (Err(refused), _) => refused,
        (Ok(()), Show(show)) => match show(&call, context) {
            Answer::Now(Status::NotFound, _) => missing(),
            _ => Answer::Verbs(Status::MethodNotAllowed, verbs(request)),
        },
        _ => missing(),
    }
}

/// Sends a file of the web page, unless the client's copy is up to date.
fn show_page(call: &Call<'_>, _: &RequestContext<'_>) -> Answer {
    let Some(page) = web_page::find(call.optional_name("file").unwrap_or_default()) else {
        return not_found("Not Found");
    };
    match call.request.origin.client_copy {
        Some(tags) if has_tag(tags, page.tag()) => Answer::KnownPage(page),
        _ => Answer::Page(page),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{self, Parsed};

    /// Returns the path of a row with a name for each word in braces.
    fn path_of(row: &RequestRow) -> String {
        let named = |part: &'static str| match part {
            "**" => "rest",
            part => part.strip_prefix('{').and_then(|part| part.strip_suffix('}')).unwrap_or(part),
        };
        row.path.split('/').map(named).collect::<Vec<_>>().join("/")
    }

    #[test]
    fn every_row_answers_over_each_of_its_interfaces() {
        let open = REQUESTS.iter().filter(|row| row.verb.is_some());
        for (row, interface) in
            open.flat_map(|row| row.interfaces.iter().map(move |interface| (row, *interface)))
        {
            let request = format!("GET /{} HTTP/1.1\r\n\r\n", path_of(row));
            let Parsed::Request(request, _) = http::parse(request.as_bytes(), 4096, None) else {
                panic!("{request}")
            };
            let verb = row.verb.unwrap_or(Verb::Put);
            let (found, call) = find(&request, None, interface, verb).unwrap();
            assert_eq!(found.path, row.path, "{verb:?} at {interface:?}");
            for (word, name) in call.names {
                assert_eq!(word, name);
            }
        }
    }

    #[test]
    fn rows_that_demand_permissions_name_a_virtual_host() {
        for row in REQUESTS {
            use Demand::{Member, Permissions, PolicymakerInVhost, Watcher};
            let is_of_vhost = matches!(row.demand, PolicymakerInVhost | Permissions | Member | Watcher)
                || matches!(row.handler, Act(_));
            assert!(!is_of_vhost || row.path.contains("/{vhost}"), "{}", row.path);
        }
    }
}
