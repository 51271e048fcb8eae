//! One channel of a link: that of one rule, from its opening to its end.
//!
//! ```text
//! Closed ─ open → Open ─→ Prepare… ─→ Select ─┬ forward ────────────────→ Ready
//!   ▲                                         └ fetch ─→ Consume ───────→ Ready ─ cancel → Cancel → Idle
//!   │                                                                        │
//!   ├──── closed there: we answer ◄── from every stage ──────────────────────┤
//!   └──── Closing: we close, and read over what comes until that is answered ┘
//! ```
//!
//! Each stage but `Ready`, `Idle` and `Closed` has one method that is said first and then waits for its answer.
//!
//! Always true: what is said next follows from the stage alone, so what finds no room is said later; nothing is
//! heard on a channel that is closed; of a content a frame that does not belong where it comes is seen, and what
//! was announced is what comes.

use leveret_amqp::{ContentHeader, Method, Table};
use leveret_core::time::Deadline;

use super::client::{Cause, Event, lost, misplaced};
use super::headers::Origin;
use super::headers::own_id_of;

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Stage {
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
    /// The upstream has closed it, which is to be answered; or looked for something that was not there, and
    /// then it is opened again.
    Answer {
        again: bool,
    },
}

/// How far a content that comes in is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Content {
    /// There is none: a method comes next.
    #[default]
    None,
    /// Its header comes next.
    Header,
    /// So many octets of its body come next.
    Body(u64),
}

impl Content {
    /// So many octets of a body are still to come.
    const fn of_body(left: u64) -> Self {
        if left == 0 { Self::None } else { Self::Body(left) }
    }
}

/// One channel.
#[derive(Default, Debug)]
pub(super) struct Channel {
    stage: Stage,
    /// What the stage says first has been said.
    is_said: bool,
    due: Deadline,
    /// The queue that is consumed, and so many messages ahead; `None`: it is published to.
    consumes: Option<(String, u16)>,
    /// What is seen to before that.
    preparing: Option<Preparing>,
    depth: u32,
    content: Content,
    /// The code with which the content came back that came last, if it did.
    returning: Option<u16>,
    /// How far the consumer is in beginning again with another number: its methods that are still to be said.
    widening: u8,
    /// The upstream has asked for this by channel.flow, and is to be answered.
    flow: Option<bool>,
    /// The upstream takes no message for now.
    is_stopped: bool,
    /// A message is begun on it and not whole: no method may come between its frames.
    is_in_message: bool,
    /// The upstream has closed it while we did, and is to hear that it was heard.
    crossed: bool,
}

impl Channel {
    pub(super) fn is_closed(&self) -> bool {
        self.stage == Stage::Closed
    }

    pub(super) fn is_in_content(&self) -> bool {
        self.content != Content::None
    }

    pub(super) const fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    /// Notes whether a message is begun on it and not whole; says whether an answer has waited for its end.
    pub(super) const fn note_message(&mut self, is_cut: bool) -> bool {
        self.is_in_message = is_cut;
        !is_cut && self.flow.is_some()
    }

