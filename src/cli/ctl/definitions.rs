//! `export_definitions` and `import_definitions`: files in RabbitMQ's format.
//!
//! # Invariants
//! - The file of an export gets its name only when it is complete.
//! - An import reports which definitions were refused, with the reason, and continues with the others.
//! - An export replaces only a regular file, because root might name a device, a pipe or a link by mistake.
//! - A plain-text password is hashed here, so that the broker is not delayed.

use std::fs::{self, File};
use std::io::{self, BufWriter, Cursor, Read, Seek, Write};
use std::path::Path;

use serde_json::Value;

use crate::archive::{ExistingFile, NewFile};
use crate::progress::{Progress, Total};
use leveret_management::definitions::{At, FILE_BYTES_MAX, Findings, Item, Password, ReadError, parse, read};

use super::access::hash_of;
use super::client::Client;
use super::client::{BAD_DATA, Failure, SOFTWARE, UNAVAILABLE, misused_as, print_done, print_info};
use super::commands::Call;
use super::commands::connect;

/// Maximum number of bytes sent at once.
const BATCH_BYTES: usize = 32 << 10;
/// Maximum size of a definition in bytes, because it must fit into a request.
const DEFINITION_BYTES_MAX: usize = 60 << 10;
/// A batch is sent after this number of password hashes at the latest. Hashing takes time, and the broker
/// disconnects idle clients.
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
    if fs::symlink_metadata(target).is_ok_and(|found| !found.is_file()) {
        let why = format!(
            "Bad argument: {name} is not a regular file, so it is not replaced; name a new file, or - for standard \
             output"
        );
        return Err(misused_as(BAD_DATA, call, &why));
    }
    print_info(call, &format!("Exporting definitions in JSON to a file at \"{name}\" ..."))?;
    let part = NewFile::create(target).map_err(|error| unwritable(target, &error))?;
    let mut out = BufWriter::new(&part.file);
    connect(call)?.copy("/api/definitions", &mut out)?;
    out.flush().map_err(|error| unwritable(target, &error))?;
    drop(out);
    part.finish(ExistingFile::Replaced).map_err(|error| unwritable(target, &error))
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    Failure::new(BAD_DATA, format!("Error: {} cannot be written: {error}", path.display()))
}

pub(super) fn import(call: &Call) -> Result<(), Failure> {
    let name = call.args.first().map_or("-", String::as_str);
    let mut importer = Importer {
        client: connect(call)?,
        batch: String::new(),
        sent: Vec::new(),
        hashes: 0,
        refusals: Findings::default(),
        remarks: Findings::default(),
        progress: Progress::start("Import", Total::Bytes(0)),
    };
    let done = if name == "-" {
        print_info(call, "Importing definitions in JSON from standard input ...")?;
        let mut text = Vec::new();
        let taken = io::stdin().lock().take(FILE_BYTES_MAX + 1).read_to_end(&mut text);
        taken.map_err(|error| Failure::new(BAD_DATA, format!("Error: standard input: {error}")))?;
        importer.take_all(&mut Cursor::new(text))
    } else {
        let bad = |why: String| misused_as(BAD_DATA, call, &why);
        let found =
            fs::metadata(name).map_err(|_| bad(format!("Bad argument: File {name} does not exist")))?;
        if !found.is_file() {
            return Err(bad(format!("Bad argument: {name} is not a file")));
        }
        print_info(call, &format!("Importing definitions in JSON from a file at \"{name}\" ..."))?;
        let mut file = File::open(name)
            .map_err(|error| Failure::new(BAD_DATA, format!("Error: {name} cannot be read: {error}")))?;
        importer.take_all(&mut file)
    };
    let done = done.map_err(|error| match error {
        ReadError::Stopped(failure) => failure,
        error => Failure::error(BAD_DATA, format_args!("Failed to read the definitions: {error}")),
    });
    let done = done.and_then(|()| importer.send());
    importer.progress.clear();
    importer.remarks.lines().chain(importer.refusals.lines()).for_each(|line| print_error(&line));
    done?;
    match importer.refusals.count() {
        0 => {
            print_info(call, "Successfully imported the definitions.")?;
            print_done(call)
        }
        count => {
            Err(Failure::new(UNAVAILABLE, format!("Error: {count} objects were not imported; the rest was")))
        }
    }
}

