//! Requests whose body is longer than a request buffer: publishes and definitions.
//!
//! ```text
//! body ─take, 16 KiB a turn─→ message pool ─step, one piece a turn─→ answer
//! ```
//!
//! # Invariants
//! - A body is taken only after its request was allowed: its user is logged in and has the rights.
//! - A step handles one piece of a body, or a few definitions; the event loop goes on between two steps.
//! - Memory is that of the message pool, beside the buffers that every client has.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::broker::{self, Broker};
use crate::mem::{Draw, MessageId, Messages};

use super::actions::{MessageFields, begin_message, publish_as};
use super::answer::{Answer, bad, bad_request, problem};
use super::http::Status;
use super::import::Import;
use super::operator_session::REQUEST_BYTES_MAX;
use super::request_context::RequestContext;
use super::split::Splitter;
use super::spool::{PIECE_BYTES, Spool};

/// A body on its way.
#[derive(Debug)]
pub struct Upload(Kind);

#[derive(Debug)]
enum Kind {
    Publish(Box<Publishing>),
    Definitions(Box<Import>),
}

impl Upload {
    /// A message to be published.
    pub(super) fn publish(publishing: Publishing) -> Self {
        Self(Kind::Publish(Box::new(publishing)))
    }

    /// Definitions to be made.
    pub(super) fn definitions(import: Import) -> Self {
        Self(Kind::Definitions(Box::new(import)))
    }

    /// Takes the next bytes of the body; `left`: so many are still to come, these included.
    ///
    /// # Errors
    /// The body is refused with this answer. [`Self::abandon`] is still to be called.
    pub(super) fn take(
        &mut self,
        bytes: &[u8],
        left: usize,
        context: &mut RequestContext<'_>,
    ) -> Result<(), Answer> {
        match &mut self.0 {
            Kind::Publish(publishing) => publishing.take(bytes, left, context),
            Kind::Definitions(import) => import.take(bytes, left, context),
        }
    }

    /// Goes on once the whole body is here; `None`: there is more to do.
    pub(super) fn step(&mut self, context: &mut RequestContext<'_>) -> Option<Answer> {
        let answer = match &mut self.0 {
            Kind::Publish(publishing) => publishing.step(context).unwrap_or_else(Some),
            Kind::Definitions(import) => import.step(context).unwrap_or_else(Some),
        };
        if answer.is_some() {
            self.release(context.messages);
        }
        answer
    }

    /// The client is gone, or the body is refused.
    pub(super) fn abandon(mut self, _: &mut Broker, context: &mut broker::Context<'_>) {
        self.release(context.messages_mut());
    }

    pub(super) fn release(&mut self, messages: &mut Messages) {
        match &mut self.0 {
            Kind::Publish(publishing) => publishing.release(messages),
            Kind::Definitions(import) => import.release(messages),
        }
    }
}

/// Says that a body is longer than it may be.
#[cold]
pub(super) fn too_large(why: &str) -> Answer {
    Answer::Now(Status::TooLarge, problem("too_large", why))
}

/// Says that a payload is longer than a message may be.
#[cold]
pub(super) fn payload_too_large(size_max: u32) -> Answer {
    too_large(&format!("the payload is longer than message_size_max ({size_max} bytes)"))
}

/// Says that a request that takes no long body has one.
#[cold]
pub(super) fn request_too_large() -> Answer {
    too_large(&format!("this request may have {REQUEST_BYTES_MAX} bytes, its head included"))
}

/// Says that the pool has no room for a body.
#[cold]
pub(super) fn no_room() -> Answer {
    let why = "the message pool (messages_max, body_bytes_max) has no room for the body of this request now: \
               try again later";
    Answer::Now(Status::Unavailable, problem("unavailable", why))
}

/// A publish.
#[derive(Debug)]
pub(super) struct Publishing {
    user: String,
    vhost: String,
    exchange: String,
    draw: Draw,
    split: Splitter,
    /// The payload as it stands in the request, without JSON's escapes.
    payload: Spool,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Receiving,
    /// Decoding base64; the number of the next piece.
    Decoding(usize, MessageFields),
    /// Copying into the message; the number of the next piece.
    Copying(usize, MessageId),
}

