//! A start from a disk that fails some reads: whether a user can log in must not depend on them.

use leveret_broker::{OpenedLog, restore};
use leveret_core::password::PasswordHash;
use leveret_core::time::Now;
use leveret_storage::{Disk, Log, Settings};

use crate::dead_letters::{BrokerRun, IDENTITY};
use crate::support::TestBroker;
use leveret_test_support::simulated_disk::{Mutant, SimDisk};

const NOW: Now = Now::from_ms(1);

/// A start checks the users and then passes them to the broker. A second read that fails must not lock out a
/// user that the first read found.
#[test]
fn a_user_that_was_read_exists_although_a_second_read_fails() {
    let mut disk = SimDisk::new(1, Mutant::None, IDENTITY);
    let mut run = BrokerRun::begin(&disk).expect("it is a new store");
    run.node
        .broker
        .put_user(&mut run.node.pending_writes, "ann", PasswordHash::NoPassword, "")
        .expect("there is room");
    run.store().expect("the disk is well");
    drop(run);
    let settings = Settings { segments_max: 30, ..Settings::default() };
    let (log, report) = Log::open(&mut disk, settings, IDENTITY, NOW).expect("it opens");
    for slot in disk.slots().expect("it can be read") {
        (0..512 << 10).step_by(4096).for_each(|at| disk.refuse(slot, at));
    }
    let mut node = TestBroker::with(&Default::default());
    let first = Some(("guest", PasswordHash::NoPassword));
    restore(
        &mut node.broker,
        &mut context!(node),
        OpenedLog { log: &log, disk: &mut disk, access: report.access, damage: report.reported_damage },
        first,
        NOW,
    )
    .expect("there is nothing else to read");
    let mut users: Vec<&str> = node.broker.access().users().map(|user| user.name).collect();
    users.sort_unstable();
    assert_eq!(users, ["ann", "guest"]);
}
