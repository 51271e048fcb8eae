//! Damage that looks like something else: a damaged end like a torn commit, damaged files like those of
//! another store.
//!
//! As far as possible these cases are distinguished.

use leveret_storage::{
    Body, Disk, Log, Message, NEWEST_SLOT, REPAIR_SLOT, Range, Record, Settings, Target, Targets, Urgency,
};
use leveret_test_support::random::Random;
use leveret_test_support::simulated_disk::{SimDisk, Trouble};

use crate::sample::PLAIN;
use crate::small::{
    HEADER_BYTES, IDENTITY, NOW, OTHER, all, body, new_disk, open, publish, publish_ten, readable, settings,
    turn, zero,
};

#[test]
fn a_store_whose_headers_are_all_damaged_is_still_its_own() {
    for (count, is_noted) in [1, 5, 100].into_iter().flat_map(|count| [(count, true), (count, false)]) {
        let mut disk = new_disk();
        let (mut log, _) = open(&disk, IDENTITY);
        for offset in 0..count {
            publish(&mut log, &mut disk, offset);
        }
        let segments = log.index().segments().len();
        assert_eq!(segments > 1, count == 100);
        for slot in disk.slots().expect("the disk is well") {
            disk.write(slot, 0, &[0xEE; 4096]).expect("the disk is well");
            disk.sync(slot).expect("the disk is well");
        }
        if !is_noted {
            zero(&mut disk, NEWEST_SLOT, 0..1);
        }
        let (mut log, report) = open(&disk, OTHER);
        assert_eq!(*log.identity(), IDENTITY);
        // If the newest header is known, the others are not needed.
        let told = if is_noted { 1 } else { segments };
        assert!(!report.is_new && report.set_aside.len() >= told, "{report:?}");
        assert_eq!(readable(&mut log, &mut disk), all(count));
        publish(&mut log, &mut disk, count);
        let (mut log, _) = open(&disk, OTHER);
        assert_eq!((*log.identity(), readable(&mut log, &mut disk)), (IDENTITY, all(count + 1)));
    }
}

/// Returns several segments with messages of several queues, some settled, some copied by the compactor.
fn filled(random: &mut Random) -> SimDisk {
    let mut disk = new_disk();
    let (mut log, _) = open(&disk, IDENTITY);
    for offset in 0..400 + random.below(300) {
        let targets: Vec<Target> = (1..=1 + offset % 3).map(|queue| Target { queue, offset }).collect();
        let message =
            Message { targets: Targets::List(&targets), body: Body::Inline(&body(offset)), ..PLAIN };
        while log.append(&Record::Message(message), Urgency::Window, NOW).is_err() {
            log.flush();
            turn(&mut log, &mut disk);
        }
        if offset > 50 && random.once_in(3) {
            let start = random.below(offset);
            log.settle(1 + start % 3, Range { start, end: start + 1 }, Urgency::Lazy, NOW);
        }
        if random.once_in(4) {
            log.flush();
            turn(&mut log, &mut disk);
        }
    }
    disk
}

#[test]
fn a_store_with_any_damage_opens_and_serves_only_unaltered_messages() {
    for seed in 1..=200 {
        let mut random = Random::new(seed);
        let mut disk = filled(&mut random);
        let slots = disk.slots().expect("the disk is well");
        for _ in 0..1 + random.below(12) {
            let slot = slots[random.below(slots.len() as u64) as usize];
            // Headers and footers are small, so they are chosen more often.
            let at = match random.below(4) {
                0 => random.below(200),
                1 => (64 << 10) - 1 - random.below(4000),
                _ => random.below(64 << 10),
            };
            disk.flip(slot, at as usize);
        }
        for _ in 0..2 {
            let (mut log, report) = open(&disk, OTHER);
            for queue in 1..=3 {
                let mut at = 0;
                while at < u64::MAX {
                    let job =
                        log.fetch(queue, Range { start: at, end: u64::MAX }, 9_000).expect("it is free");
                    at = log
                        .fetch_done(job.run(&mut disk), |offset, message| {
                            let expected = body(offset);
                            let is_new = offset >= 100_000 && message.body == Body::Inline(&[7; 500]);
                            let is_good = is_new || message.body == Body::Inline(&expected);
                            assert!(is_good, "seed {seed}: {queue}/{offset} is not as it was sent");
                        })
                        .through;
                }
            }
            let _ = report;
            let next = log.index().queues().get(&1).map_or(0, |queue| queue.next_offset()).max(100_000);
            for offset in next..next + 20 {
                publish(&mut log, &mut disk, offset);
            }
            for _ in 0..50 {
                turn(&mut log, &mut disk);
            }
        }
    }
}

