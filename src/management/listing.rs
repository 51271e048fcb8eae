//! Lists of objects, written while the client reads them.
//!
//! Four thousand queues are a megabyte of JSON, and going through them takes time. A [`Listing`] is a cursor: it
//! writes some rows whenever there is output space and keeps none of them.
//!
//! A list that is sorted, filtered by name or divided into pages is answered as RabbitMQ 3.10 does ([`Ordered`]).
//! Sorting first examines every row. It keeps 16 bytes of the sort key and the row's position. Rows with equal keys
//! are compared by the next bytes of the sort key, one examined row at a time.
//!
//! # Invariants
//! - One call examines at most `POSITIONS_PER_STEP` positions, or does as much work with fewer.
//! - One call writes at most the bytes it was allowed to, plus one row. Every row is one line.
//! - Rows are only those that the user may see.
//! - Examining a row returns how much work it was, so that the time of a step is bounded.
//! - Matching a name takes time proportional to the length of the name and the size of the pattern.
//! - Rows with equal keys stay in the order of their positions.

use leveret_core::mem::{Class, HeapBytes};
use regex_lite::{Regex, RegexBuilder};

use leveret_broker::BindingView;

use super::bridges::Shovels;
use super::columns::{CellWriter, Column, ListedKind};
use super::definition_columns::{
    Bindings, DefaultBindings, Users, is_decoded_properties_key, properties_key,
};
use super::definitions;
use super::http::{Request, Status, decode};
use super::json::{Json, Tables};
use super::request::{
    Answer, Call, OUTPUT_BYTES_MAX, bad_request, default_named, exists, not_found, problem,
};
use super::request::{ReadContext, RequestContext};
use super::samples::Ranges;

/// The work of one step, in examined positions.
const POSITIONS_PER_STEP: usize = 512;
/// The longest cell that can be a sort key, in bytes.
const CELL_BYTES_MAX: usize = 4096;
/// The most columns of one kind.
const COLUMNS_MAX: usize = 64;

/// The columns of a row, in order.
pub type SelectedColumns = heapless::Vec<u8, COLUMNS_MAX>;

/// A part of a listing: objects of one kind.
#[derive(Clone, Copy, Debug)]
pub struct ListingPart {
    /// The texts before and after its rows.
    pub around: (&'static str, &'static str),
    /// Returns the number of positions.
    pub places: fn(ReadContext<'_>) -> usize,
    /// Writes the row of a position.
    pub row: RowWriter,
    /// How rows are examined for sorting, if they can be sorted.
    pub probe: Option<RowProbe>,
}

/// Writes the row of a position if the object exists and is wanted.
pub type RowWriter = fn(&Listing, ReadContext<'_>, usize, Json<'_>, Tables) -> Written;

/// The result of writing a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Written {
    /// The row was written.
    Yes,
    /// There is no object at this position, or it is not wanted.
    Nothing,
    /// The row did not fit, and nothing of it was written.
    Full,
}

/// How much a step may write.
#[derive(Clone, Copy, Debug)]
pub struct OutputLimits {
    /// The step ends when the output has this many bytes.
    pub enough: usize,
    /// The most bytes that the output may have.
    pub bytes_max: usize,
    /// Whether the output contains nothing else, so that waiting would free no space.
    pub is_output_empty: bool,
}

/// A listing in progress.
#[derive(Debug)]
pub struct Listing {
    parts: &'static [ListingPart],
    /// Which objects are listed.
    pub filter: Filter,
    /// The columns of each row.
    pub columns: SelectedColumns,
    part: usize,
    place: usize,
    is_begun: bool,
    is_first: bool,
    ordered: Option<Box<Ordered>>,
    /// The text before sorted rows. `None` until all rows have been examined.
    before: Option<String>,
}

impl Listing {
    /// Creates a listing of these parts.
    pub const fn new(parts: &'static [ListingPart], filter: Filter, columns: SelectedColumns) -> Self {
        let (is_begun, is_first) = (false, true);
        Self { parts, filter, columns, part: 0, place: 0, is_begun, is_first, ordered: None, before: None }
    }

