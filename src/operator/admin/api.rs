//! What each request means. Paths are those of RabbitMQ's management API where it has them; what only the
//! command line needs lies under `/api/ctl`.
//!
//! Always true: a change is answered when it is durable; a mistake is answered with what is wrong; nothing
//! here does more than a bounded piece of work.

use std::borrow::Cow;

use crate::broker::{ConnectionView, Context, DeleteIf, Shortage, Waiters, disk_shortage};
use crate::command::ConnectionId;
use crate::error::Fault;

use super::access_columns::{Permissions, TopicPermissions, Users};
use super::answer::{Answer, OUTPUT_BYTES_MAX, bad_request, body, done, not_found, problem, refused};
use super::binding_columns::{Bindings, DefaultBindings};
use super::bridges::{BridgeLinks, Shovels};
use super::columns::{
    Channels, Connections, Consumers, Exchanges, Kind, Queues, Vhosts, parse_connection_pid,
};
use super::filter::Filter;
use super::http::{Request, Status, Verb, decode};
use super::json::{Json, Tables};
use super::listing::{Chosen, Listing, Part, Written, choose, choose_known, is_wanted, looks, row};
use super::ordering::Ordered;
use super::orphan_columns::Orphans;
use super::outage::Outage;
use super::parameter_columns::{GlobalParameters, Parameters};
use super::policy_columns::{OperatorPolicies, Policies};
use super::request_context::{ReadContext, RequestContext};
use super::wear::Wear;
use super::{access, definitions, parameters, policies};

/// The most alarms at once.
const ALARMS_MAX: usize = 12;
/// More than the list of a store's files takes, in bytes.
const HELD_BYTES_MAX: usize = 1 << 20;

/// The longest reason for closing connections.
const REASON_LETTERS_MAX: usize = 100;

