//! One channel of a link, which serves one rule.
//!
//! ```text
//! Closed ─ open → Open ─→ Prepare… ─→ Select ─┬ forward ────────────────→ Ready
//!   ▲                                         └ fetch ─→ Consume ───────→ Ready ─ cancel → Cancel → Idle
//!   │                                                                        │
//!   ├──── closed by the upstream, answered ◄── from every stage ─────────────┤
//!   └──── Closing: closed by the bridge; input is ignored until the answer ──┘
//! ```
//!
//! Each stage except `Ready`, `Idle` and `Closed` sends one method first and then waits for its answer.
//!
//! # Invariants
//! - The next method follows from the stage alone, so a method that finds no space is sent later.
//! - Nothing is received on a closed channel.
//! - Frames of a content arrive in order, and the body has the announced length. Anything else ends the link.

use leveret_amqp::{ContentHeader, Method, Table};
use leveret_core::time::Deadline;

use super::client::{Cause, Event, lost, misplaced};
use super::headers::Origin;
use super::headers::own_id_of;

/// The stage of a channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum ChannelStage {
    #[default]
    Closed,
    Open,
    Prepare,
    Select,
    Consume,
    Ready,
    Cancel,
    Idle,
    Closing,
    /// The upstream has closed the channel, and the bridge has to answer. With `again` the reason was a missing
    /// queue, and the channel is opened again.
    Answer {
        again: bool,
    },
}

/// How much of an arriving content has arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum ArrivingContent {
    /// No content: a method comes next.
    #[default]
    None,
    /// The header comes next.
    Header,
    /// This number of bytes of the body is still to come.
    Body(u64),
}

impl ArrivingContent {
    /// The state with `left` bytes of the body still to come.
    const fn of_body(left: u64) -> Self {
        if left == 0 { Self::None } else { Self::Body(left) }
    }
}

/// One channel.
#[derive(Default, Debug)]
pub(super) struct Channel {
    stage: ChannelStage,
    /// Whether the first method of the stage was sent.
    is_sent: bool,
    due: Deadline,
    /// The queue that is consumed, and the prefetch count; `None` if the rule publishes.
    consumes: Option<(String, u16)>,
    /// The declarations that are made first.
    preparing: Option<Preparing>,
    depth: u32,
    content: ArrivingContent,
    /// The reply code of the returned message whose content is arriving.
    returning: Option<u16>,
    /// Number of methods still to be sent to restart the consumer with another prefetch count.
    widening: u8,
    /// The value of a channel.flow that has to be answered.
    flow: Option<bool>,
    /// Whether the upstream has paused publishing by channel.flow.
    is_stopped: bool,
    /// Whether a message has begun and is not complete. No method may come between its frames.
    is_in_message: bool,
    /// Both sides have closed the channel at the same time, and the upstream's close has to be answered.
    crossed: bool,
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

    /// Records whether a message has begun and is not complete. Returns whether an answer has waited for its end.
    pub(super) const fn note_message(&mut self, is_cut: bool) -> bool {
        self.is_in_message = is_cut;
        !is_cut && self.flow.is_some()
    }

    /// Returns when the upstream should have answered.
    pub(super) fn deadline(&self) -> Deadline {
        match self.stage {
            // Nothing is awaited, or the bridge itself has to answer.
            ChannelStage::Closed | ChannelStage::Ready | ChannelStage::Idle | ChannelStage::Answer { .. } => {
                Deadline::NEVER
            }
            _ => self.due,
        }
    }

    pub(super) fn open(
        &mut self,
        due: Deadline,
        consumes: Option<(String, u16)>,
        needed: Option<Preparation>,
    ) {
        assert!(self.is_closed(), "a channel is opened when it is closed on both sides");
        let preparing = needed.map(Preparing::new);
        *self = Self { stage: ChannelStage::Open, due, consumes, preparing, ..Self::default() };
    }

    pub(super) fn close(&mut self, due: Deadline) {
        self.due = due;
        match self.stage {
            ChannelStage::Closed | ChannelStage::Closing | ChannelStage::Answer { again: false } => {}
            // The upstream does not know the channel yet, or no longer.
            ChannelStage::Open if !self.is_sent => *self = Self::default(),
            ChannelStage::Answer { again: true } => self.stage = ChannelStage::Answer { again: false },
            _ => {
                (self.stage, self.is_sent, self.widening, self.flow) = (ChannelStage::Closing, false, 0, None)
            }
        }
    }

