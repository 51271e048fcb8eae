//! SIGTERM and SIGINT as something the poll can wait for.
//!
//! Always true: a signal handler only writes a byte into a socket; what the signal means is decided by the
//! turn that reads it.

use std::os::fd::{AsFd, OwnedFd};

use mio::net::UnixStream;
use mio::{Interest, Poll, Token};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

use super::StartError;

/// The socket that becomes readable when the process is asked to stop.
pub(super) fn open(poll: &mut Poll, token: Token) -> Result<UnixStream, StartError> {
    let failed = |error| StartError::System("listen for signals", error);
    let (mut ours, theirs) = UnixStream::pair().map_err(failed)?;
    for signal in [SIGTERM, SIGINT] {
        let theirs: OwnedFd = theirs.as_fd().try_clone_to_owned().map_err(failed)?;
        pipe::register(signal, theirs).map_err(failed)?;
    }
    poll.registry().register(&mut ours, token, Interest::READABLE).map_err(failed)?;
    Ok(ours)
}
