//! lapin: the client most Rust programs use.

use std::time::Duration;

use futures_lite::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicNackOptions,
    BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions, ExchangeBindOptions, ExchangeDeclareOptions,
    ExchangeUnbindOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::publisher_confirm::Confirmation;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer, ErrorKind, ExchangeKind};

use super::{large_body, with_broker};

async fn connect(port: u16) -> Connection {
    let url = format!("amqp://guest:guest@127.0.0.1:{port}/%2f");
    Connection::connect(&url, ConnectionProperties::default()).await.expect("connected")
}

/// A connection with a channel; the channel ends with the connection.
async fn open(port: u16) -> (Connection, Channel) {
    let connection = connect(port).await;
    let channel = connection.create_channel().await.expect("a channel");
    (connection, channel)
}

/// A server-named queue of this connection's own.
async fn own_queue(channel: &Channel) -> String {
    let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare("", options, FieldTable::default()).await.expect("a queue");
    queue.name().to_string()
}

async fn publish(channel: &Channel, exchange: &str, key: &str, body: &[u8]) -> Confirmation {
    let properties = BasicProperties::default().with_content_type("text/plain".into());
    let confirm = channel.basic_publish(exchange, key, BasicPublishOptions::default(), body, properties);
    confirm.await.expect("published").await.expect("answered")
}

async fn get(channel: &Channel, queue: &str) -> Option<Delivery> {
    let options = BasicGetOptions { no_ack: true };
    channel.basic_get(queue, options).await.expect("answered").map(|message| message.delivery)
}

async fn consume(channel: &Channel, queue: &str, tag: &str) -> Consumer {
    let options = BasicConsumeOptions::default();
    channel.basic_consume(queue, tag, options, FieldTable::default()).await.expect("consuming")
}

async fn next(consumer: &mut Consumer) -> Delivery {
    consumer.next().await.expect("not cancelled").expect("a delivery")
}

/// Whether nothing comes for a while.
async fn is_quiet(consumer: &mut Consumer) -> bool {
    tokio::time::timeout(Duration::from_millis(200), consumer.next()).await.is_err()
}

#[test]
fn confirms_and_returns() {
    with_broker(|port| async move {
        let (connection, channel) = open(port).await;
        let queue = own_queue(&channel).await;
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirming");
        assert_eq!(publish(&channel, "", &queue, b"one").await, Confirmation::Ack(None));

        let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = BasicProperties::default().with_priority(42);
        let lost = channel.basic_publish("", "no such queue", mandatory, b"two", properties.clone());
        let confirmation = lost.await.expect("published").await.expect("answered");
        assert!(confirmation.is_ack());
        let returned = confirmation.take_message().expect("returned");
        assert_eq!((returned.reply_code, returned.reply_text.as_str()), (312, "NO_ROUTE"));
        assert_eq!(returned.delivery.routing_key.as_str(), "no such queue");
        assert_eq!((returned.delivery.properties, returned.delivery.data), (properties, b"two".to_vec()));

        // A thousand at once, confirmed in whatever groups.
        for number in 0..1000_u32 {
            let options = BasicPublishOptions::default();
            let body = number.to_be_bytes();
            let sent = channel.basic_publish("", &queue, options, &body, BasicProperties::default());
            drop(sent.await.expect("published"));
        }
        assert!(channel.wait_for_confirms().await.expect("confirmed").is_empty());
        assert_eq!(get(&channel, &queue).await.expect("the first").data, b"one");
        for number in 0..1000_u32 {
            assert_eq!(get(&channel, &queue).await.expect("in order").data, number.to_be_bytes());
        }
        assert!(get(&channel, &queue).await.is_none());
        connection.close(200, "done").await.expect("closed");
    });
}

#[test]
fn prefetch_acknowledgements_and_requeue() {
    with_broker(|port| async move {
        let (connection, channel) = open(port).await;
        let queue = own_queue(&channel).await;
        for number in 0..5_u8 {
            publish(&channel, "", &queue, &[number]).await;
        }
        channel.basic_qos(2, BasicQosOptions::default()).await.expect("prefetch");
        let mut consumer = consume(&channel, &queue, "worker").await;
        let first = next(&mut consumer).await;
        let second = next(&mut consumer).await;
        assert_eq!((&first.data[..], &second.data[..]), (&[0][..], &[1][..]));
        assert!(is_quiet(&mut consumer).await, "two are unacknowledged");

        first.nack(BasicNackOptions { requeue: true, ..BasicNackOptions::default() }).await.expect("sent");
        let again = next(&mut consumer).await;
        assert_eq!((&again.data[..], again.redelivered), (&[0][..], true));
        second.ack(BasicAckOptions::default()).await.expect("sent");
        let third = next(&mut consumer).await;
        assert_eq!((&third.data[..], third.redelivered), (&[2][..], false));
        third.ack(BasicAckOptions { multiple: true }).await.expect("sent");
        let fourth = next(&mut consumer).await;
        fourth.nack(BasicNackOptions { requeue: false, ..BasicNackOptions::default() }).await.expect("sent");
        let fifth = next(&mut consumer).await;
        assert_eq!(fifth.data, [4]);

        channel.basic_cancel("worker", BasicCancelOptions::default()).await.expect("cancelled");
        assert!(consumer.next().await.is_none());
        fifth.nack(BasicNackOptions { requeue: true, ..BasicNackOptions::default() }).await.expect("sent");
        let options = BasicGetOptions { no_ack: false };
        let left = channel.basic_get(&queue, options).await.expect("answered").expect("put back");
        assert_eq!(
            (&left.delivery.data[..], left.delivery.redelivered, left.message_count),
            (&[4][..], true, 0)
        );
        left.delivery.ack(BasicAckOptions::default()).await.expect("sent");
        connection.close(200, "done").await.expect("closed");
    });
}

