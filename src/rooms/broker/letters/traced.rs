//! What the firehose is told by: whether it is on, and the names that stand in its copies.
//!
//! Always true: while it is off it has no memory; the memory table counts a name for each connection.

/// A connection's name: two addresses of IPv6 with their ports, and an arrow.
pub(crate) type TracedName = heapless::String<104>;

/// What the firehose is told by.
#[derive(Debug, Default)]
pub(crate) struct Firehose {
    /// Some virtual host is traced.
    pub(crate) is_on: bool,
    /// What this broker calls itself.
    pub(crate) node: Box<str>,
    /// Of connections, by their places; none while it is off.
    pub(crate) names: Vec<TracedName>,
    pub(crate) left_out_logged_minute: Option<u32>,
}
