//! The broker's answers become methods, and wait until they may be written.
//!
//! ```text
//!   a connection's replies: | order (8) | length (2) | frame | order | length | frame | ...
//! ```
//!
//! A reply may have to wait for the deliveries before it, or for the client to read. Replies keep the order of
//! the requests.
//!
//! # Invariants
//! - There is capacity for the reply when a command is given to the broker.
//! - The replies of a connection never exceed its part of the pool, so no connection can keep another one from
//!   being answered.

use super::channel::{ChannelState, ConfirmList, Listed, NONE, Slot};
use super::connection::Context;
use super::connection::{Connection, Phase};
use super::methods::{CommandKind, Pending};
use super::timers;
use leveret_amqp::{Method, Writer};
use leveret_core::command::{Name, Outcome, ReplyOrder};
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::log_limiter::LogKind;
use leveret_core::mem::BLOCK_UNIT_BYTES;
use leveret_core::pending_writes::Batch;
use leveret_core::time::Now;

/// Number of bytes before each frame.
pub(super) const RECORD_HEAD_BYTES: usize = 10;
/// The longest record: queue.declare-ok with the longest name.
const RECORD_BYTES_MAX: usize = RECORD_HEAD_BYTES + 7 + 4 + 256 + 8 + 1;

impl Connection {
    /// Handles the broker's answer to the command that [`Self::next`] returned last. The reply, the confirm of a
    /// publish and the close of a channel follow the deliveries up to `order`. The confirm also waits for `batch`;
    /// the caller gives other answers only when they are durable.
    pub fn answer(&mut self, context: &mut Context<'_>, outcome: Outcome, order: ReplyOrder, batch: Batch) {
        let pending = core::mem::replace(&mut self.input.pending, Pending::NOTHING);
        // An outcome is large. The two most frequent ones are handled without moving it.
        match (pending.kind, &outcome) {
            (CommandKind::Publish, Outcome::Published) => {
                self.published(context, pending.slot, false, (order, batch));
            }
            (CommandKind::Silent, Outcome::Done) => {}
            _ => self.answer_other(context, pending, outcome, (order, batch)),
        }
    }

    fn answer_other(
        &mut self,
        context: &mut Context<'_>,
        pending: Pending,
        outcome: Outcome,
        (order, batch): (ReplyOrder, Batch),
    ) {
        match (pending.kind, outcome) {
            (CommandKind::Publish, Outcome::PublishRefused) => {
                self.published(context, pending.slot, true, (order, batch));
            }
            (CommandKind::Publish, Outcome::Wait) => {
                self.input.held_publish = pending.slot;
                self.input.is_suspended = true;
            }
            (CommandKind::Nothing | CommandKind::Release, _) => {}
            (_, Outcome::Fault(fault)) => self.answer_fault(context, pending, &fault, order),
            (_, Outcome::Wait) => {
                let text = format_args!("no memory for this now; try again later");
                self.answer_fault(context, pending, &Fault::new(ReplyCode::ResourceError, text), order);
            }
            (_, outcome) => self.answer_done(context, pending, outcome, order),
        }
    }

    #[inline]
    fn published(
        &mut self,
        context: &mut Context<'_>,
        slot: Slot,
        refused: bool,
        (order, batch): (ReplyOrder, Batch),
    ) {
        self.content_taken(context, slot);
        if context.pools.channels[slot].confirms.settle(refused, order, batch) {
            self.list_to_confirm(context, slot);
        }
    }

    fn answer_fault(
        &mut self,
        context: &mut Context<'_>,
        pending: Pending,
        fault: &Fault,
        order: ReplyOrder,
    ) {
        match pending.kind {
            CommandKind::Login(mechanism) => self.refuse_login(context, mechanism, format_args!("{fault}")),
            CommandKind::OpenVhost => self.close_connection(context, fault, pending.id),
            CommandKind::Publish => {
                self.content_taken(context, pending.slot);
                self.fail(context, pending.slot, fault, pending.id, order);
            }
            _ => self.fail(context, pending.slot, fault, pending.id, order),
        }
    }

