//! The platform of the event loop: sockets, the clock, threads, signals, systemd.
//!
//! This is the only package that reads the clock for the server, apart from certificate checks in `tls`. The
//! server makes the decisions; this package provides the system calls.
//!
//! | file              | content                                                                          |
//! |-------------------|----------------------------------------------------------------------------------|
//! | `event_loop`      | the poll, the clock, and the server's turns after each poll                      |
//! | `start`           | the start: memory, listeners, store, `load_definitions`; errors of the start     |
//! | `dry_run`         | checks whether the broker would start, for `leveret check`                       |
//! | `sizes`           | the memory of each type of record, given a configuration                         |
//! | `system`          | the implementation of the server's platform with `mio` and threads               |
//! | `socket`          | a connected socket, and its kernel buffers                                       |
//! | `listen`          | listening and accepting, on the network and on Unix sockets                      |
//! | `disk`            | the data directory, opening the store                                            |
//! | `helpers`         | helper threads: disk, password hashing, TLS handshakes, name look-up             |
//! | `flight_recorder` | writes the file with the last events                                             |
//! | `logging`         | log lines, and the thread that writes them; escaping of untrusted text           |
//! | `signals`         | SIGTERM, SIGINT and SIGHUP; the limit of file descriptors                        |
//! | `systemd`         | `sd_notify` (ready, stopping, watchdog), sockets passed by systemd               |
//! | `reload`          | changing the configuration at run time                                           |
//! | `probe`           | tries the connection to each upstream, for `leveret check --connect`             |
//!
//! # Invariants
//! - Only one thread, the event loop, has the state of the broker. Nothing blocks that thread except the poll.

mod disk;
mod dry_run;
mod event_loop;
mod flight_recorder;
mod helpers;
mod listen;
pub mod logging;
mod probe;
mod reload;
mod sandbox;
mod signals;
mod sizes;
mod socket;
mod start;
mod system;
mod systemd;

use leveret_config::Config;

pub use disk::RESTORE_PART;
pub use dry_run::dry_run_start;
pub use event_loop::EventLoop;
pub use leveret_tls::TlsError;
pub use probe::try_upstreams;
pub use sizes::{derive_limits, record_sizes};
pub use start::StartError;
pub use system::SOCKET_NAME;

/// Runs the broker until SIGTERM or SIGINT arrives.
///
/// # Errors
/// Why the broker cannot start or continue.
pub fn serve(config: &Config) -> Result<(), StartError> {
    EventLoop::open(config)?.run()
}
