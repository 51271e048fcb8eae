//! Policies at work: set and taken away, told to queues and exchanges, put back at a start.
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
use super::policy::{Applied, Listener, NewPolicy, PolicyKind, PolicyView, Subject, Terms};
use super::queue::Peeked;
use super::restored::Restored;
use super::routing::Kind;
use super::work::Work;
use super::{Broker, Context};

/// Units of matching that are as much work as a record that is looked at in a job.
const UNITS_PER_RECORD: u32 = 8;

type Changed = Result<Batch, OperatorFault>;

impl Broker {
    /// Places of policies that were ever used, for who lists them one by one.
    pub const fn policy_places(&self) -> usize {
        self.policies.places()
    }

    /// The policy in a place.
    pub fn policy_at(&self, place: usize) -> Option<PolicyView<'_>> {
        self.policies.at(place, |vhost| self.vhost_name(vhost))
    }

    /// The policies.
    pub fn policies(&self) -> impl Iterator<Item = PolicyView<'_>> {
        (0..self.policy_places()).filter_map(|place| self.policy_at(place))
    }

    /// Makes a policy, or changes the one of that name.
    ///
    /// # Errors
    /// There is no such virtual host, the policy cannot be, or there is no room.
    pub fn set_policy(&mut self, cx: &mut Context<'_>, vhost: &str, said: &NewPolicy<'_>) -> Changed {
        let id = self.require_vhost(vhost)?;
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
        let id = self.find_vhost(vhost).ok_or(OperatorFault::NoSuchParameter)?;
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
            self.queue_job(Job::Policies);
        }
    }

    /// Tells some more queues and exchanges which policies apply to them; says whether that is all.
    pub(super) fn run_policies(&mut self, cx: &mut Context<'_>, left: &mut u32) -> bool {
        while let Some(listener) =
            self.policies.next_to_tell(self.queues.places(), self.routing.exchange_places())
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
        let record = &self.queues[self.whole(queue).index()];
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
        let record = &mut self.queues[queue.index()];
        record.applied = applied;
        if !record.dying {
            self.renew_settings(cx.journal, queue);
            self.renew_levels(cx.journal, queue);
        }
    }

    /// The queue goes by what is said of it now.
    pub(super) fn renew_settings(&mut self, journal: &Journal, queue: QueueId) {
        let mut settings = QueueSettings::of(&self.terms_of(queue));
        let record = &self.queues[queue.index()];
        if record.is_level() {
            settings = settings.of_level();
        }
        // A message in it may have a time of its own.
        settings.may_expire |= record.settings.may_expire;
        if settings == record.settings {
            return;
        }
        let record = &mut self.queues[queue.index()];
        if record.settings.message_ttl_ms == u64::MAX {
            record.ttl_since_ms = journal.time_ms().max(1);
        }
        let (expired_ms, buried) = (record.settings.expires_ms, record.buries_logged());
        record.settings = settings;
        if !record.peeked.is_wanted() {
            record.peeked = Peeked::NOTHING;
        }
        self.buriers = self.buriers - u32::from(buried) + u32::from(record.buries_logged());
        self.minds_time |= settings.may_expire;
        self.watch.note_timeout(settings.consumer_timeout_ms);
        if settings.expires_ms != expired_ms {
            record.unused_until_ms = u64::MAX;
            self.touch_queue(journal, queue);
        }
        if self.queues[queue.index()].is_picky() {
            self.note_shed_anew(queue);
        }
    }

    fn apply_to_exchange(&mut self, work: &mut Work, exchange: ExchangeId) {
        let found = self.routing.exchange_at(exchange.index());
        let Some(record) = found.filter(|record| record.kind != Kind::Default) else { return };
        let applied = self.policies.choose(work, record.vhost, &record.name, Subject::Exchange);
        self.routing.apply_policies(exchange, applied, self.policies.alternate(applied));
    }

    /// An exchange that has just been made.
    pub(super) fn apply_to_new_exchange(&mut self, work: &mut Work, exchange: ExchangeId) {
        if !self.policies.is_empty() {
            self.apply_to_exchange(work, exchange);
        }
    }

    // ---- at a start

    pub(super) fn restore_policy(&mut self, vhost: &str, said: &NewPolicy<'_>) -> Restored {
        let Some(vhost) = self.find_vhost(vhost) else { return self.orphaned() };
        match self.policies.put(self.access.pattern_bytes_mut(), vhost, said) {
            Ok(()) => Restored::Exists(None),
            Err(_) => Restored::NoRoom,
        }
    }

    /// All definitions are there: everything goes by its policies, before the first message is looked at.
    pub fn apply_policies(&mut self, cx: &mut Context<'_>) {
        if !self.policies.is_empty() {
            self.policies.begin_telling();
            while !self.run_policies(cx, &mut { u32::MAX }) {}
        }
    }
}
