//! The pool of messages. A message has one slot, even if it is in several queues.
//!
//! ```text
//! slot (128 B) | counts and lengths | inline: first 94 bytes of the stream |
//!                                     then the chain of blocks, if there is more
//! stream       | exchange | routing key | properties | body |
//! ```
//!
//! Exchange and routing key are contiguous, so that routing can borrow them as one slice. If they do not fit
//! into the inline part, that is not used, and the first block of the chain contains both.
//!
//! A message is built in three steps:
//! 1. [`Messages::begin`], when the method frame arrived.
//! 2. [`Messages::reserve_content`], when the content header arrived: reserves all memory that the message
//!    needs, or none.
//! 3. [`Messages::append_body`] until [`Messages::finish`].
//!
//! Afterwards the bytes of the message do not change. [`Messages::retain`] and [`Messages::release`] count
//! the references to it.
//!
//! # Invariants
//! - Ordinary publishers never use the reserve. It is for connections whose progress frees memory, and for
//!   the broker itself, while ordinary publishers wait.
//! - Slots, blocks and queue entries share one memory. Each has a maximum of its own besides.
//! - A refusal returns the full pool. The publisher is admitted when this pool has capacity again.
//! - All incomplete contents together use at most the assembly share. A single content that is larger than
//!   the share is admitted while there is no other.

#[cfg(test)]
mod tests;

use core::num::NonZeroU32;

use bytemuck::{Pod, Zeroable};

use super::blocks::{BLOCK_UNIT_BYTES, BlockId, Blocks, PAGE_BYTES};
use super::memory::{Class, EXTENT_BYTES, Memory, POOL_EXTENTS};
use super::places::Places;
use super::pool::PlainPool;

/// The pools of message slots and blocks.
#[derive(Debug)]
pub struct Messages {
    slots: PlainPool<Slot>,
    /// Number of slots that there can be while nothing else uses memory.
    slots_max: usize,
    /// `messages_max` is larger, so that the memory limits the number of slots.
    are_slots_limited_by_memory: bool,
    /// Number of slots that ordinary publishers may not use.
    slots_reserve: usize,
    /// While fewer slots than this are in use, a message of any share gets a slot without further checks,
    /// unless a message has a claim or memory is short.
    slots_unchecked_max: usize,
    blocks: Blocks,
    /// Number of pages that there can be while nothing else uses memory.
    pages_max: usize,
    /// `body_bytes_max` is larger, so that the memory limits the number of pages.
    are_pages_limited_by_memory: bool,
    /// Number of pages that ordinary publishers may not use.
    pages_reserve: usize,
    /// Number of further pages that ordinary contents of several pages may not use; 0 if pages and slots share no memory. A
    /// content that waits for a full queue is complete. Without this reserve, a few large ones would take the memory of the
    /// slots of small messages.
    large_reserve: usize,
    /// While at most this many pages are in use, a message of any share gets pages without further checks, unless
    /// memory is short.
    pages_unchecked_max: usize,
    /// While more extents than this can be taken, memory is not short.
    extents_unchecked_min: usize,
    /// Half of the extents that there can be while nothing else uses memory.
    extents_half: usize,
    /// The extents that were available when a message was last refused because it found too few.
    refused_with: Option<usize>,
    /// Value of `frees` when idle extents were last returned because a message needed them.
    reclaimed_at: Option<u64>,
    /// Pages reserved to read one message back from the disk, in addition to the part that is always reserved
    /// for reading back.
    read_back_pages: usize,
    /// Pages of incomplete contents, and the assembly share, which limits them.
    assembly_pages: usize,
    assembly_pages_max: usize,
    /// An ordinary publisher was refused. All ordinary publishers then wait until the use has fallen to the
    /// low mark.
    is_held: bool,
    /// The claim of a message that waits for memory, if there is one.
    claim: Option<Claim>,
    /// Number of claims since the start.
    claims: u64,
    /// Number of messages that left the pool since the start.
    frees: u64,
    /// Number of bytes that they freed of the memory or the pool that limits the number of pages.
    bytes_freed: u64,
    /// Number of pages that left the assembly share, since the start.
    assembly_left: u64,
    /// Number of times capacity was freed although no message left the pool. Either a content became complete and
    /// left the assembly share, a claim with reserved pages ended, or fewer pages are reserved for reading back.
    releases: u64,
}

/// The exchange and the routing key of a message.
#[derive(Clone, Copy, Debug)]
pub struct MessageNames<'a> {
    /// The exchange.
    pub exchange: &'a str,
    /// The routing key.
    pub routing_key: &'a [u8],
}

/// How memory for the content of a message is reserved.
struct Reservation {
    /// The part of the memory that it may use.
    share: Share,
    /// The body arrives in parts, so that it counts for the share of incomplete bodies.
    assembles: bool,
}

impl Messages {
    /// Bytes of bookkeeping for each 4 KiB page of bodies.
    pub const PAGE_OVERHEAD_BYTES: usize = Blocks::PAGE_OVERHEAD_BYTES;

    /// Creates pools that only their maxima limit.
    pub fn new(limits: MessageLimits) -> Self {
        Self::in_memory(limits, &Memory::unlimited())
    }

    /// Creates pools that share `memory` with others.
    pub fn in_memory(limits: MessageLimits, memory: &Memory) -> Self {
        // Each pool always has some extents, so that messages that are read back, and dead letters, can begin.
        let accounts = [(); 2].map(|()| memory.account(Class::Messages, POOL_EXTENTS));
        let extents = accounts[0].class_max();
        let [of_slots, of_blocks] = accounts;
        let (slots_max, pages_max) = (
            limits.messages_max.min(of_slots.available().saturating_mul(SLOTS_PER_EXTENT)),
            limits.pages_max().min(of_blocks.available().saturating_mul(PAGES_PER_EXTENT)),
        );
        Self {
            slots: PlainPool::new(slots_max, of_slots),
            slots_max,
            are_slots_limited_by_memory: limits.messages_max > slots_max,
            slots_reserve: (slots_max / 16).max(read_back_slots(slots_max)),
            slots_unchecked_max: unchecked_max(slots_max),
            blocks: Blocks::with_pages(pages_max, of_blocks),
            pages_max,
            are_pages_limited_by_memory: limits.pages_max() > pages_max,
            pages_reserve: pages_max / 16,
            large_reserve: if extents < UNLIMITED_EXTENTS { pages_max / 16 } else { 0 },
            pages_unchecked_max: unchecked_max(pages_max),
            extents_unchecked_min: extents / 8,
            extents_half: extents / 2,
            refused_with: None,
            reclaimed_at: None,
            read_back_pages: 0,
            assembly_pages: 0,
            assembly_pages_max: limits.assembly_bytes_max.div_ceil(PAGE_BYTES),
            is_held: false,
            claim: None,
            claims: 0,
            frees: 0,
            bytes_freed: 0,
            assembly_left: 0,
            releases: 0,
        }
    }

