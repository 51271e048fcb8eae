//! All policies: set and cleared, chosen for queues and exchanges, and told to these.
//!
//! Always true: whatever changes here is told, for the change itself begins the telling; a cleared policy
//! stays as long as a queue or an exchange may still go by it.

use std::sync::Arc;

use super::keys::{self, DEFINITION_BYTES_MAX};
use super::records::{Applied, Policy, Subject};
use super::telling::{Listener, Telling};
use super::terms::Terms;
use super::views::{AppliedView, NewPolicy, PolicyKind, PolicyView};
use crate::access::{OperatorFault, Pattern, PatternBytes};
use crate::faults::{check_changeable, check_room};
use crate::work::Work;
use leveret_amqp::field::Table;
use leveret_core::command::{NAME_BYTES_MAX, PolicyId, VhostId};
use leveret_core::journal::{Batch, Definition, Journal, Mode};
use leveret_core::mem::Slab;

/// All policies.
pub(crate) struct Policies {
    records: Slab<Policy>,
    telling: Telling,
}

impl Policies {
    /// Bytes of memory that a policy takes without its pattern: the longest name and definition, each a piece
    /// of its own, and the name of an alternate exchange.
    pub(crate) const POLICY_BYTES: usize =
        Slab::<Policy>::record_bytes() + DEFINITION_BYTES_MAX + 2 * 256 + 4 * 16;

    pub(crate) fn with_capacity(policies: usize) -> Self {
        Self { records: Slab::with_capacity(policies), telling: Telling::default() }
    }

    // ---- what changes

    /// Makes a policy in a virtual host, or changes the one of that name; gives the batch with which that is
    /// durable.
    ///
    /// # Errors
    /// The policy is not valid, or there is no room.
    pub(crate) fn set(
        &mut self,
        journal: &mut Journal,
        patterns: &mut PatternBytes,
        vhost: VhostId,
        view: &PolicyView<'_>,
    ) -> Result<Batch, OperatorFault> {
        let said = &view.policy;
        if said.name.is_empty() || said.name.len() > NAME_BYTES_MAX {
            return Err(OperatorFault::BadName("policy", "have from 1 to 255 bytes"));
        }
        keys::check(Table::trusted(said.definition), said.kind).map_err(OperatorFault::Invalid)?;
        check_changeable(journal)?;
        // An operator policy is taken on a full disk, too: it may make room.
        if said.kind == PolicyKind::User {
            check_room(journal)?;
        }
        self.put(patterns, vhost, said)?;
        Ok(append(journal, view, true))
    }

