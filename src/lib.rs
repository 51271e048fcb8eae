//! Leveret: the small RabbitMQ for the edge.
#![deny(unsafe_code)]

pub mod time;
