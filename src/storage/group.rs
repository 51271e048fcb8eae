//! Groups: records that must become durable together, such as a transaction, even if they exceed one commit.
//!
//! ```text
//! small   commit │ message │ settled │ defined │                       one commit, so all or nothing
//! large   commit │ chunk: message, message, … │
//!         commit │ chunk: message, settled, … │ group message, whose body is these chunks │
//!                                              from here on, a start of the broker completes the group
//!         commit │ message │ message │ …                               the same records individually
//!         commit │ settled │ defined │ gone: the group │               the group is complete
//! ```
//!
//! The *parts* of a large group are chunks that contain its records. The *group message* references them, as a message
//! references the chunks of its body. Until the group message is durable, the parts are unreferenced chunks, whose
//! space is reclaimed. The group message belongs to a queue incarnation that is created only for it
//! (`pending_writes::is_group`). Its offset is the number of parts.
//!
//! If the broker stops after the group message and before the end of the group, the next start finds the group. It
//! writes the records in the parts individually; records that exist already do no harm. If the disk has no space for
//! that, the start undoes the group. No client has got a confirmation for it. Undoing needs one free block. While there
//! is none, the records of the group are hidden.
//!
//! Individual messages are written before the individual settlements and definitions. So if a settlement or definition of
//! a group is durable, all its messages are. Such a group is never undone, because a settlement cannot be undone: it is
//! completed by a later start with enough space.
//!
//! # Invariants
//! - The record that ends a large group is written with or after the last individual record, or together with everything
//!   that undoes the group.
//! - A client gets the confirmation for a group only after the group is complete.

use std::collections::BTreeMap;
use std::io;

use crate::pending_writes::{Cursor, Group, PendingWrites, Urgency, is_group};
use leveret_core::mem::{Messages, sort};
use leveret_core::time::Now;

use super::commit_builder::{ResizeZeroed, StepResult};
use super::commit_writer::{CommitWriter, Draft, record_of};
use super::damage::{READ_ATTEMPTS_MAX, is_about_a_block};
use super::disk::Disk;
use super::index::Index;
use super::log::{AppendRefused, Log, LogPosition};
use super::record::{
    Body, CHUNK_BODY_BYTES, Message, RECORD_OVERHEAD_BYTES_MAX, Range, Ranges, Record, Target, Targets,
    encode_message, for_each_record,
};
use super::recovery::Report;
use super::settled::RangeSet;

/// Maximum number of settled ranges in one record of a group.
const RANGES_MAX: usize = 128;

impl CommitWriter {
    /// Appends the records of a group that are not appended yet. Returns `false` if the commit or the disk has no space
    /// for all of them now. Then the caller repeats the call after the commit.
    pub(super) fn write_group(
        &mut self,
        pending_writes: &mut PendingWrites,
        messages: &mut Messages,
        group: &Group,
        now: Now,
    ) -> bool {
        let is_begun = self.groups.large.as_ref().is_some_and(|large| large.first == group.first);
        if !is_begun {
            if !self.write_bodies(pending_writes, messages, group, now) {
                return false;
            }
            let bytes = group.bytes as usize + RECORD_OVERHEAD_BYTES_MAX;
            // Half a commit remains for records before the group, so that they cannot delay it forever.
            if bytes <= self.log.space.record_bytes_max() / 2 {
                let is_written = !self.log.should_defer(bytes)
                    && self.log.admit(bytes).is_ok()
                    && self.write_members(pending_writes, messages, group, now);
                self.groups.is_waiting = !is_written;
                return is_written;
            }
            self.groups.large = Some(LargeGroup {
                first: group.first,
                incarnation: pending_writes.next_group(),
                body: self.log.take_body_id(),
                parts: 0,
                bytes: 0,
                cursor: Cursor::default(),
                in_parts: Progress::default(),
                is_appended: false,
            });
        }
        self.append_group(pending_writes, messages, group, now)
            && self.write_members(pending_writes, messages, group, now)
    }

