//! Converts the answers of the broker to reply methods, and stores them until they may be written.
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
use super::input::PUBLISH;
use super::methods::{Pending, PendingMethod};
use super::timeouts;
use leveret_amqp::{Method, Writer};
use leveret_core::batch::Batch;
use leveret_core::command::{
    Answer, ChannelAnswer, DefinitionAnswer, GetAnswer, Name, PublishAnswer, ReplyOrder,
};
use leveret_core::error::Fault;
use leveret_core::limits::REPLIES_BYTES_MAX;
use leveret_core::log_limiter::LogKind;
use leveret_core::mem::BLOCK_UNIT_BYTES;
use leveret_core::time::Now;

/// Number of bytes before each frame of a stored reply: its order and the frame's length.
pub(super) const RECORD_HEAD_BYTES: usize = 10;
/// Maximum length of a stored reply: queue.declare-ok with the longest name.
const RECORD_BYTES_MAX: usize = RECORD_HEAD_BYTES + 7 + 4 + 256 + 8 + 1;

impl Connection {
    /// Handles the answer to the command that [`Self::next`] returned last.
    ///
    /// The reply to the client, a confirm or a channel.close is sent after the deliveries up to `order`. A
    /// confirm is sent only after `batch` is durable. For all other answers, the caller waits until the
    /// batch is durable before it calls this function.
    pub fn answer(
        &mut self,
        context: &mut Context<'_>,
        answer: Result<Answer, Fault>,
        order: ReplyOrder,
        batch: Batch,
    ) {
        match (core::mem::replace(&mut self.input.pending, Pending::Nothing), &answer) {
            (Pending::Method(method), Ok(Answer::Publish(published))) => {
                let is_refused = match published {
                    PublishAnswer::Published
                    | PublishAnswer::PublishedNowhere
                    | PublishAnswer::NotRetained { .. } => false,
                    PublishAnswer::Refused => true,
                    PublishAnswer::NotPublished => return,
                    PublishAnswer::Wait => {
                        self.input.retry_publish = method.slot;
                        self.input.is_suspended = true;
                        return;
                    }
                };
                self.published(context, method.slot, is_refused, order, batch);
            }
            // Acknowledgements are frequent. They return here without moving the answer, which is large.
            (
                Pending::Method(PendingMethod { no_wait: true, .. }),
                Ok(Answer::Channel(ChannelAnswer::Done)),
            ) => {}
            (Pending::Method(method), _) => match answer {
                Ok(answer) => self.answer_method(context, method, answer, order),
                Err(fault) => self.answer_fault(context, method, &fault, order),
            },
            (Pending::Login(_), Ok(_)) => self.tune(context),
            (Pending::Login(mechanism), Err(fault)) => {
                self.refuse_login(context, mechanism, format_args!("{fault}"));
            }
            (Pending::Nothing | Pending::Release, _) => {}
        }
    }

    /// Notes that the broker has accepted or refused a message, and adds its confirm.
    #[inline]
    fn published(
        &mut self,
        context: &mut Context<'_>,
        slot: Slot,
        is_refused: bool,
        order: ReplyOrder,
        batch: Batch,
    ) {
        self.clear_content(context, slot);
        if context.pools.channels[slot].confirms.settle(is_refused, order, batch) {
            self.update_confirm_list(context, slot);
        }
    }

    fn answer_fault(
        &mut self,
        context: &mut Context<'_>,
        method: PendingMethod,
        fault: &Fault,
        order: ReplyOrder,
    ) {
        if method.slot == NONE {
            return self.close_connection(context, fault, method.id);
        }
        if method.id == PUBLISH {
            self.clear_content(context, method.slot);
        }
        self.fail(context, method.slot, fault, method.id, order);
    }

