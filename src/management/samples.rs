//! Counters of the last minutes, for rates and charts.
//!
//! The event loop does not wake up for samples. The first turn in each interval of five seconds takes one. Nothing
//! changes between two turns, so the sample is also valid for the intervals before it that had no turn.
//!
//! # Invariants
//! - Memory is fixed, and none is used if there is no management API.
//! - A rate is that of the last completed interval of five seconds.
//! - A queue has the samples of the last minute, and one per 30 s of the last ten minutes.
//! - Queues beyond `QUEUES_MAX` positions, and those for which there is no memory, have no rates; the answer omits them.
//! - Of exchanges, channels and connections only the two samples of a rate are kept, for as many positions each.

use core::time::Duration;

use super::http::Request;
use super::json::Json;
use leveret_broker::{Broker, ChannelView, ExchangeView, Objects as _, POOLS, QueueView};
use leveret_core::command::ConnectionId;
use leveret_core::mem::{Class, HeapBytes, Messages};

/// Time between samples, in milliseconds.
pub const SAMPLE_MS: u64 = 5_000;
/// Number of samples of the totals: ten minutes and their start.
const TOTALS_KEPT: u64 = 121;
/// Number of samples of a queue: one minute and its start.
const QUEUE_KEPT: u64 = 13;
/// Older samples of a queue are kept for every sixth slot, which is one per 30 s.
const OLD_SLOTS: u64 = 6;
/// Number of these samples: ten minutes and their start.
const QUEUE_OLD_KEPT: u64 = 21;
/// The fewest messages by which the depth of a growing queue rises in the last minute.
const GROWTH_MIN: u64 = 5;
/// The fewest samples of a growing queue.
const GROWTH_SAMPLES_MIN: u64 = 4;
/// The most samples of a series that are written, so that those of an overview fit in one answer.
const WRITTEN_MAX: u64 = 32;
/// Number of samples of an exchange, a channel or a connection: as many as a rate needs.
const PAIR_KEPT: u64 = 2;
/// The most positions of queues that are sampled, and of exchanges, channels and connections each.
const QUEUES_MAX: usize = 1024;

/// The totals that are sampled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Total {
    /// Messages published.
    Publish,
    /// Confirms sent to publishers.
    Confirm,
    /// Messages returned as unroutable.
    ReturnUnroutable,
    /// Messages dropped as unroutable.
    DropUnroutable,
    /// Delivered to consumers with manual acknowledgement.
    Deliver,
    /// Delivered to consumers with automatic acknowledgement.
    DeliverNoAck,
    /// Got by `basic.get` with manual acknowledgement.
    Get,
    /// Got by `basic.get` with automatic acknowledgement.
    GetNoAck,
    /// `basic.get` of an empty queue.
    GetEmpty,
    /// Messages delivered or got in any of these four ways.
    DeliverGet,
    /// Messages delivered or got again.
    Redeliver,
    /// Acknowledged.
    Ack,
    /// Messages ready for delivery.
    MessagesReady,
    /// Messages delivered and not settled.
    MessagesUnacknowledged,
    /// Connections opened.
    ConnectionCreated,
    /// Connections closed.
    ConnectionClosed,
    /// Channels opened.
    ChannelCreated,
    /// Channels closed.
    ChannelClosed,
    /// Declarations of queues.
    QueueDeclared,
    /// Queues created.
    QueueCreated,
    /// Queues deleted.
    QueueDeleted,
    /// Bytes written to the disk.
    IoWriteBytes,
    /// Syncs of the disk.
    IoSyncCount,
    /// Resident memory of the process in bytes.
    ResidentBytes,
    /// Bytes of the log, including settled messages.
    LogBytes,
    /// Bytes that unsettled messages take in the log.
    LiveBytes,
}

/// The number of totals.
const TOTALS: usize = Total::LiveBytes as usize + 1;
/// The totals in a history, with their names.
const HISTORY: [(&str, Total); 11] = [
    ("ready", Total::MessagesReady),
    ("unacknowledged", Total::MessagesUnacknowledged),
    ("publish", Total::Publish),
    ("confirm", Total::Confirm),
    ("deliver_get", Total::DeliverGet),
    ("redeliver", Total::Redeliver),
    ("ack", Total::Ack),
    ("memory", Total::ResidentBytes),
    ("log", Total::LogBytes),
    ("live", Total::LiveBytes),
    ("written", Total::IoWriteBytes),
];

