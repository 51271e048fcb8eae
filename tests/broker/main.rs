//! The broker alone, without sessions and without a disk: stories, random lives, shares, access.

// Offsets are followed into the simulated disk, which is there only in builds that check themselves.
#![cfg(debug_assertions)]

#[macro_use]
mod support;

#[path = "../random/mod.rs"]
mod random;

mod access;
mod cases;
mod dead_letters;
mod expiry;
mod holders;
mod lives;
mod offsets;
mod overdue;
mod routing;
mod shares;
mod spilling;
