//! One connection to a broker: a blocking socket, and a buffer that frames are read from in place.
//!
//! Always true: after [`Link::connect`] the connection is open and channels may be used. Whatever the broker
//! says that ends a channel or the connection comes back as [`BenchError::Closed`] with its own words.
//! Nothing here waits for ever.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::error::BenchError;
use super::url::Url;
use crate::wire::{Frame, FrameKind, Method, PROTOCOL_HEADER, Table, Writer, next_frame};

/// How long a broker may keep us waiting without a sign of life.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// How often somebody who waits looks whether it is still worth it.
const TICK: Duration = Duration::from_millis(20);

/// As much as a broker and its kernel are likely to hand over at once.
const INPUT_BYTES: usize = 256 << 10;
/// Octets of a table's length.
const TABLE_LENGTH_LEN: usize = 4;
/// What we offer and RabbitMQ offers.
const FRAME_MAX: u32 = 131_072;
/// A broker may offer more than we take, but this much fits.
const PAYLOAD_MAX: u32 = FRAME_MAX;

/// An open connection.
#[derive(Debug)]
pub(super) struct Link {
    stream: TcpStream,
    input: Box<[u8]>,
    start: usize,
    end: usize,
    frame_max: u32,
    channel_max: u16,
}

impl Link {
    /// Connects, logs in and opens the virtual host.
    pub(super) fn connect(url: &Url) -> Result<Self, BenchError> {
        let stream = open_socket(url).map_err(|why| BenchError::NoBroker { url: url.to_string(), why })?;
        let mut link = Self::over(stream)?;
        link.write(&PROTOCOL_HEADER)?;
        link.handshake(url)?;
        Ok(link)
    }

