//! The configuration: four layers are merged into one [`Config`].
//!
//! The layers are the built-in defaults, the profile of the board, the configuration file, and the command-line flags.
//! Each layer overrides the ones before it. Limits that no layer sets follow from `memory_limit` (module `derive`). A profile is a TOML file with the same keys as a configuration
//! file. `boards/generic.toml` documents every key with its unit, range and default. A test compares these with the
//! program.
//!
//! | file         | content                                                              |
//! |--------------|----------------------------------------------------------------------|
//! | `settings`   | [`Config`], its layers, and the keys of each section                 |
//! | `file`       | reading TOML: values, sections, variables, errors                    |
//! | `board`      | board profiles, and the choice of `board = "auto"`                   |
//! | `derive`     | limits that follow from `memory_limit`                               |
//! | `units`      | types of values: sizes, times, listening addresses, log levels       |
//! | `transports` | listeners and TLS                                                    |
//! | `bridge`     | `[[bridge]]`, with on-demand links                                   |
//! | `shovels`    | RabbitMQ's shovel parameters                                         |
//! | `upstream`   | addresses of upstream brokers                                        |
//! | `first_user` | `default_user` and `default_pass`                                    |
//! | `nearest`    | suggestions for mistyped words                                       |
//!
//! # Invariants
//! - An unknown key or an invalid value is an error that contains the file, the line and what to write instead. Keys of
//!   older versions only cause a warning. An invalid value is never replaced by a valid one.

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
use file::set_if_some;
pub use first_user::FirstUser;
use leveret_core::limits::{LimitsError, Megabytes, SOCKET_BUFFER_BYTES_MIN, kernel_socket_bytes};
pub use leveret_json::BYTE_ORDER_MARK;
pub use nearest::describe_unknown;
use settings::BOARD_DEFAULT;
pub use settings::Layer;
pub use settings::Product;
use settings::ProductKeys;
pub use settings::Store;
use settings::StoreLayer;
pub use settings::{Config, Origin};
pub use transports::AMQP_PORT;
use transports::{TlsLayer, non_empty, quoted};
use units::{Bytes, Seconds};

impl Config {
    /// Loads the configuration: `file` is named on the command line, and `flags` are the other command-line flags. The
    /// profile is chosen by the key `board`.
    ///
    /// # Errors
    /// A file cannot be read or is invalid, the profile does not exist, or keys contradict each other.
    pub fn gather(file: Option<&Path>, flags: Layer) -> Result<Self, ConfigError> {
        Self::gather_on(Machine::detect, file, flags)
    }

    /// Loads the configuration. `detect` returns the facts about the machine; it is called only for `board = "auto"`.
    fn gather_on(
        detect: impl FnOnce() -> Machine,
        path: Option<&Path>,
        flags: Layer,
    ) -> Result<Self, ConfigError> {
        let (file, mut old_keys) = path.map(Layer::read).transpose()?.unwrap_or_default();
        let with_line = |name: &str, error| match (path, &error) {
            (Some(path), ConfigError::UnknownBoard(_)) if flags.board.is_none() && name != BOARD_DEFAULT => {
                let line = settings::line_of(path, "board").unwrap_or(1);
                ConfigError::Refused { file: path.display().to_string(), line, why: error.to_string() }
            }
            _ => error,
        };
        let mut board = flags.board.as_deref().or(file.board.as_deref()).unwrap_or(BOARD_DEFAULT);
        let memory_limit = flags.memory_limit.or(file.memory_limit).map(|limit| limit.0);
        let choice = (board == AUTO).then(|| detect().choose(memory_limit));
        if let Some(choice) = &choice {
            board = choice.board;
        }
        let (profile, of_profile) = board::profile(board).map_err(|error| with_line(board, error))?;
        old_keys.extend(of_profile);
        let origin = Origin { file: path.map(Path::to_path_buf), flags: flags.clone() };
        let mut config = Self { board: board.to_string(), origin, old_keys, ..Self::default() };
        config.board_why = choice.map(|choice| choice.why);
        let mut product_keys = ProductKeys::default();
        config.profile.limits.add(&profile);
        apply_layer(&mut config, profile, &mut product_keys);
        config.profile.memory_limit_bytes = config.memory_limit_bytes;
        if path.is_none() && !flags.has_address() {
            config.management = settings::optional_loopback(transports::MANAGEMENT_PORT).into();
        }
        for layer in [file, flags] {
            config.explicit_limits.add(&layer);
            apply_layer(&mut config, layer, &mut product_keys);
        }
        config.product = product_keys.product();
        config.first_user.check().map_err(|why| config.locate_key_error("default_user", why))?;
        if config.mqtt_websocket && !config.serves_management() {
            let why = "mqtt_websocket needs a listener: name one in `management` or `management_tls`";
            return Err(config.locate_key_error("mqtt_websocket", why.to_string()));
        }
        Ok(config)
    }

