//! The subscriptions of MQTT sessions: which messages a session gets, and how they are sent.
//!
//! A subscription is a binding of the session's queue to `amq.topic`. Its options are arguments of the binding, so they are
//! stored, shown and restored with it.
//!
//! A message reaches the queue of a session once, also if several of its subscriptions match. Two options remove queues
//! from the route of a message, before it is pushed ([`select_subscribers`]):
//! - With No Local, the session does not get the messages of its own client.
//! - Of the sessions with a shared subscription (`$share/GROUP/FILTER`) of the same group and filter, one gets the message.
//!   Clients that accept a packet of its size come first, then connected clients, then those whose queue has the fewest
//!   messages, and then the one that was chosen least recently. A message stays in the queue of the chosen session.
//!
//! The delivery then regards all subscriptions of the session that match the topic. If a session has a shared and another
//! subscription that match, this includes the shared one for all messages.

use core::hash::BuildHasher;

use leveret_amqp::field::Table;
use leveret_amqp::props::{
    MQTT_CORRELATION, MQTT_PAYLOAD_FORMAT, MQTT_REPLY_TO, Properties, is_user_property,
};
use leveret_core::command::{
    BindingId, ConnectionId, MatchedSubscription, Name, QueueId, RetainHandling, SessionId, Subscription,
    SubscriptionDelivery,
};
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::mem::{MessageFlags, MessageId, Messages};
use leveret_core::topic::exchange_separators;
use leveret_core::work::Work;
use leveret_mqtt::{VARIABLE_INT_MAX, variable_int_len};
use leveret_queues::{Records, Taken};
use leveret_routing::{Binding, BindingSpec, Destination, Topology};

use super::{ARGUMENTS_BYTES_MAX, MessageKey, Session, Sessions, TOPIC_EXCHANGE, write_arguments};
use crate::access::{Resource, Right};
use crate::operator_fault::check_definition_space;
use crate::{Broker, Context};

/// The QoS of a subscription.
const QOS_ARGUMENT: &str = "x-mqtt-qos";
/// The topic filter, if the binding key does not tell it: the filter has the level `*`.
const FILTER_ARGUMENT: &str = "x-mqtt-filter";
/// The group of a shared subscription.
const GROUP_ARGUMENT: &str = "x-mqtt-share";
/// The subscription identifier.
const ID_ARGUMENT: &str = "x-mqtt-subscription-id";
/// No Local.
const NO_LOCAL_ARGUMENT: &str = "x-mqtt-no-local";
/// Retain As Published.
const RETAIN_AS_PUBLISHED_ARGUMENT: &str = "x-mqtt-retain-as-published";

/// Units of work for the comparison of a subscription with a topic.
const UNITS_PER_SUBSCRIPTION: usize = 2;
/// Units of work for a shared subscription that matches a message.
const UNITS_PER_CANDIDATE: usize = 8;

/// The options of a subscription, as the arguments of its binding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Options<'a> {
    qos: u8,
    /// The topic filter, if the binding key does not tell it.
    filter: Option<&'a str>,
    group: Option<&'a str>,
    id: Option<u32>,
    no_local: bool,
    retain_as_published: bool,
}

impl<'a> Options<'a> {
    fn of(subscription: &Subscription<'a>) -> Self {
        let Subscription { filter, group, qos, id, no_local, retain_as_published, .. } = *subscription;
        Self {
            qos,
            filter: has_literal_star(filter).then_some(filter),
            group,
            id,
            no_local,
            retain_as_published,
        }
    }

    fn read(arguments: Table<'a>) -> Self {
        let number = |name| arguments.get(name).and_then(|value| value.as_integer());
        let text = |name| arguments.get(name).and_then(|value| value.as_str());
        let is_set = |name| arguments.get(name).is_some_and(|value| value.as_bool() == Some(true));
        Self {
            qos: number(QOS_ARGUMENT).and_then(|qos| u8::try_from(qos).ok()).unwrap_or(0),
            filter: text(FILTER_ARGUMENT),
            group: text(GROUP_ARGUMENT),
            id: number(ID_ARGUMENT)
                .and_then(|id| u32::try_from(id).ok())
                .filter(|id| (1..=VARIABLE_INT_MAX).contains(id)),
            no_local: is_set(NO_LOCAL_ARGUMENT),
            retain_as_published: is_set(RETAIN_AS_PUBLISHED_ARGUMENT),
        }
    }

