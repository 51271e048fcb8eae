//! Access control of the broker alone: logins, permissions, virtual hosts, and restarts.

use leveret_core::definition::{Permission, TopicPermission};
use std::collections::BTreeMap;

use leveret_broker::{
    Broker, ChannelRequest, ConnectionRequest, Context, Declared, Gauges, OperatorFault, QueueDeclaration,
    Restored, VHOST_METADATA_BYTES_MAX, VhostChange, Work,
};
use leveret_core::command::{
    ChannelId, ConnectionId, DefinitionAnswer, DefinitionCommand, LoginAnswer, LoginCommand, OpenChannel,
    OpenVhost, PublishAnswer, PublishCommand,
};
use leveret_core::definition::{self, Definition, VhostLimits, VhostMetadata};
use leveret_core::error::Fault;
use leveret_core::limits::Limits;
use leveret_core::mem::{MessageFlags, Messages, Share};
use leveret_core::password::PasswordHash;
use leveret_storage::{LogEntry, PendingWrites};

/// A broker with its messages.
struct TestBroker {
    broker: Broker,
    pending_writes: PendingWrites,
    work: Work,
    messages: Messages,
    /// Log entries taken out of the journal.
    facts: Vec<LogEntry>,
}

/// One channel of one connection.
#[derive(Clone, Copy)]
struct At {
    connection: ConnectionId,
    channel: ChannelId,
}

fn limits() -> Limits {
    Limits { connections_max: 16, vhosts_max: 4, users_max: 8, permissions_max: 16, ..Limits::default() }
}

fn refused<T: core::fmt::Debug>(answer: &Result<T, Fault>) -> &str {
    let Err(fault) = answer else { panic!("{answer:?} is no refusal") };
    &fault.text
}

impl TestBroker {
    fn new() -> Self {
        let limits = limits();
        let messages = Messages::new(limits.message_limits());
        let broker = Broker::new(&limits, Box::new(leveret_test_support::random::entropy())).unwrap();
        let mut pending_writes = PendingWrites::new(limits.messages_max as usize);
        pending_writes.start(1, true, 1 << 20);
        Self { broker, pending_writes, work: Work::default(), messages, facts: Vec::new() }
    }

    /// Creates a broker with a user that has these permissions in `/`.
    fn with_user(user: &str, configure: &str, write: &str, read: &str) -> Self {
        let mut node = Self::new();
        node.broker.put_user(&mut node.pending_writes, user, PasswordHash::NoPassword, "").unwrap();
        node.broker
            .access_mut()
            .set_permissions(
                &mut node.pending_writes,
                &Permission { user, vhost: "/", configure, write, read },
            )
            .unwrap();
        node
    }

    fn open<C: ConnectionRequest>(
        &mut self,
        connection: ConnectionId,
        command: C,
    ) -> Result<C::Answer, Fault> {
        self.broker.apply_to_connection(&mut context!(self), connection, command)
    }

    fn connect(&mut self, user: &str, vhost: &str) -> Result<At, Fault> {
        let connection = self.broker.connect().unwrap();
        let login = LoginCommand::External { user, from_loopback: true };
        let opened = self.open(connection, login).and_then(|_| self.open(connection, OpenVhost { vhost }));
        if let Err(fault) = opened {
            self.hang_up(connection);
            return Err(fault);
        }
        let channel = self.open(connection, OpenChannel { number: 1 })?;
        Ok(At { connection, channel })
    }

    fn hang_up(&mut self, connection: ConnectionId) {
        self.broker.release(&mut context!(self), connection);
        self.work();
    }

    /// Runs jobs to their end. They pause when the journal is full.
    fn work(&mut self) {
        while self.broker.run_jobs(&mut context!(self)) {
            self.drain_facts();
        }
    }

    fn drain_facts(&mut self) {
        while let Some(fact) = self.pending_writes.next_entry() {
            self.facts.push(fact.clone());
            self.pending_writes.pop_entry();
        }
    }

    fn ask<C: ChannelRequest>(&mut self, at: At, command: C) -> Result<C::Answer, Fault> {
        self.broker.apply_on_channel(&mut context!(self), at.connection, at.channel, command)
    }

