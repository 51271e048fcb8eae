//! One channel of a link. Each rule has its own channel.
//!
//! Methods that open, set up and close a channel are [`Request`]s. They are sent one after the other; one that has a
//! reply must be answered before the next is sent.
//!
//! ```text
//!          channel.open sent          Channel::close
//! Closed ────────────────────→ Open ──────────────────→ Closing
//!   ▲                           │                          │
//!   ├── channel.close received ─┘                          │
//!   └── channel.close-ok received, or channel.close ───────┘
//!       before the own one was sent
//! ```
//!
//! # Invariants
//! - The fields alone determine the next method. So a method for which the output buffer has no space is simply tried
//!   again later.
//! - A frame on a closed channel ends the link. While a channel is being closed, its input causes no event, but
//!   frames out of order still end the link.
//! - After `basic.deliver` or `basic.return` come one header and a body of the length in the header. Anything else ends
//!   the link.

use std::collections::VecDeque;

use leveret_amqp::{ContentHeader, Method, Table};
use leveret_core::time::Deadline;

use super::cause::Cause;
use super::client::{Event, link_lost, unexpected_method};

/// Class and method number of `basic.publish`.
const BASIC_PUBLISH: (u16, u16) = (60, 40);
/// The reply code for a queue that does not exist.
const NOT_FOUND: u16 = 404;

/// A method to be sent on a channel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// `channel.open`.
    Open,
    /// Finds a queue by a passive `queue.declare`. If the queue does not exist and there are arguments, even empty ones, it
    /// is declared with them: the upstream has closed the channel, so it is opened again first.
    FindQueue(String, Option<Vec<u8>>),
    /// Declares a durable queue with these arguments.
    DeclareQueue(String, Vec<u8>),
    /// Declares the exclusive queue of the channel, which is deleted with the connection. The upstream chooses its name.
    DeclareExclusive,
    /// Binds that queue to this exchange with this routing key.
    BindExclusive(String, String),
    /// `confirm.select`.
    Confirm,
    /// `basic.qos` with this prefetch count. It applies to consumers that begin later.
    Prefetch(u16),
    /// `basic.consume` of a queue with these arguments. Without `has_reply`, the method has `no-wait`.
    Consume {
        /// Name of the queue; `None` for the exclusive queue of the channel.
        queue: Option<String>,
        /// Encoded arguments, without their length.
        arguments: Vec<u8>,
        /// Whether the upstream answers.
        has_reply: bool,
    },
    /// `basic.cancel`. Without `has_reply`, the method has `no-wait`.
    Cancel {
        /// Whether the upstream answers.
        has_reply: bool,
    },
    /// `channel.close`; see [`super::Client::close_channel`].
    Close,
}

impl Request {
    /// Returns the method of this request. `consumer_tag` is the tag of the channel's consumer, and `exclusive_queue` the
    /// name of its exclusive queue.
    fn method<'m>(&'m self, consumer_tag: &'m str, exclusive_queue: &'m str) -> Method<'m> {
        let declare = |queue, arguments, (passive, durable, exclusive)| Method::QueueDeclare {
            queue,
            passive,
            durable,
            exclusive,
            auto_delete: false,
            no_wait: false,
            arguments,
        };
        match self {
            Self::Open => Method::ChannelOpen {},
            Self::FindQueue(queue, _) => declare(queue, Table::EMPTY, (true, false, false)),
            Self::DeclareQueue(queue, arguments) => {
                declare(queue, Table::trusted(arguments), (false, true, false))
            }
            Self::DeclareExclusive => declare("", Table::EMPTY, (false, false, true)),
            Self::BindExclusive(exchange, routing_key) => {
                let (queue, no_wait, arguments) = (exclusive_queue, false, Table::EMPTY);
                Method::QueueBind { queue, exchange, routing_key, no_wait, arguments }
            }
            Self::Confirm => Method::ConfirmSelect { no_wait: false },
            Self::Prefetch(count) => {
                Method::BasicQos { prefetch_size: 0, prefetch_count: *count, global: false }
            }
            Self::Consume { queue, arguments, has_reply } => Method::BasicConsume {
                queue: queue.as_deref().unwrap_or(exclusive_queue),
                consumer_tag,
                no_local: false,
                no_ack: false,
                exclusive: false,
                no_wait: !has_reply,
                arguments: Table::trusted(arguments),
            },
            Self::Cancel { has_reply } => Method::BasicCancel { consumer_tag, no_wait: !has_reply },
            Self::Close => {
                Method::ChannelClose { reply_code: 200, reply_text: "Goodbye", class_id: 0, method_id: 0 }
            }
        }
    }

    /// Returns whether the upstream answers this request.
    const fn has_reply(&self) -> bool {
        !matches!(self, Self::Consume { has_reply: false, .. } | Self::Cancel { has_reply: false })
    }

    /// Returns whether `method` is the answer to this request.
    fn is_answered_by(&self, method: &Method<'_>, tag: &str) -> bool {
        match *method {
            Method::ChannelOpenOk {} => *self == Self::Open,
            Method::QueueDeclareOk { .. } => {
                matches!(self, Self::FindQueue(..) | Self::DeclareQueue(..) | Self::DeclareExclusive)
            }
            Method::QueueBindOk {} => matches!(self, Self::BindExclusive(..)),
            Method::ConfirmSelectOk {} => *self == Self::Confirm,
            Method::BasicQosOk {} => matches!(self, Self::Prefetch(_)),
            Method::BasicConsumeOk { consumer_tag } => {
                matches!(self, Self::Consume { .. }) && consumer_tag == tag
            }
            Method::BasicCancelOk { consumer_tag } => {
                matches!(self, Self::Cancel { .. }) && consumer_tag == tag
            }
            _ => false,
        }
    }
}

