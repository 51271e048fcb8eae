//! What an operator changes about queues, exchanges and bindings: nobody's permissions are asked, and no
//! connection waits for the work.
//!
//! Always true: what was changed is written down like any client's change; the batch to wait for is
//! [`Broker::awaited`] afterwards, as after [`Broker::apply`].

use crate::command::{QueueId, VhostId};
use crate::error::{Fault, ReplyCode};
use crate::journal::DestinationName;

use super::faults::check_deletable;
use super::job::Job;
use super::queue_declare::QueueDeclaration;
use super::topology::{BindingSpec, Destination, ExchangeDeclaration, refuse_default};
use super::{Broker, Context};

impl Broker {
    /// Empties a queue; returns how many messages were ready.
    ///
    /// # Errors
    /// There is no such queue.
    pub fn operator_purge(&mut self, cx: &mut Context<'_>, vhost: &str, queue: &str) -> Result<u32, Fault> {
        let (queue, _) = self.operator_queue(vhost, queue)?;
        let (count, taken) = self.queues.purge(queue);
        for (queue, parts) in taken {
            self.jobs.begin(Job::Purge { queue, parts });
        }
        self.run_jobs(cx);
        let batch = cx.journal.await_settles();
        cx.await_batch(batch);
        Ok(count)
    }

    /// Deletes a queue, exclusive ones included; returns how many messages were ready.
    ///
    /// # Errors
    /// There is no such queue, or it is used or not empty although it must not be.
    pub fn operator_delete_queue(
        &mut self,
        cx: &mut Context<'_>,
        vhost: &str,
        name: &str,
        (if_unused, if_empty): (bool, bool),
    ) -> Result<u32, Fault> {
        if let Some(vhost) = self.access.find_vhost(vhost)
            && self.queues.find_queue(vhost, name).is_none()
            && self.delete_left_out(cx, vhost, DestinationName::Queue(name), if_unused || if_empty)?
        {
            return Ok(0);
        }
        let (queue, vhost) = self.operator_queue(vhost, name)?;
        let record = self.queues.at(queue);
        let count = self.queues.ready_in(queue);
        let problem = match () {
            () if if_unused && !record.audience.is_empty() => "in use",
            () if if_empty && count > 0 => "not empty",
            () => {
                check_deletable(cx.journal, record.logged.is_on())?;
                self.retire_queue(cx, queue);
                self.jobs.begin(Job::Queue(queue));
                self.run_jobs(cx);
                return Ok(count);
            }
        };
        let words = self.queue_in_words(vhost, name);
        Err(Fault::new(ReplyCode::PreconditionFailed, format_args!("{words} {problem}")))
    }

    fn operator_queue(&self, vhost: &str, name: &str) -> Result<(QueueId, VhostId), Fault> {
        let not_found =
            || Fault::new(ReplyCode::NotFound, format_args!("no queue '{name}' in vhost '{vhost}'"));
        let vhost = self.access.find_vhost(vhost).ok_or_else(not_found)?;
        let queue = self.queues.find_queue(vhost, name).filter(|queue| !self.queues.at(*queue).hidden);
        Ok((queue.ok_or_else(not_found)?, vhost))
    }
}

/// What became of something that was declared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Declared {
    /// It is there as it was asked for.
    Done,
    /// One of that name is there with other properties, and stays.
    Differs,
}

/// A declaration of what is there already: with these properties, or with others.
fn compared(outcome: Result<impl Sized, Fault>) -> Result<Declared, Fault> {
    match outcome {
        Ok(_) => Ok(Declared::Done),
        Err(fault) if fault.code == ReplyCode::PreconditionFailed => Ok(Declared::Differs),
        Err(fault) => Err(fault),
    }
}

impl Broker {
    /// Declares an exchange by name and type: durable, auto-delete, internal.
    ///
    /// # Errors
    /// It cannot be, or there is no room.
    pub fn operator_declare_exchange(
        &mut self,
        cx: &mut Context<'_>,
        vhost: &str,
        (exchange, kind): (&str, &str),
        (durable, auto_delete, internal): (bool, bool, bool),
        arguments: &[u8],
    ) -> Result<Declared, Fault> {
        let vhost = self.operator_vhost(vhost)?;
        let declaration = ExchangeDeclaration { exchange, kind, durable, auto_delete, internal, arguments };
        declaration.check_askable()?;
        match self.topology.find_exchange(vhost, exchange) {
            Some(found) => compared(self.topology.compare_exchange(cx, &self.access, found, &declaration)),
            None => self.create_exchange(cx, vhost, &declaration).map(|_| Declared::Done),
        }
    }

    /// Declares a queue: durable, auto-delete.
    ///
    /// # Errors
    /// It cannot be, or there is no room.
    pub fn operator_declare_queue(
        &mut self,
        cx: &mut Context<'_>,
        vhost: &str,
        queue: &str,
        (durable, auto_delete): (bool, bool),
        arguments: &[u8],
    ) -> Result<Declared, Fault> {
        let vhost = self.operator_vhost(vhost)?;
        let declaration = QueueDeclaration { queue, durable, exclusive: false, auto_delete, arguments };
        match self.queues.find_queue(vhost, queue) {
            Some(found) if self.queues.at(found).exclusive_owner.is_some() => Ok(Declared::Differs),
            Some(found) => compared(self.compare_properties(cx, vhost, found, &declaration)),
            None => self.create_checked(cx, None, vhost, &declaration).map(|_| Declared::Done),
        }
    }

    /// Binds a queue, or an exchange, to an exchange with a key.
    ///
    /// # Errors
    /// An end is missing, it cannot be, or there is no room.
    pub fn operator_bind(
        &mut self,
        cx: &mut Context<'_>,
        vhost: &str,
        (source, routing_key): (&str, &str),
        (destination, is_exchange): (&str, bool),
        arguments: &[u8],
    ) -> Result<Declared, Fault> {
        let id = self.operator_vhost(vhost)?;
        // Every queue is bound to it already, and nothing else can be.
        refuse_default(source)?;
        let from = self.topology.require_exchange(&self.access, id, source)?;
        let to = if is_exchange {
            refuse_default(destination)?;
            Destination::Exchange(self.topology.require_exchange(&self.access, id, destination)?)
        } else {
            Destination::Queue(self.operator_queue(vhost, destination)?.0)
        };
        let spec = BindingSpec { source, routing_key, arguments };
        self.bind(cx, &spec.between(from, to)).map(|_| Declared::Done)
    }

    /// Takes a binding of a queue without arguments away, if it is there.
    ///
    /// # Errors
    /// The log takes nothing now.
    pub fn operator_unbind(
        &mut self,
        cx: &mut Context<'_>,
        vhost: &str,
        (source, routing_key): (&str, &str),
        queue: &str,
    ) -> Result<Declared, Fault> {
        let vhost = self.operator_vhost(vhost)?;
        let spec = BindingSpec { source, routing_key, arguments: &[] };
        if let Some(queue) = self.queues.find_queue(vhost, queue)
            && let Some(binding) = self.topology.find_binding(vhost, &spec, Destination::Queue(queue))
        {
            self.unbind(cx, binding)?;
        }
        Ok(Declared::Done)
    }

    fn operator_vhost(&self, name: &str) -> Result<VhostId, Fault> {
        self.access
            .find_vhost(name)
            .ok_or_else(|| Fault::new(ReplyCode::NotFound, format_args!("no virtual host '{name}'")))
    }
}
