//! Decides at a start whether the log's definitions of users and permissions are complete, and keeps copies
//! of them.
//!
//! A start sets damaged records aside and continues with the other records. That is right for messages, but not for
//! access definitions (users and permissions): the readable ones may include a permission that was revoked in a
//! damaged record. Therefore every commit with enough space, and each commit that follows a change, repeats a digest
//! of all access definitions. A start compares this digest with the definitions that it has read. If definitions are
//! missing in the log, they are taken from the files beside the log. If these files are not complete either, all
//! logins are refused.
//!
//! ```text
//! value of the definition "access is written down", see `pending_writes::definition`
//!
//! nothing                                           written before there was a digest
//! | 1 whole, 2 in doubt | definitions u32 | sum u64 |
//! ```
//!
//! All integers are little endian. The sum is over a hash of key and version of each live access definition except
//! the digest itself. "In doubt" means that a start found the access definitions incomplete and no operator has
//! confirmed them since. Versions of Leveret that know no digest ignore the value.
//!
//! The files beside the log contain every confirmed change. Definitions that the log has lost are written into the
//! log again from these files. A file that is older than the digest in the log is ignored: the broker could neither
//! update nor remove it at the change. If a file is not older and its state is "in doubt", the definitions are in
//! doubt.
//!
//! # Invariants
//! - A commit with a change of access contains the digest, so a power cut never separates the change from its
//!   digest.
//! - The digest covers what is durable with its commit.
//! - A doubt ends only when an operator confirms the definitions, however often the broker starts.

use std::io;

use crate::pending_writes::Urgency;
use leveret_core::definition::{ACCESS_STORED_KEY, is_access};
use leveret_core::time::Now;

use super::commit::{BLOCK_BYTES, Owner, padded};
use super::commit_builder::PendingCommit;
use super::commit_builder::ResizeZeroed;
use super::disk::{ACCESS_SLOTS, Disk};
use super::index::DefinitionIndex;
use super::index::Index;
use super::log::Log;
use super::log::RecordLocation;
use super::record::{Record, for_each_record};
use super::recovery::{Access, AccessCorrection, AccessDefinition, AccessReport, Report};
use super::segment::Identity;
use super::varint::Input;

/// Where a definition was read from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FoundAt {
    /// In the first copy.
    First,
    /// In the second copy.
    Second,
    /// Neither copy can be read, but a footer repeats the definition.
    Footer,
}

/// Number of commits lost at the end that may contain a confirmed change: every change is in two commits.
const LOST_COMMITS_MIN: u64 = 2;

const DOUBTED: Access = Access::InDoubt("they were in doubt earlier and have not been confirmed since");

impl Log {
    /// Decides whether the access definitions that were read are complete, stores the result in `report`, and
    /// prepares the digest of the next commits.
    pub(super) fn judge_access<D: Disk>(&mut self, disk: &mut D, report: &mut Report) -> io::Result<()> {
        let (mut unreadable, mut is_thin, mut written, mut read) = (Vec::new(), false, None, Vec::new());
        let mut bytes = Vec::new();
        for (key, definition) in self.index.definitions() {
            if !is_access(key) || definition.deleted {
                continue;
            }
            let is_digest = **key == ACCESS_STORED_KEY;
            is_thin |= definition.second().is_none() && !is_digest;
            match self.read_definition(disk, key, definition, &mut bytes)? {
                Some((value, place)) => {
                    is_thin |= place != FoundAt::First && !is_digest;
                    if is_digest {
                        written = Some((definition.version, parse_digest(value)));
                    }
                    read.push(AccessDefinition { key: key.clone(), value: value.into() });
                }
                None => unreadable.push(key.clone()),
            }
        }
        let by_log = self.access_by_log(report, unreadable.is_empty(), written.map(|(_, digest)| digest));
        let kept = read_snapshot(disk).filter(|copy| copy.owner.identity == self.writer.identity);
        let kept = kept.map(|copy| copy.snapshot);
        let newest = written.map_or(0, |(version, _)| version);
        let by_log = match &kept {
            Some(kept) if kept.is_in_doubt && kept.version >= newest && by_log != Access::New => DOUBTED,
            _ => by_log,
        };
        let kept = kept.filter(|snapshot| !snapshot.is_in_doubt);
        let kept = kept.map(|kept| (self.differences(&kept, &unreadable), kept));
        let digest_value = written.map(|(_, value)| value);
        let kept = kept.filter(|(restored, kept)| self.is_current(kept, restored, digest_value));
        let restored = kept.as_ref().map(|(restored, _)| restored.clone()).unwrap_or_default();
        is_thin |= !restored.is_empty();
        let access = if kept.is_some() { Access::Whole } else { by_log };
        let is_in_doubt = matches!(access, Access::InDoubt(_));
        let version = self.version_of_epoch();
        self.access.digest = match written {
            // The digest would not match before the lost definitions are written; see `restore_access`.
            _ if !restored.is_empty() => None,
            Some((version, _)) if by_log == Access::Whole => {
                Some(DigestState { version, is_in_doubt, is_due: false })
            }
            // The log does not contain the digest yet.
            _ if is_in_doubt || kept.is_some() => Some(DigestState { version, is_in_doubt, is_due: true }),
            _ => None,
        };
        report.access = AccessReport { access, unreadable, is_thin, restored, definitions: read };
        report.access.take_restored();
        Ok(())
    }

