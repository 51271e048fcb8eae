//! The tables: what a person reads, and what a script greps.
//!
//! Always true: the first word of a line says what it is about, a number stands alone between blanks, and
//! its unit is in its name or above it; what is not known is a question mark.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;

use super::broker::Broker;
use super::names::Names;
use super::verdict::Verdict;
use crate::mem::sort;
use crate::store::fsck::{Damage, DamageKind, NO_SLOT, Scan, SegmentLook, Volume};
use crate::store::{Access, Format, misaligned, not_in_place};

/// What a report is about.
pub(super) struct Subject<'a> {
    pub(super) directory: &'a Path,
    pub(super) broker: Broker,
    /// Places that looked wrong while they were being written.
    pub(super) changing: usize,
    pub(super) scan: &'a Scan,
    pub(super) names: &'a Names,
}

/// Writes what there is, and what is wrong with it.
pub(super) fn write(out: &mut dyn Write, subject: &Subject<'_>) -> io::Result<()> {
    let Subject { directory, broker, changing, scan, names } = subject;
    let format = scan.format.number();
    writeln!(out, "store      {}, id {}, format {format}", directory.display(), Id(scan.id))?;
    if scan.format < Format::NEWEST {
        let newest = Format::NEWEST.number();
        writeln!(
            out,
            "           older programs read it too; leveret upgrade-store makes it format {newest}"
        )?;
    }
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
    write_queues(out, scan, names)?;
    write_orphans(out, scan, names)?;
    write_damage(out, scan)
}

/// Writes what the log consists of.
pub(super) fn write_details(out: &mut dyn Write, scan: &Scan) -> io::Result<()> {
    let (life, commit, time_ms) = scan.last;
    let [free, preparing] = [scan.spare.free, scan.spare.preparing];
    writeln!(out)?;
    writeln!(
        out,
        "log        {} segments of {} bytes; files beside it: {free} free, {preparing} being prepared",
        scan.segments.len(),
        scan.segment_bytes
    )?;
    writeln!(out, "last       life {life}, commit {commit}, broker time {time_ms} ms")?;
    write_segments(out, scan)?;
    write_volume(out, &scan.volume)
}

fn write_segments(out: &mut dyn Write, scan: &Scan) -> io::Result<()> {
    writeln!(out)?;
    writeln!(
        out,
        "{:<10}{:>8} {:<12} {:<6}{:>9}{:>10}{:>10}{:>12}",
        "segment", "number", "file", "state", "commits", "records", "live", "used_bytes"
    )?;
    for segment in &scan.segments {
        let SegmentLook { sequence, slot, sealed, commits, records, used_bytes, .. } = segment;
        let live = scan.index.segments().get(sequence).map_or(0, |known| known.live);
        let state = if *sealed { "full" } else { "open" };
        writeln!(
            out,
            "{:<10}{sequence:>8} {slot:08}.seg {state:<6}{commits:>9}{records:>10}{live:>10}{used_bytes:>12}",
            "segment"
        )?;
    }
    Ok(())
}

fn write_queues(out: &mut dyn Write, scan: &Scan, names: &Names) -> io::Result<()> {
    writeln!(out)?;
    writeln!(
        out,
        "{:<10}{:>20}{:>10}{:>14}{:>14}{:>14}  name",
        "queue", "incarnation", "messages", "stored_bytes", "first_offset", "next_offset"
    )?;
    let known = |incarnation| scan.index.queues().get(incarnation).filter(|queue| !queue.gone);
    let with_messages = scan.index.queues().keys().filter(|incarnation| known(incarnation).is_some());
    let mut all: Vec<u64> = with_messages.chain(names.queues.keys()).copied().collect();
    sort(&mut all);
    all.dedup();
    let mut messages = 0;
    for incarnation in &all {
        let queue = known(incarnation);
        let count = queue.map_or(0, |queue| queue.live);
        let first = queue.and_then(|queue| queue.live_ranges().next()).map(|range| range.start);
        messages += count;
        writeln!(
            out,
            "{:<10}{incarnation:>20}{count:>10}{:>14}{:>14}{:>14}  {}",
            "queue",
            queue.map_or(0, |queue| queue.live_bytes()),
            Known(first),
            queue.map_or(0, |queue| queue.next_offset()),
            names.shown(*incarnation)
        )?;
    }
    let Names { exchanges, bindings, unread, .. } = names;
    let queues = all.iter().filter(|incarnation| !names.levels.contains_key(incarnation)).count();
    writeln!(out, "queues     {queues} with {messages} messages")?;
    writeln!(
        out,
        "defined    {} queues, {exchanges} exchanges, {bindings} bindings; {unread} that cannot be read",
        names.queues.len() - names.hidden
    )
}

