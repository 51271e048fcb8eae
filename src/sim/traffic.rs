//! What simulated clients do: any of it at any time, chosen by chance.
//!
//! Always true: the model is told of what the broker took, and of nothing that it refused; a refusal that
//! cannot be is a complaint.

use crate::broker::Context;
use crate::command::{ChannelId, Command, Outcome, Settlement};
use crate::error::ReplyCode;
use crate::journal::NoRoom;
use crate::mem::{Draw, MessageFlags, MessageId, PoolFull, Share};

use super::cargo::Cargo;
use super::client::{Channel, Client, Content, Mode, Place, Reply, Waiting, body_of, properties_of};
use super::life::{Ended, Life};
use super::model::Number;
use super::plan::Habit;
use super::random::Random;
use super::topology::{KEYS, QUEUES, SOURCES};

/// What most clients do in a life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mood {
    /// Anything.
    Mixed,
    /// They publish, until memory and disk are full.
    Flood,
    /// They consume.
    Ebb,
}

impl Mood {
    /// The number of an action, below 100.
    fn pick(self, random: &mut Random) -> u64 {
        match self {
            Self::Flood if !random.one_in(8) => 0,
            Self::Ebb if !random.one_in(3) => 45 + random.below(37),
            _ => random.below(100),
        }
    }
}

/// Most clients at once.
const CLIENTS_MAX: usize = 6;