#[test]
fn a_consumer_is_told_when_its_queue_goes() {
    with_broker(|port| async move {
        let (connection, channel) = open(port).await;
        let queue = own_queue(&channel).await;
        let mut consumer = consume(&channel, &queue, "").await;
        assert!(!consumer.tag().as_str().is_empty());
        let other = connection.create_channel().await.expect("a second channel");
        other.queue_delete(&queue, QueueDeleteOptions::default()).await.expect("deleted");
        assert!(consumer.next().await.is_none(), "cancelled by the broker");
        publish(&channel, "", "nobody", b"the channel is still open").await;
        connection.close(200, "done").await.expect("closed");
    });
}

#[test]
fn exchanges_and_their_bindings() {
    with_broker(|port| async move {
        let (connection, channel) = open(port).await;
        let queue = own_queue(&channel).await;
        let options = ExchangeDeclareOptions { auto_delete: true, ..ExchangeDeclareOptions::default() };
        for (name, kind) in [("lapin-in", ExchangeKind::Topic), ("lapin-out", ExchangeKind::Fanout)] {
            channel.exchange_declare(name, kind, options, FieldTable::default()).await.expect("declared");
        }
        let bound = ExchangeBindOptions::default();
        channel
            .exchange_bind("lapin-out", "lapin-in", "*.red", bound, FieldTable::default())
            .await
            .expect("bound");
        let bound = QueueBindOptions::default();
        channel.queue_bind(&queue, "lapin-out", "", bound, FieldTable::default()).await.expect("bound");
        for key in ["a.red", "a.blue", "b.red"] {
            publish(&channel, "lapin-in", key, key.as_bytes()).await;
        }
        let first = get(&channel, &queue).await.expect("routed");
        assert_eq!((first.exchange.as_str(), first.routing_key.as_str()), ("lapin-in", "a.red"));
        assert_eq!(get(&channel, &queue).await.expect("routed").data, b"b.red");
        assert!(get(&channel, &queue).await.is_none());

        let unbound = ExchangeUnbindOptions::default();
        let arguments = FieldTable::default();
        channel.exchange_unbind("lapin-out", "lapin-in", "*.red", unbound, arguments).await.expect("unbound");
        // That was its last binding, and it deletes itself.
        let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        let gone = channel.exchange_declare("lapin-in", ExchangeKind::Topic, passive, FieldTable::default());
        assert!(gone.await.is_err());
        connection.close(200, "done").await.expect("closed");
    });
}

#[test]
fn headers_exchange_and_all_properties() {
    with_broker(|port| async move {
        let (connection, channel) = open(port).await;
        let queue = own_queue(&channel).await;
        let mut wanted = FieldTable::default();
        wanted.insert("x-match".into(), AMQPValue::LongString("all".into()));
        wanted.insert("kind".into(), AMQPValue::LongString("report".into()));
        let options = QueueBindOptions::default();
        channel.queue_bind(&queue, "amq.headers", "", options, wanted).await.expect("bound");

        let mut headers = FieldTable::default();
        headers.insert("kind".into(), AMQPValue::LongString("report".into()));
        headers.insert("size".into(), AMQPValue::LongLongInt(-5));
        let mut nested = FieldTable::default();
        nested.insert("yes".into(), AMQPValue::Boolean(true));
        headers.insert("nested".into(), AMQPValue::FieldTable(nested));
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_content_encoding("utf-8".into())
            .with_headers(headers)
            .with_delivery_mode(2)
            .with_priority(7)
            .with_correlation_id("c-1".into())
            .with_reply_to("somewhere".into())
            .with_expiration("60000".into())
            .with_message_id("m-1".into())
            .with_timestamp(1_700_000_000)
            .with_type("report".into())
            .with_user_id("guest".into())
            .with_app_id("test".into());
        let options = BasicPublishOptions::default();
        let sent = channel.basic_publish("amq.headers", "", options, b"{}", properties.clone());
        drop(sent.await.expect("published"));
        publish(&channel, "amq.headers", "", b"no headers, no match").await;
        let message = get(&channel, &queue).await.expect("matched");
        assert_eq!(message.properties, properties);
        assert!(get(&channel, &queue).await.is_none());
        connection.close(200, "done").await.expect("closed");
    });
}

