//! The requests and answers of one client, without its socket: bytes in, requests handled, bytes out.
//!
//! ```text
//! reading ─ request ─→ answered at once
//! ↑                 waiting for the disk ─→ answered
//! ↑                 upgrading ─→ the connection is one of MQTT, or refused
//! ↑                 uploading, a longer body ─→ decoding, a part each turn ─→ answered
//! └──── answered ── collecting a list ─→ writing a body, a piece each turn
//!                   listing, a part whenever there is output space
//! ```
//!
//! # Invariants
//! - One request is handled at a time, in order, each after the previous answer has been sent.
//! - Input and output are bounded. A client that does not read costs no more than these bounds.
//! - An answer over the network to a request that reads something has an entity tag if it has at most
//!   [`COLLECTED_BYTES_MAX`] bytes. A client that has this version gets `304 Not Modified`.
//! - However small the parts of a request are, each of its bytes is examined only a few times.

use super::compression::{COMPRESSED_BYTES_MIN, GzipStream, PIECE_BYTES_MAX, tag_of};
use super::control;
use super::gate;
pub use super::http::REQUEST_BYTES_MAX;
use super::http::{self, ChunkDecoder, DecodedBody, Head, Parsed, Status, Verb};
use super::listing::{Listing, OutputLimits};
use super::messages::PendingBrowse;
use super::messages::{Getting, Progress};
use super::metrics;
use super::metrics::Exposition;
use super::moving::PendingMove;
use super::request::RequestContext;
use super::request::{Answer, OUTPUT_BYTES_MAX, Upload, body_too_large, problem, refusal, request_too_large};
use super::table::{self, Interface};
use leveret_broker::Broker;
use leveret_core::batch::Batch;
use leveret_core::password::PasswordCheck;

use zeroize::Zeroizing;

/// The longest body that is read to its end before it is refused, in bytes. A client that sends its whole request
/// first would not see an earlier answer.
const DISCARDED_BYTES_MAX: usize = 64 << 20;
/// Bytes of a listing written per turn.
const OUTPUT_BYTES_ENOUGH: usize = 16 << 10;
/// The most bytes of a list that are collected before the head of the answer is written.
const COLLECTED_BYTES_MAX: usize = OUTPUT_BYTES_MAX;
/// Memory of the input and the output, in bytes, for the memory table.
pub const OPERATOR_SESSION_BYTES: usize = REQUEST_BYTES_MAX + OUTPUT_BYTES_MAX;
/// Memory of a session over the network, in bytes. A body may exist beside its next piece, compressed.
pub const NETWORK_SESSION_BYTES: usize = OPERATOR_SESSION_BYTES + PIECE_BYTES_MAX;

/// The current activity.
#[derive(Debug)]
enum State {
    /// A request is expected; part of it may have arrived.
    Reading,
    /// The answer is sent when this batch is durable.
    Waiting(Batch, Status, Vec<u8>),
    /// The answer is sent when this many log entries are durable.
    Changing(u64, Status, Vec<u8>),
    /// The store's files are pinned when this batch is durable.
    Holding(Batch),
    /// A body is being received.
    Uploading(Box<dyn Upload>, BodyLeft),
    /// The body has been received and is being decoded.
    Decoding(Box<dyn Upload>),
    /// The request is refused with this answer after the rest of its body.
    Discarding(Box<Answer>, BodyLeft),
    /// The password of the request in the input is being checked.
    Checking,
    /// The rows of a list are being collected: a short list is sent as a whole.
    Collecting(Box<Listing>, Vec<u8>),
    /// The rows of a list are being written.
    Listing(Box<Listing>),
    /// A body is written in pieces; the rows of a list may follow.
    Writing(PendingBody, Option<Box<Listing>>),
    /// The rows of metrics are being written.
    Exposing(Box<Exposition>),
    /// Messages are taken from a queue and written.
    Getting(Box<Getting>),
    /// Messages to be shown are being read from the disk.
    Browsing(Box<PendingBrowse>),
    /// Messages to be moved are being read from the disk.
    Moving(Box<PendingMove>),
    /// The rest of a file to be written.
    Sending(&'static [u8]),
    /// The caller makes the connection one of MQTT over WebSocket, with this response.
    Upgrading(Vec<u8>),
    /// Nothing more is read. The session ends when the output has been written.
    Ending,
}

/// A body, and how many bytes of it were written.
#[derive(Debug)]
struct PendingBody {
    bytes: Vec<u8>,
    written: usize,
}

/// The answer that the client of the current request understands.
#[derive(Debug, Default)]
struct Format {
    /// Whether the request only reads, over the network. The answer then has an entity tag.
    is_tagged: bool,
    /// The entity tags of the client's copies of the answer.
    client_copies: Option<Box<str>>,
    accepts_gzip: bool,
}

/// The requests and answers of one client, in order.
#[derive(Debug)]
pub struct OperatorSession {
    input: Vec<u8>,
    output: Vec<u8>,
    /// Number of bytes of the output that have been written.
    written: usize,
    state: State,
    is_last: bool,
    /// Whether the client wants only the response's head.
    is_head: bool,
    format: Format,
    /// The compressed answer, as far as it was written. `None`: the answer is not compressed.
    gzip: Option<GzipStream>,
    /// The path of a created object, or the address to redirect to.
    location: Option<String>,
    /// Whether the input holds no complete request.
    is_partial: bool,
    /// Length of the input when it was last parsed.
    parsed_bytes: usize,
    /// Length of the request in the input, once its head is complete.
    whole_bytes: Option<usize>,
    /// The chunked body in the input, once the head before it is complete.
    chunked: Option<ChunkedInput>,
    /// Whether the client has been told to send its body.
    has_asked_for_body: bool,
    caller: Caller,
    /// Whether a refused login makes a browser ask for another one.
    challenges: bool,
    /// A password check that the caller has to carry out.
    check: Option<Box<PasswordCheck>>,
    /// The result of that check, for the request in the input.
    is_login_right: Option<bool>,
}

/// The result of parsing the input.
enum InputResult {
    /// The request is incomplete.
    Partial,
    /// The bytes can only be answered with this status.
    Refused(Status),
    /// The head of a request with a chunked body is complete.
    Chunked,
    /// A request of this length, its answer, the part of its body still to come, and whether the client waits for
    /// permission to send that.
    Answered(Answer, usize, BodyLeft, bool),
    /// A request whose password must be checked first.
    Checking(Box<PasswordCheck>),
}

/// The part of a body that has not been handled.
#[derive(Debug)]
enum BodyLeft {
    /// The number of bytes still to come.
    Bytes(usize),
    /// The rest of a chunked body. Its content up to now had `content_bytes` bytes, of which the last `decoded_bytes` are
    /// at the beginning of the input.
    Chunked { decoder: ChunkDecoder, content_bytes: usize, decoded_bytes: usize },
}

impl BodyLeft {
    /// Returns whether nothing is to come.
    fn is_nothing(&self) -> bool {
        match self {
            Self::Bytes(left) => *left == 0,
            Self::Chunked { decoder, .. } => decoder.is_done(),
        }
    }