    /// Checks whether the memory has the extents for a whole message of `stream_len` bytes: names, properties and body. A
    /// caller that would discard a message for which there is no memory checks this first. Otherwise the extent that the
    /// discarded message gives back would look like new memory, and the caller would try again without end.
    ///
    /// # Errors
    /// The memory has too few extents.
    pub fn check_extents(&mut self, stream_len: usize, share: Share) -> Result<(), PoolFull> {
        let pages = if stream_len <= INLINE_BYTES { 0 } else { Blocks::pages_for(stream_len) };
        let kept_bytes =
            self.slots_kept_from(share) * MESSAGE_SLOT_BYTES + self.pages_kept_from(share, None) * PAGE_BYTES;
        self.find_extents(|messages| {
            let (slots, blocks) = (messages.slots.places(), messages.blocks.places());
            let is_unit_free = pages == 1 && messages.blocks.has_free_units();
            let pages = if is_unit_free { 0 } else { pages.saturating_sub(blocks.free()) };
            let unit = slots.account().unit();
            let for_slot = (unit * usize::from(slots.free() == 0)).saturating_sub(slots.account().own());
            let for_pages = pages.div_ceil(PAGES_PER_EXTENT).next_multiple_of(unit);
            let for_pages = for_pages.saturating_sub(blocks.account().own());
            let needed = for_slot + for_pages;
            needed == 0 || needed + kept_bytes / EXTENT_BYTES <= slots.account().shared()
        })
    }

    /// Begins a message. The caller owns the first reference.
    ///
    /// # Errors
    /// No slot is free, or no page for names that do not fit into the slot.
    pub fn begin(&mut self, exchange: &str, routing_key: &[u8], share: Share) -> Result<MessageId, PoolFull> {
        debug_assert!(exchange.len() <= 255 && routing_key.len() <= 255, "short strings");
        let names_len = exchange.len() + routing_key.len();
        let mut first_block = 0;
        if names_len > INLINE_BYTES {
            self.admit(share, 1)?;
            first_block = self.blocks.allocate_chain(names_block_len(names_len)).ok_or(PoolFull::Bodies)?;
        } else {
            self.admit(share, 0)?;
        }
        // `admit` has checked that a slot is free. If the memory had one extent for both, the block has it.
        let Some(place) = self.slots.take() else {
            self.blocks.free_chain(first_block);
            return Err(PoolFull::Memory);
        };
        let flags = if first_block == 0 { MessageFlags::INLINE } else { MessageFlags::NONE };
        self.slots[place] = Slot {
            references: 1,
            body_len: 0,
            properties_len: 0,
            first_block,
            filled: 0,
            write_block: first_block,
            write_at: 0,
            link: 0,
            exchange_len: exchange.len() as u8,
            key_len: routing_key.len() as u8,
            flags,
            inline: [0; INLINE_BYTES],
        };
        let id = MessageId::from_index(place);
        self.append(id, exchange.as_bytes());
        self.append(id, routing_key);
        Ok(id)
    }

    /// Stores the properties and reserves all blocks for the body, or none.
    ///
    /// # Errors
    /// Too few blocks are free, or too many contents are incomplete already. The message is unchanged.
    pub fn reserve_content(
        &mut self,
        id: MessageId,
        properties: &[u8],
        flags: MessageFlags,
        body_len: u32,
        share: Share,
    ) -> Result<(), PoolFull> {
        // Messages that are read back do not count for the assembly share, because the disk delivers their
        // bodies without the delays of a network.
        let assembles = share != Share::ReadBack;
        self.reserve(id, properties, body_len, flags, Reservation { share, assembles })
    }

    /// Stores the properties and reserves all blocks for the body of a message that the broker itself creates, or
    /// none.
    ///
    /// The body is written at once, so the message does not count for the assembly share.
    ///
    /// # Errors
    /// Too few blocks are free. The message is unchanged.
    pub fn reserve_whole(
        &mut self,
        id: MessageId,
        properties: &[u8],
        flags: MessageFlags,
        body_len: u32,
        share: Share,
    ) -> Result<(), PoolFull> {
        self.reserve(id, properties, body_len, flags, Reservation { share, assembles: false })
    }

    // Inlined into both callers, because every published message passes here.
    #[inline(always)]
    fn reserve(
        &mut self,
        id: MessageId,
        properties: &[u8],
        body_len: u32,
        flags: MessageFlags,
        reservation: Reservation,
    ) -> Result<(), PoolFull> {
        let Reservation { share, assembles } = reservation;
        let slot = &self.slots[id.index()];
        let stream_len = slot.filled as usize + properties.len() + body_len as usize;
        let first_part_len = slot.first_part_len();
        let mut pages = 0;
        if stream_len > first_part_len {
            pages = Blocks::pages_for(stream_len - first_part_len);
            self.admit_content(share, pages, id)?;
            if assembles {
                self.admit_assembly(share, pages, id)?;
            }
            let chain = self.blocks.allocate_chain(stream_len - first_part_len).ok_or(PoolFull::Bodies)?;
            self.attach(id, chain);
            self.drop_claim(id);
        }
        let mut flags = flags;
        if assembles {
            self.assembly_pages += pages;
            flags = flags.with(MessageFlags::ASSEMBLING);
        }
        let slot = &mut self.slots[id.index()];
        slot.flags = slot.flags.with(flags.without(MessageFlags::INLINE));
        slot.properties_len = properties.len() as u32;
        slot.body_len = body_len;
        self.append(id, properties);
        Ok(())
    }

    /// Appends bytes of the body. All bytes together must not be more than the content header announced.
    pub fn append_body(&mut self, id: MessageId, bytes: &[u8]) {
        let slot = &self.slots[id.index()];
        assert!(
            slot.filled as usize + bytes.len() <= slot.stream_len(),
            "the connection appends no more than the content header announced"
        );
        self.append(id, bytes);
    }

    /// Returns the number of body bytes that have not been appended yet.
    #[inline]
    pub fn body_missing(&self, id: MessageId) -> u32 {
        let slot = &self.slots[id.index()];
        (slot.stream_len() - slot.filled as usize) as u32
    }

    /// Marks the body as complete: the message leaves the assembly share.
    pub fn finish(&mut self, id: MessageId) {
        assert!(self.body_missing(id) == 0, "only a complete message is finished");
        self.releases += u64::from(self.leave_assembly(id) > 0);
    }

    /// Adds a reference, for a queue or a delivery.
    pub fn retain(&mut self, id: MessageId) {
        self.slots[id.index()].references += 1;
    }

    /// Drops a reference. When the last one is dropped, slot and blocks are freed.
    pub fn release(&mut self, id: MessageId) {
        let slot = &mut self.slots[id.index()];
        assert!(slot.references > 0, "message released more often than held");
        slot.references -= 1;
        if slot.references == 0 {
            self.free(id);
        }
    }

    /// Returns whether there is more than one reference.
    pub fn is_shared(&self, id: MessageId) -> bool {
        self.slots[id.index()].references > 1
    }

    /// Returns the name of the exchange to which the message was published.
    #[inline]
    pub fn exchange(&self, id: MessageId) -> &str {
        let slot = &self.slots[id.index()];
        text(&self.names(id)[..slot.exchange_len as usize])
    }

    /// Returns the routing key with which the message was published. It need not be UTF-8.
    #[inline]
    pub fn routing_key(&self, id: MessageId) -> &[u8] {
        let slot = &self.slots[id.index()];
        let start = slot.exchange_len as usize;
        &self.names(id)[start..start + slot.key_len as usize]
    }

