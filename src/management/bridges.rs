//! The links of bridges in lists, one row for each direction of each bridge, and the forecast of an outage.

use std::borrow::Cow;

use leveret_broker::{Broker, Objects, objects};

use super::columns::{CellWriter, Column, ListedKind, or_null};
use super::listing::Audience;
use super::management::{nested, numbers, texts};
use super::request::{BridgeLinkView, BridgeRuleView, BridgeViews, ReadContext};

/// Links of bridges.
#[derive(Debug)]
pub struct BridgeLinks;

impl ListedKind for BridgeLinks {
    type View<'a> = BridgeLinkView<'a>;

    const AUDIENCE: Audience = Audience::All;
    const COLUMNS: &'static [Column<Self>] = &[
        ("name", |link, writer| writer.json.text(link.bridge)),
        ("direction", |link, writer| writer.json.text(link.direction)),
        ("state", |link, writer| writer.json.text(link.state)),
        ("vhost", |link, writer| writer.json.text(link.vhost)),
        ("upstream", |link, writer| writer.json.text(&link.upstream)),
        ("moved", |link, writer| writer.json.number(link.moved)),
        ("inflow_per_day", |link, writer| or_null(outage(link, writer).inflow_per_day, writer)),
        ("outage_days", |link, writer| match outage(link, writer).tenths_left {
            Some(tenths) => writer.json.shown_raw(format_args!("{}.{}", tenths / 10, tenths % 10)),
            None => writer.json.raw(b"null"),
        }),
        ("pending", |link, writer| writer.json.number(link.pending)),
        ("backlog", |link, writer| or_null(link.backlog(writer.context.broker), writer)),
        ("repeats", |link, writer| writer.json.number(link.repeats)),
        ("parked", |link, writer| writer.json.number(link.parked_messages(writer.context.broker))),
        ("retried", |link, writer| writer.json.text(&link.last_retry_result)),
        ("held", |link, writer| writer.json.number(link.held)),
        ("day_bytes", |link, writer| writer.json.number(link.day_bytes)),
        ("day_bytes_max", |link, writer| or_null(link.day_bytes_max, writer)),
        ("yesterday_bytes", |link, writer| writer.json.number(link.yesterday_bytes)),
        ("day_bytes_by_kind", |link, writer| nested(&mut writer.json, &link.today)),
        ("yesterday_bytes_by_kind", |link, writer| nested(&mut writer.json, &link.yesterday)),
        ("held_rules", |link, writer| writer.json.number(link.held_rules)),
        ("rules", |link, writer| {
            let mut is_first = true;
            writer.json.raw(b"[");
            for rule in &link.rules {
                writer.json.comma(&mut is_first);
                write_rule(link, rule, writer);
            }
            writer.json.raw(b"]");
        }),
        ("connected", |link, writer| writer.json.number(link.connected)),
        ("failed", |link, writer| writer.json.number(link.failed)),
        ("last_error", |link, writer| writer.json.text(link.last_error.map_or("", |(text, _)| text))),
        ("last_error_ago", |link, writer| seconds(link.last_error.map(|(_, ms)| ms), writer)),
        ("up_for", |link, writer| seconds(link.up_for_ms, writer)),
        ("down_for", |link, writer| seconds(link.down_for_ms, writer)),
        ("retry_in", |link, writer| seconds(link.retry_in_ms, writer)),
    ];

    fn objects<'c>(context: ReadContext<'c>) -> impl Objects<Self::View<'c>> {
        objects(context.bridges.places(), move |place| context.bridges.at(place))
    }

    fn vhost<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        Some(view.vhost)
    }
}

fn write_rule(link: &BridgeLinkView<'_>, rule: &BridgeRuleView<'_>, writer: &mut CellWriter<'_, '_>) {
    let mut is_first = true;
    writer.json.raw(b"{");
    let (exchange, key) = rule.destination;
    texts(&mut writer.json, &mut is_first, &[("queue", rule.queue), ("state", rule.state)]);
    for (name, text) in [("to_exchange", exchange), ("to_key", key)] {
        writer.json.name(name, &mut is_first);
        text_or_null(text, writer);
    }
    writer.json.name("urgent", &mut is_first);
    writer.json.truth(rule.is_urgent);
    writer.json.name("backlog", &mut is_first);
    let is_forward = link.queues.is_some();
    let depth = is_forward.then(|| writer.context.broker.queue_depth(link.vhost, rule.queue)).flatten();
    or_null(depth.map(u64::from), writer);
    numbers(&mut writer.json, &mut is_first, &[("moved", rule.moved), ("held", rule.held)]);
    writer.json.name("error", &mut is_first);
    text_or_null(rule.error, writer);
    writer.json.raw(b"}");
}

