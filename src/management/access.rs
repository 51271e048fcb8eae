//! Users, virtual hosts, permissions, and the tokens that users log in with.
//!
//! The command line sends passwords as hashes, so that the event loop need not compute them. Tools of RabbitMQ send
//! passwords in clear. Those are hashed like in RabbitMQ, which takes no time.

use crate::definitions::{self, read_user_limits, read_vhost_limits, vhost_change};
use leveret_broker::{OperatorFault, VhostChange};
use leveret_core::batch::Batch;
use leveret_core::command::ConnectionId;
use leveret_core::definition::{Permission, TopicPermission, UserLimits, VhostLimits};
use leveret_core::password::{PASSWORD_BYTES_MAX, PasswordHash};
use leveret_json::{Fields, Value, items};

use zeroize::Zeroizing;

use super::columns::name_of;
use super::definition_columns::TopicPermissions;
use super::http::{Condition, Request, Status, Verb};
use super::listing::list;
use super::management::text_object;
use super::request::RequestContext;
use super::request::{Answer, Answered, bad, bad_request, body, done, not_found, problem, unauthorized};
use super::request::{Call, exists};
use super::web_page::{NoToken, TOKENS_MAX};

type Changed = Result<Batch, OperatorFault>;

/// Exchanges a user's correct password for a token.
pub(super) fn log_in(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let (Some(user), None) = (call.user, call.request.origin.token()) else {
        return Err(not_found("Not Found"));
    };
    let begun = context.tokens.begin(context.broker, &user.name, context.process.uptime_ms);
    let token = begun.map_err(|none| match none {
        NoToken::NoSuchUser => unauthorized("Login failed"),
        NoToken::Full => {
            let why = format!("{TOKENS_MAX} users are logged in: try again when one has logged out");
            Answer::Now(Status::Forbidden, problem("forbidden", &why))
        }
    })?;
    Ok(Answer::Now(Status::Created, body(|json| text_object(json, &[("token", &token)]))))
}

/// Ends the token of the request.
pub(super) fn log_out(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    context.tokens.end(call.request.origin.token().ok_or_else(|| not_found("Not Found"))?);
    Ok(done(Status::NoContent))
}

/// Deletes a user.
pub(super) fn delete_user(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let user = call.name("user");
    context.tokens.end_all_of(user);
    changed(context.broker.delete_user(context.pending_writes, user))
}

/// Deletes a virtual host with all that is in it.
pub(super) fn delete_vhost(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let (broker, mut context) = context.broker();
    changed(broker.delete_vhost(&mut context, call.name("vhost")))
}

/// Protects a virtual host from deletion, or ends the protection.
pub(super) fn protect_vhost(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let vhost = call.name("vhost");
    if !exists(context, vhost) {
        return changed(Err(OperatorFault::NoSuchVhost(vhost.into())));
    }
    let is_protected = Some(call.request.verb == Verb::Post);
    let change = VhostChange { is_protected, ..VhostChange::default() };
    changed(context.broker.put_vhost_with(context.pending_writes, vhost, &change))
}

/// Lets the operator confirm users and permissions whose integrity the store cannot guarantee.
pub(super) fn confirm(_: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    changed(context.broker.access_mut().confirm_access(context.pending_writes))
}

/// Sets the permissions of a user in a virtual host.
pub(super) fn put_permissions(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let (vhost, user) = (call.name("vhost"), call.name("user"));
    let is_new = !context.broker.access().has_permission(user, vhost);
    let [configure, write, read] = texts(call.request, ["configure", "write", "read"]).map_err(bad)?;
    let access = context.broker.access_mut();
    let permission = Permission { user, vhost, configure: &*configure, write: &*write, read: &*read };
    put(is_new, access.set_permissions(context.pending_writes, &permission))
}

/// Deletes the permissions of a user in a virtual host.
pub(super) fn clear_permissions(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let (vhost, user) = (call.name("vhost"), call.name("user"));
    changed(context.broker.access_mut().clear_permissions(context.pending_writes, user, vhost))
}

/// Shows the topic permissions of a user in a virtual host, if there are any.
pub(super) fn topic_permissions(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    match has_topic_permissions(call, context) {
        true => list::<TopicPermissions>(call, context),
        false => not_found("Not Found"),
    }
}

