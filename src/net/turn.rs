//! The one loop, and the house it runs in.
//!
//! A turn does the same things in the same order, and everything it does is bounded:
//!
//! ```text
//! poll ─ who may come in ─ read and apply ─ timers ─ jobs ─ deliver ─ write ─ who waited for room ─ close
//! ```
//!
//! Time is read once, after the poll. Whoever still has work is on a list for the next turn, which then polls
//! without sleeping; when nobody has, the poll sleeps until the earliest deadline, or for ever. So an idle
//! broker does not wake up but for heartbeats and the watchdog.
//!
//! Why this order: what was read in a turn is delivered in the same turn, and whatever a turn gives a peer
//! to read leaves in one write.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use mio::net::UnixStream;
use mio::{Events, Interest, Poll, Token};

use crate::admin::systemd;
use crate::broker::Broker;
use crate::command::{ConnectionId, Outcome};
use crate::config::Config;
use crate::error::{Fault, ReplyCode};
use crate::limits::Limits;
use crate::mem::{BytePool, MessageLimits, Messages};
use crate::session::{self, Context, Identity, Marks, Names, Pools, Settings, Step, Suspension, Timeout};
use crate::time::{Deadline, Now};

use super::StartError;
use super::deadlines::Deadlines;
use super::listen::{self, Door, SpareDescriptor};
use super::peer::{Ending, Peer, Waiting};
use super::signals;
use super::stream::{Reading, Stream};

const EVENTS_PER_POLL: usize = 256;
/// Newcomers taken in per turn, so that a crowd at the door does not hold up those inside.
const ACCEPTS_PER_TURN: usize = 64;
/// Deliveries made per turn.
const DELIVERIES_PER_TURN: u32 = 8192;
/// Connections that may try again to publish, per turn.
const RETRIES_PER_TURN: usize = 64;
/// How long a connection that is over may take to hang up.
const DRAIN_MS: u64 = 1_000;
/// How long a stop may take: clients get so much time to take their connection.close.
const STOP_MS: u64 = 700;

const SIGNAL: Token = Token(usize::MAX - 1);
const FIRST_PEER: usize = 1 << 16;

/// Everything that runs: doors, peers, sessions' pools, messages, broker.
pub struct House {
    limits: Limits,
    started: Instant,
    now: Now,
    poll: Poll,
    events: Events,
    doors: Vec<Door>,
    spare: SpareDescriptor,
    signals: UnixStream,
    /// By connection id.
    peers: Vec<Option<Peer>>,
    peers_count: u32,
    handshakes: u32,
    deadlines: Deadlines,
    settings: Settings,
    pools: Pools,
    messages: Messages,
    broker: Broker,
    stashes: BytePool,
    input: Box<[u8]>,
    output: Box<[u8]>,
    marks: Marks,
    names: Names,
    to_read: VecDeque<ConnectionId>,
    to_write: VecDeque<ConnectionId>,
    to_close: Vec<ConnectionId>,
    /// Publishers that wait for room, first come first served.
    for_room: VecDeque<ConnectionId>,
    /// What [`Self::room_made`] said when they last tried.
    room_seen: u64,
    for_jobs: VecDeque<ConnectionId>,
    bytes_read: usize,
    holds_back: bool,
    watchdog: Option<(u64, Deadline)>,
    stopping: Option<Deadline>,
}

impl core::fmt::Debug for House {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("House").field("peers", &self.peers_count).finish_non_exhaustive()
    }
}

