//! The representation of a message in the pool, and the shares of the pools.

use core::num::NonZeroU32;

use bytemuck::{Pod, Zeroable};

use crate::mem::blocks::{BLOCK_UNIT_BYTES, BlockId, Blocks, PAGE_BYTES};

/// Bytes of the stream that fit into the slot.
pub(super) const INLINE_BYTES: usize = 94;
/// One part in this many of the slots and pages is only for messages that are read back from the disk.
pub(super) const READ_BACK_PART: usize = 64;
/// Bytes of one message slot.
pub const MESSAGE_SLOT_BYTES: usize = size_of::<Slot>();
const _: () = assert!(MESSAGE_SLOT_BYTES == 128, "two cache lines, whatever the target");

/// Identifies a message in the pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct MessageId(NonZeroU32);

impl MessageId {
    /// Returns the id of slot `index` (0-based).
    ///
    /// # Panics
    /// Panics beyond 2^32 - 2, which no pool reaches.
    pub fn from_index(index: usize) -> Self {
        let above = u32::try_from(index + 1).ok().and_then(NonZeroU32::new);
        Self(above.expect("pools hold fewer than 2^32 messages"))
    }

    /// Returns the message that a slot's link refers to; 0 refers to none.
    pub(super) fn from_link(link: u32) -> Option<Self> {
        NonZeroU32::new(link).map(Self)
    }

    /// Returns the value of a link to this message.
    pub(super) const fn to_link(self) -> u32 {
        self.0.get()
    }

    /// Returns the index of its slot.
    pub const fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// Properties of a message that the broker needs without parsing the AMQP properties.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
#[repr(transparent)]
pub struct MessageFlags(u16);

impl MessageFlags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// delivery_mode is 2.
    pub const PERSISTENT: Self = Self(1);
    /// The properties must be parsed before routing: they have headers, an expiration, a user id or a reply-to.
    pub const PARSE_PROPERTIES: Self = Self(2);
    /// Its expiration is 0: it is delivered to a waiting consumer at once or expires.
    pub const DUE_AT_ONCE: Self = Self(16);
    /// It is in the log: its body can be read back.
    pub const STORED: Self = Self(32);
    /// It replaces another message whose settlement is not durable yet.
    pub const WITHHELD: Self = Self(1024);
    /// It has its own expiration.
    pub const EXPIRES: Self = Self(64);
    /// The time it reached its queues is recorded.
    pub(super) const ARRIVED: Self = Self(128);
    /// Its headers have a BCC key, which is removed before delivery.
    pub const HAS_BCC: Self = Self(256);
    /// Not a published message: keeps the routing of the message before it until the transaction is committed.
    pub const ROUTE: Self = Self(2048);
    /// Names and the first bytes of the content are in the slot.
    pub(super) const INLINE: Self = Self(512);
    /// The content is incomplete and counts for the assembly share.
    pub(super) const ASSEMBLING: Self = Self(4);
    /// It must be returned if it reaches no queue.
    pub(super) const MANDATORY: Self = Self(8);

    /// Returns the union of both flag sets.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns whether all flags of `other` are set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    pub(super) const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// The share of the pools that a message may take memory from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Share {
    /// The share of every publisher.
    Ordinary,
    /// Also half of the reserve: for connections with an open transaction, which may be rolled back.
    Transaction,
    /// The whole reserve as well: for connections with unacknowledged deliveries, and for the broker itself.
    Reserve,
    /// The part for reading back as well, except for one slot: for messages that are read back. Until they are
    /// delivered, nothing behind them is.
    ReadBack,
    /// Everything: for a dead letter, which replaces the message that it is of. Without the last slot, memory full of
    /// expired messages that were read back would never be free again.
    DeadLetter,
}

/// The pool that is full. Each one has a configuration key for its size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PoolFull {
    /// `messages_max`
    Messages,
    /// `body_bytes_max`
    Bodies,
    /// `assembly_bytes_max`
    Assembly,
}

impl PoolFull {
    /// Returns the configuration key to raise.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Messages => "messages_max",
            Self::Bodies => "body_bytes_max",
            Self::Assembly => "assembly_bytes_max",
        }
    }
}

