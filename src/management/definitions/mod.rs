//! Definitions in RabbitMQ's format: one JSON object with a list for each kind of object.
//!
//! | file | contents |
//! |------|----------|
//! | `read` | reads a file in steps, so that objects come after those they need |
//! | `item` | parses one object |
//! | `compare` | compares objects with those of the broker, for a dry run |
//! | `export` | exports definitions |
//! | `findings` | errors and remarks about objects of a file, with equal ones together |
//! | this file | applies one object to the broker; arguments as field tables |
//!
//! # Invariants
//! - Size and nesting depth are bounded.
//! - An exchange or queue that exists is not changed. A queue that recovery rebuilt without arguments gets those of the
//!   file.
//! - Objects and fields that this broker does not support are reported. Exceptions: two fields that RabbitMQ exports,
//!   and unknown members in the value of an operator policy.
//! - Errors are reported with their position.

mod compare;
mod export;
mod findings;
mod item;
mod read;

use item::User;
use leveret_amqp::field::{ArrayWriter, Table, TableWriter};
use leveret_amqp::{Full, Writer};
use leveret_broker::{Broker, Context, Declared};
use leveret_core::password::PasswordHash;
use leveret_json::{Bounds, Value, items};
use leveret_storage::PendingWrites;

use crate::parameters::check_parameter;

pub use compare::{Comparison, DefinitionComparer, Subject};
pub use export::{PARTS as EXPORT, VHOST_PARTS as VHOST_EXPORT};
pub use findings::Findings;
pub(crate) use findings::cut;
pub use item::{
    Item, ItemError, Parsed, Password, parse, parse_fields, read_policy, read_user_limits, read_vhost_limits,
    tags, vhost_change,
};
pub use read::{At, FILE_BYTES_MAX, ReadError, SECTIONS, read};
pub use read::{DefinitionReader, Step, StepError};

/// Returns the remark about an unknown field.
pub fn unknown_field(name: &str) -> String {
    format!("unknown field `{name}`, which changes nothing")
}

/// The result of applying an object. Applying it again has no further effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Applied {
    /// The object exists as defined.
    Done,
    /// An object of that name exists with other properties and is left as it is.
    Differs,
    /// The user exists and has no password: the change removed it, or created the user without one.
    WithoutPassword,
}

impl Applied {
    /// Returns the remark for the operator, if there is one.
    pub fn remark(self, item: &Item) -> Option<String> {
        match self {
            Self::Done => None,
            Self::Differs => Some(format!("{item}: it exists with other properties and was not changed")),
            Self::WithoutPassword => Some(
                "the user has no password now, because neither `password` nor `password_hash` is given; set one \
                 with change_password, unless it logs in with a certificate"
                    .to_string(),
            ),
        }
    }
}

/// Creates the object, or changes it to what is defined. The broker's pending-write buffer knows when the change is
/// durable.
///
/// # Errors
/// The object cannot be created; the text says why.
pub fn apply(broker: &mut Broker, context: &mut Context<'_>, item: &Item) -> Result<Applied, String> {
    make(broker, context, item).map_err(|why| format!("{item}: {why}"))
}

fn make(broker: &mut Broker, context: &mut Context<'_>, item: &Item) -> Result<Applied, String> {
    if is_applied(broker, item) {
        return Ok(Applied::Done);
    }
    let pending_writes = &mut *context.pending_writes;
    let changed = match item {
        Item::Vhost(it) => {
            broker.put_vhost_with(pending_writes, &it.name, &it.metadata).and_then(|batch| match it.limits {
                Some(limits) => broker.access_mut().set_vhost_limits(pending_writes, &it.name, limits),
                None => Ok(batch),
            })
        }
        Item::User(user) => return put_user(broker, pending_writes, user),
        Item::Permission(it) => broker.access_mut().set_permissions(pending_writes, &it.borrowed()),
        Item::TopicPermission(it) => {
            broker.access_mut().set_topic_permissions(pending_writes, &it.borrowed())
        }
        Item::Limits(vhost, limits) => broker.access_mut().set_vhost_limits(pending_writes, vhost, *limits),
        Item::Policy(it) => broker.set_policy(context, &it.borrowed()),
        Item::Parameter(it) => check_parameter(&it.borrowed())
            .and_then(|needs| broker.set_parameter(pending_writes, &it.borrowed(), needs.as_ref(), None)),
        Item::Exchange(_) | Item::Queue(_) | Item::Binding(_) => return declare(broker, context, item),
    };
    changed.map(|_| Applied::Done).map_err(|fault| fault.to_string())
}