    /// Returns exchange and routing key as one slice.
    pub fn names(&self, id: MessageId) -> &[u8] {
        let slot = &self.slots[id.index()];
        let len = slot.names_len();
        match slot.inline_len() {
            0 => &self.blocks.bytes(slot.first_block)[..len],
            _ => &slot.inline[..len],
        }
    }

    /// Returns the length of [`Self::names`].
    #[inline]
    pub fn names_len(&self, id: MessageId) -> usize {
        self.slots[id.index()].names_len()
    }

    /// Returns the length of the exchange's name within [`Self::names`].
    pub fn exchange_len(&self, id: MessageId) -> usize {
        self.slots[id.index()].exchange_len as usize
    }

    /// Returns the flags of a message.
    pub fn flags(&self, id: MessageId) -> MessageFlags {
        self.slots[id.index()].flags.without(MessageFlags::INLINE)
    }

    /// Sets flags.
    pub fn add_flags(&mut self, id: MessageId, flags: MessageFlags) {
        let slot = &mut self.slots[id.index()];
        slot.flags = slot.flags.with(flags);
    }

    /// Clears flags.
    pub fn clear_flags(&mut self, id: MessageId, flags: MessageFlags) {
        let slot = &mut self.slots[id.index()];
        slot.flags = slot.flags.without(flags);
    }

    /// Returns the length of the body in bytes.
    pub fn body_len(&self, id: MessageId) -> u32 {
        self.slots[id.index()].body_len
    }

    /// Returns the length of the properties in bytes.
    pub fn properties_len(&self, id: MessageId) -> u32 {
        self.slots[id.index()].properties_len
    }

    /// Returns the bytes of pool memory that the message takes, including its slot.
    #[inline]
    pub fn footprint_bytes(&self, id: MessageId) -> u32 {
        let slot = &self.slots[id.index()];
        MESSAGE_SLOT_BYTES as u32 + slot.block_bytes()
    }

    /// Returns [`Self::footprint_bytes`], the length of the body in bytes, and whether the message is persistent.
    #[inline]
    pub fn size(&self, id: MessageId) -> (u32, u32, bool) {
        let slot = &self.slots[id.index()];
        let footprint = MESSAGE_SLOT_BYTES as u32 + slot.block_bytes();
        (footprint, slot.body_len, slot.flags.has(MessageFlags::PERSISTENT))
    }

    /// Frees a message that was begun or copied but is not used. Must be called before any other request for
    /// memory.
    ///
    /// The freed memory is not reported as new capacity, because it was free before. Otherwise a publisher
    /// that waits for capacity would retry again and again.
    pub fn discard(&mut self, id: MessageId) {
        assert!(!self.is_shared(id), "a discarded message has one reference");
        let bytes_freed = self.bytes_freed;
        self.free(id);
        self.frees -= 1;
        self.bytes_freed = bytes_freed;
    }

    /// Returns whether the message was published as mandatory. Only used while a transaction is open.
    pub fn is_mandatory(&self, id: MessageId) -> bool {
        self.flags(id).has(MessageFlags::MANDATORY)
    }

    /// Sets whether the message must be returned if it is routed to no queue.
    pub fn set_mandatory(&mut self, id: MessageId, mandatory: bool) {
        let flags = &mut self.slots[id.index()].flags;
        *flags = if mandatory {
            flags.with(MessageFlags::MANDATORY)
        } else {
            flags.without(MessageFlags::MANDATORY)
        };
    }

    /// Returns the next message on the list of the owner (an open transaction).
    pub fn link(&self, id: MessageId) -> Option<MessageId> {
        MessageId::from_link(self.slots[id.index()].link)
    }

    /// Sets the next message on the list of the owner. Allowed only while the owner has the only reference.
    pub fn set_link(&mut self, id: MessageId, next: Option<MessageId>) {
        self.slots[id.index()].link = next.map_or(0, MessageId::to_link);
    }

    /// Returns the mark of the message, by which the pending-write buffer finds it; 0 for none.
    ///
    /// Mark and link use the same memory, because a message is never on a list while it waits to be written.
    pub fn mark(&self, id: MessageId) -> u32 {
        self.slots[id.index()].link
    }

    /// Sets the mark.
    pub fn set_mark(&mut self, id: MessageId, mark: u32) {
        self.slots[id.index()].link = mark;
    }

    /// Returns the bytes of names, properties and body together.
    #[inline]
    pub fn stream_len(&self, id: MessageId) -> usize {
        self.slots[id.index()].stream_len()
    }

    /// Returns whether messages that are also in the log should be evicted from memory.
    ///
    /// This is so while more than half of the memory for ordinary publishers is used, while a large
    /// message waits for pages, or while messages find no extent, although there is free memory in touched ones.
    pub fn is_above_spill_mark(&self) -> bool {
        self.lacks_extents()
            || self.slots_free() < self.slots_max - (self.slots_max - self.slots_reserve) / 2
            || self.pages_free() < self.pages_max - self.pages_for_publishers() / 2
            || self.claims_pages()
    }

