//! One channel of a link. Each rule has its own channel.
//!
//! ```text
//! Closed ─ open → Open ─→ Prepare… ─→ Select ─┬ forward ────────────────→ Ready
//!   ▲                                         └ fetch ─→ Consume ───────→ Ready ─ cancel → Cancel → Idle
//!   │                                                                        │
//!   ├──── Answer: closed by the upstream; channel.close-ok is sent ◄─ any stage
//!   └──── Closing: closed by the bridge; input is ignored until channel.close-ok
//! ```
//!
//! On entry, each stage except `Ready`, `Idle` and `Closed` sends one method. Except in `Answer`, the channel then waits
//! for the upstream's answer.
//!
//! # Invariants
//! - The fields alone determine the next method. So a method for which the output buffer has no space is simply
//!   requested again later.
//! - A frame on a closed channel ends the link.
//! - After `basic.deliver` or `basic.return` come one header and a body of the length in the header. Anything else ends
//!   the link.

use leveret_amqp::{ContentHeader, Method, Table};
use leveret_core::time::Deadline;

use super::client::{Cause, Event, link_lost, unexpected_method};
use super::headers::Origin;
use super::headers::own_id_of;

/// Class and method number of `basic.publish`.
const BASIC_PUBLISH: (u16, u16) = (60, 40);

/// The stage of a channel; see the module's diagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum ChannelStage {
    #[default]
    Closed,
    /// `channel.open`.
    Open,
    /// The declarations of [`Preparation`], one after the other.
    Prepare,
    /// `confirm.select` to publish, or `basic.qos` to consume.
    Select,
    /// `basic.consume`.
    Consume,
    /// Messages flow.
    Ready,
    /// `basic.cancel`.
    Cancel,
    /// The channel is open, and its consumer was cancelled.
    Idle,
    /// `channel.close`.
    Closing,
    /// The upstream has closed the channel, and the bridge has to send `channel.close-ok`.
    Answer {
        /// Whether the channel is opened again afterwards: it was closed because a queue is missing, which is declared
        /// on the new channel.
        reopens: bool,
    },
}

/// What comes next of the header and body of a delivered or returned message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum ArrivingContent {
    /// No header or body: a method comes next.
    #[default]
    None,
    /// The header comes next.
    Header,
    /// This number of bytes of the body is still to come.
    Body(u64),
}

impl ArrivingContent {
    /// Returns the state with `left` bytes of the body still to come.
    const fn of_body(left: u64) -> Self {
        if left == 0 { Self::None } else { Self::Body(left) }
    }
}

/// One channel.
#[derive(Default, Debug)]
pub(super) struct Channel {
    stage: ChannelStage,
    /// Whether the method of the stage was sent.
    is_sent: bool,
    /// When the answer to that method must have arrived.
    answer_deadline: Deadline,
    /// The queue that is consumed, and the prefetch count; `None` if the rule publishes.
    consumer: Option<(String, u16)>,
    /// The declarations that are made before the channel is ready.
    preparation: Option<PreparationProgress>,
    /// Number of messages in the declared queue, as reported by `queue.declare-ok`.
    message_count: u32,
    content: ArrivingContent,
    /// The reply code of the returned message whose header and body are arriving; `None` for a delivered message.
    return_code: Option<u16>,
    /// Number of methods still to be sent to restart the consumer with another prefetch count: 3 before
    /// `basic.cancel`, 2 before `basic.qos`, 1 before `basic.consume`.
    restart_methods_left: u8,
    /// The `active` value of a received `channel.flow` that is not answered yet.
    flow_to_answer: Option<bool>,
    /// Whether the upstream has paused publishing by `channel.flow`.
    is_stopped: bool,
    /// Whether only a part of a published message has been written. No method may be sent between its frames.
    is_in_message: bool,
    /// Whether the upstream's `channel.close` crossed the bridge's on the way and is not answered yet.
    has_crossed_close: bool,
}

impl Channel {
    pub(super) fn is_closed(&self) -> bool {
        self.stage == ChannelStage::Closed
    }

    pub(super) fn is_in_content(&self) -> bool {
        self.content != ArrivingContent::None
    }

