//! What input led to: for whoever drives a connection, and inside it for one frame.

use super::channel::{NONE, Slot};
use super::frame_faults::hard_fault;
use leveret_amqp::Method;
use leveret_core::command::{ChannelId, Command};
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::mem::PoolFull;

/// Why input stands still although there is some.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Suspension {
    /// The peer does not read its replies: go on when some of the output has been written.
    ReplySpace,
    /// There is no room for the message it publishes: go on when messages have left the broker.
    ContentRoom(PoolFull),
}

/// What input led to.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Step<'a> {
    /// Every whole frame has been handled.
    NeedMore,
    /// Apply it, [`super::Connection::answer`], and call [`super::Connection::next`] again.
    Command {
        /// The broker's channel; `None` for commands of the connection itself.
        channel: Option<ChannelId>,
        /// What the peer asks for.
        command: Command<'a>,
    },
    /// Input stands still for now.
    Suspended(Suspension),
    /// Nothing more will be read: write what there is to write, then close the socket.
    Finished,
}

/// What handling one frame led to.
pub(super) enum Verdict<'a> {
    /// The frame is handled.
    Done,
    /// It cannot be begun now and stays in the input.
    Wait(Suspension),
    /// It is handled, and the broker is asked.
    Step(Step<'a>),
    /// A method on an open channel that becomes a command with names.
    Named(Slot, Method<'a>),
    /// The peer's mistake, with the method at fault and the channel, if it is one that is open.
    Fault(Fault, (u16, u16), Slot),
}

impl Verdict<'_> {
    pub(super) fn hard(code: ReplyCode, text: core::fmt::Arguments<'_>, id: (u16, u16)) -> Self {
        Self::Fault(hard_fault(code, text), id, NONE)
    }
}

/// The body frame that is being streamed.
#[derive(Clone, Copy, Debug)]
pub(super) struct BodyFrame {
    /// Whose content it belongs to; [`NONE`] when it is only read over.
    pub(super) slot: Slot,
    /// Octets of payload still to come; the end octet follows.
    pub(super) left: u32,
    pub(super) is_begun: bool,
}

impl BodyFrame {
    pub(super) const NONE: Self = Self { slot: NONE, left: 0, is_begun: false };
}

/// basic.publish, the method that contents belong to.
pub(super) const PUBLISH: (u16, u16) = (60, 40);
