//! `POST definitions`: what a file of definitions says, made in the order in which things need each other.
//!
//! Always true: what is there already stays; what this broker has no such thing of is passed over; the first
//! mistake ends it and is told, with what was made before it left standing, as with RabbitMQ.

use serde_json::Value;

use crate::password::PasswordHash;

use super::answer::{Answer, bad_request};
use super::definitions::{self, Fields, Item, ItemError, Password, SECTIONS};
use super::http::{Request, Status};
use super::request_context::RequestContext;

/// Makes all that is said, or all of one virtual host.
pub(super) fn handle(request: &Request<'_>, context: &mut RequestContext<'_>, vhost: Option<&str>) -> Answer {
    let mut fields = match Fields::parse(request.body) {
        Ok(fields) => fields,
        Err(why) => return bad_request(&why),
    };
    for section in SECTIONS.iter().filter(|section| section.is_ours) {
        let is_in_vhost = matches!(section.name, "policies" | "exchanges" | "queues" | "bindings");
        let things = match fields.value(section.name) {
            Value::Array(things) if vhost.is_none() || is_in_vhost => things,
            Value::Array(_) | Value::Null => continue,
            _ => return bad_request(&format!("`{}` must be a list", section.name)),
        };
        for (at, thing) in things.into_iter().enumerate() {
            if let Err(why) = make(context, section.name, thing, vhost) {
                return bad_request(&format!("{}[{at}]: {why}", section.name));
            }
        }
    }
    Answer::Changed(Status::NoContent, Vec::new())
}

fn make(
    context: &mut RequestContext<'_>,
    section: &str,
    mut thing: Value,
    vhost: Option<&str>,
) -> Result<(), String> {
    if let (Value::Object(fields), Some(vhost)) = (&mut thing, vhost) {
        fields.insert("vhost".to_string(), vhost.into());
    }
    let mut item = match definitions::parse(section, thing) {
        Ok(parsed) => parsed.item,
        Err(ItemError::NotOurs(_)) => return Ok(()),
        Err(ItemError::Bad(why)) => return Err(why),
    };
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
