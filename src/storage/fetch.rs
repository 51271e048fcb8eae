//! Reading back: a queue's messages, or a chunk of a large body, as jobs for the read helper; and holding the files still
//! for whoever copies them.
//!
//! ```text
//! fetch, fetch_chunk → FetchJob ~ helper ~ FetchDone → fetch_done, chunk_done → the caller's own memory
//! ```
//!
//! The loop decides by what it has in memory which offsets are live and in which segment they lie; the
//! helper finds and reads them (`read_back`). There is one buffer, so one fetch at a time.
//!
//! Always true: only durable records are read; the file that a fetch reads is not used again before it is
//! done; a fetch covers a known range of offsets, and what it did not find in there is lost.

use std::io;

use super::log::Log;
use super::parts::BodyPart;
use super::pins::PinnedFile;
use super::read_back::{FETCH_BYTES, FetchDone, FetchJob, FetchedMessage, Scratch, Source};
use super::record::{Message, Range, Record};
use super::segment_index::Segment;
use super::slots::Slot;

/// What a fetch came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fetched {
    /// The end of the offsets that were covered. Those below that were live and not called are lost.
    pub through: u64,
    /// What could not be read lies elsewhere by now: ask again, from `through` on.
    pub retry: bool,
    /// The disk's last complaint.
    pub error: Option<io::ErrorKind>,
}

impl Log {
    /// A job that reads live messages of a queue, from `offsets.start` on and within `offsets`, as many as
    /// fit into `bytes_max` and [`FETCH_BYTES`] and lie in one segment; at least one if there is any, however
    /// long. `None` while another fetch is on its way, and while the segment's footer is being written: ask
    /// again when a fetch or a commit is done.
    pub fn fetch(&mut self, queue: u64, offsets: Range, bytes_max: u32) -> Option<FetchJob> {
        let mut scratch = self.reading.spare.take()?;
        let known = self.index.queues().get(&queue);
        let Some(plan) = known.and_then(|known| known.plan(offsets, &mut scratch.wanted)) else {
            return self.job(Source::Nothing, 0, scratch).map(|job| FetchJob { through: offsets.end, ..job });
        };
        let is_sealing = self.in_flight.as_ref().is_some_and(|in_flight| in_flight.seals == plan.segment);
        // When that takes long, the segment is read commit by commit.
        if is_sealing && !self.is_postponed() {
            self.reading.spare = Some(scratch);
            return None;
        }
        // What is noted may be beyond what could be written before the disk failed.
        let source = if plan.segment == self.space.active.sequence() && !self.failed {
            // What is copied forward by the commit on its way is not in its new place yet.
            let noted = match self.in_flight {
                Some(_) => self.space.active.footer().messages_before_last(),
                None => self.space.active.footer().messages(),
            };
            scratch.note(noted);
            Source::Noted
        } else {
            match self.index.span_of(plan.segment, queue) {
                BodyPart { bytes: 0, .. } => Source::Scan,
                span => Source::Span(span),
            }
        };
        let job = self.job(source, plan.segment, scratch)?;
        let bytes_max = (bytes_max as usize).min(FETCH_BYTES);
        Some(FetchJob { queue, bytes_max, through: plan.through, hint: plan.hint, ..job })
    }

    /// A job that reads one chunk of a large body. `None` while another fetch is on its way.
    pub fn fetch_chunk(&mut self, body: u64, index: u32) -> Option<FetchJob> {
        let scratch = self.reading.spare.take()?;
        match self.index.place_of_chunk(body, index) {
            Some(place) => self.job(Source::Chunk(place, body, index), place.segment, scratch),
            None => self.job(Source::Nothing, 0, scratch),
        }
    }

    fn job(&mut self, source: Source, segment: u64, scratch: Scratch) -> Option<FetchJob> {
        let found = self.index.segments().get(&segment);
        let source = if found.is_some() { source } else { Source::Nothing };
        let (slot, segment_bytes) = found.map_or((u32::MAX, 0), |found| (found.slot, found.bytes));
        self.reading.pins.set_read(found.map(|found| found.slot));
        Some(FetchJob {
            source,
            queue: 0,
            segment,
            slot,
            segment_bytes,
            seed: self.writer.identity.seed(),
            bytes_max: 0,
            through: 0,
            hint: Range { start: 0, end: 0 },
            scratch,
        })
    }

