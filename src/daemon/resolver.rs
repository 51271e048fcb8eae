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

use leveret_server::{FoundAddresses, NameLookup};

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
    look_up: LookUp,
}

/// Whoever answers: the system's resolver, but for tests, where no name server is to be slow at will.
type LookUp = fn(&NameLookup) -> FoundAddresses;

impl Resolver {
    /// So many names may be looked up at once.
    pub(super) fn new(waker: Arc<Waker>, running_max: usize) -> Self {
        let (tell, found) = mpsc::channel();
        Self { waker, tell, found, running: 0, running_max, waiting: VecDeque::new(), look_up }
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
            let look_up = self.look_up;
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

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use mio::{Events, Poll, Token};

    use super::*;

    /// `never` is what a name server does not answer.
    fn answer(lookup: &NameLookup) -> FoundAddresses {
        match &*lookup.host {
            "never" => loop {
                thread::park();
            },
            _ => look_up(lookup),
        }
    }

    fn lookup(ticket: u64, host: &str) -> NameLookup {
        NameLookup { ticket, host: host.to_owned(), port: 5672 }
    }

    fn next(poll: &mut Poll, resolver: &mut Resolver) -> FoundAddresses {
        loop {
            if let Some(found) = resolver.take() {
                return found;
            }
            let mut events = Events::with_capacity(1);
            poll.poll(&mut events, Some(Duration::from_secs(60))).expect("it is woken");
            assert!(!events.is_empty(), "nobody is woken by what was found");
        }
    }

    #[test]
    fn what_is_not_answered_delays_no_other() {
        let mut poll = Poll::new().expect("there is a poll");
        let waker = Arc::new(Waker::new(poll.registry(), Token(0)).expect("there is a waker"));
        let mut resolver = Resolver { look_up: answer, ..Resolver::new(waker, 2) };
        resolver.give(lookup(1, "never"));
        for ticket in 2..5 {
            resolver.give(lookup(ticket, "127.0.0.1"));
        }
        // One at a time beside the one that hangs, in their order.
        for ticket in 2..5 {
            let found = next(&mut poll, &mut resolver);
            assert_eq!(found.ticket, ticket);
            assert_eq!(found.found, Ok(vec![([127, 0, 0, 1], 5672).into()]));
        }
        assert!(resolver.take().is_none());
        assert_eq!(resolver.running, 1);
    }
}
