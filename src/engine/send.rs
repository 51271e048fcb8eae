//! The way out of a connection that speaks AMQP: writing, and who does not read what it is sent.
//!
//! Always true: a turn writes to a socket once; what the socket did not take is not kept here.

use crate::command::ConnectionId;
use crate::error::{Fault, ReplyCode};
use crate::time::Deadline;

use super::peer::Ending;
use super::platform::Platform;
use super::shared::Shared;

impl<P: Platform> Shared<P> {
    /// Writes once: what the session says, then deliveries.
    pub(super) fn write_amqp(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let session = peer.session.amqp();
        let mut context = self.supplies.context(self.now, &self.broker, &self.journal, id);
        while let Some((channel, tag, order)) = self.broker.next_cancelled(id) {
            if !session.server_cancel(&mut context, channel, tag, order) {
                break;
            }
            self.broker.told_cancelled(id);
        }
        let mut outbox = self.broker.outbox(id);
        let filled =
            session.fill(&mut context, &mut self.scratch.output, &mut self.scratch.write_plan, &mut outbox);
        let taken = peer.stream.write(&mut self.buffers, &self.scratch.output[..filled]);
        let count = *taken.as_ref().unwrap_or(&0);
        peer.traffic.sent(count);
        let sent = session.written(&mut context, count, &self.scratch.write_plan);
        let takes_more = !session.has_remainder() && !peer.stream.has_unsent();
        let (broker, mut context) = self.broker_mut();
        broker.written(&mut context, id, (sent.deliveries, sent.is_first_unseen), takes_more);
        self.note_stall(id, count);
        match taken {
            Ok(_) => self.after_write(id.into(), count),
            Err(error) => self.lose_writing(id.into(), &error),
        }
    }

    /// A consumer whose socket takes nothing while deliveries wait has so much time and no more: what waits
    /// for it waits in memory.
    pub(super) fn note_stall(&mut self, id: ConnectionId, count: usize) {
        let patience = self.limits.consumer_stall_timeout_ms;
        let Some(peer) = self.peers.get_mut(id) else { return };
        let is_cut = peer.session.amqp().has_begun_delivery() || peer.stream.has_unsent();
        let waits = is_cut || self.broker.has_output(id);
        if peer.stream.writable || !waits || patience == 0 {
            peer.write_stall = Deadline::NEVER;
        } else if count > 0 || peer.write_stall == Deadline::NEVER {
            peer.write_stall = self.now.after_ms(patience.into());
            self.lists.deadlines.lower(id.into(), peer.write_stall);
        }
    }

    /// Closes a connection whose socket has taken nothing for as long as it may. The kernel reports room only when a
    /// third of its buffer is free, so the socket of one that reads slowly is tried once more.
    pub(super) fn end_if_stalled(&mut self, id: ConnectionId) {
        let patience = self.limits.consumer_stall_timeout_ms;
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.stream.writable = true;
        if !matches!(peer.ending, Ending::Draining(_) | Ending::Now) {
            self.write_amqp(id);
        }
        let Some(peer) = self.peers.get_mut(id) else { return };
        if !peer.write_stall.is_due(self.now) {
            return;
        }
        peer.write_stall = Deadline::NEVER;
        let fault = Fault::connection(
            ReplyCode::ConnectionForced,
            format_args!(
                "nothing was read from this connection for {patience} ms while deliveries waited: read \
                 faster, or raise consumer_stall_timeout"
            ),
        );
        let mut context = self.supplies.context(self.now, &self.broker, &self.journal, id);
        let session = peer.session.amqp();
        session.close(&mut context, &fault);
        if session.has_begun_delivery() {
            // Behind half a frame the peer can be told nothing; the log has the sentence.
            self.end_now(id);
        }
    }
}
