//! The firehose: copies every message published or delivered in a traced virtual host.
//!
//! The copies go to the queues bound to the exchange `amq.rabbitmq.trace` while an operator has tracing on:
//!
//! ```text
//! published to X    key publish.X   headers exchange_name routing_keys properties node
//!                                           vhost connection channel user routed_queues
//! delivered from Q  key deliver.Q   headers exchange_name routing_keys properties node
//!                                           redelivered vhost connection channel user
//! ```
//!
//! As in RabbitMQ, the copies contain the BCC keys, which clients otherwise never get. Tracing ends with the
//! process.
//!
//! # Invariants
//! - While the firehose is off, a message costs only the check of one flag.
//! - Copies are not traced again.
//! - Copies use only the memory of ordinary publishers and delay no client. Without capacity a copy is
//!   omitted.

use leveret_amqp::field::{Array, Table, TableWriter, Value};
use leveret_amqp::props::{PROPERTIES, Properties, PropertyEdit};
use leveret_amqp::{Full, Writer};
use leveret_core::command::{ChannelId, QueueId, VhostId};
use leveret_core::mem::{MessageFlags, MessageId, MessageNames, Share};
use leveret_queues::{Claim, OnFull, Scratch};
use leveret_routing::cc_and_bcc;

use super::{Republisher, TracedName};
use crate::Context;

/// Exchange that the copies are published to.
const EXCHANGE: &str = "amq.rabbitmq.trace";
/// Bytes of memory that a copy takes for properties and names, without the body.
const COPY_BYTES: usize = 1024;
/// Bytes of a header frame besides the properties.
const HEADER_BYTES: usize = 22;

/// The event that a copy describes.
#[derive(Clone, Copy)]
enum TracedEvent<'a> {
    /// The message was published to these queues.
    Published(&'a [QueueId]),
    /// The message is delivered from a queue; `true` if it is a redelivery.
    Delivered(QueueId, bool),
}

