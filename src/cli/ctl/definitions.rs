//! `export_definitions` and `import_definitions`: files in RabbitMQ's format.
//!
//! # Invariants
//! - An export gets its name only when it is complete.
//! - An import reports everything that was refused, with the reason, and continues with the rest.
//! - A plain-text password is hashed here, so that the broker is not delayed.

use std::fs::{self, File};
use std::io::{self, BufWriter, Cursor, Read, Write};
use std::path::Path;

use serde_json::Value;

use crate::archive::{NewFile, Old};
use leveret_management::definitions::{FILE_BYTES_MAX, Item, Password, ReadError, parse, read};

use super::access::hash_of;
use super::client::Client;
use super::client::{BAD_DATA, Failure, SOFTWARE, UNAVAILABLE, misused_as, tell};
use super::commands::Call;
use super::commands::connect;

/// Maximum number of bytes sent at once.
const BATCH_BYTES: usize = 32 << 10;
/// A definition larger than this does not fit into a request, in bytes.
const THING_BYTES_MAX: usize = 60 << 10;
/// After this number of password hashes a batch is sent, because the broker disconnects silent clients.
const HASHES_AT_ONCE: usize = 32;

pub(super) fn export(call: &Call) -> Result<(), Failure> {
    let name = &call.args[0];
    if name == "-" {
        let stdout = io::stdout().lock();
        let mut out = BufWriter::new(stdout);
        connect(call)?.copy("/api/definitions", &mut out)?;
        return out.flush().map_err(Failure::from);
    }
    let target = Path::new(name);
    let folder = target.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        let why = format!("Bad argument: Directory {} does not exist", folder.display());
        return Err(misused_as(BAD_DATA, call, &why));
    }
    tell(call, &format!("Exporting definitions in JSON to a file at \"{name}\" ..."))?;
    let part = NewFile::create(target).map_err(|error| unwritable(target, &error))?;
    let mut out = BufWriter::new(&part.file);
    connect(call)?.copy("/api/definitions", &mut out)?;
    out.flush().map_err(|error| unwritable(target, &error))?;
    drop(out);
    part.finish(Old::Replaced).map_err(|error| unwritable(target, &error))
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    Failure::new(BAD_DATA, format!("Error: {} cannot be written: {error}", path.display()))
}

pub(super) fn import(call: &Call) -> Result<(), Failure> {
    let name = call.args.first().map_or("-", String::as_str);
    let mut importer = Importer {
        client: connect(call)?,
        batch: String::new(),
        places: Vec::new(),
        hashes: 0,
        complaints: 0,
    };
    let done = if name == "-" {
        tell(call, "Importing definitions in JSON from standard input ...")?;
        let mut text = Vec::new();
        let taken = io::stdin().lock().take(FILE_BYTES_MAX + 1).read_to_end(&mut text);
        taken.map_err(|error| Failure::new(BAD_DATA, format!("Error: standard input: {error}")))?;
        read(&mut Cursor::new(text), |at, section, thing| importer.take(&at.to_string(), section, thing))
    } else {
        let bad = |why: String| misused_as(BAD_DATA, call, &why);
        let found =
            fs::metadata(name).map_err(|_| bad(format!("Bad argument: File {name} does not exist")))?;
        if !found.is_file() {
            return Err(bad(format!("Bad argument: {name} is not a file")));
        }
        tell(call, &format!("Importing definitions in JSON from a file at \"{name}\" ..."))?;
        let mut file = File::open(name)
            .map_err(|error| Failure::new(BAD_DATA, format!("Error: {name} cannot be read: {error}")))?;
        read(&mut file, |at, section, thing| importer.take(&at.to_string(), section, thing))
    };
    done.map_err(|error| match error {
        ReadError::Stopped(failure) => failure,
        error => Failure::error(BAD_DATA, format_args!("Failed to read the definitions: {error}")),
    })?;
    importer.send()?;
    match importer.complaints {
        0 => tell(call, "Successfully imported the definitions."),
        count => {
            Err(Failure::new(UNAVAILABLE, format!("Error: {count} objects were not imported; the rest was")))
        }
    }
}

