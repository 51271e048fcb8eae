//! One life of the broker, from its start to whatever ends it: the engine that serves in the field, its
//! clients, what lies between them, and the clock.
//!
//! ```text
//! step: clients do something ─ what is under way arrives ─ the engine takes a turn if its loop would wake up
//!       ─ nothing moved? the clock jumps to whatever is due next
//! ```
//!
//! A rest is a moment at which nothing moves, nothing is under way and the engine sleeps. Then somebody says
//! of every socket that it is ready, which is not true, and a turn is taken: whoever gets on by that could
//! have gone on before, and nothing would have woken the loop.
//!
//! Always true: a life ends with the first complaint; whatever the engine does in the turn in which the power
//! goes is seen by nobody.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use leveret::broker::Gauges;
use leveret::engine::Engine;
use leveret::time::{Deadline, Now};
use leveret::wire::Method;

use super::actor::{Actor, Leaving, Link, Mode, Pending};
use super::ledger::Key;
use super::plan::{USERS, VHOSTS};
use super::run::Run;
use super::topology::may_go;
use super::traffic::Mood;
use super::world::{Client, Line, Manners, Memory, Phase, Shape, close_connection, delete, passive};

/// What ends a life from within.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// The power went, or the disk failed: the process is gone.
    Disk,
    /// Something is wrong.
    Complaint,
}

/// Steps in which everything must come to rest.
const CALM_STEPS: u64 = 60_000;
/// Nobody waits for an answer and nothing is delivered for so long: then nothing comes any more.
const CALM_MS: u64 = 3_000;
/// Polite clients have so long.
const POLITE_MS: u64 = 10_000;
/// A peer that is gone while it waits for room is given up after so long.
const LOST_MS: u64 = 700_000;
/// Turns at one instant after which an engine that still has work is held to be running in circles.
const TURNS_MAX: u64 = 100_000;

pub struct Life<'r> {
    pub run: &'r mut Run,
    pub engine: Engine<Memory>,
    pub actors: Vec<Actor>,
    pub now: u64,
    pub mood: Mood,
    /// Clients ask for nothing new, and connections do no harm.
    pub is_calm: bool,
    turns_in_a_row: u64,
}

impl<'r> Life<'r> {
    pub fn new(run: &'r mut Run, engine: Engine<Memory>) -> Self {
        let mood = run.random.one_of(&[Mood::Mixed, Mood::Mixed, Mood::Flood, Mood::Ebb]);
        Self { run, engine, actors: Vec::new(), now: 0, mood, is_calm: false, turns_in_a_row: 0 }
    }

    pub const fn clock(&self) -> Now {
        Now::from_ms(self.now)
    }

    /// So many steps, with whatever clients think of.
    pub fn run(&mut self, steps: u64) -> Result<(), Ended> {
        (0..steps).try_for_each(|_| self.step())
    }

    // ---- connections

    /// A client connects.
    pub fn connect(&mut self) {
        let plan = &self.run.plan;
        let (latency_ms, trouble, heartbeat_s) =
            (plan.latency_ms, plan.link_trouble_one_in, plan.heartbeat_s);
        let random = &mut self.run.random;
        let at = usize::from(random.one_in(3));
        let shape = match random.below(4) {
            0 => Shape { up_fragment: 7, up_room: 9_000, down_fragment: 300, down_room: 6_000 },
            1 => Shape { up_fragment: 1_460, up_room: 20_000, down_fragment: 1_460, down_room: 9_000 },
            _ => Shape { up_room: 200_000, down_room: 200_000, ..Shape::WIDE },
        };
        let mut line = Line::new(shape);
        if !self.is_calm && trouble > 0 && random.one_in(trouble) {
            let cut = Some(random.below(20_000));
            (line.cut_up, line.cut_down) = if random.one_in(2) { (cut, None) } else { (None, cut) };
        }
        let line = Rc::new(RefCell::new(line));
        let manners = Manners {
            heartbeat_s,
            user: USERS[at],
            vhost: VHOSTS[at],
            greed: if random.one_in(4) { 1_000 } else { usize::MAX },
            sends_first: random.one_in(8),
            ..Manners::default()
        };
        let number = self.run.next_connection;
        self.run.next_connection += 1;
        self.run.counts.connections += 1;
        let [.., b, c] = number.to_be_bytes();
        self.engine.platform.arrive(&line, SocketAddr::from(([127, 0, b, c], 7)));
        let link = Link { latency_ms, ..Link::default() };
        let mut actor = Actor::new(number, VHOSTS[at], Client::new(manners), line, link);
        actor.act_at = self.now;
        self.actors.push(actor);
    }

