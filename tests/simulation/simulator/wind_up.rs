//! The end of a run: all clients leave, everything is consumed and deleted, and nothing may be left.
//!
//! # Invariants
//! - It comes after the last fault, so anything unfinished afterwards would never finish.
//! - On a damaged store, only what can be known is checked.

use leveret_amqp::Method;
use leveret_broker::Gauges;

use super::actor::{Mode, Pending};
use super::ledger::Key;
use super::life::{CALM_STEPS, Ended, Life};
use super::plan::VHOSTS;
use super::topology::may_go;
use leveret_test_support::random::Random;
use leveret_test_support::simulated_server::{Phase, close_connection, delete, passive};

/// Time that clients have to close their connections, in milliseconds.
const POLITE_MS: u64 = 10_000;
/// Time after which the broker must have dropped a lost peer that is blocked for capacity, in milliseconds. A peer is
/// lost when its input has ended.
const LOST_MS: u64 = 700_000;

impl Life<'_> {
    /// Ends all clients, by a close or by disappearing. Checks that the broker drops all of them in time.
    fn lose_everybody(&mut self) -> Result<(), Ended> {
        self.is_calm = true;
        for actor in &mut self.actors {
            let is_polite = Random::of(self.run.seed, "farewell", &[actor.number]).once_in(2);
            if actor.is_open() && is_polite {
                actor.client.send(0, &close_connection());
            } else {
                actor.vanish(&mut self.run.ledger);
                actor.line.borrow_mut().lose();
            }
        }
        for patience_ms in [POLITE_MS, LOST_MS] {
            let end = self.now + patience_ms;
            while self.engine.broker().gauges().connections > 0 && self.now < end {
                self.step()?;
            }
            // A close that was sent behind a blocked publish waits with it.
            for actor in &mut self.actors {
                actor.vanish(&mut self.run.ledger);
                actor.line.borrow_mut().lose();
            }
        }
        if self.engine.broker().gauges().connections > 0 {
            let what = format!(
                "{} lost peers are still connected: {:?}",
                self.engine.broker().gauges().connections,
                self.engine
            );
            self.run.ledger.complain(what);
        }
        self.check()
    }

    /// Connects two clients, one in each virtual host, and opens a channel on each.
    fn call_cleaners(&mut self) -> Result<(), Ended> {
        let mut there = [false; 2];
        for _ in 0..200 {
            self.is_calm = true;
            self.connect();
            for _ in 0..CALM_STEPS {
                self.step()?;
                if self.actors.last().is_none_or(|actor| actor.client.checker.phase == Phase::Open) {
                    break;
                }
            }
            let Some(actor) = self.actors.last_mut() else { continue };
            let at = usize::from(actor.vhost == VHOSTS[1]);
            if core::mem::replace(&mut there[at], true) {
                actor.vanish(&mut self.run.ledger);
                actor.line.borrow_mut().lose();
            } else {
                actor.open_channel(&mut self.run.ledger, Mode::Plain);
            }
            if there == [true; 2] {
                return self.calm_down("two clients connect");
            }
        }
        self.run.ledger.complain("no client can connect".into());
        Err(Ended::Complaint)
    }

    /// Sends a request on the channel of the client that cleans up a virtual host.
    fn ask_cleaner(&mut self, vhost: &str, pending: Pending, method: &Method<'_>) {
        if let Some(actor) = self.actors.iter_mut().find(|actor| actor.vhost == vhost && actor.is_open()) {
            let number = actor.next_channel;
            actor.ask(&mut self.run.ledger, number, pending, method);
        }
    }

    /// Returns the existing queues. Declares passively those whose existence is unknown.
    fn look_for_queues(&mut self) -> Result<Vec<Key>, Ended> {
        let keys: Vec<Key> = self.run.ledger.queues.keys().cloned().collect();
        for key in &keys {
            if key.1.starts_with('x')
                || self.run.ledger.queue(key).fact.is_there == Some(false) && !may_go(&key.1)
            {
                continue;
            }
            self.ask_cleaner(key.0, Pending::Scan(key.clone()), &passive(&key.1));
            self.calm_down("looking for a queue")?;
            for actor in self.actors.iter_mut().filter(|actor| actor.is_open() && actor.channels.is_empty()) {
                actor.open_channel(&mut self.run.ledger, Mode::Plain);
            }
        }
        let ledger = &mut self.run.ledger;
        Ok(keys
            .into_iter()
            .filter(|key| !key.1.starts_with('x') && ledger.queue(key).fact.is_there == Some(true))
            .collect())
    }

    /// Consumes all messages of these queues.
    fn consume_all(&mut self, keys: &[Key]) -> Result<(), Ended> {
        for key in keys {
            let ledger = &mut self.run.ledger;
            for actor in self.actors.iter_mut().filter(|actor| actor.vhost == key.0 && actor.is_open()) {
                let number = actor.next_channel;
                actor.consume(ledger, number, key, true, "");
            }
        }
        self.calm_down("consuming everything")
    }

    /// Consumes and deletes everything. Then nothing may be left in the broker or in the store.
    pub fn wind_up(&mut self) -> Result<(), Ended> {
        self.lose_everybody()?;
        self.call_cleaners()?;
        let keys = self.look_for_queues()?;
        // Waiting queues are not consumed before: their messages have to expire, now that there is capacity.
        let policies = &self.run.ledger.policies;
        let (waiting, others): (Vec<Key>, Vec<Key>) =
            keys.iter().cloned().partition(|key| policies.has_end_of_waiting(key));
        self.consume_all(&others)?;
        if !waiting.is_empty() {
            self.run.ledger.waited_out.extend(waiting.iter().cloned());
            self.consume_all(&waiting)?;
        }
        self.run.ledger.check_all_seen();
        self.check()?;
        for key in &keys {
            self.run.ledger.ask_deletion(key);
            self.ask_cleaner(key.0, Pending::Delete(key.clone()), &delete(&key.1));
        }
        for (name, _) in super::topology::EXCHANGES {
            for vhost in VHOSTS {
                self.run.ledger.ask_exchange_deletion(vhost, name);
                let method = Method::ExchangeDelete { exchange: name, if_unused: false, no_wait: false };
                self.ask_cleaner(vhost, Pending::DeleteExchange(name), &method);
            }
        }
        self.calm_down("deleting everything")?;
        self.lose_everybody()?;
        self.calm_down("the end")?;
        self.check_empty();
        self.check()
    }

    fn check_empty(&mut self) {
        let (gauges, messages, pools) =
            (self.engine.broker().gauges(), self.engine.messages(), self.engine.pools());
        let bytes = (messages.messages_used(), messages.body_bytes_used(), messages.assembly_bytes_used());
        let held = (pools.channels_used(), pools.reply_bytes_used(), self.engine.waiting_bytes());
        let is_empty = gauges == Gauges::default() && bytes == (0, 0, 0) && held == (0, 0, 0);
        // In a damaged store it is unknown what can be deleted.
        if !is_empty && !self.run.is_damaged {
            self.run
                .ledger
                .complain(format!("something is left in the pools: {gauges:?} {bytes:?} {held:?}"));
        }
    }
}
