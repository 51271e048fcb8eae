//! Bytes of memory that the broker's records take, for the memory table.

use leveret_core::command::{ConnectionId, QueueId};
use leveret_core::mem::Slab;

use super::access;
use super::consumers::{Channel, Connection, Consumer};
use super::deliveries::Deliveries;
use super::job::Begun;
use super::letters::TracedName;
use super::names::IndexTable;
use super::parameters::Parameters;
use super::policy::Policies;
use super::queue::Queue;
use super::queues::DelayWheel;
use super::queues::Expiry;
use super::queues::Getting;
use super::quota::Quota;
use super::recovery;
use super::recovery::LeftOut;
use super::topology::Topology;

/// Bytes of a connection's record, with its places in tables and on lists.
pub const CONNECTION_BYTES: usize = Slab::<Connection>::record_bytes()
    + Quota::CONNECTION_BYTES
    + 3 * size_of::<ConnectionId>()
    + 2 * size_of::<Begun>()
    + size_of::<TracedName>();
/// Bytes of a channel's record.
pub const CHANNEL_BYTES: usize = Slab::<Channel>::record_bytes() + 2 * size_of::<Getting>();
/// Bytes of a consumer's record.
pub const CONSUMER_BYTES: usize = Slab::<Consumer>::record_bytes() + IndexTable::ENTRY_BYTES;
/// Bytes of a queue's record, with its place among the targets of a message and of a dead letter, on the
/// lists of queues that give messages up, of times (twice), jobs, watermarks and reads (which grow by
/// doubling), and the allocator's overhead for its names.
pub const QUEUE_BYTES: usize = Slab::<Queue>::record_bytes()
    + IndexTable::ENTRY_BYTES
    + 3 * size_of::<QueueId>()
    + size_of::<Begun>()
    + 2 * (size_of::<(u64, QueueId, u64, u64)>() + 2 * size_of::<QueueId>() + 2 * size_of::<(u64, u64)>())
    + Expiry::QUEUE_BYTES
    + DelayWheel::QUEUE_BYTES
    + LeftOut::ENTRY_BYTES
    + 2 * ALLOCATION_BYTES;
/// Bytes of an exchange's record with its root node.
pub const EXCHANGE_BYTES: usize =
    Topology::EXCHANGE_BYTES + size_of::<Begun>() + LeftOut::ENTRY_BYTES + 4 * ALLOCATION_BYTES;
/// Bytes of a binding's record with its nodes, or its pairs.
pub const BINDING_BYTES: usize =
    Topology::BINDING_BYTES + (2 + Topology::NODES_PER_BINDING) * ALLOCATION_BYTES;
/// Bytes of a virtual host's record with its predeclared exchanges, its place among the jobs, and the
/// allocator's overhead for its metadata.
pub const VHOST_BYTES: usize = access::VHOST_BYTES
    + Quota::VHOST_BYTES
    + access::PREDECLARED_EXCHANGES * EXCHANGE_BYTES
    + size_of::<Begun>()
    + 3 * ALLOCATION_BYTES;
/// Bytes of a user's record.
pub const USER_BYTES: usize = access::USER_BYTES + Quota::USER_BYTES;
/// Bytes of a permission's record without its patterns.
pub const PERMISSION_BYTES: usize = access::PERMISSION_BYTES;
/// Bytes of a parameter's record.
pub const PARAMETER_BYTES: usize = Parameters::PARAMETER_BYTES;
/// Bytes of a policy's record without its pattern.
pub const POLICY_BYTES: usize = Policies::POLICY_BYTES;
/// Bytes of a delivery's record.
pub const DELIVERY_BYTES: usize = Deliveries::RECORD_BYTES;
/// Bytes that the allocator adds to each piece, about.
const ALLOCATION_BYTES: usize = 16;

/// Bytes of the buffers that exist once, for frames and numbers of messages of this size.
pub const fn buffer_bytes(frame_max: usize, messages_max: usize) -> usize {
    let once = recovery::ORPHANS_BYTES + DelayWheel::held_bytes(messages_max);
    2 * frame_max + 256 + Topology::header_names_bytes(frame_max) + once
}
