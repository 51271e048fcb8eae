//! What is known of bridges: what each is to do, how its links are, and what they have done.
//!
//! Always true: a link is in one phase, which owns what it needs; the last error of a link or rule is kept with
//! its time until the link works again or another error replaces it; the same error is logged again only after the link
//! was up for a while.

use core::net::SocketAddr;

use leveret_bridge::{Backoff, Cause, DayBudget, Demand, Inflow, Pace, Price};
use leveret_config::bridge::{Bridge as Config, Rule};
use leveret_config::shovels::DeleteAfter;
use leveret_core::command::ConnectionId;
use leveret_core::time::{Deadline, Now};

use super::contact::{Contact, Own};
use super::course::{Course, Told};

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
