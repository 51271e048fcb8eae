//! The start: everything is created, and all memory reserved, before the first connection is accepted.

use core::fmt;
use std::convert::Infallible;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{self, Path, PathBuf};
use std::sync::Arc;

use leveret_broker::{Broker, Context};
use leveret_config::units::ListenAddress;
use leveret_config::{Config, ConfigError};
use leveret_connection::{Identity, MqttSettings};
use leveret_core::limits::{Megabytes, MemoryTable};
use leveret_core::mem::Memory;
use leveret_core::version::build_version;
use leveret_management::definitions::{
    At, Findings, Item, Parsed, apply, hash_password, parse, read, unknown_field,
};
use leveret_management::request::{Endurance, Machine, Process, StoreView};
use leveret_server::{BridgeSizes, CertificateState, Engine, EngineSetup};
use leveret_storage::OpenError;
use leveret_tls::{CertificateStore, TlsError};
use mio::{Poll, Waker};
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::event_loop::EventLoop;
use super::helpers::{LOOKUP_STACK_BYTES, Resolver};
use super::listen::{self, Listener, ListenerAddress, Passed};
use super::system::entropy;
use super::system::{
    HANGUP, HELPERS, ListeningSockets, SIGNAL, System, client_token, management_token, shown,
};
use super::systemd;
use super::{disk, helpers, signals, sizes, system};

impl EventLoop {
    /// Starts the broker: reserves all memory, opens the store, and listens.
    ///
    /// # Errors
    /// Why the broker cannot start.
    pub fn open(config: &Config) -> Result<Self, StartError> {
        disable_core_dumps();
        let mut config = config.clone();
        let table = derive_limits(&mut config)?;
        let mut limits = config.limits.clone();
        let waiting_sockets_max;
        (limits.connections_max, waiting_sockets_max) = signals::connections(&config)?;
        let mut poll = Poll::new().map_err(|error| StartError::System("create an epoll instance", error))?;
        let signals = signals::open(&mut poll, SIGNAL, &[SIGTERM, SIGINT])?;
        let hangups = signals::open(&mut poll, HANGUP, &[SIGHUP])?;
        let certificates = config.serves_tls().then(|| open_certificates(&config)).transpose()?;
        let mut passed = Passed::take_from_systemd()?;
        let listeners = listen::open_listeners(&mut poll, &config, client_token, &mut passed)?;
        let management = listen::open_management(&poll, &config, management_token, &mut passed)?;
        passed.check_none_left()?;
        log_limits(&config, &table);
        let memory = Memory::with_bytes(table.shared_bytes());
        let mut broker =
            Broker::in_memory(&limits, &memory, Box::new(entropy)).map_err(StartError::TooSmall)?;
        let sizes = sizes::record_sizes(&config);
        broker.add_connection_bytes(limits.connection_bytes(&sizes));
        broker.access_mut().set_loopback_users(&config.loopback_users);
        let no_thread = |error| StartError::System("start a thread", error);
        let waker = Arc::new(Waker::new(poll.registry(), HELPERS).map_err(no_thread)?);
        let (amqp, mqtt) = listeners.split_at(listen::amqp_count(&listeners));
        let setup = EngineSetup {
            limits: limits.clone(),
            identity: identity(&config),
            waiting_sockets_max,
            listeners: amqp.iter().map(|listener| listener.with_tls).collect(),
            mqtt_listeners: mqtt.iter().map(|listener| listener.with_tls).collect(),
            mqtt: mqtt_settings(&config),
            tls_session_bytes: sizes.tls_session_bytes,
            has_shovels: config.shovels,
            bridge_sizes: BridgeSizes {
                lookup_bytes: LOOKUP_STACK_BYTES,
                tls_link_bytes: leveret_tls::LINK_BYTES,
            },
            certificates: CertificateState::of(certificates.as_ref()),
            management_listeners: management.iter().map(|listener| listener.with_tls).collect(),
            metrics_listeners: config.metrics.len(),
            process: Process {
                memory: table.lines.iter().map(|line| (line.key, line.bytes())).collect(),
                ..process(&config, &listeners, &management)
            },
            own_uid: rustix::process::geteuid().as_raw(),
        };
        let is_tls_unavailable = setup.certificates.is_unavailable;
        let worker = helpers::start(waker.clone(), certificates, &config.data_dir).map_err(no_thread)?;
        let mut system =
            System::new(poll, ListeningSockets { listeners, management }, worker, &config, limits);
        system.is_tls_unavailable = is_tls_unavailable;
        system.resolver = Some(Resolver::new(waker.clone(), config.limits.bridge_links()));
        let mut started = Self::new(Engine::new(setup, broker, system), config, signals, hangups);
        started.begin(waker)?;
        Ok(started)
    }

