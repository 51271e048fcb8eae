//! One life of the broker, from its start to whatever ends it: the turn of the loop, without sockets.
//!
//! ```text
//! turn: helpers finish ─ clients ask ─ jobs ─ deliver ─ to the helpers ─ what is durable is told
//!       ─ clients read ─ who waited for room
//! ```
//!
//! Always true: the order of a turn is that of `engine/turn.rs`; helpers are values with a delay, and what
//! they do to the disk happens when they are given the job or when they are done, as chance has it.

use crate::broker::{Broker, Context, Work};
use crate::command::{ChannelId, Command, ConnectionId, DeliveryKind, Outbox, Outcome, ReplyOrder};
use crate::engine::StoreDriver;
use crate::journal::{Batch, Journal, NoRoom};
use crate::mem::{Cursor, MessageId, Messages};
use crate::store::{Read, ReadOutcome, Write, WriteDone};
use crate::time::{Deadline, Now};

use super::client::{Client, Reply, Unsent, Waiting, body_of, number_of, properties_of};
use super::model::Key;
use super::world::World;

/// What ends a life from within.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ended {
    /// The power went, or the disk failed: the process is gone.
    Disk,
    /// Something is wrong.
    Complaint,
}

/// A job at a helper.
enum Job<J, D> {
    /// It is done to the disk when it is due.
    ToDo(J, u64),
    Done(D, u64),
}

impl<J, D> Job<J, D> {
    const fn at(&self) -> u64 {
        match self {
            Self::ToDo(_, at) | Self::Done(_, at) => *at,
        }
    }
}

pub(super) struct Life<'w> {
    pub(super) w: &'w mut World,
    pub(super) broker: Broker,
    pub(super) journal: Journal,
    pub(super) messages: Messages,
    pub(super) work: Work,
    pub(super) driver: StoreDriver,
    pub(super) clients: Vec<Client>,
    pub(super) now: u64,
    writing: Option<Job<Write, WriteDone>>,
    reading: Option<Job<Read, ReadOutcome>>,
    room_seen: u64,
    durable_seen: Batch,
    /// The disk limit was reached.
    pub(super) was_full: bool,
    /// Clients ask for nothing new.
    pub(super) is_calm: bool,
    /// Messages may leave memory in the next turn.
    spills: bool,
}

/// A delivery as it was found in an outbox.
struct Seen {
    client: usize,
    unsent: Unsent,
    content: Option<u64>,
    redelivered: bool,
}

impl<'w> Life<'w> {
    pub(super) fn new(
        w: &'w mut World,
        broker: Broker,
        (journal, messages): (Journal, Messages),
        driver: StoreDriver,
    ) -> Self {
        Self {
            w,
            broker,
            journal,
            messages,
            work: Work::default(),
            driver,
            clients: Vec::new(),
            now: 0,
            writing: None,
            reading: None,
            room_seen: 0,
            durable_seen: Batch::NONE,
            was_full: false,
            is_calm: false,
            spills: false,
        }
    }

    const fn now(&self) -> Now {
        Now::from_ms(self.now)
    }

    pub(super) fn turn(&mut self) -> Result<(), Ended> {
        self.pass_time();
        self.take_results()?;
        if !self.is_calm {
            self.stride();
            for _ in 0..self.w.random.below(8) * self.w.plan.hazards.haste.max(1) {
                self.act();
            }
        }
        self.finish_jobs();
        let most = 1 + self.w.random.below(64) as u32;
        self.broker.deliver(&mut Context::new(&mut self.journal, &mut self.messages, &mut self.work), most);
        self.look();
        self.take_laters();
        self.hand_out();
        self.note_durable();
        self.drain();
        self.retry();
        self.check()
    }

