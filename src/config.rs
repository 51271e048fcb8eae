//! What the operator said, made into one [`Config`].
//!
//! Four layers, each over the one before: built-in defaults, the board's profile, the configuration file, the
//! flags. What neither file nor flags say of the limits then follows from `memory_limit` (`derive.rs`).
//! Profile and file are the same TOML; `boards/generic.toml` names every key with its unit, range and
//! default, and a test holds it to that.
//!
//! Always true: a key that is not known, or a value that does not fit its key, is refused with the file, the
//! line and what to write instead. Nothing is guessed, nothing is cut to fit.

pub mod board;
pub mod bridge;
pub mod derive;
pub mod first_user;
mod layer;
pub mod nearest;
mod read;
pub mod transports;
pub mod units;
pub mod upstream;
mod variables;

use std::error::Error;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::limits::{Limits, LimitsError, Megabytes};
use board::{AUTO, BOARDS, Machine};
use bridge::Bridge;
use derive::{ByHand, Profile};
pub use first_user::FirstUser;
pub use layer::Layer;
use layer::{Announced, StoreLayer};
use nearest::nearest;
use transports::{Tls, TlsAddress, TlsLayer, UnixListener, quoted};
use units::{Bytes, ListenAddress, Seconds};

/// The port registered for AMQP.
pub const AMQP_PORT: u16 = 5672;

/// The memory of the whole process when nothing is said, in bytes.
const MEMORY_LIMIT_BYTES_DEFAULT: u64 = 128_000_000;

