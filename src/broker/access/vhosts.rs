//! Virtual hosts: made, limited, deleted.
//!
//! Always true: the id of a virtual host stays with it until the last queue, exchange and connection of it is
//! gone; a deleted virtual host is found by nobody from the first moment on, and its name can be given again
//! only when all of that is cleared away, so the log never takes the new for the old.

use leveret_core::command::VhostId;
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::journal::{Batch, Journal, VhostMetadata};

use super::fault::OperatorFault;
use super::identity::Identity;
use super::records::{Vhost, VhostLimits};
use super::state::{Access, vhost_at};
use super::users::Load;
use crate::faults::{check_changeable, out_of};

impl Access {
    /// All virtual hosts, those that are being deleted included.
    pub(crate) fn vhost_ids(&self) -> impl Iterator<Item = VhostId> {
        self.vhosts.iter().map(|(index, _)| vhost_at(index))
    }

    /// Whether a virtual host is traced by the firehose.
    pub(crate) fn is_traced(&self, vhost: VhostId) -> bool {
        self.vhosts[vhost.index()].is_traced
    }

    /// Sets whether a virtual host is traced by the firehose.
    pub(crate) fn set_traced(&mut self, vhost: VhostId, is_traced: bool) {
        self.vhosts[vhost.index()].is_traced = is_traced;
    }

    /// Whether any virtual host is traced by the firehose.
    pub(crate) fn is_any_traced(&self) -> bool {
        self.vhosts.iter().any(|(_, vhost)| vhost.is_traced)
    }

    /// Whether a virtual host of this name is being cleared away.
    pub(crate) fn is_being_deleted(&self, name: &str) -> bool {
        self.vhosts.iter().any(|(_, vhost)| *vhost.name == *name && vhost.dying)
    }

    /// Makes a virtual host without limits; its name must be free.
    ///
    /// # Errors
    /// There is no room for one more virtual host.
    pub(crate) fn add_vhost(&mut self, name: &str) -> Result<VhostId, Fault> {
        assert!(self.find_vhost(name).is_none(), "a virtual host has its name for itself");
        let record = Vhost {
            name: name.into(),
            limits: VhostLimits::default(),
            description: Box::default(),
            tags: Box::default(),
            default_queue_type: Box::default(),
            is_protected: false,
            queues: 0,
            held: 0,
            is_traced: false,
            dying: false,
            swept: false,
        };
        self.vhosts.insert(record).map(vhost_at).map_err(|_| out_of("vhosts_max"))
    }

    /// Forgets a virtual host that nothing names any more.
    pub(crate) fn remove_vhost(&mut self, vhost: VhostId) {
        let record = self.vhosts.remove(vhost.index());
        assert!(record.held == 0 && record.queues == 0, "nothing names a virtual host that goes");
    }

    /// Sets the limits of a virtual host; queues and connections that exist stay.
    ///
    /// # Errors
    /// There is no such virtual host, or the store has no room.
    pub fn set_vhost_limits(
        &mut self,
        journal: &mut Journal,
        name: &str,
        limits: VhostLimits,
    ) -> Result<Batch, OperatorFault> {
        let vhost = self.require_vhost(name)?;
        check_changeable(journal)?;
        self.limit_vhost(vhost, limits);
        Ok(self.append_vhost(journal, vhost, true))
    }

    /// Sets the limits of a virtual host, without writing them down.
    pub(crate) fn limit_vhost(&mut self, vhost: VhostId, limits: VhostLimits) {
        self.vhosts[vhost.index()].limits = limits;
    }

    /// Returns the metadata of a virtual host.
    pub(crate) fn vhost_metadata(&self, vhost: VhostId) -> VhostMetadata<'_> {
        self.vhosts[vhost.index()].metadata()
    }

    /// Sets the metadata of a virtual host, without writing them down.
    pub(crate) fn describe_vhost(&mut self, vhost: VhostId, metadata: VhostMetadata<'_>) {
        let host = &mut self.vhosts[vhost.index()];
        host.description = metadata.description.into();
        host.tags = metadata.tags.into();
        host.default_queue_type = metadata.default_queue_type.into();
        host.is_protected = metadata.is_protected;
    }

    /// The virtual host of this name, if one more connection of a user may open it.
    ///
    /// # Errors
    /// There is no such virtual host, the user has no permission for it, or a limit of either is reached.
    pub(crate) fn check_open(
        &self,
        who: &Identity,
        name: &str,
        connections_in: impl FnOnce(VhostId) -> u32,
        load: Load,
    ) -> Result<VhostId, Fault> {
        let not_allowed = |text: core::fmt::Arguments<'_>| Fault::connection(ReplyCode::NotAllowed, text);
        let Some(vhost) = self.find_vhost(name) else {
            return Err(not_allowed(format_args!("vhost {name} not found")));
        };
        let refused = format!("access to vhost '{name}' refused for user '{}'", who.name);
        let limit = self.vhosts[vhost.index()].limits.connections_max;
        let connections = connections_in(vhost);
        if let Some(limit) = limit.filter(|limit| connections >= *limit) {
            return Err(not_allowed(format_args!("{refused}: connection limit ({limit}) is reached")));
        }
        self.check_user_connections(who, load)?;
        if who.user.and_then(|user| self.find_permission(user, vhost)).is_none() {
            return Err(not_allowed(format_args!("{refused}")));
        }
        Ok(vhost)
    }

    /// Whether one more queue may be declared in a virtual host.
    ///
    /// # Errors
    /// The limit of the virtual host is reached.
    pub(crate) fn check_queue_limit(&self, vhost: VhostId, queue: &str) -> Result<(), Fault> {
        let host = &self.vhosts[vhost.index()];
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

    /// Checks that something new may be declared in a virtual host.
    ///
    /// # Errors
    /// The virtual host is being deleted.
    pub(crate) fn check_vhost_alive(&self, vhost: VhostId) -> Result<(), Fault> {
        let host = &self.vhosts[vhost.index()];
        if host.dying {
            let text = format_args!("vhost {} not found", host.name);
            return Err(Fault::connection(ReplyCode::NotAllowed, text));
        }
        Ok(())
    }

    /// Counts a queue that can be found in a virtual host from now on, or no longer.
    pub(crate) fn count_queue(&mut self, vhost: VhostId, exists: bool) {
        let queues = &mut self.vhosts[vhost.index()].queues;
        assert!(exists || *queues > 0, "a queue that goes was counted when it came");
        *queues = if exists { *queues + 1 } else { *queues - 1 };
    }

    /// Counts a record that names a virtual host.
    pub(crate) fn hold_vhost(&mut self, vhost: VhostId) {
        self.vhosts[vhost.index()].held += 1;
    }

    /// Counts out a record that named a virtual host.
    pub(crate) fn release_vhost(&mut self, vhost: VhostId) {
        let held = &mut self.vhosts[vhost.index()].held;
        assert!(*held > 0, "a record that goes named its virtual host");
        *held -= 1;
    }

    /// Takes the name of a virtual host away.
    pub(crate) fn retire_vhost(&mut self, vhost: VhostId) {
        self.vhosts[vhost.index()].dying = true;
    }

    /// Notes that everything in a retired virtual host is deleted.
    pub(crate) fn note_swept(&mut self, vhost: VhostId) {
        let host = &mut self.vhosts[vhost.index()];
        assert!(host.dying, "a virtual host is retired before it is cleared away");
        host.swept = true;
    }

    /// Whether nothing names a deleted virtual host any more.
    pub(crate) fn is_vhost_done(&self, vhost: VhostId) -> bool {
        let host = &self.vhosts[vhost.index()];
        host.swept && host.held == 0
    }
}
