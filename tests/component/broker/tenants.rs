//! Random commands of several users in several virtual hosts, with pools far too small for them.
//!
//! Checked: no client sleeps which could be served, and nothing is left at the end.
//!
//! ```sh
//! LEVERET_SEED=1..5001 cargo test --profile checked -p leveret-broker --test broker tenants        many
//! ```

use leveret_amqp::Full;
use leveret_amqp::field::{TableWriter, Value};
use leveret_broker::Gauges;
use leveret_core::command::{
    ChannelCommand, ChannelId, Command, ConnectionId, DefinitionCommand, GetCommand, LoginCommand,
    OpenChannel, OpenVhost, Outbox, PublishAnswer, PublishCommand, Settlement,
};
use leveret_core::definition::Permission;
use leveret_core::definition::{ApplyTo, Policy, PolicyKind};
use leveret_core::limits::Limits;
use leveret_core::mem::MessageFlags;
use leveret_core::password::PasswordHash;
use leveret_core::time::Now;

use crate::dead_letters::table;
use crate::spilling::store;
use crate::support::TestBroker;
use leveret_test_support::random::Random;

const VHOSTS: [&str; 3] = ["/", "v1", "v2"];
const USERS: [&str; 3] = ["guest", "u1", "u2"];
const QUEUES: [&str; 5] = ["a", "b", "c", "d", "e"];
const EXCHANGES: [&str; 9] =
    ["", "x1", "x2", "dl", "amq.topic", "amq.fanout", "amq.headers", "amq.direct", "amq.rabbitmq.trace"];
const KEYS: [&str; 7] = ["a", "b", "c", "publish.#", "deliver.*", "#", "x.y"];
const STEPS: u32 = 1_500;

/// One client.
struct Peer {
    connection: ConnectionId,
    channels: Vec<ChannelId>,
    /// Number of deliveries to it.
    tags: u64,
}

/// One random run: a broker and its clients.
struct BrokerRun {
    node: TestBroker,
    random: Random,
    peers: Vec<Peer>,
    now_ms: u64,
    /// Durable queues are in a log.
    is_logged: bool,
    seed: u64,
}

fn limits() -> Limits {
    Limits {
        connections_max: 12,
        channels_max: 40,
        consumers_max: 24,
        queues_max: 300,
        exchanges_max: 24,
        bindings_max: 40,
        messages_max: 120,
        queue_entries_max: 3_000,
        unacknowledged_max: 40,
        body_bytes_max: 256 << 10,
        assembly_bytes_max: 128 << 10,
        message_size_max: 1 << 16,
        vhosts_max: 4,
        users_max: 4,
        policies_max: 6,
        permissions_max: 16,
        ..Limits::default()
    }
}

impl BrokerRun {
    fn begin(seed: u64) -> Self {
        let mut node = TestBroker::with(&limits());
        let is_logged = seed.is_multiple_of(2);
        if is_logged {
            node.pending_writes.start(1_000, true, u64::MAX >> 8);
            node.pending_writes.set_log_free_bytes(u64::MAX, u64::MAX, false);
        }
        let now_ms = 1_000_000;
        node.pending_writes.set_time(now_ms);
        Self { node, random: Random::new(seed), peers: Vec::new(), now_ms, is_logged, seed }
    }

    fn flips(&mut self) -> bool {
        self.random.once_in(2)
    }

    /// Connects a client, if there is capacity and its user is allowed to.
    fn connect(&mut self) {
        let (user, vhost) = (self.random.one_of(&USERS), self.random.one_of(&VHOSTS));
        if self.random.once_in(3) {
            let pending_writes = &mut self.node.pending_writes;
            let _ = self.node.broker.put_vhost(pending_writes, vhost);
            if self.node.broker.access().users().all(|view| view.name != user) {
                let _ = self.node.broker.put_user(pending_writes, user, PasswordHash::NoPassword, "");
            }
            let _ = self.node.broker.access_mut().set_permissions(
                pending_writes,
                &Permission { user, vhost, configure: ".*", write: ".*", read: ".*" },
            );
        }
        let Some(connection) = self.node.broker.connect() else { return };
        let login = LoginCommand::External { user, from_loopback: true };
        let broker = &mut self.node.broker;
        let opened = broker.apply_to_connection(&mut context!(self.node), connection, login).and_then(|_| {
            broker.apply_to_connection(&mut context!(self.node), connection, OpenVhost { vhost })
        });
        if opened.is_err() {
            return self.node.broker.release(&mut context!(self.node), connection);
        }
        self.peers.push(Peer { connection, channels: Vec::new(), tags: 0 });
    }

