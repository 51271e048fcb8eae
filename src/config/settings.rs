//! All settings, their defaults, and the keys that a layer can set.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use leveret_core::command::RABBITMQ_VERSION;
use leveret_core::limits::Limits;
use leveret_core::mem::NAME_BYTES_MAX;
use leveret_core::version::build_version;

use super::board::BOARDS;
use super::bridge::{Bridge, Bridges};
use super::file::{ConfigError, ParseError, REMOVED_KEYS, read, read_text_file, section, set_if_some};
use super::first_user::{FirstUser, LoopbackUsers, Secret, UserName};
use super::nearest::describe_unknown;
use super::transports::{
    AMQP_PORT, FileMode, MqttAddress, MqttTlsAddress, Tls, TlsAddress, TlsLayer, UnixListener,
};
use super::units::{
    Bytes, Compat, Count, DiskLimit, FlashEndurance, Label, ListenAddress, LogLevel, Millis, Persist,
    Seconds, Switch, Text, WebOrigin,
};

/// The board profile that is used when none is named.
pub(super) const BOARD_DEFAULT: &str = BOARDS[0].name;

/// The configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The board profile: a name, or the path of a file.
    pub board: String,
    /// Why the profile was chosen; `None` without `board = "auto"`.
    pub board_why: Option<String>,
    /// Addresses to listen on for AMQP, in the configured order.
    pub listen: Vec<ListenAddress>,
    /// Addresses to listen on for AMQP with TLS.
    pub listen_tls: Vec<TlsAddress>,
    /// The Unix socket for AMQP.
    pub unix: UnixListener,
    /// Addresses to listen on for MQTT.
    pub mqtt: Vec<MqttAddress>,
    /// Addresses to listen on for MQTT with TLS.
    pub mqtt_tls: Vec<MqttTlsAddress>,
    /// The user of MQTT clients that send no user name; empty: such clients are refused.
    pub mqtt_anonymous_user: String,
    /// The virtual host of MQTT clients whose user name contains none.
    pub mqtt_vhost: String,
    /// The content type of messages from MQTT clients that set none; empty: such messages have none.
    pub mqtt_content_type: String,
    /// The interval at which `$SYS` topics are sent to MQTT clients, in seconds; 0: they are not offered.
    pub mqtt_sys_interval_s: u16,
    /// Whether the listeners of the management API serve MQTT over WebSocket.
    pub mqtt_websocket: bool,
    /// Origins of web pages that may connect with MQTT over WebSocket, besides the broker's own.
    pub mqtt_websocket_origins: Vec<WebOrigin>,
    /// Addresses to listen on for the management API and its page; empty: it is off. If neither a file nor an address
    /// is named on the command line, they are `127.0.0.1` and `[::1]` with RabbitMQ's port 15672.
    pub management: Vec<ListenAddress>,
    /// Addresses to listen on for the management API with TLS.
    pub management_tls: Vec<ListenAddress>,
    /// Addresses to listen on for metrics without a login.
    pub metrics: Vec<ListenAddress>,
    /// Host names that browsers may use for the management API, besides addresses, `localhost` and the machine's own
    /// name.
    pub management_hosts: Vec<String>,
    /// The node name for management tools. Without an `@` the machine's name is appended.
    pub node_name: String,
    /// The section `[tls]`.
    pub tls: Tls,
    /// The folder for the store and all other files of the broker.
    pub data_dir: PathBuf,
    /// A file with definitions in RabbitMQ's format that are created at every start.
    pub load_definitions: Option<PathBuf>,
    /// The section `[store]`.
    pub store: Store,
    /// Maximum resident memory of the process in bytes; the limits must fit into it.
    pub memory_limit_bytes: u64,
    /// Whether all memory is touched and locked at start.
    pub memory_lock: bool,
    /// The minimum level of log lines.
    pub log_level: log::LevelFilter,
    /// The file of the flight recorder, usually in a RAM file system: it contains the last events when the process has
    /// ended.
    pub flight_recorder: Option<PathBuf>,
    /// Users that can connect only from this machine.
    pub loopback_users: Vec<String>,
    /// Bridges to other brokers.
    pub bridges: Vec<Bridge>,
    /// Whether users with the tag `policymaker` may define shovels, which connect to other hosts.
    pub shovels: bool,
    /// The first user of a new store.
    pub first_user: FirstUser,
    /// Product name and version that clients see.
    pub product: Product,
    /// All limits. [`Self::derive_limits`] derives them from `memory_limit`, except those that were set.
    pub limits: Limits,
    /// The limits that the profile sets.
    pub profile: Profile,
    /// The limits that the file or the flags set.
    pub(super) explicit_limits: ExplicitLimits,
    /// A warning for each key of an older version in the file, or in a profile that is a file.
    pub(super) old_keys: Vec<String>,
    /// The file and flags from which the configuration was loaded.
    pub origin: Origin,
}

