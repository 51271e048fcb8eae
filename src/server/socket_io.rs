//! Reads from connections of AMQP and MQTT, applies the commands that they sent, writes to them, and closes peers that do
//! not read.
//!
//! # Invariants
//! - One read takes at most the shared input buffer.
//! - Input that cannot be handled yet is kept in the input backlog or left in the socket.

use core::ops::Range;
use std::io;

use leveret_connection::{InputStep, Stage, Suspension};
use leveret_core::batch::Batch;
use leveret_core::command::{Answer, Command, ConnectionId, OpenSession, Outcome, PublishAnswer};
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::limits::OUTPUT_BYTES_MIN;
use leveret_core::log_limiter::LogKind;
use leveret_core::time::Deadline;

use super::blocked_publishers::BlockedOn;
use super::lost_clients::Place;
use super::password_checks::Login;
use super::peer::{CloseStage, PeerId, WaitReason};
use super::platform::Platform;
use super::sessions::DRAIN_MS;
use super::state::Shared;
use super::stream::ReadMode;
use super::websocket::{CONTROL_OUTPUT_BYTES_MAX, FRAME_BYTES_MAX, HEADER_BYTES, write_header};

/// Interval of the checks for `connection.close` from a blocked publisher, in milliseconds. Its input is
/// searched for this method if no part of the missing resource became free during the interval.
const CLOSE_CHECK_MS: u64 = 10_000;

/// How long a connection may wait for disk space or for a queue if its own deliveries may be the reason why
/// nothing becomes free, in milliseconds.
const SELF_WAIT_MS: u64 = 60_000;

/// An MQTT session needs this much space for its longest packet besides deliveries.
const MQTT_OUTPUT_BYTES_MIN: usize = 512;
/// The smallest write has space for control frames of WebSocket in front of a data frame.
const _: () = assert!(CONTROL_OUTPUT_BYTES_MAX + HEADER_BYTES + MQTT_OUTPUT_BYTES_MIN <= OUTPUT_BYTES_MIN);

impl<P: Platform> Shared<P> {
    /// Reads once from a connection, and handles as much of the input as possible.
    pub(super) fn read_client(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let is_scarce = self.resources.messages.is_held() || !self.buffers.can_take(self.scratch.input.len());
        let session = peer.session.client();
        let reading = match session.is_logged_in() {
            false => ReadMode::Unauthenticated { bytes_max: session.login_bytes_max() },
            true if is_scarce => ReadMode::Peek,
            true => ReadMode::Take,
        };
        let got = peer.stream.read(&mut self.buffers, &mut self.scratch.input, reading);
        self.budget.note_read(got.len);
        if peer.stream.has_lost_record {
            let text = "no memory to keep its unfinished TLS record";
            let text = format_args!("{}: {text}", peer.address);
            self.resources.log.warn(self.now, peer.address.source(), LogKind::Shortage, text);
        }
        self.budget.charge_records(peer.stream.take_records());
        if peer.stream.is_in_tls_handshake() {
            return self.continue_handshake(id.into(), got.is_end);
        }
        let is_known =
            !session.awaits_first_packet() || peer.stream.is_websocket() || self.check_protocol(id, got.len);
        let (handled, is_done) = if is_known { self.handle(id, got.len) } else { (got.len, true) };
        let Some(peer) = self.peers.get_mut(id) else { return };
        // Only handled bytes are counted, because the rest is read and counted again later.
        peer.traffic.received(handled);
        self.traffic.received_bytes += handled as u64;
        let more = peer.waiting != WaitReason::No || !is_done;
        let kept = peer.stream.keep(&mut self.buffers, &mut self.scratch.input, got.len, handled, more);
        if !kept {
            let text = "no memory to keep its unfinished frame; raise memory_limit";
            let text = format_args!("{}: {text}", peer.address);
            self.resources.log.warn(self.now, peer.address.source(), LogKind::Shortage, text);
            self.close_at_turn_end(id);
        } else if !is_done {
            // The connection is read again in a later turn. The kernel will not report input again that was
            // left in the socket.
            peer.stream.assume_readable();
            self.list_to_read(id);
        } else if got.is_end && peer.waiting == WaitReason::No && peer.ending == CloseStage::No {
            self.end_input(id);
        } else if got.is_end && peer.waiting != WaitReason::No && peer.stream.is_websocket() {
            // The socket reports no end, because the client waits for the reply to CLOSE.
            self.note_read_closed(id.into());
        } else {
            let lacks_backlog = peer.stream.lacks_backlog();
            // A peer that made no progress for lack of backlog capacity would make none in the next turn
            // either.
            let goes_on = peer.stream.is_readable && (handled > 0 || !lacks_backlog);
            if lacks_backlog {
                self.lists.for_backlog.push(id);
            }
            if goes_on {
                self.list_to_read(id);
            }
        }
        self.after_session(id.into());
        if let Some(other) = self.admission.take_replaced() {
            self.end_waiting(other);
        }
    }

