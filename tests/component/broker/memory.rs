//! A broker whose pools share a memory of few extents: what is refused changes nothing, and everything is given back.

use leveret_broker::{Broker, Gauges};
use leveret_core::command::{
    ConnectionId, DefinitionCommand, LoginCommand, OpenChannel, OpenSession, OpenVhost,
};
use leveret_core::error::Fault;
use leveret_core::limits::Limits;
use leveret_core::mem::{COMMAND_EXTENTS, Memory};
use leveret_core::password::PasswordHash;
use leveret_test_support::random::Random;

use super::support::{At, TestBroker};

const NO_FLOORS: [usize; 3] = [0; 3];

/// Limits that no memory of this file allows to reach.
fn wide() -> Limits {
    Limits {
        connections_max: 20_000,
        channels_max: 40_000,
        consumers_max: 40_000,
        queues_max: 20_000,
        exchanges_max: 20_000,
        bindings_max: 40_000,
        names_bytes_max: 64 << 20,
        users_max: 20_000,
        vhosts_max: 2_000,
        permissions_max: 20_000,
        ..Limits::default()
    }
}

fn gauges(broker: &Broker) -> (Gauges, usize, usize) {
    (broker.gauges(), broker.access().users().count(), broker.access().vhosts().count())
}

/// Opens a connection with a channel, or as much of it as the memory allows.
fn connect(node: &mut TestBroker) -> Option<At> {
    let connection = node.broker.connect()?;
    let login = LoginCommand::External { user: "guest", from_loopback: true };
    node.broker.apply_to_connection(&mut context!(node), connection, login).unwrap();
    node.broker.apply_to_connection(&mut context!(node), connection, OpenVhost { vhost: "/" }).unwrap();
    match node.broker.apply_to_connection(&mut context!(node), connection, OpenChannel { number: 1 }) {
        Ok(channel) => Some(At { connection, channel }),
        Err(_) => {
            disconnect(node, connection);
            None
        }
    }
}

/// Opens a session of MQTT that is kept for this time. Returns its connection.
fn open_session(node: &mut TestBroker, client_id: &str, expiry_s: u32) -> Result<ConnectionId, Fault> {
    let connection = node.broker.connect().expect("there is memory for a connection");
    let login = LoginCommand::External { user: "guest", from_loopback: true };
    node.broker.apply_to_connection(&mut context!(node), connection, login).unwrap();
    node.broker.apply_to_connection(&mut context!(node), connection, OpenVhost { vhost: "/" }).unwrap();
    let command = OpenSession {
        client_id,
        clean_start: true,
        expiry_s,
        in_flight_max: 20,
        packet_len_max: u32::MAX,
        will: None,
    };
    match node.broker.apply_to_connection(&mut context!(node), connection, command) {
        Ok(_) => Ok(connection),
        Err(fault) => {
            disconnect(node, connection);
            Err(fault)
        }
    }
}

fn disconnect(node: &mut TestBroker, connection: ConnectionId) {
    node.broker.release(&mut context!(node), connection);
    node.broker.run_jobs(&mut context!(node));
}

fn exchange_declare<'a>(exchange: &'a str, kind: &'a str) -> DefinitionCommand<'a> {
    DefinitionCommand::ExchangeDeclare {
        exchange,
        kind,
        passive: false,
        durable: true,
        auto_delete: false,
        internal: false,
        arguments: &[],
    }
}

/// One random change by an operator or a client. Returns whether it was refused.
fn change(node: &mut TestBroker, at: At, random: &mut Random, serial: u32) -> bool {
    let name = format!("{}{serial}", "name".repeat(random.below(4) as usize));
    let arguments: &[u8] = &[];
    let words = ".word".repeat(random.below(20) as usize);
    let key = format!("{name}{words}");
    let command = match random.below(8) {
        0 | 1 => DefinitionCommand::QueueDeclare {
            queue: &name,
            passive: false,
            durable: random.once_in(2),
            exclusive: false,
            auto_delete: false,
            arguments,
        },
        2 => exchange_declare(&name, "topic"),
        3..=5 => {
            DefinitionCommand::QueueBind { queue: "q", exchange: "amq.topic", routing_key: &key, arguments }
        }
        6 => {
            let hash = PasswordHash::NoPassword;
            return node.broker.put_user(&mut node.pending_writes, &name, hash, "").is_err();
        }
        _ => return node.broker.put_vhost(&mut node.pending_writes, &name).is_err(),
    };
    node.ask(at, command).is_err()
}

/// Every small memory: definitions until several of every kind were refused.
#[test]
fn a_refused_definition_changes_nothing_in_a_memory_of_any_size() {
    for extents in (COMMAND_EXTENTS + 80..COMMAND_EXTENTS + 400).step_by(5) {
        let memory = Memory::new(extents, NO_FLOORS);
        let mut node = TestBroker::in_memory(&wide(), &memory);
        let random = &mut Random::new(extents as u64);
        let at = connect(&mut node).expect("there is memory for a connection");
        node.declare(at, "q", false);
        let mut refused = 0;
        for serial in 0..100_000 {
            let before = gauges(&node.broker);
            if change(&mut node, at, random, serial) {
                refused += 1;
                assert_eq!(gauges(&node.broker), before, "with {extents} extents");
            }
            assert!(memory.extents_used() <= extents);
            if refused == 40 {
                break;
            }
        }
        assert_eq!(refused, 40, "with {extents} extents");
        // What is kept for commands that have begun is enough for a client to delete.
        node.done(at, DefinitionCommand::QueueDelete { queue: "q", if_unused: false, if_empty: false });
        node.broker.run_jobs(&mut context!(node));
    }
}

