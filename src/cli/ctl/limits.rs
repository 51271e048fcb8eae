//! Commands about limits of virtual hosts and users. Errors have rabbitmqctl's texts; limits that are not set are
//! not shown.

use serde_json::{Value, json};

use super::access::done;
use super::client::Reply;
use super::client::{
    BAD_DATA, Failure, UNAVAILABLE, no_json, no_such_user, print_info, print_json, print_message, print_value,
};
use super::commands::Call;
use super::commands::{ask, connect};
use super::format::{Formatter, print_rows};

pub(super) fn set_vhost_limits(call: &Call) -> Result<(), Failure> {
    let (limits, vhost) = (&call.args[0], call.vhost());
    print_info(call, &format!("Setting vhost limits to \"{limits}\" for vhost \"{vhost}\" ..."))?;
    if let Some(why) = invalid_limits_text(limits, ["max-connections", "max-queues"], "limits")? {
        return Err(Failure::error(UNAVAILABLE, format_args!("Validation failed\n\n{why}\n")));
    }
    let reply = ask(call, "PUT", &["vhost-limits", vhost], limits)?;
    if reply.status == 400 {
        return Err(Failure::error(UNAVAILABLE, format_args!("Validation failed\n\n{}\n", reply.reason())));
    }
    done(call, &reply)
}

pub(super) fn list_vhost_limits(call: &Call) -> Result<(), Failure> {
    if call.has("global") {
        print_info(call, "Listing limits for all vhosts ...")?;
        return show_all(call, "vhost", &limits_of_all(call, "vhosts")?);
    }
    let vhost = call.vhost();
    print_info(call, &format!("Listing limits for vhost \"{vhost}\" ..."))?;
    let all = limits_of_all(call, "vhosts")?;
    let Some((_, limits)) = all.into_iter().find(|(name, _)| name == vhost) else {
        return Err(Failure::new(BAD_DATA, format!("Virtual host '{vhost}' does not exist")));
    };
    match (Some(limits).filter(has_any), call.formatter()) {
        (Some(limits), _) => print_value(call, &limits.to_string()),
        (None, Formatter::Json) => print_json(&json!([])),
        (None, _) => print_value(call, ""),
    }
}

pub(super) fn set_user_limits(call: &Call) -> Result<(), Failure> {
    let (user, limits) = (&call.args[0], &call.args[1]);
    print_info(call, &format!("Setting user limits to \"{limits}\" for user \"{user}\" ..."))?;
    if let Some(why) = invalid_limits_text(limits, ["max-channels", "max-connections"], "user-limits")? {
        return Err(Failure::error(UNAVAILABLE, why));
    }
    let reply = ask(call, "PUT", &["user-limits", user], limits)?;
    user_done(call, &reply, user)
}

pub(super) fn clear_user_limits(call: &Call) -> Result<(), Failure> {
    let (user, limit) = (&call.args[0], &call.args[1]);
    let which = if limit == "all" { "all limits".to_string() } else { format!("\"{limit}\" limit") };
    print_info(call, &format!("Clearing {which} for user \"{user}\" ..."))?;
    user_done(call, &ask(call, "DELETE", &["user-limits", user, limit], "")?, user)
}

pub(super) fn list_user_limits(call: &Call) -> Result<(), Failure> {
    if call.has("global") {
        print_info(call, "Listing limits for all users ...")?;
        return show_all(call, "user", &limits_of_all(call, "users")?);
    }
    let user = call.value("user").unwrap_or("guest");
    print_info(call, &format!("Listing limits for user \"{user}\" ..."))?;
    let found = limits_of_all(call, "users")?.into_iter().find(|(name, _)| name == user);
    match found {
        Some((_, limits)) => print_message(call, &limits.to_string()),
        None => Err(no_such_user(user)),
    }
}

/// Returns all virtual hosts, or users, with their limits.
fn limits_of_all(call: &Call, what: &str) -> Result<Vec<(String, Value)>, Failure> {
    let mut all = Vec::new();
    let refused = connect(call)?.rows(&format!("/api/{what}?columns=name,limits"), &mut |row| {
        let name = row.get("name").and_then(Value::as_str).unwrap_or_default();
        all.push((name.to_string(), row.get("limits").cloned().unwrap_or_else(|| json!({}))));
        Ok(())
    })?;
    refused.map_or(Ok(all), |reply| Err(Failure::refused(&reply)))
}

fn has_any(limits: &Value) -> bool {
    limits.as_object().is_some_and(|limits| !limits.is_empty())
}

/// Prints those with limits as rows.
fn show_all(call: &Call, what: &str, all: &[(String, Value)]) -> Result<(), Failure> {
    let rows = all.iter().filter(|(_, limits)| has_any(limits));
    let rows = rows.map(|(name, limits)| vec![name.as_str().into(), limits.to_string().into()]);
    print_rows(call, &[what, "limits"], rows)
}

/// Returns why limits are invalid, with rabbitmqctl's text.
fn invalid_limits_text(limits: &str, known: [&str; 2], what: &str) -> Result<Option<String>, Failure> {
    let limits = limits.parse::<Value>().map_err(|error| no_json("definition", &error))?;
    let Some(limits) = limits.as_object() else { return Ok(None) };
    let erlang =
        |value: &Value| value.as_str().map_or_else(|| value.to_string(), |text| format!("<<{text:?}>>"));
    let mut unknown = limits.iter().filter(|(name, _)| !known.contains(&name.as_str()));
    let no_number = limits.iter().find(|(name, value)| known.contains(&name.as_str()) && !value.is_number());
    Ok(match (no_number, unknown.next()) {
        (Some((name, value)), _) => {
            Some(format!("{name} should be a number, actually was {}", erlang(value)))
        }
        (None, Some(first)) => {
            let terms = core::iter::once(first).chain(unknown);
            let terms = terms.map(|(name, value)| format!("{{<<{name:?}>>,{}}}", erlang(value)));
            let terms: Vec<String> = terms.collect();
            Some(format!("Unrecognised terms [{}] in {what}", terms.join(",")))
        }
        (None, None) => None,
    })
}

fn user_done(call: &Call, reply: &Reply, user: &str) -> Result<(), Failure> {
    if reply.error() == "no_such_user" { Err(no_such_user(user)) } else { done(call, reply) }
}
