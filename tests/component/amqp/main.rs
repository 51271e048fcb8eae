//! AMQP parsing alone: property tests, and a second implementation for comparison.

#[path = "../../support/wire_checks/mod.rs"]
mod wire_checks;

mod properties;
