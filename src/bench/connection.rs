//! A connection to a broker: a blocking socket, and a buffer whose frames are handled in place.
//!
//! # Invariants
//! - After [`Connection::connect`], the connection is open.
//! - `connection.close` and `channel.close` of the broker are returned as errors with its reply text.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Result;
use leveret_amqp::{Frame, FrameKind, Method, PROTOCOL_HEADER, Table, Writer, next_frame};
use leveret_config::upstream::Upstream;

/// How long the broker may neither send nor read what is due.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);
/// A read returns after this time, so that a consumer notices that all messages were received.
const READ_TIMEOUT: Duration = Duration::from_millis(20);
const INPUT_BYTES: usize = 256 << 10;
/// The `frame_max` that RabbitMQ offers.
const FRAME_MAX: u32 = 131_072;
/// The content of the table of client properties: the product, and 90 octets of capabilities. With the first one, the
/// broker names the reason of a refused login.
const CLIENT_PROPERTIES: &[u8] = b"\x07productS\0\0\0\x0dleveret-bench\x0ccapabilitiesF\0\0\0\x5a\
    \x1cauthentication_failure_closet\x01\x12publisher_confirmst\x01\
    \x16consumer_cancel_notifyt\x01\x0abasic.nackt\x01";

/// An open connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
    /// The first `input_len` octets were read and not handled.
    input: Box<[u8]>,
    input_len: usize,
    pub(crate) frame_max: u32,
    /// Product, version and platform in the server properties.
    pub(crate) broker: String,
}

impl Connection {
    /// Connects, logs in and opens the virtual host.
    pub(crate) fn connect(url: &Upstream) -> Result<Self> {
        let stream = TcpStream::connect((url.host.as_str(), url.port)).map_err(|why| {
            format!("no broker at {url} ({why}): start one there, or name another by --url")
        })?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(READ_TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let input = vec![0; INPUT_BYTES].into_boxed_slice();
        let mut own = Self { stream, input, input_len: 0, frame_max: FRAME_MAX, broker: String::new() };
        own.write(&PROTOCOL_HEADER)?;
        own.broker = own.wait(|method| {
            let Method::ConnectionStart { server_properties, .. } = method else { return None };
            let text = |name| server_properties.get(name).and_then(|value| value.as_str()).unwrap_or("?");
            Some(format!("{} {}, {}", text("product"), text("version"), text("platform")))
        })?;
        let password = url.password.as_ref().map_or("guest", |secret| &secret.0);
        let response = format!("\0{}\0{password}", url.user);
        let start_ok = Method::ConnectionStartOk {
            client_properties: Table::trusted(CLIENT_PROPERTIES),
            mechanism: "PLAIN",
            response: response.as_bytes(),
            locale: "en_US",
        };
        own.send(0, &start_ok)?;
        let (channel_max, frame_max) = own.wait(|method| match *method {
            Method::ConnectionTune { channel_max, frame_max, .. } => Some((channel_max, frame_max)),
            _ => None,
        })?;
        // 0 means no limit.
        own.frame_max = if frame_max == 0 { FRAME_MAX } else { frame_max.min(FRAME_MAX) };
        // Without heartbeats, for a thread that is blocked in a write could not send them.
        own.send(0, &Method::ConnectionTuneOk { channel_max, frame_max: own.frame_max, heartbeat: 0 })?;
        own.call(0, &Method::ConnectionOpen { virtual_host: &url.vhost })?;
        Ok(own)
    }

    /// Sends a method and waits for the `-ok` method that answers it.
    pub(crate) fn call(&mut self, channel: u16, method: &Method<'_>) -> Result<()> {
        self.send(channel, method)?;
        let answer = format!("{}-ok", method.name());
        self.wait(|method| (method.name() == answer).then_some(()))
    }

    /// Reads methods until `take` returns something for one of them.
    fn wait<T>(&mut self, take: impl Fn(&Method<'_>) -> Option<T>) -> Result<T> {
        let (mut taken, deadline) = (None, Instant::now() + TIMEOUT);
        loop {
            self.read(|frame, _| {
                // No method is awaited while messages are to be delivered.
                if matches!(frame.header.kind(), Some(FrameKind::Header | FrameKind::Body)) {
                    return Err("more messages were delivered than were sent".into());
                }
                taken = taken.take().or(read_method(frame)?.and_then(|method| take(&method)));
                Ok(())
            })?;
            if let Some(taken) = taken {
                return Ok(taken);
            }
            if Instant::now() > deadline {
                return Err(format!("the broker has not answered for {} s", TIMEOUT.as_secs()).into());
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
        let Err(why) = self.stream.write_all(octets) else { return Ok(()) };
        if is_timeout(&why) {
            let seconds = TIMEOUT.as_secs();
            return Err(
                format!("the broker has not read for {seconds} s: it may wait until memory is free").into()
            );
        }
        // The reason is in what the broker sent before it closed the connection.
        while self.read(|frame, _| read_method(frame).map(drop))? {}
        Err(format!("writing to the broker failed: {why}").into())
    }

    /// Reads once, and handles all complete frames, with the time of the read. Returns `false` when nothing came
    /// within [`READ_TIMEOUT`].
    #[inline]
    pub(crate) fn read(&mut self, mut handle: impl FnMut(&Frame<'_>, Instant) -> Result<()>) -> Result<bool> {
        match self.stream.read(&mut self.input[self.input_len..]) {
            Ok(count) if count > 0 => self.input_len += count,
            Err(why) if is_timeout(&why) => return Ok(false),
            Err(why) if why.kind() != ErrorKind::ConnectionReset => {
                return Err(format!("reading from the broker failed: {why}").into());
            }
            _ => return Err("the broker closed the connection without a reason: see its log".into()),
        }
        let now = Instant::now();
        let mut at = 0;
        while let Some(frame) = next_frame(&self.input[at..self.input_len], FRAME_MAX)
            .map_err(|_| "the broker sent no AMQP frame: is it an AMQP 0-9-1 broker, without TLS?")?
        {
            handle(&frame, now)?;
            at += frame.input_len();
        }
        self.input.copy_within(at..self.input_len, 0);
        self.input_len -= at;
        Ok(true)
    }

    /// Waits until there is something to read, but not longer than `time`. Returns whether there is.
    pub(crate) fn wait_readable(&self, time: Duration) -> bool {
        let time = Timespec::try_from(time).ok();
        // After an error, the caller waits again.
        poll(&mut [PollFd::new(&self.stream, PollFlags::IN)], time.as_ref()).is_ok_and(|ready| ready > 0)
    }

    /// Closes the connection. The broker has then handled everything that was sent before.
    pub(crate) fn close(mut self) -> Result<()> {
        self.call(0, &Method::ConnectionClose { reply_code: 200, reply_text: "", class_id: 0, method_id: 0 })
    }
}

/// Reads a method that does not close or cancel anything. Returns `None` for other frames.
pub(crate) fn read_method<'a>(frame: &Frame<'a>) -> Result<Option<Method<'a>>> {
    if frame.header.kind() != Some(FrameKind::Method) {
        return Ok(None);
    }
    match Method::parse(frame.payload)? {
        Method::ConnectionClose { reply_code, reply_text, .. }
        | Method::ChannelClose { reply_code, reply_text, .. } => {
            Err(format!("the broker closed the connection or channel: {reply_code} {reply_text}").into())
        }
        Method::BasicCancel { .. } => Err("the broker cancelled a consumer: its queue was deleted".into()),
        method => Ok(Some(method)),
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
