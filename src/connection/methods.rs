//! Methods on channels become commands of the broker, or are answered here.
//!
//! What AMQP leaves to the context is filled in (an empty queue name means the last declared queue). Names are
//! stripped as in RabbitMQ. Methods that RabbitMQ does not implement are refused with its texts.
//!
//! # Invariants
//! - A method is answered here, becomes one command whose answer is awaited, or is an error.
//! - Data borrowed from the input is not kept beyond the command.

use leveret_amqp::Method;
use leveret_core::command::{Command, Name, Settlement};
use leveret_core::error::{Fault, ReplyCode};

use super::channel::{ChannelState, NONE, Slot};
use super::connection::{Connection, Context, Names};
use super::input::{InputStep, Suspension, Verdict, fault_of_method, hard_fault};
use super::publish::Content;

impl Connection {
    pub(super) fn handle_channel_method<'a>(
        &mut self,
        context: &mut Context<'_>,
        number: u16,
        payload: &'a [u8],
    ) -> Verdict<'a> {
        let found = context.pools.channels.find(&mut self.channels, self.id, number);
        let content = found.map_or(Content::None, |slot| context.pools.channels[slot].content);
        if let Some(verdict) = Self::misplaced_method(content) {
            return match found {
                Some(slot) if context.pools.channels[slot].state.is_closed() => {
                    self.handle_inside_refused(context, slot, payload).unwrap_or(verdict)
                }
                _ => verdict,
            };
        }
        if found.is_none() && self.channels.count >= self.negotiated.channel_max {
            return Verdict::hard(
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
                return Verdict::Fault(fault, id, NONE);
            }
        };
        let Some(slot) = found else {
            return self.open_channel(context, number, method);
        };
        match (context.pools.channels[slot].state, method) {
            (ChannelState::Open(_), Method::BasicPublish { exchange, routing_key, mandatory, immediate }) => {
                self.begin_publish(context, slot, exchange, routing_key, (mandatory, immediate))
            }
            (ChannelState::Open(_), Method::BasicAck { delivery_tag, multiple }) => {
                self.settle(context, slot, method, delivery_tag, multiple, Settlement::Ack)
            }
            (ChannelState::Open(_), _) => self.handle_method(context, slot, method),
            (ChannelState::Opening, _) => Verdict::Done,
            (ChannelState::Closing | ChannelState::Ended, _) => {
                self.handle_while_closing(context, slot, method)
            }
        }
    }

    /// Handles a method on a channel number that is not open.
    fn open_channel<'a>(
        &mut self,
        context: &mut Context<'_>,
        number: u16,
        method: Method<'a>,
    ) -> Verdict<'a> {
        if !matches!(method, Method::ChannelOpen {}) {
            let text = format_args!("expected 'channel.open'");
            return Verdict::hard(ReplyCode::ChannelError, text, method.id());
        }
        if !self.has_reply_room(context) {
            return Verdict::Wait(Suspension::ReplySpace);
        }
        let Some(slot) = context.pools.channels.open(&mut self.channels, self.id, number) else {
            let text = format_args!("this broker has no free channels: raise channels_max or close some");
            return Verdict::hard(ReplyCode::ResourceError, text, method.id());
        };
        self.input.pending = Pending::on_channel(CommandKind::OpenChannel, method.id(), slot, false);
        Verdict::InputStep(InputStep::Command { channel: None, command: Command::OpenChannel { number } })
    }

    /// Handles a method on a channel that the broker has closed: only its end counts, and contents are skipped.
    fn handle_while_closing<'a>(
        &mut self,
        context: &mut Context<'_>,
        slot: Slot,
        method: Method<'_>,
    ) -> Verdict<'a> {
        match method {
            Method::ChannelCloseOk {} => self.drop_channel(context, slot),
            Method::ChannelClose { .. } => {
                if !self.has_reply_room(context) {
                    return Verdict::Wait(Suspension::ReplySpace);
                }
                let number = context.pools.channels[slot].number();
                self.push_reply(context, number, &Method::ChannelCloseOk {}, 0);
            }
            Method::BasicPublish { .. } => self.skip_publish(context, slot),
            _ => {}
        }
        Verdict::Done
    }

    /// Handles a method inside a refused content. A client may answer channel.close at once and use the number again
    /// while another of its threads still sends the body. RabbitMQ's clients do so, because RabbitMQ refuses no
    /// content before its end. Returns `None` if the method is misplaced nevertheless.
    fn handle_inside_refused<'a>(
        &mut self,
        context: &mut Context<'_>,
        slot: Slot,
        payload: &'a [u8],
    ) -> Option<Verdict<'a>> {
        let number = context.pools.channels[slot].number();
        match (context.pools.channels[slot].state, Method::parse(payload).ok()?) {
            (ChannelState::Closing, Method::ChannelCloseOk {}) => {
                context.pools.channels[slot].state = ChannelState::Ended;
                Some(Verdict::Done)
            }
            (ChannelState::Ended, method @ Method::ChannelOpen {}) => {
                if !self.has_reply_room(context) {
                    return Some(Verdict::Wait(Suspension::ReplySpace));
                }
                self.drop_channel(context, slot);
                Some(self.open_channel(context, number, method))
            }
            _ => None,
        }
    }

    fn handle_method<'a>(
        &mut self,
        context: &mut Context<'_>,
        slot: Slot,
        method: Method<'a>,
    ) -> Verdict<'a> {
        match method {
            Method::BasicNack { delivery_tag, multiple, requeue } => {
                self.settle(context, slot, method, delivery_tag, multiple, refusal(requeue))
            }
            Method::BasicReject { delivery_tag, requeue } => {
                self.settle(context, slot, method, delivery_tag, false, refusal(requeue))
            }
            _ if !self.has_reply_room(context) => Verdict::Wait(Suspension::ReplySpace),
            Method::ChannelOpen {} => Verdict::hard(
                ReplyCode::ChannelError,
                format_args!("second 'channel.open' seen"),
                method.id(),
            ),
            Method::ChannelClose { .. } => {
                self.plain(context, slot, method, CommandKind::CloseChannel, Command::CloseChannel)
            }
            Method::ChannelFlow { active: true } => {
                self.reply_now(context, slot, &Method::ChannelFlowOk { active: true })
            }
            Method::AccessRequest { .. } => {
                self.reply_now(context, slot, &Method::AccessRequestOk { ticket: 1 })
            }
            Method::BasicQos { prefetch_size: 0, prefetch_count, global } => {
                self.plain(context, slot, method, CommandKind::Plain, Command::Qos { prefetch_count, global })
            }
            Method::BasicRecover { requeue: true } => {
                self.plain(context, slot, method, CommandKind::Plain, Command::Recover)
            }
            Method::BasicRecoverAsync { requeue: true } => {
                self.plain(context, slot, method, CommandKind::Silent, Command::Recover)
            }
            Method::ConfirmSelect { .. } => {
                self.plain(context, slot, method, CommandKind::ConfirmSelect, Command::ConfirmSelect)
            }
            Method::TxSelect {} => self.plain(context, slot, method, CommandKind::Plain, Command::TxSelect),
            Method::TxCommit {} => self.plain(context, slot, method, CommandKind::Plain, Command::TxCommit),
            Method::TxRollback {} => {
                self.plain(context, slot, method, CommandKind::Plain, Command::TxRollback)
            }
            _ if has_names(&method) => Verdict::Named(slot, method),
            _ => Verdict::Fault(not_implemented(&method), method.id(), NONE),
        }
    }

    /// Handles acknowledgements of all kinds. They have no reply and no names.
    #[inline]
    fn settle<'a>(
        &mut self,
        context: &Context<'_>,
        slot: Slot,
        method: Method<'_>,
        delivery_tag: u64,
        multiple: bool,
        settlement: Settlement,
    ) -> Verdict<'a> {
        let command = Command::Settle { delivery_tag, multiple, settlement };
        self.plain(context, slot, method, CommandKind::Silent, command)
    }

    #[inline]
    fn plain<'a>(
        &mut self,
        context: &Context<'_>,
        slot: Slot,
        method: Method<'_>,
        kind: CommandKind,
        command: Command<'a>,
    ) -> Verdict<'a> {
        self.input.pending = Pending::on_channel(kind, method.id(), slot, no_wait(&method));
        Verdict::InputStep(self.ask(context, slot, command))
    }

    fn reply_now<'a>(&mut self, context: &mut Context<'_>, slot: Slot, reply: &Method<'_>) -> Verdict<'a> {
        let number = context.pools.channels[slot].number();
        self.push_reply(context, number, reply, 0);
        Verdict::Done
    }

    /// Makes the command for a method that [`has_names`].
    ///
    /// # Errors
    /// The method relies on the last declared queue, and there is none.
    pub(super) fn command<'a>(
        &mut self,
        context: &mut Context<'_>,
        names: &'a mut Names,
        slot: Slot,
        method: Method<'a>,
    ) -> Result<Command<'a>, Fault> {
        let kind = match method {
            Method::QueueDeclare { .. } => CommandKind::QueueDeclare,
            Method::QueuePurge { .. } | Method::QueueDelete { .. } => CommandKind::Count,
            Method::BasicConsume { .. } => CommandKind::Consume,
            Method::BasicCancel { .. } => CommandKind::Cancel,
            Method::BasicGet { .. } => CommandKind::Get,
            _ => CommandKind::Plain,
        };
        self.input.pending = Pending::on_channel(kind, method.id(), slot, no_wait(&method));
        if let Method::BasicCancel { consumer_tag, .. } = method {
            keep(&mut context.pools.cancelled_tag, consumer_tag);
        }
        let last_queue = &context.pools.channels[slot].last_queue;
        match method {
            Method::QueueDeclare { .. }
            | Method::QueueBind { .. }
            | Method::QueueUnbind { .. }
            | Method::QueuePurge { .. }
            | Method::QueueDelete { .. } => queue_command(last_queue, names, method),
            Method::BasicConsume { queue, consumer_tag: tag, no_ack, exclusive, arguments, .. } => {
                let queue = queue_or_last(queue, last_queue, &mut names.queue)?;
                Ok(Command::Consume { queue, tag, no_ack, exclusive, arguments: arguments.as_bytes() })
            }
            Method::BasicGet { queue, no_ack } => {
                let queue = queue_or_last(queue, last_queue, &mut names.queue)?;
                Ok(Command::Get { queue, no_ack })
            }
            Method::BasicCancel { consumer_tag: tag, .. } => Ok(Command::Cancel { tag }),
            _ => exchange_command(names, method),
        }
    }
}