impl House {
    /// Reserves everything, listens, and says so.
    ///
    /// # Errors
    /// What keeps it from starting.
    pub fn open(config: &Config) -> Result<Self, StartError> {
        let limits = config.limits.clone();
        let table =
            limits.check(&super::record_sizes(), config.memory_limit_bytes).map_err(StartError::Limits)?;
        log::debug!("the pools add up to {} bytes", table.bytes());
        let mut poll = Poll::new().map_err(|error| StartError::System("create an epoll instance", error))?;
        let signals = signals::open(&mut poll, SIGNAL)?;
        let doors = listen::open_doors(&mut poll, &config.listen)?;
        let connections = limits.connections_max as usize;
        let broker = Broker::new(&limits, Box::new(entropy)).map_err(StartError::TooSmall)?;
        Ok(Self {
            started: Instant::now(),
            now: Now::from_ms(0),
            poll,
            events: Events::with_capacity(EVENTS_PER_POLL),
            doors,
            spare: SpareDescriptor::new(),
            signals,
            peers: Vec::with_capacity(connections),
            peers_count: 0,
            handshakes: 0,
            deadlines: Deadlines::with_capacity(connections),
            settings: Settings::new(&limits, &identity(config)),
            pools: Pools::new(&limits),
            messages: Messages::new(MessageLimits {
                messages_max: limits.messages_max as usize,
                body_bytes_max: limits.body_bytes_max as usize,
                assembly_bytes_max: limits.assembly_bytes_max as usize,
            }),
            broker,
            stashes: BytePool::with_bytes(limits.stash_bytes_max as usize),
            input: vec![0; limits.input_buffer_bytes as usize].into_boxed_slice(),
            output: vec![0; limits.output_buffer_bytes as usize].into_boxed_slice(),
            marks: Marks::for_output_bytes(limits.output_buffer_bytes as usize),
            names: Names::default(),
            to_read: VecDeque::with_capacity(connections),
            to_write: VecDeque::with_capacity(connections),
            to_close: Vec::with_capacity(connections),
            for_room: VecDeque::with_capacity(connections),
            room_seen: 0,
            for_jobs: VecDeque::with_capacity(connections),
            bytes_read: 0,
            holds_back: false,
            watchdog: systemd::watchdog_interval_ms().map(|ms| (ms, Now::from_ms(0).after_ms(ms))),
            stopping: None,
            limits,
        })
    }

    /// Turns until a signal says to stop.
    ///
    /// # Errors
    /// The system's poll failed.
    pub fn run(&mut self) -> Result<(), StartError> {
        systemd::ready();
        while !self.is_stopped() {
            self.turn().map_err(|error| StartError::System("wait for events", error))?;
        }
        log::info!("stopped");
        Ok(())
    }

    fn turn(&mut self) -> io::Result<()> {
        self.wait()?;
        self.let_in();
        self.read();
        self.keep_time();
        self.broker.run_jobs(&mut self.messages);
        self.resume_after_jobs();
        self.broker.deliver(&mut self.messages, DELIVERIES_PER_TURN);
        self.write();
        self.resume_for_room();
        self.close();
        Ok(())
    }

    // ---- poll

    fn wait(&mut self) -> io::Result<()> {
        let timeout = if self.has_work() {
            Some(Duration::ZERO)
        } else {
            self.next_deadline().ms_left(self.clock()).map(Duration::from_millis)
        };
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        self.now = self.clock();
        let mut events = core::mem::replace(&mut self.events, Events::with_capacity(0));
        for event in &events {
            self.take_event(event);
        }
        events.clear();
        self.events = events;
        Ok(())
    }

    fn clock(&self) -> Now {
        Now::from_ms(self.started.elapsed().as_millis() as u64)
    }

    fn has_work(&self) -> bool {
        self.broker.has_work()
            || !self.to_read.is_empty()
            || !self.to_write.is_empty()
            || self.may_let_in() && self.doors.iter().any(|door| door.ready)
    }

    fn next_deadline(&self) -> Deadline {
        let watchdog = self.watchdog.map_or(Deadline::NEVER, |(_, at)| at);
        let stop = self.stopping.unwrap_or(Deadline::NEVER);
        self.deadlines.next().earlier(watchdog).earlier(stop)
    }

    fn take_event(&mut self, event: &mio::event::Event) {
        match event.token() {
            SIGNAL => self.take_signal(),
            Token(door) if door < FIRST_PEER => {
                if let Some(door) = self.doors.get_mut(door) {
                    door.ready = true;
                }
            }
            Token(peer) => self.note_readiness(ConnectionId::from_index(peer - FIRST_PEER), event),
        }
    }

