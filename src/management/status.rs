//! Answers the requests that the web page repeats every few seconds: state and history, pools, and recorded events.
//!
//! # Invariants
//! - About the node, and about virtual hosts without permissions, only monitors get values.
//! - An answer contains no value that changes without a cause, such as the time. So a client that repeats a request
//!   gets `304 Not Modified` while nothing changes.

use super::alarms;
use super::columns::{Channels, Connections, Consumers, Exchanges, Queues, name_of};
use super::control::queue_totals;
use super::http::Status;
use super::json::Json;
use super::listing::Filter;
use super::management::{count, nested, numbers, texts};
use super::node::Wear;
use super::request::RequestContext;
use super::request::{Answer, Call, User, body};
use leveret_broker::{Holder, QueueView};

/// The most events in one answer, and the most bytes of them. Further ones are in the answer to the next request.
const EVENTS_MAX: usize = 100;
const EVENTS_BYTES_MAX: usize = 24 << 10;
/// The most growing queues that are listed.
const GROWING_MAX: usize = 3;
/// The most bytes of one event: all its characters may be escapes.
const EVENT_BYTES_MAX: usize = 4 << 10;

/// Shows the alarms, and to monitors memory and disk. With `since` also the totals, the queues that grow fastest, the
/// states of the bridges, the flash, and the samples that are newer than this slot.
pub(super) fn status(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    let since = call.request.query_value("since").map(|slot| slot.parse().unwrap_or(0));
    Answer::Now(Status::Ok, body(|json| write_status(json, call, context, since)))
}

fn write_status(json: &mut Json<'_>, call: &Call<'_>, context: &RequestContext<'_>, since: Option<u64>) {
    let Some(user) = call.user else { return };
    let mut is_first = true;
    json.raw(b"{");
    json.name("alarms", &mut is_first);
    json.texts(alarms::which_alarms(context));
    if user.is_monitor {
        memory(json, context, &mut is_first);
        disk(json, context, &mut is_first);
    }
    if let Some(since) = since {
        totals(json, call, user, context, &mut is_first);
        growing(json, user, context, &mut is_first);
        if user.is_monitor {
            numbers(json, &mut is_first, &[("uptime_min", context.process.uptime_ms / 60_000)]);
            bridges(json, context, &mut is_first);
            flash(json, context, &mut is_first);
            json.name("history", &mut is_first);
            context.samples.write_history(json, since);
        }
    }
    json.raw(b"}");
}

fn memory(json: &mut Json<'_>, context: &RequestContext<'_>, is_first: &mut bool) {
    let (machine, limit) = (context.process.machine, context.process.memory_limit_bytes);
    json.name("memory", is_first);
    let peak = machine.resident_bytes_peak.max(machine.resident_bytes);
    json.raw(b"{");
    let mut is_first_member = true;
    let sizes = [("used", machine.resident_bytes), ("peak", peak), ("limit", limit)];
    numbers(json, &mut is_first_member, &sizes);
    classes(json, context, &mut is_first_member);
    json.raw(b"}");
}

/// Writes the classes of the shared memory, and what uses most of each.
pub(super) fn classes(json: &mut Json<'_>, context: &RequestContext<'_>, is_first: &mut bool) {
    json.name("classes", is_first);
    json.raw(b"[");
    let mut is_first_class = true;
    for class in context.broker.views().classes() {
        json.comma(&mut is_first_class);
        json.raw(b"{\"name\":");
        json.text(class.name);
        let sizes = [("used", class.used_bytes), ("limit", class.bytes_max), ("floor", class.floor_bytes)];
        numbers(json, &mut false, &sizes);
        if let Some(largest) = context.broker.views().largest_holder(class.class) {
            json.raw(b",\"largest\":");
            write_holder(json, context, largest);
        }
        json.raw(b"}");
    }
    json.raw(b"]");
}

