//! Tests of code that must not allocate, or must not use more memory than is counted for it, with an allocator
//! that counts.
//!
//! They are a program of their own because a process has one allocator. Each test has its own count.

mod counting;

#[path = "../../support/home/mod.rs"]
mod home;
#[macro_use]
#[path = "../../component/connection/support.rs"]
mod session_support;
#[path = "../../support/sockets/mod.rs"]
mod sockets;
#[path = "../../simulation/world/mod.rs"]
mod world;

mod access;
mod index;
mod json;
mod message;
mod patterns;
mod session;
mod store;