    fn answer_done(
        &mut self,
        context: &mut Context<'_>,
        pending: Pending,
        outcome: Outcome,
        order: ReplyOrder,
    ) {
        match (pending.kind, outcome) {
            (CommandKind::Login(_), Outcome::Done) => self.tune(context),
            (CommandKind::OpenVhost, _) => {
                self.phase = Phase::Open;
                self.push_reply(context, 0, &Method::ConnectionOpenOk {}, order);
            }
            (CommandKind::OpenChannel, Outcome::ChannelOpened(channel)) => {
                context.pools.channels[pending.slot].state = ChannelState::Open(channel);
                self.reply(context, pending, &Method::ChannelOpenOk {}, order);
            }
            (CommandKind::CloseChannel, _) => {
                self.flush_confirms(context, pending.slot);
                self.reply(context, pending, &Method::ChannelCloseOk {}, order);
                self.drop_channel(context, pending.slot);
            }
            (CommandKind::ConfirmSelect, _) => {
                context.pools.channels[pending.slot].confirms.select();
                self.reply(context, pending, &Method::ConfirmSelectOk {}, order);
            }
            (CommandKind::Plain, _) => {
                if let Some(ok) = plain_ok(pending.id) {
                    self.reply(context, pending, &ok, order);
                }
            }
            (CommandKind::QueueDeclare, Outcome::QueueDeclared { queue, message_count, consumer_count }) => {
                let ok = Method::QueueDeclareOk { queue: &queue, message_count, consumer_count };
                self.reply(context, pending, &ok, order);
                context.pools.channels[pending.slot].last_queue = Name::try_from(&*queue).unwrap_or_default();
            }
            (CommandKind::Count, Outcome::MessageCount(message_count)) => {
                let ok = match pending.id {
                    (50, 30) => Method::QueuePurgeOk { message_count },
                    _ => Method::QueueDeleteOk { message_count },
                };
                self.reply(context, pending, &ok, order);
            }
            (CommandKind::Consume, Outcome::Consuming { tag }) => {
                self.reply(context, pending, &Method::BasicConsumeOk { consumer_tag: &tag }, order);
            }
            (CommandKind::Cancel, _) => {
                let tag: Name = context.pools.cancelled_tag.clone();
                self.reply(context, pending, &Method::BasicCancelOk { consumer_tag: &tag }, order);
            }
            (CommandKind::Get, Outcome::GetEmpty) => {
                self.reply(context, pending, &Method::BasicGetEmpty {}, order)
            }
            (CommandKind::Get, Outcome::GetQueued) | (CommandKind::Silent, _) => {}
            (kind, outcome) => panic!("{outcome:?} is no answer to {kind:?}"),
        }
    }

    fn reply(&mut self, context: &mut Context<'_>, pending: Pending, method: &Method<'_>, order: ReplyOrder) {
        if !pending.no_wait {
            let number = context.pools.channels[pending.slot].number();
            self.push_reply(context, number, method, order);
        }
    }

    /// Appends a reply. The caller has checked that there is capacity.
    pub(super) fn push_reply(
        &mut self,
        context: &mut Context<'_>,
        number: u16,
        method: &Method<'_>,
        order: ReplyOrder,
    ) {
        let mut record = [0; RECORD_BYTES_MAX];
        let (head, frame) = record.split_at_mut(RECORD_HEAD_BYTES);
        let mut writer = Writer::new(frame);
        let written = method.emit_frame(number, &mut writer);
        assert!(written.is_ok(), "{} is longer than a reply may be", method.name());
        let len = writer.at();
        head[..8].copy_from_slice(&order.to_be_bytes());
        head[8..].copy_from_slice(&(len as u16).to_be_bytes());
        let record = &record[..RECORD_HEAD_BYTES + len];
        if !self.output.replies.append(&mut context.pools.replies, record) {
            // The size of the pool rules this out. If it happened nevertheless, a missing reply would be worse than a
            // closed connection.
            self.warn(
                context,
                LogKind::Shortage,
                format_args!(": no room for {}; closing it", method.name()),
            );
            self.finish(context.now);
        }
    }

    /// Returns whether a reply, and the closes that may follow it, fit.
    pub(super) const fn has_reply_room(&self, context: &Context<'_>) -> bool {
        self.has_room_for(context, 3)
    }

    /// Returns whether the closes fit that may follow anything: of a channel after its last confirms, and of the
    /// connection.
    #[inline]
    pub(super) const fn has_close_room(&self, context: &Context<'_>) -> bool {
        self.has_room_for(context, 2)
    }

    #[inline]
    const fn has_room_for(&self, context: &Context<'_>, records: usize) -> bool {
        // The first block of the chain may be used except for its last byte, so the chain takes one block more than
        // its length suggests.
        self.output.replies.len() + records * RECORD_BYTES_MAX + BLOCK_UNIT_BYTES
            <= context.settings.replies_bytes_max
    }

    /// Turns the confirms of a closing channel into replies, so that they are sent before the close. Messages that
    /// are not durable yet are not confirmed.
    pub(super) fn flush_confirms(&mut self, context: &mut Context<'_>, slot: Slot) {
        context.pools.channels[slot].confirms.drop_stored_later(context.durable);
        while let Some((run, sent_before)) = context.pools.channels[slot].confirms.take() {
            let number = context.pools.channels[slot].number();
            self.push_reply(context, number, &run.method(sent_before), run.order);
        }
        self.unlist_to_confirm(context, slot);
    }

