//! `leveret check --connect`: tries every upstream of every bridge once, with blocking sockets.
//!
//! The permission for a rule is tested with a request that has no effect: a publish with an invalid expiration,
//! or a consumer with an invalid priority. An upstream that permits the valid request refuses this one with 406;
//! otherwise it answers 403 or 404.
//!
//! # Invariants
//! - No message is published or delivered.
//! - Each upstream gets one line that says what works and what does not.
//! - No step waits longer than [`PATIENCE`].

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use leveret_amqp::{
    ContentHeader, Edit, FrameKind, Method, Properties, PropertyEdit, Table, Writer, next_frame,
};
use leveret_bridge::{Client, Credentials, Event, Origin, not_tls};
use leveret_config::Config;
use leveret_config::bridge::{Bridge, Destination, Rule, UpstreamTls, read_password};
use leveret_config::upstream::Upstream;
use leveret_core::mem::{ByteChain, BytePool};
use leveret_core::time::Now;
use leveret_tls::{
    HandshakeResult, KnownTime, PLAIN_BYTES_MAX, RECORD_BYTES_MAX, SEALED_BYTES_MAX, Session, Tls,
};

/// An invalid expiration.
const NO_EXPIRATION: &[u8] = b"check";
/// Buffer size for a method and a content header.
const SAID_BYTES_MAX: usize = 2048;
/// The reply code that means: permitted, but invalid.
const PRECONDITION_FAILED: u16 = 406;
/// Maximum size of a received frame in bytes.
const FRAME_BYTES_MAX: u32 = 128 << 10;

/// The result of trying an upstream.
#[derive(Default)]
struct Found {
    works: Vec<String>,
    fails: Vec<String>,
}

/// Tries every upstream once. Returns a line for each, and whether everything works.
pub fn try_upstreams(config: &Config) -> (String, bool) {
    let (mut text, mut is_good) = (String::new(), true);
    for bridge in &config.bridges {
        for upstream in &bridge.upstream {
            let mut found = Found::default();
            if let Err(why) = visit(config, bridge, upstream, &mut found) {
                found.fails.push(why);
            }
            // Writing into a String cannot fail.
            let _ = write!(text, "bridge {}, {upstream}: ", bridge.name);
            for (at, (what, list)) in
                [("works: ", &found.works), ("DOES NOT: ", &found.fails)].iter().enumerate()
            {
                let between = if at == 1 && !found.works.is_empty() { "; " } else { "" };
                if !list.is_empty() {
                    let _ = write!(text, "{between}{what}{}", list.join(", "));
                }
            }
            text.push('\n');
            is_good &= found.fails.is_empty();
        }
    }
    if config.bridges.is_empty() {
        text.push_str("there is no [[bridge]], so there is no upstream to connect to\n");
    }
    (text, is_good)
}

fn visit(config: &Config, bridge: &Bridge, upstream: &Upstream, found: &mut Found) -> Result<(), String> {
    let addresses = (upstream.host.as_str(), upstream.port).to_socket_addrs();
    let addresses: Vec<_> = addresses
        .map_err(|error| format!("its name {} cannot be looked up: {error}", upstream.host))?
        .collect();
    found.works.push("name".into());
    let mut line = Line::connect(&addresses)?;
    found.works.push("connection".into());
    if upstream.with_tls {
        let mut known = KnownTime::stored_in(&config.data_dir);
        let spoken = line.shake(&upstream.host, &bridge.tls, &mut known)?;
        found.works.push(format!("TLS ({spoken})"));
    }
    let mut talk = Talk { line, input: Vec::new(), frame_max: FRAME_BYTES_MAX };
    talk.log_in(config, bridge, upstream)?;
    found.works.push(format!("login and virtual host (frames of {} bytes)", talk.frame_max));
    for (rules, is_forward) in [(&bridge.forward, true), (&bridge.fetch, false)] {
        for rule in rules {
            let asked = if is_forward { talk.try_forward(rule) } else { talk.try_fetch(rule) };
            let shown = shown(rule, is_forward);
            match asked? {
                Ok(()) => found.works.push(shown),
                Err(why) if bridge.declares && why.starts_with("404") && why.contains("no queue") => {
                    found.works.push(format!(
                        "{shown} (not there yet; it is declared when the bridge connects, for which the user \
                         there needs the right to configure it: not tried)"
                    ));
                }
                Err(why) => found.fails.push(format!("{shown}: {why}")),
            }
        }
    }
    talk.say(
        0,
        &Method::ConnectionClose { reply_code: 200, reply_text: "Goodbye", class_id: 0, method_id: 0 },
    )
}

