//! What operators tell the running broker: policies at work, and runtime parameters.
//!
//! Why it exists: what is set takes a virtual host, who may do what there, and whoever goes by it; the parts
//! (`policy`, `parameters`) know none of these.
//!
//! ```text
//! set, clear ──→ Policies ──Job::Policies, in steps──→ queues, exchanges: which apply, what follows
//! declare    ──→ which apply ──→ the new queue's settings
//! ```
//!
//! Always true: a queue's settings are what its arguments and its policies say together, as soon as it has
//! heard of a change; a change is told in steps, and those declared meanwhile know it already; what follows
//! from it (there is too much, or something has expired) is given up as ever, in steps too.

use crate::command::{ExchangeId, QueueId, VhostId};
use crate::journal::{Batch, Journal};
use crate::wire::field::Table;

use super::access::OperatorFault;
use super::arguments::{QueueSettings, is_quorum};
use super::job::Job;
use super::parameters::{ParameterCheck, ParameterName, ParameterNeeds, ParameterView, Setter};
use super::policy::{Applied, Listener, NewPolicy, PolicyKind, PolicyView, Subject, Terms};
use super::restored::Restored;
use super::topology::Kind;
use super::work::Work;
use super::{Broker, Context};

/// Units of matching that are as much work as a record that is looked at in a job.
const UNITS_PER_RECORD: u32 = 8;

type Changed = Result<Batch, OperatorFault>;

/// What became of a definition that a start has put back.
fn restored(put: Result<(), OperatorFault>) -> Restored {
    match put {
        Ok(()) => Restored::Exists(None),
        Err(_) => Restored::NoRoom,
    }
}

/// Policies.
impl Broker {
    /// Makes a policy, or changes the one of that name.
    ///
    /// # Errors
    /// There is no such virtual host, the policy cannot be, or there is no room.
    pub fn set_policy(&mut self, cx: &mut Context<'_>, vhost: &str, said: &NewPolicy<'_>) -> Changed {
        let id = self.access.require_vhost(vhost)?;
        let view = PolicyView { vhost, policy: *said };
        let batch = self.policies.set(cx.journal, self.access.pattern_bytes_mut(), id, &view)?;
        self.tell_of_policies();
        self.run_jobs(cx);
        Ok(batch)
    }

    /// Takes a policy away.
    ///
    /// # Errors
    /// There is none of that name, or the store cannot be written.
    pub fn clear_policy(
        &mut self,
        cx: &mut Context<'_>,
        vhost: &str,
        kind: PolicyKind,
        name: &str,
    ) -> Changed {
        let id = self.access.find_vhost(vhost).ok_or(OperatorFault::NoSuchParameter)?;
        self.policies.clear(cx.journal, id, vhost, kind, name)?;
        self.tell_of_policies();
        self.run_jobs(cx);
        Ok(cx.journal.await_facts())
    }

    /// The virtual host is deleted, and all its policies with it.
    pub(super) fn drop_policies_of(&mut self, journal: &mut Journal, vhost: VhostId, name: &str) {
        self.policies.drop_of_vhost(journal, vhost, name);
        self.tell_of_policies();
    }

    fn tell_of_policies(&mut self) {
        if self.policies.take_job() {
            self.jobs.begin(Job::Policies);
        }
    }

    /// Tells some more queues and exchanges which policies apply to them; says whether that is all.
    pub(super) fn run_policies(&mut self, cx: &mut Context<'_>, left: &mut u32) -> bool {
        while let Some(listener) =
            self.policies.next_to_tell(self.queues.places(), self.topology.exchange_places())
        {
            if *left == 0 {
                return false;
            }
            self.policies.told(listener);
            let before = cx.work.units();
            match listener {
                Listener::Queue(queue) => self.apply_to_queue(cx, queue),
                Listener::Exchange(exchange) => self.apply_to_exchange(cx.work, exchange),
            }
            let units = cx.work.units().saturating_sub(before);
            *left = left.saturating_sub(1 + units / UNITS_PER_RECORD);
        }
        self.policies.end_telling(self.access.pattern_bytes_mut());
        true
    }

    /// Which policies apply to a queue of this name that is about to be.
    pub(super) fn policies_for(
        &self,
        work: &mut Work,
        vhost: VhostId,
        name: &str,
        arguments: &[u8],
    ) -> Applied {
        let subject = match is_quorum(Table::trusted(arguments)) {
            true => Subject::QuorumQueue,
            false => Subject::ClassicQueue,
        };
        self.policies.choose(work, vhost, name, subject)
    }

