//! How often messages of quorum queues were requeued, so that a restart does not forget it: a message that
//! brings its consumer down each time reaches its delivery limit, however often the power fails in between.
//!
//! ```text
//! a queue's definition: | arguments | 15 "leveret-returns" x | length u32 | length ÷ 10 × (offset u64, count u16) |
//! ```
//!
//! The counts are one more argument, the last, which means nothing to programs that do not know it. Big
//! endian.
//!
//! Always true: the messages requeued last are known, the very last one at the end; one write of a queue at
//! most is under way, and changes meanwhile go with the next, so that a consumer who requeues thousands of
//! messages in a second costs the disk one write for each commit; the count of a message that a power cut
//! took is never given to another at its offset.

use crate::command::QueueId;
use crate::journal::Batch;
use crate::wire::field::{Table, Value};

/// Messages of a queue whose counts are kept.
const KEPT_MAX: usize = 32;
/// Bytes that one message takes in the argument.
const ENTRY_BYTES: usize = 8 + 2;
/// Name and type of the argument.
const ARGUMENT: &[u8] = b"\x0fleveret-returnsx";
const NAME: &str = "leveret-returns";

/// The requeue counts of one queue; most queues have none.
#[derive(Debug, Default)]
pub(crate) struct RequeueCounts {
    /// Log offsets, and how often the message of each was requeued; in the order in which they were requeued
    /// last.
    counts: Vec<(u64, u16)>,
    /// The counts changed and wait to be written.
    is_due: bool,
}

/// Queues whose requeue counts are to be written.
#[derive(Debug, Default)]
pub(crate) struct RequeueCountsDue {
    queues: Vec<QueueId>,
    /// The batch with which the last write is durable.
    written: Batch,
}

impl RequeueCountsDue {
    /// Whether counts are to be written, and the last write is durable.
    #[inline]
    pub(crate) fn may_be_written(&self, durable: Batch) -> bool {
        !self.queues.is_empty() && self.written <= durable
    }

    /// Adds a queue whose counts are to be written.
    pub(crate) fn push(&mut self, queue: QueueId) {
        self.queues.push(queue);
    }

    /// Takes the queues whose counts are to be written.
    pub(crate) fn take(&mut self) -> Vec<QueueId> {
        core::mem::take(&mut self.queues)
    }

    /// Notes the batch of a write.
    pub(crate) fn note_written(&mut self, batch: Batch) {
        self.written = batch;
    }
}

impl RequeueCounts {
    /// The requeue counts in the arguments of a queue's definition, and the arguments without them.
    pub(crate) fn split(arguments: &[u8]) -> (&[u8], Self) {
        let Some(said) = last_list(arguments) else { return (arguments, Self::default()) };
        let rest = arguments.len() - ARGUMENT.len() - 4 - said.len();
        let (entries, _) = said.as_chunks::<ENTRY_BYTES>();
        let entry = |bytes: &[u8; ENTRY_BYTES]| {
            let [offset @ .., high, low] = *bytes;
            (u64::from_be_bytes(offset), u16::from_be_bytes([high, low]))
        };
        let counts = entries.iter().take(KEPT_MAX).map(entry).collect();
        (&arguments[..rest], Self { counts, is_due: false })
    }

    /// The arguments of a queue's definition, with the requeue counts.
    pub(crate) fn join(&self, arguments: &[u8]) -> Vec<u8> {
        let mut joined = arguments.to_vec();
        // A client may have declared such an argument, which must not be taken for the counts.
        if !self.counts.is_empty() || last_list(arguments).is_some() {
            joined.extend_from_slice(ARGUMENT);
            joined.extend_from_slice(&((self.counts.len() * ENTRY_BYTES) as u32).to_be_bytes());
            for (offset, count) in &self.counts {
                joined.extend_from_slice(&offset.to_be_bytes());
                joined.extend_from_slice(&count.to_be_bytes());
            }
        }
        joined
    }

    /// At a start: forgets the counts of offsets from this one on, which belong to messages that a power cut
    /// took and go to new messages. Says whether that is to be written.
    pub(crate) fn forget_from(&mut self, next_offset: u64) -> bool {
        let known = self.counts.len();
        self.counts.retain(|(offset, _)| *offset < next_offset);
        self.is_due |= self.counts.len() < known;
        self.is_due
    }

    /// How often the message at this log offset was requeued, as far as that is known.
    #[inline]
    pub(crate) fn count_of(&self, offset: u64) -> u16 {
        self.counts.iter().find(|(known, _)| *known == offset).map_or(0, |(_, count)| *count)
    }

    /// Notes how often the message at this log offset was requeued; says whether the queue is to be put on
    /// the list of those to be written.
    pub(crate) fn note(&mut self, offset: u64, count: u16) -> bool {
        let known = self.counts.iter().position(|(known, _)| *known == offset);
        if let Some(at) = known.or((self.counts.len() == KEPT_MAX).then_some(0)) {
            self.counts.remove(at);
        }
        self.counts.push((offset, count));
        !core::mem::replace(&mut self.is_due, true)
    }

    /// Whether the counts wait to be written; takes the mark off.
    pub(crate) fn take_due(&mut self) -> bool {
        core::mem::take(&mut self.is_due)
    }
}

/// The list of counts, if it is the last argument.
fn last_list(arguments: &[u8]) -> Option<&[u8]> {
    match Table::trusted(arguments).iter().last()? {
        (name, Value::Binary(said)) if name == NAME.as_bytes() => Some(said),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Writer;

    fn arguments() -> Vec<u8> {
        let mut bytes = [0; 100];
        let mut writer = Writer::new(&mut bytes);
        writer.table(|table| table.text("x-queue-type", "quorum")).expect("it fits");
        writer.written()[4..].to_vec()
    }

    #[test]
    fn what_is_joined_is_split_again() {
        let own = arguments();
        let mut requeues = RequeueCounts::default();
        assert_eq!(requeues.join(&own), own, "nothing is known, and nothing is said");
        for offset in 0..40 {
            requeues.note(offset, 1);
        }
        requeues.note(9, u16::MAX);
        requeues.note(8, 7);
        let joined = requeues.join(&own);
        let (rest, read) = RequeueCounts::split(&joined);
        assert_eq!((rest, &read.counts), (&own[..], &requeues.counts));
        assert_eq!(read.counts.len(), KEPT_MAX);
        let known = [7, 8, 9, 10, 39, 40].map(|offset| read.count_of(offset));
        assert_eq!(known, [0, 7, u16::MAX, 1, 1, 0], "of the last ones");
        assert_eq!(read.join(rest), joined);
    }

    #[test]
    fn an_argument_of_that_name_that_a_client_made_up_stays_the_clients() {
        let mut bytes = [0; 200];
        let mut writer = Writer::new(&mut bytes);
        let written = writer.table(|table| table.value(NAME.as_bytes(), Value::Binary(&[0; 25])));
        assert!(written.is_ok());
        let own = writer.written()[4..].to_vec();
        let mut requeues = RequeueCounts::default();
        for count in 0..2 {
            let joined = requeues.join(&own);
            let (rest, read) = RequeueCounts::split(&joined);
            assert_eq!((rest, read.count_of(3)), (&own[..], count));
            requeues.note(3, 1);
        }
    }
}
