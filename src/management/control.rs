//! Requests that only the operator at the control socket has: the process and its pools, stopping it, backups, and
//! actions on queues and connections without a user.
//!
//! # Invariants
//! - A change is answered when it is durable.
//! - An error is answered with what is wrong.
//! - One request does a bounded amount of work.

use leveret_broker::{ConnectionView, Context, DeleteIf};
use leveret_core::command::{ConnectionId, RABBITMQ_VERSION};
use leveret_core::error::Fault;
use leveret_core::version::build_version;

use super::access::changed;
use super::alarms::which_alarms;
use super::columns::parse_connection_pid;
use super::http::{Request, Status, decode};
use super::json::Json;
use super::management::{nested, numbers, texts};
use super::node::Wear;
use super::parameters;
use super::request::Call;
use super::request::RequestContext;
use super::request::{Answer, Answered, bad_request, body, done, not_found, problem, refused};
use super::status::classes;

/// An upper bound of the list of a store's files, in bytes.
const HELD_BYTES_MAX: usize = 1 << 20;

/// The longest reason for closing connections, in characters.
const REASON_CHARS_MAX: usize = 100;

/// Shows the process, its limits and their use.
pub(super) fn overview(_: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    Answer::Now(Status::Ok, body(|json| write_overview(json, context)))
}

fn write_overview(json: &mut Json<'_>, context: &RequestContext<'_>) {
    let (process, gauges) = (context.process, context.broker.gauges());
    let views = context.broker.views();
    let mut is_first = true;
    json.raw(b"{");
    let members = [
        ("product_name", process.product.0.as_str()),
        ("product_version", process.product.1.as_str()),
        ("leveret_version", build_version()),
        ("rabbitmq_version", RABBITMQ_VERSION),
        ("node", &process.node),
        ("cluster_name", &parameters::cluster_name(context.broker, &process.node)),
        ("data_dir", &process.data_dir),
        ("configuration", &process.configuration),
    ];
    texts(json, &mut is_first, &members);
    // Queues and exchanges include the predeclared ones, as in their lists.
    let queues = views.queues().count();
    let exchanges = views.exchanges().count();
    let counts = [
        ("connections", gauges.connections as u64),
        ("channels", gauges.channels as u64),
        ("consumers", gauges.consumers as u64),
        ("queues", queues as u64),
        ("exchanges", exchanges as u64),
        ("bindings", gauges.bindings as u64),
        ("vhosts", context.broker.access().vhosts().count() as u64),
        ("uptime_ms", process.uptime_ms),
        ("memory_limit", process.memory_limit_bytes),
        ("pid", std::process::id().into()),
        ("handshakes_evicted", process.handshakes_evicted),
        ("publisher_messages_dropped", process.dropped_messages),
    ];
    numbers(json, &mut is_first, &counts);
    if let Some(wear) = Wear::of(process) {
        json.name("wear", &mut is_first);
        json.shown(wear);
    }
    json.name("listeners", &mut is_first);
    json.texts(process.open_listeners());
    json.name("alarms", &mut is_first);
    json.texts(which_alarms(context));
    pools(json, context, &mut is_first);
    classes(json, context, &mut is_first);
    json.raw(b"}");
}

/// Returns the numbers of ready and unacknowledged messages in the queues of some virtual hosts.
pub(super) fn queue_totals(context: &RequestContext<'_>, is_meant: impl Fn(&str) -> bool) -> (u64, u64) {
    let views = context.broker.views();
    let queues = views.queues();
    queues.filter(|queue| is_meant(queue.vhost)).fold((0, 0), |(ready, unacknowledged), queue| {
        (ready + u64::from(queue.messages_ready), unacknowledged + u64::from(queue.messages_unacknowledged))
    })
}

