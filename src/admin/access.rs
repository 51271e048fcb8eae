//! Users, virtual hosts and permissions over the operator's interface.
//!
//! Passwords come as hashes: the command line makes them, so the broker's loop need not, and no password
//! crosses a socket.

use serde::Deserialize;

use crate::admin::definitions;
use crate::broker::OperatorFault;
use crate::journal::Batch;
use crate::password::PasswordHash;

use super::api::{Answer, bad_request, not_found, problem};
use super::http::{Condition, Request, Status, Verb};
use super::scene::Scene;

type Changed = Result<Batch, OperatorFault>;

/// Answers a request to change who may do what.
pub(super) fn handle(request: &Request<'_>, path: &[&str], scene: &mut Scene<'_>) -> Answer {
    let broker = &mut *scene.broker;
    match (request.verb, path) {
        (Verb::Put, ["users", user]) => put_user(request, scene, user),
        (Verb::Delete, ["users", user]) => changed(broker.delete_user(user)),
        (Verb::Put, ["vhosts", vhost]) => changed(broker.put_vhost(vhost)),
        (Verb::Delete, ["vhosts", vhost]) => changed(broker.delete_vhost(vhost)),
        (Verb::Put, ["permissions", vhost, user]) => match body::<Patterns>(request) {
            Ok(it) => changed(broker.set_permissions(user, vhost, &it.configure, &it.write, &it.read)),
            Err(answer) => answer,
        },
        (Verb::Delete, ["permissions", vhost, user]) => changed(broker.clear_permissions(user, vhost)),
        (Verb::Put, ["topic-permissions", vhost, user]) => match body::<TopicPatterns>(request) {
            Ok(it) => changed(broker.set_topic_permissions(user, vhost, &it.exchange, &it.write, &it.read)),
            Err(answer) => answer,
        },
        (Verb::Delete, ["topic-permissions", vhost, user]) => {
            changed(broker.clear_topic_permissions(user, vhost, None))
        }
        (Verb::Delete, ["topic-permissions", vhost, user, exchange]) => {
            changed(broker.clear_topic_permissions(user, vhost, Some(exchange)))
        }
        (Verb::Put, ["vhost-limits", vhost]) => match body::<definitions::Limits>(request) {
            Ok(limits) => changed(broker.set_vhost_limits(vhost, definitions::limits_of(limits))),
            Err(answer) => answer,
        },
        (Verb::Delete, ["vhost-limits", vhost]) => {
            changed(broker.set_vhost_limits(vhost, crate::broker::VhostLimits::default()))
        }
        _ => not_found("Not Found"),
    }
}

/// What is said of a user; what is not said stays.
#[derive(Deserialize)]
struct UserBody {
    password_hash: Option<String>,
    hashing_algorithm: Option<String>,
    tags: Option<String>,
}

#[derive(Deserialize)]
struct Patterns {
    configure: String,
    write: String,
    read: String,
}

#[derive(Deserialize)]
struct TopicPatterns {
    exchange: String,
    write: String,
    read: String,
}

fn body<'b, T: Deserialize<'b>>(request: &Request<'b>) -> Result<T, Answer> {
    serde_json::from_slice(request.body).map_err(|error| bad_request(&error.to_string()))
}

fn put_user(request: &Request<'_>, scene: &mut Scene<'_>, user: &str) -> Answer {
    let said: UserBody = match body(request) {
        Ok(said) => said,
        Err(answer) => return answer,
    };
    let exists = (0..scene.broker.user_places())
        .filter_map(|place| scene.broker.user_at(place))
        .any(|view| view.name == user);
    match request.condition {
        Condition::IsNew if exists => {
            let why = format!("User \"{user}\" already exists");
            return Answer::Now(Status::PreconditionFailed, problem("precondition_failed", &why));
        }
        Condition::Exists if !exists => return changed(Err(OperatorFault::NoSuchUser(user.into()))),
        _ => {}
    }
    let hash = match (&said.hashing_algorithm, &said.password_hash) {
        (Some(algorithm), Some(hash)) => match PasswordHash::import(algorithm, hash) {
            Ok(hash) => Some(hash),
            Err(error) => return bad_request(&error.to_string()),
        },
        _ => None,
    };
    let broker = &mut *scene.broker;
    changed(match (exists, hash, said.tags) {
        (true, Some(hash), Some(tags)) => broker.put_user(user, hash, &tags),
        (true, Some(hash), None) => broker.change_password_hash(user, hash),
        (true, None, Some(tags)) => broker.set_tags(user, &tags),
        (true, None, None) => Ok(broker.journal().await_facts()),
        (false, hash, tags) => {
            broker.put_user(user, hash.unwrap_or(PasswordHash::Nobodys), &tags.unwrap_or_default())
        }
    })
}

fn changed(outcome: Changed) -> Answer {
    let fault = match outcome {
        Ok(batch) => return Answer::Durable(batch, Status::NoContent, Vec::new()),
        Err(fault) => fault,
    };
    let (status, error) = match &fault {
        OperatorFault::NoSuchUser(_) => (Status::NotFound, "no_such_user"),
        OperatorFault::NoSuchVhost(_) => (Status::NotFound, "no_such_vhost"),
        OperatorFault::BadName(..) | OperatorFault::BadPattern { .. } => (Status::BadRequest, "bad_request"),
        OperatorFault::BeingDeleted(_) | OperatorFault::NoRoom(_) | OperatorFault::Store(_) => {
            (Status::Unavailable, "unavailable")
        }
    };
    Answer::Now(status, problem(error, &fault.to_string()))
}
