//! What an upstream said, as the engine is told of it. A rule is named by its place in its direction.

use leveret_amqp::{Method, Properties};

use super::cause::Cause;
use super::own_id::OwnId;

/// What input led to.
#[derive(Debug)]
pub enum Event<'i> {
    /// Every whole frame was handled.
    NeedMore,
    /// The connection is open: channels can be opened.
    Open,
    /// Messages of a rule can flow; so many were in its queue there, if that was asked.
    Ready {
        /// Which rule.
        rule: usize,
        /// Messages that were in the queue there.
        depth: u32,
    },
    /// The upstream confirms, or refuses, what it was sent.
    Confirm {
        /// On the channel of which rule.
        rule: usize,
        /// The number of the message.
        number: u64,
        /// And all before it.
        multiple: bool,
        /// It is taken over.
        is_taken: bool,
    },
    /// A message came back: it reaches no queue there.
    Returned {
        /// On the channel of which rule.
        rule: usize,
        /// The code.
        code: u16,
        /// What it is known by, if it is one of ours.
        id: Option<OwnId>,
    },
    /// A message comes in; its header and body follow.
    Deliver {
        /// For which rule.
        rule: usize,
        /// Its tag there.
        tag: u64,
        /// It may have been delivered before.
        redelivered: bool,
        /// The exchange it was published to.
        exchange: &'i str,
        /// The key it was published with.
        key: &'i [u8],
    },
    /// The header of what comes in.
    Header {
        /// For which rule.
        rule: usize,
        /// Its properties.
        properties: Properties<'i>,
        /// So many octets of body follow.
        body_len: u64,
    },
    /// Some of the body of what comes in.
    Body(usize, &'i [u8]),
    /// The consumer of a rule is over, as was asked: nothing more comes in for it.
    Cancelled(usize),
    /// The upstream takes messages of a rule again, after a pause that it has asked for.
    Resumed(usize),
    /// The upstream has closed the channel of a rule, with this code, over a publish or over something else.
    Closed {
        /// Which rule.
        rule: usize,
        /// The code.
        code: u16,
        /// It was over a publish.
        over_publish: bool,
        /// In words.
        cause: Cause,
    },
    /// A rule's consumer there has ended, for its queue was deleted or moved; its channel is still there.
    QueueGone(usize, Cause),
    /// The link is over.
    Lost(Cause),
}

/// The link is over, for this reason.
#[cold]
pub(super) fn lost<'i>(words: core::fmt::Arguments<'_>) -> Event<'i> {
    Event::Lost(Cause::new(words))
}

/// The link is over, for the upstream has said this where it may not.
#[cold]
pub(super) fn misplaced<'i>(method: &Method<'_>) -> Event<'i> {
    lost(format_args!("{} where it has no place", method.name()))
}
