//! The broker alone, driven by commands: random runs of connections, and what must hold at the end.
//!
//! A run follows from a seed. Several connections declare, bind, publish, consume, get, settle, purge,
//! delete, open transactions and disconnect, in any order. The guarantees are checked after every step as far
//! as possible. After the run all connections are closed, and every pool must be empty.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::{PRIORITIES, SINGLE_ACTIVE, with_priority};
use leveret_broker::{Broker, ChannelRequest, ConnectionRequest, Gauges, Work};
use leveret_core::command::{
    ChannelAnswer, ChannelCommand, ChannelId, Command, ConnectionId, DefinitionAnswer, DefinitionCommand,
    DeliveryKind, GetAnswer, GetCommand, LoginAnswer, LoginCommand, OpenChannel, OpenVhost, Outbox, Outcome,
    PublishAnswer, PublishCommand, Settlement,
};
use leveret_core::error::Fault;
use leveret_core::limits::Limits;
use leveret_core::mem::{MessageFlags, MessageId, Messages, Share};
use leveret_storage::PendingWrites;
use leveret_test_support::random::Random;

fn limits() -> Limits {
    Limits {
        connections_max: 16,
        channels_max: 64,
        consumers_max: 64,
        queues_max: 32,
        exchanges_max: 32,
        bindings_max: 64,
        messages_max: 2_000,
        queue_entries_max: 4_000,
        unacknowledged_max: 512,
        body_bytes_max: 1 << 20,
        assembly_bytes_max: 1 << 19,
        message_size_max: 1 << 16,
        ..Limits::default()
    }
}

/// A broker with its messages, and the state of its clients.
struct Restarts {
    broker: Broker,
    pending_writes: PendingWrites,
    work: Work,
    messages: Messages,
    random: Random,
    clients: Vec<Client>,
    next_body: u64,
}

struct Client {
    connection: ConnectionId,
    channels: Vec<ChannelId>,
    /// Unsettled deliveries by channel.
    unsettled: BTreeMap<ChannelId, BTreeSet<u64>>,
    numbers: BTreeMap<u16, ChannelId>,
    transactional: BTreeSet<ChannelId>,
    no_ack_tags: BTreeSet<(ChannelId, u64)>,
}

impl Restarts {
    fn new(seed: u64) -> Self {
        let limits = limits();
        let mut entropy = Random::new(seed ^ 0x5555_AAAA_1234_5678);
        let fill = move |bytes: &mut [u8]| {
            for byte in bytes {
                *byte = entropy.below(256) as u8;
            }
        };
        Self {
            broker: Broker::new(&limits, Box::new(fill)).unwrap(),
            pending_writes: PendingWrites::new(limits.messages_max as usize),
            work: Work::default(),
            messages: Messages::new(limits.message_limits()),
            random: Random::new(seed),
            clients: Vec::new(),
            next_body: 0,
        }
    }

    fn apply<C: ChannelRequest>(
        &mut self,
        connection: ConnectionId,
        channel: ChannelId,
        command: C,
    ) -> Result<C::Answer, Fault> {
        self.broker.apply_on_channel(&mut context!(self), connection, channel, command)
    }

    fn open<C: ConnectionRequest>(
        &mut self,
        connection: ConnectionId,
        command: C,
    ) -> Result<C::Answer, Fault> {
        self.broker.apply_to_connection(&mut context!(self), connection, command)
    }

    fn connect(&mut self) {
        let Some(connection) = self.broker.connect() else { return };
        let login = LoginCommand::External { user: "guest", from_loopback: true };
        assert_eq!(self.open(connection, login), Ok(LoginAnswer::LoggedIn));
        assert_eq!(self.open(connection, OpenVhost { vhost: "/" }), Ok(()));
        self.clients.push(Client {
            connection,
            channels: Vec::new(),
            unsettled: BTreeMap::new(),
            numbers: BTreeMap::new(),
            transactional: BTreeSet::new(),
            no_ack_tags: BTreeSet::new(),
        });
    }