    /// Writes the large bodies of the group. They are unreferenced until their messages are written.
    fn write_bodies(
        &mut self,
        pending_writes: &PendingWrites,
        messages: &Messages,
        group: &Group,
        now: Now,
    ) -> bool {
        let mut cursor = Cursor::default();
        while let Some(front) = pending_writes.peek(group, &mut cursor, &mut self.draft.targets) {
            pending_writes.step(&mut cursor);
            let is_large = messages.body_len(front.message) as usize > CHUNK_BODY_BYTES;
            let is_written = self.groups.bodies.last().is_some_and(|(number, _)| *number >= front.number);
            if !is_large || is_written {
                continue;
            }
            match self.write_chunks(messages, front, now) {
                Some(body) => self.groups.bodies.push((front.number, body)),
                None => return false,
            }
            self.keep_body();
        }
        true
    }

    /// Writes messages, settlements and definitions of the group individually.
    fn write_members(
        &mut self,
        pending_writes: &mut PendingWrites,
        messages: &mut Messages,
        group: &Group,
        now: Now,
    ) -> bool {
        self.log.pending.has_group = true;
        while let Some(front) = pending_writes.front(messages, &mut self.draft.targets) {
            if front.number >= group.end {
                break;
            }
            if !self.write_message(messages, pending_writes.time_ms(), front, now) {
                return false;
            }
            pending_writes.move_front_to_commit(messages);
        }
        if !self.write_changes(pending_writes, now) || !self.write_group_end(now) {
            return false;
        }
        pending_writes.group_written();
        self.end_group();
        true
    }

    /// Writes the settlements and definitions of the group individually.
    fn write_changes(&mut self, pending_writes: &PendingWrites, now: Now) -> bool {
        let log = &mut self.log;
        let append = |record: &Record<'_>| log.append_reserved(record, Urgency::Awaited, now).is_ok();
        self.groups.written.write(pending_writes, append)
    }

    /// Appends the end of a large group. Without the end, a start treats the group as not confirmed. Returns `false` if
    /// there is no space.
    fn write_group_end(&mut self, now: Now) -> bool {
        let Some(large) = self.groups.large.as_ref().filter(|large| large.parts > 0) else { return true };
        let gone = Record::Gone { queue: large.incarnation };
        self.log.append_reserved(&gone, Urgency::Awaited, now).is_ok()
    }

    /// Resets the state after a group.
    fn end_group(&mut self) {
        self.groups.written = Progress::default();
        // A body that is left belongs to a message that was settled in the meantime.
        for (_, body) in self.groups.bodies.drain(..) {
            self.log.drop_body(body);
        }
        self.groups.large = None;
    }

    /// Appends the parts of a large group and the group message.
    fn append_group(
        &mut self,
        pending_writes: &PendingWrites,
        messages: &Messages,
        group: &Group,
        now: Now,
    ) -> bool {
        let Self { log, draft, groups, .. } = self;
        let GroupProgress { large: Some(large), bodies, .. } = groups else { return true };
        if large.is_appended {
            return true;
        }
        while large.has_more(pending_writes, group, draft) {
            let (body, index) = (large.body, large.parts);
            let mut members = GroupSources { pending_writes, messages, group, bodies, draft };
            if !log.append_part(body, index, now, |out, room| large.fill(&mut members, out, room)) {
                return false;
            }
            large.parts += 1;
        }
        if large.parts > 0
            && log
                .append(
                    &large.group_message(pending_writes.time_ms(), &large.target()),
                    Urgency::Awaited,
                    now,
                )
                .is_err()
        {
            return false;
        }
        large.is_appended = true;
        true
    }
}

/// The sources of a large group's records.
struct GroupSources<'a> {
    pending_writes: &'a PendingWrites,
    messages: &'a Messages,
    group: &'a Group,
    bodies: &'a [(u64, u64)],
    draft: &'a mut Draft,
}