impl Republisher<'_> {
    /// Returns a copy of a message that is being published, for [`Self::publish_trace`]; `None` if the
    /// virtual host is not traced or there is no capacity.
    #[cold]
    pub(crate) fn trace_published(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        message: MessageId,
        targets: &[QueueId],
    ) -> Option<MessageId> {
        self.trace_event(cx, channel, message, TracedEvent::Published(targets))
    }

    /// Publishes a copy of a message that is delivered from a queue.
    #[cold]
    pub(crate) fn trace_delivered(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        message: MessageId,
        queue: QueueId,
        redelivered: bool,
    ) {
        if self.queues.at(queue).is_internal() {
            return;
        }
        if let Some(copy) = self.trace_event(cx, channel, message, TracedEvent::Delivered(queue, redelivered))
        {
            self.publish_trace(cx, channel, copy);
        }
    }

    fn trace_event(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        message: MessageId,
        event: TracedEvent<'_>,
    ) -> Option<MessageId> {
        let vhost = self.clients.channel(channel).vhost;
        if !self.access.is_traced(vhost) || cx.messages.exchange(message) == EXCHANGE {
            return None;
        }
        let body_len = cx.messages.body_len(message);
        cx.work.charge(8);
        cx.work.charge_octets(body_len as usize);
        if !cx.messages.has_ordinary_room(body_len as usize + COPY_BYTES) {
            self.log_omitted(vhost);
            return None;
        }
        let mut scratch = self.queues.lend_scratch();
        let copy = self.write_copy(cx, channel, message, event, &mut scratch);
        self.queues.return_scratch(scratch);
        if copy.is_none() {
            self.log_omitted(vhost);
        }
        copy
    }

    fn write_copy(
        &self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        message: MessageId,
        event: TracedEvent<'_>,
        scratch: &mut Scratch,
    ) -> Option<MessageId> {
        let properties = Properties::trusted(cx.messages.properties(message, &mut scratch.properties));
        let (exchange, key) = (cx.messages.exchange(message), cx.messages.routing_key(message));
        let room = self.queues.frame_max().saturating_sub(HEADER_BYTES);
        let mut writer = Writer::new(&mut scratch.rewritten[..room]);
        let mut fill = |headers: &mut TableWriter<'_, '_>| {
            write_message(headers, exchange, key, properties)?;
            headers.text("node", &self.firehose.node)?;
            self.write_event(headers, channel, event)
        };
        Properties::EMPTY.write_with_headers(PropertyEdit::default(), &mut fill, &mut writer).ok()?;
        let key: heapless::Vec<u8, 255> = match event {
            TracedEvent::Published(_) => [b"publish.", exchange.as_bytes()],
            TracedEvent::Delivered(queue, _) => {
                [b"deliver.", self.queues.records().record_of_queue(queue).name.as_bytes()]
            }
        }
        .into_iter()
        .flatten()
        .copied()
        .take(255)
        .collect();
        cx.messages
            .copy_as(
                message,
                MessageNames { exchange: EXCHANGE, routing_key: &key },
                writer.written(),
                MessageFlags::NONE,
                Share::Reserve,
            )
            .ok()
    }

    fn write_event(
        &self,
        headers: &mut TableWriter<'_, '_>,
        channel: ChannelId,
        event: TracedEvent<'_>,
    ) -> Result<(), Full> {
        if let TracedEvent::Delivered(_, redelivered) = event {
            headers.int("redelivered", redelivered.into())?;
        }
        let record = self.clients.channel(channel);
        let name = self.firehose.names.get(record.connection.index());
        headers.text("vhost", self.access.vhost_name(record.vhost))?;
        headers.text("connection", name.map_or("", TracedName::as_str))?;
        headers.int("channel", record.number.into())?;
        headers.text("user", self.clients.connection(record.connection).identity.name())?;
        let TracedEvent::Published(targets) = event else { return Ok(()) };
        headers.array("routed_queues", |queues| {
            let seen = |queue: &&QueueId| self.queues.at(**queue).delayed_exchange().is_none();
            let mut seen = targets.iter().filter(seen);
            seen.try_for_each(|queue| queues.text(&self.queues.records().record_of_queue(*queue).name))
        })
    }

    /// Publishes a copy to the queues that are bound to the trace exchange and have capacity for it.
    pub(crate) fn publish_trace(&mut self, cx: &mut Context<'_>, channel: ChannelId, copy: MessageId) {
        let vhost = self.clients.channel(channel).vhost;
        let mut targets = core::mem::take(&mut self.republish.targets);
        let key: heapless::Vec<u8, 255> =
            heapless::Vec::from_slice(cx.messages.routing_key(copy)).unwrap_or_default();
        targets.clear();
        if let Some(exchange) = self.topology.find_exchange(vhost, EXCHANGE) {
            let routed = self.route(cx.work, exchange, &key, Table::EMPTY, &mut targets);
            if routed.is_err() {
                targets.clear();
            }
        }
        self.queues.choose_levels(cx, self.quota, copy, &mut targets);
        let (clients, quota, queues) = (self.clients, &*self.quota, &*self.queues);
        let credit = |queue| clients.waiting_credit(queues, quota, queue);
        let (accepting_count, _) =
            queues.records().keep_accepting(cx.messages, copy, &mut targets, Some(&credit));
        targets.truncate(accepting_count);
        let claim = Claim { share: Share::Ordinary, on_full: OnFull::Wait };
        if !targets.is_empty() {
            match self.queues.check_capacity(cx, self.quota, copy, &targets, claim) {
                Ok(()) => self.queues.push_copy(cx, copy, &targets),
                Err(_) => self.log_omitted(vhost),
            }
        }
        self.republish.targets = targets;
        cx.messages.release(copy);
    }

    /// Logs, at most once a minute, that copies were omitted.
    fn log_omitted(&mut self, vhost: VhostId) {
        let minute = self.queues.minute();
        if self.firehose.omitted_logged_minute.replace(minute) != Some(minute) {
            let vhost = self.access.vhost_name(vhost).escape_debug();
            log::warn!(
                "virtual host '{vhost}' is traced, and some firehose copies were omitted for lack of capacity"
            );
        }
    }
}

/// Writes the headers about the message itself, in RabbitMQ's order.
fn write_message(
    headers: &mut TableWriter<'_, '_>,
    exchange: &str,
    key: &[u8],
    properties: Properties<'_>,
) -> Result<(), Full> {
    headers.text("exchange_name", exchange)?;
    let further = cc_and_bcc(properties.headers().unwrap_or(Table::EMPTY));
    headers.array("routing_keys", |keys| {
        keys.long_str(key)?;
        let mut further = further.into_iter().flat_map(Array::into_iter).filter_map(|value| value.as_bytes());
        further.try_for_each(|key| keys.long_str(key))
    })?;
    headers.table("properties", |table| {
        for (name, flag, kind) in PROPERTIES.iter().rev() {
            match properties.by_flag(*flag, *kind) {
                None => {}
                Some(Value::UnsignedByte(number)) => table.int(name, number.into())?,
                // RabbitMQ writes only numbers of 32 bits here.
                Some(Value::Timestamp(number)) => table.int(name, number as i32)?,
                Some(Value::Table(headers)) => {
                    table.table(name, |table| table.entries_without(headers, "BCC"))?
                }
                Some(value) => table.value(name.as_bytes(), value)?,
            }
        }
        Ok(())
    })
}