    /// Reserves pages to read back a message of `bytes` bytes, but leaves enough for a new message of
    /// `message_bytes_max` bytes.
    ///
    /// Messages that cannot be evicted may fill all other pages. Without these reserved pages the message on
    /// the disk, and all messages after it in its queue, could then never be delivered.
    pub fn keep_for_read_back(&mut self, bytes: u64, message_bytes_max: u64) {
        let pages = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX).div_ceil(PAGE_BYTES);
        let room = (self.pages_max - self.pages_reserve).saturating_sub(pages(message_bytes_max));
        let kept = pages(bytes).saturating_sub(read_back_part(self.pages_max)).min(room);
        self.releases += u64::from(kept < self.read_back_pages);
        self.pages_unchecked_max = unchecked_max(self.pages_max).saturating_sub(kept);
        self.read_back_pages = kept;
    }

    /// Returns the number of pages that ordinary publishers may use.
    const fn pages_for_publishers(&self) -> usize {
        (self.pages_max - self.pages_reserve).saturating_sub(self.read_back_pages)
    }

    /// Returns how many more bytes messages may use, those that ordinary publishers may not use included.
    fn bytes_free(&self) -> usize {
        let (slots, blocks) = (self.slots.places().account(), self.blocks.places().account());
        let extents = blocks.shared() + blocks.reserved() + slots.reserved();
        extents.saturating_mul(EXTENT_BYTES).saturating_sub(self.bytes_used())
    }

    const fn bytes_used(&self) -> usize {
        self.slots.used() * MESSAGE_SLOT_BYTES + self.blocks.pages_used() * PAGE_BYTES
    }

    /// Returns whether at least half of the memory, of the slots and of the pages is free, and no pages are reserved for a
    /// message that must be read back.
    #[inline]
    pub fn is_half_free(&self) -> bool {
        self.slots.places().account().available() >= self.extents_half
            && self.slots.used() <= self.slots_max / 2
            && self.blocks.pages_used() <= self.pages_max / 2
            && self.read_back_pages == 0
    }

    /// Returns whether the memory, and not a maximum of their own, limits the number of slots or pages.
    pub fn is_limited_by_memory(&self) -> bool {
        self.are_slots_limited_by_memory
            || self.are_pages_limited_by_memory
            || self.slots_free() < self.slots_max - self.slots.used()
            || self.pages_free() < self.pages_max - self.blocks.pages_used()
    }

    /// Returns the bytes of slots and pages that are used, and those that can be.
    pub fn memory_usage(&self) -> (usize, usize) {
        (self.bytes_used(), self.bytes_used() + self.bytes_free())
    }

    /// Returns how many more messages and pages fit into memory, the reserve included.
    ///
    /// Free places in touched extents of one pool are counted for the other, because idle extents are returned when another
    /// pool needs them.
    #[inline]
    fn free_places(&self) -> (usize, usize) {
        let (slots, pages) = (self.slots.used(), self.blocks.pages_used());
        let (of_slots, of_blocks) = (self.slots.places().account(), self.blocks.places().account());
        let shared = of_blocks.shared();
        let slots_fit = of_slots.reserved() + of_blocks.spare(pages.div_ceil(PAGES_PER_EXTENT)) + shared;
        let pages_fit = of_blocks.reserved() + of_slots.spare(slots.div_ceil(SLOTS_PER_EXTENT)) + shared;
        (
            slots_fit.saturating_mul(SLOTS_PER_EXTENT).min(self.slots_max) - slots,
            pages_fit.saturating_mul(PAGES_PER_EXTENT).min(self.pages_max) - pages,
        )
    }

    #[inline]
    fn slots_free(&self) -> usize {
        self.free_places().0
    }

    #[inline]
    fn pages_free(&self) -> usize {
        self.free_places().1
    }

    /// Returns the slots and the bytes of blocks that are free for ordinary publishers.
    #[inline]
    pub fn ordinary_free(&self) -> (usize, usize) {
        let (slots, pages) = self.free_places();
        let kept_pages = self.pages_reserve + self.read_back_pages;
        (slots.saturating_sub(self.slots_reserve), pages.saturating_sub(kept_pages) * PAGE_BYTES)
    }

    /// Returns the bytes of slots and blocks together that ordinary publishers can still use, and those of the reserve.
    pub fn memory_free(&self) -> (usize, usize) {
        let reserve = (self.slots_reserve * MESSAGE_SLOT_BYTES)
            .max((self.pages_reserve + self.read_back_pages) * PAGE_BYTES);
        let free = self.bytes_free();
        (free.saturating_sub(reserve), free.min(reserve))
    }

    /// Returns the slots and the bytes of blocks that ordinary publishers may use while nothing is in use.
    pub const fn ordinary_max(&self) -> (usize, usize) {
        (self.slots_max - self.slots_reserve, self.pages_for_publishers() * PAGE_BYTES)
    }

    /// Returns the slots and the bytes of blocks of the reserve that are free, beyond those for ordinary
    /// publishers.
    pub fn reserve_free(&self) -> (usize, usize) {
        let slots = self.slots_free().min(self.slots_reserve);
        let pages = self.pages_free().min(self.pages_reserve + self.read_back_pages);
        let slots = slots.saturating_sub(self.slots_kept_from(Share::Reserve));
        (slots, pages.saturating_sub(self.pages_kept_from(Share::Reserve, None)) * PAGE_BYTES)
    }

    /// Returns approximately how many unused bytes are resident in memory.
    pub const fn idle_bytes(&self) -> usize {
        self.slots.idle_bytes() + self.blocks.pages_idle() * PAGE_BYTES
    }

    /// Returns one bounded part of the idle memory to the system. Returns whether that was the last part.
    pub fn trim(&mut self) -> bool {
        let (slots, blocks) = (self.slots.trim(0), self.blocks.trim());
        slots && blocks
    }

    /// Returns all idle extents to the system, unless no message left since the last time.
    fn reclaim(&mut self) {
        if self.reclaimed_at.replace(self.frees) != Some(self.frees) {
            while !self.trim() {}
        }
    }

    /// Returns how many messages left the pool since the start.
    pub const fn frees(&self) -> u64 {
        self.frees
    }

    /// Returns a count that rises whenever capacity for a message becomes free.
    pub const fn capacity_freed(&self) -> u64 {
        self.frees + self.releases
    }

    /// Returns the number of messages in the pool.
    pub const fn messages_used(&self) -> usize {
        self.slots.used()
    }

    /// Returns the number of message slots.
    pub const fn messages_max(&self) -> usize {
        self.slots_max
    }

    /// Returns the bytes of blocks in use, in whole pages.
    pub const fn body_bytes_used(&self) -> usize {
        self.blocks.pages_used() * PAGE_BYTES
    }

    /// Returns the bytes of all blocks.
    pub const fn body_bytes_max(&self) -> usize {
        self.pages_max * PAGE_BYTES
    }

    /// Returns the assembly share in bytes: the maximum for incomplete contents.
    pub const fn assembly_bytes_max(&self) -> usize {
        self.assembly_pages_max * PAGE_BYTES
    }

    /// Returns the bytes of blocks of incomplete contents, in whole pages.
    pub const fn assembly_bytes_used(&self) -> usize {
        self.assembly_pages * PAGE_BYTES
    }

    /// Checks whether a content may take `pages` pages. If a large content is refused, it gets the claim,
    /// unless another message has it.
    fn admit_content(&mut self, share: Share, pages: usize, id: MessageId) -> Result<(), PoolFull> {
        let Err(full) = self.admit_pages(share, pages, Some(id)) else {
            let found = self.find_pages(share, pages, Some(id));
            if found.is_err() && share == Share::Ordinary {
                self.claim(id, pages);
            }
            return found;
        };
        if share == Share::Ordinary && self.claim(id, pages) {
            return Err(full);
        }
        Err(self.refuse(share, full))
    }

    /// Frees the slot and the blocks of a message.
    fn free(&mut self, id: MessageId) {
        self.leave_assembly(id);
        let chain = core::mem::take(&mut self.slots[id.index()].first_block);
        self.slots.give(id.index());
        self.frees += 1;
        self.drop_claim(id);
        // If the memory limits the number of pages, and not their maximum, a slot makes room for pages as well.
        if self.claim.is_some() && self.pages_free() < self.pages_max - self.blocks.pages_used() {
            self.bytes_freed += MESSAGE_SLOT_BYTES as u64;
        }
        if chain != 0 {
            let before = self.blocks.pages_used();
            self.blocks.free_chain(chain);
            self.bytes_freed += ((before - self.blocks.pages_used()) * PAGE_BYTES) as u64;
        }
    }

    /// Removes a message from the assembly share. Returns how many pages of the share become free.
    #[inline(always)]
    fn leave_assembly(&mut self, id: MessageId) -> usize {
        let slot = &mut self.slots[id.index()];
        if !slot.flags.has(MessageFlags::ASSEMBLING) {
            return 0;
        }
        let pages = slot.assembly_pages();
        slot.flags = slot.flags.without(MessageFlags::ASSEMBLING);
        self.assembly_pages -= pages;
        self.assembly_left += pages as u64;
        pages
    }

    /// Appends a chain to the blocks of a message.
    fn attach(&mut self, id: MessageId, chain: BlockId) {
        let slot = &mut self.slots[id.index()];
        if slot.first_block == 0 {
            slot.first_block = chain;
            slot.write_block = chain;
        } else {
            self.blocks.link(slot.first_block, chain);
        }
    }
}

