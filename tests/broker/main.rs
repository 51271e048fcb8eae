//! The broker alone, without sessions and without a disk: stories, random lives, shares, access.

#[path = "../sim_disk/mod.rs"]
mod sim_disk;
#[macro_use]
mod support;

mod access;
mod cases;
mod dead_letters;
mod expiry;
mod expiry_room;
mod holders;
mod lives;
mod offsets;
mod overdue;
mod own;
mod policies;
mod priorities;
mod routing;
mod shares;
mod single_active;
mod spilling;
