//! Streams over a socket that takes part of what is written, or fails: without TLS, and with TLS to a second stream.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, process};

use leveret_config::bridge::UpstreamTls;
use leveret_config::transports::Tls as Keys;
use leveret_core::limits::{Limits, OUTPUT_BYTES_MIN};
use leveret_tls::{CertificateStore, KnownTime, PLAIN_BYTES_MAX};

use super::platform::Socket;
use super::stream::{Buffers, ReadMode, Stream};

/// A socket with the input that it was given. After `takes` writes it fails. A write takes at most `room` bytes.
#[derive(Default)]
struct Fake {
    given: VecDeque<u8>,
    taken: Vec<u8>,
    takes: Option<usize>,
    room: Option<usize>,
}

impl Read for Fake {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        match self.given.is_empty() {
            true => Err(io::ErrorKind::WouldBlock.into()),
            false => self.given.read(room),
        }
    }
}

impl Write for Fake {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(takes) = &mut self.takes {
            *takes = takes.checked_sub(1).ok_or(io::ErrorKind::ConnectionReset)?;
        }
        let count = bytes.len().min(self.room.unwrap_or(usize::MAX));
        if count == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.taken.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Socket for Fake {
    fn peek(&self, _: &mut [u8]) -> io::Result<usize> {
        unreachable!("over TLS everything is taken")
    }

    fn shut_down_writing(&mut self) {}

    fn local_address(&self) -> Option<SocketAddr> {
        None
    }
}

/// One end of a connection, and its buffers.
struct End {
    stream: Stream<Fake>,
    buffers: Buffers,
    certificates: Option<CertificateStore>,
}

impl End {
    fn new(certificates: Option<CertificateStore>) -> Self {
        let buffers = Buffers::new(&Limits::default(), true, 1);
        Self { stream: Stream::new(Fake::default()), buffers, certificates }
    }

    /// Reads, carries out a handshake step if possible, and returns what must be sent.
    fn go_on(&mut self) -> Vec<u8> {
        let mut input = vec![0; 64 << 10];
        let got = self.stream.read(&mut self.buffers, &mut input, ReadMode::Take);
        if let Some(handshake) = self.stream.take_handshake() {
            let shaken = handshake.step(self.certificates.as_mut(), &mut KnownTime::default());
            self.stream.finish_handshake_step(&mut self.buffers, shaken).expect("they trust each other");
        }
        self.stream.write(&mut self.buffers, &[]).expect("the socket is sound");
        input.truncate(got.len);
        input
    }

