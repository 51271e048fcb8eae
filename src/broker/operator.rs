//! Changes by an operator, over `leveret ctl` or the management API: queues, exchanges, bindings, users,
//! virtual hosts, policies, parameters, orphans.
//!
//! ```text
//! delete a virtual host: name ─→ permissions, policies, parameters ─→ close connections ─→ job: queues, exchanges
//! delete a user: name ─→ permissions ─→ close connections, which have no permissions until they are closed
//! ```
//!
//! # Invariants
//! - The caller has checked the permissions of the operator. Jobs begun here do not stop the reading of any
//!   connection.
//! - A change is appended to the log like a change by a client. The caller waits for the returned batch, or
//!   for that of the [`Context`], before it acknowledges the change.

use leveret_amqp::field::Table;
use leveret_amqp::reply_text::QueueText;
use leveret_core::batch::Batch;
use leveret_core::command::{Name, QueueId, VhostId};
use leveret_core::definition::{DestinationName, Parameter, Policy, PolicyKind, VhostMetadata};
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::password::PasswordHash;
use leveret_core::quota::NAMES;
use leveret_core::topic::exchange_separators;
use leveret_core::work::Work;
use leveret_queues::QueueKind;
use leveret_routing::{BindingSpec, Destination, ExchangeDeclaration, refuse_default};
use leveret_storage::PendingWrites;
use leveret_storage::faults::check_deletable;

use super::access::{Resource, Right, VHOST_METADATA_BYTES_MAX, VhostChange};
use super::definitions::{DeleteIf, NewQueue, QueueDeclaration};
use super::job::{Job, Sweep};
use super::parameters::{ParameterName, ParameterNeeds, Setter, SetterRole};
use super::republish::{Firehose, TracedName};
use super::{Broker, Context, arguments};
use crate::operator_fault::{OperatorFault, check_changeable, check_definition_space, check_name};

/// The result of a declaration by an operator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Declared {
    /// The object exists with the requested properties.
    Done,
    /// An object of that name exists with other properties, and is unchanged.
    Differs,
}

/// Converts the result of comparing a declaration with an existing object.
fn comparison_result(outcome: Result<impl Sized, Fault>) -> Result<Declared, Fault> {
    match outcome {
        Ok(_) => Ok(Declared::Done),
        Err(fault) if fault.code == ReplyCode::PreconditionFailed => Ok(Declared::Differs),
        Err(fault) => Err(fault),
    }
}

/// The types of queues that RabbitMQ has. A virtual host may have any of them as its default queue type.
const QUEUE_TYPES: [&str; 3] = ["classic", "quorum", "stream"];

/// Checks the metadata that a virtual host would have after a change.
///
/// # Errors
/// The texts are too long, or there is no such queue type.
fn check_metadata(name: &str, change: &VhostChange, after: VhostMetadata<'_>) -> Result<(), OperatorFault> {
    let bytes = after.description.len() + after.tags.len();
    if bytes > VHOST_METADATA_BYTES_MAX {
        return Err(OperatorFault::Invalid(format!(
            "the description and the tags of virtual host '{name}' have {bytes} bytes; at most \
             {VHOST_METADATA_BYTES_MAX} are kept"
        )));
    }
    match change.default_queue_type.as_deref().filter(|kind| !QUEUE_TYPES.contains(kind)) {
        Some(_) => Err(OperatorFault::Invalid(format!(
            "the default_queue_type of virtual host '{name}' must be classic, quorum or stream"
        ))),
        None => Ok(()),
    }
}

/// The number of messages that arrived in a queue, and the present size of the queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueLoad {
    /// Messages that arrived in the queue in this process, including those recovered from the log at start.
    pub arrived: u64,
    /// Number of ready messages.
    pub ready: u32,
    /// Bytes of the bodies of ready messages.
    pub body_bytes: u64,
}

/// A binding, by the names of its source and destination.
#[derive(Clone, Copy, Debug)]
pub struct OperatorBinding<'a> {
    /// Name of the virtual host.
    pub vhost: &'a str,
    /// The exchange from which the binding routes messages.
    pub source: &'a str,
    /// The routing key.
    pub routing_key: &'a str,
    /// The queue or exchange to which it routes messages.
    pub destination: &'a str,
    /// The destination is an exchange.
    pub is_exchange: bool,
    /// The arguments, encoded as an AMQP table.
    pub arguments: &'a [u8],
}

