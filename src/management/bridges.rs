//! The links of bridges as an operator sees them: one row for each direction of each bridge.

use super::columns::{Column, Kind};
use super::dates::date_of;
use super::filter::Audience;
use super::outage::Outage;
use super::request_context::{BridgeLinkView, ReadContext};

/// Links of bridges.
#[derive(Debug)]
pub struct BridgeLinks;

impl Kind for BridgeLinks {
    type View<'a> = BridgeLinkView<'a>;

    const AUDIENCE: Audience = Audience::All;
    const COLUMNS: &'static [Column<Self>] = &[
        ("name", |link, pen| pen.json.text(link.bridge)),
        ("direction", |link, pen| pen.json.text(link.direction)),
        ("state", |link, pen| pen.json.text(link.state)),
        ("vhost", |link, pen| pen.json.text(link.vhost)),
        ("upstream", |link, pen| pen.json.text(&link.upstream)),
        ("moved", |link, pen| pen.json.number(link.moved)),
        ("inflow_per_day", |link, pen| or_null(outage(link, pen).inflow_per_day, pen)),
        ("outage_days", |link, pen| match outage(link, pen).tenths_left {
            Some(tenths) => pen.json.shown_raw(format_args!("{}.{}", tenths / 10, tenths % 10)),
            None => pen.json.raw(b"null"),
        }),
        ("pending", |link, pen| pen.json.number(link.pending)),
        ("backlog", |link, pen| or_null(link.backlog(pen.context.broker), pen)),
        ("repeats", |link, pen| pen.json.number(link.repeats)),
        ("parked", |link, pen| pen.json.number(link.parked(pen.context.broker))),
        ("retried", |link, pen| pen.json.text(&link.retried)),
        ("held", |link, pen| pen.json.number(link.held)),
        ("day_bytes", |link, pen| pen.json.number(link.day_bytes)),
        ("day_bytes_max", |link, pen| or_null(link.day_bytes_max, pen)),
        ("yesterday_bytes", |link, pen| pen.json.number(link.yesterday_bytes)),
        ("day_bytes_by_kind", |link, pen| numbers(&link.today, pen)),
        ("yesterday_bytes_by_kind", |link, pen| numbers(&link.yesterday, pen)),
        ("held_rules", |link, pen| pen.json.number(link.held_rules)),
        ("rules", |link, pen| {
            let mut is_first = true;
            pen.json.raw(b"[");
            for (queue, state) in &link.rules {
                pen.json.comma(&mut is_first);
                pen.json.raw(b"{\"queue\":");
                pen.json.text(queue);
                pen.json.raw(b",\"state\":");
                pen.json.text(state);
                pen.json.raw(b"}");
            }
            pen.json.raw(b"]");
        }),
        ("connected", |link, pen| pen.json.number(link.connected)),
        ("failed", |link, pen| pen.json.number(link.failed)),
        ("last_error", |link, pen| pen.json.text(link.last_error.map_or("", |(text, _)| text))),
        ("last_error_ago", |link, pen| seconds(link.last_error.map(|(_, ms)| ms), pen)),
        ("up_for", |link, pen| seconds(link.up_for_ms, pen)),
        ("down_for", |link, pen| seconds(link.down_for_ms, pen)),
        ("retry_in", |link, pen| seconds(link.retry_in_ms, pen)),
    ];

    fn places(context: ReadContext<'_>) -> usize {
        context.bridges.places()
    }

    fn at(context: ReadContext<'_>, place: usize) -> Option<Self::View<'_>> {
        context.bridges.at(place)
    }

    fn vhost<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        Some(view.vhost)
    }
}

/// The same links as RabbitMQ's shovels, for the tools that watch those.
#[derive(Debug)]
pub struct Shovels;

/// What a shovel's row has of one end: nothing where the bridge is none.
macro_rules! of_end {
    ($end:ident, $field:ident) => {
        |link, pen| {
            let end = link.shovel.as_ref().map(|shovel| &shovel.$end);
            text_or_null(end.and_then(|end| end.$field), pen)
        }
    };
}

impl Kind for Shovels {
    type View<'a> = BridgeLinkView<'a>;

