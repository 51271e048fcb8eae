//! What sessions, and whoever else works for the loop, are lent: pools, messages and the log, and space to work in.
//!
//! Always true: there is one of each, and whoever is lent them gives them back before anybody else works.

use leveret_broker::Broker;
use leveret_connection::{Context, Names, Pools, Settings};
use leveret_core::command::ConnectionId;
use leveret_core::journal::Journal;
use leveret_core::limits::Limits;
use leveret_core::log_limiter::LogLimiter;
use leveret_core::mem::Messages;
use leveret_core::time::Now;

/// What sessions are lent while they work.
#[derive(Debug)]
pub(super) struct Supplies {
    pub(super) settings: Settings,
    pub(super) pools: Pools,
    pub(super) messages: Messages,
    /// What is logged of peers goes through it.
    pub(super) log: LogLimiter,
}

/// Space for one reading or writing, which nobody keeps.
#[derive(Debug)]
pub(super) struct Scratch {
    /// What one peer has sent.
    pub(super) input: Box<[u8]>,
    /// What one peer is to be sent.
    pub(super) output: Box<[u8]>,
    /// The names in one command.
    pub(super) names: Names,
}

impl Scratch {
    pub(super) fn new(limits: &Limits) -> Self {
        let bytes = |count: u32| vec![0; count as usize].into_boxed_slice();
        Self {
            input: bytes(limits.input_buffer_bytes),
            output: bytes(limits.output_buffer_bytes),
            names: Names::default(),
        }
    }
}

impl Supplies {
    #[inline(always)]
    pub(super) fn context(
        &mut self,
        now: Now,
        broker: &Broker,
        journal: &Journal,
        id: ConnectionId,
    ) -> Context<'_> {
        Context {
            now,
            pools: &mut self.pools,
            messages: &mut self.messages,
            settings: &self.settings,
            share: broker.content_share(id),
            durable: journal.durable(),
            last_delivery: broker.last_delivery(id),
            log: &mut self.log,
        }
    }
}
