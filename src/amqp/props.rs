//! Content headers, and the properties of messages.
//!
//! Every message has properties, but the broker seldom needs them. They are kept as the octets that the
//! publisher sent, so consumers receive them unchanged, even if the header table is empty or absent. A
//! property that the broker needs is found by skipping those before it, according to the flags.
//!
//! # Invariants
//! - [`Properties`] returned by `parse` have been checked completely: every flag is defined, every property
//!   is present, no octets are left, and the header table is valid. The accessors cannot fail.
//!
//! ```text
//!    payload of a header frame (§4.2.6.1):
//!
//!    0          2        4           12               14
//!    +----------+--------+-----------+----------------+-------------------+
//!    | class-id | weight | body size | property flags | property list ... |
//!    +----------+--------+-----------+----------------+-------------------+
//!      short      short    long long   short            properties whose flag is set, in this order
//!                                    '------------- [`Properties`] -------------'
//!
//!    flag  property          type             flag  property        type
//!    ----  --------          ----             ----  --------        ----
//!    8000  content-type      short string     0100  expiration      short string
//!    4000  content-encoding  short string     0080  message-id      short string
//!    2000  headers           table            0040  timestamp       unsigned 64
//!    1000  delivery-mode     octet            0020  type            short string
//!    0800  priority          octet            0010  user-id         short string
//!    0400  correlation-id    short string     0008  app-id          short string
//!    0200  reply-to          short string     0004  cluster-id      short string
//! ```
//!
//! Flag 0001 means that another word of flags follows, and 0002 is undefined. There are no more properties,
//! so both are refused. RabbitMQ ignores both but sends them to consumers, which then read octets that do not
//! exist.

use super::{FrameKind, Full, Reader, Table, TableWriter, Value, WireError, Writer};
use leveret_core::mem::MessageFlags;

/// The only class with methods that have content.
pub const BASIC_CLASS: u16 = 60;

const CONTENT_TYPE: u16 = 0x8000;
const CONTENT_ENCODING: u16 = 0x4000;
const HEADERS: u16 = 0x2000;
const DELIVERY_MODE: u16 = 0x1000;
const PRIORITY: u16 = 0x0800;
const CORRELATION_ID: u16 = 0x0400;
const REPLY_TO: u16 = 0x0200;
const EXPIRATION: u16 = 0x0100;
const MESSAGE_ID: u16 = 0x0080;
const TIMESTAMP: u16 = 0x0040;
const KIND: u16 = 0x0020;
const USER_ID: u16 = 0x0010;
const APP_ID: u16 = 0x0008;
const CLUSTER_ID: u16 = 0x0004;

/// The type of a property.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PropertyKind {
    /// A short string.
    Text,
    /// A table.
    Headers,
    /// A number of one octet.
    Octet,
    /// Seconds since 1970.
    Timestamp,
}

/// All properties in their order in the list: name, flag and type.
pub const PROPERTIES: [(&str, u16, PropertyKind); 14] = [
    ("content_type", CONTENT_TYPE, PropertyKind::Text),
    ("content_encoding", CONTENT_ENCODING, PropertyKind::Text),
    ("headers", HEADERS, PropertyKind::Headers),
    ("delivery_mode", DELIVERY_MODE, PropertyKind::Octet),
    ("priority", PRIORITY, PropertyKind::Octet),
    ("correlation_id", CORRELATION_ID, PropertyKind::Text),
    ("reply_to", REPLY_TO, PropertyKind::Text),
    ("expiration", EXPIRATION, PropertyKind::Text),
    ("message_id", MESSAGE_ID, PropertyKind::Text),
    ("timestamp", TIMESTAMP, PropertyKind::Timestamp),
    ("type", KIND, PropertyKind::Text),
    ("user_id", USER_ID, PropertyKind::Text),
    ("app_id", APP_ID, PropertyKind::Text),
    ("cluster_id", CLUSTER_ID, PropertyKind::Text),
];

/// RabbitMQ's header with the QoS with which an MQTT client has published a message.
pub const PUBLISH_QOS: &str = "x-mqtt-publish-qos";
/// RabbitMQ's header with the response topic of an MQTT message, as a routing key.
pub const MQTT_REPLY_TO: &str = "x-reply-to-topic";
/// RabbitMQ's header with correlation data of MQTT that is longer than a short string of AMQP.
pub const MQTT_CORRELATION: &str = "x-correlation-id";
/// The header of a message that an MQTT client has published with RETAIN: true.
pub const MQTT_RETAIN: &str = "x-mqtt-retain";
/// The header with the payload format indicator of MQTT.
pub const MQTT_PAYLOAD_FORMAT: &str = "x-mqtt-payload-format";

