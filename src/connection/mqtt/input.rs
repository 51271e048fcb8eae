//! Packets of an MQTT client become commands for the broker.
//!
//! The payload of a PUBLISH is appended to its message as it arrives. The topic filters of a SUBSCRIBE or UNSUBSCRIBE that is
//! larger than `frame_max` are handled as they arrive, too. All other packets are handled when they are complete.

use core::num::NonZeroU16;

use leveret_amqp::FRAME_OVERHEAD;
use leveret_core::batch::Batch;
use leveret_core::command::{
    Command, LoginCommand, MqttCommand, NAME_BYTES_MAX, Name, OpenSession, OpenVhost, PublishCommand,
    RetainHandling, SessionWill, Subscription,
};
use leveret_core::log_limiter::LogKind;
use leveret_core::mem::{ByteChain, MessageId, Messages, PoolFull, Share};
use leveret_core::password::Secret;
use leveret_core::time::Deadline;
use leveret_core::topic::exchange_separators;
use leveret_mqtt::{
    Ack, AckKind, Connect, Disconnect, FIXED_HEADER_LEN_MAX, FiltersHead, FixedHeader, HeaderLen, Packet,
    PacketError, PacketType, PublishHeader, QoS, ReasonCode, Subscribe, SubscriptionOptions, TopicFilter,
    Unsubscribe, Version, Will,
};

use super::super::client::UnhandledMessages;
use super::super::connection::{Context, Names};
use super::super::input::{InputStep, Suspension};
use super::properties::write_amqp_properties;
use super::{ClientLimits, ConnectStep, MqttConnection, Phase};

/// The exchange to which all messages are published, as in RabbitMQ.
const TOPIC_EXCHANGE: &str = "amq.topic";
/// The longest client identifier in bytes. The name of the session's queue contains it.
const CLIENT_ID_BYTES_MAX: usize = NAME_BYTES_MAX - "mqtt-subscription-".len();
/// The most codes of a SUBACK or UNSUBACK for which every connection has memory at any time. More codes take memory that all
/// connections share ([`Suspension::LongAnswer`]).
const SHORT_ANSWER_CODES_MAX: usize = 200;
/// The most codes of a SUBACK or UNSUBACK. A stored packet has less than 2^16 octets.
const LONG_ANSWER_CODES_MAX: usize = 65_000;
/// Characters of a refused filter that the log shows.
const LOGGED_FILTER_LEN_MAX: usize = 100;
/// Octets of each filter, with its length and its options, for which a packet that is handled as it arrives reserves a code.
const LARGE_FILTER_LEN_MIN: usize = 8;
/// Such a packet may take this many times `content_timeout`. Others may wait for the memory of its answer.
pub(super) const LARGE_FILTERS_TIMES: u64 = 5;
/// Bytes of a header frame of AMQP besides the properties of the message: the frame's overhead, class, weight and size of
/// the body. The last 32 bytes are for the header `x-delivery-count`.
const HEADER_FRAME_BYTES: usize = FRAME_OVERHEAD + 12 + 32;

/// The longest time between two searches for PINGREQ in input that waits, in milliseconds.
const PING_CHECK_MS_MAX: u64 = 10_000;

/// What is known of the packet that is being handled.
#[derive(Debug, Default)]
pub(super) struct Input {
    /// The command whose outcome the broker has not returned yet.
    pub(super) pending: Pending,
    /// The PUBLISH that is being received.
    pub(super) publish: Publishing,
    /// The SUBSCRIBE or UNSUBSCRIBE of which some filters were handled.
    pub(super) filters: Option<Box<Filters>>,
    /// No input is handled at present.
    pub(super) is_suspended: bool,
    /// The session is continued, and the client has published no new message with QoS 2. It sends PUBREL again that the
    /// broker may have handled, which is no error (§3.7.2.1). Some clients would report one to their programs.
    pub(super) is_recovering: bool,
    /// The number of PINGREQ packets in the input that were answered before they are handled, at most 255.
    pub(super) answered_pings: u8,
}

/// A command whose outcome is awaited.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) enum Pending {
    #[default]
    Nothing,
    /// A step of CONNECT.
    Connect,
    /// The message of `Input::publish`.
    Publish,
    /// The next filter of `Input::filters`. If it is accepted, this is its code.
    Filter { granted: ReasonCode },
    /// PUBREC with this packet identifier.
    Pubrec(NonZeroU16),
    /// PUBREL with this packet identifier.
    Pubrel(NonZeroU16),
    /// A command without an answer.
    Silent,
    /// The last command of the connection.
    Disconnect,
}

/// The answer that the client expects to a PUBLISH.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Expected {
    /// None: QoS 0.
    Nothing,
    /// PUBACK: QoS 1.
    Puback(NonZeroU16),
    /// PUBREC: QoS 2.
    Pubrec(NonZeroU16),
}

/// How much of a PUBLISH has arrived.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) enum Publishing {
    /// No part of it.
    #[default]
    None,
    /// The header, which stays in the input: the message waits for memory for its content.
    Reserving { message: MessageId },
    /// The header, and the payload except these bytes. With an error, the message is refused.
    Payload { message: Result<MessageId, PacketError>, expected: Expected, retain: bool, missing: u32 },
    /// The whole packet. The broker has not accepted the message yet.
    Complete { message: MessageId, expected: Expected, retain: bool },
    /// The whole packet, with QoS 2. It is refused with this error, unless the broker has published the message before.
    Refused { error: PacketError, packet_id: NonZeroU16 },
}