    /// Returns the options as a table of arguments. Options that are not used are not in it.
    fn write(self, octets: &mut [u8; ARGUMENTS_BYTES_MAX]) -> &[u8] {
        write_arguments(octets, |table| {
            let texts = [(FILTER_ARGUMENT, self.filter), (GROUP_ARGUMENT, self.group)];
            for (name, text) in texts {
                text.map_or(Ok(()), |text| table.text(name, text))?;
            }
            table.long(QOS_ARGUMENT, self.qos.into())?;
            self.id.map_or(Ok(()), |id| table.long(ID_ARGUMENT, id.into()))?;
            for (name, is_set) in
                [(NO_LOCAL_ARGUMENT, self.no_local), (RETAIN_AS_PUBLISHED_ARGUMENT, self.retain_as_published)]
            {
                if is_set {
                    table.bool(name, true)?;
                }
            }
            Ok(())
        })
    }

    /// Returns whether a subscription has the same filter and group. Their binding keys are the same.
    fn is_same_filter(&self, other: &Self) -> bool {
        (self.filter, self.group) == (other.filter, other.group)
    }

    /// Returns whether the session may have to be left out although the binding matches a message.
    const fn may_exclude_session(self) -> bool {
        self.no_local || self.group.is_some()
    }

    /// Returns whether the PUBLISH of a message depends on the subscriptions that match it.
    const fn affects_publish(self) -> bool {
        self.retain_as_published || self.id.is_some()
    }
}

/// What the subscriptions of a session use. A flag stays set when the subscription ends.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct UsedOptions {
    /// No Local, or a shared subscription.
    may_exclude_session: bool,
    /// Subscription identifiers, or Retain As Published.
    affects_publish: bool,
}

/// Returns the binding key of a topic filter. `None`: it is too long.
fn binding_key(filter: &str) -> Option<Name> {
    let mut key = exchange_separators(filter)?;
    // Both characters take one octet.
    let is_plus = |(at, octet): (usize, u8)| (octet == b'+').then_some(at);
    while let Some(at) = key.bytes().enumerate().find_map(is_plus) {
        let mut replaced = Name::new();
        let parts = [&key[..at], "*", &key[at + 1..]];
        parts.iter().try_for_each(|part| replaced.push_str(part)).ok()?;
        key = replaced;
    }
    Some(key)
}

/// Returns the topic filter of a subscription, from its binding key and its arguments, and its group.
pub(crate) fn filter_of<'a>(key: &str, arguments: Table<'a>) -> (Name, Option<&'a str>) {
    let options = Options::read(arguments);
    let filter = match options.filter {
        Some(filter) => Name::try_from(filter).ok(),
        None => exchange_separators(key).map(|filter| {
            let levels = filter.split('/').map(|level| if level == "*" { "+" } else { level });
            let mut text = Name::new();
            for (at, level) in levels.enumerate() {
                // It is as long as the key.
                let _ = text.push_str(if at > 0 { "/" } else { "" }).and_then(|()| text.push_str(level));
            }
            text
        }),
    };
    (filter.unwrap_or_default(), options.group)
}

/// Returns whether a topic filter has a level `*`, which is literal in MQTT and a wildcard in a binding key.
fn has_literal_star(filter: &str) -> bool {
    filter.split('/').any(|level| level == "*")
}

/// Returns whether the filter of a subscription matches a routing key.
pub(crate) fn matches(key: &str, arguments: Table<'_>, routing_key: &str) -> bool {
    if let Some(filter) = arguments.get(FILTER_ARGUMENT).and_then(|value| value.as_str()) {
        return exchange_separators(routing_key).is_some_and(|topic| leveret_mqtt::matches(filter, &topic));
    }
    if routing_key.starts_with('$') && key.starts_with(['*', '#']) {
        return false;
    }
    let (mut wanted, mut words) = (key.split('.'), routing_key.split('.'));
    loop {
        match (wanted.next(), words.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("*"), Some(_)) => {}
            (Some(wanted), Some(word)) if wanted == word => {}
            _ => return false,
        }
    }
}