    fn open_channel(&mut self, at: usize) {
        let open = OpenChannel { number: 1 + self.random.below(60_000) as u16 };
        let connection = self.peers[at].connection;
        let answer = self.node.broker.apply_to_connection(&mut context!(self.node), connection, open);
        if let Ok(channel) = answer {
            self.peers[at].channels.push(channel);
        }
    }

    /// Returns arguments of a queue: some with dead letters, each with at most one limit.
    fn queue_arguments(&mut self, shape: u64) -> Vec<u8> {
        let (key, flag) = (self.random.one_of(&KEYS), self.flips());
        table(|fields| {
            if shape.is_multiple_of(2) {
                fields.text("x-dead-letter-exchange", if flag { "" } else { "dl" })?;
                if flag {
                    fields.text("x-dead-letter-routing-key", key)?;
                }
            }
            match shape {
                0 | 1 => fields.int("x-max-priority", 255),
                2 | 3 => fields.int("x-message-ttl", (shape as i32 - 2) * 50),
                4 | 5 => {
                    fields.int("x-max-length", shape as i32 - 4)?;
                    fields.text("x-overflow", if flag { "reject-publish-dlx" } else { "drop-head" })
                }
                6 => fields.int("x-expires", 40),
                7 => fields.value(b"x-single-active-consumer", Value::Bool(true)),
                8 => {
                    fields.text("x-queue-type", "quorum")?;
                    fields.int("x-delivery-limit", 1)
                }
                9 => {
                    fields.int("x-max-priority", 9)?;
                    fields.int("x-max-length", 3)?;
                    fields.text("x-overflow", "reject-publish")
                }
                _ => Ok(()),
            }
        })
    }

