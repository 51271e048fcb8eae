//! Converts the outcomes of commands to reply methods, and stores them until they may be written.
//!
//! ```text
//!   a connection's replies: | order (8) | length (2) | frame | order | length | frame | ...
//! ```
//!
//! A reply may have to wait for the deliveries before it, or for the client to read. Replies keep the order of
//! the requests.
//!
//! # Invariants
//! - When a command is passed to the broker, there is capacity for its reply.
//! - The replies of a connection never exceed its part of the pool, so there is always capacity for the
//!   replies of others.

use super::channel::{ChannelState, ConfirmList, ConfirmListKind, NONE, Slot};
use super::connection::Context;
use super::connection::{Connection, Phase};
use super::methods::{CommandKind, Pending};
use super::timeouts;
use leveret_amqp::{Method, Writer};
use leveret_core::batch::Batch;
use leveret_core::command::{Name, Outcome, ReplyOrder};
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::limits::REPLIES_BYTES_MAX;
use leveret_core::log_limiter::LogKind;
use leveret_core::mem::BLOCK_UNIT_BYTES;
use leveret_core::time::Now;

/// Number of bytes before each frame of a stored reply: its order and the frame's length.
pub(super) const RECORD_HEAD_BYTES: usize = 10;
/// Maximum length of a stored reply: queue.declare-ok with the longest name.
const RECORD_BYTES_MAX: usize = RECORD_HEAD_BYTES + 7 + 4 + 256 + 8 + 1;