impl Broker {
    /// Adds a subscription to the session of a connection, or replaces the one with the same filter.
    ///
    /// # Errors
    /// The user may not subscribe to the filter, or there is no memory for the subscription.
    pub(crate) fn subscribe(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        subscription: &Subscription<'_>,
    ) -> Result<(), Fault> {
        let Subscription { filter, group, retain_handling, .. } = *subscription;
        let session = self.session_of(connection)?;
        let vhost = self.sessions.at(session).vhost;
        let Some(key) = binding_key(filter) else {
            let text = format_args!("a topic filter has at most 255 bytes");
            return Err(Fault::new(ReplyCode::SyntaxError, text));
        };
        let mut octets = [0; ARGUMENTS_BYTES_MAX];
        let options = Options::of(subscription);
        let arguments = options.write(&mut octets);
        let spec = BindingSpec { source: TOPIC_EXCHANGE, routing_key: &key, arguments };
        let name = self.session_queue_name(session);
        self.check(cx.work, connection, vhost, Right::Configure, Resource::Queue(&name))?;
        self.check_bind(cx.work, connection, vhost, Resource::Queue(&name), &spec)?;
        self.check(cx.work, connection, vhost, Right::Read, Resource::Queue(&name))?;
        let source = self.require_exchange(vhost, TOPIC_EXCHANGE)?;
        let earlier = self.find_subscription(session, &options, &key);
        cx.work.charge(UNITS_PER_SUBSCRIPTION * self.subscription_count(session));
        let queue = self.session_queue(cx, session, &name)?;
        let destination = Destination::Queue(queue);
        let is_same = |binding: BindingId| *self.topology.binding(binding).arguments == *arguments;
        let replaced = earlier.filter(|earlier| !is_same(*earlier));
        let bound = self.bind(cx, &spec.between(source, destination));
        self.note_refused_subscription(cx, session, bound.as_ref().err());
        bound?;
        self.sessions.note_options(session, options);
        if let Some(earlier) = replaced {
            self.remove_binding(cx, earlier);
        }
        let sends_retained = match retain_handling {
            // §4.8.2: a shared subscription gets none.
            _ if group.is_some() => false,
            RetainHandling::Always => true,
            RetainHandling::IfNew => earlier.is_none(),
            RetainHandling::Never => false,
        };
        let binding = self.find_subscription(session, &options, &key);
        match binding {
            Some(binding) if sends_retained => {
                self.begin_replay(session, binding);
                self.note_system_subscriber(session, filter);
            }
            // An earlier subscription may have had the same place.
            Some(binding) => self.sessions.replays_mut(session).forget(binding),
            None => {}
        }
        Ok(())
    }

    /// Notes whether there was memory for the last subscription of a session, for the alarm about it.
    fn note_refused_subscription(&mut self, cx: &Context<'_>, session: SessionId, fault: Option<&Fault>) {
        // The disk has an alarm of its own.
        let has_disk = check_definition_space(cx.pending_writes).is_ok();
        match has_disk && fault.is_some_and(|fault| fault.code == ReplyCode::ResourceError) {
            true => self.sessions.refused_subscription = Some(session),
            false if self.sessions.refused_subscription == Some(session) => {
                self.sessions.refused_subscription = None
            }
            false => {}
        }
    }

    /// Removes a subscription from the session of a connection.
    ///
    /// # Errors
    /// 404: there is no such subscription. Or the storage cannot be written.
    pub(crate) fn unsubscribe(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        filter: &str,
        group: Option<&str>,
    ) -> Result<(), Fault> {
        let session = self.session_of(connection)?;
        let wanted = Options::of(&Subscription { filter, group, ..Subscription::default() });
        let key = binding_key(filter);
        let found = key.as_deref().and_then(|key| self.find_subscription(session, &wanted, key));
        let Some(binding) = found else {
            let text = format_args!("no subscription of the session has this filter");
            return Err(Fault::new(ReplyCode::NotFound, text));
        };
        // Messages that match the filter now are delivered first, as many as the client may get unacknowledged.
        if let Some(queue) = self.sessions.at(session).queue {
            self.catch_up(cx, queue);
        }
        self.unbind(cx, binding)?;
        // A power cut while options were replaced may have left both subscriptions.
        while let Some(binding) = key.as_deref().and_then(|key| self.find_subscription(session, &wanted, key))
        {
            self.unbind(cx, binding)?;
        }
        Ok(())
    }

