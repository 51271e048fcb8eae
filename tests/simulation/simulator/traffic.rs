//! The random actions of simulated clients.
//!
//! # Invariants
//! - The ledger is told before anything is sent.
//! - No client violates the protocol; `tests/support/simulated_server/hostile.rs` tests that.

use leveret_amqp::{Method, Table};
use leveret_test_support::random::Random;

use super::actor::{Actor, Channel, Consumer, Leaving, Mode, Pending};
use super::content::{Content, body_of};
use super::deaths::CHAINS;
use super::ledger::{Key, Ledger};
use super::life::Life;
use super::plan::{Habit, Plan};
use super::topology::{self, BINDINGS, EXCHANGES, QUEUES, ROUTES};
use leveret_test_support::simulated_server::{
    bind, close_channel, close_connection, consume, content_frames, delete, passive, purge, qos,
};

/// The actions of most clients in a life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mood {
    /// Anything.
    Mixed,
    /// They publish until memory and disk are full.
    Flood,
    /// They consume.
    Ebb,
}

impl Mood {
    /// Returns the number of an action, below 100.
    fn pick(self, random: &mut Random) -> u64 {
        match self {
            Self::Flood if !random.once_in(6) => 0,
            Self::Ebb if !random.once_in(3) => 40 + random.below(35),
            _ => random.below(100),
        }
    }
}

/// A client with this many unsent bytes starts nothing new.
const UNSENT_MAX: usize = 60_000;
/// Maximum number of unanswered requests of a channel.
const PENDING_MAX: usize = 6;
const CHANNELS_MAX: usize = 4;
/// Length of a frame without its payload (AMQP 0-9-1 specification, section 4.2.3).
const FRAME_OVERHEAD: usize = 8;

/// Exchange, routing key and length of a message.
pub type Freight = (&'static str, String, u32);

impl Life<'_> {
    /// Lets all clients act.
    pub fn act(&mut self) {
        if self.actors.len() < self.run.plan.actors_max && self.chance("arrival").once_in(12) {
            self.connect();
        }
        for at in 0..self.actors.len() {
            if !self.actors[at].is_open() || self.actors[at].act_at > self.now {
                continue;
            }
            let haste = self.run.plan.hazards.haste;
            let actor = &mut self.actors[at];
            actor.acts += 1;
            let (seed, place) = (self.run.seed, [actor.number, actor.acts]);
            let random = &mut Random::of(seed, "pace", &place);
            let most = if random.once_in(10 * haste) { 400 } else { 6 };
            actor.act_at = self.now + random.below(most);
            for deed in 0..haste {
                if self.actors[at].client.unsent() < UNSENT_MAX && self.actors[at].is_open() {
                    self.act_as(at, &mut Random::of(seed, "deed", &[place[0], place[1], deed]));
                }
            }
        }
    }

    fn act_as(&mut self, at: usize, random: &mut Random) {
        let Self { run, actors, mood, .. } = self;
        let (ledger, actor) = (&mut run.ledger, &mut actors[at]);
        let (habit, haste) = (run.plan.hazards.habit, run.plan.hazards.haste);
        if random.once_in(250 * haste) {
            actor.client.send(0, &close_connection());
            actor.end_politely(ledger);
            return;
        }
        if random.once_in(300 * haste) {
            actor.line.borrow_mut().hang_up();
            return actor.vanish(ledger);
        }
        if actor.channels.is_empty() || random.once_in(60) && actor.channels.len() < CHANNELS_MAX {
            let mode = match habit {
                Habit::Transactions if !random.once_in(6) => Mode::Transaction,
                _ => random.one_of(&[Mode::Plain, Mode::Confirm, Mode::Confirm, Mode::Transaction]),
            };
            let is_first = actor.channels.is_empty();
            actor.open_channel(ledger, mode);
            if is_first {
                actor.furnish(ledger, random, habit);
            }
            return;
        }
        let numbers: Vec<u16> = actor.channels.keys().copied().collect();
        let number = random.one_of(&numbers);
        let channel = &actor.channels[&number];
        if channel.is_closing || channel.pending.len() > PENDING_MAX {
            return;
        }
        run.counts.requests += 1;
        let is_growing = habit == Habit::Deep && !random.once_in(4);
        match if is_growing { 0 } else { mood.pick(random) } {
            0..40 => {
                for _ in 0..=random.below(8) {
                    run.counts.published += 1;
                    let content = actor.next_content;
                    actor.next_content += 1;
                    let freight = actor.load(ledger, random, &run.plan, *mood);
                    let kind = (!random.once_in(4), random.once_in(8));
                    actor.publish(ledger, number, content, freight, kind);
                }
            }
            40..58 => {
                let count = if habit == Habit::Holes { 24 } else { 4 };
                (0..count).for_each(|_| actor.settle_some(ledger, random, number, habit));
            }
            58..66 => {
                let key = actor.some_queue(ledger, random, habit);
                let is_soon_gone = habit == Habit::Holes && key.1 == "d1";
                let no_ack = random.once_in(4) && habit != Habit::Holes || is_soon_gone;
                actor.consume(ledger, number, &key, no_ack, "c");
            }
            66..70 => {
                let key = actor.some_queue(ledger, random, habit);
                actor.get(ledger, number, key, random.once_in(3));
            }
            70..73 => actor.cancel(ledger, random, number),
            73 | 74 => {
                let requeue = Method::BasicRecover { requeue: true };
                actor.give_all_back(ledger, number);
                actor.ask(ledger, number, Pending::Recover, &requeue);
            }
            75 | 76 => actor.ask(ledger, number, Pending::Setting, &qos(random.below(6) as u16)),
            77 if random.once_in(3) => actor.close_channel(ledger, number),
            78..90 => actor.define(ledger, random, number),
            _ => actor.end_transaction(ledger, random, number),
        }
    }
}