/// Returns whether a header with this name is a user property for MQTT clients, and none that the broker writes itself.
pub fn is_user_property(name: &[u8]) -> bool {
    let prefixes = ["x-mqtt-", "x-first-death-", "x-last-death-"];
    name != MQTT_REPLY_TO.as_bytes()
        && name != MQTT_CORRELATION.as_bytes()
        && !prefixes.iter().any(|prefix| name.starts_with(prefix.as_bytes()))
}

const UNDEFINED: u16 = 0x0003;
const OCTETS: u16 = DELIVERY_MODE | PRIORITY;

const PERSISTENT: u8 = 2;

/// Properties with more bytes than this are sent to consumers unchanged: BCC is not removed, and
/// `x-delivery-count` is not added.
pub const BLIND_BYTES_MAX: usize = 8192;

/// The payload of a header frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentHeader<'a> {
    /// The class of the method to which the content belongs. After `parse` it is always [`BASIC_CLASS`].
    pub class_id: u16,
    /// Unused; it must be 0 (§4.2.6.1). RabbitMQ treats a frame with another value as an unexpected frame.
    pub weight: u16,
    /// Number of octets of the body, which follow in body frames. If it is 0, no body frame follows.
    pub body_len: u64,
    /// The message's properties.
    pub properties: Properties<'a>,
}

impl<'a> ContentHeader<'a> {
    /// Returns the header for a message with a body of `body_len` octets.
    #[inline]
    pub fn new(body_len: u64, properties: Properties<'a>) -> Self {
        Self { class_id: BASIC_CLASS, weight: 0, body_len, properties }
    }

    /// Reads the payload of a header frame.
    ///
    /// # Errors
    /// [`WireError::UnexpectedClass`] for a class without content; else the first error in the properties.
    #[inline]
    pub fn parse(payload: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(payload);
        let class_id = reader.u16()?;
        let weight = reader.u16()?;
        let body_len = reader.u64()?;
        if class_id != BASIC_CLASS {
            return Err(WireError::UnexpectedClass(class_id));
        }
        let properties = Properties::parse(reader.rest())?;
        Ok(Self { class_id, weight, body_len, properties })
    }

    /// Writes the payload of a header frame.
    #[inline]
    pub fn emit(&self, w: &mut Writer<'_>) -> Result<(), Full> {
        w.write_u16(self.class_id)?;
        w.write_u16(self.weight)?;
        w.write_u64(self.body_len)?;
        w.write_raw(self.properties.as_bytes())
    }

    /// Writes a header frame completely, or nothing.
    #[inline]
    pub fn emit_frame(&self, channel: u16, w: &mut Writer<'_>) -> Result<(), Full> {
        w.frame(FrameKind::Header, channel, |w| self.emit(w))
    }
}

/// The properties of a message: flags and property list as received.
///
/// Strings are octets: as in RabbitMQ, they need not be UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Properties<'a> {
    bytes: &'a [u8],
}

impl<'a> Properties<'a> {
    /// No properties.
    pub const EMPTY: Properties<'static> = Properties { bytes: &[0, 0] };

