//! What the log knows of users and permissions while it runs; `access` judges it at a start.
//!
//! Always true: once a digest is to be said, every commit that has room for it says it.

use leveret_core::journal::definition::{ACCESS_WRITTEN_KEY, is_access};

use super::access_digest::{DIGEST_RECORD_BYTES, Digest, Vouch, is_counted};
use super::access_file::Known;
use super::gathering::Gathering;
use super::index::Index;
use super::place::Place;
use super::record::Record;

/// What the log knows of access while it runs.
#[derive(Debug)]
pub(super) struct AccessState {
    /// It was said before this start who there is.
    pub(super) was_there: bool,
    /// What each commit says of access, once something was said.
    pub(super) vouch: Option<Vouch>,
    /// The files beside the log follow what is written. During a start they are what vouches, and stay.
    pub(super) keeps_files: bool,
    /// There is no good one of them any more.
    pub(super) are_files_lost: bool,
    /// Deletions that were carried once, for the next commit: two commits are to have them.
    pub(super) deletions_again: Vec<(Box<[u8]>, u64)>,
}

impl AccessState {
    /// What a start begins with: whether it was said before who there is.
    pub(super) const fn new(was_there: bool) -> Self {
        Self {
            was_there,
            vouch: None,
            keeps_files: false,
            are_files_lost: false,
            deletions_again: Vec::new(),
        }
    }

    /// Whether it was ever said who there is.
    pub(super) const fn is_there(&self) -> bool {
        self.was_there || self.vouch.is_some()
    }

    /// Whether commits have a digest.
    pub(super) const fn has_digest(&self) -> bool {
        self.vouch.is_some()
    }

    /// Whether a commit is to be made for the digest alone, or for deletions.
    pub(super) fn is_due(&self) -> bool {
        self.is_digest_due() || !self.deletions_again.is_empty()
    }

    fn is_digest_due(&self) -> bool {
        self.vouch.is_some_and(|vouch| vouch.is_due)
    }

    /// The next commit is to have a digest, if there is one at all.
    pub(super) const fn note_digest_due(&mut self) {
        if let Some(vouch) = &mut self.vouch {
            vouch.is_due = true;
        }
    }

    /// A commit is built, which changes access or does not; whether the files beside the log follow it. A
    /// change is followed by a commit that tells of it: so its loss is noticed, wherever in the log it lies.
    pub(super) fn note_built(&mut self, is_change: bool) -> bool {
        let may_change = is_change || self.is_digest_due();
        if let Some(vouch) = &mut self.vouch {
            vouch.is_due = is_change;
        }
        self.keeps_files && may_change
    }

    /// Whether the files beside the log follow what is written.
    pub(super) const fn keeps_files(&self) -> bool {
        self.keeps_files
    }

    /// Whether there is no good one of them any more.
    pub(super) const fn are_files_lost(&self) -> bool {
        self.are_files_lost
    }

    /// They were written, or are lost.
    pub(super) const fn set_files_lost(&mut self, are_lost: bool) {
        self.are_files_lost = are_lost;
    }

    /// A deletion was carried once.
    pub(super) fn carry_again(&mut self, key: Box<[u8]>, version: u64) {
        self.deletions_again.push((key, version));
    }

    /// Takes a deletion that was carried once, if `fits`.
    pub(super) fn next_again(&mut self, fits: impl FnOnce(&Record<'_>) -> bool) -> Option<(Box<[u8]>, u64)> {
        self.deletions_again
            .pop_if(|(key, version)| fits(&Record::Defined { version: *version, key, value: None }))
    }

    /// A definition of access is to gather; `false`: it is not to be written as it is, for the digest of its commit
    /// says it.
    pub(super) fn note(&mut self, record: &Record<'_>, gathering: &mut Gathering) -> bool {
        let Record::Defined { version, key, .. } = record else { return true };
        if !is_access(key) {
            return true;
        }
        if **key == ACCESS_WRITTEN_KEY {
            self.vouch = Some(Vouch { version: *version, is_in_doubt: false, is_due: true });
            return false;
        }
        gathering.note_access();
        if let Some(vouch) = &mut self.vouch {
            // What is said later holds; a copy of something old changes nothing.
            vouch.version = vouch.version.max(*version);
            vouch.is_due = true;
        }
        true
    }

    /// Appends the digest of everything that is there with this commit, which ends at byte `end` at most.
    pub(super) fn gather_digest(&self, gathering: &mut Gathering, index: &Index, end: usize) {
        let Some(vouch) = self.vouch else { return };
        let is_room = gathering.len() + DIGEST_RECORD_BYTES <= end;
        if gathering.ends_with_digest() || !(vouch.is_due || is_room) {
            return;
        }
        let value = digest_with(gathering, index).encode(vouch.is_in_doubt);
        let key = &ACCESS_WRITTEN_KEY;
        gathering.add(&Record::Defined { version: vouch.version, key, value: Some(&value) });
        gathering.note_digest();
    }
}

/// The digest of what is durable and of what gathers.
fn digest_with(gathering: &Gathering, index: &Index) -> Digest {
    let mut digest = index.access();
    if !gathering.has_access() {
        return digest;
    }
    let mut changed: Vec<(&[u8], u64, bool)> = Vec::new();
    let mut records = gathering.record_bytes();
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

/// Where the log has everything there is of access, rising by the keys.
pub(super) fn access_places(index: &Index) -> Vec<Known> {
    let segments = index.segments();
    let slot_of = |place: Place| segments.get(&place.segment).map(|segment| (segment.slot, place));
    let known = index.definitions().iter().filter(|(key, _)| is_counted(key));
    let known = known.map(|(key, definition)| {
        let places = [Some(definition.place), definition.second].map(|place| place.and_then(slot_of));
        let places = if definition.deleted { None } else { Some(places) };
        Known { key: key.clone(), version: definition.version, places }
    });
    known.collect()
}
