//! The thread that looks names up: apart from the other helpers, for a name server that does not answer must
//! not keep a login waiting.

use std::io;
use std::net::ToSocketAddrs;
use std::sync::Arc;

use mio::Waker;

use crate::engine::{FoundAddresses, NameLookup};

use super::helper::Helper;

/// The system's resolver needs more than other helpers, in bytes.
pub(super) const LOOKUP_STACK_BYTES: usize = 256 << 10;

/// Starts the thread.
///
/// # Errors
/// The system starts no more threads.
pub(super) fn start(waker: Arc<Waker>) -> io::Result<Helper<NameLookup, FoundAddresses>> {
    Helper::start_with_stack("resolver", waker, LOOKUP_STACK_BYTES, look_up)
}

fn look_up(lookup: NameLookup) -> FoundAddresses {
    let NameLookup { ticket, host, port } = lookup;
    let found = (host.as_str(), port).to_socket_addrs().map(Iterator::collect);
    FoundAddresses { ticket, found: found.map_err(|error: io::Error| error.to_string()) }
}
