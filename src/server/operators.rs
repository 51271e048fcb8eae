//! Operator clients: `leveret ctl` on the control socket, and clients of the management API and of metrics.
//!
//! The broker has no records of these clients.
//!
//! ```text
//!   read ─→ OperatorSession::handle, one request ─→ its reply ────────────┐
//!           replies that waited for the disk, rows ─→ OperatorSession::fill ┴─→ write
//! ```
//!
//! # Invariants
//! - Only root and the user that the broker runs as may use the control socket. The mode of its file ensures that,
//!   and the user that the kernel reports is checked.
//! - The number of clients is limited by the number of their slots.
//! - Each client causes at most one read, one request and one write per turn.
//! - A client that makes no progress for [`IDLE_MS`] is disconnected. Time during which it waits for the broker is not
//!   counted.

use leveret_connection::Pools;
use leveret_core::command::ConnectionId;
use leveret_core::flight::Event;
use leveret_core::limits::Limits;
use leveret_core::log_limiter::LogKind;
use leveret_core::time::{Deadline, Now};
use leveret_management::operator_session::OperatorSession;
use leveret_management::request::{
    Ends, Files, Orders, Process, RecordedEvents, RequestContext, SYNC_BUDGET_SHOWN_MS, SocketView, Sockets,
    StoreView,
};
use leveret_management::samples::{LoopCounters, SampleTime, SampledConnection, SampledPlaces, Samples};
use leveret_management::web_page::Tokens;
use leveret_storage::Log;

use super::blocked_publishers::BlockedOn;
use super::bridges::ShownBridges;
use super::peer::{CloseStage, Peer, PeerAddress, PeerId, Peers, Session, WaitReason};
use super::platform::{Platform, Socket};
use super::state::Engine;
use super::stream::ReadMode;
use super::worker::CertificateState;

/// Maximum number of bytes taken from a client per turn.
const READ_BYTES: usize = 16 << 10;
/// A client that sends nothing and reads nothing for this time is disconnected, in milliseconds.
pub(super) const IDLE_MS: u64 = 60_000;
/// Maximum time of a request over the network from its first octet to its last, in milliseconds.
const REQUEST_MS: u64 = 15_000;
/// Maximum time for a client to read a reply over the network, in milliseconds. Also the maximum time of an
/// upload: a request whose body is longer than the request buffer.
const ANSWER_MS: u64 = 120_000;
/// Maximum time for a client to read a reply with metrics, in milliseconds. Only programs read metrics, and
/// Prometheus does not wait longer either.
const METRICS_ANSWER_MS: u64 = 30_000;
/// Time for a request to arrive before the client can be evicted, in milliseconds.
const REQUEST_KEPT_MS: u64 = 1_500;
/// Time for an upload or a reply before the client can be evicted, in milliseconds. It is long enough for
/// loading the web page over a slow link.
const ANSWER_KEPT_MS: u64 = 8_000;

/// The state that all operator clients share.
pub(super) struct Operators {
    /// Whether the control socket is open.
    pub(super) accepts_control_clients: bool,
    pub(super) process: Process,
    pub(super) own_uid: u32,
    /// Requests of operators that the loop carries out later in the turn: stop, change a bridge.
    pub(super) orders: Orders,
    pub(super) tokens: Tokens,
    pub(super) samples: Samples,
    /// The client for whose backup the files of the storage are pinned, so that the compactor does not delete
    /// them.
    pub(super) backup_client: Option<PeerId>,
}

impl Operators {
    /// Creates the state. Clients of the control socket are not accepted yet.
    pub(super) fn new(process: Process, own_uid: u32, samples: Samples) -> Self {
        Self {
            accepts_control_clients: false,
            process,
            own_uid,
            orders: Orders::default(),
            tokens: Tokens::default(),
            samples,
            backup_client: None,
        }
    }
}

/// The session of one client, and its deadlines.
#[derive(Debug)]
pub(super) struct OperatorClient {
    pub(super) session: OperatorSession,
    /// The client has shut down writing. Requests that it sent before still get their replies.
    pub(super) has_ended: bool,
    pub(super) idle_at: Deadline,
    /// When the current request or reply must be complete.
    pub(super) phase_deadline: Deadline,
    phase: RequestPhase,
    /// The name in the client's verified certificate, for the login after an upgrade to WebSocket.
    pub(super) certificate_name: Option<Box<str>>,
    /// From this time on the client can be evicted.
    pub(super) closable_at: Deadline,
}

