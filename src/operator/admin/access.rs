//! Users, virtual hosts and permissions over the operator's interface.
//!
//! Passwords come as hashes: the command line makes them, so the broker's loop need not. Tools of RabbitMQ's
//! send them in clear; those are kept as RabbitMQ keeps them, which takes no time.

use crate::admin::definitions::{Limits, UserLimits, limits_of, user_limits_of};
use crate::broker::{Broker, OperatorFault};
use crate::command::ConnectionId;
use crate::fields::{Fields, Value, items};
use crate::journal::{Batch, Journal};
use crate::password::{PASSWORD_BYTES_MAX, PasswordHash};

use zeroize::Zeroizing;

use super::answer::{Answer, bad_request, done, not_found, problem};
use super::columns::name_of;
use super::http::{Condition, Request, Status, Verb};
use super::request_context::RequestContext;

type Changed = Result<Batch, OperatorFault>;

/// Answers a request to change who may do what.
pub(super) fn handle(request: &Request<'_>, path: &[&str], context: &mut RequestContext<'_>) -> Answer {
    let (broker, journal) = (&mut *context.broker, &mut *context.journal);
    match (request.verb, path) {
        (Verb::Put, ["users", user]) => put_user(request, context, user),
        (Verb::Delete, ["users", user]) => {
            context.tokens.end_all_of(user);
            changed(broker.delete_user(journal, user))
        }
        (Verb::Post, ["users", "bulk-delete"]) => delete_users(request, context),
        (Verb::Put, ["vhosts", vhost]) => put_vhost(request, context, vhost),
        (Verb::Delete, ["vhosts", vhost]) => {
            let (broker, mut context) = context.broker();
            changed(broker.delete_vhost(&mut context, vhost))
        }
        (Verb::Put, ["permissions", vhost, user]) => match texts(request, ["configure", "write", "read"]) {
            Ok([configure, write, read]) => {
                changed(broker.access_mut().set_permissions(journal, user, vhost, &configure, &write, &read))
            }
            Err(why) => bad_request(&why),
        },
        (Verb::Delete, ["permissions", vhost, user]) => {
            changed(broker.access_mut().clear_permissions(journal, user, vhost))
        }
        (Verb::Put, ["topic-permissions", vhost, user]) => {
            match texts(request, ["exchange", "write", "read"]) {
                Ok([exchange, write, read]) => changed(
                    broker.access_mut().set_topic_permissions(journal, user, vhost, &exchange, &write, &read),
                ),
                Err(why) => bad_request(&why),
            }
        }
        (Verb::Delete, ["topic-permissions", vhost, user]) => {
            changed(broker.access_mut().clear_topic_permissions(journal, user, vhost, None))
        }
        (Verb::Delete, ["topic-permissions", vhost, user, exchange]) => {
            changed(broker.access_mut().clear_topic_permissions(journal, user, vhost, Some(exchange)))
        }
        (Verb::Put, ["vhost-limits", vhost]) => match Fields::parse(request.body).and_then(Limits::read) {
            Ok(limits) => changed(broker.access_mut().set_vhost_limits(journal, vhost, limits_of(limits))),
            Err(why) => bad_request(&why),
        },
        (Verb::Put | Verb::Delete, ["vhost-limits", vhost, limit]) => {
            vhost_limit(request, context, vhost, limit)
        }
        (Verb::Put, ["user-limits", user, limit]) => match one_limit(request, limit, UserLimits::read) {
            Ok(limits) => put_user_limits(broker, journal, user, limits),
            Err(why) => bad_request(&why),
        },
        (Verb::Delete, ["vhost-limits", vhost]) => changed(broker.access_mut().set_vhost_limits(
            journal,
            vhost,
            crate::broker::VhostLimits::default(),
        )),
        (Verb::Put, ["user-limits", user]) => match Fields::parse(request.body).and_then(UserLimits::read) {
            Ok(limits) => put_user_limits(broker, journal, user, limits),
            Err(why) => bad_request(&why),
        },
        (Verb::Delete, ["user-limits", user, limit]) => clear_user_limit(broker, journal, user, limit),
        (Verb::Post, ["ctl", "confirm-users"]) => changed(broker.access_mut().confirm_access(journal)),
        _ => not_found("Not Found"),
    }
}

