//! Actions of users in a virtual host: declare, bind, publish, purge, delete.
//!
//! The user could do all of this over AMQP. So each action is a command on a connection of that user that lives for
//! one request, and the broker applies the same checks.
//!
//! # Invariants
//! - No action succeeds over HTTP that AMQP would refuse to the user.
//! - The connection is closed before the answer is sent.

use leveret_broker::ChannelRequest;
use leveret_core::batch::Batch;
use leveret_core::command::{DefinitionCommand, Settlement};
use leveret_core::definition::DestinationName;
use leveret_core::error::Fault;
use leveret_core::mem::MessageNames;
use leveret_json::{Fields, Value};

use super::columns::ListedKind;
use super::definition_columns::{Bindings, is_decoded_properties_key, properties_key};
use super::definitions::table_of;
use super::http::{Request, Status, encode};
use super::listing::is_wanted;
use super::listing::{BindingEnds, Filter};
use super::messages::PayloadOptions;
use super::messages::QueueGet;
use super::publishing::{
    Base64Decoder, MessageFields, NAMES_TOO_LONG, Publishing, begin_message, payload_too_large, publish_as,
};
use super::request::RequestContext;
use super::request::{Answer, Answered, bad, bad_request, not_found, pool_full, refusal};
use super::request::{Call, default_named};

fn refused(fault: Fault) -> Answer {
    refusal(&fault)
}

/// The user of a request, and the virtual host in which it acts.
pub(super) struct ActingUser<'b, 's> {
    context: &'b mut RequestContext<'s>,
    call: &'b Call<'b>,
    user: &'b str,
    vhost: &'b str,
}

impl<'b, 's> ActingUser<'b, 's> {
    /// Returns the user of the request and the virtual host of the path.
    ///
    /// # Errors
    /// The request has no user.
    pub(super) fn of(call: &'b Call<'b>, context: &'b mut RequestContext<'s>) -> Result<Self, Answer> {
        let user = call.user.ok_or_else(|| not_found("Not Found"))?;
        Ok(Self { context, call, user: &user.name, vhost: call.name("vhost") })
    }