#[test]
fn transactions() {
    with_broker(|port| async move {
        let (connection, channel) = open(port).await;
        let queue = own_queue(&channel).await;
        let other = connection.create_channel().await.expect("a second channel");
        channel.tx_select().await.expect("transactional");
        publish(&channel, "", &queue, b"forgotten").await;
        channel.tx_rollback().await.expect("rolled back");
        publish(&channel, "", &queue, b"kept").await;
        assert!(get(&other, &queue).await.is_none(), "not before the commit");
        channel.tx_commit().await.expect("committed");
        let message = channel.basic_get(&queue, BasicGetOptions { no_ack: false }).await.expect("answered");
        let message = message.expect("kept");
        assert_eq!(message.delivery.data, b"kept");
        message.delivery.ack(BasicAckOptions::default()).await.expect("sent");
        channel.tx_rollback().await.expect("the acknowledgement is forgotten");
        channel.close(200, "done").await.expect("closed");
        let again = loop {
            if let Some(again) = get(&other, &queue).await {
                break again;
            }
        };
        assert!(again.redelivered);
        connection.close(200, "done").await.expect("closed");
    });
}

#[test]
fn large_messages() {
    with_broker(|port| async move {
        let (connection, channel) = open(port).await;
        let queue = own_queue(&channel).await;
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirming");
        let mut consumer = consume(&channel, &queue, "").await;
        for len in [0, 1, 131_064, 131_065, 262_128, 1 << 20, (8 << 20) + 3] {
            let body = large_body(len);
            assert!(publish(&channel, "", &queue, &body).await.is_ack(), "{len}");
            let delivery = next(&mut consumer).await;
            assert!(delivery.data == body, "{len}");
            delivery.ack(BasicAckOptions::default()).await.expect("sent");
        }
        connection.close(200, "done").await.expect("closed");
    });
}

#[test]
fn errors_end_channel_or_connection_and_say_why() {
    with_broker(|port| async move {
        let (connection, channel) = open(port).await;
        let missing = channel.queue_purge("lapin-missing", QueuePurgeOptions::default()).await.unwrap_err();
        let ErrorKind::ProtocolError(error) = missing.kind() else { panic!("{missing:?}") };
        assert_eq!(*error.kind(), AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND));
        assert_eq!(error.get_message().as_str(), "NOT_FOUND - no queue 'lapin-missing' in vhost '/'");

        let channel = connection.create_channel().await.expect("the connection is still open");
        let wrong = ExchangeKind::Custom("no-such-kind".to_string());
        let options = ExchangeDeclareOptions::default();
        let error =
            channel.exchange_declare("lapin-x", wrong, options, FieldTable::default()).await.unwrap_err();
        let ErrorKind::ProtocolError(error) = error.kind() else { panic!("{error:?}") };
        assert_eq!(*error.kind(), AMQPErrorKind::Hard(AMQPHardError::COMMANDINVALID));
        assert!(error.get_message().as_str().contains("no-such-kind"), "{error:?}");
        while connection.status().connected() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn a_wrong_password_is_told() {
    with_broker(|port| async move {
        let url = format!("amqp://guest:wrong@127.0.0.1:{port}/%2f");
        let error = Connection::connect(&url, ConnectionProperties::default()).await.map(drop).unwrap_err();
        let ErrorKind::ProtocolError(error) = error.kind() else { panic!("{error:?}") };
        assert_eq!(*error.kind(), AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED));
    });
}

#[test]
fn unacknowledged_messages_outlive_their_connection() {
    with_broker(|port| async move {
        let (connection, channel) = open(port).await;
        let queue = "lapin-outlives";
        let options = QueueDeclareOptions::default();
        channel.queue_declare(queue, options, FieldTable::default()).await.expect("declared");
        publish(&channel, "", queue, b"precious").await;
        let (worker, working) = open(port).await;
        let mut consumer = consume(&working, queue, "").await;
        assert!(!next(&mut consumer).await.redelivered);
        worker.close(200, "bye").await.expect("closed");
        // Messages of a closed connection are requeued soon, but not before the answer.
        let again = loop {
            if let Some(again) = get(&channel, queue).await {
                break again;
            }
        };
        assert_eq!((&again.data[..], again.redelivered), (&b"precious"[..], true));
        let deleted = channel.queue_delete(queue, QueueDeleteOptions::default()).await.expect("deleted");
        assert_eq!(deleted, 0);
        connection.close(200, "done").await.expect("closed");
    });
}