    /// What connections suffer.
    fn trouble_links(&mut self) {
        let one_in = self.run.plan.link_trouble_one_in;
        if one_in == 0 || self.is_calm || self.actors.is_empty() || !self.run.random.one_in(one_in * 10) {
            return;
        }
        let random = &mut self.run.random;
        let at = random.below(self.actors.len() as u64) as usize;
        let (what, long) = (random.below(6), self.now + random.below(8_000));
        let actor = &mut self.actors[at];
        match what {
            // One direction stalls for a while.
            0 | 1 => actor.link.up_at = long,
            2 | 3 => actor.link.down_at = long,
            // Reset.
            4 => {
                actor.vanish(&mut self.run.ledger);
                actor.line.borrow_mut().lose();
            }
            // Half open: nobody is there any more, and nobody says so.
            _ => actor.vanish(&mut self.run.ledger),
        }
    }

    /// Everything arrives that is due; says whether anything moved.
    fn exchange(&mut self) -> bool {
        let mut moved = false;
        let (now, clock) = (self.now, self.clock());
        for actor in &mut self.actors {
            let random = &mut self.run.random;
            if actor.link.up_at <= now {
                let has_moved = actor.line.borrow_mut().arrive();
                if has_moved && actor.link.latency_ms > 0 {
                    actor.link.up_at = now + random.below(actor.link.latency_ms);
                }
                moved |= has_moved;
            }
            if actor.link.down_at <= now {
                let has_moved = actor.step(&mut self.run.ledger, clock);
                if has_moved && actor.link.latency_ms > 0 {
                    actor.link.down_at = now + random.below(actor.link.latency_ms);
                }
                moved |= has_moved;
            }
            actor.line.borrow_mut().offer_space();
        }
        moved
    }

    // ---- turns

    /// The engine takes a turn, if something was reported or it has work or something is due.
    fn turn(&mut self) -> Result<bool, Ended> {
        self.engine.set_now(self.clock());
        let is_woken = Memory::report(&mut self.engine);
        let is_due = self.engine.sleeps_until().is_none_or(|deadline| deadline.is_due(self.clock()));
        if !is_woken && !is_due {
            self.turns_in_a_row = 0;
            return Ok(false);
        }
        self.turns_in_a_row += 1;
        if self.turns_in_a_row > TURNS_MAX {
            self.run.ledger.complain(format!("the engine does not come to rest: {:?}", self.engine));
            return Err(Ended::Complaint);
        }
        self.take_turn()?;
        Ok(true)
    }

    fn take_turn(&mut self) -> Result<(), Ended> {
        let outcome = self.engine.turn();
        if self.run.disk.is_off() || outcome.is_err() {
            return Err(Ended::Disk);
        }
        for actor in &mut self.actors {
            actor.note_turn(&mut self.run.ledger);
        }
        self.check_bounds();
        self.check()
    }

    /// What holds after each turn: every pool is within its limit.
    fn check_bounds(&mut self) {
        let (limits, gauges, messages) =
            (&self.run.plan.limits, self.engine.broker().gauges(), self.engine.messages());
        let is_within = messages.messages_used() <= limits.messages_max as usize
            && messages.body_bytes_used() as u64 <= limits.body_bytes_max
            && gauges.connections <= limits.connections_max as usize
            && gauges.channels <= limits.channels_max as usize
            && gauges.consumers <= limits.consumers_max as usize
            && gauges.queues <= limits.queues_max as usize
            && gauges.deliveries <= limits.unacknowledged_max as usize;
        if !is_within {
            self.run.ledger.complain(format!("a pool is larger than its limit: {gauges:?}"));
        }
    }

    fn check(&self) -> Result<(), Ended> {
        if self.run.ledger.complaints.is_empty() { Ok(()) } else { Err(Ended::Complaint) }
    }

