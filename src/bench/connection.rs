//! A connection to a broker: a blocking socket, and a buffer whose frames are read in place.
//!
//! # Invariants
//! - After [`Connection::connect`], the connection is open.
//! - `connection.close` and `channel.close` of the broker are returned as errors with its reply text.
//! - Once connected, no call waits longer than [`TIMEOUT`] for a broker that neither sends nor reads.

use std::error::Error;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Result;
use crate::config::upstream::Upstream;
use crate::wire::{Frame, FrameError, FrameKind, Method, PROTOCOL_HEADER, Table, Writer, next_frame};

/// How long the broker may neither send nor read.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);
/// A read returns after this time, so that a consumer notices that all messages were received.
const READ_TIMEOUT: Duration = Duration::from_millis(20);
const INPUT_BYTES: usize = 256 << 10;
/// The `frame_max` that RabbitMQ offers.
const FRAME_MAX: u32 = 131_072;
/// A field table begins with its length.
const TABLE_LENGTH_LEN: usize = 4;

/// An open connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
    input: Box<[u8]>,
    /// The bytes of `input` that were read and not consumed.
    start: usize,
    end: usize,
    pub(crate) frame_max: u32,
    /// Product, version and platform in the server properties.
    pub(crate) broker: String,
}

impl Connection {
    /// Connects, logs in and opens the virtual host.
    pub(crate) fn connect(url: &Upstream) -> Result<Self> {
        let stream = open_socket(url).map_err(|why| {
            format!("no broker at {url} ({why}): start one there, or name another by --url")
        })?;
        let input = vec![0; INPUT_BYTES].into_boxed_slice();
        let broker = String::new();
        let mut connection = Self { stream, input, start: 0, end: 0, frame_max: FRAME_MAX, broker };
        connection.write(&PROTOCOL_HEADER)?;
        connection.log_in(url)?;
        Ok(connection)
    }

    fn log_in(&mut self, url: &Upstream) -> Result<()> {
        self.broker = self.wait(0, "connection.start", |method| {
            let Method::ConnectionStart { server_properties, .. } = method else { return String::new() };
            let text = |name| server_properties.get(name).and_then(|value| value.as_str()).unwrap_or("?");
            format!("{} {}, {}", text("product"), text("version"), text("platform"))
        })?;
        let password = url.password.as_ref().map_or("guest", |secret| &secret.0);
        let response = format!("\0{}\0{password}", url.user);
        let properties = client_properties();
        let start_ok = Method::ConnectionStartOk {
            client_properties: Table::trusted(&properties),
            mechanism: "PLAIN",
            response: response.as_bytes(),
            locale: "en_US",
        };
        self.send(0, &start_ok)?;
        let (channel_max, frame_max) = self.wait(0, "connection.tune", |method| match *method {
            Method::ConnectionTune { channel_max, frame_max, .. } => (channel_max, frame_max),
            _ => (0, 0),
        })?;
        // 0 means no limit.
        self.frame_max = if frame_max == 0 { FRAME_MAX } else { frame_max.min(FRAME_MAX) };
        // Without heartbeats, for a thread that is blocked in a write could not send them.
        self.send(0, &Method::ConnectionTuneOk { channel_max, frame_max: self.frame_max, heartbeat: 0 })?;
        self.call(0, &Method::ConnectionOpen { virtual_host: &url.vhost })
    }

    /// Sends a method and waits for the `-ok` method that answers it.
    pub(crate) fn call(&mut self, channel: u16, method: &Method<'_>) -> Result<()> {
        self.send(channel, method)?;
        self.wait(channel, &format!("{}-ok", method.name()), |_| ())
    }