    fn open_channel(&mut self, client: usize) {
        let number = (1..).find(|number| !self.clients[client].numbers.contains_key(number)).unwrap();
        let connection = self.clients[client].connection;
        if let Ok(channel) = self.open(connection, OpenChannel { number }) {
            self.clients[client].channels.push(channel);
            self.clients[client].numbers.insert(number, channel);
        }
    }

    fn close_channel(&mut self, client: usize, channel: ChannelId) {
        let connection = self.clients[client].connection;
        // A partly written delivery would have to be completed first; this driver always writes complete
        // ones.
        self.apply(connection, channel, ChannelCommand::CloseChannel).unwrap();
        let client = &mut self.clients[client];
        client.channels.retain(|other| *other != channel);
        client.unsettled.remove(&channel);
        client.transactional.remove(&channel);
        self.settle_jobs();
        self.drain_outbox_of(connection);
        if let Some(client) = self.clients.iter_mut().find(|client| client.connection == connection) {
            client.numbers.retain(|_, other| *other != channel);
        }
    }

    fn disconnect(&mut self, client: usize) {
        let client = self.clients.swap_remove(client);
        self.broker.release(&mut context!(self), client.connection);
        self.settle_jobs();
    }

    fn settle_jobs(&mut self) {
        while self.broker.run_jobs(&mut context!(self)) {}
    }

    fn message(&mut self, exchange: &str, key: &str, share: Share) -> Option<MessageId> {
        let id = self.messages.begin(exchange, key.as_bytes(), share).ok()?;
        let len = [8, 16, 200, 3_000][self.random.below(4) as usize];
        let properties = with_priority(self.random.below(7) as u8);
        let reserved = self.messages.reserve_content(id, &properties, MessageFlags::NONE, len, share);
        if reserved.is_err() {
            self.messages.release(id);
            return None;
        }
        let mut body = vec![0; len as usize];
        body[..8].copy_from_slice(&self.next_body.to_be_bytes());
        self.next_body += 1;
        self.messages.append_body(id, &body);
        self.messages.finish(id);
        Some(id)
    }

    fn publish(&mut self, client: usize, channel: ChannelId) {
        let connection = self.clients[client].connection;
        let exchange =
            self.random.one_of(&["", "amq.direct", "amq.topic", "amq.fanout", "e1", "e2", "missing"]);
        let key = self.random.one_of(&["q1", "q2", "q3", "a.b", "a.c.d", "none"]);
        let share = self.broker.content_share(connection);
        let Some(message) = self.message(exchange, key, share) else { return };
        let mandatory = self.random.below(3) == 0;
        match self.apply(connection, channel, PublishCommand::Publish { message, mandatory }) {
            Ok(PublishAnswer::Wait) => self.messages.release(message),
            Err(_) => self.close_channel(client, channel),
            Ok(PublishAnswer::Published)
            | Ok(PublishAnswer::PublishedNowhere)
            | Ok(PublishAnswer::Refused) => {}
            other => panic!("publish answered {other:?}"),
        }
    }

    fn deliver(&mut self) {
        self.broker.deliver(&mut context!(self), 64);
        assert_eq!((self.broker.queues().forgotten_queue(), self.broker.forgotten_consumer()), (None, None));
        let connections: Vec<_> = self.clients.iter().map(|client| client.connection).collect();
        for connection in connections {
            if self.random.below(4) > 0 {
                self.drain_outbox_of(connection);
            }
        }
    }

