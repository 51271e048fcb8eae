//! One client of the operator's interface, without its socket: bytes in, requests handled, bytes out.
//!
//! ```text
//! reading ─ request ─→ answered at once
//!    ↑                 waiting for the disk ─→ answered
//!    └──── answered ── listing, a part whenever there is room
//! ```
//!
//! Always true: one request at a time, in their order, each after the answer before has left; input and
//! output have a cap each; a client that does not read costs those and nothing else.

use super::answer::{Answer, OUTPUT_BYTES_MAX, problem};
use super::api;
use super::http::{self, Parsed, Status};
use super::listing::{Listing, Room};
use super::request_context::RequestContext;
use crate::journal::Batch;

/// The longest request, head and body, in bytes.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;
/// Bytes of a listing that one turn writes.
const OUTPUT_BYTES_ENOUGH: usize = 16 << 10;
/// Bytes of both, for the memory table.
pub const ADMIN_SESSION_BYTES: usize = REQUEST_BYTES_MAX + OUTPUT_BYTES_MAX;

/// What is being done.
#[derive(Debug)]
enum State {
    /// A request is expected, or only part of one is here.
    Reading,
    /// The answer leaves when this is durable.
    Waiting(Batch, Status, Vec<u8>),
    /// The answer leaves when so many facts are durable.
    Changing(u64, Status, Vec<u8>),
    /// When this is durable, the store's files are held still.
    Holding(Batch),
    /// The rows of an answer are being written.
    Listing(Box<Listing>),
    /// Nothing more is read; what is there is written, then it is over.
    Ending,
}

/// One client's requests and answers, in order.
#[derive(Debug)]
pub struct AdminSession {
    input: Vec<u8>,
    output: Vec<u8>,
    /// Bytes of the output that are gone.
    written: usize,
    state: State,
    is_last: bool,
    /// What is in the input is no whole request.
    is_partial: bool,
}

impl Default for AdminSession {
    fn default() -> Self {
        Self {
            input: Vec::new(),
            output: Vec::new(),
            written: 0,
            state: State::Reading,
            is_last: false,
            is_partial: false,
        }
    }
}

impl AdminSession {
    /// How many more bytes of input are taken now.
    pub fn room(&self) -> usize {
        match self.state {
            State::Reading => REQUEST_BYTES_MAX - self.input.len(),
            _ => 0,
        }
    }

    /// Takes input, at most [`Self::room`] of it.
    pub fn take(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len() <= self.room(), "no more than there is room for");
        if self.input.capacity() < self.input.len() + bytes.len() {
            // Growing by doubling would take more than the cap.
            let most = REQUEST_BYTES_MAX - self.input.len();
            self.input.reserve_exact((bytes.len() * 2).min(most));
        }
        self.input.extend_from_slice(bytes);
        self.is_partial = false;
    }

    /// Puts what can leave now behind the output: an answer that waited for the disk, also when it need not
    /// wait at all, or one part of a listing.
    pub fn fill(&mut self, context: &mut RequestContext<'_>) {
        match &mut self.state {
            State::Waiting(batch, status, body) if *batch <= context.durable() => {
                let (status, body) = (*status, core::mem::take(body));
                self.answer(status, &body);
            }
            State::Changing(facts, status, body) if *facts <= context.journal.facts_safe() => {
                let (status, body) = (*status, core::mem::take(body));
                self.answer(status, &body);
            }
            State::Holding(batch) if *batch <= context.durable() => {
                if let Some(answer) = api::held(context) {
                    self.begin(answer, context);
                }
            }
            State::Listing(_) => self.list(context),
            State::Reading | State::Holding(_) | State::Waiting(..) | State::Changing(..) | State::Ending => {
            }
        }
    }

    /// Whether a request can be handled. What the last one left to be written goes first.
    pub fn has_request(&self) -> bool {
        matches!(self.state, State::Reading)
            && self.output().is_empty()
            && !self.input.is_empty()
            && !self.is_partial
    }

    /// Whether there is something to be written, now or by [`Self::fill`], without anything new from outside.
    pub fn has_output(&self) -> bool {
        !self.output().is_empty() || matches!(self.state, State::Listing(_))
    }

    /// Bytes to be written.
    pub fn output(&self) -> &[u8] {
        &self.output[self.written..]
    }

    /// The first `count` bytes of the output are written.
    pub fn wrote(&mut self, count: usize) {
        self.written += count;
        if self.written == self.output.len() {
            self.written = 0;
            self.output.clear();
            if matches!(self.state, State::Reading) {
                // An idle client costs no memory.
                self.output = Vec::new();
            }
        }
    }

    /// Whether nothing more is read: when the output has left, it is over.
    pub const fn is_ending(&self) -> bool {
        matches!(self.state, State::Ending)
    }

    /// Whether it waits for the disk.
    pub const fn awaits_disk(&self) -> bool {
        matches!(self.state, State::Waiting(..) | State::Changing(..) | State::Holding(_))
    }

    /// Handles one request, if a whole one is there.
    pub fn handle(&mut self, context: &mut RequestContext<'_>) {
        if !self.has_request() {
            return;
        }
        let input = core::mem::take(&mut self.input);
        let parsed = http::parse(&input, REQUEST_BYTES_MAX);
        if matches!(parsed, Parsed::NeedMore) {
            drop(parsed);
            self.input = input;
            self.is_partial = true;
            return;
        }
        match parsed {
            Parsed::NeedMore => {}
            Parsed::Refused(status) => {
                self.is_last = true;
                self.answer(status, &problem("bad_request", "the request cannot be understood"));
            }
            Parsed::Request(request, end) => {
                self.is_last = request.is_last;
                let answer = api::handle(&request, context);
                self.input.extend_from_slice(&input[end..]);
                self.begin(answer, context);
            }
        }
    }

    fn begin(&mut self, answer: Answer, context: &RequestContext<'_>) {
        match answer {
            Answer::Now(status, body) => self.answer(status, &body),
            Answer::Durable(batch, status, body) => self.state = State::Waiting(batch, status, body),
            Answer::Changed(status, body) => {
                self.state = State::Changing(context.journal.facts_said(), status, body);
            }
            Answer::Hold(batch) => self.state = State::Holding(batch),
            Answer::List(listing) => {
                http::begin_chunked(&mut self.output);
                self.state = State::Listing(listing);
            }
        }
    }

    fn answer(&mut self, status: Status, body: &[u8]) {
        http::answer(&mut self.output, status, body);
        self.finish();
    }

    fn finish(&mut self) {
        self.state = if self.is_last { State::Ending } else { State::Reading };
    }

    fn list(&mut self, context: &RequestContext<'_>) {
        let State::Listing(listing) = &mut self.state else { return };
        if self.output.len() - self.written >= OUTPUT_BYTES_ENOUGH {
            return;
        }
        self.output.drain(..core::mem::take(&mut self.written));
        let is_alone = self.output.is_empty();
        let at = http::open_chunk(&mut self.output);
        let bytes_max = OUTPUT_BYTES_MAX - http::CHUNK_OVERHEAD_BYTES;
        let room = Room { enough: OUTPUT_BYTES_ENOUGH, bytes_max, is_alone };
        let is_done = listing.write(context.context(), &mut self.output, room);
        http::close_chunk(&mut self.output, at);
        if is_done {
            http::end_chunks(&mut self.output);
            self.finish();
        }
    }
}

#[cfg(test)]
mod tests;