    /// Decides whether the access definitions are complete, from the log alone. `is_readable` means that all definitions
    /// found can be read; `written` is the digest in the log.
    fn access_by_log(&self, report: &Report, is_readable: bool, written: Option<DigestValue>) -> Access {
        match written {
            _ if report.is_new => Access::New,
            _ if report.is_lost => Access::InDoubt("no part of the store can be read"),
            _ if !is_readable => Access::InDoubt("some of them cannot be read"),
            _ if report.commits_lost_at_end >= LOST_COMMITS_MIN => {
                Access::InDoubt("the end of the log, which may have changed them, cannot be read")
            }
            None | Some(DigestValue::Empty) if report.is_damaged() => {
                Access::InDoubt("the store is damaged, and too old to contain their number")
            }
            None if self.access.existed_before => Access::InDoubt("the log has lost all of them"),
            None => Access::Silent,
            Some(DigestValue::Empty) => Access::Whole,
            Some(DigestValue::Whole(digest)) if digest == self.index.access() => Access::Whole,
            Some(DigestValue::Whole(_)) => Access::InDoubt("they are not the last ones written"),
            Some(DigestValue::InDoubt) => DOUBTED,
        }
    }

    /// Returns a version above all versions of earlier epochs.
    pub(super) const fn version_of_epoch(&self) -> u64 {
        (self.writer.epoch as u64) << 32
    }

    /// Returns the definitions that must be written so that the log agrees with the snapshot. Newer
    /// definitions in the log are kept: they were durable, although no client got a confirmation.
    fn differences(&self, snapshot: &Snapshot, unreadable: &[Box<[u8]>]) -> Vec<AccessCorrection> {
        let definitions = self.index.definitions();
        let lost = snapshot.definitions.iter().filter(|entry| {
            definitions.get(&entry.key).is_none_or(|known| known.version < entry.version)
                || unreadable.contains(&entry.key)
        });
        let lost =
            lost.map(|entry| AccessCorrection { key: entry.key.clone(), value: Some(entry.value.clone()) });
        let deleted = definitions.iter().filter(|&(key, known)| {
            let is_gone = known.version <= snapshot.version || unreadable.contains(key);
            is_counted(key) && !known.deleted && is_gone && snapshot.place(key).is_err()
        });
        lost.chain(deleted.map(|(key, _)| AccessCorrection { key: key.clone(), value: None })).collect()
    }

    /// Returns whether a snapshot is current: the log contains nothing newer, or the log and the snapshot
    /// together match the log's digest.
    ///
    /// Otherwise the snapshot is from a file that could for a while neither be written nor removed, and
    /// contains permissions that were revoked since.
    fn is_current(
        &self,
        snapshot: &Snapshot,
        restored: &[AccessCorrection],
        digest_value: Option<DigestValue>,
    ) -> bool {
        let definitions = self.index.definitions();
        let newest = definitions.get(&ACCESS_STORED_KEY[..]).map_or(0, |known| known.version);
        if snapshot.version >= newest {
            return true;
        }
        let mut together = self.index.access();
        for AccessCorrection { key, value } in restored {
            if let Some(known) = definitions.get(key).filter(|known| !known.deleted) {
                together.remove(key, known.version);
            }
            if value.is_some()
                && let Ok(at) = snapshot.place(key)
            {
                together.add(key, snapshot.definitions[at].version);
            }
        }
        matches!(digest_value, Some(DigestValue::Whole(digest)) if digest == together)
    }

