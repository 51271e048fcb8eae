//! Exports definitions in RabbitMQ's format, which RabbitMQ and Leveret import.
//!
//! # Invariants
//! - Exclusive queues and their bindings, queues of MQTT sessions and predeclared exchanges are omitted.
//! - Passwords are exported only as salted hashes, as in RabbitMQ.

use crate::columns::{CellWriter, Column, Exchanges, ListedKind, Queues, Vhosts, limits};
use crate::definition_columns::{
    Bindings, GlobalParameters, Parameters, Permissions, Policies, TopicPermissions, Users, policy_definition,
};
use crate::json::{Json, Tables};
use crate::listing::{Listing, ListingPart, Written, write_cells};
use crate::request::ReadContext;
use crate::samples::Ranges;
use leveret_core::rabbitmq_version;

use leveret_broker::{BindingView, ExchangeView, Objects, QueueView, VhostView};
use leveret_core::definition::{Policy, PolicyKind, VhostLimits};

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

const fn part<K: Exported>(before: &'static str) -> ListingPart {
    ListingPart { around: (before, ""), places: K::places, row: row::<K>, probe: None }
}

/// A kind of object that is exported.
trait Exported: ListedKind + Sized {
    /// The columns in the file, in RabbitMQ's order.
    const MEMBERS: &'static [&'static str];
    /// Whether the export of a single virtual host names it, too, as RabbitMQ's does.
    const ALWAYS_NAMES_VHOST: bool = false;

    /// Returns whether the object is exported.
    fn is_exported(_: &Self::View<'_>) -> bool {
        true
    }

    /// Returns the column of a member.
    fn column(member: &str) -> Column<Self> {
        column_named(member)
    }
}

fn column_named<K: ListedKind>(member: &str) -> Column<K> {
    let column = K::COLUMNS.iter().find(|(name, _)| *name == member);
    *column.expect("an exported member is a column of its kind")
}

impl Exported for Users {
    const MEMBERS: &'static [&'static str] =
        &["name", "password_hash", "hashing_algorithm", "tags", "limits"];
}

impl Exported for Permissions {
    const MEMBERS: &'static [&'static str] = &["user", "vhost", "configure", "write", "read"];
}

impl Exported for TopicPermissions {
    const MEMBERS: &'static [&'static str] = &["user", "vhost", "exchange", "write", "read"];
}

impl Exported for Parameters {
    const ALWAYS_NAMES_VHOST: bool = true;
    const MEMBERS: &'static [&'static str] = &["value", "vhost", "component", "name"];
}

impl Exported for GlobalParameters {
    const MEMBERS: &'static [&'static str] = &["name", "value"];
}

impl Exported for Policies {
    const ALWAYS_NAMES_VHOST: bool = true;
    const MEMBERS: &'static [&'static str] =
        &["vhost", "name", "pattern", "apply-to", "definition", "priority"];
}

impl Exported for Queues {
    const MEMBERS: &'static [&'static str] = &["name", "vhost", "durable", "auto_delete", "arguments"];

    fn is_exported(queue: &QueueView<'_>) -> bool {
        queue.owner.is_none() && !queue.is_of_session
    }
}

impl Exported for Exchanges {
    const MEMBERS: &'static [&'static str] =
        &["name", "vhost", "type", "durable", "auto_delete", "internal", "arguments"];

    fn is_exported(exchange: &ExchangeView<'_>) -> bool {
        !exchange.name.is_empty() && !exchange.name.starts_with("amq.")
    }
}

impl Exported for Bindings {
    const MEMBERS: &'static [&'static str] =
        &["source", "vhost", "destination", "destination_type", "routing_key", "arguments"];

    fn is_exported(binding: &BindingView<'_>) -> bool {
        !binding.exclusive
    }
}

impl Exported for Vhosts {
    const MEMBERS: &'static [&'static str] = &["name", "limits", "metadata"];

    fn column(member: &str) -> Column<Self> {
        let (name, cell) = column_named::<Self>(member);
        // RabbitMQ exports an empty list.
        (name, if member == "limits" { list_or_limits } else { cell })
    }
}

