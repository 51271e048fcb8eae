//! Users and permissions once more, beside the log: small files that a damaged log does not take along.
//!
//! Why it exists: the newest part of the log is what a bad card loses in a power cut, and nobody is on site
//! to say who may come in. So whoever the log cannot vouch for, these files can: they hold every definition
//! of access, not only a digest of them.
//!
//! ```text
//! directory | access.a | access.b |                two copies, written and synced one after the other
//!
//! copy      | magic "LEVERETA" | CRC32C u32 | length u32 | copy number u64 | version u64 | store id 16 |
//!             0                  8            12           16                24            32
//!           | secret u64 | segment bytes u32 | 1 whole, 2 in doubt | definitions ... | end | zeros |
//!             48           56                  60                    61                length
//!
//! end       | magic "LVEN" | CRC32C u32 | commit u64 |      a commit that was synced: the log has no less
//! ```
//!
//! Little endian. The CRC covers everything from `length` on. `version` is that of the newest change: a
//! definition of the log that is not newer and is not in here was deleted. The last byte of the magic is the
//! version of the format. A restored backup has no such files; the next start makes them. The *end* stands
//! here because what destroys the end of the log destroys what would tell of it: a clean stop notes its last
//! commit. Versions that know nothing of it leave it out. Its CRC starts from the store's seed, so it holds
//! in a copy that is not good, too.
//!
//! Always true: a copy is written after the commit that it is of was synced, and before anybody is told that
//! the change is done; a good copy says what the digest of the newest commit with one says, but for the
//! moment between that commit and the copy, for one that could neither be written nor removed (its version
//! says that it is old), and for a start, which reads both and brings them together; a copy that is not good
//! says nothing; the older copy is written first, so once there are two, one is good while the other is
//! written; copies that were lost come back with the next change; a copy that cannot be written never ends
//! the store, unless an old one stays that would be believed.

use std::io;

use leveret_core::journal::definition::{ACCESS_WRITTEN_KEY, is_access};

use super::access_digest::{Digest, Said, is_counted, said};
use super::commit::{BLOCK_BYTES, Owner, padded};
use super::disk::{ACCESS_SLOTS, Disk};
use super::identity::Identity;
use super::place::Place;
use super::record::Record;
use super::record_walk::for_each_record;
use super::varint::Input;
use super::zeroes::ResizeZeroed;

const MAGIC: [u8; 8] = *b"LEVERETA";
const END_MAGIC: [u8; 4] = *b"LVEN";
const END_BYTES: usize = 16;
const FIXED_BYTES: usize = 61;
const WHOLE: u8 = 1;
const IN_DOUBT: u8 = 2;
/// More is not kept twice: every change of one user writes all of it, which wears a card.
const FILE_BYTES_MAX: usize = 128 << 10;
/// Cards refuse a read now and then: what vouches for everybody is asked for again.
const READS: usize = 3;

/// A definition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    pub(super) key: Box<[u8]>,
    pub(super) version: u64,
    pub(super) value: Box<[u8]>,
}

/// Every definition of access with its version.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Snapshot {
    /// Of the newest change, deletions and what was said of all of it included.
    pub(super) version: u64,
    /// Nobody has confirmed that this is all.
    pub(super) is_in_doubt: bool,
    /// Rising by their keys.
    pub(super) definitions: Vec<Entry>,
}

/// Where the log has a definition.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) key: Box<[u8]>,
    pub(super) version: u64,
    /// Files and places in them; `None`: it was deleted.
    pub(super) places: Option<[Option<(u32, Place)>; 2]>,
}

/// What became of the copies.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Updated {
    /// Bytes written.
    pub(super) bytes: usize,
    /// There is no good copy any more.
    pub(super) is_lost: bool,
}

/// A good copy.
pub(super) struct Copy {
    number: u64,
    pub(super) owner: Owner,
    pub(super) snapshot: Snapshot,
    /// A commit that was synced; 0 when nothing is known.
    pub(super) end: u64,
}

impl Snapshot {
    /// Takes a definition in, unless it is older than what is known.
    pub(super) fn apply(&mut self, key: &[u8], version: u64, value: Option<&[u8]>) {
        if !is_counted(key) {
            return;
        }
        let place = self.place(key);
        let is_old = match place {
            Ok(at) => self.definitions[at].version >= version,
            // The cleaner also copies what was deleted since.
            Err(_) => version <= self.version,
        };
        if is_old {
            return;
        }
        self.version = self.version.max(version);
        if let Ok(at) = place {
            self.definitions.remove(at);
        }
        if let Some(value) = value {
            let entry = Entry { key: key.into(), version, value: value.into() };
            self.definitions.insert(place.unwrap_or_else(|at| at), entry);
        }
    }