fn shown(rule: &Rule, is_forward: bool) -> String {
    match (is_forward, &rule.to) {
        (false, _) => format!("to fetch from queue '{}'", rule.queue),
        (true, Destination::Queue(queue)) => format!("to forward to queue '{queue}'"),
        (true, Destination::Exchange(exchange, _)) => format!("to forward to exchange '{exchange}'"),
        // Only shovels have this destination, and they are not in the file.
        (true, Destination::OriginalExchange(_)) => "to forward to where messages were published".to_string(),
    }
}

/// An open connection to an upstream.
struct Talk {
    line: Line,
    input: Vec<u8>,
    frame_max: u32,
}

/// Whether a request is permitted, or why not.
type Allowed = Result<(), String>;

impl Talk {
    fn log_in(&mut self, config: &Config, bridge: &Bridge, upstream: &Upstream) -> Result<(), String> {
        let mut upstream = upstream.clone();
        if let Some(file) = bridge.password_file.as_ref().filter(|_| upstream.password.is_none()) {
            upstream.password = Some(read_password(file)?);
        }
        let credentials = Credentials {
            upstream,
            name: format!("leveret check {}", bridge.name),
            version: config.product.version.clone(),
        };
        let now = Now::from_ms(0);
        let limits = (config.limits.frame_max, 0);
        let mut client = Client::new(now, 1, credentials, Origin::default(), limits);
        loop {
            self.line.write(client.pending())?;
            client.note_methods_written(now, usize::MAX);
            let mut at = 0;
            let event = client.next(&self.input, &mut at);
            let ended = match event {
                Event::Ready { .. } => Some(Ok(client.frame_max())),
                Event::Closed { cause, .. } => Some(Err(format!("it opens no channel: {cause}"))),
                Event::Lost(cause) => Some(Err(cause.as_str().to_string())),
                Event::Open => {
                    client.open(now, 0, None, None);
                    None
                }
                _ => None,
            };
            self.input.drain(..at);
            match ended {
                Some(frame_max) => {
                    self.frame_max = frame_max?;
                    return Ok(());
                }
                None if client.pending().is_empty() => self.line.read(&mut self.input)?,
                None => {}
            }
        }
    }

    fn say(&mut self, channel: u16, method: &Method<'_>) -> Result<(), String> {
        let mut room = [0; SAID_BYTES_MAX];
        let mut writer = Writer::new(&mut room);
        method.emit_frame(channel, &mut writer).map_err(|_| "its names are too long for a frame")?;
        self.line.write(writer.written())
    }

    /// Waits for the answer: success, or the code and text with which the channel is closed.
    fn hear(&mut self) -> Result<Result<(), (u16, String)>, String> {
        loop {
            let frame = next_frame(&self.input, self.frame_max);
            let Some(frame) = frame.map_err(|_| "it sent something that is not a frame of AMQP 0-9-1")?
            else {
                self.line.read(&mut self.input)?;
                continue;
            };
            let (len, is_method) = (frame.input_len(), frame.header.kind() == Some(FrameKind::Method));
            let heard = match Method::parse(frame.payload) {
                Ok(Method::ChannelClose { reply_code, reply_text, .. }) if is_method => {
                    Some(Ok(Err((reply_code, reply_text.to_string()))))
                }
                Ok(Method::ConnectionClose { reply_code, reply_text, .. }) if is_method => {
                    Some(Err(format!("it closed the connection: {reply_code} {reply_text}")))
                }
                _ if is_method => Some(Ok(Ok(()))),
                _ => None,
            };
            self.input.drain(..len);
            if let Some(heard) = heard {
                return heard;
            }
        }
    }

    /// Sends a request, and opens the channel again if it was closed.
    fn ask(&mut self, method: &Method<'_>, content: &[u8]) -> Result<Result<(), (u16, String)>, String> {
        self.say(1, method)?;
        self.line.write(content)?;
        let answer = self.hear()?;
        if answer.is_err() {
            self.say(1, &Method::ChannelCloseOk {})?;
            self.say(1, &Method::ChannelOpen {})?;
            if let Err((code, text)) = self.hear()? {
                return Err(format!("it opens no further channel: {code} {text}"));
            }
        }
        Ok(answer)
    }

