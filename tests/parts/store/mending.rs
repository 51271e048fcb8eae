//! A repair that is cut short at each of its calls of the disk: what could be read before it can be read
//! after whatever comes next, a start, another repair, or one that is cut short as well.
//!
//! Always true: each case begins with the same store, of several segments, of which some are damaged.

use crate::sim_disk::{SimDisk, Trouble};
use leveret_store::fsck::Scan;
use leveret_store::{BLOCK_BYTES, Disk, Log, MENDING_SLOT, Range, Urgency};

use crate::small::{
    HEADER_BYTES, IDENTITY, NOW, body, new_disk, open, publish, publish_ten, readable, settings, turn,
};

/// More calls than any of these repairs has.
const CALLS_MAX: u64 = 400;
/// Where the number of the first message after a repair is.
const LATER: u64 = 10_000;

/// Whether the process is killed, or the power goes.
const ENDS: [fn(u64) -> Trouble; 2] = [Trouble::Cut, Trouble::Kill];

/// Segments with commits of ten messages, of which some were settled; a commit in the middle of the first one
/// is damaged, and so are the footer of the second one, a header, and a commit of the newest one.
fn damaged() -> (SimDisk, Vec<u64>) {
    let mut disk = new_disk();
    let (mut log, _) = open(&disk, IDENTITY);
    let (mut commits, mut offset) = (Vec::new(), 0);
    while log.index().segments().len() < 4 || commits.len() % 3 > 0 {
        turn(&mut log, &mut disk);
        commits.push(publish_ten(&mut log, &mut disk, offset));
        if offset > 0 {
            log.settle(1, Range { start: offset - 9, end: offset - 7 }, Urgency::Window, NOW);
        }
        offset += 10;
        assert!(offset < LATER, "it fills no segments");
    }
    let in_file = |slot: u32| {
        commits.iter().filter(move |(of, _)| *of == slot).map(|(_, at)| *at).collect::<Vec<usize>>()
    };
    let slots: Vec<u32> = log.index().segments().values().map(|segment| segment.slot).collect();
    let (first, newest) = (in_file(slots[0]), in_file(slots[3]));
    let before: usize = (10..13).map(|offset| body(offset).len() + 30).sum();
    disk.flip(slots[0], first[1] + HEADER_BYTES + before + 60);
    disk.flip(slots[0], first[2] + 20);
    disk.flip(slots[1], settings().segment_bytes as usize - 20);
    disk.flip(slots[2], 30);
    disk.flip(slots[3], newest[0] + HEADER_BYTES + 60);
    let live = found(&disk.copy(), "before");
    assert!(live.len() > 60, "{live:?}");
    (disk, live)
}

/// What a start finds. Afterwards there is no repair to be finished.
fn found(disk: &SimDisk, case: &str) -> Vec<u64> {
    let (mut log, _) = open(disk, IDENTITY);
    assert!(!disk.has_file(MENDING_SLOT), "{case}: the file of the repair is still there");
    readable(&mut log, &mut disk.clone())
}

/// What is left to check after the case: nothing less, nothing twice, nothing back, at two starts and with
/// something written between.
fn is_as_before(disk: &SimDisk, live: &[u64], case: &str) {
    assert_eq!(found(disk, case), live, "{case}");
    let (mut log, _) = open(disk, IDENTITY);
    publish(&mut log, &mut disk.clone(), LATER);
    let with_later = [live, &[LATER]].concat();
    assert_eq!(found(disk, case), with_later, "{case}: a start later");
    let scan = Scan::of(&mut disk.clone()).expect("it is readable");
    let scan = scan.drop_set_aside(&mut disk.clone()).expect("the disk is well");
    assert!(scan.damage.is_empty(), "{case}: {:?}", scan.damage);
    assert_eq!(found(disk, case), with_later, "{case}: repaired after it");
}