    fn drain_outbox_of(&mut self, connection: ConnectionId) {
        let Some(at) = self.clients.iter().position(|client| client.connection == connection) else { return };
        let mut count = 0;
        let mut last_sequence = 0;
        let mut outbox = self.broker.outbox(connection);
        while let Some(delivery) = outbox.peek() {
            assert!(delivery.sequence > last_sequence, "the outbox is in order");
            last_sequence = delivery.sequence;
            count += 1;
            let client = &mut self.clients[at];
            if let (Some(&channel), false) =
                (client.numbers.get(&delivery.channel), matches!(delivery.kind, DeliveryKind::Return(_)))
            {
                let no_ack = matches!(
                    delivery.kind,
                    DeliveryKind::Deliver { consumer_tag } if consumer_tag.starts_with("auto")
                );
                if no_ack {
                    client.no_ack_tags.insert((channel, delivery.delivery_tag));
                } else if client.channels.contains(&channel) {
                    let fresh = client.unsettled.entry(channel).or_default().insert(delivery.delivery_tag);
                    assert!(fresh, "a tag is used once");
                }
            }
            outbox.advance();
        }
        self.broker.sent(&mut context!(self), connection, count);
        while let Some((_, tag, _)) = self.broker.next_cancelled(connection) {
            assert!(!tag.is_empty());
            self.broker.note_cancel_sent(connection);
        }
    }

    fn settle(&mut self, client: usize, channel: ChannelId) {
        let settlement = self.random.one_of(&[Settlement::Ack, Settlement::Reject, Settlement::Requeue]);
        let tags = self.clients[client].unsettled.entry(channel).or_default().clone();
        let connection = self.clients[client].connection;
        let known: Vec<_> = tags.iter().copied().collect();
        let pick = self.random.below(10);
        let (delivery_tag, multiple) = match (known.is_empty(), pick) {
            (_, 0) => (0, true),
            (_, 1) => (1_000_000, false),
            (true, _) => return,
            (false, 2..=4) => (self.random.one_of(&known), true),
            (false, _) => (self.random.one_of(&known), false),
        };
        let outcome =
            self.apply(connection, channel, ChannelCommand::Settle { delivery_tag, multiple, settlement });
        let left = self.clients[client].unsettled.entry(channel).or_default();
        match outcome {
            Ok(ChannelAnswer::Done) if multiple && delivery_tag == 0 => left.clear(),
            Ok(ChannelAnswer::Done) if multiple => left.retain(|tag| *tag > delivery_tag),
            Ok(ChannelAnswer::Done) => {
                assert!(left.remove(&delivery_tag), "tag {delivery_tag} was not known")
            }
            Err(fault) => {
                assert!(!left.contains(&delivery_tag), "{fault}");
                self.close_channel(client, channel);
            }
            other => panic!("settle answered {other:?}"),
        }
        self.settle_jobs();
    }

    fn step(&mut self) {
        if self.clients.is_empty() || self.random.below(60) == 0 && self.clients.len() < 8 {
            return self.connect();
        }
        let client = self.random.below(self.clients.len() as u64) as usize;
        if self.clients[client].channels.is_empty() {
            return self.open_channel(client);
        }
        let channels = self.clients[client].channels.clone();
        let channel = self.random.one_of(&channels);
        match self.random.below(100) {
            0..=39 => self.publish(client, channel),
            40..=59 => self.deliver(),
            60..=79 => self.settle(client, channel),
            80 => self.disconnect(client),
            81 => self.close_channel(client, channel),
            82 => self.open_channel(client),
            _ => self.define(client, channel),
        }
    }

