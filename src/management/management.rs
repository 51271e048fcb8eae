//! Requests that only the management API has: RabbitMQ's overview, the user's identity, limits, health of the node,
//! and the web page's own requests.
//!
//! # Invariants
//! - What RabbitMQ's tools read is there under its names.
//! - About virtual hosts without permissions a user gets at most totals, and those only as a monitor.

use leveret_broker::QueueRef;
use leveret_core::command::{ConnectionId, RABBITMQ_VERSION};
use leveret_core::definition::{UserLimits, VhostLimits};
use leveret_core::version::build_version;

use super::alarms;
use super::alarms::which_alarms;
use super::columns::{Channels, Connections, Consumers, Exchanges, ListedKind, Queues, write_limit};
use super::control::{queue_totals, reason};
use super::http::Status;
use super::json::Json;
use super::listing::{Filter, is_wanted};
use super::messages::{self, BrowseAnswer};
use super::node::{self, churn, exchange_types};
use super::parameters;
use super::request::RequestContext;
use super::request::{Answer, Answered, Call, User, bad_request, body, done, not_found, refusal};
use super::samples::{Ranges, Total};

/// The requests besides RabbitMQ's paths. The web page shows only what is in this list.
const FEATURES: &[u8] = b"{\"leveret\":[\"alarms\",\"bindings\",\"bridges\",\"bridge-orders\",\"define\",\
    \"publish\",\"get\",\"messages\",\"login\",\"memory\",\"status\",\"pools\",\"log\",\"move\",\"route\",\
    \"dry-run\"]}";
/// The requests that exist if there can be bridges.
const SHOVEL_FEATURES: &[u8] = b",{\"leveret\":[\"shovels\"]}";

