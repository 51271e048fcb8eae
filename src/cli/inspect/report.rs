//! The tables of `leveret inspect`, for people and scripts.
//!
//! # Invariants
//! - The first word of a line is its subject. Numbers are separate words; their unit is in the name of the
//!   value or in the heading. An unknown value is a question mark.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::path::Path;

use leveret_core::mem::sort;
use leveret_storage::{
    Access, Body, FORMAT, FileDisk, Log, OpenError, QueueIndex, Range, RangeSet, Report, SegmentSummary,
    misaligned, not_in_place,
};
use leveret_storage::{is_group, is_transient};

use super::Verdict;
use super::names::Broker;
use super::names::QueueNames;

/// The subject of a report.
pub(super) struct Subject<'a> {
    pub(super) directory: &'a Path,
    pub(super) broker: Broker,
    /// Number of places that looked damaged while a broker was writing them.
    pub(super) changing: usize,
    pub(super) inspection: &'a Inspection,
    pub(super) names: &'a QueueNames,
}

/// Writes the content of the store and its damage.
pub(super) fn write(out: &mut dyn Write, subject: &Subject<'_>) -> io::Result<()> {
    let Subject { directory, broker, changing, inspection, names } = subject;
    writeln!(out, "store      {}, id {}, format {FORMAT}", directory.display(), Id(inspection.log.id()))?;
    if let Some(misaligned) = misaligned(directory) {
        writeln!(out, "card       {misaligned}")?;
    }
    if let Some(why) = not_in_place(directory) {
        writeln!(out, "disk       {why}")?;
    }
    writeln!(out, "broker     {broker}")?;
    if *changing > 0 {
        writeln!(out, "           {changing} places were being written and were read again")?;
    }
    write_queues(out, inspection, names)?;
    write_orphans(out, inspection, names)?;
    write_damage(out, inspection)
}

/// Writes the structure of the log.
pub(super) fn write_details(
    out: &mut dyn Write,
    inspection: &Inspection,
    segments: &[SegmentSummary],
) -> io::Result<()> {
    writeln!(out)?;
    writeln!(out, "log        {} segments of {} bytes", segments.len(), inspection.log.segment_bytes())?;
    // The log returns the epoch of the next start. The last epoch that wrote is one less.
    writeln!(out, "last       epoch {}", inspection.log.epoch().saturating_sub(1))?;
    writeln!(out)?;
    writeln!(
        out,
        "{:<10}{:>8} {:<12} {:>9}{:>10}{:>10}{:>12}{:>12}",
        "segment", "number", "file", "commits", "records", "live", "live_bytes", "used_bytes"
    )?;
    for segment in segments {
        let SegmentSummary { sequence, slot, commits, records, used_bytes, .. } = segment;
        let known = inspection.log.index().segments().get(sequence);
        let (live, live_bytes) = known.map_or((0, 0), |known| (known.live, known.live_bytes));
        writeln!(
            out,
            "{:<10}{sequence:>8} {slot:08}.seg {commits:>9}{records:>10}{live:>10}{live_bytes:>12}{used_bytes:>12}",
            "segment"
        )?;
    }
    Ok(())
}

fn write_queues(out: &mut dyn Write, inspection: &Inspection, names: &QueueNames) -> io::Result<()> {
    writeln!(out)?;
    writeln!(
        out,
        "{:<10}{:>20}{:>10}{:>12}{:>14}{:>14}{:>14}  name",
        "queue", "incarnation", "messages", "unreadable", "stored_bytes", "first_offset", "next_offset"
    )?;
    let queues = inspection.log.index().queues();
    let known = |incarnation| queues.get(incarnation).filter(|queue| !queue.gone);
    let with_messages = queues.keys().filter(|incarnation| known(incarnation).is_some());
    let mut all: Vec<u64> = with_messages.chain(names.queues.keys()).copied().collect();
    sort(&mut all);
    all.dedup();
    let mut messages = 0;
    for incarnation in &all {
        let queue = known(incarnation);
        let count = queue.map_or(0, |queue| queue.live);
        let first = queue.and_then(|queue| queue.live_ranges().next()).map(|range| range.start);
        let unreadable = inspection.unreadable.get(incarnation).map_or(0, count_of);
        messages += count;
        writeln!(
            out,
            "{:<10}{incarnation:>20}{count:>10}{unreadable:>12}{:>14}{:>14}{:>14}  {}",
            "queue",
            queue.map_or(0, |queue| queue.live_bytes()),
            Known(first),
            queue.map_or(0, |queue| queue.next_offset()),
            names.shown(*incarnation)
        )?;
    }
    let QueueNames { exchanges, bindings, unread, .. } = names;
    let queues = all.iter().filter(|incarnation| !names.levels.contains_key(incarnation)).count();
    writeln!(out, "queues     {queues} with {messages} messages")?;
    writeln!(
        out,
        "defined    {} queues, {exchanges} exchanges, {bindings} bindings; {unread} that cannot be read",
        names.queues.len() - names.hidden
    )
}

