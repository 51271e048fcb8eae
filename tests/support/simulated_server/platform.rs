//! The in-memory platform of the engine: lines instead of sockets, a simulated disk or none, and helpers with
//! a given slowness.
//!
//! The disk operation of a helper's job happens when the job is handed over or when it ends, by chance. So a
//! power cut meets both cases. The other helper's job may happen during it.
//!
//! # Invariants
//! - An event of a line is reported once, and only for lines that the engine has registered. So an engine
//!   that loses a flag hangs here as in production.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::rc::Rc;

use crate::random::Random;
use crate::simulated_disk::SimDisk;
use leveret_core::log_limiter::LogLimiter;
use leveret_core::time::Now;
use leveret_server::{
    AcceptFailure, Accepted, CertificateState, Engine, FoundAddresses, ListenerId, NameLookup, PeerAddress,
    PeerId, Platform, Readiness, Socket, WorkerJob, WorkerResult,
};
use leveret_storage::{Read as ReadJob, ReadOutcome, Write as WriteJob, WriteDone};
use leveret_tls::{CertificateStore, KnownTime};

use super::line::{Edges, Io, Line};
use super::meanwhile::Meanwhile;

/// The broker's end of a line.
#[derive(Debug)]
pub struct LineEnd(Rc<RefCell<Line>>);

impl LineEnd {
    fn outcome(io: Io) -> io::Result<usize> {
        match io {
            Io::Bytes(count) => Ok(count),
            Io::WouldBlock => Err(io::ErrorKind::WouldBlock.into()),
            Io::Reset => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }
}

impl Read for LineEnd {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        Self::outcome(self.0.borrow_mut().receive(room, false))
    }
}

