//! What was counted in the last minutes, for rates and charts.
//!
//! Why it exists: whoever asks wants to know how fast something goes and how it went, and counters alone say
//! neither. Nothing wakes up for it: a sample is taken in the first turn of every five seconds that has a
//! turn. Between two turns nothing changes, so what that turn finds was also true at the times before it that
//! had none.
//!
//! Always true: memory is fixed, and there is none where nobody can ask; a rate is that of the last five
//! seconds that are over; queues beyond [`QUEUES_MAX`] places have none, and that is said by leaving it out; of
//! exchanges, channels and connections only what a rate takes is kept, of as many places each.

use core::time::Duration;

use super::http::Request;
use super::json::Json;
use leveret_broker::{Broker, ChannelView, Counters, ExchangeView, QueueView};
use leveret_core::command::ConnectionId;

/// Time between samples.
pub const SAMPLE_MS: u64 = 5_000;
/// Samples of all together: ten minutes, and where they begin.
const TOTALS_KEPT: u64 = 121;
/// Samples of a queue: a minute, and where it begins.
const QUEUE_KEPT: u64 = 13;
/// Samples that are written of a series at most: those of an overview have room in one answer.
const WRITTEN_MAX: u64 = 32;
/// Samples of an exchange, a channel or a connection: what a rate takes.
const PAIR_KEPT: u64 = 2;
/// Places of queues that are sampled at most, and of exchanges, channels and connections each.
const QUEUES_MAX: usize = 1024;

/// What is counted of all together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Total {
    /// Messages published.
    Publish,
    /// Publishers told that they are taken.
    Confirm,
    /// Messages returned.
    ReturnUnroutable,
    /// Messages that no queue was for.
    DropUnroutable,
    /// Delivered, to be acknowledged.
    Deliver,
    /// Delivered, and that was all.
    DeliverNoAck,
    /// Asked for, to be acknowledged.
    Get,
    /// Asked for, and that was all.
    GetNoAck,
    /// Asked for, and there was none.
    GetEmpty,
    /// All that left by the four ways above.
    DeliverGet,
    /// Those of them that had left before.
    Redeliver,
    /// Acknowledged.
    Ack,
    /// Messages ready.
    MessagesReady,
    /// Messages delivered and not settled.
    MessagesUnacknowledged,
    /// Connections that came.
    ConnectionCreated,
    /// Connections that went.
    ConnectionClosed,
    /// Channels that came.
    ChannelCreated,
    /// Channels that went.
    ChannelClosed,
    /// Declarations of queues.
    QueueDeclared,
    /// Queues that came.
    QueueCreated,
    /// Queues that went.
    QueueDeleted,
    /// Bytes written to the disk.
    IoWriteBytes,
    /// Times that the disk was asked to keep them.
    IoSyncCount,
}

/// How many of those there are.
const TOTALS: usize = Total::IoSyncCount as usize + 1;

/// A sample of all together, by [`Total`].
pub type Totals = [u64; TOTALS];

/// What only the loop knows of a sample.
#[derive(Clone, Copy, Default, Debug)]
pub struct Outside {
    /// Publishers told that a message is taken.
    pub confirmed: u64,
    /// Connections that came, and those that are there.
    pub connections: (u64, u64),
    /// Bytes written, and how often the disk was asked to keep them.
    pub disk: (u64, u64),
}

/// A sample of a queue. Counters are kept modulo 2³²: only differences are asked for.
#[derive(Clone, Copy, Default, Debug)]
struct QueueSample {
    came: u32,
    went: u32,
    ready: u32,
    unacknowledged: u32,
}

#[derive(Clone, Copy, Debug)]
struct QueueHistory {
    /// The queue that it is of.
    serial: u64,
    /// 0: of none yet.
    first: Slot,
    samples: [QueueSample; QUEUE_KEPT as usize],
}

const NO_HISTORY: QueueHistory = QueueHistory {
    serial: 0,
    first: 0,
    samples: [QueueSample { came: 0, went: 0, ready: 0, unacknowledged: 0 }; QUEUE_KEPT as usize],
};

/// The last two samples of something in a place, modulo 2³².
#[derive(Clone, Copy, Debug)]
struct Pair<const N: usize> {
    /// What it is of.
    serial: u64,
    /// 0: of none yet.
    first: Slot,
    samples: [[u32; N]; PAIR_KEPT as usize],
}

impl<const N: usize> Pair<N> {
    const NONE: Self = Self { serial: 0, first: 0, samples: [[0; N]; PAIR_KEPT as usize] };
}