fn write_volume(out: &mut dyn Write, volume: &Volume) -> io::Result<()> {
    let written = volume.written_bytes();
    writeln!(out)?;
    writeln!(out, "{:<10}{:<16}{:>14}  share", "bytes", "of", "bytes")?;
    let lines = [
        ("messages", volume.message_bytes),
        ("copies", volume.copy_bytes),
        ("settlements", volume.settled_bytes),
        ("definitions", volume.defined_bytes),
        ("commit_headers", volume.commit_bytes),
        ("padding", volume.padding_bytes),
        ("headers", volume.header_bytes),
        ("footers", volume.footer_bytes),
        ("all", written),
        ("payload", volume.payload_bytes),
    ];
    for (name, bytes) in lines {
        let share = bytes as f64 * 100.0 / written.max(1) as f64;
        writeln!(out, "{:<10}{name:<16}{bytes:>14}  {share:>5.1} %", "bytes")?;
    }
    match volume.payload_bytes {
        0 => writeln!(out, "amplification ? bytes written per byte of payload: there is no payload"),
        payload => writeln!(
            out,
            "amplification {:.3} bytes written per byte of payload (body, properties and key of {} messages, \
             each counted once), over the segments of the log as they lie here; what was written to files \
             that were used again since, and zeros to prepare them, left no trace",
            written as f64 / payload as f64,
            volume.messages
        ),
    }
}

fn write_damage(out: &mut dyn Write, scan: &Scan) -> io::Result<()> {
    if scan.is_good() && scan.bodies_broken == 0 {
        return Ok(());
    }
    writeln!(out)?;
    if !scan.damage.is_empty() {
        writeln!(
            out,
            "{:<10}{:<12}{:>8} {:<12} {:>10}{:>11}{:>9}{:>14}{:>14}{:>15}",
            "damage",
            "what",
            "segment",
            "file",
            "from_byte",
            "to_byte",
            "commits",
            "records_read",
            "records_lost",
            "messages_lost"
        )?;
    }
    for damage in &scan.damage {
        let Damage { kind, slot, segment, from, to, messages_lost, records_read, .. } = damage;
        let what = what(*kind);
        writeln!(
            out,
            "{:<10}{what:<12}{segment:>8} {:<12} {from:>10}{to:>11}{:>9}{records_read:>14}{:>14}\
             {messages_lost:>15}",
            "damage",
            file(*slot),
            Known(damage.commits),
            Known(damage.records_lost)
        )?;
    }
    if let Some(tail) = &scan.tail {
        writeln!(
            out,
            "tail       segment {}, file {:08}.seg, from byte {}: a commit that is not whole; records of it \
             that can be read: {}",
            tail.segment, tail.slot, tail.from, tail.records_read
        )?;
    }
    if scan.bodies_broken > 0 {
        writeln!(out, "bodies     {} live messages lack a part of their body", scan.bodies_broken)?;
    }
    Ok(())
}

fn file(slot: u32) -> String {
    if slot == NO_SLOT { "?".into() } else { format!("{slot:08}.seg") }
}

const fn what(kind: DamageKind) -> &'static str {
    match kind {
        DamageKind::Log => "log",
        DamageKind::Header => "header",
        DamageKind::Commits => "commits",
        DamageKind::Footer => "footer",
        DamageKind::Short => "cut-short",
        DamageKind::Unreadable => "unreadable",
        DamageKind::NoFile | DamageKind::Gone => "no-file",
        DamageKind::Unopened => "cannot-open",
        DamageKind::Replaced => "replaced",
        DamageKind::Foreign => "foreign",
        DamageKind::Strange => "strange",
    }
}

