//! Writing field tables and arrays.
//!
//! Clients interpret some type tags differently. Values that Leveret creates have only tags that all clients
//! interpret in the same way (`S I l t F A T V d`). Values received from a client are written with their
//! original tags.

use super::{Table, Value};
use crate::{Full, Writer};
use leveret_core::mem::sort_by_key;

/// Maximum number of entries that are sorted. The order of a larger table is not changed.
const SORTED_MAX: usize = 128;

/// Writes a value with the tag with which it was read (`l` for both 64-bit tags).
fn write_value(w: &mut Writer<'_>, value: Value<'_>) -> Result<(), Full> {
    match value {
        Value::LongStr(octets) => tagged(w, b'S', |w| w.write_long_str(octets)),
        Value::Timestamp(n) => tagged(w, b'T', |w| w.write_u64(n)),
        Value::Byte(n) => tagged(w, b'b', |w| w.write_raw(&n.to_be_bytes())),
        Value::UnsignedByte(n) => tagged(w, b'B', |w| w.write_u8(n)),
        Value::Short(n) => tagged(w, b's', |w| w.write_raw(&n.to_be_bytes())),
        Value::UnsignedShort(n) => tagged(w, b'u', |w| w.write_u16(n)),
        Value::Int(n) => tagged(w, b'I', |w| w.write_raw(&n.to_be_bytes())),
        Value::UnsignedInt(n) => tagged(w, b'i', |w| w.write_u32(n)),
        Value::Long(n) => tagged(w, b'l', |w| w.write_raw(&n.to_be_bytes())),
        Value::Float(n) => tagged(w, b'f', |w| w.write_raw(&n.to_be_bytes())),
        Value::Double(n) => tagged(w, b'd', |w| w.write_raw(&n.to_be_bytes())),
        Value::Decimal { scale, value } => tagged(w, b'D', |w| {
            w.write_u8(scale)?;
            w.write_u32(value)
        }),
        Value::Bool(truth) => tagged(w, b't', |w| w.write_u8(truth.into())),
        Value::Table(table) => tagged(w, b'F', |w| w.write_table(table)),
        Value::Array(array) => tagged(w, b'A', |w| w.write_long_str(array.as_bytes())),
        Value::Void => w.write_u8(b'V'),
        Value::Binary(octets) => tagged(w, b'x', |w| w.write_long_str(octets)),
    }
}