/// Those of the things in all places that are sampled.
#[derive(Debug, Default)]
struct Pairs<const N: usize>(Vec<Pair<N>>);

impl<const N: usize> Pairs<N> {
    fn new(places: usize) -> Self {
        Self(Vec::with_capacity(places.min(QUEUES_MAX)))
    }

    const fn bytes(places: usize) -> usize {
        (if places < QUEUES_MAX { places } else { QUEUES_MAX }) * size_of::<Pair<N>>()
    }

    fn take(&mut self, (last, slot): (Slot, Slot), place: usize, serial: u64, sample: [u32; N]) {
        if place >= self.0.capacity() {
            return;
        }
        if place >= self.0.len() {
            self.0.resize(place + 1, Pair::NONE);
        }
        let pair = &mut self.0[place];
        if pair.serial != serial || pair.first == 0 {
            (pair.serial, pair.first) = (serial, slot);
        }
        for slot in newly(last, slot, PAIR_KEPT) {
            pair.samples[(slot % PAIR_KEPT) as usize] = sample;
        }
    }
}

/// How many of each there can be.
#[derive(Clone, Copy, Debug)]
pub struct SampledPlaces {
    /// Queues.
    pub queues: usize,
    /// Exchanges.
    pub exchanges: usize,
    /// Channels.
    pub channels: usize,
    /// Connections.
    pub connections: usize,
}

/// What is sampled of a connection.
#[derive(Clone, Copy, Debug)]
pub struct SampledConnection {
    /// Its place.
    pub id: ConnectionId,
    /// Connections are numbered in the order of their coming.
    pub number: u64,
    /// Bytes that came.
    pub received_bytes: u64,
    /// Bytes that went.
    pub sent_bytes: u64,
}

/// What is counted of a channel.
const CHANNEL_COUNTS: usize = 12;

/// What happened to messages on a channel, in RabbitMQ's words.
pub fn counts_of_channel(view: &ChannelView<'_>) -> [(&'static str, u32); CHANNEL_COUNTS] {
    let counters = &view.counters;
    [
        ("publish", counters.published),
        ("confirm", counters.confirmed),
        ("return_unroutable", counters.returned),
        ("drop_unroutable", counters.dropped),
        ("deliver", counters.delivered_manual),
        ("deliver_no_ack", counters.delivered_auto),
        ("get", counters.get_manual),
        ("get_no_ack", counters.get_auto),
        ("get_empty", counters.get_empty),
        ("deliver_get", counters.delivered()),
        ("redeliver", counters.redelivered),
        ("ack", counters.acknowledged),
    ]
}

/// A place in the rings: steps of [`SAMPLE_MS`] since the process's start, counted from 1.
type Slot = u64;

const fn slot_of(now_ms: u64) -> Slot {
    now_ms / SAMPLE_MS + 1
}

/// The samples.
#[derive(Debug, Default)]
pub struct Samples {
    totals: Box<[Totals]>,
    /// By the places of queues, as far as there were any.
    queues: Vec<QueueHistory>,
    exchanges: Pairs<2>,
    channels: Pairs<CHANNEL_COUNTS>,
    connections: Pairs<2>,
    /// The first slot there is, and the last; `None` before there is one.
    kept: Option<(Slot, Slot)>,
    /// The date at the process's start, in milliseconds since 1970.
    start_unix_ms: u64,
}

/// How much of a history is asked for, in seconds: how far back, and how far apart.
type Range = Option<(u64, u64)>;

/// Which histories a request asks for.
#[derive(Clone, Copy, Default, Debug)]
pub struct Ranges {
    /// Of numbers of messages.
    pub lengths: Range,
    /// Of what happens to messages.
    pub rates: Range,
}

impl Ranges {
    /// What a request asks for, in RabbitMQ's words.
    pub fn asked(request: &Request<'_>) -> Self {
        let number = |key: &str| request.asked(key)?.parse().ok();
        let range = |age, incr| Some((number(age)?, number(incr).filter(|incr| *incr > 0)?));
        Self {
            lengths: range("lengths_age", "lengths_incr"),
            rates: range("msg_rates_age", "msg_rates_incr"),
        }
    }
}

/// One series.
struct Series<'s> {
    first: Slot,
    last: Slot,
    start_unix_ms: u64,
    value: &'s dyn Fn(Slot) -> u64,
}

