//! What is written when, and what becomes of what a socket did not take.
//!
//! The order at each frame boundary: heartbeat and connection.blocked, replies that may go, confirms that
//! may go, then the next frames of deliveries.
//!
//! Why it exists: the loop has one output buffer for everybody, and a socket takes any part of it. So a fill
//! writes from state that stays as it was (replies, the front of the outbox) or notes how to restore it
//! (confirms), and `written` makes true what has gone.
//!
//! What always holds:
//! - A reply with order n goes when every delivery up to n has gone, and never between the frames of a
//!   content on its own channel; replies keep their order; confirms go when no reply waits before them, so
//!   they never overtake a select-ok. Our own close of a channel goes behind its returns.
//! - At the start of a fill at most one frame is cut: a reply (how much of it has gone), a delivery (how much
//!   of it has gone), or a small frame whose rest is kept in [`super::write_plan::PartialFrame`].
//! - Once the connection is closing, no delivery is begun; the frame that was cut is finished.

use super::channel::{ConfirmList, NONE};
use super::connection::{Connection, Phase};
use super::context::Context;
use super::deliveries::{Begun, Layout, write_part};
use super::replies::RECORD_HEAD_BYTES;
use super::write_plan::{
    REPLIES_AT_ONCE, SMALL_FRAME_BYTES_MAX, SentConfirm, Stretch, TOLD_MAX, What, WritePlan, blocked_method,
    small_frame,
};
use crate::command::{Delivery, Outbox};
use crate::mem::Messages;
use crate::wire::HEARTBEAT_FRAME;

/// The loop's output buffer while it is filled.
struct Page<'o> {
    out: &'o mut [u8],
    at: usize,
}

impl Page<'_> {
    #[inline]
    fn room(&mut self) -> &mut [u8] {
        &mut self.out[self.at..]
    }

    /// Writes as much of `octets` as fits; says how much.
    fn copy(&mut self, octets: &[u8]) -> usize {
        let take = octets.len().min(self.out.len() - self.at);
        self.room()[..take].copy_from_slice(&octets[..take]);
        self.at += take;
        take
    }

    #[inline]
    fn note(&self, plan: &mut WritePlan, what: What) {
        plan.stretches.push(Stretch { end: self.at as u32, what });
    }
}

/// Whether the fill goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Room {
    Left,
    Full,
}

impl Connection {
    /// Writes what may be written now into `out`, which is best the loop's whole output buffer (512 octets
    /// at least); says how much. Nothing counts as sent until [`Self::written`], which must come next.
    ///
    /// `outbox` stands at the connection's first delivery that was not reported as sent.
    pub fn fill<O: Outbox>(
        &mut self,
        context: &mut Context<'_>,
        out: &mut [u8],
        plan: &mut WritePlan,
        outbox: &mut O,
    ) -> usize {
        plan.clear(self.output.begun);
        plan.replies_len = self.output.replies.len().min(REPLIES_AT_ONCE);
        self.output.replies.copy_front(&context.pools.replies, &mut plan.replies[..plan.replies_len]);
        let mut page = Page { out, at: 0 };
        if self.resume(context, &mut page, plan, outbox) == Room::Left {
            plan.is_resumed = true;
            self.fill_page(context, &mut page, plan, outbox);
        }
        plan.filled = page.at;
        page.at
    }

    /// Finishes the frame that was cut.
    fn resume<O: Outbox>(
        &self,
        context: &Context<'_>,
        page: &mut Page<'_>,
        plan: &mut WritePlan,
        outbox: &O,
    ) -> Room {
        let start = self.start_frame(context.settings);
        if self.output.partial.start_left > 0 {
            let from = start.len() - self.output.partial.start_left as usize;
            let took = page.copy(&start[from..]);
            page.note(plan, What::Start);
            if took < self.output.partial.start_left as usize {
                return Room::Full;
            }
        }
        if self.output.partial.small_len > 0 {
            let took = page.copy(self.output.partial.small());
            page.note(plan, What::Small);
            if took < self.output.partial.small_len as usize {
                return Room::Full;
            }
        }
        if self.output.partial.reply_sent > 0 && self.resume_reply(page, plan) == Room::Full {
            return Room::Full;
        }
        match (self.output.begun, outbox.peek()) {
            (Some(begun), Some(delivery)) => {
                self.resume_frame(context.messages, page, plan, begun, &delivery)
            }
            (Some(_), None) => panic!("a delivery that was begun stays in the outbox until it is sent"),
            (None, _) => Room::Left,
        }
    }