impl OperatorClient {
    pub(super) fn new(session: OperatorSession, now: Now) -> Self {
        Self {
            session,
            has_ended: false,
            idle_at: now.after_ms(IDLE_MS),
            phase_deadline: Deadline::NEVER,
            phase: RequestPhase::None,
            certificate_name: None,
            closable_at: now.after_ms(REQUEST_KEPT_MS),
        }
    }

    pub(super) fn deadline(&self) -> Deadline {
        self.idle_at.earlier(self.phase_deadline)
    }

    /// Updates the deadlines after a read, a request or a write. Clients of the control socket have no
    /// deadline for a whole request or reply.
    pub(super) fn update_phase_deadlines(&mut self, now: Now) {
        let phase = match (self.session.is_empty(), self.session.has_output(), self.session.is_uploading()) {
            (true, ..) => RequestPhase::None,
            (false, true, _) => RequestPhase::Answer,
            (false, false, true) => RequestPhase::Upload,
            (false, false, false) => RequestPhase::Request,
        };
        if core::mem::replace(&mut self.phase, phase) == phase {
            return;
        }
        let (phase_ms, kept_ms) = match phase {
            RequestPhase::None => {
                (self.phase_deadline, self.closable_at) = (Deadline::NEVER, now.after_ms(0));
                return;
            }
            RequestPhase::Request => (REQUEST_MS, REQUEST_KEPT_MS),
            RequestPhase::Answer if self.session.is_for_metrics() => (METRICS_ANSWER_MS, ANSWER_KEPT_MS),
            RequestPhase::Answer | RequestPhase::Upload => (ANSWER_MS, ANSWER_KEPT_MS),
        };
        if self.session.is_over_network() {
            self.phase_deadline = now.after_ms(phase_ms);
        }
        self.closable_at = now.after_ms(kept_ms);
    }

    /// Restarts the idle timeout, because the client made progress or waits for the broker.
    pub(super) fn note_progress(&mut self, now: Now) {
        self.idle_at = now.after_ms(IDLE_MS);
    }

    /// Returns whether the client has shut down writing and all its requests have been replied to.
    pub(super) fn is_done(&self) -> bool {
        let is_idle =
            !self.session.has_output() && !self.session.has_request() && !self.session.awaits_disk();
        self.has_ended && is_idle && !self.session.is_checking() && !self.session.awaits_read_back()
    }
}

/// The current request or reply of a client, which determines its deadlines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum RequestPhase {
    None,
    Request,
    /// A request whose body is longer than the request buffer.
    Upload,
    Answer,
}

impl<P: Platform> Engine<P> {
    /// Reads once from a client, and handles one request.
    pub(super) fn read_operator(&mut self, id: PeerId) {
        if self.receive_from_operator(id) {
            self.handle_request(id);
        }
    }

    /// Passes received bytes to the session of a client. Returns `false` if the client is in the TLS handshake, or is
    /// closed because its input cannot be kept.
    fn receive_from_operator(&mut self, id: PeerId) -> bool {
        let Some(Peer { stream, session: Session::Operator(client), address, is_past_first_contact, .. }) =
            self.shared.peers.get_mut(id)
        else {
            return false;
        };
        let now = self.shared.now;
        let room = client.session.input_capacity_bytes();
        if room == 0 {
            return true;
        }
        let most = stream.buffer_bytes_for(room.min(READ_BYTES)).min(self.shared.scratch.input.len());
        let got =
            stream.read(&mut self.shared.buffers, &mut self.shared.scratch.input[..most], ReadMode::Take);
        self.shared.budget.note_read(got.len);
        self.shared.budget.charge_records(stream.take_records());
        if stream.is_in_tls_handshake() {
            self.shared.continue_handshake(id, got.is_end);
            return false;
        }
        let taken = room.min(got.len);
        client.session.take(&self.shared.scratch.input[..taken]);
        client.has_ended |= got.is_end && taken == got.len;
        if taken > 0 {
            *is_past_first_contact = true;
            client.note_progress(now);
        }
        client.update_phase_deadlines(now);
        let (buffers, input) = (&mut self.shared.buffers, &mut self.shared.scratch.input);
        let is_kept = stream.keep(buffers, input, got.len, taken, taken < got.len);
        if !is_kept || stream.has_lost_record {
            let text =
                format_args!("{address}: no memory to keep the rest of its request; raise memory_limit");
            self.shared.resources.log.warn(now, address.source(), LogKind::Shortage, text);
            self.shared.close_at_turn_end(id);
            return false;
        }
        true
    }

