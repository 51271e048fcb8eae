//! Field tables and arrays (§4.2.5.5): the arguments of methods and the headers of messages.
//!
//! A table is kept as the received bytes, which are checked once. An entry is decoded only when it is read.
//! [`TableWriter`] and [`ArrayWriter`] create only values of types that all clients interpret in the same
//! way.
//!
//! ```text
//!    table   = long-length  *( name value )          [`Table`] is what comes after the length
//!    array   = long-length  *( value )               [`Array`] likewise
//!    name    = short string, any octets
//!    value   = tag octet, then:
//!
//!    tag  type as RabbitMQ names it   payload          tag  type            payload
//!    ---  -------------------------   -------          ---  ----            -------
//!     t   bool                        octet             l   long            signed 64
//!     b   byte                        signed 8          L   long            signed 64
//!     B   unsignedbyte                unsigned 8        f   float           IEEE single
//!     s   short                       signed 16         d   double          IEEE double
//!     u   unsignedshort               unsigned 16       D   decimal         octet scale, unsigned 32
//!     I   signedint                   signed 32         S   longstr         long string
//!     i   unsignedint                 unsigned 32       x   binary          long string
//!     T   timestamp                   unsigned 64       F   table           table
//!     V   void                        nothing           A   array           array
//! ```
//!
//! The tags are RabbitMQ's. The specification has `U` in addition and gives `s` and `L` other meanings.
//!
//! # Invariants
//! - A [`Table`] or [`Array`] made by `parse` has been checked entry by entry, so iterating over it cannot fail.
//! - Nesting is bounded by [`TABLE_DEPTH_MAX`], and the work by one pass over the bytes.

mod writer;

use crate::{Reader, TABLE_DEPTH_MAX, WireError};

pub use writer::{ArrayWriter, TableWriter};

/// A field table: its entries as received, without the length before them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table<'a> {
    bytes: &'a [u8],
}

/// A field array: its values as received, without the length before them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Array<'a> {
    bytes: &'a [u8],
}

/// One value of a table or an array.
///
/// `==` compares type and value; nested tables and arrays by their bytes. To compare integers of any width,
/// use [`Value::as_integer`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// `S`: octets, usually UTF-8.
    LongStr(&'a [u8]),
    /// `T`: seconds since 1970 by convention, but any 64 bits are legal.
    Timestamp(u64),
    /// `b`
    Byte(i8),
    /// `B`
    UnsignedByte(u8),
    /// `s`
    Short(i16),
    /// `u`
    UnsignedShort(u16),
    /// `I`
    Int(i32),
    /// `i`
    UnsignedInt(u32),
    /// `l` or `L`
    Long(i64),
    /// `f`, always finite
    Float(f32),
    /// `d`, always finite
    Double(f64),
    /// `D`: `value` × 10<sup>−`scale`</sup>
    Decimal {
        /// Decimal places.
        scale: u8,
        /// The digits.
        value: u32,
    },
    /// `t`: any octet but 0 is true.
    Bool(bool),
    /// `F`
    Table(Table<'a>),
    /// `A`
    Array(Array<'a>),
    /// `V`: no value.
    Void,
    /// `x`: octets that are not text.
    Binary(&'a [u8]),
}

impl<'a> Table<'a> {
    /// The empty table.
    pub const EMPTY: Table<'static> = Table { bytes: &[] };

    /// Checks every entry in `bytes`, which do not include the length, and returns the table.
    ///
    /// # Errors
    /// [`WireError::Truncated`], [`WireError::UnknownFieldType`], [`WireError::NotFinite`] or
    /// [`WireError::TableTooDeep`].
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WireError> {
        if !bytes.is_empty() {
            check_table(bytes, TABLE_DEPTH_MAX)?;
        }
        Ok(Self { bytes })
    }

    /// Returns a table with bytes that were checked before, for example those of a stored message.
    ///
    /// If the bytes are not valid nevertheless, iteration ends at the first invalid entry.
    #[inline]
    pub fn trusted(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// Returns the entries as received.
    #[inline]
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Returns whether there are no entries.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Returns the number of bytes of all entries.
    pub const fn bytes_len(&self) -> usize {
        self.bytes.len()
    }

    /// Returns an iterator over the entries in the order in which they were received. A name may occur twice.
    #[inline]
    pub fn iter(&self) -> TableIter<'a> {
        TableIter { reader: Reader::new(self.bytes) }
    }

    /// Returns the value of the first entry with this name.
    pub fn get(&self, name: &str) -> Option<Value<'a>> {
        self.iter().find(|(key, _)| *key == name.as_bytes()).map(|(_, value)| value)
    }
}

impl<'a> IntoIterator for Table<'a> {
    type Item = (&'a [u8], Value<'a>);
    type IntoIter = TableIter<'a>;

    fn into_iter(self) -> TableIter<'a> {
        self.iter()
    }
}

impl<'a> Array<'a> {
    /// The empty array.
    pub const EMPTY: Array<'static> = Array { bytes: &[] };

    /// Checks every value in `bytes`, which do not include the length, and returns the array.
    ///
    /// # Errors
    /// The same as for [`Table::parse`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WireError> {
        check_array(bytes, TABLE_DEPTH_MAX)?;
        Ok(Self { bytes })
    }

    /// Returns the values as received.
    #[inline]
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Returns whether there are no values.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Returns an iterator over the values in their order.
    #[inline]
    pub fn iter(&self) -> ArrayIter<'a> {
        ArrayIter { reader: Reader::new(self.bytes) }
    }
}