/// A SUBSCRIBE or UNSUBSCRIBE of which some filters may be handled.
#[derive(Debug)]
pub(super) struct Filters {
    pub(super) kind: FiltersKind,
    pub(super) packet_id: NonZeroU16,
    /// Number of octets of the filters that are not handled yet.
    left_len: u32,
    /// The codes of the answer so far, one octet each.
    pub(super) codes: ByteChain,
    /// The first refused filter, with the reason, and the number of refused ones. They have one line in the log.
    pub(super) refused: Option<(Box<str>, u32)>,
    /// The changes are durable with this batch.
    pub(super) batch: Batch,
    /// Number of octets of codes in the memory that all connections share.
    pub(super) shared_bytes: u16,
    /// The packet is handled as it arrives.
    pub(super) arrives_in_parts: bool,
}

/// The packet that has the filters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FiltersKind {
    /// SUBSCRIBE, with its subscription identifier.
    Subscribe {
        id: Option<u32>,
    },
    Unsubscribe,
}

/// Returns the most bytes of the AMQP properties of a message. An AMQP consumer gets them in one frame.
fn properties_len_max(context: &Context<'_>) -> usize {
    let len_max = (context.settings.frame_max as usize).saturating_sub(HEADER_FRAME_BYTES);
    context.pools.mqtt_properties.len().min(len_max)
}

/// Returns the code of a filter that is accepted with this QoS.
const fn granted(qos: QoS) -> ReasonCode {
    match qos {
        QoS::AtMostOnce => ReasonCode::Success,
        QoS::AtLeastOnce => ReasonCode::GrantedQos1,
        QoS::ExactlyOnce => ReasonCode::GrantedQos2,
    }
}

impl Input {
    pub(super) const fn is_command_pending(&self) -> bool {
        !matches!(self.pending, Pending::Nothing)
    }

    pub(super) const fn forget_command(&mut self) {
        self.pending = Pending::Nothing;
    }

    /// Returns whether a SUBSCRIBE or UNSUBSCRIBE is handled as it arrives.
    pub(super) fn is_in_large_packet(&self) -> bool {
        self.filters.as_ref().is_some_and(|filters| filters.arrives_in_parts)
    }

    /// Returns whether a message is being received.
    pub(super) const fn has_message(&self) -> bool {
        !matches!(self.publish, Publishing::None)
    }

    /// Returns whether the payload of a message is being received.
    pub(super) const fn receives_payload(&self) -> bool {
        matches!(self.publish, Publishing::Payload { message: Ok(_), .. })
    }

    /// Releases the message that is being received.
    pub(super) fn drop_message(&mut self, messages: &mut Messages) {
        match core::mem::take(&mut self.publish) {
            Publishing::Reserving { message }
            | Publishing::Payload { message: Ok(message), .. }
            | Publishing::Complete { message, .. } => messages.release(message),
            Publishing::None | Publishing::Payload { message: Err(_), .. } | Publishing::Refused { .. } => {}
        }
    }
}