#[test]
fn an_unfinished_commit_is_cut_without_a_report() {
    let mut disk = new_disk();
    let (mut log, _) = open(&disk, IDENTITY);
    publish(&mut log, &mut disk, 0);
    let (slot, at) = publish(&mut log, &mut disk, 1);
    disk.flip(slot, at + HEADER_BYTES + 20);
    let (mut log, report) = open(&disk, IDENTITY);
    assert!(report.set_aside.is_empty() && report.commits_missing == 0, "{report:?}");
    assert_eq!(readable(&mut log, &mut disk), all(1));
}

#[test]
fn a_damaged_commit_with_a_later_commit_begun_after_it_is_reported_as_missing() {
    let mut disk = new_disk();
    let (mut log, _) = open(&disk, IDENTITY);
    publish(&mut log, &mut disk, 0);
    for offset in 1..3 {
        let (slot, at) = publish(&mut log, &mut disk, offset);
        disk.flip(slot, at + HEADER_BYTES + 20);
    }
    for start in 0..3 {
        let (mut log, report) = open(&disk, IDENTITY);
        // Until its segment is deleted: the first new commit repeats all that is live there.
        assert_eq!(report.commits_missing, u64::from(start < 2), "start {start}: {report:?}");
        assert_eq!(report.set_aside.is_empty(), start == 2, "start {start}: {report:?}");
        let expected: Vec<u64> = [0].into_iter().chain(10..10 + start).collect();
        assert_eq!(readable(&mut log, &mut disk), expected, "start {start}");
        publish(&mut log, &mut disk, 10 + start);
    }
    assert!(disk.violations().is_empty(), "what is damaged is not written over: {:?}", disk.violations());
}

/// Fills and seals a segment, and cuts the power at the commit that opens the next one.
///
/// Each message settles the one two before it. Returns the position of the last commit, and the number of
/// durable messages.
fn sealed_by_a_cut(settles: bool) -> (SimDisk, (u32, usize), u64) {
    let mut disk = new_disk();
    let (mut log, _) = open(&disk, IDENTITY);
    let (mut last, mut offset) = ((0, 0), 0);
    loop {
        let target = [Target { queue: 1, offset }];
        let message = Message { targets: Targets::List(&target), ..PLAIN };
        disk.start(Trouble::Never);
        while let Some(job) = log.next_prepare() {
            log.prepare_done(job.run(&mut disk)).expect("the disk is well");
        }
        // Footer, sync, header, sync: the power fails at the next call.
        disk.start(Trouble::Cut(4));
        log.append(&Record::Message(message), Urgency::Awaited, NOW).expect("there is room");
        if settles && offset > 1 {
            log.settle(1, Range { start: offset - 2, end: offset - 1 }, Urgency::Awaited, NOW);
        }
        let job = log.next_commit(NOW).expect("a commit is awaited");
        if log.commit_done(job.run(&mut disk)).is_err() {
            break;
        }
        (last, offset) = (disk.written().last().copied().expect("it was written"), offset + 1);
    }
    disk.power_cut();
    disk.start(Trouble::Never);
    (disk, last, offset)
}

#[test]
fn a_header_knows_how_many_commits_there_were() {
    let (mut disk, (slot, at), count) = sealed_by_a_cut(false);
    disk.flip(slot, at + HEADER_BYTES + 20);
    let (mut log, report) = open(&disk, IDENTITY);
    assert!(!report.set_aside.is_empty() && report.commits_missing == 1, "{report:?}");
    assert_eq!(readable(&mut log, &mut disk), all(count - 1));
}

#[test]
fn settlements_of_a_damaged_commit_stay_valid_if_its_segment_is_sealed() {
    let (mut disk, (slot, at), count) = sealed_by_a_cut(true);
    zero(&mut disk, slot, at as u64 / 4096..at as u64 / 4096 + 1);
    for start in 0..3 {
        let (mut log, report) = open(&disk, IDENTITY);
        assert!(start > 0 || report.is_damaged(), "it is told: {report:?}");
        assert_eq!(readable(&mut log, &mut disk), [count - 2], "start {start}");
    }
}

