//! The health checks of the management API: what a probe asks to see whether this broker can be used.
//!
//! Always true: a check that has no meaning on one node passes, as it does on a RabbitMQ alone; one that
//! nobody knows is not found, so that a probe with a slip in its path does not pass.

use super::answer::{Answer, body, not_found, problem};
use super::api::which_alarms;
use super::http::Status;
use super::request_context::RequestContext;

pub(super) fn status_ok() -> Answer {
    Answer::Now(Status::Ok, body(|json| json.raw(b"{\"status\":\"ok\"}")))
}

fn failed(reason: &str) -> Answer {
    let body = body(|json| {
        json.raw(b"{\"status\":\"failed\",\"reason\":");
        json.text(reason);
        json.raw(b"}");
    });
    Answer::Now(Status::Unavailable, body)
}

/// The health checks that mean something on one node.
pub(super) fn check(context: &RequestContext<'_>, check: &[&str]) -> Answer {
    // A protocol, a space and where, which ends with a port.
    let listeners = || context.process.listeners.iter().filter_map(|text| text.split_once(' '));
    let is_listening = match check {
        ["alarms" | "local-alarms"] => {
            let alarms = which_alarms(context);
            let alarm = alarms.iter().find(|text| text.starts_with("disk") || text.starts_with("store"));
            return alarm.map_or_else(status_ok, |alarm| failed(alarm));
        }
        [
            "virtual-hosts"
            | "ready-to-serve-clients"
            | "node-is-quorum-critical"
            | "node-is-mirror-sync-critical",
        ] => true,
        ["port-listener", port] => match port.parse::<u16>() {
            Ok(port) => listeners().any(|(_, at)| at.ends_with(&format!(":{port}"))),
            Err(_) => {
                return Answer::Now(Status::BadRequest, problem("bad_request", "the port is no number"));
            }
        },
        ["protocol-listener", protocol] => {
            let protocol = match *protocol {
                "amqp091" | "amqp" => "amqp",
                "amqps" | "amqp/ssl" => "amqp/ssl",
                other => other,
            };
            listeners().any(|(spoken, _)| spoken == protocol)
        }
        _ => return not_found("Not Found"),
    };
    if is_listening { status_ok() } else { failed("No active listener") }
}
