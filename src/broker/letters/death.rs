//! What a dead letter carries: why, when and from where it was given up, in RabbitMQ's words.
//!
//! ```text
//! x-death              array, the last death first │ count reason queue time exchange routing-keys │ …
//! x-first-death-reason, x-first-death-queue, x-first-death-exchange       of the first of all
//! ```
//!
//! These headers stand among the others in the order of all names.
//!
//! Always true: x-death has one entry for each queue and reason, with a count; a letter that comes to a queue
//! once more without anybody having rejected it in between is going round in circles by itself.

use leveret_amqp::Full;
use leveret_amqp::field::{Array, ArrayWriter, Table, TableWriter, Value};
use leveret_core::command::Refusal;
use leveret_core::mem::sort_by_key;

/// Entries of x-death that are looked at for others of their queue and reason: a client may have made up any
/// number.
const GROUPED_MAX: usize = 32;
/// The headers that a first death writes; a further death writes x-death alone.
const OWN: [&str; 4] = ["x-death", "x-first-death-exchange", "x-first-death-queue", "x-first-death-reason"];

/// Why a queue gives a message up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reason {
    /// A consumer rejected the message, or nobody wants it any more.
    Rejected,
    /// The message's time to live is over.
    Expired,
    /// The queue is over its length limit.
    MaxLength,
    /// The message is over the delivery limit.
    DeliveryLimit,
    /// The other side of a bridge does not take the message; the number is the cause's place among the
    /// parkings.
    Parked(u8),
}

/// Why a bridge sets messages aside, which bridge, and to which queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Parking {
    pub(crate) bridge: Box<str>,
    pub(crate) queue: Box<str>,
    pub(crate) why: Refusal,
}

impl Reason {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::MaxLength => "maxlen",
            Self::DeliveryLimit => "delivery_limit",
            // A parked message has headers of its own, see `parked`.
            Self::Parked(_) => "parked",
        }
    }
}

/// One death, and the headers of the message before it.
pub(crate) struct Death<'a> {
    pub(crate) reason: Reason,
    pub(crate) queue: &'a str,
    /// The time of the death, in seconds since 1970.
    pub(crate) unix_s: u64,
    pub(crate) exchange: &'a str,
    pub(crate) routing_key: &'a [u8],
    /// The expiration property that the message had.
    pub(crate) expiration: Option<&'a [u8]>,
    pub(crate) headers: Table<'a>,
    /// The letter has another routing key, so the CC header goes.
    pub(crate) drops_copies: bool,
    /// The headers may be too long with this death to keep BCC out of them later, so the BCC header goes.
    pub(crate) drops_blind: bool,
}

