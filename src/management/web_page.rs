//! The files of the web page, and its logins, which use a token instead of a password.
//!
//! A token expires after a time without use, and at the latest after a working day. Deleting the user, changing its
//! password, or logging out ends it earlier.
//!
//! # Invariants
//! - Only the hash of a token is kept, so reading the broker's memory does not reveal a login.
//! - There are at most `TOKENS_MAX` tokens.
//! - A user's only token is not taken by another user while any user has two, and an administrator's never by a user
//!   who is not an administrator.
//! - Only the files of the table `PAGES` are served, so no path leads anywhere else.

use core::cmp::Reverse;

use leveret_broker::Broker;
use leveret_core::password::PasswordHash;
use ring::digest::{SHA256, digest};

/// The most tokens.
pub(super) const TOKENS_MAX: usize = 16;
/// A token expires when it has not been used for this long.
const IDLE_MS_MAX: u64 = 30 * 60 * 1000;
/// The longest validity of a token.
const AGE_MS_MAX: u64 = 12 * 60 * 60 * 1000;

/// Why a user gets no token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NoToken {
    /// The user does not exist.
    NoSuchUser,
    /// All tokens are in use, one by each user.
    Full,
}

/// The tokens of users who are logged in.
#[derive(Debug, Default)]
pub struct Tokens {
    rows: Vec<TokenRow>,
}

/// The most memory that tokens use, in bytes.
pub const TOKENS_BYTES: usize = TOKENS_MAX * (size_of::<TokenRow>() + 256);

#[derive(Debug)]
struct TokenRow {
    hash: [u8; 32],
    user: Box<str>,
    password: PasswordHash,
    began_ms: u64,
    used_ms: u64,
}

/// Length of a token in bytes: 256 bits in hexadecimal digits.
const TOKEN_BYTES: usize = 64;

impl TokenRow {
    /// Returns whether the token is valid at this time.
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
    /// Logs in a user whose password was right, and returns the token.
    ///
    /// # Errors
    /// The user gets no token.
    pub(super) fn begin(&mut self, broker: &mut Broker, user: &str, now_ms: u64) -> Result<String, NoToken> {
        let password = broker_password(broker, user).ok_or(NoToken::NoSuchUser)?;
        self.rows.retain(|row| row.is_good(broker, now_ms));
        if self.rows.len() >= TOKENS_MAX {
            let at = self.replaced(broker, user).ok_or(NoToken::Full)?;
            self.rows.swap_remove(at);
        }
        let token = format!(
            "{:016x}{:016x}{:016x}{:016x}",
            broker.random_u64(),
            broker.random_u64(),
            broker.random_u64(),
            broker.random_u64()
        );
        self.rows.reserve_exact(1);
        let hash = hash_of(token.as_bytes());
        self.rows.push(TokenRow { hash, user: user.into(), password, began_ms: now_ms, used_ms: now_ms });
        Ok(token)
    }

    /// Returns the token that a new token of this user replaces.
    ///
    /// If the user has tokens, it is the least recently used of them. Otherwise it is one of the user with the most
    /// tokens. If every user has one, an administrator replaces one of a user who is not an administrator, if
    /// possible.
    fn replaced(&self, broker: &Broker, user: &str) -> Option<usize> {
        let held = |user: &str| self.rows.iter().filter(|row| &*row.user == user).count();
        let most = self.rows.iter().map(|row| held(&row.user)).max()?;
        let may_displace = |row: &TokenRow| match held(user) {
            0 => most > 1 || is_administrator(broker, user),
            _ => &*row.user == user,
        };
        let rows = self.rows.iter().enumerate().filter(|(_, row)| may_displace(row));
        let order =
            |row: &TokenRow| (Reverse(held(&row.user)), is_administrator(broker, &row.user), row.used_ms);
        rows.min_by_key(|(_, row)| order(row)).map(|(at, _)| at)
    }

    /// Returns the user of a token. Returns `None` if it is unknown or no longer valid.
    pub(super) fn user_of(&mut self, token: &[u8], broker: &Broker, now_ms: u64) -> Option<String> {
        let at = self.find(token, broker, now_ms)?;
        self.rows[at].used_ms = now_ms;
        Some(self.rows[at].user.to_string())
    }

    fn find(&self, token: &[u8], broker: &Broker, now_ms: u64) -> Option<usize> {
        if token.len() != TOKEN_BYTES {
            return None;
        }
        let hash = hash_of(token);
        self.rows.iter().position(|row| row.hash == hash && row.is_good(broker, now_ms))
    }

    /// Ends all tokens of a deleted user: a later user of the same name is another one.
    pub(super) fn end_all_of(&mut self, user: &str) {
        self.rows.retain(|row| &*row.user != user);
    }

    /// Ends a token.
    pub(super) fn end(&mut self, token: &[u8]) {
        let hash = hash_of(token);
        self.rows.retain(|row| row.hash != hash);
    }
}

/// A file of the page.
#[derive(Debug)]
pub struct PageFile {
    name: &'static str,
    /// Its media type.
    pub media: &'static str,
    /// Its contents, compressed with gzip.
    pub bytes: &'static [u8],
}

/// Includes a file that the build script has compressed.
macro_rules! compressed {
    ($name:literal) => {
        include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".gz"))
    };
}

/// All files, compressed by the build script from `src/management/web`. The first is shown at `/`.
const PAGES: &[PageFile] = &[
    page("index.html", "text/html; charset=utf-8", compressed!("index.html")),
    page("style.css", "text/css; charset=utf-8", compressed!("style.css")),
    page("icon.svg", "image/svg+xml", compressed!("icon.svg")),
    page("app.js", "text/javascript; charset=utf-8", compressed!("app.js")),
];

const fn page(name: &'static str, media: &'static str, bytes: &'static [u8]) -> PageFile {
    PageFile { name, media, bytes }
}

impl PageFile {
    /// Returns the entity tag: the checksum and the length of the content, which are the end of a gzip file.
    pub fn tag(&self) -> u64 {
        self.bytes.last_chunk().map_or(0, |last| u64::from_be_bytes(*last))
    }
}

/// Returns the file of this name.
pub(super) fn find(name: &str) -> Option<&'static PageFile> {
    match name {
        "" => PAGES.first(),
        name => PAGES.iter().find(|page| page.name == name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The most bytes of all files together, as they are sent.
    const BYTES_MAX: usize = 70_000;

    #[test]
    fn the_page_is_small_and_its_script_imports_nothing() {
        let bytes: usize = PAGES.iter().map(|page| page.bytes.len()).sum();
        assert!(bytes <= BYTES_MAX, "{bytes} bytes");
        for page in PAGES {
            // Header and trailer of gzip are 18 bytes.
            let text =
                miniz_oxide::inflate::decompress_to_vec(&page.bytes[10..page.bytes.len() - 8]).unwrap();
            let text = String::from_utf8(text).unwrap();
            assert_eq!(page.tag() as u32, (text.len() as u32).swap_bytes(), "{}", page.name);
            let has_line = |start: &str| text.lines().any(|line| line.starts_with(start));
            assert!(!has_line("import ") && !has_line("export "), "{}", page.name);
        }
    }
}