    fn declare(&mut self, at: At, queue: &str) -> Result<DefinitionAnswer, Fault> {
        let (passive, durable, exclusive, auto_delete) = (false, true, false, false);
        let arguments = &[];
        self.ask(
            at,
            DefinitionCommand::QueueDeclare { queue, passive, durable, exclusive, auto_delete, arguments },
        )
    }

    fn publish(&mut self, at: At, exchange: &str, key: &str) -> Result<PublishAnswer, Fault> {
        let id = self.messages.begin(exchange, key.as_bytes(), Share::Ordinary).unwrap();
        let reserved = self.messages.reserve_content(id, &[0, 0], MessageFlags::NONE, 1, Share::Ordinary);
        reserved.unwrap();
        self.messages.append_body(id, b"x");
        self.messages.finish(id);
        match self.ask(at, PublishCommand::Publish { message: id, mandatory: false }) {
            // Which queues got the message is checked elsewhere.
            Ok(PublishAnswer::PublishedNowhere) => Ok(PublishAnswer::Published),
            outcome => outcome,
        }
    }

    /// Starts a login, as far as the broker decides it without a password check.
    fn login(
        &mut self,
        user: &str,
        password: &[u8],
        from_loopback: bool,
    ) -> (ConnectionId, Result<LoginAnswer, Fault>) {
        let connection = self.broker.connect().unwrap();
        let password = leveret_core::password::Secret(password);
        (connection, self.open(connection, LoginCommand::Password { user, password, from_loopback }))
    }

    /// Completes a login. Returns whether it succeeded, and whether a password was hashed.
    fn log_in(&mut self, user: &str, password: &[u8], from_loopback: bool) -> (bool, bool) {
        let (connection, outcome) = self.login(user, password, from_loopback);
        let (is_logged_in, took_time) = match outcome {
            Ok(LoginAnswer::Check(check)) => {
                let is_correct = check.is_correct();
                let checked = self.broker.checked(&self.pending_writes, connection, &check, is_correct);
                (checked.is_ok(), true)
            }
            Ok(LoginAnswer::LoggedIn) => (true, false),
            Err(_) => (false, false),
        };
        self.hang_up(connection);
        (is_logged_in, took_time)
    }

    fn sight(&self) -> Vec<String> {
        let broker = &self.broker;
        let mut lines: Vec<String> = broker.access().vhosts().map(|vhost| format!("{vhost:?}")).collect();
        let shown = |hash: &PasswordHash| hash.export().1;
        lines.extend(
            broker.access().users().map(|user| format!("{} {} {}", user.name, user.tags, shown(user.hash))),
        );
        lines.extend(broker.access().permissions().map(|permission| format!("{permission:?}")));
        lines.extend(broker.access().topic_permissions().map(|topic| format!("{topic:?}")));
        lines.sort();
        lines
    }

    /// Returns the log entries since the last call, in order.
    fn take_facts(&mut self) -> Vec<LogEntry> {
        self.drain_facts();
        core::mem::take(&mut self.facts)
    }

    /// Restarts a broker with the definitions that these entries left in the log. Orphans are dropped.
    fn restart(facts: &[LogEntry]) -> Self {
        let mut log: BTreeMap<&[u8], &Option<Box<[u8]>>> = BTreeMap::new();
        for fact in facts {
            if let LogEntry::Defined { key, value, .. } = fact {
                log.insert(key, value);
            }
        }
        let mut node = Self::new();
        for (key, value) in log {
            let Some(value) = value else { continue };
            let definition = Definition::parse(key, value).unwrap();
            if node.broker.restore(&mut context!(node), &definition) == Restored::Orphaned {
                node.broker.delete_stale_definition(&mut node.pending_writes, key, &[]);
            }
        }
        node
    }
}

