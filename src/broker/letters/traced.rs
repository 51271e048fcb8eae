//! The state of the firehose: whether it is on, and the names that stand in its copies.
//!
//! Always true: while the firehose is off it takes no memory; the memory table counts a name for each
//! connection.

/// A connection's name: two addresses of IPv6 with their ports, and an arrow.
pub(crate) type TracedName = heapless::String<104>;

/// The state of the firehose.
#[derive(Debug, Default)]
pub(crate) struct Firehose {
    /// Whether some virtual host is traced.
    pub(crate) is_on: bool,
    /// The name of this broker in the copies.
    pub(crate) node: Box<str>,
    /// Names of connections in the copies, by the connections' places; none while the firehose is off.
    pub(crate) names: Vec<TracedName>,
    /// The minute in which copies left out were logged last.
    pub(crate) left_out_logged_minute: Option<u32>,
}