    /// Sends a command on one of a client's channels.
    fn command(&mut self, at: usize) {
        let place = self.random.below(self.peers[at].channels.len() as u64) as usize;
        let (connection, channel) = (self.peers[at].connection, self.peers[at].channels[place]);
        let (flag, other) = (self.flips(), self.flips());
        let (queue, exchange, key) =
            (self.random.one_of(&QUEUES), self.random.one_of(&EXCHANGES), self.random.one_of(&KEYS));
        let source = self.random.one_of(&EXCHANGES);
        let (passive, internal, if_unused) = (false, false, flag);
        let arguments: Vec<u8>;
        let choice = self.random.below(100);
        let command = match choice {
            0..=34 => Command::Definition(
                channel,
                match choice {
                    0..=13 => {
                        let shape = self.random.below(12);
                        let is_quorum = shape == 8;
                        arguments = self.queue_arguments(shape);
                        let exclusive = !is_quorum && self.random.once_in(6);
                        let (durable, auto_delete) =
                            (is_quorum || flag, !is_quorum && self.random.once_in(5));
                        DefinitionCommand::QueueDeclare {
                            queue,
                            passive,
                            durable,
                            exclusive,
                            auto_delete,
                            arguments: &arguments,
                        }
                    }
                    14..=18 => {
                        arguments = match (flag, other) {
                            (true, _) => table(|fields| fields.text("x-delayed-type", "fanout")),
                            (false, true) => table(|fields| fields.text("alternate-exchange", "dl")),
                            (false, false) => Vec::new(),
                        };
                        let plain = self.random.one_of(&["direct", "fanout", "topic", "headers"]);
                        let kind = if flag { "x-delayed-message" } else { plain };
                        let (durable, auto_delete) = (self.flips(), self.random.once_in(4));
                        let arguments = &arguments;
                        DefinitionCommand::ExchangeDeclare {
                            exchange,
                            kind,
                            passive,
                            durable,
                            auto_delete,
                            internal,
                            arguments,
                        }
                    }
                    19..=26 => {
                        DefinitionCommand::QueueBind { queue, exchange, routing_key: key, arguments: &[] }
                    }
                    27 => {
                        DefinitionCommand::QueueUnbind { queue, exchange, routing_key: key, arguments: &[] }
                    }
                    28..=30 => DefinitionCommand::ExchangeBind {
                        destination: exchange,
                        source,
                        routing_key: key,
                        arguments: &[],
                    },
                    31 => DefinitionCommand::ExchangeUnbind {
                        destination: exchange,
                        source,
                        routing_key: key,
                        arguments: &[],
                    },
                    32 => DefinitionCommand::ExchangeDelete { exchange, if_unused },
                    33 => DefinitionCommand::QueueDelete { queue, if_unused, if_empty: other },
                    _ => DefinitionCommand::QueuePurge { queue },
                },
            ),
            35..=40 => {
                let queue = if self.random.once_in(8) { "amq.rabbitmq.reply-to" } else { queue };
                let exclusive = self.random.once_in(8);
                Command::Channel(
                    channel,
                    ChannelCommand::Consume { queue, tag: "", no_ack: flag, exclusive, arguments: &[] },
                )
            }
            41..=44 => Command::Get(channel, GetCommand { queue, no_ack: flag }),
            45 => Command::Channel(
                channel,
                ChannelCommand::Qos { prefetch_count: self.random.below(4) as u16, global: flag },
            ),
            46 => Command::Channel(channel, ChannelCommand::Recover),
            47 => Command::Channel(channel, ChannelCommand::TxSelect),
            48..=50 => Command::Channel(channel, ChannelCommand::TxCommit),
            51 => Command::Channel(channel, ChannelCommand::TxRollback),
            52 => Command::Channel(channel, ChannelCommand::ConfirmSelect),
            53 => {
                self.peers[at].channels.remove(place);
                Command::Channel(channel, ChannelCommand::CloseChannel)
            }
            54..=62 => {
                let settlements = [Settlement::Ack, Settlement::Requeue, Settlement::Reject];
                let settlement = self.random.one_of(&settlements);
                let is_all = self.random.once_in(3);
                let delivery_tag = if is_all { 0 } else { 1 + self.random.below(self.peers[at].tags + 1) };
                Command::Channel(
                    channel,
                    ChannelCommand::Settle { delivery_tag, multiple: flag || is_all, settlement },
                )
            }
            _ => return self.publish(connection, channel, (exchange, key)),
        };
        let _ = self.node.broker.apply(&mut context!(self.node), connection, command);
    }

    /// Returns properties with some of: headers, delivery mode, priority, reply-to, expiration; and whether
    /// they are persistent.
    fn properties(&mut self) -> (Vec<u8>, bool) {
        let (shape, is_persistent) = (self.random.below(8), self.flips());
        let delay_ms = 1 + self.random.below(3) as i64 * 30_000;
        let fill = |fields: &mut TableWriter<'_, '_>| -> Result<(), Full> {
            match shape {
                0 => fields.long("x-delay", delay_ms),
                1 => fields.long("x-delay", u32::MAX.into()),
                2 => fields.array("BCC", |keys| keys.long_str(b"b")),
                _ => fields.array("CC", |keys| {
                    keys.long_str(b"c")?;
                    keys.long_str(b"d")
                }),
            }
        };
        let (mut flags, mut bytes) = (0x1000_u16, Vec::new());
        if shape < 4 {
            flags |= 0x2000;
            let headers = table(fill);
            bytes.extend((headers.len() as u32).to_be_bytes());
            bytes.extend(headers);
        }
        bytes.push(if is_persistent { 2 } else { 1 });
        if self.random.once_in(3) {
            flags |= 0x0800;
            bytes.push(self.random.below(256) as u8);
        }
        if shape == 4 {
            flags |= 0x0200;
            bytes.extend(b"\x15amq.rabbitmq.reply-to");
        }
        if self.random.once_in(4) {
            flags |= 0x0100;
            bytes.extend(self.random.one_of(&[&b"\x010"[..], b"\x0230"]));
        }
        ([flags.to_be_bytes().to_vec(), bytes].concat(), is_persistent)
    }