    /// Ends the consumer.
    pub(super) fn cancel(&mut self, due: Deadline) {
        if self.stage == ChannelStage::Ready && self.consumes.is_some() {
            (self.stage, self.is_sent, self.due) = (ChannelStage::Cancel, false, due);
        }
    }

    /// Changes the prefetch count. A consumer keeps the count it started with, so it is restarted.
    pub(super) fn widen(&mut self, ahead: u16) {
        if let (ChannelStage::Ready, Some((_, now))) = (self.stage, &mut self.consumes) {
            (*now, self.widening) = (ahead, 3);
        }
    }

    /// Returns the method to be sent next, if any.
    pub(super) fn next_method<'m>(&'m self, tag: &'m str) -> Option<Method<'m>> {
        let queue_and_ahead = self.consumes.as_ref();
        let ahead = queue_and_ahead.map_or(0, |(_, ahead)| *ahead);
        let queue = queue_and_ahead.map_or("", |(queue, _)| queue);
        let qos = Method::BasicQos { prefetch_size: 0, prefetch_count: ahead, global: false };
        let cancel = |no_wait| Method::BasicCancel { consumer_tag: tag, no_wait };
        if self.crossed {
            return Some(Method::ChannelCloseOk {});
        }
        if let Some(active) = self.flow.filter(|_| !self.is_in_message) {
            return Some(Method::ChannelFlowOk { active });
        }
        if self.stage == ChannelStage::Ready {
            return match self.widening {
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
            ChannelStage::Prepare => self.preparing.as_ref()?.method(),
            ChannelStage::Select if self.consumes.is_some() => qos,
            ChannelStage::Select => Method::ConfirmSelect { no_wait: false },
            ChannelStage::Consume => consume_of(queue, tag, false),
            ChannelStage::Cancel => cancel(false),
            ChannelStage::Closing => {
                Method::ChannelClose { reply_code: 200, reply_text: "Goodbye", class_id: 0, method_id: 0 }
            }
            ChannelStage::Answer { .. } => Method::ChannelCloseOk {},
        })
    }

    pub(super) fn note_said(&mut self) {
        let is_in_message = self.is_in_message;
        if core::mem::take(&mut self.crossed) || self.flow.take_if(|_| !is_in_message).is_some() {
            return;
        }
        match self.stage {
            ChannelStage::Ready => self.widening = self.widening.saturating_sub(1),
            ChannelStage::Answer { again: false } => *self = Self::default(),
            ChannelStage::Answer { again: true } => {
                (self.stage, self.is_sent, self.is_stopped) = (ChannelStage::Open, false, false);
            }
            _ => self.is_sent = true,
        }
    }

    /// Enters another stage that causes no event.
    fn begin<'i>(&mut self, stage: ChannelStage) -> Option<Event<'i>> {
        (self.stage, self.is_sent) = (stage, false);
        None
    }

    fn ready<'i>(&mut self, rule: usize) -> Option<Event<'i>> {
        self.begin(ChannelStage::Ready);
        Some(Event::Ready { rule, depth: self.depth })
    }