    pub(super) const fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    /// Records whether only a part of the current message has been written. Returns whether the message is complete and
    /// an answer to `channel.flow` has waited for that.
    pub(super) const fn note_message(&mut self, is_incomplete: bool) -> bool {
        self.is_in_message = is_incomplete;
        !is_incomplete && self.flow_to_answer.is_some()
    }

    /// Returns when the upstream's answer must have arrived; never if no answer is awaited.
    pub(super) fn deadline(&self) -> Deadline {
        match self.stage {
            // No answer of the upstream is awaited.
            ChannelStage::Closed | ChannelStage::Ready | ChannelStage::Idle | ChannelStage::Answer { .. } => {
                Deadline::NEVER
            }
            _ => self.answer_deadline,
        }
    }

    /// Opens the channel. See [`super::Client::open`].
    pub(super) fn open(
        &mut self,
        answer_deadline: Deadline,
        consumer: Option<(String, u16)>,
        preparation: Option<Preparation>,
    ) {
        assert!(self.is_closed(), "a channel is opened only after both sides have closed it");
        let preparation = preparation.map(PreparationProgress::new);
        let stage = ChannelStage::Open;
        *self = Self { stage, answer_deadline, consumer, preparation, ..Self::default() };
    }

    /// Closes the channel from this side.
    pub(super) fn close(&mut self, answer_deadline: Deadline) {
        self.answer_deadline = answer_deadline;
        match self.stage {
            ChannelStage::Closed | ChannelStage::Closing | ChannelStage::Answer { reopens: false } => {}
            // `channel.open` was not sent: the channel is closed at the upstream.
            ChannelStage::Open if !self.is_sent => *self = Self::default(),
            ChannelStage::Answer { reopens: true } => self.stage = ChannelStage::Answer { reopens: false },
            _ => {
                (self.stage, self.is_sent) = (ChannelStage::Closing, false);
                (self.restart_methods_left, self.flow_to_answer) = (0, None);
            }
        }
    }

    /// Cancels the consumer, if there is one.
    pub(super) fn cancel(&mut self, answer_deadline: Deadline) {
        if self.stage == ChannelStage::Ready && self.consumer.is_some() {
            (self.stage, self.is_sent, self.answer_deadline) = (ChannelStage::Cancel, false, answer_deadline);
        }
    }

    /// Restarts the consumer with another prefetch count: `basic.qos` does not apply to a running consumer.
    pub(super) fn restart_consumer(&mut self, new_prefetch_count: u16) {
        if let (ChannelStage::Ready, Some((_, prefetch_count))) = (self.stage, &mut self.consumer) {
            (*prefetch_count, self.restart_methods_left) = (new_prefetch_count, 3);
        }
    }

    /// Returns the method to be sent next, if any; `tag` is the consumer tag.
    pub(super) fn next_method<'m>(&'m self, tag: &'m str) -> Option<Method<'m>> {
        let (queue, prefetch_count) = self
            .consumer
            .as_ref()
            .map_or(("", 0), |(queue, prefetch_count)| (queue.as_str(), *prefetch_count));
        let qos = Method::BasicQos { prefetch_size: 0, prefetch_count, global: false };
        let cancel = |no_wait| Method::BasicCancel { consumer_tag: tag, no_wait };
        if self.has_crossed_close {
            return Some(Method::ChannelCloseOk {});
        }
        if let Some(active) = self.flow_to_answer.filter(|_| !self.is_in_message) {
            return Some(Method::ChannelFlowOk { active });
        }
        if self.stage == ChannelStage::Ready {
            return match self.restart_methods_left {
                3 => Some(cancel(true)),
                2 => Some(qos),
                1 => Some(consume_of(queue, tag, true)),
                _ => None,
            };
        }
        if self.is_sent {
            return None;
        }
        Some(match self.stage {
            ChannelStage::Closed | ChannelStage::Ready | ChannelStage::Idle => return None,
            ChannelStage::Open => Method::ChannelOpen {},
            ChannelStage::Prepare => self.preparation.as_ref()?.method(),
            ChannelStage::Select if self.consumer.is_some() => qos,
            ChannelStage::Select => Method::ConfirmSelect { no_wait: false },
            ChannelStage::Consume => consume_of(queue, tag, false),
            ChannelStage::Cancel => cancel(false),
            ChannelStage::Closing => {
                Method::ChannelClose { reply_code: 200, reply_text: "Goodbye", class_id: 0, method_id: 0 }
            }
            ChannelStage::Answer { .. } => Method::ChannelCloseOk {},
        })
    }

