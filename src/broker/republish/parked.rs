//! Parks messages that the broker at the other end of a bridge refuses: publishes a copy to a queue for
//! refused messages.
//!
//! A parked message is treated like a rejected message with a dead letter. But the copy goes to the queue
//! that the bridge's configuration names, and has headers about the cause instead of `x-death`.
//!
//! ```text
//! Broker::park_delivery ──→ rejected, with Reason::Parked
//! rejected message ── when it is in memory and there is capacity ──→ copy ──→ queue of parked messages
//! ```
//!
//! | header | meaning |
//! |--------|---------|
//! | `x-parked-cause` | the reason, as text |
//! | `x-parked-bridge` | the bridge that parked the message |
//! | `x-parked-queue` | the local queue that the message came from, if it came from one |
//! | `x-parked-time` | the time by the board's clock, which may be wrong |
//! | `x-parked-count` | how often the message has been parked; kept when the other headers are removed |
//!
//! # Invariants
//! - A parked message keeps its exchange, routing key and body, and does not expire.
//! - A parked message is either in its old queue, which no longer delivers it, or in the bridge's queue for
//!   parked messages.

use leveret_amqp::field::Table;
use leveret_amqp::props::{Edit, HeadersEdit, Properties, PropertyEdit};
use leveret_amqp::{Full, Writer};
use leveret_core::command::QueueId;
use leveret_core::mem::{MessageId, MessageNames, Share};
use leveret_queues::{LevelChoice, PlannedCopy, Reason, copy_flags};

use super::Republisher;
use super::dead_letter::{MORE_THAN_FRAME, Parking, Republication};
use crate::Context;

const CAUSE: &str = "x-parked-cause";
const BRIDGE: &str = "x-parked-bridge";
const QUEUE: &str = "x-parked-queue";
const TIME: &str = "x-parked-time";
const COUNT: &str = "x-parked-count";
/// The headers that are written anew each time a message is parked. `write_unparked_properties` relies on the
/// count being the last.
const OWN: [&str; 5] = [CAUSE, BRIDGE, QUEUE, TIME, COUNT];

/// As with a dead letter, the expiration is removed: a parked message stays until an operator handles it.
const PARKED: PropertyEdit<'static> = PropertyEdit {
    headers: HeadersEdit::Keep,
    reply_to: Edit::Keep,
    expiration: Edit::Remove,
    user_id: Edit::Keep,
};

/// Maximum number of different parking causes, of all bridges together.
const PARKINGS_MAX: usize = 256;

impl Republisher<'_> {
    /// Returns the index of this cause in the list of causes, to which it is added if needed; `None` when
    /// messages with [`PARKINGS_MAX`] other causes wait to be parked.
    pub(crate) fn parking_index(&mut self, parking: Parking) -> Option<u8> {
        let known = self.republish.parkings.iter().position(|known| *known == parking);
        let is_unused = |place: &usize| {
            !self.queues.deliveries().is_dead_letter_reason_in_use(Reason::Parked(*place as u8))
        };
        let place = match known {
            Some(place) => place,
            None if self.republish.parkings.len() < PARKINGS_MAX => {
                self.republish.parkings.push(parking);
                self.republish.parkings.len() - 1
            }
            None => {
                let place = (0..PARKINGS_MAX).find(is_unused)?;
                self.republish.parkings[place] = parking;
                place
            }
        };
        u8::try_from(place).ok()
    }

    /// Writes the copy of a message that is parked. Returns `None` if there is no capacity for the copy now,
    /// or its queue is missing or full.
    pub(crate) fn write_parked(
        &mut self,
        cx: &mut Context<'_>,
        source: QueueId,
        message: MessageId,
        place: u8,
    ) -> Option<Republication> {
        let Parking { bridge, queue, why } = self.republish.parkings[usize::from(place)].clone();
        let (records, queue_record) = (self.queues.records(), self.queues.records().record_of_queue(source));
        let from = queue_record.name.to_string();
        let target = records.find_queue(queue_record.vhost, &queue);
        let Some(target) = target.filter(|target| !records.refuses(cx.messages, *target, message)) else {
            let why = format!("an upstream refused it, and queue {queue} is missing or full");
            self.log_refused(source, &why);
            return None;
        };
        cx.work.charge(8);
        cx.work.charge_octets(cx.messages.body_len(message) as usize);
        let mut scratch = self.queues.lend_scratch();
        let properties = Properties::trusted(cx.messages.properties(message, &mut scratch.properties));
        let mut writer = self.copy_properties_writer(&mut scratch.rewritten);
        let cause = format!("{why}");
        let parked = ParkedFrom { bridge: &bridge, queue: Some(&from), cause: &cause };
        // If the parking headers do not fit into a frame, the copy gets none, because the message must remain
        // deliverable. `BCC` is removed too: properties of this length are delivered unchanged, and clients must not
        // see that header.
        let plain_edit = PropertyEdit { headers: HeadersEdit::Without("BCC"), ..PARKED };
        let is_shortened =
            write_parked_properties(properties, &parked, self.republish.unix_s, &mut writer).is_err();
        let is_written = !is_shortened || properties.write_with(plain_edit, &mut writer).is_ok();
        assert!(is_written, "properties that arrived in a frame fit into a frame");
        let written = Properties::trusted(writer.written());
        let mut targets = core::mem::take(&mut self.republish.targets);
        targets.clear();
        targets.push(target);
        self.queues.choose_levels_for(cx, self.quota, LevelChoice::of(&written, 0), &mut targets);
        let exchange: heapless::String<255> = cx.messages.exchange(message).try_into().unwrap_or_default();
        let key: heapless::Vec<u8, 255> =
            heapless::Vec::from_slice(cx.messages.routing_key(message)).unwrap_or_default();
        let names_len = exchange.len() + key.len();
        let bytes = names_len + written.as_bytes().len() + cx.messages.body_len(message) as usize;
        let is_taken = self.may_move_to(cx, source, PlannedCopy { message, bytes: bytes as u64 }, &targets);
        self.republish.targets = targets;
        let flags = copy_flags(cx.messages, message, &written);
        let names = MessageNames { exchange: &exchange, routing_key: &key };
        let copy = is_taken
            .then(|| cx.messages.copy_as(message, names, written.as_bytes(), flags, Share::Reserve).ok())
            .flatten();
        self.queues.return_scratch(scratch);
        if is_shortened && copy.is_some() {
            self.note_shortened(&format_args!("queue '{}': {CAUSE}{MORE_THAN_FRAME}", from.escape_debug()));
        }
        copy.map(|copy| Republication::Copy(copy, 1))
    }
}

