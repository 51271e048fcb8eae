//! What is known of bridges: what each is to do, how its links are, and what they have done.
//!
//! Always true: a link is in one phase, which owns what it needs; the last error of a link or rule is kept with
//! its time until the link works again or another error replaces it; the same error is logged again only after the link
//! was up for a while.

use core::net::SocketAddr;
use std::fmt::Write as _;

use leveret_bridge::{Backoff, Cause, DayBudget, Demand, Inflow, Pace, Price};
use leveret_config::bridge::{Bridge as Config, Rule};
use leveret_config::shovels::DeleteAfter;
use leveret_core::command::ConnectionId;
use leveret_core::time::{Deadline, Now};

use super::traffic::{Contact, Own};
use super::{Bridges, NOTED_EVERY_MS};
use crate::platform::Platform;
use crate::state::Shared;

/// Addresses of a name that are tried.
pub(super) const ADDRESSES_MAX: usize = 8;

/// Which way messages go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Direction {
    /// From here to there.
    Forward,
    /// From there to here.
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

/// Which link of which bridge: places that hold until bridges that have left are dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LinkId {
    pub(super) place: usize,
    pub(super) link: usize,
}

/// One bridge.
pub(super) struct Bridge {
    pub(super) head: Head,
    /// One for each direction that it has rules for.
    pub(super) links: Vec<Link>,
}

/// What both links of a bridge share.
pub(super) struct Head {
    pub(super) config: Config,
    /// The number of the bridge, which no other had since the start.
    pub(super) serial: u64,
    pub(super) is_paused: bool,
    /// The bridge goes as soon as its links have ended.
    pub(super) is_leaving: bool,
    /// A queue that it has here could not be made yet: it is tried again then.
    pub(super) queues_due: Deadline,
    /// What was set aside is on its way back.
    pub(super) retry: Option<Retry>,
    /// What came of that the last time.
    pub(super) retried: Option<Cause>,
    /// When what is set aside goes back by itself.
    pub(super) retry_due: Deadline,
    /// What was said of messages that are set aside.
    pub(super) parked_alarm: ParkedAlarm,
    /// How fast messages are forwarded.
    pub(super) pace: Pace,
    /// How much went today.
    pub(super) day: DayBudget,
    /// The bytes of the day are used up: rules that are not urgent take nothing more.
    pub(super) is_held: bool,
    /// What comes in to be forwarded.
    pub(super) inflow: Inflow,
    /// What its links connect for; `None`: they are always there.
    pub(super) demand: Option<Demand>,
}

/// What was set aside, on its way back.
#[derive(Debug)]
pub(super) struct Retry {
    pub(super) own: Own,
    /// Messages that were not looked at yet.
    pub(super) left: u32,
    pub(super) moved: u32,
    pub(super) stayed: u32,
    /// Why the last of those stayed.
    pub(super) why: Option<Cause>,
}

/// What the log was told of messages that are set aside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ParkedAlarm {
    /// There was nothing in the queue for what is set aside, and nothing was put there since.
    Off,
    /// Whether messages are parked is not known yet.
    Unknown,
    /// The log was told that messages are parked.
    On,
}

impl ParkedAlarm {
    /// A message was set aside, or stayed so.
    pub(super) fn note_parked(&mut self) {
        if *self == Self::Off {
            *self = Self::Unknown;
        }
    }
}

/// One link.
pub(super) struct Link {
    pub(super) direction: Direction,
    pub(super) phase: Phase,
    pub(super) state: LinkState,
}

/// Where a link is.
pub(super) enum Phase {
    /// The link is tried again then.
    Waiting(Deadline),
    /// The name of the upstream is being looked up.
    LookingUp(u64),
    /// The link has a socket, which may not be connected yet.
    Connected(Box<Contact>),
    /// There is nothing to do for it.
    Resting,
    /// Somebody paused it.
    Paused,
}

/// What is known of a link, with a socket or without.
#[derive(Default)]
pub(super) struct LinkState {
    pub(super) backoff: Backoff,
    /// The upstream that is tried, or the next one.
    pub(super) upstream: usize,
    /// Addresses of it that were not tried yet.
    pub(super) addresses: heapless::Deque<SocketAddr, ADDRESSES_MAX>,
    pub(super) courses: Vec<Course>,
    pub(super) ready_since: Option<Now>,
    /// When it was open last, if it is not now.
    pub(super) was_ready: Option<Now>,
    /// When the link is to be asked whether it may rest.
    pub(super) rest_due: Deadline,
    /// The link may rest, and is ending for that.
    pub(super) is_going_to_rest: bool,
    /// Why the link was lost or not made, until it is up again. What holds a rule is the rule's own.
    pub(super) last_error: Option<(Cause, Now)>,
    /// What was logged last of each upstream since the link was up for long.
    logged: Vec<Told>,
    pub(super) counts: Counts,
    /// What it costs today, and cost the day before.
    pub(super) today: Price,
    pub(super) yesterday: Price,
    /// Messages that it has still to move, if it ends then.
    pub(super) left: Option<u64>,
    /// When it was made.
    pub(super) since: Now,
}

