//! Quota by itself: connections, users and virtual hosts that take, are refused and give back.

use super::held::Pinned;
use super::*;
use crate::command::{ConnectionId, VhostId};
use crate::limits::Limits;

/// The virtual host that is always there, and another.
fn vhosts() -> [VhostId; 2] {
    [0, 1].map(VhostId::from_index)
}

/// A board with room for 100 of everything.
fn quota() -> Quota {
    let mut limits = Limits::default();
    (limits.exchanges_max, limits.bindings_max, limits.names_bytes_max) = (100, 100, 10_000);
    (limits.unacknowledged_max, limits.messages_max, limits.body_bytes_max) = (100, 160, 1_600);
    let mut quota = Quota::new(&limits);
    tenants(&mut quota, 1, &[(0, 1)]);
    quota
}

/// Sets how many virtual hosts there are, and which users.
fn tenants(quota: &mut Quota, count: usize, users: &[(usize, u32)]) {
    quota.share_among(vhosts().into_iter().take(count), users.iter().copied());
}

/// A connection of a user in a virtual host.
fn connected(quota: &mut Quota, index: usize, user: usize, vhost: VhostId) -> ConnectionId {
    let connection = ConnectionId::from_index(index);
    quota.connection_came(connection);
    quota.logged_in(connection, Some(user));
    quota.open_vhost(connection, vhost, 50).unwrap();
    connection
}

/// How many records of a pool of 100 a connection gets while nobody else takes any.
fn channels_of(quota: &mut Quota, connection: ConnectionId, used: usize) -> usize {
    let mut taken = 0;
    while quota.may_take(connection, Pool::Channels, 100 - used - taken).is_ok() && used + taken < 100 {
        quota.take(connection, Pool::Channels);
        taken += 1;
    }
    taken
}

#[test]
fn a_connection_leaves_as_many_channels_as_it_has() {
    let mut quota = quota();
    let [one, two] = [0, 1].map(|index| connected(&mut quota, index, 0, vhosts()[0]));
    assert_eq!(channels_of(&mut quota, one, 0), 50);
    assert_eq!(channels_of(&mut quota, two, 50), 25);
    (0..50).for_each(|_| quota.give_back(one, Pool::Channels));
    (0..25).for_each(|_| quota.give_back(two, Pool::Channels));
    for connection in [one, two] {
        quota.leave_vhost(connection);
        quota.connection_gone(connection);
    }
    assert_eq!(quota.holders(), 0);
}

#[test]
fn four_connections_of_one_user_are_one_user() {
    let mut quota = quota();
    tenants(&mut quota, 1, &[(0, 1), (1, 2)]);
    let mut used = 0;
    for index in 0..8 {
        let connection = connected(&mut quota, index, 0, vhosts()[0]);
        used += channels_of(&mut quota, connection, used);
    }
    // An eighth of the pool, half of the quarter that is kept, is for the other user.
    assert_eq!(used, 88);
    let other = connected(&mut quota, 8, 1, vhosts()[0]);
    assert!(channels_of(&mut quota, other, used) > 0, "somebody else gets nothing");
}

#[test]
fn what_is_declared_outlives_its_connection_and_counts_for_its_user_while_that_exists() {
    let mut quota = quota();
    let connection = connected(&mut quota, 0, 0, vhosts()[0]);
    let declarer = Some(quota.declarer(connection));
    let room = |queues| Room { queues };
    quota.declare(Declared::Queue, 10, (vhosts()[0], declarer), room(100)).unwrap();
    quota.declare(Declared::Exchange, 20, (vhosts()[0], declarer), room(99)).unwrap();
    quota.declare(Declared::Binding(3), 30, (vhosts()[0], declarer), room(99)).unwrap();
    quota.take_nodes(2, (vhosts()[0], declarer), 50).unwrap();
    assert_eq!((quota.names_bytes(), quota.exchanges()), (60, 1));
    assert_eq!(quota.fills()[0], (3, 100));
    quota.leave_vhost(connection);
    quota.connection_gone(connection);
    // Another connection with the same id does not answer for these declarations.
    let again = connected(&mut quota, 0, 0, vhosts()[0]);
    quota.undeclare(Declared::Queue, 10, (vhosts()[0], declarer));
    tenants(&mut quota, 1, &[]);
    quota.undeclare(Declared::Exchange, 20, (vhosts()[0], declarer));
    quota.undeclare(Declared::Binding(3), 30, (vhosts()[0], declarer));
    quota.give_node_back(vhosts()[0], 1);
    quota.give_node_back(vhosts()[0], 1);
    quota.leave_vhost(again);
    quota.connection_gone(again);
    assert_eq!((quota.names_bytes(), quota.exchanges(), quota.holders()), (0, 0, 0));
}