    /// Loads the configuration again from the same file and flags.
    ///
    /// # Errors
    /// As for [`Self::gather`].
    pub fn again(&self) -> Result<Self, ConfigError> {
        Self::gather(self.origin.file.as_deref(), self.origin.flags.clone())
    }

    /// Converts an error in the limits. If the file sets the key that has to be changed, the result contains its line.
    pub fn locate_error(&self, error: &LimitsError) -> ConfigError {
        self.locate_key_error(error.key(), error.to_string())
    }

    /// Returns the error `why` about `key`, with the key's line if the file sets it.
    fn locate_key_error(&self, key: &str, why: String) -> ConfigError {
        let file = self.origin.file.as_deref();
        match file.and_then(|file| Some((file, settings::line_of(file, key)?))) {
            Some((file, line)) => ConfigError::Refused { file: file.display().to_string(), line, why },
            None => ConfigError::Contradiction(why),
        }
    }

    /// Returns warnings that do not prevent a start.
    pub fn warnings(&self) -> impl Iterator<Item = String> {
        let machine = Machine::detect();
        let of_machine = self.memory_warning(&machine).into_iter().chain(self.board_warning(&machine));
        of_machine
            .chain(self.management_warning())
            .chain(self.sockets_warning())
            .chain(self.old_key_warnings().cloned())
    }

    /// Returns a warning for each key of an older version, in the file or in a profile that is a file.
    pub fn old_key_warnings(&self) -> impl Iterator<Item = &String> {
        self.old_keys.iter()
    }

    /// Returns whether a listener uses TLS, so that `[tls]` must name certificates.
    pub fn serves_tls(&self) -> bool {
        self.serves_clients_with_tls() || !self.management_tls.is_empty()
    }

    /// Returns whether a listener for AMQP or MQTT, over WebSocket too, uses TLS.
    pub fn serves_clients_with_tls(&self) -> bool {
        let has_websocket = self.mqtt_websocket && !self.management_tls.is_empty();
        !self.listen_tls.is_empty() || !self.mqtt_tls.is_empty() || has_websocket
    }

    /// Returns whether MQTT is served, in any way.
    pub fn serves_mqtt(&self) -> bool {
        !self.mqtt.is_empty() || !self.mqtt_tls.is_empty() || self.mqtt_websocket
    }

    /// Returns whether the management API is served.
    pub fn serves_management(&self) -> bool {
        !self.management.is_empty() || !self.management_tls.is_empty()
    }

    /// Returns a warning if the management API is reachable over a network without TLS, which exposes passwords.
    fn management_warning(&self) -> Option<String> {
        let open = self.management.iter().find(|listen| !listen.socket.ip().is_loopback())?;
        Some(format!(
            "management = \"{}\" lets other machines in without TLS: user names and passwords cross the \
             network unencrypted; use management_tls, or listen on 127.0.0.1 and connect by `ssh -L`",
            open
        ))
    }

