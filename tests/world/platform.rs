//! The world outside of the engine, in memory: lines instead of sockets, and a worker that is done at once.
//!
//! Always true: what happens at a line is reported once, when it begins, and only of those lines that the
//! engine has registered; so an engine that forgets a flag stands still here as it would in the field.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::rc::Rc;

use leveret::engine::{
    AcceptFailure, Engine, Interest, ListenerId, PeerAddress, Platform, Readiness, Socket, Visitor,
    WorkerJob, WorkerResult,
};
use leveret::log_limiter::LogLimiter;
use leveret::store::{Read as ReadJob, ReadOutcome, Write as WriteJob, WriteDone};
use leveret::time::Now;

use super::line::{Edges, Io, Line};

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

/// A line that the engine hears of, and by which name.
#[derive(Debug)]
struct Registered {
    line: Rc<RefCell<Line>>,
    interest: Interest,
    closed_told: bool,
}

/// What the engine runs on.
#[derive(Debug, Default)]
pub struct Memory {
    arrivals: VecDeque<Visitor<LineEnd>>,
    operators: VecDeque<Visitor<LineEnd>>,
    has_news_of_operators: bool,
    registered: Vec<Registered>,
    worked: Option<WorkerResult>,
}

impl Memory {
    /// Somebody connects from this address.
    pub fn arrive(&mut self, line: &Rc<RefCell<Line>>, address: SocketAddr) {
        line.borrow_mut().is_held = true;
        let socket = LineEnd(line.clone());
        self.arrivals.push_back(Visitor { socket, address: PeerAddress::Network(address) });
    }

    /// A program of this machine connects to the operator's socket, as this user.
    pub fn arrive_operator(&mut self, line: &Rc<RefCell<Line>>, uid: u32) {
        line.borrow_mut().is_held = true;
        let socket = LineEnd(line.clone());
        self.operators.push_back(Visitor { socket, address: PeerAddress::Local { pid: 1, uid } });
        self.has_news_of_operators = true;
    }

    /// Operator's clients that were not let in yet.
    pub fn operators_outside(&self) -> usize {
        self.operators.len()
    }

    /// Tells the engine what happened since this was last done; says whether that was anything, a result of
    /// the worker included.
    pub fn report(engine: &mut Engine<Self>) -> bool {
        let mut any = engine.platform.worked.is_some();
        if !engine.platform.arrivals.is_empty() {
            engine.note_listener(ListenerId::Amqp(0));
        }
        if core::mem::take(&mut engine.platform.has_news_of_operators) {
            engine.note_listener(ListenerId::Admin);
        }
        engine.platform.registered.retain(|registered| registered.line.borrow().is_held);
        for index in 0..engine.platform.registered.len() {
            let Registered { line, interest, closed_told } = &mut engine.platform.registered[index];
            let edges = line.borrow_mut().take_edges(closed_told);
            if edges == Edges::default() {
                continue;
            }
            any = true;
            match *interest {
                Interest::Peer(id) => engine.note_peer(id, readiness(edges)),
                Interest::Newcomer(place) => engine.note_newcomer(place, edges.closed || edges.error),
            }
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
    ) -> Result<Visitor<LineEnd>, AcceptFailure> {
        let waiting = match listener {
            ListenerId::Amqp(_) => &mut self.arrivals,
            ListenerId::Admin => &mut self.operators,
        };
        waiting.pop_front().ok_or(AcceptFailure::Nobody)
    }

    fn register(&mut self, socket: &mut LineEnd, interest: Interest) -> io::Result<()> {
        let line = socket.0.clone();
        self.registered.retain(|registered| !Rc::ptr_eq(&registered.line, &line));
        // What is there already is reported at once.
        line.borrow_mut().tell_again();
        self.registered.push(Registered { line, interest, closed_told: false });
        Ok(())
    }

    fn close(&mut self, socket: LineEnd) {
        drop(socket);
    }

    fn stop_listening(&mut self) {
        self.arrivals.clear();
    }

    fn start_write(&mut self, _: WriteJob) {
        unreachable!("there is no store here");
    }

    fn take_written(&mut self) -> Option<(WriteDone, u64)> {
        None
    }

    fn start_read(&mut self, _: ReadJob) {
        unreachable!("there is no store here");
    }

    fn take_read(&mut self) -> Option<ReadOutcome> {
        None
    }

    fn start_work(&mut self, job: WorkerJob) {
        assert!(self.worked.is_none(), "one job at a time");
        self.worked = Some(match job {
            WorkerJob::Password(login) => login.check(),
            WorkerJob::Handshake(shake) => shake.step(None),
            WorkerJob::Reload(config) => WorkerResult::Reload(Box::new(Ok(*config))),
        });
    }

    fn take_worked(&mut self) -> Option<(WorkerResult, bool)> {
        self.worked.take().map(|result| (result, false))
    }

    fn unix_ms(&self) -> u64 {
        0
    }
}