/// Repairs, until the end that is foreseen; whether that came.
fn repair(disk: &SimDisk, end: Trouble) -> bool {
    disk.start(Trouble::Never);
    let scan = Scan::of(&mut disk.clone()).expect("it is readable");
    disk.start(end);
    let done = scan.drop_set_aside(&mut disk.clone());
    let is_cut = disk.is_off();
    assert!(is_cut || done.is_ok(), "{:?}", done.err());
    if disk.is_killed() {
        disk.revive();
    } else if is_cut {
        disk.power_cut();
    }
    disk.start(Trouble::Never);
    is_cut
}

/// Calls `each` with the disk that a repair leaves which ends at its first call, its second one, and so on;
/// how many there were.
fn at_every_call(mut each: impl FnMut(&SimDisk, &[u64], &str)) -> u64 {
    let (damaged, live) = damaged();
    let mut cases = 0;
    for end in ENDS {
        for call in 0.. {
            assert!(call < CALLS_MAX, "the repair does not come to an end");
            let disk = damaged.copy();
            let is_cut = repair(&disk, end(call));
            each(&disk, &live, &format!("{:?}", end(call)));
            if !is_cut {
                break;
            }
            cases += 1;
        }
    }
    cases
}

#[test]
fn a_repair_that_is_cut_at_any_call_costs_nothing_at_the_next_start() {
    let mut unfinished = 0;
    let cases = at_every_call(|disk, live, case| {
        unfinished += u64::from(disk.has_file(MENDING_SLOT));
        is_as_before(disk, live, case);
    });
    assert!(cases > 40 && unfinished > 20, "{cases} cuts, {unfinished} in the midst of a segment");
}

#[test]
fn a_repair_that_is_cut_at_any_call_is_finished_by_the_next_one() {
    at_every_call(|disk, live, case| {
        assert!(!repair(disk, Trouble::Never));
        assert!(!disk.has_file(MENDING_SLOT), "{case}: the file of the repair is still there");
        let scan = Scan::of(&mut disk.clone()).expect("it is readable");
        assert!(scan.damage.is_empty(), "{case}: {:?}", scan.damage);
        is_as_before(disk, live, case);
    });
}

#[test]
fn repairs_that_are_cut_one_after_the_other_cost_nothing() {
    for further in [1, 2, 3, 5, 8, 13] {
        at_every_call(|disk, live, case| {
            for cut in 0..3 {
                repair(disk, Trouble::Cut(further + cut));
            }
            is_as_before(disk, live, &format!("{case}, then {further}"));
        });
    }
}

#[test]
fn a_start_that_is_cut_while_it_finishes_a_repair_is_finished_by_the_next() {
    for calls in 0..8 {
        at_every_call(|disk, live, case| {
            disk.start(Trouble::Cut(calls));
            let _ = Log::open(&mut disk.clone(), settings(), IDENTITY, NOW);
            disk.power_cut();
            is_as_before(disk, live, &format!("{case}, then a start with {calls} calls"));
        });
    }
}

/// Whether the file of a repair is there from its first byte to its last one.
fn is_whole(disk: &SimDisk) -> bool {
    let mut bytes = vec![0; BLOCK_BYTES + settings().segment_bytes as usize + 1];
    disk.clone().read(MENDING_SLOT, 0, &mut bytes).is_ok_and(|known| known + 1 == bytes.len())
}

/// What a repair has that is cut behind the sync of its file: the file is whole, and no segment is.
fn with_whole_file() -> (SimDisk, Vec<u64>) {
    let (damaged, live) = damaged();
    let disk = (0..CALLS_MAX).find_map(|call| {
        let disk = damaged.copy();
        repair(&disk, Trouble::Cut(call));
        is_whole(&disk).then_some(disk)
    });
    (disk.expect("a repair writes the file"), live)
}