impl LargeGroup {
    /// Returns whether some record of the group is not in a part yet.
    fn has_more(&mut self, pending_writes: &PendingWrites, group: &Group, draft: &mut Draft) -> bool {
        let has_messages = pending_writes.peek(group, &mut self.cursor, &mut draft.targets).is_some();
        // With this closure, `write` writes nothing and returns `false` if a record is left.
        has_messages || !self.in_parts.write(pending_writes, |_| false)
    }

    /// Appends records to a part with space for `room` bytes, and advances the progress.
    fn fill(&mut self, members: &mut GroupSources<'_>, out: &mut Vec<u8>, room: usize) {
        let from = out.len();
        // A single record may be longer than the usual size of a part.
        let takes = |out: &Vec<u8>, bytes: usize| {
            let all = out.len() - from + bytes;
            all <= room && (out.len() == from || all <= CHUNK_BODY_BYTES)
        };
        if self.fill_messages(members, out, takes) {
            self.in_parts.write(members.pending_writes, |record| {
                let is_taken = takes(out, record.bytes_max());
                if is_taken {
                    record.encode(out);
                }
                is_taken
            });
        }
        self.bytes += (out.len() - from) as u64;
    }

    /// Appends messages to a part. Returns whether all messages are in some part now.
    fn fill_messages(
        &mut self,
        members: &mut GroupSources<'_>,
        out: &mut Vec<u8>,
        takes: impl Fn(&Vec<u8>, usize) -> bool,
    ) -> bool {
        let GroupSources { pending_writes, messages, group, bodies, draft } = members;
        while let Some(front) = pending_writes.peek(group, &mut self.cursor, &mut draft.targets) {
            let body_len = messages.body_len(front.message) as usize;
            let written = body_of(bodies, front.number);
            let (body, inline) = match written {
                Some(body) => (chunked(body, body_len), 0),
                None => (Body::Inline(&[]), body_len),
            };
            let record = draft.record(messages, front.message, pending_writes.time_ms(), body);
            if !takes(out, Record::Message(record).bytes_max() + inline) {
                return false;
            }
            let mut cursor = messages.body_cursor(front.message, 0);
            encode_message(&record, inline, out, |room| messages.read(front.message, &mut cursor, room));
            pending_writes.step(&mut self.cursor);
        }
        true
    }

    /// Returns the record of the group message.
    fn group_message<'a>(&self, time_ms: u64, target: &'a [Target; 1]) -> Record<'a> {
        Record::Message(Message {
            targets: Targets::List(target),
            enqueued_ms: time_ms,
            expiration_ms: None,
            exchange: b"",
            key: b"",
            properties: b"",
            body: Body::Chunked { body: self.body, chunks: self.parts, bytes: self.bytes },
        })
    }

    /// Returns the target of the group message.
    const fn target(&self) -> [Target; 1] {
        [Target { queue: self.incarnation, offset: self.parts as u64 }]
    }
}

