//! A blocking client with a real socket, and the built broker, for tests of the real event loop.
//!
//! It reads and writes whole frames, and gives up after a timeout, so a broker that hangs fails a test.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use leveret_amqp::{FrameKind, Method, PROTOCOL_HEADER, Table, Writer, next_frame};

use crate::built_program::{self, TempDir};
use crate::simulated_server::{content_frames, method_frame};

const PATIENCE_S: u64 = 20;
const FRAME_MAX: u32 = 131_072;

/// The built program on a free port; it ends with this value.
#[derive(Debug)]
pub struct Broker {
    process: Child,
    pub address: SocketAddr,
    /// The log lines after the ready line.
    said: Option<JoinHandle<Vec<String>>>,
    _home: TempDir,
}

impl Broker {
    pub fn start(arguments: &[&str]) -> Self {
        let home = TempDir::new("sockets");
        let mut command = built_program::leveret();
        command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(home.path()).args(arguments);
        let mut process = command.stderr(Stdio::piped()).spawn().expect("the built binary runs");
        let lines = BufReader::new(process.stderr.take().expect("it is piped")).lines();
        let mut said = lines.map(|line| line.expect("UTF-8"));
        let ready = said.find(|line| line.contains("listening on ")).expect("a ready line");
        let (_, address) = ready.split_once("listening on ").expect("just found");
        let address = address.parse().expect("an address");
        // Later log lines must not fill the pipe.
        let said = std::thread::spawn(move || said.collect());
        Self { process, address, said: Some(said), _home: home }
    }

    /// Asks it to stop; what it said from its ready line on.
    pub fn stop(mut self) -> Vec<String> {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs").success());
        self.said.take().expect("once").join().expect("no panic")
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// One frame that came.
#[derive(Clone, Debug)]
pub struct Frame {
    pub channel: u16,
    pub kind: FrameKind,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn method(&self) -> Method<'_> {
        assert_eq!(self.kind, FrameKind::Method);
        Method::parse(&self.payload).expect("methods are sound")
    }
}

/// An open connection.
#[derive(Debug)]
pub struct Link {
    pub stream: TcpStream,
    incoming: Vec<u8>,
    at: usize,
}

impl Link {
    /// Connects and shakes hands; asks for no heartbeats.
    pub fn open(address: SocketAddr, channels: &[u16]) -> Self {
        let stream = TcpStream::connect(address).expect("the broker listens");
        stream.set_read_timeout(Some(built_program::patience(PATIENCE_S))).expect("a timeout can be set");
        stream.set_write_timeout(Some(built_program::patience(PATIENCE_S))).expect("a timeout can be set");
        stream.set_nodelay(true).expect("it is a TCP socket");
        let mut link = Self { stream, incoming: Vec::new(), at: 0 };
        link.write(&PROTOCOL_HEADER);
        assert!(matches!(link.next().method(), Method::ConnectionStart { .. }));
        link.write(&start_ok());
        let tune = link.next();
        let Method::ConnectionTune { channel_max, frame_max, .. } = tune.method() else {
            panic!("{:?}", tune.method())
        };
        let frame_max = frame_max.min(FRAME_MAX);
        link.send(0, &Method::ConnectionTuneOk { channel_max, frame_max, heartbeat: 0 });
        link.ask(0, &Method::ConnectionOpen { virtual_host: "/" });
        for channel in channels {
            link.ask(*channel, &Method::ChannelOpen {});
        }
        link
    }

    pub fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the broker reads");
    }

    pub fn send(&mut self, channel: u16, method: &Method<'_>) {
        self.write(&method_frame(channel, method));
    }

    /// Sends a method and gives the first frame that comes.
    pub fn ask(&mut self, channel: u16, method: &Method<'_>) -> Frame {
        self.send(channel, method);
        let frame = self.next();
        if let Method::ChannelClose { reply_text, .. } | Method::ConnectionClose { reply_text, .. } =
            frame.method()
        {
            panic!("{method:?}: {reply_text}");
        }
        frame
    }

    /// The next frame.
    #[allow(clippy::should_implement_trait, reason = "it has no end")]
    pub fn next(&mut self) -> Frame {
        loop {
            let found = next_frame(&self.incoming[self.at..], FRAME_MAX).expect("frames are sound");
            if let Some(frame) = found {
                let len = frame.input_len();
                let kind = frame.header.kind().expect("frames are of a kind that there is");
                let channel = frame.header.channel;
                let frame = Frame { channel, kind, payload: frame.payload.to_vec() };
                self.at += len;
                return frame;
            }
            self.incoming.drain(..self.at);
            self.at = 0;
            let mut bytes = [0; 65_536];
            let count = self.stream.read(&mut bytes).expect("the broker answers in time");
            assert!(count > 0, "the broker closed the connection");
            self.incoming.extend_from_slice(&bytes[..count]);
        }
    }

    /// The next content: its method, and its body.
    pub fn content(&mut self) -> (Frame, Vec<u8>) {
        let (method, _, body) = self.content_with_properties();
        (method, body)
    }

    pub fn content_with_properties(&mut self) -> (Frame, Vec<u8>, Vec<u8>) {
        let method = self.next();
        assert!(method.method().has_content(), "{:?}", method.method());
        let header = self.next();
        assert_eq!(header.kind, FrameKind::Header);
        let len = u64::from_be_bytes(header.payload[4..12].try_into().expect("eight octets"));
        let mut body = Vec::new();
        while (body.len() as u64) < len {
            let frame = self.next();
            assert_eq!(frame.kind, FrameKind::Body);
            body.extend(frame.payload);
        }
        (method, header.payload[12..].to_vec(), body)
    }
}

/// basic.publish with its content, as bytes.
pub fn publish(exchange: &str, key: &str, mandatory: bool, properties: &[u8], body: &[u8]) -> Vec<u8> {
    let routing_key = key.as_bytes();
    let method = Method::BasicPublish { exchange, routing_key, mandatory, immediate: false };
    let mut bytes = method_frame(1, &method);
    bytes.extend(content_frames(1, properties, body, 100_000));
    bytes
}

fn start_ok() -> Vec<u8> {
    let mut bytes = vec![0; 512];
    let mut writer = Writer::new(&mut bytes);
    let written = writer.table(|table| {
        table.table("capabilities", |inner| {
            inner.bool("connection.blocked", true)?;
            inner.bool("consumer_cancel_notify", true)
        })
    });
    assert!(written.is_ok());
    let properties = writer.written()[4..].to_vec();
    let start_ok = Method::ConnectionStartOk {
        client_properties: Table::trusted(&properties),
        mechanism: "PLAIN",
        response: b"\0guest\0guest",
        locale: "en_US",
    };
    method_frame(0, &start_ok)
}