    /// Records that the method of [`Self::next_method`] was sent.
    pub(super) fn note_method_sent(&mut self) {
        let is_in_message = self.is_in_message;
        if core::mem::take(&mut self.has_crossed_close)
            || self.flow_to_answer.take_if(|_| !is_in_message).is_some()
        {
            return;
        }
        match self.stage {
            ChannelStage::Ready => self.restart_methods_left = self.restart_methods_left.saturating_sub(1),
            ChannelStage::Answer { reopens: false } => *self = Self::default(),
            ChannelStage::Answer { reopens: true } => {
                (self.stage, self.is_sent, self.is_stopped) = (ChannelStage::Open, false, false);
            }
            _ => self.is_sent = true,
        }
    }

    /// Enters a stage. Returns `None`: there is no event.
    fn enter<'i>(&mut self, stage: ChannelStage) -> Option<Event<'i>> {
        (self.stage, self.is_sent) = (stage, false);
        None
    }

    /// Enters the stage `Ready`. Returns the event of that.
    fn enter_ready<'i>(&mut self, rule: usize) -> Option<Event<'i>> {
        self.enter(ChannelStage::Ready);
        Some(Event::Ready { rule, depth: self.message_count })
    }

    /// Handles a method that the upstream sent on this channel. `rule` is the index of the channel's rule and `tag` the
    /// consumer tag.
    pub(super) fn handle_method<'i>(
        &mut self,
        rule: usize,
        method: &Method<'i>,
        tag: &str,
    ) -> Option<Event<'i>> {
        if matches!(self.stage, ChannelStage::Closed | ChannelStage::Answer { .. }) {
            return Some(unexpected_method(method));
        }
        if let Method::ChannelClose { reply_code: code, reply_text, class_id, method_id } = *method {
            let cause = Cause::new(format_args!("{code} {reply_text}"));
            let is_publish_error = (class_id, method_id) == BASIC_PUBLISH;
            return self.handle_close(code, Event::Closed { rule, code, is_publish_error, cause });
        }
        if self.stage == ChannelStage::Closing {
            return self.handle_while_closing(method);
        }
        if self.content != ArrivingContent::None {
            return Some(unexpected_method(method));
        }
        // An answer is expected only after the method of the stage was sent.
        let awaits = |stage: ChannelStage| self.stage == stage && self.is_sent;
        let is_fetch = self.consumer.is_some();
        let expects_confirms = self.stage == ChannelStage::Ready && !is_fetch;
        let expects_deliveries = matches!(self.stage, ChannelStage::Ready | ChannelStage::Cancel) && is_fetch;
        match *method {
            Method::ChannelOpenOk {} if awaits(ChannelStage::Open) => self
                .enter(if self.preparation.is_some() { ChannelStage::Prepare } else { ChannelStage::Select }),
            Method::QueueDeclareOk { queue, message_count, .. } if awaits(ChannelStage::Prepare) => {
                self.message_count = message_count;
                let has_to_bind =
                    self.preparation.as_mut().is_some_and(|progress| progress.note_declared(queue));
                if let Some((consumed, _)) = self.consumer.as_mut().filter(|_| has_to_bind) {
                    *consumed = queue.to_string();
                }
                self.enter(if has_to_bind { ChannelStage::Prepare } else { ChannelStage::Select })
            }
            Method::QueueBindOk {} if awaits(ChannelStage::Prepare) => self.enter(ChannelStage::Select),
            Method::ConfirmSelectOk {} if awaits(ChannelStage::Select) && !is_fetch => self.enter_ready(rule),
            Method::BasicQosOk {} if awaits(ChannelStage::Select) && is_fetch => {
                self.enter(ChannelStage::Consume)
            }
            Method::BasicQosOk {} if expects_deliveries => None,
            Method::BasicConsumeOk { consumer_tag }
                if awaits(ChannelStage::Consume) && consumer_tag == tag =>
            {
                self.enter_ready(rule)
            }
            Method::BasicCancelOk { consumer_tag } if awaits(ChannelStage::Cancel) && consumer_tag == tag => {
                self.enter(ChannelStage::Idle);
                Some(Event::Cancelled(rule))
            }
            Method::BasicAck { delivery_tag: number, multiple } if expects_confirms => {
                Some(Event::Confirm { rule, number, multiple, is_accepted: true })
            }
            Method::BasicNack { delivery_tag: number, multiple, .. } if expects_confirms => {
                Some(Event::Confirm { rule, number, multiple, is_accepted: false })
            }
            Method::BasicReturn { reply_code, .. } if expects_confirms => {
                // Only the header, which comes next, identifies the returned message.
                (self.content, self.return_code) = (ArrivingContent::Header, Some(reply_code));
                None
            }
            Method::ChannelFlow { active } if self.stage != ChannelStage::Open => {
                let was_stopped = core::mem::replace(&mut self.is_stopped, !active);
                self.flow_to_answer = Some(active);
                (active && was_stopped).then_some(Event::Resumed(rule))
            }
            Method::BasicDeliver { consumer_tag, delivery_tag, redelivered, exchange, routing_key }
                if expects_deliveries && consumer_tag == tag =>
            {
                (self.content, self.return_code) = (ArrivingContent::Header, None);
                Some(Event::Deliver { rule, tag: delivery_tag, redelivered, exchange, key: routing_key })
            }
            Method::BasicCancel { consumer_tag, .. } if expects_deliveries && consumer_tag == tag => {
                let queue = self.consumer.as_ref().map_or("", |(queue, _)| queue);
                let cause = Cause::new(format_args!("the upstream deleted or moved its queue '{queue}'"));
                Some(Event::QueueGone(rule, cause))
            }
            _ => Some(unexpected_method(method)),
        }
    }

    /// Handles a `channel.close` of the upstream with reply code `code`. Returns `closed`, or no event if the bridge was
    /// closing the channel itself or opens it again.
    fn handle_close<'i>(&mut self, code: u16, closed: Event<'i>) -> Option<Event<'i>> {
        match self.stage {
            // The two `channel.close` have crossed. The specification requires an answer to the upstream's one, too.
            ChannelStage::Closing if self.is_sent => {
                self.has_crossed_close = true;
                None
            }
            // The bridge's own `channel.close` was not sent yet, and the answer to the upstream's one replaces it.
            ChannelStage::Closing => self.enter(ChannelStage::Answer { reopens: false }),
            ChannelStage::Prepare
                if self.preparation.as_mut().is_some_and(|progress| progress.note_closed(code)) =>
            {
                self.flow_to_answer = None;
                self.enter(ChannelStage::Answer { reopens: true })
            }
            _ => {
                self.flow_to_answer = None;
                self.enter(ChannelStage::Answer { reopens: false });
                Some(closed)
            }
        }
    }

    /// Handles a method that arrives after the bridge has closed the channel: only the answer to the close matters.
    fn handle_while_closing<'i>(&mut self, method: &Method<'i>) -> Option<Event<'i>> {
        match method {
            // The upstream has answered, but the output buffer had no space for the answer to its crossed close.
            Method::ChannelCloseOk {} if core::mem::take(&mut self.has_crossed_close) => {
                self.enter(ChannelStage::Answer { reopens: false })
            }
            Method::ChannelCloseOk {} if self.is_sent => {
                *self = Self::default();
                None
            }
            _ if self.content != ArrivingContent::None => Some(unexpected_method(method)),
            Method::BasicDeliver { .. } | Method::BasicReturn { .. } => {
                self.content = ArrivingContent::Header;
                None
            }
            _ => None,
        }
    }

    // ---- contents

    /// Handles a content header. While the channel is being closed, there is no event.
    pub(super) fn take_header<'i>(
        &mut self,
        rule: usize,
        ContentHeader { properties, body_len, .. }: ContentHeader<'i>,
        origin: Origin,
    ) -> Option<Event<'i>> {
        if core::mem::replace(&mut self.content, ArrivingContent::of_body(body_len))
            != ArrivingContent::Header
        {
            return Some(link_lost(format_args!("the upstream sent an unexpected content header")));
        }
        (self.stage != ChannelStage::Closing).then(|| match self.return_code {
            Some(code) => Event::Returned { rule, code, id: own_id_of(properties, origin) },
            None => Event::Header { rule, properties, body_len },
        })
    }

    /// Handles a part of a body. There is an event only for a delivered message on a channel that is not being closed.
    pub(super) fn take_body<'i>(&mut self, rule: usize, octets: &'i [u8]) -> Option<Event<'i>> {
        let left = if let ArrivingContent::Body(left) = self.content { left } else { 0 };
        match left.checked_sub(octets.len() as u64).filter(|_| left > 0) {
            Some(left) => self.content = ArrivingContent::of_body(left),
            None => return Some(link_lost(format_args!("the upstream sent an unexpected content body"))),
        }
        let is_wanted = self.stage != ChannelStage::Closing && self.return_code.is_none();
        is_wanted.then_some(Event::Body(rule, octets))
    }

    /// Undoes [`Self::take_header`]: the same header will be passed in again.
    pub(super) const fn expect_header_again(&mut self) {
        self.content = ArrivingContent::Header;
    }
}

