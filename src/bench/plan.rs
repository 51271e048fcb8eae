//! Who publishes to which queue, and who consumes from it.
//!
//! Always true: every queue has a publisher and, if there are consumers at all, a consumer; both sides and
//! the final count derive what must arrive from the same functions here.

use super::body::Tally;
use super::options::{Kind, Options, QUEUE_DIGITS};

/// The routes of a run.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    name: String,
    exchange: Option<Kind>,
    queues: u32,
    publishers: u16,
    consumers: u16,
}

/// What a publisher sends to a queue: message `first`, then every `step`th.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) first: u64,
    pub(super) step: u64,
}

impl Share {
    /// How many of `published` messages that is.
    pub(super) const fn count(self, published: u64) -> u64 {
        published.saturating_sub(self.first).div_ceil(self.step)
    }

    /// What consumers of the queue must have received of them.
    pub(super) fn tally(self, published: u64) -> Tally {
        Tally::of(self.first, self.step, self.count(published))
    }
}

impl Plan {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            // Two benches against one broker do not meet.
            name: format!("leveret-bench-{}", std::process::id()),
            exchange: options.exchange,
            queues: options.queues,
            publishers: options.publishers,
            consumers: options.consumers,
        }
    }

    /// The exchange's name, empty for the default exchange.
    pub(super) fn exchange(&self) -> &str {
        if self.exchange.is_some() { &self.name } else { "" }
    }

    pub(super) fn queue(&self, queue: u32) -> String {
        format!("{}-{queue:0QUEUE_DIGITS$}", self.name)
    }

    /// The key that brings a message to a queue. All have the same length and end in the queue's digits.
    pub(super) fn routing_key(&self, queue: u32) -> String {
        match self.exchange {
            Some(Kind::Topic) => format!("bench.{}.{queue:0QUEUE_DIGITS$}", std::process::id()),
            _ => self.queue(queue),
        }
    }

    /// What a queue is bound with, so that its messages match.
    pub(super) fn binding_key(&self, queue: u32) -> String {
        match self.exchange {
            Some(Kind::Topic) => format!("bench.*.{queue:0QUEUE_DIGITS$}.#"),
            _ => self.queue(queue),
        }
    }

    /// A key for a binding that no message needs.
    pub(super) fn other_key(&self, number: u32) -> String {
        match self.exchange {
            Some(Kind::Topic) => format!("bench.*.other.{number}"),
            _ => format!("{}-other-{number}", self.name),
        }
    }

    /// The queues a publisher names in turn.
    pub(super) fn addressed_by(&self, publisher: u16) -> Vec<u32> {
        match self.exchange {
            // Whatever the key, all of them get it.
            Some(Kind::Fanout) => vec![0],
            _ => turns(u32::from(publisher), u32::from(self.publishers), self.queues),
        }
    }

    /// What of a publisher's messages gets into a queue.
    pub(super) fn share(&self, publisher: u16, queue: u32) -> Option<Share> {
        if self.exchange == Some(Kind::Fanout) {
            return Some(Share { first: 0, step: 1 });
        }
        let addressed = self.addressed_by(publisher);
        let first = addressed.iter().position(|other| *other == queue)?;
        Some(Share { first: first as u64, step: addressed.len() as u64 })
    }

    /// The queues a consumer consumes from.
    pub(super) fn consumed_by(&self, consumer: u16) -> Vec<u32> {
        turns(u32::from(consumer), u32::from(self.consumers), self.queues)
    }

    /// Whether every queue has one consumer.
    pub(super) const fn consumers_are_alone(&self) -> bool {
        self.consumers as u32 <= self.queues
    }

    /// Messages that must come out of a queue, given how many each publisher sent.
    pub(super) fn expected_in(&self, queue: u32, published: &[u64]) -> u64 {
        let publishers = (0..self.publishers).zip(published);
        publishers.filter_map(|(id, count)| Some(self.share(id, queue)?.count(*count))).sum()
    }
}

/// What falls to one of several who take turns: every so-maniest thing, or one when there are too few.
fn turns(me: u32, of: u32, things: u32) -> Vec<u32> {
    if things < of {
        return vec![me % things];
    }
    (me..things).step_by(of.max(1) as usize).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(exchange: Option<Kind>, queues: u32, publishers: u16, consumers: u16) -> Plan {
        Plan { name: "n".to_string(), exchange, queues, publishers, consumers }
    }

    #[test]
    fn every_queue_gets_what_is_sent_to_it() {
        for (queues, publishers) in [(1, 1), (5, 2), (2, 5), (3, 3)] {
            let plan = plan(None, queues, publishers, 1);
            let published: Vec<u64> = (0..publishers).map(|id| 10 + u64::from(id)).collect();
            let expected: u64 = (0..queues).map(|queue| plan.expected_in(queue, &published)).sum();
            assert_eq!(expected, published.iter().sum::<u64>(), "{queues} {publishers}");
        }
        let fanout = plan(Some(Kind::Fanout), 3, 2, 1);
        assert_eq!(fanout.expected_in(2, &[10, 11]), 21);
    }

    #[test]
    fn consumers_take_turns() {
        let five = plan(None, 5, 1, 2);
        assert_eq!((five.consumed_by(0), five.consumed_by(1)), (vec![0, 2, 4], vec![1, 3]));
        let two = plan(None, 2, 1, 5);
        assert_eq!((two.consumed_by(0), two.consumed_by(3)), (vec![0], vec![1]));
        assert!(five.consumers_are_alone() && !two.consumers_are_alone());
    }

    #[test]
    fn shares_count_what_was_reached() {
        let share = Share { first: 2, step: 5 };
        assert_eq!([0, 2, 3, 7, 8].map(|published| share.count(published)), [0, 0, 1, 1, 2]);
        assert_eq!(share.tally(8).count, 2);
    }

    #[test]
    fn keys_end_in_the_queue() {
        for kind in [None, Some(Kind::Direct), Some(Kind::Topic)] {
            assert!(plan(kind, 9, 1, 1).routing_key(7).ends_with("00007"), "{kind:?}");
        }
    }
}
