//! The built broker with raw socket clients, in states of the event loop from which it must proceed.
//!
//! # Invariants
//! - Each test starts its own broker on a free loopback port and ends that process, also when the test fails.
//! - Nothing waits longer than [`PATIENCE_S`] unless a test asks for more.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStderr, Stdio};
use std::time::Duration;

use leveret_test_support::built_program::{self, TempDir};

/// Timeout of a test in seconds.
const PATIENCE_S: u64 = 20;

/// The broker of one test.
struct Broker {
    process: Child,
    log: BufReader<ChildStderr>,
    port: u16,
    _home: TempDir,
}

impl Broker {
    /// Starts a broker with this configuration.
    fn start(config: &str) -> Self {
        let home = TempDir::new("net");
        let file = home.path().join("leveret.toml");
        fs::write(&file, config).expect("the temporary folder can be written");
        let mut process = built_program::leveret()
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(home.path())
            .arg("--config")
            .arg(&file)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the built binary runs");
        let log = BufReader::new(process.stderr.take().expect("it is piped"));
        let mut broker = Self { process, log, port: 0, _home: home };
        let ready = broker.logged("listening on 127.0.0.1:");
        broker.port = ready.trim_end().rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
        broker
    }

    /// Returns the next line of its log with these words.
    fn logged(&mut self, words: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.log.read_line(&mut line).expect("UTF-8") > 0, "it ended before it said {words}");
            if line.contains(words) {
                return line;
            }
        }
    }

    fn connect(&self) -> TcpStream {
        let peer = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        peer.set_read_timeout(Some(built_program::patience(PATIENCE_S))).expect("a timeout can be set");
        peer.set_write_timeout(Some(built_program::patience(PATIENCE_S))).expect("a timeout can be set");
        peer
    }

    /// Connects a client, logs it in and opens these channels.
    fn client(&self, channels: u16) -> Client {
        let mut client = Client(self.connect());
        client.send(b"AMQP\0\0\x09\x01");
        client.expect(10, 10);
        // One capability, then PLAIN.
        let capability = [&b"\x16consumer_cancel_notifyt\x01"[..]].concat();
        let capabilities = [&b"\x0ccapabilitiesF"[..], &long(&capability)].concat();
        let arguments =
            [long(&capabilities), short("PLAIN"), long(b"\0guest\0guest"), short("en_US")].concat();
        client.send(&method(0, 10, 11, &arguments));
        client.expect(10, 30);
        client.send(&method(0, 10, 31, &[7, 255, 0, 2, 0, 0, 0, 0]));
        client.send(&method(0, 10, 40, &[short("/"), vec![0, 0]].concat()));
        client.expect(10, 41);
        for channel in 1..=channels {
            client.send(&method(channel, 20, 10, &[0]));
            client.expect(20, 11);
        }
        client
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A few megabytes for messages.
const LITTLE_MEMORY: &str = "memory_limit = \"32MB\"\nframe_max = \"128KiB\"\n";

struct Client(TcpStream);

impl Client {
    /// Publishes to a queue from another thread until the connection ends.
    fn flood(&self, queue: &str) -> std::thread::JoinHandle<()> {
        let mut stream = self.0.try_clone().expect("a socket");
        let message = publish(1, queue, &[b'x'; 100_000]);
        std::thread::spawn(move || while stream.write_all(&message).is_ok() {})
    }

    #[track_caller]
    fn send(&mut self, octets: &[u8]) {
        self.0.write_all(octets).expect("it reads in time");
    }

    /// Returns the next frame: kind, channel, payload.
    #[track_caller]
    fn frame(&mut self) -> (u8, u16, Vec<u8>) {
        let mut head = [0; 7];
        self.0.read_exact(&mut head).expect("a frame in time");
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        let mut payload = vec![0; size + 1];
        self.0.read_exact(&mut payload).expect("a whole frame");
        payload.pop();
        (head[0], u16::from_be_bytes([head[1], head[2]]), payload)
    }

    /// Returns the arguments of the next method, which must be this one.
    #[track_caller]
    fn expect(&mut self, class: u16, id: u16) -> Vec<u8> {
        let (_, _, payload) = self.frame();
        let wanted = [class.to_be_bytes(), id.to_be_bytes()].concat();
        assert_eq!(payload[..4], wanted, "{:?}", String::from_utf8_lossy(&payload));
        payload[4..].to_vec()
    }

    #[track_caller]
    fn declare(&mut self, queue: &str, exclusive: bool) -> u32 {
        let bits = u8::from(exclusive) << 2;
        self.send(&method(1, 50, 10, &[vec![0, 0], short(queue), vec![bits], long(b"")].concat()));
        let arguments = self.expect(50, 11);
        let count = &arguments[1 + queue.len()..];
        u32::from_be_bytes([count[0], count[1], count[2], count[3]])
    }
}

fn short(text: &str) -> Vec<u8> {
    [&[text.len() as u8], text.as_bytes()].concat()
}

fn long(octets: &[u8]) -> Vec<u8> {
    [&(octets.len() as u32).to_be_bytes(), octets].concat()
}

fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    [&[kind], &channel.to_be_bytes()[..], &long(payload), b"\xce"].concat()
}