impl<'a> IntoIterator for Array<'a> {
    type Item = Value<'a>;
    type IntoIter = ArrayIter<'a>;

    fn into_iter(self) -> ArrayIter<'a> {
        self.iter()
    }
}

/// The entries of a [`Table`]: name and value.
#[derive(Clone, Debug)]
pub struct TableIter<'a> {
    reader: Reader<'a>,
}

impl<'a> TableIter<'a> {
    /// Returns the entries that were not iterated yet, as received. An entry consists of the octets that are
    /// in the result before [`Self::next`] and not in the result after it.
    #[inline]
    pub fn rest(&self) -> &'a [u8] {
        self.reader.rest()
    }
}

impl<'a> Iterator for TableIter<'a> {
    type Item = (&'a [u8], Value<'a>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let name = self.reader.short_str().ok()?;
        let value = read_value(&mut self.reader).ok()?;
        Some((name, value))
    }
}

/// The values of an [`Array`].
#[derive(Clone, Debug)]
pub struct ArrayIter<'a> {
    reader: Reader<'a>,
}

impl<'a> Iterator for ArrayIter<'a> {
    type Item = Value<'a>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        read_value(&mut self.reader).ok()
    }
}

impl<'a> Value<'a> {
    /// Returns the value of an integer of any width; `None` for other types, including timestamps, floats and
    /// decimals.
    pub fn as_integer(&self) -> Option<i64> {
        match *self {
            Self::Byte(n) => Some(n.into()),
            Self::UnsignedByte(n) => Some(n.into()),
            Self::Short(n) => Some(n.into()),
            Self::UnsignedShort(n) => Some(n.into()),
            Self::Int(n) => Some(n.into()),
            Self::UnsignedInt(n) => Some(n.into()),
            Self::Long(n) => Some(n),
            _ => None,
        }
    }

    /// Returns the octets of a long string; `None` for other types, including `binary`.
    pub fn as_bytes(&self) -> Option<&'a [u8]> {
        match *self {
            Self::LongStr(octets) => Some(octets),
            _ => None,
        }
    }

    /// Returns the text of a long string; `None` for other types, and if it is not UTF-8.
    pub fn as_str(&self) -> Option<&'a str> {
        self.as_bytes().and_then(|octets| core::str::from_utf8(octets).ok())
    }

    /// Returns the value of a boolean; `None` for other types.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(truth) => Some(truth),
            _ => None,
        }
    }

    /// Returns the nested table; `None` for other types.
    pub fn as_table(&self) -> Option<Table<'a>> {
        match *self {
            Self::Table(table) => Some(table),
            _ => None,
        }
    }

    /// Returns the nested array; `None` for other types.
    pub fn as_array(&self) -> Option<Array<'a>> {
        match *self {
            Self::Array(array) => Some(array),
            _ => None,
        }
    }

    /// Returns the name of the type in RabbitMQ's error texts ("received the value '1' of type 'signedint'").
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::LongStr(_) => "longstr",
            Self::Timestamp(_) => "timestamp",
            Self::Byte(_) => "byte",
            Self::UnsignedByte(_) => "unsignedbyte",
            Self::Short(_) => "short",
            Self::UnsignedShort(_) => "unsignedshort",
            Self::Int(_) => "signedint",
            Self::UnsignedInt(_) => "unsignedint",
            Self::Long(_) => "long",
            Self::Float(_) => "float",
            Self::Double(_) => "double",
            Self::Decimal { .. } => "decimal",
            Self::Bool(_) => "bool",
            Self::Table(_) => "table",
            Self::Array(_) => "array",
            Self::Void => "void",
            Self::Binary(_) => "binary",
        }
    }
}