fn object(write: impl FnOnce(&mut Json<'_>)) -> Answer {
    Answer::Now(Status::Ok, body(write))
}

pub(super) fn extensions(_: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    object(|json| {
        json.raw(b"[");
        json.raw(FEATURES);
        if context.bridges.places_max() > 0 {
            json.raw(SHOVEL_FEATURES);
        }
        json.raw(b"]");
    })
}

pub(super) fn cluster_name(_: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    let name = parameters::cluster_name(context.broker, &context.process.node);
    object(|json| text_object(json, &[("name", &name)]))
}

/// Shows the memory table.
pub(super) fn memory(_: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    object(|json| node::memory(json, context))
}

pub(super) fn feature_flags(_: &Call<'_>, _: &RequestContext<'_>) -> Answer {
    object(node::feature_flags)
}

pub(super) fn nodes(_: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    object(|json| {
        json.raw(b"[");
        node::node(json, context);
        json.raw(b"]");
    })
}

pub(super) fn node(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    of_node(call, context, || object(|json| node::node(json, context)))
}

pub(super) fn node_memory(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    of_node(call, context, || object(|json| node::node_memory(json, context)))
}

/// Answers with an empty list, because the broker does not count attempts to log in.
pub(super) fn attempts(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    of_node(call, context, || object(|json| json.raw(b"[]")))
}

pub(super) fn node_health(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    of_node(call, context, || alarms::node(call, context))
}

/// Answers a request about a node if it names this one: by its name, or by the name that RabbitMQ would have on this
/// machine. Some tools know only the default name in front of the machine's.
fn of_node(call: &Call<'_>, context: &RequestContext<'_>, answer: impl FnOnce() -> Answer) -> Answer {
    let (name, own) = (call.name("node"), &*context.process.node);
    let machine = own.split_once('@').map(|node| node.1);
    let is_own = name == own || machine.is_some() && name.strip_prefix("rabbit@") == machine;
    if is_own { answer() } else { not_found("Not Found") }
}

pub(super) fn whoami(call: &Call<'_>, _: &RequestContext<'_>) -> Answer {
    let Some(user) = call.user else { return not_found("Not Found") };
    object(|json| {
        json.raw(b"{\"name\":");
        json.text(&user.name);
        json.raw(b",\"tags\":");
        json.texts(user.tags.split(',').filter(|tag| !tag.is_empty()));
        json.raw(b",\"is_internal_user\":true}");
    })
}

/// Shows the limits of one virtual host, or of those that the user may see.
pub(super) fn vhost_limits(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    let access = context.broker.access();
    let sees = |vhost: &str| {
        call.user.is_none_or(|user| user.is_monitor || access.has_permission(&user.name, vhost))
    };
    let is_meant =
        |vhost: &str| call.optional_name("vhost").map_or_else(|| sees(vhost), |only| vhost == only);
    let of = |limits: VhostLimits| {
        [("max-queues", limits.queues_max), ("max-connections", limits.connections_max)]
    };
    let meant = access.vhosts().filter(|view| is_meant(view.name));
    object(|json| limits(json, "vhost", meant.map(|view| (view.name, of(view.limits)))))
}

/// Shows the limits of one user or of all.
pub(super) fn user_limits(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    let of = |limits: UserLimits| {
        [("max-channels", limits.channels_max), ("max-connections", limits.connections_max)]
    };
    let users = context.broker.access().users();
    let meant = users.filter(|view| call.optional_name("user").is_none_or(|only| view.name == only));
    object(|json| limits(json, "user", meant.map(|view| (view.name, of(view.limits)))))
}

/// Shows messages of a queue, which stay in it.
pub(super) fn messages(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let user = call.user.ok_or_else(|| not_found("Not Found"))?;
    let browsed = messages::browse(
        call.request,
        context,
        &user.name,
        QueueRef { vhost: call.name("vhost"), name: call.name("queue") },
    );
    Ok(match browsed.map_err(|fault| refusal(&fault))? {
        BrowseAnswer::Now(body) => Answer::Now(Status::Ok, body),
        BrowseAnswer::Later(pending) => Answer::Browse(Box::new(pending)),
    })
}

/// Closes the connection of this name if the user may close it.
pub(super) fn close(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let (seen, filter, name) = (context.context(), call.closable(), call.name("name"));
    let place = (0..Connections::places(seen)).find(|place| {
        Connections::at(seen, *place).is_some_and(|view| {
            Connections::name(&view).is_some_and(|own| own == name)
                && is_wanted::<Connections>(&filter, seen, &view)
        })
    });
    let place = place.ok_or_else(|| not_found("Not Found"))?;
    let reason = reason(call.request, CLOSED_BY_API);
    context.broker.force_close(ConnectionId::from_index(place), &reason);
    Ok(done(Status::NoContent))
}

/// Why a connection is closed, in RabbitMQ's words.
const CLOSED_BY_API: &str = "Closed via management plugin";

/// Closes the connections of a user, as far as the caller may close them.
pub(super) fn close_of_user(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let (seen, filter) = (context.context(), call.closable());
    let places: Vec<usize> = (0..Connections::places(seen))
        .filter(|place| {
            Connections::at(seen, *place).is_some_and(|view| is_wanted::<Connections>(&filter, seen, &view))
        })
        .collect();
    let reason = reason(call.request, CLOSED_BY_API);
    for place in places {
        context.broker.force_close(ConnectionId::from_index(place), &reason);
    }
    Ok(done(Status::NoContent))
}

/// Answers 204 without an effect, because the broker does not count attempts to log in.
pub(super) fn reset_attempts(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    Ok(of_node(call, context, || done(Status::NoContent)))
}

/// Tells clients of OAuth 2.0 that it is not used.
pub(super) fn auth(_: &Call<'_>, _: &RequestContext<'_>) -> Answer {
    object(|json| {
        json.raw(
            b"{\"enable_uaa\":false,\"uaa_client_id\":\"\",\"uaa_location\":\"\",\"oauth_enabled\":false}",
        );
    })
}

/// Shows an empty list of objects that only RabbitMQ has.
pub(super) fn no_objects() -> Answer {
    object(|json| json.raw(b"[]"))
}

/// Enables a feature flag. The features that the broker has are always enabled.
pub(super) fn enable_feature_flag(call: &Call<'_>, _: &mut RequestContext<'_>) -> Answered {
    match node::is_feature_enabled(call.name("flag")) {
        true => Ok(done(Status::NoContent)),
        false => Err(bad_request("unsupported")),
    }
}

/// Moves the leaders of queues to other nodes. There is one node.
pub(super) fn rebalance(_: &Call<'_>, _: &mut RequestContext<'_>) -> Answered {
    Ok(done(Status::NoContent))
}

pub(super) fn overview(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    object(|json| write_overview(json, call, context))
}

fn write_overview(json: &mut Json<'_>, call: &Call<'_>, context: &RequestContext<'_>) {
    let Some(user) = call.user else { return };
    let ranges = Ranges::from_query(call.request);
    // A monitor gets the totals of all virtual hosts, even where it may not see the objects.
    let seen = if user.is_monitor { Filter::default() } else { call.filter() };
    let process = context.process;
    let mut is_first = true;
    json.raw(b"{");
    let members = [
        ("management_version", RABBITMQ_VERSION),
        ("rates_mode", "basic"),
        ("product_name", process.product.0.as_str()),
        ("product_version", process.product.1.as_str()),
        ("rabbitmq_version", RABBITMQ_VERSION),
        ("leveret_version", build_version()),
        ("cluster_name", &parameters::cluster_name(context.broker, &process.node)),
        ("node", &process.node),
        ("erlang_version", ""),
        ("erlang_full_version", ""),
    ];
    texts(json, &mut is_first, &members);
    numbers(json, &mut is_first, &[("statistics_db_event_queue", 0), ("uptime", process.uptime_ms)]);
    json.name("message_stats", &mut is_first);
    // These totals are those of all virtual hosts together, so only monitors get them.
    match user.is_monitor {
        true => message_stats(json, context, ranges),
        false => json.raw(b"{}"),
    }
    json.name("object_totals", &mut is_first);
    let totals = [
        ("channels", count::<Channels>(context, &seen)),
        ("connections", count::<Connections>(context, &seen)),
        ("consumers", count::<Consumers>(context, &seen)),
        ("exchanges", count::<Exchanges>(context, &seen)),
        ("queues", count::<Queues>(context, &seen)),
    ];
    nested(json, &totals);
    json.name("queue_totals", &mut is_first);
    write_queue_totals(json, context, user, ranges);
    if user.is_monitor {
        json.name("churn_rates", &mut is_first);
        churn_rates(json, context);
    }
    json.name("listeners", &mut is_first);
    listeners(json, context);
    for (name, truth) in [("disable_stats", false), ("enable_queue_totals", false)] {
        json.name(name, &mut is_first);
        json.truth(truth);
    }
    exchange_types(json, &mut is_first);
    json.name("contexts", &mut is_first);
    contexts(json, context);
    json.name("alarms", &mut is_first);
    json.texts(which_alarms(context));
    json.raw(b"}");
}

fn write_queue_totals(json: &mut Json<'_>, context: &RequestContext<'_>, user: &User, ranges: Ranges) {
    let (ready, unacknowledged) = queue_totals(context, |vhost| {
        user.is_monitor || context.broker.access().has_permission(&user.name, vhost)
    });
    let totals = [
        ("messages", ready + unacknowledged),
        ("messages_ready", ready),
        ("messages_unacknowledged", unacknowledged),
    ];
    json.raw(b"{");
    let mut is_first = true;
    numbers(json, &mut is_first, &totals);
    if user.is_monitor {
        let both = [Total::MessagesReady, Total::MessagesUnacknowledged];
        for (name, sum) in [("", &both[..]), ("_ready", &both[..1]), ("_unacknowledged", &both[1..])] {
            json.name(&format!("messages{name}_details"), &mut is_first);
            context.samples.sum(json, sum, ranges.lengths);
        }
    }
    json.raw(b"}");
}

/// Counts the objects of a kind that a user may see.
pub(super) fn count<K: ListedKind>(context: &RequestContext<'_>, seen: &Filter) -> u64 {
    let context = context.context();
    let views = K::objects(context);
    views.filter(|view| is_wanted::<K>(seen, context, view)).count() as u64
}

/// Writes the counters of messages since the start, for all virtual hosts together.
fn message_stats(json: &mut Json<'_>, context: &RequestContext<'_>, ranges: Ranges) {
    let counters = context.broker.counters();
    let counts = [
        ("publish", counters.received, Total::Publish),
        ("confirm", context.process.confirmed, Total::Confirm),
        ("return_unroutable", counters.unroutable_returned, Total::ReturnUnroutable),
        ("drop_unroutable", counters.unroutable_dropped, Total::DropUnroutable),
        ("deliver", counters.delivered_manual, Total::Deliver),
        ("deliver_no_ack", counters.delivered_auto, Total::DeliverNoAck),
        ("get", counters.get_manual, Total::Get),
        ("get_no_ack", counters.get_auto, Total::GetNoAck),
        ("get_empty", counters.get_empty, Total::GetEmpty),
        ("deliver_get", counters.delivered(), Total::DeliverGet),
        ("redeliver", counters.redelivered, Total::Redeliver),
        ("ack", counters.acknowledged, Total::Ack),
    ];
    with_rates(json, context, &counts, ranges);
}

/// Writes the counters of created and closed or deleted objects since the start.
fn churn_rates(json: &mut Json<'_>, context: &RequestContext<'_>) {
    with_rates(json, context, &churn(context), Ranges::default());
}

fn with_rates(
    json: &mut Json<'_>,
    context: &RequestContext<'_>,
    counts: &[(&str, u64, Total)],
    ranges: Ranges,
) {
    json.raw(b"{");
    let mut is_first = true;
    for (name, count, total) in counts {
        numbers(json, &mut is_first, &[(name, *count)]);
        json.name(&format!("{name}_details"), &mut is_first);
        context.samples.total(json, *total, ranges.rates);
    }
    json.raw(b"}");
}

/// Writes where this API and metrics are served, as RabbitMQ describes its web servers.
fn contexts(json: &mut Json<'_>, context: &RequestContext<'_>) {
    json.raw(b"[");
    let mut is_first = true;
    for (protocol, at) in context.process.open_listeners().filter_map(|text| text.split_once(' ')) {
        let description = match protocol {
            "http" | "https" => "RabbitMQ Management",
            "http/prometheus" => "RabbitMQ Prometheus",
            _ => continue,
        };
        let Some((address, port)) = at.rsplit_once(':') else { continue };
        json.comma(&mut is_first);
        json.raw(b"{\"ssl_opts\":[]");
        let members = [
            ("node", &*context.process.node),
            ("description", description),
            ("path", "/"),
            ("cowboy_opts", "[{sendfile,false}]"),
            ("ip", address.trim_start_matches('[').trim_end_matches(']')),
            ("port", port),
        ];
        texts(json, &mut false, &members);
        if protocol == "http/prometheus" {
            texts(json, &mut false, &[("protocol", "'http/prometheus'")]);
        }
        json.raw(b"}");
    }
    json.raw(b"]");
}

fn listeners(json: &mut Json<'_>, context: &RequestContext<'_>) {
    json.raw(b"[");
    let mut is_first = true;
    for (protocol, at) in context.process.open_listeners().filter_map(|text| text.split_once(' ')) {
        let Some((address, port)) = at.rsplit_once(':') else { continue };
        json.comma(&mut is_first);
        json.raw(b"{");
        let mut is_first_field = true;
        let members = [("node", &*context.process.node), ("protocol", protocol), ("ip_address", address)];
        texts(json, &mut is_first_field, &members);
        numbers(json, &mut is_first_field, &[("port", port.parse().unwrap_or(0))]);
        json.raw(b"}");
    }
    json.raw(b"]");
}

/// Writes the limits that are set, of these virtual hosts or users.
pub(super) fn limits<'n>(
    json: &mut Json<'_>,
    key: &str,
    rows: impl Iterator<Item = (&'n str, [(&'static str, Option<u32>); 2])>,
) {
    json.raw(b"[");
    let mut is_first = true;
    for (name, limits) in rows.filter(|(_, limits)| limits.iter().any(|(_, limit)| limit.is_some())) {
        json.comma(&mut is_first);
        json.raw(b"{");
        let mut is_first_field = true;
        texts(json, &mut is_first_field, &[(key, name)]);
        json.name("value", &mut is_first_field);
        json.raw(b"{");
        let mut is_first_limit = true;
        for (name, limit) in limits.into_iter().filter_map(|(name, limit)| Some((name, limit?))) {
            json.name(name, &mut is_first_limit);
            write_limit(json, limit);
        }
        json.raw(b"}}");
    }
    json.raw(b"]");
}

/// Writes numbers as members of an object that is open.
pub(super) fn numbers(json: &mut Json<'_>, is_first: &mut bool, numbers: &[(&str, u64)]) {
    for (name, number) in numbers {
        json.name(name, is_first);
        json.number(*number);
    }
}

pub(super) fn texts(json: &mut Json<'_>, is_first: &mut bool, texts: &[(&str, &str)]) {
    for (name, text) in texts {
        json.name(name, is_first);
        json.text(text);
    }
}

/// Writes an object of texts.
pub(super) fn text_object(json: &mut Json<'_>, members: &[(&str, &str)]) {
    json.raw(b"{");
    texts(json, &mut true, members);
    json.raw(b"}");
}

/// Writes an object of numbers.
pub(super) fn nested(json: &mut Json<'_>, members: &[(&str, u64)]) {
    json.raw(b"{");
    numbers(json, &mut true, members);
    json.raw(b"}");
}
