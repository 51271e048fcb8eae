//! What the operator said, made into one [`Config`].
//!
//! Four layers, each over the one before: built-in defaults, the board's profile, the configuration file, the
//! flags. Profile and file are the same TOML; `boards/generic.toml` names every key with its unit, range and
//! default, and a test holds it to that.
//!
//! Always true: a key that is not known, or a value that does not fit its key, is refused with the file, the
//! line and what to write instead. Nothing is guessed, nothing is cut to fit.

pub mod board;
pub mod doors;
pub mod nearest;
pub mod units;

use std::error::Error;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::limits::{Limits, LimitsError, MemoryTable, RecordSizes};
use board::{AUTO, BOARDS, Machine};
use doors::{FileMode, Tls, TlsAddress, TlsLayer, UnixDoor, non_empty, quoted};
use nearest::nearest;
use units::{
    Bytes, Compat, Count, DiskLimit, Label, ListenAddress, LogLevel, Millis, Persist, Seconds, Switch,
};

/// The port registered for AMQP.
pub const AMQP_PORT: u16 = 5672;

/// The board profile that is taken when none is named.
const BOARD_DEFAULT: &str = BOARDS[0].name;

/// The version of RabbitMQ that `compat = "rabbitmq"` announces: the last whose semantics Leveret follows.
const RABBITMQ_VERSION: &str = "3.13.7";

/// More than any configuration file has; it keeps `--config /dev/zero` from eating the memory.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Everything the operator decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The board profile it started from: a name, or the path of a file.
    pub board: String,
    /// What the profile was chosen by, when that was left to us.
    pub board_why: Option<String>,
    /// Addresses to listen on, in the order given.
    pub listen: Vec<ListenAddress>,
    /// Addresses to listen on with TLS.
    pub listen_tls: Vec<TlsAddress>,
    /// Where programs of this machine come in besides.
    pub unix: UnixDoor,
    /// How TLS is spoken.
    pub tls: Tls,
    /// Where everything that outlives the process is kept.
    pub data_dir: PathBuf,
    /// A file of definitions, as RabbitMQ exports them, that are made at every start.
    pub load_definitions: Option<PathBuf>,
    /// How it is kept there.
    pub store: Store,
    /// Resident memory of the process, in bytes, that the limits must add up to at most.
    pub memory_limit_bytes: u64,
    /// All memory is touched and locked at the start.
    pub memory_lock: bool,
    /// How much is logged.
    pub log_level: log::LevelFilter,
    /// Users that can connect from this machine itself only.
    pub loopback_users: Vec<String>,
    /// Product and version announced to clients.
    pub product: Product,
    /// Every cap.
    pub limits: Limits,
    /// Where all of this was said, to look there again.
    pub origin: Origin,
}

/// What a configuration was made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The file named on the command line.
    pub file: Option<PathBuf>,
    /// The flags.
    pub flags: Layer,
}

/// How what outlives the process is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Store {
    /// The most that the segments of the log take on the disk, in bytes; `None`: half of what was free.
    pub disk_limit_bytes: Option<u64>,
    /// Every message to a durable queue is persistent, whatever its delivery_mode.
    pub persist_all: bool,
    /// Transient messages may be written to the log when memory is short; a restart loses them all the same.
    pub spill_transient: bool,
    /// How long persistent messages that nobody awaits may gather before they are synced, in milliseconds:
    /// so much a power cut may take.
    pub commit_window_ms: u32,
    /// How long awaited ones gather once the sync budget is used up, in milliseconds.
    pub confirm_window_ms: u32,
    /// How long acknowledgements alone may gather, in milliseconds: after a power cut their messages come
    /// again.
    pub settle_window_ms: u32,
    /// Syncs a second that the card may do for ever; 0 is without limit.
    pub syncs_per_s: u32,
    /// Syncs that may be done at once after a rest.
    pub sync_burst: u32,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            disk_limit_bytes: None,
            persist_all: false,
            spill_transient: false,
            commit_window_ms: 1_000,
            confirm_window_ms: 50,
            settle_window_ms: 5_000,
            syncs_per_s: 0,
            sync_burst: 200,
        }
    }
}

/// Who the broker says it is in connection.start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Product {
    /// `product` in the server's properties.
    pub name: String,
    /// `version` in the server's properties.
    pub version: String,
}

