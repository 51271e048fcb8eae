//! What a file of definitions says, made in the order in which things need each other: a whole file over the
//! network (`POST definitions`), or lines that the command line makes of one (`POST ctl/import`).
//!
//! Always true: what is there already stays; what this broker has no such thing of is passed over; in a file a
//! thing that makes no sense is told before anything is made; what only shows when it is made (another one is there
//! under the name, a limit is reached) ends it, with what was made before it left standing, as with RabbitMQ; a file
//! is gone through in steps of at most [`THINGS_PER_STEP`] things or [`BYTES_PER_STEP`] bytes.

use leveret_core::mem::{Messages, Share};
use leveret_core::password::PasswordHash;
use leveret_json::{Fields, Value};

use super::definitions::{self, Found, Item, ItemError, Password, SECTIONS, Scanner};
use super::http::Status;
use super::json::Json;
use super::request::{Answer, Answered, Upload, bad, body, no_room, not_found, too_large};
use super::request::{Call, exists};
use super::request_context::RequestContext;
use super::uploads::Form;
use super::uploads::Spool;

/// Things that one step reads, or makes.
const THINGS_PER_STEP: usize = 8;
/// Bytes of a file that one step goes through.
const BYTES_PER_STEP: usize = 64 << 10;
/// Bytes of a file that are looked at in one piece.
const LOOK_BYTES: usize = 8 << 10;

/// What some editors put before UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Makes all that is said, or all of one virtual host.
pub(super) fn all(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let vhost = call.has("vhost");
    if vhost.is_some_and(|vhost| !exists(context, vhost)) {
        return Err(not_found("Not Found"));
    }
    if call.request.body_bytes == 0 {
        return Ok(Answer::Changed(Status::NoContent, Vec::new()));
    }
    let most = context.process.message_size_max as usize;
    let bytes = call.request.body_bytes;
    if bytes > most.max(call.request.body.len()) {
        let why =
            format!("definitions may have message_size_max ({most} bytes): import them in several parts");
        return Err(too_large(&why));
    }
    let file = if call.request.is_whole() { Spool::buffered(call.request.body) } else { Spool::default() };
    let form = Form::of(call.request.media);
    let import = Import { file, form, vhost: vhost.map(Into::into), ..Import::default() };
    Ok(Answer::Upload(Box::new(import)))
}

/// A file that is being made.
#[derive(Debug, Default)]
pub(super) struct Import {
    file: Spool,
    /// The form that the file is in, until it is found there.
    form: Option<Form>,
    /// Where the client goes on when all is made.
    redirect: Option<String>,
    /// Where it begins in what was sent, and where it ends, if that is not the end of all.
    begin: usize,
    end: Option<usize>,
    /// What stands in the file is of this virtual host, whatever it says.
    vhost: Option<String>,
    scanner: Scanner,
    /// Where the scanner is in the file.
    at: usize,
    /// The list that the scanner is in, if its things are ours, and how many of it were found.
    list: Option<&'static str>,
    found: usize,
    /// Where the things of each list begin.
    lists: [Option<usize>; SECTIONS.len()],
    /// The list that is being made; `None` while the file is being checked.
    making: Option<usize>,
}

impl Upload for Import {
    fn take(&mut self, bytes: &[u8], left: usize, context: &mut RequestContext<'_>) -> Result<(), Answer> {
        self.file.push(context.messages, Share::Ordinary, bytes, left).map_err(|_| no_room())
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
                (self.begin, self.at, self.end) = (begin, begin, Some(end));
            }
            return Ok(None);
        }
        let mut piece = vec![0; LOOK_BYTES];
        let (mut things, mut bytes) = (0, 0);
        while things < THINGS_PER_STEP && bytes < BYTES_PER_STEP {
            if let Some(making) = self.making
                && self.list.is_none()
            {
                let Some(begin) = self.lists.get(making) else {
                    return Ok(Some(match self.redirect.take() {
                        Some(address) => Answer::ChangedGoOn(address),
                        None => Answer::Changed(Status::NoContent, Vec::new()),
                    }));
                };
                match begin {
                    Some(begin) => {
                        (self.at, self.list, self.found) = (*begin, Some(SECTIONS[making]), 0);
                        self.scanner = Scanner::of_list();
                    }
                    None => self.making = Some(making + 1),
                }
                continue;
            }
            let most = self.end.map_or(LOOK_BYTES, |end| end.saturating_sub(self.at).min(LOOK_BYTES));
            let count = self.file.read(context.messages, self.at, &mut piece[..most]);
            if count == 0 {
                self.scanner.end().map_err(bad)?;
                self.making = Some(0);
                continue;
            }
            if self.at == self.begin && piece[..count].starts_with(BYTE_ORDER_MARK) {
                self.at += BYTE_ORDER_MARK.len();
                continue;
            }
            let (used, found) = self.scanner.take(&piece[..count]).map_err(bad)?;
            self.at += used;
            bytes += used;
            things += usize::from(found != Found::Nothing);
            self.handle(found, context).map_err(bad)?;
        }
        Ok(None)
    }
}

