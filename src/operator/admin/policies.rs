//! Policies over the operator's interface and the management API.
//!
//! Always true: what is wrong with a policy is said in RabbitMQ's words; a policy that is put is answered
//! when it is durable, and has been told to the first queues by then.

use crate::broker::{NewPolicy, OperatorFault, PolicyKind};
use crate::fields::Fields;

use super::access::changed;
use super::answer::{Answer, bad_request, not_found};
use super::definitions::Policy;
use super::http::{Request, Status, Verb};
use super::request_context::RequestContext;

/// Which policies a path speaks of.
pub(super) fn kind_of(path: &str) -> PolicyKind {
    if path == "operator-policies" { PolicyKind::Operator } else { PolicyKind::User }
}

/// Puts a policy, or takes one away.
pub(super) fn handle(request: &Request<'_>, context: &mut RequestContext<'_>, path: &[&str]) -> Answer {
    let [kind, vhost, name] = *path else { return not_found("Not Found") };
    let kind = kind_of(kind);
    let (broker, mut context) = context.broker();
    if request.verb == Verb::Delete {
        return match broker.clear_policy(&mut context, vhost, kind, name) {
            Err(OperatorFault::NoSuchParameter) => not_found("Not Found"),
            done => changed(done),
        };
    }
    let said = match Fields::parse(request.body).and_then(|fields| Policy::read(fields, kind, vhost, name)) {
        Ok(said) => said,
        Err(why) => return bad_request(&why),
    };
    let is_there = |view: crate::broker::PolicyView<'_>| {
        (view.vhost, view.policy.kind, view.policy.name) == (vhost, kind, name)
    };
    let is_new = !broker.views().policies().any(is_there);
    let put = broker.set_policy(&mut context, vhost, &NewPolicy::from(&said));
    match changed(put) {
        Answer::Changed(_, body) if is_new => Answer::Changed(Status::Created, body),
        answer => answer,
    }
}
