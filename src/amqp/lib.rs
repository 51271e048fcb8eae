//! Reading and writing AMQP 0-9-1.
//!
//! Received bytes are parsed into views that borrow the bytes and have been checked. Everything that is
//! written is valid for any AMQP 0-9-1 client.
//!
//! # Invariants
//! - The result depends only on the bytes, and for [`BodyFrames`] on a message: there is no I/O and no clock.
//!   Nothing is allocated, and there is no `unsafe`.
//! - A view ([`Method`], [`Table`], [`Properties`]) borrows the bytes it was parsed from. Nothing is copied.
//!   Tables and properties are kept exactly as received, so a consumer receives what the publisher sent.
//! - A view is checked completely when it is parsed. Reading from it afterwards cannot fail.
//! - Parsing takes one pass over the bytes, and recursion at most [`TABLE_DEPTH_MAX`] deep.
//! - `emit_frame` writes a frame completely or not at all. [`BodyFrames`] writes any part of its frames; the caller
//!   stores the position.
//!
//! # Files
//!
//! | file     | content                                                             |
//! |----------|---------------------------------------------------------------------|
//! | `frame`  | the protocol header; frame headers and ends                         |
//! | `method` | all methods of AMQP 0-9-1 and of RabbitMQ's extensions, as one enum |
//! | `props`  | content headers and the fourteen message properties                 |
//! | `field`  | field tables and arrays: reading, and in `writer` writing           |
//! | `body`   | body frames, from any byte on                                       |
//! | `cursor` | bounded cursors for primitive types                                 |
//! | `delay`  | delayed messages, as in RabbitMQ's plug-in                         |
//! | `error`  | errors                                                              |
//! | `reply_text` | names and values as in RabbitMQ's reply texts                   |
//!
//! Section numbers (§) are those of the AMQP 0-9-1 specification. Where RabbitMQ is stricter or more lenient than
//! the specification, Leveret behaves as RabbitMQ does, and a comment says so.

#![warn(clippy::unwrap_used)]

mod body;
mod cursor;
pub mod delay;
mod error;
pub mod field;
pub mod frame;
pub mod method;
pub mod props;
pub mod reply_text;

pub use body::BodyFrames;
pub use cursor::{Reader, Writer};
pub use error::{Full, TABLE_DEPTH_MAX, WireError};
pub use field::{Array, ArrayWriter, Table, TableWriter, Value};
pub use frame::{
    FRAME_END, FRAME_HEADER_LEN, FRAME_OVERHEAD, Frame, FrameError, FrameHeader, FrameKind, HEARTBEAT_FRAME,
    Opening, PROTOCOL_HEADER, classify_opening, next_frame,
};
pub use method::{Method, MethodError, method_id_of, method_name};
pub use props::{BASIC_CLASS, ContentHeader, Edit, HeadersEdit, Properties, PropertyEdit};
