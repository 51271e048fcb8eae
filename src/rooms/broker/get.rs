//! basic.get: one message for who asks, or that there is none.
//!
//! Why it exists: a get is answered at once, but what is first may be on its way into memory, or back; then
//! the connection waits for its answer, and every turn looks whether there is one.
//!
//! Always true: a connection asks for one thing at a time; what has expired is given to nobody.

use crate::command::{ChannelId, ConnectionId, Outcome, QueueId, ReplyOrder};
use crate::error::Fault;

use super::consumers::ConsumerState;
use super::faults::out_of;
use super::letters::Cleared;
use super::queues::Carrier;
use super::queues::Getting;
use super::queues::Patience;
use super::{Broker, Context};

impl Broker {
    /// basic.get.
    pub(super) fn get(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        queue: QueueId,
        no_ack: bool,
    ) -> Result<Outcome, Fault> {
        match self.get_now(cx, channel, queue, no_ack)? {
            Some(true) => Ok(Outcome::GetQueued),
            Some(false) => Ok(Outcome::GetEmpty),
            None => {
                let connection = self.consumers.connection_of(channel);
                self.consumers.connection_mut(connection).jobs += 1;
                let serial = self.queues.at(queue).serial;
                let outcome = None;
                self.queues.gets.push(Getting { connection, channel, queue, serial, no_ack, outcome });
                Ok(Outcome::Later)
            }
        }
    }

    /// Gets the first message if there is one; `None` while it is on its way into memory or back.
    fn get_now(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        queue: QueueId,
        no_ack: bool,
    ) -> Result<Option<bool>, Fault> {
        let connection = self.consumers.connection_of(channel);
        let level = match self.expire_before_get(cx, queue) {
            (Cleared::Yes, level) => level,
            (Cleared::NotYet, _) => return Ok(None),
            // It is given to nobody, and who asks must not wait for room that may be its own to make.
            (Cleared::No, _) => return Ok(Some(false)),
        };
        let (whole, record) = (self.queues.at(queue), self.queues.at(level));
        if (whole.returning > 0 || record.returning > 0) && !whole.dying {
            return Ok(None);
        }
        if record.backlog.ready() == 0 || whole.dying {
            self.counters.get_empty += 1;
            return Ok(Some(false));
        }
        let owner = self.consumers.connection(connection);
        let is_crowded = owner.outbox_bytes >= self.queues.settings.output_budget_bytes;
        if is_crowded || !self.may_take_delivery(connection) {
            // What is on its way out may be settled by that; for its own acknowledgements nobody waits.
            return if owner.outbox.is_empty() {
                Err(out_of(self.quota.key_of_deliveries(connection)))
            } else {
                Ok(None)
            };
        }
        let Some(first) = self.queues.first_to_go(cx, level) else { return Ok(None) };
        let stand_in = self.get_stand_in(channel, queue, no_ack)?;
        let taken = self.queues.take_first(cx, level, first);
        self.queues.note_delivery(cx, level, &taken);
        let behind = self.queues.first_level(queue);
        if self.queues.at(behind).settings.may_expire {
            self.post().expire_behind(cx, behind);
        }
        if behind != level {
            self.queues.wake(queue);
        }
        let left = self.queues.ready_in(queue);
        let channel = self.send(cx, stand_in, level, &taken, Carrier::Get(left));
        if self.firehose.is_on {
            self.post().trace_delivered(cx, channel, taken.message, (level, taken.redelivered));
        }
        Ok(Some(true))
    }

    /// What has expired is given to nobody; then the level whose first message is the queue's.
    fn expire_before_get(&mut self, cx: &mut Context<'_>, queue: QueueId) -> (Cleared, QueueId) {
        if self.queues.at(queue).is_picky_by_time() {
            self.queues.touch_queue(cx.journal, queue);
        }
        loop {
            let level = self.queues.first_level(queue);
            if !self.queues.at(level).settings.may_expire {
                return (Cleared::Yes, level);
            }
            let cleared = self.post().expire_before_delivery(cx, level, Patience::No);
            if cleared != Cleared::Yes || self.queues.first_level(queue) == level {
                return (cleared, level);
            }
            self.queues.wake(queue);
        }
    }

    /// Lets the gets try again whose queue has something for them now.
    pub(super) fn serve_gets(&mut self, cx: &mut Context<'_>) {
        self.queues.gets.take_due();
        for at in 0..self.queues.gets.len() {
            let Getting { connection, channel, queue, serial, no_ack, ref outcome } =
                *self.queues.gets.at(at);
            if outcome.is_some() {
                continue;
            }
            let is_over = self.consumers.find_channel(channel).is_none_or(|record| record.closing);
            let is_gone = self.queues.get(queue.index()).is_none_or(|record| record.serial != serial);
            let result = match () {
                () if is_over || is_gone => Ok(Some(false)),
                () if self.queues.is_kept_from_get(queue) => Ok(None),
                () => self.get_now(cx, channel, queue, no_ack),
            };
            if let Some(outcome) = result.transpose() {
                self.queues.gets.at(at).outcome = Some(outcome);
                self.consumers.connection_mut(connection).jobs -= 1;
            }
        }
    }

    /// What became of the connection's [`Outcome::Later`], once it is not busy any more.
    pub fn take_later(&mut self, connection: ConnectionId) -> Option<(Outcome, ReplyOrder)> {
        let getting = self.queues.gets.remove(|get| get.connection == connection && get.outcome.is_some())?;
        let outcome = match getting.outcome? {
            Ok(true) => Outcome::GetQueued,
            Ok(false) => Outcome::GetEmpty,
            Err(fault) => Outcome::Fault(fault),
        };
        Some((outcome, self.consumers.reply_order(connection, Some(getting.channel))))
    }

    /// Nobody waits for this connection's gets any more.
    pub(super) fn forget_gets(&mut self, connection: ConnectionId) {
        let before = self.queues.gets.len();
        let open =
            self.queues.gets.iter().filter(|get| get.connection == connection && get.outcome.is_none());
        let open = open.count() as u32;
        self.queues.gets.retain(|get| get.connection != connection);
        assert!(self.queues.gets.len() + 1 >= before, "a connection asks for one thing at a time");
        self.consumers.connection_mut(connection).jobs -= open;
    }

    /// The record that stands for this channel's gets from this queue, acknowledged or not.
    fn get_stand_in(&mut self, channel: ChannelId, queue: QueueId, no_ack: bool) -> Result<usize, Fault> {
        let mut at = self.consumers.next_of_channel(channel, None);
        while let Some(index) = at {
            let consumer = self.consumers.at(index);
            if consumer.state == ConsumerState::Get && consumer.queue == queue {
                break;
            }
            at = self.consumers.next_of_channel(channel, Some(index));
        }
        let index = match at {
            Some(index) => index,
            None => self.consumers.add(&mut self.quota, channel, queue, ConsumerState::Get)?,
        };
        self.consumers.at_mut(index).no_ack = no_ack;
        Ok(index)
    }
}
