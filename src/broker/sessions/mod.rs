//! MQTT sessions: client identifiers, subscriptions, and the deliveries that clients have not acknowledged.
//!
//! A session consumes one queue, `mqtt-subscription-CLIENT`, and each of its subscriptions is a binding of that queue to
//! `amq.topic`. So messages for a session are routed, stored, limited and shown like all others. Other clients cannot
//! use the queue.
//!
//! A session that ends with its connection has an exclusive queue. The queue of a session that is kept is durable, and
//! expires like any queue that is not used: after the session expiry interval. Such a session is in the log because its
//! queue and its bindings are.
//!
//! The routing key of a topic is the topic with `/` and `.` exchanged ([`leveret_core::topic`]). In filters, `+` becomes
//! `*`. A message may reach the queue although no filter matches its
//! topic: the `*` of a filter is literal in MQTT, and a wildcard does not match a topic that begins with `$`. Such a
//! message is not delivered.
//!
//! A message with QoS 2 is delivered exactly once, also over reconnections and power cuts, because both ends remember its
//! packet identifier. A session that is kept has its part in the log ([`Definition::SessionState`]):
//!
//! ```text
//!   client            broker                                     in one commit
//!   PUBLISH 7    ->   publishes the message, unless it has 7     the message, and 7 is received
//!                <-   PUBREC 7
//!   PUBREL 7     ->                                              7 is not received
//!                <-   PUBCOMP 7
//!
//!                <-   PUBLISH 9                                  9 is the message at this offset: before it is sent
//!   PUBREC 9     ->                                              9 is released; not before it: the message is settled
//!                <-   PUBREL 9
//!   PUBCOMP 9    ->                                              (with the next change)
//! ```
//!
//! The identifiers of published messages are changed in groups (`leveret_storage::PendingWrites`). So they are durable
//! with their messages, and no earlier. The identifiers of deliveries do not wait for messages: on a full disk, only
//! deliveries free space for these. A start settles the messages of released deliveries, which the commit of their
//! settlement may lack.
//!
//! # Invariants
//! - A client identifier has at most one session in a virtual host, and a session has at most one connection.
//! - The deliveries that the client must acknowledge, and those that are released, have different packet identifiers.

mod packet_ids;
mod packets;
mod slow;
mod subscriptions;
mod system_topics;

use core::num::NonZeroU16;
use std::collections::VecDeque;

use foldhash::quality::FixedState;
use leveret_amqp::field::Table;
use leveret_amqp::{TableWriter, Writer};
use leveret_core::batch::Batch;
use leveret_core::command::{
    ChannelId, ConnectionId, Name, OpenSession, QueueId, SESSION_EXACTLY_ONCE_MAX, SessionId, SessionOpened,
    SubscriptionDelivery, VhostId,
};
use leveret_core::definition::SessionPart;
use leveret_core::error::{Fault, ReplyCode, no_memory_for};
use leveret_core::limits::Limits;
use leveret_core::mem::{Class, IndexTable, Memory, Slab};
use leveret_queues::{Delivered, Taken};
use leveret_routing::Destination;
use packet_ids::{PacketIds, RANGE_BYTES, RANGES_MAX};

use super::access::{Resource, Right};
use super::clients::{Clients, ConsumerState, Mode, NewConsumer};
use super::definitions::QueueDeclaration;
use super::job::Job;
use super::retained::Replays;
use super::wills::{Will, Wills};
use super::{Broker, Context};

pub(crate) use subscriptions::{
    CANDIDATE_BYTES, RoutedMessage, Subscribers, filter_of, matches, select_subscribers,
};
use subscriptions::{Candidate, UsedOptions};

/// The exchange to which topics are published and bound, as in RabbitMQ.
pub(crate) const TOPIC_EXCHANGE: &str = "amq.topic";
/// The name of a session's queue is this and the client identifier. RabbitMQ adds the QoS to it.
const QUEUE_PREFIX: &str = "mqtt-subscription-";
/// The beginning of the client identifiers that the broker assigns.
const ASSIGNED_PREFIX: &str = "leveret-";
/// The consumer tag of all sessions.
const CONSUMER_TAG: &str = "mqtt";
/// The argument of the queue of a session that is kept.
const KEPT_ARGUMENT: &str = "x-mqtt-session";
/// Bytes of the arguments of a subscription's binding or of a session's queue.
const ARGUMENTS_BYTES_MAX: usize = 512;

/// One session.
#[derive(Debug)]
pub(crate) struct Session {
    vhost: VhostId,
    client_id: Box<str>,
    /// The connection of the client, and its channel; `None` while the client is not connected.
    attached: Option<(ConnectionId, ChannelId)>,
    /// The place and the serial of the user that opened the session last; `None` after a start.
    user: Option<(usize, u32)>,
    /// When the client was last connected, or the broker was started, in milliseconds of broker time.
    seen_ms: u64,
    /// How long the session is kept after its connection, in seconds; 0: it ends with it.
    expiry_s: u32,
    /// The queue. Until the first subscription, a session that ends with its connection has none.
    queue: Option<QueueId>,
    /// Deliveries whose packet identifier does not follow from their delivery tag ([`Self::packet_id_of`]), or whose exchange
    /// goes on when they are settled: those with QoS 2, those of an earlier connection, and old ones with QoS 1. They are
    /// at most [`IN_FLIGHT_CAPACITY`]. The vector is allocated with the first one, and shrinks when the client leaves.
    in_flight: Vec<InFlight>,
    /// Packet identifiers of messages with QoS 2 that the client has published and not released.
    received: PacketIds,
    /// The batch of the last change of `received`.
    received_batch: Batch,
    /// There are deliveries with QoS 2 that are not in the log.
    are_deliveries_due: bool,
    /// The batch with which the deliveries with QoS 2, and the settlements of those that are released, are durable.
    deliveries_batch: Batch,
    /// The parts of the state that are in the log.
    is_received_stored: bool,
    are_deliveries_stored: bool,
    /// The packet identifier before the first one of this connection: the last one of the connection before. After a start,
    /// the largest one that is in the log; 0: none.
    last_packet_id: u16,
    will: Option<Will>,
    /// A number by which a will is recognised that is in the log; `None` if the log has none.
    stored_will: Option<u64>,
    /// The subscriptions whose retained messages are not in the queue yet.
    replays: Replays,
    /// The largest packet that the client accepts, in bytes.
    packet_len_max: u32,
    used_options: UsedOptions,
    /// The number of the last message for which the session was chosen in a group, and of the last one that was selected
    /// for it in any way.
    last_chosen: u64,
    last_selected: u64,
    /// Number of messages that were not sent since the start, because the client accepts no such large packets.
    oversized_count: u32,
}