#[test]
fn one_connection_declares_fifteen_times_what_it_leaves() {
    let mut quota = quota();
    let connection = connected(&mut quota, 0, 0, vhosts()[0]);
    let declarer = Some(quota.declarer(connection));
    let mut count = 0;
    while quota.declare(Declared::Exchange, 1, (vhosts()[0], declarer), Room { queues: 0 }).is_ok() {
        count += 1;
    }
    assert_eq!(count, 93);
    // Durable things come back at a start whatever the shares are.
    for _ in 93..100 {
        quota.declare(Declared::Exchange, 1, (vhosts()[0], None), Room { queues: 0 }).unwrap();
    }
    let fault = quota.declare(Declared::Exchange, 1, (vhosts()[0], None), Room { queues: 0 }).unwrap_err();
    assert!(fault.text.contains("raise exchanges_max"), "{fault:?}");
}

#[test]
fn deliveries_and_their_memory_are_shared_with_a_newcomer() {
    let mut quota = quota();
    let [one, two] = [0, 1].map(|index| connected(&mut quota, index, 0, vhosts()[0]));
    // 1,500 bytes are for ordinary publishers.
    let mut held = 0;
    while quota.may_take_delivery(one, 100 - held) {
        quota.take_delivery(one, 100);
        held += 1;
    }
    assert_eq!((held, quota.key_of_deliveries(one)), (8, "body_bytes_max"));
    assert!(quota.may_take_delivery(two, 92), "one delivery always");
    quota.give_delivered_bytes_back(one, 100);
    assert!(quota.may_take_delivery(one, 92), "only the log has one of them");
    quota.give_delivery_back(one, 0);
    (1..8).for_each(|_| quota.give_delivery_back(one, 100));
    assert_eq!(quota.pinned(), Pinned::default());
}

#[test]
fn open_transactions_of_all_hold_half_and_each_leaves_what_it_has() {
    let mut quota = quota();
    let [one, two] = [0, 1].map(|index| connected(&mut quota, index, 0, vhosts()[0]));
    // 150 slots and 1,500 bytes are for ordinary publishers: half of them is 75 and 750.
    quota.take_open(one, 37, 100).unwrap();
    assert!(quota.take_open(one, 1, 1).unwrap_err().text.contains("messages_max"));
    quota.take_open(two, 10, 500).unwrap();
    assert!(quota.take_open(two, 1, 100).unwrap_err().text.contains("body_bytes_max"));
    quota.give_open_back(one, 37, 100);
    quota.give_open_back(two, 10, 500);
    assert_eq!(quota.pinned(), Pinned::default());
}

#[test]
fn a_virtual_host_that_comes_finds_its_part_though_another_holds_most() {
    let mut quota = quota();
    let one = connected(&mut quota, 0, 0, vhosts()[0]);
    (0..40).for_each(|_| quota.take_delivery(one, 0));
    tenants(&mut quota, 2, &[(0, 1)]);
    let two = connected(&mut quota, 1, 0, vhosts()[1]);
    (40..88).for_each(|_| quota.take_delivery(one, 0));
    assert!(!quota.may_take_delivery(one, 12) && quota.may_take_delivery(two, 12));
    (0..88).for_each(|_| quota.give_delivery_back(one, 0));
    quota.leave_vhost(two);
    quota.connection_gone(two);
    tenants(&mut quota, 1, &[(0, 1)]);
    assert!(quota.may_take_delivery(one, 12) && !quota.tenants.is_divided());
}

#[test]
#[should_panic(expected = "a connection that goes holds nothing")]
fn a_connection_that_goes_with_a_delivery_is_a_mistake_of_ours() {
    let mut quota = quota();
    let one = connected(&mut quota, 0, 0, vhosts()[0]);
    quota.take_delivery(one, 10);
    quota.leave_vhost(one);
    quota.connection_gone(one);
}