/// Deletes the users that are named, as far as there are such.
fn delete_users(request: &Request<'_>, context: &mut RequestContext<'_>) -> Answer {
    let names = match Fields::parse(request.body).map(|mut fields| fields.value("users")) {
        Ok(Value::Array(names)) => names,
        Ok(_) => return bad_request("`users` must be a list of names"),
        Err(why) => return bad_request(&why),
    };
    for name in items(names) {
        let Ok(Value::String(user)) = &name else { continue };
        context.tokens.end_all_of(user);
        match context.broker.delete_user(context.journal, user) {
            Ok(_) | Err(OperatorFault::NoSuchUser(_)) => {}
            Err(fault) => return changed(Err(fault)),
        }
    }
    Answer::Changed(Status::NoContent, Vec::new())
}

/// Begins or ends the firehose of a virtual host.
pub(super) fn trace(context: &mut RequestContext<'_>, vhost: &str, is_on: bool) -> Answer {
    let was_on = context.broker.is_tracing();
    if !context.broker.trace(vhost, &context.process.node, is_on) {
        return not_found(&format!("Virtual host '{vhost}' does not exist"));
    }
    if is_on && !was_on {
        // Those that come later are named as they come.
        for connection in (0..context.sockets.places()).map(ConnectionId::from_index) {
            if let Some(socket) = context.sockets.at(connection) {
                context.broker.name_traced(connection, &name_of(&socket));
            }
        }
    }
    done(Status::NoContent)
}

/// Makes a virtual host, unless it is there; `tracing` is as it is said, also of one that is there.
fn put_vhost(request: &Request<'_>, context: &mut RequestContext<'_>, vhost: &str) -> Answer {
    let said = match request.body {
        [] => Ok(None),
        body => Fields::parse(body).and_then(|mut fields| match fields.value("tracing") {
            Value::Null => Ok(None),
            Value::Bool(is_on) => Ok(Some(is_on)),
            other => Err(format!("tracing is true or false, not {other}")),
        }),
    };
    let is_traced = match said {
        Ok(is_traced) => is_traced,
        Err(why) => return bad_request(&why),
    };
    let answer = changed(context.broker.put_vhost(context.journal, vhost));
    if let (Some(is_on), Answer::Changed(..)) = (is_traced, &answer) {
        trace(context, vhost, is_on);
    }
    answer
}

/// `{"value": N}` read as the object of limits that it is.
fn one_limit<L>(
    request: &Request<'_>,
    limit: &str,
    read: impl FnOnce(Fields<'_>) -> Result<L, String>,
) -> Result<L, String> {
    let value = match Fields::parse(request.body)?.value("value") {
        Value::String(text) => text.parse().map_or(Value::Null, |number: i64| Value::Number(number.into())),
        value => value,
    };
    if value.is_null() {
        return Err("missing field `value`".to_string());
    }
    let value = value.to_string();
    let mut fields = Fields::default();
    fields.put(limit.into(), &value);
    read(fields)
}

/// Sets one limit of a virtual host, or takes it away; the other stays.
fn vhost_limit(request: &Request<'_>, context: &mut RequestContext<'_>, vhost: &str, limit: &str) -> Answer {
    let Some(mut limits) =
        context.broker.access().vhosts().find(|view| view.name == vhost).map(|view| view.limits)
    else {
        return changed(Err(OperatorFault::NoSuchVhost(vhost.into())));
    };
    let said = match request.verb {
        Verb::Put => match one_limit(request, limit, Limits::read) {
            Ok(said) => limits_of(said),
            Err(why) => return bad_request(&why),
        },
        _ => crate::broker::VhostLimits::default(),
    };
    match limit {
        "max-queues" => limits.queues_max = said.queues_max,
        "max-connections" => limits.connections_max = said.connections_max,
        _ => return not_found("Not Found"),
    }
    changed(context.broker.access_mut().set_vhost_limits(context.journal, vhost, limits))
}

/// Sets the limits of a user that are named; the others stay, as with RabbitMQ.
fn put_user_limits(broker: &mut Broker, journal: &mut Journal, user: &str, said: UserLimits) -> Answer {
    let Some(view) = broker.access().users().find(|view| view.name == user) else {
        return changed(Err(OperatorFault::NoSuchUser(user.into())));
    };
    let mut limits = user_limits_of(said);
    if said.connections_max.is_none() {
        limits.connections_max = view.limits.connections_max;
    }
    if said.channels_max.is_none() {
        limits.channels_max = view.limits.channels_max;
    }
    changed(broker.access_mut().set_user_limits(journal, user, limits))
}

/// Takes one limit of a user away, or all.
fn clear_user_limit(broker: &mut Broker, journal: &mut Journal, user: &str, limit: &str) -> Answer {
    let Some(view) = broker.access().users().find(|view| view.name == user) else {
        return changed(Err(OperatorFault::NoSuchUser(user.into())));
    };
    let mut limits = view.limits;
    match limit {
        "all" => limits = crate::broker::UserLimits::default(),
        "max-connections" => limits.connections_max = None,
        "max-channels" => limits.channels_max = None,
        // RabbitMQ, too, is silent when there is no limit of that name.
        _ => {}
    }
    changed(broker.access_mut().set_user_limits(journal, user, limits))
}

/// The fields of these names, each of which the request must have as a text.
fn texts<const N: usize>(request: &Request<'_>, names: [&str; N]) -> Result<[String; N], String> {
    let mut fields = Fields::parse(request.body)?;
    let mut texts = [const { String::new() }; N];
    for (text, name) in texts.iter_mut().zip(names) {
        *text = fields.text(name)?;
    }
    Ok(texts)
}

/// What is said of a user; what is not said stays.
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
            tags: fields.text_if_said("tags")?,
        })
    }
}