/// The sizes of the pools.
#[derive(Clone, Copy, Debug)]
pub struct MessageLimits {
    /// Number of message slots.
    pub messages_max: usize,
    /// Bytes of blocks, rounded down to pages.
    pub body_bytes_max: usize,
    /// Bytes of blocks that incomplete contents may hold.
    pub assembly_bytes_max: usize,
}

/// The slot of a message.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Slot {
    pub(super) references: u32,
    pub(super) body_len: u32,
    pub(super) properties_len: u32,
    /// First block of its chain; 0 for none.
    pub(super) first_block: BlockId,
    /// Bytes of the stream that are present. While the body arrives they end at `write_block` and `write_at`. In a
    /// complete message these two hold the time it reached its queues, if that is recorded.
    pub(super) filled: u32,
    pub(super) write_block: BlockId,
    /// The slot after it on its owner's list (an open transaction), counted from 1; or the mark of its pending write.
    pub(super) link: u32,
    /// The offset in `write_block` of the next byte of the body.
    pub(super) write_at: u16,
    pub(super) exchange_len: u8,
    pub(super) key_len: u8,
    pub(super) flags: MessageFlags,
    pub(super) inline: [u8; INLINE_BYTES],
}

impl Slot {
    /// Returns the pages of the assembly share that it holds.
    #[inline]
    pub(super) const fn assembly_pages(&self) -> usize {
        if !self.flags.has(MessageFlags::ASSEMBLING) {
            return 0;
        }
        Blocks::pages_for(self.stream_len().saturating_sub(self.first_part_len()))
    }

    pub(super) const fn names_len(&self) -> usize {
        self.exchange_len as usize + self.key_len as usize
    }

    /// Returns the size of the inline part in bytes; 0 if it is not used.
    pub(super) const fn inline_len(&self) -> usize {
        if self.flags.has(MessageFlags::INLINE) { INLINE_BYTES } else { 0 }
    }

    /// Returns the bytes before the content's chain: those of the inline part, or of the block with the names.
    pub(super) const fn first_part_len(&self) -> usize {
        if self.inline_len() > 0 { INLINE_BYTES } else { names_block_len(self.names_len()) }
    }

    /// Returns the bytes of all its blocks.
    #[inline]
    pub(super) const fn block_bytes(&self) -> u32 {
        let beyond = self.stream_len().saturating_sub(self.first_part_len());
        self.names_block_bytes() + Blocks::bytes_for(beyond) as u32
    }

    /// Returns the bytes of the block with its names; 0 if they are in the slot.
    pub(super) const fn names_block_bytes(&self) -> u32 {
        if self.inline_len() > 0 { 0 } else { names_block_len(self.names_len()) as u32 }
    }

    #[inline]
    pub(super) const fn stream_len(&self) -> usize {
        self.names_len() + self.properties_len as usize + self.body_len as usize
    }
}

/// A position in a message's stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cursor {
    /// 0 while inside the inline part.
    pub(super) block: BlockId,
    pub(super) at: u32,
}

/// Returns the bytes of a block for names that do not fit into the slot.
///
/// Names are contiguous, and names of 257 to 510 bytes are contiguous only in a page.
pub(super) const fn names_block_len(names_len: usize) -> usize {
    if names_len <= BLOCK_UNIT_BYTES { BLOCK_UNIT_BYTES } else { PAGE_BYTES }
}

/// Returns the part of a pool of `all` that is only for reading back.
pub(super) const fn read_back_part(all: usize) -> usize {
    all.div_ceil(READ_BACK_PART)
}

/// Returns the number of slots that only messages that are read back and dead letters may take.
pub(super) fn read_back_slots(all: usize) -> usize {
    read_back_part(all).max(2)
}

/// Returns the part of a pool that transactions may not use: half of the reserve, and the part for reading back.
pub(super) const fn non_transaction_part(reserve: usize, all: usize) -> usize {
    (reserve + read_back_part(all)).div_ceil(2)
}

/// Returns the use up to which every share is admitted. In a small pool the part for reading back exceeds the reserve.
pub(super) fn unchecked_max(all: usize) -> usize {
    all.saturating_sub((all / 16).max(read_back_slots(all)))
}

/// Returns names as text. They were validated when they were received.
pub(super) fn text(bytes: &[u8]) -> &str {
    core::str::from_utf8(bytes).unwrap_or_default()
}