    /// Returns whether the body exceeds [`DISCARDED_BYTES_MAX`]: the rest of a body with a known length, or the content of a
    /// chunked body up to now.
    const fn is_too_long_to_discard(&self) -> bool {
        let (Self::Bytes(bytes) | Self::Chunked { content_bytes: bytes, .. }) = self;
        *bytes > DISCARDED_BYTES_MAX
    }

    /// Removes the next part of the body from the input, and returns its content. Bytes of a following request stay in the
    /// input.
    ///
    /// # Errors
    /// The input is no chunked body.
    fn take_from(&mut self, input: &mut Vec<u8>) -> Result<Zeroizing<Vec<u8>>, Status> {
        let (content_len, taken) = match self {
            Self::Bytes(left) => {
                let taken = input.len().min(*left);
                *left -= taken;
                (taken, taken)
            }
            Self::Chunked { decoder, content_bytes, decoded_bytes } => {
                let before = core::mem::take(decoded_bytes);
                let (len, taken) = decoder.decode(&mut input[before..])?;
                *content_bytes += len;
                (before + len, before + taken)
            }
        };
        // The input is not kept, because it may contain passwords.
        let mut content = Zeroizing::new(core::mem::take(input));
        input.extend_from_slice(&content[taken..]);
        content.truncate(content_len);
        Ok(content)
    }

    /// Returns an upper bound of the number of bytes still to come.
    const fn bytes_max(&self) -> usize {
        match self {
            Self::Bytes(left) => *left,
            Self::Chunked { .. } => usize::MAX / 2,
        }
    }
}

/// A chunked body in the input: the head, the decoded content, and what has not been decoded.
#[derive(Debug)]
struct ChunkedInput {
    decoder: ChunkDecoder,
    head_len: usize,
    content_bytes: usize,
}

impl ChunkedInput {
    /// Decodes what has arrived. Returns whether the request can be answered: its body is complete, or longer than the
    /// input may be.
    ///
    /// # Errors
    /// The input is no chunked body.
    fn decode(&mut self, input: &mut Vec<u8>) -> Result<bool, Status> {
        let from = self.head_len + self.content_bytes;
        let (len, taken) = self.decoder.decode(&mut input[from..])?;
        input.drain(from + len..from + taken);
        self.content_bytes += len;
        Ok(self.decoder.is_done() || input.len() == REQUEST_BYTES_MAX)
    }

    fn decoded(&self) -> DecodedBody {
        DecodedBody { bytes: self.content_bytes, is_whole: self.decoder.is_done() }
    }
}

/// The kind of client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Caller {
    /// The operator at the control socket, who may do everything.
    Operator,
    /// A client on the network, which logs in with every request.
    Network { from_loopback: bool },
    /// A client on the network that gets metrics and nothing else.
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
            format: Format::default(),
            gzip: None,
            location: None,
            is_partial: false,
            parsed_bytes: 0,
            whole_bytes: None,
            chunked: None,
            has_asked_for_body: false,
            caller: Caller::Operator,
            challenges: false,
            check: None,
            is_login_right: None,
        }
    }
}

impl OperatorSession {
    /// Creates the session of a client of the management API; `from_loopback`: it is on this machine.
    pub fn for_network(from_loopback: bool) -> Self {
        Self { caller: Caller::Network { from_loopback }, ..Self::default() }
    }

    /// Creates the session of a client at the address where metrics need no login.
    pub fn for_metrics() -> Self {
        Self { caller: Caller::Scraper, ..Self::default() }
    }

    /// Returns whether the client is on the network.
    pub const fn is_over_network(&self) -> bool {
        !matches!(self.caller, Caller::Operator)
    }

    /// Returns whether the client gets only metrics, without a login.
    pub const fn is_for_metrics(&self) -> bool {
        matches!(self.caller, Caller::Scraper)
    }

    /// Returns whether no request is in progress.
    pub fn is_empty(&self) -> bool {
        matches!(self.state, State::Reading) && self.input.is_empty() && self.output().is_empty()
    }

    /// Returns whether the session waits for a password check.
    pub const fn is_checking(&self) -> bool {
        matches!(self.state, State::Checking)
    }

    /// Returns the password check that the session waits for. The caller reports the result with
    /// [`Self::note_login`].
    pub const fn take_check(&mut self) -> Option<Box<PasswordCheck>> {
        self.check.take()
    }

    /// Notes whether the password of the request was right. The request is then parsed again.
    pub fn note_login(&mut self, is_right: bool) {
        if matches!(self.state, State::Checking) {
            (self.state, self.is_login_right) = (State::Reading, Some(is_right));
        }
    }

    /// Returns how many bytes of input can be taken now.
    pub fn input_capacity_bytes(&self) -> usize {
        match self.state {
            State::Reading | State::Uploading(..) | State::Discarding(..) => {
                REQUEST_BYTES_MAX - self.input.len()
            }
            _ => 0,
        }
    }

