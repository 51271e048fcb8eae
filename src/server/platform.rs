//! What the engine asks of the world outside: everything that a system has and a test can make up.
//!
//! ```text
//!  octets          Socket::{read, peek, write, shut_down_writing}   one connection, never blocking
//!  who comes in    Platform::accept, register, stop_listening
//!  who has gone    Platform::close
//!  whom we visit   Platform::connect, start_lookup, take_lookup
//!  what is long    Platform::{start_write, start_read, start_work}    one job of each kind at a time
//!                  Platform::{take_written, take_read, take_worked}   its result, when it is there
//! ```
//!
//! The other way go calls of the engine: `set_now` after each sleep, a `note_...` for whatever was reported,
//! `turn`, and `sleeps_until` for how long to sleep next. So the same engine runs over `mio` and threads in
//! `host`, and over lines in memory in the tests.
//!
//! Always true: no call here waits for anybody; time comes in by `set_now` and by nothing else; a readiness
//! is reported when it begins, not as long as it lasts (edge-triggered); a job that was started gives a
//! result, after which the engine is given another turn.

use core::net::SocketAddr;
use std::io::{self, Read, Write};

use leveret_core::log_limiter::LogLimiter;
use leveret_core::time::Now;
use leveret_management::request_context::Machine;

use super::peer::{PeerAddress, PeerId};
use super::worker::{CertificateState, WorkerJob, WorkerResult};

/// A connected socket that does not block: reading and writing say [`io::ErrorKind::WouldBlock`] instead.
pub trait Socket: Read + Write {
    /// Reads without taking: what it shows is still there for the next reading.
    ///
    /// # Errors
    /// What reading from the socket may fail with.
    fn peek(&self, room: &mut [u8]) -> io::Result<usize>;

    /// Says that nothing more will be written. A peer that is gone needs no telling.
    fn shut_down_writing(&mut self);

    /// What kept it from being connected, if that failed; asking takes it away.
    fn take_error(&self) -> Option<io::Error> {
        None
    }

    /// Our end, if it is one of the network.
    fn local_address(&self) -> Option<SocketAddr>;
}

/// A connection that was just accepted.
#[derive(Debug)]
pub struct Accepted<S> {
    /// The connection.
    pub socket: S,
    /// Who is at the other end.
    pub address: PeerAddress,
}

/// A listening socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListenerId {
    /// One for AMQP, by its place.
    Amqp(usize),
    /// The control socket.
    Control,
    /// One of the management API, by its place.
    Management(usize),
}

/// What was reported of a socket.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Readiness {
    /// Reading may bring something.
    pub is_readable: bool,
    /// Writing may take something.
    pub is_writable: bool,
    /// The peer will send nothing more.
    pub is_read_closed: bool,
    /// The peer takes nothing more.
    pub is_write_closed: bool,
    /// The connection is broken.
    pub is_error: bool,
}

/// Why no connection was accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AcceptFailure {
    /// No connection waits to be accepted.
    Empty,
    /// This connection failed or was closed; the next may be there.
    Connection,
    /// The system cannot accept any.
    System,
}

/// The world outside.
pub trait Platform {
    /// The sockets of the platform.
    type Socket: Socket;

    /// Accepts who is next at a listener.
    ///
    /// # Errors
    /// There is nobody to be had; why that is not as it should be was logged.
    fn accept(
        &mut self,
        listener: ListenerId,
        log: &mut LogLimiter,
        now: Now,
    ) -> Result<Accepted<Self::Socket>, AcceptFailure>;

    /// Makes a socket ready for traffic, and reports from now on what happens at it, by `note_peer`.
    ///
    /// # Errors
    /// The system cannot: the socket is of no use.
    fn register(&mut self, socket: &mut Self::Socket, peer: PeerId) -> io::Result<()>;

    /// Begins to connect to somebody. That it is connected, or cannot be, is reported when it is registered.
    ///
    /// # Errors
    /// The connection cannot even be begun.
    fn connect(&mut self, address: SocketAddr) -> io::Result<Self::Socket>;

    /// Begins to look up a name, on a thread that may wait for it, and keeps no other waiting.
    fn start_lookup(&mut self, lookup: NameLookup);

    /// What was found of a name, when a lookup is over.
    fn take_lookup(&mut self) -> Option<FoundAddresses>;

    /// Closes a socket that was registered.
    fn close(&mut self, socket: Self::Socket);

    /// Accepts no more connections of AMQP.
    fn stop_listening(&mut self);

    /// Begins to write, on a thread that may wait for the disk.
    fn start_write(&mut self, job: leveret_storage::Write);

    /// What was written, if that is over, and how many microseconds it took.
    fn take_written(&mut self) -> Option<(leveret_storage::WriteDone, u64)>;

    /// Begins to read, on a thread that may wait for the disk.
    fn start_read(&mut self, job: leveret_storage::Read);

    /// What was read, if that is over.
    fn take_read(&mut self) -> Option<leveret_storage::ReadOutcome>;

    /// Begins something else that takes long.
    fn start_work(&mut self, job: WorkerJob);

    /// What came of it, if that is over, and what is to be known of the certificates as things stand.
    fn take_worked(&mut self) -> Option<(WorkerResult, CertificateState)>;

    /// What the machine says of the process, to be shown and for nothing else.
    fn machine(&self) -> Machine {
        Machine::default()
    }

    /// Milliseconds since 1970 as far as the machine knows: to be shown, and for a bridge's time of day.
    fn unix_ms(&self) -> u64;
}

// A name that is to be looked up, and what came of it, as values.

/// A name, for the thread that waits for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NameLookup {
    /// Tells it from those before.
    pub ticket: u64,
    /// A name or an address.
    pub host: String,
    /// The port that belongs to it.
    pub port: u16,
}

/// What a lookup found.
#[derive(Debug)]
pub struct FoundAddresses {
    /// Which lookup it was.
    pub ticket: u64,
    /// All addresses, or what the system says.
    pub found: Result<Vec<SocketAddr>, String>,
}
