//! Rows of what there is, written while the client takes them.
//!
//! Why it exists: four thousand queues as JSON are a megabyte, and going through them takes time; so a
//! listing is a cursor that writes some rows whenever there is room for them, and forgets them.
//!
//! Always true: one call looks at no more than [`PLACES_PER_STEP`] records, or does as much work with fewer,
//! and writes no more than it was given room for, plus one row; every row is a line of its own.

use leveret_core::limits::LISTED_ROW_BYTES;
use regex_lite::{Regex, RegexBuilder};

use super::bridges::Shovels;
use super::columns::{Column, Kind, Pen};
use super::definition_columns::{Bindings, DefaultBindings, Users};
use super::definitions;
use super::http::{Request, Status, decode};
use super::json::{Json, Tables};
use super::request::{
    Answer, Call, OUTPUT_BYTES_MAX, bad_request, default_named, exists, not_found, problem,
};
use super::request_context::{ReadContext, RequestContext};
use super::samples::Ranges;

/// Records looked at in one step, or what is as much work.
const PLACES_PER_STEP: usize = 512;
/// Bytes of a cell that is sorted by.
const CELL_BYTES_MAX: usize = 4096;
/// Columns of one kind at most.
const COLUMNS_MAX: usize = 64;

/// Which columns a row has, in this order.
pub type Chosen = heapless::Vec<u8, COLUMNS_MAX>;

/// A part of a listing: things of one kind.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// What stands before its rows, and after them.
    pub around: (&'static str, &'static str),
    /// How many places there are, and what writes the row of one.
    pub places: fn(ReadContext<'_>) -> usize,
    /// Writes the row of a place.
    pub row: Row,
    /// How rows are put in an order, if they can be.
    pub looks: Option<Looks>,
}

/// Writes the row of a place, if there is one there that is wanted.
pub type Row = fn(&Listing, ReadContext<'_>, usize, Json<'_>, Tables) -> Written;

/// What became of a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Written {
    /// The row was written.
    Yes,
    /// There is nothing in this place.
    Nothing,
    /// The row did not fit, and nothing of it was written.
    Full,
}

/// How much a step may write.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Bytes of output from which on a step ends.
    pub enough: usize,
    /// Bytes of output that there may be at most.
    pub bytes_max: usize,
    /// The output holds nothing else, so waiting would make no room.
    pub is_alone: bool,
}

/// A listing under way.
#[derive(Debug)]
pub struct Listing {
    parts: &'static [Part],
    /// Which objects are listed.
    pub filter: Filter,
    /// The columns of each row.
    pub columns: Chosen,
    part: usize,
    place: usize,
    is_begun: bool,
    is_first: bool,
    ordered: Option<Box<Ordered>>,
    /// What stands before rows in an order; none before all of them have been looked at.
    before: Option<String>,
}

impl Listing {
    /// A listing of these parts.
    pub const fn new(parts: &'static [Part], filter: Filter, columns: Chosen) -> Self {
        let (is_begun, is_first) = (false, true);
        Self { parts, filter, columns, part: 0, place: 0, is_begun, is_first, ordered: None, before: None }
    }

    /// The same in an order.
    pub fn ordered(self, ordered: Option<Ordered>) -> Self {
        Self { ordered: ordered.map(Box::new), ..self }
    }

    /// Whether rows can be written: an order is known only when all of them have been looked at.
    pub const fn is_gathered(&self) -> bool {
        self.ordered.is_none() || self.before.is_some()
    }

