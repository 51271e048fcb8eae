//! Reads the frames of an open connection, handles errors in them, and closes channels and connections.
//!
//! One loop handles everything that a client sends after the handshake, in order. Method and header frames
//! are handled when they are complete. The bytes of a body frame are added to the message while they arrive,
//! so that a large frame is not in memory twice. A frame that the protocol does not allow ends the connection
//! with RabbitMQ's error text.
//!
//! # Invariants
//! - Input is consumed up to the first [`InputStep`] that the caller must handle, and not further.
//! - A frame that cannot be handled now stays in the input.
//! - After the broker has sent connection.close, only the client's close-ok or close is handled.

use leveret_amqp::{
    FRAME_END, FRAME_HEADER_LEN, FRAME_OVERHEAD, Frame, FrameError, FrameHeader, FrameKind, Method,
    MethodError, Properties, WireError, next_frame,
};
use leveret_core::command::{ChannelCommand, ChannelId, Command, PublishCommand, ReplyOrder, Settlement};
use leveret_core::error::{Fault, ReplyCode, Scope};
use leveret_core::log_limiter::LogKind;
use leveret_core::mem::{MessageFlags, PoolFull};

use super::channel::{ChannelState, ConfirmList, ConfirmListKind, NONE, Slot};
use super::client::UnhandledMessages;
use super::connection::{Connection, Context, Names, Phase, SOCKET_CLOSE_TIMEOUT_MS};
use super::erlang::{BadEnd, FrameSnippet, Numbers};
use super::methods::{OpenSlot, Pending};
use super::output::Blocked;
use super::publish::misplaced_body;
use super::publish::{Content, PublishFlags, message_flags};

