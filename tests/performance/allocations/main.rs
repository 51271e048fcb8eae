//! Tests of code that must not allocate, or must not use more memory than is counted for it, with an allocator
//! that counts.
//!
//! They are a program of their own because a process has one allocator. Each test has its own count.

mod counting;

mod access;
mod index;
mod json;
mod message;
mod patterns;
mod session;
mod store;
