//! Writes the frames of one delivery (method, header and body), from any byte position on.
//!
//! ```text
//!   | method frame | header frame | body frame (frame_max) | body frame (frame_max) | last body frame |
//!   0              method         header                                                        total
//! ```
//!
//! A delivery larger than the output buffer is written in parts. Between two parts, only the number of
//! written bytes is stored, because the positions of the frames can be computed from lengths. Properties that
//! differ from those of the stored message (without `BCC`, or with `x-delivery-count`) are computed again for
//! each part.

use leveret_amqp::props::{BLIND_BYTES_MAX, Properties, PropertyEdit};
use leveret_amqp::{
    BASIC_CLASS, BodyFrames, FRAME_END, FRAME_HEADER_LEN, FRAME_OVERHEAD, FrameHeader, FrameKind, Table,
    TableWriter, Writer,
};
use leveret_core::command::{Delivery, DeliveryKind};
use leveret_core::mem::{Cursor, MessageFlags, MessageId, Messages};

/// A delivery that is partly written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Begun {
    /// Number of bytes of the delivery that were written.
    pub(super) sent: u64,
    /// Offset in the body and cursor at which the last part ended, if it ended in the body. The cursor saves a search.
    pub(super) body_at: Option<(u32, Cursor)>,
}

/// Length of the part of a header frame before the properties: class, weight and body size.
const CONTENT_HEAD_LEN: usize = 12;
/// Maximum length of a method frame: frame header and end, class and method, three names, a tag, a flag and a count or
/// code.
const METHOD_FRAME_BYTES_MAX: usize = FRAME_OVERHEAD + 4 + 3 * 256 + 8 + 1 + 4;

/// RabbitMQ's header with the number of previous delivery attempts.
const COUNT_HEADER: &str = "x-delivery-count";
/// Length of this header in bytes, including a header table if the message has none.
const COUNT_BYTES: usize = 32;

/// Properties that differ from those of the stored message.
type Rewritten = heapless::Vec<u8, { BLIND_BYTES_MAX + COUNT_BYTES }>;

/// Returns whether the properties differ from those of the stored message.
#[inline]
fn is_rewritten(messages: &Messages, delivery: &Delivery<'_>) -> bool {
    delivery.delivery_count.is_some() || messages.flags(delivery.message).has(MessageFlags::HAS_BCC)
}

/// Returns the properties that differ from those of the stored message; `None` if they are too long or do not differ. The
/// result is the same for each part of a delivery.
#[cold]
fn rewritten(messages: &Messages, delivery: &Delivery<'_>, frame_max: u32) -> Option<Rewritten> {
    let room = (frame_max as usize).checked_sub(FRAME_OVERHEAD + CONTENT_HEAD_LEN + COUNT_BYTES)?;
    let len = messages.properties_len(delivery.message) as usize;
    if len > BLIND_BYTES_MAX {
        return None;
    }
    let mut scratch = [0; BLIND_BYTES_MAX];
    let properties = Properties::trusted(messages.properties(delivery.message, &mut scratch));
    let headers = properties.headers().unwrap_or(Table::EMPTY);
    let mut octets = [0; BLIND_BYTES_MAX + COUNT_BYTES];
    let mut writer = Writer::new(&mut octets);
    // The count is left out if it does not fit into the client's frames.
    let count = delivery.delivery_count.filter(|_| len <= room);
    let mut fill = |table: &mut TableWriter<'_, '_>| match count {
        Some(count) => table.sorted(headers, &|name| name != b"BCC", &[COUNT_HEADER], &mut |table, name| {
            table.long(name, count.into())
        }),
        None => table.entries_without(headers, "BCC"),
    };
    if count.is_none() && !properties.has_headers() {
        return None;
    }
    properties.write_with_headers(PropertyEdit::default(), &mut fill, &mut writer).ok()?;
    Rewritten::from_slice(writer.written()).ok()
}

/// The positions of a delivery's frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Layout {
    method_len: u32,
    /// End of the header frame, counted from the beginning of the delivery.
    header_end: u32,
    body_len: u32,
    frame_max: u32,
    /// The properties differ from those of the stored message.
    is_rewritten: bool,
}

impl Layout {
    #[inline(always)]
    pub(super) fn of(messages: &Messages, delivery: &Delivery<'_>, frame_max: u32) -> Self {
        let method_len = method_frame_len(delivery.kind, messages.names_len(delivery.message));
        let mut properties_len = messages.properties_len(delivery.message) as usize;
        let is_rewritten = is_rewritten(messages, delivery);
        if is_rewritten && let Some(rewritten) = rewritten(messages, delivery, frame_max) {
            properties_len = rewritten.len();
        }
        let header_len = FRAME_OVERHEAD + CONTENT_HEAD_LEN + properties_len;
        Self {
            method_len: method_len as u32,
            header_end: (method_len + header_len) as u32,
            body_len: messages.body_len(delivery.message),
            frame_max,
            is_rewritten,
        }
    }