impl Samples {
    /// Room for samples of all together, and of the things in so many places.
    pub fn new(places: SampledPlaces) -> Self {
        Self {
            totals: vec![[0; TOTALS]; TOTALS_KEPT as usize].into_boxed_slice(),
            queues: Vec::with_capacity(places.queues.min(QUEUES_MAX)),
            exchanges: Pairs::new(places.exchanges),
            channels: Pairs::new(places.channels),
            connections: Pairs::new(places.connections),
            ..Self::default()
        }
    }

    /// What that takes.
    pub fn bytes(places: SampledPlaces) -> usize {
        TOTALS_KEPT as usize * size_of::<Totals>()
            + places.queues.min(QUEUES_MAX) * size_of::<QueueHistory>()
            + Pairs::<2>::bytes(places.exchanges)
            + Pairs::<CHANNEL_COUNTS>::bytes(places.channels)
            + Pairs::<2>::bytes(places.connections)
    }

    /// Whether a turn at this time has to take a sample.
    pub fn is_due(&self, now_ms: u64) -> bool {
        !self.totals.is_empty() && self.kept.is_none_or(|(_, last)| slot_of(now_ms) > last)
    }

    /// Takes one, which is due.
    pub fn take(
        &mut self,
        (now_ms, unix_ms): (u64, u64),
        broker: &Broker,
        connections: impl Iterator<Item = SampledConnection>,
        outside: Outside,
    ) {
        let slot = slot_of(now_ms);
        let (first, last) = self.kept.unwrap_or((slot, slot));
        self.start_unix_ms = unix_ms.saturating_sub(now_ms);
        let places = broker.views().queue_places().min(self.queues.capacity());
        self.queues.resize(places.max(self.queues.len()), NO_HISTORY);
        let (mut ready, mut unacknowledged) = (0, 0);
        for queue in (0..broker.views().queue_places()).filter_map(|place| broker.views().queue_at(place)) {
            ready += u64::from(queue.messages_ready);
            unacknowledged += u64::from(queue.messages_unacknowledged);
            if let Some(history) = self.queues.get_mut(queue.place) {
                history.take((last, slot), &queue);
            }
        }
        self.take_pairs((last, slot), broker);
        for connection in connections {
            let bytes = [connection.received_bytes as u32, connection.sent_bytes as u32];
            self.connections.take((last, slot), connection.id.index(), connection.number, bytes);
        }
        let totals =
            totals(broker.counters(), broker.gauges().channels as u64, (ready, unacknowledged), outside);
        for slot in newly(last, slot, TOTALS_KEPT) {
            self.totals[(slot % TOTALS_KEPT) as usize] = totals;
        }
        self.kept = Some((first.max((slot + 1).saturating_sub(TOTALS_KEPT).max(1)), slot));
    }

    fn take_pairs(&mut self, slots: (Slot, Slot), broker: &Broker) {
        let views = broker.views();
        for view in (0..views.exchange_places()).filter_map(|place| views.exchange_at(place)) {
            self.exchanges.take(slots, view.place, view.serial, view.published);
        }
        for place in 0..views.channel_places() {
            if let Some(view) = views.channel_at(place) {
                let counts = counts_of_channel(&view).map(|(_, count)| count);
                self.channels.take(slots, place, view.serial, counts);
            }
        }
    }

    /// Writes the rate of a number of an exchange: of messages published to it, or of queues that they went to.
    pub fn of_exchange(&self, json: &mut Json<'_>, view: &ExchangeView<'_>, column: usize, range: Range) {
        let now = view.published[column].into();
        self.pair(json, &self.exchanges, (view.place, view.serial), (column, now), range);
    }

    /// Writes the rate of one of the [`counts_of_channel`] of the channel in a place.
    pub fn of_channel(
        &self,
        json: &mut Json<'_>,
        (place, serial): (usize, u64),
        (column, now): (usize, u32),
        range: Range,
    ) {
        self.pair(json, &self.channels, (place, serial), (column, now.into()), range);
    }

    /// Writes the rate of bytes that a connection received, or sent: `column` 0 or 1.
    pub fn of_connection(
        &self,
        json: &mut Json<'_>,
        (id, number): (ConnectionId, u64),
        (column, now): (usize, u64),
    ) {
        self.pair(json, &self.connections, (id.index(), number), (column, now), None);
    }