/// Links of bridges in RabbitMQ's format of shovels, for tools that monitor shovels.
#[derive(Debug)]
pub struct Shovels;

/// Writes a field of one end of a shovel, or `null` if the bridge is not a shovel.
macro_rules! of_end {
    ($end:ident, $field:ident) => {
        |link, writer| {
            let end = link.shovel.as_ref().map(|shovel| &shovel.$end);
            text_or_null(end.and_then(|end| end.$field), writer)
        }
    };
}

impl ListedKind for Shovels {
    type View<'a> = BridgeLinkView<'a>;

    const COLUMNS: &'static [Column<Self>] = &[
        ("name", |link, writer| match &link.shovel {
            Some(shovel) => writer.json.text(shovel.name),
            None => writer.json.shown(format_args!("{} {}", link.bridge, link.direction)),
        }),
        ("vhost", |link, writer| writer.json.text(Self::vhost(link).unwrap_or_default())),
        ("node", |_, writer| writer.json.text(writer.context.node)),
        ("type", |link, writer| writer.json.text(if link.shovel.is_some() { "dynamic" } else { "static" })),
        ("state", |link, writer| {
            writer.json.text(match link.state {
                "running" | "blocked" => "running",
                // Other rules continue.
                "held" | "budget used" if link.rules.iter().any(|rule| rule.state == "running") => "running",
                "connecting" | "resting" => "starting",
                _ => "terminated",
            });
        }),
        ("timestamp", |link, writer| writer.json.text(&date_of(link.changed_at_ms))),
        ("src_uri", |link, writer| writer.json.text(&uris(link)[0])),
        ("src_protocol", |_, writer| writer.json.text("amqp091")),
        ("src_queue", of_end!(source, queue)),
        ("src_exchange", of_end!(source, exchange)),
        ("src_exchange_key", of_end!(source, key)),
        ("dest_uri", |link, writer| writer.json.text(&uris(link)[1])),
        ("dest_protocol", |_, writer| writer.json.text("amqp091")),
        ("dest_queue", of_end!(destination, queue)),
        ("dest_exchange", of_end!(destination, exchange)),
        ("dest_exchange_key", of_end!(destination, key)),
        ("reason", |link, writer| match link.is_paused {
            true => writer.json.text("it is paused: use resume_bridge"),
            false if link.state == "budget used" => {
                writer.json.text("its daily bytes are used (day_bytes_max)")
            }
            false => writer.json.text(link.last_error.map_or("", |(text, _)| text)),
        }),
        ("remaining", |link, writer| or_null(link.shovel.as_ref().and_then(|shovel| shovel.left), writer)),
        ("forwarded", |link, writer| writer.json.number(link.moved)),
        ("pending", |link, writer| writer.json.number(link.pending)),
    ];

    fn name(view: &Self::View<'_>) -> Option<String> {
        Some(match &view.shovel {
            Some(shovel) => shovel.name.to_string(),
            None => format!("{} {}", view.bridge, view.direction),
        })
    }

    fn objects<'c>(context: ReadContext<'c>) -> impl Objects<Self::View<'c>> {
        objects(context.bridges.places(), move |place| context.bridges.at(place))
    }

    fn vhost<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        Some(view.shovel.as_ref().map_or(view.vhost, |shovel| shovel.vhost))
    }
}

/// Returns the addresses of both ends, without user and password.
fn uris(link: &BridgeLinkView<'_>) -> [String; 2] {
    let here = || "amqp://".to_string();
    match &link.shovel {
        Some(shovel) => [shovel.source.uri.to_string(), shovel.destination.uri.to_string()],
        None if link.direction == "forward" => [here(), link.upstream.clone()],
        None => [link.upstream.clone(), here()],
    }
}

fn text_or_null(text: Option<&str>, writer: &mut CellWriter<'_, '_>) {
    match text {
        Some(text) => writer.json.text(text),
        None => writer.json.raw(b"null"),
    }
}

fn outage(link: &BridgeLinkView<'_>, writer: &CellWriter<'_, '_>) -> Outage {
    Outage::of(link, writer.context.broker)
}

fn seconds(ms: Option<u64>, writer: &mut CellWriter<'_, '_>) {
    or_null(ms.map(|ms| ms / 1000), writer);
}

const DAY_MS: u128 = 86_400_000;
/// A rate over a shorter time is not reliable.
const SPAN_MS_MIN: u64 = 3_600_000;
/// Approximate size of a message's records in the log without its body.
const RECORD_BYTES: u128 = 100;
/// The most tenths of a day in a forecast.
const TENTHS_MAX: u128 = 10_000;

