//! The view of bridges for operators, and the orders that operators give.
//!
//! # Invariants
//! - A link is shown as running only if messages of a rule can flow over it. While this broker reads from it, the
//!   upstream was also heard within two heartbeats, if the link has heartbeats.

use leveret_bridge::Stage;
use leveret_config::shovels::ShovelEnd;
use leveret_core::time::Now;
use leveret_management::request::{
    BridgeLinkView, BridgeOrder, BridgeRuleView, BridgeViews, ShovelEndView, ShovelView,
};

use super::Bridges;
use super::state::{Bridge, BridgeState, Direction, Link, LinkState, Phase};
use super::traffic::{Flow, OpenLink};
use crate::platform::Platform;
use crate::state::Shared;

/// The view of all bridges.
pub(crate) struct ShownBridges<'s> {
    pub(crate) bridges: &'s Bridges,
    /// Free capacity of the log in bytes, if there is a log.
    pub(crate) log_free_bytes: Option<u64>,
    pub(crate) now: Now,
    pub(crate) unix_ms: u64,
}

impl BridgeViews for ShownBridges<'_> {
    fn places(&self) -> usize {
        2 * self.bridges.places.len()
    }

    fn places_max(&self) -> usize {
        self.bridges.max
    }

    fn at(&self, place: usize) -> Option<BridgeLinkView<'_>> {
        let Bridge { state: bridge, links } = self.bridges.places.get(place / 2)?;
        let direction = Direction::BOTH[place % 2];
        let link = links.iter().find(|link| link.direction == direction)?;
        let (state, open_link) = (&link.state, link.open_link());
        let [day_bytes, yesterday_bytes, gone_ms] = bridge.day_budget.numbers(self.now);
        let mut lately = state.today;
        lately.add(state.yesterday);
        let last_error = link.last_error();
        let failed_at = last_error.map(|(_, at)| at);
        let ready_since = open_link.and_then(|open_link| open_link.ready_since);
        let changes = [Some(state.created_at), ready_since, state.last_open_at, failed_at];
        let changed_at = changes.into_iter().flatten().max().unwrap_or_default();
        // Parked messages belong to the bridge, and are shown with the first of its links.
        let is_first = links.first().is_some_and(|first| first.direction == direction);
        Some(BridgeLinkView {
            bridge: &bridge.config.name,
            direction: direction.name(),
            state: state_of(bridge, link),
            vhost: &bridge.config.vhost,
            upstream: bridge.config.upstream[state.upstream].to_string(),
            moved: state.counts.moved,
            pending: open_link.map_or(0, |open_link| open_link.pending()) as u64,
            // The queues whose messages wait here to be forwarded.
            queues: (direction == Direction::Forward)
                .then(|| bridge.config.forward.iter().map(|rule| rule.queue.as_str()).collect()),
            repeats: state.counts.repeats,
            inflow: bridge.inflow.span(gone_ms),
            inflow_counted: bridge.inflow.counted(),
            sent_since_yesterday: (lately.messages, lately.payload),
            log_free_bytes: self.log_free_bytes,
            outage_days_min: bridge.config.outage_days_min,
            parked_queue: is_first.then_some(&*bridge.config.parked),
            held: state.rule_states.iter().map(|rule_state| u64::from(rule_state.oversized_count)).sum(),
            today: state.today.kinds(),
            yesterday: state.yesterday.kinds(),
            day_bytes,
            day_bytes_max: bridge.config.day_bytes_max,
            yesterday_bytes,
            held_rules: link.held_rules(bridge) as u64,
            rules: rules_of(bridge, link),
            is_day_spent: bridge.day_budget.is_spent(),
            connected: state.counts.connected,
            failed: state.counts.failed,
            last_retry_result: last_retry_result_of(bridge),
            last_error: last_error.map(|(cause, at)| (cause.as_str(), self.now.ms_since(at))),
            up_for_ms: ready_since.map(|since| self.now.ms_since(since)),
            down_for_ms: state
                .last_open_at
                .filter(|_| ready_since.is_none())
                .map(|since| self.now.ms_since(since)),
            retry_in_ms: retry_in_ms(bridge, link, self.now),
            shovel: shovel_of(bridge, state),
            is_paused: bridge.is_paused,
            changed_at_ms: self.unix_ms.saturating_sub(self.now.ms_since(changed_at)),
        })
    }

    fn is_known(&self, bridge: &str) -> bool {
        self.bridges.places.iter().any(|other| !other.state.is_leaving && other.state.config.name == bridge)
    }
}

fn retry_in_ms(bridge: &BridgeState, link: &Link, now: Now) -> Option<u64> {
    match link.phase {
        Phase::Waiting(at) => at.ms_left(now),
        Phase::Resting => bridge.demand.as_ref().and_then(|demand| demand.due().ms_left(now)),
        Phase::Connected(_) | Phase::LookingUp(_) | Phase::Paused => None,
    }
}

fn last_retry_result_of(bridge: &BridgeState) -> String {
    match (&bridge.retry, &bridge.last_retry_result) {
        (Some(retry), _) => format!("{} were sent again so far", retry.moved_count),
        (None, Some(cause)) => cause.to_string(),
        (None, None) => String::new(),
    }
}

