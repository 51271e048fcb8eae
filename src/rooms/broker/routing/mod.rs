//! What is bound to what, and where a message goes by it.
//!
//! | file | what it holds |
//! |------|---------------|
//! | `records` | an exchange, a binding |
//! | `tables` | all of them, and how they hang together |
//! | `trie` | where bindings hang: keys, words of patterns |
//! | `headers`, `pairs` | the headers exchange: its rule, and how its bindings are found |
//! | `select` | from an exchange and keys to queues |
//! | `cache` | the last route of a channel |
//!
//! This part knows names, records and how they hang together; who may declare, what counts for whom and
//! what is written to the log is decided around it (`broker/exchanges.rs`).
//!
//! Always true: whatever can change a route raises the revision; an exchange that is retired is found by
//! nobody and chosen by nobody, and its record goes with its last binding.

mod cache;
mod headers;
mod pairs;
mod records;
mod select;
mod tables;
mod trie;

pub(super) use cache::RouteCache;
pub(super) use records::{Binding, DELAYED, Destination, Kind};
pub(super) use select::{Keys, Queues};
pub(super) use tables::{BindingSpec, End, NewExchange, Routing, invalid_match, places_of_binding};