    /// Sets the order of the listing.
    pub fn ordered(self, ordered: Option<Ordered>) -> Self {
        Self { ordered: ordered.map(Box::new), ..self }
    }

    /// Returns whether rows can be written: the order is known once all rows have been examined.
    pub const fn is_gathered(&self) -> bool {
        self.ordered.is_none() || self.before.is_some()
    }

    /// Examines some more rows for sorting.
    ///
    /// # Errors
    /// The page does not exist, or there is too little memory.
    pub fn gather(&mut self, context: ReadContext<'_>) -> Result<(), PageError> {
        let Some(ordered) = &mut self.ordered else { return Ok(()) };
        let mut work = 0;
        while work < POSITIONS_PER_STEP {
            let Some(part) = self.parts.get(self.part) else {
                let nothing = RowProbe { cell: |_, _, _, _, _| false, name: |_, _| None };
                let parts = self.parts;
                let probe = |part: usize| parts.get(part).and_then(|part| part.probe).unwrap_or(nothing);
                if ordered.put_in_order(&probe, &self.filter, context, POSITIONS_PER_STEP - work) {
                    self.before = Some(ordered.begin()?);
                }
                return Ok(());
            };
            if self.place >= (part.places)(context) {
                (self.part, self.place) = (self.part + 1, 0);
            } else if let Some(probe) = part.probe {
                work += ordered.take(probe, &self.filter, context, self.part, self.place)?;
                self.place += 1;
            } else {
                self.place += 1;
                work += 1;
            }
        }
        Ok(())
    }

    /// Writes sorted rows.
    fn write_ordered(&mut self, context: ReadContext<'_>, out: &mut Vec<u8>, limits: OutputLimits) -> bool {
        let start = out.len();
        if let Some(before) = self.before.as_deref().filter(|_| !self.is_begun) {
            out.extend_from_slice(before.as_bytes());
            self.is_begun = true;
        }
        let is_output_empty = limits.is_output_empty && out.len() == start;
        for _ in 0..POSITIONS_PER_STEP {
            let Some(ordered) = &self.ordered else { return true };
            let Some((part, place)) = ordered.next() else {
                out.extend_from_slice(ordered.end().as_bytes());
                return true;
            };
            if out.len() >= limits.enough {
                return false;
            }
            self.place = place;
            let part = self.parts[part];
            let mut written = self.write_row(part, context, out, limits.bytes_max, Tables::Plain);
            if written == Written::Full {
                if out.len() > start || !is_output_empty {
                    return false;
                }
                written = self.write_row(part, context, out, limits.bytes_max, Tables::LeftOut);
                debug_assert!(written != Written::Full, "a row without tables fits");
            }
            self.ordered.iter_mut().for_each(|ordered| ordered.pass());
        }
        false
    }

    /// Creates a listing of all objects of these parts. No columns are chosen: each part writes its
    /// own.
    pub fn whole(parts: &'static [ListingPart]) -> Self {
        Self::new(parts, Filter::default(), SelectedColumns::new())
    }

