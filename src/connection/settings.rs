//! What every connection is told and held to.
//!
//! Why it exists: connection.start says the same to everybody, so it is written once, at boot, and sent from
//! there; the limits a session keeps lie beside it, so that a session needs to see no more of the
//! configuration than this.
//!
//! Always true: nothing of it changes while the broker runs, and what was told is what is held to.

use leveret_amqp::{Full, Method, Table, TableWriter, Writer};
use leveret_core::limits::Limits;

/// How the broker introduces itself in connection.start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// `product`: some clients choose their behaviour by it.
    pub product: String,
    /// `version`: likewise.
    pub version: String,
    /// `platform`
    pub platform: String,
    /// `copyright`
    pub copyright: String,
    /// `information`
    pub information: String,
    /// `cluster_name`
    pub cluster_name: String,
}

/// What all connections share and nobody changes.
#[derive(Debug)]
pub struct Settings {
    pub(super) channel_max: u16,
    pub(super) frame_max: u32,
    pub(super) heartbeat_s: u16,
    pub(super) message_size_max: u32,
    pub(super) replies_bytes_max: usize,
    pub(super) handshake_timeout_ms: u64,
    pub(super) content_timeout_ms: u64,
    /// The frame of connection.start, ready to be sent.
    pub(super) start_frame: Box<[u8]>,
    /// The same for a peer with a client certificate.
    pub(super) start_frame_external: Box<[u8]>,
}

/// What a client may rely on; every one of them is true.
const CAPABILITIES: [&str; 9] = [
    "publisher_confirms",
    "exchange_exchange_bindings",
    "basic.nack",
    "consumer_cancel_notify",
    "connection.blocked",
    "consumer_priorities",
    "authentication_failure_close",
    "per_consumer_qos",
    "direct_reply_to",
];

/// connection.start must fit into the smallest frame there is, whatever the operator calls the product.
const START_BYTES_MAX: usize = 4096;
const TEXT_BYTES_MAX: usize = 400;

impl Settings {
    /// The part of the limits that a session keeps, and connection.start ready to be sent.
    pub fn new(limits: &Limits, identity: &Identity) -> Self {
        Self {
            channel_max: limits.channels_of_a_connection(),
            frame_max: limits.frame_max,
            heartbeat_s: limits.heartbeat_s,
            message_size_max: limits.message_size_max,
            replies_bytes_max: limits.replies_bytes_max as usize,
            handshake_timeout_ms: limits.handshake_timeout_ms.into(),
            content_timeout_ms: limits.content_timeout_ms.into(),
            start_frame: start_frame(identity, b"PLAIN AMQPLAIN"),
            start_frame_external: start_frame(identity, b"PLAIN AMQPLAIN EXTERNAL"),
        }
    }
}

fn start_frame(identity: &Identity, mechanisms: &[u8]) -> Box<[u8]> {
    let mut properties = vec![0; START_BYTES_MAX];
    let mut writer = Writer::new(&mut properties);
    let mut frame = vec![0; START_BYTES_MAX];
    let mut out = Writer::new(&mut frame);
    // Both fit: six texts of at most TEXT_BYTES_MAX and nine names.
    let complete = writer.table(|table| write_properties(table, identity)).and_then(|()| {
        let start = Method::ConnectionStart {
            version_major: 0,
            version_minor: 9,
            server_properties: Table::trusted(writer.written().get(4..).unwrap_or_default()),
            mechanisms,
            locales: b"en_US",
        };
        start.emit_frame(0, &mut out)
    });
    debug_assert!(complete.is_ok(), "the texts are cut so that they fit");
    let len = out.at();
    frame.truncate(len);
    frame.into_boxed_slice()
}

/// In the order of RabbitMQ, which is the alphabet's.
fn write_properties(table: &mut TableWriter<'_, '_>, identity: &Identity) -> Result<(), Full> {
    table.table("capabilities", |capabilities| {
        CAPABILITIES.iter().try_for_each(|name| capabilities.bool(name, true))
    })?;
    let texts = [
        ("cluster_name", &identity.cluster_name),
        ("copyright", &identity.copyright),
        ("information", &identity.information),
        ("platform", &identity.platform),
        ("product", &identity.product),
        ("version", &identity.version),
    ];
    texts.iter().try_for_each(|(name, text)| table.text(name, cut(text)))
}

fn cut(text: &str) -> &str {
    let end = (0..=TEXT_BYTES_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.get(..end.unwrap_or(0)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use leveret_amqp::next_frame;

    #[test]
    fn connection_start_fits_whatever_the_product_is_called() {
        let long = "é".repeat(4000);
        let identity = Identity {
            product: long.clone(),
            version: long.clone(),
            platform: long.clone(),
            copyright: long.clone(),
            information: long.clone(),
            cluster_name: long,
        };
        let settings = Settings::new(&Limits::default(), &identity);
        let frame = next_frame(&settings.start_frame_external, 4088).unwrap().unwrap();
        assert_eq!(frame.input_len(), settings.start_frame_external.len());
        let Method::ConnectionStart { server_properties, .. } = Method::parse(frame.payload).unwrap() else {
            panic!("connection.start");
        };
        let capabilities = server_properties.get("capabilities").and_then(|value| value.as_table()).unwrap();
        assert_eq!(capabilities.get("basic.nack").and_then(|value| value.as_bool()), Some(true));
        assert_eq!(
            server_properties.get("product").and_then(|value| value.as_str()).map(str::len),
            Some(400)
        );
    }
}
