//! What a message is in the pool: its slot, and from which part of the pools it may come.

use core::num::NonZeroU32;

use bytemuck::{Pod, Zeroable};

use crate::mem::blocks::{BLOCK_UNIT_BYTES, BlockId, Blocks, PAGE_BYTES};

pub(super) const INLINE_BYTES: usize = 94;
/// One in so many slots and pages is for what is read back alone.
pub(super) const LAST_PART: usize = 64;
/// Bytes of one message slot.
pub const MESSAGE_SLOT_BYTES: usize = size_of::<Slot>();
const _: () = assert!(MESSAGE_SLOT_BYTES == 128, "two cache lines, whatever the target");

/// A message in the pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct MessageId(NonZeroU32);

impl MessageId {
    /// The id of slot `index` (0-based).
    ///
    /// # Panics
    /// Beyond 2^32 - 2, which no pool reaches.
    pub fn from_index(index: usize) -> Self {
        let above = u32::try_from(index + 1).ok().and_then(NonZeroU32::new);
        Self(above.expect("pools hold fewer than 2^32 messages"))
    }

    /// The message that a slot's link names; 0 is none.
    pub(super) fn from_link(link: u32) -> Option<Self> {
        NonZeroU32::new(link).map(Self)
    }

    /// What a link to it holds.
    pub(super) const fn to_link(self) -> u32 {
        self.0.get()
    }

    /// The slot of the id.
    pub const fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// What is known of a message without reading its properties.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
#[repr(transparent)]
pub struct MessageFlags(u16);

impl MessageFlags {
    /// No flag at all.
    pub const NONE: Self = Self(0);
    /// delivery_mode is 2.
    pub const PERSISTENT: Self = Self(1);
    /// The broker must look into the properties before it routes: there are headers, an expiration, a
    /// user id or a reply-to.
    pub const LOOK_INSIDE: Self = Self(2);
    /// Its expiration is 0: it goes to a waiting consumer at once, or has expired.
    pub const DUE_AT_ONCE: Self = Self(16);
    /// The store has it: its body can be read back.
    pub const STORED: Self = Self(32);
    /// It is in the place of another message, whose end the log does not have for good yet.
    pub const MOVING: Self = Self(1024);
    /// It has an expiration of its own.
    pub const EXPIRES: Self = Self(64);
    /// It is noted when it came to its queues.
    pub(super) const ARRIVED: Self = Self(128);
    /// Its headers have keys that nobody is told: BCC.
    pub const BLIND: Self = Self(256);
    /// It is none that was published: it says where the message before it goes, until that is committed.
    pub const ROUTE: Self = Self(2048);
    /// Names and the first of the content lie in the slot.
    pub(super) const INLINE: Self = Self(512);
    pub(super) const ASSEMBLING: Self = Self(4);
    pub(super) const MANDATORY: Self = Self(8);

    /// These flags and the others.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` is set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    pub(super) const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// From which part of the pools a message may come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Share {
    /// What every publisher may use.
    Ordinary,
    /// Half of the reserve as well: for a connection with an open transaction, which may be forgotten.
    Transaction,
    /// The reserve as well: for a connection that others wait for (it holds unacknowledged deliveries), and
    /// for the broker itself.
    Reserve,
    /// The last of it too, except for one slot: for a message that is read back, because nothing behind it in its queue
    /// is delivered before it.
    ReadBack,
    /// Everything: for a dead letter, which replaces the message that it is of. Without the last slot, memory full of
    /// expired messages that were read back would never be free again.
    DeadLetter,
}

/// Which pool had no room; each names the configuration key that sizes it.
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
    /// The configuration key to raise.
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
    /// Message slots.
    pub messages_max: usize,
    /// Bytes of blocks; rounded down to pages.
    pub body_bytes_max: usize,
    /// Bytes of blocks that contents may hold while they are incomplete.
    pub assembly_bytes_max: usize,
}

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Slot {
    pub(super) references: u32,
    pub(super) body_len: u32,
    pub(super) properties_len: u32,
    pub(super) first_block: BlockId,
    /// Stream bytes present; behind `write_block` and `write_at` while the body comes in. Of a whole message
    /// those two say when it came to its queues, if that matters.
    pub(super) filled: u32,
    pub(super) write_block: BlockId,
    /// The next slot on a list of whoever holds the message (an open transaction); from 1.
    pub(super) link: u32,
    /// The offset within the last page where the next octet of the body goes.
    pub(super) write_at: u16,
    pub(super) exchange_len: u8,
    pub(super) key_len: u8,
    pub(super) flags: MessageFlags,
    pub(super) inline: [u8; INLINE_BYTES],
}

/// A place in a message's stream, to read on from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cursor {
    /// 0 while inside the inline part.
    pub(super) block: BlockId,
    pub(super) at: u32,
}

impl Slot {
    /// Pages of the assembly share that it holds.
    #[inline]
    pub(super) const fn assembly_pages(&self) -> usize {
        if !self.flags.has(MessageFlags::ASSEMBLING) {
            return 0;
        }
        Blocks::pages_for(self.stream_len().saturating_sub(self.first_room()))
    }

    pub(super) const fn names_len(&self) -> usize {
        self.exchange_len as usize + self.key_len as usize
    }

    /// Bytes of the stream that lie in the slot.
    pub(super) const fn inline_len(&self) -> usize {
        if self.flags.has(MessageFlags::INLINE) { INLINE_BYTES } else { 0 }
    }

    /// Bytes before the chain of the content: those in the slot, or those of the block that the names took.
    pub(super) const fn first_room(&self) -> usize {
        if self.inline_len() > 0 { INLINE_BYTES } else { names_room(self.names_len()) }
    }

    /// Bytes of all its blocks.
    #[inline]
    pub(super) const fn block_bytes(&self) -> u32 {
        let beyond = self.stream_len().saturating_sub(self.first_room());
        self.names_block_bytes() + Blocks::bytes_for(beyond) as u32
    }

    /// Bytes of the block that its names took, if the slot did not hold them.
    pub(super) const fn names_block_bytes(&self) -> u32 {
        if self.inline_len() > 0 { 0 } else { names_room(self.names_len()) as u32 }
    }

    #[inline]
    pub(super) const fn stream_len(&self) -> usize {
        self.names_len() + self.properties_len as usize + self.body_len as usize
    }
}

/// Bytes of the block for names that the slot does not hold. They stay in one piece, and with 257 to 510
/// bytes only a page is one.
pub(super) const fn names_room(names_len: usize) -> usize {
    if names_len <= BLOCK_UNIT_BYTES { BLOCK_UNIT_BYTES } else { PAGE_BYTES }
}

/// What of a pool is for reading back alone.
pub(super) const fn last_part(all: usize) -> usize {
    all.div_ceil(LAST_PART)
}

/// Slots that only messages that are read back and dead letters may take.
pub(super) fn last_slots(all: usize) -> usize {
    last_part(all).max(2)
}

/// What transactions leave of a pool: half of the reserve, and what is for reading back alone.
pub(super) const fn half_reserve(reserve: usize, all: usize) -> usize {
    (reserve + last_part(all)).div_ceil(2)
}

/// Up to where nobody has to ask how much there is. In a small pool the last part is more than the reserve.
pub(super) fn easy(all: usize) -> usize {
    all.saturating_sub((all / 16).max(last_slots(all)))
}

/// Names were checked when they came off the wire.
pub(super) fn text(bytes: &[u8]) -> &str {
    core::str::from_utf8(bytes).unwrap_or_default()
}
