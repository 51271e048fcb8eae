//! The memory that is kept free to read messages back from the log.
//!
//! Always true: as long as a message is only in the log, there is room to read back the largest such message.

use leveret_core::limits::Limits;
use leveret_core::mem::Messages;

/// Queues that one step looks at.
const QUEUES_STEP: usize = 64;

/// The memory kept to read back the largest message that only the log has: that message may stand before
/// transient ones that fill the rest.
#[derive(Debug)]
pub(crate) struct ReadBackRoom {
    /// Bytes of the largest message that only the log has, or of one that has left since; 0 when there is
    /// none.
    bytes: u64,
    /// Bytes of the largest message there can be.
    message_bytes_max: u64,
    /// Bytes that names and properties may add to a body.
    frame_bytes: u64,
    /// Where the search for a queue with messages that only the log has goes on.
    hand: usize,
    /// Places in a row whose queues have no such message.
    clear: usize,
}

impl ReadBackRoom {
    pub(crate) fn new(limits: &Limits) -> Self {
        // Exchange and routing key are short strings.
        let frame_bytes = u64::from(limits.frame_max) + 512;
        let message_bytes_max = u64::from(limits.message_size_max) + frame_bytes;
        Self { bytes: 0, message_bytes_max, frame_bytes, hand: 0, clear: 0 }
    }

    /// Notes that from now on only the log has a message of this many bytes.
    pub(crate) fn need(&mut self, bytes: u64) {
        self.bytes = self.bytes.max(bytes);
        self.clear = 0;
    }

    /// Notes that only the log has a message of which just the body's size is known; 0 when there is none.
    pub(crate) fn need_for_body(&mut self, body_bytes: u64) {
        if body_bytes > 0 {
            self.need(body_bytes + self.frame_bytes);
        }
    }

    /// Keeps the room, as long as one of the queues at these places `has_absent` messages; says whether the
    /// search for one goes on.
    pub(crate) fn keep(
        &mut self,
        messages: &mut Messages,
        places: usize,
        has_absent: impl Fn(usize) -> bool,
    ) -> bool {
        if self.bytes == 0 {
            return false;
        }
        for _ in 0..QUEUES_STEP {
            if has_absent(self.hand) {
                self.clear = 0;
                break;
            }
            self.hand = if self.hand + 1 < places { self.hand + 1 } else { 0 };
            self.clear += 1;
        }
        let is_needed = self.clear < places;
        if !is_needed {
            (self.bytes, self.clear) = (0, 0);
        }
        messages.keep_for_read_back(self.bytes, self.message_bytes_max);
        is_needed && self.clear > 0
    }
}
