//! Every method there is, as the two crates spell it, with the same arguments in both.
//!
//! Why it exists: the arguments are matched by name here, by hand, so that two of them swapped in our table
//! of methods would show.

use amq_protocol::protocol::{AMQPClass, access, basic, channel, confirm, connection, exchange, queue, tx};
use amq_protocol::types::{FieldTable, ShortString};
use leveret_amqp::{Method, Table};

/// One method, twice.
type Pair<'a> = (Method<'a>, AMQPClass);

/// What arguments are drawn from; every method takes what it needs.
#[derive(Debug, Default)]
pub(crate) struct Draw {
    pub(crate) names: [ShortString; 3],
    pub(crate) octets: [Vec<u8>; 2],
    pub(crate) longlong: u64,
    pub(crate) longs: [u32; 2],
    pub(crate) shorts: [u16; 3],
    pub(crate) small: [u8; 2],
    pub(crate) bits: [bool; 5],
    pub(crate) table: FieldTable,
}

impl Draw {
    /// A name, as we borrow it.
    fn n(&self, which: usize) -> &str {
        self.names[which].as_str()
    }

    /// The same name, as the other crate owns it.
    fn s(&self, which: usize) -> ShortString {
        self.names[which].clone()
    }

    /// The octets of a long string.
    fn b(&self, which: usize) -> &[u8] {
        &self.octets[which]
    }
}

/// All of them.
pub(crate) fn every_method<'a>(d: &'a Draw, arguments: Table<'a>) -> Vec<Pair<'a>> {
    let classes = [
        connection_login(d, arguments),
        connection_rest(d),
        channel_and_access(d),
        exchange_class(d, arguments),
        queue_class(d, arguments),
        basic_consuming(d, arguments),
        basic_messages(d),
        basic_settling(d),
        confirm_and_tx(d),
    ];
    classes.concat()
}

fn connection_login<'a>(d: &'a Draw, arguments: Table<'a>) -> Vec<Pair<'a>> {
    vec![
        (
            Method::ConnectionStart {
                version_major: d.small[0],
                version_minor: d.small[1],
                server_properties: arguments,
                mechanisms: d.b(0),
                locales: d.b(1),
            },
            AMQPClass::Connection(connection::AMQPMethod::Start(connection::Start {
                version_major: d.small[0],
                version_minor: d.small[1],
                server_properties: d.table.clone(),
                mechanisms: d.b(0).into(),
                locales: d.b(1).into(),
            })),
        ),
        (
            Method::ConnectionStartOk {
                client_properties: arguments,
                mechanism: d.n(0),
                response: d.b(0),
                locale: d.n(1),
            },
            AMQPClass::Connection(connection::AMQPMethod::StartOk(connection::StartOk {
                client_properties: d.table.clone(),
                mechanism: d.s(0),
                response: d.b(0).into(),
                locale: d.s(1),
            })),
        ),
        (
            Method::ConnectionSecure { challenge: d.b(0) },
            AMQPClass::Connection(connection::AMQPMethod::Secure(connection::Secure {
                challenge: d.b(0).into(),
            })),
        ),
        (
            Method::ConnectionSecureOk { response: d.b(0) },
            AMQPClass::Connection(connection::AMQPMethod::SecureOk(connection::SecureOk {
                response: d.b(0).into(),
            })),
        ),
        (
            Method::ConnectionTune {
                channel_max: d.shorts[0],
                frame_max: d.longs[0],
                heartbeat: d.shorts[1],
            },
            AMQPClass::Connection(connection::AMQPMethod::Tune(connection::Tune {
                channel_max: d.shorts[0],
                frame_max: d.longs[0],
                heartbeat: d.shorts[1],
            })),
        ),
        (
            Method::ConnectionTuneOk {
                channel_max: d.shorts[0],
                frame_max: d.longs[0],
                heartbeat: d.shorts[1],
            },
            AMQPClass::Connection(connection::AMQPMethod::TuneOk(connection::TuneOk {
                channel_max: d.shorts[0],
                frame_max: d.longs[0],
                heartbeat: d.shorts[1],
            })),
        ),
    ]
}

