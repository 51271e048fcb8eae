//! The broker's side of the world: sessions, broker, messages, and the turn, as `src/net` has them (`turn`,
//! `receive`, `send`).
//!
//! The order of a turn, the lists and the flags are those of the real loop, step by step; what is missing is
//! the system: lines instead of sockets, a clock that is handed in. So a way to fall asleep with work left,
//! or to stay awake without any, shows here.
//!
//! Always true: after each turn every pool is within its limit.

use std::collections::VecDeque;

use leveret::broker::{Broker, Gauges};
use leveret::command::{ConnectionId, Outcome};
use leveret::journal::Batch;
use leveret::limits::Limits;
use leveret::log_limiter::{LogLimiter, LogSource};
use leveret::mem::{ByteChain, BytePool, MessageLimits, Messages};
use leveret::session::{
    Connection, Context, Identity, Marks, Names, Peer as OtherEnd, Pools, Settings, Step, Suspension, Timeout,
};
use leveret::time::{Deadline, Now};

use super::Random;
use super::line::{Edges, Io, Line};

const DELIVERIES_PER_TURN: u32 = 8192;
const RETRIES_PER_TURN: usize = 64;
const DRAIN_MS: u64 = 1_000;
const LOST_OWNER_MS: u64 = 5_000;
const LOST_MS: u64 = 600_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Waiting {
    No,
    Replies,
    Room,
    Job,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ending {
    No,
    Flushing,
    Draining(Deadline),
    Now,
}

/// `net::stream::Stream`, on a line.
#[derive(Debug)]
struct Stream {
    readable: bool,
    writable: bool,
    read_closed: bool,
    closed_told: bool,
    ended: bool,
    stash: ByteChain,
    from_stash: usize,
    peeked: bool,
}

impl Stream {
    fn read(&mut self, line: &mut Line, pool: &BytePool, buffer: &mut [u8], peek: bool) -> (usize, bool) {
        self.peeked = peek;
        self.from_stash = self.stash.len().min(buffer.len());
        self.stash.copy_front(pool, &mut buffer[..self.from_stash]);
        let mut count = 0;
        if self.readable && self.from_stash < buffer.len() {
            let room = &mut buffer[self.from_stash..];
            match line.receive(room, peek) {
                Io::Bytes(read) => {
                    self.readable = read == room.len();
                    self.ended = read == 0 || self.read_closed && read < room.len();
                    count = read;
                }
                Io::WouldBlock => self.readable = false,
                Io::Reset => (self.readable, self.ended) = (false, true),
            }
        }
        (self.from_stash + count, self.ended)
    }

    fn keep(
        &mut self,
        line: &mut Line,
        pool: &mut BytePool,
        buffer: &mut [u8],
        got: usize,
        handled: usize,
        waits: bool,
    ) -> bool {
        let from_stash = handled.min(self.from_stash);
        self.stash.consume(pool, from_stash);
        if !self.peeked {
            return self.stash.append(pool, &buffer[handled.max(self.from_stash)..got]);
        }
        if handled == 0 && !waits && pool.bytes_free() > 2 * got {
            let start = self.from_stash;
            let taken =
                got == start || line.receive(&mut buffer[start..got], false) == Io::Bytes(got - start);
            return taken && self.stash.append(pool, &buffer[start..got]);
        }
        let taken = handled.saturating_sub(self.from_stash);
        taken == 0 || line.receive(&mut buffer[..taken], false) == Io::Bytes(taken)
    }

    fn write(&mut self, line: &mut Line, bytes: &[u8]) -> Result<usize, ()> {
        match line.transmit(bytes) {
            Io::Bytes(count) => {
                self.writable = count == bytes.len();
                Ok(count)
            }
            Io::WouldBlock => {
                self.writable = false;
                Ok(0)
            }
            Io::Reset => Err(()),
        }
    }
}

#[derive(Debug)]
struct Peer {
    line: usize,
    stream: Stream,
    session: Connection,
    waiting: Waiting,
    ending: Ending,
    to_read: bool,
    to_write: bool,
    deadline: Deadline,
    /// Until when a peer that is gone may wait.
    lost: Deadline,
}

/// Everything of the broker.
#[derive(Debug)]
pub struct House {
    limits: Limits,
    now: Now,
    peers: Vec<Option<Peer>>,
    settings: Settings,
    pools: Pools,
    pub messages: Messages,
    pub log: LogLimiter,
    pub broker: Broker,
    stashes: BytePool,
    input: Vec<u8>,
    output: Vec<u8>,
    marks: Marks,
    names: Names,
    to_read: VecDeque<ConnectionId>,
    to_write: VecDeque<ConnectionId>,
    to_close: Vec<ConnectionId>,
    for_room: VecDeque<ConnectionId>,
    room_seen: u64,
    retries_left: usize,
    for_jobs: VecDeque<ConnectionId>,
    bytes_read: usize,
    holds_back: bool,
    /// Turns made so far.
    pub turns: u64,
    /// The most jobs that waited at the end of a turn.
    pub jobs_seen: usize,
}

/// What a session is lent.
macro_rules! context {
    ($house:expr, $id:expr) => {
        Context {
            now: $house.now,
            pools: &mut $house.pools,
            messages: &mut $house.messages,
            settings: &$house.settings,
            share: $house.broker.content_share($id),
            owner: $house.broker.owner($id),
            durable: $house.broker.journal().durable(),
            log: &mut $house.log,
        }
    };
}

impl House {
    pub fn new(limits: Limits, seed: u64) -> Self {
        let identity = Identity { product: "Leveret".into(), version: "0".into(), ..Identity::default() };
        let mut random = Random::new(seed);
        let entropy = move |bytes: &mut [u8]| bytes.fill_with(|| random.below(256) as u8);
        Self {
            now: Now::from_ms(0),
            peers: Vec::new(),
            settings: Settings::new(&limits, &identity),
            pools: Pools::new(&limits),
            log: LogLimiter::default(),
            messages: Messages::new(MessageLimits {
                messages_max: limits.messages_max as usize,
                body_bytes_max: limits.body_bytes_max as usize,
                assembly_bytes_max: limits.assembly_bytes_max as usize,
                owners_max: limits.vhosts_max as usize,
            }),
            broker: Broker::new(&limits, Box::new(entropy)).expect("the limits have room for a broker"),
            stashes: BytePool::with_bytes(limits.stash_bytes_max as usize),
            input: vec![0; limits.input_buffer_bytes as usize],
            output: vec![0; limits.output_buffer_bytes as usize],
            marks: Marks::for_output_bytes(limits.output_buffer_bytes as usize),
            names: Names::default(),
            to_read: VecDeque::new(),
            to_write: VecDeque::new(),
            to_close: Vec::new(),
            for_room: VecDeque::new(),
            room_seen: 0,
            retries_left: 0,
            bytes_read: 0,
            holds_back: false,
            for_jobs: VecDeque::new(),
            turns: 0,
            jobs_seen: 0,
            limits,
        }
    }

    /// Lets a newcomer in; `false` when there is no record for it.
    pub fn welcome(&mut self, line: usize, now: Now) -> bool {
        let Some(id) = self.broker.connect() else { return false };
        let session = Connection::new(
            now,
            id,
            OtherEnd { from_loopback: true, source: LogSource::Anybody },
            &self.settings,
        );
        let stream = Stream {
            readable: true,
            writable: true,
            read_closed: false,
            closed_told: false,
            ended: false,
            stash: ByteChain::default(),
            from_stash: 0,
            peeked: false,
        };
        let deadline = session.deadline();
        let (waiting, ending) = (Waiting::No, Ending::No);
        let (to_read, to_write, lost) = (false, false, Deadline::NEVER);
        let peer = Peer { line, stream, session, waiting, ending, to_read, to_write, deadline, lost };
        while self.peers.len() <= id.index() {
            self.peers.push(None);
        }
        assert!(self.peers[id.index()].is_none(), "the broker gives out ids that are free");
        self.peers[id.index()] = Some(peer);
        self.list_to_read(id);
        true
    }

    /// Takes what the poll would report; says whether it was anything.
    pub fn take_events(&mut self, lines: &mut [Line]) -> bool {
        let mut any = false;
        for index in 0..self.peers.len() {
            let id = ConnectionId::from_index(index);
            let Some(peer) = self.peers[index].as_mut() else { continue };
            let edges = lines[peer.line].take_edges(&mut peer.stream.closed_told);
            any |= edges != Edges::default();
            if edges.readable || edges.closed || edges.error {
                peer.stream.readable = true;
                peer.stream.read_closed |= edges.closed || edges.error;
                self.list_to_read(id);
            }
            if edges.error {
                self.broker.set_writable(id, false);
                self.note_loss(id);
            } else if edges.writable {
                if let Some(peer) = self.peers[index].as_mut() {
                    peer.stream.writable = true;
                }
                self.list_to_write(id);
            }
        }
        any
    }

    fn note_loss(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers[id.index()].as_mut() else { return };
        if peer.lost == Deadline::NEVER {
            let ms = if self.broker.owns_queues(id) { LOST_OWNER_MS } else { LOST_MS };
            peer.lost = self.now.after_ms(ms);
            peer.deadline = peer.deadline.earlier(peer.lost);
        }
    }

    pub fn has_work(&self) -> bool {
        self.broker.has_work()
            || !self.to_read.is_empty()
            || !self.to_write.is_empty()
            || self.has_room_to_offer()
    }

    pub fn next_deadline(&self) -> Deadline {
        self.peers.iter().flatten().fold(Deadline::NEVER, |next, peer| next.earlier(peer.deadline))
    }

    pub fn turn(&mut self, lines: &mut [Line], now: Now) {
        self.now = now;
        self.turns += 1;
        self.read(lines);
        self.keep_time();
        self.broker.run_jobs(&mut self.messages);
        self.resume_after_jobs();
        self.broker.deliver(&mut self.messages, DELIVERIES_PER_TURN);
        self.write(lines);
        self.resume_for_room(lines);
        self.close(lines);
        self.check_bounds();
    }

    // ---- read

    fn list_to_read(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers[id.index()].as_mut() else { return };
        if peer.waiting == Waiting::No && !core::mem::replace(&mut peer.to_read, true) {
            self.to_read.push_back(id);
        }
    }

    fn read(&mut self, lines: &mut [Line]) {
        self.holds_back = !self.holds_back && !self.to_write.is_empty();
        self.bytes_read = 0;
        if self.holds_back {
            return;
        }
        for _ in 0..self.to_read.len() {
            if self.bytes_read >= self.input.len() {
                break;
            }
            let Some(id) = self.to_read.pop_front() else { break };
            self.read_from(lines, id);
        }
    }

    fn read_from(&mut self, lines: &mut [Line], id: ConnectionId) {
        let Some(peer) = self.peers[id.index()].as_mut() else { return };
        peer.to_read = false;
        if let Ending::Draining(_) = peer.ending {
            match lines[peer.line].receive(&mut self.input, false) {
                Io::Bytes(0) | Io::Reset => self.end_now(id),
                Io::Bytes(_) | Io::WouldBlock => {}
            }
            return;
        }
        if peer.waiting != Waiting::No || peer.ending != Ending::No {
            return;
        }
        let peek =
            self.messages.is_held(self.broker.owner(id)) || self.stashes.bytes_free() < self.input.len();
        let (got, end) = peer.stream.read(&mut lines[peer.line], &self.stashes, &mut self.input, peek);
        self.bytes_read += got;
        let handled = self.handle(id, got);
        let Some(peer) = self.peers[id.index()].as_mut() else { return };
        let line = &mut lines[peer.line];
        let waits = peer.waiting != Waiting::No;
        let kept = peer.stream.keep(line, &mut self.stashes, &mut self.input, got, handled, waits);
        if !kept || end && peer.waiting == Waiting::No && peer.ending == Ending::No {
            self.end_now(id);
        } else if peer.stream.readable {
            self.list_to_read(id);
        }
        self.after_session(id);
    }

    fn handle(&mut self, id: ConnectionId, len: usize) -> usize {
        let mut at = 0;
        let Some(peer) = self.peers[id.index()].as_mut() else { return 0 };
        loop {
            let mut context = context!(self, id);
            match peer.session.next(&mut context, &mut self.names, &self.input[..len], &mut at) {
                Step::NeedMore => break,
                Step::Finished => {
                    peer.ending = Ending::Flushing;
                    break;
                }
                Step::Suspended(Suspension::ReplySpace) => {
                    peer.waiting = Waiting::Replies;
                    break;
                }
                Step::Suspended(Suspension::ContentRoom) => {
                    peer.waiting = Waiting::Room;
                    break;
                }
                Step::Command { channel, command } => {
                    let (outcome, order) = self.broker.apply(context.messages, id, channel, command);
                    // A helper takes its time for this; here it takes none.
                    let outcome = match outcome {
                        Outcome::Check(check) => self.broker.checked(id, &check, check.is_right()),
                        outcome => outcome,
                    };
                    if outcome == Outcome::Later {
                        peer.session.defer();
                        peer.waiting = Waiting::Job;
                        break;
                    }
                    let must_wait = matches!(outcome, Outcome::Wait);
                    peer.session.answer(&mut context, outcome, order, self.broker.awaited());
                    if must_wait {
                        peer.waiting = Waiting::Room;
                        break;
                    }
                    if self.broker.is_busy(id) {
                        peer.waiting = Waiting::Job;
                        break;
                    }
                }
            }
        }
        match peer.waiting {
            Waiting::Room => {
                peer.session.blocked(self.now, true);
                self.for_room.push_back(id);
            }
            Waiting::Job => self.for_jobs.push_back(id),
            Waiting::No | Waiting::Replies => {}
        }
        at
    }

    fn after_session(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers[id.index()].as_mut() else { return };
        if peer.session.is_over() {
            self.broker.disconnect(id);
        }
        peer.deadline = peer.deadline.earlier(peer.session.deadline()).earlier(peer.lost);
        if peer.session.has_output() || peer.ending == Ending::Flushing {
            self.list_to_write(id);
        }
    }

    // ---- timers

    fn keep_time(&mut self) {
        for index in 0..self.peers.len() {
            let Some(peer) = self.peers[index].as_mut() else { continue };
            if peer.deadline.is_due(self.now) {
                peer.deadline = Deadline::NEVER;
                self.call_at_deadline(ConnectionId::from_index(index));
            }
        }
    }

    fn call_at_deadline(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers[id.index()].as_mut() else { return };
        if let Ending::Draining(until) = peer.ending {
            if until.is_due(self.now) {
                self.end_now(id);
            } else {
                peer.deadline = peer.deadline.earlier(until);
            }
            return;
        }
        let is_lost = peer.lost.is_due(self.now);
        if is_lost || peer.session.handle_timeout(&mut context!(self, id)) == Timeout::Close {
            return self.end_now(id);
        }
        peer.stream.readable = true;
        self.list_to_read(id);
        self.after_session(id);
    }

    // ---- jobs

    fn resume_after_jobs(&mut self) {
        for _ in 0..self.for_jobs.len() {
            let Some(id) = self.for_jobs.pop_front() else { break };
            if self.broker.is_busy(id) {
                self.for_jobs.push_back(id);
                continue;
            }
            if let Some((outcome, order)) = self.broker.take_later(id)
                && let Some(peer) = self.peers[id.index()].as_mut()
                && peer.session.expects_answer()
            {
                peer.session.answer(&mut context!(self, id), outcome, order, Batch::NONE);
            }
            self.resume(id);
            self.after_session(id);
        }
    }

    fn resume(&mut self, id: ConnectionId) {
        if let Some(peer) = self.peers[id.index()].as_mut() {
            peer.waiting = Waiting::No;
            peer.stream.readable = true;
            self.list_to_read(id);
        }
    }

    // ---- write

    fn list_to_write(&mut self, id: ConnectionId) {
        if let Some(Some(peer)) = self.peers.get_mut(id.index())
            && !core::mem::replace(&mut peer.to_write, true)
        {
            self.to_write.push_back(id);
        }
    }

    fn write(&mut self, lines: &mut [Line]) {
        while let Some(id) = self.broker.next_noted() {
            self.list_to_write(id);
        }
        for _ in 0..self.to_write.len() {
            let Some(id) = self.to_write.pop_front() else { break };
            self.write_to(lines, id);
        }
    }

    fn write_to(&mut self, lines: &mut [Line], id: ConnectionId) {
        let Some(peer) = self.peers[id.index()].as_mut() else { return };
        peer.to_write = false;
        if !peer.stream.writable || matches!(peer.ending, Ending::Draining(_) | Ending::Now) {
            return;
        }
        let mut context = context!(self, id);
        while let Some((channel, tag, order)) = self.broker.next_cancelled(id) {
            if !peer.session.server_cancel(&mut context, channel, tag, order) {
                break;
            }
            self.broker.told_cancelled(id);
        }
        let mut outbox = self.broker.outbox(id);
        let filled = peer.session.fill(&mut context, &mut self.output, &mut self.marks, &mut outbox);
        let line = &mut lines[peer.line];
        let taken = if filled == 0 { Ok(0) } else { peer.stream.write(line, &self.output[..filled]) };
        let count = taken.unwrap_or(0);
        let sent = peer.session.written(&mut context, count, &self.marks);
        self.broker.sent(&mut self.messages, id, sent);
        self.broker.set_writable(id, !peer.session.has_remainder());
        match taken {
            Ok(_) => self.after_write(lines, id, count),
            Err(()) => self.lose_writing(id),
        }
    }

    fn after_write(&mut self, lines: &mut [Line], id: ConnectionId, count: usize) {
        let Some(peer) = self.peers[id.index()].as_mut() else { return };
        if peer.waiting == Waiting::Replies && count > 0 {
            self.resume(id);
        }
        let Some(peer) = self.peers[id.index()].as_mut() else { return };
        let more = peer.session.has_output() || peer.session.has_remainder();
        if peer.ending == Ending::Flushing && !more {
            lines[peer.line].broker_is_done = true;
            let until = self.now.after_ms(DRAIN_MS);
            peer.ending = Ending::Draining(until);
            peer.stream.readable = true;
            peer.deadline = peer.deadline.earlier(until);
            self.list_to_read(id);
        } else if peer.stream.writable && (more || self.broker.has_output(id)) && count > 0 {
            self.list_to_write(id);
        }
        self.after_session(id);
    }

    fn lose_writing(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers[id.index()].as_mut() else { return };
        peer.stream.writable = false;
        peer.stream.read_closed = true;
        peer.stream.readable = true;
        self.broker.set_writable(id, false);
        if peer.waiting == Waiting::Replies || peer.ending == Ending::Flushing {
            self.end_now(id);
        } else {
            self.list_to_read(id);
        }
    }

    // ---- who waited for room

    fn room_made(&self) -> u64 {
        self.broker.room_made() + self.messages.room_made()
    }

    fn has_room_to_offer(&self) -> bool {
        !self.for_room.is_empty() && (self.retries_left > 0 || self.room_made() != self.room_seen)
    }

    fn resume_for_room(&mut self, lines: &mut [Line]) {
        if !self.has_room_to_offer() {
            return;
        }
        let made = self.room_made();
        if made != self.room_seen {
            (self.room_seen, self.retries_left) = (made, self.for_room.len());
        }
        let is_large_next = self.messages.claim_fits();
        let (mut left, mut at) = (RETRIES_PER_TURN, 0);
        while left > 0 && self.retries_left > 0 {
            let Some(id) = self.for_room.get(at).copied() else {
                self.retries_left = 0;
                break;
            };
            let owner = self.broker.owner(id);
            if self.messages.is_held(owner) && !self.messages.lift_hold(owner) && !is_large_next {
                at += 1;
                continue;
            }
            self.for_room.remove(at);
            self.retries_left -= 1;
            left -= 1;
            let Some(peer) = self.peers[id.index()].as_mut() else { continue };
            peer.waiting = Waiting::No;
            peer.session.blocked(self.now, false);
            peer.stream.readable = true;
            self.read_from(lines, id);
            if self.messages.is_held(owner) && !is_large_next && self.for_room.back() == Some(&id) {
                self.for_room.pop_back();
                self.for_room.insert(at, id);
            }
        }
    }

    // ---- close

    fn end_now(&mut self, id: ConnectionId) {
        if let Some(peer) = self.peers[id.index()].as_mut()
            && peer.ending != Ending::Now
        {
            peer.ending = Ending::Now;
            self.to_close.push(id);
        }
    }

    fn close(&mut self, lines: &mut [Line]) {
        while let Some(id) = self.to_close.pop() {
            let Some(mut peer) = self.peers[id.index()].take() else { continue };
            peer.session.teardown(&mut context!(self, id));
            peer.stream.stash.clear(&mut self.stashes);
            self.broker.release(id);
            lines[peer.line].broker_is_done = true;
            for list in [&mut self.for_room, &mut self.for_jobs, &mut self.to_read, &mut self.to_write] {
                list.retain(|other| *other != id);
            }
        }
    }

    // ---- what always holds

    fn check_bounds(&mut self) {
        let (limits, gauges) = (&self.limits, self.broker.gauges());
        assert!(self.messages.messages_used() <= limits.messages_max as usize);
        assert!(self.messages.body_bytes_used() as u64 <= limits.body_bytes_max);
        assert!(gauges.connections <= limits.connections_max as usize);
        assert!(gauges.channels <= limits.channels_max as usize);
        assert!(gauges.consumers <= limits.consumers_max as usize);
        assert!(gauges.queues <= limits.queues_max as usize);
        assert!(gauges.bindings <= limits.bindings_max as usize);
        assert!(gauges.deliveries <= limits.unacknowledged_max as usize);
        self.jobs_seen = self.jobs_seen.max(gauges.jobs);
    }

    /// Connections that are not gone.
    pub fn peers_count(&self) -> usize {
        self.peers.iter().flatten().count()
    }

    /// Everything was given back: nobody is connected, nothing was declared, nothing is held.
    #[track_caller]
    pub fn assert_empty(&self) {
        assert_eq!(self.broker.gauges(), Gauges::default(), "something was left in a pool of the broker");
        self.assert_no_bytes();
    }

    /// No session holds anything and there are no messages, whatever is declared.
    #[track_caller]
    pub fn assert_no_bytes(&self) {
        let messages = &self.messages;
        assert_eq!(
            (messages.messages_used(), messages.body_bytes_used(), messages.assembly_bytes_used()),
            (0, 0, 0),
            "messages, bytes of bodies, bytes being assembled"
        );
        assert_eq!(
            (self.pools.channels_used(), self.pools.reply_bytes_used(), self.stashes.bytes_used()),
            (0, 0, 0),
            "channels, bytes of replies, bytes of input"
        );
    }
}
