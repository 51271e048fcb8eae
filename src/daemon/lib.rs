//! OWNS SOCKETS, CLOCKS AND THREADS. The only room that reads a clock for the loop, and one that sees all
//! others. What is decided is decided in `engine`; here is the system that it runs on.
//!
//! | file | what it holds |
//! |------|---------------|
//! | `event_loop` | the poll, the clock, and the engine's turns between |
//! | `start`, `start_error` | everything that runs, made and reserved; why it cannot be |
//! | `sizes` | what things cost in memory with a configuration |
//! | `entropy` | random bytes |
//! | `system` | what the engine asks of the world outside, by `mio` and threads |
//! | `socket` | a socket of the network or of this machine |
//! | `listen`, `local` | listening and accepting |
//! | `bridge_file` | what of bridges outlives a restart |
//! | `buffer_size`, `buffers` | the kernel's buffers, and who of this machine has the large ones |
//! | `descriptors` | how many there may be |
//! | `directory` | whether the data directory is what it was set up to be |
//! | `disk` | opening the store |
//! | `helper` | threads that wait for what takes long |
//! | `flight_recorder` | the file of the last events |
//! | `logging`, `log_writer` | the log, and the thread that writes it |
//! | `printable` | what a terminal may be sent |
//! | `resolver` | names of upstreams, each on a thread of its own |
//! | `worker` | passwords, handshakes and configuration, on such a thread |
//! | `defined` | what a file says there is to be at a start |
//! | `signals` | being asked to stop, or to read the configuration again |
//! | `probe`, `probe_line` | whether upstreams take what bridges have for them |
//! | `rehearse` | whether a start would come to its end |
//! | `reload` | what of a changed configuration can be had without a restart |
//!
//! Always true: one thread decides; nothing here blocks but the poll.

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

/// Serves until a signal says to stop.
///
/// # Errors
/// What keeps it from starting, or from going on.
pub fn serve(config: &Config) -> Result<(), StartError> {
    EventLoop::open(config)?.run()
}
