//! Store files that were changed outside the broker: mixed with another store or another day, cut, or present
//! twice.
//!
//! Messages that are served are unaltered and of this store. Missing and returned data is reported by the
//! start, and before by `inspect`. Messages confirmed afterwards are kept.

use std::collections::{BTreeMap, BTreeSet};

use leveret_core::definition::ACCESS_STORED_KEY;
use leveret_storage::{
    ACCESS_SLOTS, Body, Disk, Identity, Log, Message, NEWEST_SLOT, Range, Record, Target, Targets, Urgency,
};
use leveret_test_support::simulated_disk::{Mutant, SimDisk, Trouble};

use crate::sample::PLAIN;
use crate::small::{IDENTITY, NOW, OTHER, settings, turn};

/// The bytes of each file.
type Files = BTreeMap<u32, Vec<u8>>;

/// Returns the body of a message of this store and offset.
fn body(store: u8, offset: u64) -> Vec<u8> {
    let mut bytes = vec![store; 100 + (offset * 7919 % 700) as usize];
    bytes[..8].copy_from_slice(&offset.to_le_bytes());
    bytes
}

struct Store {
    log: Log,
    disk: SimDisk,
    letter: u8,
    next: u64,
}

impl Store {
    fn new(letter: u8, identity: Identity) -> Self {
        let disk = SimDisk::new(1, Mutant::None, identity);
        disk.start(Trouble::Never);
        let log = Log::open(&mut disk.clone(), settings(), identity, NOW).expect("it opens").0;
        Self { log, disk, letter, next: 0 }
    }

    /// Creates a user, who is also recorded beside the log.
    fn let_in(&mut self) {
        for (version, key) in [(1, b"\0\x02\x05alice".as_slice()), (2, &ACCESS_STORED_KEY)] {
            let record = Record::Defined { version, key, value: Some(b"") };
            self.log.append_reserved(&record, Urgency::Awaited, NOW).expect("there is room");
            turn(&mut self.log, &mut self.disk);
            turn(&mut self.log, &mut self.disk);
        }
    }

    fn of(files: &Files, letter: u8) -> Self {
        let disk = disk_of(files);
        let log = Log::open(&mut disk.clone(), settings(), OTHER, NOW).expect("it opens").0;
        Self { log, disk, letter, next: 100_000 }
    }

    /// Publishes `count` messages, a few in each commit. All but one in five of the messages before are
    /// settled.
    fn go_on(&mut self, count: u64) {
        for offset in self.next..self.next + count {
            let target = [Target { queue: 1, offset }];
            let bytes = body(self.letter, offset);
            let message = Message { targets: Targets::List(&target), body: Body::Inline(&bytes), ..PLAIN };
            while self.log.append(&Record::Message(message), Urgency::Window, NOW).is_err() {
                self.log.flush();
                turn(&mut self.log, &mut self.disk);
            }
            if let Some(old) = offset.checked_sub(40).filter(|old| old % 5 > 0) {
                self.log.settle(1, Range { start: old, end: old + 1 }, Urgency::Window, NOW);
            }
            if offset % 3 == 0 {
                self.log.flush();
                turn(&mut self.log, &mut self.disk);
            }
        }
        self.next += count;
        for _ in 0..20 {
            self.log.flush();
            turn(&mut self.log, &mut self.disk);
        }
    }

    /// Publishes one more message in a commit of its own. Returns `false` if the disk is gone.
    fn goes_on(&mut self) -> bool {
        let target = [Target { queue: 1, offset: self.next }];
        let message = Message { targets: Targets::List(&target), ..PLAIN };
        self.next += 1;
        while let Some(job) = self.log.next_prepare() {
            if self.log.prepare_done(job.run(&mut self.disk)).is_err() {
                return false;
            }
        }
        self.log.append(&Record::Message(message), Urgency::Awaited, NOW).expect("there is room");
        let job = self.log.next_commit(NOW).expect("a commit is awaited");
        self.log.commit_done(job.run(&mut self.disk)).is_ok()
    }

