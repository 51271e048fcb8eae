//! Messages whose queue no definition is left of: rebuilt, adopted or deleted (`orphans` says what they are).
//!
//! Adoption is one definition with the old incarnation: no message is copied, and a power cut leaves them
//! adopted or not.
//!
//! Always true: what is known to have been deleted is not rebuilt; nobody is bound to a queue that was
//! rebuilt but by bindings of its own that are left; an adopted queue delivers nothing before what it adopted
//! stands in it.

use crate::command::{QueueId, VhostId};
use crate::error::{Fault, ReplyCode};
use crate::journal::DestinationName;

use super::arguments::QueueSettings;
use super::faults::{check_deletable, version_for};
use super::queue_declare::QueueDeclaration;
use super::queues::Logged;
use super::queues::first_rank;
use super::queues::{Peeked, Queue};
use super::recovery::{Orphan, key_of};
use super::restored::Contents;
use super::{Broker, Context};

impl Broker {
    // ---- at a start

    /// The store has messages for a queue that nothing defines; what it was called, if something says it, and
    /// whether it may be rebuilt. The queue, if it is there again.
    pub fn restore_lost(
        &mut self,
        cx: &mut Context<'_>,
        incarnation: u64,
        contents: Contents,
        name: Option<(&str, &str)>,
        may_rebuild: bool,
    ) -> Option<QueueId> {
        if let Some((vhost, queue)) = name.filter(|_| may_rebuild)
            && let Some(rebuilt) = self.rebuild(cx, vhost, queue, incarnation)
        {
            return Some(rebuilt);
        }
        let name = name.map(|(vhost, queue)| (vhost.into(), queue.into()));
        self.recovery.add_orphan(Orphan { incarnation, contents, name });
        None
    }

    fn rebuild(
        &mut self,
        cx: &mut Context<'_>,
        vhost: &str,
        name: &str,
        incarnation: u64,
    ) -> Option<QueueId> {
        let vhost = self.access.find_vhost(vhost)?;
        if self.queues.find_queue(vhost, name).is_some() {
            return None;
        }
        let applied = self.policies_for(cx.work, vhost, name, &[]);
        let settings = QueueSettings::of(&self.policies.terms(&[], applied));
        let mut record = Queue::new(vhost, name, &[], settings);
        record.applied = applied;
        (record.durable, record.is_rebuilt) = (true, true);
        record.logged = Logged::as_incarnation(incarnation);
        let queue = self.add_queue(cx, record).ok()?;
        self.queues.append_queue(cx, &self.access, queue.index(), true);
        Some(queue)
    }

    // ---- in life

    /// Virtual host and name of a queue that was rebuilt, for the simulator, whose clients know of none.
    #[cfg(debug_assertions)]
    pub fn next_rebuilt(&self) -> Option<(String, String)> {
        let mut queues = self.queues.iter().map(|(_, queue)| queue);
        let queue = queues.find(|queue| queue.is_rebuilt && !queue.dying)?;
        Some((self.access.vhost_name(queue.vhost).into(), queue.name.to_string()))
    }

    /// A queue that was just declared with the incarnation of an orphan has its messages. They stand in it
    /// when the store has been asked where they lie; until then it waits. What could not be declared leaves
    /// its orphan one.
    pub(super) fn end_creation(
        &mut self,
        created: Result<QueueId, Fault>,
        orphan: Option<Orphan>,
    ) -> Result<QueueId, Fault> {
        let Some(orphan) = orphan else { return created };
        let Ok(queue) = created else {
            self.recovery.add_orphan(orphan);
            return created;
        };
        self.queues.restore_contents(queue, &orphan.contents);
        self.queues.at_mut(queue).returning += 1;
        self.recovery.adopted(&orphan, queue);
        Ok(queue)
    }

    /// Deletes what the start left out, a queue with its messages, and orphans of that name; `false` when
    /// there is no such thing.
    ///
    /// # Errors
    /// The store cannot be written; or it is to be deleted under a condition of which nothing is known.
    pub(super) fn delete_left_out(
        &mut self,
        cx: &mut Context<'_>,
        vhost: VhostId,
        name: DestinationName<'_>,
        is_conditional: bool,
    ) -> Result<bool, Fault> {
        if self.recovery.delete_left_out(cx, &self.access, vhost, name, is_conditional)? {
            return Ok(true);
        }
        match name {
            DestinationName::Queue(name) if !is_conditional => self.delete_orphan_of(cx, vhost, name),
            DestinationName::Queue(_) | DestinationName::Exchange(_) => Ok(false),
        }
    }

    /// What was adopted stands in the queue.
    pub fn end_adoption(&mut self, queue: QueueId) {
        self.end_returning(queue);
        if self.queues.get(queue.index()).is_some() {
            self.queues.look_at_stored(queue);
        }
    }