    fn step(&mut self) -> Result<(), Ended> {
        self.trouble_links();
        if !self.is_calm {
            self.act();
        }
        let moved = self.exchange();
        self.check()?;
        let turned = self.turn()?;
        self.actors.retain(|actor| !actor.is_over());
        if moved || turned {
            self.now += u64::from(self.run.random.one_in(3));
            return Ok(());
        }
        if self.is_at_rest() && (self.is_calm || self.run.random.one_in(4)) {
            self.look_for_sleepers()?;
        }
        self.jump();
        Ok(())
    }

    /// Nothing is under way, and nobody can go on before something is due.
    fn is_at_rest(&self) -> bool {
        let is_still = |actor: &Actor| {
            let line = actor.line.borrow();
            !line.has_to_arrive() && (actor.client.unsent() == 0 || actor.leaving != Leaving::No)
        };
        self.actors.iter().all(is_still)
    }

    /// Nobody sleeps who could go on.
    fn look_for_sleepers(&mut self) -> Result<(), Ended> {
        self.run.counts.rests += 1;
        let before = self.progress();
        let shown = format!("{:?}", self.engine);
        Memory::report_falsely(&mut self.engine);
        for _ in 0..4 {
            self.take_turn()?;
        }
        let after = self.progress();
        if before != after {
            let what = "somebody slept who could go on";
            self.run.ledger.complain(format!("{what}: {before:?} became {after:?}; it was {shown}"));
        }
        self.check()
    }

    /// What changes when anybody gets on, by connection: octets taken by the broker, and given.
    fn progress(&self) -> Vec<(u64, usize, u64)> {
        let of = |actor: &Actor| {
            let line = actor.line.borrow();
            (actor.number, line.waiting_up(), line.sent_down())
        };
        self.actors.iter().map(of).collect()
    }

    /// Time passes until something is due.
    fn jump(&mut self) {
        let mut next = self.engine.next_deadline();
        if let Some(due_ms) = self.engine.platform.helpers.due_ms() {
            next = next.earlier(Now::from_ms(due_ms).after_ms(0));
        }
        let mut at = next.ms_left(self.clock()).map_or(u64::MAX, |left| self.now + left);
        for actor in &self.actors {
            if !self.is_calm && actor.is_open() {
                at = at.min(actor.act_at);
            }
            let line = actor.line.borrow();
            if line.has_to_arrive() {
                at = at.min(actor.link.up_at);
            }
            if line.unread() > 0 || actor.client.unsent() > 0 {
                at = at.min(actor.link.down_at);
            }
            if let Some(left) = actor.client.next_deadline().ms_left(self.clock()) {
                at = at.min((self.now + left).max(actor.link.down_at));
            }
        }
        if !self.is_calm {
            at = at.min(self.now + 1 + self.run.random.below(50));
        }
        self.now = if at == u64::MAX { self.now + 1_000 } else { at.max(self.now + 1) };
    }

    // ---- ends

    /// Steps without anything new until all who are there have what they asked for.
    fn calm_down(&mut self, what: &str) -> Result<(), Ended> {
        self.is_calm = true;
        for actor in &mut self.actors {
            (actor.link.up_at, actor.link.down_at) = (self.now, self.now);
        }
        let mut since = (self.now, 0);
        for _ in 0..CALM_STEPS {
            self.step()?;
            let delivered = self.run.ledger.delivered;
            let is_quiet =
                self.actors.iter().all(Actor::is_at_rest) && self.engine.platform.helpers.due_ms().is_none();
            if !is_quiet || delivered != since.1 {
                since = (self.now, delivered);
            }
            let is_read =
                self.actors.iter().all(|actor| actor.line.borrow().unread() == 0 || !actor.is_open());
            if self.now > since.0 + CALM_MS && self.is_at_rest() && is_read {
                self.run.ledger.check_contests();
                if self.actors.iter().any(|actor| actor.is_open() && actor.client.checker.is_doomed()) {
                    self.run.ledger.complain("a get has no answer".into());
                }
                return self.check();
            }
        }
        let waiting: Vec<String> =
            self.actors.iter().filter(|actor| !actor.is_at_rest()).map(Actor::shown).collect();
        self.run.ledger.complain(format!("{what}: not at rest: {waiting:?}; {:?}", self.engine));
        Err(Ended::Complaint)
    }