impl Broker {
    /// Deletes the ready messages of a queue. Returns their number.
    ///
    /// # Errors
    /// There is no such queue.
    pub fn operator_purge(&mut self, cx: &mut Context<'_>, vhost: &str, queue: &str) -> Result<u32, Fault> {
        let (queue, _) = self.operator_queue(vhost, queue)?;
        let (count, drops) = self.purge(queue);
        drops.into_iter().for_each(|job| self.jobs.begin(job));
        self.run_jobs(cx);
        let batch = cx.pending_writes.await_settles();
        cx.await_batch(batch);
        Ok(count)
    }

    /// Checks whether a user has the permissions to declare a queue of this name, to consume from it, and to
    /// publish to it over the default exchange. The queue need not exist.
    ///
    /// # Errors
    /// The user does not have them, or there is no such user or virtual host.
    pub fn check_use_of_queue(&self, user: &str, vhost: &str, queue: &str) -> Result<(), Fault> {
        let Some(vhost) = self.access.find_vhost(vhost) else {
            return Err(Fault::new(ReplyCode::NotFound, format_args!("no vhost '{vhost}'")));
        };
        let who = self.access.identity_of(user);
        for (right, thing) in [
            (Right::Configure, Resource::Queue(queue)),
            (Right::Write, Resource::Exchange("")),
            (Right::Read, Resource::Queue(queue)),
        ] {
            self.access.check(&mut Work::default(), &who, vhost, right, thing)?;
        }
        Ok(())
    }

    /// Deletes a queue, even an exclusive one. Returns how many messages were ready.
    ///
    /// # Errors
    /// There is no such queue, or the condition `only_if` is not met.
    pub fn operator_delete_queue(
        &mut self,
        cx: &mut Context<'_>,
        vhost: &str,
        name: &str,
        only_if: DeleteIf,
    ) -> Result<u32, Fault> {
        if let Some(vhost) = self.access.find_vhost(vhost)
            && self.queues.records().find_queue(vhost, name).is_none()
            && self.delete_left_out(
                cx,
                vhost,
                DestinationName::Queue(name),
                only_if.unused || only_if.empty,
            )?
        {
            return Ok(0);
        }
        let (queue, _) = self.operator_queue(vhost, name)?;
        let count = self.check_queue_deletable(cx.pending_writes, queue, only_if)?;
        self.retire_queue(cx, queue);
        self.jobs.begin(Job::Queue(queue));
        self.run_jobs(cx);
        Ok(count)
    }

    /// Ends an MQTT session with its subscriptions and messages, and disconnects its client.
    ///
    /// # Errors
    /// There is no such session, or the storage cannot be written.
    pub fn operator_delete_session(
        &mut self,
        cx: &mut Context<'_>,
        vhost: &str,
        client_id: &str,
    ) -> Result<(), Fault> {
        let found = self.access.find_vhost(vhost).and_then(|vhost| self.sessions.find(vhost, client_id));
        let Some(session) = found else {
            let text = format_args!("no MQTT session '{client_id}' in vhost '{vhost}'");
            return Err(Fault::new(ReplyCode::NotFound, text));
        };
        let status = self.sessions.status(session);
        if let Some(queue) = status.queue {
            let name = Name::try_from(&*self.queues.at(queue).name).unwrap_or_default();
            return self.operator_delete_queue(cx, vhost, &name, DeleteIf::default()).map(drop);
        }
        if let Some(connection) = status.connection {
            let text = format_args!("its session was deleted");
            self.clients.force_close(connection, Fault::connection(ReplyCode::ConnectionForced, text));
        }
        Ok(())
    }

    /// Deletes the retained message of a topic.
    ///
    /// # Errors
    /// There is none, or the storage cannot be written.
    pub fn operator_delete_retained(
        &mut self,
        cx: &mut Context<'_>,
        vhost: &str,
        topic: &str,
    ) -> Result<(), Fault> {
        let is_deleted = match self.access.find_vhost(vhost).zip(exchange_separators(topic)) {
            Some((vhost, key)) => self.delete_retained(cx, vhost, &key)?,
            None => false,
        };
        if !is_deleted {
            let text = format_args!("no retained message of the topic '{topic}' in vhost '{vhost}'");
            return Err(Fault::new(ReplyCode::NotFound, text));
        }
        Ok(())
    }

