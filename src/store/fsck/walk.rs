//! One segment's bytes taken apart: commits, what lies between them, records, and the end.
//!
//! The commits are read one by one even where a footer would do, because what is asked here is whether they
//! are as they were written. A footer is used for what it alone knows: which records lay where nothing can
//! be read now.
//!
//! Always true: the same bytes and the same chain give the same events; a record is handed out only when its
//! own checksum holds, at a place where a record of the log must begin; whatever the bytes, nothing panics.

use super::salvage::{self, Salvaged};
use crate::store::build::for_each_record;
use crate::store::commit::{BLOCK_BYTES, COMMIT_HEADER_BYTES, Claim, Commit, CommitHeader};
use crate::store::footer::{self, Footer, Lengths, Trailer};
use crate::store::format::Format;
use crate::store::index::Place;
use crate::store::parts::{BodyPartBlock, Entry, part_seed};
use crate::store::reader;
use crate::store::record::{Record, RecordError, Target};
use crate::store::salvage::claimed_extent;
use crate::store::sync_proof::is_misplaced;

/// Where the chain of commits stands.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chain {
    /// Of the last commit.
    pub(super) format: Format,
    pub(super) segment: u64,
    pub(super) life: u32,
    pub(super) number: u64,
    pub(super) time_ms: u64,
}

impl Chain {
    /// As a start has it.
    pub(super) fn of_reader(&self) -> reader::Chain {
        let Self { segment, life, number, time_ms, .. } = *self;
        reader::Chain { segment, life, number, time_ms, covers: 0 }
    }
}

/// How far a record can be trusted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trust {
    /// Its commit is whole.
    Whole,
    /// Its commit is damaged, but the record is not.
    Salvaged,
    /// It lies in the commit at the very end, which is not whole: nobody may ever have built upon it.
    Tail,
}

/// What is found, in the order of the segment.
pub(super) enum Event<'e> {
    /// A whole commit and its first byte; its records follow.
    Commit(u32, &'e Commit<'e>),
    /// A record; its commit's header if that could be read.
    Record { place: Place, record: &'e Record<'e>, commit: Option<&'e CommitHeader>, trust: Trust },
    /// A record of a whole commit that this version does not understand.
    Strange(Place),
    /// Where a message went that a footer knows and that cannot be read.
    Lost(&'e [Target]),
    /// Bytes where commits were. Its records came before it.
    Gap(Gap),
    /// A commit at the end that is not whole. Its records came before it.
    Tail(Tail),
}

/// Bytes where commits were.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gap {
    pub(super) from: u32,
    pub(super) to: u32,
    /// Commits that are missing, as far as that is known.
    pub(super) commits: Option<u64>,
    /// The last commit before it.
    pub(super) after: u64,
    /// The next commit repeats all that was there.
    pub(super) covered: bool,
    /// It ends with the segment: the next one may repeat what was there.
    pub(super) trailing: bool,
    /// What could be read nevertheless.
    pub(super) salvaged: Salvaged,
}

/// A commit at the end that is not whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tail {
    /// The file.
    pub slot: u32,
    /// Its place in the log.
    pub segment: u64,
    /// Where the commit begins.
    pub from: u32,
    /// Records of it that can be read; [`Trust::Tail`].
    pub records_read: u64,
}

/// A footer whose trailer and facts are whole.
pub(super) struct FoundFooter<'a> {
    pub(super) trailer: Trailer,
    facts: &'a [u8],
    parts: &'a [u8],
    seed: u32,
    /// Where it begins, zeros before it included.
    pub(super) from: u32,
}

/// What an end was like.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    /// Behind the last commit.
    pub(super) tail: u32,
    /// Bytes of the footer; `None` when there is none whose trailer is whole.
    pub(super) footer_bytes: Option<u32>,
    /// The footer is not what was written.
    pub(super) is_footer_damaged: bool,
}