impl Connection {
    /// Handles input from `input[*at..]` up to the first step that the caller must handle, and advances `at` past the
    /// consumed bytes.
    ///
    /// A command borrows from `input` and `names`. Before the caller calls any connection again, it must call
    /// [`Self::answer`], [`Self::defer`] or [`Self::defer_login`].
    pub fn next<'a>(
        &mut self,
        context: &mut Context<'_>,
        names: &'a mut Names,
        input: &'a [u8],
        at: &mut usize,
    ) -> InputStep<'a> {
        let start = *at;
        self.note_input(context.now, input.len() - start);
        let step = self.step(context, names, input, at);
        match step {
            InputStep::NeedMore => self.note_progress(context, *at > start, input.len() - *at),
            InputStep::Suspended(_) => self.input.is_suspended = true,
            InputStep::Command(_) | InputStep::Finished => {}
        }
        step
    }

    fn step<'a>(
        &mut self,
        context: &mut Context<'_>,
        names: &'a mut Names,
        input: &'a [u8],
        at: &mut usize,
    ) -> InputStep<'a> {
        if let Some(step) = self.step_release() {
            return step;
        }
        if let Some(step) = self.retry_publish(context) {
            return step;
        }
        if let Some(step) = self.step_header(context, input, at) {
            return step;
        }
        match self.phase {
            Phase::Start { .. } | Phase::Tune { .. } | Phase::Opening { .. } => {
                self.step_handshake(context, names, input, at)
            }
            Phase::Open => self.step_open(context, names, input, at),
            _ => self.step_over(context, input, at),
        }
    }

    /// Returns the command that closes a channel in the broker after an error, if there is one. The broker then
    /// requeues the channel's deliveries.
    fn step_release(&mut self) -> Option<InputStep<'static>> {
        let (_, channel) = self.input.release.take()?;
        self.input.pending = Pending::Release;
        Some(InputStep::Command(Command::Channel(channel, ChannelCommand::CloseChannel)))
    }

    fn step_open<'a>(
        &mut self,
        context: &mut Context<'_>,
        names: &'a mut Names,
        input: &'a [u8],
        at: &mut usize,
    ) -> InputStep<'a> {
        let (channel, method) = loop {
            if self.phase != Phase::Open {
                return self.step_over(context, input, at);
            }
            if self.input.body.is_begun {
                let Some(result) = self.stream_body(context, input, at) else {
                    return InputStep::NeedMore;
                };
                match self.conclude(context, result) {
                    Some(step) => return step,
                    None => continue,
                }
            }
            if !self.has_close_room() {
                return InputStep::Suspended(Suspension::ReplySpace);
            }
            let unread = &input[*at..];
            if let Some((len, step)) = self.step_fast_path(context, unread) {
                *at += len;
                return step;
            }
            if let Some(result) = self.begin_body(context, unread) {
                *at += FRAME_HEADER_LEN;
                match self.conclude(context, result) {
                    Some(step) => return step,
                    None => continue,
                }
            }
            let frame = match next_frame(unread, self.negotiated.frame_max) {
                Ok(Some(frame)) => frame,
                Ok(None) => return InputStep::NeedMore,
                Err(error) => {
                    self.fail_frame(context, unread, error);
                    continue;
                }
            };
            match self.handle_frame(context, frame) {
                FrameResult::Done => *at += frame.input_len(),
                FrameResult::Wait(suspension) => return InputStep::Suspended(suspension),
                FrameResult::Named(channel, method) => {
                    *at += frame.input_len();
                    break (channel, method);
                }
                result => {
                    *at += frame.input_len();
                    if let Some(step) = self.conclude(context, result) {
                        return step;
                    }
                }
            }
        };
        match self.command(context, names, channel, method) {
            Ok(command) => InputStep::Command(command),
            // `command` returns only errors that close the channel, so there is a channel that the broker must close.
            Err(fault) => self
                .conclude(context, FrameResult::Fault(fault, method.id(), channel.slot))
                .unwrap_or(InputStep::NeedMore),
        }
    }

    /// Converts the result of a frame into the step for the caller. Returns `None` if the next input can be handled.
    fn conclude<'a>(&mut self, context: &mut Context<'_>, result: FrameResult<'a>) -> Option<InputStep<'a>> {
        match result {
            FrameResult::InputStep(step) => Some(step),
            FrameResult::Wait(suspension) => Some(InputStep::Suspended(suspension)),
            FrameResult::Done | FrameResult::Named(..) => None,
            FrameResult::Fault(fault, id, slot) => {
                self.fail(context, slot, &fault, id, context.last_delivery);
                self.step_release()
            }
        }
    }

    /// Begins to stream a body frame. Returns `None` if `unread` begins with another type of frame, or the frame is too
    /// large.
    #[inline]
    fn begin_body(&mut self, context: &Context<'_>, unread: &[u8]) -> Option<FrameResult<'static>> {
        let header = FrameHeader::peek(unread)?;
        if header.raw_kind != FrameKind::Body as u8
            || header.channel == 0
            || header.size > self.negotiated.frame_max
        {
            return None;
        }
        let channels = &context.pools.channels;
        let found = channels.find(&mut self.channels, self.id, header.channel);
        let content = found.map_or(Content::None, |slot| channels[slot].content);
        let is_next = matches!(content, Content::Body { missing, .. } if u64::from(header.size) <= missing);
        let slot = found.filter(|_| is_next).unwrap_or(NONE);
        self.input.body = BodyFrame { slot, left: header.size, is_begun: true };
        Some(if is_next { FrameResult::Done } else { misplaced_body(content) })
    }

    /// Consumes the available part of the body frame. Returns `None` if the rest of the frame is missing.
    fn stream_body(
        &mut self,
        context: &mut Context<'_>,
        input: &[u8],
        at: &mut usize,
    ) -> Option<FrameResult<'static>> {
        let unread = &input[*at..];
        let here = unread.len().min(self.input.body.left as usize);
        if here > 0 {
            self.append_body(context, self.input.body.slot, &unread[..here]);
            self.input.body.left -= here as u32;
            *at += here;
        }
        let end = *unread.get(here).filter(|_| self.input.body.left == 0)?;
        if end != FRAME_END {
            return Some(self.fail_body_end(context, end));
        }
        *at += 1;
        self.input.body.is_begun = false;
        Some(self.body_frame_complete(context, self.input.body.slot))
    }

    /// Closes the connection because a body frame has no valid end octet. RabbitMQ's error text contains the
    /// beginning of the body; this one does not, because the beginning is no longer in the input.
    fn fail_body_end(&mut self, context: &mut Context<'_>, found: u8) -> FrameResult<'static> {
        self.input.body = BodyFrame::NONE;
        let fault = hard_fault(
            ReplyCode::FrameError,
            format_args!("type 3, body: {{invalid_frame_end_marker,{found}}}"),
        );
        self.close_and_ignore_input(context, &fault);
        FrameResult::Done
    }

    /// Handles a complete frame that is not a body frame.
    fn handle_frame<'a>(&mut self, context: &mut Context<'_>, frame: Frame<'a>) -> FrameResult<'a> {
        let number = frame.header.channel;
        match payload_kind(frame) {
            None => FrameResult::Fault(unknown_frame(frame), (0, 0), NONE),
            Some(FrameKind::Heartbeat) if number == 0 => FrameResult::Done,
            Some(FrameKind::Method) if number == 0 => self.handle_connection_method(context, frame),
            _ if number == 0 => FrameResult::Fault(unexpected_frame(frame), (0, 0), NONE),
            Some(FrameKind::Method) => self.handle_channel_method(context, number, frame.payload),
            Some(FrameKind::Header) => self.handle_header(context, number, frame.payload),
            // Valid body frames do not get here: `begin_body` handles them.
            Some(FrameKind::Body | FrameKind::Heartbeat) => {
                FrameResult::Fault(unexpected_frame(frame), (0, 0), NONE)
            }
        }
    }

    fn handle_connection_method<'a>(
        &mut self,
        context: &mut Context<'_>,
        frame: Frame<'a>,
    ) -> FrameResult<'a> {
        let method = match Method::parse(frame.payload) {
            Ok(method) => method,
            Err(error) => {
                let (fault, id) = fault_of_method(error, frame.payload, true);
                return FrameResult::Fault(fault, id, NONE);
            }
        };
        if !self.has_reply_room() {
            return FrameResult::Wait(Suspension::ReplySpace);
        }
        match method {
            Method::ConnectionClose { reply_code, reply_text, .. } => {
                log::debug!(
                    "connection {}: the client closes it: {reply_code} {reply_text}",
                    self.id.index()
                );
                self.push_reply(context, 0, &Method::ConnectionCloseOk {}, 0);
                self.begin_end(
                    context,
                    Phase::Ending { until: context.now.after_ms(SOCKET_CLOSE_TIMEOUT_MS) },
                );
                FrameResult::Done
            }
            Method::ConnectionUpdateSecret { .. } => {
                self.push_reply(context, 0, &Method::ConnectionUpdateSecretOk {}, 0);
                FrameResult::Done
            }
            _ => FrameResult::Fault(unexpected_method("running"), method.id(), NONE),
        }
    }

    /// Handles input of a connection that was closed or refused. Everything is ignored except
    /// connection.close-ok, and a connection.close that the client sent before it received the broker's.
    pub(super) fn step_over<'a>(
        &mut self,
        context: &mut Context<'_>,
        input: &[u8],
        at: &mut usize,
    ) -> InputStep<'a> {
        loop {
            match self.phase {
                Phase::Finished { .. } => {
                    *at = input.len();
                    return InputStep::Finished;
                }
                Phase::Closing { ignores_input: false, .. } => {
                    if !self.skip_frame(context, input, at) {
                        return InputStep::NeedMore;
                    }
                }
                _ => {
                    *at = input.len();
                    return InputStep::NeedMore;
                }
            }
        }
    }

    /// Returns the frames in `input`, which is not handled yet, each with the octets from its payload on. The last one may
    /// be incomplete. `is_first`: the input may begin with the rest of a body frame.
    fn unhandled_frames<'i>(
        &self,
        input: &'i [u8],
        is_first: bool,
    ) -> impl Iterator<Item = (FrameHeader, &'i [u8])> {
        let rest_of_frame = match self.input.body.is_begun {
            true if is_first => (self.input.body.left as usize).saturating_add(1),
            _ => 0,
        };
        let mut unread = input.get(rest_of_frame..).unwrap_or_default();
        core::iter::from_fn(move || {
            let header = FrameHeader::peek(unread)?;
            let payload = unread.get(FRAME_HEADER_LEN..)?;
            unread = payload.get(header.size as usize..).and_then(|rest| rest.get(1..)).unwrap_or_default();
            Some((header, payload))
        })
    }

    /// Returns whether `input`, which is not handled yet, contains a connection.close of the client.
    pub fn has_close(&self, input: &[u8]) -> bool {
        const CLOSE: [u8; 4] = [0, 10, 0, 50];
        self.unhandled_frames(input, true).any(|(header, payload)| {
            let is_method = header.raw_kind == FrameKind::Method as u8;
            header.channel == 0 && is_method && payload.starts_with(&CLOSE)
        })
    }

    /// See [`Client::held_messages`](super::client::Client::held_messages).
    pub(super) const fn held_messages(&self) -> u32 {
        self.channels.contents as u32
    }

    /// See [`Client::count_messages`](super::client::Client::count_messages).
    pub(super) fn count_messages(&self, input: &[u8], is_first: bool) -> UnhandledMessages {
        const PUBLISH: [u8; 4] = [0, 60, 0, 40];
        let mut found = UnhandledMessages::default();
        for (header, payload) in self.unhandled_frames(input, is_first) {
            let is_method = header.raw_kind == FrameKind::Method as u8;
            let frame_len = header.size as usize + 1;
            if payload.len() < frame_len {
                break;
            }
            found.messages += u32::from(is_method && payload.starts_with(&PUBLISH));
            found.bytes = input.len() - (payload.len() - frame_len);
        }
        found
    }

    /// Closes the connection of a client that has sent connection.close after input that waits for capacity
    /// ([`Self::has_close`]). That input is dropped, and connection.close-ok is sent.
    pub fn close_suspended(&mut self, context: &mut Context<'_>) {
        let text = format_args!(
            ": the client has closed the connection while its messages waited for capacity: they are dropped"
        );
        self.warn(context, LogKind::Connection, text);
        let until = context.now.after_ms(self.close_ok_timeout_ms());
        self.begin_end(context, Phase::Closing { until, ignores_input: false });
    }

    /// Skips the next frame of a connection that the broker has closed; handles close and close-ok. Returns `false` if no
    /// complete frame is left.
    fn skip_frame(&mut self, context: &mut Context<'_>, input: &[u8], at: &mut usize) -> bool {
        let unread = &input[*at..];
        if self.input.body.is_begun {
            // Payload and end octet are counted separately, because their sum may be 2^32, which does not fit into 32
            // bits.
            let here = unread.len().min(self.input.body.left as usize);
            self.input.body.left -= here as u32;
            let has_end = self.input.body.left == 0 && unread.len() > here;
            *at += here + usize::from(has_end);
            self.input.body.is_begun = !has_end;
            return has_end;
        }
        let Some(header) = FrameHeader::peek(unread) else {
            return false;
        };
        if header.channel != 0 || header.raw_kind != FrameKind::Method as u8 {
            *at += FRAME_HEADER_LEN;
            self.input.body = BodyFrame { slot: NONE, left: header.size, is_begun: true };
            return true;
        }
        match next_frame(unread, self.negotiated.frame_max) {
            Ok(None) => return false,
            Ok(Some(frame)) => {
                *at += frame.input_len();
                match Method::parse(frame.payload) {
                    Ok(Method::ConnectionCloseOk {}) => self.finish(context.now),
                    Ok(Method::ConnectionClose { .. }) if self.has_reply_room() => {
                        self.push_reply(context, 0, &Method::ConnectionCloseOk {}, 0);
                    }
                    _ => {}
                }
            }
            Err(_) => self.ignore_input(context),
        }
        true
    }

    /// Closes the connection because the input is not a valid frame. `unread` begins with that frame.
    pub(super) fn fail_frame(&mut self, context: &mut Context<'_>, unread: &[u8], error: FrameError) {
        let fault = match error {
            FrameError::TooLarge(header) => hard_fault(
                ReplyCode::FrameError,
                format_args!(
                    "type {}, all octets = <<>>: {{frame_too_large,{},{}}}",
                    header.raw_kind,
                    header.size,
                    self.negotiated.frame_max - 8
                ),
            ),
            FrameError::BadEnd { header, found } => {
                let end = FRAME_HEADER_LEN + header.size as usize;
                let payload = unread.get(FRAME_HEADER_LEN..end).unwrap_or_default();
                let snippet = FrameSnippet { raw_kind: header.raw_kind, payload };
                hard_fault(ReplyCode::FrameError, format_args!("{}", BadEnd { snippet, found }))
            }
        };
        self.close_and_ignore_input(context, &fault);
    }

    /// Sends connection.close, and ignores all further input.
    fn close_and_ignore_input(&mut self, context: &mut Context<'_>, fault: &Fault) {
        self.close_connection(context, fault, (0, 0));
        self.ignore_input(context);
    }

    /// Ignores all further input of a connection that is being closed, even close-ok.
    fn ignore_input(&mut self, context: &Context<'_>) {
        let until = context.now.after_ms(SOCKET_CLOSE_TIMEOUT_MS);
        self.phase = Phase::Closing { until, ignores_input: true };
    }

    /// Closes the channel `slot` or the connection, depending on the scope of `fault`. `slot` is [`NONE`] for an error
    /// that is not on an open channel. channel.close is sent after the channel's deliveries up to `order`, except those
    /// that the broker requeues.
    pub(super) fn fail(
        &mut self,
        context: &mut Context<'_>,
        slot: Slot,
        fault: &Fault,
        id: (u16, u16),
        order: ReplyOrder,
    ) {
        if fault.scope == Scope::Connection || slot == NONE {
            return self.close_connection(context, fault, id);
        }
        let record = &context.pools.channels[slot];
        let (number, state) = (record.number(), record.state);
        self.warn(context, LogKind::Channel, format_args!(", channel {number}: {}", fault.logged()));
        self.flush_confirms(context, slot);
        let close = Method::ChannelClose {
            reply_code: fault.code.code(),
            reply_text: &fault.text,
            class_id: id.0,
            method_id: id.1,
        };
        self.push_reply(context, number, &close, order);
        context.pools.channels[slot].state = ChannelState::Closing;
        if let ChannelState::Open(channel) = state {
            self.input.release = Some((slot, channel));
        }
    }

    /// Logs an error of the connection, and closes it.
    pub(super) fn close_connection(&mut self, context: &mut Context<'_>, fault: &Fault, id: (u16, u16)) {
        self.warn(context, LogKind::Connection, format_args!(": closed: {fault}"));
        self.send_connection_close(context, fault, id);
    }

    /// Sends connection.close, and waits for close-ok for a limited time.
    pub(super) fn send_connection_close(&mut self, context: &mut Context<'_>, fault: &Fault, id: (u16, u16)) {
        let close = Method::ConnectionClose {
            reply_code: fault.code.code(),
            reply_text: &fault.text,
            class_id: id.0,
            method_id: id.1,
        };
        self.push_reply(context, 0, &close, 0);
        let until = context.now.after_ms(self.close_ok_timeout_ms());
        self.begin_end(context, Phase::Closing { until, ignores_input: false });
    }

    /// Enters a phase after which no more commands are passed to the broker.
    fn begin_end(&mut self, context: &mut Context<'_>, phase: Phase) {
        self.phase = phase;
        self.input.pending = Pending::Nothing;
        self.input.release = None;
        self.input.is_suspended = false;
        self.output.is_heartbeat_due = false;
        self.blocked = Blocked::default();
        self.stop_channels(context);
    }

    /// Removes all channels except those with confirms that can be sent now. A confirm that must follow a return is
    /// dropped: the return will not be sent, and without it the client would assume that the message was routed.
    fn stop_channels(&mut self, context: &mut Context<'_>) {
        self.input.retry_publish = NONE;
        self.input.body.slot = NONE;
        (self.confirms.sendable, self.confirms.awaits_disk) = (ConfirmList::EMPTY, ConfirmList::EMPTY);
        let mut slot = self.channels.first;
        while slot != NONE {
            let next = context.pools.channels.next(slot);
            let record = &mut context.pools.channels[slot];
            record.confirm_list = ConfirmListKind::None;
            record.confirms.keep_sendable(context.durable);
            if record.confirms.front().is_none() {
                self.drop_channel(context, slot);
            } else {
                self.drop_content(context, slot);
                self.update_confirm_list(context, slot);
            }
            slot = next;
        }
    }
}

