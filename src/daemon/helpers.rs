//! Helper threads for work that would block the event loop: disk jobs, password hashing, TLS handshakes, name
//! look-ups.
//!
//! ```text
//! loop ──jobs──→ helper ──results──→ loop        bounded queues both ways; the waker ends the poll
//! ```
//!
//! # Invariants
//! - A helper thread has no state of the broker, only its current job and the disk.
//! - Every job has a result, unless the process ends.
//! - The event loop does not wait for a helper thread, except when the broker stops.

use std::collections::VecDeque;
use std::io;
use std::net::ToSocketAddrs;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use heapless::spsc::{Consumer, Producer, Queue};
use leveret_config::Config;
use leveret_core::limits::HELPER_STACK_BYTES;
use leveret_server::{CertificateState, FoundAddresses, NameLookup, WorkerJob, WorkerResult};
use leveret_tls::{CertificateStore, KnownTime};
use mio::Waker;

use super::system;

/// Capacity of each queue. At most two messages are in it: one job, and the message to stop.
const QUEUE_CAPACITY: usize = 4;

/// A message to a helper thread.
enum Order<J> {
    Do(J),
    Stop,
}

/// The event loop's handle to a helper thread.
pub(super) struct Helper<J: Send + 'static, D: Send + 'static> {
    orders: Producer<'static, Order<J>>,
    results: Consumer<'static, D>,
    thread: Option<JoinHandle<()>>,
}

impl<J: Send + 'static, D: Send + 'static> Helper<J, D> {
    /// Starts a thread that handles jobs with `work`.
    ///
    /// # Errors
    /// The system starts no more threads.
    pub(super) fn start(
        name: &str,
        waker: Arc<Waker>,
        work: impl FnMut(J) -> D + Send + 'static,
    ) -> io::Result<Self> {
        Self::start_with_stack(name, waker, HELPER_STACK_BYTES, work)
    }

    /// Starts a thread with this stack size in bytes.
    ///
    /// # Errors
    /// The system starts no more threads.
    pub(super) fn start_with_stack(
        name: &str,
        waker: Arc<Waker>,
        stack_bytes: usize,
        mut work: impl FnMut(J) -> D + Send + 'static,
    ) -> io::Result<Self> {
        // The queues are leaked: there is one pair per helper, and helpers exist until the process ends.
        let orders: &'static mut Queue<Order<J>, QUEUE_CAPACITY> = Box::leak(Box::new(Queue::new()));
        let results: &'static mut Queue<D, QUEUE_CAPACITY> = Box::leak(Box::new(Queue::new()));
        let (orders, mut to_do) = orders.split();
        let (mut done, results) = results.split();
        let builder = thread::Builder::new().name(name.to_string()).stack_size(stack_bytes);
        let thread = builder.spawn(move || {
            let _alarm = ExitOnPanic;
            loop {
                match to_do.dequeue() {
                    Some(Order::Do(job)) => {
                        let is_told = done.enqueue(work(job)).is_ok();
                        assert!(is_told, "there is a place for the result of the one job");
                        if let Err(error) = waker.wake() {
                            log::error!("the event loop cannot be woken: {error}");
                        }
                    }
                    Some(Order::Stop) => return,
                    None => thread::park(),
                }
            }
        })?;
        Ok(Self { orders, results, thread: Some(thread) })
    }

    /// Sends a job to the helper. The result of the previous job must have been taken.
    pub(super) fn give(&mut self, job: J) {
        let is_given = self.orders.enqueue(Order::Do(job)).is_ok();
        assert!(is_given, "one job at a time");
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }

    /// Returns the result of the job; `None` if it is not done.
    pub(super) fn take(&mut self) -> Option<D> {
        self.results.dequeue()
    }
}

impl<J: Send + 'static, D: Send + 'static> Drop for Helper<J, D> {
    fn drop(&mut self) {
        let is_told = self.orders.enqueue(Order::Stop).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| is_told) {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// Ends the process if a helper panics, because its jobs would never have results.
struct ExitOnPanic;

impl Drop for ExitOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::abort();
        }
    }
}

/// Starts the worker thread, which hashes passwords, carries out steps of TLS handshakes, and reads the
/// configuration again. It owns the certificates and the last known time. Each result includes the state of
/// the certificates.
///
/// # Errors
/// The system starts no more threads.
pub(super) fn start(
    waker: Arc<Waker>,
    mut certificates: Option<CertificateStore>,
    data_dir: &Path,
) -> io::Result<Helper<WorkerJob, (WorkerResult, CertificateState)>> {
    let folder = data_dir.to_path_buf();
    let mut known = KnownTime::stored_in(data_dir);
    let work = move |job: WorkerJob| {
        let result = run(job, certificates.as_mut(), &mut known, &folder);
        (result, CertificateState::of(certificates.as_ref()))
    };
    Helper::start("worker", waker, work)
}