    /// Looks at some more rows to put them in their order.
    ///
    /// # Errors
    /// There is no such page.
    pub fn gather(&mut self, context: ReadContext<'_>) -> Result<(), Refused> {
        let Some(ordered) = &mut self.ordered else { return Ok(()) };
        let mut work = 0;
        while work < PLACES_PER_STEP {
            let Some(part) = self.parts.get(self.part) else {
                let nothing = Looks { cell: |_, _, _, _, _| false, name: |_, _| None };
                let parts = self.parts;
                let looks = |part: usize| parts.get(part).and_then(|part| part.looks).unwrap_or(nothing);
                if ordered.put_in_order(&looks, &self.filter, context, PLACES_PER_STEP - work) {
                    self.before = Some(ordered.begin()?);
                }
                return Ok(());
            };
            if self.place >= (part.places)(context) {
                (self.part, self.place) = (self.part + 1, 0);
            } else if let Some(looks) = part.looks {
                work += ordered.take(looks, &self.filter, context, (self.part, self.place));
                self.place += 1;
            } else {
                self.place += 1;
                work += 1;
            }
        }
        Ok(())
    }

    /// Writes rows that are in an order.
    fn write_ordered(&mut self, context: ReadContext<'_>, out: &mut Vec<u8>, room: Room) -> bool {
        let start = out.len();
        if let Some(before) = self.before.as_deref().filter(|_| !self.is_begun) {
            out.extend_from_slice(before.as_bytes());
            self.is_begun = true;
        }
        let is_alone = room.is_alone && out.len() == start;
        for _ in 0..PLACES_PER_STEP {
            let Some(ordered) = &self.ordered else { return true };
            let Some((part, place)) = ordered.next() else {
                out.extend_from_slice(ordered.end().as_bytes());
                return true;
            };
            if out.len() >= room.enough {
                return false;
            }
            self.place = place;
            let part = self.parts[part];
            let mut written = self.write_row(part, context, out, room.bytes_max, Tables::Plain);
            if written == Written::Full {
                if out.len() > start || !is_alone {
                    return false;
                }
                written = self.write_row(part, context, out, room.bytes_max, Tables::LeftOut);
                debug_assert!(written != Written::Full, "a row without tables fits");
            }
            self.ordered.iter_mut().for_each(|ordered| ordered.pass());
        }
        false
    }

    /// A listing of everything there is in these parts, with rows that choose no columns.
    pub fn whole(parts: &'static [Part]) -> Self {
        Self::new(parts, Filter::default(), Chosen::new())
    }

    /// Writes some more behind what is in `out`, which has at most `bytes_max` then; rows stop at `enough`.
    /// Says whether that was all. When there is no room to come (`is_alone`), a row that is too large leaves
    /// its tables out.
    pub fn write(&mut self, context: ReadContext<'_>, out: &mut Vec<u8>, room: Room) -> bool {
        if self.ordered.is_some() {
            return self.write_ordered(context, out, room);
        }
        let start = out.len();
        for _ in 0..PLACES_PER_STEP {
            let Some(part) = self.parts.get(self.part).copied() else { return true };
            if out.len() >= room.enough {
                return false;
            }
            if !core::mem::replace(&mut self.is_begun, true) {
                out.extend_from_slice(part.around.0.as_bytes());
                self.is_first |= !part.around.0.is_empty();
            }
            if self.place >= (part.places)(context) {
                out.extend_from_slice(part.around.1.as_bytes());
                self.part += 1;
                (self.place, self.is_begun) = (0, false);
                continue;
            }
            let mut written = self.write_row(part, context, out, room.bytes_max, Tables::Plain);
            if written == Written::Full {
                if out.len() > start || !room.is_alone {
                    return false;
                }
                written = self.write_row(part, context, out, room.bytes_max, Tables::LeftOut);
                debug_assert!(written != Written::Full, "a row without tables fits");
            }
            self.place += 1;
        }
        false
    }

    fn write_row(
        &mut self,
        part: Part,
        context: ReadContext<'_>,
        out: &mut Vec<u8>,
        bytes_max: usize,
        tables: Tables,
    ) -> Written {
        let before = out.len();
        out.extend_from_slice(if self.is_first { b"\n" } else { b",\n" });
        let written = (part.row)(self, context, self.place, Json::new(out, bytes_max), tables);
        match written {
            Written::Yes => self.is_first = false,
            Written::Nothing | Written::Full => out.truncate(before),
        }
        written
    }
}