    fn begin(&mut self, waker: Arc<Waker>) -> Result<(), StartError> {
        let Self { engine, config, .. } = self;
        // The store is opened after everything else was allocated. Recovery allocates memory temporarily, and
        // the allocator can return this memory to the system only if nothing is allocated after it.
        let (broker, context) = engine.broker_mut();
        if let Some((store, threads)) = disk::open(config, broker, context, waker)? {
            engine.platform_mut().disk = Some(threads);
            let (id, epoch) = (store.log().id(), store.log().epoch());
            engine.set_origin(id, epoch);
            engine.set_store(store);
        }
        let (broker, context) = engine.broker_mut();
        if let Some(file) = &config.load_definitions
            && let Err(why) = load(file, broker, context)
        {
            log::error!("{why}");
            engine.set_definitions_unreadable();
        }
        let is_beyond_loopback = |listener: &Listener| match &listener.address {
            ListenerAddress::Network(address) => !address.ip().is_loopback(),
            ListenerAddress::Interface(_) => true,
            ListenerAddress::Local(_) => false,
        };
        engine.broker().access().warn_of_guest(engine.platform().listeners.iter().any(is_beyond_loopback));
        engine.set_bridges(&config.bridges);
        if engine.has_bridges() {
            engine.restore_bridge_state(&system::read(&config.data_dir));
        }
        if engine.platform_mut().open_control_listener() {
            engine.open_control_socket();
        }
        if config.memory_lock {
            lock_memory()?;
        }
        // Listening starts after the control socket is open, so that a script which can connect can also use
        // `leveret ctl`.
        engine.platform_mut().listen()?;
        let management = engine.platform().management.iter().enumerate();
        for (place, listener) in management.filter(|(_, listener)| listener.is_listening()) {
            let is_api = is_api(config, place);
            let what = if is_api { "web page and management API" } else { "metrics without a login" };
            let scheme = if listener.with_tls { "https" } else { "http" };
            log::info!("{what} on {scheme}://{}/", listener.address);
            if is_api && config.mqtt_websocket {
                let scheme = if listener.with_tls { "wss" } else { "ws" };
                log::info!("MQTT over WebSocket on {scheme}://{}/mqtt", listener.address);
            }
        }
        // These lines are logged last, because scripts wait for them.
        engine
            .platform()
            .listeners
            .iter()
            .filter(|listener| listener.is_listening())
            .for_each(Listener::log_open);
        Ok(())
    }
}

/// Disables core dumps, because memory contains messages and passwords, and the flash card is small.
fn disable_core_dumps() {
    let none = Rlimit { current: Some(0), maximum: getrlimit(Resource::Core).maximum };
    if let Err(error) = setrlimit(Resource::Core, none) {
        log::warn!("the system may write a core dump when the process fails: {error}");
    }
}

/// Derives the limits from the configuration, and logs warnings about them.
fn derive_limits(config: &mut Config) -> Result<MemoryTable, StartError> {
    let table =
        sizes::derive_limits(config).map_err(|error| StartError::Limits(config.locate_error(&error)))?;
    for remark in config.warnings() {
        log::warn!("{remark}");
    }
    Ok(table)
}

fn open_certificates(config: &Config) -> Result<CertificateStore, StartError> {
    let (certificates, trouble) = read_certificates(config)?;
    trouble.iter().for_each(|trouble| log::error!("{trouble}"));
    Ok(certificates)
}

/// Loads the certificates. Also returns a warning if one of their files cannot be used.
///
/// # Errors
/// The configuration of TLS is not valid.
pub(super) fn read_certificates(config: &Config) -> Result<(CertificateStore, Option<String>), StartError> {
    CertificateStore::open_or_unavailable(&config.tls).map_err(StartError::Tls)
}

