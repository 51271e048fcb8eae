//! The good records of damaged commits.

use core::ops::Range;

use super::commit::{COMMIT_HEADER_BYTES, CommitHeader, StoredHeader, padded};
use super::footer::Footer;
use super::log::RecordLocation;
use super::record::{Record, RecordError};
use super::segment::SegmentRef;
use super::varint::Input;

/// A damaged commit whose good records are *served*: they are read as if the commit were whole.
///
/// A commit is damaged if its checksum is wrong. Each record has a checksum of its own, so some of its records may be
/// good. They are served if a later commit proves that the damaged commit was synced. The exception is a commit with
/// a group, such as a transaction. A group counts as a whole or not at all, so no record of such a commit is served.
///
/// # Invariants
/// - No location is guessed. Message bodies come from clients and may look like records or commits, so a
///   search through the bytes could find forged ones.
/// - A record behind a damaged one is used only if the rest is consistent: each checksum, the number of
///   records of the commit, and its end.
/// - The compactor and fetches find the same records as the start, by the same rule.
#[derive(Debug)]
pub(super) struct DamagedCommit {
    pub(super) header: CommitHeader,
    /// Bytes of the commit in the segment.
    pub(super) bytes: usize,
    /// Offset of each record in the commit, and its length.
    pub(super) records: Vec<(usize, usize)>,
}

/// Reads the damaged commit at the start of `bytes`. Returns `None` if its header is damaged too, if the header is
/// not of this segment and the store with this seed, or if the commit contains a group.
pub(super) fn read_damaged_commit(bytes: &[u8], seed: u32, segment: u64) -> Option<DamagedCommit> {
    let stored = StoredHeader::read(bytes).filter(|stored| is_servable(stored, seed, segment))?;
    let (header, length) = (stored.fields(), stored.commit_length()?);
    let found = walk_records(bytes.get(COMMIT_HEADER_BYTES..length)?, header.records);
    let records = found.whole.into_iter().map(|(at, length)| (COMMIT_HEADER_BYTES + at, length)).collect();
    Some(DamagedCommit { header, bytes: padded(length), records })
}

/// Returns the good records of damaged commits with consecutive numbers, the first of them at offset `at` of `bytes`,
/// and the end of the last commit found.
pub(super) fn servable_records(
    bytes: &[u8],
    mut at: u32,
    numbers: Range<u64>,
    seed: u32,
    segment: SegmentRef,
) -> (Vec<RecordLocation>, u32) {
    let mut places = Vec::new();
    for number in numbers {
        let found =
            bytes.get(at as usize..).and_then(|bytes| read_damaged_commit(bytes, seed, segment.sequence));
        let Some(found) = found.filter(|found| found.header.number == number) else { break };
        places.extend(found.records.into_iter().map(|(from, length)| RecordLocation {
            segment: segment.sequence,
            at: at + from as u32,
            bytes: length as u32,
        }));
        at += found.bytes as u32;
    }
    (places, at)
}

/// Returns whether the good records of a commit with this header may be served.
pub(super) fn is_servable(stored: &StoredHeader, seed: u32, segment: u64) -> bool {
    let header = stored.fields();
    // The length is checked first, because the seed costs more and most blocks are no commit headers.
    let is_header = stored.commit_length().is_some() && !header.has_group;
    is_header && header.segment == segment && stored.owner().identity.seed() == seed
}

/// The records found in a damaged commit.
#[derive(Debug, Default)]
struct FoundRecords {
    /// Offset and length of each whole record.
    whole: Vec<(usize, usize)>,
    damaged: u64,
}

/// Returns the good records of a damaged commit whose header claims `count` records.
fn walk_records(bytes: &[u8], count: u32) -> FoundRecords {
    let (mut at, mut found, mut sure) = (0, FoundRecords::default(), None);
    while at < bytes.len() {
        match Record::parse(&bytes[at..]) {
            Ok((_, length)) => {
                found.whole.push((at, length));
                at += length;
            }
            Err(RecordError::End) => break,
            Err(_) => {
                sure.get_or_insert(found.whole.len());
                found.damaged += 1;
                match claimed_extent(&bytes[at..]).filter(|length| *length <= bytes.len() - at) {
                    Some(length) => at += length,
                    None => break,
                }
            }
        }
    }
    let fits = at == bytes.len() && found.whole.len() as u64 + found.damaged == u64::from(count);
    if !fits {
        found.whole.truncate(sure.unwrap_or(found.whole.len()));
    }
    found
}

/// Returns the bytes that the record at the start of `bytes` claims to take.
fn claimed_extent(bytes: &[u8]) -> Option<usize> {
    let mut input = Input::new(bytes);
    input.byte()?;
    let length = usize::try_from(input.varint()?).ok()?;
    (bytes.len() - input.rest().len()).checked_add(4)?.checked_add(length)
}

/// Adds a good record of a damaged commit to the footer, so that the record is still found after the segment was
/// sealed.
pub(super) fn add_to_footer(footer: &mut Footer, bytes: &[u8], place: &RecordLocation) {
    footer.note_records(&bytes[place.at as usize..][..place.bytes as usize], place.at);
}
