//! Upstreams that are none: what they are instead, as far as their first octets tell.
//!
//! Always true: whoever may still turn out to speak AMQP is not called a stranger.

use leveret_amqp::{Opening, classify_opening};

use super::cause::Cause;
use super::event::{Event, lost};

/// An upstream that does not speak AMQP, or not yet enough to tell.
#[cold]
pub(super) fn stranger<'i>(input: &[u8]) -> Option<Event<'i>> {
    if input.starts_with(b"AMQP") {
        return Some(match input {
            [_, _, _, _, id, major, minor, revision, ..] => {
                lost(format_args!("it speaks AMQP {id}-{major}-{minor}-{revision}, not 0-9-1"))
            }
            _ => Event::NeedMore,
        });
    }
    if input.starts_with(b"HTTP/") || classify_opening(input) == Opening::Http {
        return Some(lost(format_args!("it speaks HTTP, not AMQP: is this address meant for it?")));
    }
    match input {
        [] | [1, ..] => None,
        [0x15 | 0x16, 3, ..] => Some(lost(format_args!("it speaks TLS on this port: write amqps://"))),
        _ => Some(lost(format_args!("it does not speak AMQP"))),
    }
}

/// Why an upstream that should speak TLS does not, as far as its first octets tell.
#[cold]
pub fn not_tls(input: &[u8]) -> Option<Cause> {
    match input {
        [] | [0x15 | 0x16] | [0x15 | 0x16, 3, ..] => None,
        [b'A', ..] => Some(Cause::new(format_args!(
            "it speaks AMQP without TLS on this port: write amqp://, or its port for TLS"
        ))),
        [b'H', ..] => {
            Some(Cause::new(format_args!("it speaks HTTP, not TLS: is this address meant for it?")))
        }
        _ => Some(Cause::new(format_args!("it does not speak TLS on this port"))),
    }
}
