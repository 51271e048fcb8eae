//! What is known of all bridges: what each is to do, how its links are, and what they have done.
//!
//! Always true: a link is in one phase; the last error of a link stays with its time until it is replaced,
//! whatever comes after it; one cause is logged once, until the link was up for long.

use core::net::SocketAddr;
use std::collections::VecDeque;

use crate::admin::request_context::PARKED_CAUSES;
use crate::bridge::{Backoff, Cause, DayBudget, Demand, Inflow, Origin, OwnId, Pace, Price, Refusal, parked};
use crate::command::ConnectionId;
use crate::config::bridge::{Bridge as Config, RULES_MAX, Rule};
use crate::mem::{MessageId, Messages};
use crate::time::{Deadline, Now};
use crate::wire::{Properties, Writer};

use super::bridge_course::RuleCourse;
use super::bridge_link::{Condemned, Direction, LinkId, Retry};

/// Causes of one upstream that are remembered, for some take turns.
const LOGGED_MAX: usize = 3;
/// Addresses of a name that are tried.
pub(super) const ADDRESSES_MAX: usize = 8;
/// More than the headers that a message gets, and the names in its publish, in bytes.
const MARKS_BYTES_MAX: usize = 2048;
/// Messages that wait to be set aside, for each bridge; what is beyond is sent again, and refused again.
const CONDEMNED_MAX: usize = 64;

/// How often what was counted is written down, in milliseconds.
pub(super) const NOTED_EVERY_MS: u64 = 3_600_000;
/// When it is for the first time if a day has a budget, in milliseconds; every pause is twice the one
/// before, up to [`NOTED_EVERY_MS`]. So a board that is cut from its power forgets half of a life at most,
/// and its day ends.
pub(super) const NOTED_FIRST_MS: u64 = 60_000;

/// All bridges.
pub(super) struct Bridges {
    pub(super) places: Vec<Bridge>,
    /// Those that the configuration says; parameters say others.
    pub(super) said: Vec<Config>,
    /// The version of the parameters that were looked at.
    pub(super) parameters_seen: u64,
    pub(super) max: usize,
    /// Links may speak TLS: there is memory for it.
    pub(super) has_tls_room: bool,
    pub(super) origin: Origin,
    pub(super) version: String,
    /// Room to write heads of messages and their headers in; empty when there is no bridge.
    pub(super) scratch: Scratch,
    /// What was written in one go.
    pub(super) written: Vec<Written>,
    /// Names that are to be looked up; the first is being, if that is said.
    pub(super) lookups: VecDeque<(LinkId, u64)>,
    pub(super) is_looking: bool,
    /// When what was counted is written down.
    pub(super) note_due: Deadline,
    /// So long after that it is written down again, in milliseconds.
    pub(super) note_pause_ms: u64,
    /// What was written last.
    pub(super) noted: Option<String>,
    pub(super) serials: u64,
    pub(super) tickets: u64,
    random: u64,
}

/// A message that was written, or is to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    /// Its delivery tag here.
    pub(super) tag: u64,
    pub(super) id: OwnId,
    pub(super) rule: u8,
    pub(super) is_repeat: bool,
    /// Octets of its body.
    pub(super) body: u32,
    /// Octets of all of it.
    pub(super) bytes: u64,
    /// Where its last octet stands.
    pub(super) end: usize,
}

/// Room for one message's head and headers.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) headers: Box<[u8]>,
    pub(super) properties: Box<[u8]>,
    pub(super) edited: Box<[u8]>,
    pub(super) head: Box<[u8]>,
}

/// One bridge.
pub(super) struct Bridge {
    pub(super) config: Config,
    pub(super) serial: u64,
    pub(super) links: [Option<LinkState>; 2],
    pub(super) is_paused: bool,
    /// It goes as soon as its links have ended.
    pub(super) is_leaving: bool,
    pub(super) condemned: VecDeque<Condemned>,
    /// What was set aside is on its way back.
    pub(super) retry: Option<Retry>,
    /// What came of that the last time.
    pub(super) retried: Option<Cause>,
    /// What was said of messages that are set aside.
    pub(super) parked_alarm: ParkedAlarm,
    /// So many messages are sent one by one, to find the one over which the upstream closes its channel.
    pub(super) careful: usize,
    /// How fast messages are forwarded.
    pub(super) pace: Pace,
    /// How much went today.
    pub(super) day: DayBudget,
    /// That is all that may: rules that are not urgent take nothing more.
    pub(super) is_held: bool,
    /// What comes in to be forwarded.
    pub(super) inflow: Inflow,
    /// How many messages leave in 1,000 seconds when many wait, once that was seen.
    pub(super) drain_per_1000_s: Option<u64>,
    /// How the rules of each direction go on.
    pub(super) courses: [[RuleCourse; RULES_MAX]; 2],
    /// What its links connect for; `None`: they are always there.
    pub(super) demand: Option<Demand>,
}