/// A sample of the totals, by [`Total`].
pub type Totals = [u64; TOTALS];

/// The values of a sample that only the event loop knows.
#[derive(Clone, Copy, Default, Debug)]
pub struct LoopCounters {
    /// Confirms sent to publishers.
    pub confirmed: u64,
    /// Connections opened, and connections that are open.
    pub connections: (u64, u64),
    /// Bytes written to the disk, and its syncs.
    pub disk: (u64, u64),
    /// Resident memory of the process in bytes.
    pub resident_bytes: u64,
    /// Bytes of the log, including settled messages.
    pub log_bytes: u64,
}

/// A sample of a queue. Counters are kept modulo 2³², because only differences are used.
#[derive(Clone, Copy, Default, Debug)]
struct QueueSample {
    arrived: u32,
    delivered: u32,
    ready: u32,
    unacknowledged: u32,
}

#[derive(Clone, Copy, Debug)]
struct QueueHistory {
    /// The serial number of the queue.
    serial: u64,
    /// The first slot with a sample of it; 0: none yet.
    first: Slot,
    samples: [QueueSample; QUEUE_KEPT as usize],
    /// The samples of the slots that are multiples of [`OLD_SLOTS`].
    old: [QueueSample; QUEUE_OLD_KEPT as usize],
}

const NO_SAMPLE: QueueSample = QueueSample { arrived: 0, delivered: 0, ready: 0, unacknowledged: 0 };
const NO_HISTORY: QueueHistory = QueueHistory {
    serial: 0,
    first: 0,
    samples: [NO_SAMPLE; QUEUE_KEPT as usize],
    old: [NO_SAMPLE; QUEUE_OLD_KEPT as usize],
};

/// The last two samples of the object at a position, modulo 2³².
#[derive(Clone, Copy, Debug)]
struct Pair<const N: usize> {
    /// The serial number of the object.
    serial: u64,
    /// The first slot with a sample of it; 0: none yet.
    first: Slot,
    samples: [[u32; N]; PAIR_KEPT as usize],
}

impl<const N: usize> Pair<N> {
    const NONE: Self = Self { serial: 0, first: 0, samples: [[0; N]; PAIR_KEPT as usize] };
}

/// An exchange, a channel or a connection: its position, and the number that distinguishes it from others there.
#[derive(Clone, Copy, Debug)]
pub struct Sampled {
    /// The position.
    pub place: usize,
    /// The number, which is never used again.
    pub serial: u64,
}

/// A counter of an object.
#[derive(Clone, Copy, Debug)]
pub struct Counter {
    /// Which one.
    pub column: usize,
    /// Its present value.
    pub now: u64,
}

/// When a sample is taken, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct SampleTime {
    /// Since the start of the process.
    pub now_ms: u64,
    /// Since 1970.
    pub unix_ms: u64,
}

/// The slot of the last sample, and that of the sample that is taken now.
#[derive(Clone, Copy, Debug)]
struct NewSlots {
    last: Slot,
    slot: Slot,
}

/// The samples of the objects at all sampled positions.
#[derive(Debug, Default)]
struct Pairs<const N: usize>(Vec<Pair<N>>);

impl<const N: usize> Pairs<N> {
    fn new(places: usize) -> Self {
        Self(Vec::with_capacity(places.min(QUEUES_MAX)))
    }

    fn take(&mut self, memory: &mut HeapBytes, slots: NewSlots, object: Sampled, sample: [u32; N]) {
        let (NewSlots { last, slot }, Sampled { place, serial }) = (slots, object);
        grow(&mut self.0, memory, place + 1, Pair::NONE);
        if place >= self.0.len() {
            return;
        }
        let pair = &mut self.0[place];
        if pair.serial != serial || pair.first == 0 {
            (pair.serial, pair.first) = (serial, slot);
        }
        for slot in new_slots(last, slot, PAIR_KEPT) {
            pair.samples[(slot % PAIR_KEPT) as usize] = sample;
        }
    }
}

/// Makes the list at least this long if its capacity and the memory allow it. What is added has this value.
fn grow<T: Clone>(list: &mut Vec<T>, memory: &mut HeapBytes, len: usize, value: T) {
    let missing = len.min(list.capacity()).saturating_sub(list.len());
    if missing > 0 && memory.try_add(missing * size_of::<T>()) {
        list.resize(list.len() + missing, value);
    }
}

/// The most objects of each kind.
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

