//! What somebody waits to look at, and what was read of it.
//!
//! Always true: one is being read at a time; what was found is held until whoever asked takes it.

use crate::command::QueueId;
use crate::mem::MessageId;

/// Messages in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogRun {
    pub(super) queue: QueueId,
    pub(super) incarnation: u64,
    pub(super) start: u64,
    pub(super) count: u32,
    /// Offsets below were delivered before.
    pub(super) redelivered_below: u64,
}

/// What somebody waits to look at.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) number: u64,
    pub(super) run: LogRun,
    pub(super) state: LookState,
    pub(super) found: Vec<(MessageId, bool)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LookState {
    Wanted,
    Reading,
    Done,
}

/// The looks under way, of which one is being read at a time.
#[derive(Debug, Default)]
pub(super) struct Looks {
    pub(super) list: Vec<Look>,
    pub(super) last: u64,
}

impl Looks {
    /// Whether something is to be read.
    #[inline]
    pub(super) fn is_wanted(&self) -> bool {
        !self.list.is_empty() && self.list.iter().any(|look| look.state == LookState::Wanted)
    }

    /// The one that is being read.
    pub(super) fn reading(&mut self) -> Option<&mut Look> {
        self.list.iter_mut().find(|look| look.state == LookState::Reading)
    }
}