/// The forecast for a link that forwards: how long the disk can hold messages while the upstream is unreachable.
///
/// There is no forecast without a measurement. Only the disk's limit is considered, and all of its free capacity is
/// assumed to be available to this bridge.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Outage {
    /// Number of messages that arrive per day.
    pub(super) inflow_per_day: Option<u64>,
    /// Tenths of days until the disk is full at that rate.
    pub(super) tenths_left: Option<u64>,
}

impl Outage {
    /// Returns the forecast for the current state of a link.
    pub(super) fn of(link: &BridgeLinkView<'_>, broker: &Broker) -> Self {
        let Some(queues) = &link.queues else { return Self::default() };
        let loads = queues.iter().filter_map(|queue| broker.queue_load(link.vhost, queue));
        let (mut waiting, mut bytes, mut arrived) = (0, 0, 0);
        for load in loads {
            (waiting, bytes, arrived) =
                (waiting + u64::from(load.ready), bytes + load.body_bytes, arrived + load.arrived);
        }
        let (before, span_ms) = link.inflow;
        let arrived = before + u64::saturating_sub(arrived, link.inflow_counted);
        let (sent, sent_bytes) = link.sent_since_yesterday;
        let bytes_of_each = u128::from(bytes + sent_bytes) / u128::from(waiting + sent).max(1) + RECORD_BYTES;
        Self::forecast(arrived, span_ms, link.log_free_bytes, bytes_of_each)
    }

    fn forecast(arrived: u64, span_ms: u64, log_free_bytes: Option<u64>, bytes_of_each: u128) -> Self {
        let is_known = span_ms >= SPAN_MS_MIN;
        let per_day = u128::from(arrived) * DAY_MS / u128::from(span_ms.max(1));
        let tenths = log_free_bytes.map(|room| u128::from(room) * 10 / (per_day * bytes_of_each).max(1));
        Self {
            inflow_per_day: is_known.then(|| u64::try_from(per_day).unwrap_or(u64::MAX)),
            tenths_left: tenths
                .filter(|_| is_known && per_day > 0)
                .map(|tenths| tenths.min(TENTHS_MAX) as u64),
        }
    }

    /// Returns the alarm about the first bridge whose forecast is too short.
    pub(super) fn alarm(bridges: &dyn BridgeViews, broker: &Broker) -> Option<Cow<'static, str>> {
        let mut links = (0..bridges.places()).filter_map(|place| bridges.at(place));
        links.find_map(|link| Self::of(&link, broker).warning(&link))
    }

    fn warning(self, link: &BridgeLinkView<'_>) -> Option<Cow<'static, str>> {
        let (days_min, name) = (link.outage_days_min?, link.bridge);
        let (tenths, per_day) = (self.tenths_left?, self.inflow_per_day?);
        (tenths < u64::from(days_min) * 10).then(|| {
            Cow::from(format!(
                "outage: {per_day} messages per day arrive for bridge {name}, and the disk has space for {}.{} \
                 days (outage_days_min = {days_min}); raise disk_limit, or publish less",
                tenths / 10,
                tenths % 10
            ))
        })
    }
}

/// Returns a time in milliseconds since 1970 in RabbitMQ's format, in UTC.
pub fn date_of(unix_ms: u64) -> String {
    let s = unix_ms / 1000;
    let (year, month, day) = day_of(s / 86_400);
    let (hour, minute) = (s / 3600 % 24, s / 60 % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02}", s % 60)
}

/// Returns year, month and day of a day counted from 1970-01-01. Years are counted from March internally, so that a
/// leap day is the last day of its year.
pub fn day_of(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march + 2) / 5 + 1;
    let month = if march < 10 { march + 3 } else { march - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod outage_tests {
    use super::*;

    const DAY: u64 = DAY_MS as u64;

    #[test]
    fn the_disk_lasts_until_the_inflow_fills_it() {
        let forecast = |arrived, span_ms, room| Outage::forecast(arrived, span_ms, Some(room), 100);
        let half_a_day = forecast(500, DAY / 2, 250_000);
        assert_eq!((half_a_day.inflow_per_day, half_a_day.tenths_left), (Some(1_000), Some(25)));
        let full = forecast(500, DAY / 2, 0);
        assert_eq!(full.tenths_left, Some(0));
        assert_eq!(forecast(0, DAY, 1).tenths_left, None, "nothing comes in");
        assert_eq!(forecast(500, SPAN_MS_MIN - 1, 1).inflow_per_day, None, "too early");
        assert_eq!(forecast(1, DAY, u64::MAX).tenths_left, Some(10_000));
        assert_eq!(Outage::forecast(500, DAY, None, 100).tenths_left, None, "there is no disk");
        assert_eq!(forecast(u64::MAX, DAY, u64::MAX).tenths_left, Some(0));
    }
}
