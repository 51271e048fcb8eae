//! The columns of each kind of object, and the functions that write their cells.
//!
//! Column names are those of rabbitmqctl and of the management API together. Where the two differ for the same value,
//! both names exist. A request for an unknown column is an error from leveretctl, and is ignored in the management API.

use leveret_amqp::field::Table;
use leveret_broker::{
    AppliedView, ChannelCounters, ChannelView, ConnectionView, ConsumerActivity, ConsumerView, ExchangeView,
    Objects, QueueView, VhostView, objects,
};
use leveret_core::command::{ChannelId, ConnectionId};
use leveret_core::definition::{UNLIMITED, VhostLimits};

use super::json::{Json, Tables};
use super::listing::{Audience, BindingEnds, Viewer};
use super::management::{numbers, texts};
use super::request::{Ends, ReadContext, SocketView};
use super::samples::{Counter, QueueColumn, Ranges, Sampled, counts_of_channel};

/// Writes one cell, and holds what the functions of the columns need for that.
pub struct CellWriter<'p, 'o> {
    /// The response that is being written.
    pub json: Json<'o>,
    /// How field tables are written.
    pub tables: Tables,
    /// The source of data outside the record itself.
    pub context: ReadContext<'p>,
    /// Which histories are written besides rates.
    pub ranges: Ranges,
    /// The user, if it may not see everything.
    pub viewer: Option<&'p Viewer>,
    /// Whether the response is for the command line, which gets some values in other words.
    pub is_ctl: bool,
}

impl CellWriter<'_, '_> {
    /// Writes the pid of a connection; an empty text if there is none.
    pub(super) fn connection(&mut self, connection: Option<ConnectionId>) {
        match connection.and_then(|id| Some((id, self.context.sockets.at(id)?))) {
            Some((id, socket)) => self.json.shown(connection_pid(socket.number, id)),
            None => self.json.text(""),
        }
    }

    fn channel(&mut self, channel: Option<ChannelId>) {
        let found = channel.and_then(|id| self.context.broker.views().channels().at(id.index()));
        match found.and_then(|found| Some((found, self.context.sockets.at(found.connection)?))) {
            Some((found, socket)) => {
                self.json.shown(channel_pid(socket.number, found.connection, found.number));
            }
            None => self.json.text(""),
        }
    }

    /// Writes the owner and the peer of a channel as an object.
    fn channel_details(&mut self, channel: ChannelId) {
        let view = self.context.broker.views().channels().at(channel.index());
        let socket = view.as_ref().and_then(|view| self.context.sockets.at(view.connection));
        self.json.raw(b"{");
        if let (Some(view), None) = (&view, &socket) {
            // A bridge has no connection of a client, but a name.
            texts(&mut self.json, &mut true, &[("user", view.user)]);
        }
        if let Some((view, socket)) = view.zip(socket) {
            let connection = name_of(&socket);
            let mut is_first = true;
            let name = format!("{connection} ({})", view.number);
            texts(
                &mut self.json,
                &mut is_first,
                &[
                    ("name", &name),
                    ("connection_name", &connection),
                    ("user", view.user),
                    ("node", self.context.node),
                ],
            );
            numbers(&mut self.json, &mut is_first, &[("number", view.number.into())]);
            self.peer(&socket, &mut is_first);
        }
        self.json.raw(b"}");
    }

    /// Writes the name that a client has given its connection, or its client id in MQTT; empty without one.
    fn client_name(&mut self, socket: Option<SocketView<'_>>) {
        let properties = socket.map(|socket| socket.client_properties);
        let text = |key| properties.and_then(|table| table.get(key)).and_then(|value| value.as_str());
        self.json.text(text("connection_name").or_else(|| text("client_id")).unwrap_or_default());
    }

    /// Writes the rate of one of the counters of a channel.
    fn channel_rate(&mut self, channel: ChannelId, counter: &str) {
        let Some(view) = self.context.broker.views().channels().at(channel.index()) else {
            return self.json.raw(b"{}");
        };
        let counts = counts_of_channel(&view);
        match counts.iter().position(|(name, _)| *name == counter) {
            Some(column) => {
                let samples = self.context.samples;
                let of = Sampled { place: channel.index(), serial: view.serial };
                let counter = Counter { column, now: counts[column].1.into() };
                samples.of_channel(&mut self.json, of, counter, self.ranges.rates);
            }
            None => self.json.raw(b"{}"),
        }
    }

    /// Writes the peer of a connection as members of an object.
    fn peer(&mut self, socket: &SocketView<'_>, is_first: &mut bool) {
        self.json.name("peer_host", is_first);
        end(socket.ends, false, self);
        numbers(&mut self.json, is_first, &[("peer_port", port(socket.ends, false).into())]);
    }