#[test]
fn a_password_is_checked_once_and_then_remembered_until_it_changes() {
    let mut node = TestBroker::new();
    let hash = |password: &[u8]| PasswordHash::of(password, &mut |salt| salt.fill(1));
    node.broker.put_user(&mut node.pending_writes, "u", hash(b"one"), "").unwrap();
    assert_eq!(node.log_in("u", b"two", true), (false, true));
    assert_eq!(node.log_in("u", b"one", true), (true, true));
    assert_eq!(node.log_in("u", b"one", true), (true, false), "remembered");
    assert_eq!(node.log_in("u", b"two", true), (false, true), "the wrong one is not");
    assert_eq!(node.log_in("nobody", b"one", true), (false, true), "an unknown user takes as long");
    node.broker.access_mut().change_password_hash(&mut node.pending_writes, "u", hash(b"two")).unwrap();
    assert_eq!(node.log_in("u", b"one", true), (false, true));
    assert_eq!(node.log_in("u", b"two", true), (true, true));
    node.broker.delete_user(&mut node.pending_writes, "u").unwrap();
    assert_eq!(node.log_in("u", b"two", true), (false, true));
}

#[test]
fn a_check_means_nothing_when_the_password_changed_meanwhile() {
    let mut node = TestBroker::new();
    let (connection, outcome) = node.login("guest", b"guest", true);
    let Ok(LoginAnswer::Check(check)) = outcome else { panic!("{outcome:?}") };
    node.broker
        .access_mut()
        .change_password_hash(&mut node.pending_writes, "guest", PasswordHash::NoPassword)
        .unwrap();
    assert!(node.broker.checked(&node.pending_writes, connection, &check, true).is_err());
}

#[test]
fn guest_logs_in_only_from_this_machine_unless_configured_otherwise() {
    let mut node = TestBroker::new();
    assert_eq!(node.log_in("guest", b"guest", false), (false, true));
    assert_eq!(node.log_in("guest", b"guest", true), (true, true), "from afar nothing was found out");
    // The password is known to be right by now. From a remote address it still takes as long as a wrong one,
    // and fails in the same way.
    for password in [&b"guest"[..], b"wrong"] {
        assert_eq!(node.log_in("guest", password, false), (false, true));
    }
    let (connection, outcome) = node.login("guest", b"guest", false);
    let Ok(LoginAnswer::Check(check)) = outcome else { panic!("{outcome:?}") };
    let outcome = node.broker.checked(&node.pending_writes, connection, &check, check.is_correct());
    let said = refused(&outcome);
    assert!(said.contains("create another user") && said.contains("loopback_users = []"), "{said}");
    node.broker.access_mut().set_loopback_users(&[]);
    assert_eq!(node.log_in("guest", b"guest", false), (true, false));
}

#[test]
fn cached_permissions_of_a_channel_end_with_the_permission() {
    let mut node = TestBroker::with_user("u", "", "^x$|amq.default", "");
    let guest = node.connect("guest", "/").unwrap();
    let (passive, durable, auto_delete, internal) = (false, false, false, false);
    let (kind, arguments) = ("fanout", &[][..]);
    for exchange in ["x", "y"] {
        let declare = DefinitionCommand::ExchangeDeclare {
            exchange,
            kind,
            passive,
            durable,
            auto_delete,
            internal,
            arguments,
        };
        assert_eq!(node.ask(guest, declare), Ok(DefinitionAnswer::Done));
    }
    let at = node.connect("u", "/").unwrap();
    for _ in 0..2 {
        assert_eq!(node.publish(at, "x", "k"), Ok(PublishAnswer::Published));
    }
    let text = "ACCESS_REFUSED - access to exchange 'y' in vhost '/' refused for user 'u'";
    assert_eq!(refused(&node.publish(at, "y", "k")), text);
    assert_eq!(node.publish(at, "x", "k"), Ok(PublishAnswer::Published));
    node.broker
        .access_mut()
        .set_permissions(
            &mut node.pending_writes,
            &Permission { user: "u", vhost: "/", configure: "", write: "^y$", read: "" },
        )
        .unwrap();
    assert!(refused(&node.publish(at, "x", "k")).contains("access to exchange 'x'"));
    assert_eq!(node.publish(at, "y", "k"), Ok(PublishAnswer::Published));
    node.broker.access_mut().clear_permissions(&mut node.pending_writes, "u", "/").unwrap();
    assert!(refused(&node.publish(at, "y", "k")).contains("access to exchange 'y'"));
}