impl Actor {
    // ---- channels

    pub fn open_channel(&mut self, ledger: &mut Ledger, mode: Mode) {
        self.next_channel += 1;
        let number = self.next_channel;
        self.channels.insert(number, Channel::new(mode));
        self.ask(ledger, number, Pending::Setting, &Method::ChannelOpen {});
        match mode {
            Mode::Plain => {}
            Mode::Confirm => {
                self.ask(ledger, number, Pending::Setting, &Method::ConfirmSelect { no_wait: false });
            }
            Mode::Transaction => self.ask(ledger, number, Pending::Setting, &Method::TxSelect {}),
        }
    }

    /// Declares a usual set of queues and bindings, as programs do at their start.
    ///
    /// Without it, few messages would reach a consumer.
    fn furnish(&mut self, ledger: &mut Ledger, random: &mut Random, habit: Habit) {
        let number = self.next_channel;
        let any = [random.one_of(&QUEUES), random.one_of(&QUEUES), random.one_of(&QUEUES)];
        let mut pair = CHAINS[if let Habit::Deaths(chain) = habit { chain } else { 0 }];
        // The target of dead letters is declared first.
        pair.reverse();
        let (queues, bindings): (&[&str], &[usize]) = match habit {
            Habit::Deep => (&["d0"], &[]),
            Habit::Transactions | Habit::Holes => (&["d0", "d1"], &[]),
            Habit::Pieces => (&["d0", "d3"], &[]),
            Habit::Copies => (&["d0", "d1", "l0"], &[0, 1, 3]),
            Habit::Deaths(_) => (&pair, &[]),
            Habit::Any | Habit::Sieve | Habit::Leave => (&any, &[]),
        };
        for name in queues {
            if !ledger.queue(&self.key(name)).fact.is_sure() {
                self.declare_queue(ledger, number, name);
            }
        }
        let some = [random.below(BINDINGS.len() as u64) as usize];
        let bindings = if bindings.is_empty() && random.once_in(2) { &some[..] } else { bindings };
        for &at in bindings {
            if ledger.binding(self.vhost, at).is_sure() {
                continue;
            }
            let (source, key, queue) = BINDINGS[at];
            let kind = EXCHANGES.iter().find(|(name, _)| *name == source).map_or("", |(_, kind)| kind);
            ledger.exchange(self.vhost, source).ask(true);
            let method = topology::declare_exchange(source, kind);
            self.ask(ledger, number, Pending::DeclareExchange(source), &method);
            self.declare_queue(ledger, number, queue);
            ledger.binding(self.vhost, at).ask(true);
            self.ask(ledger, number, Pending::Bind(at), &bind(queue, source, key));
        }
    }

    fn close_channel(&mut self, ledger: &mut Ledger, number: u16) {
        self.ask(ledger, number, Pending::Close, &close_channel());
        if let Some(channel) = self.channels.get_mut(&number) {
            channel.is_closing = true;
        }
    }

