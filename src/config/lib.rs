//! The configuration: four layers make one [`Config`].
//!
//! The layers are built-in defaults, the profile of the board, the configuration file, and command-line flags;
//! later ones override earlier ones. Limits that neither the file nor flags set follow from `memory_limit`
//! (`derive`). Profile and file are the same TOML. `boards/generic.toml` documents every key with its unit, range
//! and default, and a test compares it with the program.
//!
//! | file         | content                                                              |
//! |--------------|----------------------------------------------------------------------|
//! | `settings`   | [`Config`], its layers, and the keys of each section                 |
//! | `file`       | reading TOML: values, sections, variables, errors                    |
//! | `board`      | board profiles, and the choice of `board = "auto"`                   |
//! | `derive`     | limits that follow from `memory_limit`                               |
//! | `units`      | values with units: sizes, times, addresses, log levels               |
//! | `transports` | listeners and TLS                                                    |
//! | `bridge`     | `[[bridge]]`, with on-demand links                                   |
//! | `shovels`    | RabbitMQ's shovel parameters                                         |
//! | `upstream`   | addresses of upstream brokers                                        |
//! | `first_user` | `default_user` and `default_pass`                                    |
//! | `nearest`    | suggestions for mistyped words                                       |
//!
//! # Invariants
//! - An unknown key, or a value that does not fit its key, is refused with the file, the line and what to write
//!   instead. No value is guessed or cut to fit.

#![warn(clippy::unwrap_used)]

pub mod board;
pub mod bridge;
pub mod derive;
mod file;
pub mod first_user;
pub mod nearest;
mod settings;
pub mod shovels;
pub mod transports;
pub mod units;
pub mod upstream;

use std::path::Path;

use board::{AUTO, BOARDS, Machine};
use bridge::Bridge;
pub use file::ConfigError;
use file::{REMOVED_KEYS, put};
pub use first_user::FirstUser;
use leveret_core::limits::{LimitsError, Megabytes};
pub use leveret_json::BYTE_ORDER_MARK;
pub use nearest::describe_unknown;
use settings::Announced;
use settings::BOARD_DEFAULT;
pub use settings::Layer;
pub use settings::Product;
use settings::Profile;
pub use settings::Store;
use settings::StoreLayer;
pub use settings::{Config, Origin};
pub use transports::AMQP_PORT;
use transports::{TlsLayer, non_empty, quoted};
use units::{Bytes, Seconds};

impl Config {
    /// Returns whether a bridge uses TLS with one of its upstreams.
    pub fn has_tls_bridge(&self) -> bool {
        self.has_shovel_room() || self.bridges.iter().any(Bridge::has_tls)
    }

    /// Returns whether more bridges fit than the file has: shovels, which may use TLS.
    pub fn has_shovel_room(&self) -> bool {
        self.by_hand.bridges_max() > self.bridges.len()
    }

    /// Returns the number of bridge links that may use TLS at once: none, or all of them.
    pub fn tls_links_max(&self) -> usize {
        if self.has_tls_bridge() { self.limits.bridge_links() } else { 0 }
    }

    /// Loads the configuration from the file named on the command line and the flags.
    ///
    /// # Errors
    /// One sentence: what is wrong, where, and what to change.
    pub fn gather(file: Option<&Path>, flags: Layer) -> Result<Self, ConfigError> {
        Self::gather_on(Machine::look, file, flags)
    }