    fn operator_queue(&self, vhost: &str, name: &str) -> Result<(QueueId, VhostId), Fault> {
        let not_found =
            || Fault::new(ReplyCode::NotFound, format_args!("no queue '{name}' in vhost '{vhost}'"));
        let vhost = self.access.find_vhost(vhost).ok_or_else(not_found)?;
        let queue = self
            .queues
            .records()
            .find_queue(vhost, name)
            .filter(|queue| !self.queues.at(*queue).is_internal());
        Ok((queue.ok_or_else(not_found)?, vhost))
    }

    /// Declares an exchange.
    ///
    /// # Errors
    /// The exchange cannot be declared with these properties, or there is no capacity.
    pub fn operator_declare_exchange(
        &mut self,
        cx: &mut Context<'_>,
        vhost: &str,
        declaration: &ExchangeDeclaration<'_>,
    ) -> Result<Declared, Fault> {
        let vhost = self.operator_vhost(vhost)?;
        declaration.check_type_and_name()?;
        match self.topology.find_exchange(vhost, declaration.exchange) {
            Some(found) => {
                let vhost = self.access.vhost_name(vhost);
                comparison_result(self.topology.compare_exchange(cx, vhost, found, declaration))
            }
            None => self.create_exchange(cx, vhost, declaration).map(|_| Declared::Done),
        }
    }

    /// Declares a queue that is not exclusive.
    ///
    /// # Errors
    /// The queue cannot be declared with these properties, or there is no capacity.
    pub fn operator_declare_queue(
        &mut self,
        cx: &mut Context<'_>,
        vhost: &str,
        declaration: &QueueDeclaration<'_>,
    ) -> Result<Declared, Fault> {
        let vhost = self.operator_vhost(vhost)?;
        let typed = self.with_default_type(vhost, declaration);
        let arguments = typed.as_deref().unwrap_or(declaration.arguments);
        let declaration = QueueDeclaration { arguments, ..*declaration };
        match self.queues.records().find_queue(vhost, declaration.queue) {
            Some(found) if self.queues.at(found).declared.exclusive_owner.is_some() => Ok(Declared::Differs),
            Some(found) => comparison_result(self.compare_properties(cx, vhost, found, &declaration)),
            None => {
                self.check_not_of_session(vhost, &declaration)?;
                self.create_checked(cx, None, vhost, &declaration).map(|_| Declared::Done)
            }
        }
    }

    /// Compares a definition with the exchange of that name, with the checks of [`Self::operator_declare_exchange`].
    /// Returns `None` if there is no such exchange. Changes nothing.
    ///
    /// # Errors
    /// The exchange cannot be declared with these properties.
    pub fn compare_exchange_definition(
        &self,
        cx: &mut Context<'_>,
        vhost: &str,
        declaration: &ExchangeDeclaration<'_>,
    ) -> Result<Option<Declared>, Fault> {
        declaration.check_type_and_name()?;
        let id = self.access.find_vhost(vhost);
        let found = id.and_then(|vhost| self.topology.find_exchange(vhost, declaration.exchange));
        let compare = |found| self.topology.compare_exchange(cx, vhost, found, declaration);
        found.map(compare).map(comparison_result).transpose()
    }