    /// Leaves with a close method; earlier requests still take effect.
    fn end_politely(&mut self, _: &mut Ledger) {
        self.leaving = Leaving::Politely;
    }

    // ---- publishing

    pub fn publish(
        &mut self,
        ledger: &mut Ledger,
        number: u16,
        content: u64,
        (exchange, key, len): Freight,
        (persistent, mandatory): (bool, bool),
    ) {
        let holder = self.holder(number);
        let life = ledger.life;
        let message =
            Content::new(holder, self.vhost, (exchange, key.clone()), (persistent, mandatory), len, life);
        let properties = message.properties();
        ledger.tick();
        ledger.publish(content, message);
        let Some(channel) = self.channels.get_mut(&number) else { return };
        match channel.mode {
            Mode::Plain => {}
            Mode::Confirm => {
                channel.publishes += 1;
                channel.unconfirmed.insert(channel.publishes, content);
            }
            Mode::Transaction => channel.published.push(content),
        }
        let method =
            Method::BasicPublish { exchange, routing_key: key.as_bytes(), mandatory, immediate: false };
        self.send(number, &method);
        // Some bodies are sent in many small frames.
        let whole = self.client.checker.frame_max as usize - FRAME_OVERHEAD;
        let piece = if content.is_multiple_of(10) { 100 } else { whole };
        self.client.say(&content_frames(number, &properties, &body_of(content, len), piece));
    }

    /// Returns the target and the length of a message.
    fn load(&self, ledger: &Ledger, random: &mut Random, plan: &Plan, mood: Mood) -> Freight {
        let small = 8 + random.below(90) as u32;
        let large = plan.large_bytes;
        match plan.hazards.habit {
            Habit::Copies if !random.once_in(6) => return ("fan", String::new(), small * 5),
            Habit::Pieces if !random.once_in(6) && large > 0 => {
                return match random.below(12) {
                    0 => ("", "d3".into(), 66_000 + random.below(large.into()) as u32),
                    1..4 => ("", "d0".into(), 66_000 + random.below(large.into()) as u32),
                    _ => ("", "d0".into(), small * 20),
                };
            }
            Habit::Deep if !random.once_in(6) => return ("", "d0".into(), small),
            Habit::Deaths(chain) if !random.once_in(4) => {
                // Some messages are published to the queue in which they wait.
                let side = usize::from(chain > 0 && random.once_in(6));
                return ("", CHAINS[chain][side].into(), small * 4);
            }
            Habit::Transactions if !random.once_in(6) => {
                return ("", random.one_of(&["d0", "d1"]).into(), small * 20);
            }
            Habit::Holes if random.once_in(3) => return ("", "d1".into(), small * 12),
            Habit::Holes if !random.once_in(20) => return ("", "d0".into(), small / 4 + 8),
            _ => {}
        }
        let len = match random.below(if mood == Mood::Flood { 12 } else { 40 }) {
            0 if large > 0 => 65_000 + random.below(large.into()) as u32,
            0..4 => 1_000 + random.below(u64::from(plan.body_bytes_max.max(1_100)) - 1_000) as u32,
            4..12 => 200 + random.below(800) as u32,
            _ => small,
        };
        let (exchange, key) = match random.below(10) {
            0..5 => ("", random.one_of(&QUEUES).to_string()),
            5 => ("", self.own_queue()),
            _ => {
                let (exchange, key) = random.one_of(&ROUTES);
                (exchange, key.to_string())
            }
        };
        // Publishing to a missing exchange closes the channel, so clients seldom do it.
        let is_there = exchange.is_empty()
            || ledger.exchanges.get(&(self.vhost, exchange)).is_some_and(super::fact::LogEntry::is_sure);
        if is_there || random.once_in(40) {
            (exchange, key, len)
        } else {
            ("", random.one_of(&QUEUES).to_string(), len)
        }
    }

    fn end_transaction(&mut self, ledger: &mut Ledger, random: &mut Random, number: u16) {
        let (rolls_back, holder) = (random.once_in(4), self.holder(number));
        let Some(channel) = self.channels.get_mut(&number).filter(|c| c.mode == Mode::Transaction) else {
            return self.settle_some(ledger, random, number, Habit::Any);
        };
        let published = core::mem::take(&mut channel.published);
        let decided = core::mem::take(&mut channel.decided);
        if rolls_back {
            // The channel still holds the deliveries. But the client has forgotten their tags, and a later
            // ack with `multiple` includes them.
            for (place, _) in &decided {
                ledger.give_back(place, holder);
                ledger.lose(place);
            }
            return self.ask(ledger, number, Pending::Setting, &Method::TxRollback {});
        }
        let settled: Vec<_> =
            decided.iter().filter(|(_, gives_back)| !gives_back).map(|(place, _)| place.clone()).collect();
        ledger.ask_commit(holder, &published, &settled);
        for (place, gives_back) in &decided {
            if *gives_back { ledger.give_back(place, holder) } else { ledger.settle(place, holder) }
        }
        self.ask(ledger, number, Pending::Commit { published, settled: decided }, &Method::TxCommit {});
    }

