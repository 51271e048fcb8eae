//! Password hashes: how they are made, stored, imported, exported and verified.
//!
//! The broker stores hashes, a helper thread verifies passwords, and tools create and export hashes.
//!
//! ```text
//! bytes of a hash | 0                                               no password matches
//!                 | 1 | iterations u32 LE | salt 16 | digest 32     PBKDF2-HMAC-SHA256
//!                 | 2 | salt 4 | digest 32                          RabbitMQ: SHA-256(salt password)
//!                 | 3 | salt 4 | digest 64                          RabbitMQ: SHA-512(salt password)
//! exported        | base64 of what follows the first byte; the iterations are big-endian there
//! ```
//!
//! # Invariants
//! - Verifying takes at least as long as one PBKDF2 hash of [`ITERATIONS`] rounds. This is also so for
//!   unknown users and for the fast hashes of RabbitMQ, so that the time does not show which users exist.
//! - `Debug` shows neither passwords nor hashes.
//! - The bytes of a password to check are wiped after use.

use core::fmt;
use core::num::NonZeroU32;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::{digest, pbkdf2};
use zeroize::Zeroizing;

use crate::mem::Name;

/// Maximum length of a password in bytes. Longer ones never match.
pub const PASSWORD_BYTES_MAX: usize = 512;

/// Rounds of a new hash. They take 80 ms on the single core of a Raspberry Pi Zero. With more rounds, many
/// clients that reconnect at the same time would wait too long.
pub const ITERATIONS: NonZeroU32 = NonZeroU32::MIN.saturating_add(20_000 - 1);

/// Maximum rounds of an imported hash. More would delay every other login.
const ITERATIONS_MAX: u32 = 1_000_000;

const SALT_BYTES: usize = 16;
const DIGEST_BYTES: usize = 32;
const RABBIT_SALT_BYTES: usize = 4;

/// Maximum length of an encoded hash in bytes.
pub const HASH_BYTES_MAX: usize = 1 + RABBIT_SALT_BYTES + 64;

const NO_PASSWORD: u8 = 0;
const PBKDF2: u8 = 1;
const RABBIT_SHA256: u8 = 2;
const RABBIT_SHA512: u8 = 3;

/// Names of the algorithms in exported definitions, with the first byte of an encoded hash. The first
/// algorithm is Leveret's own.
const ALGORITHMS: [(&str, u8); 3] = [
    ("leveret_password_hashing_pbkdf2_sha256", PBKDF2),
    ("rabbit_password_hashing_sha256", RABBIT_SHA256),
    ("rabbit_password_hashing_sha512", RABBIT_SHA512),
];

/// The hash of a password.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum PasswordHash {
    /// No password matches: the user cannot log in with a password.
    NoPassword,
    /// Leveret's own hash.
    Pbkdf2 {
        /// Number of rounds.
        iterations: NonZeroU32,
        /// Random bytes of this hash.
        salt: [u8; SALT_BYTES],
        /// The derived key.
        digest: [u8; DIGEST_BYTES],
    },
    /// Imported from RabbitMQ: its default algorithm.
    RabbitSha256 {
        /// Random bytes of this hash.
        salt: [u8; RABBIT_SALT_BYTES],
        /// The digest of salt and password.
        digest: [u8; 32],
    },
    /// Imported from RabbitMQ.
    RabbitSha512 {
        /// Random bytes of this hash.
        salt: [u8; RABBIT_SALT_BYTES],
        /// The digest of salt and password.
        digest: [u8; 64],
    },
}

/// The hash of the password `guest`, which is public, so its salt is fixed.
pub const GUEST: PasswordHash = PasswordHash::Pbkdf2 {
    iterations: ITERATIONS,
    salt: *b"guest of leveret",
    digest: [
        0x53, 0x5a, 0xcc, 0xba, 0x63, 0xf2, 0xb2, 0xcc, 0x65, 0x7e, 0x6f, 0x52, 0x26, 0x13, 0xe8, 0xf3, 0x66,
        0x1b, 0x6a, 0x95, 0x36, 0xc4, 0xab, 0xd7, 0x23, 0xf0, 0x3e, 0x0f, 0xc6, 0xce, 0x08, 0x86,
    ],
};

/// The hash that is computed for unknown users. No password matches it.
const DUMMY: PasswordHash = PasswordHash::Pbkdf2 { iterations: ITERATIONS, salt: [0; 16], digest: [0; 32] };