/// Returns `basic.consume` for a queue.
const fn consume_of<'m>(queue: &'m str, consumer_tag: &'m str, no_wait: bool) -> Method<'m> {
    let (no_local, no_ack, exclusive, arguments) = (false, false, false, Table::EMPTY);
    Method::BasicConsume { queue, consumer_tag, no_local, no_ack, exclusive, no_wait, arguments }
}

/// Declarations at the upstream before the messages of a rule flow. An existing queue is used as it is. A missing one
/// is declared. To fetch from an exchange, a temporary queue is declared and bound to the exchange.
///
/// ```text
/// queue.declare passive ─ ok ──────────────────────────────────────────→ ready
///           └─ 404, channel closed → channel.open → queue.declare durable ─ ok ─┘
/// an exchange: queue.declare exclusive, server-named ─ ok → queue.bind ─ ok → ready
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Preparation {
    /// A queue of this name. If it is missing, it is declared durable with these arguments.
    Queue(String, Vec<u8>),
    /// A queue that ends with the connection, bound to this exchange with this routing key.
    Source(String, String),
}

/// The current step of the declarations.
#[derive(Clone, PartialEq, Eq, Debug)]
enum PreparationStep {
    /// Declares the queue: passively if it has a configured name, to find out whether it exists.
    Look,
    /// Declares the configured queue, which is missing.
    Declare,
    /// Binds the temporary queue with this name.
    Bind(String),
}

