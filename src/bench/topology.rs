//! What a run needs on the broker: its queues, its exchange, its bindings.
//!
//! Always true: everything declared here has a name of this run's own and is deleted at its end; what is
//! left when the bench is killed goes with its last consumer.

use super::error::BenchError;
use super::link::Link;
use super::options::Options;
use super::plan::Plan;
use crate::wire::{Method, Table};

/// The channel everything is declared on.
const CHANNEL: u16 = 1;

/// Declares everything.
pub(super) fn declare(link: &mut Link, options: &Options, plan: &Plan) -> Result<(), BenchError> {
    link.open_channel(CHANNEL)?;
    if options.exchange.is_some() {
        declare_exchange(link, options, plan)?;
    }
    for queue in 0..options.queues {
        declare_queue(link, options, &plan.queue(queue))?;
    }
    if options.exchange.is_none() {
        return Ok(());
    }
    let first = plan.queue(0);
    for number in 0..options.bindings {
        link.send(CHANNEL, &bind(&first, plan.exchange(), &plan.other_key(number), true))?;
    }
    for queue in 0..options.queues {
        let name = plan.queue(queue);
        let key = plan.binding_key(queue);
        link.call(CHANNEL, &bind(&name, plan.exchange(), &key, false), "queue.bind-ok", |method| {
            matches!(method, Method::QueueBindOk {})
        })?;
    }
    Ok(())
}

fn declare_exchange(link: &mut Link, options: &Options, plan: &Plan) -> Result<(), BenchError> {
    let Some(kind) = options.exchange else { return Ok(()) };
    let declare = Method::ExchangeDeclare {
        exchange: plan.exchange(),
        kind: kind.name(),
        passive: false,
        durable: options.persistent,
        auto_delete: true,
        internal: false,
        no_wait: false,
        arguments: Table::EMPTY,
    };
    link.call(CHANNEL, &declare, "exchange.declare-ok", |method| {
        matches!(method, Method::ExchangeDeclareOk {})
    })
}

fn declare_queue(link: &mut Link, options: &Options, name: &str) -> Result<(), BenchError> {
    let declare = Method::QueueDeclare {
        queue: name,
        passive: false,
        durable: options.persistent,
        exclusive: false,
        auto_delete: true,
        no_wait: false,
        arguments: Table::EMPTY,
    };
    link.call(CHANNEL, &declare, "queue.declare-ok", |method| matches!(method, Method::QueueDeclareOk { .. }))
}

const fn bind<'a>(queue: &'a str, exchange: &'a str, routing_key: &'a str, no_wait: bool) -> Method<'a> {
    Method::QueueBind { queue, exchange, routing_key, no_wait, arguments: Table::EMPTY }
}

/// Deletes everything; what is gone already is no trouble.
pub(super) fn delete(link: &mut Link, options: &Options, plan: &Plan) -> Result<(), BenchError> {
    for queue in 0..options.queues {
        let name = plan.queue(queue);
        let delete = Method::QueueDelete { queue: &name, if_unused: false, if_empty: false, no_wait: false };
        link.call(CHANNEL, &delete, "queue.delete-ok", |method| {
            matches!(method, Method::QueueDeleteOk { .. })
        })?;
    }
    if options.exchange.is_none() {
        return Ok(());
    }
    let delete = Method::ExchangeDelete { exchange: plan.exchange(), if_unused: false, no_wait: false };
    link.call(CHANNEL, &delete, "exchange.delete-ok", |method| matches!(method, Method::ExchangeDeleteOk {}))
}