    /// Returns the virtual host and client identifier of the session that was refused a subscription last for lack of memory,
    /// and how many it has. `None` if no session was, or it has ended, or subscribed since.
    pub fn session_without_subscriptions(&self) -> Option<(&str, &str, usize)> {
        let session = self.sessions.refused_subscription?;
        let record = self.sessions.slab.get(session.index())?;
        let count = self.subscription_count(session);
        Some((self.access.vhost_name(record.vhost), &*record.client_id, count))
    }

    /// Returns the number of subscriptions of a session.
    fn subscription_count(&self, session: SessionId) -> usize {
        let queue = self.sessions.at(session).queue;
        queue.map_or(0, |queue| self.queues.at(queue).bindings.len() as usize)
    }

    /// Returns the subscription of a session with this filter and group, whose binding key is `key`.
    fn find_subscription(&self, session: SessionId, wanted: &Options<'_>, key: &str) -> Option<BindingId> {
        let queue = self.sessions.at(session).queue?;
        let is_it = |binding: &BindingId| {
            let record = self.topology.binding(*binding);
            let own = || Options::read(Table::trusted(&record.arguments));
            *record.key == *key && own().is_same_filter(wanted)
        };
        self.topology.bindings_of_queue(&self.queues.at(queue).bindings).find(is_it)
    }

    /// Notes a binding that was restored, if it is a subscription.
    pub(crate) fn note_restored_subscription(&mut self, destination: Destination, arguments: Table<'_>) {
        if let Destination::Queue(queue) = destination
            && let Some(session) = self.queues.at(queue).session()
        {
            self.sessions.note_options(session, Options::read(arguments));
        }
    }

    /// Returns how the message that was taken out of a session's queue is sent to the client: with the lower QoS of the
    /// message and of the highest subscription that matches its topic.
    pub(crate) fn subscription_delivery(
        &mut self,
        cx: &mut Context<'_>,
        session: SessionId,
        queue: QueueId,
        taken: &Taken,
    ) -> SubscriptionDelivery {
        let Ok(routing_key) = core::str::from_utf8(cx.messages.routing_key(taken.message)) else {
            return SubscriptionDelivery::Skip;
        };
        // Programs of AMQP may publish with keys that are no topic names.
        if routing_key.is_empty() || routing_key.contains(['+', '#', '\0']) {
            return SubscriptionDelivery::Skip;
        }
        let packet_len_max = u64::from(self.sessions.at(session).packet_len_max);
        // Most packets are much shorter, so that nothing needs to be read.
        let may_be_too_long =
            ids_len_max(self.sessions.at(session).used_options, self.subscription_count(session))
                + cx.messages.stream_len(taken.message) as u64
                + PUBLISH_OVERHEAD_BYTES_MAX
                > packet_len_max;
        let (record, message) = (self.sessions.at_mut(session), MessageKey::of(taken));
        let Some((_, channel)) = record.attached else { return SubscriptionDelivery::Skip };
        let tag = self.clients.channel(channel).last_tag + 1;
        // A delivery that was begun is completed, even without a subscription (MQTT-3.10.4-3).
        if let Some(delivery) = record.continue_delivery(message, tag) {
            let is_too_long =
                may_be_too_long && self.publish_len(cx.messages, taken.message, true, 0) > packet_len_max;
            if is_too_long {
                // The client never sees it, so it would stay open.
                self.sessions.at_mut(session).in_flight.retain(|other| other.tag != tag);
                self.sessions.count_oversized(session);
            }
            self.update_hold(session);
            return if is_too_long { SubscriptionDelivery::Skip } else { delivery };
        }
        let (granted, ids_len, examined) = self.granted(queue, routing_key);
        // The subscriptions are compared once more when the message is written, if they change the packet.
        let times = 1 + usize::from(self.sessions.at(session).used_options.affects_publish);
        cx.work.charge(times * UNITS_PER_SUBSCRIPTION * examined);
        let is_persistent = cx.messages.flags(taken.message).has(MessageFlags::PERSISTENT);
        let has_packet_id = is_persistent && granted > Some(0);
        if may_be_too_long
            && self.publish_len(cx.messages, taken.message, has_packet_id, ids_len) > packet_len_max
        {
            self.sessions.count_oversized(session);
            return SubscriptionDelivery::Skip;
        }
        match granted {
            None => SubscriptionDelivery::Skip,
            Some(qos) if qos > 0 && is_persistent => {
                let is_exactly_once =
                    qos > 1 && cx.messages.flags(taken.message).has(MessageFlags::EXACTLY_ONCE);
                let tag = self.next_packet_tag(session, channel);
                let delivery = self.sessions.at_mut(session).begin_delivery(message, tag, is_exactly_once);
                self.update_hold(session);
                delivery
            }
            Some(_) => SubscriptionDelivery::AtMostOnce,
        }
    }

