//! The newest segment: where the log ends, and whether that end is the one that was synced.
//!
//! ```text
//! segment | header | commit | ... | last commit | what a commit left unfinished, or damage | zeros | footer
//!                                               ^ tail                 ^ heads, footer, headers and notes
//!                                                                        know of commits up to here
//! ```
//!
//! Always true: what may be damage is not written over, and its numbers are not used again; only what nothing
//! proves to have been synced is taken for a commit that was not finished.

use std::io;

use leveret_core::mem::sort_by_key;

use super::commit::{
    BLOCK_BYTES, COMMIT_HEADER_BYTES, Claim, Commit, Owner, claimed_length, padded, proven_length,
    whole_commits,
};
use super::commit_builder::ResizeZeroed;
use super::damage::ReadAround;
use super::disk::{Disk, NEWEST_SLOT};
use super::footer::{self, Footer};
use super::reader;
use super::reader::apply_records;
use super::reader::{Newest, Pass, Reader};
use super::record::Record;
use super::recovery::{Chain, SetAside};
use super::segment::{
    FoundFile, HeaderRead, Headers, SEGMENT_BYTES_MAX, SegmentHeader, SegmentRef, is_segment_size,
};
use super::space::Slot;
use super::varint::Input;

impl<D: Disk> Reader<'_, '_, D> {
    /// Reads the messages of the newest segment, and the other facts of commits that are not `known` from a read before:
    /// the disk may have refused them then, and what is written again is to be in the index. A commit of number `proven`,
    /// if not 0, was surely synced.
    pub(super) fn read_newest(
        &mut self,
        segment: SegmentRef,
        header_bytes: u32,
        (proven, known): (u64, &[(u64, u32)]),
    ) -> io::Result<Newest> {
        self.served.clear();
        let (mut tail, commits) = self.scan(segment, header_bytes, Pass::Messages)?;
        for (_, at) in commits.iter().filter(|commit| known.binary_search(commit).is_err()) {
            if let Some(commit) = Commit::parse(&self.bytes[*at as usize..], self.identity.seed()) {
                let first = at + COMMIT_HEADER_BYTES as u32;
                let is_fact = |record: &Record<'_>| !matches!(record, Record::Message(_));
                apply_records(&mut self.index, commit.records, segment.sequence, first, is_fact);
            }
        }
        let served_end = self.serve(segment, tail..self.segment_bytes, proven, Pass::Messages);
        let mut served = self.served.iter().peekable();
        let commit_at = |at: u32| Commit::parse(&self.bytes[at as usize..], self.identity.seed());
        let last = commits.last().and_then(|(_, at)| commit_at(*at));
        let (again, again_records) =
            last.map_or((Vec::new(), 0), |commit| records_again(&commit, |segment| self.is_needed(segment)));
        // The last commit, and what it repeats, may be in the page cache only. It is written again, and noted
        // then: a footer must not promise what a power cut can still take away.
        let mut footer = Footer::default();
        let synced = self.chain.number.saturating_sub(u64::from(self.chain.covers));
        for (_, at) in commits.iter().filter(|(number, _)| *number < synced) {
            while let Some(place) = served.next_if(|place| place.at < *at) {
                reader::note(&mut footer, &self.bytes, place);
            }
            let records = commit_at(*at).map(|commit| commit.records).unwrap_or_default();
            footer.note_records(records, at + COMMIT_HEADER_BYTES as u32);
        }
        served.for_each(|place| reader::note(&mut footer, &self.bytes, place));
        self.index.set_bytes(segment.sequence, served_end);
        let synced = self.synced_in_newest(segment, tail);
        let sealed = footer::of_segment(&self.bytes, segment.sequence, self.identity.seed());
        let is_sealed = sealed.is_some();
        if let Some((lengths, trailer)) = sealed {
            // A life may have left nothing but that. Commits of another one with its number, or a lower one,
            // would count as older than it.
            self.chain.life = self.chain.life.max(trailer.life);
            let end = self.segment_bytes as usize;
            let base = end - lengths.footer();
            // The messages are known already, from the commits themselves.
            let _ = self.read_parts(segment.sequence, base, base..base + lengths.parts, false);
            tail = self.segment_bytes;
        }
        let length = self.disk.read(segment.slot, 0, &mut self.bytes)? as u32;
        let is_damaged = false;
        Ok(Newest { segment, tail, length, again, again_records, footer, is_sealed, synced, is_damaged })
    }