    /// Writes lost definitions into the log again, and the new digest with the last of them. An earlier digest would
    /// count definitions that the log does not contain yet. Blocks.
    pub(super) fn restore_access<D: Disk>(
        &mut self,
        disk: &mut D,
        restored: &[AccessCorrection],
        now: Now,
    ) -> io::Result<()> {
        let version = self.version_of_epoch();
        for AccessCorrection { key, value } in restored {
            let record = Record::Defined { version, key, value: value.as_deref() };
            while self.append_reserved(&record, Urgency::Awaited, now).is_err() {
                self.write_restored(disk, now)?;
            }
        }
        if !restored.is_empty() {
            self.access.digest = Some(DigestState { version, is_in_doubt: false, is_due: true });
        }
        while self.has_pending_records() && !restored.is_empty() {
            self.write_restored(disk, now)?;
        }
        Ok(())
    }

    /// Writes the pending commit. Nothing can be confirmed before all restored definitions are in the log, so their
    /// commits may use the same space as the first commit of an epoch.
    fn write_restored<D: Disk>(&mut self, disk: &mut D, now: Now) -> io::Result<()> {
        if self.write_first(disk, now)? { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }

    /// Updates both files beside the log unless they contain the same definitions as the log, and syncs them. From now
    /// on, every commit that changes access updates both files. Blocks.
    pub(super) fn renew_access_file<D: Disk>(&mut self, disk: &mut D) -> io::Result<()> {
        self.access.keeps_files = true;
        let Some(digest) = self.access.digest else { return Ok(()) };
        let owner = Owner { identity: self.writer.identity, segment_bytes: self.settings.segment_bytes };
        let is_kept = |copy: &AccessCopy| {
            let kept = &copy.snapshot;
            copy.owner == owner
                && kept.digest() == self.index.access()
                && kept.is_in_doubt == digest.is_in_doubt
                && kept.version >= digest.version
        };
        let kept = copies(disk).map(|copy| copy.as_ref().is_some_and(is_kept));
        // An earlier process may have been killed before it synced them.
        if kept == [true; _] && ACCESS_SLOTS.into_iter().all(|slot| disk.sync(slot).is_ok()) {
            return Ok(());
        }
        let (version, is_in_doubt) = (digest.version, digest.is_in_doubt);
        let mut snapshot = Snapshot { version, is_in_doubt, ..Snapshot::default() };
        let mut bytes = Vec::new();
        for (key, definition) in self.index.definitions().iter().filter(|(key, _)| is_counted(key)) {
            snapshot.version = snapshot.version.max(definition.version);
            if definition.deleted {
                continue;
            }
            if let Some((value, _)) = self.read_definition(disk, key, definition, &mut bytes)? {
                let (key, version) = (key.clone(), definition.version);
                snapshot.definitions.push(AccessEntry { key, version, value: value.into() });
            }
        }
        if !is_in_doubt && snapshot.digest() != self.index.access() {
            // The disk refuses to read a definition that it could read earlier in this start. A copy without the
            // definition would delete it at a later start.
            self.access.are_files_lost = true;
            return if kept.contains(&true) { Ok(()) } else { forget(disk) };
        }
        self.access.are_files_lost = write(disk, &owner, &snapshot, 0)? == 0;
        Ok(())
    }

    /// Reads the value of a definition from one of its copies or from a footer, and returns the value and where it
    /// was found. Returns `None` if none of them can be read.
    pub(super) fn read_definition<'b, D: Disk>(
        &self,
        disk: &mut D,
        key: &[u8],
        definition: &DefinitionIndex,
        bytes: &'b mut Vec<u8>,
    ) -> io::Result<Option<(&'b [u8], FoundAt)>> {
        let first = (FoundAt::First, definition.place);
        let second = definition.second().map(|place| (FoundAt::Second, place));
        let mut found_at = None;
        for (at, place) in [Some(first), second].into_iter().flatten() {
            let is_found = match self.read_record(disk, place, bytes)? {
                Some(Record::Defined { version, key: found, value }) => {
                    found == key && version == definition.version && value.is_some()
                }
                _ => false,
            };
            if is_found {
                found_at = Some(at);
                break;
            }
        }
        let at = match found_at {
            Some(at) => at,
            None if self.footers().read_repeated(disk, key, definition, bytes)? => FoundAt::Footer,
            None => return Ok(None),
        };
        match Record::parse_known(bytes) {
            Ok((Record::Defined { value: Some(value), .. }, _)) => Ok(Some((value, at))),
            _ => Ok(None),
        }
    }
}

