//! What a file of definitions says, made in the order in which things need each other: a whole file over the
//! network (`POST definitions`), or lines that the command line makes of one (`POST ctl/import`).
//!
//! Always true: what is there already stays; what this broker has no such thing of is passed over; in a file a
//! thing that makes no sense is told before anything is made; what only shows when it is made (another one is there
//! under the name, a limit is reached) ends it, with what was made before it left standing, as with RabbitMQ.

use crate::fields::{Fields, Value, items};
use crate::password::PasswordHash;

use super::answer::{Answer, Answered, bad, body, not_found};
use super::call::{Call, exists};
use super::definitions::{self, Item, ItemError, Password, SECTIONS};
use super::http::{Request, Status};
use super::json::Json;
use super::request_context::RequestContext;

/// Makes all that is said, or all of one virtual host.
pub(super) fn all(call: &Call<'_>, context: &mut RequestContext<'_>) -> Answered {
    let vhost = call.has("vhost");
    if vhost.is_some_and(|vhost| !exists(context, vhost)) {
        return Err(not_found("Not Found"));
    }
    // Twice, for all of it at once takes more memory than there is for it.
    for makes in [false, true] {
        go_through(call.request, context, vhost, makes).map_err(bad)?;
    }
    Ok(Answer::Changed(Status::NoContent, Vec::new()))
}

/// Reads all that is said, and makes it if it is to.
fn go_through(
    request: &Request<'_>,
    context: &mut RequestContext<'_>,
    vhost: Option<&str>,
    makes: bool,
) -> Result<(), String> {
    let mut fields = Fields::parse(request.body)?;
    for section in SECTIONS {
        let is_in_vhost = matches!(section, "parameters" | "policies" | "exchanges" | "queues" | "bindings");
        let things = match fields.value(section) {
            Value::Array(things) if vhost.is_none() || is_in_vhost => things,
            Value::Array(_) | Value::Null => continue,
            _ => return Err(format!("`{section}` must be a list")),
        };
        for (at, thing) in items(things).enumerate() {
            let done = thing.and_then(|thing| read(section, &thing, vhost)).and_then(|item| match item {
                Some(item) if makes => make(context, item),
                _ => Ok(()),
            });
            done.map_err(|why| format!("{section}[{at}]: {why}"))?;
        }
    }
    Ok(())
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
