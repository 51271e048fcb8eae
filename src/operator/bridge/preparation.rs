//! What a link needs at the upstream before messages flow: queues that are declared where they are missing,
//! and a queue behind an exchange that is fetched from.
//!
//! ```text
//! queue.declare passive ─ ok ──────────────────────────────────────────→ the next
//!          └─ 404, channel closed → channel.open → queue.declare durable ─ ok ─┘
//! an exchange: queue.declare exclusive, named there ─ ok → queue.bind ─ ok → the next
//! ```
//!
//! Always true: a queue that is there is used as it is; what is asked next follows from what was answered.

use crate::wire::{Method, Table};

/// One thing that is needed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Preparation {
    /// A queue of this name, durable and with these arguments if there is none.
    Queue(String, Vec<u8>),
    /// A queue that goes with the connection, bound to this exchange with this key.
    Source(String, String),
}

/// How far one of them is.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Step {
    Look,
    Declare,
    Bind(String),
}

/// All of them, the next one first.
#[derive(Default, Debug)]
pub(super) struct Preparations {
    list: std::vec::IntoIter<Preparation>,
    next: Option<(Preparation, Step)>,
}

impl Preparations {
    pub(super) fn new(list: Vec<Preparation>) -> Self {
        let mut all = Self { list: list.into_iter(), next: None };
        all.go_on();
        all
    }

    /// The next one is needed, for this one is there.
    pub(super) fn go_on(&mut self) {
        self.next = self.list.next().map(|next| (next, Step::Look));
    }

    /// What is to be asked; `None`: everything is there.
    pub(super) fn method(&self) -> Option<Method<'_>> {
        let (auto_delete, no_wait) = (false, false);
        let (queue, (passive, durable, exclusive), arguments) = match self.next.as_ref()? {
            (Preparation::Source(exchange, key), Step::Bind(queue)) => {
                let arguments = Table::EMPTY;
                return Some(Method::QueueBind { queue, exchange, routing_key: key, no_wait, arguments });
            }
            (Preparation::Source(..), _) => ("", (false, false, true), Table::EMPTY),
            (Preparation::Queue(queue, arguments), Step::Declare) => {
                (&**queue, (false, true, false), Table::trusted(arguments))
            }
            (Preparation::Queue(queue, _), _) => (&**queue, (true, false, false), Table::EMPTY),
        };
        Some(Method::QueueDeclare { queue, passive, durable, exclusive, auto_delete, no_wait, arguments })
    }

    /// A queue is there; whether its name stands for an exchange, to be consumed from.
    pub(super) fn note_declared(&mut self, queue: &str) -> bool {
        match &mut self.next {
            Some((Preparation::Source(..), step)) => {
                *step = Step::Bind(queue.to_string());
                true
            }
            _ => {
                self.go_on();
                false
            }
        }
    }

    /// The channel was closed with this code: whether that means no more than that the queue is not there.
    pub(super) fn is_missing(&mut self, code: u16) -> bool {
        match &mut self.next {
            Some((Preparation::Queue(..), step @ Step::Look)) if code == 404 => {
                *step = Step::Declare;
                true
            }
            _ => false,
        }
    }
}
