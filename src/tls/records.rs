//! Opens and seals TLS records after the handshake.
//!
//! ```text
//! record  { type: 1 byte, version: 2, length: 2, encrypted content with a tag: `length` }    at most 18 KiB + 5 bytes
//! ```
//!
//! # Invariants
//! - No input or output is stored here, only keys and counters. The caller stores an incomplete record and passes it in
//!   again with its rest.
//! - A sealed record has at most [`SEALED_BYTES_MAX`] bytes and must be sent completely.

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncryptError, UnbufferedConnectionCommon, UnbufferedStatus, WriteTraffic,
};
use rustls::{CommonState, Error};

/// Maximum plaintext of a record that is sent, in bytes. A peer may send four times as much. Memory for a sealed record is
/// reserved for each connection, and longer records save only 20 bytes and one call of the cipher for each 4 KiB.
pub const PLAIN_BYTES_MAX: usize = 4 << 10;
const HEAD_BYTES: usize = 5;
/// Maximum size of a received record with the overhead of encryption in bytes (RFC 8446, section 5.2, and RFC 5246, section
/// 6.2.3).
pub const RECORD_BYTES_MAX: usize = HEAD_BYTES + (16 << 10) + (2 << 10);
/// Buffer size for a sealed record and messages of rustls in bytes.
pub const SEALED_BYTES_MAX: usize = HEAD_BYTES + PLAIN_BYTES_MAX + 512;

/// Memory of an open session in bytes: rustls' state with its keys. Measured 4.2 KiB including all other
/// allocations of a connection, and rounded up.
pub const SESSION_BYTES: usize = 6 << 10;

/// A connection as a server or as a client.
pub(super) enum Connection {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

impl core::ops::Deref for Connection {
    type Target = CommonState;