/// The values of a connection that are sampled.
#[derive(Clone, Copy, Debug)]
pub struct SampledConnection {
    /// Its id.
    pub id: ConnectionId,
    /// Its number: connections are numbered as they are opened.
    pub number: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
}

/// The number of counters of a channel.
const CHANNEL_COUNTS: usize = 12;

/// Returns the message counters of a channel with RabbitMQ's names.
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

/// An interval of [`SAMPLE_MS`] since the start of the process, counted from 1. A sample's index in a ring buffer
/// follows from it.
type Slot = u64;

const fn slot_of(now_ms: u64) -> Slot {
    now_ms / SAMPLE_MS + 1
}

/// The samples.
#[derive(Debug, Default)]
pub struct Samples {
    totals: Box<[Totals]>,
    /// By the positions of queues, as far as they were ever used.
    queues: Vec<QueueHistory>,
    exchanges: Pairs<2>,
    channels: Pairs<CHANNEL_COUNTS>,
    connections: Pairs<2>,
    /// The memory of the samples of objects; `None` before the first sample.
    memory: Option<HeapBytes>,
    /// The highest sample of the use of each pool of [`Views::pools`](leveret_broker::Views::pools).
    pool_peaks: [u64; POOLS],
    /// The first and the last slot with a sample. `None` before the first sample.
    kept: Option<(Slot, Slot)>,
    /// The date at the process's start, in milliseconds since 1970.
    start_unix_ms: u64,
}

/// The requested part of a history, in seconds: its age and the step between samples.
type Range = Option<(u64, u64)>;

/// The histories that a request asks for.
#[derive(Clone, Copy, Default, Debug)]
pub struct Ranges {
    /// The history of message counts.
    pub lengths: Range,
    /// The history of message rates.
    pub rates: Range,
}

impl Ranges {
    /// Reads the ranges from RabbitMQ's query parameters.
    pub fn from_query(request: &Request<'_>) -> Self {
        let number = |key: &str| request.query_value(key)?.parse().ok();
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
    /// From this slot on, there are samples of all slots; before it, only of the multiples of [`OLD_SLOTS`].
    dense: Slot,
    start_unix_ms: u64,
    value: &'s dyn Fn(Slot) -> u64,
}

impl Samples {
    /// Allocates the samples of the totals and of this many objects.
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

    /// Bytes of the samples of totals. The samples of objects are charged to the shared memory when they are taken.
    pub const TOTALS_BYTES: usize = TOTALS_KEPT as usize * size_of::<Totals>();

    /// Returns whether a turn at this time has to take a sample.
    pub fn is_due(&self, now_ms: u64) -> bool {
        !self.totals.is_empty() && self.kept.is_none_or(|(_, last)| slot_of(now_ms) > last)
    }

    /// Takes a sample that is due.
    pub fn take(
        &mut self,
        time: SampleTime,
        broker: &Broker,
        messages: &Messages,
        connections: impl Iterator<Item = SampledConnection>,
        outside: LoopCounters,
    ) {
        let SampleTime { now_ms, unix_ms } = time;
        let slot = slot_of(now_ms);
        let (first, last) = self.kept.unwrap_or((slot, slot));
        let slots = NewSlots { last, slot };
        self.start_unix_ms = unix_ms.saturating_sub(now_ms);
        let memory = self.memory.get_or_insert_with(|| HeapBytes::in_memory(broker.memory(), Class::Clients));
        grow(&mut self.queues, memory, broker.views().queues().places(), NO_HISTORY);
        let (mut ready, mut unacknowledged) = (0, 0);
        for queue in broker.views().queues() {
            ready += u64::from(queue.messages_ready);
            unacknowledged += u64::from(queue.messages_unacknowledged);
            if let Some(history) = self.queues.get_mut(queue.place) {
                history.take(slots, &queue);
            }
        }
        for view in broker.views().exchanges() {
            let object = Sampled { place: view.place, serial: view.serial };
            self.exchanges.take(memory, slots, object, view.published);
        }
        for place in 0..broker.views().channels().places() {
            if let Some(view) = broker.views().channels().at(place) {
                let counts = counts_of_channel(&view).map(|(_, count)| count);
                self.channels.take(memory, slots, Sampled { place, serial: view.serial }, counts);
            }
        }
        for connection in connections {
            let bytes = [connection.received_bytes as u32, connection.sent_bytes as u32];
            let object = Sampled { place: connection.id.index(), serial: connection.number };
            self.connections.take(memory, slots, object, bytes);
        }
        let totals = totals(broker, ready, unacknowledged, outside);
        for (peak, pool) in self.pool_peaks.iter_mut().zip(broker.views().pools(messages)) {
            *peak = pool.used.max(*peak);
        }
        for slot in new_slots(last, slot, TOTALS_KEPT) {
            self.totals[(slot % TOTALS_KEPT) as usize] = totals;
        }
        self.kept = Some((first.max((slot + 1).saturating_sub(TOTALS_KEPT).max(1)), slot));
    }

