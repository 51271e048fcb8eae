//! `leveret check`: the configuration that results, what it adds up to, and whether the broker would start.
//!
//! It prints before it judges, so the table that explains a refusal is always there.

use std::fmt::Write;

use crate::config::Config;
use crate::net::{self, StartError};

/// The report on a configuration, and whether the broker would start with it.
///
/// # Errors
/// What would keep it from starting, beside the report.
pub fn check(mut config: Config) -> (String, Result<(), StartError>) {
    let fitted = net::fit(&mut config).map_err(|error| StartError::Limits(config.blame(&error)));
    let rehearsed = fitted.and_then(|_| net::rehearse(&config));
    let table = config.limits.memory_table(&net::record_sizes(&config));
    let mut report = format!("{}\n\n{}", config.shown(), table.shown(config.memory_limit_bytes));
    let (remarks, verdict) = match rehearsed {
        Ok(remarks) => (remarks, Ok(())),
        Err(error) => (Vec::new(), Err(error)),
    };
    for remark in config.warnings().chain(remarks) {
        // Writing into a String cannot fail.
        let _ = writeln!(report, "# warning: {remark}");
    }
    (report, verdict)
}
