//! What gathers for the next commit: its records, and what is to be known of them when it is made.
//!
//! Always true: the bytes begin with the room for a commit's header, and are whole records from there on, as
//! many as are counted; so what is handed out needs a header and nothing else.

use leveret_core::journal::definition::is_access;

use super::commit::{self, COMMIT_HEADER_BYTES};
use super::place::Position;
use super::record::Record;

/// Records that wait for their commit.
#[derive(Debug)]
pub(super) struct Gathering {
    bytes: Vec<u8>,
    records: u32,
    fresh_bytes: usize,
    /// Of those before it.
    fresh_bytes_before: u64,
    /// Everything that was said so far, settlements too.
    pub(super) appended: Position,
    copied_bytes: usize,
    has_group: bool,
    has_access: bool,
    frees: bool,
    digest_at: usize,
    /// The buffer of the last commit, for the one after the next.
    spare: Vec<u8>,
}

/// What is handed out as one commit.
#[derive(Debug)]
pub(super) struct Gathered {
    /// Room for a header, and the records.
    pub(super) bytes: Vec<u8>,
    pub(super) records: u32,
    /// Some of the records belong together.
    pub(super) has_group: bool,
}

impl Gathering {
    /// With so much room, and the records that a start writes again.
    pub(super) fn new(commit_bytes: usize, again: &[u8], again_records: u32) -> Self {
        let mut bytes = Vec::with_capacity(commit_bytes);
        commit::begin(&mut bytes);
        bytes.extend_from_slice(again);
        Self {
            bytes,
            records: again_records,
            fresh_bytes: 0,
            fresh_bytes_before: 0,
            appended: Position(1),
            copied_bytes: 0,
            has_group: again_records > 0,
            has_access: again_records > 0,
            frees: false,
            digest_at: 0,
            spare: Vec::with_capacity(commit_bytes),
        }
    }

    /// Bytes so far, the room for the header included.
    pub(super) const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// How many records there are.
    pub(super) const fn records(&self) -> u32 {
        self.records
    }

    /// The records, one behind the other.
    pub(super) fn record_bytes(&self) -> &[u8] {
        &self.bytes[COMMIT_HEADER_BYTES..]
    }

    /// Puts a record behind the others; the bytes that it takes.
    pub(super) fn add(&mut self, record: &Record<'_>) -> usize {
        self.add_with(|bytes| record.encode(bytes))
    }

    /// Puts the one record there that `encode` appends; the bytes that it takes. None is no record.
    pub(super) fn add_with(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> usize {
        let start = self.bytes.len();
        encode(&mut self.bytes);
        let added = self.bytes.len() - start;
        self.records += u32::from(added > 0);
        added
    }

    /// So many of the bytes are of new messages and chunks.
    pub(super) const fn note_fresh(&mut self, bytes: usize) {
        self.fresh_bytes += bytes;
    }

    /// How many they are by now.
    pub(super) const fn fresh_bytes(&self) -> usize {
        self.fresh_bytes
    }

    /// How many they were in all commits before.
    pub(super) const fn fresh_bytes_before(&self) -> u64 {
        self.fresh_bytes_before
    }

    /// So many of the bytes are copies that the cleaner made.
    pub(super) const fn note_copied(&mut self, bytes: usize) {
        self.copied_bytes += bytes;
    }

    /// Whether the cleaner has made copies.
    pub(super) const fn has_copies(&self) -> bool {
        self.copied_bytes > 0
    }

    /// Whether there is nothing else.
    pub(super) const fn has_only_copies(&self) -> bool {
        self.has_copies() && COMMIT_HEADER_BYTES + self.copied_bytes == self.bytes.len()
    }

    /// Some of the records belong together.
    pub(super) const fn note_group(&mut self) {
        self.has_group = true;
    }

    /// There are definitions of access.
    pub(super) const fn note_access(&mut self) {
        self.has_access = true;
    }

    /// Whether there are.
    pub(super) const fn has_access(&self) -> bool {
        self.has_access
    }

    /// Whether a definition of access with this version is among them already: its copies belong into two commits.
    pub(super) fn has_copy_of(&self, record: &Record<'_>) -> bool {
        let Record::Defined { version, key, .. } = record else { return false };
        let mut records = self.record_bytes();
        while is_access(key)
            && let Ok((other, bytes)) = Record::parse_known(records)
        {
            if matches!(other, Record::Defined { version: v, key: k, .. } if (v, k) == (*version, *key)) {
                return true;
            }
            records = &records[bytes..];
        }
        false
    }

    /// A queue is deleted, which makes room.
    pub(super) const fn note_frees(&mut self) {
        self.frees = true;
    }

    /// Whether something makes room.
    pub(super) const fn frees(&self) -> bool {
        self.frees
    }

    /// The record that was added last is the digest of all that is there with it.
    pub(super) const fn note_digest(&mut self) {
        self.digest_at = self.bytes.len();
    }

    /// Whether nothing was added since.
    pub(super) const fn ends_with_digest(&self) -> bool {
        self.digest_at == self.bytes.len()
    }

    /// Hands out what has gathered; what is added from now on gathers for the next commit.
    pub(super) fn take(&mut self) -> Gathered {
        let mut empty = core::mem::take(&mut self.spare);
        commit::begin(&mut empty);
        let gathered = Gathered {
            bytes: core::mem::replace(&mut self.bytes, empty),
            records: self.records,
            has_group: self.has_group,
        };
        self.fresh_bytes_before += self.fresh_bytes as u64;
        (self.records, self.fresh_bytes, self.copied_bytes, self.digest_at) = (0, 0, 0, 0);
        (self.has_group, self.has_access, self.frees) = (false, false, false);
        gathered
    }

    /// The buffer of a commit that is done comes back.
    pub(super) fn give_back(&mut self, buffer: Vec<u8>) {
        self.spare = buffer;
    }
}
