//! Whether what the log says of users and permissions is all of it.
//!
//! Why it exists: a start sets aside what is damaged and goes on with the rest. For messages that is right;
//! of access, the rest may be what somebody took away. So every commit that has room, and each that follows a
//! change, repeats a digest of all that says who may do what, and a start compares it with what it has read:
//! it lets in whom the log vouches for, or nobody.
//!
//! ```text
//! value of the definition "access is written down", see `journal::definition`
//!
//! nothing                                           written before there was a digest
//! | 1 whole, 2 in doubt | definitions u32 | sum u64 |
//! ```
//!
//! Little endian. The sum is over a hash of key and version of each live definition of access, this one left
//! out. In doubt: a start could not vouch for them, and nobody has confirmed them since. Versions before
//! there was a digest take no notice of the value.
//!
//! Whom the log cannot vouch for, the files beside it may (`access_file`): what they say is everything that
//! anybody was told to be done, and what the log has lost of it is written into the log again. A file that
//! is older than what the log says of itself vouches for nobody: it could not be removed when it was due. And
//! a file that is not older and says "in doubt" is believed.
//!
//! Always true: a commit with a change of access has the digest with it, so a power cut never parts them; the
//! digest is of what is durable with its commit; a doubt ends when somebody confirms what there is, and with
//! nothing else, however often it starts.

use std::io;

use leveret_core::journal::Urgency;
use leveret_core::journal::definition::{ACCESS_WRITTEN_KEY, is_access};
use leveret_core::time::Now;

use super::access_digest::{Said, Vouch, is_counted, said};
use super::access_file::{self, Entry, Snapshot};
use super::commit::Owner;
use super::definition_index::DefinitionIndex;
use super::disk::Disk;
use super::log::Log;
use super::record::Record;
use super::record_walk;
use super::report::{Access, AccessDefinition, AccessReport, Report, Restored, Step};

/// Where a definition could be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FoundAt {
    First,
    Second,
    /// At no place of its own: a footer repeats it.
    Footer,
}

/// So many commits lost at the end may have held a change that was answered: every change is in two.
const LOST_COMMITS_MIN: u64 = 2;

const DOUBTED: Access = Access::InDoubt("they were so before, and nobody has confirmed them");

