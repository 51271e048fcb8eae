//! What a fill wrote, stretch by stretch, and what becomes of what a socket did not take.
//!
//! Why it exists: a socket takes any part of a fill. When it takes all of it, which is the usual case, the
//! totals are made true at once; otherwise the stretches are walked: those that have gone are committed, the
//! one that was cut leaves a rest, and those behind it are as if they had never been written.
//!
//! What always holds: whatever `count` the socket took, what is written next goes on with the very next
//! octet.

use super::channel::Slot;
use super::confirms::Run;
use super::deliveries::Begun;
use super::{Connection, Context};
use crate::wire::{HEARTBEAT_FRAME, Method, Writer};

/// Replies looked at in one fill, in octets.
pub(super) const REPLIES_AT_ONCE: usize = 4096;
/// The longest frame that is kept when it was cut: connection.blocked.
pub(super) const SMALL_FRAME_BYTES_MAX: usize = 32;
const BLOCKED_REASON: &str = "low on memory";
/// The shortest delivery: what a mark stands for at least.
const DELIVERY_BYTES_MIN: usize = 46;
/// Confirms in one fill.
pub(super) const TOLD_MAX: usize = 1024;

/// Rests of frames that are not deliveries.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Rest {
    /// Octets of connection.start that have not gone.
    pub(super) start_left: u16,
    /// Octets of the front reply that have gone.
    pub(super) reply_sent: u16,
    /// A small frame, or what is left of it.
    small: [u8; SMALL_FRAME_BYTES_MAX],
    pub(super) small_len: u8,
}

impl Rest {
    pub(super) fn set_small(&mut self, octets: &[u8]) {
        let len = octets.len().min(SMALL_FRAME_BYTES_MAX);
        self.small[..len].copy_from_slice(&octets[..len]);
        self.small_len = len as u8;
    }

    pub(super) fn small(&self) -> &[u8] {
        &self.small[..self.small_len as usize]
    }

    fn drop_small(&mut self, count: usize) {
        self.small.copy_within(count..self.small_len as usize, 0);
        self.small_len -= count as u8;
    }
}

/// What a stretch of a fill is.
#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    Start,
    Small,
    Heartbeat,
    Blocked,
    /// A record of the replies, of so many octets; its frame from some byte on, up to its end.
    Reply(u16),
    /// Some of the frame of the first reply, but not up to its end.
    ReplyPart,
    /// The n-th confirm of this fill.
    Confirm(u32),
    /// Frames of a delivery that goes on.
    Piece,
    /// The last frames of a delivery.
    Delivered,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    pub(super) end: u32,
    pub(super) what: What,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    pub(super) slot: Slot,
    pub(super) number: u16,
    pub(super) run: Run,
    pub(super) before: u64,
}

/// What one [`Connection::fill`] wrote, so that [`Connection::written`] can tell what has gone out.
/// The loop owns one, made once.
#[derive(Debug)]
pub struct Marks {
    pub(super) marks: Vec<Mark>,
    pub(super) told: Vec<Told>,
    pub(super) replies: Box<[u8]>,
    pub(super) replies_len: usize,
    pub(super) replies_at: usize,
    pub(super) filled: usize,
    pub(super) deliveries: u32,
    pub(super) begun: Option<Begun>,
    /// The frame that was cut before is complete now.
    pub(super) is_resumed: bool,
}

impl Marks {
    /// Enough for every fill of a buffer of so many bytes.
    pub fn for_output_bytes(bytes: usize) -> Self {
        Self {
            marks: Vec::with_capacity(bytes / DELIVERY_BYTES_MIN + TOLD_MAX + 16),
            told: Vec::with_capacity(TOLD_MAX),
            replies: vec![0; REPLIES_AT_ONCE].into_boxed_slice(),
            replies_len: 0,
            replies_at: 0,
            filled: 0,
            deliveries: 0,
            begun: None,
            is_resumed: false,
        }
    }

    /// Bytes that takes, for the memory table.
    pub const fn bytes(output_bytes: usize) -> usize {
        (output_bytes / DELIVERY_BYTES_MIN + TOLD_MAX + 16) * size_of::<Mark>()
            + TOLD_MAX * size_of::<Told>()
            + REPLIES_AT_ONCE
    }

    pub(super) fn clear(&mut self, begun: Option<Begun>) {
        self.marks.clear();
        self.told.clear();
        (self.replies_len, self.replies_at, self.filled, self.deliveries) = (0, 0, 0, 0);
        (self.begun, self.is_resumed) = (begun, false);
    }

