//! Converts methods on channels to commands for the broker. The replies to a few methods are sent without the
//! broker.
//!
//! An empty queue name is replaced by the last declared queue. Line breaks are removed from names, as in RabbitMQ.
//! Methods that RabbitMQ does not implement are refused with RabbitMQ's texts.
//!
//! # Invariants
//! - Each method leads to one reply, one command, or one error.
//! - A command is completed before the input from which it borrows is released.

use leveret_amqp::Method;
use leveret_core::command::{
    ChannelCommand, ChannelId, Command, DefinitionCommand, GetCommand, Name, OpenChannel, Settlement,
};
use leveret_core::error::{Fault, ReplyCode};

use super::channel::{ChannelState, NONE, Slot};
use super::connection::{Connection, Context, Names};
use super::input::{FrameResult, InputStep, Suspension, fault_of_method, hard_fault};
use super::publish::{Content, PublishFlags};

impl Connection {
    /// Handles a method frame on channel `number`.
    pub(super) fn handle_channel_method<'a>(
        &mut self,
        context: &mut Context<'_>,
        number: u16,
        payload: &'a [u8],
    ) -> FrameResult<'a> {
        let found = context.pools.channels.find(&mut self.channels, self.id, number);
        let content = found.map_or(Content::None, |slot| context.pools.channels[slot].content);
        if let Some(result) = Self::misplaced_method(content) {
            return match found {
                Some(slot) if context.pools.channels[slot].state.is_closed() => {
                    self.handle_inside_refused(context, slot, payload).unwrap_or(result)
                }
                _ => result,
            };
        }
        if found.is_none() && self.channels.count >= self.negotiated.channel_max {
            return FrameResult::hard(
                ReplyCode::NotAllowed,
                format_args!(
                    "number of channels opened ({}) has reached the negotiated channel_max ({})",
                    self.channels.count, self.negotiated.channel_max
                ),
                (0, 0),
            );
        }
        let method = match Method::parse(payload) {
            Ok(method) => method,
            Err(error) => {
                let (fault, id) = fault_of_method(error, payload, false);
                return FrameResult::Fault(fault, id, NONE);
            }
        };
        let Some(slot) = found else {
            return self.open_channel(context, number, method);
        };
        match (context.pools.channels[slot].state, method) {
            (ChannelState::Open(_), Method::BasicPublish { exchange, routing_key, mandatory, immediate }) => {
                let flags = PublishFlags { mandatory, immediate };
                self.begin_publish(context, slot, exchange, routing_key, flags)
            }
            (ChannelState::Open(id), Method::BasicAck { delivery_tag, multiple }) => {
                let settlement = Settlement::Ack;
                let command = ChannelCommand::Settle { delivery_tag, multiple, settlement };
                self.pass_command(OpenSlot { slot, id }, method, command)
            }
            (ChannelState::Open(id), _) => self.handle_method(context, OpenSlot { slot, id }, method),
            (ChannelState::Opening, _) => FrameResult::Done,
            (ChannelState::Closing | ChannelState::Ended, _) => {
                self.handle_while_closing(context, slot, method)
            }
        }
    }

    /// Handles a method on a channel that is not open: only channel.open is allowed.
    fn open_channel<'a>(
        &mut self,
        context: &mut Context<'_>,
        number: u16,
        method: Method<'a>,
    ) -> FrameResult<'a> {
        if !matches!(method, Method::ChannelOpen {}) {
            let text = format_args!("expected 'channel.open'");
            return FrameResult::hard(ReplyCode::ChannelError, text, method.id());
        }
        if !self.has_reply_room() {
            return FrameResult::Wait(Suspension::ReplySpace);
        }
        let Some(slot) = context.pools.channels.open(&mut self.channels, self.id, number) else {
            let text = format_args!(
                "this broker has no memory for another channel: close some, or raise memory_limit"
            );
            return FrameResult::hard(ReplyCode::ResourceError, text, method.id());
        };
        self.input.pending = Pending::method(method.id(), slot, false);
        FrameResult::InputStep(InputStep::Command(Command::OpenChannel(OpenChannel { number })))
    }

    /// Handles a method on a channel that the broker has closed. Everything is ignored except
    /// channel.close-ok and channel.close; the contents of publishes are dropped.
    fn handle_while_closing<'a>(
        &mut self,
        context: &mut Context<'_>,
        slot: Slot,
        method: Method<'_>,
    ) -> FrameResult<'a> {
        match method {
            Method::ChannelCloseOk {} => self.drop_channel(context, slot),
            Method::ChannelClose { .. } => {
                if !self.has_reply_room() {
                    return FrameResult::Wait(Suspension::ReplySpace);
                }
                let number = context.pools.channels[slot].number();
                self.push_reply(context, number, &Method::ChannelCloseOk {}, 0);
            }
            Method::BasicPublish { .. } => self.skip_publish(context, slot),
            _ => {}
        }
        FrameResult::Done
    }

    /// Handles a method between the frames of a refused content on a closed channel.
    ///
    /// RabbitMQ itself refuses a content only at its end. Clients for RabbitMQ may therefore send
    /// channel.close-ok, and open the channel again, while another of their threads still sends the body.
    /// Returns `None` for any other method, which is an error.
    fn handle_inside_refused<'a>(
        &mut self,
        context: &mut Context<'_>,
        slot: Slot,
        payload: &'a [u8],
    ) -> Option<FrameResult<'a>> {
        let number = context.pools.channels[slot].number();
        match (context.pools.channels[slot].state, Method::parse(payload).ok()?) {
            (ChannelState::Closing, Method::ChannelCloseOk {}) => {
                context.pools.channels[slot].state = ChannelState::Ended;
                Some(FrameResult::Done)
            }
            (ChannelState::Ended, method @ Method::ChannelOpen {}) => {
                if !self.has_reply_room() {
                    return Some(FrameResult::Wait(Suspension::ReplySpace));
                }
                self.drop_channel(context, slot);
                Some(self.open_channel(context, number, method))
            }
            _ => None,
        }
    }

    /// Handles a method on an open channel.
    fn handle_method<'a>(
        &mut self,
        context: &mut Context<'_>,
        at: OpenSlot,
        method: Method<'a>,
    ) -> FrameResult<'a> {
        let command = match method {
            Method::BasicNack { delivery_tag, multiple, requeue } => {
                let settlement = refusal(requeue);
                return self.pass_command(
                    at,
                    method,
                    ChannelCommand::Settle { delivery_tag, multiple, settlement },
                );
            }
            Method::BasicReject { delivery_tag, requeue } => {
                let (multiple, settlement) = (false, refusal(requeue));
                return self.pass_command(
                    at,
                    method,
                    ChannelCommand::Settle { delivery_tag, multiple, settlement },
                );
            }
            _ if !self.has_reply_room() => return FrameResult::Wait(Suspension::ReplySpace),
            Method::ChannelOpen {} => {
                let text = format_args!("second 'channel.open' seen");
                return FrameResult::hard(ReplyCode::ChannelError, text, method.id());
            }
            Method::ChannelFlow { active: true } => {
                return self.reply_now(context, at.slot, &Method::ChannelFlowOk { active: true });
            }
            Method::AccessRequest { .. } => {
                return self.reply_now(context, at.slot, &Method::AccessRequestOk { ticket: 1 });
            }
            Method::ChannelClose { .. } => ChannelCommand::CloseChannel,
            Method::BasicQos { prefetch_size: 0, prefetch_count, global } => {
                ChannelCommand::Qos { prefetch_count, global }
            }
            Method::BasicRecover { requeue: true } | Method::BasicRecoverAsync { requeue: true } => {
                ChannelCommand::Recover
            }
            Method::ConfirmSelect { .. } => ChannelCommand::ConfirmSelect,
            Method::TxSelect {} => ChannelCommand::TxSelect,
            Method::TxCommit {} => ChannelCommand::TxCommit,
            Method::TxRollback {} => ChannelCommand::TxRollback,
            _ if has_names(&method) => return FrameResult::Named(at, method),
            _ => return FrameResult::Fault(not_implemented(&method), method.id(), NONE),
        };
        self.pass_command(at, method, command)
    }

    /// Returns the step with a command that needs no [`Names`].
    #[inline]
    fn pass_command<'a>(
        &mut self,
        at: OpenSlot,
        method: Method<'_>,
        command: ChannelCommand<'a>,
    ) -> FrameResult<'a> {
        self.input.pending = Pending::method(method.id(), at.slot, no_wait(&method));
        FrameResult::InputStep(InputStep::Command(Command::Channel(at.id, command)))
    }

    /// Stores a reply that needs no command for the broker.
    fn reply_now<'a>(
        &mut self,
        context: &mut Context<'_>,
        slot: Slot,
        reply: &Method<'_>,
    ) -> FrameResult<'a> {
        let number = context.pools.channels[slot].number();
        self.push_reply(context, number, reply, 0);
        FrameResult::Done
    }

    /// Returns the command for a method for which [`has_names`] is true.
    ///
    /// # Errors
    /// The queue name is empty, and no queue was declared on the channel.
    pub(super) fn command<'a>(
        &mut self,
        context: &mut Context<'_>,
        names: &'a mut Names,
        at: OpenSlot,
        method: Method<'a>,
    ) -> Result<Command<'a>, Fault> {
        self.input.pending = Pending::method(method.id(), at.slot, no_wait(&method));
        if let Method::BasicCancel { consumer_tag, .. } = method {
            store(&mut context.pools.cancelled_tag, consumer_tag);
        }
        let last_queue = &context.pools.channels[at.slot].last_queue;
        Ok(match method {
            Method::BasicConsume { queue, consumer_tag: tag, no_ack, exclusive, arguments, .. } => {
                let queue = queue_or_last(queue, last_queue, &mut names.queue)?;
                let arguments = arguments.as_bytes();
                Command::Channel(at.id, ChannelCommand::Consume { queue, tag, no_ack, exclusive, arguments })
            }
            Method::BasicCancel { consumer_tag: tag, .. } => {
                Command::Channel(at.id, ChannelCommand::Cancel { tag })
            }
            Method::BasicGet { queue, no_ack } => {
                let queue = queue_or_last(queue, last_queue, &mut names.queue)?;
                Command::Get(at.id, GetCommand { queue, no_ack })
            }
            Method::QueueDeclare { .. }
            | Method::QueueBind { .. }
            | Method::QueueUnbind { .. }
            | Method::QueuePurge { .. }
            | Method::QueueDelete { .. } => {
                Command::Definition(at.id, queue_command(last_queue, names, method)?)
            }
            _ => Command::Definition(at.id, exchange_command(names, method)?),
        })
    }
}

