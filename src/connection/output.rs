//! Fills the output buffer of the event loop with what one connection may send now.
//!
//! At each frame boundary the order is: heartbeat and `connection.blocked`, replies, confirms, and then the next frame
//! of a delivery. Written bytes count as sent: the event loop stores the bytes that the socket does not accept, and
//! calls [`Connection::fill`] again only when all of them are sent.
//!
//! # Invariants
//! - A reply whose order is n is written after all deliveries up to sequence number n. Replies are written in the order
//!   of the requests.
//! - A reply or confirm is not written between the frames of a content on the same channel. A confirm is written after
//!   all earlier replies, such as `confirm.select-ok`.
//! - Replies and confirms are written completely. A delivery, and `connection.start`, may be split at any byte, and the
//!   next call continues at that byte.
//! - While the connection is being closed, no new frame of a delivery is begun. A frame that is partly written is
//!   completed.

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

/// The result of [`Connection::fill`].
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Filled {
    /// Number of bytes written to the buffer.
    pub bytes: usize,
    /// Number of deliveries that were completely written or dropped. The caller removes them from the front of the
    /// outbox.
    pub deliveries: u32,
    /// Whether the first of these deliveries was dropped, because its channel was closed before any byte of it was
    /// written. Only the first delivery of an outbox can belong to a closed channel.
    pub is_first_dropped: bool,
}

/// The state for `connection.blocked` and `connection.unblocked`. They are sent once per change, and only to clients that
/// have published and support them.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Blocked {
    /// The publisher waits for memory or disk space now.
    pub(super) is_waiting: bool,
    /// The last notification that was sent is `connection.blocked`.
    pub(super) is_client_notified: bool,
    /// The client has published and supports the notifications.
    pub(super) wants_notification: bool,
    /// The publisher waits for disk space, not for memory.
    pub(super) is_for_disk: bool,
    /// When `is_waiting` last changed.
    pub(super) since: Now,
    /// `is_waiting` has been unchanged for long enough to notify the client. At the beginning of a wait, no
    /// time is needed.
    pub(super) is_stable: bool,
}

impl Blocked {
    /// Returns whether a notification must be sent now.
    pub(super) const fn is_due(self) -> bool {
        self.is_stable && self.differs()
    }

    /// Returns whether `is_waiting` differs from what the client was last notified of.
    pub(super) const fn differs(self) -> bool {
        (self.is_waiting && self.wants_notification) != self.is_client_notified
    }

    /// Returns `connection.blocked` with RabbitMQ's reason if `is_client_notified`; else
    /// `connection.unblocked`.
    const fn method(self) -> Method<'static> {
        match (self.is_client_notified, self.is_for_disk) {
            (true, false) => Method::ConnectionBlocked { reason: "low on memory" },
            (true, true) => Method::ConnectionBlocked { reason: "low on disk" },
            (false, _) => Method::ConnectionUnblocked {},
        }
    }
}

/// The output buffer while it is filled.
struct OutputBuffer<'o> {
    out: &'o mut [u8],
    /// What was written so far.
    filled: Filled,
}

impl OutputBuffer<'_> {
    /// Returns the number of free bytes.
    #[inline]
    const fn left(&self) -> usize {
        self.out.len() - self.filled.bytes
    }

    /// Returns the free part of the buffer.
    #[inline]
    fn free(&mut self) -> &mut [u8] {
        &mut self.out[self.filled.bytes..]
    }

    /// Writes as many of `bytes` as fit, and returns their number.
    fn copy(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.left());
        self.free()[..count].copy_from_slice(&bytes[..count]);
        self.filled.bytes += count;
        count
    }

    /// Writes a method of at most [`SMALL_FRAME_BYTES_MAX`] bytes. The caller has checked that it fits.
    fn small_method(&mut self, channel: u16, method: &Method<'_>) {
        let mut writer = Writer::new(self.free());
        let written = method.emit_frame(channel, &mut writer);
        assert!(written.is_ok() && writer.at() <= SMALL_FRAME_BYTES_MAX, "{} is not short", method.name());
        self.filled.bytes += writer.at();
    }
}

/// Whether more can be written to the output buffer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Everything was written, as far as the rules of the order allow.
    Continue,
    /// The buffer has no space for the next frame or byte.
    BufferFull,
}

impl Connection {
    /// Writes the frames that may be sent now to `out`, which must have space for the longest reply; 512 bytes are
    /// enough.
    ///
    /// `outbox` is positioned at the connection's first delivery. Afterwards the caller removes
    /// [`Filled::deliveries`] deliveries from the outbox. It must send all bytes before it calls this
    /// function again.
    pub fn fill<O: Outbox>(&mut self, context: &mut Context<'_>, out: &mut [u8], outbox: &mut O) -> Filled {
        let mut buffer = OutputBuffer { out, filled: Filled::default() };
        if self.finish_frame(context, &mut buffer, outbox) == Progress::Continue {
            self.fill_buffer(context, &mut buffer, outbox);
        }
        if buffer.filled.bytes > 0 {
            self.timing.last_written = context.now;
        }
        buffer.filled
    }