#[test]
fn a_flipped_bit_loses_one_message_and_the_compactor_empties_its_segment() {
    let mut disk = new_disk();
    let (mut log, _) = open(&disk, IDENTITY);
    publish_ten(&mut log, &mut disk, 0);
    let (slot, at) = publish_ten(&mut log, &mut disk, 10);
    publish_ten(&mut log, &mut disk, 20);
    // Within the body of the fourth message.
    let before: usize = (10..13).map(|offset| body(offset).len() + 30).sum();
    disk.flip(slot, at + HEADER_BYTES + before + 60);
    let left: Vec<u64> = (0..30).filter(|offset| *offset != 13).collect();
    for _ in 0..3 {
        let (mut log, report) = open(&disk, IDENTITY);
        assert!(report.commits_missing == 1 && !report.set_aside.is_empty(), "it is told: {report:?}");
        assert_eq!(readable(&mut log, &mut disk), left);
        let segment = *log.index().segments().keys().next().expect("there is one");
        assert_eq!(log.index().queues()[&1].live, 29, "{segment}");
    }
    // Segments are filled until the compactor takes the damaged one.
    let (mut log, _) = open(&disk, IDENTITY);
    let first = *log.index().segments().keys().next().expect("there is one");
    let mut offset = 1000;
    while log.index().segments().contains_key(&first) {
        for _ in 0..20 {
            turn(&mut log, &mut disk);
        }
        publish(&mut log, &mut disk, offset);
        if offset % 3 > 0 {
            log.settle(1, Range { start: offset, end: offset + 1 }, Urgency::Window, NOW);
        }
        offset += 1;
        assert!(offset < 4_000, "the cleaner never empties it");
    }
    let found: Vec<u64> = readable(&mut log, &mut disk).into_iter().filter(|at| *at < 1000).collect();
    assert_eq!(found, left, "copied");
    let (mut log, _) = open(&disk, IDENTITY);
    let found: Vec<u64> = readable(&mut log, &mut disk).into_iter().filter(|at| *at < 1000).collect();
    assert_eq!(found, left, "and there after a start");
}

#[test]
fn a_flipped_bit_in_a_commit_header_loses_at_most_that_commit() {
    for byte in 0..HEADER_BYTES {
        let mut disk = new_disk();
        let (mut log, _) = open(&disk, IDENTITY);
        publish_ten(&mut log, &mut disk, 0);
        let (slot, at) = publish_ten(&mut log, &mut disk, 10);
        publish_ten(&mut log, &mut disk, 20);
        disk.flip(slot, at + byte);
        let (mut log, report) = open(&disk, IDENTITY);
        assert_eq!(report.commits_missing, 1, "byte {byte}");
        let found = readable(&mut log, &mut disk);
        let others: Vec<u64> = found.iter().copied().filter(|offset| !(10..20).contains(offset)).collect();
        assert_eq!(others, (0..10).chain(20..30).collect::<Vec<u64>>(), "byte {byte}");
        let all_or_none = found.len() - others.len();
        assert!(all_or_none == 0 || all_or_none == 10, "byte {byte}: {all_or_none} served");
    }
}

/// Returns a store of several segments after a kill, some of whose segments were deleted. Also returns the
/// file of its newest segment, the offsets in that, and all live offsets.
fn with_segments_that_left() -> (SimDisk, u32, Vec<u64>, Vec<u64>) {
    let mut disk = new_disk();
    let (mut log, _) = open(&disk, IDENTITY);
    let (mut offset, mut in_newest, mut newest) = (0, Vec::new(), u32::MAX);
    while log.index().segments().len() < 4 || in_newest.len() < 3 || log.counters().segments_recycled < 3 {
        let (slot, _) = publish(&mut log, &mut disk, offset);
        if slot != newest {
            (newest, in_newest) = (slot, Vec::new());
        }
        in_newest.push(offset);
        if offset % 8 > 0 && offset > 20 {
            log.settle(1, Range { start: offset - 20, end: offset - 19 }, Urgency::Window, NOW);
        }
        for _ in 0..4 {
            turn(&mut log, &mut disk);
        }
        offset += 1;
        assert!(offset < 10_000, "nothing leaves the log");
    }
    log.flush();
    turn(&mut log, &mut disk);
    let (mut log, _) = open(&disk, IDENTITY);
    let newest =
        *log.index().segments().values().map(|segment| &segment.slot).next_back().expect("it is there");
    let live = readable(&mut log, &mut disk);
    (disk, newest, in_newest, live)
}

