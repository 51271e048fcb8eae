//! The bytes of a message: copied in once, read from any place on.
//!
//! Always true: nothing is written beyond what was reserved, nothing read beyond what is there.

use super::Messages;
use super::slot::{Cursor, INLINE_BYTES, MessageFlags, MessageId, PoolFull, Share, text};

impl Messages {
    /// Where the properties begin.
    pub fn properties_cursor(&self, id: MessageId) -> Cursor {
        self.seek(id, self.names_len(id))
    }

    /// A place in the body, `offset` bytes from its beginning.
    #[inline]
    pub fn body_cursor(&self, id: MessageId, offset: u32) -> Cursor {
        let slot = &self.slots[id.index()];
        let head = slot.names_len() + slot.properties_len as usize;
        self.seek(id, head + offset as usize)
    }

    /// Copies the next `out.len()` bytes and moves on. The caller asks for no more than there is.
    pub fn read(&self, id: MessageId, cursor: &mut Cursor, out: &mut [u8]) {
        let mut done = 0;
        while done < out.len() {
            let rest = self.rest_at(id, cursor);
            let take = rest.len().min(out.len() - done);
            assert!(take > 0, "read beyond the end of the message");
            out[done..done + take].copy_from_slice(&rest[..take]);
            cursor.at += take as u32;
            done += take;
        }
    }

    /// When a whole message came to its queues, in milliseconds of broker time; 0 when nobody asked.
    pub fn arrived_ms(&self, id: MessageId) -> u64 {
        let slot = &self.slots[id.index()];
        match slot.flags.has(MessageFlags::ARRIVED) {
            true => u64::from(slot.write_at) << 32 | u64::from(slot.write_block),
            false => 0,
        }
    }

    /// Notes when a whole message came to its queues; nothing is written into it any more.
    pub fn set_arrived_ms(&mut self, id: MessageId, time_ms: u64) {
        assert!(self.body_missing(id) == 0, "only a whole message comes to a queue");
        let slot = &mut self.slots[id.index()];
        (slot.write_at, slot.write_block) = ((time_ms >> 32) as u16, time_ms as u32);
        slot.flags = slot.flags.with(MessageFlags::ARRIVED);
    }

    /// The properties in one piece: borrowed when they are, else copied into `scratch`.
    ///
    /// # Panics
    /// When `scratch` is shorter than the longest frame, which properties never exceed.
    pub fn properties<'a>(&'a self, id: MessageId, scratch: &'a mut [u8]) -> &'a [u8] {
        let len = self.properties_len(id) as usize;
        let mut cursor = self.properties_cursor(id);
        let here = self.rest_at(id, &mut cursor);
        if here.len() >= len {
            return &here[..len];
        }
        self.read(id, &mut cursor, &mut scratch[..len]);
        &scratch[..len]
    }

    /// Copies into the stream; room for it was reserved.
    pub(super) fn append(&mut self, id: MessageId, mut bytes: &[u8]) {
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
            // The next block is gone to only when there is something for it: the last has none behind it.
            if take == 0 || (at + take == block.len() && !bytes.is_empty()) {
                slot.write_block = self.blocks.next(slot.write_block);
                slot.write_at = 0;
            }
        }
    }

    /// A copy with other properties, held by the caller; the old message is untouched.
    ///
    /// # Errors
    /// No room for the copy.
    pub fn copy_with_properties(
        &mut self,
        id: MessageId,
        properties: &[u8],
        flags: MessageFlags,
    ) -> Result<MessageId, PoolFull> {
        // At most two short strings.
        let names: heapless::Vec<u8, 510> = heapless::Vec::from_slice(self.names(id)).unwrap_or_default();
        let (exchange, routing_key) = names.split_at(self.exchange_len(id).min(names.len()));
        self.copy_as(id, (text(exchange), routing_key), properties, flags, Share::Reserve)
    }

    /// The same, as if it were published to another exchange with another key.
    ///
    /// # Errors
    /// No room for the copy.
    pub fn copy_as(
        &mut self,
        id: MessageId,
        (exchange, routing_key): (&str, &[u8]),
        properties: &[u8],
        flags: MessageFlags,
        share: Share,
    ) -> Result<MessageId, PoolFull> {
        let copy = self.begin(exchange, routing_key, share)?;
        let body_len = self.body_len(id);
        if let Err(full) = self.reserve_whole(copy, properties, flags, body_len, share) {
            self.discard(copy);
            return Err(full);
        }
        self.copy_body(id, copy);
        Ok(copy)
    }

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
        // At the very end of the stream: nothing is read from here.
        Cursor { block, at: if block == 0 { inline_len as u32 } else { at as u32 } }
    }

    /// What is left of the piece the cursor stands in, moving to the next piece when it is at the end.
    fn rest_at(&self, id: MessageId, cursor: &mut Cursor) -> &[u8] {
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
