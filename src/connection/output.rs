//! Fills the output buffer of the event loop with what one connection may send now.
//!
//! The order at each frame boundary: heartbeat and `connection.blocked`, replies, confirms, then the next frame of
//! a delivery. What a fill wrote counts as sent: the event loop keeps what the socket did not take, and does not ask
//! for more before that has left.
//!
//! # Invariants
//! - A reply with order n follows every delivery up to n. No reply and no confirm stands between the frames of a
//!   content on its own channel. Replies keep their order. A confirm never overtakes a reply before it, such as
//!   `confirm.select-ok`.
//! - Replies and confirms are written whole. A delivery, and `connection.start`, may be cut at any byte; the next fill
//!   goes on with the very next byte.
//! - Once the connection is closing, no further frame of a delivery is begun; the frame that was cut is finished.

use super::channel::{ConfirmList, NONE};
use super::connection::Context;
use super::connection::{Connection, Phase};
use super::deliveries::{Begun, Layout, write_part, write_small};
use super::replies::RECORD_HEAD_BYTES;
use leveret_amqp::{HEARTBEAT_FRAME, Method, PROTOCOL_HEADER, Writer};
use leveret_core::command::{Delivery, Outbox};
use leveret_core::mem::{ByteChain, BytePool, Messages};
use leveret_core::time::Now;

/// The longest `basic.ack`, `basic.nack`, `connection.blocked` and heartbeat frame, in bytes.
const SMALL_FRAME_BYTES_MAX: usize = 32;

/// What one fill wrote.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Filled {
    /// Number of bytes written to the buffer.
    pub bytes: usize,
    /// Number of deliveries that left the front of the outbox.
    pub deliveries: u32,
    /// The first of them was dropped, because its channel was closed before any of it was written. Only the front of
    /// an outbox can be left over from a closed channel.
    pub is_first_dropped: bool,
}

/// `connection.blocked` and `connection.unblocked`: sent once per change, to clients that publish and support it.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Blocked {
    pub(super) now: bool,
    pub(super) told: bool,
    pub(super) concerned: bool,
    /// The missing capacity is on the disk, not in memory.
    pub(super) is_for_disk: bool,
    /// When the state last changed.
    pub(super) since: Now,
    /// The state has lasted long enough to be sent. The beginning of waiting counts at once.
    pub(super) lasts: bool,
}

impl Blocked {
    pub(super) const fn is_due(self) -> bool {
        self.lasts && self.differs()
    }

    pub(super) const fn differs(self) -> bool {
        (self.now && self.concerned) != self.told
    }

    /// `connection.blocked` with the reason that RabbitMQ gives, or `connection.unblocked`.
    const fn method(self) -> Method<'static> {
        match (self.told, self.is_for_disk) {
            (true, false) => Method::ConnectionBlocked { reason: "low on memory" },
            (true, true) => Method::ConnectionBlocked { reason: "low on disk" },
            (false, _) => Method::ConnectionUnblocked {},
        }
    }
}

/// The output buffer while it is filled.
struct Page<'o> {
    out: &'o mut [u8],
    filled: Filled,
}

impl Page<'_> {
    #[inline]
    const fn left(&self) -> usize {
        self.out.len() - self.filled.bytes
    }

    #[inline]
    fn room(&mut self) -> &mut [u8] {
        &mut self.out[self.filled.bytes..]
    }

    /// Writes as much of `bytes` as fits, and returns how much that is.
    fn copy(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.left());
        self.room()[..count].copy_from_slice(&bytes[..count]);
        self.filled.bytes += count;
        count
    }

    /// Writes a method of at most [`SMALL_FRAME_BYTES_MAX`] bytes. The caller has checked the capacity.
    fn small_method(&mut self, channel: u16, method: &Method<'_>) {
        let mut writer = Writer::new(self.room());
        let written = method.emit_frame(channel, &mut writer);
        assert!(written.is_ok() && writer.at() <= SMALL_FRAME_BYTES_MAX, "{} is not short", method.name());
        self.filled.bytes += writer.at();
    }
}

/// Whether the fill goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Room {
    Left,
    Full,
}

impl Connection {
    /// Writes what may be sent now into `out`, which has room for the longest reply: 512 bytes are enough.
    ///
    /// `outbox` stands at the connection's first delivery. The caller takes the deliveries that [`Filled`] counts out
    /// of it, and sends all bytes before it calls this again.
    pub fn fill<O: Outbox>(&mut self, context: &mut Context<'_>, out: &mut [u8], outbox: &mut O) -> Filled {
        let mut page = Page { out, filled: Filled::default() };
        if self.finish_frame(context, &mut page, outbox) == Room::Left {
            self.fill_page(context, &mut page, outbox);
        }
        if page.filled.bytes > 0 {
            self.timing.wrote = context.now;
        }
        page.filled
    }

