//! The handshake: from the protocol header to connection.open-ok; and the stored client properties.
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
//! Any machine on the network can begin a handshake, so the state of a handshake is small. After an error,
//! the socket of the client is closed with a delay of one second.
//!
//! # Invariants
//! - Before the login, no reply is sent for an error, as in RabbitMQ.
//! - Frames of the handshake are at most as large as the smallest `frame_max` that AMQP allows.
//! - No log line contains a password.

use core::fmt;
use leveret_core::mem::{Class, HeapBytes, Memory};

use leveret_amqp::field::{Table, TableWriter, Value};
use leveret_amqp::{
    FRAME_OVERHEAD, Frame, FrameError, FrameKind, Full, Method, Opening, PROTOCOL_HEADER, Writer,
    classify_opening, next_frame,
};
use leveret_core::command::{Command, LoginCommand, Name, OpenVhost};
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::limits::FRAME_BYTES_MIN;
use leveret_core::log_limiter::LogKind;
use leveret_core::password::Secret;

use super::channel::NONE;
use super::connection::{Capabilities, Connection, Context, Names, Phase, SOCKET_CLOSE_TIMEOUT_MS, Settings};
use super::input::InputStep;
use super::input::{fault_of_frame, fault_of_method, hard_fault, unexpected_method};
use super::methods::{Mechanism, Pending};
use super::timeouts;

impl Mechanism {
    /// Returns user and password from the response in connection.start-ok.
    fn credentials(self, response: &[u8]) -> Result<(&str, &[u8]), CredentialsError> {
        let (user, password) = match self {
            Self::Plain => plain_credentials(response).ok_or(CredentialsError::Malformed)?,
            Self::AmqPlain => amqplain_credentials(response)?,
            Self::External => return Err(CredentialsError::Malformed),
        };
        Ok((core::str::from_utf8(user).map_err(|_| CredentialsError::Impossible)?, password))
    }
}

/// Why a response contains no usable credentials.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum CredentialsError {
    /// The response does not have the format of the mechanism.
    Malformed,
    /// The response has the right format, but no user can have these credentials.
    Impossible,
}

impl Connection {
    /// Returns whether the protocol header is not complete yet.
    pub const fn awaits_header(&self) -> bool {
        matches!(self.phase, Phase::Header { .. })
    }

    /// Extends the handshake timeout by `ms` milliseconds, during which the broker has not read from the client.
    pub const fn postpone(&mut self, ms: u64) {
        if let Phase::Header { due } = &mut self.phase {
            *due = due.later_ms(ms);
        }
    }