    /// The newest commit that something in the newest segment, which is in the buffer and was read up to byte
    /// `tail`, proves to have been synced; or 0.
    pub(super) fn synced_in_newest(&self, segment: SegmentRef, tail: u32) -> u64 {
        let seed = Some(self.identity.seed());
        let heads = synced_by_heads(&self.bytes, tail as usize, segment.sequence, &self.chain, seed);
        heads.max(
            footer::of_segment(&self.bytes, segment.sequence, self.identity.seed())
                .map_or(0, |(_, trailer)| trailer.number),
        )
    }

    /// Whether a segment has something live: what was copied of it is damaged, if it is said to have left.
    fn is_needed(&self, segment: u64) -> bool {
        self.index.segments().get(&segment).is_some_and(|segment| segment.live > 0)
    }

    /// Whether the end of the log is damage and no unfinished commit. Then nothing is written over it, and
    /// its numbers are not used again, so that every start sees it until its segment leaves the log.
    pub(super) fn find_lost_end(
        &mut self,
        newest: &mut Newest,
        (headers, found): (&Headers<'_>, &[FoundFile]),
        noted: u64,
    ) -> io::Result<()> {
        let (chain, end, seed) = (self.chain, self.segment_bytes, Some(self.identity.seed()));
        let mut synced = synced_by_headers(headers).max(newest.synced).max(noted);
        for &(slot, first, header) in headers.iter().filter(|h| h.2.sequence > newest.segment.sequence) {
            let length = self.disk.read(slot, 0, &mut self.bytes)?;
            let heads = synced_by_heads(&self.bytes[..length], first as usize, header.sequence, &chain, seed);
            if heads > chain.number {
                self.set_aside.push(slot);
                self.report.set_aside.push(SetAside { slot, segment: header.sequence, from: first, to: end });
            }
            synced = synced.max(heads);
            // A file has its length before it gets a header. What the note beside the log names is judged by that.
            if (length as u32) < end && self.noted.is_none_or(|noted| noted.slot != slot) {
                self.note_cut(SegmentRef { sequence: header.sequence, slot }, length as u32);
                self.set_aside.push(slot);
                let commits = u64::from((end - length as u32).div_ceil(BLOCK_BYTES as u32));
                self.report.commits_lost_at_end += commits;
                self.chain.number += commits;
                (newest.is_damaged, newest.tail) = (true, end);
            }
        }
        synced = synced.max(self.find_next_without_header(newest.segment.sequence + 1, &chain, found)?);
        if synced > chain.number {
            let SegmentRef { sequence, slot } = newest.segment;
            self.report.set_aside.push(SetAside { slot, segment: sequence, from: newest.tail, to: end });
            self.report.commits_missing += synced - chain.number;
            self.report.commits_lost_at_end = synced - chain.number;
            self.chain.number = self.chain.number.max(synced);
            newest.is_damaged = true;
            newest.tail = end;
        }
        Ok(())
    }

    /// Returns the newest commit that heads of commits prove to have been synced in segment `sequence`, the one behind the
    /// newest of the log: its header is damaged, and so is every commit. Sets its file aside.
    fn find_next_without_header(
        &mut self,
        sequence: u64,
        chain: &Chain,
        found: &[FoundFile],
    ) -> io::Result<u64> {
        let mut synced = 0;
        for file in found.iter().filter(|file| file.header == HeaderRead::Bad) {
            let slot = file.slot;
            if self.index.segments().values().any(|segment| segment.slot == slot) {
                continue;
            }
            let length = self.disk.read(slot, 0, &mut self.bytes)?;
            let seed = Some(self.identity.seed());
            let heads = synced_by_heads(&self.bytes[..length], BLOCK_BYTES, sequence, chain, seed);
            if heads > chain.number {
                self.set_aside.push(slot);
                self.report.set_aside.push(SetAside {
                    slot,
                    segment: sequence,
                    from: 0,
                    to: self.segment_bytes,
                });
            }
            synced = synced.max(heads);
        }
        Ok(synced)
    }

    /// What the note beside the log says of the newest segment: its header was synced, its file had its
    /// length. Where they are not as they were, and no commit of it can be found either, as many as may have
    /// been there are taken for lost.
    pub(super) fn find_noted(&mut self, newest: &mut Newest) -> io::Result<()> {
        let Some(noted) = self.noted.filter(|noted| noted.sequence >= newest.segment.sequence) else {
            return Ok(());
        };
        let (SegmentRef { sequence, slot }, end) = (noted, self.segment_bytes);
        if noted == newest.segment {
            if self.is_noted_only {
                let to = BLOCK_BYTES as u32;
                self.report.set_aside.push(SetAside { slot, segment: sequence, from: 0, to });
            }
            return Ok(());
        }
        let length = self.disk.read(slot, 0, &mut self.bytes)? as u32;
        if !self.is_noted_only && length == end {
            return Ok(());
        }
        if self.is_noted_only {
            self.report.set_aside.push(SetAside { slot, segment: sequence, from: 0, to: end });
        } else {
            self.note_cut(noted, length);
        }
        let commits = u64::from(end / BLOCK_BYTES as u32);
        self.report.commits_lost_at_end += commits;
        self.chain.number += commits;
        self.set_aside.push(slot);
        (newest.is_damaged, newest.tail) = (true, end);
        Ok(())
    }

    /// A segment has its length before it gets a header. So one that is shorter was cut, and as many commits
    /// as may have been in what is gone are taken for lost.
    pub(super) fn find_cut_end(&mut self, newest: &mut Newest) {
        let (end, length) = (self.segment_bytes, newest.length);
        if length < end {
            self.note_cut(newest.segment, length);
            if !newest.is_damaged {
                self.report.commits_lost_at_end += u64::from((end - length).div_ceil(BLOCK_BYTES as u32));
            }
            (newest.is_damaged, newest.tail) = (true, end);
        }
    }

    pub(super) fn note_cut(&mut self, segment: SegmentRef, length: u32) {
        let (SegmentRef { sequence, slot }, to) = (segment, self.segment_bytes);
        self.report.set_aside.push(SetAside { slot, segment: sequence, from: length, to });
        self.report.files_cut += 1;
        self.cut.push(slot);
    }

    /// Files that cannot be opened, or of which neither the header nor a commit can be read, and that are not known to be
    /// older segments.
    pub(super) fn unopened_beside(&self, found: &[FoundFile], list: &[SegmentRef]) -> u32 {
        let is_listed = |slot| list.iter().any(|segment| segment.slot == slot);
        let is_unread =
            |slot| self.disk.is_unopened(slot) || self.disk.refused.binary_search(&(slot, 0)).is_ok();
        found.iter().filter(|file| is_unread(file.slot) && !is_listed(file.slot)).count() as u32
    }

    /// Files that cannot be opened may be newer segments when the newest one that can is full: another is
    /// opened only then. So many commits as may be in them are taken for lost.
    pub(super) fn pass_over_unopened(&mut self, newest: &mut Newest, unopened: u32) {
        let room = (self.segment_bytes - newest.tail) as usize;
        let footer = newest.footer.bytes_max() + Footer::bytes_max_of(newest.again.len());
        let is_full = padded(newest.again.len() + footer) > room;
        if !is_full || unopened == 0 {
            return;
        }
        let commits = u64::from(unopened) * u64::from(self.segment_bytes / BLOCK_BYTES as u32);
        self.newer_missing = unopened;
        self.report.commits_lost_at_end += commits;
        self.chain.number += commits;
        (newest.is_damaged, newest.tail) = (true, self.segment_bytes);
    }

    /// A segment is sealed when the next one is opened, and each is noted beside the log. So where the newest
    /// is sealed, and there is neither a file that is newer nor that note, files are gone, as of a directory
    /// that was copied in part. So many commits as one of them has are taken for lost. A note that is old
    /// could not be written, which is no sign of that. One that is not good is one: when a note is half
    /// written, the newer header is there already.
    ///
    /// A power cut can tear the newer header while there is no note, because a full file system had no room for one. So a
    /// file with a bad header and nothing behind it counts as the newer file: no commit of it was durable.
    pub(super) fn find_gone(
        &mut self,
        newest: &mut Newest,
        headers: &Headers<'_>,
        found: &[FoundFile],
    ) -> io::Result<()> {
        let sequence = newest.segment.sequence;
        let is_newer = |(_, _, header): &(u32, u32, &SegmentHeader)| header.sequence > sequence;
        let is_whole = self.noted.is_some() || headers.iter().any(is_newer);
        if !newest.is_sealed || newest.is_damaged || is_whole {
            return Ok(());
        }
        for file in found.iter().filter(|file| file.header == HeaderRead::Bad) {
            if !has_more(self.disk, file.slot)? {
                return Ok(());
            }
        }
        let commits = u64::from(self.segment_bytes / BLOCK_BYTES as u32);
        self.report.newest_gone = true;
        self.report.commits_missing += commits;
        self.report.commits_lost_at_end += commits;
        self.chain.number += commits;
        self.newer_missing = 1;
        newest.is_damaged = true;
        Ok(())
    }

    /// Nothing is written to a file with a block that the disk refuses to read: what lies there may be a
    /// commit that was durable, and may be read again one day, so its number is not used either.
    pub(super) fn keep_off_refused(&mut self, newest: &mut Newest, slots: &mut [Slot]) {
        let end = self.segment_bytes;
        for &(slot, _) in &self.disk.refused {
            let Some(state) = slots.get_mut(slot as usize) else { continue };
            if matches!(state, Slot::Free | Slot::Preparing) {
                *state = Slot::Unusable;
                self.report.set_aside.push(SetAside { slot, segment: 0, from: 0, to: end });
            }
        }
        let SegmentRef { sequence, slot } = newest.segment;
        let behind = |&&(other, at): &&(u32, u32)| other == slot && at >= newest.tail;
        let lost = match self.disk.is_file_given_up(slot) {
            true => u64::from((end - newest.tail).div_ceil(BLOCK_BYTES as u32)),
            false => self.disk.refused.iter().filter(behind).count() as u64,
        };
        if lost > 0 && sequence > 0 {
            self.report.set_aside.push(SetAside { slot, segment: sequence, from: newest.tail, to: end });
            self.report.commits_lost_at_end += lost;
            self.chain.number += lost;
            newest.is_damaged = true;
            newest.tail = end;
            self.index.forget_watermark_resets();
        }
    }
}

// The newest segment's header once more, beside the log.
//
// Why it exists: only the newest header says which segments are the log, and nothing behind the newest
// segment proves that it ever was there. So a card that loses that header's block would bring back what an
// older list has, and one that loses the segment would take its commits without a word.
//
// ```text
// newest | magic "LEVERETN" | CRC32C u32 | slot u32 | header, as it stands in the segment | zeros to 4 KiB |
//          0                  8            12         16
// ```
//
// All little endian; the CRC covers everything from `slot` to the end of the header's list.
//
// Always true: it is written after the sync of the header and synced before the first commit of the segment
// is written, so it proves the header durable, and a commit of the newest segment proves the note; it is
// written once for each segment, and again at a start that goes on from another one. A note that is not good
// says nothing of the newest segment. One that could not be written is that of an older segment, and what is
// found of a newer one is believed instead.

const MAGIC: [u8; 8] = *b"LEVERETN";
const HEADER_AT: usize = 16;
/// A longer one is no note: no store has so many segments.
const NOTE_BYTES_MAX: usize = 1 << 20;

/// What a good note says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Note {
    pub(super) segment: SegmentRef,
    pub(super) header: SegmentHeader,
    /// Bytes that it takes in the segment.
    pub(super) header_bytes: u32,
}

