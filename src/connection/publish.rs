//! Publishes: a method, a header and a body become one message.
//!
//! ```text
//!   None ─ basic.publish → Header ─ content header → Body ─ body frames → (complete) → None
//!                                        └─ no body ──────────────────────────┘
//! ```
//!
//! # Invariants
//! - Each step reserves all the memory that it needs, or none.
//! - The frames of a refused content (too large, no memory, channel closed) are still counted, without a message.
//!   The frames behind it are therefore read correctly.
//! - A connection whose content waits for memory holds no other incomplete content. So it waits only for memory
//!   that others can free.

use leveret_amqp::{BASIC_CLASS, ContentHeader, Properties, WireError};
use leveret_core::command::Command;
use leveret_core::error::{Advice, Fault, ReplyCode};
use leveret_core::mem::{MessageFlags, MessageId, PoolFull, Share};

use super::channel::{ChannelState, NONE, Slot};
use super::connection::{Connection, Context};
use super::input::{InputStep, PUBLISH, Suspension, Verdict};
use super::methods::{CommandKind, Pending};

impl Connection {
    /// Handles basic.publish on an open channel without a content in progress.
    pub(super) fn begin_publish<'a>(
        &mut self,
        context: &mut Context<'_>,
        slot: Slot,
        exchange: &str,
        routing_key: &[u8],
        (mandatory, immediate): (bool, bool),
    ) -> Verdict<'a> {
        let record = &context.pools.channels[slot];
        if !record.confirms.has_room() {
            return Verdict::Wait(Suspension::ReplySpace);
        }
        self.blocked.concerned = self.capabilities.connection_blocked;
        let message = match context.messages.begin(exchange, routing_key, context.share) {
            Ok(message) => message,
            Err(full) if self.may_wait(context, 0) => {
                return Verdict::Wait(Suspension::ContentRoom(full));
            }
            Err(full) => {
                self.set_content(context, slot, Content::Header { message: None, flags: PublishFlags::NONE });
                return Verdict::Fault(no_room(full), PUBLISH, slot);
            }
        };
        let flags = PublishFlags { mandatory, immediate };
        self.set_content(context, slot, Content::Header { message: Some(message), flags });
        Verdict::Done
    }

    /// Handles basic.publish on a closing channel: its content is ignored.
    pub(super) fn skip_publish(&mut self, context: &mut Context<'_>, slot: Slot) {
        self.set_content(context, slot, Content::Header { message: None, flags: PublishFlags::NONE });
    }

    pub(super) fn handle_header<'a>(
        &mut self,
        context: &mut Context<'_>,
        number: u16,
        payload: &[u8],
    ) -> Verdict<'a> {
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
            Err(verdict) => return verdict,
        };
        let mut fault = None;
        let mut kept = message;
        if let Some(id) = message {
            match self.reserve(context, id, header) {
                Ok(()) => {}
                Err(Refusal::Wait(full)) => return Verdict::Wait(Suspension::ContentRoom(full)),
                Err(Refusal::Fault(why)) => {
                    context.messages.release(id);
                    (kept, fault) = (None, Some(why));
                }
            }
        }
        let missing = header.body_len;
        self.set_content(context, slot, Content::Body { message: kept, flags, missing });
        context.pools.channels[slot].begun = context.now;
        if let Some(fault) = fault {
            if missing == 0 {
                self.set_content(context, slot, Content::None);
            }
            return Verdict::Fault(fault, PUBLISH, slot);
        }
        if missing == 0 { self.complete(context, slot, kept, flags) } else { Verdict::Done }
    }

    /// Reserves all the memory that the message will need, or none.
    fn reserve(
        &self,
        context: &mut Context<'_>,
        id: MessageId,
        header: ContentHeader<'_>,
    ) -> Result<(), Refusal> {
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
                return Err(Refusal::Fault(fault.advising(Advice::RaiseMessageSize)));
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
            // This content is itself one of the incomplete ones.
            if self.may_wait(context, 1) { Refusal::Wait(full) } else { Refusal::Fault(no_room(full)) }
        })
    }

    /// Returns whether a publish may wait until others have freed memory. It may not if this connection itself holds
    /// memory that others wait for: other contents, or unsettled deliveries.
    fn may_wait(&self, context: &Context<'_>, own: u16) -> bool {
        context.share == Share::Ordinary && self.channels.contents <= own
    }

    /// Appends bytes of a body frame; their length was checked.
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
    pub(super) fn body_frame_complete(&mut self, context: &mut Context<'_>, slot: Slot) -> Verdict<'static> {
        if slot == NONE {
            return Verdict::Done;
        }
        match context.pools.channels[slot].content {
            Content::Body { message, flags, missing: 0 } => self.complete(context, slot, message, flags),
            _ => Verdict::Done,
        }
    }

    #[inline]
    fn complete<'a>(
        &mut self,
        context: &mut Context<'_>,
        slot: Slot,
        message: Option<MessageId>,
        flags: PublishFlags,
    ) -> Verdict<'a> {
        let Some(message) = message else {
            self.set_content(context, slot, Content::None);
            if context.pools.channels[slot].state == ChannelState::Ended {
                self.drop_channel(context, slot);
            }
            return Verdict::Done;
        };
        context.messages.finish(message);
        if flags.immediate {
            context.messages.release(message);
            self.set_content(context, slot, Content::None);
            return Verdict::hard(ReplyCode::NotImplemented, format_args!("immediate=true"), PUBLISH);
        }
        self.set_content(context, slot, Content::Complete { message, flags });
        self.publish(context, slot).map_or(Verdict::Done, Verdict::InputStep)
    }

    /// Asks the broker to take a complete message.
    fn publish(&mut self, context: &Context<'_>, slot: Slot) -> Option<InputStep<'static>> {
        let record = &context.pools.channels[slot];
        let (ChannelState::Open(channel), Content::Complete { message, flags }) =
            (record.state, record.content)
        else {
            return None;
        };
        self.input.pending = Pending::on_channel(CommandKind::Publish, PUBLISH, slot, true);
        let command = Command::Publish { message, mandatory: flags.mandatory };
        Some(InputStep::Command { channel: Some(channel), command })
    }

    /// Repeats the publish that the broker had no capacity for.
    pub(super) fn republish_delivery(&mut self, context: &Context<'_>) -> Option<InputStep<'static>> {
        if self.input.held_publish == NONE {
            return None;
        }
        let slot = core::mem::replace(&mut self.input.held_publish, NONE);
        self.publish(context, slot)
    }

    /// Records that the broker has taken the message.
    #[inline]
    pub(super) fn content_taken(&mut self, context: &mut Context<'_>, slot: Slot) {
        self.set_content(context, slot, Content::None);
    }

    /// Returns the error of a method that arrives where a content must continue; `None` if a method may come.
    #[inline]
    pub(super) fn misplaced_method<'a>(content: Content) -> Option<Verdict<'a>> {
        match content {
            Content::None => None,
            Content::Header { .. } => Some(expected_header()),
            Content::Body { .. } | Content::Complete { .. } => Some(expected_body()),
        }
    }

    /// Releases the message of a channel's content. The rest of the content is ignored.
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

    #[inline]
    fn set_content(&mut self, context: &mut Context<'_>, slot: Slot, content: Content) {
        let record = &mut context.pools.channels[slot];
        let before = core::mem::replace(&mut record.content, content);
        record.progress = context.now;
        match (before.holds_message(), content.holds_message()) {
            (false, true) => self.channels.contents += 1,
            (true, false) => self.channels.contents -= 1,
            _ => {}
        }
    }
}

/// Returns the error of a body frame that arrives in this state.
#[cold]
pub(super) fn misplaced_body<'a>(content: Content) -> Verdict<'a> {
    match content {
        Content::Header { .. } => expected_header(),
        Content::Body { missing, .. } => Verdict::hard(
            ReplyCode::FrameError,
            format_args!("content body is larger than announced: {missing} octets were left"),
            PUBLISH,
        ),
        Content::None | Content::Complete { .. } => expected_method(),
    }
}

enum Refusal {
    Wait(PoolFull),
    Fault(Fault),
}

fn read_header<'p>(payload: &'p [u8]) -> Result<ContentHeader<'p>, Verdict<'static>> {
    let header = match ContentHeader::parse(payload) {
        Ok(header) => header,
        Err(WireError::UnexpectedClass(class)) if payload.get(2..4) == Some(&[0, 0]) => {
            let text = format_args!(
                "expected content header for class {BASIC_CLASS}, got one for class {class} instead"
            );
            return Err(Verdict::hard(ReplyCode::UnexpectedFrame, text, PUBLISH));
        }
        Err(WireError::UnexpectedClass(_)) => return Err(expected_header()),
        Err(_) if payload.get(2..4) != Some(&[0, 0]) => return Err(expected_header()),
        Err(error) => {
            let text = format_args!("content header cannot be decoded: {error}");
            return Err(Verdict::hard(ReplyCode::SyntaxError, text, PUBLISH));
        }
    };
    if header.weight == 0 { Ok(header) } else { Err(expected_header()) }
}