impl Write for LineEnd {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Self::outcome(self.0.borrow_mut().transmit(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Socket for LineEnd {
    fn peek(&self, room: &mut [u8]) -> io::Result<usize> {
        Self::outcome(self.0.borrow_mut().receive(room, true))
    }

    fn shut_down_writing(&mut self) {
        self.0.borrow_mut().broker_is_done = true;
    }

    fn local_address(&self) -> Option<SocketAddr> {
        None
    }
}

impl Drop for LineEnd {
    fn drop(&mut self) {
        let mut line = self.0.borrow_mut();
        (line.broker_is_done, line.is_held) = (true, false);
    }
}

/// A line whose events are reported to the engine, and its identifier.
#[derive(Debug)]
struct Registered {
    line: Rc<RefCell<Line>>,
    peer: PeerId,
    closed_told: bool,
}

/// A job of a helper.
enum Job<J, D> {
    /// Its disk operation happens when the job is due.
    ToDo(J, u64),
    Done(D, u64),
}

/// The other helper's job happens within this many calls of a job.
const CALLS_MAX: u64 = 6;

impl<J, D> Job<J, D> {
    const fn is_to_do(&self) -> bool {
        matches!(self, Self::ToDo(..))
    }

    const fn due_ms(&self) -> u64 {
        match self {
            Self::ToDo(_, due_ms) | Self::Done(_, due_ms) => *due_ms,
        }
    }
}

/// The helper threads of the event loop, as values.
pub struct Helpers {
    /// The disk of the store, if there is one.
    pub disk: Option<SimDisk>,
    pub certificates: Option<CertificateStore>,
    pub now_ms: u64,
    /// Random decisions follow from the seed and the number of the job.
    seed: (u64, u64),
    writes: u64,
    works: u64,
    /// A job takes less than this many milliseconds; 0: it ends at once.
    pub slowness_ms: u64,
    writing: Option<Job<WriteJob, WriteDone>>,
    reading: Option<Job<ReadJob, ReadOutcome>>,
    working: Option<(WorkerResult, u64)>,
    pub commits: u64,
    pub reads: u64,
}

impl Default for Helpers {
    fn default() -> Self {
        Self::new(None, (0, 0), 0)
    }
}

impl Helpers {
    pub const fn new(disk: Option<SimDisk>, seed: (u64, u64), slowness_ms: u64) -> Self {
        Self {
            disk,
            certificates: None,
            now_ms: 0,
            seed,
            writes: 0,
            works: 0,
            slowness_ms,
            writing: None,
            reading: None,
            working: None,
            commits: 0,
            reads: 0,
        }
    }

    /// Returns when the first of the current jobs ends.
    pub fn due_ms(&self) -> Option<u64> {
        let working = self.working.as_ref().map(|(_, due_ms)| *due_ms);
        let disk = [self.writing.as_ref().map(Job::due_ms), self.reading.as_ref().map(Job::due_ms)];
        disk.into_iter().chain([working]).flatten().min()
    }

    /// Returns the random numbers for one purpose in this job.
    fn chance(&self, purpose: &str, job: u64) -> Random {
        Random::of(self.seed.0, purpose, &[self.seed.1, job])
    }

    fn later_ms(&self, random: &mut Random) -> u64 {
        self.now_ms + if self.slowness_ms > 0 { random.below(self.slowness_ms) } else { 0 }
    }

    fn disk(&self) -> SimDisk {
        self.disk.clone().expect("jobs for a disk come from a store")
    }

    /// Writes, and sometimes performs the pending read during it.
    fn write(&mut self, job: WriteJob) -> WriteDone {
        let mut disk = self.disk();
        let mut random = self.chance("writing meets", self.writes);
        let (reading, is_mixed) = (&mut self.reading, random.once_in(2));
        let Some(Job::ToDo(read, due_ms)) = reading.take_if(|job| is_mixed && job.is_to_do()) else {
            return job.run(&mut disk);
        };
        let other = |disk: &mut SimDisk| *reading = Some(Job::Done(read.run(disk), due_ms));
        let mut disk = Meanwhile::new(disk, random.below(CALLS_MAX), other);
        let done = job.run(&mut disk);
        disk.end();
        done
    }

    /// Reads, and sometimes performs the pending write during it.
    fn read(&mut self, job: ReadJob) -> ReadOutcome {
        let mut disk = self.disk();
        let mut random = self.chance("reading meets", self.reads);
        let (writing, is_mixed) = (&mut self.writing, random.once_in(2));
        let Some(Job::ToDo(write, due_ms)) = writing.take_if(|job| is_mixed && job.is_to_do()) else {
            return job.run(&mut disk);
        };
        let other = |disk: &mut SimDisk| *writing = Some(Job::Done(write.run(disk), due_ms));
        let mut disk = Meanwhile::new(disk, random.below(CALLS_MAX), other);
        let done = job.run(&mut disk);
        disk.end();
        done
    }
}

/// The platform.
#[derive(Default)]
pub struct Memory {
    arrivals: VecDeque<(ListenerId, Accepted<LineEnd>)>,
    has_news_of_operators: bool,
    registered: Vec<Registered>,
    /// Addresses that the engine can connect to, and the number of connections it made.
    pub upstreams: Vec<(SocketAddr, Rc<RefCell<Line>>)>,
    pub dialed: u32,
    /// Number of connection attempts, including failed ones.
    pub tried: u32,
    /// Recorded events of bridges, the newest last.
    pub noted: Vec<String>,
    looking: Option<NameLookup>,
    pub helpers: Helpers,
}

impl core::fmt::Debug for Memory {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Memory").field("registered", &self.registered).finish_non_exhaustive()
    }
}

impl Memory {
    /// Connects a client from this address.
    pub fn arrive(&mut self, line: &Rc<RefCell<Line>>, address: SocketAddr) {
        self.arrive_at(ListenerId::Amqp(0), line, PeerAddress::Network(address));
    }

    /// Connects a client to this listener.
    pub fn arrive_at(&mut self, listener: ListenerId, line: &Rc<RefCell<Line>>, address: PeerAddress) {
        line.borrow_mut().is_held = true;
        self.arrivals.push_back((listener, Accepted { socket: LineEnd(line.clone()), address }));
    }

    /// Reports every line as ready although nothing has happened. A client that proceeds now had missed a
    /// wake-up.
    pub fn report_falsely(engine: &mut Engine<Self>) {
        let readiness = Readiness { is_readable: true, is_writable: true, ..Readiness::default() };
        for index in 0..engine.platform_mut().registered.len() {
            let peer = engine.platform_mut().registered[index].peer;
            engine.note_peer(peer, readiness);
        }
        engine.note_listener(ListenerId::Amqp(0));
        engine.note_listener(ListenerId::Control);
    }

    /// Connects a local program to the operator's socket as this user.
    pub fn arrive_operator(&mut self, line: &Rc<RefCell<Line>>, uid: u32) {
        self.arrive_at(ListenerId::Control, line, PeerAddress::Local { pid: 1, uid });
        self.has_news_of_operators = true;
    }

    /// Connects a client to the management API.
    pub fn arrive_management(&mut self, line: &Rc<RefCell<Line>>, address: SocketAddr) {
        self.arrive_at(ListenerId::Management(0), line, PeerAddress::Network(address));
    }

    /// Reports all events since the last call to the engine. Returns whether there were any, including
    /// results of helpers.
    pub fn report(engine: &mut Engine<Self>) -> bool {
        let now_ms = engine.now().as_ms();
        engine.platform_mut().helpers.now_ms = now_ms;
        let mut any = engine.platform_mut().helpers.due_ms().is_some_and(|due_ms| due_ms <= now_ms);
        any |= engine.platform_mut().looking.is_some();
        // Connections to the operator's socket are reported once.
        let arrivals = engine.platform_mut().arrivals.iter().map(|(listener, _)| *listener);
        let listeners: Vec<_> = arrivals.filter(|listener| *listener != ListenerId::Control).collect();
        listeners.into_iter().for_each(|listener| engine.note_listener(listener));
        if core::mem::take(&mut engine.platform_mut().has_news_of_operators) {
            engine.note_listener(ListenerId::Control);
        }
        engine.platform_mut().registered.retain(|registered| registered.line.borrow().is_held);
        for index in 0..engine.platform_mut().registered.len() {
            let Registered { line, peer, closed_told } = &mut engine.platform_mut().registered[index];
            let edges = line.borrow_mut().take_edges(closed_told);
            if edges == Edges::default() {
                continue;
            }
            any = true;
            let peer = *peer;
            engine.note_peer(peer, readiness(edges));
        }
        any
    }
}

fn readiness(edges: Edges) -> Readiness {
    Readiness {
        is_readable: edges.readable,
        is_writable: edges.writable,
        is_read_closed: edges.closed,
        is_write_closed: edges.error,
        is_error: edges.error,
    }
}

impl Platform for Memory {
    type Socket = LineEnd;

    fn accept(
        &mut self,
        listener: ListenerId,
        _: &mut LogLimiter,
        _: Now,
    ) -> Result<Accepted<LineEnd>, AcceptFailure> {
        let next = self.arrivals.iter().position(|(other, _)| *other == listener);
        let next = next.and_then(|at| self.arrivals.remove(at));
        next.map(|(_, visitor)| visitor).ok_or(AcceptFailure::Empty)
    }

    fn register(&mut self, socket: &mut LineEnd, peer: PeerId) -> io::Result<()> {
        let line = socket.0.clone();
        self.registered.retain(|registered| !Rc::ptr_eq(&registered.line, &line));
        // Existing data is reported at once.
        line.borrow_mut().tell_again();
        self.registered.push(Registered { line, peer, closed_told: false });
        Ok(())
    }

    fn connect(&mut self, address: SocketAddr) -> io::Result<LineEnd> {
        self.tried += 1;
        let line = self.upstreams.iter().find(|(other, _)| *other == address).map(|(_, line)| line.clone());
        let line = line.ok_or(io::ErrorKind::ConnectionRefused)?;
        self.dialed += 1;
        let shape = line.borrow().shape;
        let mut fresh = Line::new(shape);
        fresh.is_held = true;
        *line.borrow_mut() = fresh;
        Ok(LineEnd(line))
    }

    fn start_lookup(&mut self, lookup: NameLookup) {
        self.looking = Some(lookup);
    }

    fn take_lookup(&mut self) -> Option<FoundAddresses> {
        let NameLookup { ticket, host, port } = self.looking.take()?;
        let networks = [("host-", 10), ("here-", 127)];
        let named = |(prefix, net)| Some([net, 0, 0, host.strip_prefix(prefix)?.parse::<u8>().ok()?]);
        let address = networks.into_iter().find_map(named);
        let found = address.map(|address| vec![SocketAddr::from((address, port))]);
        Some(FoundAddresses { ticket, found: found.ok_or_else(|| "no such name".to_string()) })
    }

    fn close(&mut self, socket: LineEnd) {
        drop(socket);
    }

    fn stop_listening(&mut self) {
        self.arrivals.clear();
    }

    fn start_write(&mut self, job: WriteJob) {
        let helpers = &mut self.helpers;
        assert!(helpers.writing.is_none(), "one job at a time");
        helpers.writes += 1;
        let mut random = helpers.chance("write", helpers.writes);
        let due_ms = helpers.later_ms(&mut random);
        helpers.writing = Some(match random.once_in(2) {
            true => Job::Done(helpers.write(job), due_ms),
            false => Job::ToDo(job, due_ms),
        });
    }

    fn take_write_result(&mut self) -> Option<(WriteDone, u64)> {
        let helpers = &mut self.helpers;
        let done = match helpers.writing.take_if(|job| job.due_ms() <= helpers.now_ms)? {
            Job::ToDo(job, _) => helpers.write(job),
            Job::Done(done, _) => done,
        };
        helpers.commits += u64::from(done.is_commit());
        Some((done, 0))
    }

    fn start_read(&mut self, job: ReadJob) {
        let helpers = &mut self.helpers;
        assert!(helpers.reading.is_none(), "one job at a time");
        helpers.reads += 1;
        let mut random = helpers.chance("read", helpers.reads);
        let due_ms = helpers.later_ms(&mut random);
        helpers.reading = Some(match random.once_in(2) {
            true => Job::Done(helpers.read(job), due_ms),
            false => Job::ToDo(job, due_ms),
        });
    }

    fn take_read_result(&mut self) -> Option<ReadOutcome> {
        let helpers = &mut self.helpers;
        Some(match helpers.reading.take_if(|job| job.due_ms() <= helpers.now_ms)? {
            Job::ToDo(job, _) => helpers.read(job),
            Job::Done(done, _) => done,
        })
    }

    fn start_work(&mut self, job: WorkerJob) {
        let helpers = &mut self.helpers;
        assert!(helpers.working.is_none(), "one job at a time");
        let result = match job {
            WorkerJob::Password(login) => login.check(),
            WorkerJob::Handshake(shake) => {
                shake.step(helpers.certificates.as_mut(), &mut KnownTime::default())
            }
            WorkerJob::BridgeState(text) => {
                self.noted.push(text);
                WorkerResult::BridgeState(Ok(()))
            }
            WorkerJob::Certificates => WorkerResult::Certificates,
            WorkerJob::Reload(config) => WorkerResult::Reload(Box::new(Ok(*config))),
        };
        helpers.works += 1;
        let due_ms = helpers.later_ms(&mut helpers.chance("work", helpers.works));
        helpers.working = Some((result, due_ms));
    }

    fn take_work_result(&mut self) -> Option<(WorkerResult, CertificateState)> {
        let helpers = &mut self.helpers;
        let done = helpers.working.take_if(|(_, due_ms)| *due_ms <= helpers.now_ms);
        done.map(|(result, _)| (result, CertificateState::default()))
    }

    fn unix_ms(&self) -> u64 {
        self.helpers.now_ms
    }
}