impl Publishing {
    pub(super) fn new(user: &str, vhost: &str, exchange: &str, draw: Draw) -> Self {
        Self {
            user: user.into(),
            vhost: vhost.into(),
            exchange: exchange.into(),
            draw,
            split: Splitter::new("payload", REQUEST_BYTES_MAX),
            payload: Spool::default(),
            stage: Stage::Receiving,
        }
    }

    /// The longest request for a payload of so many bytes: each may be escaped with six letters.
    pub(super) const fn request_bytes_max(size_max: u32) -> usize {
        (size_max as usize).saturating_mul(6).saturating_add(REQUEST_BYTES_MAX)
    }

    fn take(
        &mut self,
        mut bytes: &[u8],
        mut left: usize,
        context: &mut RequestContext<'_>,
    ) -> Result<(), Answer> {
        let size_max = context.process.message_size_max;
        while !bytes.is_empty() {
            let taken = self.split.take(bytes).map_err(bad)?;
            bytes = &bytes[taken.bytes..];
            if taken.begins {
                self.payload.release(context.messages);
            }
            // Base64 has four letters for three bytes.
            if self.payload.len() + taken.text.len() > size_max as usize / 3 * 4 + 4 {
                return Err(payload_too_large(size_max));
            }
            let text = taken.text.as_bytes();
            self.payload
                .push(context.messages, self.draw, text, left.max(text.len()))
                .map_err(|_| no_room())?;
            left -= taken.bytes;
        }
        Ok(())
    }

    /// Goes on by one piece.
    ///
    /// # Errors
    /// The publish is refused with this answer.
    fn step(&mut self, context: &mut RequestContext<'_>) -> Result<Option<Answer>, Answer> {
        let size_max = context.process.message_size_max;
        match core::mem::replace(&mut self.stage, Stage::Receiving) {
            Stage::Receiving => {
                let fields = MessageFields::parse(self.split.rest().map_err(bad)?)?;
                self.stage = Stage::Decoding(if fields.is_base64 { 0 } else { usize::MAX }, fields);
            }
            Stage::Decoding(number, fields) if number < self.payload.pieces() => {
                let text = self.payload.piece(context.messages, number);
                let is_last = number + 1 == self.payload.pieces();
                let decoded = BASE64.decode(&*text).ok();
                // Padding stands at the end only.
                let decoded = decoded.filter(|bytes| is_last || bytes.len() == PIECE_BYTES / 4 * 3);
                let decoded = decoded.ok_or_else(|| bad_request("the payload is not base64"))?;
                let replaced = self.payload.replace(context.messages, self.draw, number, &decoded);
                replaced.map_err(|_| no_room())?;
                self.stage = Stage::Decoding(number + 1, fields);
            }
            Stage::Decoding(_, fields) => {
                let len = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
                if len > size_max {
                    return Err(payload_too_large(size_max));
                }
                let names = (&*self.exchange, fields.routing_key.as_bytes());
                let message = begin_message(context.messages, names, &fields.properties, len, self.draw)
                    .map_err(|_| no_room())?;
                self.stage = Stage::Copying(0, message);
            }
            Stage::Copying(number, message) if number < self.payload.pieces() => {
                self.stage = Stage::Copying(number + 1, message);
                let bytes = self.payload.piece(context.messages, number);
                context.messages.append_body(message, &bytes);
                self.payload.free(context.messages, number);
            }
            Stage::Copying(_, message) => {
                return publish_as(context, (&self.user, &self.vhost), message).map(Some);
            }
        }
        Ok(None)
    }

    fn release(&mut self, messages: &mut Messages) {
        self.payload.release(messages);
        if let Stage::Copying(_, message) = core::mem::replace(&mut self.stage, Stage::Receiving) {
            messages.release(message);
        }
    }
}