#[test]
fn a_missing_newest_segment_is_reported_after_a_kill_too() {
    for kind in ["zeroed", "removed", "cut"] {
        let mut disk = new_disk();
        let (mut log, _) = open(&disk, IDENTITY);
        let (mut offset, mut newest, mut first) = (0, 0, 0);
        while log.index().segments().len() < 3 {
            let (slot, _) = publish(&mut log, &mut disk, offset);
            if slot != newest {
                (newest, first) = (slot, offset);
            }
            offset += 1;
        }
        match kind {
            "zeroed" => zero(&mut disk, newest, 0..16),
            "removed" => disk.remove(newest).expect("the disk is well"),
            _ => {
                // Only its header and half of its first commit remain.
                let mut bytes = vec![0; 4096 + 300];
                disk.read(newest, 0, &mut bytes).expect("the disk is well");
                disk.remove(newest).expect("the disk is well");
                disk.create(newest).expect("the disk is well");
                disk.write(newest, 0, &bytes).expect("the disk is well");
                disk.sync(newest).expect("the disk is well");
            }
        }
        let (mut log, report) = open(&disk, IDENTITY);
        assert!(report.is_damaged() && report.commits_lost_at_end > 0, "{kind}: {report:?}");
        assert_eq!(readable(&mut log, &mut disk), all(first), "{kind}");
        let sequence = *log.index().segments().keys().next_back().expect("it is there");
        assert!(sequence > 3, "{kind}: segment {sequence} is there a second time");
        publish(&mut log, &mut disk, 1_000);
        let (mut log, _) = open(&disk, IDENTITY);
        let expected: Vec<u64> = (0..first).chain([1_000]).collect();
        assert_eq!(readable(&mut log, &mut disk), expected, "{kind}");
    }
}

#[test]
fn deleted_segments_stay_deleted_if_the_newest_header_or_an_older_one_is_damaged() {
    let (disk, _, _, _) = with_segments_that_left();
    let mut stale = vec![0; 4096];
    let older = disk.clone().slots().expect("the disk is well")[0];
    disk.clone().read(older, 0, &mut stale).expect("the disk is well");
    for block in [vec![0; 4096], vec![0xA5; 4096], stale] {
        let (mut disk, newest, _, live) = with_segments_that_left();
        if newest == older {
            continue;
        }
        let (log, _) = open(&disk, IDENTITY);
        let segments: Vec<u64> = log.index().segments().keys().copied().collect();
        drop(log);
        disk.write(newest, 0, &block).expect("the disk is well");
        disk.sync(newest).expect("the disk is well");
        let (mut log, report) = open(&disk, IDENTITY);
        assert!(report.is_damaged(), "it is told: {report:?}");
        let back: Vec<u64> = log.index().segments().keys().copied().collect();
        let is_back =
            back.iter().any(|segment| !segments.contains(segment) && Some(segment) < segments.last());
        assert!(!is_back, "of {segments:?} came back {back:?}");
        assert_eq!(readable(&mut log, &mut disk), live);
    }
}

#[test]
fn a_damaged_header_copy_loses_nothing_and_is_written_again() {
    let (mut disk, newest, _, live) = with_segments_that_left();
    zero(&mut disk, NEWEST_SLOT, 0..1);
    let (mut log, report) = open(&disk, IDENTITY);
    assert!(!report.is_damaged() && report.commits_lost_at_end == 0, "{report:?}");
    assert_eq!(readable(&mut log, &mut disk), live);
    zero(&mut disk, newest, 0..1);
    let (mut log, report) = open(&disk, IDENTITY);
    assert!(report.is_damaged(), "it is told: {report:?}");
    assert_eq!(readable(&mut log, &mut disk), live);
}

#[test]
fn the_header_copy_costs_a_sync_and_a_block_per_segment() {
    let mut disk = new_disk();
    let (mut log, _) = open(&disk, IDENTITY);
    publish(&mut log, &mut disk, 0);
    for offset in 1..100 {
        while let Some(job) = log.next_prepare() {
            log.prepare_done(job.run(&mut disk)).expect("the disk is well");
        }
        let (before, counters) = (log.index().segments().len(), log.counters());
        publish(&mut log, &mut disk, offset);
        let syncs = log.counters().syncs - counters.syncs;
        let opened = log.index().segments().len() - before;
        // Its own; and per segment: the footer of the previous one, the header, the header copy.
        assert_eq!(syncs, 1 + 3 * opened as u64, "message {offset}");
    }
}

