//! The room that owns AMQP bytes.
//!
//! Why it exists: everything a peer sends is untrusted, and everything we send must be readable by every AMQP
//! 0-9-1 client there is. Both are settled here, once: borrowed views in, legal enums out.
//!
//! What always holds:
//! - Pure. No I/O, no clock, no allocation, no `unsafe`; the same bytes give the same answer.
//! - A view ([`Method`], [`Table`], [`Properties`]) borrows the bytes it was parsed from. Nothing is copied,
//!   and tables and properties are kept exactly as received, so what a publisher sent is what a consumer
//!   gets.
//! - A view is checked completely when it is parsed. Reading from it afterwards cannot fail.
//! - Work and stack are bounded by the input: one pass over the bytes, at most [`TABLE_DEPTH_MAX`] tables
//!   deep.
//! - A frame is written whole or not at all.
//!
//! The map:
//!
//! | file       | owns                                                                       |
//! |------------|----------------------------------------------------------------------------|
//! | `frame`    | the protocol header, the seven octets before and the one after a payload   |
//! | `method`   | every method of AMQP 0-9-1 with RabbitMQ's extensions, as one enum         |
//! | `props`    | content headers and the fourteen message properties                        |
//! | `field`    | field tables, arrays and their values; how they are read, and how we write them |
//! | `cursor`   | the bounded cursors the others read and write with                         |
//! | `error`    | what can be wrong with bytes                                               |
//!
//! Section numbers (§) are those of the AMQP 0-9-1 specification. Where RabbitMQ is stricter or more lenient
//! than the specification, its behaviour is ours; the comments say where.

#![warn(clippy::unwrap_used)]

mod cursor;
mod error;
pub mod field;
pub mod frame;
pub mod method;
pub mod props;

// The ground floor, by the name that everybody has for it.

pub use cursor::{Reader, Writer};
pub use error::{Full, TABLE_DEPTH_MAX, WireError};
pub use field::{Array, ArrayWriter, Table, TableWriter, Value};
pub use frame::{
    FRAME_END, FRAME_HEADER_LEN, FRAME_OVERHEAD, Frame, FrameError, FrameHeader, FrameKind, HEARTBEAT_FRAME,
    Opening, PROTOCOL_HEADER, classify_opening, next_frame,
};
pub use method::{Method, MethodError, method_id_of, method_name};
pub use props::{BASIC_CLASS, ContentHeader, Edit, HeadersEdit, Properties, PropertyEdit};
