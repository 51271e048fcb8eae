//! Runtime parameters: settings of components, by their names, and of the whole broker, made while it runs.
//!
//! ```text
//! set, clear ──→ Parameters ──→ the log
//!                    └─ version ──→ components look again when it has changed
//! ```
//!
//! Why it exists: a component, a shovel say, is configured from outside of it; what is kept for it here is
//! shared among virtual hosts, and outlives a start that has no place for it.
//!
//! | file | what |
//! |---|---|
//! | `views` | a parameter as somebody says it, or sees it; who says it; what it asks for |
//! | `records` | parameters as records |
//! | `unplaced` | those that the log has, and for which there was no place at the start |
//! | `state` | all parameters: set, cleared, restored |
//!
//! Always true: a value is JSON that its component has found right (whoever owns the component hands in the
//! check) and has a bounded size; no error here shows a value, for it may hold a password; parameters of a
//! virtual host go with it.

mod records;
mod state;
#[cfg(test)]
mod tests;
mod unplaced;
mod views;

pub(super) use state::Parameters;
pub(super) use views::{ParameterName, Setter};

pub use views::{PARAMETER_BYTES_MAX, ParameterCheck, ParameterNeeds, ParameterView, SHOVEL};