    /// A link that is not logged in: for the relay, which knows no logins.
    pub(super) fn over(stream: TcpStream) -> Result<Self, BenchError> {
        let set_up = || {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(TICK))?;
            stream.set_write_timeout(Some(PATIENCE))
        };
        set_up().map_err(BenchError::io("setting a socket up"))?;
        let input = vec![0; INPUT_BYTES].into_boxed_slice();
        Ok(Self { stream, input, start: 0, end: 0, frame_max: FRAME_MAX, channel_max: u16::MAX })
    }

    fn handshake(&mut self, url: &Url) -> Result<(), BenchError> {
        let mut takes_plain = false;
        self.wait("connection.start", 0, &mut |method| {
            let Method::ConnectionStart { mechanisms, .. } = method else { return false };
            takes_plain = mechanisms.split(|b| *b == b' ').any(is_plain);
            true
        })?;
        if !takes_plain {
            return Err(BenchError::Strange("it does not take PLAIN logins".to_string()));
        }
        let response = format!("\0{}\0{}", url.user, url.password);
        let properties = client_properties();
        let start_ok = Method::ConnectionStartOk {
            client_properties: Table::trusted(&properties),
            mechanism: "PLAIN",
            response: response.as_bytes(),
            locale: "en_US",
        };
        self.send(0, &start_ok)?;
        let (mut channel_max, mut frame_max) = (0, 0);
        self.wait("connection.tune", 0, &mut |method| {
            let &Method::ConnectionTune { channel_max: channels, frame_max: bytes, .. } = method else {
                return false;
            };
            (channel_max, frame_max) = (channels, bytes);
            true
        })?;
        // In both, 0 means no limit.
        self.channel_max = if channel_max == 0 { u16::MAX } else { channel_max };
        self.frame_max = if frame_max == 0 { FRAME_MAX } else { frame_max.min(FRAME_MAX) };
        // No heartbeats: a thread that blocks in a write could not send them.
        self.send(0, &Method::ConnectionTuneOk { channel_max, frame_max: self.frame_max, heartbeat: 0 })?;
        self.call(0, &Method::ConnectionOpen { virtual_host: &url.vhost }, "connection.open-ok", |method| {
            matches!(method, Method::ConnectionOpenOk {})
        })
    }

    /// Opens a channel.
    pub(super) fn open_channel(&mut self, channel: u16) -> Result<(), BenchError> {
        if channel > self.channel_max {
            let sentence =
                format!("a connection has at most {} channels: more --consumers", self.channel_max);
            return Err(BenchError::Silent(sentence));
        }
        self.call(channel, &Method::ChannelOpen {}, "channel.open-ok", |method| {
            matches!(method, Method::ChannelOpenOk {})
        })
    }

    /// Sends a method and waits for its answer.
    pub(super) fn call(
        &mut self,
        channel: u16,
        method: &Method<'_>,
        answer: &str,
        is_answer: impl Fn(&Method<'_>) -> bool,
    ) -> Result<(), BenchError> {
        self.send(channel, method)?;
        self.wait(answer, channel, &mut |method| is_answer(method))
    }

    /// Reads over everything until a method is taken.
    fn wait(
        &mut self,
        answer: &str,
        channel: u16,
        takes: &mut dyn FnMut(&Method<'_>) -> bool,
    ) -> Result<(), BenchError> {
        let mut deadline = Instant::now() + PATIENCE;
        loop {
            while let Some(frame) = self.frame()? {
                let len = frame.input_len();
                let is_taken = match frame.header.kind() {
                    Some(FrameKind::Method) => {
                        let method = read_method(&frame)?;
                        frame.header.channel == channel && takes(&method)
                    }
                    Some(FrameKind::Heartbeat) => false,
                    // Nobody waits for a method while there is still something to be delivered.
                    _ => return Err(BenchError::Wrong("more messages came than were sent".to_string())),
                };
                self.consume(len);
                if is_taken {
                    return Ok(());
                }
            }
            if self.fill()? {
                deadline = Instant::now() + PATIENCE;
            } else if Instant::now() > deadline {
                let seconds = PATIENCE.as_secs();
                return Err(BenchError::Silent(format!("no {answer} from the broker for {seconds} s")));
            }
        }
    }

    /// Sends one method.
    pub(super) fn send(&mut self, channel: u16, method: &Method<'_>) -> Result<(), BenchError> {
        let mut octets = [0; 2048];
        let mut writer = Writer::new(&mut octets);
        if method.emit_frame(channel, &mut writer).is_err() {
            return Err(BenchError::Strange(format!("{} is too long to be sent", method.name())));
        }
        self.write(writer.written())
    }

    /// Writes frames.
    pub(super) fn write(&mut self, octets: &[u8]) -> Result<(), BenchError> {
        match self.stream.write_all(octets) {
            Ok(()) => Ok(()),
            Err(why) => Err(self.explain(why)),
        }
    }

    /// What a failed write means: what the broker said before it closed, if it said something.
    fn explain(&mut self, why: io::Error) -> BenchError {
        if is_timeout(&why) {
            let seconds = PATIENCE.as_secs();
            return BenchError::Silent(format!(
                "the broker has not read for {seconds} s: it may wait for memory that only consumers free"
            ));
        }
        let deadline = Instant::now() + Duration::from_secs(1);
        while Instant::now() < deadline {
            while let Ok(Some(frame)) = self.frame() {
                let len = frame.input_len();
                if frame.header.kind() == Some(FrameKind::Method)
                    && let Err(trouble @ BenchError::Closed { .. }) = read_method(&frame)
                {
                    return trouble;
                }
                self.consume(len);
            }
            if self.fill().is_err() {
                break;
            }
        }
        BenchError::Io { doing: "writing to the broker", why }
    }

    /// Reads once; `false` when nothing came within a tick.
    pub(super) fn fill(&mut self) -> Result<bool, BenchError> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.input.len() {
            self.input.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        match self.stream.read(&mut self.input[self.end..]) {
            Ok(0) => Err(BenchError::HungUp),
            Ok(count) => {
                self.end += count;
                Ok(true)
            }
            Err(error) if is_timeout(&error) => Ok(false),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Err(BenchError::HungUp),
            Err(why) => Err(BenchError::Io { doing: "reading from the broker", why }),
        }
    }

    /// What has been read and not consumed.
    #[inline]
    pub(super) fn pending(&self) -> &[u8] {
        &self.input[self.start..self.end]
    }

    /// The first `len` octets of what is pending are done with.
    #[inline]
    pub(super) fn consume(&mut self, len: usize) {
        self.start = (self.start + len).min(self.end);
    }

    /// The next frame that is pending whole.
    pub(super) fn frame(&self) -> Result<Option<Frame<'_>>, BenchError> {
        first_frame(self.pending())
    }

    /// Says goodbye, and knows then that everything sent before has been handled.
    pub(super) fn close(mut self) -> Result<(), BenchError> {
        let close = Method::ConnectionClose { reply_code: 200, reply_text: "", class_id: 0, method_id: 0 };
        self.call(0, &close, "connection.close-ok", |method| matches!(method, Method::ConnectionCloseOk {}))
    }

    pub(super) const fn frame_max(&self) -> u32 {
        self.frame_max
    }

    /// A second handle to the same socket.
    pub(super) fn socket(&self) -> Result<TcpStream, BenchError> {
        self.stream.try_clone().map_err(BenchError::io("duplicating a socket"))
    }

    /// Where the broker is, if it is on this machine.
    pub(super) fn local_broker(&self) -> Option<SocketAddr> {
        let peer = self.stream.peer_addr().ok()?;
        let here = self.stream.local_addr().ok()?;
        (peer.ip() == here.ip()).then_some(peer)
    }
}

