//! The frames of an open connection: reading, errors, closing.
//!
//! Everything that a client sends after the handshake passes through one loop, in order. Method and header frames
//! are handled when they are complete. Body frames are streamed, so a large one is never in memory twice. A
//! misplaced frame ends the connection with RabbitMQ's error text.
//!
//! # Invariants
//! - Input is consumed up to the first point at which the caller must decide something, and not further.
//! - A frame that cannot be begun now stays in the input.
//! - After the broker has closed the connection, only connection.close-ok counts.

use leveret_amqp::{
    FRAME_END, FRAME_HEADER_LEN, FRAME_OVERHEAD, Frame, FrameError, FrameHeader, FrameKind, Method,
    MethodError, Properties, WireError, next_frame,
};
use leveret_core::command::{ChannelId, Command, ReplyOrder, Settlement};
use leveret_core::error::{Fault, ReplyCode, Scope};
use leveret_core::log_limiter::LogKind;
use leveret_core::mem::{MessageFlags, PoolFull};

use super::channel::{ChannelState, ConfirmList, Listed, NONE, Slot};
use super::connection::{Connection, Context, Names, PARTING_MS, Phase};
use super::erlang::{BadEnd, FrameSnippet, Numbers};
use super::methods::{CommandKind, Pending};
use super::output::Blocked;
use super::publish::misplaced_body;
use super::publish::{Content, PublishFlags, message_flags};

impl Connection {
    /// Handles input from `input[*at..]`, advances `at` past the consumed bytes, and stops at the first point at
    /// which the caller must decide something.
    ///
    /// A command borrows from `input` and `names`. It must be answered before any connection is called again.
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
            InputStep::Command { .. } | InputStep::Finished => {}
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
        if let Some(step) = self.republish_delivery(context) {
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

    /// Asks the broker first to take back what a channel held that was closed because of an error.
    fn step_release(&mut self) -> Option<InputStep<'static>> {
        let (_, channel) = self.input.release.take()?;
        self.input.pending = Pending::on_connection(CommandKind::Release, (0, 0));
        Some(InputStep::Command { channel: Some(channel), command: Command::CloseChannel })
    }

