//! The columns of policies and operator policies, which differ in whose they are and in nothing else.
//!
//! Always true: a definition is shown whole, for it has a bounded size.

use leveret_amqp::field::Table;
use leveret_broker::{PolicyKind, PolicyView};

use super::columns::{Column, Kind, Pen};
use super::json::{Json, Tables};
use super::request_context::ReadContext;

/// Declares the columns of policies of a kind.
macro_rules! policies {
    ($(#[$doc:meta])* $name:ident, $kind:ident) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name;

        impl Kind for $name {
            type View<'a> = PolicyView<'a>;

            const COLUMNS: &'static [Column<Self>] = POLICY_COLUMNS;
            const OF_CTL: &'static [&'static str] = &[IN_WORDS];

            fn name(view: &Self::View<'_>) -> Option<String> {
                Some(view.policy.name.to_string())
            }

            fn places(context: ReadContext<'_>) -> usize {
                context.broker.views().policy_places()
            }

            fn at(context: ReadContext<'_>, place: usize) -> Option<Self::View<'_>> {
                context.broker.views().policy_at(place).filter(|view| view.policy.kind == PolicyKind::$kind)
            }

            fn vhost<'a>(view: &Self::View<'a>) -> Option<&'a str> {
                Some(view.vhost)
            }
        }
    };
}

/// The name of the column with a definition as text, which only our own command line asks for.
pub const IN_WORDS: &str = "definition_text";

type PolicyCell = for<'a, 'v, 'p, 'o> fn(&'v PolicyView<'a>, &mut Pen<'p, 'o>);

const POLICY_COLUMNS: &[(&str, PolicyCell)] = &[
    ("vhost", |it, pen| pen.json.text(it.vhost)),
    ("name", |it, pen| pen.json.text(it.policy.name)),
    ("pattern", |it, pen| pen.json.text(it.policy.pattern)),
    ("apply-to", |it, pen| pen.json.text(it.policy.apply_to.name())),
    ("definition", policy_definition),
    (IN_WORDS, |it, pen| {
        let mut text = Vec::new();
        let table = Table::trusted(it.policy.definition);
        Json::new(&mut text, DEFINITION_TEXT_MAX).table(table, Tables::Plain);
        pen.json.text(&String::from_utf8_lossy(&text));
    }),
    ("priority", |it, pen| pen.json.number(it.policy.priority)),
];

/// More than any definition takes as JSON, in bytes.
const DEFINITION_TEXT_MAX: usize = 16 << 10;

/// What a policy says.
pub fn policy_definition(it: &PolicyView<'_>, pen: &mut Pen<'_, '_>) {
    pen.json.table(Table::trusted(it.policy.definition), Tables::Plain);
}

policies! {
    /// Policies.
    Policies, User
}
policies! {
    /// Operator policies.
    OperatorPolicies, Operator
}
