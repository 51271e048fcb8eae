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
//! heard on a channel that is closed.

use crate::time::Deadline;
use crate::wire::{Method, Table};

use super::cause::Cause;
use super::content::Content;
use super::preparation::{Preparation, Preparations};

/// What a channel is opened for.
#[derive(Debug)]
pub enum Purpose {
    /// Messages are published there, after this was seen to.
    Publish(Vec<Preparation>),
    /// A queue is consumed there, with so many messages ahead, after this was seen to.
    Consume(String, u16, Vec<Preparation>),
}

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

/// What a method led to.
pub(super) enum Heard {
    /// It has no place here.
    Misplaced,
    /// Nothing that anybody else need know.
    GoOn,
    /// Messages can flow; so many were in the queue there.
    Ready(u32),
    /// A confirm, a delivery, or something that came back.
    Content,
    /// The consumer is over.
    Cancelled,
    /// The upstream ended the consumer.
    Gone(Cause),
    /// The upstream closed the channel.
    Closed { code: u16, over_publish: bool, cause: Cause },
}

/// Of which content a frame is.
pub(super) struct Belongs {
    /// Somebody is to hear of it: the channel is not being closed.
    pub(super) wanted: bool,
    /// It came back, with this code.
    pub(super) returned: Option<u16>,
}

/// One channel.
#[derive(Debug)]
pub(super) struct Channel {
    stage: Stage,
    /// What the stage says first has been said.
    is_said: bool,
    due: Deadline,
    /// The queue that is consumed, and so many messages ahead; `None`: it is published to.
    consumes: Option<(String, u16)>,
    preparations: Preparations,
    depth: u32,
    content: Content,
    /// The code of a return whose content is being read.
    returning: Option<u16>,
    /// How far the consumer is in beginning again with another number: its methods that are still to be said.
    widening: u8,
    /// The upstream has asked for this, and is to hear that it was heard.
    flow: Option<bool>,
    /// The upstream has closed it while we did, and is to hear that it was heard.
    crossed: bool,
}

impl Default for Channel {
    fn default() -> Self {
        Self {
            stage: Stage::Closed,
            is_said: false,
            due: Deadline::NEVER,
            consumes: None,
            preparations: Preparations::default(),
            depth: 0,
            content: Content::None,
            returning: None,
            widening: 0,
            flow: None,
            crossed: false,
        }
    }
}

impl Channel {
    pub(super) fn is_closed(&self) -> bool {
        self.stage == Stage::Closed
    }

    pub(super) fn is_in_content(&self) -> bool {
        self.content != Content::None
    }

    /// When the upstream should have answered.
    pub(super) fn deadline(&self) -> Deadline {
        match self.stage {
            // Or it is our answer that is still to come.
            Stage::Closed | Stage::Ready | Stage::Idle | Stage::Answer { .. } => Deadline::NEVER,
            _ => self.due,
        }
    }