    /// When the upstream should have answered.
    pub(super) fn deadline(&self) -> Deadline {
        match self.stage {
            // Or it is our answer that is still to come.
            Stage::Closed | Stage::Ready | Stage::Idle | Stage::Answer { .. } => Deadline::NEVER,
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
        *self = Self { stage: Stage::Open, due, consumes, preparing, ..Self::default() };
    }

    pub(super) fn close(&mut self, due: Deadline) {
        self.due = due;
        match self.stage {
            Stage::Closed | Stage::Closing | Stage::Answer { again: false } => {}
            // Nobody there knows of it yet, or any more.
            Stage::Open if !self.is_said => *self = Self::default(),
            Stage::Answer { again: true } => self.stage = Stage::Answer { again: false },
            _ => (self.stage, self.is_said, self.widening, self.flow) = (Stage::Closing, false, 0, None),
        }
    }

    /// Its consumer is to end.
    pub(super) fn cancel(&mut self, due: Deadline) {
        if self.stage == Stage::Ready && self.consumes.is_some() {
            (self.stage, self.is_said, self.due) = (Stage::Cancel, false, due);
        }
    }

    /// So many messages are to come ahead. A consumer keeps the number that it began with, so it begins again.
    pub(super) fn widen(&mut self, ahead: u16) {
        if let (Stage::Ready, Some((_, now))) = (self.stage, &mut self.consumes) {
            (*now, self.widening) = (ahead, 3);
        }
    }

    /// What is to be said next, if anything is.
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
        if self.stage == Stage::Ready {
            return match self.widening {
                3 => Some(cancel(true)),
                2 => Some(qos),
                1 => Some(consume_of(queue, tag, true)),
                _ => None,
            };
        }
        if self.is_said {
            return None;
        }
        Some(match self.stage {
            Stage::Closed | Stage::Ready | Stage::Idle => return None,
            Stage::Open => Method::ChannelOpen {},
            Stage::Prepare => self.preparing.as_ref()?.method(),
            Stage::Select if self.consumes.is_some() => qos,
            Stage::Select => Method::ConfirmSelect { no_wait: false },
            Stage::Consume => consume_of(queue, tag, false),
            Stage::Cancel => cancel(false),
            Stage::Closing => {
                Method::ChannelClose { reply_code: 200, reply_text: "Goodbye", class_id: 0, method_id: 0 }
            }
            Stage::Answer { .. } => Method::ChannelCloseOk {},
        })
    }

    pub(super) fn note_said(&mut self) {
        let is_in_message = self.is_in_message;
        if core::mem::take(&mut self.crossed) || self.flow.take_if(|_| !is_in_message).is_some() {
            return;
        }
        match self.stage {
            Stage::Ready => self.widening = self.widening.saturating_sub(1),
            Stage::Answer { again: false } => *self = Self::default(),
            Stage::Answer { again: true } => {
                (self.stage, self.is_said, self.is_stopped) = (Stage::Open, false, false);
            }
            _ => self.is_said = true,
        }
    }

    /// Another stage begins, of which nobody else need know.
    fn begin<'i>(&mut self, stage: Stage) -> Option<Event<'i>> {
        (self.stage, self.is_said) = (stage, false);
        None
    }

    fn ready<'i>(&mut self, rule: usize) -> Option<Event<'i>> {
        self.begin(Stage::Ready);
        Some(Event::Ready { rule, depth: self.depth })
    }