/// The frame that `octets` begin with.
#[inline]
pub(super) fn first_frame(octets: &[u8]) -> Result<Option<Frame<'_>>, BenchError> {
    next_frame(octets, PAYLOAD_MAX).map_err(|error| bad_frame(octets, &format!("{error:?}")))
}

#[cold]
fn bad_frame(octets: &[u8], why: &str) -> BenchError {
    if octets.starts_with(b"AMQP") {
        return BenchError::Strange("it speaks another version of AMQP".to_string());
    }
    BenchError::Strange(format!("{why}; is it an AMQP broker, without TLS?"))
}

/// A method the broker sent, unless it ends something.
pub(super) fn read_method<'a>(frame: &Frame<'a>) -> Result<Method<'a>, BenchError> {
    match Method::parse(frame.payload) {
        Ok(
            Method::ConnectionClose { reply_code, reply_text, .. }
            | Method::ChannelClose { reply_code, reply_text, .. },
        ) => Err(BenchError::Closed { code: reply_code, text: reply_text.to_string() }),
        Ok(Method::BasicCancel { .. }) => {
            Err(BenchError::Strange("it cancelled a consumer, so somebody deleted the queue".to_string()))
        }
        Ok(method) => Ok(method),
        Err(error) => Err(BenchError::Strange(error.to_string())),
    }
}

/// Ends a connection at once, whoever is blocked in it.
pub(super) fn cut(socket: &TcpStream) {
    // It may be gone already, which is as good.
    let _ = socket.shutdown(Shutdown::Both);
}

fn open_socket(url: &Url) -> io::Result<TcpStream> {
    let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in (url.host.as_str(), url.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn is_plain(mechanism: &[u8]) -> bool {
    mechanism == b"PLAIN"
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// Who we are, and that a refused login is to be told, not just cut off; as the octets of a table.
fn client_properties() -> Vec<u8> {
    let mut octets = vec![0; 256];
    let mut writer = Writer::new(&mut octets);
    let written = writer.table(|table| {
        table.text("product", "leveret-bench")?;
        table.table("capabilities", |capabilities| {
            capabilities.bool("authentication_failure_close", true)?;
            capabilities.bool("publisher_confirms", true)?;
            capabilities.bool("consumer_cancel_notify", true)?;
            capabilities.bool("basic.nack", true)
        })
    });
    // It fits; if it did not, a login without properties would do as well.
    let len = written.map_or(0, |()| writer.at());
    octets.truncate(len);
    octets.drain(..len.min(TABLE_LENGTH_LEN));
    octets
}
