//! Logins of the web page, which keeps a token instead of a password.
//!
//! A token is good for as long as it is used, and for a working day at most. It goes with its user, with the
//! user's password, and by logging out.
//!
//! Always true: a token is known here by its hash alone, so nothing that is read here logs anybody in; there
//! are never more than [`TOKENS_MAX`]; nobody loses his only one to another user while somebody has two, and
//! an administrator never to who is none.

use core::cmp::Reverse;

use leveret_broker::Broker;
use leveret_core::password::PasswordHash;
use ring::digest::{SHA256, digest};

/// Tokens at once.
pub(super) const TOKENS_MAX: usize = 16;
/// A token that is not used for so long is not good any more.
const IDLE_MS_MAX: u64 = 30 * 60 * 1000;
/// No token is good for longer.
const AGE_MS_MAX: u64 = 12 * 60 * 60 * 1000;

/// Why there is no token for a user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NoToken {
    /// There is no such user.
    NoSuchUser,
    /// As many users as there can be have one each.
    Full,
}

/// Who is logged in by a token.
#[derive(Debug, Default)]
pub struct Tokens {
    rows: Vec<Row>,
}

/// What they take at most, in bytes.
pub const TOKENS_BYTES: usize = TOKENS_MAX * (size_of::<Row>() + 256);

#[derive(Debug)]
struct Row {
    hash: [u8; 32],
    user: Box<str>,
    password: PasswordHash,
    began_ms: u64,
    used_ms: u64,
}

/// Letters of a token: 256 bits in hexadecimal digits.
const TOKEN_LETTERS: usize = 64;

impl Row {
    /// Whether it is good at this moment.
    fn is_good(&self, broker: &Broker, now_ms: u64) -> bool {
        let has_password = |password| broker_password(broker, &self.user) == Some(password);
        now_ms.saturating_sub(self.used_ms) <= IDLE_MS_MAX
            && now_ms.saturating_sub(self.began_ms) <= AGE_MS_MAX
            && has_password(self.password)
    }
}

fn broker_password(broker: &Broker, user: &str) -> Option<PasswordHash> {
    broker.access().users().find(|view| view.name == user).map(|view| *view.hash)
}

fn is_administrator(broker: &Broker, user: &str) -> bool {
    let view = broker.access().users().find(|view| view.name == user);
    view.is_some_and(|view| view.tags.split(',').any(|tag| tag == "administrator"))
}

fn hash_of(token: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, token).as_ref());
    hash
}

impl Tokens {
    /// Logs a user in, whose password was right.
    ///
    /// # Errors
    /// There is none for this user.
    pub(super) fn begin(&mut self, broker: &mut Broker, user: &str, now_ms: u64) -> Result<String, NoToken> {
        let password = broker_password(broker, user).ok_or(NoToken::NoSuchUser)?;
        self.rows.retain(|row| row.is_good(broker, now_ms));
        if self.rows.len() >= TOKENS_MAX {
            let at = self.displaced(broker, user).ok_or(NoToken::Full)?;
            self.rows.swap_remove(at);
        }
        let token = format!(
            "{:016x}{:016x}{:016x}{:016x}",
            broker.chance(),
            broker.chance(),
            broker.chance(),
            broker.chance()
        );
        self.rows.reserve_exact(1);
        let hash = hash_of(token.as_bytes());
        self.rows.push(Row { hash, user: user.into(), password, began_ms: now_ms, used_ms: now_ms });
        Ok(token)
    }

    /// Whose place a token of this user takes: his own that was used longest ago; if he has none, that of the
    /// user who has most; if everybody has one, an administrator that of somebody who is none, if there is
    /// such a one.
    fn displaced(&self, broker: &Broker, user: &str) -> Option<usize> {
        let held = |user: &str| self.rows.iter().filter(|row| &*row.user == user).count();
        let most = self.rows.iter().map(|row| held(&row.user)).max()?;
        let may_displace = |row: &Row| match held(user) {
            0 => most > 1 || is_administrator(broker, user),
            _ => &*row.user == user,
        };
        let rows = self.rows.iter().enumerate().filter(|(_, row)| may_displace(row));
        let order = |row: &Row| (Reverse(held(&row.user)), is_administrator(broker, &row.user), row.used_ms);
        rows.min_by_key(|(_, row)| order(row)).map(|(at, _)| at)
    }

    /// Whose token it is; `None`: nobody's, or not any more.
    pub(super) fn user_of(&mut self, token: &[u8], broker: &Broker, now_ms: u64) -> Option<String> {
        let at = self.find(token, broker, now_ms)?;
        self.rows[at].used_ms = now_ms;
        Some(self.rows[at].user.to_string())
    }

    fn find(&self, token: &[u8], broker: &Broker, now_ms: u64) -> Option<usize> {
        if token.len() != TOKEN_LETTERS {
            return None;
        }
        let hash = hash_of(token);
        self.rows.iter().position(|row| row.hash == hash && row.is_good(broker, now_ms))
    }

    /// The user is deleted: one who is called so later is somebody else.
    pub(super) fn end_all_of(&mut self, user: &str) {
        self.rows.retain(|row| &*row.user != user);
    }

    /// Logs out.
    pub(super) fn end(&mut self, token: &[u8]) {
        let hash = hash_of(token);
        self.rows.retain(|row| row.hash != hash);
    }
}

// The web page's files, compressed as they lie in `src/management/web/` beside their sources (`compress` there
// makes them, `tests/parts/layers` compares them).
//
// Always true: what is served is in this table, so no path leads anywhere else.

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