/// A segment as it was read.
pub(super) struct Walk<'a> {
    /// As much of its file as could be read.
    pub(super) bytes: &'a [u8],
    pub(super) slot: u32,
    pub(super) sequence: u64,
    /// Where its first commit must begin.
    pub(super) first: u32,
    pub(super) segment_bytes: u32,
    /// What checksums of commits start from; without it there are none.
    pub(super) seed: Option<u32>,
    /// No later segment follows: what is not whole at its end is a commit that was cut.
    pub(super) is_newest: bool,
    /// The life that opened it, if its header is whole.
    pub(super) opened_by: Option<u32>,
    /// The number of the last commit at its end that something behind it proves to have been synced, or 0.
    pub(super) proven: u64,
}

impl FoundFooter<'_> {
    /// See [`footer::for_each_fact`].
    pub(super) fn for_each_fact(&self, segment: u64, each: impl FnMut(&Record<'_>, Place)) -> Option<()> {
        footer::for_each_fact(self.trailer.format, self.facts, segment, each)
    }

    /// The records of the names in it.
    pub(super) fn names(&self) -> Vec<Vec<u8>> {
        let mut names = Vec::new();
        if self.trailer.format >= Format::Two {
            // A checked footer makes sense.
            let _ = footer::for_each_name(self.facts, |record| names.push(record.to_vec()));
        }
        names
    }

    /// Calls `each` with every message in every queue; `None` when something of that is damaged.
    pub(super) fn messages(&self, mut each: impl FnMut(&Entry)) -> Option<()> {
        let mut at = 0;
        while at < self.parts.len() {
            let block = BodyPartBlock::parse(&self.parts[at..], self.seed)?;
            block.entries().for_each(|entry| each(&entry));
            at += block.stride;
        }
        Some(())
    }
}

impl<'a> Walk<'a> {
    /// Walks through the segment, and hands every record to `each`.
    pub(super) fn run(&self, chain: &mut Chain, each: &mut dyn FnMut(Event<'_>)) -> End {
        let footer = self.footer();
        let end = footer.as_ref().map_or(self.bytes.len(), |footer| footer.from as usize);
        // A start goes by the footer: a whole commit that lies over others is none for it.
        let others = footer.as_ref().map_or_else(Vec::new, |footer| salvage::overwritten(self, footer));
        let (mut at, mut tail) = (self.first as usize, self.first as usize);
        let (mut again, mut has_gap) = (Footer::default(), false);
        while at < end {
            let belongs = |commit: &Commit<'a>| {
                let behind = self.bytes.get(at + commit.bytes()..end).unwrap_or_default();
                let is_misplaced = |seed| is_misplaced(&commit.header, chain.number, behind, seed);
                let extent = at as u32..(at + commit.bytes()) as u32;
                self.follows(&commit.header, chain)
                    && !self.seed.is_some_and(is_misplaced)
                    && !others.iter().any(|other| other.start < extent.end && extent.start < other.end)
            };
            let Some(commit) = self.commit_at(at, end).filter(belongs) else {
                at += BLOCK_BYTES;
                continue;
            };
            if let Some(gap) = self.gap(tail, at, Some(&commit.header), chain, footer.as_ref(), each) {
                has_gap = true;
                each(Event::Gap(gap));
            }
            each(Event::Commit(at as u32, &commit));
            let first = at + COMMIT_HEADER_BYTES;
            self.records(&commit, first as u32, each);
            again.note_records(commit.records, first as u32);
            *chain = chain_behind(&commit.header, chain);
            at += commit.bytes();
            tail = at;
        }
        let is_footer_damaged = match &footer {
            Some(found) if has_gap || found.trailer.number > chain.number => found.messages(|_| {}).is_none(),
            Some(found) => !salvage::agrees(self, tail, found),
            None => !self.is_newest && self.has_room_for(&again, tail, chain.format),
        };
        self.end(tail, chain, footer.as_ref(), each);
        let footer_bytes = footer.as_ref().map(|footer| self.segment_bytes - footer.from);
        End { tail: tail as u32, footer_bytes, is_footer_damaged }
    }

