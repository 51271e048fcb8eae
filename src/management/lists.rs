//! Lists of what there is, and the one thing of a list that somebody asks for by its name.
//!
//! Always true: rows are only those that who asks sees; what is written of a list is written as room comes.

use super::access_columns::Users;
use super::answer::{Answer, OUTPUT_BYTES_MAX, bad_request, not_found, problem};
use super::binding_columns::{Bindings, DefaultBindings};
use super::bridges::Shovels;
use super::call::{Call, default_named, exists};
use super::columns::Kind;
use super::definitions;
use super::filter::{BindingEnds, Filter};
use super::http::{Status, decode};
use super::json::{Json, Tables};
use super::listing::{Chosen, Listing, Part, Written, choose, choose_known, looks, row};
use super::ordering::Ordered;
use super::request_context::{ReadContext, RequestContext};

const WHOLE: (&str, &str) = ("[", "\n]\n");

const fn part<K: Kind>(around: (&'static str, &'static str)) -> Part {
    Part { around, places: K::places, row: row::<K>, looks: Some(looks::<K>()) }
}

/// The parts of a list of one kind.
struct Only<K>(K);

impl<K: Kind> Only<K> {
    const PARTS: &'static [Part] = &[part::<K>(WHOLE)];
}

const BINDINGS: &[Part] = &[part::<DefaultBindings>(("[", "")), part::<Bindings>(("", "\n]\n"))];
const OUTSIDERS: &[Part] = &[Part { around: WHOLE, places: Users::places, row: outsider, looks: None }];

/// All rows of a kind that are meant and that who asks sees, in the order and on the page that are asked for.
pub(super) fn list<K: Kind>(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    list_of::<K>(call, context, Only::<K>::PARTS, call.filter())
}

fn list_of<K: Kind>(
    call: &Call<'_>,
    context: &RequestContext<'_>,
    parts: &'static [Part],
    filter: Filter,
) -> Answer {
    if let Some(vhost) = call.has("vhost").filter(|vhost| !exists(context, vhost)) {
        return call.no_such_vhost(vhost);
    }
    let asked = call.request.asked("columns");
    let columns = asked.and_then(decode);
    if columns.is_none()
        && call.user.is_none()
        && let Some(asked) = asked
    {
        return bad_request(&format!("Info key(s) {asked} are not supported"));
    }
    let columns = columns.as_deref();
    let chosen = match call.user {
        Some(_) => choose_known::<K>(columns),
        // The command line is told of what there is not, and of whom.
        None => {
            let is_there = |user: &str| context.broker.access().users().any(|view| view.name == user);
            if let Some(user) = call.has("user").filter(|user| !is_there(user)) {
                let why = format!("User \"{user}\" does not exist");
                return Answer::Now(Status::NotFound, problem("no_such_user", &why));
            }
            match choose::<K>(columns) {
                Ok(chosen) => chosen,
                Err(name) => return bad_request(&format!("Info key(s) {name} are not supported")),
            }
        }
    };
    // rabbitmqctl shows things in no order.
    match Ordered::asked(call.request, K::HAS_PAGES, call.user.map(|_| K::ORDER)) {
        Ok(ordered) => Answer::List(Box::new(Listing::new(parts, filter, chosen).ordered(ordered))),
        Err((status, error, why)) => Answer::Now(status, problem(error, &why)),
    }
}

/// The one of a kind that the last word of the path names.
pub(super) fn one<K: Kind>(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    one_of::<K>(call, context, call.filter())
}

fn one_of<K: Kind>(call: &Call<'_>, context: &RequestContext<'_>, filter: Filter) -> Answer {
    let Ok(mut columns) = choose::<K>(None) else { return not_found("Not Found") };
    let name = match call.names.last() {
        Some(("exchange", name)) => default_named(name),
        last => last.map_or("", |(_, name)| name),
    };
    let of_one = K::COLUMNS.iter().enumerate().filter(|(_, (name, _))| K::OF_ONE.contains(name));
    columns.extend(of_one.map(|(at, _)| at as u8));
    let (context, listing) = (context.context(), Listing::new(&[], filter, columns));
    for place in 0..K::places(context) {
        if K::at(context, place).and_then(|view| K::name(&view)).is_none_or(|own| own != name) {
            continue;
        }
        for tables in [Tables::Plain, Tables::LeftOut] {
            let mut out = Vec::new();
            let json = Json::new(&mut out, OUTPUT_BYTES_MAX / 2);
            match row::<K>(&listing, context, place, json, tables) {
                Written::Yes => return Answer::Now(Status::Ok, out),
                // One of another virtual host.
                Written::Nothing => break,
                Written::Full => {}
            }
        }
    }
    not_found("Not Found")
}

/// Bindings in a virtual host, perhaps from an exchange, or to a queue or an exchange.
pub(super) fn bindings(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    list_of::<Bindings>(call, context, BINDINGS, between(call))
}

/// The binding between two that has this key.
pub(super) fn binding(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    match one_of::<DefaultBindings>(call, context, between(call)) {
        Answer::Now(Status::Ok, body) => Answer::Now(Status::Ok, body),
        _ => one_of::<Bindings>(call, context, between(call)),
    }
}

fn between(call: &Call<'_>) -> Filter {
    let to = |word| call.has(word).map(|name| (default_named(name).into(), word == "exchange"));
    let source = call.has("source").map(|source| default_named(source).into());
    let ends = BindingEnds { source, destination: to("queue").or_else(|| to("exchange")) };
    Filter { ends, ..call.filter() }
}

/// Shovels in the virtual hosts that who asks may enter.
pub(super) fn shovels(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    match has_no_shovels(call, context) {
        true => not_found("Not Found"),
        false => list_of::<Shovels>(call, context, Only::<Shovels>::PARTS, call.enters()),
    }
}

/// One of them.
pub(super) fn shovel(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    match has_no_shovels(call, context) {
        true => not_found("Not Found"),
        false => one_of::<Shovels>(call, context, call.enters()),
    }
}

/// Whether the management API is as that of a RabbitMQ without the plug-in of shovels.
fn has_no_shovels(call: &Call<'_>, context: &RequestContext<'_>) -> bool {
    call.user.is_some() && context.bridges.places_max() == 0
}

/// Everything that is defined.
pub(super) fn export() -> Answer {
    Answer::List(Box::new(Listing::whole(definitions::EXPORT)))
}

/// All definitions of one virtual host.
pub(super) fn export_of(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    if !exists(context, call.name("vhost")) {
        return bad_request("vhost_not_found");
    }
    Answer::List(Box::new(Listing::new(definitions::VHOST_EXPORT, call.filter(), Chosen::new())))
}

/// Users who may enter no virtual host.
pub(super) fn users_without_permissions(_: &Call<'_>, _: &RequestContext<'_>) -> Answer {
    let columns = choose_known::<Users>(None);
    Answer::List(Box::new(Listing::new(OUTSIDERS, Filter::default(), columns)))
}

fn outsider(
    listing: &Listing,
    context: ReadContext<'_>,
    place: usize,
    json: Json<'_>,
    tables: Tables,
) -> Written {
    let Some(view) = Users::at(context, place) else { return Written::Nothing };
    match context.broker.access().permissions().any(|permission| permission.user == view.name) {
        true => Written::Nothing,
        false => row::<Users>(listing, context, place, json, tables),
    }
}