    fn deref(&self) -> &CommonState {
        match self {
            Self::Server(connection) => connection,
            Self::Client(connection) => connection,
        }
    }
}

/// Evaluates `$done` with `$end`, the rustls connection of a server or of a client.
macro_rules! with_either {
    ($connection:expr, |$end:ident| $done:expr) => {
        match $connection {
            Connection::Server(end) => {
                let $end = &mut **end;
                $done
            }
            Connection::Client(end) => {
                let $end = &mut **end;
                $done
            }
        }
    };
}
pub(super) use with_either;

/// The role of this side of a connection, server or client, as rustls represents it.
pub(super) trait TlsSide: Sized {
    /// Calls rustls' `process_tls_records`, which the two roles do not share.
    fn process<'c, 'i>(
        connection: &'c mut UnbufferedConnectionCommon<Self>,
        input: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self>;
}

impl TlsSide for ServerConnectionData {
    fn process<'c, 'i>(
        connection: &'c mut UnbufferedConnectionCommon<Self>,
        input: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self> {
        connection.process_tls_records(input)
    }
}

impl TlsSide for ClientConnectionData {
    fn process<'c, 'i>(
        connection: &'c mut UnbufferedConnectionCommon<Self>,
        input: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self> {
        connection.process_tls_records(input)
    }
}

/// Returns the complete length of the record that begins at the start of `bytes`, even if only a part of it is there.
/// `None` if even the header is incomplete.
pub(super) fn first_record_len(bytes: &[u8]) -> Option<usize> {
    let head = bytes.get(..HEAD_BYTES)?;
    Some(HEAD_BYTES + usize::from(u16::from_be_bytes([head[3], head[4]])))
}

/// Returns whether input that rustls has not consumed is only an incomplete record. If not, it contains a complete record
/// with a part of a handshake message: rustls then expects the same input again with every call.
pub(super) fn is_aligned(left_over: &[u8]) -> bool {
    first_record_len(left_over).is_none_or(|len| len > left_over.len())
}

/// The result of [`open`].
#[derive(Debug, Default)]
pub(super) struct OpenedRecords {
    /// Number of bytes of input that were consumed.
    pub(super) taken: usize,
    /// Number of bytes of plaintext.
    pub(super) plain: usize,
    /// Number of bytes at the start of `reply` that must be sent to the peer.
    pub(super) reply: usize,
    /// Number of records with plaintext.
    pub(super) records: u32,
    /// Whether the peer has sent close_notify.
    pub(super) end: bool,
}

/// Opens every complete record of `input` and writes the plaintext to `plain`, which must be at least as long as `input`.
/// Messages that rustls sends by itself are written to the start of `reply`.
///
/// # Errors
/// The peer violates the protocol, or a record was changed on the way.
pub(super) fn open(
    connection: &mut Connection,
    input: &mut [u8],
    plain: &mut [u8],
    reply: &mut [u8],
) -> Result<OpenedRecords, Error> {
    with_either!(connection, |end| open_at(end, input, plain, reply))
}

fn open_at<E: TlsSide>(
    connection: &mut UnbufferedConnectionCommon<E>,
    input: &mut [u8],
    plain: &mut [u8],
    reply: &mut [u8],
) -> Result<OpenedRecords, Error> {
    let mut done = OpenedRecords::default();
    loop {
        let UnbufferedStatus { mut discard, state } = E::process(connection, &mut input[done.taken..]);
        let goes_on = match state? {
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    let end = done.plain + record.payload.len();
                    let room = plain
                        .get_mut(done.plain..end)
                        .ok_or_else(|| Error::General("the plaintext is longer than the records".into()))?;
                    room.copy_from_slice(record.payload);
                    done.records += 1;
                    done.plain = end;
                    discard += record.discard;
                }
                true
            }
            ConnectionState::EncodeTlsData(mut data) => {
                let room = reply.get_mut(done.reply..).unwrap_or_default();
                done.reply += data.encode(room).map_err(|error| Error::General(error.to_string()))?;
                true
            }
            ConnectionState::TransmitTlsData(data) => {
                data.done();
                true
            }
            ConnectionState::PeerClosed | ConnectionState::Closed => {
                done.end = true;
                false
            }
            _ => false,
        };
        done.taken += discard;
        if !goes_on {
            break;
        }
    }
    if done.end {
        // Input after close_notify is ignored.
        done.taken = input.len();
    }
    if is_aligned(&input[done.taken..]) { Ok(done) } else { Err(Error::General(UNALIGNED.into())) }
}

/// The error for a fragmented handshake message after the handshake. Leveret does not buffer those.
const UNALIGNED: &str = "a fragmented handshake message after the handshake";

/// Seals at most [`PLAIN_BYTES_MAX`] bytes as one record into `out`, which must have [`SEALED_BYTES_MAX`] bytes.
/// Returns the length of the output.
///
/// # Errors
/// The connection is closed for sending.
pub(super) fn seal(connection: &mut Connection, plain: &[u8], out: &mut [u8]) -> Result<usize, Error> {
    with_either!(connection, |end| with_traffic(end, out, |traffic, room| traffic.encrypt(plain, room)))
}

/// Seals the alert close_notify into `out`. Returns the length of the output.
///
/// # Errors
/// The connection is closed for sending.
pub(super) fn seal_close_notify(connection: &mut Connection, out: &mut [u8]) -> Result<usize, Error> {
    with_either!(connection, |end| with_traffic(end, out, |traffic, room| traffic.queue_close_notify(room)))
}

/// Writes pending output of rustls to `out`, and then calls `act`, which seals a record behind it. Returns the length of
/// both.
fn with_traffic<E: TlsSide>(
    connection: &mut UnbufferedConnectionCommon<E>,
    out: &mut [u8],
    act: impl FnOnce(&mut WriteTraffic<'_, E>, &mut [u8]) -> Result<usize, EncryptError>,
) -> Result<usize, Error> {
    let general = |error: &dyn core::fmt::Display| Error::General(error.to_string());
    let mut at = 0;
    loop {
        // rustls needs no input here, because `open` leaves no part of a handshake message unconsumed.
        match E::process(connection, &mut []).state? {
            ConnectionState::WriteTraffic(mut traffic) => {
                let len = act(&mut traffic, &mut out[at..]).map_err(|error| general(&error))?;
                return Ok(at + len);
            }
            ConnectionState::EncodeTlsData(mut data) => {
                at += data.encode(&mut out[at..]).map_err(|error| general(&error))?;
            }
            ConnectionState::TransmitTlsData(data) => data.done(),
            ConnectionState::PeerClosed => {}
            _ => return Err(Error::General("the connection is closed".into())),
        }
    }
}
