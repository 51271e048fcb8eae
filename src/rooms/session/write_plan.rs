//! What one fill of the output buffer holds, stretch by stretch, so that it can be made true later.
//!
//! Always true: a stretch is noted for everything that is written, in its order; the loop owns one plan for
//! all connections, made once, and a fill ends before it could be full.

use super::channel::Slot;
use super::confirms::Run;
use super::deliveries::Begun;
use crate::time::Now;
use crate::wire::{Method, Writer};

/// Replies looked at in one fill, in octets.
pub(super) const REPLIES_AT_ONCE: usize = 4096;
/// The longest frame that is kept when it was cut: connection.blocked.
pub(super) const SMALL_FRAME_BYTES_MAX: usize = 32;
/// The shortest delivery: what a stretch stands for at least.
const DELIVERY_BYTES_MIN: usize = 46;
/// Confirms in one fill.
pub(super) const TOLD_MAX: usize = 1024;

/// connection.blocked and unblocked: told once per change, to clients that publish and want to know.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Blocked {
    pub(super) now: bool,
    pub(super) told: bool,
    pub(super) concerned: bool,
    /// The room that is missing is on the disk, not in memory.
    pub(super) is_for_disk: bool,
    /// Since when it is as it is now.
    pub(super) since: Now,
    /// It is so for long enough to be told: waiting counts at once.
    pub(super) lasts: bool,
}

impl Blocked {
    pub(super) const fn is_due(self) -> bool {
        self.lasts && self.differs()
    }

    pub(super) const fn differs(self) -> bool {
        (self.now && self.concerned) != self.told
    }
}

/// Rests of frames that are not deliveries.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct PartialFrame {
    /// Octets of connection.start that have not gone.
    pub(super) start_left: u16,
    /// Octets of the front reply that have gone.
    pub(super) reply_sent: u16,
    /// A small frame, or what is left of it.
    small: [u8; SMALL_FRAME_BYTES_MAX],
    pub(super) small_len: u8,
}

impl PartialFrame {
    pub(super) fn set_small(&mut self, octets: &[u8]) {
        let len = octets.len().min(SMALL_FRAME_BYTES_MAX);
        self.small[..len].copy_from_slice(&octets[..len]);
        self.small_len = len as u8;
    }

    pub(super) fn small(&self) -> &[u8] {
        &self.small[..self.small_len as usize]
    }

    pub(super) fn drop_small(&mut self, count: usize) {
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
pub(super) struct Stretch {
    pub(super) end: u32,
    pub(super) what: What,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct SentConfirm {
    pub(super) slot: Slot,
    pub(super) number: u16,
    pub(super) run: Run,
    pub(super) before: u64,
}

/// What has left the front of the outbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sent {
    /// So many deliveries.
    pub deliveries: u32,
    /// The first of them has left unwritten, for its channel was closed before any of it had gone. Only the
    /// front of an outbox can be left over from a closed channel, so it is never another.
    pub is_first_unseen: bool,
}

/// What one `Connection::fill` wrote, so that `Connection::written` can tell what has gone out.
/// The loop owns one, made once.
#[derive(Debug)]
pub struct WritePlan {
    pub(super) stretches: Vec<Stretch>,
    pub(super) told: Vec<SentConfirm>,
    pub(super) replies: Box<[u8]>,
    pub(super) replies_len: usize,
    pub(super) replies_at: usize,
    pub(super) filled: usize,
    pub(super) deliveries: u32,
    /// The first of those was not written and will not be: its channel is closed.
    pub(super) is_first_unseen: bool,
    pub(super) begun: Option<Begun>,
    /// The frame that was cut before is complete now.
    pub(super) is_resumed: bool,
}

impl WritePlan {
    /// Enough for every fill of a buffer of so many bytes.
    pub fn for_output_bytes(bytes: usize) -> Self {
        Self {
            stretches: Vec::with_capacity(bytes / DELIVERY_BYTES_MIN + TOLD_MAX + 16),
            told: Vec::with_capacity(TOLD_MAX),
            replies: vec![0; REPLIES_AT_ONCE].into_boxed_slice(),
            replies_len: 0,
            replies_at: 0,
            filled: 0,
            deliveries: 0,
            is_first_unseen: false,
            begun: None,
            is_resumed: false,
        }
    }

    /// Bytes that takes, for the memory table.
    pub const fn bytes(output_bytes: usize) -> usize {
        (output_bytes / DELIVERY_BYTES_MIN + TOLD_MAX + 16) * size_of::<Stretch>()
            + TOLD_MAX * size_of::<SentConfirm>()
            + REPLIES_AT_ONCE
    }

    pub(super) fn clear(&mut self, begun: Option<Begun>) {
        self.stretches.clear();
        self.told.clear();
        (self.replies_len, self.replies_at, self.filled, self.deliveries) = (0, 0, 0, 0);
        (self.begun, self.is_resumed, self.is_first_unseen) = (begun, false, false);
    }

    pub(super) const fn has_room(&self) -> bool {
        self.stretches.len() < self.stretches.capacity()
    }
}

/// `connection.blocked` with the reason that RabbitMQ gives, or `connection.unblocked`.
pub(super) const fn blocked_method(blocked: Blocked) -> Method<'static> {
    match (blocked.told, blocked.is_for_disk) {
        (true, false) => Method::ConnectionBlocked { reason: "low on memory" },
        (true, true) => Method::ConnectionBlocked { reason: "low on disk" },
        (false, _) => Method::ConnectionUnblocked {},
    }
}

/// A method that is known to be short, as a frame.
pub(super) fn small_frame(channel: u16, method: &Method<'_>) -> ([u8; SMALL_FRAME_BYTES_MAX], usize) {
    let mut frame = [0; SMALL_FRAME_BYTES_MAX];
    let mut writer = Writer::new(&mut frame);
    let written = method.emit_frame(channel, &mut writer);
    assert!(written.is_ok(), "{} is not short", method.name());
    let len = writer.at();
    (frame, len)
}