    /// Loads the configuration for a machine that `look` describes when it is called.
    fn gather_on(
        look: impl FnOnce() -> Machine,
        path: Option<&Path>,
        flags: Layer,
    ) -> Result<Self, ConfigError> {
        let file = path.map(Layer::read).transpose()?.unwrap_or_default();
        let of_file = |name: &str, error| match (path, &error) {
            (Some(path), ConfigError::UnknownBoard(_)) if flags.board.is_none() && name != BOARD_DEFAULT => {
                let line = settings::line_of(path, "board").unwrap_or(1);
                ConfigError::Refused { file: path.display().to_string(), line, why: error.to_string() }
            }
            _ => error,
        };
        let mut board = flags.board.as_deref().or(file.board.as_deref()).unwrap_or(BOARD_DEFAULT);
        let memory_limit = flags.memory_limit.or(file.memory_limit).map(|limit| limit.0);
        let choice = (board == AUTO).then(|| look().choose(memory_limit));
        if let Some(choice) = &choice {
            board = choice.board;
        }
        let profile = board::profile(board).map_err(|error| of_file(board, error))?;
        let origin = Origin { file: path.map(Path::to_path_buf), flags: flags.clone() };
        let mut config = Self { board: board.to_string(), origin, ..Self::default() };
        config.board_why = choice.map(|choice| choice.why);
        let mut announced = Announced::default();
        lay_over(&mut config, profile, &mut announced);
        config.profile =
            Profile { limits: config.limits.clone(), memory_limit_bytes: config.memory_limit_bytes };
        for layer in [file, flags] {
            config.by_hand.add(&layer);
            lay_over(&mut config, layer, &mut announced);
        }
        config.product = announced.product();
        config.first_user.check().map_err(|why| config.blame_key("default_user", why))?;
        Ok(config)
    }

    /// Loads the configuration again from the same file and flags.
    ///
    /// # Errors
    /// As for [`Self::gather`].
    pub fn again(&self) -> Result<Self, ConfigError> {
        Self::gather(self.origin.file.as_deref(), self.origin.flags.clone())
    }

    /// Converts an error in the limits, and adds the line of the key that has to be changed if a file sets it.
    pub fn blame(&self, error: &LimitsError) -> ConfigError {
        self.blame_key(error.key(), error.to_string())
    }

    fn blame_key(&self, key: &str, why: String) -> ConfigError {
        let file = self.origin.file.as_deref();
        match file.and_then(|file| Some((file, settings::line_of(file, key)?))) {
            Some((file, line)) => ConfigError::Refused { file: file.display().to_string(), line, why },
            None => ConfigError::Contradiction(why),
        }
    }

    /// Returns warnings that do not prevent a start.
    pub fn warnings(&self) -> impl Iterator<Item = String> {
        let machine = Machine::look();
        let of_machine = self.machine_warning(&machine).into_iter().chain(self.board_warning(&machine));
        of_machine.chain(self.management_warning()).chain(self.removed_warnings())
    }

    /// Returns warnings about keys of the file that this version no longer has.
    fn removed_warnings(&self) -> impl Iterator<Item = String> {
        let file = self.origin.file.as_deref();
        REMOVED_KEYS.iter().filter_map(move |(key, instead)| {
            let file = file?;
            let line = settings::line_of(file, key)?;
            Some(format!("{}, line {line}: {key} was removed and does nothing: {instead}", file.display()))
        })
    }

    /// Returns whether a listener uses TLS, so that `[tls]` must name certificates.
    pub fn serves_tls(&self) -> bool {
        !self.listen_tls.is_empty() || !self.management_tls.is_empty()
    }

    /// Returns whether the management API is served.
    pub fn serves_management(&self) -> bool {
        !self.management.is_empty() || !self.management_tls.is_empty()
    }

    /// Returns a warning if passwords cross a network through the management API without TLS.
    fn management_warning(&self) -> Option<String> {
        let open = self.management.iter().find(|listen| !listen.socket.ip().is_loopback())?;
        Some(format!(
            "management = \"{}\" lets other machines in without TLS: logins and passwords go over the network \
             as they are; use management_tls, or listen on 127.0.0.1 and come in by `ssh -L`",
            open
        ))
    }

    /// Returns a warning if the machine has less memory than the limit.
    fn machine_warning(&self, machine: &Machine) -> Option<String> {
        let (limit, has) =
            (self.memory_limit_bytes, machine.memory_bytes.into_iter().chain(machine.group_bytes).min()?);
        (limit > has).then(|| {
            format!(
                "memory_limit is {}, but this machine, or the control group, has {} for it: when the pools \
                 fill, the system ends the broker; lower memory_limit, or, if it was just raised, have systemd \
                 raise MemoryMax= as well: systemctl daemon-reload",
                Megabytes(limit),
                Megabytes(has)
            )
        })
    }