    /// Handles the next request of a client, if it is complete.
    fn handle_request(&mut self, id: PeerId) {
        let Some(Peer { session: Session::Operator(client), .. }) = self.shared.peers.get_mut(id) else {
            return;
        };
        if client.session.has_request() {
            self.serve_operator(id, OperatorSession::handle);
            self.shared.budget.charge_work();
            if self.upgrade(id) {
                return;
            }
            if let Some(Peer { session: Session::Operator(client), .. }) = self.shared.peers.get_mut(id) {
                client.update_phase_deadlines(self.shared.now);
            }
            // The batch that a reply waits for may be durable already, and then no commit would wake the
            // client.
            self.shared.list_to_write(id);
        }
        if let Some(Peer { session: Session::Operator(client), .. }) = self.shared.peers.get_mut(id)
            && let Some(check) = client.session.take_check()
        {
            self.shared.begin_management_login(id, check);
        }
        self.shared.after_session(id);
    }

    /// Writes once to a client: replies that waited, or rows of a listing, as much as the socket takes.
    pub(super) fn write_operator(&mut self, id: PeerId) {
        self.serve_operator(id, OperatorSession::fill);
        let Some(Peer { stream, session: Session::Operator(client), .. }) = self.shared.peers.get_mut(id)
        else {
            return;
        };
        if client.session.awaits_disk() {
            // The reply may wait for the commit of log entries that were appended in this step.
            self.shared.lists.for_disk.push(id);
        }
        match stream.write(&mut self.shared.buffers, client.session.output()) {
            Ok(count) => {
                client.session.note_written(count);
                if count > 0 {
                    client.note_progress(self.shared.now);
                }
                client.update_phase_deadlines(self.shared.now);
                self.shared.after_write(id, count > 0);
            }
            Err(error) => self.shared.note_write_failed(id, &error),
        }
    }

    /// Takes a sample of the counters, if one is due. Rates and histories are computed from samples.
    #[cold]
    pub(super) fn take_sample(&mut self) {
        let now_ms = self.shared.now.as_ms();
        if !self.operators.samples.is_due(now_ms) {
            return;
        }
        let counters =
            self.store.as_mut().map(|store| store.commit_writer.log_mut().counters()).unwrap_or_default();
        let loop_counters = LoopCounters {
            confirmed: self.shared.resources.pools.confirmed(),
            connections: (self.shared.peers.connections_opened(), self.shared.peers.connections().into()),
            disk: (counters.bytes_written + counters.bytes_zeroed, counters.syncs),
            resident_bytes: self.shared.platform.machine().resident_bytes,
            log_bytes: self
                .store
                .as_mut()
                .map_or(0, |store| store.commit_writer.log_mut().space().used_bytes()),
        };
        let unix_ms = self.shared.platform.unix_ms();
        let sockets = Connections {
            peers: &self.shared.peers,
            pools: &self.shared.resources.pools,
            now: self.shared.now,
            unix_ms,
            is_over_budget: false,
        };
        let connections = (0..sockets.places()).map(ConnectionId::from_index).filter_map(|id| {
            let SocketView { number, received, sent, .. } = sockets.at(id)?;
            Some(SampledConnection { id, number, received_bytes: received.0, sent_bytes: sent.0 })
        });
        let (broker, messages) = (&self.shared.broker, &self.shared.resources.messages);
        let time = SampleTime { now_ms, unix_ms };
        self.operators.samples.take(time, broker, messages, connections, loop_counters);
    }