const PUBLISH_ID: [u8; 4] = [0, 60, 0, 40];
const ACK_ID: [u8; 4] = [0, 60, 0, 80];
/// The payload of basic.ack has a fixed length.
const ACK_PAYLOAD_LEN: usize = 4 + 8 + 1;
/// Class 60, weight 0.
const CONTENT_ID: [u8; 4] = [0, 60, 0, 0];
const MANDATORY: u8 = 1;
const IMMEDIATE: u8 = 2;

/// All frames of a publish, in the input.
struct CompletePublish<'i> {
    exchange: &'i [u8],
    routing_key: &'i [u8],
    bits: u8,
    properties: &'i [u8],
    body: &'i [u8],
    /// Length of all frames in bytes.
    input_len: usize,
}

impl Connection {
    /// The fast path: handles a basic.ack, or all frames of a publish, at the start of `unread`. Returns the
    /// length of the frames in bytes and the step for the caller.
    ///
    /// A small publish has three frames. Handling them separately takes more time than routing the message.
    /// If all three are in the input and valid, and the pools have capacity, the message is created in one
    /// step. Otherwise the function returns `None` and changes nothing, and the general path handles the
    /// frames with the same result.
    #[inline]
    pub(super) fn step_fast_path(
        &mut self,
        context: &mut Context<'_>,
        unread: &[u8],
    ) -> Option<(usize, InputStep<'static>)> {
        let header = FrameHeader::peek(unread)?;
        let id: [u8; 4] = *unread.get(FRAME_HEADER_LEN..)?.first_chunk()?;
        if header.raw_kind != FrameKind::Method as u8 || header.channel == 0 {
            return None;
        }
        match id {
            PUBLISH_ID => self.fast_publish(context, header.channel, unread),
            ACK_ID => self.fast_ack(context, header.channel, unread),
            _ => None,
        }
    }