    fn files(&self) -> Files {
        let mut disk = self.disk.clone();
        let slots = disk.slots().expect("the disk is well").into_iter().chain([NEWEST_SLOT]);
        let slots = slots.chain(ACCESS_SLOTS);
        let mut read = |slot| {
            let mut bytes = vec![0; 64 << 10];
            let length = disk.read(slot, 0, &mut bytes).expect("the disk is well");
            bytes.truncate(length);
            (slot, bytes)
        };
        slots.map(&mut read).filter(|(_, bytes)| !bytes.is_empty()).collect()
    }

    /// Returns the offsets that can be read, and checks their bodies.
    fn served(&mut self, case: &str) -> BTreeSet<u64> {
        let (mut found, mut at, letter) = (BTreeSet::new(), 0, self.letter);
        while at < u64::MAX {
            let all = Range { start: at, end: u64::MAX };
            let job = self.log.fetch(1, all, 64 << 10).expect("the buffer is free");
            let done = job.run(&mut self.disk);
            at = self
                .log
                .fetch_done(done, |offset, message| {
                    assert!(
                        message.body == Body::Inline(&body(letter, offset)),
                        "{case}: {offset} is altered"
                    );
                    assert!(found.insert(offset), "{case}: {offset} comes twice");
                })
                .through;
        }
        found
    }
}

/// Returns a store that has been used for some time, on two days.
fn two_days() -> (Files, Files, BTreeSet<u64>) {
    let mut store = Store::new(b'a', IDENTITY);
    store.go_on(300);
    let first = store.files();
    store.go_on(260);
    let live = store.served("before");
    (first, store.files(), live)
}

fn disk_of(files: &Files) -> SimDisk {
    let mut disk = SimDisk::new(1, Mutant::None, IDENTITY);
    disk.start(Trouble::Never);
    for (slot, bytes) in files {
        disk.create(*slot).expect("the disk is well");
        disk.write(*slot, 0, bytes).expect("the disk is well");
        disk.sync(*slot).expect("the disk is well");
    }
    disk.sync_directory().expect("the disk is well");
    disk.start(Trouble::Never);
    disk
}

/// Checks that changed files are reported and that the store continues. Returns the number of lost messages.
fn is_told_and_goes_on(case: &str, files: &Files, live: &BTreeSet<u64>) -> usize {
    let disk = disk_of(files);
    let is_good =
        Log::inspect(&mut disk.clone()).is_ok_and(|(_, report)| report.describe_damage().is_empty());
    let (log, report) = Log::open(&mut disk.clone(), settings(), OTHER, NOW).expect("it opens");
    let mut store = Store { log, disk, letter: b'a', next: 100_000 };
    let found = store.served(case);
    let (missing, back) = (live - &found, &found - live);
    let is_told = report.is_damaged() || report.is_lost || !report.refused.is_empty();
    let differs = !missing.is_empty() || !back.is_empty();
    assert!(!differs || is_told, "{case}: {missing:?} missing, {back:?} back, not a word: {report:?}");
    assert!(!differs || !is_good, "{case}: {missing:?} missing, {back:?} back, and inspect calls it good");
    store.go_on(60);
    let promised = store.served(case);
    for start in 0..2 {
        store = Store::of(&store.files(), b'a');
        assert_eq!(store.served(case), promised, "{case}: at start {start} after it");
    }
    missing.len()
}

#[test]
fn a_file_cut_to_any_length_loses_only_the_missing_part_and_is_reported() {
    let (_, files, live) = two_days();
    for (name, bytes) in &files {
        for length in
            [0, 1, 76, 511, 4095, 4096, 4097, 5000, 8192, 20_000, 32 << 10, 60 << 10, (64 << 10) - 1]
        {
            let mut files = files.clone();
            files.insert(*name, bytes[..length.min(bytes.len())].to_vec());
            is_told_and_goes_on(&format!("{length} bytes of file {name}"), &files, &live);
        }
    }
}