    /// Takes input, at most [`Self::input_capacity_bytes`] of it.
    pub fn take(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len() <= self.input_capacity_bytes(), "no more than there is room for");
        // Line ends before a request are ignored and not kept, so that they are not examined again.
        let is_before = matches!(self.state, State::Reading) && self.input.is_empty();
        let is_blank = |byte: &&u8| is_before && matches!(byte, b'\r' | b'\n');
        let bytes = &bytes[bytes.iter().take_while(is_blank).count()..];
        let from = self.input.len();
        if self.input.capacity() < self.input.len() + bytes.len() {
            // Growth by doubling would exceed the limit.
            let most = REQUEST_BYTES_MAX - self.input.len();
            self.input.reserve_exact((bytes.len() * 2).min(most));
        }
        self.input.extend_from_slice(bytes);
        let is_worth_a_look = match self.whole_bytes {
            // The decoder examines each byte once.
            _ if self.chunked.is_some() => true,
            Some(end) => self.input.len() >= end,
            None => {
                self.input.len() >= 2 * self.parsed_bytes || ends_head(&self.input[from.saturating_sub(2)..])
            }
        };
        self.is_partial &= !(is_worth_a_look || self.input.len() == REQUEST_BYTES_MAX);
    }

    /// Appends what can be sent now to the output: one part of a listing, or an answer whose batch is durable or
    /// needs no batch.
    pub fn fill(&mut self, context: &mut RequestContext<'_>) {
        match &mut self.state {
            State::Waiting(batch, status, body) if *batch <= context.durable() => {
                let (status, body) = (*status, core::mem::take(body));
                self.answer(status, body);
            }
            State::Changing(facts, status, body) if *facts <= context.pending_writes.entries_safe() => {
                let (status, body) = (*status, core::mem::take(body));
                self.answer(status, body);
            }
            State::Holding(batch) if *batch <= context.durable() => {
                if let Some(answer) = control::pinned_files(context) {
                    self.begin(answer, context);
                }
            }
            State::Collecting(..) => self.collect(context),
            State::Listing(_) => self.list(context),
            State::Writing(..) => self.write_piece(),
            State::Exposing(_) => self.expose(context),
            State::Getting(_) => self.get(context),
            State::Browsing(browse) if browse.is_done(context.broker) => {
                let taken = browse.take(context);
                let answer = taken.map_or_else(|fault| refusal(&fault), |body| Answer::Now(Status::Ok, body));
                self.begin(answer, context);
            }
            State::Moving(moving) if moving.is_done(context.broker) => {
                if let Some(answer) = moving.step(context) {
                    self.begin(answer, context);
                    // The answer may need no batch; then no commit would wake the session.
                    self.fill(context);
                }
            }
            State::Sending(_) => self.send_piece(),
            State::Decoding(upload) => {
                if let Some(answer) = upload.step(context).unwrap_or_else(Some) {
                    upload.release(context.messages);
                    self.begin(answer, context);
                    // The answer may need no batch; then no commit would wake the session.
                    self.fill(context);
                }
            }
            State::Reading
            | State::Uploading(..)
            | State::Discarding(..)
            | State::Checking
            | State::Holding(_)
            | State::Browsing(_)
            | State::Moving(_)
            | State::Waiting(..)
            | State::Changing(..)
            | State::Upgrading(_)
            | State::Ending => {}
        }
    }

    /// Returns whether a request can be handled. The output of the previous request must have been written.
    pub fn has_request(&self) -> bool {
        match self.state {
            State::Reading => self.output().is_empty() && !self.input.is_empty() && !self.is_partial,
            State::Uploading(..) | State::Discarding(..) => !self.input.is_empty(),
            _ => false,
        }
    }

    /// Returns whether bytes can be written, now or after [`Self::fill`], without any further event.
    pub fn has_output(&self) -> bool {
        let continues = matches!(
            self.state,
            State::Collecting(..)
                | State::Listing(_)
                | State::Writing(..)
                | State::Exposing(_)
                | State::Sending(_)
                | State::Getting(_)
                | State::Decoding(_)
        );
        !self.output().is_empty() || continues && !self.awaits_read_back()
    }

    /// Returns whether the session waits for messages that the broker reads back.
    pub fn awaits_read_back(&self) -> bool {
        match &self.state {
            State::Getting(getting) => getting.waits_for().is_some(),
            State::Browsing(_) | State::Moving(_) => true,
            _ => false,
        }
    }

    /// Returns whether the session waits for messages that have not been read yet.
    pub fn awaits_messages(&self, broker: &Broker) -> bool {
        match &self.state {
            State::Getting(getting) => getting.waits_for().is_some_and(|id| broker.is_busy(id)),
            State::Browsing(browse) => !browse.is_done(broker),
            State::Moving(moving) => !moving.is_done(broker),
            _ => false,
        }
    }

    /// Ends the session of a client that has disconnected. Messages that were to be requeued are requeued.
    pub fn abandon(self, broker: &mut Broker, context: &mut leveret_broker::Context<'_>) {
        match self.state {
            State::Getting(getting) => getting.abandon(broker, context),
            State::Browsing(browse) => browse.abandon(broker, context),
            State::Moving(moving) => moving.abandon(broker, context),
            State::Uploading(mut upload, _) | State::Decoding(mut upload) => {
                upload.release(context.messages);
            }
            _ => {}
        }
    }

    /// Returns whether a body longer than a request buffer is being received.
    pub const fn is_uploading(&self) -> bool {
        matches!(self.state, State::Uploading(..))
    }

    /// Returns the bytes to be written.
    pub fn output(&self) -> &[u8] {
        &self.output[self.written..]
    }

    /// Notes that the first `count` bytes of the output have been written.
    pub fn note_written(&mut self, count: usize) {
        self.written += count;
        if matches!(self.state, State::Sending(_)) {
            self.output.drain(..core::mem::take(&mut self.written));
        }
        if self.written == self.output.len() {
            self.written = 0;
            self.output.clear();
            if matches!(self.state, State::Reading) {
                // An idle client uses no memory.
                self.output = Vec::new();
            }
        }
    }

    /// Returns whether nothing more is read. The session ends when the output has been written.
    pub const fn is_ending(&self) -> bool {
        matches!(self.state, State::Ending)
    }

    /// Returns the response with which the connection becomes one of MQTT over WebSocket, if the last request was for
    /// that. The caller ends this session, or calls [`Self::refuse_upgrade`].
    pub fn take_upgrade(&mut self) -> Option<Vec<u8>> {
        let State::Upgrading(response) = &mut self.state else { return None };
        let response = core::mem::take(response);
        self.state = State::Ending;
        Some(response)
    }

    /// Refuses the upgrade that [`Self::take_upgrade`] has returned, for this reason.
    pub fn refuse_upgrade(&mut self, why: &str) {
        self.is_last = true;
        self.answer(Status::Unavailable, problem("unavailable", why));
    }

    /// Returns whether the session waits for the disk.
    pub const fn awaits_disk(&self) -> bool {
        matches!(self.state, State::Waiting(..) | State::Changing(..) | State::Holding(_))
    }

    /// Handles one request if it is complete.
    pub fn handle(&mut self, context: &mut RequestContext<'_>) {
        if !self.has_request() {
            return;
        }
        if !matches!(self.state, State::Reading) {
            return self.take_body(context);
        }
        // Input that is not kept is wiped, because it may contain passwords.
        let mut input = Zeroizing::new(core::mem::take(&mut self.input));
        let mut result = match &self.chunked {
            Some(_) => InputResult::Chunked,
            None => self.parse_input(&input, context),
        };
        if let (InputResult::Chunked, Some(chunked)) = (&result, &mut self.chunked) {
            result = match chunked.decode(&mut input) {
                Ok(true) => self.parse_input(&input, context),
                Ok(false) => InputResult::Partial,
                Err(status) => InputResult::Refused(status),
            };
        }
        match result {
            InputResult::Partial | InputResult::Chunked => {
                (self.parsed_bytes, self.input, self.is_partial) =
                    (input.len(), core::mem::take(&mut *input), true);
            }
            InputResult::Refused(status) => self.refuse(status, context),
            InputResult::Answered(answer, end, left, expects_continue) => {
                self.chunked = None;
                self.input.extend_from_slice(&input[end..]);
                match answer {
                    Answer::Upload(upload) if !left.is_nothing() => {
                        if expects_continue {
                            http::ask_for_body(&mut self.output);
                        }
                        self.state = State::Uploading(upload, left);
                    }
                    answer if left.is_nothing() => self.begin(answer, context),
                    answer if expects_continue || left.is_too_long_to_discard() => {
                        self.is_last = true;
                        self.begin(answer, context);
                    }
                    answer => self.state = State::Discarding(Box::new(answer), left),
                }
            }
            // The request is parsed again after the check.
            InputResult::Checking(check) => {
                (self.check, self.state) = (Some(check), State::Checking);
                self.input = core::mem::take(&mut *input);
            }
        }
    }

    /// Refuses bytes that are no request. What follows them cannot be interpreted.
    fn refuse(&mut self, status: Status, context: &RequestContext<'_>) {
        (self.is_last, self.chunked) = (true, None);
        self.format = Format::default();
        match status {
            Status::TooLarge => self.begin(request_too_large(), context),
            _ => self.answer(status, problem("bad_request", "the request is malformed")),
        }
    }

    /// Passes on the part of a body that is in the input.
    fn take_body(&mut self, context: &mut RequestContext<'_>) {
        match core::mem::replace(&mut self.state, State::Reading) {
            State::Uploading(mut upload, mut left) => {
                let before = left.bytes_max();
                let taken = left.take_from(&mut self.input);
                let taken = taken.map(|content| {
                    upload.take(&content, before, context)?;
                    let bytes_max = upload.bytes_max(context);
                    let is_too_long =
                        matches!(left, BodyLeft::Chunked { content_bytes, .. } if content_bytes > bytes_max);
                    if is_too_long { Err(body_too_large(bytes_max)) } else { Ok(()) }
                });
                match taken {
                    Ok(Ok(())) if left.is_nothing() => self.state = State::Decoding(upload),
                    Ok(Ok(())) => self.state = State::Uploading(upload, left),
                    Ok(Err(answer)) => {
                        upload.release(context.messages);
                        self.discard(answer, left, context);
                    }
                    Err(status) => {
                        upload.release(context.messages);
                        self.refuse(status, context);
                    }
                }
            }
            State::Discarding(answer, mut left) => match left.take_from(&mut self.input) {
                Ok(_) => self.discard(*answer, left, context),
                Err(status) => self.refuse(status, context),
            },
            other => self.state = other,
        }
    }

    /// Sends the answer after the rest of the body has been read.
    fn discard(&mut self, answer: Answer, left: BodyLeft, context: &RequestContext<'_>) {
        // The announced length was checked before; only that of a chunked body is unknown.
        let is_endless = matches!(left, BodyLeft::Chunked { .. }) && left.is_too_long_to_discard();
        if left.is_nothing() || is_endless {
            self.is_last |= is_endless;
            self.begin(answer, context);
        } else {
            self.state = State::Discarding(Box::new(answer), left);
        }
    }

    /// Parses the input and decides what to do.
    fn parse_input(&mut self, input: &[u8], context: &mut RequestContext<'_>) -> InputResult {
        let decoded = self.chunked.as_ref().map(ChunkedInput::decoded);
        let (request, end) = match http::parse(input, REQUEST_BYTES_MAX, decoded) {
            Parsed::NeedMore => return InputResult::Partial,
            Parsed::ChunkedBody { head_len, expects_continue } => {
                self.chunked =
                    Some(ChunkedInput { decoder: ChunkDecoder::default(), head_len, content_bytes: 0 });
                if expects_continue && !core::mem::replace(&mut self.has_asked_for_body, true) {
                    http::ask_for_body(&mut self.output);
                }
                return InputResult::Chunked;
            }
            Parsed::NeedBody { end, expects_continue } => {
                self.whole_bytes = Some(end);
                if expects_continue && !core::mem::replace(&mut self.has_asked_for_body, true) {
                    http::ask_for_body(&mut self.output);
                }
                return InputResult::Partial;
            }
            Parsed::Refused(status) => return InputResult::Refused(status),
            Parsed::Request(request, end) => (request, end),
        };
        (self.has_asked_for_body, self.parsed_bytes, self.whole_bytes) = (false, 0, None);
        (self.is_last, self.is_head) = (request.is_last, request.is_head);
        self.challenges = !request.origin.is_script;
        self.format = Format {
            is_tagged: request.verb == Verb::Get && self.is_over_network(),
            client_copies: request.origin.client_copy.map(Into::into),
            accepts_gzip: request.accepts_gzip && self.is_over_network(),
        };
        let (left, expects_continue) = match (&self.chunked, request.body_bytes) {
            (Some(chunked), None) => {
                let (decoder, bytes) = (chunked.decoder.clone(), chunked.content_bytes);
                // The client was told to send the body when its head was complete.
                (BodyLeft::Chunked { decoder, content_bytes: bytes, decoded_bytes: bytes }, false)
            }
            (_, bytes) => {
                let left = bytes.map_or(0, |bytes| bytes - request.body.len());
                (BodyLeft::Bytes(left), request.expects_continue && left > 0)
            }
        };
        let answer = match self.caller {
            Caller::Operator => Ok(table::answer(&request, context, Interface::Socket, None)),
            Caller::Network { from_loopback } => {
                gate::handle(&request, context, from_loopback, self.is_login_right.take())
            }
            Caller::Scraper => Ok(gate::metrics_alone(&request, context)),
        };
        match answer {
            Ok(answer) => InputResult::Answered(answer, end, left, expects_continue),
            Err(check) => InputResult::Checking(check),
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
            Answer::Now(status, body) => self.answer(status, body),
            Answer::Verbs(status, verbs) => {
                let head = self.head(status);
                let more = format!("allow: {verbs}\r\n{}", head.more);
                http::begin(&mut self.output, Head { more: &more, ..head }, Some(0));
                self.finish();
            }
            Answer::Durable(batch, status, body) => self.state = State::Waiting(batch, status, body),
            Answer::Created(batch, location) => {
                self.location = Some(location);
                self.state = State::Waiting(batch, Status::Created, Vec::new());
            }
            Answer::Changed(status, body) => {
                self.state = State::Changing(context.pending_writes.entries_appended(), status, body);
            }
            Answer::ChangedRedirect(location) => {
                self.location = Some(location);
                self.state =
                    State::Changing(context.pending_writes.entries_appended(), Status::SeeOther, Vec::new());
            }
            Answer::PinStore(batch) => self.state = State::Holding(batch),
            Answer::List(listing) if listing.is_gathered() => self.begin_list(listing),
            Answer::List(listing) => self.state = State::Listing(listing),
            Answer::Metrics(first, rows) => {
                self.begin_chunks(metrics::MEDIA);
                if core::mem::take(&mut self.is_head) {
                    return self.finish();
                }
                put_chunk(&mut self.output, &mut self.gzip, &first, false);
                self.state = State::Exposing(rows);
            }
            Answer::Browse(browse) => self.state = State::Browsing(browse),
            Answer::Move(moving) => self.state = State::Moving(moving),
            Answer::Upload(upload) => self.state = State::Decoding(upload),
            Answer::Get(get) => self.state = State::Getting(Box::new(Getting::new(*get))),
            Answer::Page(page) => {
                http::begin(&mut self.output, gate::page_head(page, Status::Ok), Some(page.bytes.len()));
                match self.is_head {
                    true => self.finish(),
                    false => self.state = State::Sending(page.bytes),
                }
            }
            // The client must not send anything before the response.
            Answer::Upgrade(_) if !self.input.is_empty() => {
                self.is_last = true;
                let why = "no data must follow the request before the response to the upgrade";
                self.answer(Status::BadRequest, problem("bad_request", why));
            }
            Answer::Upgrade(response) => self.state = State::Upgrading(response),
            Answer::KnownPage(page) => {
                http::begin(&mut self.output, gate::page_head(page, Status::NotModified), Some(0));
                self.finish();
            }
        }
    }

    /// Begins the answer with a list whose order is known. A list over the network is collected first, for its
    /// entity tag.
    fn begin_list(&mut self, listing: Box<Listing>) {
        if self.format.is_tagged && !self.is_head {
            self.state = State::Collecting(listing, Vec::new());
            return;
        }
        self.begin_chunks(http::JSON);
        match core::mem::take(&mut self.is_head) {
            true => self.finish(),
            false => self.state = State::Listing(listing),
        }
    }

    /// Begins an answer whose length is not known. It is compressed if the client accepts that.
    fn begin_chunks(&mut self, media: &'static str) {
        let head = self.head(Status::Ok);
        self.gzip = self.format.accepts_gzip.then(GzipStream::default);
        let more = if self.gzip.is_some() { compressed_lines(head.more) } else { head.more.into() };
        http::begin(&mut self.output, Head { media, more: &more, ..head }, None);
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
            self.begin_chunks(http::JSON);
        }
        let is_done = progress == Progress::Done;
        put_chunk(&mut self.output, &mut self.gzip, &piece, is_done);
        if is_done {
            self.finish();
        }
    }

    fn answer(&mut self, status: Status, body: Vec<u8>) {
        let head = self.head(status);
        let tag = (self.format.is_tagged && status == Status::Ok).then(|| tag_of(&body));
        if let Some((tag, copies)) = tag.zip(self.format.client_copies.as_deref())
            && http::has_tag(copies, tag)
        {
            http::begin(&mut self.output, gate::unchanged_head(tag), Some(0));
            return self.finish();
        }
        let is_told = matches!(status, Status::Created | Status::SeeOther);
        let mut more = match self.location.take().filter(|_| is_told) {
            Some(place) => format!("{}location: {place}\r\n", head.more),
            None => head.more.to_string(),
        };
        let mut body = body;
        let is_compressed = self.format.accepts_gzip && body.len() >= COMPRESSED_BYTES_MIN;
        if is_compressed {
            more = compressed_lines(&more);
            if body.len() > PIECE_BYTES_MAX && !self.is_head {
                http::begin(&mut self.output, Head { more: &more, tag, ..head }, None);
                self.gzip = Some(GzipStream::default());
                self.state = State::Writing(PendingBody { bytes: body, written: 0 }, None);
                return;
            }
            let mut compressed = Vec::new();
            GzipStream::default().end(&mut compressed, &body);
            body = compressed;
        }
        http::begin(&mut self.output, Head { more: &more, tag, ..head }, Some(body.len()));
        if !core::mem::take(&mut self.is_head) {
            self.output.extend_from_slice(&body);
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
                Err((status, error, why)) => self.answer(status, problem(error, &why)),
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
        let mut write = |out: &mut Vec<u8>, limits| listing.write(context.context(), out, limits);
        if write_chunk(&mut self.output, &mut self.written, &mut self.gzip, &mut write) {
            self.finish();
        }
    }

    /// Collects further rows of a list. A list that fits is answered as a whole. Otherwise the rows follow in chunks.
    fn collect(&mut self, context: &RequestContext<'_>) {
        let State::Collecting(listing, body) = &mut self.state else { return };
        let before = body.len();
        let limits = OutputLimits {
            enough: before + OUTPUT_BYTES_ENOUGH,
            bytes_max: COLLECTED_BYTES_MAX,
            is_output_empty: body.is_empty(),
        };
        let is_done = listing.write(context.context(), body, limits);
        if !is_done && body.len() > before && body.len() + OUTPUT_BYTES_ENOUGH <= COLLECTED_BYTES_MAX {
            return;
        }
        let State::Collecting(listing, body) = core::mem::replace(&mut self.state, State::Reading) else {
            return;
        };
        if is_done {
            return self.answer(Status::Ok, body);
        }
        self.begin_chunks(http::JSON);
        self.state = State::Writing(PendingBody { bytes: body, written: 0 }, Some(listing));
    }

    /// Appends to the output as much of a file as it has room for.
    fn send_piece(&mut self) {
        let State::Sending(rest) = &mut self.state else { return };
        let room = OUTPUT_BYTES_ENOUGH.saturating_sub(self.output.len() - self.written);
        let (piece, left) = rest.split_at(rest.len().min(room));
        self.output.extend_from_slice(piece);
        *rest = left;
        if left.is_empty() {
            self.finish();
        }
    }

    /// Writes the next piece of a body, when the output before it has been written.
    fn write_piece(&mut self) {
        if !self.output().is_empty() {
            return;
        }
        let State::Writing(body, listing) = &mut self.state else { return };
        let rest = &body.bytes[body.written..];
        let piece = &rest[..rest.len().min(PIECE_BYTES_MAX)];
        body.written += piece.len();
        let is_last = body.written == body.bytes.len();
        put_chunk(&mut self.output, &mut self.gzip, piece, is_last && listing.is_none());
        if is_last {
            match listing.take() {
                Some(listing) => self.state = State::Listing(listing),
                None => self.finish(),
            }
        }
    }

    fn expose(&mut self, context: &RequestContext<'_>) {
        let State::Exposing(rows) = &mut self.state else { return };
        if self.output.len() - self.written >= OUTPUT_BYTES_ENOUGH {
            return;
        }
        let mut write = |out: &mut Vec<u8>, limits| rows.write(context.context(), out, limits);
        if write_chunk(&mut self.output, &mut self.written, &mut self.gzip, &mut write) {
            self.finish();
        }
    }
}