impl Config {
    /// The configuration that follows from the file named on the command line and the flags.
    ///
    /// # Errors
    /// What is wrong, where, and what to change, as one sentence.
    pub fn gather(file: Option<&Path>, flags: Layer) -> Result<Self, ConfigError> {
        Self::gather_on(Machine::look, file, flags)
    }

    /// The same on a machine that `look` tells of, when it is asked.
    fn gather_on(
        look: impl FnOnce() -> Machine,
        path: Option<&Path>,
        flags: Layer,
    ) -> Result<Self, ConfigError> {
        let file = path.map(Layer::read).transpose()?.unwrap_or_default();
        let mut board = flags.board.as_deref().or(file.board.as_deref()).unwrap_or(BOARD_DEFAULT);
        let choice = (board == AUTO).then(|| look().choose());
        if let Some(choice) = &choice {
            board = choice.board;
        }
        let profile = Layer::of_board(board)?;
        let origin = Origin { file: path.map(Path::to_path_buf), flags: flags.clone() };
        let mut config = Self { board: board.to_string(), origin, ..Self::default() };
        config.board_why = choice.map(|choice| choice.why);
        let mut announced = Announced::default();
        for layer in [profile, file, flags] {
            layer.lay_over(&mut config, &mut announced);
        }
        config.product = announced.product();
        Ok(config)
    }

    /// Whether the broker would start with it; what it adds up to in memory.
    ///
    /// # Errors
    /// The key to change.
    pub fn check(&self, sizes: &RecordSizes) -> Result<MemoryTable, LimitsError> {
        if let Some(disk_limit) = self.store.disk_limit_bytes {
            self.limits.check_disk(disk_limit)?;
        }
        self.limits.check(sizes, self.memory_limit_bytes)
    }

    /// The configuration that the same file and flags give now.
    ///
    /// # Errors
    /// As for [`Self::gather`].
    pub fn again(&self) -> Result<Self, ConfigError> {
        Self::gather(self.origin.file.as_deref(), self.origin.flags.clone())
    }

    /// Key and value of everything, the way a file would say it.
    pub fn shown(&self) -> String {
        let listen: Vec<String> = self.listen.iter().map(|listen| format!("\"{}\"", listen.socket)).collect();
        let why = self.board_why.as_ref().map_or_else(String::new, |why| format!("  # {AUTO}: {why}"));
        let with_tls: Vec<String> =
            self.listen_tls.iter().map(|listen| format!("\"{}\"", listen.0)).collect();
        let mut lines = vec![
            format!("board = \"{}\"{why}", self.board),
            format!("listen = [{}]", listen.join(", ")),
            format!("listen_tls = [{}]", with_tls.join(", ")),
            format!("listen_unix = {}", quoted(self.unix.path.as_deref().unwrap_or(Path::new("")))),
            format!("listen_unix_mode = {}", self.unix.mode),
            format!("data_dir = \"{}\"", self.data_dir.display()),
            format!("memory_limit = {}", Bytes(self.memory_limit_bytes)),
            format!("memory_lock = {}", self.memory_lock),
            format!("log_level = \"{}\"", self.log_level.as_str().to_lowercase()),
            format!("loopback_users = {:?}", self.loopback_users),
            format!("product = \"{}\"", self.product.name),
            format!("version = \"{}\"", self.product.version),
            format!("heartbeat = {}", Seconds(self.limits.heartbeat_s)),
            format!("frame_max = {}", Bytes(self.limits.frame_max)),
            format!("channel_max = {}", self.limits.channel_max),
        ];
        let file = self.load_definitions.as_ref();
        lines.extend(file.map(|file| format!("load_definitions = \"{}\"", file.display())));
        lines.push("\n[store]".to_string());
        lines.extend(StoreLayer::shown(&self.store));
        lines.push("\n[tls]".to_string());
        lines.extend(TlsLayer::shown(&self.tls));
        lines.push("\n[limits]".to_string());
        lines.extend(LimitsLayer::shown(&self.limits));
        lines.join("\n")
    }
}