/// A delivery that the client must acknowledge, or that is released.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    packet_id: NonZeroU16,
    message: MessageKey,
    step: Step,
    /// The delivery tag on the session's channel; 0 if the delivery is released, and for a delivery of an earlier
    /// connection, whose message is requeued.
    tag: u64,
    /// The packet identifier is durable with this batch.
    batch: Batch,
}

/// Identifies a message of the session's queue: its offset in the log, or, with [`MessageKey::UNLOGGED`], the position in
/// the order in which messages left the queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct MessageKey(u64);

impl MessageKey {
    const UNLOGGED: u64 = 1 << 63;

    fn of(taken: &Taken) -> Self {
        Self(taken.log_offset.unwrap_or(Self::UNLOGGED | taken.order))
    }

    fn of_delivery(delivery: &Delivered) -> Self {
        Self(delivery.log_offset.unwrap_or(Self::UNLOGGED | delivery.order))
    }

    /// Returns the offset in the log; `None` if the message is not in the log.
    fn offset(self) -> Option<u64> {
        Some(self.0).filter(|offset| offset & Self::UNLOGGED == 0)
    }

    /// Returns whether the message was in the queue before this one.
    fn is_before(self, other: Self) -> bool {
        self.offset().is_some() == other.offset().is_some() && self.0 < other.0
    }
}

/// How far the exchange of packets about a delivery is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// With QoS 1: PUBACK is expected.
    AwaitsPuback,
    /// With QoS 2: PUBREC is expected.
    AwaitsPubrec,
    /// With QoS 2: PUBREL was or will be sent, and PUBCOMP is expected. The message is settled.
    Released,
}

/// The most deliveries in [`Session::in_flight`], with those of an earlier connection that are not sent again yet. After a
/// power cut, messages that had been sent with QoS 0 may be in front of these, and are sent with another QoS if the client
/// has subscribed anew.
const IN_FLIGHT_CAPACITY: usize = 2 * SESSION_EXACTLY_ONCE_MAX;
/// A client gets no further message while this many deliveries in [`Session::in_flight`] were sent on its connection or are
/// released. The rest of the capacity is for those of an earlier connection that are not sent again yet.
const OPEN_MAX: usize = IN_FLIGHT_CAPACITY / 4 * 3;
/// Units of work of a delivery that goes back to its queue.
const UNITS_PER_REQUEUE: usize = 4;
/// Number of packet identifiers.
const PACKET_IDS: u64 = u16::MAX as u64;
/// When a delivery with a packet identifier begins, unacknowledged ones with QoS 1 that are older than this many tags are put
/// into [`Session::in_flight`]. The difference to [`PACKET_IDS`] allows for tags that are skipped.
const TAG_AGE_MAX: u64 = PACKET_IDS - 2 * IN_FLIGHT_CAPACITY as u64;
/// The longest part of the state of a session in bytes.
const STATE_BYTES_MAX: usize = IN_FLIGHT_CAPACITY * IN_FLIGHT_BYTES;
const _: () = assert!(RANGES_MAX * RANGE_BYTES <= STATE_BYTES_MAX);
/// Bytes of a delivery in the state: packet identifier, whether it is released, and offset of the message.
const IN_FLIGHT_BYTES: usize = 2 + 1 + 8;

impl Session {
    fn new(vhost: VhostId, client_id: &str) -> Self {
        Self {
            vhost,
            client_id: client_id.into(),
            attached: None,
            user: None,
            seen_ms: 0,
            expiry_s: 0,
            queue: None,
            in_flight: Vec::new(),
            received: PacketIds::default(),
            received_batch: Batch::NONE,
            are_deliveries_due: false,
            deliveries_batch: Batch::NONE,
            is_received_stored: false,
            are_deliveries_stored: false,
            last_packet_id: 0,
            will: None,
            stored_will: None,
            replays: Replays::default(),
            packet_len_max: 0,
            used_options: UsedOptions::default(),
            last_chosen: 0,
            last_selected: 0,
            oversized_count: 0,
        }
    }

    /// Returns how a message is sent again that was delivered on an earlier connection of the session and is not
    /// acknowledged: with its packet identifier and its QoS (MQTT-4.4.0-1). `None`: there is no such delivery.
    fn continue_delivery(&mut self, message: MessageKey, tag: u64) -> Option<SubscriptionDelivery> {
        let is_same = |delivery: &&mut InFlight| delivery.is_requeued() && delivery.message == message;
        let earlier = self.in_flight.iter_mut().find(is_same)?;
        earlier.tag = tag;
        Some(earlier.sent_as())
    }

    /// Begins a delivery that is not one to continue, and returns it as it is sent. Those with QoS 2 are added to
    /// [`Self::in_flight`].
    fn begin_delivery(
        &mut self,
        message: MessageKey,
        tag: u64,
        is_exactly_once: bool,
    ) -> SubscriptionDelivery {
        // Requeued messages are delivered first, in their order. So the messages of earlier deliveries that come before
        // this one are gone: they have expired or were purged.
        self.in_flight.retain(|delivery| !delivery.is_requeued() || !delivery.message.is_before(message));
        let packet_id = self.packet_id_of(tag);
        // A message in front of a requeued one was most likely sent before it, with QoS 0 or 1, because `in_flight` lacks it.
        // With QoS 2, such messages could push out deliveries whose PUBREL the client awaits.
        let awaits_pubrec = |delivery: &InFlight| delivery.step == Step::AwaitsPubrec;
        let is_before_requeued =
            self.in_flight.iter().any(|delivery| delivery.is_requeued() && awaits_pubrec(delivery));
        if !is_exactly_once || is_before_requeued {
            return SubscriptionDelivery::AtLeastOnce(packet_id);
        }
        self.are_deliveries_due = true;
        // The deliveries will be appended after the deliveries of this turn.
        let batch = Batch::from_be_bytes([0xFF; 8]);
        let delivery = InFlight { packet_id, message, step: Step::AwaitsPubrec, tag, batch };
        self.add_in_flight(delivery);
        delivery.sent_as()
    }

    fn add_in_flight(&mut self, delivery: InFlight) {
        if self.in_flight.len() == IN_FLIGHT_CAPACITY {
            // With QoS 1, a message may have another packet identifier when it is sent again.
            let is_first_choice =
                |delivery: &InFlight| delivery.is_requeued() && delivery.step == Step::AwaitsPuback;
            let requeued = self.in_flight.iter().rposition(is_first_choice);
            let requeued = requeued.or_else(|| self.in_flight.iter().rposition(InFlight::is_requeued));
            self.in_flight.remove(requeued.expect("the others are at most one more than OPEN_MAX"));
        }
        self.in_flight.reserve_exact(IN_FLIGHT_CAPACITY - self.in_flight.len());
        self.in_flight.push(delivery);
    }