    /// Returns a warning if the kernel's buffers of all connections may take more memory than `memory_limit`.
    fn sockets_warning(&self) -> Option<String> {
        let limits = &self.limits;
        let is_fixed = limits.socket_receive_buffer_bytes > 0 && limits.socket_send_buffer_bytes > 0;
        let least = u64::from(limits.connections_max) * kernel_socket_bytes([SOCKET_BUFFER_BYTES_MIN; 2]);
        (is_fixed && least > self.memory_limit_bytes).then(|| {
            format!(
                "connections_max is {}: the kernel's buffers of so many sockets take {} or more in addition to memory_limit; \
                 lower connections_max, unless the machine has that memory",
                limits.connections_max,
                Megabytes(least)
            )
        })
    }

    /// Returns a warning if the machine or the control group of the process has less memory than `memory_limit`.
    fn memory_warning(&self, machine: &Machine) -> Option<String> {
        let (limit, available) =
            (self.memory_limit_bytes, machine.memory_bytes.into_iter().chain(machine.group_bytes).min()?);
        (limit > available).then(|| {
            format!(
                "memory_limit is {}, but this machine, or the control group of the broker, has only {}: when the \
                 pools fill, the kernel ends the broker; lower memory_limit. If you have just raised it, run \
                 systemctl daemon-reload, which raises MemoryMax= as well",
                Megabytes(limit),
                Megabytes(available)
            )
        })
    }

    /// Returns a warning if this board is recognised, but the profile in use is built in, is for another board and was
    /// not chosen by `board = "auto"`.
    fn board_warning(&self, machine: &Machine) -> Option<String> {
        // A profile of the operator may be for any board.
        let is_built_in = BOARDS.iter().any(|board| board.name == self.board);
        let is_auto = self.board_why.is_some();
        let choice = machine.recognised(Some(self.memory_limit_bytes)).filter(|_| is_built_in && !is_auto)?;
        (choice.board != self.board).then(|| {
            format!(
                "this board is recognised as {}, but the profile in use is {}, whose limits are made for another \
                 board: write board = \"auto\", or board = \"{0}\" ({})",
                choice.board, self.board, choice.why
            )
        })
    }

    /// Returns the settings in effect as the text of a configuration file, without passwords.
    pub fn to_toml(&self) -> String {
        let listen: Vec<String> = self.listen.iter().map(|listen| format!("\"{listen}\"")).collect();
        let why = self.board_why.as_ref().map_or_else(String::new, |why| format!("  # {AUTO}: {why}"));
        let with_tls: Vec<String> =
            self.listen_tls.iter().map(|listen| format!("\"{}\"", listen.0)).collect();
        let mqtt: Vec<String> = self.mqtt.iter().map(|listen| format!("\"{}\"", listen.0)).collect();
        let mqtt_tls: Vec<String> = self.mqtt_tls.iter().map(|listen| format!("\"{}\"", listen.0)).collect();
        let origins: Vec<String> =
            self.mqtt_websocket_origins.iter().map(|origin| format!("{:?}", origin.0)).collect();
        let http_listeners = [&self.management, &self.management_tls, &self.metrics];
        let [management, management_tls, metrics] = http_listeners.map(|listeners| {
            let quoted = listeners.iter().map(|listen| format!("\"{listen}\""));
            quoted.collect::<Vec<String>>().join(", ")
        });
        let (frame_max, limits) = self.limits_to_toml();
        let mut lines = vec![
            format!("board = \"{}\"{why}", self.board),
            format!("listen = [{}]", listen.join(", ")),
            format!("listen_tls = [{}]", with_tls.join(", ")),
            format!("listen_unix = {}", quoted(self.unix.path.as_deref().unwrap_or(Path::new("")))),
            format!("listen_unix_mode = {}", self.unix.mode),
            format!("mqtt = [{}]", mqtt.join(", ")),
            format!("mqtt_tls = [{}]", mqtt_tls.join(", ")),
            format!("mqtt_anonymous_user = {:?}", self.mqtt_anonymous_user),
            format!("mqtt_vhost = {:?}", self.mqtt_vhost),
            format!("mqtt_content_type = {:?}", self.mqtt_content_type),
            format!("mqtt_sys_interval = {}", Seconds(self.mqtt_sys_interval_s)),
            format!("mqtt_websocket = {}", self.mqtt_websocket),
            format!("mqtt_websocket_origins = [{}]", origins.join(", ")),
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
            format!("shovels = {}", self.shovels),
        ];
        let file = self.load_definitions.as_ref();
        lines.extend(file.map(|file| format!("load_definitions = \"{}\"", file.display())));
        lines.extend(self.first_user.to_toml());
        lines.push("\n[store]".to_string());
        lines.extend(StoreLayer::to_toml(&self.store));
        lines.push("\n[tls]".to_string());
        lines.extend(TlsLayer::to_toml(&self.tls));
        lines.push("\n[limits]".to_string());
        lines.extend(limits);
        lines.extend(self.bridges.iter().flat_map(Bridge::to_toml));
        lines.join("\n")
    }
}