impl Messages {
    /// Returns a cursor at the beginning of the properties.
    pub fn properties_cursor(&self, id: MessageId) -> Cursor {
        self.seek(id, self.names_len(id))
    }

    /// Returns a cursor in the body, `offset` bytes from its beginning.
    #[inline]
    pub fn body_cursor(&self, id: MessageId, offset: u32) -> Cursor {
        let slot = &self.slots[id.index()];
        let head = slot.names_len() + slot.properties_len as usize;
        self.seek(id, head + offset as usize)
    }

    /// Copies the next `out.len()` bytes and advances the cursor. There must be so many bytes.
    pub fn read(&self, id: MessageId, cursor: &mut Cursor, out: &mut [u8]) {
        let mut done = 0;
        while done < out.len() {
            let rest = self.bytes_at(id, cursor);
            let take = rest.len().min(out.len() - done);
            assert!(take > 0, "read beyond the end of the message");
            out[done..done + take].copy_from_slice(&rest[..take]);
            cursor.at += take as u32;
            done += take;
        }
    }

    /// Returns when a complete message reached its queues, in milliseconds of broker time; 0 if this was not
    /// set.
    pub fn arrived_ms(&self, id: MessageId) -> u64 {
        let slot = &self.slots[id.index()];
        match slot.flags.has(MessageFlags::ARRIVED) {
            true => u64::from(slot.write_at) << 32 | u64::from(slot.write_block),
            false => 0,
        }
    }

    /// Sets when a complete message reached its queues. The value is stored in the fields that were used to
    /// write the message's bytes.
    pub fn set_arrived_ms(&mut self, id: MessageId, time_ms: u64) {
        assert!(self.body_missing(id) == 0, "only a complete message reaches a queue");
        let slot = &mut self.slots[id.index()];
        (slot.write_at, slot.write_block) = ((time_ms >> 32) as u16, time_ms as u32);
        slot.flags = slot.flags.with(MessageFlags::ARRIVED);
    }

    /// Returns the properties as one slice: borrowed if they are contiguous, otherwise copied into `scratch`.
    ///
    /// # Panics
    /// Panics if `scratch` is shorter than the properties. The longest frame always suffices.
    pub fn properties<'a>(&'a self, id: MessageId, scratch: &'a mut [u8]) -> &'a [u8] {
        let len = self.properties_len(id) as usize;
        let mut cursor = self.properties_cursor(id);
        let here = self.bytes_at(id, &mut cursor);
        if here.len() >= len {
            return &here[..len];
        }
        self.read(id, &mut cursor, &mut scratch[..len]);
        &scratch[..len]
    }

    /// Appends to the stream, within the reserved memory.
    fn append(&mut self, id: MessageId, mut bytes: &[u8]) {
        let slot = &mut self.slots[id.index()];
        let filled = slot.filled as usize;
        slot.filled += bytes.len() as u32;
        let inline_len = slot.inline_len();
        if filled < inline_len {
            let take = bytes.len().min(inline_len - filled);
            slot.inline[filled..filled + take].copy_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
        }
        while !bytes.is_empty() {
            let block = self.blocks.bytes_mut(slot.write_block);
            let at = slot.write_at as usize;
            let take = bytes.len().min(block.len() - at);
            block[at..at + take].copy_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            slot.write_at += take as u16;
            // Moves to the next block only if bytes are left, because the last block has no next one.
            if take == 0 || (at + take == block.len() && !bytes.is_empty()) {
                slot.write_block = self.blocks.next(slot.write_block);
                slot.write_at = 0;
            }
        }
    }

    /// Returns a copy with other properties. The caller owns the only reference to it. The original is
    /// unchanged.
    ///
    /// # Errors
    /// The pool has no capacity for the copy.
    pub fn copy_with_properties(
        &mut self,
        id: MessageId,
        properties: &[u8],
        flags: MessageFlags,
    ) -> Result<MessageId, PoolFull> {
        // Exchange and routing key are short strings of at most 255 bytes each.
        let names: heapless::Vec<u8, 510> = heapless::Vec::from_slice(self.names(id)).unwrap_or_default();
        let (exchange, routing_key) = names.split_at(self.exchange_len(id).min(names.len()));
        let names = MessageNames { exchange: text(exchange), routing_key };
        self.copy_as(id, names, properties, flags, Share::Reserve)
    }

    /// Returns a copy as if it were published to another exchange with another key and other properties.
    ///
    /// # Errors
    /// The pool has no capacity for the copy.
    pub fn copy_as(
        &mut self,
        id: MessageId,
        names: MessageNames<'_>,
        properties: &[u8],
        flags: MessageFlags,
        share: Share,
    ) -> Result<MessageId, PoolFull> {
        let MessageNames { exchange, routing_key } = names;
        let body_len = self.body_len(id);
        let names_len = exchange.len() + routing_key.len();
        self.check_extents(names_len + properties.len() + body_len as usize, share)?;
        let copy = self.begin(exchange, routing_key, share)?;
        if let Err(full) = self.reserve_whole(copy, properties, flags, body_len, share) {
            self.discard(copy);
            return Err(full);
        }
        self.copy_body(id, copy);
        Ok(copy)
    }

    /// Copies the body of one message to another, which has reserved memory for it.
    fn copy_body(&mut self, from: MessageId, to: MessageId) {
        let mut cursor = self.body_cursor(from, 0);
        let mut left = self.body_len(from) as usize;
        let mut piece = [0; 512];
        while left > 0 {
            let take = left.min(piece.len());
            self.read(from, &mut cursor, &mut piece[..take]);
            self.append(to, &piece[..take]);
            left -= take;
        }
    }

    /// Returns a cursor at this offset of the stream.
    fn seek(&self, id: MessageId, offset: usize) -> Cursor {
        let slot = &self.slots[id.index()];
        let inline_len = slot.inline_len();
        if offset < inline_len {
            return Cursor { block: 0, at: offset as u32 };
        }
        let mut at = offset - inline_len;
        let mut block = slot.first_block;
        while block != 0 && at >= self.blocks.bytes(block).len() {
            at -= self.blocks.bytes(block).len();
            block = self.blocks.next(block);
        }
        // At the end of the stream there is no block. No byte is read at such a cursor.
        Cursor { block, at: if block == 0 { inline_len as u32 } else { at as u32 } }
    }

    /// Returns the bytes from the cursor to the end of its block. If there are none, moves the cursor to the
    /// next block first.
    fn bytes_at(&self, id: MessageId, cursor: &mut Cursor) -> &[u8] {
        let slot = &self.slots[id.index()];
        if cursor.block == 0 {
            let rest = &slot.inline[(cursor.at as usize).min(INLINE_BYTES)..];
            if !rest.is_empty() || slot.first_block == 0 {
                return rest;
            }
            *cursor = Cursor { block: slot.first_block, at: 0 };
        }
        let bytes = self.blocks.bytes(cursor.block);
        if (cursor.at as usize) < bytes.len() {
            return &bytes[cursor.at as usize..];
        }
        match self.blocks.next(cursor.block) {
            0 => &[],
            next => {
                *cursor = Cursor { block: next, at: 0 };
                self.blocks.bytes(next)
            }
        }
    }
}