    /// Writes the list of a queue's consumers that the user may see.
    fn consumers_of(&mut self, queue: &QueueView<'_>) {
        let context = self.context;
        let found = Consumers::objects(context);
        let found = found.filter(|it| (it.vhost, it.queue) == (queue.vhost, queue.name));
        let viewer = self.viewer;
        let seen = found.filter(|it| viewer.is_none_or(|viewer| Consumers::is_seen(viewer, context, it)));
        // Without space for tables the consumers are omitted, too. The list of consumers has all of them.
        let most = if self.tables == Tables::LeftOut { 0 } else { CONSUMERS_SHOWN_MAX };
        let mut is_first = true;
        self.json.raw(b"[");
        for consumer in seen.take(most) {
            self.json.comma(&mut is_first);
            self.json.raw(b"{");
            let mut is_first_cell = true;
            for (name, cell) in Consumers::COLUMNS {
                if *name != TYPED {
                    self.json.name(name, &mut is_first_cell);
                    cell(&consumer, self);
                }
            }
            self.json.raw(b"}");
        }
        self.json.raw(b"]");
    }

    /// Writes the rate of a queue's counter, and its history if one is requested.
    fn rate(&mut self, queue: &QueueView<'_>, column: QueueColumn) {
        let is_rate = matches!(column, QueueColumn::Arrived | QueueColumn::Delivered);
        let range = if is_rate { self.ranges.rates } else { self.ranges.lengths };
        self.context.samples.of_queue(&mut self.json, queue, column, range);
    }

    /// Writes numbers with the rate of each as an object.
    fn stats(&mut self, counts: &[(&str, u32)], rate: impl Fn(&mut Self, usize)) {
        let mut is_first = true;
        self.json.raw(b"{");
        for (column, (name, count)) in counts.iter().enumerate() {
            self.json.name(name, &mut is_first);
            self.json.number(*count);
            self.json.name(&format!("{name}_details"), &mut is_first);
            rate(self, column);
        }
        self.json.raw(b"}");
    }

    fn text_or_null(&mut self, text: Option<&str>) {
        match text {
            Some(text) => self.json.text(text),
            None => self.json.raw(b"null"),
        }
    }

    fn connection_name(&mut self, connection: ConnectionId, channel: Option<u16>) {
        let Some(socket) = self.context.sockets.at(connection) else { return self.json.text("") };
        match channel {
            Some(number) => self.json.shown(format_args!("{} ({number})", name_of(&socket))),
            None => self.json.shown(name_of(&socket)),
        }
    }
}

/// Returns the pid by which operators name a connection. It is never used again for another connection.
pub fn connection_pid(number: u64, connection: ConnectionId) -> String {
    format!("<leveret.{number}.{}.0>", connection.index() + 1)
}

/// Returns the pid of a channel of a connection.
pub fn channel_pid(number: u64, connection: ConnectionId, channel: u16) -> String {
    format!("<leveret.{number}.{}.{channel}>", connection.index() + 1)
}

/// Parses the pid of a connection into its number and id.
pub fn parse_connection_pid(pid: &str) -> Option<(u64, ConnectionId)> {
    let inside = pid.strip_prefix("<leveret.")?.strip_suffix(".0>")?;
    let (number, place) = inside.split_once('.')?;
    let place: u32 = place.parse().ok().filter(|place| *place > 0)?;
    Some((number.parse().ok()?, ConnectionId::from_index(place as usize - 1)))
}

/// Returns `peer -> host`, RabbitMQ's name of a connection.
pub fn name_of(socket: &SocketView<'_>) -> String {
    match socket.ends {
        Ends::Network { host, peer } => format!("{peer} -> {host}"),
        Ends::Local { pid, uid } => format!("process {pid} of user {uid} -> unix socket"),
    }
}

/// The most consumers in the description of a queue.
const CONSUMERS_SHOWN_MAX: usize = 32;