/// Damaged, cut to any length, or of another segment by now: it is not used, and does not stay.
#[test]
fn a_file_of_a_repair_that_is_not_whole_is_passed_over() {
    let (whole, live) = with_whole_file();
    for byte in [0, 8, 12, 16, 4096, 4096 + 20, 40_000] {
        let disk = whole.copy();
        disk.flip(MENDING_SLOT, byte);
        is_as_before(&disk, &live, &format!("byte {byte} is altered"));
    }
    let mut bytes = vec![0; BLOCK_BYTES + settings().segment_bytes as usize];
    whole.clone().read(MENDING_SLOT, 0, &mut bytes).expect("the disk is well");
    for length in [0, 1, 7, 19, 20, 4095, 4096, 4097, 50_000] {
        let mut disk = whole.copy();
        disk.remove(MENDING_SLOT).expect("it is there");
        disk.create(MENDING_SLOT).expect("the disk is well");
        disk.write(MENDING_SLOT, 0, &bytes[..length]).expect("the disk is well");
        disk.sync(MENDING_SLOT).expect("the disk is well");
        disk.sync_directory().expect("the disk is well");
        is_as_before(&disk, &live, &format!("{length} bytes of it"));
    }
    let disk = whole.copy();
    disk.refuse(MENDING_SLOT, 5 * BLOCK_BYTES);
    is_as_before(&disk, &live, "a block of it is refused");
}

/// One segment that is still being filled, with a commit that is damaged among others.
fn damaged_while_it_fills() -> SimDisk {
    let mut disk = new_disk();
    let (mut log, _) = open(&disk, IDENTITY);
    let (slot, at) = [0, 10, 20].map(|offset| publish_ten(&mut log, &mut disk, offset))[1];
    disk.flip(slot, at + HEADER_BYTES + 60);
    disk
}

/// An older version knows nothing of the file: it starts, writes to the segments, and the file is still there
/// when this one is back.
#[test]
fn what_was_written_since_by_one_who_knows_nothing_of_a_repair_stays() {
    let damaged = damaged_while_it_fills();
    let mut stale = 0;
    for call in 0..CALLS_MAX {
        let mut disk = damaged.copy();
        let is_cut = repair(&disk, Trouble::Cut(call));
        let mut bytes = vec![0; BLOCK_BYTES + settings().segment_bytes as usize];
        let known = disk.read(MENDING_SLOT, 0, &mut bytes).expect("the disk is well");
        if known == bytes.len() {
            disk.remove(MENDING_SLOT).expect("it is there");
            let (mut log, _) = open(&disk, IDENTITY);
            for offset in LATER..LATER + 8 {
                publish(&mut log, &mut disk, offset);
            }
            let live = readable(&mut log, &mut disk);
            drop(log);
            disk.create(MENDING_SLOT).expect("the disk is well");
            disk.write(MENDING_SLOT, 0, &bytes).expect("the disk is well");
            disk.sync(MENDING_SLOT).expect("the disk is well");
            disk.sync_directory().expect("the disk is well");
            let after = found(&disk, "it is back");
            let lost: Vec<&u64> = live.iter().filter(|offset| !after.contains(offset)).collect();
            assert!(lost.is_empty(), "cut {call}: {lost:?} are gone");
            stale += 1;
        }
        if !is_cut {
            break;
        }
    }
    assert!(stale > 1, "{stale}");
}

/// A full file system keeps the repair from its file: nothing of the store was touched, and what there is of
/// the file goes, for it would only take room.
#[test]
fn a_repair_that_finds_no_room_leaves_the_store_and_no_file() {
    let (damaged, live) = damaged();
    let (mut refused, mut begun) = (0, 0);
    for call in 0..CALLS_MAX {
        for trouble in [Trouble::NoRoom(call, 1), Trouble::FullSync(call, 1)] {
            let disk = damaged.copy();
            disk.start(Trouble::Never);
            let scan = Scan::of(&mut disk.clone()).expect("it is readable");
            disk.start(trouble);
            let done = scan.drop_set_aside(&mut disk.clone());
            disk.start(Trouble::Never);
            refused += u64::from(done.is_err());
            let is_begun = disk.has_file(MENDING_SLOT);
            assert!(!is_begun || is_whole(&disk), "{trouble:?}: a part of the file is left");
            begun += u64::from(is_begun);
            is_as_before(&disk, &live, &format!("{trouble:?}"));
        }
        if call > 60 {
            break;
        }
    }
    // The other writes are to a segment, which the file is there for.
    assert!(refused > 10 && begun < refused, "{refused} were refused, {begun} of them begun");
}