/// If no file has its header, the commits tell which segment it is.
///
/// A card may write a block to the wrong file. That must not make two files one segment: the commits of the
/// other one would be reported as missing and not counted.
#[test]
fn a_commit_of_another_file_before_its_own_does_not_hide_a_file_without_its_header() {
    let (mut disk, commits, count) = filled_with_tens(4);
    let slots: Vec<u32> = disk.slots().expect("the disk is well");
    let of = |slot: u32| commits.iter().filter(move |((at, _), _)| *at == slot);
    // The last commit of the first file, over the first one of the second file.
    let ((slot, from), _) = *of(slots[0]).next_back().expect("it has commits");
    let mut strange = vec![0; 64 << 10];
    disk.read(slot, from as u64, &mut strange).expect("the disk is well");
    let bytes = u32::from_le_bytes([strange[8], strange[9], strange[10], strange[11]]) as usize;
    let ((slot, at), lost) = *of(slots[1]).next().expect("it has commits");
    disk.write(slot, at as u64, &strange[..bytes.next_multiple_of(4096)]).expect("the disk is well");
    disk.sync(slot).expect("the disk is well");
    for slot in slots {
        zero(&mut disk, slot, 0..1);
    }
    zero(&mut disk, NEWEST_SLOT, 0..1);
    let left: Vec<u64> =
        all(count).into_iter().filter(|offset| !(lost..lost + 10).contains(offset)).collect();
    for start in 0..3 {
        let (inspected, _) = Log::inspect(&mut disk).expect("it is readable");
        let (mut log, _) = open(&disk, IDENTITY);
        let [inspected, opened] = [&inspected, &log].map(|log| log.index().queues()[&1].live);
        assert_eq!(inspected, opened, "inspect before start {start}");
        assert_eq!(readable(&mut log, &mut disk), left, "start {start}");
    }
}

/// Position of a commit, and its first message.
type Tens = ((u32, usize), u64);

/// Fills segments with commits of ten messages each. Returns also the number of messages.
fn filled_with_tens(segments: usize) -> (SimDisk, Vec<Tens>, u64) {
    let mut disk = new_disk();
    let (mut log, _) = open(&disk, IDENTITY);
    let (mut commits, mut offset) = (Vec::new(), 0);
    while log.index().segments().len() < segments || commits.len() % 3 > 0 {
        while let Some(job) = log.next_prepare() {
            log.prepare_done(job.run(&mut disk)).expect("the disk is well");
        }
        commits.push((publish_ten(&mut log, &mut disk, offset), offset));
        offset += 10;
    }
    (disk, commits, offset)
}

/// Returns the last commit of the file of the first one.
fn last_of_first_segment(commits: &[Tens]) -> Tens {
    let slot = commits[0].0.0;
    *commits.iter().take_while(|((of, _), _)| *of == slot).last().expect("there is one")
}

/// A damaged commit costs the same at any position: the segments behind it contain what its segment's footer
/// would.
#[test]
fn damage_to_the_last_commit_of_a_segment_and_its_footer_loses_only_the_damaged_messages() {
    for segments in [2, 3, 5] {
        for footer in [60 << 10, (64 << 10) - 4096, (64 << 10) - 20] {
            let (mut disk, commits, count) = filled_with_tens(segments);
            let ((slot, at), first) = last_of_first_segment(&commits);
            // Within the body of the fourth message.
            let before: usize = (first..first + 3).map(|offset| body(offset).len() + 30).sum();
            disk.flip(slot, at + HEADER_BYTES + before + 60);
            disk.flip(slot, footer);
            let left: Vec<u64> = (0..count).filter(|offset| *offset != first + 3).collect();
            let case = format!("{segments} segments, byte {footer} of the footer");
            for start in 0..3 {
                let (mut log, report) = open(&disk, IDENTITY);
                assert_eq!(report.commits_missing, 1, "{case}, start {start}: {report:?}");
                let is_told = |aside: &leveret_storage::SetAside| {
                    aside.slot == slot && (aside.from..aside.to).contains(&(at as u32))
                };
                assert!(report.set_aside.iter().any(is_told), "{case}, start {start}: {report:?}");
                assert_eq!(readable(&mut log, &mut disk), left, "{case}, start {start}");
                assert_eq!(log.index().queues()[&1].live, count - 1, "{case}, start {start}");
            }
            let (log, report) = Log::inspect(&mut disk).expect("it is readable");
            assert_eq!(log.index().queues()[&1].live, count - 1, "{case}: inspect");
            assert!(report.set_aside.iter().any(|part| part.slot == slot), "{case}: {report:?}");
        }
    }
}