/// A kind of object that can be listed.
pub trait ListedKind: 'static {
    /// The view of one object.
    type View<'a>;
    /// All columns of the kind.
    const COLUMNS: &'static [Column<Self>];
    /// Returns the object's name, if objects of this kind can be requested by name.
    fn name(_: &Self::View<'_>) -> Option<String> {
        None
    }
    /// Columns that are written only if the request names them.
    const ON_REQUEST: &'static [&'static str] = &[TYPED];
    /// Columns that are in the description of one object, but not in a list.
    const OF_ONE: &'static [&'static str] = &[];
    /// RabbitMQ's columns for which the broker has no value. leveretctl accepts their names and prints empty cells.
    const WITHOUT_FIGURE: &'static [&'static str] = &[];
    /// Returns whether this object has no such column.
    fn leaves_out(_: &Self::View<'_>, _: &str) -> bool {
        false
    }
    /// Returns whether a binding has this source and destination. Returns `true` for objects that are no bindings.
    fn is_binding_of(_: &Self::View<'_>, _: &BindingEnds) -> bool {
        true
    }
    /// The columns by which a list is sorted over the network if the request names no order, as in RabbitMQ.
    const ORDER: &'static str = "vhost,name";
    /// Whether the list supports pages.
    const HAS_PAGES: bool = false;
    /// The users who may see objects of this kind.
    const AUDIENCE: Audience = Audience::Members;
    /// Returns whether a user who may not see everything may see this object.
    fn is_seen(viewer: &Viewer, context: ReadContext<'_>, view: &Self::View<'_>) -> bool {
        let Viewer { name, is_monitor } = viewer;
        let is_member =
            || Self::vhost(view).is_some_and(|vhost| context.broker.access().has_permission(name, vhost));
        match Self::AUDIENCE {
            Audience::All => true,
            Audience::Members => is_member(),
            Audience::MembersAndMonitors => *is_monitor || is_member(),
            Audience::OwnerAndMonitors => *is_monitor || is_member() && Self::user(view) == Some(&**name),
        }
    }
    /// Returns all objects of the kind.
    fn objects<'c>(context: ReadContext<'c>) -> impl Objects<Self::View<'c>>;
    /// Returns the number of places that objects of the kind have used since the start.
    fn places(context: ReadContext<'_>) -> usize {
        Self::objects(context).places()
    }
    /// Returns the object in a place; `None` if the place is empty.
    fn at(context: ReadContext<'_>, place: usize) -> Option<Self::View<'_>> {
        Self::objects(context).at(place)
    }
    /// Returns the object's virtual host.
    fn vhost<'a>(view: &Self::View<'a>) -> Option<&'a str>;
    /// Whether a list of the objects of a user demands that the user exists.
    const IS_OF_EXISTING_USER: bool = false;
    /// Returns the user who owns the object, for requests for the objects of one user.
    fn user<'a>(_: &Self::View<'a>) -> Option<&'a str> {
        None
    }
}

/// Writes the address of one end of a connection; `ours`: the broker's.
fn end(ends: Ends, ours: bool, writer: &mut CellWriter<'_, '_>) {
    match ends {
        Ends::Network { host, peer } => writer.json.shown(if ours { host.ip() } else { peer.ip() }),
        Ends::Local { .. } => writer.json.text("unix"),
    }
}

/// Returns the port of one end. Local programs have none.
const fn port(ends: Ends, ours: bool) -> u16 {
    match ends {
        Ends::Network { host, peer } => {
            if ours {
                host.port()
            } else {
                peer.port()
            }
        }
        Ends::Local { .. } => 0,
    }
}