const WHOLE: u8 = 1;
const IN_DOUBT: u8 = 2;
/// Maximum bytes of the digest in a commit.
pub(super) const DIGEST_RECORD_BYTES: usize = 48;

/// A digest of access definitions: their number, and the sum of their hashes. A start uses it to check that
/// it has read everything written last.
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

/// Returns whether the digest covers the definition with this key. These definitions have two copies each.
pub(super) fn is_counted(key: &[u8]) -> bool {
    is_access(key) && *key != ACCESS_STORED_KEY
}

/// FNV-1a, finished like splitmix64 so that sums of hashes do not cancel out.
fn hash(key: &[u8], version: u64) -> u64 {
    let bytes = key.iter().copied().chain(version.to_le_bytes());
    let mut hash = bytes
        .fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3));
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    hash ^ (hash >> 31)
}

/// The decoded value of the digest's definition.
#[derive(Clone, Copy)]
pub(super) enum DigestValue {
    Empty,
    Whole(Digest),
    InDoubt,
}

/// Decodes the value of the digest's definition.
pub(super) fn parse_digest(value: &[u8]) -> DigestValue {
    let mut input = Input::new(value);
    match input.byte() {
        None => DigestValue::Empty,
        Some(WHOLE) => match (input.u32(), input.u64()) {
            (Some(count), Some(sum)) => DigestValue::Whole(Digest { count, sum }),
            _ => DigestValue::InDoubt,
        },
        Some(_) => DigestValue::InDoubt,
    }
}

/// The digest that the log writes with its commits.
#[derive(Clone, Copy, Debug)]
pub(super) struct DigestState {
    pub(super) version: u64,
    pub(super) is_in_doubt: bool,
    /// Whether the digest must be written even if no other record is pending.
    pub(super) is_due: bool,
}

/// The state of the access definitions while the log runs.
///
/// Once there is a digest, every commit with space for it contains it.
#[derive(Debug)]
pub(super) struct AccessState {
    /// Whether access definitions existed before this start.
    pub(super) existed_before: bool,
    /// The digest for the next commits, once there are access definitions.
    pub(super) digest: Option<DigestState>,
    /// Whether the files beside the log are updated with each change. A start reads these files first, and does not
    /// change them before it has compared them with the log.
    pub(super) keeps_files: bool,
    /// Whether neither of the files beside the log is good any more.
    pub(super) are_files_lost: bool,
    /// Deletions that were rewritten once and are still to be written with the next commit, because each
    /// belongs in two commits.
    pub(super) repeated_deletions: Vec<(Box<[u8]>, u64)>,
}

impl AccessState {
    /// Creates the state at a start. `existed_before` is true if access definitions existed before this start.
    pub(super) const fn new(existed_before: bool) -> Self {
        Self {
            existed_before,
            digest: None,
            keeps_files: false,
            are_files_lost: false,
            repeated_deletions: Vec::new(),
        }
    }

    /// Returns whether access definitions have ever existed.
    pub(super) const fn is_there(&self) -> bool {
        self.existed_before || self.digest.is_some()
    }

    /// Returns whether commits contain a digest.
    pub(super) const fn has_digest(&self) -> bool {
        self.digest.is_some()
    }

    /// Returns whether a commit must be made for the digest or for deletions alone.
    pub(super) fn is_due(&self) -> bool {
        self.is_digest_due() || !self.repeated_deletions.is_empty()
    }

    fn is_digest_due(&self) -> bool {
        self.digest.is_some_and(|digest| digest.is_due)
    }

    /// Makes the next commit contain the digest. Does nothing if there are no access definitions.
    pub(super) const fn note_digest_due(&mut self) {
        if let Some(digest) = &mut self.digest {
            digest.is_due = true;
        }
    }

    /// Records that a commit was built; returns whether the files beside the log must be updated when it is durable.
    ///
    /// After a commit with a change, another commit with the digest is written. If damage destroys the commit with
    /// the change, a start still finds the later digest and detects the loss.
    pub(super) fn note_built(&mut self, is_change: bool) -> bool {
        let may_change = is_change || self.is_digest_due();
        if let Some(digest) = &mut self.digest {
            digest.is_due = is_change;
        }
        self.keeps_files && may_change
    }

    /// Returns whether the files beside the log are updated with each change.
    pub(super) const fn keeps_files(&self) -> bool {
        self.keeps_files
    }

