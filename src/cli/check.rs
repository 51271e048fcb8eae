//! `leveret check`: prints the resulting configuration and the memory table, and checks whether the broker
//! would start. The report is printed first, because its memory table may explain why the broker would not
//! start.

use std::fmt::Write;

use crate::store_limits;
use leveret_config::Config;
use leveret_config::board;
use leveret_daemon::StartError;

/// Returns the report on a configuration, and whether the broker would start with it.
///
/// # Errors
/// The second part of the result is an error if the broker would not start.
pub fn check(mut config: Config) -> (String, Result<(), StartError>) {
    let derived = leveret_daemon::derive_limits(&mut config)
        .map_err(|error| StartError::Limits(config.locate_error(&error)));
    let dry_run = derived.and_then(|_| leveret_daemon::dry_run_start(&config));
    let table = config.limits.memory_table(&leveret_daemon::record_sizes(&config));
    let mut report = format!("{}\n\n{}", config.to_toml(), table.shown(config.memory_limit_bytes));
    let (remarks, verdict) = match dry_run {
        Ok(mut remarks) => {
            remarks.extend(store_limits::exceeded_limits(&config));
            (remarks, Ok(()))
        }
        Err(error) => (Vec::new(), Err(error)),
    };
    for remark in config.warnings().chain(remarks) {
        // Writing into a String cannot fail.
        let _ = writeln!(report, "# warning: {remark}");
    }
    (report, verdict)
}

/// Returns a drop-in for the systemd unit with settings that follow from the configuration.
///
/// # Errors
/// The broker would not start.
pub fn drop_in(mut config: Config) -> Result<String, StartError> {
    let table = leveret_daemon::derive_limits(&mut config)
        .map_err(|error| StartError::Limits(config.locate_error(&error)))?;
    let bytes = board::cgroup_bytes(config.memory_limit_bytes, table.kernel_bytes);
    Ok(format!("[Service]\nMemoryMax={bytes}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use leveret_config::Layer;
    use leveret_core::limits::Megabytes;

    const GUIDE: &str = include_str!("../../systemd/guide/configuration.md");

    /// The guide's table of profiles has the `MemoryMax=` that [`drop_in`] writes.
    #[test]
    fn the_guide_has_the_memory_max_of_each_profile() {
        for board in &board::BOARDS {
            let mut flags = Layer::default();
            flags.board = Some(board.name.to_string());
            flags.management = Some(Vec::new());
            let lines = drop_in(Config::gather(None, flags).unwrap()).unwrap();
            let bytes = lines.strip_prefix("[Service]\nMemoryMax=").unwrap().trim_end().parse().unwrap();
            let row = GUIDE.lines().find(|line| line.starts_with(&format!("| `{}` |", board.name))).unwrap();
            assert!(row.ends_with(&format!("| {} |", Megabytes(bytes))), "{row}: {bytes}");
        }
    }
}
