//! The state of bridges, links and rules, and the part of it that outlives a restart.
//!
//! The state of a rule is kept when its link is lost:
//!
//! ```text
//!   going ─ refused, missing, full → waiting ─ due → trying ─ taken → going
//!                                       ▲               │
//!                                       └─── refused ───┘
//! ```
//!
//! # Invariants
//! - A link is in one phase. Data that a link needs only in this phase is stored in the phase.
//! - The last error of a link or rule is kept with its time until the link works again or another error replaces it.
//! - The same error is logged again only after the link was up for a while.
//! - A rule that waits begins no message. As soon as its messages in flight are settled, it has no channel at the
//!   upstream and no consumer in this broker.
//! - The range from which pauses are drawn grows with each failure. It is reset when a message is taken. It is also
//!   reset by a failure after the rule's queue at the upstream was consumed for at least 60 s.
//! - Messages sent before a refusal and taken after it do not end the wait.

use core::net::SocketAddr;
use std::fmt::Write as _;

use leveret_bridge::{Backoff, Cause, DayBudget, Demand, Inflow, LinkTraffic, RateLimit};
use leveret_config::bridge::{Bridge as Config, Rule};
use leveret_config::shovels::DeleteAfter;
use leveret_core::command::ConnectionId;
use leveret_core::mem::HeapBytes;
use leveret_core::time::{Deadline, Now};

use super::traffic::{OpenLink, OwnConnection};
use super::{Bridges, STORE_INTERVAL_MAX_MS};
use crate::platform::Platform;
use crate::state::Shared;

/// Maximum number of addresses of a name that are tried.
pub(super) const ADDRESSES_MAX: usize = 8;
/// Time until the first write if a bridge has a daily budget, in milliseconds. Each interval is twice the one before,
/// up to [`STORE_INTERVAL_MAX_MS`].
///
/// A power cut loses the counters of a run of up to 60 s, and at most 2/3 of those of a longer run. So the day still
/// ends on a board that often loses power, if its runs are longer than that.
const STORE_INTERVAL_FIRST_MS: u64 = 60_000;

/// The direction in which messages move.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Direction {
    /// From this broker to the upstream.
    Forward,
    /// From the upstream to this broker.
    Fetch,
}

impl Direction {
    pub(super) const BOTH: [Self; 2] = [Self::Forward, Self::Fetch];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Fetch => "fetch",
        }
    }
}

/// Identifies a link. Valid until bridges that have left are dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LinkId {
    pub(super) place: usize,
    pub(super) link: usize,
}

/// A bridge.
pub(super) struct Bridge {
    pub(super) state: BridgeState,
    /// One link for each direction that has rules.
    pub(super) links: Vec<Link>,
}

/// The state that both links of a bridge share.
pub(super) struct BridgeState {
    pub(super) config: Config,
    /// The memory of the bridge, charged to the class of clients.
    pub(super) memory: HeapBytes,
    /// Number of the bridge, unique since the start.
    pub(super) serial: u64,
    pub(super) is_paused: bool,
    /// Whether the bridge is deleted as soon as its links have ended.
    pub(super) is_leaving: bool,
    /// When the declaration of a queue that failed is retried.
    pub(super) queues_due: Deadline,
    /// The retry of parked messages under way.
    pub(super) retry: Option<Retry>,
    /// The result of the last retry.
    pub(super) last_retry_result: Option<Cause>,
    /// When parked messages are retried automatically.
    pub(super) retry_due: Deadline,
    /// Whether the log reports parked messages.
    pub(super) parked_alarm: ParkedAlarm,
    /// The rate limit of forwarding.
    pub(super) rate_limit: RateLimit,
    /// The bytes moved today.
    pub(super) day_budget: DayBudget,
    /// Whether the daily bytes are used up: rules that are not urgent take no messages.
    pub(super) is_budget_spent: bool,
    /// Counter of messages that arrive to be forwarded.
    pub(super) inflow: Inflow,
    /// When links connect; `None`: they are always connected.
    pub(super) demand: Option<Demand>,
}