/// Returns whether an empty line ends here, after which a body begins.
fn ends_head(bytes: &[u8]) -> bool {
    let has = |end: &[u8]| bytes.windows(end.len()).any(|part| part == end);
    has(b"\n\r\n") || has(b"\n\n")
}

/// Returns the header lines of a compressed answer.
fn compressed_lines(more: &str) -> String {
    format!("{more}content-encoding: gzip\r\n")
}

/// Appends a piece of the answer as a chunk, compressed if the answer is. The last one ends the answer.
fn put_chunk(output: &mut Vec<u8>, gzip: &mut Option<GzipStream>, piece: &[u8], is_last: bool) {
    let at = http::open_chunk(output);
    match gzip {
        Some(_) if is_last => gzip.take().unwrap_or_default().end(output, piece),
        Some(stream) if !piece.is_empty() => stream.append(output, piece),
        Some(_) => {}
        None => output.extend_from_slice(piece),
    }
    http::close_chunk(output, at);
    if is_last {
        http::end_chunks(output);
    }
}

/// Appends rows to the output. Returns whether they were the last.
///
/// Rows of a compressed answer wait until the output before them has been written.
fn write_chunk(
    output: &mut Vec<u8>,
    written: &mut usize,
    gzip: &mut Option<GzipStream>,
    write: &mut dyn FnMut(&mut Vec<u8>, OutputLimits) -> bool,
) -> bool {
    output.drain(..core::mem::take(written));
    let is_output_empty = output.is_empty();
    let bytes_max = OUTPUT_BYTES_MAX - http::CHUNK_OVERHEAD_BYTES;
    let limits = OutputLimits { enough: OUTPUT_BYTES_ENOUGH, bytes_max, is_output_empty };
    if gzip.is_some() {
        if !is_output_empty {
            return false;
        }
        let mut rows = Vec::new();
        let is_done = write(&mut rows, limits);
        put_chunk(output, gzip, &rows, is_done);
        return is_done;
    }
    let at = http::open_chunk(output);
    let is_done = write(output, limits);
    http::close_chunk(output, at);
    if is_done {
        http::end_chunks(output);
    }
    is_done
}

