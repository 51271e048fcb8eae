//! The checks of a client on everything it receives: valid frames in an order that the protocol allows.
//!
//! # Invariants
//! - No frame is larger than negotiated.
//! - Contents are complete and not interleaved on their channel.
//! - Replies come in the order of the requests, each once.
//! - Delivery tags count up from one.
//! - Deliveries are only for consumers that have been announced.
//! - Every publish is confirmed at most once, on its channel.
//! - Nothing comes after a close.
//! - `connection.blocked` and `connection.unblocked` alternate.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use leveret_amqp::{ContentHeader, FrameKind, Method, next_frame};

/// A received method, with its content if it carries one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Said {
    pub channel: u16,
    payload: Vec<u8>,
    pub properties: Vec<u8>,
    pub body: Vec<u8>,
}

impl Said {
    pub fn method(&self) -> Method<'_> {
        Method::parse(&self.payload).expect("it was parsed before")
    }

    /// Formats the method for comparisons.
    pub fn shown(&self) -> String {
        format!("{} {:?}", self.channel, self.method())
    }
}

type Id = (u16, u16);

/// State of the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    Start,
    Tune,
    Opening,
    Open,
    /// One side has sent connection.close.
    Closing,
    Closed,
}

#[derive(Debug, Default)]
struct Channel {
    is_open: bool,
    /// The client has sent channel.close.
    is_closing: bool,
    /// Expected replies.
    expected: VecDeque<Id>,
    last_tag: u64,
    consumers: BTreeSet<String>,
    content: Option<Content>,
    /// Number of publishes, and the unconfirmed ones, since confirm.select.
    selected: bool,
    published: u64,
    unconfirmed: BTreeSet<u64>,
    /// The answer with the message of a get was omitted. That is allowed only if the channel is about to be
    /// closed.
    is_doomed: bool,
}

#[derive(Debug)]
struct Content {
    said: Said,
    /// Bytes of the body still to come; `None` before the header.
    left: Option<u64>,
}

/// The checks and their state.
#[derive(Debug)]
pub struct Checker {
    pub phase: Phase,
    pub frame_max: u32,
    pub is_blocked: bool,
    pub heartbeats: u64,
    channels: BTreeMap<u16, Channel>,
    zero_expected: VecDeque<Id>,
}

impl Default for Checker {
    fn default() -> Self {
        Self {
            phase: Phase::Start,
            frame_max: 4096,
            is_blocked: false,
            heartbeats: 0,
            channels: BTreeMap::new(),
            zero_expected: VecDeque::new(),
        }
    }
}

/// Returns the reply to a request, if it has one.
fn reply_to(method: &Method<'_>) -> Option<Id> {
    let no_wait = matches!(
        method,
        Method::ExchangeDeclare { no_wait: true, .. }
            | Method::ExchangeDelete { no_wait: true, .. }
            | Method::ExchangeBind { no_wait: true, .. }
            | Method::ExchangeUnbind { no_wait: true, .. }
            | Method::QueueDeclare { no_wait: true, .. }
            | Method::QueueBind { no_wait: true, .. }
            | Method::QueuePurge { no_wait: true, .. }
            | Method::QueueDelete { no_wait: true, .. }
            | Method::BasicConsume { no_wait: true, .. }
            | Method::BasicCancel { no_wait: true, .. }
            | Method::ConfirmSelect { no_wait: true }
    );
    match method.id() {
        _ if no_wait => None,
        (40, 40) => Some((40, 51)),
        (20, 41) | (10, 51) | (60, 40 | 80 | 90 | 100 | 120) => None,
        (class, number) => Some((class, number + 1)),
    }
}

impl Checker {
    /// Notes a method sent by the client. Its consequences are allowed from now on.
    pub fn note_sent(&mut self, number: u16, method: &Method<'_>) {
        if number == 0 {
            match method {
                Method::ConnectionClose { .. } => self.zero_expected.push_back((10, 51)),
                Method::ConnectionUpdateSecret { .. } => self.zero_expected.push_back((10, 71)),
                _ => {}
            }
            return;
        }
        let channel = self.channels.entry(number).or_default();
        match method {
            Method::ChannelOpen {} => *channel = Channel { is_open: true, ..Channel::default() },
            Method::ChannelClose { .. } => channel.is_closing = true,
            Method::ConfirmSelect { .. } => channel.selected = true,
            Method::BasicPublish { .. } if channel.selected => {
                channel.published += 1;
                channel.unconfirmed.insert(channel.published);
            }
            // There is no reply that would announce the consumer.
            Method::BasicConsume { no_wait: true, consumer_tag, .. } => {
                channel.consumers.insert((*consumer_tag).to_string());
            }
            _ => {}
        }
        if let Some(reply) = reply_to(method) {
            channel.expected.push_back(reply);
        }
    }

