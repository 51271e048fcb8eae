//! A stream over TLS whose socket fails where it is told to: the other end is a stream, too.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, process};

use crate::config::bridge::UpstreamTls;
use crate::config::transports::Tls as Keys;
use crate::limits::Limits;
use crate::tls::{CertificateStore, KnownTime, PLAIN_BYTES_MAX};

use super::platform::Socket;
use super::stream::{Buffers, Reading, Stream};

/// What it was given and has been asked for; after `takes` writes it is broken.
#[derive(Default)]
struct Fake {
    given: VecDeque<u8>,
    taken: Vec<u8>,
    takes: Option<usize>,
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
        self.taken.extend_from_slice(bytes);
        Ok(bytes.len())
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

/// One end and its buffers.
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

    /// Reads, makes a step of the handshake if it can, and says what is to be said.
    fn go_on(&mut self) -> Vec<u8> {
        let mut input = vec![0; 64 << 10];
        let got = self.stream.read(&mut self.buffers, &mut input, Reading::Take);
        if let Some(handshake) = self.stream.take_handshake() {
            let shaken = handshake.step(self.certificates.as_mut(), &mut KnownTime::default());
            self.stream.shaken(&mut self.buffers, shaken).expect("they trust each other");
        }
        self.stream.write(&mut self.buffers, &[]).expect("the socket is sound");
        input.truncate(got.len);
        input
    }

    fn hear(&mut self, other: &mut Self) {
        self.stream.socket.given.extend(other.stream.socket.taken.drain(..));
        self.stream.look_again();
    }
}

/// Both ends of a connection whose handshake is over: ours, which has connected, and the upstream's.
fn met() -> [End; 2] {
    // Both tests run at once in one process, and each removes its folder.
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
    assert!(!ours.stream.is_shaking_hands() && !theirs.stream.is_shaking_hands());
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
