//! Deliveries: from the moment a message leaves its queue until it is settled, or back in its queue.
//!
//! | file | what |
//! |---|---|
//! | `records` | the pool of records, the lists they move between, and how a delivery tag finds one |
//! | `heap` | the requeued messages of one queue, in their old order |

mod heap;
mod records;

pub(super) use heap::RequeuedHeap;
pub(super) use records::{Carrier, Delivered, Deliveries, NewDelivery};
