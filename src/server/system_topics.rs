//! The values of `$SYS` topics, with mosquitto's names, for MQTT clients that subscribe to them.
//!
//! A client gets all values when it subscribes, and at each interval those that have changed.

use std::fmt::Write as _;

use leveret_core::time::{Deadline, Now};

use super::platform::Platform;
use super::state::Engine;

/// The counters of which moving averages are sent: name in a topic, and the unit of time is a minute.
const RATES: [&str; 5] =
    ["messages.received", "messages.sent", "bytes.received", "bytes.sent", "connections"];
/// The spans of the averages: name in a topic, and minutes.
const SPANS: [(&str, f64); 3] = [("1min", 1.0), ("5min", 5.0), ("15min", 15.0)];
/// The number of values besides the averages.
const PLAIN_COUNT: usize = 16;
const VALUE_COUNT: usize = PLAIN_COUNT + RATES.len() * SPANS.len();

/// The values that were sent last, and the moving averages.
#[derive(Debug)]
pub(super) struct SystemTopics {
    /// 0: there are no `$SYS` topics.
    interval_ms: u64,
    next: Deadline,
    clients_max: u64,
    /// Routing keys and payloads. Empty before the first interval.
    values: Vec<(String, String)>,
    /// Indexes of the values that have changed, and the place of the next session that gets them; `None` if all have them.
    changed: Vec<usize>,
    next_place: Option<usize>,
    /// The counters at the last interval.
    counts: [u64; RATES.len()],
    /// Their increase in a minute, averaged over each span.
    averages: [[f64; SPANS.len()]; RATES.len()],
    averaged_ms: u64,
}

impl SystemTopics {
    pub(super) fn new(interval_ms: u64) -> Self {
        Self {
            interval_ms,
            next: if interval_ms == 0 { Deadline::NEVER } else { Now::from_ms(0).after_ms(0) },
            clients_max: 0,
            values: Vec::new(),
            changed: Vec::new(),
            next_place: None,
            counts: [0; RATES.len()],
            averages: [[0.0; SPANS.len()]; RATES.len()],
            averaged_ms: 0,
        }
    }

    pub(super) const fn are_offered(&self) -> bool {
        self.interval_ms > 0
    }

    pub(super) const fn deadline(&self) -> Deadline {
        self.next
    }

    /// Updates the averages with the counters of this interval.
    fn average(&mut self, now_ms: u64, counts: [u64; RATES.len()]) {
        let minutes = now_ms.saturating_sub(self.averaged_ms) as f64 / 60_000.0;
        self.averaged_ms = now_ms;
        if minutes <= 0.0 {
            return;
        }
        for (rate, count) in counts.into_iter().enumerate() {
            let per_minute = count.saturating_sub(self.counts[rate]) as f64 / minutes;
            for (span, (_, span_minutes)) in SPANS.into_iter().enumerate() {
                let kept = (-minutes / span_minutes).exp();
                let average = &mut self.averages[rate][span];
                *average = per_minute * (1.0 - kept) + *average * kept;
            }
        }
        self.counts = counts;
    }

    /// Sets the values. Returns the indexes of those that have changed.
    fn set(&mut self, plain: [(&str, u64); PLAIN_COUNT - 2], texts: [(&str, String); 2]) -> Vec<usize> {
        let plain = plain.into_iter().map(|(name, value)| (name.to_string(), value.to_string()));
        let texts = texts.into_iter().map(|(name, text)| (name.to_string(), text));
        let averages = RATES.into_iter().zip(self.averages).flat_map(|(rate, averages)| {
            SPANS
                .into_iter()
                .zip(averages)
                .map(move |((span, _), average)| (format!("load.{rate}.{span}"), format!("{average:.2}")))
        });
        let all = texts.chain(plain).chain(averages).map(|(name, value)| {
            let mut key = "$SYS.broker.".to_string();
            key.push_str(&name);
            (key, value)
        });
        let before = core::mem::take(&mut self.values);
        self.values = all.collect();
        assert_eq!(self.values.len(), VALUE_COUNT, "each value has its topic");
        let is_changed = |at: &usize| before.get(*at) != Some(&self.values[*at]);
        (0..VALUE_COUNT).filter(is_changed).collect()
    }
}

impl<P: Platform> Engine<P> {
    /// Returns whether values are left to be sent.
    #[inline]
    pub(super) fn has_system_topics_to_send(&self) -> bool {
        self.system_topics.are_offered()
            && (self.system_topics.next_place.is_some() || self.shared.broker.has_new_system_subscribers())
    }

    /// Sends `$SYS` topics if the interval has passed, or a client has subscribed to them.
    pub(super) fn send_system_topics(&mut self) {
        if self.system_topics.next.is_due(self.shared.now) {
            self.system_topics.next = self.shared.now.after_ms(self.system_topics.interval_ms);
            self.system_topics.changed = self.update_system_topics();
            self.system_topics.next_place = Some(0);
        }
        if let Some(place) = self.system_topics.next_place {
            let SystemTopics { values, changed, .. } = &self.system_topics;
            let changed = changed.iter().map(|at| (&*values[*at].0, &*values[*at].1));
            let (broker, mut context) = self.shared.broker_mut();
            self.system_topics.next_place = broker.send_system_topics(&mut context, changed, place);
        }
        if self.shared.broker.has_new_system_subscribers() {
            let values = self.system_topics.values.iter().map(|(key, payload)| (&**key, &**payload));
            let (broker, mut context) = self.shared.broker_mut();
            broker.send_to_new_system_subscribers(&mut context, values);
        }
    }

    fn update_system_topics(&mut self) -> Vec<usize> {
        let (broker, now_ms) = (&self.shared.broker, self.shared.now.as_ms());
        let (views, counters) = (broker.views(), broker.counters());
        let (sessions, disconnected) = views.session_counts();
        let connected = sessions - disconnected;
        let clients_max = self.system_topics.clients_max.max(connected);
        let (retained_count, _) = views.retained_counts();
        let (stored_count, stored_bytes) = views.stored_messages();
        let subscriptions: u32 = views.sessions().map(|session| session.subscriptions).sum();
        let sent =
            counters.delivered_manual + counters.delivered_auto + counters.get_manual + counters.get_auto;
        let traffic = self.shared.traffic;
        let opened = self.shared.peers.connections_opened();
        let counts = [counters.received, sent, traffic.received_bytes, traffic.sent_bytes, opened];
        let mut version = String::new();
        let _ = write!(version, "leveret version {}", self.shared.identity.version);
        let texts = [("version", version), ("uptime", format!("{} seconds", now_ms / 1_000))];
        let plain = [
            ("clients.total", sessions),
            ("clients.connected", connected),
            ("clients.disconnected", disconnected),
            ("clients.maximum", clients_max),
            ("messages.received", counters.received),
            ("messages.sent", sent),
            ("publish.messages.dropped", views.session_messages_dropped()),
            ("messages.stored", stored_count),
            ("store.messages.count", stored_count),
            ("store.messages.bytes", stored_bytes),
            ("retained messages.count", retained_count as u64),
            ("subscriptions.count", subscriptions.into()),
            ("bytes.received", traffic.received_bytes),
            ("bytes.sent", traffic.sent_bytes),
        ];
        self.system_topics.clients_max = clients_max;
        self.system_topics.average(now_ms, counts);
        self.system_topics.set(plain, texts)
    }
}
