//! Reading and writing MQTT 3.1, 3.1.1 and 5, as a server does.
//!
//! Received bytes are parsed into views that borrow the bytes and have been checked. What is written has the format of
//! the client's version; the caller chooses values that the packet may have. Packets that only a server sends cannot be
//! read, and packets that only a client sends cannot be written.
//!
//! ```text
//!    input ── FixedHeader::parse ──┬── CONNECT: Connect::parse, when the packet is complete
//!                                  ├── PUBLISH: PublishHeader::parse, then the payload as it arrives
//!                                  └── all others: Packet::parse, when the packet is complete
//! ```
//!
//! # Invariants
//! - The result depends only on the bytes: there is no I/O and no clock. Nothing is allocated, and there is no
//!   `unsafe`.
//! - A view ([`Connect`], [`PublishHeader`], [`Properties`]) is checked completely when it is parsed, except for topic
//!   filters, each of which gets an answer of its own. Reading from a view cannot fail.
//! - Parsing takes time in proportion to the length of the input. The length of a packet is known when its fixed header
//!   is complete, so that a caller can refuse one that is too large.
//! - A packet is written completely or not at all. The header of a PUBLISH counts as a packet here, because the payload
//!   is written by the caller.
//!
//! # Files
//!
//! | file         | content                                                                          |
//! |--------------|----------------------------------------------------------------------------------|
//! | `packet`     | the fixed header; all packets of a client except CONNECT and PUBLISH             |
//! | `connect`    | CONNECT, with the will                                                           |
//! | `publish`    | the header of PUBLISH, in both directions                                        |
//! | `answer`     | the other packets of a server: CONNACK, PUBACK, SUBACK, DISCONNECT and so on      |
//! | `properties` | the properties of MQTT 5: reading, checking and writing                          |
//! | `topic`      | topic names, topic filters, and shared subscriptions                             |
//! | `reason`     | reason codes, and errors of parsing with their reason code                       |
//! | `cursor`     | bounded cursors for the primitive types                                          |
//!
//! Section numbers (§) are those of MQTT 5.0, unless 3.1.1 is named. Codes such as `MQTT-3.1.0-1` are its conformance
//! statements.

#![warn(clippy::unwrap_used)]

mod answer;
mod connect;
mod cursor;
mod packet;
mod properties;
mod publish;
mod reason;
mod topic;

pub use answer::{
    ANSWER_HEAD_BYTES_MAX, PINGRESP, suback_code, write_ack, write_connack, write_disconnect, write_suback,
    write_suback_head, write_unsuback, write_unsuback_head,
};
pub use connect::{Connect, Password, Will};
pub use cursor::{Full, VARIABLE_INT_MAX, Writer, variable_int_len};
pub use packet::{
    Ack, AckKind, Disconnect, FIXED_HEADER_LEN_MAX, FiltersHead, FixedHeader, Packet, PacketType,
    RetainHandling, Subscribe, SubscriptionOptions, Unsubscribe,
};
pub use properties::{Properties, Property};
pub use publish::{HeaderLen, OutgoingPublish, OutgoingQoS, PACKET_LEN_MAX, PublishHeader, QoS};
pub use reason::{PacketError, ReasonCode};
pub use topic::{TopicFilter, check_topic_name, matches};

/// A version of the protocol.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Version {
    /// MQTT 3.1 (protocol name `MQIsdp`, level 3).
    V3_1,
    /// MQTT 3.1.1 (level 4).
    V3_1_1,
    /// MQTT 5.0 (level 5).
    V5,
}
