//! RabbitMQ's management API: its paths, its fields, its words, for users as far as their tags go.
//!
//! | tag | sees |
//! |-----|------|
//! | `management` | the virtual hosts it has permissions in, its own connections |
//! | `policymaker` | the same, and changes policies there |
//! | `monitoring` | everything but users and permissions |
//! | `administrator` | everything, and changes users, virtual hosts and permissions |
//!
//! Of consumers, channels and connections somebody who is no monitor sees his own.
//! `tests/pair/management_rights` asks for every path by every tag.
//!
//! Always true: what only the control socket may do (`/api/ctl`) is not here; what changes something in a
//! virtual host takes the permissions that the same would take over AMQP.

use super::actions::{self, default_named};
use super::answer::{Answer, bad_request, body, not_found, refusal, unauthorized};
use super::api;
use super::columns::{Channels, Connections, Consumers, Exchanges, Kind, Queues};
use super::filter::{BindingEnds, Filter};
use super::health;
use super::http::{Request, Status, Verb};
use super::import;
use super::json::Json;
use super::listing::is_wanted;
use super::looking::{self, Sight};
use super::management_node::{churn, exchange_types, feature_flags, memory, node, node_memory};
use super::management_parts::{limits, nested, numbers, texts};
use super::parameters;
use super::policies;
use super::request_context::RequestContext;
use super::samples::{Ranges, Total};

/// The release of RabbitMQ whose API this is.
pub(super) const RABBITMQ_VERSION: &str = "3.10.8";

/// What there is besides RabbitMQ's paths, and which of those that change something: the page shows nothing
/// else.
const FEATURES: &[u8] = b"[{\"leveret\":[\"alarms\",\"bindings\",\"bridges\",\"bridge-orders\",\"define\",\
    \"publish\",\"get\",\"messages\",\"login\",\"memory\"]}]";

/// A user who is logged in.
pub(super) struct Who {
    name: String,
    tags: String,
    pub(super) is_monitor: bool,
    is_administrator: bool,
}

impl Who {
    /// A user; `None`: it has no tag that lets it in here.
    pub(super) fn of(context: &RequestContext<'_>, name: &str) -> Option<Self> {
        let view = context.broker.users().find(|view| view.name == name)?;
        let has = |tag| view.tags.split(',').any(|other| other == tag);
        let is_administrator = has("administrator");
        let is_monitor = is_administrator || has("monitoring");
        let may_enter = is_monitor || has("management") || has("policymaker");
        let (name, tags) = (name.to_string(), view.tags.to_string());
        may_enter.then_some(Self { name, tags, is_monitor, is_administrator })
    }

    /// Rows of what it may do something to: a monitor only watches what is others'.
    fn own(&self) -> Filter {
        let viewer = (!self.is_administrator).then(|| self.name.as_str().into());
        Filter { viewer, ..Filter::default() }
    }