/// Bytes of the stream that fit into the slot.
const INLINE_BYTES: usize = 94;
/// This fraction (1/64) of the slots and pages is only for messages that are read back from the disk.
const READ_BACK_PART: usize = 64;
/// Bytes of one message slot.
pub const MESSAGE_SLOT_BYTES: usize = size_of::<Slot>();
const _: () = assert!(MESSAGE_SLOT_BYTES == 128, "two cache lines, whatever the target");
const SLOTS_PER_EXTENT: usize = EXTENT_BYTES / MESSAGE_SLOT_BYTES;
const PAGES_PER_EXTENT: usize = EXTENT_BYTES / PAGE_BYTES;

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
    fn from_link(link: u32) -> Option<Self> {
        NonZeroU32::new(link).map(Self)
    }

    /// Returns the value of a link to this message.
    const fn to_link(self) -> u32 {
        self.0.get()
    }

    /// Returns the index of the message's slot.
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
    /// The expiration is 0: the message expires unless it can be delivered to a consumer at once.
    pub const DUE_AT_ONCE: Self = Self(16);
    /// The message is in the log, from which its body can be read back.
    pub const STORED: Self = Self(32);
    /// The message must not be delivered yet, because its batch is not durable; see
    /// `PendingWrites::end_group`.
    pub const WITHHELD: Self = Self(1024);
    /// The message has the property expiration.
    pub const EXPIRES: Self = Self(64);
    /// The time at which the message reached its queues is set.
    const ARRIVED: Self = Self(128);
    /// The message has the header BCC, which is removed before delivery.
    pub const HAS_BCC: Self = Self(256);
    /// Not a published message, but a record on the list of an open transaction: the queues to which the
    /// message before it is routed.
    pub const ROUTE: Self = Self(2048);
    /// The message was published with QoS 2 of MQTT.
    pub const EXACTLY_ONCE: Self = Self(4096);
    /// An operator has browsed the message, and its slot has an entry in the broker's `MessageKeys`.
    pub const BROWSED: Self = Self(8192);
    /// Names and the first bytes of the content are in the slot.
    const INLINE: Self = Self(512);
    /// The content is incomplete, and its pages are counted in the assembly share.
    const ASSEMBLING: Self = Self(4);
    /// The message must be returned if it is routed to no queue.
    const MANDATORY: Self = Self(8);

    /// Returns the union of both flag sets.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns whether all flags of `other` are set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// The part of the pools that a message may use. Each variant may use everything that the previous ones may.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Share {
    /// The part for ordinary publishers.
    Ordinary,
    /// Also half of the reserve: for connections with an open transaction, which may be rolled back.
    Transaction,
    /// The whole reserve as well: for connections with unacknowledged deliveries, and for the broker itself.
    Reserve,
    /// Also the part for reading back, except for one slot: for messages that are read back, because the
    /// messages after them in their queue wait for them.
    ReadBack,
    /// Everything: for a dead letter that replaces its original message, and can be evicted or takes no more memory. It needs
    /// the last slot when memory is full of expired messages that were read back. Without it none of them could leave memory.
    DeadLetter,
}

/// The memory or the pool that is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PoolFull {
    /// All memory that messages can have.
    Memory,
    /// Messages in memory.
    Messages,
    /// Their bodies and properties.
    Bodies,
    /// Messages whose content is still being received.
    Assembly,
}

impl PoolFull {
    /// Returns what there is no memory for, as words for a text.
    pub const fn what(self) -> &'static str {
        match self {
            Self::Memory | Self::Messages => "another message",
            Self::Bodies => "the body of another message",
            Self::Assembly => "another message that is still being received",
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

impl MessageLimits {
    const fn pages_max(&self) -> usize {
        self.body_bytes_max / PAGE_BYTES
    }

    /// Returns the bytes of all extents of both pools at their maximum.
    pub fn bytes(&self) -> usize {
        let (slots, pages) = (self.messages_max * MESSAGE_SLOT_BYTES, self.pages_max() * PAGE_BYTES);
        slots.next_multiple_of(EXTENT_BYTES) + pages.next_multiple_of(EXTENT_BYTES)
    }
}

/// The slot of a message.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Slot {
    references: u32,
    body_len: u32,
    properties_len: u32,
    /// First block of its chain; 0 for none.
    first_block: BlockId,
    /// Number of bytes of the stream that have been written. While the body arrives, the next byte is written
    /// at `write_at` in `write_block`. In a complete message these two fields have the time at which it
    /// reached its queues.
    filled: u32,
    write_block: BlockId,
    /// The next slot on the list of the owner (an open transaction), counted from 1; or the mark for the
    /// pending-write buffer.
    link: u32,
    /// The offset in `write_block` of the next byte of the body.
    write_at: u16,
    exchange_len: u8,
    key_len: u8,
    flags: MessageFlags,
    inline: [u8; INLINE_BYTES],
}

impl Slot {
    /// Returns the number of pages that the message uses of the assembly share.
    #[inline]
    const fn assembly_pages(&self) -> usize {
        if !self.flags.has(MessageFlags::ASSEMBLING) {
            return 0;
        }
        Blocks::pages_for(self.stream_len().saturating_sub(self.first_part_len()))
    }

    const fn names_len(&self) -> usize {
        self.exchange_len as usize + self.key_len as usize
    }

    /// Returns the size of the inline part in bytes; 0 if it is not used.
    const fn inline_len(&self) -> usize {
        if self.flags.has(MessageFlags::INLINE) { INLINE_BYTES } else { 0 }
    }

    /// Returns the bytes before the content's chain: those of the inline part, or of the block with the names.
    const fn first_part_len(&self) -> usize {
        if self.inline_len() > 0 { INLINE_BYTES } else { names_block_len(self.names_len()) }
    }

    /// Returns the bytes of all its blocks.
    #[inline]
    const fn block_bytes(&self) -> u32 {
        let beyond = self.stream_len().saturating_sub(self.first_part_len());
        self.names_block_bytes() + Blocks::bytes_for(beyond) as u32
    }

    /// Returns the bytes of the block with its names; 0 if they are in the slot.
    const fn names_block_bytes(&self) -> u32 {
        if self.inline_len() > 0 { 0 } else { names_block_len(self.names_len()) as u32 }
    }

    #[inline]
    const fn stream_len(&self) -> usize {
        self.names_len() + self.properties_len as usize + self.body_len as usize
    }
}

/// A position in a message's stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cursor {
    /// The block; 0 in the inline part.
    block: BlockId,
    at: u32,
}

/// Returns the bytes of a block for names that do not fit into the slot.
///
/// Names are contiguous, and names of 257 to 510 bytes are contiguous only in a page.
const fn names_block_len(names_len: usize) -> usize {
    if names_len <= BLOCK_UNIT_BYTES { BLOCK_UNIT_BYTES } else { PAGE_BYTES }
}

/// Returns the part of a pool of `all` that is only for reading back.
const fn read_back_part(all: usize) -> usize {
    all.div_ceil(READ_BACK_PART)
}

/// Returns the number of slots that are reserved for messages that are read back and for dead letters.
fn read_back_slots(all: usize) -> usize {
    read_back_part(all).max(2)
}