    fn is_there(&mut self, method: &Method<'_>) -> Result<Allowed, String> {
        Ok(self.ask(method, &[])?.map_err(|(code, text)| format!("{code} {text}")))
    }

    fn queue_is_there(&mut self, queue: &str) -> Result<Allowed, String> {
        let arguments = Table::EMPTY;
        let (passive, durable, exclusive, auto_delete, no_wait) = (true, false, false, false, false);
        self.is_there(&Method::QueueDeclare {
            queue,
            passive,
            durable,
            exclusive,
            auto_delete,
            no_wait,
            arguments,
        })
    }

    /// Returns whether the request is permitted: an upstream that permits it answers with 406.
    fn is_allowed(&mut self, method: &Method<'_>, content: &[u8]) -> Result<Allowed, String> {
        Ok(match self.ask(method, content)? {
            Ok(()) | Err((PRECONDITION_FAILED, _)) => Ok(()),
            Err((code, text)) => Err(format!("{code} {text}")),
        })
    }

    fn try_forward(&mut self, rule: &Rule) -> Result<Allowed, String> {
        if let Destination::Queue(queue) = &rule.to
            && let Err(why) = self.queue_is_there(queue)?
        {
            return Ok(Err(why));
        }
        let exchange = rule.to.exchange().unwrap_or_default();
        let key = rule.to.key().unwrap_or("leveret.check");
        let mut properties = [0; 64];
        let mut writer = Writer::new(&mut properties);
        let edit = PropertyEdit { expiration: Edit::Set(NO_EXPIRATION), ..PropertyEdit::default() };
        let too_long = |_| "its names are too long for a frame".to_string();
        Properties::EMPTY.write_with(edit, &mut writer).map_err(too_long)?;
        let properties = Properties::trusted(writer.written());
        let mut room = [0; 128];
        let mut writer = Writer::new(&mut room);
        ContentHeader::new(0, properties).emit_frame(1, &mut writer).map_err(too_long)?;
        let publish = Method::BasicPublish {
            exchange,
            routing_key: key.as_bytes(),
            mandatory: false,
            immediate: false,
        };
        self.is_allowed(&publish, writer.written())
    }

    fn try_fetch(&mut self, rule: &Rule) -> Result<Allowed, String> {
        if let Err(why) = self.queue_is_there(&rule.queue)? {
            return Ok(Err(why));
        }
        let mut room = [0; 64];
        let mut writer = Writer::new(&mut room);
        let written = writer.table(|table| table.text("x-priority", "check"));
        written.map_err(|_| "its names are too long for a frame")?;
        let arguments = Table::trusted(writer.written().get(4..).unwrap_or_default());
        self.is_allowed(
            &Method::BasicConsume {
                queue: &rule.queue,
                consumer_tag: "leveret-check",
                no_local: false,
                no_ack: false,
                exclusive: false,
                no_wait: false,
                arguments,
            },
            &[],
        )
    }
}

/// Time limit for each step.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Size of the buffers for messages of rustls and for input behind a handshake.
const POOL_BYTES: usize = 64 << 10;

/// Prefix of errors of TLS.
const OF_TLS: &str = "TLS: ";

/// A blocking connection, optionally with TLS.
pub(super) struct Line {
    socket: TcpStream,
    safe: Option<Safe>,
}

/// The state of TLS.
struct Safe {
    session: Session,
    pool: BytePool,
    /// Encrypted input that was not opened yet.
    held: Vec<u8>,
    /// Plaintext that followed the handshake.
    early: Vec<u8>,
}

impl Line {
    /// Connects to the first address that answers.
    ///
    /// # Errors
    /// Why none does.
    pub(super) fn connect(addresses: &[SocketAddr]) -> Result<Self, String> {
        let mut why = "its name has no address".to_string();
        for address in addresses {
            let connected = TcpStream::connect_timeout(address, PATIENCE).and_then(|socket| {
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.set_write_timeout(Some(PATIENCE))?;
                socket.set_nodelay(true).map(|()| socket)
            });
            match connected {
                Ok(socket) => return Ok(Self { socket, safe: None }),
                Err(error) => why = format!("{address} cannot be reached: {error}"),
            }
        }
        Err(why)
    }