    /// Offsets pass one of the widths that somebody might count on, or come near it.
    fn stride(&mut self) {
        if let Some(random) = &mut self.w.strides
            && random.one_in(30)
        {
            let width: u64 = random.one_of(&[16, 29, 29, 31, 32]);
            let count = (1 << width) - random.below(20) + random.below(10);
            self.broker.pass_offsets(&mut self.journal, count);
            self.w.model.stride(count);
        }
    }

    fn pass_time(&mut self) {
        self.now += self.w.random.below(4);
        let due = [self.writing.as_ref().map(Job::at), self.reading.as_ref().map(Job::at)];
        let first = due.into_iter().flatten().min().unwrap_or(u64::MAX);
        let deadline = self.driver.deadline();
        if (self.is_calm || self.w.random.one_in(8)) && (first < u64::MAX || deadline != Deadline::NEVER) {
            let left = deadline.ms_left(self.now()).unwrap_or(u64::MAX);
            let jump = first.saturating_sub(self.now).min(left);
            self.now += jump.min(1_000);
        }
    }

    /// Lets the helpers finish what is due.
    fn take_results(&mut self) -> Result<(), Ended> {
        let now = self.now();
        if let Some(job) = self.writing.take_if(|job| job.at() <= now.as_ms()) {
            let done = match job {
                Job::ToDo(job, _) => job.run(&mut self.w.disk),
                Job::Done(done, _) => done,
            };
            if self.w.disk.is_off() {
                return Err(Ended::Disk);
            }
            self.w.counts.commits += u64::from(done.is_commit());
            self.driver
                .take_write(&mut self.journal, &mut self.messages, done, now)
                .map_err(|_| Ended::Disk)?;
        }
        if let Some(job) = self.reading.take_if(|job| job.at() <= now.as_ms()) {
            let done = match job {
                Job::ToDo(job, _) => job.run(&mut self.w.disk),
                Job::Done(done, _) => done,
            };
            if self.w.disk.is_off() {
                return Err(Ended::Disk);
            }
            let more = self.driver.take_read(
                &mut self.broker,
                &mut Context::new(&mut self.journal, &mut self.messages, &mut self.work),
                done,
            );
            self.read(more);
        }
        self.note_durable();
        Ok(())
    }

    fn hand_out(&mut self) {
        self.w.model.note_first();
        let (before, gauges) = (self.messages.messages_used(), self.broker.gauges());
        loop {
            self.spills =
                self.broker.spill(&mut Context::new(&mut self.journal, &mut self.messages, &mut self.work));
            if !self.spills || self.w.random.one_in(2) {
                break;
            }
        }
        self.w.counts.spilled += (before - self.messages.messages_used()) as u64;
        self.w.counts.spilled_transient += self.broker.gauges().spilled_messages - gauges.spilled_messages;
        self.w.counts.absent += u64::from(self.broker.gauges().absent - gauges.absent);
        if self.reading.is_none() {
            let job = self.driver.next_read(&mut self.broker, &self.messages);
            self.read(job);
        }
        // After the reads, which may find that a segment can leave: that takes a commit.
        if self.writing.is_none() {
            let now = self.now();
            if let Some(job) = self.driver.next_write(&mut self.journal, &mut self.messages, now) {
                let at = self.now + self.delay();
                self.writing = Some(match self.w.random.one_in(2) {
                    true => Job::Done(job.run(&mut self.w.disk), at),
                    false => Job::ToDo(job, at),
                });
            }
        }
    }

    fn read(&mut self, job: Option<Read>) {
        let Some(job) = job else { return };
        self.w.counts.reads += 1;
        let at = self.now + self.delay();
        self.reading = Some(match self.w.random.one_in(2) {
            true => Job::Done(job.run(&mut self.w.disk), at),
            false => Job::ToDo(job, at),
        });
    }

    fn delay(&mut self) -> u64 {
        let most = self.w.plan.slowness_ms;
        self.w.random.below(most)
    }

    /// Jobs are done to their end, so that the model need not know how far they are.
    pub(super) fn finish_jobs(&mut self) {
        while self.broker.run_jobs(&mut Context::new(&mut self.journal, &mut self.messages, &mut self.work)) {
        }
    }