/// Returns the command for a method of class `queue`.
fn queue_command<'a>(
    last_queue: &Name,
    names: &'a mut Names,
    method: Method<'a>,
) -> Result<DefinitionCommand<'a>, Fault> {
    Ok(match method {
        Method::QueueDeclare { queue, passive, durable, exclusive, auto_delete, arguments, .. } => {
            let queue = strip(queue, &mut names.queue);
            let arguments = arguments.as_bytes();
            DefinitionCommand::QueueDeclare { queue, passive, durable, exclusive, auto_delete, arguments }
        }
        Method::QueueBind { queue, exchange, routing_key, arguments, .. } => {
            let (queue, routing_key) = queue_and_key(queue, routing_key, last_queue, &mut names.queue)?;
            let exchange = strip(exchange, &mut names.exchange);
            DefinitionCommand::QueueBind { queue, exchange, routing_key, arguments: arguments.as_bytes() }
        }
        Method::QueueUnbind { queue, exchange, routing_key, arguments } => {
            let (queue, routing_key) = queue_and_key(queue, routing_key, last_queue, &mut names.queue)?;
            let exchange = strip(exchange, &mut names.exchange);
            DefinitionCommand::QueueUnbind { queue, exchange, routing_key, arguments: arguments.as_bytes() }
        }
        Method::QueueDelete { queue, if_unused, if_empty, .. } => {
            let queue = queue_or_last(queue, last_queue, &mut names.queue)?;
            DefinitionCommand::QueueDelete { queue, if_unused, if_empty }
        }
        Method::QueuePurge { queue, .. } => {
            let queue = queue_or_last(queue, last_queue, &mut names.queue)?;
            DefinitionCommand::QueuePurge { queue }
        }
        _ => return Err(not_implemented(&method)),
    })
}