    /// Returns the packet identifier that follows from the tag of a delivery of this connection.
    fn packet_id_of(&self, tag: u64) -> NonZeroU16 {
        let id = (u64::from(self.last_packet_id) + tag - 1) % PACKET_IDS + 1;
        NonZeroU16::new(id as u16).expect("it is at least 1")
    }

    /// Returns the tag from which a packet identifier follows, if `last_tag` was the last tag; `None` if no delivery of this
    /// connection can have it.
    fn tag_of(&self, packet_id: NonZeroU16, last_tag: u64) -> Option<u64> {
        if last_tag == 0 {
            return None;
        }
        let last_id = u64::from(self.packet_id_of(last_tag).get());
        let age = (PACKET_IDS + last_id - u64::from(packet_id.get())) % PACKET_IDS;
        last_tag.checked_sub(age).filter(|tag| *tag > 0)
    }

    fn has_in_flight(&self, packet_id: NonZeroU16) -> bool {
        self.in_flight.iter().any(|delivery| delivery.packet_id == packet_id)
    }

    /// Returns whether the client gets no further message, because so many exchanges in [`Self::in_flight`] are not
    /// complete.
    fn is_held(&self) -> bool {
        let open = || self.in_flight.iter().filter(|delivery| !delivery.is_requeued());
        let with_qos_2 = open().filter(|delivery| delivery.step != Step::AwaitsPuback);
        with_qos_2.count() >= SESSION_EXACTLY_ONCE_MAX || open().count() >= OPEN_MAX
    }

    /// Returns the packet identifiers of the deliveries that are released.
    fn released(&self) -> impl Iterator<Item = NonZeroU16> {
        let released = self.in_flight.iter().filter(|delivery| delivery.step == Step::Released);
        released.map(|delivery| delivery.packet_id)
    }

    /// Returns a part of the state: the received packet identifiers, or the deliveries with QoS 2.
    fn state(&self, part: SessionPart) -> heapless::Vec<u8, STATE_BYTES_MAX> {
        let mut state = heapless::Vec::new();
        let mut put =
            |octets: &[u8]| state.extend_from_slice(octets).expect("the state has a maximum length");
        if part == SessionPart::Received {
            self.received.encoded().for_each(|range| put(&range));
            return state;
        }
        for delivery in &self.in_flight {
            let (is_released, message) = (delivery.step == Step::Released, delivery.message);
            // A message that is not in the log does not outlive the broker, and need not be released.
            let Some(offset) = message.offset() else { continue };
            if delivery.step != Step::AwaitsPuback {
                put(&delivery.packet_id.get().to_be_bytes());
                put(&[u8::from(is_released)]);
                put(&offset.to_be_bytes());
            }
        }
        state
    }

    /// Sets a part of the state that [`Self::state`] returned before the broker was started again. Ignores what is not
    /// valid.
    fn restore_state(&mut self, part: SessionPart, state: &[u8]) {
        let id = |octets: [u8; 2]| NonZeroU16::new(u16::from_be_bytes(octets));
        if part == SessionPart::Received {
            self.is_received_stored = true;
            self.received = PacketIds::decode(state);
            return;
        }
        self.are_deliveries_stored = true;
        let count = state.len() / IN_FLIGHT_BYTES;
        self.in_flight = Vec::with_capacity(count.min(IN_FLIGHT_CAPACITY));
        for [id_high, id_low, is_released, offset @ ..] in state.as_chunks::<IN_FLIGHT_BYTES>().0 {
            let Some(packet_id) = id([*id_high, *id_low]) else { continue };
            let step = if *is_released == 1 { Step::Released } else { Step::AwaitsPubrec };
            let message = MessageKey(u64::from_be_bytes(*offset));
            if self.in_flight.len() < IN_FLIGHT_CAPACITY {
                self.in_flight.push(InFlight { packet_id, message, step, tag: 0, batch: Batch::NONE });
                self.last_packet_id = self.last_packet_id.max(packet_id.get());
            }
        }
    }
}

impl InFlight {
    /// Returns whether the message was sent on an earlier connection, and must be sent again.
    fn is_requeued(&self) -> bool {
        self.tag == 0 && self.step != Step::Released
    }

    fn sent_as(self) -> SubscriptionDelivery {
        match self.step {
            Step::AwaitsPuback => SubscriptionDelivery::AtLeastOnce(self.packet_id),
            Step::AwaitsPubrec | Step::Released => SubscriptionDelivery::ExactlyOnce(self.packet_id),
        }
    }
}

/// All sessions.
#[derive(Debug)]
pub(crate) struct Sessions {
    slab: Slab<Session>,
    /// Sessions by virtual host and client identifier.
    table: IndexTable,
    memory: Memory,
    limits: SessionLimits,
    /// The batch with which the end of the last session that was kept is durable.
    last_ended: Batch,
    /// A session uses No Local or shared subscriptions.
    may_exclude_any: bool,
    /// The number of messages for which sessions were selected.
    selection_count: u64,
    /// Empty, except while sessions are selected.
    candidates: Vec<Candidate>,
    /// Its seed is random, so that no client can choose groups with the same hash.
    group_hasher: FixedState,
    /// Number of messages that were too large for their clients since the start.
    oversized_total: u64,
    /// A client was refused because too many sessions are kept.
    has_refused: bool,
    /// The last session that was refused a subscription for lack of memory, until it subscribes or ends.
    refused_subscription: Option<SessionId>,
    /// The client identifier of the connection whose session is being opened.
    opening: Option<(ConnectionId, Name)>,
    /// The broker offers `$SYS` topics.
    has_system_topics: bool,
    /// Sessions that have subscribed to them since they were sent last.
    new_system_subscribers: VecDeque<SessionId>,
}

/// What operators see of a session.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionStatus<'a> {
    pub(crate) vhost: VhostId,
    pub(crate) client_id: &'a str,
    pub(crate) connection: Option<ConnectionId>,
    pub(crate) user: Option<(usize, u32)>,
    pub(crate) seen_ms: u64,
    pub(crate) expiry_s: u32,
    pub(crate) queue: Option<QueueId>,
    pub(crate) unreleased_count: u32,
    pub(crate) oversized_count: u32,
    pub(crate) has_will: bool,
}

/// The limits of each session.
#[derive(Clone, Copy, Debug)]
struct SessionLimits {
    /// Maximum number of sessions that are kept.
    kept_max: usize,
    expiry_max_s: u32,
    messages_max: u32,
    bytes_max: u32,
}