    // ---- consuming

    /// Returns a queue to consume from, which usually exists.
    fn some_queue(&self, ledger: &Ledger, random: &mut Random, habit: Habit) -> Key {
        let wanted = match habit {
            Habit::Copies if !random.once_in(8) => random.one_of(&["d0", "l0"]),
            Habit::Pieces if !random.once_in(8) => "d0",
            Habit::Transactions | Habit::Holes if !random.once_in(8) => random.one_of(&["d0", "d1"]),
            Habit::Deaths(0) if !random.once_in(4) => random.one_of(&CHAINS[0]),
            // Consumers of waiting queues are rare, or no message would expire there.
            Habit::Deaths(chain) if !random.once_in(4) => CHAINS[chain][usize::from(random.once_in(16))],
            _ => "",
        };
        let is_sure =
            |name: &&str| ledger.queues.get(&self.key(name)).is_some_and(|queue| queue.fact.is_sure());
        if is_sure(&wanted) {
            return self.key(wanted);
        }
        let there: Vec<&str> = QUEUES.into_iter().filter(|name| is_sure(name)).collect();
        match () {
            () if random.once_in(12) => self.key(&self.own_queue()),
            () if there.is_empty() || random.once_in(60) => self.key(random.one_of(&QUEUES)),
            () => self.key(random.one_of(&there)),
        }
    }

    pub fn consume(&mut self, ledger: &mut Ledger, number: u16, key: &Key, no_ack: bool, prefix: &str) {
        let since = ledger.tick();
        let tag = format!("{prefix}{since}");
        let Some(channel) = self.channels.get_mut(&number) else { return };
        channel.consumers.insert(tag.clone(), Consumer { key: key.clone(), no_ack, since });
        self.ask(ledger, number, Pending::Consume, &consume(&key.1, &tag, no_ack));
    }

    fn cancel(&mut self, ledger: &mut Ledger, random: &mut Random, number: u16) {
        let tags: Vec<String> = self.channels[&number].consumers.keys().cloned().collect();
        if tags.is_empty() {
            return;
        }
        let consumer_tag = &tags[random.below(tags.len() as u64) as usize];
        let method = Method::BasicCancel { consumer_tag, no_wait: false };
        self.ask(ledger, number, Pending::Cancel(consumer_tag.clone()), &method);
    }

    fn get(&mut self, ledger: &mut Ledger, number: u16, key: Key, no_ack: bool) {
        let since = ledger.tick();
        let queue = key.1.clone();
        let method = Method::BasicGet { queue: &queue, no_ack };
        self.ask(ledger, number, Pending::Get { key, no_ack, since }, &method);
    }

    /// Requests the redelivery of all unsettled messages of the channel.
    pub fn give_all_back(&mut self, ledger: &mut Ledger, number: u16) {
        let holder = self.holder(number);
        let Some(channel) = self.channels.get_mut(&number) else { return };
        for place in core::mem::take(&mut channel.unacked).into_values() {
            ledger.give_back(&place, holder);
        }
    }