/// Answers one request.
pub fn handle(request: &Request<'_>, context: &mut RequestContext<'_>) -> Answer {
    let [api, path @ ..] = request.segments.as_slice() else { return not_found("Not Found") };
    if api != "api" {
        return not_found("Not Found");
    }
    let path: heapless::Vec<&str, 8> = path.iter().map(|segment| &**segment).collect();
    match (request.verb, path.as_slice()) {
        (Verb::Get, ["overview"]) => overview(context),
        (Verb::Get, ["ctl", "environment"]) => environment(context),
        (Verb::Post, ["ctl", "stop"]) => {
            context.orders.stop = true;
            done(Status::NoContent)
        }
        (Verb::Get, ["ctl", "alarms"]) => alarms(context),
        (Verb::Get, ["ctl", "bridges"]) => list::<BridgeLinks>(request, BRIDGE_LINKS),
        (Verb::Post, ["ctl", "bridges", bridge, order]) => parameters::order_bridge(context, bridge, order),
        (Verb::Put, ["ctl", "trace", vhost]) => access::trace(context, vhost, true),
        (Verb::Delete, ["ctl", "trace", vhost]) => access::trace(context, vhost, false),
        (Verb::Get, ["ctl", "orphans"]) => list::<Orphans>(request, ORPHANS),
        (verb @ (Verb::Put | Verb::Delete), ["ctl", "orphans", incarnation, queue @ ..]) => {
            orphan(context, verb, incarnation, queue)
        }
        (Verb::Post, ["ctl", "backup"]) => match &context.files {
            Some(_) => Answer::Hold(context.journal.await_all()),
            None => Answer::Now(Status::Unavailable, problem("unavailable", "there is no store to copy")),
        },
        (Verb::Get, ["ctl", "backup"]) => match &context.files {
            Some(files) if files.is_pinned_for_backup() => done(Status::NoContent),
            _ => not_found("nothing is held still"),
        },
        (Verb::Delete, ["ctl", "backup"]) => {
            if let Some(files) = &mut context.files {
                files.release();
            }
            done(Status::NoContent)
        }
        (Verb::Get, ["definitions"]) => export(),
        (Verb::Post, ["ctl", "import"]) => import(request, context),
        (Verb::Get, ["users"]) => list::<Users>(request, USERS),
        (Verb::Get, ["users", user, "permissions"]) => {
            of_user::<Permissions>(request, context, PERMISSIONS, user)
        }
        (Verb::Get, ["users", user, "topic-permissions"]) => {
            of_user::<TopicPermissions>(request, context, TOPIC_PERMISSIONS, user)
        }
        (Verb::Get, ["vhosts", vhost, "permissions"]) => {
            of_vhost::<Permissions>(request, context, PERMISSIONS, vhost)
        }
        (Verb::Get, ["vhosts", vhost, "topic-permissions"]) => {
            of_vhost::<TopicPermissions>(request, context, TOPIC_PERMISSIONS, vhost)
        }
        (Verb::Get, ["queues", vhost]) => of_vhost::<Queues>(request, context, QUEUES, vhost),
        (Verb::Get, ["queues"]) => list::<Queues>(request, QUEUES),
        (Verb::Get, ["exchanges", vhost]) => of_vhost::<Exchanges>(request, context, EXCHANGES, vhost),
        (Verb::Get, ["exchanges"]) => list::<Exchanges>(request, EXCHANGES),
        (Verb::Get, ["bindings", vhost]) => of_vhost::<Bindings>(request, context, BINDINGS, vhost),
        (Verb::Get, ["bindings"]) => list::<Bindings>(request, BINDINGS),
        (Verb::Get, ["connections"]) => list::<Connections>(request, CONNECTIONS),
        (Verb::Get, ["channels"]) => list::<Channels>(request, CHANNELS),
        (_, ["policies" | "operator-policies", ..]) => policies_of(request, context, &path),
        (_, ["parameters" | "global-parameters" | "shovels", ..]) => parameters_of(request, context, &path),
        (Verb::Get, ["consumers", vhost]) => of_vhost::<Consumers>(request, context, CONSUMERS, vhost),
        (Verb::Get, ["consumers"]) => list::<Consumers>(request, CONSUMERS),
        (Verb::Get, ["vhosts"]) => list::<Vhosts>(request, VHOSTS),
        (Verb::Delete, ["queues", vhost, queue]) => delete_queue(request, context, vhost, queue),
        (Verb::Delete, ["queues", vhost, queue, "contents"]) => {
            let (broker, mut context) = context.broker();
            let purged = broker.operator_purge(&mut context, vhost, queue);
            counted(&context, purged)
        }
        (
            _,
            ["users" | "vhosts" | "permissions" | "topic-permissions" | "vhost-limits" | "user-limits", ..],
        ) => access::handle(request, &path, context),
        (Verb::Post, ["ctl", "confirm-users"]) => access::handle(request, &path, context),
        (Verb::Delete, ["connections", which @ ..]) => close(request, context, which),
        _ => not_found("Not Found"),
    }
}

/// Lists the policies of a virtual host, or changes one.
fn policies_of(request: &Request<'_>, context: &mut RequestContext<'_>, path: &[&str]) -> Answer {
    match (request.verb, path) {
        (Verb::Get, ["policies", vhost]) => of_vhost::<Policies>(request, context, POLICIES, vhost),
        (Verb::Get, [_, vhost]) => of_vhost::<OperatorPolicies>(request, context, OPERATOR_POLICIES, vhost),
        (Verb::Put | Verb::Delete, _) => policies::handle(request, context, path),
        _ => not_found("Not Found"),
    }
}

/// Lists parameters or shovels, or changes one.
fn parameters_of(request: &Request<'_>, context: &mut RequestContext<'_>, path: &[&str]) -> Answer {
    match (request.verb, path) {
        (Verb::Get, ["parameters", vhost]) => of_vhost::<Parameters>(request, context, PARAMETERS, vhost),
        (Verb::Get, ["global-parameters"]) => list::<GlobalParameters>(request, GLOBAL_PARAMETERS),
        (Verb::Get, ["shovels"]) => list::<Shovels>(request, SHOVELS),
        (Verb::Put | Verb::Delete, ["parameters" | "global-parameters", ..]) => {
            parameters::handle(request, context, path, None)
        }
        (Verb::Delete, ["shovels", "vhost", vhost, name, restart @ ..]) => {
            parameters::shovel(context, vhost, name, *restart == ["restart"])
        }
        _ => not_found("Not Found"),
    }
}