    /// Asks the broker for something, to its end.
    pub(super) fn apply(
        &mut self,
        connection: ConnectionId,
        channel: Option<ChannelId>,
        command: Command<'_>,
    ) -> (Outcome, ReplyOrder) {
        let mut context = Context::new(&mut self.journal, &mut self.messages, &mut self.work);
        let answer = self.broker.apply(&mut context, connection, channel, command);
        let awaited = context.awaited();
        self.finish_jobs();
        self.look();
        self.w.awaited = awaited;
        answer
    }

    /// The batch that what was said last belongs to.
    pub(super) fn batch(&self) -> Batch {
        self.journal.batch()
    }

    // ---- deliveries

    /// Looks for deliveries that were put into outboxes since.
    pub(super) fn look(&mut self) {
        let mut found = Vec::new();
        for at in 0..self.clients.len() {
            self.look_at(at, &mut found);
        }
        // One pass takes what is first in a queue, whoever gets it.
        let mut taken = Vec::new();
        for seen in found {
            let Some(content) = seen.content else { continue };
            match seen.unsent.place {
                Some((number, arrival)) => taken.push((number, arrival, seen.redelivered)),
                None if seen.unsent.tag > 0 => {
                    self.w.model.miss(format!("message {content} is delivered and is in no queue"));
                }
                None => {}
            }
            self.clients[seen.client].last_sequence = seen.unsent.sequence;
            self.clients[seen.client].outbox.push_back(seen.unsent);
        }
        taken.sort_unstable();
        for (number, arrival, redelivered) in taken {
            self.w.counts.delivered += 1;
            self.w.model.take(number, arrival, redelivered);
        }
    }

    fn look_at(&mut self, at: usize, found: &mut Vec<Seen>) {
        let client = &self.clients[at];
        let mut outbox = self.broker.outbox(client.id);
        while let Some(delivery) = outbox.peek() {
            if delivery.sequence > client.last_sequence {
                let content = self.w.verify(&self.messages, delivery.message);
                let from = match delivery.kind {
                    DeliveryKind::Deliver { consumer_tag } => {
                        client.consumers.get(&(delivery.channel, consumer_tag.to_string())).copied()
                    }
                    DeliveryKind::GetOk { .. } => client.getting,
                    DeliveryKind::Return(_) => None,
                };
                let place = from.zip(content).and_then(|((number, _), content)| {
                    Some((number, self.w.model.arrival(number, content)?))
                });
                let is_gone = from.is_some_and(|(number, _)| !self.w.model.queues.contains_key(&number));
                let unsent = Unsent {
                    sequence: delivery.sequence,
                    channel: delivery.channel,
                    tag: if is_gone { 0 } else { delivery.delivery_tag },
                    place,
                    no_ack: from.is_some_and(|(_, no_ack)| no_ack),
                    orphaned: false,
                };
                found.push(Seen { client: at, unsent, content, redelivered: delivery.redelivered });
            }
            outbox.advance();
        }
    }

    /// Clients read a part of what there is for them.
    fn drain(&mut self) {
        // Everybody is looked at in every turn.
        while self.broker.next_noted().is_some() {}
        for at in 0..self.clients.len() {
            let have = self.clients[at].outbox.len() as u64;
            let count = match () {
                () if self.is_calm => have,
                () if self.clients[at].is_slow && !self.w.random.one_in(6) => 0,
                () if self.w.random.one_in(2) => have,
                () => self.w.random.below(have + 1),
            };
            let id = self.clients[at].id;
            let unsent: Vec<Unsent> = self.clients[at].outbox.drain(..count as usize).collect();
            self.broker.sent(
                &mut Context::new(&mut self.journal, &mut self.messages, &mut self.work),
                id,
                count as u32,
            );
            for unsent in unsent {
                self.receive(at, &unsent);
            }
            while let Some((channel, tag, _)) = self.broker.next_cancelled(id) {
                let key = (channel, tag.to_string());
                self.clients[at].consumers.remove(&key);
                self.broker.told_cancelled(id);
            }
            self.tell_confirms(at);
        }
        self.look();
    }

