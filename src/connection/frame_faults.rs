//! What is wrong with a frame or a method, in RabbitMQ's words.
//!
//! Always true: the checks come in RabbitMQ's order, so that a frame with two mistakes is refused for the
//! same one; nothing here changes anything.

use super::erlang::{FrameSnippet, Numbers};
use leveret_amqp::{Frame, FrameKind, MethodError, WireError};
use leveret_core::error::{Fault, ReplyCode};

/// A connection-scoped fault with one of the codes that end connections anyway.
pub(super) fn hard_fault(code: ReplyCode, explanation: core::fmt::Arguments<'_>) -> Fault {
    Fault::connection(code, explanation)
}

/// What a payload can be read as; `None` when it is too short for its kind or of none.
pub(super) fn payload_kind(frame: Frame<'_>) -> Option<FrameKind> {
    let kind = frame.header.kind()?;
    let is_possible = match kind {
        FrameKind::Method => frame.payload.len() >= 4,
        FrameKind::Header => frame.payload.len() >= 12,
        FrameKind::Body => true,
        FrameKind::Heartbeat => frame.payload.is_empty(),
    };
    is_possible.then_some(kind)
}

pub(super) fn unknown_frame(frame: Frame<'_>) -> Fault {
    hard_fault(ReplyCode::FrameError, format_args!("{}: unknown_frame", snippet(frame)))
}

pub(super) fn unexpected_frame(frame: Frame<'_>) -> Fault {
    hard_fault(ReplyCode::UnexpectedFrame, format_args!("{}", snippet(frame)))
}

/// What is wrong with a frame before its payload is read as anything; RabbitMQ's checks in its order. The
/// frame is allowed on channel 0 only, and methods and heartbeats are allowed there.
pub(super) fn fault_of_frame(frame: Frame<'_>) -> Option<Fault> {
    let kind = payload_kind(frame);
    match (kind, frame.header.channel) {
        (None, _) => Some(unknown_frame(frame)),
        (Some(FrameKind::Method | FrameKind::Heartbeat), 0) => None,
        _ => Some(unexpected_frame(frame)),
    }
}

/// The fault for a method that cannot be read, and which method it concerns.
pub(super) fn fault_of_method(
    error: MethodError,
    payload: &[u8],
    on_connection: bool,
) -> (Fault, (u16, u16)) {
    match error {
        MethodError::NoId => (hard_fault(ReplyCode::FrameError, format_args!("no method")), (0, 0)),
        MethodError::Unknown { class_id, method_id } => (
            hard_fault(ReplyCode::CommandInvalid, format_args!("unknown method {class_id}.{method_id}")),
            (class_id, method_id),
        ),
        MethodError::Malformed { class_id, method_id, error: WireError::NotUtf8 } => (
            hard_fault(ReplyCode::FrameError, format_args!("{}", WireError::NotUtf8)),
            if on_connection { (class_id, method_id) } else { (0, 0) },
        ),
        MethodError::Malformed { class_id, method_id, .. } => {
            let fields = Numbers(payload.get(4..).unwrap_or_default());
            (hard_fault(ReplyCode::FrameError, format_args!("cannot decode {fields}")), (class_id, method_id))
        }
    }
}

/// A method that makes no sense in this phase of the connection.
pub(super) fn unexpected_method(phase: &str) -> Fault {
    hard_fault(ReplyCode::ChannelError, format_args!("unexpected method in connection state {phase}"))
}

const fn snippet(frame: Frame<'_>) -> FrameSnippet<'_> {
    FrameSnippet { raw_kind: frame.header.raw_kind, payload: frame.payload }
}
