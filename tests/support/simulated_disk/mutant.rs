//! Deliberate mistakes between the store and the disk, which prove that the checks detect them.
//!
//! # Invariants
//! - Each mistake is one that a store could make.
//! - Every written commit stays complete and has a valid checksum.

use leveret_storage::{Range, Ranges, Record};

use super::disk::Inner;
use super::trouble::COMMIT_HEADER_BYTES as COMMIT_HEADER;

/// A rare mistake happens once in this many times. A simulator needs some hundred runs to reveal it.
pub(super) const SELDOM: u64 = 150;

/// A mistake between the store and the disk, which the checks have to detect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutant {
    /// No mistake.
    None,
    /// Syncs report success and do nothing.
    SyncLeftOut,
    /// One sync in 150 reports success and does nothing.
    SyncSeldomLeftOut,
    /// Settlements include the next offset, whose message has not been published yet.
    SettlementAhead,
    /// Settlements are not rewritten when their segment is deleted.
    SettlementDropped,
    /// Every commit and header carries epoch 1.
    NoLife,
    /// The first write after a start is skipped.
    LastCommitNotRewritten,
    /// Each commit writes the block before it again.
    BlockRewritten,
}

impl Inner {
    fn seed(&self) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&self.identity.secret.to_le_bytes()), &self.identity.id)
    }

    /// Returns the bytes that the mutant writes instead of `bytes`.
    pub(super) fn mutate(&mut self, at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        let is_commit = bytes.starts_with(b"LVC");
        match self.mutant {
            Mutant::NoLife if is_commit => {
                bytes[12..16].copy_from_slice(&1_u32.to_le_bytes());
                self.seal_commit(&mut bytes);
            }
            Mutant::NoLife if at == 0 && bytes.starts_with(b"LEVERET") && bytes[7].is_ascii_digit() => {
                let length = number_at(&bytes, 12) as usize;
                bytes[20..24].copy_from_slice(&1_u32.to_le_bytes());
                let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..8]), &bytes[12..length]);
                bytes[8..12].copy_from_slice(&sum.to_le_bytes());
            }
            Mutant::SettlementDropped if is_commit => self.drop_settlements(&mut bytes),
            Mutant::SettlementAhead if is_commit => self.settle_ahead(&mut bytes),
            _ => {}
        }
        bytes
    }

    fn seal_commit(&self, bytes: &mut [u8]) {
        let length = number_at(bytes, 8) as usize;
        let sum = crc32c::crc32c_append(self.seed(), &bytes[8..length]);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    }

    /// Extends every settlement in a commit by one offset.
    fn settle_ahead(&mut self, bytes: &mut Vec<u8>) {
        let (padded, mut kept) = (bytes.len(), bytes[..COMMIT_HEADER].to_vec());
        let mut rest = &bytes[COMMIT_HEADER..];
        while let Ok((record, length)) = Record::parse(rest) {
            if let Record::Settled { queue, ranges } = &record {
                let mut ranges: Vec<Range> = ranges.iter().collect();
                if let Some(last) = ranges.last_mut() {
                    last.end += 1;
                }
                Record::Settled { queue: *queue, ranges: Ranges::List(&ranges) }.encode(&mut kept);
            } else {
                kept.extend_from_slice(&rest[..length]);
            }
            rest = &rest[length..];
        }
        if kept.len() > padded {
            return;
        }
        let length = kept.len() as u32;
        kept[8..12].copy_from_slice(&length.to_le_bytes());
        kept.resize(padded, 0);
        *bytes = kept;
        self.seal_commit(bytes);
    }

    /// Replaces all settlements in a commit that contain nothing new.
    ///
    /// The replacement has the same length, because the other records must keep their offsets in the log.
    fn drop_settlements(&mut self, bytes: &mut [u8]) {
        let mut at = COMMIT_HEADER;
        while let Ok((record, length)) = Record::parse(&bytes[at..]) {
            let mut is_new = true;
            if let Record::Settled { queue, ranges } = &record {
                let known = self.settled.entry(*queue).or_default();
                is_new = false;
                ranges.iter().for_each(|range| known.insert(range, |_| is_new = true));
            }
            if !is_new && let Some(filling) = filling(length) {
                bytes[at..at + length].copy_from_slice(&filling);
            }
            at += length;
        }
        self.seal_commit(bytes);
    }
}

/// Returns a record of this length without effect: the deletion of a definition that never existed.
fn filling(length: usize) -> Option<Vec<u8>> {
    (0..length).find_map(|name| {
        let key = vec![b'~'; name];
        let mut bytes = Vec::new();
        Record::Defined { version: 0, key: &key, value: None }.encode(&mut bytes);
        (bytes.len() == length).then_some(bytes)
    })
}

fn number_at(bytes: &[u8], at: usize) -> u32 {
    (0..4).map(|byte| u32::from(bytes[at + byte]) << (8 * byte)).sum()
}
