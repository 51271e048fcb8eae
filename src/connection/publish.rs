//! Publishing: `basic.publish`, a content header and body frames become one message.
//!
//! ```text
//!   None ─ basic.publish → Header ─ content header → Body ─ body frames → (complete) → None
//!                                        └─ no body ──────────────────────────┘
//! ```
//!
//! # Invariants
//! - Each step reserves either all the memory that it needs or none.
//! - If a content is refused (too large, no memory, channel closed), its frames are still parsed and dropped, so that the
//!   frames after it are read correctly.
//! - A content may wait for memory only if the connection has no other incomplete content. Otherwise
//!   connections could wait for memory that the incomplete contents of the others occupy.

use leveret_amqp::{BASIC_CLASS, ContentHeader, Properties, WireError};
use leveret_core::command::{Command, PublishCommand};
use leveret_core::error::{Advice, Fault, ReplyCode};
use leveret_core::mem::{MessageFlags, MessageId, PoolFull, Share};

use super::channel::{ChannelState, NONE, Slot};
use super::connection::{Connection, Context};
use super::input::{FrameResult, InputStep, PUBLISH, Suspension};
use super::methods::Pending;

impl Connection {
    /// Handles basic.publish on an open channel on which no content is arriving.
    pub(super) fn begin_publish<'a>(
        &mut self,
        context: &mut Context<'_>,
        slot: Slot,
        exchange: &str,
        routing_key: &[u8],
        flags: PublishFlags,
    ) -> FrameResult<'a> {
        let record = &context.pools.channels[slot];
        if !record.confirms.has_room() {
            return FrameResult::Wait(Suspension::ReplySpace);
        }
        self.blocked.wants_notification = self.capabilities.connection_blocked;
        let message = match context.messages.begin(exchange, routing_key, context.share) {
            Ok(message) => message,
            Err(full) if self.may_wait_for_memory(context, 0) => {
                return FrameResult::Wait(Suspension::ContentRoom(full));
            }
            Err(full) => {
                self.set_content(context, slot, Content::Header { message: None, flags: PublishFlags::NONE });
                return FrameResult::Fault(pool_full_fault(full), PUBLISH, slot);
            }
        };
        self.set_content(context, slot, Content::Header { message: Some(message), flags });
        FrameResult::Done
    }

    /// Handles basic.publish on a channel that is being closed: the content will be dropped.
    pub(super) fn skip_publish(&mut self, context: &mut Context<'_>, slot: Slot) {
        self.set_content(context, slot, Content::Header { message: None, flags: PublishFlags::NONE });
    }

    /// Handles a content header on channel `number`.
    pub(super) fn handle_header<'a>(
        &mut self,
        context: &mut Context<'_>,
        number: u16,
        payload: &[u8],
    ) -> FrameResult<'a> {
        let Some(slot) = context.pools.channels.find(&mut self.channels, self.id, number) else {
            return expected_method();
        };
        let (message, flags) = match context.pools.channels[slot].content {
            Content::Header { message, flags } => (message, flags),
            Content::Body { .. } => return expected_body(),
            Content::None | Content::Complete { .. } => return expected_method(),
        };
        let header = match read_header(payload) {
            Ok(header) => header,
            Err(result) => return result,
        };
        let mut fault = None;
        let mut kept = message;
        if let Some(id) = message {
            match self.reserve(context, id, header) {
                Ok(()) => {}
                Err(ReserveError::Wait(full)) => return FrameResult::Wait(Suspension::ContentRoom(full)),
                Err(ReserveError::Fault(why)) => {
                    context.messages.release(id);
                    (kept, fault) = (None, Some(why));
                }
            }
        }
        let missing = header.body_len;
        self.set_content(context, slot, Content::Body { message: kept, flags, missing });
        context.pools.channels[slot].body_begun = context.now;
        if let Some(fault) = fault {
            if missing == 0 {
                self.set_content(context, slot, Content::None);
            }
            return FrameResult::Fault(fault, PUBLISH, slot);
        }
        if missing == 0 { self.complete(context, slot, kept, flags) } else { FrameResult::Done }
    }

    /// Reserves the memory for the properties and the body of a message.
    ///
    /// # Errors
    /// The message is larger than `message_size_max`, or there is not enough memory. Then nothing is reserved.
    fn reserve(
        &self,
        context: &mut Context<'_>,
        id: MessageId,
        header: ContentHeader<'_>,
    ) -> Result<(), ReserveError> {
        let size_max = context.settings.message_size_max;
        let body_len = match u32::try_from(header.body_len) {
            Ok(len) if len <= size_max => len,
            _ => {
                let fault = Fault::new(
                    ReplyCode::PreconditionFailed,
                    format_args!(
                        "message size {} is larger than configured max size {size_max} (message_size_max in this \
                         broker's configuration)",
                        header.body_len
                    ),
                );
                return Err(ReserveError::Fault(fault.advising(Advice::RaiseMessageSize)));
            }
        };
        let properties = header.properties;
        let reserved = context.messages.reserve_content(
            id,
            properties.as_bytes(),
            message_flags(properties),
            body_len,
            context.share,
        );
        reserved.map_err(|full| {
            // One incomplete content is allowed: this one.
            if self.may_wait_for_memory(context, 1) {
                ReserveError::Wait(full)
            } else {
                ReserveError::Fault(pool_full_fault(full))
            }
        })
    }

    /// Returns whether a publish may wait until memory is free. It may not if the connection has more than
    /// `allowed_contents` incomplete contents, or may use more than the ordinary share. It could then wait for memory
    /// that it occupies itself.
    fn may_wait_for_memory(&self, context: &Context<'_>, allowed_contents: u16) -> bool {
        context.share == Share::Ordinary && self.channels.contents <= allowed_contents
    }

    /// Appends bytes of a body frame to the message of a channel. The caller has checked that they are not more than the
    /// header has announced. `slot` is [`NONE`] for a frame that is dropped.
    #[inline]
    pub(super) fn append_body(&mut self, context: &mut Context<'_>, slot: Slot, octets: &[u8]) {
        if slot == NONE {
            return;
        }
        let record = &mut context.pools.channels[slot];
        if let Content::Body { message, missing, .. } = &mut record.content {
            *missing -= octets.len() as u64;
            record.progress = context.now;
            if let Some(id) = message {
                context.messages.append_body(*id, octets);
            }
        }
    }

    /// Handles the end of a body frame.
    pub(super) fn body_frame_complete(
        &mut self,
        context: &mut Context<'_>,
        slot: Slot,
    ) -> FrameResult<'static> {
        if slot == NONE {
            return FrameResult::Done;
        }
        match context.pools.channels[slot].content {
            Content::Body { message, flags, missing: 0 } => self.complete(context, slot, message, flags),
            _ => FrameResult::Done,
        }
    }

    /// Handles the end of a content. `message` is `None` if the content was dropped.
    #[inline]
    fn complete<'a>(
        &mut self,
        context: &mut Context<'_>,
        slot: Slot,
        message: Option<MessageId>,
        flags: PublishFlags,
    ) -> FrameResult<'a> {
        let Some(message) = message else {
            self.set_content(context, slot, Content::None);
            if context.pools.channels[slot].state == ChannelState::Ended {
                self.drop_channel(context, slot);
            }
            return FrameResult::Done;
        };
        context.messages.finish(message);
        if flags.immediate {
            context.messages.release(message);
            self.set_content(context, slot, Content::None);
            return FrameResult::hard(ReplyCode::NotImplemented, format_args!("immediate=true"), PUBLISH);
        }
        self.set_content(context, slot, Content::Complete { message, flags });
        self.publish(context, slot).map_or(FrameResult::Done, FrameResult::InputStep)
    }

    /// Returns the step that passes a complete message to the broker; `None` if the channel has none or is not open.
    fn publish(&mut self, context: &Context<'_>, slot: Slot) -> Option<InputStep<'static>> {
        let record = &context.pools.channels[slot];
        let (ChannelState::Open(channel), Content::Complete { message, flags }) =
            (record.state, record.content)
        else {
            return None;
        };
        self.input.pending = Pending::method(PUBLISH, slot, true);
        let command = PublishCommand::Publish { message, mandatory: flags.mandatory };
        Some(InputStep::Command(Command::Publish(channel, command)))
    }

    /// Returns the step that passes a complete message to the broker again, if the broker had no capacity for one.
    pub(super) fn retry_publish(&mut self, context: &Context<'_>) -> Option<InputStep<'static>> {
        if self.input.retry_publish == NONE {
            return None;
        }
        let slot = core::mem::replace(&mut self.input.retry_publish, NONE);
        self.publish(context, slot)
    }

    /// Records that the broker has accepted or refused the message of a channel.
    #[inline]
    pub(super) fn clear_content(&mut self, context: &mut Context<'_>, slot: Slot) {
        self.set_content(context, slot, Content::None);
    }

    /// Returns RabbitMQ's error for a method that arrives before the content of its channel is complete; `None` if no
    /// content is arriving.
    #[inline]
    pub(super) fn misplaced_method<'a>(content: Content) -> Option<FrameResult<'a>> {
        match content {
            Content::None => None,
            Content::Header { .. } => Some(expected_header()),
            Content::Body { .. } | Content::Complete { .. } => Some(expected_body()),
        }
    }

    /// Releases the message of a channel's content. Frames that still arrive for it are dropped.
    pub(super) fn drop_content(&mut self, context: &mut Context<'_>, slot: Slot) {
        let (content, message) = match context.pools.channels[slot].content {
            Content::None => return,
            Content::Header { message, flags } => (Content::Header { message: None, flags }, message),
            Content::Body { message, flags, missing } => {
                (Content::Body { message: None, flags, missing }, message)
            }
            Content::Complete { message, .. } => (Content::None, Some(message)),
        };
        if let Some(message) = message {
            context.messages.release(message);
        }
        self.set_content(context, slot, content);
    }

    /// Sets the state of a channel's content, and updates the number of contents with a message.
    #[inline]
    fn set_content(&mut self, context: &mut Context<'_>, slot: Slot, content: Content) {
        let record = &mut context.pools.channels[slot];
        let before = core::mem::replace(&mut record.content, content);
        record.progress = context.now;
        match (before.has_message(), content.has_message()) {
            (false, true) => self.channels.contents += 1,
            (true, false) => self.channels.contents -= 1,
            _ => {}
        }
    }
}

/// Returns RabbitMQ's error for a body frame that is not expected, or is longer than the rest of the body.
#[cold]
pub(super) fn misplaced_body<'a>(content: Content) -> FrameResult<'a> {
    match content {
        Content::Header { .. } => expected_header(),
        Content::Body { missing, .. } => FrameResult::hard(
            ReplyCode::FrameError,
            format_args!("content body is larger than announced: {missing} octets were left"),
            PUBLISH,
        ),
        Content::None | Content::Complete { .. } => expected_method(),
    }
}

/// Why no memory was reserved for a content.
enum ReserveError {
    /// This pool is full, and the content may wait for it.
    Wait(PoolFull),
    /// The content is refused with this error.
    Fault(Fault),
}

/// Parses a content header.
///
/// # Errors
/// RabbitMQ's error for the invalid header.
fn read_header<'p>(payload: &'p [u8]) -> Result<ContentHeader<'p>, FrameResult<'static>> {
    let header = match ContentHeader::parse(payload) {
        Ok(header) => header,
        Err(WireError::UnexpectedClass(class)) if payload.get(2..4) == Some(&[0, 0]) => {
            let text = format_args!(
                "expected content header for class {BASIC_CLASS}, got one for class {class} instead"
            );
            return Err(FrameResult::hard(ReplyCode::UnexpectedFrame, text, PUBLISH));
        }
        Err(WireError::UnexpectedClass(_)) => return Err(expected_header()),
        Err(_) if payload.get(2..4) != Some(&[0, 0]) => return Err(expected_header()),
        Err(error) => {
            let text = format_args!("content header cannot be decoded: {error}");
            return Err(FrameResult::hard(ReplyCode::SyntaxError, text, PUBLISH));
        }
    };
    if header.weight == 0 { Ok(header) } else { Err(expected_header()) }
}