    /// Calls `step` with the session of a client and everything that replies may contain.
    fn serve_operator(&mut self, id: PeerId, step: fn(&mut OperatorSession, &mut RequestContext<'_>)) {
        // The session is taken out of its peer during the call, because the call borrows all peers.
        let Some(Peer { session: Session::Operator(client), .. }) = self.shared.peers.get_mut(id) else {
            return;
        };
        let mut session = core::mem::take(&mut client.session);
        self.update_process(session.is_over_network());
        let process = &mut self.operators.process;
        let held_before = self.operators.backup_client.is_some();
        let peers = Connections {
            peers: &self.shared.peers,
            pools: &self.shared.resources.pools,
            now: self.shared.now,
            unix_ms: self.shared.platform.unix_ms(),
            is_over_budget: process.store.is_over_budget,
        };
        let log_free_bytes = self.store.as_ref().map(|_| self.shared.pending_writes.log_free_bytes());
        let unix_ms = self.shared.platform.unix_ms();
        let bridges = ShownBridges { bridges: &self.bridges, log_free_bytes, now: self.shared.now, unix_ms };
        let backup_client = &mut self.operators.backup_client;
        let mut files = self.store.as_mut().map(|disk| PinnedFiles {
            log: disk.commit_writer.log_mut(),
            backup_client,
            client: id,
        });
        let mut context = RequestContext {
            broker: &mut self.shared.broker,
            pending_writes: &mut self.shared.pending_writes,
            messages: &mut self.shared.resources.messages,
            work: &mut self.shared.budget.work,
            sockets: &peers,
            bridges: &bridges,
            process,
            files: files.as_mut().map(|files| files as &mut dyn Files),
            orders: &mut self.operators.orders,
            tokens: &mut self.operators.tokens,
            samples: &self.operators.samples,
            events: &PlatformEvents(&self.shared.platform),
        };
        step(&mut session, &mut context);
        let is_released = held_before && self.operators.backup_client.is_none();
        if let Some(Peer { session: Session::Operator(client), .. }) = self.shared.peers.get_mut(id) {
            client.session = session;
        }
        if is_released {
            self.wake_backup_clients();
        }
    }

    /// Updates what replies say about the process. `with_machine`: also about the machine, which takes system calls.
    fn update_process(&mut self, with_machine: bool) {
        let process = &mut self.operators.process;
        if with_machine {
            process.machine = self.shared.platform.machine();
        }
        process.uptime_ms = self.shared.now.as_ms();
        process.connections = self.shared.peers.connections();
        process.connections_opened = self.shared.peers.connections_opened();
        process.confirmed = self.shared.resources.pools.confirmed();
        process.handshakes_evicted = self.shared.admission.evicted_count();
        process.has_refused_reads =
            self.store.as_mut().is_some_and(|store| store.commit_writer.log_mut().has_refused_reads());
        let CertificateState { is_unavailable, end_s } = self.shared.worker.certificates;
        process.is_tls_unavailable = is_unavailable;
        process.certificates_end = (end_s > 0).then(|| (end_s, self.shared.platform.unix_ms() / 1000));
        process.dropped_messages = self.shared.admission.dropped_messages_count();
        let refusing = self.shared.admission.refusing().filter(|limit| !self.shared.has_place(*limit));
        process.refusing_connections = refusing.map(|limit| (limit.key, limit.value));
        process.waiting_publishers = self.shared.blocked_publishers().count() as u32;
        process.waiters = BlockedOn::by_kind(self.shared.blocked_publishers(), self.shared.now);
        if let Some(store) = &mut self.store {
            process.store = store_view(store.commit_writer.log_mut(), self.shared.now);
        }
    }

    /// Wakes the clients that wait for the end of another client's backup.
    pub(super) fn wake_backup_clients(&mut self) {
        for id in self.shared.lists.for_disk.iter().filter(|id| id.connection().is_none()) {
            self.shared.lists.to_write.push(id);
        }
    }
}

/// The events that the platform's flight recorder has.
struct PlatformEvents<'p, P>(&'p P);

impl<P: Platform> RecordedEvents for PlatformEvents<'_, P> {
    fn after(&self, number: u32, count: usize) -> Result<Vec<Event>, &str> {
        self.0.recorded_events(number, count)
    }
}

/// Pins the files of the storage for the backup of one client.
struct PinnedFiles<'c> {
    log: &'c mut Log,
    backup_client: &'c mut Option<PeerId>,
    client: PeerId,
}

