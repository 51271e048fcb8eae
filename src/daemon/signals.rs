//! Signals as something the poll can wait for: SIGTERM and SIGINT to stop, SIGHUP to read again.
//!
//! Always true: a signal handler only writes a byte into a socket; what the signal means is decided by the
//! turn that reads it.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use mio::net::UnixStream;
use mio::{Interest, Poll, Token};
use signal_hook::low_level::pipe;

use super::start_error::StartError;

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
