//! Rules that wait: what the other side does not take of a rule is tried again ever more rarely, one message
//! of it at a time, and all other rules of its bridge go on.
//!
//! ```text
//! Going ─ refused → Waiting ─ due → Trying ─ taken → Going
//!                      ▲               │
//!                      └─── refused ───┘
//! ```
//!
//! Always true: a rule that waits has no consumer, here or there; one that tries to forward has one that
//! holds a single message; what was given out to a rule when it began to wait goes back to its queue unsent.

use core::array;

use crate::bridge::{Cause, tag_of};
use crate::command::{Command, ConnectionId, Settlement};
use crate::config::bridge::RULES_MAX;
use crate::log_limiter::{LogKind, LogSource};
use crate::time::{Deadline, Now};

use super::bridge_course::{Appetite, Course, RuleCourse};
use super::bridge_link::{Direction, Flow, Link, LinkId};
use super::bridge_state::{Bridge, Phase};
use super::platform::Platform;
use super::state::Engine;

impl Bridge {
    /// Whether a rule waits for what it tried last.
    pub(super) const fn is_waiting(&self, direction: Direction, at: usize) -> bool {
        matches!(self.courses[direction as usize][at].course, Course::Waiting(_))
    }

    /// Whether a rule is to see if what was refused is taken now.
    pub(super) const fn is_trying(&self, direction: Direction, at: usize) -> bool {
        matches!(self.courses[direction as usize][at].course, Course::Trying)
    }

    /// When a rule that waits is to try.
    pub(super) fn trial_deadline(&self) -> Deadline {
        self.courses.iter().flatten().fold(Deadline::NEVER, |earliest, rule| match rule.course {
            Course::Waiting(until) => earliest.earlier(until),
            Course::Going | Course::Trying => earliest,
        })
    }

    /// Rules that wait try at once.
    pub(super) fn hurry_rules(&mut self, now: Now) {
        for rule in self.courses.iter_mut().flatten() {
            if let Course::Waiting(_) = rule.course {
                *rule = RuleCourse { course: Course::Waiting(now.after_ms(0)), ..RuleCourse::default() };
            }
        }
    }

    /// Whether another rule of this direction may take something.
    fn has_other(&self, direction: Direction, at: usize) -> bool {
        (0..self.rules(direction).len()).any(|other| other != at && !self.is_waiting(direction, other))
    }

    fn appetite(&self, held: u8, at: usize) -> Appetite {
        match held & 1 << at {
            0 if self.is_trying(Direction::Forward, at) => Appetite::One,
            0 => Appetite::All,
            _ => Appetite::Nothing,
        }
    }

    /// Rules that waited long enough try; which directions had some.
    fn begin_trials(&mut self, now: Now) -> [bool; 2] {
        self.courses.each_mut().map(|rules| {
            let mut had_some = false;
            for rule in rules {
                if matches!(rule.course, Course::Waiting(until) if until.is_due(now)) {
                    (rule.course, had_some) = (Course::Trying, true);
                }
            }
            had_some
        })
    }
}

impl<P: Platform> Engine<P> {
    /// Lets rules try that have waited long enough.
    pub(super) fn keep_trials(&mut self) {
        for place in 0..self.bridges.places.len() {
            let tries = self.bridges.places[place].begin_trials(self.now);
            for direction in Direction::BOTH.into_iter().filter(|direction| tries[*direction as usize]) {
                self.turn_direction(place, direction);
            }
        }
    }

    /// The consumers of a direction's link, if it has one, become what its rules want.
    #[cold]
    pub(super) fn turn_direction(&mut self, place: usize, direction: Direction) {
        let state = self.bridges.places[place].links[direction as usize].as_ref();
        if let Some(Phase::Connected(id)) = state.map(|state| state.phase) {
            self.with_link(id, |engine, link| {
                if let Err(cause) = engine.turn_consumers(id, link) {
                    engine.lose_link(id, link, cause);
                }
            });
        }
    }

    /// The consumers of a link become what its rules want; one that opens sees to its rules itself.
    ///
    /// # Errors
    /// The broker here refuses.
    #[cold]
    pub(super) fn turn_consumers(&mut self, id: ConnectionId, link: &mut Link) -> Result<(), Cause> {
        let Some((bridge, _)) = self.bridges.get(link.id) else { return Ok(()) };
        let held = bridge.held_rules(link.id.direction);
        let Flow::Forward(forward) = &mut link.flow else {
            link.client.hold(held);
            self.list_to_write(id);
            return Ok(());
        };
        let Some(channel) = link.channel.filter(|_| !link.is_draining) else { return Ok(()) };
        let rules = bridge.config.forward.clone();
        let count = rules.len();
        let wanted: [Appetite; RULES_MAX] =
            array::from_fn(|at| if at < count { bridge.appetite(held, at) } else { Appetite::Nothing });
        let before = core::mem::replace(&mut forward.taking, wanted);
        for (at, rule) in rules.iter().enumerate().filter(|(at, _)| before[*at] != wanted[*at]) {
            if before[at] != Appetite::Nothing {
                self.demand(id, channel, Command::Cancel { tag: &tag_of(at) })?;
            }
            match wanted[at] {
                Appetite::Nothing => {}
                Appetite::All => self.consume_here(id, channel, &rule.queue, at)?,
                Appetite::One => {
                    self.demand(id, channel, Command::Qos { prefetch_count: 1, global: false })?;
                    self.consume_here(id, channel, &rule.queue, at)?;
                    self.demand(id, channel, Command::Qos { prefetch_count: 0, global: false })?;
                }
            }
        }
        Ok(())
    }