    /// The fast path for basic.ack.
    fn fast_ack(
        &mut self,
        context: &Context<'_>,
        number: u16,
        unread: &[u8],
    ) -> Option<(usize, InputStep<'static>)> {
        let (payload, _) = take_frame(unread, FrameKind::Method, number)?;
        let payload: &[u8; ACK_PAYLOAD_LEN] = payload.try_into().ok()?;
        let [_, _, _, _, tag @ .., bits] = *payload;
        let (slot, channel) = self.idle_channel(context, number)?;
        self.input.pending = Pending::method((60, 80), slot, true);
        let command = ChannelCommand::Settle {
            delivery_tag: u64::from_be_bytes(tag),
            multiple: bits & 1 != 0,
            settlement: Settlement::Ack,
        };
        Some((ACK_PAYLOAD_LEN + FRAME_OVERHEAD, InputStep::Command(Command::Channel(channel, command))))
    }

    /// The fast path for a publish.
    fn fast_publish(
        &mut self,
        context: &mut Context<'_>,
        number: u16,
        unread: &[u8],
    ) -> Option<(usize, InputStep<'static>)> {
        let publish = CompletePublish::read(unread, number, self.negotiated.frame_max)?;
        if publish.body.len() > context.settings.message_size_max as usize || publish.bits & IMMEDIATE != 0 {
            return None;
        }
        let exchange = core::str::from_utf8(publish.exchange).ok()?;
        let flags = match publish.properties {
            [0, 0] => MessageFlags::NONE,
            bytes => message_flags(Properties::parse(bytes).ok()?),
        };
        let (slot, channel) = self.idle_channel(context, number)?;
        if !context.pools.channels[slot].confirms.has_room() {
            return None;
        }
        let message = context.messages.begin(exchange, publish.routing_key, context.share).ok()?;
        let len = publish.body.len() as u32;
        if context.messages.reserve_content(message, publish.properties, flags, len, context.share).is_err() {
            context.messages.discard(message);
            return None;
        }
        context.messages.append_body(message, publish.body);
        context.messages.finish(message);

        let mandatory = publish.bits & MANDATORY != 0;
        let flags = PublishFlags { mandatory, immediate: false };
        context.pools.channels[slot].content = Content::Complete { message, flags };
        self.channels.contents += 1;
        self.blocked.wants_notification = self.capabilities.connection_blocked;
        self.input.pending = Pending::method(PUBLISH, slot, true);
        let command = PublishCommand::Publish { message, mandatory };
        Some((publish.input_len, InputStep::Command(Command::Publish(channel, command))))
    }