impl PasswordHash {
    /// Returns a new hash of a password. Takes as long as verifying one.
    pub fn of(password: &[u8], entropy: &mut dyn FnMut(&mut [u8])) -> Self {
        let (mut salt, mut digest) = ([0; SALT_BYTES], [0; DIGEST_BYTES]);
        entropy(&mut salt);
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ITERATIONS, &salt, password, &mut digest);
        Self::Pbkdf2 { iterations: ITERATIONS, salt, digest }
    }

    /// Returns a new hash in RabbitMQ's default format, for callers that must not block: this hash is fast.
    /// The hash of an empty password is [`Self::NoPassword`].
    pub fn as_rabbitmq(password: &[u8], salt: [u8; RABBIT_SALT_BYTES]) -> Self {
        if password.is_empty() {
            return Self::NoPassword;
        }
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(&salt);
        context.update(password);
        let mut hash = [0; DIGEST_BYTES];
        hash.copy_from_slice(context.finish().as_ref());
        Self::RabbitSha256 { salt, digest: hash }
    }

    /// Parses `hashing_algorithm` and `password_hash` of definitions of RabbitMQ or Leveret. An empty hash is
    /// [`Self::NoPassword`].
    ///
    /// # Errors
    /// The algorithm is unknown, or the text is not a hash of that algorithm.
    pub fn import(algorithm: &str, text: &str) -> Result<Self, InvalidHash> {
        if text.is_empty() {
            return Ok(Self::NoPassword);
        }
        let Some((_, kind)) = ALGORITHMS.iter().find(|(name, _)| *name == algorithm) else {
            return Err(InvalidHash::Unknown);
        };
        // Encoders break lines, and RabbitMQ ignores white space.
        let text: String = text.split_ascii_whitespace().collect();
        let mut bytes = BASE64.decode(text).map_err(|_| InvalidHash::Malformed)?;
        if *kind == PBKDF2 {
            bytes.get_mut(..4).ok_or(InvalidHash::Malformed)?.reverse();
        }
        bytes.insert(0, *kind);
        Self::from_bytes(&bytes).ok_or(InvalidHash::Malformed)
    }

    /// Returns `hashing_algorithm` and `password_hash` for an export.
    pub fn export(&self) -> (&'static str, String) {
        let mut bytes = self.to_bytes();
        let name = |kind| ALGORITHMS.iter().find(|(_, other)| *other == kind).map_or("", |(name, _)| name);
        match bytes[0] {
            NO_PASSWORD => return (name(PBKDF2), String::new()),
            PBKDF2 => bytes[1..5].reverse(),
            _ => {}
        }
        (name(bytes[0]), BASE64.encode(&bytes[1..]))
    }

    /// Returns the encoded hash.
    pub fn to_bytes(&self) -> heapless::Vec<u8, HASH_BYTES_MAX> {
        let mut bytes = heapless::Vec::new();
        // [`HASH_BYTES_MAX`] is enough for every kind of hash.
        let mut put = |part: &[u8]| {
            let fits = bytes.extend_from_slice(part).is_ok();
            debug_assert!(fits, "the longest kind sets the size");
        };
        match self {
            Self::NoPassword => put(&[NO_PASSWORD]),
            Self::Pbkdf2 { iterations, salt, digest } => {
                put(&[PBKDF2]);
                put(&iterations.get().to_le_bytes());
                [&salt[..], &digest[..]].into_iter().for_each(put);
            }
            Self::RabbitSha256 { salt, digest } => {
                [&[RABBIT_SHA256][..], salt, digest].into_iter().for_each(put);
            }
            Self::RabbitSha512 { salt, digest } => {
                [&[RABBIT_SHA512][..], salt, digest].into_iter().for_each(put);
            }
        }
        bytes
    }

    /// Parses an encoded hash; `None` if the bytes are not one.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        match *kind {
            NO_PASSWORD if rest.is_empty() => Some(Self::NoPassword),
            PBKDF2 => {
                let (iterations, rest) = rest.split_first_chunk()?;
                let iterations = NonZeroU32::new(u32::from_le_bytes(*iterations))?;
                let (salt, rest) = rest.split_first_chunk()?;
                let is_within_limit = iterations.get() <= ITERATIONS_MAX;
                let digest = rest.try_into().ok().filter(|_| is_within_limit)?;
                Some(Self::Pbkdf2 { iterations, salt: *salt, digest })
            }
            RABBIT_SHA256 => {
                let (salt, rest) = rest.split_first_chunk()?;
                Some(Self::RabbitSha256 { salt: *salt, digest: rest.try_into().ok()? })
            }
            RABBIT_SHA512 => {
                let (salt, rest) = rest.split_first_chunk()?;
                Some(Self::RabbitSha512 { salt: *salt, digest: rest.try_into().ok()? })
            }
            _ => None,
        }
    }

    /// Returns whether the password matches. Takes at least the time of [`ITERATIONS`] rounds.
    pub fn fits(&self, password: &[u8]) -> bool {
        match self {
            Self::Pbkdf2 { iterations, salt, digest } => {
                pbkdf2::verify(pbkdf2::PBKDF2_HMAC_SHA256, *iterations, salt, password, digest).is_ok()
            }
            Self::NoPassword => {
                DUMMY.fits(password);
                false
            }
            Self::RabbitSha256 { salt, digest } => matches_salted(&digest::SHA256, salt, password, digest),
            Self::RabbitSha512 { salt, digest } => matches_salted(&digest::SHA512, salt, password, digest),
        }
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash")
    }
}