    /// Publishes like a connection. A publish that would have to wait is dropped.
    fn publish(&mut self, connection: ConnectionId, channel: ChannelId, (exchange, key): (&str, &str)) {
        let (properties, is_persistent) = self.properties();
        let body_len = self.random.one_of(&[0_u32, 10, 3_000]);
        let mandatory = self.random.once_in(3);
        let node = &mut self.node;
        let share = node.broker.content_share(connection);
        let Ok(message) = node.messages.begin(exchange, key.as_bytes(), share) else {
            node.messages.lift_hold();
            return;
        };
        let persistent = if is_persistent { MessageFlags::PERSISTENT } else { MessageFlags::NONE };
        let flags = MessageFlags::PARSE_PROPERTIES.with(persistent);
        if node.messages.reserve_content(message, &properties, flags, body_len, share).is_err() {
            return node.messages.discard(message);
        }
        node.messages.append_body(message, &vec![7; body_len as usize]);
        node.messages.finish(message);
        let publish = PublishCommand::Publish { message, mandatory };
        if node.broker.apply_on_channel(&mut context!(node), connection, channel, publish)
            == Ok(PublishAnswer::Wait)
        {
            node.messages.release(message);
        }
    }

    /// Causes an event that no client requests.
    fn trouble(&mut self) {
        let (flag, vhost, user) = (self.flips(), self.random.one_of(&VHOSTS), self.random.one_of(&USERS));
        let (queue, is_rare) = (self.random.one_of(&QUEUES), self.random.once_in(3));
        match self.random.below(60) {
            0 => {
                let at = self.random.below(self.peers.len() as u64) as usize;
                let peer = self.peers.swap_remove(at);
                self.node.broker.release(&mut context!(self.node), peer.connection);
            }
            1 => {
                self.now_ms += self.random.one_of(&[1, 50, 1_000, 60_000, 5_000_000_000]);
                self.node.pending_writes.set_time(self.now_ms);
            }
            2 if !self.seed.is_multiple_of(3) => {
                let _ = self.node.broker.trace(vhost, "n", flag);
            }
            3 if is_rare => {
                let _ = self.node.broker.delete_vhost(&mut context!(self.node), vhost);
            }
            4 if is_rare => {
                let _ = self.node.broker.delete_user(&mut self.node.pending_writes, user);
            }
            5 => {
                let rule = self.random.below(5);
                let definition = table(|fields| match rule {
                    0 => fields.int("max-length", 1),
                    1 => fields.text("dead-letter-exchange", "dl"),
                    2 => fields.int("message-ttl", 0),
                    3 => fields.int("expires", 100),
                    _ => fields.text("alternate-exchange", "dl"),
                });
                let (name, priority) = (if flag { "p" } else { "o" }, self.random.below(3) as i32);
                let (kind, apply_to) = (PolicyKind::User, ApplyTo::All);
                let definition = &definition;
                let policy: Policy<&str, &[u8]> =
                    Policy { vhost, kind, name, pattern: "", apply_to, priority, definition };
                let _ = self.node.broker.set_policy(&mut context!(self.node), &policy);
            }
            6 => {
                let kind = PolicyKind::User;
                let _ = self.node.broker.clear_policy(&mut context!(self.node), vhost, kind, "p");
            }
            7 if self.is_logged => store(&mut self.node),
            8 => {
                let _ = self.node.broker.operator_purge(&mut context!(self.node), vhost, queue);
            }
            _ => {}
        }
        while let Some((connection, _)) = self.node.broker.next_forced() {
            self.peers.retain(|peer| peer.connection != connection);
            self.node.broker.release(&mut context!(self.node), connection);
        }
    }