    /// Where a key stands, or would.
    pub(super) fn place(&self, key: &[u8]) -> Result<usize, usize> {
        self.definitions.binary_search_by(|entry| (*entry.key).cmp(key))
    }

    pub(super) fn digest(&self) -> Digest {
        let mut digest = Digest::default();
        self.definitions.iter().for_each(|entry| digest.add(&entry.key, entry.version));
        digest
    }

    fn encode(&self, number: u64, owner: &Owner, end: u64) -> Vec<u8> {
        let mut out = vec![0; FIXED_BYTES];
        for Entry { key, version, value } in &self.definitions {
            Record::Defined { version: *version, key, value: Some(value) }.encode(&mut out);
        }
        let length = out.len() as u32;
        out[..8].copy_from_slice(&MAGIC);
        out[12..16].copy_from_slice(&length.to_le_bytes());
        out[16..24].copy_from_slice(&number.to_le_bytes());
        out[24..32].copy_from_slice(&self.version.to_le_bytes());
        out[32..48].copy_from_slice(&owner.identity.id);
        out[48..56].copy_from_slice(&owner.identity.secret.to_le_bytes());
        out[56..60].copy_from_slice(&owner.segment_bytes.to_le_bytes());
        out[60] = if self.is_in_doubt { IN_DOUBT } else { WHOLE };
        let sum = crc32c::crc32c(&out[12..]);
        out[8..12].copy_from_slice(&sum.to_le_bytes());
        put_end(&mut out, end, owner);
        out.resize_zeroed(padded(out.len()));
        out
    }
}

fn put_end(out: &mut Vec<u8>, end: u64, owner: &Owner) {
    out.extend_from_slice(&END_MAGIC);
    out.extend_from_slice(&crc32c::crc32c_append(owner.identity.seed(), &end.to_le_bytes()).to_le_bytes());
    out.extend_from_slice(&end.to_le_bytes());
}

fn read_end(bytes: &[u8], identity: &Identity) -> Option<u64> {
    let mut input = Input::new(bytes);
    let (magic, sum, end) = (input.take(4)?, input.u32()?, input.u64()?);
    let is_good = *magic == END_MAGIC && sum == crc32c::crc32c_append(identity.seed(), &end.to_le_bytes());
    is_good.then_some(end)
}

impl Copy {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut input = Input::new(bytes);
        let (magic, sum, length) = (input.take(8)?, input.u32()?, input.u32()? as usize);
        if *magic != MAGIC || crc32c::crc32c(bytes.get(12..length)?) != sum {
            return None;
        }
        let (number, version) = (input.u64()?, input.u64()?);
        let identity = Identity { id: input.take(16)?.try_into().ok()?, secret: input.u64()? };
        let owner = Owner { identity, segment_bytes: input.u32()? };
        let is_in_doubt = input.byte()? != WHOLE;
        let mut snapshot = Snapshot { version, is_in_doubt, definitions: Vec::new() };
        let mut records = bytes.get(FIXED_BYTES..length)?;
        while !records.is_empty() {
            let (record, taken) = Record::parse(records).ok()?;
            let Record::Defined { version, key, value: Some(value) } = record else { return None };
            snapshot.definitions.push(Entry { key: key.into(), version, value: value.into() });
            records = &records[taken..];
        }
        let end = read_end(&bytes[length..], &owner.identity).unwrap_or(0);
        Some(Self { number, owner, snapshot, end })
    }
}

/// The newest good copy.
pub(super) fn read<D: Disk>(disk: &mut D) -> Option<Copy> {
    copies(disk).into_iter().flatten().max_by_key(|copy| copy.number)
}

/// Each of the copies, when it is good.
pub(super) fn copies<D: Disk>(disk: &mut D) -> [Option<Copy>; ACCESS_SLOTS.len()] {
    ACCESS_SLOTS.map(|slot| read_copy(disk, slot))
}

/// A copy that cannot be read, however often it is tried, is one that is not good: the log is still to be
/// asked.
fn read_copy<D: Disk>(disk: &mut D, slot: u32) -> Option<Copy> {
    Copy::parse(&read_bytes(disk, slot)?)
}