    fn note_readiness(&mut self, id: ConnectionId, event: &mio::event::Event) {
        let Some(peer) = self.peers[id.index()].as_mut() else { return };
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            peer.stream.readable = true;
            peer.stream.read_closed |= event.is_read_closed() || event.is_error();
            self.list_to_read(id);
        }
        if event.is_error() || event.is_read_closed() && event.is_write_closed() {
            // Nobody reads there any more. What was sent before is still read, as soon as it can be, but no
            // message may go where it would only be lost sight of.
            self.broker.set_writable(id, false);
        } else if event.is_writable() {
            if let Some(peer) = self.peers[id.index()].as_mut() {
                peer.stream.writable = true;
            }
            self.list_to_write(id);
        }
    }

    // ---- who may come in

    fn may_let_in(&self) -> bool {
        self.stopping.is_none()
            && self.peers_count < self.limits.connections_max
            && self.handshakes < self.limits.handshakes_max
    }

    fn let_in(&mut self) {
        for door in 0..self.doors.len() {
            for _ in 0..ACCEPTS_PER_TURN {
                if !self.doors[door].ready || !self.may_let_in() {
                    break;
                }
                let Some(visitor) = self.doors[door].accept(&mut self.spare) else { break };
                if let Err(error) = self.welcome(visitor) {
                    log::warn!("a connection could not be set up: {error}");
                }
            }
        }
    }

    fn welcome(&mut self, mut visitor: listen::Visitor) -> io::Result<()> {
        listen::prepare(&visitor.stream, &self.limits)?;
        // Without a free record the newcomer is closed again: the last of the lost ones is still being
        // cleared away.
        let Some(id) = self.broker.connect() else { return Ok(()) };
        let token = Token(FIRST_PEER + id.index());
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(&mut visitor.stream, token, interest) {
            self.broker.release(id);
            return Err(error);
        }
        let from_loopback = visitor.address.ip().to_canonical().is_loopback();
        let session = session::Connection::new(self.now, id, session::Peer { from_loopback }, &self.settings);
        self.deadlines.lower(id, session.deadline());
        let peer = Peer {
            address: visitor.address,
            stream: Stream::new(visitor.stream),
            session,
            waiting: Waiting::No,
            ending: Ending::No,
            to_read: false,
            to_write: false,
            shaking_hands: true,
        };
        while self.peers.len() <= id.index() {
            self.peers.push(None);
        }
        self.peers[id.index()] = Some(peer);
        self.peers_count += 1;
        self.handshakes += 1;
        self.list_to_read(id);
        Ok(())
    }

    // ---- read and apply

    fn list_to_read(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers[id.index()].as_mut() else { return };
        if peer.waiting == Waiting::No && !core::mem::replace(&mut peer.to_read, true) {
            self.to_read.push_back(id);
        }
    }

    /// Reads about as much as leaves again, or a backlog builds up that is cold when it is delivered: one
    /// buffer's worth over all peers, and with something left to write only every other turn.
    fn read(&mut self) {
        (self.holds_back, self.bytes_read) = (!self.to_write.is_empty() && !self.holds_back, 0);
        let most = if self.holds_back { 0 } else { self.input.len() };
        for _ in 0..self.to_read.len() {
            let next = if self.bytes_read < most { self.to_read.pop_front() } else { None };
            let Some(id) = next else { break };
            self.read_from(id);
        }
    }

    fn read_from(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers[id.index()].as_mut() else { return };
        peer.to_read = false;
        if let Ending::Draining(_) = peer.ending {
            if peer.stream.drain(&mut self.input) {
                self.end_now(id);
            }
            return;
        }
        if peer.waiting != Waiting::No || peer.ending != Ending::No {
            return;
        }
        let scarce = self.messages.is_held() || self.stashes.bytes_free() < self.input.len();
        let reading = if scarce { Reading::Look } else { Reading::Take };
        let got = peer.stream.read(&self.stashes, &mut self.input, reading);
        self.bytes_read += got.len;
        let handled = self.handle(id, got.len);
        let Some(peer) = self.peers[id.index()].as_mut() else { return };
        let kept = peer.stream.keep(&mut self.stashes, &mut self.input, got.len, handled);
        if !kept {
            log::warn!("{}: no room to keep its unfinished frame; raise stash_bytes_max", peer.address);
            self.end_now(id);
        } else if got.end && peer.waiting == Waiting::No && peer.ending == Ending::No {
            self.end_now(id);
        } else if peer.stream.readable {
            self.list_to_read(id);
        }
        self.after_session(id);
    }

    /// Lets the session handle the first `len` bytes of the input buffer; says how many it is done with.
    fn handle(&mut self, id: ConnectionId, len: usize) -> usize {
        let mut at = 0;
        let Some(peer) = self.peers[id.index()].as_mut() else { return 0 };
        loop {
            let mut context = Context {
                now: self.now,
                pools: &mut self.pools,
                messages: &mut self.messages,
                settings: &self.settings,
                share: self.broker.publish_share(id),
            };
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
                    let must_wait = matches!(outcome, Outcome::Wait);
                    peer.session.answer(&mut context, outcome, order);
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
                peer.session.blocked(true);
                self.for_room.push_back(id);
            }
            Waiting::Job => self.for_jobs.push_back(id),
            Waiting::No | Waiting::Replies => {}
        }
        at
    }

    /// What may have changed whenever a session was asked to do something.
    fn after_session(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers[id.index()].as_mut() else { return };
        if peer.shaking_hands && peer.session.is_past_handshake() {
            peer.shaking_hands = false;
            self.handshakes -= 1;
        }
        if peer.session.is_over() {
            self.broker.disconnect(id);
        }
        self.deadlines.lower(id, peer.session.deadline());
        if peer.session.has_output() || peer.ending == Ending::Flushing {
            self.list_to_write(id);
        }
    }

    // ---- timers

    fn keep_time(&mut self) {
        if let Some((interval_ms, at)) = self.watchdog
            && at.is_due(self.now)
        {
            systemd::watchdog_ping();
            self.watchdog = Some((interval_ms, self.now.after_ms(interval_ms)));
        }
        // Each connection once: one whose deadline is not moved by its being called waits for the next turn.
        for _ in 0..self.peers_count {
            let Some(id) = self.deadlines.pop_due(self.now) else { break };
            self.call_at_deadline(id);
        }
    }

    fn call_at_deadline(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers[id.index()].as_mut() else { return };
        if let Ending::Draining(until) = peer.ending {
            if until.is_due(self.now) {
                self.end_now(id);
            } else {
                self.deadlines.lower(id, until);
            }
            return;
        }
        let mut context = Context {
            now: self.now,
            pools: &mut self.pools,
            messages: &mut self.messages,
            settings: &self.settings,
            share: self.broker.publish_share(id),
        };
        if peer.session.handle_timeout(&mut context) == Timeout::Close {
            return self.end_now(id);
        }
        // Time may have let the session go on with input it had left standing, or finish.
        if let Some(peer) = self.peers[id.index()].as_mut() {
            peer.stream.look_again();
        }
        self.list_to_read(id);
        self.after_session(id);
    }

    // ---- jobs

    fn resume_after_jobs(&mut self) {
        for _ in 0..self.for_jobs.len() {
            let Some(id) = self.for_jobs.pop_front() else { break };
            if self.broker.is_busy(id) {
                self.for_jobs.push_back(id);
            } else {
                self.resume(id);
            }
        }
    }

    fn resume(&mut self, id: ConnectionId) {
        if let Some(peer) = self.peers[id.index()].as_mut() {
            peer.waiting = Waiting::No;
            peer.stream.look_again();
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

    fn write(&mut self) {
        while let Some(id) = self.broker.next_noted() {
            self.list_to_write(id);
        }
        for _ in 0..self.to_write.len() {
            let Some(id) = self.to_write.pop_front() else { break };
            self.write_to(id);
        }
    }

    fn write_to(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers[id.index()].as_mut() else { return };
        peer.to_write = false;
        if !peer.stream.writable || matches!(peer.ending, Ending::Draining(_) | Ending::Now) {
            return;
        }
        let mut context = Context {
            now: self.now,
            pools: &mut self.pools,
            messages: &mut self.messages,
            settings: &self.settings,
            share: self.broker.publish_share(id),
        };
        while let Some((channel, tag, order)) = self.broker.next_cancelled(id) {
            if !peer.session.server_cancel(&mut context, channel, tag, order) {
                break;
            }
            self.broker.told_cancelled(id);
        }
        let mut outbox = self.broker.outbox(id);
        let filled = peer.session.fill(&mut context, &mut self.output, &mut self.marks, &mut outbox);
        let taken = if filled == 0 { Ok(0) } else { peer.stream.write(&self.output[..filled]) };
        let count = *taken.as_ref().unwrap_or(&0);
        let sent = peer.session.written(&mut context, count, &self.marks);
        self.broker.sent(&mut self.messages, id, sent);
        self.broker.set_writable(id, !peer.session.has_remainder());
        match taken {
            Ok(_) => self.after_write(id, count),
            Err(error) => self.lose_writing(id, &error),
        }
    }

    fn after_write(&mut self, id: ConnectionId, count: usize) {
        let Some(peer) = self.peers[id.index()].as_mut() else { return };
        if peer.waiting == Waiting::Replies && count > 0 {
            self.resume(id);
        }
        let Some(peer) = self.peers[id.index()].as_mut() else { return };
        let more = peer.session.has_output() || peer.session.has_remainder();
        if peer.ending == Ending::Flushing && !more {
            peer.stream.shut_down_writing();
            let until = self.now.after_ms(DRAIN_MS);
            peer.ending = Ending::Draining(until);
            peer.stream.look_again();
            self.deadlines.lower(id, until);
            self.list_to_read(id);
        } else if peer.stream.writable && (more || self.broker.has_output(id)) && count > 0 {
            self.list_to_write(id);
        }
        self.after_session(id);
    }

    /// The peer takes nothing any more. What it sent before still counts and is read to its end.
    fn lose_writing(&mut self, id: ConnectionId, error: &io::Error) {
        let Some(peer) = self.peers[id.index()].as_mut() else { return };
        log::debug!("{}: writing failed: {error}", peer.address);
        peer.stream.writable = false;
        peer.stream.read_closed = true;
        peer.stream.look_again();
        self.broker.set_writable(id, false);
        if peer.waiting == Waiting::Replies || peer.ending == Ending::Flushing {
            self.end_now(id);
        } else {
            self.list_to_read(id);
        }
    }

    // ---- who waited for room

    /// Rises with everything that can make room for a publisher.
    fn room_made(&self) -> u64 {
        self.broker.releases() + self.messages.frees()
    }

    fn resume_for_room(&mut self) {
        let made = self.room_made();
        if self.for_room.is_empty() || made == self.room_seen {
            return;
        }
        self.room_seen = made;
        if self.messages.is_held() && !self.messages.lift_hold() {
            return;
        }
        for _ in 0..self.for_room.len().min(RETRIES_PER_TURN) {
            let Some(id) = self.for_room.pop_front() else { break };
            let Some(peer) = self.peers[id.index()].as_mut() else { continue };
            peer.waiting = Waiting::No;
            peer.session.blocked(false);
            peer.stream.look_again();
            self.read_from(id);
            if self.messages.is_held() {
                // The first in line did not fit: everybody waits until it does.
                self.for_room.rotate_right(1);
                break;
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

    fn close(&mut self) {
        while let Some(id) = self.to_close.pop() {
            let Some(mut peer) = self.peers[id.index()].take() else { continue };
            let mut context = Context {
                now: self.now,
                pools: &mut self.pools,
                messages: &mut self.messages,
                settings: &self.settings,
                share: self.broker.publish_share(id),
            };
            peer.session.teardown(&mut context);
            peer.stream.release(&mut self.stashes);
            self.deadlines.remove(id);
            self.broker.release(id);
            self.peers_count -= 1;
            self.handshakes -= u32::from(peer.shaking_hands);
            for list in [&mut self.for_room, &mut self.for_jobs, &mut self.to_read, &mut self.to_write] {
                list.retain(|other| *other != id);
            }
            if let Err(error) = self.poll.registry().deregister(&mut peer.stream.socket) {
                log::debug!("{}: deregistering failed: {error}", peer.address);
            }
        }
    }

    // ---- stop

    fn take_signal(&mut self) {
        let mut bytes = [0; 16];
        while matches!(io::Read::read(&mut self.signals, &mut bytes), Ok(count) if count > 0) {}
        if self.stopping.is_some() {
            // Asked twice: at once.
            self.stopping = Some(self.now.after_ms(0));
            return;
        }
        log::info!("asked to stop");
        systemd::stopping();
        self.stopping = Some(self.now.after_ms(STOP_MS));
        self.doors.clear();
        let fault = Fault::connection(
            ReplyCode::ConnectionForced,
            format_args!("broker forced connection closure with reason 'shutdown'"),
        );
        for index in 0..self.peers.len() {
            let Some(peer) = self.peers[index].as_mut() else { continue };
            let id = ConnectionId::from_index(index);
            let mut context = Context {
                now: self.now,
                pools: &mut self.pools,
                messages: &mut self.messages,
                settings: &self.settings,
                share: self.broker.publish_share(id),
            };
            peer.session.close(&mut context, &fault);
            peer.waiting = Waiting::No;
            peer.stream.look_again();
            self.list_to_read(id);
            self.after_session(id);
        }
        self.for_room.clear();
        self.for_jobs.clear();
    }

    fn is_stopped(&self) -> bool {
        self.stopping.is_some_and(|at| self.peers_count == 0 || at.is_due(self.now))
    }
}

fn identity(config: &Config) -> Identity {
    Identity {
        product: config.product.name.clone(),
        version: config.product.version.clone(),
        platform: format!("Rust {}", std::env::consts::ARCH),
        copyright: "Copyright the Leveret authors".to_string(),
        information: "Licensed under MIT or Apache-2.0".to_string(),
        cluster_name: "leveret".to_string(),
    }
}

/// Random bytes for names. Without any the process cannot keep its promises, but a board early in its boot
/// may block here for a moment, and then goes on.
fn entropy(bytes: &mut [u8]) {
    if let Err(error) = getrandom::fill(bytes) {
        panic!("the system gives no random bytes: {error}");
    }
}