const fn part<K: Kind>(around: (&'static str, &'static str)) -> Part {
    Part { around, places: K::places, row: row::<K>, looks: Some(looks::<K>()) }
}

const WHOLE: (&str, &str) = ("[", "\n]\n");
const QUEUES: &[Part] = &[part::<Queues>(WHOLE)];
const EXCHANGES: &[Part] = &[part::<Exchanges>(WHOLE)];
const BINDINGS: &[Part] = &[part::<DefaultBindings>(("[", "")), part::<Bindings>(("", "\n]\n"))];
const CONNECTIONS: &[Part] = &[part::<Connections>(WHOLE)];
const CHANNELS: &[Part] = &[part::<Channels>(WHOLE)];
const CONSUMERS: &[Part] = &[part::<Consumers>(WHOLE)];
const ORPHANS: &[Part] = &[part::<Orphans>(WHOLE)];
const BRIDGE_LINKS: &[Part] = &[part::<BridgeLinks>(WHOLE)];
const SHOVELS: &[Part] = &[part::<Shovels>(WHOLE)];
const VHOSTS: &[Part] = &[part::<Vhosts>(WHOLE)];
const USERS: &[Part] = &[part::<Users>(WHOLE)];
const OUTSIDERS: &[Part] = &[Part { around: WHOLE, places: Users::places, row: outsider, looks: None }];
const PERMISSIONS: &[Part] = &[part::<Permissions>(WHOLE)];
const POLICIES: &[Part] = &[part::<Policies>(WHOLE)];
const PARAMETERS: &[Part] = &[part::<Parameters>(WHOLE)];
const GLOBAL_PARAMETERS: &[Part] = &[part::<GlobalParameters>(WHOLE)];
const OPERATOR_POLICIES: &[Part] = &[part::<OperatorPolicies>(WHOLE)];
const TOPIC_PERMISSIONS: &[Part] = &[part::<TopicPermissions>(WHOLE)];

fn list<K: Kind>(request: &Request<'_>, parts: &'static [Part]) -> Answer {
    filtered::<K>(request, parts, Filter::default())
}

/// Rows of a user who must exist.
fn of_user<K: Kind>(
    request: &Request<'_>,
    context: &RequestContext<'_>,
    parts: &'static [Part],
    user: &str,
) -> Answer {
    if !context.broker.access().users().any(|view| view.name == user) {
        let why = format!("User \"{user}\" does not exist");
        return Answer::Now(Status::NotFound, problem("no_such_user", &why));
    }
    filtered::<K>(request, parts, Filter { user: Some(user.into()), ..Filter::default() })
}

/// Rows of a virtual host that must exist.
fn of_vhost<K: Kind>(
    request: &Request<'_>,
    context: &RequestContext<'_>,
    parts: &'static [Part],
    vhost: &str,
) -> Answer {
    if !context.broker.access().vhosts().any(|view| view.name == vhost) {
        let why = format!("Virtual host '{vhost}' does not exist");
        return Answer::Now(Status::NotFound, problem("no_such_vhost", &why));
    }
    filtered::<K>(request, parts, Filter { vhost: Some(vhost.into()), ..Filter::default() })
}

/// All rows of a kind that somebody may see, in the order and on the page that are asked for.
pub(super) fn list_kind(kind: &str, request: &Request<'_>, filter: Filter) -> Answer {
    let columns = request.asked("columns").and_then(decode);
    let columns = columns.as_deref();
    let (parts, chosen) = match kind {
        "queues" => (QUEUES, choose_known::<Queues>(columns)),
        "exchanges" => (EXCHANGES, choose_known::<Exchanges>(columns)),
        "bindings" => (BINDINGS, choose_known::<Bindings>(columns)),
        "connections" => (CONNECTIONS, choose_known::<Connections>(columns)),
        "channels" => (CHANNELS, choose_known::<Channels>(columns)),
        "consumers" => (CONSUMERS, choose_known::<Consumers>(columns)),
        "vhosts" => (VHOSTS, choose_known::<Vhosts>(columns)),
        "users" => (USERS, choose_known::<Users>(columns)),
        "permissions" => (PERMISSIONS, choose_known::<Permissions>(columns)),
        "topic-permissions" => (TOPIC_PERMISSIONS, choose_known::<TopicPermissions>(columns)),
        "policies" => (POLICIES, choose_known::<Policies>(columns)),
        "operator-policies" => (OPERATOR_POLICIES, choose_known::<OperatorPolicies>(columns)),
        "parameters" => (PARAMETERS, choose_known::<Parameters>(columns)),
        "global-parameters" => (GLOBAL_PARAMETERS, choose_known::<GlobalParameters>(columns)),
        "bridges" => (BRIDGE_LINKS, choose_known::<BridgeLinks>(columns)),
        "shovels" => (SHOVELS, choose_known::<Shovels>(columns)),
        _ => return not_found("Not Found"),
    };
    let has_pages = matches!(kind, "queues" | "exchanges" | "connections" | "channels" | "vhosts");
    match Ordered::asked(request, has_pages) {
        Ok(ordered) => Answer::List(Box::new(Listing::new(parts, filter, chosen).ordered(ordered))),
        Err((status, error, why)) => Answer::Now(status, problem(error, &why)),
    }
}