impl Sessions {
    /// Bytes that a session takes besides its record: its client identifier, and up to three definitions in the index of the log
    /// (both parts of its state, and its will).
    const SIDE_BYTES: usize = IN_FLIGHT_CAPACITY * size_of::<InFlight>()
        + PacketIds::BYTES_MAX
        + leveret_core::command::NAME_BYTES_MAX
        // In the list of sessions that get retained messages, which grows by doubling.
        + 2 * size_of::<SessionId>()
        + Wills::LATE_BYTES
        + 3 * leveret_storage::DEFINITION_BYTES;
    /// Bytes of memory that a session takes.
    pub(crate) const SESSION_BYTES: usize =
        Slab::<Session>::record_bytes() + IndexTable::ENTRY_BYTES + Self::SIDE_BYTES;

    /// Returns the bytes of unused places that may be resident in memory.
    pub(crate) const fn idle_bytes(&self) -> usize {
        self.slab.idle_bytes()
    }

    /// Returns unused memory to the system.
    pub(crate) fn trim(&mut self) {
        self.slab.trim();
        self.table.trim(self.slab.touched());
    }

    pub(crate) fn new(limits: &Limits, memory: &Memory, seed: u64) -> Self {
        let sessions = limits.connection_places() as usize + limits.mqtt_sessions_max as usize;
        Self {
            // A client that publishes must be able to connect although definitions have used up their memory.
            slab: Slab::in_memory(sessions, memory, Class::Clients).with_side_bytes(Self::SIDE_BYTES),
            table: IndexTable::in_memory(sessions, memory, Class::Clients, seed),
            memory: memory.clone(),
            limits: SessionLimits {
                kept_max: limits.mqtt_sessions_max as usize,
                expiry_max_s: limits.mqtt_session_expiry_max_ms / 1000,
                messages_max: limits.mqtt_session_messages_max,
                bytes_max: limits.mqtt_session_bytes_max,
            },
            last_ended: Batch::NONE,
            may_exclude_any: false,
            selection_count: 0,
            candidates: Vec::new(),
            group_hasher: FixedState::with_seed(seed),
            oversized_total: 0,
            has_refused: false,
            refused_subscription: None,
            opening: None,
            has_system_topics: false,
            new_system_subscribers: VecDeque::new(),
        }
    }

    pub(crate) fn find(&self, vhost: VhostId, client_id: &str) -> Option<SessionId> {
        let is_it =
            |index: usize| self.slab[index].vhost == vhost && *self.slab[index].client_id == *client_id;
        self.table.find((vhost, client_id), is_it).map(SessionId::from_index)
    }

    fn at(&self, session: SessionId) -> &Session {
        &self.slab[session.index()]
    }

    fn at_mut(&mut self, session: SessionId) -> &mut Session {
        &mut self.slab[session.index()]
    }

    /// Returns the will of a session.
    pub(crate) fn will(&self, session: SessionId) -> Option<&Will> {
        self.at(session).will.as_ref()
    }

    pub(crate) fn will_mut(&mut self, session: SessionId) -> &mut Option<Will> {
        &mut self.at_mut(session).will
    }

    /// Returns the number by which a will is recognised that is in the log; `None` if the log has none.
    pub(crate) fn stored_will_mut(&mut self, session: SessionId) -> &mut Option<u64> {
        &mut self.at_mut(session).stored_will
    }

    pub(crate) fn vhost_of(&self, session: SessionId) -> VhostId {
        self.at(session).vhost
    }

    /// Returns the number of places for sessions that were used so far.
    pub(crate) const fn places(&self) -> usize {
        self.slab.places()
    }

    /// Returns what operators see of a session.
    pub(crate) fn status(&self, session: SessionId) -> SessionStatus<'_> {
        let record = self.at(session);
        SessionStatus {
            vhost: record.vhost,
            client_id: &record.client_id,
            connection: record.attached.map(|(connection, _)| connection),
            user: record.user,
            seen_ms: record.seen_ms,
            expiry_s: record.expiry_s,
            queue: record.queue,
            unreleased_count: record.received.count(),
            oversized_count: record.oversized_count,
            has_will: record.will.is_some(),
        }
    }

    /// Counts a message that is not sent, because the client accepts no such large packet.
    fn count_oversized(&mut self, session: SessionId) {
        let record = self.at_mut(session);
        record.oversized_count = record.oversized_count.wrapping_add(1);
        self.oversized_total += 1;
    }

    /// Returns the number of messages that were too large for their clients since the start.
    pub(crate) const fn oversized_total(&self) -> u64 {
        self.oversized_total
    }

    /// Returns the session at a place.
    pub(crate) fn id_at(&self, place: usize) -> Option<SessionId> {
        self.slab.get(place).map(|_| SessionId::from_index(place))
    }

    /// Returns the client identifier of a session.
    pub(crate) fn client_id(&self, session: SessionId) -> &str {
        &self.at(session).client_id
    }

    /// Returns the client identifier of a connection that has a session or is opening one.
    pub(crate) fn client_id_of(&self, connection: ConnectionId, clients: &Clients) -> Option<&str> {
        match &self.opening {
            Some((opening, client_id)) if *opening == connection => Some(client_id),
            _ => clients.connection(connection).session.map(|session| self.client_id(session)),
        }
    }

    /// Returns the maximum number of messages that wait in a session.
    pub(crate) const fn messages_max(&self) -> u32 {
        self.limits.messages_max
    }

    /// Returns the subscriptions of a session whose retained messages are not in its queue yet.
    pub(crate) fn replays_mut(&mut self, session: SessionId) -> &mut Replays {
        &mut self.at_mut(session).replays
    }

    /// Returns the virtual host and the queue of a session; `None` if the session has ended, or has no queue.
    pub(crate) fn replay_target(&self, session: SessionId) -> Option<(VhostId, QueueId)> {
        let record = self.slab.get(session.index())?;
        Some((record.vhost, record.queue?))
    }

    /// Returns how many sessions may be kept, if clients were refused because of this limit and would be refused now.
    pub(crate) fn refusing_limit(&self) -> Option<usize> {
        let kept_max = self.kept_max();
        (self.has_refused && self.kept_count() >= kept_max).then_some(kept_max)
    }

    /// Returns how many sessions may be kept. Absent clients leave half of the memory of clients to those that connect.
    fn kept_max(&self) -> usize {
        let in_memory = (self.memory.class_bytes(Class::Clients) / 2) as usize / Self::SESSION_BYTES;
        in_memory.min(self.limits.kept_max)
    }

    /// Returns the number of sessions that outlive their connections.
    fn kept_count(&self) -> usize {
        self.slab.iter().filter(|(_, session)| session.expiry_s > 0).count()
    }

    /// Adds a session; `None` if there is no capacity.
    fn insert(&mut self, session: Session) -> Option<SessionId> {
        let index = self.slab.insert(session).ok()?;
        let record = &self.slab[index];
        self.table.insert((record.vhost, &*record.client_id), index, self.slab.touched());
        Some(SessionId::from_index(index))
    }

    /// Removes a session.
    fn remove(&mut self, session: SessionId) -> Session {
        let record = self.slab.remove(session.index());
        self.table.remove((record.vhost, &*record.client_id), session.index());
        self.refused_subscription = self.refused_subscription.filter(|refused| *refused != session);
        self.new_system_subscribers.retain(|other| *other != session);
        record
    }
}