/// Whether there is a note, good or not.
fn is_there<D: Disk>(disk: &mut D) -> bool {
    disk.read(NEWEST_SLOT, 0, &mut [0]).map_or(true, |length| length > 0)
}

/// Reads the note; `None` when there is none that is good.
pub(super) fn read<D: Disk>(disk: &mut D) -> Option<Note> {
    let mut bytes = vec![0; BLOCK_BYTES];
    let mut known = disk.read(NEWEST_SLOT, 0, &mut bytes).ok()?;
    if let HeaderRead::Longer(needed) = SegmentHeader::parse(bytes.get(HEADER_AT..known)?) {
        bytes.resize_zeroed(padded(HEADER_AT.saturating_add(needed)).min(NOTE_BYTES_MAX));
        known = disk.read(NEWEST_SLOT, 0, &mut bytes).ok()?;
    }
    let mut input = Input::new(&bytes[..known]);
    let (magic, sum, slot) = (input.take(8)?, input.u32()?, input.u32()?);
    let HeaderRead::Good(header, header_bytes) = SegmentHeader::parse(input.rest()) else { return None };
    let end = HEADER_AT + SegmentHeader::length(input.rest())?;
    let is_good = *magic == MAGIC && sum == crc32c::crc32c(bytes.get(12..end)?);
    let segment = SegmentRef { sequence: header.sequence, slot };
    is_good.then_some(Note { segment, header, header_bytes })
}

