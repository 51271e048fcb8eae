//! RabbitMQ's management API: its paths, its fields, its words, for users as far as their tags go.
//!
//! | tag | sees |
//! |-----|------|
//! | `management` | what there is in the virtual hosts it has permissions in, its own connections |
//! | `policymaker` | the same, and policies and parameters there, which it changes |
//! | `monitoring` | as `management`; the node, all connections, channels and consumers, names of virtual hosts |
//! | `administrator` | everything, and changes users, virtual hosts and permissions |
//!
//! What a request takes stands in [`demand`]; whose rows a list has, in [`Audience`](super::filter::Audience).
//! `tests/simulated/pair/management_rights` asks for every path by every tag, and `tests/rabbitmq/management`
//! for what RabbitMQ answers to all of them.
//!
//! Always true: what only the control socket may do (`/api/ctl`) is not here; what changes something in a
//! virtual host takes the permissions that the same would take over AMQP.

use crate::broker::Broker;
use crate::command::RABBITMQ_VERSION;

use super::actions::{self, default_named};
use super::answer::{Answer, bad_request, body, not_found, refusal, unauthorized};
use super::api;
use super::columns::{Channels, Connections, Consumers, Exchanges, Kind, Queues};
use super::filter::{BindingEnds, Filter, Viewer};
use super::health;
use super::http::{Request, Status, Verb};
use super::import;
use super::json::Json;
use super::listing::is_wanted;
use super::looking::{self, BrowseAnswer};
use super::management_node::{churn, exchange_types, feature_flags, memory, node, node_memory};
use super::management_parts::{limits, nested, numbers, texts};
use super::parameters;
use super::policies;
use super::request_context::RequestContext;
use super::samples::{Ranges, Total};

/// What there is besides RabbitMQ's paths, and which of those that change something: the page shows nothing
/// else.
const FEATURES: &[u8] = b"[{\"leveret\":[\"alarms\",\"bindings\",\"bridges\",\"bridge-orders\",\"define\",\
    \"publish\",\"get\",\"messages\",\"login\",\"memory\"]}]";

/// A user who is logged in.
pub(super) struct Who {
    name: String,
    tags: String,
    pub(super) is_monitor: bool,
    is_policymaker: bool,
    is_administrator: bool,
}

impl Who {
    /// A user; `None`: it has no tag that lets it in here.
    pub(super) fn of(broker: &Broker, name: &str) -> Option<Self> {
        let view = broker.access().users().find(|view| view.name == name)?;
        let has = |tag| view.tags.split(',').any(|other| other == tag);
        let is_administrator = has("administrator");
        let is_monitor = is_administrator || has("monitoring");
        let is_policymaker = is_administrator || has("policymaker");
        let may_enter = is_monitor || is_policymaker || has("management");
        let (name, tags) = (name.to_string(), view.tags.to_string());
        may_enter.then_some(Self { name, tags, is_monitor, is_policymaker, is_administrator })
    }

    fn viewer(&self) -> Viewer {
        Viewer { name: self.name.as_str().into(), is_monitor: self.is_monitor }
    }

    /// Rows of which virtual host it sees, and whose.
    fn filter(&self, vhost: Option<&str>) -> Filter {
        let viewer = (!self.is_administrator).then(|| self.viewer());
        Filter { vhost: vhost.map(Into::into), viewer, ..Filter::default() }
    }

    /// Connections that it may close: a monitor only watches what is others'.
    fn closes(&self) -> Filter {
        let viewer = (!self.is_administrator).then(|| Viewer { is_monitor: false, ..self.viewer() });
        Filter { viewer, ..Filter::default() }
    }

    /// Shovels in virtual hosts that it may enter, also if it is an administrator: as RabbitMQ has it.
    fn enters(&self, vhost: Option<&str>) -> Filter {
        Filter { viewer: Some(self.viewer()), ..self.filter(vhost) }
    }
}