/// The sources of a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The configuration file named on the command line.
    pub file: Option<PathBuf>,
    /// The other command-line flags.
    pub flags: Layer,
}

impl Default for Config {
    /// Returns the built-in defaults. They listen only on loopback addresses, so that a broker that somebody tries out is
    /// not reachable from outside. There are two addresses, because many clients try `::1` first for `localhost`.
    fn default() -> Self {
        let [ipv4, ipv6] = optional_loopback(AMQP_PORT);
        Self {
            board: BOARD_DEFAULT.to_string(),
            board_why: None,
            listen: vec![ListenAddress { if_available: false, ..ipv4 }, ipv6],
            listen_tls: Vec::new(),
            unix: UnixListener::default(),
            mqtt: Vec::new(),
            mqtt_tls: Vec::new(),
            mqtt_anonymous_user: String::new(),
            mqtt_vhost: "/".to_string(),
            mqtt_content_type: String::new(),
            mqtt_sys_interval_s: 0,
            mqtt_websocket: false,
            mqtt_websocket_origins: Vec::new(),
            management: Vec::new(),
            management_tls: Vec::new(),
            metrics: Vec::new(),
            management_hosts: Vec::new(),
            node_name: "leveret".into(),
            tls: Tls::default(),
            data_dir: data_dir_default(),
            load_definitions: None,
            store: Store::default(),
            memory_limit_bytes: MEMORY_LIMIT_BYTES_DEFAULT,
            memory_lock: false,
            log_level: log::LevelFilter::Info,
            flight_recorder: None,
            loopback_users: vec!["guest".to_string()],
            bridges: Vec::new(),
            shovels: true,
            first_user: FirstUser::default(),
            product: ProductKeys::default().product(),
            limits: Limits::default(),
            profile: Profile::default(),
            explicit_limits: ExplicitLimits::default(),
            old_keys: Vec::new(),
            origin: Origin::default(),
        }
    }
}

/// Returns both loopback addresses with this port. The broker starts even if it cannot listen on one of them.
pub(super) fn optional_loopback(port: u16) -> [ListenAddress; 2] {
    [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)].map(|address| ListenAddress {
        if_available: true,
        ..ListenAddress::required(SocketAddr::from((address, port)))
    })
}

/// Returns the folder that systemd has created (`StateDirectory=`), or `leveret-data` in the current folder.
fn data_dir_default() -> PathBuf {
    std::env::var_os("STATE_DIRECTORY").map_or_else(|| PathBuf::from("leveret-data"), PathBuf::from)
}

/// Maximum length of `mqtt_content_type` in bytes.
const CONTENT_TYPE_BYTES_MAX: usize = 128;

/// Maximum size of a configuration file in bytes. Without a limit, `--config` with a huge file would use up the memory.
const FILE_BYTES_MAX: u64 = 1 << 20;

