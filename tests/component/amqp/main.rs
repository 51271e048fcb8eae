//! AMQP parsing alone: property tests, and a second implementation for comparison.

mod properties;