    /// Returns the highest use of each pool: the highest sample, or the present use if that is higher.
    pub fn pool_peaks(&self, used: [u64; POOLS]) -> [u64; POOLS] {
        core::array::from_fn(|pool| used[pool].max(self.pool_peaks[pool]))
    }

    /// Writes the samples of the totals that are newer than the slot `since`, as an object of lists. The first value of
    /// a list is a sample. Each further value is the difference to the value before, which has fewer digits.
    pub fn write_history(&self, json: &mut Json<'_>, since: u64) {
        let (first, last) = self.kept.unwrap_or((1, 0));
        // A slot in the future is one of another process.
        let first = if since <= last { first.max(since + 1) } else { first };
        json.shown_raw(format_args!("{{\"step_ms\":{SAMPLE_MS},\"last\":{last}"));
        for (name, total) in HISTORY {
            json.name(name, &mut false);
            json.raw(b"[");
            let (mut before, mut is_first) = (0, true);
            for slot in first..=last {
                let value = self.totals[(slot % TOTALS_KEPT) as usize][total as usize];
                json.comma(&mut is_first);
                json.shown_raw(format_args!("{}", value.wrapping_sub(before) as i64));
                before = value;
            }
            json.raw(b"]");
        }
        json.raw(b"}");
    }

    /// Writes a rate of an exchange: of messages published to it, or of messages routed from it to queues.
    pub fn of_exchange(&self, json: &mut Json<'_>, view: &ExchangeView<'_>, column: usize, range: Range) {
        let now = view.published[column].into();
        let object = Sampled { place: view.place, serial: view.serial };
        self.pair(json, &self.exchanges, object, Counter { column, now }, range);
    }

    /// Writes the rate of one of the [`counts_of_channel`] of the channel at a position.
    pub fn of_channel(&self, json: &mut Json<'_>, object: Sampled, counter: Counter, range: Range) {
        self.pair(json, &self.channels, object, counter, range);
    }

    /// Writes the rate of bytes that a connection received (`column` 0) or sent (`column` 1).
    pub fn of_connection(&self, json: &mut Json<'_>, connection: Sampled, counter: Counter) {
        self.pair(json, &self.connections, connection, counter, None);
    }

    fn pair<const N: usize>(
        &self,
        json: &mut Json<'_>,
        pairs: &Pairs<N>,
        object: Sampled,
        counter: Counter,
        range: Range,
    ) {
        let (Sampled { place, serial }, Counter { column, now }) = (object, counter);
        let pair = pairs.0.get(place).filter(|pair| pair.serial == serial);
        // The counters of an object created after the last sample were 0 then.
        let kept = self.kept.filter(|_| place < pairs.0.capacity()).map(|(_, last)| {
            let first = pair.map_or(last, |pair| pair.first);
            (first.max((last + 1).saturating_sub(PAIR_KEPT)), last)
        });
        let value = |slot: Slot| {
            let then = pair.map_or(0, |pair| pair.samples[(slot % PAIR_KEPT) as usize][column]);
            earlier_value(now, then)
        };
        self.write(json, kept, &value, range);
    }

    /// Writes the rate of a total, and its history if one is requested, as an object.
    pub fn total(&self, json: &mut Json<'_>, total: Total, range: Range) {
        self.sum(json, &[total], range);
    }

    /// Writes the rate of a sum of totals, and its history if one is requested.
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
        // The counters of a queue created after the last sample were 0 then.
        let kept = self.kept.filter(|_| queue.place < self.queues.capacity()).map(|(_, last)| {
            let first = history.map_or(last, |history| history.first);
            (first.max(oldest_of_queue(last)), last)
        });
        let dense = kept.map_or(0, |(_, last)| (last + 1).saturating_sub(QUEUE_KEPT));
        let value = |slot: Slot| {
            let sample = history.map_or(NO_SAMPLE, |history| history.at(slot, dense));
            match column {
                QueueColumn::Arrived => earlier_value(queue.arrived, sample.arrived),
                QueueColumn::Delivered => earlier_value(queue.taken, sample.delivered),
                QueueColumn::Ready => sample.ready.into(),
                QueueColumn::Unacknowledged => sample.unacknowledged.into(),
                QueueColumn::All => u64::from(sample.ready) + u64::from(sample.unacknowledged),
            }
        };
        self.write_series(json, kept, dense, &value, range);
    }