/// Returns the shovel's definition, if the bridge is one.
#[cold]
fn shovel_of<'a>(bridge: &'a BridgeState, state: &LinkState) -> Option<ShovelView<'a>> {
    let shovel = bridge.config.shovel.as_ref()?;
    let view = |end: &'a ShovelEnd| ShovelEndView {
        uri: end.uris.get(if end.is_here { 0 } else { state.upstream }).map_or("", String::as_str),
        queue: end.queue.as_deref(),
        exchange: end.exchange.as_deref(),
        key: end.key.as_deref(),
    };
    Some(ShovelView {
        name: &shovel.name,
        vhost: &shovel.vhost,
        source: view(&shovel.source),
        destination: view(&shovel.destination),
        left: state.messages_left,
    })
}

/// Returns the state of a link: that of its connection, or else that of the rule that needs attention first.
#[cold]
fn state_of(bridge: &BridgeState, link: &Link) -> &'static str {
    match &link.phase {
        _ if bridge.is_leaving => "ending",
        Phase::Connected(open_link) if open_link.is_draining => "ending",
        Phase::Connected(open_link) if open_link.client.stage() != Stage::Open => "connecting",
        Phase::Connected(open_link) => {
            let states: Vec<_> =
                (0..open_link.flows.len()).map(|rule| state_of_rule(bridge, link, open_link, rule)).collect();
            let first =
                ["held", "blocked", "budget used", "running"].into_iter().find(|it| states.contains(it));
            first.unwrap_or("connecting")
        }
        Phase::LookingUp(_) => "connecting",
        Phase::Waiting(_) => "waiting",
        Phase::Resting => "resting",
        Phase::Paused => "paused",
    }
}

/// Returns the state of a rule whose link is open.
#[cold]
fn state_of_rule(bridge: &BridgeState, link: &Link, open_link: &OpenLink, rule: usize) -> &'static str {
    let is_of_budget = bridge.is_over_budget(&bridge.rules(link.direction)[rule]);
    match &open_link.flows[rule] {
        _ if link.state.rule_states[rule].error().is_some() => "held",
        _ if is_of_budget => "budget used",
        Flow::Closed | Flow::Opening => "connecting",
        Flow::Forward(_) if open_link.client.is_paused(rule) => "blocked",
        Flow::Forward(_) | Flow::Fetch(_) if open_link.client.is_blocked() => "blocked",
        Flow::Forward(_) | Flow::Fetch(_) => "running",
    }
}

/// Returns the rules of a link with their states.
#[cold]
fn rules_of<'a>(bridge: &'a BridgeState, link: &'a Link) -> Vec<BridgeRuleView<'a>> {
    let of_link = state_of(bridge, link);
    let is_open = !matches!(of_link, "ending" | "connecting");
    let open_link = link.open_link().filter(|_| is_open);
    let rules = bridge.rules(link.direction).iter().enumerate();
    rules
        .map(|(at, rule)| {
            let rule_state = &link.state.rule_states[at];
            BridgeRuleView {
                queue: &rule.queue,
                destination: (rule.to.exchange(), rule.to.key()),
                state: open_link.map_or(of_link, |open_link| state_of_rule(bridge, link, open_link, at)),
                moved: rule_state.moved_count,
                held: rule_state.oversized_count.into(),
                error: rule_state.error().map(|(cause, _)| cause.as_str()),
                is_urgent: rule.is_urgent,
            }
        })
        .collect()
}

impl Bridges {
    /// Carries out an operator's order for a bridge.
    #[cold]
    pub(crate) fn apply_order<P: Platform>(
        &mut self,
        shared: &mut Shared<P>,
        name: &str,
        order: BridgeOrder,
    ) {
        let is_it = |bridge: &Bridge| !bridge.state.is_leaving && bridge.state.config.name == name;
        // The bridge existed when the operator's request was checked. A reload may have removed the bridge
        // since.
        let Some(place) = self.places.iter().position(is_it) else { return };
        let now = shared.now;
        if order != BridgeOrder::Retry {
            self.common.store_due = now.after_ms(0);
        }
        let bridge = &mut self.places[place];
        match order {
            BridgeOrder::Retry => {
                bridge.retry_rules_now(now);
                self.begin_retry(shared, place);
            }
            BridgeOrder::Pause => {
                bridge.state.is_paused = true;
                self.drain(shared, place);
            }
            BridgeOrder::Resume | BridgeOrder::Restart => {
                bridge.state.is_paused = false;
                bridge.retry_rules_now(now);
                for link in &mut bridge.links {
                    if matches!(link.phase, Phase::Paused | Phase::Resting | Phase::Waiting(_)) {
                        link.state.backoff.reset();
                        link.phase = Phase::Waiting(now.after_ms(0));
                    }
                    if let Phase::Connected(open_link) = &mut link.phase {
                        open_link.ends_because_idle = false;
                        open_link.is_draining |= order == BridgeOrder::Restart;
                    }
                }
            }
        }
        self.update_links(shared, place);
    }
}
