//! Code that several test programs share.
//!
//! | module | contents |
//! |--------|----------|
//! | [`amqp_checks`] | properties of `leveret-amqp` that hold for any input |
//! | [`built_program`] | the built program without the environment of the tests, and temporary folders |
//! | [`mqtt_checks`] | properties of `leveret-mqtt` that hold for any input |
//! | [`random`] | pseudo-random numbers from a seed |
//! | [`simulated_disk`] | a disk in memory with power cuts, damage and errors |
//! | [`simulated_server`] | the production server in memory, its clients, and a clock that jumps |
//! | [`single_connection`] | one connection without a server |
//! | [`socket_client`] | a blocking AMQP client, and the built broker |
//! | [`store_formats`] | stores that older versions wrote |

#![allow(missing_docs, reason = "the names of most items say all that a test needs")]

pub mod amqp_checks;
pub mod built_program;
pub mod mqtt_checks;
pub mod random;
pub mod simulated_disk;
pub mod simulated_server;
pub mod single_connection;
pub mod socket_client;
pub mod store_formats;