    /// Closes a connection whose input has ended. If its WebSocket has ended, replies and CLOSE are
    /// written before.
    fn end_input(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let has_websocket_ended = peer.stream.websocket().is_some_and(|websocket| websocket.has_ended());
        if !has_websocket_ended || peer.stream.is_write_closed {
            return self.close_at_turn_end(id);
        }
        peer.ending = CloseStage::Flushing;
        // Nothing more is delivered, so other consumers get the messages. The socket may take no output.
        peer.lost_deadline = peer.lost_deadline.earlier(self.now.after_ms(DRAIN_MS));
        let (broker, mut context) = self.broker_mut();
        broker.set_writable(&mut context, id, false);
    }

    /// Passes the first `len` bytes of the input buffer to the session. Returns the number of bytes that it
    /// handled, and whether it can handle no more now.
    pub(super) fn handle(&mut self, id: ConnectionId, len: usize) -> (usize, bool) {
        let (mut at, mut is_done) = (0, true);
        let Some(peer) = self.peers.get(id) else { return (0, true) };
        let place = if peer.is_opening { self.place_for(peer.stream.is_tls()) } else { Place::Free };
        let (mut opens_connection, mut is_user_at_limit) = (false, false);
        let Some(peer) = self.peers.get_mut(id) else { return (0, true) };
        loop {
            let session = peer.session.client();
            let mut context = self.resources.context(self.now, &self.broker, &self.pending_writes, id);
            match session.next(&mut context, &mut self.scratch.names, &self.scratch.input[..len], &mut at) {
                InputStep::NeedMore => break,
                InputStep::Finished => {
                    peer.ending = CloseStage::Flushing;
                    break;
                }
                InputStep::Suspended(Suspension::ReplySpace) if peer.stream.is_write_closed => {
                    peer.ending = CloseStage::AtTurnEnd;
                    self.lists.to_close.push(id.into());
                    break;
                }
                InputStep::Suspended(Suspension::ReplySpace) => {
                    peer.waiting = WaitReason::Replies;
                    break;
                }
                InputStep::Suspended(Suspension::LongAnswer { bytes }) => {
                    peer.waiting = WaitReason::LongAnswer(bytes);
                    break;
                }
                InputStep::Suspended(Suspension::ContentRoom(full)) => {
                    let shortage = leveret_queues::Shortage::from(full);
                    (peer.waiting, peer.blocked_on) =
                        (WaitReason::Capacity, BlockedOn { shortage, since: self.now });
                    break;
                }
                InputStep::Command(command) => {
                    let opens = match &command {
                        Command::OpenVhost(_) => !session.is_mqtt(),
                        Command::OpenSession(open) => !self.broker.replaces_connection(id, open.client_id),
                        _ => false,
                    };
                    if peer.is_opening && opens {
                        opens_connection = true;
                        if let Place::None(limit) = place {
                            self.admission.set_refusing(Some(limit));
                            if let Command::OpenSession(OpenSession { will: Some(will), .. }) = command {
                                context.messages.release(will.message);
                            }
                            let refusal = Err(limit.fault());
                            peer.session.client().answer(&mut context, refusal, 0, Batch::NONE);
                            continue;
                        }
                    }
                    let mut lent = leveret_broker::Context::new(
                        &mut self.pending_writes,
                        context.messages,
                        &mut self.budget.work,
                    );
                    let (outcome, order) = self.broker.apply(&mut lent, id, command);
                    let batch = lent.awaited;
                    self.budget.charge_work();
                    if session.is_mqtt() {
                        context.withholds_answers = self.broker.withholds_answers(id);
                    }
                    let answer = match outcome {
                        Outcome::Answer(answer) => answer,
                        Outcome::Check(check) if self.worker.checks.is_known_wrong(&check) => {
                            self.broker.checked(&self.pending_writes, id, &check, false)
                        }
                        Outcome::Check(check) => {
                            session.defer_login(self.now);
                            let ticket = self.worker.ticket();
                            let from = peer.address;
                            self.worker.checks.push(Login { peer: id.into(), from, ticket, check });
                            peer.waiting = WaitReason::PasswordCheck(ticket);
                            peer.last_reply_at = self.now;
                            break;
                        }
                        Outcome::Later => {
                            session.defer();
                            peer.waiting = WaitReason::Job;
                            break;
                        }
                    };
                    if let Err(fault) = &answer
                        && fault.code == ReplyCode::ConnectionLimit
                    {
                        // The user may have a publisher that vanished. The client is refused now and succeeds later.
                        is_user_at_limit = true;
                    }
                    if let Some(waiting) = peer.defer(&answer, batch, context.durable) {
                        peer.deferred_reply = Some((answer, order));
                        peer.waiting = waiting;
                        break;
                    }
                    let must_wait = matches!(answer, Ok(Answer::Publish(PublishAnswer::Wait)));
                    peer.session.client().answer(&mut context, answer, order, batch);
                    if must_wait {
                        let shortage = self.broker.last_shortage();
                        (peer.waiting, peer.blocked_on) =
                            (WaitReason::Capacity, BlockedOn { shortage, since: self.now });
                        break;
                    }
                    if self.broker.is_busy(id) {
                        peer.waiting = WaitReason::Job;
                        break;
                    }
                    if self.budget.is_over() {
                        is_done = false;
                        break;
                    }
                }
            }
        }
        if opens_connection && !matches!(place, Place::None(_)) {
            self.admission.set_refusing(None);
        }
        // The publisher is closed only after the input was kept, because its own input is read for that.
        let is_open = peer.session.client().stage() == Stage::Open;
        match place {
            Place::Of(other) if opens_connection && is_open => self.admission.set_replaced(Some(other)),
            _ if is_user_at_limit => self.admission.set_replaced(self.silent_publisher_of(id)),
            _ => {}
        }
        self.list_waiting(id, at > 0);
        (at, is_done)
    }

