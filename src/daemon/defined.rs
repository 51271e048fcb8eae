//! `load_definitions`: what a file says there is to be, made at a start.
//!
//! # Invariants
//! - A file that cannot be read, or is damaged, changes nothing and stops no start: what it says is in the store since
//!   an earlier start, and an alarm tells of it.
//! - A thing in it that cannot be made is told, and the rest is made.
//! - What is there already is not written again, so starting often costs no flash.
//! - systemd does not take the time that the hashes of passwords need for a start that has failed.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use leveret_broker::{Broker, Context};
use leveret_management::definitions::{At, Item, Parsed, apply, hash_password, parse, read, unknown_field};
use leveret_management::systemd;

use super::entropy::entropy;

/// Makes everything that the file says.
///
/// # Errors
/// The file cannot be read to its end: a sentence with its name, and the line where it is damaged.
pub(super) fn load(path: &Path, (broker, mut context): (&mut Broker, Context<'_>)) -> Result<(), String> {
    let (mut made, mut refused) = (0, 0);
    go_through(path, |at, parsed| {
        let done = parsed.and_then(|parsed| {
            let Parsed { mut item, unknown_fields } = parsed;
            unknown_fields
                .iter()
                .for_each(|name| log::warn!("{}: {at}: {}", path.display(), unknown_field(name)));
            if matches!(item, Item::User(_)) {
                systemd::still_starting();
            }
            hash_password(broker, &mut item, &mut entropy);
            apply(broker, &mut context, &item).map(|applied| applied.remark(&item))
        });
        match done {
            Ok(remark) => {
                made += 1;
                remark.iter().for_each(|remark| log::warn!("{}: {at}: {remark}", path.display()));
            }
            Err(why) => {
                refused += 1;
                log::error!("{}: {at}: {why}", path.display());
            }
        }
    })?;
    log::info!("{}: {made} definitions are there, {refused} cannot be", path.display());
    Ok(())
}

/// What is to be told of the file, with nothing made.
pub(super) fn rehearse(path: &Path) -> Vec<String> {
    let mut remarks = Vec::new();
    let done = go_through(path, |at, parsed| match parsed {
        Ok(parsed) => {
            let unknown = parsed.unknown_fields.iter();
            remarks.extend(unknown.map(|name| format!("{}: {at}: {}", path.display(), unknown_field(name))));
        }
        Err(why) => remarks.push(format!("{}: {at}: {why}", path.display())),
    });
    remarks.extend(done.err());
    remarks
}

/// Hands over each thing that the file says, or why it makes no sense.
fn go_through(path: &Path, mut take: impl FnMut(At<'_>, Result<Parsed, String>)) -> Result<(), String> {
    let unusable = |why: String| {
        let path = path.display();
        format!(
            "load_definitions: {path}: {why}; what the store has is served without it: mend the file and start again, \
             or name another"
        )
    };
    let found = fs::metadata(path).map_err(|error| unusable(error.to_string()))?;
    if !found.is_file() {
        return Err(unusable("it is not a file".to_string()));
    }
    let mut file = File::open(path).map_err(|error| unusable(cannot_open(path, &error)))?;
    let done = read::<Infallible>(&mut file, |at, _, thing| {
        let parsed = parse(at.section, thing).map_err(|why| why.to_string());
        take(at, parsed);
        Ok(())
    });
    done.map_err(|error| unusable(error.to_string()))
}

fn cannot_open(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "{error}; let the user that the broker runs as read it (chgrp {} {1} && chmod g+r {1})",
            rustix::process::getegid().as_raw(),
            path.display()
        ),
        _ => error.to_string(),
    }
}
