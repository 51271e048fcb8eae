//! Every method of AMQP 0-9-1 and of RabbitMQ's extensions, in both directions.
//!
//! One table describes each method. Reading, writing, number and name are generated from it, so they cannot
//! disagree. The server reads the methods of clients and writes those of servers; the bridge, which is a
//! client, does the opposite.
//!
//! [`Method::parse`] accepts and refuses what RabbitMQ 3.10 does, with one exception: the exchange of
//! `basic.publish`, `basic.return`, `basic.deliver` and `basic.get-ok` must be UTF-8 like any other name.
//! RabbitMQ does not check this name, and then reports that there is no such exchange.
//!
//! # Invariants
//! - [`Method::parse`] consumes the payload exactly: an octet too few or too many is an error, as in RabbitMQ.
//! - `parse` after `emit` gives an equal value. `emit` after `parse` gives the same octets if the peer left
//!   reserved fields and unused bits zero.
//!
//! ```text
//!    payload of a method frame (§4.2.4):
//!
//!    0          2           4
//!    +----------+-----------+- - - - - -+
//!    | class-id | method-id | arguments |
//!    +----------+-----------+- - - - - -+
//!      short      short
//! ```
//!
//! The types of arguments in the table below:
//!
//! ```text
//!    octet short long longlong    unsigned numbers of 8, 16, 32 and 64 bits
//!    name                         short string that must be UTF-8: a name or a text
//!    key                          short string of any octets: routing keys
//!    blob                         long string of any octets
//!    table                        field table, checked
//!    bits [a, b, c]               flags packed into one octet, the first in the lowest bit
//!    unused_*                     ignored when read, written as zero or empty
//! ```

use core::fmt;

use super::{FrameKind, Full, Reader, Table, WireError, Writer};

/// Why the payload of a method frame is not a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MethodError {
    /// The payload is too short for class and method number.
    NoId,
    /// AMQP and RabbitMQ have no such method.
    Unknown {
        /// The class number.
        class_id: u16,
        /// The method number.
        method_id: u16,
    },
    /// The method is known, but its arguments are not valid.
    Malformed {
        /// The class.
        class_id: u16,
        /// The method.
        method_id: u16,
        /// The error of the arguments.
        error: WireError,
    },
}

impl fmt::Display for MethodError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoId => f.write_str("a method frame without a method"),
            Self::Unknown { class_id, method_id } => write!(f, "unknown method {class_id}.{method_id}"),
            Self::Malformed { class_id, method_id, error } => {
                write!(f, "malformed {}: {error}", method_name(class_id, method_id).unwrap_or("method"))
            }
        }
    }
}

impl core::error::Error for MethodError {}

/// Octets of class and method number.
const ID_LEN: usize = 4;

/// Returns class and method number of a method frame's payload, without parsing the arguments; `None` if the
/// payload is too short.
#[inline]
pub fn method_id_of(payload: &[u8]) -> Option<(u16, u16)> {
    let [c0, c1, m0, m1] = *payload.first_chunk()?;
    Some((u16::from_be_bytes([c0, c1]), u16::from_be_bytes([m0, m1])))
}