/// Writes the note of a segment whose header was just synced; returns the bytes.
///
/// # Errors
/// It cannot be written: an older one may have stayed, or none.
pub(super) fn write<D: Disk>(disk: &mut D, slot: u32, header: &[u8]) -> io::Result<usize> {
    let length = SegmentHeader::length(header).unwrap_or(0);
    let mut bytes = Vec::with_capacity(padded(HEADER_AT + length));
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&slot.to_le_bytes());
    bytes.extend_from_slice(&header[..length]);
    let sum = crc32c::crc32c(&bytes[12..]);
    bytes[8..12].copy_from_slice(&sum.to_le_bytes());
    bytes.resize_zeroed(padded(bytes.len()));
    let is_new = !is_there(disk);
    disk.create(NEWEST_SLOT)?;
    disk.write(NEWEST_SLOT, 0, &bytes)?;
    disk.sync(NEWEST_SLOT)?;
    if is_new {
        disk.sync_directory()?;
    }
    Ok(bytes.len())
}

/// Makes the note that of the segment that a start goes on from, before any file is used again.
///
/// # Errors
/// A note of a newer segment stays, which will be missed when its file is used again.
pub(super) fn renew<D: Disk>(disk: &mut D, active: SegmentRef) -> io::Result<()> {
    let noted = read(disk).map_or(0, |note| note.segment.sequence);
    if noted == active.sequence {
        return Ok(());
    }
    let written = match header_of(disk, active) {
        Some(header) => write(disk, active.slot, &header).map(|_| ()),
        None if noted < active.sequence => return Ok(()),
        None => Err(io::ErrorKind::NotFound.into()),
    };
    match written {
        Err(_) if noted > active.sequence => forget(disk),
        // The next segment will have one.
        _ => Ok(()),
    }
}