    /// Returns whether neither of the files beside the log is good any more.
    pub(super) const fn are_files_lost(&self) -> bool {
        self.are_files_lost
    }

    /// Sets whether neither of the files beside the log is good any more.
    pub(super) const fn set_files_lost(&mut self, are_lost: bool) {
        self.are_files_lost = are_lost;
    }

    /// Records that a deletion was rewritten once.
    pub(super) fn repeat_deletion(&mut self, key: Box<[u8]>, version: u64) {
        self.repeated_deletions.push((key, version));
    }

    /// Removes the next deletion that was rewritten once and must be written again, if its record `fits`, and returns
    /// its key and version.
    pub(super) fn next_repeated_deletion(
        &mut self,
        fits: impl FnOnce(&Record<'_>) -> bool,
    ) -> Option<(Box<[u8]>, u64)> {
        self.repeated_deletions
            .pop_if(|(key, version)| fits(&Record::Defined { version: *version, key, value: None }))
    }

    /// Updates the digest for a record that is being appended. Returns `false` for the definition
    /// [`ACCESS_STORED_KEY`]: it must not be written, because its commit contains the digest under the same key.
    pub(super) fn note(&mut self, record: &Record<'_>, pending: &mut PendingCommit) -> bool {
        let Record::Defined { version, key, .. } = record else { return true };
        if !is_access(key) {
            return true;
        }
        if **key == ACCESS_STORED_KEY {
            self.digest = Some(DigestState { version: *version, is_in_doubt: false, is_due: true });
            return false;
        }
        pending.has_access = true;
        if let Some(digest) = &mut self.digest {
            // The newest version counts; a copy of an old definition changes nothing.
            digest.version = digest.version.max(*version);
            digest.is_due = true;
        }
        true
    }

    /// Appends the digest of all access definitions that are durable when this commit is. The commit may have up to
    /// `end` bytes.
    pub(super) fn append_digest(&self, pending: &mut PendingCommit, index: &Index, end: usize) {
        let Some(digest) = self.digest else { return };
        let is_room = pending.len() + DIGEST_RECORD_BYTES <= end;
        if pending.ends_with_digest() || !(digest.is_due || is_room) {
            return;
        }
        let value = digest_with(pending, index).encode(digest.is_in_doubt);
        let key = &ACCESS_STORED_KEY;
        pending.add(&Record::Defined { version: digest.version, key, value: Some(&value) });
        pending.note_digest();
    }
}

/// Returns the digest of the durable and the pending definitions.
fn digest_with(pending: &PendingCommit, index: &Index) -> Digest {
    let mut digest = index.access();
    if !pending.has_access {
        return digest;
    }
    let mut changed: Vec<(&[u8], u64, bool)> = Vec::new();
    let mut records = pending.record_bytes();
    while let Ok((record, bytes)) = Record::parse_known(records) {
        records = &records[bytes..];
        let Record::Defined { version, key, value } = record else { continue };
        if !is_counted(key) {
            continue;
        }
        let before = changed.iter().rposition(|(other, ..)| *other == key);
        let durable = index.definitions().get(key).map(|known| (known.version, !known.deleted));
        let known = before.map(|at| (changed[at].1, changed[at].2)).or(durable);
        if known.is_some_and(|(known, _)| known >= version) {
            continue;
        }
        if let Some((known, true)) = known {
            digest.remove(key, known);
        }
        if value.is_some() {
            digest.add(key, version);
        }
        changed.push((key, version, value.is_some()));
    }
    digest
}

/// Returns the locations of all access definitions in the log, ascending by key.
pub(super) fn access_locations(index: &Index) -> Vec<DefinitionLocations> {
    let segments = index.segments();
    let slot_of = |place: RecordLocation| segments.get(&place.segment).map(|segment| (segment.slot, place));
    let known = index.definitions().iter().filter(|(key, _)| is_counted(key));
    let known = known.map(|(key, definition)| {
        let places = [Some(definition.place), definition.second()].map(|place| place.and_then(slot_of));
        let places = if definition.deleted { None } else { Some(places) };
        DefinitionLocations { key: key.clone(), version: definition.version, places }
    });
    known.collect()
}

const MAGIC: [u8; 8] = *b"LEVERETA";
const END_MAGIC: [u8; 4] = *b"LVEN";
const END_BYTES: usize = 16;
const FIXED_BYTES: usize = 61;
/// Maximum bytes of a copy. Each change of a user writes the whole copy, which wears the flash.
const FILE_BYTES_MAX: usize = 128 << 10;
/// Number of attempts to read a copy. Flash cards sometimes refuse a read, and these copies are essential.
const READS: usize = 3;

/// An access definition in a copy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct AccessEntry {
    pub(super) key: Box<[u8]>,
    pub(super) version: u64,
    pub(super) value: Box<[u8]>,
}