#[test]
fn a_key_that_is_not_allowed_is_refused_also_behind_one_that_is() {
    let mut node = TestBroker::with_user("u", ".*", ".*", ".*");
    node.broker
        .access_mut()
        .set_topic_permissions(
            &mut node.pending_writes,
            &TopicPermission {
                user: "u",
                vhost: "/",
                exchange: "amq.topic",
                write: "^{username}\\.",
                read: ".*",
            },
        )
        .unwrap();
    let at = node.connect("u", "/").unwrap();
    for _ in 0..2 {
        assert_eq!(node.publish(at, "amq.topic", "u.1"), Ok(PublishAnswer::Published));
        assert!(refused(&node.publish(at, "amq.topic", "v.1")).contains("access to topic 'v.1'"));
        assert_eq!(node.publish(at, "amq.direct", "v.1"), Ok(PublishAnswer::Published));
    }
    node.broker
        .access_mut()
        .clear_topic_permissions(&mut node.pending_writes, "u", "/", Some("amq.topic"))
        .unwrap();
    assert_eq!(node.publish(at, "amq.topic", "v.1"), Ok(PublishAnswer::Published));
}

#[test]
fn a_deleted_user_may_do_nothing_more_and_is_disconnected() {
    let mut node = TestBroker::with_user("u", ".*", ".*", ".*");
    let at = node.connect("u", "/").unwrap();
    node.broker.delete_user(&mut node.pending_writes, "u").unwrap();
    let (connection, fault) = node.broker.next_forced().unwrap();
    assert_eq!(connection, at.connection);
    assert_eq!(&*fault.text, "CONNECTION_FORCED - user 'u' is deleted");
    assert!(node.broker.next_forced().is_none());
    assert!(refused(&node.declare(at, "q")).contains("refused for user 'u'"));
    // A new user of the same name has none of its rights.
    node.broker.put_user(&mut node.pending_writes, "u", PasswordHash::NoPassword, "").unwrap();
    assert!(refused(&node.declare(at, "q")).contains("refused for user 'u'"));
    assert_eq!(
        refused(&node.connect("u", "/").map(|_| ())),
        "NOT_ALLOWED - access to vhost '/' refused for user 'u'"
    );
}

#[test]
fn a_virtual_host_is_deleted_with_everything_in_it() {
    let mut node = TestBroker::with_user("u", ".*", ".*", ".*");
    let other = node.connect("u", "/").unwrap();
    node.declare(other, "q").unwrap();
    let before = node.broker.gauges();
    node.broker.put_vhost(&mut node.pending_writes, "v").unwrap();
    node.broker
        .access_mut()
        .set_permissions(
            &mut node.pending_writes,
            &Permission { user: "u", vhost: "v", configure: ".*", write: ".*", read: ".*" },
        )
        .unwrap();
    let at = node.connect("u", "v").unwrap();
    for queue in 0..700 {
        let queue = format!("q{queue}");
        assert!(matches!(node.declare(at, &queue), Ok(DefinitionAnswer::QueueDeclared { .. })));
        let (queue, exchange, routing_key, arguments) = (&*queue, "amq.topic", "a.#", &[][..]);
        assert_eq!(
            node.ask(at, DefinitionCommand::QueueBind { queue, exchange, routing_key, arguments }),
            Ok(DefinitionAnswer::Done)
        );
        assert_eq!(node.publish(at, "amq.topic", "a.b"), Ok(PublishAnswer::Published));
    }
    let facts = node.take_facts();
    node.broker.delete_vhost(&mut context!(node), "v").unwrap();
    assert_eq!(
        node.broker.put_vhost(&mut node.pending_writes, "v"),
        Err(OperatorFault::BeingDeleted("v".into()))
    );
    let (connection, fault) = node.broker.next_forced().unwrap();
    assert_eq!((connection, &*fault.text), (at.connection, "CONNECTION_FORCED - vhost 'v' is deleted"));
    assert!(refused(&node.declare(at, "late")).contains("refused"));
    node.hang_up(at.connection);
    assert_eq!(node.broker.gauges(), before, "nothing is left of it");
    node.broker.put_vhost(&mut node.pending_writes, "v").unwrap();
    assert_eq!(node.broker.access().vhosts().count(), 2);
    // A start after a power cut in the middle finds the other virtual host complete, and nothing of this one.
    let deletion = node.take_facts();
    for cut in [1, 2, 100, deletion.len() - 2] {
        let said = [&facts[..], &deletion[..cut]].concat();
        let restarted = TestBroker::restart(&said);
        let gauges = restarted.broker.gauges();
        assert_eq!((gauges.queues, gauges.bindings), (1, 0), "after {cut} of the deletion");
        assert_eq!(restarted.broker.access().vhosts().count(), 1);
    }
}