/// What the handling of a packet leads to.
enum Handled<'a> {
    /// The packet is done.
    Done,
    /// More input is needed.
    NeedMore,
    /// The packet stays in the input until this reason no longer applies.
    Wait(Suspension),
    /// The caller passes this command of an open session to the broker.
    Command(MqttCommand<'a>),
    /// The caller passes this command of CONNECT to the broker. The packet stays in the input until the last one.
    Connect(Command<'a>),
    /// Like [`Self::Connect`], with a name that is not in the packet.
    NamedCommand(NamedCommand),
}

/// A command with a name that is not in CONNECT.
#[derive(Clone, Copy, PartialEq, Eq)]
enum NamedCommand {
    /// The client is the user whose name is in its certificate.
    LoginByCertificate,
    /// The client has no user name: it is the user in `mqtt_anonymous_user`.
    LoginAnonymous,
    /// The user name contains no virtual host: that of `mqtt_vhost` is opened.
    OpenDefaultVhost,
}

impl MqttConnection {
    /// Handles input from `input[*at..]` up to the first step that the caller must handle, and advances `at` past the
    /// consumed bytes.
    pub(in super::super) fn next<'a>(
        &mut self,
        context: &mut Context<'_>,
        names: &'a mut Names,
        input: &'a [u8],
        at: &mut usize,
    ) -> InputStep<'a> {
        let start = *at;
        self.note_input(context.now, input.len() - start);
        let step = self.step(context, names, input, at);
        match step {
            InputStep::NeedMore => self.note_progress(context, *at > start, input.len() - *at),
            InputStep::Suspended(_) => self.input.is_suspended = true,
            InputStep::Command(_) | InputStep::Finished => {}
        }
        step
    }

    fn step<'a>(
        &mut self,
        context: &mut Context<'_>,
        names: &'a mut Names,
        input: &'a [u8],
        at: &mut usize,
    ) -> InputStep<'a> {
        loop {
            match self.phase {
                Phase::Finished { .. } => {
                    *at = input.len();
                    return InputStep::Finished;
                }
                Phase::Refused { .. } => {
                    *at = input.len();
                    return InputStep::NeedMore;
                }
                Phase::Open { channel } => {
                    if let Some(command) = self.publish_command() {
                        self.input.pending = Pending::Publish;
                        return InputStep::Command(Command::Publish(channel, command));
                    }
                }
                Phase::Connecting { .. } => {}
            }
            if let Publishing::Payload { .. } = self.input.publish {
                if !self.receive_payload(context, input, at) {
                    return InputStep::NeedMore;
                }
                continue;
            }
            let unread = &input[*at..];
            let handled = if self.input.filters.is_some() {
                self.handle_filters(context, unread)
            } else {
                let fixed = match FixedHeader::parse(unread) {
                    Ok(Some(fixed)) => fixed,
                    Ok(None) => return InputStep::NeedMore,
                    Err(error) => {
                        self.refuse_packet(context, unread, error);
                        continue;
                    }
                };
                if !self.has_answer_room() {
                    return InputStep::Suspended(Suspension::ReplySpace);
                }
                self.handle_packet(context, fixed, unread)
            };
            match handled {
                Ok((Handled::Done, len)) => *at += len,
                Ok((Handled::NeedMore, len)) => {
                    *at += len;
                    return InputStep::NeedMore;
                }
                Ok((Handled::Wait(suspension), len)) => {
                    *at += len;
                    return InputStep::Suspended(suspension);
                }
                Ok((Handled::Connect(command), len)) => {
                    *at += len;
                    return InputStep::Command(command);
                }
                Ok((Handled::NamedCommand(command), _)) => {
                    return InputStep::Command(self.named_command(context, names, command));
                }
                Ok((Handled::Command(command), len)) => {
                    *at += len;
                    if let Phase::Open { channel } = self.phase {
                        return InputStep::Command(Command::Mqtt(channel, command));
                    }
                }
                Err(error) => self.refuse_packet(context, unread, error),
            }
        }
    }

    /// Returns the command for the message that has arrived, or that is refused.
    fn publish_command(&self) -> Option<PublishCommand> {
        match self.input.publish {
            Publishing::Complete { message, expected, retain } => {
                let packet_id = match expected {
                    Expected::Nothing | Expected::Puback(_) => None,
                    Expected::Pubrec(packet_id) => Some(packet_id),
                };
                // Before MQTT 5, a refusal would end the connection. With QoS 0, the client would not learn of it.
                let is_refusable = self.version == Version::V5 && expected != Expected::Nothing;
                Some(match packet_id {
                    _ if retain => PublishCommand::PublishRetained { message, packet_id, is_refusable },
                    None => PublishCommand::Publish { message, mandatory: false },
                    Some(packet_id) => PublishCommand::PublishOnce { message, packet_id },
                })
            }
            Publishing::Refused { packet_id, .. } => Some(PublishCommand::FindPublished { packet_id }),
            Publishing::None | Publishing::Reserving { .. } | Publishing::Payload { .. } => None,
        }
    }

    /// Returns the command, with its name in `names`.
    fn named_command<'a>(
        &self,
        context: &Context<'_>,
        names: &'a mut Names,
        command: NamedCommand,
    ) -> Command<'a> {
        let settings = &context.settings.mqtt;
        let name = match command {
            NamedCommand::LoginByCertificate => self.certificate_name.as_ref().map_or("", |name| &name.0),
            NamedCommand::LoginAnonymous => &settings.anonymous_user,
            NamedCommand::OpenDefaultVhost => &settings.vhost,
        };
        names.queue = Name::try_from(name).unwrap_or_default();
        let from_loopback = self.peer.from_loopback;
        match command {
            NamedCommand::LoginByCertificate | NamedCommand::LoginAnonymous => {
                Command::Login(LoginCommand::External { user: &names.queue, from_loopback })
            }
            NamedCommand::OpenDefaultVhost => Command::OpenVhost(OpenVhost { vhost: &names.queue }),
        }
    }

    /// Handles the packet at the start of `unread`. Also returns how many bytes were consumed.
    fn handle_packet<'a>(
        &mut self,
        context: &mut Context<'_>,
        fixed: FixedHeader,
        unread: &'a [u8],
    ) -> Result<(Handled<'a>, usize), PacketError> {
        let header_len = fixed.packet_len() - fixed.remaining_len as usize;
        let after_fixed = &unread[header_len..];
        let is_open = matches!(self.phase, Phase::Open { .. });
        if is_open && fixed.kind == PacketType::Publish {
            return self.handle_publish(context, fixed, after_fixed, header_len);
        }
        let len_max = if is_open { context.settings.frame_max } else { context.settings.connect_len_max };
        if fixed.packet_len() > len_max as usize {
            if is_open && matches!(fixed.kind, PacketType::Subscribe | PacketType::Unsubscribe) {
                let begun = self.begin_large_filters(context, fixed, after_fixed)?;
                return Ok((begun.0, if begun.1 > 0 { header_len + begun.1 } else { 0 }));
            }
            return Err(PacketError::new(
                ReasonCode::PacketTooLarge,
                "a packet larger than this broker accepts",
            ));
        }
        let Some(body) = after_fixed.get(..fixed.remaining_len as usize) else {
            if let Phase::Connecting { len, .. } = &mut self.phase {
                *len = fixed.packet_len() as u32;
            }
            return Ok((Handled::NeedMore, 0));
        };
        let len = fixed.packet_len();
        if fixed.kind == PacketType::Connect {
            if is_open {
                return Err(PacketError::protocol("a second CONNECT"));
            }
            // CONNECT stays in the input until its last command: the steps read it again.
            let is_last = matches!(self.phase, Phase::Connecting { step: ConnectStep::OpenSession, .. });
            let consumed = if is_last { len } else { 0 };
            return self.handle_connect(context, fixed, body).map(|handled| (handled, consumed));
        }
        if !is_open {
            return Err(PacketError::protocol("a packet before CONNECT"));
        }
        let handled = match Packet::parse(fixed, self.version, body)? {
            Packet::Subscribe(subscribe) => return self.handle_subscribe(context, subscribe, len),
            Packet::Unsubscribe(unsubscribe) => return self.handle_unsubscribe(context, unsubscribe, len),
            Packet::Ack(ack) => self.handle_ack(ack),
            Packet::PingRequest => {
                match self.input.answered_pings {
                    0 => self.output.pingresp_count = self.output.pingresp_count.saturating_add(1),
                    _ => self.input.answered_pings -= 1,
                }
                Handled::Done
            }
            Packet::Disconnect(disconnect) => self.handle_disconnect(disconnect)?,
        };
        Ok((handled, len))
    }

    // ---- CONNECT

    fn handle_connect<'a>(
        &mut self,
        context: &mut Context<'_>,
        fixed: FixedHeader,
        body: &'a [u8],
    ) -> Result<Handled<'a>, PacketError> {
        let Phase::Connecting { step, .. } = self.phase else { return Ok(Handled::Done) };
        let connect = Connect::parse(fixed, body)?;
        let user_name = connect.user_name.unwrap_or_default();
        // As in RabbitMQ, the last colon separates the virtual host from the user.
        let (vhost, user) = match user_name.rsplit_once(':') {
            Some((vhost, user)) => (Some(vhost), user),
            None => (None, user_name),
        };
        let handled = match step {
            ConnectStep::Login => {
                self.accept_connect(&connect)?;
                let is_anonymous_allowed = !context.settings.mqtt.anonymous_user.is_empty();
                match (connect.user_name, connect.password) {
                    (Some(_), Some(password)) => {
                        let (password, from_loopback) = (Secret(password.0), self.peer.from_loopback);
                        let login = LoginCommand::Password { user, password, from_loopback };
                        Handled::Connect(Command::Login(login))
                    }
                    (None, None) if self.certificate_name.is_some() => {
                        Handled::NamedCommand(NamedCommand::LoginByCertificate)
                    }
                    (None, None) if is_anonymous_allowed => {
                        Handled::NamedCommand(NamedCommand::LoginAnonymous)
                    }
                    _ => {
                        let text = match connect.user_name {
                            None => "no user name and no password, which needs mqtt_anonymous_user",
                            Some(_) => "a user name without a password",
                        };
                        return Err(PacketError::new(ReasonCode::BadUserNameOrPassword, text));
                    }
                }
            }
            ConnectStep::OpenVhost => match vhost {
                Some(vhost) => Handled::Connect(Command::OpenVhost(OpenVhost { vhost })),
                None => Handled::NamedCommand(NamedCommand::OpenDefaultVhost),
            },
            ConnectStep::OpenSession => {
                // A line about a refused session names the client.
                self.keep_client(context, connect.client_id);
                let will = match &connect.will {
                    Some(will) => Some(self.will_of(context, will, connect.keep_alive_s)?),
                    None => None,
                };
                let command = OpenSession {
                    client_id: connect.client_id,
                    clean_start: connect.clean_start,
                    expiry_s: connect.session_expiry_s,
                    in_flight_max: connect.receive_maximum,
                    packet_len_max: connect.maximum_packet_size,
                    will,
                };
                Handled::Connect(Command::OpenSession(command))
            }
        };
        self.input.pending = Pending::Connect;
        Ok(handled)
    }

    /// Checks CONNECT before the login, and stores what the connection needs of it.
    fn accept_connect(&mut self, connect: &Connect<'_>) -> Result<(), PacketError> {
        self.version = connect.version;
        self.client_limits = ClientLimits {
            packet_len_max: connect.maximum_packet_size,
            topic_alias_max: connect.topic_alias_maximum,
            wants_problem_information: connect.wants_problem_information,
            is_bridge: connect.is_bridge,
        };
        if connect.client_id.len() > CLIENT_ID_BYTES_MAX {
            return Err(CLIENT_ID_TOO_LONG);
        }
        if connect.has_authentication_method {
            let text = "enhanced authentication, which this broker does not support";
            return Err(PacketError::new(ReasonCode::BadAuthenticationMethod, text));
        }
        (self.keep_alive_ms, self.expiry_s) =
            (u32::from(connect.keep_alive_s) * 1500, connect.session_expiry_s);
        Ok(())
    }

    /// Returns the will with its message.
    ///
    /// # Errors
    /// The client may not publish it, or there is no memory for it.
    fn will_of(
        &self,
        context: &mut Context<'_>,
        will: &Will<'_>,
        keep_alive_s: u16,
    ) -> Result<SessionWill, PacketError> {
        if is_reserved(will.topic) {
            return Err(RESERVED_TOPIC);
        }
        let Some(key) = exchange_separators(will.topic) else {
            let text = "a will whose topic has more than 255 bytes";
            return Err(PacketError::new(ReasonCode::TopicNameInvalid, text));
        };
        // A client that cannot log in cannot consume what fills the memory. So its will may use the reserve, and does not
        // wait for messages that are still being received.
        let (share, no_memory) =
            (Share::Reserve, PacketError::new(ReasonCode::QuotaExceeded, "no memory for the will"));
        if will.payload.len() > context.settings.message_size_max as usize {
            let text = "a will larger than message_size_max";
            return Err(PacketError::new(ReasonCode::PacketTooLarge, text));
        }
        let Ok(message) = context.messages.begin(TOPIC_EXCHANGE, key.as_bytes(), share) else {
            return Err(no_memory);
        };
        context.pools.reserve_mqtt_properties(context.settings.frame_max);
        let len_max = properties_len_max(context);
        let content_type = &context.settings.mqtt.content_type;
        let buffer = &mut context.pools.mqtt_properties[..len_max];
        let written = write_amqp_properties(will.qos, will.retain, will.properties, content_type, buffer);
        let (properties, flags) = match written {
            Ok(written) => written,
            Err(error) => {
                context.messages.discard(message);
                return Err(error);
            }
        };
        let len = will.payload.len() as u32;
        if context.messages.reserve_whole(message, properties, flags, len, share).is_err() {
            context.messages.discard(message);
            return Err(no_memory);
        }
        context.messages.append_body(message, will.payload);
        context.messages.finish(message);
        Ok(SessionWill { message, retain: will.retain, delay_s: will.delay_s, keep_alive_s })
    }

    // ---- PUBLISH

    fn handle_publish<'a>(
        &mut self,
        context: &mut Context<'_>,
        fixed: FixedHeader,
        after_fixed: &[u8],
        header_len: usize,
    ) -> Result<(Handled<'a>, usize), PacketError> {
        let len = match PublishHeader::len_of(fixed, self.version, after_fixed)? {
            HeaderLen::Known(len) | HeaderLen::AtLeast(len) => len,
        };
        if len > context.settings.frame_max as usize {
            return Err(PacketError::new(ReasonCode::PacketTooLarge, "a PUBLISH with too many properties"));
        }
        let Some(header) = after_fixed.get(..len) else { return Ok((Handled::NeedMore, 0)) };
        let header = PublishHeader::parse(fixed, self.version, header)?;
        self.check_publish(context, &header)?;
        let len = header_len + len;
        let key = exchange_separators(header.topic);
        let key = match (header.topic_alias, key) {
            (Some(alias), Some(topic_key)) => Some(self.aliases_in.resolve(alias, topic_key)?),
            // No alias refers to a topic that no message can have.
            (Some(_), None) => return Err(TOPIC_TOO_LONG),
            (None, key) => key,
        };
        let message = match key {
            Some(key) if is_reserved(&key) => Err(RESERVED_TOPIC),
            Some(key) => match self.begin_message(context, &header, &key) {
                Ok(message) => Ok(message),
                Err(Refused::Wait(full)) => {
                    return Ok((Handled::Wait(Suspension::ContentRoom(full)), 0));
                }
                Err(Refused::Now(error)) => Err(error),
            },
            None => Err(TOPIC_TOO_LONG),
        };
        self.input.is_recovering &= header.qos != QoS::ExactlyOnce || header.is_duplicate;
        let expected = match (header.qos, header.packet_id) {
            (QoS::AtLeastOnce, Some(packet_id)) => Expected::Puback(packet_id),
            (QoS::ExactlyOnce, Some(packet_id)) => Expected::Pubrec(packet_id),
            _ => Expected::Nothing,
        };
        let (retain, missing) = (header.retain, header.payload_len);
        self.input.publish = Publishing::Payload { message, expected, retain, missing };
        self.timing.payload_begun = context.now;
        Ok((Handled::Done, len))
    }

    /// Checks whether the broker accepts a PUBLISH of this kind.
    fn check_publish(&self, context: &Context<'_>, header: &PublishHeader<'_>) -> Result<(), PacketError> {
        if header.payload_len > context.settings.message_size_max {
            let text = "a message larger than message_size_max";
            return Err(PacketError::new(ReasonCode::PacketTooLarge, text));
        }
        Ok(())
    }

    /// Begins the message of a PUBLISH, and reserves the memory for its content.
    fn begin_message(
        &mut self,
        context: &mut Context<'_>,
        header: &PublishHeader<'_>,
        key: &str,
    ) -> Result<MessageId, Refused> {
        let may_wait = context.share == Share::Ordinary;
        let refused = |full| if may_wait { Refused::Wait(full) } else { Refused::Now(NO_CAPACITY) };
        let message = match self.input.publish {
            Publishing::Reserving { message } => message,
            _ => context.messages.begin(TOPIC_EXCHANGE, key.as_bytes(), context.share).map_err(refused)?,
        };
        let len_max = properties_len_max(context);
        let buffer = &mut context.pools.mqtt_properties[..len_max];
        let content_type = &context.settings.mqtt.content_type;
        let written =
            write_amqp_properties(header.qos, header.retain, header.properties, content_type, buffer);
        let (properties, flags) = match written {
            Ok(written) => written,
            Err(error) => {
                context.messages.discard(message);
                self.input.publish = Publishing::None;
                return Err(Refused::Now(error));
            }
        };
        let reserved =
            context.messages.reserve_content(message, properties, flags, header.payload_len, context.share);
        match reserved {
            Ok(()) => Ok(message),
            Err(full) if may_wait => {
                self.input.publish = Publishing::Reserving { message };
                Err(Refused::Wait(full))
            }
            Err(full) => {
                context.messages.discard(message);
                self.input.publish = Publishing::None;
                Err(refused(full))
            }
        }
    }

    /// Appends the available part of a payload to its message. Returns `false` if the rest is missing.
    fn receive_payload(&mut self, context: &mut Context<'_>, input: &[u8], at: &mut usize) -> bool {
        let Publishing::Payload { message, expected, retain, missing } = self.input.publish else {
            return true;
        };
        let unread = &input[*at..];
        let here = unread.len().min(missing as usize);
        if let Ok(message) = message {
            context.messages.append_body(message, &unread[..here]);
        }
        *at += here;
        let missing = missing - here as u32;
        if missing > 0 {
            self.input.publish = Publishing::Payload { message, expected, retain, missing };
            return false;
        }
        match message {
            Ok(message) => {
                context.messages.finish(message);
                self.input.publish = Publishing::Complete { message, expected, retain };
            }
            Err(error) => {
                if let Expected::Pubrec(packet_id) = expected {
                    self.input.publish = Publishing::Refused { error, packet_id };
                } else {
                    self.input.publish = Publishing::None;
                    self.refuse_publish(context, expected, error);
                }
            }
        }
        true
    }

    /// Refuses a message that was not passed to the broker.
    pub(super) fn refuse_publish(
        &mut self,
        context: &mut Context<'_>,
        expected: Expected,
        error: PacketError,
    ) {
        let is_dropped = expected == Expected::Nothing && error.reason == ReasonCode::QuotaExceeded;
        if self.version == Version::V5 || is_dropped {
            self.answer_refused_publish(context, expected, error.reason, error.text);
        } else {
            self.end_later(context, error.reason, error.text, None);
        }
    }

    // ---- the other packets

    fn handle_ack<'a>(&mut self, ack: Ack) -> Handled<'a> {
        let Ack { packet_id, reason, .. } = ack;
        let (pending, command) = match ack.kind {
            AckKind::Puback => (Pending::Silent, MqttCommand::AcknowledgePacket { packet_id }),
            // The client refuses the message, and the packet identifier is free (§4.3.3).
            AckKind::Pubrec if reason.is_failure() => {
                (Pending::Silent, MqttCommand::RefusePacket { packet_id })
            }
            AckKind::Pubrec => (Pending::Pubrec(packet_id), MqttCommand::ReceivePacket { packet_id }),
            AckKind::Pubrel => (Pending::Pubrel(packet_id), MqttCommand::ReleasePacket { packet_id }),
            AckKind::Pubcomp => (Pending::Silent, MqttCommand::CompletePacket { packet_id }),
        };
        self.input.pending = pending;
        Handled::Command(command)
    }

    /// Begins to handle SUBSCRIBE. Its filters are consumed one by one, so that a long list is worked off in several turns.
    /// Returns how many octets are before the first filter.
    fn handle_subscribe<'a>(
        &mut self,
        context: &mut Context<'_>,
        subscribe: Subscribe<'a>,
        len: usize,
    ) -> Result<(Handled<'a>, usize), PacketError> {
        let kind = FiltersKind::Subscribe { id: subscribe.subscription_id };
        let (count, filters_len) = (subscribe.filter_count(), subscribe.filters_len());
        let handled = self.begin_filters(context, kind, subscribe.packet_id, count, filters_len)?;
        let consumed = if matches!(handled, Handled::Done) { len - filters_len } else { 0 };
        Ok((handled, consumed))
    }

    /// Like [`Self::handle_subscribe`], for UNSUBSCRIBE.
    fn handle_unsubscribe<'a>(
        &mut self,
        context: &mut Context<'_>,
        unsubscribe: Unsubscribe<'a>,
        len: usize,
    ) -> Result<(Handled<'a>, usize), PacketError> {
        let (count, filters_len) = (unsubscribe.filter_count(), unsubscribe.filters_len());
        let (kind, packet_id) = (FiltersKind::Unsubscribe, unsubscribe.packet_id);
        let handled = self.begin_filters(context, kind, packet_id, count, filters_len)?;
        let consumed = if matches!(handled, Handled::Done) { len - filters_len } else { 0 };
        Ok((handled, consumed))
    }

    /// Begins to handle a SUBSCRIBE or UNSUBSCRIBE that is larger than the input of a connection may be: it is handled as it
    /// arrives. Home Assistant subscribes to thousands of topics at once. Returns how many octets after the fixed header were
    /// consumed.
    fn begin_large_filters<'a>(
        &mut self,
        context: &mut Context<'_>,
        fixed: FixedHeader,
        after_fixed: &'a [u8],
    ) -> Result<(Handled<'a>, usize), PacketError> {
        // The number of filters is not known yet. Shorter filters than these are refused when the capacity is used up.
        let count_max = fixed.remaining_len as usize / LARGE_FILTER_LEN_MIN;
        if count_max > LONG_ANSWER_CODES_MAX.min(context.settings.frame_max as usize) {
            let text = "a SUBSCRIBE or UNSUBSCRIBE larger than 8 times frame_max, or than 520 kB";
            return Err(PacketError::new(ReasonCode::PacketTooLarge, text));
        }
        let Some(head) = FiltersHead::parse(fixed, self.version, after_fixed)? else {
            if after_fixed.len() >= context.settings.frame_max as usize - FIXED_HEADER_LEN_MAX {
                let text = "a SUBSCRIBE or UNSUBSCRIBE with too many properties";
                return Err(PacketError::new(ReasonCode::PacketTooLarge, text));
            }
            return Ok((Handled::NeedMore, 0));
        };
        let filters_len = (fixed.remaining_len as usize).saturating_sub(head.len);
        if filters_len == 0 {
            return Err(PacketError::new(ReasonCode::ProtocolError, "a packet without a topic filter"));
        }
        let kind = match fixed.kind {
            PacketType::Subscribe => FiltersKind::Subscribe { id: head.subscription_id },
            _ => FiltersKind::Unsubscribe,
        };
        let handled = self.begin_filters(context, kind, head.packet_id, count_max, filters_len)?;
        if let (Handled::Done, Some(filters)) = (&handled, &mut self.input.filters) {
            filters.arrives_in_parts = true;
            self.timing.packet_due = Deadline::NEVER;
            return Ok((handled, head.len));
        }
        Ok((handled, 0))
    }

    /// Begins to handle the filters of a packet, of which there are `count` in `len` octets. If there is no capacity for the
    /// codes of the answer now, the packet waits.
    ///
    /// # Errors
    /// The answer would be longer than the length of a stored packet can express.
    fn begin_filters<'a>(
        &mut self,
        context: &mut Context<'_>,
        kind: FiltersKind,
        packet_id: NonZeroU16,
        count: usize,
        len: usize,
    ) -> Result<Handled<'a>, PacketError> {
        if count > LONG_ANSWER_CODES_MAX {
            let text = "more than 65,000 topic filters in a packet";
            return Err(PacketError::new(ReasonCode::PacketTooLarge, text));
        }
        let shared_bytes = if count > SHORT_ANSWER_CODES_MAX { count } else { 0 };
        if shared_bytes > 0 && self.long_answer_bytes > 0 {
            return Ok(Handled::Wait(Suspension::ReplySpace));
        }
        if shared_bytes > context.pools.long_answer_bytes_left {
            return Ok(Handled::Wait(Suspension::LongAnswer { bytes: shared_bytes as u32 }));
        }
        context.pools.long_answer_bytes_left -= shared_bytes;
        let filters = Filters {
            kind,
            packet_id,
            left_len: len as u32,
            codes: ByteChain::default(),
            refused: None,
            batch: Batch::NONE,
            shared_bytes: shared_bytes as u16,
            arrives_in_parts: false,
        };
        self.input.filters = Some(Box::new(filters));
        Ok(Handled::Done)
    }

    /// Handles the next filters of a packet, up to the first one that needs a command. `unread` begins with a filter.
    fn handle_filters<'a>(
        &mut self,
        context: &mut Context<'_>,
        unread: &'a [u8],
    ) -> Result<(Handled<'a>, usize), PacketError> {
        let mut consumed = 0;
        let waits = self.has_partial_header();
        loop {
            let Some(filters) = &mut self.input.filters else { return Ok((Handled::Done, consumed)) };
            if filters.left_len == 0 {
                self.push_filter_answer(context);
                return Ok((Handled::Done, consumed));
            }
            let octets = &unread[consumed..];
            let octets = &octets[..octets.len().min(filters.left_len as usize)];
            let next = match filters.kind {
                FiltersKind::Subscribe { .. } => Subscribe::next_filter(self.version, octets)?
                    .map(|(text, options, len)| (text, Some(options), len)),
                FiltersKind::Unsubscribe => {
                    Unsubscribe::next_filter(octets)?.map(|(text, len)| (text, None, len))
                }
            };
            // A part of the packet may have been left in the socket.
            let Some((text, options, len)) = next else {
                let (len, left_len) = (octets.len(), filters.left_len as usize);
                if len == left_len || len >= context.settings.frame_max as usize {
                    let text = "a topic filter that is longer than its packet or than frame_max";
                    return Err(PacketError::new(ReasonCode::MalformedPacket, text));
                }
                return Ok((Handled::NeedMore, consumed));
            };
            if filters.shared_bytes > 0 && filters.codes.len() == usize::from(filters.shared_bytes) {
                let text = "a packet larger than frame_max with too many short topic filters";
                return Err(PacketError::new(ReasonCode::PacketTooLarge, text));
            }
            if waits {
                // The rest of the header depends on the subscriptions.
                return Ok((Handled::Wait(Suspension::ReplySpace), consumed));
            }
            filters.left_len -= len as u32;
            consumed += len;
            let kind = filters.kind;
            let parsed = match TopicFilter::parse(text) {
                Err(error) => Err(error.reason),
                Ok(_) if text.len() > NAME_BYTES_MAX => Err(ReasonCode::TopicFilterInvalid),
                Ok(filter) => Ok(filter),
            };
            match (parsed, kind, options) {
                (Ok(filter), FiltersKind::Subscribe { id }, Some(options)) => {
                    self.input.pending = Pending::Filter { granted: granted(options.qos) };
                    let command = MqttCommand::Subscribe(self.subscription(filter, id, options));
                    return Ok((Handled::Command(command), consumed));
                }
                (Ok(TopicFilter { group, filter }), _, _) => {
                    self.input.pending = Pending::Filter { granted: ReasonCode::Success };
                    return Ok((Handled::Command(MqttCommand::Unsubscribe { filter, group }), consumed));
                }
                (Err(reason), ..) => {
                    let start: String =
                        text.chars().take(LOGGED_FILTER_LEN_MAX).flat_map(char::escape_debug).collect();
                    let text = format_args!("topic filter '{start}': {}", reason.name());
                    self.note_refused_filter(text);
                    self.push_filter_code(context, reason, Batch::NONE);
                }
            }
        }
    }

    /// Returns the subscription with this filter. A bridge of another broker always gets RETAIN as published, and not its own
    /// messages.
    fn subscription<'a>(
        &self,
        filter: TopicFilter<'a>,
        id: Option<u32>,
        options: SubscriptionOptions,
    ) -> Subscription<'a> {
        let TopicFilter { group, filter } = filter;
        Subscription {
            filter,
            group,
            qos: options.qos as u8,
            id,
            no_local: options.no_local || self.client_limits.is_bridge && group.is_none(),
            retain_as_published: options.retain_as_published || self.client_limits.is_bridge,
            retain_handling: match options.retain_handling {
                leveret_mqtt::RetainHandling::Always => RetainHandling::Always,
                leveret_mqtt::RetainHandling::IfNew => RetainHandling::IfNew,
                leveret_mqtt::RetainHandling::Never => RetainHandling::Never,
            },
        }
    }

    fn handle_disconnect<'a>(&mut self, disconnect: Disconnect) -> Result<Handled<'a>, PacketError> {
        log::debug!("connection {}: the client closes it ({})", self.id.index(), disconnect.reason.name());
        let expiry_s = disconnect.session_expiry_s.filter(|seconds| *seconds != self.expiry_s);
        // §3.14.2.2.2.
        if expiry_s.is_some() && self.expiry_s == 0 {
            return Err(PacketError::protocol("a session expiry in DISCONNECT, although CONNECT had none"));
        }
        self.input.pending = Pending::Disconnect;
        let keeps_will = disconnect.reason != ReasonCode::Success;
        Ok(Handled::Command(MqttCommand::LeaveSession { expiry_s, keeps_will }))
    }

    // ---- errors

    /// Ends the connection because of a packet that is not valid. `unread` begins with the packet.
    fn refuse_packet(&mut self, context: &mut Context<'_>, unread: &[u8], error: PacketError) {
        if let Phase::Connecting { .. } = self.phase {
            let answer_version = FixedHeader::parse(unread).ok().flatten().and_then(|fixed| {
                let body = unread.get(fixed.packet_len() - fixed.remaining_len as usize..)?;
                (fixed.kind == PacketType::Connect).then(|| Connect::answer_version(body)).flatten()
            });
            let Some(version) = answer_version else {
                // It is not known whether the client speaks MQTT.
                self.warn(context, LogKind::Opening, format_args!(": refused: {}", error.text));
                return self.finish_with(context);
            };
            self.version = version;
            if error == CLIENT_ID_TOO_LONG || error.reason == ReasonCode::PacketTooLarge {
                let fixed = FixedHeader::parse(unread).ok().flatten();
                let body = fixed.and_then(|fixed| unread.get(fixed.len..)).unwrap_or_default();
                return self.end_later(context, error.reason, error.text, Connect::client_id_of(body));
            }
        }
        self.end(context, error.reason, format_args!("{}", error.text));
    }

    /// Returns the packets in `input`, which is not handled yet, with the octets from their start on. A packet may be
    /// incomplete.
    fn unhandled_packets<'i>(&self, input: &'i [u8]) -> impl Iterator<Item = (FixedHeader, &'i [u8])> {
        let missing = match self.input.publish {
            Publishing::Payload { missing, .. } => missing as usize,
            _ => self.input.filters.as_ref().map_or(0, |filters| filters.left_len as usize),
        };
        Self::packets_in(input.get(missing..).unwrap_or_default())
    }

    fn packets_in(mut unread: &[u8]) -> impl Iterator<Item = (FixedHeader, &[u8])> {
        core::iter::from_fn(move || {
            let fixed = FixedHeader::parse(unread).ok().flatten()?;
            let packet = unread;
            unread = unread.get(fixed.packet_len()..).unwrap_or_default();
            Some((fixed, packet))
        })
    }

    /// Returns the number of messages whose header was handled, and that the broker has not accepted.
    pub(in super::super) const fn held_messages(&self) -> u32 {
        matches!(self.input.publish, Publishing::Payload { .. } | Publishing::Complete { .. }) as u32
    }

    /// Counts the messages in `input`. `is_first`: it follows the last input that was handled.
    pub(in super::super) fn count_messages(&self, input: &[u8], is_first: bool) -> UnhandledMessages {
        let mut found = UnhandledMessages::default();
        let mut count = |(fixed, packet): (FixedHeader, &[u8])| {
            if packet.len() >= fixed.packet_len() {
                found.messages += u32::from(fixed.kind == PacketType::Publish);
                found.bytes = input.len() - (packet.len() - fixed.packet_len());
            }
        };
        match is_first {
            true => self.unhandled_packets(input).for_each(&mut count),
            false => Self::packets_in(input).for_each(&mut count),
        }
        found
    }

    /// Returns whether `input`, which is not handled yet, contains a DISCONNECT of the client that deletes its will.
    pub(in super::super) fn has_disconnect(&self, input: &[u8]) -> bool {
        let mut packets = self.unhandled_packets(input);
        let disconnect = packets.find(|(fixed, _)| fixed.kind == PacketType::Disconnect);
        disconnect.is_some_and(|(fixed, packet)| {
            let reason = packet.get(fixed.len).filter(|_| fixed.remaining_len > 0);
            reason.is_none_or(|reason| *reason == 0)
        })
    }

    /// Returns how often input that waits is to be searched for PINGREQ: four times within the keep-alive time, at least
    /// every 10 s and at most every second.
    pub(in super::super) const fn ping_check_ms(&self) -> u64 {
        match self.keep_alive_ms as u64 / 6 {
            0 => PING_CHECK_MS_MAX,
            ms if ms < 1_000 => 1_000,
            ms if ms < PING_CHECK_MS_MAX => ms,
            _ => PING_CHECK_MS_MAX,
        }
    }

    /// Answers PINGREQ in `input`, which waits behind a message for which there is no capacity. Otherwise the client would
    /// connect again and again until there is. Returns whether there is a PINGREQ that was not answered.
    pub(in super::super) fn answer_pings(&mut self, input: &[u8]) -> bool {
        let is_ping = |(fixed, _): &(FixedHeader, &[u8])| fixed.kind == PacketType::Pingreq;
        let count = self.unhandled_packets(input).filter(is_ping).take(u8::MAX.into()).count() as u8;
        let new_count = count.saturating_sub(self.input.answered_pings);
        if new_count == 0 || !matches!(self.phase, Phase::Open { .. }) {
            return false;
        }
        self.input.answered_pings = count;
        self.output.pingresp_count = self.output.pingresp_count.saturating_add(new_count);
        true
    }

    /// Closes the connection of a client that has sent DISCONNECT after messages that wait for capacity. These messages
    /// are dropped.
    pub(in super::super) fn close_suspended(&mut self, context: &mut Context<'_>) {
        let text = format_args!(
            ": the client has disconnected while its messages waited for capacity: they are dropped"
        );
        self.warn(context, LogKind::Connection, text);
        self.finish_with(context);
    }
}

/// Why the message of a PUBLISH cannot begin.
enum Refused {
    /// This pool is full, and the client waits for it.
    Wait(PoolFull),
    /// The message is refused.
    Now(PacketError),
}

/// Returns whether only the broker may publish to a topic, or to its routing key: §4.7.2 leaves topics that begin with `$SYS`
/// to the server.
fn is_reserved(topic: &str) -> bool {
    topic.strip_prefix("$SYS").is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '.']))
}

const RESERVED_TOPIC: PacketError =
    PacketError::new(ReasonCode::NotAuthorized, "a message to $SYS, to which only the broker may publish");
const CLIENT_ID_TOO_LONG: PacketError =
    PacketError::new(ReasonCode::ClientIdentifierNotValid, "a client identifier of more than 237 bytes");

const TOPIC_TOO_LONG: PacketError =
    PacketError::new(ReasonCode::TopicNameInvalid, "a topic of more than 255 bytes");
const NO_CAPACITY: PacketError =
    PacketError::new(ReasonCode::QuotaExceeded, "the broker has no memory for it");