fn method(channel: u16, class: u16, id: u16, arguments: &[u8]) -> Vec<u8> {
    frame(1, channel, &[&class.to_be_bytes(), &id.to_be_bytes(), arguments].concat())
}

/// Returns basic.publish to a queue, and the header of a body of this length.
fn publish_head(channel: u16, queue: &str, len: u64) -> Vec<u8> {
    let publish = method(channel, 60, 40, &[vec![0, 0], short(""), short(queue), vec![0]].concat());
    let header = [&[0, 60, 0, 0][..], &len.to_be_bytes(), &[0, 0]].concat();
    [publish, frame(2, channel, &header)].concat()
}

fn publish(channel: u16, queue: &str, body: &[u8]) -> Vec<u8> {
    let mut octets = publish_head(channel, queue, body.len() as u64);
    for piece in body.chunks(100_000) {
        octets.extend(frame(3, channel, piece));
    }
    octets
}

const CONFIRM_SELECT: (u16, u16, &[u8]) = (85, 10, &[0]);

fn confirm_select(client: &mut Client) {
    let (class, id, arguments) = CONFIRM_SELECT;
    client.send(&method(1, class, id, arguments));
    client.expect(85, 11);
}

/// Two large messages exceed the assembly share together. When the first is complete, the second one
/// proceeds, although no message has left.
#[test]
fn a_content_that_waits_for_another_to_be_complete_continues_when_it_is() {
    let broker = Broker::start("");
    let (mut first, mut second) = (broker.client(1), broker.client(1));
    first.declare("q", false);
    confirm_select(&mut first);
    confirm_select(&mut second);
    let body = vec![7; 10 << 20];
    let whole = publish(1, "q", &body);
    let (begin, rest) = whole.split_at(1 << 20);
    first.send(begin);
    std::thread::sleep(Duration::from_millis(200));
    let mut other = second.0.try_clone().expect("a second handle");
    let begun = whole.clone();
    let writer = std::thread::spawn(move || other.write_all(&begun));
    std::thread::sleep(Duration::from_millis(200));
    first.send(rest);
    first.expect(60, 80);
    second.expect(60, 80);
    assert!(writer.join().expect("the writer ends").is_ok());
}

/// Clients that send single bytes hold all the memory for incomplete messages.
///
/// A client that waits for memory proceeds when they time out, and they are told. A client that only sends
/// slowly, with memory for all, continues.
#[test]
fn clients_that_send_single_bytes_do_not_block_others_forever() {
    let broker = Broker::start("[limits]\ncontent_timeout = \"300ms\"\n");
    let mut slow: Vec<Client> = (0..3).map(|_| broker.client(1)).collect();
    let whole = publish(1, "q", &vec![7; 6 << 20]);
    let mut good = broker.client(1);
    good.declare("q", false);
    confirm_select(&mut good);
    let mut sent = 100;
    for client in &mut slow {
        client.send(&whole[..sent]);
    }
    let drip = |slow: &mut [Client], sent: &mut usize| {
        std::thread::sleep(Duration::from_millis(100));
        for client in slow {
            // Disconnected clients no longer read.
            let _ = client.0.write_all(&whole[*sent..=*sent]);
        }
        *sent += 1;
    };
    for _ in 0..40 {
        drip(&mut slow, &mut sent);
    }
    // That is longer than the timeout, but no other client needed their memory.
    let confirmed = std::thread::spawn(move || {
        good.send(&publish(1, "q", &vec![7; 1 << 20]));
        good.expect(60, 80)
    });
    while !confirmed.is_finished() {
        drip(&mut slow, &mut sent);
    }
    assert!(confirmed.join().is_ok());
    for client in &mut slow {
        let refusal = client.expect(10, 50);
        assert_eq!(refusal[..2], 506_u16.to_be_bytes());
    }
}