/// A file is reused when its segment has been deleted. A missing or shortened one is completed before.
///
/// Otherwise a write would find no file, and a short segment would count as truncated.
#[test]
fn a_missing_or_cut_file_is_completed_before_it_is_reused() {
    let (_, files, _) = two_days();
    let of_log = |log: &Log| log.index().segments().values().map(|segment| segment.slot).collect();
    let mut old: Vec<u32> = of_log(&Store::of(&files, b'a').log);
    old.pop();
    assert!(old.len() > 2, "{old:?}");
    for (slot, kept) in
        old.into_iter().flat_map(|slot| [None, Some(0), Some(20_000)].map(|kept| (slot, kept)))
    {
        let case = format!("{kept:?} bytes of file {slot}");
        let mut files = files.clone();
        let bytes = files.remove(&slot).expect("it is of the log");
        files.extend(kept.map(|length| (slot, bytes[..length].to_vec())));
        let mut store = Store::of(&files, b'a');
        store.log.settle(1, Range { start: 0, end: store.next }, Urgency::Window, NOW);
        let newest = store.log.index().segments().keys().next_back().copied().expect("there is one");
        let is_used_again = |log: &Log| {
            log.index()
                .segments()
                .last_key_value()
                .is_some_and(|(sequence, segment)| *sequence > newest && segment.slot == slot)
        };
        for messages in 0.. {
            assert!(messages < 10_000, "{case}: the file is not used again");
            store.go_on(1);
            // All but the last are consumed, so that nothing fills the disk.
            store.log.settle(1, Range { start: 0, end: store.next - 1 }, Urgency::Window, NOW);
            if is_used_again(&store.log) {
                break;
            }
        }
        let promised = store.served(&case);
        let disk = disk_of(&store.files());
        let (log, report) = Log::open(&mut disk.clone(), settings(), OTHER, NOW).expect("it opens");
        assert!(!report.is_damaged() && report.commits_lost_at_end == 0, "{case}: {report:?}");
        let mut store = Store { log, disk, letter: b'a', next: 200_000 };
        assert_eq!(store.served(&case), promised, "{case}");
    }
}

#[test]
fn files_of_another_store_are_not_accepted() {
    let (_, files, live) = two_days();
    let mut other = Store::new(b'b', OTHER);
    other.go_on(700);
    for (name, bytes) in other.files() {
        let mut mixed = files.clone();
        mixed.insert(name, bytes);
        is_told_and_goes_on(&format!("file {name} of another store"), &mixed, &live);
    }
}

#[test]
fn files_of_another_day_are_reported() {
    let (first, files, live) = two_days();
    for (name, bytes) in &first {
        let mut mixed = files.clone();
        mixed.insert(*name, bytes.clone());
        is_told_and_goes_on(&format!("file {name} as it was"), &mixed, &live);
    }
    // A backup restored over existing files: files that it does not contain stay.
    let mut mixed = files.clone();
    mixed.extend(first.clone());
    is_told_and_goes_on("a backup over a newer store", &mixed, &live);
    let mut mixed = first;
    mixed.extend(files);
    is_told_and_goes_on("a store over an older one", &mixed, &live);
}

#[test]
fn swapped_and_duplicate_files_are_reported() {
    let (_, files, live) = two_days();
    let names: Vec<u32> = files.keys().copied().filter(|name| *name < NEWEST_SLOT).collect();
    for (at, one) in names.iter().enumerate() {
        for two in &names[at + 1..] {
            let mut mixed = files.clone();
            let (first, second) = (files[one].clone(), files[two].clone());
            mixed.insert(*one, second);
            mixed.insert(*two, first);
            is_told_and_goes_on(&format!("files {one} and {two} changed names"), &mixed, &live);
        }
        let mut twice = files.clone();
        twice.insert(500, files[one].clone());
        is_told_and_goes_on(&format!("file {one} is there twice"), &twice, &live);
    }
}

#[test]
fn any_content_of_a_spare_file_loses_nothing() {
    let (_, files, live) = two_days();
    let store = Store::of(&files, b'a');
    let in_log: Vec<u32> = store.log.index().segments().values().map(|segment| segment.slot).collect();
    let spare: Vec<u32> =
        files.keys().copied().filter(|name| *name < NEWEST_SLOT && !in_log.contains(name)).collect();
    assert!(spare.len() > 1, "{spare:?}");
    let of_log = &files[&in_log[0]];
    let kinds =
        [vec![0; 64 << 10], vec![0xFF; 64 << 10], of_log[4096..].to_vec(), vec![7; 5_000], Vec::new()];
    for name in spare {
        for (kind, bytes) in kinds.iter().enumerate() {
            let mut files = files.clone();
            files.insert(name, bytes.clone());
            let cost = is_told_and_goes_on(&format!("kind {kind} in spare file {name}"), &files, &live);
            assert_eq!(cost, 0, "kind {kind} in spare file {name}");
        }
    }
}