/// The state of a channel; see the module's diagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum ChannelState {
    #[default]
    Closed,
    Open,
    Closing,
}

/// The part of a delivered or returned message that the upstream sends next.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum ArrivingContent {
    /// No header or body: a method comes next.
    #[default]
    None,
    /// The header comes next.
    Header,
    /// This number of bytes of the body is still to come.
    Body(u64),
}

impl ArrivingContent {
    /// Returns the state with `left` bytes of the body still to come.
    const fn of_body(left: u64) -> Self {
        if left == 0 { Self::None } else { Self::Body(left) }
    }
}

/// One channel.
#[derive(Default, Debug)]
pub(super) struct Channel {
    state: ChannelState,
    /// The methods to be sent. The first may have been sent already.
    requests: VecDeque<Request>,
    /// Whether the first request was sent and its answer is awaited.
    is_awaiting: bool,
    /// When the upstream must have answered the first request, or sent something else on the channel.
    reply_deadline: Deadline,
    /// Whether published messages are confirmed.
    is_confirming: bool,
    /// Whether messages may be delivered.
    is_consuming: bool,
    /// Name of the exclusive queue.
    exclusive_queue: String,
    /// Number of messages in the declared queue, as reported by `queue.declare-ok`.
    message_count: u32,
    content: ArrivingContent,
    /// The reply code of the returned message whose header and body are arriving; `None` for a delivered message.
    return_code: Option<u16>,
    /// The `active` value of a received `channel.flow` that is not answered yet.
    flow_to_answer: Option<bool>,
    /// Whether the upstream has paused publishing by `channel.flow`.
    is_paused: bool,
    /// Whether only a part of a published message has been written. Until it is complete, `channel.flow-ok` must wait.
    is_in_message: bool,
    /// Whether a `channel.close` of the upstream is not answered yet.
    owes_close_ok: bool,
}

impl Channel {
    /// Returns whether the channel is closed on both sides, and will not be opened.
    pub(super) fn is_closed(&self) -> bool {
        self.state == ChannelState::Closed && self.requests.is_empty() && !self.owes_close_ok
    }

    pub(super) fn is_in_content(&self) -> bool {
        self.content != ArrivingContent::None
    }

    pub(super) const fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Records whether only a part of the current message has been written. Returns whether the message is complete and
    /// an answer to `channel.flow` has waited for that.
    pub(super) fn note_message(&mut self, is_incomplete: bool) -> bool {
        self.is_in_message = is_incomplete && self.state == ChannelState::Open;
        !is_incomplete && self.flow_to_answer.is_some()
    }

    /// Returns when the upstream's answers must have arrived; never if no answer is awaited.
    pub(super) fn deadline(&self) -> Deadline {
        if self.requests.is_empty() { Deadline::NEVER } else { self.reply_deadline }
    }

    /// Extends the time for answers to requests, because the upstream has sent something on this channel: an answer comes
    /// behind the messages that are on their way.
    pub(super) const fn note_input(&mut self, reply_deadline: Deadline) {
        self.reply_deadline = reply_deadline;
    }