fn write_holder(json: &mut Json<'_>, context: &RequestContext<'_>, holder: Holder<'_>) {
    json.raw(b"{");
    match holder {
        Holder::Connection(connection, bytes) => {
            let user = context.broker.views().user_of(connection);
            match context.sockets.at(connection) {
                Some(socket) => {
                    let name = name_of(&socket);
                    texts(json, &mut true, &[("kind", "connection"), ("name", &name), ("user", user)]);
                }
                None => texts(json, &mut true, &[("kind", "bridge or shovel"), ("user", user)]),
            }
            numbers(json, &mut false, &[("bytes", bytes)]);
        }
        Holder::Definitions(kind, bytes) => {
            texts(json, &mut true, &[("kind", kind)]);
            numbers(json, &mut false, &[("bytes", bytes)]);
        }
        Holder::Queue { vhost, name, bytes } => {
            texts(json, &mut true, &[("kind", "queue"), ("name", name), ("vhost", vhost)]);
            numbers(json, &mut false, &[("bytes", bytes)]);
        }
    }
    json.raw(b"}");
}

fn disk(json: &mut Json<'_>, context: &RequestContext<'_>, is_first: &mut bool) {
    let (process, store) = (context.process, context.process.store);
    if store.bytes_max == 0 {
        return;
    }
    json.name("disk", is_first);
    json.raw(b"{");
    let mut is_first_member = true;
    let log_bytes = store.log_bytes();
    let sizes = [
        // Messages that wait for their commit are not in the log yet.
        ("live", context.broker.views().live_log_bytes().min(log_bytes)),
        ("log", log_bytes),
        ("usable", store.bytes_max),
        ("limit", process.disk_limit_bytes),
        // The free space of a file system changes with every program. Mebibytes are as much as is read on a page.
        ("free", process.machine.disk_free_bytes >> 20 << 20),
    ];
    numbers(json, &mut is_first_member, &sizes);
    json.name("is_full", &mut is_first_member);
    json.truth(alarms::is_disk_full(context));
    json.raw(b"}");
}

fn totals(
    json: &mut Json<'_>,
    call: &Call<'_>,
    user: &User,
    context: &RequestContext<'_>,
    is_first: &mut bool,
) {
    // A monitor gets the totals of all virtual hosts, even where it may not see the objects.
    let seen = if user.is_monitor { Filter::default() } else { call.filter() };
    let (ready, unacknowledged) = queue_totals(context, |vhost| {
        user.is_monitor || context.broker.access().has_permission(&user.name, vhost)
    });
    json.name("totals", is_first);
    let totals = [
        ("queues", count::<Queues>(context, &seen)),
        ("connections", count::<Connections>(context, &seen)),
        ("channels", count::<Channels>(context, &seen)),
        ("exchanges", count::<Exchanges>(context, &seen)),
        ("consumers", count::<Consumers>(context, &seen)),
        ("messages_ready", ready),
        ("messages_unacknowledged", unacknowledged),
    ];
    nested(json, &totals);
}

