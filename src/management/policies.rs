//! Sets and deletes policies and operator policies.
//!
//! # Invariants
//! - Errors in a policy are reported in RabbitMQ's words.
//! - A change is answered when it is durable. By that time it has been applied to the first queues.

use leveret_broker::OperatorFault;
use leveret_core::definition::PolicyKind;
use leveret_json::Fields;

use super::access::{self, changed};
use super::definitions::read_policy;
use super::request::Call;
use super::request::RequestContext;
use super::request::{Answered, bad, not_found};

/// Returns the kind of policies that the path names.
fn kind_of(call: &Call<'_>) -> PolicyKind {
    let is_operator_policy = call.request.segments.get(1).is_some_and(|kind| kind == "operator-policies");
    if is_operator_policy { PolicyKind::Operator } else { PolicyKind::User }
}

/// Deletes a policy.
pub(super) fn clear(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let (broker, mut context) = context.broker();
    match broker.clear_policy(&mut context, call.name("vhost"), kind_of(call), call.name("policy")) {
        Err(OperatorFault::NoSuchParameter) => Err(not_found("Not Found")),
        done => changed(done),
    }
}

/// Creates or replaces a policy.
pub(super) fn put(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let (vhost, kind, name) = (call.name("vhost"), kind_of(call), call.name("policy"));
    let (broker, mut context) = context.broker();
    let fields = Fields::parse(call.request.body);
    let names = (vhost.to_string(), name.to_string());
    let policy = fields.and_then(|mut fields| read_policy(&mut fields, kind, names)).map_err(bad)?;
    let is_new = !broker.views().policies().any(|it| (it.vhost, it.kind, it.name) == (vhost, kind, name));
    access::put(is_new, broker.set_policy(&mut context, &policy.borrowed()))
}
