//! The connection of a client, whatever its protocol: what the event loop calls.

use leveret_amqp::field::Table;
use leveret_core::batch::Batch;
use leveret_core::command::{Answer, ConnectionId, Outbox, ReplyOrder};
use leveret_core::error::Fault;
use leveret_core::limits::FRAME_BYTES_MIN;
use leveret_core::time::{Deadline, Now};

use super::connection::{Caller, Connection, Context, Names, Negotiated, Peer, Settings, Stage};
use super::input::InputStep;
use super::mqtt::MqttConnection;
use super::output::Filled;
use super::timeouts::Timeout;

/// The messages in input that is not handled.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct UnhandledMessages {
    /// The number of messages in these frames or packets.
    pub messages: u32,
    /// The length of the complete frames or packets at the start of the input, in bytes.
    pub bytes: usize,
}

/// The server's side of the connection of one client.
#[derive(Debug)]
pub enum Client {
    /// A client of AMQP 0-9-1.
    Amqp(Connection),
    /// A client of MQTT.
    Mqtt(MqttConnection),
}

/// Calls the same method of either protocol.
macro_rules! of_either {
    ($client:expr, $connection:ident => $call:expr) => {
        match $client {
            Client::Amqp($connection) => $call,
            Client::Mqtt($connection) => $call,
        }
    };
}

impl Client {
    /// Creates the state of an AMQP connection that was accepted at `now`.
    pub fn amqp(now: Now, id: ConnectionId, peer: Peer, settings: &Settings) -> Self {
        Self::Amqp(Connection::new(now, id, peer, settings))
    }

    /// Creates the state of an MQTT connection that was accepted at `now`.
    pub fn mqtt(now: Now, id: ConnectionId, peer: Peer, settings: &Settings) -> Self {
        Self::Mqtt(MqttConnection::new(now, id, peer, settings))
    }

    // ---- input and output