#[test]
fn limits_of_a_virtual_host_hold_and_others_have_none() {
    let mut node = TestBroker::new();
    node.broker.put_vhost(&mut node.pending_writes, "v").unwrap();
    node.broker
        .access_mut()
        .set_permissions(
            &mut node.pending_writes,
            &Permission { user: "guest", vhost: "v", configure: ".*", write: ".*", read: ".*" },
        )
        .unwrap();
    let limits = VhostLimits { queues_max: Some(1), connections_max: Some(2) };
    node.broker.access_mut().set_vhost_limits(&mut node.pending_writes, "v", limits).unwrap();
    let at = node.connect("guest", "v").unwrap();
    let second = node.connect("guest", "v").unwrap();
    let full = node.connect("guest", "v").map(|_| ());
    let text = "NOT_ALLOWED - access to vhost 'v' refused for user 'guest': connection limit (2) is reached";
    assert_eq!(refused(&full), text);
    node.hang_up(second.connection);
    node.connect("guest", "v").unwrap();
    assert!(matches!(node.declare(at, "one"), Ok(DefinitionAnswer::QueueDeclared { .. })));
    let text = "PRECONDITION_FAILED - cannot declare queue 'two': queue limit in vhost 'v' (1) is reached";
    assert_eq!(refused(&node.declare(at, "two")), text);
    node.ask(at, DefinitionCommand::QueueDelete { queue: "one", if_unused: false, if_empty: false }).unwrap();
    assert!(matches!(node.declare(at, "two"), Ok(DefinitionAnswer::QueueDeclared { .. })));
    let elsewhere = node.connect("guest", "/").unwrap();
    for queue in ["one", "two"] {
        assert!(matches!(node.declare(elsewhere, queue), Ok(DefinitionAnswer::QueueDeclared { .. })));
    }
}

#[test]
fn a_power_cut_leaves_the_old_or_the_new() {
    let mut node = TestBroker::new();
    let mut sights = vec![node.sight()];
    let hash = PasswordHash::RabbitSha256 { salt: [1; 4], digest: [2; 32] };
    type Change<'a> =
        Box<dyn Fn(&mut Broker, &mut Context<'_>) -> Result<leveret_core::batch::Batch, OperatorFault> + 'a>;
    let changes: Vec<Change<'_>> = vec![
        Box::new(|broker, context| broker.put_user(context.pending_writes, "u", hash, "monitoring, x")),
        Box::new(|broker, context| broker.put_vhost(context.pending_writes, "v")),
        Box::new(|broker, context| {
            broker.access_mut().set_permissions(
                context.pending_writes,
                &Permission { user: "u", vhost: "v", configure: "^a", write: "b", read: "" },
            )
        }),
        Box::new(|broker, context| {
            broker.access_mut().set_topic_permissions(
                context.pending_writes,
                &TopicPermission { user: "u", vhost: "v", exchange: "t", write: "{username}", read: "" },
            )
        }),
        Box::new(|broker, context| {
            broker.access_mut().set_vhost_limits(
                context.pending_writes,
                "v",
                VhostLimits { queues_max: Some(3), ..Default::default() },
            )
        }),
        Box::new(|broker, context| broker.delete_user(context.pending_writes, "guest")),
        Box::new(|broker, context| broker.delete_vhost(context, "v")),
        Box::new(|broker, context| broker.delete_user(context.pending_writes, "u")),
        Box::new(|broker, context| broker.delete_vhost(context, "/")),
    ];
    for change in changes {
        change(&mut node.broker, &mut context!(node)).unwrap();
        node.work();
        sights.push(node.sight());
    }
    assert!(node.sight().is_empty(), "even the first user and virtual host can go");
    let facts = node.take_facts();
    let mut reached = 0;
    for cut in 0..=facts.len() {
        let restarted = TestBroker::restart(&facts[..cut]);
        let at = sights.iter().position(|sight| *sight == restarted.sight());
        let at = at.unwrap_or_else(|| panic!("after {cut} facts: {:?}", restarted.sight()));
        assert!(at >= reached, "it goes forward");
        reached = at;
    }
    assert_eq!(reached, sights.len() - 1);
}