fn queue_command<'a>(
    last_queue: &Name,
    names: &'a mut Names,
    method: Method<'a>,
) -> Result<Command<'a>, Fault> {
    Ok(match method {
        Method::QueueDeclare { queue, passive, durable, exclusive, auto_delete, arguments, .. } => {
            let queue = strip(queue, &mut names.queue);
            let arguments = arguments.as_bytes();
            Command::QueueDeclare { queue, passive, durable, exclusive, auto_delete, arguments }
        }
        Method::QueueBind { queue, exchange, routing_key, arguments, .. } => {
            let (queue, routing_key) = queue_and_key(queue, routing_key, last_queue, &mut names.queue)?;
            let exchange = strip(exchange, &mut names.exchange);
            Command::QueueBind { queue, exchange, routing_key, arguments: arguments.as_bytes() }
        }
        Method::QueueUnbind { queue, exchange, routing_key, arguments } => {
            let (queue, routing_key) = queue_and_key(queue, routing_key, last_queue, &mut names.queue)?;
            let exchange = strip(exchange, &mut names.exchange);
            Command::QueueUnbind { queue, exchange, routing_key, arguments: arguments.as_bytes() }
        }
        Method::QueueDelete { queue, if_unused, if_empty, .. } => {
            let queue = queue_or_last(queue, last_queue, &mut names.queue)?;
            Command::QueueDelete { queue, if_unused, if_empty }
        }
        Method::QueuePurge { queue, .. } => {
            let queue = queue_or_last(queue, last_queue, &mut names.queue)?;
            Command::QueuePurge { queue }
        }
        _ => return Err(not_implemented(&method)),
    })
}