    /// What is said of a queue.
    pub(super) fn terms_of(&self, queue: QueueId) -> Terms<'_> {
        let record = self.queues.whole_of(queue);
        self.policies.terms(&record.arguments, record.applied)
    }

    /// Finds out which policies apply to a queue, and what follows.
    pub(super) fn apply_to_queue(&mut self, cx: &mut Context<'_>, queue: QueueId) {
        // A level goes by what its queue is told.
        let Some(record) = self.queues.get(queue.index()).filter(|record| !record.is_level()) else {
            return;
        };
        let applied = match record.hidden || record.dying {
            true => Applied::default(),
            false => self.policies_for(cx.work, record.vhost, &record.name, &record.arguments),
        };
        let record = self.queues.at_mut(queue);
        record.applied = applied;
        if !record.dying {
            let settings = QueueSettings::of(&self.terms_of(queue));
            self.queues.renew(cx.journal, queue, settings);
            self.watch.note_timeout(settings.consumer_timeout_ms);
        }
    }

    fn apply_to_exchange(&mut self, work: &mut Work, exchange: ExchangeId) {
        let found = self.topology.exchange_at(exchange.index());
        let Some(record) = found.filter(|record| record.kind != Kind::Default) else { return };
        let applied = self.policies.choose(work, record.vhost, &record.name, Subject::Exchange);
        self.topology.apply_policies(exchange, applied, self.policies.alternate(applied));
    }

    /// An exchange that has just been made.
    pub(super) fn apply_to_new_exchange(&mut self, work: &mut Work, exchange: ExchangeId) {
        if !self.policies.is_empty() {
            self.apply_to_exchange(work, exchange);
        }
    }

    // ---- at a start

    pub(super) fn restore_policy(&mut self, vhost: &str, said: &NewPolicy<'_>) -> Restored {
        let Some(vhost) = self.access.find_vhost(vhost) else { return self.access.orphaned() };
        restored(self.policies.put(self.access.pattern_bytes_mut(), vhost, said))
    }

    /// All definitions are there: everything goes by its policies, before the first message is looked at.
    pub fn apply_policies(&mut self, cx: &mut Context<'_>) {
        if !self.policies.is_empty() {
            self.policies.begin_telling();
            while !self.run_policies(cx, &mut { u32::MAX }) {}
        }
    }
}

/// Runtime parameters.
impl Broker {
    /// Who says whether a component takes a value, from now on.
    pub fn set_parameter_check(&mut self, check: ParameterCheck) {
        self.parameters.set_check(check);
    }

    /// There may be so many shovels from now on; shovels that there are stay.
    pub const fn set_shovel_places(&mut self, shovels_max: usize) {
        self.parameters.set_shovel_places(shovels_max);
    }

    /// Another number whenever a parameter was set, changed or cleared.
    pub const fn parameters_version(&self) -> u64 {
        self.parameters.version()
    }

    /// Makes a parameter, or changes the one of that name. `user`: who says it, if it is not the operator of
    /// this machine; he has to have permissions where the component would connect to.
    ///
    /// # Errors
    /// There is no such virtual host or component, it does not take the value, or there is no room.
    pub fn set_parameter(
        &mut self,
        journal: &mut Journal,
        said: &ParameterView<'_>,
        user: Option<&str>,
    ) -> Changed {
        // As in RabbitMQ, what is said is looked at before where it is said.
        let needs = self.parameters.needs(said)?;
        let vhost = said.vhost.map(|name| self.access.require_vhost(name)).transpose()?;
        let may_connect = |needs: &ParameterNeeds| {
            let may_enter = user.is_none_or(|user| self.access.has_permission(user, &needs.vhost));
            may_enter && self.access.find_vhost(&needs.vhost).is_some()
        };
        let setter = Setter {
            user,
            is_administrator: user.is_none_or(|user| self.access.is_administrator(user)),
            may_connect: needs.as_ref().is_none_or(may_connect),
            vhosts: self.access.vhosts().count(),
        };
        self.parameters.set(journal, vhost, said, needs.as_ref(), &setter)
    }

    /// Takes a parameter away.
    ///
    /// # Errors
    /// There is none of that name, or the store cannot be written.
    pub fn clear_parameter(
        &mut self,
        journal: &mut Journal,
        vhost: Option<&str>,
        component: &str,
        name: &str,
    ) -> Changed {
        let found = vhost.map(|vhost| self.access.find_vhost(vhost).ok_or(OperatorFault::NoSuchParameter));
        self.parameters.clear(journal, found.transpose()?, ParameterName { vhost, component, name })
    }

    /// Whether the log has such a parameter, with a place or without, or may have it.
    pub fn may_have_parameter(&self, vhost: &str, component: &str, name: &str) -> bool {
        let full_name = ParameterName { vhost: Some(vhost), component, name };
        self.parameters.may_have(self.access.find_vhost(vhost), full_name)
    }

    /// At a start: the log may have parameters that nobody can read.
    pub const fn doubt_parameters(&mut self) {
        self.parameters.doubt();
    }

    pub(super) fn restore_parameter(&mut self, said: &ParameterView<'_>) -> Restored {
        let Ok(vhost) = said.vhost.map(|name| self.access.require_vhost(name)).transpose() else {
            return self.access.orphaned();
        };
        restored(self.parameters.restore(vhost, said))
    }
}
