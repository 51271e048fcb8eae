//! The digest of users and permissions: what each commit says of them in a few bytes, so that a start knows
//! whether it has all that was written last.

use leveret_core::journal::definition::{ACCESS_WRITTEN_KEY, is_access};

use super::varint::Input;

const WHOLE: u8 = 1;
const IN_DOUBT: u8 = 2;
/// What the digest takes in a commit at most, in bytes.
pub(super) const DIGEST_RECORD_BYTES: usize = 48;

/// A digest of definitions of access: how many, and the sum of their hashes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Digest {
    count: u32,
    sum: u64,
}

impl Digest {
    pub(super) fn add(&mut self, key: &[u8], version: u64) {
        if is_counted(key) {
            self.count = self.count.wrapping_add(1);
            self.sum = self.sum.wrapping_add(hash(key, version));
        }
    }

    pub(super) fn remove(&mut self, key: &[u8], version: u64) {
        if is_counted(key) {
            self.count = self.count.wrapping_sub(1);
            self.sum = self.sum.wrapping_sub(hash(key, version));
        }
    }

    pub(super) fn encode(self, is_in_doubt: bool) -> [u8; 13] {
        let mut value = [0; 13];
        value[0] = if is_in_doubt { IN_DOUBT } else { WHOLE };
        value[1..5].copy_from_slice(&self.count.to_le_bytes());
        value[5..].copy_from_slice(&self.sum.to_le_bytes());
        value
    }
}

/// Whether a key is of a definition that the digest is of; those lie at two places each.
pub(super) fn is_counted(key: &[u8]) -> bool {
    is_access(key) && *key != ACCESS_WRITTEN_KEY
}

/// FNV-1a, its bits mixed (the end of splitmix64) so that sums of hashes do not cancel out.
fn hash(key: &[u8], version: u64) -> u64 {
    let bytes = key.iter().copied().chain(version.to_le_bytes());
    let mut hash = bytes
        .fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3));
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    hash ^ (hash >> 31)
}

/// What the value of the digest's definition says.
#[derive(Clone, Copy)]
pub(super) enum Said {
    Nothing,
    Whole(Digest),
    InDoubt,
}

pub(super) fn said(value: &[u8]) -> Said {
    let mut input = Input::new(value);
    match input.byte() {
        None => Said::Nothing,
        Some(WHOLE) => match (input.u32(), input.u64()) {
            (Some(count), Some(sum)) => Said::Whole(Digest { count, sum }),
            _ => Said::InDoubt,
        },
        Some(_) => Said::InDoubt,
    }
}

/// What the log says with every commit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Vouch {
    pub(super) version: u64,
    pub(super) is_in_doubt: bool,
    /// It is to be written even if nothing else is.
    pub(super) is_due: bool,
}
