//! The broker alone, without connections and without a disk: single cases, random runs, shares, access
//! control.

#[macro_use]
mod support;

mod access;
mod cases;
mod dead_letters;
mod death_history;
mod delayed;
mod expiry;
mod expiry_room;
mod firehose;
mod memory;
mod offsets;
mod orphans;
mod overdue;
mod own;
mod parameters;
mod policies;
mod prefetch;
mod priorities;
mod random_runs;
mod routing;
mod shares;
mod single_active;
mod spilling;
mod starts;
mod tenants;
mod transactions;
mod turns;