    /// Puts a connection that waits on the list that belongs to its reason. `has_handled`: it has handled input before.
    #[inline]
    fn list_waiting(&mut self, id: ConnectionId, has_handled: bool) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        match peer.waiting {
            WaitReason::Capacity => {
                peer.session.client().block(self.now, peer.blocked_on.shortage.is_log_full());
                if peer.close_check_due == Deadline::NEVER || has_handled {
                    let interval_ms = peer.session.client().ping_check_ms().unwrap_or(CLOSE_CHECK_MS);
                    peer.close_check_due = self.now.after_ms(interval_ms);
                    peer.close_check_seen = None;
                }
                self.lists.for_capacity.push(id);
            }
            WaitReason::Job | WaitReason::LongAnswer(_) => self.lists.for_jobs.push(id),
            WaitReason::No
            | WaitReason::Replies
            | WaitReason::Handshake(_)
            | WaitReason::Disk(_)
            | WaitReason::PasswordCheck(_) => {}
        }
    }

    /// Makes the waiting publish of a connection retry, and be refused if the disk or the queue still has no space.
    ///
    /// Done if nothing was freed for [`SELF_WAIT_MS`], and the connection itself may be the reason: it has unsettled
    /// deliveries, paused consumers or an open transaction. Returns whether the publish retries.
    fn refuse_self_wait(&mut self, id: ConnectionId, unchanged_ms: u64) -> bool {
        let Some(peer) = self.peers.get_mut(id) else { return false };
        let shortage = peer.blocked_on.shortage;
        if unchanged_ms < SELF_WAIT_MS || !self.broker.may_wait_for_itself(id, shortage) {
            return false;
        }
        self.broker.time_out_waiting(id);
        peer.session.client().unblock(self.now);
        self.lists.for_capacity.remove(id);
        self.resume(id);
        true
    }

    /// Checks whether a blocked publisher wants to close its connection.
    ///
    /// A client may have sent `connection.close` after messages that wait for capacity, and would wait for
    /// the reply without end. The close is replied to if no part of the missing resource became free for
    /// [`CLOSE_CHECK_MS`]. The first check only stores the counter, so an AMQP client gets the reply after two
    /// intervals at the earliest. The messages before the close are dropped, as if the connection had been lost.
    ///
    /// An MQTT client may have sent PINGREQ behind these messages, which is answered at each check.
    pub(super) fn check_for_close(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(id).filter(|peer| peer.close_check_due.is_due(self.now)) else {
            return;
        };
        peer.close_check_due = Deadline::NEVER;
        if peer.waiting != WaitReason::Capacity || peer.ending != CloseStage::No {
            return;
        }
        let ping_check_ms = peer.session.client().ping_check_ms();
        peer.close_check_due = self.now.after_ms(ping_check_ms.unwrap_or(CLOSE_CHECK_MS));
        // While parts of the missing resource become free, the publisher may still be able to continue, even
        // if slowly.
        let shortage = peer.blocked_on.shortage;
        let freed_count = match shortage.is_log_full() {
            true => self.pending_writes.freed(),
            false => self
                .broker
                .queues()
                .departures_from_awaited_queue(shortage)
                .unwrap_or_else(|| self.capacity_freed()),
        };
        let now = self.now;
        let Some(peer) = self.peers.get_mut(id) else { return };
        let unchanged_since =
            peer.close_check_seen.filter(|(seen, _)| *seen == freed_count).map(|(_, since)| since);
        peer.close_check_seen = Some((freed_count, unchanged_since.unwrap_or(now)));
        if let Some(since) = unchanged_since
            && self.refuse_self_wait(id, now.ms_since(since))
        {
            return;
        }
        let Some(peer) = self.peers.get_mut(id) else { return };
        let is_unchanged = unchanged_since.is_some_and(|since| now.ms_since(since) >= CLOSE_CHECK_MS);
        if !(is_unchanged || ping_check_ms.is_some()) || !peer.stream.may_peek(&self.buffers) {
            return;
        }
        peer.stream.assume_readable();
        let got = peer.stream.read(&mut self.buffers, &mut self.scratch.input, ReadMode::Peek);
        let session = peer.session.client();
        let leaves = is_unchanged && session.has_close(&self.scratch.input[..got.len]);
        let is_ping_answered = session.answer_pings(&self.scratch.input[..got.len]);
        if leaves {
            let found = session.count_messages(&self.scratch.input[..got.len], true);
            self.admission.note_dropped_messages(u64::from(session.held_messages() + found.messages));
            session.close_suspended(&mut self.resources.context(
                self.now,
                &self.broker,
                &self.pending_writes,
                id,
            ));
        }
        let is_kept = peer.stream.keep(&mut self.buffers, &mut self.scratch.input, got.len, 0, true);
        peer.stream.assume_readable();
        if leaves {
            let (broker, mut context) = self.broker_mut();
            broker.note_client_leaves(&mut context, id);
        }
        if !is_kept {
            self.close_at_turn_end(id);
        } else if leaves {
            self.resume_closed(id);
        } else if is_ping_answered {
            self.after_session(id.into());
        }
    }

    /// Keeps the original waiting time of a publisher that blocks again at once for the same resource, or that has
    /// published nothing in between.
    pub(super) fn keep_waiting_time(&mut self, id: PeerId, before: BlockedOn, has_published: bool) {
        if let Some(peer) = self.peers.get_mut(id)
            && peer.waiting == WaitReason::Capacity
            && (peer.blocked_on.shortage == before.shortage || !has_published)
        {
            peer.blocked_on.since = before.since;
        }
    }

    pub(super) fn can_publish(&mut self) -> bool {
        !self.resources.messages.is_held() || self.resources.messages.lift_hold()
    }

    /// Returns a counter that rises with every event that may unblock a publisher. It is the sum of the counters of
    /// the broker, the pending-write buffer and the message memory. In builds with assertions,
    /// [`Engine::check_no_missed_wakeup`](super::state::Engine) detects events that are not counted.
    pub(super) fn capacity_freed(&self) -> u64 {
        self.broker.capacity_freed()
            + self.broker.retained_freed()
            + self.pending_writes.capacity_freed()
            + self.resources.messages.capacity_freed()
    }

    /// Returns whether a peer can be removed from `for_backlog`: enough input backlog is free for it, or it has another
    /// reason to wait. In the second case it is read when that wait ends.
    pub(super) fn can_resume_backlogged(&self) -> bool {
        self.lists.for_backlog.iter().any(|id| self.has_backlog_capacity_for(id))
    }

    fn has_backlog_capacity_for(&self, id: PeerId) -> bool {
        let peer = self.peers.get(id);
        peer.is_none_or(|peer| peer.waiting != WaitReason::No || peer.stream.can_resume(&self.buffers))
    }

    /// Removes peers from `for_backlog` for which enough input backlog is free now, and lists them to be
    /// read.
    pub(super) fn resume_backlogged(&mut self) {
        for _ in 0..self.lists.for_backlog.len() {
            let Some(id) = self.lists.for_backlog.pop() else { break };
            if !self.has_backlog_capacity_for(id) {
                self.lists.for_backlog.push(id);
            } else if let Some(peer) = self.peers.get_mut(id) {
                peer.stream.assume_readable();
                self.list_to_read(id);
            }
        }
    }
}