impl Connection {
    /// Handles the outcome of the command that [`Self::next`] returned last.
    ///
    /// The reply to the client, a confirm or a channel.close is sent after the deliveries up to `order`. A
    /// confirm is sent only after `batch` is durable. For all other outcomes, the caller waits until the
    /// batch is durable before it calls this function.
    pub fn answer(&mut self, context: &mut Context<'_>, outcome: Outcome, order: ReplyOrder, batch: Batch) {
        let pending = core::mem::replace(&mut self.input.pending, Pending::NOTHING);
        // The two most frequent cases are handled without moving the outcome, which is large.
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
            (CommandKind::Publish, Outcome::PublishedNowhere) => {
                self.published(context, pending.slot, false, (order, batch));
            }
            (CommandKind::Publish, Outcome::PublishRefused) => {
                self.published(context, pending.slot, true, (order, batch));
            }
            (CommandKind::Publish, Outcome::Wait) => {
                self.input.retry_publish = pending.slot;
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

    /// Notes that the broker has accepted or refused a message, and adds its confirm.
    #[inline]
    fn published(
        &mut self,
        context: &mut Context<'_>,
        slot: Slot,
        is_refused: bool,
        (order, batch): (ReplyOrder, Batch),
    ) {
        self.clear_content(context, slot);
        if context.pools.channels[slot].confirms.settle(is_refused, order, batch) {
            self.update_confirm_list(context, slot);
        }
    }

    /// Handles an error of the broker.
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
                self.clear_content(context, pending.slot);
                self.fail(context, pending.slot, fault, pending.id, order);
            }
            _ => self.fail(context, pending.slot, fault, pending.id, order),
        }
    }

    /// Handles the outcome of a successful command.
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

    /// Stores the reply to a command, unless the client has set `no-wait`.
    fn reply(&mut self, context: &mut Context<'_>, pending: Pending, method: &Method<'_>, order: ReplyOrder) {
        if !pending.no_wait {
            let number = context.pools.channels[pending.slot].number();
            self.push_reply(context, number, method, order);
        }
    }

    /// Stores a reply on channel `number`, to be written after the deliveries up to `order`. The caller has checked
    /// that there is capacity.
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
            // The size of the pool should make this impossible. If it happens, the connection is closed,
            // because a client would wait without end for a missing reply.
            self.warn(
                context,
                LogKind::Shortage,
                format_args!(": closed, because there is no capacity for {}", method.name()),
            );
            self.finish(context.now);
        }
    }

    /// Returns whether there is capacity for a reply and for the closes that may follow it.
    pub(super) const fn has_reply_room(&self) -> bool {
        self.has_room_for(3)
    }

    /// Returns whether there is capacity for the two closes that any input may cause: channel.close and connection.close.
    #[inline]
    pub(super) const fn has_close_room(&self) -> bool {
        self.has_room_for(2)
    }

    #[inline]
    const fn has_room_for(&self, records: usize) -> bool {
        // A chain may take one block more than its length needs, because all but one byte of its first block
        // may be consumed already.
        self.output.replies.len() + records * RECORD_BYTES_MAX + BLOCK_UNIT_BYTES <= REPLIES_BYTES_MAX
    }

    /// Converts the confirms of a channel that is being closed into replies, so that they are sent before the close.
    /// Messages that are not durable yet are not confirmed.
    pub(super) fn flush_confirms(&mut self, context: &mut Context<'_>, slot: Slot) {
        context.pools.channels[slot].confirms.keep_durable(context.durable);
        while let Some((run, sent_before)) = context.pools.channels[slot].confirms.take() {
            let number = context.pools.channels[slot].number();
            self.push_reply(context, number, &run.method(sent_before), run.order);
        }
        self.leave_confirm_list(context, slot);
    }

    /// Removes a channel that is closed on both sides. Its number may be used again.
    pub(super) fn drop_channel(&mut self, context: &mut Context<'_>, slot: Slot) {
        self.leave_confirm_list(context, slot);
        self.drop_content(context, slot);
        context.pools.channels.close(&mut self.channels, slot);
    }

    /// Moves a channel to the list that its first confirm belongs to, or removes it from its list if it has no confirms.
    #[inline]
    pub(super) fn update_confirm_list(&mut self, context: &mut Context<'_>, slot: Slot) {
        let record = &context.pools.channels[slot];
        let list = match record.confirms.front() {
            None => ConfirmListKind::None,
            Some(run) if run.batch <= context.durable => ConfirmListKind::Sendable,
            Some(_) => ConfirmListKind::AwaitsDisk,
        };
        if record.confirm_list == list {
            return;
        }
        self.leave_confirm_list(context, slot);
        context.pools.channels[slot].confirm_list = list;
        match list {
            ConfirmListKind::None => {}
            ConfirmListKind::Sendable => self.confirms.sendable.push(&mut context.pools.channels, slot),
            ConfirmListKind::AwaitsDisk => self.confirms.awaits_disk.push(&mut context.pools.channels, slot),
        }
    }

    /// Removes a channel from its list of channels with confirms.
    pub(super) fn leave_confirm_list(&mut self, context: &mut Context<'_>, slot: Slot) {
        let channels = &mut context.pools.channels;
        match core::mem::replace(&mut channels[slot].confirm_list, ConfirmListKind::None) {
            ConfirmListKind::None => {}
            ConfirmListKind::Sendable => self.confirms.sendable.remove(channels, slot),
            ConfirmListKind::AwaitsDisk => self.confirms.awaits_disk.remove(channels, slot),
        }
    }

    /// Closes a channel because of an error that no method of the client has caused. Returns `true` if the
    /// channel is closed now or was closed before. Returns `false` if the close is not possible now, because
    /// there is no capacity for it or the outcome of a command is pending.
    ///
    /// The caller must then call [`Self::next`], which returns the command that closes the channel in the broker.
    pub fn close_channel(&mut self, context: &mut Context<'_>, number: u16, fault: &Fault) -> bool {
        let found = context.pools.channels.find(&mut self.channels, self.id, number);
        let Some(slot) =
            found.filter(|slot| matches!(context.pools.channels[*slot].state, ChannelState::Open(_)))
        else {
            return true;
        };
        let is_busy = self.expects_answer() || self.input.release.is_some();
        if is_busy || self.phase != Phase::Open || !self.has_reply_room() {
            return false;
        }
        if self.input.retry_publish == slot {
            self.input.retry_publish = NONE;
        }
        self.drop_content(context, slot);
        self.fail(context, slot, fault, (0, 0), context.last_delivery);
        true
    }

    /// Moves channels whose first confirm is for messages that are durable now to the list of sendable
    /// confirms.
    pub fn note_durable(&mut self, context: &mut Context<'_>) {
        let mut slot = self.confirms.awaits_disk.first;
        while slot != NONE {
            let next = ConfirmList::after(&context.pools.channels, slot);
            self.update_confirm_list(context, slot);
            slot = next;
        }
    }

    /// Returns whether there are confirms for messages that are not durable yet.
    pub const fn awaits_disk(&self) -> bool {
        !self.confirms.awaits_disk.is_empty()
    }

    /// Returns whether the command that [`Self::next`] returned last has no reply.
    pub const fn wants_no_answer(&self) -> bool {
        self.input.pending.no_wait
    }

    /// Notes that [`Self::answer`] will be called later for the command that [`Self::next`] returned last.
    /// Input is suspended until then.
    pub const fn defer(&mut self) {
        self.input.is_suspended = true;
    }

    /// Like [`Self::defer`], for a login. While the password is checked, the handshake timeout does not run.
    pub fn defer_login(&mut self, now: Now) {
        self.input.is_suspended = true;
        self.phase = Phase::Start { due: now.after_ms(timeouts::LOGIN_TIMEOUT_MS) };
    }

    /// Returns whether the outcome of the last command is pending and still needed. It is not needed if the
    /// connection was closed meanwhile.
    pub fn expects_answer(&self) -> bool {
        self.input.pending.is_something() && matches!(self.phase, Phase::Start { .. } | Phase::Open)
    }
}

/// Returns the reply "ok" for a method whose reply has no arguments.
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
