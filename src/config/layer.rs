//! What one source says: a profile, a file, or the flags.
//!
//! Always true: what is not said stays as it is in the layer below; a key in the wrong section is told where
//! it belongs.

use std::io;
use std::path::{Path, PathBuf};

use super::bridge::Bridges;
use super::error::ConfigError;
use super::first_user::{Secret, UserName};
use super::nearest::describe_unknown;
use super::read::{Wrong, read, section};
use super::store::Store;
use super::text_file::read_text_file;
use super::transports::{FileMode, TlsAddress, TlsLayer};
use super::units::{
    Bytes, Compat, Count, DiskLimit, FlashEndurance, Label, ListenAddress, LogLevel, Millis, Persist,
    Seconds, Switch,
};
use leveret_core::limits::Limits;

/// More than any configuration file has; it keeps `--config /dev/zero` from eating the memory.
const FILE_BYTES_MAX: u64 = 1 << 20;

section! {
    /// What one source says: a profile, a file, or the flags; whatever is `None` stays as it was below.
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
        pub(super) loopback_users: Vec<String>,
        pub(super) default_user: UserName,
        pub(super) default_pass: Secret,
        pub(super) compat: Compat,
        pub(super) product: Label,
        pub(super) version: Label,
        pub(super) heartbeat: Seconds,
        pub(super) frame_max: Bytes<u32>,
        pub(super) channel_max: Count<u16>,
        pub(super) bridge: Bridges,
    }
    above {
        pub(super) store: StoreLayer,
        pub(super) tls: TlsLayer,
        pub(super) limits: LimitsLayer,
    }
}

/// What was said of a section, key by key.
pub(super) trait Said {
    /// Whether a key was said.
    fn has(&self, key: &str) -> bool;
    /// This layer without what it says of `key`.
    fn without(&self, key: &str) -> Self;
    /// Takes what `later` says over what is said here.
    fn take_over(&mut self, later: &Self);
}

/// Declares the keys of a section: the key, how it is written, and the field it sets, which says what it
/// means.
macro_rules! section_keys {
    ($layer:ident sets $target:ident; $($key:ident: $unit:ident $(<$kind:ty>)? => $field:ident;)*) => {
        section! {
            /// What is said of these.
            pub(super) struct $layer {
                $($key: $unit $(<$kind>)?,)*
            }
        }

        impl Said for $layer {
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
            pub(super) fn lay_over(&self, target: &mut $target) {
                $(if let Some(value) = self.$key {
                    target.$field = value.0;
                })*
            }

            pub(super) fn shown(target: &$target) -> Vec<String> {
                vec![$(format!("{} = {}", stringify!($key), $unit(target.$field))),*]
            }
        }
    };
}

section_keys! {
    LimitsLayer sets Limits;
    connections_max: Count<u32> => connections_max;
    management_clients_max: Count<u32> => management_clients_max;
    bridges_max: Count<u32> => bridges_max;
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
    policies_max: Count<u32> => policies_max;
    parameters_max: Count<u32> => parameters_max;
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
    unsent_bytes_max: Bytes<u32> => unsent_bytes_max;
    socket_receive_buffer_bytes: Bytes<u32> => socket_receive_buffer_bytes;
    socket_send_buffer_bytes: Bytes<u32> => socket_send_buffer_bytes;
    socket_local_buffer_bytes: Bytes<u32> => socket_local_buffer_bytes;
    socket_local_buffers_max: Count<u32> => socket_local_buffers_max;
    handshake_timeout: Millis => handshake_timeout_ms;
    content_timeout: Millis => content_timeout_ms;
    consumer_stall_timeout: Millis => consumer_stall_timeout_ms;
    consumer_timeout: Millis => consumer_timeout_ms;
    segment_bytes: Bytes<u32> => segment_bytes;
    commit_bytes_max: Bytes<u32> => commit_bytes_max;
    index_bytes_max: Bytes<u32> => index_bytes_max;
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

/// The line of a file, from 1, that says a key, if one does.
pub(super) fn line_of(file: &Path, key: &str) -> Option<usize> {
    let text = read_text(file).ok()?;
    let says = |line: &str| {
        line.trim_start().strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with('='))
    };
    text.lines().position(says).map(|at| at + 1)
}

fn read_text(file: &Path) -> Result<String, ConfigError> {
    let unreadable = |why| ConfigError::Unreadable { file: file.to_path_buf(), why };
    let text = read_text_file(file, FILE_BYTES_MAX).map_err(unreadable)?;
    text.ok_or_else(|| unreadable(io::Error::other("it is larger than any configuration")))
}

impl Layer {
    /// Reads a configuration file.
    pub(super) fn read(file: &Path) -> Result<Self, ConfigError> {
        Self::parse(&file.display().to_string(), &read_text(file)?)
    }

    /// What `text` says, which stands in `file`.
    ///
    /// # Errors
    /// What is wrong, on which line, and what to write instead.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigError> {
        let mut layer = Self::default();
        match read(text, &mut layer, describe_unknown_key) {
            Ok(()) => Ok(layer),
            Err(Wrong { at, mut why, first }) => {
                let line_of =
                    |at: usize| text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
                let line = line_of(at);
                if let Some(first) = first {
                    why.push_str(&format!("; the first is in line {}", line_of(first)));
                }
                Err(ConfigError::Refused { file: file.to_string(), line, why })
            }
        }
    }
}

/// Why a key is refused: it belongs elsewhere, or does not exist.
fn describe_unknown_key(key: &str, known: &[&str]) -> String {
    let is_top = known.contains(&"limits");
    let sections =
        [("[limits]", LimitsLayer::KEYS), ("[store]", StoreLayer::KEYS), ("[tls]", TlsLayer::KEYS)];
    let home = sections.into_iter().find(|(_, keys)| keys.contains(&key));
    match home {
        Some((section, _)) => format!("{key} belongs under {section}"),
        None if !is_top && Layer::KEYS.contains(&key) => {
            format!("{key} belongs at the top of the file, above the sections")
        }
        None => describe_unknown("key", key, known),
    }
}
