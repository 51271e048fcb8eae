//! Runtime parameters, global ones, and shovels over the operator's interface and the management API.
//!
//! Always true: what is wrong with a parameter is said in RabbitMQ's words, and its value nowhere but in a
//! listing of parameters, which takes the tag `policymaker`; a parameter that is put is answered when it is
//! durable.

use crate::broker::{OperatorFault, ParameterView, SHOVEL};
use crate::fields::{Fields, Value};

use super::access::changed;
use super::answer::{Answer, bad_request, done, not_found};
use super::http::{Request, Status, Verb};
use super::request_context::{BridgeOrder, RequestContext};

/// Puts a parameter, or takes one away. `user`: who asks, if it is not the operator of this machine.
pub(super) fn handle(
    request: &Request<'_>,
    context: &mut RequestContext<'_>,
    path: &[&str],
    user: Option<&str>,
) -> Answer {
    let (vhost, component, name) = match *path {
        ["parameters", component, vhost, name] => (Some(vhost), component, name),
        ["global-parameters", name] => (None, "", name),
        _ => return not_found("Not Found"),
    };
    if request.verb == Verb::Delete {
        return clear(context, vhost, component, name);
    }
    let value = match Fields::parse(request.body).map(|mut fields| fields.value("value")) {
        Ok(Value::Null) => return bad_request("[{key_missing,value}]"),
        Ok(value) => value.compact(),
        Err(why) => Err(why),
    };
    let value = match value {
        Ok(value) => value,
        Err(why) => return bad_request(&why),
    };
    let said = ParameterView { vhost, component, name, value: value.as_bytes() };
    let is_it = |it: &ParameterView<'_>| (it.vhost, it.component, it.name) == (vhost, component, name);
    let is_new = !context.broker.views().parameters().any(|view| is_it(&view));
    match changed(context.broker.set_parameter(context.journal, &said, user)) {
        Answer::Changed(_, body) if is_new => Answer::Changed(Status::Created, body),
        answer => answer,
    }
}

fn clear(context: &mut RequestContext<'_>, vhost: Option<&str>, component: &str, name: &str) -> Answer {
    match context.broker.clear_parameter(context.journal, vhost, component, name) {
        Err(OperatorFault::NoSuchParameter) => not_found("Not Found"),
        cleared => changed(cleared),
    }
}

/// Deletes a shovel, or has it connect anew.
pub(super) fn shovel(context: &mut RequestContext<'_>, vhost: &str, name: &str, restarts: bool) -> Answer {
    if !restarts {
        return clear(context, Some(vhost), SHOVEL, name);
    }
    let bridges = context.bridges;
    let found = (0..bridges.places())
        .filter_map(|place| bridges.at(place))
        .find(|link| link.shovel.as_ref().is_some_and(|shovel| (shovel.vhost, shovel.name) == (vhost, name)));
    let Some(link) = found else { return not_found("Not Found") };
    context.orders.bridge = Some((link.bridge.to_string(), BridgeOrder::Restart));
    done(Status::NoContent)
}

/// Has the loop tell a bridge something.
pub(super) fn order_bridge(context: &mut RequestContext<'_>, bridge: &str, order: &str) -> Answer {
    let order = match order {
        "pause" => BridgeOrder::Pause,
        "resume" => BridgeOrder::Resume,
        "retry" => BridgeOrder::Retry,
        _ => return not_found("Not Found"),
    };
    if !context.bridges.is_known(bridge) {
        let hint = if context.bridges.is_known(&format!("shovel {bridge}")) {
            format!("; the shovel is 'shovel {bridge}', with its space")
        } else {
            String::new()
        };
        return not_found(&format!("there is no bridge '{bridge}'{hint}"));
    }
    context.orders.bridge = Some((bridge.to_string(), order));
    done(Status::NoContent)
}