impl BridgeState {
    /// Returns the rules of a direction.
    pub(super) fn rules(&self, direction: Direction) -> &[Rule] {
        match direction {
            Direction::Forward => &self.config.forward,
            Direction::Fetch => &self.config.fetch,
        }
    }

    /// Returns whether a rule takes no messages until the next day.
    pub(super) fn is_over_budget(&self, rule: &Rule) -> bool {
        self.is_budget_spent && !rule.is_urgent
    }

    /// Returns whether the rules must be held or resumed because of the daily budget.
    pub(super) fn has_budget_change(&self) -> bool {
        !self.is_leaving && self.is_budget_spent != self.day_budget.is_spent()
    }
}

/// A retry of parked messages.
#[derive(Debug)]
pub(super) struct Retry {
    pub(super) own: OwnConnection,
    /// Number of messages that were not examined yet.
    pub(super) unexamined_count: u32,
    pub(super) moved_count: u32,
    pub(super) remaining_count: u32,
    /// Why the last of the remaining messages was not moved.
    pub(super) last_cause: Option<Cause>,
}

/// Whether the log reports parked messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ParkedAlarm {
    /// The queue of parked messages was empty, and none was parked since.
    Off,
    /// It is not known yet whether messages are parked.
    Unknown,
    /// It was logged that messages are parked.
    On,
}

impl ParkedAlarm {
    /// Records that a message was parked, or stayed parked.
    pub(super) fn note_parked(&mut self) {
        if *self == Self::Off {
            *self = Self::Unknown;
        }
    }
}

/// One direction of a bridge.
pub(super) struct Link {
    pub(super) direction: Direction,
    pub(super) phase: Phase,
    pub(super) state: LinkState,
}

/// The phase of a link.
pub(super) enum Phase {
    /// The link is connected again at this time.
    Waiting(Deadline),
    /// The name of the upstream is being looked up, with this ticket.
    LookingUp(u64),
    /// The link has a socket, which may not be connected yet.
    Connected(Box<OpenLink>),
    /// The link on demand is disconnected, because it had nothing to do. Operators see the state `resting`.
    Resting,
    /// The link is not connected: an operator paused the bridge, the bridge is leaving, or a shovel is tried only once.
    Paused,
}

/// The state of a link, with or without a socket.
#[derive(Default)]
pub(super) struct LinkState {
    pub(super) backoff: Backoff,
    /// Index of the upstream that is tried now or next.
    pub(super) upstream: usize,
    /// Addresses of the upstream that were not tried yet.
    pub(super) addresses: heapless::Deque<SocketAddr, ADDRESSES_MAX>,
    pub(super) rule_states: Vec<RuleState>,
    /// When the link was last open, if it is not open now.
    pub(super) last_open_at: Option<Now>,
    /// Why the link was lost or could not be connected, until it is up again. Errors that hold a rule belong to the
    /// rule.
    pub(super) last_error: Option<(Cause, Now)>,
    /// The causes logged last per upstream, since the link was up for long.
    logged: Vec<LoggedCauses>,
    pub(super) counts: Counts,
    /// Traffic of today and of the day before.
    pub(super) today: LinkTraffic,
    pub(super) yesterday: LinkTraffic,
    /// Number of messages still to be moved, if the shovel ends after a number of messages.
    pub(super) messages_left: Option<u64>,
    /// When the link was made.
    pub(super) created_at: Now,
}

impl LinkState {
    fn new(config: &Config, rules: usize, now: Now) -> Self {
        let messages_left = match config.shovel.as_ref().map(|shovel| shovel.delete_after) {
            Some(DeleteAfter::Messages(count)) => Some(count),
            Some(DeleteAfter::Never | DeleteAfter::QueueLength) | None => None,
        };
        Self {
            rule_states: vec![RuleState::default(); rules],
            logged: vec![LoggedCauses::default(); config.upstream.len()],
            messages_left,
            created_at: now,
            ..Self::default()
        }
    }