/// Copies without each file, without each two, and one or two log files without those beside the log.
///
/// A young store may then consist only of files that were never written.
#[test]
fn a_partly_copied_directory_is_reported() {
    for (age, count) in [("young", 30), ("lived", 300), ("old", 560)] {
        let mut store = Store::new(b'a', IDENTITY);
        store.let_in();
        store.go_on(count);
        let (live, files) = (store.served(age), store.files());
        let (log, beside): (Vec<u32>, Vec<u32>) = files.keys().partition(|name| **name < NEWEST_SLOT);
        assert_eq!((beside.len(), log.len() > 3), (3, true), "{age}: {log:?} and {beside:?}");
        let all: Vec<u32> = files.keys().copied().collect();
        let pairs = |of: &[u32]| -> Vec<Vec<u32>> {
            let pair = |at: usize| of[at..].iter().map(move |other| vec![of[at], *other]).collect::<Vec<_>>();
            (0..of.len()).flat_map(pair).collect()
        };
        let of_log = pairs(&log).into_iter().map(|pair| [pair, beside.clone()].concat());
        let mut cost = 0;
        for left_out in pairs(&all).into_iter().chain(of_log) {
            let mut files = files.clone();
            files.retain(|name, _| !left_out.contains(name));
            cost += is_told_and_goes_on(&format!("{age}, without {left_out:?}"), &files, &live);
        }
        assert!(cost > live.len(), "{age}: {cost} messages lost in all");
    }
}

/// Missing data is reported by the start that continues without it; then there is no report any more.
#[test]
fn a_part_of_a_store_is_reported_and_continues() {
    let (_, files, _) = two_days();
    let newest = |log: &Log| log.index().segments().values().map(|segment| segment.slot).next_back();
    let of_newest = newest(&Store::of(&files, b'a').log).expect("there is one");
    for note in ["whole", "gone", "damaged"] {
        let case = format!("the note is {note}");
        let mut files = files.clone();
        files.retain(|name, _| *name != of_newest && (note != "gone" || *name != NEWEST_SLOT));
        if note == "damaged" {
            files.get_mut(&NEWEST_SLOT).expect("it is there")[30] ^= 1;
        }
        let mut disk = disk_of(&files);
        let (_, report) = Log::inspect(&mut disk).expect("it is readable");
        assert!(!report.describe_damage().is_empty(), "{case}: before");
        let (log, report) = Log::open(&mut disk.clone(), settings(), OTHER, NOW).expect("it opens");
        assert!(report.is_damaged() && report.commits_lost_at_end > 1, "{case}: {report:?}");
        assert!(log.is_damaged(), "{case}");
        Store { log, disk: disk.clone(), letter: b'a', next: 100_000 }.go_on(10);
        disk.start(Trouble::Never);
        let (_, after) = Log::inspect(&mut disk).expect("it is readable");
        assert!(
            after.describe_damage().is_empty() && after.reported_damage.is_alarm(),
            "{case}: after it {after:?}"
        );
        let report = Log::open(&mut disk, settings(), OTHER, NOW).expect("it opens").1;
        assert!(!report.is_damaged() && report.commits_lost_at_end == 0, "{case}: after it {report:?}");
    }
}

/// At any kill or power cut: a segment that was just sealed or just opened is no evidence of missing files.
#[test]
fn a_kill_while_a_segment_is_opened_is_not_taken_for_a_partial_copy() {
    let mut sealed = 0;
    for (calls, is_killed) in (0..80).flat_map(|calls| [(calls, true), (calls, false)]) {
        let mut store = Store::new(b'a', IDENTITY);
        store.let_in();
        store.go_on(60);
        let trouble = if is_killed { Trouble::Kill(calls) } else { Trouble::Cut(calls) };
        store.disk.foresee(trouble);
        while store.goes_on() {}
        if is_killed {
            store.disk.revive();
        } else {
            store.disk.power_cut();
        }
        store.disk.start(Trouble::Never);
        let case = format!("{trouble:?}");
        let (log, inspected) = Log::inspect(&mut store.disk).expect("it is readable");
        assert!(inspected.describe_damage().is_empty(), "{case}: {inspected:?}");
        let segments = log.for_each_record(&mut store.disk, |_| Ok(())).expect("it is readable");
        sealed += usize::from(segments.last().is_some_and(|newest| newest.is_sealed));
        let report = Log::open(&mut store.disk, settings(), OTHER, NOW).expect("it opens").1;
        assert!(!report.is_damaged() && report.commits_lost_at_end == 0, "{case}: {report:?}");
    }
    assert!(sealed > 2, "{sealed} of them found the newest segment sealed");
}

