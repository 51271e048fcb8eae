//! Virtual hosts: made, opened, limited, deleted.
//!
//! Always true: what has a name lives in one virtual host, and its id stays with it until the last queue,
//! exchange and connection of it is gone; a deleted one is found by nobody from the first moment on, and its
//! name can be given again only when all of that is cleared away, so the log never takes the new for the old.

use crate::command::{ConnectionId, ExchangeId, Outcome, QueueId, VhostId};
use crate::error::{Fault, ReplyCode};

use super::records::{Vhost, VhostLimits};
use super::state::{PREDECLARED, vhost_at};
use crate::broker::exchanges::ExchangeDeclaration;
use crate::broker::job::{Job, Sweep, spend};
use crate::broker::queue::Queue;
use crate::broker::{Broker, Context};

impl Broker {
    pub(in super::super) fn vhost_name(&self, vhost: VhostId) -> &str {
        &self.access.vhosts[vhost.index()].name
    }

    /// The same of one that may be gone, which has none.
    pub(in super::super) fn vhost_name_at(&self, vhost: VhostId) -> &str {
        self.access.vhosts.get(vhost.index()).map_or("", |vhost| &vhost.name)
    }

    /// The virtual host of this name that is not being deleted.
    pub(in super::super) fn find_vhost(&self, name: &str) -> Option<VhostId> {
        let mut vhosts = self.access.vhosts.iter();
        vhosts.find(|(_, vhost)| *vhost.name == *name && !vhost.dying).map(|(index, _)| vhost_at(index))
    }

    /// Whether copies are made of what is published and delivered in it.
    pub(in super::super) fn is_traced(&self, vhost: VhostId) -> bool {
        self.access.vhosts[vhost.index()].is_traced
    }

    pub(in super::super) fn set_traced(&mut self, vhost: VhostId, is_traced: bool) {
        self.access.vhosts[vhost.index()].is_traced = is_traced;
    }

    /// The same of any virtual host.
    pub(in super::super) fn is_any_traced(&self) -> bool {
        self.access.vhosts.iter().any(|(_, vhost)| vhost.is_traced)
    }

    pub(super) fn is_being_deleted(&self, name: &str) -> bool {
        self.access.vhosts.iter().any(|(_, vhost)| *vhost.name == *name && vhost.dying)
    }

    /// Makes one with what each begins with.
    pub(super) fn add_vhost(&mut self, name: &str) -> Result<VhostId, Fault> {
        if self.access.vhosts.is_full() {
            return Err(self.out_of("vhosts_max"));
        }
        let record = Vhost {
            name: name.into(),
            limits: VhostLimits::default(),
            queues: 0,
            held: 0,
            is_traced: false,
            dying: false,
            swept: false,
        };
        let index = self.access.vhosts.insert(record).map_err(|_| self.out_of("vhosts_max"))?;
        let vhost = vhost_at(index);
        self.quota.vhost_came(vhost);
        self.note_tenants();
        for (exchange, kind, internal) in PREDECLARED {
            let declaration = ExchangeDeclaration {
                exchange,
                kind: kind.name(),
                durable: true,
                auto_delete: false,
                internal,
                arguments: &[],
            };
            self.insert_exchange(vhost, kind, &declaration, (0, None, None));
        }
        Ok(vhost)
    }

    /// At a start: one that has nothing but the predeclared exchanges goes at once.
    pub(super) fn drop_empty_vhost(&mut self, cx: &mut Context<'_>, vhost: VhostId) {
        for (name, ..) in PREDECLARED {
            if let Some(exchange) = self.find_exchange(vhost, name) {
                self.retire_exchange(cx, exchange);
                self.free_exchange(exchange);
            }
        }
        self.remove_vhost(vhost);
    }

    /// Nothing names it any more.
    fn remove_vhost(&mut self, vhost: VhostId) {
        self.access.vhosts.remove(vhost.index());
        self.quota.vhost_gone(vhost);
        self.note_tenants();
    }

