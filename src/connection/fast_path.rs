//! Publishes and acknowledgements whose frames are all there: what comes by the million.
//!
//! Why it exists: a small publish is three frames, and taking them one by one through every check costs more
//! than routing the message. When all three lie in the input, are what they should be, and the pools have
//! room, the message is made in one go. What always holds: anything unusual, however slightly, leaves
//! everything untouched and is left to the general way (`content`, `methods`), which gives the same result;
//! so nothing is decided here but that nothing needs to be.

use super::channel::{Slot, State};
use super::connection::Connection;
use super::content::{Content, PublishFlags, message_flags};
use super::context::Context;
use super::pending::{Kind, Pending};
use super::step::{PUBLISH, Step};
use leveret_amqp::{FRAME_END, FRAME_HEADER_LEN, FRAME_OVERHEAD, FrameHeader, FrameKind, Properties};
use leveret_core::command::{ChannelId, Command, Settlement};
use leveret_core::mem::MessageFlags;

const PUBLISH_ID: [u8; 4] = [0, 60, 0, 40];
const ACK_ID: [u8; 4] = [0, 60, 0, 80];
/// basic.ack: its frame is always as long as this.
const ACK_PAYLOAD_LEN: usize = 4 + 8 + 1;
/// Class 60, weight 0.
const CONTENT_ID: [u8; 4] = [0, 60, 0, 0];
const MANDATORY: u8 = 1;
const IMMEDIATE: u8 = 2;

/// A publish as it lies in the input.
struct WholePublish<'i> {
    exchange: &'i [u8],
    routing_key: &'i [u8],
    bits: u8,
    properties: &'i [u8],
    body: &'i [u8],
    /// Octets of input that it takes.
    input_len: usize,
}

impl Connection {
    /// Handles a whole publish or acknowledgement at the start of `unread`; says how many octets it took.
    /// `None`: it is for somebody else.
    #[inline]
    pub(super) fn step_fast_path(
        &mut self,
        context: &mut Context<'_>,
        unread: &[u8],
    ) -> Option<(usize, Step<'static>)> {
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
    ) -> Option<(usize, Step<'static>)> {
        let (payload, _) = take_frame(unread, FrameKind::Method, number)?;
        let payload: &[u8; ACK_PAYLOAD_LEN] = payload.try_into().ok()?;
        let [_, _, _, _, tag @ .., bits] = *payload;
        let (slot, channel) = self.idle_channel(context, number)?;
        self.input.pending = Pending::on_channel(Kind::Silent, (60, 80), slot, true);
        let command = Command::Settle {
            delivery_tag: u64::from_be_bytes(tag),
            multiple: bits & 1 != 0,
            settlement: Settlement::Ack,
        };
        Some((ACK_PAYLOAD_LEN + FRAME_OVERHEAD, Step::Command { channel: Some(channel), command }))
    }

    fn publish_whole(
        &mut self,
        context: &mut Context<'_>,
        number: u16,
        unread: &[u8],
    ) -> Option<(usize, Step<'static>)> {
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
        self.input.pending = Pending::on_channel(Kind::Publish, PUBLISH, slot, true);
        let command = Command::Publish { message, mandatory };
        Some((whole.input_len, Step::Command { channel: Some(channel), command }))
    }

    /// An open channel without a content under way.
    #[inline]
    fn idle_channel(&mut self, context: &Context<'_>, number: u16) -> Option<(Slot, ChannelId)> {
        let slot = context.pools.channels.find(&mut self.channels, self.id, number)?;
        let record = &context.pools.channels[slot];
        match (record.state, record.content) {
            (State::Open(channel), Content::None) => Some((slot, channel)),
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
        // Class, method and the unused ticket.
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

/// The payload of the frame that `unread` begins with, when it is whole and of this kind and channel; and
/// what is behind it.
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