    fn answer_method(
        &mut self,
        context: &mut Context<'_>,
        method: PendingMethod,
        answer: Answer,
        order: ReplyOrder,
    ) {
        match answer {
            Answer::OpenVhost => {
                self.phase = Phase::Open;
                self.push_reply(context, 0, &Method::ConnectionOpenOk {}, order);
            }
            Answer::OpenChannel(channel) => {
                context.pools.channels[method.slot].state = ChannelState::Open(channel);
                self.reply(context, method, &Method::ChannelOpenOk {}, order);
            }
            Answer::Channel(answer) => self.answer_channel(context, method, answer, order),
            Answer::Get(GetAnswer::Empty) => self.reply(context, method, &Method::BasicGetEmpty {}, order),
            Answer::Get(GetAnswer::Queued | GetAnswer::Later) => {}
            Answer::Definition(answer) => self.answer_definition(context, method, answer, order),
            // No method of AMQP leads to the commands that are answered with these.
            Answer::LoggedIn | Answer::Publish(_) | Answer::OpenSession(_) | Answer::Mqtt(_) => {}
        }
    }

    fn answer_channel(
        &mut self,
        context: &mut Context<'_>,
        method: PendingMethod,
        answer: ChannelAnswer,
        order: ReplyOrder,
    ) {
        match answer {
            ChannelAnswer::Done => {
                if let Some(ok) = plain_ok(method.id) {
                    self.reply(context, method, &ok, order);
                }
            }
            ChannelAnswer::Closed => {
                self.flush_confirms(context, method.slot);
                self.reply(context, method, &Method::ChannelCloseOk {}, order);
                self.drop_channel(context, method.slot);
            }
            ChannelAnswer::ConfirmsSelected => {
                context.pools.channels[method.slot].confirms.select();
                self.reply(context, method, &Method::ConfirmSelectOk {}, order);
            }
            ChannelAnswer::Consuming { tag } => {
                self.reply(context, method, &Method::BasicConsumeOk { consumer_tag: &tag }, order);
            }
            ChannelAnswer::Cancelled => {
                let tag: Name = context.pools.cancelled_tag.clone();
                self.reply(context, method, &Method::BasicCancelOk { consumer_tag: &tag }, order);
            }
        }
    }

    fn answer_definition(
        &mut self,
        context: &mut Context<'_>,
        method: PendingMethod,
        answer: DefinitionAnswer,
        order: ReplyOrder,
    ) {
        match answer {
            DefinitionAnswer::Done => {
                if let Some(ok) = plain_ok(method.id) {
                    self.reply(context, method, &ok, order);
                }
            }
            DefinitionAnswer::QueueDeclared { queue, message_count, consumer_count } => {
                let ok = Method::QueueDeclareOk { queue: &queue, message_count, consumer_count };
                self.reply(context, method, &ok, order);
                context.pools.channels[method.slot].last_queue = Name::try_from(&*queue).unwrap_or_default();
            }
            DefinitionAnswer::QueuePurged(message_count) => {
                self.reply(context, method, &Method::QueuePurgeOk { message_count }, order);
            }
            DefinitionAnswer::QueueDeleted(message_count) => {
                self.reply(context, method, &Method::QueueDeleteOk { message_count }, order);
            }
        }
    }

    /// Stores the reply to a command, unless the client has set `no-wait`.
    fn reply(&mut self, context: &mut Context<'_>, to: PendingMethod, reply: &Method<'_>, order: ReplyOrder) {
        if !to.no_wait {
            let number = context.pools.channels[to.slot].number();
            self.push_reply(context, number, reply, order);
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
    /// there is no capacity for it or the answer to a command is pending.
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
        matches!(self.input.pending, Pending::Method(PendingMethod { no_wait: true, .. }))
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

    /// Returns whether the answer to the last command is pending and still needed. It is not needed if the
    /// connection was closed meanwhile.
    pub fn expects_answer(&self) -> bool {
        self.input.pending != Pending::Nothing && matches!(self.phase, Phase::Start { .. } | Phase::Open)
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