/// A copy, good or not, as far as it says that it goes.
fn read_bytes<D: Disk>(disk: &mut D, slot: u32) -> Option<Vec<u8>> {
    let mut bytes = vec![0; BLOCK_BYTES];
    let mut read = |bytes: &mut [u8]| (0..READS).find_map(|_| disk.read(slot, 0, bytes).ok());
    let mut known = read(&mut bytes)?;
    let length = Input::new(bytes.get(12..known)?).u32()? as usize;
    let with_end = length.saturating_add(END_BYTES);
    if with_end > known && length <= FILE_BYTES_MAX {
        bytes.resize_zeroed(with_end);
        known = read(&mut bytes)?;
    }
    bytes.truncate(known);
    Some(bytes)
}

/// The newest commit that any copy knows to have been synced, for the store of this `identity`. That note is
/// good or not by itself: a copy that a power cut has left half written may still have it.
pub(super) fn read_end_of<D: Disk>(disk: &mut D, identity: &Identity) -> u64 {
    let copies = ACCESS_SLOTS.into_iter().filter_map(|slot| read_bytes(disk, slot));
    let end_in = |bytes: Vec<u8>| (0..bytes.len()).filter_map(|at| read_end(&bytes[at..], identity)).max();
    copies.filter_map(end_in).max().unwrap_or(0)
}

/// Notes that a commit is the last of its life and was synced, in the copies that there are; returns the
/// bytes written. A life that `said_nothing` has repeated what was known.
pub(super) fn note_end<D: Disk>(
    disk: &mut D,
    owner: &Owner,
    number: u64,
    said_nothing: bool,
) -> io::Result<usize> {
    let kept = read(disk).filter(|copy| copy.owner == *owner);
    let needed = number - u64::from(said_nothing);
    match kept {
        Some(kept) if kept.end < needed => write(disk, owner, &kept.snapshot, number),
        _ => Ok(0),
    }
}

/// Whether there ever was a copy, good or not: a store that has one is not new.
pub(super) fn is_there<D: Disk>(disk: &mut D) -> bool {
    ACCESS_SLOTS.into_iter().any(|slot| is_copy_there(disk, slot))
}