/// The header of a segment as it stands there.
fn header_of<D: Disk>(disk: &mut D, segment: SegmentRef) -> Option<Vec<u8>> {
    if segment.sequence == 0 {
        return None;
    }
    let mut bytes = vec![0; BLOCK_BYTES];
    let mut known = disk.read(segment.slot, 0, &mut bytes).ok()?;
    if let HeaderRead::Longer(needed) = SegmentHeader::parse(&bytes[..known]) {
        bytes.resize_zeroed(needed.min(NOTE_BYTES_MAX));
        known = disk.read(segment.slot, 0, &mut bytes).ok()?;
    }
    match SegmentHeader::parse(&bytes[..known]) {
        HeaderRead::Good(header, length) if header.sequence == segment.sequence => {
            bytes.truncate(length as usize);
            Some(bytes)
        }
        _ => None,
    }
}

/// Makes the note say nothing.
///
/// # Errors
/// It stays as it is.
pub fn forget<D: Disk>(disk: &mut D) -> io::Result<()> {
    if disk.read(NEWEST_SLOT, 0, &mut [0]).is_ok_and(|length| length == 0) {
        return Ok(());
    }
    let zeroed = disk.write(NEWEST_SLOT, 0, &[0; BLOCK_BYTES]).and_then(|()| disk.sync(NEWEST_SLOT));
    zeroed.or_else(|_| disk.remove(NEWEST_SLOT).and_then(|()| disk.sync_directory()))
}

// Which segments the files are whose headers cannot be read.
//
// Always true: no two files are the same segment; where no block lies in the wrong file, each is the one that its first
// whole commit is of.

