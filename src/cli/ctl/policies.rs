//! `set_policy` and `set_operator_policy`. Errors have the broker's texts, which are rabbitmqctl's.

use serde_json::{Value, json};

use super::access::done;
use super::client::{Failure, misused, no_json, print_info};
use super::commands::Call;
use super::commands::ask;

pub(super) fn set(call: &Call) -> Result<(), Failure> {
    let [name, pattern, definition] = call.args.as_slice() else { return Ok(()) };
    let (path, what) = match call.command.as_str() {
        "set_operator_policy" => ("operator-policies", "operator policy override"),
        _ => ("policies", "policy"),
    };
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
    done(call, &ask(call, "PUT", &[path, vhost, name], &body.to_string())?)
}