/// Writes a row of a kind with the columns that were chosen.
pub fn row<K: Kind>(
    listing: &Listing,
    context: ReadContext<'_>,
    place: usize,
    json: Json<'_>,
    tables: Tables,
) -> Written {
    let Some(view) = K::at(context, place) else { return Written::Nothing };
    if !is_wanted::<K>(&listing.filter, context, &view) {
        return Written::Nothing;
    }
    let columns = listing.columns.iter().filter_map(|column| K::COLUMNS.get(usize::from(*column)));
    let Filter { ranges, viewer, is_ctl, .. } = &listing.filter;
    let (ranges, viewer, is_ctl) = (*ranges, viewer.as_ref(), *is_ctl);
    write_cells::<K>(&view, columns, Pen { json, tables, context, ranges, viewer, is_ctl })
}

/// What rows of a kind are looked at with.
pub const fn looks<K: Kind>() -> Looks {
    Looks { cell: cell::<K>, name: |context, place| K::name(&K::at(context, place)?) }
}

fn cell<K: Kind>(
    filter: &Filter,
    context: ReadContext<'_>,
    place: usize,
    column: &str,
    out: &mut Vec<u8>,
) -> bool {
    let found = K::at(context, place).filter(|view| is_wanted::<K>(filter, context, view));
    let Some(view) = found else { return false };
    let mut columns = column.split(',');
    let Some(first) = columns.next() else { return true };
    write_cell::<K>(&view, context, first, out);
    let mut next = Vec::new();
    for column in columns {
        // One text for all of them: what sorts below every letter stands between two.
        if out.pop().is_none() {
            out.push(b'"');
        }
        next.clear();
        write_cell::<K>(&view, context, column, &mut next);
        out.push(1);
        out.extend_from_slice(next.strip_prefix(b"\"").unwrap_or(b"\""));
    }
    true
}

fn write_cell<K: Kind>(view: &K::View<'_>, context: ReadContext<'_>, column: &str, out: &mut Vec<u8>) {
    let (column, inner) =
        column.split_once('.').map_or((column, None), |(column, inner)| (column, Some(inner)));
    if let Some((_, write)) = K::COLUMNS.iter().find(|(name, _)| *name == column) {
        let (json, ranges) = (Json::new(out, CELL_BYTES_MAX), Ranges::default());
        let pen = &mut Pen { json, tables: Tables::LeftOut, context, ranges, viewer: None, is_ctl: false };
        write(view, pen);
        if let Some(inner) = inner {
            keep_inner(out, inner);
        }
    }
}

/// Keeps of an object a number in it, by the names that lead there: nothing, if there is none.
fn keep_inner(cell: &mut Vec<u8>, path: &str) {
    for name in path.split('.') {
        let name = format!("\"{name}\":");
        let Some(at) = cell.windows(name.len()).position(|part| part == name.as_bytes()) else {
            return cell.clear();
        };
        cell.drain(..at + name.len());
    }
    cell.truncate(cell.iter().position(|byte| b",}]".contains(byte)).unwrap_or(cell.len()));
}

/// Whether a row is one of those that are listed.
pub(super) fn is_wanted<K: Kind>(filter: &Filter, context: ReadContext<'_>, view: &K::View<'_>) -> bool {
    let Filter { vhost, user, viewer, ends, ranges: _, is_ctl: _ } = filter;
    if vhost.as_deref().is_some_and(|wanted| K::vhost(view) != Some(wanted))
        || user.as_deref().is_some_and(|wanted| K::user(view) != Some(wanted))
        || !K::is_between(view, ends)
    {
        return false;
    }
    viewer.as_ref().is_none_or(|viewer| K::is_seen(viewer, context, view))
}

