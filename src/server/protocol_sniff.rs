//! The first words of a connection: handshakes of TLS, and peers that speak something else.
//!
//! Always true: who is at the wrong door is told in the log with its address and what to change, by
//! a budget; a handshake that waits for us takes nothing of the time that its peer has.

use leveret_amqp::{Opening, classify_opening};
use leveret_core::command::ConnectionId;
use leveret_core::log_limiter::LogKind;
use leveret_core::time::Now;
use leveret_tls::Shaken;

use super::peer::PeerId;
use super::peer::{Ending, Session, Waiting};
use super::platform::Platform;
use super::state::Shared;
use super::worker::Shake;

/// For whoever looks at the port with a browser.
const HTTP_ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\
    Content-Type: text/plain\r\nContent-Length: 63\r\n\r\n\
    This port speaks AMQP 0-9-1 (RabbitMQ's protocol) and no HTTP.\n";

/// For whoever looks at the management API with TLS as if it had none.
const HTTPS_ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\
    Content-Type: text/plain\r\nContent-Length: 44\r\n\r\n\
    This port speaks TLS: use https:// with it.\n";

impl<P: Platform> Shared<P> {
    /// Goes on with a TLS handshake after reading: next step, refusal, or end.
    pub(super) fn shake_hands(&mut self, id: PeerId, end: bool) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let is_amqp = id.connection().is_some();
        let refused = match (peer.stream.opening().map(classify_opening), is_amqp) {
            (None | Some(Opening::NeedMore | Opening::Tls), _) => None,
            (Some(Opening::Http), false) => {
                Some((Some(HTTPS_ANSWER), "HTTP on the port for the management API with TLS: use https://"))
            }
            (Some(_), false) => Some((None, "no TLS on the port for the management API with TLS")),
            (Some(Opening::Amqp091 | Opening::OtherAmqp), true) => {
                Some((None, "plain AMQP on the port for TLS: use amqps:// and TLS, or the plain port"))
            }
            (Some(Opening::Http), true) => {
                Some((Some(HTTP_ANSWER), "HTTP on the port for AMQP over TLS: is this address meant for it?"))
            }
            (Some(Opening::Mqtt), true) => {
                Some((None, "MQTT on the port for AMQP over TLS: only AMQP 0-9-1 is spoken here"))
            }
            (Some(Opening::Unknown), true) => Some((None, "no TLS on the port for TLS")),
        };
        if let Some((answer, hint)) = refused {
            return self.turn_away(id, answer, hint);
        }
        if let Some(handshake) = peer.stream.take_handshake() {
            let ticket = self.worker.ticket();
            peer.waiting = Waiting::Handshake(ticket);
            self.worker.shakes.push_back(Shake { peer: id, ticket, since: self.now, handshake });
        } else if end {
            // Its last words, an alert maybe, have been heard by now.
            self.end_now(id);
        } else if peer.stream.readable && !peer.stream.is_away() {
            self.list_to_read(id);
        } else {
            self.lists.deadlines.lower(id, peer.deadline());
        }
    }

    /// A step of a handshake has been made, with somebody who came to us.
    pub(super) fn take_shaken(&mut self, id: PeerId, since: Now, shaken: Shaken) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.waiting = Waiting::No;
        (peer.has_sent, peer.silent_since) = (true, self.now);
        let waited_ms = self.now.ms_since(since);
        if let Session::Amqp(session) = &mut peer.session {
            session.postpone(waited_ms);
        }
        let shaken = peer.stream.shaken(&mut self.buffers, shaken);
        match shaken {
            Ok(None) => {}
            Ok(Some((login, spoken))) => {
                log::debug!("{}: {spoken}, certificate of {login:?}", peer.address);
                if let (Some(login), Session::Amqp(session)) = (login, &mut peer.session) {
                    session.set_certificate_name(&login);
                }
            }
            Err(why) => {
                peer.ending = Ending::Flushing;
                let text = format_args!("{}: the handshake of TLS failed: {why}", peer.address);
                self.supplies.log.warn(self.now, peer.address.source(), LogKind::TlsHandshake, text);
            }
        }
        self.list_to_write(id);
        self.list_to_read(id);
        self.after_session(id);
    }

    /// Looks at the first octets of a peer that should speak AMQP; `false` when it does not, and is to be
    /// told so in its own language. Others are answered by their session, as AMQP has it.
    pub(super) fn look_at_opening(&mut self, id: ConnectionId, len: usize) -> bool {
        let Some(peer) = self.peers.get_mut(id) else { return false };
        let is_tls = peer.stream.is_tls();
        let hint = match classify_opening(&self.scratch.input[..len]) {
            Opening::NeedMore | Opening::Amqp091 => return true,
            Opening::Http if !is_tls => {
                let hint =
                    "HTTP on the port for AMQP: the management API is where `management` says, if it is on";
                self.turn_away(id.into(), Some(HTTP_ANSWER), hint);
                return false;
            }
            Opening::Tls if !is_tls => {
                "TLS on the port for plain AMQP: use the port in listen_tls, or amqp://"
            }
            Opening::Mqtt => "MQTT, which is not spoken here: only AMQP 0-9-1 is",
            Opening::OtherAmqp => "another version of AMQP: only 0-9-1 is spoken here",
            Opening::Http | Opening::Tls | Opening::Unknown => "this is not AMQP",
        };
        let text = format_args!("{}: refused: {hint}", peer.address);
        self.supplies.log.warn(self.now, peer.address.source(), LogKind::Opening, text);
        true
    }

    /// Hangs up on a peer that speaks something else, with an answer if it understands one.
    fn turn_away(&mut self, id: PeerId, answer: Option<&[u8]>, hint: &str) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let text = format_args!("{}: refused: {hint}", peer.address);
        self.supplies.log.warn(self.now, peer.address.source(), LogKind::Opening, text);
        if let Some(answer) = answer {
            peer.stream.answer_plainly(answer);
        }
        peer.stream.give_up_tls();
        peer.ending = Ending::Flushing;
        self.list_to_write(id);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_answers_are_as_long_as_they_say() {
        for answer in [super::HTTP_ANSWER, super::HTTPS_ANSWER] {
            let text = core::str::from_utf8(answer).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.ends_with(&format!("Content-Length: {}", body.len())), "{}", body.len());
        }
    }
}
