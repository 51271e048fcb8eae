//! What a walk over a segment is given, and what it tells.

use crate::commit::{Commit, CommitHeader};
use crate::footer::{self, Trailer};
use crate::format::Format;
use crate::parts::{BodyPartBlock, Entry};
use crate::place::Place;
use crate::record::{Record, Target};

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

/// What was found of commits that are not whole.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Salvaged {
    /// Records that could be read.
    pub(super) read: u64,
    /// Records that could not, if that is known.
    pub(super) lost: Option<u64>,
    /// Of those that could not, the ones of which nobody knows what they were.
    pub(super) unknown: u64,
    /// Commits that there surely were.
    pub(super) commits: u64,
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
    pub(super) facts: &'a [u8],
    pub(super) parts: &'a [u8],
    pub(super) seed: u32,
    /// Where it begins, zeros before it included.
    pub(super) from: u32,
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

impl Walk<'_> {
    pub(super) const fn place(&self, at: u32, length: usize) -> Place {
        Place { segment: self.sequence, at, bytes: length as u32 }
    }
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