fn log_limits(config: &Config, table: &MemoryTable) {
    for line in table.shown(config.memory_limit_bytes).lines() {
        log::debug!("{line}");
    }
    log::info!(
        "leveret {} with the profile of board {}{}: {} of memory_limit {} (`leveret check` shows every line)",
        build_version(),
        config.board,
        config.board_why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default(),
        Megabytes(table.bytes()),
        Megabytes(config.memory_limit_bytes)
    );
    log::info!("data in {}", absolute(&config.data_dir));
}

/// Returns whether the listener with this index serves the management API; else it serves metrics.
const fn is_api(config: &Config, place: usize) -> bool {
    place < config.management.len() + config.management_tls.len()
}

/// Returns the name of this node and of its cluster.
fn node_name(config: &Config) -> String {
    match config.node_name.contains('@') {
        true => config.node_name.clone(),
        false => format!("{}@{}", config.node_name, machine_name()),
    }
}

fn machine_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase()
}

fn mqtt_settings(config: &Config) -> MqttSettings {
    MqttSettings {
        anonymous_user: config.mqtt_anonymous_user.clone(),
        vhost: config.mqtt_vhost.clone(),
        content_type: config.mqtt_content_type.clone(),
        sys_interval_ms: u64::from(config.mqtt_sys_interval_s) * 1000,
    }
}

fn process(config: &Config, listeners: &[Listener], management: &[Listener]) -> Process {
    let name = machine_name();
    Process {
        environment: config.to_toml(),
        data_dir: absolute(&config.data_dir),
        configuration: config.origin.file.as_deref().map(absolute).unwrap_or_default(),
        listeners: listeners
            .iter()
            .map(shown)
            .chain(management.iter().enumerate().map(|(at, listener)| match is_api(config, at) {
                true => shown(listener),
                false => format!("http/prometheus {}", listener.address),
            }))
            .collect(),
        hosts: [name.clone(), format!("{name}.local"), "localhost".to_string()]
            .into_iter()
            .chain(config.management_hosts.iter().map(|host| host.to_ascii_lowercase()))
            .collect(),
        mqtt_websocket_origins: config
            .mqtt_websocket
            .then(|| config.mqtt_websocket_origins.iter().map(|origin| origin.0.clone()).collect()),
        machine: Machine::default(),
        node: node_name(config),
        product: (config.product.name.clone(), config.product.version.clone()),
        memory_limit_bytes: config.memory_limit_bytes,
        uptime_ms: 0,
        connections: 0,
        handshakes_evicted: 0,
        dropped_messages: 0,
        refusing_connections: None,
        message_size_max: config.limits.message_size_max,
        connections_opened: 0,
        confirmed: 0,
        has_refused_reads: false,
        certificates_end: None,
        is_tls_unavailable: false,
        has_unread_definitions: false,
        waiting_publishers: 0,
        waiters: leveret_queues::WaitingByKind::new(),
        disk_limit_bytes: config.store.disk_limit_bytes.unwrap_or(0),
        store: StoreView::default(),
        endurance: Endurance {
            bytes: config.store.flash_endurance_bytes,
            years_min: config.store.flash_years_min,
        },
        memory: Vec::new(),
    }
}

/// Returns an absolute path. The file need not exist yet, so the path is not canonicalised.
fn absolute(path: &Path) -> String {
    path::absolute(path).unwrap_or_else(|_| path.to_path_buf()).display().to_string()
}

/// Locks all memory in which the broker stores something, at once or when it does so. The system then never swaps it out.
///
/// Addresses that are only reserved must not become resident: together they are larger than `memory_limit`.
fn lock_memory() -> Result<(), StartError> {
    let all = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    mlockall(all).map_err(|error| StartError::MemoryLock(error.into()))?;
    log::info!("all memory is locked");
    Ok(())
}

fn identity(config: &Config) -> Identity {
    Identity {
        product: config.product.name.clone(),
        version: config.product.version.clone(),
        platform: format!("Rust {}", std::env::consts::ARCH),
        copyright: "Copyright the Leveret authors".to_string(),
        information: "Licensed under MIT or Apache-2.0".to_string(),
        cluster_name: node_name(config),
    }
}