/// What a link has done since its bridge is there.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Counts {
    /// Messages that the other side has taken over.
    pub(super) moved: u64,
    /// Messages sent that may have been sent before.
    pub(super) repeats: u64,
    /// Times that it was open.
    pub(super) connected: u64,
    /// Times that it was not any more, or not at all.
    pub(super) failed: u64,
}

impl Counts {
    /// Adds what another link has counted.
    const fn add(&mut self, other: Self) {
        self.moved += other.moved;
        self.repeats += other.repeats;
        self.connected += other.connected;
        self.failed += other.failed;
    }
}

impl Bridge {
    /// One that is to begin now; `before`: the same before it was changed.
    pub(super) fn new(config: Config, serial: u64, now: Now, before: Option<&mut Self>) -> Self {
        let mut links = Vec::new();
        for (direction, rules) in Direction::BOTH.into_iter().zip([&config.forward, &config.fetch]) {
            if !rules.is_empty() {
                let state = LinkState::new(&config, rules.len(), now);
                links.push(Link { direction, phase: Phase::Waiting(now.after_ms(0)), state });
            }
        }
        // One that was changed has no new day, and goes on counting.
        let (day, is_held, inflow, is_paused) = match &before {
            Some(Self { head, .. }) => {
                (head.day.with_max(config.day_bytes_max), head.is_held, head.inflow, head.is_paused)
            }
            None => (DayBudget::new(config.day_bytes_max, now), false, Inflow::default(), false),
        };
        if let Some(before) = before {
            before.hand_counts_on(&mut links);
        }
        let head = Head {
            serial,
            is_paused: false,
            is_leaving: false,
            queues_due: Deadline::NEVER,
            retry: None,
            retried: None,
            retry_due: Deadline::NEVER,
            parked_alarm: ParkedAlarm::Unknown,
            pace: Pace::new(config.drain_rate, now),
            day,
            is_held,
            inflow,
            demand: config.on_demand.clone().map(|said| Demand::new(said, now)),
            config,
        };
        let mut bridge = Self { head, links };
        if is_paused {
            bridge.pause();
        }
        bridge
    }

    /// Pauses the bridge: its links are not to be tried, and none has a socket.
    pub(super) fn pause(&mut self) {
        self.head.is_paused = true;
        self.links.iter_mut().for_each(|link| link.phase = Phase::Paused);
    }

    /// What was counted goes on to the links of the same bridge as it was changed.
    pub(super) fn hand_counts_on(&mut self, links: &mut [Link]) {
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
        self.links.iter().any(|link| link.contact().is_some())
    }

    /// Rules try at once that wait for what they tried last.
    pub(super) fn hurry_rules(&mut self, now: Now) {
        let courses = self.links.iter_mut().flat_map(|link| &mut link.state.courses);
        courses.for_each(|course| course.hurry(now));
    }

    /// Whether a link rests that something could be done for.
    pub(super) fn may_be_wanted(&self) -> bool {
        let head = &self.head;
        let is_resting = self.links.iter().any(|link| matches!(link.phase, Phase::Resting));
        let mut rules = head.config.forward.iter().chain(&head.config.fetch);
        let may_move = !head.is_held || rules.any(|rule| rule.is_urgent);
        is_resting && may_move && !head.is_leaving
    }

    /// When something is due for it but for what its connected links say themselves.
    pub(super) fn deadline(&self) -> Deadline {
        let head = &self.head;
        let demand = head.demand.as_ref().filter(|_| self.may_be_wanted());
        let demand = demand.map_or(Deadline::NEVER, Demand::deadline);
        let links = self.links.iter().map(Link::deadline);
        let own = head.queues_due.earlier(head.retry_due).earlier(head.day.next_day()).earlier(demand);
        links.fold(own, Deadline::earlier)
    }
}

impl Head {
    /// Rules of a direction.
    pub(super) fn rules(&self, direction: Direction) -> &[Rule] {
        match direction {
            Direction::Forward => &self.config.forward,
            Direction::Fetch => &self.config.fetch,
        }
    }

    /// Whether a rule takes nothing until the next day.
    pub(super) fn holds(&self, rule: &Rule) -> bool {
        self.is_held && !rule.is_urgent
    }

