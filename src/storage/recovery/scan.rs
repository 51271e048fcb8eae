//! Finds the commits of the log in the bytes of a segment.

use core::ops::Range;

use crate::commit::{BLOCK_BYTES, COMMIT_HEADER_BYTES, Commit, CommitHeader, valid_commits};
use crate::footer::Trailer;

/// The state of the chain of commits: fields of the last commit read. Commits of the log have consecutive numbers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chain {
    pub(super) segment: u64,
    pub(super) epoch: u32,
    pub(super) number: u64,
    /// Whether `number` is the number of the last commit written up to this point of the log.
    pub(super) is_known: bool,
    /// The highest broker time in any commit so far.
    pub(super) time_ms: u64,
    pub(super) repeats: u32,
}

impl Chain {
    /// Returns the state after the last commit of a segment with this trailer.
    pub(super) const fn after(trailer: &Trailer) -> Self {
        let Trailer { epoch, sequence: segment, number, time_ms } = *trailer;
        Self { segment, epoch, number, is_known: true, time_ms, repeats: 0 }
    }

    /// Returns whether the commit numbers of `segment` must continue those of the chain. They need not if a segment
    /// between them was removed.
    pub(super) const fn is_adjacent(&self, segment: u64) -> bool {
        self.is_known && segment <= self.segment + 1
    }

    /// Advances the state to a commit.
    pub(super) fn advance(&mut self, header: &CommitHeader) {
        let CommitHeader { epoch, number, segment, time_ms, repeats, .. } = *header;
        *self = Self { segment, epoch, number, is_known: true, time_ms: time_ms.max(self.time_ms), repeats };
    }
}

/// A whole commit found by a [`CommitWalk`].
pub(super) struct WholeCommit {
    /// The bytes from the end of the previous commit to the start of this one.
    pub(super) gap: Range<u32>,
    /// Number of commits missing before it, if that is known.
    pub(super) missing: Option<u64>,
    pub(super) header: CommitHeader,
    /// Location of its records.
    pub(super) records: Range<u32>,
    /// End of the commit, padding included.
    pub(super) end: u32,
}

impl WholeCommit {
    /// Returns whether this commit repeats all missing commits, so that nothing was lost with them.
    pub(super) fn repeats_missing(&self) -> bool {
        self.missing.is_none_or(|missing| missing <= u64::from(self.header.repeats))
    }
}

/// A walk over the commits in one segment's bytes.
///
/// ```text
/// segment | header | commit 7 | commit 8 | damaged, or foreign | commit 10 | ...
///                             ^          ^ tail                ^ at
///                     a step reports the gap before its commit (tail..at, maybe empty) and the number of missing commits
/// ```
///
/// # Invariants
/// - Each step returns a whole commit of this segment. Its number is higher, and its epoch not lower, than in every
///   commit before.
/// - The same bytes and the same chain give the same steps.
pub(super) struct CommitWalk {
    sequence: u64,
    seed: u32,
    at: usize,
    /// End of the last commit.
    pub(super) tail: u32,
}

impl CommitWalk {
    /// Begins at offset `first` of segment `sequence`.
    pub(super) const fn new(sequence: u64, seed: u32, first: u32) -> Self {
        Self { sequence, seed, at: first as usize, tail: first }
    }

    /// Returns the next whole commit, or `None` at the end of `bytes`. `bytes` is the content of the segment, without
    /// its footer. The caller handles the missing commits and then advances the chain.
    pub(super) fn next(&mut self, bytes: &[u8], chain: &Chain) -> Option<WholeCommit> {
        while self.at < bytes.len() {
            let (at, rest) = (self.at, &bytes[self.at..]);
            let Some(commit) = Commit::parse(rest, self.seed) else {
                self.at += BLOCK_BYTES;
                continue;
            };
            // A truncated file may end within the padding of this commit.
            let behind = rest.get(commit.bytes()..).unwrap_or_default();
            let (begin, end) = (at as u32, (at + commit.bytes()) as u32);
            let Commit { header, records } = commit;
            let belongs = header.follows(self.sequence, chain.epoch, chain.number)
                && !is_misplaced(&header, chain.number, behind, self.seed);
            if !belongs {
                self.at += BLOCK_BYTES;
                continue;
            }
            let missing = chain.is_adjacent(self.sequence).then(|| header.number - chain.number - 1);
            let first = begin + COMMIT_HEADER_BYTES as u32;
            let (gap, records) = (self.tail..begin, first..first + records.len() as u32);
            (self.at, self.tail) = (end as usize, end);
            return Some(WholeCommit { gap, missing, header, records, end });
        }
        None
    }
}

/// Returns whether the flash has moved a commit to the place of an older one. Then the commit's number skips others,
/// and the next commit in `behind` has one of the skipped numbers. `before` is the number of the previous commit.
fn is_misplaced(header: &CommitHeader, before: u64, behind: &[u8], seed: u32) -> bool {
    if header.number == before + 1 {
        return false;
    }
    let mut behind = valid_commits(behind, 0, seed).map(|(_, commit)| commit.header);
    let next = behind.find(|next| next.segment == header.segment && next.number > before);
    next.is_some_and(|next| next.number < header.number && next.epoch <= header.epoch)
}
