//! From the first octet to connection.open-ok.
//!
//! ```text
//!   client                         server
//!   AMQP 0 0 9 1              ->
//!                             <-   connection.start      Phase::Header → Start
//!   connection.start-ok       ->   (the broker: login)
//!                             <-   connection.tune       → Tune
//!   connection.tune-ok        ->                         → Opening
//!   connection.open           ->   (the broker: vhost)
//!                             <-   connection.open-ok    → Open
//! ```
//!
//! Why it exists: everybody on the network gets this far, so nothing here is held for a peer but a deadline,
//! and one that makes a mistake is left waiting for a second before its socket is closed. What always holds:
//! until somebody logged in, a mistake is answered with silence, as RabbitMQ does it; frames are no larger
//! than the smallest that AMQP knows; no password reaches a log.

use core::fmt;

use super::connection::{Capabilities, Connection, PARTING_MS, Phase};
use super::context::{Context, Names};
use super::frame_faults::{fault_of_frame, fault_of_method, hard_fault, unexpected_method};
use super::pending::{Kind, Mechanism, Pending};
use super::settings::Settings;
use super::step::Step;
use super::timers;
use leveret_amqp::{
    FRAME_OVERHEAD, Frame, FrameError, FrameKind, Method, Opening, PROTOCOL_HEADER, Table, classify_opening,
    next_frame,
};
use leveret_core::command::{Command, Name};
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::limits::FRAME_BYTES_MIN;
use leveret_core::log_limiter::LogKind;
use leveret_core::password::Secret;

impl Mechanism {
    /// User and password in a start-ok's response.
    fn credentials(self, response: &[u8]) -> Result<(&str, &[u8]), Unusable> {
        let (user, password) = match self {
            Self::Plain => plain_credentials(response).ok_or(Unusable::Unreadable)?,
            Self::AmqPlain => amqplain_credentials(response)?,
            Self::External => return Err(Unusable::Unreadable),
        };
        Ok((core::str::from_utf8(user).map_err(|_| Unusable::Wrong)?, password))
    }
}

/// Why there is no user and password in a response.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Unusable {
    /// It is not what the mechanism says.
    Unreadable,
    /// It is, but nobody can have such credentials.
    Wrong,
}

impl Connection {
    /// Whether it has not spoken yet.
    pub const fn awaits_header(&self) -> bool {
        matches!(self.phase, Phase::Header { .. })
    }

    /// Gives the peer more time for its handshake: so long it has waited for us.
    pub const fn postpone(&mut self, ms: u64) {
        if let Phase::Header { due } = &mut self.phase {
            *due = due.later_ms(ms);
        }
    }