fn has_topic_permissions(call: &Call<'_>, context: &RequestContext<'_>) -> bool {
    let (vhost, user) = (call.name("vhost"), call.name("user"));
    context.broker.access().topic_permissions().any(|view| (view.vhost, view.user) == (vhost, user))
}

/// Sets the topic permissions of a user for an exchange.
pub(super) fn put_topic_permissions(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let (vhost, user) = (call.name("vhost"), call.name("user"));
    let is_new = !has_topic_permissions(call, context);
    let [exchange, write, read] = texts(call.request, ["exchange", "write", "read"]).map_err(bad)?;
    let access = context.broker.access_mut();
    let permission = TopicPermission { user, vhost, exchange: &*exchange, write: &*write, read: &*read };
    put(is_new, access.set_topic_permissions(context.pending_writes, &permission))
}

/// Deletes the topic permissions of a user, for one exchange or for all.
pub(super) fn clear_topic_permissions(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let (vhost, user, exchange) = (call.name("vhost"), call.name("user"), call.optional_name("exchange"));
    changed(context.broker.access_mut().clear_topic_permissions(
        context.pending_writes,
        user,
        vhost,
        exchange,
    ))
}

/// Sets all limits of a virtual host.
pub(super) fn put_vhost_limits(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let limits = Fields::parse(call.request.body).and_then(read_vhost_limits).map_err(bad)?;
    set_vhost_limits(call, context, limits)
}

/// Deletes all limits of a virtual host.
pub(super) fn clear_vhost_limits(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    set_vhost_limits(call, context, VhostLimits::default())
}

fn set_vhost_limits(call: &Call<'_>, context: &mut RequestContext<'_>, limits: VhostLimits) -> Answered {
    changed(context.broker.access_mut().set_vhost_limits(context.pending_writes, call.name("vhost"), limits))
}

/// Sets or deletes one limit of a virtual host. The other one stays.
pub(super) fn change_vhost_limit(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let vhost = call.name("vhost");
    let view = context.broker.access().vhosts().find(|view| view.name == vhost);
    let Some(mut limits) = view.map(|view| view.limits) else {
        return changed(Err(OperatorFault::NoSuchVhost(vhost.into())));
    };
    let given = match call.request.verb {
        Verb::Put => one_limit(call, read_vhost_limits).map_err(bad)?,
        _ => VhostLimits::default(),
    };
    match call.name("limit") {
        "max-queues" => limits.queues_max = given.queues_max,
        "max-connections" => limits.connections_max = given.connections_max,
        _ => return Err(not_found("Not Found")),
    }
    set_vhost_limits(call, context, limits)
}

/// Sets one limit of a user, or those in the body. The others stay, as in RabbitMQ.
pub(super) fn put_user_limits(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let given = match call.optional_name("limit") {
        Some(_) => one_limit(call, read_user_limits),
        None => Fields::parse(call.request.body).and_then(read_user_limits),
    };
    let given = given.map_err(bad)?;
    change_user_limits(call, context, |limits| {
        limits.connections_max = given.connections_max.or(limits.connections_max);
        limits.channels_max = given.channels_max.or(limits.channels_max);
    })
}

/// Deletes one limit of a user, or all.
pub(super) fn clear_user_limit(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    change_user_limits(call, context, |limits| match call.name("limit") {
        "all" => *limits = UserLimits::default(),
        "max-connections" => limits.connections_max = None,
        "max-channels" => limits.channels_max = None,
        // RabbitMQ also reports no error for an unknown limit.
        _ => {}
    })
}

fn change_user_limits(
    call: &Call<'_>,
    context: &mut RequestContext<'_>,
    change: impl FnOnce(&mut UserLimits),
) -> Answered {
    let user = call.name("user");
    let view = context.broker.access().users().find(|view| view.name == user);
    let Some(mut limits) = view.map(|view| view.limits) else {
        return changed(Err(OperatorFault::NoSuchUser(user.into())));
    };
    change(&mut limits);
    changed(context.broker.access_mut().set_user_limits(context.pending_writes, user, limits))
}