/// The Rust type of an argument.
macro_rules! argument_type {
    (octet) => { u8 };
    (short) => { u16 };
    (long) => { u32 };
    (longlong) => { u64 };
    (name) => { &'a str };
    (key) => { &'a [u8] };
    (blob) => { &'a [u8] };
    (table) => { Table<'a> };
}

/// A statement that reads an argument into a variable of its name.
macro_rules! read_argument {
    ($r:ident, octet $field:ident) => { let $field = $r.u8()?; };
    ($r:ident, short $field:ident) => { let $field = $r.u16()?; };
    ($r:ident, long $field:ident) => { let $field = $r.u32()?; };
    ($r:ident, longlong $field:ident) => { let $field = $r.u64()?; };
    ($r:ident, name $field:ident) => { let $field = $r.short_string()?; };
    ($r:ident, key $field:ident) => { let $field = $r.short_str()?; };
    ($r:ident, blob $field:ident) => { let $field = $r.long_str()?; };
    ($r:ident, table $field:ident) => { let $field = $r.table()?; };
    ($r:ident, bits [$($bit:ident)*]) => { let [$($bit,)* ..] = $r.bits()?; };
    ($r:ident, unused_octet) => { $r.u8()?; };
    ($r:ident, unused_short) => { $r.u16()?; };
    ($r:ident, unused_name) => { $r.short_string()?; };
    ($r:ident, unused_blob) => { $r.long_str()?; };
}

/// An expression that writes the argument in the variable of its name.
macro_rules! write_argument {
    ($w:ident, octet $field:ident) => { $w.write_u8(*$field)? };
    ($w:ident, short $field:ident) => { $w.write_u16(*$field)? };
    ($w:ident, long $field:ident) => { $w.write_u32(*$field)? };
    ($w:ident, longlong $field:ident) => { $w.write_u64(*$field)? };
    ($w:ident, name $field:ident) => { $w.write_short_str($field.as_bytes())? };
    ($w:ident, key $field:ident) => { $w.write_short_str($field)? };
    ($w:ident, blob $field:ident) => { $w.write_long_str($field)? };
    ($w:ident, table $field:ident) => { $w.write_table(*$field)? };
    ($w:ident, bits [$($bit:ident)*]) => { $w.write_bits([$(*$bit),*])? };
    ($w:ident, unused_octet) => { $w.write_u8(0)? };
    ($w:ident, unused_short) => { $w.write_u16(0)? };
    ($w:ident, unused_name) => { $w.write_u8(0)? };
    ($w:ident, unused_blob) => { $w.write_u32(0)? };
}

macro_rules! methods {
    ($(
        $(#[$doc:meta])*
        $class:literal $number:literal $name:literal $variant:ident {
            $( $kind:ident $($field:ident)? $([ $($bit:ident)* ])? ),* $(,)?
        }
    )*) => {
        /// A method with its arguments, which borrow from the received frame.
        ///
        /// The names of arguments are those of the specification. Reserved arguments (tickets, known hosts,
        /// …) are left out.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "the specification documents the arguments, under the same names")]
        pub enum Method<'a> {
            $( $(#[$doc])* $variant { $( $($field: argument_type!($kind),)? $($($bit: bool,)*)? )* }, )*
        }

        impl<'a> Method<'a> {
            /// Reads the arguments of the method with that class and number; `None` if there is no such
            /// method.
            fn parse_arguments(id: (u16, u16), r: &mut Reader<'a>) -> Result<Option<Self>, WireError> {
                match id {
                    $( ($class, $number) => {
                        $( read_argument!(r, $kind $($field)? $([$($bit)*])?); )*
                        Ok(Some(Self::$variant { $( $($field,)? $($($bit,)*)? )* }))
                    } )*
                    _ => Ok(None),
                }
            }

            fn emit_arguments(&self, w: &mut Writer<'_>) -> Result<(), Full> {
                match self {
                    $( Self::$variant { $( $($field,)? $($($bit,)*)? )* } => {
                        $( write_argument!(w, $kind $($field)? $([$($bit)*])?); )*
                    } )*
                }
                Ok(())
            }

            /// Returns class and method number.
            #[inline]
            pub fn id(&self) -> (u16, u16) {
                match self { $( Self::$variant { .. } => ($class, $number), )* }
            }

            /// Returns the name in the specification, for example `queue.declare-ok`.
            pub fn name(&self) -> &'static str {
                match self { $( Self::$variant { .. } => $name, )* }
            }
        }

        /// Returns the name in the specification of the method with these numbers; `None` if there is none.
        pub fn method_name(class_id: u16, method_id: u16) -> Option<&'static str> {
            match (class_id, method_id) {
                $( ($class, $number) => Some($name), )*
                _ => None,
            }
        }
    };
}

methods! {
    // ---- connection (§1.4) --------------------

    /// Server: its properties and the login mechanisms.
    10 10 "connection.start" ConnectionStart {
        octet version_major, octet version_minor, table server_properties, blob mechanisms, blob locales,
    }
    /// Client: its properties and its credentials.
    10 11 "connection.start-ok" ConnectionStartOk {
        table client_properties, name mechanism, blob response, name locale,
    }
    /// Server: a challenge of a login mechanism with several rounds.
    10 20 "connection.secure" ConnectionSecure { blob challenge }
    /// Client: the response to the challenge.
    10 21 "connection.secure-ok" ConnectionSecureOk { blob response }
    /// Server: its limits; 0 means none. Frame size in octets, heartbeat in seconds.
    10 30 "connection.tune" ConnectionTune { short channel_max, long frame_max, short heartbeat }
    /// Client: the limits that apply from now on.
    10 31 "connection.tune-ok" ConnectionTuneOk { short channel_max, long frame_max, short heartbeat }
    /// Client: opens a virtual host.
    10 40 "connection.open" ConnectionOpen { name virtual_host, unused_name, unused_octet }
    /// Server: the virtual host is open.
    10 41 "connection.open-ok" ConnectionOpenOk { unused_name }
    /// Either: closes the connection. Class and method are those that caused an error, or 0.
    10 50 "connection.close" ConnectionClose {
        short reply_code, name reply_text, short class_id, short method_id
    }
    /// Either: the close was received.
    10 51 "connection.close-ok" ConnectionCloseOk {}
    /// Server (RabbitMQ): published messages are not being read.
    10 60 "connection.blocked" ConnectionBlocked { name reason }
    /// Server (RabbitMQ): published messages are being read again.
    10 61 "connection.unblocked" ConnectionUnblocked {}
    /// Client (RabbitMQ): new credentials for this connection.
    10 70 "connection.update-secret" ConnectionUpdateSecret { blob new_secret, name reason }
    /// Server (RabbitMQ): the new credentials are accepted.
    10 71 "connection.update-secret-ok" ConnectionUpdateSecretOk {}

    // ---- channel (§1.5) --------------------

    /// Client: opens a channel.
    20 10 "channel.open" ChannelOpen { unused_name }
    /// Server: the method was carried out.
    20 11 "channel.open-ok" ChannelOpenOk { unused_blob }
    /// Either: requests that the other side stop or continue sending content.
    20 20 "channel.flow" ChannelFlow { bits [active] }
    /// Either: the request was carried out.
    20 21 "channel.flow-ok" ChannelFlowOk { bits [active] }
    /// Either: closes the channel. Class and method are those that caused an error, or 0.
    20 40 "channel.close" ChannelClose { short reply_code, name reply_text, short class_id, short method_id }
    /// Either: the close was received.
    20 41 "channel.close-ok" ChannelCloseOk {}

    // ---- access (AMQP 0-8, still sent by old clients) --------------------

    /// Client: requests an access ticket.
    30 10 "access.request" AccessRequest { name realm, bits [exclusive passive active write read] }
    /// Server: the ticket.
    30 11 "access.request-ok" AccessRequestOk { short ticket }

    // ---- exchange (§1.6) --------------------

    /// Client: declares an exchange, or checks that it exists.
    40 10 "exchange.declare" ExchangeDeclare {
        unused_short, name exchange, name kind, bits [passive durable auto_delete internal no_wait],
        table arguments,
    }
    /// Server: the exchange exists.
    40 11 "exchange.declare-ok" ExchangeDeclareOk {}
    /// Client: deletes an exchange.
    40 20 "exchange.delete" ExchangeDelete { unused_short, name exchange, bits [if_unused no_wait] }
    /// Server: the exchange is deleted.
    40 21 "exchange.delete-ok" ExchangeDeleteOk {}
    /// Client (RabbitMQ): binds an exchange to another one.
    40 30 "exchange.bind" ExchangeBind {
        unused_short, name destination, name source, name routing_key, bits [no_wait], table arguments,
    }
    /// Server (RabbitMQ): the binding exists.
    40 31 "exchange.bind-ok" ExchangeBindOk {}
    /// Client (RabbitMQ): removes a binding between exchanges.
    40 40 "exchange.unbind" ExchangeUnbind {
        unused_short, name destination, name source, name routing_key, bits [no_wait], table arguments,
    }
    /// Server (RabbitMQ): the binding is removed. The number 51 is correct, although it breaks the pattern.
    40 51 "exchange.unbind-ok" ExchangeUnbindOk {}

    // ---- queue (§1.7) --------------------

    /// Client: declares a queue, or checks that it exists.
    50 10 "queue.declare" QueueDeclare {
        unused_short, name queue, bits [passive durable exclusive auto_delete no_wait], table arguments,
    }
    /// Server: the queue exists, with these numbers of ready messages and consumers.
    50 11 "queue.declare-ok" QueueDeclareOk { name queue, long message_count, long consumer_count }
    /// Client: binds a queue to an exchange.
    50 20 "queue.bind" QueueBind {
        unused_short, name queue, name exchange, name routing_key, bits [no_wait], table arguments,
    }
    /// Server: the binding exists.
    50 21 "queue.bind-ok" QueueBindOk {}
    /// Client: deletes the ready messages of a queue.
    50 30 "queue.purge" QueuePurge { unused_short, name queue, bits [no_wait] }
    /// Server: this number of messages was deleted.
    50 31 "queue.purge-ok" QueuePurgeOk { long message_count }
    /// Client: deletes a queue.
    50 40 "queue.delete" QueueDelete { unused_short, name queue, bits [if_unused if_empty no_wait] }
    /// Server: the queue is deleted, with this number of ready messages.
    50 41 "queue.delete-ok" QueueDeleteOk { long message_count }
    /// Client: removes a binding.
    50 50 "queue.unbind" QueueUnbind {
        unused_short, name queue, name exchange, name routing_key, table arguments
    }
    /// Server: the binding is removed.
    50 51 "queue.unbind-ok" QueueUnbindOk {}

    // ---- basic (§1.8) --------------------

    /// Client: the prefetch, a limit of unacknowledged deliveries; 0 means no limit. Size in octets.
    60 10 "basic.qos" BasicQos { long prefetch_size, short prefetch_count, bits [global] }
    /// Server: the prefetch applies.
    60 11 "basic.qos-ok" BasicQosOk {}
    /// Client: starts a consumer.
    60 20 "basic.consume" BasicConsume {
        unused_short, name queue, name consumer_tag, bits [no_local no_ack exclusive no_wait],
        table arguments,
    }
    /// Server: the consumer is started and has this tag.
    60 21 "basic.consume-ok" BasicConsumeOk { name consumer_tag }
    /// Client: ends a consumer. Server (RabbitMQ): the consumer has ended, because its queue was deleted.
    60 30 "basic.cancel" BasicCancel { name consumer_tag, bits [no_wait] }
    /// Either: the consumer has ended.
    60 31 "basic.cancel-ok" BasicCancelOk { name consumer_tag }
    /// Client: publishes a message to an exchange. Content follows.
    60 40 "basic.publish" BasicPublish {
        unused_short, name exchange, key routing_key, bits [mandatory immediate]
    }
    /// Server: returns a message that was routed to no queue. Content follows.
    60 50 "basic.return" BasicReturn { short reply_code, name reply_text, name exchange, key routing_key }
    /// Server: delivers a message to a consumer. Content follows.
    60 60 "basic.deliver" BasicDeliver {
        name consumer_tag, longlong delivery_tag, bits [redelivered], name exchange, key routing_key,
    }
    /// Client: requests one message.
    60 70 "basic.get" BasicGet { unused_short, name queue, bits [no_ack] }
    /// Server: one message, and the number of ready messages that remain. Content follows.
    60 71 "basic.get-ok" BasicGetOk {
        longlong delivery_tag, bits [redelivered], name exchange, key routing_key, long message_count,
    }
    /// Server: the queue is empty.
    60 72 "basic.get-empty" BasicGetEmpty { unused_name }
    /// Client: acknowledges a message. Server (RabbitMQ): confirms a publish.
    60 80 "basic.ack" BasicAck { longlong delivery_tag, bits [multiple] }
    /// Client: refuses a message.
    60 90 "basic.reject" BasicReject { longlong delivery_tag, bits [requeue] }
    /// Client: requests that unacknowledged messages be delivered again, without a reply (deprecated).
    60 100 "basic.recover-async" BasicRecoverAsync { bits [requeue] }
    /// Client: requests that unacknowledged messages be delivered again.
    60 110 "basic.recover" BasicRecover { bits [requeue] }
    /// Server: the request was carried out.
    60 111 "basic.recover-ok" BasicRecoverOk {}
    /// Client (RabbitMQ): refuses messages. Server (RabbitMQ): refuses published messages.
    60 120 "basic.nack" BasicNack { longlong delivery_tag, bits [multiple requeue] }

    // ---- confirm (RabbitMQ) --------------------

    /// Client: requests publisher confirms on this channel.
    85 10 "confirm.select" ConfirmSelect { bits [no_wait] }
    /// Server: the request was carried out.
    85 11 "confirm.select-ok" ConfirmSelectOk {}

    // ---- tx (§1.9) --------------------

    /// Client: puts this channel into transaction mode.
    90 10 "tx.select" TxSelect {}
    /// Server: the request was carried out.
    90 11 "tx.select-ok" TxSelectOk {}
    /// Client: commits the transaction.
    90 20 "tx.commit" TxCommit {}
    /// Server: the method was carried out.
    90 21 "tx.commit-ok" TxCommitOk {}
    /// Client: rolls the transaction back.
    90 30 "tx.rollback" TxRollback {}
    /// Server: the method was carried out.
    90 31 "tx.rollback-ok" TxRollbackOk {}
}

impl<'a> Method<'a> {
    /// Reads the payload of a method frame.
    ///
    /// # Errors
    /// The payload is not a method. RabbitMQ sends 501 for a malformed method, and 503 for an unknown one.
    #[inline]
    pub fn parse(payload: &'a [u8]) -> Result<Self, MethodError> {
        let id = method_id_of(payload).ok_or(MethodError::NoId)?;
        let mut reader = Reader::new(payload.get(ID_LEN..).unwrap_or_default());
        // The two most frequent methods are handled before the long match, in functions small enough to be
        // inlined.
        match id {
            (60, 40) => complete(id, parse_publish(&mut reader), reader),
            (60, 80) => complete(id, parse_ack(&mut reader), reader),
            _ => Self::parse_rare(id, reader),
        }
    }

    #[inline(never)]
    fn parse_rare(id: (u16, u16), mut reader: Reader<'a>) -> Result<Self, MethodError> {
        match Self::parse_arguments(id, &mut reader) {
            Ok(Some(method)) => complete(id, Ok(method), reader),
            Ok(None) => Err(MethodError::unknown(id)),
            Err(error) => Err(MethodError::malformed(id, error)),
        }
    }

    /// Writes the payload of a method frame.
    ///
    /// # Errors
    /// [`Full`] if the payload does not fit. The buffer is then unchanged.
    #[inline]
    pub fn emit(&self, w: &mut Writer<'_>) -> Result<(), Full> {
        let start = w.at();
        let (class_id, method_id) = self.id();
        w.write_u16(class_id)
            .and_then(|()| w.write_u16(method_id))
            .and_then(|()| self.emit_arguments(w))
            .inspect_err(|_| w.rewind(start))
    }

    /// Writes a method frame completely, or nothing.
    #[inline]
    pub fn emit_frame(&self, channel: u16, w: &mut Writer<'_>) -> Result<(), Full> {
        w.frame(FrameKind::Method, channel, |w| self.emit(w))
    }

    /// Returns whether a content header and a body follow the method.
    #[inline]
    pub fn has_content(&self) -> bool {
        matches!(
            self,
            Self::BasicPublish { .. }
                | Self::BasicReturn { .. }
                | Self::BasicDeliver { .. }
                | Self::BasicGetOk { .. }
        )
    }
}

/// Returns the method, or an error if its payload has octets left.
#[inline]
fn complete<'a>(
    id: (u16, u16),
    parsed: Result<Method<'a>, WireError>,
    reader: Reader<'a>,
) -> Result<Method<'a>, MethodError> {
    match (parsed, reader.finish()) {
        (Ok(method), Ok(())) => Ok(method),
        (Err(error), _) | (_, Err(error)) => Err(MethodError::malformed(id, error)),
    }
}

#[inline]
fn parse_publish<'a>(r: &mut Reader<'a>) -> Result<Method<'a>, WireError> {
    r.u16()?;
    let exchange = r.short_string()?;
    let routing_key = r.short_str()?;
    let [mandatory, immediate, ..] = r.bits()?;
    Ok(Method::BasicPublish { exchange, routing_key, mandatory, immediate })
}