    /// Compares a definition with the queue of that name, with the checks of [`Self::operator_declare_queue`].
    /// Returns `None` if there is no such queue. Changes nothing.
    ///
    /// # Errors
    /// The queue cannot be declared with these properties.
    pub fn compare_queue_definition(
        &mut self,
        cx: &mut Context<'_>,
        vhost: &str,
        declaration: &QueueDeclaration<'_>,
    ) -> Result<Option<Declared>, Fault> {
        let QueueDeclaration { queue, arguments, .. } = *declaration;
        let Some(vhost) = self.access.find_vhost(vhost) else {
            let words = QueueText { name: queue, vhost };
            return arguments::check(words, Table::trusted(arguments), declaration.flags()).map(|()| None);
        };
        let typed = self.with_default_type(vhost, declaration);
        let declaration =
            QueueDeclaration { arguments: typed.as_deref().unwrap_or(arguments), ..*declaration };
        match self.queues.records().find_queue(vhost, queue) {
            Some(found) => {
                let declared = &self.queues.at(found).declared;
                // A declaration would replace the properties of a rebuilt queue.
                match declared.exclusive_owner.is_some() || declared.is_rebuilt {
                    true => Ok(Some(Declared::Differs)),
                    false => {
                        comparison_result(self.compare_properties(cx, vhost, found, &declaration)).map(Some)
                    }
                }
            }
            None => {
                self.check_not_of_session(vhost, &declaration)?;
                let words = self.queue_text(vhost, queue);
                arguments::check(words, Table::trusted(declaration.arguments), declaration.flags())?;
                Ok(None)
            }
        }
    }

    /// Returns whether a binding exists.
    pub fn has_binding(&self, binding: &OperatorBinding<'_>) -> bool {
        let OperatorBinding { vhost, source, routing_key, destination, is_exchange, arguments } = *binding;
        let Some(vhost) = self.access.find_vhost(vhost) else { return false };
        let to = match is_exchange {
            true => self.topology.find_exchange(vhost, destination).map(Destination::Exchange),
            false => self.queues.records().find_queue(vhost, destination).map(Destination::Queue),
        };
        let spec = BindingSpec { source, routing_key, arguments };
        to.is_some_and(|to| self.topology.find_binding(vhost, &spec, to).is_some())
    }

    /// Binds a queue or an exchange.
    ///
    /// # Errors
    /// Source or destination does not exist, the arguments are not valid, or there is no capacity.
    pub fn operator_bind(
        &mut self,
        cx: &mut Context<'_>,
        binding: &OperatorBinding<'_>,
    ) -> Result<Declared, Fault> {
        let OperatorBinding { vhost, source, routing_key, destination, is_exchange, arguments } = *binding;
        let id = self.operator_vhost(vhost)?;
        // Every queue is already bound to the default exchange, and nothing else can be.
        refuse_default(source)?;
        let from = self.require_exchange(id, source)?;
        let to = if is_exchange {
            refuse_default(destination)?;
            Destination::Exchange(self.require_exchange(id, destination)?)
        } else {
            Destination::Queue(self.operator_queue(vhost, destination)?.0)
        };
        let spec = BindingSpec { source, routing_key, arguments };
        self.check_no_subscription(id, destination, to)?;
        self.bind(cx, &spec.between(from, to)).map(|_| Declared::Done)
    }

