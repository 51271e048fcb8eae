//! Imports definitions, in the order in which objects depend on each other: a whole file over the network (`POST
//! definitions`), or lines that the command line makes of one (`POST ctl/import`).
//!
//! `POST definitions?dry_run=true` compares the objects of a file with the broker instead:
//!
//! ```text
//! {"new":[{"kind":"queue","vhost":"/","name":"q"},…],"new_count":N,"same":N,
//!  "different":[{…,"reason":"…"}],"different_count":N,"skipped":[{…,"reason":"…"}],"skipped_count":N}
//! ```
//!
//! `skipped` also has objects at which the import would fail because an object that they need is missing. Values and
//! limits are not checked.
//!
//! # Invariants
//! - A dry run changes nothing.
//! - Existing exchanges and queues stay as they are. Objects that this broker does not support are skipped.
//! - The syntax of the whole file is checked before the first object is created.
//! - An object that is refused (it is invalid, an object with other properties has the name, a limit is reached) does not
//!   stop the import. The answer names the refused objects.
//! - A step ends after [`OBJECTS_PER_STEP`] objects, or after [`BYTES_PER_STEP`] bytes of a file and the rest of 8 KiB.

use leveret_core::mem::{Messages, Share};
use leveret_core::password::PasswordHash;
use leveret_json::{Fields, Value};

use super::definitions::{self, DefinitionReader, Item, ItemError, Password, Step, StepError};
use super::definitions::{Comparison, DefinitionComparer, Findings, Subject};
use super::http::Status;
use super::json::Json;
use super::management::{numbers, texts};
use super::request::RequestContext;
use super::request::{Answer, Answered, Upload, bad, body, not_found, pool_full, problem, too_large};
use super::request::{Call, exists};
use super::uploads::Form;
use super::uploads::Spool;

/// Maximum number of objects that one step parses or creates.
const OBJECTS_PER_STEP: usize = 8;
/// Number of bytes of a file after which a step ends.
const BYTES_PER_STEP: usize = 64 << 10;
/// The longest text about refused objects in bytes. In JSON, a byte may take six, and the answer is written at once.
const REASON_BYTES_MAX: usize = 5 << 10;
/// Maximum length of an object of a file in bytes.
const OBJECT_BYTES_MAX: usize = 64 << 10;

/// Imports all definitions of the body, or those of one virtual host.
pub(super) fn all(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let vhost = call.optional_name("vhost");
    if vhost.is_some_and(|vhost| !exists(context, vhost)) {
        return Err(not_found("Not Found"));
    }
    let is_dry_run = call.request.has_true("dry_run");
    if call.request.body_bytes == Some(0) {
        return Ok(match is_dry_run {
            true => Answer::Now(Status::Ok, DryRun::default().answer()),
            false => Answer::Changed(Status::NoContent, Vec::new()),
        });
    }
    let most = context.process.message_size_max as usize;
    if call.request.is_longer_than(most.max(call.request.body.len())) {
        let why =
            format!("definitions may have message_size_max ({most} bytes): import them in several parts");
        return Err(too_large(&why));
    }
    let file = if call.request.is_whole() { Spool::buffered(call.request.body) } else { Spool::default() };
    let form = Form::of(call.request.media);
    let dry_run = is_dry_run.then(DryRun::default);
    let import = Import { file, form, vhost: vhost.map(Into::into), dry_run, ..Import::default() };
    Ok(Answer::Upload(Box::new(import)))
}

/// An import in progress.
#[derive(Debug, Default)]
pub(super) struct Import {
    file: Spool,
    /// The parser of the form that contains the file, until the file is found.
    form: Option<Form>,
    /// The address to redirect the client to after the import.
    redirect: Option<String>,
    /// The reader of the file, from the first step on.
    reader: Option<DefinitionReader>,
    /// The virtual host that replaces the one in the file.
    vhost: Option<String>,
    /// The comparison with the broker, which replaces creation.
    dry_run: Option<DryRun>,
    /// The number of objects in the file.
    object_count: u64,
    refusals: Findings,
}

impl Upload for Import {
    fn take(&mut self, bytes: &[u8], left: usize, context: &mut RequestContext<'_>) -> Result<(), Answer> {
        self.file.push(context.messages, Share::Ordinary, bytes, left).map_err(|_| pool_full())
    }

    fn bytes_max(&self, context: &RequestContext<'_>) -> usize {
        context.process.message_size_max as usize
    }

    fn release(&mut self, messages: &mut Messages) {
        self.file.release(messages);
    }