impl Log {
    /// Judges what was read of access, and goes on from there.
    pub(super) fn judge_access<D: Disk>(&mut self, disk: &mut D, report: &mut Report) -> io::Result<()> {
        let (mut unreadable, mut is_thin, mut written, mut read) = (Vec::new(), false, None, Vec::new());
        let mut bytes = Vec::new();
        for (key, definition) in self.index.definitions() {
            if !is_access(key) || definition.deleted {
                continue;
            }
            let is_digest = **key == ACCESS_WRITTEN_KEY;
            is_thin |= definition.second.is_none() && !is_digest;
            match self.read_definition(disk, (key, definition), &mut bytes)? {
                Some((value, place)) => {
                    is_thin |= place != FoundAt::First && !is_digest;
                    if is_digest {
                        written = Some((definition.version, said(value)));
                    }
                    read.push(AccessDefinition { key: key.clone(), value: value.into() });
                }
                None => unreadable.push(key.clone()),
            }
        }
        let access = match &written {
            _ if report.is_new => Access::New,
            _ if report.is_lost => Access::InDoubt("nothing of the store can be read any more"),
            _ if !unreadable.is_empty() => Access::InDoubt("some of them cannot be read"),
            _ if report.commits_lost_at_end >= LOST_COMMITS_MIN => {
                Access::InDoubt("the end of the log, which may have changed them, cannot be read")
            }
            None | Some((_, Said::Nothing)) if report.is_damaged() => {
                Access::InDoubt("the store is damaged, and too old to say whether they are all there")
            }
            None if self.access.was_there => {
                Access::InDoubt("nothing is left of them, although there was something")
            }
            None => Access::Silent,
            Some((_, Said::Nothing)) => Access::Whole,
            Some((_, Said::Whole(digest))) if *digest == self.index.access() => Access::Whole,
            Some((_, Said::Whole(_))) => Access::InDoubt("they are not those that were written last"),
            Some((_, Said::InDoubt)) => DOUBTED,
        };
        let kept = access_file::read(disk).filter(|copy| copy.owner.identity == self.writer.identity);
        let kept = kept.map(|copy| copy.snapshot);
        let newest = written.map_or(0, |(version, _)| version);
        let access = match &kept {
            Some(kept) if kept.is_in_doubt && kept.version >= newest && access != Access::New => DOUBTED,
            _ => access,
        };
        let kept = kept.filter(|snapshot| !snapshot.is_in_doubt);
        let kept = kept.map(|kept| (self.differences(&kept, &unreadable), kept));
        let said = written.map(|(_, said)| said);
        let kept = kept.filter(|(restored, kept)| self.is_current(kept, restored, said));
        let restored = kept.as_ref().map(|(restored, _)| restored.clone()).unwrap_or_default();
        is_thin |= !restored.is_empty();
        let by_log = access;
        let access = if kept.is_some() { Access::Whole } else { by_log };
        let is_in_doubt = matches!(access, Access::InDoubt(_));
        let version = self.version_of_life();
        self.access.vouch = match written {
            // What it would say of itself is not yet so; see `restore_access`.
            _ if !restored.is_empty() => None,
            Some((version, _)) if by_log == Access::Whole => {
                Some(Vouch { version, is_in_doubt, is_due: false })
            }
            // The log does not say so itself yet.
            _ if is_in_doubt || kept.is_some() => Some(Vouch { version, is_in_doubt, is_due: true }),
            _ => None,
        };
        report.access = AccessReport { access, unreadable, is_thin, restored, definitions: read };
        report.access.take_restored();
        Ok(())
    }

    /// Above every version of the lives before.
    pub(super) const fn version_of_life(&self) -> u64 {
        (self.writer.life as u64) << 32
    }

    /// What the log must be told so that it says what the snapshot says. What is newer in the log stays: it
    /// was durable, although nobody was told so.
    fn differences(&self, snapshot: &Snapshot, unreadable: &[Box<[u8]>]) -> Vec<Restored> {
        let definitions = self.index.definitions();
        let lost = snapshot.definitions.iter().filter(|entry| {
            definitions.get(&entry.key).is_none_or(|known| known.version < entry.version)
                || unreadable.contains(&entry.key)
        });
        let lost = lost.map(|entry| Restored { key: entry.key.clone(), value: Some(entry.value.clone()) });
        let deleted = definitions.iter().filter(|&(key, known)| {
            let is_gone = known.version <= snapshot.version || unreadable.contains(key);
            is_counted(key) && !known.deleted && is_gone && snapshot.place(key).is_err()
        });
        lost.chain(deleted.map(|(key, _)| Restored { key: key.clone(), value: None })).collect()
    }

    /// Whether a snapshot can be the newest: the log knows of nothing newer, or has what is newer itself, so
    /// that the two together are what it says that there is. Else it is of a file that could for a while
    /// neither be written nor removed, and says what was taken away since.
    fn is_current(&self, snapshot: &Snapshot, restored: &[Restored], said: Option<Said>) -> bool {
        let definitions = self.index.definitions();
        let newest = definitions.get(&ACCESS_WRITTEN_KEY[..]).map_or(0, |known| known.version);
        if snapshot.version >= newest {
            return true;
        }
        let mut together = self.index.access();
        for Restored { key, value } in restored {
            if let Some(known) = definitions.get(key).filter(|known| !known.deleted) {
                together.remove(key, known.version);
            }
            if value.is_some()
                && let Ok(at) = snapshot.place(key)
            {
                together.add(key, snapshot.definitions[at].version);
            }
        }
        matches!(said, Some(Said::Whole(digest)) if digest == together)
    }

