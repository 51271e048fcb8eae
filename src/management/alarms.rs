//! Alarms for the operator, and RabbitMQ's health checks for probes.
//!
//! # Invariants
//! - An alarm is a name, a colon and a sentence that says what to do. It lasts as long as its reason.
//! - A health check without a meaning on one node passes, as it does on a single RabbitMQ.
//! - An unknown health check is not found, so that a probe with a mistyped path does not pass.

use std::borrow::Cow;

use leveret_queues::{SHORTAGE_KINDS, Shortage, WaitingPublishers, disk_shortage};

use super::bridges::Outage;
use super::http::Status;
use super::json::Json;
use super::management::text_object;
use super::node::Wear;
use super::request::RequestContext;
use super::request::{Answer, Call, bad_request, body, refusal};

/// The longest time that publishers may wait for space that compaction can free, before it is an alarm, in
/// milliseconds.
const COMPACTION_MS: u64 = 10_000;
/// Number of states of the broker that are alarms.
const STATES: usize = 8;
/// The most alarms at the same time: damage, the states, the shortage of the store and that of moved messages, those of
/// waiting publishers, and eleven others (wear, `parked`, `held`, `rule`, `budget`, `outage`, two of `sessions`, `connections`,
/// `subscriptions`, `retained`).
const ALARMS_MAX: usize = 1 + STATES + 2 + SHORTAGE_KINDS + 11;

/// The names of all alarms, for metrics.
pub(super) const NAMES: [&str; 21] = [
    "access",
    "damage",
    "orphans",
    "rebuilt",
    "limits",
    "tls",
    "definitions",
    "memory",
    "room",
    "store",
    "disk",
    "wear",
    "parked",
    "held",
    "rule",
    "budget",
    "outage",
    "sessions",
    "connections",
    "subscriptions",
    "retained",
];

/// Lists the alarms.
pub(super) fn show(_: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    Answer::Now(Status::Ok, body(|json| json.texts(which_alarms(context))))
}

/// Returns the texts of the alarms. Each begins with the alarm's name.
pub(super) fn which_alarms(context: &RequestContext<'_>) -> heapless::Vec<Cow<'static, str>, ALARMS_MAX> {
    let pending_writes = &*context.pending_writes;
    let waiters =
        context.process.waiters.iter().copied().filter(|waiters| !ends_with_compaction(context, waiters));
    let is_awaited = |shortage| waiters.clone().any(|waiters| waiters.shortage == shortage);
    let expected = shortage_of_store(context).filter(|shortage| !is_awaited(*shortage));
    let moved = context.broker.views().shortage_for_moved(pending_writes, context.messages);
    let moved = moved.filter(|shortage| !is_awaited(*shortage));
    let shortages = expected.into_iter().chain(moved).map(WaitingPublishers::none_for).chain(waiters.clone());
    let awaited_shortages = shortages.map(|waiters| {
        let views = context.broker.views();
        let facts = context.process.disk_facts();
        Cow::from(views.explain(pending_writes, context.messages, waiters, facts).to_string())
    });
    let held = states(context).into_iter().filter(|(holds, _)| *holds).map(|(_, words)| Cow::from(words));
    let damage = damage(context);
    damage
        .into_iter()
        .chain(held)
        .chain(awaited_shortages)
        .chain(Wear::alarm(context.process))
        .chain(parked(context))
        .chain(kept_upstream(context))
        .chain(held_rules(context))
        .chain(over_budget(context))
        .chain(Outage::alarm(context.bridges, context.broker))
        .chain(sessions(context))
        .chain(slow_client(context))
        .chain(connections(context))
        .chain(subscriptions(context))
        .chain(retained(context))
        .collect()
}

/// Returns the alarms that are states of the broker, and whether each is in effect.
fn states(context: &RequestContext<'_>) -> [(bool, &'static str); STATES] {
    let is_writable = context.pending_writes.mode() == leveret_storage::Mode::On;
    let has_doubt = context.broker.access().doubtful_access_reason().is_some();
    [
        (
            has_doubt && is_writable,
            "access: users and permissions in the store may be wrong, so all logins are refused; correct them, \
             then confirm_users",
        ),
        (
            has_doubt && !is_writable,
            "access: users and permissions in the store may be wrong, so all logins are refused; repair the disk \
             and restart the broker",
        ),
        (
            context.process.has_refused_reads,
            "damage: parts of the store could not be read from the disk since the start; the log names the \
             queues; check the disk",
        ),
        (
            context.broker.recovery().has_orphans(),
            "orphans: there are messages without a queue, because its definition is lost; see list_orphans, \
             adopt_orphan and delete_orphan",
        ),
        (
            context.broker.recovery().has_rebuilt(),
            "rebuilt: the arguments of some queues are lost, so they are durable classic queues without \
             arguments; the log names them; declare them again to end this alarm",
        ),
        (
            context.broker.recovery().beyond_limits() > 0,
            "limits: the store has more definitions or messages than this configuration allows; the rest is kept \
             but not served; the log of the start names it; raise the limits or memory_limit, or use a larger \
             profile, and restart the broker",
        ),
        (
            context.process.is_tls_unavailable,
            "tls: the files of [tls] cannot be used, so TLS connections are refused; the log has the reason",
        ),
        (
            context.process.has_unread_definitions,
            "definitions: the file of load_definitions is missing or damaged, so its definitions were not applied \
             at this start; the log has the reason; correct the file and restart the broker",
        ),
    ]
}