/// Writes a table of arguments.
fn write_arguments(
    octets: &mut [u8; ARGUMENTS_BYTES_MAX],
    fill: impl FnOnce(&mut TableWriter<'_, '_>) -> Result<(), leveret_amqp::Full>,
) -> &[u8] {
    let mut writer = Writer::new(octets);
    let written = writer.table(fill);
    assert!(written.is_ok(), "the names and values have a maximum length");
    let len = writer.at();
    &octets[4..len]
}

fn no_session() -> Fault {
    Fault::connection(ReplyCode::CommandInvalid, format_args!("the connection has no session"))
}

impl Broker {
    /// Begins or continues the session of an MQTT client. If another connection has the session, that connection is
    /// closed.
    ///
    /// # Errors
    /// There is no capacity.
    pub(crate) fn open_session(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        request: &OpenSession<'_>,
    ) -> Result<SessionOpened, Fault> {
        let opened = self.try_open_session(cx, connection, request);
        self.sessions.opening = None;
        if let Some(will) = request.will.filter(|_| opened.is_err()) {
            cx.messages.release(will.message);
        }
        opened
    }

    /// Returns whether another connection has the session of this client in the virtual host of `connection`, and its
    /// client is not lost. It is closed when `connection` opens the session.
    pub fn replaces_connection(&self, connection: ConnectionId, client_id: &str) -> bool {
        let session =
            self.clients.connection(connection).vhost.and_then(|vhost| self.sessions.find(vhost, client_id));
        let attached = session.and_then(|session| self.sessions.at(session).attached);
        attached.is_some_and(|(other, _)| self.quota.is_counted(other))
    }

    fn try_open_session(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        request: &OpenSession<'_>,
    ) -> Result<SessionOpened, Fault> {
        let OpenSession { clean_start, in_flight_max, packet_len_max, .. } = *request;
        assert!(in_flight_max > 0, "0 would be no limit");
        if QUEUE_PREFIX.len() + request.client_id.len() > leveret_core::command::NAME_BYTES_MAX {
            return Err(Fault::connection(
                ReplyCode::PreconditionFailed,
                format_args!("a client identifier has at most 237 bytes"),
            ));
        }
        let is_assigned = request.client_id.is_empty();
        let assigned = if is_assigned { self.unique_name(ASSIGNED_PREFIX) } else { Name::new() };
        let client_id = if is_assigned { assigned.as_str() } else { request.client_id };
        self.sessions.opening = Some((connection, Name::try_from(client_id).unwrap_or_default()));
        let channel = self.open_channel(connection, 1)?;
        let record = self.clients.channel_mut(channel);
        (record.mode, record.prefetch_count) = (Mode::Confirm, in_flight_max);
        let vhost = record.vhost;
        let earlier = self.sessions.find(vhost, client_id);
        if let Some(will) = &request.will {
            self.check_will(cx, channel, earlier, will)?;
        }
        let expiry_s = request.expiry_s.min(self.sessions.limits.expiry_max_s);
        // A client that is refused changes nothing.
        self.check_session_request(cx, channel, earlier, clean_start, expiry_s)?;
        if let Some(earlier) = earlier {
            self.take_over(cx, earlier, clean_start);
            if clean_start && self.sessions.find(vhost, client_id).is_some() {
                self.end_session(cx, earlier);
            }
        }
        let found = self.sessions.find(vhost, client_id);
        let session = match found {
            Some(session) => session,
            None => {
                // A client that was told that it has no session must not get an earlier one after a power cut.
                cx.await_defined(self.sessions.last_ended);
                let session = Session::new(vhost, client_id);
                self.sessions.insert(session).ok_or_else(|| no_memory_for("another session"))?
            }
        };
        self.attach(session, connection, channel);
        let record = self.sessions.at_mut(session);
        record.packet_len_max = packet_len_max;
        let earlier_expiry_s = core::mem::replace(&mut record.expiry_s, expiry_s);
        if let Err(fault) = self.open_kept_queue(cx, session) {
            match found {
                None => self.end_session(cx, session),
                Some(_) => {
                    self.sessions.at_mut(session).expiry_s = earlier_expiry_s;
                    self.leave_session(cx, connection);
                }
            }
            return Err(fault);
        }
        self.set_will(cx, session, request.will);
        // The client gets PUBREL for the deliveries that are released, which must be durable before it.
        cx.await_defined(self.sessions.at(session).deliveries_batch);
        Ok(SessionOpened {
            channel,
            client_id: client_id.into(),
            is_assigned,
            is_present: found.is_some(),
            expiry_s,
            released: self.sessions.at(session).released().collect(),
        })
    }

    /// Connects a session with the connection of its client.
    fn attach(&mut self, session: SessionId, connection: ConnectionId, channel: ChannelId) {
        let user = self.clients.connection(connection).identity.user();
        let user = user.map(|user| (user, self.access.user_serial(user)));
        let record = self.sessions.at_mut(session);
        (record.attached, record.user) = (Some((connection, channel)), user);
        self.clients.connection_mut(connection).session = Some(session);
    }

    /// Publishes the will of a session whose client connects again, and closes the client's earlier connection.
    fn take_over(&mut self, cx: &mut Context<'_>, earlier: SessionId, clean_start: bool) {
        let ends = clean_start || self.sessions.at(earlier).expiry_s == 0;
        self.publish_replaced_will(cx, earlier, ends);
        if let Some((other, _)) = self.sessions.at(earlier).attached {
            let text = format_args!("another connection has the same client identifier");
            self.clients.force_close(other, Fault::connection(ReplyCode::SessionTakenOver, text));
            self.detach_at_once(cx, earlier);
        }
    }