    /// Counts a message that was sent completely: `payload_bytes` of payload, `bytes` with all frames.
    pub(super) fn note_sent(&mut self, is_repeat: bool, bytes: u64, payload_bytes: u32) {
        self.counts.repeats += u64::from(is_repeat);
        if is_repeat {
            self.today.repeated += bytes;
        } else {
            self.today.payload += u64::from(payload_bytes);
            self.today.messages += 1;
        }
    }

    /// Returns whether this cause must be logged: not if it was among the last ones of this upstream since the link
    /// was up.
    pub(super) fn must_be_logged(&mut self, cause: &Cause) -> bool {
        self.logged[self.upstream].must_be_logged(cause)
    }

    /// Lets all causes be logged again, because the link has been up for long enough.
    pub(super) fn forget_logged(&mut self) {
        self.logged.iter_mut().for_each(LoggedCauses::clear);
    }
}

/// Counters of a link since its bridge exists.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Counts {
    /// Number of messages that the other side has taken.
    pub(super) moved: u64,
    /// Number of messages sent that may have been sent before.
    pub(super) repeats: u64,
    /// Number of times that the link was opened.
    pub(super) connected: u64,
    /// Number of times that the link was lost or could not be opened.
    pub(super) failed: u64,
}

impl Counts {
    /// Adds the counters of another link.
    const fn add(&mut self, other: Self) {
        self.moved += other.moved;
        self.repeats += other.repeats;
        self.connected += other.connected;
        self.failed += other.failed;
    }
}

impl Link {
    pub(super) fn open_link(&self) -> Option<&OpenLink> {
        match &self.phase {
            Phase::Connected(open_link) => Some(open_link),
            _ => None,
        }
    }

    /// Returns the peer of the link, if it has a socket.
    pub(super) fn peer(&self) -> Option<ConnectionId> {
        self.open_link().map(|open_link| open_link.peer)
    }

    fn deadline(&self) -> Deadline {
        match &self.phase {
            Phase::Waiting(at) => *at,
            Phase::Connected(open_link) => open_link.idle_check_due.earlier(self.rule_deadline()),
            Phase::LookingUp(_) | Phase::Resting | Phase::Paused => Deadline::NEVER,
        }
    }

    /// Returns when a waiting rule retries.
    pub(super) fn rule_deadline(&self) -> Deadline {
        let is_flowing = self.open_link().is_some_and(OpenLink::is_flowing);
        let rule_states = self.state.rule_states.iter().filter(|_| is_flowing).map(RuleState::deadline);
        rule_states.fold(Deadline::NEVER, Deadline::earlier)
    }

    /// Returns the number of rules that take no messages now: until the next day, or until an error is resolved.
    pub(super) fn held_rules(&self, bridge: &BridgeState) -> usize {
        let rules = bridge.rules(self.direction).iter().zip(&self.state.rule_states);
        rules.filter(|(rule, rule_state)| bridge.is_over_budget(rule) || rule_state.error().is_some()).count()
    }

    /// Returns the newest unresolved error, of the link or of a held rule.
    pub(super) fn last_error(&self) -> Option<(&Cause, Now)> {
        let of_link = self.state.last_error.as_ref().map(|(cause, at)| (cause, *at));
        let of_rules = self.state.rule_states.iter().filter_map(RuleState::error);
        of_link.into_iter().chain(of_rules).max_by_key(|(_, at)| *at)
    }
}

/// The state of a rule, whatever happens to its link.
#[derive(Clone, Default, Debug)]
pub(super) struct RuleState {
    backoff: Backoff,
    /// Why the rule is held, since when, and what ends that.
    error: Option<(Cause, Now, Remedy)>,
    retry_at: Option<Deadline>,
    /// Since when the rule's queue at the upstream is consumed again, while no message was taken.
    open_since: Option<Now>,
    /// Whether messages are tried one by one, because one of them was refused.
    is_one_at_a_time: bool,
    /// The causes logged since the rule last went on.
    logged_causes: LoggedCauses,
    /// Number of messages that the other side has taken since the start of the process.
    pub(super) moved_count: u64,
    /// Number of messages that nothing here can take, and that the queue at the upstream keeps unacknowledged.
    pub(super) oversized_count: u16,
}

