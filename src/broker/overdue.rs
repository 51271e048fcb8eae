//! Who keeps others waiting for too long: deliveries that nobody settles, transactions that nobody ends.
//!
//! Why it exists: what a stuck program holds nobody else gets, for as long as its connection lives. After
//! `consumer_timeout` its channel is closed, in RabbitMQ's words, and what it held goes to others.
//!
//! Always true: a channel is looked at by its oldest delivery alone, in steps; nobody is closed early, and
//! late by a minute at most; the next look is when the oldest of all may be overdue, and there is none while
//! nobody holds anything, so whoever settles in time causes hardly a wake-up.

use crate::command::{ChannelId, ConnectionId};
use crate::error::{Fault, ReplyCode};
use crate::time::{Deadline, Now};

use super::Broker;
use super::job::spend;
use super::records::{Channel, Mode};

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
        before != self.watch.now_s || self.unix_s == 0
    }

    /// The date, in seconds since 1970: what is written into headers, and nothing follows from it.
    pub const fn set_unix_time(&mut self, unix_s: u64) {
        self.unix_s = unix_s;
    }

    /// When somebody may be overdue.
    pub fn overdue_deadline(&self) -> Deadline {
        let holds_nothing = self.deliveries.is_empty() && self.pinned.open_messages == 0;
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
        while self.watch.hand < self.channels.places() {
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
        let channel = self.channels.get(id.index())?;
        if channel.closing || self.connection(channel.connection).dying {
            return None;
        }
        let (delivered, touched) = (self.oldest_delivery_s(channel), open_since_s(channel));
        let oldest = [delivered, touched, self.watch.oldest_s].into_iter().flatten().min();
        self.watch.oldest_s = oldest;
        let channel = &self.channels[id.index()];
        let (number, ms) = (channel.number, self.watch.timeout_ms);
        let code = ReplyCode::PreconditionFailed;
        let fault = if delivered.is_some_and(|since| self.watch.is_overdue(since)) {
            // RabbitMQ's words.
            Fault::new(
                code,
                format_args!(
                    "delivery acknowledgement on channel {number} timed out. Timeout value used: {ms} ms. \
                     This timeout value can be configured, see consumers doc guide to learn more"
                ),
            )
        } else if touched.is_some_and(|since| self.watch.is_overdue(since)) {
            Fault::new(
                code,
                format_args!(
                    "the transaction on channel {number} was left open for {ms} ms: commit it in time, or \
                     raise consumer_timeout in the configuration"
                ),
            )
        } else {
            return None;
        };
        Some(Overdue { connection: channel.connection, channel: number, fault })
    }

    /// Since when the oldest delivery of a channel is not settled.
    fn oldest_delivery_s(&self, channel: &Channel) -> Option<u32> {
        channel.unacknowledged.front().map(|index| self.deliveries[index].delivered_s)
    }
}

/// Since when nothing was added to the channel's open transaction.
const fn open_since_s(channel: &Channel) -> Option<u32> {
    match &channel.mode {
        Mode::Transaction(transaction) if !transaction.is_empty() => Some(transaction.touched_s),
        _ => None,
    }
}