    /// Checks whether a client may open the session `earlier`, or a new one that is kept for `expiry_s` seconds.
    ///
    /// # Errors
    /// The user may not subscribe with the queue of the session, which has subscriptions or messages: it is that of another
    /// user. Or there is no capacity.
    fn check_session_request(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        earlier: Option<SessionId>,
        clean_start: bool,
        expiry_s: u32,
    ) -> Result<(), Fault> {
        let (connection, vhost) = (self.clients.connection_of(channel), self.clients.channel(channel).vhost);
        let record = earlier.map(|earlier| self.sessions.at(earlier));
        if let Some(queue) = record.and_then(|record| record.queue).map(|queue| self.queues.at(queue))
            && (!queue.bindings.is_empty() || queue.durable_index.count() > 0)
        {
            for right in [Right::Configure, Right::Read] {
                self.check(cx.work, connection, vhost, right, Resource::Queue(&queue.name))?;
            }
        }
        let kept_max = self.sessions.kept_max();
        let is_kept_already = record.is_some_and(|record| record.expiry_s > 0);
        if expiry_s > 0 && !is_kept_already && self.sessions.kept_count() >= kept_max {
            self.sessions.has_refused = true;
            let text = format_args!(
                "there are {kept_max} sessions that are kept, as many as memory_limit allows: delete sessions of absent \
                 clients, or raise memory_limit"
            );
            return Err(Fault::connection(ReplyCode::ResourceError, text));
        }
        let needs_consumer = expiry_s > 0 || !clean_start && record.is_some_and(|record| record.expiry_s > 0);
        let has_consumer = record.is_some_and(|record| record.attached.is_some() && record.queue.is_some());
        if needs_consumer && !has_consumer {
            self.clients.check_capacity(&mut self.quota, connection)?;
        }
        Ok(())
    }

    /// Creates the queue of a session that is kept, or gives an existing one the expiry of the session. Starts its
    /// consumer.
    fn open_kept_queue(&mut self, cx: &mut Context<'_>, session: SessionId) -> Result<(), Fault> {
        let record = self.sessions.at(session);
        let (queue, expiry_s) = (record.queue, record.expiry_s);
        if queue.is_none() && expiry_s == 0 {
            return Ok(());
        }
        let name = self.session_queue_name(session);
        let queue = match queue {
            None => self.create_session_queue(cx, session, &name)?,
            Some(queue) => {
                let mut octets = [0; ARGUMENTS_BYTES_MAX];
                let arguments = self.queue_arguments(expiry_s, true, &mut octets);
                self.redefine_queue(cx, queue, arguments)?;
                cx.await_defined(self.queues.at(queue).durable_index.defined());
                queue
            }
        };
        self.start_session_consumer(cx, session, queue)
    }

    /// Handles that the client of a connection that is closed has sent DISCONNECT, behind messages that are dropped.
    pub fn note_client_leaves(&mut self, cx: &mut Context<'_>, connection: ConnectionId) {
        if let Some(session) = self.clients.connection(connection).session {
            self.discard_will(cx, session);
        }
    }

    /// Handles DISCONNECT. See [`leveret_core::command::MqttCommand::LeaveSession`].
    ///
    /// # Errors
    /// The storage cannot be written.
    pub(crate) fn disconnect_session(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        expiry_s: Option<u32>,
        keeps_will: bool,
    ) -> Result<(), Fault> {
        let session = self.session_of(connection)?;
        if !keeps_will {
            self.discard_will(cx, session);
        }
        let Some(expiry_s) = expiry_s else { return Ok(()) };
        let expiry_s = expiry_s.min(self.sessions.limits.expiry_max_s);
        let record = self.sessions.at_mut(session);
        record.expiry_s = expiry_s;
        if let Some(queue) = record.queue.filter(|_| expiry_s > 0) {
            let mut octets = [0; ARGUMENTS_BYTES_MAX];
            let arguments = self.queue_arguments(expiry_s, true, &mut octets);
            self.redefine_queue(cx, queue, arguments)?;
        }
        Ok(())
    }

    /// Checks whether a queue may be declared by clients and operators. A queue with the argument of a session would be the
    /// session of that client after the next start.
    ///
    /// # Errors
    /// It has that argument.
    pub(crate) fn check_not_of_session(
        &self,
        vhost: VhostId,
        declaration: &QueueDeclaration<'_>,
    ) -> Result<(), Fault> {
        match Table::trusted(declaration.arguments).get(KEPT_ARGUMENT) {
            None => Ok(()),
            Some(_) => Err(Fault::new(
                ReplyCode::PreconditionFailed,
                format_args!(
                    "invalid arg '{KEPT_ARGUMENT}' for {}: only the broker declares the queues of MQTT sessions",
                    self.queue_text(vhost, declaration.queue)
                ),
            )),
        }
    }