impl Files for PinnedFiles<'_> {
    fn pin_for_backup(&mut self) -> Option<Vec<(u32, u32, u32)>> {
        if self.backup_client.is_some_and(|backup_client| backup_client != self.client) {
            return None;
        }
        let held = self.log.pin_for_backup()?;
        *self.backup_client = Some(self.client);
        Some(held.iter().map(|file| (file.slot, file.bytes, file.length)).collect())
    }

    fn is_pinned_for_backup(&self) -> bool {
        *self.backup_client == Some(self.client) && self.log.is_pinned_for_backup()
    }

    fn release(&mut self) {
        if *self.backup_client == Some(self.client) {
            *self.backup_client = None;
            self.log.release_backup_pin();
        }
    }
}

/// The connections of clients as shown to operators.
pub(super) struct Connections<'p, S> {
    pub(super) peers: &'p Peers<S>,
    pub(super) pools: &'p Pools,
    pub(super) now: Now,
    pub(super) unix_ms: u64,
    /// Commits, and therefore confirms, are delayed to stay within the sync budget.
    pub(super) is_over_budget: bool,
}

fn store_view(log: &Log, now: Now) -> StoreView {
    let counters = log.counters();
    let (commits_over_budget, last_delayed) = log.delayed_by_budget();
    StoreView {
        written_bytes: counters.bytes_written + counters.bytes_zeroed,
        written_all_runs_bytes: log.bytes_written_total(),
        syncs: counters.syncs,
        bytes_max: log.space().most_bytes(),
        room_bytes: log.space().room_bytes(),
        commits_over_budget,
        is_over_budget: is_over_budget(commits_over_budget, last_delayed, now),
    }
}

/// Returns whether a commit was delayed by the sync budget recently. The first argument is the result of
/// [`Log::delayed_by_budget`].
fn is_over_budget(count: u64, last: Now, now: Now) -> bool {
    count > 0 && now.ms_since(last) < SYNC_BUDGET_SHOWN_MS
}

impl<S: Socket> Sockets for Connections<'_, S> {
    fn places(&self) -> usize {
        self.peers.connections_seen()
    }

    fn at(&self, connection: ConnectionId) -> Option<SocketView<'_>> {
        let peer = self.peers.get(connection)?;
        let Session::Client(session) = &peer.session else { return None };
        let negotiated = session.negotiated();
        let ends = match peer.address {
            PeerAddress::Local { pid, uid } => Ends::Local { pid, uid },
            PeerAddress::Network(other) => {
                Ends::Network { host: peer.stream.socket.local_address().unwrap_or(other), peer: other }
            }
        };
        Some(SocketView {
            number: peer.number,
            ends,
            is_tls: peer.stream.is_tls(),
            protocol: session.protocol(),
            connected_at_ms: self.unix_ms.saturating_sub(self.now.ms_since(peer.since)),
            blocked_for_ms: peer.is_blocked().then(|| self.now.ms_since(peer.blocked_on.since)),
            state: match (peer.ending, peer.waiting) {
                _ if peer.lost.is_some() => "closing",
                (CloseStage::No, WaitReason::Capacity) => "blocked",
                // `flow` is RabbitMQ's state of a publisher whose speed is limited.
                (CloseStage::No, _) if self.is_over_budget && session.awaits_disk() => "flow",
                (CloseStage::No, _) => "running",
                _ => "closing",
            },
            frame_max: negotiated.frame_max,
            channel_max: negotiated.channel_max,
            heartbeat_s: negotiated.heartbeat_ms / 1000,
            mechanism: session.mechanism(),
            client_properties: session.client_properties(),
            received: (peer.traffic.received_bytes, peer.traffic.reads),
            sent: (peer.traffic.sent_bytes, peer.traffic.writes),
        })
    }

    fn unconfirmed(&self, connection: ConnectionId, channel: u16) -> u64 {
        self.pools.unconfirmed(connection, channel)
    }
}

/// Returns the maximum number of objects of each kind for which the management API has rates.
pub(super) fn sampled_places(limits: &Limits) -> SampledPlaces {
    SampledPlaces {
        queues: limits.queues_max as usize,
        exchanges: limits.exchanges_max as usize,
        channels: limits.channels_max as usize,
        connections: limits.connection_places() as usize,
    }
}