    /// Returns the destination of a binding: a name, and whether it is an exchange's.
    fn destination(&self) -> DestinationName<'b> {
        let exchange = self.call.optional_name("exchange").map(DestinationName::Exchange);
        exchange.unwrap_or_else(|| DestinationName::Queue(self.call.name("queue")))
    }

    /// Executes one command over a connection of the user. Returns the batch with its changes.
    fn command(&mut self, command: impl ChannelRequest) -> Result<Batch, Answer> {
        let (broker, mut context) = self.context.broker();
        let (connection, channel) =
            broker.connect_user(&mut context, self.user, self.vhost).map_err(refused)?;
        let answer = broker.apply_on_channel(&mut context, connection, channel, command);
        let batch = context.awaited;
        broker.release(&mut context, connection);
        answer.map(|_| batch).map_err(|fault| refusal(&fault))
    }

    fn done(&mut self, status: Status, command: impl ChannelRequest) -> Answered {
        self.command(command).map(|batch| Answer::Durable(batch, status, Vec::new()))
    }

    fn queue_exists(&self, queue: &str) -> Result<(), Answer> {
        let found = self.context.broker.queue_depth(self.vhost, queue);
        found.map(|_| ()).ok_or_else(|| not_found("Not Found"))
    }

    fn has_exchange(&self, name: &str) -> bool {
        let broker = &*self.context.broker;
        let mut exchanges = broker.views().exchanges();
        exchanges.any(|exchange| (exchange.vhost, exchange.name) == (self.vhost, name))
    }

    pub(super) fn put_queue(&mut self) -> Answered {
        let queue = self.call.name("queue");
        let mut fields = fields(self.call.request)?;
        let (durable, auto_delete) = (truth(&mut fields, "durable")?, truth(&mut fields, "auto_delete")?);
        let arguments = table_of(&fields.value("arguments")).map_err(bad)?;
        let status = if self.queue_exists(queue).is_ok() { Status::NoContent } else { Status::Created };
        let (passive, exclusive, arguments) = (false, false, &*arguments);
        if queue.is_empty() {
            return Err(bad_request("a queue has a name"));
        }
        self.done(
            status,
            DefinitionCommand::QueueDeclare { queue, passive, durable, exclusive, auto_delete, arguments },
        )
    }

    pub(super) fn delete_queue(&mut self) -> Answered {
        let queue = self.call.name("queue");
        self.queue_exists(queue)?;
        let (if_unused, if_empty) =
            (self.call.request.has_true("if-unused"), self.call.request.has_true("if-empty"));
        self.done(Status::NoContent, DefinitionCommand::QueueDelete { queue, if_unused, if_empty })
    }

    pub(super) fn purge(&mut self) -> Answered {
        let queue = self.call.name("queue");
        self.queue_exists(queue)?;
        self.done(Status::NoContent, DefinitionCommand::QueuePurge { queue })
    }

    /// Confirms that the mirrors are synchronised: there are none.
    pub(super) fn mirror(&self) -> Answered {
        let queue = self.call.name("queue");
        self.queue_exists(queue)?;
        match fields(self.call.request)?.text("action").map_err(bad)?.as_str() {
            "sync" | "cancel_sync" => Ok(Answer::Now(Status::NoContent, Vec::new())),
            other => Err(bad_request(&format!("there is no action '{other}'"))),
        }
    }

    pub(super) fn get(&mut self) -> Answered {
        let queue = self.call.name("queue");
        let mut fields = fields(self.call.request)?;
        let mode = match fields.text("ackmode").map_err(bad)?.as_str() {
            "ack_requeue_true" | "reject_requeue_true" => Some(Settlement::Requeue),
            "reject_requeue_false" => Some(Settlement::Reject),
            "ack_requeue_false" => None,
            other => return Err(bad_request(&format!("there is no ackmode '{other}'"))),
        };
        let is_base64 = match fields.text("encoding").map_err(bad)?.as_str() {
            "auto" => false,
            "base64" => true,
            _ => return Err(bad_request("Unsupported encoding. Please use auto or base64.")),
        };
        let Some(count) = number(&mut fields, "count")? else {
            return Err(bad_request("missing field `count`"));
        };
        let bytes_max = number(&mut fields, "truncate")?.unwrap_or(i64::MAX);
        let up_to = |number: i64| u32::try_from(number.clamp(0, u32::MAX.into())).unwrap_or(u32::MAX);
        Ok(Answer::Get(Box::new(QueueGet {
            user: self.user.into(),
            vhost: self.vhost.into(),
            queue: queue.into(),
            left: up_to(count),
            mode,
            payloads: PayloadOptions { is_base64, bytes_max: up_to(bytes_max) },
        })))
    }

    pub(super) fn put_exchange(&mut self) -> Answered {
        let exchange = self.call.name("exchange");
        let mut fields = fields(self.call.request)?;
        let kind = fields.text_if_said("type").map_err(bad)?.unwrap_or_else(|| "direct".to_string());
        let (durable, auto_delete) = (truth(&mut fields, "durable")?, truth(&mut fields, "auto_delete")?);
        let internal = truth(&mut fields, "internal")?;
        let arguments = table_of(&fields.value("arguments")).map_err(bad)?;
        let status = if self.has_exchange(exchange) { Status::NoContent } else { Status::Created };
        let (passive, kind, arguments) = (false, &*kind, &*arguments);
        self.done(
            status,
            DefinitionCommand::ExchangeDeclare {
                exchange,
                kind,
                passive,
                durable,
                auto_delete,
                internal,
                arguments,
            },
        )
    }

    pub(super) fn delete_exchange(&mut self) -> Answered {
        let exchange = self.call.name("exchange");
        if !self.has_exchange(exchange) {
            return Err(not_found("Not Found"));
        }
        let if_unused = self.call.request.has_true("if-unused");
        self.done(Status::NoContent, DefinitionCommand::ExchangeDelete { exchange, if_unused })
    }

    pub(super) fn bind(&mut self) -> Answered {
        let (source, destination) = (default_named(self.call.name("source")), self.destination());
        let mut fields = fields(self.call.request)?;
        let routing_key = fields.text_if_said("routing_key").map_err(bad)?.unwrap_or_default();
        let arguments = table_of(&fields.value("arguments")).map_err(bad)?;
        let batch = self.command(binding(source, destination, &routing_key, &arguments, true))?;
        let made = leveret_broker::BindingView {
            vhost: self.vhost,
            source,
            destination: destination.name(),
            to_exchange: destination.is_exchange(),
            exclusive: false,
            routing_key: &routing_key,
            arguments: leveret_amqp::field::Table::trusted(&arguments),
        };
        let place = format!("{}/{}", encode(destination.name()), encode(&properties_key(&made)));
        Ok(Answer::Created(batch, place))
    }

    pub(super) fn unbind(&mut self) -> Answered {
        let (source, destination) = (default_named(self.call.name("source")), self.destination());
        let key = self.call.name("key");
        let binding_ends = BindingEnds {
            source: Some(source.into()),
            destination: Some((destination.name().into(), destination.is_exchange())),
        };
        let filter = Filter { vhost: Some(self.vhost.into()), binding_ends, ..Filter::default() };
        let seen = self.context.context();
        let bindings = || Bindings::objects(seen).filter(|view| is_wanted::<Bindings>(&filter, seen, view));
        let found = bindings()
            .find(|view| properties_key(view) == key)
            .or_else(|| bindings().find(|view| is_decoded_properties_key(view, key)));
        let Some(view) = found else { return Err(not_found("Not Found")) };
        let (routing_key, arguments) = (view.routing_key.to_string(), view.arguments.as_bytes().to_vec());
        self.done(Status::NoContent, binding(source, destination, &routing_key, &arguments, false))
    }

    pub(super) fn publish(&mut self) -> Answered {
        let exchange = default_named(self.call.name("exchange"));
        if exchange.len() > 255 {
            return Err(bad_request(NAMES_TOO_LONG));
        }
        let (size_max, request) = (self.context.process.message_size_max, self.call.request);
        let (broker, mut context) = self.context.broker();
        let (own, _) = broker.connect_user(&mut context, self.user, self.vhost).map_err(refused)?;
        let share = broker.content_share(own);
        broker.release(&mut context, own);
        if !request.is_whole() {
            if request.is_longer_than(Publishing::request_bytes_max(size_max)) {
                return Err(payload_too_large(size_max));
            }
            let publishing = Publishing::new(self.user, self.vhost, exchange, share);
            return Ok(Answer::Upload(Box::new(publishing)));
        }
        let fields = MessageFields::parse(request.body)?;
        let payload = match fields.is_base64 {
            false => fields.payload.into_bytes(),
            true => Base64Decoder::default().decode(fields.payload.as_bytes(), true)?.to_vec(),
        };
        // A request is far below 4 GiB.
        let len = payload.len() as u32;
        if len > size_max {
            return Err(payload_too_large(size_max));
        }
        let names = MessageNames { exchange, routing_key: fields.routing_key.as_bytes() };
        let messages = &mut *self.context.messages;
        let message =
            begin_message(messages, names, &fields.properties, len, share).map_err(|_| pool_full())?;
        messages.append_body(message, &payload);
        publish_as(self.context, self.user, self.vhost, message)
    }
}

