//! amqprs: the other Rust client, with callbacks for what the broker says by itself.

use std::time::Duration;

use amqprs::callbacks::ChannelCallback;
use amqprs::channel::{
    BasicAckArguments, BasicCancelArguments, BasicConsumeArguments, BasicGetArguments, BasicNackArguments,
    BasicPublishArguments, BasicQosArguments, Channel, ConfirmSelectArguments, ConsumerMessage,
    ExchangeBindArguments, ExchangeDeclareArguments, QueueBindArguments, QueueDeclareArguments,
    QueueDeleteArguments,
};
use amqprs::connection::{Connection, OpenConnectionArguments};
use amqprs::{Ack, BasicProperties, Cancel, CloseChannel, Nack, Return};
use async_trait::async_trait;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{large_body, with_broker};

/// An event that the broker sends by itself.
#[derive(Debug, PartialEq)]
enum Said {
    Confirmed { tag: u64, multiple: bool },
    Returned { code: u16, text: String, key: String, body: Vec<u8> },
    Cancelled(String),
    Closed { code: u16, text: String },
}

/// Passes on what the broker says.
struct Ear(UnboundedSender<Said>);

impl Ear {
    fn hear(&self, said: Said) {
        // A test that has ended does not listen any more.
        let _ = self.0.send(said);
    }
}

#[async_trait]
impl ChannelCallback for Ear {
    async fn close(&mut self, _: &Channel, close: CloseChannel) -> Result<(), amqprs::error::Error> {
        self.hear(Said::Closed { code: close.reply_code(), text: close.reply_text().clone() });
        Ok(())
    }

    async fn cancel(&mut self, _: &Channel, cancel: Cancel) -> Result<(), amqprs::error::Error> {
        self.hear(Said::Cancelled(cancel.consumer_tag().clone()));
        Ok(())
    }

    async fn flow(&mut self, _: &Channel, active: bool) -> Result<bool, amqprs::error::Error> {
        Ok(active)
    }

    async fn publish_ack(&mut self, _: &Channel, ack: Ack) {
        self.hear(Said::Confirmed { tag: ack.delivery_tag(), multiple: ack.mutiple() });
    }

    async fn publish_nack(&mut self, _: &Channel, nack: Nack) {
        panic!("refused: {nack:?}");
    }

    async fn publish_return(&mut self, _: &Channel, ret: Return, _: BasicProperties, body: Vec<u8>) {
        let (code, text, key) = (ret.reply_code(), ret.reply_text().clone(), ret.routing_key().clone());
        self.hear(Said::Returned { code, text, key, body });
    }
}

/// A connection, a channel, and what the broker says on it.
async fn open(port: u16) -> (Connection, Channel, UnboundedReceiver<Said>) {
    let arguments = OpenConnectionArguments::new("127.0.0.1", port, "guest", "guest");
    let connection = Connection::open(&arguments).await.expect("connected");
    let channel = connection.open_channel(None).await.expect("a channel");
    let (say, said) = unbounded_channel();
    channel.register_callback(Ear(say)).await.expect("registered");
    (connection, channel, said)
}

async fn own_queue(channel: &Channel) -> String {
    let arguments = QueueDeclareArguments::default().exclusive(true).finish();
    let (name, _, _) = channel.queue_declare(arguments).await.expect("declared").expect("not no-wait");
    name
}

async fn publish(channel: &Channel, exchange: &str, key: &str, body: &[u8]) {
    let arguments = BasicPublishArguments::new(exchange, key);
    channel.basic_publish(BasicProperties::default(), body.to_vec(), arguments).await.expect("sent");
}

/// A message with its number of repetitions, taken out of a queue.
async fn get(channel: &Channel, queue: &str) -> Option<(bool, Vec<u8>)> {
    let arguments = BasicGetArguments::new(queue).no_ack(true).finish();
    let message = channel.basic_get(arguments).await.expect("answered");
    message.map(|(get_ok, _, body)| (get_ok.redelivered(), body))
}

async fn consume(channel: &Channel, queue: &str, tag: &str) -> UnboundedReceiver<ConsumerMessage> {
    let arguments = BasicConsumeArguments::new(queue, tag).manual_ack(true).finish();
    channel.basic_consume_rx(arguments).await.expect("consuming").1
}

/// The next delivery: its tag, whether it was delivered before, its body.
async fn next(consumer: &mut UnboundedReceiver<ConsumerMessage>) -> (u64, bool, Vec<u8>) {
    let message = consumer.recv().await.expect("not cancelled");
    let deliver = message.deliver.expect("a delivery has a method");
    (deliver.delivery_tag(), deliver.redelivered(), message.content.expect("and a body"))
}

#[test]
fn confirms_and_returns() {
    with_broker(|port| async move {
        let (connection, channel, mut said) = open(port).await;
        let queue = own_queue(&channel).await;
        channel.confirm_select(ConfirmSelectArguments::default()).await.expect("confirming");
        publish(&channel, "", &queue, b"one").await;
        assert_eq!(said.recv().await, Some(Said::Confirmed { tag: 1, multiple: false }));

        let lost = BasicPublishArguments::new("", "no such queue").mandatory(true).finish();
        channel.basic_publish(BasicProperties::default(), b"two".to_vec(), lost).await.expect("sent");
        let (text, key) = ("NO_ROUTE".to_string(), "no such queue".to_string());
        assert_eq!(said.recv().await, Some(Said::Returned { code: 312, text, key, body: b"two".to_vec() }));
        assert_eq!(said.recv().await, Some(Said::Confirmed { tag: 2, multiple: false }));

        for number in 3..=500_u64 {
            publish(&channel, "", &queue, &number.to_be_bytes()).await;
        }
        let mut confirmed = 2;
        while confirmed < 500 {
            let Some(Said::Confirmed { tag, multiple }) = said.recv().await else { panic!("confirms only") };
            assert!(multiple || tag == confirmed + 1, "{tag} after {confirmed}");
            confirmed = tag;
        }
        assert_eq!(get(&channel, &queue).await, Some((false, b"one".to_vec())));
        channel.close().await.expect("closed");
        connection.close().await.expect("closed");
    });
}