/// Returns the part of a pool that transactions may not use: half of the reserve, and the part for reading back.
const fn non_transaction_part(reserve: usize, all: usize) -> usize {
    (reserve + read_back_part(all)).div_ceil(2)
}

/// Returns whether `count` more places can be used so that extents for `kept_bytes` bytes stay available.
fn can_take(places: &Places, count: usize, kept_bytes: usize) -> bool {
    let account = places.account();
    let kept = kept_bytes / EXTENT_BYTES;
    count <= places.free()
        || account.available() > kept && count <= places.obtainable_with(account.available() - kept)
}

/// Returns the use of a pool up to which messages of all shares are admitted.
fn unchecked_max(all: usize) -> usize {
    all.saturating_sub((all / 16).max(read_back_slots(all)))
}

/// Returns names as text. They were validated when they were received.
fn text(bytes: &[u8]) -> &str {
    core::str::from_utf8(bytes).unwrap_or_default()
}

/// A memory of at least this many extents is unlimited: pages and slots have only their own maxima.
const UNLIMITED_EXTENTS: usize = usize::MAX / 8;

/// Messages of at most this many pages (64 KiB) are never large, unless pages and slots share their memory.
const LARGE_PAGES_MIN: usize = 16;

/// The claim of a message that waits for memory: a large one for pages, any message for the assembly share.
///
/// A message that needs many pages may have to wait for a long time. If small messages that come later always
/// took the free pages, it would wait without end. If they all had to wait, the delay would affect everyone.
/// So small messages may use the pages that were free when the large message began to wait. Pages freed later
/// are reserved for the large message, up to the number that it needs.
///
/// # Invariants
/// - The message is admitted at the latest when all pages used at the beginning of its wait have been freed
///   once. For the assembly share the server ensures that they are freed.
/// - At most one message has a claim, and the claim ends with the message.
#[derive(Clone, Copy, Debug)]
struct Claim {
    id: MessageId,
    /// The number of earlier claims.
    number: u64,
    /// Number of pages that the message needs.
    pages: usize,
    /// The value of `bytes_freed` when the message began to wait for pages; `None` if it does not.
    bytes_since: Option<u64>,
    /// The value of `assembly_left` when the message began to wait for the assembly share; `None` if it does
    /// not.
    assembly_since: Option<u64>,
}

impl Claim {
    /// Returns how many of the pages of the assembly share that others left since then are reserved for the message.
    fn claimed_assembly_pages(&self, left: u64) -> usize {
        self.assembly_since.map_or(0, |since| self.pages.min((left - since) as usize))
    }

    /// Returns how many of the bytes freed since then are reserved for the message, in pages.
    fn claimed_pages(&self, bytes_freed: u64) -> usize {
        self.bytes_since.map_or(0, |since| self.pages.min((bytes_freed - since) as usize / PAGE_BYTES))
    }
}

impl Messages {
    /// Returns whether ordinary publishers have to wait.
    pub const fn is_held(&self) -> bool {
        self.is_held
    }

    /// Ends the wait of ordinary publishers if the use has fallen to the low mark. Returns whether they may
    /// publish.
    ///
    /// The low mark is 255/256 of their part of the pools, so that the state does not change with every message. It must
    /// not be much lower: N queues that nobody reads hold 2N/(2N + 1) of the pools, and publishers to other queues
    /// would wait for ever.
    pub fn lift_hold(&mut self) -> bool {
        let below_mark = |part: usize| (part / 256).max(1).min(part);
        let slots = self.slots_max - self.slots_reserve;
        let kept_pages = self.pages_kept_from(Share::Ordinary, None);
        let pages = self.pages_max.saturating_sub(kept_pages);
        self.is_held &= self.slots_free() < self.slots_reserve + below_mark(slots)
            || self.pages_free() < kept_pages + below_mark(pages);
        !self.is_held
    }

    /// Returns whether there is memory for a message of `bytes` bytes from an ordinary publisher.
    pub fn has_ordinary_room(&self, bytes: usize) -> bool {
        let pages = Blocks::pages_for(bytes);
        !self.is_held
            && self.slots_free() > self.slots_reserve
            && self.pages_free()
                >= pages
                    + self.read_back_pages
                    + self.pages_reserve
                    + self.large_kept_from(Share::Ordinary, pages)
    }

    /// Checks whether a message may begin. Its names need `pages` pages (0 or 1).
    #[inline]
    fn admit(&mut self, share: Share, pages: usize) -> Result<(), PoolFull> {
        let is_unchecked = self.claim.is_none()
            && self.slots.used() < self.slots_unchecked_max
            && self.blocks.pages_used() <= self.pages_unchecked_max
            && self.slots.places().account().available() > self.extents_unchecked_min
            && !self.is_held;
        if is_unchecked { Ok(()) } else { self.admit_by_share(share, pages) }
    }

    /// Checks whether a message of this share may begin.
    #[inline(never)]
    fn admit_by_share(&mut self, share: Share, pages: usize) -> Result<(), PoolFull> {
        let kept = self.slots_kept_from(share);
        if self.slots_free() <= kept {
            let is_pool_full =
                !self.are_slots_limited_by_memory && self.slots_max - self.slots.used() <= kept;
            let full = if is_pool_full { PoolFull::Messages } else { PoolFull::Memory };
            return Err(self.refuse(share, full));
        }
        if share == Share::Ordinary && self.is_held {
            return Err(self.fullest_pool());
        }
        let admitted = self.admit_pages(share, pages, None);
        admitted.map_err(|full| self.refuse(share, full))?;
        let kept_bytes = kept * MESSAGE_SLOT_BYTES;
        self.find_extents(|messages| can_take(messages.slots.places(), 1, kept_bytes))?;
        self.find_pages(share, pages, None)
    }

    /// Checks with `has_extents` whether the pools have the extents for a message, and returns idle ones before it gives up.
    ///
    /// A refusal does not make other publishers wait: a message that needs no extent, because it fits into free places,
    /// may still be admitted.
    ///
    /// # Errors
    /// The memory has too few extents.
    #[inline]
    fn find_extents(&mut self, has_extents: impl Fn(&Self) -> bool) -> Result<(), PoolFull> {
        if has_extents(self) {
            return Ok(());
        }
        self.reclaim();
        if has_extents(self) {
            return Ok(());
        }
        let account = self.slots.places().account();
        account.note_refusal();
        self.refused_with = Some(account.available());
        Err(PoolFull::Memory)
    }

    /// Returns whether a message found too few extents, and there are no more now.
    fn lacks_extents(&self) -> bool {
        let available = self.slots.places().account().available();
        self.refused_with.is_some_and(|had| available <= had) && available <= self.extents_unchecked_min
    }

    /// Returns the pool that has less free for ordinary publishers, relative to its size; the memory, if that is why.
    /// Ordinary publishers wait for this pool.
    #[cold]
    fn fullest_pool(&self) -> PoolFull {
        if self.is_limited_by_memory() {
            return PoolFull::Memory;
        }
        let (slots, pages) = (self.slots.used() * self.pages_max, self.blocks.pages_used() * self.slots_max);
        if slots >= pages { PoolFull::Messages } else { PoolFull::Bodies }
    }

