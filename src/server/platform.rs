//! The interface between the engine and the operating system: traits that the daemon and the tests implement.
//!
//! ```text
//!   octets             Socket::{read, peek, write, shut_down_writing}   one connection, never blocking
//!   listening          Platform::{accept, register, stop_listening}
//!   closing            Platform::close
//!   connecting         Platform::{connect, start_lookup, take_lookup}
//!   jobs               Platform::{start_write, start_read, start_work}    one job of each kind at a time
//!                      Platform::{take_write_result, take_read_result, take_work_result}   its result
//! ```
//!
//! In the other direction, the platform calls `Engine::set_now` after each sleep, `Engine::note_peer` and
//! `Engine::note_listener` for each event, then `Engine::turn`. `Engine::sleep_deadline` returns how long to
//! sleep next. In `leveret-daemon` the engine runs over `mio` and threads, in the tests over in-memory
//! sockets.
//!
//! # Invariants
//! - No call here blocks.
//! - The engine gets the time only from `set_now`.
//! - Readiness is reported when it begins, not as long as it lasts (edge-triggered).
//! - Every started job has a result. When the result arrives, the platform calls `Engine::turn`.

use core::net::SocketAddr;
use std::io::{self, Read, Write};

use leveret_core::flight::{self, Event};
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
    /// The same errors as those of a read.
    fn peek(&self, room: &mut [u8]) -> io::Result<usize>;

    /// Shuts down the writing side. Errors are ignored, because then the peer has closed the connection
    /// already.
    fn shut_down_writing(&mut self);

    /// Returns and clears the error with which connecting failed; `None` if it did not fail.
    fn take_error(&self) -> Option<io::Error> {
        None
    }

    /// Returns the local address of a network socket; `None` for a Unix socket.
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
    /// A listener for MQTT, by index.
    Mqtt(usize),
    /// The control socket.
    Control,
    /// A listener of the management API, by index.
    Management(usize),
}

/// The state of a socket, as reported by the poll.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Readiness {
    /// A read may return bytes, or the end of the input.
    pub is_readable: bool,
    /// A write may take bytes.
    pub is_writable: bool,
    /// The peer will send nothing more.
    pub is_read_closed: bool,
    /// The peer receives nothing more.
    pub is_write_closed: bool,
    /// The connection is broken.
    pub is_error: bool,
}

/// Why no connection was accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AcceptFailure {
    /// No connection waits to be accepted.
    Empty,
    /// The next connection failed or was closed. Another one may wait.
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

    /// Registers a socket with the poll. From now on its events are reported to `Engine::note_peer`, and what it is ready
    /// for now is reported too. A socket that was registered for another peer is from now on that of `peer`.
    ///
    /// # Errors
    /// The system cannot register it, and the socket must be closed.
    fn register(&mut self, socket: &mut Self::Socket, peer: PeerId) -> io::Result<()>;

    /// Begins to connect to an address. Success or failure is reported once the socket is registered.
    ///
    /// # Errors
    /// Connecting could not be begun.
    fn connect(&mut self, address: SocketAddr) -> io::Result<Self::Socket>;

    /// Begins to resolve a host name, on a separate thread, because this may block.
    fn start_lookup(&mut self, lookup: NameLookup);

    /// Returns the result of a finished lookup; `None` if there is none.
    fn take_lookup(&mut self) -> Option<FoundAddresses>;

    /// Closes a socket that was registered.
    fn close(&mut self, socket: Self::Socket);

    /// Stops accepting connections, except at the control socket.
    fn stop_listening(&mut self);

    /// Begins a write, on a thread that may block.
    fn start_write(&mut self, job: leveret_storage::Write);

    /// Returns the result of a finished write, and its duration in microseconds; `None` if there is none.
    fn take_write_result(&mut self) -> Option<(leveret_storage::WriteDone, u64)>;

    /// Begins a read, on a thread that may block.
    fn start_read(&mut self, job: leveret_storage::Read);

    /// Returns the result of a finished read; `None` if there is none.
    fn take_read_result(&mut self) -> Option<leveret_storage::ReadOutcome>;

    /// Begins a job on the worker thread.
    fn start_work(&mut self, job: WorkerJob);

    /// Returns the result of a finished job, and the present state of the certificates; `None` if there is
    /// none.
    fn take_work_result(&mut self) -> Option<(WorkerResult, CertificateState)>;

    /// Returns what the operating system reports about the process, for display only.
    fn machine(&self) -> Machine {
        Machine::default()
    }

    /// Returns the newest events of this process with numbers above `after` that the flight recorder has, at most
    /// `count`.
    ///
    /// # Errors
    /// Nothing is recorded; the text says why.
    fn recorded_events(&self, _after: u32, _count: usize) -> Result<Vec<Event>, &str> {
        Err(flight::NOT_CONFIGURED)
    }

    /// Returns the milliseconds since 1970 by the system clock, for display and for a bridge's time of day.
    fn unix_ms(&self) -> u64;
}

/// A host name to be resolved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NameLookup {
    /// Number that distinguishes this lookup from earlier ones.
    pub ticket: u64,
    /// A host name or an IP address.
    pub host: String,
    /// The port to connect to.
    pub port: u16,
}

/// The result of a lookup.
#[derive(Debug)]
pub struct FoundAddresses {
    /// The ticket of the lookup.
    pub ticket: u64,
    /// All addresses of the host, or the error text of the system.
    pub found: Result<Vec<SocketAddr>, String>,
}