    /// Checks whether an operator may bind a queue. The bindings of a session's queue are the subscriptions of its client.
    ///
    /// # Errors
    /// It is the queue of a session.
    pub(crate) fn check_no_subscription(
        &self,
        vhost: VhostId,
        name: &str,
        destination: Destination,
    ) -> Result<(), Fault> {
        match destination {
            Destination::Queue(queue) if self.queues.at(queue).session().is_some() => Err(Fault::new(
                ReplyCode::ResourceLocked,
                format_args!(
                    "{} is that of an MQTT session: only its client subscribes",
                    self.queue_text(vhost, name)
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Adds the session of a restored queue, if the queue is that of a session. Returns `false` if there is no capacity for
    /// it; its client is then refused.
    pub(crate) fn restore_session(&mut self, queue: QueueId, now_ms: u64) -> bool {
        let record = self.queues.at(queue);
        let is_kept = Table::trusted(&record.arguments).get(KEPT_ARGUMENT).is_some();
        let client_id = record.name.strip_prefix(QUEUE_PREFIX).filter(|client_id| !client_id.is_empty());
        let Some(client_id) = client_id.filter(|_| is_kept) else { return true };
        let expires_ms =
            Table::trusted(&record.arguments).get("x-expires").and_then(|value| value.as_integer());
        let expiry_s = expires_ms.map_or(u32::MAX, |ms| u32::try_from(ms / 1000).unwrap_or(u32::MAX));
        let mut session = Session::new(record.vhost, client_id);
        (session.expiry_s, session.queue, session.seen_ms) = (expiry_s.max(1), Some(queue), now_ms);
        let added = self.sessions.insert(session);
        if let Some(session) = added {
            self.queues.at_mut(queue).begin_session(session);
        }
        added.is_some()
    }

    /// Ends a session with its subscriptions and messages.
    fn end_session(&mut self, cx: &mut Context<'_>, session: SessionId) {
        self.end_will(cx, session);
        if let Some(queue) = self.sessions.at(session).queue {
            self.delete_session_state(cx, session, queue);
        }
        let record = self.sessions.remove(session);
        if let Some((connection, _)) = record.attached {
            self.clients.connection_mut(connection).session = None;
        }
        if let Some(queue) = record.queue {
            self.queues.at_mut(queue).end_session();
            self.retire_queue(cx, queue);
            self.note_ended(cx, queue);
            self.jobs.begin(Job::Queue(queue));
        }
    }

    /// Notes that a session has ended with its queue.
    fn note_ended(&mut self, cx: &Context<'_>, queue: QueueId) {
        if self.queues.at(queue).durable_index.is_logged() {
            self.sessions.last_ended = cx.pending_writes.last_entry_batch();
        }
    }

    /// Takes a session from its connection, which another connection replaces. Its deliveries are requeued at once. A
    /// session that is not kept ends.
    fn detach_at_once(&mut self, cx: &mut Context<'_>, session: SessionId) {
        let Some((connection, channel)) = self.sessions.at(session).attached else { return };
        self.keep_packet_ids(session, channel);
        if let Some(index) = self.clients.find_by_tag(channel, CONSUMER_TAG) {
            self.end_consumer(cx, index);
            while let Some(delivery) = self.clients.connection(connection).outbox.front() {
                self.clients.leave_outbox(&mut self.queues, connection, delivery);
                self.abandon_unsent(cx, delivery);
            }
            while let Some(delivery) = self.clients.channel(channel).unacknowledged.front() {
                self.clients.leave_unacknowledged(&mut self.queues, channel, delivery);
                self.requeue_delivery(cx, delivery);
                // They may be thousands, so other connections have their turn next.
                cx.work.charge(UNITS_PER_REQUEUE);
            }
            self.free_consumer_if_done(index);
        }
        self.leave_session(cx, connection);
    }

    /// Notes that a connection is lost or closed, or is replaced by another one of its client. Its session ends, unless it
    /// is kept.
    pub(crate) fn leave_session(&mut self, cx: &mut Context<'_>, connection: ConnectionId) {
        let Some(session) = self.clients.connection(connection).session else { return };
        if self.sessions.at(session).expiry_s == 0 {
            return self.end_session(cx, session);
        }
        if let Some((_, channel)) = self.sessions.at(session).attached {
            self.keep_packet_ids(session, channel);
        }
        let record = self.sessions.at_mut(session);
        (record.attached, record.seen_ms) = (None, cx.pending_writes.time_ms());
        record.in_flight.iter_mut().for_each(|delivery| delivery.tag = 0);
        record.in_flight.shrink_to_fit();
        let expiry_s = record.expiry_s;
        self.clients.connection_mut(connection).session = None;
        self.delay_will(cx, session, expiry_s);
    }

    /// Handles that the queue of a session is deleted by an operator, or has expired. The client is disconnected.
    pub(crate) fn note_session_queue_deleted(
        &mut self,
        cx: &mut Context<'_>,
        session: SessionId,
        queue: QueueId,
    ) {
        self.end_will(cx, session);
        self.delete_session_state(cx, session, queue);
        self.note_ended(cx, queue);
        let record = self.sessions.at_mut(session);
        record.queue = None;
        let Some((connection, _)) = record.attached else {
            self.sessions.remove(session);
            return;
        };
        // The session must not be kept without its queue.
        record.expiry_s = 0;
        let text = format_args!("the queue of its session was deleted");
        self.clients.force_close(connection, Fault::connection(ReplyCode::ConnectionForced, text));
    }

    /// Returns whether a connection may use a queue: that of a session only by its connection.
    pub(crate) fn is_queue_of_other_session(&self, connection: ConnectionId, queue: QueueId) -> bool {
        let session = self.queues.at(queue).session();
        session.is_some() && session != self.clients.connection(connection).session
    }

    fn session_of(&self, connection: ConnectionId) -> Result<SessionId, Fault> {
        self.clients.connection(connection).session.ok_or_else(no_session)
    }

    fn session_queue_name(&self, session: SessionId) -> Name {
        let mut name = Name::try_from(QUEUE_PREFIX).unwrap_or_default();
        let pushed = name.push_str(self.sessions.client_id(session));
        assert!(pushed.is_ok(), "the length of the client identifier was checked");
        name
    }

    /// Returns the queue of a session. Before the first subscription, creates the queue and its consumer.
    fn session_queue(
        &mut self,
        cx: &mut Context<'_>,
        session: SessionId,
        name: &str,
    ) -> Result<QueueId, Fault> {
        if let Some(queue) = self.sessions.at(session).queue {
            return Ok(queue);
        }
        let queue = self.create_session_queue(cx, session, name)?;
        self.start_session_consumer(cx, session, queue)?;
        Ok(queue)
    }

    /// Creates the queue of a session: durable if the session is kept, and otherwise exclusive.
    fn create_session_queue(
        &mut self,
        cx: &mut Context<'_>,
        session: SessionId,
        name: &str,
    ) -> Result<QueueId, Fault> {
        let &Session { vhost, attached, expiry_s, .. } = self.sessions.at(session);
        if self.queues.records().find_queue(vhost, name).is_some() {
            return Err(Fault::new(
                ReplyCode::ResourceLocked,
                format_args!("{} exists and is not that of the session", self.queue_text(vhost, name)),
            ));
        }
        let is_kept = expiry_s > 0;
        let mut octets = [0; ARGUMENTS_BYTES_MAX];
        let arguments = self.queue_arguments(expiry_s, is_kept, &mut octets);
        let declaration = QueueDeclaration {
            queue: name,
            durable: is_kept,
            exclusive: !is_kept,
            auto_delete: false,
            arguments,
        };
        let owner = attached.map(|(connection, _)| connection);
        let queue = self.create_checked(cx, owner, vhost, &declaration)?;
        self.queues.at_mut(queue).begin_session(session);
        self.sessions.at_mut(session).queue = Some(queue);
        Ok(queue)
    }

    /// Returns the arguments of a session's queue.
    fn queue_arguments<'o>(
        &self,
        expiry_s: u32,
        is_kept: bool,
        octets: &'o mut [u8; ARGUMENTS_BYTES_MAX],
    ) -> &'o [u8] {
        let limits = self.sessions.limits;
        write_arguments(octets, |table| {
            table.long("x-max-length", limits.messages_max.into())?;
            table.long("x-max-length-bytes", limits.bytes_max.into())?;
            if is_kept {
                table.bool(KEPT_ARGUMENT, true)?;
                // A session that is kept no longer, but whose connection is lost with the broker, expires at the start.
                table.long("x-expires", (i64::from(expiry_s) * 1000).max(1))?;
            }
            Ok(())
        })
    }

    /// Starts the consumer of a session. If that fails, a session that is not kept loses its queue.
    fn start_session_consumer(
        &mut self,
        cx: &mut Context<'_>,
        session: SessionId,
        queue: QueueId,
    ) -> Result<(), Fault> {
        let Some((_, channel)) = self.sessions.at(session).attached else { return Err(no_session()) };
        match self.clients.add(&mut self.quota, channel, queue, ConsumerState::Active) {
            Ok(index) => {
                let tag = Name::try_from(CONSUMER_TAG).unwrap_or_default();
                let new = NewConsumer { tag, priority: 0, no_ack: false, exclusive: true };
                // Deliveries that are released count as unacknowledged until PUBCOMP.
                let record = self.sessions.at(session);
                let (released_count, is_held) = (record.released().count() as u32, record.is_held());
                let consumer = self.clients.consumer_mut(index);
                (consumer.unacknowledged, consumer.is_held) = (released_count, is_held);
                self.clients.start(cx.work, &mut self.queues, index, new);
                Ok(())
            }
            Err(fault) => {
                if self.queues.at(queue).declared.exclusive_owner.is_some() {
                    self.queues.at_mut(queue).end_session();
                    self.sessions.at_mut(session).queue = None;
                    self.retire_queue(cx, queue);
                    self.jobs.begin(Job::Queue(queue));
                }
                Err(fault)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Session {
        Session::new(VhostId::from_index(0), "c")
    }

    fn packet_id(delivery: SubscriptionDelivery) -> NonZeroU16 {
        match delivery {
            SubscriptionDelivery::AtLeastOnce(id) | SubscriptionDelivery::ExactlyOnce(id) => id,
            SubscriptionDelivery::Skip | SubscriptionDelivery::AtMostOnce => panic!("it is acknowledged"),
        }
    }

    #[test]
    fn packet_identifiers_follow_from_tags_and_tags_from_packet_identifiers() {
        let mut session = session();
        for last_packet_id in [0, 1, 2, 40_000, 65_534, 65_535] {
            session.last_packet_id = last_packet_id;
            for last_tag in [1, 2, 65_534, 65_535, 65_536, 200_000] {
                let all: std::collections::BTreeSet<_> = (1.max(last_tag - 65_534.min(last_tag))..=last_tag)
                    .map(|tag| {
                        assert_eq!(session.tag_of(session.packet_id_of(tag), last_tag), Some(tag));
                        session.packet_id_of(tag)
                    })
                    .collect();
                assert_eq!(all.len() as u64, last_tag.min(65_535), "no two have the same");
            }
            assert_eq!(session.packet_id_of(1).get(), last_packet_id % u16::MAX + 1);
        }
        let unused = session.packet_id_of(4);
        assert_eq!((session.tag_of(unused, 3), session.tag_of(unused, 0)), (None, None));
    }

    #[test]
    fn a_message_that_is_delivered_again_keeps_its_packet_identifier() {
        let mut session = session();
        let begin = |session: &mut Session, offset: u64, tag| {
            let message = MessageKey(offset);
            let continued = session.continue_delivery(message, tag);
            continued.unwrap_or_else(|| session.begin_delivery(message, tag, true))
        };
        let sent: Vec<_> = (1..=20).map(|offset| begin(&mut session, offset, offset)).collect();
        assert!(session.is_held());
        session.in_flight.iter_mut().for_each(|delivery| delivery.tag = 0);
        session.in_flight[0].step = Step::Released;
        // The messages 2 and 5 are gone.
        for offset in [3, 4, 6, 7] {
            assert_eq!(begin(&mut session, offset, 100 + offset), sent[offset as usize - 1]);
        }
        // A message that was not in flight before.
        let new = packet_id(begin(&mut session, 8_000, 200));
        assert!(sent.iter().all(|sent| packet_id(*sent) != new));
        assert_eq!(session.in_flight.len(), 6);
        assert_eq!(session.released().collect::<Vec<_>>(), [packet_id(sent[0])]);
    }

    #[test]
    fn messages_in_front_of_requeued_ones_do_not_push_out_deliveries_that_await_pubrec() {
        let mut session = session();
        // Twenty messages were sent with QoS 1, and the twenty after them with QoS 2.
        let first = SESSION_EXACTLY_ONCE_MAX as u64;
        for offset in first..2 * first {
            session.begin_delivery(MessageKey(offset), offset, true);
        }
        // On each new connection, all messages of both kinds are sent again, now with subscriptions of QoS 2.
        for _ in 0..3 {
            session.in_flight.iter_mut().for_each(|delivery| delivery.tag = 0);
            for offset in 0..first {
                let sent = session.begin_delivery(MessageKey(offset), 100 + offset, true);
                assert!(matches!(sent, SubscriptionDelivery::AtLeastOnce(_)));
            }
        }
        for offset in first..2 * first {
            assert!(session.continue_delivery(MessageKey(offset), 200 + offset).is_some(), "{offset}");
        }
        let sent = session.begin_delivery(MessageKey(2 * first), 300, true);
        assert!(matches!(sent, SubscriptionDelivery::ExactlyOnce(_)), "no delivery is requeued any more");
    }

    #[test]
    fn the_state_is_restored_as_it_was_written() {
        let mut session = session();
        let id = |number| NonZeroU16::new(number).unwrap();
        [9, 0xFFFF].into_iter().for_each(|number| session.received.insert(id(number)).unwrap());
        for (tag, offset) in [(1, 7), (2, 1 << 40)] {
            session.begin_delivery(MessageKey(offset), tag, true);
        }
        let (packet_id, message) = (id(100), MessageKey(8));
        let of_qos_1 = InFlight { packet_id, message, step: Step::AwaitsPuback, tag: 3, batch: Batch::NONE };
        session.add_in_flight(of_qos_1);
        session.in_flight[0].step = Step::Released;
        let mut restored = self::session();
        for part in [SessionPart::Received, SessionPart::Deliveries] {
            restored.restore_state(part, &session.state(part));
            assert_eq!(restored.state(part), session.state(part));
        }
        assert_eq!(restored.received, session.received);
        let unsettled = |session: &Session| -> Vec<_> {
            let with_qos_2 = session.in_flight.iter().filter(|delivery| delivery.step != Step::AwaitsPuback);
            with_qos_2.map(|delivery| (delivery.packet_id, delivery.message, delivery.step)).collect()
        };
        assert_eq!(unsettled(&restored), unsettled(&session));
        // Anything else is ignored.
        for wrong in [&[][..], &[0], &[0, 0], &[0, 0, 0]] {
            let mut session = self::session();
            session.restore_state(SessionPart::Received, wrong);
            session.restore_state(SessionPart::Deliveries, wrong);
            assert!(session.received.count() == 0 && session.in_flight.is_empty());
        }
    }
}
