//! Writing to connections that speak AMQP, and ending those that read nothing.

use std::io;

use leveret_core::command::ConnectionId;
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::time::Deadline;

use super::peer::Ending;
use super::platform::Platform;
use super::state::Shared;

impl<P: Platform> Shared<P> {
    /// Writes what was kept, then replies, confirms and deliveries.
    ///
    /// While a whole output buffer can be kept, that is one write. With less capacity it is several writes, until the
    /// socket takes no more or one output buffer was written.
    pub(super) fn write_amqp(&mut self, id: ConnectionId) {
        let mut written = 0;
        let result = self.flush_and_fill(id, &mut written);
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.traffic.sent(written);
        self.note_stall(id, written);
        match result {
            Ok(filled) => self.after_write(id.into(), filled > 0 || written > 0),
            Err(error) => self.note_write_failed(id.into(), &error),
        }
    }

    /// Returns how many bytes the session filled, and adds to `written` how many bytes the socket took.
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

    /// Returns whether everything that was written has been sent.
    fn may_fill(&self, id: ConnectionId) -> bool {
        self.peers.get(id).is_some_and(|peer| peer.stream.writable && !peer.stream.has_unsent())
    }

    /// Has the session fill at most `fill_bytes` bytes and writes them. Returns how many were filled, and how many of
    /// them the socket took.
    fn write_one_fill(&mut self, id: ConnectionId, fill_bytes: usize) -> (usize, io::Result<usize>) {
        let Some(peer) = self.peers.get_mut(id) else { return (0, Ok(0)) };
        let session = peer.session.amqp();
        let mut context = self.resources.context(self.now, &self.broker, &self.pending_writes, id);
        while let Some((channel, tag, order)) = self.broker.next_cancelled(id) {
            if !session.server_cancel(&mut context, channel, tag, order) {
                break;
            }
            self.broker.note_cancel_sent(id);
        }
        let mut outbox = self.broker.outbox(id);
        let filled = session.fill(&mut context, &mut self.scratch.output[..fill_bytes], &mut outbox);
        let sent = peer.stream.write_all(&mut self.buffers, &self.scratch.output[..filled.bytes]);
        let takes_more = !session.has_remainder() && !peer.stream.has_unsent();
        let (broker, mut context) = self.broker_mut();
        broker.written(&mut context, id, (filled.deliveries, filled.is_first_dropped), takes_more);
        (filled.bytes, sent)
    }

    /// Starts the timeout of a connection whose socket takes nothing while output waits, or restarts it if the socket
    /// took `count` bytes: output that waits takes memory.
    pub(super) fn note_stall(&mut self, id: ConnectionId, count: usize) {
        let timeout_ms = self.limits.consumer_stall_timeout_ms;
        let Some(peer) = self.peers.get_mut(id) else { return };
        let waits = peer.stream.has_unsent() || self.broker.has_output(id);
        if peer.stream.writable || !waits || timeout_ms == 0 {
            peer.write_stall = Deadline::NEVER;
        } else if count > 0 || peer.write_stall == Deadline::NEVER {
            peer.write_stall = self.now.after_ms(timeout_ms.into());
            self.lists.deadlines.lower(id.into(), peer.write_stall);
        }
    }

    /// Closes a connection whose socket has taken nothing for the permitted time. The kernel reports a socket as
    /// writable only when a third of its buffer is free. The socket of a slow reader is therefore tried once more.
    pub(super) fn end_if_stalled(&mut self, id: ConnectionId) {
        let timeout_ms = self.limits.consumer_stall_timeout_ms;
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.stream.writable = !peer.stream.write_closed;
        if peer.stream.writable && !matches!(peer.ending, Ending::Draining(_) | Ending::Now) {
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
                "nothing was read from this connection for {timeout_ms} ms while output waited: read \
                 faster, or raise consumer_stall_timeout"
            ),
        );
        let mut context = self.resources.context(self.now, &self.broker, &self.pending_writes, id);
        let session = peer.session.amqp();
        session.close(&mut context, &fault);
        if session.has_begun_delivery() {
            // The peer cannot be told the reason after a partial frame. The log has it.
            self.end_now(id);
        }
    }
}
