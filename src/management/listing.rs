//! Rows of what there is, written while the client takes them.
//!
//! Why it exists: four thousand queues as JSON are a megabyte, and going through them takes time; so a
//! listing is a cursor that writes some rows whenever there is room for them, and forgets them.
//!
//! Always true: one call looks at no more than [`PLACES_PER_STEP`] records, or does as much work with fewer,
//! and writes no more than it was given room for, plus one row; every row is a line of its own.

use super::columns::{Column, Kind, Pen};
use super::filter::Filter;
use super::json::{Json, Tables};
use super::ordering::{Looks, Ordered, Refused};
use super::request_context::ReadContext;
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