fn connection_rest<'a>(d: &'a Draw) -> Vec<Pair<'a>> {
    vec![
        (
            Method::ConnectionOpen { virtual_host: d.n(0) },
            AMQPClass::Connection(connection::AMQPMethod::Open(connection::Open { virtual_host: d.s(0) })),
        ),
        (
            Method::ConnectionOpenOk {},
            AMQPClass::Connection(connection::AMQPMethod::OpenOk(connection::OpenOk {})),
        ),
        (
            Method::ConnectionClose {
                reply_code: d.shorts[0],
                reply_text: d.n(0),
                class_id: d.shorts[1],
                method_id: d.shorts[2],
            },
            AMQPClass::Connection(connection::AMQPMethod::Close(connection::Close {
                reply_code: d.shorts[0],
                reply_text: d.s(0),
                class_id: d.shorts[1],
                method_id: d.shorts[2],
            })),
        ),
        (
            Method::ConnectionCloseOk {},
            AMQPClass::Connection(connection::AMQPMethod::CloseOk(connection::CloseOk {})),
        ),
        (
            Method::ConnectionBlocked { reason: d.n(0) },
            AMQPClass::Connection(connection::AMQPMethod::Blocked(connection::Blocked { reason: d.s(0) })),
        ),
        (
            Method::ConnectionUnblocked {},
            AMQPClass::Connection(connection::AMQPMethod::Unblocked(connection::Unblocked {})),
        ),
        (
            Method::ConnectionUpdateSecret { new_secret: d.b(0), reason: d.n(0) },
            AMQPClass::Connection(connection::AMQPMethod::UpdateSecret(connection::UpdateSecret {
                new_secret: d.b(0).into(),
                reason: d.s(0),
            })),
        ),
        (
            Method::ConnectionUpdateSecretOk {},
            AMQPClass::Connection(connection::AMQPMethod::UpdateSecretOk(connection::UpdateSecretOk {})),
        ),
    ]
}

fn channel_and_access<'a>(d: &'a Draw) -> Vec<Pair<'a>> {
    vec![
        (Method::ChannelOpen {}, AMQPClass::Channel(channel::AMQPMethod::Open(channel::Open {}))),
        (Method::ChannelOpenOk {}, AMQPClass::Channel(channel::AMQPMethod::OpenOk(channel::OpenOk {}))),
        (
            Method::ChannelFlow { active: d.bits[0] },
            AMQPClass::Channel(channel::AMQPMethod::Flow(channel::Flow { active: d.bits[0] })),
        ),
        (
            Method::ChannelFlowOk { active: d.bits[0] },
            AMQPClass::Channel(channel::AMQPMethod::FlowOk(channel::FlowOk { active: d.bits[0] })),
        ),
        (
            Method::ChannelClose {
                reply_code: d.shorts[0],
                reply_text: d.n(0),
                class_id: d.shorts[1],
                method_id: d.shorts[2],
            },
            AMQPClass::Channel(channel::AMQPMethod::Close(channel::Close {
                reply_code: d.shorts[0],
                reply_text: d.s(0),
                class_id: d.shorts[1],
                method_id: d.shorts[2],
            })),
        ),
        (Method::ChannelCloseOk {}, AMQPClass::Channel(channel::AMQPMethod::CloseOk(channel::CloseOk {}))),
        (
            Method::AccessRequest {
                realm: d.n(0),
                exclusive: d.bits[0],
                passive: d.bits[1],
                active: d.bits[2],
                write: d.bits[3],
                read: d.bits[4],
            },
            AMQPClass::Access(access::AMQPMethod::Request(access::Request {
                realm: d.s(0),
                exclusive: d.bits[0],
                passive: d.bits[1],
                active: d.bits[2],
                write: d.bits[3],
                read: d.bits[4],
            })),
        ),
        (
            Method::AccessRequestOk { ticket: 1 },
            AMQPClass::Access(access::AMQPMethod::RequestOk(access::RequestOk {})),
        ),
    ]
}