    /// Rows of which virtual host it sees, and whose.
    fn filter(&self, vhost: Option<&str>) -> Filter {
        let viewer = (!self.is_monitor).then(|| self.name.as_str().into());
        Filter { vhost: vhost.map(Into::into), viewer, ..Filter::default() }
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
    match (request.verb, path) {
        (Verb::Get, ["leveret", "queues", vhost, queue, "messages"]) => {
            match may_enter(context, who, vhost) {
                Ok(()) => match looking::look(request, context, (&who.name, vhost, queue)) {
                    Ok(Sight::Now(body)) => Answer::Now(Status::Ok, body),
                    Ok(Sight::Later(looking)) => Answer::Look(Box::new(looking)),
                    Err(fault) => refusal(&fault),
                },
                Err(refused) => refused,
            }
        }
        (Verb::Get, _) => show(request, context, who, path).unwrap_or_else(|refused| refused),
        _ => change(request, context, who, path).unwrap_or_else(|refused| refused),
    }
}

type Allowed = Result<Answer, Answer>;

fn show(request: &Request<'_>, context: &RequestContext<'_>, who: &Who, path: &[&str]) -> Allowed {
    Ok(match path {
        ["whoami"] => whoami(who),
        ["overview"] => object(|json| overview(json, context, who, Ranges::asked(request))),
        ["extensions"] => object(|json| json.raw(FEATURES)),
        ["cluster-name"] => object(|json| {
            json.raw(b"{\"name\":");
            json.text(&context.process.node);
            json.raw(b"}");
        }),
        ["leveret", "alarms"] => object(|json| json.texts(api::which_alarms(context))),
        ["leveret", "bridges"] => {
            monitor(who).map(|()| api::list_kind("bridges", request, Filter::default()))?
        }
        ["leveret", "memory"] => monitor(who).map(|()| object(|json| memory(json, context)))?,
        ["nodes"] => monitor(who).map(|()| {
            object(|json| {
                json.raw(b"[");
                node(json, context);
                json.raw(b"]");
            })
        })?,
        ["nodes", name] if is_this_node(context, name) => {
            monitor(who).map(|()| object(|json| node(json, context)))?
        }
        ["nodes", name, "memory"] if is_this_node(context, name) => {
            monitor(who).map(|()| object(|json| node_memory(json, context)))?
        }
        ["health", "checks", check @ ..] => health::check(context, check),
        ["healthchecks", "node"] => health::node(context),
        ["healthchecks", "node", name] if is_this_node(context, name) => health::node(context),
        ["aliveness-test", vhost] => {
            may_enter(context, who, vhost)?;
            health::status_ok()
        }
        [kind @ ("vhosts" | "connections" | "channels")] => api::list_kind(kind, request, who.filter(None)),
        [kind @ ("queues" | "exchanges" | "bindings" | "consumers"), vhost @ ..] if vhost.len() < 2 => {
            if let [vhost] = vhost {
                may_see(context, who, vhost)?;
            }
            let filter = who.filter(vhost.first().copied());
            api::list_kind(kind, request, Filter { ranges: Ranges::asked(request), ..filter })
        }
        [kind @ ("queues" | "exchanges"), vhost, name] => {
            may_see(context, who, vhost)?;
            let name = if *kind == "exchanges" { default_named(name) } else { name };
            let filter = Filter { ranges: Ranges::asked(request), ..who.filter(Some(vhost)) };
            api::one(kind, context, filter, name)
        }
        [kind @ ("connections" | "channels"), name] => api::one(kind, context, who.filter(None), name),
        ["vhosts", vhost] => {
            may_see(context, who, vhost)?;
            api::one("vhosts", context, Filter::default(), vhost)
        }
        ["vhosts", vhost, kind @ ("connections" | "channels")] => {
            may_see(context, who, vhost)?;
            api::list_kind(kind, request, who.filter(Some(vhost)))
        }
        _ => return show_access(request, context, who, path),
    })
}

/// Users, what they may do, and everything that is defined: for administrators.
fn show_access(request: &Request<'_>, context: &RequestContext<'_>, who: &Who, path: &[&str]) -> Allowed {
    Ok(match path {
        [kind @ ("users" | "permissions" | "topic-permissions")] => {
            administrator(who)?;
            api::list_kind(kind, request, Filter::default())
        }
        ["users", "without-permissions"] => {
            administrator(who)?;
            api::users_without_permissions()
        }
        ["users", user] => {
            administrator(who)?;
            api::one("users", context, Filter::default(), user)
        }
        ["users", user, kind @ ("permissions" | "topic-permissions")] => {
            administrator(who)?;
            let filter = Filter { user: Some((*user).into()), ..Filter::default() };
            api::list_kind(kind, request, filter)
        }
        [kind @ ("permissions" | "topic-permissions"), vhost, user] => {
            administrator(who)?;
            exists(context, vhost)?;
            let filter =
                Filter { vhost: Some((*vhost).into()), user: Some((*user).into()), ..Filter::default() };
            let mut topics = context.broker.topic_permissions();
            match *kind {
                "permissions" => api::one(kind, context, filter, user),
                _ if topics.any(|view| (view.vhost, view.user) == (*vhost, *user)) => {
                    api::list_kind(kind, request, filter)
                }
                _ => not_found("Not Found"),
            }
        }
        ["definitions", vhost @ ..] if vhost.len() < 2 => {
            administrator(who)?;
            match vhost.first() {
                None => api::export(),
                Some(vhost) if exists(context, vhost).is_err() => bad_request("vhost_not_found"),
                Some(vhost) => api::export_of(vhost),
            }
        }
        _ => return show_more(request, context, who, path),
    })
}

/// What there is little of here, or nothing.
fn show_more(request: &Request<'_>, context: &RequestContext<'_>, who: &Who, path: &[&str]) -> Allowed {
    match path {
        [kind @ ("vhost-limits" | "user-limits"), only @ ..] if only.len() < 2 => {
            if who.filter(None).viewer.is_some() {
                return Err(unauthorized("Not monitor user"));
            }
            Ok(object(|json| limits(json, context, kind, only.first().copied())))
        }
        ["vhosts", vhost, kind @ ("permissions" | "topic-permissions")] => {
            administrator(who)?;
            exists(context, vhost)?;
            Ok(api::list_kind(kind, request, Filter { vhost: Some((*vhost).into()), ..Filter::default() }))
        }
        [kind @ ("policies" | "operator-policies"), vhost @ ..] if vhost.len() < 2 => {
            if let [vhost] = vhost {
                may_see(context, who, vhost)?;
            }
            Ok(api::list_kind(kind, request, who.filter(vhost.first().copied())))
        }
        [kind @ ("policies" | "operator-policies"), vhost, name] => {
            policymaker(context, who, vhost)?;
            Ok(api::one(kind, context, who.filter(Some(vhost)), name))
        }
        ["parameters", of @ ..] if of.len() < 3 => show_parameters(request, context, who, of),
        ["parameters", component, vhost, name] => {
            policymaker(context, who, vhost)?;
            let filter = Filter { user: Some((*component).into()), ..who.filter(Some(vhost)) };
            Ok(api::one("parameters", context, filter, name))
        }
        ["global-parameters", name @ ..] if name.len() < 2 => {
            is_policymaker(who)?;
            Ok(match name.first() {
                Some(name) => api::one("global-parameters", context, Filter::default(), name),
                None => api::list_kind("global-parameters", request, Filter::default()),
            })
        }
        ["feature-flags"] => Ok(object(feature_flags)),
        ["auth", "attempts", name, ..] if is_this_node(context, name) => {
            monitor(who).map(|()| object(|json| json.raw(b"[]")))
        }
        // As from a RabbitMQ without that plug-in.
        ["shovels", ..] if context.bridges.places_max() == 0 => Err(not_found("Not Found")),
        ["shovels", vhost @ ..] if vhost.len() < 2 => {
            monitor(who)?;
            vhost.iter().try_for_each(|vhost| exists(context, vhost))?;
            Ok(api::list_kind("shovels", request, who.filter(vhost.first().copied())))
        }
        ["shovels", "vhost", vhost, name] => {
            monitor(who).map(|()| api::one("shovels", context, who.filter(Some(vhost)), name))
        }
        _ => show_bindings(request, context, who, path),
    }
}

/// Parameters, of a component or of all, in a virtual host or in those that the user sees: they may hold
/// passwords.
fn show_parameters(request: &Request<'_>, context: &RequestContext<'_>, who: &Who, of: &[&str]) -> Allowed {
    is_policymaker(who)?;
    let filter = match of {
        [component, vhost] => {
            policymaker(context, who, vhost)?;
            let vhost = Some((*vhost).into());
            Filter { user: Some((*component).into()), vhost, ..who.own() }
        }
        [component] => Filter { user: Some((*component).into()), ..who.own() },
        _ => who.own(),
    };
    Ok(api::list_kind("parameters", request, filter))
}

/// Bindings between two ends, or of one.
fn show_bindings(request: &Request<'_>, context: &RequestContext<'_>, who: &Who, path: &[&str]) -> Allowed {
    Ok(match path {
        ["queues", vhost, queue, "bindings"] => {
            bindings(request, context, who, vhost, (None, Some((queue, false))))?
        }
        ["exchanges", vhost, exchange, "bindings", "source"] => {
            bindings(request, context, who, vhost, (Some(exchange), None))?
        }
        ["exchanges", vhost, exchange, "bindings", "destination"] => {
            bindings(request, context, who, vhost, (None, Some((exchange, true))))?
        }
        ["bindings", vhost, "e", source, kind @ ("e" | "q"), destination] => {
            bindings(request, context, who, vhost, (Some(source), Some((destination, *kind == "e"))))?
        }
        ["bindings", vhost, "e", source, kind @ ("e" | "q"), destination, key] => {
            may_see(context, who, vhost)?;
            let filter = between(who, vhost, (Some(source), Some((destination, *kind == "e"))));
            api::one("bindings", context, filter, key)
        }
        _ => not_found("Not Found"),
    })
}

fn change(request: &Request<'_>, context: &mut RequestContext<'_>, who: &Who, path: &[&str]) -> Allowed {
    match (request.verb, path) {
        (
            Verb::Put | Verb::Delete,
            [
                "users" | "vhosts" | "permissions" | "topic-permissions" | "vhost-limits" | "user-limits",
                _,
                ..,
            ],
        ) => {
            administrator(who)?;
            let is_new = request.verb == Verb::Put && is_new(context, path);
            Ok(match super::access::handle(request, path, context) {
                Answer::Changed(_, body) if is_new => {
                    if let ["vhosts", vhost] = path {
                        let every = ".*";
                        // Whoever makes one may do everything there. Without room for that it is there all
                        // the same, as with RabbitMQ.
                        let _ = context.broker.set_permissions(
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
            })
        }
        (Verb::Post, ["users", "bulk-delete"]) => {
            administrator(who)?;
            Ok(super::access::handle(request, path, context))
        }
        (Verb::Post, ["definitions", vhost @ ..]) if vhost.len() < 2 => {
            administrator(who)?;
            Ok(import::handle(request, context, vhost.first().copied()))
        }
        (Verb::Put | Verb::Delete, ["operator-policies", _, _]) => {
            administrator(who)?;
            Ok(policies::handle(request, context, path))
        }
        (Verb::Put | Verb::Delete, ["policies", vhost, _]) => {
            policymaker(context, who, vhost)?;
            Ok(policies::handle(request, context, path))
        }
        (Verb::Put | Verb::Delete, ["parameters", _, vhost, _]) => {
            policymaker(context, who, vhost)?;
            Ok(parameters::handle(request, context, path, Some(&who.name)))
        }
        (Verb::Put | Verb::Delete, ["global-parameters", _]) => {
            is_policymaker(who)?;
            Ok(parameters::handle(request, context, path, Some(&who.name)))
        }
        (Verb::Delete, ["shovels", "vhost", vhost, name, restart @ ..])
            if matches!(restart, [] | ["restart"]) =>
        {
            policymaker(context, who, vhost)?;
            Ok(parameters::shovel(context, vhost, name, !restart.is_empty()))
        }
        (Verb::Post, ["leveret", "bridges", bridge, order]) => {
            administrator(who)?;
            Ok(parameters::order_bridge(context, bridge, order))
        }
        (Verb::Delete, ["connections", name]) => api::close_named(request, context, who.own(), name),
        (_, ["queues" | "exchanges" | "bindings", vhost, ..]) => {
            may_enter(context, who, vhost)?;
            let done = actions::handle(request, context, &who.name, path);
            Ok(done.unwrap_or_else(|| not_taken(request, context, who, path)))
        }
        _ => Err(not_taken(request, context, who, path)),
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
        ["users", user] => broker.users().all(|view| view.name != *user),
        ["vhosts", vhost] => broker.vhosts().all(|view| view.name != *vhost),
        ["permissions", vhost, user] => !broker.has_permission(user, vhost),
        ["topic-permissions", vhost, user] => {
            broker.topic_permissions().all(|view| (view.vhost, view.user) != (*vhost, *user))
        }
        _ => false,
    }
}

/// What a method is told that a path does not take.
#[cold]
fn not_taken(request: &Request<'_>, context: &RequestContext<'_>, who: &Who, path: &[&str]) -> Answer {
    match show(request, context, who, path) {
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

fn bindings(
    request: &Request<'_>,
    context: &RequestContext<'_>,
    who: &Who,
    vhost: &str,
    ends: Between<'_>,
) -> Allowed {
    may_see(context, who, vhost)?;
    Ok(api::list_kind("bindings", request, between(who, vhost, ends)))
}

fn monitor(who: &Who) -> Result<(), Answer> {
    if who.is_monitor { Ok(()) } else { Err(unauthorized("Not monitor user")) }
}

fn administrator(who: &Who) -> Result<(), Answer> {
    if who.is_administrator { Ok(()) } else { Err(unauthorized("Not administrator user")) }
}

/// Whether a user may change the policies of a virtual host.
fn policymaker(context: &RequestContext<'_>, who: &Who, vhost: &str) -> Result<(), Answer> {
    exists(context, vhost)?;
    let is_in = who.is_administrator || context.broker.has_permission(&who.name, vhost);
    if is_in { is_policymaker(who) } else { Err(unauthorized("User not authorised to access object")) }
}

fn is_policymaker(who: &Who) -> Result<(), Answer> {
    match who.is_administrator || who.tags.split(',').any(|tag| tag == "policymaker") {
        true => Ok(()),
        false => Err(unauthorized("User not authorised to access object")),
    }
}

/// Whether a user may look into a virtual host.
fn may_see(context: &RequestContext<'_>, who: &Who, vhost: &str) -> Result<(), Answer> {
    if who.is_monitor { exists(context, vhost) } else { may_enter(context, who, vhost) }
}

/// Whether a user has permissions in a virtual host.
fn may_enter(context: &RequestContext<'_>, who: &Who, vhost: &str) -> Result<(), Answer> {
    exists(context, vhost)?;
    if context.broker.has_permission(&who.name, vhost) {
        return Ok(());
    }
    Err(unauthorized("User not authorised to access virtual host"))
}

fn exists(context: &RequestContext<'_>, vhost: &str) -> Result<(), Answer> {
    if context.broker.vhosts().any(|view| view.name == vhost) { Ok(()) } else { Err(not_found("Not Found")) }
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
    let (process, seen) = (context.process, who.filter(None));
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
    let queues = (0..broker.queue_places()).filter_map(|at| broker.queue_at(at));
    let seen = queues.filter(|queue| who.is_monitor || broker.has_permission(&who.name, queue.vhost));
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