fn exchange_command<'a>(names: &'a mut Names, method: Method<'a>) -> Result<Command<'a>, Fault> {
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
            Command::ExchangeDeclare { exchange, kind, passive, durable, auto_delete, internal, arguments }
        }
        Method::ExchangeDelete { exchange, if_unused, .. } => {
            Command::ExchangeDelete { exchange: strip(exchange, &mut names.exchange), if_unused }
        }
        Method::ExchangeBind { destination, source, routing_key, arguments, .. } => Command::ExchangeBind {
            destination: strip(destination, &mut names.queue),
            source: strip(source, &mut names.exchange),
            routing_key,
            arguments: arguments.as_bytes(),
        },
        Method::ExchangeUnbind { destination, source, routing_key, arguments, .. } => {
            Command::ExchangeUnbind {
                destination: strip(destination, &mut names.queue),
                source: strip(source, &mut names.exchange),
                routing_key,
                arguments: arguments.as_bytes(),
            }
        }
        _ => return Err(not_implemented(&method)),
    })
}

/// Returns whether the command for this method contains names.
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

fn queue_or_last<'a>(queue: &'a str, last_queue: &Name, room: &'a mut Name) -> Result<&'a str, Fault> {
    if !queue.is_empty() {
        return Ok(strip(queue, room));
    }
    if last_queue.is_empty() {
        return Err(Fault::new(ReplyCode::NotFound, format_args!("no previously declared queue")));
    }
    keep(room, last_queue);
    Ok(room)
}

