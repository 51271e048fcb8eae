//! The columns of runtime parameters, and of global ones.
//!
//! Always true: a value is shown whole, for it has a bounded size, to whoever may change it.

use leveret_broker::ParameterView;

use super::columns::{Column, Kind};
use super::filter::Audience;
use super::json::Json;
use super::request_context::ReadContext;

/// The name of the column with a value as text, which only our own command line asks for.
pub const VALUE_IN_WORDS: &str = "value_text";

/// Parameters of virtual hosts; who asks for those of a user asks for those of a component.
#[derive(Debug)]
pub struct Parameters;

impl Kind for Parameters {
    type View<'a> = ParameterView<'a>;

    const ORDER: &'static str = "vhost,component,name";
    const COLUMNS: &'static [Column<Self>] = &[
        ("value", |it, pen| raw_value(it, &mut pen.json)),
        (VALUE_IN_WORDS, |it, pen| pen.json.text(&String::from_utf8_lossy(it.value))),
        ("vhost", |it, pen| pen.json.text(it.vhost.unwrap_or_default())),
        ("component", |it, pen| pen.json.text(it.component)),
        ("name", |it, pen| pen.json.text(it.name)),
    ];
    const OF_CTL: &'static [&'static str] = &[VALUE_IN_WORDS];

    fn name(view: &Self::View<'_>) -> Option<String> {
        Some(view.name.to_string())
    }

    fn places(context: ReadContext<'_>) -> usize {
        context.broker.views().parameter_places()
    }

    fn at(context: ReadContext<'_>, place: usize) -> Option<Self::View<'_>> {
        context.broker.views().parameter_at(place).filter(|view| view.vhost.is_some())
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

impl Kind for GlobalParameters {
    type View<'a> = ParameterView<'a>;

    const AUDIENCE: Audience = Audience::All;
    const COLUMNS: &'static [Column<Self>] = &[
        ("name", |it, pen| pen.json.text(it.name)),
        ("value", |it, pen| raw_value(it, &mut pen.json)),
        (VALUE_IN_WORDS, |it, pen| pen.json.text(&String::from_utf8_lossy(it.value))),
    ];
    const OF_CTL: &'static [&'static str] = &[VALUE_IN_WORDS];

    fn name(view: &Self::View<'_>) -> Option<String> {
        Some(view.name.to_string())
    }

    fn places(context: ReadContext<'_>) -> usize {
        context.broker.views().parameter_places()
    }

    fn at(context: ReadContext<'_>, place: usize) -> Option<Self::View<'_>> {
        context.broker.views().parameter_at(place).filter(|view| view.vhost.is_none())
    }

    fn vhost<'a>(_: &Self::View<'a>) -> Option<&'a str> {
        None
    }
}

/// What a parameter says: it is JSON already.
pub fn raw_value(it: &ParameterView<'_>, json: &mut Json<'_>) {
    json.raw(it.value);
}