/// The one of a kind that has this name.
pub(super) fn one(kind: &str, context: &RequestContext<'_>, filter: Filter, name: &str) -> Answer {
    match kind {
        "queues" => one_of::<Queues>(context, filter, name),
        "exchanges" => one_of::<Exchanges>(context, filter, name),
        "bindings" => {
            let own = one_of::<DefaultBindings>(context, filter.clone(), name);
            if matches!(own, Answer::Now(Status::Ok, _)) {
                own
            } else {
                one_of::<Bindings>(context, filter, name)
            }
        }
        "connections" => one_of::<Connections>(context, filter, name),
        "channels" => one_of::<Channels>(context, filter, name),
        "permissions" => one_of::<Permissions>(context, filter, name),
        "vhosts" => one_of::<Vhosts>(context, filter, name),
        "users" => one_of::<Users>(context, filter, name),
        "policies" => one_of::<Policies>(context, filter, name),
        "operator-policies" => one_of::<OperatorPolicies>(context, filter, name),
        "parameters" => one_of::<Parameters>(context, filter, name),
        "global-parameters" => one_of::<GlobalParameters>(context, filter, name),
        "shovels" => one_of::<Shovels>(context, filter, name),
        _ => not_found("Not Found"),
    }
}

fn one_of<K: Kind>(context: &RequestContext<'_>, filter: Filter, name: &str) -> Answer {
    let Ok(mut columns) = choose::<K>(None) else { return not_found("Not Found") };
    let of_one = K::COLUMNS.iter().enumerate().filter(|(_, (name, _))| K::OF_ONE.contains(name));
    columns.extend(of_one.map(|(at, _)| at as u8));
    let (context, listing) = (context.context(), Listing::new(&[], filter, columns));
    for place in 0..K::places(context) {
        if K::at(context, place).and_then(|view| K::name(&view)).is_none_or(|own| own != name) {
            continue;
        }
        for tables in [Tables::Plain, Tables::LeftOut] {
            let mut out = Vec::new();
            let json = Json::new(&mut out, OUTPUT_BYTES_MAX / 2);
            match row::<K>(&listing, context, place, json, tables) {
                Written::Yes => return Answer::Now(Status::Ok, out),
                // One of another virtual host.
                Written::Nothing => break,
                Written::Full => {}
            }
        }
    }
    not_found("Not Found")
}

fn filtered<K: Kind>(request: &Request<'_>, parts: &'static [Part], filter: Filter) -> Answer {
    match choose::<K>(request.asked("columns")) {
        Ok(columns) => Answer::List(Box::new(Listing::new(parts, filter, columns))),
        Err(name) => bad_request(&format!("Info key(s) {name} are not supported")),
    }
}