    /// Returns the highest QoS of the subscriptions of a queue that match a routing key, the bytes of their subscription
    /// identifiers in a PUBLISH, and the number of subscriptions that were examined. The QoS is `None` if none matches.
    #[inline]
    fn granted(&self, queue: QueueId, routing_key: &str) -> (Option<u8>, u64, usize) {
        let (mut granted, mut ids_len, mut examined) = (None, 0, 0);
        for binding in self.topology.bindings_of_queue(&self.queues.at(queue).bindings) {
            examined += 1;
            if let Some(options) = matching(self.topology.binding(binding), routing_key) {
                granted = granted.max(Some(options.qos));
                ids_len += options.id.map_or(0, |id| 1 + variable_int_len(id) as u64);
            }
        }
        (granted, ids_len, examined)
    }

    /// Returns the length of the PUBLISH of MQTT 5 with a message, in bytes. If strings of an AMQP publisher are not sent
    /// because MQTT does not allow them, the packet is shorter.
    fn publish_len(
        &mut self,
        messages: &Messages,
        message: MessageId,
        has_packet_id: bool,
        ids_len: u64,
    ) -> u64 {
        let mut scratch = self.queues.lend_scratch();
        let properties = Properties::trusted(messages.properties(message, &mut scratch.properties));
        let properties_len = mqtt_properties_len(&properties) + ids_len;
        self.queues.return_scratch(scratch);
        let topic_len = messages.routing_key(message).len() as u64;
        let len_of_len = |len: u64| variable_int_len(u32::try_from(len).unwrap_or(u32::MAX)) as u64;
        let remaining_len = 2
            + topic_len
            + if has_packet_id { 2 } else { 0 }
            + len_of_len(properties_len)
            + properties_len
            + u64::from(messages.body_len(message));
        1 + len_of_len(remaining_len) + remaining_len
    }
}

impl Sessions {
    /// Returns whether a session has used No Local or shared subscriptions since the start.
    pub(crate) const fn may_exclude_any(&self) -> bool {
        self.may_exclude_any
    }

    fn note_options(&mut self, session: SessionId, options: Options<'_>) {
        let used = &mut self.at_mut(session).used_options;
        used.may_exclude_session |= options.may_exclude_session();
        used.affects_publish |= options.affects_publish();
        self.may_exclude_any |= options.may_exclude_session();
    }
}

/// Returns the options of a subscription, if it matches a routing key.
fn matching<'b>(subscription: &'b Binding, routing_key: &str) -> Option<Options<'b>> {
    let arguments = Table::trusted(&subscription.arguments);
    matches(&subscription.key, arguments, routing_key).then(|| Options::read(arguments))
}

/// A shared subscription that matches a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// A hash of group and filter. The sessions that share a subscription have the same.
    hash: u64,
    binding: BindingId,
    session: SessionId,
}

/// Bytes of memory that a subscription takes while the sessions for a message are chosen. The list grows by doubling.
pub(crate) const CANDIDATE_BYTES: usize = 2 * size_of::<Candidate>();

/// How preferred a session is for a message of a shared subscription. The smallest rank is chosen.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// The packet may be larger than the client accepts. It is estimated from the length in memory, which is larger.
    exceeds_packet_limit: bool,
    is_disconnected: bool,
    /// Number of messages that wait or are not acknowledged.
    pending_count: u64,
    /// When the session was chosen last.
    last_chosen: u64,
}

/// The message for which sessions are selected.
#[derive(Clone, Copy)]
pub(crate) struct RoutedMessage<'m> {
    /// The session of the client that has published it.
    pub(crate) publisher: Option<SessionId>,
    pub(crate) routing_key: &'m [u8],
    /// The length in memory of its names, properties and payload in bytes; 0 if it is not known.
    pub(crate) len: u64,
}