    /// Writes what the log had lost into it again, and that this is all, with the last of it: a log that said
    /// so earlier would vouch for what it has lost. Blocks.
    pub(super) fn restore_access<D: Disk>(
        &mut self,
        disk: &mut D,
        restored: &[Restored],
        now: Now,
    ) -> io::Result<()> {
        let version = self.version_of_life();
        for Restored { key, value } in restored {
            let record = Record::Defined { version, key, value: value.as_deref() };
            while self.append_reserved(&record, Urgency::Awaited, now).is_err() {
                self.step_at_once(disk, now)?;
            }
        }
        if !restored.is_empty() {
            self.access.vouch = Some(Vouch { version, is_in_doubt: false, is_due: true });
        }
        while self.has_gathered() && !restored.is_empty() {
            self.step_at_once(disk, now)?;
        }
        Ok(())
    }

    fn step_at_once<D: Disk>(&mut self, disk: &mut D, now: Now) -> io::Result<()> {
        self.hurry();
        match self.step(disk, now)? {
            Step::Nothing => Err(io::ErrorKind::StorageFull.into()),
            Step::Prepared | Step::Committed => Ok(()),
        }
    }

    /// Makes both files beside the log say what the log says, unless they do; from now on every commit that
    /// changes access does. Blocks.
    pub(super) fn renew_access_file<D: Disk>(&mut self, disk: &mut D) -> io::Result<()> {
        self.access.keeps_files = true;
        let Some(vouch) = self.access.vouch else { return Ok(()) };
        let owner = Owner { identity: self.writer.identity, segment_bytes: self.settings.segment_bytes };
        let is_kept = |copy: &access_file::Copy| {
            let kept = &copy.snapshot;
            copy.owner == owner
                && kept.digest() == self.index.access()
                && kept.is_in_doubt == vouch.is_in_doubt
                && kept.version >= vouch.version
        };
        let kept = access_file::copies(disk).map(|copy| copy.as_ref().is_some_and(is_kept));
        if kept == [true; _] {
            return Ok(());
        }
        let (version, is_in_doubt) = (vouch.version, vouch.is_in_doubt);
        let mut snapshot = Snapshot { version, is_in_doubt, ..Snapshot::default() };
        let mut bytes = Vec::new();
        for (key, definition) in self.index.definitions().iter().filter(|(key, _)| is_counted(key)) {
            snapshot.version = snapshot.version.max(definition.version);
            if definition.deleted {
                continue;
            }
            if let Some((value, _)) = self.read_definition(disk, (key, definition), &mut bytes)? {
                let (key, version) = (key.clone(), definition.version);
                snapshot.definitions.push(Entry { key, version, value: value.into() });
            }
        }
        if !is_in_doubt && snapshot.digest() != self.index.access() {
            // The disk refuses what it gave a moment ago. A copy without it would delete it at a later start.
            self.access.are_files_lost = true;
            return if kept.contains(&true) { Ok(()) } else { access_file::forget(disk) };
        }
        self.access.are_files_lost = access_file::write(disk, &owner, &snapshot, 0)? == 0;
        Ok(())
    }

    /// The value of a definition, from the one or the other place that has it, or a footer; and from which.
    pub(super) fn read_definition<'b, D: Disk>(
        &self,
        disk: &mut D,
        (key, definition): (&[u8], &DefinitionIndex),
        bytes: &'b mut Vec<u8>,
    ) -> io::Result<Option<(&'b [u8], FoundAt)>> {
        let first = (FoundAt::First, definition.place);
        let second = definition.second.map(|place| (FoundAt::Second, place));
        let mut found_at = None;
        for (at, place) in [Some(first), second].into_iter().flatten() {
            let is_found = match record_walk::read_record(&self.index, disk, place, bytes)? {
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
            None if self.footers().read_repeated(disk, (key, definition), bytes)? => FoundAt::Footer,
            None => return Ok(None),
        };
        match Record::parse_known(bytes) {
            Ok((Record::Defined { value: Some(value), .. }, _)) => Ok(Some((value, at))),
            _ => Ok(None),
        }
    }
}
