//! The columns of users, permissions, bindings, orphaned messages, parameters and policies.
//!
//! # Invariants
//! - Of a password only its hash is shown, and only to those who may see users.
//! - Values of parameters and definitions of policies are shown whole, because their size is bounded.

use leveret_amqp::field::Table;
use leveret_broker::{BindingView, Objects, Orphan, UserView, objects};
use leveret_core::definition::UserLimits;
use leveret_core::definition::{Parameter, Permission, Policy, PolicyKind, TopicPermission};

use super::columns::{CellWriter, Column, ListedKind, TYPED, put_limits, typed};
use super::http::{decode, encode};
use super::json::{Json, Tables};
use super::listing::{Audience, BindingEnds};
use super::request::ReadContext;

/// Users.
#[derive(Debug)]
pub(super) struct Users;

impl ListedKind for Users {
    type View<'a> = UserView<'a>;

    const COLUMNS: &'static [Column<Self>] = &[
        ("user", |user, writer| writer.json.text(user.name)),
        ("name", |user, writer| writer.json.text(user.name)),
        ("tags", |user, writer| writer.json.texts(user.tags.split(',').filter(|tag| !tag.is_empty()))),
        ("password_hash", |user, writer| writer.json.text(&user.hash.export().1)),
        ("hashing_algorithm", |user, writer| writer.json.text(user.hash.export().0)),
        ("limits", user_limits),
    ];

    fn name(view: &Self::View<'_>) -> Option<String> {
        Some(view.name.to_string())
    }

    fn objects<'c>(context: ReadContext<'c>) -> impl Objects<Self::View<'c>> {
        context.broker.access().users()
    }

    fn vhost<'a>(_: &Self::View<'a>) -> Option<&'a str> {
        None
    }

    fn user<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        Some(view.name)
    }
}

/// Permissions.
#[derive(Debug)]
pub(super) struct Permissions;

impl ListedKind for Permissions {
    const IS_OF_EXISTING_USER: bool = true;
    type View<'a> = Permission<&'a str>;

    const ORDER: &'static str = "vhost,user";
    const COLUMNS: &'static [Column<Self>] = &[
        ("user", |it, writer| writer.json.text(it.user)),
        ("vhost", |it, writer| writer.json.text(it.vhost)),
        ("configure", |it, writer| writer.json.text(it.configure)),
        ("write", |it, writer| writer.json.text(it.write)),
        ("read", |it, writer| writer.json.text(it.read)),
    ];

    /// Returns the user. Requests for one permission also name its virtual host.
    fn name(view: &Self::View<'_>) -> Option<String> {
        Some(view.user.to_string())
    }

    fn objects<'c>(context: ReadContext<'c>) -> impl Objects<Self::View<'c>> {
        context.broker.access().permissions()
    }

    fn vhost<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        Some(view.vhost)
    }

    fn user<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        Some(view.user)
    }
}

/// Topic permissions.
#[derive(Debug)]
pub(super) struct TopicPermissions;

impl ListedKind for TopicPermissions {
    const IS_OF_EXISTING_USER: bool = true;
    type View<'a> = TopicPermission<&'a str>;

    const ORDER: &'static str = "vhost,user";
    const COLUMNS: &'static [Column<Self>] = &[
        ("user", |it, writer| writer.json.text(it.user)),
        ("vhost", |it, writer| writer.json.text(it.vhost)),
        ("exchange", |it, writer| writer.json.text(it.exchange)),
        ("write", |it, writer| writer.json.text(it.write)),
        ("read", |it, writer| writer.json.text(it.read)),
    ];

    fn objects<'c>(context: ReadContext<'c>) -> impl Objects<Self::View<'c>> {
        context.broker.access().topic_permissions()
    }

    fn vhost<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        Some(view.vhost)
    }

    fn user<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        Some(view.user)
    }
}

/// Writes the limits of a user.
pub(super) fn user_limits(user: &UserView<'_>, writer: &mut CellWriter<'_, '_>) {
    let UserLimits { connections_max, channels_max } = user.limits;
    put_limits([("max-channels", channels_max), ("max-connections", connections_max)], writer);
}

/// Bindings that were declared.
#[derive(Debug)]
pub struct Bindings;

impl ListedKind for Bindings {
    type View<'a> = BindingView<'a>;

