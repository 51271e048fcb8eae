//! What a virtual host, or a user, may keep of what all share, whatever its connections do.

use crate::support::{At, TestBroker};
use leveret_base::command::{Command, Outcome, Settlement};
use leveret_base::limits::Limits;
use leveret_base::mem::ENTRIES_PER_CHUNK;
use leveret_broker::UserLimits;

const BODY: u32 = 4000;

fn small() -> Limits {
    Limits {
        body_bytes_max: 2 << 20,
        assembly_bytes_max: 1_500_000,
        message_size_max: 1 << 20,
        connections_max: 64,
        exchanges_max: 64,
        queues_max: 64,
        unacknowledged_max: 1024,
        ..Limits::default()
    }
}

/// A board with a tenant `loud` that has a virtual host and a user of its own, beside guest in `/`.
fn shared() -> TestBroker {
    let mut house = TestBroker::with(&small());
    house.admit("loud", "loud");
    house
}

fn exchange(house: &mut TestBroker, at: At, name: &str) -> Outcome {
    house.ask(
        at,
        Command::ExchangeDeclare {
            exchange: name,
            kind: "direct",
            passive: false,
            durable: true,
            auto_delete: false,
            internal: false,
            arguments: &[],
        },
    )
}

/// Declares exchanges with several connections, each until it is refused; says how many it got, and what was
/// said to the last.
fn take_exchanges(house: &mut TestBroker, user: &str, vhost: &str, connections: u32) -> (u32, String) {
    let (mut taken, mut refusal) = (0, String::new());
    for connection in 0..connections {
        let at = house.connect_as(user, vhost);
        loop {
            match exchange(house, at, &format!("{user}-{connection}-{taken}")) {
                Outcome::Fault(fault) => {
                    refusal = fault.text.to_string();
                    break;
                }
                _ => taken += 1,
            }
        }
        house.broker.release(&mut context!(house), at.connection);
    }
    while house.broker.run_jobs(&mut context!(house)) {}
    (taken, refusal)
}

#[test]
fn four_connections_of_one_user_leave_exchanges_to_another_virtual_host() {
    let mut house = shared();
    let (taken, refusal) = take_exchanges(&mut house, "loud", "loud", 6);
    assert_eq!(taken, 64 - 2 * 8, "an eighth is kept for each of two virtual hosts, and of two users");
    assert!(refusal.contains("has its share of exchanges_max"), "{refusal}");
    // They are durable and their connections are gone: still they count.
    let (taken, _) = take_exchanges(&mut house, "guest", "/", 8);
    assert_eq!(taken, 16, "what was kept, to the last");
}

#[test]
fn a_user_has_a_share_in_the_virtual_host_that_it_shares_with_others() {
    let mut house = TestBroker::with(&small());
    house.admit("loud", "/");
    let (taken, refusal) = take_exchanges(&mut house, "loud", "/", 6);
    assert_eq!(taken, 64 - 8);
    assert!(refusal.contains("this user has its share of exchanges_max"), "{refusal}");
    assert_eq!(take_exchanges(&mut house, "guest", "/", 8).0, 8);
    // What a deleted user declared stays, and is no user's.
    house.broker.delete_user(&mut house.journal, "loud").unwrap();
    house.admit("again", "/");
    assert_eq!(take_exchanges(&mut house, "again", "/", 2).0, 0);
}

#[test]
fn one_virtual_host_and_one_user_have_everything() {
    let mut house = TestBroker::with(&small());
    assert_eq!(take_exchanges(&mut house, "guest", "/", 8).0, 64);
    // Another comes, finds nothing, and gets what is given back before anybody else.
    house.admit("late", "late");
    assert_eq!(take_exchanges(&mut house, "late", "late", 2).0, 0);
    let at = house.connect();
    for number in 0..4 {
        let exchange = format!("guest-0-{number}");
        house.done(at, Command::ExchangeDelete { exchange: &exchange, if_unused: false });
    }
    assert_eq!(take_exchanges(&mut house, "guest", "/", 2).0, 0);
    assert_eq!(take_exchanges(&mut house, "late", "late", 4).0, 4);
    // It goes, and with it its part.
    house.broker.delete_vhost(&mut context!(house), "late").unwrap();
    house.broker.delete_user(&mut house.journal, "late").unwrap();
    while house.broker.run_jobs(&mut context!(house)) {}
    assert_eq!(take_exchanges(&mut house, "guest", "/", 8).0, 4);
}