    /// Handles the protocol header. Returns `None` when it was valid, or was handled before.
    pub(super) fn step_header(
        &mut self,
        context: &Context<'_>,
        input: &[u8],
        at: &mut usize,
    ) -> Option<InputStep<'static>> {
        let Phase::Header { due } = self.phase else {
            return None;
        };
        match classify_opening(&input[*at..]) {
            Opening::NeedMore => return Some(InputStep::NeedMore),
            Opening::Amqp091 => {
                *at += PROTOCOL_HEADER.len();
                self.output.start_left = self.start_frame(context.settings).len() as u16;
                self.phase = Phase::Start { due };
                return None;
            }
            // The caller logs which protocol the client uses.
            Opening::Http | Opening::Tls | Opening::Mqtt | Opening::OtherAmqp | Opening::Unknown => {}
        }
        *at = input.len();
        self.output.is_protocol_header_due = true;
        self.finish(context.now);
        Some(InputStep::Finished)
    }

    /// Returns the frame of connection.start for this client.
    pub(super) fn start_frame<'s>(&self, settings: &'s Settings) -> &'s [u8] {
        if self.certificate_name.is_some() { &settings.start_frame_external } else { &settings.start_frame }
    }

    /// Handles the frames of the handshake up to the first step for the caller.
    pub(super) fn step_handshake<'a>(
        &mut self,
        context: &mut Context<'_>,
        names: &'a mut Names,
        input: &'a [u8],
        at: &mut usize,
    ) -> InputStep<'a> {
        while matches!(self.phase, Phase::Start { .. } | Phase::Tune { .. } | Phase::Opening { .. }) {
            let rest = &input[*at..];
            let frame = match next_frame(rest, self.negotiated.frame_max) {
                Ok(Some(frame)) => frame,
                Ok(None) => return InputStep::NeedMore,
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
                    self.refuse(context, format_args!("the input is not a frame of AMQP"));
                    break;
                }
            };
            *at += frame.input_len();
            if let Some(step) = self.handle_handshake_frame(context, frame) {
                return step;
            }
            if self.input.pending == Pending::Login(Mechanism::External) {
                names.queue =
                    Name::try_from(self.certificate_name.as_deref().unwrap_or_default()).unwrap_or_default();
                let from_loopback = self.peer.from_loopback;
                let command = LoginCommand::External { user: &names.queue, from_loopback };
                return InputStep::Command(Command::Login(command));
            }
        }
        self.step_over(context, input, at)
    }

    /// Handles one frame of the handshake. Returns the step for the caller, if there is one.
    fn handle_handshake_frame<'a>(
        &mut self,
        context: &mut Context<'_>,
        frame: Frame<'a>,
    ) -> Option<InputStep<'a>> {
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
                self.refuse(context, format_args!("a frame that is not allowed in the handshake"));
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
                self.input.pending = Pending::method(method.id(), NONE, false);
                Some(InputStep::Command(Command::OpenVhost(OpenVhost { vhost: virtual_host })))
            }
            (Phase::Opening { .. }, _) => {
                let fault = unexpected_method("opening");
                self.close_connection(context, &fault, method.id());
                None
            }
            _ => {
                self.refuse(context, format_args!("unexpected {}", method.name()));
                None
            }
        }
    }

    /// Handles connection.start-ok. Returns the command for the login, except for EXTERNAL, which the caller handles.
    fn start_ok<'a>(
        &mut self,
        context: &mut Context<'_>,
        client_properties: Table<'a>,
        mechanism: &str,
        response: &'a [u8],
    ) -> Option<InputStep<'a>> {
        self.capabilities = capabilities(client_properties);
        self.client = context.pools.clients.keep(client_properties);
        let supported = match mechanism {
            "PLAIN" => Mechanism::Plain,
            "AMQPLAIN" => Mechanism::AmqPlain,
            "EXTERNAL" if self.certificate_name.is_some() => {
                self.mechanism = Mechanism::External.name();
                self.input.pending = Pending::Login(Mechanism::External);
                return None;
            }
            _ => {
                self.refuse(context, format_args!("unknown authentication mechanism '{mechanism}'"));
                return None;
            }
        };
        self.mechanism = supported.name();
        let (user, password) = match supported.credentials(response) {
            Ok(both) => both,
            Err(CredentialsError::Malformed) => {
                self.refuse(context, format_args!("malformed {mechanism} credentials"));
                return None;
            }
            Err(CredentialsError::Impossible) => {
                self.refuse_login(context, supported, format_args!("no user can have these credentials"));
                return None;
            }
        };
        self.input.pending = Pending::Login(supported);
        let (password, from_loopback) = (Secret(password), self.peer.from_loopback);
        let command = LoginCommand::Password { user, password, from_loopback };
        Some(InputStep::Command(Command::Login(command)))
    }

    /// Sends connection.tune after the broker has accepted the login.
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

    /// Handles connection.tune-ok.
    fn tune_ok(&mut self, context: &mut Context<'_>, channel_max: u16, frame_max: u32, heartbeat: u16) {
        let Phase::Tune { due } = self.phase else { panic!("this phase has no tune-ok") };
        self.phase = Phase::Opening { due };
        if let Some(fault) = check_negotiated(context.settings, channel_max, frame_max) {
            // RabbitMQ sends class and method of connection.tune as those that caused the error.
            self.close_connection(context, &fault, (10, 30));
            return;
        }
        self.negotiated.channel_max = channel_max;
        self.negotiated.frame_max = frame_max;
        self.negotiated.heartbeat_ms = u32::from(heartbeat) * 1000;
        self.timing.last_written = context.now;
    }

    /// Refuses the client: its socket is closed after a delay, without a reply.
    pub(super) fn refuse(&mut self, context: &mut Context<'_>, why: fmt::Arguments<'_>) {
        self.warn(context, LogKind::Login, format_args!(": refused during the handshake: {why}"));
        let until = context.now.after_ms(timeouts::REFUSAL_DELAY_MS);
        self.phase = Phase::Refused { until, answer: None };
    }

    /// Refuses the client as [`Self::refuse`] does, because of wrong credentials. If the client supports it,
    /// connection.close is sent after the delay.
    pub(super) fn refuse_login(
        &mut self,
        context: &mut Context<'_>,
        mechanism: Mechanism,
        why: fmt::Arguments<'_>,
    ) {
        self.refuse(context, why);
        if let Phase::Refused { answer, .. } = &mut self.phase {
            *answer = self.capabilities.authentication_failure_close.then_some(mechanism);
        }
    }

    /// Sends connection.close for a refused login, after the delay. The reason was logged before.
    pub(super) fn send_refusal(&mut self, context: &mut Context<'_>, mechanism: Mechanism) {
        let fault = Fault::connection(
            ReplyCode::AccessRefused,
            format_args!(
                "Login was refused using authentication mechanism {}. For details see the broker logfile.",
                mechanism.name()
            ),
        );
        self.send_connection_close(context, &fault, (0, 0));
        if let Phase::Closing { until, .. } = &mut self.phase {
            *until = context.now.after_ms(SOCKET_CLOSE_TIMEOUT_MS);
        }
    }
}

