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

use std::sync::Arc;

use crate::command::{ExchangeId, NAME_BYTES_MAX, QueueId, VhostId};
use crate::journal::{Batch, Definition, Journal, Mode};
use crate::wire::field::Table;

use super::access::{OperatorFault, Pattern};
use super::arguments::{QueueSettings, is_quorum};
use super::job::Job;
use super::policy::{Applied, ApplyTo, Policy, PolicyKind, Subject, Told};
use super::policy_keys;
use super::restored::Restored;
use super::routing::Kind;
use super::terms::Terms;
use super::work::Work;
use super::{Broker, Context};

/// Units of matching that are as much work as a record that is looked at in a job.
const UNITS_PER_RECORD: u32 = 8;

/// A policy as somebody says it.
#[derive(Clone, Copy, Debug)]
pub struct NewPolicy<'a> {
    /// Whose it is.
    pub kind: PolicyKind,
    /// Its name.
    pub name: &'a str,
    /// Of which names it speaks.
    pub pattern: &'a str,
    /// Of what.
    pub apply_to: ApplyTo,
    /// Of several the one with the highest counts.
    pub priority: i32,
    /// What it says: the bytes of a table.
    pub definition: &'a [u8],
}

/// A policy as an operator sees it.
#[derive(Clone, Copy, Debug)]
pub struct PolicyView<'a> {
    /// The virtual host.
    pub vhost: &'a str,
    /// The rest.
    pub policy: NewPolicy<'a>,
}

/// What policies say of a queue or an exchange.
#[derive(Clone, Copy, Debug)]
pub struct AppliedView<'a> {
    /// The name of the policy.
    pub policy: Option<&'a str>,
    /// The name of the operator policy.
    pub operator: Option<&'a str>,
    /// What the first says.
    pub definition: Table<'a>,
    /// What the second says, whose limits count where they are smaller.
    pub limits: Table<'a>,
}

/// Whether something more may be written down.
pub(super) fn check_room(journal: &Journal) -> Result<(), OperatorFault> {
    match journal.mode() == Mode::On && !journal.has_room_to_define() {
        false => Ok(()),
        true if journal.is_file_system_full() => Err(OperatorFault::FileSystemFull),
        true => Err(OperatorFault::NoRoom(journal.room_key())),
    }
}

type Changed = Result<Batch, OperatorFault>;

impl Broker {
    /// Places of policies that were ever used, for who lists them one by one.
    pub const fn policy_places(&self) -> usize {
        self.policies.records.places()
    }