    /// Removes the binding without arguments between an exchange and a queue, if it exists.
    ///
    /// # Errors
    /// The storage cannot be written.
    pub fn operator_unbind(
        &mut self,
        cx: &mut Context<'_>,
        vhost: &str,
        source: &str,
        routing_key: &str,
        queue: &str,
    ) -> Result<Declared, Fault> {
        let vhost = self.operator_vhost(vhost)?;
        let spec = BindingSpec { source, routing_key, arguments: &[] };
        if let Some(queue) = self.queues.records().find_queue(vhost, queue)
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

    /// Creates a virtual host without limits, unless it exists. It has the predeclared exchanges.
    ///
    /// # Errors
    /// The name is not valid, or there is no capacity.
    pub fn put_vhost(
        &mut self,
        pending_writes: &mut PendingWrites,
        name: &str,
    ) -> Result<Batch, OperatorFault> {
        self.put_vhost_with(pending_writes, name, &VhostChange::default())
    }

    /// Creates a virtual host, unless it exists, and changes its metadata.
    ///
    /// # Errors
    /// The name or the metadata are not valid, or there is no capacity. Nothing is changed then.
    pub fn put_vhost_with(
        &mut self,
        pending_writes: &mut PendingWrites,
        name: &str,
        change: &VhostChange,
    ) -> Result<Batch, OperatorFault> {
        check_name("virtual host", name)?;
        let found = self.access.find_vhost(name);
        let before = found.map_or_else(VhostMetadata::default, |vhost| self.access.vhost_metadata(vhost));
        let after = change.applied_to(before);
        if found.is_some() && after == before {
            return Ok(pending_writes.last_entry_batch());
        }
        if self.access.is_being_deleted(name) {
            return Err(OperatorFault::BeingDeleted(name.into()));
        }
        check_metadata(name, change, after)?;
        check_changeable(pending_writes)?;
        check_definition_space(pending_writes)?;
        let (bytes_before, bytes) = (before.text_bytes(), after.text_bytes());
        if bytes > self.quota.names_bytes_free() + bytes_before {
            return Err(OperatorFault::NoCapacity(NAMES));
        }
        let (description, tags) = (after.description.to_string(), after.tags.to_string());
        let (default_queue_type, is_protected) = (after.default_queue_type.to_string(), after.is_protected);
        let after = VhostMetadata {
            description: &description,
            tags: &tags,
            default_queue_type: &default_queue_type,
            is_protected,
        };
        let vhost = self.set_vhost(found, name, after);
        let vhost = vhost.map_err(|fault| OperatorFault::Store(fault.text.into()))?;
        Ok(self.access.append_vhost(pending_writes, vhost, true))
    }

    /// Sets the metadata of a virtual host and counts their bytes, without appending them to the log. Adds the virtual host
    /// if it was not `found`.
    ///
    /// # Errors
    /// There is no capacity for it or for the texts. Nothing is changed.
    pub(crate) fn set_vhost(
        &mut self,
        found: Option<VhostId>,
        name: &str,
        metadata: VhostMetadata<'_>,
    ) -> Result<VhostId, Fault> {
        let before = found.map_or(0, |vhost| self.access.vhost_metadata(vhost).text_bytes());
        self.quota.replace_names(before, metadata.text_bytes())?;
        let vhost = match found {
            Some(vhost) => vhost,
            None => {
                self.add_vhost(name).inspect_err(|_| self.quota.give_names_back(metadata.text_bytes()))?
            }
        };
        self.access.set_metadata_of_vhost(vhost, metadata);
        Ok(vhost)
    }

    /// Deletes a virtual host and everything in it. Its name, permissions, policies and parameters are
    /// deleted at once, its queues and exchanges step by step by a job. Returns the batch of the former.
    ///
    /// # Errors
    /// There is no such virtual host, or the storage cannot be written.
    pub fn delete_vhost(&mut self, cx: &mut Context<'_>, name: &str) -> Result<Batch, OperatorFault> {
        let vhost = self.access.require_vhost(name)?;
        let metadata = self.access.vhost_metadata(vhost);
        if metadata.is_protected {
            return Err(OperatorFault::Protected(name.into()));
        }
        check_changeable(cx.pending_writes)?;
        self.quota.give_names_back(metadata.text_bytes());
        self.access.set_metadata_of_vhost(vhost, VhostMetadata::default());
        self.access.append_vhost(cx.pending_writes, vhost, false);
        self.access.drop_permissions_for(cx.pending_writes, vhost);
        self.drop_policies_of(cx.pending_writes, vhost, name);
        self.parameters.clear_all_of_vhost(cx.pending_writes, vhost, name);
        self.clients
            .force_close_all(&format!("vhost '{name}' is deleted"), |record| record.vhost == Some(vhost));
        self.access.retire_vhost(vhost);
        self.topology.revise();
        self.jobs.begin(Job::Vhost(Sweep { vhost, queue: 0, exchange: 0 }));
        self.delete_orphans_in(cx, name);
        Ok(cx.pending_writes.last_entry_batch())
    }

    /// Creates a user, or sets password and tags of an existing one. Tags are separated by commas. Returns
    /// the batch of the change.
    ///
    /// # Errors
    /// The name or the tags are not valid, or there is no capacity.
    pub fn put_user(
        &mut self,
        pending_writes: &mut PendingWrites,
        name: &str,
        hash: PasswordHash,
        tags: &str,
    ) -> Result<Batch, OperatorFault> {
        let batch = self.access.put_user(pending_writes, name, hash, tags)?;
        self.note_users();
        Ok(batch)
    }

    /// Deletes a user with its permissions, and closes its connections. Returns the batch of the change.
    ///
    /// # Errors
    /// There is no such user, or the storage cannot be written.
    pub fn delete_user(
        &mut self,
        pending_writes: &mut PendingWrites,
        name: &str,
    ) -> Result<Batch, OperatorFault> {
        let user = self.access.delete_user(pending_writes, name)?;
        let reason = format!("user '{name}' is deleted");
        self.clients.force_close_all(&reason, |record| record.identity.user() == Some(user));
        self.clients.forget_user(user);
        self.note_users();
        Ok(pending_writes.last_entry_batch())
    }

    /// Creates a policy, or changes the policy of that name. Returns the batch of the change.
    ///
    /// # Errors
    /// There is no such virtual host, the policy is not valid, or there is no capacity.
    pub fn set_policy(
        &mut self,
        cx: &mut Context<'_>,
        policy: &Policy<&str, &[u8]>,
    ) -> Result<Batch, OperatorFault> {
        let id = self.access.require_vhost(policy.vhost)?;
        let batch = self.policies.set(cx.pending_writes, self.access.pattern_bytes_mut(), id, policy)?;
        self.notify_of_policies();
        self.run_jobs(cx);
        Ok(batch)
    }

    /// Deletes a policy. Returns the batch of the change.
    ///
    /// # Errors
    /// There is no policy of that name, or the storage cannot be written.
    pub fn clear_policy(
        &mut self,
        cx: &mut Context<'_>,
        vhost: &str,
        kind: PolicyKind,
        name: &str,
    ) -> Result<Batch, OperatorFault> {
        let id = self.access.find_vhost(vhost).ok_or(OperatorFault::NoSuchParameter)?;
        self.policies.clear(cx.pending_writes, id, vhost, kind, name)?;
        self.notify_of_policies();
        self.run_jobs(cx);
        Ok(cx.pending_writes.last_entry_batch())
    }

    /// Sets the maximum number of shovels, and the memory that each takes in bytes. Existing shovels stay even if there are
    /// more.
    pub const fn set_shovel_places(&mut self, shovels_max: usize, bytes_each: usize) {
        self.parameters.set_shovel_places(shovels_max, bytes_each);
    }

    /// Returns a number that rises whenever a parameter is set, changed or cleared.
    pub const fn parameters_version(&self) -> u64 {
        self.parameters.version()
    }

    /// Creates a parameter, or changes the value of an existing one. Returns the batch of the change.
    ///
    /// The caller has checked the value, and passes its requirements; `None` for a global parameter. `user` is the user that
    /// sets it, or `None` for the operator on this machine. A user needs permissions in the virtual host to which the component
    /// will connect.
    ///
    /// # Errors
    /// There is no such virtual host, the user does not fulfil the requirements, or there is no capacity.
    pub fn set_parameter(
        &mut self,
        pending_writes: &mut PendingWrites,
        view: &Parameter<&str, &[u8]>,
        needs: Option<&ParameterNeeds>,
        user: Option<&str>,
    ) -> Result<Batch, OperatorFault> {
        let vhost = view.vhost.map(|name| self.access.require_vhost(name)).transpose()?;
        let may_connect = |needs: &ParameterNeeds| {
            let may_enter = user.is_none_or(|user| self.access.has_permission(user, &needs.vhost));
            may_enter && self.access.find_vhost(&needs.vhost).is_some()
        };
        let role = match user {
            None => SetterRole::Operator,
            Some(user) if self.access.is_administrator(user) => SetterRole::Administrator(user),
            Some(user) => SetterRole::User(user),
        };
        let setter = Setter { role, may_connect: needs.is_none_or(may_connect) };
        self.parameters.set(pending_writes, vhost, view, needs, &setter)
    }

    /// Deletes a parameter. Returns the batch of the change.
    ///
    /// # Errors
    /// There is no parameter of that name, or the storage cannot be written.
    pub fn clear_parameter(
        &mut self,
        pending_writes: &mut PendingWrites,
        vhost: Option<&str>,
        component: &str,
        name: &str,
    ) -> Result<Batch, OperatorFault> {
        let found = vhost.map(|vhost| self.access.find_vhost(vhost).ok_or(OperatorFault::NoSuchParameter));
        self.parameters.clear(pending_writes, found.transpose()?, ParameterName { vhost, component, name })
    }

    /// Returns whether this parameter exists or may exist, in memory or only in the log.
    pub fn may_have_parameter(&self, vhost: &str, component: &str, name: &str) -> bool {
        let full_name = ParameterName { vhost: Some(vhost), component, name };
        self.parameters.may_have(self.access.find_vhost(vhost), full_name)
    }

    /// Creates a durable queue with the messages of an orphan. Returns their number.
    ///
    /// # Errors
    /// There is no such orphan or virtual host, a queue of that name exists, or there is no capacity.
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
        let words = self.queue_text(id, queue);
        if queue.is_empty() || queue.len() > 255 || queue.starts_with("amq.") {
            return Err(Fault::new(
                ReplyCode::PreconditionFailed,
                format_args!("{words} cannot be declared: use another name"),
            ));
        }
        if self.queues.records().find_queue(id, queue).is_some() {
            return Err(Fault::new(
                ReplyCode::PreconditionFailed,
                format_args!("{words} exists already: an orphan needs a new queue, use another name"),
            ));
        }
        self.access.check_queue_limit(id, queue)?;
        let orphan = self.recovery.take_orphan(at);
        let (durable, arguments) = (true, &[][..]);
        let declaration =
            QueueDeclaration { queue, durable, exclusive: false, auto_delete: false, arguments };
        let count = orphan.contents.count;
        let old = orphan.name.clone().filter(|(host, name)| (&**host, &**name) != (vhost, queue));
        let (declaration, kind, incarnation) = (&declaration, QueueKind::Classic, Some(incarnation));
        let created = self.create_as(cx, NewQueue { owner: None, vhost: id, declaration, kind, incarnation });
        self.end_creation(created, Some(orphan))?;
        if let Some((vhost, name)) = old {
            self.delete_definition_of_name(cx, &vhost, &name);
        }
        Ok(count)
    }