#[test]
fn definitions_without_capacity_are_kept() {
    let mut node = TestBroker::new();
    for name in ["a", "b", "c"] {
        node.broker.put_vhost(&mut node.pending_writes, name).unwrap();
    }
    assert_eq!(node.broker.access().vhosts().count(), 4);
    let full = node.broker.put_vhost(&mut node.pending_writes, "d").unwrap_err();
    assert!(full.to_string().contains("another virtual host"), "{full}");
    let mut small = TestBroker::new();
    small.broker = {
        let limits = Limits { vhosts_max: 2, ..limits() };
        Broker::new(&limits, Box::new(|bytes| bytes.fill(7))).unwrap()
    };
    let metadata = VhostMetadata::default();
    let vhost = |name| Definition::Vhost(definition::Vhost { name, metadata, ..Default::default() });
    let queue =
        Definition::Queue(definition::Queue { vhost: "b", name: "q", incarnation: 7, ..Default::default() });
    assert_eq!(small.broker.restore(&mut context!(small), &vhost("a")), Restored::Exists(None));
    assert_eq!(small.broker.restore(&mut context!(small), &vhost("b")), Restored::NoCapacity);
    assert_eq!(
        small.broker.restore(&mut context!(small), &queue),
        Restored::NoCapacity,
        "its virtual host may come back"
    );
}

#[test]
fn invalid_operator_requests_are_refused() {
    let mut node = TestBroker::with_user("u", ".*", ".*", ".*");
    let (broker, pending_writes) = (&mut node.broker, &mut node.pending_writes);
    let text = |result: Result<_, OperatorFault>| result.unwrap_err().to_string();
    assert_eq!(text(broker.access_mut().set_tags(pending_writes, "x", "")), "User 'x' does not exist");
    assert_eq!(
        text(broker.access_mut().set_permissions(
            pending_writes,
            &Permission { user: "u", vhost: "x", configure: "", write: "", read: "" }
        )),
        "Virtual host 'x' does not exist"
    );
    assert!(
        text(broker.access_mut().set_permissions(
            pending_writes,
            &Permission { user: "u", vhost: "/", configure: "", write: "(", read: "" }
        ))
        .starts_with("the pattern to write is invalid")
    );
    let endless = "(((((a{100}){100}){100})";
    assert!(
        text(broker.access_mut().set_permissions(
            pending_writes,
            &Permission { user: "u", vhost: "/", configure: endless, write: "", read: "" }
        ))
        .contains("configure")
    );
    let long = "x".repeat(leveret_broker::PATTERN_BYTES_MAX + 1);
    assert!(
        text(broker.access_mut().set_permissions(
            pending_writes,
            &Permission { user: "u", vhost: "/", configure: "", write: "", read: &long }
        ))
        .contains("longer than")
    );
    assert_eq!(broker.access().permissions().filter(|permission| permission.configure == ".*").count(), 2);
    assert!(text(broker.put_user(pending_writes, "", PasswordHash::NoPassword, "")).contains("not be empty"));
    assert!(text(broker.put_vhost(pending_writes, &long)).contains("at most 255 bytes"));
    for number in 0..14 {
        broker
            .access_mut()
            .set_topic_permissions(
                pending_writes,
                &TopicPermission {
                    user: "u",
                    vhost: "/",
                    exchange: &number.to_string(),
                    write: ".*",
                    read: "",
                },
            )
            .unwrap();
    }
    assert!(
        text(broker.access_mut().set_topic_permissions(
            pending_writes,
            &TopicPermission { user: "u", vhost: "/", exchange: "more", write: "", read: "" }
        ))
        .contains("another permission")
    );
    broker.delete_user(pending_writes, "u").unwrap();
    assert_eq!((broker.access().permissions().count(), broker.access().topic_permissions().count()), (1, 0));
}

