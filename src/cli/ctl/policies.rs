//! Commands about policies and operator policies. Errors have the broker's texts, which are rabbitmqctl's.

use serde_json::{Value, json};

use super::access::done;
use super::client::{Failure, UNAVAILABLE, misused, no_json, print_info};
use super::commands::Call;
use super::commands::ask;

/// Returns the API path for a command about policies or operator policies, and the verbs for the printed
/// messages about setting and clearing them.
fn words(call: &Call) -> (&'static str, [&'static str; 2]) {
    match call.command.contains("operator") {
        true => ("operator-policies", ["operator policy override", "operator policy"]),
        false => ("policies", ["policy", "policy"]),
    }
}

pub(super) fn set(call: &Call) -> Result<(), Failure> {
    let [name, pattern, definition] = call.args.as_slice() else { return Ok(()) };
    let (path, [what, _]) = words(call);
    let (priority, vhost) = (call.value("priority").unwrap_or("0"), call.vhost());
    let Ok(number) = priority.parse::<i32>() else {
        return Err(misused(call, &format!("Invalid options for this command:\n--priority : {priority}")));
    };
    print_info(
        call,
        &format!(
            "Setting {what} \"{name}\" for pattern \"{pattern}\" to \"{definition}\" with priority \
             \"{priority}\" for vhost \"{vhost}\" ..."
        ),
    )?;
    let definition = definition.parse::<Value>().map_err(|error| no_json("definition", &error))?;
    let body = json!({
        "pattern": pattern,
        "definition": definition,
        "priority": number,
        "apply-to": call.value("apply-to").unwrap_or("all"),
    });
    let reply = ask(call, "PUT", &[path, vhost, name], &body.to_string())?;
    done(&reply)
}

pub(super) fn clear(call: &Call) -> Result<(), Failure> {
    let (name, vhost) = (&call.args[0], call.vhost());
    let (path, [_, what]) = words(call);
    print_info(call, &format!("Clearing {what} \"{name}\" on vhost \"{vhost}\" ..."))?;
    let reply = ask(call, "DELETE", &[path, vhost, name], "")?;
    match reply.status {
        404 => Err(Failure::error(UNAVAILABLE, "Parameter does not exist")),
        _ => done(&reply),
    }
}
