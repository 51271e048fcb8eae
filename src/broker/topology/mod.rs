//! Topology: exchanges and bindings, and which queues a message goes to by them.
//!
//! Why it exists: publishers name an exchange and a routing key, never a queue; what lies between them is declared by
//! clients at run time, may be large and crooked, and is asked for every message.
//!
//! | file | what |
//! |---|---|
//! | `declaration` | what is asked for when an exchange is declared, and whether it can be |
//! | `exchanges`, `bindings` | both as they come and go: found, compared, counted, written to the journal |
//! | `state`, `records` | all exchanges and bindings; an exchange, a binding |
//! | `trie` | which bindings a routing key reaches: keys, words of patterns |
//! | `headers`, `pairs` | the headers exchange: its rule, and how its bindings are found |
//! | `select` | from an exchange, routing keys and headers to queues |
//! | `cache` | the last route of a channel |
//!
//! Always true: whatever can change a route raises the revision; an exchange that is retired is found by
//! nobody and chosen by nobody, and its record goes with its last binding; a binding counts in the quota for
//! as long as it exists. Who may declare, which policies apply and what is deleted with an exchange is
//! decided by the caller.

mod bindings;
mod cache;
mod declaration;
mod exchanges;
mod headers;
mod pairs;
mod records;
mod select;
mod state;
#[cfg(test)]
mod tests;
mod trie;

pub(super) use cache::RouteCache;
pub(super) use declaration::{ExchangeDeclaration, check_deletable_name, exchange_in_words, refuse_default};
pub(super) use exchanges::NewExchange;
pub(super) use records::{BindingSpec, DELAYED, Destination, FoundBinding, Kind};
pub(super) use select::copies;
pub(super) use state::Topology;
