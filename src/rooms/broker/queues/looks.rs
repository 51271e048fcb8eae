//! What somebody waits to look at, and what was read of it.
//!
//! Always true: one is being read at a time; what was found is held until whoever asked takes it.

use crate::command::QueueId;
use crate::mem::MessageId;

/// Messages in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogRun {
    pub(in crate::broker) queue: QueueId,
    pub(in crate::broker) incarnation: u64,
    pub(in crate::broker) start: u64,
    pub(in crate::broker) count: u32,
    /// Offsets below were delivered before.
    pub(in crate::broker) redelivered_below: u64,
}

/// What somebody waits to look at.
#[derive(Debug)]
pub(in crate::broker) struct Look {
    pub(in crate::broker) number: u64,
    pub(in crate::broker) run: LogRun,
    pub(in crate::broker) state: LookState,
    pub(in crate::broker) found: Vec<(MessageId, bool)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::broker) enum LookState {
    Wanted,
    Reading,
    Done,
}

/// The looks under way, of which one is being read at a time.
#[derive(Debug, Default)]
pub(in crate::broker) struct Looks {
    pub(in crate::broker) list: Vec<Look>,
    pub(in crate::broker) last: u64,
}

impl Looks {
    /// Whether something is to be read.
    #[inline]
    pub(in crate::broker) fn is_wanted(&self) -> bool {
        !self.list.is_empty() && self.list.iter().any(|look| look.state == LookState::Wanted)
    }

    /// The one that is being read.
    pub(in crate::broker) fn reading(&mut self) -> Option<&mut Look> {
        self.list.iter_mut().find(|look| look.state == LookState::Reading)
    }
}