    /// Completes the frame in which the previous fill ended.
    fn finish_frame<O: Outbox>(
        &mut self,
        context: &Context<'_>,
        page: &mut Page<'_>,
        outbox: &mut O,
    ) -> Room {
        if core::mem::replace(&mut self.output.is_protocol_header_due, false) {
            page.copy(&PROTOCOL_HEADER);
        }
        if self.output.start_left > 0 {
            let start = self.start_frame(context.settings);
            let from = start.len() - usize::from(self.output.start_left);
            self.output.start_left -= page.copy(&start[from..]) as u16;
            if self.output.start_left > 0 {
                return Room::Full;
            }
        }
        let Some(begun) = self.output.begun else { return Room::Left };
        let Some(delivery) = outbox.peek() else {
            panic!("a delivery that was begun stays in the outbox until it is sent");
        };
        let layout = Layout::of(context.messages, &delivery, self.negotiated.frame_max);
        let end = layout.frame_end(begun.sent);
        let room = self.write_until(context.messages, page, &delivery, layout, end);
        if self.output.begun.is_none() {
            outbox.advance();
        }
        room
    }

    fn fill_page<O: Outbox>(&mut self, context: &mut Context<'_>, page: &mut Page<'_>, outbox: &mut O) {
        if self.phase != Phase::Open {
            if self.output.begun.take().is_some() {
                self.output.cut_channel = outbox.peek().map_or(0, |delivery| delivery.channel);
            }
            self.write_asides(context, page, None);
            return;
        }
        let released = self.input.release.map(|(slot, _)| context.pools.channels[slot].number());
        let mut has_asides = self.has_asides();
        loop {
            let front = outbox.peek();
            if has_asides {
                if self.write_asides(context, page, front.as_ref()) == Room::Full {
                    return;
                }
                has_asides = self.has_asides();
            }
            let Some(delivery) = front else { return };
            // The broker has closed its channel and is about to take the delivery back.
            if self.output.begun.is_none() && Some(delivery.channel) == released {
                return;
            }
            if self.output.begun.is_none() && delivery.is_withdrawn {
                assert!(page.filled.deliveries == 0, "only the front is left over from a closed channel");
                page.filled.is_first_dropped = true;
                page.filled.deliveries += 1;
            } else if self.write_delivery(context.messages, page, &delivery) == Room::Full {
                return;
            }
            outbox.advance();
        }
    }

    /// Writes a delivery, or the rest of one that was begun, as far as it fits.
    #[inline]
    fn write_delivery(&mut self, messages: &Messages, page: &mut Page<'_>, delivery: &Delivery<'_>) -> Room {
        let layout = Layout::of(messages, delivery, self.negotiated.frame_max);
        let total = layout.total();
        if self.output.begun.is_some() || total > page.out.len() as u64 || !layout.is_small() {
            return self.write_until(messages, page, delivery, layout, total);
        }
        // A delivery that does not fit now, but into an empty buffer, waits for the next fill.
        if total > page.left() as u64 {
            return Room::Full;
        }
        write_small(messages, delivery, layout, &mut page.room()[..total as usize]);
        page.filled.bytes += total as usize;
        page.filled.deliveries += 1;
        Room::Left
    }

    /// Writes a delivery in parts: up to its byte `end`, as far as it fits.
    #[cold]
    fn write_until(
        &mut self,
        messages: &Messages,
        page: &mut Page<'_>,
        delivery: &Delivery<'_>,
        layout: Layout,
        end: u64,
    ) -> Room {
        let begun = self.output.begun.unwrap_or(Begun { sent: 0, body_at: None });
        let after = write_part(messages, delivery, layout, begun, end, page.room());
        page.filled.bytes += (after.sent - begun.sent) as usize;
        if after.sent == layout.total() {
            self.output.begun = None;
            page.filled.deliveries += 1;
        } else if after.sent > 0 {
            self.output.begun = Some(after);
        }
        if after.sent < end { Room::Full } else { Room::Left }
    }

    fn has_asides(&self) -> bool {
        self.output.is_heartbeat_due
            || self.blocked.is_due()
            || !self.output.replies.is_empty()
            || !self.confirms.to_tell.is_empty()
    }