    /// Takes one frame from the front of `bytes`. Returns its length, and the method that it completes, if
    /// any.
    pub fn take(&mut self, bytes: &[u8]) -> Option<(usize, Option<Said>)> {
        let frame = next_frame(bytes, self.frame_max).expect("frames are sound and not too large")?;
        assert_ne!(self.phase, Phase::Closed, "a frame after the end: {frame:?}");
        let number = frame.header.channel;
        let said = match frame.header.kind().expect("frames are of a kind that there is") {
            FrameKind::Heartbeat => {
                assert!(number == 0 && frame.payload.is_empty(), "a heartbeat is empty");
                assert!(self.phase != Phase::Start && self.phase != Phase::Tune, "heartbeats are agreed on");
                self.heartbeats += 1;
                None
            }
            FrameKind::Method => self.take_method(number, frame.payload),
            FrameKind::Header => self.take_header(number, frame.payload),
            FrameKind::Body => self.take_body(number, frame.payload),
        };
        Some((frame.input_len(), said))
    }

    fn take_method(&mut self, number: u16, payload: &[u8]) -> Option<Said> {
        let method = Method::parse(payload).expect("methods are sound");
        let said = Said { channel: number, payload: payload.to_vec(), properties: vec![], body: vec![] };
        if number == 0 {
            self.check_connection_method(&method);
            return Some(said);
        }
        assert!(matches!(self.phase, Phase::Open | Phase::Closing), "{method:?} on a connection not open");
        let channel = self.channels.get_mut(&number).unwrap_or_else(|| panic!("{number} {method:?}"));
        assert!(channel.content.is_none(), "{method:?} in the midst of a content on channel {number}");
        channel.check_method(&method);
        if method.has_content() {
            channel.content = Some(Content { said, left: None });
            return None;
        }
        Some(said)
    }

    fn check_connection_method(&mut self, method: &Method<'_>) {
        self.phase = match (self.phase, method) {
            (Phase::Start, Method::ConnectionStart { .. }) => Phase::Tune,
            (Phase::Tune, Method::ConnectionTune { .. }) => Phase::Opening,
            (Phase::Opening, Method::ConnectionOpenOk {}) => Phase::Open,
            (Phase::Closing, Method::ConnectionCloseOk {}) => {
                assert_eq!(self.zero_expected.pop_front(), Some((10, 51)), "a close-ok without a close");
                Phase::Closed
            }
            (Phase::Open, Method::ConnectionCloseOk {}) => {
                assert_eq!(self.zero_expected.pop_front(), Some((10, 51)), "a close-ok without a close");
                Phase::Closed
            }
            (phase, Method::ConnectionClose { .. }) if phase != Phase::Start => Phase::Closing,
            (Phase::Open, Method::ConnectionUpdateSecretOk {}) => {
                assert_eq!(self.zero_expected.pop_front(), Some((10, 71)));
                Phase::Open
            }
            (Phase::Open, Method::ConnectionBlocked { .. }) => {
                assert!(!core::mem::replace(&mut self.is_blocked, true), "blocked is sent twice");
                Phase::Open
            }
            (Phase::Open, Method::ConnectionUnblocked {}) => {
                assert!(core::mem::replace(&mut self.is_blocked, false), "unblocked is sent without blocked");
                Phase::Open
            }
            (phase, method) => panic!("{method:?} in {phase:?}"),
        };
    }

    fn take_header(&mut self, number: u16, payload: &[u8]) -> Option<Said> {
        let content = self.content(number);
        let header = ContentHeader::parse(payload).expect("content headers are sound");
        assert_eq!(content.left, None, "a second content header");
        content.left = Some(header.body_len);
        content.said.properties = header.properties.as_bytes().to_vec();
        self.finish_content(number)
    }

    fn take_body(&mut self, number: u16, payload: &[u8]) -> Option<Said> {
        let content = self.content(number);
        assert!(!payload.is_empty(), "a body frame is not empty");
        let left = content.left.as_mut().expect("the header comes before the body");
        *left = left.checked_sub(payload.len() as u64).expect("the body is not longer than announced");
        content.said.body.extend_from_slice(payload);
        self.finish_content(number)
    }

