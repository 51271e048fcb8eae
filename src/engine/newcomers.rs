//! Newcomers: what the doors decided is done.
//!
//! Always true: a newcomer has its place among the peers, and a record of the broker if it speaks AMQP, before the
//! doors are asked for the next step.

use std::io;

use crate::command::ConnectionId;
use crate::log_limiter::{LogKind, LogSource};
use crate::requests::columns::name_of;
use crate::requests::operator_session::OperatorSession;
use crate::requests::request_context::Sockets;
use crate::session;

use super::doors::{House, ListenerKind, Step, WaitingVisitor};
use super::operator_client::OperatorClient;
use super::operators::Connections;
use super::peer::{Peer, Session};
use super::peer_id::PeerId;
use super::platform::{Interest, Platform, Visitor};
use super::shared::Shared;
use super::state::Engine;

impl<P: Platform> Shared<P> {
    /// Begins the handshake of a newcomer that has been given a place, and a record with it.
    pub(super) fn welcome(
        &mut self,
        mut visitor: Visitor<P::Socket>,
        with_tls: bool,
        is_unspent: bool,
    ) -> io::Result<()> {
        let Some(id) = self.broker.connect() else { return Err(io::Error::other("no record is free")) };
        if let Err(error) = self.platform.register(&mut visitor.socket, Interest::Peer(id.into())) {
            let (broker, mut context) = self.broker_mut();
            broker.release(&mut context, id);
            return Err(error);
        }
        let session = session::Connection::new(self.now, id, visitor.address.peer(), &self.supplies.settings);
        let Visitor { socket, address } = visitor;
        log::debug!("connection {}: from {address}", id.index());
        let mut peer = Peer::new(socket, address, Session::Amqp(session), self.now);
        (peer.shaking_hands, peer.is_unspent) = (true, is_unspent);
        if with_tls {
            peer.stream.begin_tls();
        }
        self.lists.deadlines.lower(id.into(), peer.deadline());
        self.peers.put_connection(id, peer);
        if self.broker.is_tracing() {
            self.name_traced(id);
        }
        self.doors.note_begun(id, with_tls);
        self.list_to_read(id);
        Ok(())
    }

    pub(super) fn welcome_management(&mut self, id: PeerId, waiting: WaitingVisitor<P::Socket>) {
        let Visitor { mut socket, address } = waiting.visitor;
        if let Err(error) = self.platform.register(&mut socket, Interest::Peer(id)) {
            let text = format_args!("a client of the management API could not be set up: {error}");
            return self.supplies.log.warn(self.now, address.source(), LogKind::Shortage, text);
        }
        let session = match waiting.listener {
            ListenerKind::Metrics => OperatorSession::for_metrics(),
            ListenerKind::Api => OperatorSession::of_network(address.is_loopback()),
        };
        let client = OperatorClient::new(session, self.now);
        self.lists.deadlines.lower(id, client.deadline());
        let mut peer = Peer::new(socket, address, Session::Operator(client), self.now);
        if waiting.with_tls {
            peer.stream.begin_tls();
        }
        self.peers.put(id, peer);
        self.list_to_read(id);
    }

    /// Names a connection for the firehose.
    #[cold]
    pub(super) fn name_traced(&mut self, connection: ConnectionId) {
        let peers = Connections { peers: &self.peers, now: self.now, unix_ms: 0, is_over_budget: false };
        if let Some(socket) = peers.at(connection) {
            self.broker.name_traced(connection, &name_of(&socket));
        }
    }
}

impl<P: Platform> Engine<P> {
    /// What the doors see.
    pub(super) fn house(&self) -> House<'_, P::Socket> {
        House {
            now: self.shared.now,
            limits: &self.shared.limits,
            peers: &self.shared.peers,
            throttle: &self.shared.worker.throttle,
            broker: &self.shared.broker,
            journal: &self.shared.journal,
            tokens: &self.operators.tokens,
        }
    }

    fn poll_doors(&mut self) -> Option<Step<P::Socket>> {
        let house = House {
            now: self.shared.now,
            limits: &self.shared.limits,
            peers: &self.shared.peers,
            throttle: &self.shared.worker.throttle,
            broker: &self.shared.broker,
            journal: &self.shared.journal,
            tokens: &self.operators.tokens,
        };
        self.shared.doors.poll(&house, &mut self.shared.platform, &mut self.shared.supplies.log)
    }

    /// Accepts who is at the doors, and lets in whom there is a place for.
    pub(super) fn let_in(&mut self) {
        while let Some(step) = self.poll_doors() {
            match step {
                Step::Admit { visitor, with_tls, is_unspent, instead_of } => {
                    instead_of.into_iter().flatten().for_each(|id| self.evict(id));
                    if let Err(error) = self.shared.welcome(visitor, with_tls, is_unspent) {
                        let text = format_args!("a connection could not be set up: {error}");
                        self.shared.supplies.log.warn(
                            self.shared.now,
                            LogSource::Anybody,
                            LogKind::Shortage,
                            text,
                        );
                    }
                }
                Step::Enter(id, waiting) => self.shared.welcome_management(id, waiting),
                Step::GiveUp(id) => self.shared.end_now(id),
            }
        }
    }

    /// Ends a handshake, for somebody else to have its place at once.
    fn evict(&mut self, id: ConnectionId) {
        if let Some(peer) = self.shared.peers.get(id) {
            let address = peer.address;
            let text = format_args!(
                "{address}: hung up on before its login, for others want in and its address holds most of \
                 the handshakes (handshakes_max, tls_handshakes_max, tls_connections_max)"
            );
            self.shared.supplies.log.warn(self.shared.now, address.source(), LogKind::Shortage, text);
        }
        self.shared.end_now(id);
        self.close();
    }
}