    /// Whether its rules are not as its day is.
    pub(super) fn is_to_turn(&self) -> bool {
        !self.is_leaving && self.is_held != self.day.is_spent()
    }
}

impl Link {
    pub(super) fn contact(&self) -> Option<&Contact> {
        match &self.phase {
            Phase::Connected(contact) => Some(contact),
            _ => None,
        }
    }

    /// The peer that it is, if it has a socket.
    pub(super) fn peer(&self) -> Option<ConnectionId> {
        self.contact().map(|contact| contact.peer)
    }

    fn deadline(&self) -> Deadline {
        match &self.phase {
            Phase::Waiting(at) => *at,
            Phase::Connected(_) => self.state.rest_due.earlier(self.course_deadline()),
            Phase::LookingUp(_) | Phase::Resting | Phase::Paused => Deadline::NEVER,
        }
    }

    /// When a rule is to try that waits.
    pub(super) fn course_deadline(&self) -> Deadline {
        let is_tended = self.contact().is_some_and(Contact::is_tended);
        let courses = self.state.courses.iter().filter(|_| is_tended).map(Course::deadline);
        courses.fold(Deadline::NEVER, Deadline::earlier)
    }

    /// Rules that take nothing now: until the next day, or until what they wait for is mended.
    pub(super) fn held_rules(&self, head: &Head) -> usize {
        let rules = head.rules(self.direction).iter().zip(&self.state.courses);
        rules.filter(|(rule, course)| head.holds(rule) || course.error().is_some()).count()
    }

    /// The newest error that is not mended: of the link, or of a rule that is held.
    pub(super) fn last_error(&self) -> Option<(&Cause, Now)> {
        let of_link = self.state.last_error.as_ref().map(|(cause, at)| (cause, *at));
        let of_rules = self.state.courses.iter().filter_map(Course::error);
        of_link.into_iter().chain(of_rules).max_by_key(|(_, at)| *at)
    }
}

impl LinkState {
    fn new(config: &Config, rules: usize, now: Now) -> Self {
        let left = match config.shovel.as_ref().map(|shovel| shovel.delete_after) {
            Some(DeleteAfter::Messages(count)) => Some(count),
            Some(DeleteAfter::Never | DeleteAfter::QueueLength) | None => None,
        };
        Self {
            courses: vec![Course::default(); rules],
            logged: vec![Told::default(); config.upstream.len()],
            left,
            since: now,
            ..Self::default()
        }
    }

    /// Whether this cause is to be logged: not if it was among the last ones of this upstream, since the link
    /// was up.
    pub(super) fn is_news(&mut self, cause: &Cause) -> bool {
        self.logged[self.upstream].is_news(cause)
    }

    /// The link has been up for long enough: what happens next is news again.
    pub(super) fn forget_logged(&mut self) {
        self.logged.iter_mut().for_each(Told::forget);
    }
}

// What of bridges outlives a restart: who is paused, and what was counted.
//
// ```text
// forward 0 8000 12 3 2 "plant"
// direction, paused, moved, repeats, connected, failed, name
//
// day 52800 1200000 3600000 "plant"
// bytes of this day and of the one before, milliseconds that are gone of it, name
//
// inflow 1200 9600 "plant"
// messages of this day and of the one before that came in to be forwarded, name
//
// cost forward 51200 1600 0 40000 160 90000 2400 0 60000 240 "plant"
// direction, then of this day and of the one before: bytes sent, received, repeated, and of bodies, and
// messages; name
// ```
//
// Always true: it is written when somebody pauses or resumes a bridge, at the end, whenever a sixteenth of a
// day's budget was used, and otherwise once an hour at most, for the sake of the flash (with a budget some
// times in the first hour, too); numbers that a program does not know stand behind those that it does; what
// cannot be read is as if it were not there.

/// When it is for the first time if a day has a budget, in milliseconds; every pause is twice the one
/// before, up to [`NOTED_EVERY_MS`]. So a board that is cut from its power forgets half of a life at most,
/// and its day ends.
const NOTED_FIRST_MS: u64 = 60_000;

/// What a line that begins so says of a bridge of this name: the first of its numbers.
fn read<const COUNT: usize>(line: &str, prefix: &str, name: &str) -> Option<[u64; COUNT]> {
    let (said, named) = line.strip_prefix(prefix)?.split_once('"')?;
    if format!("\"{named}") != format!("{name:?}") {
        return None;
    }
    let mut words = said.split_ascii_whitespace();
    let mut numbers = [0; COUNT];
    for number in &mut numbers {
        *number = words.next()?.parse().ok()?;
    }
    Some(numbers)
}