fn list_or_limits(vhost: &VhostView<'_>, writer: &mut CellWriter<'_, '_>) {
    match vhost.limits == VhostLimits::default() {
        true => writer.json.raw(b"[]"),
        false => limits(vhost, writer),
    }
}

/// Limits of virtual hosts, which RabbitMQ exports as parameters.
#[derive(Debug)]
struct Limits;

impl ListedKind for Limits {
    type View<'a> = VhostView<'a>;

    const COLUMNS: &'static [Column<Self>] = &[
        ("component", |_, writer| writer.json.text("vhost-limits")),
        ("name", |_, writer| writer.json.text("limits")),
        ("vhost", |vhost, writer| writer.json.text(vhost.name)),
        ("value", limits),
    ];

    fn objects<'c>(context: ReadContext<'c>) -> impl Objects<Self::View<'c>> {
        Vhosts::objects(context).only(|vhost| vhost.limits != VhostLimits::default())
    }

    fn vhost<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        Some(view.name)
    }
}

impl Exported for Limits {
    const ALWAYS_NAMES_VHOST: bool = true;
    const MEMBERS: &'static [&'static str] = &["component", "name", "vhost", "value"];
}

/// Operator policies, which RabbitMQ exports as parameters.
#[derive(Debug)]
struct OperatorPolicies;

impl ListedKind for OperatorPolicies {
    type View<'a> = Policy<&'a str, &'a [u8]>;

    const COLUMNS: &'static [Column<Self>] = &[
        ("component", |_, writer| writer.json.text("operator_policy")),
        ("name", |it, writer| writer.json.text(it.name)),
        ("vhost", |it, writer| writer.json.text(it.vhost)),
        ("value", |it, writer| {
            let mut is_first = true;
            writer.json.raw(b"{");
            for (name, text) in [("pattern", it.pattern), ("apply-to", it.apply_to.name())] {
                writer.json.name(name, &mut is_first);
                writer.json.text(text);
            }
            writer.json.name("priority", &mut is_first);
            writer.json.number(it.priority);
            writer.json.name("definition", &mut is_first);
            policy_definition(it, writer);
            writer.json.raw(b"}");
        }),
    ];

    fn objects<'c>(context: ReadContext<'c>) -> impl Objects<Self::View<'c>> {
        context.broker.views().policies().only(|view| view.kind == PolicyKind::Operator)
    }

    fn vhost<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        Some(view.vhost)
    }
}

impl Exported for OperatorPolicies {
    const ALWAYS_NAMES_VHOST: bool = true;
    const MEMBERS: &'static [&'static str] = &["component", "name", "vhost", "value"];
}

/// Writes an object. In an export of one virtual host the column `vhost` is omitted, except for parameters.
fn row<K: Exported>(
    listing: &Listing,
    context: ReadContext<'_>,
    place: usize,
    json: Json<'_>,
    tables: Tables,
) -> Written {
    let only = listing.filter.vhost.as_deref();
    let is_wanted =
        |view: &K::View<'_>| K::is_exported(view) && only.is_none_or(|only| K::vhost(view) == Some(only));
    let Some(view) = K::at(context, place).filter(is_wanted) else { return Written::Nothing };
    let has_vhost = only.is_none() || K::ALWAYS_NAMES_VHOST;
    let members = K::MEMBERS.iter().filter(|name| has_vhost || **name != "vhost");
    let writer = CellWriter { json, tables, context, ranges: Ranges::default(), viewer: None, is_ctl: true };
    write_cells::<K>(&view, members.map(|member| K::column(member)), writer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_is_a_column_of_its_kind() {
        fn check<K: Exported>() {
            for member in K::MEMBERS {
                assert_eq!(K::column(member).0, *member);
            }
        }
        check::<Users>();
        check::<Vhosts>();
        check::<Permissions>();
        check::<TopicPermissions>();
        check::<Limits>();
        check::<OperatorPolicies>();
        check::<Parameters>();
        check::<GlobalParameters>();
        check::<Policies>();
        check::<Queues>();
        check::<Exchanges>();
        check::<Bindings>();
    }
}