/// Writes a row of a kind with all its columns; one of a virtual host alone does not say which, unless it is
/// a parameter.
pub fn whole_row<K: Kind>(
    listing: &Listing,
    context: ReadContext<'_>,
    place: usize,
    json: Json<'_>,
    tables: Tables,
) -> Written {
    let Some(view) = K::at(context, place) else { return Written::Nothing };
    let only = listing.filter.vhost.as_deref();
    if only.is_some_and(|only| K::vhost(&view) != Some(only)) {
        return Written::Nothing;
    }
    let is_parameter = K::COLUMNS.iter().any(|(name, _)| *name == "component");
    let columns = K::COLUMNS.iter().filter(|(name, _)| only.is_none() || is_parameter || *name != "vhost");
    let pen = Pen { json, tables, context, ranges: Ranges::default(), viewer: None, is_ctl: true };
    write_cells::<K>(&view, columns, pen)
}

fn write_cells<'c, K: Kind>(
    view: &K::View<'_>,
    columns: impl Iterator<Item = &'c Column<K>>,
    mut pen: Pen<'_, '_>,
) -> Written {
    pen.json.raw(b"{");
    let mut is_first = true;
    for (name, cell) in columns.filter(|(name, _)| !K::leaves_out(view, name)) {
        pen.json.name(name, &mut is_first);
        cell(view, &mut pen);
    }
    pen.json.raw(b"}");
    if pen.json.is_full() { Written::Full } else { Written::Yes }
}

/// The columns named in a list with commas; all of the management API's when none is.
///
/// # Errors
/// The first name that there is not.
pub fn choose<K: Kind>(names: Option<&str>) -> Result<Chosen, &str> {
    let all = K::COLUMNS.iter().map(|(name, _)| *name);
    let mut chosen = Chosen::new();
    match names {
        None => {
            let is_plain = |name: &str| !K::OF_CTL.contains(&name) && !K::OF_ONE.contains(&name);
            let plain = all.enumerate().filter(|(_, name)| is_plain(name));
            chosen.extend(plain.map(|(at, _)| at as u8).take(COLUMNS_MAX));
        }
        Some(names) => {
            // A cell that is not there is an empty one.
            for name in names.split(',').filter(|name| !K::WITHOUT_FIGURE.contains(name)) {
                let at = all.clone().position(|known| known == name).ok_or(name)?;
                chosen.push(at as u8).map_err(|_| name)?;
            }
        }
    }
    Ok(chosen)
}

/// The columns named in a list with commas, as the management API takes it: what there is not is passed over,
/// and of a column that holds others all are shown when one is named.
pub fn choose_known<K: Kind>(names: Option<&str>) -> Chosen {
    let Some(names) = names else { return choose::<K>(None).unwrap_or_default() };
    let mut chosen = Chosen::new();
    for name in names.split(',').filter_map(|name| name.split('.').next()) {
        let at = K::COLUMNS.iter().position(|(known, _)| *known == name).map(|at| at as u8);
        if let Some(at) = at.filter(|at| !chosen.contains(at)) {
            // There are no more of them than there is room for.
            let _ = chosen.push(at);
        }
    }
    chosen
}

// Lists of what there is, and the one thing of a list that somebody asks for by its name.
//
// Always true: rows are only those that who asks sees; what is written of a list is written as room comes.

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

// Which rows of a listing are wanted, and how much of their histories.

/// Which rows are wanted.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only those of this virtual host.
    pub vhost: Option<Box<str>>,
    /// Only those of this user.
    pub user: Option<Box<str>>,
    /// Only those that this user may see, as each kind of thing has it.
    pub viewer: Option<Viewer>,
    /// Only bindings between these.
    pub ends: BindingEnds,
    /// Which histories are wanted beside rates.
    pub ranges: Ranges,
    /// The command line asks.
    pub is_ctl: bool,
}

/// Who sees not everything.
#[derive(Clone, Debug)]
pub struct Viewer {
    /// The user.
    pub name: Box<str>,
    /// Whether it watches what others do, in all virtual hosts.
    pub is_monitor: bool,
}

/// Who sees a thing, besides administrators.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Audience {
    /// Whoever may ask for them at all.
    All,
    /// Whoever may enter its virtual host.
    Members,
    /// The same, and monitors.
    MembersAndMonitors,
    /// Its user, and monitors.
    OwnerAndMonitors,
}