    fn resume_reply(&self, page: &mut Page<'_>, plan: &mut WritePlan) -> Room {
        let Some(record) = Record::at(plan, plan.replies_at) else {
            return Room::Left;
        };
        let len = record.len();
        let rest = &record.frame[self.output.partial.reply_sent as usize..];
        let (wanted, took) = (rest.len(), page.copy(rest));
        if took < wanted {
            page.note(plan, What::ReplyPart);
            return Room::Full;
        }
        page.note(plan, What::Reply(len as u16));
        plan.replies_at += len;
        Room::Left
    }

    /// Finishes the frame of a delivery that was cut.
    fn resume_frame(
        &self,
        messages: &Messages,
        page: &mut Page<'_>,
        plan: &mut WritePlan,
        begun: Begun,
        delivery: &Delivery<'_>,
    ) -> Room {
        let layout = Layout::of(messages, delivery, self.negotiated.frame_max);
        let end = layout.frame_end(begun.sent);
        if end == begun.sent {
            return Room::Left;
        }
        let after = write_part(messages, delivery, layout, begun, end, page.room());
        page.at += (after.sent - begun.sent) as usize;
        if after.sent == layout.total() {
            // Its place in the outbox is left to the caller, who sees that nothing is begun any more.
            plan.begun = None;
            plan.deliveries += 1;
            page.note(plan, What::Delivered);
        } else {
            plan.begun = Some(after);
            page.note(plan, What::Piece);
        }
        if after.sent < end { Room::Full } else { Room::Left }
    }

    fn fill_page<O: Outbox>(
        &mut self,
        context: &mut Context<'_>,
        page: &mut Page<'_>,
        plan: &mut WritePlan,
        outbox: &mut O,
    ) {
        if plan.deliveries > 0 {
            outbox.advance();
        }
        if self.phase != Phase::Open {
            if plan.begun.take().is_some() {
                self.output.cut_channel = outbox.peek().map_or(0, |delivery| delivery.channel);
            }
            self.write_asides(context, page, plan, None);
            return;
        }
        let released = self.input.release.map(|(slot, _)| context.pools.channels[slot].number());
        let mut has_asides = self.has_asides();
        while plan.has_room() {
            let front = outbox.peek();
            if has_asides {
                if self.write_asides(context, page, plan, front.as_ref()) == Room::Full {
                    return;
                }
                has_asides = plan.replies_at < self.output.replies.len() || !self.confirms.to_tell.is_empty();
            }
            let Some(delivery) = front else {
                return;
            };
            // Its channel was closed by us, and the broker is about to take it back.
            if plan.begun.is_none() && Some(delivery.channel) == released {
                return;
            }
            if plan.begun.is_none() && delivery.is_withdrawn {
                assert!(plan.deliveries == 0, "only the front is left over from a channel that is closed");
                plan.is_first_unseen = true;
                plan.deliveries += 1;
                page.note(plan, What::Delivered);
            } else if self.write_delivery(context.messages, page, plan, &delivery) == Room::Full {
                return;
            }
            outbox.advance();
        }
    }

    /// Writes a delivery, or what is left of one that was begun; as much as fits.
    #[inline]
    fn write_delivery(
        &self,
        messages: &Messages,
        page: &mut Page<'_>,
        plan: &mut WritePlan,
        delivery: &Delivery<'_>,
    ) -> Room {
        let layout = Layout::of(messages, delivery, self.negotiated.frame_max);
        let total = layout.total();
        let room = (page.out.len() - page.at) as u64;
        // What does not fit now but into a page of its own waits for that.
        if plan.begun.is_none() && total > room && total <= page.out.len() as u64 {
            return Room::Full;
        }
        let begun = plan.begun.unwrap_or(Begun { sent: 0, body_at: None });
        let after = write_part(messages, delivery, layout, begun, total, page.room());
        page.at += (after.sent - begun.sent) as usize;
        if after.sent == total {
            plan.begun = None;
            plan.deliveries += 1;
            page.note(plan, What::Delivered);
            return Room::Left;
        }
        if after.sent > begun.sent {
            plan.begun = Some(after);
            page.note(plan, What::Piece);
        }
        Room::Full
    }

    fn has_asides(&self) -> bool {
        self.output.is_heartbeat_due
            || self.blocked.is_due()
            || !self.output.replies.is_empty()
            || !self.confirms.to_tell.is_empty()
    }