    fn define(&mut self, client: usize, channel: ChannelId) {
        let queue = self.random.one_of(&["q1", "q2", "q3", "x1", "x2"]);
        let exchange = self.random.one_of(&["amq.direct", "amq.topic", "amq.fanout", "e1", "e2"]);
        let destination = self.random.one_of(&["e1", "e2"]);
        let key = self.random.one_of(&["q1", "a.*", "a.#", "#", "*.b", "none"]);
        let tag = self.random.one_of(&["c1", "c2", "auto1", "auto2"]);
        let flag = self.random.below(2) == 0;
        let exclusive = queue.starts_with('x');
        let choice = self.random.below(17);
        let command = match choice {
            0..=9 => Command::Definition(
                channel,
                match choice {
                    0 | 1 => DefinitionCommand::QueueDeclare {
                        queue,
                        passive: false,
                        durable: false,
                        exclusive,
                        auto_delete: queue == "q3",
                        arguments: match queue {
                            "q1" => SINGLE_ACTIVE,
                            "q2" => PRIORITIES,
                            _ => &[],
                        },
                    },
                    2 => DefinitionCommand::QueueDelete { queue, if_unused: flag, if_empty: false },
                    3 => DefinitionCommand::QueuePurge { queue },
                    4 | 5 => {
                        DefinitionCommand::QueueBind { queue, exchange, routing_key: key, arguments: &[] }
                    }
                    6 => DefinitionCommand::QueueUnbind { queue, exchange, routing_key: key, arguments: &[] },
                    7 => DefinitionCommand::ExchangeDeclare {
                        exchange: destination,
                        kind: if destination == "e1" { "topic" } else { "fanout" },
                        passive: false,
                        durable: false,
                        auto_delete: true,
                        internal: false,
                        arguments: &[],
                    },
                    8 => DefinitionCommand::ExchangeBind {
                        destination,
                        source: exchange,
                        routing_key: key,
                        arguments: &[],
                    },
                    _ => DefinitionCommand::ExchangeDelete { exchange: destination, if_unused: flag },
                },
            ),
            10 | 11 => Command::Channel(
                channel,
                ChannelCommand::Consume {
                    queue,
                    tag,
                    no_ack: tag.starts_with("auto"),
                    exclusive: false,
                    arguments: self.random.one_of(&[&b""[..], b"\x0ax-priorityb\x03"]),
                },
            ),
            12 => Command::Channel(channel, ChannelCommand::Cancel { tag }),
            13 => Command::Get(channel, GetCommand { queue, no_ack: false }),
            14 => Command::Channel(
                channel,
                ChannelCommand::Qos { prefetch_count: self.random.below(5) as u16, global: flag },
            ),
            15 => Command::Channel(channel, ChannelCommand::Recover),
            _ => return self.transact(client, channel),
        };
        let connection = self.clients[client].connection;
        let (outcome, _) = self.broker.apply(&mut context!(self), connection, command);
        self.settle_jobs();
        match outcome {
            Outcome::Answer(Err(_)) => self.close_channel(client, channel),
            _ if command == Command::Channel(channel, ChannelCommand::Recover) => {
                self.clients[client].unsettled.remove(&channel);
            }
            _ => {}
        }
    }

    fn transact(&mut self, client: usize, channel: ChannelId) {
        let connection = self.clients[client].connection;
        let command = self.random.one_of(&[
            ChannelCommand::TxSelect,
            ChannelCommand::TxCommit,
            ChannelCommand::ConfirmSelect,
        ]);
        match self.apply(connection, channel, command) {
            Err(_) => self.close_channel(client, channel),
            _ if command == ChannelCommand::TxSelect => {
                self.clients[client].transactional.insert(channel);
            }
            _ => {}
        }
    }
}

fn run(seed: u64) {
    let mut world = Restarts::new(seed);
    for _ in 0..1_500 {
        world.step();
        let gauges = world.broker.gauges();
        assert!(gauges.deliveries <= 512 && gauges.queues <= 32);
    }
    let last = world.clients.len();
    for _ in 0..last {
        world.disconnect(0);
    }
    world.connect();
    world.open_channel(0);
    let (connection, channel) = (world.clients[0].connection, world.clients[0].channels[0]);
    for queue in ["q1", "q2", "q3"] {
        world
            .apply(
                connection,
                channel,
                DefinitionCommand::QueueDelete { queue, if_unused: false, if_empty: false },
            )
            .unwrap();
    }
    for exchange in ["e1", "e2"] {
        world
            .apply(connection, channel, DefinitionCommand::ExchangeDelete { exchange, if_unused: false })
            .unwrap();
    }
    world.disconnect(0);
    assert_eq!(world.broker.gauges(), Gauges::default(), "something was left in a pool");
    assert_eq!((world.messages.messages_used(), world.messages.body_bytes_used()), (0, 0), "messages leaked");
}

