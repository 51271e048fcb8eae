//! The first bytes of a connection: TLS handshakes, and peers that use another protocol than that of the
//! port.
//!
//! # Invariants
//! - A peer that uses the wrong protocol is logged, with its address and what to change. The rate limit of
//!   the log applies.
//! - Time that the handshake of an AMQP or MQTT client waits for the worker does not count against its timeout.

use leveret_amqp::{Opening, classify_opening};
use leveret_connection::Client;
use leveret_core::command::ConnectionId;
use leveret_core::log_limiter::LogKind;
use leveret_core::time::Now;
use leveret_tls::HandshakeOutput;

use super::peer::PeerId;
use super::peer::{CloseStage, Session, WaitReason};
use super::platform::Platform;
use super::state::Shared;
use super::worker::HandshakeJob;

/// The reply to a browser that connects to the AMQP port.
const HTTP_ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\
    Content-Type: text/plain\r\nContent-Length: 63\r\n\r\n\
    This port speaks AMQP 0-9-1 (RabbitMQ's protocol) and no HTTP.\n";

/// The reply to a browser that connects to the MQTT port.
const HTTP_ANSWER_OF_MQTT: &[u8] = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\
    Content-Type: text/plain\r\nContent-Length: 33\r\n\r\n\
    This port speaks MQTT, not HTTP.\n";

/// The reply to HTTP without TLS on a TLS port of the management API.
const HTTPS_ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\
    Content-Type: text/plain\r\nContent-Length: 44\r\n\r\n\
    This port speaks TLS: use https:// with it.\n";

impl<P: Platform> Shared<P> {
    /// Continues a TLS handshake after a read: passes the next step to the worker, or closes the peer.
    pub(super) fn continue_handshake(&mut self, id: PeerId, end: bool) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let opening = peer.stream.first_bytes().map(classify_opening);
        let refused = match (&peer.session, opening) {
            (_, None | Some(Opening::NeedMore | Opening::Tls)) => None,
            (Session::Client(client), Some(opening)) => Some(not_tls(client, opening)),
            (_, Some(Opening::Http)) => {
                Some((Some(HTTPS_ANSWER), "HTTP on the port for the management API with TLS: use https://"))
            }
            (_, Some(_)) => Some((None, "no TLS on the port for the management API with TLS")),
        };
        if let Some((answer, hint)) = refused {
            return self.reject_protocol(id, answer, hint);
        }
        if let Some(handshake) = peer.stream.take_handshake() {
            let ticket = self.worker.ticket();
            peer.waiting = WaitReason::Handshake(ticket);
            self.worker.handshakes.push_back(HandshakeJob { peer: id, ticket, since: self.now, handshake });
        } else if end {
            // The peer has ended, and its last data (such as a TLS alert) has been processed.
            self.close_at_turn_end(id);
        } else if peer.stream.is_readable && !peer.stream.is_handshake_with_worker() {
            self.list_to_read(id);
        } else {
            self.lists.deadlines.lower(id, peer.deadline());
        }
    }

    /// Handles the result of a step of the TLS handshake with a client.
    pub(super) fn take_handshake_step(&mut self, id: PeerId, since: Now, output: HandshakeOutput) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.waiting = WaitReason::No;
        (peer.is_past_first_contact, peer.last_reply_at) = (true, self.now);
        let waited_ms = self.now.ms_since(since);
        if let Session::Client(session) = &mut peer.session {
            session.postpone(waited_ms);
        }
        let result = peer.stream.finish_handshake_step(&mut self.buffers, output);
        match result {
            Ok(None) => {}
            Ok(Some((login, spoken))) => {
                log::debug!("{}: {spoken}, certificate of {login:?}", peer.address);
                match (login, &mut peer.session) {
                    (Some(login), Session::Client(session)) => session.set_certificate_name(&login),
                    (login, Session::Operator(client)) => client.certificate_name = login.map(Into::into),
                    (_, Session::Client(_) | Session::Bridge(_)) => {}
                }
            }
            Err(why) => {
                peer.ending = CloseStage::Flushing;
                let text = format_args!("{}: the TLS handshake failed: {why}", peer.address);
                self.resources.log.warn(self.now, peer.address.source(), LogKind::TlsHandshake, text);
            }
        }
        self.list_to_write(id);
        self.list_to_read(id);
        self.after_session(id);
    }

    /// Examines the first octets of a client. If they are HTTP without TLS, sends an HTTP reply and returns `false`.
    /// Other wrong first octets are left to the session, which replies as its protocol requires.
    pub(super) fn check_protocol(&mut self, id: ConnectionId, len: usize) -> bool {
        let Some(peer) = self.peers.get_mut(id) else { return false };
        let is_tls = peer.stream.is_tls();
        let is_mqtt = peer.session.client().is_mqtt();
        let hint = match (classify_opening(&self.scratch.input[..len]), is_mqtt) {
            (Opening::NeedMore, _) | (Opening::Amqp091, false) | (Opening::Mqtt, true) => return true,
            (Opening::Http, false) if !is_tls => {
                let hint = "HTTP on the port for AMQP: the management API has its own port (`management`), if it is \
                     enabled";
                self.reject_protocol(id.into(), Some(HTTP_ANSWER), hint);
                return false;
            }
            (Opening::Http, true) if !is_tls => {
                let hint = "HTTP on the port for MQTT";
                self.reject_protocol(id.into(), Some(HTTP_ANSWER_OF_MQTT), hint);
                return false;
            }
            (Opening::Tls, false) if !is_tls => {
                "TLS on the port for plain AMQP: use the port in listen_tls, or amqp://"
            }
            (Opening::Tls, true) if !is_tls => {
                "TLS on the port for plain MQTT: use the port in mqtt_tls, or no TLS"
            }
            (Opening::Mqtt, false) => {
                "MQTT on the port for AMQP: MQTT has its own port (`mqtt`), if it is enabled"
            }
            (Opening::Amqp091 | Opening::OtherAmqp, true) => {
                "AMQP on the port for MQTT: AMQP has its own port (`listen`)"
            }
            (Opening::OtherAmqp, false) => "another version of AMQP: only 0-9-1 is supported",
            // The session refuses the packet, and logs why.
            (Opening::Http | Opening::Tls | Opening::Unknown, true) => return true,
            (Opening::Http | Opening::Tls | Opening::Unknown, false) => "this is not AMQP",
        };
        let text = format_args!("{}: refused: {hint}", peer.address);
        self.resources.log.warn(self.now, peer.address.source(), LogKind::Opening, text);
        true
    }

    /// Closes a peer that uses another protocol, after a reply in that protocol if there is one. `hint` is
    /// the log text.
    fn reject_protocol(&mut self, id: PeerId, answer: Option<&[u8]>, hint: &str) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let text = format_args!("{}: refused: {hint}", peer.address);
        self.resources.log.warn(self.now, peer.address.source(), LogKind::Opening, text);
        if let Some(answer) = answer {
            peer.stream.write_unencrypted(answer);
        }
        peer.stream.end_tls_handshake();
        peer.ending = CloseStage::Flushing;
        self.list_to_write(id);
    }
}

