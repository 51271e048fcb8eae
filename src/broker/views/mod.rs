//! Views: the records of the broker, as operators see them.
//!
//! | file | what |
//! |---|---|
//! | `rows` | the rows |
//! | `state` | everything that may be seen, and the row in each place |
//! | `explained` | how it is told why publishers wait |
//!
//! Always true: nothing is changed here.

mod explained;
mod rows;
mod state;
#[cfg(test)]
mod tests;

pub use explained::{DiskFacts, Explained};
pub use rows::{
    BindingView, ChannelView, ConnectionView, ConsumerActivity, ConsumerView, ExchangeView, PoolFill,
    QueueView,
};
pub use state::Views;