    /// Returns the channel with this number if it is open and no content is arriving on it.
    #[inline]
    fn idle_channel(&mut self, context: &Context<'_>, number: u16) -> Option<(Slot, ChannelId)> {
        let slot = context.pools.channels.find(&mut self.channels, self.id, number)?;
        let record = &context.pools.channels[slot];
        match (record.state, record.content) {
            (ChannelState::Open(channel), Content::None) => Some((slot, channel)),
            _ => None,
        }
    }
}

impl<'i> CompletePublish<'i> {
    /// Returns the publish at the start of `unread`; `None` if it is incomplete, invalid or has several body frames.
    #[inline]
    fn read(unread: &'i [u8], number: u16, frame_max: u32) -> Option<Self> {
        let (method, behind) = take_frame(unread, FrameKind::Method, number)?;
        let (header, behind) = take_frame(behind, FrameKind::Header, number)?;
        let (id, header) = header.split_first_chunk::<4>()?;
        let (body_len, properties) = header.split_first_chunk::<8>()?;
        let (body, behind) = match u64::from_be_bytes(*body_len) {
            0 => (&[][..], behind),
            len => {
                let (body, behind) = take_frame(behind, FrameKind::Body, number)?;
                if body.len() as u64 != len {
                    return None;
                }
                (body, behind)
            }
        };
        // Skips class, method and the unused ticket.
        let (exchange, arguments) = take_short(method.get(6..)?)?;
        let (routing_key, arguments) = take_short(arguments)?;
        let [bits] = *arguments else {
            return None;
        };
        let longest = method.len().max(properties.len() + 12).max(body.len());
        if *id != CONTENT_ID || longest > frame_max as usize {
            return None;
        }
        let input_len = unread.len() - behind.len();
        Some(Self { exchange, routing_key, bits, properties, body, input_len })
    }
}