    /// Removes a channel that is closed on both sides. Its number may be used again.
    pub(super) fn drop_channel(&mut self, context: &mut Context<'_>, slot: Slot) {
        self.unlist_to_confirm(context, slot);
        self.drop_content(context, slot);
        context.pools.channels.close(&mut self.channels, slot);
    }

    /// Moves a channel to the list for its first confirm, or removes it from the lists.
    #[inline]
    pub(super) fn list_to_confirm(&mut self, context: &mut Context<'_>, slot: Slot) {
        let record = &context.pools.channels[slot];
        let listed = match record.confirms.front() {
            None => Listed::No,
            Some(run) if run.batch <= context.durable => Listed::ToConfirm,
            Some(_) => Listed::ToBeStored,
        };
        if record.listed == listed {
            return;
        }
        self.unlist_to_confirm(context, slot);
        context.pools.channels[slot].listed = listed;
        match listed {
            Listed::No => {}
            Listed::ToConfirm => self.confirms.to_tell.push(&mut context.pools.channels, slot),
            Listed::ToBeStored => self.confirms.to_be_stored.push(&mut context.pools.channels, slot),
        }
    }

    pub(super) fn unlist_to_confirm(&mut self, context: &mut Context<'_>, slot: Slot) {
        let channels = &mut context.pools.channels;
        match core::mem::replace(&mut channels[slot].listed, Listed::No) {
            Listed::No => {}
            Listed::ToConfirm => self.confirms.to_tell.remove(channels, slot),
            Listed::ToBeStored => self.confirms.to_be_stored.remove(channels, slot),
        }
    }

    /// Closes a channel for an error that no method of the client caused. Returns `false` if that is not possible
    /// now, because there is no capacity for the close or an answer is still expected, and `true` also when the
    /// channel is closed already. The broker then has to take back what the channel held, so [`Self::next`] must be
    /// called.
    pub fn close_channel(&mut self, context: &mut Context<'_>, number: u16, fault: &Fault) -> bool {
        let found = context.pools.channels.find(&mut self.channels, self.id, number);
        let Some(slot) =
            found.filter(|slot| matches!(context.pools.channels[*slot].state, ChannelState::Open(_)))
        else {
            return true;
        };
        let is_busy = self.expects_answer() || self.input.release.is_some();
        if is_busy || self.phase != Phase::Open || !self.has_reply_room(context) {
            return false;
        }
        if self.input.held_publish == slot {
            self.input.held_publish = NONE;
        }
        self.drop_content(context, slot);
        self.fail(context, slot, fault, (0, 0), context.last_delivery);
        true
    }

    /// Sends confirms that waited for the disk, as far as their messages are durable now.
    pub fn note_durable(&mut self, context: &mut Context<'_>) {
        let mut slot = self.confirms.to_be_stored.first;
        while slot != NONE {
            let next = ConfirmList::after(&context.pools.channels, slot);
            self.list_to_confirm(context, slot);
            slot = next;
        }
    }

    /// Returns whether confirms wait for the disk.
    pub const fn awaits_disk(&self) -> bool {
        !self.confirms.to_be_stored.is_empty()
    }

    /// Returns whether the client wants no answer to the command that [`Self::next`] returned last.
    pub const fn wants_no_answer(&self) -> bool {
        self.input.pending.no_wait
    }

    /// Records that the answer to the command that [`Self::next`] returned last comes later. Input stops until then.
    pub const fn defer(&mut self) {
        self.input.is_suspended = true;
    }

    /// Like [`Self::defer`], for a login. The time that it waits for the broker does not count against the handshake
    /// timeout.
    pub fn defer_login(&mut self, now: Now) {
        self.input.is_suspended = true;
        self.phase = Phase::Start { due: now.after_ms(timers::LOGIN_PATIENCE_MS) };
    }

    /// Returns whether an answer is still expected. The connection may have closed meanwhile.
    pub fn expects_answer(&self) -> bool {
        self.input.pending.is_something() && matches!(self.phase, Phase::Start { .. } | Phase::Open)
    }
}

/// Returns the "ok" of a method whose answer has no arguments.
const fn plain_ok(id: (u16, u16)) -> Option<Method<'static>> {
    Some(match id {
        (40, 10) => Method::ExchangeDeclareOk {},
        (40, 20) => Method::ExchangeDeleteOk {},
        (40, 30) => Method::ExchangeBindOk {},
        (40, 40) => Method::ExchangeUnbindOk {},
        (50, 20) => Method::QueueBindOk {},
        (50, 50) => Method::QueueUnbindOk {},
        (60, 10) => Method::BasicQosOk {},
        (60, 110) => Method::BasicRecoverOk {},
        (90, 10) => Method::TxSelectOk {},
        (90, 20) => Method::TxCommitOk {},
        (90, 30) => Method::TxRollbackOk {},
        _ => return None,
    })
}
