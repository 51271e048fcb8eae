//! Messages: one slot each, however many queues hold them.
//!
//! ```text
//! slot (128 B) | counts and lengths | inline: first 94 bytes of the stream |
//!                                     then the chain of blocks, if there is more
//! stream       | exchange | routing key | properties | body |
//! ```
//!
//! Exchange and routing key always lie in one piece, so routing borrows them: when they are longer than the
//! inline part, the inline part stays empty and the chain begins with a whole page.
//!
//! A message lives in three steps: [`Messages::begin`] (the method arrived), [`Messages::reserve_content`]
//! (the header arrived: everything it will ever need is reserved now, or nothing), [`Messages::append_body`]
//! until [`Messages::finish`]. From then on it does not change; [`Messages::retain`] and
//! [`Messages::release`] count its holders.
//!
//! Always true: ordinary publishers never take the reserve, so what drains the broker (deliveries,
//! acknowledgements of connections that also publish) finds memory when everybody else waits; half-sent
//! contents never hold more than the assembly share.

use super::blocks::{BlockId, Blocks, PAGE_BYTES, TRIM_PAGES};
use super::plain::Plain;

mod admission;
mod claim;
mod slot;
mod stream;

use claim::Claim;
pub use slot::{Cursor, MESSAGE_SLOT_BYTES, MessageFlags, MessageId, MessageLimits, PoolFull, Share};
use slot::{INLINE_BYTES, Slot, easy, last_part, last_slots, names_room, text};

/// The pools of slots and blocks.
#[derive(Debug)]
pub struct Messages {
    slots: Plain<Slot>,
    slots_reserve: usize,
    /// With fewer in use every share may have one, unless somebody waits.
    slots_easy: usize,
    blocks: Blocks,
    pages_max: usize,
    pages_reserve: usize,
    /// The same for pages, with no more in use.
    pages_easy: usize,
    /// Pages kept to read a message back, beyond the last part.
    pages_kept: usize,
    assembly_pages: usize,
    assembly_pages_max: usize,
    /// An ordinary publisher was refused, and all of them wait until use has fallen to the low mark.
    is_held: bool,
    /// Of a message that waits.
    claim: Option<Claim>,
    /// How many there have been.
    claims: u64,
    frees: u64,
    pages_freed: u64,
    /// Pages that left the assembly share.
    assembly_left: u64,
    /// Number of times that there was room for others although no message left: a content became whole and left the
    /// assembly share, a claim ended for which pages were set aside, or fewer pages are kept to read a message back.
    releases: u64,
}

impl Messages {
    /// Bytes of bookkeeping that each 4 KiB page of bodies costs on top.
    pub const PAGE_OVERHEAD_BYTES: usize = Blocks::PAGE_OVERHEAD_BYTES;

    /// Reserves the pools without touching them.
    pub fn new(limits: MessageLimits) -> Self {
        let pages_max = limits.body_bytes_max / PAGE_BYTES;
        Self {
            slots: Plain::new(limits.messages_max),
            slots_reserve: (limits.messages_max / 16).max(last_slots(limits.messages_max)),
            slots_easy: easy(limits.messages_max),
            blocks: Blocks::with_pages(pages_max),
            pages_max,
            pages_reserve: pages_max / 16,
            pages_easy: easy(pages_max),
            pages_kept: 0,
            assembly_pages: 0,
            assembly_pages_max: limits.assembly_bytes_max.div_ceil(PAGE_BYTES),
            is_held: false,
            claim: None,
            claims: 0,
            frees: 0,
            pages_freed: 0,
            assembly_left: 0,
            releases: 0,
        }
    }

