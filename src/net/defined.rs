//! `load_definitions`: what a file says there is to be, made at a start.
//!
//! Always true: a file that cannot be read, or is no such file, keeps the broker from starting, as any other
//! mistake in its configuration does; a thing in it that cannot be made is told, and the rest is made; what
//! is there already is not written again, so starting often costs no flash; systemd does not take the time
//! that the hashes of passwords need for a start that has failed.

use std::convert::Infallible;
use std::fs::{self, File};
use std::path::Path;

use crate::admin::definitions::{Item, Parsed, apply, hash_password, parse, read, unknown_field};
use crate::admin::systemd;
use crate::broker::Broker;

use super::StartError;

/// Makes everything that the file says.
///
/// # Errors
/// It cannot be read to its end.
pub(super) fn load(path: &Path, broker: &mut Broker) -> Result<(), StartError> {
    let unusable = |why: String| StartError::Definitions(path.to_path_buf(), why);
    let found = fs::metadata(path).map_err(|error| unusable(error.to_string()))?;
    if !found.is_file() {
        return Err(unusable("it is not a file".to_string()));
    }
    let mut file = File::open(path).map_err(|error| unusable(error.to_string()))?;
    let (mut made, mut refused) = (0, 0);
    let done = read::<Infallible>(&mut file, |at, _, value| {
        let mut remarks = Vec::new();
        let done = parse(at.section, value).map_err(|why| why.to_string()).and_then(|parsed| {
            let Parsed { mut item, unknown_fields } = parsed;
            remarks.extend(unknown_fields.iter().map(|name| unknown_field(name)));
            if matches!(item, Item::User(_)) {
                systemd::still_starting();
            }
            hash_password(broker, &mut item, &mut super::house::entropy);
            apply(broker, &item)
        });
        match done {
            Ok(applied) => {
                made += 1;
                remarks.extend(applied.remark().map(str::to_string));
            }
            Err(why) => {
                refused += 1;
                log::error!("{}: {at}: {why}", path.display());
            }
        }
        for remark in remarks {
            log::warn!("{}: {at}: {remark}", path.display());
        }
        Ok(())
    });
    done.map_err(|error| unusable(error.to_string()))?;
    log::info!("{}: {made} definitions are there, {refused} cannot be", path.display());
    Ok(())
}
