//! Records of TLS once the handshake is over: opened where they lie, sealed one by one.
//!
//! ```text
//! record  { type 1, version 2, length 2, length octets, of which a tag at the end }    at most 18 KiB + 5
//! ```
//!
//! Always true: nothing is kept here but keys and counters; a record is opened as a whole or stays with the
//! caller; a sealed record is at most [`RECORD_BYTES_MAX`] long, and has to be sent to its end.

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncryptError, UnbufferedConnectionCommon, UnbufferedStatus, WriteTraffic,
};
use rustls::{CommonState, Error};

/// What one record holds at most.
pub const PLAIN_BYTES_MAX: usize = 16 << 10;
const HEAD_BYTES: usize = 5;
/// A record with all that encryption may add.
pub const RECORD_BYTES_MAX: usize = HEAD_BYTES + PLAIN_BYTES_MAX + (2 << 10);
/// Room for a sealed record and what rustls wants to say besides.
pub const SEALED_BYTES_MAX: usize = RECORD_BYTES_MAX + 256;

/// Bytes of a session that is open: rustls' own with its keys. Measured (4.2 KiB with all else that a
/// connection allocates), rounded up.
pub const SESSION_BYTES: usize = 6 << 10;

/// A connection, and which end of it we are.
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

/// Does the same with either end.
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

/// One end of a connection, as rustls has it.
pub(super) trait End: Sized {
    fn process<'c, 'i>(
        connection: &'c mut UnbufferedConnectionCommon<Self>,
        input: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self>;
}

impl End for ServerConnectionData {
    fn process<'c, 'i>(
        connection: &'c mut UnbufferedConnectionCommon<Self>,
        input: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self> {
        connection.process_tls_records(input)
    }
}

impl End for ClientConnectionData {
    fn process<'c, 'i>(
        connection: &'c mut UnbufferedConnectionCommon<Self>,
        input: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self> {
        connection.process_tls_records(input)
    }
}

/// The length of the record at the start of `bytes`, which may be longer than they are; `None`: it cannot be
/// told yet.
pub(super) fn first_record_len(bytes: &[u8]) -> Option<usize> {
    let head = bytes.get(..HEAD_BYTES)?;
    Some(HEAD_BYTES + usize::from(u16::from_be_bytes([head[3], head[4]])))
}

/// Whether what is left over is the beginning of a record and no more. Otherwise it is a piece of a handshake
/// message that rustls wants to be shown again, whole, with every call.
pub(super) fn is_aligned(left_over: &[u8]) -> bool {
    first_record_len(left_over).is_none_or(|len| len > left_over.len())
}

/// What opening led to.
#[derive(Debug, Default)]
pub(super) struct Opening {
    /// Octets of input that are done with.
    pub(super) taken: usize,
    /// Octets of plaintext.
    pub(super) plain: usize,
    /// Octets that rustls wants to be sent.
    pub(super) reply: usize,
    /// Records with plaintext.
    pub(super) records: u32,
    /// The peer will say nothing more.
    pub(super) end: bool,
}

/// Opens every whole record of `input`; `plain` must be as long. What rustls has to say to the peer goes to
/// the start of `reply`.
///
/// # Errors
/// The peer breaks the rules, or somebody on the way has changed something.
pub(super) fn open(
    connection: &mut Connection,
    input: &mut [u8],
    plain: &mut [u8],
    reply: &mut [u8],
) -> Result<Opening, Error> {
    with_either!(connection, |end| open_at(end, input, plain, reply))
}

fn open_at<E: End>(
    connection: &mut UnbufferedConnectionCommon<E>,
    input: &mut [u8],
    plain: &mut [u8],
    reply: &mut [u8],
) -> Result<Opening, Error> {
    let mut done = Opening::default();
    loop {
        let UnbufferedStatus { mut discard, state } = E::process(connection, &mut input[done.taken..]);
        let goes_on = match state? {
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    let end = done.plain + record.payload.len();
                    let room = plain
                        .get_mut(done.plain..end)
                        .ok_or_else(|| Error::General("more came out than went in".into()))?;
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
        // What follows a farewell is nobody's.
        done.taken = input.len();
    }
    if is_aligned(&input[done.taken..]) { Ok(done) } else { Err(Error::General(PIECES.into())) }
}

const PIECES: &str = "pieces of a handshake after the handshake";

/// Seals at most [`PLAIN_BYTES_MAX`] octets into one record, for which `out` must have room; says how long it
/// is.
///
/// # Errors
/// The connection can send nothing more.
pub(super) fn seal(connection: &mut Connection, plain: &[u8], out: &mut [u8]) -> Result<usize, Error> {
    with_either!(connection, |end| with_traffic(end, out, |traffic, room| traffic.encrypt(plain, room)))
}

/// Seals the farewell.
///
/// # Errors
/// The connection can send nothing more.
pub(super) fn farewell(connection: &mut Connection, out: &mut [u8]) -> Result<usize, Error> {
    with_either!(connection, |end| with_traffic(end, out, |traffic, room| traffic.queue_close_notify(room)))
}

fn with_traffic<E: End>(
    connection: &mut UnbufferedConnectionCommon<E>,
    out: &mut [u8],
    act: impl FnOnce(&mut WriteTraffic<'_, E>, &mut [u8]) -> Result<usize, EncryptError>,
) -> Result<usize, Error> {
    let general = |error: &dyn core::fmt::Display| Error::General(error.to_string());
    let mut at = 0;
    loop {
        // No octets are shown, and none are missed: what is left over is never part of a message.
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