    /// Returns whether the delivery has at most one body frame, and its properties are those of the stored message.
    #[inline]
    pub(super) const fn is_small(self) -> bool {
        self.body_len <= self.payload_max() && !self.is_rewritten
    }

    const fn payload_max(self) -> u32 {
        self.frame_max - FRAME_OVERHEAD as u32
    }

    #[inline]
    const fn body(self, channel: u16) -> BodyFrames {
        BodyFrames { channel, body_len: self.body_len, payload_max: self.payload_max() }
    }

    /// Returns the length of the delivery in bytes.
    #[inline]
    pub(super) const fn total(self) -> u64 {
        self.header_end as u64 + self.body(0).total()
    }

    /// Returns the end of the frame that contains byte `sent`, or `sent` if a frame begins there.
    pub(super) fn frame_end(self, sent: u64) -> u64 {
        let (method_len, header_end) = (u64::from(self.method_len), u64::from(self.header_end));
        if sent == 0 {
            0
        } else if sent <= method_len {
            method_len
        } else if sent <= header_end {
            header_end
        } else {
            header_end + self.body(0).frame_end(sent - header_end)
        }
    }
}

/// Returns the length of the frame of basic.deliver, basic.get-ok or basic.return.
#[inline]
const fn method_frame_len(kind: DeliveryKind<'_>, names_len: usize) -> usize {
    // Two names, each with its length.
    let names = names_len + 2;
    FRAME_OVERHEAD
        + 4
        + match kind {
            DeliveryKind::Deliver { consumer_tag } => 1 + consumer_tag.len() + 8 + 1 + names,
            DeliveryKind::GetOk { .. } => 8 + 1 + names + 4,
            DeliveryKind::Return(code) => 2 + 1 + code.name().len() + names,
            DeliveryKind::Publish(_) => panic!("only MQTT clients have subscriptions"),
        }
}

/// Writes to a slice that has exactly the length of the output.
struct ExactWriter<'o> {
    out: &'o mut [u8],
    at: usize,
}

impl ExactWriter<'_> {
    #[inline]
    fn raw(&mut self, octets: &[u8]) {
        self.out[self.at..self.at + octets.len()].copy_from_slice(octets);
        self.at += octets.len();
    }

    #[inline]
    fn short(&mut self, octets: &[u8]) {
        self.raw(&[octets.len() as u8]);
        self.raw(octets);
    }

    #[inline]
    fn frame_header(&mut self, kind: FrameKind, channel: u16, size: u32) {
        self.raw(&FrameHeader { raw_kind: kind as u8, channel, size }.to_bytes());
    }

    #[inline]
    fn content_head(&mut self, body_len: u32) {
        self.raw(&BASIC_CLASS.to_be_bytes());
        self.raw(&[0, 0]);
        self.raw(&u64::from(body_len).to_be_bytes());
    }

    /// Writes the method frame of a delivery.
    #[inline]
    fn method_frame(&mut self, messages: &Messages, delivery: &Delivery<'_>, len: u32) {
        let size = len - FRAME_OVERHEAD as u32;
        self.frame_header(FrameKind::Method, delivery.channel, size);
        let names = messages.names(delivery.message);
        let (exchange, routing_key) = names.split_at(messages.exchange_len(delivery.message));
        let tag = delivery.delivery_tag.to_be_bytes();
        let redelivered = [u8::from(delivery.redelivered)];
        match delivery.kind {
            DeliveryKind::Deliver { consumer_tag } => {
                self.raw(&[0, 60, 0, 60]);
                self.short(consumer_tag.as_bytes());
                self.raw(&tag);
                self.raw(&redelivered);
                self.short(exchange);
                self.short(routing_key);
            }
            DeliveryKind::GetOk { message_count } => {
                self.raw(&[0, 60, 0, 71]);
                self.raw(&tag);
                self.raw(&redelivered);
                self.short(exchange);
                self.short(routing_key);
                self.raw(&message_count.to_be_bytes());
            }
            DeliveryKind::Return(code) => {
                self.raw(&[0, 60, 0, 50]);
                self.raw(&code.code().to_be_bytes());
                self.short(code.name().as_bytes());
                self.short(exchange);
                self.short(routing_key);
            }
            DeliveryKind::Publish(_) => panic!("only MQTT clients have subscriptions"),
        }
        self.raw(&[FRAME_END]);
    }
}