section! {
    /// The keys that one layer sets: a profile, a configuration file, or the flags. A key that is `None` keeps the
    /// value of the layer below.
    pub struct Layer {
        /// See [`Config::board`].
        pub board: String,
        /// See [`Config::listen`]; replaces the addresses of the layers below.
        pub listen: Vec<ListenAddress>,
        /// See [`Config::listen_tls`]; replaces the addresses of the layers below.
        pub listen_tls: Vec<TlsAddress>,
        /// See [`UnixListener::path`](super::transports::UnixListener::path).
        pub listen_unix: PathBuf,
        pub(super) listen_unix_mode: FileMode,
        /// See [`Config::mqtt`]; replaces the addresses of the layers below.
        pub mqtt: Vec<MqttAddress>,
        /// See [`Config::mqtt_tls`]; replaces the addresses of the layers below.
        pub mqtt_tls: Vec<MqttTlsAddress>,
        pub(super) mqtt_anonymous_user: Text<0, NAME_BYTES_MAX>,
        pub(super) mqtt_vhost: Text<1, NAME_BYTES_MAX>,
        pub(super) mqtt_content_type: Text<0, CONTENT_TYPE_BYTES_MAX>,
        pub(super) mqtt_sys_interval: Seconds,
        pub(super) mqtt_websocket: bool,
        pub(super) mqtt_websocket_origins: Vec<WebOrigin>,
        /// See [`Config::management`]; replaces the addresses of the layers below.
        pub management: Vec<ListenAddress>,
        /// See [`Config::management_tls`]; replaces the addresses of the layers below.
        pub management_tls: Vec<ListenAddress>,
        /// See [`Config::metrics`]; replaces the addresses of the layers below.
        pub metrics: Vec<ListenAddress>,
        pub(super) management_hosts: Vec<String>,
        pub(super) node_name: Label,
        /// See [`Config::data_dir`].
        pub data_dir: PathBuf,
        pub(super) load_definitions: PathBuf,
        /// See [`Config::memory_limit_bytes`].
        pub memory_limit: Bytes<u64>,
        /// See [`Config::memory_lock`].
        pub memory_lock: bool,
        /// See [`Config::log_level`].
        pub log_level: LogLevel,
        pub(super) flight_recorder: PathBuf,
        pub(super) loopback_users: LoopbackUsers,
        pub(super) default_user: UserName,
        pub(super) default_pass: Secret,
        pub(super) compat: Compat,
        pub(super) product: Label,
        pub(super) version: Label,
        pub(super) heartbeat: Seconds,
        pub(super) frame_max: Bytes<u32>,
        pub(super) channel_max: Count<u16>,
        pub(super) shovels: bool,
        pub(super) bridge: Bridges,
    }
    sections {
        pub(super) store: StoreLayer,
        pub(super) tls: TlsLayer,
        pub(super) limits: LimitsLayer,
    }
}

/// Operations on the keys that a layer sets in one section.
pub(super) trait SectionKeys {
    /// Returns whether the layer sets `key`.
    fn has(&self, key: &str) -> bool;
    /// Returns the keys of this layer except `key`.
    fn without(&self, key: &str) -> Self;
    /// Overrides this layer with the keys that `later` sets.
    fn take_over(&mut self, later: &Self);
}

/// Declares the keys of a section. Each has a type, and sets a field of the target, whose documentation also explains the
/// key.
macro_rules! section_keys {
    ($layer:ident sets $target:ident; $($key:ident: $unit:ident $(<$kind:ty>)? => $field:ident;)*) => {
        section! {
            /// The keys of this section that a layer sets.
            pub(super) struct $layer {
                $($key: $unit $(<$kind>)?,)*
            }
        }

        impl SectionKeys for $layer {
            fn has(&self, key: &str) -> bool {
                match key {
                    $(stringify!($key) => self.$key.is_some(),)*
                    _ => false,
                }
            }

            fn without(&self, key: &str) -> Self {
                Self { $($key: self.$key.filter(|_| key != stringify!($key)),)* }
            }

            fn take_over(&mut self, later: &Self) {
                $(self.$key = later.$key.or(self.$key);)*
            }
        }

        impl $layer {
            pub(super) fn apply_to(&self, target: &mut $target) {
                $(if let Some(value) = self.$key {
                    target.$field = value.0;
                })*
            }

            pub(super) fn to_toml(target: &$target) -> Vec<String> {
                vec![$(format!("{} = {}", stringify!($key), $unit(target.$field))),*]
            }
        }
    };
}

section_keys! {
    LimitsLayer sets Limits;
    connections_max: Count<u32> => connections_max;
    message_size_max: Bytes<u32> => message_size_max;
    mqtt_session_expiry_max: Millis => mqtt_session_expiry_max_ms;
    mqtt_session_messages_max: Count<u32> => mqtt_session_messages_max;
    socket_receive_buffer_bytes: Bytes<u32> => socket_receive_buffer_bytes;
    socket_send_buffer_bytes: Bytes<u32> => socket_send_buffer_bytes;
    socket_local_buffer_bytes: Bytes<u32> => socket_local_buffer_bytes;
    handshake_timeout: Millis => handshake_timeout_ms;
    content_timeout: Millis => content_timeout_ms;
    consumer_stall_timeout: Millis => consumer_stall_timeout_ms;
    consumer_timeout: Millis => consumer_timeout_ms;
    segment_bytes: Bytes<u32> => segment_bytes;
    commit_bytes_max: Bytes<u32> => commit_bytes_max;
}

