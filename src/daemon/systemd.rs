//! What the broker tells systemd: that it is ready, that it is stopping, that it is alive; and the sockets
//! that systemd listens with in its stead (leveret.socket).
//!
//! Always true: outside systemd, or without a watchdog in the unit, nothing is sent. A message that cannot be
//! sent is logged and forgotten, since serving matters more than saying so; systemd acts on what it misses.

use std::os::fd::OwnedFd;

use sd_notify::NotifyState;

/// The sockets that systemd passed to this process, as sd_listen_fds(3) says. To be asked once, at the start.
///
/// # Errors
/// What the environment says of them makes no sense.
pub(super) fn passed_sockets() -> Result<Vec<OwnedFd>, sd_listen_fds::Error> {
    Ok(sd_listen_fds::get()?.into_iter().map(|(_, socket)| socket.into_std()).collect())
}

/// Tells that clients are accepted from now on.
pub(super) fn ready() {
    tell(&NotifyState::Ready);
}

/// More than any one step of a start takes, in microseconds.
const STEP_US_MAX: u32 = 30_000_000;

/// Tells that a start that takes long gets on.
pub(super) fn still_starting() {
    tell(&NotifyState::ExtendTimeoutUsec(STEP_US_MAX));
}

/// Tells that a stop was asked for and is under way.
pub(super) fn stopping() {
    tell(&NotifyState::Stopping);
}

/// How often [`watchdog_ping`] is to be called, in milliseconds: half of the unit's `WatchdogSec`, so that
/// one late ping is forgiven; `None` when nobody watches.
pub(super) fn watchdog_interval_ms() -> Option<u64> {
    let limit = sd_notify::watchdog_enabled()?;
    u64::try_from(limit.as_millis() / 2).ok().filter(|ms| *ms > 0)
}

/// Tells that the loop still turns.
pub(super) fn watchdog_ping() {
    tell(&NotifyState::Watchdog);
}

fn tell(state: &NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(std::slice::from_ref(state)) {
        log::warn!("systemd does not take {state}: {error}");
    }
}