/// Why the broker cannot start. The text is one sentence that says what to change.
#[derive(Debug)]
pub enum StartError {
    /// Listening on the address failed.
    Listen(ListenAddress, io::Error),
    /// The address is configured twice.
    ListenTwice(ListenAddress),
    /// systemd passed a socket that is not in the configuration; its address if it is a TCP socket.
    Passed(Option<SocketAddr>),
    /// Listening on the Unix socket failed.
    ListenLocal(PathBuf, io::Error),
    /// The certificates cannot be used.
    Tls(TlsError),
    /// Listening failed on all addresses.
    NowhereToListen,
    /// The data directory cannot be used: its path, and the text that says what is wrong and what to type.
    Directory(PathBuf, String),
    /// The store was not opened: its path, and the reason.
    Store(PathBuf, OpenError),
    /// The limits do not fit the memory or each other.
    Limits(ConfigError),
    /// A basic function of the system failed: its description, and the error.
    System(&'static str, io::Error),
    /// The system does not allow locking memory.
    MemoryLock(io::Error),
    /// The system allows too few file descriptors.
    Descriptors {
        /// The number that the system allows.
        allowed: u64,
        /// The number that the configuration needs.
        wanted: u64,
    },
    /// The limits are below the broker's minimum.
    TooSmall(leveret_core::error::Fault),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listen(address, error) if error.kind() == io::ErrorKind::AddrInUse => write!(
                f,
                "cannot listen on {address}: another program already does; stop it, or choose another \
                 address with --listen or `listen`"
            ),
            Self::Listen(address, error) if error.kind() == io::ErrorKind::PermissionDenied => write!(
                f,
                "cannot listen on {address}: not permitted; choose a port from 1024 on, or give the program \
                 CAP_NET_BIND_SERVICE"
            ),
            Self::Listen(address, _) if is_link_local(address) && address.zone.is_none() => write!(
                f,
                "cannot listen on {address}: an IPv6 link-local address needs an interface; name it, such as \
                 [fe80::1%eth0]:5672"
            ),
            Self::Listen(address, error) => write!(
                f,
                "cannot listen on {address} ({error}); choose an address of this machine with --listen or \
                 `listen`"
            ),
            Self::ListenTwice(address) => {
                write!(
                    f,
                    "{address} is named twice to listen on; name it once in `listen`, `listen_tls`, `mqtt` or \
                     `mqtt_tls`"
                )
            }
            Self::Passed(address) => write!(
                f,
                "systemd passes a socket for {}, for which the configuration has no listener: name it in \
                 `listen`, `listen_tls`, `mqtt`, `mqtt_tls`, `management`, `management_tls` or `metrics`, or \
                 remove it from leveret.socket",
                address.map_or_else(|| "what is no address".to_string(), |address| address.to_string())
            ),
            Self::ListenLocal(path, error) => write!(
                f,
                "cannot listen on {} ({error}); choose another path with `listen_unix`, in a folder that the \
                 broker may write to",
                path.display()
            ),
            Self::Tls(error) => error.fmt(f),
            Self::NowhereToListen => {
                f.write_str("there is no address to listen on; name one with --listen or `listen`")
            }
            Self::Directory(directory, why) => write!(f, "the data directory {}: {why}", directory.display()),
            Self::Store(directory, error) => write!(f, "{}: {error}", directory.display()),
            Self::Limits(error) => error.fmt(f),
            Self::System(what, error) => write!(f, "cannot {what}: {error}"),
            Self::MemoryLock(error) => write!(
                f,
                "memory_lock = true, but the system does not permit locking the memory ({error}); allow it with \
                 LimitMEMLOCK=infinity in the systemd unit (or `ulimit -l unlimited`, or CAP_IPC_LOCK), or leave \
                 memory_lock out"
            ),
            Self::Descriptors { allowed, wanted } => write!(
                f,
                "the system allows {allowed} file descriptors, too few for a single connection; raise the \
                 limit to {wanted} with LimitNOFILE in the systemd unit, or `ulimit -n`"
            ),
            Self::TooSmall(fault) => write!(f, "the limits are too small: {}", fault.text),
        }
    }
}

fn is_link_local(listen: &ListenAddress) -> bool {
    matches!(listen.socket.ip(), IpAddr::V6(address) if address.is_unicast_link_local())
}

impl core::error::Error for StartError {}