/// Sends definitions in batches and reports those that were refused.
struct Importer {
    client: Client,
    batch: String,
    /// The place of each definition of the batch in the file.
    places: Vec<String>,
    /// Number of passwords hashed for the batch.
    hashes: usize,
    complaints: usize,
}

impl Importer {
    fn take(&mut self, place: &str, section: &str, thing: &str) -> Result<(), Failure> {
        let Ok(mut value) = thing.parse::<Value>() else {
            self.complain(place, "it is nested too deeply, or contains an invalid number or text");
            return Ok(());
        };
        if section == "global_parameters" && is_of_no_matter(&value) {
            return Ok(());
        }
        if section == "users" {
            match hash_password(thing, &mut value)? {
                Ok(was_hashed) => self.hashes += usize::from(was_hashed),
                Err(why) => {
                    self.complain(place, &why);
                    return Ok(());
                }
            }
        }
        let thing = value.to_string();
        if thing.len() > THING_BYTES_MAX {
            self.complain(place, "it is larger than 60 KiB");
            return Ok(());
        }
        if self.batch.len() + thing.len() > BATCH_BYTES {
            self.send()?;
        }
        // JSON without line breaks: there are none outside of strings, and inside they are escaped.
        self.batch += &format!("{section} {thing}\n");
        self.places.push(place.to_string());
        if self.hashes == HASHES_AT_ONCE { self.send() } else { Ok(()) }
    }

    fn send(&mut self) -> Result<(), Failure> {
        let batch = core::mem::take(&mut self.batch);
        let places = core::mem::take(&mut self.places);
        self.hashes = 0;
        let (mut lines, mut done) = (&*batch, 0);
        while !lines.is_empty() {
            let reply = self.client.ask("POST", "/api/ctl/import", "", lines)?;
            let problems = reply.body.as_array().filter(|_| reply.status == 200);
            let mut stopped_at = None;
            for problem in problems.ok_or_else(|| Failure::refused(&reply))? {
                let number = problem.get(0).and_then(Value::as_u64).unwrap_or(u64::MAX);
                let number = usize::try_from(number).unwrap_or(usize::MAX);
                let place = number.checked_add(done).and_then(|number| places.get(number));
                let place =
                    place.ok_or_else(|| Failure::new(SOFTWARE, "Error: the broker reported no error"))?;
                let text = problem.get(2).and_then(Value::as_str).unwrap_or_default();
                match problem.get(1).and_then(Value::as_str) {
                    Some("error") => self.complain(place, text),
                    Some("stopped") => stopped_at = Some(number),
                    _ => remark(&format!("{place}: {text}")),
                }
            }
            // The answer was full: the following definitions were not handled yet.
            let Some(count) = stopped_at.filter(|count| *count > 0) else { break };
            let handled: usize = lines.split_inclusive('\n').take(count).map(str::len).sum();
            lines = lines.get(handled..).unwrap_or_default();
            done += count;
        }
        Ok(())
    }

    fn complain(&mut self, place: &str, why: &str) {
        self.complaints += 1;
        remark(&format!("{place}: {why}"));
    }
}

/// Replaces a user's plain-text password by its hash. Returns whether there was one, or why the definition is
/// invalid.
fn hash_password(thing: &str, user: &mut Value) -> Result<Result<bool, String>, Failure> {
    let parsed = match parse("users", thing) {
        Ok(parsed) => parsed,
        Err(why) => return Ok(Err(why.to_string())),
    };
    if let (Item::User(parsed), Value::Object(fields)) = (parsed.item, user)
        && let Password::Clear(clear) = parsed.password
    {
        fields.remove("password");
        if let Value::Object(hash) = hash_of(clear.as_bytes())? {
            fields.extend(hash);
        }
        return Ok(Ok(true));
    }
    Ok(Ok(false))
}

/// Returns whether a parameter is one that every RabbitMQ exports and that has no meaning for one broker.
fn is_of_no_matter(parameter: &Value) -> bool {
    let name = parameter.get("name").and_then(Value::as_str);
    matches!(name, Some("cluster_name" | "internal_cluster_id"))
}

fn remark(text: &str) {
    // A closed standard error leaves no place to report to.
    let _ = writeln!(io::stderr(), "{text}");
}
