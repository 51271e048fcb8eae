//! Everything the operator decides, and what holds where nothing is said.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use super::board::BOARDS;
use super::bridge::Bridge;
use super::by_hand::{ByHand, MEMORY_LIMIT_BYTES_DEFAULT, Profile};
use super::first_user::FirstUser;
use super::layer::Layer;
use super::product::{Announced, Product};
use super::store::Store;
use super::transports::{AMQP_PORT, Tls, TlsAddress, UnixListener};
use super::units::ListenAddress;
use leveret_core::limits::Limits;

/// The board profile that is taken when none is named.
pub(super) const BOARD_DEFAULT: &str = BOARDS[0].name;

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
    /// Addresses to listen on for the management API and its page; empty: it is off.
    pub management: Vec<ListenAddress>,
    /// Addresses to listen on for the same with TLS.
    pub management_tls: Vec<ListenAddress>,
    /// Addresses to listen on for metrics without a login.
    pub metrics: Vec<ListenAddress>,
    /// Names by which browsers may call these, besides addresses, `localhost` and the machine's own name.
    pub management_hosts: Vec<String>,
    /// What this node is called by operators' tools; without an `@` the machine's name is put behind it.
    pub node_name: String,
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
    /// A file in memory that keeps the last events, whatever becomes of the process.
    pub flight_recorder: Option<PathBuf>,
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
    pub(super) by_hand: ByHand,
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

impl Default for Config {
    /// The built-in defaults: the loopback addresses, so that nobody outside reaches a broker that was only
    /// tried out. `localhost` is `::1` first on many systems, hence both.
    fn default() -> Self {
        let ipv4 = ListenAddress::required(SocketAddr::from((Ipv4Addr::LOCALHOST, AMQP_PORT)));
        let socket = SocketAddr::from((Ipv6Addr::LOCALHOST, AMQP_PORT));
        Self {
            board: BOARD_DEFAULT.to_string(),
            board_why: None,
            listen: vec![ipv4, ListenAddress { if_available: true, ..ListenAddress::required(socket) }],
            listen_tls: Vec::new(),
            unix: UnixListener::default(),
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
