//! Logins of the web page, which keeps a token instead of a password.
//!
//! A token is good for as long as it is used, and for a working day at most. It goes with its user, with the
//! user's password, and by logging out.
//!
//! Always true: a token is known here by its hash alone, so nothing that is read here logs anybody in; there
//! are never more than [`TOKENS_MAX`], and of the user who has most of them the one that was used longest ago
//! makes room for another.

use core::cmp::Reverse;

use ring::digest::{SHA256, digest};

use crate::broker::Broker;
use crate::password::PasswordHash;

/// Tokens at once.
const TOKENS_MAX: usize = 16;
/// A token that is not used for so long is not good any more.
const IDLE_MS_MAX: u64 = 30 * 60 * 1000;
/// No token is good for longer.
const AGE_MS_MAX: u64 = 12 * 60 * 60 * 1000;

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
    broker.users().find(|view| view.name == user).map(|view| *view.hash)
}

fn hash_of(token: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, token).as_ref());
    hash
}

impl Tokens {
    /// Logs a user in, whose password was right; `None`: there is no such user.
    pub(super) fn begin(&mut self, broker: &mut Broker, user: &str, now_ms: u64) -> Option<String> {
        let password = broker_password(broker, user)?;
        let token = format!(
            "{:016x}{:016x}{:016x}{:016x}",
            broker.chance(),
            broker.chance(),
            broker.chance(),
            broker.chance()
        );
        self.rows.retain(|row| row.is_good(broker, now_ms));
        if self.rows.len() >= TOKENS_MAX {
            let held = |user: &str| self.rows.iter().filter(|row| &*row.user == user).count();
            let oldest = (0..self.rows.len())
                .min_by_key(|at| (Reverse(held(&self.rows[*at].user)), self.rows[*at].used_ms));
            oldest.map(|at| self.rows.swap_remove(at));
        }
        self.rows.reserve_exact(1);
        let hash = hash_of(token.as_bytes());
        self.rows.push(Row { hash, user: user.into(), password, began_ms: now_ms, used_ms: now_ms });
        Some(token)
    }

    /// Whose token it is; `None`: nobody's, or not any more.
    pub(super) fn user_of(&mut self, token: &[u8], broker: &Broker, now_ms: u64) -> Option<String> {
        let hash = hash_of(token);
        let row = self.rows.iter_mut().find(|row| row.hash == hash && row.is_good(broker, now_ms))?;
        row.used_ms = now_ms;
        Some(row.user.to_string())
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