/// Returns the capabilities in the client properties.
fn capabilities(client_properties: Table<'_>) -> Capabilities {
    let table = client_properties.get("capabilities").and_then(|value| value.as_table());
    let has = |name| table.and_then(|table| table.get(name)).and_then(|value| value.as_bool()) == Some(true);
    Capabilities {
        authentication_failure_close: has("authentication_failure_close"),
        consumer_cancel_notify: has("consumer_cancel_notify"),
        connection_blocked: has("connection.blocked"),
    }
}

/// Checks the limits in connection.tune-ok. The client may lower them, but not below AMQP's minimum. Returns RabbitMQ's
/// error if they are not allowed.
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

/// Parses `[authorization identity] NUL user NUL password`. Acting for another user is not supported, so an
/// authorization identity is refused, as in RabbitMQ.
fn plain_credentials(response: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut parts = response.split(|octet| *octet == 0);
    let (identity, user, password) = (parts.next()?, parts.next()?, parts.next()?);
    (identity.is_empty() && parts.next().is_none()).then_some((user, password))
}

/// Parses a field table without its length, and returns user and password.
fn amqplain_credentials(response: &[u8]) -> Result<(&[u8], &[u8]), CredentialsError> {
    let table = Table::parse(response).map_err(|_| CredentialsError::Malformed)?;
    let field = |name| table.get(name).map(|value| value.as_bytes()).ok_or(CredentialsError::Malformed);
    match (field("LOGIN")?, field("PASSWORD")?) {
        (Some(user), Some(password)) => Ok((user, password)),
        (None, None) => Err(CredentialsError::Malformed),
        _ => Err(CredentialsError::Impossible),
    }
}

/// Maximum size of one connection's properties, in bytes.
const BYTES_MAX: usize = 2_048;
/// The properties of one connection take at most this part of the memory that is free.
const FREE_DIVISOR: usize = 16;
/// Texts are truncated to this number of bytes if there is not enough capacity.
const CUT_TEXT_BYTES: usize = 36;
/// The mark at the end of a truncated text.
const ELLIPSIS: &str = "…";
/// Properties by which an operator recognises a program. They are stored even if there is no capacity for
/// others.
const NAMES: [&str; 3] = ["connection_name", "product", "version"];

/// The properties that a client sent in connection.start-ok, as the entries of a field table.
///
/// Texts, numbers, Booleans and the table `capabilities` are stored, with any name. If the properties do not fit, texts are
/// truncated. If they still do not fit, only [`NAMES`] are stored. A login never fails because of them.
#[derive(Debug, Default)]
pub(super) struct ClientProperties {
    entries: Box<[u8]>,
}

/// The memory for the properties of all clients.
#[derive(Debug)]
pub(super) struct ClientPool(HeapBytes);

/// Which of the properties are stored.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    Whole,
    CutTexts,
    Names,
}

impl ClientPool {
    pub(super) fn in_memory(memory: &Memory) -> Self {
        Self(HeapBytes::with_gaps(memory, Class::Clients))
    }

    /// Stores the properties of a client, or as many of them as fit.
    pub(super) fn keep(&mut self, properties: Table<'_>) -> ClientProperties {
        let room = BYTES_MAX.min(self.0.free() / FREE_DIVISOR);
        let mut bytes = [0; 4 + BYTES_MAX];
        for extent in [Extent::Whole, Extent::CutTexts, Extent::Names] {
            let mut writer = Writer::new(&mut bytes[..4 + room]);
            if writer.table(|table| write(table, properties, extent)).is_ok() {
                let entries: Box<[u8]> = writer.written().get(4..).unwrap_or_default().into();
                self.0.add(entries.len());
                return ClientProperties { entries };
            }
        }
        ClientProperties::default()
    }

    /// Releases the memory of a client's properties.
    pub(super) fn give_back(&mut self, properties: ClientProperties) {
        self.0.subtract(properties.entries.len());
    }
}