    /// What the upstream says on it, which is the channel of this rule and has a consumer of this tag.
    pub(super) fn hear<'i>(&mut self, rule: usize, method: &Method<'i>, tag: &str) -> Option<Event<'i>> {
        if matches!(self.stage, Stage::Closed | Stage::Answer { .. }) {
            return Some(misplaced(method));
        }
        if let Method::ChannelClose { reply_code: code, reply_text, class_id, method_id } = *method {
            let cause = Cause::new(format_args!("{code} {reply_text}"));
            let over_publish = (class_id, method_id) == (60, 40);
            return self.hear_end(code, Event::Closed { rule, code, over_publish, cause });
        }
        if self.stage == Stage::Closing {
            return self.read_over(method);
        }
        if self.content != Content::None {
            return Some(misplaced(method));
        }
        // What was not said has no answer.
        let awaits = |stage: Stage| self.stage == stage && self.is_said;
        let is_fetch = self.consumes.is_some();
        let confirms = self.stage == Stage::Ready && !is_fetch;
        let flows = matches!(self.stage, Stage::Ready | Stage::Cancel) && is_fetch;
        match *method {
            Method::ChannelOpenOk {} if awaits(Stage::Open) => {
                self.begin(if self.preparing.is_some() { Stage::Prepare } else { Stage::Select })
            }
            Method::QueueDeclareOk { queue, message_count, .. } if awaits(Stage::Prepare) => {
                self.depth = message_count;
                let has_to_bind = self.preparing.as_mut().is_some_and(|it| it.has_to_bind(queue));
                if let Some((consumed, _)) = self.consumes.as_mut().filter(|_| has_to_bind) {
                    *consumed = queue.to_string();
                }
                self.begin(if has_to_bind { Stage::Prepare } else { Stage::Select })
            }
            Method::QueueBindOk {} if awaits(Stage::Prepare) => self.begin(Stage::Select),
            Method::ConfirmSelectOk {} if awaits(Stage::Select) && !is_fetch => self.ready(rule),
            Method::BasicQosOk {} if awaits(Stage::Select) && is_fetch => self.begin(Stage::Consume),
            Method::BasicQosOk {} if flows => None,
            Method::BasicConsumeOk { consumer_tag } if awaits(Stage::Consume) && consumer_tag == tag => {
                self.ready(rule)
            }
            Method::BasicCancelOk { consumer_tag } if awaits(Stage::Cancel) && consumer_tag == tag => {
                self.begin(Stage::Idle);
                Some(Event::Cancelled(rule))
            }
            Method::BasicAck { delivery_tag: number, multiple } if confirms => {
                Some(Event::Confirm { rule, number, multiple, is_taken: true })
            }
            Method::BasicNack { delivery_tag: number, multiple, .. } if confirms => {
                Some(Event::Confirm { rule, number, multiple, is_taken: false })
            }
            Method::BasicReturn { reply_code, .. } if confirms => {
                // Its header says which it is.
                (self.content, self.returning) = (Content::Header, Some(reply_code));
                None
            }
            Method::ChannelFlow { active } if self.stage != Stage::Open => {
                let was_stopped = core::mem::replace(&mut self.is_stopped, !active);
                self.flow = Some(active);
                (active && was_stopped).then_some(Event::Resumed(rule))
            }
            Method::BasicDeliver { consumer_tag, delivery_tag, redelivered, exchange, routing_key }
                if flows && consumer_tag == tag =>
            {
                (self.content, self.returning) = (Content::Header, None);
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

    /// The upstream has closed it, with this code, which others hear of as `closed` unless it was to end.
    fn hear_end<'i>(&mut self, code: u16, closed: Event<'i>) -> Option<Event<'i>> {
        match self.stage {
            // Ours has crossed it, and is answered all the same, as RabbitMQ does and the specification wants.
            Stage::Closing if self.is_said => {
                self.crossed = true;
                None
            }
            // It was as good as closed.
            Stage::Closing => self.begin(Stage::Answer { again: false }),
            Stage::Prepare if self.preparing.as_mut().is_some_and(|it| it.is_missing(code)) => {
                self.flow = None;
                self.begin(Stage::Answer { again: true })
            }
            _ => {
                self.flow = None;
                self.begin(Stage::Answer { again: false });
                Some(closed)
            }
        }
    }

    /// What comes while it is being closed is nobody's business any more.
    fn read_over<'i>(&mut self, method: &Method<'i>) -> Option<Event<'i>> {
        match method {
            // Ours to a close that crossed it may not have found room yet.
            Method::ChannelCloseOk {} if core::mem::take(&mut self.crossed) => {
                self.begin(Stage::Answer { again: false })
            }
            Method::ChannelCloseOk {} if self.is_said => {
                *self = Self::default();
                None
            }
            _ if self.content != Content::None => Some(misplaced(method)),
            Method::BasicDeliver { .. } | Method::BasicReturn { .. } => {
                self.content = Content::Header;
                None
            }
            _ => None,
        }
    }

    // ---- contents

    /// A content header came.
    pub(super) fn take_header<'i>(
        &mut self,
        rule: usize,
        ContentHeader { properties, body_len, .. }: ContentHeader<'i>,
        origin: Origin,
    ) -> Option<Event<'i>> {
        if core::mem::replace(&mut self.content, Content::of_body(body_len)) != Content::Header {
            return Some(lost(format_args!("a content header where it has no place")));
        }
        (self.stage != Stage::Closing).then(|| match self.returning {
            Some(code) => Event::Returned { rule, code, id: own_id_of(properties, origin) },
            None => Event::Header { rule, properties, body_len },
        })
    }

    /// Some of a body came.
    pub(super) fn take_body<'i>(&mut self, rule: usize, octets: &'i [u8]) -> Option<Event<'i>> {
        let left = if let Content::Body(left) = self.content { left } else { 0 };
        match left.checked_sub(octets.len() as u64).filter(|_| left > 0) {
            Some(left) => self.content = Content::of_body(left),
            None => return Some(lost(format_args!("a content body where it has no place"))),
        }
        let is_wanted = self.stage != Stage::Closing && self.returning.is_none();
        is_wanted.then_some(Event::Body(rule, octets))
    }

    pub(super) const fn take_header_back(&mut self) {
        self.content = Content::Header;
    }
}