#[test]
fn channels_consumers_and_connections_are_left_as_well() {
    let limits =
        Limits { channels_max: 64, consumers_max: 64, connections_max: 32, channel_max: 60, ..small() };
    let mut house = TestBroker::with(&limits);
    house.admit("loud", "loud");
    // So many channels and consumers as it gets with eight connections.
    let (mut channels, mut consumers, mut connections) = (0, 0, 0);
    for connection in 0..8 {
        let Some(at) = try_connect(&mut house, "loud", "loud") else { break };
        (channels, connections) = (channels + 1, connections + 1);
        let queue = format!("q{connection}");
        house.declare(at, &queue, false);
        for number in 0..64 {
            let tag = format!("{number}");
            let consume =
                Command::Consume { queue: &queue, tag: &tag, no_ack: true, exclusive: false, arguments: &[] };
            consumers += u32::from(!matches!(house.ask(at, consume), Outcome::Fault(_)));
        }
        for number in 2..64 {
            let open = Command::OpenChannel { number };
            let opened = house.broker.apply(&mut context!(house), at.connection, None, open).0;
            channels += u32::from(matches!(opened, Outcome::ChannelOpened(_)));
        }
    }
    assert_eq!((channels, consumers), (64 - 2 * 8, 64 - 2 * 8));
    // Connections besides: those that have no channel count too.
    loop {
        let connection = house.broker.connect().unwrap();
        let login = Command::LoginExternal { user: "loud", from_loopback: true };
        house.broker.apply(&mut context!(house), connection, None, login);
        let open = Command::OpenVhost { vhost: "loud" };
        match house.broker.apply(&mut context!(house), connection, None, open).0 {
            Outcome::Fault(fault) => {
                assert!(fault.text.contains("share of connections_max"), "{fault}");
                house.broker.release(&mut context!(house), connection);
                break;
            }
            _ => connections += 1,
        }
    }
    while house.broker.run_jobs(&mut context!(house)) {}
    assert!((24..=25).contains(&connections), "{connections}: the one that asks is not counted yet");
    let (one, other) = (house.connect(), house.connect());
    house.declare(one, "mine", false);
    house.consume(one, "mine");
    assert_eq!(house.offer(other, "mine", 10), Outcome::Published);
    assert_eq!(house.turns(one), 1);
}

/// Binds one queue with patterns of many words, with several connections, each until it is refused; says how
/// many it got, and what was said to the last.
fn take_patterns(house: &mut TestBroker, user: &str, vhost: &str, words: usize) -> (u32, String) {
    let (mut taken, mut refusal) = (0, String::new());
    for connection in 0..4 {
        let at = house.connect_as(user, vhost);
        house.declare(at, "bound", false);
        loop {
            let mut pattern = format!("{user}-{connection}-{taken}");
            (1..words).for_each(|_| pattern.push_str(".#"));
            let bind = Command::QueueBind {
                queue: "bound",
                exchange: "amq.topic",
                routing_key: &pattern,
                arguments: &[],
            };
            match house.ask(at, bind) {
                Outcome::Fault(fault) => {
                    refusal = fault.text.to_string();
                    break;
                }
                _ => taken += 1,
            }
        }
        house.broker.release(&mut context!(house), at.connection);
    }
    while house.broker.run_jobs(&mut context!(house)) {}
    (taken, refusal)
}

/// Two nodes are there for each binding, and a pattern of eight words takes eight.
#[test]
fn the_words_of_one_users_patterns_leave_exchanges_and_patterns_to_others() {
    for (user, vhost, kept) in [("loud", "loud", 128), ("loud", "/", 64)] {
        let mut house = TestBroker::with(&Limits { bindings_max: 256, ..small() });
        house.admit(user, vhost);
        let (taken, refusal) = take_patterns(&mut house, user, vhost, 8);
        assert_eq!(taken, (512 - kept) / 8, "an eighth is kept for each of two");
        assert!(refusal.contains("this user has its share of bindings_max"), "{refusal}");
        assert_eq!(take_patterns(&mut house, "guest", "/", 8).0, kept / 8, "what was kept, to the last");
        assert_eq!(
            take_exchanges(&mut house, "guest", "/", 1).0,
            64 - kept / 8,
            "the roots of exchanges have places of their own"
        );
        // What goes is given back.
        let at = house.connect_as(user, vhost);
        let delete = Command::QueueDelete { queue: "bound", if_unused: false, if_empty: false };
        house.done(at, delete);
        while house.broker.run_jobs(&mut context!(house)) {}
        assert_eq!(take_patterns(&mut house, user, vhost, 8).0, taken);
    }
}

