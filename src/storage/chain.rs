//! The chain of commits, and the walk along it through one segment.
//!
//! ```text
//! segment | header | commit 7 | commit 8 | damaged, or another's | commit 10 | ...
//!                             ^          ^ tail                  ^ at
//!                     what a step has before it: nothing, or a gap (tail..at) and how many are missing in it
//! ```
//!
//! Always true: a step is a whole commit of this segment whose number is above, and whose life is not below, those of
//! every one before it; the same bytes and the same chain give the same steps.

use core::ops::Range;

use super::commit::{BLOCK_BYTES, COMMIT_HEADER_BYTES, Commit, CommitHeader, whole_commits};

/// Where the chain of commits stands: what its last commit says.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chain {
    pub(super) segment: u64,
    pub(super) life: u32,
    pub(super) number: u64,
    /// The number is that of the last commit there was.
    pub(super) is_known: bool,
    /// The latest that any of its commits says.
    pub(super) time_ms: u64,
    pub(super) covers: u32,
}

impl Chain {
    /// Whether the numbers of a segment's commits go on where the chain stands. Segments that left the log took their
    /// numbers with them.
    pub(super) const fn is_adjacent(&self, segment: u64) -> bool {
        self.is_known && segment <= self.segment + 1
    }

    /// Goes on to a commit.
    pub(super) fn advance(&mut self, header: &CommitHeader) {
        let CommitHeader { life, number, segment, time_ms, covers, .. } = *header;
        *self = Self { segment, life, number, is_known: true, time_ms: time_ms.max(self.time_ms), covers };
    }
}

/// A whole commit.
pub(super) struct Step {
    /// From the end of the one before it to its first byte.
    pub(super) gap: Range<u32>,
    /// Commits that are missing before it, if that is known.
    pub(super) missing: Option<u64>,
    pub(super) header: CommitHeader,
    /// Where its records lie.
    pub(super) records: Range<u32>,
    /// Where it ends, padding included.
    pub(super) end: u32,
}

impl Step {
    /// Whether nothing was lost with what is missing before it, for it repeats that.
    pub(super) fn covers_gap(&self) -> bool {
        self.missing.is_none_or(|missing| missing <= u64::from(self.header.covers))
    }
}

/// A walk through one segment's bytes.
pub(super) struct CommitWalk {
    sequence: u64,
    seed: u32,
    at: usize,
    /// Behind the last commit.
    pub(super) tail: u32,
}

impl CommitWalk {
    /// Begins at byte `first` of segment `sequence`.
    pub(super) const fn new(sequence: u64, seed: u32, first: u32) -> Self {
        Self { sequence, seed, at: first as usize, tail: first }
    }

    /// The next commit in `bytes`, which are the segment up to where commits end; the chain goes on to it when the
    /// caller has seen to what is missing.
    pub(super) fn next(&mut self, bytes: &[u8], chain: &Chain) -> Option<Step> {
        while self.at < bytes.len() {
            let (at, rest) = (self.at, &bytes[self.at..]);
            let Some(commit) = Commit::parse(rest, self.seed) else {
                self.at += BLOCK_BYTES;
                continue;
            };
            // A file that was cut short may end in a commit's padding.
            let behind = rest.get(commit.bytes()..).unwrap_or_default();
            let (begin, end) = (at as u32, (at + commit.bytes()) as u32);
            let Commit { header, records } = commit;
            let belongs = header.follows(self.sequence, (chain.life, chain.number))
                && !is_misplaced(&header, chain.number, behind, self.seed);
            if !belongs {
                self.at += BLOCK_BYTES;
                continue;
            }
            let missing = chain.is_adjacent(self.sequence).then(|| header.number - chain.number - 1);
            let first = begin + COMMIT_HEADER_BYTES as u32;
            let (gap, records) = (self.tail..begin, first..first + records.len() as u32);
            (self.at, self.tail) = (end as usize, end);
            return Some(Step { gap, missing, header, records, end });
        }
        None
    }
}

/// Whether a commit that leaves others out stands where one of them was, because the card has put its block
/// there: then the next one behind it belongs before it. `before` is the number of the last one before it.
fn is_misplaced(header: &CommitHeader, before: u64, behind: &[u8], seed: u32) -> bool {
    if header.number == before + 1 {
        return false;
    }
    let mut behind = whole_commits(behind, 0, seed).map(|(_, commit)| commit.header);
    let next = behind.find(|next| next.segment == header.segment && next.number > before);
    next.is_some_and(|next| next.number < header.number && next.life <= header.life)
}
