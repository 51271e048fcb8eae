//! File descriptors: what a full house needs, and what the system lets us have.
//!
//! Always true: connections never take those that the store needs, for it would have to wait for somebody to
//! leave, and with it all who wait for the disk.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;
use crate::engine::{QUEUE_PLACES, VISITORS_MAX};
use crate::limits::CONTROL_CLIENTS_MAX;
use crate::store::FileDisk;

use super::start_error::StartError;

/// Standard streams, the poll and its waker, signals, the spare one, the operator's listener; and what is
/// open for a moment: certificates, the configuration, the service manager's socket.
const OWN: u64 = 20;

/// As many connections as there are descriptors for, at most `connections_max`, and places for newcomers
/// beside them. The process's own limit is raised as far as that takes and the system allows; when it is
/// short, a third of what there is goes to newcomers.
///
/// # Errors
/// There is not one for a single connection.
pub(super) fn connections(config: &Config) -> Result<(u32, usize), StartError> {
    let others = others(config);
    let wanted = others + u64::from(config.limits.connections_max) + QUEUE_PLACES as u64;
    let allowed = raise_to(wanted);
    if allowed >= wanted {
        return Ok((config.limits.connections_max, QUEUE_PLACES));
    }
    let left = allowed.saturating_sub(others);
    let places = (left / 3).clamp(1, QUEUE_PLACES as u64);
    let connections = u32::try_from(left.saturating_sub(places)).unwrap_or(u32::MAX);
    if connections == 0 {
        return Err(StartError::Descriptors { allowed, wanted });
    }
    log::warn!(
        "the system allows {allowed} file descriptors: {connections} connections at once, not \
         connections_max = {}; for those raise the limit to {wanted} (LimitNOFILE in the systemd unit, or \
         `ulimit -n`)",
        config.limits.connections_max
    );
    Ok((connections, places as usize))
}

/// What everything but connections takes.
fn others(config: &Config) -> u64 {
    let listeners = config.listen.len() + config.listen_tls.len() + usize::from(config.unix.path.is_some());
    let links = config.limits.bridge_links();
    let management = match config.management.len() + config.management_tls.len() + config.metrics.len() {
        0 => 0,
        listeners => listeners + config.limits.management_clients_max as usize + VISITORS_MAX,
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