/// Clients take all memory with connections, and give it back.
#[test]
fn connections_are_refused_without_an_extent_and_give_back_what_they_had() {
    let memory = Memory::new(COMMAND_EXTENTS + 160, NO_FLOORS);
    let mut node = TestBroker::in_memory(&wide(), &memory);
    let before = memory.extents_used();
    for _ in 0..3 {
        let mut all = Vec::new();
        while let Some(at) = connect(&mut node) {
            all.push(at);
        }
        assert!(all.len() > 140, "{} connections", all.len());
        assert!(memory.extents_used() <= COMMAND_EXTENTS + 160);
        all.into_iter().for_each(|at| disconnect(&mut node, at.connection));
        while !node.broker.trim() {}
        assert_eq!(memory.extents_used(), before);
    }
}

/// Definitions may use everything except the floors of the other classes.
#[test]
fn clients_connect_and_publish_although_definitions_have_used_up_the_memory() {
    let floors = [COMMAND_EXTENTS + 100, COMMAND_EXTENTS + 100, 80];
    let memory = Memory::new(800, floors);
    let mut node = TestBroker::in_memory(&wide(), &memory);
    let at = connect(&mut node).expect("there is memory for a connection");
    node.declare(at, "q", false);
    let random = &mut Random::new(7);
    let refused = (0..100_000).filter(|serial| change(&mut node, at, random, *serial)).take(100);
    assert_eq!(refused.count(), 100);
    assert!(memory.extents_used() > 480, "{}", memory.extents_used());
    let others: Vec<At> = (0..20).map(|_| connect(&mut node).expect("clients have a floor")).collect();
    for other in &others {
        node.consume(*other, "q");
    }
    node.publish(others[0], "q", 500);
    let first = node.turns(others[0]) as usize;
    let delivered = others[1..].iter().map(|other| node.outbox_bodies(*other).len()).sum::<usize>();
    assert_eq!(first + delivered, 500);
    for number in 0..20 {
        open_session(&mut node, &format!("c{number}"), 0).expect("sessions are in the memory of clients");
    }
}

/// Absent clients leave half of the memory of clients to those that connect.
#[test]
fn kept_sessions_leave_memory_to_connections() {
    let memory = Memory::new(COMMAND_EXTENTS + 800, [COMMAND_EXTENTS + 100, COMMAND_EXTENTS + 100, 80]);
    let mut node = TestBroker::in_memory(&wide(), &memory);
    let mut kept = 0;
    let refused = loop {
        match open_session(&mut node, &format!("kept{kept}"), 60) {
            Ok(connection) => disconnect(&mut node, connection),
            Err(fault) => break fault,
        }
        kept += 1;
        assert!(kept < 5_000, "no session is refused");
    };
    assert!(kept > 100 && refused.text.contains("as many as memory_limit allows"), "{kept}: {refused:?}");
    let clients = (0..100).filter(|number| open_session(&mut node, &format!("c{number}"), 0).is_ok()).count();
    assert_eq!(clients, 100);
    connect(&mut node).expect("a client of AMQP can connect");
}

/// Root nodes of exchanges, and the levels of queues with priorities, are not in the tables of their pools. A table takes its
/// memory with the pool, so a later record that it finds needs no more than its own.
#[test]
fn tables_take_memory_for_records_that_they_do_not_find() {
    // The table of 40,000 root nodes needs more than `COMMAND_EXTENTS`.
    for extents in [10_400, 10_401] {
        let memory = Memory::new(extents, NO_FLOORS);
        let limits = Limits { exchanges_max: 100_000, ..wide() };
        let mut node = TestBroker::in_memory(&limits, &memory);
        let at = connect(&mut node).expect("there is memory for a connection");
        node.declare(at, "q", false);
        let bind = |node: &mut TestBroker, key: &str| {
            let arguments = &[];
            node.ask(
                at,
                DefinitionCommand::QueueBind {
                    queue: "q",
                    exchange: "amq.topic",
                    routing_key: key,
                    arguments,
                },
            )
        };
        bind(&mut node, "a.word").unwrap();
        let mut count = 0;
        // A connection may hold fifteen times what it leaves, so several declare.
        for _ in 0..20 {
            let Some(at) = connect(&mut node) else { break };
            loop {
                let exchange = &format!("exchange {count}");
                if node.ask(at, exchange_declare(exchange, "fanout")).is_err() {
                    break;
                }
                count += 1;
            }
        }
        assert!(count > 40_000, "{count} exchanges");
        for number in 0..40 {
            let arguments = &[];
            let key = format!("{number}.word");
            // They may be refused.
            let bind = DefinitionCommand::QueueBind {
                queue: "q",
                exchange: "amq.topic",
                routing_key: &key,
                arguments,
            };
            let _ = node.ask(at, bind);
            let _ = node.ask(at, exchange_declare(&format!("more {number}"), "topic"));
        }
        assert!(memory.extents_used() <= extents);
    }
}

/// A virtual host that is refused for its texts leaves nothing.
#[test]
fn a_virtual_host_is_added_with_its_metadata_or_not_at_all() {
    for extents in (COMMAND_EXTENTS + 80..COMMAND_EXTENTS + 360).step_by(5) {
        let memory = Memory::new(extents, NO_FLOORS);
        let mut node = TestBroker::in_memory(&wide(), &memory);
        for number in 0..200 {
            let name = format!("vhost {number}");
            let before = gauges(&node.broker);
            if node.broker.put_vhost(&mut node.pending_writes, &name).is_err() {
                assert_eq!(gauges(&node.broker), before, "with {extents} extents");
            }
        }
        assert!(memory.extents_used() <= extents);
    }
}