/// The board profile that is taken when none is named.
const BOARD_DEFAULT: &str = BOARDS[0].name;

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
    pub unix: UnixListener,
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
    /// The level from which on lines are logged.
    pub log_level: log::LevelFilter,
    /// Users that can connect from this machine itself only.
    pub loopback_users: Vec<String>,
    /// Where messages go to and come from beyond this broker.
    pub bridges: Vec<Bridge>,
    /// Whom a new store begins with.
    pub first_user: FirstUser,
    /// Product and version announced to clients.
    pub product: Product,
    /// Every cap; those that nobody set follow from `memory_limit` once [`Self::fit`] was called.
    pub limits: Limits,
    /// What stands in the profile.
    pub profile: Profile,
    /// What of the limits a person set.
    by_hand: ByHand,
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
    /// Where there is no store, none is begun: the start fails.
    pub require_store: bool,
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
            require_store: false,
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
    /// Whether a bridge speaks TLS with one of its upstreams.
    pub fn has_tls_bridge(&self) -> bool {
        self.bridges.iter().any(Bridge::has_tls)
    }

    /// Links of bridges that may speak TLS at once: none, or all of them.
    pub fn tls_links(&self) -> usize {
        if self.has_tls_bridge() { self.limits.bridge_links() } else { 0 }
    }

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
        let of_file = |name: &str, error| match (path, &error) {
            (Some(path), ConfigError::UnknownBoard(_)) if flags.board.is_none() && name != BOARD_DEFAULT => {
                let line = layer::line_of(path, "board").unwrap_or(1);
                ConfigError::Refused { file: path.display().to_string(), line, why: error.to_string() }
            }
            _ => error,
        };
        let mut board = flags.board.as_deref().or(file.board.as_deref()).unwrap_or(BOARD_DEFAULT);
        let choice = (board == AUTO).then(|| look().choose());
        if let Some(choice) = &choice {
            board = choice.board;
        }
        let profile = Layer::of_board(board).map_err(|error| of_file(board, error))?;
        let origin = Origin { file: path.map(Path::to_path_buf), flags: flags.clone() };
        let mut config = Self { board: board.to_string(), origin, ..Self::default() };
        config.board_why = choice.map(|choice| choice.why);
        let mut announced = Announced::default();
        profile.lay_over(&mut config, &mut announced);
        config.profile =
            Profile { limits: config.limits.clone(), memory_limit_bytes: config.memory_limit_bytes };
        for layer in [file, flags] {
            layer.add_to(&mut config.by_hand);
            layer.lay_over(&mut config, &mut announced);
        }
        config.product = announced.product();
        config.first_user.check().map_err(|why| config.blame_key("default_user", why))?;
        Ok(config)
    }

    /// The configuration that the same file and flags give now.
    ///
    /// # Errors
    /// As for [`Self::gather`].
    pub fn again(&self) -> Result<Self, ConfigError> {
        Self::gather(self.origin.file.as_deref(), self.origin.flags.clone())
    }

    /// A mistake in the limits, with the place of the key that is to be changed, where a file says it.
    pub fn blame(&self, error: &LimitsError) -> ConfigError {
        self.blame_key(error.key(), error.to_string())
    }

    fn blame_key(&self, key: &str, why: String) -> ConfigError {
        let file = self.origin.file.as_deref();
        match file.and_then(|file| Some((file, layer::line_of(file, key)?))) {
            Some((file, line)) => ConfigError::Refused { file: file.display().to_string(), line, why },
            None => ConfigError::Contradiction(why),
        }
    }

    /// What is to be told of the limit on a machine that has less.
    pub fn machine_warning(&self) -> Option<String> {
        let machine = Machine::look();
        let (limit, has) =
            (self.memory_limit_bytes, machine.memory_bytes.into_iter().chain(machine.group_bytes).min()?);
        (limit > has).then(|| {
            format!(
                "memory_limit is {}, but this machine, or the control group, has {} for it: when the pools \
                 fill, the system ends the broker; lower memory_limit",
                Megabytes(limit),
                Megabytes(has)
            )
        })
    }

    /// Key and value of everything, the way a file would say it.
    pub fn shown(&self) -> String {
        let listen: Vec<String> = self.listen.iter().map(|listen| format!("\"{}\"", listen.socket)).collect();
        let why = self.board_why.as_ref().map_or_else(String::new, |why| format!("  # {AUTO}: {why}"));
        let with_tls: Vec<String> =
            self.listen_tls.iter().map(|listen| format!("\"{}\"", listen.0)).collect();
        let (frame_max, limits) = self.shown_limits();
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
            frame_max,
            format!("channel_max = {}", self.limits.channel_max),
        ];
        let file = self.load_definitions.as_ref();
        lines.extend(file.map(|file| format!("load_definitions = \"{}\"", file.display())));
        lines.extend(self.first_user.shown());
        lines.push("\n[store]".to_string());
        lines.extend(StoreLayer::shown(&self.store));
        lines.push("\n[tls]".to_string());
        lines.extend(TlsLayer::shown(&self.tls));
        lines.push("\n[limits]".to_string());
        lines.extend(limits);
        lines.extend(self.bridges.iter().flat_map(Bridge::shown));
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
            unix: UnixListener::default(),
            tls: Tls::default(),
            data_dir: data_dir_default(),
            load_definitions: None,
            store: Store::default(),
            memory_limit_bytes: MEMORY_LIMIT_BYTES_DEFAULT,
            memory_lock: false,
            log_level: log::LevelFilter::Info,
            loopback_users: vec!["guest".to_string()],
            bridges: Vec::new(),
            first_user: FirstUser::default(),
            product: Announced::default().product(),
            limits: Limits::default(),
            profile: Profile::default(),
            by_hand: ByHand::default(),
            origin: Origin::default(),
        }
    }
}

/// The folder systemd made for us (`StateDirectory=`), or one beside where the program was started.
fn data_dir_default() -> PathBuf {
    std::env::var_os("STATE_DIRECTORY").map_or_else(|| PathBuf::from("leveret-data"), PathBuf::from)
}

/// Sets what was said.
fn put<T>(place: &mut T, said: Option<T>) {
    if let Some(value) = said {
        *place = value;
    }
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
    /// Two keys do not go together.
    Contradiction(String),
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
            Self::Contradiction(why) => f.write_str(why),
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