    /// Whether some commit of this segment is whole.
    pub(super) fn has_commit(&self) -> bool {
        let blocks = (self.first as usize..self.bytes.len()).step_by(BLOCK_BYTES);
        blocks.into_iter().any(|at| self.is_commit_at(at))
    }

    /// The segments that its whole commits say have left the log, each with the number of the commit, and the
    /// number of the last commit.
    pub(super) fn left(&self) -> (Vec<(u64, u64)>, Option<u64>) {
        let (mut at, mut left, mut last) = (self.first as usize, Vec::new(), None);
        while at < self.bytes.len() {
            let commit = self.commit_at(at, self.bytes.len());
            let Some(commit) = commit.filter(|commit| commit.header.segment == self.sequence) else {
                at += BLOCK_BYTES;
                continue;
            };
            for_each_record(commit.records, 0, |record, _| {
                if let Record::Left { segment } = record {
                    left.push((*segment, commit.header.number));
                }
            });
            last = Some(commit.header.number);
            at += commit.bytes();
        }
        (left, last)
    }

    /// Whether a whole commit of this segment begins at byte `at`.
    pub(super) fn is_commit_at(&self, at: usize) -> bool {
        let commit = self.commit_at(at, self.bytes.len());
        commit.is_some_and(|commit| commit.header.segment == self.sequence)
    }