    /// Does what the event loop does after reading; of each outbox a part is written.
    fn turn(&mut self) {
        let node = &mut self.node;
        node.broker.set_time(Now::from_ms(self.now_ms));
        node.broker.run_jobs(&mut context!(node));
        node.broker.deliver(&mut context!(node), 1 + self.random.below(64) as u32);
        while node.broker.next_with_output().is_some() {}
        for peer in &mut self.peers {
            while node.broker.next_cancelled(peer.connection).is_some() {
                node.broker.note_cancel_sent(peer.connection);
            }
            let _ = node.broker.take_late_get(peer.connection);
            let mut outbox = node.broker.outbox(peer.connection);
            let mut waiting = 0;
            while outbox.peek().is_some_and(|delivery| !delivery.is_withdrawn) {
                waiting += 1;
                outbox.advance();
            }
            let sent = self.random.below(waiting + 1) as u32;
            node.broker.sent(&mut context!(node), peer.connection, sent);
            if node.broker.outbox(peer.connection).peek().is_some_and(|delivery| delivery.is_withdrawn) {
                node.broker.written(&mut context!(node), peer.connection, 1, true, true);
            }
            peer.tags += u64::from(sent);
        }
        assert_eq!(node.broker.forgotten_consumer(), None, "a consumer could take a message");
        assert_eq!(node.broker.queues().forgotten_queue(), None, "a queue could deliver one");
    }

    /// Closes all connections, and deletes everything.
    fn end(mut self) {
        let node = &mut self.node;
        for vhost in VHOSTS {
            node.broker.trace(vhost, "n", false);
        }
        for peer in self.peers.drain(..) {
            node.broker.release(&mut context!(node), peer.connection);
        }
        for vhost in VHOSTS {
            let _ = node.broker.delete_vhost(&mut context!(node), vhost);
        }
        let mut rounds = 0;
        loop {
            node.broker.run_jobs(&mut context!(node));
            node.broker.deliver(&mut context!(node), 1_000);
            while node.broker.next_with_output().is_some() {}
            if self.is_logged {
                store(node);
                node.broker.queues_mut().note_durable(&node.pending_writes);
            }
            if !node.broker.has_work(&node.pending_writes)
                && !node.broker.may_expire_or_trim(&node.pending_writes, &node.messages)
            {
                break;
            }
            rounds += 1;
            assert!(rounds < 2_000, "it never rests: {:?}", node.broker.gauges());
        }
        assert_eq!(node.broker.gauges(), Gauges::default());
        if !self.is_logged {
            assert_eq!((node.messages.messages_used(), node.messages.body_bytes_used()), (0, 0));
        }
    }
}

fn live(seed: u64) {
    let mut run = BrokerRun::begin(seed);
    for _ in 0..STEPS {
        if run.peers.is_empty() || run.peers.len() < 6 && run.random.below(8) == 0 {
            run.connect();
        }
        if run.peers.is_empty() {
            continue;
        }
        let at = run.random.below(run.peers.len() as u64) as usize;
        if !run.node.broker.is_busy(run.peers[at].connection) {
            let channels = run.peers[at].channels.len();
            if channels == 0 || channels < 3 && run.random.once_in(20) {
                run.open_channel(at);
            }
            if !run.peers[at].channels.is_empty() {
                run.command(at);
            }
        }
        run.trouble();
        if run.random.once_in(4) {
            run.turn();
        }
    }
    run.end();
}

#[test]
fn no_client_is_forgotten_and_nothing_is_left() {
    let only = std::env::var("LEVERET_SEED").ok().and_then(|seeds| {
        let (from, to) = seeds.split_once("..").unwrap_or((&seeds, &seeds));
        Some((from.parse::<u64>().ok()?, to.parse::<u64>().ok()?))
    });
    let seeds = match only {
        None => 1..101,
        Some((from, to)) => from..to.max(from + 1),
    };
    for seed in seeds {
        if std::panic::catch_unwind(|| live(seed)).is_err() {
            panic!(
                "replay with: LEVERET_SEED={seed} cargo test --profile checked -p leveret-broker --test broker tenants"
            );
        }
    }
}