    /// Writes everything but deliveries, at a frame boundary in front of `front`.
    fn write_asides(
        &mut self,
        context: &mut Context<'_>,
        page: &mut Page<'_>,
        front: Option<&Delivery<'_>>,
    ) -> Room {
        if (self.output.is_heartbeat_due || self.blocked.is_due())
            && self.write_small_asides(page) == Room::Full
        {
            return Room::Full;
        }
        let content_on = match front {
            Some(delivery) if self.output.begun.is_some() => delivery.channel,
            _ => self.output.cut_channel,
        };
        let gone = front.map_or(u64::MAX, |delivery| delivery.sequence.saturating_sub(1));
        while let Some(reply) = Reply::front(&self.output.replies, &context.pools.replies) {
            let is_inside = content_on != 0 && reply.channel == content_on;
            if is_inside && content_on == self.output.cut_channel {
                // The content on its channel never becomes complete, so nothing can follow on that channel.
                self.output.replies.consume(&mut context.pools.replies, RECORD_HEAD_BYTES + reply.len);
                continue;
            }
            if reply.order > gone || is_inside {
                return Room::Left;
            }
            let is_last = self.output.replies.len() == RECORD_HEAD_BYTES + reply.len;
            // The last reply is the close. Confirms go before it.
            if is_last
                && self.phase != Phase::Open
                && self.write_confirms(context, page, gone, content_on) == Room::Full
            {
                return Room::Full;
            }
            if page.left() < reply.len {
                return Room::Full;
            }
            self.output.replies.consume(&mut context.pools.replies, RECORD_HEAD_BYTES);
            self.output.replies.copy_front(&context.pools.replies, &mut page.room()[..reply.len]);
            self.output.replies.consume(&mut context.pools.replies, reply.len);
            page.filled.bytes += reply.len;
        }
        self.write_confirms(context, page, gone, content_on)
    }

    fn write_small_asides(&mut self, page: &mut Page<'_>) -> Room {
        if page.left() < 2 * SMALL_FRAME_BYTES_MAX {
            return Room::Full;
        }
        if core::mem::replace(&mut self.output.is_heartbeat_due, false) {
            page.copy(&HEARTBEAT_FRAME);
        }
        if self.blocked.is_due() {
            self.blocked.told = !self.blocked.told;
            page.small_method(0, &self.blocked.method());
        }
        Room::Left
    }

    /// Writes the confirms of all channels, except those that wait for returns or for the content of their channel.
    fn write_confirms(
        &mut self,
        context: &mut Context<'_>,
        page: &mut Page<'_>,
        gone: u64,
        content_on: u16,
    ) -> Room {
        let mut slot = self.confirms.to_tell.first;
        while slot != NONE {
            let next = ConfirmList::after(&context.pools.channels, slot);
            let record = &mut context.pools.channels[slot];
            let number = record.number();
            while let Some(run) = record.confirms.front() {
                if run.order > gone || run.batch > context.durable || number == content_on {
                    break;
                }
                if page.left() < SMALL_FRAME_BYTES_MAX {
                    return Room::Full;
                }
                if let Some((run, before)) = record.confirms.take() {
                    page.small_method(number, &run.method(before));
                    context.pools.confirmed += run.taken_after(before);
                }
            }
            self.list_to_confirm(context, slot);
            slot = next;
        }
        Room::Left
    }

    /// Returns whether there is something to write besides the deliveries in the outbox.
    pub fn has_output(&self) -> bool {
        self.has_remainder() || self.has_asides()
    }

    /// Returns whether the last fill ended inside a delivery or inside `connection.start`.
    pub const fn has_remainder(&self) -> bool {
        self.output.is_protocol_header_due || self.output.start_left > 0 || self.output.begun.is_some()
    }

    /// Returns whether the first delivery of the outbox is partly written. It must stay there until it is counted as
    /// sent, even if its channel is closed, because the rest of its frames must follow.
    pub const fn has_begun_delivery(&self) -> bool {
        self.output.begun.is_some()
    }
}

/// The head of the first reply that waits.
struct Reply {
    order: u64,
    /// Length of its frame in bytes.
    len: usize,
    channel: u16,
}

impl Reply {
    fn front(replies: &ByteChain, pool: &BytePool) -> Option<Self> {
        if replies.is_empty() {
            return None;
        }
        // The record's head is followed by the frame's type and channel.
        let mut head = [0; RECORD_HEAD_BYTES + 3];
        replies.copy_front(pool, &mut head);
        let [order @ .., len_high, len_low, _, channel_high, channel_low] = head;
        Some(Self {
            order: u64::from_be_bytes(order),
            len: usize::from(u16::from_be_bytes([len_high, len_low])),
            channel: u16::from_be_bytes([channel_high, channel_low]),
        })
    }
}