impl Progress {
    /// Passes the records of the group's settlements and definitions to `put`, from the first that is not written, until
    /// `put` returns `false`. Returns whether all are written.
    fn write(&mut self, pending_writes: &PendingWrites, mut put: impl FnMut(&Record<'_>) -> bool) -> bool {
        loop {
            let (queue, ranges) = next_ranges(pending_writes, self.settled);
            if ranges.is_empty() {
                break;
            }
            if !put(&Record::Settled { queue, ranges: Ranges::List(&ranges) }) {
                return false;
            }
            self.settled += ranges.len();
        }
        while let Some(entry) = pending_writes.group_entries(self.defined).next() {
            if !put(&record_of(entry)) {
                return false;
            }
            self.defined += 1;
        }
        true
    }
}

/// Returns the next settled ranges of the group that fit into one record, without the first `done`. All of them belong
/// to the returned queue.
fn next_ranges(pending_writes: &PendingWrites, done: usize) -> (u64, heapless::Vec<Range, RANGES_MAX>) {
    let (mut queue, mut ranges) = (0, heapless::Vec::new());
    for settled in pending_writes.group_settles(done) {
        let range = Range { start: settled.start, end: settled.end };
        if (!ranges.is_empty() && settled.queue != queue) || ranges.push(range).is_err() {
            break;
        }
        queue = settled.queue;
    }
    (queue, ranges)
}

/// A large group found at a start: its incarnation, its body, and the number of its parts.
#[derive(Clone, Copy)]
struct UnfinishedGroup {
    incarnation: u64,
    body: u64,
    parts: u32,
}

/// Returns the large groups in the index.
fn waiting(index: &Index) -> impl Iterator<Item = UnfinishedGroup> {
    let groups = index.queues().iter().filter(|(incarnation, queue)| is_group(**incarnation) && !queue.gone);
    groups.filter_map(|(&incarnation, queue)| {
        let (parts, body) = queue.large_in(Range { start: 0, end: u64::MAX }).next()?;
        Some(UnfinishedGroup { incarnation, body, parts: u32::try_from(parts).ok()? })
    })
}

/// Reads the records in a part of a group. Returns `false` if the part is damaged. A failed read is retried, because the
/// failure of a flash card may be temporary.
///
/// # Errors
/// The disk cannot read the part.
fn read_part<D: Disk>(
    index: &Index,
    disk: &mut D,
    group: UnfinishedGroup,
    part: u32,
    bytes: &mut Vec<u8>,
) -> io::Result<bool> {
    bytes.clear();
    let Some(place) = index.place_of_chunk(group.body, part) else { return Ok(false) };
    let Some(segment) = index.segments().get(&place.segment) else { return Ok(false) };
    let mut record = Vec::new();
    record.resize_zeroed(place.bytes as usize);
    let mut read = disk.read(segment.slot, place.at.into(), &mut record);
    for _ in 1..READ_ATTEMPTS_MAX {
        if read.is_ok() {
            break;
        }
        read = disk.read(segment.slot, place.at.into(), &mut record);
    }
    read?;
    match Record::parse(&record) {
        Ok((Record::Chunk { bytes: found, .. }, _)) => bytes.extend_from_slice(found),
        _ => return Ok(false),
    }
    Ok(true)
}

/// Returns the large bodies that messages in groups reference. These messages may not be written individually yet, and
/// their bodies must stay. Returns `None` if a part of a group cannot be read: it may reference any body.
pub(super) fn bodies_named<D: Disk>(index: &Index, disk: &mut D) -> io::Result<Option<Vec<u64>>> {
    let (mut named, mut bytes) = (Vec::new(), Vec::new());
    for group in waiting(index) {
        for part in 0..group.parts {
            if !read_part(index, disk, group, part, &mut bytes)? {
                return Ok(None);
            }
            for_each_record(&bytes, 0, |record, _| {
                if let Record::Message(Message { body: Body::Chunked { body, .. }, .. }) = record {
                    named.push(*body);
                }
            });
        }
    }
    Ok(Some(named))
}

/// A large group found at a start, with its content as far as it can be read.
pub(super) struct FoundGroup {
    group: UnfinishedGroup,
    /// Offsets of the group's messages, by queue.
    messages: BTreeMap<u64, RangeSet>,
    /// Large bodies of the group's messages.
    bodies: Vec<u64>,
    /// Length of all records in bytes.
    bytes: u64,
    /// Whether some record is not written individually yet.
    has_missing: bool,
    /// Whether a settlement or definition of the group is written individually. Then all its messages are as well. The
    /// group must not be undone, because its messages may replace the settled ones, which no longer exist.
    has_settled: bool,
    /// Whether parts of the group are damaged.
    is_damaged: bool,
    /// File and block of a part that the disk refuses to read. A later start completes the group.
    refused: Option<(u32, u32)>,
}

impl FoundGroup {
    /// Reads a group and compares it with the index.
    fn read<D: Disk>(index: &Index, disk: &mut D, group: UnfinishedGroup) -> io::Result<Self> {
        let (messages, bodies) = (BTreeMap::new(), Vec::new());
        let (has_missing, has_settled, is_damaged, refused) = (false, false, false, None);
        let mut found =
            Self { group, messages, bodies, bytes: 0, has_missing, has_settled, is_damaged, refused };
        let mut bytes = Vec::new();
        for part in 0..group.parts {
            match read_part(index, disk, group, part, &mut bytes) {
                Ok(is_good) => found.is_damaged |= !is_good,
                Err(error) if is_about_a_block(&error) => {
                    found.refused = index.block_of_chunk(group.body, part)
                }
                Err(error) => return Err(error),
            }
            found.bytes += bytes.len() as u64;
            for_each_record(&bytes, 0, |record, _| found.take(index, record));
        }
        Ok(found)
    }