    /// Appends rows to `out`, which then has at most `bytes_max` bytes. Stops at `enough` bytes.
    ///
    /// Returns whether the listing is complete. If no more space can become free (`is_output_empty`), a row that is too
    /// large omits its tables.
    pub fn write(&mut self, context: ReadContext<'_>, out: &mut Vec<u8>, limits: OutputLimits) -> bool {
        if self.ordered.is_some() {
            return self.write_ordered(context, out, limits);
        }
        let start = out.len();
        for _ in 0..POSITIONS_PER_STEP {
            let Some(part) = self.parts.get(self.part).copied() else { return true };
            if out.len() >= limits.enough {
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
            let mut written = self.write_row(part, context, out, limits.bytes_max, Tables::Plain);
            if written == Written::Full {
                if out.len() > start || !limits.is_output_empty {
                    return false;
                }
                written = self.write_row(part, context, out, limits.bytes_max, Tables::LeftOut);
                debug_assert!(written != Written::Full, "a row without tables fits");
            }
            self.place += 1;
        }
        false
    }

    fn write_row(
        &mut self,
        part: ListingPart,
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

/// Writes a row of a kind with the chosen columns.
pub fn row<K: ListedKind>(
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
    let columns = listing.columns.iter().filter_map(|column| K::COLUMNS.get(usize::from(*column)).copied());
    let Filter { ranges, viewer, is_ctl, .. } = &listing.filter;
    let (ranges, viewer, is_ctl) = (*ranges, viewer.as_ref(), *is_ctl);
    write_cells::<K>(&view, columns, CellWriter { json, tables, context, ranges, viewer, is_ctl })
}

/// Returns the functions that examine rows of a kind.
pub const fn probe<K: ListedKind>() -> RowProbe {
    RowProbe { cell: cell::<K>, name: |context, place| K::name(&K::at(context, place)?) }
}

/// Writes the sort key of a row: the cell of a column, or of several (`a,b`), joined into one JSON text. Returns
/// `false` if there is no row.
fn cell<K: ListedKind>(
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
    let viewer = filter.viewer.as_ref();
    write_cell::<K>(&view, context, viewer, first, out);
    let mut next = Vec::new();
    for column in columns {
        // The closing quote of the one and the opening quote of the other are replaced by a byte that sorts below every
        // character.
        if out.pop().is_none() {
            out.push(b'"');
        }
        next.clear();
        write_cell::<K>(&view, context, viewer, column, &mut next);
        out.push(1);
        out.extend_from_slice(next.strip_prefix(b"\"").unwrap_or(b"\""));
    }
    true
}

fn write_cell<K: ListedKind>(
    view: &K::View<'_>,
    context: ReadContext<'_>,
    viewer: Option<&Viewer>,
    column: &str,
    out: &mut Vec<u8>,
) {
    let (column, inner) =
        column.split_once('.').map_or((column, None), |(column, inner)| (column, Some(inner)));
    if let Some((_, write)) = K::COLUMNS.iter().find(|(name, _)| *name == column) {
        let (json, ranges) = (Json::new(out, CELL_BYTES_MAX), Ranges::default());
        let writer =
            &mut CellWriter { json, tables: Tables::LeftOut, context, ranges, viewer, is_ctl: false };
        write(view, writer);
        if let Some(inner) = inner {
            keep_inner(out, inner);
        }
    }
}

/// Replaces a cell that is an object by the number at `path` inside it, or by nothing if that does not exist.
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

/// Returns whether a row is listed.
pub(super) fn is_wanted<K: ListedKind>(
    filter: &Filter,
    context: ReadContext<'_>,
    view: &K::View<'_>,
) -> bool {
    let Filter { vhost, user, viewer, binding_ends, ranges: _, is_ctl: _ } = filter;
    if vhost.as_deref().is_some_and(|wanted| K::vhost(view) != Some(wanted))
        || user.as_deref().is_some_and(|wanted| K::user(view) != Some(wanted))
        || !K::is_binding_of(view, binding_ends)
    {
        return false;
    }
    viewer.as_ref().is_none_or(|viewer| K::is_seen(viewer, context, view))
}

/// Writes a row of these columns.
pub fn write_cells<K: ListedKind>(
    view: &K::View<'_>,
    columns: impl Iterator<Item = Column<K>>,
    mut writer: CellWriter<'_, '_>,
) -> Written {
    writer.json.raw(b"{");
    let mut is_first = true;
    for (name, cell) in columns.filter(|(name, _)| !K::leaves_out(view, name)) {
        writer.json.name(name, &mut is_first);
        cell(view, &mut writer);
    }
    writer.json.raw(b"}");
    if writer.json.is_full() { Written::Full } else { Written::Yes }
}

/// Returns the columns named in a comma-separated list; without a list, all columns of the management API.
///
/// # Errors
/// The first unknown name.
pub fn choose<K: ListedKind>(names: Option<&str>) -> Result<SelectedColumns, &str> {
    let all = K::COLUMNS.iter().map(|(name, _)| *name);
    let mut selected = SelectedColumns::new();
    match names {
        None => {
            let is_plain = |name: &str| !K::ON_REQUEST.contains(&name) && !K::OF_ONE.contains(&name);
            let plain = all.enumerate().filter(|(_, name)| is_plain(name));
            selected.extend(plain.map(|(at, _)| at as u8).take(COLUMNS_MAX));
        }
        Some(names) => {
            // A column without a figure is an empty cell.
            for name in names.split(',').filter(|name| !K::WITHOUT_FIGURE.contains(name)) {
                let at = all.clone().position(|known| known == name).ok_or(name)?;
                selected.push(at as u8).map_err(|_| name)?;
            }
        }
    }
    Ok(selected)
}

/// Returns the columns named in a comma-separated list, as the management API does. Unknown names are ignored. A
/// column that is an object is shown whole if one of its members is named.
pub fn choose_known<K: ListedKind>(names: Option<&str>) -> SelectedColumns {
    let Some(names) = names else { return choose::<K>(None).unwrap_or_default() };
    let mut selected = SelectedColumns::new();
    for name in names.split(',').filter_map(|name| name.split('.').next()) {
        let at = K::COLUMNS.iter().position(|(known, _)| *known == name).map(|at| at as u8);
        if let Some(at) = at.filter(|at| !selected.contains(at)) {
            // The list has space for all columns of a kind.
            let _ = selected.push(at);
        }
    }
    selected
}

const WHOLE: (&str, &str) = ("[", "\n]\n");

const fn part<K: ListedKind>(around: (&'static str, &'static str)) -> ListingPart {
    ListingPart { around, places: K::places, row: row::<K>, probe: Some(probe::<K>()) }
}

/// The parts of a list of one kind.
struct SingleKind<K>(K);

impl<K: ListedKind> SingleKind<K> {
    const PARTS: &'static [ListingPart] = &[part::<K>(WHOLE)];
}

const BINDINGS: &[ListingPart] = &[part::<DefaultBindings>(("[", "")), part::<Bindings>(("", "\n]\n"))];
const USERS_WITHOUT_PERMISSIONS: &[ListingPart] =
    &[ListingPart { around: WHOLE, places: Users::places, row: user_without_permissions, probe: None }];

/// Lists the rows of a kind that the request selects and the user may see, in the requested order and page.
pub(super) fn list<K: ListedKind>(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    list_of::<K>(call, context, SingleKind::<K>::PARTS, call.filter())
}

fn list_of<K: ListedKind>(
    call: &Call<'_>,
    context: &RequestContext<'_>,
    parts: &'static [ListingPart],
    filter: Filter,
) -> Answer {
    if let Some(vhost) = call.optional_name("vhost").filter(|vhost| !exists(context, vhost)) {
        return call.no_such_vhost(vhost);
    }
    let asked = call.request.query_value("columns");
    let columns = asked.and_then(decode);
    if columns.is_none()
        && call.user.is_none()
        && let Some(asked) = asked
    {
        return bad_request(&format!("Info key(s) {asked} are not supported"));
    }
    let columns = columns.as_deref();
    let is_there = |user: &str| context.broker.access().users().any(|view| view.name == user);
    let selected = match call.user {
        Some(_)
            if K::IS_OF_EXISTING_USER && call.optional_name("user").is_some_and(|user| !is_there(user)) =>
        {
            return not_found("Not Found");
        }
        Some(_) => choose_known::<K>(columns),
        // The command line gets an error that names the missing virtual host or user.
        None => {
            if let Some(user) = call.optional_name("user").filter(|user| !is_there(user)) {
                let why = format!("User \"{user}\" does not exist");
                return Answer::Now(Status::NotFound, problem("no_such_user", &why));
            }
            match choose::<K>(columns) {
                Ok(selected) => selected,
                Err(name) => return bad_request(&format!("Info key(s) {name} are not supported")),
            }
        }
    };
    // rabbitmqctl does not sort.
    match Ordered::from_query(call.request, K::HAS_PAGES, call.user.map(|_| K::ORDER)) {
        Ok(ordered) => Answer::List(Box::new(Listing::new(parts, filter, selected).ordered(ordered))),
        Err((status, error, why)) => Answer::Now(status, problem(error, &why)),
    }
}

/// Shows the object that the last segment of the path names.
pub(super) fn one<K: ListedKind>(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    one_of::<K>(call, context, call.filter())
}

fn one_of<K: ListedKind>(call: &Call<'_>, context: &RequestContext<'_>, filter: Filter) -> Answer {
    let asked = call.request.query_value("columns").filter(|_| call.user.is_some()).and_then(decode);
    let mut columns = choose_known::<K>(asked.as_deref());
    let name = match call.names.last() {
        Some(("exchange", name)) => default_named(name),
        last => last.map_or("", |(_, name)| name),
    };
    let is_of_one = |name: &str| asked.is_none() && K::OF_ONE.contains(&name);
    let of_one = K::COLUMNS.iter().enumerate().filter(|(_, (name, _))| is_of_one(name));
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
                // The object belongs to another virtual host.
                Written::Nothing => break,
                Written::Full => {}
            }
        }
    }
    not_found("Not Found")
}

