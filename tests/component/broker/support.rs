//! The broker alone with its messages, driven a turn at a time, for tests of single cases.

#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]

use leveret_broker::{Broker, ChannelRequest, Work};
use leveret_core::batch::Batch;
use leveret_core::command::{
    ChannelCommand, ChannelId, ConnectionId, DefinitionAnswer, DefinitionCommand, LoginCommand, OpenChannel,
    OpenVhost, Outbox, PublishAnswer, PublishCommand, Settlement,
};
use leveret_core::definition::Permission;
use leveret_core::error::Fault;
use leveret_core::limits::Limits;
use leveret_core::mem::{Memory, MessageFlags, MessageId, Messages, Share};
use leveret_core::password::PasswordHash;
use leveret_storage::PendingWrites;

/// The context of a call to a test broker.
#[macro_export]
macro_rules! context {
    ($node:expr) => {
        leveret_broker::Context::new(&mut $node.pending_writes, &mut $node.messages, &mut $node.work)
    };
}

/// Arguments of a queue: a table with one field, its name and `t` with its value.
pub const SINGLE_ACTIVE: &[u8] = b"\x18x-single-active-consumert\x01";

/// Arguments of a queue with priorities up to 5.
pub const PRIORITIES: &[u8] = b"\x0ex-max-priorityb\x05";

/// Returns properties with only a priority.
pub fn with_priority(priority: u8) -> Vec<u8> {
    vec![0x08, 0, priority]
}

/// A broker with its journal and messages.
pub struct TestBroker {
    pub broker: Broker,
    pub pending_writes: PendingWrites,
    pub work: Work,
    /// The batch that the last answer must wait for.
    pub awaited: Batch,
    pub messages: Messages,
}

/// One channel of one connection.
#[derive(Clone, Copy)]
pub struct At {
    pub connection: ConnectionId,
    pub channel: ChannelId,
}

impl TestBroker {
    pub fn new(unacknowledged_max: u32) -> Self {
        Self::with(&Limits { unacknowledged_max, connections_max: 16, ..Limits::default() })
    }

    pub fn with(limits: &Limits) -> Self {
        Self::in_memory(limits, &Memory::unlimited())
    }

    /// Creates a broker whose pools have this memory.
    pub fn in_memory(limits: &Limits, memory: &Memory) -> Self {
        let entropy = Box::new(leveret_test_support::random::entropy());
        Self {
            broker: Broker::in_memory(limits, memory, entropy).unwrap(),
            pending_writes: PendingWrites::new(limits.messages_max as usize),
            work: Work::default(),
            awaited: Batch::NONE,
            messages: Messages::in_memory(limits.message_limits(), memory),
        }
    }

    pub fn connect(&mut self) -> At {
        self.connect_as("guest", "/")
    }

    /// Creates a user with all permissions in a virtual host, and both if they do not exist.
    pub fn admit(&mut self, user: &str, vhost: &str) {
        self.broker.put_vhost(&mut self.pending_writes, vhost).unwrap();
        if self.broker.access().users().all(|view| view.name != user) {
            self.broker.put_user(&mut self.pending_writes, user, PasswordHash::NoPassword, "").unwrap();
        }
        self.broker
            .access_mut()
            .set_permissions(
                &mut self.pending_writes,
                &Permission { user, vhost, configure: ".*", write: ".*", read: ".*" },
            )
            .unwrap();
        self.broker.run_jobs(&mut context!(self));
    }

    pub fn connect_as(&mut self, user: &str, vhost: &str) -> At {
        let connection = self.broker.connect().unwrap();
        let login = LoginCommand::External { user, from_loopback: true };
        self.broker.apply_to_connection(&mut context!(self), connection, login).unwrap();
        self.broker.apply_to_connection(&mut context!(self), connection, OpenVhost { vhost }).unwrap();
        let open = OpenChannel { number: 1 };
        let channel = self.broker.apply_to_connection(&mut context!(self), connection, open).unwrap();
        At { connection, channel }
    }

    /// Opens another channel of the same connection.
    pub fn open(&mut self, at: At, number: u16) -> At {
        let open = OpenChannel { number };
        let channel = self.broker.apply_to_connection(&mut context!(self), at.connection, open).unwrap();
        At { connection: at.connection, channel }
    }

    pub fn ask<C: ChannelRequest>(&mut self, at: At, command: C) -> Result<C::Answer, Fault> {
        let mut context = context!(self);
        let answer = self.broker.apply_on_channel(&mut context, at.connection, at.channel, command);
        self.awaited = context.awaited;
        answer
    }