/// What the first line that says it says.
fn find<const COUNT: usize>(notes: &str, prefix: &str, name: &str) -> Option<[u64; COUNT]> {
    notes.lines().find_map(|line| read(line, prefix, name))
}

fn write(text: &mut String, prefix: &str, numbers: &[u64], name: &str) {
    text.push_str(prefix);
    for number in numbers {
        // Writing into a String cannot fail.
        let _ = write!(text, "{number} ");
    }
    let _ = writeln!(text, "{name:?}");
}

impl Bridge {
    fn write_notes(&self, text: &mut String, now: leveret_core::time::Now, has_day: bool) {
        let (head, name) = (&self.head, &*self.head.config.name);
        for link in &self.links {
            let what = link.direction.name();
            let Counts { moved, repeats, connected, failed } = link.state.counts;
            let numbers = [u64::from(head.is_paused), moved, repeats, connected, failed];
            write(text, &format!("{what} "), &numbers, name);
            if has_day {
                let days = [link.state.today, link.state.yesterday];
                let numbers: Vec<u64> = days.iter().flat_map(Price::numbers).collect();
                write(text, &format!("cost {what} "), &numbers, name);
            }
        }
        if has_day {
            write(text, "day ", &head.day.numbers(now), name);
            write(text, "inflow ", &head.inflow.numbers(), name);
        }
    }