#[test]
fn prefetch_acknowledgements_and_requeue() {
    with_broker(|port| async move {
        let (connection, channel, _said) = open(port).await;
        let queue = own_queue(&channel).await;
        for number in 0..4_u8 {
            publish(&channel, "", &queue, &[number]).await;
        }
        channel.basic_qos(BasicQosArguments::new(0, 2, false)).await.expect("prefetch");
        let mut consumer = consume(&channel, &queue, "worker").await;
        assert_eq!(next(&mut consumer).await, (1, false, vec![0]));
        assert_eq!(next(&mut consumer).await, (2, false, vec![1]));
        let third = tokio::time::timeout(Duration::from_millis(200), consumer.recv()).await;
        assert!(third.is_err(), "two are unacknowledged");

        channel.basic_nack(BasicNackArguments::new(2, true, true)).await.expect("sent");
        assert_eq!(next(&mut consumer).await, (3, true, vec![0]));
        assert_eq!(next(&mut consumer).await, (4, true, vec![1]));
        channel.basic_ack(BasicAckArguments::new(4, true)).await.expect("sent");
        assert_eq!(next(&mut consumer).await, (5, false, vec![2]));
        assert_eq!(next(&mut consumer).await, (6, false, vec![3]));
        channel.basic_cancel(BasicCancelArguments::new("worker")).await.expect("cancelled");
        channel.basic_recover(true).await.expect("recovered");
        assert_eq!(get(&channel, &queue).await, Some((true, vec![2])));
        assert_eq!(get(&channel, &queue).await, Some((true, vec![3])));
        assert_eq!(get(&channel, &queue).await, None);
        connection.close().await.expect("closed");
    });
}

#[test]
fn a_consumer_is_told_when_its_queue_goes() {
    with_broker(|port| async move {
        let (connection, channel, mut said) = open(port).await;
        let queue = own_queue(&channel).await;
        let _consumer = consume(&channel, &queue, "mine").await;
        let other = connection.open_channel(None).await.expect("a second channel");
        other.queue_delete(QueueDeleteArguments::new(&queue)).await.expect("deleted");
        assert_eq!(said.recv().await, Some(Said::Cancelled("mine".to_string())));
        connection.close().await.expect("closed");
    });
}

#[test]
fn exchanges_and_their_bindings() {
    with_broker(|port| async move {
        let (connection, channel, _said) = open(port).await;
        let queue = own_queue(&channel).await;
        for (name, kind) in [("amqprs-in", "direct"), ("amqprs-out", "topic")] {
            let arguments = ExchangeDeclareArguments::new(name, kind).auto_delete(true).finish();
            channel.exchange_declare(arguments).await.expect("declared");
        }
        let bind = ExchangeBindArguments::new("amqprs-out", "amqprs-in", "a.b.c");
        channel.exchange_bind(bind).await.expect("bound");
        let bind = QueueBindArguments::new(&queue, "amqprs-out", "a.#");
        channel.queue_bind(bind).await.expect("bound");
        for key in ["a.b", "a.b.c", "b.c"] {
            publish(&channel, "amqprs-in", key, key.as_bytes()).await;
        }
        assert_eq!(get(&channel, &queue).await, Some((false, b"a.b.c".to_vec())));
        assert_eq!(get(&channel, &queue).await, None);
        connection.close().await.expect("closed");
    });
}

#[test]
fn transactions() {
    with_broker(|port| async move {
        let (connection, channel, _said) = open(port).await;
        let queue = own_queue(&channel).await;
        channel.tx_select().await.expect("transactional");
        publish(&channel, "", &queue, b"forgotten").await;
        channel.tx_rollback().await.expect("rolled back");
        publish(&channel, "", &queue, b"kept").await;
        assert_eq!(get(&channel, &queue).await, None);
        channel.tx_commit().await.expect("committed");
        assert_eq!(get(&channel, &queue).await, Some((false, b"kept".to_vec())));
        connection.close().await.expect("closed");
    });
}

#[test]
fn large_messages() {
    with_broker(|port| async move {
        let (connection, channel, _said) = open(port).await;
        let queue = own_queue(&channel).await;
        let mut consumer = consume(&channel, &queue, "").await;
        for (at, len) in (1..).zip([1, 131_065, (5 << 20) + 1]) {
            let body = large_body(len);
            publish(&channel, "", &queue, &body).await;
            let (tag, redelivered, received) = next(&mut consumer).await;
            assert!((tag, redelivered) == (at, false) && received == body, "{len}");
            channel.basic_ack(BasicAckArguments::new(tag, false)).await.expect("sent");
        }
        connection.close().await.expect("closed");
    });
}

#[test]
fn an_error_closes_the_channel_and_says_why() {
    with_broker(|port| async move {
        let (connection, channel, mut said) = open(port).await;
        publish(&channel, "amqprs-missing", "", b"nowhere to go").await;
        let text = "NOT_FOUND - no exchange 'amqprs-missing' in vhost '/'".to_string();
        assert_eq!(said.recv().await, Some(Said::Closed { code: 404, text }));
        let (other, channel, _) = open(port).await;
        assert!(channel.is_open() && connection.is_open());
        other.close().await.expect("closed");
        connection.close().await.expect("closed");
    });
}