    /// Completes the frame that the previous call has written partly: `connection.start` or one of a delivery.
    fn finish_frame<O: Outbox>(
        &mut self,
        context: &Context<'_>,
        buffer: &mut OutputBuffer<'_>,
        outbox: &mut O,
    ) -> Progress {
        if core::mem::replace(&mut self.output.is_protocol_header_due, false) {
            buffer.copy(&PROTOCOL_HEADER);
        }
        if self.output.start_left > 0 {
            let start = self.start_frame(context.settings);
            let from = start.len() - usize::from(self.output.start_left);
            self.output.start_left -= buffer.copy(&start[from..]) as u16;
            if self.output.start_left > 0 {
                return Progress::BufferFull;
            }
        }
        let Some(begun) = self.output.begun else { return Progress::Continue };
        let Some(delivery) = outbox.peek() else {
            panic!("a partly written delivery stays in the outbox until it is complete");
        };
        let layout = Layout::of(context.messages, &delivery, self.negotiated.frame_max);
        let end = layout.frame_end(begun.sent);
        let progress = self.write_until(context.messages, buffer, &delivery, layout, end);
        if self.output.begun.is_none() {
            outbox.advance();
        }
        progress
    }

    /// Writes from a frame boundary on, in the order that the module describes.
    fn fill_buffer<O: Outbox>(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut OutputBuffer<'_>,
        outbox: &mut O,
    ) {
        if self.phase != Phase::Open {
            if self.output.begun.take().is_some() {
                self.output.cut_channel = outbox.peek().map_or(0, |delivery| delivery.channel);
            }
            self.write_other_output(context, buffer, None);
            return;
        }
        let released = self.input.release.map(|(slot, _)| context.pools.channels[slot].number());
        let mut has_other = self.has_other_output();
        loop {
            let front = outbox.peek();
            if has_other {
                if self.write_other_output(context, buffer, front.as_ref()) == Progress::BufferFull {
                    return;
                }
                has_other = self.has_other_output();
            }
            let Some(delivery) = front else { return };
            // An error has closed the channel of this delivery, and the broker will requeue the delivery.
            if self.output.begun.is_none() && Some(delivery.channel) == released {
                return;
            }
            if self.output.begun.is_none() && delivery.is_withdrawn {
                assert!(
                    buffer.filled.deliveries == 0,
                    "only the first delivery can belong to a closed channel"
                );
                buffer.filled.is_first_dropped = true;
                buffer.filled.deliveries += 1;
            } else if self.write_delivery(context.messages, buffer, &delivery) == Progress::BufferFull {
                return;
            }
            outbox.advance();
        }
    }

    /// Writes a delivery, or the rest of a partly written one, as far as it fits. Updates the counters of `Filled`.
    #[inline]
    fn write_delivery(
        &mut self,
        messages: &Messages,
        buffer: &mut OutputBuffer<'_>,
        delivery: &Delivery<'_>,
    ) -> Progress {
        let layout = Layout::of(messages, delivery, self.negotiated.frame_max);
        let total = layout.total();
        if self.output.begun.is_some() || total > buffer.out.len() as u64 || !layout.is_small() {
            return self.write_until(messages, buffer, delivery, layout, total);
        }
        // The delivery fits into an empty buffer. So it is not split, and the next call writes it.
        if total > buffer.left() as u64 {
            return Progress::BufferFull;
        }
        write_small(messages, delivery, layout, &mut buffer.free()[..total as usize]);
        buffer.filled.bytes += total as usize;
        buffer.filled.deliveries += 1;
        Progress::Continue
    }

    /// Continues a delivery up to its byte `end`, as far as it fits.
    #[cold]
    fn write_until(
        &mut self,
        messages: &Messages,
        buffer: &mut OutputBuffer<'_>,
        delivery: &Delivery<'_>,
        layout: Layout,
        end: u64,
    ) -> Progress {
        let begun = self.output.begun.unwrap_or(Begun { sent: 0, body_at: None });
        let free = buffer.free();
        let room = (end - begun.sent).min(free.len() as u64) as usize;
        let after = write_part(messages, delivery, layout, begun, &mut free[..room]);
        buffer.filled.bytes += (after.sent - begun.sent) as usize;
        if after.sent == layout.total() {
            self.output.begun = None;
            buffer.filled.deliveries += 1;
        } else if after.sent > 0 {
            self.output.begun = Some(after);
        }
        if after.sent < end { Progress::BufferFull } else { Progress::Continue }
    }

    /// Returns whether there are heartbeats, notifications, replies or confirms to write.
    fn has_other_output(&self) -> bool {
        self.output.is_heartbeat_due
            || self.blocked.is_due()
            || !self.output.replies.is_empty()
            || !self.confirms.sendable.is_empty()
    }