/// Why a hash cannot be imported.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InvalidHash {
    /// The algorithm is unknown.
    Unknown,
    /// The text is not a hash of that algorithm.
    Malformed,
}

impl fmt::Display for InvalidHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => {
                f.write_str("the hashing algorithm is unknown (known are")?;
                let mut names = ALGORITHMS.iter().map(|(name, _)| *name);
                names.try_for_each(|name| write!(f, " {name}"))?;
                f.write_str("); use one of these, or set the password anew")
            }
            Self::Malformed => {
                f.write_str("the password hash does not have the format of its hashing_algorithm")
            }
        }
    }
}

impl core::error::Error for InvalidHash {}

/// A password as a peer sent it. `Debug` does not show it.
#[derive(Clone, Copy, PartialEq)]
pub struct Secret<'a>(pub &'a [u8]);

impl fmt::Debug for Secret<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// The check of a login's password, which is made outside of the event loop.
pub struct PasswordCheck {
    user: Name,
    password: Zeroizing<Box<[u8]>>,
    hash: PasswordHash,
    from_loopback: bool,
}

impl PasswordCheck {
    /// Creates the check. `user` is the name that the peer sent; the `hash` of an unknown user is
    /// [`PasswordHash::NoPassword`].
    pub fn new(user: Name, password: &[u8], hash: PasswordHash, from_loopback: bool) -> Self {
        let is_short_enough = password.len() <= PASSWORD_BYTES_MAX;
        let (password, hash) =
            if is_short_enough { (password, hash) } else { (&[][..], PasswordHash::NoPassword) };
        Self { user, password: Zeroizing::new(password.into()), hash, from_loopback }
    }

    /// Returns the user name that the peer sent.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Returns the password that the peer sent.
    pub fn password(&self) -> &[u8] {
        &self.password
    }

    /// Returns the hash that the password is compared with.
    pub const fn hash(&self) -> &PasswordHash {
        &self.hash
    }

    /// Returns whether the peer connected from the same machine.
    pub const fn from_loopback(&self) -> bool {
        self.from_loopback
    }

    /// Verifies the password, which is slow. An empty password is always wrong, as in RabbitMQ.
    pub fn is_correct(&self) -> bool {
        self.hash.fits(&self.password) && !self.password.is_empty()
    }
}

impl PartialEq for PasswordCheck {
    fn eq(&self, other: &Self) -> bool {
        self.user == other.user && equal(&self.password, &other.password) && self.hash == other.hash
    }
}

impl fmt::Debug for PasswordCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PasswordCheck").field("user", &self.user).finish_non_exhaustive()
    }
}

fn matches_salted(
    algorithm: &'static digest::Algorithm,
    salt: &[u8],
    password: &[u8],
    wanted: &[u8],
) -> bool {
    DUMMY.fits(password);
    let mut context = digest::Context::new(algorithm);
    context.update(salt);
    context.update(password);
    equal(context.finish().as_ref(), wanted)
}