/// Lists the bindings of a virtual host, optionally only those from an exchange, or to a queue or an exchange.
pub(super) fn bindings(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    list_of::<Bindings>(call, context, BINDINGS, binding_filter(call))
}

/// Shows the binding between two objects that has this key.
pub(super) fn binding(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    if let Answer::Now(Status::Ok, body) = one_of::<DefaultBindings>(call, context, binding_filter(call)) {
        return Answer::Now(Status::Ok, body);
    }
    match one_of::<Bindings>(call, context, binding_filter(call)) {
        Answer::Now(Status::Ok, body) => Answer::Now(Status::Ok, body),
        missing => decoded_binding(call, context).unwrap_or(missing),
    }
}

/// Shows the binding whose properties key the path has without percent-encoding.
fn decoded_binding(call: &Call<'_>, context: &RequestContext<'_>) -> Option<Answer> {
    let (filter, seen) = (binding_filter(call), context.context());
    let is_meant = |view: &BindingView<'_>| {
        is_wanted::<Bindings>(&filter, seen, view) && is_decoded_properties_key(view, call.name("key"))
    };
    let key = Bindings::objects(seen).find(is_meant).map(|view| properties_key(&view))?;
    let names = call.names.iter().map(|(word, name)| (*word, if *word == "key" { &*key } else { name }));
    let call = Call { request: call.request, user: call.user, names: names.collect() };
    Some(one_of::<Bindings>(&call, context, binding_filter(&call)))
}