/// A file whose header cannot be read, and what its whole commits say.
pub(super) struct Headless {
    pub(super) slot: u32,
    /// The segments that they are of, in the order of their first, and how many each has.
    said: Vec<(u64, usize)>,
}

impl Headless {
    /// Of a file whose commits say this, one after the other.
    pub(super) fn of(slot: u32, commits: impl Iterator<Item = u64>) -> Self {
        let mut said: Vec<(u64, usize)> = Vec::new();
        for segment in commits {
            match said.iter_mut().find(|(other, _)| *other == segment) {
                Some((_, count)) => *count += 1,
                None => said.push((segment, 1)),
            }
        }
        Self { slot, said }
    }
}

/// Which segment each of these files is, rising: what its first commit says, for behind the newest ones there may be
/// those of an older use. A card may have put a block of another file there. So where two say the same, the one with
/// more such commits is it, and the other is what its next ones say.
pub(super) fn segments_of(mut files: Vec<Headless>) -> Vec<SegmentRef> {
    sort_by_key(&mut files, |file| file.slot);
    loop {
        let claim = |file: &Headless| file.said.first().copied();
        let is_outdone = |at: usize| {
            let (sequence, count) = claim(&files[at])?;
            let others = (0..files.len()).filter(|other| *other != at);
            let mut rivals = others.filter_map(|other| Some((other, claim(&files[other])?)));
            let outdoes =
                |(other, (of, more)): (usize, (u64, usize))| of == sequence && (more, at) > (count, other);
            rivals.any(outdoes).then_some(at)
        };
        match (0..files.len()).find_map(is_outdone) {
            Some(at) => drop(files[at].said.remove(0)),
            None => break,
        }
    }
    let said = |file: &Headless| Some(SegmentRef { sequence: file.said.first()?.0, slot: file.slot });
    let mut found: Vec<SegmentRef> = files.iter().filter_map(said).collect();
    sort_by_key(&mut found, |segment| segment.sequence);
    found
}

#[cfg(test)]
mod headless_tests {
    use super::*;

    fn found(files: &[(u32, &[u64])]) -> Vec<(u64, u32)> {
        let files = files.iter().map(|(slot, said)| Headless::of(*slot, said.iter().copied())).collect();
        segments_of(files).into_iter().map(|SegmentRef { sequence, slot }| (sequence, slot)).collect()
    }

    #[test]
    fn a_file_is_the_segment_that_its_first_commit_is_of() {
        assert_eq!(found(&[(0, &[9, 3, 3, 3]), (1, &[8, 8]), (2, &[])]), [(8, 1), (9, 0)]);
    }

    #[test]
    fn no_segment_is_two_files_and_a_block_of_another_file_does_not_hide_what_is_behind_it() {
        assert_eq!(found(&[(0, &[1, 1, 1]), (1, &[1, 2, 2]), (2, &[3])]), [(1, 0), (2, 1), (3, 2)]);
        assert_eq!(found(&[(0, &[1, 2, 2]), (1, &[1, 1])]), [(1, 1), (2, 0)]);
        // Each has a block of the other first.
        assert_eq!(found(&[(0, &[2, 1, 1]), (1, &[1, 2, 2])]), [(1, 1), (2, 0)]);
        // A whole copy: the lower file is it.
        assert_eq!(found(&[(4, &[7, 7]), (3, &[7, 7])]), [(7, 3)]);
    }
}

// What remains prove about what cannot be read: a start must not take for an unfinished end what is damage,
// nor for somebody else's files what is its own.
//
// A commit is written only after the sync of the one before it. So whatever tells of a later one proves that
// an earlier one was durable, whether or not that later one is whole itself: a header or a footer says how
// many there were, the head of a torn commit says its number. And each commit says whose it is.
//
// Always true: nothing is written; a torn or a hostile head cannot claim more commits than there are blocks
// for them, nor memory: what it says of its length is proven block by block.