fn count_of(offsets: &RangeSet) -> u64 {
    offsets.ranges().iter().map(|range| range.end - range.start).sum()
}

/// Writes which parts cannot be read now, and which ones earlier starts could not read.
fn write_damage(out: &mut dyn Write, inspection: &Inspection) -> io::Result<()> {
    if inspection.report.footers_missing > 0 {
        writeln!(
            out,
            "footers    {} full segment files have no footer; a power cut can cause that; if it was damage, messages may \
             be missing",
            inspection.report.footers_missing
        )?;
    }
    let remembered = &inspection.report.reported_damage;
    let mut earlier = remembered
        .lines()
        .iter()
        .filter(|line| !inspection.damage.iter().any(|now| **now == ***line))
        .peekable();
    if inspection.damage.is_empty() && earlier.peek().is_none() {
        return Ok(());
    }
    writeln!(out)?;
    for line in &inspection.damage {
        writeln!(out, "damage     {line}")?;
    }
    for line in earlier {
        writeln!(out, "earlier    {line}")?;
    }
    if remembered.is_alarm() {
        writeln!(out, "           leveretctl acknowledge_damage ends the broker's alarm about it")?;
    }
    Ok(())
}

/// Writes the messages whose queue has no definition.
fn write_orphans(out: &mut dyn Write, inspection: &Inspection, names: &QueueNames) -> io::Result<()> {
    for &queue in names.orphans.keys() {
        let count = inspection.log.index().queues().get(&queue).map_or(0, |queue| queue.live);
        writeln!(
            out,
            "orphan     {queue}: {count} messages of a queue without a definition: {}",
            names.shown(queue)
        )?;
    }
    if names.orphans.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "a start creates durable classic queues from those whose name is known and unused; the others remain \
         until leveret ctl adopt_orphan or delete_orphan (see list_orphans)"
    )
}

/// Writes whether users and permissions can be trusted.
pub(super) fn write_access(out: &mut dyn Write, access: Access) -> io::Result<()> {
    match access {
        Access::InDoubt(why) => writeln!(
            out,
            "access     in doubt ({why}): a broker refuses all logins until its users and permissions are \
             confirmed (leveret ctl confirm_users)"
        ),
        Access::Silent | Access::New => writeln!(out, "access     never written: a new store"),
        Access::Whole => writeln!(out, "access     whole: users and permissions are as last written"),
    }
}

/// Writes the first line: the verdict, and what to do.
pub(super) fn write_verdict(
    out: &mut dyn Write,
    verdict: Verdict,
    inspection: &Inspection,
) -> io::Result<()> {
    match verdict {
        Verdict::Good => {
            writeln!(out, "verdict    good: everything is as it was written")
        }
        Verdict::Orphans => {
            writeln!(
                out,
                "verdict    orphans: everything is as it was written, but there are messages without a \
                 queue: start the broker, then leveretctl list_orphans"
            )
        }
        Verdict::AccessInDoubt => {
            writeln!(
                out,
                "verdict    in doubt: users and permissions in the store may be wrong: start the broker, check \
                 list_users and list_permissions, then leveretctl confirm_users"
            )
        }
        Verdict::Damaged => writeln!(
            out,
            "verdict    damaged: {} parts cannot be read; live messages known to be lost: {}{}; a broker serves \
             the rest, and --export saves it",
            inspection.damage.len(),
            inspection.count_unreadable(),
            if may_hide_messages(&inspection.report) { ", and an unknown number of others" } else { "" }
        ),
    }
}

