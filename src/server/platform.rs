//! The interface of the engine to the operating system, as traits that tests implement, too.
//!
//! ```text
//!   octets             Socket::{read, peek, write, shut_down_writing}   one connection, never blocking
//!   listening          Platform::{accept, register, stop_listening}
//!   closing            Platform::close
//!   connecting         Platform::{connect, start_lookup, take_lookup}
//!   jobs               Platform::{start_write, start_read, start_work}    one job of each kind at a time
//!                      Platform::{take_written, take_read, take_worked}   its result, when it is there
//! ```
//!
//! In the other direction, the platform calls `Engine::set_now` after each sleep, `Engine::note_peer` and
//! `Engine::note_listener` for each event, then `Engine::turn`. `Engine::sleep_deadline` returns how long to sleep
//! next. One and the same engine runs over `mio` and threads in `leveret-daemon`, and over in-memory sockets in the
//! tests.
//!
//! # Invariants
//! - No call here blocks.
//! - The engine gets the time only from `set_now`.
//! - Readiness is reported when it begins, not as long as it lasts (edge-triggered).
//! - Every started job gives a result, after which the engine gets another turn.

use core::net::SocketAddr;
use std::io::{self, Read, Write};

use leveret_core::log_limiter::LogLimiter;
use leveret_core::time::Now;
use leveret_management::request::Machine;

use super::peer::{PeerAddress, PeerId};
use super::worker::{CertificateState, WorkerJob, WorkerResult};

/// A connected non-blocking socket. Reads and writes return [`io::ErrorKind::WouldBlock`] instead of blocking.
pub trait Socket: Read + Write {
    /// Reads without removing the data: the next read returns it again.
    ///
    /// # Errors
    /// As a read from the socket.
    fn peek(&self, room: &mut [u8]) -> io::Result<usize>;

    /// Shuts down the writing side. Errors are ignored: a peer that is gone need not be told.
    fn shut_down_writing(&mut self);

    /// Returns and clears the error with which connecting failed, if it did.
    fn take_error(&self) -> Option<io::Error> {
        None
    }

    /// Returns our address, if the socket is one of the network.
    fn local_address(&self) -> Option<SocketAddr>;
}

/// A connection that was just accepted.
#[derive(Debug)]
pub struct Accepted<S> {
    /// Its socket.
    pub socket: S,
    /// The address of the peer.
    pub address: PeerAddress,
}

/// A listening socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListenerId {
    /// A listener for AMQP, by index.
    Amqp(usize),
    /// The control socket.
    Control,
    /// A listener of the management API, by index.
    Management(usize),
}

/// The events that the poll reported about a socket.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Readiness {
    /// A read may return something.
    pub is_readable: bool,
    /// A write may take something.
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
    /// This connection failed or was closed. Another may wait.
    Connection,
    /// The system cannot accept any connection now.
    System,
}

/// The operating system's side of the engine.
pub trait Platform {
    /// The sockets of the platform.
    type Socket: Socket;

    /// Accepts the next connection of a listener.
    ///
    /// # Errors
    /// Why no connection was accepted. Unusual reasons have been logged.
    fn accept(
        &mut self,
        listener: ListenerId,
        log: &mut LogLimiter,
        now: Now,
    ) -> Result<Accepted<Self::Socket>, AcceptFailure>;

    /// Registers a socket with the poll: events are reported to `Engine::note_peer` from now on.
    ///
    /// # Errors
    /// The system cannot register it, and the socket must be closed.
    fn register(&mut self, socket: &mut Self::Socket, peer: PeerId) -> io::Result<()>;

    /// Begins to connect to an address. Success or failure is reported once the socket is registered.
    ///
    /// # Errors
    /// Connecting could not be begun.
    fn connect(&mut self, address: SocketAddr) -> io::Result<Self::Socket>;

    /// Begins to look up a name, on a thread of its own that may block.
    fn start_lookup(&mut self, lookup: NameLookup);

    /// Returns the result of a lookup that has finished.
    fn take_lookup(&mut self) -> Option<FoundAddresses>;

    /// Closes a socket that was registered.
    fn close(&mut self, socket: Self::Socket);

    /// Stops accepting AMQP connections.
    fn stop_listening(&mut self);

    /// Begins a write, on a thread that may block.
    fn start_write(&mut self, job: leveret_storage::Write);

    /// Returns the result of a write that has finished, and its duration in microseconds.
    fn take_write_result(&mut self) -> Option<(leveret_storage::WriteDone, u64)>;

    /// Begins a read, on a thread that may block.
    fn start_read(&mut self, job: leveret_storage::Read);

    /// Returns the result of a read that has finished.
    fn take_read_result(&mut self) -> Option<leveret_storage::ReadOutcome>;

    /// Begins another long job on the worker thread.
    fn start_work(&mut self, job: WorkerJob);

    /// Returns the result of a job that has finished, and the state of the certificates now.
    fn take_work_result(&mut self) -> Option<(WorkerResult, CertificateState)>;

    /// Returns what the machine reports about the process. It is only displayed.
    fn machine(&self) -> Machine {
        Machine::default()
    }

    /// Returns the milliseconds since 1970 by the system clock, for display and for a bridge's time of day.
    fn unix_ms(&self) -> u64;
}

/// A name that is to be looked up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NameLookup {
    /// Distinguishes it from earlier lookups.
    pub ticket: u64,
    /// A name or an address.
    pub host: String,
    /// The port to connect to.
    pub port: u16,
}

/// The result of a lookup.
#[derive(Debug)]
pub struct FoundAddresses {
    /// The ticket of the lookup.
    pub ticket: u64,
    /// All addresses, or the error of the system.
    pub found: Result<Vec<SocketAddr>, String>,
}