#[test]
fn random_runs_leave_every_pool_empty() {
    let only = std::env::var("LEVERET_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = only.map_or(0..300, |seed: u64| seed..seed + 1);
    for seed in seeds {
        let result = std::panic::catch_unwind(|| run(seed));
        if let Err(panic) = result {
            eprintln!(
                "replay with: LEVERET_SEED={seed} cargo test --profile checked -p leveret-broker --test broker \
                 random_runs::"
            );
            std::panic::resume_unwind(panic);
        }
    }
}

/// RabbitMQ accepts any bytes as a routing key. Such a key matches bindings that match every key.
#[test]
fn a_routing_key_need_not_be_text() {
    let mut world = Restarts::new(1);
    world.connect();
    world.open_channel(0);
    let (connection, channel) = (world.clients[0].connection, world.clients[0].channels[0]);
    for (queue, key) in [("all", "#"), ("two words", "*.*"), ("text", "a.b")] {
        let declare = DefinitionCommand::QueueDeclare {
            queue,
            passive: false,
            durable: false,
            exclusive: false,
            auto_delete: false,
            arguments: &[],
        };
        world.apply(connection, channel, declare).unwrap();
        let bind =
            DefinitionCommand::QueueBind { queue, exchange: "amq.topic", routing_key: key, arguments: &[] };
        assert_eq!(world.apply(connection, channel, bind), Ok(DefinitionAnswer::Done));
    }
    let key = b"\xFF\xFE.b";
    let message = world.messages.begin("amq.topic", key, Share::Ordinary).unwrap();
    world.messages.reserve_content(message, &[0, 0], MessageFlags::NONE, 0, Share::Ordinary).unwrap();
    world.messages.finish(message);
    let publish = PublishCommand::Publish { message, mandatory: true };
    assert_eq!(world.apply(connection, channel, publish), Ok(PublishAnswer::Published));
    for (queue, expected) in
        [("all", Ok(GetAnswer::Queued)), ("two words", Ok(GetAnswer::Queued)), ("text", Ok(GetAnswer::Empty))]
    {
        assert_eq!(world.apply(connection, channel, GetCommand { queue, no_ack: true }), expected, "{queue}");
    }
    let outbox = world.broker.outbox(connection);
    assert_eq!(world.messages.routing_key(outbox.peek().unwrap().message), key);
}

/// A commit uses the reserve: a queue beyond its share of the pool must not reject part of it.
#[test]
fn a_commit_is_whole_though_its_queue_is_over_its_share() {
    let mut world = Restarts::new(2);
    world.connect();
    world.open_channel(0);
    let (connection, channel) = (world.clients[0].connection, world.clients[0].channels[0]);
    let declare = DefinitionCommand::QueueDeclare {
        queue: "q",
        passive: false,
        durable: false,
        exclusive: false,
        auto_delete: false,
        arguments: &[],
    };
    world.apply(connection, channel, declare).unwrap();
    let publish = |world: &mut Restarts| {
        let message = world.messages.begin("", b"q", world.broker.content_share(connection)).unwrap();
        world.messages.reserve_content(message, &[0, 0], MessageFlags::NONE, 0, Share::Reserve).unwrap();
        world.messages.finish(message);
        let outcome = world.apply(connection, channel, PublishCommand::Publish { message, mandatory: true });
        if outcome == Ok(PublishAnswer::Wait) {
            world.messages.release(message);
        }
        outcome
    };
    // One queue may take two thirds.
    let stored = limits().messages_max / 16 * 15 / 3 * 2 - 10;
    for _ in 0..stored {
        assert_eq!(publish(&mut world), Ok(PublishAnswer::Published));
    }
    assert_eq!(world.apply(connection, channel, ChannelCommand::TxSelect), Ok(ChannelAnswer::Done));
    for _ in 0..20 {
        assert_eq!(publish(&mut world), Ok(PublishAnswer::Published));
    }
    assert_eq!(world.apply(connection, channel, ChannelCommand::TxCommit), Ok(ChannelAnswer::Done));
    assert_eq!(publish(&mut world), Ok(PublishAnswer::Wait), "the next transaction waits");
    let Ok(DefinitionAnswer::QueueDeclared { message_count, .. }) = world.apply(connection, channel, declare)
    else {
        panic!("the queue is gone");
    };
    assert_eq!(message_count, stored + 20);
}