#[test]
fn patterns_have_a_pool_of_their_own() {
    let limits = Limits { patterns_bytes_max: 20_000, ..limits() };
    let mut broker = Broker::new(&limits, Box::new(|bytes| bytes.fill(7))).unwrap();
    let mut pending_writes = PendingWrites::new(16);
    let pattern = "^(sensors|actors)-[a-z]+-[0-9]{1,4}$";
    let mut set = 0;
    while broker
        .access_mut()
        .set_topic_permissions(
            &mut pending_writes,
            &TopicPermission {
                user: "guest",
                vhost: "/",
                exchange: &format!("{set}"),
                write: pattern,
                read: ".*",
            },
        )
        .is_ok()
    {
        set += 1;
        assert!(set < 16, "the pool never ends");
    }
    assert!(set > 0);
    broker.access_mut().clear_topic_permissions(&mut pending_writes, "guest", "/", None).unwrap();
    assert_eq!(broker.access().topic_permissions().count(), 0);
    broker
        .access_mut()
        .set_topic_permissions(
            &mut pending_writes,
            &TopicPermission { user: "guest", vhost: "/", exchange: "again", write: pattern, read: ".*" },
        )
        .unwrap();
}

#[test]
fn nothing_is_left_when_all_connections_are_closed() {
    let mut node = TestBroker::new();
    let at = node.connect("guest", "/").unwrap();
    node.hang_up(at.connection);
    assert_eq!(node.broker.gauges(), Gauges::default());
}

fn described(description: &str, default_queue_type: &str) -> VhostChange {
    VhostChange {
        description: Some(description.into()),
        tags: Some("a,b".into()),
        default_queue_type: Some(default_queue_type.into()),
        is_protected: Some(true),
    }
}

#[test]
fn metadata_of_a_virtual_host_are_kept_and_protect_it() {
    let mut node = TestBroker::new();
    let before = node.broker.gauges().names_bytes;
    node.broker.put_vhost_with(&mut node.pending_writes, "v", &described("d", "quorum")).unwrap();
    assert_eq!(node.broker.gauges().names_bytes, before + 1 + 3 + 6);
    let limits = VhostLimits { queues_max: Some(9), connections_max: None };
    node.broker.access_mut().set_vhost_limits(&mut node.pending_writes, "v", limits).unwrap();
    node.broker.put_vhost(&mut node.pending_writes, "v").unwrap();
    let facts = node.take_facts();
    let mut restarted = TestBroker::restart(&facts);
    let kept =
        VhostMetadata { description: "d", tags: "a,b", default_queue_type: "quorum", is_protected: true };
    for broker in [&node.broker, &restarted.broker] {
        let view = broker.access().vhosts().find(|view| view.name == "v").unwrap();
        assert_eq!((view.metadata, view.limits), (kept, limits));
    }
    assert_eq!(restarted.broker.gauges().names_bytes, before + 10);
    let refusal = restarted.broker.delete_vhost(&mut context!(restarted), "v").unwrap_err();
    let text = "Refusing to delete virtual host 'v' because it is protected from deletion";
    assert_eq!(refusal.to_string(), text);
    let lifted = VhostChange { is_protected: Some(false), ..VhostChange::default() };
    restarted.broker.put_vhost_with(&mut restarted.pending_writes, "v", &lifted).unwrap();
    restarted.broker.delete_vhost(&mut context!(restarted), "v").unwrap();
    assert_eq!(restarted.broker.gauges().names_bytes, before);
}