impl RuleState {
    /// Returns whether the rule must take no messages now.
    pub(super) fn is_waiting(&self, now: Now) -> bool {
        self.retry_at.is_some_and(|until| !until.is_due(now))
    }

    /// Returns when the rule retries; never if it does not wait.
    pub(super) fn deadline(&self) -> Deadline {
        self.retry_at.unwrap_or(Deadline::NEVER)
    }

    /// Ends the wait if the rule may retry now.
    pub(super) fn end_due_wait(&mut self, now: Now) {
        self.retry_at.take_if(|until| until.is_due(now));
    }

    /// Lets the rule retry now.
    pub(super) fn retry_now(&mut self, now: Now) {
        if let Some(until) = &mut self.retry_at {
            *until = now.after_ms(0);
            self.backoff.reset();
            // It still tries one message at a time.
            self.backoff.note_failure();
        }
    }

    /// Returns why the rule is held, and since when; `None` if it is not held.
    pub(super) fn error(&self) -> Option<(&Cause, Now)> {
        self.error.as_ref().map(|(cause, at, _)| (cause, *at))
    }

    /// Records that the channel at the upstream is open, and clears an error that required only that.
    pub(super) fn note_ready(&mut self) {
        let is_one_at_a_time = self.is_one_at_a_time;
        self.error.take_if(|(.., remedy)| *remedy == Remedy::Open && !is_one_at_a_time);
    }

    /// Returns whether the rule takes one message at a time, to see whether it is taken.
    pub(super) const fn is_one_at_a_time(&self) -> bool {
        self.is_one_at_a_time
    }

    /// Returns the number of consecutive refusals.
    pub(super) const fn failures(&self) -> u32 {
        self.backoff.failures()
    }

    /// Lets the rule wait until its next retry, after a random delay of up to `most_ms` milliseconds. A running wait is
    /// not extended. The error with this cause stays until `remedy`. Returns whether the cause must be logged.
    pub(super) fn hold(
        &mut self,
        now: Now,
        cause: &Cause,
        remedy: Remedy,
        most_ms: u64,
        random: u64,
    ) -> bool {
        if self.retry_at.is_none() {
            self.retry_at = Some(self.backoff.fail(now, self.open_since.take(), most_ms, random));
            if self.failures() == 1 {
                self.logged_causes.clear();
            }
        }
        self.is_one_at_a_time |= remedy == Remedy::OneTaken;
        self.error = Some((cause.clone(), now, remedy));
        self.logged_causes.must_be_logged(cause)
    }

    /// Records that the queue at the upstream is consumed. If that lasts, the rule goes on, unless a message was
    /// refused.
    pub(super) fn note_open(&mut self, now: Now) {
        self.open_since = Some(now).filter(|_| !self.is_one_at_a_time);
    }

    /// Records that a message was taken. Returns whether that ended a retry.
    pub(super) fn note_taken(&mut self) -> bool {
        // Messages under way before the refusal do not show whether the retry succeeds.
        if self.retry_at.is_some() {
            return false;
        }
        let was_trying = self.failures() > 0;
        if was_trying {
            let Self { moved_count, oversized_count, .. } = *self;
            *self = Self { moved_count, oversized_count, ..Self::default() };
        }
        was_trying
    }
}

/// The event that ends the error of a rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Remedy {
    /// The channel at the upstream is open again.
    Open,
    /// A message is taken.
    Taken,
    /// A message that was sent alone is taken: messages are tried one by one.
    OneTaken,
}

/// The causes logged last for a rule or an upstream. There are several, because causes alternate.
#[derive(Clone, Default, Debug)]
pub(super) struct LoggedCauses(heapless::HistoryBuf<Cause, 3>);

impl LoggedCauses {
    /// Returns whether this cause must be logged, and records it.
    pub(super) fn must_be_logged(&mut self, cause: &Cause) -> bool {
        let must_be_logged = !self.0.contains(cause);
        if must_be_logged {
            self.0.write(cause.clone());
        }
        must_be_logged
    }

