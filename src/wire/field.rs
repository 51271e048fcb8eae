//! Field tables and arrays (§4.2.5.5): the arguments of methods and the headers of messages.
//!
//! Why it exists: tables are the one recursive thing in AMQP, and the one where clients disagree about the
//! meaning of type tags. We therefore keep a table as the bytes received, checked once, and decode an entry
//! only when a feature looks for it; what we write ourselves uses only types every client reads alike.
//!
//! What always holds: a [`Table`] or [`Array`] made by `parse` has been checked entry by entry, so iterating
//! it cannot fail; nesting is bounded by [`TABLE_DEPTH_MAX`], the work by one pass over the bytes.
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
//! The tags are RabbitMQ's, not the specification's (which has `U` and gives `s` and `L` other meanings).

use super::{Full, Reader, WireError, Writer};

/// Tables and arrays may be nested this deep, the outermost included. RabbitMQ knows no bound; no sane client
/// comes near this one, and it keeps a few hundred octets of hostile input from eating the stack.
pub const TABLE_DEPTH_MAX: usize = 16;

/// A field table: its entries as received, without the length in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table<'a> {
    bytes: &'a [u8],
}

/// A field array: its values as received, without the length in front.
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
    /// `V`: there, but nothing.
    Void,
    /// `x`: octets that are not text.
    Binary(&'a [u8]),
}

impl<'a> Table<'a> {
    /// The table without entries.
    pub const EMPTY: Table<'static> = Table { bytes: &[] };

    /// Checks every entry of `bytes`, which come without the length in front.
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

    /// A table from bytes that were checked before, such as those of a stored message.
    ///
    /// Wrong bytes are no danger: iteration ends where they stop making sense.
    #[inline]
    pub fn trusted(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// The entries as received.
    #[inline]
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Whether there is no entry.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The entries in the order received. A name may occur twice.
    #[inline]
    pub fn iter(&self) -> TableIter<'a> {
        TableIter {
            reader: Reader::new(self.bytes),
        }
    }

    /// The value of the first entry called `name`.
    pub fn get(&self, name: &str) -> Option<Value<'a>> {
        self.iter()
            .find(|(key, _)| *key == name.as_bytes())
            .map(|(_, value)| value)
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
    /// The array without values.
    pub const EMPTY: Array<'static> = Array { bytes: &[] };

    /// Checks every value of `bytes`, which come without the length in front.
    ///
    /// # Errors
    /// As [`Table::parse`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WireError> {
        check_array(bytes, TABLE_DEPTH_MAX)?;
        Ok(Self { bytes })
    }

    /// The values as received.
    #[inline]
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Whether there is no value.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The values in order.
    #[inline]
    pub fn iter(&self) -> ArrayIter<'a> {
        ArrayIter {
            reader: Reader::new(self.bytes),
        }
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
    /// The entries not iterated yet, as received. What an entry's own octets are is the difference of two of
    /// these.
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
    /// The value as a number, whatever the width it was sent with. Timestamps, floats and decimals are not
    /// integers.
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

    /// The octets of a long string; not those of a `binary`.
    pub fn as_bytes(&self) -> Option<&'a [u8]> {
        match *self {
            Self::LongStr(octets) => Some(octets),
            _ => None,
        }
    }

    /// The text of a long string that is UTF-8.
    pub fn as_str(&self) -> Option<&'a str> {
        self.as_bytes()
            .and_then(|octets| core::str::from_utf8(octets).ok())
    }

    /// The truth of a boolean.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(truth) => Some(truth),
            _ => None,
        }
    }

    /// The nested table.
    pub fn as_table(&self) -> Option<Table<'a>> {
        match *self {
            Self::Table(table) => Some(table),
            _ => None,
        }
    }

    /// The nested array.
    pub fn as_array(&self) -> Option<Array<'a>> {
        match *self {
            Self::Array(array) => Some(array),
            _ => None,
        }
    }

    /// The type as RabbitMQ's error texts name it ("received the value '1' of type 'signedint'").
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