/// What the log was told of messages that are set aside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ParkedAlarm {
    /// There was nothing in the queue for what is set aside, and nothing was put there since.
    Off,
    /// There may be something in it.
    Unknown,
    /// It was said that there is.
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

/// Where a link is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// It is tried again then.
    Waiting(Deadline),
    /// Its name is being looked up.
    LookingUp(u64),
    /// It has a socket, which may not be connected yet.
    Connected(ConnectionId),
    /// There is nothing to do for it.
    Resting,
    /// Somebody paused it.
    Paused,
}

/// One link, with a socket or without.
pub(super) struct LinkState {
    pub(super) phase: Phase,
    pub(super) backoff: Backoff,
    /// The upstream that is tried, or the next one.
    pub(super) upstream: usize,
    /// Addresses of it that were not tried yet.
    pub(super) addresses: heapless::Deque<SocketAddr, ADDRESSES_MAX>,
    pub(super) ready_since: Option<Now>,
    /// When messages could flow last, if they cannot now.
    pub(super) was_ready: Option<Now>,
    /// When it is to be asked whether it may rest.
    pub(super) rest_due: Deadline,
    /// It may, and is ending.
    pub(super) is_going_to_rest: bool,
    pub(super) last_error: Option<(Cause, Now)>,
    /// What was logged last of each upstream since the link was up.
    logged: Vec<heapless::Vec<Cause, LOGGED_MAX>>,
    pub(super) counts: Counts,
    /// What it costs today, and cost the day before.
    pub(super) today: Price,
    pub(super) yesterday: Price,
    /// It was up since the start of the broker.
    pub(super) has_been_up: bool,
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
    /// Messages set aside, by why.
    pub(super) parked: [u64; PARKED_KINDS.len()],
    /// Times that messages could flow.
    pub(super) connected: u64,
    /// Times that they could not any more, or not at all.
    pub(super) failed: u64,
}

impl Counts {
    /// That as well.
    pub(super) fn add(&mut self, other: Self) {
        self.moved += other.moved;
        self.repeats += other.repeats;
        self.connected += other.connected;
        self.failed += other.failed;
        self.parked.iter_mut().zip(other.parked).for_each(|(count, more)| *count += more);
    }
}

/// Why messages are set aside, as they are counted.
pub(super) const PARKED_KINDS: [&str; PARKED_CAUSES] =
    ["unroutable", "nacked", "closed", "too_large", "hops", "refused_here"];
/// The last of them: the broker here does not take it.
pub(super) const REFUSED_HERE: usize = 5;

/// Which of them it is.
pub(super) const fn parked_kind(why: Refusal) -> usize {
    match why {
        Refusal::Returned(_) => 0,
        Refusal::Nacked => 1,
        Refusal::Closed(_) => 2,
        Refusal::TooLarge => 3,
        Refusal::Hops => 4,
    }
}

impl Bridges {
    pub(super) fn new(max: usize, frame_max: usize, version: &str, seed: u64) -> Self {
        let mut bridges = Self {
            places: Vec::with_capacity(max),
            said: Vec::new(),
            parameters_seen: 0,
            max,
            has_tls_room: false,
            origin: Origin::default(),
            version: version.to_string(),
            scratch: Scratch::default(),
            written: Vec::new(),
            lookups: VecDeque::with_capacity(2 * max),
            is_looking: false,
            note_due: Deadline::NEVER,
            note_pause_ms: NOTED_EVERY_MS,
            noted: None,
            serials: 0,
            tickets: 0,
            random: seed | 1,
        };
        if max > 0 {
            bridges.scratch = Scratch::new(frame_max);
            // Where there is no store it stands for this process.
            let numbers = [bridges.chance(), bridges.chance()].map(u64::to_be_bytes);
            bridges.origin.store = core::array::from_fn(|at| numbers[at / 8][at % 8]);
        }
        bridges
    }