    /// Lets all causes be logged again.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

impl Bridge {
    /// Makes a bridge that begins now. `before` is its previous state if it was changed.
    pub(super) fn new(
        config: Config,
        memory: HeapBytes,
        serial: u64,
        now: Now,
        before: Option<&mut Self>,
    ) -> Self {
        let mut links = Vec::new();
        for (direction, rules) in Direction::BOTH.into_iter().zip([&config.forward, &config.fetch]) {
            if !rules.is_empty() {
                let state = LinkState::new(&config, rules.len(), now);
                links.push(Link { direction, phase: Phase::Waiting(now.after_ms(0)), state });
            }
        }
        // A bridge that was changed continues its day and its counters.
        let (day_budget, is_budget_spent, inflow, is_paused) = match &before {
            Some(Self { state, .. }) => (
                state.day_budget.with_max(config.day_bytes_max),
                state.is_budget_spent,
                state.inflow,
                state.is_paused,
            ),
            None => (DayBudget::new(config.day_bytes_max, now), false, Inflow::default(), false),
        };
        if let Some(before) = before {
            before.move_counts_to(&mut links);
        }
        let state = BridgeState {
            memory,
            serial,
            is_paused: false,
            is_leaving: false,
            queues_due: Deadline::NEVER,
            retry: None,
            last_retry_result: None,
            retry_due: Deadline::NEVER,
            parked_alarm: ParkedAlarm::Unknown,
            rate_limit: RateLimit::new(config.drain_rate, now),
            day_budget,
            is_budget_spent,
            inflow,
            demand: config.on_demand.clone().map(|config| Demand::new(config, now)),
            config,
        };
        let mut bridge = Self { state, links };
        if is_paused {
            bridge.pause();
        }
        bridge
    }

    /// Pauses the bridge: its links are not connected. None may have a socket.
    pub(super) fn pause(&mut self) {
        self.state.is_paused = true;
        self.links.iter_mut().for_each(|link| link.phase = Phase::Paused);
    }

    /// Moves the counters to the links of the changed bridge.
    pub(super) fn move_counts_to(&mut self, links: &mut [Link]) {
        for Link { direction, state: from, .. } in &mut self.links {
            let next = links.iter_mut().find(|next| next.direction == *direction);
            let Some(Link { state: to, .. }) = next else { continue };
            to.counts.add(core::mem::take(&mut from.counts));
            to.today.add(core::mem::take(&mut from.today));
            to.yesterday.add(core::mem::take(&mut from.yesterday));
        }
    }

    pub(super) fn link(&self, direction: Direction) -> Option<&Link> {
        self.links.iter().find(|link| link.direction == direction)
    }

    pub(super) fn is_connected(&self) -> bool {
        self.links.iter().any(|link| link.open_link().is_some())
    }

    /// Lets rules that wait retry at once.
    pub(super) fn retry_rules_now(&mut self, now: Now) {
        let rule_states = self.links.iter_mut().flat_map(|link| &mut link.state.rule_states);
        rule_states.for_each(|rule_state| rule_state.retry_now(now));
    }

    /// Returns whether a link rests, and could move messages if it were connected.
    pub(super) fn may_connect_on_demand(&self) -> bool {
        let state = &self.state;
        let is_resting = self.links.iter().any(|link| matches!(link.phase, Phase::Resting));
        let mut rules = state.config.forward.iter().chain(&state.config.fetch);
        let may_move = !state.is_budget_spent || rules.any(|rule| rule.is_urgent);
        is_resting && may_move && !state.is_leaving
    }

    /// Returns the earliest time at which the bridge has work to do, except the deadlines of connected links.
    pub(super) fn deadline(&self) -> Deadline {
        let state = &self.state;
        let demand = state.demand.as_ref().filter(|_| self.may_connect_on_demand());
        let demand = demand.map_or(Deadline::NEVER, Demand::deadline);
        let links = self.links.iter().map(Link::deadline);
        let own =
            state.queues_due.earlier(state.retry_due).earlier(state.day_budget.next_day()).earlier(demand);
        links.fold(own, Deadline::earlier)
    }
}

impl Bridge {
    fn write_state(&self, text: &mut String, now: leveret_core::time::Now, has_day: bool) {
        let (state, name) = (&self.state, &*self.state.config.name);
        for link in &self.links {
            let what = link.direction.name();
            let Counts { moved, repeats, connected, failed } = link.state.counts;
            let numbers = [u64::from(state.is_paused), moved, repeats, connected, failed];
            write(text, &format!("{what} "), &numbers, name);
            if has_day {
                let days = [link.state.today, link.state.yesterday];
                let numbers: Vec<u64> = days.iter().flat_map(LinkTraffic::numbers).collect();
                write(text, &format!("cost {what} "), &numbers, name);
            }
        }
        if has_day {
            write(text, "day ", &state.day_budget.numbers(now), name);
            write(text, "inflow ", &state.inflow.numbers(), name);
        }
    }

