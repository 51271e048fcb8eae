//! tx.select, tx.commit, tx.rollback: publishes and settlements that happen together or not at all.
//!
//! Always true: an open transaction holds its messages, the routes of those that went through a named exchange,
//! and its decided settlements on lists through their own records, so it needs no memory but theirs and has no
//! length of its own: what bounds it is its share of the memory for messages (`quota`), and for persistent
//! messages the journal's room; commit first makes sure that everything fits and only then changes anything.

use crate::command::{ChannelId, Outcome, QueueId, Settlement, VhostId};
use crate::error::{Fault, ReplyCode};
use crate::journal::{Journal, Mode as JournalMode, NoRoom, Urgency};
use crate::mem::{MessageFlags, MessageId, Messages, Share};
use crate::wire::field::Table;

use super::consumers::{Mode, Transaction};
use super::faults::{out_of, out_of_disk};
use super::promised::Promised;
use super::publish::Publish;
use super::queues::SLOT_BYTES;
use super::quota::{LogShares, owner_of};
use super::{Broker, Context};

/// Routing all of its messages may take as long as routing so many of the worst.
const COMMIT_TIMES: u32 = 8;

impl Broker {
    pub(super) fn select_confirms(&mut self, channel: ChannelId) -> Result<Outcome, Fault> {
        let mode = &mut self.consumers.channel_mut(channel).mode;
        match mode {
            Mode::Plain | Mode::Confirm => *mode = Mode::Confirm,
            Mode::Transaction(_) => return Err(cannot_switch("tx", "confirm")),
        }
        Ok(Outcome::Done)
    }

    pub(super) fn select_transactions(&mut self, channel: ChannelId) -> Result<Outcome, Fault> {
        let mode = &mut self.consumers.channel_mut(channel).mode;
        match mode {
            Mode::Plain => *mode = Mode::Transaction(Transaction::default()),
            Mode::Transaction(_) => {}
            Mode::Confirm => return Err(cannot_switch("confirm", "tx")),
        }
        Ok(Outcome::Done)
    }

    /// Keeps a message until commit, and with it where it goes: whatever is bound or unbound until then, it was
    /// routed when it was published, as in RabbitMQ. `route`: its queues; `None`: its keys are their names.
    pub(super) fn publish_in_transaction(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        (message, mandatory): (MessageId, bool),
        route: Option<&[QueueId]>,
    ) -> Result<Outcome, Fault> {
        let result = self.hold_published(cx.messages, channel, message, route);
        match result {
            Ok(()) => cx.messages.set_mandatory(message, mandatory),
            Err(_) => cx.messages.release(message),
        }
        result.map(|()| Outcome::Published)
    }

    fn hold_published(
        &mut self,
        messages: &mut Messages,
        channel: ChannelId,
        message: MessageId,
        route: Option<&[QueueId]>,
    ) -> Result<(), Fault> {
        let route = route.map(|targets| self.queues.write_route(messages, message, targets)).transpose()?;
        let held = || core::iter::once(message).chain(route);
        let bytes = held().map(|id| u64::from(messages.footprint_bytes(id)) - SLOT_BYTES).sum();
        let connection = self.consumers.connection_of(channel);
        if let Err(fault) = self.quota.take_open(connection, held().count() as u32, bytes) {
            route.into_iter().for_each(|route| messages.release(route));
            return Err(fault);
        }
        self.touch(channel);
        let Mode::Transaction(transaction) = &mut self.consumers.channel_mut(channel).mode else {
            panic!("the channel is in a transaction");
        };
        for id in held() {
            messages.set_link(id, None);
            match transaction.last {
                Some(last) => messages.set_link(last, Some(id)),
                None => transaction.first = Some(id),
            }
            transaction.last = Some(id);
            transaction.held += 1;
        }
        transaction.messages += 1;
        transaction.bytes += bytes;
        Ok(())
    }

    /// Remembers what commit will do with a delivery.
    pub(super) fn decide(&mut self, channel: ChannelId, index: usize, settlement: Settlement) {
        self.touch(channel);
        self.consumers.leave_unacknowledged(&mut self.queues, channel, index);
        let Mode::Transaction(transaction) = &mut self.consumers.channel_mut(channel).mode else {
            panic!("the channel is in a transaction");
        };
        self.queues.deliveries_mut().decide(&mut transaction.settlements, index, settlement);
    }

    pub(super) fn commit(&mut self, cx: &mut Context<'_>, channel: ChannelId) -> Result<Outcome, Fault> {
        if !matches!(self.consumers.channel(channel).mode, Mode::Transaction(_)) {
            return Err(not_transactional());
        }
        let mut targets = core::mem::take(&mut self.publishing.targets);
        let result = self.commit_by(cx, channel, &mut targets);
        self.publishing.targets = targets;
        result
    }