/// All access definitions with their versions.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Snapshot {
    /// Version of the newest change. Deletions and changes of the digest count as changes.
    pub(super) version: u64,
    /// Whether no operator has confirmed that the definitions are complete.
    pub(super) is_in_doubt: bool,
    /// Ascending by key.
    pub(super) definitions: Vec<AccessEntry>,
}

/// The location of an access definition in the log.
#[derive(Clone, Debug)]
pub(super) struct DefinitionLocations {
    pub(super) key: Box<[u8]>,
    pub(super) version: u64,
    /// Files and locations of both copies; `None` if it was deleted.
    pub(super) places: Option<[Option<(u32, RecordLocation)>; 2]>,
}

/// The result of updating the copies.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct UpdateResult {
    /// Bytes written.
    pub(super) bytes: usize,
    /// Whether no good copy is left.
    pub(super) is_lost: bool,
}

/// A good copy of the access definitions, in a file beside the log.
///
/// A bad flash card loses the newest part of the log in a power cut. Then these files are needed: they contain every
/// access definition, not only a digest.
///
/// ```text
/// directory | access.a | access.b |                two copies, written and synced one after the other
///
/// copy      | magic "LEVERETA" | CRC32C u32 | length u32 | copy number u64 | version u64 | store id 16 |
///             0                  8            12           16                24            32
///           | secret u64 | segment bytes u32 | 1 whole, 2 in doubt | definitions ... | end | zeros |
///             48           56                  60                    61                length
///
/// end       | magic "LVEN" | CRC32C u32 | commit u64 |      a commit that was synced: the log has no less
/// ```
///
/// All integers are little endian. The CRC covers everything from `length` on. The last byte of the magic is
/// the version of the format. `version` is that of the newest change: a definition of the log that is not
/// newer and is missing here was deleted. A restored backup has no such files; the next start creates them.
///
/// The *end* is the number of the last commit of a clean stop. It is stored in these files because damage to the end
/// of the log would destroy it in the log. Versions of Leveret that know no *end* do not write it. It has its own
/// CRC, which starts from the store's seed, so it can be used even if the rest of the copy is not good.
///
/// # Invariants
/// - A copy is written after the sync of the commit that it reflects, and before the change is confirmed.
/// - A good copy agrees with the digest of the newest commit that contains one. There are three exceptions.
///   The first is the time between that commit and the copy. The second is a copy that could neither be
///   written nor removed; its version shows that it is old. The third is a start, which reads and reconciles
///   both.
/// - A copy that is not good is ignored, except for its *end*.
/// - The older copy is written first. Once there are two copies, one is good while the other is written.
/// - Lost copies are written again with the next change.
/// - A copy that cannot be written is not fatal, unless an outdated good copy stays that a start would use.
pub(super) struct AccessCopy {
    number: u64,
    pub(super) owner: Owner,
    pub(super) snapshot: Snapshot,
    /// Number of a commit that was synced; 0 if none is known.
    pub(super) end: u64,
}

impl Snapshot {
    /// Applies a definition unless it is older than the known one.
    pub(super) fn apply(&mut self, key: &[u8], version: u64, value: Option<&[u8]>) {
        if !is_counted(key) {
            return;
        }
        let place = self.place(key);
        let is_old = match place {
            Ok(at) => self.definitions[at].version >= version,
            // The compactor also copies definitions that were deleted since.
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
            let entry = AccessEntry { key: key.into(), version, value: value.into() };
            self.definitions.insert(place.unwrap_or_else(|at| at), entry);
        }
    }

