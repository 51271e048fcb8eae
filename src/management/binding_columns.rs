//! Bindings: those that somebody made, and those that every queue has.

use leveret_amqp::field::Table;
use leveret_broker::BindingView;

use super::columns::{Column, Kind, TYPED, typed};
use super::filter::BindingEnds;
use super::http::encode;
use super::request_context::ReadContext;

/// Bindings that somebody made.
#[derive(Debug)]
pub struct Bindings;

impl Kind for Bindings {
    type View<'a> = BindingView<'a>;

    const ORDER: &'static str = "vhost,source,destination,routing_key,properties_key";
    const COLUMNS: &'static [Column<Self>] = &[
        ("source_name", |binding, pen| pen.json.text(binding.source)),
        ("source", |binding, pen| pen.json.text(binding.source)),
        ("source_kind", |_, pen| pen.json.text("exchange")),
        ("vhost", |binding, pen| pen.json.text(binding.vhost)),
        ("destination_name", |binding, pen| pen.json.text(binding.destination)),
        ("destination", |binding, pen| pen.json.text(binding.destination)),
        ("destination_kind", |binding, pen| pen.json.text(destination_kind(binding))),
        ("destination_type", |binding, pen| pen.json.text(destination_kind(binding))),
        ("routing_key", |binding, pen| pen.json.text(binding.routing_key)),
        ("arguments", |binding, pen| pen.json.table(binding.arguments, pen.tables)),
        (TYPED, |binding, pen| typed(binding.arguments, pen)),
        ("properties_key", |binding, pen| pen.json.text(&properties_key(binding))),
    ];
    const OF_CTL: &'static [&'static str] =
        &[TYPED, "source_name", "source_kind", "destination_name", "destination_kind"];

    fn name(view: &Self::View<'_>) -> Option<String> {
        Some(properties_key(view))
    }

    fn is_between(view: &Self::View<'_>, ends: &BindingEnds) -> bool {
        let BindingEnds { source, destination } = ends;
        source.as_deref().is_none_or(|source| view.source == source)
            && destination.as_ref().is_none_or(|(name, is_exchange)| {
                (view.destination, view.to_exchange) == (&**name, *is_exchange)
            })
    }

    fn places(context: ReadContext<'_>) -> usize {
        context.broker.views().binding_places()
    }

    fn at(context: ReadContext<'_>, place: usize) -> Option<Self::View<'_>> {
        context.broker.views().binding_at(place)
    }

    fn vhost<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        Some(view.vhost)
    }
}

/// The binding that every queue has to the default exchange, by its name.
#[derive(Debug)]
pub struct DefaultBindings;

impl Kind for DefaultBindings {
    type View<'a> = BindingView<'a>;

    const COLUMNS: &'static [Column<Self>] = Bindings::COLUMNS;
    const OF_CTL: &'static [&'static str] = Bindings::OF_CTL;

    fn name(view: &Self::View<'_>) -> Option<String> {
        Bindings::name(view)
    }

    fn is_between(view: &Self::View<'_>, ends: &BindingEnds) -> bool {
        Bindings::is_between(view, ends)
    }

    fn places(context: ReadContext<'_>) -> usize {
        context.broker.views().queue_places()
    }

    fn at(context: ReadContext<'_>, place: usize) -> Option<Self::View<'_>> {
        let queue = context.broker.views().queue_at(place)?;
        Some(BindingView {
            vhost: queue.vhost,
            source: "",
            destination: queue.name,
            to_exchange: false,
            exclusive: queue.owner.is_some(),
            routing_key: queue.name,
            arguments: Table::EMPTY,
        })
    }

    fn vhost<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        Some(view.vhost)
    }
}

/// What tells a binding from others between the same two ends: its key and, if it has arguments, a digest of
/// them. Clients put it into a path as it is.
pub fn properties_key(binding: &BindingView<'_>) -> String {
    let key = encode(binding.routing_key).replace('~', "%7E").replace("%20", "+");
    match binding.arguments.as_bytes() {
        [] if key.is_empty() => "~".to_string(),
        [] => key,
        arguments => {
            // FNV-1a: nothing hangs on it but which of two bindings is meant.
            let digest = arguments
                .iter()
                .fold(0x811c_9dc5_u32, |sum, byte| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
            format!("{key}~{digest:08x}")
        }
    }
}

const fn destination_kind(binding: &BindingView<'_>) -> &'static str {
    if binding.to_exchange { "exchange" } else { "queue" }
}