fn is_copy_there<D: Disk>(disk: &mut D, slot: u32) -> bool {
    match disk.read(slot, 0, &mut [0]) {
        Ok(length) => length > 0,
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// Everything, from where the log has it; `None` when some of it cannot be read.
fn rebuild<D: Disk>(disk: &mut D, known: &[Known]) -> Option<Snapshot> {
    let (mut snapshot, mut bytes) = (Snapshot::default(), Vec::new());
    for Known { key, version, places } in known {
        snapshot.version = snapshot.version.max(*version);
        let Some(places) = places else { continue };
        let value = places.iter().flatten().find_map(|(slot, place)| {
            bytes.clear();
            bytes.resize_zeroed(place.bytes as usize);
            disk.read(*slot, place.at.into(), &mut bytes).ok()?;
            match Record::parse(&bytes) {
                Ok((Record::Defined { version: at, key: of, value: Some(value) }, _))
                    if at == *version && *of == **key =>
                {
                    Some(value.into())
                }
                _ => None,
            }
        });
        snapshot.definitions.push(Entry { key: key.clone(), version: *version, value: value? });
    }
    Some(snapshot)
}

/// Brings the copies up to a commit that was just synced, from its records; when they were lost, from what
/// the log has besides.
pub(super) fn update<D: Disk>(
    disk: &mut D,
    owner: &Owner,
    number: u64,
    records: &[u8],
    lost: Option<&[Known]>,
) -> io::Result<Updated> {
    let kept = read(disk).filter(|copy| copy.owner == *owner);
    let before = kept.as_ref().map(|copy| &copy.snapshot);
    let rebuilt = lost.and_then(|known| rebuild(disk, known));
    let is_some = rebuilt.is_some() || kept.is_some();
    let mut snapshot = rebuilt.or_else(|| before.cloned()).unwrap_or_default();
    let (mut vouched, mut vouched_version) = (Said::Nothing, 0);
    for_each_record(records, 0, |record, _| match record {
        Record::Defined { version, key, value } if **key == ACCESS_WRITTEN_KEY => {
            (vouched, vouched_version) = (said(value.unwrap_or_default()), *version);
        }
        Record::Defined { version, key, value } if is_access(key) => snapshot.apply(key, *version, *value),
        _ => {}
    });
    let is_known = match vouched {
        // Nobody has said yet who there is.
        Said::Nothing => return Ok(Updated::default()),
        Said::Whole(digest) => digest == snapshot.digest(),
        Said::InDoubt => is_some,
    };
    if !is_known {
        return forget(disk).map(|()| Updated { bytes: 0, is_lost: true });
    }
    snapshot.is_in_doubt = matches!(vouched, Said::InDoubt);
    snapshot.version = snapshot.version.max(vouched_version);
    if before == Some(&snapshot) {
        return Ok(Updated::default());
    }
    let bytes = write(disk, owner, &snapshot, number)?;
    Ok(Updated { bytes, is_lost: bytes == 0 })
}

/// Writes both copies, the older one first, and that a commit of the number `synced` was, unless a newer one
/// is known; returns the bytes. A copy that cannot be written is made anew,
/// and given up when that fails, too: the log has all that it has, and goes on.
///
/// # Errors
/// A copy may not be written; or the disk failed: not even the directory can be synced, or an old copy stays
/// that would be believed.
pub(super) fn write<D: Disk>(
    disk: &mut D,
    owner: &Owner,
    snapshot: &Snapshot,
    synced: u64,
) -> io::Result<usize> {
    let end = read_end_of(disk, &owner.identity).max(synced);
    let numbers = copies(disk).map(|copy| copy.map_or(0, |copy| copy.number));
    let bytes = snapshot.encode(numbers[0].max(numbers[1]) + 1, owner, end);
    if bytes.len() > FILE_BYTES_MAX {
        return forget(disk).map(|()| 0);
    }
    let mut slots = ACCESS_SLOTS;
    if numbers[0] > numbers[1] {
        slots.reverse();
    }
    let mut written = 0;
    for slot in slots {
        let made = make(disk, slot, &bytes).or_else(|error| {
            // Whoever set it up made a mistake: that is no fault of the file, and it may be the last witness.
            if error.kind() == io::ErrorKind::PermissionDenied {
                return Err(error);
            }
            // A bad sector under it, or an inode of which nothing can be had: another file, elsewhere.
            let _ = disk.remove(slot);
            make(disk, slot, &bytes)
        });
        match made {
            Ok(()) => written += bytes.len(),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
            Err(error) => give_up(disk, slot, error)?,
        }
    }
    Ok(written)
}

fn make<D: Disk>(disk: &mut D, slot: u32, bytes: &[u8]) -> io::Result<()> {
    let is_new = !is_copy_there(disk, slot);
    disk.create(slot)?;
    disk.write(slot, 0, bytes)?;
    disk.sync(slot)?;
    if is_new { disk.sync_directory() } else { Ok(()) }
}

#[cold]
fn give_up<D: Disk>(disk: &mut D, slot: u32, error: io::Error) -> io::Result<()> {
    let name = if slot == ACCESS_SLOTS[0] { "access.a" } else { "access.b" };
    log::error!(
        "{name}, which has the users beside the log, cannot be written ({error}), and is left out until the \
         next change of users or the next start: see to the disk"
    );
    let silenced = silence(disk, slot);
    disk.sync_directory()?;
    silenced.map_err(|_| error)
}

/// Makes the copies say nothing; where there are any, a start goes on knowing that there was a store.
///
/// # Errors
/// One of them stays as it is, and would be believed.
pub fn forget<D: Disk>(disk: &mut D) -> io::Result<()> {
    for slot in ACCESS_SLOTS {
        if is_copy_there(disk, slot) {
            silence(disk, slot)?;
        }
    }
    Ok(())
}

/// Makes a copy say nothing: what is old would be believed when the log is damaged.
fn silence<D: Disk>(disk: &mut D, slot: u32) -> io::Result<()> {
    let zeroed = disk.write(slot, 0, &[0; BLOCK_BYTES]).and_then(|()| disk.sync(slot));
    let Err(error) = zeroed else { return Ok(()) };
    if disk.remove(slot).is_ok() {
        return disk.sync_directory();
    }
    // What cannot be read, or is empty, says nothing as it is.
    if matches!(disk.read(slot, 0, &mut [0]), Ok(0) | Err(_)) { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_of_the_end_is_believed_as_it_was_written_and_of_its_own_store_alone() {
        let identity = |secret| Identity { id: [1; 16], secret };
        let mut bytes = Vec::new();
        put_end(&mut bytes, 77, &Owner { identity: identity(5), segment_bytes: 1 << 20 });
        assert_eq!(read_end(&bytes, &identity(5)), Some(77));
        assert_eq!(read_end(&bytes, &identity(6)), None);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(read_end(&damaged, &identity(5)), None, "a bit of byte {at} is another");
        }
    }
}
