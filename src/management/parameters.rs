//! Runtime parameters, global parameters, shovels, and orders to bridges.
//!
//! # Invariants
//! - Errors in a parameter are reported in RabbitMQ's words.
//! - Its value is shown only in lists of parameters, which demand the tag `policymaker`.
//! - A change is answered when it is durable.

use leveret_broker::{Broker, OperatorFault, ParameterNeeds, SHOVEL};
use leveret_config::shovels::{self, ShovelEnd};
use leveret_config::upstream::Upstream;
use leveret_core::batch::Batch;
use leveret_core::command::NAME_BYTES_MAX;
use leveret_core::definition::Parameter;
use leveret_json::{Fields, Value};

use super::access::{self, changed};
use super::definitions::table_of;
use super::http::Status;
use super::request::Call;
use super::request::{Answered, bad, bad_request, done, not_found};
use super::request::{BridgeOrder, RequestContext};

/// Checks the value of a parameter, and returns which permissions it requires; `None` for a global parameter, which
/// requires none.
///
/// Naming files of this machine requires an administrator: the error message could reveal what is there, and the
/// bridge would use a key found there. So does connecting to this machine itself, because some users may log in only
/// from here.
///
/// # Errors
/// There is no such component, or it does not accept the value. The text is RabbitMQ's, and contains no passwords.
pub fn check_parameter(parameter: &Parameter<&str, &[u8]>) -> Result<Option<ParameterNeeds>, OperatorFault> {
    let Some(vhost) = parameter.vhost else { return Ok(None) };
    let needs = match parameter.component {
        SHOVEL => shovel_needs(vhost, parameter.name, parameter.value),
        other => Err(format!("component {other} not found")),
    };
    needs.map(Some).map_err(OperatorFault::Invalid)
}

fn shovel_needs(vhost: &str, name: &str, value: &[u8]) -> Result<ParameterNeeds, String> {
    let bridge = shovels::parse(vhost, name, value)?;
    if bridge.forwards_parked() {
        return Err(format!(
            "src-queue {} is the queue in which this shovel parks refused messages",
            bridge.parked
        ));
    }
    for end in bridge.shovel.iter().flat_map(|shovel| [&shovel.source, &shovel.destination]) {
        arguments_of(end)?;
    }
    let of_administrator = if bridge.tls.ca_file.is_some() || bridge.tls.identity.is_some() {
        Some("name files of this machine (cacertfile, certfile, keyfile)")
    } else if bridge.upstream.iter().any(Upstream::is_this_machine) {
        Some("connect to this machine itself")
    } else {
        None
    };
    Ok(ParameterNeeds { vhost: bridge.vhost, of_administrator })
}

/// Returns the arguments with which the queue of an end of a shovel is declared if it does not exist.
///
/// # Errors
/// They are no JSON object that can be arguments.
pub fn arguments_of(end: &ShovelEnd) -> Result<Vec<u8>, String> {
    if end.arguments.is_empty() {
        return Ok(Vec::new());
    }
    table_of(&Value::parse(end.arguments.as_bytes())?)
}

/// Checks and sets a parameter.
fn set(
    call: &Call<'_>,
    context: &mut RequestContext<'_>,
    parameter: &Parameter<&str, &[u8]>,
) -> Result<Batch, OperatorFault> {
    // As in RabbitMQ, an error in the value is reported before a missing virtual host.
    let needs = check_parameter(parameter)?;
    let user = call.user.map(|user| &*user.name);
    context.broker.set_parameter(context.pending_writes, parameter, needs.as_ref(), user)
}

/// Creates or replaces a parameter of a virtual host, or a global one.
pub(super) fn put(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let (vhost, component) =
        (call.optional_name("vhost"), call.optional_name("component").unwrap_or_default());
    let name = call.name("name");
    let value = match Fields::parse(call.request.body).map_err(bad)?.value("value") {
        Value::Null => return Err(bad_request("[{key_missing,value}]")),
        value => value.compact().map_err(bad)?,
    };
    let parameter = Parameter { vhost, component, name, value: value.as_bytes() };
    let is_same = |it: &Parameter<&str, &[u8]>| (it.vhost, it.component, it.name) == (vhost, component, name);
    let is_new = !context.broker.views().parameters().any(|view| is_same(&view));
    access::put(is_new, set(call, context, &parameter))
}