fn try_connect(house: &mut TestBroker, user: &str, vhost: &str) -> Option<At> {
    let connection = house.broker.connect()?;
    let login = Command::LoginExternal { user, from_loopback: true };
    for command in [login, Command::OpenVhost { vhost }] {
        if house.broker.apply(&mut context!(house), connection, None, command).0 != Outcome::Done {
            house.broker.release(&mut context!(house), connection);
            return None;
        }
    }
    match house.broker.apply(&mut context!(house), connection, None, Command::OpenChannel { number: 1 }).0 {
        Outcome::ChannelOpened(channel) => Some(At { connection, channel }),
        _ => {
            house.broker.release(&mut context!(house), connection);
            None
        }
    }
}

/// Queues full of messages that nobody takes, published until everybody waits.
fn flood(house: &mut TestBroker, user: &str, vhost: &str, body_len: u32) -> u32 {
    let mut taken = 0;
    for connection in 0..4 {
        let at = house.connect_as(user, vhost);
        let queue = format!("full-{connection}");
        house.declare(at, &queue, false);
        while house.offer(at, &queue, body_len) == Outcome::Published {
            taken += 1;
        }
    }
    taken
}

#[test]
fn a_virtual_host_that_fills_the_memory_makes_its_own_publishers_wait() {
    for body_len in [BODY, 20] {
        let mut house = shared();
        let (one, other) = (house.connect(), house.connect());
        house.declare(one, "mine", false);
        house.consume(one, "mine");
        let taken = flood(&mut house, "loud", "loud", body_len);
        assert!(taken > 300, "{taken} messages were taken before it was full");
        for tag in 1..=1000 {
            assert_eq!(house.offer(other, "mine", body_len), Outcome::Published, "{tag} of {body_len} B");
            assert_eq!(house.turns(one), 1);
            house.settle(one, tag, false, Settlement::Ack);
        }
        let at = house.connect_as("loud", "loud");
        assert_eq!(house.offer(at, "full-0", body_len), Outcome::Wait);
        // Beyond its own part it takes what nobody else has a claim to; then it waits too, and is let in
        // again when its own memory is free.
        let mut mine = 0;
        house.declare(other, "backlog", false);
        while house.offer(other, "backlog", body_len) == Outcome::Published {
            mine += 1;
        }
        assert!(mine >= 50, "{mine} messages of its own are waiting");
        house.done(other, Command::QueuePurge { queue: "backlog" });
        while house.broker.run_jobs(&mut context!(house)) {}
        let owner = house.broker.owner(other.connection);
        assert!(house.messages.lift_hold(owner));
        assert_eq!(house.offer(other, "mine", body_len), Outcome::Published);
        let owner = house.broker.owner(at.connection);
        assert!(!house.messages.lift_hold(owner), "the loud one still waits");
    }
}

