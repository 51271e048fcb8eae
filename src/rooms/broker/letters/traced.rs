//! What the firehose is told by: whether it is on, and the names that stand in its copies.
//!
//! Always true: while it is off it has no memory; the memory table counts a name for each connection.

/// A connection's name: two addresses of IPv6 with their ports, and an arrow.
pub(in crate::broker) type TracedName = heapless::String<104>;

/// What the firehose is told by.
#[derive(Debug, Default)]
pub(in crate::broker) struct Firehose {
    /// Some virtual host is traced.
    pub(in crate::broker) is_on: bool,
    /// What this broker calls itself.
    pub(in crate::broker) node: Box<str>,
    /// Of connections, by their places; none while it is off.
    pub(in crate::broker) names: Vec<TracedName>,
    pub(in crate::broker) left_out_logged_minute: Option<u32>,
}