/// Returns the payload of the frame at the start of `unread`, and the bytes after the frame; `None` if the
/// frame is incomplete, or of another type or channel.
#[inline]
fn take_frame(unread: &[u8], kind: FrameKind, number: u16) -> Option<(&[u8], &[u8])> {
    let (header, unread) = unread.split_first_chunk::<FRAME_HEADER_LEN>()?;
    let header = FrameHeader::parse(header);
    let (payload, unread) = unread.split_at_checked(header.size as usize)?;
    let (end, unread) = unread.split_first()?;
    let fits = header.raw_kind == kind as u8 && header.channel == number && *end == FRAME_END;
    fits.then_some((payload, unread))
}

/// Returns the short string at the start of `unread`, and the bytes after it; `None` if it is incomplete.
#[inline]
fn take_short(unread: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, unread) = unread.split_first()?;
    unread.split_at_checked(usize::from(*len))
}

/// Returns an error that closes the connection.
pub(super) fn hard_fault(code: ReplyCode, explanation: core::fmt::Arguments<'_>) -> Fault {
    Fault::connection(code, explanation)
}

/// Returns the type of a frame; `None` if it is unknown, or the payload has an impossible length for it.
pub(super) fn payload_kind(frame: Frame<'_>) -> Option<FrameKind> {
    let kind = frame.header.kind()?;
    let is_possible = match kind {
        FrameKind::Method => frame.payload.len() >= 4,
        FrameKind::Header => frame.payload.len() >= 12,
        FrameKind::Body => true,
        FrameKind::Heartbeat => frame.payload.is_empty(),
    };
    is_possible.then_some(kind)
}