impl Life<'_> {
    /// One client does something.
    pub(super) fn act(&mut self) {
        if self.clients.is_empty() || self.clients.len() < CLIENTS_MAX && self.w.random.one_in(60) {
            return self.connect();
        }
        if self.w.random.one_in(100) {
            return self.administer();
        }
        let at = self.w.random.below(self.clients.len() as u64) as usize;
        if self.w.random.one_in(150 * self.w.plan.hazards.haste.max(1)) {
            return self.disconnect(at);
        }
        if self.clients[at].is_waiting() {
            return;
        }
        if self.clients[at].channels.is_empty()
            || self.w.random.one_in(80) && self.clients[at].channels.len() < 4
        {
            return self.open_channel(at);
        }
        let index = self.w.random.below(self.clients[at].channels.len() as u64) as usize;
        let number = self.clients[at].channels[index].number;
        let mood = if self.is_to_ebb() { Mood::Ebb } else { self.w.mood };
        let (pick, cargo) = (mood.pick(&mut self.w.random), self.w.plan.hazards.cargo);
        match pick {
            // What ends a channel, or holds it back, is for runs in which there is less to do.
            74..77 | 82..96 if cargo != Cargo::Any && !self.w.random.one_in(20) => {
                (0..8).for_each(|_| self.settle_some(at, number));
            }
            0..45 => self.begin_publish(at, number),
            45..66 if self.w.plan.hazards.habit == Habit::Any => self.settle(at, number),
            45..66 => (0..4).for_each(|_| self.settle_some(at, number)),
            66..74 => self.consume(at, number),
            74..77 => self.cancel(at),
            77..82 => self.get(at, number),
            82..92 => self.define(at, number),
            92 => self.close_channel(at, number),
            93 => self.recover(at, number),
            94 => {
                let writable = self.w.random.one_in(2);
                self.broker.set_writable(
                    &mut Context::new(&mut self.journal, &mut self.messages, &mut self.work),
                    self.clients[at].id,
                    writable,
                );
            }
            95 => {
                let prefetch_count = self.w.random.below(6) as u16;
                let id = self.channel_id(at, number);
                let connection = self.clients[at].id;
                self.apply(connection, id, Command::Qos { prefetch_count, global: false });
            }
            _ => self.end_transaction(at, number),
        }
    }

    fn is_disk_full(&self) -> bool {
        self.journal.admit(8_000, 1) == Err(NoRoom::Disk)
    }

    /// In a run that is about what leaves, a full disk is where it begins to and not where it ends.
    fn is_to_ebb(&mut self) -> bool {
        self.is_disk_full() && self.w.plan.hazards.cargo != Cargo::Any && !self.w.random.one_in(8)
    }

    /// Some of what there usually is, declared by the first client.
    pub(super) fn settle_in(&mut self) -> Result<(), Ended> {
        self.connect();
        for step in 0_usize..30 {
            if self.clients.is_empty() || self.clients[0].is_waiting() {
                break;
            }
            if self.clients[0].channels.is_empty() {
                self.open_channel(0);
                continue;
            }
            let number = self.clients[0].channels[0].number;
            match self.w.random.below(4) {
                _ if self.rig(step.saturating_sub(1), number) => {}
                0 | 1 => {
                    let name = self.w.random.one_of(&QUEUES);
                    self.declare_queue(0, number, name);
                }
                2 => self.declare_exchange(0, number),
                _ => self.bind(0, number),
            }
            while self.clients.first().is_some_and(|client| matches!(client.waiting, Waiting::Disk(..))) {
                self.is_calm = true;
                let turned = self.turn();
                self.is_calm = false;
                turned?;
                // Nobody consumes yet.
                if self.driver.is_stuck() || !self.would_turn() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    pub(super) fn channel_id(&mut self, at: usize, number: u16) -> Option<ChannelId> {
        self.clients[at].channel(number).map(|channel| channel.id)
    }

    pub(super) fn connect(&mut self) {
        let Some(id) = self.broker.connect() else { return };
        let login = Command::LoginExternal { user: "guest", from_loopback: true };
        self.apply(id, None, login);
        self.apply(id, None, Command::OpenVhost { vhost: "/" });
        let is_slow = self.w.random.one_in(5);
        self.clients.push(Client::new(id, is_slow));
    }

    pub(super) fn open_channel(&mut self, at: usize) {
        let client = &mut self.clients[at];
        client.next_channel += 1;
        let (id, number) = (client.id, client.next_channel);
        let (Outcome::ChannelOpened(channel), _) = self.apply(id, None, Command::OpenChannel { number })
        else {
            return;
        };
        let mode = self.w.random.one_of(&[Mode::Plain, Mode::Confirm, Mode::Confirm, Mode::Transaction]);
        match mode {
            Mode::Plain => {}
            Mode::Confirm => {
                self.apply(id, Some(channel), Command::ConfirmSelect);
            }
            Mode::Transaction => {
                self.apply(id, Some(channel), Command::TxSelect);
            }
        }
        self.clients[at].channels.push(Channel::new(channel, number, mode));
    }

    /// The connection is lost, or its client leaves.
    pub(super) fn disconnect(&mut self, at: usize) {
        let client = self.clients.swap_remove(at);
        if let Waiting::Room(_, _, Some(message)) = client.waiting {
            self.messages.release(message);
        }
        self.broker
            .release(&mut Context::new(&mut self.journal, &mut self.messages, &mut self.work), client.id);
        let batch = self.batch();
        for (number, _) in client.consumers.values() {
            self.w.model.drop_consumer(*number, batch);
        }
        let own = format!("x{}", client.id.index());
        if let Some((number, _)) = self.w.model.queue(&own) {
            self.w.model.delete_queue(number, batch);
        }
        self.finish_jobs();
        let unsettled = client.channels.iter().flat_map(|channel| {
            channel.unsettled.values().chain(channel.decided.iter().map(|(_, place, _)| place))
        });
        let unsent = client.outbox.iter().filter_map(|unsent| unsent.place.as_ref());
        for &(number, arrival) in unsettled.chain(unsent) {
            self.w.model.requeue(number, arrival);
        }
        self.look();
    }

    pub(super) fn close_channel(&mut self, at: usize, number: u16) {
        let Some(index) = self.clients[at].channels.iter().position(|channel| channel.number == number)
        else {
            return;
        };
        let channel = self.clients[at].channels.remove(index);
        let client = &mut self.clients[at];
        let id = client.id;
        let tags: Vec<(u16, String)> =
            client.consumers.keys().filter(|(channel, _)| *channel == number).cloned().collect();
        let queues: Vec<Number> =
            tags.iter().filter_map(|key| client.consumers.remove(key)).map(|(queue, _)| queue).collect();
        let mut back: Vec<_> = channel.unsettled.into_values().collect();
        back.extend(channel.decided.iter().map(|(_, place, _)| *place));
        let first = client.outbox.front().map_or(0, |unsent| unsent.sequence);
        client.outbox.retain_mut(|unsent| {
            if unsent.channel != number {
                return true;
            }
            // The first may be half written.
            if unsent.sequence == first {
                unsent.orphaned = unsent.place.is_some();
                return true;
            }
            back.extend(unsent.place);
            false
        });
        // Before the broker is asked: what comes back may go out again at once.
        self.broker.apply(
            &mut Context::new(&mut self.journal, &mut self.messages, &mut self.work),
            id,
            Some(channel.id),
            Command::CloseChannel,
        );
        let batch = self.batch();
        for queue in queues {
            self.w.model.drop_consumer(queue, batch);
        }
        for (queue, arrival) in back {
            self.w.model.requeue(queue, arrival);
        }
        self.finish_jobs();
        self.look();
    }

    /// What the client did was refused: so its channel is closed.
    pub(super) fn refused(&mut self, at: usize, number: u16, outcome: &Outcome, allowed: &[ReplyCode]) {
        if let Outcome::Fault(fault) = outcome {
            let is_full = fault.code == ReplyCode::ResourceError && !fault.text.contains("commit_bytes_max");
            if !allowed.contains(&fault.code) && !is_full {
                self.w.model.complain(format!("refused: {fault}"));
            }
            self.w.counts.refused += 1;
            self.close_channel(at, number);
        } else {
            self.w.model.complain(format!("an answer that makes no sense: {outcome:?}"));
        }
    }

    // ---- publishing

    fn begin_publish(&mut self, at: usize, channel: u16) {
        self.w.next_content += 1;
        let random = &mut self.w.random;
        let to_queue = random.one_in(2);
        let exchange = if to_queue { "" } else { random.one_of(&SOURCES) };
        let own = format!("x{}", self.clients[at].id.index());
        let key = match to_queue {
            true if random.one_in(10) => own,
            true => random.one_of(&QUEUES).to_string(),
            false if random.one_in(4) => random.one_of(&QUEUES).to_string(),
            false => random.one_of(&KEYS).to_string(),
        };
        let freight = self.w.plan.hazards.cargo.load(random, self.w.plan.large_bytes);
        let (exchange, key) =
            freight.map_or((exchange, key), |(exchange, key, _)| (exchange, key.to_string()));
        let to_queue = exchange.is_empty();
        // What is not there is asked for seldom.
        let exists = match to_queue {
            true => self.w.model.queue_names.contains_key(&key),
            false => self.w.model.exchange_names.contains_key(exchange),
        };
        if !exists && self.w.plan.hazards.cargo != Cargo::Any && self.is_disk_full() {
            return;
        }
        let random = &mut self.w.random;
        if !exists && !random.one_in(20) {
            return self.define(at, channel);
        }
        let len = match random.below(if self.w.mood == Mood::Flood { 12 } else { 40 }) {
            0 if self.w.plan.large_bytes > 0 => 65_000 + random.below(self.w.plan.large_bytes.into()) as u32,
            0..4 => 1_000 + random.below(6_000) as u32,
            4..12 => 200 + random.below(800) as u32,
            _ => 8 + random.below(90) as u32,
        };
        let len = if len < 65_000 { len.min(self.w.plan.body_bytes_max) } else { len };
        let len = freight.map_or(len, |(_, _, len)| len);
        let content = Content {
            number: self.w.next_content,
            exchange: exchange.to_string(),
            key,
            persistent: !random.one_in(4),
            mandatory: random.one_in(8),
            len,
        };
        self.w.contents.insert(content.number, content.clone());
        self.publish(at, channel, content, None);
    }

    /// Publishes, or waits with it.
    pub(super) fn publish(&mut self, at: usize, number: u16, content: Content, message: Option<MessageId>) {
        let id = self.clients[at].id;
        let share = self.broker.content_share(id);
        let Some(channel) = self.channel_id(at, number) else {
            if let Some(message) = message {
                self.messages.release(message);
            }
            return;
        };
        let message = match message
            .map_or_else(|| self.assemble(&content, Draw { share, owner: self.broker.owner(id) }), Ok)
        {
            Ok(message) => message,
            Err(_) if share == Share::Ordinary => {
                self.w.counts.waits += 1;
                self.clients[at].waiting = Waiting::Room(number, content, None);
                return;
            }
            Err(_) => return self.close_channel(at, number),
        };
        let exists =
            content.exchange.is_empty() || self.w.model.exchange_names.contains_key(&content.exchange);
        let targets = self.w.model.route(&content.exchange, &content.key);
        let command = Command::Publish { message, mandatory: content.mandatory };
        let mut context = Context::new(&mut self.journal, &mut self.messages, &mut self.work);
        let (outcome, order) = self.broker.apply(&mut context, id, Some(channel), command);
        let (awaited, batch) = (context.awaited(), self.batch());
        let mode = self.clients[at].channel(number).map_or(Mode::Plain, |channel| channel.mode);
        match outcome {
            Outcome::Wait => {
                self.w.counts.waits += 1;
                self.clients[at].waiting = Waiting::Room(number, content, Some(message));
                return;
            }
            Outcome::Published if mode == Mode::Transaction => {
                if let Some(channel) = self.clients[at].channel(number) {
                    channel.published.push(content);
                }
            }
            Outcome::Published | Outcome::PublishRefused => {
                let was_refused = outcome == Outcome::PublishRefused;
                let refuses = |queue: &Number| self.w.model.refuses(*queue);
                let is_sure = targets.iter().any(|queue| refuses(queue) == Some(true));
                let is_possible = targets.iter().any(|queue| refuses(queue) != Some(false));
                if was_refused && !is_possible || !was_refused && is_sure {
                    self.w.model.miss(format!("message {}: {outcome:?} is wrong", content.number));
                }
                self.pushed(&content, targets.into_iter().collect(), Some(was_refused));
                if let Some(channel) = self.clients[at].channel(number).filter(|_| mode == Mode::Confirm) {
                    channel.unconfirmed.push_back((content.number, awaited, order));
                }
                debug_assert!(awaited <= batch, "a batch that is not begun");
            }
            outcome => {
                let missing = [ReplyCode::NotFound];
                self.refused(at, number, &outcome, if exists { &[] } else { &missing });
            }
        }
        self.finish_jobs();
        self.look();
    }

    /// A message was taken; whether any queue refused it is known but for transactions.
    fn pushed(&mut self, content: &Content, targets: Vec<Number>, was_refused: Option<bool>) {
        let is_logged = content.persistent || self.w.plan.persist_all;
        let batch = is_logged.then(|| self.batch());
        let mut refusing: Vec<_> =
            targets.iter().map(|queue| (*queue, self.w.model.refuses(*queue))).collect();
        decide(&mut refusing, was_refused);
        for (queue, refuses) in refusing.into_iter().filter(|(_, refuses)| *refuses != Some(true)) {
            self.w.model.push(queue, content.number, batch);
            if refuses.is_none() {
                self.w.model.doubt(queue, content.number);
            }
        }
    }

    fn assemble(&mut self, content: &Content, draw: Draw) -> Result<MessageId, PoolFull> {
        let message = self.messages.begin(&content.exchange, content.key.as_bytes(), draw)?;
        let flags = if content.persistent { MessageFlags::PERSISTENT } else { MessageFlags::NONE };
        let body = body_of(content.number, content.len);
        let properties = properties_of(content.persistent);
        if let Err(full) =
            self.messages.reserve_content(message, properties, flags, body.len() as u32, draw.share)
        {
            self.messages.release(message);
            return Err(full);
        }
        self.messages.append_body(message, &body);
        self.messages.finish(message);
        Ok(message)
    }

    fn end_transaction(&mut self, at: usize, number: u16) {
        let id = self.clients[at].id;
        let Some(channel) =
            self.clients[at].channel(number).filter(|channel| channel.mode == Mode::Transaction)
        else {
            return;
        };
        let channel_id = channel.id;
        if self.w.random.one_in(4) {
            let (outcome, _) = self.broker.apply(
                &mut Context::new(&mut self.journal, &mut self.messages, &mut self.work),
                id,
                Some(channel_id),
                Command::TxRollback,
            );
            if let Some(channel) = self.clients[at].channel(number) {
                channel.published.clear();
                let decided = core::mem::take(&mut channel.decided);
                channel.unsettled.extend(decided.into_iter().map(|(tag, place, _)| (tag, place)));
            }
            if outcome != Outcome::Done {
                self.refused(at, number, &outcome, &[]);
            }
            return;
        }
        let mut context = Context::new(&mut self.journal, &mut self.messages, &mut self.work);
        let (outcome, _) = self.broker.apply(&mut context, id, Some(channel_id), Command::TxCommit);
        let awaited = context.awaited();
        if outcome != Outcome::Done {
            return self.refused(at, number, &outcome, &[]);
        }
        let Some(channel) = self.clients[at].channel(number) else { return };
        let published = core::mem::take(&mut channel.published);
        let decided = core::mem::take(&mut channel.decided);
        let contents = published.iter().map(|content| content.number).collect();
        for content in &published {
            let targets = self.w.model.route(&content.exchange, &content.key);
            self.pushed(content, targets.into_iter().collect(), None);
        }
        let done = decided.iter().filter(|(_, _, settlement)| *settlement != Settlement::Requeue);
        let done: Vec<_> = done.map(|(_, place, _)| *place).collect();
        let numbers: Vec<u64> = published.iter().map(|content| content.number).collect();
        self.w.model.ask(&numbers, &done);
        let mut places = Vec::new();
        for (_, (queue, arrival), settlement) in decided {
            if settlement == Settlement::Requeue {
                self.w.model.requeue(queue, arrival);
            } else {
                self.w.model.finish(queue, arrival);
                places.push((queue, arrival));
            }
        }
        self.finish_jobs();
        self.look();
        self.w.awaited = awaited;
        self.answer(at, Reply::Committed(contents, places));
    }

    // ---- consuming

    fn settle(&mut self, at: usize, number: u16) {
        let settlement = self.w.random.one_of(&[
            Settlement::Ack,
            Settlement::Ack,
            Settlement::Ack,
            Settlement::Reject,
            Settlement::Requeue,
        ]);
        let multiple = self.w.random.one_in(4);
        let id = self.clients[at].id;
        let pick = self.w.random.below(1 << 20);
        let Some(channel) = self.clients[at].channel(number).filter(|channel| !channel.unsettled.is_empty())
        else {
            return;
        };
        let index = if multiple { pick as usize % channel.unsettled.len() } else { 0 };
        let Some(delivery_tag) = channel.unsettled.keys().nth(index).copied() else { return };
        let rest = if multiple {
            channel.unsettled.split_off(&(delivery_tag + 1))
        } else {
            let mut rest = core::mem::take(&mut channel.unsettled);
            if let Some(place) = rest.remove(&delivery_tag) {
                channel.unsettled.insert(delivery_tag, place);
            }
            rest
        };
        let settled = core::mem::replace(&mut channel.unsettled, rest);
        let (channel_id, mode) = (channel.id, channel.mode);
        if mode == Mode::Transaction {
            channel.decided.extend(settled.iter().map(|(tag, place)| (*tag, *place, settlement)));
        }
        let command = Command::Settle { delivery_tag, multiple, settlement };
        let (outcome, _) = self.broker.apply(
            &mut Context::new(&mut self.journal, &mut self.messages, &mut self.work),
            id,
            Some(channel_id),
            command,
        );
        if mode != Mode::Transaction {
            for (queue, arrival) in settled.into_values() {
                match settlement {
                    Settlement::Requeue => self.w.model.requeue(queue, arrival),
                    Settlement::Ack | Settlement::Reject => self.w.model.finish(queue, arrival),
                }
            }
        }
        self.finish_jobs();
        self.look();
        if outcome != Outcome::Done {
            self.refused(at, number, &outcome, &[]);
        }
    }

    /// Settles one in the middle, as the run's habit has it.
    fn settle_some(&mut self, at: usize, number: u16) {
        let pick = self.w.random.below(1 << 20) as usize;
        let (id, habit) = (self.clients[at].id, self.w.plan.hazards.habit);
        let stays = |(_, arrival): Place| habit == Habit::Leave && arrival % 16 == 0;
        let Some(channel) =
            self.clients[at].channel(number).filter(|channel| channel.mode != Mode::Transaction)
        else {
            return self.settle(at, number);
        };
        let picked = channel.unsettled.iter().nth(pick % channel.unsettled.len().max(1));
        let Some((delivery_tag, place)) = picked.map(|(tag, place)| (*tag, *place)) else { return };
        if stays(place) {
            return;
        }
        channel.unsettled.remove(&delivery_tag);
        let channel_id = channel.id;
        let command = Command::Settle { delivery_tag, multiple: false, settlement: Settlement::Ack };
        let (outcome, _) = self.broker.apply(
            &mut Context::new(&mut self.journal, &mut self.messages, &mut self.work),
            id,
            Some(channel_id),
            command,
        );
        self.w.model.finish(place.0, place.1);
        self.finish_jobs();
        self.look();
        if outcome != Outcome::Done {
            self.refused(at, number, &outcome, &[]);
        }
    }

    fn recover(&mut self, at: usize, number: u16) {
        let id = self.clients[at].id;
        let Some(channel) = self.clients[at].channel(number) else { return };
        let channel_id = channel.id;
        let back = core::mem::take(&mut channel.unsettled);
        self.broker.apply(
            &mut Context::new(&mut self.journal, &mut self.messages, &mut self.work),
            id,
            Some(channel_id),
            Command::Recover,
        );
        for (queue, arrival) in back.into_values() {
            self.w.model.requeue(queue, arrival);
        }
        self.finish_jobs();
        self.look();
    }

    pub(super) fn some_queue(&mut self, at: usize) -> String {
        let own = format!("x{}", self.clients[at].id.index());
        if self.w.random.one_in(10) {
            return own;
        }
        self.w.random.one_of(&QUEUES).to_string()
    }

    /// A queue that is there, as a rule.
    pub(super) fn some_real_queue(&mut self, at: usize) -> String {
        let own = format!("x{}", self.clients[at].id.index());
        let there: Vec<&String> =
            self.w.model.queue_names.keys().filter(|name| !name.starts_with('x') || **name == own).collect();
        if there.is_empty() || self.w.random.one_in(20) {
            return self.some_queue(at);
        }
        self.w.random.one_of(&there).clone()
    }

    fn consume(&mut self, at: usize, number: u16) {
        let queue = self.some_full_queue(at);
        let no_ack = self.w.random.one_in(4);
        self.consume_from(at, number, &queue, no_ack);
    }

    pub(super) fn consume_from(&mut self, at: usize, number: u16, queue: &str, no_ack: bool) {
        let id = self.clients[at].id;
        let Some(channel_id) = self.channel_id(at, number) else { return };
        self.w.next_content += 1;
        let tag = format!("c{}", self.w.next_content);
        let found = self.w.model.queue(queue).map(|(number, _)| number);
        let command = Command::Consume { queue, tag: &tag, no_ack, exclusive: false, arguments: &[] };
        let (outcome, _) = self.apply(id, Some(channel_id), command);
        match (outcome, found) {
            (Outcome::Consuming { .. }, Some(found)) => {
                self.w.model.add_consumer(found);
                self.clients[at].consumers.insert((number, tag), (found, no_ack));
            }
            (outcome, found) => {
                let allowed: &[ReplyCode] = if found.is_some() { &[] } else { &[ReplyCode::NotFound] };
                self.refused(at, number, &outcome, allowed);
            }
        }
    }

    fn cancel(&mut self, at: usize) {
        let count = self.clients[at].consumers.len() as u64;
        let Some((number, tag)) = (count > 0)
            .then(|| self.w.random.below(count) as usize)
            .and_then(|index| self.clients[at].consumers.keys().nth(index).cloned())
        else {
            return;
        };
        let id = self.clients[at].id;
        let Some(channel_id) = self.channel_id(at, number) else { return };
        self.broker.apply(
            &mut Context::new(&mut self.journal, &mut self.messages, &mut self.work),
            id,
            Some(channel_id),
            Command::Cancel { tag: &tag },
        );
        let batch = self.batch();
        if let Some((queue, _)) = self.clients[at].consumers.remove(&(number, tag)) {
            self.w.model.drop_consumer(queue, batch);
        }
        self.finish_jobs();
        self.look();
    }

    fn get(&mut self, at: usize, number: u16) {
        let queue = self.some_full_queue(at);
        let no_ack = self.w.random.one_in(3);
        let id = self.clients[at].id;
        let Some(channel_id) = self.channel_id(at, number) else { return };
        let found = self.w.model.queue(&queue).map(|(number, _)| number);
        self.clients[at].getting = found.map(|found| (found, no_ack));
        let (outcome, _) = self.apply(id, Some(channel_id), Command::Get { queue: &queue, no_ack });
        match outcome {
            Outcome::Later => self.clients[at].waiting = Waiting::Job,
            Outcome::GetQueued | Outcome::GetEmpty if found.is_some() => self.got(at, &outcome),
            outcome => {
                let allowed: &[ReplyCode] = if found.is_some() { &[] } else { &[ReplyCode::NotFound] };
                self.refused(at, number, &outcome, allowed);
            }
        }
    }

    /// What came of a get.
    pub(super) fn got(&mut self, at: usize, outcome: &Outcome) {
        let Some((queue, _)) = self.clients[at].getting.take() else { return };
        if *outcome == Outcome::GetEmpty && self.w.model.queues.get(&queue).is_some_and(|queue| !queue.gone) {
            self.w.model.check_count(queue, 0, "get-empty");
        }
    }
}

/// Which queues refused a message, from whether any did, where their lengths alone do not tell.
fn decide(refusing: &mut [(Number, Option<bool>)], was_refused: Option<bool>) {
    let open = refusing.iter().filter(|(_, refuses)| refuses.is_none()).count();
    let is_explained = refusing.iter().any(|(_, refuses)| *refuses == Some(true));
    let answer = match was_refused {
        Some(false) => Some(false),
        Some(true) if open == 1 && !is_explained => Some(true),
        _ => None,
    };
    refusing.iter_mut().filter(|(_, refuses)| refuses.is_none()).for_each(|(_, refuses)| *refuses = answer);
}