/// The end of the log is damaged, where something else proves that it was synced: here the header of a later
/// commit.
#[test]
fn a_damaged_end_that_was_certainly_synced_loses_only_the_damaged_messages() {
    let (mut disk, (slot, at), count) = {
        let mut disk = new_disk();
        let (mut log, _) = open(&disk, IDENTITY);
        publish_ten(&mut log, &mut disk, 0);
        let place = publish_ten(&mut log, &mut disk, 10);
        let (last_slot, last_at) = publish_ten(&mut log, &mut disk, 20);
        // The last commit keeps its header, which proves the one before it.
        zero(&mut disk, last_slot, last_at as u64 / 4096 + 1..last_at as u64 / 4096 + 2);
        (disk, place, 20)
    };
    let before: usize = (10..13).map(|offset| body(offset).len() + 30).sum();
    disk.flip(slot, at + HEADER_BYTES + before + 60);
    let left: Vec<u64> = (0..count).filter(|offset| *offset != 13).collect();
    for start in 0..3 {
        let (mut log, report) = open(&disk, IDENTITY);
        assert!(report.is_damaged() && !report.set_aside.is_empty(), "start {start}: {report:?}");
        assert_eq!(readable(&mut log, &mut disk), left, "start {start}");
        let (log, _) = Log::inspect(&mut disk).expect("it is readable");
        assert_eq!(log.index().queues()[&1].live, left.len() as u64, "start {start}: inspect");
    }
}

/// A commit in a segment without a footer is read in one piece. So is a damaged one that is longer than the
/// usual read: its header tells which segment it belongs to.
#[test]
fn a_flipped_bit_in_a_long_commit_costs_one_message_where_the_footer_is_damaged_too() {
    let settings =
        Settings { segment_bytes: 1 << 20, commit_bytes: 300 << 10, segments_max: 10, ..Settings::default() };
    let open = |disk: &SimDisk| {
        disk.start(Trouble::Never);
        Log::open(&mut disk.clone(), settings.clone(), IDENTITY, NOW).expect("it opens")
    };
    let mut disk = new_disk();
    let (mut log, _) = open(&disk);
    let (mut commits, mut count) = (Vec::new(), 0);
    while log.index().segments().len() < 2 {
        while let Some(job) = log.next_prepare() {
            log.prepare_done(job.run(&mut disk)).expect("the disk is well");
        }
        for offset in count..count + 250 {
            let target = [Target { queue: 1, offset }];
            let message = Message {
                targets: Targets::List(&target),
                body: Body::Inline(&[offset as u8; 1000]),
                ..PLAIN
            };
            log.append(&Record::Message(message), Urgency::Window, NOW).expect("there is room");
        }
        log.flush();
        let job = log.next_commit(NOW).expect("it is due");
        log.commit_done(job.run(&mut disk)).expect("the disk is well");
        commits.push((disk.written().last().copied().expect("it was written"), count));
        count += 250;
    }
    let ((slot, at), first) = commits[1];
    disk.flip(slot, at + HEADER_BYTES + 10 * 1030 + 500);
    disk.flip(slot, (1 << 20) - 20);
    let (mut log, report) = open(&disk);
    assert_eq!(report.commits_missing, 1, "{report:?}");
    let found = readable(&mut log, &mut disk);
    let lost: Vec<u64> = all(count).into_iter().filter(|offset| !found.contains(offset)).collect();
    assert!(lost.len() == 1 && (first..first + 250).contains(&lost[0]), "{lost:?}");
}