/// The sessions with their subscriptions and queues.
pub(crate) struct Subscribers<'b> {
    pub(crate) sessions: &'b mut Sessions,
    pub(crate) topology: &'b Topology,
    pub(crate) records: &'b Records,
}

/// Removes the queues of sessions from `targets` that No Local or another session of a group excludes. The caller has
/// checked [`Sessions::may_exclude_any`], so most publishes skip this.
pub(crate) fn select_subscribers(
    subscribers: Subscribers<'_>,
    work: &mut Work,
    message: RoutedMessage<'_>,
    targets: &mut Vec<QueueId>,
) {
    let Subscribers { sessions, topology, records } = subscribers;
    let Ok(routing_key) = core::str::from_utf8(message.routing_key) else { return };
    let mut candidates = core::mem::take(&mut sessions.candidates);
    sessions.selection_count += 1;
    let number = sessions.selection_count;
    // Keeps the queues that get the message without a shared subscription.
    targets.retain(|&queue| {
        let record = records.record_of_queue(queue);
        let may_exclude_session =
            |session: &SessionId| sessions.at(*session).used_options.may_exclude_session;
        let Some(session) = record.session().filter(may_exclude_session) else { return true };
        work.charge(1 + UNITS_PER_SUBSCRIPTION * record.bindings.len() as usize);
        let (mut is_any, mut is_wanted) = (false, false);
        for binding in topology.bindings_of_queue(&record.bindings) {
            let subscription = topology.binding(binding);
            let Some(options) = matching(subscription, routing_key) else { continue };
            is_any = true;
            match options.group {
                None => is_wanted |= !(options.no_local && message.publisher == Some(session)),
                Some(group) => {
                    let hash = sessions.group_hasher.hash_one((group, options.filter, &subscription.key));
                    candidates.push(Candidate { hash, binding, session });
                }
            }
        }
        // No subscription matches its own key: another key (CC) or exchange routed it.
        let stays = is_wanted || !is_any;
        if stays {
            sessions.at_mut(session).last_selected = number;
        }
        stays
    });
    work.charge(UNITS_PER_CANDIDATE * candidates.len());
    candidates.sort_unstable_by_key(|candidate| candidate.hash);
    for group in candidates.chunk_by(|one, other| one.hash == other.hash) {
        let Some(chosen) = group
            .iter()
            .min_by_key(|candidate| rank_of(sessions.at(candidate.session), records, message.len))
        else {
            continue;
        };
        let session = sessions.at_mut(chosen.session);
        session.last_chosen = number;
        // Another subscription may have selected it already.
        if core::mem::replace(&mut session.last_selected, number) != number
            && let Destination::Queue(queue) = topology.binding(chosen.binding).destination
        {
            targets.push(queue);
        }
    }
    candidates.clear();
    sessions.candidates = candidates;
}

/// Returns the rank of a session for a message of this length among the members of its group.
fn rank_of(session: &Session, records: &Records, len: u64) -> Rank {
    let queue = session.queue.map(|queue| records.record_of_queue(queue));
    Rank {
        exceeds_packet_limit: len + PUBLISH_OVERHEAD_BYTES_MAX > u64::from(session.packet_len_max),
        is_disconnected: session.attached.is_none(),
        pending_count: queue
            .map_or(0, |queue| u64::from(queue.backlog.ready()) + u64::from(queue.unsettled.count)),
        last_chosen: session.last_chosen,
    }
}

impl Broker {
    /// Like [`select_subscribers`], for a message of a client. The caller has checked
    /// [`Sessions::may_exclude_any`].
    #[cold]
    pub(crate) fn select_subscribers(
        &mut self,
        work: &mut Work,
        connection: Option<ConnectionId>,
        messages: &Messages,
        message: MessageId,
        targets: &mut Vec<QueueId>,
    ) {
        let publisher = connection.and_then(|connection| self.clients.connection(connection).session);
        let (topology, records) = (&self.topology, self.queues.records());
        let subscribers = Subscribers { sessions: &mut self.sessions, topology, records };
        let routing_key = messages.routing_key(message);
        let selected = RoutedMessage { publisher, routing_key, len: messages.stream_len(message) as u64 };
        select_subscribers(subscribers, work, selected, targets);
    }

