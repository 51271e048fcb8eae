//! The web page's files, compressed as they lie in `src/management/web/` beside their sources (`compress` there
//! makes them, `tests/parts/layers` compares them).
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
const PAGES: &[Page] = &[
    page("index.html", "text/html; charset=utf-8", include_bytes!("web/index.html.gz")),
    page("style.css", "text/css; charset=utf-8", include_bytes!("web/style.css.gz")),
    page("icon.svg", "image/svg+xml", include_bytes!("web/icon.svg.gz")),
    page("app.js", SCRIPT, include_bytes!("web/app.js.gz")),
    page("views.js", SCRIPT, include_bytes!("web/views.js.gz")),
    page("kit.js", SCRIPT, include_bytes!("web/kit.js.gz")),
];
const SCRIPT: &str = "text/javascript; charset=utf-8";

const fn page(name: &'static str, media: &'static str, bytes: &'static [u8]) -> Page {
    Page { name, media, bytes }
}

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