    /// The policy in a place.
    pub fn policy_at(&self, place: usize) -> Option<PolicyView<'_>> {
        let policy = self.policies.records.get(place).filter(|policy| !policy.is_gone)?;
        Some(PolicyView {
            vhost: self.access.vhost_name(policy.vhost),
            policy: NewPolicy {
                kind: policy.kind,
                name: &policy.name,
                pattern: policy.pattern.text(),
                apply_to: policy.apply_to,
                priority: policy.priority,
                definition: &policy.definition,
            },
        })
    }

    /// The policies.
    pub fn policies(&self) -> impl Iterator<Item = PolicyView<'_>> {
        (0..self.policy_places()).filter_map(|place| self.policy_at(place))
    }

    pub(super) fn applied_view(&self, applied: Applied) -> AppliedView<'_> {
        let terms = self.policies.terms(&[], applied);
        let name = |policy| self.policies.get(policy).map(|policy| &*policy.name);
        AppliedView {
            policy: name(applied.policy),
            operator: name(applied.operator),
            definition: terms.policy,
            limits: terms.operator,
        }
    }

    /// Makes a policy, or changes the one of that name.
    ///
    /// # Errors
    /// There is no such virtual host, it cannot be, or there is no room.
    pub fn set_policy(&mut self, cx: &mut Context<'_>, vhost: &str, said: &NewPolicy<'_>) -> Changed {
        let vhost = self.access.require_vhost(vhost)?;
        if said.name.is_empty() || said.name.len() > NAME_BYTES_MAX {
            return Err(OperatorFault::BadName("policy", "have from 1 to 255 bytes"));
        }
        policy_keys::check(Table::trusted(said.definition), said.kind).map_err(OperatorFault::Invalid)?;
        self.access.check_changeable(cx.journal)?;
        // What the operator says is taken on a full disk, too: it may be what makes room.
        if said.kind == PolicyKind::User {
            check_room(cx.journal)?;
        }
        let index = self.put_policy(vhost, said)?;
        let batch = self.append_policy(cx.journal, index, true);
        self.tell_of_policies(cx);
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
        let found = self.access.find_vhost(vhost).and_then(|vhost| self.policies.find(vhost, kind, name));
        let index = found.ok_or(OperatorFault::NoSuchParameter)?;
        self.access.check_changeable(cx.journal)?;
        self.drop_policy(cx.journal, index);
        self.tell_of_policies(cx);
        Ok(cx.journal.await_facts())
    }

    /// The virtual host is deleted, and all its policies with it.
    pub(super) fn drop_policies_of(&mut self, journal: &mut Journal, vhost: VhostId) {
        for index in 0..self.policies.records.places() {
            if self.policies.records.get(index).is_some_and(|it| it.vhost == vhost && !it.is_gone) {
                self.drop_policy(journal, index);
                self.begin_to_tell();
            }
        }
    }

    fn drop_policy(&mut self, journal: &mut Journal, index: usize) {
        self.append_policy(journal, index, false);
        self.policies.records[index].is_gone = true;
    }

    fn put_policy(&mut self, vhost: VhostId, said: &NewPolicy<'_>) -> Result<usize, OperatorFault> {
        let pattern = Pattern::new(said.pattern, self.access.patterns_bytes_most());
        let pattern = pattern.map_err(|why| {
            let text = format!("pattern should be regular expression but is invalid: {why}");
            OperatorFault::Invalid(text)
        })?;
        let old = self.policies.find(vhost, said.kind, said.name);
        if old.is_none() && self.policies.records.is_full() {
            return Err(OperatorFault::NoRoom("policies_max"));
        }
        let freed = old.map_or(0, |old| self.policies.records[old].pattern.bytes());
        self.access.take_patterns(pattern.bytes(), freed)?;
        let definition = Table::trusted(said.definition);
        let (not_for_classic, not_for_quorum) = policy_keys::leaves_out(definition);
        let alternate = definition.get("alternate-exchange").and_then(|value| value.as_str());
        let policy = Policy {
            vhost,
            name: said.name.into(),
            kind: said.kind,
            pattern,
            apply_to: said.apply_to,
            priority: said.priority,
            definition: said.definition.into(),
            alternate: alternate.map(Arc::from),
            not_for_classic,
            not_for_quorum,
            is_gone: false,
        };
        if let Some(old) = old {
            self.policies.records[old] = policy;
            return Ok(old);
        }
        self.policies.records.insert(policy).map_err(|_| OperatorFault::NoRoom("policies_max"))
    }

    fn append_policy(&self, journal: &mut Journal, index: usize, exists: bool) -> Batch {
        if journal.mode() != Mode::On {
            return Batch::NONE;
        }
        let policy = &self.policies.records[index];
        let definition = Definition::Policy {
            vhost: self.access.vhost_name(policy.vhost),
            name: &policy.name,
            is_operators: policy.kind == PolicyKind::Operator,
            pattern: policy.pattern.text(),
            apply_to: policy.apply_to.name(),
            priority: policy.priority,
            definition: &policy.definition,
        };
        journal.define(definition.key(), exists.then(|| definition.value()))
    }

    // ---- who hears of a change

    /// A change is told from the first queue on; what was being told is told with it.
    fn begin_to_tell(&mut self) {
        if self.policies.telling.replace(Told::default()).is_none() {
            self.queue_job(Job::Policies);
        }
    }

    fn tell_of_policies(&mut self, cx: &mut Context<'_>) {
        self.begin_to_tell();
        self.run_jobs(cx);
    }

    /// Tells some more queues and exchanges which policies apply to them; says whether that is all.
    pub(super) fn run_policies(&mut self, cx: &mut Context<'_>, left: &mut u32) -> bool {
        let Some(mut told) = self.policies.telling else { return true };
        while told.queue < self.queues.places() || told.exchange < self.routing.exchange_places() {
            if *left == 0 {
                self.policies.telling = Some(told);
                return false;
            }
            let before = cx.work.units();
            if told.queue < self.queues.places() {
                told.queue += 1;
                self.apply_to_queue(cx, QueueId::from_index(told.queue - 1));
            } else {
                told.exchange += 1;
                self.apply_to_exchange(cx.work, ExchangeId::from_index(told.exchange - 1));
            }
            let units = cx.work.units().saturating_sub(before);
            *left = left.saturating_sub(1 + units / UNITS_PER_RECORD);
        }
        self.policies.telling = None;
        let bytes = self.policies.forget_gone();
        self.access.give_patterns_back(bytes);
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
        let found = self.routing.exchange_at(exchange.index());
        let Some(record) = found.filter(|record| record.kind != Kind::Default) else { return };
        let applied = self.policies.choose(work, record.vhost, &record.name, Subject::Exchange);
        let alternate = self.policies.get(applied.policy).and_then(|policy| policy.alternate.clone());
        self.routing.apply_policies(exchange, applied, alternate);
    }

    /// An exchange that has just been made.
    pub(super) fn apply_to_new_exchange(&mut self, work: &mut Work, exchange: ExchangeId) {
        if !self.policies.records.is_empty() {
            self.apply_to_exchange(work, exchange);
        }
    }

    // ---- at a start

    pub(super) fn restore_policy(&mut self, vhost: &str, said: &NewPolicy<'_>) -> Restored {
        let Some(vhost) = self.access.find_vhost(vhost) else { return self.access.orphaned() };
        match self.put_policy(vhost, said) {
            Ok(_) => Restored::Exists(None),
            Err(_) => Restored::NoRoom,
        }
    }

    /// All definitions are there: everything goes by its policies, before the first message is looked at.
    pub fn apply_policies(&mut self, cx: &mut Context<'_>) {
        if !self.policies.records.is_empty() {
            self.policies.telling = Some(Told::default());
            while !self.run_policies(cx, &mut { u32::MAX }) {}
        }
    }
}