    /// Puts a policy in its place, new or changed, without writing it down: a start finds it in the log.
    ///
    /// # Errors
    /// The pattern is not valid, or there is no room.
    pub(crate) fn put(
        &mut self,
        patterns: &mut PatternBytes,
        vhost: VhostId,
        said: &NewPolicy<'_>,
    ) -> Result<(), OperatorFault> {
        let pattern = Pattern::new(said.pattern, patterns.most()).map_err(|why| {
            let text = format!("pattern should be regular expression but is invalid: {why}");
            OperatorFault::Invalid(text)
        })?;
        let old = self.find(vhost, said.kind, said.name);
        if old.is_none() && self.records.is_full() {
            return Err(OperatorFault::NoRoom("policies_max"));
        }
        let freed = old.map_or(0, |old| self.records[old].pattern.bytes());
        patterns.take(pattern.bytes(), freed)?;
        let definition = Table::trusted(said.definition);
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
            not_for: keys::not_for(definition),
            is_gone: false,
        };
        match old {
            Some(old) => self.records[old] = policy,
            None => assert!(self.records.insert(policy).is_ok(), "there was a place a moment ago"),
        }
        self.telling.begin();
        Ok(())
    }

    /// Clears a policy.
    ///
    /// # Errors
    /// There is no policy of that name, or the store cannot be written.
    pub(crate) fn clear(
        &mut self,
        journal: &mut Journal,
        vhost: VhostId,
        vhost_name: &str,
        kind: PolicyKind,
        name: &str,
    ) -> Result<(), OperatorFault> {
        let index = self.find(vhost, kind, name).ok_or(OperatorFault::NoSuchParameter)?;
        check_changeable(journal)?;
        self.drop_at(journal, index, vhost_name);
        Ok(())
    }

    /// Clears all policies of a virtual host that is deleted.
    pub(crate) fn drop_of_vhost(&mut self, journal: &mut Journal, vhost: VhostId, vhost_name: &str) {
        for index in 0..self.records.places() {
            if self.records.get(index).is_some_and(|it| it.vhost == vhost && !it.is_gone) {
                self.drop_at(journal, index, vhost_name);
            }
        }
    }

    fn drop_at(&mut self, journal: &mut Journal, index: usize, vhost_name: &str) {
        let policy = &mut self.records[index];
        policy.is_gone = true;
        append(journal, &PolicyView { vhost: vhost_name, policy: policy.said() }, false);
        self.telling.begin();
    }

    fn find(&self, vhost: VhostId, kind: PolicyKind, name: &str) -> Option<usize> {
        self.records.iter().find(|(_, policy)| policy.is(vhost, kind, name)).map(|(index, _)| index)
    }

    // ---- which policies apply

    fn get(&self, policy: Option<PolicyId>) -> Option<&Policy> {
        self.records.get(policy?.index())
    }

    /// The policies that apply to a queue or an exchange of this name; the work is charged.
    pub(crate) fn choose(&self, work: &mut Work, vhost: VhostId, name: &str, subject: Subject) -> Applied {
        let mut applied = Applied::default();
        for (index, policy) in self.records.iter().filter(|(_, policy)| policy.is_for(vhost, subject)) {
            let chosen = applied.of_kind_mut(policy.kind);
            if self.get(*chosen).is_some_and(|other| !policy.precedes(other)) {
                continue;
            }
            work.charge(1);
            if policy.pattern.matches(work, name) {
                *chosen = Some(PolicyId::from_index(index));
            }
        }
        applied
    }

    /// What arguments and the policies that apply say together.
    pub(crate) fn terms<'a>(&'a self, arguments: &'a [u8], applied: Applied) -> Terms<'a> {
        let definition = |policy| self.get(policy).map_or(Table::EMPTY, |it| Table::trusted(&it.definition));
        Terms {
            arguments: Table::trusted(arguments),
            policy: definition(applied.policy),
            operator: definition(applied.operator),
        }
    }

    /// The alternate exchange that the policies name which apply to an exchange.
    pub(crate) fn alternate(&self, applied: Applied) -> Option<Arc<str>> {
        self.get(applied.policy)?.alternate.clone()
    }

    /// The policies that apply to a queue or an exchange, as an operator sees them.
    pub(crate) fn applied_view(&self, applied: Applied) -> AppliedView<'_> {
        let terms = self.terms(&[], applied);
        let name = |policy| self.get(policy).map(|policy| &*policy.name);
        AppliedView {
            policy: name(applied.policy),
            operator: name(applied.operator),
            definition: terms.policy,
            limits: terms.operator,
        }
    }

    // ---- who hears of a change

    /// Begins to tell all queues and exchanges which policies apply to them.
    pub(crate) fn begin_telling(&mut self) {
        self.telling.begin();
    }

    /// Whether the job that tells queues and exchanges is to be begun; the caller begins it.
    pub(crate) const fn take_job(&mut self) -> bool {
        self.telling.take_job()
    }

    /// The next queue or exchange to hear of a change, among so many places of each; `None` when all have.
    pub(crate) fn next_to_tell(&self, queues: usize, exchanges: usize) -> Option<Listener> {
        self.telling.next(queues, exchanges)
    }

    /// Notes that a queue or an exchange has heard of the change.
    pub(crate) fn told(&mut self, listener: Listener) {
        self.telling.note(listener);
    }

    /// Ends the telling when all have heard: nothing refers to cleared policies any more.
    pub(crate) fn end_telling(&mut self, patterns: &mut PatternBytes) {
        self.telling.end();
        for index in 0..self.records.places() {
            if self.records.get(index).is_some_and(|policy| policy.is_gone) {
                patterns.give_back(self.records.remove(index).pattern.bytes());
            }
        }
    }

    // ---- all policies

    /// Policies, cleared ones included that a queue or an exchange may still go by.
    pub(crate) const fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is no policy at all.
    pub(crate) const fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The most policies there may be.
    pub(crate) const fn most(&self) -> usize {
        self.records.len() + self.records.room()
    }

    /// Places of policies ever used.
    pub(crate) const fn places(&self) -> usize {
        self.records.places()
    }

    /// The policy in a place; `name_of` tells the name of its virtual host.
    pub(crate) fn at<'a>(
        &'a self,
        place: usize,
        name_of: impl Fn(VhostId) -> &'a str,
    ) -> Option<PolicyView<'a>> {
        let policy = self.records.get(place).filter(|policy| !policy.is_gone)?;
        Some(PolicyView { vhost: name_of(policy.vhost), policy: policy.said() })
    }
}

/// Writes down that a policy exists, or is gone.
fn append(journal: &mut Journal, view: &PolicyView<'_>, exists: bool) -> Batch {
    if journal.mode() != Mode::On {
        return Batch::NONE;
    }
    let PolicyView { vhost, policy } = view;
    let definition = Definition::Policy {
        vhost,
        name: policy.name,
        is_operators: policy.kind == PolicyKind::Operator,
        pattern: policy.pattern,
        apply_to: policy.apply_to.name(),
        priority: policy.priority,
        definition: policy.definition,
    };
    journal.define(definition.key(), exists.then(|| definition.value()))
}