#[cfg(test)]
mod tests {
    // Tests sessions with a broker that has queues, without sockets.

    use std::collections::BTreeMap;

    use serde_json::Value;

    use super::*;
    use crate::json::Json;
    use crate::listing::Filter;
    use crate::listing::{Ordered, RowProbe};
    use crate::request::Endurance;
    use crate::request::{
        BridgeLinkView, BridgeViews, Machine, Orders, Process, SocketView, Sockets, StoreView,
    };
    use crate::request::{ReadContext, RecordedEvents};
    use crate::samples::Samples;
    use crate::web_page::Tokens;
    use leveret_broker::{Broker, Context, Work};
    use leveret_core::command::ConnectionId;
    use leveret_core::flight::Event;
    use leveret_core::limits::Limits;
    use leveret_core::mem::{MessageLimits, Messages};
    use leveret_storage::PendingWrites;

    struct NoSockets;

    impl Sockets for NoSockets {
        fn places(&self) -> usize {
            0
        }

        fn at(&self, _: ConnectionId) -> Option<SocketView<'_>> {
            None
        }

        fn unconfirmed(&self, _: ConnectionId, _: u16) -> u64 {
            0
        }
    }

    impl RecordedEvents for NoSockets {
        fn after(&self, _: u32, _: usize) -> Result<Vec<Event>, &str> {
            Err(leveret_core::flight::NOT_CONFIGURED)
        }
    }

    impl BridgeViews for NoSockets {
        fn places(&self) -> usize {
            0
        }

        fn places_max(&self) -> usize {
            0
        }

        fn at(&self, _: usize) -> Option<BridgeLinkView<'_>> {
            None
        }

        fn is_known(&self, _: &str) -> bool {
            false
        }
    }

    struct Stage {
        broker: Broker,
        pending_writes: PendingWrites,
        work: Work,
        messages: Messages,
        process: Process,
        orders: Orders,
        tokens: Tokens,
        samples: Samples,
    }

    impl Stage {
        fn new() -> Self {
            let limits = Limits { queues_max: 2000, ..Limits::default() };
            Self {
                broker: Broker::new(&limits, Box::new(|bytes| bytes.fill(7))).unwrap(),
                pending_writes: PendingWrites::new(64),
                work: Work::default(),
                messages: Messages::new(MessageLimits {
                    messages_max: 64,
                    body_bytes_max: 1 << 20,
                    assembly_bytes_max: 1 << 19,
                }),
                process: Process {
                    hosts: Vec::new(),
                    mqtt_websocket_origins: None,
                    node: String::new(),
                    machine: Machine::default(),
                    environment: String::new(),
                    data_dir: String::new(),
                    configuration: String::new(),
                    listeners: Vec::new(),
                    product: (String::new(), String::new()),
                    memory_limit_bytes: 0,
                    uptime_ms: 0,
                    connections: 0,
                    handshakes_evicted: 0,
                    dropped_messages: 0,
                    refusing_connections: None,
                    message_size_max: 1 << 20,
                    connections_opened: 0,
                    confirmed: 0,
                    has_refused_reads: false,
                    certificates_end: None,
                    is_tls_unavailable: false,
                    has_unread_definitions: false,
                    waiting_publishers: 0,
                    waiters: leveret_queues::WaitingByKind::new(),
                    disk_limit_bytes: 0,
                    store: StoreView::default(),
                    endurance: Endurance::default(),
                    memory: Vec::new(),
                },
                orders: Orders::default(),
                tokens: Tokens::default(),
                samples: Samples::default(),
            }
        }

        fn declare(&mut self, queue: &str, arguments: &[u8]) {
            let (durable, exclusive, auto_delete) = (false, false, false);
            let declaration =
                leveret_broker::QueueDeclaration { queue, durable, exclusive, auto_delete, arguments };
            let mut context = Context::new(&mut self.pending_writes, &mut self.messages, &mut self.work);
            self.broker.operator_declare_queue(&mut context, "/", &declaration).unwrap();
        }

        fn step(&mut self, connection: &mut OperatorSession) {
            let mut context = RequestContext {
                broker: &mut self.broker,
                pending_writes: &mut self.pending_writes,
                messages: &mut self.messages,
                work: &mut self.work,
                sockets: &NoSockets,
                bridges: &NoSockets,
                process: &self.process,
                files: None,
                orders: &mut self.orders,
                tokens: &mut self.tokens,
                samples: &self.samples,
                events: &NoSockets,
            };
            connection.handle(&mut context);
            connection.fill(&mut context);
        }
    }

    /// Returns the body of a chunked response.
    fn unchunked(answer: &[u8]) -> Vec<u8> {
        let start = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
        let (mut rest, mut body) = (&answer[start..], Vec::new());
        loop {
            let end = rest.windows(2).position(|bytes| bytes == b"\r\n").unwrap();
            let length = usize::from_str_radix(core::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
            body.extend_from_slice(&rest[end + 2..end + 2 + length]);
            rest = &rest[end + 4 + length..];
            if length == 0 {
                assert!(rest.is_empty());
                return body;
            }
        }
    }

    const LIST: &[u8] = b"GET /api/queues/%2F?columns=name,arguments HTTP/1.1\r\n\r\n";

    #[test]
    fn a_listing_never_takes_more_than_its_room_and_shows_what_stays_once() {
        let mut stage = Stage::new();
        for number in 0..1500 {
            stage.declare(&format!("stays-{number}-{}", "x".repeat(100)), &[]);
        }
        let mut connection = OperatorSession::default();
        connection.take(LIST);
        let (mut answer, mut round) = (Vec::new(), 0);
        loop {
            stage.step(&mut connection);
            assert!(connection.output().len() <= OUTPUT_BYTES_MAX, "{}", connection.output().len());
            // The client reads a little now and then, while queues are created and deleted.
            let taken = connection.output().len().min(if round % 3 == 0 { 0 } else { 5000 });
            answer.extend_from_slice(&connection.output()[..taken]);
            connection.note_written(taken);
            round += 1;
            if round % 5 == 0 {
                stage.declare(&format!("comes-{round}"), &[]);
            } else if round % 5 == 3 && round > 5 {
                let name = format!("comes-{}", round - 3);
                stage
                    .broker
                    .operator_delete_queue(
                        &mut Context::new(&mut stage.pending_writes, &mut stage.messages, &mut stage.work),
                        "/",
                        &name,
                        leveret_broker::DeleteIf::default(),
                    )
                    .unwrap();
            }
            if !connection.has_request() && !connection.has_output() {
                break;
            }
        }
        let rows: Vec<Value> = serde_json::from_slice(&unchunked(&answer)).unwrap();
        let mut seen = BTreeMap::new();
        for row in &rows {
            *seen.entry(row["name"].as_str().unwrap().to_string()).or_insert(0) += 1;
        }
        assert!(seen.values().all(|times| *times == 1));
        assert_eq!(seen.keys().filter(|name| name.starts_with("stays-")).count(), 1500);
        assert!(connection.input_capacity_bytes() == REQUEST_BYTES_MAX, "and it listens again");
    }

    #[test]
    fn arguments_that_fit_nowhere_are_told_to_be_so() {
        let mut stage = Stage::new();
        let mut arguments = b"\x01aS".to_vec();
        arguments.extend_from_slice(&(70_000_u32).to_be_bytes());
        arguments.resize(arguments.len() + 70_000, b'x');
        stage.declare("before", &[]);
        stage.declare("large", &arguments);
        stage.declare("after", &[]);
        let mut connection = OperatorSession::default();
        connection.take(LIST);
        let mut answer = Vec::new();
        while connection.has_request() || connection.has_output() {
            stage.step(&mut connection);
            answer.extend_from_slice(connection.output());
            connection.note_written(connection.output().len());
        }
        let rows: Vec<Value> = serde_json::from_slice(&unchunked(&answer)).unwrap();
        let shown: Vec<&Value> = rows.iter().map(|row| &row["arguments"]).collect();
        assert_eq!(shown, [&serde_json::json!({}), &"too large to show".into(), &serde_json::json!({})]);
    }

    #[test]
    fn requests_are_answered_in_their_order_one_at_a_time() {
        let mut stage = Stage::new();
        let mut connection = OperatorSession::default();
        connection.take(
            b"GET /api/vhosts?columns=name HTTP/1.1\r\n\r\nDELETE /api/queues/%2F/none HTTP/1.1\r\n\r\nGET",
        );
        stage.step(&mut connection);
        let first = String::from_utf8_lossy(connection.output()).into_owned();
        assert!(first.contains("200 OK") && !first.contains("404"), "one after the other: {first}");
        let mut answer = Vec::new();
        while connection.has_request() || connection.has_output() {
            answer.extend_from_slice(connection.output());
            connection.note_written(connection.output().len());
            stage.step(&mut connection);
        }
        let text = String::from_utf8(answer).unwrap();
        let (first, second) = (text.find("HTTP/1.1 200").unwrap(), text.find("HTTP/1.1 404").unwrap());
        assert!(first < second && text.contains("{\"name\":\"/\"}"), "{text}");
        assert_eq!(
            connection.input_capacity_bytes(),
            REQUEST_BYTES_MAX - 3,
            "the beginning of the third waits"
        );
        connection.take(b" nonsense\r\n\r\n");
        stage.step(&mut connection);
        assert!(connection.output().starts_with(b"HTTP/1.1 400"));
        connection.note_written(connection.output().len());
        assert!(connection.is_ending() && connection.output().is_empty());
    }

    /// The control socket refuses unknown columns instead of showing all columns.
    #[test]
    fn unknown_columns_are_refused_however_they_are_written() {
        for columns in ["nosuch", "name,nosuch", "%zz", "name%"] {
            let mut stage = Stage::new();
            let mut connection = OperatorSession::default();
            connection.take(format!("GET /api/queues?columns={columns} HTTP/1.1\r\n\r\n").as_bytes());
            stage.step(&mut connection);
            let answer = String::from_utf8_lossy(connection.output()).into_owned();
            assert!(
                answer.starts_with("HTTP/1.1 400") && answer.contains("not supported"),
                "{columns}: {answer}"
            );
        }
    }

    thread_local! {
        static LOOKED: core::cell::Cell<usize> = const { core::cell::Cell::new(0) };
    }

    const ALIKE: usize = 3000;

    fn name_like_others(place: usize) -> String {
        format!(
            "{}{:04}{}",
            "same ".repeat(9),
            place * 7 % ALIKE,
            if place.is_multiple_of(2) { "" } else { "\"" }
        )
    }

    #[test]
    fn names_with_equal_beginnings_are_sorted_in_steps() {
        let probe = RowProbe {
            cell: |_, _, place, _, out| {
                LOOKED.set(LOOKED.get() + 1);
                Json::new(out, 4096).text(&name_like_others(place));
                true
            },
            name: |_, _| None,
        };
        for reverse in ["false", "true"] {
            let text = format!("GET /api/queues?sort=name&sort_reverse={reverse} HTTP/1.1\r\n\r\n");
            let Parsed::Request(request, _) = http::parse(text.as_bytes(), 1024, None) else { panic!() };
            let mut ordered = Ordered::from_query(&request, true, None).unwrap().unwrap();
            let stage = Stage::new();
            let context = ReadContext {
                broker: &stage.broker,
                sockets: &NoSockets,
                bridges: &NoSockets,
                samples: &stage.samples,
                node: "",
                time_ms: 0,
            };
            (0..ALIKE).for_each(|place| _ = ordered.take(probe, &Filter::default(), context, 0, place));
            let mut steps = 0;
            loop {
                LOOKED.set(0);
                let is_done = ordered.put_in_order(&|_| probe, &Filter::default(), context, 100);
                assert!(LOOKED.get() <= 100, "a step looks at no more than it may");
                steps += 1;
                if is_done {
                    break;
                }
            }
            assert!(steps > ALIKE / 100, "it took {steps}");
            ordered.begin().unwrap();
            let mut found = Vec::new();
            while let Some((_, place)) = ordered.next() {
                found.push(name_like_others(place));
                ordered.pass();
            }
            let mut wanted: Vec<_> = (0..ALIKE).map(name_like_others).collect();
            wanted.sort_by(|a, b| if reverse == "true" { b.cmp(a) } else { a.cmp(b) });
            assert_eq!(found, wanted);
        }
    }

    /// A request that arrives byte by byte is parsed a few times, not once for each byte.
    #[test]
    fn a_request_in_small_parts_is_parsed_a_few_times() {
        let long = "x".repeat(40_000);
        for (request, looks_max) in [
            (format!("GET /api/none HTTP/1.1\r\nHost: localhost\r\nX: {long}\r\n\r\n"), 20),
            (format!("PUT /api/none HTTP/1.1\r\nHost: localhost\r\nContent-Length: 40000\r\n\r\n{long}"), 20),
            ("\r\n".repeat(20_000) + "GET /api/none HTTP/1.1\nHost: localhost\n\n", 20),
            (format!("GET /api/none HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(31)), 20),
        ] {
            let mut stage = Stage::new();
            let mut session = OperatorSession::for_network(true);
            let mut parses = 0;
            for octet in request.bytes() {
                assert!(!session.has_output(), "an answer before the end");
                session.take(&[octet]);
                parses += u32::from(session.has_request());
                stage.step(&mut session);
            }
            assert!(parses <= looks_max, "{parses} looks at {:?}", &request[..40]);
            let output = String::from_utf8_lossy(session.output()).into_owned();
            assert!(output.starts_with("HTTP/1.1 4"), "{output}");
        }
    }
}