    /// Returns the index of a key, or where it would be inserted.
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
        for AccessEntry { key, version, value } in &self.definitions {
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

/// Appends the number of the last synced commit.
fn put_end(out: &mut Vec<u8>, end: u64, owner: &Owner) {
    out.extend_from_slice(&END_MAGIC);
    out.extend_from_slice(&crc32c::crc32c_append(owner.identity.seed(), &end.to_le_bytes()).to_le_bytes());
    out.extend_from_slice(&end.to_le_bytes());
}

/// Reads the number of the last synced commit at the start of `bytes`, if it is valid.
fn read_end(bytes: &[u8], identity: &Identity) -> Option<u64> {
    let mut input = Input::new(bytes);
    let (magic, sum, end) = (input.take(4)?, input.u32()?, input.u64()?);
    let is_good = *magic == END_MAGIC && sum == crc32c::crc32c_append(identity.seed(), &end.to_le_bytes());
    is_good.then_some(end)
}

impl AccessCopy {
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
            snapshot.definitions.push(AccessEntry { key: key.into(), version, value: value.into() });
            records = &records[taken..];
        }
        let end = read_end(&bytes[length..], &owner.identity).unwrap_or(0);
        Some(Self { number, owner, snapshot, end })
    }
}

/// Returns the newest good copy.
pub(super) fn read_snapshot<D: Disk>(disk: &mut D) -> Option<AccessCopy> {
    copies(disk).into_iter().flatten().max_by_key(|copy| copy.number)
}

/// Returns each of the copies that is good.
pub(super) fn copies<D: Disk>(disk: &mut D) -> [Option<AccessCopy>; ACCESS_SLOTS.len()] {
    ACCESS_SLOTS.map(|slot| read_copy(disk, slot))
}

/// Reads a copy. A copy that cannot be read after [`READS`] attempts is treated as not good, because the log may
/// still be complete.
fn read_copy<D: Disk>(disk: &mut D, slot: u32) -> Option<AccessCopy> {
    AccessCopy::parse(&read_bytes(disk, slot)?)
}

/// Reads the bytes of a copy, good or not, up to its claimed length.
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

/// Returns the number of the newest commit that any copy records as synced, for the store with this `identity`; 0 if
/// there is none. This number has its own checksum, so a copy left half written by a power cut may still contain it.
pub(super) fn read_end_of<D: Disk>(disk: &mut D, identity: &Identity) -> u64 {
    let copies = ACCESS_SLOTS.into_iter().filter_map(|slot| read_bytes(disk, slot));
    let end_in = |bytes: Vec<u8>| (0..bytes.len()).filter_map(|at| read_end(&bytes[at..], identity)).max();
    copies.filter_map(end_in).max().unwrap_or(0)
}

/// Records in the existing copies that a commit is the last of its epoch and was synced; returns the bytes written.
/// With `only_repeated`, the epoch's only commit is the one that repeats the last commit that its start found.
pub(super) fn note_end<D: Disk>(
    disk: &mut D,
    owner: &Owner,
    number: u64,
    only_repeated: bool,
) -> io::Result<usize> {
    let kept = read_snapshot(disk).filter(|copy| copy.owner == *owner);
    let needed = number - u64::from(only_repeated);
    match kept {
        Some(kept) if kept.end < needed => write(disk, owner, &kept.snapshot, number),
        _ => Ok(0),
    }
}

/// Returns whether there is a copy, good or not. A store with such a file is not new.
pub(super) fn is_there<D: Disk>(disk: &mut D) -> bool {
    ACCESS_SLOTS.into_iter().any(|slot| is_copy_there(disk, slot))
}