#[inline]
fn parse_ack<'a>(r: &mut Reader<'a>) -> Result<Method<'a>, WireError> {
    let delivery_tag = r.u64()?;
    let [multiple, ..] = r.bits()?;
    Ok(Method::BasicAck { delivery_tag, multiple })
}

impl MethodError {
    #[cold]
    fn unknown((class_id, method_id): (u16, u16)) -> Self {
        Self::Unknown { class_id, method_id }
    }

    #[cold]
    fn malformed((class_id, method_id): (u16, u16), error: WireError) -> Self {
        Self::Malformed { class_id, method_id, error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn malformed(class_id: u16, method_id: u16, error: WireError) -> MethodError {
        MethodError::Malformed { class_id, method_id, error }
    }

    #[test]
    fn publish_and_ack_by_the_octet() {
        let publish = b"\0\x3c\0\x28\0\0\x03amq\x02k\xff\x01";
        let method = Method::parse(publish).expect("sound");
        let expected = Method::BasicPublish {
            exchange: "amq",
            routing_key: b"k\xff",
            mandatory: true,
            immediate: false,
        };
        assert_eq!(method, expected);
        assert_eq!((method.id(), method.name(), method.has_content()), ((60, 40), "basic.publish", true));

        let ack = b"\0\x3c\0\x50\0\0\0\0\0\0\x01\x02\x01";
        assert_eq!(Method::parse(ack), Ok(Method::BasicAck { delivery_tag: 258, multiple: true }));
    }

    #[test]
    fn every_octet_counts() {
        let declare = b"\0\x32\0\x0a\0\0\x01q\x02\0\0\0\0";
        assert!(Method::parse(declare).is_ok());
        for len in 4..declare.len() {
            assert_eq!(Method::parse(&declare[..len]), Err(malformed(50, 10, WireError::Truncated)));
        }
        let longer = [&declare[..], b"\0"].concat();
        assert_eq!(Method::parse(&longer), Err(malformed(50, 10, WireError::TrailingBytes)));
        let longer = b"\0\x3c\0\x50\0\0\0\0\0\0\0\x01\0\0";
        assert_eq!(Method::parse(longer), Err(malformed(60, 80, WireError::TrailingBytes)));
        for len in 0..4 {
            assert_eq!(Method::parse(&declare[..len]), Err(MethodError::NoId));
        }
    }

    #[test]
    fn unused_bits_and_tickets_are_read_over() {
        let declare = b"\0\x32\0\x0a\xff\xff\x01q\xe2\0\0\0\0";
        let expected = Method::QueueDeclare {
            queue: "q",
            passive: false,
            durable: true,
            exclusive: false,
            auto_delete: false,
            no_wait: false,
            arguments: Table::EMPTY,
        };
        assert_eq!(Method::parse(declare), Ok(expected));
        let open = b"\0\x0a\0\x28\x01/\x03abc\x01";
        assert_eq!(Method::parse(open), Ok(Method::ConnectionOpen { virtual_host: "/" }));
    }

    #[test]
    fn names_are_utf8_and_tables_are_sound() {
        let declare = b"\0\x32\0\x0a\0\0\x01\xff\0\0\0\0\0";
        assert_eq!(Method::parse(declare), Err(malformed(50, 10, WireError::NotUtf8)));
        let declare = b"\0\x32\0\x0a\0\0\x01q\0\0\0\0\x05\x01aU\0\0";
        assert_eq!(Method::parse(declare), Err(malformed(50, 10, WireError::UnknownFieldType(b'U'))));
    }

    #[test]
    fn numbers_nobody_defined() {
        assert_eq!(
            Method::parse(b"\0\x3c\0\x82"),
            Err(MethodError::Unknown { class_id: 60, method_id: 130 })
        );
        assert_eq!(Method::parse(b"\0\x28\0\x29"), Err(MethodError::Unknown { class_id: 40, method_id: 41 }));
        assert_eq!(method_name(40, 51), Some("exchange.unbind-ok"));
        assert_eq!(method_id_of(b"\0\x3c\0\x28rest"), Some((60, 40)));
        assert_eq!(method_id_of(b"\0\x3c\0"), None);
    }

    #[test]
    fn a_method_that_does_not_fit_leaves_no_trace() {
        let mut buf = [0; 12];
        let mut w = Writer::new(&mut buf);
        assert_eq!(Method::BasicConsumeOk { consumer_tag: "long enough" }.emit(&mut w), Err(Full));
        assert_eq!(w.at(), 0);
        assert_eq!(Method::TxSelectOk {}.emit_frame(1, &mut w), Ok(()));
        assert_eq!(w.at(), 12);
    }
}