#[cold]
fn no_room(full: PoolFull) -> Fault {
    Fault::new(
        ReplyCode::ResourceError,
        format_args!("no room for the message while this connection holds others; raise {}", full.key()),
    )
}

#[cold]
fn expected_method<'a>() -> Verdict<'a> {
    let text = format_args!("expected method frame, got non method frame instead");
    Verdict::hard(ReplyCode::UnexpectedFrame, text, (0, 0))
}

#[cold]
fn expected_header<'a>() -> Verdict<'a> {
    let text =
        format_args!("expected content header for class {BASIC_CLASS}, got non content header frame instead");
    Verdict::hard(ReplyCode::UnexpectedFrame, text, PUBLISH)
}

#[cold]
fn expected_body<'a>() -> Verdict<'a> {
    let text = format_args!("expected content body, got non content body frame instead");
    Verdict::hard(ReplyCode::UnexpectedFrame, text, PUBLISH)
}

/// How much of a channel's content has arrived. Without a message the content is ignored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Content {
    /// No content: a method comes next.
    None,
    /// The header comes next.
    Header { message: Option<MessageId>, flags: PublishFlags },
    /// This number of body bytes comes next.
    Body { message: Option<MessageId>, flags: PublishFlags, missing: u64 },
    /// The content is complete. The broker is being asked, or had no capacity.
    Complete { message: MessageId, flags: PublishFlags },
}

impl Content {
    #[inline]
    pub(super) const fn holds_message(self) -> bool {
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

/// Returns the message flags that follow from the properties.
pub fn message_flags(properties: Properties<'_>) -> MessageFlags {
    properties.message_flags()
}