fn binding_filter(call: &Call<'_>) -> Filter {
    let to = |word| call.optional_name(word).map(|name| (default_named(name).into(), word == "exchange"));
    let source = call.optional_name("source").map(|source| default_named(source).into());
    let binding_ends = BindingEnds { source, destination: to("queue").or_else(|| to("exchange")) };
    Filter { binding_ends, ..call.filter() }
}

/// Lists the shovels in the virtual hosts in which the user has permissions.
pub(super) fn shovels(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    match has_no_shovels(call, context) {
        true => not_found("Not Found"),
        false => list_of::<Shovels>(call, context, SingleKind::<Shovels>::PARTS, call.accessible()),
    }
}

/// Shows one shovel.
pub(super) fn shovel(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    match has_no_shovels(call, context) {
        true => not_found("Not Found"),
        false => one_of::<Shovels>(call, context, call.accessible()),
    }
}

/// Returns whether the management API behaves like a RabbitMQ without the shovel plugin.
fn has_no_shovels(call: &Call<'_>, context: &RequestContext<'_>) -> bool {
    call.user.is_some() && context.bridges.places_max() == 0
}

/// Exports all definitions.
pub(super) fn export() -> Answer {
    Answer::List(Box::new(Listing::whole(definitions::EXPORT)))
}

/// Exports the definitions of one virtual host.
pub(super) fn export_of(call: &Call<'_>, context: &RequestContext<'_>) -> Answer {
    if !exists(context, call.name("vhost")) {
        return bad_request("vhost_not_found");
    }
    Answer::List(Box::new(Listing::new(definitions::VHOST_EXPORT, call.filter(), SelectedColumns::new())))
}

/// Lists the users without permissions in any virtual host.
pub(super) fn users_without_permissions(_: &Call<'_>, _: &RequestContext<'_>) -> Answer {
    let columns = choose_known::<Users>(None);
    Answer::List(Box::new(Listing::new(USERS_WITHOUT_PERMISSIONS, Filter::default(), columns)))
}

