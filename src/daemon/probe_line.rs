//! A connection to an upstream for whoever can wait: sockets that block, and TLS over them.
//!
//! Always true: nothing is waited for longer than [`PATIENCE`]; what TLS refuses is told as a link tells it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use leveret_bridge::not_tls;
use leveret_config::bridge::UpstreamTls;
use leveret_core::mem::{ByteChain, BytePool};
use leveret_tls::{KnownTime, Next, PLAIN_BYTES_MAX, RECORD_BYTES_MAX, SEALED_BYTES_MAX, Session, Tls};

/// How long an upstream may take for whatever it is asked.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Room for what rustls says by itself, and for what came behind a handshake.
const POOL_BYTES: usize = 64 << 10;

/// What begins the words of what TLS says.
const OF_TLS: &str = "TLS: ";

/// A connection.
pub(super) struct Line {
    socket: TcpStream,
    safe: Option<Safe>,
}

/// What TLS needs besides.
struct Safe {
    session: Session,
    pool: BytePool,
    /// Sealed, and not opened yet.
    held: Vec<u8>,
    /// What came behind the handshake.
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

    /// Shakes hands; says what is spoken.
    ///
    /// # Errors
    /// Why that failed.
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
                handshake.take_in(&room[..len]);
                continue;
            }
            let shaken = handshake.step(None, known);
            self.socket.write_all(&shaken.outgoing).map_err(failed)?;
            match shaken.next {
                Next::More(again) => handshake = again,
                Next::Failed(why) => return Err(format!("the handshake of TLS failed: {why}")),
                Next::Open(mut opened) => {
                    let spoken = core::mem::take(&mut opened.spoken);
                    let (mut pool, mut stash) = (BytePool::with_bytes(POOL_BYTES), ByteChain::default());
                    let session = Session::begin(*opened, &mut pool, &mut stash);
                    let mut session = session.ok_or("no room for what it sent behind its handshake")?;
                    let taken = |chain: &mut ByteChain| {
                        let mut bytes = vec![0; chain.len()];
                        chain.copy_front(&pool, &mut bytes);
                        bytes
                    };
                    let (held, early) = (taken(&mut session.held), taken(&mut stash));
                    session.held.clear(&mut pool);
                    stash.clear(&mut pool);
                    self.safe = Some(Safe { session, pool, held, early });
                    return Ok(spoken);
                }
            }
        }
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// The peer does not take it.
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

    /// Why nothing is taken: what it has said before it hung up, if it has.
    fn last_words(&mut self, error: io::Error) -> String {
        match self.read(&mut Vec::new()) {
            Err(why) if why.starts_with(OF_TLS) => why,
            _ => failed(error),
        }
    }

    /// Adds what comes next to `input`.
    ///
    /// # Errors
    /// Nothing comes.
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
    "it closed the connection without a word".into()
}

fn failed(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            format!("it said nothing for {} s", PATIENCE.as_secs())
        }
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => hung_up(),
        _ => format!("the connection broke: {error}"),
    }
}