/// Returns RabbitMQ's error for a frame of unknown type.
pub(super) fn unknown_frame(frame: Frame<'_>) -> Fault {
    hard_fault(ReplyCode::FrameError, format_args!("{}: unknown_frame", snippet(frame)))
}

/// Returns RabbitMQ's error for a frame that is not allowed at this point.
pub(super) fn unexpected_frame(frame: Frame<'_>) -> Fault {
    hard_fault(ReplyCode::UnexpectedFrame, format_args!("{}", snippet(frame)))
}

/// Returns the error for a frame that is not allowed during connection.open: only methods and heartbeats on channel 0
/// are. Checks in RabbitMQ's order, so that a frame with two errors gets the same error text as there.
pub(super) fn fault_of_frame(frame: Frame<'_>) -> Option<Fault> {
    let kind = payload_kind(frame);
    match (kind, frame.header.channel) {
        (None, _) => Some(unknown_frame(frame)),
        (Some(FrameKind::Method | FrameKind::Heartbeat), 0) => None,
        _ => Some(unexpected_frame(frame)),
    }
}

/// Returns RabbitMQ's error for a method that cannot be parsed, and class and method number for the close.
pub(super) fn fault_of_method(
    error: MethodError,
    payload: &[u8],
    on_connection: bool,
) -> (Fault, (u16, u16)) {
    match error {
        MethodError::NoId => (hard_fault(ReplyCode::FrameError, format_args!("no method")), (0, 0)),
        MethodError::Unknown { class_id, method_id } => (
            hard_fault(ReplyCode::CommandInvalid, format_args!("unknown method {class_id}.{method_id}")),
            (class_id, method_id),
        ),
        MethodError::Malformed { class_id, method_id, error: WireError::NotUtf8 } => (
            hard_fault(ReplyCode::FrameError, format_args!("{}", WireError::NotUtf8)),
            if on_connection { (class_id, method_id) } else { (0, 0) },
        ),
        MethodError::Malformed { class_id, method_id, .. } => {
            let fields = Numbers(payload.get(4..).unwrap_or_default());
            (hard_fault(ReplyCode::FrameError, format_args!("cannot decode {fields}")), (class_id, method_id))
        }
    }
}