#[inline]
fn tagged(
    w: &mut Writer<'_>,
    tag: u8,
    payload: impl FnOnce(&mut Writer<'_>) -> Result<(), Full>,
) -> Result<(), Full> {
    w.write_u8(tag)?;
    payload(w)
}

impl<'a> Writer<'a> {
    /// Writes a field table, with its length before it.
    #[inline]
    pub fn write_table(&mut self, table: Table<'_>) -> Result<(), Full> {
        self.write_long_str(table.as_bytes())
    }

    /// Writes a field table whose entries `fill` writes, with its length before it.
    ///
    /// # Errors
    /// [`Full`] if the table does not fit. The buffer is then unchanged.
    #[inline]
    pub fn table(
        &mut self,
        fill: impl FnOnce(&mut TableWriter<'_, 'a>) -> Result<(), Full>,
    ) -> Result<(), Full> {
        self.with_length(|w| fill(&mut TableWriter::new(w)))
    }
}

/// Builds a table inside a [`Writer`]; see [`Writer::table`].
///
/// The methods for single types write only tags that all clients interpret in the same way: `S I l t F A T V
/// d`. [`TableWriter::value`] and [`TableWriter::entries`] copy received values unchanged.
///
/// After [`Full`] the table must be discarded, because an entry may be incomplete. [`Writer::table`] does
/// this if its closure returns the error.
#[derive(Debug)]
pub struct TableWriter<'w, 'b> {
    w: &'w mut Writer<'b>,
}

impl<'w, 'b> TableWriter<'w, 'b> {
    pub(crate) fn new(w: &'w mut Writer<'b>) -> Self {
        Self { w }
    }

    fn named(&mut self, name: &str) -> Result<ArrayWriter<'_, 'b>, Full> {
        self.w.write_short_str(name.as_bytes())?;
        Ok(ArrayWriter { w: self.w })
    }

    /// Writes a text, as `S`.
    pub fn text(&mut self, name: &str, text: &str) -> Result<(), Full> {
        self.named(name)?.text(text)
    }

    /// Writes octets, as `S`.
    pub fn long_str(&mut self, name: &str, octets: &[u8]) -> Result<(), Full> {
        self.named(name)?.long_str(octets)
    }

    /// Writes a number, as `I`.
    pub fn int(&mut self, name: &str, number: i32) -> Result<(), Full> {
        self.named(name)?.int(number)
    }

    /// Writes a number, as `l`.
    pub fn long(&mut self, name: &str, number: i64) -> Result<(), Full> {
        self.named(name)?.long(number)
    }

    /// Writes a number, as `d`. It must be finite.
    pub fn double(&mut self, name: &str, number: f64) -> Result<(), Full> {
        self.named(name)?.double(number)
    }

    /// Writes a boolean, as `t`.
    pub fn bool(&mut self, name: &str, truth: bool) -> Result<(), Full> {
        self.named(name)?.bool(truth)
    }

    /// Writes a time in seconds since 1970, as `T`.
    pub fn timestamp(&mut self, name: &str, seconds: u64) -> Result<(), Full> {
        self.named(name)?.timestamp(seconds)
    }

    /// Writes an entry without a value, as `V`.
    pub fn void(&mut self, name: &str) -> Result<(), Full> {
        self.named(name)?.void()
    }

    /// Writes a nested table, as `F`.
    pub fn table(
        &mut self,
        name: &str,
        fill: impl FnOnce(&mut TableWriter<'_, 'b>) -> Result<(), Full>,
    ) -> Result<(), Full> {
        self.named(name)?.table(fill)
    }

    /// Writes a nested array, as `A`.
    pub fn array(
        &mut self,
        name: &str,
        fill: impl FnOnce(&mut ArrayWriter<'_, 'b>) -> Result<(), Full>,
    ) -> Result<(), Full> {
        self.named(name)?.array(fill)
    }

    /// Writes a received value with its original type. The name may be up to 255 octets of any value.
    pub fn value(&mut self, name: &[u8], value: Value<'_>) -> Result<(), Full> {
        self.w.write_short_str(name)?;
        write_value(self.w, value)
    }

    /// Writes all entries of a received table, octet by octet.
    pub fn entries(&mut self, table: Table<'_>) -> Result<(), Full> {
        self.w.write_raw(table.as_bytes())
    }

    /// Writes the entries of a received table, octet by octet, except those with the name `name`.
    pub fn entries_without(&mut self, table: Table<'_>, name: &str) -> Result<(), Full> {
        let mut kept = raw_entries(table).filter(|(key, _)| *key != name.as_bytes());
        kept.try_for_each(|(_, octets)| self.w.write_raw(octets))
    }

    /// Writes those entries of a received table for whose names `keeps` returns `true`, and new entries.
    /// `own` are the names of the new entries, and `write` writes one of them. A new entry replaces received
    /// ones with the same name. The entries are sorted by name, as in RabbitMQ when it changes a table.
    pub fn sorted(
        &mut self,
        table: Table<'_>,
        keeps: &dyn Fn(&[u8]) -> bool,
        own: &[&str],
        write: &mut dyn FnMut(&mut Self, &str) -> Result<(), Full>,
    ) -> Result<(), Full> {
        let is_own = |name: &[u8]| own.iter().any(|own| own.as_bytes() == name);
        let kept = || raw_entries(table).filter(|(name, _)| keeps(name) && !is_own(name));
        let mut fields = heapless::Vec::<(&[u8], u8, &[u8]), SORTED_MAX>::new();
        let all = kept().chain(own.iter().map(|name| (name.as_bytes(), &[][..])));
        // The position is part of the sort key, so that entries with the same name keep their order.
        let mut numbered = all.zip(0_u8..).map(|((name, octets), at)| (name, at, octets));
        if numbered.by_ref().take(SORTED_MAX + 1).try_for_each(|field| fields.push(field)).is_err() {
            kept().try_for_each(|(_, octets)| self.w.write_raw(octets))?;
            return own.iter().try_for_each(|name| write(self, name));
        }
        sort_by_key(&mut fields, |(name, at, _)| (*name, *at));
        fields.iter().try_for_each(|(name, _, octets)| match own.iter().find(|own| own.as_bytes() == *name) {
            Some(name) => write(self, name),
            None => self.w.write_raw(octets),
        })
    }
}

/// Iterates over the entries: the name, and the octets of the entry including the name.
fn raw_entries(table: Table<'_>) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut entries = table.iter();
    core::iter::from_fn(move || {
        let from = entries.rest();
        let (name, _) = entries.next()?;
        Some((name, from.get(..from.len() - entries.rest().len())?))
    })
}

/// Builds an array inside a [`Writer`]; see [`TableWriter::array`]. The same rules as for [`TableWriter`]
/// apply.
#[derive(Debug)]
pub struct ArrayWriter<'w, 'b> {
    w: &'w mut Writer<'b>,
}

impl<'b> ArrayWriter<'_, 'b> {
    /// Writes a text, as `S`.
    pub fn text(&mut self, text: &str) -> Result<(), Full> {
        self.long_str(text.as_bytes())
    }

    /// Writes octets, as `S`.
    pub fn long_str(&mut self, octets: &[u8]) -> Result<(), Full> {
        self.value(Value::LongStr(octets))
    }

    /// Writes a number, as `I`.
    pub fn int(&mut self, number: i32) -> Result<(), Full> {
        self.value(Value::Int(number))
    }

    /// Writes a number, as `l`.
    pub fn long(&mut self, number: i64) -> Result<(), Full> {
        self.value(Value::Long(number))
    }

    /// Writes a number, as `d`. It must be finite.
    pub fn double(&mut self, number: f64) -> Result<(), Full> {
        debug_assert!(number.is_finite(), "clients and RabbitMQ cannot read {number}");
        self.value(Value::Double(number))
    }

    /// Writes a boolean, as `t`.
    pub fn bool(&mut self, truth: bool) -> Result<(), Full> {
        self.value(Value::Bool(truth))
    }

    /// Writes a time in seconds since 1970, as `T`.
    pub fn timestamp(&mut self, seconds: u64) -> Result<(), Full> {
        self.value(Value::Timestamp(seconds))
    }

    /// Writes an entry without a value, as `V`.
    pub fn void(&mut self) -> Result<(), Full> {
        self.value(Value::Void)
    }

    /// Writes a nested table, as `F`.
    pub fn table(
        &mut self,
        fill: impl FnOnce(&mut TableWriter<'_, 'b>) -> Result<(), Full>,
    ) -> Result<(), Full> {
        self.w.write_u8(b'F')?;
        self.w.table(fill)
    }

    /// Writes a nested array, as `A`.
    pub fn array(
        &mut self,
        fill: impl FnOnce(&mut ArrayWriter<'_, 'b>) -> Result<(), Full>,
    ) -> Result<(), Full> {
        self.w.write_u8(b'A')?;
        self.w.with_length(|w| fill(&mut ArrayWriter { w }))
    }

    /// Writes a received value with its original type.
    pub fn value(&mut self, value: Value<'_>) -> Result<(), Full> {
        write_value(self.w, value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(fill: impl FnOnce(&mut TableWriter<'_, '_>) -> Result<(), Full>) -> Vec<u8> {
        let mut buf = [0; 500];
        let mut w = Writer::new(&mut buf);
        w.table(fill).expect("fits");
        w.written()[4..].to_vec()
    }

    #[test]
    fn only_tags_that_all_clients_agree_on_are_written() {
        let octets = written(|t| {
            t.text("S", "text")?;
            t.int("I", -1)?;
            t.long("l", i64::MIN)?;
            t.double("d", 0.5)?;
            t.bool("t", true)?;
            t.timestamp("T", 1)?;
            t.void("V")?;
            t.table("F", |t| t.text("inner", ""))?;
            t.array("A", |a| {
                a.text("x")?;
                a.array(|a| a.int(1))?;
                a.table(|t| t.bool("y", false))
            })
        });
        let table = Table::parse(&octets).expect("sound");
        let mut entries = table.iter();
        loop {
            let tag = entries.rest().get(2).copied();
            let Some((name, _)) = entries.next() else { break };
            assert_eq!(name.first().copied(), tag, "the name is the tag");
        }
        let array = table.get("A").and_then(|value| value.as_array()).expect("an array");
        let kinds: Vec<_> = array.iter().map(|value| value.type_name()).collect();
        assert_eq!(kinds, ["longstr", "array", "table"]);
        assert_eq!(table.get("S").and_then(|value| value.as_str()), Some("text"));
    }

    #[test]
    fn entries_are_left_out_by_name_and_the_rest_stays_as_it_is() {
        let octets = b"\x01at\x05\x01bL\0\0\0\0\0\0\0\x01\x01ai\0\0\0\x01\x01cs\0\x01";
        let table = Table::parse(octets).expect("sound");
        let left = written(|t| t.entries_without(table, "a"));
        assert_eq!(left, b"\x01bL\0\0\0\0\0\0\0\x01\x01cs\0\x01");
        assert_eq!(written(|t| t.entries_without(table, "z")), octets);
    }

    #[test]
    fn a_table_is_put_in_order_with_our_own_entries() {
        let octets = b"\x01zt\x05\x01mbx\x01at\x01\x01mb1\x01at\x00";
        let table = Table::parse(octets).expect("sound");
        let sorted =
            written(|t| t.sorted(table, &|name| name != b"m", &["b", "z"], &mut |t, name| t.int(name, 7)));
        assert_eq!(sorted, b"\x01at\x01\x01at\x00\x01bI\0\0\0\x07\x01zI\0\0\0\x07");
    }

    #[test]
    fn a_table_of_many_entries_stays_as_it_is_in_front_of_ours() {
        let octets = b"\x01zV".repeat(SORTED_MAX);
        let table = Table::parse(&octets).expect("sound");
        let put = |table| written(|t| t.sorted(table, &|_| true, &["b"], &mut |t, name| t.void(name)));
        assert_eq!(put(table), [&octets[..], b"\x01bV"].concat());
        let fewer = Table::parse(&octets[3..]).expect("sound");
        assert_eq!(put(fewer), [b"\x01bV", &octets[3..]].concat());
    }

    #[test]
    fn a_table_that_does_not_fit_leaves_no_trace() {
        let mut buf = [0; 12];
        let mut w = Writer::new(&mut buf);
        assert_eq!(w.table(|t| t.table("a", |t| t.text("b", "too long"))), Err(Full));
        assert_eq!(w.at(), 0);
    }
}