/// Returns whether the file of a copy exists and is not empty, or cannot be read.
fn is_copy_there<D: Disk>(disk: &mut D, slot: u32) -> bool {
    match disk.read(slot, 0, &mut [0]) {
        Ok(length) => length > 0,
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// Rebuilds the snapshot from the locations in the log; `None` if some definition cannot be read.
fn rebuild<D: Disk>(disk: &mut D, known: &[DefinitionLocations]) -> Option<Snapshot> {
    let (mut snapshot, mut bytes) = (Snapshot::default(), Vec::new());
    for DefinitionLocations { key, version, places } in known {
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
        snapshot.definitions.push(AccessEntry { key: key.clone(), version: *version, value: value? });
    }
    Some(snapshot)
}

/// Updates the copies from the records of a commit that was just synced. If the copies were lost,
/// `known_locations` are the locations of all access definitions in the log.
pub(super) fn update<D: Disk>(
    disk: &mut D,
    owner: &Owner,
    number: u64,
    records: &[u8],
    known_locations: Option<&[DefinitionLocations]>,
) -> io::Result<UpdateResult> {
    let kept = read_snapshot(disk).filter(|copy| copy.owner == *owner);
    let before = kept.as_ref().map(|copy| &copy.snapshot);
    let rebuilt = known_locations.and_then(|known| rebuild(disk, known));
    let is_some = rebuilt.is_some() || kept.is_some();
    let mut snapshot = rebuilt.or_else(|| before.cloned()).unwrap_or_default();
    let (mut digest_value, mut digest_version) = (DigestValue::Empty, 0);
    for_each_record(records, 0, |record, _| match record {
        Record::Defined { version, key, value } if **key == ACCESS_STORED_KEY => {
            (digest_value, digest_version) = (parse_digest(value.unwrap_or_default()), *version);
        }
        Record::Defined { version, key, value } if is_access(key) => snapshot.apply(key, *version, *value),
        _ => {}
    });
    let is_known = match digest_value {
        // There are no access definitions yet.
        DigestValue::Empty => return Ok(UpdateResult::default()),
        DigestValue::Whole(digest) => digest == snapshot.digest(),
        DigestValue::InDoubt => is_some,
    };
    if !is_known {
        return forget(disk).map(|()| UpdateResult { bytes: 0, is_lost: true });
    }
    snapshot.is_in_doubt = matches!(digest_value, DigestValue::InDoubt);
    snapshot.version = snapshot.version.max(digest_version);
    if before == Some(&snapshot) {
        return Ok(UpdateResult::default());
    }
    let bytes = write(disk, owner, &snapshot, number)?;
    Ok(UpdateResult { bytes, is_lost: bytes == 0 })
}

/// Writes both copies, the older one first, and returns the bytes written.
///
/// The copies also record that commit `synced` was synced, unless they already record a newer one. A copy that cannot
/// be written is deleted and created again. If that fails too, the broker continues without the copy, because the log
/// has all definitions.
///
/// # Errors
/// Writing a copy is not permitted, or the disk failed. The disk failed if the directory cannot be synced, or if an
/// outdated good copy stays.
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
        let made = create_copy(disk, slot, &bytes).or_else(|error| {
            // A wrong permission is a mistake of the installation. The file is intact, and may be the last
            // good copy.
            if error.kind() == io::ErrorKind::PermissionDenied {
                return Err(error);
            }
            // A bad sector or a damaged inode: create another file elsewhere.
            let _ = disk.remove(slot);
            create_copy(disk, slot, &bytes)
        });
        match made {
            Ok(()) => written += bytes.len(),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
            Err(error) => abandon_copy(disk, slot, error)?,
        }
    }
    Ok(written)
}

/// Creates or replaces the file of a copy, durably.
fn create_copy<D: Disk>(disk: &mut D, slot: u32, bytes: &[u8]) -> io::Result<()> {
    let is_new = !is_copy_there(disk, slot);
    disk.create(slot)?;
    disk.write(slot, 0, bytes)?;
    disk.sync(slot)?;
    if is_new { disk.sync_directory() } else { Ok(()) }
}

/// Continues without a copy that cannot be written.
#[cold]
fn abandon_copy<D: Disk>(disk: &mut D, slot: u32, error: io::Error) -> io::Result<()> {
    let name = if slot == ACCESS_SLOTS[0] { "access.a" } else { "access.b" };
    log::error!(
        "{name}, a copy of the users outside the log, cannot be written ({error}); it is written again with the \
         next change of users or at the next start: check the disk"
    );
    let silenced = invalidate(disk, slot);
    disk.sync_directory()?;
    silenced.map_err(|_| error)
}

/// Invalidates the existing copies. A start still sees from the files that there was a store.
///
/// # Errors
/// A copy stays as it is, and a later start would use it.
pub fn forget<D: Disk>(disk: &mut D) -> io::Result<()> {
    for slot in ACCESS_SLOTS {
        if is_copy_there(disk, slot) {
            invalidate(disk, slot)?;
        }
    }
    Ok(())
}

/// Invalidates a copy, because a start with a damaged log would use the outdated definitions in it.
fn invalidate<D: Disk>(disk: &mut D, slot: u32) -> io::Result<()> {
    let zeroed = disk.write(slot, 0, &[0; BLOCK_BYTES]).and_then(|()| disk.sync(slot));
    let Err(error) = zeroed else { return Ok(()) };
    if disk.remove(slot).is_ok() {
        return disk.sync_directory();
    }
    // A copy that cannot be read, or is empty, is invalid anyway.
    if matches!(disk.read(slot, 0, &mut [0]), Ok(0) | Err(_)) { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod access_file_tests {
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