    /// Waits for the protocol header. `None` when it is there and the handshake goes on.
    pub(super) fn step_header(
        &mut self,
        context: &Context<'_>,
        input: &[u8],
        at: &mut usize,
    ) -> Option<Step<'static>> {
        let Phase::Header { due } = self.phase else {
            return None;
        };
        match classify_opening(&input[*at..]) {
            Opening::NeedMore => return Some(Step::NeedMore),
            Opening::Amqp091 => {
                *at += PROTOCOL_HEADER.len();
                self.output.start_left = self.start_frame(context.settings).len() as u16;
                self.phase = Phase::Start { due };
                return None;
            }
            // Whoever owns the socket says what it was, with its address.
            Opening::Http | Opening::Tls | Opening::Mqtt | Opening::OtherAmqp | Opening::Unknown => {}
        }
        *at = input.len();
        self.output.is_protocol_header_due = true;
        self.finish(context.now);
        Some(Step::Finished)
    }

    /// connection.start for this peer.
    pub(super) fn start_frame<'s>(&self, settings: &'s Settings) -> &'s [u8] {
        if self.certificate_name.is_some() { &settings.start_frame_external } else { &settings.start_frame }
    }

    pub(super) fn step_handshake<'a>(
        &mut self,
        context: &mut Context<'_>,
        names: &'a mut Names,
        input: &'a [u8],
        at: &mut usize,
    ) -> Step<'a> {
        while matches!(self.phase, Phase::Start { .. } | Phase::Tune { .. } | Phase::Opening { .. }) {
            let rest = &input[*at..];
            let frame = match next_frame(rest, self.negotiated.frame_max) {
                Ok(Some(frame)) => frame,
                Ok(None) => return Step::NeedMore,
                Err(error) if matches!(self.phase, Phase::Opening { .. }) => {
                    self.fail_frame(context, rest, error);
                    break;
                }
                Err(FrameError::TooLarge(header)) if header.raw_kind == FrameKind::Method as u8 => {
                    let len = u64::from(header.size) + FRAME_OVERHEAD as u64;
                    self.refuse(
                        context,
                        format_args!("a frame of {len} bytes where at most {FRAME_BYTES_MIN} are allowed"),
                    );
                    break;
                }
                Err(_) => {
                    self.refuse(context, format_args!("bytes that are no frame of AMQP"));
                    break;
                }
            };
            *at += frame.input_len();
            if let Some(step) = self.handle_handshake_frame(context, frame) {
                return step;
            }
            if self.input.pending.is_login(Mechanism::External) {
                names.queue =
                    Name::try_from(self.certificate_name.as_deref().unwrap_or_default()).unwrap_or_default();
                let from_loopback = self.peer.from_loopback;
                let command = Command::LoginExternal { user: &names.queue, from_loopback };
                return Step::Command { channel: None, command };
            }
        }
        self.step_over(context, input, at)
    }

    fn handle_handshake_frame<'a>(
        &mut self,
        context: &mut Context<'_>,
        frame: Frame<'a>,
    ) -> Option<Step<'a>> {
        let is_opening = matches!(self.phase, Phase::Opening { .. });
        if is_opening && let Some(fault) = fault_of_frame(frame) {
            self.close_connection(context, &fault, (0, 0));
            return None;
        }
        if frame.header.kind() == Some(FrameKind::Heartbeat) && frame.header.channel == 0 {
            return None;
        }
        let method = match Method::parse(frame.payload) {
            Ok(method) if frame.header.kind() == Some(FrameKind::Method) && frame.header.channel == 0 => {
                method
            }
            Err(error) if is_opening => {
                let (fault, id) = fault_of_method(error, frame.payload, true);
                self.close_connection(context, &fault, id);
                return None;
            }
            _ => {
                self.refuse(context, format_args!("a frame that has no place in the handshake"));
                return None;
            }
        };
        match (self.phase, method) {
            (
                Phase::Start { .. },
                Method::ConnectionStartOk { client_properties, mechanism, response, .. },
            ) => self.start_ok(context, client_properties, mechanism, response),
            (Phase::Tune { .. }, Method::ConnectionTuneOk { channel_max, frame_max, heartbeat }) => {
                self.tune_ok(context, channel_max, frame_max, heartbeat);
                None
            }
            (Phase::Opening { .. }, Method::ConnectionOpen { virtual_host }) => {
                self.input.pending = Pending::on_connection(Kind::OpenVhost, method.id());
                Some(Step::Command { channel: None, command: Command::OpenVhost { vhost: virtual_host } })
            }
            (Phase::Opening { .. }, _) => {
                let fault = unexpected_method("opening");
                self.close_connection(context, &fault, method.id());
                None
            }
            _ => {
                self.refuse(context, format_args!("{} out of place", method.name()));
                None
            }
        }
    }

    fn start_ok<'a>(
        &mut self,
        context: &mut Context<'_>,
        client_properties: Table<'a>,
        mechanism: &str,
        response: &'a [u8],
    ) -> Option<Step<'a>> {
        self.capabilities = capabilities(client_properties);
        self.client = context.pools.clients.keep(client_properties);
        let known = match mechanism {
            "PLAIN" => Mechanism::Plain,
            "AMQPLAIN" => Mechanism::AmqPlain,
            "EXTERNAL" if self.certificate_name.is_some() => {
                self.mechanism = Mechanism::External.name();
                self.input.pending = Pending::on_connection(Kind::Login(Mechanism::External), (10, 11));
                return None;
            }
            _ => {
                self.refuse(context, format_args!("unknown authentication mechanism '{mechanism}'"));
                return None;
            }
        };
        self.mechanism = known.name();
        let (user, password) = match known.credentials(response) {
            Ok(both) => both,
            Err(Unusable::Unreadable) => {
                self.refuse(context, format_args!("{mechanism} credentials that cannot be read"));
                return None;
            }
            Err(Unusable::Wrong) => {
                self.refuse_login(context, known, format_args!("credentials that are nobody's"));
                return None;
            }
        };
        self.input.pending = Pending::on_connection(Kind::Login(known), (10, 11));
        let (password, from_loopback) = (Secret(password), self.peer.from_loopback);
        let command = Command::Login { user, password, from_loopback };
        Some(Step::Command { channel: None, command })
    }

    /// The broker let it in.
    pub(super) fn tune(&mut self, context: &mut Context<'_>) {
        let settings = context.settings;
        self.is_logged_in = true;
        if let Phase::Start { .. } = self.phase {
            self.phase = Phase::Tune { due: context.now.after_ms(settings.handshake_timeout_ms) };
        }
        let tune = Method::ConnectionTune {
            channel_max: settings.channel_max,
            frame_max: settings.frame_max,
            heartbeat: settings.heartbeat_s,
        };
        self.push_reply(context, 0, &tune, 0);
    }

    fn tune_ok(&mut self, context: &mut Context<'_>, channel_max: u16, frame_max: u32, heartbeat: u16) {
        let Phase::Tune { due } = self.phase else { panic!("this phase has no tune-ok") };
        self.phase = Phase::Opening { due };
        if let Some(fault) = check_negotiated(context.settings, channel_max, frame_max) {
            // RabbitMQ names connection.tune as the method that failed.
            self.close_connection(context, &fault, (10, 30));
            return;
        }
        self.negotiated.channel_max = channel_max;
        self.negotiated.frame_max = frame_max;
        self.negotiated.heartbeat_ms = u32::from(heartbeat) * 1000;
        self.timing.wrote = context.now;
    }

    /// Leaves the peer waiting for a while; then its socket is closed without a word.
    pub(super) fn refuse(&mut self, context: &mut Context<'_>, why: fmt::Arguments<'_>) {
        self.warn(context, LogKind::Login, format_args!(": refused during the handshake: {why}"));
        let until = context.now.after_ms(timers::REFUSAL_DELAY_MS);
        self.phase = Phase::Refused { until, tell: None };
    }

    /// The same for wrong credentials; a client that said it understands is told in the end.
    pub(super) fn refuse_login(
        &mut self,
        context: &mut Context<'_>,
        mechanism: Mechanism,
        why: fmt::Arguments<'_>,
    ) {
        self.refuse(context, why);
        if let Phase::Refused { tell, .. } = &mut self.phase {
            *tell = self.capabilities.authentication_failure_close.then_some(mechanism);
        }
    }

    /// The delay is over.
    pub(super) fn send_refusal(&mut self, context: &mut Context<'_>, mechanism: Mechanism) {
        let fault = Fault::connection(
            ReplyCode::AccessRefused,
            format_args!(
                "Login was refused using authentication mechanism {}. For details see the broker logfile.",
                mechanism.name()
            ),
        );
        self.close_connection(context, &fault, (0, 0));
        if let Phase::Closing { until, .. } = &mut self.phase {
            *until = context.now.after_ms(PARTING_MS);
        }
    }
}

