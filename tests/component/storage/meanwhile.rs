//! A scan of a store whose broker continues to write: changes during the scan are not reported as damage.

use std::io;

use leveret_core::time::Now;
use leveret_storage::{Access, Disk, Identity, Log, Message, Record, Settings, Target, Targets, Urgency};
use leveret_test_support::simulated_disk::{Mutant, SimDisk, Trouble};

use crate::sample::PLAIN;

const IDENTITY: Identity = Identity { id: *b"0123456789abcdef", secret: 0x3EA11 };
const NOW: Now = Now::from_ms(1);

/// A disk that changes after a number of reads.
struct Moving {
    before: SimDisk,
    after: SimDisk,
    reads_left: usize,
}

impl Moving {
    fn now(&mut self) -> &mut SimDisk {
        if self.reads_left > 0 { &mut self.before } else { &mut self.after }
    }
}

impl Disk for Moving {
    fn lock(&mut self) -> io::Result<()> {
        unreachable!("a scan takes no lock")
    }

    fn slots(&mut self) -> io::Result<Vec<u32>> {
        self.now().slots()
    }

    fn read(&mut self, slot: u32, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let length = self.now().read(slot, at, bytes);
        self.reads_left = self.reads_left.saturating_sub(1);
        length
    }

    fn create(&mut self, _: u32) -> io::Result<()> {
        unreachable!("a scan writes nothing")
    }

    fn write(&mut self, _: u32, _: u64, _: &[u8]) -> io::Result<()> {
        unreachable!("a scan writes nothing")
    }

    fn zero(&mut self, _: u32, _: u64, _: u32) -> io::Result<()> {
        unreachable!("a scan writes nothing")
    }

    fn sync(&mut self, _: u32) -> io::Result<()> {
        unreachable!("a scan writes nothing")
    }

    fn remove(&mut self, _: u32) -> io::Result<()> {
        unreachable!("a scan writes nothing")
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        unreachable!("a scan writes nothing")
    }
}

fn publish(log: &mut Log, disk: &mut SimDisk, offset: u64) {
    let target = [Target { queue: 1, offset }];
    let message = Message { targets: Targets::List(&target), ..PLAIN };
    while let Some(job) = log.next_prepare() {
        log.prepare_done(job.run(disk)).expect("the disk is well");
    }
    log.append(&Record::Message(message), Urgency::Awaited, NOW).expect("there is room");
    let job = log.next_commit(NOW).expect("a commit is awaited");
    log.commit_done(job.run(disk)).expect("the disk is well");
}

/// Returns a log with this many messages.
fn filled(messages: u64) -> (SimDisk, usize) {
    let mut disk = SimDisk::new(1, Mutant::None, IDENTITY);
    disk.start(Trouble::Never);
    let settings = Settings { segment_bytes: 64 << 10, commit_bytes: 12 << 10, ..Settings::default() };
    let (mut log, _) = Log::open(&mut disk.clone(), settings, IDENTITY, NOW).expect("it opens");
    (0..messages).for_each(|offset| publish(&mut log, &mut disk, offset));
    (disk, log.index().segments().len())
}

#[test]
fn a_segment_opened_during_a_scan_is_not_reported_as_lost() {
    let ((before, few), (after, many)) = (filled(40), filled(60));
    assert!(many > few, "no segment was opened");
    let mut moments = 0;
    loop {
        let mut disk = Moving { before: before.clone(), after: after.clone(), reads_left: moments };
        let access = |disk: &mut Moving| Log::read_only(disk).expect("it is a store").1.access.access;
        let access = match access(&mut disk) {
            Access::InDoubt(_) => access(&mut disk),
            sure => sure,
        };
        assert!(!matches!(access, Access::InDoubt(_)), "after {moments} reads: {access:?}");
        if disk.reads_left > 0 {
            break;
        }
        moments += 1;
    }
    assert!(moments > 10, "there was nothing to move in");
}