section_keys! {
    StoreLayer sets Store;
    disk_limit: DiskLimit => disk_limit_bytes;
    persist: Persist => persist_all;
    require_store: Switch => require_store;
    commit_window: Millis => commit_window_ms;
    confirm_window: Millis => confirm_window_ms;
    settle_window: Millis => settle_window_ms;
    syncs_per_second: Count<u32> => syncs_per_s;
    sync_burst: Count<u32> => sync_burst;
    flash_endurance: FlashEndurance => flash_endurance_bytes;
    flash_years_min: Count<u32> => flash_years_min;
}

/// Returns the number of the line that sets a key in a configuration file, from 1; `None` if no line does, or the file
/// cannot be read.
pub(super) fn line_of(file: &Path, key: &str) -> Option<usize> {
    let text = read_text(file).ok()?;
    let sets_key = |line: &str| {
        line.trim_start().strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with('='))
    };
    text.lines().position(sets_key).map(|at| at + 1)
}

fn read_text(file: &Path) -> Result<String, ConfigError> {
    let unreadable = |why| ConfigError::Unreadable { file: file.to_path_buf(), why };
    let text = read_text_file(file, FILE_BYTES_MAX).map_err(unreadable)?;
    text.ok_or_else(|| unreadable(io::Error::other("the file is larger than 1 MiB")))
}

impl Layer {
    /// Returns whether the layer sets an address to listen on, of any kind.
    pub(super) const fn has_address(&self) -> bool {
        let is_amqp = self.listen.is_some() || self.listen_tls.is_some() || self.listen_unix.is_some();
        let is_mqtt = self.mqtt.is_some() || self.mqtt_tls.is_some();
        let is_http = self.management.is_some() || self.management_tls.is_some() || self.metrics.is_some();
        is_amqp || is_mqtt || is_http
    }

    /// Reads a configuration file. Returns it with a warning for each key of an older version.
    pub(super) fn read(file: &Path) -> Result<(Self, Vec<String>), ConfigError> {
        Self::parse_old(&file.display().to_string(), &read_text(file)?)
    }

    /// Parses the text of a configuration file. `file` is its name for errors.
    ///
    /// # Errors
    /// The text is not TOML, a key is unknown, or a value is invalid.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigError> {
        Self::parse_old(file, text).map(|(layer, _)| layer)
    }

    fn parse_old(file: &str, text: &str) -> Result<(Self, Vec<String>), ConfigError> {
        let mut layer = Self::default();
        let line_at = |at: usize| text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
        match read(text, &mut layer, describe_unknown_key) {
            Ok(removed) => {
                let warning = |(at, key): (usize, &str)| {
                    let instead =
                        REMOVED_KEYS.iter().find(|(old, _)| *old == key).map_or("", |(_, instead)| instead);
                    format!("{file}, line {}: {key} was removed and has no effect: {instead}", line_at(at))
                };
                Ok((layer, removed.into_iter().map(warning).collect()))
            }
            Err(ParseError { at, mut why, earlier_at }) => {
                let line = line_at(at);
                if let Some(earlier_at) = earlier_at {
                    why.push_str(&format!("; the first is in line {}", line_at(earlier_at)));
                }
                Err(ConfigError::Refused { file: file.to_string(), line, why })
            }
        }
    }
}

/// Returns the error for a key that is unknown in its section, whose keys are `known`. The key may belong to another
/// section.
fn describe_unknown_key(key: &str, known: &[&str]) -> String {
    let is_top_level = known.contains(&"limits");
    let sections =
        [("[limits]", LimitsLayer::KEYS), ("[store]", StoreLayer::KEYS), ("[tls]", TlsLayer::KEYS)];
    let right_section = sections.into_iter().find(|(_, keys)| keys.contains(&key));
    match right_section {
        Some((section, _)) => format!("{key} belongs under {section}"),
        None if !is_top_level && Layer::KEYS.contains(&key) => {
            format!("{key} belongs at the top of the file, above the sections")
        }
        None => describe_unknown("key", key, known),
    }
}

