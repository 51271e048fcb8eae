//! What somebody waits to look at, and what was read of it.
//!
//! Always true: one is being read at a time; what was found is held until whoever asked takes it.

use crate::command::QueueId;
use crate::mem::MessageId;

/// Messages in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogRun {
    pub(crate) queue: QueueId,
    pub(crate) incarnation: u64,
    pub(crate) start: u64,
    pub(crate) count: u32,
    /// Offsets below were delivered before.
    pub(crate) redelivered_below: u64,
}

/// What somebody waits to look at.
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

/// The looks under way, of which one is being read at a time.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    pub(crate) list: Vec<Look>,
    pub(crate) last: u64,
}

impl Looks {
    /// Whether something is to be read.
    #[inline]
    pub(crate) fn is_wanted(&self) -> bool {
        !self.list.is_empty() && self.list.iter().any(|look| look.state == LookState::Wanted)
    }

    /// The one that is being read.
    pub(crate) fn reading(&mut self) -> Option<&mut Look> {
        self.list.iter_mut().find(|look| look.state == LookState::Reading)
    }
}