/// Returns the error for a publish that finds a full pool and may not wait for it.
#[cold]
fn pool_full_fault(full: PoolFull) -> Fault {
    Fault::new(
        ReplyCode::ResourceError,
        format_args!(
            "no memory for {} while this connection holds others: acknowledge earlier, or raise memory_limit",
            full.what()
        ),
    )
}

#[cold]
fn expected_method<'a>() -> FrameResult<'a> {
    let text = format_args!("expected method frame, got non method frame instead");
    FrameResult::hard(ReplyCode::UnexpectedFrame, text, (0, 0))
}

#[cold]
fn expected_header<'a>() -> FrameResult<'a> {
    let text =
        format_args!("expected content header for class {BASIC_CLASS}, got non content header frame instead");
    FrameResult::hard(ReplyCode::UnexpectedFrame, text, PUBLISH)
}

#[cold]
fn expected_body<'a>() -> FrameResult<'a> {
    let text = format_args!("expected content body, got non content body frame instead");
    FrameResult::hard(ReplyCode::UnexpectedFrame, text, PUBLISH)
}

/// How much of a channel's content has arrived. If `message` is `None`, the content is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Content {
    /// No content: a method comes next.
    None,
    /// The header comes next.
    Header { message: Option<MessageId>, flags: PublishFlags },
    /// This number of body bytes comes next.
    Body { message: Option<MessageId>, flags: PublishFlags, missing: u64 },
    /// The content is complete. The broker has not handled the message yet, or had no capacity for it.
    Complete { message: MessageId, flags: PublishFlags },
}

impl Content {
    /// Returns whether there is a message, which takes memory.
    #[inline]
    pub(super) const fn has_message(self) -> bool {
        matches!(
            self,
            Self::Header { message: Some(_), .. }
                | Self::Body { message: Some(_), .. }
                | Self::Complete { .. }
        )
    }
}

/// The flags of basic.publish.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct PublishFlags {
    pub(super) mandatory: bool,
    pub(super) immediate: bool,
}

impl PublishFlags {
    pub(super) const NONE: Self = Self { mandatory: false, immediate: false };
}

/// Returns the flags of a message with these properties.
pub fn message_flags(properties: Properties<'_>) -> MessageFlags {
    properties.message_flags()
}