fn put_user(broker: &mut Broker, pending_writes: &mut PendingWrites, user: &User) -> Result<Applied, String> {
    let Some(hash) = stored_hash(&user.password) else {
        let why = "hashing a plain-text password takes long; import the file with `leveretctl \
                   import_definitions`, which hashes it";
        return Err(why.to_string());
    };
    let had = broker.access().users().find(|it| it.name == user.name).map(|it| *it.hash);
    let put =
        broker.put_user(pending_writes, &user.name, hash, &user.tags).and_then(|batch| match user.limits {
            Some(limits) => broker.access_mut().set_user_limits(pending_writes, &user.name, limits),
            None => Ok(batch),
        });
    put.map_err(|fault| fault.to_string())?;
    let must_be_reported = user.password == Password::Absent && had != Some(PasswordHash::NoPassword);
    Ok(if must_be_reported { Applied::WithoutPassword } else { Applied::Done })
}

/// Returns the hash of a password, or `None` if it must still be computed.
const fn stored_hash(password: &Password) -> Option<PasswordHash> {
    match password {
        Password::Absent => Some(PasswordHash::NoPassword),
        Password::Clear(_) => None,
        Password::Hash(hash) => Some(*hash),
    }
}

/// Replaces a user's password in clear by its hash. The existing hash is used if the password matches it. Takes the
/// time of one or two password checks.
pub fn hash_password(broker: &Broker, item: &mut Item, entropy: &mut dyn FnMut(&mut [u8])) {
    let Item::User(user) = item else { return };
    let Password::Clear(clear) = &user.password else { return };
    let kept = broker.access().users().find(|it| it.name == user.name).map(|it| *it.hash);
    let fitting = kept.filter(|hash| hash.fits(clear.as_bytes()));
    let hash = fitting.unwrap_or_else(|| PasswordHash::of(clear.as_bytes(), entropy));
    user.password = Password::Hash(hash);
}

/// Returns whether the broker already has the object as defined, so that nothing needs to be written.
fn is_applied(broker: &Broker, item: &Item) -> bool {
    match item {
        Item::User(user) => {
            let hash = stored_hash(&user.password);
            broker.access().users().any(|it| {
                let has_limits = user.limits.is_none_or(|limits| it.limits == limits);
                it.name == user.name && it.tags == user.tags && Some(*it.hash) == hash && has_limits
            })
        }
        Item::Permission(it) => broker.access().permissions().any(|view| view == it.borrowed()),
        Item::TopicPermission(it) => broker.access().topic_permissions().any(|view| view == it.borrowed()),
        Item::Vhost(it) => broker.access().vhosts().any(|view| {
            let has_limits = it.limits.is_none_or(|limits| view.limits == limits);
            view.name == it.name && has_limits && it.metadata.applied_to(view.metadata) == view.metadata
        }),
        Item::Limits(vhost, limits) => {
            broker.access().vhosts().any(|view| view.name == *vhost && view.limits == *limits)
        }
        Item::Policy(it) => broker.views().policies().any(|view| view == it.borrowed()),
        Item::Parameter(it) => broker.views().parameters().any(|view| view == it.borrowed()),
        Item::Exchange(_) | Item::Queue(_) | Item::Binding(_) => false,
    }
}