    /// Returns by how many messages per second a queue has grown in the last minute. `None`: it does not grow, or has
    /// too few samples. A depth that goes up and down is no growth: each depth in the later half of the samples must be
    /// above all in the earlier half.
    pub fn growth(&self, queue: &QueueView<'_>) -> Option<f64> {
        self.growth_at(queue.place, queue.serial)
    }

    fn growth_at(&self, place: usize, serial: u64) -> Option<f64> {
        let history = self.queues.get(place).filter(|history| history.serial == serial)?;
        let (_, last) = self.kept?;
        let first = history.first.max((last + 1).saturating_sub(QUEUE_KEPT));
        let depth = |slot: Slot| history.at(slot, first).depth();
        let middle = first + (last - first) / 2;
        let highest = (first..=middle).map(depth).max()?;
        let lowest = (middle + 1..=last).map(depth).min()?;
        let more = depth(last).saturating_sub(depth(first));
        let grows = last - first + 1 >= GROWTH_SAMPLES_MIN && lowest > highest && more >= GROWTH_MIN;
        grows.then(|| more as f64 / Duration::from_millis(SAMPLE_MS * (last - first)).as_secs_f64())
    }

    fn write(
        &self,
        json: &mut Json<'_>,
        kept: Option<(Slot, Slot)>,
        value: &dyn Fn(Slot) -> u64,
        range: Range,
    ) {
        self.write_series(json, kept, 0, value, range);
    }

    fn write_series(
        &self,
        json: &mut Json<'_>,
        kept: Option<(Slot, Slot)>,
        dense: Slot,
        value: &dyn Fn(Slot) -> u64,
        range: Range,
    ) {
        match kept {
            Some((first, last)) => {
                Series { first, last, dense, start_unix_ms: self.start_unix_ms, value }.write(json, range);
            }
            None => json.raw(b"{}"),
        }
    }
}

/// Returns the oldest slot of which a queue can have a sample.
const fn oldest_of_queue(last: Slot) -> Slot {
    (last / OLD_SLOTS + 1).saturating_sub(QUEUE_OLD_KEPT) * OLD_SLOTS
}

/// The values of a queue that are sampled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QueueColumn {
    /// Messages that entered the queue.
    Arrived,
    /// Messages delivered.
    Delivered,
    /// Messages ready.
    Ready,
    /// Messages delivered and not settled.
    Unacknowledged,
    /// Messages ready, and messages delivered and not settled.
    All,
}

/// Returns a counter's value at an earlier time, from its value now and its earlier value modulo 2³².
const fn earlier_value(now: u64, then: u32) -> u64 {
    now.wrapping_sub((now as u32).wrapping_sub(then) as u64)
}

/// Returns the slots after `last` up to and including `slot`, at most as many as are kept. For the first sample it is
/// `slot` alone.
fn new_slots(last: Slot, slot: Slot, kept: u64) -> core::ops::RangeInclusive<Slot> {
    (last + 1).min(slot).max((slot + 1).saturating_sub(kept))..=slot
}

impl QueueSample {
    fn depth(self) -> u64 {
        u64::from(self.ready) + u64::from(self.unacknowledged)
    }
}

impl QueueHistory {
    /// Returns the sample of a slot. Before the slot `dense`, it is that of the last multiple of [`OLD_SLOTS`].
    fn at(&self, slot: Slot, dense: Slot) -> QueueSample {
        match slot >= dense {
            true => self.samples[(slot % QUEUE_KEPT) as usize],
            false => self.old[(slot / OLD_SLOTS % QUEUE_OLD_KEPT) as usize],
        }
    }