fn user_without_permissions(
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

/// Which rows are wanted.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only objects of this virtual host.
    pub vhost: Option<Box<str>>,
    /// Only objects of this user.
    pub user: Option<Box<str>>,
    /// Only objects that this user may see; the kind's [`Audience`] decides.
    pub viewer: Option<Viewer>,
    /// Only bindings between these objects.
    pub binding_ends: BindingEnds,
    /// Which histories are written besides rates.
    pub ranges: Ranges,
    /// Whether the command line sends the request.
    pub is_ctl: bool,
}

/// A user who may not see everything.
#[derive(Clone, Debug)]
pub struct Viewer {
    /// The user's name.
    pub name: Box<str>,
    /// Whether the user may see the objects of others in all virtual hosts.
    pub is_monitor: bool,
}

/// The users who may see an object, besides administrators.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Audience {
    /// All users of the API.
    All,
    /// Users with permissions in its virtual host.
    Members,
    /// Users with permissions in its virtual host, and monitors.
    MembersAndMonitors,
    /// The user that owns it, and monitors.
    OwnerAndMonitors,
}

/// The source and destination of wanted bindings.
#[derive(Clone, Debug, Default)]
pub struct BindingEnds {
    /// Only bindings from this exchange.
    pub source: Option<Box<str>>,
    /// Only bindings to the object of this name; `true`: it is an exchange.
    pub destination: Option<(Box<str>, bool)>,
}

/// Size limits of a compiled pattern, in bytes. The smallest that fits determines the cost of a match.
const PATTERN_SIZES: [usize; 3] = [1 << 10, 4 << 10, 16 << 10];
/// Matching one byte of a name against this many bytes of a pattern is as much work as examining a row. (A pattern of
/// 16 KiB and a name of 200 bytes take half a millisecond, which is as long as 3,000 rows.)
const PATTERN_BYTES_PER_LOOK: usize = 1 << 10;
/// The longest name or pattern to search for, in bytes.
const NAME_BYTES_MAX: usize = 1024;
/// The most rows on a page.
const PAGE_ROWS_MAX: usize = 500;
const PAGE_ROWS_DEFAULT: usize = 100;

/// The part of a row's sort key that is kept.
type Key = [u8; 16];
/// Bytes of a text in a key.
const KEY_TEXT_BYTES: usize = 15;
/// Bytes of a row, doubled because the list grows by reallocation.
const SORTED_ROW_BYTES: usize = 2 * size_of::<(Key, u8, u32)>();

/// Capacity for rows when the first one is added.
const ROWS_MIN: usize = 64;

/// A range of rows whose keys are equal in all bytes compared up to now.
#[derive(Clone, Copy, Debug)]
struct TiedRows {
    from: usize,
    to: usize,
    /// Number of bytes compared.
    compared: usize,
    /// Number of rows from `from` on whose next bytes have been read.
    examined: usize,
}

