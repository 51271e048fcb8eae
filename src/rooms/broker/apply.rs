//! A command comes in: what it changes, and what it answers.
//!
//! Always true: the state is changed and the answer given at once; an error answers without waiting for
//! anything; a command that depends on who has what of a queue comes behind the deliveries that were possible
//! before it, so that commands mean the same whether they come one by one or many in one read.

use crate::command::{ChannelId, Command, ConnectionId, Outcome, ReplyOrder, VhostId};
use crate::error::{Fault, ReplyCode};
use crate::journal::{Batch, Journal};

use super::access::{Right, Thing};
use super::consume::ConsumeRequest;
use super::queue_declare::QueueDeclaration;
use super::topology::{BindingSpec, Destination, ExchangeDeclaration};
use super::{Broker, Context};

impl Broker {
    /// Applies one command and says where a reply to it stands among the connection's deliveries.
    #[inline]
    pub fn apply(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        channel: Option<ChannelId>,
        command: Command<'_>,
    ) -> (Outcome, ReplyOrder) {
        cx.awaited = Batch::NONE;
        let answers_at_once = matches!(command, Command::Cancel { .. } | Command::CloseChannel);
        let result = match channel {
            None => self.apply_to_connection(cx.journal, connection, command),
            Some(channel) => self.apply_to_channel(cx, connection, channel, command),
        };
        if self.jobs.take_due() {
            self.run_jobs(cx);
        }
        self.queues.charge_levels(cx.work);
        if answers_at_once || result.is_err() {
            cx.awaited = Batch::NONE;
        }
        let outcome = result.unwrap_or_else(Outcome::Fault);
        (outcome, self.consumers.reply_order(connection, channel))
    }

    /// Whether a turn would find something to do here without anything new from outside: jobs, deliveries
    /// that became possible, connections with something new to send.
    pub fn has_work(&self, journal: &Journal) -> bool {
        self.queues.gets.is_due()
            || !self.jobs.is_empty() && !journal.is_crowded()
            || self.queues.is_any_ready()
            || self.consumers.has_noted()
            || self.consumers.has_share_news()
            || self.quota.has_to_tell()
    }

    fn apply_to_connection(
        &mut self,
        journal: &Journal,
        connection: ConnectionId,
        command: Command<'_>,
    ) -> Result<Outcome, Fault> {
        match command {
            Command::Login { user, password, from_loopback } => {
                self.login(journal, connection, user, password.0, from_loopback)
            }
            Command::LoginExternal { user, from_loopback } => {
                self.login_external(journal, connection, user, from_loopback)
            }
            Command::OpenVhost { vhost } => self.open_vhost(connection, vhost),
            Command::OpenChannel { number } => self.open_channel(connection, number),
            _ => Err(out_of_place()),
        }
    }

    fn apply_to_channel(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        channel: ChannelId,
        command: Command<'_>,
    ) -> Result<Outcome, Fault> {
        match command {
            Command::Publish { message, mandatory } => self.publish(cx, channel, message, mandatory),
            Command::Settle { delivery_tag, multiple, settlement } => {
                self.settle(cx, channel, delivery_tag, multiple, settlement)
            }
            Command::CloseChannel => {
                self.close_channel(cx, connection, channel);
                Ok(Outcome::Done)
            }
            Command::Recover => {
                self.catch_up_channel(cx, channel);
                self.recover(channel);
                Ok(Outcome::Done)
            }
            Command::Qos { prefetch_count, global } => {
                if global {
                    self.catch_up_channel(cx, channel);
                }
                self.set_prefetch(cx, channel, prefetch_count, global);
                Ok(Outcome::Done)
            }
            Command::ConfirmSelect => self.select_confirms(channel),
            Command::TxSelect => self.select_transactions(channel),
            Command::TxCommit => self.commit(cx, channel),
            Command::TxRollback => self.rollback(cx.messages, channel),
            Command::Cancel { tag } => {
                self.cancel(cx, channel, tag);
                self.jobs.note_due();
                Ok(Outcome::Done)
            }
            _ => {
                cx.declarer = Some(self.quota.declarer(connection));
                let result = self.apply_definition(cx, connection, channel, command);
                cx.declarer = None;
                result
            }
        }
    }