    /// Runs the TLS handshake; returns version and cipher.
    ///
    /// # Errors
    /// Why it failed.
    pub(super) fn shake(
        &mut self,
        host: &str,
        tls: &UpstreamTls,
        known: &mut KnownTime,
    ) -> Result<String, String> {
        let Tls::Shaking(mut handshake) = Tls::to_upstream(host, tls) else {
            unreachable!("that is how it begins")
        };
        let mut room = vec![0; RECORD_BYTES_MAX];
        loop {
            if let Some(cause) = handshake.opening().and_then(not_tls) {
                return Err(cause.as_str().to_string());
            }
            if !handshake.is_ready() {
                let most = handshake.room().min(room.len());
                let len = self.receive(&mut room[..most])?;
                handshake.append_input(&room[..len]);
                continue;
            }
            let shaken = handshake.step(None, known);
            self.socket.write_all(&shaken.outgoing).map_err(failed)?;
            match shaken.next {
                HandshakeResult::More(again) => handshake = again,
                HandshakeResult::Failed(why) => return Err(format!("the TLS handshake failed: {why}")),
                HandshakeResult::Open(mut opened) => {
                    let spoken = core::mem::take(&mut opened.version_and_cipher);
                    let (mut pool, mut stash) = (BytePool::with_bytes(POOL_BYTES), ByteChain::default());
                    let session = Session::begin(*opened, &mut pool, &mut stash);
                    let mut session = session.ok_or("no memory for what it sent after its handshake")?;
                    let taken = |chain: &mut ByteChain| {
                        let mut bytes = vec![0; chain.len()];
                        chain.copy_front(&pool, &mut bytes);
                        bytes
                    };
                    let (held, early) = (taken(&mut session.incomplete_record), taken(&mut stash));
                    session.incomplete_record.clear(&mut pool);
                    stash.clear(&mut pool);
                    self.safe = Some(Safe { session, pool, held, early });
                    return Ok(spoken);
                }
            }
        }
    }

    /// Writes all bytes.
    ///
    /// # Errors
    /// The peer does not accept them.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), String> {
        let Some(safe) = &mut self.safe else { return self.socket.write_all(bytes).map_err(failed) };
        let mut sealed = vec![0; SEALED_BYTES_MAX];
        for piece in bytes.chunks(PLAIN_BYTES_MAX) {
            let len = safe.session.seal(piece, &mut sealed).map_err(failed)?;
            if let Err(error) = self.socket.write_all(&sealed[..len]) {
                return Err(self.last_words(error));
            }
        }
        Ok(())
    }

    /// Returns why nothing is accepted: what the peer sent before it closed the connection, if anything.
    fn last_words(&mut self, error: io::Error) -> String {
        match self.read(&mut Vec::new()) {
            Err(why) if why.starts_with(OF_TLS) => why,
            _ => failed(error),
        }
    }

    /// Appends the next input to `input`.
    ///
    /// # Errors
    /// No input arrives.
    pub(super) fn read(&mut self, input: &mut Vec<u8>) -> Result<(), String> {
        let mut room = vec![0; RECORD_BYTES_MAX];
        loop {
            let Some(safe) = &mut self.safe else {
                let len = self.receive(&mut room)?;
                input.extend_from_slice(&room[..len]);
                return Ok(());
            };
            let before = input.len();
            input.append(&mut safe.early);
            let mut plain = vec![0; safe.held.len()];
            let mut unsent = ByteChain::default();
            let unsealed = safe.session.unseal(&mut safe.held, &mut plain, (&mut unsent, &mut safe.pool));
            unsent.clear(&mut safe.pool);
            input.extend_from_slice(&plain[..unsealed.plain]);
            safe.held.drain(..unsealed.taken);
            if let Some(why) = safe.session.fault() {
                return Err(format!("{OF_TLS}{why}"));
            }
            if input.len() > before {
                return Ok(());
            }
            if unsealed.end {
                return Err(hung_up());
            }
            let len = self.receive(&mut room)?;
            if let Some(safe) = &mut self.safe {
                safe.held.extend_from_slice(&room[..len]);
            }
        }
    }

    fn receive(&mut self, room: &mut [u8]) -> Result<usize, String> {
        match self.socket.read(room) {
            Ok(0) => Err(hung_up()),
            Ok(len) => Ok(len),
            Err(error) => Err(failed(error)),
        }
    }
}

fn hung_up() -> String {
    "it closed the connection without a reason".into()
}

fn failed(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            format!("it sent nothing for {} s", PATIENCE.as_secs())
        }
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => hung_up(),
        _ => format!("the connection broke: {error}"),
    }
}