/// Returns a store whose newest segment has an old header in its file, as a card may restore one; and its
/// messages.
fn store_with_an_old_header() -> (SimDisk, Vec<u64>) {
    let mut disk = new_disk();
    let (mut log, _) = open(&disk, IDENTITY);
    let (mut offset, mut rounds_left) = (0, None);
    let mut headers: Vec<Vec<u8>> = Vec::new();
    let mut old = (0, Vec::new());
    // All messages but the last hundred are settled until a file is reused; then some more are published.
    while rounds_left != Some(0) {
        turn(&mut log, &mut disk);
        publish_ten(&mut log, &mut disk, offset);
        offset += 10;
        if offset > 100 {
            log.settle(1, Range { start: offset - 110, end: offset - 100 }, Urgency::Awaited, NOW);
        }
        let slot = log.index().segments().values().next_back().map_or(0, |segment| segment.slot);
        let mut block = vec![0; 4096];
        disk.read(slot, 0, &mut block).expect("the disk is well");
        headers.resize(headers.len().max(slot as usize + 1), Vec::new());
        let before = core::mem::replace(&mut headers[slot as usize], block.clone());
        if rounds_left.is_none() && !before.is_empty() && before != block {
            (old, rounds_left) = ((slot, before), Some(2));
        } else {
            rounds_left = rounds_left.map(|left: u32| left - 1);
        }
    }
    let expected = readable(&mut log, &mut disk);
    drop(log);
    disk.write(old.0, 0, &old.1).expect("the disk is well");
    disk.sync(old.0).expect("the disk is well");
    (disk, expected)
}

/// The power fails while the next start opens another segment. Then no header of that segment is left,
/// neither in its file nor beside the log.
#[test]
fn an_old_header_in_the_newest_file_and_a_cut_while_the_next_one_is_opened_lose_nothing() {
    for cut in 0..60 {
        let (disk, expected) = store_with_an_old_header();
        disk.start(Trouble::Cut(cut));
        let _ = Log::open(&mut disk.clone(), settings(), IDENTITY, NOW);
        disk.power_cut();
        let (mut log, report) = open(&disk, IDENTITY);
        let left = readable(&mut log, &mut disk.clone());
        assert!(expected.iter().all(|offset| left.contains(offset)), "cut {cut}: {report:?}");
    }
}

/// An older version started to repair a segment in place and was interrupted.
///
/// The file with the repaired segment is reported at every start until the operator removes it. It is neither
/// read nor changed.
#[test]
fn a_repair_that_an_older_version_did_not_finish_is_reported() {
    let mut disk = new_disk();
    let (mut log, _) = open(&disk, IDENTITY);
    for offset in 0..3 {
        publish(&mut log, &mut disk, offset);
    }
    drop(log);
    disk.create(REPAIR_SLOT).expect("it can be made");
    disk.write(REPAIR_SLOT, 0, &[0xA5; 8192]).expect("it can be written");
    disk.sync(REPAIR_SLOT).expect("it can be synced");
    for _ in 0..2 {
        let (mut log, report) = open(&disk, IDENTITY);
        assert!(report.has_unfinished_repair && log.is_damaged(), "{report:?}");
        assert_eq!(readable(&mut log, &mut disk), [0, 1, 2]);
        let mut bytes = [0; 8193];
        assert_eq!(disk.read(REPAIR_SLOT, 0, &mut bytes).expect("it is there"), 8192);
        assert!(bytes[..8192].iter().all(|byte| *byte == 0xA5));
    }
    disk.remove(REPAIR_SLOT).expect("it is there");
    let (log, report) = open(&disk, IDENTITY);
    assert!(!report.has_unfinished_repair && !log.is_damaged());
}

