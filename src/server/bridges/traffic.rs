//! A contact reads and writes: what the upstream says is handled in order, and what goes there leaves in pages.
//!
//! ```text
//! page: | rest of the frame that was cut | what the client says | messages, each lane its share … |
//! ```
//!
//! Always true: what an upstream sends is read under the same budgets as what clients send; what a socket does
//! not take is not kept, but known as numbers.

use std::io;

use leveret_bridge::{Cause, Event, not_tls};
use leveret_tls::Shaken;

use super::contact::Lane;
use super::state::Direction;
use super::task::{Next, Task};
use crate::peer::Waiting;
use crate::platform::{Platform, Socket};
use crate::stream::Reading;
use crate::worker_job::Shake;

impl<P: Platform> Task<'_, P> {
    // ---- reading

    pub(super) fn read(&mut self) {
        let id = self.contact.peer;
        let is_scarce = self.shared.supplies.messages.is_held()
            || !self.shared.buffers.can_take(self.shared.scratch.input.len());
        let Some(peer) = self.shared.peers.get_mut(id) else { return };
        if self.contact.client.is_unheard()
            && let Some(error) = peer.stream.socket.take_error()
        {
            let cause = Cause::new(format_args!("{} cannot be reached: {error}", peer.address));
            return self.lose(cause);
        }
        let reading = if is_scarce { Reading::Look } else { Reading::Take };
        let got = peer.stream.read(&mut self.shared.buffers, &mut self.shared.scratch.input, reading);
        self.shared.budget.note_read(got.len);
        let records = peer.stream.take_records();
        let (has_lost_record, is_shaking) = (peer.stream.has_lost_record, peer.stream.is_shaking_hands());
        self.shared.budget.charge_records(records);
        if has_lost_record {
            return self.lose(Cause::new(format_args!("no room to keep its unfinished record of TLS")));
        }
        if is_shaking {
            return self.shake(got.end);
        }
        let has_come = self.contact.client.note_input(self.shared.now, got.len) > 0;
        let input = core::mem::take(&mut self.shared.scratch.input);
        let was_blocked = self.contact.client.is_blocked();
        let mut handled = 0;
        let next = self.handle_input(&input[..got.len], &mut handled);
        if was_blocked && !self.contact.client.is_blocked() {
            self.contact.restart_confirm_timeout(self.shared.now);
        }
        self.shared.scratch.input = input;
        self.contact.client.note_left(got.len - handled);
        let waits = match next {
            Ok(next) => next == Next::Wait,
            Err(cause) => return self.lose(cause),
        };
        let is_over_budget = self.shared.budget.is_over();
        let Some(peer) = self.shared.peers.get_mut(id) else { return };
        let kept = peer.stream.keep(
            &mut self.shared.buffers,
            &mut self.shared.scratch.input,
            got.len,
            handled,
            waits || is_over_budget,
        );
        if !kept {
            let text = "no room to keep its unfinished frame; raise stash_bytes_max";
            return self.lose(Cause::new(format_args!("{text}")));
        }
        if waits {
            // It is we who do not read.
            self.contact.begun = None;
            return;
        }
        if is_over_budget {
            peer.stream.look_again();
            return self.shared.list_to_read(id);
        }
        if got.end {
            let cause = match peer.stream.tls_fault() {
                Some(why) => Cause::new(format_args!("TLS: {why}")),
                None => Cause::new(format_args!("it closed the connection without a word")),
            };
            return self.lose(cause);
        }
        self.contact.note_begun(self.shared.now, has_come, got.len - handled);
        let (is_starved, is_readable) = (peer.stream.is_starved(), peer.stream.readable);
        if is_starved {
            self.shared.lists.for_stash.push(id);
        }
        if is_readable && (handled > 0 || !is_starved) {
            self.shared.list_to_read(id);
        }
    }

    /// Handles input, up to where `at` is then; says how it goes on.
    ///
    /// # Errors
    /// The link is over.
    fn handle_input(&mut self, input: &[u8], at: &mut usize) -> Result<Next, Cause> {
        for rule in 0..self.contact.lanes.len() {
            if self.publish_arrived(rule)? == Next::Wait {
                return Ok(Next::Wait);
            }
        }
        loop {
            let before = *at;
            let event = self.contact.client.next(input, at);
            let header_of = if let Event::Header { rule, .. } = event { Some(rule) } else { None };
            let next = match event {
                Event::NeedMore => break,
                event => self.take_event(event)?,
            };
            if next == Next::Wait {
                if let Some(rule) = header_of.filter(|rule| !self.has_whole(*rule)) {
                    // The header is looked at again when there is room.
                    self.contact.client.take_header_back(rule);
                    *at = before;
                }
                // What is ours already does not wait with the next.
                self.acknowledge();
                return Ok(Next::Wait);
            }
            if self.shared.budget.is_over() {
                break;
            }
        }
        self.acknowledge();
        Ok(Next::GoOn)
    }

    fn take_event(&mut self, event: Event<'_>) -> Result<Next, Cause> {
        match event {
            Event::NeedMore => {}
            Event::Lost(cause) => return Err(cause),
            Event::Open => {
                self.note_up();
                (0..self.contact.lanes.len()).for_each(|rule| self.tend(rule));
            }
            Event::Ready { rule, depth } => {
                let made = self.shared.make_queues_of(self.head, self.direction, rule);
                let begun = made.and_then(|()| match self.direction {
                    Direction::Forward => self.begin_forward(rule),
                    Direction::Fetch => self.begin_fetch(rule),
                });
                match begun {
                    Ok(()) => self.state.courses[rule].note_ready(),
                    Err(cause) => self.give_up(rule, cause),
                }
                self.note_source_depth(rule, depth);
            }
            Event::Confirm { rule, number, multiple, is_taken } => {
                self.take_confirm(rule, (number, multiple, is_taken))?;
            }
            Event::Returned { rule, code, id } => match &mut self.contact.lanes[rule] {
                // Its confirm is still to come.
                Lane::Forward(lane) => lane.flights.note_return(id, code)?,
                _ => return Err(Cause::new(format_args!("a return where it has no place"))),
            },
            Event::Deliver { .. } | Event::Header { .. } | Event::Body(..) => {
                return self.take_arriving(event);
            }
            Event::Cancelled(rule) => {
                if let Some(lane) = self.contact.fetch(rule) {
                    lane.is_over = true;
                }
            }
            Event::Closed { rule, code, over_publish, cause } => match self.direction {
                Direction::Forward => self.take_end_of_forward(rule, code, over_publish, cause),
                Direction::Fetch => {
                    self.give_up(rule, Cause::new(format_args!("it closed the channel: {cause}")));
                }
            },
            Event::Resumed(rule) => {
                if let Lane::Forward(lane) = &mut self.contact.lanes[rule] {
                    lane.progress = self.shared.now;
                    self.contact.progress = self.shared.now;
                }
            }
            Event::QueueGone(rule, cause) => self.give_up(rule, cause),
        }
        Ok(Next::GoOn)
    }

    /// The connection there is open.
    #[cold]
    fn note_up(&mut self) {
        // It is news after the start, and after trouble.
        let had_error = self.state.last_error.take().is_some();
        if self.state.was_ready.is_none() || had_error {
            let way = (self.direction, self.state.upstream);
            self.shared.say_of_link(log::Level::Info, self.head, way, format_args!("up"));
        }
        self.state.ready_since = Some(self.shared.now);
        self.state.counts.connected += 1;
    }

    // ---- TLS

    /// Goes on with the handshake of TLS.
    #[cold]
    fn shake(&mut self, end: bool) {
        let id = self.contact.peer;
        let Some(peer) = self.shared.peers.get_mut(id).filter(|peer| peer.waiting == Waiting::No) else {
            return;
        };
        if let Some(cause) = peer.stream.opening().and_then(not_tls) {
            peer.stream.give_up_tls();
            return self.lose(cause);
        }
        if let Some(handshake) = peer.stream.take_handshake() {
            let ticket = self.shared.worker.ticket();
            peer.waiting = Waiting::Handshake(ticket);
            let since = self.shared.now;
            self.shared.worker.shakes.push_back(Shake { peer: id.into(), ticket, since, handshake });
        } else if end {
            self.lose(Cause::new(format_args!("it closed the connection in the handshake of TLS")));
        } else if peer.stream.readable {
            self.shared.list_to_read(id);
        }
    }

    /// A step of the handshake has been made.
    #[cold]
    pub(super) fn take_shaken(&mut self, shaken: Shaken) {
        let id = self.contact.peer;
        let Some(peer) = self.shared.peers.get_mut(id) else { return };
        peer.waiting = Waiting::No;
        match peer.stream.shaken(&mut self.shared.buffers, shaken) {
            Ok(spoken) => {
                log::debug!("{}: {spoken:?}", peer.address);
                self.shared.list_to_write(id);
                self.shared.list_to_read(id);
            }
            Err(why) => self.lose(Cause::new(format_args!("the handshake of TLS failed: {why}"))),
        }
    }

    // ---- writing

    /// Writes what was kept, the rest of a frame, what the client says, then messages. Returns how many bytes the
    /// socket took.
    pub(super) fn write(&mut self) -> usize {
        self.end_cancelled();
        let id = self.contact.peer;
        if self.shared.peers.get(id).is_some_and(|peer| peer.stream.is_shaking_hands()) {
            self.shake(false);
        }
        let Some(flushed) = self.flush() else { return 0 };
        if self.shared.peers.get(id).is_none_or(|peer| peer.stream.has_unsent() || !peer.stream.writable) {
            return flushed;
        }
        let room = self.shared.buffers.output_bytes(self.shared.scratch.output.len());
        let mut page = self.begin_page(room);
        let is_alive = self.contact.cause.is_none();
        if let Some(rule) = self.contact.cut {
            self.fill_lane(rule, &mut page, 0);
        }
        if self.contact.cut.is_none() {
            let pending = self.contact.client.pending();
            let said = pending.len().min(page.left());
            page.octets[page.len..][..said].copy_from_slice(&pending[..said]);
            let is_all = said == pending.len();
            page.len += said;
            self.contact.client.note_written(self.shared.now, said);
            if is_all && is_alive {
                self.fill_lanes(&mut page);
            }
        }
        let taken = self.write_out(&page.octets[..page.len]);
        self.shared.scratch.output = core::mem::take(&mut page.octets);
        let Some((count, has_unsent)) = taken else { return 0 };
        self.tell_writable(has_unsent);
        self.set_unsendable_aside(&page);
        flushed + count
    }

    /// Writes what was kept. Returns how many bytes the socket took; `None`: the link is over.
    fn flush(&mut self) -> Option<usize> {
        let id = self.contact.peer;
        let peer = self.shared.peers.get_mut(id)?;
        let sent = peer.stream.flush_output(&mut self.shared.buffers, &mut self.shared.scratch.output);
        let (count, _) = self.note_write(sent)?;
        if count > 0 {
            // Confirms are owed from when a message has left.
            self.contact.client.note_sent(self.shared.now);
            self.contact.restart_confirm_timeout(self.shared.now);
        }
        Some(count)
    }

    /// Writes `bytes`. Returns how many the socket took, and whether others are kept; `None`: the link is over.
    fn write_out(&mut self, bytes: &[u8]) -> Option<(usize, bool)> {
        let peer = self.shared.peers.get_mut(self.contact.peer)?;
        let sent = peer.stream.write_all(&mut self.shared.buffers, bytes);
        let (count, has_unsent) = self.note_write(sent)?;
        if count > 0 {
            self.contact.client.note_sent(self.shared.now);
        }
        Some((count, has_unsent))
    }

    fn note_write(&mut self, sent: io::Result<usize>) -> Option<(usize, bool)> {
        let peer = self.shared.peers.get_mut(self.contact.peer)?;
        match sent {
            Ok(count) => Some((count, peer.stream.has_unsent())),
            Err(_) if self.contact.client.is_unheard() => {
                // It may have said why it hung up.
                (peer.stream.writable, peer.stream.read_closed) = (false, true);
                peer.stream.look_again();
                self.shared.list_to_read(self.contact.peer);
                None
            }
            Err(error) => {
                self.lose(Cause::of_writing(&error));
                None
            }
        }
    }
}
