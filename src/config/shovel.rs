//! What RabbitMQ's shovels say besides what bridges do.
//!
//! Always true: no password is in what is shown of an address.

use std::collections::BTreeMap;

/// What a shovel is besides a bridge.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shovel {
    /// The parameter's name.
    pub name: String,
    /// The virtual host that the parameter is in.
    pub vhost: String,
    /// Where messages come from.
    pub source: End,
    /// Where they go.
    pub destination: End,
    /// When it is over, and its parameter with it.
    pub delete_after: DeleteAfter,
    /// A link that fails is not tried again: `reconnect-delay` is 0.
    pub is_tried_once: bool,
    /// Messages get `x-shovelled`, and `x-shovelled-timestamp`.
    pub adds_headers: bool,
    /// The second of the two.
    pub adds_timestamp: bool,
    /// Properties that messages get instead of their own.
    pub properties: BTreeMap<&'static str, Property>,
}

/// A property that messages get.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Property {
    /// A text.
    Text(String),
    /// A number.
    Number(u64),
}

/// One end of a shovel.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct End {
    /// Its addresses, without who logs in there.
    pub uris: Vec<String>,
    /// It is this broker.
    pub is_here: bool,
    /// A queue.
    pub queue: Option<String>,
    /// Or an exchange.
    pub exchange: Option<String>,
    /// And a key.
    pub key: Option<String>,
    /// What the queue is declared with where there is none: an object of JSON, or nothing.
    pub arguments: String,
}

/// When a shovel is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeleteAfter {
    /// Never.
    Never,
    /// When as many messages were moved as were in the queue when it began.
    QueueLength,
    /// When so many were.
    Messages(u64),
}