    /// Returns the number of slots that messages of this share may not use.
    fn slots_kept_from(&self, share: Share) -> usize {
        match share {
            Share::DeadLetter => 0,
            Share::ReadBack => 1,
            Share::Ordinary => self.slots_reserve,
            Share::Transaction => non_transaction_part(self.slots_reserve, self.slots_max),
            Share::Reserve => read_back_slots(self.slots_max).min(self.slots_max),
        }
    }

    /// Returns the number of pages that `requester`, of this share, may not use.
    #[inline]
    fn pages_kept_from(&self, share: Share, requester: Option<MessageId>) -> usize {
        self.read_back_pages * usize::from(!matches!(share, Share::ReadBack | Share::DeadLetter))
            + match share {
                Share::ReadBack | Share::DeadLetter => 0,
                Share::Ordinary => self.pages_reserve + self.claimed_pages(requester),
                // A very small memory has no reserve. These shares must not get less than ordinary publishers there.
                Share::Transaction => {
                    non_transaction_part(self.pages_reserve, self.pages_max).min(self.pages_reserve)
                }
                Share::Reserve => read_back_part(self.pages_max).min(self.pages_reserve),
            }
    }

    /// Returns the number of further pages that a content of `pages` pages may not use.
    #[inline]
    fn large_kept_from(&self, share: Share, pages: usize) -> usize {
        if share == Share::Ordinary && pages > 1 { self.large_reserve } else { 0 }
    }

    /// Checks whether `pages` more pages may be taken. Creates no claim, and does not make publishers wait.
    #[inline]
    fn admit_pages(&self, share: Share, pages: usize, requester: Option<MessageId>) -> Result<(), PoolFull> {
        let kept = self.pages_kept_from(share, requester) + self.large_kept_from(share, pages);
        // The end of a chain may fit into free units of a split page, so counting whole pages may refuse too
        // much. Content smaller than a page is therefore not refused here while a split page may have free
        // units.
        let free = self.pages_free();
        let is_full = pages > 1 && pages + kept > free || kept > free;
        if is_full {
            let is_pool_full =
                !self.are_pages_limited_by_memory && self.pages_max - self.blocks.pages_used() <= free;
            return Err(if is_pool_full { PoolFull::Bodies } else { PoolFull::Memory });
        }
        Ok(())
    }

    /// Checks whether there are extents for `pages` pages, after [`Self::admit_pages`].
    #[inline]
    fn find_pages(
        &mut self,
        share: Share,
        pages: usize,
        requester: Option<MessageId>,
    ) -> Result<(), PoolFull> {
        if pages == 0 || pages == 1 && self.blocks.has_free_units() {
            return Ok(());
        }
        let kept = self.pages_kept_from(share, requester) + self.large_kept_from(share, pages);
        let kept_bytes = kept * PAGE_BYTES;
        self.find_extents(|messages| can_take(messages.blocks.places(), pages, kept_bytes))
    }

    /// Makes all ordinary publishers wait if one was refused. Not called for large messages, which get a
    /// claim instead.
    fn refuse(&mut self, share: Share, full: PoolFull) -> PoolFull {
        self.is_held |= share == Share::Ordinary;
        full
    }

    /// Returns the number of pages that `requester` may not take because another message has claimed them.
    fn claimed_pages(&self, requester: Option<MessageId>) -> usize {
        let claim = self.claim.filter(|claim| Some(claim.id) != requester);
        claim.map_or(0, |claim| claim.claimed_pages(self.bytes_freed))
    }

    /// Checks whether the body of a content of `pages` pages may begin to arrive.
    ///
    /// If an ordinary content is refused, it gets the claim, unless another message has it. Content larger
    /// than the whole assembly share is admitted while no other content is incomplete.
    fn admit_assembly(&mut self, share: Share, pages: usize, requester: MessageId) -> Result<(), PoolFull> {
        let is_ordinary = share == Share::Ordinary;
        let claim = self.claim.filter(|claim| is_ordinary && claim.id != requester);
        let reserved = claim.map_or(0, |claim| claim.claimed_assembly_pages(self.assembly_left));
        let taken = self.assembly_pages + reserved;
        if taken == 0 || taken + pages <= self.assembly_pages_max {
            return Ok(());
        }
        let left = self.assembly_left;
        if is_ordinary && let Some(claim) = self.claim_of(requester, pages) {
            claim.assembly_since.get_or_insert(left);
        }
        Err(PoolFull::Assembly)
    }

    /// Returns whether a large message waits for pages.
    fn claims_pages(&self) -> bool {
        self.claim.is_some_and(|claim| claim.bytes_since.is_some())
    }

    /// Returns the number of the claim of a content that waits for the assembly share; `None` if none waits.
    pub fn awaits_assembly(&self) -> Option<u64> {
        self.claim.filter(|claim| claim.assembly_since.is_some()).map(|claim| claim.number)
    }

    /// Returns whether the message with the claim would be admitted now.
    pub fn claim_fits(&self) -> bool {
        let fits = |claim: Claim| {
            let kept = self.read_back_pages + self.pages_reserve + self.large_reserve;
            claim.pages + kept <= self.pages_free()
        };
        self.claim.is_some_and(|claim| claim.bytes_since.is_some() && fits(claim))
    }

    /// Claims pages for a waiting message if it is large and no other message has a claim. Returns whether
    /// the message is large.
    fn claim(&mut self, id: MessageId, pages: usize) -> bool {
        // A refusal makes all ordinary publishers wait unless the message is large. Small messages may use the reserve that
        // this one leaves, so it counts as large.
        let leaves_more = self.large_kept_from(Share::Ordinary, pages) > 0;
        let is_large = leaves_more || pages > (self.pages_max / READ_BACK_PART).max(LARGE_PAGES_MIN);
        // If definitions have grown, the message may not fit even with all others gone. It waits, but it must not keep what
        // others free.
        let account = self.blocks.places().account();
        let kept = self.pages_reserve + self.large_reserve;
        let may_fit = pages + kept <= account.class_max().saturating_mul(PAGES_PER_EXTENT);
        let freed = self.bytes_freed;
        if is_large
            && may_fit
            && let Some(claim) = self.claim_of(id, pages)
        {
            claim.bytes_since.get_or_insert(freed);
        }
        is_large
    }

    /// Returns the claim of this message; `None` if another message has the claim. Creates it if there is
    /// none.
    fn claim_of(&mut self, id: MessageId, pages: usize) -> Option<&mut Claim> {
        if self.claim.is_none() {
            let number = self.claims;
            self.claims += 1;
            self.claim = Some(Claim { id, number, pages, bytes_since: None, assembly_since: None });
        }
        self.claim.as_mut().filter(|claim| claim.id == id)
    }

    /// Ends the claim of a message that got its pages or was freed. The reserved pages can be used by others
    /// again.
    fn drop_claim(&mut self, id: MessageId) {
        let Some(claim) = self.claim.filter(|claim| claim.id == id) else { return };
        self.claim = None;
        let pages = claim.claimed_pages(self.bytes_freed);
        let assembly = claim.claimed_assembly_pages(self.assembly_left);
        self.releases += u64::from(pages + assembly > 0);
    }
}
