//! One segment's bytes taken apart: commits, what lies between them, records, and the end.
//!
//! The commits are read one by one even where a footer would do, because what is asked here is whether they
//! are as they were written. A footer is used for what it alone knows: which records lay where nothing can
//! be read now.
//!
//! Always true: the same bytes and the same chain give the same events; a record is handed out only when its
//! own checksum holds, at a place where a record of the log must begin; whatever the bytes, nothing panics.

use super::event::{End, Event, FoundFooter, Gap, Tail, Trust, Walk};
use super::salvage;
use crate::chain::{Chain, CommitWalk};
use crate::commit::{BLOCK_BYTES, Claim, Commit, CommitHeader};
use crate::footer::{self, Footer, Lengths, Trailer};
use crate::format::Format;
use crate::parts::part_seed;
use crate::record::{Record, RecordError};
use crate::salvage::claimed_extent;

impl<'a> Walk<'a> {
    /// Walks through the segment, and hands every record to `each`.
    pub(super) fn run(&self, chain: &mut Chain, each: &mut dyn FnMut(Event<'_>)) -> End {
        let footer = self.footer();
        let end = footer.as_ref().map_or(self.bytes.len(), |footer| footer.from as usize);
        // A start goes by the footer: a whole commit that lies over others is none for it.
        let others = footer.as_ref().map_or_else(Vec::new, |footer| salvage::overwritten(self, footer));
        let mut commits = CommitWalk::new(self.sequence, self.seed.unwrap_or(0), self.first);
        let (mut again, mut has_gap) = (Footer::default(), false);
        // Without a seed no commit is known as one.
        let known = self.bytes.get(..end).filter(|_| self.seed.is_some()).unwrap_or_default();
        while let Some(step) = commits.next(known, chain, &others) {
            let (from, at) = (step.gap.start as usize, step.gap.end as usize);
            if let Some(gap) = self.gap(from, at, Some(&step.header), chain, footer.as_ref(), each) {
                has_gap = true;
                each(Event::Gap(gap));
            }
            let records = &known[step.records.start as usize..step.records.end as usize];
            let commit = Commit { header: step.header, records };
            each(Event::Commit(at as u32, &commit));
            self.records(&commit, step.records.start, each);
            again.note_records(records, step.records.start);
            chain.advance(&step.header);
        }
        let tail = commits.tail as usize;
        let is_footer_damaged = match &footer {
            Some(found) if has_gap || found.trailer.number > chain.number => found.messages(|_| {}).is_none(),
            Some(found) => !salvage::agrees(self, tail, found),
            None => !self.is_newest && self.has_room_for(&again, tail, chain.format),
        };
        self.end(tail, chain, footer.as_ref(), each);
        let footer_bytes = footer.as_ref().map(|footer| self.segment_bytes - footer.from);
        End { tail: tail as u32, footer_bytes, is_footer_damaged }
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
        let missing =
            last.filter(|_| chain.is_adjacent(self.sequence)).map(|last| last.saturating_sub(chain.number));
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
                *chain = footer.trailer.chain();
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