const fn consume_of<'m>(queue: &'m str, consumer_tag: &'m str, no_wait: bool) -> Method<'m> {
    let (no_local, no_ack, exclusive, arguments) = (false, false, false, Table::EMPTY);
    Method::BasicConsume { queue, consumer_tag, no_local, no_ack, exclusive, no_wait, arguments }
}

// What a link needs at the upstream before messages flow: a queue that is declared where it is missing,
// or one behind an exchange that is fetched from.
//
// ```text
// queue.declare passive ─ ok ──────────────────────────────────────────→ ready
//          └─ 404, channel closed → channel.open → queue.declare durable ─ ok ─┘
// an exchange: queue.declare exclusive, named there ─ ok → queue.bind ─ ok → ready
// ```
//
// Always true: a queue that is there is used as it is; what is asked next follows from what was answered.

/// What is needed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Preparation {
    /// A queue of this name, durable and with these arguments if there is none.
    Queue(String, Vec<u8>),
    /// A queue that goes with the connection, bound to this exchange with this key.
    Source(String, String),
}

/// How far it is.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Step {
    Look,
    Declare,
    Bind(String),
}

/// What is needed, while it is seen to.
#[derive(Debug)]
pub(super) struct Preparing {
    needed: Preparation,
    step: Step,
}

impl Preparing {
    pub(super) const fn new(needed: Preparation) -> Self {
        Self { needed, step: Step::Look }
    }

    /// What is to be asked.
    pub(super) fn method(&self) -> Method<'_> {
        let (auto_delete, no_wait) = (false, false);
        let (queue, (passive, durable, exclusive), arguments) = match (&self.needed, &self.step) {
            (Preparation::Source(exchange, key), Step::Bind(queue)) => {
                let arguments = Table::EMPTY;
                return Method::QueueBind { queue, exchange, routing_key: key, no_wait, arguments };
            }
            (Preparation::Source(..), _) => ("", (false, false, true), Table::EMPTY),
            (Preparation::Queue(queue, arguments), Step::Declare) => {
                (&**queue, (false, true, false), Table::trusted(arguments))
            }
            (Preparation::Queue(queue, _), _) => (&**queue, (true, false, false), Table::EMPTY),
        };
        Method::QueueDeclare { queue, passive, durable, exclusive, auto_delete, no_wait, arguments }
    }

    /// A queue is there; whether it has to be bound, and is the one to be consumed from.
    pub(super) fn has_to_bind(&mut self, queue: &str) -> bool {
        let is_source = matches!(self.needed, Preparation::Source(..));
        if is_source {
            self.step = Step::Bind(queue.to_string());
        }
        is_source
    }

    /// The channel was closed with this code: whether that means no more than that the queue is not there.
    pub(super) fn is_missing(&mut self, code: u16) -> bool {
        let is_missing =
            matches!(self.needed, Preparation::Queue(..)) && self.step == Step::Look && code == 404;
        if is_missing {
            self.step = Step::Declare;
        }
        is_missing
    }
}
