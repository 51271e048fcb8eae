//! A simulated client. It does the handshake, sends heartbeats and answers closes by itself, and otherwise
//! sends what a test tells it to.
//!
//! # Invariants
//! - Everything it receives passes the checks of `checker`.
//! - Its bytes go through its line in order, as far as the line has capacity.

use std::collections::VecDeque;

use leveret_amqp::{
    ContentHeader, FrameKind, HEARTBEAT_FRAME, Method, PROTOCOL_HEADER, Properties, Table, Writer, next_frame,
};
use leveret_core::time::{Deadline, Now};

use super::checker::{Checker, Phase, Said};
use super::line::Line;

/// The step after which a client sends nothing more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Silence {
    Never,
    /// It connects and sends nothing.
    AtOnce,
    /// It sends the protocol header only.
    AfterHeader,
    AfterStartOk,
    AfterTuneOk,
}

/// How a client behaves.
#[derive(Clone, Debug)]
pub struct Manners {
    pub silence: Silence,
    /// The heartbeat interval that it requests, in seconds. It sends its own at half of it if
    /// `sends_heartbeats`.
    pub heartbeat_s: u16,
    pub sends_heartbeats: bool,
    pub frame_max: u32,
    /// Maximum number of bytes that it reads in one round.
    pub greed: usize,
    /// It does not read while it still has something to send, like a program blocked in `send`.
    pub sends_first: bool,
    /// It only checks that frames are valid, and reacts to none.
    pub is_heedless: bool,
    pub capabilities: &'static [&'static str],
    /// User name and password; both are the same word.
    pub user: &'static str,
    pub vhost: &'static str,
}

pub const CAPABLE: [&str; 3] =
    ["authentication_failure_close", "consumer_cancel_notify", "connection.blocked"];

impl Default for Manners {
    fn default() -> Self {
        Self {
            silence: Silence::Never,
            heartbeat_s: 0,
            sends_heartbeats: true,
            frame_max: 131_072,
            greed: usize::MAX,
            sends_first: false,
            is_heedless: false,
            capabilities: &CAPABLE,
            user: "guest",
            vhost: "/",
        }
    }
}

/// The client.
#[derive(Debug)]
pub struct Client {
    pub manners: Manners,
    pub checker: Checker,
    /// Received methods that no test has taken yet.
    pub heard: VecDeque<Said>,
    /// The channel limit in connection.tune.
    pub channel_max: u16,
    /// Code and text of the received connection.close.
    pub closed_with: Option<(u16, String)>,
    outgoing: Vec<u8>,
    /// Bytes queued before the connection was open.
    held_back: Vec<u8>,
    incoming: Vec<u8>,
    next_heartbeat: Deadline,
    last_read: Now,
    is_dead: bool,
    has_begun: bool,
}

impl Client {
    pub fn new(manners: Manners) -> Self {
        Self {
            manners,
            checker: Checker::default(),
            heard: VecDeque::new(),
            channel_max: 0,
            closed_with: None,
            outgoing: Vec::new(),
            held_back: Vec::new(),
            incoming: Vec::new(),
            next_heartbeat: Deadline::NEVER,
            last_read: Now::from_ms(0),
            is_dead: false,
            has_begun: false,
        }
    }

    /// Sends these bytes as soon as the connection is open.
    pub fn say(&mut self, bytes: &[u8]) {
        let is_open = !matches!(self.checker.phase, Phase::Start | Phase::Tune | Phase::Opening);
        if is_open { &mut self.outgoing } else { &mut self.held_back }.extend_from_slice(bytes);
    }

    /// Sends a method.
    pub fn send(&mut self, channel: u16, method: &Method<'_>) {
        self.checker.note_sent(channel, method);
        self.say(&method_frame(channel, method));
    }

    /// Sends bytes in any state of the connection.
    pub fn say_raw(&mut self, octets: &[u8]) {
        self.outgoing.extend_from_slice(octets);
    }

    /// Stops sending and reading. The line stays.
    pub fn die(&mut self) {
        self.is_dead = true;
        self.outgoing.clear();
    }

    /// Notes what was written to the client and will never be read, without a reaction.
    pub fn overhear(&mut self, line: &mut Line) {
        line.read_down(usize::MAX, &mut self.incoming);
        if !line.is_held {
            self.incoming.extend(line.take_refused());
        }
        let incoming = core::mem::take(&mut self.incoming);
        let mut at = 0;
        while let Some((len, said)) = self.checker.take(&incoming[at..]) {
            at += len;
            self.heard.extend(said);
        }
        self.incoming = incoming[at..].to_vec();
    }

    pub fn is_done_sending(&self) -> bool {
        self.outgoing.is_empty() && self.held_back.is_empty()
    }

    /// Returns the number of bytes that it has not passed to its line yet.
    pub const fn unsent(&self) -> usize {
        self.outgoing.len() + self.held_back.len()
    }

    /// Returns when something last arrived.
    pub fn last_read(&self) -> Now {
        self.last_read
    }

    pub fn next_deadline(&self) -> Deadline {
        if self.is_dead { Deadline::NEVER } else { self.next_heartbeat }
    }