    /// Handles a method of the upstream on this channel. `rule` is its rule and `tag` its consumer tag.
    pub(super) fn hear<'i>(&mut self, rule: usize, method: &Method<'i>, tag: &str) -> Option<Event<'i>> {
        if matches!(self.stage, ChannelStage::Closed | ChannelStage::Answer { .. }) {
            return Some(misplaced(method));
        }
        if let Method::ChannelClose { reply_code: code, reply_text, class_id, method_id } = *method {
            let cause = Cause::new(format_args!("{code} {reply_text}"));
            let over_publish = (class_id, method_id) == (60, 40);
            return self.hear_end(code, Event::Closed { rule, code, over_publish, cause });
        }
        if self.stage == ChannelStage::Closing {
            return self.read_over(method);
        }
        if self.content != ArrivingContent::None {
            return Some(misplaced(method));
        }
        // A method that was not sent has no answer.
        let awaits = |stage: ChannelStage| self.stage == stage && self.is_sent;
        let is_fetch = self.consumes.is_some();
        let confirms = self.stage == ChannelStage::Ready && !is_fetch;
        let flows = matches!(self.stage, ChannelStage::Ready | ChannelStage::Cancel) && is_fetch;
        match *method {
            Method::ChannelOpenOk {} if awaits(ChannelStage::Open) => self
                .begin(if self.preparing.is_some() { ChannelStage::Prepare } else { ChannelStage::Select }),
            Method::QueueDeclareOk { queue, message_count, .. } if awaits(ChannelStage::Prepare) => {
                self.depth = message_count;
                let has_to_bind = self.preparing.as_mut().is_some_and(|it| it.has_to_bind(queue));
                if let Some((consumed, _)) = self.consumes.as_mut().filter(|_| has_to_bind) {
                    *consumed = queue.to_string();
                }
                self.begin(if has_to_bind { ChannelStage::Prepare } else { ChannelStage::Select })
            }
            Method::QueueBindOk {} if awaits(ChannelStage::Prepare) => self.begin(ChannelStage::Select),
            Method::ConfirmSelectOk {} if awaits(ChannelStage::Select) && !is_fetch => self.ready(rule),
            Method::BasicQosOk {} if awaits(ChannelStage::Select) && is_fetch => {
                self.begin(ChannelStage::Consume)
            }
            Method::BasicQosOk {} if flows => None,
            Method::BasicConsumeOk { consumer_tag }
                if awaits(ChannelStage::Consume) && consumer_tag == tag =>
            {
                self.ready(rule)
            }
            Method::BasicCancelOk { consumer_tag } if awaits(ChannelStage::Cancel) && consumer_tag == tag => {
                self.begin(ChannelStage::Idle);
                Some(Event::Cancelled(rule))
            }
            Method::BasicAck { delivery_tag: number, multiple } if confirms => {
                Some(Event::Confirm { rule, number, multiple, is_taken: true })
            }
            Method::BasicNack { delivery_tag: number, multiple, .. } if confirms => {
                Some(Event::Confirm { rule, number, multiple, is_taken: false })
            }
            Method::BasicReturn { reply_code, .. } if confirms => {
                // The header tells which message it is.
                (self.content, self.returning) = (ArrivingContent::Header, Some(reply_code));
                None
            }
            Method::ChannelFlow { active } if self.stage != ChannelStage::Open => {
                let was_stopped = core::mem::replace(&mut self.is_stopped, !active);
                self.flow = Some(active);
                (active && was_stopped).then_some(Event::Resumed(rule))
            }
            Method::BasicDeliver { consumer_tag, delivery_tag, redelivered, exchange, routing_key }
                if flows && consumer_tag == tag =>
            {
                (self.content, self.returning) = (ArrivingContent::Header, None);
                Some(Event::Deliver { rule, tag: delivery_tag, redelivered, exchange, key: routing_key })
            }
            Method::BasicCancel { consumer_tag, .. } if flows && consumer_tag == tag => {
                let queue = self.consumes.as_ref().map_or("", |(queue, _)| queue);
                let cause = Cause::new(format_args!("its queue '{queue}' was deleted, or moved"));
                Some(Event::QueueGone(rule, cause))
            }
            _ => Some(misplaced(method)),
        }
    }

    /// Handles a channel.close with this code. `closed` is the event, unless the channel was to end anyway.
    fn hear_end<'i>(&mut self, code: u16, closed: Event<'i>) -> Option<Event<'i>> {
        match self.stage {
            // Both closes have crossed. The upstream's is answered nevertheless, as RabbitMQ does and the
            // specification requires.
            ChannelStage::Closing if self.is_sent => {
                self.crossed = true;
                None
            }
            // The channel.close was not sent yet: the channel counts as closed.
            ChannelStage::Closing => self.begin(ChannelStage::Answer { again: false }),
            ChannelStage::Prepare if self.preparing.as_mut().is_some_and(|it| it.is_missing(code)) => {
                self.flow = None;
                self.begin(ChannelStage::Answer { again: true })
            }
            _ => {
                self.flow = None;
                self.begin(ChannelStage::Answer { again: false });
                Some(closed)
            }
        }
    }

    /// Ignores what arrives while the channel is being closed.
    fn read_over<'i>(&mut self, method: &Method<'i>) -> Option<Event<'i>> {
        match method {
            // The answer to a crossed close may not have found space yet.
            Method::ChannelCloseOk {} if core::mem::take(&mut self.crossed) => {
                self.begin(ChannelStage::Answer { again: false })
            }
            Method::ChannelCloseOk {} if self.is_sent => {
                *self = Self::default();
                None
            }
            _ if self.content != ArrivingContent::None => Some(misplaced(method)),
            Method::BasicDeliver { .. } | Method::BasicReturn { .. } => {
                self.content = ArrivingContent::Header;
                None
            }
            _ => None,
        }
    }

    // ---- contents

    /// Handles a content header.
    pub(super) fn take_header<'i>(
        &mut self,
        rule: usize,
        ContentHeader { properties, body_len, .. }: ContentHeader<'i>,
        origin: Origin,
    ) -> Option<Event<'i>> {
        if core::mem::replace(&mut self.content, ArrivingContent::of_body(body_len))
            != ArrivingContent::Header
        {
            return Some(lost(format_args!("a content header where it has no place")));
        }
        (self.stage != ChannelStage::Closing).then(|| match self.returning {
            Some(code) => Event::Returned { rule, code, id: own_id_of(properties, origin) },
            None => Event::Header { rule, properties, body_len },
        })
    }

    /// Handles a part of a body.
    pub(super) fn take_body<'i>(&mut self, rule: usize, octets: &'i [u8]) -> Option<Event<'i>> {
        let left = if let ArrivingContent::Body(left) = self.content { left } else { 0 };
        match left.checked_sub(octets.len() as u64).filter(|_| left > 0) {
            Some(left) => self.content = ArrivingContent::of_body(left),
            None => return Some(lost(format_args!("a content body where it has no place"))),
        }
        let is_wanted = self.stage != ChannelStage::Closing && self.returning.is_none();
        is_wanted.then_some(Event::Body(rule, octets))
    }

    pub(super) const fn take_header_back(&mut self) {
        self.content = ArrivingContent::Header;
    }
}

