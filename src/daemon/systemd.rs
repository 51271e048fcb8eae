//! The protocols between the process and systemd: notifications by `sd_notify` (ready, stopping, watchdog, start
//! timeout), and listening sockets of `leveret.socket`. The drop-in with `MemoryMax=` is printed by `leveret check`.
//!
//! If the process was not started by systemd, nothing is sent. If a notification cannot be sent, this is
//! logged and the broker continues. systemd then handles the missing notification as configured in the unit.

use std::os::fd::OwnedFd;

use sd_notify::NotifyState;

/// Returns the listening sockets that systemd has passed to this process (sd_listen_fds(3)); empty without any. Must be
/// called only once.
///
/// # Errors
/// The environment variables of the protocol are invalid.
pub(super) fn passed_sockets() -> Result<Vec<OwnedFd>, sd_listen_fds::Error> {
    Ok(sd_listen_fds::get()?.into_iter().map(|(_, socket)| socket.into_std()).collect())
}

/// Notifies systemd that the broker accepts clients.
pub(super) fn notify_ready() {
    notify(&NotifyState::Ready);
}

/// Time by which the start timeout is extended, in microseconds. Each step of the start takes less.
const START_STEP_US_MAX: u32 = 30_000_000;

/// Notifies systemd that the start continues: extends the unit's start timeout by `START_STEP_US_MAX` from now.
pub(super) fn extend_start_timeout() {
    notify(&NotifyState::ExtendTimeoutUsec(START_STEP_US_MAX));
}

/// Notifies systemd that the broker is stopping.
pub(super) fn notify_stopping() {
    notify(&NotifyState::Stopping);
}

/// Returns the interval for [`notify_watchdog`] in milliseconds: half of the unit's `WatchdogSec`, so that
/// one notification may be late. `None` if the unit has no watchdog.
pub(super) fn watchdog_interval_ms() -> Option<u64> {
    let limit = sd_notify::watchdog_enabled()?;
    u64::try_from(limit.as_millis() / 2).ok().filter(|ms| *ms > 0)
}

/// Notifies systemd's watchdog that the event loop is running.
pub(super) fn notify_watchdog() {
    notify(&NotifyState::Watchdog);
}

/// Sends a notification. Logs a failure.
fn notify(state: &NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(std::slice::from_ref(state)) {
        log::warn!("the notification {state} could not be sent to systemd: {error}");
    }
}