/// The progress of the declarations of a channel.
#[derive(Debug)]
pub(super) struct PreparationProgress {
    preparation: Preparation,
    step: PreparationStep,
}

impl PreparationProgress {
    pub(super) const fn new(preparation: Preparation) -> Self {
        Self { preparation, step: PreparationStep::Look }
    }

    /// Returns the method to be sent.
    pub(super) fn method(&self) -> Method<'_> {
        let (auto_delete, no_wait) = (false, false);
        let (queue, (passive, durable, exclusive), arguments) = match (&self.preparation, &self.step) {
            (Preparation::Source(exchange, key), PreparationStep::Bind(queue)) => {
                let arguments = Table::EMPTY;
                return Method::QueueBind { queue, exchange, routing_key: key, no_wait, arguments };
            }
            (Preparation::Source(..), _) => ("", (false, false, true), Table::EMPTY),
            (Preparation::Queue(queue, arguments), PreparationStep::Declare) => {
                (&**queue, (false, true, false), Table::trusted(arguments))
            }
            (Preparation::Queue(queue, _), _) => (&**queue, (true, false, false), Table::EMPTY),
        };
        Method::QueueDeclare { queue, passive, durable, exclusive, auto_delete, no_wait, arguments }
    }

    /// Handles `queue.declare-ok` for the queue of this name. Returns whether it is the temporary queue of an exchange,
    /// which has to be bound and is the queue to be consumed.
    pub(super) fn note_declared(&mut self, queue: &str) -> bool {
        let is_source = matches!(self.preparation, Preparation::Source(..));
        if is_source {
            self.step = PreparationStep::Bind(queue.to_string());
        }
        is_source
    }

    /// Handles `channel.close` with this reply code. Returns whether the reason is that the configured queue is missing.
    /// Then the next step declares the queue on a new channel.
    pub(super) fn note_closed(&mut self, code: u16) -> bool {
        let is_missing = matches!(self.preparation, Preparation::Queue(..))
            && self.step == PreparationStep::Look
            && code == 404;
        if is_missing {
            self.step = PreparationStep::Declare;
        }
        is_missing
    }
}