/// Writes messages, the disk, and every pool with its use.
fn pools(json: &mut Json<'_>, context: &RequestContext<'_>, is_first: &mut bool) {
    let (ready, unacknowledged) = queue_totals(context, |_| true);
    let usable = context.pending_writes.disk_bytes_max();
    let counts = [
        ("messages_ready", ready),
        ("messages_unacknowledged", unacknowledged),
        ("disk_limit", context.process.disk_limit_bytes),
        ("disk_usable", usable),
        ("disk_used", usable.saturating_sub(context.pending_writes.log_free_bytes())),
        ("disk_live", context.broker.views().live_log_bytes()),
        ("disk_free", context.process.machine.disk_free_bytes),
        ("disk_free_limit", context.process.disk_free_limit().unwrap_or(0)),
        ("fd_used", context.process.machine.files_open),
        ("fd_total", context.process.machine.files_max),
        ("sync_budget_delayed_commits", context.process.store.commits_over_budget),
        ("is_over_sync_budget", context.process.store.is_over_budget.into()),
    ];
    numbers(json, is_first, &counts);
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

/// Shows the configuration.
pub(super) fn environment(_: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    Answer::Now(Status::Ok, body(|json| json.text(&context.process.environment)))
}

/// Stops the broker.
pub(super) fn stop(_: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    context.orders.stop = true;
    Ok(done(Status::NoContent))
}

/// Begins a backup: the store's files are pinned when all appended entries are durable.
pub(super) fn begin_backup(_: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    match &context.files {
        Some(_) => Ok(Answer::PinStore(context.pending_writes.request_commit_of_all())),
        None => Err(Answer::Now(Status::Unavailable, problem("unavailable", "there is no store to copy"))),
    }
}

/// Shows whether the files are still pinned.
pub(super) fn backup(_: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    match &context.files {
        Some(files) if files.is_pinned_for_backup() => done(Status::NoContent),
        _ => not_found("nothing is held still"),
    }
}

/// Ends a backup.
pub(super) fn end_backup(_: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    if let Some(files) = &mut context.files {
        files.release();
    }
    Ok(done(Status::NoContent))
}

/// Pins the store's files and lists them. Returns `None` if that is impossible now.
pub(super) fn pinned_files(context: &mut RequestContext<'_>) -> Option<Answer> {
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
    debug_assert!(!is_full, "the answer is long enough for all files");
    Some(Answer::Now(Status::Ok, out))
}

/// Deletes a queue.
pub(super) fn delete_queue(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let only =
        DeleteIf { unused: call.request.has_true("if-unused"), empty: call.request.has_true("if-empty") };
    let (broker, mut context) = context.broker();
    let deleted = broker.operator_delete_queue(&mut context, call.name("vhost"), call.name("queue"), only);
    counted(&context, deleted)
}

/// Empties a queue.
pub(super) fn purge_queue(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let (broker, mut context) = context.broker();
    let purged = broker.operator_purge(&mut context, call.name("vhost"), call.name("queue"));
    counted(&context, purged)
}

/// Ends the alarm about parts of the store that could not be read.
pub(super) fn acknowledge_damage(_: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    changed(context.broker.recovery_mut().acknowledge_damage(context.pending_writes))
}

/// Gives the messages of an orphaned queue a queue.
pub(super) fn adopt_orphan(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let incarnation = incarnation(call)?;
    let (broker, mut context) = context.broker();
    let (vhost, queue) = (call.name("vhost"), call.name("queue"));
    let adopted = broker.operator_adopt_orphan(&mut context, incarnation, vhost, queue);
    counted(&context, adopted)
}

/// Deletes the messages of an orphaned queue.
pub(super) fn delete_orphan(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let incarnation = incarnation(call)?;
    let (broker, mut context) = context.broker();
    let deleted = broker.operator_delete_orphan(&mut context, incarnation);
    counted(&context, deleted)
}

fn incarnation<N: core::str::FromStr>(call: &Call<'_>) -> Result<N, Answer> {
    let given = call.name("incarnation");
    given.parse().map_err(|_| bad_request(&format!("'{given}' is not an incarnation: see list_orphans")))
}

fn counted(context: &Context<'_>, outcome: Result<impl Into<u64>, Fault>) -> Answered {
    let count = outcome.map_err(|fault| refused(&fault))?.into();
    let body = body(|json| nested(json, &[("messages", count)]));
    Ok(Answer::Durable(context.awaited, Status::Ok, body))
}

/// Closes the connection with this pid if it is still open.
pub(super) fn close(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let pid = call.name("pid");
    let bad_pid = || bad_request(&format!("{{:invalid_pid_syntax, \"{pid}\"}}"));
    let (number, connection) = parse_connection_pid(pid).ok_or_else(bad_pid)?;
    if context.sockets.at(connection).is_some_and(|socket| socket.number == number) {
        context.broker.force_close(connection, &reason(call.request, "Closed via leveretctl"));
    }
    Ok(done(Status::NoContent))
}

/// Closes all connections, or those of a virtual host or a user.
pub(super) fn close_all(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let is_meant = |view: &ConnectionView<'_>| {
        call.optional_name("vhost").is_none_or(|vhost| view.vhost == vhost)
            && call.optional_name("user").is_none_or(|user| view.user == user)
    };
    let reason = reason(call.request, "Closed via leveretctl");
    let mut closed = 0;
    for connection in (0..context.sockets.places()).map(ConnectionId::from_index) {
        let view = context.broker.views().connection_view(connection);
        // Links of bridges belong to the operator and stay open.
        let is_client = context.sockets.at(connection).is_some();
        if is_client && view.as_ref().is_some_and(is_meant) {
            context.broker.force_close(connection, &reason);
            closed += 1;
        }
    }
    Ok(Answer::Now(Status::Ok, body(|json| nested(json, &[("closed", closed)]))))
}

/// Returns the reason for closing connections that their clients get: the query `reason`, or the header `X-Reason`.
pub(super) fn reason(request: &Request<'_>, default: &str) -> String {
    let query = request.query_value("reason").and_then(decode);
    let header = request.reason.filter(|reason| !reason.is_empty());
    let given = query.unwrap_or_else(|| header.unwrap_or(default).into());
    given.chars().filter(|character| !character.is_control()).take(REASON_CHARS_MAX).collect()
}