    /// Gives an orphan a new durable queue; returns how many messages that has.
    ///
    /// # Errors
    /// There is no such orphan or virtual host, there is a queue of that name, or there is no room.
    pub fn operator_adopt_orphan(
        &mut self,
        cx: &mut Context<'_>,
        incarnation: u64,
        vhost: &str,
        queue: &str,
    ) -> Result<u64, Fault> {
        let id = self
            .access
            .find_vhost(vhost)
            .ok_or_else(|| Fault::new(ReplyCode::NotFound, format_args!("no virtual host '{vhost}'")))?;
        let at = self.recovery.find_orphan(incarnation)?;
        let words = self.queue_in_words(id, queue);
        if queue.is_empty() || queue.len() > 255 || queue.starts_with("amq.") {
            return Err(Fault::new(
                ReplyCode::PreconditionFailed,
                format_args!("{words} cannot be declared: take another name"),
            ));
        }
        if self.queues.find_queue(id, queue).is_some() {
            return Err(Fault::new(
                ReplyCode::PreconditionFailed,
                format_args!("{words} exists already: an orphan gets a queue of its own, take another name"),
            ));
        }
        self.access.check_queue_limit(id, queue)?;
        let orphan = self.recovery.take_orphan(at);
        let (durable, arguments) = (true, &[][..]);
        let declaration =
            QueueDeclaration { queue, durable, exclusive: false, auto_delete: false, arguments };
        let count = orphan.contents.count;
        let old = orphan.name.clone().filter(|(host, name)| (&**host, &**name) != (vhost, queue));
        let created = self.create_as(cx, None, id, &declaration, (false, Some(incarnation)));
        self.end_creation(created, Some(orphan))?;
        if let Some((vhost, name)) = old {
            self.forget_name(cx, &vhost, &name);
        }
        Ok(count)
    }

    /// Deletes an orphan; returns how many messages it had.
    ///
    /// # Errors
    /// There is no such orphan, or the store cannot be written.
    pub fn operator_delete_orphan(&mut self, cx: &mut Context<'_>, incarnation: u64) -> Result<u64, Fault> {
        let at = self.recovery.find_orphan(incarnation)?;
        check_deletable(cx.journal, true)?;
        Ok(self.delete_orphan(cx, at))
    }

    /// The virtual host is deleted with all its queues, so these go, too.
    pub(super) fn delete_orphans_in(&mut self, cx: &mut Context<'_>, vhost: &str) {
        while let Some(at) = self.recovery.orphan_in(vhost) {
            self.delete_orphan(cx, at);
        }
    }

    /// The queue of that name is to be deleted; `false` when there is no orphan of it.
    ///
    /// # Errors
    /// The store cannot be written.
    pub(super) fn delete_orphan_of(
        &mut self,
        cx: &mut Context<'_>,
        vhost: VhostId,
        queue: &str,
    ) -> Result<bool, Fault> {
        let Some(at) = self.recovery.orphan_of(self.access.vhost_name(vhost), queue) else {
            return Ok(false);
        };
        check_deletable(cx.journal, true)?;
        self.delete_orphan(cx, at);
        Ok(true)
    }

    fn delete_orphan(&mut self, cx: &mut Context<'_>, at: usize) -> u64 {
        let orphan = self.recovery.take_orphan(at);
        let batch = cx.journal.queue_gone(orphan.incarnation);
        cx.await_batch(batch);
        if let Some((vhost, name)) = &orphan.name {
            self.forget_name(cx, vhost, name);
        }
        orphan.contents.count
    }

    /// What defined a queue of this name, if anything still does, is not to bring it back; unless there is
    /// another one by now.
    fn forget_name(&mut self, cx: &mut Context<'_>, vhost: &str, name: &str) {
        let is_used =
            self.access.find_vhost(vhost).is_some_and(|vhost| self.queues.find_queue(vhost, name).is_some());
        if is_used {
            return;
        }
        let batch = cx.journal.define(key_of(vhost, DestinationName::Queue(name)), None);
        cx.await_batch(batch);
    }

    // ---- what was rebuilt

    /// Somebody declares a queue that was rebuilt: what it is like is what they say.
    ///
    /// # Errors
    /// There is no room for its arguments, or the store cannot be written.
    pub(super) fn redefine_rebuilt(
        &mut self,
        cx: &mut Context<'_>,
        vhost: VhostId,
        queue: QueueId,
        declaration: &QueueDeclaration<'_>,
    ) -> Result<(), Fault> {
        version_for(cx.journal, true)?;
        self.quota.take_names(vhost, declaration.arguments.len())?;
        let record = self.queues.at_mut(queue);
        assert!(record.arguments.is_empty(), "a queue that was rebuilt has none");
        record.arguments = declaration.arguments.into();
        record.peeked = Peeked::NOTHING;
        (record.auto_delete, record.is_rebuilt) = (declaration.auto_delete, false);
        self.recovery.rebuilt_gone();
        self.apply_to_queue(cx, queue);
        let rank = first_rank(cx.journal, self.queues.at(queue), 0);
        self.queues.at_mut(queue).rank = rank;
        self.queues.look_at_stored(queue);
        if self.queues.at(queue).settings.may_expire {
            self.queues.note_shed(queue);
        }
        self.queues.append_queue(cx, &self.access, queue.index(), true);
        Ok(())
    }
}