    fn pair<const N: usize>(
        &self,
        json: &mut Json<'_>,
        pairs: &Pairs<N>,
        (place, serial): (usize, u64),
        (column, now): (usize, u64),
        range: Range,
    ) {
        let pair = pairs.0.get(place).filter(|pair| pair.serial == serial);
        // Of one that came since the last sample it is known that there was nothing.
        let kept = self.kept.filter(|_| place < pairs.0.capacity()).map(|(_, last)| {
            let first = pair.map_or(last, |pair| pair.first);
            (first.max((last + 1).saturating_sub(PAIR_KEPT)), last)
        });
        let value = |slot: Slot| {
            let then = pair.map_or(0, |pair| pair.samples[(slot % PAIR_KEPT) as usize][column]);
            by_then(now, then)
        };
        self.write(json, kept, &value, range);
    }

    /// Writes the rate of a total, and its history if one is asked for: an object.
    pub fn total(&self, json: &mut Json<'_>, total: Total, range: Range) {
        self.sum(json, &[total], range);
    }

    /// The same of a sum.
    pub fn sum(&self, json: &mut Json<'_>, totals: &[Total], range: Range) {
        let value = |slot: Slot| {
            let sample = &self.totals[(slot % TOTALS_KEPT) as usize];
            totals.iter().map(|total| sample[*total as usize]).sum()
        };
        self.write(json, self.kept, &value, range);
    }

    /// Writes the rates of a queue's messages as members `…_details`, and their histories.
    pub fn of_queue(&self, json: &mut Json<'_>, queue: &QueueView<'_>, column: QueueColumn, range: Range) {
        let history = self.queues.get(queue.place).filter(|history| history.serial == queue.serial);
        // Of one that came since the last sample it is known that there was nothing.
        let kept = self.kept.filter(|_| queue.place < self.queues.capacity()).map(|(_, last)| {
            let first = history.map_or(last, |history| history.first);
            (first.max((last + 1).saturating_sub(QUEUE_KEPT)), last)
        });
        let value = |slot: Slot| {
            let sample = history.map_or(QueueSample::default(), |history| history.at(slot));
            match column {
                QueueColumn::Came => by_then(queue.came, sample.came),
                QueueColumn::Went => by_then(queue.went, sample.went),
                QueueColumn::Ready => sample.ready.into(),
                QueueColumn::Unacknowledged => sample.unacknowledged.into(),
                QueueColumn::All => u64::from(sample.ready) + u64::from(sample.unacknowledged),
            }
        };
        self.write(json, kept, &value, range);
    }

    fn write(
        &self,
        json: &mut Json<'_>,
        kept: Option<(Slot, Slot)>,
        value: &dyn Fn(Slot) -> u64,
        range: Range,
    ) {
        match kept {
            Some((first, last)) => {
                Series { first, last, start_unix_ms: self.start_unix_ms, value }.write(json, range);
            }
            None => json.raw(b"{}"),
        }
    }
}

/// What is sampled of a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QueueColumn {
    /// Messages that came in.
    Came,
    /// Messages delivered.
    Went,
    /// Messages ready.
    Ready,
    /// Messages delivered and not settled.
    Unacknowledged,
    /// Both.
    All,
}

/// What came by then is what came by now, less the difference.
const fn by_then(now: u64, then: u32) -> u64 {
    now.wrapping_sub((now as u32).wrapping_sub(then) as u64)
}

/// Slots behind `last` up to and with `slot`, as many as are kept; also that one, when it is the first.
fn newly(last: Slot, slot: Slot, kept: u64) -> core::ops::RangeInclusive<Slot> {
    (last + 1).min(slot).max((slot + 1).saturating_sub(kept))..=slot
}

impl QueueHistory {
    fn at(&self, slot: Slot) -> QueueSample {
        self.samples[(slot % QUEUE_KEPT) as usize]
    }

    fn take(&mut self, (last, slot): (Slot, Slot), queue: &QueueView<'_>) {
        if self.serial != queue.serial || self.first == 0 {
            (self.serial, self.first) = (queue.serial, slot);
        }
        let sample = QueueSample {
            came: queue.came as u32,
            went: queue.went as u32,
            ready: queue.messages_ready,
            unacknowledged: queue.messages_unacknowledged,
        };
        for slot in newly(last, slot, QUEUE_KEPT) {
            self.samples[(slot % QUEUE_KEPT) as usize] = sample;
        }
    }
}