/// The section `[store]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Store {
    /// Maximum size of the log on the disk in bytes; `None`: half of what was free.
    pub disk_limit_bytes: Option<u64>,
    /// Whether every message to a durable queue is persistent, whatever its delivery mode.
    pub persist_all: bool,
    /// Whether the broker refuses to start if the data directory contains no store.
    pub require_store: bool,
    /// Maximum time between the arrival and the sync of a persistent message for which no publisher waits, in
    /// milliseconds. A power cut in this time may lose the message.
    pub commit_window_ms: u32,
    /// Maximum time between the arrival and the sync of a message for which a publisher waits, when the budget of syncs
    /// is used up, in milliseconds.
    pub confirm_window_ms: u32,
    /// Maximum time between an acknowledgement and its sync if nothing else has to be synced, in milliseconds. After a
    /// power cut in this time the message is delivered again.
    pub settle_window_ms: u32,
    /// Maximum average number of syncs per second, which the flash card can sustain; 0 means no limit.
    pub syncs_per_s: u32,
    /// Number of syncs that may follow each other without delay after a pause.
    pub sync_burst: u32,
    /// Number of bytes that can be written to the flash card before it is worn out; 0 if unknown.
    pub flash_endurance_bytes: u64,
    /// An alarm is raised when the flash card is expected to last for fewer years than this; 0 means no alarm.
    pub flash_years_min: u32,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            disk_limit_bytes: None,
            persist_all: false,
            require_store: false,
            commit_window_ms: 1_000,
            confirm_window_ms: 50,
            settle_window_ms: 5_000,
            syncs_per_s: 0,
            sync_burst: 200,
            flash_endurance_bytes: 0,
            flash_years_min: 2,
        }
    }
}

/// Default of `memory_limit` in bytes.
pub(super) const MEMORY_LIMIT_BYTES_DEFAULT: u64 = 128_000_000;

/// The limits that a profile sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    pub(super) limits: ExplicitLimits,
    /// The `memory_limit` of the profile in bytes.
    pub memory_limit_bytes: u64,
}

impl Default for Profile {
    fn default() -> Self {
        Self { limits: ExplicitLimits::default(), memory_limit_bytes: MEMORY_LIMIT_BYTES_DEFAULT }
    }
}

/// The limits that a profile sets, or the file and the flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ExplicitLimits {
    limits: LimitsLayer,
    pub(super) frame_max: Option<u32>,
}

/// The only limit that is a key outside of the section `[limits]`.
pub(super) const FRAME_MAX: &str = "frame_max";
impl ExplicitLimits {
    /// Adds the limits that a layer sets; they override earlier ones.
    pub(super) fn add(&mut self, layer: &Layer) {
        self.limits.take_over(&layer.limits);
        self.frame_max = layer.frame_max.map(|bytes| bytes.0).or(self.frame_max);
    }

    pub(super) fn apply_to(&self, limits: &mut Limits) {
        self.limits.apply_to(limits);
        set_if_some(&mut limits.frame_max, self.frame_max);
    }

    pub(super) fn has(&self, key: &str) -> bool {
        if key == FRAME_MAX { self.frame_max.is_some() } else { self.limits.has(key) }
    }

    pub(super) fn without(&self, key: &str) -> Self {
        let frame_max = self.frame_max.filter(|_| key != FRAME_MAX);
        Self { limits: self.limits.without(key), frame_max }
    }
}

/// The product name and the version that clients see in `connection.start`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Product {
    /// `product` in the server's properties.
    pub name: String,
    /// `version` in the server's properties.
    pub version: String,
}

/// The keys that determine the product name and the version that `connection.start` contains. `product` and `version`
/// override `compat`, in whichever layers they are set.
#[derive(Default)]
pub(super) struct ProductKeys {
    pub(super) compat: Option<Compat>,
    pub(super) product: Option<Label>,
    pub(super) version: Option<Label>,
}

impl ProductKeys {
    /// Returns the product name and the version for `connection.start`.
    pub(super) fn product(self) -> Product {
        let (name, version) = match self.compat {
            // The default is RabbitMQ's name, because Celery's client sets its prefetch count correctly only with it.
            Some(Compat::RabbitMq) | None => ("RabbitMQ", RABBITMQ_VERSION),
            Some(Compat::None) => ("Leveret", build_version()),
        };
        Product {
            name: self.product.map_or_else(|| name.to_string(), |label| label.0),
            version: self.version.map_or_else(|| version.to_string(), |label| label.0),
        }
    }
}