/// When space is short, compaction copies the live messages of a damaged segment, and its file is reused. The
/// damage is gone from the disk, and the lost data is remembered until it is acknowledged.
#[test]
fn damaged_parts_are_deleted_with_their_segments_and_remembered() {
    let mut disk = new_disk();
    let (mut log, _) = open(&disk, IDENTITY);
    let (mut offset, mut commits) = (0, Vec::new());
    while log.index().segments().len() < 4 {
        turn(&mut log, &mut disk);
        commits.push(publish_ten(&mut log, &mut disk, offset));
        offset += 10;
    }
    // The fourth message of the third commit.
    let (slot, at) = commits[2];
    let before: usize = (20..23).map(|offset| body(offset).len() + 30).sum();
    disk.flip(slot, at + HEADER_BYTES + before + 60);
    drop(log);
    zero(&mut disk, slot, 15..16);
    let (mut log, report) = open(&disk, IDENTITY);
    let line = report.describe_damage().pop().expect("it is told");
    assert!(report.is_damaged() && report.reported_damage.is_alarm(), "{report:?}");
    let mut kept: Vec<u64> = (0..offset).filter(|offset| *offset != 23).collect();
    assert_eq!(readable(&mut log, &mut disk), kept);
    // One in ten of the first messages stays, and enough of the others that space is short and segments are
    // compacted.
    for start in (1..100).step_by(10) {
        log.settle(1, Range { start, end: start + 9 }, Urgency::Lazy, NOW);
    }
    kept.retain(|offset| *offset >= 100 || offset % 10 == 0);
    for end in offset..offset + 6_000 {
        let target = [Target { queue: 1, offset: end }];
        let body = body(end);
        let message = Message { targets: Targets::List(&target), body: Body::Inline(&body), ..PLAIN };
        let mut turns = 0;
        while log.append(&Record::Message(message), Urgency::Awaited, NOW).is_err() {
            turn(&mut log, &mut disk);
            turns += 1;
            assert!(turns < 1_000, "there is no room for message {end}");
        }
        turn(&mut log, &mut disk);
        kept.push(end);
        if kept.len() > 330 {
            let settled = kept.remove(if end % 2 == 0 { 30 } else { 250 });
            log.settle(1, Range { start: settled, end: settled + 1 }, Urgency::Lazy, NOW);
        }
    }
    (0..50).for_each(|_| turn(&mut log, &mut disk));
    log.flush();
    (0..50).for_each(|_| turn(&mut log, &mut disk));
    drop(log);
    let (mut log, report) = open(&disk, IDENTITY);
    assert!(!report.is_damaged() && !log.is_damaged(), "{report:?}");
    assert!(
        report.reported_damage.is_alarm() && report.reported_damage.lines() == [Box::from(line)],
        "{report:?}"
    );
    assert_eq!(readable(&mut log, &mut disk), kept);
}

/// Whenever the power fails: a damaged segment without live messages is not deleted before the damage is
/// recorded.
#[test]
fn no_damage_leaves_the_disk_without_being_remembered() {
    let mut left = 0;
    for segments in 26..29 {
        let (disk, slot) = full_of_settled(segments);
        disk.flip(slot, 3 * 4096 + HEADER_BYTES + 60);
        zero(&mut disk.clone(), slot, 15..16);
        for cut in 0..60 {
            let disk = disk.copy();
            disk.start(Trouble::Cut(cut));
            if let Ok((mut log, _)) = Log::open(&mut disk.clone(), settings(), IDENTITY, NOW) {
                turn_until_cut(&mut log, &mut disk.clone());
            }
            disk.power_cut();
            let (_, report) = open(&disk, IDENTITY);
            assert!(report.reported_damage.is_alarm(), "{segments} segments, cut {cut}: {report:?}");
            left += usize::from(report.describe_damage().is_empty());
        }
    }
    assert!(left > 20, "in {left} cases the damaged segment had left");
}

/// Makes two more commits, unless the power fails.
fn turn_until_cut(log: &mut Log, disk: &mut SimDisk) {
    for _ in 0..4 {
        log.flush();
        if let Some(job) = log.next_commit(NOW)
            && log.commit_done(job.run(disk)).is_err()
        {
            return;
        }
    }
}

/// Returns a store of `segments` segments, and the file of the first. All but the last messages are settled by a
/// last commit of more than one block.
fn full_of_settled(segments: usize) -> (SimDisk, u32) {
    let mut disk = new_disk();
    let (mut log, _) = open(&disk, IDENTITY);
    let append = |log: &mut Log, offset| {
        let target = [Target { queue: 1, offset }];
        let body = vec![offset as u8; 3_000];
        let message = Message { targets: Targets::List(&target), body: Body::Inline(&body), ..PLAIN };
        log.append(&Record::Message(message), Urgency::Awaited, NOW).expect("there is room");
    };
    let mut offset = 0;
    while log.index().segments().len() < segments {
        append(&mut log, offset);
        turn(&mut log, &mut disk);
        offset += 1;
    }
    log.settle(1, Range { start: 0, end: offset }, Urgency::Lazy, NOW);
    (offset..offset + 3).for_each(|offset| append(&mut log, offset));
    let job = log.next_commit(NOW).expect("it is awaited");
    log.commit_done(job.run(&mut disk)).expect("the disk is well");
    let slot = log.index().segments().values().next().map_or(0, |segment| segment.slot);
    (disk, slot)
}