/// Reads a tag and its payload. Nested tables and arrays are delimited, not looked into.
#[inline]
fn read_value<'a>(reader: &mut Reader<'a>) -> Result<Value<'a>, WireError> {
    Ok(match reader.u8()? {
        b'S' => Value::LongStr(reader.long_str()?),
        b'I' => Value::Int(reader.i32()?),
        b't' => Value::Bool(reader.u8()? != 0),
        b'l' | b'L' => Value::Long(reader.i64()?),
        b'F' => Value::Table(Table {
            bytes: reader.long_str()?,
        }),
        b'A' => Value::Array(Array {
            bytes: reader.long_str()?,
        }),
        b'T' => Value::Timestamp(reader.u64()?),
        b'd' => Value::Double(reader.f64()?),
        b'V' => Value::Void,
        b'b' => Value::Byte(reader.i8()?),
        b'B' => Value::UnsignedByte(reader.u8()?),
        b's' => Value::Short(reader.i16()?),
        b'u' => Value::UnsignedShort(reader.u16()?),
        b'i' => Value::UnsignedInt(reader.u32()?),
        b'f' => Value::Float(reader.f32()?),
        b'D' => Value::Decimal {
            scale: reader.u8()?,
            value: reader.u32()?,
        },
        b'x' => Value::Binary(reader.long_str()?),
        tag => return Err(WireError::UnknownFieldType(tag)),
    })
}

/// Writes a value with the tag it was read with (`l` for either 64-bit tag).
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
        Value::Array(array) => tagged(w, b'A', |w| w.write_long_str(array.bytes)),
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

/// Builds a table inside a [`Writer`]; see [`Writer::table`].
///
/// The typed methods write only tags that all clients read alike: `S I l t F A T V d`. [`TableWriter::value`]
/// and [`TableWriter::entries`] hand on what somebody else sent, as it is.
///
/// After [`Full`] the table is to be given up: an entry may be there in part. [`Writer::table`] takes it back
/// when its closure hands the error on.
#[derive(Debug)]
pub struct TableWriter<'w, 'b> {
    w: &'w mut Writer<'b>,
}

impl<'w, 'b> TableWriter<'w, 'b> {
    pub(super) fn new(w: &'w mut Writer<'b>) -> Self {
        Self { w }
    }

    fn named(&mut self, name: &str) -> Result<ArrayWriter<'_, 'b>, Full> {
        self.w.write_short_str(name.as_bytes())?;
        Ok(ArrayWriter { w: self.w })
    }

    /// A text, as `S`.
    pub fn text(&mut self, name: &str, text: &str) -> Result<(), Full> {
        self.named(name)?.text(text)
    }

    /// Octets, as `S`.
    pub fn long_str(&mut self, name: &str, octets: &[u8]) -> Result<(), Full> {
        self.named(name)?.long_str(octets)
    }

    /// A number, as `I`.
    pub fn int(&mut self, name: &str, number: i32) -> Result<(), Full> {
        self.named(name)?.int(number)
    }

    /// A number, as `l`.
    pub fn long(&mut self, name: &str, number: i64) -> Result<(), Full> {
        self.named(name)?.long(number)
    }

    /// A number, as `d`; it must be finite.
    pub fn double(&mut self, name: &str, number: f64) -> Result<(), Full> {
        self.named(name)?.double(number)
    }

    /// A boolean, as `t`.
    pub fn bool(&mut self, name: &str, truth: bool) -> Result<(), Full> {
        self.named(name)?.bool(truth)
    }

    /// A point in time, as `T`; in seconds since 1970.
    pub fn timestamp(&mut self, name: &str, seconds: u64) -> Result<(), Full> {
        self.named(name)?.timestamp(seconds)
    }

    /// Nothing, as `V`.
    pub fn void(&mut self, name: &str) -> Result<(), Full> {
        self.named(name)?.void()
    }

