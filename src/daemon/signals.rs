//! Signals as sockets that the poll can wait for: SIGTERM and SIGINT to stop, SIGHUP to reload the configuration;
//! and the limit of file descriptors.
//!
//! A signal handler only writes a byte to a socket. The event loop reads the byte and handles the signal.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use leveret_config::Config;
use leveret_core::limits::{CONNECTIONS_SPARE, CONTROL_CLIENTS_MAX};
use leveret_server::WAITING_SOCKETS_MAX;
use leveret_storage::FileDisk;
use mio::net::UnixStream;
use mio::{Interest, Poll, Token};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::low_level::pipe;

use super::start::StartError;

/// Returns a socket that becomes readable when one of these signals arrives.
pub(super) fn open(poll: &mut Poll, token: Token, signals: &[i32]) -> Result<UnixStream, StartError> {
    let failed = |error| StartError::System("listen for signals", error);
    let (mut ours, theirs) = UnixStream::pair().map_err(failed)?;
    for signal in signals {
        let theirs: OwnedFd = theirs.as_fd().try_clone_to_owned().map_err(failed)?;
        pipe::register(*signal, theirs).map_err(failed)?;
    }
    poll.registry().register(&mut ours, token, Interest::READABLE).map_err(failed)?;
    Ok(ours)
}

/// Returns whether a signal has arrived since the last call.
pub(super) fn drain(signals: &mut UnixStream) -> bool {
    let mut bytes = [0; 16];
    let mut came = false;
    while matches!(signals.read(&mut bytes), Ok(count) if count > 0) {
        came = true;
    }
    came
}

/// Number of descriptors for other things than connections and the store: standard streams, poll, waker,
/// signals, the spare one, the control socket, and files that are open for a short time.
const OWN: u64 = 20;

/// Raises the limit of file descriptors as far as needed and as the system allows. Returns the number of connections
/// that may be open with these descriptors, at most `connections_max`, and the number of additional accepted connections that
/// may wait for admission.
///
/// If there are too few descriptors for both, a third of them is for waiting connections. The descriptors
/// that the store needs are never used for connections.
///
/// # Errors
/// There is no descriptor for a single connection.
pub(super) fn connections(config: &Config) -> Result<(u32, usize), StartError> {
    let others = others(config);
    let wanted = others + u64::from(config.limits.connection_places()) + WAITING_SOCKETS_MAX as u64;
    let allowed = raise_to(wanted);
    if allowed >= wanted {
        return Ok((config.limits.connections_max, WAITING_SOCKETS_MAX));
    }
    let left = allowed.saturating_sub(others);
    let waiting = (left / 3).clamp(1, WAITING_SOCKETS_MAX as u64);
    let left = left.saturating_sub(waiting);
    // With few descriptors, fewer connections are spare.
    let connections = left - u64::from(CONNECTIONS_SPARE).min(left / 4);
    let connections = u32::try_from(connections).unwrap_or(u32::MAX);
    if connections == 0 {
        return Err(StartError::Descriptors { allowed, wanted });
    }
    // Few devices need as many connections as follow from the memory.
    let level = if config.is_limit_derived("connections_max") { log::Level::Info } else { log::Level::Warn };
    log::log!(
        level,
        "the system allows {allowed} file descriptors: {connections} connections at once, fewer than \
         connections_max = {}; raise the limit to {wanted} (LimitNOFILE in the systemd unit, or `ulimit -n`)",
        config.limits.connections_max
    );
    Ok((connections, waiting as usize))
}

/// Returns the number of descriptors needed for other things than connections.
fn others(config: &Config) -> u64 {
    let amqp = config.listen.len() + config.listen_tls.len() + usize::from(config.unix.path.is_some());
    let listeners = amqp + config.mqtt.len() + config.mqtt_tls.len();
    // Bridges that are added later use descriptors of connections.
    let links = 2 * config.bridges.len();
    let management = match config.management.len() + config.management_tls.len() + config.metrics.len() {
        0 => 0,
        listeners => listeners + config.limits.management_clients_max as usize,
    };
    OWN + (listeners + links + CONTROL_CLIENTS_MAX + management + 2 * FileDisk::DESCRIPTORS_MAX) as u64
}

/// Raises the limit of the process to `wanted`, if it is lower and the system allows it. Returns the limit.
fn raise_to(wanted: u64) -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let current = limit.current.unwrap_or(u64::MAX);
    let possible = wanted.min(limit.maximum.unwrap_or(u64::MAX));
    if possible <= current {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(possible), maximum: limit.maximum }) {
        Ok(()) => possible,
        Err(error) => {
            log::debug!("the limit of file descriptors stays at {current}: {error}");
            current
        }
    }
}