    /// Any number.
    pub(super) const fn chance(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A bridge that is to begin now.
    pub(super) fn add(&mut self, config: Config, now: Now) {
        self.serials += 1;
        if config.day_bytes_max.is_some() {
            self.note_pause_ms = NOTED_FIRST_MS;
        }
        self.note_due = self.note_due.earlier(now.after_ms(self.note_pause_ms));
        let state = |rules: &[Rule]| (!rules.is_empty()).then(|| LinkState::new(&config, now));
        let mut links = [state(&config.forward), state(&config.fetch)];
        let (serial, pace) = (self.serials, Pace::new(config.drain_rate, now));
        // One that was changed has no new day.
        let before = self.places.iter_mut().rfind(|bridge| bridge.config.name == config.name);
        let (day, is_held, inflow) = match &before {
            Some(bridge) => (bridge.day.with_max(config.day_bytes_max), bridge.is_held, bridge.inflow),
            None => (DayBudget::new(config.day_bytes_max, now), false, Inflow::default()),
        };
        // Nor are its counters.
        if let Some(bridge) = before {
            bridge.hand_counts_on(&mut links);
        }
        let demand = config.on_demand.clone().map(|said| Demand::new(said, now));
        self.places.push(Bridge {
            config,
            serial,
            links,
            is_paused: false,
            is_leaving: false,
            condemned: VecDeque::with_capacity(CONDEMNED_MAX),
            retry: None,
            retried: None,
            parked_alarm: ParkedAlarm::Unknown,
            careful: 0,
            pace,
            day,
            is_held,
            courses: Default::default(),
            demand,
            inflow,
            drain_per_1000_s: None,
        });
    }

    pub(super) fn get(&self, id: LinkId) -> Option<(&Bridge, &LinkState)> {
        let bridge = self.places.iter().find(|bridge| bridge.serial == id.bridge)?;
        Some((bridge, bridge.links[id.direction as usize].as_ref()?))
    }

    pub(super) fn get_mut(&mut self, id: LinkId) -> Option<&mut Bridge> {
        self.places.iter_mut().find(|bridge| bridge.serial == id.bridge)
    }

    pub(super) fn link_mut(&mut self, id: LinkId) -> Option<&mut LinkState> {
        self.get_mut(id)?.links[id.direction as usize].as_mut()
    }

    /// The first link of which this holds.
    pub(super) fn find(&self, is_it: &dyn Fn(&LinkState) -> bool) -> Option<LinkId> {
        for bridge in &self.places {
            for direction in Direction::BOTH {
                if bridge.links[direction as usize].as_ref().is_some_and(is_it) {
                    return Some(LinkId { bridge: bridge.serial, direction });
                }
            }
        }
        None
    }

    /// When a link is to be tried.
    pub(super) fn deadline(&self) -> Deadline {
        let mut earliest = if self.places.is_empty() { Deadline::NEVER } else { self.note_due };
        for link in self.places.iter().flat_map(|bridge| bridge.links.iter().flatten()) {
            if let Phase::Waiting(at) = link.phase {
                earliest = earliest.earlier(at);
            }
            earliest = earliest.earlier(link.rest_due);
        }
        earliest = self.places.iter().map(Bridge::demand_deadline).fold(earliest, Deadline::earlier);
        earliest = self.places.iter().map(Bridge::trial_deadline).fold(earliest, Deadline::earlier);
        self.places.iter().map(|bridge| bridge.day.next_day()).fold(earliest, Deadline::earlier)
    }

    /// Whether a link has a socket.
    pub(super) fn is_connected(&self) -> bool {
        self.find(&|link| matches!(link.phase, Phase::Connected(_))).is_some()
    }
}

impl Scratch {
    fn new(frame_max: usize) -> Self {
        let room = |bytes: usize| vec![0; bytes].into_boxed_slice();
        Self {
            headers: room(frame_max + MARKS_BYTES_MAX),
            properties: room(frame_max),
            edited: room(frame_max + MARKS_BYTES_MAX),
            head: room(frame_max + MARKS_BYTES_MAX),
        }
    }