/// What a request takes, besides a tag that lets its user in.
#[derive(Clone, Copy)]
enum Demand<'p> {
    Nothing,
    /// The tag `monitoring`.
    Monitor,
    Administrator,
    /// The tag `policymaker`.
    Policymaker,
    /// The same, and permissions in this virtual host unless it is an administrator.
    PolicymakerOf(&'p str),
    /// Permissions in this virtual host, whatever tags there are.
    Permissions(&'p str),
    /// The same, unless it is an administrator.
    Member(&'p str),
    /// The same, unless it is a monitor.
    Watcher(&'p str),
    /// That there is such a virtual host.
    Vhost(&'p str),
}

/// What RabbitMQ demands, or more: `tests/rabbitmq/management/rights.txt` has its answers. A list that
/// demands nothing has the rows that its reader sees.
fn demand<'p>(verb: Verb, path: &[&'p str]) -> Demand<'p> {
    use Demand::{
        Administrator, Member, Monitor, Nothing, Permissions, Policymaker, PolicymakerOf, Vhost, Watcher,
    };
    match (verb, path) {
        (_, ["users" | "permissions" | "topic-permissions" | "definitions" | "feature-flags", ..]) => {
            Administrator
        }
        (Verb::Get, ["vhosts", vhost, "connections" | "channels"]) => Member(vhost),
        (_, ["vhosts", _, ..]) => Administrator,
        (Verb::Get, ["vhost-limits", vhost]) => Watcher(vhost),
        (Verb::Get, ["user-limits", ..]) => Monitor,
        (Verb::Put | Verb::Delete, ["vhost-limits" | "user-limits", ..]) => Administrator,
        (_, ["operator-policies", _, _]) => Administrator,
        (_, ["policies", vhost, _] | ["parameters", _, vhost] | ["parameters", _, vhost, _]) => {
            PolicymakerOf(vhost)
        }
        (_, ["parameters" | "global-parameters", ..]) => Policymaker,
        (_, ["queues", _, _, "actions"]) => Administrator,
        (_, ["queues" | "exchanges" | "bindings" | "policies" | "operator-policies", vhost, ..]) => {
            Member(vhost)
        }
        (Verb::Get, ["consumers", vhost]) => Vhost(vhost),
        (_, ["aliveness-test", vhost] | ["leveret", "queues", vhost, ..]) => Permissions(vhost),
        (Verb::Get, ["shovels", ..] | ["leveret", "bridges" | "memory"]) => Monitor,
        (Verb::Delete, ["shovels", ..]) | (Verb::Post, ["leveret", "bridges", ..]) => Administrator,
        (_, ["nodes", ..] | ["auth", "attempts", ..]) => Monitor,
        _ => Nothing,
    }
}

/// Whether a user has what is demanded.
fn allow(context: &RequestContext<'_>, who: &Who, demand: Demand<'_>) -> Result<(), Answer> {
    let in_vhost = |vhost: &str, is_exempt: bool, why: &str| {
        if !exists(context, vhost) {
            return Err(not_found("Not Found"));
        }
        if is_exempt || context.broker.access().has_permission(&who.name, vhost) {
            Ok(())
        } else {
            Err(unauthorized(why))
        }
    };
    let no_member = "User not authorised to access virtual host";
    let no_policymaker = "User not authorised to access object";
    match demand {
        Demand::Nothing => Ok(()),
        Demand::Monitor if who.is_monitor => Ok(()),
        Demand::Monitor => Err(unauthorized("Not monitor user")),
        Demand::Administrator if who.is_administrator => Ok(()),
        Demand::Administrator => Err(unauthorized("Not administrator user")),
        Demand::Policymaker | Demand::PolicymakerOf(_) if !who.is_policymaker => {
            Err(unauthorized(no_policymaker))
        }
        Demand::Policymaker => Ok(()),
        Demand::PolicymakerOf(vhost) => in_vhost(vhost, who.is_administrator, no_policymaker),
        Demand::Permissions(vhost) => in_vhost(vhost, false, no_member),
        Demand::Member(vhost) => in_vhost(vhost, who.is_administrator, no_member),
        Demand::Watcher(vhost) => in_vhost(vhost, who.is_monitor, no_member),
        Demand::Vhost(vhost) => in_vhost(vhost, true, no_member),
    }
}

/// Answers one request of a user.
pub(super) fn handle(request: &Request<'_>, context: &mut RequestContext<'_>, who: &Who) -> Answer {
    let Some((_, path)) = request.segments.split_first() else { return not_found("Not Found") };
    let path: heapless::Vec<&str, 8> = path.iter().map(|segment| &**segment).collect();
    // A trailing slash changes nothing.
    let path = match path.as_slice() {
        [path @ .., ""] => path,
        path => path,
    };
    if let Err(refused) = allow(context, who, demand(request.verb, path)) {
        return refused;
    }
    match (request.verb, path) {
        (Verb::Get, ["leveret", "queues", vhost, queue, "messages"]) => {
            match looking::look(request, context, (&who.name, vhost, queue)) {
                Ok(BrowseAnswer::Now(body)) => Answer::Now(Status::Ok, body),
                Ok(BrowseAnswer::Later(looking)) => Answer::Look(Box::new(looking)),
                Err(fault) => refusal(&fault),
            }
        }
        (Verb::Get, _) => show(request, context, who, path),
        _ => change(request, context, who, path),
    }
}

fn show(request: &Request<'_>, context: &RequestContext<'_>, who: &Who, path: &[&str]) -> Answer {
    match path {
        ["whoami"] => whoami(who),
        ["overview"] => object(|json| overview(json, context, who, Ranges::asked(request))),
        ["extensions"] => object(|json| json.raw(FEATURES)),
        ["cluster-name"] => object(|json| {
            json.raw(b"{\"name\":");
            json.text(&context.process.node);
            json.raw(b"}");
        }),
        ["leveret", "alarms"] => object(|json| json.texts(api::which_alarms(context))),
        ["leveret", "bridges"] => api::list_kind("bridges", request, Filter::default()),
        ["leveret", "memory"] => object(|json| memory(json, context)),
        ["nodes"] => object(|json| {
            json.raw(b"[");
            node(json, context);
            json.raw(b"]");
        }),
        ["nodes", name] if is_this_node(context, name) => object(|json| node(json, context)),
        ["nodes", name, "memory"] if is_this_node(context, name) => object(|json| node_memory(json, context)),
        ["health", "checks", check @ ..] => health::check(context, check),
        ["healthchecks", "node"] => health::node(context),
        ["healthchecks", "node", name] if is_this_node(context, name) => health::node(context),
        ["aliveness-test", _] => health::status_ok(),
        [kind @ ("vhosts" | "connections" | "channels")] => api::list_kind(kind, request, who.filter(None)),
        [kind @ ("queues" | "exchanges" | "bindings" | "consumers"), vhost @ ..] if vhost.len() < 2 => {
            let filter = who.filter(vhost.first().copied());
            api::list_kind(kind, request, Filter { ranges: Ranges::asked(request), ..filter })
        }
        [kind @ ("queues" | "exchanges"), vhost, name] => {
            let name = if *kind == "exchanges" { default_named(name) } else { name };
            let filter = Filter { ranges: Ranges::asked(request), ..who.filter(Some(vhost)) };
            api::one(kind, context, filter, name)
        }
        [kind @ ("connections" | "channels"), name] => api::one(kind, context, who.filter(None), name),
        ["vhosts", vhost] => api::one("vhosts", context, Filter::default(), vhost),
        ["vhosts", vhost, kind @ ("connections" | "channels")] => {
            api::list_kind(kind, request, who.filter(Some(vhost)))
        }
        _ => show_access(request, context, who, path),
    }
}

/// Users, what they may do, and everything that is defined.
fn show_access(request: &Request<'_>, context: &RequestContext<'_>, who: &Who, path: &[&str]) -> Answer {
    match path {
        [kind @ ("users" | "permissions" | "topic-permissions")] => {
            api::list_kind(kind, request, Filter::default())
        }
        ["users", "without-permissions"] => api::users_without_permissions(),
        ["users", user] => api::one("users", context, Filter::default(), user),
        ["users", user, kind @ ("permissions" | "topic-permissions")] => {
            let filter = Filter { user: Some((*user).into()), ..Filter::default() };
            api::list_kind(kind, request, filter)
        }
        ["permissions", vhost, user] => api::one("permissions", context, of_user(vhost, user), user),
        ["topic-permissions", vhost, user] => {
            let mut topics = context.broker.access().topic_permissions();
            if topics.any(|view| (view.vhost, view.user) == (*vhost, *user)) {
                api::list_kind("topic-permissions", request, of_user(vhost, user))
            } else {
                not_found("Not Found")
            }
        }
        ["definitions"] => api::export(),
        ["definitions", vhost] if !exists(context, vhost) => bad_request("vhost_not_found"),
        ["definitions", vhost] => api::export_of(vhost),
        _ => show_more(request, context, who, path),
    }
}

/// Rows of a user in a virtual host.
fn of_user(vhost: &str, user: &str) -> Filter {
    Filter { vhost: Some(vhost.into()), user: Some(user.into()), ..Filter::default() }
}

/// What there is little of here, or nothing.
fn show_more(request: &Request<'_>, context: &RequestContext<'_>, who: &Who, path: &[&str]) -> Answer {
    match path {
        [kind @ ("vhost-limits" | "user-limits"), only @ ..] if only.len() < 2 => {
            let only = only.first().copied();
            let sees =
                |vhost: &str| who.is_monitor || context.broker.access().has_permission(&who.name, vhost);
            object(|json| {
                limits(json, context, kind, |name| match only {
                    Some(only) => name == only,
                    None => *kind == "user-limits" || sees(name),
                })
            })
        }
        ["vhosts", vhost, "permissions" | "topic-permissions"] if !exists(context, vhost) => {
            not_found("Not Found")
        }
        ["vhosts", vhost, kind @ ("permissions" | "topic-permissions")] => {
            api::list_kind(kind, request, who.filter(Some(vhost)))
        }
        [kind @ ("policies" | "operator-policies"), vhost @ ..] if vhost.len() < 2 => {
            api::list_kind(kind, request, who.filter(vhost.first().copied()))
        }
        [kind @ ("policies" | "operator-policies"), vhost, name] => {
            api::one(kind, context, who.filter(Some(vhost)), name)
        }
        // They may hold passwords.
        ["parameters", of @ ..] if of.len() < 4 => {
            let component = of.first().map(|component| (*component).into());
            let filter = Filter { user: component, ..who.filter(of.get(1).copied()) };
            match of.get(2) {
                Some(name) => api::one("parameters", context, filter, name),
                None => api::list_kind("parameters", request, filter),
            }
        }
        ["global-parameters"] => api::list_kind("global-parameters", request, Filter::default()),
        ["global-parameters", name] => api::one("global-parameters", context, Filter::default(), name),
        ["feature-flags"] => object(feature_flags),
        ["auth", "attempts", name, ..] if is_this_node(context, name) => object(|json| json.raw(b"[]")),
        // As from a RabbitMQ without that plug-in.
        ["shovels", ..] if context.bridges.places_max() == 0 => not_found("Not Found"),
        ["shovels", vhost] if !exists(context, vhost) => not_found("Not Found"),
        ["shovels", vhost @ ..] if vhost.len() < 2 => {
            api::list_kind("shovels", request, who.enters(vhost.first().copied()))
        }
        ["shovels", "vhost", vhost, name] => api::one("shovels", context, who.enters(Some(vhost)), name),
        _ => show_bindings(request, context, who, path),
    }
}

/// Bindings between two ends, or of one.
fn show_bindings(request: &Request<'_>, context: &RequestContext<'_>, who: &Who, path: &[&str]) -> Answer {
    let list = |vhost, ends| api::list_kind("bindings", request, between(who, vhost, ends));
    match path {
        ["queues", vhost, queue, "bindings"] => list(vhost, (None, Some((queue, false)))),
        ["exchanges", vhost, exchange, "bindings", "source"] => list(vhost, (Some(exchange), None)),
        ["exchanges", vhost, exchange, "bindings", "destination"] => {
            list(vhost, (None, Some((exchange, true))))
        }
        ["bindings", vhost, "e", source, kind @ ("e" | "q"), destination] => {
            list(vhost, (Some(source), Some((destination, *kind == "e"))))
        }
        ["bindings", vhost, "e", source, kind @ ("e" | "q"), destination, key] => {
            let filter = between(who, vhost, (Some(source), Some((destination, *kind == "e"))));
            api::one("bindings", context, filter, key)
        }
        _ => not_found("Not Found"),
    }
}

fn change(request: &Request<'_>, context: &mut RequestContext<'_>, who: &Who, path: &[&str]) -> Answer {
    match (request.verb, path) {
        (
            Verb::Put | Verb::Delete,
            [
                "users" | "vhosts" | "permissions" | "topic-permissions" | "vhost-limits" | "user-limits",
                _,
                ..,
            ],
        ) => {
            let is_new = request.verb == Verb::Put && is_new(context, path);
            match super::access::handle(request, path, context) {
                Answer::Changed(_, body) if is_new => {
                    if let ["vhosts", vhost] = path {
                        let every = ".*";
                        // Whoever makes one may do everything there. Without room for that it is there all
                        // the same, as with RabbitMQ.
                        let _ = context.broker.access_mut().set_permissions(
                            context.journal,
                            &who.name,
                            vhost,
                            every,
                            every,
                            every,
                        );
                    }
                    Answer::Changed(Status::Created, body)
                }
                answer => answer,
            }
        }
        (Verb::Post, ["users", "bulk-delete"]) => super::access::handle(request, path, context),
        (Verb::Post, ["definitions", vhost]) if !exists(context, vhost) => not_found("Not Found"),
        (Verb::Post, ["definitions", vhost @ ..]) if vhost.len() < 2 => {
            import::handle(request, context, vhost.first().copied())
        }
        (Verb::Put | Verb::Delete, ["policies" | "operator-policies", _, _]) => {
            policies::handle(request, context, path)
        }
        (Verb::Put | Verb::Delete, ["parameters", _, _, _] | ["global-parameters", _]) => {
            parameters::handle(request, context, path, Some(&who.name))
        }
        (Verb::Delete, ["shovels", "vhost", vhost, name, restart @ ..])
            if matches!(restart, [] | ["restart"])
                && context.broker.access().has_permission(&who.name, vhost) =>
        {
            parameters::shovel(context, vhost, name, !restart.is_empty())
        }
        (Verb::Post, ["leveret", "bridges", bridge, order]) => {
            parameters::order_bridge(context, bridge, order)
        }
        (Verb::Delete, ["connections", name]) => {
            api::close_named(request, context, who.closes(), name).unwrap_or_else(|refused| refused)
        }
        (_, ["queues" | "exchanges" | "bindings", _, ..]) => {
            let done = actions::handle(request, context, &who.name, path);
            done.unwrap_or_else(|| not_taken(request, context, who, path))
        }
        _ => not_taken(request, context, who, path),
    }
}

/// Whether that is what this node is called, or what a RabbitMQ on this machine would be: some tools know no
/// other name in front of the machine's.
fn is_this_node(context: &RequestContext<'_>, name: &str) -> bool {
    let machine = context.process.node.split_once('@').map(|node| node.1);
    name == context.process.node || machine.is_some() && name.strip_prefix("rabbit@") == machine
}

/// Whether what is put is not there yet.
fn is_new(context: &RequestContext<'_>, path: &[&str]) -> bool {
    let broker = &*context.broker;
    match path {
        ["users", user] => broker.access().users().all(|view| view.name != *user),
        ["vhosts", vhost] => broker.access().vhosts().all(|view| view.name != *vhost),
        ["permissions", vhost, user] => !broker.access().has_permission(user, vhost),
        ["topic-permissions", vhost, user] => {
            broker.access().topic_permissions().all(|view| (view.vhost, view.user) != (*vhost, *user))
        }
        _ => false,
    }
}

/// What a method is told that a path does not take.
#[cold]
fn not_taken(request: &Request<'_>, context: &RequestContext<'_>, who: &Who, path: &[&str]) -> Answer {
    match allow(context, who, demand(Verb::Get, path)).map(|()| show(request, context, who, path)) {
        Ok(Answer::Now(Status::NotFound, _)) | Err(_) => not_found("Not Found"),
        Ok(_) => Answer::Now(Status::MethodNotAllowed, Vec::new()),
    }
}

/// An exchange that bindings start from, and where they lead: a name, and whether that is an exchange.
type Between<'a> = (Option<&'a str>, Option<(&'a str, bool)>);

fn between(who: &Who, vhost: &str, (source, destination): Between<'_>) -> Filter {
    let source = source.map(|source| default_named(source).into());
    let destination = destination.map(|(name, is_exchange)| (default_named(name).into(), is_exchange));
    Filter { ends: BindingEnds { source, destination }, ..who.filter(Some(vhost)) }
}

fn exists(context: &RequestContext<'_>, vhost: &str) -> bool {
    context.broker.access().vhosts().any(|view| view.name == vhost)
}

fn object(write: impl FnOnce(&mut Json<'_>)) -> Answer {
    Answer::Now(Status::Ok, body(write))
}

fn whoami(who: &Who) -> Answer {
    object(|json| {
        json.raw(b"{\"name\":");
        json.text(&who.name);
        json.raw(b",\"tags\":");
        json.texts(who.tags.split(',').filter(|tag| !tag.is_empty()));
        json.raw(b",\"is_internal_user\":true}");
    })
}

fn overview(json: &mut Json<'_>, context: &RequestContext<'_>, who: &Who, ranges: Ranges) {
    // A monitor sees how much there is, also where he does not see what it is.
    let seen = if who.is_monitor { Filter::default() } else { who.filter(None) };
    let process = context.process;
    let mut is_first = true;
    json.raw(b"{");
    let said = [
        ("management_version", RABBITMQ_VERSION),
        ("rates_mode", "basic"),
        ("product_name", process.product.0.as_str()),
        ("product_version", process.product.1.as_str()),
        ("rabbitmq_version", RABBITMQ_VERSION),
        ("leveret_version", env!("CARGO_PKG_VERSION")),
        ("cluster_name", &process.node),
        ("node", &process.node),
        ("erlang_version", ""),
        ("erlang_full_version", ""),
    ];
    texts(json, &mut is_first, &said);
    numbers(json, &mut is_first, &[("statistics_db_event_queue", 0), ("uptime", process.uptime_ms)]);
    json.name("message_stats", &mut is_first);
    // They are those of all virtual hosts together, which not everybody may know of.
    match who.is_monitor {
        true => message_stats(json, context, ranges),
        false => json.raw(b"{}"),
    }
    let broker = &*context.broker;
    json.name("object_totals", &mut is_first);
    let totals = [
        ("channels", count::<Channels>(context, &seen)),
        ("connections", count::<Connections>(context, &seen)),
        ("consumers", count::<Consumers>(context, &seen)),
        ("exchanges", count::<Exchanges>(context, &seen)),
        ("queues", count::<Queues>(context, &seen)),
    ];
    nested(json, &totals);
    let queues = (0..broker.views().queue_places()).filter_map(|at| broker.views().queue_at(at));
    let seen =
        queues.filter(|queue| who.is_monitor || broker.access().has_permission(&who.name, queue.vhost));
    let (ready, unacknowledged) = seen.fold((0, 0), |(ready, unacknowledged), queue| {
        (ready + u64::from(queue.messages_ready), unacknowledged + u64::from(queue.messages_unacknowledged))
    });
    json.name("queue_totals", &mut is_first);
    let totals = [
        ("messages", ready + unacknowledged),
        ("messages_ready", ready),
        ("messages_unacknowledged", unacknowledged),
    ];
    json.raw(b"{");
    let mut is_first_total = true;
    numbers(json, &mut is_first_total, &totals);
    if who.is_monitor {
        let both = [Total::MessagesReady, Total::MessagesUnacknowledged];
        for (name, sum) in [("", &both[..]), ("_ready", &both[..1]), ("_unacknowledged", &both[1..])] {
            json.name(&format!("messages{name}_details"), &mut is_first_total);
            context.samples.sum(json, sum, ranges.lengths);
        }
    }
    json.raw(b"}");
    if who.is_monitor {
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
    json.raw(b"[]");
    json.name("alarms", &mut is_first);
    json.texts(api::which_alarms(context));
    json.raw(b"}");
}

/// How many of a kind somebody sees.
fn count<K: Kind>(context: &RequestContext<'_>, seen: &Filter) -> u64 {
    let context = context.context();
    let views = (0..K::places(context)).filter_map(|place| K::at(context, place));
    views.filter(|view| is_wanted::<K>(seen, context, view)).count() as u64
}

/// What has happened to messages since the start, in all virtual hosts together.
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

/// What came and went since the start.
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

fn listeners(json: &mut Json<'_>, context: &RequestContext<'_>) {
    json.raw(b"[");
    let mut is_first = true;
    for (protocol, at) in context.process.listeners.iter().filter_map(|text| text.split_once(' ')) {
        let Some((address, port)) = at.rsplit_once(':') else { continue };
        json.comma(&mut is_first);
        json.raw(b"{");
        let mut is_first_field = true;
        let said = [("node", &*context.process.node), ("protocol", protocol), ("ip_address", address)];
        texts(json, &mut is_first_field, &said);
        numbers(json, &mut is_first_field, &[("port", port.parse().unwrap_or(0))]);
        json.raw(b"}");
    }
    json.raw(b"]");
}