/// Alone in the broker, and beside other virtual hosts, whose parts must not be taken out of its own.
#[test]
fn a_user_that_fills_the_memory_makes_its_own_publishers_wait_and_not_those_beside_it() {
    for (body_len, others) in [(BODY, 0), (20, 0), (BODY, 3), (20, 3)] {
        let mut house = TestBroker::with(&small());
        house.admit("loud", "/");
        for other in 0..others {
            house.admit("guest", &format!("other-{other}"));
        }
        let (one, other) = (house.connect(), house.connect());
        house.declare(one, "mine", false);
        house.consume(one, "mine");
        let taken = flood(&mut house, "loud", "/", body_len);
        assert!(taken > 250, "{taken} messages were taken before it was full");
        for tag in 1..=1000 {
            assert_eq!(house.offer(other, "mine", body_len), Outcome::Published, "{tag} of {body_len} B");
            assert_eq!(house.turns(one), 1);
            house.settle(one, tag, false, Settlement::Ack);
        }
        let at = house.connect_as("loud", "/");
        assert_eq!(house.offer(at, "full-0", body_len), Outcome::Wait);
        // Beyond its own part it waits too; with room it is let in again, and the loud one not.
        house.declare(other, "backlog", false);
        let mut mine = 0;
        while house.offer(other, "backlog", body_len) == Outcome::Published {
            mine += 1;
        }
        assert!(mine >= 30, "{mine} messages of its own are waiting");
        house.done(other, Command::QueuePurge { queue: "backlog" });
        while house.broker.run_jobs(&mut context!(house)) {}
        let owner = house.broker.owner(other.connection);
        assert!(house.messages.lift_hold(owner));
        assert_eq!(house.offer(other, "mine", body_len), Outcome::Published);
        let owner = house.broker.owner(at.connection);
        assert!(!house.messages.lift_hold(owner), "the loud one still waits");
        // It is deleted: what it sent stays, and is nobody's, whoever comes in its place.
        house.broker.release(&mut context!(house), at.connection);
        house.broker.delete_user(&mut house.journal, "loud").unwrap();
        house.admit("late", "/");
        while house.broker.run_jobs(&mut context!(house)) {}
        let late = house.connect_as("late", "/");
        assert_eq!(house.offer(late, "mine", body_len), Outcome::Published, "it has a part of its own");
    }
}

/// Who holds deliveries is served from the reserve: that of others is not among it.
#[test]
fn who_may_not_be_made_to_wait_takes_no_more_than_its_virtual_host_may() {
    let mut house = shared();
    let (one, other) = (house.connect(), house.connect());
    house.declare(one, "mine", false);
    house.consume(one, "mine");
    let loud = house.connect_as("loud", "loud");
    house.declare(loud, "loop", false);
    house.consume(loud, "loop");
    assert_eq!(house.offer(loud, "loop", BODY), Outcome::Published);
    assert_eq!(house.turn(loud), 1);
    for number in 0..8 {
        house.declare(loud, &format!("r{number}"), false);
        while house.offer(loud, &format!("r{number}"), BODY) == Outcome::Published {}
    }
    for tag in 1..=100 {
        assert_eq!(house.offer(other, "mine", BODY), Outcome::Published, "{tag}");
        assert_eq!(house.turns(one), 1);
        house.settle(one, tag, false, Settlement::Ack);
    }
}

#[test]
fn a_large_message_that_waits_sets_nothing_aside_of_what_is_anothers() {
    let mut house = shared();
    let (one, other) = (house.connect(), house.connect());
    house.declare(one, "mine", false);
    house.consume(one, "mine");
    flood(&mut house, "loud", "loud", BODY);
    let loud = house.connect_as("loud", "loud");
    let draw = leveret_base::mem::Draw {
        share: leveret_base::mem::Share::Reserve,
        owner: house.broker.owner(loud.connection),
    };
    let large = house.messages.begin("", b"full-0", draw).unwrap();
    let ordinary = leveret_base::mem::Share::Ordinary;
    let none = leveret_base::mem::MessageFlags::NONE;
    assert!(house.messages.reserve_content(large, &[0, 0], none, 1 << 20, ordinary).is_err());
    for tag in 1..=600 {
        assert_eq!(house.offer(other, "mine", BODY), Outcome::Published, "{tag}");
        assert_eq!(house.turns(one), 1);
        house.settle(one, tag, false, Settlement::Ack);
    }
    house.messages.release(large);
}

#[test]
fn deliveries_that_nobody_settles_leave_some_to_another_virtual_host_and_user() {
    for (user, vhost, kept) in [("loud", "loud", 256), ("loud", "/", 128)] {
        let mut house = TestBroker::with(&small());
        house.admit(user, vhost);
        let publisher = house.connect_as(user, vhost);
        let mut delivered = 0;
        for number in 0..12 {
            let at = house.connect_as(user, vhost);
            let queue = format!("q{number}");
            house.declare(at, &queue, false);
            for _ in 0..1024 {
                let _ = house.offer(publisher, &queue, 10);
            }
            house.consume(at, &queue);
            delivered += house.turns(at);
        }
        assert_eq!(delivered, 1024 - kept, "{vhost}: an eighth is kept, of each");
        let (one, other) = (house.connect(), house.connect());
        house.declare(one, "mine", false);
        house.consume(one, "mine");
        for _ in 0..60 {
            assert_eq!(house.offer(other, "mine", 10), Outcome::Published);
        }
        assert_eq!(house.turns(one), 60);
    }
}

