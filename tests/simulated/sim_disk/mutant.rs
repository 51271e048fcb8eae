//! Mistakes between the store and the disk, to prove that the checks see them.
//!
//! Always true: a mistake is one that a store could make; what is written is a whole commit all the same.

use leveret_storage::{Range, Ranges, Record};

use super::disk::Inner;
use super::trouble::COMMIT_HEADER_BYTES as COMMIT_HEADER;

/// What happens seldom happens once in so many times: some hundred runs of a simulator have to pass before
/// one of them shows it.
pub const SELDOM: u64 = 150;

/// A mistake put between the store and the disk, to prove that the checks see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutant {
    /// No mistake.
    None,
    /// Syncs say that they are done and do nothing.
    SyncLeftOut,
    /// One sync in [`SELDOM`] says that it is done and does nothing.
    SyncSeldomLeftOut,
    /// Settlements say one offset more than was settled, whose message is still to come.
    SettlementAhead,
    /// Settlements are not written again when the segment that has them leaves the log.
    SettlementDropped,
    /// Every commit and header says life 1.
    NoLife,
    /// The first write of a life is not made.
    LastCommitNotRewritten,
    /// Each commit writes the block before it once more.
    BlockRewritten,
}

impl Inner {
    fn seed(&self) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&self.identity.secret.to_le_bytes()), &self.identity.id)
    }

    /// What the mutant makes of a write.
    pub fn mutate(&mut self, at: usize, bytes: &[u8]) -> Vec<u8> {
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

    /// Stretches every settlement in a commit by one offset.
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

    /// Takes out of a commit all settlements that say nothing new. What is put in their place has the same
    /// length, for the other records must stay where the log knows them.
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

/// A record of this length that means nothing: that something was deleted which never was.
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