/// The global parameter with the name that clients and operators see as that of the cluster.
const CLUSTER_NAME: &str = "cluster_name";

/// Returns whether a text can be a cluster name. Operators see it on terminals, so it has no control characters.
fn is_cluster_name(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// Returns the cluster name: the global parameter if it is a name, or else the name of the node.
pub fn cluster_name(broker: &Broker, node: &str) -> String {
    let is_name = |it: &Parameter<&str, &[u8]>| it.vhost.is_none() && it.name == CLUSTER_NAME;
    let set = broker.views().parameters().find(is_name).and_then(|it| match Value::parse(it.value) {
        Ok(Value::String(name)) if is_cluster_name(&name) => Some(name.into_owned()),
        _ => None,
    });
    set.unwrap_or_else(|| node.to_string())
}

/// Sets the cluster name.
pub(super) fn put_cluster_name(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let name = match Fields::parse(call.request.body).map_err(bad)?.value("name") {
        Value::Null => return Err(bad_request("[{key_missing,name}]")),
        name @ Value::String(_) if name.as_str().is_some_and(is_cluster_name) => name,
        _ => return Err(bad_request("`name` must be a text of 1 to 255 bytes without control characters")),
    };
    let value = name.compact().map_err(bad)?;
    let parameter = Parameter { vhost: None, component: "", name: CLUSTER_NAME, value: value.as_bytes() };
    changed(set(call, context, &parameter))
}

/// Deletes a parameter.
pub(super) fn clear(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    clear_one(call, context, call.optional_name("component").unwrap_or_default())
}

fn clear_one(call: &Call<'_>, context: &mut RequestContext<'_>, component: &str) -> Answered {
    match context.broker.clear_parameter(
        context.pending_writes,
        call.optional_name("vhost"),
        component,
        call.name("name"),
    ) {
        Err(OperatorFault::NoSuchParameter) => Err(not_found("Not Found")),
        cleared => changed(cleared),
    }
}

/// Deletes a shovel.
pub(super) fn delete_shovel(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    match may_enter(call, context) {
        true => clear_one(call, context, SHOVEL),
        false => Err(not_found("Not Found")),
    }
}

/// Makes a shovel connect again.
pub(super) fn restart_shovel(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let (vhost, name, bridges) = (call.name("vhost"), call.name("name"), context.bridges);
    let found = (0..bridges.places())
        .filter_map(|place| bridges.at(place))
        .find(|link| link.shovel.as_ref().is_some_and(|shovel| (shovel.vhost, shovel.name) == (vhost, name)));
    let Some(link) = found.filter(|_| may_enter(call, context)) else { return Err(not_found("Not Found")) };
    context.orders.bridges.push((link.bridge.to_string(), BridgeOrder::Restart));
    Ok(done(Status::NoContent))
}

/// Returns whether the user has permissions in the virtual host. Without them the answer does not reveal whether an
/// object exists.
fn may_enter(call: &Call<'_>, context: &RequestContext<'_>) -> bool {
    let access = context.broker.access();
    call.user.is_none_or(|user| access.has_permission(&user.name, call.name("vhost")))
}

/// Asks the event loop to give an order to a bridge.
pub(super) fn order_bridge(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let bridge = call.name("bridge");
    let order = match call.name("order") {
        "pause" => BridgeOrder::Pause,
        "resume" => BridgeOrder::Resume,
        "retry" => BridgeOrder::Retry,
        _ => return Err(not_found("Not Found")),
    };
    if !context.bridges.is_known(bridge) {
        let hint = if context.bridges.is_known(&format!("shovel {bridge}")) {
            format!("; the shovel is 'shovel {bridge}', with its space")
        } else {
            String::new()
        };
        return Err(not_found(&format!("there is no bridge '{bridge}'{hint}")));
    }
    context.orders.bridges.push((bridge.to_string(), order));
    Ok(done(Status::NoContent))
}
