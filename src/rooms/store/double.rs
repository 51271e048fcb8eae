//! Definitions lie twice, in different erase blocks: what exists must not hang on one block of a card.
//!
//! ```text
//! declared           | N: definition |                      one block of the segment that fills
//! as soon as may be  | N: definition, copy |                two blocks of it
//! N is sealed        | N: copy | N + 1: copy |              two segments; the oldest counts no more
//! ```
//!
//! A checkpoint of everything at each segment would cost what all definitions take, for ever. This costs two
//! copies of what is defined, once, and one more when the cleaner has brought both into one segment: nothing
//! beside the messages that it is for. Deletions are copied as well, as long as they kill something that lies
//! elsewhere; that of a queue, as long as messages of it do.
//!
//! Always true: one definition is read at a time, by the helper; nobody waits for a copy, and it rides along
//! with what is written within the settle window; copies get the room that publishers get and leave the
//! reserve alone, but they come before the next segment is cleaned, which may bring both copies into one: so
//! a limit that is nearly full for years has them in two as well; nothing is copied while the cleaner copies,
//! which has the buffer; a copy is made of what is durable, so it lies in another commit than that.

use crate::journal::Urgency;
use crate::journal::definition::is_access;

use super::jobs::ReadJob;
use super::log::Log;
use super::record::{RECORD_OVERHEAD_BYTES_MAX, Record};
use super::zeroes::ResizeZeroed;

impl Log {
    /// The next definition to read because it lies at one place only.
    pub(super) fn next_double(&mut self) -> Option<ReadJob> {
        // A full file system may not have the room that the limit promises.
        let is_scarce = self.is_short() && self.is_file_system_full();
        if self.cleaning.is_some() || self.drain.is_some() || is_scarce {
            return None;
        }
        if !self.doubling.is_going {
            // Copies that are on their way are not known to be there yet.
            if !self.doubling.is_due || self.doubling.copied > self.durable {
                return None;
            }
            (self.doubling.is_due, self.doubling.is_going) = (false, true);
            self.doubling.key.clear();
        }
        loop {
            let Some((key, definition)) = self.index.next_thin(&self.doubling.key, self.active.sequence())
            else {
                self.doubling.is_going = false;
                self.double_deletions();
                return None;
            };
            let (version, place, is_deleted) = (definition.version, definition.place, definition.deleted);
            let slot = self.index.segments().get(&place.segment)?.slot;
            let key = key.to_vec();
            if self.admit(place.bytes as usize).is_err() {
                return None;
            }
            self.doubling.key.clone_from(&key);
            if is_deleted {
                self.copy_double(&Record::Defined { version, key: &key, value: None });
                continue;
            }
            self.doubling.reading = Some((version, place));
            let mut buffer = core::mem::take(&mut self.read_spare);
            buffer.resize_zeroed(place.bytes as usize);
            return Some(ReadJob { slot, at: place.at, buffer, longer: None });
        }
    }

    /// Copies that queues are deleted, where messages of theirs lie elsewhere: those would come back with
    /// their names when the one segment that knows better is lost.
    fn double_deletions(&mut self) {
        let mut last = 0;
        while let Some(queue) = self.index.next_gone_once(last, self.active.sequence()) {
            if self.admit(RECORD_OVERHEAD_BYTES_MAX).is_err() {
                self.doubling.is_due = true;
                return;
            }
            self.copy_double(&Record::Gone { queue });
            last = queue;
        }
    }

    /// Whether what was read is a definition, and copies it then. What cannot be read stays where it is.
    pub(super) fn double_done(&mut self, known: usize) -> bool {
        let Some((version, place)) = self.doubling.reading.take() else { return false };
        let (bytes, key) = (core::mem::take(&mut self.read_spare), core::mem::take(&mut self.doubling.key));
        let is_there = self.index.definitions().get(&*key).is_some_and(|definition| {
            !definition.deleted && definition.version == version && definition.place == place
        });
        if let Some(Ok((record, _))) = bytes.get(..known).map(Record::parse)
            && let Record::Defined { version: found, key: of, value: Some(_) } = record
            && (found, of, is_there) == (version, &*key, true)
        {
            if self.admit(place.bytes as usize).is_ok() && !self.gathers_copy_of(&record) {
                self.copy_double(&record);
            } else {
                self.doubling.is_due = true;
            }
        }
        (self.read_spare, self.doubling.key) = (bytes, key);
        true
    }

    fn copy_double(&mut self, record: &Record<'_>) {
        self.counters.bytes_doubled += self.gathering.add(record) as u64;
        if let Record::Defined { key, .. } = record
            && is_access(key)
        {
            self.gathering.note_access();
        }
        self.doubling.copied = self.note_appended(Urgency::Lazy, self.schedule.asked_at());
        // What is written a second time is no news: the cleaner and this would keep each other busy for ever.
        self.reckoning.note_no_news();
    }
}

#[cfg(test)]
mod tests {
    use crate::store::index::Index;

    use super::*;
    use crate::store::place::Place;

    /// The segment stayed in the log for good once, for the sake of the place that had just been copied.
    #[test]
    fn the_only_place_of_a_definition_counts_no_more_when_the_cleaner_has_copied_it() {
        let mut index = Index::default();
        (1..=2).for_each(|sequence| index.add_segment(sequence, sequence as u32, 64 << 10));
        let record = Record::Defined { version: 1, key: b"key", value: Some(b"value") };
        index.apply(&record, Place { segment: 1, at: 4096, bytes: 20 });
        index.set_cleaned(1);
        index.apply(&record, Place { segment: 2, at: 8192, bytes: 20 });
        let live: Vec<u64> = index.segments().values().map(|segment| segment.live).collect();
        assert_eq!(live, [0, 1]);
    }
}
