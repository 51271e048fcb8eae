//! File descriptors: the number that the limits need, and the number that the system allows.
//!
//! Connections never take the descriptors that the store needs.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;
use crate::limits::CONTROL_CLIENTS_MAX;
use crate::store::FileDisk;

use super::start_error::StartError;

/// Standard streams, the poll and its waker, signals, the spare one, the operator's listener; and what is
/// open for a moment: certificates, the configuration, the service manager's socket.
const OWN: u64 = 20;

/// Returns the number of connections for which there are descriptors, at most `connections_max`, and raises the
/// process's own limit as far as the system allows.
///
/// # Errors
/// There is no descriptor for a single connection.
pub(super) fn connections(config: &Config) -> Result<u32, StartError> {
    let others = others(config);
    let wanted = others + u64::from(config.limits.connections_max);
    let allowed = raise_to(wanted);
    if allowed >= wanted {
        return Ok(config.limits.connections_max);
    }
    let connections = u32::try_from(allowed.saturating_sub(others)).unwrap_or(u32::MAX);
    if connections == 0 {
        return Err(StartError::Descriptors { allowed, wanted });
    }
    log::warn!(
        "the system allows {allowed} file descriptors: {connections} connections at once, not \
         connections_max = {}; for those raise the limit to {wanted} (LimitNOFILE in the systemd unit, or \
         `ulimit -n`)",
        config.limits.connections_max
    );
    Ok(connections)
}

/// Descriptors of everything but connections. Each listener holds one accepted connection that waits.
fn others(config: &Config) -> u64 {
    let listeners = config.listen.len() + config.listen_tls.len() + usize::from(config.unix.path.is_some());
    let links = config.limits.bridge_links();
    let management = match config.management.len() + config.management_tls.len() + config.metrics.len() {
        0 => 0,
        listeners => 2 * listeners + config.limits.management_clients_max as usize,
    };
    OWN + (2 * listeners + links + CONTROL_CLIENTS_MAX + 1 + management + 2 * FileDisk::DESCRIPTORS_MAX)
        as u64
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