#[test]
fn open_transactions_leave_some_to_another_virtual_host_and_user() {
    for (user, vhost, most) in [("loud", "loud", 180), ("loud", "/", 210)] {
        let mut house = TestBroker::with(&small());
        house.admit(user, vhost);
        let mut held = 0;
        for _ in 0..12 {
            let at = house.connect_as(user, vhost);
            house.declare(at, "q", false);
            house.done(at, Command::TxSelect);
            while house.offer(at, "q", BODY) == Outcome::Published {
                held += 1;
            }
        }
        assert_eq!(held, most, "{vhost}: of 240 pages, an eighth is kept, of each");
        let at = house.connect();
        house.declare(at, "mine", false);
        house.done(at, Command::TxSelect);
        for number in 0..15 {
            assert_eq!(house.offer(at, "mine", BODY), Outcome::Published, "{vhost}: {number}");
        }
        house.done(at, Command::TxCommit);
        assert_eq!(house.ready(at, "mine"), 15);
    }
}

/// One message into many queues takes a chunk of entries for each.
#[test]
fn entries_of_queues_are_left_to_another_virtual_host() {
    let entries = 64 * ENTRIES_PER_CHUNK as u32;
    let limits = Limits { queue_entries_max: entries, queues_max: 256, ..small() };
    let mut house = TestBroker::with(&limits);
    house.admit("loud", "loud");
    let loud = house.connect_as("loud", "loud");
    let mut filled = 0;
    for number in 0..100 {
        let queue = format!("q{number}");
        house.declare(loud, &queue, false);
        filled += u32::from(house.offer(loud, &queue, 10) == Outcome::Published);
    }
    assert_eq!(filled, 60 - 7, "of 60 chunks for all, an eighth is kept");
    let at = house.connect();
    for number in 0..7 {
        let queue = format!("mine-{number}");
        house.declare(at, &queue, false);
        assert_eq!(house.offer(at, &queue, 10), Outcome::Published, "{number}");
    }
}

#[test]
fn limits_of_a_user_hold_in_all_virtual_hosts_together() {
    let mut house = shared();
    house.admit("loud", "/");
    let limits = UserLimits { connections_max: Some(2), channels_max: Some(3) };
    house.broker.access_mut().set_user_limits(&mut house.journal, "loud", limits).unwrap();
    let (one, _other) = (house.connect_as("loud", "/"), house.connect_as("loud", "loud"));
    let third = house.broker.connect().unwrap();
    let login = Command::LoginExternal { user: "loud", from_loopback: true };
    house.broker.apply(&mut context!(house), third, None, login);
    let open = Command::OpenVhost { vhost: "/" };
    let Outcome::Fault(fault) = house.broker.apply(&mut context!(house), third, None, open).0 else {
        panic!("a third connection")
    };
    let words = "NOT_ALLOWED - connection refused for user 'loud': user connection limit (2) is reached";
    assert_eq!(&*fault.text, words);
    let third_channel = house.open(one, 2);
    let open = Command::OpenChannel { number: 3 };
    let Outcome::Fault(fault) = house.broker.apply(&mut context!(house), one.connection, None, open).0 else {
        panic!("a fourth channel")
    };
    assert_eq!(
        &*fault.text,
        "NOT_ALLOWED - number of channels opened for user 'loud' has reached the maximum allowed user limit \
         of (3)"
    );
    // What is given back may be taken again; and a limit may be lifted.
    house.done(third_channel, Command::CloseChannel);
    while house.broker.run_jobs(&mut context!(house)) {}
    let _ = house.open(one, 3);
    house.broker.access_mut().set_user_limits(&mut house.journal, "loud", UserLimits::default()).unwrap();
    let _ = house.open(one, 4);
    assert_eq!(
        house.broker.apply(&mut context!(house), third, None, Command::OpenVhost { vhost: "/" }).0,
        Outcome::Done
    );
}