#[test]
fn metadata_of_a_virtual_host_are_bounded() {
    let mut node = TestBroker::new();
    let (broker, pending_writes) = (&mut node.broker, &mut node.pending_writes);
    let most = "d".repeat(VHOST_METADATA_BYTES_MAX - 3);
    let long =
        broker.put_vhost_with(pending_writes, "v", &described(&format!("{most}d"), "quorum")).unwrap_err();
    assert!(long.to_string().contains("have 1025 bytes; at most 1024 are kept"), "{long}");
    let kind = broker.put_vhost_with(pending_writes, "v", &described("d", "delayed")).unwrap_err();
    assert!(kind.to_string().contains("must be classic, quorum or stream"), "{kind}");
    assert_eq!(broker.access().vhosts().count(), 1, "a refused virtual host is not made");
    broker.put_vhost_with(pending_writes, "v", &described(&most, "quorum")).unwrap();
    let mut small = TestBroker::new();
    let limits = Limits { names_bytes_max: 512, ..limits() };
    small.broker = Broker::new(&limits, Box::new(|bytes| bytes.fill(7))).unwrap();
    let full =
        small.broker.put_vhost_with(&mut small.pending_writes, "v", &described(&most, "quorum")).unwrap_err();
    assert_eq!(full, OperatorFault::NoCapacity("names and arguments"));
    assert_eq!(small.broker.access().vhosts().count(), 1);
}

#[test]
fn a_queue_declared_without_a_type_gets_that_of_its_virtual_host() {
    let mut node = TestBroker::new();
    for kind in ["quorum", "stream"] {
        node.broker.put_vhost_with(&mut node.pending_writes, kind, &described("", kind)).unwrap();
        node.broker
            .access_mut()
            .set_permissions(
                &mut node.pending_writes,
                &Permission { user: "guest", vhost: kind, configure: ".*", write: ".*", read: ".*" },
            )
            .unwrap();
    }
    let at = node.connect("guest", "quorum").unwrap();
    let declare = |queue, durable, arguments| {
        let (passive, exclusive, auto_delete) = (false, false, false);
        DefinitionCommand::QueueDeclare { queue, passive, durable, exclusive, auto_delete, arguments }
    };
    let classic: &[u8] = b"\x0cx-queue-typeS\0\0\0\x07classic";
    let quorum: &[u8] = b"\x0cx-queue-typeS\0\0\0\x06quorum";
    for command in [
        declare("unnamed", true, &[]),
        declare("unnamed", true, quorum),
        declare("named", true, classic),
        declare("transient", false, &[]),
        declare("", true, &[]),
    ] {
        let outcome = node.ask(at, command);
        assert!(matches!(outcome, Ok(DefinitionAnswer::QueueDeclared { .. })), "{outcome:?}");
    }
    let (durable, exclusive, auto_delete, arguments) = (true, false, false, &[][..]);
    let declaration = QueueDeclaration { queue: "o", durable, exclusive, auto_delete, arguments };
    let declared = node.broker.operator_declare_queue(&mut context!(node), "quorum", &declaration);
    assert_eq!(declared.unwrap(), Declared::Done);
    let types = |broker: &Broker| -> BTreeMap<String, Option<String>> {
        let views = broker.views().queues();
        let kind = |value: leveret_amqp::Value<'_>| value.as_str().map(str::to_string);
        views
            .filter(|view| !view.name.starts_with("amq.gen-"))
            .map(|view| (view.name.into(), view.arguments.get("x-queue-type").and_then(kind)))
            .collect()
    };
    let wanted =
        [("named", Some("classic")), ("o", Some("quorum")), ("transient", None), ("unnamed", Some("quorum"))];
    let wanted = wanted.map(|(name, kind)| (name.to_string(), kind.map(str::to_string))).into();
    assert_eq!(types(&node.broker), wanted);
    let at = node.connect("guest", "stream").unwrap();
    let refusal = node.ask(at, declare("s", true, &[]));
    assert!(refused(&refusal).starts_with("NOT_IMPLEMENTED - stream queues"), "{refusal:?}");
    assert!(matches!(node.ask(at, declare("c", false, &[])), Ok(DefinitionAnswer::QueueDeclared { .. })));
}