    fn settle_some(&mut self, ledger: &mut Ledger, random: &mut Random, number: u16, habit: Habit) {
        let holder = self.holder(number);
        let Some(channel) = self.channels.get_mut(&number) else { return };
        if channel.unacked.is_empty() {
            return;
        }
        let is_any = matches!(habit, Habit::Any | Habit::Deep | Habit::Transactions | Habit::Deaths(_));
        let multiple = is_any && random.once_in(4);
        let index = if multiple || !is_any { random.below(channel.unacked.len() as u64) } else { 0 };
        let Some(tag) = channel.unacked.keys().nth(index as usize).copied() else { return };
        let stays = match habit {
            Habit::Leave => 16,
            Habit::Holes => 2,
            _ => u64::MAX,
        };
        if channel.unacked[&tag].1.is_multiple_of(stays) {
            return;
        }
        let settled: Vec<_> = if multiple {
            let left = channel.unacked.split_off(&(tag + 1));
            core::mem::replace(&mut channel.unacked, left).into_values().collect()
        } else {
            channel.unacked.remove(&tag).into_iter().collect()
        };
        let kind = if is_any { random.below(8) } else { 0 };
        let (method, gives_back) = match kind {
            0..4 => (Method::BasicAck { delivery_tag: tag, multiple }, false),
            4 => (Method::BasicNack { delivery_tag: tag, multiple, requeue: false }, false),
            5 => (Method::BasicNack { delivery_tag: tag, multiple, requeue: true }, true),
            _ if multiple => (Method::BasicAck { delivery_tag: tag, multiple }, false),
            6 => (Method::BasicReject { delivery_tag: tag, requeue: false }, false),
            _ => (Method::BasicReject { delivery_tag: tag, requeue: true }, true),
        };
        let at = ledger.tick();
        let is_ack = matches!(method, Method::BasicAck { .. });
        for place in settled {
            ledger.note_verdict(&place, (is_ack, gives_back));
            match (channel.mode, gives_back) {
                (Mode::Transaction, _) => channel.decided.push((place, gives_back)),
                (_, true) => ledger.give_back(&place, holder),
                (_, false) => {
                    ledger.settle(&place, holder);
                    channel.settling.push_back((at, place));
                }
            }
        }
        self.send(number, &method);
    }

    // ---- definitions

    fn define(&mut self, ledger: &mut Ledger, random: &mut Random, number: u16) {
        match random.below(40) {
            0..12 => self.declare_queue(ledger, number, random.one_of(&QUEUES)),
            12 | 13 => {
                let own = self.own_queue();
                self.declare_queue(ledger, number, &own);
            }
            14..20 => {
                let (name, kind) = random.one_of(&EXCHANGES);
                ledger.exchange(self.vhost, name).ask(true);
                let method = topology::declare_exchange(name, kind);
                self.ask(ledger, number, Pending::DeclareExchange(name), &method);
            }
            20..29 => self.bind(ledger, random, number),
            29..31 => {
                let at = random.below(BINDINGS.len() as u64) as usize;
                let (source, key, queue) = BINDINGS[at];
                ledger.ask_unbinding(self.vhost, at);
                let method = Method::QueueUnbind {
                    queue,
                    exchange: source,
                    routing_key: key,
                    arguments: Table::EMPTY,
                };
                self.ask(ledger, number, Pending::Unbind(at), &method);
            }
            31..36 => {
                let key = self.some_queue(ledger, random, Habit::Any);
                let method = &passive(&key.1);
                self.ask(ledger, number, Pending::Scan(key.clone()), method);
            }
            36 => {
                let key = self.some_queue(ledger, random, Habit::Any);
                ledger.ask_purge(&key);
                self.ask(ledger, number, Pending::Purge(key.clone()), &purge(&key.1));
            }
            37 => {
                let key = self.some_queue(ledger, random, Habit::Any);
                ledger.ask_deletion(&key);
                self.ask(ledger, number, Pending::Delete(key.clone()), &delete(&key.1));
            }
            38 if random.once_in(4) => {
                let (name, _) = random.one_of(&EXCHANGES);
                ledger.ask_exchange_deletion(self.vhost, name);
                let method = Method::ExchangeDelete { exchange: name, if_unused: false, no_wait: false };
                self.ask(ledger, number, Pending::DeleteExchange(name), &method);
            }
            _ => {}
        }
    }

    pub fn declare_queue(&mut self, ledger: &mut Ledger, number: u16, name: &str) {
        let (key, arguments) = (self.key(name), topology::arguments(name));
        ledger.queue(&key).fact.ask(true);
        self.ask(ledger, number, Pending::Declare(key), &topology::declare(name, &arguments));
    }

    /// Binds a queue and an exchange that usually both exist.
    fn bind(&mut self, ledger: &mut Ledger, random: &mut Random, number: u16) {
        let at = random.below(BINDINGS.len() as u64) as usize;
        let (source, key, queue) = BINDINGS[at];
        let is_there =
            ledger.exchange(self.vhost, source).is_sure() && ledger.queue(&self.key(queue)).fact.is_sure();
        if is_there || random.once_in(20) {
            ledger.binding(self.vhost, at).ask(true);
            self.ask(ledger, number, Pending::Bind(at), &bind(queue, source, key));
        }
    }
}
