//! Exports definitions in RabbitMQ's format, which RabbitMQ and Leveret import.
//!
//! # Invariants
//! - Objects of one connection and the predeclared exchanges of every virtual host are omitted.
//! - Passwords are exported as hashes: a reader of the file could also copy the store.

use crate::columns::{Column, ListedKind};
use crate::definition_columns::raw_value;
use crate::listing::{ListingPart, whole_row};
use crate::request::ReadContext;
use leveret_core::rabbitmq_version;

use leveret_broker::{
    BindingView, ExchangeView, ParameterView, PermissionView, PolicyKind, PolicyView, QueueView,
    TopicPermissionView, UserView, VhostView,
};

/// The versions at the start of the file. RabbitMQ checks them.
const BEGINNING: &str = concat!(
    "{\"rabbit_version\":\"",
    rabbitmq_version!(),
    "\",\"rabbitmq_version\":\"",
    rabbitmq_version!(),
    "\",\n",
    "\"product_name\":\"Leveret\",\n\"users\":["
);

/// The parts of an export.
pub const PARTS: &[ListingPart] = &[
    part::<Users>(BEGINNING),
    part::<Vhosts>("\n],\n\"vhosts\":["),
    part::<Permissions>("\n],\n\"permissions\":["),
    part::<TopicPermissions>("\n],\n\"topic_permissions\":["),
    part::<Limits>("\n],\n\"parameters\":["),
    part::<OperatorPolicies>(""),
    part::<Parameters>(""),
    part::<GlobalParameters>("\n],\n\"global_parameters\":["),
    part::<Policies>("\n],\n\"policies\":["),
    part::<Queues>("\n],\n\"queues\":["),
    part::<Exchanges>("\n],\n\"exchanges\":["),
    ListingPart { around: ("\n],\n\"bindings\":[", "\n]}\n"), ..part::<Bindings>("") },
];

/// The parts of an export of one virtual host.
pub const VHOST_PARTS: &[ListingPart] = &[
    part::<Limits>(concat!(
        "{\"rabbit_version\":\"",
        rabbitmq_version!(),
        "\",\"rabbitmq_version\":\"",
        rabbitmq_version!(),
        "\",\n",
        "\"product_name\":\"Leveret\",\n\"parameters\":["
    )),
    part::<OperatorPolicies>(""),
    part::<Parameters>(""),
    part::<Policies>("\n],\n\"policies\":["),
    part::<Queues>("\n],\n\"queues\":["),
    part::<Exchanges>("\n],\n\"exchanges\":["),
    ListingPart { around: ("\n],\n\"bindings\":[", "\n]}\n"), ..part::<Bindings>("") },
];

const fn part<K: ListedKind>(before: &'static str) -> ListingPart {
    ListingPart { around: (before, ""), places: K::places, row: whole_row::<K>, probe: None }
}

/// Declares a kind whose objects are exported if they meet a condition, with all its columns. The name in parentheses
/// is the part of the broker that lists them.
macro_rules! exported {
    ($name:ident, $view:ident, $(($part:ident))? $places:ident, $at:ident, $is_meant:expr, $vhost:expr, $columns:expr) => {
        #[derive(Debug)]
        struct $name;

        impl ListedKind for $name {
            type View<'a> = $view<'a>;

            const COLUMNS: &'static [Column<Self>] = &$columns;

            fn places(context: ReadContext<'_>) -> usize {
                context.broker$(.$part())?.$places()
            }

            fn at(context: ReadContext<'_>, place: usize) -> Option<Self::View<'_>> {
                let is_meant: fn(&$view<'_>) -> bool = $is_meant;
                context.broker$(.$part())?.$at(place).filter(is_meant)
            }

            fn vhost<'a>(view: &Self::View<'a>) -> Option<&'a str> {
                let vhost: for<'v> fn(&$view<'v>) -> Option<&'v str> = $vhost;
                vhost(view)
            }
        }
    };
}

exported!(
    Users,
    UserView,
    (access)
    user_places,
    user_at,
    |_| true,
    |_| None,
    [
        ("name", |user, writer| writer.json.text(user.name)),
        ("password_hash", |user, writer| writer.json.text(&user.hash.export().1)),
        ("hashing_algorithm", |user, writer| writer.json.text(user.hash.export().0)),
        ("tags", |user, writer| writer.json.texts(user.tags.split(',').filter(|tag| !tag.is_empty()))),
        ("limits", |user, writer| crate::definition_columns::user_limits(user, writer)),
    ]
);

exported!(
    Vhosts,
    VhostView,
    (access)
    vhost_places,
    vhost_at,
    |_| true,
    |_| None,
    [
        ("name", |vhost, writer| writer.json.text(vhost.name)),
        ("limits", |vhost, writer| match vhost.limits == Default::default() {
            true => writer.json.raw(b"[]"),
            false => crate::columns::limits(vhost, writer),
        }),
        ("metadata", |vhost, writer| crate::columns::vhost_metadata(vhost, writer)),
    ]
);

exported!(
    Permissions,
    PermissionView,
    (access)
    permission_places,
    permission_at,
    |_| true,
    |_| None,
    [
        ("user", |it, writer| writer.json.text(it.user)),
        ("vhost", |it, writer| writer.json.text(it.vhost)),
        ("configure", |it, writer| writer.json.text(it.configure)),
        ("write", |it, writer| writer.json.text(it.write)),
        ("read", |it, writer| writer.json.text(it.read)),
    ]
);

