//! The headers that a message gets on its way; all else of its properties stays octet by octet.
//!
//! | header | what it says |
//! |--------|--------------|
//! | `x-bridge-id` | the same for each repeat of one message: from the first bridge that it crosses |
//! | `x-bridge-via` | the same of the last bridge, where that is not the first |
//! | `x-bridge-hops` | how many bridges it has crossed |
//! | `x-bridge-repeat` | it may have been sent before |
//! | `x-parked-…` | of one that was refused: why, where, when and how often |
//!
//! Always true: a message without such headers keeps its own in one piece, and only gets more.

use crate::wire::{Full, HeadersEdit, Properties, PropertyEdit, Table, TableWriter, Value, Writer};

use super::own_id::{Origin, OwnId};

const ID: &str = "x-bridge-id";
const VIA: &str = "x-bridge-via";
const HOPS: &str = "x-bridge-hops";
const REPEAT: &str = "x-bridge-repeat";
const PARKED_CAUSE: &str = "x-parked-cause";
const PARKED_BRIDGE: &str = "x-parked-bridge";
const PARKED_QUEUE: &str = "x-parked-queue";
const PARKED_TIME: &str = "x-parked-time";
const PARKED_COUNT: &str = "x-parked-count";

/// What a message had on its way before, and what it has anew or no more.
const OF_SENDING: [&str; 8] =
    [VIA, HOPS, REPEAT, PARKED_CAUSE, PARKED_BRIDGE, PARKED_QUEUE, PARKED_TIME, PARKED_COUNT];
/// How often it was set aside stands last, and outlives the others.
const OF_PARKING: [&str; 5] = [PARKED_CAUSE, PARKED_BRIDGE, PARKED_QUEUE, PARKED_TIME, PARKED_COUNT];

/// What a message gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Marks {
    /// What it is known by here; `None`: it is not from here.
    pub id: Option<OwnId>,
    /// It may have been sent before.
    pub is_repeat: bool,
}

/// How many bridges a message has crossed.
pub fn hops_of(properties: Properties<'_>) -> u64 {
    let hops =
        properties.headers().and_then(|headers| headers.get(HOPS)).and_then(|value| value.as_integer());
    hops.and_then(|hops| u64::try_from(hops).ok()).unwrap_or(0)
}

/// What a message that came back from the upstream is known by here.
pub(super) fn own_id_of(properties: Properties<'_>, origin: Origin) -> Option<OwnId> {
    let headers = properties.headers()?;
    let id = headers.get(VIA).or_else(|| headers.get(ID))?;
    OwnId::parse(id.as_bytes()?, origin)
}

/// Writes a message's properties with its marks; `scratch` is room for its headers.
///
/// # Errors
/// They do not fit.
pub fn marked(
    properties: Properties<'_>,
    marks: Marks,
    origin: Origin,
    scratch: &mut [u8],
    writer: &mut Writer<'_>,
) -> Result<(), Full> {
    let headers = properties.headers().unwrap_or(Table::EMPTY);
    let has_id = headers.get(ID).is_some();
    let hops = hops_of(properties).saturating_add(1).min(i64::MAX as u64);
    let is_repeat = marks.is_repeat || headers.get(REPEAT).is_some();
    edited(properties, &OF_SENDING, scratch, writer, |table| {
        if let Some(id) = marks.id {
            table.text(if has_id { VIA } else { ID }, &id.text(origin))?;
        }
        table.long(HOPS, hops as i64)?;
        if is_repeat { table.bool(REPEAT, true) } else { Ok(()) }
    })
}

/// Writes the properties of a message that is set aside: why, by which bridge, from which queue here if it
/// was in one, and when in seconds since 1970.
///
/// # Errors
/// They do not fit.
pub fn parked(
    properties: Properties<'_>,
    (bridge, queue, cause): (&str, Option<&str>, &str),
    unix_s: u64,
    scratch: &mut [u8],
    writer: &mut Writer<'_>,
) -> Result<(), Full> {
    let headers = properties.headers().unwrap_or(Table::EMPTY);
    let count = headers.get(PARKED_COUNT).and_then(|value| value.as_integer()).unwrap_or(0);
    let count = count.max(0).saturating_add(1);
    edited(properties, &OF_PARKING, scratch, writer, |table| {
        table.text(PARKED_CAUSE, cause)?;
        table.text(PARKED_BRIDGE, bridge)?;
        queue.map_or(Ok(()), |queue| table.text(PARKED_QUEUE, queue))?;
        table.timestamp(PARKED_TIME, unix_s)?;
        table.long(PARKED_COUNT, count)
    })
}