    /// Everything but deliveries, at a frame boundary in front of `front`.
    fn write_asides(
        &mut self,
        context: &mut Context<'_>,
        page: &mut Page<'_>,
        plan: &mut WritePlan,
        front: Option<&Delivery<'_>>,
    ) -> Room {
        if (self.output.is_heartbeat_due || self.blocked.is_due())
            && self.write_small_asides(page, plan) == Room::Full
        {
            return Room::Full;
        }
        let content_on = match front {
            Some(delivery) if plan.begun.is_some() => delivery.channel,
            _ => self.output.cut_channel,
        };
        let gone = front.map_or(u64::MAX, |delivery| delivery.sequence.saturating_sub(1));
        while let Some(record) = Record::at(plan, plan.replies_at) {
            let len = record.len();
            let is_inside = content_on != 0 && record.channel() == content_on;
            if is_inside && content_on == self.output.cut_channel {
                // Nobody will read it: nothing but the close is left to say.
                page.note(plan, What::Reply(len as u16));
                plan.replies_at += len;
                continue;
            }
            if record.order > gone || is_inside {
                return Room::Left;
            }
            if plan.replies_at + len == self.output.replies.len() && self.phase != Phase::Open {
                // The last words are the close; confirms go before it.
                if self.write_confirms(context, page, plan, gone, content_on) == Room::Full {
                    return Room::Full;
                }
            }
            if page.out.len() - page.at < len - RECORD_HEAD_BYTES || !plan.has_room() {
                return Room::Full;
            }
            let frame = plan.replies_at + RECORD_HEAD_BYTES..plan.replies_at + len;
            page.copy(&plan.replies[frame]);
            page.note(plan, What::Reply(len as u16));
            plan.replies_at += len;
        }
        if plan.replies_at < self.output.replies.len() {
            // More than was looked at; the next fill has them.
            return Room::Full;
        }
        self.write_confirms(context, page, plan, gone, content_on)
    }

    fn write_small_asides(&mut self, page: &mut Page<'_>, plan: &mut WritePlan) -> Room {
        if page.out.len() - page.at < 2 * SMALL_FRAME_BYTES_MAX || !plan.has_room() {
            return Room::Full;
        }
        if core::mem::replace(&mut self.output.is_heartbeat_due, false) {
            page.copy(&HEARTBEAT_FRAME);
            page.note(plan, What::Heartbeat);
        }
        if self.blocked.is_due() {
            self.blocked.told = !self.blocked.told;
            let (frame, len) = small_frame(0, &blocked_method(self.blocked));
            page.copy(&frame[..len]);
            page.note(plan, What::Blocked);
        }
        Room::Left
    }

    /// The confirms of all channels, but those that must wait for returns or for their channel's content.
    fn write_confirms(
        &mut self,
        context: &mut Context<'_>,
        page: &mut Page<'_>,
        plan: &mut WritePlan,
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
                let is_full = page.out.len() - page.at < SMALL_FRAME_BYTES_MAX;
                if is_full || !plan.has_room() || plan.told.len() == TOLD_MAX {
                    return Room::Full;
                }
                if let Some((run, before)) = record.confirms.take() {
                    let (frame, len) = small_frame(number, &run.method(before));
                    page.copy(&frame[..len]);
                    page.note(plan, What::Confirm(plan.told.len() as u32));
                    context.pools.confirmed += run.taken_after(before);
                    plan.told.push(SentConfirm { slot, number, run, before });
                }
            }
            self.list_to_confirm(context, slot);
            slot = next;
        }
        Room::Left
    }

    /// Whether there is something to write besides what waits in the outbox.
    pub const fn has_output(&self) -> bool {
        self.has_remainder()
            || self.output.is_heartbeat_due
            || self.blocked.is_due()
            || !self.output.replies.is_empty()
            || !self.confirms.to_tell.is_empty()
    }

    /// Whether something begun is not fully written; see also [`Self::has_begun_delivery`].
    pub const fn has_remainder(&self) -> bool {
        self.output.partial.start_left > 0
            || self.output.partial.small_len > 0
            || self.output.partial.reply_sent > 0
            || self.output.begun.is_some()
    }

    /// Whether the front delivery of the outbox is partly written. It must stay there until it is reported
    /// as sent, also when its channel is closed: the frames are a promise.
    pub const fn has_begun_delivery(&self) -> bool {
        self.output.begun.is_some()
    }
}

/// A reply as it lies in the queue.
struct Record<'r> {
    order: u64,
    frame: &'r [u8],
}

impl<'r> Record<'r> {
    /// The record at an offset of those looked at; `None` when it is not there in full.
    fn at(plan: &'r WritePlan, at: usize) -> Option<Self> {
        let rest = plan.replies.get(at..plan.replies_len)?;
        let (order, rest) = rest.split_first_chunk()?;
        let (len, rest) = rest.split_first_chunk()?;
        let frame = rest.get(..usize::from(u16::from_be_bytes(*len)))?;
        Some(Self { order: u64::from_be_bytes(*order), frame })
    }

    const fn len(&self) -> usize {
        RECORD_HEAD_BYTES + self.frame.len()
    }

    fn channel(&self) -> u16 {
        match self.frame {
            [_, high, low, ..] => u16::from_be_bytes([*high, *low]),
            _ => 0,
        }
    }
}