    fn receive(&mut self, at: usize, unsent: &Unsent) {
        let Some((number, arrival)) = unsent.place else { return };
        self.w.model.see(number, arrival);
        match () {
            () if unsent.no_ack => self.w.model.finish(number, arrival),
            () if unsent.orphaned => self.w.model.requeue(number, arrival),
            () => {
                if let Some(channel) = self.clients[at].channel(unsent.channel) {
                    channel.unsettled.insert(unsent.tag, (number, arrival));
                }
            }
        }
    }

    fn tell_confirms(&mut self, at: usize) {
        let durable = self.journal.durable();
        let client = &mut self.clients[at];
        let first = client.outbox.front().map_or(u64::MAX, |unsent| unsent.sequence);
        for channel in &mut client.channels {
            while let Some(&(content, batch, order)) = channel.unconfirmed.front() {
                if batch > durable || order >= first {
                    break;
                }
                channel.unconfirmed.pop_front();
                self.w.counts.confirmed += 1;
                self.w.model.confirm(content);
            }
        }
    }

    // ---- who waits

    fn note_durable(&mut self) {
        // As the loop does: facts become durable though messages before them wait for room.
        self.broker.note_durable(&self.journal);
        let durable = self.journal.durable();
        if core::mem::replace(&mut self.durable_seen, durable) == durable {
            return;
        }
        self.w.model.durable = durable;
        for at in 0..self.clients.len() {
            if matches!(&self.clients[at].waiting, Waiting::Disk(batch, _) if *batch <= durable)
                && let Waiting::Disk(_, reply) =
                    core::mem::replace(&mut self.clients[at].waiting, Waiting::No)
            {
                self.tell(reply);
            }
        }
    }

    /// The client gets its answer, now or when it is durable.
    pub(super) fn answer(&mut self, at: usize, reply: Reply) {
        let awaited = self.w.awaited;
        if awaited <= self.journal.durable() {
            self.tell(reply);
        } else {
            self.clients[at].waiting = Waiting::Disk(awaited, reply);
        }
    }

    /// The client gets its answer to a definition.
    pub(super) fn defined(&mut self, at: usize, key: Key) {
        let serial = self.w.model.serial(&key);
        self.answer(at, Reply::Defined(key, serial));
    }

    fn tell(&mut self, reply: Reply) {
        match reply {
            Reply::Defined(key, serial) => self.w.model.claim(&key, serial),
            Reply::Committed(contents, places) => {
                contents.into_iter().for_each(|content| self.w.model.confirm(content));
                places.into_iter().for_each(|(number, arrival)| self.w.model.forget(number, arrival));
            }
        }
    }

    fn take_laters(&mut self) {
        for at in 0..self.clients.len() {
            let id = self.clients[at].id;
            if matches!(self.clients[at].waiting, Waiting::Job) && !self.broker.is_busy(id) {
                self.clients[at].waiting = Waiting::No;
                let Some((outcome, _)) = self.broker.take_later(id) else {
                    self.w.model.complain("nothing came of a get that was to come later".into());
                    continue;
                };
                self.got(at, &outcome);
            }
        }
    }

    /// Those who wait for room try again, if something made room.
    fn retry(&mut self) {
        let made = self.room_made();
        if made == self.room_seen {
            return;
        }
        self.room_seen = made;
        for at in 0..self.clients.len() {
            let owner = self.broker.owner(self.clients[at].id);
            let is_held = self.messages.is_held(owner) && !self.messages.lift_hold(owner);
            if is_held || !matches!(self.clients[at].waiting, Waiting::Room(..)) {
                continue;
            }
            if let Waiting::Room(number, content, message) =
                core::mem::replace(&mut self.clients[at].waiting, Waiting::No)
            {
                self.publish(at, number, content, message);
            }
        }
    }