    const ORDER: &'static str = "vhost,source,destination,routing_key,properties_key";
    const COLUMNS: &'static [Column<Self>] = &[
        ("source_name", |binding, writer| writer.json.text(binding.source)),
        ("source", |binding, writer| writer.json.text(binding.source)),
        ("source_kind", |_, writer| writer.json.text("exchange")),
        ("vhost", |binding, writer| writer.json.text(binding.vhost)),
        ("destination_name", |binding, writer| writer.json.text(binding.destination)),
        ("destination", |binding, writer| writer.json.text(binding.destination)),
        ("destination_kind", |binding, writer| writer.json.text(destination_kind(binding))),
        ("destination_type", |binding, writer| writer.json.text(destination_kind(binding))),
        ("routing_key", |binding, writer| writer.json.text(binding.routing_key)),
        ("arguments", |binding, writer| writer.json.table(binding.arguments, writer.tables)),
        (TYPED, |binding, writer| typed(binding.arguments, writer)),
        ("properties_key", |binding, writer| writer.json.text(&properties_key(binding))),
    ];
    const ON_REQUEST: &'static [&'static str] =
        &[TYPED, "source_name", "source_kind", "destination_name", "destination_kind"];

    fn name(view: &Self::View<'_>) -> Option<String> {
        Some(properties_key(view))
    }

    fn is_binding_of(view: &Self::View<'_>, binding_ends: &BindingEnds) -> bool {
        let BindingEnds { source, destination } = binding_ends;
        source.as_deref().is_none_or(|source| view.source == source)
            && destination.as_ref().is_none_or(|(name, is_exchange)| {
                (view.destination, view.to_exchange) == (&**name, *is_exchange)
            })
    }

    fn objects<'c>(context: ReadContext<'c>) -> impl Objects<Self::View<'c>> {
        context.broker.views().bindings()
    }

    fn vhost<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        Some(view.vhost)
    }
}

/// The binding of every queue to the default exchange, by the queue's name.
#[derive(Debug)]
pub struct DefaultBindings;

impl ListedKind for DefaultBindings {
    type View<'a> = BindingView<'a>;

    const COLUMNS: &'static [Column<Self>] = Bindings::COLUMNS;
    const ON_REQUEST: &'static [&'static str] = Bindings::ON_REQUEST;

    fn name(view: &Self::View<'_>) -> Option<String> {
        Bindings::name(view)
    }

    fn is_binding_of(view: &Self::View<'_>, binding_ends: &BindingEnds) -> bool {
        Bindings::is_binding_of(view, binding_ends)
    }

    fn objects<'c>(context: ReadContext<'c>) -> impl Objects<Self::View<'c>> {
        objects(context.broker.views().queues().places(), move |place| {
            let queue = context.broker.views().queues().at(place)?;
            Some(BindingView {
                vhost: queue.vhost,
                source: "",
                destination: queue.name,
                to_exchange: false,
                exclusive: queue.owner.is_some(),
                routing_key: queue.name,
                arguments: Table::EMPTY,
            })
        })
    }

    fn vhost<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        Some(view.vhost)
    }
}

/// Returns the key that distinguishes a binding from others between the same two objects: its routing key and, if it
/// has arguments, a digest of them. Clients put it into a path unchanged.
pub fn properties_key(binding: &BindingView<'_>) -> String {
    let key = encode(binding.routing_key).replace('~', "%7E").replace("%20", "+");
    match binding.arguments.as_bytes() {
        [] if key.is_empty() => "~".to_string(),
        [] => key,
        arguments => {
            // FNV-1a: the digest only has to distinguish bindings.
            let digest = arguments
                .iter()
                .fold(0x811c_9dc5_u32, |sum, byte| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
            format!("{key}~{digest:08x}")
        }
    }
}

/// Returns whether a path names this binding by its properties key, but without its percent-encoding: many clients encode
/// the key only once. Such a name may also be the properties key of another binding, which then takes precedence.
pub fn is_decoded_properties_key(binding: &BindingView<'_>, name: &str) -> bool {
    decode(&properties_key(binding)).is_some_and(|key| key == name)
}

const fn destination_kind(binding: &BindingView<'_>) -> &'static str {
    if binding.to_exchange { "exchange" } else { "queue" }
}

/// Messages in the log whose queue has no definition any more. A queue whose name is unknown has an empty name.
#[derive(Debug)]
pub struct Orphans;

impl ListedKind for Orphans {
    type View<'a> = &'a Orphan;

    const COLUMNS: &'static [Column<Self>] = &[
        ("incarnation", |orphan, writer| writer.json.number(orphan.incarnation)),
        ("messages", |orphan, writer| writer.json.number(orphan.contents.count)),
        ("message_bytes", |orphan, writer| writer.json.number(orphan.contents.bytes)),
        ("vhost", |orphan, writer| writer.json.text(orphan.name.as_ref().map_or("", |(vhost, _)| vhost))),
        ("name", |orphan, writer| writer.json.text(orphan.name.as_ref().map_or("", |(_, name)| name))),
    ];

    fn objects<'c>(context: ReadContext<'c>) -> impl Objects<Self::View<'c>> {
        objects(context.broker.recovery().orphans().len(), move |place| {
            context.broker.recovery().orphans().get(place)
        })
    }

    fn vhost<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        view.name.as_ref().map(|(vhost, _)| &**vhost)
    }
}

/// The name of the column with a value as text, which only leveretctl requests.
pub const VALUE_TEXT: &str = "value_text";