    /// The other side does not take what a rule has for it: the rule waits.
    ///
    /// # Errors
    /// The broker here refuses.
    #[cold]
    pub(super) fn begin_wait(
        &mut self,
        id: ConnectionId,
        link: &mut Link,
        at: usize,
        cause: &Cause,
    ) -> Result<(), Cause> {
        if !self.note_waiting(link.id, at, cause) || link.cause.is_some() {
            return Ok(());
        }
        self.turn_consumers(id, link)
    }

    /// A rule waits from now on; `false`: it did already.
    #[cold]
    fn note_waiting(&mut self, link: LinkId, at: usize, cause: &Cause) -> bool {
        let (now, chance) = (self.now, self.bridges.chance());
        let Some(bridge) = self.bridges.get_mut(link).filter(|bridge| !bridge.is_waiting(link.direction, at))
        else {
            return false;
        };
        let most_ms = bridge.config.reconnect_max_ms.into();
        let rule = &mut bridge.courses[link.direction as usize][at];
        rule.course = Course::Waiting(rule.backoff.fail(now, None, most_ms, chance));
        self.note_cause(link, cause.clone(), "it is tried again, ever more rarely, and other rules go on");
        true
    }

    /// Something keeps a link, or a part of it, from going on: what, and what follows, is said if it is news.
    #[cold]
    pub(super) fn note_cause(&mut self, link: LinkId, cause: Cause, follows: &str) {
        let now = self.now;
        let Some(bridge) = self.bridges.get_mut(link) else { return };
        let (name, what) = (&bridge.config.name, link.direction.name());
        let Some(state) = &mut bridge.links[link.direction as usize] else { return };
        if state.is_news(&cause) {
            let upstream = &bridge.config.upstream[state.upstream];
            let text = format_args!("bridge {name}, {what}, {upstream}: {cause}; {follows}");
            self.supplies.log.warn(now, LogSource::Bridge(link.bridge), LogKind::Bridge, text);
        }
        state.last_error = Some((cause, now));
    }

    /// A rule's queue upstream cannot be consumed: the rule waits and others go on, if there are any.
    /// `false`: the link fails of it.
    #[cold]
    pub(super) fn waits_for_its_queue(&mut self, link: LinkId, at: usize, cause: &Cause) -> bool {
        let has_others =
            self.bridges.get(link).is_some_and(|(bridge, _)| bridge.has_other(link.direction, at));
        if has_others {
            self.note_waiting(link, at, cause);
            if let Some(state) = self.bridges.link_mut(link) {
                // The others are not to wait as well.
                state.backoff.reset();
            }
        }
        has_others
    }

    /// The consumers of a link that fetches have begun, all that were to: what rules tried is over with.
    ///
    /// # Errors
    /// The broker here refuses.
    #[cold]
    pub(super) fn end_trials(&mut self, id: ConnectionId, link: &mut Link) -> Result<(), Cause> {
        let Some((bridge, _)) = self.bridges.get(link.id) else { return Ok(()) };
        let held = bridge.held_rules(Direction::Fetch);
        let is_over = |at: usize| held & 1 << at == 0 && bridge.is_trying(Direction::Fetch, at);
        let over: heapless::Vec<usize, RULES_MAX> =
            (0..bridge.config.fetch.len()).filter(|at| is_over(*at)).collect();
        over.into_iter().try_for_each(|at| self.end_trial(id, link, at))
    }

    /// What a rule tried was taken.
    ///
    /// # Errors
    /// The broker here refuses.
    #[cold]
    pub(super) fn end_trial(&mut self, id: ConnectionId, link: &mut Link, at: usize) -> Result<(), Cause> {
        let Some(bridge) = self.bridges.get_mut(link.id) else { return Ok(()) };
        bridge.courses[link.id.direction as usize][at] = RuleCourse::default();
        let rule = &bridge.rules(link.id.direction)[at];
        let (name, what) = (&bridge.config.name, link.id.direction.name());
        let text = format_args!("bridge {name}, {what}: the rule of {} goes on", rule.queue);
        let source = LogSource::Bridge(link.id.bridge);
        self.supplies.log.log(self.now, log::Level::Info, source, LogKind::Bridge, text);
        self.turn_consumers(id, link)
    }

    /// What stands first in the outbox, and was taken out of it if `is_out`, goes back to its queue.
    #[cold]
    pub(super) fn give_back_first(&mut self, id: ConnectionId, link: &mut Link, tag: u64, is_out: bool) {
        let Some(channel) = link.channel else { unreachable!("what was given out was given to a channel") };
        if !is_out {
            let (broker, mut context) = self.broker_mut();
            broker.sent(&mut context, id, 1);
        }
        let settlement = Settlement::Requeue;
        let command = Command::Settle { delivery_tag: tag, multiple: false, settlement };
        match self.demand(id, channel, command) {
            Ok(()) => self.list_to_write(id),
            Err(cause) => self.lose_link(id, link, cause),
        }
    }
}