fn exchange_class<'a>(d: &'a Draw, arguments: Table<'a>) -> Vec<Pair<'a>> {
    vec![
        (
            Method::ExchangeDeclare {
                exchange: d.n(0),
                kind: d.n(1),
                passive: d.bits[0],
                durable: d.bits[1],
                auto_delete: d.bits[2],
                internal: d.bits[3],
                no_wait: d.bits[4],
                arguments,
            },
            AMQPClass::Exchange(exchange::AMQPMethod::Declare(exchange::Declare {
                exchange: d.s(0),
                kind: d.s(1),
                passive: d.bits[0],
                durable: d.bits[1],
                auto_delete: d.bits[2],
                internal: d.bits[3],
                nowait: d.bits[4],
                arguments: d.table.clone(),
            })),
        ),
        (
            Method::ExchangeDeclareOk {},
            AMQPClass::Exchange(exchange::AMQPMethod::DeclareOk(exchange::DeclareOk {})),
        ),
        (
            Method::ExchangeDelete { exchange: d.n(0), if_unused: d.bits[0], no_wait: d.bits[1] },
            AMQPClass::Exchange(exchange::AMQPMethod::Delete(exchange::Delete {
                exchange: d.s(0),
                if_unused: d.bits[0],
                nowait: d.bits[1],
            })),
        ),
        (
            Method::ExchangeDeleteOk {},
            AMQPClass::Exchange(exchange::AMQPMethod::DeleteOk(exchange::DeleteOk {})),
        ),
        (
            Method::ExchangeBind {
                destination: d.n(0),
                source: d.n(1),
                routing_key: d.n(2),
                no_wait: d.bits[0],
                arguments,
            },
            AMQPClass::Exchange(exchange::AMQPMethod::Bind(exchange::Bind {
                destination: d.s(0),
                source: d.s(1),
                routing_key: d.s(2),
                nowait: d.bits[0],
                arguments: d.table.clone(),
            })),
        ),
        (Method::ExchangeBindOk {}, AMQPClass::Exchange(exchange::AMQPMethod::BindOk(exchange::BindOk {}))),
        (
            Method::ExchangeUnbind {
                destination: d.n(0),
                source: d.n(1),
                routing_key: d.n(2),
                no_wait: d.bits[0],
                arguments,
            },
            AMQPClass::Exchange(exchange::AMQPMethod::Unbind(exchange::Unbind {
                destination: d.s(0),
                source: d.s(1),
                routing_key: d.s(2),
                nowait: d.bits[0],
                arguments: d.table.clone(),
            })),
        ),
        (
            Method::ExchangeUnbindOk {},
            AMQPClass::Exchange(exchange::AMQPMethod::UnbindOk(exchange::UnbindOk {})),
        ),
    ]
}

fn queue_class<'a>(d: &'a Draw, arguments: Table<'a>) -> Vec<Pair<'a>> {
    vec![
        (
            Method::QueueDeclare {
                queue: d.n(0),
                passive: d.bits[0],
                durable: d.bits[1],
                exclusive: d.bits[2],
                auto_delete: d.bits[3],
                no_wait: d.bits[4],
                arguments,
            },
            AMQPClass::Queue(queue::AMQPMethod::Declare(queue::Declare {
                queue: d.s(0),
                passive: d.bits[0],
                durable: d.bits[1],
                exclusive: d.bits[2],
                auto_delete: d.bits[3],
                nowait: d.bits[4],
                arguments: d.table.clone(),
            })),
        ),
        (
            Method::QueueDeclareOk { queue: d.n(0), message_count: d.longs[0], consumer_count: d.longs[1] },
            AMQPClass::Queue(queue::AMQPMethod::DeclareOk(queue::DeclareOk {
                queue: d.s(0),
                message_count: d.longs[0],
                consumer_count: d.longs[1],
            })),
        ),
        (
            Method::QueueBind {
                queue: d.n(0),
                exchange: d.n(1),
                routing_key: d.n(2),
                no_wait: d.bits[0],
                arguments,
            },
            AMQPClass::Queue(queue::AMQPMethod::Bind(queue::Bind {
                queue: d.s(0),
                exchange: d.s(1),
                routing_key: d.s(2),
                nowait: d.bits[0],
                arguments: d.table.clone(),
            })),
        ),
        (Method::QueueBindOk {}, AMQPClass::Queue(queue::AMQPMethod::BindOk(queue::BindOk {}))),
        (
            Method::QueuePurge { queue: d.n(0), no_wait: d.bits[0] },
            AMQPClass::Queue(queue::AMQPMethod::Purge(queue::Purge { queue: d.s(0), nowait: d.bits[0] })),
        ),
        (
            Method::QueuePurgeOk { message_count: d.longs[0] },
            AMQPClass::Queue(queue::AMQPMethod::PurgeOk(queue::PurgeOk { message_count: d.longs[0] })),
        ),
        (
            Method::QueueDelete {
                queue: d.n(0),
                if_unused: d.bits[0],
                if_empty: d.bits[1],
                no_wait: d.bits[2],
            },
            AMQPClass::Queue(queue::AMQPMethod::Delete(queue::Delete {
                queue: d.s(0),
                if_unused: d.bits[0],
                if_empty: d.bits[1],
                nowait: d.bits[2],
            })),
        ),
        (
            Method::QueueDeleteOk { message_count: d.longs[0] },
            AMQPClass::Queue(queue::AMQPMethod::DeleteOk(queue::DeleteOk { message_count: d.longs[0] })),
        ),
        (
            Method::QueueUnbind { queue: d.n(0), exchange: d.n(1), routing_key: d.n(2), arguments },
            AMQPClass::Queue(queue::AMQPMethod::Unbind(queue::Unbind {
                queue: d.s(0),
                exchange: d.s(1),
                routing_key: d.s(2),
                arguments: d.table.clone(),
            })),
        ),
        (Method::QueueUnbindOk {}, AMQPClass::Queue(queue::AMQPMethod::UnbindOk(queue::UnbindOk {}))),
    ]
}