/// Returns a store whose second file was prepared by a process that was killed before it synced the file.
fn with_unsynced_file(seed: u64) -> Store {
    let mut disk = SimDisk::new(seed, Mutant::None, IDENTITY);
    disk.start(Trouble::Never);
    let (mut log, _) = Log::open(&mut disk, settings(), IDENTITY, NOW).expect("it opens");
    // The file is created, and then filled.
    disk.foresee(Trouble::Kill(2));
    let job = log.next_prepare().expect("a file is prepared ahead");
    assert!(log.prepare_done(job.run(&mut disk)).is_err());
    disk.revive();
    disk.start(Trouble::Never);
    let (log, _) = Log::open(&mut disk, settings(), IDENTITY, NOW).expect("it opens");
    Store { disk, letter: b'a', next: 0, log }
}

/// Power fails while the header of such a file is written. The file may be too short then, and its header whole.
#[test]
fn a_file_that_a_killed_process_prepared_is_never_reported_as_too_short() {
    let mut store = with_unsynced_file(0);
    while store.log.index().segments().len() == 1 {
        assert!(store.goes_on());
    }
    let opened_by = store.next;
    for calls in 0..12 {
        for seed in 0..40 {
            let mut store = with_unsynced_file(seed);
            while store.next < opened_by - 1 {
                assert!(store.goes_on());
            }
            store.disk.foresee(Trouble::Cut(calls));
            store.goes_on();
            store.disk.power_cut();
            store.disk.start(Trouble::Never);
            let report = Log::open(&mut store.disk, settings(), OTHER, NOW).expect("it opens").1;
            assert!(!report.is_damaged(), "cut at {calls}, seed {seed}: {report:?}");
        }
    }
}

/// A full file system had no space for the header copy, and a power cut tore the header of the next segment.
/// But data behind a header may be the rest of a segment.
#[test]
fn a_torn_header_without_a_header_copy_is_not_taken_for_a_partial_copy() {
    let mut sealed = 0;
    for calls in 0..80 {
        let mut store = Store::new(b'a', IDENTITY);
        store.let_in();
        store.go_on(60);
        store.disk.foresee(Trouble::Cut(calls));
        while store.goes_on() {}
        store.disk.power_cut();
        store.disk.start(Trouble::Never);
        let (log, _) = Log::inspect(&mut store.disk).expect("it is readable");
        let segments = log.for_each_record(&mut store.disk, |_| Ok(())).expect("it is readable");
        let used: Vec<u32> = log.index().segments().values().map(|segment| segment.slot).collect();
        let mut files = store.files();
        files.remove(&NEWEST_SLOT);
        let next = files.iter_mut().find(|(slot, _)| **slot < NEWEST_SLOT && !used.contains(slot));
        let Some((_, next)) = next.filter(|_| segments.last().is_some_and(|newest| newest.is_sealed)) else {
            continue;
        };
        sealed += 1;
        next.fill(0);
        next[..2048].fill(0xA5);
        let damage = |files: &Files| {
            let (_, report) = Log::inspect(&mut disk_of(files)).expect("it is readable");
            (report.newest_missing, report.describe_damage().is_empty())
        };
        let slot = *files.keys().find(|slot| !used.contains(slot)).expect("there is one");
        assert_eq!(damage(&files), (false, true), "cut at {calls}");
        files.get_mut(&slot).expect("it is there")[8192] = 1;
        assert_eq!(damage(&files), (true, false), "cut at {calls}");
    }
    assert!(sealed > 2, "{sealed} of them found the newest segment sealed");
}
