//! The segment that is written: where its next commit goes, and what is noted of it for its footer.
//!
//! Always true: commits lie one behind the other from the header on, and the next one goes to the tail; what
//! the footer notes lies before the tail, but for what [`ActiveSegment::note`] was told last, which is undone
//! or followed by [`ActiveSegment::advance`].

use super::commit::{BLOCK_BYTES, COMMIT_HEADER_BYTES, padded};
use super::footer::Footer;
use super::segment::SegmentRef;

/// A commit that fills a segment up is worth its sync from one in so many parts of the largest on.
const FILLING_PART: usize = 8;

/// The segment that is written.
#[derive(Debug)]
pub(super) struct ActiveSegment {
    segment: SegmentRef,
    segment_bytes: u32,
    /// The next commit goes here; the segment's size when it is sealed.
    tail: u32,
    footer: Footer,
    sequence_max: u64,
}

impl ActiveSegment {
    /// What a start found; none has had a sequence above `sequence_max`.
    pub(super) fn new(
        (segment, segment_bytes): (SegmentRef, u32),
        (tail, footer): (u32, Footer),
        sequence_max: u64,
    ) -> Self {
        let footer = footer.with_room(segment_bytes);
        Self { segment, segment_bytes, tail, footer, sequence_max }
    }

    /// Which it is, and its file.
    pub(super) const fn segment(&self) -> SegmentRef {
        self.segment
    }

    /// Which it is; 0 when there is none yet.
    pub(super) const fn sequence(&self) -> u64 {
        self.segment.sequence
    }

    /// Its file.
    pub(super) const fn slot(&self) -> u32 {
        self.segment.slot
    }

    /// Where the next commit goes, in bytes from its start.
    pub(super) const fn tail(&self) -> u32 {
        self.tail
    }

    /// What is noted of it.
    pub(super) const fn footer(&self) -> &Footer {
        &self.footer
    }

    /// Whether it was sealed by another life, or there is none yet.
    pub(super) const fn is_sealed(&self) -> bool {
        self.tail == self.segment_bytes || self.segment.sequence == 0
    }

    /// Notes the records of the next commit, which goes to the tail.
    pub(super) fn note(&mut self, records: &[u8]) {
        self.footer.note_records(records, self.tail + COMMIT_HEADER_BYTES as u32);
    }

    /// What was noted last goes elsewhere.
    pub(super) fn undo(&mut self) {
        self.footer.undo();
    }

    /// A commit of so many bytes, whole blocks, was put at the tail.
    pub(super) const fn advance(&mut self, bytes: usize) {
        self.tail += bytes as u32;
    }

    /// Takes what is noted, for the footer is to be written, and an empty one for the next segment.
    pub(super) fn replace_footer(&mut self, empty: Footer) -> Footer {
        self.footer.replace(empty)
    }

    /// The next segment begins in this file; its header follows with [`Self::begin`].
    pub(super) const fn open(&mut self, slot: u32) {
        self.sequence_max += 1;
        self.segment = SegmentRef { sequence: self.sequence_max, slot };
    }

    /// Its header takes so many bytes, and so many of its footer are kept for the names of queues.
    pub(super) fn begin(&mut self, header_bytes: usize, names_bytes: usize) {
        self.tail = header_bytes as u32;
        self.footer.clear();
        self.footer.keep_room_for_names(names_bytes);
    }

    // ---- room

    /// Bytes behind the tail.
    const fn rest(&self) -> usize {
        (self.segment_bytes - self.tail) as usize
    }

    /// Whether so many bytes are left, its footer left out.
    pub(super) const fn holds(&self, commit_bytes: usize) -> bool {
        commit_bytes <= self.rest()
    }

    /// Whether its footer, of which what is to be written is noted already, still has its place behind it.
    pub(super) const fn holds_with_footer(&self, commit_bytes: usize) -> bool {
        commit_bytes + padded(self.footer.bytes_max()) <= self.rest()
    }

    /// Whether a commit of so many bytes, of which nothing is noted yet, leaves room for the footer.
    pub(super) fn fits(&self, commit_bytes: usize) -> bool {
        let footer = padded(self.footer.bytes_max() + Footer::bytes_max_of(commit_bytes));
        commit_bytes + footer <= self.rest()
    }

    /// The most bytes of a commit that goes into it; where it is the last there is, its footer gives way.
    pub(super) fn commit_room(&self, is_last: bool) -> usize {
        if is_last {
            return self.rest();
        }
        let room = self.rest().saturating_sub(padded(self.footer.bytes_max()));
        room / 2 / BLOCK_BYTES * BLOCK_BYTES
    }

    /// About the most bytes of a commit that fills it up, and leaves room for its footer: so little of it
    /// stays unused. 0 when a commit of so few is not worth its sync.
    #[inline]
    pub(super) fn filling_room(&self, commit_bytes_max: usize) -> usize {
        let (tail, footer) = (self.tail as usize, self.footer.bytes_max());
        let room = (self.segment_bytes as usize).saturating_sub(tail + footer);
        let commit =
            (room as u64 * tail as u64 / (tail + footer) as u64) as usize / BLOCK_BYTES * BLOCK_BYTES;
        let commit = commit.saturating_sub(BLOCK_BYTES);
        if commit * FILLING_PART < commit_bytes_max { 0 } else { commit }
    }

    /// Bytes that may still go into it, roughly and rather too few.
    pub(super) fn room_bytes(&self, commit_bytes_max: u32) -> u64 {
        let used = u64::from(self.tail) + self.footer.bytes_max() as u64 + 2 * u64::from(commit_bytes_max);
        u64::from(self.segment_bytes).saturating_sub(used)
    }
}
