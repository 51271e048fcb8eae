//! Lists that are sorted, filtered by name or taken page by page, as RabbitMQ 3.10 answers them.
//!
//! Why it exists: a row is written when there is room for it and forgotten; to put rows in an order each is
//! looked at first, and no more of it is kept than sixteen bytes of what it is sorted by, and its place.
//!
//! Rows that are alike in those bytes are told apart by the next ones, a look at a time.
//!
//! Always true: a look says how much work it was, so that a step ends after as much as others may have to
//! wait for; matching takes time in the length of a name and the size of the pattern, and no more; rows that
//! compare alike stay in the order of their places.

use regex_lite::{Regex, RegexBuilder};

use super::filter::Filter;
use super::http::{Request, Status, decode};
use super::request_context::ReadContext;
use leveret_core::limits::LISTED_ROW_BYTES;

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
mod tests {
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