impl<P: Platform> Shared<P> {
    /// Writes the rest of the last write, then replies, confirms and deliveries.
    ///
    /// This is one write if a whole output buffer could be kept in memory. With less free memory it is
    /// several smaller writes, until the socket takes no more or one output buffer was written.
    pub(super) fn write_client(&mut self, id: ConnectionId) {
        let mut written = 0;
        let result = self.flush_and_fill(id, &mut written);
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.traffic.sent(written);
        self.traffic.sent_bytes += written as u64;
        self.note_stall(id, written);
        match result {
            Ok(filled) => self.after_write(id.into(), filled > 0 || written > 0),
            Err(error) => self.note_write_failed(id.into(), &error),
        }
    }

    /// Returns how many bytes the session put into the output buffer. Adds the number of bytes that the
    /// socket took to `written`.
    fn flush_and_fill(&mut self, id: ConnectionId, written: &mut usize) -> io::Result<usize> {
        let Some(peer) = self.peers.get_mut(id) else { return Ok(0) };
        *written += peer.stream.flush_output(&mut self.buffers, &mut self.scratch.output)?;
        let most = self.scratch.output.len();
        let mut filled = 0;
        while filled < most && self.may_fill(id) {
            let fill_bytes = self.buffers.output_bytes(most);
            let (bytes, sent) = self.write_one_fill(id, fill_bytes);
            *written += sent?;
            filled += bytes;
            if bytes == 0 || fill_bytes == most {
                break;
            }
        }
        Ok(filled)
    }

