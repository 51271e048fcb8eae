//! Names of upstreams, each looked up on a thread of its own: a name server that does not answer must keep no
//! login waiting, and no other bridge.
//!
//! Always true: a thread lives as long as its lookup; there are no more of them than links of bridges.

use std::collections::VecDeque;
use std::io;
use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use mio::Waker;

use crate::engine::{FoundAddresses, NameLookup};

/// The system's resolver needs more than other helpers, in bytes.
pub(super) const LOOKUP_STACK_BYTES: usize = 256 << 10;

/// The lookups that are under way, and those that have to wait.
pub(super) struct Resolver {
    waker: Arc<Waker>,
    tell: Sender<FoundAddresses>,
    found: Receiver<FoundAddresses>,
    running: usize,
    running_max: usize,
    waiting: VecDeque<NameLookup>,
}

impl Resolver {
    /// So many names may be looked up at once.
    pub(super) fn new(waker: Arc<Waker>, running_max: usize) -> Self {
        let (tell, found) = mpsc::channel();
        Self { waker, tell, found, running: 0, running_max, waiting: VecDeque::new() }
    }

    /// Begins a lookup.
    pub(super) fn give(&mut self, lookup: NameLookup) {
        self.waiting.push_back(lookup);
        self.go_on();
    }

    /// What one of them has found, if one has.
    pub(super) fn take(&mut self) -> Option<FoundAddresses> {
        let found = self.found.try_recv().ok()?;
        self.running -= 1;
        self.go_on();
        Some(found)
    }

    fn go_on(&mut self) {
        while self.running < self.running_max
            && let Some(lookup) = self.waiting.pop_front()
        {
            self.running += 1;
            let (tell, waker, ticket) = (self.tell.clone(), self.waker.clone(), lookup.ticket);
            let work = move || {
                // Nobody listens when the process ends.
                let _ = tell.send(look_up(&lookup));
                let _ = waker.wake();
            };
            let started =
                thread::Builder::new().name("resolver".into()).stack_size(LOOKUP_STACK_BYTES).spawn(work);
            if let Err(error) = started {
                let found = Err(format!("the system starts no more threads: {error}"));
                let _ = self.tell.send(FoundAddresses { ticket, found });
                let _ = self.waker.wake();
            }
        }
    }
}

fn look_up(lookup: &NameLookup) -> FoundAddresses {
    let NameLookup { ticket, host, port } = lookup;
    let found = (host.as_str(), *port).to_socket_addrs().map(Iterator::collect);
    FoundAddresses { ticket: *ticket, found: found.map_err(|error: io::Error| error.to_string()) }
}