    /// connection.open.
    pub(in super::super) fn open_vhost(
        &mut self,
        connection: ConnectionId,
        name: &str,
    ) -> Result<Outcome, Fault> {
        let not_allowed = |text: core::fmt::Arguments<'_>| Fault::connection(ReplyCode::NotAllowed, text);
        let Some(vhost) = self.find_vhost(name) else {
            return Err(not_allowed(format_args!("vhost {name} not found")));
        };
        let record = &self.connections[connection.index()];
        let refused = format!("access to vhost '{name}' refused for user '{}'", record.user);
        let host = &self.access.vhosts[vhost.index()];
        let connections = self.quota.connections_in(vhost);
        if let Some(limit) = host.limits.connections_max.filter(|limit| connections >= *limit) {
            return Err(not_allowed(format_args!("{refused}: connection limit ({limit}) is reached")));
        }
        self.check_user_connections(connection)?;
        let record = &self.connections[connection.index()];
        if record.user_index.and_then(|user| self.find_permission(user, vhost)).is_none() {
            return Err(not_allowed(format_args!("{refused}")));
        }
        self.quota.open_vhost(connection, vhost, self.connections.room())?;
        self.hold_vhost(vhost);
        self.connections[connection.index()].vhost = Some(vhost);
        Ok(Outcome::Done)
    }

    /// Whether one more queue may be declared.
    pub(in super::super) fn check_queue_limit(&self, vhost: VhostId, queue: &str) -> Result<(), Fault> {
        let host = &self.access.vhosts[vhost.index()];
        match host.limits.queues_max.filter(|limit| host.queues >= *limit) {
            None => Ok(()),
            Some(limit) => Err(Fault::new(
                ReplyCode::PreconditionFailed,
                format_args!(
                    "cannot declare queue '{queue}': queue limit in vhost '{}' ({limit}) is reached",
                    host.name
                ),
            )),
        }
    }

    /// Nothing new begins to exist in a virtual host that is being deleted.
    pub(in super::super) fn check_vhost_alive(&self, vhost: VhostId) -> Result<(), Fault> {
        let host = &self.access.vhosts[vhost.index()];
        if host.dying {
            let text = format_args!("vhost {} not found", host.name);
            return Err(Fault::connection(ReplyCode::NotAllowed, text));
        }
        Ok(())
    }

    /// A queue can be found from now on, or no more.
    pub(in super::super) fn count_queue(&mut self, vhost: VhostId, exists: bool) {
        let host = &mut self.access.vhosts[vhost.index()];
        host.queues = if exists { host.queues + 1 } else { host.queues - 1 };
    }

    /// A record names this virtual host.
    pub(in super::super) fn hold_vhost(&mut self, vhost: VhostId) {
        self.access.vhosts[vhost.index()].held += 1;
    }

    /// A record that named it is gone.
    pub(in super::super) fn let_go_of_vhost(&mut self, vhost: VhostId) {
        self.access.vhosts[vhost.index()].held -= 1;
        self.free_vhost_if_done(vhost);
    }

    fn free_vhost_if_done(&mut self, vhost: VhostId) {
        let host = &self.access.vhosts[vhost.index()];
        if host.swept && host.held == 0 {
            self.remove_vhost(vhost);
        }
    }

    /// Takes the name away; a job clears the rest.
    pub(super) fn retire_vhost(&mut self, vhost: VhostId) {
        self.access.vhosts[vhost.index()].dying = true;
        self.routing.revise();
        self.queue_job(Job::Vhost(Sweep { vhost, queue: 0, exchange: 0 }));
    }

    /// Deletes what is left of a virtual host, as far as allowed; says whether that is all.
    pub(in super::super) fn run_vhost(
        &mut self,
        cx: &mut Context<'_>,
        sweep: &mut Sweep,
        left: &mut u32,
    ) -> bool {
        while sweep.queue < self.queues.places() {
            if cx.journal.is_crowded() || !spend(left) {
                return false;
            }
            let queue = self.queues.get(sweep.queue);
            // What is a part of something else goes with that.
            let is_part = |queue: &Queue| queue.is_level() || queue.sleeps_for.is_some();
            let is_swept = |queue: &Queue| queue.vhost == sweep.vhost && !queue.dying && !is_part(queue);
            if queue.is_some_and(is_swept) {
                let queue = QueueId::from_index(sweep.queue);
                self.retire_queue(cx, queue);
                self.queue_job(Job::Queue(queue));
            }
            sweep.queue += 1;
        }
        while sweep.exchange < self.routing.exchange_places() {
            if cx.journal.is_crowded() || !spend(left) {
                return false;
            }
            let exchange = self.routing.exchange_at(sweep.exchange);
            if exchange.is_some_and(|exchange| exchange.vhost == sweep.vhost) {
                let exchange = ExchangeId::from_index(sweep.exchange);
                self.retire_exchange(cx, exchange);
                self.queue_job(Job::Exchange(exchange));
            }
            sweep.exchange += 1;
        }
        self.access.vhosts[sweep.vhost.index()].swept = true;
        self.free_vhost_if_done(sweep.vhost);
        true
    }
}
