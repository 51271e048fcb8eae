//! `leveret check`: prints the resulting configuration and the memory table, and checks whether the broker
//! would start. The report is printed first, because its memory table may explain why the broker would not
//! start.

use std::fmt::Write;

use crate::plan::{self, Plan};
use crate::store_limits;
use leveret_config::Config;
use leveret_daemon::StartError;

/// Returns the report on a configuration, and whether it is enough for `plan`.
///
/// # Errors
/// The second part of the result is an error if the broker would not start.
pub fn check(mut config: Config, plan: Option<&Plan>) -> (String, Result<bool, StartError>) {
    let derived = leveret_daemon::derive_limits(&mut config)
        .map_err(|error| StartError::Limits(config.locate_error(&error)));
    let dry_run = derived.and_then(|_| leveret_daemon::dry_run_start(&config));
    let table = config.limits.memory_table(&leveret_daemon::record_sizes(&config), config.memory_limit_bytes);
    let mut report = format!(
        "{}\n\n{}{}",
        config.to_toml(),
        table.shown(config.memory_limit_bytes),
        plan::costs_shown(&config)
    );
    let (remarks, verdict) = match dry_run {
        Ok(mut remarks) => {
            remarks.extend(store_limits::exceeded_limits(&config, &table));
            let answer = plan.map(|plan| plan::answered(plan, &config, &table));
            report.extend(answer.iter().map(|(text, _)| &**text));
            (remarks, Ok(answer.is_none_or(|(_, fits)| fits)))
        }
        Err(error) => (Vec::new(), Err(error)),
    };
    for remark in config.warnings().chain(remarks) {
        // Writing into a String cannot fail.
        let _ = writeln!(report, "# warning: {remark}");
    }
    (report, verdict)
}