/// Compares two byte strings in a time that depends only on their lengths.
pub fn equal(one: &[u8], two: &[u8]) -> bool {
    let differing = one.iter().zip(two).fold(0, |differing, (a, b)| differing | (a ^ b));
    one.len() == two.len() && core::hint::black_box(differing) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting() -> impl FnMut(&mut [u8]) {
        let mut next = 0;
        move |bytes| {
            for byte in bytes {
                next += 1;
                *byte = next;
            }
        }
    }

    #[test]
    fn a_password_matches_only_its_own_hash() {
        let mut entropy = counting();
        let [one, two] = [b"secret", b"secret"].map(|password| PasswordHash::of(password, &mut entropy));
        assert!(one != two, "each has its salt");
        for hash in [one, two] {
            assert!(hash.fits(b"secret") && !hash.fits(b"Secret") && !hash.fits(b""));
        }
        assert!(!PasswordHash::NoPassword.fits(b""));
        assert!(GUEST.fits(b"guest") && !GUEST.fits(b"Guest"));
    }

    /// "test12" from RabbitMQ's documentation of its hashes, and a hash by `rabbit_password:hash/2`.
    #[test]
    fn hashes_of_rabbitmq_can_be_imported() {
        let hash = PasswordHash::import(
            "rabbit_password_hashing_sha256",
            "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR",
        );
        assert!(hash.is_ok_and(|hash| hash.fits(b"test12") && !hash.fits(b"test13")));
        let salted = [&[1, 2, 3, 4][..], b"pw"].concat();
        let digest = digest::digest(&digest::SHA512, &salted);
        let text = BASE64.encode([&[1, 2, 3, 4][..], digest.as_ref()].concat());
        let hash = PasswordHash::import("rabbit_password_hashing_sha512", &text).unwrap();
        assert!(hash.fits(b"pw") && !hash.fits(b"pW"));
        assert_eq!(hash.export(), ("rabbit_password_hashing_sha512", text));
    }

    #[test]
    fn stored_and_exported_hashes_read_back() {
        let own = PasswordHash::of(b"x", &mut counting());
        let rabbit = PasswordHash::RabbitSha256 { salt: [1; 4], digest: [2; 32] };
        let rabbit_long = PasswordHash::RabbitSha512 { salt: [1; 4], digest: [2; 64] };
        for hash in [own, rabbit, rabbit_long, PasswordHash::NoPassword] {
            let bytes = hash.to_bytes();
            assert!(PasswordHash::from_bytes(&bytes) == Some(hash));
            assert!((0..bytes.len()).all(|len| PasswordHash::from_bytes(&bytes[..len]).is_none()));
            let (algorithm, text) = hash.export();
            assert!(PasswordHash::import(algorithm, &text) == Ok(hash));
        }
    }

    #[test]
    fn invalid_hashes_are_refused() {
        assert!(PasswordHash::import("rabbit_password_hashing_md5", "AAAA") == Err(InvalidHash::Unknown));
        for text in ["!", "AAAA", "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2PO"] {
            for (algorithm, _) in ALGORITHMS {
                assert!(PasswordHash::import(algorithm, text) == Err(InvalidHash::Malformed), "{text}");
            }
        }
        let too_many_iterations = [&[0xff; 4][..], &[0; 48]].concat();
        let refused = PasswordHash::import(ALGORITHMS[0].0, &BASE64.encode(too_many_iterations));
        assert!(refused == Err(InvalidHash::Malformed));
    }

    #[test]
    fn secrets_are_not_shown() {
        let hash = PasswordHash::RabbitSha256 { salt: [65; 4], digest: [65; 32] };
        let check = PasswordCheck::new(Name::try_from("u").unwrap(), b"hunter2", hash, true);
        let shown = format!("{hash:?} {check:?} {:?}", Secret(b"hunter2"));
        assert!(!shown.contains("hunter2") && !shown.contains("65"), "{shown}");
    }

    #[test]
    fn an_empty_or_too_long_password_is_always_wrong() {
        let empty = PasswordHash::of(b"", &mut counting());
        let user = Name::try_from("u").unwrap();
        assert!(!PasswordCheck::new(user.clone(), b"", empty, true).is_correct());
        let long = [b'x'; PASSWORD_BYTES_MAX + 1];
        let hash = PasswordHash::of(&long, &mut counting());
        assert!(!PasswordCheck::new(user, &long, hash, true).is_correct());
    }
}
