//! `POST queues/V/Q/get`: messages taken from a queue as a client takes them, and put back if that was asked.
//!
//! ```text
//! get one ─→ waiting for the disk ─→ its head, its payload piece by piece ─→ the next
//!                                                      none is left ─→ put back ─→ over
//! ```
//!
//! Always true: what is taken is taken by a connection of the user's, under its permissions and caps; it goes
//! back when the client vanishes, unless it was asked to be gone; a step takes [`GETS_PER_STEP`] at most.

use leveret_broker::Broker;
use leveret_core::command::{ChannelId, Command, ConnectionId, DeliveryKind, Outbox, Outcome, Settlement};
use leveret_core::error::Fault;

use super::request_context::RequestContext;
use super::shown_message::{Payloads, ShownPayload, write_head};

/// Messages taken in one step.
const GETS_PER_STEP: usize = 32;

/// What becomes of what was taken; `None`: it is gone as soon as it is taken.
pub(super) type AckMode = Option<Settlement>;

/// What is asked for.
#[derive(Debug)]
pub struct QueueGet {
    pub(super) user: Box<str>,
    pub(super) vhost: Box<str>,
    pub(super) queue: Box<str>,
    /// Messages still to be taken.
    pub(super) left: u32,
    pub(super) mode: AckMode,
    pub(super) payloads: Payloads,
}

/// One that is under way.
#[derive(Debug)]
pub(super) struct Getting {
    get: QueueGet,
    own: Option<(ConnectionId, ChannelId)>,
    payload: Option<ShownPayload>,
    /// The tag of the last message that was taken.
    last_tag: u64,
    /// Something is written.
    pub(super) is_begun: bool,
    /// The broker says what becomes of the last get when the connection is not busy any more.
    is_waiting: bool,
}

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Progress {
    GoOn,
    Waiting,
    Done,
}

impl Getting {
    pub(super) const fn new(get: QueueGet) -> Self {
        Self { get, own: None, payload: None, last_tag: 0, is_begun: false, is_waiting: false }
    }

    /// The connection whose get is still under way.
    pub(super) fn waits_for(&self) -> Option<ConnectionId> {
        self.own.filter(|_| self.is_waiting).map(|own| own.0)
    }

    /// Goes on, and writes what there is to be written, up to about `enough`.
    ///
    /// # Errors
    /// It cannot be done; nothing is written then.
    pub(super) fn step(
        &mut self,
        context: &mut RequestContext<'_>,
        out: &mut Vec<u8>,
        enough: usize,
    ) -> Result<Progress, Fault> {
        for _ in 0..GETS_PER_STEP {
            if let Some(payload) = &mut self.payload {
                if !payload.write(context.messages, out, enough) {
                    return Ok(Progress::GoOn);
                }
                self.payload.take().into_iter().for_each(|payload| payload.release(context.messages));
            }
            if out.len() >= enough {
                return Ok(Progress::GoOn);
            }
            match self.next(context) {
                Ok(Some(Outcome::GetQueued)) => self.show(context, out),
                Ok(None) => return Ok(Progress::Waiting),
                Err(fault) if !self.is_begun => {
                    self.end(context);
                    return Err(fault);
                }
                // None is left, or no more can be held at once: that is all.
                Ok(Some(_)) | Err(_) => {
                    out.extend_from_slice(if self.is_begun { b"]" } else { b"[]" });
                    self.end(context);
                    return Ok(Progress::Done);
                }
            }
        }
        Ok(Progress::GoOn)
    }

    /// Takes the next message, or hears what became of taking it; `None`: not yet.
    fn next(&mut self, context: &mut RequestContext<'_>) -> Result<Option<Outcome>, Fault> {
        let (broker, mut context) = context.broker();
        let (connection, channel) = match self.own {
            Some(own) => own,
            None => *self.own.insert(broker.connect_user(&mut context, &self.get.user, &self.get.vhost)?),
        };
        let outcome = if self.is_waiting {
            if broker.is_busy(connection) {
                return Ok(None);
            }
            broker.take_later(connection).map_or(Outcome::GetEmpty, |later| later.0)
        } else if self.get.left == 0 {
            Outcome::GetEmpty
        } else {
            self.get.left -= 1;
            let get = Command::Get { queue: &self.get.queue, no_ack: self.get.mode.is_none() };
            broker.apply(&mut context, connection, Some(channel), get).0
        };
        self.is_waiting = matches!(outcome, Outcome::Later);
        match outcome {
            Outcome::Later => Ok(None),
            Outcome::Fault(fault) => Err(fault),
            outcome => Ok(Some(outcome)),
        }
    }

    /// Writes what stands before the payload of the message that was taken.
    fn show(&mut self, context: &mut RequestContext<'_>, out: &mut Vec<u8>) {
        let Some((connection, _)) = self.own else { return };
        let seen = context.broker.outbox(connection).peek().map(|delivery| {
            let count = match delivery.kind {
                DeliveryKind::GetOk { message_count } => message_count,
                DeliveryKind::Deliver { .. } | DeliveryKind::Return(_) => 0,
            };
            (delivery.message, delivery.delivery_tag, delivery.redelivered, count)
        });
        let Some((message, tag, redelivered, count)) = seen else {
            debug_assert!(false, "what was taken stands in the outbox");
            return;
        };
        out.extend_from_slice(if core::mem::replace(&mut self.is_begun, true) { b"," } else { b"[" });
        write_head(out, context.messages, message, &|json| {
            json.raw(b"\"redelivered\":");
            json.truth(redelivered);
            json.raw(b",\"message_count\":");
            json.number(count);
        });
        self.payload = Some(ShownPayload::new(context.messages, message, self.get.payloads));
        self.last_tag = tag;
        let (broker, mut context) = context.broker();
        broker.sent(&mut context, connection, 1);
    }

    fn end(&mut self, context: &mut RequestContext<'_>) {
        let (broker, mut context) = context.broker();
        self.settle_and_leave(broker, &mut context);
    }

    fn settle_and_leave(&mut self, broker: &mut Broker, context: &mut leveret_broker::Context<'_>) {
        let Some((connection, channel)) = self.own.take() else { return };
        if let Some(settlement) = self.get.mode.filter(|_| self.last_tag > 0) {
            let command = Command::Settle { delivery_tag: self.last_tag, multiple: true, settlement };
            broker.apply(context, connection, Some(channel), command);
        }
        broker.release(context, connection);
    }

    /// The client is gone: what it holds goes back.
    pub(super) fn abandon(mut self, broker: &mut Broker, context: &mut leveret_broker::Context<'_>) {
        if let Some(payload) = self.payload.take() {
            payload.release(context.messages_mut());
        }
        if let Some((connection, _)) = self.own.take() {
            broker.release(context, connection);
        }
    }
}