    /// Takes what a [`Log::fetch`] brought and calls `each` with every message that is whole, by rising
    /// offset. Messages that were settled meanwhile may be among them.
    pub fn fetch_done(&mut self, done: FetchDone, mut each: impl FnMut(u64, &Message<'_>)) -> Fetched {
        let FetchDone { job, error } = done;
        self.has_refused_reads |= error.is_some();
        let moved = self.first_moved(&job);
        let through = moved.unwrap_or(job.through);
        for found in job.scratch.found.iter().take_while(|found| found.offset < through) {
            if let Ok((Record::Message(message), _)) = Record::parse_known(job.scratch.bytes_of(found)) {
                each(found.offset, &message);
            }
        }
        self.unpin(job);
        Fetched { through, retry: moved.is_some(), error }
    }

    /// Takes what a [`Log::fetch_chunk`] brought; `each` gets the chunk, or `None` when it is lost.
    pub fn chunk_done(&mut self, done: FetchDone, each: impl FnOnce(Option<&[u8]>)) -> Fetched {
        let FetchDone { job, error } = done;
        self.has_refused_reads |= error.is_some();
        let found = job.scratch.found.first().map(|found| job.scratch.bytes_of(found));
        let mut retry = false;
        match found.and_then(|bytes| Record::parse_known(bytes).ok()) {
            Some((Record::Chunk { bytes, .. }, _)) => each(Some(bytes)),
            _ => {
                if let Source::Chunk(place, body, index) = job.source {
                    retry = self.index.place_of_chunk(body, index).is_some_and(|now| now != place);
                }
                each(None);
            }
        }
        self.unpin(job);
        Fetched { through: 0, retry, error }
    }

    /// The first wanted offset that was not found where it was and is elsewhere now.
    fn first_moved(&self, job: &FetchJob) -> Option<u64> {
        let queue = self.index.queues().get(&job.queue)?;
        let mut found = job.scratch.found.iter().map(|found| found.offset).peekable();
        for range in &job.scratch.wanted {
            for offset in range.start..range.end.min(job.through) {
                if found.next_if_eq(&offset).is_some() {
                    continue;
                }
                if queue.segment_of(offset).is_some_and(|segment| segment != job.segment) {
                    return Some(offset);
                }
            }
        }
        None
    }

    fn unpin(&mut self, job: FetchJob) {
        self.reading.pins.set_read(None);
        if self.space.slots.get(job.slot) == Slot::Pinned && !self.reading.pins.has(job.slot) {
            self.space.slots.release(job.slot);
        }
        self.reading.spare = Some(job.scratch.reset());
    }

    /// What a copy is made of: everything durable at this moment. `None` while a commit is on its way; ask
    /// again when it is done. Ends a hold before it.
    pub fn pin_for_backup(&mut self) -> Option<Vec<PinnedFile>> {
        if self.in_flight.is_some() || self.failed || self.schedule.is_starting() {
            return None;
        }
        self.release_backup_pin();
        let of = |(sequence, segment): (&u64, &Segment)| PinnedFile {
            slot: segment.slot,
            length: self.settings.segment_bytes,
            bytes: if *sequence == self.space.active.sequence() {
                self.space.active.tail()
            } else {
                self.settings.segment_bytes
            },
        };
        let held: Vec<PinnedFile> = self.index.segments().iter().map(of).collect();
        self.reading.pins.set_copied(held.iter().map(|held| held.slot));
        Some(held)
    }

    /// Whether what was held is still as it was.
    pub const fn is_pinned_for_backup(&self) -> bool {
        self.reading.pins.is_copying()
    }

    /// The files may be used again.
    pub fn release_backup_pin(&mut self) {
        for slot in self.reading.pins.take_copied() {
            if self.space.slots.get(slot) == Slot::Pinned && !self.reading.pins.has(slot) {
                self.space.slots.release(slot);
            }
        }
    }

    /// Gives a hold up when it takes room that somebody needs.
    pub(super) fn yield_backup_pin(&mut self) {
        if self.is_pinned_for_backup() && self.space.is_short() {
            log::warn!("the disk is nearly full: a backup under way is given up to make room");
            self.release_backup_pin();
        }
    }
}

impl Scratch {
    fn note(&mut self, noted: &[u8]) {
        self.noted.clear();
        self.noted.extend_from_slice(noted);
    }

    pub(super) fn bytes_of(&self, found: &FetchedMessage) -> &[u8] {
        &self.bytes[found.at as usize..][..found.bytes as usize]
    }
}