/// The records of the last commit, to be written again, and how many they are. That a segment has left is not
/// said again of one that is needed.
pub(super) fn records_again(commit: &Commit<'_>, is_needed: impl Fn(u64) -> bool) -> (Vec<u8>, u32) {
    let (mut again, mut count) = (Vec::with_capacity(commit.records.len()), commit.header.records);
    let mut rest = commit.records;
    while let Ok((record, length)) = Record::parse_known(rest) {
        if matches!(record, Record::Left { segment } if is_needed(segment)) {
            count -= 1;
        } else {
            again.extend_from_slice(&rest[..length]);
        }
        rest = &rest[length..];
    }
    (again, count)
}

/// Bytes read at once to see that a file is empty.
const LOOK_BYTES: usize = 16 * BLOCK_BYTES;

/// Whether anything lies behind an empty header, however far: then the header was not always empty. The files
/// that nothing was ever written to are read for that at every start; there are a few of them at most.
pub(super) fn has_more<D: Disk>(disk: &mut D, slot: u32) -> io::Result<bool> {
    let mut bytes = vec![0; LOOK_BYTES];
    for at in (BLOCK_BYTES as u64..SEGMENT_BYTES_MAX.into()).step_by(LOOK_BYTES) {
        let length = disk.read(slot, at, &mut bytes)?;
        if bytes[..length].iter().any(|byte| *byte != 0) {
            return Ok(true);
        }
        if length < LOOK_BYTES {
            break;
        }
    }
    Ok(false)
}

/// Whose store it is, by the commits in files whose headers are all damaged: what most files say.
pub(super) fn owner_of<D: Disk>(disk: &mut D, found: &[FoundFile]) -> io::Result<Option<Owner>> {
    let mut said = Vec::new();
    for file in found.iter().filter(|file| file.header == HeaderRead::Bad) {
        said.extend(first_owner(disk, file.slot)?);
    }
    Ok(said_most(said))
}

/// Whose the store is when each file says this: what most of them say, and of as many the first.
pub(super) fn said_most<T: Copy + PartialEq>(said: impl IntoIterator<Item = T>) -> Option<T> {
    let mut counted: Vec<(T, usize)> = Vec::new();
    for owner in said {
        match counted.iter_mut().find(|(other, _)| *other == owner) {
            Some((_, count)) => *count += 1,
            None => counted.push((owner, 1)),
        }
    }
    let most = counted.iter().map(|(_, count)| *count).max()?;
    counted.into_iter().find(|(_, count)| *count == most).map(|(owner, _)| owner)
}

fn first_owner<D: Disk>(disk: &mut D, slot: u32) -> io::Result<Option<Owner>> {
    let mut bytes = [0; BLOCK_BYTES];
    for at in (BLOCK_BYTES as u64..SEGMENT_BYTES_MAX.into()).step_by(BLOCK_BYTES) {
        if disk.read(slot, at, &mut bytes)? < BLOCK_BYTES {
            return Ok(None);
        }
        let Some(length) = claimed_length(&bytes) else { continue };
        let owner = Commit::claimed_owner(&bytes).filter(|owner| is_segment_size(owner.segment_bytes));
        if let Some(owner) = owner.filter(|owner| length <= owner.segment_bytes as usize)
            && proven_length(disk, slot, at, owner.identity.seed())?.is_some()
        {
            return Ok(Some(owner));
        }
    }
    Ok(None)
}

/// The number of the last commit that segment `sequence` surely had and that nothing repeats, or 0: the chain stands at
/// its last whole one, its footer says `trailer` or 0, and the header of the `next` segment in the log says that so many
/// were synced before it. The buffer is as long as a segment.
pub(super) fn proven_by_next<D: Disk>(
    disk: &mut ReadAround<'_, D>,
    (sequence, chain, trailer): (u64, &Chain, u64),
    next: Option<(SegmentRef, Option<u64>)>,
    seed: u32,
    buffer: &mut [u8],
) -> io::Result<u64> {
    let next = next.filter(|(next, _)| next.sequence == sequence + 1 && chain.is_adjacent(sequence));
    let Some((next, told)) = next else { return Ok(trailer) };
    let length = if disk.is_unopened(next.slot) { 0 } else { disk.read(next.slot, 0, buffer)? };
    let mut headers = whole_commits(&buffer[..length], BLOCK_BYTES, seed).map(|(_, commit)| commit.header);
    let first = headers.find(|header| header.segment == next.sequence);
    let before = first.map(|first| first.number.saturating_sub(1));
    let missing = before.map(|before| before.saturating_sub(chain.number));
    if first.is_some_and(|first| missing <= Some(first.covers.into())) {
        return Ok(0);
    }
    Ok(told.or(before).unwrap_or(0).max(trailer))
}