/// A column: its name, and the function that writes its cell.
pub type Column<K> =
    (&'static str, for<'a, 'v, 'p, 'o> fn(&'v <K as ListedKind>::View<'a>, &mut CellWriter<'p, 'o>));

/// The name of columns with typed arguments, which only leveretctl requests.
pub const TYPED: &str = "arguments_typed";
/// The column of the milliseconds for which a publisher has been blocked.
const BLOCKED: &str = "blocked_ms";
/// The column of the rate of acknowledgements on a consumer's channel.
const ACK_RATE: &str = "ack_details";
/// The column of the name that a client has given its connection.
const CLIENT_NAME: &str = "user_provided_name";
/// The column of message counters. It is omitted while all of them are 0.
const STATS: &str = "message_stats";
/// The column of the number of messages that a delayed exchange holds.
const DELAYED: &str = "messages_delayed";

/// Queues.
#[derive(Debug)]
pub struct Queues;

impl ListedKind for Queues {
    type View<'a> = QueueView<'a>;

    const HAS_PAGES: bool = true;
    const COLUMNS: &'static [Column<Self>] = &[
        ("name", |queue, writer| writer.json.text(queue.name)),
        ("vhost", |queue, writer| writer.json.text(queue.vhost)),
        ("durable", |queue, writer| writer.json.truth(queue.durable)),
        ("auto_delete", |queue, writer| writer.json.truth(queue.auto_delete)),
        ("exclusive", |queue, writer| writer.json.truth(queue.owner.is_some())),
        ("arguments", |queue, writer| writer.json.table(queue.arguments, writer.tables)),
        (TYPED, |queue, writer| typed(queue.arguments, writer)),
        ("type", |queue, writer| {
            let kind = queue.arguments.get("x-queue-type").and_then(|value| value.as_str());
            writer.json.text(kind.unwrap_or("classic"));
        }),
        ("policy", |queue, writer| writer.text_or_null(queue.applied.policy)),
        ("operator_policy", |queue, writer| writer.text_or_null(queue.applied.operator)),
        ("effective_policy_definition", |queue, writer| effective(&queue.applied, writer)),
        ("state", |_, writer| writer.json.text("running")),
        ("pid", |queue, writer| writer.json.shown(format_args!("<leveret.queue.{}.0>", queue.serial))),
        ("owner_pid", |queue, writer| writer.connection(queue.owner)),
        ("exclusive_consumer_pid", |queue, writer| {
            writer.channel(queue.exclusive_consumer.map(|(_, channel)| channel));
        }),
        ("exclusive_consumer_tag", |queue, writer| {
            writer.text_or_null(queue.exclusive_consumer.map(|(tag, _)| tag));
        }),
        ("single_active_consumer_pid", |queue, writer| {
            writer.channel(queue.single_active_consumer.map(|(_, channel)| channel));
        }),
        ("single_active_consumer_tag", |queue, writer| match queue.single_active_consumer {
            Some((tag, _)) => writer.json.text(tag),
            None => writer.json.raw(b"null"),
        }),
        ("messages_ready", |queue, writer| writer.json.number(queue.messages_ready)),
        ("messages_unacknowledged", |queue, writer| writer.json.number(queue.messages_unacknowledged)),
        ("messages", |queue, writer| {
            writer.json.number(u64::from(queue.messages_ready) + u64::from(queue.messages_unacknowledged));
        }),
        ("messages_ready_ram", |queue, writer| writer.json.number(queue.messages_ready_ram)),
        ("messages_persistent", |queue, writer| writer.json.number(queue.messages_persistent)),
        ("messages_unacknowledged_ram", |queue, writer| {
            writer.json.number(queue.messages_unacknowledged_ram)
        }),
        ("messages_ram", |queue, writer| {
            let (ready, unacknowledged) = (queue.messages_ready_ram, queue.messages_unacknowledged_ram);
            writer.json.number(u64::from(ready) + u64::from(unacknowledged));
        }),
        ("message_bytes", |queue, writer| {
            writer.json.number(queue.message_bytes_ready + queue.message_bytes_unacknowledged);
        }),
        ("message_bytes_ready", |queue, writer| writer.json.number(queue.message_bytes_ready)),
        ("message_bytes_unacknowledged", |queue, writer| {
            writer.json.number(queue.message_bytes_unacknowledged)
        }),
        ("consumers", |queue, writer| writer.json.number(queue.consumers)),
        ("memory", |queue, writer| writer.json.number(queue.memory_bytes)),
        ("messages_details", |queue, writer| writer.rate(queue, QueueColumn::All)),
        ("messages_ready_details", |queue, writer| writer.rate(queue, QueueColumn::Ready)),
        ("messages_unacknowledged_details", |queue, writer| writer.rate(queue, QueueColumn::Unacknowledged)),
        ("node", |_, writer| writer.json.text(writer.context.node)),
        ("consumer_details", |queue, writer| writer.consumers_of(queue)),
        ("message_stats", |queue, writer| {
            writer.json.raw(b"{\"publish_details\":");
            writer.rate(queue, QueueColumn::Arrived);
            writer.json.raw(b",\"deliver_get\":");
            writer.json.number(queue.taken);
            writer.json.raw(b",\"deliver_get_details\":");
            writer.rate(queue, QueueColumn::Delivered);
            writer.json.raw(b"}");
        }),
    ];
    const OF_ONE: &'static [&'static str] = &["consumer_details"];
    const WITHOUT_FIGURE: &'static [&'static str] = &[
        "message_bytes_ram",
        "message_bytes_persistent",
        "head_message_timestamp",
        "disk_reads",
        "disk_writes",
        "consumer_utilisation",
        "consumer_capacity",
        "slave_pids",
        "synchronised_slave_pids",
        "leader",
        "members",
        "online",
    ];

    fn name(view: &Self::View<'_>) -> Option<String> {
        Some(view.name.to_string())
    }

    fn objects<'c>(context: ReadContext<'c>) -> impl Objects<Self::View<'c>> {
        context.broker.views().queues()
    }

    fn vhost<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        Some(view.vhost)
    }
}

/// Exchanges.
#[derive(Debug)]
pub struct Exchanges;

impl ListedKind for Exchanges {
    type View<'a> = ExchangeView<'a>;

