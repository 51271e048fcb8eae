//! What a start knows while it reads: files, the chain of commits, the newest segment.

use super::footer::Footer;
use super::format::Format;
use super::segment::{HeaderRead, SegmentHeader, SegmentRef};

/// What was found of one file.
pub(super) struct CommitRead {
    pub(super) slot: u32,
    pub(super) length: u64,
    pub(super) header: HeaderRead,
}

impl CommitRead {
    /// It was prepared, and nothing was written to it.
    pub(super) fn is_unused(&self) -> bool {
        self.header == HeaderRead::Empty && self.length > 0
    }
}

/// Where the chain of commits stands.
#[derive(Clone, Copy, Default)]
pub(super) struct Chain {
    pub(super) segment: u64,
    pub(super) life: u32,
    pub(super) number: u64,
    pub(super) time_ms: u64,
    pub(super) covers: u32,
}

/// The good headers, newest first: file, bytes, header.
pub(super) type Headers<'h> = [(u32, u32, &'h SegmentHeader)];

/// The newest segment as read.
pub(super) struct Newest {
    pub(super) segment: SegmentRef,
    /// The version that it is written in.
    pub(super) format: Format,
    pub(super) tail: u32,
    /// Bytes of its file.
    pub(super) length: u32,
    /// The records of its last commit, and how many there are.
    pub(super) again: Vec<u8>,
    pub(super) again_records: u32,
    pub(super) footer: Footer,
    /// It has its own footer: the next one was about to be opened.
    pub(super) is_sealed: bool,
    /// The number of the newest commit that something in the segment proves to have been synced.
    pub(super) synced: u64,
    /// Commits behind the last one were durable and cannot be read.
    pub(super) is_damaged: bool,
}
