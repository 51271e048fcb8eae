//! Checks that the memory for permission patterns is at most what `patterns_bytes_max` counts for them.

use crate::counting;
use leveret_broker::{Broker, Context, PATTERN_BYTES_MAX, Work};
use leveret_core::command::{DefinitionCommand, LoginCommand, OpenChannel, OpenVhost};
use leveret_core::definition::Permission;
use leveret_core::limits::Limits;
use leveret_core::mem::{MessageLimits, Messages};
use leveret_core::password::PasswordHash;
use leveret_storage::PendingWrites;

/// Sets and uses a pattern with this limit for all patterns. Returns the heap that it took.
fn taken(pattern: &str, patterns_bytes_max: u32) -> Option<usize> {
    let limits = Limits { patterns_bytes_max, ..Limits::default() };
    let mut broker = Broker::new(&limits, Box::new(|bytes| bytes.fill(7))).unwrap();
    let mut messages = Messages::new(MessageLimits {
        messages_max: 16,
        body_bytes_max: 1 << 20,
        assembly_bytes_max: 1 << 20,
    });
    let (mut pending_writes, mut work) = (PendingWrites::new(16), Work::default());
    let mut context = Context::new(&mut pending_writes, &mut messages, &mut work);
    broker.put_user(context.pending_writes, "u", PasswordHash::NoPassword, "").unwrap();
    broker
        .access_mut()
        .set_permissions(
            context.pending_writes,
            &Permission { user: "u", vhost: "/", configure: ".*", write: ".*", read: ".*" },
        )
        .unwrap();
    let connection = broker.connect().unwrap();
    let login = LoginCommand::External { user: "u", from_loopback: true };
    broker.apply_to_connection(&mut context, connection, login).unwrap();
    broker.apply_to_connection(&mut context, connection, OpenVhost { vhost: "/" }).unwrap();
    let channel = broker.apply_to_connection(&mut context, connection, OpenChannel { number: 1 }).unwrap();
    let before = counting::held_bytes();
    broker
        .access_mut()
        .set_permissions(
            context.pending_writes,
            &Permission { user: "u", vhost: "/", configure: pattern, write: ".*", read: ".*" },
        )
        .ok()?;
    // Matching needs space too, which is kept, whether the pattern allows this or not.
    let delete = DefinitionCommand::QueueDelete { queue: "none", if_unused: false, if_empty: false };
    let _ = broker.apply_on_channel(&mut context, connection, channel, delete);
    Some(counting::held_bytes_since(before))
}

#[test]
fn a_pattern_takes_no_more_than_is_counted() {
    let units =
        ["a", "a*", "|", "a|", ".*", r"\W", "[^a]", "(a)", "((a))?", "(a|b)+", "(?i)x", "(?P<n>é)?", "()"];
    for unit in units {
        for count in [1, 40, PATTERN_BYTES_MAX / unit.len()] {
            let pattern = unit.repeat(count);
            let rooms = (9..19).map(|power| (1 << power) + 2 * PATTERN_BYTES_MAX as u32);
            let (room, taken) = rooms
                .filter_map(|room| taken(&pattern, room).map(|taken| (room, taken)))
                .next()
                .unwrap_or_else(|| panic!("no room is enough for {count} times {unit}"));
            assert!(taken <= room as usize, "{count} times {unit}: {taken} bytes of {room}");
        }
    }
}