    fn commit_by(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        targets: &mut Vec<QueueId>,
    ) -> Result<Outcome, Fault> {
        let promised = self.check_commit_fits(cx, channel, targets)?;
        self.letters.promise(promised);
        // It took no longer than it may when it was checked, and must not end half-way.
        cx.work.lift_limit();
        let said = cx.journal.said();
        cx.journal.begin_group();
        let outcome = self.carry_out(cx, channel, targets);
        self.letters.promise(Promised::default());
        let batch = cx.journal.end_group(cx.messages, Urgency::Awaited);
        if cx.journal.said() != said {
            cx.await_batch(batch);
        }
        outcome
    }

    /// Does what the transaction holds.
    fn carry_out(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        targets: &mut Vec<QueueId>,
    ) -> Result<Outcome, Fault> {
        let transaction = self.take_transaction(channel);
        let (mut next, mut is_refused) = (transaction.first, false);
        while let Some((message, route)) = take_published(cx.messages, &mut next) {
            let mandatory = cx.messages.is_mandatory(message);
            self.find_route(cx, channel, (message, route), targets)?;
            if let Some(route) = route {
                cx.messages.release(route);
            }
            // That everything fits was made sure of, but for what a queue's own policy refuses.
            let publish = Publish {
                channel,
                mandatory,
                share: Share::Reserve,
                may_wait: false,
                urgency: Urgency::Awaited,
            };
            let outcome = self.deliver_to_targets(cx, message, targets, &publish)?;
            assert!(outcome != Outcome::Wait, "a commit never waits");
            is_refused |= outcome == Outcome::PublishRefused;
        }
        self.letters.promise(Promised::default());
        let mut settlements = transaction.settlements;
        if !settlements.is_empty() {
            // For a queue that is being deleted the deletion is what settles.
            cx.await_others();
        }
        while let Some((index, settlement)) = self.queues.deliveries_mut().next_decided(&mut settlements) {
            self.settle_one(cx, index, settlement);
        }
        if is_refused { Err(partly_completed()) } else { Ok(Outcome::Done) }
    }

    pub(super) fn rollback(&mut self, messages: &mut Messages, channel: ChannelId) -> Result<Outcome, Fault> {
        if !matches!(self.consumers.channel(channel).mode, Mode::Transaction(_)) {
            return Err(not_transactional());
        }
        self.abandon_transaction(messages, channel);
        Ok(Outcome::Done)
    }

    /// Drops the messages; decided deliveries are unacknowledged again, in the order of their tags.
    pub(super) fn abandon_transaction(&mut self, messages: &mut Messages, channel: ChannelId) {
        let transaction = self.take_transaction(channel);
        let mut next = transaction.first;
        while let Some(message) = next {
            next = messages.link(message);
            messages.release(message);
            self.queues.note_release();
        }
        let list = &mut self.consumers.channel_mut(channel).unacknowledged;
        self.queues.deliveries_mut().undecide(list, transaction.settlements);
    }

    /// The queues that a message of the transaction goes to, as far as they are still there.
    fn find_route(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        (message, route): (MessageId, Option<MessageId>),
        targets: &mut Vec<QueueId>,
    ) -> Result<(), Fault> {
        targets.clear();
        let vhost = self.consumers.channel(channel).vhost;
        if let Some(route) = route {
            self.queues.read_route((cx.messages, cx.work), vhost, route, targets);
            return Ok(());
        }
        let Some(exchange) = self.topology.find_exchange(vhost, "") else { return Ok(()) };
        let mut scratch = core::mem::take(&mut self.queues.scratch);
        let bytes = cx.messages.properties(message, &mut scratch.properties);
        let headers = crate::wire::props::Properties::trusted(bytes).headers().unwrap_or(Table::EMPTY);
        let routed = self.route((cx.messages, cx.work), channel, exchange, (message, headers), targets);
        self.queues.scratch = scratch;
        routed
    }