    fn read_state(&mut self, text: &str, now: leveret_core::time::Now) {
        let name = self.state.config.name.clone();
        if let Some(day) = find(text, "day ", &name) {
            self.state.day_budget.restore(now, day);
        }
        if let Some(inflow) = find(text, "inflow ", &name) {
            self.state.inflow.restore(inflow);
        }
        let mut was_paused = false;
        for link in &mut self.links {
            let what = link.direction.name();
            if let Some(numbers) = find(text, &format!("cost {what} "), &name) {
                let days: [u64; 2 * LinkTraffic::NUMBERS] = numbers;
                if let [today, yesterday] = days.as_chunks().0 {
                    link.state.today = LinkTraffic::from_numbers(*today);
                    link.state.yesterday = LinkTraffic::from_numbers(*yesterday);
                }
            }
            let numbers = find(text, &format!("{what} "), &name);
            if let Some([is_paused, moved, repeats, connected, failed]) = numbers {
                link.state.counts = Counts { moved, repeats, connected, failed };
                was_paused |= is_paused == 1;
            }
        }
        if was_paused {
            self.pause();
        }
    }
}

impl Bridges {
    /// Returns the state to be written, or `None` if there are no bridges.
    ///
    /// The text has these lines. Numbers that an older version does not know are appended. Lines that cannot be read
    /// are ignored.
    ///
    /// ```text
    ///   forward 0 8000 12 3 2 "plant"
    ///   direction, paused, moved, repeats, connected, failed, name
    ///
    ///   day 52800 1200000 3600000 "plant"
    ///   bytes of this day and of the day before, elapsed milliseconds of this day, name
    ///
    ///   inflow 1200 9600 "plant"
    ///   messages of this day and of the day before that arrived to be forwarded, name
    ///
    ///   cost forward 51200 1600 0 40000 160 90000 2400 0 60000 240 "plant"
    ///   direction, then for this day and the day before: bytes sent, received, repeated and of bodies, and
    ///   number of messages; name
    /// ```
    ///
    /// It is written when a bridge is paused or resumed, at the end, and whenever 1/16 of a daily budget was used.
    /// Otherwise it is written at most once per hour, to limit wear of the flash; with a daily budget also some times
    /// in the first hour.
    #[cold]
    pub(crate) fn state_text<P: Platform>(&mut self, shared: &Shared<P>) -> Option<String> {
        self.places.iter_mut().for_each(|bridge| bridge.note_inflow(&shared.broker));
        self.text_with_days(shared, |_| true)
    }

    /// Returns the state to be written, with the days of only those bridges for which `has_day` holds.
    fn text_with_days<P: Platform>(
        &self,
        shared: &Shared<P>,
        has_day: impl Fn(&Bridge) -> bool,
    ) -> Option<String> {
        let mut text = String::new();
        for bridge in self.places.iter().filter(|bridge| !bridge.state.is_leaving) {
            bridge.write_state(&mut text, shared.now, has_day(bridge));
        }
        (!text.is_empty()).then_some(text)
    }

    /// Restores the state from this text. The bridges exist already, and have done nothing yet.
    #[cold]
    pub(crate) fn restore(&mut self, text: &str, now: leveret_core::time::Now) {
        self.places.iter_mut().for_each(|bridge| bridge.read_state(text, now));
    }