    /// Sends and receives what is possible. Returns whether anything moved.
    pub fn step(&mut self, line: &mut Line, now: Now) -> bool {
        if self.is_dead {
            return false;
        }
        if !core::mem::replace(&mut self.has_begun, true) && self.manners.silence != Silence::AtOnce {
            self.outgoing.splice(0..0, PROTOCOL_HEADER);
        }
        if self.next_heartbeat.is_due(now) {
            self.outgoing.extend(HEARTBEAT_FRAME);
            self.next_heartbeat = now.after_ms(u64::from(self.manners.heartbeat_s) * 500);
        }
        let sent = line.write_up(&self.outgoing);
        self.outgoing.drain(..sent);
        let mut read = 0;
        if !self.manners.sends_first || self.outgoing.is_empty() {
            read = line.read_down(self.manners.greed, &mut self.incoming);
            if read > 0 {
                self.last_read = now;
                if self.manners.is_heedless {
                    self.skip_frames();
                } else {
                    self.take_frames(now);
                }
            }
        }
        sent + read > 0
    }

    fn take_frames(&mut self, now: Now) {
        let incoming = core::mem::take(&mut self.incoming);
        let mut at = 0;
        while let Some((len, said)) = self.checker.take(&incoming[at..]) {
            at += len;
            if let Some(said) = said {
                self.react(&said, now);
                self.heard.push_back(said);
            }
        }
        self.incoming = incoming[at..].to_vec();
    }

    fn skip_frames(&mut self) {
        let mut at = 0;
        // A protocol header from the broker is the answer to a wrong header.
        if self.incoming.starts_with(b"AMQP") {
            at = self.incoming.len();
        }
        while let Some(frame) = next_frame(&self.incoming[at..], 131_072).expect("frames are sound") {
            if frame.header.kind() == Some(FrameKind::Method) {
                Method::parse(frame.payload).expect("methods are sound");
            }
            at += frame.input_len();
        }
        self.incoming.drain(..at);
    }

    fn react(&mut self, said: &Said, now: Now) {
        match said.method() {
            Method::ConnectionStart { .. } if self.manners.silence != Silence::AfterHeader => {
                self.outgoing.extend(start_ok(self.manners.capabilities, self.manners.user));
            }
            Method::ConnectionTune { channel_max, frame_max, .. }
                if self.manners.silence != Silence::AfterStartOk =>
            {
                let frame_max = self.manners.frame_max.min(frame_max);
                self.checker.frame_max = frame_max;
                self.channel_max = channel_max;
                let heartbeat = self.manners.heartbeat_s;
                let tune_ok = Method::ConnectionTuneOk { channel_max, frame_max, heartbeat };
                self.outgoing.extend(method_frame(0, &tune_ok));
                if self.manners.silence != Silence::AfterTuneOk {
                    let open = Method::ConnectionOpen { virtual_host: self.manners.vhost };
                    self.outgoing.extend(method_frame(0, &open));
                }
                if heartbeat > 0 && self.manners.sends_heartbeats {
                    self.next_heartbeat = now.after_ms(u64::from(heartbeat) * 500);
                }
            }
            Method::ConnectionOpenOk {} => self.outgoing.append(&mut self.held_back),
            Method::ConnectionClose { reply_code, reply_text, .. } => {
                self.closed_with = Some((reply_code, reply_text.to_string()));
                self.outgoing.clear();
                self.outgoing.extend(method_frame(0, &Method::ConnectionCloseOk {}));
                self.next_heartbeat = Deadline::NEVER;
            }
            Method::ConnectionCloseOk {} => self.next_heartbeat = Deadline::NEVER,
            Method::ChannelClose { .. } => {
                self.say(&method_frame(said.channel, &Method::ChannelCloseOk {}));
            }
            _ => {}
        }
    }
}

fn start_ok(capabilities: &[&str], user: &str) -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    let mut writer = Writer::new(&mut bytes);
    let written = writer.table(|table| {
        table.table("capabilities", |inner| {
            capabilities.iter().try_for_each(|capability| inner.bool(capability, true))
        })
    });
    assert!(written.is_ok());
    let properties = writer.written()[4..].to_vec();
    let response = format!("\0{user}\0{user}");
    let start_ok = Method::ConnectionStartOk {
        client_properties: Table::trusted(&properties),
        mechanism: "PLAIN",
        response: response.as_bytes(),
        locale: "en_US",
    };
    method_frame(0, &start_ok)
}

/// Returns a method as a frame.
pub fn method_frame(channel: u16, method: &Method<'_>) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    let mut writer = Writer::new(&mut bytes);
    method.emit_frame(channel, &mut writer).expect("methods of tests are short");
    let len = writer.at();
    bytes.truncate(len);
    bytes
}

/// Returns any frame.
pub fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend(channel.to_be_bytes());
    bytes.extend((payload.len() as u32).to_be_bytes());
    bytes.extend(payload);
    bytes.push(0xCE);
    bytes
}

/// Returns a content header and the body after it, in frames of at most `piece` bytes of body.
pub fn content_frames(channel: u16, properties: &[u8], body: &[u8], piece: usize) -> Vec<u8> {
    let mut bytes = vec![0; properties.len() + 64];
    let mut writer = Writer::new(&mut bytes);
    let header = ContentHeader::new(body.len() as u64, Properties::trusted(properties));
    header.emit_frame(channel, &mut writer).expect("there is room");
    let len = writer.at();
    bytes.truncate(len);
    for piece in body.chunks(piece) {
        bytes.extend(frame(FrameKind::Body as u8, channel, piece));
    }
    bytes
}
