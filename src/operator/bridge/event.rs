//! What an upstream said, as the engine is told of it.

use crate::wire::Properties;

use super::cause::Cause;
use super::own_id::OwnId;

/// What input led to.
#[derive(Debug)]
pub enum Event<'i> {
    /// Every whole frame was handled.
    NeedMore,
    /// Messages can flow.
    Ready,
    /// The upstream confirms, or refuses, what it was sent.
    Confirm {
        /// The number of the message.
        number: u64,
        /// And all before it.
        multiple: bool,
        /// It is taken over.
        is_taken: bool,
    },
    /// A message came back: it reaches no queue there.
    Returned {
        /// The code.
        code: u16,
        /// What it is known by, if it is one of ours.
        id: Option<OwnId>,
    },
    /// A message comes in; its header and body follow.
    Deliver {
        /// Its tag there.
        tag: u64,
        /// It may have been delivered before.
        redelivered: bool,
        /// Which rule it is for.
        rule: usize,
        /// The exchange it was published to.
        exchange: &'i str,
        /// The key it was published with.
        key: &'i [u8],
    },
    /// The header of what comes in.
    Header {
        /// Its properties.
        properties: Properties<'i>,
        /// So many octets of body follow.
        body_len: u64,
    },
    /// Some of the body of what comes in.
    Body(&'i [u8]),
    /// The upstream ended the channel over a publish, with this code.
    PublishRefused(u16, Cause),
    /// A rule's consumer there has begun.
    Consuming(usize),
    /// A rule's queue there cannot be consumed, and the channel was ended over it.
    QueueRefused(usize, Cause),
    /// A rule's consumer there has ended, for its queue was deleted or moved; all else goes on.
    QueueGone(usize, Cause),
    /// The link is over.
    Lost(Cause),
}
