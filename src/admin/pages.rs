//! The web page's files, compressed as they lie in `src/web/`.
//!
//! Always true: what is served is in this table, so no path leads anywhere else.

/// A file of the page.
#[derive(Debug)]
pub struct Page {
    name: &'static str,
    /// Its media type.
    pub media: &'static str,
    /// Compressed with gzip.
    pub bytes: &'static [u8],
}

/// All there are; the first is what is shown at `/`.
const PAGES: &[Page] = &[];

impl Page {
    /// What tells it from others of its name: the checksum and the length of the content, with which gzip
    /// ends.
    pub fn tag(&self) -> u64 {
        self.bytes.last_chunk().map_or(0, |last| u64::from_be_bytes(*last))
    }
}

/// The file of this name; `None`: there is none.
pub(super) fn find(name: &str) -> Option<&'static Page> {
    match name {
        "" => PAGES.first(),
        name => PAGES.iter().find(|page| page.name == name),
    }
}
