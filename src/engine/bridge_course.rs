//! How a rule of a bridge goes on: as ever, waiting, or trying with one message; `bridge_wait` has what
//! follows from it.
//!
//! Always true: the range that pauses are taken from grows with each refusal, until something is taken.

use crate::bridge::Backoff;
use crate::time::Deadline;

/// How a rule goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Course {
    /// The rule goes on: nothing holds it up.
    #[default]
    Going,
    /// It takes nothing until then.
    Waiting(Deadline),
    /// It takes one message, to see whether that is taken now.
    Trying,
}

/// A rule's course, and how often it failed in a row.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RuleCourse {
    pub(super) course: Course,
    pub(super) backoff: Backoff,
}

/// How much a rule takes out of its queue here at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Appetite {
    /// It has no consumer.
    #[default]
    Nothing,
    /// One message.
    One,
    /// Whatever the window holds.
    All,
}