const fn consume_of<'m>(queue: &'m str, consumer_tag: &'m str, no_wait: bool) -> Method<'m> {
    let (no_local, no_ack, exclusive, arguments) = (false, false, false, Table::EMPTY);
    Method::BasicConsume { queue, consumer_tag, no_local, no_ack, exclusive, no_wait, arguments }
}

/// What a link declares at the upstream before messages flow: a queue that is declared if it is missing, or a
/// queue bound to an exchange that is fetched from. An existing queue is used as it is.
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

/// The step of a preparation.
#[derive(Clone, PartialEq, Eq, Debug)]
enum PreparationStep {
    Look,
    Declare,
    Bind(String),
}

/// A preparation in progress.
#[derive(Debug)]
pub(super) struct Preparing {
    needed: Preparation,
    step: PreparationStep,
}

impl Preparing {
    pub(super) const fn new(needed: Preparation) -> Self {
        Self { needed, step: PreparationStep::Look }
    }

    /// Returns the method to be sent.
    pub(super) fn method(&self) -> Method<'_> {
        let (auto_delete, no_wait) = (false, false);
        let (queue, (passive, durable, exclusive), arguments) = match (&self.needed, &self.step) {
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

    /// Handles queue.declare-ok. Returns whether the queue has to be bound, in which case it is consumed.
    pub(super) fn has_to_bind(&mut self, queue: &str) -> bool {
        let is_source = matches!(self.needed, Preparation::Source(..));
        if is_source {
            self.step = PreparationStep::Bind(queue.to_string());
        }
        is_source
    }

    /// Returns whether the channel was closed with this code only because the queue is missing.
    pub(super) fn is_missing(&mut self, code: u16) -> bool {
        let is_missing = matches!(self.needed, Preparation::Queue(..))
            && self.step == PreparationStep::Look
            && code == 404;
        if is_missing {
            self.step = PreparationStep::Declare;
        }
        is_missing
    }
}
