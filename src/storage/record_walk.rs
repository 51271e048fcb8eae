//! From the bytes of one commit to records and into the index.

use std::io;

use super::disk::Disk;
use super::index::Index;
use super::place::Place;
use super::read_around::is_about_a_block;
use super::record::Record;
use super::zeroes::ResizeZeroed;

/// Calls `each` with the records of a commit that was checked, and their places; the first lies at `at`.
/// Returns how many there were.
pub(super) fn for_each_record(
    mut records: &[u8],
    mut at: u32,
    mut each: impl FnMut(&Record<'_>, (u32, u32)),
) -> u32 {
    let mut count = 0;
    while let Ok((record, bytes)) = Record::parse_known(records) {
        each(&record, (at, bytes as u32));
        records = &records[bytes..];
        at += bytes as u32;
        count += 1;
    }
    count
}

/// Feeds those records of a commit that are wanted to the index; the first lies at byte `at` of its segment.
/// Returns how many there were of all.
pub(super) fn apply_records(
    index: &mut Index,
    records: &[u8],
    segment: u64,
    at: u32,
    is_wanted: impl Fn(&Record<'_>) -> bool,
) -> u32 {
    for_each_record(records, at, |record, (at, bytes)| {
        if is_wanted(record) {
            index.apply(record, Place { segment, at, bytes });
        }
    })
}

/// See [`Log::read_record`].
pub(super) fn read_record<'b, D: Disk>(
    index: &Index,
    disk: &mut D,
    place: Place,
    bytes: &'b mut Vec<u8>,
) -> io::Result<Option<Record<'b>>> {
    let Some(segment) = index.segments().get(&place.segment) else {
        return Ok(None);
    };
    bytes.clear();
    bytes.resize_zeroed(place.bytes as usize);
    match disk.read(segment.slot, place.at.into(), bytes) {
        Err(error) if is_about_a_block(&error) => return Ok(None),
        read => read?,
    };
    Ok(Record::parse(bytes).ok().map(|(record, _)| record))
}
