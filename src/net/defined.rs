//! `load_definitions`: what a file says there is to be, made at a start.
//!
//! Always true: a file that cannot be read, or is no such file, keeps the broker from starting, as any other
//! mistake in its configuration does; a thing in it that cannot be made is told, and the rest is made; what
//! is there already is not written again, so starting often costs no flash.

use std::convert::Infallible;
use std::fs::{self, File};
use std::path::Path;

use crate::admin::definitions::{Applied, apply, parse, read};
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
        let item = parse(at.section, value).map_err(|why| why.to_string());
        match item.and_then(|item| apply(broker, &item)) {
            Ok(Applied::Done) => made += 1,
            Ok(Applied::Differs) => {
                log::warn!("{}: {at} is there already with other properties, and stays so", path.display());
            }
            Err(why) => {
                refused += 1;
                log::error!("{}: {at}: {why}", path.display());
            }
        }
        Ok(())
    });
    done.map_err(|error| unusable(error.to_string()))?;
    log::info!("{}: {made} definitions are there, {refused} cannot be", path.display());
    Ok(())
}
