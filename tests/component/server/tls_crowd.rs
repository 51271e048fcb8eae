//! Many simultaneous TLS handshakes on a board that needs 50 ms per signature: all succeed, and no other
//! client is delayed.
//!
//! # Invariants
//! - The broker is slowed down by a setting of self-checking builds. So the result does not depend on the
//!   speed of this machine, unless it is busy with something else.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use leveret_test_support::built_program::{self, TempDir};
use leveret_test_support::simulated_server::{consume, declare};
use leveret_test_support::socket_client::{Link, publish};
use rcgen::generate_simple_self_signed;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

const PATIENCE_S: u64 = 60;
const CROWD: usize = 200;

/// A broker with this delay in the first step of each handshake.
struct Broker {
    process: Child,
    plain: SocketAddr,
    secure: SocketAddr,
    client: Arc<ClientConfig>,
    _home: TempDir,
}

impl Broker {
    fn start(slow_ms: u32, limits: &str) -> Self {
        let home = TempDir::new("tls");
        let paper = generate_simple_self_signed(["localhost".to_string()]).expect("a certificate");
        let file = |name: &str, text: &str| {
            let path = home.path().join(name);
            fs::write(&path, text).expect("the temporary folder can be written");
            path
        };
        let certificate = file("server.pem", &paper.cert.pem());
        let key = file("server.key", &paper.signing_key.serialize_pem());
        let tls = format!("[tls]\ncertificate = {certificate:?}\nkey = {key:?}\n");
        let config = file("leveret.toml", &format!("memory_limit = \"200MB\"\n{tls}[limits]\n{limits}"));
        let mut process = built_program::leveret()
            .args(["serve", "--listen", "127.0.0.1:0", "--listen-tls", "127.0.0.1:0", "--data-dir"])
            .arg(home.path().join("data"))
            .arg("--config")
            .arg(config)
            .env("LEVERET_SLOW_HANDSHAKE_MS", slow_ms.to_string())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the built binary runs");
        let lines = BufReader::new(process.stderr.take().expect("it is piped")).lines();
        let mut said = lines.map(|line| line.expect("UTF-8"));
        let mut address = |words: &str| {
            let line = said.find(|line| line.contains(words)).expect("a ready line");
            line.rsplit(' ').next().and_then(|text| text.parse().ok()).expect("an address")
        };
        let (plain, secure) = (address(" listening on "), address(" listening with TLS on "));
        thread::spawn(move || said.for_each(drop));
        let mut roots = RootCertStore::empty();
        roots.add(paper.cert.der().clone()).expect("a sound certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let client = builder.expect("versions").with_root_certificates(roots).with_no_client_auth();
        Self { process, plain, secure, client: Arc::new(client), _home: home }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Connects over TLS until connection.start arrives. Returns whether it did.
fn come_in(
    address: SocketAddr,
    config: Arc<ClientConfig>,
) -> Option<rustls::StreamOwned<ClientConnection, TcpStream>> {
    let socket = TcpStream::connect(address).ok()?;
    socket.set_read_timeout(Some(built_program::patience(PATIENCE_S))).ok()?;
    let name = ServerName::try_from("localhost").ok()?;
    let mut stream = rustls::StreamOwned::new(ClientConnection::new(config, name).ok()?, socket);
    stream.write_all(b"AMQP\0\0\x09\x01").ok()?;
    let mut start = [0; 11];
    stream.read_exact(&mut start).ok()?;
    (start[7..] == [0, 10, 0, 10]).then_some(stream)
}

/// The last client waits ten seconds for its turn, longer than the handshake timeout, which must not count.
#[test]
#[ignore = "judges the clock: tests/run --full"]
fn two_hundred_simultaneous_handshakes_delay_no_other_client() {
    let limits = "tls_connections_max = 210\ntls_handshakes_max = 205\nhandshake_timeout = \"8s\"\n";
    let broker = Broker::start(50, limits);
    let mut link = Link::open(broker.plain, &[1]);
    link.ask(1, &declare("q"));
    link.ask(1, &consume("q", "it", true));
    let (rounds, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let barrier = Barrier::new(CROWD);
    let (came, meanwhile) = thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::SeqCst) {
                link.write(&publish("", "q", false, &[0, 0], b"others go on"));
                assert_eq!(link.content().1, b"others go on");
                rounds.fetch_add(1, Ordering::SeqCst);
            }
        });
        let (barrier, broker) = (&barrier, &broker);
        let crowd: Vec<_> = (0..CROWD)
            .map(|_| {
                scope.spawn(move || {
                    barrier.wait();
                    come_in(broker.secure, broker.client.clone())
                })
            })
            .collect();
        let before = rounds.load(Ordering::SeqCst);
        let came: Vec<_> = crowd.into_iter().filter_map(|client| client.join().ok().flatten()).collect();
        let meanwhile = rounds.load(Ordering::SeqCst) - before;
        is_over.store(true, Ordering::SeqCst);
        (came.len(), meanwhile)
    });
    assert_eq!(came, CROWD, "all get in");
    // If each signature delayed it, it would have sent hardly more messages than there were signatures.
    assert!(meanwhile > 5 * CROWD as u64, "{meanwhile} messages of the other meanwhile");
}
