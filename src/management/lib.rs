//! Answers the operator's requests: the management API, the control socket, metrics and the web page.
//!
//! The operator is root or the broker's own user, who uses the control socket through `leveret ctl` (also installed as
//! `leveretctl`). A user of the broker uses the management API, which is RabbitMQ's, over the network. All requests,
//! metrics and the page included, are looked up in one table (`table`). A new request needs a row in that table and the
//! function that the row names.
//!
//! | file | contents |
//! |------|----------|
//! | `http` | parses requests, writes the heads and chunks of responses |
//! | `operator_session` | the state machine of one client, without its socket; `tests` beside it |
//! | `request` | one request with its user and path names; the ways to answer it; what a user may do |
//! | `table` | the table of all requests: who may send each and which function answers it |
//! | `gate` | access over the network: host names, origins of pages, logins |
//! | `listing` | lists of objects, written in parts; filters, sorting and pages |
//! | `columns`, `definition_columns` | the columns of each kind of object |
//! | `control` | requests that only the control socket has |
//! | `management` | requests that only the management API has: overview, limits, health of the node |
//! | `node` | the description of the node |
//! | `alarms` | alarms and health checks |
//! | `web_page` | the files of the web page, and its logins with tokens |
//! | `websocket` | upgrades to MQTT over WebSocket |
//! | `metrics` | metrics for Prometheus |
//! | `samples` | counters of the last minutes: rates and histories |
//! | `actions` | what users do in a virtual host: declare, bind, publish, delete |
//! | `publishing` | publishing a message of any length |
//! | `messages` | getting and browsing messages; a message as JSON |
//! | `moving` | moving messages of a queue; the route of a message |
//! | `uploads` | storage of a long request body; the file of a multipart form |
//! | `access` | users, virtual hosts, permissions, logins |
//! | `policies`, `parameters` | policies and operator policies; runtime parameters and shovels |
//! | `bridges` | links of bridges, forecast of an outage, dates |
//! | `definitions` | parsing, applying and exporting definitions |
//! | `import` | imports of definitions over the network and from the command line |
//! | `json` | a JSON writer with a size limit |
//!
//! Paths and field names are those of RabbitMQ's management API where it has them.
//!
//! # Invariants
//! - The package uses no sockets and no clock.
//! - The memory that one client can make the broker hold is bounded, and so is the work of one turn.

#![warn(clippy::unwrap_used)]

mod access;
mod actions;
mod alarms;
pub mod bridges;
pub mod columns;
pub mod compression;
mod control;
pub mod definition_columns;
pub mod definitions;
mod gate;
pub mod http;
mod import;
pub mod json;
pub mod listing;
mod management;
mod messages;
pub mod metrics;
mod moving;
pub mod mqtt;
mod node;
pub mod operator_session;
pub mod parameters;
mod policies;
mod publishing;
pub mod request;
pub mod samples;
mod status;
mod table;
mod uploads;
pub mod web_page;
mod websocket;
