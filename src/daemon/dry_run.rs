//! A dry run of the start, for `leveret check`.
//!
//! Operators run `leveret check` before they restart a broker on a remote device, which may be unreachable if the
//! broker does not start. So the dry run uses the same functions as the start. It creates and changes nothing and does
//! not listen, and a broker with the same configuration may be running.

use leveret_config::Config;

use super::start::StartError;
use super::{disk, listen, start};

/// Checks whether the broker would start with this configuration, as far as that can be found out without starting it.
/// Returns the warnings that it would log.
///
/// # Errors
/// Why the broker would not start.
pub fn rehearse(config: &Config) -> Result<Vec<String>, StartError> {
    let mut warnings = Vec::new();
    listen::wanted(config)?;
    if config.serves_tls() {
        let (_, warning) = start::read_certificates(config)?;
        warnings.extend(warning);
    }
    if let Err(error) = disk::rehearse(config)? {
        let directory = config.data_dir.display();
        warnings.push(format!(
            "the data directory {directory} cannot be used ({error}): all logins would be refused"
        ));
    }
    if let Some(file) = &config.load_definitions {
        warnings.extend(start::rehearse(file));
    }
    Ok(warnings)
}
