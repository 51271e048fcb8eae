//! How a request is answered: what whoever asks is told, before it is bytes.
//!
//! Always true: a mistake is answered with what is wrong, in the two fields that RabbitMQ's API has for it.

use leveret_core::error::{Fault, ReplyCode};
use leveret_core::journal::Batch;
use leveret_core::mem::Messages;

use super::exposition::Exposition;
use super::http::{REQUEST_BYTES_MAX, Status};
use super::json::Json;
use super::listing::Listing;
use super::looking::Looking;
use super::management_parts::said;
use super::pages::Page;
use super::queue_get::QueueGet;
use super::request_context::RequestContext;

/// Bytes that may wait to be taken by one client.
pub const OUTPUT_BYTES_MAX: usize = 64 << 10;
/// Bytes of a body that is written at once: half of what may wait, so that its head has room beside it.
const BODY_BYTES_MAX: usize = OUTPUT_BYTES_MAX / 2;

/// How a request is answered.
#[derive(Debug)]
pub enum Answer {
    /// With this status and body, at once.
    Now(Status, Vec<u8>),
    /// The same, when this batch is durable.
    Durable(Batch, Status, Vec<u8>),
    /// It was made, when this batch is durable, and is to be found there from now on.
    Made(Batch, String),
    /// When all that was said of what exists is durable, whatever messages wait for.
    Changed(Status, Vec<u8>),
    /// The same, and the client goes on at this address.
    ChangedGoOn(String),
    /// With what the store consists of, once this is durable.
    Hold(Batch),
    /// A file of the page.
    Page(&'static Page),
    /// The client has it.
    KnownPage(&'static Page),
    /// With messages that are taken from a queue.
    Get(Box<QueueGet>),
    /// With messages that are looked at, once they are read from the disk.
    Look(Box<Looking>),
    /// When the body of the request is here and decoded, with what comes of that.
    Upload(Box<dyn Upload>),
    /// An answer of many rows, written as room comes.
    List(Box<Listing>),
    /// Metrics: what stands first, and rows that are written as room comes.
    Metrics(Vec<u8>, Box<Exposition>),
}

/// A request whose body is longer than a request buffer, or takes more than one step.
///
/// ```text
/// body ─take, 16 KiB a turn─→ message pool ─step, one part a turn─→ answer
/// ```
pub trait Upload: core::fmt::Debug {
    /// Takes the next bytes of the body; `left`: so many are still to come, these included.
    ///
    /// # Errors
    /// The body is refused with this answer.
    fn take(&mut self, bytes: &[u8], left: usize, context: &mut RequestContext<'_>) -> Result<(), Answer>;
    /// Goes on by a bounded part once the whole body is here; `None`: there is more to do.
    ///
    /// # Errors
    /// The body is refused with this answer.
    fn step(&mut self, context: &mut RequestContext<'_>) -> Result<Option<Answer>, Answer>;
    /// Frees what the body takes of the message pool: it is answered, or its client is gone.
    fn release(&mut self, messages: &mut Messages);
}

/// An answer, or the refusal where it is known that there is none.
pub(super) type Answered = Result<Answer, Answer>;

/// A small JSON body.
pub fn body(write: impl FnOnce(&mut Json<'_>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut Json::new(&mut out, BODY_BYTES_MAX));
    out
}

/// A body that says what is wrong.
#[cold]
pub fn problem(error: &str, reason: &str) -> Vec<u8> {
    body(|json| said(json, &[("error", error), ("reason", reason)]))
}

pub(super) const fn done(status: Status) -> Answer {
    Answer::Now(status, Vec::new())
}

#[cold]
pub(super) fn bad_request(reason: &str) -> Answer {
    Answer::Now(Status::BadRequest, problem("bad_request", reason))
}

/// The same of what was found wrong with what was said.
#[cold]
pub(super) fn bad(why: String) -> Answer {
    bad_request(&why)
}

/// What a request without enough rights is told.
#[cold]
pub(super) fn unauthorized(reason: &str) -> Answer {
    Answer::Now(Status::Unauthorized, problem("not_authorised", reason))
}

#[cold]
pub(super) fn not_found(reason: &str) -> Answer {
    Answer::Now(Status::NotFound, problem("Object Not Found", reason))
}

#[cold]
pub(super) fn refused(fault: &Fault) -> Answer {
    let (status, error) = match fault.code {
        ReplyCode::NotFound => (Status::NotFound, "Object Not Found"),
        ReplyCode::PreconditionFailed => (Status::PreconditionFailed, "precondition_failed"),
        ReplyCode::ResourceError => (Status::Unavailable, "resource_error"),
        _ => (Status::BadRequest, "bad_request"),
    };
    Answer::Now(status, problem(error, &fault.text))
}

/// What a fault over AMQP is over HTTP.
#[cold]
pub(super) fn refusal(fault: &Fault) -> Answer {
    let text = fault.text.split_once(" - ").map_or(&*fault.text, |(_, text)| text);
    match fault.code {
        ReplyCode::NotFound => Answer::Now(Status::NotFound, problem("not_found", text)),
        ReplyCode::AccessRefused | ReplyCode::NotAllowed => unauthorized(text),
        ReplyCode::ResourceError => Answer::Now(Status::Unavailable, problem("unavailable", text)),
        _ => bad_request(text),
    }
}

/// Says that a body is longer than it may be.
#[cold]
pub(super) fn too_large(why: &str) -> Answer {
    Answer::Now(Status::TooLarge, problem("too_large", why))
}

/// Says that a request that takes no long body has one.
#[cold]
pub(super) fn request_too_large() -> Answer {
    too_large(&format!("this request may have at most {REQUEST_BYTES_MAX} bytes, its head included"))
}

/// Says that the pool has no room for a body.
#[cold]
pub(super) fn no_room() -> Answer {
    let why = "the message pool (messages_max, body_bytes_max) has no room for the body of this request now: \
               try again later";
    Answer::Now(Status::Unavailable, problem("unavailable", why))
}
