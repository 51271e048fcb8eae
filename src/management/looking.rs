//! `GET /api/leveret/queues/V/Q/messages`: a queue's messages are shown, and nothing becomes of them.
//!
//! ```text
//! ?position=0&count=50&truncate=1000&encoding=auto
//! {"ready":N,"position":0,"messages":[…],"next":50}      `next` is null behind the last
//! ```
//!
//! Always true: an answer is bounded, however long messages are, and says where to go on; whoever waits for
//! the disk holds nothing but what is read for him.

use leveret_broker::{BROWSED_MAX, Broker, BrowseResult, Browsed};
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::mem::{MessageId, Messages};

use super::http::Request;
use super::request_context::RequestContext;
use super::shown_message::{HEAD_BYTES_MAX, Payloads, ShownPayload, write_head};

/// Bytes of a payload that are shown at most, and when nothing is said of it.
const PAYLOAD_BYTES_MAX: u32 = 4 << 10;
const PAYLOAD_BYTES_DEFAULT: u32 = 1 << 10;
const COUNT_DEFAULT: u32 = 20;
/// Bytes of an answer from which on no more messages are put into it.
const ENOUGH: usize = 16 << 10;

/// A look that waits for the disk.
#[derive(Debug)]
pub struct Looking {
    number: u64,
    position: u32,
    ready: u32,
    payloads: Payloads,
}

/// How a look begins.
#[derive(Debug)]
pub(super) enum BrowseAnswer {
    /// With what there is to be seen.
    Now(Vec<u8>),
    /// It waits for the disk.
    Later(Looking),
}

/// Begins to look, as a user.
///
/// # Errors
/// What is asked for makes no sense, or the user may not.
pub(super) fn look(
    request: &Request<'_>,
    context: &mut RequestContext<'_>,
    who: (&str, &str, &str),
) -> Result<BrowseAnswer, Fault> {
    let number = |key, default: u32| match request.asked(key) {
        None | Some("") => Ok(default),
        Some(text) => text.parse().map_err(|_| {
            let text = format_args!("`{key}` must be a whole number");
            Fault::new(ReplyCode::PreconditionFailed, text)
        }),
    };
    let (position, count) = (number("position", 0)?, number("count", COUNT_DEFAULT)?);
    let truncate = number("truncate", PAYLOAD_BYTES_DEFAULT)?;
    let is_base64 = request.asked("encoding") == Some("base64");
    let payloads = Payloads { is_base64, bytes_max: truncate.min(PAYLOAD_BYTES_MAX) };
    let (broker, mut broker_context) = context.broker();
    let count = count.clamp(1, BROWSED_MAX);
    let BrowseResult { ready, seen } = broker.look(&mut broker_context, who, position, count)?;
    if let Some(Browsed::InLog(run)) = seen.first() {
        let number = broker.queues_mut().browses_mut().want(*run);
        return Ok(BrowseAnswer::Later(Looking { number, position, ready, payloads }));
    }
    let found = seen.iter().filter_map(|seen| match seen {
        Browsed::InMemory(message, redelivered) => Some((*message, *redelivered)),
        Browsed::InLog(_) => None,
    });
    let found: Vec<_> = found.collect();
    Ok(BrowseAnswer::Now(shown(context.messages, (ready, position), &found, payloads)))
}

impl Looking {
    /// Whether what it waits for has been read.
    pub(super) fn is_done(&self, broker: &Broker) -> bool {
        broker.queues().browses().is_done(self.number)
    }

    /// What was read.
    ///
    /// # Errors
    /// Nothing was.
    pub(super) fn take(&self, context: &mut RequestContext<'_>) -> Result<Vec<u8>, Fault> {
        let (broker, mut context) = context.broker();
        let found = broker.queues_mut().browses_mut().take(self.number);
        let messages = context.messages_mut();
        let answer = match found.is_empty() {
            true => {
                let why = format_args!("no memory now to read these messages back, or they cannot be read");
                Err(Fault::new(ReplyCode::ResourceError, why))
            }
            false => Ok(shown(messages, (self.ready, self.position), &found, self.payloads)),
        };
        found.into_iter().for_each(|(message, _)| messages.release(message));
        answer
    }

    /// Nobody waits for it any more.
    pub(super) fn abandon(&self, broker: &mut Broker, context: &mut leveret_broker::Context<'_>) {
        let found = broker.queues_mut().browses_mut().take(self.number);
        found.into_iter().for_each(|(message, _)| context.messages_mut().release(message));
    }
}

fn shown(
    messages: &mut Messages,
    (ready, position): (u32, u32),
    found: &[(MessageId, bool)],
    payloads: Payloads,
) -> Vec<u8> {
    let mut out = format!("{{\"ready\":{ready},\"position\":{position},\"messages\":[").into_bytes();
    let mut next = position;
    for (message, redelivered) in found {
        if out.len() >= ENOUGH {
            break;
        }
        if next > position {
            out.push(b',');
        }
        write_head(&mut out, messages, *message, &|json| {
            json.raw(b"\"position\":");
            json.number(next);
            json.raw(b",\"redelivered\":");
            json.truth(*redelivered);
        });
        let mut payload = ShownPayload::new(messages, *message, payloads);
        // One that short is looked at in one step.
        let is_whole = payload.write(messages, &mut out, usize::MAX);
        debug_assert!(is_whole && out.len() < ENOUGH + HEAD_BYTES_MAX + 7 * PAYLOAD_BYTES_MAX as usize);
        payload.release(messages);
        next += 1;
    }
    let is_last = next >= ready || found.is_empty();
    let next = if is_last { "null".to_string() } else { next.to_string() };
    out.extend_from_slice(format!("],\"next\":{next}}}").as_bytes());
    out
}