fn overview(context: &RequestContext<'_>) -> Answer {
    let process = context.process;
    let gauges = context.broker.gauges();
    let vhosts = context.broker.access().vhosts().count();
    // With those that are there from the start, as they are listed.
    let queues = (0..context.broker.views().queue_places())
        .filter_map(|at| context.broker.views().queue_at(at))
        .count();
    let exchanges = (0..context.broker.views().exchange_places())
        .filter_map(|at| context.broker.views().exchange_at(at))
        .count();
    Answer::Now(
        Status::Ok,
        body(|json| {
            let mut is_first = true;
            json.raw(b"{");
            for (name, text) in [
                ("product_name", process.product.0.as_str()),
                ("product_version", process.product.1.as_str()),
                ("leveret_version", env!("CARGO_PKG_VERSION")),
                ("node", &process.node),
                ("data_dir", &process.data_dir),
                ("configuration", &process.configuration),
            ] {
                json.name(name, &mut is_first);
                json.text(text);
            }
            let totals = [
                ("connections", gauges.connections),
                ("channels", gauges.channels),
                ("consumers", gauges.consumers),
                ("queues", queues),
                ("exchanges", exchanges),
                ("bindings", gauges.bindings),
                ("vhosts", vhosts),
            ];
            for (name, number) in totals {
                json.name(name, &mut is_first);
                json.number(number as u64);
            }
            let process_numbers = [
                ("uptime_ms", process.uptime_ms),
                ("memory_limit", process.memory_limit_bytes),
                ("pid", u64::from(std::process::id())),
                ("handshakes_evicted", process.handshakes_evicted),
                ("newcomers_dropped", process.newcomers_dropped),
            ];
            for (name, number) in process_numbers {
                json.name(name, &mut is_first);
                json.number(number);
            }
            if let Some(wear) = Wear::of(process) {
                json.name("wear", &mut is_first);
                json.shown(wear);
            }
            json.name("listeners", &mut is_first);
            json.texts(process.listeners.iter().map(String::as_str));
            json.name("alarms", &mut is_first);
            json.texts(which_alarms(context));
            pools(json, context, &mut is_first);
            json.raw(b"}");
        }),
    )
}

/// Messages, the disk, and every pool with what is taken of it.
fn pools(json: &mut Json<'_>, context: &RequestContext<'_>, is_first: &mut bool) {
    let queues =
        (0..context.broker.views().queue_places()).filter_map(|place| context.broker.views().queue_at(place));
    let (ready, unacknowledged) = queues.fold((0, 0), |(ready, unacknowledged), queue| {
        (ready + u64::from(queue.messages_ready), unacknowledged + u64::from(queue.messages_unacknowledged))
    });
    let usable = context.journal.disk_bytes_max();
    for (name, number) in [
        ("messages_ready", ready),
        ("messages_unacknowledged", unacknowledged),
        ("disk_limit", context.process.disk_limit_bytes),
        ("disk_usable", usable),
        ("disk_used", usable.saturating_sub(context.journal.disk_room())),
    ] {
        json.name(name, is_first);
        json.number(number);
    }
    json.name("pools", is_first);
    let mut separator: &[u8] = b"{";
    for pool in context.broker.views().pools(context.messages) {
        json.raw(separator);
        separator = b",";
        json.text(pool.key);
        json.shown_raw(format_args!(":[{},{}]", pool.used, pool.max));
    }
    json.raw(b"}");
}

fn environment(context: &RequestContext<'_>) -> Answer {
    Answer::Now(Status::Ok, body(|json| json.text(&context.process.environment)))
}

fn alarms(context: &RequestContext<'_>) -> Answer {
    Answer::Now(Status::Ok, body(|json| json.texts(which_alarms(context))))
}