    /// A clean stop, as of the process.
    pub fn stop(&mut self) {
        self.is_calm = true;
        self.engine.begin_stop("by the simulator");
        let is_stopped = self.try_stop();
        self.run.counts.stops += 1;
        if is_stopped && !self.run.is_full {
            self.run.ledger.stop();
        }
    }

    /// Whether all of it was written.
    fn try_stop(&mut self) -> bool {
        while !self.engine.is_stopped() {
            if self.step().is_err() {
                return false;
            }
        }
        let mut goes_on = self.engine.begin_flush();
        for _ in 0..2 {
            while goes_on {
                let deadline = self.engine.flush_sleeps_until().unwrap_or(self.clock().after_ms(0));
                let due = self.engine.platform.helpers.due_ms();
                let due = due.map_or(Deadline::NEVER, |due_ms| Now::from_ms(due_ms).after_ms(0));
                self.now += deadline.earlier(due).ms_left(self.clock()).unwrap_or(1);
                self.engine.set_now(self.clock());
                self.engine.platform.helpers.now_ms = self.now;
                match self.engine.flush() {
                    Ok(more) if !self.run.disk.is_off() => goes_on = more,
                    _ => return false,
                }
            }
            goes_on = self.engine.end_store();
        }
        true
    }

    /// The process is gone, with every connection.
    pub fn end(mut self) {
        for actor in &mut self.actors {
            actor.vanish(&mut self.run.ledger);
            actor.line.borrow_mut().is_held = false;
            actor.note_turn(&mut self.run.ledger);
        }
        let helpers = &self.engine.platform.helpers;
        self.run.counts.commits += helpers.commits;
        self.run.counts.reads += helpers.reads;
    }

    /// Everybody leaves, politely or not; nobody is left when they have had their time.
    fn lose_everybody(&mut self) -> Result<(), Ended> {
        self.is_calm = true;
        for actor in &mut self.actors {
            if actor.is_open() && self.run.random.one_in(2) {
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
            // Whoever says goodbye behind something that waits for room waits with it.
            for actor in &mut self.actors {
                actor.vanish(&mut self.run.ledger);
                actor.line.borrow_mut().lose();
            }
        }
        if self.engine.broker().gauges().connections > 0 {
            let what = format!(
                "{} peers are gone and nobody noticed: {:?}",
                self.engine.broker().gauges().connections,
                self.engine
            );
            self.run.ledger.complain(what);
        }
        self.check()
    }

    /// Two clients, one in each virtual host, and a channel of each.
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
                return self.calm_down("two clients come in");
            }
        }
        self.run.ledger.complain("nobody gets in".into());
        Err(Ended::Complaint)
    }

    /// Asks for something on the channel of whoever cleans up in a virtual host.
    fn ask_cleaner(&mut self, vhost: &str, pending: Pending, method: &Method<'_>) {
        if let Some(actor) = self.actors.iter_mut().find(|actor| actor.vhost == vhost && actor.is_open()) {
            let number = actor.next_channel;
            actor.ask(&mut self.run.ledger, number, pending, method);
        }
    }

    /// The queues that there are, found out where nobody knows.
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

    /// Everything is consumed and deleted; then nothing may be left anywhere.
    pub fn wind_up(&mut self) -> Result<(), Ended> {
        self.lose_everybody()?;
        self.call_cleaners()?;
        let keys = self.look_for_queues()?;
        for key in &keys {
            let ledger = &mut self.run.ledger;
            for actor in self.actors.iter_mut().filter(|actor| actor.vhost == key.0 && actor.is_open()) {
                let number = actor.next_channel;
                actor.consume(ledger, number, key, true, "");
            }
        }
        self.calm_down("consuming everything")?;
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
        let held = (pools.channels_used(), pools.reply_bytes_used(), self.engine.input_bytes_waiting());
        let is_empty = gauges == Gauges::default() && bytes == (0, 0, 0) && held == (0, 0, 0);
        // Of what a damaged store has nobody knows what can be deleted.
        if !is_empty && !self.run.is_damaged {
            self.run
                .ledger
                .complain(format!("something is left in the pools: {gauges:?} {bytes:?} {held:?}"));
        }
    }
}