/// Between what bindings are wanted.
#[derive(Clone, Debug, Default)]
pub struct BindingEnds {
    /// Only those from this exchange.
    pub source: Option<Box<str>>,
    /// Only those to the one of this name, an exchange or not.
    pub destination: Option<(Box<str>, bool)>,
}

// Lists that are sorted, filtered by name or taken page by page, as RabbitMQ 3.10 answers them.
//
// Why it exists: a row is written when there is room for it and forgotten; to put rows in an order each is
// looked at first, and no more of it is kept than sixteen bytes of what it is sorted by, and its place.
//
// Rows that are alike in those bytes are told apart by the next ones, a look at a time.
//
// Always true: a look says how much work it was, so that a step ends after as much as others may have to
// wait for; matching takes time in the length of a name and the size of the pattern, and no more; rows that
// compare alike stay in the order of their places.

/// What a compiled pattern may take, in bytes: the smallest that fits says what a match costs.
const PATTERN_SIZES: [usize; 3] = [1 << 10, 4 << 10, 16 << 10];
/// A letter matched against so many bytes of a pattern is as much work as a look at a row. (A pattern of
/// 16 KiB and a name of 200 letters take half a millisecond, which is as long as 3,000 rows.)
const PATTERN_BYTES_PER_LOOK: usize = 1 << 10;
/// The longest name or pattern to look for.
const NAME_LETTERS_MAX: usize = 1024;
/// Rows on a page.
const PAGE_ROWS_MAX: usize = 500;
const PAGE_ROWS_DEFAULT: usize = 100;

/// What of a row it is sorted by.
type Key = [u8; 16];
/// Letters of a text in a key.
const KEY_LETTERS: usize = 15;
const _: () = assert!(2 * size_of::<(Key, u8, u32)>() <= LISTED_ROW_BYTES);

/// Rows that are alike in all that was compared so far.
#[derive(Clone, Copy, Debug)]
struct Alike {
    from: usize,
    to: usize,
    /// Letters compared.
    letters: usize,
    /// Rows from `from` on whose next letters have been looked at.
    looked: usize,
}