/// Parameters of virtual hosts. A filter by user filters them by component.
#[derive(Debug)]
pub struct Parameters;

impl ListedKind for Parameters {
    type View<'a> = Parameter<&'a str, &'a [u8]>;

    const ORDER: &'static str = "vhost,component,name";
    const COLUMNS: &'static [Column<Self>] = &[
        ("value", |it, writer| raw_value(it, &mut writer.json)),
        (VALUE_TEXT, |it, writer| writer.json.text(&String::from_utf8_lossy(it.value))),
        ("vhost", |it, writer| writer.json.text(it.vhost.unwrap_or_default())),
        ("component", |it, writer| writer.json.text(it.component)),
        ("name", |it, writer| writer.json.text(it.name)),
    ];
    const ON_REQUEST: &'static [&'static str] = &[VALUE_TEXT];

    fn name(view: &Self::View<'_>) -> Option<String> {
        Some(view.name.to_string())
    }

    fn objects<'c>(context: ReadContext<'c>) -> impl Objects<Self::View<'c>> {
        context.broker.views().parameters().only(|view| view.vhost.is_some())
    }

    fn vhost<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        view.vhost
    }

    fn user<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        Some(view.component)
    }
}

/// Global parameters.
#[derive(Debug)]
pub struct GlobalParameters;

impl ListedKind for GlobalParameters {
    type View<'a> = Parameter<&'a str, &'a [u8]>;

    const AUDIENCE: Audience = Audience::All;
    const COLUMNS: &'static [Column<Self>] = &[
        ("name", |it, writer| writer.json.text(it.name)),
        ("value", |it, writer| raw_value(it, &mut writer.json)),
        (VALUE_TEXT, |it, writer| writer.json.text(&String::from_utf8_lossy(it.value))),
    ];
    const ON_REQUEST: &'static [&'static str] = &[VALUE_TEXT];

    fn name(view: &Self::View<'_>) -> Option<String> {
        Some(view.name.to_string())
    }

    fn objects<'c>(context: ReadContext<'c>) -> impl Objects<Self::View<'c>> {
        context.broker.views().parameters().only(|view| view.vhost.is_none())
    }

    fn vhost<'a>(_: &Self::View<'a>) -> Option<&'a str> {
        None
    }
}

/// Writes the value of a parameter, which is JSON already.
pub fn raw_value(it: &Parameter<&str, &[u8]>, json: &mut Json<'_>) {
    json.raw(it.value);
}

/// Declares the columns of policies of a kind. Policies and operator policies differ only in that kind.
macro_rules! policies {
    ($(#[$doc:meta])* $name:ident, $kind:ident) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name;

        impl ListedKind for $name {
            type View<'a> = Policy<&'a str, &'a [u8]>;

            const COLUMNS: &'static [Column<Self>] = POLICY_COLUMNS;
            const ON_REQUEST: &'static [&'static str] = &[DEFINITION_TEXT];

            fn name(view: &Self::View<'_>) -> Option<String> {
                Some(view.name.to_string())
            }

            fn objects<'c>(context: ReadContext<'c>) -> impl Objects<Self::View<'c>> {
                context.broker.views().policies().only(|view| view.kind == PolicyKind::$kind)
            }

            fn vhost<'a>(view: &Self::View<'a>) -> Option<&'a str> {
                Some(view.vhost)
            }
        }
    };
}

/// The name of the column with a definition as text, which only leveretctl requests.
pub const DEFINITION_TEXT: &str = "definition_text";

type PolicyCell = for<'a, 'v, 'p, 'o> fn(&'v Policy<&'a str, &'a [u8]>, &mut CellWriter<'p, 'o>);

const POLICY_COLUMNS: &[(&str, PolicyCell)] = &[
    ("vhost", |it, writer| writer.json.text(it.vhost)),
    ("name", |it, writer| writer.json.text(it.name)),
    ("pattern", |it, writer| writer.json.text(it.pattern)),
    ("apply-to", |it, writer| writer.json.text(it.apply_to.name())),
    ("definition", policy_definition),
    (DEFINITION_TEXT, |it, writer| {
        let mut text = Vec::new();
        let table = Table::trusted(it.definition);
        Json::new(&mut text, DEFINITION_TEXT_MAX).table(table, Tables::Plain);
        writer.json.text(&String::from_utf8_lossy(&text));
    }),
    ("priority", |it, writer| writer.json.number(it.priority)),
];

/// An upper bound of the JSON of a definition, in bytes.
const DEFINITION_TEXT_MAX: usize = 16 << 10;

/// Writes the definition of a policy.
pub fn policy_definition(it: &Policy<&str, &[u8]>, writer: &mut CellWriter<'_, '_>) {
    writer.json.table(Table::trusted(it.definition), Tables::Plain);
}

policies! {
    /// Policies.
    Policies, User
}
policies! {
    /// Operator policies.
    OperatorPolicies, Operator
}