/// Says that segments were used again.
pub(super) fn write_recycled(out: &mut dyn Write, recycled: &[u64], so: &str) -> io::Result<()> {
    if recycled.is_empty() {
        return Ok(());
    }
    let numbers: Vec<String> = recycled.iter().map(u64::to_string).collect();
    writeln!(out, "recycled   the broker used segments {} again meanwhile: {so}", numbers.join(", "))
}

/// Says what of the damage is gone.
pub(super) fn write_dropped(out: &mut dyn Write, before: &Scan, after: &Scan) -> io::Result<()> {
    if before.damage.is_empty() {
        return writeln!(out, "dropped    nothing: nothing is set aside");
    }
    for damage in &before.damage {
        let stays = after.damage.iter().any(|left| left.is_alike(damage));
        let (word, what) = (if stays { "kept" } else { "dropped" }, what(damage.kind));
        let Damage { slot, segment, from, to, records_read, messages_lost, .. } = damage;
        writeln!(
            out,
            "{word:<11}{what}: segment {segment}, file {}, bytes {from} to {to}; {records_read} records \
             kept, {} given up, {messages_lost} live messages among them",
            file(*slot),
            Known(damage.records_lost)
        )?;
    }
    Ok(())
}

/// Says which messages belong to no queue that is defined.
pub(super) fn write_orphans(out: &mut dyn Write, scan: &Scan, names: &Names) -> io::Result<()> {
    for &queue in names.orphans.keys() {
        let count = scan.index.queues().get(&queue).map_or(0, |queue| queue.live);
        writeln!(
            out,
            "orphan     {queue}: {count} messages of a queue that nothing defines: {}",
            names.shown(queue)
        )?;
    }
    if names.orphans.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "           a start makes plain durable queues of those with a name, where it is free; the others \
         wait until somebody gives them one (leveret ctl list_orphans, adopt_orphan) or deletes them \
         (delete_orphan)"
    )
}

/// Says whether users and permissions can be relied on.
pub(super) fn write_access(out: &mut dyn Write, access: Access) -> io::Result<()> {
    match access {
        Access::InDoubt(why) => writeln!(
            out,
            "access     in doubt ({why}): a broker lets nobody in until somebody has looked at its users and \
             permissions and said that they are right (leveret ctl confirm_users)"
        ),
        Access::Silent | Access::New => writeln!(out, "access     never written: as a new store begins"),
        Access::Whole => writeln!(out, "access     whole: users and permissions are those written last"),
    }
}

/// Writes what to think of the store, and what to do: the first line.
pub(super) fn write_verdict(out: &mut dyn Write, verdict: Verdict, scan: &Scan) -> io::Result<()> {
    // A message that lacks a part of its body is not delivered.
    let lost = scan.damage.iter().map(|damage| damage.messages_lost).sum::<u64>() + scan.bodies_broken;
    let unknown = scan.damage.iter().map(|damage| damage.records_unknown).sum::<u64>();
    let is_known = scan.damage.iter().all(|damage| damage.records_lost.is_some());
    match verdict {
        Verdict::Good => {
            writeln!(out, "verdict    good: everything is as it was written; nothing is to be done")
        }
        Verdict::CutTail => writeln!(
            out,
            "verdict    cut tail: the last commit is not whole, as a power cut leaves it; the next start \
             cuts it, and nothing is to be done"
        ),
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
                "verdict    in doubt: the store cannot vouch for its users and permissions: start the \
                 broker, look at list_users and list_permissions, then leveretctl confirm_users"
            )
        }
        Verdict::Damaged => writeln!(
            out,
            "verdict    damaged: {} parts are not as they were written; live messages known to be lost: \
             {lost}{}{}; a start sets these parts aside and serves the rest, --export saves what can be \
             read, and --drop-set-aside writes over what cannot",
            scan.damage.len(),
            if unknown > 0 {
                format!(", and {unknown} records of which nobody knows what they were")
            } else {
                String::new()
            },
            if is_known { "" } else { ", and others that nobody knows" }
        ),
    }
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

/// An identity, if there is one.
struct Id(Option<[u8; 16]>);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(id) => id.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
            None => f.write_str("not known"),
        }
    }
}
