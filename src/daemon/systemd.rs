//! Messages to systemd (ready, stopping, watchdog), and the sockets that systemd passes (leveret.socket).
//!
//! Without systemd, or without a watchdog in the unit, nothing is sent. A message that cannot be sent is logged
//! and not repeated: serving is more important, and systemd reacts to the missing message.

use std::os::fd::OwnedFd;

use sd_notify::NotifyState;

/// Returns the sockets that systemd passed to this process (sd_listen_fds(3)). Called once, at start.
///
/// # Errors
/// The environment variables are invalid.
pub(super) fn passed_sockets() -> Result<Vec<OwnedFd>, sd_listen_fds::Error> {
    Ok(sd_listen_fds::get()?.into_iter().map(|(_, socket)| socket.into_std()).collect())
}

/// Reports that clients are accepted.
pub(super) fn ready() {
    tell(&NotifyState::Ready);
}

/// Upper limit for the duration of one step of a start, in microseconds.
const STEP_US_MAX: u32 = 30_000_000;

/// Extends the start timeout of systemd.
pub(super) fn still_starting() {
    tell(&NotifyState::ExtendTimeoutUsec(STEP_US_MAX));
}

/// Reports that the broker is stopping.
pub(super) fn stopping() {
    tell(&NotifyState::Stopping);
}

/// Returns the interval for [`watchdog_ping`] in milliseconds: half of the unit's `WatchdogSec`, so that one late
/// message does no harm; `None` without a watchdog.
pub(super) fn watchdog_interval_ms() -> Option<u64> {
    let limit = sd_notify::watchdog_enabled()?;
    u64::try_from(limit.as_millis() / 2).ok().filter(|ms| *ms > 0)
}

/// Reports that the event loop is running.
pub(super) fn watchdog_ping() {
    tell(&NotifyState::Watchdog);
}

fn tell(state: &NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(std::slice::from_ref(state)) {
        log::warn!("systemd does not take {state}: {error}");
    }
}