impl Series<'_> {
    /// How much more there was in one slot than in another, by the second.
    fn rate(&self, from: Slot, to: Slot) -> f64 {
        let more = (self.value)(to).wrapping_sub((self.value)(from)) as i64;
        let seconds = Duration::from_millis(SAMPLE_MS * (to - from)).as_secs_f64();
        if seconds > 0.0 { more as f64 / seconds } else { 0.0 }
    }

    fn write(&self, json: &mut Json<'_>, range: Range) {
        let now = self.rate(self.last.saturating_sub(1).max(self.first), self.last);
        json.shown_raw(format_args!("{{\"rate\":{now:?}"));
        if let Some((age_s, step_s)) = range {
            let slots = |seconds: u64| seconds.saturating_mul(1000) / SAMPLE_MS;
            let age = slots(age_s).min(self.last - self.first);
            let step = slots(step_s).max(age.div_ceil(WRITTEN_MAX - 1)).max(1);
            let steps = age / step;
            json.raw(b",\"samples\":[");
            let (mut is_first, mut sum) = (true, 0.0);
            for slot in (0..=steps).map(|back| self.last - back * step) {
                let (value, at_ms) = ((self.value)(slot), self.start_unix_ms + (slot - 1) * SAMPLE_MS);
                sum += value as f64;
                json.comma(&mut is_first);
                json.shown_raw(format_args!("{{\"sample\":{value},\"timestamp\":{at_ms}}}"));
            }
            let (rate, mean) = (self.rate(self.last - steps * step, self.last), sum / (steps + 1) as f64);
            json.shown_raw(format_args!("],\"avg_rate\":{rate:?},\"avg\":{mean:?}"));
        }
        json.raw(b"}");
    }
}

fn totals(
    counters: Counters,
    channels: u64,
    (ready, unacknowledged): (u64, u64),
    outside: Outside,
) -> Totals {
    let (made, connections) = outside.connections;
    [
        counters.received,
        outside.confirmed,
        counters.unroutable_returned,
        counters.unroutable_dropped,
        counters.delivered_manual,
        counters.delivered_auto,
        counters.get_manual,
        counters.get_auto,
        counters.get_empty,
        counters.delivered(),
        counters.redelivered,
        counters.acknowledged,
        ready,
        unacknowledged,
        made,
        made.saturating_sub(connections),
        counters.channels_opened,
        counters.channels_opened.saturating_sub(channels),
        counters.queues_declared,
        counters.queues_created,
        counters.queues_deleted,
        outside.disk.0,
        outside.disk.1,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(series: &Series<'_>, range: Range) -> String {
        let mut out = Vec::new();
        series.write(&mut Json::new(&mut out, 1 << 16), range);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_rate_is_that_of_the_last_step_and_a_history_ends_where_it_begins() {
        let value = |slot: Slot| 10 * slot;
        let one = Series { first: 7, last: 7, start_unix_ms: 0, value: &value };
        assert_eq!(written(&one, None), r#"{"rate":0.0}"#, "nothing is known yet");
        let some = Series { first: 4, last: 7, start_unix_ms: 1_000, value: &value };
        assert_eq!(written(&some, None), r#"{"rate":2.0}"#);
        let wanted = concat!(
            r#"{"rate":2.0,"samples":[{"sample":70,"timestamp":31000},{"sample":50,"timestamp":21000}],"#,
            r#""avg_rate":2.0,"avg":60.0}"#
        );
        assert_eq!(written(&some, Some((600, 10))), wanted);
        let falling = |slot: Slot| 100 - 3 * slot;
        let falls = Series { first: 1, last: 8, start_unix_ms: 0, value: &falling };
        assert_eq!(written(&falls, None), r#"{"rate":-0.6}"#);
        // Steps that make no sense are as long as they can be.
        assert!(written(&falls, Some((u64::MAX, u64::MAX))).contains("\"avg\":76.0"));
        assert_eq!(written(&falls, Some((u64::MAX, 1))).matches("sample\"").count(), 8);
        let long = Series { first: 1, last: TOTALS_KEPT, start_unix_ms: 0, value: &value };
        let shown = written(&long, Some((600, 5)));
        assert_eq!(shown.matches("sample\"").count(), 31, "as many as have room, further apart");
        assert!(shown.contains(r#"{"sample":10,"timestamp":0}"#), "and back to the beginning");
    }

    #[test]
    fn what_had_no_turn_is_what_the_next_turn_finds() {
        assert_eq!(newly(0, 0, 13), 0..=0);
        assert_eq!(newly(3, 4, 13), 4..=4);
        assert_eq!(newly(3, 9, 13), 4..=9);
        assert_eq!(newly(3, 99, 13), 87..=99);
    }
}
