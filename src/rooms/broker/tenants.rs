//! Users and virtual hosts come and go, with all that hangs on them.
//!
//! ```text
//! delete a virtual host: its name ─→ permissions, policies, parameters ─→ its connections close ─→ a job: queues, exchanges
//! delete a user: its name ─→ permissions ─→ its connections close, and may do nothing meanwhile
//! ```
//!
//! Always true: whoever shares the pools knows of a user or a virtual host as long as it exists, and no longer.

use crate::command::{ConnectionId, ExchangeId, Outcome, QueueId, VhostId};
use crate::error::Fault;
use crate::journal::{Batch, Definition, Journal};
use crate::password::{PasswordCheck, PasswordHash};

use super::access::{
    Access, FIRST_VHOST, Identity, Load, Login, OperatorFault, PREDECLARED, Right, Thing, VhostLimits,
    check_name,
};
use super::faults::{check_changeable, check_room};
use super::job::{Job, Sweep, spend};
use super::queues::Queue;
use super::restored::Restored;
use super::topology::{ExchangeDeclaration, NewExchange};
use super::work::Work;
use super::{Broker, Context};

impl Broker {
    /// Users, virtual hosts and permissions.
    pub const fn access(&self) -> &Access {
        &self.access
    }

    /// What an operator changes about them on which nothing else hangs.
    pub const fn access_mut(&mut self) -> &mut Access {
        &mut self.access
    }

    /// What a new store begins with: `/`, and guest, who may do everything there.
    pub(super) fn begin_access(&mut self) -> Result<(), Fault> {
        self.add_vhost(FIRST_VHOST)?;
        self.access.begin_guest().map_err(|fault| match fault {
            OperatorFault::NoRoom(key) => super::faults::out_of(key),
            other => unreachable!("guest can be: {other}"),
        })?;
        self.note_tenants();
        Ok(())
    }

    /// A virtual host or a user has come or gone: the pools are shared anew, and whoever waits for a share asks again.
    fn note_tenants(&mut self) {
        self.quota.share_among(self.access.vhost_ids(), self.access.lives());
        self.consumers.note_settled();
    }

    // ---- as whom a connection acts

    /// SASL credentials of a user and its password.
    pub(super) fn login(
        &mut self,
        journal: &Journal,
        connection: ConnectionId,
        user: &str,
        password: &[u8],
        from_loopback: bool,
    ) -> Result<Outcome, Fault> {
        match self.access.login(journal, user, password, from_loopback)? {
            Login::Admitted(identity) => Ok(self.admit(connection, identity)),
            Login::Check(check) => Ok(Outcome::Check(check)),
        }
    }

    /// What came of the check that a login was answered with.
    pub fn checked(
        &mut self,
        journal: &Journal,
        connection: ConnectionId,
        check: &PasswordCheck,
        is_right: bool,
    ) -> Outcome {
        let admitted = self.access.admit_checked(journal, check, is_right);
        admitted.map_or_else(Outcome::Fault, |identity| self.admit(connection, identity))
    }

    /// A user whom something else than a password vouches for: a client certificate.
    pub(super) fn login_external(
        &mut self,
        journal: &Journal,
        connection: ConnectionId,
        user: &str,
        from_loopback: bool,
    ) -> Result<Outcome, Fault> {
        let identity = self.access.login_external(journal, user, from_loopback)?;
        Ok(self.admit(connection, identity))
    }

    fn admit(&mut self, connection: ConnectionId, identity: Identity) -> Outcome {
        self.quota.logged_in(connection, identity.user());
        self.consumers.connection_mut(connection).identity = identity;
        Outcome::Done
    }

    /// connection.open.
    pub(super) fn open_vhost(&mut self, connection: ConnectionId, name: &str) -> Result<Outcome, Fault> {
        let who = &self.consumers.connection(connection).identity;
        let connections_in = |vhost| self.quota.connections_in(vhost);
        let vhost = self.access.check_open(who, name, connections_in, self.load_of(who))?;
        self.quota.open_vhost(connection, vhost, self.consumers.connections_fill().room())?;
        self.access.hold_vhost(vhost);
        self.consumers.connection_mut(connection).vhost = Some(vhost);
        Ok(Outcome::Done)
    }