fn check_table(bytes: &[u8], depth_left: usize) -> Result<(), WireError> {
    let depth_left = depth_left.checked_sub(1).ok_or(WireError::TableTooDeep)?;
    let mut reader = Reader::new(bytes);
    while !reader.is_empty() {
        reader.short_str()?;
        check_value(&mut reader, depth_left)?;
    }
    Ok(())
}

fn check_array(bytes: &[u8], depth_left: usize) -> Result<(), WireError> {
    let depth_left = depth_left.checked_sub(1).ok_or(WireError::TableTooDeep)?;
    let mut reader = Reader::new(bytes);
    while !reader.is_empty() {
        check_value(&mut reader, depth_left)?;
    }
    Ok(())
}

#[inline]
fn check_value(reader: &mut Reader<'_>, depth_left: usize) -> Result<(), WireError> {
    match read_value(reader)? {
        Value::Table(table) => check_table(table.bytes, depth_left),
        Value::Array(array) => check_array(array.bytes, depth_left),
        Value::Float(number) if !number.is_finite() => Err(WireError::NotFinite),
        Value::Double(number) if !number.is_finite() => Err(WireError::NotFinite),
        _ => Ok(()),
    }
}

/// Reads a tag and its payload. Of nested tables and arrays only the length is read.
#[inline]
fn read_value<'a>(reader: &mut Reader<'a>) -> Result<Value<'a>, WireError> {
    Ok(match reader.u8()? {
        b'S' => Value::LongStr(reader.long_str()?),
        b'I' => Value::Int(reader.i32()?),
        b't' => Value::Bool(reader.u8()? != 0),
        b'l' | b'L' => Value::Long(reader.i64()?),
        b'F' => Value::Table(Table { bytes: reader.long_str()? }),
        b'A' => Value::Array(Array { bytes: reader.long_str()? }),
        b'T' => Value::Timestamp(reader.u64()?),
        b'd' => Value::Double(reader.f64()?),
        b'V' => Value::Void,
        b'b' => Value::Byte(reader.i8()?),
        b'B' => Value::UnsignedByte(reader.u8()?),
        b's' => Value::Short(reader.i16()?),
        b'u' => Value::UnsignedShort(reader.u16()?),
        b'i' => Value::UnsignedInt(reader.u32()?),
        b'f' => Value::Float(reader.f32()?),
        b'D' => Value::Decimal { scale: reader.u8()?, value: reader.u32()? },
        b'x' => Value::Binary(reader.long_str()?),
        tag => return Err(WireError::UnknownFieldType(tag)),
    })
}

impl<'a> Reader<'a> {
    /// Reads a field table (§4.2.5.5), which begins with its 32-bit length, and checks it completely.
    #[inline]
    pub fn table(&mut self) -> Result<Table<'a>, WireError> {
        let mut ahead = *self;
        let table = Table::parse(ahead.long_str()?)?;
        *self = ahead;
        Ok(table)
    }
}

#[cfg(test)]
mod value_tests {
    use super::*;

    /// Reads a nested table; `depth` is the number of tables around it.
    fn nested(depth: usize) -> Vec<u8> {
        (1..depth).fold(Vec::new(), |inner, _| {
            let len = u32::try_from(inner.len()).expect("small").to_be_bytes();
            [&b"\x01tF"[..], &len, &inner].concat()
        })
    }