    /// Replaces all requests that were not sent.
    pub(super) fn request(&mut self, reply_deadline: Deadline, requests: impl IntoIterator<Item = Request>) {
        self.requests.truncate(self.is_awaiting.into());
        self.requests.extend(requests);
        self.reply_deadline = reply_deadline;
    }

    /// Closes the channel from this side.
    pub(super) fn close(&mut self, reply_deadline: Deadline) {
        match self.state {
            ChannelState::Closing => {}
            ChannelState::Closed => self.requests.clear(),
            ChannelState::Open => {
                (self.state, self.is_awaiting, self.flow_to_answer) = (ChannelState::Closing, false, None);
                self.request(reply_deadline, [Request::Close]);
            }
        }
    }

    /// Passes the method to be sent next to `send`, if there is one. `tag` is the consumer tag. Returns whether the
    /// method was sent.
    pub(super) fn send_next(&mut self, tag: &str, send: impl FnOnce(&Method<'_>) -> bool) -> bool {
        if self.owes_close_ok {
            self.owes_close_ok = !send(&Method::ChannelCloseOk {});
            return !self.owes_close_ok;
        }
        if let Some(active) = self.flow_to_answer.filter(|_| !self.is_in_message) {
            let is_sent = send(&Method::ChannelFlowOk { active });
            self.flow_to_answer = self.flow_to_answer.filter(|_| !is_sent);
            return is_sent;
        }
        let Some(request) = self.requests.front().filter(|_| !self.is_awaiting) else { return false };
        if !send(&request.method(tag, &self.exclusive_queue)) {
            return false;
        }
        match request {
            Request::Open => self.state = ChannelState::Open,
            Request::Consume { has_reply: false, .. } => self.is_consuming = true,
            _ => {}
        }
        self.is_awaiting = request.has_reply();
        if !self.is_awaiting {
            self.requests.pop_front();
        }
        true
    }

    /// Handles a method that the upstream sent on this channel. `rule` is the index of the channel's rule and `tag` the
    /// consumer tag.
    pub(super) fn handle_method<'i>(
        &mut self,
        rule: usize,
        method: &Method<'i>,
        tag: &str,
    ) -> Option<Event<'i>> {
        match (self.state, method) {
            (ChannelState::Closed, _) => return Some(unexpected_method(method)),
            (ChannelState::Closing, _) => return self.handle_while_closing(method),
            (ChannelState::Open, Method::ChannelClose { reply_code, reply_text, class_id, method_id }) => {
                let is_publish_error = (*class_id, *method_id) == BASIC_PUBLISH;
                return self.handle_close(rule, *reply_code, reply_text, is_publish_error);
            }
            (ChannelState::Open, _) => {}
        }
        if self.is_in_content() {
            return Some(unexpected_method(method));
        }
        if let Some(request) = self.requests.front().filter(|_| self.is_awaiting)
            && request.is_answered_by(method, tag)
        {
            return self.handle_reply(rule, method);
        }
        match *method {
            Method::BasicAck { delivery_tag: number, multiple } if self.is_confirming => {
                Some(Event::Confirm { rule, number, multiple, is_accepted: true })
            }
            Method::BasicNack { delivery_tag: number, multiple, .. } if self.is_confirming => {
                Some(Event::Confirm { rule, number, multiple, is_accepted: false })
            }
            Method::BasicReturn { reply_code, .. } if self.is_confirming => {
                // Only the header, which comes next, identifies the returned message.
                (self.content, self.return_code) = (ArrivingContent::Header, Some(reply_code));
                None
            }
            Method::ChannelFlow { active } => {
                let was_paused = core::mem::replace(&mut self.is_paused, !active);
                self.flow_to_answer = Some(active);
                (active && was_paused).then_some(Event::Resumed(rule))
            }
            Method::BasicDeliver { consumer_tag, delivery_tag, redelivered, exchange, routing_key }
                if self.is_consuming && consumer_tag == tag =>
            {
                (self.content, self.return_code) = (ArrivingContent::Header, None);
                Some(Event::Deliver { rule, tag: delivery_tag, redelivered, exchange, key: routing_key })
            }
            Method::BasicCancel { consumer_tag, .. } if self.is_consuming && consumer_tag == tag => {
                Some(Event::QueueGone(rule))
            }
            _ => Some(unexpected_method(method)),
        }
    }

    /// Handles the answer to the first request. Returns an event if it was the last request.
    fn handle_reply<'i>(&mut self, rule: usize, method: &Method<'i>) -> Option<Event<'i>> {
        self.is_awaiting = false;
        match (self.requests.pop_front(), method) {
            (Some(Request::Confirm), _) => self.is_confirming = true,
            (Some(Request::Consume { .. }), _) => self.is_consuming = true,
            (Some(Request::Cancel { .. }), _) => self.is_consuming = false,
            (Some(Request::DeclareExclusive), Method::QueueDeclareOk { queue, .. }) => {
                self.exclusive_queue = queue.to_string();
            }
            (_, Method::QueueDeclareOk { message_count, .. }) => self.message_count = *message_count,
            _ => {}
        }
        self.requests.is_empty().then_some(Event::Answered { rule, depth: self.message_count })
    }

    /// Handles a `channel.close` of the upstream. There is no event if the channel is opened again to declare a missing
    /// queue.
    fn handle_close<'i>(
        &mut self,
        rule: usize,
        code: u16,
        text: &str,
        is_publish_error: bool,
    ) -> Option<Event<'i>> {
        let mut requests = core::mem::take(&mut self.requests);
        let was_awaiting = self.is_awaiting;
        *self = Self { owes_close_ok: true, reply_deadline: self.reply_deadline, ..Self::default() };
        if was_awaiting
            && code == NOT_FOUND
            && let Some(Request::FindQueue(queue, Some(arguments))) = requests.front_mut()
        {
            requests[0] = Request::DeclareQueue(core::mem::take(queue), core::mem::take(arguments));
            requests.push_front(Request::Open);
            self.requests = requests;
            return None;
        }
        let cause = Cause::new(format_args!("{code} {text}"));
        Some(Event::Closed { rule, code, is_publish_error, cause })
    }

    /// Handles a method that arrives while the bridge closes the channel: only the end of the channel matters.
    fn handle_while_closing<'i>(&mut self, method: &Method<'i>) -> Option<Event<'i>> {
        match method {
            // The two `channel.close` have crossed. The specification requires an answer to the upstream's one, too.
            Method::ChannelClose { .. } if self.is_awaiting => self.owes_close_ok = true,
            // The bridge's own `channel.close` was not sent yet, and the answer to the upstream's one replaces it.
            Method::ChannelClose { .. } => *self = Self { owes_close_ok: true, ..Self::default() },
            Method::ChannelCloseOk {} if self.is_awaiting => {
                *self = Self { owes_close_ok: self.owes_close_ok, ..Self::default() };
            }
            _ if self.is_in_content() => return Some(unexpected_method(method)),
            Method::BasicDeliver { .. } | Method::BasicReturn { .. } => {
                self.content = ArrivingContent::Header
            }
            _ => {}
        }
        None
    }

    // ---- contents

    /// Handles a content header. While the channel is being closed, there is no event.
    pub(super) fn handle_header<'i>(
        &mut self,
        rule: usize,
        ContentHeader { properties, body_len, .. }: ContentHeader<'i>,
    ) -> Option<Event<'i>> {
        if core::mem::replace(&mut self.content, ArrivingContent::of_body(body_len))
            != ArrivingContent::Header
        {
            return Some(link_lost(format_args!("the upstream sent an unexpected content header")));
        }
        (self.state == ChannelState::Open).then(|| match self.return_code {
            Some(code) => Event::Returned { rule, code, properties },
            None => Event::Header { rule, properties, body_len },
        })
    }

    /// Handles a part of a body. There is an event only for a delivered message on a channel that is not being closed.
    pub(super) fn handle_body<'i>(&mut self, rule: usize, octets: &'i [u8]) -> Option<Event<'i>> {
        let left = if let ArrivingContent::Body(left) = self.content { left } else { 0 };
        match left.checked_sub(octets.len() as u64).filter(|_| left > 0) {
            Some(left) => self.content = ArrivingContent::of_body(left),
            None => return Some(link_lost(format_args!("the upstream sent an unexpected content body"))),
        }
        let is_wanted = self.state == ChannelState::Open && self.return_code.is_none();
        is_wanted.then_some(Event::Body(rule, octets))
    }

    /// Undoes [`Self::handle_header`]: the same header will be passed in again.
    pub(super) const fn expect_header_again(&mut self) {
        self.content = ArrivingContent::Header;
    }
}