    const HAS_PAGES: bool = true;
    const COLUMNS: &'static [Column<Self>] = &[
        ("name", |exchange, writer| writer.json.text(exchange.name)),
        ("vhost", |exchange, writer| writer.json.text(exchange.vhost)),
        ("type", |exchange, writer| writer.json.text(exchange.kind)),
        ("durable", |exchange, writer| writer.json.truth(exchange.durable)),
        ("auto_delete", |exchange, writer| writer.json.truth(exchange.auto_delete)),
        ("internal", |exchange, writer| writer.json.truth(exchange.internal)),
        ("arguments", |exchange, writer| writer.json.table(exchange.arguments, writer.tables)),
        (TYPED, |exchange, writer| typed(exchange.arguments, writer)),
        ("policy", |exchange, writer| writer.json.text(exchange.policy.unwrap_or_default())),
        (DELAYED, |exchange, writer| writer.json.number(exchange.messages_delayed.unwrap_or(0))),
        (STATS, |exchange, writer| {
            let [published, routed] = exchange.published;
            writer.stats(&[("publish_in", published), ("publish_out", routed)], |writer, column| {
                let (samples, range) = (writer.context.samples, writer.ranges.rates);
                samples.of_exchange(&mut writer.json, exchange, column, range);
            });
        }),
    ];

    fn leaves_out(view: &Self::View<'_>, column: &str) -> bool {
        column == DELAYED && view.messages_delayed.is_none() || column == STATS && view.published == [0; 2]
    }

    fn name(view: &Self::View<'_>) -> Option<String> {
        Some(view.name.to_string())
    }

    fn objects<'c>(context: ReadContext<'c>) -> impl Objects<Self::View<'c>> {
        context.broker.views().exchanges()
    }

    fn vhost<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        Some(view.vhost)
    }
}

/// A connection as the broker and its socket describe it.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionRow<'a> {
    /// Its id.
    pub id: ConnectionId,
    /// The broker's view.
    pub view: ConnectionView<'a>,
    /// The socket's view.
    pub socket: SocketView<'a>,
}

/// Connections.
#[derive(Debug)]
pub struct Connections;

impl ListedKind for Connections {
    type View<'a> = ConnectionRow<'a>;

    const HAS_PAGES: bool = true;
    const COLUMNS: &'static [Column<Self>] = &[
        ("pid", |row, writer| writer.json.shown(connection_pid(row.socket.number, row.id))),
        ("name", |row, writer| writer.json.shown(name_of(&row.socket))),
        ("host", |row, writer| end(row.socket.ends, true, writer)),
        ("port", |row, writer| writer.json.number(port(row.socket.ends, true))),
        ("peer_host", |row, writer| end(row.socket.ends, false, writer)),
        ("peer_port", |row, writer| writer.json.number(port(row.socket.ends, false))),
        ("ssl", |row, writer| writer.json.truth(row.socket.is_tls)),
        ("protocol", |row, writer| match row.socket.protocol.strip_prefix("MQTT ") {
            _ if !writer.is_ctl => writer.json.text(row.socket.protocol),
            Some(version) => writer.json.shown(format_args!("{{'MQTT',\"{version}\"}}")),
            None => writer.json.text("{0,9,1}"),
        }),
        ("state", |row, writer| writer.json.text(row.socket.state)),
        ("type", |_, writer| writer.json.text("network")),
        ("node", |_, writer| writer.json.text(writer.context.node)),
        ("channels", |row, writer| writer.json.number(row.view.channels)),
        ("user", |row, writer| writer.json.text(row.view.user)),
        ("vhost", |row, writer| writer.json.text(row.view.vhost)),
        ("timeout", |row, writer| writer.json.number(row.socket.heartbeat_s)),
        ("frame_max", |row, writer| writer.json.number(row.socket.frame_max)),
        ("channel_max", |row, writer| writer.json.number(row.socket.channel_max)),
        ("connected_at", |row, writer| writer.json.number(row.socket.connected_at_ms)),
        (BLOCKED, |row, writer| or_null(row.socket.blocked_for_ms, writer)),
        ("auth_mechanism", |row, writer| writer.json.text(row.socket.mechanism)),
        ("recv_oct", |row, writer| writer.json.number(row.socket.received.0)),
        ("recv_cnt", |row, writer| writer.json.number(row.socket.received.1)),
        ("send_oct", |row, writer| writer.json.number(row.socket.sent.0)),
        ("recv_oct_details", |row, writer| {
            let of = Sampled { place: row.id.index(), serial: row.socket.number };
            let counter = Counter { column: 0, now: row.socket.received.0 };
            writer.context.samples.of_connection(&mut writer.json, of, counter);
        }),
        ("send_oct_details", |row, writer| {
            let of = Sampled { place: row.id.index(), serial: row.socket.number };
            let counter = Counter { column: 1, now: row.socket.sent.0 };
            writer.context.samples.of_connection(&mut writer.json, of, counter);
        }),
        ("send_cnt", |row, writer| writer.json.number(row.socket.sent.1)),
        ("client_properties", |row, writer| writer.json.table(row.socket.client_properties, writer.tables)),
        ("user_provided_name", |row, writer| {
            let name = row.socket.client_properties.get("connection_name");
            writer.json.text(name.and_then(|value| value.as_str()).unwrap_or_default());
        }),
    ];
    const WITHOUT_FIGURE: &'static [&'static str] = &[
        "send_pend",
        "ssl_protocol",
        "ssl_key_exchange",
        "ssl_cipher",
        "ssl_hash",
        "peer_cert_subject",
        "peer_cert_issuer",
        "peer_cert_validity",
    ];
    const ON_REQUEST: &'static [&'static str] = &[BLOCKED];
    const AUDIENCE: Audience = Audience::OwnerAndMonitors;

    fn name(view: &Self::View<'_>) -> Option<String> {
        Some(name_of(&view.socket))
    }

    fn objects<'c>(context: ReadContext<'c>) -> impl Objects<Self::View<'c>> {
        objects(context.sockets.places(), move |place| {
            let id = ConnectionId::from_index(place);
            let (view, socket) = (context.broker.views().connection_view(id)?, context.sockets.at(id)?);
            Some(ConnectionRow { id, view, socket })
        })
    }

    fn vhost<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        Some(view.view.vhost)
    }

    fn user<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        Some(view.view.user)
    }
}