/// Returns the alarm about parts of the store that could not be read and that no operator has acknowledged.
fn damage(context: &RequestContext<'_>) -> Option<Cow<'static, str>> {
    let damage = context.broker.recovery().damage();
    let first = damage.lines().first().filter(|_| damage.is_alarm())?;
    let others = match damage.count() - 1 {
        0 => String::new(),
        1 => "; and 1 more".to_string(),
        others => format!("; and {others} more"),
    };
    Some(Cow::from(format!(
        "damage: parts of the store could not be read: {first}{others}; `leveret inspect` of the data directory \
         lists all; acknowledge_damage ends this alarm"
    )))
}

/// Returns the alarm about MQTT clients that are refused because too many sessions are kept.
fn sessions(context: &RequestContext<'_>) -> Option<Cow<'static, str>> {
    let limit = context.broker.views().refusing_session_limit()?;
    Some(Cow::from(format!(
        "sessions: {limit} MQTT sessions are kept, as many as memory_limit allows, so clients with new ones are refused; \
         delete those of clients that do not come back (list_mqtt_sessions, delete_mqtt_session), lower \
         mqtt_session_expiry_max, or raise memory_limit"
    )))
}

/// Returns the alarm about an MQTT client that does not keep up, and whose session therefore drops messages.
fn slow_client(context: &RequestContext<'_>) -> Option<Cow<'static, str>> {
    let (session, count) = context.broker.views().dropping_session()?;
    let others = match count - 1 {
        0 => String::new(),
        others => format!(", like {others} more"),
    };
    Some(Cow::from(format!(
        "sessions: the MQTT client '{}' (virtual host '{}'){others} takes or acknowledges its messages more slowly than they \
         arrive, and its session has dropped {}; check the client and its network, or let it subscribe to less; the alarm \
         ends when half of the messages that wait are taken, or enough are acknowledged",
        session.client_id.escape_debug(),
        session.vhost.escape_debug(),
        session.messages_dropped
    )))
}

/// Returns the alarm about an MQTT client whose subscriptions are refused.
fn subscriptions(context: &RequestContext<'_>) -> Option<Cow<'static, str>> {
    let (vhost, client_id, count) = context.broker.session_without_subscriptions()?;
    Some(Cow::from(format!(
        "subscriptions: the MQTT client '{}' (virtual host '{}') has {count} subscriptions, and there was no memory for \
         another one; raise memory_limit and restart the broker, or let the client use wildcards",
        client_id.escape_debug(),
        vhost.escape_debug()
    )))
}

/// Returns the alarm about a topic whose retained message could not be updated.
fn retained(context: &RequestContext<'_>) -> Option<Cow<'static, str>> {
    let (vhost, topic, limit) = context.broker.views().refused_retained()?;
    Some(Cow::from(format!(
        "retained: the newest message with RETAIN to '{}' (virtual host '{}') is not retained, and new subscribers get the one \
         before, if there was one: it exceeds {limit}; this alarm ends when a message of the topic is retained, or with \
         delete_retained",
        topic.escape_debug(),
        vhost.escape_debug()
    )))
}

/// Returns the alarm about clients that are refused because too many connections are open.
fn connections(context: &RequestContext<'_>) -> Option<Cow<'static, str>> {
    let (key, limit) = context.process.refusing_connections?;
    if key == "memory_limit" {
        return Some(Cow::from(format!(
            "connections: {limit} connections are open, and memory_limit leaves no memory for more, so further clients are \
             refused; close those that are not needed (list_connections, close_connection), or raise memory_limit and restart \
             the broker"
        )));
    }
    Some(Cow::from(format!(
        "connections: {key} = {limit} connections are open, so further clients are refused; close those that are not needed \
         (list_connections, close_connection), or raise {key} and restart the broker"
    )))
}

/// Returns why nothing can be written, even if no publisher waits.
fn shortage_of_store(context: &RequestContext<'_>) -> Option<Shortage> {
    let pending_writes = &*context.pending_writes;
    let is_writable = pending_writes.mode() == leveret_storage::Mode::On;
    let is_short = !is_writable || !pending_writes.can_define() || pending_writes.is_file_system_full();
    is_short
        .then(|| disk_shortage(pending_writes))
        .filter(|shortage| !compaction_frees_space(context, *shortage))
}

/// Returns whether publishers wait for the disk only until the next compaction.
fn ends_with_compaction(context: &RequestContext<'_>, waiters: &WaitingPublishers) -> bool {
    waiters.for_ms < COMPACTION_MS && compaction_frees_space(context, waiters.shortage)
}

/// Returns whether compaction will free space in the log, because much of it is settled.
fn compaction_frees_space(context: &RequestContext<'_>, shortage: Shortage) -> bool {
    let (store, live_bytes) = (context.process.store, context.broker.views().live_log_bytes());
    let for_ms = waiters_for(context, shortage).map_or(0, |waiters| waiters.for_ms);
    shortage == Shortage::DiskLimit
        && for_ms < COMPACTION_MS
        && is_mostly_settled(store.log_bytes(), live_bytes, store.bytes_max)
}

/// Returns the publishers that wait for this shortage, if most that wait for its kind wait for it.
fn waiters_for(context: &RequestContext<'_>, shortage: Shortage) -> Option<WaitingPublishers> {
    context.process.waiters.iter().copied().find(|waiters| waiters.shortage == shortage)
}

/// Returns whether more than a quarter of the log's maximum size is settled, so that compaction frees space.
const fn is_mostly_settled(log_bytes: u64, live_bytes: u64, bytes_max: u64) -> bool {
    log_bytes.saturating_sub(live_bytes) > bytes_max / 4
}

/// Returns the alarm about messages that bridges parked and that are still in the parking queues, including messages
/// from other publishers.
fn parked(context: &RequestContext<'_>) -> Option<Cow<'static, str>> {
    let bridges = context.bridges;
    let mut queues = Vec::new();
    let mut count = 0;
    for link in (0..bridges.places()).filter_map(|place| bridges.at(place)) {
        let depth = link.parked_messages(context.broker);
        let queue = link.parked_queue.map(|queue| (link.vhost, queue));
        if let Some(queue) = queue.filter(|queue| depth > 0 && !queues.contains(queue)) {
            queues.push(queue);
            count += depth;
        }
    }
    let (_, first) = queues.first()?;
    let others = match queues.len() - 1 {
        0 => String::new(),
        others => format!(" and {others} more queues"),
    };
    Some(Cow::from(format!(
        "parked: bridges have parked {count} refused messages, in {first}{others}; their header x-parked-cause \
         has the reason; retry_parked with the bridge's name sends them again"
    )))
}

/// Returns the alarm about messages that a bridge cannot deliver here and that remain at the upstream.
fn kept_upstream(context: &RequestContext<'_>) -> Option<Cow<'static, str>> {
    let links = (0..context.bridges.places()).filter_map(|place| context.bridges.at(place));
    let mut holding = links.filter(|link| link.held > 0);
    let first = holding.next()?;
    let (count, name) = (first.held + holding.map(|link| link.held).sum::<u64>(), first.bridge);
    Some(Cow::from(format!(
        "held: {count} messages are too large for this broker, and remain in their queues at the upstream of \
         bridge {name}; raise message_size_max, remove them there, or set refused = \"reject\" for the rule"
    )))
}

/// Returns the alarm about rules of bridges that move no messages because of an error, although messages wait.
fn held_rules(context: &RequestContext<'_>) -> Option<Cow<'static, str>> {
    let links = (0..context.bridges.places()).filter_map(|place| context.bridges.at(place));
    let mut held = links.flat_map(|link| {
        let (bridge, vhost, is_forward) = (link.bridge, link.vhost, link.queues.is_some());
        let is_waited_for = move |queue: &str| {
            !is_forward || context.broker.queue_depth(vhost, queue).is_some_and(|depth| depth > 0)
        };
        let held = link.rules.into_iter().filter(move |rule| is_waited_for(rule.queue));
        held.filter_map(move |rule| Some((bridge, rule.error?)))
    });
    let (bridge, error) = held.next()?;
    let others = match held.count() {
        0 => String::new(),
        others => format!(" and {others} more rules"),
    };
    Some(Cow::from(format!(
        "rule: a rule of bridge {bridge}{others} moves no messages ({error}); correct that at the upstream, or \
         change the rule; resume_bridge, or \"Try held rules\" on the web page, tries at once"
    )))
}

/// Returns the alarm about bridges that hold rules back until the next day.
fn over_budget(context: &RequestContext<'_>) -> Option<Cow<'static, str>> {
    let links = (0..context.bridges.places()).filter_map(|place| context.bridges.at(place));
    let mut names: Vec<&str> = links.filter(|link| link.is_day_spent).map(|link| link.bridge).collect();
    names.dedup();
    let first = names.first()?;
    let others = match names.len() - 1 {
        0 => String::new(),
        others => format!(", and so have {others} more"),
    };
    Some(Cow::from(format!(
        "budget: bridge {first} has used its daily bytes (day_bytes_max){others}: only urgent rules continue \
         until the next day"
    )))
}

/// Returns whether the disk is full. A queue or a virtual host that has used up its share does not count.
pub(super) fn is_disk_full(context: &RequestContext<'_>) -> bool {
    shortage_of_store(context).is_some_and(Shortage::is_log_full)
}

/// Returns the text of the alarm about a store that cannot write.
pub(super) fn store_alarm(context: &RequestContext<'_>) -> Option<String> {
    let shortage = shortage_of_store(context)?;
    let waiters = waiters_for(context, shortage).unwrap_or(WaitingPublishers::none_for(shortage));
    let facts = context.process.disk_facts();
    let views = context.broker.views();
    Some(views.explain(context.pending_writes, context.messages, waiters, facts).to_string())
}

pub(super) fn status_ok() -> Answer {
    passed(|_| {})
}

/// Answers that the check passed, with further members.
fn passed(more: impl FnOnce(&mut Json<'_>)) -> Answer {
    let written = body(|json| {
        json.raw(b"{\"status\":\"ok\"");
        more(json);
        json.raw(b"}");
    });
    Answer::Now(Status::Ok, written)
}

/// Checks whether its user could declare the queue `aliveness-test`, publish to it and get a message from it.
/// RabbitMQ does that; here only permissions are checked.
pub(super) fn aliveness(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    let user = call.user.map_or("", |user| &user.name);
    let checked = context.broker.check_use_of_queue(user, call.name("vhost"), "aliveness-test");
    checked.map_or_else(|fault| refusal(&fault), |()| status_ok())
}

/// Answers the old health check of a node. The status is 200 even if the body says that the check failed.
pub(super) fn node(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    match alarms(call, context) {
        Answer::Now(_, body) => Answer::Now(Status::Ok, body),
        answer => answer,
    }
}

/// Checks that the certificates remain valid for a time: a number, and days, weeks, months or years.
pub(super) fn certificates(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    let days: u64 = match call.name("unit") {
        "days" => 1,
        "weeks" => 7,
        "months" => 30,
        "years" => 365,
        _ => return bad_request("the unit must be days, weeks, months or years"),
    };
    let Ok(within) = call.name("within").parse::<u32>() else {
        return bad_request("the time must be a number");
    };
    match context.process.certificates_end {
        Some((end_s, now_s)) if end_s <= now_s.saturating_add(u64::from(within) * days * 86_400) => {
            failed("a certificate of [tls] has expired, or will expire by then: renew it")
        }
        _ if context.process.is_tls_unavailable => failed("the files of [tls] cannot be used"),
        _ => status_ok(),
    }
}

fn failed(reason: &str) -> Answer {
    let body = body(|json| text_object(json, &[("status", "failed"), ("reason", reason)]));
    Answer::Now(Status::Unavailable, body)
}

/// Checks that messages can be written, and that clients can connect.
pub(super) fn alarms(_: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    let alarm = store_alarm(context).map(Cow::from).or_else(|| connections(context));
    alarm.map_or_else(status_ok, |alarm| failed(&alarm))
}

/// Passes a check that has no meaning on one node.
pub(super) fn single_node_check(_: &Call<'_>, _: &RequestContext<'_>) -> Answer {
    passed(|json| json.raw(b",\"reason\":\"single node cluster\""))
}

/// Returns the protocol and the address of each listener. The address ends with a port.
fn listeners<'c>(context: &'c RequestContext<'_>) -> impl Iterator<Item = (&'c str, &'c str)> {
    context.process.open_listeners().filter_map(|text| text.split_once(' '))
}

/// Answers that there is no listener; `write` adds what is missing and what there is.
fn no_listener(write: impl FnOnce(&mut Json<'_>)) -> Answer {
    let text = body(|json| {
        json.raw(b"{\"status\":\"failed\",\"reason\":\"No active listener\"");
        write(json);
        json.raw(b"}");
    });
    Answer::Now(Status::Unavailable, text)
}

/// Checks that there is a listener on a port.
pub(super) fn port(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    match call.name("port").parse::<u16>() {
        Ok(port) if listeners(context).any(|(_, at)| at.ends_with(&format!(":{port}"))) => {
            passed(|json| json.shown_raw(format_args!(",\"port\":{port}")))
        }
        Ok(port) => {
            let ports = listeners(context).filter_map(|(_, at)| at.rsplit_once(':')?.1.parse::<u16>().ok());
            let ports: Vec<u16> = ports.collect();
            no_listener(|json| json.shown_raw(format_args!(",\"missing\":{port},\"ports\":{ports:?}")))
        }
        Err(_) => bad_request("the port is not a number"),
    }
}

/// Checks that there is a listener for a protocol.
pub(super) fn protocol(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    let name = call.name("protocol");
    let protocol = match name {
        "amqp091" | "amqp" => "amqp",
        "amqps" | "amqp/ssl" => "amqp/ssl",
        "mqtts" => "mqtt/ssl",
        other => other,
    };
    if !listeners(context).any(|(spoken, _)| spoken == protocol) {
        return no_listener(|json| {
            json.raw(b",\"missing\":");
            json.text(name);
            json.raw(b",\"protocols\":");
            json.texts(listeners(context).map(|(spoken, _)| spoken));
        });
    }
    passed(|json| {
        json.raw(b",\"protocol\":");
        json.text(name);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_alarm_has_an_entry_in_the_guide() {
        let guide = include_str!("../../systemd/guide/troubleshooting.md");
        for name in NAMES {
            assert!(guide.contains(&format!("\n### {name}\n")), "{name}");
        }
    }

    #[test]
    fn a_log_that_compaction_can_free_is_no_alarm() {
        // 85 % of a full log is settled.
        assert!(is_mostly_settled(100, 15, 100));
        assert!(!is_mostly_settled(100, 80, 100));
        assert!(!is_mostly_settled(20, 0, 100));
    }
}