/// Whether a bridge has set a message aside, and from which queue here, if it was in one.
pub fn came_from(properties: Properties<'_>) -> Option<Option<&str>> {
    let headers = properties.headers()?;
    headers.get(PARKED_CAUSE)?;
    Some(headers.get(PARKED_QUEUE).and_then(|queue| queue.as_str()))
}

/// Writes the properties of a message that is set aside no more; how often it was stays.
///
/// # Errors
/// They do not fit.
pub fn unparked(properties: Properties<'_>, scratch: &mut [u8], writer: &mut Writer<'_>) -> Result<(), Full> {
    edited(properties, &OF_PARKING[..4], scratch, writer, |_| Ok(()))
}

/// Writes properties whose headers lose some entries and get others.
fn edited(
    properties: Properties<'_>,
    without: &[&str],
    scratch: &mut [u8],
    writer: &mut Writer<'_>,
    add: impl FnOnce(&mut TableWriter<'_, '_>) -> Result<(), Full>,
) -> Result<(), Full> {
    let headers = properties.headers().unwrap_or(Table::EMPTY);
    let mut table = Writer::new(scratch);
    table.table(|table| {
        entries_but(headers, without, table)?;
        add(table)
    })?;
    // Behind its length.
    let entries = Table::trusted(table.written().get(4..).unwrap_or_default());
    properties
        .write_with(PropertyEdit { headers: HeadersEdit::Set(entries), ..PropertyEdit::default() }, writer)
}