/// Sends definitions in batches and reports those that were refused.
struct Importer {
    client: Client,
    batch: String,
    /// The definitions of the batch with their places in the file, for error texts.
    sent: Vec<(At, String)>,
    /// Number of passwords hashed for the batch.
    hashes: usize,
    refusals: Findings,
    /// Remarks on definitions that were imported.
    remarks: Findings,
    progress: Progress,
}

impl Importer {
    fn take_all(&mut self, file: &mut (impl Read + Seek)) -> Result<(), ReadError<Failure>> {
        // The time to read standard input does not count: it depends on the other program.
        self.progress = Progress::start("Import", Total::Bytes(0));
        // The objects are not read in the order of the file, so the position in it says little. The file is read once
        // more to add up their lengths. An error occurs again when they are imported.
        if self.progress.is_shown() {
            let mut bytes = 0;
            let _ = read(file, |_, thing| {
                bytes += thing.len() as u64;
                Ok::<(), Failure>(())
            });
            self.progress.expect(Total::Bytes(bytes));
        }
        read(file, |at, thing| self.take(at, thing))
    }

    fn take(&mut self, at: At, thing: &str) -> Result<(), Failure> {
        self.progress.add(thing.len() as u64, 0);
        let section = at.section;
        let Ok(mut value) = thing.parse::<Value>() else {
            self.refusals.add(at, thing, "it is nested too deeply, or contains an invalid number or text");
            return Ok(());
        };
        if section == "global_parameters" && can_be_ignored(&value) {
            return Ok(());
        }
        if section == "users" {
            match hash_password(thing, &mut value)? {
                Ok(was_hashed) => self.hashes += usize::from(was_hashed),
                Err(why) => {
                    self.refusals.add(at, thing, &why);
                    return Ok(());
                }
            }
        }
        let thing = value.to_string();
        if thing.len() > DEFINITION_BYTES_MAX {
            self.refusals.add(at, &thing, "it is larger than 60 KiB");
            return Ok(());
        }
        if self.batch.len() + thing.len() > BATCH_BYTES {
            self.send()?;
        }
        // A definition is one line: JSON has no unescaped line breaks in strings, and none outside of them
        // here.
        self.batch += &format!("{section} {thing}\n");
        self.sent.push((at, thing));
        if self.hashes == HASHES_AT_ONCE { self.send() } else { Ok(()) }
    }

    fn send(&mut self) -> Result<(), Failure> {
        let batch = core::mem::take(&mut self.batch);
        let sent = core::mem::take(&mut self.sent);
        self.hashes = 0;
        let (mut lines, mut done) = (&*batch, 0);
        while !lines.is_empty() {
            let reply = self.client.ask("POST", "/api/ctl/import", "", lines)?;
            let problems = reply.body.as_array().filter(|_| reply.status == 200);
            let mut stopped_at = None;
            for problem in problems.ok_or_else(|| Failure::refused(&reply))? {
                let number = problem.get(0).and_then(Value::as_u64).unwrap_or(u64::MAX);
                let number = usize::try_from(number).unwrap_or(usize::MAX);
                let found = number.checked_add(done).and_then(|number| sent.get(number));
                let (at, object) =
                    found.ok_or_else(|| Failure::new(SOFTWARE, "Error: the broker reported no error"))?;
                let text = problem.get(2).and_then(Value::as_str).unwrap_or_default();
                match problem.get(1).and_then(Value::as_str) {
                    Some("error") => self.refusals.add(*at, object, text),
                    Some("stopped") => stopped_at = Some(number),
                    _ => self.remarks.add(*at, object, text),
                }
            }
            // The reply had no space for more, so the following definitions were not handled. They are sent
            // again.
            let Some(count) = stopped_at.filter(|count| *count > 0) else { break };
            let handled: usize = lines.split_inclusive('\n').take(count).map(str::len).sum();
            lines = lines.get(handled..).unwrap_or_default();
            done += count;
        }
        Ok(())
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

/// Returns whether a parameter can be left out silently: every RabbitMQ exports it, and it has no meaning for
/// a single broker.
fn can_be_ignored(parameter: &Value) -> bool {
    parameter.get("name").and_then(Value::as_str) == Some("internal_cluster_id")
}

fn print_error(text: &str) {
    // A closed standard error leaves no place to report to.
    let _ = writeln!(io::stderr(), "{text}");
}