fn put_user(request: &Request<'_>, context: &mut RequestContext<'_>, user: &str) -> Answer {
    let said = match Fields::parse(request.body).and_then(UserBody::read) {
        Ok(said) => said,
        Err(why) => return bad_request(&why),
    };
    if said.password.as_ref().is_some_and(|password| password.len() > PASSWORD_BYTES_MAX) {
        return bad_request(&format!("a password has {PASSWORD_BYTES_MAX} bytes at most"));
    }
    let exists = (0..context.broker.access().user_places())
        .filter_map(|place| context.broker.access().user_at(place))
        .any(|view| view.name == user);
    match request.condition {
        Condition::IsNew if exists => {
            let why = format!("User \"{user}\" already exists");
            return Answer::Now(Status::PreconditionFailed, problem("precondition_failed", &why));
        }
        Condition::Exists if !exists => return changed(Err(OperatorFault::NoSuchUser(user.into()))),
        _ => {}
    }
    let salt = context.broker.chance().to_le_bytes();
    let in_clear = said
        .password
        .as_ref()
        .map(|text| PasswordHash::as_rabbitmq(text.as_bytes(), [salt[0], salt[1], salt[2], salt[3]]));
    let algorithm = said.hashing_algorithm.as_deref().unwrap_or("rabbit_password_hashing_sha256");
    let hash = match (in_clear, &said.password_hash) {
        (Some(hash), _) => Some(hash),
        (None, Some(hash)) => match PasswordHash::import(algorithm, hash) {
            Ok(hash) => Some(hash),
            Err(error) => return bad_request(&error.to_string()),
        },
        _ => None,
    };
    let (broker, journal) = (&mut *context.broker, &mut *context.journal);
    changed(match (exists, hash, said.tags) {
        (true, Some(hash), Some(tags)) => broker.put_user(journal, user, hash, &tags),
        (true, Some(hash), None) => broker.access_mut().change_password_hash(journal, user, hash),
        (true, None, Some(tags)) => broker.access_mut().set_tags(journal, user, &tags),
        (true, None, None) => Ok(journal.await_facts()),
        (false, hash, tags) => {
            broker.put_user(journal, user, hash.unwrap_or(PasswordHash::Nobodys), &tags.unwrap_or_default())
        }
    })
}

pub(super) fn changed(outcome: Changed) -> Answer {
    let fault = match outcome {
        Ok(_) => return Answer::Changed(Status::NoContent, Vec::new()),
        Err(fault) => fault,
    };
    let (status, error) = match &fault {
        OperatorFault::NoSuchUser(_) => (Status::NotFound, "no_such_user"),
        OperatorFault::NoSuchVhost(_) => (Status::NotFound, "no_such_vhost"),
        OperatorFault::NoSuchParameter => (Status::NotFound, "not_found"),
        OperatorFault::BadName(..) | OperatorFault::BadPattern { .. } | OperatorFault::Invalid(_) => {
            (Status::BadRequest, "bad_request")
        }
        OperatorFault::BeingDeleted(_)
        | OperatorFault::NoRoom(_)
        | OperatorFault::FileSystemFull
        | OperatorFault::Store(_) => (Status::Unavailable, "unavailable"),
    };
    Answer::Now(status, problem(error, &fault.to_string()))
}