    /// Returns the subscriptions of a session that match a message; none if no subscription of the session changes a PUBLISH.
    pub(crate) fn matched_subscriptions<'b>(
        &'b self,
        connection: ConnectionId,
        routing_key: &'b str,
    ) -> impl Iterator<Item = MatchedSubscription> {
        let session = self.clients.connection(connection).session.map(|session| self.sessions.at(session));
        let session = session.filter(|session| session.used_options.affects_publish);
        let queue = session.and_then(|session| session.queue).map(|queue| self.queues.at(queue));
        let bindings = queue.into_iter().flat_map(|queue| self.topology.bindings_of_queue(&queue.bindings));
        bindings.filter_map(move |binding| {
            let options = matching(self.topology.binding(binding), routing_key)?;
            Some(MatchedSubscription { id: options.id, retain_as_published: options.retain_as_published })
        })
    }
}

/// Returns the most bytes that the subscription identifiers of a packet take.
fn ids_len_max(used: UsedOptions, subscription_count: usize) -> u64 {
    if used.affects_publish { 5 * subscription_count as u64 } else { 0 }
}

/// The most bytes by which a PUBLISH to a client is longer than its message in memory, with AMQP properties. They are for
/// the fixed header, the lengths of topic and properties, the packet identifier, and the properties themselves.
const PUBLISH_OVERHEAD_BYTES_MAX: u64 = 5 + 2 + 4 + 2 + 5;

/// Returns the length of the MQTT properties for these AMQP properties: see `properties` in `leveret-connection`.
fn mqtt_properties_len(properties: &Properties<'_>) -> u64 {
    let string_len = |octets: &[u8]| 3 + octets.len() as u64;
    let mut len = properties.content_type().map_or(0, string_len);
    len += properties.correlation_id().map_or(0, string_len);
    len += if properties.expiration().is_some() { 5 } else { 0 };
    for (name, value) in properties.headers().unwrap_or(Table::EMPTY).iter() {
        let Some(value_len) = value.as_bytes().map(|octets| octets.len() as u64) else {
            len += if name == MQTT_PAYLOAD_FORMAT.as_bytes() { 2 } else { 0 };
            continue;
        };
        len += match () {
            () if name == MQTT_REPLY_TO.as_bytes() || name == MQTT_CORRELATION.as_bytes() => 3 + value_len,
            () if is_user_property(name) => 5 + name.len() as u64 + value_len,
            () => 0,
        };
    }
    len
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments_of(filter: &str) -> Vec<u8> {
        let subscription = Subscription { filter, qos: 1, ..Subscription::default() };
        Options::of(&subscription).write(&mut [0; ARGUMENTS_BYTES_MAX]).to_vec()
    }

    /// A binding of an older store, or of one that was changed by hand, may have any arguments.
    #[test]
    fn an_identifier_that_mqtt_does_not_allow_is_not_sent() {
        for (number, id) in
            [(0, None), (-1, None), (1, Some(1)), (268_435_455, Some(268_435_455)), (268_435_456, None)]
        {
            let mut octets = [0; ARGUMENTS_BYTES_MAX];
            let arguments = write_arguments(&mut octets, |table| table.long(ID_ARGUMENT, number));
            assert_eq!(Options::read(Table::trusted(arguments)).id, id, "{number}");
        }
    }

    /// A binding key matches what the topic filter matches, also for topics with dots and stars.
    #[test]
    fn a_subscription_matches_as_its_filter_does() {
        let filters = [
            "#", "+", "a", "a/#", "a/+", "+/b", "a/+/c", "a.b/c", "+/c", "a/*", "*", "a/*/c", "*/#",
            "$SYS/#", "$SYS/+", "a//c", "/a", "a*/b",
        ];
        let topics = [
            "a", "a/b", "a/b/c", "a.b/c", "a/*", "*", "a/*/c", "*/x", "$SYS/x", "$SYS", "a//c", "/a", "a*/b",
            "ab", "a/", "a.b", "a/b.c",
        ];
        for filter in filters {
            let (key, arguments) = (binding_key(filter).unwrap(), arguments_of(filter));
            for topic in topics {
                let routing_key = exchange_separators(topic).unwrap();
                assert_eq!(exchange_separators(&routing_key).unwrap(), topic);
                let expected = leveret_mqtt::matches(filter, topic);
                let found = matches(&key, Table::trusted(&arguments), &routing_key);
                assert_eq!(found, expected, "filter {filter}, topic {topic}");
            }
        }
    }
}
