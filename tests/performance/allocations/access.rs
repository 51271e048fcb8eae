//! Checks that permission checks of publishes do not allocate, and evaluate a pattern only after something
//! changed: with one destination, with two in turn, and with a topic permission for each routing key.

use crate::counting::Count;
use leveret_broker::{Broker, Context, Work};
use leveret_core::command::{
    ChannelId, ConnectionId, LoginCommand, OpenChannel, OpenVhost, PublishAnswer, PublishCommand,
};
use leveret_core::definition::{Permission, TopicPermission};
use leveret_core::limits::Limits;
use leveret_core::mem::{MessageFlags, Messages, Share};
use leveret_core::password::PasswordHash;
use leveret_storage::PendingWrites;

static COUNT: Count = Count::new();

/// A broker with a user who has patterns for everything.
struct Publisher {
    broker: Broker,
    pending_writes: PendingWrites,
    work: Work,
    messages: Messages,
    connection: ConnectionId,
    channel: Option<ChannelId>,
}

impl Publisher {
    fn new() -> Self {
        let limits = Limits::default();
        let mut broker = Broker::new(&limits, Box::new(|bytes| bytes.fill(7))).unwrap();
        let mut pending_writes = PendingWrites::new(limits.messages_max as usize);
        broker.put_user(&mut pending_writes, "u", PasswordHash::NoPassword, "").unwrap();
        broker
            .access_mut()
            .set_permissions(
                &mut pending_writes,
                &Permission {
                    user: "u",
                    vhost: "/",
                    configure: "^q[0-9]$",
                    write: "^amq\\.(topic|direct|default)$",
                    read: "^(q|amq)",
                },
            )
            .unwrap();
        broker
            .access_mut()
            .set_topic_permissions(
                &mut pending_writes,
                &TopicPermission {
                    user: "u",
                    vhost: "/",
                    exchange: "amq.topic",
                    write: "^{username}\\.[a-z]+$",
                    read: ".*",
                },
            )
            .unwrap();
        let connection = broker.connect().unwrap();
        let messages = Messages::new(limits.message_limits());
        Self { broker, pending_writes, work: Work::default(), messages, connection, channel: None }
    }

    fn enter(&mut self) {
        let mut context = Context::new(&mut self.pending_writes, &mut self.messages, &mut self.work);
        let login = LoginCommand::External { user: "u", from_loopback: true };
        self.broker.apply_to_connection(&mut context, self.connection, login).unwrap();
        self.broker.apply_to_connection(&mut context, self.connection, OpenVhost { vhost: "/" }).unwrap();
        let open = OpenChannel { number: 1 };
        self.channel = Some(self.broker.apply_to_connection(&mut context, self.connection, open).unwrap());
    }

    fn publish(&mut self, exchange: &str, key: &str) {
        let id = self.messages.begin(exchange, key.as_bytes(), Share::Ordinary).unwrap();
        self.messages.reserve_content(id, &[0, 0], MessageFlags::NONE, 0, Share::Ordinary).unwrap();
        self.messages.finish(id);
        let channel = self.channel.expect("a channel is open");
        let mut context = Context::new(&mut self.pending_writes, &mut self.messages, &mut self.work);
        let publish = PublishCommand::Publish { message: id, mandatory: false };
        let answer = self.broker.apply_on_channel(&mut context, self.connection, channel, publish);
        assert_eq!(answer, Ok(PublishAnswer::PublishedNowhere));
    }

    /// Every way twice.
    fn publish_all(&mut self) {
        for _ in 0..2 {
            for key in ["a", "a", "b"] {
                self.publish("amq.direct", key);
            }
            for key in ["u.a", "u.bc", "u.a"] {
                self.publish("amq.topic", key);
            }
            self.publish("", "nobody");
        }
    }
}

#[test]
fn a_check_allocates_nothing() {
    let mut node = Publisher::new();
    node.enter();
    node.publish_all();
    COUNT.this_thread();
    let before = COUNT.allocations();
    node.publish_all();
    assert_eq!(COUNT.allocations() - before, 0, "checking allocates");
}