    /// What the user of a connection has.
    pub(super) fn load_of(&self, who: &Identity) -> Load {
        let (connections, channels) = who.user().map_or((0, 0), |user| self.quota.of_user(user));
        Load { connections, channels }
    }

    /// Whether the user of a connection may do this.
    pub(super) fn check(
        &self,
        work: &mut Work,
        connection: ConnectionId,
        vhost: VhostId,
        right: Right,
        thing: Thing<'_>,
    ) -> Result<(), Fault> {
        self.access.check(work, &self.consumers.connection(connection).identity, vhost, right, thing)
    }

    // ---- virtual hosts

    /// Makes a virtual host with the exchanges that each begins with.
    fn add_vhost(&mut self, name: &str) -> Result<VhostId, Fault> {
        let vhost = self.access.add_vhost(name)?;
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
            self.access.hold_vhost(vhost);
            let new = NewExchange { vhost, declaration, version: 0, declarer: None, sleepers: None };
            self.topology.insert_exchange(&new);
        }
        Ok(vhost)
    }

    /// At a start: a virtual host that has nothing but the predeclared exchanges goes at once.
    fn drop_empty_vhost(&mut self, cx: &mut Context<'_>, vhost: VhostId) {
        for (name, ..) in PREDECLARED {
            if let Some(exchange) = self.topology.find_exchange(vhost, name) {
                self.retire_exchange(cx, exchange);
                self.free_exchange(exchange);
            }
        }
        self.remove_vhost(vhost);
    }

    /// Nothing names it any more.
    fn remove_vhost(&mut self, vhost: VhostId) {
        self.access.remove_vhost(vhost);
        self.note_tenants();
    }

    /// A record that named a virtual host is gone.
    pub(super) fn release_vhost(&mut self, vhost: VhostId) {
        self.access.release_vhost(vhost);
        self.free_vhost_if_done(vhost);
    }

    fn free_vhost_if_done(&mut self, vhost: VhostId) {
        if self.access.is_vhost_done(vhost) {
            self.remove_vhost(vhost);
        }
    }

    /// Makes a virtual host, unless it is there. It begins with the predeclared exchanges and without limits.
    ///
    /// # Errors
    /// The name cannot be, or there is no room.
    pub fn put_vhost(&mut self, journal: &mut Journal, name: &str) -> Result<Batch, OperatorFault> {
        check_name("virtual host", name)?;
        if self.access.find_vhost(name).is_some() {
            return Ok(journal.await_facts());
        }
        if self.access.is_being_deleted(name) {
            return Err(OperatorFault::BeingDeleted(name.into()));
        }
        check_changeable(journal)?;
        check_room(journal)?;
        let vhost = self.add_vhost(name).map_err(|fault| OperatorFault::Store(fault.text.into()))?;
        Ok(self.access.append_vhost(journal, vhost, true))
    }

    /// Deletes a virtual host with everything in it. Its name is gone at once; the rest goes step by step.
    ///
    /// # Errors
    /// There is none, or the store cannot be written.
    pub fn delete_vhost(&mut self, cx: &mut Context<'_>, name: &str) -> Result<Batch, OperatorFault> {
        let vhost = self.access.require_vhost(name)?;
        check_changeable(cx.journal)?;
        self.access.append_vhost(cx.journal, vhost, false);
        self.access.drop_permissions_for(cx.journal, vhost);
        self.drop_policies_of(cx.journal, vhost, name);
        self.parameters.drop_of_vhost(cx.journal, vhost, name);
        self.consumers
            .force_close_all(&format!("vhost '{name}' is deleted"), |record| record.vhost == Some(vhost));
        self.access.retire_vhost(vhost);
        self.topology.revise();
        self.jobs.begin(Job::Vhost(Sweep { vhost, queue: 0, exchange: 0 }));
        self.delete_orphans_in(cx, name);
        Ok(cx.journal.await_facts())
    }

    /// Deletes what is left of a virtual host, as far as allowed; says whether that is all.
    pub(super) fn run_vhost(&mut self, cx: &mut Context<'_>, sweep: &mut Sweep, left: &mut u32) -> bool {
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
                self.jobs.begin(Job::Queue(queue));
            }
            sweep.queue += 1;
        }
        while sweep.exchange < self.topology.exchange_places() {
            if cx.journal.is_crowded() || !spend(left) {
                return false;
            }
            let exchange = self.topology.exchange_at(sweep.exchange);
            if exchange.is_some_and(|exchange| exchange.vhost == sweep.vhost) {
                let exchange = ExchangeId::from_index(sweep.exchange);
                self.retire_exchange(cx, exchange);
                self.jobs.begin(Job::Exchange(exchange));
            }
            sweep.exchange += 1;
        }
        self.access.note_swept(sweep.vhost);
        self.free_vhost_if_done(sweep.vhost);
        true
    }

    // ---- users

    /// Makes a user, or gives one another password and other tags (words with commas between them).
    ///
    /// # Errors
    /// The name or the tags cannot be, or there is no room.
    pub fn put_user(
        &mut self,
        journal: &mut Journal,
        name: &str,
        hash: PasswordHash,
        tags: &str,
    ) -> Result<Batch, OperatorFault> {
        let batch = self.access.put_user(journal, name, hash, tags)?;
        self.note_tenants();
        Ok(batch)
    }

    /// Deletes a user with its permissions, and closes its connections.
    ///
    /// # Errors
    /// There is none, or the store cannot be written.
    pub fn delete_user(&mut self, journal: &mut Journal, name: &str) -> Result<Batch, OperatorFault> {
        let user = self.access.delete_user(journal, name)?;
        let reason = format!("user '{name}' is deleted");
        self.consumers.force_close_all(&reason, |record| record.identity.user() == Some(user));
        self.consumers.forget_user(user);
        self.note_tenants();
        Ok(journal.await_facts())
    }

    // ---- at a start

    /// A new store begins with this user, who may do everything in `/`; or with none.
    pub fn begin_users(&mut self, first: Option<(&str, PasswordHash)>) {
        self.access.begin_users(first);
        self.note_tenants();
    }

    /// The store cannot vouch for who there is: nobody logs in until somebody confirms that. `unreadable` are
    /// keys of definitions that it has and cannot read.
    pub fn doubt_access(&mut self, why: &'static str, unreadable: Vec<Box<[u8]>>) {
        self.access.doubt_users(why, unreadable);
        self.note_tenants();
    }

    /// Puts back what the log says of access; in the order of the keys.
    pub(super) fn restore_access(&mut self, cx: &mut Context<'_>, definition: &Definition<'_>) -> Restored {
        match *definition {
            Definition::AccessWritten => {
                self.forget_first_tenants(cx);
                Restored::Exists(None)
            }
            Definition::Vhost { name, queues_max, connections_max } => {
                let found = self.access.find_vhost(name).or_else(|| self.add_vhost(name).ok());
                let Some(vhost) = found else { return self.access.no_room_at_start() };
                self.access.limit_vhost(vhost, VhostLimits { queues_max, connections_max });
                Restored::Exists(None)
            }
            Definition::User { .. } => {
                let restored = self.access.restore(definition);
                self.note_tenants();
                restored
            }
            _ => self.access.restore(definition),
        }
    }

    /// The log says who there is: what a new store begins with is not assumed.
    fn forget_first_tenants(&mut self, cx: &mut Context<'_>) {
        if !self.access.forget_first_users() {
            return;
        }
        let vhosts: Vec<VhostId> = self.access.vhost_ids().collect();
        for vhost in vhosts {
            self.drop_empty_vhost(cx, vhost);
        }
    }
}