    /// Adds a record of the group.
    fn take(&mut self, index: &Index, record: &Record<'_>) {
        match record {
            Record::Message(message) => {
                for target in message.targets.iter().filter(|target| !index.is_gone(target.queue)) {
                    let offset = Range { start: target.offset, end: target.offset + 1 };
                    self.has_missing |= !index.has_known(&target);
                    self.messages.entry(target.queue).or_default().insert(offset, |_| {});
                }
                if let Body::Chunked { body, .. } = message.body {
                    self.bodies.push(body);
                }
            }
            Record::Settled { queue, ranges } if !index.is_gone(*queue) => {
                let known = index.queues().get(queue);
                for range in ranges.iter() {
                    let settled = known.map_or(0, |queue| queue.settled.count_in(range));
                    self.has_missing |= settled < range.end - range.start;
                    self.has_settled |= settled > 0;
                }
            }
            Record::Defined { version, key, .. } => {
                let known = index.definitions().get(*key).map_or(0, |definition| definition.version);
                self.has_missing |= known < *version;
                self.has_settled |= known >= *version;
            }
            _ => {}
        }
    }

    /// Returns the records that undo the group and end it.
    fn undoing(&self) -> impl Iterator<Item = Record<'_>> {
        let settled = self.messages.iter().map(|(queue, offsets)| {
            let ranges = Ranges::List(offsets.ranges());
            Record::Settled { queue: *queue, ranges }
        });
        settled.chain([self.gone()])
    }

    /// Returns the record that ends the group.
    const fn gone(&self) -> Record<'_> {
        Record::Gone { queue: self.group.incarnation }
    }
}

impl Log {
    /// Returns the large groups without an end, which an earlier epoch has not completed. All records of such a group may
    /// exist nevertheless: the end may be damaged, and older versions of the broker write the end later.
    pub(super) fn find_groups<D: Disk>(
        &self,
        disk: &mut D,
        report: &mut Report,
    ) -> io::Result<Vec<FoundGroup>> {
        let mut found = Vec::new();
        for group in waiting(&self.index).collect::<Vec<_>>() {
            found.push(FoundGroup::read(&self.index, disk, group)?);
        }
        report.groups_damaged = found.iter().filter(|found| found.is_damaged).count() as u32;
        report.refused.extend(found.iter().filter_map(|found| found.refused));
        sort(&mut report.refused);
        report.refused.dedup();
        Ok(found)
    }