    /// Reads methods until the one with a name, and returns what `take` makes of it.
    fn wait<T>(&mut self, channel: u16, name: &str, take: impl Fn(&Method<'_>) -> T) -> Result<T> {
        let mut deadline = Instant::now() + TIMEOUT;
        loop {
            let mut taken = None;
            self.for_each_frame(|frame| {
                match frame.header.kind() {
                    Some(FrameKind::Method) => {
                        let method = read_method(frame)?;
                        if frame.header.channel == channel && method.name() == name {
                            taken = Some(take(&method));
                        }
                    }
                    Some(FrameKind::Heartbeat) => {}
                    // No method is awaited while messages are to be delivered.
                    _ => return Err("more messages were delivered than were sent".into()),
                }
                Ok(())
            })?;
            if let Some(taken) = taken {
                return Ok(taken);
            }
            if self.fill()? {
                deadline = Instant::now() + TIMEOUT;
            } else if Instant::now() > deadline {
                return Err(format!("the broker sent no {name} for {} s", TIMEOUT.as_secs()).into());
            }
        }
    }

    fn send(&mut self, channel: u16, method: &Method<'_>) -> Result<()> {
        let mut octets = [0; 2048];
        let mut writer = Writer::new(&mut octets);
        method.emit_frame(channel, &mut writer).map_err(|_| format!("{} is too long", method.name()))?;
        self.write(writer.written())
    }

    /// Writes frames.
    pub(crate) fn write(&mut self, octets: &[u8]) -> Result<()> {
        match self.stream.write_all(octets) {
            Ok(()) => Ok(()),
            Err(why) if is_timeout(&why) => {
                let seconds = TIMEOUT.as_secs();
                Err(format!("the broker has not read for {seconds} s: it may wait until memory is free")
                    .into())
            }
            Err(why) => {
                self.read_reason()?;
                Err(format!("writing to the broker failed: {why}").into())
            }
        }
    }

    /// After a failed write: reads what the broker sent before it closed the connection, and returns its reason.
    fn read_reason(&mut self) -> Result<()> {
        loop {
            self.for_each_frame(|frame| match frame.header.kind() {
                Some(FrameKind::Method) => read_method(frame).map(drop),
                _ => Ok(()),
            })?;
            if !self.fill()? {
                return Ok(());
            }
        }
    }

    /// Reads once. Returns `false` when nothing came within [`READ_TIMEOUT`].
    pub(crate) fn fill(&mut self) -> Result<bool> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.input.len() {
            self.input.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        match self.stream.read(&mut self.input[self.end..]) {
            Ok(count) if count > 0 => {
                self.end += count;
                Ok(true)
            }
            Err(why) if is_timeout(&why) => Ok(false),
            Err(why) if why.kind() != ErrorKind::ConnectionReset => {
                Err(format!("reading from the broker failed: {why}").into())
            }
            _ => Err("the broker closed the connection without a reason: see its log".into()),
        }
    }

    /// Waits until there is something to read, but not longer than `time`. Returns whether there is.
    pub(crate) fn wait_readable(&self, time: Duration) -> bool {
        let time = Timespec::try_from(time).ok();
        // After an error, the caller waits again.
        poll(&mut [PollFd::new(&self.stream, PollFlags::IN)], time.as_ref()).is_ok_and(|ready| ready > 0)
    }

    /// Handles all frames that were read completely.
    #[inline]
    pub(crate) fn for_each_frame(&mut self, mut handle: impl FnMut(&Frame<'_>) -> Result<()>) -> Result<()> {
        let octets = &self.input[self.start..self.end];
        let mut at = 0;
        while let Some(frame) =
            next_frame(&octets[at..], FRAME_MAX).map_err(|error| no_frame(octets, &error))?
        {
            handle(&frame)?;
            at += frame.input_len();
        }
        self.start += at;
        Ok(())
    }

    /// Closes the connection. The broker has then handled everything that was sent before.
    pub(crate) fn close(mut self) -> Result<()> {
        self.call(0, &Method::ConnectionClose { reply_code: 200, reply_text: "", class_id: 0, method_id: 0 })
    }

    /// Returns the port of a broker on this machine.
    pub(crate) fn local_port(&self) -> Option<u16> {
        let (peer, local) = (self.stream.peer_addr().ok()?, self.stream.local_addr().ok()?);
        (peer.ip() == local.ip()).then_some(peer.port())
    }
}

#[cold]
fn no_frame(octets: &[u8], error: &FrameError) -> Box<dyn Error + Send + Sync> {
    if octets.starts_with(b"AMQP") {
        return "the broker speaks another version of AMQP".into();
    }
    format!("the broker sent no AMQP frame ({error:?}); is it an AMQP broker, without TLS?").into()
}

/// Reads a method that does not close or cancel anything.
pub(crate) fn read_method<'a>(frame: &Frame<'a>) -> Result<Method<'a>> {
    match Method::parse(frame.payload)? {
        Method::ConnectionClose { reply_code, reply_text, .. }
        | Method::ChannelClose { reply_code, reply_text, .. } => {
            Err(format!("the broker closed the connection or channel: {reply_code} {reply_text}").into())
        }
        Method::BasicCancel { .. } => Err("the broker cancelled a consumer: its queue was deleted".into()),
        method => Ok(method),
    }
}

fn open_socket(url: &Upstream) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((url.host.as_str(), url.port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(READ_TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// Returns the content of the table of client properties.
fn client_properties() -> Vec<u8> {
    let mut octets = vec![0; 256];
    let mut writer = Writer::new(&mut octets);
    let written = writer.table(|table| {
        table.text("product", super::options::PROGRAM)?;
        table.table("capabilities", |capabilities| {
            // With the first one, the broker names the reason of a refused login.
            ["authentication_failure_close", "publisher_confirms", "consumer_cancel_notify", "basic.nack"]
                .iter()
                .try_for_each(|name| capabilities.bool(name, true))
        })
    });
    // The table fits. Without properties a login would succeed too.
    let len = written.map_or(0, |()| writer.at());
    octets.truncate(len);
    octets.drain(..len.min(TABLE_LENGTH_LEN));
    octets
}