/// Returns the error for a method that is not allowed in this phase of the connection.
pub(super) fn unexpected_method(phase: &str) -> Fault {
    hard_fault(ReplyCode::ChannelError, format_args!("unexpected method in connection state {phase}"))
}

const fn snippet(frame: Frame<'_>) -> FrameSnippet<'_> {
    FrameSnippet { raw_kind: frame.header.raw_kind, payload: frame.payload }
}

/// Why the connection does not handle more of its input for now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Suspension {
    /// There is no capacity for more replies, because the client does not read them. Continue when output was sent.
    ReplySpace,
    /// This pool has no capacity for the published message. Continue when memory was freed.
    ContentRoom(PoolFull),
    /// Other connections use the memory for long answers of MQTT, and less than these bytes are left. Continue when
    /// [`super::Pools::has_long_answer_room`].
    LongAnswer {
        /// The bytes that the answer needs.
        bytes: u32,
    },
}

/// The result of handling input.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum InputStep<'a> {
    /// Every complete frame was handled: more input is needed.
    NeedMore,
    /// Pass the command to the broker, call [`super::Connection::answer`] with the answer, and then
    /// [`super::Connection::next`] again.
    Command(Command<'a>),
    /// Call [`super::Connection::next`] again when the reason no longer applies.
    Suspended(Suspension),
    /// No more input is handled. Send the pending output, and then close the socket.
    Finished,
}

/// The result of handling one frame.
pub(super) enum FrameResult<'a> {
    /// The frame was handled.
    Done,
    /// The frame cannot be handled now and stays in the input.
    Wait(Suspension),
    /// The frame was handled, and the caller must handle this step.
    InputStep(InputStep<'a>),
    /// A method on an open channel that is to be converted by [`Connection::command`], which needs a [`Names`].
    Named(OpenSlot, Method<'a>),
    /// An error of the client, with class and method number, and the channel or [`NONE`].
    Fault(Fault, (u16, u16), Slot),
}

impl FrameResult<'_> {
    /// Returns the result for an error that closes the connection.
    pub(super) fn hard(code: ReplyCode, text: core::fmt::Arguments<'_>, id: (u16, u16)) -> Self {
        Self::Fault(hard_fault(code, text), id, NONE)
    }
}

/// The body frame that is being streamed.
#[derive(Clone, Copy, Debug)]
pub(super) struct BodyFrame {
    /// The channel; [`NONE`] if the frame is dropped.
    pub(super) slot: Slot,
    /// Number of payload bytes that have not arrived yet, without the end octet.
    pub(super) left: u32,
    pub(super) is_begun: bool,
}

impl BodyFrame {
    pub(super) const NONE: Self = Self { slot: NONE, left: 0, is_begun: false };
}

/// Class and method number of basic.publish.
pub(super) const PUBLISH: (u16, u16) = (60, 40);