fn run(
    job: WorkerJob,
    certificates: Option<&mut CertificateStore>,
    known: &mut KnownTime,
    folder: &Path,
) -> WorkerResult {
    match job {
        WorkerJob::Password(login) => login.check(),
        WorkerJob::Handshake(shake) => shake.step(certificates, known),
        WorkerJob::BridgeState(text) => {
            WorkerResult::BridgeState(system::write(folder, &text).map_err(|error| error.to_string()))
        }
        WorkerJob::Certificates => {
            certificates.map(CertificateStore::reload_if_changed);
            WorkerResult::Certificates
        }
        WorkerJob::Reload(config) => WorkerResult::Reload(Box::new(reload(&config, certificates))),
    }
}

/// Reads the configuration again and, if it is valid, the certificates.
fn reload(before: &Config, certificates: Option<&mut CertificateStore>) -> Result<Config, String> {
    let mut config = before.again().map_err(|error| error.to_string())?;
    config
        .derive_limits(super::sizes::record_sizes, super::sizes::ADDRESS_BYTES_MAX)
        .map_err(|error| config.locate_error(&error).to_string())?;
    if let Some(certificates) = certificates
        && !certificates.reload(&config.tls)
    {
        config.tls.clone_from(&before.tls);
    }
    Ok(config)
}

/// Stack size of a look-up thread in bytes. The system's resolver needs more than other helpers.
pub(super) const LOOKUP_STACK_BYTES: usize = 256 << 10;

/// The name look-ups in progress, and those that wait for a thread.
///
/// Each look-up runs in a separate thread, which ends after it, so that a name server without a reply delays
/// neither logins nor other bridges. The maximum number of threads is that of bridge links.
pub(super) struct Resolver {
    waker: Arc<Waker>,
    sender: Sender<FoundAddresses>,
    receiver: Receiver<FoundAddresses>,
    running: usize,
    running_max: usize,
    waiting: VecDeque<NameLookup>,
    look_up: LookUp,
}

/// The type of the function that looks a name up: the system's resolver, or a replacement in tests.
type LookUp = fn(&NameLookup) -> FoundAddresses;

impl Resolver {
    /// Creates a resolver for at most `running_max` look-ups at once.
    pub(super) fn new(waker: Arc<Waker>, running_max: usize) -> Self {
        let (sender, receiver) = mpsc::channel();
        Self { waker, sender, receiver, running: 0, running_max, waiting: VecDeque::new(), look_up }
    }

    /// Begins a look-up, or queues it if all threads are in use.
    pub(super) fn give(&mut self, lookup: NameLookup) {
        self.waiting.push_back(lookup);
        self.go_on();
    }

    /// Returns the result of a finished look-up; `None` if there is none.
    pub(super) fn take(&mut self) -> Option<FoundAddresses> {
        let found = self.receiver.try_recv().ok()?;
        self.running -= 1;
        self.go_on();
        Some(found)
    }

    fn go_on(&mut self) {
        while self.running < self.running_max
            && let Some(lookup) = self.waiting.pop_front()
        {
            self.running += 1;
            let (sender, waker, ticket) = (self.sender.clone(), self.waker.clone(), lookup.ticket);
            let look_up = self.look_up;
            let work = move || {
                // Sending fails only if the receiver was dropped because the process ends.
                let _ = sender.send(look_up(&lookup));
                let _ = waker.wake();
            };
            let started =
                thread::Builder::new().name("resolver".into()).stack_size(LOOKUP_STACK_BYTES).spawn(work);
            if let Err(error) = started {
                let found = Err(format!("the system starts no more threads: {error}"));
                let _ = self.sender.send(FoundAddresses { ticket, found });
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
mod resolver_tests {
    use core::time::Duration;

    use mio::{Events, Poll, Token};

    use super::*;

    /// The name `never` is not answered.
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
        // One at a time beside the one without an answer, in order.
        for ticket in 2..5 {
            let found = next(&mut poll, &mut resolver);
            assert_eq!(found.ticket, ticket);
            assert_eq!(found.found, Ok(vec![([127, 0, 0, 1], 5672).into()]));
        }
        assert!(resolver.take().is_none());
        assert_eq!(resolver.running, 1);
    }
}