/// Resolves names: an empty queue name means the last declared queue. If the key is empty as well, it is the
/// queue's name.
fn queue_and_key<'a>(
    queue: &'a str,
    routing_key: &'a str,
    last_queue: &Name,
    room: &'a mut Name,
) -> Result<(&'a str, &'a str), Fault> {
    let is_both = queue.is_empty() && routing_key.is_empty();
    let queue = queue_or_last(queue, last_queue, room)?;
    Ok((queue, if is_both { queue } else { routing_key }))
}

/// Returns the name without line breaks, as RabbitMQ keeps it.
fn strip<'a>(name: &'a str, room: &'a mut Name) -> &'a str {
    let is_line_end = |letter: char| matches!(letter, '\r' | '\n');
    if !name.contains(is_line_end) {
        return name;
    }
    room.clear();
    for piece in name.split(is_line_end) {
        // The piece is no longer than the name, which fits.
        let _ = room.push_str(piece);
    }
    room
}

fn keep(room: &mut Name, name: &str) {
    room.clear();
    // A name in a frame is no longer than a `Name`.
    let _ = room.push_str(name);
}

/// How a client logs in.
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

/// The kind of a command, which determines its reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CommandKind {
    Nothing,
    Login(Mechanism),
    OpenVhost,
    OpenChannel,
    /// Closed by the client.
    CloseChannel,
    /// Closed after an error, of which the client knows.
    Release,
    Publish,
    /// No reply, except for errors.
    Silent,
    /// The method's "ok" without arguments.
    Plain,
    ConfirmSelect,
    QueueDeclare,
    /// Purge and delete.
    Count,
    Consume,
    Cancel,
    Get,
}

/// The command that the broker is being asked. A connection has at most one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub(super) kind: CommandKind,
    /// Class and method, for the text of a close and for the "ok".
    pub(super) id: (u16, u16),
    pub(super) slot: Slot,
    pub(super) no_wait: bool,
}

impl Pending {
    pub(super) const NOTHING: Self = Self::on_connection(CommandKind::Nothing, (0, 0));

    pub(super) const fn on_connection(kind: CommandKind, id: (u16, u16)) -> Self {
        Self { kind, id, slot: NONE, no_wait: false }
    }

    pub(super) fn is_something(self) -> bool {
        self.kind != CommandKind::Nothing
    }

    pub(super) fn is_login(self, mechanism: Mechanism) -> bool {
        self.kind == CommandKind::Login(mechanism)
    }

    pub(super) const fn on_channel(kind: CommandKind, id: (u16, u16), slot: Slot, no_wait: bool) -> Self {
        Self { kind, id, slot, no_wait }
    }
}
