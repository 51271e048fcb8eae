//! An upstream queue that a bridge fetches from: it delivers its messages, and delivers returned ones again.
//!
//! # Invariants
//! - An acknowledged message is never delivered again.
//! - Messages that are unsettled when their channel or connection ends are delivered again. They are marked
//!   as redelivered, and come before messages that were not delivered yet.

use std::collections::{BTreeMap, BTreeSet};

use leveret_amqp::Method;

use leveret_test_support::simulated_server::{content_frames, method_frame};

/// Delivery mode 2 (persistent).
const PROPERTIES: &[u8] = &[0x10, 0, 2];

/// The queue, and the deliveries of its only consumer.
#[derive(Debug, Default)]
pub struct Source {
    /// Waiting messages by number: bytes of the body after the number, and whether it was delivered before.
    waiting: BTreeMap<u64, (usize, bool)>,
    /// Unsettled messages, by delivery tag.
    unsettled: BTreeMap<u64, (u64, usize)>,
    /// Unsettled tags of the newest consumer.
    of_consumer: BTreeSet<u64>,
    /// Messages that the bridge has acknowledged.
    pub acknowledged: BTreeSet<u64>,
    /// Number of redeliveries.
    pub given_again: u64,
    /// The channel of the consumer.
    channel: Option<u16>,
    ahead: usize,
    last_tag: u64,
}

impl Source {
    /// Publishes a message to the queue.
    pub fn take(&mut self, number: u64, body_bytes: usize) {
        self.waiting.insert(number, (body_bytes, false));
    }

    /// Returns whether all published messages are acknowledged.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.unsettled.is_empty()
    }

    /// Requeues unsettled messages after the channel of the consumer, or the connection, has ended.
    pub fn take_back(&mut self) {
        for (number, body_bytes) in core::mem::take(&mut self.unsettled).into_values() {
            self.waiting.insert(number, (body_bytes, true));
        }
        self.of_consumer.clear();
        (self.channel, self.last_tag) = (None, 0);
    }

    /// Handles a method of the consumer. Returns the answer, if there is one.
    pub fn hear<'m>(&mut self, on: u16, method: &Method<'m>) -> Option<Method<'m>> {
        match *method {
            Method::BasicQos { prefetch_count, .. } => {
                self.ahead = prefetch_count.into();
                Some(Method::BasicQosOk {})
            }
            Method::BasicConsume { consumer_tag, no_wait, .. } => {
                assert_eq!(self.channel, None, "two consumers of one queue");
                self.channel = Some(on);
                self.of_consumer.clear();
                (!no_wait).then_some(Method::BasicConsumeOk { consumer_tag })
            }
            Method::BasicCancel { consumer_tag, no_wait } => {
                self.channel = None;
                (!no_wait).then_some(Method::BasicCancelOk { consumer_tag })
            }
            Method::BasicAck { delivery_tag, multiple } => {
                self.acknowledge(delivery_tag, multiple);
                None
            }
            Method::BasicReject { .. } | Method::BasicNack { .. } => {
                panic!("{method:?}: the bridge has capacity for all messages")
            }
            _ => None,
        }
    }

    fn acknowledge(&mut self, tag: u64, multiple: bool) {
        let first = if multiple { 0 } else { tag };
        let tags: Vec<u64> = self.unsettled.range(first..=tag).map(|(tag, _)| *tag).collect();
        assert!(tags.contains(&tag), "{tag} was not given, or is settled");
        for tag in tags {
            self.of_consumer.remove(&tag);
            if let Some((number, _)) = self.unsettled.remove(&tag) {
                assert!(self.acknowledged.insert(number), "{number} was acknowledged twice");
            }
        }
    }

    /// Returns the next delivery, if one is allowed now: its channel and its frames.
    pub fn give(&mut self) -> Option<(u16, Vec<u8>)> {
        let channel = self.channel.filter(|_| self.of_consumer.len() < self.ahead)?;
        let (number, (body_bytes, redelivered)) = self.waiting.pop_first()?;
        self.last_tag += 1;
        self.given_again += u64::from(redelivered);
        self.of_consumer.insert(self.last_tag);
        self.unsettled.insert(self.last_tag, (number, body_bytes));
        let (consumer_tag, delivery_tag, routing_key) =
            (&*format!("bridge-{}", channel - 1), self.last_tag, b"k");
        let deliver =
            Method::BasicDeliver { consumer_tag, delivery_tag, redelivered, exchange: "", routing_key };
        let mut body = number.to_be_bytes().to_vec();
        body.resize(8 + body_bytes, 7);
        let mut frames = method_frame(channel, &deliver);
        frames.extend(content_frames(channel, PROPERTIES, &body, 4_000));
        Some((channel, frames))
    }
}