/// What a kind's rows are looked at with.
#[derive(Clone, Copy, Debug)]
pub struct Looks {
    /// Writes the cell of a column, if the row in this place is wanted; of an unknown column nothing.
    pub cell: fn(&Filter, ReadContext<'_>, usize, &str, &mut Vec<u8>) -> bool,
    /// What the thing in this place is called.
    pub name: fn(ReadContext<'_>, usize) -> Option<String>,
}

/// Which rows are wanted by their names.
#[derive(Debug)]
enum Named {
    /// Those with this text in them, in small letters.
    Holding(String),
    /// And the bytes that it may take.
    Matching(Regex, usize),
}

/// The order of a list.
#[derive(Debug)]
pub struct Ordered {
    named: Option<Named>,
    sort: String,
    is_reverse: bool,
    page: Option<(usize, usize)>,
    rows: Vec<(Key, u8, u32)>,
    total: usize,
    filtered: usize,
    at: usize,
    /// Still to be told apart; `None` before anything was sorted.
    alike: Option<Vec<Alike>>,
}

/// A pattern, in the smallest of the sizes that it fits into; `None`: it is none, or fits into none.
fn matching(pattern: &str) -> Option<Named> {
    PATTERN_SIZES.into_iter().find_map(|bytes| {
        let built = RegexBuilder::new(pattern).case_insensitive(true).size_limit(bytes).build();
        built.ok().map(|regex| Named::Matching(regex, bytes))
    })
}

/// Why a page cannot be shown: status, error and reason.
pub type Refused = (Status, &'static str, String);

impl Ordered {
    /// What a request says of order and pages; `default`: the columns to sort by if it says nothing.
    ///
    /// # Errors
    /// It makes no sense.
    pub fn asked(
        request: &Request<'_>,
        has_pages: bool,
        default: Option<&str>,
    ) -> Result<Option<Self>, Refused> {
        let page = request.asked("page").filter(|_| has_pages);
        let sort = request.asked("sort").and_then(decode).filter(|sort| !sort.is_empty());
        if page.is_none() && sort.is_none() && default.is_none() {
            return Ok(None);
        }
        let invalid = || (Status::BadRequest, "bad_request", "Pagination parameters are invalid".to_string());
        let number = |key| match request.asked(key) {
            None | Some("") => Ok(None),
            Some(text) => text.parse::<usize>().map(Some).map_err(|_| invalid()),
        };
        let size = number("page_size")?.unwrap_or(PAGE_ROWS_DEFAULT);
        let page = match page {
            None => None,
            Some(_) => Some((number("page")?.ok_or_else(invalid)?, size)),
        };
        if let Some((number, size)) =
            page.filter(|page| page.0 == 0 || !(1..=PAGE_ROWS_MAX).contains(&page.1))
        {
            let why = format!("Invalid pagination parameters: page number {number}, page size {size}");
            return Err((Status::BadRequest, "invalid_pagination_parameters", why));
        }
        let name = request.asked("name").map(|name| name.replace('+', " "));
        let name = name.as_deref().and_then(decode).filter(|name| !name.is_empty() && page.is_some());
        let named = match name {
            Some(name) if name.len() > NAME_LETTERS_MAX => return Err(invalid()),
            Some(pattern) if request.says("use_regex") => Some(matching(&pattern).ok_or_else(invalid)?),
            Some(name) => Some(Named::Holding(name.to_lowercase())),
            None => None,
        };
        let sort = sort.map_or_else(|| default.unwrap_or("name").to_string(), |sort| sort.into_owned());
        let is_reverse = request.says("sort_reverse");
        Ok(Some(Self {
            named,
            sort,
            is_reverse,
            page,
            rows: Vec::new(),
            total: 0,
            filtered: 0,
            at: 0,
            alike: None,
        }))
    }

    /// Looks at the row in a place; how much work that was, in rows that are just looked at.
    pub fn take(
        &mut self,
        looks: Looks,
        filter: &Filter,
        context: ReadContext<'_>,
        (part, place): (usize, usize),
    ) -> usize {
        let mut cell = Vec::new();
        if !(looks.cell)(filter, context, place, &self.sort, &mut cell) {
            return 1;
        }
        self.total += 1;
        let (is_named, work) = match &self.named {
            None => (true, 0),
            Some(named) => (looks.name)(context, place).map_or((false, 0), |name| match named {
                Named::Holding(text) => (name.to_lowercase().contains(text), 0),
                Named::Matching(regex, bytes) => {
                    (regex.is_match(&name), name.len() * bytes / PATTERN_BYTES_PER_LOOK)
                }
            }),
        };
        if is_named {
            self.rows.push((key(&cell), part as u8, place as u32));
        }
        1 + work
    }

    /// Everything has been looked at: puts the rows in their order, as far as so many further looks go.
    /// `true`: they are.
    pub fn put_in_order(
        &mut self,
        looks: &dyn Fn(usize) -> Looks,
        filter: &Filter,
        context: ReadContext<'_>,
        mut left: usize,
    ) -> bool {
        if self.alike.is_none() {
            self.alike = Some(Vec::new());
            self.sort(0, self.rows.len(), KEY_LETTERS);
        }
        while let Some(mut alike) = self.alike.as_mut().and_then(Vec::pop) {
            while alike.from + alike.looked < alike.to {
                if left == 0 {
                    self.alike.get_or_insert_default().push(alike);
                    return false;
                }
                left -= 1;
                let (key, part, place) = &mut self.rows[alike.from + alike.looked];
                let mut cell = Vec::new();
                (looks((*part).into()).cell)(filter, context, *place as usize, &self.sort, &mut cell);
                *key = rest(&cell, alike.letters);
                alike.looked += 1;
            }
            self.sort(alike.from, alike.to, alike.letters + KEY_LETTERS);
        }
        true
    }

    /// Sorts some rows by their keys, and notes which are alike in those so that so many letters are not
    /// enough.
    fn sort(&mut self, from: usize, to: usize, letters: usize) {
        let is_reverse = self.is_reverse;
        let rows = &mut self.rows[from..to];
        // Without memory of its own; rows with the same key stay in the order of their places.
        rows.sort_unstable_by(|a, b| {
            let keys = if is_reverse { b.0.cmp(&a.0) } else { a.0.cmp(&b.0) };
            keys.then((a.1, a.2).cmp(&(b.1, b.2)))
        });
        let mut at = from;
        for same in rows.chunk_by(|a, b| a.0 == b.0) {
            if same.len() > 1 && same[0].0[KEY_LETTERS] != 0 {
                let alike = Alike { from: at, to: at + same.len(), letters, looked: 0 };
                self.alike.get_or_insert_default().push(alike);
            }
            at += same.len();
        }
    }

    /// They are in their order: what stands before the rows.
    ///
    /// # Errors
    /// There is no such page.
    pub fn begin(&mut self) -> Result<String, Refused> {
        self.filtered = self.rows.len();
        let Some((page, size)) = self.page else { return Ok("[".to_string()) };
        let start = (page - 1).saturating_mul(size);
        if start > self.filtered {
            let why = format!("Page out of range, page: {page} page size: {size}, len: {}", self.filtered);
            return Err((Status::BadRequest, "page_out_of_range", why));
        }
        self.rows.truncate(start.saturating_add(size));
        self.rows.drain(..start);
        self.rows.shrink_to_fit();
        Ok(format!(
            "{{\"filtered_count\":{},\"item_count\":{},\"page\":{page},\"page_count\":{},\
             \"page_size\":{size},\"total_count\":{},\"items\":[",
            self.filtered,
            self.rows.len(),
            self.filtered.div_ceil(size),
            self.total,
        ))
    }

    /// The part and the place of the row that comes next.
    pub fn next(&self) -> Option<(usize, usize)> {
        self.rows.get(self.at).map(|row| (row.1.into(), row.2 as usize))
    }

    /// It is written, or gone.
    pub const fn pass(&mut self) {
        self.at += 1;
    }

    /// What stands behind the rows.
    pub const fn end(&self) -> &'static str {
        if self.page.is_some() { "\n]}\n" } else { "\n]\n" }
    }
}

/// What a text is compared by behind so many of its letters.
fn rest(cell: &[u8], letters: usize) -> Key {
    let mut key = [0; 16];
    let text = cell.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\"")).unwrap_or_default();
    let text = text.get(letters..).unwrap_or_default();
    key[0] = 3;
    let len = text.len().min(KEY_LETTERS);
    key[1..=len].copy_from_slice(&text[..len]);
    key
}