/// A queue with more consumers than replies that fit at once is deleted: the client is told about every one.
#[test]
fn every_consumer_of_a_deleted_queue_is_notified() {
    let broker = Broker::start("");
    let (mut client, mut other) = (broker.client(1), broker.client(1));
    client.declare("q", false);
    for number in 0..200 {
        let arguments = [vec![0, 0], short("q"), short(&format!("consumer-{number:03}")), vec![0], long(b"")];
        client.send(&method(1, 60, 20, &arguments.concat()));
        client.expect(60, 21);
    }
    other.send(&method(1, 50, 40, &[vec![0, 0], short("q"), vec![0]].concat()));
    other.expect(50, 41);
    for number in 0..200 {
        let arguments = client.expect(60, 30);
        assert_eq!(arguments[1..13], *format!("consumer-{number:03}").as_bytes());
    }
}

/// A client fills the pool through its own exclusive queue, waits for memory that only its end can free, and
/// disconnects.
#[test]
fn a_blocked_publisher_that_disconnects_frees_its_memory() {
    let broker = Broker::start(LITTLE_MEMORY);
    let mut greedy = broker.client(1);
    greedy.declare("mine", true);
    let filling = greedy.flood("mine");
    let mut good = broker.client(1);
    good.declare("q", false);
    confirm_select(&mut good);
    std::thread::sleep(Duration::from_millis(200));
    // Two thirds of the memory are full, so most of these have to wait.
    let sending = {
        let mut good = Client(good.0.try_clone().expect("a socket"));
        std::thread::spawn(move || (0..30).for_each(|_| good.send(&publish(1, "q", &[b'x'; 100_000]))))
    };
    std::thread::sleep(Duration::from_millis(200));
    greedy.0.shutdown(std::net::Shutdown::Both).expect("it is connected");
    filling.join().expect("it ends with its connection");
    // Input that the broker has not read hides the end of the connection, but not its reset.
    socket2::SockRef::from(&greedy.0).set_linger(Some(Duration::ZERO)).expect("it is a socket");
    drop(greedy);
    let mut confirmed = 0;
    while confirmed < 30 {
        let arguments = good.expect(60, 80);
        confirmed = u64::from_be_bytes(arguments[..8].try_into().expect("a tag"));
    }
    sending.join().expect("all was taken");
}

/// While publishers are blocked, input is only peeked at. A frame that is larger than the socket buffer must
/// be read nevertheless.
#[test]
fn a_frame_larger_than_the_socket_buffer_is_read_while_publishers_are_blocked() {
    let broker = Broker::start(&format!("{LITTLE_MEMORY}[limits]\nsocket_receive_buffer_bytes = \"4KiB\"\n"));
    let (mut waiting, mut client) = (broker.client(1), broker.client(1));
    waiting.declare("q", false);
    waiting.flood("q");
    std::thread::sleep(Duration::from_millis(200));
    let table = [&b"\x01xS"[..], &long(&vec![b'x'; 100_000])].concat();
    client.send(&method(1, 50, 10, &[vec![0, 0], short("large"), vec![0], long(&table)].concat()));
    client.expect(50, 11);
}

/// Text from a client can neither forge log lines nor control the terminal that shows the log.
#[test]
fn a_peer_cannot_forge_the_log() {
    let mut broker = Broker::start("");
    let mut peer = Client(broker.connect());
    peer.send(b"AMQP\0\0\x09\x01");
    peer.expect(10, 10);
    let forged = "X\n2026-01-01 ERROR forged\x1b[2J";
    let arguments = [long(b""), short(forged), long(b""), short("en_US")].concat();
    peer.send(&method(0, 10, 11, &arguments));
    let line = broker.logged("forged");
    assert!(line.contains("unknown authentication mechanism 'X\\n2026"), "{line}");
    assert!(!line.contains('\x1b'), "{line}");
}
