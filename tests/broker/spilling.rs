//! What leaves memory when it is short: no more than makes it enough again.
//!
//! A consumer that keeps up wants the next messages back at once; each that left without need is read from
//! the card, checked and kept again.

use leveret::command::{Command, Outcome};
use leveret::limits::Limits;
use leveret::mem::{MessageFlags, Share};

use crate::support::{At, House};

const BODY_BYTES: u32 = 1024;

fn publish_persistent(house: &mut House, at: At) {
    let message = house.messages.begin("", b"q", Share::Ordinary).unwrap();
    let flags = MessageFlags::PERSISTENT;
    house.messages.reserve_content(message, &[0x10, 0, 2], flags, BODY_BYTES, Share::Ordinary).unwrap();
    house.messages.append_body(message, &[7; BODY_BYTES as usize]);
    house.messages.finish(message);
    assert_eq!(house.ask(at, Command::Publish { message, mandatory: false }), Outcome::Published);
}

/// As if a commit had all of it.
fn store(house: &mut House) {
    let journal = house.broker.journal_mut();
    while journal.fact().is_some() {
        journal.pop_fact();
    }
    let mut places = Vec::new();
    while journal.front(&mut house.messages, &mut places).is_some() {
        journal.hand_over(&mut house.messages);
    }
    let batch = journal.cover(false);
    journal.stored(&mut house.messages, batch);
}

#[test]
fn no_more_leaves_than_makes_memory_enough_again() {
    let limits = Limits { body_bytes_max: 4 << 20, messages_max: 16_000, ..Limits::default() };
    let mut house = House::with(&limits);
    house.broker.journal_mut().start(1, true, 1 << 20);
    house.broker.journal_mut().set_disk_room((u64::MAX, u64::MAX), u64::MAX, false);
    let at = house.connect();
    let declare = Command::QueueDeclare {
        queue: "q",
        passive: false,
        durable: true,
        exclusive: false,
        auto_delete: false,
        arguments: &[],
    };
    house.done(at, declare);
    let mut published = 0;
    while !house.messages.is_above_spill_mark() {
        publish_persistent(&mut house, at);
        store(&mut house);
        published += 1;
    }
    for _ in 0..100 {
        publish_persistent(&mut house, at);
        store(&mut house);
    }
    while house.broker.spill(&mut house.messages) {}
    assert!(!house.messages.is_above_spill_mark(), "nothing left");
    let (kept, before) = (house.messages.messages_used(), published + 100);
    assert!(kept + 10 >= published, "{kept} of {before} stayed, and {published} have room");
}