impl Import {
    fn handle(&mut self, found: Found, context: &mut RequestContext<'_>) -> Result<(), String> {
        match found {
            Found::Nothing => {}
            Found::List(name) => {
                let at = self.ours(&name);
                (self.list, self.found) = (at.map(|at| SECTIONS[at]), 0);
                if let Some(at) = at {
                    self.lists[at] = Some(self.at);
                }
            }
            Found::EndOfList => {
                self.list = None;
                self.making = self.making.map(|making| making + 1);
            }
            Found::Member(name, text) => {
                let value = Value::parse(text.as_bytes())?;
                match self.ours(&name) {
                    Some(at) if value.is_null() => self.lists[at] = None,
                    Some(_) => return Err(format!("`{name}` must be a list")),
                    None => {}
                }
            }
            Found::Thing(text) => {
                let at = self.found;
                self.found += 1;
                let value = Value::parse(text.as_bytes());
                let Some(section) = self.list else { return value.map(|_| ()) };
                let item = value.and_then(|thing| read(section, &thing, self.vhost.as_deref()));
                let done = item.and_then(|item| match item {
                    Some(item) if self.making.is_some() => make(context, item),
                    _ => Ok(()),
                });
                done.map_err(|why| format!("{section}[{at}]: {why}"))?;
            }
        }
        Ok(())
    }

    /// Returns the place of a list among those that are made.
    fn ours(&self, name: &str) -> Option<usize> {
        let is_in_vhost = matches!(name, "parameters" | "policies" | "exchanges" | "queues" | "bindings");
        SECTIONS.iter().position(|section| *section == name).filter(|_| self.vhost.is_none() || is_in_vhost)
    }
}

/// What a thing is; nothing, if this broker has no such thing.
fn read(section: &str, thing: &Value<'_>, vhost: Option<&str>) -> Result<Option<Item>, String> {
    let vhost = vhost.map(|vhost| Value::String(vhost.into()).to_string());
    let mut fields = Fields::of(thing)?;
    vhost.iter().for_each(|vhost| fields.put("vhost".into(), vhost));
    match definitions::parse_fields(section, fields) {
        Ok(parsed) => Ok(Some(parsed.item)),
        Err(ItemError::NotOurs(_)) => Ok(None),
        Err(ItemError::Bad(why)) => Err(why),
    }
}

fn make(context: &mut RequestContext<'_>, mut item: Item) -> Result<(), String> {
    let salt = context.broker.chance().to_le_bytes();
    if let Item::User(user) = &mut item
        && let Password::Clear(clear) = &user.password
    {
        let salt = [salt[0], salt[1], salt[2], salt[3]];
        user.password = Password::Hash(PasswordHash::as_rabbitmq(clear.as_bytes(), salt));
    }
    let (broker, mut context) = context.broker();
    definitions::apply(broker, &mut context, &item).map(|_| ())
}

/// What the answer to one line of an import takes at most: its name in an error, and remarks on fields that are not known.
const LINE_ANSWER_BYTES: usize = 8 << 10;
/// Fields that are not known of one thing, beyond which no more are named.
const REMARKS_MAX: usize = 16;

/// Makes what lines say: each the name of a list in a file of definitions, a space, one of its things.
///
/// The answer lists errors and remarks by the number of their line. When it is full, `[number,"stopped",""]` says from
/// which line on nothing was done; the client sends those again.
pub(super) fn lines(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let body = body(|json| {
        json.raw(b"[");
        let mut is_first = true;
        let mut tell = |json: &mut Json<'_>, number: usize, kind: &str, why: &str| {
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
                tell(json, number, "stopped", "");
                break;
            }
            let Some(at) = line.iter().position(|byte| *byte == b' ') else { continue };
            let section = String::from_utf8_lossy(&line[..at]);
            let text = core::str::from_utf8(&line[at..]).map_err(|error| error.to_string());
            let parsed =
                text.and_then(|text| definitions::parse(&section, text).map_err(|why| why.to_string()));
            let applied = parsed.and_then(|definitions::Parsed { item, unknown_fields }| {
                let told = unknown_fields.iter().map(|name| definitions::unknown_field(name));
                told.take(REMARKS_MAX).for_each(|why| tell(json, number, "remark", &why));
                let (broker, mut context) = context.broker();
                definitions::apply(broker, &mut context, &item).map(|applied| applied.remark(&item))
            });
            match applied {
                Ok(remark) => remark.iter().for_each(|remark| tell(json, number, "remark", remark)),
                Err(why) => tell(json, number, "error", &why),
            }
        }
        json.raw(b"]");
    });
    Ok(Answer::Changed(Status::Ok, body))
}