/// Deletes the users in the body. Unknown users are ignored.
pub(super) fn delete_users(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let Value::Array(names) = Fields::parse(call.request.body).map_err(bad)?.value("users") else {
        return Err(bad_request("`users` must be a list of names"));
    };
    for name in items(names) {
        let Ok(Value::String(user)) = &name else { continue };
        context.tokens.end_all_of(user);
        match context.broker.delete_user(context.pending_writes, user) {
            Ok(_) | Err(OperatorFault::NoSuchUser(_)) => {}
            Err(fault) => return changed(Err(fault)),
        }
    }
    Ok(Answer::Changed(Status::NoContent, Vec::new()))
}

/// Starts or stops the firehose of a virtual host.
pub(super) fn put_trace(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    trace(context, call.name("vhost"), call.request.verb == Verb::Put)
}

fn trace(context: &mut RequestContext<'_>, vhost: &str, is_on: bool) -> Answered {
    let was_on = context.broker.is_tracing();
    if !context.broker.trace(vhost, &context.process.node, is_on) {
        return Err(not_found(&format!("Virtual host '{vhost}' does not exist")));
    }
    if is_on && !was_on {
        // Connections that are opened later get their names when they are opened.
        for connection in (0..context.sockets.places()).map(ConnectionId::from_index) {
            if let Some(socket) = context.sockets.at(connection) {
                context.broker.set_firehose_name(connection, &name_of(&socket));
            }
        }
    }
    Ok(done(Status::NoContent))
}

/// Creates or changes a virtual host. As in RabbitMQ, an absent description and absent tags become empty. The default
/// queue type, the protection and `tracing` stay unless they are present.
pub(super) fn put_vhost(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    change_vhost(call, context, |change| {
        change.description.get_or_insert_default();
        change.tags.get_or_insert_default();
    })
}

/// Creates a virtual host, unless it must exist, or changes the fields that are present.
pub(super) fn update_vhost(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    change_vhost(call, context, |_| ())
}

fn change_vhost(
    call: &Call<'_>,
    context: &mut RequestContext<'_>,
    complete: impl FnOnce(&mut VhostChange),
) -> Answered {
    let vhost = call.name("vhost");
    let given = match call.request.body {
        [] => Ok((None, VhostChange::default())),
        body => Fields::parse(body).and_then(|mut fields| match fields.value("tracing") {
            Value::Null => Ok((None, vhost_change(&mut fields)?)),
            Value::Bool(is_on) => Ok((Some(is_on), vhost_change(&mut fields)?)),
            other => Err(format!("tracing is true or false, not {other}")),
        }),
    };
    let (is_traced, mut change) = given.map_err(bad)?;
    let is_new = !exists(context, vhost);
    if is_new && call.request.condition == Condition::Exists {
        return changed(Err(OperatorFault::NoSuchVhost(vhost.into())));
    }
    complete(&mut change);
    let answer = put(is_new, context.broker.put_vhost_with(context.pending_writes, vhost, &change))?;
    if let Some(is_on) = is_traced {
        trace(context, vhost, is_on)?;
    }
    if let Some(user) = call.user.filter(|_| is_new) {
        // As in RabbitMQ, the user that creates a virtual host gets all permissions there. If there is no capacity
        // for them, the virtual host exists nevertheless.
        let (user, configure, write, read) = (&*user.name, ".*", ".*", ".*");
        let access = context.broker.access_mut();
        let permission = Permission { user, vhost, configure, write, read };
        let _ = access.set_permissions(context.pending_writes, &permission);
    }
    Ok(answer)
}

/// Reads `{"value": N}` as the object of limits that it stands for.
fn one_limit<L>(call: &Call<'_>, read: impl FnOnce(Fields<'_>) -> Result<L, String>) -> Result<L, String> {
    let value = match Fields::parse(call.request.body)?.value("value") {
        Value::String(text) => text.parse().map_or(Value::Null, |number: i64| Value::Number(number.into())),
        value => value,
    };
    if value.is_null() {
        return Err("missing field `value`".to_string());
    }
    let value = value.to_string();
    let mut fields = Fields::default();
    fields.put(call.name("limit").into(), &value);
    read(fields)
}

/// Returns the values of fields that must be texts.
fn texts<const N: usize>(request: &Request<'_>, names: [&str; N]) -> Result<[String; N], String> {
    let mut fields = Fields::parse(request.body)?;
    let mut texts = [const { String::new() }; N];
    for (text, name) in texts.iter_mut().zip(names) {
        *text = fields.text(name)?;
    }
    Ok(texts)
}