/// Copies the entries of other names, in pieces as large as they come; never keys that nobody is told.
fn entries_but(headers: Table<'_>, without: &[&str], table: &mut TableWriter<'_, '_>) -> Result<(), Full> {
    let mut entries = headers.iter();
    let mut from = entries.rest();
    loop {
        let before = entries.rest();
        let next = entries.next();
        let goes = |name: &[u8]| name == b"BCC" || without.iter().any(|other| other.as_bytes() == name);
        let ends = next.is_none_or(|(name, _): (&[u8], Value<'_>)| goes(name));
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

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: Origin = Origin { store: [0xab; 16], life: 3 };
    const OWN: OwnId = OwnId { queue: 5, offset: 0x1a2, is_transient: false };

    fn written(properties: &[u8], write: impl FnOnce(Properties<'_>, &mut [u8], &mut Writer<'_>)) -> Vec<u8> {
        let (mut scratch, mut out) = ([0; 1000], [0; 1000]);
        let mut writer = Writer::new(&mut out);
        write(Properties::parse(properties).expect("sound"), &mut scratch, &mut writer);
        let written = writer.written().to_vec();
        Properties::parse(&written).expect("what is written is sound");
        written
    }

    fn with_marks(properties: &[u8], marks: Marks) -> Vec<u8> {
        written(properties, |properties, scratch, writer| {
            marked(properties, marks, ORIGIN, scratch, writer).expect("it fits");
        })
    }

    fn names(properties: &[u8]) -> Vec<String> {
        let headers = Properties::trusted(properties).headers().expect("there are headers");
        headers.iter().map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect()
    }

    #[test]
    fn the_first_bridge_names_the_message_and_the_next_ones_say_which_they_are() {
        let marks = Marks { id: Some(OWN), is_repeat: false };
        // A content type, a header of a strange type, persistent.
        let properties = b"\xb0\x00\x01t\x00\x00\x00\x0b\x01aL\0\0\0\0\0\0\0\x01\x02";
        let once = with_marks(properties, marks);
        assert_eq!(names(&once), ["a", "x-bridge-id", "x-bridge-hops"]);
        let sent = Properties::trusted(&once);
        assert_eq!((sent.content_type(), sent.is_persistent()), (Some(&b"t"[..]), true));
        assert_eq!(own_id_of(sent, ORIGIN), Some(OWN));
        assert_eq!(hops_of(sent), 1);
        let second = Origin { store: [1; 16], life: 1 };
        let via = written(&once, |properties, scratch, writer| {
            let other = OwnId { queue: 9, offset: 9, is_transient: true };
            let marks = Marks { id: Some(other), is_repeat: true };
            marked(properties, marks, second, scratch, writer).expect("it fits");
            let (mut scratch, mut out) = ([0; 1000], [0; 1000]);
            let mut twice = Writer::new(&mut out);
            marked(properties, marks, second, &mut scratch, &mut twice).expect("it fits");
            assert_eq!(own_id_of(Properties::trusted(twice.written()), second), Some(other));
        });
        assert_eq!(names(&via), ["a", "x-bridge-id", "x-bridge-via", "x-bridge-hops", "x-bridge-repeat"]);
        assert_eq!(hops_of(Properties::trusted(&via)), 2);
        let headers = Properties::trusted(&via).headers().expect("there are headers");
        let expected = "abababababababababababababababab-5-1a2";
        assert_eq!(headers.get(ID).and_then(|value| value.as_str()), Some(expected), "the first one's stays");
        assert_eq!(headers.as_bytes().get(..11), Some(&b"\x01aL\0\0\0\0\0\0\0\x01"[..]), "octet by octet");
        let third = with_marks(&via, Marks { id: None, is_repeat: false });
        assert!(names(&third).contains(&REPEAT.to_string()), "a repeat stays one");
    }

    #[test]
    fn a_parked_message_says_why_and_counts() {
        let park = |properties: &[u8]| {
            written(properties, |properties, scratch, writer| {
                parked(properties, ("plant", Some("q"), "NO_ROUTE"), 77, scratch, writer).expect("it fits");
            })
        };
        let twice = park(&park(b"\0\0"));
        let headers = Properties::trusted(&twice).headers().expect("there are headers");
        assert_eq!(headers.iter().count(), 5);
        assert_eq!(headers.get(PARKED_COUNT).and_then(|value| value.as_integer()), Some(2));
        assert_eq!(headers.get(PARKED_TIME), Some(Value::Timestamp(77)));
        assert_eq!(headers.get(PARKED_CAUSE).and_then(|value| value.as_str()), Some("NO_ROUTE"));
        let sent = with_marks(&twice, Marks { id: Some(OWN), is_repeat: false });
        assert_eq!(names(&sent), ["x-bridge-id", "x-bridge-hops"], "that is nobody else's business");
    }

    #[test]
    fn what_goes_back_keeps_its_own_headers_and_how_often_it_was_set_aside() {
        let words = ("plant", Some("telemetry"), "nacked");
        let aside = written(b"\x20\0\0\0\0\x07\x01aI\0\0\0\x05", |properties, scratch, writer| {
            parked(properties, words, 1, scratch, writer).expect("it fits");
        });
        let aside_properties = Properties::trusted(&aside);
        assert_eq!(came_from(aside_properties), Some(Some("telemetry")));
        let back = written(&aside, |properties, scratch, writer| {
            unparked(properties, scratch, writer).expect("it fits");
        });
        assert_eq!(names(&back), ["a", "x-parked-count"]);
        assert_eq!(came_from(Properties::trusted(&back)), None);
        let fetched = written(&[0, 0], |properties, scratch, writer| {
            parked(properties, ("plant", None, "refused here"), 1, scratch, writer).expect("it fits");
        });
        assert_eq!(came_from(Properties::trusted(&fetched)), Some(None));
        assert_eq!(came_from(Properties::EMPTY), None);
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let (mut scratch, mut out) = ([0; 20], [0; 1000]);
        let marks = Marks { id: Some(OWN), is_repeat: false };
        let mut writer = Writer::new(&mut out);
        assert_eq!(marked(Properties::EMPTY, marks, ORIGIN, &mut scratch, &mut writer), Err(Full));
        let (mut scratch, mut out) = ([0; 1000], [0; 20]);
        let mut writer = Writer::new(&mut out);
        assert_eq!(marked(Properties::EMPTY, marks, ORIGIN, &mut scratch, &mut writer), Err(Full));
        assert_eq!(writer.at(), 0);
    }
}
