//! A dry run of the start, for `leveret check`.
//!
//! Operators run `leveret check` before they restart a broker on a remote device, which may be unreachable if
//! the broker does not start. The dry run therefore uses the same functions as the start. It creates nothing,
//! changes nothing and does not listen. A broker with the same configuration may be running meanwhile.

use leveret_config::Config;

use super::start::StartError;
use super::{disk, listen, start};

/// Checks whether the broker would start with this configuration, as far as this is possible without starting
/// it. Returns the warnings that the start would log.
///
/// # Errors
/// Why the broker would not start.
pub fn dry_run_start(config: &Config) -> Result<Vec<String>, StartError> {
    let mut warnings = Vec::new();
    listen::wanted(config)?;
    if config.serves_tls() {
        let (_, warning) = start::read_certificates(config)?;
        warnings.extend(warning);
    }
    if let Err(error) = disk::dry_run(config)? {
        let directory = config.data_dir.display();
        warnings.push(format!(
            "the data directory {directory} cannot be used ({error}): all logins would be refused"
        ));
    }
    if let Some(file) = &config.load_definitions {
        warnings.extend(start::dry_run_definitions(file));
    }
    Ok(warnings)
}