fn basic_consuming<'a>(d: &'a Draw, arguments: Table<'a>) -> Vec<Pair<'a>> {
    vec![
        // The other crate has no prefetch size, which is always 0.
        (
            Method::BasicQos { prefetch_size: 0, prefetch_count: d.shorts[0], global: d.bits[0] },
            AMQPClass::Basic(basic::AMQPMethod::Qos(basic::Qos {
                prefetch_count: d.shorts[0],
                global: d.bits[0],
            })),
        ),
        (Method::BasicQosOk {}, AMQPClass::Basic(basic::AMQPMethod::QosOk(basic::QosOk {}))),
        (
            Method::BasicConsume {
                queue: d.n(0),
                consumer_tag: d.n(1),
                no_local: d.bits[0],
                no_ack: d.bits[1],
                exclusive: d.bits[2],
                no_wait: d.bits[3],
                arguments,
            },
            AMQPClass::Basic(basic::AMQPMethod::Consume(basic::Consume {
                queue: d.s(0),
                consumer_tag: d.s(1),
                no_local: d.bits[0],
                no_ack: d.bits[1],
                exclusive: d.bits[2],
                nowait: d.bits[3],
                arguments: d.table.clone(),
            })),
        ),
        (
            Method::BasicConsumeOk { consumer_tag: d.n(0) },
            AMQPClass::Basic(basic::AMQPMethod::ConsumeOk(basic::ConsumeOk { consumer_tag: d.s(0) })),
        ),
        (
            Method::BasicCancel { consumer_tag: d.n(0), no_wait: d.bits[0] },
            AMQPClass::Basic(basic::AMQPMethod::Cancel(basic::Cancel {
                consumer_tag: d.s(0),
                nowait: d.bits[0],
            })),
        ),
        (
            Method::BasicCancelOk { consumer_tag: d.n(0) },
            AMQPClass::Basic(basic::AMQPMethod::CancelOk(basic::CancelOk { consumer_tag: d.s(0) })),
        ),
    ]
}