fn binding<'c>(
    source: &'c str,
    destination: DestinationName<'c>,
    routing_key: &'c str,
    arguments: &'c [u8],
    is_new: bool,
) -> DefinitionCommand<'c> {
    let exchange = source;
    match (destination, is_new) {
        (DestinationName::Exchange(destination), true) => {
            DefinitionCommand::ExchangeBind { destination, source, routing_key, arguments }
        }
        (DestinationName::Exchange(destination), false) => {
            DefinitionCommand::ExchangeUnbind { destination, source, routing_key, arguments }
        }
        (DestinationName::Queue(queue), true) => {
            DefinitionCommand::QueueBind { queue, exchange, routing_key, arguments }
        }
        (DestinationName::Queue(queue), false) => {
            DefinitionCommand::QueueUnbind { queue, exchange, routing_key, arguments }
        }
    }
}

pub(super) fn fields<'b>(request: &Request<'b>) -> Result<Fields<'b>, Answer> {
    if request.body.is_empty() {
        return Ok(Fields::default());
    }
    Fields::parse(request.body).map_err(bad)
}

/// Reads a Boolean, as itself or as a text. An absent one is `false`.
fn truth(fields: &mut Fields<'_>, name: &str) -> Result<bool, Answer> {
    match fields.value(name) {
        Value::Null => Ok(false),
        Value::Bool(truth) => Ok(truth),
        Value::String(text) if text == "true" || text == "false" => Ok(text == "true"),
        other => Err(bad_request(&format!("`{name}` must be true or false, not {other}"))),
    }
}

/// Reads an integer, as itself or as a text.
fn number(fields: &mut Fields<'_>, name: &str) -> Result<Option<i64>, Answer> {
    let value = fields.value(name);
    let number = match &value {
        Value::Null => return Ok(None),
        Value::String(text) => text.parse().ok(),
        value => value.as_i64(),
    };
    let why = || bad_request(&format!("`{name}` must be a whole number, not {value}"));
    number.map(Some).ok_or_else(why)
}