/// Writes a delivery that [`Layout::is_small`] into `out`, which has exactly its length.
#[inline]
pub(super) fn write_small(messages: &Messages, delivery: &Delivery<'_>, layout: Layout, out: &mut [u8]) {
    let id = delivery.message;
    let properties_len = messages.properties_len(id);
    let mut put = ExactWriter { out, at: 0 };
    put.method_frame(messages, delivery, layout.method_len);
    put.frame_header(FrameKind::Header, delivery.channel, CONTENT_HEAD_LEN as u32 + properties_len);
    put.content_head(layout.body_len);
    // Properties and body follow each other, so one cursor reads both.
    let mut cursor = messages.properties_cursor(id);
    let end = put.at + properties_len as usize;
    messages.read(id, &mut cursor, &mut put.out[put.at..end]);
    put.at = end;
    put.raw(&[FRAME_END]);
    if layout.body_len > 0 {
        put.frame_header(FrameKind::Body, delivery.channel, layout.body_len);
        let end = put.at + layout.body_len as usize;
        messages.read(id, &mut cursor, &mut put.out[put.at..end]);
        put.at = end;
        put.raw(&[FRAME_END]);
    }
}

/// Writes a delivery from byte `begun.sent` on, up to the end of `out`. Returns the new position.
pub(super) fn write_part(
    messages: &Messages,
    delivery: &Delivery<'_>,
    layout: Layout,
    begun: Begun,
    out: &mut [u8],
) -> Begun {
    let mut part = PartWriter { messages, delivery, layout, begun, out, at: 0 };
    part.write();
    part.begun
}

/// Writes a delivery in parts.
struct PartWriter<'p> {
    messages: &'p Messages,
    delivery: &'p Delivery<'p>,
    layout: Layout,
    begun: Begun,
    out: &'p mut [u8],
    at: usize,
}

impl PartWriter<'_> {
    fn write(&mut self) {
        let (method_len, header_end) = (u64::from(self.layout.method_len), u64::from(self.layout.header_end));
        if self.begun.sent < method_len {
            let mut scratch = [0; METHOD_FRAME_BYTES_MAX];
            let frame = &mut scratch[..self.layout.method_len as usize];
            ExactWriter { out: &mut *frame, at: 0 }.method_frame(
                self.messages,
                self.delivery,
                self.layout.method_len,
            );
            self.copy(frame, 0);
        }
        if !self.is_full() && self.begun.sent < header_end {
            self.write_header(method_len);
        }
        if !self.is_full() {
            let at = self.begun.sent - header_end;
            let (frames, id) = (self.layout.body(self.delivery.channel), self.delivery.message);
            let out = &mut self.out[self.at..];
            let written = frames.write(self.messages, id, at, &mut self.begun.body_at, out);
            self.advance(written);
        }
    }

    const fn is_full(&self) -> bool {
        self.at == self.out.len()
    }

    /// Copies the unsent rest of a piece that begins at byte `start`, as far as it fits.
    fn copy(&mut self, piece: &[u8], start: u64) {
        let skip = (self.begun.sent - start) as usize;
        let rest = piece.get(skip..).unwrap_or_default();
        let take = rest.len().min(self.out.len() - self.at);
        self.out[self.at..self.at + take].copy_from_slice(&rest[..take]);
        self.advance(take);
    }

    const fn advance(&mut self, count: usize) {
        self.at += count;
        self.begun.sent += count as u64;
    }

    fn write_header(&mut self, start: u64) {
        let rewritten = match self.layout.is_rewritten {
            true => rewritten(self.messages, self.delivery, self.layout.frame_max),
            false => None,
        };
        let properties_len = match &rewritten {
            Some(rewritten) => rewritten.len() as u32,
            None => self.messages.properties_len(self.delivery.message),
        };
        let mut head = [0; FRAME_HEADER_LEN + CONTENT_HEAD_LEN];
        let mut put = ExactWriter { out: &mut head, at: 0 };
        put.frame_header(FrameKind::Header, self.delivery.channel, CONTENT_HEAD_LEN as u32 + properties_len);
        put.content_head(self.layout.body_len);
        let properties_at = start + head.len() as u64;
        let end_at = properties_at + u64::from(properties_len);
        if self.begun.sent < properties_at {
            self.copy(&head, start);
        }
        if let Some(rewritten) = rewritten
            && !self.is_full()
            && self.begun.sent < end_at
        {
            self.copy(&rewritten, properties_at);
        } else if !self.is_full() && self.begun.sent < end_at {
            let gone = (self.begun.sent - properties_at) as usize;
            let take = (properties_len as usize - gone).min(self.out.len() - self.at);
            let mut cursor = self.messages.properties_cursor(self.delivery.message);
            skip(self.messages, self.delivery.message, &mut cursor, gone);
            let piece = &mut self.out[self.at..self.at + take];
            self.messages.read(self.delivery.message, &mut cursor, piece);
            self.advance(take);
        }
        if !self.is_full() && self.begun.sent == end_at {
            self.copy(&[FRAME_END], end_at);
        }
    }
}

/// Advances a cursor by `count` bytes.
fn skip(messages: &Messages, id: MessageId, cursor: &mut Cursor, mut count: usize) {
    let mut nowhere = [0; 256];
    while count > 0 {
        let take = count.min(nowhere.len());
        messages.read(id, cursor, &mut nowhere[..take]);
        count -= take;
    }
}
