//! The daily byte budget of a bridge, and links that connect only on demand (`link = "on_demand"`).
//!
//! A link on demand *rests* ([`Phase::Resting`], the state `resting` for operators) while it is disconnected because it
//! had nothing to do. An open link is checked when it has moved nothing for `rest_after`. If it is idle, it disconnects.
//!
//! # Invariants
//! - When the daily budget is used up, messages that are being transferred are still finished. None is returned to its
//!   queue, so the order is kept.
//! - A link ends itself only when nothing is under way and nothing waits that it may send.
//! - Both links of a bridge connect together, because the upstream is then contacted once instead of twice.

use leveret_bridge::{Demand, LinkTraffic};
use leveret_broker::Broker;
use leveret_core::time::Deadline;

use super::Bridges;
use super::state::{Bridge, Direction, LinkId, Phase};
use crate::platform::Platform;
use crate::state::Shared;

impl Bridge {
    /// Returns the number of messages here that wait to be forwarded. Messages of rules that take none now are not
    /// counted: the budget is used up, or the rule waits for its next retry.
    fn waiting(&self, broker: &Broker, now: leveret_core::time::Now) -> u64 {
        let state = &self.state;
        let Some(link) = self.link(Direction::Forward) else { return 0 };
        let rules = state.config.forward.iter().zip(&link.state.rule_states);
        let rules =
            rules.filter(|(rule, rule_state)| !state.is_over_budget(rule) && !rule_state.is_waiting(now));
        let depth = |queue: &str| broker.queue_depth(&state.config.vhost, queue).unwrap_or(0);
        rules.map(|(rule, _)| u64::from(depth(&rule.queue))).sum()
    }

    /// Returns the number of messages that arrived in the forwarded queues, each counted since the queue was declared or
    /// restored in this run of the process. Restored messages are included.
    pub(super) fn arrived_count(&self, broker: &Broker) -> u64 {
        let config = &self.state.config;
        let loads = config.forward.iter().filter_map(|rule| broker.queue_load(&config.vhost, &rule.queue));
        loads.map(|load| load.arrived).sum()
    }

    /// Counts the messages that arrived since the last call.
    #[cold]
    pub(super) fn note_inflow(&mut self, broker: &Broker) {
        let came = self.arrived_count(broker);
        self.state.inflow.note(came);
    }

    /// Returns whether the demand must be evaluated: messages began to wait, none waits any longer, enough wait for a
    /// connection, or some wait while publishers wait for capacity.
    pub(super) fn must_evaluate_demand<P: Platform>(&self, shared: &Shared<P>) -> bool {
        let demand = self.state.demand.as_ref().filter(|_| self.may_connect_on_demand());
        demand.is_some_and(|demand| {
            let waiting = self.waiting(&shared.broker, shared.now);
            demand.needs_check(waiting) || waiting > 0 && !shared.lists.for_capacity.is_empty()
        })
    }
}

impl Bridges {
    /// Begins a new day of the byte budget when one is due. Holds rules when the budget is used up, and resumes them when
    /// it is available again.
    pub(super) fn end_days<P: Platform>(&mut self, shared: &mut Shared<P>) {
        for place in 0..self.places.len() {
            let bridge = &mut self.places[place];
            if bridge.state.day_budget.begin_day_if_due(shared.now) {
                bridge.note_inflow(&shared.broker);
                let had_traffic_yesterday = bridge.state.day_budget.yesterday_bytes() > 0;
                for link in &mut bridge.links {
                    let today = core::mem::take(&mut link.state.today);
                    // If more than a day has passed, yesterday had no traffic.
                    link.state.yesterday = if had_traffic_yesterday { today } else { LinkTraffic::default() };
                }
                bridge.state.inflow.end_day();
            }
            if bridge.state.has_budget_change() && !shared.is_stopping() {
                self.hold_or_resume_rules(shared, place);
            }
        }
    }