    /// Starts a message. The caller holds the first reference.
    ///
    /// # Errors
    /// No slot, or no page for names that do not fit inline.
    pub fn begin(&mut self, exchange: &str, routing_key: &[u8], share: Share) -> Result<MessageId, PoolFull> {
        debug_assert!(exchange.len() <= 255 && routing_key.len() <= 255, "short strings");
        let names_len = exchange.len() + routing_key.len();
        let mut first_block = 0;
        if names_len > INLINE_BYTES {
            self.admit(share, 1)?;
            first_block = self.blocks.allocate_chain(names_room(names_len)).ok_or(PoolFull::Bodies)?;
        } else {
            self.admit(share, 0)?;
        }
        // What was admitted has a place.
        let place = self.slots.take().ok_or(PoolFull::Messages)?;
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

    /// Takes the properties and reserves everything the body will need, or nothing.
    ///
    /// # Errors
    /// Too few blocks, or too many contents are incomplete already; the message stays as it was.
    pub fn reserve_content(
        &mut self,
        id: MessageId,
        properties: &[u8],
        flags: MessageFlags,
        body_len: u32,
        share: Share,
    ) -> Result<(), PoolFull> {
        // What is read back comes as fast as the disk gives it, and holds up nobody who sends.
        self.reserve(id, (properties, body_len), flags, share, share != Share::ReadBack)
    }

    /// Takes the properties and reserves everything the body of a message of the broker's own will need, or nothing.
    /// That is written at once, so it takes nothing of the share for bodies that come in slowly.
    ///
    /// # Errors
    /// Too few blocks; the message stays as it was.
    pub fn reserve_whole(
        &mut self,
        id: MessageId,
        properties: &[u8],
        flags: MessageFlags,
        body_len: u32,
        share: Share,
    ) -> Result<(), PoolFull> {
        self.reserve(id, (properties, body_len), flags, share, false)
    }

    // Each of the two that call it is one of its own: this is on the way of every message.
    #[inline(always)]
    fn reserve(
        &mut self,
        id: MessageId,
        (properties, body_len): (&[u8], u32),
        flags: MessageFlags,
        share: Share,
        assembles: bool,
    ) -> Result<(), PoolFull> {
        let slot = &self.slots[id.index()];
        let stream_len = slot.filled as usize + properties.len() + body_len as usize;
        let room = slot.first_room();
        let mut pages = 0;
        if stream_len > room {
            pages = Blocks::pages_for(stream_len - room);
            self.admit_content(share, pages, id)?;
            if assembles {
                self.admit_assembly(share, pages, id)?;
            }
            let chain = self.blocks.allocate_chain(stream_len - room).ok_or(PoolFull::Bodies)?;
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

    /// Adds bytes of the body; never more than was announced.
    pub fn append_body(&mut self, id: MessageId, bytes: &[u8]) {
        let slot = &self.slots[id.index()];
        assert!(
            slot.filled as usize + bytes.len() <= slot.stream_len(),
            "the session appends no more than the content header announced"
        );
        self.append(id, bytes);
    }

    /// Body bytes still to come.
    #[inline]
    pub fn body_missing(&self, id: MessageId) -> u32 {
        let slot = &self.slots[id.index()];
        (slot.stream_len() - slot.filled as usize) as u32
    }

    /// The body is whole: the message leaves the assembly share.
    pub fn finish(&mut self, id: MessageId) {
        assert!(self.body_missing(id) == 0, "only a whole message is finished");
        self.releases += u64::from(self.leave_assembly(id) > 0);
    }

    /// One more holder (a queue, a delivery on its way).
    pub fn retain(&mut self, id: MessageId) {
        self.slots[id.index()].references += 1;
    }

    /// One holder less; the last one frees slot and blocks.
    pub fn release(&mut self, id: MessageId) {
        let slot = &mut self.slots[id.index()];
        assert!(slot.references > 0, "message released more often than held");
        slot.references -= 1;
        if slot.references == 0 {
            self.free(id);
        }
    }

    /// Whether more than one holds it.
    pub fn is_shared(&self, id: MessageId) -> bool {
        self.slots[id.index()].references > 1
    }

    /// The exchange it was published to.
    #[inline]
    pub fn exchange(&self, id: MessageId) -> &str {
        let slot = &self.slots[id.index()];
        text(&self.names(id)[..slot.exchange_len as usize])
    }

    /// The routing key it was published with: any bytes.
    #[inline]
    pub fn routing_key(&self, id: MessageId) -> &[u8] {
        let slot = &self.slots[id.index()];
        let start = slot.exchange_len as usize;
        &self.names(id)[start..start + slot.key_len as usize]
    }

    /// Exchange and routing key, one behind the other.
    pub fn names(&self, id: MessageId) -> &[u8] {
        let slot = &self.slots[id.index()];
        let len = slot.names_len();
        match slot.inline_len() {
            0 => &self.blocks.bytes(slot.first_block)[..len],
            _ => &slot.inline[..len],
        }
    }

    /// The length of [`Self::names`].
    #[inline]
    pub fn names_len(&self, id: MessageId) -> usize {
        self.slots[id.index()].names_len()
    }

    /// The length of the exchange's name within [`Self::names`].
    pub fn exchange_len(&self, id: MessageId) -> usize {
        self.slots[id.index()].exchange_len as usize
    }

    /// What is known of it.
    pub fn flags(&self, id: MessageId) -> MessageFlags {
        self.slots[id.index()].flags.without(MessageFlags::INLINE)
    }

    /// Notes more that is known of it.
    pub fn add_flags(&mut self, id: MessageId, flags: MessageFlags) {
        let slot = &mut self.slots[id.index()];
        slot.flags = slot.flags.with(flags);
    }

    /// Notes that something is not so any more.
    pub fn clear_flags(&mut self, id: MessageId, flags: MessageFlags) {
        let slot = &mut self.slots[id.index()];
        slot.flags = slot.flags.without(flags);
    }

    /// Body length in bytes.
    pub fn body_len(&self, id: MessageId) -> u32 {
        self.slots[id.index()].body_len
    }

    /// Length of the properties in bytes.
    pub fn properties_len(&self, id: MessageId) -> u32 {
        self.slots[id.index()].properties_len
    }

    /// Bytes of pool memory that the message occupies, slot included.
    #[inline]
    pub fn footprint_bytes(&self, id: MessageId) -> u32 {
        let slot = &self.slots[id.index()];
        MESSAGE_SLOT_BYTES as u32 + slot.block_bytes()
    }

    /// Frees a message that was begun or copied in vain, before anybody else asked for room. No room is made by
    /// that and by its beginning together, so nobody is told of any: whoever waits for room would try again
    /// for ever.
    pub fn discard(&mut self, id: MessageId) {
        assert!(!self.is_shared(id), "nobody else holds what was made in vain");
        let pages_freed = self.pages_freed;
        self.free(id);
        self.frees -= 1;
        self.pages_freed = pages_freed;
    }

    /// Whether it must be returned if it reaches no queue; remembered while a transaction is open.
    pub fn is_mandatory(&self, id: MessageId) -> bool {
        self.flags(id).has(MessageFlags::MANDATORY)
    }

    /// Remembers whether it must be returned.
    pub fn set_mandatory(&mut self, id: MessageId, mandatory: bool) {
        let flags = &mut self.slots[id.index()].flags;
        *flags = if mandatory {
            flags.with(MessageFlags::MANDATORY)
        } else {
            flags.without(MessageFlags::MANDATORY)
        };
    }

    /// The next message on the owner's list.
    pub fn link(&self, id: MessageId) -> Option<MessageId> {
        MessageId::from_link(self.slots[id.index()].link)
    }

    /// Sets the next message on the owner's list; only while one owner alone holds it.
    pub fn set_link(&mut self, id: MessageId, next: Option<MessageId>) {
        self.slots[id.index()].link = next.map_or(0, MessageId::to_link);
    }

    /// The mark of whoever holds it while it waits to be written; 0 for none. It shares its place with the
    /// link: a message is on a list or waits to be written, never both.
    pub fn mark(&self, id: MessageId) -> u32 {
        self.slots[id.index()].link
    }

    /// Sets the mark.
    pub fn set_mark(&mut self, id: MessageId, mark: u32) {
        self.slots[id.index()].link = mark;
    }

    /// Bytes of names, properties and body together.
    #[inline]
    pub fn stream_len(&self, id: MessageId) -> usize {
        self.slots[id.index()].stream_len()
    }

    /// Whether so much is in use that messages the store has should leave memory: half of what ordinary
    /// publishers may use, or whatever keeps a large one from coming in.
    pub fn is_above_spill_mark(&self) -> bool {
        self.slots.used() > (self.slots.max() - self.slots_reserve) / 2
            || self.blocks.pages_used() > self.pages_for_publishers() / 2
            || self.claims_pages()
    }

    /// Keeps room to read back a message of so many bytes, or of as many as leave room for one of
    /// `message_bytes_max` to come in: what cannot leave memory may fill all the rest, and then nobody could
    /// ever have that message, nor what is behind it.
    pub fn keep_for_read_back(&mut self, bytes: u64, message_bytes_max: u64) {
        let pages = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX).div_ceil(PAGE_BYTES);
        let room = (self.pages_max - self.pages_reserve).saturating_sub(pages(message_bytes_max));
        let kept = pages(bytes).saturating_sub(last_part(self.pages_max)).min(room);
        self.releases += u64::from(kept < self.pages_kept);
        self.pages_easy = easy(self.pages_max).saturating_sub(kept);
        self.pages_kept = kept;
    }

    /// Pages that ordinary publishers may use.
    const fn pages_for_publishers(&self) -> usize {
        (self.pages_max - self.pages_reserve).saturating_sub(self.pages_kept)
    }

    /// Returns the slots and the bytes of blocks that ordinary publishers can still have.
    #[inline]
    pub const fn ordinary_free(&self) -> (usize, usize) {
        let slots = (self.slots.max() - self.slots_reserve).saturating_sub(self.slots.used());
        let pages = self.pages_for_publishers().saturating_sub(self.blocks.pages_used());
        (slots, pages * PAGE_BYTES)
    }

    /// Bytes that nobody uses and the system holds memory for, about.
    pub const fn idle_bytes(&self) -> usize {
        self.slots.idle_bytes() + self.blocks.pages_idle() * PAGE_BYTES
    }

    /// Gives idle memory back to the system, a bounded part at a time; says whether that was the last part.
    pub fn trim(&mut self) -> bool {
        let (slots, blocks) = (self.slots.trim(), self.blocks.trim(TRIM_PAGES));
        slots && blocks
    }

    /// Counts messages that left the pool.
    pub const fn frees(&self) -> u64 {
        self.frees
    }

    /// Rises with everything that makes room for a message.
    pub const fn room_made(&self) -> u64 {
        self.frees + self.releases
    }

    /// Messages in the pool.
    pub const fn messages_used(&self) -> usize {
        self.slots.used()
    }

    /// All message slots there are.
    pub const fn messages_max(&self) -> usize {
        self.slots.max()
    }

    /// Bytes of blocks in use, whole pages.
    pub const fn body_bytes_used(&self) -> usize {
        self.blocks.pages_used() * PAGE_BYTES
    }

    /// All bytes of blocks there are.
    pub const fn body_bytes_max(&self) -> usize {
        self.pages_max * PAGE_BYTES
    }

    /// Bytes of blocks that they may hold.
    pub const fn assembly_bytes_max(&self) -> usize {
        self.assembly_pages_max * PAGE_BYTES
    }

    /// Bytes of blocks that incomplete contents hold, whole pages.
    pub const fn assembly_bytes_used(&self) -> usize {
        self.assembly_pages * PAGE_BYTES
    }

    /// Whether a content of so many pages may take them. A large one that may not has a claim instead, if
    /// nobody else has.
    fn admit_content(&mut self, share: Share, pages: usize, id: MessageId) -> Result<(), PoolFull> {
        let Err(full) = self.admit_pages(share, pages, Some(id)) else { return Ok(()) };
        if share == Share::Ordinary && self.claim(id, pages) {
            return Err(full);
        }
        Err(self.refuse(share, full))
    }

    fn free(&mut self, id: MessageId) {
        self.leave_assembly(id);
        let chain = core::mem::take(&mut self.slots[id.index()].first_block);
        self.slots.give(id.index());
        self.frees += 1;
        self.drop_claim(id);
        if chain != 0 {
            let before = self.blocks.pages_used();
            self.blocks.free_chain(chain);
            self.pages_freed += (before - self.blocks.pages_used()) as u64;
        }
    }

    /// Says how many pages of the assembly share that made free.
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

#[cfg(test)]
mod tests;
