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

use super::chain::Chain;
use super::commit::{BLOCK_BYTES, COMMIT_HEADER_BYTES, Commit, padded};
use super::disk::Disk;
use super::footer::{self, Footer};
use super::reader::{Newest, Pass, Reader};
use super::record::Record;
use super::record_walk::apply_records;
use super::report::SetAside;
use super::salvage;
use super::segment::{FoundFile, HeaderRead, Headers, SegmentHeader, SegmentRef};
use super::slots::Slot;
use super::sync_proof::{has_more, records_again, synced_by_headers, synced_by_heads};

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
                salvage::note(&mut footer, &self.bytes, place);
            }
            let records = commit_at(*at).map(|commit| commit.records).unwrap_or_default();
            footer.note_records(records, at + COMMIT_HEADER_BYTES as u32);
        }
        served.for_each(|place| salvage::note(&mut footer, &self.bytes, place));
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
