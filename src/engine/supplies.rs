//! What sessions, and whoever else works for the loop, are lent: pools, messages and the log.
//!
//! Always true: there is one of each, and whoever is lent them gives them back before anybody else works.

use crate::broker::Broker;
use crate::command::ConnectionId;
use crate::journal::Journal;
use crate::log_limiter::LogLimiter;
use crate::mem::Messages;
use crate::session::{Context, Pools, Settings};
use crate::time::Now;

/// What sessions are lent while they work.
#[derive(Debug)]
pub(super) struct Supplies {
    pub(super) settings: Settings,
    pub(super) pools: Pools,
    pub(super) messages: Messages,
    /// What is logged of peers goes through it.
    pub(super) log: LogLimiter,
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
            owner: broker.owner(id),
            durable: journal.durable(),
            last_delivery: broker.last_delivery(id),
            log: &mut self.log,
        }
    }
}