    /// Lets the queue that a command names deliver what it could before.
    fn catch_up_for(&mut self, cx: &mut Context<'_>, vhost: VhostId, command: &Command<'_>) {
        if let Command::QueueDeclare { queue, .. }
        | Command::QueuePurge { queue }
        | Command::QueueDelete { queue, .. }
        | Command::Consume { queue, .. }
        | Command::Get { queue, .. } = command
            && self.queues.is_any_ready()
            && let Some(queue) = self.queues.find_queue(vhost, queue)
        {
            self.catch_up(cx, queue);
        }
    }

    /// What names queues or exchanges.
    fn apply_definition(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        channel: ChannelId,
        command: Command<'_>,
    ) -> Result<Outcome, Fault> {
        let vhost = self.consumers.channel(channel).vhost;
        self.catch_up_for(cx, vhost, &command);
        match command {
            Command::ExchangeDeclare { exchange, passive: true, .. } => {
                self.check_exchange_exists(cx, vhost, exchange)
            }
            Command::ExchangeDeclare {
                exchange, kind, durable, auto_delete, internal, arguments, ..
            } => {
                let declaration =
                    ExchangeDeclaration { exchange, kind, durable, auto_delete, internal, arguments };
                self.declare_exchange(cx, connection, vhost, &declaration)
            }
            Command::ExchangeDelete { exchange, if_unused } => {
                self.delete_exchange(cx, connection, vhost, exchange, if_unused)
            }
            Command::ExchangeBind { destination, source, routing_key, arguments } => {
                let spec = BindingSpec { source, routing_key, arguments };
                self.check_bind(cx.work, connection, vhost, Thing::Exchange(destination), &spec)?;
                let source_id = self.topology.require_exchange(&self.access, vhost, source)?;
                let destination = Destination::Exchange(self.topology.require_exchange(
                    &self.access,
                    vhost,
                    destination,
                )?);
                self.bind(cx, &spec.between(source_id, destination))
            }
            Command::ExchangeUnbind { destination, source, routing_key, arguments } => {
                let spec = BindingSpec { source, routing_key, arguments };
                self.check_bind(cx.work, connection, vhost, Thing::Exchange(destination), &spec)?;
                self.unbind_exchange(cx, vhost, destination, &spec)?;
                self.jobs.note_due();
                Ok(Outcome::Done)
            }
            Command::QueueDeclare { queue, passive: true, .. } => {
                self.check_queue_exists(cx, connection, vhost, queue)
            }
            Command::QueueDeclare { queue, durable, exclusive, auto_delete, arguments, .. } => {
                let declaration = QueueDeclaration { queue, durable, exclusive, auto_delete, arguments };
                self.declare_queue(cx, connection, vhost, &declaration)
            }
            Command::QueueBind { queue, exchange, routing_key, arguments } => {
                let spec = BindingSpec { source: exchange, routing_key, arguments };
                self.bind_queue(cx, connection, vhost, queue, &spec)
            }
            Command::QueueUnbind { queue, exchange, routing_key, arguments } => {
                let spec = BindingSpec { source: exchange, routing_key, arguments };
                let outcome = self.unbind_queue(cx, connection, vhost, queue, &spec);
                self.jobs.note_due();
                outcome
            }
            Command::QueuePurge { queue } => self.purge_queue(cx, connection, vhost, queue),
            Command::QueueDelete { queue, if_unused, if_empty } => {
                self.delete_queue_by_name(cx, connection, vhost, queue, (if_unused, if_empty))
            }
            Command::Consume { queue, tag, no_ack, exclusive, arguments } => {
                let request = ConsumeRequest { queue, tag, no_ack, exclusive, arguments };
                self.consume(cx, connection, channel, &request)
            }
            Command::Get { queue, no_ack } => {
                self.check(cx.work, connection, vhost, Right::Read, Thing::Queue(queue))?;
                let queue = self.require_queue(connection, vhost, queue)?;
                self.get(cx, channel, queue, no_ack)
            }
            _ => Err(out_of_place()),
        }
    }
}

/// A command in a place where the session never sends it.
fn out_of_place() -> Fault {
    Fault::connection(ReplyCode::CommandInvalid, format_args!("unexpected method"))
}
