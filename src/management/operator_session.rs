//! One client of the operator, by whichever way it comes, without its socket: bytes in, requests handled, bytes
//! out.
//!
//! ```text
//! reading ─ request ─→ answered at once
//!    ↑                 waiting for the disk ─→ answered
//!    ↑                 uploading, a longer body ─→ decoding, a part each turn ─→ answered
//!    └──── answered ── listing, a part whenever there is room
//! ```
//!
//! Always true: one request at a time, in their order, each after the answer before has left; input and
//! output have a cap each; a client that does not read costs those and nothing else; however small the pieces
//! that a request comes in, no octet of it is looked at more than a few times.

use super::control;
use super::gate;
pub use super::http::REQUEST_BYTES_MAX;
use super::http::{self, Head, Parsed, Status};
use super::listing::{Listing, Room};
use super::messages::Looking;
use super::messages::{Getting, Progress};
use super::metrics;
use super::metrics::Exposition;
use super::request::{Answer, OUTPUT_BYTES_MAX, Upload, problem, refusal, request_too_large};
use super::request_context::RequestContext;
use super::table::{self, Door};
use leveret_broker::Broker;
use leveret_core::journal::Batch;
use leveret_core::password::PasswordCheck;

use zeroize::Zeroizing;

/// The longest body that is read to its end before it is refused, in bytes: a client that sends all of its request
/// first would not see an answer that comes before.
const DISCARDED_BYTES_MAX: usize = 64 << 20;
/// Bytes of a listing that one turn writes.
const OUTPUT_BYTES_ENOUGH: usize = 16 << 10;
/// Bytes of both, for the memory table.
pub const OPERATOR_SESSION_BYTES: usize = REQUEST_BYTES_MAX + OUTPUT_BYTES_MAX;

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
    /// The body of a request is on its way, of which so many bytes are still to come.
    Uploading(Box<dyn Upload>, usize),
    /// The body is here and is being decoded.
    Decoding(Box<dyn Upload>),
    /// A request is refused with this answer after so many more bytes of its body.
    Discarding(Box<Answer>, usize),
    /// The password that the request in the input came with is being checked.
    Checking,
    /// The rows of an answer are being written.
    Listing(Box<Listing>),
    /// The rows of metrics are being written.
    Exposing(Box<Exposition>),
    /// Messages are taken from a queue and written.
    Getting(Box<Getting>),
    /// Messages are being read, to be looked at.
    Looking(Box<Looking>),
    /// So much of a file is still to be written.
    Sending(&'static [u8]),
    /// Nothing more is read; what is there is written, then it is over.
    Ending,
}

/// One client's requests and answers, in order.
#[derive(Debug)]
pub struct OperatorSession {
    input: Vec<u8>,
    output: Vec<u8>,
    /// Bytes of the output that are gone.
    written: usize,
    state: State,
    is_last: bool,
    /// The answer's body is not wanted.
    is_head: bool,
    /// Where to find what was made, or where the client goes on.
    location: Option<String>,
    /// What is in the input is no whole request.
    is_partial: bool,
    /// Bytes that were in the input when it was looked at last.
    looked: usize,
    /// Bytes of the request in the input, once what stands above its body is there.
    whole_bytes: Option<usize>,
    /// The client has been told that its body may come.
    has_asked_for_body: bool,
    caller: Caller,
    /// A refused login is to be answered so that a browser asks for another one.
    challenges: bool,
    /// What somebody has to take the time to check.
    check: Option<Box<PasswordCheck>>,
    /// What came of that, for the request in the input.
    is_login_right: Option<bool>,
}

/// What the input is.
enum Looked {
    /// No whole request.
    Partial,
    /// Nothing that can be answered but with this.
    Refused(Status),
    /// A request of so many bytes, its answer, and how much of its body is still to come.
    Answered(Answer, usize, BodyLeft),
    /// One whose password must be checked first.
    Checking(Box<PasswordCheck>),
}

/// The part of a body that is not here.
struct BodyLeft {
    bytes: usize,
    /// The client sends it only after it hears that it may.
    awaits_word: bool,
}

/// Who is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Caller {
    /// Whom the control socket let in, who may do everything.
    Operator,
    /// Somebody on the network, who logs in with every request.
    Network { from_loopback: bool },
    /// Somebody on the network, who is shown metrics and nothing else.
    Scraper,
}

