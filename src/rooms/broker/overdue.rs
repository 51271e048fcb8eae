//! Who keeps others waiting for too long: deliveries that nobody settles, transactions that nobody ends.
//!
//! Why it exists: what a stuck program holds nobody else gets, for as long as its connection lives. After
//! `consumer_timeout` its channel is closed, in RabbitMQ's words, and what it held goes to others. A queue
//! may have a timeout of its own, as in RabbitMQ from 3.12 on: its argument `x-consumer-timeout` or
//! `consumer-timeout` of its policy, the shorter of both if both are there, even if it is longer than
//! `consumer_timeout`.
//!
//! Always true: a channel is looked at by its oldest delivery alone, as in RabbitMQ, in steps; nobody is
//! closed early, and late by a minute at most; the next look is when the oldest of all may be overdue, and
//! there is none while nobody holds anything, so whoever settles in time causes hardly a wake-up.

use crate::command::{ChannelId, ConnectionId};
use crate::error::{Fault, ReplyCode};
use crate::time::{Deadline, Now};

use super::Broker;
use super::consumers::{Channel, Mode};
use super::job::spend;

/// Channels looked at in one turn.
const LOOK_STEP: u32 = 512;

/// A channel to be closed, and why.
#[derive(Debug)]
pub struct Overdue {
    /// Its connection.
    pub connection: ConnectionId,
    /// Its number there.
    pub channel: u16,
    /// What its client is told.
    pub fault: Fault,
}

impl Broker {
    /// The time of this turn. Says whether a new second began, so that [`Self::set_unix_time`] is due.
    pub const fn set_time(&mut self, now: Now) -> bool {
        let before = core::mem::replace(&mut self.watch.now_s, (now.as_ms() / 1000) as u32);
        self.watch.left = LOOK_STEP;
        self.queues.minute = self.watch.now_s / 60;
        before != self.watch.now_s || self.letters.unix_s() == 0
    }

    /// The date, in seconds since 1970: what is written into headers, and nothing follows from it.
    pub const fn set_unix_time(&mut self, unix_s: u64) {
        self.letters.set_unix_s(unix_s);
    }

    /// When somebody may be overdue.
    pub fn overdue_deadline(&self) -> Deadline {
        let holds_nothing = self.queues.deliveries().is_empty() && self.quota.pinned().open_messages == 0;
        match self.watch.look_s {
            Some(look_s) if !holds_nothing => Now::from_ms(u64::from(look_s) * 1000).after_ms(0),
            _ => Deadline::NEVER,
        }
    }

    /// The next channel of which something is overdue; a bounded number of them are looked at in a turn. One
    /// that is not closed is named again with the next look.
    pub fn next_overdue(&mut self) -> Option<Overdue> {
        if self.watch.look_s.is_none_or(|look_s| self.watch.now_s < look_s) {
            return None;
        }
        while self.watch.hand < self.consumers.channel_places() {
            if !spend(&mut self.watch.left) {
                return None;
            }
            let index = self.watch.hand;
            self.watch.hand += 1;
            let overdue = self.look_at(ChannelId::from_index(index));
            if overdue.is_some() {
                return overdue;
            }
        }
        self.watch.end();
        None
    }

    fn look_at(&mut self, id: ChannelId) -> Option<Overdue> {
        let channel = self.consumers.find_channel(id)?;
        if channel.closing || self.consumers.connection(channel.connection).dying {
            return None;
        }
        let (delivered, touched) = (self.oldest_delivery(channel), open_since_s(channel));
        let (connection, number, code) = (channel.connection, channel.number, ReplyCode::PreconditionFailed);
        let own_ms = self.watch.timeout_ms;
        // Both are looked at, for the next look goes by both.
        let is_left_open = touched.is_some_and(|since_s| self.watch.is_overdue(since_s, own_ms));
        let unsettled = delivered.filter(|(since_s, ms)| self.watch.is_overdue(*since_s, *ms));
        let fault = if let Some((_, ms)) = unsettled {
            // RabbitMQ's words.
            Fault::new(
                code,
                format_args!(
                    "delivery acknowledgement on channel {number} timed out. Timeout value used: {ms} ms. \
                     This timeout value can be configured, see consumers doc guide to learn more"
                ),
            )
        } else if is_left_open {
            Fault::new(
                code,
                format_args!(
                    "the transaction on channel {number} was left open for {own_ms} ms: commit it in time, \
                     or raise consumer_timeout in the configuration"
                ),
            )
        } else {
            return None;
        };
        Some(Overdue { connection, channel: number, fault })
    }

    /// Since when the oldest delivery of a channel is not settled, in seconds, and for how many milliseconds
    /// it may be.
    fn oldest_delivery(&self, channel: &Channel) -> Option<(u32, u32)> {
        let delivery = &self.queues.deliveries()[channel.unacknowledged.front()?];
        let queue = delivery.queue.and_then(|queue| self.queues.get(queue.index()));
        let own_ms = queue.map_or(u32::MAX, |queue| queue.settings.consumer_timeout_ms);
        let timeout_ms = if own_ms == u32::MAX { self.watch.timeout_ms } else { own_ms };
        Some((delivery.delivered_s, timeout_ms))
    }
}

/// Since when nothing was added to the channel's open transaction.
const fn open_since_s(channel: &Channel) -> Option<u32> {
    match &channel.mode {
        Mode::Transaction(transaction) if !transaction.is_empty() => Some(transaction.touched_s),
        _ => None,
    }
}