    fn hear(&mut self, other: &mut Self) {
        self.stream.socket.given.extend(other.stream.socket.taken.drain(..));
        self.stream.assume_readable();
    }
}

/// Makes both ends of a connection whose handshake is over: ours, which has connected, and the upstream's.
fn met() -> [End; 2] {
    // Both tests run at once in one process, and each removes its directory.
    static FOLDERS: AtomicU32 = AtomicU32::new(0);
    let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
    let folder = env::temp_dir().join(format!("leveret-stream-{}-{number}", process::id()));
    fs::create_dir_all(&folder).unwrap();
    let paper = rcgen::generate_simple_self_signed(["rabbit".to_string()]).unwrap();
    let file = |name: &str, text: String| {
        fs::write(folder.join(name), text).unwrap();
        folder.join(name)
    };
    let certificate = file("rabbit.pem", paper.cert.pem());
    let key = file("rabbit.key", paper.signing_key.serialize_pem());
    let keys = Keys { certificates: vec![certificate.clone()], keys: vec![key], ..Keys::default() };
    let (mut ours, mut theirs) = (End::new(None), End::new(Some(CertificateStore::open(&keys).unwrap())));
    let trusted = UpstreamTls { ca_file: Some(certificate), ..UpstreamTls::default() };
    ours.stream.begin_tls_to("rabbit", &trusted);
    theirs.stream.begin_tls();
    for _ in 0..10 {
        ours.go_on();
        theirs.hear(&mut ours);
        theirs.go_on();
        ours.hear(&mut theirs);
    }
    fs::remove_dir_all(&folder).unwrap();
    assert!(!ours.stream.is_in_tls_handshake() && !theirs.stream.is_in_tls_handshake());
    [ours, theirs]
}

#[test]
fn records_that_went_out_before_the_socket_broke_count_as_written() {
    let [mut ours, mut theirs] = met();
    let said = vec![7; 3 * PLAIN_BYTES_MAX];
    ours.stream.socket.takes = Some(2);
    let written = ours.stream.write(&mut ours.buffers, &said).expect("two records of it went out");
    assert_eq!(written, 3 * PLAIN_BYTES_MAX, "the third is sealed, and cannot be taken back");
    theirs.hear(&mut ours);
    let heard = theirs.go_on();
    assert_eq!(heard.len(), 2 * PLAIN_BYTES_MAX, "they reached the other end");
    let again = ours.stream.write(&mut ours.buffers, &said).expect_err("it is broken");
    assert_eq!(again.kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn a_socket_that_is_broken_from_the_first_record_on_took_nothing() {
    let [mut ours, _] = met();
    ours.stream.socket.takes = Some(0);
    assert!(ours.stream.write(&mut ours.buffers, &[7; 3 * PLAIN_BYTES_MAX]).is_err());
}

/// Bytes whose values depend on their position.
fn counted(from: usize, count: usize) -> Vec<u8> {
    (from..from + count).map(|at| (at % 251) as u8).collect()
}

#[test]
fn what_the_socket_does_not_take_is_kept_and_leaves_in_order() {
    let [ours, mut theirs] = met();
    let plain = End::new(None);
    for mut end in [plain, ours] {
        let is_tls = end.stream.is_tls();
        let mut scratch = vec![0; 256 << 10];
        let (mut all, mut heard) = (0, Vec::new());
        for round in 0..40 {
            end.stream.socket.room = Some(round * 1_777 % 20_000);
            end.stream.is_writable = true;
            end.stream.flush_output(&mut end.buffers, &mut scratch).expect("the socket is sound");
            if !end.stream.has_unsent() && end.stream.is_writable {
                let count = end.buffers.output_bytes(50_000);
                let sent = end.stream.write_all(&mut end.buffers, &counted(all, count));
                assert!(sent.expect("the socket is sound") <= count);
                all += count;
            }
        }
        end.stream.socket.room = None;
        while end.stream.has_unsent() {
            end.stream.is_writable = true;
            end.stream.flush_output(&mut end.buffers, &mut scratch).expect("the socket is sound");
        }
        if is_tls {
            while !end.stream.socket.taken.is_empty() || heard.len() < all {
                theirs.hear(&mut end);
                heard.extend(theirs.go_on());
            }
        } else {
            heard = core::mem::take(&mut end.stream.socket.taken);
        }
        assert!(all > 200_000 && heard == counted(0, all), "over TLS: {is_tls}");
    }
}

#[test]
fn connections_that_take_nothing_leave_each_other_room_for_their_output() {
    let limits = Limits { connections_max: 64, unsent_bytes_max: 128 << 10, ..Limits::default() };
    let mut buffers = Buffers::new(&limits, false, 0);
    let mut streams: Vec<Stream<Fake>> = (0..64).map(|_| Stream::new(Fake::default())).collect();
    let mut most = usize::MAX;
    for stream in &mut streams {
        stream.socket.room = Some(0);
        let room = buffers.output_bytes(64 << 10);
        assert!((OUTPUT_BYTES_MIN..=most).contains(&room), "{room} after {most}");
        most = room;
        stream.write_all(&mut buffers, &counted(0, room)).expect("the socket is sound");
        assert!(stream.has_unsent());
    }
    assert!(buffers.bytes_used() <= limits.unsent_pool_bytes());
    for stream in &mut streams {
        stream.release(&mut buffers);
    }
    assert_eq!(buffers.bytes_used(), 0);
    assert_eq!(buffers.output_bytes(64 << 10), 32 << 10, "a quarter of what is free");
}