impl Default for Config {
    /// The built-in defaults: the loopback addresses, so that nobody outside reaches a broker that was only
    /// tried out. `localhost` is `::1` first on many systems, hence both.
    fn default() -> Self {
        let ipv4 = ListenAddress::required(SocketAddr::from((Ipv4Addr::LOCALHOST, AMQP_PORT)));
        let socket = SocketAddr::from((Ipv6Addr::LOCALHOST, AMQP_PORT));
        Self {
            board: BOARD_DEFAULT.to_string(),
            board_why: None,
            listen: vec![ipv4, ListenAddress { socket, if_available: true }],
            listen_tls: Vec::new(),
            unix: UnixDoor::default(),
            tls: Tls::default(),
            data_dir: data_dir_default(),
            load_definitions: None,
            store: Store::default(),
            memory_limit_bytes: 128_000_000,
            memory_lock: false,
            log_level: log::LevelFilter::Info,
            loopback_users: vec!["guest".to_string()],
            product: Announced::default().product(),
            limits: Limits::default(),
            origin: Origin::default(),
        }
    }
}

/// The folder systemd made for us (`StateDirectory=`), or one beside where the program was started.
fn data_dir_default() -> PathBuf {
    std::env::var_os("STATE_DIRECTORY").map_or_else(|| PathBuf::from("leveret-data"), PathBuf::from)
}

/// What one source says: a profile, a file, or the flags; whatever is `None` stays as it was below.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Layer {
    /// See [`Config::board`].
    pub board: Option<String>,
    /// See [`Config::listen`]; replaces the addresses of the layers below.
    pub listen: Option<Vec<ListenAddress>>,
    /// See [`Config::listen_tls`]; replaces the addresses of the layers below.
    pub listen_tls: Option<Vec<TlsAddress>>,
    /// See [`UnixDoor::path`].
    pub listen_unix: Option<PathBuf>,
    listen_unix_mode: Option<FileMode>,
    /// See [`Config::data_dir`].
    pub data_dir: Option<PathBuf>,
    load_definitions: Option<PathBuf>,
    /// See [`Config::memory_limit_bytes`].
    pub memory_limit: Option<Bytes<u64>>,
    /// See [`Config::memory_lock`].
    pub memory_lock: Option<bool>,
    /// See [`Config::log_level`].
    pub log_level: Option<LogLevel>,
    loopback_users: Option<Vec<String>>,
    compat: Option<Compat>,
    product: Option<Label>,
    version: Option<Label>,
    heartbeat: Option<Seconds>,
    frame_max: Option<Bytes<u32>>,
    channel_max: Option<Count<u16>>,
    store: StoreLayer,
    tls: TlsLayer,
    limits: LimitsLayer,
}

/// The keys outside sections, the fields of [`Layer`].
const KEYS: [&str; 17] = [
    "board",
    "listen",
    "listen_tls",
    "listen_unix",
    "listen_unix_mode",
    "data_dir",
    "load_definitions",
    "memory_limit",
    "memory_lock",
    "log_level",
    "loopback_users",
    "compat",
    "product",
    "version",
    "heartbeat",
    "frame_max",
    "channel_max",
];

/// Declares the keys of a section: the key, how it is written, and the field it sets, which says what it
/// means.
macro_rules! section_keys {
    ($layer:ident sets $target:ident; $($key:ident: $unit:ident<$kind:ty> => $field:ident;)*) => {
        #[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        struct $layer {
            $($key: Option<section_keys!(@type $unit $kind)>,)*
        }

        impl $layer {
            const KEYS: &[&str] = &[$(stringify!($key)),*];

            fn lay_over(&self, target: &mut $target) {
                $(if let Some(value) = self.$key {
                    target.$field = value.0;
                })*
            }

            fn shown(target: &$target) -> Vec<String> {
                vec![$(format!("{} = {}", stringify!($key), $unit(target.$field))),*]
            }
        }
    };
    (@type Persist $kind:ty) => { Persist };
    (@type Switch $kind:ty) => { Switch };
    (@type DiskLimit $kind:ty) => { DiskLimit };
    (@type Millis $kind:ty) => { Millis };
    (@type $unit:ident $kind:ty) => { $unit<$kind> };
}