    fn take(&mut self, slots: NewSlots, queue: &QueueView<'_>) {
        let NewSlots { last, slot } = slots;
        if self.serial != queue.serial || self.first == 0 {
            (self.serial, self.first) = (queue.serial, slot);
        }
        let sample = QueueSample {
            arrived: queue.arrived as u32,
            delivered: queue.taken as u32,
            ready: queue.messages_ready,
            unacknowledged: queue.messages_unacknowledged,
        };
        for slot in new_slots(last, slot, QUEUE_KEPT) {
            self.samples[(slot % QUEUE_KEPT) as usize] = sample;
        }
        // For the first sample, `last` is the slot itself.
        let old = last.min(slot.saturating_sub(1)) / OLD_SLOTS + 1..=slot / OLD_SLOTS;
        for index in old.rev().take(QUEUE_OLD_KEPT as usize) {
            self.old[(index % QUEUE_OLD_KEPT) as usize] = sample;
        }
    }
}

impl Series<'_> {
    /// Returns the increase from one slot to another, per second.
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
            let oldest_wanted = (self.last - age).max(1);
            // The samples of the last minute and the older ones of a queue fit together.
            let step_min = if oldest_wanted < self.dense { 1 } else { age.div_ceil(WRITTEN_MAX - 1).max(1) };
            let step = slots(step_s).max(step_min);
            let (newest_old, old_step) =
                (self.dense.saturating_sub(1) / OLD_SLOTS * OLD_SLOTS, step.next_multiple_of(OLD_SLOTS));
            json.raw(b",\"samples\":[");
            let (mut is_first, mut sum, mut written, mut oldest) = (true, 0.0, 0, self.last);
            let back_from = |newest: Slot, step| {
                (0..).map_while(move |steps: u64| newest.checked_sub(steps.checked_mul(step)?))
            };
            let recent = back_from(self.last, step).take_while(|slot| *slot >= oldest_wanted.max(self.dense));
            let old = back_from(newest_old, old_step).take_while(|slot| *slot >= oldest_wanted);
            for slot in recent.chain(old) {
                let (value, at_ms) = ((self.value)(slot), self.start_unix_ms + (slot - 1) * SAMPLE_MS);
                (sum, written, oldest) = (sum + value as f64, written + 1, slot);
                json.comma(&mut is_first);
                json.shown_raw(format_args!("{{\"sample\":{value},\"timestamp\":{at_ms}}}"));
            }
            let (rate, mean) = (self.rate(oldest, self.last), sum / f64::from(written));
            json.shown_raw(format_args!("],\"avg_rate\":{rate:?},\"avg\":{mean:?}"));
        }
        json.raw(b"}");
    }
}

