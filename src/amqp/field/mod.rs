//! Field tables, arrays and their values: read in `value`, written in `writer`.

mod value;
mod writer;

pub use value::{Array, ArrayIter, Table, TableIter, Value};
pub use writer::{ArrayWriter, TableWriter};
