//! The platform of the event loop: sockets, the clock, threads, signals, systemd.
//!
//! This is the only package that reads the clock for the server, apart from certificate checks in `tls`. The
//! server makes the decisions; this package provides the system calls.
//!
//! | file              | content                                                                          |
//! |-------------------|----------------------------------------------------------------------------------|
//! | `event_loop`      | the poll, the clock, signals, and the server's turns between                     |
//! | `start`           | a start: memory, listeners, store; `load_definitions`; why a start fails         |
//! | `dry_run`         | whether a start would succeed, for `leveret check`                               |
//! | `sizes`           | memory of each record with a configuration                                       |
//! | `system`          | the implementation of the server's platform with `mio` and threads               |
//! | `socket`          | a connected socket, and its kernel buffers                                       |
//! | `listen`          | listening and accepting, on the network and on Unix sockets                      |
//! | `disk`            | the data directory, opening the store                                            |
//! | `helpers`         | helper threads: disk, password hashing, TLS handshakes, name look-up             |
//! | `flight_recorder` | the file with the last events                                                    |
//! | `logging`         | log lines, and the thread that writes them; escaping of untrusted text           |
//! | `signals`         | SIGTERM, SIGINT and SIGHUP; the limit of file descriptors                        |
//! | `systemd`         | readiness, watchdog, passed sockets                                              |
//! | `reload`          | changing the configuration at run time                                           |
//! | `probe`           | `leveret check --connect`                                                        |
//!
//! # Invariants
//! - One thread makes decisions. Nothing in it blocks except the poll.

mod disk;
mod dry_run;
mod event_loop;
mod flight_recorder;
mod helpers;
mod listen;
pub mod logging;
mod probe;
mod reload;
mod signals;
mod sizes;
mod socket;
mod start;
mod system;
mod systemd;

use leveret_config::Config;

pub use disk::RESTORE_PART;
pub use dry_run::rehearse;
pub use event_loop::EventLoop;
pub use leveret_tls::TlsError;
pub use probe::try_upstreams;
pub use sizes::{fit, record_sizes};
pub use start::StartError;
pub use system::SOCKET_NAME;

/// Runs the broker until a signal says to stop.
///
/// # Errors
/// Why it cannot start or continue.
pub fn serve(config: &Config) -> Result<(), StartError> {
    EventLoop::open(config)?.run()
}