/// The newest commit that good headers know to have been synced.
pub(super) fn synced_by_headers(headers: &Headers<'_>) -> u64 {
    headers.iter().map(|(_, _, header)| header.commits).max().unwrap_or(0)
}

/// Whether heads of commits, however damaged, prove that one of the segment with this header was synced. The
/// file's `bytes` have its commits from byte `first` on.
pub(super) fn has_synced(bytes: &[u8], first: u32, header: &SegmentHeader, seed: Option<u32>) -> bool {
    let before = Chain { number: header.commits, life: header.life, ..Chain::default() };
    synced_by_heads(bytes, first as usize, header.sequence, &before, seed) > header.commits
}

/// The newest commit that heads of commits prove to have been synced: they lie in `bytes` from byte `from`
/// on, are of the store with this `seed`, claim to be of segment `sequence` and to come after `chain`.
///
/// A head proves it by its number; and of so many heads, however damaged, all but the last were synced. What
/// makes a head one is whose it says it is: that is secret, so no body of a message can look like one.
///
/// The first commit of a life repeats the last one before it, which may never have been synced. A kill can tear its head,
/// and then the rest of the head, `covers` too, is that of an older use of the file. So `covers` counts as 1 there at least.
pub(super) fn synced_by_heads(
    bytes: &[u8],
    from: usize,
    sequence: u64,
    chain: &Chain,
    seed: Option<u32>,
) -> u64 {
    let (mut proven, mut heads, mut life) = (0, 0, chain.life);
    for at in (from..bytes.len()).step_by(BLOCK_BYTES) {
        let claim = Claim::read(&bytes[at..]).filter(|claim| Some(claim.identity.seed()) == seed);
        let Some(Claim { header, .. }) = claim else { continue };
        let covers = header.covers.max(u32::from(header.life > life));
        life = life.max(header.life);
        let most = chain.number + ((at - from) / BLOCK_BYTES) as u64 + 1;
        let is_next = header.number > chain.number && header.number <= most;
        // What an older use of the file left has another segment and an older number; damage hits one of
        // them. What a commit repeats may never have been synced.
        heads += u64::from((header.segment == sequence || is_next) && covers == 0);
        if header.segment == sequence && header.life >= chain.life && header.number <= most {
            proven = proven.max(header.number.saturating_sub(1 + u64::from(covers)));
        }
    }
    if heads > 1 { proven.max(chain.number + heads - 1) } else { proven }
}

#[cfg(test)]
mod sync_proof_tests {
    use super::*;
    use crate::commit::{CommitHeader, begin, finish};
    use crate::segment::Identity;

    /// A kill tears the head of the first commit of a life, and the rest of the head is that of an older use of the file.
    #[test]
    fn the_first_head_of_a_life_proves_nothing_of_the_commit_that_it_repeats() {
        let owner =
            Owner { identity: Identity { id: *b"0123456789abcdef", secret: 5 }, segment_bytes: 1 << 20 };
        let head = |life, number| {
            let (time_ms, records, covers, has_group) = (1, 1, 0, false);
            let header = CommitHeader { life, number, segment: 15, time_ms, records, covers, has_group };
            let mut buffer = Vec::new();
            begin(&mut buffer);
            finish(&mut buffer, &header, &owner);
            buffer
        };
        let chain = Chain { number: 158, life: 4, ..Chain::default() };
        let proven = |bytes: &[u8]| synced_by_heads(bytes, 0, 15, &chain, Some(owner.identity.seed()));
        let lost = vec![0; BLOCK_BYTES];
        assert_eq!(proven(&[lost.clone(), head(5, 160)].concat()), 158);
        assert_eq!(proven(&[head(4, 159), head(5, 160)].concat()), 158);
        assert_eq!(proven(&[lost, head(5, 160), head(5, 161)].concat()), 160);
        assert_eq!(proven(&[head(4, 159), head(4, 160)].concat()), 159);
    }
}
