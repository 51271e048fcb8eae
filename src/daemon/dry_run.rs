//! A dry run of a start, for `leveret check`.
//!
//! A person runs `leveret check` before restarting a broker that cannot be reached if it does not come back. So
//! whatever a start would refuse is refused here by the same functions. Nothing is created, changed or listened
//! on; a broker with the same configuration may be running.

use leveret_config::Config;

use super::start::StartError;
use super::{disk, listen, start};

/// Returns whether a broker would start with this configuration, as far as that can be found out. The returned
/// sentences are the warnings that it would log.
///
/// # Errors
/// Why it would not start.
pub fn rehearse(config: &Config) -> Result<Vec<String>, StartError> {
    let mut remarks = Vec::new();
    listen::wanted(config)?;
    if config.serves_tls() {
        let (_, trouble) = start::read_certificates(config)?;
        remarks.extend(trouble);
    }
    if let Err(error) = disk::rehearse(config)? {
        let directory = config.data_dir.display();
        remarks
            .push(format!("the data directory {directory} cannot be used ({error}): nobody would be let in"));
    }
    if let Some(file) = &config.load_definitions {
        remarks.extend(start::rehearse(file));
    }
    Ok(remarks)
}