fn totals(broker: &Broker, ready: u64, unacknowledged: u64, outside: LoopCounters) -> Totals {
    let (counters, channels) = (broker.counters(), broker.gauges().channels as u64);
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
        outside.resident_bytes,
        outside.log_bytes,
        // Messages that wait for their commit are not in the log yet.
        broker.views().live_log_bytes().min(outside.log_bytes),
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
    fn a_rate_covers_the_last_step_and_a_history_ends_at_its_start() {
        let value = |slot: Slot| 10 * slot;
        let one = Series { first: 7, last: 7, dense: 0, start_unix_ms: 0, value: &value };
        assert_eq!(written(&one, None), r#"{"rate":0.0}"#, "nothing is known yet");
        let some = Series { first: 4, last: 7, dense: 0, start_unix_ms: 1_000, value: &value };
        assert_eq!(written(&some, None), r#"{"rate":2.0}"#);
        let wanted = concat!(
            r#"{"rate":2.0,"samples":[{"sample":70,"timestamp":31000},{"sample":50,"timestamp":21000}],"#,
            r#""avg_rate":2.0,"avg":60.0}"#
        );
        assert_eq!(written(&some, Some((600, 10))), wanted);
        let falling = |slot: Slot| 100 - 3 * slot;
        let falls = Series { first: 1, last: 8, dense: 0, start_unix_ms: 0, value: &falling };
        assert_eq!(written(&falls, None), r#"{"rate":-0.6}"#);
        // Excessive steps are limited to the longest possible one.
        assert!(written(&falls, Some((u64::MAX, u64::MAX))).contains("\"avg\":76.0"));
        assert_eq!(written(&falls, Some((u64::MAX, 1))).matches("sample\"").count(), 8);
        let long = Series { first: 1, last: TOTALS_KEPT, dense: 0, start_unix_ms: 0, value: &value };
        let shown = written(&long, Some((600, 5)));
        assert_eq!(shown.matches("sample\"").count(), 31, "as many as have room, further apart");
        assert!(shown.contains(r#"{"sample":10,"timestamp":0}"#), "and back to the beginning");
    }

    #[test]
    fn an_old_history_has_the_samples_of_the_last_minute_and_one_in_30_s_before_it() {
        let value = |slot: Slot| slot;
        let queue = Series { first: 10, last: 130, dense: 118, start_unix_ms: 0, value: &value };
        let slots = |range: Range| -> Vec<u64> {
            let text = written(&queue, range);
            let samples = text.split("\"sample\":").skip(1);
            samples.map(|rest| rest.split(',').next().unwrap().parse().unwrap()).collect()
        };
        assert_eq!(slots(Some((60, 5))), (118..=130).rev().collect::<Vec<_>>());
        let old = || (2..=19).rev().map(|at| at * 6);
        assert_eq!(slots(Some((600, 5))), (118..=130).rev().chain(old()).collect::<Vec<_>>());
        assert_eq!(slots(Some((600, 30))), [130, 124, 118].into_iter().chain(old()).collect::<Vec<_>>());
        assert_eq!(slots(Some((600, 240))), [130, 114, 66, 18]);
    }

    /// Returns a history with this depth at each slot from 1 on.
    fn history_of(depths: &[u32]) -> QueueHistory {
        let mut history = QueueHistory { serial: 1, first: 1, ..NO_HISTORY };
        for (slot, ready) in (1..).zip(depths) {
            history.samples[slot % QUEUE_KEPT as usize].ready = *ready;
        }
        history
    }

    #[test]
    fn a_queue_grows_if_its_depth_stays_above_what_it_was() {
        let growth = |depths: &[u32]| {
            let mut samples =
                Samples::new(SampledPlaces { queues: 1, exchanges: 0, channels: 0, connections: 0 });
            samples.queues.push(history_of(depths));
            samples.kept = Some((1, depths.len() as u64));
            samples.growth_at(0, 1)
        };
        assert_eq!(growth(&[0, 10, 20, 30, 40]), Some(2.0));
        assert_eq!(growth(&[0, 10, 20]), None, "too few samples");
        assert_eq!(growth(&[0, 40, 0, 40, 0, 40]), None, "up and down");
        assert_eq!(growth(&[0, 1, 2, 3]), None, "too little");
        assert_eq!(growth(&[40, 30, 20, 10]), None);
        assert_eq!(growth(&[0; 13]), None);
        assert_eq!(growth(&[9, 9, 9, 9, 9, 9, 9, 0, 10, 20, 30, 40, 50, 60, 70, 80]), Some(71.0 / 60.0));
    }

    #[test]
    fn a_history_has_the_samples_that_are_newer() {
        let mut samples =
            Samples::new(SampledPlaces { queues: 0, exchanges: 0, channels: 0, connections: 0 });
        let written = |samples: &Samples, since: u64| {
            let mut out = Vec::new();
            samples.write_history(&mut Json::new(&mut out, 1 << 16), since);
            String::from_utf8(out).unwrap()
        };
        assert!(written(&samples, 0).starts_with(r#"{"step_ms":5000,"last":0,"ready":[],"#));
        for slot in 3..=6 {
            samples.totals[slot as usize][Total::MessagesReady as usize] = 100 - slot;
        }
        samples.kept = Some((3, 6));
        assert!(
            written(&samples, 0).contains(r#""last":6,"ready":[97,-1,-1,-1],"unacknowledged":[0,0,0,0],"#)
        );
        assert!(written(&samples, 4).contains(r#""ready":[95,-1],"#));
        assert!(written(&samples, 6).contains(r#""ready":[],"#), "nothing is new");
        assert!(written(&samples, 7).contains(r#""ready":[97,-1,-1,-1],"#), "the broker was restarted");
        for slot in 1..=TOTALS_KEPT {
            samples.totals[(slot % TOTALS_KEPT) as usize] = [u64::MAX / 2 * (slot % 2); TOTALS];
        }
        samples.kept = Some((1, TOTALS_KEPT));
        assert!(written(&samples, 0).len() < 30_000, "the answer has space for it");
    }

    #[test]
    fn intervals_without_a_turn_get_the_next_sample() {
        assert_eq!(new_slots(0, 0, 13), 0..=0);
        assert_eq!(new_slots(3, 4, 13), 4..=4);
        assert_eq!(new_slots(3, 9, 13), 4..=9);
        assert_eq!(new_slots(3, 99, 13), 87..=99);
    }
}
