//! What allocates nothing, and what holds no more than is counted for it, told by an allocator that counts.
//!
//! Apart from the other tests because a process has one allocator. Each test has a count of its own.

mod counting;

#[path = "../../support/home/mod.rs"]
mod home;
#[macro_use]
#[path = "../../parts/session/support.rs"]
mod session_support;
#[path = "../../support/sockets/mod.rs"]
mod sockets;
#[path = "../../simulated/world/mod.rs"]
mod world;

mod access;
mod index;
mod json;
mod message;
mod patterns;
mod session;
mod store;