impl Default for OperatorSession {
    fn default() -> Self {
        Self {
            input: Vec::new(),
            output: Vec::new(),
            written: 0,
            state: State::Reading,
            is_last: false,
            is_head: false,
            location: None,
            is_partial: false,
            looked: 0,
            whole_bytes: None,
            has_asked_for_body: false,
            caller: Caller::Operator,
            challenges: false,
            check: None,
            is_login_right: None,
        }
    }
}

impl OperatorSession {
    /// Of a client of the management API, perhaps of this very machine.
    pub fn of_network(from_loopback: bool) -> Self {
        Self { caller: Caller::Network { from_loopback }, ..Self::default() }
    }

    /// Of one who came to where metrics are shown without a login.
    pub fn for_metrics() -> Self {
        Self { caller: Caller::Scraper, ..Self::default() }
    }

    /// Whether it came over the network.
    pub const fn is_of_network(&self) -> bool {
        !matches!(self.caller, Caller::Operator)
    }

    /// Whether it came for metrics, and nobody knows who it is.
    pub const fn is_for_metrics(&self) -> bool {
        matches!(self.caller, Caller::Scraper)
    }

    /// Whether nothing has begun that is not over.
    pub fn is_empty(&self) -> bool {
        matches!(self.state, State::Reading) && self.input.is_empty() && self.output().is_empty()
    }

    /// Whether it waits for a password to be checked.
    pub const fn is_checking(&self) -> bool {
        matches!(self.state, State::Checking)
    }

    /// A password that has to be checked before the session goes on; [`Self::note_login`] says what came of
    /// it.
    pub const fn take_check(&mut self) -> Option<Box<PasswordCheck>> {
        self.check.take()
    }

    /// The request is looked at once more, and its password was right or wrong.
    pub fn note_login(&mut self, is_right: bool) {
        if matches!(self.state, State::Checking) {
            (self.state, self.is_login_right) = (State::Reading, Some(is_right));
        }
    }

    /// How many more bytes of input are taken now.
    pub fn room(&self) -> usize {
        match self.state {
            State::Reading | State::Uploading(..) | State::Discarding(..) => {
                REQUEST_BYTES_MAX - self.input.len()
            }
            _ => 0,
        }
    }