    /// The properties of a message that is set aside: why, by which bridge, from which queue here if it was
    /// in one, and when. Headers that are too long already stay as they are, for it must be delivered one
    /// day.
    pub(super) fn of_parked(
        &mut self,
        (messages, message): (&Messages, MessageId),
        words: (&str, Option<&str>, &str),
        unix_s: u64,
        frame_max: u32,
    ) -> &[u8] {
        let Self { headers, properties, edited, .. } = self;
        let properties = Properties::trusted(messages.properties(message, properties));
        let mut writer = Writer::new(edited);
        let is_written = parked(properties, words, unix_s, headers, &mut writer).is_ok();
        let mut len = writer.at();
        if !is_written || len + 32 > frame_max as usize {
            len = properties.as_bytes().len();
            edited[..len].copy_from_slice(properties.as_bytes());
        }
        &edited[..len]
    }

    /// Bytes of all of it.
    pub(super) const fn bytes(frame_max: usize) -> usize {
        4 * frame_max + 3 * MARKS_BYTES_MAX
    }
}

impl Bridge {
    /// Its links are not to be tried; none has a socket.
    pub(super) fn pause(&mut self) {
        self.is_paused = true;
        self.links.iter_mut().flatten().for_each(|state| state.phase = Phase::Paused);
    }

    /// A message is to be set aside when it comes by the next time.
    pub(super) fn condemn(&mut self, id: OwnId, why: Refusal) {
        if self.condemned.len() == CONDEMNED_MAX {
            self.condemned.pop_front();
        }
        self.condemned.push_back(Condemned { id, why });
    }

    /// Whether a message is to be set aside, and why.
    pub(super) fn is_condemned(&self, id: OwnId) -> Option<Refusal> {
        self.condemned.iter().find(|condemned| condemned.id == id).map(|condemned| condemned.why)
    }

    /// It was, or somebody else has it.
    pub(super) fn absolve(&mut self, id: OwnId) {
        self.condemned.retain(|condemned| condemned.id != id);
    }

    /// Rules of a direction that take nothing now, a bit for each: until the next day, or until what was not
    /// taken of them is tried again.
    pub(super) fn held_rules(&self, direction: Direction) -> u8 {
        let rules = self.rules(direction).iter().enumerate();
        let held =
            rules.filter(|(at, rule)| self.is_held && !rule.is_urgent || self.is_waiting(direction, *at));
        held.fold(0, |held, (at, _)| held | 1 << at)
    }

    /// What was counted goes on to the links of the same bridge as it was changed.
    pub(super) fn hand_counts_on(&mut self, links: &mut [Option<LinkState>; 2]) {
        for (from, to) in self.links.iter_mut().zip(links) {
            let (Some(from), Some(to)) = (from, to) else { continue };
            to.counts.add(core::mem::take(&mut from.counts));
            to.today.add(core::mem::take(&mut from.today));
            to.yesterday.add(core::mem::take(&mut from.yesterday));
        }
    }

    /// Rules of a direction.
    pub(super) fn rules(&self, direction: Direction) -> &[Rule] {
        match direction {
            Direction::Forward => &self.config.forward,
            Direction::Fetch => &self.config.fetch,
        }
    }
}

impl LinkState {
    fn new(config: &Config, now: Now) -> Self {
        Self {
            phase: Phase::Waiting(now.after_ms(0)),
            backoff: Backoff::default(),
            upstream: 0,
            addresses: heapless::Deque::new(),
            ready_since: None,
            was_ready: None,
            rest_due: Deadline::NEVER,
            is_going_to_rest: false,
            last_error: None,
            logged: vec![heapless::Vec::new(); config.upstream.len()],
            counts: Counts::default(),
            today: Price::default(),
            yesterday: Price::default(),
            has_been_up: false,
            left: Self::left_at_first(config),
            since: now,
        }
    }

    /// Whether this cause is to be logged: not if it was among the last ones of this upstream, since the link
    /// was up.
    pub(super) fn is_news(&mut self, cause: &Cause) -> bool {
        let Some(logged) = self.logged.get_mut(self.upstream) else { return true };
        if logged.contains(cause) {
            return false;
        }
        if logged.is_full() {
            logged.remove(0);
        }
        let is_kept = logged.push(cause.clone()).is_ok();
        debug_assert!(is_kept, "there was room made");
        true
    }

    /// The link has been up for long enough: what happens next is news again.
    pub(super) fn forget_logged(&mut self) {
        self.logged.iter_mut().for_each(heapless::Vec::clear);
    }
}