/// Where a parked message was, and why it is parked.
#[derive(Clone, Copy, Debug)]
pub struct ParkedFrom<'a> {
    /// The bridge that parks it.
    pub bridge: &'a str,
    /// The local queue; `None` for a message that the bridge has fetched.
    pub queue: Option<&'a str>,
    /// Why it is parked.
    pub cause: &'a str,
}

/// Writes the properties of a message that is parked at `unix_s` seconds since 1970.
///
/// # Errors
/// [`Full`] if the properties do not fit.
pub fn write_parked_properties(
    properties: Properties<'_>,
    parked: &ParkedFrom<'_>,
    unix_s: u64,
    writer: &mut Writer<'_>,
) -> Result<(), Full> {
    let headers = properties.headers().unwrap_or(Table::EMPTY);
    let count = headers.get(COUNT).and_then(|value| value.as_integer()).unwrap_or(0);
    let count = count.max(0).saturating_add(1);
    properties.write_with_other_headers(
        PARKED,
        &OWN,
        &mut |table| {
            table.text(CAUSE, parked.cause)?;
            table.text(BRIDGE, parked.bridge)?;
            parked.queue.map_or(Ok(()), |queue| table.text(QUEUE, queue))?;
            table.timestamp(TIME, unix_s)?;
            table.long(COUNT, count)
        },
        writer,
    )
}

/// Returns `None` if no bridge has parked the message; otherwise the local queue from which it came, or
/// `Some(None)` if it came from no local queue.
pub fn parked_from(properties: Properties<'_>) -> Option<Option<&str>> {
    let headers = properties.headers()?;
    headers.get(CAUSE)?;
    Some(headers.get(QUEUE).and_then(|queue| queue.as_str()))
}

/// Writes the properties of a message that is no longer parked: without the parking headers except
/// `x-parked-count`.
///
/// # Errors
/// [`Full`] if the properties do not fit.
pub fn write_unparked_properties(properties: Properties<'_>, writer: &mut Writer<'_>) -> Result<(), Full> {
    properties.write_with_other_headers(PropertyEdit::default(), &OWN[..4], &mut |_| Ok(()), writer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(properties: &[u8], write: impl FnOnce(Properties<'_>, &mut Writer<'_>)) -> Vec<u8> {
        let mut out = [0; 1000];
        let mut writer = Writer::new(&mut out);
        write(Properties::parse(properties).expect("sound"), &mut writer);
        let written = writer.written().to_vec();
        Properties::parse(&written).expect("what is written is sound");
        written
    }

    fn names(properties: &[u8]) -> Vec<String> {
        let headers = Properties::trusted(properties).headers().expect("there are headers");
        headers.iter().map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect()
    }

    #[test]
    fn parking_headers_are_written_and_only_the_count_survives_unparking() {
        let parked = ParkedFrom {
            bridge: "plant",
            queue: Some("telemetry"),
            cause: "larger than the upstream accepts",
        };
        let set_aside = |properties: &[u8]| {
            written(properties, |properties, writer| {
                write_parked_properties(properties, &parked, 77, writer).expect("it fits")
            })
        };
        let once = set_aside(b"\x20\x00\x00\x00\x00\x0b\x01aL\0\0\0\0\0\0\0\x01");
        let expected =
            ["a", "x-parked-cause", "x-parked-bridge", "x-parked-queue", "x-parked-time", "x-parked-count"];
        assert_eq!(names(&once), expected);
        let count = |bytes: &[u8]| {
            let headers = Properties::trusted(bytes).headers().expect("there are headers");
            headers.get(COUNT).and_then(|value| value.as_integer())
        };
        assert_eq!((count(&once), count(&set_aside(&once))), (Some(1), Some(2)));
        assert_eq!(parked_from(Properties::trusted(&once)), Some(Some("telemetry")));
        let back = written(&once, |properties, writer| {
            write_unparked_properties(properties, writer).expect("it fits")
        });
        assert_eq!(names(&back), ["a", "x-parked-count"]);
        assert_eq!(parked_from(Properties::trusted(&back)), None);
        let fetched = written(&[0, 0], |properties, writer| {
            let parked = ParkedFrom { bridge: "plant", queue: None, cause: "refused here" };
            write_parked_properties(properties, &parked, 1, writer).expect("it fits");
        });
        assert_eq!(parked_from(Properties::trusted(&fetched)), Some(None));
        assert_eq!(parked_from(Properties::EMPTY), None);
    }
}