    #[cold]
    fn hold_or_resume_rules<P: Platform>(&mut self, shared: &mut Shared<P>, place: usize) {
        let bridge = &mut self.places[place].state;
        bridge.is_budget_spent = bridge.day_budget.is_spent();
        let name = &bridge.config.name;
        let (level, text) = match bridge.is_budget_spent {
            true => (
                log::Level::Warn,
                format_args!(
                    "bridge {name} has used its daily bytes (day_bytes_max): only urgent rules continue until the \
                     next day"
                ),
            ),
            false => (
                log::Level::Info,
                format_args!(
                    "bridge {name} can use bytes again, because a new day began or \
                                                 day_bytes_max was raised: all rules continue"
                ),
            ),
        };
        shared.log_bridge(level, bridge.serial, text);
        self.update_links(shared, place);
    }

    /// Disconnects links that have nothing to do, and connects those with demand.
    pub(super) fn evaluate_demands<P: Platform>(&mut self, shared: &mut Shared<P>) {
        for place in 0..self.places.len() {
            if self.places[place].state.demand.is_some() && !shared.is_stopping() {
                self.evaluate_demand(shared, place);
            }
        }
    }

    #[cold]
    fn evaluate_demand<P: Platform>(&mut self, shared: &mut Shared<P>, place: usize) {
        let now = shared.now;
        for link in 0..self.places[place].links.len() {
            let bridge = &self.places[place];
            if bridge.links[link].open_link().is_some_and(|it| it.idle_check_due.is_due(now)) {
                let waiting = bridge.waiting(&shared.broker, now);
                self.end_if_idle(shared, LinkId { place, link }, waiting);
            }
        }
        let bridge = &mut self.places[place];
        if !bridge.may_connect_on_demand() {
            return;
        }
        let waiting = bridge.waiting(&shared.broker, now);
        let no_publisher_waits = shared.lists.for_capacity.is_empty();
        let unix_ms = shared.platform.unix_ms();
        let reason = bridge
            .state
            .demand
            .as_mut()
            .and_then(|demand| demand.reason_to_connect(now, unix_ms, waiting, no_publisher_waits));
        let Some(reason) = reason else { return };
        for link in &mut bridge.links {
            if let Phase::Resting = link.phase {
                link.phase = Phase::Waiting(now.after_ms(0));
            }
        }
        let text = format_args!("bridge {} connects: {}", bridge.state.config.name, reason);
        shared.log_bridge(log::Level::Info, bridge.state.serial, text);
    }

    /// Ends a link that has been idle for a while, unless messages wait to be forwarded over it.
    #[cold]
    fn end_if_idle<P: Platform>(&mut self, shared: &mut Shared<P>, id: LinkId, waiting: u64) {
        self.with_link(id, shared, |task| {
            let open_link = &mut *task.open_link;
            let is_idle = open_link.is_idle() && !open_link.is_draining;
            let has_output =
                open_link.forwards().any(|forward| task.shared.broker.has_output(forward.own.connection));
            let has_more = task.direction == Direction::Forward && (waiting > 0 || has_output);
            let may_rest = is_idle && !has_more;
            let after_ms = task.bridge.demand.as_ref().map_or(0, Demand::rest_after_ms);
            open_link.ends_because_idle = may_rest;
            open_link.idle_check_due =
                if may_rest { Deadline::NEVER } else { task.shared.now.after_ms(after_ms) };
            open_link.is_draining |= may_rest;
        });
    }

    /// Handles that a link on demand has ended because it had nothing to do, which counts as a success.
    #[cold]
    pub(super) fn rest_link<P: Platform>(&mut self, shared: &mut Shared<P>, id: LinkId) {
        let (now, unix_ms, random) = (shared.now, shared.platform.unix_ms(), self.common.random());
        let (bridge, link) = self.get_mut(id);
        link.phase = Phase::Resting;
        link.state.backoff.reset();
        link.state.forget_logged();
        bridge.demand.iter_mut().for_each(|demand| demand.note_closed(now, unix_ms, random));
    }
}