    /// See [`Connection::next`].
    #[inline]
    pub fn next<'a>(
        &mut self,
        context: &mut Context<'_>,
        names: &'a mut Names,
        input: &'a [u8],
        at: &mut usize,
    ) -> InputStep<'a> {
        of_either!(self, connection => connection.next(context, names, input, at))
    }

    /// See [`Connection::answer`].
    #[inline]
    pub fn answer(
        &mut self,
        context: &mut Context<'_>,
        answer: Result<Answer, Fault>,
        order: ReplyOrder,
        batch: Batch,
    ) {
        match self {
            Self::Amqp(connection) => connection.answer(context, answer, order, batch),
            Self::Mqtt(connection) => connection.answer(context, answer, batch),
        }
    }

    /// See [`Connection::fill`].
    #[inline]
    pub fn fill<O: Outbox>(&mut self, context: &mut Context<'_>, out: &mut [u8], outbox: &mut O) -> Filled {
        of_either!(self, connection => connection.fill(context, out, outbox))
    }

    /// Returns whether there is output besides complete deliveries in the outbox.
    pub fn has_output(&self) -> bool {
        of_either!(self, connection => connection.has_output())
    }

    /// Returns whether the last [`Self::fill`] has written something only partly.
    pub const fn has_remainder(&self) -> bool {
        of_either!(self, connection => connection.has_remainder())
    }

    /// Returns whether the first delivery of the outbox is partly written.
    pub const fn has_begun_delivery(&self) -> bool {
        match self {
            Self::Amqp(connection) => connection.has_begun_delivery(),
            Self::Mqtt(connection) => connection.has_remainder(),
        }
    }

    /// Returns whether there are confirms or answers for changes that are not durable yet.
    pub fn awaits_disk(&self) -> bool {
        of_either!(self, connection => connection.awaits_disk())
    }

    /// Notes the newest durable batch, so that confirms and answers can be sent.
    pub fn note_durable(&mut self, context: &mut Context<'_>) {
        match self {
            Self::Amqp(connection) => connection.note_durable(context),
            Self::Mqtt(connection) => connection.note_durable(context),
        }
    }

    /// Notifies the client that the broker has cancelled a consumer; see [`Connection::server_cancel`]. An MQTT client gets
    /// no notification: the broker closes its connection.
    pub fn server_cancel(
        &mut self,
        context: &mut Context<'_>,
        channel_number: u16,
        consumer_tag: &str,
        order: ReplyOrder,
    ) -> bool {
        match self {
            Self::Amqp(connection) => connection.server_cancel(context, channel_number, consumer_tag, order),
            Self::Mqtt(_) => true,
        }
    }

    // ---- deferred answers

    /// Returns whether [`Self::answer`] need not wait until the changes of the last command are durable: the command has
    /// no answer, or the connection keeps the answer until then.
    pub const fn may_answer_before_durable(&self) -> bool {
        match self {
            Self::Amqp(connection) => connection.wants_no_answer(),
            Self::Mqtt(_) => true,
        }
    }

    /// See [`Connection::defer`].
    pub const fn defer(&mut self) {
        of_either!(self, connection => connection.defer());
    }

    /// See [`Connection::defer_login`].
    pub fn defer_login(&mut self, now: Now) {
        of_either!(self, connection => connection.defer_login(now));
    }

    /// Returns whether the answer to the last command is pending and still needed.
    pub fn expects_answer(&self) -> bool {
        of_either!(self, connection => connection.expects_answer())
    }

    // ---- deadlines

    /// Returns when [`Self::handle_timeout`] must be called.
    pub fn deadline(&self) -> Deadline {
        of_either!(self, connection => connection.deadline())
    }

    /// Returns the earliest deadline that received input postpones; see [`Connection::input_deadline`].
    pub fn input_deadline(&self) -> Deadline {
        of_either!(self, connection => connection.input_deadline())
    }

    /// Handles the deadlines that have passed.
    pub fn handle_timeout(&mut self, context: &mut Context<'_>) -> Timeout {
        of_either!(self, connection => connection.handle_timeout(context))
    }

    /// Extends deadlines that passed long ago; see [`Connection::extend_after_pause`].
    pub fn extend_after_pause(&mut self, now: Now, handshake_ms: u64, content_ms: u64) {
        of_either!(self, connection => connection.extend_after_pause(now, handshake_ms, content_ms));
    }

    /// Extends the time limit for the first packet by `ms` milliseconds.
    pub const fn postpone(&mut self, ms: u64) {
        of_either!(self, connection => connection.postpone(ms));
    }

    /// Returns whether a message body began to arrive at least `ms` milliseconds ago and is still incomplete.
    pub fn has_body_for(&self, context: &Context<'_>, ms: u64) -> bool {
        of_either!(self, connection => connection.has_body_for(context, ms))
    }

    // ---- waiting publishers

    /// Notes that this publisher waits for capacity. An AMQP client is notified.
    pub const fn block(&mut self, now: Now, is_for_disk: bool) {
        if let Self::Amqp(connection) = self {
            connection.block(now, is_for_disk);
        }
    }

    /// Notes that this publisher no longer waits.
    pub const fn unblock(&mut self, now: Now) {
        if let Self::Amqp(connection) = self {
            connection.unblock(now);
        }
    }

    /// Returns whether `input`, which is not handled yet, contains the client's request to close the connection.
    pub fn has_close(&self, input: &[u8]) -> bool {
        match self {
            Self::Amqp(connection) => connection.has_close(input),
            Self::Mqtt(connection) => connection.has_disconnect(input),
        }
    }

    /// Returns the number of messages of which the connection has handled some input, but which the broker has not
    /// accepted.
    pub const fn held_messages(&self) -> u32 {
        of_either!(self, connection => connection.held_messages())
    }

    /// Counts the messages in `input`, which is not handled yet. `is_first`: it follows the last input that was handled;
    /// otherwise it begins with a frame or packet.
    pub fn count_messages(&self, input: &[u8], is_first: bool) -> UnhandledMessages {
        of_either!(self, connection => connection.count_messages(input, is_first))
    }

    /// Returns how often input that is not handled yet is to be searched for PINGREQ, in milliseconds; `None` for AMQP
    /// clients, which need no answer to their heartbeats.
    pub const fn ping_check_ms(&self) -> Option<u64> {
        match self {
            Self::Amqp(_) => None,
            Self::Mqtt(connection) => Some(connection.ping_check_ms()),
        }
    }

    /// Answers the requests in `input`, which is not handled yet, that ask whether the broker is alive. Returns whether
    /// there are any.
    pub fn answer_pings(&mut self, input: &[u8]) -> bool {
        match self {
            Self::Amqp(_) => false,
            Self::Mqtt(connection) => connection.answer_pings(input),
        }
    }

    /// Closes the connection of a client that has requested it behind input that waits for capacity.
    pub fn close_suspended(&mut self, context: &mut Context<'_>) {
        of_either!(self, connection => connection.close_suspended(context));
    }

    // ---- closing

    /// Closes the connection with this fault.
    pub fn close(&mut self, context: &mut Context<'_>, fault: &Fault) {
        of_either!(self, connection => connection.close(context, fault));
    }

    /// Closes a channel; see [`Connection::close_channel`]. An MQTT client, which has only one, is disconnected.
    pub fn close_channel(&mut self, context: &mut Context<'_>, number: u16, fault: &Fault) -> bool {
        match self {
            Self::Amqp(connection) => connection.close_channel(context, number, fault),
            Self::Mqtt(connection) => {
                connection.close(context, fault);
                true
            }
        }
    }

    /// Returns all memory from pools, because the socket is closed.
    pub fn teardown(&mut self, context: &mut Context<'_>) {
        of_either!(self, connection => connection.teardown(context));
    }

    // ---- the state of the connection

    /// Returns the stage of the connection.
    pub const fn stage(&self) -> Stage {
        of_either!(self, connection => connection.stage())
    }

    /// Returns whether the broker has accepted a login.
    pub const fn is_logged_in(&self) -> bool {
        of_either!(self, connection => connection.is_logged_in())
    }

    /// Returns how many bytes are read from a client before it has logged in.
    pub const fn login_bytes_max(&self) -> usize {
        match self {
            Self::Amqp(_) => FRAME_BYTES_MIN as usize,
            Self::Mqtt(connection) => connection.login_bytes_max(),
        }
    }

    /// Returns whether the first packet or the protocol header is not handled yet.
    pub const fn awaits_first_packet(&self) -> bool {
        match self {
            Self::Amqp(connection) => connection.awaits_header(),
            Self::Mqtt(connection) => connection.awaits_first_packet(),
        }
    }

    /// See [`Connection::may_leave_broker`].
    pub const fn may_leave_broker(&self) -> bool {
        of_either!(self, connection => connection.may_leave_broker())
    }

    /// Sets the name in the client's verified certificate.
    pub fn set_certificate_name(&mut self, name: &str) {
        of_either!(self, connection => connection.set_certificate_name(name));
    }

    /// Sets the user and the virtual host that the log shows.
    pub fn set_names(&mut self, user: &str, vhost: &str) {
        of_either!(self, connection => connection.set_names(user, vhost));
    }

    /// Returns the text that identifies the connection in the log.
    pub fn caller(&self) -> Caller<'_> {
        of_either!(self, connection => connection.caller())
    }

    /// Returns whether this is an MQTT client.
    pub const fn is_mqtt(&self) -> bool {
        matches!(self, Self::Mqtt(_))
    }

    // ---- what operators see

    /// Returns the name of the protocol with its version, as in RabbitMQ.
    pub const fn protocol(&self) -> &'static str {
        match self {
            Self::Amqp(_) => "AMQP 0-9-1",
            Self::Mqtt(connection) => connection.protocol(),
        }
    }

    /// Returns the negotiated limits. An MQTT connection has one channel, no frames, and its keep-alive time.
    pub const fn negotiated(&self) -> Negotiated {
        match self {
            Self::Amqp(connection) => connection.negotiated(),
            Self::Mqtt(connection) => {
                let heartbeat_ms = connection.keep_alive_s() * 1000;
                Negotiated { frame_max: 0, channel_max: 1, heartbeat_ms }
            }
        }
    }

    /// Returns the mechanism of the login; empty before the login, and for MQTT.
    pub const fn mechanism(&self) -> &'static str {
        match self {
            Self::Amqp(connection) => connection.mechanism(),
            Self::Mqtt(_) => "",
        }
    }

    /// Returns the stored client properties.
    pub fn client_properties(&self) -> Table<'_> {
        of_either!(self, connection => connection.client_properties())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The state of an MQTT connection must not make that of every connection larger.
    #[test]
    fn the_state_of_an_mqtt_connection_is_the_smaller_one() {
        assert!(size_of::<MqttConnection>() <= size_of::<Connection>());
    }
}