    pub(super) const fn has_room(&self) -> bool {
        self.marks.len() < self.marks.capacity()
    }
}

impl Connection {
    /// The socket took the first `count` bytes of the last fill; this must follow every fill, also with 0.
    /// Returns how many deliveries, the front ones of the outbox, are completely sent now.
    pub fn written(&mut self, context: &mut Context<'_>, count: usize, marks: &Marks) -> u32 {
        if count > 0 {
            self.wrote = context.now;
        }
        if count == marks.filled && marks.is_resumed {
            self.rest = Rest::default();
            self.replies.consume(&mut context.pools.replies, marks.replies_at);
            self.begun = marks.begun;
            return marks.deliveries;
        }
        let is_gone = |mark: &&Mark| mark.end as usize <= count;
        let whole = marks.marks.iter().take_while(is_gone).count();
        let deliveries = self.commit(context, &marks.marks[..whole]);
        let start = whole.checked_sub(1).map_or(0, |last| marks.marks[last].end as usize);
        let mut lost = &marks.marks[whole..];
        if let [cut, rest @ ..] = lost
            && count > start
        {
            self.cut(marks, cut.what, count - start);
            lost = rest;
        }
        for mark in lost.iter().rev() {
            self.restore(context, marks, mark.what);
        }
        deliveries
    }

    /// These stretches have gone.
    fn commit(&mut self, context: &mut Context<'_>, gone: &[Mark]) -> u32 {
        let (mut start, mut deliveries) = (0, 0);
        for mark in gone {
            let len = (mark.end - start) as usize;
            start = mark.end;
            match mark.what {
                What::Start => self.rest.start_left -= len as u16,
                What::Small => self.rest.drop_small(len),
                What::Heartbeat | What::Blocked | What::Confirm(_) => {}
                What::Reply(record) => {
                    self.replies.consume(&mut context.pools.replies, record.into());
                    self.rest.reply_sent = 0;
                }
                What::ReplyPart => self.rest.reply_sent += len as u16,
                What::Piece => self.advance_begun(len),
                What::Delivered => {
                    self.begun = None;
                    deliveries += 1;
                }
            }
        }
        deliveries
    }

    /// Of this stretch the first `count` octets have gone, and not all.
    fn cut(&mut self, marks: &Marks, what: What, count: usize) {
        match what {
            What::Start => self.rest.start_left -= count as u16,
            What::Small => self.rest.drop_small(count),
            What::Heartbeat => self.rest.set_small(&HEARTBEAT_FRAME[count..]),
            What::Blocked => {
                let (frame, len) = small_frame(0, &blocked_method(self.blocked.told));
                self.rest.set_small(&frame[count..len]);
            }
            What::Confirm(index) => {
                let told = marks.told[index as usize];
                let (frame, len) = small_frame(told.number, &told.run.method(told.before));
                self.rest.set_small(&frame[count..len]);
            }
            What::Reply(_) | What::ReplyPart => self.rest.reply_sent += count as u16,
            What::Piece | What::Delivered => self.advance_begun(count),
        }
    }

    fn advance_begun(&mut self, count: usize) {
        let sent = self.begun.map_or(0, |begun| begun.sent) + count as u64;
        self.begun = Some(Begun { sent, body_at: None });
    }

    /// This stretch has not gone at all.
    fn restore(&mut self, context: &mut Context<'_>, marks: &Marks, what: What) {
        match what {
            What::Heartbeat => self.heartbeat_due = true,
            What::Blocked => self.blocked.told = !self.blocked.told,
            What::Confirm(index) => {
                let told = marks.told[index as usize];
                context.pools.channels[told.slot].confirms.take_back(told.run, told.before);
                self.list_to_confirm(context, told.slot);
            }
            What::Start | What::Small | What::Reply(_) | What::ReplyPart | What::Piece | What::Delivered => {}
        }
    }
}

pub(super) const fn blocked_method(blocked: bool) -> Method<'static> {
    if blocked {
        Method::ConnectionBlocked { reason: BLOCKED_REASON }
    } else {
        Method::ConnectionUnblocked {}
    }
}

/// A method that is known to be short, as a frame.
pub(super) fn small_frame(channel: u16, method: &Method<'_>) -> ([u8; SMALL_FRAME_BYTES_MAX], usize) {
    let mut frame = [0; SMALL_FRAME_BYTES_MAX];
    let mut writer = Writer::new(&mut frame);
    let written = method.emit_frame(channel, &mut writer);
    debug_assert!(written.is_ok(), "{} is not short", method.name());
    let len = writer.at();
    (frame, len)
}