fn declare(broker: &mut Broker, context: &mut Context<'_>, item: &Item) -> Result<Applied, String> {
    let declared = match item {
        Item::Exchange(it) => broker.operator_declare_exchange(context, &it.vhost, &it.declaration()),
        Item::Queue(it) => broker.operator_declare_queue(context, &it.vhost, &it.declaration()),
        Item::Binding(it) => broker.operator_bind(context, &it.named()),
        _ => return Ok(Applied::Done),
    };
    match declared {
        Ok(Declared::Done) => Ok(Applied::Done),
        Ok(Declared::Differs) => Ok(Applied::Differs),
        Err(fault) => Err(fault.text.into()),
    }
}

/// The longest arguments of an object, in bytes of a field table.
const ARGUMENTS_BYTES_MAX: usize = 64 << 10;

const TOO_LARGE: &str = "arguments too large, or a name in them too long";

/// Converts arguments to a field table without its length.
///
/// # Errors
/// The arguments are not an object, or cannot be a field table.
pub fn table_of(value: &Value<'_>) -> Result<Vec<u8>, String> {
    if !value.holds_something() {
        return Ok(Vec::new());
    }
    let Value::Object(fields) = value else { return Err("arguments must be an object".to_string()) };
    // In a list, the 2 bytes `1,` become 9 bytes of a field table. Nothing grows by a larger factor.
    let mut bytes = vec![0; ARGUMENTS_BYTES_MAX.min(5 * fields.len())];
    let mut writer = Writer::new(&mut bytes);
    let mut builder = TableBuilder { bounds: Bounds::default(), why: None };
    if writer.table(|table| builder.put_all(table, fields)).is_err() {
        return Err(builder.why.unwrap_or_else(|| TOO_LARGE.to_string()));
    }
    let end = writer.at();
    bytes.truncate(end);
    // A table is preceded by its length in four bytes.
    bytes.drain(..4);
    bytes.shrink_to_fit();
    Table::parse(&bytes).map_err(|_| "arguments nested too deep")?;
    Ok(bytes)
}

/// Builds one field table.
struct TableBuilder {
    bounds: Bounds,
    /// Why the table cannot be built; `None` if it can, or if it is only too large.
    why: Option<String>,
}

impl TableBuilder {
    fn put_all(&mut self, table: &mut TableWriter<'_, '_>, object: &str) -> Result<(), Full> {
        let fields = self.bounds.open(object);
        let fields = self.keep_reason(fields)?;
        fields.iter().try_for_each(|(name, value)| match value {
            Value::Null => table.void(name),
            Value::Bool(truth) => table.bool(name, truth),
            Value::Number(number) => match number.as_i64() {
                Some(number) => table.long(name, number),
                None => table.double(name, number.as_f64().unwrap_or_default()),
            },
            Value::String(text) => table.text(name, &text),
            Value::Array(list) => table.array(name, |array| self.put_items(array, list)),
            Value::Object(object) => table.table(name, |inner| self.put_all(inner, object)),
        })?;
        self.bounds.close();
        Ok(())
    }

    fn put_items(&mut self, array: &mut ArrayWriter<'_, '_>, list: &str) -> Result<(), Full> {
        let opened = self.bounds.enter();
        self.keep_reason(opened)?;
        for value in items(list) {
            let value = self.bounds.take().and(value);
            match self.keep_reason(value)? {
                Value::Null => array.void(),
                Value::Bool(truth) => array.bool(truth),
                Value::Number(number) => match number.as_i64() {
                    Some(number) => array.long(number),
                    None => array.double(number.as_f64().unwrap_or_default()),
                },
                Value::String(text) => array.text(&text),
                Value::Array(list) => array.array(|inner| self.put_items(inner, list)),
                Value::Object(object) => array.table(|inner| self.put_all(inner, object)),
            }?;
        }
        self.bounds.close();
        Ok(())
    }

    /// Keeps the reason of an error.
    fn keep_reason<T>(&mut self, read: Result<T, String>) -> Result<T, Full> {
        read.map_err(|why| {
            self.why = Some(why);
            Full
        })
    }
}