    fn step_open<'a>(
        &mut self,
        context: &mut Context<'_>,
        names: &'a mut Names,
        input: &'a [u8],
        at: &mut usize,
    ) -> InputStep<'a> {
        let (slot, method) = loop {
            if self.phase != Phase::Open {
                return self.step_over(context, input, at);
            }
            if self.input.body.is_begun {
                let Some(verdict) = self.stream_body(context, input, at) else {
                    return InputStep::NeedMore;
                };
                match self.conclude(context, verdict) {
                    Some(step) => return step,
                    None => continue,
                }
            }
            if !self.has_close_room(context) {
                return InputStep::Suspended(Suspension::ReplySpace);
            }
            let unread = &input[*at..];
            if let Some((len, step)) = self.step_fast_path(context, unread) {
                *at += len;
                return step;
            }
            if let Some(verdict) = self.begin_body(context, unread) {
                *at += FRAME_HEADER_LEN;
                match self.conclude(context, verdict) {
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
                Verdict::Done => *at += frame.input_len(),
                Verdict::Wait(suspension) => return InputStep::Suspended(suspension),
                Verdict::Named(slot, method) => {
                    *at += frame.input_len();
                    break (slot, method);
                }
                verdict => {
                    *at += frame.input_len();
                    if let Some(step) = self.conclude(context, verdict) {
                        return step;
                    }
                }
            }
        };
        match self.command(context, names, slot, method) {
            Ok(command) => self.ask(context, slot, command),
            // Only these errors concern the channel alone, so there is a channel to release.
            Err(fault) => self
                .conclude(context, Verdict::Fault(fault, method.id(), slot))
                .unwrap_or(InputStep::NeedMore),
        }
    }

    /// Makes the step that passes a command to the broker.
    pub(super) fn ask<'a>(&self, context: &Context<'_>, slot: Slot, command: Command<'a>) -> InputStep<'a> {
        let channel = match context.pools.channels[slot].state {
            ChannelState::Open(channel) => Some(channel),
            ChannelState::Opening | ChannelState::Closing | ChannelState::Ended => None,
        };
        InputStep::Command { channel, command }
    }

    /// Translates a verdict for the caller; `None` when the input continues (or the connection is closing).
    fn conclude<'a>(&mut self, context: &mut Context<'_>, verdict: Verdict<'a>) -> Option<InputStep<'a>> {
        match verdict {
            Verdict::InputStep(step) => Some(step),
            Verdict::Wait(suspension) => Some(InputStep::Suspended(suspension)),
            Verdict::Done | Verdict::Named(..) => None,
            Verdict::Fault(fault, id, slot) => {
                self.fail(context, slot, &fault, id, context.last_delivery);
                self.step_release()
            }
        }
    }

    /// Begins to stream a body frame. Returns `None` if `unread` begins with another frame.
    #[inline]
    fn begin_body(&mut self, context: &Context<'_>, unread: &[u8]) -> Option<Verdict<'static>> {
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
        Some(if is_next { Verdict::Done } else { misplaced_body(content) })
    }

    /// Consumes the available part of the body frame. Returns `None` if more is needed.
    fn stream_body(
        &mut self,
        context: &mut Context<'_>,
        input: &[u8],
        at: &mut usize,
    ) -> Option<Verdict<'static>> {
        let unread = &input[*at..];
        let here = unread.len().min(self.input.body.left as usize);
        if here > 0 {
            self.append_body(context, self.input.body.slot, &unread[..here]);
            self.input.body.left -= here as u32;
            *at += here;
        }
        let end = *unread.get(here).filter(|_| self.input.body.left == 0)?;
        if end != FRAME_END {
            return Some(self.bad_body_end(context, end));
        }
        *at += 1;
        self.input.body.is_begun = false;
        Some(self.body_frame_complete(context, self.input.body.slot))
    }

    /// The bytes of the body are already in the message, so the text cannot show them. It is the only text that
    /// differs from RabbitMQ's.
    fn bad_body_end(&mut self, context: &mut Context<'_>, found: u8) -> Verdict<'static> {
        self.input.body = BodyFrame::NONE;
        let fault = hard_fault(
            ReplyCode::FrameError,
            format_args!("type 3, body: {{invalid_frame_end_marker,{found}}}"),
        );
        self.close_deaf(context, &fault);
        Verdict::Done
    }

    fn handle_frame<'a>(&mut self, context: &mut Context<'_>, frame: Frame<'a>) -> Verdict<'a> {
        let number = frame.header.channel;
        match payload_kind(frame) {
            None => Verdict::Fault(unknown_frame(frame), (0, 0), NONE),
            Some(FrameKind::Heartbeat) if number == 0 => Verdict::Done,
            Some(FrameKind::Method) if number == 0 => self.handle_connection_method(context, frame),
            _ if number == 0 => Verdict::Fault(unexpected_frame(frame), (0, 0), NONE),
            Some(FrameKind::Method) => self.handle_channel_method(context, number, frame.payload),
            Some(FrameKind::Header) => self.handle_header(context, number, frame.payload),
            // Body frames do not reach this match: they were begun when their header had arrived.
            Some(FrameKind::Body | FrameKind::Heartbeat) => {
                Verdict::Fault(unexpected_frame(frame), (0, 0), NONE)
            }
        }
    }

    fn handle_connection_method<'a>(&mut self, context: &mut Context<'_>, frame: Frame<'a>) -> Verdict<'a> {
        let method = match Method::parse(frame.payload) {
            Ok(method) => method,
            Err(error) => {
                let (fault, id) = fault_of_method(error, frame.payload, true);
                return Verdict::Fault(fault, id, NONE);
            }
        };
        if !self.has_reply_room(context) {
            return Verdict::Wait(Suspension::ReplySpace);
        }
        match method {
            Method::ConnectionClose { reply_code, reply_text, .. } => {
                log::debug!(
                    "connection {}: the client closes it: {reply_code} {reply_text}",
                    self.id.index()
                );
                self.push_reply(context, 0, &Method::ConnectionCloseOk {}, 0);
                self.begin_end(context, Phase::Ending { until: context.now.after_ms(PARTING_MS) });
                Verdict::Done
            }
            Method::ConnectionUpdateSecret { .. } => {
                self.push_reply(context, 0, &Method::ConnectionUpdateSecretOk {}, 0);
                Verdict::Done
            }
            _ => Verdict::Fault(unexpected_method("running"), method.id(), NONE),
        }
    }

    /// Handles input after the end: only connection.close-ok, and a connection.close that crossed the broker's,
    /// count.
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
                Phase::Closing { is_deaf: false, .. } => {
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

    /// Returns whether this unhandled input contains the client's connection.close.
    pub fn has_close(&self, input: &[u8]) -> bool {
        const CLOSE: [u8; 4] = [0, 10, 0, 50];
        let begun = match self.input.body.is_begun {
            true => (self.input.body.left as usize).saturating_add(1),
            false => 0,
        };
        let mut unread = input.get(begun..).unwrap_or_default();
        while let Some(header) = FrameHeader::peek(unread) {
            let payload = &unread[FRAME_HEADER_LEN..];
            let is_method = header.raw_kind == FrameKind::Method as u8;
            if header.channel == 0 && is_method && payload.starts_with(&CLOSE) {
                return true;
            }
            let Some(rest) = payload.get(header.size as usize..).and_then(|rest| rest.get(1..)) else {
                break;
            };
            unread = rest;
        }
        false
    }

    /// Closes the connection although input waits for capacity ([`Self::has_close`] is true). The waiting input is
    /// dropped and the close is answered.
    pub fn leave(&mut self, context: &mut Context<'_>) {
        let text =
            format_args!(": the client closes it while it waits for room: what was not taken is dropped");
        self.warn(context, LogKind::Connection, text);
        let until = context.now.after_ms(self.close_patience_ms());
        self.begin_end(context, Phase::Closing { until, is_deaf: false });
    }

    /// Skips the next frame of a connection that the broker has closed. Returns `false` when there is none.
    fn skip_frame(&mut self, context: &mut Context<'_>, input: &[u8], at: &mut usize) -> bool {
        let unread = &input[*at..];
        if self.input.body.is_begun {
            // Payload and end octet are counted apart: together they may be 2^32, which does not fit into 32 bits.
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
                    Ok(Method::ConnectionClose { .. }) if self.has_reply_room(context) => {
                        self.push_reply(context, 0, &Method::ConnectionCloseOk {}, 0);
                    }
                    _ => {}
                }
            }
            Err(_) => self.go_deaf(context),
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
        self.close_deaf(context, &fault);
    }

    fn close_deaf(&mut self, context: &mut Context<'_>, fault: &Fault) {
        self.close_connection(context, fault, (0, 0));
        self.go_deaf(context);
    }

    fn go_deaf(&mut self, context: &Context<'_>) {
        let until = context.now.after_ms(PARTING_MS);
        self.phase = Phase::Closing { until, is_deaf: true };
    }

    /// Ends the channel or the connection as `fault` demands. `slot` is [`NONE`] when no open channel is concerned.
    /// The close of a channel is sent after its deliveries up to `order`, unless the broker takes them back.
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

    /// Sends connection.close and waits for the answer for a limited time.
    pub(super) fn close_connection(&mut self, context: &mut Context<'_>, fault: &Fault, id: (u16, u16)) {
        self.warn(context, LogKind::Connection, format_args!(": closed: {fault}"));
        let close = Method::ConnectionClose {
            reply_code: fault.code.code(),
            reply_text: &fault.text,
            class_id: id.0,
            method_id: id.1,
        };
        self.push_reply(context, 0, &close, 0);
        let until = context.now.after_ms(self.close_patience_ms());
        self.begin_end(context, Phase::Closing { until, is_deaf: false });
    }

    /// Ends the use of the broker.
    fn begin_end(&mut self, context: &mut Context<'_>, phase: Phase) {
        self.phase = phase;
        self.input.pending = Pending::NOTHING;
        self.input.release = None;
        self.input.is_suspended = false;
        self.output.is_heartbeat_due = false;
        self.blocked = Blocked::default();
        self.stop_channels(context);
    }

    /// Stops all channels except those with confirms that can still be sent. Confirms that wait for a return are
    /// dropped, because the client must not take their messages for routed.
    fn stop_channels(&mut self, context: &mut Context<'_>) {
        self.input.held_publish = NONE;
        self.input.body.slot = NONE;
        (self.confirms.to_tell, self.confirms.to_be_stored) = (ConfirmList::EMPTY, ConfirmList::EMPTY);
        let mut slot = self.channels.first;
        while slot != NONE {
            let next = context.pools.channels.next(slot);
            let record = &mut context.pools.channels[slot];
            record.listed = Listed::No;
            record.confirms.drop_waiting(context.durable);
            if record.confirms.front().is_none() {
                self.drop_channel(context, slot);
            } else {
                self.drop_content(context, slot);
                self.list_to_confirm(context, slot);
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

/// A complete publish in the input.
struct WholePublish<'i> {
    exchange: &'i [u8],
    routing_key: &'i [u8],
    bits: u8,
    properties: &'i [u8],
    body: &'i [u8],
    /// Number of bytes of input that it takes.
    input_len: usize,
}

impl Connection {
    /// The fast path: handles a complete publish or acknowledgement at the start of `unread` and returns its length.
    ///
    /// A small publish is three frames. Handling them one by one through every check costs more than routing the
    /// message. If all three are in the input, are valid, and the pools have capacity, the message is made in one
    /// step. In any other case nothing changes, `None` is returned, and the general path handles the frames with the
    /// same result.
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
            PUBLISH_ID => self.publish_whole(context, header.channel, unread),
            ACK_ID => self.ack_whole(context, header.channel, unread),
            _ => None,
        }
    }

    fn ack_whole(
        &mut self,
        context: &Context<'_>,
        number: u16,
        unread: &[u8],
    ) -> Option<(usize, InputStep<'static>)> {
        let (payload, _) = take_frame(unread, FrameKind::Method, number)?;
        let payload: &[u8; ACK_PAYLOAD_LEN] = payload.try_into().ok()?;
        let [_, _, _, _, tag @ .., bits] = *payload;
        let (slot, channel) = self.idle_channel(context, number)?;
        self.input.pending = Pending::on_channel(CommandKind::Silent, (60, 80), slot, true);
        let command = Command::Settle {
            delivery_tag: u64::from_be_bytes(tag),
            multiple: bits & 1 != 0,
            settlement: Settlement::Ack,
        };
        Some((ACK_PAYLOAD_LEN + FRAME_OVERHEAD, InputStep::Command { channel: Some(channel), command }))
    }

    fn publish_whole(
        &mut self,
        context: &mut Context<'_>,
        number: u16,
        unread: &[u8],
    ) -> Option<(usize, InputStep<'static>)> {
        let whole = WholePublish::read(unread, number, self.negotiated.frame_max)?;
        if whole.body.len() > context.settings.message_size_max as usize || whole.bits & IMMEDIATE != 0 {
            return None;
        }
        let exchange = core::str::from_utf8(whole.exchange).ok()?;
        let flags = match whole.properties {
            [0, 0] => MessageFlags::NONE,
            bytes => message_flags(Properties::parse(bytes).ok()?),
        };
        let (slot, channel) = self.idle_channel(context, number)?;
        if !context.pools.channels[slot].confirms.has_room() {
            return None;
        }
        let message = context.messages.begin(exchange, whole.routing_key, context.share).ok()?;
        let len = whole.body.len() as u32;
        if context.messages.reserve_content(message, whole.properties, flags, len, context.share).is_err() {
            context.messages.discard(message);
            return None;
        }
        context.messages.append_body(message, whole.body);
        context.messages.finish(message);

        let mandatory = whole.bits & MANDATORY != 0;
        let flags = PublishFlags { mandatory, immediate: false };
        context.pools.channels[slot].content = Content::Complete { message, flags };
        self.channels.contents += 1;
        self.blocked.concerned = self.capabilities.connection_blocked;
        self.input.pending = Pending::on_channel(CommandKind::Publish, PUBLISH, slot, true);
        let command = Command::Publish { message, mandatory };
        Some((whole.input_len, InputStep::Command { channel: Some(channel), command }))
    }

    /// Returns an open channel without a content in progress.
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

impl<'i> WholePublish<'i> {
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

/// Returns the payload of the frame at the start of `unread` if the frame is complete and of this type and
/// channel, and the bytes behind it.
#[inline]
fn take_frame(unread: &[u8], kind: FrameKind, number: u16) -> Option<(&[u8], &[u8])> {
    let (header, unread) = unread.split_first_chunk::<FRAME_HEADER_LEN>()?;
    let header = FrameHeader::parse(header);
    let (payload, unread) = unread.split_at_checked(header.size as usize)?;
    let (end, unread) = unread.split_first()?;
    let fits = header.raw_kind == kind as u8 && header.channel == number && *end == FRAME_END;
    fits.then_some((payload, unread))
}

#[inline]
fn take_short(unread: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, unread) = unread.split_first()?;
    unread.split_at_checked(usize::from(*len))
}

/// Makes an error of the connection with a reply code that ends connections anyway.
pub(super) fn hard_fault(code: ReplyCode, explanation: core::fmt::Arguments<'_>) -> Fault {
    Fault::connection(code, explanation)
}

/// Returns how a payload can be read; `None` when it is too short for its type or of no type.
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

pub(super) fn unknown_frame(frame: Frame<'_>) -> Fault {
    hard_fault(ReplyCode::FrameError, format_args!("{}: unknown_frame", snippet(frame)))
}

pub(super) fn unexpected_frame(frame: Frame<'_>) -> Fault {
    hard_fault(ReplyCode::UnexpectedFrame, format_args!("{}", snippet(frame)))
}

/// Checks a frame before its payload is read, in RabbitMQ's order, so that a frame with two mistakes is refused
/// for the same one. The frame is allowed on channel 0 only, and methods and heartbeats are allowed there.
pub(super) fn fault_of_frame(frame: Frame<'_>) -> Option<Fault> {
    let kind = payload_kind(frame);
    match (kind, frame.header.channel) {
        (None, _) => Some(unknown_frame(frame)),
        (Some(FrameKind::Method | FrameKind::Heartbeat), 0) => None,
        _ => Some(unexpected_frame(frame)),
    }
}

/// Returns the error for a method that cannot be read, and the method it concerns.
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

/// Why input stops although there is some.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Suspension {
    /// The client does not read its replies: continue when some output was written.
    ReplySpace,
    /// There is no capacity for the published message: continue when messages have left the broker.
    ContentRoom(PoolFull),
}

/// The result of handling input.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum InputStep<'a> {
    /// Every complete frame was handled.
    NeedMore,
    /// Apply the command, call [`super::Connection::answer`], then call [`super::Connection::next`] again.
    Command {
        /// The broker's channel; `None` for commands of the connection itself.
        channel: Option<ChannelId>,
        /// The command.
        command: Command<'a>,
    },
    /// Input stops for now.
    Suspended(Suspension),
    /// Nothing more is read: write the pending output, then close the socket.
    Finished,
}

/// The result of handling one frame.
pub(super) enum Verdict<'a> {
    /// The frame was handled.
    Done,
    /// It cannot be begun now and stays in the input.
    Wait(Suspension),
    /// It was handled, and the broker is asked.
    InputStep(InputStep<'a>),
    /// A method on an open channel that becomes a command with names.
    Named(Slot, Method<'a>),
    /// An error of the client, with the method and, if it is open, the channel.
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
    /// The channel of its content; [`NONE`] when it is skipped.
    pub(super) slot: Slot,
    /// Number of payload bytes still to come, before the end octet.
    pub(super) left: u32,
    pub(super) is_begun: bool,
}

impl BodyFrame {
    pub(super) const NONE: Self = Self { slot: NONE, left: 0, is_begun: false };
}

/// basic.publish, the method that contents belong to.
pub(super) const PUBLISH: (u16, u16) = (60, 40);
