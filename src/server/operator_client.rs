//! The operator's part of the engine: the control socket, what clients of both kinds share, and one of them. What is
//! done with them stands in `operators`.

use super::peer_id::PeerId;
use leveret_core::limits::Limits;
use leveret_core::time::{Deadline, Now};
use leveret_management::operator_session::OperatorSession;
use leveret_management::request_context::{Orders, Process};
use leveret_management::samples::{SampledPlaces, Samples};
use leveret_management::tokens::Tokens;

/// A client that neither says nor takes anything for so long is gone.
pub(super) const IDLE_MS: u64 = 60_000;

/// A request over the network has so much time from its first octet to its last.
const REQUEST_MS: u64 = 15_000;
/// How long an answer over the network may take to be read, from its first octet to its last; and a request whose
/// body is longer than a request buffer to come in.
const ANSWER_MS: u64 = 120_000;
/// How long a client may take to read metrics: a program reads them and waits no longer than that, as Prometheus
/// does.
const METRICS_ANSWER_MS: u64 = 30_000;
/// Time for a request to come in before the client can be closed for another one.
const REQUEST_KEPT_MS: u64 = 1_500;
/// Time for an upload to come in, and for an answer to be read, before the client can be closed for another one: long
/// enough for the page over a slow link.
const ANSWER_KEPT_MS: u64 = 8_000;

/// Returns how many things there can be of those whose rates the management API tells.
pub fn sampled_places(limits: &Limits) -> SampledPlaces {
    SampledPlaces {
        queues: limits.queues_max as usize,
        exchanges: limits.exchanges_max as usize,
        channels: limits.channels_max as usize,
        connections: limits.connections_max as usize,
    }
}

/// The control socket, and what clients of both kinds share.
pub(super) struct Operators {
    pub(super) is_open: bool,
    pub(super) process: Process,
    pub(super) own_uid: u32,
    pub(super) orders: Orders,
    pub(super) tokens: Tokens,
    pub(super) samples: Samples,
    /// The client for whom the store's files are held still.
    pub(super) holder: Option<PeerId>,
}

impl Operators {
    /// A socket at which nobody gets in yet.
    pub(super) fn closed(process: Process, own_uid: u32, samples: Samples) -> Self {
        Self {
            is_open: false,
            process,
            own_uid,
            orders: Orders::default(),
            tokens: Tokens::default(),
            samples,
            holder: None,
        }
    }
}

/// What has begun and is not over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Exchange {
    None,
    Request,
    /// A request whose body is longer than a request buffer.
    Upload,
    Answer,
}

/// What is spoken with one client.
#[derive(Debug)]
pub(super) struct OperatorClient {
    pub(super) session: OperatorSession,
    /// The client will say nothing more; what it said is still answered.
    pub(super) has_ended: bool,
    pub(super) idle_at: Deadline,
    /// A request that has begun must be whole by then, and an answer that has begun must be taken.
    pub(super) exchange_at: Deadline,
    exchange: Exchange,
    /// When it can be closed for another client that waits.
    pub(super) closable_at: Deadline,
}

impl OperatorClient {
    pub(super) fn new(session: OperatorSession, now: Now) -> Self {
        Self {
            session,
            has_ended: false,
            idle_at: now.after_ms(IDLE_MS),
            exchange_at: Deadline::NEVER,
            exchange: Exchange::None,
            closable_at: now.after_ms(REQUEST_KEPT_MS),
        }
    }

    pub(super) fn deadline(&self) -> Deadline {
        self.idle_at.earlier(self.exchange_at)
    }

    /// Sets the deadlines anew after something was read, handled or written. Clients of the control socket have no
    /// limit for a request or an answer as a whole.
    pub(super) fn keep_exchange_time(&mut self, now: Now) {
        let exchange = match (self.session.is_empty(), self.session.has_output(), self.session.is_uploading())
        {
            (true, ..) => Exchange::None,
            (false, true, _) => Exchange::Answer,
            (false, false, true) => Exchange::Upload,
            (false, false, false) => Exchange::Request,
        };
        if core::mem::replace(&mut self.exchange, exchange) == exchange {
            return;
        }
        let (exchange_ms, kept_ms) = match exchange {
            Exchange::None => {
                (self.exchange_at, self.closable_at) = (Deadline::NEVER, now.after_ms(0));
                return;
            }
            Exchange::Request => (REQUEST_MS, REQUEST_KEPT_MS),
            Exchange::Answer if self.session.is_for_metrics() => (METRICS_ANSWER_MS, ANSWER_KEPT_MS),
            Exchange::Answer | Exchange::Upload => (ANSWER_MS, ANSWER_KEPT_MS),
        };
        if self.session.is_of_network() {
            self.exchange_at = now.after_ms(exchange_ms);
        }
        self.closable_at = now.after_ms(kept_ms);
    }

    /// Notes that the client got on, or waits for the broker.
    pub(super) fn note_progress(&mut self, now: Now) {
        self.idle_at = now.after_ms(IDLE_MS);
    }

    /// Whether the client has said its last, and everything is answered.
    pub(super) fn is_done(&self) -> bool {
        let is_idle =
            !self.session.has_output() && !self.session.has_request() && !self.session.awaits_disk();
        self.has_ended && is_idle && !self.session.is_checking() && !self.session.waits()
    }
}