    /// Returns whether the session may be called for more output: the socket has taken all earlier output.
    fn may_fill(&self, id: ConnectionId) -> bool {
        self.peers.get(id).is_some_and(|peer| peer.stream.is_writable && !peer.stream.has_unsent())
    }

    /// Lets the session put at most `fill_bytes` bytes into the output buffer, and writes them. Returns their
    /// number, and how many of them the socket took.
    fn write_one_fill(&mut self, id: ConnectionId, fill_bytes: usize) -> (usize, io::Result<usize>) {
        let Some(peer) = self.peers.get_mut(id) else { return (0, Ok(0)) };
        let out = &mut self.scratch.output[..fill_bytes];
        let control_bytes = peer.stream.websocket().map_or(0, |websocket| websocket.write_control(out));
        if peer.stream.is_websocket_closing() {
            return (control_bytes, peer.stream.write_all(&mut self.buffers, &out[..control_bytes]));
        }
        let is_websocket = peer.stream.is_websocket();
        let payload = match is_websocket {
            true => {
                control_bytes + HEADER_BYTES..fill_bytes.min(control_bytes + HEADER_BYTES + FRAME_BYTES_MAX)
            }
            false => 0..fill_bytes,
        };
        let session = peer.session.client();
        let mut context = self.resources.context(self.now, &self.broker, &self.pending_writes, id);
        while let Some((channel, tag, order)) = self.broker.next_cancelled(id) {
            if !session.server_cancel(&mut context, channel, tag, order) {
                break;
            }
            self.broker.note_cancel_sent(id);
        }
        if session.is_mqtt() {
            context.withholds_answers = self.broker.withholds_answers(id);
        }
        let mut outbox = self.broker.outbox(id);
        let filled = session.fill(&mut context, &mut out[payload], &mut outbox);
        let written = match is_websocket {
            true => frame_output(out, control_bytes, filled.bytes),
            false => 0..filled.bytes,
        };
        let bytes = written.len();
        let sent = peer.stream.write_all(&mut self.buffers, &out[written]);
        let takes_more = !session.has_remainder() && !peer.stream.has_unsent();
        let (broker, mut context) = self.broker_mut();
        broker.written(&mut context, id, filled.deliveries, filled.is_first_dropped, takes_more);
        (bytes, sent)
    }