    /// Plans to write the counters of a bridge that begins.
    pub(super) fn plan_store(&mut self, has_budget: bool, now: leveret_core::time::Now) {
        if has_budget {
            self.store_interval_ms = STORE_INTERVAL_FIRST_MS;
        }
        self.common.store_due = self.common.store_due.earlier(now.after_ms(self.store_interval_ms));
    }

    /// Lets the worker write the changed state, if that is due.
    pub(super) fn store_state<P: Platform>(&mut self, shared: &mut Shared<P>) {
        if !self.common.store_due.is_due(shared.now) {
            return;
        }
        self.store_interval_ms = (2 * self.store_interval_ms).min(STORE_INTERVAL_MAX_MS);
        self.common.store_due = shared.now.after_ms(self.store_interval_ms);
        // The elapsed time of a day always changes. Without a budget the day is only counted, and is no reason to
        // write.
        let reason = self.text_with_days(shared, |bridge| bridge.state.config.day_bytes_max.is_some());
        if reason != self.stored_text {
            shared.worker.bridge_state = self.state_text(shared);
            self.stored_text = reason;
        }
    }
}

/// Reads the numbers of a line with this prefix for the bridge `name`.
fn read<const COUNT: usize>(line: &str, prefix: &str, name: &str) -> Option<[u64; COUNT]> {
    let (numbers, named) = line.strip_prefix(prefix)?.split_once('"')?;
    if format!("\"{named}") != format!("{name:?}") {
        return None;
    }
    let mut words = numbers.split_ascii_whitespace();
    let mut numbers = [0; COUNT];
    for number in &mut numbers {
        *number = words.next()?.parse().ok()?;
    }
    Some(numbers)
}

/// Returns the numbers of the first matching line.
fn find<const COUNT: usize>(text: &str, prefix: &str, name: &str) -> Option<[u64; COUNT]> {
    text.lines().find_map(|line| read(line, prefix, name))
}

fn write(text: &mut String, prefix: &str, numbers: &[u64], name: &str) {
    text.push_str(prefix);
    for number in numbers {
        // Writing to a `String` cannot fail.
        let _ = write!(text, "{number} ");
    }
    let _ = writeln!(text, "{name:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counters_of_a_rule_do_not_restart_when_it_goes_on() {
        let mut rule_state = RuleState { moved_count: 7, oversized_count: 2, ..RuleState::default() };
        let now = Now::from_ms(0);
        rule_state.hold(now, &Cause::new(format_args!("refused")), Remedy::OneTaken, 60_000, 0);
        rule_state.end_due_wait(Now::from_ms(60_000));
        assert!(rule_state.note_taken() && rule_state.error().is_none());
        assert_eq!((rule_state.moved_count, rule_state.oversized_count), (7, 2));
    }

    #[test]
    fn a_line_is_read_by_the_bridge_that_it_is_of() {
        let line = "forward 1 8000 12 3 2 \"a \\\"b\\n\"";
        assert_eq!(read(line, "forward ", "a \"b\n"), Some([1, 8000, 12, 3, 2]));
        assert_eq!(read::<5>(line, "fetch ", "a \"b\n"), None);
        assert_eq!(read::<5>(line, "forward ", "a"), None);
        let torn =
            ["", "forward", "forward 1 2", "forward x 8000 12 3 2 \"a\"", "forward 1 2 3 \"a\"", &line[..20]];
        assert_eq!(torn.map(|torn| read::<5>(torn, "forward ", "a")), [None; 6]);
    }

    /// Earlier versions wrote the number of parked messages, by six causes.
    #[test]
    fn what_an_older_program_wrote_behind_it_is_left_out() {
        let line = "forward 1 8000 12 3 2 0 0 10 0 0 7 \"plant\"";
        assert_eq!(read(line, "forward ", "plant"), Some([1, 8000, 12, 3, 2]));
        for name in ["a", "1 2 3 4 5 6 7 8 9"] {
            let line = format!("day 52800 1200000 3600000 {name:?}");
            assert_eq!(read(&line, "day ", name), Some([52_800, 1_200_000, 3_600_000]));
            assert_eq!(read::<3>(&line, "day ", "b"), None);
        }
    }
}