    /// Returns a warning if the profile is not the one for this board.
    fn board_warning(&self, machine: &Machine) -> Option<String> {
        // A profile of the operator may be for any board.
        let is_built_in = BOARDS.iter().any(|board| board.name == self.board);
        let is_chosen = self.board_why.is_some();
        let choice =
            machine.recognised(Some(self.memory_limit_bytes)).filter(|_| is_built_in && !is_chosen)?;
        (choice.board != self.board).then(|| {
            format!(
                "this board is recognised as {}, but the profile in use is {}, whose limits of memory and of writes \
                 are not made for it: write board = \"auto\", or board = \"{0}\" ({})",
                choice.board, self.board, choice.why
            )
        })
    }

    /// Formats all keys and values as in a file.
    pub fn shown(&self) -> String {
        let listen: Vec<String> = self.listen.iter().map(|listen| format!("\"{listen}\"")).collect();
        let why = self.board_why.as_ref().map_or_else(String::new, |why| format!("  # {AUTO}: {why}"));
        let with_tls: Vec<String> =
            self.listen_tls.iter().map(|listen| format!("\"{}\"", listen.0)).collect();
        let apart = [&self.management, &self.management_tls, &self.metrics];
        let [management, management_tls, metrics] = apart.map(|listeners| {
            let quoted = listeners.iter().map(|listen| format!("\"{listen}\""));
            quoted.collect::<Vec<String>>().join(", ")
        });
        let (frame_max, limits) = self.shown_limits();
        let mut lines = vec![
            format!("board = \"{}\"{why}", self.board),
            format!("listen = [{}]", listen.join(", ")),
            format!("listen_tls = [{}]", with_tls.join(", ")),
            format!("listen_unix = {}", quoted(self.unix.path.as_deref().unwrap_or(Path::new("")))),
            format!("listen_unix_mode = {}", self.unix.mode),
            format!("management = [{management}]"),
            format!("management_tls = [{management_tls}]"),
            format!("metrics = [{metrics}]"),
            format!("management_hosts = {:?}", self.management_hosts),
            format!("node_name = {:?}", self.node_name),
            format!("data_dir = \"{}\"", self.data_dir.display()),
            format!("memory_limit = {}", Bytes(self.memory_limit_bytes)),
            format!("memory_lock = {}", self.memory_lock),
            format!("log_level = \"{}\"", self.log_level.as_str().to_lowercase()),
            format!("flight_recorder = {}", quoted(self.flight_recorder.as_deref().unwrap_or(Path::new("")))),
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

/// Applies a layer over the layers before it.
fn lay_over(config: &mut Config, layer: Layer, announced: &mut Announced) {
    put(&mut config.listen, layer.listen);
    put(&mut config.listen_tls, layer.listen_tls);
    put(&mut config.unix.path, layer.listen_unix.map(non_empty));
    put(&mut config.unix.mode, layer.listen_unix_mode);
    put(&mut config.management, layer.management);
    put(&mut config.management_tls, layer.management_tls);
    put(&mut config.metrics, layer.metrics);
    put(&mut config.management_hosts, layer.management_hosts);
    put(&mut config.node_name, layer.node_name.map(|label| label.0));
    put(&mut config.data_dir, layer.data_dir);
    put(&mut config.load_definitions, layer.load_definitions.map(non_empty));
    put(&mut config.memory_limit_bytes, layer.memory_limit.map(|bytes| bytes.0));
    put(&mut config.memory_lock, layer.memory_lock);
    put(&mut config.log_level, layer.log_level.map(|level| level.0));
    put(&mut config.flight_recorder, layer.flight_recorder.map(non_empty));
    put(&mut config.loopback_users, layer.loopback_users);
    put(&mut config.first_user.name, layer.default_user.map(|user| user.0));
    put(&mut config.first_user.password, layer.default_pass);
    announced.compat = layer.compat.or(announced.compat);
    announced.product = layer.product.or(announced.product.take());
    announced.version = layer.version.or(announced.version.take());
    put(&mut config.limits.heartbeat_s, layer.heartbeat.map(|time| time.0));
    put(&mut config.limits.frame_max, layer.frame_max.map(|bytes| bytes.0));
    put(&mut config.limits.channel_max, layer.channel_max.map(|count| count.0));
    put(&mut config.bridges, layer.bridge.map(|bridges| bridges.0));
    layer.store.lay_over(&mut config.store);
    layer.tls.lay_over(&mut config.tls);
    layer.limits.lay_over(&mut config.limits);
}

#[cfg(test)]
mod tests;