/// The functions that examine rows of a kind.
#[derive(Clone, Copy, Debug)]
pub struct RowProbe {
    /// Writes the cell of a column if the row at this position is wanted. For an unknown column it writes nothing.
    pub cell: fn(&Filter, ReadContext<'_>, usize, &str, &mut Vec<u8>) -> bool,
    /// Returns the name of the object at this position.
    pub name: fn(ReadContext<'_>, usize) -> Option<String>,
}

/// Which rows are wanted by their names.
#[derive(Debug)]
enum NameFilter {
    /// Names that contain this text, which is in lower case.
    Contains(String),
    /// Names that match the pattern, and the size limit under which it was compiled.
    Matches(Regex, usize),
}

/// The order of a list.
#[derive(Debug)]
pub struct Ordered {
    name_filter: Option<NameFilter>,
    sort: String,
    is_reverse: bool,
    page: Option<(usize, usize)>,
    rows: Vec<(Key, u8, u32)>,
    /// The memory of `rows`; `None` before the first one.
    rows_memory: Option<HeapBytes>,
    total: usize,
    filtered: usize,
    at: usize,
    /// Ranges of rows still to be compared further. `None` before the first sorting.
    ties: Option<Vec<TiedRows>>,
}

/// Compiles a pattern under the smallest size limit that it fits. Returns `None` if it is invalid or too large.
fn compile_pattern(pattern: &str) -> Option<NameFilter> {
    PATTERN_SIZES.into_iter().find_map(|bytes| {
        let built = RegexBuilder::new(pattern).case_insensitive(true).size_limit(bytes).build();
        built.ok().map(|regex| NameFilter::Matches(regex, bytes))
    })
}

/// Why a page cannot be shown: status, error and reason.
pub type PageError = (Status, &'static str, String);

impl Ordered {
    /// Reads the order and the page from a request. `default` names the columns to sort by if the request names none.
    ///
    /// # Errors
    /// The parameters are invalid.
    pub fn from_query(
        request: &Request<'_>,
        has_pages: bool,
        default: Option<&str>,
    ) -> Result<Option<Self>, PageError> {
        let page = request.query_value("page").filter(|_| has_pages);
        let sort = request.query_value("sort").and_then(decode).filter(|sort| !sort.is_empty());
        if page.is_none() && sort.is_none() && default.is_none() {
            return Ok(None);
        }
        let invalid = || (Status::BadRequest, "bad_request", "Pagination parameters are invalid".to_string());
        let number = |key| match request.query_value(key) {
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
        let name = request.query_value("name").map(|name| name.replace('+', " "));
        let name = name.as_deref().and_then(decode).filter(|name| !name.is_empty() && page.is_some());
        let name_filter = match name {
            Some(name) if name.len() > NAME_BYTES_MAX => return Err(invalid()),
            Some(pattern) if request.has_true("use_regex") => {
                Some(compile_pattern(&pattern).ok_or_else(invalid)?)
            }
            Some(name) => Some(NameFilter::Contains(name.to_lowercase())),
            None => None,
        };
        let sort = sort.map_or_else(|| default.unwrap_or("name").to_string(), |sort| sort.into_owned());
        let is_reverse = request.has_true("sort_reverse");
        Ok(Some(Self {
            name_filter,
            sort,
            is_reverse,
            page,
            rows: Vec::new(),
            rows_memory: None,
            total: 0,
            filtered: 0,
            at: 0,
            ties: None,
        }))
    }

    /// Examines the row at a position. Returns how much work that was, in examined rows.
    ///
    /// # Errors
    /// The memory has no room for one more row.
    pub fn take(
        &mut self,
        probe: RowProbe,
        filter: &Filter,
        context: ReadContext<'_>,
        part: usize,
        place: usize,
    ) -> Result<usize, PageError> {
        let mut cell = Vec::new();
        if !(probe.cell)(filter, context, place, &self.sort, &mut cell) {
            return Ok(1);
        }
        self.total += 1;
        let (is_named, work) = match &self.name_filter {
            None => (true, 0),
            Some(name_filter) => (probe.name)(context, place).map_or((false, 0), |name| match name_filter {
                NameFilter::Contains(text) => (name.to_lowercase().contains(text), 0),
                NameFilter::Matches(regex, bytes) => {
                    (regex.is_match(&name), name.len() * bytes / PATTERN_BYTES_PER_LOOK)
                }
            }),
        };
        if is_named {
            if self.rows.len() == self.rows.capacity() {
                self.grow(context)?;
            }
            self.rows.push((key(&cell), part as u8, place as u32));
        }
        Ok(1 + work)
    }

    /// Doubles the capacity for rows.
    fn grow(&mut self, context: ReadContext<'_>) -> Result<(), PageError> {
        let more = self.rows.capacity().max(ROWS_MIN);
        let memory = self
            .rows_memory
            .get_or_insert_with(|| HeapBytes::in_memory(context.broker.memory(), Class::Clients));
        // While the rows are moved, both allocations exist. What is charged for the first one is part of this.
        if !memory.try_add(more * SORTED_ROW_BYTES) {
            let why = "memory_limit leaves no memory to sort the list; select fewer rows".to_string();
            return Err((Status::Unavailable, "no_memory", why));
        }
        self.rows.reserve_exact(more);
        Ok(())
    }

    /// Sorts the rows after all have been examined, examining at most `left` further rows. Returns whether the rows
    /// are sorted.
    pub fn put_in_order(
        &mut self,
        probe: &dyn Fn(usize) -> RowProbe,
        filter: &Filter,
        context: ReadContext<'_>,
        mut left: usize,
    ) -> bool {
        if self.ties.is_none() {
            self.ties = Some(Vec::new());
            self.sort(0, self.rows.len(), KEY_TEXT_BYTES);
        }
        while let Some(mut ties) = self.ties.as_mut().and_then(Vec::pop) {
            while ties.from + ties.examined < ties.to {
                if left == 0 {
                    self.ties.get_or_insert_default().push(ties);
                    return false;
                }
                left -= 1;
                let (key, part, place) = &mut self.rows[ties.from + ties.examined];
                let mut cell = Vec::new();
                (probe((*part).into()).cell)(filter, context, *place as usize, &self.sort, &mut cell);
                *key = rest(&cell, ties.compared);
                ties.examined += 1;
            }
            self.sort(ties.from, ties.to, ties.compared + KEY_TEXT_BYTES);
        }
        true
    }

    /// Sorts a range of rows by their keys and notes subranges whose keys do not suffice to compare them.
    fn sort(&mut self, from: usize, to: usize, compared: usize) {
        let is_reverse = self.is_reverse;
        let rows = &mut self.rows[from..to];
        // An unstable sort allocates no memory. Rows with equal keys stay in the order of their positions.
        rows.sort_unstable_by(|a, b| {
            let keys = if is_reverse { b.0.cmp(&a.0) } else { a.0.cmp(&b.0) };
            keys.then((a.1, a.2).cmp(&(b.1, b.2)))
        });
        let mut at = from;
        for same in rows.chunk_by(|a, b| a.0 == b.0) {
            if same.len() > 1 && same[0].0[KEY_TEXT_BYTES] != 0 {
                let ties = TiedRows { from: at, to: at + same.len(), compared, examined: 0 };
                self.ties.get_or_insert_default().push(ties);
            }
            at += same.len();
        }
    }

    /// Selects the page once the rows are sorted, and returns the text before the rows.
    ///
    /// # Errors
    /// The page does not exist.
    pub fn begin(&mut self) -> Result<String, PageError> {
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
        if let Some(memory) = &mut self.rows_memory {
            memory.subtract(memory.used() - self.rows.len() * SORTED_ROW_BYTES);
        }
        Ok(format!(
            "{{\"filtered_count\":{},\"item_count\":{},\"page\":{page},\"page_count\":{},\
             \"page_size\":{size},\"total_count\":{},\"items\":[",
            self.filtered,
            self.rows.len(),
            self.filtered.div_ceil(size),
            self.total,
        ))
    }

    /// Returns the part and the position of the next row.
    pub fn next(&self) -> Option<(usize, usize)> {
        self.rows.get(self.at).map(|row| (row.1.into(), row.2 as usize))
    }

    /// Moves past a row that was written or no longer exists.
    pub const fn pass(&mut self) {
        self.at += 1;
    }

    /// Returns the text after the rows.
    pub const fn end(&self) -> &'static str {
        if self.page.is_some() { "\n]}\n" } else { "\n]\n" }
    }
}

/// Returns the key of a text without its first `compared` bytes.
fn rest(cell: &[u8], compared: usize) -> Key {
    let mut key = [0; 16];
    let text = cell.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\"")).unwrap_or_default();
    let text = text.get(compared..).unwrap_or_default();
    key[0] = 3;
    let len = text.len().min(KEY_TEXT_BYTES);
    key[1..=len].copy_from_slice(&text[..len]);
    key
}

/// Returns the key of a cell. Nothing, numbers, Booleans and texts are ordered as in Erlang.
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
            // Floating point numbers are ordered like their bits after the sign bit is inverted.
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
    fn cells_compare_by_type_and_value() {
        let rising =
            ["", "-3", "-0.5", "0", "2", "10", "10.5", "1e9", "false", "true", "\"\"", "\"a\"", "\"ab\""];
        for pair in rising.windows(2) {
            assert!(key(pair[0].as_bytes()) < key(pair[1].as_bytes()), "{pair:?}");
        }
    }
}
