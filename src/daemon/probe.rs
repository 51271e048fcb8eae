//! `leveret check --connect`: tries every upstream of every bridge once, with blocking sockets.
//!
//! Whether the user has the permission for a rule is tested with an invalid request: a publish with an
//! invalid expiration, or a consumer with an invalid priority. It has no effect. If the user has the
//! permission, the upstream refuses the request with 406, otherwise with 403 or 404.
//!
//! # Invariants
//! - No message is published or delivered.
//! - The result has one line per upstream, with what works and what does not.
//! - No operation on the socket waits longer than [`STEP_TIMEOUT`]. A name lookup has the time limit of the system.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use leveret_amqp::{Edit, Properties, PropertyEdit, Writer};
use leveret_bridge::{Client, Credentials, Event, PublishHead, Request, not_tls, write_head};
use leveret_config::Config;
use leveret_config::bridge::{Bridge, Destination, Rule, UpstreamTls, read_password};
use leveret_config::upstream::Upstream;
use leveret_core::mem::{ByteChain, BytePool};
use leveret_core::time::Now;
use leveret_tls::{
    HandshakeResult, KnownTime, PLAIN_BYTES_MAX, RECORD_BYTES_MAX, SEALED_BYTES_MAX, Session, Tls,
};

/// A value that is no number of milliseconds, so that the upstream refuses the publish with 406.
const INVALID_EXPIRATION: &[u8] = b"check";
/// Buffer size for `basic.publish` and its content header.
const PUBLISH_BYTES_MAX: usize = 2048;
/// The reply code for a request that is permitted but invalid.
const PRECONDITION_FAILED: u16 = 406;
/// The time for the [`Client`]. Without heartbeats it uses the time only for deadlines, which are not checked here.
const NOW: Now = Now::from_ms(0);

/// The result of trying an upstream: the texts of what works and of what does not.
#[derive(Default)]
struct Found {
    works: Vec<String>,
    fails: Vec<String>,
}