    #[track_caller]
    pub fn done(&mut self, at: At, command: impl ChannelRequest) {
        if let Err(fault) = self.ask(at, command) {
            panic!("refused: {fault:?}");
        }
    }

    pub fn declare(&mut self, at: At, queue: &str, exclusive: bool) {
        let (passive, durable, auto_delete) = (false, false, false);
        let arguments = &[];
        self.done(
            at,
            DefinitionCommand::QueueDeclare { queue, passive, durable, exclusive, auto_delete, arguments },
        );
    }

    pub fn consume(&mut self, at: At, queue: &str) {
        self.done(
            at,
            ChannelCommand::Consume { queue, tag: queue, no_ack: false, exclusive: false, arguments: &[] },
        );
    }

    pub fn message(&mut self, key: &str, body_len: u32) -> MessageId {
        let id = self.messages.begin("", key.as_bytes(), Share::Ordinary).unwrap();
        let reserved =
            self.messages.reserve_content(id, &[0, 0], MessageFlags::NONE, body_len, Share::Ordinary);
        reserved.unwrap();
        self.messages.append_body(id, &vec![7; body_len as usize]);
        self.messages.finish(id);
        id
    }

    pub fn publish(&mut self, at: At, key: &str, count: u32) {
        for _ in 0..count {
            let message = self.message(key, 10);
            let outcome = self.ask(at, PublishCommand::Publish { message, mandatory: false });
            assert_eq!(outcome, Ok(PublishAnswer::Published));
        }
    }

    /// Publishes a body of this length, like a connection. A publish that would have to wait is dropped.
    pub fn offer(&mut self, at: At, key: &str, body_len: u32) -> Result<PublishAnswer, Fault> {
        let share = self.broker.content_share(at.connection);
        let Ok(id) = self.messages.begin("", key.as_bytes(), share) else { return Ok(PublishAnswer::Wait) };
        if self.messages.reserve_content(id, &[0, 0], MessageFlags::NONE, body_len, share).is_err() {
            self.messages.release(id);
            return Ok(PublishAnswer::Wait);
        }
        self.messages.append_body(id, &vec![7; body_len as usize]);
        self.messages.finish(id);
        let answer = self.ask(at, PublishCommand::Publish { message: id, mandatory: false });
        if answer == Ok(PublishAnswer::Wait) {
            self.messages.release(id);
        }
        answer
    }

    pub fn settle(&mut self, at: At, delivery_tag: u64, multiple: bool, settlement: Settlement) {
        self.done(at, ChannelCommand::Settle { delivery_tag, multiple, settlement });
    }

    /// Does what a turn does after reading, with the whole outbox written. Returns the number of deliveries.
    pub fn turn(&mut self, at: At) -> u32 {
        self.broker.run_jobs(&mut context!(self));
        self.broker.deliver(&mut context!(self), 8192);
        let mut count = 0;
        let mut outbox = self.broker.outbox(at.connection);
        while outbox.peek().is_some() {
            count += 1;
            outbox.advance();
        }
        self.broker.sent(&mut context!(self), at.connection, count);
        count
    }

    /// Returns the bodies in the outbox, which is then written.
    pub fn outbox_bodies(&mut self, at: At) -> Vec<String> {
        let mut bodies = Vec::new();
        let mut outbox = self.broker.outbox(at.connection);
        while let Some(delivery) = outbox.peek() {
            let mut body = vec![0; self.messages.body_len(delivery.message) as usize];
            self.messages.read(
                delivery.message,
                &mut self.messages.body_cursor(delivery.message, 0),
                &mut body,
            );
            bodies.push(String::from_utf8(body).unwrap());
            outbox.advance();
        }
        self.broker.sent(&mut context!(self), at.connection, bodies.len() as u32);
        bodies
    }

    /// Runs turns while there is work. Returns the number of written deliveries.
    pub fn turns(&mut self, at: At) -> u32 {
        let mut count = 0;
        while self.broker.has_work(&self.pending_writes)
            || self.broker.may_expire_or_trim(&self.pending_writes, &self.messages)
        {
            count += self.turn(at);
            while self.broker.next_with_output().is_some() {}
        }
        count
    }

    pub fn ready(&mut self, at: At, queue: &str) -> u32 {
        let (passive, durable, exclusive, auto_delete) = (true, false, false, false);
        let arguments = &[];
        match self.ask(
            at,
            DefinitionCommand::QueueDeclare { queue, passive, durable, exclusive, auto_delete, arguments },
        ) {
            Ok(DefinitionAnswer::QueueDeclared { message_count, .. }) => message_count,
            other => panic!("a passive declare answered {other:?}"),
        }
    }
}
