//! The health checks of the management API: what a probe asks to see whether this broker can be used.
//!
//! Always true: a check that has no meaning on one node passes, as it does on a RabbitMQ alone; one that
//! nobody knows is not found, so that a probe with a slip in its path does not pass.

use super::alarms::store_alarm;
use super::answer::{Answer, bad_request, body, refusal};
use super::call::Call;
use super::http::Status;
use super::json::Json;
use super::management_parts::said;
use super::request_context::RequestContext;

pub(super) fn status_ok() -> Answer {
    passed(|_| {})
}

/// The same, with what further members are written.
fn passed(more: impl FnOnce(&mut Json<'_>)) -> Answer {
    let written = body(|json| {
        json.raw(b"{\"status\":\"ok\"");
        more(json);
        json.raw(b"}");
    });
    Answer::Now(Status::Ok, written)
}

/// Whether its user could declare the queue `aliveness-test`, publish to it and take a message from it, as RabbitMQ
/// does; here none of that is done.
pub(super) fn aliveness(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    let user = call.user.map_or("", |user| &user.name);
    let checked = context.broker.check_use_of_queue(user, call.name("vhost"), "aliveness-test");
    checked.map_or_else(|fault| refusal(&fault), |()| status_ok())
}

/// The old check of a node: it is answered, whatever the answer is.
pub(super) fn node(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    match alarms(call, context) {
        Answer::Now(_, body) => Answer::Now(Status::Ok, body),
        answer => answer,
    }
}

/// Whether our certificates are good for so long: a number, and days, weeks, months or years.
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
            failed("a certificate of [tls] has ended, or will by then: renew it")
        }
        _ if context.process.is_tls_shut => failed("the files of [tls] cannot be used"),
        _ => status_ok(),
    }
}

fn failed(reason: &str) -> Answer {
    let body = body(|json| said(json, &[("status", "failed"), ("reason", reason)]));
    Answer::Now(Status::Unavailable, body)
}

/// Whether more can be written.
pub(super) fn alarms(_: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    store_alarm(context).map_or_else(status_ok, |alarm| failed(&alarm))
}

/// What has no meaning on one node.
pub(super) fn of_one_node(_: &Call<'_>, _: &RequestContext<'_>) -> Answer {
    passed(|json| json.raw(b",\"reason\":\"single node cluster\""))
}

/// What is spoken, and where, which ends with a port.
fn listeners<'c>(context: &'c RequestContext<'_>) -> impl Iterator<Item = (&'c str, &'c str)> {
    context.process.open_listeners().filter_map(|text| text.split_once(' '))
}

/// Whether somebody listens at a port.
pub(super) fn port(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    match call.name("port").parse::<u16>() {
        Ok(port) if listeners(context).any(|(_, at)| at.ends_with(&format!(":{port}"))) => {
            passed(|json| json.shown_raw(format_args!(",\"port\":{port}")))
        }
        Ok(_) => failed("No active listener"),
        Err(_) => bad_request("the port is no number"),
    }
}

/// Whether somebody listens who speaks this.
pub(super) fn protocol(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    let name = call.name("protocol");
    let protocol = match name {
        "amqp091" | "amqp" => "amqp",
        "amqps" | "amqp/ssl" => "amqp/ssl",
        other => other,
    };
    if !listeners(context).any(|(spoken, _)| spoken == protocol) {
        return failed("No active listener");
    }
    passed(|json| {
        json.raw(b",\"protocol\":");
        json.text(name);
    })
}