section_keys! {
    LimitsLayer sets Limits;
    connections_max: Count<u32> => connections_max;
    handshakes_max: Count<u32> => handshakes_max;
    tls_connections_max: Count<u32> => tls_connections_max;
    tls_handshakes_max: Count<u32> => tls_handshakes_max;
    channels_max: Count<u32> => channels_max;
    consumers_max: Count<u32> => consumers_max;
    queues_max: Count<u32> => queues_max;
    exchanges_max: Count<u32> => exchanges_max;
    bindings_max: Count<u32> => bindings_max;
    names_bytes_max: Bytes<u32> => names_bytes_max;
    vhosts_max: Count<u32> => vhosts_max;
    users_max: Count<u32> => users_max;
    permissions_max: Count<u32> => permissions_max;
    patterns_bytes_max: Bytes<u32> => patterns_bytes_max;
    messages_max: Count<u32> => messages_max;
    body_bytes_max: Bytes<u64> => body_bytes_max;
    assembly_bytes_max: Bytes<u64> => assembly_bytes_max;
    queue_entries_max: Count<u32> => queue_entries_max;
    unacknowledged_max: Count<u32> => unacknowledged_max;
    message_size_max: Bytes<u32> => message_size_max;
    input_buffer_bytes: Bytes<u32> => input_buffer_bytes;
    output_buffer_bytes: Bytes<u32> => output_buffer_bytes;
    stash_bytes_max: Bytes<u32> => stash_bytes_max;
    replies_bytes_max: Bytes<u32> => replies_bytes_max;
    socket_receive_buffer_bytes: Bytes<u32> => socket_receive_buffer_bytes;
    socket_send_buffer_bytes: Bytes<u32> => socket_send_buffer_bytes;
    handshake_timeout: Millis<u32> => handshake_timeout_ms;
    content_timeout: Millis<u32> => content_timeout_ms;
    consumer_stall_timeout: Millis<u32> => consumer_stall_timeout_ms;
    consumer_timeout: Millis<u32> => consumer_timeout_ms;
    segment_bytes: Bytes<u32> => segment_bytes;
    commit_bytes_max: Bytes<u32> => commit_bytes_max;
    index_bytes_max: Bytes<u32> => index_bytes_max;
}

section_keys! {
    StoreLayer sets Store;
    disk_limit: DiskLimit<u64> => disk_limit_bytes;
    persist: Persist<bool> => persist_all;
    spill_transient: Switch<bool> => spill_transient;
    commit_window: Millis<u32> => commit_window_ms;
    confirm_window: Millis<u32> => confirm_window_ms;
    settle_window: Millis<u32> => settle_window_ms;
    syncs_per_second: Count<u32> => syncs_per_s;
    sync_burst: Count<u32> => sync_burst;
}

/// What the layers say about product and version: an explicit one goes before `compat`, whichever came last.
#[derive(Default)]
struct Announced {
    compat: Option<Compat>,
    product: Option<Label>,
    version: Option<Label>,
}

impl Announced {
    fn product(self) -> Product {
        let (name, version) = match self.compat {
            Some(Compat::RabbitMq) => ("RabbitMQ", RABBITMQ_VERSION),
            Some(Compat::None) | None => ("Leveret", env!("CARGO_PKG_VERSION")),
        };
        Product {
            name: self.product.map_or_else(|| name.to_string(), |label| label.0),
            version: self.version.map_or_else(|| version.to_string(), |label| label.0),
        }
    }
}

impl Layer {
    /// Reads a configuration file.
    fn read(file: &Path) -> Result<Self, ConfigError> {
        let unreadable = |why| ConfigError::Unreadable { file: file.to_path_buf(), why };
        let mut text = String::new();
        let opened = File::open(file).map_err(unreadable)?;
        opened.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(unreadable(io::Error::other("it is larger than any configuration")));
        }
        Self::parse(&file.display().to_string(), &text)
    }

    /// The profile of a board: one of those built in, or a file when the name is a path.
    fn of_board(name: &str) -> Result<Self, ConfigError> {
        let profile = match BOARDS.iter().find(|board| board.name == name) {
            Some(board) => Self::parse(&format!("boards/{name}.toml"), board.text)?,
            None if name.contains('/') || name.ends_with(".toml") => Self::read(Path::new(name))?,
            None => return Err(ConfigError::UnknownBoard(name.to_string())),
        };
        match profile.board {
            Some(_) => Err(ConfigError::BoardInBoard(name.to_string())),
            None => Ok(profile),
        }
    }

    fn parse(file: &str, text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
            let why = match unknown_key(error.message()) {
                Some((key, known)) => describe_unknown_key(key, &known),
                None => format!("{}{}", key_before(text, at), plain_words(error.message())),
            };
            ConfigError::Refused { file: file.to_string(), line, why }
        })
    }

    fn lay_over(self, config: &mut Config, announced: &mut Announced) {
        put(&mut config.listen, self.listen);
        put(&mut config.listen_tls, self.listen_tls);
        put(&mut config.unix.path, self.listen_unix.map(non_empty));
        put(&mut config.unix.mode, self.listen_unix_mode);
        put(&mut config.data_dir, self.data_dir);
        put(&mut config.load_definitions, self.load_definitions.map(non_empty));
        put(&mut config.memory_limit_bytes, self.memory_limit.map(|bytes| bytes.0));
        put(&mut config.memory_lock, self.memory_lock);
        put(&mut config.log_level, self.log_level.map(|level| level.0));
        put(&mut config.loopback_users, self.loopback_users);
        announced.compat = self.compat.or(announced.compat);
        announced.product = self.product.or(announced.product.take());
        announced.version = self.version.or(announced.version.take());
        put(&mut config.limits.heartbeat_s, self.heartbeat.map(|time| time.0));
        put(&mut config.limits.frame_max, self.frame_max.map(|bytes| bytes.0));
        put(&mut config.limits.channel_max, self.channel_max.map(|count| count.0));
        self.store.lay_over(&mut config.store);
        self.tls.lay_over(&mut config.tls);
        self.limits.lay_over(&mut config.limits);
    }
}