    #[test]
    fn every_type_rabbitmq_knows() {
        let cases: [(&[u8], Value<'_>, &str); 19] = [
            (b"S\0\0\0\x02hi", Value::LongStr(b"hi"), "longstr"),
            (b"T\xff\xff\xff\xff\xff\xff\xff\xff", Value::Timestamp(u64::MAX), "timestamp"),
            (b"b\xff", Value::Byte(-1), "byte"),
            (b"B\xff", Value::UnsignedByte(255), "unsignedbyte"),
            (b"s\xff\xfe", Value::Short(-2), "short"),
            (b"u\xff\xfe", Value::UnsignedShort(65534), "unsignedshort"),
            (b"I\xff\xff\xff\xfd", Value::Int(-3), "signedint"),
            (b"i\xff\xff\xff\xfd", Value::UnsignedInt(u32::MAX - 2), "unsignedint"),
            (b"l\xff\xff\xff\xff\xff\xff\xff\xff", Value::Long(-1), "long"),
            (b"L\xff\xff\xff\xff\xff\xff\xff\xff", Value::Long(-1), "long"),
            (b"f\x3f\xc0\0\0", Value::Float(1.5), "float"),
            (b"d\x3f\xf8\0\0\0\0\0\0", Value::Double(1.5), "double"),
            (b"D\x02\0\0\0\x07", Value::Decimal { scale: 2, value: 7 }, "decimal"),
            (b"t\0", Value::Bool(false), "bool"),
            (b"t\x07", Value::Bool(true), "bool"),
            (b"F\0\0\0\x02\0V", Value::Table(Table::trusted(b"\0V")), "table"),
            (b"A\0\0\0\x01V", Value::Array(Array { bytes: b"V" }), "array"),
            (b"V", Value::Void, "void"),
            (b"x\0\0\0\x02hi", Value::Binary(b"hi"), "binary"),
        ];
        for (octets, value, name) in cases {
            let entry = [b"\x01k", octets].concat();
            let table = Table::parse(&entry).expect(name);
            assert_eq!(table.get("k"), Some(value));
            assert_eq!(value.type_name(), name);
            assert_eq!(Array::parse(octets).expect(name).iter().next(), Some(value));
            for len in 1..entry.len() {
                assert_eq!(Table::parse(&entry[..len]), Err(WireError::Truncated), "{name} cut to {len}");
            }
        }
    }

    #[test]
    fn what_rabbitmq_cannot_read_is_refused() {
        assert_eq!(Table::parse(b"\x01aU\0\x01"), Err(WireError::UnknownFieldType(b'U')));
        assert_eq!(Table::parse(b"\x01af\x7f\xc0\0\0"), Err(WireError::NotFinite));
        assert_eq!(Table::parse(b"\x01ad\x7f\xf0\0\0\0\0\0\0"), Err(WireError::NotFinite));
        assert_eq!(Table::parse(b"\x01aF\0\0\0\x05\x01bU\0\0"), Err(WireError::UnknownFieldType(b'U')));
        assert_eq!(Array::parse(b"A\0\0\0\x01U"), Err(WireError::UnknownFieldType(b'U')));
    }

    #[test]
    fn nesting_ends_at_the_bound() {
        assert!(Table::parse(&nested(TABLE_DEPTH_MAX)).is_ok());
        assert_eq!(Table::parse(&nested(TABLE_DEPTH_MAX + 1)), Err(WireError::TableTooDeep));
    }

    #[test]
    fn the_first_of_a_name_counts_and_names_may_be_anything() {
        let table = Table::parse(b"\x01at\x01\x01at\0\x02\xff\xfeV\0V").expect("sound");
        assert_eq!(table.get("a"), Some(Value::Bool(true)));
        assert_eq!(table.get("b"), None);
        assert_eq!(table.get(""), Some(Value::Void));
        assert_eq!(table.iter().count(), 4);
        assert!(Table::EMPTY.is_empty() && Table::EMPTY.get("").is_none());
    }

    #[test]
    fn integers_of_all_widths_are_one_number() {
        let widths = [
            Value::Byte(7),
            Value::UnsignedByte(7),
            Value::Short(7),
            Value::UnsignedShort(7),
            Value::Int(7),
            Value::UnsignedInt(7),
            Value::Long(7),
        ];
        assert!(widths.iter().all(|value| value.as_integer() == Some(7)));
        let others = [Value::Timestamp(7), Value::Double(7.0), Value::LongStr(b"7"), Value::Bool(true)];
        assert!(others.iter().all(|value| value.as_integer().is_none()));
        assert_ne!(Value::Int(7), Value::Long(7));
    }
}