/// Returns whether messages may have been lost: something else is damaged than headers of segments, which
/// exist twice.
fn may_hide_messages(report: &Report) -> bool {
    let is_header = |from: u32, to: u32| from == 0 && to as usize <= leveret_storage::BLOCK_BYTES;
    report.is_lost
        || report.commits_missing > 0
        || report.commits_lost_at_end > 0
        || !report.refused.is_empty()
        || !report.unopened.is_empty()
        || report.set_aside.iter().any(|part| !is_header(part.from, part.to))
}

/// A number, if it is known.
struct Known(Option<u64>);

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(number) => f.pad(&number.to_string()),
            None => f.pad("?"),
        }
    }
}

/// The identity of a store.
struct Id([u8; 16]);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The store as a start would read it, after every message was read once. A message is unreadable if it would
/// be in a queue after a start, but could not be delivered.
#[derive(Debug)]
pub(crate) struct Inspection {
    pub(super) log: Log,
    pub(super) report: Report,
    /// The damage, one sentence each.
    pub(super) damage: Vec<String>,
    /// Offsets of messages that cannot be read, by the incarnation of their queue.
    pub(super) unreadable: BTreeMap<u64, RangeSet>,
}

impl Inspection {
    /// Reads the store on `disk`.
    ///
    /// # Errors
    /// The store cannot be read, or there is none.
    pub(crate) fn of(disk: &mut FileDisk) -> Result<Self, OpenError> {
        let (mut log, report) = Log::inspect(disk)?;
        let (mut unreadable, mut bytes) = (BTreeMap::new(), Vec::new());
        for queue in queues_of(&log) {
            let (mut found, mut large) = (RangeSet::default(), Vec::new());
            let mut insert = |offset| found.insert(Range { start: offset, end: offset + 1 }, |_| {});
            let read = log.for_each_message(disk, queue, |_, offset, message| {
                match message.body {
                    Body::Inline(_) => insert(offset),
                    Body::Chunked { body, chunks, .. } => large.push((offset, body, chunks)),
                }
                Ok(())
            });
            read.map_err(OpenError::Unreadable)?;
            for (offset, body, chunks) in large {
                if (0..chunks).all(|index| log.read_chunk(disk, body, index, &mut bytes).is_some()) {
                    insert(offset);
                }
            }
            let mut missing = RangeSet::default();
            for range in log.index().queues().get(&queue).into_iter().flat_map(|known| known.live_ranges()) {
                found.insert(range, |part| missing.insert(part, |_| {}));
            }
            if !missing.is_empty() {
                unreadable.insert(queue, missing);
            }
        }
        Ok(Self { damage: report.describe_damage(), log, report, unreadable })
    }

    /// Returns whether everything can be read.
    pub(crate) fn is_whole(&self) -> bool {
        self.damage.is_empty() && self.unreadable.is_empty()
    }

    /// Returns the file of the newest segment.
    pub(crate) fn newest_slot(&self) -> Option<u32> {
        self.log.index().segments().values().next_back().map(|segment| segment.slot)
    }

    /// Returns the number of messages that cannot be read, counted once per queue.
    pub(super) fn count_unreadable(&self) -> u64 {
        self.unreadable.values().flat_map(RangeSet::ranges).map(|range| range.end - range.start).sum()
    }

    /// Removes damage that an earlier inspection did not find, because it is only a place where a broker was
    /// writing. Returns the number of removed sentences and queues.
    pub(super) fn keep_damage_of(&mut self, earlier: &Self) -> usize {
        let before = self.damage.len() + self.unreadable.len();
        self.damage.retain(|line| earlier.damage.contains(line));
        for (queue, offsets) in &mut self.unreadable {
            let was_unreadable =
                |offset| earlier.unreadable.get(queue).is_some_and(|set| set.contains(offset));
            let mut lasting = RangeSet::default();
            for offset in offsets.ranges().iter().flat_map(|range| range.start..range.end) {
                if was_unreadable(offset) {
                    lasting.insert(Range { start: offset, end: offset + 1 }, |_| {});
                }
            }
            *offsets = lasting;
        }
        self.unreadable.retain(|_, offsets| !offsets.is_empty());
        before - self.damage.len() - self.unreadable.len()
    }
}

/// Returns the queues whose messages a start restores.
pub(super) fn queues_of(log: &Log) -> Vec<u64> {
    let is_served = |id: u64, queue: &QueueIndex| !queue.gone && !is_group(id) && !is_transient(id);
    let queues = log.index().queues().iter();
    queues.filter(|(id, queue)| is_served(**id, queue)).map(|(id, _)| *id).collect()
}
