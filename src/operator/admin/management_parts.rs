//! Parts of the management API's answers that several of them have, and limits.
//!
//! Always true: what is written is part of an object or list that has begun, or a whole one.

use crate::broker::{UserLimits, VhostLimits};

use super::json::Json;
use super::request_context::RequestContext;

/// Limits that somebody has set, of those virtual hosts or users that are meant.
pub(super) fn limits(
    json: &mut Json<'_>,
    context: &RequestContext<'_>,
    kind: &str,
    is_meant: impl Fn(&str) -> bool,
) {
    let broker = &*context.broker;
    let of_vhost = |limits: VhostLimits| {
        [("max-queues", limits.queues_max), ("max-connections", limits.connections_max)]
    };
    let of_user = |limits: UserLimits| {
        [("max-channels", limits.channels_max), ("max-connections", limits.connections_max)]
    };
    let (key, rows): (_, Vec<_>) = match kind {
        "vhost-limits" => {
            ("vhost", broker.access().vhosts().map(|view| (view.name, of_vhost(view.limits))).collect())
        }
        _ => ("user", broker.access().users().map(|view| (view.name, of_user(view.limits))).collect()),
    };
    json.raw(b"[");
    let mut is_first = true;
    for (name, limits) in rows {
        if !is_meant(name) || limits.iter().all(|(_, limit)| limit.is_none()) {
            continue;
        }
        json.comma(&mut is_first);
        json.raw(b"{");
        let mut is_first_field = true;
        texts(json, &mut is_first_field, &[(key, name)]);
        json.name("value", &mut is_first_field);
        json.raw(b"{");
        let mut is_first_limit = true;
        for (name, limit) in limits.into_iter().filter_map(|(name, limit)| Some((name, limit?))) {
            numbers(json, &mut is_first_limit, &[(name, limit.into())]);
        }
        json.raw(b"}}");
    }
    json.raw(b"]");
}

/// Names and numbers of an object that has begun.
pub(super) fn numbers(json: &mut Json<'_>, is_first: &mut bool, numbers: &[(&str, u64)]) {
    for (name, number) in numbers {
        json.name(name, is_first);
        json.number(*number);
    }
}

pub(super) fn texts(json: &mut Json<'_>, is_first: &mut bool, texts: &[(&str, &str)]) {
    for (name, text) in texts {
        json.name(name, is_first);
        json.text(text);
    }
}

pub(super) fn nested(json: &mut Json<'_>, members: &[(&str, u64)]) {
    json.raw(b"{");
    numbers(json, &mut true, members);
    json.raw(b"}");
}