    /// Checks `bytes`, which are flags and property list, and returns the properties.
    ///
    /// # Errors
    /// [`WireError::UndefinedFlags`], [`WireError::Truncated`], [`WireError::TrailingBytes`], or an error of
    /// [`Table::parse`] in the headers.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        let mut flags = reader.u16()?;
        if flags & UNDEFINED != 0 {
            return Err(WireError::UndefinedFlags);
        }
        while flags != 0 {
            let flag = highest(flags);
            if flag == HEADERS {
                reader.table()?;
            } else {
                skip(&mut reader, flag)?;
            }
            flags ^= flag;
        }
        reader.finish()?;
        Ok(Self { bytes })
    }

    /// Returns properties that were checked before, for example those of a stored message. If the bytes are
    /// not valid nevertheless, a property that cannot be read counts as absent.
    #[inline]
    pub fn trusted(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// Returns flags and property list as received.
    #[inline]
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Returns whether there is a header table, which may be empty.
    #[inline]
    pub fn has_headers(&self) -> bool {
        self.flags() & HEADERS != 0
    }

    /// Returns whether the delivery mode is 2. Without a delivery mode, or with any other value, the message
    /// is transient.
    #[inline]
    pub fn is_persistent(&self) -> bool {
        self.delivery_mode() == Some(PERSISTENT)
    }

    /// Returns the MIME type of the body.
    pub fn content_type(&self) -> Option<&'a [u8]> {
        self.short_str(CONTENT_TYPE)
    }

    /// Returns the MIME encoding of the body.
    pub fn content_encoding(&self) -> Option<&'a [u8]> {
        self.short_str(CONTENT_ENCODING)
    }

    /// Returns the property with this flag and type, as in [`PROPERTIES`]; `None` if it is absent.
    pub fn by_flag(&self, flag: u16, kind: PropertyKind) -> Option<Value<'a>> {
        let mut reader = self.find(flag)?;
        match kind {
            PropertyKind::Text => reader.short_str().ok().map(Value::LongStr),
            PropertyKind::Headers => self.headers().map(Value::Table),
            PropertyKind::Octet => reader.u8().ok().map(Value::UnsignedByte),
            PropertyKind::Timestamp => reader.u64().ok().map(Value::Timestamp),
        }
    }

    /// Returns the flags of a message with these properties.
    #[inline]
    pub fn message_flags(self) -> MessageFlags {
        let mode = self.delivery_mode();
        let mut flags = if mode == Some(2) { MessageFlags::PERSISTENT } else { MessageFlags::NONE };
        if self.is_published_exactly_once() {
            flags = flags.with(MessageFlags::EXACTLY_ONCE);
        }
        let wants_a_look = !matches!(mode, None | Some(1 | 2))
            || self.has_headers()
            || self.expiration().is_some()
            || self.user_id().is_some()
            || self.reply_to().is_some();
        if wants_a_look { flags.with(MessageFlags::PARSE_PROPERTIES) } else { flags }
    }

    /// Returns whether the message was published with QoS 2 of MQTT, according to RabbitMQ's header for that.
    #[inline]
    pub fn is_published_exactly_once(&self) -> bool {
        let qos = |headers: Table<'a>| headers.get(PUBLISH_QOS).and_then(|value| value.as_integer());
        self.has_headers() && self.headers().and_then(qos) == Some(2)
    }

    /// Returns the header table; `None` if it is absent, which is not the same as empty.
    pub fn headers(&self) -> Option<Table<'a>> {
        let octets = self.find(HEADERS)?.long_str().ok()?;
        Some(Table::trusted(octets))
    }

    /// Returns whether there is a header `BCC`. Publishers may set it; it is removed from messages for
    /// consumers.
    pub fn is_blind(&self) -> bool {
        self.headers().is_some_and(|headers| headers.get("BCC").is_some())
    }

    /// Returns the delivery mode. By convention 1 is transient and 2 persistent, but any octet is allowed.
    #[inline]
    pub fn delivery_mode(&self) -> Option<u8> {
        self.octet(DELIVERY_MODE)
    }

    /// Returns the priority. Messages with a larger one are more urgent. Any octet is allowed.
    pub fn priority(&self) -> Option<u8> {
        self.octet(PRIORITY)
    }

    /// Returns the application's correlation identifier.
    pub fn correlation_id(&self) -> Option<&'a [u8]> {
        self.short_str(CORRELATION_ID)
    }

    /// The address for replies.
    #[inline]
    pub fn reply_to(&self) -> Option<&'a [u8]> {
        self.short_str(REPLY_TO)
    }

    /// Returns the time until the message expires. It should be a decimal number of milliseconds, but is not
    /// checked here.
    #[inline]
    pub fn expiration(&self) -> Option<&'a [u8]> {
        self.short_str(EXPIRATION)
    }

    /// Returns the application's message identifier.
    pub fn message_id(&self) -> Option<&'a [u8]> {
        self.short_str(MESSAGE_ID)
    }

    /// Returns the timestamp. By convention it is in seconds since 1970, but any 64 bits are allowed.
    pub fn timestamp(&self) -> Option<u64> {
        self.find(TIMESTAMP)?.u64().ok()
    }

    /// Returns the property `type`: the application's name for the kind of message.
    pub fn kind(&self) -> Option<&'a [u8]> {
        self.short_str(KIND)
    }

    /// Returns the name of the user that published the message. The broker checks that it is that of the
    /// publisher's login.
    #[inline]
    pub fn user_id(&self) -> Option<&'a [u8]> {
        self.short_str(USER_ID)
    }

    /// Returns the application's identifier.
    pub fn app_id(&self) -> Option<&'a [u8]> {
        self.short_str(APP_ID)
    }

    /// Returns a property that is reserved in the specification. The broker does not use it, but passes it to
    /// consumers.
    pub fn cluster_id(&self) -> Option<&'a [u8]> {
        self.short_str(CLUSTER_ID)
    }

    /// Writes the properties with the changes in `edit`. All other properties are copied bit for bit.
    ///
    /// # Errors
    /// [`Full`] if they do not fit. The buffer is then unchanged.
    pub fn write_with(&self, edit: PropertyEdit<'_>, w: &mut Writer<'_>) -> Result<(), Full> {
        self.write_or_rewind(edit, None, w)
    }

    /// Like [`Self::write_with`], but with a header table that `fill` builds. It replaces an existing one.
    ///
    /// # Errors
    /// [`Full`] if they do not fit. The buffer is then unchanged.
    pub fn write_with_headers(
        &self,
        edit: PropertyEdit<'_>,
        fill: HeadersFill<'_>,
        w: &mut Writer<'_>,
    ) -> Result<(), Full> {
        let edit = PropertyEdit { headers: HeadersEdit::Set(Table::EMPTY), ..edit };
        self.write_or_rewind(edit, Some(fill), w)
    }

    /// Like [`Self::write_with`], but removes the header entries with the names `without`, and appends those
    /// that `add` writes. The other entries are copied octet by octet. `BCC` is always removed, because only
    /// the broker to which the message was published may read it.
    ///
    /// # Errors
    /// [`Full`] if they do not fit. The buffer is then unchanged.
    pub fn write_with_other_headers(
        &self,
        edit: PropertyEdit<'_>,
        without: &[&str],
        add: HeadersFill<'_>,
        w: &mut Writer<'_>,
    ) -> Result<(), Full> {
        let headers = self.headers().unwrap_or(Table::EMPTY);
        let fill: HeadersFill<'_> = &mut |table| {
            entries_but(headers, without, table)?;
            add(table)
        };
        self.write_with_headers(edit, fill, w)
    }

    fn write_or_rewind(
        &self,
        edit: PropertyEdit<'_>,
        fill: Option<HeadersFill<'_>>,
        w: &mut Writer<'_>,
    ) -> Result<(), Full> {
        let start = w.at();
        self.write_edited(edit, fill, w).inspect_err(|_| w.rewind(start))
    }

    fn write_edited(
        &self,
        edit: PropertyEdit<'_>,
        mut fill: Option<HeadersFill<'_>>,
        w: &mut Writer<'_>,
    ) -> Result<(), Full> {
        let old = self.flags();
        let mut flags = old;
        set(&mut flags, HEADERS, edit.headers.keeps(old & HEADERS != 0));
        set(&mut flags, REPLY_TO, edit.reply_to.keeps(old & REPLY_TO != 0));
        set(&mut flags, EXPIRATION, edit.expiration.keeps(old & EXPIRATION != 0));
        set(&mut flags, USER_ID, edit.user_id.keeps(old & USER_ID != 0));
        w.write_u16(flags)?;

        let mut remaining = old | flags;
        while remaining != 0 {
            let flag = highest(remaining);
            remaining ^= flag;
            if flags & flag == 0 {
                continue;
            }
            match (flag, edit) {
                (HEADERS, PropertyEdit { headers: HeadersEdit::Set(table), .. }) => match &mut fill {
                    Some(fill) => w.table(|headers| fill(headers))?,
                    None => w.write_table(table)?,
                },
                (HEADERS, PropertyEdit { headers: HeadersEdit::Without(name), .. }) => {
                    let table = self.headers().unwrap_or(Table::EMPTY);
                    w.table(|t| t.entries_without(table, name))?;
                }
                (REPLY_TO, PropertyEdit { reply_to: Edit::Set(text), .. })
                | (EXPIRATION, PropertyEdit { expiration: Edit::Set(text), .. })
                | (USER_ID, PropertyEdit { user_id: Edit::Set(text), .. }) => w.write_short_str(text)?,
                _ => w.write_raw(self.encoded(flag))?,
            }
        }
        Ok(())
    }

    #[inline]
    fn flags(&self) -> u16 {
        self.bytes.first_chunk().map_or(0, |flags| u16::from_be_bytes(*flags))
    }

    /// Returns a cursor at the property of `flag`; `None` if it is absent.
    #[inline]
    fn find(&self, flag: u16) -> Option<Reader<'a>> {
        let flags = self.flags();
        if flags & flag == 0 {
            return None;
        }
        let mut reader = Reader::new(self.bytes);
        reader.u16().ok()?;
        // The flags of the properties before this one, which are skipped.
        let mut before = flags & !(flag | (flag - 1));
        while before != 0 {
            let first = highest(before);
            skip(&mut reader, first).ok()?;
            before ^= first;
        }
        Some(reader)
    }

    /// Returns the octets of one property, including its length.
    fn encoded(&self, flag: u16) -> &'a [u8] {
        let Some(start) = self.find(flag) else {
            return &[];
        };
        let mut end = start;
        if skip(&mut end, flag).is_err() {
            return &[];
        }
        start.rest().get(..start.len() - end.len()).unwrap_or_default()
    }

    #[inline]
    fn short_str(&self, flag: u16) -> Option<&'a [u8]> {
        self.find(flag)?.short_str().ok()
    }

    #[inline]
    fn octet(&self, flag: u16) -> Option<u8> {
        self.find(flag)?.u8().ok()
    }
}