/// Writes the queues that grow fastest, with their growth in messages per second.
fn growing(json: &mut Json<'_>, user: &User, context: &RequestContext<'_>, is_first: &mut bool) {
    let views = context.broker.views();
    let queues = views.queues();
    let visible = queues
        .filter(|queue| user.is_monitor || context.broker.access().has_permission(&user.name, queue.vhost));
    let mut count = 0;
    let mut fastest = heapless::Vec::<(f64, QueueView<'_>), { GROWING_MAX + 1 }>::new();
    for (rate, queue) in visible.filter_map(|queue| Some((context.samples.growth(&queue)?, queue))) {
        count += 1;
        let at = fastest.iter().position(|(other, _)| rate > *other).unwrap_or(fastest.len());
        fastest.insert(at, (rate, queue)).unwrap_or_else(|_| unreachable!("there is space for one more"));
        fastest.truncate(GROWING_MAX);
    }
    numbers(json, is_first, &[("growing_count", count)]);
    json.name("growing", is_first);
    json.raw(b"[");
    let mut is_first_queue = true;
    for (rate, queue) in &fastest {
        json.comma(&mut is_first_queue);
        json.raw(b"{");
        texts(json, &mut true, &[("name", queue.name), ("vhost", queue.vhost)]);
        json.shown_raw(format_args!(",\"rate\":{rate:.1}"));
        let unacknowledged = u64::from(queue.messages_unacknowledged);
        let counts = [
            ("messages", u64::from(queue.messages_ready) + unacknowledged),
            ("unacknowledged", unacknowledged),
            ("consumers", u64::from(queue.consumers)),
        ];
        numbers(json, &mut false, &counts);
        json.raw(b"}");
    }
    json.raw(b"]");
}

/// Writes the state of each direction of each bridge.
fn bridges(json: &mut Json<'_>, context: &RequestContext<'_>, is_first: &mut bool) {
    let links = (0..context.bridges.places()).filter_map(|place| context.bridges.at(place));
    json.name("bridges", is_first);
    json.raw(b"[");
    let mut is_first_link = true;
    for link in links.filter(|link| link.shovel.is_none()) {
        json.comma(&mut is_first_link);
        json.raw(b"{");
        let texts_of_link = [("name", link.bridge), ("direction", link.direction), ("state", link.state)];
        texts(json, &mut true, &texts_of_link);
        json.raw(b"}");
    }
    json.raw(b"]");
}

fn flash(json: &mut Json<'_>, context: &RequestContext<'_>, is_first: &mut bool) {
    let Some(wear) = Wear::of(context.process) else { return };
    json.name("flash", is_first);
    json.raw(b"{");
    let mut is_first_member = true;
    numbers(json, &mut is_first_member, &[("written", wear.written_bytes)]);
    let endurance = Some(context.process.endurance.bytes).filter(|bytes| *bytes > 0);
    for (name, value) in [("per_day", wear.bytes_per_day), ("endurance", endurance)] {
        json.name(name, &mut is_first_member);
        match value {
            Some(value) => json.number(value),
            None => json.raw(b"null"),
        }
    }
    json.name("years_left", &mut is_first_member);
    match wear.tenths_left {
        Some(tenths) => json.shown_raw(format_args!("{}.{}", tenths / 10, tenths % 10)),
        None => json.raw(b"null"),
    }
    json.raw(b"}");
}

/// Shows the pools: the present use, the highest use, and the limit. The highest use is that of samples, of which one is
/// taken every [`SAMPLE_MS`](super::samples::SAMPLE_MS) at most.
pub(super) fn pools(_: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    let pools = context.broker.views().pools(context.messages);
    let peaks = context.samples.pool_peaks(pools.map(|pool| pool.used));
    let body = body(|json| {
        let mut is_first = true;
        json.raw(b"[");
        for (pool, peak) in pools.iter().zip(peaks) {
            json.comma(&mut is_first);
            json.raw(b"{\"name\":");
            json.text(pool.key);
            numbers(json, &mut false, &[("used", pool.used), ("peak", peak), ("limit", pool.max)]);
            json.raw(b"}");
        }
        json.raw(b"]");
    });
    Answer::Now(Status::Ok, body)
}

/// Shows the events of this process in the flight recorder whose numbers are above `since`, from the oldest of the newest
/// [`EVENTS_MAX`] on. `last` is the `since` of the next request. If nothing is recorded, `reason` says why.
pub(super) fn log(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    let since = call.request.query_value("since").and_then(|number| number.parse().ok()).unwrap_or(0);
    let events = context.events.after(since, EVENTS_MAX);
    let events = match events {
        Ok(events) => events,
        Err(reason) => {
            let not_recorded = body(|json| {
                json.raw(b"{\"is_recorded\":false,\"reason\":");
                json.text(reason);
                json.raw(b",\"events\":[],\"last\":0}");
            });
            return Answer::Now(Status::Ok, not_recorded);
        }
    };
    let mut out = b"{\"is_recorded\":true,\"events\":[".to_vec();
    let mut last = if events.is_empty() { since } else { 0 };
    for (at, event) in events.iter().enumerate() {
        if out.len() >= EVENTS_BYTES_MAX {
            break;
        }
        let bytes_max = out.len() + EVENT_BYTES_MAX;
        let mut json = Json::new(&mut out, bytes_max);
        json.raw(if at == 0 { b"{\"number\":" } else { b",{\"number\":" });
        json.number(event.stamp.number);
        numbers(&mut json, &mut false, &[("unix_ms", event.stamp.unix_ms)]);
        let kind = event.kind.word().to_ascii_lowercase();
        let mark = if event.is_cut { "…" } else { "" };
        texts(&mut json, &mut false, &[("kind", &kind), ("text", &format!("{}{mark}", event.text))]);
        json.raw(b"}");
        last = event.stamp.number;
    }
    out.extend_from_slice(format!("],\"last\":{}}}", last).as_bytes());
    Answer::Now(Status::Ok, out)
}