    pub(super) fn open(&mut self, due: Deadline, purpose: Purpose) {
        assert!(self.is_closed(), "a channel is opened when it is closed on both sides");
        let (consumes, preparations) = match purpose {
            Purpose::Publish(preparations) => (None, preparations),
            Purpose::Consume(queue, ahead, preparations) => (Some((queue, ahead)), preparations),
        };
        let preparations = Preparations::new(preparations);
        *self = Self { stage: Stage::Open, due, consumes, preparations, ..Self::default() };
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
        if let Some(active) = self.flow {
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
            Stage::Prepare => self.preparations.method()?,
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
        if core::mem::take(&mut self.crossed) || self.flow.take().is_some() {
            return;
        }
        match self.stage {
            Stage::Ready => self.widening = self.widening.saturating_sub(1),
            Stage::Answer { again: false } => *self = Self::default(),
            Stage::Answer { again: true } => (self.stage, self.is_said) = (Stage::Open, false),
            _ => self.is_said = true,
        }
    }

    fn begin(&mut self, stage: Stage) -> Heard {
        (self.stage, self.is_said) = (stage, false);
        Heard::GoOn
    }

    fn go_on_preparing(&mut self) -> Heard {
        let has_more = self.preparations.method().is_some();
        self.begin(if has_more { Stage::Prepare } else { Stage::Select })
    }

    fn ready(&mut self) -> Heard {
        self.begin(Stage::Ready);
        Heard::Ready(self.depth)
    }

    /// What the upstream says on it.
    pub(super) fn hear(&mut self, method: &Method<'_>, tag: &str) -> Heard {
        if let Method::ChannelClose { reply_code, reply_text, class_id, method_id } = *method {
            return self.hear_end(reply_code, reply_text, (class_id, method_id));
        }
        if self.stage == Stage::Closing {
            return self.read_over(method);
        }
        if self.content != Content::None {
            return Heard::Misplaced;
        }
        // What was not said has no answer.
        let awaits = |stage: Stage| self.stage == stage && self.is_said;
        let flows = matches!(self.stage, Stage::Ready | Stage::Cancel) && self.consumes.is_some();
        match *method {
            Method::ChannelOpenOk {} if awaits(Stage::Open) => self.go_on_preparing(),
            Method::QueueDeclareOk { queue, message_count, .. } if awaits(Stage::Prepare) => {
                self.depth = message_count;
                if self.preparations.note_declared(queue)
                    && let Some((consumed, _)) = &mut self.consumes
                {
                    *consumed = queue.to_string();
                }
                self.go_on_preparing()
            }
            Method::QueueBindOk {} if awaits(Stage::Prepare) => {
                self.preparations.note_bound();
                self.go_on_preparing()
            }
            Method::ConfirmSelectOk {} if awaits(Stage::Select) && self.consumes.is_none() => self.ready(),
            Method::BasicQosOk {} if awaits(Stage::Select) && self.consumes.is_some() => {
                self.begin(Stage::Consume)
            }
            Method::BasicQosOk {} if flows => Heard::GoOn,
            Method::BasicConsumeOk { consumer_tag } if awaits(Stage::Consume) && consumer_tag == tag => {
                self.ready()
            }
            Method::BasicCancelOk { consumer_tag } if awaits(Stage::Cancel) && consumer_tag == tag => {
                self.begin(Stage::Idle);
                Heard::Cancelled
            }
            Method::BasicAck { .. } | Method::BasicNack { .. }
                if self.stage == Stage::Ready && self.consumes.is_none() =>
            {
                Heard::Content
            }
            Method::BasicReturn { reply_code, .. }
                if self.stage == Stage::Ready && self.consumes.is_none() =>
            {
                self.returning = Some(reply_code);
                self.begin_content()
            }
            Method::ChannelFlow { active }
                if matches!(self.stage, Stage::Ready | Stage::Cancel | Stage::Idle) =>
            {
                self.flow = Some(active);
                Heard::GoOn
            }
            Method::BasicDeliver { consumer_tag, .. } if flows && consumer_tag == tag => self.begin_content(),
            Method::BasicCancel { consumer_tag, .. } if flows && consumer_tag == tag => {
                let queue = self.consumes.as_ref().map_or("", |(queue, _)| queue);
                Heard::Gone(Cause::new(format_args!("its queue '{queue}' was deleted, or moved")))
            }
            _ => Heard::Misplaced,
        }
    }

    fn hear_end(&mut self, code: u16, text: &str, over: (u16, u16)) -> Heard {
        match self.stage {
            Stage::Closed | Stage::Answer { .. } => return Heard::Misplaced,
            // Ours has crossed it, and is answered all the same, as RabbitMQ does and the specification wants.
            Stage::Closing if self.is_said => {
                self.crossed = true;
                return Heard::GoOn;
            }
            // It was as good as closed.
            Stage::Closing => return self.begin(Stage::Answer { again: false }),
            Stage::Prepare if self.preparations.is_missing(code) => {
                return self.begin(Stage::Answer { again: true });
            }
            _ => {}
        }
        self.flow = None;
        self.begin(Stage::Answer { again: false });
        let over_publish = over == (60, 40);
        Heard::Closed { code, over_publish, cause: Cause::new(format_args!("{code} {text}")) }
    }

    /// What comes while it is being closed is nobody's business any more.
    fn read_over(&mut self, method: &Method<'_>) -> Heard {
        match method {
            // Ours to a close that crossed it may not have found room yet.
            Method::ChannelCloseOk {} if core::mem::take(&mut self.crossed) => {
                self.begin(Stage::Answer { again: false })
            }
            Method::ChannelCloseOk {} if self.is_said => {
                *self = Self::default();
                Heard::GoOn
            }
            _ if self.content != Content::None => Heard::Misplaced,
            Method::BasicDeliver { .. } | Method::BasicReturn { .. } => match self.begin_content() {
                Heard::Content => Heard::GoOn,
                heard => heard,
            },
            _ => Heard::GoOn,
        }
    }

    // ---- contents

    fn begin_content(&mut self) -> Heard {
        match self.content.begin() {
            true => Heard::Content,
            false => Heard::Misplaced,
        }
    }

    fn belongs(&self) -> Belongs {
        Belongs { wanted: self.stage != Stage::Closing, returned: self.returning }
    }

    /// A header came; `None`: it is out of place.
    pub(super) fn take_header(&mut self, body_len: u64) -> Option<Belongs> {
        let belongs = self.content.take_header(body_len).then(|| self.belongs());
        self.end_return();
        belongs
    }

    /// So many octets of a body came; `None`: they are out of place.
    pub(super) fn take_body(&mut self, len: usize) -> Option<Belongs> {
        let belongs = self.content.take_body(len).then(|| self.belongs());
        self.end_return();
        belongs
    }

    fn end_return(&mut self) {
        if self.content == Content::None {
            self.returning = None;
        }
    }

    pub(super) const fn take_header_back(&mut self) {
        self.content = Content::Header;
    }
}

const fn consume_of<'m>(queue: &'m str, consumer_tag: &'m str, no_wait: bool) -> Method<'m> {
    let (no_local, no_ack, exclusive, arguments) = (false, false, false, Table::EMPTY);
    Method::BasicConsume { queue, consumer_tag, no_local, no_ack, exclusive, no_wait, arguments }
}
