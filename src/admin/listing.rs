//! Rows of what there is, written while the client takes them.
//!
//! Why it exists: four thousand queues as JSON are a megabyte, and going through them takes time; so a
//! listing is a cursor that writes some rows whenever there is room for them, and forgets them.
//!
//! Always true: one call looks at no more than [`PLACES_PER_STEP`] records and writes no more than it was
//! given room for, plus one row; every row is a line of its own.

use super::columns::{Column, Kind, Pen};
use super::json::{Json, Tables};
use super::request_context::ReadContext;

/// Records looked at in one step.
const PLACES_PER_STEP: usize = 512;
/// Columns of one kind at most.
const COLUMNS_MAX: usize = 64;

/// Which columns a row has, in this order.
pub type Chosen = heapless::Vec<u8, COLUMNS_MAX>;

/// Which rows are wanted.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only those of this virtual host.
    pub vhost: Option<Box<str>>,
    /// Only those of this user.
    pub user: Option<Box<str>>,
    /// Only those that this user may see: of its virtual hosts, and its own connections.
    pub viewer: Option<Box<str>>,
}

/// A part of a listing: things of one kind.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// What stands before its rows, and after them.
    pub around: (&'static str, &'static str),
    /// How many places there are, and what writes the row of one.
    pub places: fn(ReadContext<'_>) -> usize,
    /// Writes the row of a place.
    pub row: Row,
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
}

impl Listing {
    /// A listing of these parts.
    pub const fn new(parts: &'static [Part], filter: Filter, columns: Chosen) -> Self {
        Self { parts, filter, columns, part: 0, place: 0, is_begun: false, is_first: true }
    }

    /// A listing of everything there is in these parts, with rows that choose no columns.
    pub fn whole(parts: &'static [Part]) -> Self {
        Self::new(parts, Filter::default(), Chosen::new())
    }

    /// Writes some more behind what is in `out`, which has at most `bytes_max` then; rows stop at `enough`.
    /// Says whether that was all. When there is no room to come (`is_alone`), a row that is too large leaves
    /// its tables out.
    pub fn write(&mut self, context: ReadContext<'_>, out: &mut Vec<u8>, room: Room) -> bool {
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
    write_cells::<K>(&view, columns, Pen { json, tables, context })
}

/// Whether a row is one of those that are listed.
pub(super) fn is_wanted<K: Kind>(filter: &Filter, context: ReadContext<'_>, view: &K::View<'_>) -> bool {
    let Filter { vhost, user, viewer } = filter;
    if vhost.as_deref().is_some_and(|wanted| K::vhost(view) != Some(wanted))
        || user.as_deref().is_some_and(|wanted| K::user(view) != Some(wanted))
    {
        return false;
    }
    let Some(viewer) = viewer.as_deref() else { return true };
    K::vhost(view).is_some_and(|vhost| context.broker.has_permission(viewer, vhost))
        && (!K::IS_PRIVATE || K::user(view) == Some(viewer))
}

/// Writes a row of a kind with all its columns.
pub fn whole_row<K: Kind>(
    _: &Listing,
    context: ReadContext<'_>,
    place: usize,
    json: Json<'_>,
    tables: Tables,
) -> Written {
    let Some(view) = K::at(context, place) else { return Written::Nothing };
    write_cells::<K>(&view, K::COLUMNS.iter(), Pen { json, tables, context })
}

fn write_cells<'c, K: Kind>(
    view: &K::View<'_>,
    columns: impl Iterator<Item = &'c Column<K>>,
    mut pen: Pen<'_, '_>,
) -> Written {
    pen.json.raw(b"{");
    let mut is_first = true;
    for (name, cell) in columns {
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
            let plain = all.enumerate().filter(|(_, name)| *name != super::columns::TYPED);
            chosen.extend(plain.map(|(at, _)| at as u8).take(COLUMNS_MAX));
        }
        Some(names) => {
            for name in names.split(',') {
                let at = all.clone().position(|known| known == name).ok_or(name)?;
                chosen.push(at as u8).map_err(|_| name)?;
            }
        }
    }
    Ok(chosen)
}