    /// Completes or undoes these groups. Blocks until the disk is done. If the disk fails, the remaining groups are
    /// hidden, so that a broker that can only read does not show a part of a group.
    pub(super) fn end_groups<D: Disk>(
        &mut self,
        disk: &mut D,
        groups: &[FoundGroup],
        report: &mut Report,
        now: Now,
    ) -> io::Result<()> {
        for (at, found) in groups.iter().enumerate() {
            // A group that cannot be read now stays as it is. A later start completes it.
            if found.refused.is_some() {
                continue;
            }
            let mut settled = found.has_settled.then_some(self.durable);
            if let Err(error) = self.end_group(disk, found, &mut settled, report, now) {
                // Settlements come last, so once one is durable, all messages of the group are.
                let is_whole = settled.is_some_and(|settled| settled <= self.durable);
                self.hide_groups(&groups[at + usize::from(is_whole)..]);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Completes or undoes one group. If a settlement is appended, `settled` is set to the position of the first one.
    fn end_group<D: Disk>(
        &mut self,
        disk: &mut D,
        found: &FoundGroup,
        settled: &mut Option<LogPosition>,
        report: &mut Report,
        now: Now,
    ) -> io::Result<()> {
        // If a settlement or definition is written, all messages are. The other records may use the reserved segments.
        let may_finish = !found.is_damaged && (found.has_settled || found.bytes <= self.space.room_bytes());
        let is_whole =
            !found.has_missing || may_finish && self.finish_group(disk, found.group, settled, now)?;
        if is_whole {
            // Without space for the end, the next start completes the group again, which does no harm.
            let _ = self.append_reserved(&found.gone(), Urgency::Lazy, now);
        } else if settled.is_none() {
            report.groups_undone += 1;
            self.undo_group(disk, found, now)?;
        }
        // Otherwise all messages of the group exist, and the next start with enough space writes the settlements.
        Ok(())
    }

    /// Hides the records of these groups during this epoch.
    pub(super) fn hide_groups(&mut self, groups: &[FoundGroup]) {
        for found in groups.iter().filter(|found| found.has_missing && !found.has_settled) {
            for (queue, offsets) in &found.messages {
                offsets.ranges().iter().for_each(|range| self.index.settle(*queue, *range));
            }
            found.bodies.iter().for_each(|body| self.index.drop_body(*body));
        }
    }

    /// Undoes a group: settles its existing messages and ends it in the same commit, so that no power cut can leave a
    /// part of the group. Without space for that, the group stays hidden, and the next start tries again.
    fn undo_group<D: Disk>(&mut self, disk: &mut D, found: &FoundGroup, now: Now) -> io::Result<()> {
        self.hide_groups(core::slice::from_ref(found));
        let bytes = found.undoing().map(|record| record.bytes_max()).sum();
        if !self.has_room(bytes) {
            self.write_first(disk, now)?;
        }
        if self.has_room(bytes) {
            self.pending.has_group = true;
            for record in found.undoing() {
                if self.append_reserved(&record, Urgency::Awaited, now).is_err() {
                    return Ok(());
                }
            }
            self.write_first(disk, now)?;
        }
        Ok(())
    }

    /// Writes the records in a group's parts individually. Returns `false` if the disk has no space for them
    /// after all.
    fn finish_group<D: Disk>(
        &mut self,
        disk: &mut D,
        group: UnfinishedGroup,
        settled: &mut Option<LogPosition>,
        now: Now,
    ) -> io::Result<bool> {
        let (mut bytes, mut reached) = (Vec::new(), BTreeMap::new());
        for part in 0..group.parts {
            if !read_part(&self.index, disk, group, part, &mut bytes)? {
                // The part was readable when the group was found. Without it, half of the transaction would be visible.
                return Err(io::Error::other("a part of a large transaction cannot be read any more"));
            }
            let mut rest = &bytes[..];
            while let Ok((record, length)) = Record::parse(rest) {
                let is_there = match &record {
                    Record::Message(message) => message.targets.iter().all(|to| self.index.has_known(&to)),
                    _ => false,
                };
                if !is_there && !self.append_again(disk, &record, now)? {
                    return Ok(false);
                }
                if matches!(record, Record::Settled { .. } | Record::Defined { .. }) {
                    settled.get_or_insert(self.pending.appended);
                }
                if let Record::Message(message) = &record {
                    reached.extend(message.targets.iter().map(|target| (target.queue, target.offset + 1)));
                }
                rest = &rest[length..];
            }
        }
        // The watermark of messages delivered before their commit is in that commit, which is missing.
        for (queue, offset) in reached {
            if !self.append_again(disk, &Record::DeliveredWatermark { queue, offset }, now)? {
                return Ok(false);
            }
        }
        let last = self.pending.appended;
        while self.durable < last {
            if !self.write_now(disk, now)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Appends a record, if necessary after writing the pending commit. Returns `false` if there is no space
    /// for it.
    fn append_again<D: Disk>(&mut self, disk: &mut D, record: &Record<'_>, now: Now) -> io::Result<bool> {
        loop {
            self.pending.has_group = true;
            match self.append_reserved(record, Urgency::Awaited, now) {
                Ok(_) => return Ok(true),
                Err(AppendRefused::TooLarge) => return Ok(false),
                Err(AppendRefused::CommitFull | AppendRefused::Disk) => {
                    if !self.write_now(disk, now)? {
                        return Ok(false);
                    }
                }
            }
        }
    }

    /// Writes the pending commit. Returns `false` if there is no space for it.
    fn write_now<D: Disk>(&mut self, disk: &mut D, now: Now) -> io::Result<bool> {
        self.make_due();
        Ok(!matches!(self.step(disk, now)?, StepResult::Nothing))
    }

    /// Writes the pending commit and, like the first commit of an epoch, may use reserved space and a file beyond the
    /// limit for it. Returns `false` if there is no space for it nevertheless.
    pub(super) fn write_first<D: Disk>(&mut self, disk: &mut D, now: Now) -> io::Result<bool> {
        self.schedule.is_starting = true;
        while self.schedule.is_starting {
            if !self.write_now(disk, now)? {
                self.schedule.is_starting = false;
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// How many settled ranges and definitions of a group are in the log, or in a part.
#[derive(Clone, Copy, Default, Debug)]
struct Progress {
    settled: usize,
    defined: usize,
}

/// The commit writer's progress in writing groups.
#[derive(Debug, Default)]
pub(super) struct GroupProgress {
    /// The group that exceeds one commit.
    pub(super) large: Option<LargeGroup>,
    /// Large bodies that were written before their messages: number of the message, and identifier of the body.
    pub(super) bodies: Vec<(u64, u64)>,
    /// The settlements and definitions of the current group that are written individually.
    written: Progress,
    /// Whether a group waits for the next commit, because the pending commit has no space for all of it.
    pub(super) is_waiting: bool,
}

/// A group that exceeds one commit.
#[derive(Debug)]
pub(super) struct LargeGroup {
    /// Number of the group's first message in the pending-write buffer.
    pub(super) first: u64,
    pub(super) incarnation: u64,
    pub(super) body: u64,
    pub(super) parts: u32,
    pub(super) bytes: u64,
    /// The first message that is not in a part yet.
    pub(super) cursor: Cursor,
    /// The settlements and definitions that are in a part.
    in_parts: Progress,
    /// Whether the group message was appended.
    pub(super) is_appended: bool,
}

impl GroupProgress {
    /// Removes the body of a message whose record was appended.
    pub(super) fn take_body(&mut self, number: u64) {
        self.bodies.retain(|(other, _)| *other != number);
    }

    /// Returns the body of a message if it was written before the message.
    pub(super) fn body_of(&self, number: u64) -> Option<u64> {
        body_of(&self.bodies, number)
    }
}

/// Returns the body of a message. The bodies are in the order of their messages.
pub(super) fn body_of(bodies: &[(u64, u64)], number: u64) -> Option<u64> {
    let at = bodies.binary_search_by_key(&number, |(number, _)| *number).ok()?;
    Some(bodies[at].1)
}

/// Returns the reference to a chunked body of `bytes`.
pub(super) const fn chunked(body: u64, bytes: usize) -> Body<'static> {
    Body::Chunked { body, chunks: bytes.div_ceil(CHUNK_BODY_BYTES) as u32, bytes: bytes as u64 }
}
