//! Leveret: the small RabbitMQ for the edge.
#![deny(unsafe_code)]

pub mod admin;
pub mod broker;
pub mod command;
pub mod config;
pub mod error;
pub mod limits;
pub mod mem;
pub mod session;
pub mod time;
pub mod tool;
pub mod wire;