    /// Deletes an orphan. Returns how many messages it had.
    ///
    /// # Errors
    /// There is no such orphan, or the storage cannot be written.
    pub fn operator_delete_orphan(&mut self, cx: &mut Context<'_>, incarnation: u64) -> Result<u64, Fault> {
        let at = self.recovery.find_orphan(incarnation)?;
        check_deletable(cx.pending_writes, true)?;
        Ok(self.delete_orphan(cx, at))
    }

    /// Deletes the orphans of a virtual host, when it is deleted.
    pub(crate) fn delete_orphans_in(&mut self, cx: &mut Context<'_>, vhost: &str) {
        while let Some(at) = self.recovery.find_orphan_in_vhost(vhost) {
            self.delete_orphan(cx, at);
        }
    }

    /// Returns whether the firehose of any virtual host is on. Then connections need names for the copies.
    pub const fn is_tracing(&self) -> bool {
        self.firehose.is_on
    }

    /// Turns the firehose of a virtual host on or off. Returns `false` if there is no such virtual host.
    ///
    /// `node` is the node name that the copies contain.
    pub fn trace(&mut self, vhost: &str, node: &str, is_on: bool) -> bool {
        let Some(vhost) = self.access.find_vhost(vhost) else { return false };
        self.access.set_traced(vhost, is_on);
        self.firehose.is_on = self.access.is_any_traced();
        if !self.firehose.is_on {
            self.firehose = Firehose::default();
        } else if self.firehose.names.is_empty() {
            self.firehose.node = node.into();
            self.firehose.names = vec![TracedName::new(); self.clients.connections_capacity()];
        }
        true
    }

    /// Returns the number of ready messages in a queue; `None` if there is no such queue.
    pub fn queue_depth(&self, vhost: &str, queue: &str) -> Option<u32> {
        let vhost = self.access.find_vhost(vhost)?;
        let queue = self.queues.records().find_queue(vhost, queue)?;
        Some(self.queues.records().ready_in(queue))
    }

    /// Returns the number of messages that arrived in a queue, and its size; `None` if there is no such
    /// queue.
    pub fn queue_load(&self, vhost: &str, queue: &str) -> Option<QueueLoad> {
        let queue = self.queues.records().find_queue(self.access.find_vhost(vhost)?, queue)?;
        Some(QueueLoad {
            arrived: self.queues.records().sum_over_levels(queue, |level| level.backlog.arrived_count()),
            ready: self.queues.records().ready_in(queue),
            body_bytes: self.queues.records().sum_over_levels(queue, |level| level.backlog.body_bytes()),
        })
    }
}