    fn step(&mut self, context: &mut RequestContext<'_>) -> Result<Option<Answer>, Answer> {
        if let Some(form) = &mut self.form {
            if let Some(found) = form.step(&self.file, context.messages).map_err(bad)?
                && let Some((begin, end)) = found.file
            {
                (self.form, self.redirect) = (None, found.redirect);
                self.reader = Some(self.reader_of(begin as u64, Some(end as u64)));
            }
            return Ok(None);
        }
        let mut reader = self.reader.take().unwrap_or_else(|| self.reader_of(0, None));
        let (mut objects, mut bytes) = (0, 0);
        while objects < OBJECTS_PER_STEP && bytes < BYTES_PER_STEP {
            let file = &self.file;
            let step = reader.step(|at, buffer| {
                let count = file.read(context.messages, at as usize, buffer);
                bytes += count;
                Ok(count)
            });
            match step.map_err(|error| match error {
                StepError::System(error) => bad(error.to_string()),
                StepError::Malformed(why) => bad(why),
            })? {
                Step::Nothing => {}
                Step::Object { at, text, is_checked } => {
                    objects += 1;
                    let parsed = Value::parse(text.as_bytes()).map_err(|why| bad(format!("{at}: {why}")))?;
                    if is_checked {
                        self.object_count += 1;
                        if let Err(why) = self.take_object(at.section, &parsed, context) {
                            self.refusals.add(at, &text, &why);
                        }
                    }
                }
                Step::End => {
                    return Ok(Some(match (&self.dry_run, self.redirect.take()) {
                        (Some(dry_run), _) => Answer::Now(Status::Ok, dry_run.answer()),
                        (None, _) if self.refusals.count() > 0 => self.answer_with_refusals(),
                        (None, Some(address)) => Answer::ChangedRedirect(address),
                        (None, None) => Answer::Changed(Status::NoContent, Vec::new()),
                    }));
                }
            }
        }
        self.reader = Some(reader);
        Ok(None)
    }
}

impl Import {
    /// Creates the reader of the file, which is from `begin` to `end` in the body.
    fn reader_of(&self, begin: u64, end: Option<u64>) -> DefinitionReader {
        DefinitionReader::new(begin, end, self.vhost.is_some(), OBJECT_BYTES_MAX)
    }

    /// Returns the answer that names the refused objects. The others are durable before it is sent.
    fn answer_with_refusals(&self) -> Answer {
        let (refused, all) = (self.refusals.count(), self.object_count);
        let head = format!("{refused} of {all} objects were not imported; the rest was");
        let reason = core::iter::once(head).chain(self.refusals.lines()).collect::<Vec<_>>().join("\n");
        let reason = definitions::cut(reason, REASON_BYTES_MAX);
        Answer::Changed(Status::BadRequest, problem("bad_request", &reason))
    }

    /// Parses an object of a list, and creates or compares it.
    ///
    /// # Errors
    /// The object is refused; the text says why.
    fn take_object(
        &mut self,
        section: &str,
        object: &Value<'_>,
        context: &mut RequestContext<'_>,
    ) -> Result<(), String> {
        let item = read(section, object, self.vhost.as_deref());
        match (item, &mut self.dry_run) {
            (Ok(item), None) => make(context, item),
            (Err(ItemError::Bad(why)), None) => Err(why),
            (Err(ItemError::Unsupported(_)), None) => Ok(()),
            (Err(ItemError::Bad(why)), Some(dry_run)) => {
                let name = Fields::of(object).ok().and_then(|mut fields| fields.text("name").ok());
                dry_run.skipped.add(section, None, &name.unwrap_or_default(), Some(&why));
                Ok(())
            }
            (Ok(item), Some(dry_run)) => {
                dry_run.compare(context, &item);
                Ok(())
            }
            (Err(ItemError::Unsupported(what)), Some(dry_run)) => {
                dry_run.skipped.add(section, None, &what, Some("not supported by this broker"));
                Ok(())
            }
        }
    }
}

/// Parses an object.
fn read(section: &str, object: &Value<'_>, vhost: Option<&str>) -> Result<Item, ItemError> {
    let vhost = vhost.map(|vhost| Value::String(vhost.into()).to_string());
    let mut fields = Fields::of(object)?;
    vhost.iter().for_each(|vhost| fields.put("vhost".into(), vhost));
    definitions::parse_fields(section, fields).map(|parsed| parsed.item)
}

/// Maximum number of objects that each list of a dry run's answer names.
const NAMED_MAX: usize = 200;
/// Maximum length of such a list in bytes.
const NAMED_BYTES_MAX: usize = 10 << 10;

/// A list of objects in the answer of a dry run.
#[derive(Debug, Default)]
struct NamedObjects {
    /// The objects as JSON, separated by commas.
    json: Vec<u8>,
    named_count: usize,
    count: u64,
}