/// Tries every upstream once. Returns a text with one line for each, and whether everything works.
pub fn try_upstreams(config: &Config) -> (String, bool) {
    let (mut text, mut is_good) = (String::new(), true);
    for bridge in &config.bridges {
        for upstream in &bridge.upstream {
            let mut found = Found::default();
            if let Err(why) = try_upstream(config, bridge, upstream, &mut found) {
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

fn try_upstream(
    config: &Config,
    bridge: &Bridge,
    upstream: &Upstream,
    found: &mut Found,
) -> Result<(), String> {
    let addresses = (upstream.host.as_str(), upstream.port).to_socket_addrs();
    let addresses: Vec<_> = addresses
        .map_err(|error| format!("its name {} cannot be looked up: {error}", upstream.host))?
        .collect();
    found.works.push("name".into());
    let mut line = Line::connect(&addresses)?;
    found.works.push("connection".into());
    if upstream.with_tls {
        let mut known = KnownTime::stored_in(&config.data_dir);
        let spoken = line.make_handshake(&upstream.host, &bridge.tls, &mut known)?;
        found.works.push(format!("TLS ({spoken})"));
    }
    let mut connection = ProbeConnection::log_in(line, config, bridge, upstream)?;
    let frame_max = connection.client.frame_max();
    found.works.push(format!("login and virtual host (frames of {frame_max} bytes)"));
    for (rules, is_forward) in [(&bridge.forward, true), (&bridge.fetch, false)] {
        for rule in rules {
            let result = if is_forward { connection.try_forward(rule) } else { connection.try_fetch(rule) };
            let shown = shown(rule, is_forward);
            match result? {
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
    connection.client.close(NOW);
    connection.line.write(connection.client.pending())
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

/// An AMQP connection to an upstream, with one channel.
struct ProbeConnection {
    line: Line,
    input: Vec<u8>,
    client: Client,
}

/// `Ok` if a request is permitted; else the reason why not.
type Allowed = Result<(), String>;
/// `Ok` if a request succeeded; else the code and text with which the channel was closed.
type Reply = Result<(), (u16, String)>;

impl ProbeConnection {
    /// Logs in, and opens the virtual host and a channel.
    fn log_in(line: Line, config: &Config, bridge: &Bridge, upstream: &Upstream) -> Result<Self, String> {
        let mut upstream = upstream.clone();
        if let Some(file) = bridge.password_file.as_ref().filter(|_| upstream.password.is_none()) {
            upstream.password = Some(read_password(file)?);
        }
        let credentials = Credentials {
            upstream,
            name: format!("leveret check {}", bridge.name),
            version: config.product.version.clone(),
        };
        let client = Client::new(NOW, 1, credentials, config.limits.frame_max, 0);
        let mut connection = Self { line, input: Vec::new(), client };
        // The answer is `Event::Open`: no channel is open that could be closed.
        let _ = connection.wait()?;
        connection.open_channel().map_err(|why| format!("it opens no channel: {why}"))?;
        Ok(connection)
    }

    fn open_channel(&mut self) -> Result<(), String> {
        self.client.request(NOW, 0, [Request::Open]);
        self.wait()?.map_err(|(_, text)| text)
    }

    /// Writes the pending methods to the socket, and waits until the connection is open or the last request is answered.
    ///
    /// # Errors
    /// The connection failed.
    fn wait(&mut self) -> Result<Reply, String> {
        loop {
            self.line.write(self.client.pending())?;
            self.client.note_methods_written(NOW, usize::MAX);
            let mut at = 0;
            let event = self.client.next(&self.input, &mut at);
            let needs_input = matches!(event, Event::NeedMore);
            let reply = match event {
                Event::Open | Event::Answered { .. } => Some(Ok(())),
                Event::Closed { code, cause, .. } => Some(Err((code, cause.as_str().to_string()))),
                Event::Lost(cause) => return Err(cause.as_str().to_string()),
                _ => None,
            };
            self.input.drain(..at);
            match reply {
                Some(reply) => return Ok(reply),
                None if needs_input && self.client.pending().is_empty() => self.line.read(&mut self.input)?,
                None => {}
            }
        }
    }

    /// Waits for the reply to a request. If the upstream closed the channel, opens it again.
    fn receive_reply(&mut self) -> Result<Reply, String> {
        let reply = self.wait()?;
        if reply.is_err() {
            self.open_channel().map_err(|why| format!("it opens no further channel: {why}"))?;
        }
        Ok(reply)
    }

    fn check_queue_exists(&mut self, queue: &str) -> Result<Allowed, String> {
        self.client.request(NOW, 0, [Request::FindQueue(queue.to_string(), None)]);
        Ok(self.receive_reply()?.map_err(|(_, text)| text))
    }

    /// Returns whether an invalid request is permitted: the reply is a success or 406.
    fn receive_permission(&mut self) -> Result<Allowed, String> {
        Ok(match self.receive_reply()? {
            Ok(()) | Err((PRECONDITION_FAILED, _)) => Ok(()),
            Err((_, text)) => Err(text),
        })
    }

    fn try_forward(&mut self, rule: &Rule) -> Result<Allowed, String> {
        if let Destination::Queue(queue) = &rule.to
            && let Err(why) = self.check_queue_exists(queue)?
        {
            return Ok(Err(why));
        }
        let exchange = rule.to.exchange().unwrap_or_default();
        let key = rule.to.key().unwrap_or("leveret.check");
        let mut properties = [0; 64];
        let mut writer = Writer::new(&mut properties);
        let edit = PropertyEdit { expiration: Edit::Set(INVALID_EXPIRATION), ..PropertyEdit::default() };
        let too_long = |_| "its names are too long for a frame".to_string();
        Properties::EMPTY.write_with(edit, &mut writer).map_err(too_long)?;
        let properties = Properties::trusted(writer.written());
        let head = PublishHead { exchange, routing_key: key.as_bytes(), properties, body_len: 0 };
        let mut publish = [0; PUBLISH_BYTES_MAX];
        let len = write_head(Client::channel_of(0), &head, self.client.frame_max(), &mut publish);
        self.line.write(&publish[..len.map_err(too_long)?])?;
        self.receive_permission()
    }

    fn try_fetch(&mut self, rule: &Rule) -> Result<Allowed, String> {
        if let Err(why) = self.check_queue_exists(&rule.queue)? {
            return Ok(Err(why));
        }
        let mut room = [0; 64];
        let mut writer = Writer::new(&mut room);
        let written = writer.table(|table| table.text("x-priority", "check"));
        written.map_err(|_| "its names are too long for a frame")?;
        let arguments = writer.written().get(4..).unwrap_or_default().to_vec();
        let queue = Some(rule.queue.clone());
        self.client.request(NOW, 0, [Request::Consume { queue, arguments, has_reply: true }]);
        self.receive_permission()
    }
}

/// Time limit for each step.
pub(super) const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// Size of the buffers for messages of rustls and for input that follows a handshake.
const POOL_BYTES: usize = 64 << 10;

/// Prefix of the error texts about TLS.
const OF_TLS: &str = "TLS: ";

/// A blocking connection, optionally with TLS.
pub(super) struct Line {
    socket: TcpStream,
    tls_state: Option<TlsState>,
}

/// The state of TLS.
struct TlsState {
    session: Session,
    pool: BytePool,
    /// Encrypted input that was not decrypted yet.
    encrypted: Vec<u8>,
    /// Decrypted input that followed the handshake.
    early: Vec<u8>,
}

impl Line {
    /// Connects to the first address that accepts the connection.
    ///
    /// # Errors
    /// Why no address accepts a connection.
    pub(super) fn connect(addresses: &[SocketAddr]) -> Result<Self, String> {
        let mut why = "its name has no address".to_string();
        for address in addresses {
            let connected = TcpStream::connect_timeout(address, STEP_TIMEOUT).and_then(|socket| {
                socket.set_read_timeout(Some(STEP_TIMEOUT))?;
                socket.set_write_timeout(Some(STEP_TIMEOUT))?;
                socket.set_nodelay(true).map(|()| socket)
            });
            match connected {
                Ok(socket) => return Ok(Self { socket, tls_state: None }),
                Err(error) => why = format!("{address} cannot be reached: {error}"),
            }
        }
        Err(why)
    }

    /// Makes the TLS handshake. Returns version and cipher suite, as text.
    ///
    /// # Errors
    /// Why the handshake failed.
    pub(super) fn make_handshake(
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
                    self.tls_state = Some(TlsState { session, pool, encrypted: held, early });
                    return Ok(spoken);
                }
            }
        }
    }

    /// Writes all bytes.
    ///
    /// # Errors
    /// The connection was closed or failed.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), String> {
        let Some(tls_state) = &mut self.tls_state else {
            return self.socket.write_all(bytes).map_err(failed);
        };
        let mut sealed = vec![0; SEALED_BYTES_MAX];
        for piece in bytes.chunks(PLAIN_BYTES_MAX) {
            let len = tls_state.session.seal(piece, &mut sealed).map_err(failed)?;
            if let Err(error) = self.socket.write_all(&sealed[..len]) {
                return Err(self.reason_of_failed_write(error));
            }
        }
        Ok(())
    }

    /// Returns why writing failed: the reason that the peer sent before it closed the connection, if there is
    /// one, else `error`.
    fn reason_of_failed_write(&mut self, error: io::Error) -> String {
        match self.read(&mut Vec::new()) {
            Err(why) if why.starts_with(OF_TLS) => why,
            _ => failed(error),
        }
    }

    /// Waits for input and appends it to `input`.
    ///
    /// # Errors
    /// No input arrived within the time limit, or the connection failed.
    pub(super) fn read(&mut self, input: &mut Vec<u8>) -> Result<(), String> {
        let mut room = vec![0; RECORD_BYTES_MAX];
        loop {
            let Some(tls_state) = &mut self.tls_state else {
                let len = self.receive(&mut room)?;
                input.extend_from_slice(&room[..len]);
                return Ok(());
            };
            let before = input.len();
            input.append(&mut tls_state.early);
            let mut plain = vec![0; tls_state.encrypted.len()];
            let mut unsent = ByteChain::default();
            let unsealed = tls_state.session.unseal(
                &mut tls_state.encrypted,
                &mut plain,
                &mut unsent,
                &mut tls_state.pool,
            );
            unsent.clear(&mut tls_state.pool);
            input.extend_from_slice(&plain[..unsealed.plain]);
            tls_state.encrypted.drain(..unsealed.taken);
            if let Some(why) = tls_state.session.fault() {
                return Err(format!("{OF_TLS}{why}"));
            }
            if input.len() > before {
                return Ok(());
            }
            if unsealed.end {
                return Err(hung_up());
            }
            let len = self.receive(&mut room)?;
            if let Some(tls_state) = &mut self.tls_state {
                tls_state.encrypted.extend_from_slice(&room[..len]);
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
            format!("it sent nothing for {} s", STEP_TIMEOUT.as_secs())
        }
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => hung_up(),
        _ => format!("the connection broke: {error}"),
    }
}