    /// Takes input, at most [`Self::room`] of it.
    pub fn take(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len() <= self.room(), "no more than there is room for");
        // Line ends before a request mean nothing, and are not kept to be looked at again.
        let is_before = matches!(self.state, State::Reading) && self.input.is_empty();
        let is_blank = |byte: &&u8| is_before && matches!(byte, b'\r' | b'\n');
        let bytes = &bytes[bytes.iter().take_while(is_blank).count()..];
        let from = self.input.len();
        if self.input.capacity() < self.input.len() + bytes.len() {
            // Growing by doubling would take more than the cap.
            let most = REQUEST_BYTES_MAX - self.input.len();
            self.input.reserve_exact((bytes.len() * 2).min(most));
        }
        self.input.extend_from_slice(bytes);
        let is_worth_a_look = match self.whole_bytes {
            Some(end) => self.input.len() >= end,
            None => self.input.len() >= 2 * self.looked || ends_head(&self.input[from.saturating_sub(2)..]),
        };
        self.is_partial &= !(is_worth_a_look || self.input.len() == REQUEST_BYTES_MAX);
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
                if let Some(answer) = control::held(context) {
                    self.begin(answer, context);
                }
            }
            State::Listing(_) => self.list(context),
            State::Exposing(_) => self.expose(context),
            State::Getting(_) => self.get(context),
            State::Looking(looking) if looking.is_done(context.broker) => {
                let taken = looking.take(context);
                let answer = taken.map_or_else(|fault| refusal(&fault), |body| Answer::Now(Status::Ok, body));
                self.begin(answer, context);
            }
            State::Sending(rest) => {
                let now =
                    rest.len().min(OUTPUT_BYTES_ENOUGH.saturating_sub(self.output.len() - self.written));
                self.output.extend_from_slice(&rest[..now]);
                *rest = &rest[now..];
                if rest.is_empty() {
                    self.finish();
                }
            }
            State::Decoding(upload) => {
                if let Some(answer) = upload.step(context).unwrap_or_else(Some) {
                    upload.release(context.messages);
                    self.begin(answer, context);
                    // An answer that waits for the disk may have nothing to wait for: no commit would wake it.
                    self.fill(context);
                }
            }
            State::Reading
            | State::Uploading(..)
            | State::Discarding(..)
            | State::Checking
            | State::Holding(_)
            | State::Looking(_)
            | State::Waiting(..)
            | State::Changing(..)
            | State::Ending => {}
        }
    }

    /// Whether a request can be handled. What the last one left to be written goes first.
    pub fn has_request(&self) -> bool {
        match self.state {
            State::Reading => self.output().is_empty() && !self.input.is_empty() && !self.is_partial,
            State::Uploading(..) | State::Discarding(..) => !self.input.is_empty(),
            _ => false,
        }
    }

    /// Whether there is something to be written, now or by [`Self::fill`], without anything new from outside.
    pub fn has_output(&self) -> bool {
        let goes_on = matches!(
            self.state,
            State::Listing(_)
                | State::Exposing(_)
                | State::Sending(_)
                | State::Getting(_)
                | State::Decoding(_)
        );
        !self.output().is_empty() || goes_on && !self.waits()
    }

    /// Whether it waits for messages that the broker reads back.
    pub fn waits(&self) -> bool {
        match &self.state {
            State::Getting(getting) => getting.waits_for().is_some(),
            State::Looking(_) => true,
            _ => false,
        }
    }

    /// Whether it waits for some that are not there yet.
    pub fn is_held_up(&self, broker: &Broker) -> bool {
        match &self.state {
            State::Getting(getting) => getting.waits_for().is_some_and(|id| broker.is_busy(id)),
            State::Looking(looking) => !looking.is_done(broker),
            _ => false,
        }
    }

    /// The client is gone: what it took and was to go back does.
    pub fn abandon(self, broker: &mut Broker, context: &mut leveret_broker::Context<'_>) {
        match self.state {
            State::Getting(getting) => getting.abandon(broker, context),
            State::Looking(looking) => looking.abandon(broker, context),
            State::Uploading(mut upload, _) | State::Decoding(mut upload) => {
                upload.release(context.messages_mut());
            }
            _ => {}
        }
    }

    /// Whether a body longer than a request buffer is on its way.
    pub const fn is_uploading(&self) -> bool {
        matches!(self.state, State::Uploading(..))
    }

    /// Bytes to be written.
    pub fn output(&self) -> &[u8] {
        &self.output[self.written..]
    }

    /// The first `count` bytes of the output are written.
    pub fn wrote(&mut self, count: usize) {
        self.written += count;
        if matches!(self.state, State::Sending(_)) {
            self.output.drain(..core::mem::take(&mut self.written));
        }
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
        if !matches!(self.state, State::Reading) {
            return self.take_body(context);
        }
        // What is not kept is wiped: it may have passwords.
        let mut input = Zeroizing::new(core::mem::take(&mut self.input));
        match self.look(&input, context) {
            Looked::Partial => {
                (self.looked, self.input, self.is_partial) =
                    (input.len(), core::mem::take(&mut *input), true);
            }
            Looked::Refused(status) => {
                self.is_last = true;
                match status {
                    Status::TooLarge => self.begin(request_too_large(), context),
                    _ => self.answer(status, &problem("bad_request", "the request cannot be understood")),
                }
            }
            Looked::Answered(answer, end, left) => {
                self.input.extend_from_slice(&input[end..]);
                match answer {
                    Answer::Upload(upload) if left.bytes > 0 => {
                        if left.awaits_word {
                            http::ask_for_body(&mut self.output);
                        }
                        self.state = State::Uploading(upload, left.bytes);
                    }
                    answer if left.bytes == 0 => self.begin(answer, context),
                    answer if left.awaits_word || left.bytes > DISCARDED_BYTES_MAX => {
                        self.is_last = true;
                        self.begin(answer, context);
                    }
                    answer => self.state = State::Discarding(Box::new(answer), left.bytes),
                }
            }
            // The request is looked at again when that is done.
            Looked::Checking(check) => {
                (self.check, self.state) = (Some(check), State::Checking);
                self.input = core::mem::take(&mut *input);
            }
        }
    }

    /// Hands on the part of a body that is in the input.
    fn take_body(&mut self, context: &mut RequestContext<'_>) {
        let mut input = Zeroizing::new(core::mem::take(&mut self.input));
        let state = core::mem::replace(&mut self.state, State::Reading);
        let taken = match &state {
            State::Uploading(_, left) | State::Discarding(_, left) => input.len().min(*left),
            _ => 0,
        };
        self.input.extend_from_slice(&input[taken..]);
        input.truncate(taken);
        match state {
            State::Uploading(mut upload, left) => match upload.take(&input, left, context) {
                Ok(()) if taken == left => self.state = State::Decoding(upload),
                Ok(()) => self.state = State::Uploading(upload, left - taken),
                Err(answer) => {
                    upload.release(context.messages);
                    self.discard(answer, left - taken, context);
                }
            },
            State::Discarding(answer, left) => self.discard(*answer, left - taken, context),
            other => self.state = other,
        }
    }

    /// Answers when the rest of the body is read.
    fn discard(&mut self, answer: Answer, left: usize, context: &RequestContext<'_>) {
        match left {
            0 => self.begin(answer, context),
            left => self.state = State::Discarding(Box::new(answer), left),
        }
    }

    /// What is to be done about the input.
    fn look(&mut self, input: &[u8], context: &mut RequestContext<'_>) -> Looked {
        let (request, end) = match http::parse(input, REQUEST_BYTES_MAX) {
            Parsed::NeedMore => return Looked::Partial,
            Parsed::NeedBody { end, awaits_word } => {
                self.whole_bytes = Some(end);
                if awaits_word && !core::mem::replace(&mut self.has_asked_for_body, true) {
                    http::ask_for_body(&mut self.output);
                }
                return Looked::Partial;
            }
            Parsed::Refused(status) => return Looked::Refused(status),
            Parsed::Request(request, end) => (request, end),
        };
        (self.has_asked_for_body, self.looked, self.whole_bytes) = (false, 0, None);
        (self.is_last, self.is_head) = (request.is_last, request.is_head);
        self.challenges = !request.origin.is_script;
        let left =
            BodyLeft { bytes: request.body_bytes - request.body.len(), awaits_word: request.awaits_word };
        let answer = match self.caller {
            Caller::Operator => Ok(table::answer(&request, context, Door::Socket, None)),
            Caller::Network { from_loopback } => {
                gate::handle(&request, context, from_loopback, self.is_login_right.take())
            }
            Caller::Scraper => Ok(gate::metrics_alone(&request, context)),
        };
        match answer {
            Ok(answer) => Looked::Answered(answer, end, left),
            Err(check) => Looked::Checking(check),
        }
    }

    fn head(&self, status: Status) -> Head<'static> {
        match self.caller {
            Caller::Operator => Head::json(status),
            Caller::Network { .. } | Caller::Scraper => gate::head(status, self.challenges),
        }
    }

    fn begin(&mut self, answer: Answer, context: &RequestContext<'_>) {
        match answer {
            Answer::Now(status, body) => self.answer(status, &body),
            Answer::Durable(batch, status, body) => self.state = State::Waiting(batch, status, body),
            Answer::Made(batch, location) => {
                self.location = Some(location);
                self.state = State::Waiting(batch, Status::Created, Vec::new());
            }
            Answer::Changed(status, body) => {
                self.state = State::Changing(context.journal.facts_said(), status, body);
            }
            Answer::ChangedGoOn(location) => {
                self.location = Some(location);
                self.state = State::Changing(context.journal.facts_said(), Status::SeeOther, Vec::new());
            }
            Answer::Hold(batch) => self.state = State::Holding(batch),
            Answer::List(listing) if listing.is_gathered() => self.begin_list(listing),
            Answer::List(listing) => self.state = State::Listing(listing),
            Answer::Metrics(first, rows) => {
                let head = Head { media: metrics::MEDIA, ..self.head(Status::Ok) };
                http::begin(&mut self.output, head, None);
                if core::mem::take(&mut self.is_head) {
                    return self.finish();
                }
                let at = http::open_chunk(&mut self.output);
                self.output.extend_from_slice(&first);
                http::close_chunk(&mut self.output, at);
                self.state = State::Exposing(rows);
            }
            Answer::Look(looking) => self.state = State::Looking(looking),
            Answer::Upload(upload) => self.state = State::Decoding(upload),
            Answer::Get(get) => self.state = State::Getting(Box::new(Getting::new(*get))),
            Answer::Page(page) => {
                http::begin(&mut self.output, gate::page_head(page, Status::Ok), Some(page.bytes.len()));
                match self.is_head {
                    true => self.finish(),
                    false => self.state = State::Sending(page.bytes),
                }
            }
            Answer::KnownPage(page) => {
                http::begin(&mut self.output, gate::page_head(page, Status::NotModified), Some(0));
                self.finish();
            }
        }
    }

    fn begin_list(&mut self, listing: Box<Listing>) {
        let head = self.head(Status::Ok);
        http::begin(&mut self.output, head, None);
        match core::mem::take(&mut self.is_head) {
            true => self.finish(),
            false => self.state = State::Listing(listing),
        }
    }

    fn get(&mut self, context: &mut RequestContext<'_>) {
        let State::Getting(getting) = &mut self.state else { return };
        if self.output.len() - self.written >= OUTPUT_BYTES_ENOUGH {
            return;
        }
        self.output.drain(..core::mem::take(&mut self.written));
        let (was_begun, mut piece) = (getting.is_begun, Vec::new());
        let progress = match getting.step(context, &mut piece, OUTPUT_BYTES_ENOUGH) {
            Ok(progress) => progress,
            Err(fault) => {
                self.state = State::Reading;
                return self.begin(refusal(&fault), context);
            }
        };
        if piece.is_empty() {
            return;
        }
        if !was_begun {
            let head = self.head(Status::Ok);
            http::begin(&mut self.output, head, None);
        }
        let at = http::open_chunk(&mut self.output);
        self.output.extend_from_slice(&piece);
        http::close_chunk(&mut self.output, at);
        if progress == Progress::Done {
            http::end_chunks(&mut self.output);
            self.finish();
        }
    }

    fn answer(&mut self, status: Status, body: &[u8]) {
        let head = self.head(status);
        let is_told = matches!(status, Status::Created | Status::SeeOther);
        let more = match self.location.take().filter(|_| is_told) {
            Some(place) => &*format!("{}location: {place}\r\n", head.more),
            None => head.more,
        };
        http::begin(&mut self.output, Head { more, ..head }, Some(body.len()));
        if !core::mem::take(&mut self.is_head) {
            self.output.extend_from_slice(body);
        }
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
        if !listing.is_gathered() {
            match listing.gather(context.context()) {
                Err((status, error, why)) => self.answer(status, &problem(error, &why)),
                Ok(()) if !listing.is_gathered() => {}
                Ok(()) => {
                    let State::Listing(listing) = core::mem::replace(&mut self.state, State::Reading) else {
                        return;
                    };
                    self.begin_list(listing);
                }
            }
            return;
        }
        let mut write = |out: &mut Vec<u8>, room| listing.write(context.context(), out, room);
        if write_chunk(&mut self.output, &mut self.written, &mut write) {
            self.finish();
        }
    }

    fn expose(&mut self, context: &RequestContext<'_>) {
        let State::Exposing(rows) = &mut self.state else { return };
        if self.output.len() - self.written >= OUTPUT_BYTES_ENOUGH {
            return;
        }
        let mut write = |out: &mut Vec<u8>, room| rows.write(context.context(), out, room);
        if write_chunk(&mut self.output, &mut self.written, &mut write) {
            self.finish();
        }
    }
}

/// Whether a line without anything in it ends here, behind which a body begins.
fn ends_head(bytes: &[u8]) -> bool {
    let has = |end: &[u8]| bytes.windows(end.len()).any(|part| part == end);
    has(b"\n\r\n") || has(b"\n\n")
}

/// Puts some rows behind the output; says whether those were the last.
fn write_chunk(
    output: &mut Vec<u8>,
    written: &mut usize,
    write: &mut dyn FnMut(&mut Vec<u8>, Room) -> bool,
) -> bool {
    output.drain(..core::mem::take(written));
    let is_alone = output.is_empty();
    let at = http::open_chunk(output);
    let bytes_max = OUTPUT_BYTES_MAX - http::CHUNK_OVERHEAD_BYTES;
    let is_done = write(output, Room { enough: OUTPUT_BYTES_ENOUGH, bytes_max, is_alone });
    http::close_chunk(output, at);
    if is_done {
        http::end_chunks(output);
    }
    is_done
}

#[cfg(test)]
mod tests;