/// Overrides settings by the keys that a layer sets.
fn apply_layer(config: &mut Config, layer: Layer, product_keys: &mut ProductKeys) {
    set_if_some(&mut config.listen, layer.listen);
    set_if_some(&mut config.listen_tls, layer.listen_tls);
    set_if_some(&mut config.unix.path, layer.listen_unix.map(non_empty));
    set_if_some(&mut config.unix.mode, layer.listen_unix_mode);
    set_if_some(&mut config.mqtt, layer.mqtt);
    set_if_some(&mut config.mqtt_tls, layer.mqtt_tls);
    set_if_some(&mut config.mqtt_anonymous_user, layer.mqtt_anonymous_user.map(|user| user.0));
    set_if_some(&mut config.mqtt_vhost, layer.mqtt_vhost.map(|vhost| vhost.0));
    set_if_some(&mut config.mqtt_content_type, layer.mqtt_content_type.map(|content_type| content_type.0));
    set_if_some(&mut config.mqtt_sys_interval_s, layer.mqtt_sys_interval.map(|time| time.0));
    set_if_some(&mut config.mqtt_websocket, layer.mqtt_websocket);
    set_if_some(&mut config.mqtt_websocket_origins, layer.mqtt_websocket_origins);
    set_if_some(&mut config.management, layer.management);
    set_if_some(&mut config.management_tls, layer.management_tls);
    set_if_some(&mut config.metrics, layer.metrics);
    set_if_some(&mut config.management_hosts, layer.management_hosts);
    set_if_some(&mut config.node_name, layer.node_name.map(|label| label.0));
    set_if_some(&mut config.data_dir, layer.data_dir);
    set_if_some(&mut config.load_definitions, layer.load_definitions.map(non_empty));
    set_if_some(&mut config.memory_limit_bytes, layer.memory_limit.map(|bytes| bytes.0));
    set_if_some(&mut config.memory_lock, layer.memory_lock);
    set_if_some(&mut config.log_level, layer.log_level.map(|level| level.0));
    set_if_some(&mut config.flight_recorder, layer.flight_recorder.map(non_empty));
    set_if_some(&mut config.loopback_users, layer.loopback_users.map(|users| users.0));
    set_if_some(&mut config.first_user.name, layer.default_user.map(|user| user.0));
    set_if_some(&mut config.first_user.password, layer.default_pass);
    product_keys.compat = layer.compat.or(product_keys.compat);
    product_keys.product = layer.product.or(product_keys.product.take());
    product_keys.version = layer.version.or(product_keys.version.take());
    set_if_some(&mut config.limits.heartbeat_s, layer.heartbeat.map(|time| time.0));
    set_if_some(&mut config.limits.frame_max, layer.frame_max.map(|bytes| bytes.0));
    set_if_some(&mut config.limits.channel_max, layer.channel_max.map(|count| count.0));
    set_if_some(&mut config.shovels, layer.shovels);
    set_if_some(&mut config.bridges, layer.bridge.map(|bridges| bridges.0));
    layer.store.apply_to(&mut config.store);
    layer.tls.apply_to(&mut config.tls);
    layer.limits.apply_to(&mut config.limits);
}

#[cfg(test)]
mod tests;
