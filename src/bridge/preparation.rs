//! What a link needs at the upstream before messages flow: a queue that is declared where it is missing,
//! or one behind an exchange that is fetched from.
//!
//! ```text
//! queue.declare passive ─ ok ──────────────────────────────────────────→ ready
//!          └─ 404, channel closed → channel.open → queue.declare durable ─ ok ─┘
//! an exchange: queue.declare exclusive, named there ─ ok → queue.bind ─ ok → ready
//! ```
//!
//! Always true: a queue that is there is used as it is; what is asked next follows from what was answered.

use leveret_amqp::{Method, Table};

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
