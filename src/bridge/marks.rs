//! The headers that a message gets on its way; all else of its properties stays octet by octet, but for what a
//! message of somebody else may not decide on this side.
//!
//! | header | what it says |
//! |--------|--------------|
//! | `x-bridge-id` | the same for each repeat of one message: from the first bridge that it crosses |
//! | `x-bridge-via` | the same of the last bridge, where that is not the first |
//! | `x-bridge-hops` | how many bridges it has crossed |
//! | `x-bridge-repeat` | it may have been sent before |
//! | `x-bridge-cc` | what was its `CC`: a list of keys that routed it where it was published, and nowhere else |
//! | `x-bridge-user-id` | what was its property `user_id`: who sent it where that was looked at |
//!
//! Always true: a message without such headers keeps its own in one piece, and only gets more; nothing that a
//! bridge brings is routed by its headers, or taken for a user's of this side.

use leveret_amqp::{Edit, Full, Properties, PropertyEdit, Table, Value, Writer};

use super::own_id::{Origin, OwnId};

const ID: &str = "x-bridge-id";
const VIA: &str = "x-bridge-via";
const HOPS: &str = "x-bridge-hops";
const REPEAT: &str = "x-bridge-repeat";
const COPIES: &str = "x-bridge-cc";
const USER: &str = "x-bridge-user-id";
/// Further keys that RabbitMQ routes a message by.
const CC: &str = "CC";

/// What a message had on its way before, and what it has anew or no more.
const OF_SENDING: [&str; 9] = [
    VIA,
    HOPS,
    REPEAT,
    CC,
    "x-parked-cause",
    "x-parked-bridge",
    "x-parked-queue",
    "x-parked-time",
    "x-parked-count",
];

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

/// Writes a message's properties with its marks.
///
/// # Errors
/// They do not fit.
pub fn marked(
    properties: Properties<'_>,
    marks: Marks,
    origin: Origin,
    writer: &mut Writer<'_>,
) -> Result<(), Full> {
    let headers = properties.headers().unwrap_or(Table::EMPTY);
    let has_id = headers.get(ID).is_some();
    let hops = hops_of(properties).saturating_add(1).min(i64::MAX as u64);
    let is_repeat = marks.is_repeat || headers.get(REPEAT).is_some();
    let edit = PropertyEdit { user_id: Edit::Remove, ..PropertyEdit::default() };
    properties.write_with_other_headers(
        edit,
        &OF_SENDING,
        &mut |table| {
            if let Some(id) = marks.id {
                table.text(if has_id { VIA } else { ID }, &id.text(origin))?;
            }
            table.long(HOPS, hops as i64)?;
            if is_repeat {
                table.bool(REPEAT, true)?;
            }
            // What an earlier bridge has kept of them stays, and is not written twice.
            if let Some(keys) = headers.get(CC).filter(|_| headers.get(COPIES).is_none()) {
                table.value(COPIES.as_bytes(), keys)?;
            }
            match properties.user_id().filter(|_| headers.get(USER).is_none()) {
                Some(user) => table.value(USER.as_bytes(), Value::LongStr(user)),
                None => Ok(()),
            }
        },
        writer,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: Origin = Origin { store: [0xab; 16], life: 3 };
    const OWN: OwnId = OwnId { queue: 5, offset: 0x1a2, is_transient: false };

    fn written(properties: &[u8], write: impl FnOnce(Properties<'_>, &mut Writer<'_>)) -> Vec<u8> {
        let mut out = [0; 1000];
        let mut writer = Writer::new(&mut out);
        write(Properties::parse(properties).expect("sound"), &mut writer);
        let written = writer.written().to_vec();
        Properties::parse(&written).expect("what is written is sound");
        written
    }

    fn with_marks(properties: &[u8], marks: Marks) -> Vec<u8> {
        written(properties, |properties, writer| {
            marked(properties, marks, ORIGIN, writer).expect("it fits");
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
        let via = written(&once, |properties, writer| {
            let other = OwnId { queue: 9, offset: 9, is_transient: true };
            let marks = Marks { id: Some(other), is_repeat: true };
            marked(properties, marks, second, writer).expect("it fits");
            let mut out = [0; 1000];
            let mut twice = Writer::new(&mut out);
            marked(properties, marks, second, &mut twice).expect("it fits");
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
    fn who_parked_it_is_nobody_elses_business() {
        let parked = b"\x20\0\0\0\0\x19\x0ex-parked-causeS\0\0\0\x05full!";
        let sent = with_marks(parked, Marks { id: Some(OWN), is_repeat: false });
        assert_eq!(names(&sent), ["x-bridge-id", "x-bridge-hops"]);
    }

    /// A sensor that may write to one exchange reached an actuator's queue on the other side by them.
    #[test]
    fn keys_and_users_of_the_other_side_are_kept_as_data_and_decide_nothing() {
        // Headers `CC` and `BCC`, each a list of one key, and the property `user_id`.
        let list = |name: &str| {
            let mut entry = vec![name.len() as u8];
            entry.extend_from_slice(name.as_bytes());
            entry.extend_from_slice(b"A\0\0\0\x08S\0\0\0\x03key");
            entry
        };
        let table = [list("CC"), list("BCC")].concat();
        let length = (table.len() as u32).to_be_bytes();
        let properties = [b"\x20\x10", &length[..], &table, b"\x04evil"].concat();
        let once = with_marks(&properties, Marks { id: Some(OWN), is_repeat: false });
        assert_eq!(names(&once), ["x-bridge-id", "x-bridge-hops", "x-bridge-cc", "x-bridge-user-id"]);
        let sent = Properties::trusted(&once);
        let headers = sent.headers().expect("there are headers");
        assert_eq!(sent.user_id(), None);
        assert_eq!(headers.get(USER).and_then(|value| value.as_str()), Some("evil"));
        assert!(headers.get(COPIES).is_some_and(|value| value.as_array().is_some()));
        assert_eq!(
            names(&with_marks(&once, Marks { id: None, is_repeat: false })).len(),
            4,
            "once is enough"
        );
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let mut out = [0; 20];
        let marks = Marks { id: Some(OWN), is_repeat: false };
        let mut writer = Writer::new(&mut out);
        assert_eq!(marked(Properties::EMPTY, marks, ORIGIN, &mut writer), Err(Full));
        assert_eq!(writer.at(), 0);
    }
}