    fn content(&mut self, number: u16) -> &mut Content {
        let channel = self.channels.get_mut(&number).expect("contents come on channels");
        channel.content.as_mut().expect("a header or a body follows a method that has them")
    }

    fn finish_content(&mut self, number: u16) -> Option<Said> {
        let channel = self.channels.get_mut(&number)?;
        let content = channel.content.take_if(|content| content.left == Some(0))?;
        Some(content.said)
    }

    /// Returns the number of unconfirmed publishes on this channel.
    pub fn unconfirmed(&self, number: u16) -> usize {
        self.channels.get(&number).map_or(0, |channel| channel.unconfirmed.len())
    }

    /// Returns the number of missing replies on all channels.
    pub fn replies_missing(&self) -> usize {
        self.channels.values().map(|channel| channel.expected.len()).sum()
    }

    /// Returns whether an answer to a get is missing on a channel that is still open.
    pub fn is_doomed(&self) -> bool {
        self.channels.values().any(|channel| channel.is_doomed)
    }

    pub fn is_open(&self, number: u16) -> bool {
        self.phase == Phase::Open && self.channels.get(&number).is_some_and(|channel| channel.is_open)
    }
}

impl Channel {
    fn check_method(&mut self, method: &Method<'_>) {
        if let Method::ChannelCloseOk {} = method {
            // A close of the client that crossed the broker's own is answered too.
            assert!(self.is_closing, "a channel close-ok without a close");
            // After a close, the broker no longer writes the message of a get.
            let missing = self.expected.iter().find(|reply| **reply != (60, 71));
            assert!(!self.is_open || missing == Some(&(20, 41)), "replies are missing: {missing:?}");
            *self = Self::default();
            return;
        }
        assert!(self.is_open, "{method:?} on a channel that is closed");
        match method {
            Method::ChannelClose { .. } => {
                let is_closing = self.is_closing;
                *self = Self { is_closing, ..Self::default() };
            }
            Method::BasicDeliver { consumer_tag, delivery_tag, .. } => {
                assert!(self.consumers.contains(*consumer_tag), "a delivery for {consumer_tag:?}");
                self.take_tag(*delivery_tag);
            }
            Method::BasicGetOk { delivery_tag, .. } => {
                self.take_tag(*delivery_tag);
                assert_eq!(self.expected.pop_front(), Some((60, 71)), "an unexpected get-ok");
            }
            Method::BasicGetEmpty {} => {
                // It is unknown which of several gets this answers.
                assert_eq!(self.expected.pop_front(), Some((60, 71)), "an unexpected get-empty");
            }
            Method::BasicReturn { .. } | Method::ChannelFlow { .. } => {}
            Method::BasicCancel { consumer_tag, .. } => {
                assert!(self.consumers.remove(*consumer_tag), "a cancel of an unknown consumer");
            }
            Method::BasicAck { delivery_tag, multiple }
            | Method::BasicNack { delivery_tag, multiple, .. } => self.confirm(*delivery_tag, *multiple),
            reply => self.take_reply(reply),
        }
    }

    fn take_reply(&mut self, reply: &Method<'_>) {
        while self.expected.front() == Some(&(60, 71)) {
            self.expected.pop_front();
            self.is_doomed = true;
        }
        assert_eq!(self.expected.pop_front(), Some(reply.id()), "{reply:?} is not the next reply");
        match reply {
            Method::BasicConsumeOk { consumer_tag } => {
                assert!(self.consumers.insert((*consumer_tag).to_string()), "a tag is used once at a time");
            }
            Method::BasicCancelOk { consumer_tag } => {
                self.consumers.remove(*consumer_tag);
            }
            _ => {}
        }
    }

    fn take_tag(&mut self, tag: u64) {
        assert_eq!(tag, self.last_tag + 1, "delivery tags are consecutive");
        self.last_tag = tag;
    }

    fn confirm(&mut self, tag: u64, multiple: bool) {
        assert!(tag <= self.published, "a confirm of {tag} after {} publishes", self.published);
        assert!(self.unconfirmed.remove(&tag), "publish {tag} is confirmed a second time");
        if multiple {
            self.unconfirmed = self.unconfirmed.split_off(&tag);
        }
    }
}