/// Returns the highest bit of `flags`, which is the flag of the first property. `flags` must not be 0.
#[inline]
fn highest(flags: u16) -> u16 {
    0x8000 >> flags.leading_zeros()
}

#[inline]
fn skip(reader: &mut Reader<'_>, flag: u16) -> Result<(), WireError> {
    match flag {
        HEADERS => reader.long_str().map(drop),
        TIMESTAMP => reader.u64().map(drop),
        flag if flag & OCTETS != 0 => reader.u8().map(drop),
        _ => reader.short_str().map(drop),
    }
}

#[inline]
fn set(flags: &mut u16, flag: u16, present: bool) {
    if present {
        *flags |= flag;
    } else {
        *flags &= !flag;
    }
}

/// Copies the entries whose names are not in `without`. Consecutive entries are copied in one piece.
fn entries_but(headers: Table<'_>, without: &[&str], table: &mut TableWriter<'_, '_>) -> Result<(), Full> {
    let mut entries = headers.iter();
    let mut from = entries.rest();
    loop {
        let before = entries.rest();
        let next = entries.next();
        let goes = |name: &[u8]| name == b"BCC" || without.iter().any(|other| other.as_bytes() == name);
        let ends = next.is_none_or(|(name, _)| goes(name));
        if ends {
            let len = from.len() - before.len();
            table.entries(Table::trusted(from.get(..len).unwrap_or_default()))?;
            from = entries.rest();
        }
        if next.is_none() {
            return Ok(());
        }
    }
}