/// What an operator should see to, in words that begin with a name for it.
pub(super) fn which_alarms(context: &RequestContext<'_>) -> heapless::Vec<Cow<'static, str>, ALARMS_MAX> {
    let journal = &*context.journal;
    let is_writable = journal.mode() == crate::journal::Mode::On;
    let has_doubt = context.broker.access().access_doubt().is_some();
    let states = [
        (
            has_doubt && is_writable,
            "access: the store cannot vouch for its users and permissions, so nobody is let in; mend them, \
             then confirm_users",
        ),
        (
            has_doubt && !is_writable,
            "access: the store cannot vouch for its users and permissions, so nobody is let in; see to the \
             disk and start again",
        ),
        (
            context.process.is_store_damaged,
            "damage: parts of the store are missing or cannot be read; the log says which, and \
             `leveret inspect` with the data directory",
        ),
        (
            context.broker.recovery().has_orphans(),
            "orphans: there are messages whose queue is lost; list_orphans shows them, adopt_orphan gives \
             them a queue, delete_orphan deletes them",
        ),
        (
            context.broker.recovery().has_rebuilt(),
            "rebuilt: what some queues were declared with is lost, and they are plain durable ones; the log \
             says which; whoever declares them again ends this",
        ),
        (
            context.process.is_tls_shut,
            "tls: the files of [tls] cannot be used, so nobody comes in by TLS; the log says why",
        ),
    ];
    let waiters = context.process.waiters;
    let is_awaited = |shortage| waiters.is_some_and(|waiters| waiters.shortage == shortage);
    let expected = shortage_of_store(context).filter(|shortage| !is_awaited(*shortage));
    let shortages = expected.map(Waiters::expected).into_iter().chain(waiters);
    let told = shortages.map(|waiters| {
        let pools = (journal, &*context.messages);
        Cow::from(
            context.broker.views().explain(pools, waiters, context.process.disk_limit_bytes).to_string(),
        )
    });
    let held = states.into_iter().filter(|(holds, _)| *holds).map(|(_, words)| Cow::from(words));
    held.chain(told)
        .chain(Wear::alarm(context.process))
        .chain(parked(context))
        .chain(kept_there(context))
        .chain(spent(context))
        .chain(Outage::alarm(context.bridges, context.broker))
        .collect()
}

/// Why nothing more is written, while nothing is, whether somebody waits or not.
fn shortage_of_store(context: &RequestContext<'_>) -> Option<Shortage> {
    let journal = &*context.journal;
    let is_writable = journal.mode() == crate::journal::Mode::On;
    let is_short = !is_writable || !journal.has_room_to_define() || journal.is_file_system_full();
    is_short.then(|| disk_shortage(journal))
}

/// What bridges have set aside and nobody has taken yet, whoever put it there.
fn parked(context: &RequestContext<'_>) -> Option<Cow<'static, str>> {
    let bridges = context.bridges;
    let mut queues = Vec::new();
    let mut count = 0;
    for link in (0..bridges.places()).filter_map(|place| bridges.at(place)) {
        let depth = link.parked(context.broker);
        let queue = link.parked_queue.map(|queue| (link.vhost, queue));
        if let Some(queue) = queue.filter(|queue| depth > 0 && !queues.contains(queue)) {
            queues.push(queue);
            count += depth;
        }
    }
    let (_, first) = queues.first()?;
    let others = match queues.len() - 1 {
        0 => String::new(),
        others => format!(" and {others} more of such queues"),
    };
    Some(Cow::from(format!(
        "parked: messages that were refused and set aside by bridges: {count}, in {first}{others}; \
         their header x-parked-cause says why, retry_parked with the bridge's name sends them again"
    )))
}

/// Messages that a bridge cannot bring here, whatever is done, and that wait there.
fn kept_there(context: &RequestContext<'_>) -> Option<Cow<'static, str>> {
    let links = (0..context.bridges.places()).filter_map(|place| context.bridges.at(place));
    let mut holding = links.filter(|link| link.held > 0);
    let first = holding.next()?;
    let (count, name) = (first.held + holding.map(|link| link.held).sum::<u64>(), first.bridge);
    Some(Cow::from(format!(
        "held: {count} messages are too large for this broker, and wait in their queues at the upstream of \
         bridge {name}; raise message_size_max, take them out there, or say refused = \"reject\" of the rule"
    )))
}

/// Bridges that hold rules back until the next day.
fn spent(context: &RequestContext<'_>) -> Option<Cow<'static, str>> {
    let links = (0..context.bridges.places()).filter_map(|place| context.bridges.at(place));
    let mut names: Vec<&str> = links.filter(|link| link.is_day_spent).map(|link| link.bridge).collect();
    names.dedup();
    let first = names.first()?;
    let others = match names.len() - 1 {
        0 => String::new(),
        others => format!(", and so have {others} more"),
    };
    Some(Cow::from(format!(
        "budget: bridge {first} has used its bytes of the day (day_bytes_max){others}: only urgent rules go \
         on until the next day"
    )))
}

/// Whether the disk is full: not when one queue, or one virtual host, has its share of it.
pub(super) fn is_disk_full(context: &RequestContext<'_>) -> bool {
    shortage_of_store(context).is_some_and(Shortage::is_of_disk)
}

/// Why nothing more is written, as the alarm says it.
pub(super) fn store_alarm(context: &RequestContext<'_>) -> Option<String> {
    let shortage = shortage_of_store(context)?;
    let found = context.process.waiters.filter(|waiters| waiters.shortage == shortage);
    let waiters = found.unwrap_or(Waiters::expected(shortage));
    let pools = (&*context.journal, &*context.messages);
    Some(context.broker.views().explain(pools, waiters, context.process.disk_limit_bytes).to_string())
}

/// What the store consists of now; `None`: not now.
pub(super) fn held(context: &mut RequestContext<'_>) -> Option<Answer> {
    let files = context.files.as_mut()?.pin_for_backup()?;
    let mut out = Vec::new();
    let mut json = Json::new(&mut out, HELD_BYTES_MAX);
    json.raw(b"{\"data_dir\":");
    json.text(&context.process.data_dir);
    json.raw(b",\"files\":[");
    let mut is_first = true;
    for (slot, bytes, length) in files {
        json.comma(&mut is_first);
        json.shown_raw(format_args!("[{slot},{bytes},{length}]"));
    }
    json.raw(b"]}");
    let is_full = json.is_full();
    debug_assert!(!is_full, "a store has not that many files");
    Some(Answer::Now(Status::Ok, out))
}

/// Makes what the lines say: each the name of a list in a file of definitions, a space, one of its things.
fn import(request: &Request<'_>, context: &mut RequestContext<'_>) -> Answer {
    let body = body(|json| {
        json.raw(b"[");
        let mut is_first = true;
        let mut tell = |number: usize, kind: &str, why: &str| {
            json.comma(&mut is_first);
            json.raw(b"[");
            json.number(number as u64);
            json.raw(b",");
            json.text(kind);
            json.raw(b",");
            json.text(why);
            json.raw(b"]");
        };
        for (number, line) in request.body.split(|byte| *byte == b'\n').enumerate() {
            let Some(at) = line.iter().position(|byte| *byte == b' ') else { continue };
            let section = String::from_utf8_lossy(&line[..at]);
            let text = core::str::from_utf8(&line[at..]).map_err(|error| error.to_string());
            let parsed =
                text.and_then(|text| definitions::parse(&section, text).map_err(|why| why.to_string()));
            let applied = parsed.and_then(|definitions::Parsed { item, unknown_fields }| {
                let told = unknown_fields.iter().map(|name| definitions::unknown_field(name));
                told.for_each(|why| tell(number, "remark", &why));
                let (broker, mut context) = context.broker();
                definitions::apply(broker, &mut context, &item)
            });
            match applied {
                Ok(applied) => applied.remark().iter().for_each(|remark| tell(number, "remark", remark)),
                Err(why) => tell(number, "error", &why),
            }
        }
        json.raw(b"]");
    });
    Answer::Changed(Status::Ok, body)
}

fn delete_queue(request: &Request<'_>, context: &mut RequestContext<'_>, vhost: &str, queue: &str) -> Answer {
    let only = DeleteIf { unused: request.says("if-unused"), empty: request.says("if-empty") };
    let (broker, mut context) = context.broker();
    let deleted = broker.operator_delete_queue(&mut context, vhost, queue, only);
    counted(&context, deleted)
}

/// Gives an orphan a queue, or deletes it.
fn orphan(context: &mut RequestContext<'_>, verb: Verb, incarnation: &str, queue: &[&str]) -> Answer {
    let Ok(incarnation) = incarnation.parse() else {
        return bad_request(&format!("'{incarnation}' is no incarnation: see list_orphans"));
    };
    let (broker, mut context) = context.broker();
    let done = match (verb, queue) {
        (Verb::Put, [vhost, queue]) => broker.operator_adopt_orphan(&mut context, incarnation, vhost, queue),
        (Verb::Delete, []) => broker.operator_delete_orphan(&mut context, incarnation),
        _ => return not_found("Not Found"),
    };
    counted(&context, done)
}

fn counted(context: &Context<'_>, outcome: Result<impl Into<i128>, Fault>) -> Answer {
    match outcome {
        Ok(count) => {
            let body = body(|json| {
                json.raw(b"{\"messages\":");
                json.number(count);
                json.raw(b"}");
            });
            Answer::Durable(context.awaited(), Status::Ok, body)
        }
        Err(fault) => refused(&fault),
    }
}

fn close_one(request: &Request<'_>, context: &mut RequestContext<'_>, pid: &str) -> Answer {
    let Some((number, connection)) = parse_connection_pid(pid) else {
        return bad_request(&format!("{{:invalid_pid_syntax, \"{pid}\"}}"));
    };
    if context.sockets.at(connection).is_some_and(|socket| socket.number == number) {
        context.broker.force_close(connection, &reason(request, "Closed via leveretctl"));
    }
    done(Status::NoContent)
}

/// Everything that is defined.
pub(super) fn export() -> Answer {
    Answer::List(Box::new(Listing::whole(definitions::EXPORT)))
}

/// All definitions of one virtual host.
pub(super) fn export_of(vhost: &str) -> Answer {
    let filter = Filter { vhost: Some(vhost.into()), ..Filter::default() };
    Answer::List(Box::new(Listing::new(definitions::VHOST_EXPORT, filter, Chosen::new())))
}

/// Users who may enter no virtual host.
pub(super) fn users_without_permissions() -> Answer {
    let columns = choose_known::<Users>(None);
    Answer::List(Box::new(Listing::new(OUTSIDERS, Filter::default(), columns)))
}

fn outsider(
    listing: &Listing,
    context: ReadContext<'_>,
    place: usize,
    json: Json<'_>,
    tables: Tables,
) -> Written {
    let Some(view) = Users::at(context, place) else { return Written::Nothing };
    match context.broker.access().permissions().any(|permission| permission.user == view.name) {
        true => Written::Nothing,
        false => row::<Users>(listing, context, place, json, tables),
    }
}

/// Closes the connection of this name, if it is one of those that somebody may see.
///
/// # Errors
/// There is none.
pub(super) fn close_named(
    request: &Request<'_>,
    context: &mut RequestContext<'_>,
    filter: Filter,
    name: &str,
) -> Result<Answer, Answer> {
    let seen = context.context();
    let place = (0..Connections::places(seen)).find(|place| {
        Connections::at(seen, *place).is_some_and(|view| {
            Connections::name(&view).is_some_and(|own| own == name)
                && is_wanted::<Connections>(&filter, seen, &view)
        })
    });
    let Some(place) = place else { return Err(not_found("Not Found")) };
    context
        .broker
        .force_close(ConnectionId::from_index(place), &reason(request, "Closed via the management API"));
    Ok(done(Status::NoContent))
}

/// Closes one connection, or all that are meant.
fn close(request: &Request<'_>, context: &mut RequestContext<'_>, which: &[&str]) -> Answer {
    match which {
        [] => close_all(request, context, &|_| true),
        ["vhost", vhost] => close_all(request, context, &|view| view.vhost == *vhost),
        ["username", user] => close_all(request, context, &|view| view.user == *user),
        [pid] => close_one(request, context, pid),
        _ => not_found("Not Found"),
    }
}

fn close_all(
    request: &Request<'_>,
    context: &mut RequestContext<'_>,
    is_meant: &dyn Fn(&ConnectionView<'_>) -> bool,
) -> Answer {
    let reason = reason(request, "Closed via leveretctl");
    let mut closed = 0_u32;
    for connection in (0..context.sockets.places()).map(ConnectionId::from_index) {
        let view = context.broker.views().connection_view(connection);
        // The links of bridges are the operator's own.
        let is_client = context.sockets.at(connection).is_some();
        if is_client && view.as_ref().is_some_and(is_meant) {
            context.broker.force_close(connection, &reason);
            closed += 1;
        }
    }
    Answer::Now(
        Status::Ok,
        body(|json| {
            json.raw(b"{\"closed\":");
            json.number(closed);
            json.raw(b"}");
        }),
    )
}

fn reason(request: &Request<'_>, unless_said: &str) -> String {
    let said = request.asked("reason").and_then(decode).unwrap_or(unless_said.into());
    said.chars().filter(|letter| !letter.is_control()).take(REASON_LETTERS_MAX).collect()
}