    fn check_commit_fits(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        targets: &mut Vec<QueueId>,
    ) -> Result<Promised, Fault> {
        let Mode::Transaction(transaction) = &self.consumers.channel(channel).mode else {
            panic!("only a transaction is committed");
        };
        let mut next = transaction.first;
        let owner = owner_of(self.consumers.channel(channel).vhost);
        self.topology.limit_routing(cx.work, COMMIT_TIMES);
        self.weigh_log(cx.journal);
        let (mut entries, mut returns, mut logged, mut log_bytes) = (0, 0, 0, 0);
        let mut chunks = 0;
        while let Some((message, route)) = take_published(cx.messages, &mut next) {
            self.find_route(cx, channel, (message, route), targets)?;
            cx.work.check()?;
            self.queues.choose_levels(cx, &mut self.quota, message, targets);
            if self.queues.lacks_slot() {
                return Err(out_of("queues_max"));
            }
            entries += targets.len();
            returns += usize::from(targets.is_empty() && cx.messages.is_mandatory(message));
            if self.queues.logged_targets(cx, message, targets) > 0 {
                log_bytes += cx.messages.stream_len(message) as u64;
                let (bytes, body_bytes) = (cx.messages.stream_len(message), cx.messages.body_len(message));
                if !cx.journal.fits_commit(bytes as u64, body_bytes.into(), targets.len()) {
                    return Err(out_of("commit_bytes_max"));
                }
                logged += 1;
                if !cx.journal.fits_transaction(logged) {
                    return Err(too_much_to_write());
                }
                self.check_log(cx.journal, self.consumers.channel(channel).vhost, log_bytes)?;
            }
            // Asked each time, so that what is far too much is not routed to its end first.
            chunks = entries.min(self.queues.len() + entries / crate::mem::ENTRIES_PER_CHUNK + 1);
            if !self.queues.pool.may_take(|| owner, chunks, 0) || targets.len() > self.queues.fan_out_max() {
                return Err(out_of("queue_entries_max"));
            }
        }
        if returns > self.queues.deliveries().room() {
            return Err(out_of("unacknowledged_max"));
        }
        Ok(Promised { chunks, logged })
    }

    /// Whether the log takes so many bytes together; what is more than one commit holds is written twice.
    fn check_log(&self, journal: &Journal, vhost: VhostId, bytes: u64) -> Result<(), Fault> {
        let times = if journal.fits_commit(bytes, 0, 0) { 1 } else { 2 };
        match journal.admit(times * bytes + self.queues.kept_for_letters(journal), 1) {
            Err(NoRoom::Disk) => Err(out_of_disk(journal)),
            Err(NoRoom::Commit) if journal.mode() == JournalMode::Unwritable => Err(Fault::new(
                ReplyCode::ResourceError,
                format_args!("the store cannot be written, so nothing persistent is taken now"),
            )),
            Ok(()) if !self.quota.disk().leaves_room(journal, vhost, times * bytes) => {
                Err(LogShares::is_used_up())
            }
            Ok(()) | Err(NoRoom::Commit) => Ok(()),
        }
    }

    /// The transaction is about to hold something: its connection must not wait for itself.
    fn touch(&mut self, channel: ChannelId) {
        let record = self.consumers.channel_mut(channel);
        let Mode::Transaction(transaction) = &mut record.mode else { return };
        transaction.touched_s = self.watch.begin();
        let (was_empty, connection) = (transaction.is_empty(), record.connection);
        if was_empty {
            self.consumers.connection_mut(connection).open_transactions += 1;
        }
    }

    fn take_transaction(&mut self, channel: ChannelId) -> Transaction {
        let record = self.consumers.channel_mut(channel);
        let Mode::Transaction(transaction) = &mut record.mode else {
            panic!("only a transaction is ended");
        };
        let taken = core::mem::take(transaction);
        let connection = record.connection;
        if !taken.is_empty() {
            self.consumers.connection_mut(connection).open_transactions -= 1;
        }
        self.quota.give_open_back(connection, taken.held, taken.bytes);
        taken
    }
}

/// The next message of a transaction, and the route that stands behind it if it has one.
fn take_published(
    messages: &Messages,
    next: &mut Option<MessageId>,
) -> Option<(MessageId, Option<MessageId>)> {
    let message = next.take()?;
    let behind = messages.link(message);
    let route = behind.filter(|id| messages.flags(*id).has(MessageFlags::ROUTE));
    *next = route.map_or(behind, |route| messages.link(route));
    Some((message, route))
}

/// 506: what waits to be written has places of its own.
fn too_much_to_write() -> Fault {
    Fault::new(
        ReplyCode::ResourceError,
        format_args!(
            "a transaction of more persistent messages than can wait to be written: commit more often, or \
             raise messages_max in this broker's configuration"
        ),
    )
}

/// 406, in RabbitMQ's words: a full queue refused a message, and all else has happened.
fn partly_completed() -> Fault {
    Fault::new(ReplyCode::PreconditionFailed, format_args!("partial tx completion"))
}

fn cannot_switch(from: &str, to: &str) -> Fault {
    Fault::new(ReplyCode::PreconditionFailed, format_args!("cannot switch from {from} to {to} mode"))
}

fn not_transactional() -> Fault {
    Fault::new(ReplyCode::PreconditionFailed, format_args!("channel is not transactional"))
}