/// A channel and its id.
#[derive(Clone, Copy, Debug)]
pub struct ChannelRow<'a> {
    /// Its id.
    pub id: ChannelId,
    /// The broker's view.
    pub view: ChannelView<'a>,
    /// The view of its connection's socket.
    pub socket: Option<SocketView<'a>>,
}

/// Channels.
#[derive(Debug)]
pub struct Channels;

impl ListedKind for Channels {
    type View<'a> = ChannelRow<'a>;

    const HAS_PAGES: bool = true;
    const COLUMNS: &'static [Column<Self>] = &[
        ("pid", |row, writer| writer.channel(Some(row.id))),
        ("name", |row, writer| writer.connection_name(row.view.connection, Some(row.view.number))),
        ("connection", |row, writer| writer.connection(Some(row.view.connection))),
        (CLIENT_NAME, |row, writer| writer.client_name(row.socket)),
        ("number", |row, writer| writer.json.number(row.view.number)),
        ("user", |row, writer| writer.json.text(row.view.user)),
        ("vhost", |row, writer| writer.json.text(row.view.vhost)),
        ("node", |_, writer| writer.json.text(writer.context.node)),
        ("state", |_, writer| writer.json.text("running")),
        ("connection_details", |row, writer| {
            writer.json.raw(b"{");
            if let Some(socket) = &row.socket {
                let mut is_first = true;
                texts(&mut writer.json, &mut is_first, &[("name", &name_of(socket))]);
                writer.peer(socket, &mut is_first);
            }
            writer.json.raw(b"}");
        }),
        ("transactional", |row, writer| writer.json.truth(row.view.transactional)),
        ("confirm", |row, writer| writer.json.truth(row.view.confirm)),
        ("consumer_count", |row, writer| writer.json.number(row.view.consumers)),
        ("messages_unacknowledged", |row, writer| writer.json.number(row.view.messages_unacknowledged)),
        ("messages_unconfirmed", |row, writer| {
            let sockets = writer.context.sockets;
            writer.json.number(sockets.unconfirmed(row.view.connection, row.view.number));
        }),
        ("messages_uncommitted", |row, writer| writer.json.number(row.view.messages_uncommitted)),
        ("acks_uncommitted", |row, writer| writer.json.number(row.view.acks_uncommitted)),
        ("prefetch_count", |row, writer| writer.json.number(row.view.prefetch_count)),
        ("global_prefetch_count", |row, writer| writer.json.number(row.view.global_prefetch_count)),
        (STATS, |row, writer| {
            let counts = counts_of_channel(&row.view);
            writer.stats(&counts, |writer, column| {
                let (samples, range) = (writer.context.samples, writer.ranges.rates);
                let of = Sampled { place: row.id.index(), serial: row.view.serial };
                let counter = Counter { column, now: counts[column].1.into() };
                samples.of_channel(&mut writer.json, of, counter, range);
            });
        }),
    ];
    const ON_REQUEST: &'static [&'static str] = &[CLIENT_NAME];
    fn leaves_out(row: &Self::View<'_>, column: &str) -> bool {
        column == STATS && row.view.counters == ChannelCounters::default()
    }

    const AUDIENCE: Audience = Audience::OwnerAndMonitors;

    fn name(view: &Self::View<'_>) -> Option<String> {
        Some(format!("{} ({})", name_of(view.socket.as_ref()?), view.view.number))
    }

    fn objects<'c>(context: ReadContext<'c>) -> impl Objects<Self::View<'c>> {
        objects(context.broker.views().channels().places(), move |place| {
            let view = context.broker.views().channels().at(place)?;
            let socket = context.sockets.at(view.connection);
            Some(ChannelRow { id: ChannelId::from_index(place), view, socket })
        })
    }

    fn vhost<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        Some(view.view.vhost)
    }

    fn user<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        Some(view.view.user)
    }
}