    fn commit_at(&self, at: usize, end: usize) -> Option<Commit<'a>> {
        let bytes = self.bytes.get(at..end)?;
        Commit::parse(bytes, self.seed?)
    }

    fn follows(&self, header: &CommitHeader, chain: &Chain) -> bool {
        header.segment == self.sequence && header.life >= chain.life && header.number > chain.number
    }

    /// The footer, if it is whole but for its parts.
    pub(super) fn footer(&self) -> Option<FoundFooter<'a>> {
        let (bytes, seed) = (self.bytes, self.seed?);
        if bytes.len() != self.segment_bytes as usize {
            return None;
        }
        let lengths = Lengths::claimed(bytes, bytes.len())?;
        let from = bytes.len() - lengths.footer();
        let (parts, facts) = bytes.get(from..)?.split_at_checked(lengths.parts)?;
        let facts = facts.get(..lengths.facts)?;
        let trailer = footer::parse(facts, bytes, seed)?;
        let seed = part_seed(seed, self.sequence);
        let from = from as u32;
        (trailer.sequence == self.sequence).then_some(FoundFooter { trailer, facts, parts, seed, from })
    }

    /// Whether a footer would have fit: then it was written, before the next segment was begun.
    fn has_room_for(&self, again: &Footer, tail: usize, format: Format) -> bool {
        let (mut bytes, mut parts) = (Vec::new(), Vec::new());
        let trailer = Trailer { format, life: 0, sequence: self.sequence, number: 0, time_ms: 0 };
        again.finish(&trailer, 0, &mut bytes, &mut parts);
        self.bytes.len() == self.segment_bytes as usize && tail + bytes.len() <= self.bytes.len()
    }

    fn records(&self, commit: &Commit<'a>, first: u32, each: &mut dyn FnMut(Event<'_>)) {
        let mut rest = commit.records;
        while !rest.is_empty() {
            let at = first + (commit.records.len() - rest.len()) as u32;
            let length = match Record::parse(rest) {
                Ok((record, length)) => {
                    let place = self.place(at, length);
                    let commit = Some(&commit.header);
                    each(Event::Record { place, record: &record, commit, trust: Trust::Whole });
                    length
                }
                Err(RecordError::End) => return,
                Err(_) => {
                    let length = claimed_extent(rest).unwrap_or(rest.len()).min(rest.len());
                    each(Event::Strange(self.place(at, length)));
                    length
                }
            };
            rest = &rest[length..];
        }
    }

    pub(super) const fn place(&self, at: u32, length: usize) -> Place {
        Place { segment: self.sequence, at, bytes: length as u32 }
    }

    /// What is missing between the end of one commit and the start of the next, if anything is.
    fn gap(
        &self,
        from: usize,
        to: usize,
        next: Option<&CommitHeader>,
        chain: &Chain,
        footer: Option<&FoundFooter<'a>>,
        each: &mut dyn FnMut(Event<'_>),
    ) -> Option<Gap> {
        let last = next.map(|next| next.number - 1).or(footer.map(|footer| footer.trailer.number));
        // Segments that left the log took their numbers with them.
        let is_adjacent = chain.number > 0 && self.sequence <= chain.segment + 1;
        let missing = last.filter(|_| is_adjacent).map(|last| last.saturating_sub(chain.number));
        if missing == Some(0) || (missing.is_none() && from == to) {
            return None;
        }
        let covered = next.is_some_and(|next| u64::from(next.covers) >= missing.unwrap_or(1));
        let by_footer = footer.map(|footer| salvage::by_footer(self, from as u32..to as u32, footer, each));
        let mut salvaged = match by_footer {
            Some(salvaged) if salvaged.lost.is_some() => salvaged,
            _ => salvage::by_chain(self, from..to, chain, next, last.unwrap_or(0), each),
        };
        // Where there is no room for them here, they were at the end of the segment before.
        salvaged.lost = salvaged.lost.filter(|_| from < to);
        let (from, to, trailing) = (from as u32, to as u32, next.is_none());
        Some(Gap { from, to, commits: missing, after: chain.number, covered, trailing, salvaged })
    }

    /// What lies behind the last commit.
    fn end(
        &self,
        tail: usize,
        chain: &mut Chain,
        footer: Option<&FoundFooter<'a>>,
        each: &mut dyn FnMut(Event<'_>),
    ) {
        if let Some(footer) = footer {
            if footer.trailer.number > chain.number
                && let Some(gap) = self.gap(tail, footer.from as usize, None, chain, Some(footer), each)
            {
                each(Event::Gap(gap));
                let Trailer { format, life, number, time_ms, .. } = footer.trailer;
                *chain = Chain { format, segment: self.sequence, life, number, time_ms };
            }
            return;
        }
        let is_claimed = self
            .bytes
            .get(tail..)
            .and_then(Claim::read)
            .is_some_and(|claim| salvage::is_likely(&claim, self.sequence, chain, None));
        let has_remains = || self.is_newest && self.has_remains(tail, chain);
        if !is_claimed && !has_remains() {
            return;
        }
        let salvaged = salvage::by_chain(self, tail..self.bytes.len(), chain, None, self.proven, each);
        let (from, to) = (tail as u32, self.bytes.len() as u32);
        each(if self.is_newest {
            Event::Tail(Tail { slot: self.slot, segment: self.sequence, from, records_read: salvaged.read })
        } else {
            Event::Gap(Gap {
                from,
                to,
                commits: None,
                after: chain.number,
                covered: false,
                trailing: true,
                salvaged,
            })
        });
    }

    /// Whether something was written behind the last commit that is neither whole nor old. That is known
    /// only of a file that was never another segment, and when no other life was cut in it.
    fn has_remains(&self, tail: usize, chain: &Chain) -> bool {
        let Some(rest) = self.bytes.get(tail..) else { return false };
        let is_one_life = self.opened_by == Some(chain.life) && chain.segment == self.sequence;
        let was_used = Lengths::claimed(self.bytes, self.segment_bytes as usize).is_some()
            || (0..rest.len()).step_by(BLOCK_BYTES).any(|at| {
                let claim = Claim::read(&rest[at..]);
                claim.is_some_and(|claim| claim.has_magic && claim.header.segment < self.sequence)
            });
        is_one_life && !was_used && rest.iter().any(|byte| *byte != 0)
    }
}

fn chain_behind(header: &CommitHeader, chain: &Chain) -> Chain {
    Chain {
        format: header.format,
        segment: header.segment,
        life: header.life,
        number: header.number,
        time_ms: header.time_ms.max(chain.time_ms),
    }
}