/// What a cell is compared by: nothing, a number, true or false, a text, in Erlang's order of those.
fn key(cell: &[u8]) -> Key {
    let mut key = [0; 16];
    match cell.first() {
        None => {}
        Some(b'"') => {
            key = rest(cell, 0);
        }
        Some(b'0'..=b'9' | b'-') => {
            let number = core::str::from_utf8(cell).ok().and_then(|text| text.parse::<f64>().ok());
            let bits = number.unwrap_or_default().to_bits();
            // The order of floating point numbers is that of their bits, once the sign is turned round.
            let ordered = if bits >> 63 == 1 { !bits } else { bits | 1 << 63 };
            key[0] = 1;
            key[1..9].copy_from_slice(&ordered.to_be_bytes());
        }
        Some(_) => {
            key[0] = 2;
            key[1] = u8::from(cell == b"true");
        }
    }
    key
}

#[cfg(test)]
mod ordering_tests {
    use super::*;

    #[test]
    fn cells_compare_as_what_they_are() {
        let rising =
            ["", "-3", "-0.5", "0", "2", "10", "10.5", "1e9", "false", "true", "\"\"", "\"a\"", "\"ab\""];
        for pair in rising.windows(2) {
            assert!(key(pair[0].as_bytes()) < key(pair[1].as_bytes()), "{pair:?}");
        }
    }
}