impl NamedObjects {
    fn add(&mut self, kind: &str, vhost: Option<&str>, name: &str, reason: Option<&str>) {
        self.count += 1;
        if self.named_count == NAMED_MAX {
            return;
        }
        let before = self.json.len();
        let mut json = Json::new(&mut self.json, NAMED_BYTES_MAX);
        let mut is_first = true;
        if self.named_count > 0 {
            json.raw(b",");
        }
        json.raw(b"{");
        texts(&mut json, &mut is_first, &[("kind", kind)]);
        vhost.iter().for_each(|vhost| texts(&mut json, &mut is_first, &[("vhost", vhost)]));
        texts(&mut json, &mut is_first, &[("name", name)]);
        reason.iter().for_each(|reason| texts(&mut json, &mut is_first, &[("reason", reason)]));
        json.raw(b"}");
        if json.is_full() {
            self.json.truncate(before);
        } else {
            self.named_count += 1;
        }
    }
}

/// What an import would do.
#[derive(Debug, Default)]
struct DryRun {
    comparer: DefinitionComparer,
    new: NamedObjects,
    same_count: u64,
    different: NamedObjects,
    skipped: NamedObjects,
}

impl DryRun {
    /// Compares an object.
    fn compare(&mut self, context: &mut RequestContext<'_>, item: &Item) {
        let (broker, mut context) = context.broker();
        let comparison = self.comparer.compare(broker, &mut context, item);
        let Subject { kind, vhost, name } = Subject::of(item);
        let vhost = vhost.as_deref();
        match comparison {
            Comparison::New => self.new.add(kind, vhost, &name, None),
            Comparison::Same => self.same_count += 1,
            Comparison::Different(reason) => self.different.add(kind, vhost, &name, Some(reason)),
            Comparison::Impossible(why) => self.skipped.add(kind, vhost, &name, Some(&why)),
        }
    }

    /// Returns the body of the answer.
    fn answer(&self) -> Vec<u8> {
        let Self { new, different, skipped, .. } = self;
        body(|json| {
            let mut is_first = true;
            json.raw(b"{");
            for (name, objects) in [("new", new), ("different", different), ("skipped", skipped)] {
                json.name(name, &mut is_first);
                json.raw(b"[");
                json.raw(&objects.json);
                json.raw(b"]");
                numbers(json, &mut is_first, &[(&format!("{name}_count"), objects.count)]);
            }
            numbers(json, &mut is_first, &[("same", self.same_count)]);
            json.raw(b"}");
        })
    }
}

fn make(context: &mut RequestContext<'_>, mut item: Item) -> Result<(), String> {
    let salt = context.broker.random_u64().to_le_bytes();
    if let Item::User(user) = &mut item
        && let Password::Clear(clear) = &user.password
    {
        let salt = [salt[0], salt[1], salt[2], salt[3]];
        user.password = Password::Hash(PasswordHash::as_rabbitmq(clear.as_bytes(), salt));
    }
    let (broker, mut context) = context.broker();
    definitions::apply(broker, &mut context, &item).map(|_| ())
}

/// The most bytes of the answer to one line of an import: the object's name in an error, and remarks on unknown
/// fields.
const LINE_ANSWER_BYTES: usize = 8 << 10;
/// The most unknown fields of one object that are named.
const REMARKS_MAX: usize = 16;

/// Imports the lines of the body: each the name of a list in a definition file, a space, one of its objects.
///
/// The answer lists errors and remarks by line number. When it is full, `[number,"stopped",""]` gives the first line
/// that was not imported; the client sends these lines again.
pub(super) fn lines(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let body = body(|json| {
        json.raw(b"[");
        let mut is_first = true;
        let mut report = |json: &mut Json<'_>, number: usize, kind: &str, why: &str| {
            json.comma(&mut is_first);
            json.raw(b"[");
            json.number(number as u64);
            json.raw(b",");
            json.text(kind);
            json.raw(b",");
            json.text(why);
            json.raw(b"]");
        };
        for (number, line) in call.request.body.split(|byte| *byte == b'\n').enumerate() {
            if json.room_bytes() < LINE_ANSWER_BYTES {
                report(json, number, "stopped", "");
                break;
            }
            let Some(at) = line.iter().position(|byte| *byte == b' ') else { continue };
            let section = String::from_utf8_lossy(&line[..at]);
            let text = core::str::from_utf8(&line[at..]).map_err(|error| error.to_string());
            let parsed =
                text.and_then(|text| definitions::parse(&section, text).map_err(|why| why.to_string()));
            let applied = parsed.and_then(|definitions::Parsed { item, unknown_fields }| {
                let remarks = unknown_fields.iter().map(|name| definitions::unknown_field(name));
                remarks.take(REMARKS_MAX).for_each(|why| report(json, number, "remark", &why));
                let (broker, mut context) = context.broker();
                definitions::apply(broker, &mut context, &item).map(|applied| applied.remark(&item))
            });
            match applied {
                Ok(remark) => remark.iter().for_each(|remark| report(json, number, "remark", remark)),
                Err(why) => report(json, number, "error", &why),
            }
        }
        json.raw(b"]");
    });
    Ok(Answer::Changed(Status::Ok, body))
}