    /// Writes everything except deliveries, at a frame boundary. `front` is the delivery that is written next.
    fn write_other_output(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut OutputBuffer<'_>,
        front: Option<&Delivery<'_>>,
    ) -> Progress {
        if (self.output.is_heartbeat_due || self.blocked.is_due())
            && self.write_notifications(buffer) == Progress::BufferFull
        {
            return Progress::BufferFull;
        }
        // The channel with an incomplete content; 0 if there is none.
        let content_channel = match front {
            Some(delivery) if self.output.begun.is_some() => delivery.channel,
            _ => self.output.cut_channel,
        };
        // All deliveries up to this sequence number are written.
        let written_up_to = front.map_or(u64::MAX, |delivery| delivery.sequence.saturating_sub(1));
        while let Some(reply) = Reply::front(&self.output.replies, &context.pools.replies) {
            let is_inside_content = content_channel != 0 && reply.channel == content_channel;
            if is_inside_content && content_channel == self.output.cut_channel {
                // The connection is being closed and this content stays incomplete, so no method may follow on its
                // channel.
                self.output.replies.consume(&mut context.pools.replies, RECORD_HEAD_BYTES + reply.len);
                continue;
            }
            if reply.order > written_up_to || is_inside_content {
                return Progress::Continue;
            }
            let is_last = self.output.replies.len() == RECORD_HEAD_BYTES + reply.len;
            // When the connection is being closed, the last reply is the close. Confirms are written before it.
            if is_last
                && self.phase != Phase::Open
                && self.write_confirms(context, buffer, written_up_to, content_channel)
                    == Progress::BufferFull
            {
                return Progress::BufferFull;
            }
            if buffer.left() < reply.len {
                return Progress::BufferFull;
            }
            self.output.replies.consume(&mut context.pools.replies, RECORD_HEAD_BYTES);
            self.output.replies.copy_front(&context.pools.replies, &mut buffer.free()[..reply.len]);
            self.output.replies.consume(&mut context.pools.replies, reply.len);
            buffer.filled.bytes += reply.len;
        }
        self.write_confirms(context, buffer, written_up_to, content_channel)
    }

    /// Writes a heartbeat and a notification that the publisher is blocked or unblocked, if they are due.
    fn write_notifications(&mut self, buffer: &mut OutputBuffer<'_>) -> Progress {
        if buffer.left() < 2 * SMALL_FRAME_BYTES_MAX {
            return Progress::BufferFull;
        }
        if core::mem::replace(&mut self.output.is_heartbeat_due, false) {
            buffer.copy(&HEARTBEAT_FRAME);
        }
        if self.blocked.is_due() {
            self.blocked.is_client_notified = !self.blocked.is_client_notified;
            buffer.small_method(0, &self.blocked.method());
        }
        Progress::Continue
    }

    /// Writes the confirms of all channels, except for those that must follow a delivery after
    /// `written_up_to`, that are for messages which are not durable yet, or that are on `content_channel`.
    fn write_confirms(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut OutputBuffer<'_>,
        written_up_to: u64,
        content_channel: u16,
    ) -> Progress {
        let mut slot = self.confirms.sendable.first;
        while slot != NONE {
            let next = ConfirmList::after(&context.pools.channels, slot);
            let record = &mut context.pools.channels[slot];
            let number = record.number();
            while let Some(run) = record.confirms.front() {
                if run.order > written_up_to || run.batch > context.durable || number == content_channel {
                    break;
                }
                if buffer.left() < SMALL_FRAME_BYTES_MAX {
                    return Progress::BufferFull;
                }
                if let Some((run, before)) = record.confirms.take() {
                    buffer.small_method(number, &run.method(before));
                    context.pools.confirmed += run.acknowledged_after(before);
                }
            }
            self.update_confirm_list(context, slot);
            slot = next;
        }
        Progress::Continue
    }

    /// Returns whether there is output besides complete deliveries in the outbox.
    pub fn has_output(&self) -> bool {
        self.has_remainder() || self.has_other_output()
    }

    /// Returns whether the last [`Self::fill`] has written a delivery or `connection.start` only partly.
    pub const fn has_remainder(&self) -> bool {
        self.output.is_protocol_header_due || self.output.start_left > 0 || self.output.begun.is_some()
    }

    /// Returns whether the first delivery of the outbox is partly written. The delivery must stay in the outbox until
    /// [`Filled`] counts it, even if its channel is closed, because its other frames must follow.
    pub const fn has_begun_delivery(&self) -> bool {
        self.output.begun.is_some()
    }
}

/// The head of the first stored reply.
struct Reply {
    /// Deliveries up to this sequence number must be written before the reply.
    order: u64,
    /// Length of the reply's frame in bytes.
    len: usize,
    channel: u16,
}

impl Reply {
    /// Returns the head of the first reply in `replies`, if there is one.
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
