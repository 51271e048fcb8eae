//! What a fill wrote, stretch by stretch, and what becomes of what a socket did not take.
//!
//! Why it exists: a socket takes any part of a fill. When it takes all of it, which is the usual case, the
//! totals are made true at once; otherwise the stretches are walked: those that have gone are committed, the
//! one that was cut leaves a rest, and those behind it are as if they had never been written.
//!
//! What always holds: whatever `count` the socket took, what is written next goes on with the very next
//! octet.

use super::connection::Connection;
use super::context::Context;
use super::deliveries::Begun;
use super::write_plan::{PartialFrame, Sent, Stretch, What, WritePlan, blocked_method, small_frame};
use crate::wire::HEARTBEAT_FRAME;

impl Connection {
    /// The socket took the first `count` bytes of the last fill; this must follow every fill, also with 0.
    /// Returns what has left the outbox by that.
    pub fn written(&mut self, context: &mut Context<'_>, count: usize, plan: &WritePlan) -> Sent {
        let deliveries = self.settle_fill(context, count, plan);
        Sent { deliveries, is_first_unseen: plan.is_first_unseen && deliveries > 0 }
    }

    fn settle_fill(&mut self, context: &mut Context<'_>, count: usize, plan: &WritePlan) -> u32 {
        if count > 0 {
            self.timing.wrote = context.now;
        }
        if count == plan.filled && plan.is_resumed {
            self.output.partial = PartialFrame::default();
            self.output.replies.consume(&mut context.pools.replies, plan.replies_at);
            self.output.begun = plan.begun;
            return plan.deliveries;
        }
        let is_gone = |stretch: &&Stretch| stretch.end as usize <= count;
        let whole = plan.stretches.iter().take_while(is_gone).count();
        let deliveries = self.commit(context, &plan.stretches[..whole]);
        let start = whole.checked_sub(1).map_or(0, |last| plan.stretches[last].end as usize);
        let mut lost = &plan.stretches[whole..];
        if let [cut, rest @ ..] = lost
            && count > start
        {
            self.cut(plan, cut.what, count - start);
            lost = rest;
        }
        for stretch in lost.iter().rev() {
            self.restore(context, plan, stretch.what);
        }
        deliveries
    }

    /// These stretches have gone.
    fn commit(&mut self, context: &mut Context<'_>, gone: &[Stretch]) -> u32 {
        let (mut start, mut deliveries) = (0, 0);
        for stretch in gone {
            let len = (stretch.end - start) as usize;
            start = stretch.end;
            match stretch.what {
                What::Start => self.output.partial.start_left -= len as u16,
                What::Small => self.output.partial.drop_small(len),
                What::Heartbeat | What::Blocked | What::Confirm(_) => {}
                What::Reply(record) => {
                    self.output.replies.consume(&mut context.pools.replies, record.into());
                    self.output.partial.reply_sent = 0;
                }
                What::ReplyPart => self.output.partial.reply_sent += len as u16,
                What::Piece => self.advance_begun(len),
                What::Delivered => {
                    self.output.begun = None;
                    deliveries += 1;
                }
            }
        }
        deliveries
    }

    /// Of this stretch the first `count` octets have gone, and not all.
    fn cut(&mut self, plan: &WritePlan, what: What, count: usize) {
        match what {
            What::Start => self.output.partial.start_left -= count as u16,
            What::Small => self.output.partial.drop_small(count),
            What::Heartbeat => self.output.partial.set_small(&HEARTBEAT_FRAME[count..]),
            What::Blocked => {
                let (frame, len) = small_frame(0, &blocked_method(self.blocked));
                self.output.partial.set_small(&frame[count..len]);
            }
            What::Confirm(index) => {
                let told = plan.told[index as usize];
                let (frame, len) = small_frame(told.number, &told.run.method(told.before));
                self.output.partial.set_small(&frame[count..len]);
            }
            What::Reply(_) | What::ReplyPart => self.output.partial.reply_sent += count as u16,
            What::Piece | What::Delivered => self.advance_begun(count),
        }
    }

    fn advance_begun(&mut self, count: usize) {
        let sent = self.output.begun.map_or(0, |begun| begun.sent) + count as u64;
        self.output.begun = Some(Begun { sent, body_at: None });
    }

    /// This stretch has not gone at all.
    fn restore(&mut self, context: &mut Context<'_>, plan: &WritePlan, what: What) {
        match what {
            What::Heartbeat => self.output.is_heartbeat_due = true,
            What::Blocked => self.blocked.told = !self.blocked.told,
            What::Confirm(index) => {
                let told = plan.told[index as usize];
                context.pools.confirmed -= told.run.taken_after(told.before);
                context.pools.channels[told.slot].confirms.take_back(told.run, told.before);
                self.list_to_confirm(context, told.slot);
            }
            What::Start | What::Small | What::Reply(_) | What::ReplyPart | What::Piece | What::Delivered => {}
        }
    }
}