fn basic_messages<'a>(d: &'a Draw) -> Vec<Pair<'a>> {
    vec![
        (
            Method::BasicPublish {
                exchange: d.n(0),
                routing_key: d.n(1).as_bytes(),
                mandatory: d.bits[0],
                immediate: d.bits[1],
            },
            AMQPClass::Basic(basic::AMQPMethod::Publish(basic::Publish {
                exchange: d.s(0),
                routing_key: d.s(1),
                mandatory: d.bits[0],
                immediate: d.bits[1],
            })),
        ),
        (
            Method::BasicReturn {
                reply_code: d.shorts[0],
                reply_text: d.n(0),
                exchange: d.n(1),
                routing_key: d.n(2).as_bytes(),
            },
            AMQPClass::Basic(basic::AMQPMethod::Return(basic::Return {
                reply_code: d.shorts[0],
                reply_text: d.s(0),
                exchange: d.s(1),
                routing_key: d.s(2),
            })),
        ),
        (
            Method::BasicDeliver {
                consumer_tag: d.n(0),
                delivery_tag: d.longlong,
                redelivered: d.bits[0],
                exchange: d.n(1),
                routing_key: d.n(2).as_bytes(),
            },
            AMQPClass::Basic(basic::AMQPMethod::Deliver(basic::Deliver {
                consumer_tag: d.s(0),
                delivery_tag: d.longlong,
                redelivered: d.bits[0],
                exchange: d.s(1),
                routing_key: d.s(2),
            })),
        ),
        (
            Method::BasicGet { queue: d.n(0), no_ack: d.bits[0] },
            AMQPClass::Basic(basic::AMQPMethod::Get(basic::Get { queue: d.s(0), no_ack: d.bits[0] })),
        ),
        (
            Method::BasicGetOk {
                delivery_tag: d.longlong,
                redelivered: d.bits[0],
                exchange: d.n(0),
                routing_key: d.n(1).as_bytes(),
                message_count: d.longs[0],
            },
            AMQPClass::Basic(basic::AMQPMethod::GetOk(basic::GetOk {
                delivery_tag: d.longlong,
                redelivered: d.bits[0],
                exchange: d.s(0),
                routing_key: d.s(1),
                message_count: d.longs[0],
            })),
        ),
        (Method::BasicGetEmpty {}, AMQPClass::Basic(basic::AMQPMethod::GetEmpty(basic::GetEmpty {}))),
    ]
}

fn basic_settling<'a>(d: &'a Draw) -> Vec<Pair<'a>> {
    vec![
        (
            Method::BasicAck { delivery_tag: d.longlong, multiple: d.bits[0] },
            AMQPClass::Basic(basic::AMQPMethod::Ack(basic::Ack {
                delivery_tag: d.longlong,
                multiple: d.bits[0],
            })),
        ),
        (
            Method::BasicReject { delivery_tag: d.longlong, requeue: d.bits[0] },
            AMQPClass::Basic(basic::AMQPMethod::Reject(basic::Reject {
                delivery_tag: d.longlong,
                requeue: d.bits[0],
            })),
        ),
        (
            Method::BasicRecoverAsync { requeue: d.bits[0] },
            AMQPClass::Basic(basic::AMQPMethod::RecoverAsync(basic::RecoverAsync { requeue: d.bits[0] })),
        ),
        (
            Method::BasicRecover { requeue: d.bits[0] },
            AMQPClass::Basic(basic::AMQPMethod::Recover(basic::Recover { requeue: d.bits[0] })),
        ),
        (Method::BasicRecoverOk {}, AMQPClass::Basic(basic::AMQPMethod::RecoverOk(basic::RecoverOk {}))),
        (
            Method::BasicNack { delivery_tag: d.longlong, multiple: d.bits[0], requeue: d.bits[1] },
            AMQPClass::Basic(basic::AMQPMethod::Nack(basic::Nack {
                delivery_tag: d.longlong,
                multiple: d.bits[0],
                requeue: d.bits[1],
            })),
        ),
    ]
}

fn confirm_and_tx<'a>(d: &'a Draw) -> Vec<Pair<'a>> {
    vec![
        (
            Method::ConfirmSelect { no_wait: d.bits[0] },
            AMQPClass::Confirm(confirm::AMQPMethod::Select(confirm::Select { nowait: d.bits[0] })),
        ),
        (Method::ConfirmSelectOk {}, AMQPClass::Confirm(confirm::AMQPMethod::SelectOk(confirm::SelectOk {}))),
        (Method::TxSelect {}, AMQPClass::Tx(tx::AMQPMethod::Select(tx::Select {}))),
        (Method::TxSelectOk {}, AMQPClass::Tx(tx::AMQPMethod::SelectOk(tx::SelectOk {}))),
        (Method::TxCommit {}, AMQPClass::Tx(tx::AMQPMethod::Commit(tx::Commit {}))),
        (Method::TxCommitOk {}, AMQPClass::Tx(tx::AMQPMethod::CommitOk(tx::CommitOk {}))),
        (Method::TxRollback {}, AMQPClass::Tx(tx::AMQPMethod::Rollback(tx::Rollback {}))),
        (Method::TxRollbackOk {}, AMQPClass::Tx(tx::AMQPMethod::RollbackOk(tx::RollbackOk {}))),
    ]
}