    fn read_notes(&mut self, notes: &str, now: leveret_core::time::Now) {
        let name = self.head.config.name.clone();
        if let Some(day) = find(notes, "day ", &name) {
            self.head.day.restore(now, day);
        }
        if let Some(inflow) = find(notes, "inflow ", &name) {
            self.head.inflow.restore(inflow);
        }
        let mut was_paused = false;
        for link in &mut self.links {
            let what = link.direction.name();
            if let Some(numbers) = find(notes, &format!("cost {what} "), &name) {
                let days: [u64; 2 * Price::NUMBERS] = numbers;
                if let [today, yesterday] = days.as_chunks().0 {
                    link.state.today = Price::from_numbers(*today);
                    link.state.yesterday = Price::from_numbers(*yesterday);
                }
            }
            let numbers = find(notes, &format!("{what} "), &name);
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
    /// What is to be written down; `None`: there are no bridges.
    #[cold]
    pub(crate) fn notes<P: Platform>(&mut self, shared: &Shared<P>) -> Option<String> {
        self.places.iter_mut().for_each(|bridge| bridge.note_inflow(&shared.broker));
        self.notes_with_days(shared, |_| true)
    }

    /// The same, with the days of those bridges alone.
    fn notes_with_days<P: Platform>(
        &self,
        shared: &Shared<P>,
        has_day: impl Fn(&Bridge) -> bool,
    ) -> Option<String> {
        let mut text = String::new();
        for bridge in self.places.iter().filter(|bridge| !bridge.head.is_leaving) {
            bridge.write_notes(&mut text, shared.now, has_day(bridge));
        }
        (!text.is_empty()).then_some(text)
    }

    /// Takes up what was written down; the bridges are there already, and nothing has been done with them.
    #[cold]
    pub(crate) fn restore(&mut self, notes: &str, now: leveret_core::time::Now) {
        self.places.iter_mut().for_each(|bridge| bridge.read_notes(notes, now));
    }

    /// A bridge begins: what it counts is to be written down, too.
    pub(super) fn plan_notes(&mut self, has_budget: bool, now: leveret_core::time::Now) {
        if has_budget {
            self.note_pause_ms = NOTED_FIRST_MS;
        }
        self.common.note_due = self.common.note_due.earlier(now.after_ms(self.note_pause_ms));
    }

    /// Has written down what changed, if it is time.
    pub(super) fn write_notes<P: Platform>(&mut self, shared: &mut Shared<P>) {
        if !self.common.note_due.is_due(shared.now) {
            return;
        }
        self.note_pause_ms = (2 * self.note_pause_ms).min(NOTED_EVERY_MS);
        self.common.note_due = shared.now.after_ms(self.note_pause_ms);
        // The day goes on whatever happens; where it is only counted, it is no reason to write.
        let reason = self.notes_with_days(shared, |bridge| bridge.head.config.day_bytes_max.is_some());
        if reason != self.noted {
            shared.worker.note = self.notes(shared);
            self.noted = reason;
        }
    }
}

// How one rule goes on, whatever becomes of its link: as ever, or waiting, or trying with one message.
//
// ```text
// going ─ refused, missing, full → waiting ─ due → trying ─ taken → going
//                                     ▲               │
//                                     └─── refused ───┘
// ```
//
// Always true: a rule that waits has no channel there and no consumer here, and holds nothing but itself; the
// range that pauses are taken from grows with each refusal, until something is taken, or its queue there was
// consumed for long; what was sent before a refusal and is taken after it ends no wait.

/// What was logged lately of a rule or an upstream: some causes, for they take turns.
#[derive(Clone, Default, Debug)]
pub(super) struct Told(heapless::HistoryBuf<Cause, 3>);

impl Told {
    /// Whether this cause is to be logged, as it is then.
    pub(super) fn is_news(&mut self, cause: &Cause) -> bool {
        let is_news = !self.0.contains(cause);
        if is_news {
            self.0.write(cause.clone());
        }
        is_news
    }

    /// What happens next is news.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}

/// What ends the trouble of a rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Remedy {
    /// Its channel at the upstream is open again.
    Open,
    /// A message is taken.
    Taken,
    /// A message that is sent alone is taken: they are tried one by one.
    OneTaken,
}

/// One rule's course.
#[derive(Clone, Default, Debug)]
pub(super) struct Course {
    backoff: Backoff,
    /// Why the rule is held, and since when; what ends that.
    error: Option<(Cause, Now, Remedy)>,
    waits: Option<Deadline>,
    /// Since when its queue there is consumed again, while nothing of it was taken.
    open_since: Option<Now>,
    /// What was refused was a message, or one of several: they are tried one by one.
    is_careful: bool,
    /// What was logged since it last went on.
    told: Told,
    /// Messages that nothing here can take, and that its queue there keeps.
    pub(super) held: u16,
}

impl Course {
    /// Whether it is to take nothing now.
    pub(super) fn waits(&self, now: Now) -> bool {
        self.waits.is_some_and(|until| !until.is_due(now))
    }

    /// When it tries; never if it does not wait.
    pub(super) fn deadline(&self) -> Deadline {
        self.waits.unwrap_or(Deadline::NEVER)
    }

    /// Ends the wait of the course if its time to try has come.
    pub(super) fn take_due(&mut self, now: Now) {
        self.waits.take_if(|until| until.is_due(now));
    }

    /// Has the course try now.
    pub(super) fn hurry(&mut self, now: Now) {
        if let Some(until) = &mut self.waits {
            *until = now.after_ms(0);
            self.backoff.reset();
            // One message at a time, all the same.
            self.backoff.note_failure();
        }
    }

    /// Why the rule is held, and since when; `None`: it is not held.
    pub(super) fn error(&self) -> Option<(&Cause, Now)> {
        self.error.as_ref().map(|(cause, at, _)| (cause, *at))
    }

    /// Notes that the channel at the upstream is open: an error that needed no more is mended.
    pub(super) fn note_ready(&mut self) {
        let is_careful = self.is_careful;
        self.error.take_if(|(.., remedy)| *remedy == Remedy::Open && !is_careful);
    }

    /// Whether it takes one message at a time, to see if that is taken.
    pub(super) const fn is_careful(&self) -> bool {
        self.is_careful
    }

    /// How often it was refused in a row.
    pub(super) const fn failures(&self) -> u32 {
        self.backoff.failures()
    }

    /// Has the course wait from now on, for this cause, until the remedy; says whether the cause is news.
    pub(super) fn wait(
        &mut self,
        now: Now,
        (cause, remedy): (&Cause, Remedy),
        most_ms: u64,
        chance: u64,
    ) -> bool {
        if self.waits.is_none() {
            self.waits = Some(self.backoff.fail(now, self.open_since.take(), most_ms, chance));
            if self.failures() == 1 {
                self.told.forget();
            }
        }
        self.is_careful |= remedy == Remedy::OneTaken;
        self.error = Some((cause.clone(), now, remedy));
        self.told.is_news(cause)
    }

    /// Notes that the queue at the upstream is consumed: if that lasts, it was all that the course waited for,
    /// unless a message was refused.
    pub(super) fn note_open(&mut self, now: Now) {
        self.open_since = Some(now).filter(|_| !self.is_careful);
    }

    /// Something was taken; whether it had to be tried.
    pub(super) fn note_taken(&mut self) -> bool {
        // What was under way before the refusal says nothing of what is to be tried.
        if self.waits.is_some() {
            return false;
        }
        let was_trying = self.failures() > 0;
        if was_trying {
            let held = self.held;
            *self = Self { held, ..Self::default() };
        }
        was_trying
    }
}

#[cfg(test)]
mod notes_tests {
    use super::*;

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

    /// Programs before this one wrote down how many messages were parked, by six causes.
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
