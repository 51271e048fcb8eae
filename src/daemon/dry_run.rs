//! What a start needs from outside the process, looked at before there is one.
//!
//! Why it exists: `leveret check` is what a person runs before the restart of a broker that nobody can reach
//! when it does not come back. So what a start would refuse, this refuses, by the same functions.
//!
//! Always true: nothing is made, changed or listened on; the broker of the same configuration may be running.

use leveret_config::Config;

use super::start::StartError;
use super::{disk, listen, start};

/// Whether a broker would start with this configuration, as far as that can be seen without one; else why
/// not. What it would complain of in its log is given as sentences.
///
/// # Errors
/// What would keep it from starting.
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