/// Body of `PUT /api/users/NAME`. Absent fields keep their value.
struct UserBody {
    password: Option<Zeroizing<String>>,
    password_hash: Option<String>,
    hashing_algorithm: Option<String>,
    tags: Option<String>,
}

impl UserBody {
    fn read(mut fields: Fields<'_>) -> Result<Self, String> {
        Ok(Self {
            password: fields.text_if_said("password")?.map(Zeroizing::new),
            password_hash: fields.text_if_said("password_hash")?,
            hashing_algorithm: fields.text_if_said("hashing_algorithm")?,
            tags: definitions::tags(&mut fields)?,
        })
    }
}

/// Creates a user, or changes the fields that are present.
pub(super) fn put_user(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let user = call.name("user");
    let given = Fields::parse(call.request.body).and_then(UserBody::read).map_err(bad)?;
    if given.password.as_ref().is_some_and(|password| password.len() > PASSWORD_BYTES_MAX) {
        return Err(bad_request(&format!("a password has {PASSWORD_BYTES_MAX} bytes at most")));
    }
    let exists = context.broker.access().users().any(|view| view.name == user);
    match call.request.condition {
        Condition::IsNew if exists => {
            let why = format!("User \"{user}\" already exists");
            return Err(Answer::Now(Status::PreconditionFailed, problem("precondition_failed", &why)));
        }
        Condition::Exists if !exists => return changed(Err(OperatorFault::NoSuchUser(user.into()))),
        _ => {}
    }
    let salt = context.broker.random_u64().to_le_bytes();
    let in_clear = given
        .password
        .as_ref()
        .map(|text| PasswordHash::as_rabbitmq(text.as_bytes(), [salt[0], salt[1], salt[2], salt[3]]));
    let algorithm = given.hashing_algorithm.as_deref().unwrap_or("rabbit_password_hashing_sha256");
    let hash = match (in_clear, &given.password_hash) {
        (Some(hash), _) => Some(hash),
        (None, Some(hash)) => {
            Some(PasswordHash::import(algorithm, hash).map_err(|error| bad(error.to_string()))?)
        }
        _ => None,
    };
    let (broker, pending_writes) = (&mut *context.broker, &mut *context.pending_writes);
    let done = match (exists, hash, given.tags) {
        (true, Some(hash), Some(tags)) => broker.put_user(pending_writes, user, hash, &tags),
        (true, Some(hash), None) => broker.access_mut().change_password_hash(pending_writes, user, hash),
        (true, None, Some(tags)) => broker.access_mut().set_tags(pending_writes, user, &tags),
        (true, None, None) => Ok(pending_writes.last_entry_batch()),
        (false, hash, tags) => broker.put_user(
            pending_writes,
            user,
            hash.unwrap_or(PasswordHash::NoPassword),
            &tags.unwrap_or_default(),
        ),
    };
    put(!exists, done)
}

/// Answers a change with `201 Created` if the object is new, otherwise with `204 No Content`.
pub(super) fn put(is_new: bool, outcome: Changed) -> Answered {
    changed(outcome)?;
    Ok(Answer::Changed(if is_new { Status::Created } else { Status::NoContent }, Vec::new()))
}

pub(super) fn changed(outcome: Changed) -> Answered {
    let fault = match outcome {
        Ok(_) => return Ok(Answer::Changed(Status::NoContent, Vec::new())),
        Err(fault) => fault,
    };
    let (status, error) = match &fault {
        OperatorFault::NoSuchUser(_) => (Status::NotFound, "no_such_user"),
        OperatorFault::NoSuchVhost(_) => (Status::NotFound, "no_such_vhost"),
        OperatorFault::Protected(_) => (Status::PreconditionFailed, "precondition_failed"),
        OperatorFault::NoSuchParameter => (Status::NotFound, "not_found"),
        OperatorFault::BadName(..) | OperatorFault::BadPattern { .. } | OperatorFault::Invalid(_) => {
            (Status::BadRequest, "bad_request")
        }
        OperatorFault::BeingDeleted(_)
        | OperatorFault::LimitReached(_)
        | OperatorFault::TooManyShovels
        | OperatorFault::NoCapacity(_)
        | OperatorFault::FileSystemFull
        | OperatorFault::Store(_) => (Status::Unavailable, "unavailable"),
    };
    Err(Answer::Now(status, problem(error, &fault.to_string())))
}