/// A function that builds a header table.
pub type HeadersFill<'f> = &'f mut dyn FnMut(&mut TableWriter<'_, '_>) -> Result<(), Full>;

/// The change of one property.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Edit<T> {
    /// The property is unchanged, present or absent.
    #[default]
    Keep,
    /// The property is removed.
    Remove,
    /// The property is set to this value.
    Set(T),
}

impl<T> Edit<T> {
    fn keeps(&self, present: bool) -> bool {
        match self {
            Self::Keep => present,
            Self::Remove => false,
            Self::Set(_) => true,
        }
    }
}

/// The change of the header table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeadersEdit<'e> {
    /// The header table is unchanged, present or absent.
    #[default]
    Keep,
    /// The header table is removed.
    Remove,
    /// The header table is replaced, or added.
    Set(Table<'e>),
    /// All entries with this name are removed from the header table. The table stays even if it is empty
    /// then.
    Without(&'e str),
}

impl HeadersEdit<'_> {
    fn keeps(&self, present: bool) -> bool {
        match self {
            Self::Keep | Self::Without(_) => present,
            Self::Remove => false,
            Self::Set(_) => true,
        }
    }
}

/// Changes for [`Properties::write_with`]. The default changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PropertyEdit<'e> {
    /// The header table.
    pub headers: HeadersEdit<'e>,
    /// The address for replies.
    pub reply_to: Edit<&'e [u8]>,
    /// The time until the message expires.
    pub expiration: Edit<&'e [u8]>,
    /// The user that published the message.
    pub user_id: Edit<&'e [u8]>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_empty_and_there_are_three_things() {
        assert_eq!(Properties::parse(&[0, 0]).expect("none").headers(), None);
        let empty = Properties::parse(b"\x20\0\0\0\0\0").expect("empty headers");
        assert_eq!(empty.headers(), Some(Table::EMPTY));
        assert!(empty.has_headers() && !Properties::EMPTY.has_headers());
        let some = Properties::parse(b"\x20\0\0\0\0\x02\0V").expect("headers");
        assert_eq!(some.headers().map(|table| table.iter().count()), Some(1));
    }

    #[test]
    fn only_delivery_mode_2_is_persistent() {
        let with_mode = |mode| Properties::parse(&[0x10, 0, mode]).map(|p| p.is_persistent());
        assert_eq!([0, 1, 2, 3].map(with_mode), [Ok(false), Ok(false), Ok(true), Ok(false)]);
        assert!(!Properties::EMPTY.is_persistent());
        let behind_others = Properties::parse(b"\xf0\0\x01a\x01b\0\0\0\x02\0V\x02").expect("sound");
        assert!(behind_others.is_persistent());
        assert_eq!(behind_others.content_encoding(), Some(&b"b"[..]));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let cases: [(&[u8], WireError); 9] = [
            (b"", WireError::Truncated),
            (b"\0", WireError::Truncated),
            (b"\0\x01\0\0", WireError::UndefinedFlags),
            (b"\0\x02", WireError::UndefinedFlags),
            (b"\0\0\0", WireError::TrailingBytes),
            (b"\x80\0\x05a", WireError::Truncated),
            (b"\0\x40\0\0\0", WireError::Truncated),
            (b"\x20\0\0\0\0\x03\x01aU", WireError::UnknownFieldType(b'U')),
            (b"\x30\0\0\0\0\x02\0V", WireError::Truncated),
        ];
        for (octets, error) in cases {
            assert_eq!(Properties::parse(octets), Err(error), "{octets:?}");
        }
    }

    #[test]
    fn a_header_of_another_class_is_told_before_its_properties() {
        let payload = [&[0, 50, 0, 0][..], &7u64.to_be_bytes(), &[0xff, 0xff]].concat();
        assert_eq!(ContentHeader::parse(&payload), Err(WireError::UnexpectedClass(50)));
        let payload = [&[0, 60, 0, 9][..], &7u64.to_be_bytes(), &[0, 0]].concat();
        let header = ContentHeader::parse(&payload).expect("sound");
        assert_eq!((header.weight, header.body_len), (9, 7));
        assert_eq!(ContentHeader::parse(&payload[..13]), Err(WireError::Truncated));
    }

    #[test]
    fn edits_put_properties_where_they_belong() {
        let old = Properties::parse(b"\x90\x80\x02ab\x02\x01m").expect("type, mode, message id");
        let edit = PropertyEdit {
            headers: HeadersEdit::Set(Table::trusted(b"\0V")),
            reply_to: Edit::Set(b"r"),
            expiration: Edit::Set(b"10"),
            user_id: Edit::Keep,
        };
        let mut buf = [0; 64];
        let mut w = Writer::new(&mut buf);
        old.write_with(edit, &mut w).expect("fits");
        assert_eq!(w.written(), b"\xb3\x80\x02ab\0\0\0\x02\0V\x02\x01r\x0210\x01m");
    }

    #[test]
    fn leaving_out_the_last_header_leaves_an_empty_table() {
        let old = Properties::parse(b"\x20\0\0\0\0\x09\x03BCCA\0\0\0\0").expect("sound");
        let edit = PropertyEdit { headers: HeadersEdit::Without("BCC"), ..PropertyEdit::default() };
        let mut buf = [0; 64];
        let mut w = Writer::new(&mut buf);
        old.write_with(edit, &mut w).expect("fits");
        assert_eq!(w.written(), b"\x20\0\0\0\0\0");
        let mut w = Writer::new(&mut buf);
        Properties::EMPTY.write_with(edit, &mut w).expect("fits");
        assert_eq!(w.written(), [0, 0], "no table appears where none was");
    }
}