/// Returns the command for a method of class `exchange`.
fn exchange_command<'a>(names: &'a mut Names, method: Method<'a>) -> Result<DefinitionCommand<'a>, Fault> {
    Ok(match method {
        Method::ExchangeDeclare {
            exchange,
            kind,
            passive,
            durable,
            auto_delete,
            internal,
            arguments,
            ..
        } => {
            let exchange = strip(exchange, &mut names.exchange);
            let arguments = arguments.as_bytes();
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
        Method::ExchangeDelete { exchange, if_unused, .. } => {
            DefinitionCommand::ExchangeDelete { exchange: strip(exchange, &mut names.exchange), if_unused }
        }
        Method::ExchangeBind { destination, source, routing_key, arguments, .. } => {
            DefinitionCommand::ExchangeBind {
                destination: strip(destination, &mut names.queue),
                source: strip(source, &mut names.exchange),
                routing_key,
                arguments: arguments.as_bytes(),
            }
        }
        Method::ExchangeUnbind { destination, source, routing_key, arguments, .. } => {
            DefinitionCommand::ExchangeUnbind {
                destination: strip(destination, &mut names.queue),
                source: strip(source, &mut names.exchange),
                routing_key,
                arguments: arguments.as_bytes(),
            }
        }
        _ => return Err(not_implemented(&method)),
    })
}

/// Returns whether the command for this method contains names of queues or exchanges, for which it needs a [`Names`].
const fn has_names(method: &Method<'_>) -> bool {
    matches!(
        method,
        Method::ExchangeDeclare { .. }
            | Method::ExchangeDelete { .. }
            | Method::ExchangeBind { .. }
            | Method::ExchangeUnbind { .. }
            | Method::QueueDeclare { .. }
            | Method::QueueBind { .. }
            | Method::QueueUnbind { .. }
            | Method::QueuePurge { .. }
            | Method::QueueDelete { .. }
            | Method::BasicConsume { .. }
            | Method::BasicCancel { .. }
            | Method::BasicGet { .. }
    )
}

/// Returns the flag `no-wait` of a method; `false` if the method has none.
fn no_wait(method: &Method<'_>) -> bool {
    match *method {
        Method::ExchangeDeclare { no_wait, .. }
        | Method::ExchangeDelete { no_wait, .. }
        | Method::ExchangeBind { no_wait, .. }
        | Method::ExchangeUnbind { no_wait, .. }
        | Method::QueueDeclare { no_wait, .. }
        | Method::QueueBind { no_wait, .. }
        | Method::QueuePurge { no_wait, .. }
        | Method::QueueDelete { no_wait, .. }
        | Method::BasicConsume { no_wait, .. }
        | Method::BasicCancel { no_wait, .. }
        | Method::ConfirmSelect { no_wait } => no_wait,
        _ => false,
    }
}

/// Returns the settlement of a negative acknowledgement.
const fn refusal(requeue: bool) -> Settlement {
    if requeue { Settlement::Requeue } else { Settlement::Reject }
}

/// Returns the error for methods that RabbitMQ does not implement, and for methods that only servers send.
fn not_implemented(method: &Method<'_>) -> Fault {
    let code = ReplyCode::NotImplemented;
    match method {
        Method::BasicQos { prefetch_size, .. } => {
            hard_fault(code, format_args!("prefetch_size!=0 ({prefetch_size})"))
        }
        Method::BasicRecover { .. } | Method::BasicRecoverAsync { .. } => {
            hard_fault(code, format_args!("requeue=false"))
        }
        Method::ChannelFlow { .. } => hard_fault(code, format_args!("active=false")),
        _ => hard_fault(ReplyCode::CommandInvalid, format_args!("unimplemented method")),
    }
}

/// Returns the name of a queue, or of the last declared queue if the name is empty. `buffer` is used if the result is not
/// part of the input.
///
/// # Errors
/// The name is empty and no queue was declared.
fn queue_or_last<'a>(queue: &'a str, last_queue: &Name, buffer: &'a mut Name) -> Result<&'a str, Fault> {
    if !queue.is_empty() {
        return Ok(strip(queue, buffer));
    }
    if last_queue.is_empty() {
        return Err(Fault::new(ReplyCode::NotFound, format_args!("no previously declared queue")));
    }
    store(buffer, last_queue);
    Ok(buffer)
}

/// Returns the result of [`queue_or_last`], and the routing key. If both names are empty, the routing key is
/// the name of the last declared queue too.
fn queue_and_key<'a>(
    queue: &'a str,
    routing_key: &'a str,
    last_queue: &Name,
    buffer: &'a mut Name,
) -> Result<(&'a str, &'a str), Fault> {
    let is_both = queue.is_empty() && routing_key.is_empty();
    let queue = queue_or_last(queue, last_queue, buffer)?;
    Ok((queue, if is_both { queue } else { routing_key }))
}