/// Consumers.
#[derive(Debug)]
pub struct Consumers;

impl ListedKind for Consumers {
    type View<'a> = ConsumerView<'a>;

    const COLUMNS: &'static [Column<Self>] = &[
        ("queue_name", |consumer, writer| writer.json.text(consumer.queue)),
        ("queue", |consumer, writer| {
            writer.json.raw(b"{\"name\":");
            writer.json.text(consumer.queue);
            writer.json.raw(b",\"vhost\":");
            writer.json.text(consumer.vhost);
            writer.json.raw(b"}");
        }),
        ("vhost", |consumer, writer| writer.json.text(consumer.vhost)),
        ("channel_pid", |consumer, writer| writer.channel(Some(consumer.channel))),
        ("channel_details", |consumer, writer| writer.channel_details(consumer.channel)),
        ("consumer_tag", |consumer, writer| writer.json.text(consumer.tag)),
        ("ack_required", |consumer, writer| writer.json.truth(consumer.ack_required)),
        ("exclusive", |consumer, writer| writer.json.truth(consumer.exclusive)),
        ("prefetch_count", |consumer, writer| writer.json.number(consumer.prefetch_count)),
        (ACK_RATE, |consumer, writer| writer.channel_rate(consumer.channel, "ack")),
        (CLIENT_NAME, |consumer, writer| {
            let channel = writer.context.broker.views().channels().at(consumer.channel.index());
            let socket = channel.and_then(|view| writer.context.sockets.at(view.connection));
            writer.client_name(socket);
        }),
        ("active", |consumer, writer| writer.json.truth(consumer.activity != ConsumerActivity::Waiting)),
        ("activity_status", |consumer, writer| {
            writer.json.text(match consumer.activity {
                ConsumerActivity::Up => "up",
                ConsumerActivity::SingleActive => "single_active",
                ConsumerActivity::Waiting => "waiting",
            });
        }),
        ("priority", |consumer, writer| writer.json.number(consumer.priority)),
        ("arguments", |consumer, writer| {
            writer.json.raw(b"{");
            if consumer.priority != 0 {
                writer.json.name("x-priority", &mut true);
                writer.json.number(consumer.priority);
            }
            writer.json.raw(b"}");
        }),
        (TYPED, |consumer, writer| match consumer.priority {
            0 => writer.json.raw(b"[]"),
            priority => {
                writer.json.raw(b"[[\"x-priority\",\"signedint\",");
                writer.json.number(priority);
                writer.json.raw(b"]]");
            }
        }),
    ];

    const ON_REQUEST: &'static [&'static str] = &[TYPED, ACK_RATE, CLIENT_NAME];
    const HAS_PAGES: bool = true;
    const ORDER: &'static str = "vhost,queue_name,consumer_tag";
    const AUDIENCE: Audience = Audience::OwnerAndMonitors;

    fn user<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        Some(view.user)
    }

    fn name(view: &Self::View<'_>) -> Option<String> {
        Some(format!("{} {}", view.queue, view.tag))
    }

    fn objects<'c>(context: ReadContext<'c>) -> impl Objects<Self::View<'c>> {
        context.broker.views().consumers()
    }

    fn vhost<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        Some(view.vhost)
    }
}

/// Virtual hosts.
#[derive(Debug)]
pub struct Vhosts;

impl ListedKind for Vhosts {
    type View<'a> = VhostView<'a>;

    const HAS_PAGES: bool = true;
    const COLUMNS: &'static [Column<Self>] = &[
        ("name", |vhost, writer| writer.json.text(vhost.name)),
        ("limits", limits),
        ("tracing", |vhost, writer| writer.json.truth(vhost.is_traced)),
        ("description", |vhost, writer| writer.json.text(vhost.metadata.description)),
        ("tags", vhost_tags),
        ("metadata", vhost_metadata),
        ("default_queue_type", default_queue_type),
        ("protected_from_deletion", |vhost, writer| writer.json.truth(vhost.metadata.is_protected)),
        ("messages_ready", |vhost, writer| {
            writer.json.number(writer.context.broker.views().depth_of(vhost.name).0)
        }),
        ("messages_unacknowledged", |vhost, writer| {
            writer.json.number(writer.context.broker.views().depth_of(vhost.name).1)
        }),
        ("messages", |vhost, writer| {
            let (ready, unacknowledged) = writer.context.broker.views().depth_of(vhost.name);
            writer.json.number(ready + unacknowledged);
        }),
        ("cluster_state", |_, writer| {
            let (node, mut is_first) = (writer.context.node, true);
            writer.json.raw(b"{");
            texts(&mut writer.json, &mut is_first, &[(node, "running")]);
            writer.json.raw(b"}");
        }),
    ];
    const AUDIENCE: Audience = Audience::MembersAndMonitors;

    fn name(view: &Self::View<'_>) -> Option<String> {
        Some(view.name.to_string())
    }

    fn objects<'c>(context: ReadContext<'c>) -> impl Objects<Self::View<'c>> {
        context.broker.access().vhosts()
    }

    fn vhost<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        Some(view.name)
    }
}