    /// Starts the write timeout of a connection if output remains that its socket did not take, because this
    /// output occupies memory. Restarts the timeout if the socket took bytes (`count` > 0).
    pub(super) fn note_stall(&mut self, id: ConnectionId, count: usize) {
        let timeout_ms = self.limits.consumer_stall_timeout_ms;
        let Some(peer) = self.peers.get_mut(id) else { return };
        let waits = peer.stream.has_unsent() || self.broker.has_output(id);
        if peer.stream.is_writable || !waits || timeout_ms == 0 {
            peer.write_stall = Deadline::NEVER;
        } else if count > 0 || peer.write_stall == Deadline::NEVER {
            peer.write_stall = self.now.after_ms(timeout_ms.into());
            self.lists.deadlines.lower(id.into(), peer.write_stall);
        }
    }

    /// Closes a connection when its write timeout is over. Writing is tried once more before, because the
    /// kernel reports a socket as writable only when a third of its buffer is free.
    pub(super) fn end_if_stalled(&mut self, id: ConnectionId) {
        let timeout_ms = self.limits.consumer_stall_timeout_ms;
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.stream.is_writable = !peer.stream.is_write_closed;
        if peer.stream.is_writable && !matches!(peer.ending, CloseStage::Draining(_) | CloseStage::AtTurnEnd)
        {
            self.write_client(id);
        }
        let Some(peer) = self.peers.get_mut(id) else { return };
        if !peer.write_stall.is_due(self.now) {
            return;
        }
        peer.write_stall = Deadline::NEVER;
        let fault = Fault::connection(
            ReplyCode::ConnectionForced,
            format_args!(
                "nothing was read from this connection for {timeout_ms} ms while output waited: read \
                 faster, or raise consumer_stall_timeout"
            ),
        );
        let mut context = self.resources.context(self.now, &self.broker, &self.pending_writes, id);
        let session = peer.session.client();
        session.close(&mut context, &fault);
        if session.has_begun_delivery() {
            // A part of a frame was written, so no method with the reason can follow. The reason is in the
            // log.
            self.close_at_turn_end(id);
        }
    }
}

/// Writes the header of the WebSocket frame whose payload of `bytes` bytes follows the `control_bytes` at the start of
/// `out` and [`HEADER_BYTES`] for the header. Returns the part of `out` that is to be written.
fn frame_output(out: &mut [u8], control_bytes: usize, bytes: usize) -> Range<usize> {
    let (control, rest) = out.split_at_mut(control_bytes);
    let Some(header) = rest.first_chunk_mut::<HEADER_BYTES>().filter(|_| bytes > 0) else {
        return 0..control.len();
    };
    // A short header leaves a gap behind the control frames.
    let from = write_header(header, bytes);
    out.copy_within(..control_bytes, from);
    from..control_bytes + HEADER_BYTES + bytes
}