    fn room_made(&self) -> u64 {
        self.broker.room_made() + self.journal.room_made() + self.messages.room_made()
    }

    // ---- checks of every turn

    /// Whether the loop, with no word from any client, would take another turn: it polls until there is work,
    /// a deadline, or a result. What is not at rest then waits for ever.
    pub(super) fn would_turn(&self) -> bool {
        let waits_for_room = |client: &Client| matches!(client.waiting, Waiting::Room(..));
        self.broker.has_work(&self.journal)
            || self.spills
            || self.driver.has_work(&self.broker, &self.journal, &self.messages)
            || self.driver.deadline() != Deadline::NEVER
            || self.writing.is_some()
            || self.reading.is_some()
            || self.clients.iter().any(|client| !client.outbox.is_empty())
            || self.room_made() != self.room_seen && self.clients.iter().any(waits_for_room)
    }

    fn check(&mut self) -> Result<(), Ended> {
        if self.w.disk.is_off() {
            return Err(Ended::Disk);
        }
        self.was_full |= self.journal.admit(8_000, 1) == Err(NoRoom::Disk);
        if self.driver.is_idle(&self.journal) {
            self.w.model.sync_all();
        }
        let used = self.messages.messages_used();
        if used > self.messages.messages_max()
            || self.messages.body_bytes_used() > self.messages.body_bytes_max()
        {
            self.w.model.complain(format!("{used} messages are more than there may be"));
        }
        let stuck = self.driver.segments_stuck();
        if stuck > 0 && !self.w.is_damaged && !self.w.disk.has_failed_read() {
            self.w
                .model
                .complain(format!("{stuck} segments are never to leave, and all of them can be read"));
        }
        if self.w.model.complaints.is_empty() { Ok(()) } else { Err(Ended::Complaint) }
    }

    /// What is not at rest yet.
    pub(super) fn restless(&self) -> &'static str {
        let is_busy = |client: &Client| {
            client.is_waiting()
                || !client.outbox.is_empty()
                || client.channels.iter().any(|channel| !channel.unconfirmed.is_empty())
        };
        match () {
            () if self.writing.is_some() => "writing",
            () if self.reading.is_some() => "reading",
            () if !self.driver.is_idle(&self.journal) => "something is to be written",
            () if self.driver.has_work(&self.broker, &self.journal, &self.messages) => {
                "something is to be read"
            }
            () if self.broker.has_work(&self.journal) => "the broker has work",
            () if self.clients.iter().any(is_busy) => "a client waits",
            () => "",
        }
    }
}

impl World {
    /// The content of a message, compared byte by byte with what was sent.
    pub(super) fn verify(&mut self, messages: &Messages, message: MessageId) -> Option<u64> {
        let mut body = vec![0; messages.body_len(message) as usize];
        let mut cursor: Cursor = messages.body_cursor(message, 0);
        messages.read(message, &mut cursor, &mut body);
        let mut scratch = [0; 64];
        let properties = messages.properties(message, &mut scratch);
        let (exchange, key) = (messages.exchange(message), messages.routing_key(message));
        self.compare(&body, exchange.as_bytes(), key, properties)
    }

    /// Compares a message with what was sent.
    pub(super) fn compare(
        &mut self,
        body: &[u8],
        exchange: &[u8],
        key: &[u8],
        properties: &[u8],
    ) -> Option<u64> {
        let number = number_of(body);
        let Some(content) = self.contents.get(&number) else {
            self.model.complain(format!("message {number} was never published"));
            return None;
        };
        let is_same = exchange == content.exchange.as_bytes()
            && key == content.key.as_bytes()
            && properties == properties_of(content.persistent)
            && body == body_of(number, content.len);
        if !is_same {
            self.model.complain(format!("message {number} was altered"));
        }
        Some(number)
    }
}