impl ClientProperties {
    pub(super) fn table(&self) -> Table<'_> {
        Table::trusted(&self.entries)
    }
}

fn write(table: &mut TableWriter<'_, '_>, properties: Table<'_>, extent: Extent) -> Result<(), Full> {
    for (name, value) in properties.iter() {
        if extent == Extent::Names && !NAMES.iter().any(|kept| kept.as_bytes() == name) {
            continue;
        }
        match value {
            Value::LongStr(_) => match value.as_str() {
                Some(text) if extent != Extent::Whole && text.len() > CUT_TEXT_BYTES => {
                    let room = CUT_TEXT_BYTES - ELLIPSIS.len();
                    let end = (0..=room).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
                    let cut = [&text[..end], ELLIPSIS].concat();
                    table.value(name, Value::LongStr(cut.as_bytes()))?;
                }
                Some(_) => table.value(name, value)?,
                None => {}
            },
            Value::Table(capabilities) if name == b"capabilities" => {
                table.table("capabilities", |inner| {
                    let known = capabilities.iter().filter(|(_, value)| matches!(value, Value::Bool(_)));
                    known.into_iter().try_for_each(|(name, value)| inner.value(name, value))
                })?;
            }
            Value::Table(_) | Value::Array(_) | Value::Binary(_) => {}
            _ => table.value(name, value)?,
        }
    }
    Ok(())
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
        assert_eq!(amqplain_credentials(number), Err(CredentialsError::Impossible));
        assert_eq!(amqplain_credentials(b"\x05LOGINS\0\0\0\x05guest"), Err(CredentialsError::Malformed));
        assert_eq!(amqplain_credentials(b"\x05LOGINS\0\0\0\x05gue"), Err(CredentialsError::Malformed));
    }
}

#[cfg(test)]
mod client_properties_tests {
    use super::*;

    /// Properties as a client library sends them, with a connection name of this length.
    fn properties(name_len: usize) -> Vec<u8> {
        let mut bytes = vec![0; 16 << 10];
        let mut writer = Writer::new(&mut bytes);
        let name = "é".repeat(name_len / 2);
        let written = writer.table(|table| {
            table.text("product", "Pika Python Client Library")?;
            table.table("capabilities", |inner| {
                inner.bool("basic.nack", true)?;
                inner.long("odd", 7)
            })?;
            table.text("connection_name", &name)?;
            table.long("answer", 42)?;
            table.bool("is_own", true)?;
            table.array("list", |array| array.int(1))?;
            table.value(b"secret", Value::Binary(b"\0"))
        });
        assert!(written.is_ok());
        writer.written()[4..].to_vec()
    }

    #[test]
    fn texts_numbers_booleans_and_capabilities_are_kept() {
        let mut pool = ClientPool::in_memory(&Memory::unlimited());
        let bytes = properties(100);
        let kept = pool.keep(Table::trusted(&bytes));
        let names: Vec<_> =
            kept.table().iter().map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect();
        assert_eq!(names, ["product", "capabilities", "connection_name", "answer", "is_own"]);
        let capabilities =
            kept.table().get("capabilities").and_then(|value| value.as_table()).expect("a table");
        assert_eq!(capabilities.iter().count(), 1);
        assert_eq!(
            kept.table().get("connection_name").and_then(|value| value.as_str()).map(str::len),
            Some(100)
        );
        pool.give_back(kept);
        assert_eq!(pool.0.used(), 0);
    }

    #[test]
    fn what_does_not_fit_is_cut_with_an_ellipsis_and_gives_everything_back() {
        let mut pool = ClientPool::in_memory(&Memory::new(4 + leveret_core::mem::COMMAND_EXTENTS, [0; 3]));
        let bytes = properties(1_000);
        let clients: Vec<_> = (0..40).map(|_| pool.keep(Table::trusted(&bytes))).collect();
        let name = |client: &ClientProperties| {
            client.table().get("connection_name").and_then(|value| value.as_str()).map(str::to_owned)
        };
        let first = name(&clients[0]).expect("there is room for the first");
        assert!(first.ends_with(ELLIPSIS) && first.len() <= CUT_TEXT_BYTES, "{first}");
        assert!(clients[0].table().get("answer").is_some() && clients[1].table().get("answer").is_some());
        let bytes: usize = clients.iter().map(|client| client.entries.len()).sum();
        assert!(bytes <= 4 * leveret_core::mem::EXTENT_BYTES, "{bytes}");
        clients.into_iter().for_each(|client| pool.give_back(client));
        assert_eq!(pool.0.used(), 0);
    }
}