    /// A nested table, as `F`.
    pub fn table(
        &mut self,
        name: &str,
        fill: impl FnOnce(&mut TableWriter<'_, 'b>) -> Result<(), Full>,
    ) -> Result<(), Full> {
        self.named(name)?.table(fill)
    }

    /// A nested array, as `A`.
    pub fn array(
        &mut self,
        name: &str,
        fill: impl FnOnce(&mut ArrayWriter<'_, 'b>) -> Result<(), Full>,
    ) -> Result<(), Full> {
        self.named(name)?.array(fill)
    }

    /// A value that was received, with the type it had. The name may be any octets, up to 255.
    pub fn value(&mut self, name: &[u8], value: Value<'_>) -> Result<(), Full> {
        self.w.write_short_str(name)?;
        write_value(self.w, value)
    }

    /// All entries of a table that was received, octet by octet.
    pub fn entries(&mut self, table: Table<'_>) -> Result<(), Full> {
        self.w.write_raw(table.as_bytes())
    }

    /// The entries of a table that was received, octet by octet, but those called `name`.
    pub fn entries_without(&mut self, table: Table<'_>, name: &str) -> Result<(), Full> {
        let mut entries = table.iter();
        loop {
            let from = entries.rest();
            let Some((key, _)) = entries.next() else {
                return Ok(());
            };
            if key != name.as_bytes() {
                let len = from.len() - entries.rest().len();
                self.w.write_raw(from.get(..len).unwrap_or_default())?;
            }
        }
    }
}

/// Builds an array inside a [`Writer`]; see [`TableWriter::array`], whose rules hold here as well.
#[derive(Debug)]
pub struct ArrayWriter<'w, 'b> {
    w: &'w mut Writer<'b>,
}

impl<'b> ArrayWriter<'_, 'b> {
    /// A text, as `S`.
    pub fn text(&mut self, text: &str) -> Result<(), Full> {
        self.long_str(text.as_bytes())
    }

    /// Octets, as `S`.
    pub fn long_str(&mut self, octets: &[u8]) -> Result<(), Full> {
        self.value(Value::LongStr(octets))
    }

    /// A number, as `I`.
    pub fn int(&mut self, number: i32) -> Result<(), Full> {
        self.value(Value::Int(number))
    }

    /// A number, as `l`.
    pub fn long(&mut self, number: i64) -> Result<(), Full> {
        self.value(Value::Long(number))
    }

    /// A number, as `d`; it must be finite.
    pub fn double(&mut self, number: f64) -> Result<(), Full> {
        debug_assert!(number.is_finite(), "clients and RabbitMQ cannot read {number}");
        self.value(Value::Double(number))
    }

    /// A boolean, as `t`.
    pub fn bool(&mut self, truth: bool) -> Result<(), Full> {
        self.value(Value::Bool(truth))
    }

    /// A point in time, as `T`; in seconds since 1970.
    pub fn timestamp(&mut self, seconds: u64) -> Result<(), Full> {
        self.value(Value::Timestamp(seconds))
    }

    /// Nothing, as `V`.
    pub fn void(&mut self) -> Result<(), Full> {
        self.value(Value::Void)
    }

    /// A nested table, as `F`.
    pub fn table(
        &mut self,
        fill: impl FnOnce(&mut TableWriter<'_, 'b>) -> Result<(), Full>,
    ) -> Result<(), Full> {
        self.w.write_u8(b'F')?;
        self.w.table(fill)
    }

    /// A nested array, as `A`.
    pub fn array(
        &mut self,
        fill: impl FnOnce(&mut ArrayWriter<'_, 'b>) -> Result<(), Full>,
    ) -> Result<(), Full> {
        self.w.write_u8(b'A')?;
        self.w.with_length(|w| fill(&mut ArrayWriter { w }))
    }

    /// A value that was received, with the type it had.
    pub fn value(&mut self, value: Value<'_>) -> Result<(), Full> {
        write_value(self.w, value)
    }
}