fn capabilities(client_properties: Table<'_>) -> Capabilities {
    let table = client_properties.get("capabilities").and_then(|value| value.as_table());
    let has = |name| table.and_then(|table| table.get(name)).and_then(|value| value.as_bool()) == Some(true);
    Capabilities {
        authentication_failure_close: has("authentication_failure_close"),
        consumer_cancel_notify: has("consumer_cancel_notify"),
        connection_blocked: has("connection.blocked"),
    }
}

/// What the client may have less of but not more, and not less than AMQP demands.
fn check_negotiated(settings: &Settings, channel_max: u16, frame_max: u32) -> Option<Fault> {
    let not_allowed = |key: &str, value: u32, detail: &str, than: &str, limit: u32| {
        let text = format_args!("negotiated {key} = {value}{detail} is {than} allowed value ({limit})");
        Some(hard_fault(ReplyCode::NotAllowed, text))
    };
    let (lower, higher) = ("lower than the minimum", "higher than the maximum");
    if frame_max != 0 && frame_max < FRAME_BYTES_MIN {
        return not_allowed("frame_max", frame_max, "", lower, FRAME_BYTES_MIN);
    }
    if frame_max == 0 || frame_max > settings.frame_max {
        return not_allowed("frame_max", frame_max, "", higher, settings.frame_max);
    }
    if channel_max == 0 || channel_max > settings.channel_max {
        let detail = if channel_max == 0 { " (no limit)" } else { "" };
        return not_allowed("channel_max", channel_max.into(), detail, higher, settings.channel_max.into());
    }
    None
}

/// `[authorization identity] NUL user NUL password`. Nobody can act for another here, so, as in RabbitMQ, no
/// identity may be named: whoever names one means something that would not happen.
fn plain_credentials(response: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut parts = response.split(|octet| *octet == 0);
    let (identity, user, password) = (parts.next()?, parts.next()?, parts.next()?);
    (identity.is_empty() && parts.next().is_none()).then_some((user, password))
}

/// A field table without its length. Numbers are no credentials, but RabbitMQ reads them.
fn amqplain_credentials(response: &[u8]) -> Result<(&[u8], &[u8]), Unusable> {
    let table = Table::parse(response).map_err(|_| Unusable::Unreadable)?;
    let field = |name| table.get(name).map(|value| value.as_bytes()).ok_or(Unusable::Unreadable);
    match (field("LOGIN")?, field("PASSWORD")?) {
        (Some(user), Some(password)) => Ok((user, password)),
        (None, None) => Err(Unusable::Unreadable),
        _ => Err(Unusable::Wrong),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_of_both_mechanisms() {
        let guest = Some((&b"guest"[..], &b"secret"[..]));
        assert_eq!(plain_credentials(b"\0guest\0secret"), guest);
        assert_eq!(plain_credentials(b"\0guest\0"), Some((&b"guest"[..], &b""[..])));
        let of_another = &b"somebody\0guest\0secret"[..];
        for bad in [of_another, b"guest\0guest\0secret", b"", b"guest", b"guest\0secret", b"\0a\0b\0c"] {
            assert_eq!(plain_credentials(bad), None, "{bad:?}");
        }
        let table = b"\x05LOGINS\0\0\0\x05guest\x08PASSWORDS\0\0\0\x06secret";
        assert_eq!(amqplain_credentials(table).ok(), guest);
        let number = b"\x05LOGINS\0\0\0\x05guest\x08PASSWORDI\0\0\0\x05";
        assert_eq!(amqplain_credentials(number), Err(Unusable::Wrong));
        assert_eq!(amqplain_credentials(b"\x05LOGINS\0\0\0\x05guest"), Err(Unusable::Unreadable));
        assert_eq!(amqplain_credentials(b"\x05LOGINS\0\0\0\x05gue"), Err(Unusable::Unreadable));
    }
}