/// Writes the tags of a virtual host.
fn vhost_tags(vhost: &VhostView<'_>, writer: &mut CellWriter<'_, '_>) {
    writer.json.texts(vhost.metadata.tags.split(',').filter(|tag| !tag.is_empty()));
}

/// Writes the type of queues that are declared without a type.
fn default_queue_type(vhost: &VhostView<'_>, writer: &mut CellWriter<'_, '_>) {
    let kind = vhost.metadata.default_queue_type;
    writer.json.text(if kind.is_empty() { "classic" } else { kind });
}

/// Writes the metadata of a virtual host that is set.
pub(super) fn vhost_metadata(vhost: &VhostView<'_>, writer: &mut CellWriter<'_, '_>) {
    let mut is_first = true;
    writer.json.raw(b"{");
    writer.json.name("description", &mut is_first);
    writer.json.text(vhost.metadata.description);
    writer.json.name("tags", &mut is_first);
    vhost_tags(vhost, writer);
    if !vhost.metadata.default_queue_type.is_empty() {
        writer.json.name("default_queue_type", &mut is_first);
        writer.json.text(vhost.metadata.default_queue_type);
    }
    if vhost.metadata.is_protected {
        writer.json.name("protected_from_deletion", &mut is_first);
        writer.json.truth(true);
    }
    writer.json.raw(b"}");
}

/// Writes the effective policy of a queue. The smaller of two limits is effective.
fn effective(applied: &AppliedView<'_>, writer: &mut CellWriter<'_, '_>) {
    let mut is_first = true;
    writer.json.raw(b"{");
    let mut put = |name: &str, value| {
        writer.json.name(name, &mut is_first);
        writer.json.value(value, Tables::Plain);
    };
    for (name, value) in applied.definition.iter() {
        let name = core::str::from_utf8(name).unwrap_or_default();
        let limit = applied.limits.get(name).filter(|limit| limit.as_integer() < value.as_integer());
        put(name, limit.unwrap_or(value));
    }
    for (name, value) in applied.limits.iter() {
        let name = core::str::from_utf8(name).unwrap_or_default();
        if applied.definition.get(name).is_none() {
            put(name, value);
        }
    }
    writer.json.raw(b"}");
}

/// Writes the limits of a virtual host that are set, under RabbitMQ's names.
pub fn limits(vhost: &VhostView<'_>, writer: &mut CellWriter<'_, '_>) {
    let VhostLimits { queues_max, connections_max } = vhost.limits;
    put_limits([("max-queues", queues_max), ("max-connections", connections_max)], writer);
}

pub(super) fn or_null(number: Option<u64>, writer: &mut CellWriter<'_, '_>) {
    match number {
        Some(number) => writer.json.number(number),
        None => writer.json.raw(b"null"),
    }
}

pub(super) fn put_limits(limits: [(&str, Option<u32>); 2], writer: &mut CellWriter<'_, '_>) {
    let mut is_first = true;
    writer.json.raw(b"{");
    for (name, limit) in limits.into_iter().filter_map(|(name, limit)| Some((name, limit?))) {
        writer.json.name(name, &mut is_first);
        write_limit(&mut writer.json, limit);
    }
    writer.json.raw(b"}");
}

/// Writes the value of a limit. RabbitMQ writes -1 for no limit.
pub(super) fn write_limit(json: &mut Json<'_>, limit: u32) {
    match limit {
        UNLIMITED => json.raw(b"-1"),
        limit => json.number(limit),
    }
}

pub(super) fn typed(arguments: Table<'_>, writer: &mut CellWriter<'_, '_>) {
    let how = if writer.tables == Tables::LeftOut { Tables::LeftOut } else { Tables::Typed };
    writer.json.table(arguments, how);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_found_only_by_its_pid() {
        let id = ConnectionId::from_index(6);
        assert_eq!(parse_connection_pid(&connection_pid(41, id)), Some((41, id)));
        for bad in ["", "<0.1.0>", "<leveret.1.0.0>", "<leveret.1.2.3>", "<leveret.x.1.0>", "<leveret.1.0>"] {
            assert_eq!(parse_connection_pid(bad), None, "{bad}");
        }
    }
}
