//! Reads from the log for somebody who looks at messages.
//!
//! Always true: one look is read at a time; the messages found are held until the caller takes them.

use crate::command::QueueId;
use crate::mem::MessageId;

/// A run of messages in the log, to be looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogRun {
    pub(crate) queue: QueueId,
    pub(crate) incarnation: u64,
    pub(crate) start: u64,
    pub(crate) count: u32,
    /// Messages with offsets below were delivered before.
    pub(crate) redelivered_below: u64,
}

/// A read from the log for somebody who looks at messages.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) number: u64,
    pub(crate) run: LogRun,
    pub(crate) state: LookState,
    pub(crate) found: Vec<(MessageId, bool)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LookState {
    Wanted,
    Reading,
    Done,
}

/// The looks under way, of which one is read at a time.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    pub(crate) list: Vec<Look>,
    pub(crate) last: u64,
}

impl Looks {
    /// Whether some look waits to be read.
    #[inline]
    pub(crate) fn is_wanted(&self) -> bool {
        !self.list.is_empty() && self.list.iter().any(|look| look.state == LookState::Wanted)
    }

    /// The look that is being read.
    pub(crate) fn reading(&mut self) -> Option<&mut Look> {
        self.list.iter_mut().find(|look| look.state == LookState::Reading)
    }
}
