//! `leveret check`: the configuration that results, what it adds up to, and whether the broker would start.
//!
//! It prints before it judges, so the table that explains a refusal is always there.

use std::fmt::Write;

use crate::config::Config;
use crate::limits::{Megabytes, MemoryTable};
use crate::net::{self, StartError};

/// The report on a configuration, and whether the broker would start with it.
///
/// # Errors
/// What would keep it from starting, beside the report.
pub fn check(mut config: Config) -> (String, Result<(), StartError>) {
    let fitted = net::fit(&mut config).map_err(|error| StartError::Limits(config.blame(&error)));
    let rehearsed = fitted.and_then(|_| net::rehearse(&config));
    let table = config.limits.memory_table(&net::record_sizes(&config));
    let mut report = format!("{}\n\n{}", config.shown(), show_table(&table, config.memory_limit_bytes));
    let (remarks, verdict) = match rehearsed {
        Ok(remarks) => (remarks, Ok(())),
        Err(error) => (Vec::new(), Err(error)),
    };
    for remark in config.tell_of_machine().into_iter().chain(remarks) {
        // Writing into a String cannot fail.
        let _ = writeln!(report, "# warning: {remark}");
    }
    (report, verdict)
}

/// The memory table as text, its sum set against the limit.
pub fn show_table(table: &MemoryTable, memory_limit_bytes: u64) -> String {
    let mut text = format!("# {:<20}{:>11} ×{:>10} ={:>13}\n", "memory", "count", "bytes", "in all");
    for line in &table.lines {
        let (key, reason) = (line.key, line.reason);
        let [count, each, bytes] = [line.count, line.bytes_each, line.bytes()].map(grouped);
        // Writing into a String cannot fail.
        let _ = writeln!(text, "# {key:<20}{count:>11} ×{each:>10} ={bytes:>13}  {reason}");
    }
    let kernel = match table.kernel_bytes {
        Some(bytes) => format!("at most {}", Megabytes(bytes)),
        None => "as much as the system allows".to_string(),
    };
    let (sum, limit) = (Megabytes(table.bytes()), Megabytes(memory_limit_bytes));
    let _ = writeln!(
        text,
        "# in all {sum} of memory_limit {limit}; besides, the kernel's socket buffers: {kernel}"
    );
    text
}

/// A number with its digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_come_in_groups_of_three() {
        let shown = [0, 999, 1_000, 12_345_678].map(grouped);
        assert_eq!(shown, ["0", "999", "1,000", "12,345,678"]);
    }
}
