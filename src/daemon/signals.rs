//! Signals as something the poll can wait for: SIGTERM and SIGINT to stop, SIGHUP to read again.
//!
//! Always true: a signal handler only writes a byte into a socket; what the signal means is decided by the
//! turn that reads it.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use leveret_config::Config;
use leveret_core::limits::CONTROL_CLIENTS_MAX;
use leveret_server::WAITING_MAX;
use leveret_storage::FileDisk;
use mio::net::UnixStream;
use mio::{Interest, Poll, Token};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::low_level::pipe;

use super::start::StartError;

/// A socket that becomes readable when one of these signals comes.
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

/// Whether a signal has come since the last time.
pub(super) fn drain(signals: &mut UnixStream) -> bool {
    let mut bytes = [0; 16];
    let mut came = false;
    while matches!(signals.read(&mut bytes), Ok(count) if count > 0) {
        came = true;
    }
    came
}

// File descriptors: the number that the limits need, and the number that the system allows.
//
// Connections never take the descriptors that the store needs.

/// Standard streams, the poll and its waker, signals, the spare one, the operator's listener; and what is
/// open for a moment: certificates, the configuration, the service manager's socket.
const OWN: u64 = 20;

/// Returns the number of connections for which there are descriptors, at most `connections_max`, and of accepted ones
/// that may wait besides. Raises the process's own limit as far as the system allows. When there are too few, a third is
/// for connections that wait.
///
/// # Errors
/// There is no descriptor for a single connection.
pub(super) fn connections(config: &Config) -> Result<(u32, usize), StartError> {
    let others = others(config);
    let wanted = others + u64::from(config.limits.connections_max) + WAITING_MAX as u64;
    let allowed = raise_to(wanted);
    if allowed >= wanted {
        return Ok((config.limits.connections_max, WAITING_MAX));
    }
    let left = allowed.saturating_sub(others);
    let waiting = (left / 3).clamp(1, WAITING_MAX as u64);
    let connections = u32::try_from(left.saturating_sub(waiting)).unwrap_or(u32::MAX);
    if connections == 0 {
        return Err(StartError::Descriptors { allowed, wanted });
    }
    log::warn!(
        "the system allows {allowed} file descriptors: {connections} connections at once, not \
         connections_max = {}; for those raise the limit to {wanted} (LimitNOFILE in the systemd unit, or \
         `ulimit -n`)",
        config.limits.connections_max
    );
    Ok((connections, waiting as usize))
}

/// Descriptors of everything but connections.
fn others(config: &Config) -> u64 {
    let listeners = config.listen.len() + config.listen_tls.len() + usize::from(config.unix.path.is_some());
    let links = config.limits.bridge_links();
    let management = match config.management.len() + config.management_tls.len() + config.metrics.len() {
        0 => 0,
        listeners => listeners + config.limits.management_clients_max as usize,
    };
    OWN + (listeners + links + CONTROL_CLIENTS_MAX + management + 2 * FileDisk::DESCRIPTORS_MAX) as u64
}

/// Raises the process's limit to `wanted` if it is lower and that is allowed; what it is then.
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