/// Returns the name without line breaks, as in RabbitMQ. `buffer` is used only if the name has line breaks.
fn strip<'a>(name: &'a str, buffer: &'a mut Name) -> &'a str {
    let is_line_end = |character: char| matches!(character, '\r' | '\n');
    if !name.contains(is_line_end) {
        return name;
    }
    buffer.clear();
    for piece in name.split(is_line_end) {
        // This never fails, because all pieces together are not longer than the name.
        let _ = buffer.push_str(piece);
    }
    buffer
}

/// Copies a name into a buffer.
fn store(buffer: &mut Name, name: &str) {
    buffer.clear();
    // This never fails, because the maximum length of a name in a frame is that of a `Name`.
    let _ = buffer.push_str(name);
}

/// The SASL mechanism of a login.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mechanism {
    Plain,
    AmqPlain,
    /// The transport has authenticated the user.
    External,
}

impl Mechanism {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::AmqPlain => "AMQPLAIN",
            Self::External => "EXTERNAL",
        }
    }
}

/// A channel that is open at the broker.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpenSlot {
    pub(super) slot: Slot,
    /// The broker's channel.
    pub(super) id: ChannelId,
}

/// The command that the broker has not answered yet. A connection has at most one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pending {
    /// There is no command.
    Nothing,
    Login(Mechanism),
    /// The broker must close the channel after an error. channel.close was already sent to the client.
    Release,
    /// The command of a method.
    Method(PendingMethod),
}

/// A method whose command the broker has not answered yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PendingMethod {
    /// Class and method number, for an error and for the "ok".
    pub(super) id: (u16, u16),
    /// [`NONE`] for connection.open.
    pub(super) slot: Slot,
    pub(super) no_wait: bool,
}

impl Pending {
    pub(super) const fn method(id: (u16, u16), slot: Slot, no_wait: bool) -> Self {
        Self::Method(PendingMethod { id, slot, no_wait })
    }
}
