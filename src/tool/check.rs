//! `leveret check`: the configuration that results, what it adds up to, and whether the broker would start.
//!
//! It prints before it judges, so the table that explains a refusal is always there.

use std::fmt::Write;

use crate::config::Config;
use crate::limits::{LimitsError, Megabytes, MemoryTable, RecordSizes};

/// The report on a configuration, and whether the broker would start with it.
///
/// # Errors
/// The key to change, beside the report.
pub fn check(config: &Config, sizes: &RecordSizes) -> (String, Result<(), LimitsError>) {
    let table = config.limits.memory_table(sizes);
    let report = format!("{}\n\n{}", config.shown(), show_table(&table, config.memory_limit_bytes));
    (report, config.limits.check(sizes, config.memory_limit_bytes).map(drop))
}

/// The memory table as text, its sum set against the limit.
pub fn show_table(table: &MemoryTable, memory_limit_bytes: u64) -> String {
    let mut text = format!("# {:<24}{:>10} ×{:>8} B ={:>14} B\n", "memory", "count", "each", "in all");
    for line in &table.lines {
        let (key, count, each, bytes) = (line.key, line.count, line.bytes_each, line.bytes());
        // Writing into a String cannot fail.
        let _ = writeln!(text, "# {key:<24}{count:>10} ×{each:>8} B ={bytes:>14} B  {}", line.reason);
    }
    let limit = Megabytes(memory_limit_bytes);
    let _ = writeln!(text, "# in all {} of memory_limit {limit}", Megabytes(table.bytes()));
    match table.kernel_bytes {
        Some(bytes) => {
            text.push_str(&format!("# besides, the kernel's socket buffers: at most {}\n", Megabytes(bytes)))
        }
        None => text.push_str("# besides, the kernel's socket buffers: as many as the system allows\n"),
    }
    text
}