impl<'a> Death<'a> {
    /// The x-death entries before this death.
    fn before(&self) -> Option<Array<'a>> {
        self.headers.get("x-death").and_then(|value| value.as_array())
    }

    /// Whether an older death is of the same queue, for the same reason.
    fn is_same(&self, value: Value<'_>) -> bool {
        let is = |death: Table<'_>, name, text: &str| {
            death.get(name).and_then(|value| value.as_bytes()) == Some(text.as_bytes())
        };
        let death = value.as_table();
        death.is_some_and(|death| is(death, "queue", self.queue) && is(death, "reason", self.reason.name()))
    }

    /// Writes the headers with this death; an x-death that is no list of deaths is dropped.
    pub(crate) fn write(&self, headers: &mut TableWriter<'_, '_>) -> Result<(), Full> {
        let own = match self.headers.get("x-death") {
            None => &OWN[..],
            Some(_) => &OWN[..1],
        };
        let drops_blind = self.drops_copies || self.drops_blind;
        let keeps = |name: &[u8]| !(self.drops_copies && name == b"CC" || drops_blind && name == b"BCC");
        headers.sorted(self.headers, &keeps, own, &mut |headers, name| match name {
            "x-first-death-exchange" => headers.text(name, self.exchange),
            "x-first-death-queue" => headers.text(name, self.queue),
            "x-first-death-reason" => headers.text(name, self.reason.name()),
            _ => headers.array(name, |deaths| match self.before() {
                Some(before) => self.write_deaths(deaths, before),
                None => deaths.table(|death| self.write_entry(death, true)),
            }),
        })
    }

    /// Writes this death and those before it: one entry for each queue and reason, which counts for all.
    fn write_deaths(&self, deaths: &mut ArrayWriter<'_, '_>, before: Array<'_>) -> Result<(), Full> {
        let mut known = heapless::Vec::<_, GROUPED_MAX>::new();
        let is_grouped = before.iter().try_for_each(|value| known.push(kind_of(value))).is_ok();
        // An entry without a count stands for itself, and beside others for all of its queue and reason.
        let uncounted = |kind| match known.len() {
            1 => 0,
            _ => known.iter().filter(|other| **other == kind).count() as i64,
        };
        let same = before.iter().find(|value| self.is_same(*value));
        match same.and_then(|value| value.as_table().zip(kind_of(value))) {
            Some((same, kind)) => {
                deaths.table(|death| count_once_more(death, same, uncounted(Some(kind))))?
            }
            None => deaths.table(|death| self.write_entry(death, false))?,
        }
        for (at, value) in before.iter().enumerate().filter(|(_, value)| !self.is_same(*value)) {
            let kind = kind_of(value);
            match value.as_table().filter(|death| death.get("count").is_none()) {
                _ if is_grouped && kind.is_some() && known[..at].contains(&kind) => {}
                Some(death) if is_grouped && known.len() > 1 => deaths.table(|entry| {
                    entry.long("count", uncounted(kind))?;
                    death.iter().try_for_each(|(name, value)| entry.value(name, value))
                })?,
                _ => deaths.value(value)?,
            }
        }
        Ok(())
    }

    /// Writes an x-death entry in RabbitMQ's order of fields, which is sorted for all but the very first
    /// entry.
    fn write_entry(&self, death: &mut TableWriter<'_, '_>, is_first: bool) -> Result<(), Full> {
        death.long("count", 1)?;
        if is_first {
            death.text("reason", self.reason.name())?;
            death.text("queue", self.queue)?;
            death.timestamp("time", self.unix_s)?;
            death.text("exchange", self.exchange)?;
            self.write_keys(death)?;
            return self.write_expiration(death);
        }
        death.text("exchange", self.exchange)?;
        self.write_expiration(death)?;
        death.text("queue", self.queue)?;
        death.text("reason", self.reason.name())?;
        self.write_keys(death)?;
        death.timestamp("time", self.unix_s)
    }

    fn write_keys(&self, death: &mut TableWriter<'_, '_>) -> Result<(), Full> {
        death.array("routing-keys", |keys| {
            keys.long_str(self.routing_key)?;
            let copies = self.headers.get("CC").and_then(|value| value.as_array());
            let copies = copies.into_iter().flatten().filter_map(|value| value.as_bytes());
            copies.into_iter().try_for_each(|key| keys.long_str(key))
        })
    }

    fn write_expiration(&self, death: &mut TableWriter<'_, '_>) -> Result<(), Full> {
        self.expiration.map_or(Ok(()), |text| death.long_str("original-expiration", text))
    }

    /// Calls `each` with the queues that the message passed since it was last rejected: to these it would go
    /// round in circles by itself. Says how many deaths were looked at.
    pub(crate) fn each_passed(&self, each: &mut dyn FnMut(&str)) -> usize {
        if self.reason == Reason::Rejected {
            return 0;
        }
        each(self.queue);
        let mut looked_at = 1;
        for death in self.before().into_iter().flatten().filter_map(|value| value.as_table()) {
            looked_at += 1;
            let text = |name| death.get(name).and_then(|value| value.as_bytes());
            if text("reason") == Some(Reason::Rejected.name().as_bytes()) {
                break;
            }
            // Bytes that are no UTF-8 are no queue's name.
            if let Some(queue) = text("queue").and_then(|queue| core::str::from_utf8(queue).ok()) {
                each(queue);
            }
        }
        looked_at
    }
}

/// The queue and the reason of an x-death entry, if it is one.
fn kind_of(value: Value<'_>) -> Option<(&[u8], &[u8])> {
    let death = value.as_table()?;
    let text = |name| death.get(name).and_then(|value| value.as_bytes());
    text("queue").zip(text("reason"))
}

/// Writes an older death of the same queue and reason with its count one higher, else as it was, sorted;
/// `uncounted`: the count if it has none.
fn count_once_more(death: &mut TableWriter<'_, '_>, same: Table<'_>, uncounted: i64) -> Result<(), Full> {
    let count = same.get("count").and_then(|value| value.as_integer()).unwrap_or(uncounted);
    death.long("count", count.saturating_add(1))?;
    // A client may have made the entry up; one with more fields than the broker writes keeps their order.
    let mut fields = heapless::Vec::<_, 16>::new();
    let others = || same.iter().filter(|(name, _)| *name != b"count");
    if others().try_for_each(|field| fields.push(field)).is_err() {
        return others().try_for_each(|(name, value)| death.value(name, value));
    }
    sort_by_key(&mut fields, |(name, _)| *name);
    fields.iter().try_for_each(|(name, value)| death.value(name, *value))
}
