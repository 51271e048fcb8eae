//! Facts come in, and how many of them are durable.

use super::{Batch, Fact, Journal, Mode};

impl Journal {
    /// The batch with which all facts said so far are durable.
    pub fn await_facts(&self) -> Batch {
        if self.facts_batch > self.durable { self.facts_batch } else { Batch::NONE }
    }

    /// Notes that something exists, has changed or (without a value) is no more; see [`super::Definition`].
    /// Returns the batch to wait for.
    pub fn define(&mut self, key: Box<[u8]>, value: Option<Box<[u8]>>) -> Batch {
        let version = self.next_version();
        self.append_fact(Fact::Defined { version, key, value })
    }

    /// Notes that a queue is gone with all its messages. Those that wait are not written any more, and their
    /// publishers hear that they are safe when the deletion is: else the queue might come back without them.
    pub fn queue_gone(&mut self, queue: u64) -> Batch {
        self.freed += 1;
        if self.mode == Mode::On && !self.pending.is_empty() {
            self.gone.push_back((queue, self.first + self.pending.len() as u64));
        }
        let batch = self.append_fact(Fact::Gone { queue });
        if let (Some(first), Some((said, _))) = (self.pending.front(), self.facts.back_mut()) {
            *said = first.batch;
        }
        batch
    }

    /// Asks that it be written, before any of them is, that messages below `offset` may have been delivered.
    /// Returns how many facts must be durable for that. Not a batch, which would include the messages said
    /// before: on a full disk they wait for room that only deliveries can make.
    pub fn set_delivered_watermark(&mut self, queue: u64, offset: u64) -> u64 {
        self.append_fact(Fact::DeliveredWatermark { queue, offset });
        self.facts_numbered
    }

    /// Says before a clean stop that nothing from `offset` on was delivered, although `watermark` says so.
    pub fn reset_watermark(&mut self, queue: u64, offset: u64, watermark: u64) {
        self.append_fact(Fact::WatermarkReset { queue, offset, watermark });
    }

    /// How many facts are durable.
    pub const fn facts_stored(&self) -> u64 {
        self.facts_stored
    }

    /// How many facts were said. Whoever waits for all of them need not wait for messages that were said
    /// before them, which on a full disk wait for room.
    pub const fn facts_said(&self) -> u64 {
        self.facts_numbered
    }

    /// How many facts are as durable as they are to be: what says who may do what is in two commits.
    pub const fn facts_safe(&self) -> u64 {
        self.facts_safe
    }

    fn append_fact(&mut self, fact: Fact) -> Batch {
        if self.mode != Mode::On {
            return Batch::NONE;
        }
        self.fact_bytes += fact.bytes();
        self.facts_numbered += 1;
        self.facts.push_back((self.open, fact));
        self.facts_batch = self.open;
        self.await_open()
    }
}
