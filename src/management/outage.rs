//! How long the disk lasts when an upstream is away, at today's inflow.
//!
//! Always true: nothing is said that nobody has seen; the disk is the only limit that is counted, and all
//! that is left of it is thought to be this bridge's.

use std::borrow::Cow;

use leveret_broker::Broker;

use super::request_context::{BridgeLinkView, Bridges};

const DAY_MS: u128 = 86_400_000;
/// A rate over less time says little.
const SPAN_MS_MIN: u64 = 3_600_000;
/// What a message takes in the log besides its body, about.
const RECORD_BYTES: u128 = 100;
/// More tenths of a day than this are no forecast.
const TENTHS_MAX: u128 = 10_000;

/// The gauge, of a link that forwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Outage {
    /// Messages that come in a day.
    pub(super) inflow_per_day: Option<u64>,
    /// Tenths of days that the disk has room for as many.
    pub(super) tenths_left: Option<u64>,
}

impl Outage {
    /// Of a link as it stands.
    pub(super) fn of(link: &BridgeLinkView<'_>, broker: &Broker) -> Self {
        let Some(queues) = &link.queues else { return Self::default() };
        let flows = queues.iter().filter_map(|queue| broker.queue_flow(link.vhost, queue));
        let (mut waiting, mut bytes, mut came) = (0, 0, 0);
        for flow in flows {
            (waiting, bytes, came) =
                (waiting + u64::from(flow.ready), bytes + flow.body_bytes, came + flow.came);
        }
        let (before, span_ms) = link.inflow;
        let inflow = (before + u64::saturating_sub(came, link.inflow_counted), span_ms);
        let (sent, sent_bytes) = link.sent_lately;
        let of_each = u128::from(bytes + sent_bytes) / u128::from(waiting + sent).max(1) + RECORD_BYTES;
        Self::forecast(inflow, link.disk_room, of_each)
    }

    fn forecast((came, span_ms): (u64, u64), disk_room: Option<u64>, of_each: u128) -> Self {
        let is_known = span_ms >= SPAN_MS_MIN;
        let per_day = u128::from(came) * DAY_MS / u128::from(span_ms.max(1));
        let tenths = disk_room.map(|room| u128::from(room) * 10 / (per_day * of_each).max(1));
        Self {
            inflow_per_day: is_known.then(|| u64::try_from(per_day).unwrap_or(u64::MAX)),
            tenths_left: tenths
                .filter(|_| is_known && per_day > 0)
                .map(|tenths| tenths.min(TENTHS_MAX) as u64),
        }
    }

    /// The alarm, when the disk has room for too short an outage of a bridge: of the first of them.
    pub(super) fn alarm(bridges: &dyn Bridges, broker: &Broker) -> Option<Cow<'static, str>> {
        let mut links = (0..bridges.places()).filter_map(|place| bridges.at(place));
        links.find_map(|link| Self::of(&link, broker).warning(&link))
    }

    fn warning(self, link: &BridgeLinkView<'_>) -> Option<Cow<'static, str>> {
        let (days_min, name) = (link.outage_days_min?, link.bridge);
        let (tenths, per_day) = (self.tenths_left?, self.inflow_per_day?);
        (tenths < u64::from(days_min) * 10).then(|| {
            Cow::from(format!(
                "outage: {per_day} messages a day come in for bridge {name}, and the disk has room for {}.{} \
                 days of them (outage_days_min = {days_min}); raise disk_limit, or publish less",
                tenths / 10,
                tenths % 10
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = DAY_MS as u64;

    #[test]
    fn the_disk_lasts_as_long_as_what_comes_in_has_room() {
        let forecast = |came, span_ms, room| Outage::forecast((came, span_ms), Some(room), 100);
        let half_a_day = forecast(500, DAY / 2, 250_000);
        assert_eq!((half_a_day.inflow_per_day, half_a_day.tenths_left), (Some(1_000), Some(25)));
        let full = forecast(500, DAY / 2, 0);
        assert_eq!(full.tenths_left, Some(0));
        assert_eq!(forecast(0, DAY, 1).tenths_left, None, "nothing comes in");
        assert_eq!(forecast(500, SPAN_MS_MIN - 1, 1).inflow_per_day, None, "too early");
        assert_eq!(forecast(1, DAY, u64::MAX).tenths_left, Some(10_000));
        assert_eq!(Outage::forecast((500, DAY), None, 100).tenths_left, None, "there is no disk");
        assert_eq!(forecast(u64::MAX, DAY, u64::MAX).tenths_left, Some(0));
    }
}
