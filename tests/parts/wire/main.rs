//! The wire room alone: properties, and a second opinion on every octet.

#[path = "../../support/wire_checks/mod.rs"]
mod wire_checks;

mod properties;