/// Returns the reply to a client that sends this to a port for TLS, if there is one, and the log text.
fn not_tls(client: &Client, opening: Opening) -> (Option<&'static [u8]>, &'static str) {
    match (opening, client.is_mqtt()) {
        (Opening::Amqp091 | Opening::OtherAmqp, false) => {
            (None, "plain AMQP on the port for TLS: use amqps:// and TLS, or the plain port")
        }
        (Opening::Mqtt, true) => (None, "plain MQTT on the port for TLS: use TLS, or the plain port"),
        (Opening::Http, false) => {
            (Some(HTTP_ANSWER), "HTTP on the port for AMQP over TLS: is it the right port?")
        }
        (Opening::Http, true) => {
            (Some(HTTP_ANSWER_OF_MQTT), "HTTP on the port for MQTT over TLS: is it the right port?")
        }
        (Opening::Mqtt, false) => {
            (None, "MQTT on the port for AMQP over TLS: MQTT has its own port (`mqtt_tls`)")
        }
        (Opening::Amqp091 | Opening::OtherAmqp, true) => {
            (None, "AMQP on the port for MQTT over TLS: AMQP has its own port (`listen_tls`)")
        }
        (Opening::NeedMore | Opening::Tls | Opening::Unknown, _) => (None, "no TLS on the port for TLS"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_answers_are_as_long_as_they_say() {
        for answer in [super::HTTP_ANSWER, super::HTTP_ANSWER_OF_MQTT, super::HTTPS_ANSWER] {
            let text = core::str::from_utf8(answer).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.ends_with(&format!("Content-Length: {}", body.len())), "{}", body.len());
        }
    }
}
