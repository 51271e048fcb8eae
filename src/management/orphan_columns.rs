//! Orphans as columns: messages in the log whose queue no definition is left of.
//!
//! Always true: one whose name is not known has an empty one.

use leveret_broker::Orphan;

use super::columns::{Column, Kind};
use super::request_context::ReadContext;

/// Messages whose queue no definition is left of.
#[derive(Debug)]
pub struct Orphans;

impl Kind for Orphans {
    type View<'a> = &'a Orphan;

    const COLUMNS: &'static [Column<Self>] = &[
        ("incarnation", |orphan, pen| pen.json.number(orphan.incarnation)),
        ("messages", |orphan, pen| pen.json.number(orphan.contents.count)),
        ("message_bytes", |orphan, pen| pen.json.number(orphan.contents.bytes)),
        ("vhost", |orphan, pen| pen.json.text(orphan.name.as_ref().map_or("", |(vhost, _)| vhost))),
        ("name", |orphan, pen| pen.json.text(orphan.name.as_ref().map_or("", |(_, name)| name))),
    ];

    fn places(context: ReadContext<'_>) -> usize {
        context.broker.recovery().orphans().len()
    }

    fn at(context: ReadContext<'_>, place: usize) -> Option<Self::View<'_>> {
        context.broker.recovery().orphans().get(place)
    }

    fn vhost<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        view.name.as_ref().map(|(vhost, _)| &**vhost)
    }
}