fn put<T>(place: &mut T, said: Option<T>) {
    if let Some(value) = said {
        *place = value;
    }
}

/// The key and the known ones in serde's "unknown field `a`, expected one of `b`, `c`".
fn unknown_key(message: &str) -> Option<(&str, Vec<&str>)> {
    let mut quoted = message.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2);
    Some((quoted.next()?, quoted.collect()))
}

/// Why a key is refused: it belongs elsewhere, or does not exist.
fn describe_unknown_key(key: &str, known: &[&str]) -> String {
    let is_top = known.contains(&"limits");
    let sections =
        [("[limits]", LimitsLayer::KEYS), ("[store]", StoreLayer::KEYS), ("[tls]", TlsLayer::KEYS)];
    let home = sections.into_iter().find(|(_, keys)| keys.contains(&key));
    match home {
        Some((section, _)) => format!("{key} belongs under {section}"),
        None if !is_top && KEYS.contains(&key) => {
            format!("{key} belongs at the top of the file, above the sections")
        }
        None => describe_unknown("key", key, known),
    }
}

/// serde's "invalid type: …, expected …" as an operator would say it; other messages as they are.
fn plain_words(message: &str) -> String {
    match message.strip_prefix("invalid type: ").and_then(|rest| rest.split_once(", expected ")) {
        Some((found, wanted)) => {
            let wanted = wanted.replace("a sequence", "a list in square brackets");
            format!("there must be {wanted}, not {}", found.replace("sequence", "a list"))
        }
        None => message.to_string(),
    }
}

/// The key whose value starts at `at`, with a colon: `memory_limit: `.
fn key_before(text: &str, at: usize) -> String {
    let line = &text[text[..at].rfind('\n').map_or(0, |end| end + 1)..at];
    line.split_once('=').map_or_else(String::new, |(key, _)| format!("{}: ", key.trim()))
}

/// Why a word is refused: the one it was probably meant to be, or all there are.
pub fn describe_unknown(what: &str, said: &str, known: &[&str]) -> String {
    match nearest(said, known.iter().copied()) {
        Some(word) => format!("unknown {what} {said}; did you mean {word}?"),
        None => format!("unknown {what} {said}; there are {}", known.join(", ")),
    }
}

/// Why there is no configuration.
#[derive(Debug)]
pub enum ConfigError {
    /// The file cannot be read.
    Unreadable {
        /// The file as it was named.
        file: PathBuf,
        /// What the system says.
        why: io::Error,
    },
    /// The file says something that cannot be.
    Refused {
        /// The file as it was named.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// No profile has this name.
    UnknownBoard(String),
    /// A profile names another profile.
    BoardInBoard(String),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { file, why } => {
                write!(f, "cannot read {}: {why}; name a readable TOML file", file.display())
            }
            Self::Refused { file, line, why } => write!(f, "{file}, line {line}: {why}"),
            Self::UnknownBoard(name) => {
                let mut known = BOARDS.map(|board| board.name).to_vec();
                known.push(AUTO);
                let why = describe_unknown("board", name, &known);
                write!(f, "{why} (or name a file by a path with a slash)")
            }
            Self::BoardInBoard(name) => {
                write!(f, "the profile {name} has the key board itself; take it out, a profile stands alone")
            }
        }
    }
}

impl Error for ConfigError {}

#[cfg(test)]
mod tests;
