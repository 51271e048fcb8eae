//! What of a damaged commit is still served.
//!
//! A commit is damaged when its checksum does not hold; each of its records has a checksum of its own. Where
//! a whole commit behind it proves that it was synced, its good records are served, and what is damaged costs
//! what it touched: unless the commit has records that belong together (a transaction, a dead-lettering). Of
//! those all are served or none, and so none are.
//!
//! Always true: no place is guessed. Bodies are what strangers sent and may look like records or commits,
//! so a search through the bytes for what looks right would find what they want found. A record behind one
//! that is damaged is taken only when from there on everything fits: each checksum, the number of records
//! that the commit had, and its end. What a start serves of a commit, the cleaner and whoever reads back
//! find again by the same rule.

use std::ops::Range;

use super::commit::{COMMIT_HEADER_BYTES, Claim, CommitHeader, padded};
use super::footer::Footer;
use super::place::Place;
use super::record::{Record, RecordError};
use super::segment::SegmentRef;
use super::varint::Input;

/// Records of a damaged commit.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// Where each whole one lies, and its length.
    pub(super) whole: Vec<(usize, usize)>,
    damaged: u64,
}

/// A damaged commit whose good records are served.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) header: CommitHeader,
    /// Bytes it takes in the segment.
    pub(super) bytes: usize,
    /// Where each record lies behind the commit's first byte, and its length.
    pub(super) records: Vec<(usize, usize)>,
}

/// The damaged commit at the start of `bytes`, if its header is whole as far as that can be seen: it is of
/// the store with this seed and of this segment.
pub(super) fn served(bytes: &[u8], seed: u32, segment: u64) -> Option<Served> {
    let claim = Claim::read(bytes).filter(|claim| is_served(claim, seed, segment))?;
    let records = bytes.get(COMMIT_HEADER_BYTES..claim.length)?;
    let found = walk_records(records, claim.header.records);
    let records = found.whole.into_iter().map(|(at, length)| (COMMIT_HEADER_BYTES + at, length)).collect();
    Some(Served { header: claim.header, bytes: padded(claim.length), records })
}

/// Notes a good record of a damaged commit for the footer, so that it is found when the segment is sealed.
pub(super) fn note(footer: &mut Footer, bytes: &[u8], place: &Place) {
    footer.note_records(&bytes[place.at as usize..][..place.bytes as usize], place.at);
}

/// The good records of the commits of these numbers that lie one behind the other in `bytes` from byte `at`
/// on, all of them damaged; and where the last one ends.
pub(super) fn all_served(
    bytes: &[u8],
    mut at: u32,
    numbers: Range<u64>,
    seed: u32,
    segment: SegmentRef,
) -> (Vec<Place>, u32) {
    let mut places = Vec::new();
    for number in numbers {
        let found = bytes.get(at as usize..).and_then(|bytes| served(bytes, seed, segment.sequence));
        let Some(found) = found.filter(|found| found.header.number == number) else { break };
        places.extend(found.records.into_iter().map(|(from, length)| Place {
            segment: segment.sequence,
            at: at + from as u32,
            bytes: length as u32,
        }));
        at += found.bytes as u32;
    }
    (places, at)
}

/// Whether the good records of a commit that claims this are served.
pub(super) fn is_served(claim: &Claim, seed: u32, segment: u64) -> bool {
    let is_ours = claim.has_magic && claim.identity.seed() == seed && claim.header.segment == segment;
    is_ours && !claim.header.has_group && claim.length >= COMMIT_HEADER_BYTES
}

/// The whole records of a commit that had `count` of them.
pub(super) fn walk_records(bytes: &[u8], count: u32) -> Records {
    let (mut at, mut found, mut sure) = (0, Records::default(), None);
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

/// The bytes that the record at the start of `bytes` claims to take.
pub(super) fn claimed_extent(bytes: &[u8]) -> Option<usize> {
    let mut input = Input::new(bytes);
    input.byte()?;
    let length = usize::try_from(input.varint()?).ok()?;
    (bytes.len() - input.rest().len()).checked_add(4)?.checked_add(length)
}