    const COLUMNS: &'static [Column<Self>] = &[
        ("name", |link, pen| match &link.shovel {
            Some(shovel) => pen.json.text(shovel.name),
            None => pen.json.shown(format_args!("{} {}", link.bridge, link.direction)),
        }),
        ("vhost", |link, pen| pen.json.text(Self::vhost(link).unwrap_or_default())),
        ("type", |link, pen| pen.json.text(if link.shovel.is_some() { "dynamic" } else { "static" })),
        ("state", |link, pen| {
            pen.json.text(match link.state {
                "running" | "blocked" => "running",
                // Other rules go on.
                "held" | "budget used" if link.rules.iter().any(|(_, state)| *state == "running") => {
                    "running"
                }
                "connecting" | "resting" => "starting",
                _ => "terminated",
            });
        }),
        ("timestamp", |link, pen| pen.json.text(&date_of(link.changed_at_ms))),
        ("src_uri", |link, pen| pen.json.text(&uris(link)[0])),
        ("src_protocol", |_, pen| pen.json.text("amqp091")),
        ("src_queue", of_end!(source, queue)),
        ("src_exchange", of_end!(source, exchange)),
        ("src_exchange_key", of_end!(source, key)),
        ("dest_uri", |link, pen| pen.json.text(&uris(link)[1])),
        ("dest_protocol", |_, pen| pen.json.text("amqp091")),
        ("dest_queue", of_end!(destination, queue)),
        ("dest_exchange", of_end!(destination, exchange)),
        ("dest_exchange_key", of_end!(destination, key)),
        ("reason", |link, pen| match link.is_paused {
            true => pen.json.text("it was paused: resume_bridge lets it go on"),
            false if link.state == "budget used" => {
                pen.json.text("its bytes of the day are used: day_bytes_max")
            }
            false => pen.json.text(link.last_error.map_or("", |(text, _)| text)),
        }),
        ("remaining", |link, pen| or_null(link.shovel.as_ref().and_then(|shovel| shovel.left), pen)),
        ("forwarded", |link, pen| pen.json.number(link.moved)),
        ("pending", |link, pen| pen.json.number(link.pending)),
    ];

    fn name(view: &Self::View<'_>) -> Option<String> {
        Some(match &view.shovel {
            Some(shovel) => shovel.name.to_string(),
            None => format!("{} {}", view.bridge, view.direction),
        })
    }

    fn places(context: ReadContext<'_>) -> usize {
        context.bridges.places()
    }

    fn at(context: ReadContext<'_>, place: usize) -> Option<Self::View<'_>> {
        context.bridges.at(place)
    }

    fn vhost<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        Some(view.shovel.as_ref().map_or(view.vhost, |shovel| shovel.vhost))
    }
}

/// The addresses of both ends, without who logs in there.
fn uris(link: &BridgeLinkView<'_>) -> [String; 2] {
    let here = || "amqp://".to_string();
    match &link.shovel {
        Some(shovel) => [shovel.source.uri.to_string(), shovel.destination.uri.to_string()],
        None if link.direction == "forward" => [here(), link.upstream.clone()],
        None => [link.upstream.clone(), here()],
    }
}

fn text_or_null(text: Option<&str>, pen: &mut super::columns::Pen<'_, '_>) {
    match text {
        Some(text) => pen.json.text(text),
        None => pen.json.raw(b"null"),
    }
}

fn numbers(named: &[(&str, u64)], pen: &mut super::columns::Pen<'_, '_>) {
    let mut is_first = true;
    pen.json.raw(b"{");
    for (name, number) in named {
        pen.json.name(name, &mut is_first);
        pen.json.number(*number);
    }
    pen.json.raw(b"}");
}

fn outage(link: &BridgeLinkView<'_>, pen: &super::columns::Pen<'_, '_>) -> Outage {
    Outage::of(link, pen.context.broker)
}

fn or_null(number: Option<u64>, pen: &mut super::columns::Pen<'_, '_>) {
    match number {
        Some(number) => pen.json.number(number),
        None => pen.json.raw(b"null"),
    }
}

fn seconds(ms: Option<u64>, pen: &mut super::columns::Pen<'_, '_>) {
    or_null(ms.map(|ms| ms / 1000), pen);
}