exported!(
    TopicPermissions,
    TopicPermissionView,
    (access)
    topic_permission_places,
    topic_permission_at,
    |_| true,
    |_| None,
    [
        ("user", |it, writer| writer.json.text(it.user)),
        ("vhost", |it, writer| writer.json.text(it.vhost)),
        ("exchange", |it, writer| writer.json.text(it.exchange)),
        ("write", |it, writer| writer.json.text(it.write)),
        ("read", |it, writer| writer.json.text(it.read)),
    ]
);

exported!(
    Limits,
    VhostView,
    (access)
    vhost_places,
    vhost_at,
    |vhost| vhost.limits != Default::default(),
    |it| Some(it.name),
    [
        ("component", |_, writer| writer.json.text("vhost-limits")),
        ("name", |_, writer| writer.json.text("limits")),
        ("vhost", |vhost, writer| writer.json.text(vhost.name)),
        ("value", |vhost, writer| crate::columns::limits(vhost, writer)),
    ]
);

exported!(
    OperatorPolicies,
    PolicyView,
    (views) policy_places,
    policy_at,
    |view| view.policy.kind == PolicyKind::Operator,
    |it| Some(it.vhost),
    [
        ("component", |_, writer| writer.json.text("operator_policy")),
        ("name", |it, writer| writer.json.text(it.policy.name)),
        ("vhost", |it, writer| writer.json.text(it.vhost)),
        ("value", |it, writer| {
            let mut is_first = true;
            writer.json.raw(b"{");
            for (name, text) in [("pattern", it.policy.pattern), ("apply-to", it.policy.apply_to.name())] {
                writer.json.name(name, &mut is_first);
                writer.json.text(text);
            }
            writer.json.name("priority", &mut is_first);
            writer.json.number(it.policy.priority);
            writer.json.name("definition", &mut is_first);
            crate::definition_columns::policy_definition(it, writer);
            writer.json.raw(b"}");
        }),
    ]
);

exported!(
    Parameters,
    ParameterView,
    (views) parameter_places,
    parameter_at,
    |view| view.vhost.is_some(),
    |it| it.vhost,
    [
        ("value", |it, writer| raw_value(it, &mut writer.json)),
        ("vhost", |it, writer| writer.json.text(it.vhost.unwrap_or_default())),
        ("component", |it, writer| writer.json.text(it.component)),
        ("name", |it, writer| writer.json.text(it.name)),
    ]
);

exported!(
    GlobalParameters,
    ParameterView,
    (views) parameter_places,
    parameter_at,
    |view| view.vhost.is_none(),
    |_| None,
    [("name", |it, writer| writer.json.text(it.name)), ("value", |it, writer| raw_value(it, &mut writer.json)),]
);

exported!(
    Policies,
    PolicyView,
    (views) policy_places,
    policy_at,
    |view| view.policy.kind == PolicyKind::User,
    |it| Some(it.vhost),
    [
        ("vhost", |it, writer| writer.json.text(it.vhost)),
        ("name", |it, writer| writer.json.text(it.policy.name)),
        ("pattern", |it, writer| writer.json.text(it.policy.pattern)),
        ("apply-to", |it, writer| writer.json.text(it.policy.apply_to.name())),
        ("definition", crate::definition_columns::policy_definition),
        ("priority", |it, writer| writer.json.number(it.policy.priority)),
    ]
);

exported!(
    Queues,
    QueueView,
    (views) queue_places,
    queue_at,
    |queue| queue.owner.is_none() && !queue.is_of_session,
    |it| Some(it.vhost),
    [
        ("name", |queue, writer| writer.json.text(queue.name)),
        ("vhost", |queue, writer| writer.json.text(queue.vhost)),
        ("durable", |queue, writer| writer.json.truth(queue.durable)),
        ("auto_delete", |queue, writer| writer.json.truth(queue.auto_delete)),
        ("arguments", |queue, writer| writer.json.table(queue.arguments, writer.tables)),
    ]
);

exported!(
    Exchanges,
    ExchangeView,
    (views) exchange_places,
    exchange_at,
    |it| !is_predeclared(it.name),
    |it| Some(it.vhost),
    [
        ("name", |it, writer| writer.json.text(it.name)),
        ("vhost", |it, writer| writer.json.text(it.vhost)),
        ("type", |it, writer| writer.json.text(it.kind)),
        ("durable", |it, writer| writer.json.truth(it.durable)),
        ("auto_delete", |it, writer| writer.json.truth(it.auto_delete)),
        ("internal", |it, writer| writer.json.truth(it.internal)),
        ("arguments", |it, writer| writer.json.table(it.arguments, writer.tables)),
    ]
);

exported!(
    Bindings,
    BindingView,
    (views) binding_places,
    binding_at,
    |binding| !binding.exclusive,
    |it| Some(it.vhost),
    [
        ("source", |binding, writer| writer.json.text(binding.source)),
        ("vhost", |binding, writer| writer.json.text(binding.vhost)),
        ("destination", |binding, writer| writer.json.text(binding.destination)),
        ("destination_type", |it, writer| writer.json.text(if it.to_exchange { "exchange" } else { "queue" })),
        ("routing_key", |binding, writer| writer.json.text(binding.routing_key)),
        ("arguments", |binding, writer| writer.json.table(binding.arguments, writer.tables)),
    ]
);

fn is_predeclared(exchange: &str) -> bool {
    exchange.is_empty() || exchange.starts_with("amq.")
}