/// Creates all objects that are defined in the file `load_definitions`.
///
/// - If the file cannot be read, or is damaged, nothing is created, an alarm is raised, and the start
///   continues. The definitions are in the store since an earlier start.
/// - Definitions that cannot be created are logged, equal reasons together, and the others are created.
/// - Existing definitions are not written again, so frequent starts do not wear the flash.
/// - The start timeout of systemd is extended meanwhile, because hashing passwords takes long.
///
/// # Errors
/// The file cannot be read to its end. The text has the name of the file and the line with the error.
pub(super) fn load(path: &Path, broker: &mut Broker, mut context: Context<'_>) -> Result<(), String> {
    let (mut made, mut refusals, mut remarks) = (0, Findings::default(), Findings::default());
    let done = for_each_definition(path, |at, object, parsed| {
        let done = parsed.and_then(|parsed| {
            let Parsed { mut item, unknown_fields } = parsed;
            unknown_fields.iter().for_each(|name| remarks.add(at, object, &unknown_field(name)));
            if matches!(item, Item::User(_)) {
                systemd::extend_start_timeout();
            }
            hash_password(broker, &mut item, &mut entropy);
            apply(broker, &mut context, &item).map(|applied| applied.remark(&item))
        });
        match done {
            Ok(remark) => {
                made += 1;
                remark.iter().for_each(|remark| remarks.add(at, object, remark));
            }
            Err(why) => refusals.add(at, object, &why),
        }
    });
    remarks.lines().for_each(|line| log::warn!("{}: {line}", path.display()));
    refusals.lines().for_each(|line| log::error!("{}: {line}", path.display()));
    done?;
    log::info!("{}: {made} definitions were loaded, {} were refused", path.display(), refusals.count());
    Ok(())
}

/// Returns warnings about the file `load_definitions`, without creating anything.
pub(super) fn dry_run_definitions(path: &Path) -> Vec<String> {
    let mut remarks = Findings::default();
    let done = for_each_definition(path, |at, object, parsed| match parsed {
        Ok(parsed) => {
            parsed.unknown_fields.iter().for_each(|name| remarks.add(at, object, &unknown_field(name)));
        }
        Err(why) => remarks.add(at, object, &why),
    });
    remarks.lines().map(|line| format!("{}: {line}", path.display())).chain(done.err()).collect()
}

/// Calls `take` with each definition of the file: its place, its JSON, and what it defines, or why it is invalid.
fn for_each_definition(
    path: &Path,
    mut take: impl FnMut(At, &str, Result<Parsed, String>),
) -> Result<(), String> {
    let unusable = |why: String| {
        let path = path.display();
        format!(
            "load_definitions: {path}: {why}; the store is served without it: correct the file and restart the \
             broker, or name another"
        )
    };
    let found = fs::metadata(path).map_err(|error| unusable(error.to_string()))?;
    if !found.is_file() {
        return Err(unusable("it is not a file".to_string()));
    }
    let mut file = File::open(path).map_err(|error| unusable(cannot_open(path, &error)))?;
    let done = read::<Infallible>(&mut file, |at, thing| {
        let parsed = parse(at.section, thing).map_err(|why| why.to_string());
        take(at, thing, parsed);
        Ok(())
    });
    done.map_err(|error| unusable(error.to_string()))
}

fn cannot_open(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "{error}; permit the broker's user to read it (chgrp {} {1} && chmod g+r {1})",
            rustix::process::getegid().as_raw(),
            path.display()
        ),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leveret_config::Layer;

    #[test]
    fn a_listener_with_tls_needs_the_files_of_tls() {
        for key in ["listen_tls", "mqtt_tls"] {
            let text = format!("{key} = [\"127.0.0.1\"]");
            let config = Config::gather(None, Layer::parse("leveret.toml", &text).unwrap()).unwrap();
            let why = crate::dry_run_start(&config).unwrap_err().to_string();
            assert!(why.contains("[tls]"), "{key}: {why}");
        }
    }

    #[test]
    fn the_cluster_has_one_name_over_amqp_and_over_the_management_api() {
        for (text, begins) in [("", "leveret@"), ("node_name = \"plant@hall\"", "plant@hall")] {
            let config = Config::gather(None, Layer::parse("leveret.toml", text).unwrap()).unwrap();
            let node = process(&config, &[], &[]).node;
            assert_eq!(identity(&config).cluster_name, node);
            assert!(node.starts_with(begins), "{node}");
        }
    }
}
